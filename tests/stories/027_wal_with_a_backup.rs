//! The WAL that goes with a backup says what is in it, and is refused when recovery would end in the middle of it.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use leeward_pgformat::wal_segment::is_wal_segment_name;
use leeward_pgformat::{Lsn, TimelineId, WalSegmentName, WalSegmentSize};
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::server::{Initdb, Server};
use leeward_tests::story::Story;

fn size() -> WalSegmentSize {
    WalSegmentSize::new(1 << 20).expect("a size")
}

/// The WAL segments that lie with a backup, in order.
fn objects(leeward: &Leeward<'_>, backup: &str) -> Vec<PathBuf> {
    let folder = Path::new(leeward.repository()).join(format!("main/backups/{backup}/wal"));
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            path.file_stem()
                .and_then(|stem| stem.to_str())
                .is_some_and(is_wal_segment_name)
        })
        .collect();
    paths.sort();
    paths
}

/// The contents frame, as `docs/format.md` draws it.
fn contents(object: &Path) -> Vec<u8> {
    let bytes = fs::read(object).expect("an object");
    let before_tail = &bytes[..bytes.len() - 96];
    let (rest, magic) = before_tail.split_at(before_tail.len() - 8);
    assert_eq!(magic, b"LWWALCND", "{}", object.display());
    let length = rest.last_chunk().copied().expect("a length");
    before_tail[before_tail.len() - u32::from_le_bytes(length) as usize..].to_vec()
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

/// Several segments of WAL behind a checkpoint, and pages on the standby's disk that need them; returns where a large
/// record begins that lies in one segment.
fn write_wal(pair: &Pair) -> Lsn {
    pair.primary.sql("CHECKPOINT");
    let positions: Vec<Lsn> = (0..12)
        .map(|_| {
            let large = "SELECT pg_current_wal_insert_lsn() FROM
                 (SELECT pg_logical_emit_message(false, 'story', repeat('x', 200000)) OFFSET 0) AS large";
            pair.primary.sql(large).parse().expect("an LSN")
        })
        .collect();
    pair.primary
        .sql("INSERT INTO story SELECT generate_series(1, 1000)");
    pair.standby.wait_for(&pair.primary);
    pair.standby.sql("CHECKPOINT");
    // Each position is the end of one record and the beginning of the next.
    let inside = positions
        .windows(2)
        .find(|pair| size().segment_number(pair[0]) == size().segment_number(pair[1]));
    inside.expect("five fit into a segment")[0]
}

fn flip(server: &Server, at: Lsn) {
    let segment = WalSegmentName::containing(TimelineId(1), at, size());
    let path = server.data().join("pg_wal").join(segment.name(size()));
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .expect("a segment");
    let mut byte = [0];
    file.read_exact_at(&mut byte, size().offset(at))
        .expect("a byte");
    byte[0] ^= 1;
    file.write_all_at(&byte, size().offset(at)).expect("a byte");
}

fn check(major: u32) {
    let story = Story::begin(major);
    let how = Initdb {
        wal_segment_mib: 1,
        ..Initdb::default()
    };
    let pair = Pair::with(&story, &how, |primary| {
        primary.append_config("wal_keep_size = 1GB\nautovacuum = off");
        primary.sql("CREATE TABLE story (id int)");
    });
    let leeward = Leeward::new(&story);

    write_wal(&pair);
    let backup = leeward.back_up(&pair.standby, &[]);
    let objects = objects(&leeward, &backup.id());
    assert!(objects.len() >= 3, "{objects:?}");
    let (mut commits, mut end) = (0, 0);
    for object in &objects {
        let contents = contents(object);
        commits += u64_at(&contents, 56);
        end = u64_at(&contents, 40).max(end);
    }
    assert!(commits >= 1, "the rows were committed");
    // Of what lies behind the stop LSN, nothing is told.
    let stop: Lsn = backup.stop_lsn().parse().expect("an LSN");
    assert_eq!(Lsn(end), stop);

    let large = write_wal(&pair);
    flip(&pair.standby, large + 100_000);
    leeward
        .backup(&pair.standby, &[])
        .expect(exit::DAMAGED)
        .expect_words(&["cannot be recovered from", &format!("damaged at {large}")]);
    assert_eq!(leeward.listed(), [backup.id()]);
}

#[test]
fn postgres_15() {
    check(15);
}

#[test]
fn postgres_16() {
    check(16);
}

#[test]
fn postgres_17() {
    check(17);
}

#[test]
fn postgres_18() {
    check(18);
}

#[test]
fn postgres_19() {
    check(19);
}
