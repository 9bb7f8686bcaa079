//! What stands in a lease or claim, and whether its holder lives.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::LeaseError;
use crate::document;
use crate::process::ProcessIdentity;
use crate::repository_error::RepositoryError;
use crate::store::Key;
use crate::summary::FORMAT_VERSION;

/// The most bytes of a lease or claim.
const RECORD_BYTES_LIMIT: usize = 16 << 10;
/// The longest time to live: nobody waits longer for somebody else's word.
const TTL_LIMIT: Duration = Duration::from_secs(600);
/// The most bytes of a text in it.
const TEXT_BYTES_LIMIT: usize = 256;

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

    pub(super) fn encode(&self, key: &Key) -> Result<Bytes, LeaseError> {
        document::encode(key.as_str(), self).map_err(|error| LeaseError::Unwritable {
            key: key.clone(),
            reason: error.to_string(),
        })
    }

    /// Reads a record; `Err` inside says why it cannot be believed.
    ///
    /// # Errors
    /// [`LeaseError::NewerFormat`].
    pub(super) fn decode(
        key: &Key,
        content: &[u8],
    ) -> Result<std::result::Result<Record, String>, LeaseError> {
        if content.len() > RECORD_BYTES_LIMIT {
            return Ok(Err(format!("it has {} bytes", content.len())));
        }
        match document::decode::<Record>(key.as_str(), content) {
            Ok(record) => Ok(record.check().map(|()| record)),
            Err(RepositoryError::NewerFormat { found, known, .. }) => {
                Err(LeaseError::NewerFormat {
                    key: key.clone(),
                    found,
                    known,
                })
            }
            Err(RepositoryError::Damaged { problem, .. }) => Ok(Err(problem)),
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    /// Checks that a holder may have written this.
    fn check(&self) -> Result<(), String> {
        let limit_ms = TTL_LIMIT.as_millis();
        if self.ttl_ms == 0 || u128::from(self.ttl_ms) > limit_ms {
            return Err(format!(
                "its time to live is {} ms, not 1 to {limit_ms}",
                self.ttl_ms
            ));
        }
        let process = &self.holder.process;
        for text in [
            &self.token,
            &self.holder.what,
            &process.host,
            &process.boot_id,
            &process.pid_namespace,
        ] {
            if text.len() > TEXT_BYTES_LIMIT || text.chars().any(char::is_control) {
                return Err("a text in it is too long, or no text".to_owned());
            }
        }
        Ok(())
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

    fn key() -> Key {
        Key::new("main/lease.json").expect("a key")
    }

    #[test]
    fn records_read_back_and_nonsense_does_not() {
        let record = Record::new("backup", Duration::from_secs(60), 3);
        let text = record.encode(&key()).expect("written");
        assert_eq!(
            Record::decode(&key(), &text).expect("read"),
            Ok(record.clone())
        );
        for at in 0..text.len() {
            let mut damaged = text.to_vec();
            damaged[at] ^= 1;
            assert!(
                Record::decode(&key(), &damaged).expect("read").is_err(),
                "byte {at}"
            );
        }
        assert!(Record::decode(&key(), b"{}").expect("read").is_err());
        let newer = Record {
            format_version: 2,
            ..record
        };
        let text = newer.encode(&key()).expect("written");
        let error = Record::decode(&key(), &text).expect_err("refused");
        assert!(error.to_string().contains("format version 2"), "{error}");
    }

    #[test]
    fn what_no_holder_writes_is_not_believed() {
        let record = Record::new("backup", Duration::from_secs(60), 3);
        let ttl = |ttl_ms| Record {
            ttl_ms,
            ..record.clone()
        };
        let what = |what: String| {
            let mut record = record.clone();
            record.holder.what = what;
            record
        };
        for (record, fine) in [
            (ttl(1), true),
            (ttl(600_000), true),
            (ttl(0), false),
            (ttl(600_001), false),
            (ttl(u64::MAX), false),
            (what("x".repeat(256)), true),
            (what("x".repeat(257)), false),
            (what("x".repeat(20_000)), false),
            (what("backup\u{1b}[2J".to_owned()), false),
        ] {
            let text = record.encode(&key()).expect("written");
            let found = Record::decode(&key(), &text).expect("read");
            assert_eq!(found.is_ok(), fine, "{found:?}");
        }
    }
}
