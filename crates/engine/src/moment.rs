//! Moments for people.

use jiff::Timestamp;
use leeward_pgformat::TimestampTz;

/// A moment in UTC, to the microsecond where it has any: `2026-11-22 02:00:00.5 UTC`. The options of `leeward restore` read
/// it back.
#[must_use]
pub fn utc(moment: TimestampTz) -> String {
    format!("{} UTC", text(moment))
}

/// The same as a value of `recovery_target_time`, which says its offset so that the server's `timezone` does not matter.
pub(crate) fn setting(moment: TimestampTz) -> String {
    format!("{}+00", text(moment))
}

fn text(moment: TimestampTz) -> String {
    match Timestamp::from_microsecond(moment.unix_micros()) {
        Ok(timestamp) => timestamp.strftime("%Y-%m-%d %H:%M:%S%.f").to_string(),
        Err(_) => "infinity".to_owned(),
    }
}
