//! The name of a backup.

use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, civil};
use rand::Rng;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A backup's id: UTC time of its start and a short random tail, `20261122T023000Z-k7q2`. Ids sort by time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(String);

/// A text that is not a backup's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not the id of a backup, as in \"20261122T023000Z-k7q2\"")]
pub struct InvalidBackupId(pub String);

/// No letters or digits that are easily taken for one another.
const TAIL_LETTERS: &[u8] = b"23456789abcdefghjkmnpqrstuvwxyz";
const TAIL_LENGTH: usize = 4;
const TIME_FORMAT: &str = "%Y%m%dT%H%M%SZ";

impl BackupId {
    /// A new id for a backup that starts at `now`.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        let mut random = rand::rng();
        let tail = (0..TAIL_LENGTH)
            .map(|_| char::from(TAIL_LETTERS[random.random_range(0..TAIL_LETTERS.len())]));
        Self(format!(
            "{}-{}",
            now.strftime(TIME_FORMAT),
            tail.collect::<String>()
        ))
    }

    /// A new id for a backup that starts at `now`, later in order than `newest`: two that start within one second, or a
    /// clock that was set back, must not make an older backup the latest.
    #[must_use]
    pub fn new_after(now: Timestamp, newest: Option<&BackupId>) -> Self {
        let next = newest.and_then(|newest| {
            newest
                .time()?
                .checked_add(SignedDuration::from_secs(1))
                .ok()
        });
        Self::new(next.map_or(now, |next| next.max(now)))
    }

    /// The time in the id.
    fn time(&self) -> Option<Timestamp> {
        let time = civil::DateTime::strptime(TIME_FORMAT, self.0.split_once('-')?.0).ok()?;
        Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BackupId {
    type Err = InvalidBackupId;

    fn from_str(text: &str) -> Result<Self, InvalidBackupId> {
        let valid = text.split_once('-').is_some_and(|(time, tail)| {
            time.len() == 16
                && time.bytes().enumerate().all(|(at, byte)| match at {
                    8 => byte == b'T',
                    15 => byte == b'Z',
                    _ => byte.is_ascii_digit(),
                })
                && tail.len() == TAIL_LENGTH
                && tail
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        });
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidBackupId(text.chars().take(100).collect()))
        }
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for BackupId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for BackupId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_one_another_whatever_the_clock_says() {
        let now: Timestamp = "2026-11-22T02:30:00.9Z".parse().expect("a time");
        let mut newest: Option<BackupId> = None;
        for clock in [now, now, now - SignedDuration::from_hours(5), now] {
            let id = BackupId::new_after(clock, newest.as_ref());
            assert!(newest.as_ref() < Some(&id), "{id} after {newest:?}");
            newest = Some(id);
        }
        let later = BackupId::new_after(now + SignedDuration::from_hours(1), newest.as_ref());
        assert!(later.as_str().starts_with("20261122T033000Z-"), "{later}");
    }
}
