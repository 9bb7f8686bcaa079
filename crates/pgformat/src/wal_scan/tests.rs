mod parts;
mod properties;
mod writer;

use super::*;
use crate::{Oid, RequiredSettings, TimestampTz, TransactionId, WalLevel};
use writer::{Writer, main_data};

const START: Lsn = Lsn(3 << 20);

fn size() -> WalSegmentSize {
    WalSegmentSize::new(1 << 20).expect("a size")
}

/// The outcome of a walk.
#[derive(Debug, PartialEq)]
struct Walked {
    events: Vec<WalEvent>,
    fed: Result<(), WalDamage>,
    complete: Result<(), WalDamage>,
    contents: WalContents,
    end: Lsn,
    switched_at: Option<Lsn>,
}

fn walk_in(bytes: &[u8], chunks: impl Fn(usize) -> usize) -> Walked {
    let mut scanner = WalScanner::new(START, size());
    let mut events = Vec::new();
    let mut fed = Ok(());
    let mut left = bytes;
    let mut number = 0;
    while !left.is_empty() && fed.is_ok() {
        let (chunk, rest) = left.split_at(chunks(number).clamp(1, left.len()));
        fed = scanner.feed(chunk, &mut |event| events.push(event));
        left = rest;
        number += 1;
    }
    if fed.is_ok() {
        assert_eq!(scanner.position(), START + bytes.len() as u64);
    } else {
        assert_eq!(scanner.feed(&[0], &mut |_| {}), fed, "it stays so");
    }
    Walked {
        events,
        complete: scanner.expect_complete(),
        end: scanner.end_of_valid(),
        switched_at: scanner.switched_at(),
        contents: scanner.take_contents(),
        fed,
    }
}

fn walk(bytes: &[u8]) -> Walked {
    walk_in(bytes, |_| usize::MAX)
}

/// Several segments with everything in them; with the events, and the end of the last record.
fn sample(major: MajorVersion) -> (Writer, Vec<WalEvent>) {
    let mut wal = Writer::new(major);
    let mut events = Vec::new();
    wal.filler(30_000);
    events.push(wal.commit(700, 1_000));
    for length in 0..2_000 {
        wal.filler(length % 700);
    }
    events.push(wal.switch());
    wal.filler(2_500_000);
    events.push(wal.commit(702, 3_000));
    wal.timeline = TimelineId(2);
    wal.filler(20_000);
    events.push(wal.commit(701, 2_000));
    (wal, events)
}

#[test]
fn records_are_followed_over_pages_segments_and_timelines() {
    for major in MajorVersion::ALL {
        let (wal, events) = sample(major);
        let walked = walk(&wal.bytes);
        assert_eq!(walked.events, events);
        assert_eq!((walked.fed, walked.complete), (Ok(()), Ok(())));
        assert_eq!(walked.end, wal.position());
        assert_eq!(walked.contents.first_record, Some(START + 40));
        assert_eq!(walked.contents.last_record, Some(wal.previous));
        assert_eq!(walked.contents.end, Some(wal.position()));
        assert_eq!(
            (walked.contents.first_time, walked.contents.last_time),
            (Some(TimestampTz(1_000)), Some(TimestampTz(3_000)))
        );
        let mut scanner = WalScanner::new(START, size());
        scanner.feed(&wal.bytes, &mut |_| {}).expect("sound");
        assert_eq!(scanner.timeline(), Some(TimelineId(2)));
        assert_eq!(scanner.major(), Some(major));
        assert_eq!(scanner.system_identifier(), Some(SystemIdentifier(77)));
    }
}

#[test]
fn a_record_from_before_is_stepped_over_and_its_end_counts() {
    let mut wal = Writer::new(MajorVersion::V17);
    wal.filler(2_500_000);
    let after = wal.position();
    let commit = wal.commit(9, 9);
    for from in [1, 2] {
        // The second and third segment, and a page in the middle of the record.
        for offset in [0, 5 * PAGE] {
            let start = from * size().bytes() + offset;
            let mut scanner = WalScanner::new(START + start, size());
            let mut events = Vec::new();
            scanner
                .feed(&wal.bytes[start as usize..], &mut |event| {
                    events.push(event)
                })
                .expect("sound");
            assert_eq!(scanner.expect_complete(), Ok(()));
            assert_eq!(events, std::slice::from_ref(&commit));
            assert_eq!(scanner.contents().first_record, Some(after));
        }
    }
    // Nothing but the end of a record: it is needed, so it is valid.
    let (tail, end) = (2 * size().bytes(), after);
    let mut scanner = WalScanner::new(START + tail, size());
    let mut only = wal.bytes[tail as usize..(end - START) as usize].to_vec();
    only.resize(size().bytes() as usize, 0);
    scanner.feed(&only, &mut |_| {}).expect("sound");
    assert_eq!(scanner.end_of_valid(), end);
    assert!(scanner.reached_end());
    assert_eq!(scanner.contents().last_record, None);
    assert_eq!(scanner.contents().end, Some(end));
}

#[test]
fn contents_are_those_since_the_last_take() {
    let mut wal = Writer::new(MajorVersion::V15);
    wal.commit(1, 10);
    let begun = wal.position();
    wal.filler(100);
    wal.commit(2, 20);
    let mut scanner = WalScanner::new(START, size());
    let (first, rest) = wal.bytes.split_at((begun - START) as usize + 60);
    scanner.feed(first, &mut |_| {}).expect("sound");
    let earlier = scanner.take_contents();
    assert_eq!((earlier.commits, earlier.end), (1, Some(begun)));
    scanner.feed(rest, &mut |_| {}).expect("sound");
    let later = scanner.take_contents();
    assert_eq!((later.commits, later.xids), (1, Some((2, 2))));
    assert_eq!(scanner.contents(), &WalContents::default());
    let mut merged = earlier;
    merged.merge(&later);
    assert_eq!(merged, walk(&wal.bytes).contents);
}

#[test]
fn what_follows_a_switch_is_not_looked_at() {
    let mut wal = Writer::new(MajorVersion::V16);
    wal.filler(100);
    let switch = wal.switch();
    let WalEvent::Switch { end, .. } = switch else {
        unreachable!()
    };
    for byte in &mut wal.bytes[(end - START) as usize..] {
        *byte = 0xAA;
    }
    let walked = walk(&wal.bytes);
    assert_eq!(walked.events, std::slice::from_ref(&switch));
    assert_eq!((walked.switched_at, walked.end), (Some(end), end));
    assert_eq!(walked.contents.switch, Some(end));
    assert_eq!(walked.complete, Ok(()));

    let commit = wal.commit(4, 4);
    let walked = walk(&wal.bytes);
    assert_eq!(walked.events, [switch, commit]);
    assert_eq!(walked.switched_at, None, "the next segment has no switch");
    assert_eq!(walked.complete, Ok(()));
}

#[test]
fn a_switch_may_be_the_last_record_of_a_segment() {
    let mut wal = Writer::new(MajorVersion::V18);
    while size().bytes() as usize - wal.bytes.len() > 2 * PAGE as usize {
        wal.filler(100);
    }
    let left = size().bytes() as usize - wal.bytes.len();
    // A page header lies between; the switch record takes 24 bytes.
    wal.filler(left - 24 - 24 - HEADER_SIZE);
    wal.switch();
    assert_eq!(wal.bytes.len() as u64, size().bytes());
    let commit = wal.commit(4, 4);
    let walked = walk(&wal.bytes);
    assert_eq!(walked.complete, Ok(()));
    assert_eq!(walked.events.last(), Some(&commit));
}

#[test]
fn what_a_crash_took_of_a_record_is_overwritten() {
    for (major, at_segment) in MajorVersion::ALL
        .into_iter()
        .flat_map(|major| [(major, false), (major, true)])
    {
        let overwrites = if major >= MajorVersion::V19 { 4 } else { 8 };
        let mut wal = Writer::new(major);
        let commit = wal.commit(3, 3);
        let valid = wal.previous;
        if at_segment {
            wal.filler(size().bytes() as usize - 3 * PAGE as usize);
        }
        let before = wal.previous;
        let begin = wal.position();
        wal.filler(50_000);
        // The crash: only the record's first page or pages reached the disk.
        let torn = if at_segment { size().bytes() } else { PAGE * 2 };
        wal.bytes.truncate(torn as usize);
        assert!(begin < wal.position());
        wal.previous = if at_segment { before } else { valid };
        wal.page_header(overwrites, 0);
        wal.record(0, 0xD0, 0, &main_data(&[0; 16]));
        let later = wal.commit(5, 5);
        let walked = walk(&wal.bytes);
        assert_eq!(walked.complete, Ok(()), "{major}");
        assert_eq!(walked.events, [commit, later.clone()]);

        // Who begins with that page knows nothing of the record.
        let mut scanner = WalScanner::new(START + torn, size());
        let mut events = Vec::new();
        scanner
            .feed(&wal.bytes[torn as usize..], &mut |event| events.push(event))
            .expect("sound");
        assert_eq!(events, [later]);
    }
}

#[test]
fn flags_mean_what_they_mean_in_that_version() {
    // 0x0004 allowed to leave out full page images up to 18.
    let mut wal = Writer::new(MajorVersion::V18);
    wal.page_header(4, 0);
    let commit = wal.commit(1, 1);
    assert_eq!(walk(&wal.bytes).events, [commit]);
    // 0x0008 is no flag since 19.
    let mut wal = Writer::new(MajorVersion::V19);
    wal.page_header(8, 0);
    wal.commit(1, 1);
    let end = walk(&wal.bytes).complete.expect_err("it ends there");
    assert_eq!(
        end.problem,
        WalProblem::Flags {
            page: START,
            flags: 0x000A
        }
    );
}

#[test]
fn the_end_of_wal_is_no_damage_but_no_whole_segment_either() {
    let mut wal = Writer::new(MajorVersion::V14);
    wal.fill_segment();
    let whole = wal.bytes.clone();
    assert_eq!(walk(&whole).complete, Ok(()));
    let ends: Vec<usize> = wal
        .records
        .iter()
        .filter_map(|record| record.last().map(|piece| piece.end))
        .collect();
    // What a recycled file held before: the same, of another segment.
    let mut older = Writer::new(MajorVersion::V14);
    older.start = START + size().bytes();
    older.fill_segment();
    for cut in (0..whole.len()).step_by(997) {
        for behind in [&vec![0; whole.len()], &older.bytes] {
            let bytes = [&whole[..cut], &behind[cut..]].concat();
            let walked = walk(&bytes);
            assert_eq!(walked.fed, Ok(()), "cut at {cut}");
            let end = walked.complete.expect_err("not whole");
            let valid = ends.iter().rev().find(|end| **end <= cut);
            let valid = START + valid.map_or(0, |end| end.next_multiple_of(8) as u64);
            assert_eq!(walked.end, valid, "cut at {cut}: {end}");
            assert!(end.lsn <= START + cut.next_multiple_of(8) as u64 && end.goes_on.is_none());
        }
    }
    // Bytes that simply stop are no end.
    assert_eq!(walk(&whole[..5_000]).complete, Ok(()));
}

#[test]
fn damage_in_the_middle_is_told_as_soon_as_a_later_page_proves_it() {
    let mut wal = Writer::new(MajorVersion::V17);
    wal.fill_segment();
    let record = &wal.records[500][0];
    let lsn = START + record.start as u64;
    let page = Lsn((lsn.0 / PAGE + 1) * PAGE);
    for (at, problem) in [
        (20, WalProblem::Checksum { length: 200 }),
        (100, WalProblem::Checksum { length: 200 }),
    ] {
        let mut bytes = wal.bytes.clone();
        bytes[record.start + at] ^= 4;
        let walked = walk(&bytes);
        let damage = WalDamage {
            lsn,
            problem,
            goes_on: Some(page),
        };
        assert_eq!(walked.fed, Err(damage.clone()));
        assert_eq!(walked.end, lsn);
        let expected = format!(
            "the WAL is damaged at {lsn}: the checksum of a record of 200 bytes is wrong; WAL goes on at {page}"
        );
        assert_eq!(damage.to_string(), expected);
    }
    // A page of zeros.
    let mut bytes = wal.bytes.clone();
    let hole = 20 * PAGE as usize;
    bytes[hole..hole + PAGE as usize].fill(0);
    let damage = walk(&bytes).fed.expect_err("a hole");
    assert_eq!(damage.problem, WalProblem::Zeros);
    assert_eq!(damage.goes_on, Some(START + 21 * PAGE));
    // On the last page, only the caller can know.
    let last = wal.records.last().expect("records")[0].start;
    let mut bytes = wal.bytes.clone();
    bytes[last + 30] ^= 1;
    let walked = walk(&bytes);
    assert_eq!(walked.fed, Ok(()));
    let damage = walked.complete.expect_err("damaged");
    assert!(matches!(damage.problem, WalProblem::Checksum { .. }));
}

#[test]
fn page_headers_that_do_not_belong_there_end_the_walk() {
    let mut wal = Writer::new(MajorVersion::V17);
    wal.timeline = TimelineId(3);
    wal.fill_segment();
    wal.fill_segment();
    wal.filler(100);
    let page = 4 * PAGE as usize;
    let segment = size().bytes() as usize;
    let at = |offset: usize| START + offset as u64;
    let magic = WalProblem::Magic {
        page: at(page),
        magic: 0xD110,
    };
    let cases: [(usize, &[u8], WalProblem); 7] = [
        (page, &[0x10, 0xD1], magic),
        (
            page + 2,
            &[0x10],
            WalProblem::Flags {
                page: at(page),
                flags: 0x10 | u16::from(wal.bytes[page + 2] & 1),
            },
        ),
        (
            page + 4,
            &[2],
            WalProblem::PageTimeline {
                page: at(page),
                timeline: TimelineId(2),
            },
        ),
        (
            page + 12,
            &[9],
            WalProblem::PageAddress {
                page: at(page),
                found: Lsn(at(page).0 | 9 << 32),
            },
        ),
        (
            segment + 24,
            &[78],
            WalProblem::Cluster {
                page: at(segment),
                system_identifier: SystemIdentifier(78),
            },
        ),
        (
            segment + 34,
            &[0x20],
            WalProblem::Sizes {
                page: at(segment),
                segment_size: 0x20_0000,
                page_size: 8192,
            },
        ),
        (
            segment + 2,
            &[0],
            WalProblem::Flags {
                page: at(segment),
                flags: 0,
            },
        ),
    ];
    for (offset, change, problem) in cases {
        let mut bytes = wal.bytes.clone();
        bytes[offset..offset + change.len()].copy_from_slice(change);
        let damage = walk(&bytes).complete.expect_err("it ends there");
        assert_eq!(damage.problem, problem, "{offset}");
    }
    let inside = WalScanner::new(START + 24, size());
    assert!(inside.reached_end(), "not at the beginning of a page");
}

#[test]
fn lists_before_a_prepared_transactions_id_are_stepped_over() {
    for major in MajorVersion::ALL {
        let stats = if major >= MajorVersion::V18 { 16 } else { 12 };
        for lists in 0_u32..16 {
            for (info, manager_info) in [(0x30, "commit"), (0x40, "abort")] {
                let mut data = 5_555_i64.to_le_bytes().to_vec();
                let flags = 1 << 4 | 1 | (lists & 7) << 1 | (lists >> 3) << 8;
                data.extend_from_slice(&(flags | 1 << 31_u32).to_le_bytes());
                data.extend_from_slice(&[9; 8]);
                for (flag, item) in [(1 << 1, 4), (1 << 2, 12), (1 << 8, stats), (1 << 3, 16)] {
                    if flags & flag != 0 {
                        data.extend_from_slice(&7_u32.to_le_bytes());
                        data.extend_from_slice(&vec![8; 7 * item]);
                    }
                }
                data.extend_from_slice(&4_242_u32.to_le_bytes());
                data.extend_from_slice(b"a name, and more");
                // An origin and a top-level transaction stand before the main data.
                let body = [&[253, 1, 0, 252, 1, 2, 3, 4][..], &main_data(&data)].concat();
                let mut wal = Writer::new(major);
                wal.filler(7_900);
                let (begin, end) = wal.record(1, info | 0x80, 99, &body);
                let (xid, time) = (TransactionId(4_242), TimestampTz(5_555));
                let expected = match manager_info {
                    "commit" => WalEvent::Commit {
                        xid,
                        time,
                        begin,
                        end,
                    },
                    _ => WalEvent::Abort {
                        xid,
                        time,
                        begin,
                        end,
                    },
                };
                for chunk in [1, 3, usize::MAX] {
                    let walked = walk_in(&wal.bytes, |_| chunk);
                    assert_eq!(
                        walked.events,
                        std::slice::from_ref(&expected),
                        "{major} {lists}"
                    );
                }
            }
        }
    }
}

#[test]
fn restore_points_and_checkpoints_are_told() {
    for major in MajorVersion::ALL {
        let mut wal = Writer::new(major);
        let mut point = 7_i64.to_le_bytes().to_vec();
        point.extend_from_slice("Größe".as_bytes());
        point.resize(72, 0);
        let (begin, end) = wal.record(0, 0x70, 0, &main_data(&point));
        let mut checkpoint = vec![0xFF; 96];
        let time = if major >= MajorVersion::V19 { 72 } else { 64 };
        checkpoint[..8].copy_from_slice(&0x123_u64.to_le_bytes());
        checkpoint[time..time + 8].copy_from_slice(&946_684_801_u64.to_le_bytes());
        let shutdown = wal.record(0, 0x00, 0, &main_data(&checkpoint));
        let online = wal.record(0, 0x10, 0, &main_data(&checkpoint));
        let checkpoint = |(begin, end), shutdown| WalEvent::Checkpoint {
            time: TimestampTz(1_000_000),
            redo: Lsn(0x123),
            shutdown,
            begin,
            end,
        };
        let walked = walk(&wal.bytes);
        assert_eq!(
            walked.events,
            [
                WalEvent::RestorePoint {
                    name: "Größe".to_owned(),
                    time: TimestampTz(7),
                    begin,
                    end
                },
                checkpoint(shutdown, true),
                checkpoint(online, false),
            ],
            "{major}"
        );
        assert_eq!(walked.contents.restore_points[0].lsn, end);
        assert_eq!(
            walked.contents.checkpoint_time,
            Some(TimestampTz(1_000_000))
        );
    }
}

#[test]
fn what_recovery_needs_beyond_the_files_of_a_backup_is_told() {
    for major in MajorVersion::ALL {
        let mut wal = Writer::new(major);
        let numbers = |numbers: &[u32]| -> Vec<u8> {
            numbers
                .iter()
                .flat_map(|number| number.to_le_bytes())
                .collect()
        };
        let mut records = vec![
            (
                0,
                0x60,
                [numbers(&[80, 8, 10, 3, 64, 0]), vec![1, 0]].concat(),
            ),
            (
                0,
                0x90,
                [7_i64.to_le_bytes().to_vec(), numbers(&[4, 3, 1])].concat(),
            ),
            (
                5,
                0x00,
                [numbers(&[16_385]), b"/srv/far\0".to_vec()].concat(),
            ),
            (5, 0x00, [numbers(&[16_386]), vec![0]].concat()),
            (5, 0x10, numbers(&[16_385])),
            (4, 0x00, numbers(&[5, 1663, 4, 1664])),
        ];
        if major == MajorVersion::V14 {
            records.push((4, 0x10, numbers(&[5, 2, 1663, 16_385])));
        } else {
            records.push((4, 0x20, numbers(&[5, 2, 1663, 16_385])));
            records.push((4, 0x10, numbers(&[6, 1663])));
        }
        records.push((130, 0x00, vec![1]));
        let bounds: Vec<(Lsn, Lsn)> = records
            .iter()
            .map(|(manager, info, data)| wal.record(*manager, *info, 0, &main_data(data)))
            .collect();
        let walked = walk_in(&wal.bytes, |number| [1, 40, 3][number % 3]);
        let of = |at: usize| bounds[at];
        let mut expected = vec![
            {
                let (begin, end) = of(0);
                WalEvent::ParameterChange {
                    settings: RequiredSettings {
                        max_connections: 80,
                        max_worker_processes: 8,
                        max_wal_senders: 10,
                        max_prepared_transactions: 3,
                        max_locks_per_transaction: 64,
                    },
                    wal_level: Some(WalLevel::Minimal),
                    begin,
                    end,
                }
            },
            {
                let (begin, end) = of(1);
                WalEvent::EndOfRecovery {
                    timeline: TimelineId(4),
                    previous_timeline: TimelineId(3),
                    time: TimestampTz(7),
                    begin,
                    end,
                }
            },
        ];
        for (at, tablespace, location) in [(2, 16_385, &b"/srv/far"[..]), (3, 16_386, b"")] {
            let (begin, end) = of(at);
            expected.push(WalEvent::TablespaceCreate {
                tablespace: Oid(tablespace),
                location: location.to_vec(),
                begin,
                end,
            });
        }
        let (begin, end) = of(4);
        expected.push(WalEvent::TablespaceDrop {
            tablespace: Oid(16_385),
            begin,
            end,
        });
        let (begin, end) = of(5);
        expected.push(WalEvent::DatabaseCopy {
            database: Oid(5),
            tablespace: Oid(1663),
            source_database: Oid(4),
            source_tablespace: Oid(1664),
            begin,
            end,
        });
        let (begin, end) = of(6);
        expected.push(WalEvent::DatabaseDrop {
            database: Oid(5),
            tablespaces: vec![Oid(1663), Oid(16_385)],
            begin,
            end,
        });
        if major != MajorVersion::V14 {
            let (begin, end) = of(7);
            expected.push(WalEvent::DatabaseCreate {
                database: Oid(6),
                tablespace: Oid(1663),
                begin,
                end,
            });
        }
        assert_eq!(walked.events, expected, "{major}");
        assert!(walked.contents.has_requirements);
        assert_eq!(
            walked.contents.custom_manager_numbers().collect::<Vec<_>>(),
            [130]
        );
        for (event, (begin, end)) in walked.events.iter().zip(&bounds) {
            assert_eq!((event.begin(), event.end()), (*begin, *end));
        }
    }
}
