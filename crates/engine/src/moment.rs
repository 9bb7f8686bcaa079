//! Moments for people.

use jiff::Timestamp;
use leeward_pgformat::TimestampTz;

/// A moment in UTC, to the microsecond where it has any: `2026-11-22 02:00:00.5 UTC`. The options of `leeward restore` read
/// it back.
#[must_use]
pub fn utc(moment: TimestampTz) -> String {
    format!("{} UTC", text(moment))
}

/// A moment in UTC as RFC 3339 has it, for machines; the options of `leeward restore` read it back, too.
#[must_use]
pub fn rfc3339(moment: TimestampTz) -> String {
    format!("{}Z", text(moment).replacen(' ', "T", 1))
}

/// A value of `recovery_target_time`, which says its offset so that the server's `timezone` does not matter.
pub(crate) fn setting(moment: TimestampTz) -> String {
    format!("{}+00", text(moment))
}

fn text(moment: TimestampTz) -> String {
    match Timestamp::from_microsecond(moment.unix_micros()) {
        Ok(timestamp) => timestamp.strftime("%Y-%m-%d %H:%M:%S%.f").to_string(),
        Err(_) => "infinity".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_three_spellings() {
        let moment = TimestampTz(1_500_000);
        assert_eq!(utc(moment), "2000-01-01 00:00:01.5 UTC");
        assert_eq!(rfc3339(moment), "2000-01-01T00:00:01.5Z");
        assert_eq!(setting(moment), "2000-01-01 00:00:01.5+00");
        assert_eq!(utc(TimestampTz(i64::MAX)), "infinity UTC");
    }
}
