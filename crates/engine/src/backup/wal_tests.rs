//! Database records in a backup's WAL, those that cross a segment border too.

use leeward_fixtures::{SYSTEM_IDENTIFIER, Wal};
use leeward_pgformat::Oid;
use leeward_repository::store::memory::MemoryStore;

use super::*;

const PAGE: usize = 8192;
const RM_SMGR: u8 = 2;
const RM_DBASE: u8 = 4;

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

/// Fills all pages of the first segment, the last one but for `left` bytes.
fn fill_but(wal: &mut Wal, left: usize) {
    let pages = wal.size.bytes() as usize / PAGE;
    for page in 1..=pages {
        let header = if page == 1 { 40 } else { 24 };
        let left = if page == pages { left } else { 0 };
        wal.filler(PAGE - header - 24 - left);
    }
}

/// Creates a relation's file in a database.
fn create_file(wal: &mut Wal, database: u32) -> Lsn {
    wal.record(RM_SMGR, 0x10, 7, &numbers(&[1663, database, 16_500, 0]))
        .0
}

pub(in crate::backup) fn size() -> WalSegmentSize {
    WalSegmentSize::new(1 << 20).expect("a size")
}

/// Fills the last segment with zeros.
pub(in crate::backup) fn pad(wal: &mut Wal) {
    let segment = wal.size.bytes() as usize;
    wal.bytes
        .resize(wal.bytes.len().next_multiple_of(segment), 0);
}

pub(in crate::backup) fn pg_wal(folder: &Path, from: &[&Wal]) -> PgWal {
    for wal in from {
        for (name, bytes) in wal.segments() {
            std::fs::write(folder.join(name.name(wal.size)), bytes).expect("written");
        }
    }
    PgWal {
        directory: Directory::open(folder).expect("opened"),
        path: folder.to_owned(),
    }
}

fn stretch(start: Lsn, stop: Lsn, segment_size: WalSegmentSize) -> Stretch {
    Stretch {
        system_identifier: SYSTEM_IDENTIFIER,
        segment_size,
        start,
        stop,
        timeline: TimelineId(1),
    }
}

fn store(pg_wal: &PgWal, stretch: Stretch) -> Result<StoredWal> {
    let store = MemoryStore::bucket();
    let to = Destination {
        store: &store,
        cluster: "main",
        backup: &"20261122T023000Z-k7q2".parse().expect("an id"),
        level: 1,
    };
    store_wal(pg_wal, stretch, &to, &|_| {})
}

fn store_from(from: &[&Wal], stretch: Stretch) -> Result<StoredWal> {
    let folder = tempfile::tempdir().expect("a directory");
    store(&pg_wal(folder.path(), from), stretch)
}

fn refused(stored: Result<StoredWal>, words: &str) {
    let error = stored.err().expect("it is refused");
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert!(error.with_causes().contains(words), "{error}");
}

#[test]
fn a_record_that_does_not_go_on_in_the_next_segment_is_refused() {
    let size = size();
    let mut wal = Wal::new(size, 3, 1);
    wal.filler(1_000_000);
    wal.filler(100_000);
    wal.bytes.truncate(size.bytes() as usize);
    let mut other = Wal::new(size, 4, 2);
    let (_, stop) = other.filler(1_000);
    pad(&mut other);
    let stored = store_from(&[&wal, &other], stretch(wal.start + 40, stop, size));
    refused(stored, "does not go on in the next segment");
}

/// Recovery would not read the damaged place, but a database may be copied behind it.
#[test]
fn damage_before_the_start_hides_no_record_behind_it() {
    let size = size();
    let mut wal = Wal::new(size, 3, 1);
    wal.filler(100_000);
    let (start, _) = wal.filler(100_000);
    let (_, stop) = wal.record(RM_DBASE, 0x20, 7, &numbers(&[16_384, 1, 1663]));
    wal.filler(100_000);
    pad(&mut wal);
    wal.bytes[50_000] ^= 1;
    let stored = store_from(&[&wal], stretch(start, stop, size));
    refused(stored, "before the start LSN");
}

#[test]
fn copies_and_changes_are_told_wherever_the_border_of_a_segment_lies() {
    let size = size();
    for left in (8..=96).step_by(8) {
        let mut wal = Wal::new(size, 3, left);
        fill_but(&mut wal, left as usize);
        let (copied, _) = wal.record(RM_DBASE, 0x00, 7, &numbers(&[16_385, 1663, 16_384, 1663]));
        let changed = create_file(&mut wal, 16_384);
        create_file(&mut wal, 5);
        wal.filler(2_500_000);
        let (dropped, stop) = wal.record(RM_DBASE, 0x20, 7, &numbers(&[16_384, 1, 1663]));
        // A record behind the backup's stop.
        wal.record(RM_DBASE, 0x20, 7, &numbers(&[16_385, 1, 1663]));
        pad(&mut wal);

        let folder = tempfile::tempdir().expect("a directory");
        let pg_wal = pg_wal(folder.path(), &[&wal]);
        let stretch = stretch(wal.start + 40, stop, size);
        let stored = store(&pg_wal, stretch).expect("stored");
        assert_eq!(stored.records.len(), 4, "{left}");
        let begins: Vec<Lsn> = stored.events.iter().map(WalEvent::begin).collect();
        assert_eq!(begins, [copied, dropped], "{left}");
        assert!(databases::is_copy(&stored.events[0]), "{left}");

        let changes = directory_changes(&pg_wal, stretch, copied).expect("walked");
        let source = DatabaseDirectory {
            database: Oid(16_384),
            tablespace: Oid(1663),
        };
        assert_eq!(changes.get(&source), Some(&changed), "{left}");
        let other = DatabaseDirectory {
            database: Oid(5),
            ..source
        };
        assert!(changes.get(&other) > Some(&changed), "{left}");
    }
}
