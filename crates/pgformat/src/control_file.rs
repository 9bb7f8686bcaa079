//! `global/pg_control`: the state of a cluster, what its pages look like, and where recovery begins.
//!
//! Facts from `catalog/pg_control.h` of each major version and `common/controldata_utils.c`.

use std::fmt;

use crate::{
    Lsn, MajorVersion, PAGE_SIZE, RELATION_SEGMENT_BLOCKS, SystemIdentifier,
    TablespaceVersionDirectory, TimelineId, WalSegmentSize, u32_at, u64_at,
};

/// Bytes in the file `global/pg_control` (`PG_CONTROL_FILE_SIZE`); what lies after the fields is zero.
pub const CONTROL_FILE_SIZE: usize = 8192;

/// The most bytes of the file that carry meaning, in any version (`PG_CONTROL_MAX_SAFE_SIZE`): one disk sector.
pub const CONTROL_FILE_MAX_SAFE_SIZE: usize = 512;

/// What the server was doing when it last wrote the control file (`DBState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DbState {
    /// `DB_STARTUP`.
    StartingUp,
    /// `DB_SHUTDOWNED`: a primary, stopped cleanly.
    ShutDown,
    /// `DB_SHUTDOWNED_IN_RECOVERY`: a standby, stopped cleanly.
    ShutDownInRecovery,
    /// `DB_SHUTDOWNING`.
    ShuttingDown,
    /// `DB_IN_CRASH_RECOVERY`.
    InCrashRecovery,
    /// `DB_IN_ARCHIVE_RECOVERY`: a running standby, or one that was killed.
    InArchiveRecovery,
    /// `DB_IN_PRODUCTION`: a running primary, or one that was killed.
    InProduction,
}

impl DbState {
    const fn from_u32(number: u32) -> Option<DbState> {
        match number {
            0 => Some(DbState::StartingUp),
            1 => Some(DbState::ShutDown),
            2 => Some(DbState::ShutDownInRecovery),
            3 => Some(DbState::ShuttingDown),
            4 => Some(DbState::InCrashRecovery),
            5 => Some(DbState::InArchiveRecovery),
            6 => Some(DbState::InProduction),
            _ => None,
        }
    }
}

impl fmt::Display for DbState {
    /// As `pg_controldata` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DbState::StartingUp => "starting up",
            DbState::ShutDown => "shut down",
            DbState::ShutDownInRecovery => "shut down in recovery",
            DbState::ShuttingDown => "shutting down",
            DbState::InCrashRecovery => "in crash recovery",
            DbState::InArchiveRecovery => "in archive recovery",
            DbState::InProduction => "in production",
        })
    }
}

/// `wal_level` (`WalLevel`, `access/xlog.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalLevel {
    /// Not enough for a backup.
    Minimal,
    /// Enough for backups and standbys.
    Replica,
    /// Enough for logical decoding too.
    Logical,
}

impl WalLevel {
    const fn from_u32(number: u32) -> Option<WalLevel> {
        match number {
            0 => Some(WalLevel::Minimal),
            1 => Some(WalLevel::Replica),
            2 => Some(WalLevel::Logical),
            _ => None,
        }
    }
}

impl fmt::Display for WalLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            WalLevel::Minimal => "minimal",
            WalLevel::Replica => "replica",
            WalLevel::Logical => "logical",
        })
    }
}

/// Why a control file was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlFileError {
    /// Fewer bytes than the fields take.
    #[error("could not read the control file: it has {actual} bytes, {needed} are needed")]
    TooShort {
        /// Bytes given.
        actual: usize,
        /// Bytes the fields and their CRC take.
        needed: usize,
    },
    /// Nothing but zeros: a restore that stopped before its end leaves it so.
    #[error("could not read the control file: it is all zeros")]
    AllZero,
    /// The CRC does not match the fields: read while the server was writing (read again), or damaged.
    #[error(
        "could not read the control file: its CRC is {stored:08X}, its content gives {computed:08X}"
    )]
    BadCrc {
        /// The CRC in the file.
        stored: u32,
        /// The CRC of what was read.
        computed: u32,
    },
    /// Written by a PostgreSQL that this crate does not know.
    #[error(
        "could not read the control file: control file version {control_version} (catalog version {catalog_version}) \
         is of no PostgreSQL version from 14 to 18"
    )]
    UnsupportedVersion {
        /// `pg_control_version`.
        control_version: u32,
        /// `catalog_version_no`.
        catalog_version: u32,
    },
    /// Written on a machine of the other byte order.
    #[error("could not read the control file: it was written on a machine with another byte order")]
    ByteOrder,
    /// The CRC is right and a field still makes no sense.
    #[error("could not read the control file: {field} {value} is not valid")]
    Field {
        /// The field, in PostgreSQL's words.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

/// What the control file says (`ControlFileData`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The version of the control file's layout (`pg_control_version`).
    pub control_version: u32,
    /// The version of the system catalogs (`catalog_version_no`).
    pub catalog_version: u32,
    /// The major version, told by the two versions above.
    pub major: MajorVersion,
    /// What the server was doing.
    pub state: DbState,
    /// When the file was last written, in seconds since 1970.
    pub time: i64,
    /// Where the latest checkpoint record lies; on a standby, the latest restartpoint's.
    pub checkpoint: Lsn,
    /// Where recovery from that checkpoint begins.
    pub redo: Lsn,
    /// The timeline of that checkpoint.
    pub checkpoint_timeline: TimelineId,
    /// The timeline before it, when that checkpoint began a new one; otherwise the same.
    pub checkpoint_previous_timeline: TimelineId,
    /// When that checkpoint was made, in seconds since 1970.
    pub checkpoint_time: i64,
    /// `full_page_writes` at that checkpoint.
    pub full_page_writes: bool,
    /// The next transaction id at that checkpoint, epoch in the high half.
    pub next_transaction_id: u64,
    /// How far recovery must go before the cluster is consistent; invalid on a primary.
    pub min_recovery_point: Lsn,
    /// The timeline of that point; zero on a primary.
    pub min_recovery_point_timeline: TimelineId,
    /// The redo LSN of the backup being recovered; invalid when none is.
    pub backup_start_point: Lsn,
    /// Where that backup ends, when it was taken on a standby.
    pub backup_end_point: Lsn,
    /// Whether recovery must see an end-of-backup record.
    pub backup_end_required: bool,
    /// `wal_level`.
    pub wal_level: WalLevel,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `max_connections` of the primary; a standby with less refuses to start hot.
    pub max_connections: u32,
    /// `max_worker_processes` of the primary.
    pub max_worker_processes: u32,
    /// `max_wal_senders` of the primary.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions` of the primary.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction` of the primary.
    pub max_locks_per_transaction: u32,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
    /// Bytes in a page; always [`PAGE_SIZE`] in a distributed PostgreSQL: see [`ControlFile::check_block_sizes`].
    pub block_size: u32,
    /// Bytes in a WAL page.
    pub wal_block_size: u32,
    /// Pages in a full relation segment.
    pub relation_segment_blocks: u32,
    /// The size of WAL segments.
    pub wal_segment_size: WalSegmentSize,
    /// Zero when pages carry no checksum, else the checksum's version, 1.
    pub data_checksum_version: u32,
}

/// Layout of 14 to 18: the fields this crate reads have not moved since 13. Offsets of `ControlFileData` on a 64-bit
/// platform; `checkPointCopy` begins at 40. 18 inserted `default_char_signedness` at 256, before the nonce.
mod offset {
    pub const SYSTEM_IDENTIFIER: usize = 0;
    pub const CONTROL_VERSION: usize = 8;
    pub const CATALOG_VERSION: usize = 12;
    pub const STATE: usize = 16;
    pub const TIME: usize = 24;
    pub const CHECKPOINT: usize = 32;
    pub const REDO: usize = 40;
    pub const CHECKPOINT_TIMELINE: usize = 48;
    pub const CHECKPOINT_PREVIOUS_TIMELINE: usize = 52;
    pub const FULL_PAGE_WRITES: usize = 56;
    pub const NEXT_TRANSACTION_ID: usize = 64;
    pub const CHECKPOINT_TIME: usize = 104;
    pub const MIN_RECOVERY_POINT: usize = 136;
    pub const MIN_RECOVERY_POINT_TIMELINE: usize = 144;
    pub const BACKUP_START_POINT: usize = 152;
    pub const BACKUP_END_POINT: usize = 160;
    pub const BACKUP_END_REQUIRED: usize = 168;
    pub const WAL_LEVEL: usize = 172;
    pub const WAL_LOG_HINTS: usize = 176;
    pub const MAX_CONNECTIONS: usize = 180;
    pub const MAX_WORKER_PROCESSES: usize = 184;
    pub const MAX_WAL_SENDERS: usize = 188;
    pub const MAX_PREPARED_TRANSACTIONS: usize = 192;
    pub const MAX_LOCKS_PER_TRANSACTION: usize = 196;
    pub const TRACK_COMMIT_TIMESTAMP: usize = 200;
    pub const BLOCK_SIZE: usize = 216;
    pub const RELATION_SEGMENT_BLOCKS: usize = 220;
    pub const WAL_BLOCK_SIZE: usize = 224;
    pub const WAL_SEGMENT_SIZE: usize = 228;
    pub const DATA_CHECKSUM_VERSION: usize = 252;
    pub const CRC_TO_17: usize = 288;
    pub const CRC_FROM_18: usize = 292;
}

/// The major version and the offset of the CRC, by `PG_CONTROL_VERSION` and `CATALOG_VERSION_NO`. 14, 15 and 16
/// share a layout; each one's catalog version was fixed at its first release candidate and lies far from the others'.
const fn layout(control_version: u32, catalog_version: u32) -> Option<(MajorVersion, usize)> {
    match (control_version, catalog_version) {
        (1300, 202_107_181) => Some((MajorVersion::V14, offset::CRC_TO_17)),
        (1300, 202_209_061) => Some((MajorVersion::V15, offset::CRC_TO_17)),
        (1300, 202_307_071) => Some((MajorVersion::V16, offset::CRC_TO_17)),
        (1700, 202_406_281) => Some((MajorVersion::V17, offset::CRC_TO_17)),
        (1800, 202_506_291) => Some((MajorVersion::V18, offset::CRC_FROM_18)),
        _ => None,
    }
}

impl ControlFile {
    /// Reads the file's content: the first 512 bytes are enough.
    ///
    /// # Errors
    ///
    /// See [`ControlFileError`]. [`ControlFileError::BadCrc`] from a running server's file means that it was being
    /// written just then: read it again.
    pub fn parse(bytes: &[u8]) -> Result<ControlFile, ControlFileError> {
        let too_short = |needed: usize| ControlFileError::TooShort {
            actual: bytes.len(),
            needed,
        };
        if bytes.len() < offset::STATE {
            return Err(too_short(offset::STATE));
        }
        if bytes.iter().take(CONTROL_FILE_SIZE).all(|byte| *byte == 0) {
            return Err(ControlFileError::AllZero);
        }
        let control_version = u32_at(bytes, offset::CONTROL_VERSION);
        let catalog_version = u32_at(bytes, offset::CATALOG_VERSION);
        let Some((major, crc_offset)) = layout(control_version, catalog_version) else {
            // The server's own test (xlog.c, ReadControlFile): a small number, byte-swapped, has its low half zero.
            return Err(
                if control_version.trailing_zeros() >= 16 && control_version >> 16 != 0 {
                    ControlFileError::ByteOrder
                } else {
                    ControlFileError::UnsupportedVersion {
                        control_version,
                        catalog_version,
                    }
                },
            );
        };
        if bytes.len() < crc_offset + 4 {
            return Err(too_short(crc_offset + 4));
        }
        let stored = u32_at(bytes, crc_offset);
        let computed = crc32c::crc32c(&bytes[..crc_offset]);
        if stored != computed {
            return Err(ControlFileError::BadCrc { stored, computed });
        }
        let number = |offset: usize| u32_at(bytes, offset);
        let lsn = |offset: usize| Lsn(u64_at(bytes, offset));
        let timeline = |offset: usize| TimelineId(u32_at(bytes, offset));
        let flag = |offset: usize| bytes[offset] != 0;
        let wrong = |field: &'static str, value: u32| ControlFileError::Field {
            field,
            value: u64::from(value),
        };
        let (state, wal_level, wal_segment_size) = (
            number(offset::STATE),
            number(offset::WAL_LEVEL),
            number(offset::WAL_SEGMENT_SIZE),
        );
        Ok(ControlFile {
            system_identifier: SystemIdentifier(u64_at(bytes, offset::SYSTEM_IDENTIFIER)),
            control_version,
            catalog_version,
            major,
            state: DbState::from_u32(state)
                .ok_or_else(|| wrong("database cluster state", state))?,
            time: u64_at(bytes, offset::TIME).cast_signed(),
            checkpoint: lsn(offset::CHECKPOINT),
            redo: lsn(offset::REDO),
            checkpoint_timeline: timeline(offset::CHECKPOINT_TIMELINE),
            checkpoint_previous_timeline: timeline(offset::CHECKPOINT_PREVIOUS_TIMELINE),
            checkpoint_time: u64_at(bytes, offset::CHECKPOINT_TIME).cast_signed(),
            full_page_writes: flag(offset::FULL_PAGE_WRITES),
            next_transaction_id: u64_at(bytes, offset::NEXT_TRANSACTION_ID),
            min_recovery_point: lsn(offset::MIN_RECOVERY_POINT),
            min_recovery_point_timeline: timeline(offset::MIN_RECOVERY_POINT_TIMELINE),
            backup_start_point: lsn(offset::BACKUP_START_POINT),
            backup_end_point: lsn(offset::BACKUP_END_POINT),
            backup_end_required: flag(offset::BACKUP_END_REQUIRED),
            wal_level: WalLevel::from_u32(wal_level)
                .ok_or_else(|| wrong("wal_level", wal_level))?,
            wal_log_hints: flag(offset::WAL_LOG_HINTS),
            max_connections: number(offset::MAX_CONNECTIONS),
            max_worker_processes: number(offset::MAX_WORKER_PROCESSES),
            max_wal_senders: number(offset::MAX_WAL_SENDERS),
            max_prepared_transactions: number(offset::MAX_PREPARED_TRANSACTIONS),
            max_locks_per_transaction: number(offset::MAX_LOCKS_PER_TRANSACTION),
            track_commit_timestamp: flag(offset::TRACK_COMMIT_TIMESTAMP),
            block_size: number(offset::BLOCK_SIZE),
            wal_block_size: number(offset::WAL_BLOCK_SIZE),
            relation_segment_blocks: number(offset::RELATION_SEGMENT_BLOCKS),
            wal_segment_size: WalSegmentSize::new(wal_segment_size)
                .ok_or_else(|| wrong("WAL segment size", wal_segment_size))?,
            data_checksum_version: number(offset::DATA_CHECKSUM_VERSION),
        })
    }

    /// Whether pages carry checksums.
    #[must_use]
    pub const fn data_checksums(&self) -> bool {
        self.data_checksum_version != 0
    }

    /// The name of this cluster's directory inside each tablespace.
    #[must_use]
    pub const fn tablespace_version_directory(&self) -> TablespaceVersionDirectory {
        TablespaceVersionDirectory {
            major: self.major,
            catalog_version: self.catalog_version,
        }
    }

    /// Refuses a cluster built with other sizes than those of every distributed PostgreSQL: 8 kB pages, 8 kB WAL
    /// pages, 1 GiB relation segments.
    ///
    /// # Errors
    ///
    /// [`ControlFileError::Field`] naming the size.
    pub const fn check_block_sizes(&self) -> Result<(), ControlFileError> {
        let (field, value) = if self.block_size as usize != PAGE_SIZE {
            ("page size", self.block_size)
        } else if self.wal_block_size != crate::wal_segment::WAL_PAGE_SIZE {
            ("WAL page size", self.wal_block_size)
        } else if self.relation_segment_blocks != RELATION_SEGMENT_BLOCKS {
            ("pages per relation segment", self.relation_segment_blocks)
        } else {
            return Ok(());
        };
        Err(ControlFileError::Field {
            field,
            value: value as u64,
        })
    }
}

#[cfg(test)]
#[path = "control_file_tests.rs"]
mod tests;
