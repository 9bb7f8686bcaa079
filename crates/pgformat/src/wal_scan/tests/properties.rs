//! What holds for any WAL, and for any bytes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::*;
use super::writer::Writer;
use super::{START, size, walk, walk_in};

fn writer_of(lengths: &[usize]) -> (Writer, Vec<WalEvent>) {
    let mut wal = Writer::new(MajorVersion::V16);
    let mut events = Vec::new();
    for (number, length) in lengths.iter().enumerate() {
        match length % 16 {
            0 => events.push(wal.commit(number as u32, *length as i64)),
            1 => events.push(wal.switch()),
            _ => drop(wal.filler(*length)),
        }
    }
    (wal, events)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn chunks_never_matter(
        lengths in vec(prop_oneof![0_usize..300, 0_usize..30_000], 1..60),
        chunks in vec(prop_oneof![1_usize..40, 1_usize..20_000], 1..20),
        cut in 0_usize..2_000_000,
    ) {
        let (wal, events) = writer_of(&lengths);
        let whole = walk(&wal.bytes);
        prop_assert_eq!(&whole.events, &events);
        prop_assert_eq!(&whole.complete, &Ok(()));
        let chunked = walk_in(&wal.bytes, |number| chunks[number % chunks.len()]);
        prop_assert_eq!(chunked, whole);
        // The same with a hole in it.
        let mut bytes = wal.bytes;
        let cut = cut % bytes.len();
        let until = bytes.len().min(cut + 9_000);
        bytes[cut..until].fill(0);
        let mut whole = walk(&bytes);
        let mut chunked = walk_in(&bytes, |number| chunks[number % chunks.len()]);
        if whole.fed.is_err() {
            // Which chunk brought the error does not matter.
            (whole.complete, chunked.complete) = (Ok(()), Ok(()));
        }
        prop_assert_eq!(chunked, whole);
    }

    #[test]
    fn a_flipped_bit_in_a_record_is_noticed(
        lengths in vec(prop_oneof![2_usize..300, 0_usize..30_000], 1..60),
        record: prop::sample::Index,
        at: prop::sample::Index,
        bit in 0..8_u8,
    ) {
        let (wal, _) = writer_of(&lengths);
        let pieces: Vec<usize> = record.get(&wal.records).iter().cloned().flatten().collect();
        let at = *at.get(&pieces);
        let mut bytes = wal.bytes;
        bytes[at] ^= 1 << bit;
        let walked = walk(&bytes);
        // It may seem that there is more of a record to come, at the very end; otherwise it is noticed.
        let noticed = walked.fed.is_err() || walked.complete.is_err();
        prop_assert!(noticed || walked.end <= START + at as u64, "byte {}", at);
    }

    #[test]
    fn any_bytes_are_walked(bytes in vec(any::<u8>(), 0..20_000), from in 0_u64..40) {
        let mut scanner = WalScanner::new(Lsn(from * 4096), size());
        let _ = scanner.feed(&bytes, &mut |_| {});
        prop_assert!(scanner.end_of_valid() <= scanner.position().max(scanner.start()));
    }

    #[test]
    fn damaged_wal_is_walked(
        lengths in vec(0_usize..3_000, 1..40),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let (wal, _) = writer_of(&lengths);
        let mut bytes = wal.bytes;
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let walked = walk(&bytes);
        prop_assert_eq!(walk_in(&bytes, |_| 7).end, walked.end);
    }
}
