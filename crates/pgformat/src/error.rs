//! What can be wrong with PostgreSQL's text formats and WAL page headers.
//!
//! The control file has its own error, [`crate::ControlFileError`], because its cases call for different actions.

use crate::TimelineId;

/// Text or bytes that are not what PostgreSQL writes in that place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Not an LSN.
    #[error(
        "could not read LSN \"{text}\": expected two hexadecimal numbers as in \"16/B374D848\""
    )]
    Lsn {
        /// What was read.
        text: String,
    },
    /// Not a number of the kind named.
    #[error("could not read {what} \"{text}\": expected a decimal number")]
    Number {
        /// What the number stands for, in PostgreSQL's words.
        what: &'static str,
        /// What was read.
        text: String,
    },
    /// A WAL segment's first page does not begin as a WAL segment does.
    #[error("could not read the WAL segment's header: {reason}")]
    WalHeader {
        /// What is wrong.
        reason: String,
    },
    /// A timeline history file that PostgreSQL would refuse.
    #[error("could not read the history of timeline {timeline}, line {line}: {reason}")]
    TimelineHistory {
        /// The timeline whose history file it is.
        timeline: TimelineId,
        /// Line number, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A `backup_label` that PostgreSQL would refuse.
    #[error("could not read the backup label: {reason}")]
    BackupLabel {
        /// What is wrong.
        reason: String,
    },
    /// A `tablespace_map` that PostgreSQL would refuse.
    #[error("could not read the tablespace map, line {line}: {reason}")]
    TablespaceMap {
        /// Line number, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}
