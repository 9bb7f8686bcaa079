//! What a walk over WAL tells, and what it stumbles over.

use crate::{
    Lsn, Oid, RequiredSettings, SystemIdentifier, TimelineId, TimestampTz, TransactionId, WalLevel,
};

/// A record that decides where recovery can stop, or that needs more of the recovering server than the files of a backup, as [`WalScanner`](super::WalScanner) meets it. `begin` is the record's
/// first byte, `end` the aligned position after its last one, as the server counts them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalEvent {
    /// A transaction was committed, or a prepared one was.
    Commit {
        /// The transaction; a prepared one's own, not that of the session that committed it.
        xid: TransactionId,
        /// When.
        time: TimestampTz,
        /// The record's first byte.
        begin: Lsn,
        /// After the record.
        end: Lsn,
    },
    /// A transaction, or the part of one since a savepoint, was rolled back, or a prepared one was.
    Abort {
        /// The transaction or subtransaction; a prepared one's own, not that of the session that rolled it back.
        xid: TransactionId,
        /// When.
        time: TimestampTz,
        /// The record's first byte.
        begin: Lsn,
        /// After the record.
        end: Lsn,
    },
    /// Another record of the transaction manager: a transaction was prepared, say. After any record of the manager recovery
    /// notices that it has become consistent; after others only at the next record (`recoveryStopsAfter`).
    OtherTransaction {
        /// The record's first byte.
        begin: Lsn,
        /// After the record.
        end: Lsn,
    },
    /// `pg_create_restore_point`.
    RestorePoint {
        /// Its name; bytes that are not UTF-8 are replacement characters.
        name: String,
        /// When.
        time: TimestampTz,
        /// The record's first byte.
        begin: Lsn,
        /// After the record.
        end: Lsn,
    },
    /// A checkpoint.
    Checkpoint {
        /// When it began, to the second.
        time: TimestampTz,
        /// Where replay from it begins.
        redo: Lsn,
        /// It is a shutdown's, or the end of recovery's.
        shutdown: bool,
        /// The record's first byte.
        begin: Lsn,
        /// After the record.
        end: Lsn,
    },
    /// The server that writes the WAL was started with other settings (`XLOG_PARAMETER_CHANGE`).
    ParameterChange {
        /// What a server in recovery needs from here on.
        settings: RequiredSettings,
        /// Recovery cannot go on behind a change to [`WalLevel::Minimal`]; `None` where the record gives a level that no
        /// version has.
        wal_level: Option<WalLevel>,
        /// The record's first byte.
        begin: Lsn,
        /// After the record.
        end: Lsn,
    },
    /// A promoted server began its timeline without a checkpoint (`XLOG_END_OF_RECOVERY`).
    EndOfRecovery {
        /// The new timeline.
        timeline: TimelineId,
        /// The one that it left.
        previous_timeline: TimelineId,
        /// When.
        time: TimestampTz,
        /// The record's first byte.
        begin: Lsn,
        /// After the record.
        end: Lsn,
    },
    /// `CREATE TABLESPACE`. Replay makes the link in `pg_tblspc` anew, to this location.
    TablespaceCreate {
        /// The tablespace.
        tablespace: Oid,
        /// The absolute path as the server wrote it; empty for one in place.
        location: Vec<u8>,
        /// The record's first byte.
        begin: Lsn,
        /// After the record.
        end: Lsn,
    },
    /// `DROP TABLESPACE`, or a `CREATE TABLESPACE` that was rolled back.
    TablespaceDrop {
        /// The tablespace.
        tablespace: Oid,
        /// The record's first byte.
        begin: Lsn,
        /// After the record.
        end: Lsn,
    },
    /// A database's directory was made by copying another one (`CREATE DATABASE` with strategy `file_copy`,
    /// `ALTER DATABASE ... SET TABLESPACE`). Replay copies whatever the source directory holds then.
    DatabaseCopy {
        /// The database.
        database: Oid,
        /// The tablespace of the new directory.
        tablespace: Oid,
        /// The database that was copied.
        source_database: Oid,
        /// The tablespace of the directory that was copied.
        source_tablespace: Oid,
        /// The record's first byte.
        begin: Lsn,
        /// After the record.
        end: Lsn,
    },
    /// A database's directory was made; its contents are in the WAL (`CREATE DATABASE` with strategy `wal_log`, since 15).
    DatabaseCreate {
        /// The database.
        database: Oid,
        /// The tablespace of the directory.
        tablespace: Oid,
        /// The record's first byte.
        begin: Lsn,
        /// After the record.
        end: Lsn,
    },
    /// Directories of a database were removed (`DROP DATABASE`, `ALTER DATABASE ... SET TABLESPACE`).
    DatabaseDrop {
        /// The database.
        database: Oid,
        /// The tablespaces of its directories, at most
        /// [`WalEvent::TABLESPACES_LIMIT`].
        tablespaces: Vec<Oid>,
        /// The record's first byte.
        begin: Lsn,
        /// After the record.
        end: Lsn,
    },
    /// The rest of the segment is not used (`pg_switch_wal`, `archive_timeout`).
    Switch {
        /// The record's first byte.
        begin: Lsn,
        /// After the record, where the server's own counting jumps to the next segment.
        end: Lsn,
    },
}

impl WalEvent {
    /// How many tablespaces of one [`WalEvent::DatabaseDrop`] are told.
    pub const TABLESPACES_LIMIT: usize = 256;

    /// The record's first byte.
    #[must_use]
    pub const fn begin(&self) -> Lsn {
        self.bounds().0
    }

    /// The aligned position after the record.
    #[must_use]
    pub const fn end(&self) -> Lsn {
        self.bounds().1
    }

    const fn bounds(&self) -> (Lsn, Lsn) {
        match self {
            Self::Commit { begin, end, .. }
            | Self::Abort { begin, end, .. }
            | Self::OtherTransaction { begin, end }
            | Self::RestorePoint { begin, end, .. }
            | Self::Checkpoint { begin, end, .. }
            | Self::ParameterChange { begin, end, .. }
            | Self::EndOfRecovery { begin, end, .. }
            | Self::TablespaceCreate { begin, end, .. }
            | Self::TablespaceDrop { begin, end, .. }
            | Self::DatabaseCopy { begin, end, .. }
            | Self::DatabaseCreate { begin, end, .. }
            | Self::DatabaseDrop { begin, end, .. }
            | Self::Switch { begin, end } => (*begin, *end),
        }
    }

    /// Whether replay of the record needs more of the recovering server than the files of a backup: settings, or
    /// directories that lie elsewhere.
    #[must_use]
    pub const fn is_requirement(&self) -> bool {
        match self {
            Self::ParameterChange { .. }
            | Self::TablespaceCreate { .. }
            | Self::TablespaceDrop { .. }
            | Self::DatabaseCopy { .. }
            | Self::DatabaseCreate { .. }
            | Self::DatabaseDrop { .. } => true,
            Self::Commit { .. }
            | Self::Abort { .. }
            | Self::OtherTransaction { .. }
            | Self::RestorePoint { .. }
            | Self::Checkpoint { .. }
            | Self::EndOfRecovery { .. }
            | Self::Switch { .. } => false,
        }
    }
}

/// WAL that recovery would stumble over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the WAL is damaged at {lsn}: {problem}{}", goes_on_text(*.goes_on))]
pub struct WalDamage {
    /// The record or page at which recovery would end.
    pub lsn: Lsn,
    /// What is wrong there.
    pub problem: WalProblem,
    /// A later page that proves that this is not simply where WAL ends.
    pub goes_on: Option<Lsn>,
}

fn goes_on_text(page: Option<Lsn>) -> String {
    page.map_or_else(String::new, |page| format!("; WAL goes on at {page}"))
}

/// Why a walk over WAL could go no further: the end of WAL, or damage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalProblem {
    /// Nothing was written here yet.
    #[error("there are only zeros")]
    Zeros,
    /// A record's header gives an impossible length.
    #[error("a record of {0} bytes")]
    RecordLength(u32),
    /// A record does not name its predecessor: it is not of this WAL, but what the file held before.
    #[error("a record that says it follows the one at {found}")]
    PreviousRecord {
        /// The record that it names.
        found: Lsn,
    },
    /// A record whose checksum is wrong.
    #[error("the checksum of a record of {length} bytes is wrong")]
    Checksum {
        /// Its length.
        length: u32,
    },
    /// A page of no known version, or of another than the pages before.
    #[error("the page at {page} has magic number {magic:04X}")]
    Magic {
        /// The page.
        page: Lsn,
        /// What it begins with.
        magic: u16,
    },
    /// A page with flags that cannot be there.
    #[error("the page at {page} has flags {flags:04X}")]
    Flags {
        /// The page.
        page: Lsn,
        /// Its flags.
        flags: u16,
    },
    /// A page of another place in WAL: the file is recycled, and not yet written up to here.
    #[error("the page at {page} says that it is the one at {found}")]
    PageAddress {
        /// The page.
        page: Lsn,
        /// What it says.
        found: Lsn,
    },
    /// A page of an older timeline than the page before.
    #[error("the page at {page} is of timeline {timeline}, older than the page before it")]
    PageTimeline {
        /// The page.
        page: Lsn,
        /// Its timeline.
        timeline: TimelineId,
    },
    /// A segment of another cluster.
    #[error("the segment at {page} is of the cluster with system identifier {system_identifier}")]
    Cluster {
        /// The segment's first page.
        page: Lsn,
        /// Whose it is.
        system_identifier: SystemIdentifier,
    },
    /// A segment that gives other sizes than those of its cluster.
    #[error("the segment at {page} has segments of {segment_size} and pages of {page_size} bytes")]
    Sizes {
        /// The segment's first page.
        page: Lsn,
        /// What it says of segments.
        segment_size: u32,
        /// What it says of pages.
        page_size: u32,
    },
    /// A page does not continue what the page before left unfinished, or continues what did not begin.
    #[error("the page at {page} continues a record with {found} bytes, {expected} are missing")]
    Continuation {
        /// The page.
        page: Lsn,
        /// Bytes still missing of the record.
        expected: u64,
        /// Bytes that the page says it continues with.
        found: u64,
    },
    /// The walk was told to begin inside a page.
    #[error("{start} is not the beginning of a page")]
    Start {
        /// Where it should have begun.
        start: Lsn,
    },
}
