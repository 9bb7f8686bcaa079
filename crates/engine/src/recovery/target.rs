//! The options of a recovery: its target, its timeline, and what the server does at its end.

use std::fmt;

use leeward_pgformat::{Lsn, TimelineId, TimestampTz, TransactionId};

use crate::moment::utc;

/// Where recovery is to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// At the end of archived WAL.
    End,
    /// As soon as the backup is consistent.
    Immediate,
    /// Before the first commit or rollback later than this.
    Time(TimestampTz),
    /// At the first record that begins here or later.
    Lsn(Lsn),
    /// At the end of this transaction.
    Transaction(TransactionId),
    /// At the first restore point of this name.
    RestorePoint(String),
}

impl fmt::Display for RecoveryTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End => f.write_str("the end of WAL"),
            Self::Immediate => f.write_str("the consistent state of the backup"),
            Self::Time(time) => write!(f, "{}", utc(*time)),
            Self::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Self::Transaction(TransactionId(xid)) => write!(f, "transaction {xid}"),
            Self::RestorePoint(name) => write!(f, "restore point \"{name}\""),
        }
    }
}

/// Where recovery stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopPoint {
    /// The beginning of the record that it stops before, or the end of the one that it stops after.
    pub lsn: Lsn,
    /// The time of that record, if it is a commit, a rollback or a restore point.
    pub time: Option<TimestampTz>,
}

/// The timeline that recovery follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimelineSelection {
    /// The newest that descends from the backup.
    #[default]
    Latest,
    /// The one that the backup was taken on.
    Current,
    /// This one.
    Number(TimelineId),
}

/// What the server is to do with a restored backup.
#[derive(Clone, Debug)]
pub struct RecoveryOptions {
    /// Where recovery is to stop.
    pub target: RecoveryTarget,
    /// Whether the target itself is recovered (`recovery_target_inclusive`).
    pub inclusive: bool,
    /// The timeline to follow.
    pub timeline: TimelineSelection,
    /// What the server does at the target.
    pub action: TargetAction,
    /// It becomes a standby, and does not stop.
    pub standby: Option<Standby>,
    /// The shell command that brings a WAL file: `leeward wal get` and its options, up to `%f` and `%p`.
    pub restore_command: String,
}

/// What the server does when it reaches its recovery target (`recovery_target_action`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetAction {
    /// It stays in recovery and answers queries.
    Pause,
    /// It opens for writes, on a new timeline.
    #[default]
    Promote,
    /// It stops.
    Shutdown,
}

/// Where a standby goes on from.
#[derive(Clone, Debug, Default)]
pub struct Standby {
    /// `primary_conninfo`.
    pub primary_conninfo: Option<String>,
    /// `primary_slot_name`.
    pub primary_slot_name: Option<String>,
}
