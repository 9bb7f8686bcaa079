//! The last WAL segment of a timeline, which a promotion left unfinished.

use leeward_pgformat::{Lsn, TimelineId, WalScanner, WalSegmentSize};
use leeward_repository::RepositoryError;
use leeward_repository::wal_archive::{Piece, StoredPartial};

use crate::{Place, local, mebibytes, on_each_store};
use leeward_fixtures::{SYSTEM_IDENTIFIER, Wal, segment};

fn store(place: &Place, wal: &Wal, bytes: &[u8]) -> Result<StoredPartial, RepositoryError> {
    place.archive.store_partial(
        wal.segment(),
        wal.size,
        SYSTEM_IDENTIFIER,
        &mut &bytes[..],
        1,
    )
}

/// A segment in which WAL ends somewhere behind `length` bytes, with a commit after each 70 kB: the WAL alone, and the file,
/// whose rest is of another segment.
fn unfinished(size: WalSegmentSize, length: usize) -> (Wal, Vec<u8>) {
    let mut wal = Wal::new(size, 7, 1);
    let mut xid = 700;
    while wal.bytes.len() < length {
        wal.filler(length.min(70_000));
        wal.commit(xid, i64::from(xid));
        xid += 1;
    }
    let mut file = segment(size, 3, 9).bytes;
    file[..wal.bytes.len()].copy_from_slice(&wal.bytes);
    (wal, file)
}

#[track_caller]
fn check_read(place: &Place, wal: &Wal) {
    let mut bytes = Vec::new();
    let end = place
        .archive
        .read_pieces(wal.segment(), wal.size, &mut bytes)
        .expect("read");
    assert_eq!(end, Some(wal.end()));
    assert!(bytes == wal.bytes);
}

fn piece(place: &Place, wal: &Wal, begin: u64, bytes: &[u8]) {
    let contents = Default::default();
    let piece = Piece {
        timeline: TimelineId(1),
        begin: wal.start + begin,
        bytes,
        contents: &contents,
        segment_size: wal.size,
        system_identifier: SYSTEM_IDENTIFIER,
    };
    place.archive.store_piece(&piece, 1).expect("stored");
}

fn commits(place: &Place, wal: &Wal) -> u64 {
    let pieces = place.archive.pieces(wal.segment(), wal.size);
    pieces
        .expect("listed")
        .iter()
        .map(|range| {
            let contents = place.archive.piece_contents(TimelineId(1), range, wal.size);
            contents.expect("read").expect("there").commits
        })
        .sum()
}

#[test]
fn a_partial_segment_is_stored_up_to_its_last_record() {
    on_each_store(|place| {
        for (size, length) in [(1, 300_000), (16, 9 << 20), (64, 50 << 20)] {
            let (wal, file) = unfinished(mebibytes(size), length);
            let stored = store(place, &wal, &file).expect("stored");
            assert_eq!(
                stored,
                StoredPartial {
                    end: wal.end(),
                    new_bytes: wal.bytes.len() as u64
                }
            );
            check_read(place, &wal);
            let mut scanner = WalScanner::new(wal.start, wal.size);
            scanner.feed(&wal.bytes, &mut |_| {}).expect("sound");
            assert!(scanner.contents().commits > 4);
            assert_eq!(commits(place, &wal), scanner.contents().commits);
            let before = place.keys();
            let again = store(place, &wal, &file).expect("stored");
            assert_eq!((again.end, again.new_bytes), (wal.end(), 0));
            assert_eq!(place.keys(), before);
            for key in before {
                place.store.delete(&crate::key(&key)).expect("deleted");
            }
        }
    });
}

#[test]
fn what_the_archive_has_already_is_compared() {
    on_each_store(|place| {
        let (wal, file) = unfinished(mebibytes(1), 300_000);
        let length = wal.bytes.len() as u64;
        // A receiver was here, and came less far.
        piece(place, &wal, 0, &wal.bytes[..100_001]);
        let stored = store(place, &wal, &file).expect("stored");
        assert_eq!(
            (stored.end, stored.new_bytes),
            (wal.end(), length - 100_001)
        );
        check_read(place, &wal);

        // Another standby was promoted earlier: it has less, and something else behind.
        let (short, short_file) = unfinished(mebibytes(1), 200_000);
        assert!(short.bytes.len() < wal.bytes.len() && wal.bytes.starts_with(&short.bytes));
        let stored = store(place, &short, &short_file).expect("stored");
        assert_eq!((stored.end, stored.new_bytes), (short.end(), 0));
        check_read(place, &wal);

        // And one that has other WAL.
        let mut other = Wal::new(mebibytes(1), 7, 1);
        other.filler(70_000);
        let (begin, _) = other.commit(800, 800);
        let before = place.keys();
        let error = store(place, &other, &other.bytes).expect_err("refused");
        let RepositoryError::WalConflict {
            object, differs_at, ..
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!(*differs_at, Some(begin + 4));
        assert!(object.contains("/000000010000000000000007/"), "{object}");
        assert_eq!(place.keys(), before);
    });
}

#[test]
fn the_whole_segment_may_be_there() {
    let (_folder, place) = local();
    let (mut wal, file) = unfinished(mebibytes(1), 300_000);
    let end = wal.end();
    wal.fill_segment(1_000);
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
    let stored = store(&place, &wal, &file).expect("stored");
    assert_eq!((stored.end, stored.new_bytes), (end, 0));
    let mut other = Wal::new(wal.size, 7, 2);
    other.filler(5_000);
    let error = store(&place, &other, &other.bytes).expect_err("refused");
    assert!(
        matches!(error, RepositoryError::WalConflict { .. }),
        "{error}"
    );
    assert_eq!(place.keys().len(), 1);
}

#[test]
fn what_is_no_beginning_of_a_segment() {
    let (_folder, place) = local();
    let (wal, file) = unfinished(mebibytes(1), 300_000);
    let mut header_only = file.clone();
    header_only[40..].fill(0);
    let mut longer = file.clone();
    longer.extend_from_slice(&[0; 8192]);
    for (bytes, says) in [
        (&header_only[..], "not one record"),
        (&longer, "more bytes"),
        (&file[..20], "only 20 bytes"),
        (&vec![0; 1 << 20], "all zeros"),
    ] {
        let error = store(&place, &wal, bytes).expect_err("refused");
        assert!(
            matches!(error, RepositoryError::WalRefused { .. }) && error.to_string().contains(says),
            "{error}"
        );
    }
    assert_eq!(place.keys(), Vec::<String>::new());

    let mut damaged = file;
    damaged[100_000] ^= 1;
    let error = store(&place, &wal, &damaged).expect_err("refused");
    let RepositoryError::WalDamaged { lsn, .. } = &error else {
        panic!("{error}");
    };
    assert!(
        *lsn <= Lsn(wal.start.0 + 100_000) && *lsn > wal.start,
        "{error}"
    );
}
