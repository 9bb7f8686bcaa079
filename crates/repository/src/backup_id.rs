//! The name of a backup.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
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
