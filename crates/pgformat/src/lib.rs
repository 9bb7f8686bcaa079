//! PostgreSQL's bytes and names: what is on the disk of a cluster of major version 14 to 19, and nothing else.
//!
//! No I/O, no clock, no server: every function takes bytes or text and says what they mean. Each fact names the
//! PostgreSQL source file it comes from, and `tests/golden` holds bytes written by real servers that prove it.
//!
//! | module | what it knows |
//! | --- | --- |
//! | [`wal_segment`] | WAL segment names, sizes and the long header on a segment's first page |
//! | [`wal_scan`] | WAL records: walking and checking them, commits, restore points, checkpoints, the end of WAL |
//! | [`wal_contents`] | what the records of a stretch of WAL say, in few bytes |
//! | [`timeline`] | timeline history files: which timeline an LSN belongs to |
//! | [`control_file`] | `global/pg_control` |
//! | [`page`] | page header, page checksum, all-zero pages |
//! | [`page_transform`] | pages taken apart into streams that compress well, and put together again |
//! | [`relation`] | relation file names: path to tablespace, database, relation, fork, segment, and back |
//! | [`relation_map`] | `pg_filenode.map`: the file numbers of the catalogs that come before `pg_class` |
//! | [`slru`] | the files of transaction status and multixacts, by the numbers they hold |
//! | [`classify`](mod@classify) | what each file of a data directory is to a backup: which to copy, which to leave |
//! | [`backup_label`] | the `backup_label` file |
//! | [`tablespace_map`] | the `tablespace_map` file |
//!
//! Everything is little-endian and 64-bit, as every platform Leeward runs on; a control file of another byte order
//! is recognised and refused.

pub mod backup_label;
pub mod classify;
pub mod control_file;
mod error;
mod id;
mod lsn;
pub mod page;
pub mod page_transform;
pub mod relation;
pub mod relation_map;
mod required_settings;
pub mod slru;
pub mod tablespace_map;
pub mod timeline;
mod timestamp;
mod version;
pub mod wal_contents;
pub mod wal_scan;
pub mod wal_segment;

pub use backup_label::BackupLabel;
pub use classify::{FileClass, SkipReason, classify};
pub use control_file::{ControlFile, ControlFileError, DbState, WalLevel};
pub use error::FormatError;
pub use id::{BlockNumber, Oid, RelFileNumber, SystemIdentifier, TimelineId};
pub use lsn::Lsn;
pub use page::{PageDamage, PageVerdict};
pub use relation::{Fork, RelationSegment, TablespaceVersionDirectory};
pub use required_settings::RequiredSettings;
pub use tablespace_map::TablespaceMap;
pub use timeline::TimelineHistory;
pub use timestamp::TimestampTz;
pub use version::MajorVersion;
pub use wal_contents::{RecordPart, RestorePoint, TransactionId, WalContents};
pub use wal_scan::{DatabaseDirectory, WalDamage, WalEvent, WalProblem, WalScanner};
pub use wal_segment::{WalLongHeader, WalSegmentName, WalSegmentSize};

/// Bytes in a page: `BLCKSZ` of every distributed PostgreSQL (`pg_config.h`). A cluster built with another size is
/// told apart by [`ControlFile::block_size`].
pub const PAGE_SIZE: usize = 8192;

/// Pages in a full relation segment (1 GiB): `RELSEG_SIZE` of every distributed PostgreSQL (`pg_config.h`).
pub const RELATION_SEGMENT_BLOCKS: u32 = 131_072;

/// The little-endian integers at a fixed offset; the caller has checked the length.
fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    let mut raw = [0; 2];
    raw.copy_from_slice(&bytes[offset..offset + 2]);
    u16::from_le_bytes(raw)
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(raw)
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(raw)
}
