//! Positions in the write-ahead log.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use crate::FormatError;

/// A log sequence number: a byte position in the write-ahead log (`XLogRecPtr`, `access/xlogdefs.h`).
///
/// Printed and read as PostgreSQL does: `16/B374D848`, the high and the low half in hexadecimal without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// No position: `InvalidXLogRecPtr`. No record ever lies here.
    pub const INVALID: Lsn = Lsn(0);

    /// Whether this is a position at all.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Through one string, so that width and alignment apply to the whole.
        f.pad(&format!("{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF))
    }
}

impl FromStr for Lsn {
    type Err = FormatError;

    /// As `pg_lsn_in_internal` (`utils/adt/pg_lsn.c`): one to eight hexadecimal digits, a slash, one to eight more.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let half = |digits: &str| -> Option<u64> {
            let well_formed = (1..=8).contains(&digits.len())
                && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            if well_formed {
                u64::from_str_radix(digits, 16).ok()
            } else {
                None
            }
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| FormatError::Lsn {
                text: text.to_owned(),
            })
    }
}

impl Add<u64> for Lsn {
    type Output = Lsn;

    /// The position so many bytes further; the last possible position at most.
    fn add(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }
}

impl Sub<Lsn> for Lsn {
    type Output = u64;

    /// Bytes from `earlier` up to here; zero when `earlier` lies further on.
    fn sub(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_and_prints_as_the_server_does() {
        assert_eq!("16/B374D848".parse(), Ok(Lsn(0x16_B374_D848)));
        assert_eq!(Lsn(0x16_0000_0028).to_string(), "16/28");
        assert_eq!(Lsn::INVALID.to_string(), "0/0");
        assert_eq!("ffffffff/FFFFFFFF".parse(), Ok(Lsn(u64::MAX)));
        assert_eq!(
            "0/01700028".parse(),
            Ok(Lsn(0x0170_0028)),
            "19 pads the low half"
        );
        assert_eq!(format!("{:>6}|", Lsn(1)), "   0/1|");
    }

    #[test]
    fn refuses_what_the_server_refuses() {
        for text in [
            "",
            "/",
            "0/",
            "/0",
            "0",
            "0/0/0",
            "123456789/0",
            "0/123456789",
            "g/0",
            "0/g",
            " 0/0",
            "0/0 ",
            "+1/0",
            "-1/0",
        ] {
            assert_eq!(
                text.parse::<Lsn>(),
                Err(FormatError::Lsn {
                    text: text.to_owned()
                })
            );
        }
    }

    #[test]
    fn arithmetic_stays_within_bounds() {
        assert_eq!(Lsn(10) + 5, Lsn(15));
        assert_eq!(Lsn(u64::MAX) + 5, Lsn(u64::MAX));
        assert_eq!(Lsn(15) - Lsn(10), 5);
        assert_eq!(Lsn(10) - Lsn(15), 0);
    }

    proptest! {
        #[test]
        fn text_round_trips(raw: u64) {
            prop_assert_eq!(Lsn(raw).to_string().parse(), Ok(Lsn(raw)));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,20}") {
            if let Ok(lsn) = text.parse::<Lsn>() {
                prop_assert_eq!(lsn.to_string().parse(), Ok(lsn));
            }
        }
    }
}
