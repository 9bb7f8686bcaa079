//! The summary of a stretch of WAL: its bounds, how it joins its neighbors, and the times, transactions and restore points
//! in it.

use crate::{Lsn, TimestampTz, WalEvent};

/// The number a transaction is known by (`TransactionId`, `c.h`): of the top-level transaction. It wraps around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(pub u32);

/// A restore point, as `pg_create_restore_point` makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePoint {
    /// Its name, at most 63 bytes; bytes that are not UTF-8 are replacement characters.
    pub name: String,
    /// When it was made.
    pub time: TimestampTz,
    /// The end of its record: what `pg_create_restore_point` returned.
    pub lsn: Lsn,
}

/// The bytes of a record that lie in one stretch of WAL, when others lie in another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordPart {
    /// How many bytes of the record lie here, page headers not counted.
    pub length: u64,
    /// The first of them, [`HEAD_LIMIT`](Self::HEAD_LIMIT) at most.
    pub head: Vec<u8>,
    /// CRC-32C of all of them.
    pub checksum: u32,
}

impl RecordPart {
    /// How many bytes are kept: enough for the header and for all that is told of most records.
    pub const HEAD_LIMIT: usize = 128;

    /// Adds bytes that follow.
    fn extend(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
        let room = Self::HEAD_LIMIT - self.head.len();
        self.head.extend_from_slice(&bytes[..room.min(bytes.len())]);
    }

    /// This part and the one that follows it.
    #[must_use]
    pub fn followed_by(&self, later: &RecordPart) -> RecordPart {
        let mut joined = self.clone();
        // Of a part that is longer than its head, what comes next is not known.
        if self.head.len() as u64 == self.length {
            let room = Self::HEAD_LIMIT - self.head.len();
            joined
                .head
                .extend_from_slice(&later.head[..room.min(later.head.len())]);
        }
        joined.length += later.length;
        joined.checksum = match usize::try_from(later.length) {
            Ok(length @ 1..) => crc32c::crc32c_combine(self.checksum, later.checksum, length),
            _ => self.checksum,
        };
        joined
    }
}

/// The summary of a stretch of WAL.
///
/// A record belongs to the stretch in which it *ends*: only there it can be replayed. Only its beginning counts where
/// it begins, in [`first_record`](Self::first_record). A record that leads from one stretch into the next is told of in
/// parts, [`open`](Self::open) here and [`tail`](Self::tail) there, if each was walked alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WalContents {
    /// The beginning of the first record that begins in the stretch.
    pub first_record: Option<Lsn>,
    /// The beginning of the record that the first one names as the one before it (`xl_prev`); `None` where it names none, as
    /// the first record of a new cluster and the first after `pg_resetwal`.
    pub previous_record: Option<Lsn>,
    /// The end of a record that began before the stretch; the record may go on behind it.
    pub tail: Option<RecordPart>,
    /// A record that begins in the stretch and goes on behind it, and where it begins.
    pub open: Option<(Lsn, RecordPart)>,
    /// The stretch begins with a record in place of the rest of one, which a crash took
    /// (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`).
    pub overwrites: bool,
    /// The beginning of the last record that ends in the stretch; it may lie before the stretch.
    pub last_record: Option<Lsn>,
    /// The end of the last record that ends in the stretch, aligned as the server counts it.
    pub end: Option<Lsn>,
    /// The end of the record that switches to the next segment; the last one of a longer stretch.
    pub switch: Option<Lsn>,
    /// Transactions committed.
    pub commits: u64,
    /// Transactions rolled back, where the server had to write that down.
    pub aborts: u64,
    /// The earliest moment of a commit or rollback. Times in WAL are not in order: each backend reads the clock
    /// before it writes.
    pub first_time: Option<TimestampTz>,
    /// The latest moment of a commit or rollback.
    pub last_time: Option<TimestampTz>,
    /// The least and the greatest transaction id of commits and rollbacks, as plain numbers: where the numbers wrap
    /// around the range is wide, never too narrow.
    pub xids: Option<(u32, u32)>,
    /// The moment of the last checkpoint, to the second.
    pub checkpoint_time: Option<TimestampTz>,
    /// The first restore points, [`RESTORE_POINTS_LIMIT`](Self::RESTORE_POINTS_LIMIT) at most.
    pub restore_points: Vec<RestorePoint>,
    /// There are more restore points than are listed.
    pub more_restore_points: bool,
    /// There are records whose replay needs more than the files of a backup ([`WalEvent::is_requirement`]).
    pub has_requirements: bool,
    /// The resource managers of extensions that records belong to: bit n is manager 128 + n.
    pub custom_managers: u128,
}

impl WalContents {
    /// How many restore points are kept, so that this is small whatever the WAL holds.
    pub const RESTORE_POINTS_LIMIT: usize = 20;

    /// Adds a record that ends in this stretch.
    pub fn note(&mut self, event: &WalEvent) {
        match event {
            WalEvent::Commit { xid, time, .. } => {
                self.commits += 1;
                self.note_transaction(*xid, *time);
            }
            WalEvent::Abort { xid, time, .. } => {
                self.aborts += 1;
                self.note_transaction(*xid, *time);
            }
            WalEvent::RestorePoint {
                name, time, end, ..
            } => self.note_restore_point(RestorePoint {
                name: name.clone(),
                time: *time,
                lsn: *end,
            }),
            WalEvent::Checkpoint { time, .. } => self.checkpoint_time = Some(*time),
            WalEvent::Switch { end, .. } => self.switch = Some(*end),
            other => self.has_requirements |= other.is_requirement(),
        }
    }

    /// Adds the beginning of a record that names `previous` as the one before it.
    pub(crate) fn note_beginning(&mut self, begin: Lsn, previous: Lsn) {
        if self.first_record.is_none() {
            self.first_record = Some(begin);
            self.previous_record = Some(previous).filter(|lsn| lsn.is_valid());
        }
    }

    /// Adds bytes of a record that began before the stretch.
    pub(crate) fn note_tail(&mut self, bytes: &[u8]) {
        self.tail
            .get_or_insert_with(|| RecordPart {
                length: 0,
                head: Vec::new(),
                checksum: 0,
            })
            .extend(bytes);
    }

    /// The numbers of the extensions' resource managers that records belong to.
    pub fn custom_manager_numbers(&self) -> impl Iterator<Item = u8> {
        (0..128_u8)
            .filter(|bit| self.custom_managers >> bit & 1 == 1)
            .map(|bit| 128 + bit)
    }

    fn note_transaction(&mut self, TransactionId(xid): TransactionId, time: TimestampTz) {
        self.first_time = Some(self.first_time.map_or(time, |first| first.min(time)));
        self.last_time = Some(self.last_time.map_or(time, |last| last.max(time)));
        self.xids = Some(
            self.xids
                .map_or((xid, xid), |(least, most)| (least.min(xid), most.max(xid))),
        );
    }

    fn note_restore_point(&mut self, point: RestorePoint) {
        if self.restore_points.len() < Self::RESTORE_POINTS_LIMIT {
            self.restore_points.push(point);
        } else {
            self.more_restore_points = true;
        }
    }

    /// Adds the stretch that follows.
    pub fn merge(&mut self, later: &WalContents) {
        // Nothing but bytes of a record that began before: it may go on.
        if self.first_record.is_none() && self.end.is_none() {
            self.tail = match (self.tail.take(), &later.tail) {
                (Some(tail), Some(later)) => Some(tail.followed_by(later)),
                (tail, later) => tail.or_else(|| later.clone()),
            };
            self.overwrites |= later.overwrites;
        }
        if self.first_record.is_none() {
            self.first_record = later.first_record;
            self.previous_record = later.previous_record;
        }
        self.open.clone_from(&later.open);
        self.last_record = later.last_record.or(self.last_record);
        self.end = later.end.or(self.end);
        self.switch = later.switch.or(self.switch);
        self.commits += later.commits;
        self.aborts += later.aborts;
        self.first_time = match (self.first_time, later.first_time) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.last_time = self.last_time.max(later.last_time);
        self.xids = match (self.xids, later.xids) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (a, b) => a.or(b),
        };
        self.checkpoint_time = later.checkpoint_time.or(self.checkpoint_time);
        self.more_restore_points |= later.more_restore_points;
        self.has_requirements |= later.has_requirements;
        self.custom_managers |= later.custom_managers;
        for point in &later.restore_points {
            self.note_restore_point(point.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(xid: u32, time: i64) -> WalEvent {
        WalEvent::Commit {
            xid: TransactionId(xid),
            time: TimestampTz(time),
            begin: Lsn(8),
            end: Lsn(16),
        }
    }

    fn point(name: &str, end: u64) -> WalEvent {
        WalEvent::RestorePoint {
            name: name.to_owned(),
            time: TimestampTz(5),
            begin: Lsn(end - 8),
            end: Lsn(end),
        }
    }

    #[test]
    fn merging_is_noting_one_after_the_other() {
        let events = [
            commit(7, 30),
            commit(5, 10),
            point("a", 80),
            WalEvent::Abort {
                xid: TransactionId(9),
                time: TimestampTz(20),
                begin: Lsn(24),
                end: Lsn(32),
            },
            WalEvent::Checkpoint {
                time: TimestampTz(3),
                redo: Lsn(8),
                shutdown: true,
                begin: Lsn(32),
                end: Lsn(40),
            },
            point("b", 160),
        ];
        let fold = |events: &[WalEvent]| {
            let mut contents = WalContents::default();
            events.iter().for_each(|event| contents.note(event));
            contents
        };
        let whole = fold(&events);
        for cut in 0..=events.len() {
            let mut merged = fold(&events[..cut]);
            merged.merge(&fold(&events[cut..]));
            assert_eq!(merged, whole, "cut at {cut}");
        }
        assert_eq!((whole.commits, whole.aborts), (2, 1));
        assert_eq!(
            (whole.first_time, whole.last_time, whole.xids),
            (Some(TimestampTz(10)), Some(TimestampTz(30)), Some((5, 9)))
        );
    }

    #[test]
    fn restore_points_are_bounded_and_say_so() {
        let mut contents = WalContents::default();
        for end in 1..=20 {
            contents.note(&point("p", end * 80));
        }
        assert!(!contents.more_restore_points);
        let mut merged = contents.clone();
        merged.merge(&contents);
        contents.note(&point("p", 8000));
        for contents in [contents, merged] {
            assert_eq!(contents.restore_points.len(), 20);
            assert!(contents.more_restore_points);
        }
    }
}
