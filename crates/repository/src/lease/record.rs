//! What stands in a lease or claim, and whether its holder lives.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::LeaseError;
use crate::process::ProcessIdentity;
use crate::store::Key;

/// Versions above this one are refused.
const FORMAT_VERSION: u32 = 1;

/// Who holds a lease, and for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// What is being done: "backup", "prune".
    pub what: String,
    /// The process that does it.
    #[serde(flatten)]
    pub process: ProcessIdentity,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} on host \"{}\" (process {})",
            self.what, self.process.host, self.process.pid
        )
    }
}

/// The content of `lease.json` and of claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) format_version: u32,
    pub(super) generation: u64,
    /// Tells this acquisition from every other one.
    pub(super) token: String,
    pub(super) holder: Holder,
    pub(super) acquired_at: Timestamp,
    pub(super) renewed_at: Timestamp,
    pub(super) expires_at: Timestamp,
    pub(super) ttl_ms: u64,
    pub(super) renewals: u64,
    pub(super) released: bool,
}

/// What a contender makes of somebody else's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    Alive,
    /// The clocks may disagree: watch.
    Doubtful,
    Dead,
}

impl Record {
    pub(super) fn new(what: &str, ttl: Duration, generation: u64) -> Record {
        let now = Timestamp::now();
        let mut record = Record {
            format_version: FORMAT_VERSION,
            generation,
            token: format!("{:032x}", rand::random::<u128>()),
            holder: Holder {
                what: what.to_owned(),
                process: ProcessIdentity::current(),
            },
            acquired_at: now,
            renewed_at: now,
            expires_at: now,
            ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
            renewals: 0,
            released: false,
        };
        record.expires_at = record.expiry(now);
        record
    }

    pub(super) fn renew(&mut self) {
        let now = Timestamp::now();
        self.renewed_at = now;
        self.expires_at = self.expiry(now);
        self.renewals += 1;
    }

    fn expiry(&self, now: Timestamp) -> Timestamp {
        now.checked_add(self.signed_ttl()).unwrap_or(Timestamp::MAX)
    }

    pub(super) fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }

    fn signed_ttl(&self) -> SignedDuration {
        SignedDuration::from_millis(i64::try_from(self.ttl_ms).unwrap_or(i64::MAX))
    }

    /// Judges by the process where it ran on this host, else by clocks that may disagree by one time to live.
    pub(super) fn judge(&self, now: Timestamp) -> Judgement {
        if self.released || self.holder.process.is_known_dead() {
            return Judgement::Dead;
        }
        let here = ProcessIdentity::current();
        let same_clock = !here.boot_id.is_empty() && self.holder.process.boot_id == here.boot_id;
        let left = self.expires_at.duration_since(now);
        if left <= SignedDuration::ZERO {
            let long_ago = left <= -self.signed_ttl();
            return if same_clock || long_ago {
                Judgement::Dead
            } else {
                Judgement::Doubtful
            };
        }
        // No holder promises itself more than one time to live, so its clock is ahead of ours, or was.
        if left > self.signed_ttl() * 2 {
            Judgement::Doubtful
        } else {
            Judgement::Alive
        }
    }

    pub(super) fn to_bytes(&self) -> Bytes {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text.into()
    }

    pub(super) fn parse(key: &Key, content: &[u8]) -> Result<Record, LeaseError> {
        let damaged = |reason: String| LeaseError::Damaged {
            key: key.clone(),
            reason,
        };
        let record: Record =
            serde_json::from_slice(content).map_err(|error| damaged(error.to_string()))?;
        if record.format_version > FORMAT_VERSION {
            return Err(damaged(format!(
                "it has format version {}, and this program knows {FORMAT_VERSION}",
                record.format_version
            )));
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(record: &Record, seconds: i64) -> Judgement {
        record.judge(
            record
                .expires_at
                .checked_add(SignedDuration::from_secs(seconds))
                .expect("in range"),
        )
    }

    #[test]
    fn a_living_process_is_judged_by_the_clock() {
        let record = Record::new("backup", Duration::from_secs(60), 1);
        assert_eq!(at(&record, -30), Judgement::Alive);
        assert_eq!(at(&record, 0), Judgement::Dead, "the clock is the same one");
        assert_eq!(at(&record, -500), Judgement::Doubtful);
    }

    #[test]
    fn another_hosts_clock_may_be_wrong() {
        let mut record = Record::new("backup", Duration::from_secs(60), 1);
        record.holder.process.boot_id = "another".into();
        assert_eq!(at(&record, -30), Judgement::Alive);
        assert_eq!(at(&record, 30), Judgement::Doubtful);
        assert_eq!(at(&record, 60), Judgement::Dead);
        record.released = true;
        assert_eq!(at(&record, -30), Judgement::Dead);
    }

    #[test]
    fn a_dead_process_holds_nothing() {
        let mut record = Record::new("backup", Duration::from_secs(60), 1);
        record.holder.process.process_start_ticks -= 1;
        assert_eq!(at(&record, -30), Judgement::Dead);
    }

    #[test]
    fn records_read_back_and_nonsense_does_not() {
        let key = Key::new("main/lease.json").expect("a key");
        let record = Record::new("backup", Duration::from_secs(60), 3);
        assert_eq!(
            Record::parse(&key, &record.to_bytes()).expect("read"),
            record
        );
        assert!(Record::parse(&key, b"{}").is_err());
        let newer = Record {
            format_version: 2,
            ..record
        };
        let error = Record::parse(&key, &newer.to_bytes())
            .expect_err("refused")
            .to_string();
        assert!(error.contains("format version 2"), "{error}");
    }
}
