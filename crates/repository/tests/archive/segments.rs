//! Whole WAL segments.

use std::sync::{Arc, Barrier};
use std::thread;

use leeward_pgformat::{TimelineId, TimestampTz, WalSegmentName, WalSegmentSize};
use leeward_repository::RepositoryError;
use leeward_repository::hash::Hash;
use leeward_repository::store::memory::{self, Action, FaultPoint, MemoryStore};
use leeward_repository::wal_archive::{Segments, Stored};
use leeward_tests::faults::Fault;

use crate::{Place, bucket, local, mebibytes, on_each_store};
use leeward_fixtures::{SYSTEM_IDENTIFIER, Wal, segment};

fn store(place: &Place, wal: &Wal, level: i32) -> Result<Stored, RepositoryError> {
    place.archive.store_segment(
        wal.segment(),
        wal.size,
        SYSTEM_IDENTIFIER,
        &mut &wal.bytes[..],
        level,
    )
}

fn read(place: &Place, name: WalSegmentName, size: WalSegmentSize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let info = place
        .archive
        .read_segment(name, size, &mut bytes)
        .expect("read")?;
    assert_eq!(info.plain_hash, Hash::of(&bytes));
    Some(bytes)
}

fn object_key(wal: &Wal) -> String {
    format!("main/wal/00000001/{}.zst", wal.segment().name(wal.size))
}

#[test]
fn a_segment_comes_back_and_is_stored_once() {
    on_each_store(|place| {
        for size in [mebibytes(1), mebibytes(16), mebibytes(64)] {
            let wal = segment(size, 1000 / size.bytes() + 5, 1);
            let name = wal.segment();
            assert_eq!(read(place, name, size), None);

            let stored = store(place, &wal, 1).expect("stored");
            assert!(stored.is_new());
            assert!(read(place, name, size).expect("there") == wal.bytes);

            let again = store(place, &wal, 9).expect("stored");
            assert!(!again.is_new(), "the level does not matter");
            assert_eq!(again.info(), stored.info());

            let object = place.object(&object_key(&wal));
            assert_eq!(stored.info().stored_length, object.len() as u64);
            for length in [None, Some(object.len() as u64)] {
                let contents = place.archive.contents(name, size, length);
                let contents = contents.expect("read").expect("there");
                assert_eq!(contents.commits, 2);
                assert_eq!(contents.last_time, Some(TimestampTz(2_000)));
                assert_eq!(contents.end, Some(wal.end()));
                assert_eq!(stored.info().contents.as_ref(), Some(&contents));
            }
            assert_eq!(
                place
                    .archive
                    .contents(name.next(), size, Some(5))
                    .expect("read"),
                None
            );
            let held = place
                .archive
                .timeline_holdings(TimelineId(1), size)
                .expect("listed");
            assert_eq!(held.segments.get(name.number), Some(object.len() as u64));
            assert_eq!(place.archive.segment_size().expect("told"), Some(size));
            place
                .store
                .delete(&crate::key(&object_key(&wal)))
                .expect("deleted");
        }
        assert_eq!(place.archive.segment_size().expect("told"), None);
    });
}

#[test]
fn one_request_reads_a_segment() {
    let (_server, proxy, place) = bucket();
    let wal = segment(mebibytes(16), 3, 1);
    store(&place, &wal, 1).expect("stored");
    let before = proxy.requests();
    assert!(read(&place, wal.segment(), wal.size).expect("there") == wal.bytes);
    assert_eq!(proxy.requests() - before, 1);
    assert_eq!(read(&place, wal.segment().next(), wal.size), None);
    assert_eq!(proxy.requests() - before, 2, "absence is one answer, too");
}

#[test]
fn what_lies_behind_a_switch_is_zeros() {
    on_each_store(|place| {
        let size = mebibytes(1);
        let mut wal = Wal::new(size, 7, 1);
        wal.filler(100_000);
        wal.commit(9, 9);
        let mut other = wal.clone();
        let (_, switched) = wal.switch(0);
        other.switch(0xA5);
        assert!(wal.bytes != other.bytes);

        let stored = store(place, &other, 1).expect("stored");
        assert!(stored.is_new());
        assert_eq!(
            stored.info().contents.as_ref().and_then(|told| told.switch),
            Some(switched)
        );
        assert!(read(place, wal.segment(), size).expect("there") == wal.bytes);
        let same = store(place, &wal, 1).expect("stored");
        assert_eq!(same, Stored::Same(stored.info().clone()));
    });
}

#[test]
fn a_record_may_be_longer_than_segments() {
    on_each_store(|place| {
        let size = mebibytes(1);
        let mut wal = Wal::new(size, 7, 1);
        wal.filler(3_500_000);
        wal.commit(9, 9);
        wal.fill_segment(1000);
        assert_eq!(wal.bytes.len(), 4 << 20);
        for (at, part) in wal.bytes.chunks(1 << 20).enumerate() {
            let name = WalSegmentName {
                timeline: TimelineId(1),
                number: 7 + at as u64,
            };
            let stored = place
                .archive
                .store_segment(name, size, SYSTEM_IDENTIFIER, &mut &part[..], 1)
                .expect("stored");
            let contents = stored.info().contents.clone().expect("told");
            assert_eq!(contents.commits, u64::from(at == 3));
            assert_eq!(contents.end.is_some(), at == 3);
            assert!(read(place, name, size).expect("there") == part);
        }
        let held = place.archive.holdings(size).expect("listed");
        let held = &held.timelines[&TimelineId(1)];
        assert!(held.segments.runs().eq(std::iter::once(7..11)));
        assert_eq!(held.covered_to(wal.start + 5, size), wal.end());
    });
}

#[test]
fn other_wal_under_the_same_name_is_a_conflict() {
    on_each_store(|place| {
        let size = mebibytes(1);
        let mut ours = Wal::new(size, 7, 1);
        ours.filler(300_000);
        let mut theirs = ours.clone();
        let (begin, _) = theirs.commit(9, 9);
        theirs.fill_segment(10_000);
        ours.commit(10, 10);
        ours.fill_segment(10_000);

        store(place, &theirs, 1).expect("stored");
        let before = place.object(&object_key(&theirs));
        let error = store(place, &ours, 1).expect_err("refused");
        let RepositoryError::WalConflict {
            object,
            other,
            differs_at,
            theirs: hash,
            theirs_length,
            ours: our_hash,
            ours_length,
        } = &error
        else {
            panic!("{error:?}");
        };
        assert_eq!(*object, object_key(&theirs));
        assert_eq!(other, "WAL \"000000010000000000000007\"");
        // The transaction's id stands four bytes behind the beginning of its record.
        assert_eq!(*differs_at, Some(begin + 4));
        assert_eq!(
            (*hash, *our_hash),
            (Hash::of(&theirs.bytes), Hash::of(&ours.bytes))
        );
        assert_eq!((*theirs_length, *ours_length), (1 << 20, 1 << 20));
        assert!(!error.is_damage());
        assert!(error.to_string().contains("differ from LSN 0/7"), "{error}");
        assert!(error.hint().is_some());
        assert!(place.object(&object_key(&theirs)) == before, "it stays");
    });
}

#[test]
fn of_many_senders_one_stores() {
    // Only the directory is a judge of races here.
    let (_folder, place) = local();
    let size = mebibytes(1);
    for round in 0..8 {
        let wal = segment(size, 5 + round, round);
        let start = Barrier::new(6);
        let outcomes: Vec<Stored> = thread::scope(|scope| {
            let senders: Vec<_> = (0..6)
                .map(|sender| {
                    let (place, wal, start) = (&place, &wal, &start);
                    scope.spawn(move || {
                        start.wait();
                        store(place, wal, 1 + sender).expect("stored")
                    })
                })
                .collect();
            senders
                .into_iter()
                .map(|sender| sender.join().expect("no panic"))
                .collect()
        });
        let new: Vec<_> = outcomes.iter().filter(|stored| stored.is_new()).collect();
        assert_eq!(new.len(), 1, "round {round}");
        for stored in &outcomes {
            assert_eq!(stored.info(), new[0].info());
        }
        assert!(read(&place, wal.segment(), size).expect("there") == wal.bytes);
    }
}

#[test]
fn a_damaged_object_is_told_and_never_overwritten() {
    on_each_store(|place| {
        let size = mebibytes(1);
        let wal = segment(size, 7, 1);
        store(place, &wal, 1).expect("stored");
        let key = object_key(&wal);
        let sound = place.object(&key);
        let end = sound.len();
        let mut tail = sound.clone();
        tail[end - 90] ^= 1;
        let mut length = sound.clone();
        length[end - 72] ^= 1;
        for damaged in [&tail[..], &length, &sound[..end - 1], &sound[..50], &[]] {
            place.plant(&key, damaged);
            let error = store(place, &wal, 1).expect_err("refused");
            assert!(
                error.is_damage() && error.to_string().contains(&key),
                "{error}"
            );
            assert!(place.object(&key) == damaged, "it stays");
            let error = place
                .archive
                .read_segment(wal.segment(), size, &mut Vec::new())
                .expect_err("refused");
            assert!(error.is_damage(), "{error}");
        }
        // Damage in the middle is not seen by whoever compares tails; but when they differ, the object is read.
        let mut middle = sound.clone();
        middle[end / 2] ^= 1;
        place.plant(&key, &middle);
        assert!(!store(place, &wal, 1).expect("the tail says so").is_new());
        let error = store(place, &segment(size, 7, 2), 1).expect_err("refused");
        assert!(matches!(error, RepositoryError::Damaged { .. }), "{error}");
        let error = place
            .archive
            .read_segment(wal.segment(), size, &mut Vec::new())
            .expect_err("refused");
        assert!(error.is_damage(), "{error}");
    });
}

#[test]
fn an_object_under_a_wrong_name_is_damage() {
    on_each_store(|place| {
        let size = mebibytes(1);
        let wal = segment(size, 7, 1);
        store(place, &wal, 1).expect("stored");
        let object = place.object(&object_key(&wal));
        for (timeline, number) in [(1, 8), (2, 7)] {
            let name = WalSegmentName {
                timeline: TimelineId(timeline),
                number,
            };
            place.plant(
                &format!("main/wal/{timeline:08X}/{}.zst", name.name(size)),
                &object,
            );
            let error = place
                .archive
                .read_segment(name, size, &mut Vec::new())
                .expect_err("refused");
            assert!(error.is_damage(), "{error}");
        }
        let error = place
            .archive
            .read_segment(wal.segment(), mebibytes(2), &mut Vec::new())
            .expect_err("another size");
        assert!(error.is_damage(), "{error}");
    });
}

#[test]
fn what_a_killed_sender_left_is_not_there() {
    let (folder, place) = local();
    let size = mebibytes(1);
    let wal = segment(size, 7, 1);
    let timeline = folder.path().join("repository/main/wal/00000001");
    std::fs::create_dir_all(&timeline).expect("a folder");
    let leftover = timeline.join(".tmp-0000000000000000-1-1-1");
    std::fs::write(&leftover, &wal.bytes[..70_000]).expect("written");
    let held = place.archive.holdings(size).expect("listed");
    assert!(held.timelines.is_empty());
    assert!(store(&place, &wal, 1).expect("stored").is_new());
    let held = place.archive.holdings(size).expect("listed");
    assert_eq!(held.timelines[&TimelineId(1)].segments.len(), 1);
}

#[test]
fn what_is_too_large_for_memory_is_uploaded() {
    on_each_store(|place| {
        let size = mebibytes(128);
        let wal = segment(size, 2, 1);
        let name = wal.segment();
        let stored = store(place, &wal, 1).expect("stored");
        assert!(stored.is_new() && stored.info().stored_length > 100 << 20);
        assert!(read(place, name, size).expect("there") == wal.bytes);
        assert_eq!(
            store(place, &wal, 1).expect("stored"),
            Stored::Same(stored.info().clone())
        );
        let error = store(place, &segment(size, 2, 2), 1).expect_err("refused");
        assert!(
            matches!(error, RepositoryError::WalConflict { .. }),
            "{error}"
        );
        let mut nearly = wal.clone();
        nearly.bytes.truncate(127 << 20);
        nearly.start = nearly.start + size.bytes();
        let error = store(place, &nearly, 1).expect_err("refused");
        assert!(
            matches!(error, RepositoryError::WalRefused { .. }),
            "{error}"
        );
        assert_eq!(place.keys(), [object_key(&wal)], "nothing half done");
    });
}

#[test]
fn a_large_segment_is_told_to_be_there_once_its_name_is_durable() {
    let memory = MemoryStore::bucket();
    let place = Place::new(Arc::new(memory.clone()));
    let wal = segment(mebibytes(128), 2, 1);
    assert!(store(&place, &wal, 1).expect("stored").is_new());
    memory.inject(FaultPoint::new(memory::Fault::Fail).on(&[Action::Sync]));
    store(&place, &wal, 1).expect_err("its name may be lost");
    memory.heal();
    assert!(!store(&place, &wal, 1).expect("stored").is_new());
}

#[test]
fn a_bad_server_gets_every_segment_once() {
    const BAD: &[Fault] = &[
        Fault::Unavailable,
        Fault::UnavailableAfterEffect,
        Fault::CutBefore,
        Fault::CutAfterEffect,
        Fault::CutBody,
    ];
    let (_server, proxy, place) = bucket();
    proxy.set_random(5, 25, BAD);
    let size = mebibytes(1);
    for number in 1..25 {
        let wal = segment(size, number, number);
        let stored = store(&place, &wal, 1).expect("stored");
        assert!(stored.is_new(), "segment {number}");
        // What looks random is the same object at any level, so a retry may take what is there for its own.
        let again = store(&place, &wal, 3).expect("stored");
        assert_eq!(again.info(), stored.info());
        assert!(read(&place, wal.segment(), size).expect("there") == wal.bytes);
    }
    assert!(proxy.injected() > 20, "{}", proxy.injected());
    let held = place.archive.holdings(size).expect("listed");
    let segments: &Segments = &held.timelines[&TimelineId(1)].segments;
    assert!(segments.runs().eq(std::iter::once(1..25)));
}
