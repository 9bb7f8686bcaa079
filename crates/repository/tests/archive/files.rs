//! History files, gaps, and what a listing tells.

use std::io::Read;

use leeward_pgformat::{Lsn, TimelineId};
use leeward_repository::RepositoryError;
use leeward_repository::wal_archive::{Gap, Stored, TimelineHoldings};
use leeward_repository::wal_object::{WalFacts, write_wal_object};

use crate::{key, local, mebibytes, on_each_store};
use leeward_fixtures::{SYSTEM_IDENTIFIER, segment};

const HISTORY: &[u8] = b"1\t0/7000110\tno recovery target specified\n";
const BACKUP: &str = "000000010000000000000004.00000028.backup";
const BACKUP_FILE: &[u8] = b"START WAL LOCATION: 0/4000028 (file 000000010000000000000004)\n";

#[test]
fn history_files_come_back() {
    on_each_store(|place| {
        let archive = &place.archive;
        assert_eq!(archive.read_file("00000002.history").expect("read"), None);

        let stored = archive
            .store_file("00000002.history", SYSTEM_IDENTIFIER, HISTORY)
            .expect("stored");
        assert!(stored.is_new());
        assert_eq!(
            archive
                .store_file("00000002.history", SYSTEM_IDENTIFIER, HISTORY)
                .expect("stored"),
            Stored::Same(stored.info().clone())
        );
        let read = archive.read_file_and_owner("00000002.history");
        let (text, owner) = read.expect("read").expect("there");
        assert_eq!((text.as_slice(), owner), (HISTORY, SYSTEM_IDENTIFIER));

        // Two standbys were promoted, and took the same number.
        let other = b"1\t0/7000500\tno recovery target specified\n";
        let error = archive
            .store_file("00000002.history", SYSTEM_IDENTIFIER, other)
            .expect_err("refused");
        let RepositoryError::WalConflict { object, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(object, "main/wal/00000002/00000002.history.zst");
        assert_eq!(
            archive
                .read_file("00000002.history")
                .expect("read")
                .as_deref(),
            Some(HISTORY)
        );

        archive
            .store_file(BACKUP, SYSTEM_IDENTIFIER, BACKUP_FILE)
            .expect("stored");
        assert_eq!(
            archive.read_file(BACKUP).expect("read").as_deref(),
            Some(BACKUP_FILE)
        );
    });
}

#[test]
fn other_files_are_refused() {
    let (_folder, place) = local();
    for (name, content) in [
        ("000000010000000000000004", HISTORY),
        ("000000010000000000000004.partial", HISTORY),
        ("2.history", HISTORY),
        ("../00000002.history", HISTORY),
        ("00000002.history", &b"2\t0/7000110\tof itself\n"[..]),
        ("00000002.history", b"nonsense\n"),
        ("00000002.history", &vec![b'#'; (1 << 20) + 1]),
        (BACKUP, HISTORY),
    ] {
        let error = place
            .archive
            .store_file(name, SYSTEM_IDENTIFIER, content)
            .expect_err("refused");
        assert!(
            matches!(error, RepositoryError::WalRefused { .. }),
            "{error}"
        );
    }
    assert!(place.archive.read_file("x").is_err());
    assert_eq!(place.keys(), Vec::<String>::new());
}

#[test]
fn a_file_that_is_too_long_is_not_read_into_memory() {
    let (_folder, place) = local();
    let facts = WalFacts {
        system_identifier: SYSTEM_IDENTIFIER,
        timeline: TimelineId(2),
    };
    write_wal_object(
        &*place.store,
        &key("main/wal/00000002/00000002.history.zst"),
        facts,
        &mut std::io::repeat(b'#').take(1 << 30),
        1,
    )
    .expect("planted");
    let error = place
        .archive
        .read_file("00000002.history")
        .expect_err("too long");
    assert!(
        error.is_damage() && error.to_string().contains("1073741824 bytes"),
        "{error}"
    );
}

#[test]
fn gaps_are_remembered() {
    on_each_store(|place| {
        let archive = &place.archive;
        let gap = Gap {
            timeline: TimelineId(3),
            begin: Lsn(0x16_B374_D848),
            end: Lsn(0x17_0000_0000),
            found_at: "2026-11-22T23:30:00Z".parse().expect("a moment"),
            reason: "slot \"leeward_wal\" lost its WAL".to_owned(),
        };
        archive.record_gap(&gap).expect("recorded");
        let later = Gap {
            reason: "again".to_owned(),
            ..gap.clone()
        };
        archive.record_gap(&later).expect("recorded");
        let held = archive
            .timeline_holdings(TimelineId(3), mebibytes(16))
            .expect("listed");
        let range = gap.begin..gap.end;
        assert_eq!(held.gaps, std::slice::from_ref(&range));
        assert_eq!(archive.gap(TimelineId(3), &range).expect("read"), gap);

        let empty = Gap {
            end: gap.begin,
            ..gap.clone()
        };
        archive.record_gap(&empty).expect_err("empty");

        let key = "main/wal/00000003/00000016B374D848-0000001700000000.gap.json";
        let text = place.object(key);
        assert!(text.starts_with(b"{\n  \"format_version\": 1,\n"));
        let other = "main/wal/00000003/00000016B374D848-0000001700000001.gap.json";
        place.plant(other, &text);
        let error = archive
            .gap(TimelineId(3), &(gap.begin..gap.end + 1))
            .expect_err("another one's record");
        assert!(error.is_damage(), "{error}");
        let changed = String::from_utf8(text)
            .expect("text")
            .replace("lost", "kept");
        place.plant(key, changed.as_bytes());
        assert!(
            archive
                .gap(TimelineId(3), &range)
                .expect_err("changed")
                .is_damage()
        );
    });
}

#[test]
fn one_listing_tells_everything_and_ignores_strangers() {
    on_each_store(|place| {
        let archive = &place.archive;
        let size = mebibytes(1);
        assert!(archive.holdings(size).expect("listed").timelines.is_empty());
        for number in [5, 6, 8] {
            let wal = segment(size, number, number);
            archive
                .store_segment(
                    wal.segment(),
                    size,
                    SYSTEM_IDENTIFIER,
                    &mut &wal.bytes[..],
                    1,
                )
                .expect("stored");
        }
        archive
            .store_file("00000002.history", SYSTEM_IDENTIFIER, HISTORY)
            .expect("stored");
        archive
            .store_file(BACKUP, SYSTEM_IDENTIFIER, BACKUP_FILE)
            .expect("stored");
        for stranger in [
            "main/wal/00000001/README",
            "main/wal/00000001/00000001000000000000000A.gz",
            "main/wal/0000000A/00000001000000000000000A.zst",
            "main/wal/x.zst",
            "other/wal/00000001/00000001000000000000000A.zst",
            "main/backups/20261122T023000Z-k7q2/wal/00000001000000000000000A.zst",
        ] {
            place.plant(stranger, b"x");
        }
        let held = archive.holdings(size).expect("listed");
        assert_eq!(
            held.timelines.keys().copied().collect::<Vec<_>>(),
            [TimelineId(1), TimelineId(2)]
        );
        let first = &held.timelines[&TimelineId(1)];
        assert_eq!(first.segments.runs().collect::<Vec<_>>(), [5..7, 8..9]);
        assert_eq!(first.backup_files, [BACKUP]);
        assert!(!first.history && first.pieces.is_empty() && first.gaps.is_empty());
        let second = &held.timelines[&TimelineId(2)];
        assert!(second.history && second.segments.is_empty());
        for timeline in [1, 2, 3].map(TimelineId) {
            let alone = archive.timeline_holdings(timeline, size).expect("listed");
            let expected = held.timelines.get(&timeline).cloned();
            assert_eq!(
                alone,
                expected.unwrap_or_else(|| TimelineHoldings::empty(timeline))
            );
        }
    });
}
