//! `global/pg_control`: the state of a cluster, what its pages look like, and where recovery begins.
//!
//! Facts from `catalog/pg_control.h` of each major version and `common/controldata_utils.c`.

use std::fmt;

use crate::{
    Lsn, MajorVersion, PAGE_SIZE, RELATION_SEGMENT_BLOCKS, RequiredSettings, SystemIdentifier,
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
    pub(crate) const fn from_u32(number: u32) -> Option<WalLevel> {
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
         is of no PostgreSQL version from {} to {}",
        MajorVersion::OLDEST,
        MajorVersion::NEWEST
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

/// Offsets in `ControlFileData` that no version has moved, on a 64-bit platform; `checkPointCopy` begins at 40.
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
}

/// Offsets that differ between versions.
struct Layout {
    next_transaction_id: usize,
    checkpoint_time: usize,
    min_recovery_point: usize,
    min_recovery_point_timeline: usize,
    backup_start_point: usize,
    backup_end_point: usize,
    backup_end_required: usize,
    wal_level: usize,
    wal_log_hints: usize,
    max_connections: usize,
    max_worker_processes: usize,
    max_wal_senders: usize,
    max_prepared_transactions: usize,
    max_locks_per_transaction: usize,
    track_commit_timestamp: usize,
    block_size: usize,
    relation_segment_blocks: usize,
    wal_block_size: usize,
    wal_segment_size: usize,
    data_checksum_version: usize,
    crc: usize,
}

const LAYOUT_14_TO_17: Layout = Layout {
    next_transaction_id: 64,
    checkpoint_time: 104,
    min_recovery_point: 136,
    min_recovery_point_timeline: 144,
    backup_start_point: 152,
    backup_end_point: 160,
    backup_end_required: 168,
    wal_level: 172,
    wal_log_hints: 176,
    max_connections: 180,
    max_worker_processes: 184,
    max_wal_senders: 188,
    max_prepared_transactions: 192,
    max_locks_per_transaction: 196,
    track_commit_timestamp: 200,
    block_size: 216,
    relation_segment_blocks: 220,
    wal_block_size: 224,
    wal_segment_size: 228,
    data_checksum_version: 252,
    crc: 288,
};

/// 18 inserted `default_char_signedness` before the nonce.
const LAYOUT_18: Layout = Layout {
    crc: 292,
    ..LAYOUT_14_TO_17
};

/// 19 inserted `logicalDecodingEnabled` before `nextXid` and made `nextMultiOffset` a 64-bit number, which filled the
/// gap before `time`; `slru_pages_per_segment` precedes the sizes of WAL, `data_checksum_version_init` the checksums.
const LAYOUT_19: Layout = Layout {
    next_transaction_id: 72,
    checkpoint_time: 112,
    min_recovery_point: 144,
    min_recovery_point_timeline: 152,
    backup_start_point: 160,
    backup_end_point: 168,
    backup_end_required: 176,
    wal_level: 180,
    wal_log_hints: 184,
    max_connections: 188,
    max_worker_processes: 192,
    max_wal_senders: 196,
    max_prepared_transactions: 200,
    max_locks_per_transaction: 204,
    track_commit_timestamp: 208,
    block_size: 224,
    relation_segment_blocks: 228,
    wal_block_size: 236,
    wal_segment_size: 240,
    data_checksum_version: 268,
    crc: 308,
};

/// The major version and its layout, by `PG_CONTROL_VERSION` and `CATALOG_VERSION_NO`. 14, 15 and 16 share a control
/// file version; each one's catalog version was fixed at its first release candidate and lies far from the others'.
const fn layout(
    control_version: u32,
    catalog_version: u32,
) -> Option<(MajorVersion, &'static Layout)> {
    match (control_version, catalog_version) {
        (1300, 202_107_181) => Some((MajorVersion::V14, &LAYOUT_14_TO_17)),
        (1300, 202_209_061) => Some((MajorVersion::V15, &LAYOUT_14_TO_17)),
        (1300, 202_307_071) => Some((MajorVersion::V16, &LAYOUT_14_TO_17)),
        (1700, 202_406_281) => Some((MajorVersion::V17, &LAYOUT_14_TO_17)),
        (1800, 202_506_291) => Some((MajorVersion::V18, &LAYOUT_18)),
        (1905, 202_610_061) => Some((MajorVersion::V19, &LAYOUT_19)),
        _ => None,
    }
}

impl ControlFile {
    /// The settings that a server in recovery may not have lower.
    #[must_use]
    pub const fn required_settings(&self) -> RequiredSettings {
        RequiredSettings {
            max_connections: self.max_connections,
            max_worker_processes: self.max_worker_processes,
            max_wal_senders: self.max_wal_senders,
            max_prepared_transactions: self.max_prepared_transactions,
            max_locks_per_transaction: self.max_locks_per_transaction,
        }
    }

    /// Returns the file of a server in recovery with a later minimum recovery point, as the server writes it before a page
    /// that new reaches disk (`UpdateMinRecoveryPoint`, src/backend/access/transam/xlog.c).
    ///
    /// # Errors
    ///
    /// Those of [`ControlFile::parse`].
    pub fn with_min_recovery_point(
        bytes: &[u8],
        lsn: Lsn,
        timeline: TimelineId,
    ) -> Result<Vec<u8>, ControlFileError> {
        let control = ControlFile::parse(bytes)?;
        let mut bytes = bytes.to_vec();
        if let Some((_, layout)) = layout(control.control_version, control.catalog_version) {
            let mut put = |offset: usize, value: &[u8]| {
                bytes[offset..offset + value.len()].copy_from_slice(value);
            };
            put(layout.min_recovery_point, &lsn.0.to_le_bytes());
            put(
                layout.min_recovery_point_timeline,
                &timeline.0.to_le_bytes(),
            );
            let crc = crc32c::crc32c(&bytes[..layout.crc]);
            bytes[layout.crc..layout.crc + 4].copy_from_slice(&crc.to_le_bytes());
        }
        Ok(bytes)
    }

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
        let Some((major, layout)) = layout(control_version, catalog_version) else {
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
        if bytes.len() < layout.crc + 4 {
            return Err(too_short(layout.crc + 4));
        }
        let stored = u32_at(bytes, layout.crc);
        let computed = crc32c::crc32c(&bytes[..layout.crc]);
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
            number(layout.wal_level),
            number(layout.wal_segment_size),
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
            checkpoint_time: u64_at(bytes, layout.checkpoint_time).cast_signed(),
            full_page_writes: flag(offset::FULL_PAGE_WRITES),
            next_transaction_id: u64_at(bytes, layout.next_transaction_id),
            min_recovery_point: lsn(layout.min_recovery_point),
            min_recovery_point_timeline: timeline(layout.min_recovery_point_timeline),
            backup_start_point: lsn(layout.backup_start_point),
            backup_end_point: lsn(layout.backup_end_point),
            backup_end_required: flag(layout.backup_end_required),
            wal_level: WalLevel::from_u32(wal_level)
                .ok_or_else(|| wrong("wal_level", wal_level))?,
            wal_log_hints: flag(layout.wal_log_hints),
            max_connections: number(layout.max_connections),
            max_worker_processes: number(layout.max_worker_processes),
            max_wal_senders: number(layout.max_wal_senders),
            max_prepared_transactions: number(layout.max_prepared_transactions),
            max_locks_per_transaction: number(layout.max_locks_per_transaction),
            track_commit_timestamp: flag(layout.track_commit_timestamp),
            block_size: number(layout.block_size),
            wal_block_size: number(layout.wal_block_size),
            relation_segment_blocks: number(layout.relation_segment_blocks),
            wal_segment_size: WalSegmentSize::new(wal_segment_size)
                .ok_or_else(|| wrong("WAL segment size", wal_segment_size))?,
            data_checksum_version: number(layout.data_checksum_version),
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
