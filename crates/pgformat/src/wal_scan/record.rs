//! Records: the header, and the few bodies that decide where recovery can go, read as they come by.
//!
//! Facts from `access/xlogrecord.h`, `access/rmgrlist.h`, `access/xact.h`, `catalog/pg_control.h`,
//! `access/xlog_internal.h`, `commands/tablespace.h`, `commands/dbcommands_xlog.h` and `access/rmgrdesc/xactdesc.c`
//! (`ParseCommitRecord`, `ParseAbortRecord`).

use crate::{
    Lsn, MajorVersion, Oid, RequiredSettings, TimelineId, TimestampTz, TransactionId, WalLevel,
    u32_at, u64_at,
};

use super::{WalEvent, WalProblem};

/// `SizeOfXLogRecord`.
pub(super) const HEADER_SIZE: usize = 24;
/// `offsetof(XLogRecord, xl_crc)`: how much of the header is checksummed, after the rest of the record.
pub(super) const HEADER_HASHED_SIZE: usize = 20;
/// No record is longer: `XLogRecordMaxSize` is 1020 MiB since 16, memory allocation ends at 1 GiB before.
const RECORD_LIMIT: u32 = 1 << 30;

const RM_XLOG: u8 = 0;
const RM_XACT: u8 = 1;
const RM_DBASE: u8 = 4;
const RM_TBLSPC: u8 = 5;
/// `RM_MIN_CUSTOM_ID`: from here on the numbers are those of extensions.
const RM_CUSTOM: u8 = 128;
/// `XLR_RMGR_INFO_MASK`.
pub(super) const INFO_MASK: u8 = 0xF0;
const XLOG_CHECKPOINT_SHUTDOWN: u8 = 0x00;
const XLOG_CHECKPOINT_ONLINE: u8 = 0x10;
const XLOG_SWITCH: u8 = 0x40;
const XLOG_PARAMETER_CHANGE: u8 = 0x60;
const XLOG_RESTORE_POINT: u8 = 0x70;
const XLOG_END_OF_RECOVERY: u8 = 0x90;
const XLOG_TBLSPC_CREATE: u8 = 0x00;
const XLOG_TBLSPC_DROP: u8 = 0x10;
const XACT_OPERATION_MASK: u8 = 0x70;
const XACT_HAS_INFO: u8 = 0x80;
const XACT_COMMIT: u8 = 0x00;
const XACT_ABORT: u8 = 0x20;
const XACT_COMMIT_PREPARED: u8 = 0x30;
const XACT_ABORT_PREPARED: u8 = 0x40;

const XINFO_HAS_DBINFO: u32 = 1 << 0;
const XINFO_HAS_SUBXACTS: u32 = 1 << 1;
const XINFO_HAS_RELATIONS: u32 = 1 << 2;
const XINFO_HAS_INVALIDATIONS: u32 = 1 << 3;
const XINFO_HAS_TWOPHASE: u32 = 1 << 4;
/// Since 15.
const XINFO_HAS_DROPPED_STATS: u32 = 1 << 8;

/// `XLR_BLOCK_ID_*`: what stands before the main data of a record without block references.
pub(super) const ID_DATA_SHORT: u8 = 255;
pub(super) const ID_DATA_LONG: u8 = 254;
pub(super) const ID_ORIGIN: u8 = 253;
pub(super) const ID_TOPLEVEL_XID: u8 = 252;

/// `xl_restore_point`: a time and `MAXFNAMELEN` bytes.
const RESTORE_POINT_BYTES: usize = 72;
/// The most bytes that one step wants: those of a `CheckPoint` up to its `time`, in 19.
const BUFFER_BYTES: usize = 80;

/// Returns the offset of `time` in `CheckPoint`: 19 inserted `logicalDecodingEnabled`.
const fn checkpoint_time_offset(major: MajorVersion) -> usize {
    if major.as_u32() >= 19 { 72 } else { 64 }
}

/// `xl_parameter_change`: six numbers, then flags that nothing here needs.
const PARAMETER_CHANGE_BYTES: usize = 24;
/// `xl_end_of_recovery`: a time and two timelines; more since 17.
const END_OF_RECOVERY_BYTES: usize = 16;
/// `xl_tblspc_create_rec`: an OID and a path of at most `MAXPGPATH` bytes.
const TABLESPACE_CREATE_LIMIT: usize = 4 + 1024;
/// `xl_dbase_create_file_copy_rec`.
const DATABASE_COPY_BYTES: usize = 16;
/// `xl_dbase_drop_rec` with as many tablespaces as are told.
const DATABASE_DROP_LIMIT: usize = 8 + 4 * WalEvent::TABLESPACES_LIMIT;

/// The header of a record (`XLogRecord`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub length: u32,
    pub xid: u32,
    pub previous: Lsn,
    pub info: u8,
    pub manager: u8,
    pub checksum: u32,
}

impl Header {
    /// Reads 24 bytes.
    pub fn read(bytes: &[u8]) -> Header {
        Header {
            length: u32_at(bytes, 0),
            xid: u32_at(bytes, 4),
            previous: Lsn(u64_at(bytes, 8)),
            info: bytes[16],
            manager: bytes[17],
            checksum: u32_at(bytes, 20),
        }
    }

    /// What is wrong with the length of a record, if anything.
    pub const fn check_length(length: u32) -> Result<(), WalProblem> {
        match length {
            0 => Err(WalProblem::Zeros),
            24..=RECORD_LIMIT => Ok(()),
            _ => Err(WalProblem::RecordLength(length)),
        }
    }

    /// The number of the extension's resource manager that the record belongs to, if it is an extension's.
    pub const fn custom_manager(&self) -> Option<u8> {
        if self.manager >= RM_CUSTOM {
            Some(self.manager)
        } else {
            None
        }
    }

    pub const fn is_switch(&self) -> bool {
        self.manager == RM_XLOG && self.info & INFO_MASK == XLOG_SWITCH
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Commit,
    Abort,
    OtherTransaction,
    RestorePoint,
    Checkpoint { shutdown: bool },
    ParameterChange,
    EndOfRecovery,
    TablespaceCreate,
    TablespaceDrop,
    DatabaseCopy,
    DatabaseCreate,
    DatabaseDrop,
    Switch,
}

impl Kind {
    const fn of(header: &Header, major: MajorVersion) -> Option<Kind> {
        let info = header.info & INFO_MASK;
        Some(match (header.manager, info) {
            (RM_XACT, _) => match header.info & XACT_OPERATION_MASK {
                XACT_COMMIT | XACT_COMMIT_PREPARED => Kind::Commit,
                XACT_ABORT | XACT_ABORT_PREPARED => Kind::Abort,
                _ => Kind::OtherTransaction,
            },
            (RM_XLOG, XLOG_CHECKPOINT_SHUTDOWN) => Kind::Checkpoint { shutdown: true },
            (RM_XLOG, XLOG_CHECKPOINT_ONLINE) => Kind::Checkpoint { shutdown: false },
            (RM_XLOG, XLOG_SWITCH) => Kind::Switch,
            (RM_XLOG, XLOG_RESTORE_POINT) => Kind::RestorePoint,
            (RM_XLOG, XLOG_PARAMETER_CHANGE) => Kind::ParameterChange,
            (RM_XLOG, XLOG_END_OF_RECOVERY) => Kind::EndOfRecovery,
            (RM_TBLSPC, XLOG_TBLSPC_CREATE) => Kind::TablespaceCreate,
            (RM_TBLSPC, XLOG_TBLSPC_DROP) => Kind::TablespaceDrop,
            // In 14 there are two operations, and the second is the drop.
            (RM_DBASE, 0x00) => Kind::DatabaseCopy,
            (RM_DBASE, 0x10) => match major {
                MajorVersion::V14 => Kind::DatabaseDrop,
                _ => Kind::DatabaseCreate,
            },
            (RM_DBASE, 0x20) => Kind::DatabaseDrop,
            _ => return None,
        })
    }

    /// Bytes of the main data that say what is told of it, and whether there may be fewer.
    const fn main_bytes(self, has_info: bool, major: MajorVersion) -> (usize, bool) {
        match self {
            Kind::Commit | Kind::Abort if has_info => (12, false),
            Kind::Commit | Kind::Abort | Kind::DatabaseCreate => (8, false),
            Kind::RestorePoint => (RESTORE_POINT_BYTES, false),
            Kind::Checkpoint { .. } => (checkpoint_time_offset(major) + 8, false),
            Kind::ParameterChange => (PARAMETER_CHANGE_BYTES, false),
            Kind::EndOfRecovery => (END_OF_RECOVERY_BYTES, false),
            Kind::TablespaceCreate => (TABLESPACE_CREATE_LIMIT, true),
            Kind::TablespaceDrop => (4, false),
            Kind::DatabaseCopy => (DATABASE_COPY_BYTES, false),
            Kind::DatabaseDrop => (DATABASE_DROP_LIMIT, true),
            Kind::OtherTransaction | Kind::Switch => (0, false),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The id before the main data, or before what may precede it.
    Id,
    ShortLength,
    LongLength,
    /// The beginning of the main data.
    Main,
    /// Main data of any length, so many bytes of which are still to come.
    Rest(usize),
    /// The number of items in a transaction's list of that kind.
    Count(usize),
    TwoPhase,
    Done,
}

/// The lists in a commit or abort that may precede the id of a prepared transaction: flag, and bytes of an item.
const fn lists(major: MajorVersion) -> [(u32, u64); 4] {
    [
        (XINFO_HAS_SUBXACTS, 4),
        (XINFO_HAS_RELATIONS, 12),
        (
            XINFO_HAS_DROPPED_STATS,
            // `xl_xact_stats_item`: the object's id has eight bytes since 18.
            if major.as_u32() >= 18 { 16 } else { 12 },
        ),
        (XINFO_HAS_INVALIDATIONS, 16),
    ]
}

/// Reads the body of one record as it comes by, remembering only what is told of it.
#[derive(Debug, Clone)]
pub(super) struct Body {
    kind: Kind,
    has_info: bool,
    major: MajorVersion,
    xid: u32,
    step: Step,
    /// Bytes to pass over before the next step's.
    skip: u64,
    /// The next step's bytes, and how many it wants.
    buffer: [u8; BUFFER_BYTES],
    filled: usize,
    wanted: usize,
    xinfo: u32,
    /// The main data of a record of fixed length, as far as something is told of it, once it was seen.
    main: Option<[u8; BUFFER_BYTES]>,
    /// The main data of a record of any length.
    rest: Vec<u8>,
}

impl Body {
    /// `None` for a record of which nothing is told.
    pub fn new(header: &Header, major: MajorVersion) -> Option<Body> {
        let kind = Kind::of(header, major)?;
        Some(Body {
            kind,
            has_info: header.info & XACT_HAS_INFO != 0,
            major,
            xid: header.xid,
            step: match kind {
                Kind::OtherTransaction | Kind::Switch => Step::Done,
                _ => Step::Id,
            },
            skip: 0,
            buffer: [0; BUFFER_BYTES],
            filled: 0,
            wanted: 1,
            xinfo: 0,
            main: None,
            rest: Vec::new(),
        })
    }

    /// Takes the next bytes of the body.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while self.step != Step::Done && !bytes.is_empty() {
            let passed = self.skip.min(bytes.len() as u64);
            self.skip -= passed;
            bytes = &bytes[passed as usize..];
            if let Step::Rest(left) = self.step {
                let taken = left.min(bytes.len());
                self.rest.extend_from_slice(&bytes[..taken]);
                self.step = match left - taken {
                    0 => Step::Done,
                    left => Step::Rest(left),
                };
                bytes = &bytes[taken..];
                continue;
            }
            let taken = bytes.len().min(self.wanted - self.filled);
            self.buffer[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == self.wanted {
                self.filled = 0;
                self.advance();
            }
        }
    }

    const fn next(&mut self, step: Step, skip: u64, wanted: usize) {
        self.step = step;
        self.skip = skip;
        self.wanted = wanted;
    }

    fn advance(&mut self) {
        match self.step {
            Step::Id => match self.buffer[0] {
                ID_ORIGIN => self.next(Step::Id, 2, 1),
                ID_TOPLEVEL_XID => self.next(Step::Id, 4, 1),
                ID_DATA_SHORT => self.next(Step::ShortLength, 0, 1),
                ID_DATA_LONG => self.next(Step::LongLength, 0, 4),
                // None of these records refers to blocks.
                _ => self.step = Step::Done,
            },
            Step::ShortLength | Step::LongLength => {
                let length = match self.step {
                    Step::ShortLength => u32::from(self.buffer[0]),
                    _ => u32_at(&self.buffer, 0),
                };
                match self.kind.main_bytes(self.has_info, self.major) {
                    (limit, true) => match limit.min(length as usize) {
                        0 => self.step = Step::Done,
                        wanted => self.step = Step::Rest(wanted),
                    },
                    (wanted, false) => self.next(Step::Main, 0, wanted),
                }
            }
            Step::Main => self.main(),
            Step::Count(list) => {
                let items = u64::from(u32_at(&self.buffer, 0));
                self.list(list + 1, items * lists(self.major)[list].1);
            }
            Step::TwoPhase => {
                self.xid = u32_at(&self.buffer, 0);
                self.step = Step::Done;
            }
            Step::Rest(_) | Step::Done => {}
        }
    }

    fn main(&mut self) {
        self.step = Step::Done;
        self.main = Some(self.buffer);
        if self.has_info && matches!(self.kind, Kind::Commit | Kind::Abort) {
            self.xinfo = u32_at(&self.buffer, 8);
            let database = if self.xinfo & XINFO_HAS_DBINFO != 0 {
                8
            } else {
                0
            };
            if self.xinfo & XINFO_HAS_TWOPHASE != 0 {
                self.list(0, database);
            }
        }
    }

    /// Goes to the list from `list` on that the transaction has, `skip` bytes further, or behind all of them.
    fn list(&mut self, list: usize, skip: u64) {
        let next = lists(self.major)
            .into_iter()
            .enumerate()
            .skip(list)
            .find(|(_, (flag, _))| self.xinfo & flag != 0);
        match next {
            Some((list, _)) => self.next(Step::Count(list), skip, 4),
            None => self.next(Step::TwoPhase, skip, 4),
        }
    }

    /// Whether everything was seen that is told of the record.
    pub fn is_complete(&self) -> bool {
        self.step == Step::Done
    }

    /// What the record says, once it is complete and proven; `None` where it is too short to say it.
    pub fn event(self, begin: Lsn, end: Lsn) -> Option<WalEvent> {
        match self.kind {
            Kind::Switch => return Some(WalEvent::Switch { begin, end }),
            Kind::OtherTransaction => return Some(WalEvent::OtherTransaction { begin, end }),
            Kind::TablespaceCreate => {
                let (tablespace, path) = self.rest.split_at_checked(4)?;
                let length = path.iter().position(|byte| *byte == 0);
                return Some(WalEvent::TablespaceCreate {
                    tablespace: Oid(u32_at(tablespace, 0)),
                    location: path[..length.unwrap_or(path.len())].to_vec(),
                    begin,
                    end,
                });
            }
            Kind::DatabaseDrop => {
                let (database, tablespaces) = self.rest.split_at_checked(8)?;
                return Some(WalEvent::DatabaseDrop {
                    database: Oid(u32_at(database, 0)),
                    tablespaces: tablespaces
                        .chunks_exact(4)
                        .map(|oid| Oid(u32_at(oid, 0)))
                        .collect(),
                    begin,
                    end,
                });
            }
            _ => {}
        }
        let main = self.main?;
        let xid = TransactionId(self.xid);
        let number = |at| u32_at(&main, at);
        let time = || TimestampTz(u64_at(&main, 0).cast_signed());
        Some(match self.kind {
            Kind::Commit => WalEvent::Commit {
                xid,
                time: time(),
                begin,
                end,
            },
            Kind::Abort => WalEvent::Abort {
                xid,
                time: time(),
                begin,
                end,
            },
            Kind::RestorePoint => {
                let name = &main[8..RESTORE_POINT_BYTES];
                let length = name.iter().position(|byte| *byte == 0);
                WalEvent::RestorePoint {
                    name: String::from_utf8_lossy(&name[..length.unwrap_or(name.len())])
                        .into_owned(),
                    time: time(),
                    begin,
                    end,
                }
            }
            Kind::Checkpoint { shutdown } => WalEvent::Checkpoint {
                time: TimestampTz::from_unix_seconds(
                    u64_at(&main, checkpoint_time_offset(self.major)).cast_signed(),
                ),
                redo: Lsn(u64_at(&main, 0)),
                shutdown,
                begin,
                end,
            },
            Kind::ParameterChange => WalEvent::ParameterChange {
                settings: RequiredSettings {
                    max_connections: number(0),
                    max_worker_processes: number(4),
                    max_wal_senders: number(8),
                    max_prepared_transactions: number(12),
                    max_locks_per_transaction: number(16),
                },
                wal_level: WalLevel::from_u32(number(20)),
                begin,
                end,
            },
            Kind::EndOfRecovery => WalEvent::EndOfRecovery {
                time: time(),
                timeline: TimelineId(number(8)),
                previous_timeline: TimelineId(number(12)),
                begin,
                end,
            },
            Kind::TablespaceDrop => WalEvent::TablespaceDrop {
                tablespace: Oid(number(0)),
                begin,
                end,
            },
            Kind::DatabaseCopy => WalEvent::DatabaseCopy {
                database: Oid(number(0)),
                tablespace: Oid(number(4)),
                source_database: Oid(number(8)),
                source_tablespace: Oid(number(12)),
                begin,
                end,
            },
            Kind::DatabaseCreate => WalEvent::DatabaseCreate {
                database: Oid(number(0)),
                tablespace: Oid(number(4)),
                begin,
                end,
            },
            Kind::OtherTransaction | Kind::Switch | Kind::TablespaceCreate | Kind::DatabaseDrop => {
                return None;
            }
        })
    }
}
