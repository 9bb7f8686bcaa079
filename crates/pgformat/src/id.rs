//! PostgreSQL's numbers, each with a type of its own so that none is mistaken for another.

use std::fmt;
use std::str::FromStr;

use crate::FormatError;

/// A timeline: `TimeLineID` (`access/xlogdefs.h`). The first is 1; each promotion begins a higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(pub u32);

/// The number `initdb` gives a cluster, shared by the primary and all its standbys
/// (`system_identifier`, `catalog/pg_control.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemIdentifier(pub u64);

/// An object identifier: here of a database or tablespace (`postgres_ext.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Oid(pub u32);

/// The number in a relation's file name (`RelFileNumber`, `common/relpath.h`; `relfilenode` before 16).
/// Not the relation's OID: `VACUUM FULL`, `TRUNCATE` and others give a relation a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelFileNumber(pub u32);

/// The position of a page in a relation fork, counted in pages from the fork's beginning: relation-wide, so page 0
/// of relation segment 1 is block 131072 (`storage/block.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockNumber(pub u32);

impl Oid {
    /// No object; the "database" of relations shared by the whole cluster.
    pub const INVALID: Oid = Oid(0);
    /// `pg_default`: relations under `base/` (`catalog/pg_tablespace.dat`).
    pub const DEFAULT_TABLESPACE: Oid = Oid(1663);
    /// `pg_global`: relations under `global/` (`catalog/pg_tablespace.dat`).
    pub const GLOBAL_TABLESPACE: Oid = Oid(1664);
}

/// Reads plain decimal, as PostgreSQL prints these numbers.
fn parse_decimal<N: FromStr>(what: &'static str, text: &str) -> Result<N, FormatError> {
    let wrong = || FormatError::Number {
        what,
        text: text.to_owned(),
    };
    // `FromStr` of integers takes a leading plus sign; PostgreSQL never prints one.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for RelFileNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for BlockNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TimelineId {
    type Err = FormatError;
    fn from_str(text: &str) -> Result<Self, FormatError> {
        parse_decimal("timeline", text).map(Self)
    }
}

impl FromStr for SystemIdentifier {
    type Err = FormatError;
    fn from_str(text: &str) -> Result<Self, FormatError> {
        parse_decimal("system identifier", text).map(Self)
    }
}

impl FromStr for Oid {
    type Err = FormatError;
    fn from_str(text: &str) -> Result<Self, FormatError> {
        parse_decimal("OID", text).map(Self)
    }
}

impl FromStr for RelFileNumber {
    type Err = FormatError;
    fn from_str(text: &str) -> Result<Self, FormatError> {
        parse_decimal("relation file number", text).map(Self)
    }
}

impl FromStr for BlockNumber {
    type Err = FormatError;
    fn from_str(text: &str) -> Result<Self, FormatError> {
        parse_decimal("block number", text).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_text_round_trips() {
        assert_eq!("7".parse(), Ok(TimelineId(7)));
        assert_eq!(
            "18446744073709551615".parse(),
            Ok(SystemIdentifier(u64::MAX))
        );
        assert_eq!(
            SystemIdentifier(u64::MAX).to_string(),
            "18446744073709551615"
        );
        assert_eq!(
            format!("{:>5}", Oid(42)),
            "   42",
            "width reaches the number"
        );
    }

    #[test]
    fn anything_but_digits_is_refused() {
        for text in ["", "+1", "-1", " 1", "1 ", "0x1", "4294967296"] {
            assert!(text.parse::<TimelineId>().is_err(), "{text:?}");
        }
        assert_eq!(
            "x".parse::<Oid>().map_err(|error| error.to_string()),
            Err("could not read OID \"x\": expected a decimal number".to_owned())
        );
    }
}
