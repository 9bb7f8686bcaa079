//! An archive as an earlier version wrote it: every later version reads it as it is.

use std::path::Path;
use std::sync::Arc;

use leeward_pgformat::wal_segment::history_file_name;
use leeward_pgformat::{Lsn, TimelineHistory, TimelineId, TimestampTz, WalSegmentName};
use leeward_repository::store::local::LocalStore;
use leeward_repository::wal_archive::{Gap, Piece};

use crate::{Place, mebibytes};
use leeward_fixtures::{SYSTEM_IDENTIFIER, Wal};

const TIMELINE: TimelineId = TimelineId(2);
const HISTORY: &[u8] = b"1\t0/200110\tno recovery target specified\n";

fn place() -> Place {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/format-1");
    Place::new(Arc::new(LocalStore::new(golden)))
}

/// Segment 3, switched, and the beginning of segment 4.
fn wal() -> Wal {
    let mut wal = Wal::new(mebibytes(1), 3, 1);
    wal.timeline = TIMELINE;
    wal.filler(500);
    wal.commit(700, 1_000);
    wal.switch(0);
    wal.filler(100);
    wal.commit(701, 2_000);
    wal
}

fn name(number: u64) -> WalSegmentName {
    WalSegmentName {
        timeline: TIMELINE,
        number,
    }
}

fn gap() -> Gap {
    Gap {
        timeline: TIMELINE,
        begin: Lsn(5 << 20),
        end: Lsn(6 << 20),
        found_at: "2026-11-22T23:30:00Z".parse().expect("a moment"),
        reason: "replication slot \"leeward_wal\" lost its WAL".to_owned(),
    }
}

/// How the files came to be.
#[test]
#[ignore = "writes the golden files; only for a new format version"]
fn write() {
    let (archive, wal) = (place().archive, wal());
    let (whole, begun) = wal.bytes.split_at(1 << 20);
    archive
        .store_segment(name(3), wal.size, SYSTEM_IDENTIFIER, &mut &whole[..], 3)
        .expect("stored");
    let piece = Piece {
        timeline: TIMELINE,
        begin: Lsn(4 << 20),
        bytes: begun,
        contents: &Default::default(),
        segment_size: wal.size,
        system_identifier: SYSTEM_IDENTIFIER,
    };
    archive.store_piece(&piece, 3).expect("stored");
    archive
        .store_file("00000002.history", SYSTEM_IDENTIFIER, HISTORY)
        .expect("stored");
    archive.record_gap(&gap()).expect("recorded");
}

#[test]
fn format_1_is_read() {
    let (archive, wal) = (place().archive, wal());
    let (whole, begun) = wal.bytes.split_at(1 << 20);
    let held = archive
        .timeline_holdings(TIMELINE, wal.size)
        .expect("listed");
    assert!(held.segments.runs().eq(std::iter::once(3..4)));
    assert!(held.history);
    assert_eq!(held.covered_to(wal.start, wal.size), wal.end());

    let mut bytes = Vec::new();
    let info = archive
        .read_segment(name(3), wal.size, &mut bytes)
        .expect("read")
        .expect("there");
    assert_eq!(info.facts.system_identifier, SYSTEM_IDENTIFIER);
    assert!(bytes == whole);
    let contents = archive.contents(name(3), wal.size, None);
    let contents = contents.expect("read").expect("there");
    assert_eq!(contents.last_time, Some(TimestampTz(1_000)));
    assert!(contents.switch.is_some());

    bytes.clear();
    let end = archive.read_pieces(name(4), wal.size, &mut bytes);
    assert_eq!(end.expect("read"), Some(wal.end()));
    assert!(bytes == begun);

    let history = archive.read_file(&history_file_name(TIMELINE));
    let history = TimelineHistory::parse(history.expect("read").expect("there"), TIMELINE);
    let history = history.expect("sound");
    assert_eq!(history.switch_lsn(TimelineId(1)), Some(Lsn(0x20_0110)));
    assert_eq!(held.gaps, [gap().begin..gap().end].as_slice());
    assert_eq!(archive.gap(TIMELINE, &held.gaps[0]).expect("read"), gap());
}
