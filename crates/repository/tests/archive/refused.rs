//! What is no whole, sound WAL segment of this cluster.

use leeward_pgformat::{Lsn, SystemIdentifier, TimelineId, WalSegmentName};
use leeward_repository::RepositoryError;

use crate::{Place, local, mebibytes};
use leeward_fixtures::{SYSTEM_IDENTIFIER, Wal, segment};

fn refuse(
    place: &Place,
    name: WalSegmentName,
    system: SystemIdentifier,
    bytes: &[u8],
) -> RepositoryError {
    let error = place
        .archive
        .store_segment(name, mebibytes(1), system, &mut &bytes[..], 1)
        .expect_err("refused");
    assert_eq!(place.keys(), Vec::<String>::new(), "nothing is stored");
    assert!(
        error.to_string().contains(&name.name(mebibytes(1))),
        "{error}"
    );
    error
}

#[track_caller]
fn check(error: RepositoryError, says: &str) {
    assert!(
        matches!(error, RepositoryError::WalRefused { .. }) && error.to_string().contains(says),
        "{error}"
    );
}

#[test]
fn another_segments_bytes() {
    let (_folder, place) = local();
    let size = mebibytes(1);
    let wal = segment(size, 7, 1);
    let name = wal.segment();
    let of_timeline = |timeline| WalSegmentName {
        timeline: TimelineId(timeline),
        ..name
    };

    check(
        refuse(&place, name.next(), SYSTEM_IDENTIFIER, &wal.bytes),
        "it begins at LSN",
    );
    check(
        refuse(&place, name, SystemIdentifier(8), &wal.bytes),
        "system identifier",
    );
    let mut newer = Wal::new(size, 7, 1);
    newer.timeline = TimelineId(3);
    newer.fill_segment(1000);
    check(
        refuse(&place, of_timeline(2), SYSTEM_IDENTIFIER, &newer.bytes),
        "timeline 3",
    );
    check(
        refuse(
            &place,
            name,
            SYSTEM_IDENTIFIER,
            &segment(mebibytes(2), 7, 1).bytes,
        ),
        "WAL segments of 2MB",
    );

    // The segment in which a timeline began has its ancestor's pages first.
    let mut begun = Wal::new(size, 7, 1);
    begun.filler(50_000);
    begun.timeline = TimelineId(2);
    begun.fill_segment(1000);
    place
        .archive
        .store_segment(
            of_timeline(2),
            size,
            SYSTEM_IDENTIFIER,
            &mut &begun.bytes[..],
            1,
        )
        .expect("stored");
}

#[test]
fn another_length() {
    let (_folder, place) = local();
    let wal = segment(mebibytes(1), 7, 1);
    let name = wal.segment();
    let mut longer = wal.bytes.clone();
    longer.push(0);
    for (bytes, says) in [
        (&wal.bytes[..0], "only 0 bytes"),
        (&wal.bytes[..39], "only 39 bytes"),
        (&wal.bytes[..8192], "only 8192 bytes"),
        (&wal.bytes[..(1 << 20) - 1], "only 1048575 bytes"),
        (&longer[..], "more bytes"),
        (&vec![0; 1 << 20], "all zeros"),
        (&vec![7; 1 << 20], "magic number"),
    ] {
        check(refuse(&place, name, SYSTEM_IDENTIFIER, bytes), says);
    }
}

#[test]
fn damaged_records() {
    let (_folder, place) = local();
    let mut wal = Wal::new(mebibytes(1), 7, 1);
    let mut records = Vec::new();
    for _ in 0..20 {
        records.push(wal.filler(40_000).0);
    }
    wal.fill_segment(200);
    for record in records.into_iter().chain([Lsn(wal.end().0 - 60)]) {
        let mut bytes = wal.bytes.clone();
        // Inside the record's body, not in a page header.
        let place_of_flip = ((record - wal.start) as usize + 50).min(bytes.len() - 10);
        bytes[place_of_flip] ^= 0x10;
        let error = refuse(&place, wal.segment(), SYSTEM_IDENTIFIER, &bytes);
        let RepositoryError::WalDamaged { lsn, .. } = &error else {
            panic!("{error}");
        };
        assert!(
            *lsn <= wal.start + place_of_flip as u64 && *lsn + 41_000 > record,
            "{error}"
        );
        assert!(error.is_damage());
    }
}

#[test]
fn a_segment_that_is_not_full() {
    let (_folder, place) = local();
    let size = mebibytes(1);
    let mut wal = Wal::new(size, 7, 1);
    wal.filler(300_000);
    wal.commit(9, 9);
    let end = wal.end();
    let name = wal.segment();

    let mut zeros = wal.bytes.clone();
    zeros.resize(1 << 20, 0);
    // A file that was segment 3 before.
    let mut recycled = segment(size, 3, 9).bytes;
    recycled[..wal.bytes.len()].copy_from_slice(&wal.bytes);
    for bytes in [zeros, recycled] {
        let error = refuse(&place, name, SYSTEM_IDENTIFIER, &bytes);
        let RepositoryError::WalUnfinished { end: found, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*found, end);
        assert!(error.hint().is_some());
    }
}
