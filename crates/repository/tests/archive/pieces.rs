//! Pieces of a WAL segment.

use std::ops::Range;
use std::sync::Arc;

use leeward_pgformat::{
    Lsn, SystemIdentifier, TimelineId, TimestampTz, WalContents, WalSegmentName,
};
use leeward_repository::RepositoryError;
use leeward_repository::store::memory::{self, Action, FaultPoint, MemoryStore};
use leeward_repository::wal_archive::{PIECE_BYTES_LIMIT, Piece, Stored};
use leeward_tests::faults::Fault;

use crate::{Place, bucket, local, mebibytes, on_each_store, open};
use leeward_fixtures::{SYSTEM_IDENTIFIER, Wal, segment};

fn store(place: &Place, wal: &Wal, range: Range<usize>) -> Result<Stored, RepositoryError> {
    let contents = WalContents {
        commits: range.start as u64,
        last_time: None,
        ..WalContents::default()
    };
    place.archive.store_piece(
        &Piece {
            timeline: TimelineId(1),
            begin: wal.start + range.start as u64,
            bytes: &wal.bytes[range],
            contents: &contents,
            segment_size: wal.size,
            system_identifier: SYSTEM_IDENTIFIER,
        },
        1,
    )
}

fn read(place: &Place, wal: &Wal) -> Result<Option<(Lsn, Vec<u8>)>, RepositoryError> {
    let mut bytes = Vec::new();
    let end = place
        .archive
        .read_pieces(wal.segment(), wal.size, &mut bytes)?;
    assert!(end.is_some() || bytes.is_empty());
    Ok(end.map(|end| (end, bytes)))
}

#[track_caller]
fn check_read(place: &Place, wal: &Wal, length: usize) {
    let (end, bytes) = read(place, wal).expect("read").expect("there");
    assert_eq!(end, wal.start + length as u64);
    assert!(bytes == wal.bytes[..length]);
}

fn piece_key(wal: &Wal, range: &Range<usize>) -> String {
    format!(
        "main/wal/00000001/{}/{:016X}-{:016X}.zst",
        wal.segment().name(wal.size),
        wal.start.0 + range.start as u64,
        wal.start.0 + range.end as u64
    )
}

#[test]
fn pieces_are_read_up_to_the_first_hole() {
    on_each_store(|place| {
        let wal = segment(mebibytes(1), 7, 1);
        assert!(read(place, &wal).expect("read").is_none());
        store(place, &wal, 100..5000).expect("stored");
        assert!(
            read(place, &wal).expect("read").is_none(),
            "it begins later"
        );

        let first = store(place, &wal, 0..100).expect("stored");
        assert!(first.is_new());
        check_read(place, &wal, 5000);
        assert_eq!(
            store(place, &wal, 0..100).expect("stored"),
            Stored::Same(first.info().clone())
        );

        // Another receiver's, which overlap.
        store(place, &wal, 0..3000).expect("stored");
        store(place, &wal, 3000..70_000).expect("stored");
        store(place, &wal, 80_000..90_000).expect("stored");
        check_read(place, &wal, 70_000);
        store(place, &wal, 69_999..80_001).expect("stored");
        check_read(place, &wal, 90_000);
        store(place, &wal, 90_000..1 << 20).expect("stored");
        check_read(place, &wal, 1 << 20);

        let held = place
            .archive
            .timeline_holdings(TimelineId(1), wal.size)
            .expect("listed");
        assert!(held.segments.is_empty());
        let ranges = &held.pieces[&7];
        assert_eq!(ranges.len(), 7);
        assert!(ranges.is_sorted_by_key(|range| (range.start, range.end)));
        assert_eq!(
            *ranges,
            place
                .archive
                .pieces(wal.segment(), wal.size)
                .expect("listed")
        );
        assert_eq!(held.covered_to(wal.start, wal.size), wal.end());
        assert_eq!(
            place.archive.segment_size().expect("told"),
            Some(wal.size),
            "a piece tells, too"
        );
        for range in ranges {
            let contents = place
                .archive
                .piece_contents(TimelineId(1), range, wal.size)
                .expect("read")
                .expect("there");
            assert_eq!(contents.commits, range.start - wal.start);
        }
        let absent = wal.start + 1..wal.start + 2;
        assert_eq!(
            place
                .archive
                .piece_contents(TimelineId(1), &absent, wal.size)
                .expect("read"),
            None
        );
    });
}

#[test]
fn many_pieces_come_in_order() {
    let wal = segment(mebibytes(1), 7, 1);
    let (_server, proxy, place) = bucket();
    let step = wal.bytes.len() / 128;
    for begin in (0..wal.bytes.len()).step_by(step) {
        store(&place, &wal, begin..begin + step).expect("stored");
    }
    proxy.set_random(
        3,
        20,
        &[Fault::Unavailable, Fault::CutBefore, Fault::CutBody],
    );
    check_read(&place, &wal, wal.bytes.len());
    assert!(proxy.injected() > 5, "{}", proxy.injected());
}

#[test]
fn pieces_that_differ_are_a_conflict() {
    on_each_store(|place| {
        let wal = segment(mebibytes(1), 7, 1);
        let mut other = wal.clone();
        other.bytes[6_000] ^= 1;
        store(place, &wal, 0..7_000).expect("stored");
        store(place, &other, 7_000..9_000).expect("stored");
        check_read(place, &wal, 9_000);

        let error = store(place, &other, 0..7_000).expect_err("refused");
        let RepositoryError::WalConflict {
            object, differs_at, ..
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!(*object, piece_key(&wal, &(0..7_000)));
        assert_eq!(*differs_at, Some(wal.start + 6_000));

        store(place, &other, 5_000..20_000).expect("nobody compares yet");
        let error = read(place, &wal).expect_err("refused");
        let RepositoryError::WalConflict {
            object,
            other,
            differs_at,
            ..
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!(*object, piece_key(&wal, &(0..7_000)));
        assert_eq!(
            *other,
            format!("object \"{}\"", piece_key(&wal, &(5_000..20_000)))
        );
        assert_eq!(*differs_at, Some(wal.start + 6_000));
    });
}

#[test]
fn a_damaged_or_misplaced_piece_is_told() {
    let (_folder, place) = local();
    let wal = segment(mebibytes(1), 7, 1);
    store(&place, &wal, 0..7_000).expect("stored");
    store(&place, &wal, 7_000..9_000).expect("stored");
    let sound = place.object(&piece_key(&wal, &(0..7_000)));
    let mut damaged = sound.clone();
    damaged[3_000] ^= 1;
    let shorter = place.object(&piece_key(&wal, &(7_000..9_000)));
    for planted in [&damaged, &shorter] {
        place.plant(&piece_key(&wal, &(0..7_000)), planted);
        let error = read(&place, &wal).expect_err("refused");
        assert!(error.is_damage(), "{error}");
    }
    // The right length, at the wrong place.
    place.plant(&piece_key(&wal, &(0..7_000)), &sound);
    let elsewhere = segment(mebibytes(1), 8, 1);
    place.plant(&piece_key(&elsewhere, &(0..7_000)), &sound);
    let error = read(&place, &elsewhere).expect_err("refused");
    assert!(error.is_damage(), "{error}");
    check_read(&place, &wal, 9_000);
}

#[test]
fn ranges_that_no_piece_may_have() {
    let (_folder, place) = local();
    let mut wal = segment(mebibytes(1), 7, 1);
    wal.fill_segment(30_000);
    wal.filler(5_000);
    for (range, says) in [
        (0..0, "bytes"),
        (0..(1 << 20) + 1, "beyond its WAL segment"),
        ((1 << 20) - 1..(1 << 20) + 1, "beyond its WAL segment"),
    ] {
        let error = store(&place, &wal, range).expect_err("refused");
        assert!(
            matches!(error, RepositoryError::WalRefused { .. }) && error.to_string().contains(says),
            "{error}"
        );
    }
    let contents = WalContents::default();
    let long = vec![0; PIECE_BYTES_LIMIT as usize + 1];
    let mut piece = Piece {
        timeline: TimelineId(1),
        begin: Lsn(1 << 30),
        bytes: &long,
        contents: &contents,
        segment_size: mebibytes(64),
        system_identifier: SYSTEM_IDENTIFIER,
    };
    place.archive.store_piece(&piece, 1).expect_err("too long");
    piece.bytes = &wal.bytes[..8192];
    place
        .archive
        .store_piece(&piece, 1)
        .expect_err("another segment's header");
    piece.begin = wal.start;
    piece.segment_size = wal.size;
    piece.system_identifier = SystemIdentifier(9);
    place
        .archive
        .store_piece(&piece, 1)
        .expect_err("another cluster's header");
    assert_eq!(place.keys(), Vec::<String>::new());
}

#[test]
fn pieces_go_only_when_the_segment_is_whole() {
    on_each_store(|place| {
        let wal = segment(mebibytes(1), 7, 1);
        let next = segment(mebibytes(1), 8, 1);
        for at in 0..20 {
            store(place, &wal, at * 1000..at * 1000 + 1000).expect("stored");
        }
        store(place, &next, 0..1000).expect("stored");
        let error = place
            .archive
            .delete_pieces(wal.segment(), wal.size)
            .expect_err("refused");
        assert!(
            matches!(error, RepositoryError::WalRefused { .. }),
            "{error}"
        );
        check_read(place, &wal, 20_000);

        place
            .archive
            .store_segment(
                wal.segment(),
                wal.size,
                SYSTEM_IDENTIFIER,
                &mut &wal.bytes[..],
                1,
            )
            .expect("stored");
        for expected in [20, 0] {
            let deleted = place
                .archive
                .delete_pieces(wal.segment(), wal.size)
                .expect("deleted");
            assert_eq!(deleted, expected);
        }
        check_read(place, &wal, 1 << 20);
        check_read(place, &next, 1000);
        let name: WalSegmentName = wal.segment();
        assert!(
            place
                .archive
                .read_segment(name, wal.size, &mut Vec::new())
                .expect("read")
                .is_some()
        );
        let told = place.archive.contents(name, wal.size, None);
        assert_eq!(
            told.expect("read").expect("there").first_time,
            Some(TimestampTz(1_000))
        );
    });
}

#[test]
fn pieces_stay_until_the_whole_segment_is_durable() {
    let memory = MemoryStore::bucket();
    let place = Place::new(Arc::new(memory.clone()));
    let wal = segment(mebibytes(1), 7, 1);
    let (name, size) = (wal.segment(), wal.size);
    store(&place, &wal, 0..1000).expect("stored");
    let whole = &mut &wal.bytes[..];
    place
        .archive
        .store_segment(name, size, SYSTEM_IDENTIFIER, whole, 1)
        .expect("stored");
    memory.inject(FaultPoint::new(memory::Fault::Fail).on(&[Action::Sync]));
    let deleted = place.archive.delete_pieces(name, size);
    deleted.expect_err("the segment's name may be lost");
    assert_eq!(place.archive.pieces(name, size).expect("listed").len(), 1);
    memory.heal();
    assert_eq!(place.archive.delete_pieces(name, size).expect("deleted"), 1);
}

#[test]
fn a_segment_may_become_whole_while_its_pieces_are_read() {
    let wal = segment(mebibytes(1), 7, 1);
    let (server, proxy, place) = bucket();
    let receiver = Arc::new(open(&server, server.endpoint()));
    let whole = |receiver: &Place, wal: &Wal| {
        receiver
            .archive
            .store_segment(
                wal.segment(),
                wal.size,
                SYSTEM_IDENTIFIER,
                &mut &wal.bytes[..],
                1,
            )
            .expect("stored");
    };
    // It becomes whole before the pieces are listed, before the third of them is read, and when the first is gone
    // already while they are listed.
    for moment in 0..3 {
        for begin in (0..400_000).step_by(20_000) {
            store(&receiver, &wal, begin..begin + 20_000).expect("stored");
        }
        let (behind, wal_there) = (Arc::clone(&receiver), wal.clone());
        let mut gets = 0;
        let mut done = false;
        proxy.set(move |request| {
            gets += u64::from(request.method == "GET");
            let now = match moment {
                0 => true,
                1 => gets == 4,
                _ => true,
            };
            if now && !done {
                done = true;
                whole(&behind, &wal_there);
                if moment == 2 {
                    let first = crate::key(&piece_key(&wal_there, &(20_000..40_000)));
                    behind.store.delete(&first).expect("deleted");
                } else {
                    behind
                        .archive
                        .delete_pieces(wal_there.segment(), wal_there.size)
                        .expect("deleted");
                }
            }
            Fault::None
        });
        check_read(&place, &wal, 1 << 20);
        proxy.set(|_| Fault::None);
        receiver
            .archive
            .delete_pieces(wal.segment(), wal.size)
            .expect("deleted");
        let key = format!("main/wal/00000001/{}.zst", wal.segment().name(wal.size));
        receiver.store.delete(&crate::key(&key)).expect("deleted");
        assert!(read(&place, &wal).expect("read").is_none());
    }
}
