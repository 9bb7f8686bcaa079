//! Records that lead from one WAL segment into the next, put together from the summaries of segments walked alone.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::*;
use super::writer::{Writer, main_data};
use super::{START, size};
use crate::{WalContents, WalEvent};

/// The summary of each segment, walked alone.
fn alone(bytes: &[u8]) -> Vec<WalContents> {
    let segment = size().bytes() as usize;
    bytes
        .chunks(segment)
        .enumerate()
        .map(|(number, bytes)| {
            let mut scanner = WalScanner::new(START + (number * segment) as u64, size());
            scanner.feed(bytes, &mut |_| {}).expect("sound");
            scanner.take_contents()
        })
        .collect()
}

/// What lies across the borders, joined; and whether the chain of predecessors holds.
fn across(summaries: &[WalContents], major: MajorVersion) -> Vec<(Lsn, JoinedRecord)> {
    let mut joined = Vec::new();
    let mut previous = None;
    let mut open: Option<(Lsn, RecordPart, Vec<RecordPart>)> = None;
    for (number, summary) in summaries.iter().enumerate() {
        let segment = START + number as u64 * size().bytes();
        if let Some((begin, part, mut tails)) = open.take() {
            tails.push(summary.tail.clone().expect("it goes on"));
            match join(begin, &part, &tails, segment, size(), major).expect("sound") {
                Some(record) => {
                    assert!(previous.is_none_or(|previous| record.previous == previous));
                    joined.push((begin, record));
                    previous = Some(begin);
                }
                None => open = Some((begin, part, tails)),
            }
        } else {
            assert_eq!(summary.tail, None);
        }
        if summary.first_record.is_some() && previous.is_some() {
            assert_eq!(summary.previous_record, previous, "segment {number}");
        }
        previous = summary.last_record.or(previous);
        if let Some((begin, part)) = &summary.open {
            open = Some((*begin, part.clone(), Vec::new()));
        }
    }
    assert_eq!(open, None);
    joined
}

fn restore_point(name: &str) -> Vec<u8> {
    let mut point = 7_i64.to_le_bytes().to_vec();
    point.extend_from_slice(name.as_bytes());
    point.resize(72, 0);
    main_data(&point)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn joined_they_say_what_one_walk_says(
        lengths in vec(prop_oneof![2_usize..300, 0_usize..30_000, 900_000_usize..2_400_000], 1..30),
        gap in 0_usize..40,
        kind in 0..4,
    ) {
        let major = MajorVersion::V17;
        let mut wal = Writer::new(major);
        for length in &lengths {
            wal.filler(*length);
        }
        // Up to shortly before a border.
        let segment = size().bytes() as usize;
        let border = wal.bytes.len().next_multiple_of(segment).max(segment);
        while border - wal.bytes.len() > 9_000 {
            wal.filler(1_000);
        }
        while border - wal.bytes.len() > 8 * gap + 40 {
            let room = border - wal.bytes.len() - 8 * gap;
            wal.filler(room.saturating_sub(24 + 32).min(200));
        }
        match kind {
            0 => drop(wal.commit(4_000, 99)),
            1 => drop(wal.record(0, 0x70, 0, &restore_point("here"))),
            2 => drop(wal.record(5, 0x00, 0, &main_data(&[&[1, 0, 0, 0][..], &[b'/'; 900], &[0]].concat()))),
            _ => drop(wal.filler(100)),
        }
        wal.filler(100);
        wal.commit(4_001, 100);

        let mut scanner = WalScanner::new(START, size());
        let mut events = Vec::new();
        let mut ends = Vec::new();
        scanner.feed(&wal.bytes, &mut |event| { ends.push(event.end()); events.push(event); }).expect("sound");
        let mut told = Vec::new();
        for (number, bytes) in wal.bytes.chunks(segment).enumerate() {
            let mut scanner = WalScanner::new(START + (number * segment) as u64, size());
            scanner.feed(bytes, &mut |event| told.push(event)).expect("sound");
        }
        for (begin, record) in across(&alone(&wal.bytes), major) {
            if record.is_cut {
                let whole: Vec<&WalEvent> = events.iter().filter(|event| event.begin() == begin).collect();
                let long = matches!(whole[..], [WalEvent::TablespaceCreate { .. }]);
                prop_assert!(long);
                told.push(whole[0].clone());
            }
            told.extend(record.event);
        }
        told.sort_by_key(WalEvent::begin);
        prop_assert_eq!(told, events);
    }

    #[test]
    fn a_flipped_bit_in_either_part_is_noticed(at in 0_usize..60_000, bit in 0..8_u8) {
        let major = MajorVersion::V16;
        let mut wal = Writer::new(major);
        wal.filler(size().bytes() as usize - 30_000);
        wal.filler(60_000);
        wal.filler(10);
        let pieces: Vec<usize> = wal.records[1].iter().cloned().flatten().collect();
        let place = pieces[at % pieces.len()];
        wal.bytes[place] ^= 1 << bit;
        let segment = size().bytes() as usize;
        let mut summaries = Vec::new();
        for (number, bytes) in wal.bytes.chunks(segment).enumerate() {
            let mut scanner = WalScanner::new(START + (number * segment) as u64, size());
            if scanner.feed(bytes, &mut |_| {}).is_err() || scanner.reached_end() {
                // Its length, or its predecessor.
                return Ok(());
            }
            summaries.push(scanner.take_contents());
        }
        let (begin, open) = summaries[0].open.clone().expect("it goes on");
        let tail = summaries[1].tail.clone().expect("it goes on");
        let joined = join(begin, &open, &[tail], START + segment as u64, size(), major);
        prop_assert!(joined.is_err(), "{joined:?}");
    }
}
