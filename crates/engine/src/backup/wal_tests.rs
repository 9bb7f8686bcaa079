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

#[test]
fn copies_and_changes_are_told_wherever_the_border_of_a_segment_lies() {
    let size = WalSegmentSize::new(1 << 20).expect("a size");
    let id: BackupId = "20261122T023000Z-k7q2".parse().expect("an id");
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
        let segment = size.bytes() as usize;
        wal.bytes
            .resize(wal.bytes.len().next_multiple_of(segment), 0);

        let folder = tempfile::tempdir().expect("a directory");
        for (name, bytes) in wal.segments() {
            std::fs::write(folder.path().join(name.name(size)), bytes).expect("written");
        }
        let pg_wal = PgWal {
            directory: Directory::open(folder.path()).expect("opened"),
            path: folder.path().to_owned(),
        };
        let stretch = Stretch {
            system_identifier: SYSTEM_IDENTIFIER,
            segment_size: size,
            start: wal.start + 40,
            stop,
            timeline: TimelineId(1),
        };
        let store = MemoryStore::bucket();
        let to = Destination {
            store: &store,
            cluster: "main",
            backup: &id,
            level: 1,
        };
        let stored = store_wal(&pg_wal, stretch, &to, &|_| {}).expect("stored");
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
