//! The major versions Leeward knows.

use std::fmt;

/// A major version of PostgreSQL whose bytes this crate knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MajorVersion {
    /// PostgreSQL 14.
    V14,
    /// PostgreSQL 15.
    V15,
    /// PostgreSQL 16.
    V16,
    /// PostgreSQL 17.
    V17,
    /// PostgreSQL 18.
    V18,
    /// PostgreSQL 19.
    V19,
}

impl MajorVersion {
    /// Every known major version, oldest first.
    pub const ALL: [MajorVersion; 6] = [
        MajorVersion::V14,
        MajorVersion::V15,
        MajorVersion::V16,
        MajorVersion::V17,
        MajorVersion::V18,
        MajorVersion::V19,
    ];

    /// The oldest known major version.
    pub const OLDEST: MajorVersion = MajorVersion::ALL[0];

    /// The newest known major version.
    pub const NEWEST: MajorVersion = MajorVersion::ALL[MajorVersion::ALL.len() - 1];

    /// The version of that number; `None` for one this crate does not know.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<MajorVersion> {
        match number {
            14 => Some(MajorVersion::V14),
            15 => Some(MajorVersion::V15),
            16 => Some(MajorVersion::V16),
            17 => Some(MajorVersion::V17),
            18 => Some(MajorVersion::V18),
            19 => Some(MajorVersion::V19),
            _ => None,
        }
    }

    /// The version's number, as in the file `PG_VERSION`.
    #[must_use]
    pub const fn as_u32(self) -> u32 {
        match self {
            MajorVersion::V14 => 14,
            MajorVersion::V15 => 15,
            MajorVersion::V16 => 16,
            MajorVersion::V17 => 17,
            MajorVersion::V18 => 18,
            MajorVersion::V19 => 19,
        }
    }
}

impl fmt::Display for MajorVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_u32().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_others_are_unknown() {
        for version in MajorVersion::ALL {
            assert_eq!(MajorVersion::from_u32(version.as_u32()), Some(version));
        }
        assert_eq!(MajorVersion::from_u32(13), None);
        assert_eq!(MajorVersion::from_u32(20), None);
        assert_eq!(MajorVersion::V19.to_string(), "19");
        assert_eq!(
            (MajorVersion::OLDEST, MajorVersion::NEWEST),
            (MajorVersion::V14, MajorVersion::V19)
        );
    }
}
