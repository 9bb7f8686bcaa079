//! Records: the header, and the few bodies that say something about moments, read as they come by.
//!
//! Facts from `access/xlogrecord.h`, `access/rmgrlist.h`, `access/xact.h`, `catalog/pg_control.h`,
//! `access/xlog_internal.h` and `access/rmgrdesc/xactdesc.c` (`ParseCommitRecord`, `ParseAbortRecord`).

use crate::{Lsn, MajorVersion, TimestampTz, TransactionId, u32_at, u64_at};

use super::{WalEvent, WalProblem};

/// `SizeOfXLogRecord`.
pub(super) const HEADER_SIZE: usize = 24;
/// `offsetof(XLogRecord, xl_crc)`: how much of the header is checksummed, after the rest of the record.
pub(super) const HEADER_HASHED_SIZE: usize = 20;
/// No record is longer: `XLogRecordMaxSize` is 1020 MiB since 16, memory allocation ends at 1 GiB before.
const RECORD_LIMIT: u32 = 1 << 30;

const RM_XLOG: u8 = 0;
const RM_XACT: u8 = 1;
/// `XLR_RMGR_INFO_MASK`.
const INFO_MASK: u8 = 0xF0;
const XLOG_CHECKPOINT_SHUTDOWN: u8 = 0x00;
const XLOG_CHECKPOINT_ONLINE: u8 = 0x10;
const XLOG_SWITCH: u8 = 0x40;
const XLOG_RESTORE_POINT: u8 = 0x70;
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
const ID_DATA_SHORT: u8 = 255;
const ID_DATA_LONG: u8 = 254;
const ID_ORIGIN: u8 = 253;
const ID_TOPLEVEL_XID: u8 = 252;

/// `xl_restore_point`: a time and `MAXFNAMELEN` bytes.
const RESTORE_POINT_BYTES: usize = 72;
/// The most bytes that one step wants: those of a `CheckPoint` up to its `time`, in 19.
const BUFFER_BYTES: usize = 80;

/// Returns the offset of `time` in `CheckPoint`: 19 inserted `logicalDecodingEnabled`.
const fn checkpoint_time_offset(major: MajorVersion) -> usize {
    if major.as_u32() >= 19 { 72 } else { 64 }
}

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

    pub const fn is_switch(&self) -> bool {
        self.manager == RM_XLOG && self.info & INFO_MASK == XLOG_SWITCH
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Commit,
    Abort,
    RestorePoint,
    Checkpoint { shutdown: bool },
    Switch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The id before the main data, or before what may precede it.
    Id,
    ShortLength,
    LongLength,
    /// The beginning of the main data.
    Main,
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
    time: Option<TimestampTz>,
    redo: Lsn,
    name: String,
}

impl Body {
    /// `None` for a record of which nothing is told.
    pub fn new(header: &Header, major: MajorVersion) -> Option<Body> {
        let kind = match header.manager {
            RM_XACT => match header.info & XACT_OPERATION_MASK {
                XACT_COMMIT | XACT_COMMIT_PREPARED => Kind::Commit,
                XACT_ABORT | XACT_ABORT_PREPARED => Kind::Abort,
                _ => return None,
            },
            RM_XLOG => match header.info & INFO_MASK {
                XLOG_CHECKPOINT_SHUTDOWN => Kind::Checkpoint { shutdown: true },
                XLOG_CHECKPOINT_ONLINE => Kind::Checkpoint { shutdown: false },
                XLOG_SWITCH => Kind::Switch,
                XLOG_RESTORE_POINT => Kind::RestorePoint,
                _ => return None,
            },
            _ => return None,
        };
        Some(Body {
            kind,
            has_info: header.info & XACT_HAS_INFO != 0,
            major,
            xid: header.xid,
            step: match kind {
                Kind::Switch => Step::Done,
                _ => Step::Id,
            },
            skip: 0,
            buffer: [0; BUFFER_BYTES],
            filled: 0,
            wanted: 1,
            xinfo: 0,
            time: None,
            redo: Lsn::INVALID,
            name: String::new(),
        })
    }

    /// Takes the next bytes of the body.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while self.step != Step::Done && !bytes.is_empty() {
            let passed = self.skip.min(bytes.len() as u64);
            self.skip -= passed;
            bytes = &bytes[passed as usize..];
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
                let wanted = match self.kind {
                    Kind::Commit | Kind::Abort if self.has_info => 12,
                    Kind::Commit | Kind::Abort => 8,
                    Kind::RestorePoint => RESTORE_POINT_BYTES,
                    _ => checkpoint_time_offset(self.major) + 8,
                };
                self.next(Step::Main, 0, wanted);
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
            Step::Done => {}
        }
    }

    fn main(&mut self) {
        self.step = Step::Done;
        let first = u64_at(&self.buffer, 0);
        match self.kind {
            Kind::Commit | Kind::Abort => {
                self.time = Some(TimestampTz(first.cast_signed()));
                if self.has_info {
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
            Kind::RestorePoint => {
                self.time = Some(TimestampTz(first.cast_signed()));
                let name = &self.buffer[8..RESTORE_POINT_BYTES];
                let length = name.iter().position(|byte| *byte == 0);
                self.name =
                    String::from_utf8_lossy(&name[..length.unwrap_or(name.len())]).into_owned();
            }
            Kind::Checkpoint { .. } => {
                self.redo = Lsn(first);
                self.time = Some(TimestampTz::from_unix_seconds(
                    u64_at(&self.buffer, checkpoint_time_offset(self.major)).cast_signed(),
                ));
            }
            Kind::Switch => {}
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

    /// What the record says, once it is complete and proven; `None` where it is too short to say it.
    pub fn event(self, begin: Lsn, end: Lsn) -> Option<WalEvent> {
        let xid = TransactionId(self.xid);
        Some(match self.kind {
            Kind::Switch => WalEvent::Switch { begin, end },
            Kind::Commit => WalEvent::Commit {
                xid,
                time: self.time?,
                begin,
                end,
            },
            Kind::Abort => WalEvent::Abort {
                xid,
                time: self.time?,
                begin,
                end,
            },
            Kind::RestorePoint => WalEvent::RestorePoint {
                name: self.name,
                time: self.time?,
                begin,
                end,
            },
            Kind::Checkpoint { shutdown } => WalEvent::Checkpoint {
                time: self.time?,
                redo: self.redo,
                shutdown,
                begin,
                end,
            },
        })
    }
}
