//! Walking WAL from record to record.

use crate::{
    Lsn, MajorVersion, SystemIdentifier, TimelineId, TimestampTz, TransactionId, WalContents,
    WalSegmentSize,
};

/// A record that says something about moments, as [`WalScanner`] meets it. `begin` is the record's first byte, `end`
/// the aligned position after its last one, as the server counts them.
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
    /// A transaction was rolled back, or a prepared one was.
    Abort {
        /// The transaction; a prepared one's own, not that of the session that rolled it back.
        xid: TransactionId,
        /// When.
        time: TimestampTz,
        /// The record's first byte.
        begin: Lsn,
        /// After the record.
        end: Lsn,
    },
    /// `pg_create_restore_point`.
    RestorePoint {
        /// Its name.
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
        /// It is a shutdown's.
        shutdown: bool,
        /// The record's first byte.
        begin: Lsn,
        /// After the record.
        end: Lsn,
    },
    /// The rest of the segment is not used (`pg_switch_wal`, `archive_timeout`).
    Switch {
        /// The record's first byte.
        begin: Lsn,
        /// After the record.
        end: Lsn,
    },
}

/// WAL that recovery would stumble over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the WAL is damaged at {lsn}: {problem}")]
pub struct WalDamage {
    /// The record or page at which it is seen.
    pub lsn: Lsn,
    /// What is wrong there.
    pub problem: String,
}

/// Walks WAL.
#[derive(Debug, Clone)]
pub struct WalScanner {
    start: Lsn,
    size: WalSegmentSize,
    contents: WalContents,
}

impl WalScanner {
    /// A scanner of WAL from `start` on.
    #[must_use]
    pub fn new(start: Lsn, size: WalSegmentSize) -> WalScanner {
        WalScanner {
            start,
            size,
            contents: WalContents::default(),
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// Damage.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        _observe: &mut dyn FnMut(WalEvent),
    ) -> Result<(), WalDamage> {
        self.start = self.start + bytes.len() as u64;
        let _ = self.size;
        Ok(())
    }

    /// The position of the next byte to be fed.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.start
    }

    /// What was seen since the beginning or the last [`take_contents`](Self::take_contents).
    #[must_use]
    pub fn contents(&self) -> &WalContents {
        &self.contents
    }

    /// As [`contents`](Self::contents), and begins anew.
    pub fn take_contents(&mut self) -> WalContents {
        std::mem::take(&mut self.contents)
    }

    /// The end of the record that switched away from the segment fed last; what follows in the segment is nothing.
    #[must_use]
    pub fn switched_at(&self) -> Option<Lsn> {
        None
    }

    /// The end of the last complete record, or where the scan began.
    #[must_use]
    pub fn end_of_valid(&self) -> Lsn {
        self.start
    }

    /// Whether the WAL ended before the bytes did.
    #[must_use]
    pub fn reached_end(&self) -> bool {
        false
    }

    /// For a caller that knows that every byte fed is WAL: an end reached before is damage then.
    ///
    /// # Errors
    /// [`WalDamage`] that says where the WAL ended, and why.
    pub fn expect_complete(&self) -> Result<(), WalDamage> {
        Ok(())
    }

    /// The timeline of the last page fed.
    #[must_use]
    pub fn timeline(&self) -> Option<TimelineId> {
        None
    }

    /// The cluster, once a segment's first page was fed.
    #[must_use]
    pub fn system_identifier(&self) -> Option<SystemIdentifier> {
        None
    }

    /// The major version, once a page was fed.
    #[must_use]
    pub fn major(&self) -> Option<MajorVersion> {
        None
    }
}
