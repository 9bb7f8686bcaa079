//! Moments as the server stores them.

/// Microseconds from 1970-01-01 to 2000-01-01, both 00:00 UTC (`POSTGRES_EPOCH_JDATE`, `datatype/timestamp.h`).
const POSTGRES_EPOCH_UNIX_MICROS: i64 = 946_684_800_000_000;

/// A moment: microseconds since 2000-01-01 00:00 UTC (`TimestampTz`, `datatype/timestamp.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimestampTz(pub i64);

impl TimestampTz {
    /// Microseconds since 1970-01-01 00:00 UTC; the last or first possible one where that does not fit.
    #[must_use]
    pub const fn unix_micros(self) -> i64 {
        self.0.saturating_add(POSTGRES_EPOCH_UNIX_MICROS)
    }

    /// The moment so many microseconds after 1970-01-01 00:00 UTC.
    #[must_use]
    pub const fn from_unix_micros(micros: i64) -> TimestampTz {
        TimestampTz(micros.saturating_sub(POSTGRES_EPOCH_UNIX_MICROS))
    }

    /// The moment so many seconds after 1970-01-01 00:00 UTC: how control file and checkpoints count
    /// (`pg_time_t`, `pgtime.h`).
    #[must_use]
    pub const fn from_unix_seconds(seconds: i64) -> TimestampTz {
        TimestampTz::from_unix_micros(seconds.saturating_mul(1_000_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_from_the_year_2000() {
        assert_eq!(TimestampTz(0).unix_micros(), 946_684_800_000_000);
        assert_eq!(
            TimestampTz::from_unix_seconds(946_684_801),
            TimestampTz(1_000_000)
        );
        assert_eq!(TimestampTz::from_unix_micros(0).unix_micros(), 0);
        assert_eq!(TimestampTz(i64::MAX).unix_micros(), i64::MAX, "infinity");
    }
}
