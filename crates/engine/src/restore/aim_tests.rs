//! Verdicts held against a server in miniature, which replays record after record and stops by the rules of
//! `PerformWalRecovery` (src/backend/access/transam/xlogrecovery.c).

use std::collections::BTreeMap;

use leeward_pgformat::{TimelineId, WalSegmentSize};
use proptest::prelude::*;

use super::*;
use crate::wal::path::tests::{World, backup, coverage};

/// The smallest segments there are.
fn size() -> WalSegmentSize {
    WalSegmentSize::new(1 << 20).expect("a size")
}

const SEGMENT: u64 = 1 << 20;
const FIRST: u64 = 3;

#[derive(Clone, Debug)]
enum What {
    Commit(u32, i64),
    Abort(u32, i64),
    Point(String, i64),
    Other,
}

#[derive(Clone, Debug)]
struct Record {
    begin: Lsn,
    end: Lsn,
    what: What,
}

impl Record {
    fn event(&self) -> Option<WalEvent> {
        let (begin, end) = (self.begin, self.end);
        Some(match &self.what {
            What::Commit(xid, time) => WalEvent::Commit {
                xid: TransactionId(*xid),
                time: TimestampTz(*time),
                begin,
                end,
            },
            What::Abort(xid, time) => WalEvent::Abort {
                xid: TransactionId(*xid),
                time: TimestampTz(*time),
                begin,
                end,
            },
            What::Point(name, time) => WalEvent::RestorePoint {
                name: name.clone(),
                time: TimestampTz(*time),
                begin,
                end,
            },
            What::Other => return None,
        })
    }
}

/// The log of a cluster, with what is held of it.
#[derive(Debug)]
struct Log {
    records: Vec<Record>,
}

impl Witness for Log {
    /// As senders see it, each segment by itself: a record that leads from one into the next is whole in neither.
    fn contents(&self, steps: &[&Step]) -> Result<Vec<WalContents>> {
        Ok(steps
            .iter()
            .map(|step| {
                let begin = step.name().start_lsn(size());
                let mut contents = WalContents::default();
                for record in &self.records {
                    if record.begin >= begin && record.begin < step.end {
                        contents.first_record = contents.first_record.or(Some(record.begin));
                    }
                    if record.begin >= begin && record.end <= step.end {
                        contents.last_record = Some(record.begin);
                        contents.end = Some(record.end);
                        if let Some(event) = record.event() {
                            contents.note(&event);
                        }
                    }
                }
                contents
            })
            .collect())
    }

    fn last_record(&self, steps: &[&Step]) -> Result<Option<Lsn>> {
        let begin = steps[0].name().start_lsn(size());
        let end = steps[steps.len() - 1].end;
        let whole = |record: &&Record| record.begin >= begin && record.end <= end;
        Ok(self.records.iter().rfind(whole).map(|record| record.begin))
    }

    fn walk(&self, steps: &[&Step], observe: &mut dyn FnMut(&WalEvent) -> bool) -> Result<()> {
        let begin = steps[0].name().start_lsn(size());
        for pair in steps.windows(2) {
            assert_eq!(pair[0].number + 1, pair[1].number);
        }
        let end = steps[steps.len() - 1].end;
        for record in &self.records {
            if record.begin >= begin
                && record.end <= end
                && record.event().is_some_and(|event| !observe(&event))
            {
                break;
            }
        }
        Ok(())
    }
}

/// What the server makes of a backup and a target: where it stops, or `None` where it gives up.
fn server(log: &Log, backup: &OwnWal, held_to: Lsn, aim: &Aim, inclusive: bool) -> Option<Lsn> {
    let mut replayed = backup.start;
    for record in log
        .records
        .iter()
        .filter(|record| record.begin >= backup.start)
    {
        if record.end > held_to {
            break;
        }
        let consistent = replayed >= backup.stop;
        let ends = match &record.what {
            What::Commit(xid, time) | What::Abort(xid, time) => Some((*xid, *time)),
            _ => None,
        };
        let stops_before = match aim {
            Aim::Immediate => consistent,
            Aim::Lsn(lsn) => !inclusive && record.begin >= *lsn,
            Aim::Transaction(wanted) => !inclusive && ends.is_some_and(|(xid, _)| xid == wanted.0),
            Aim::Time(target) => ends.is_some_and(|(_, time)| {
                if inclusive {
                    time > target.0
                } else {
                    time >= target.0
                }
            }),
            _ => false,
        };
        if stops_before {
            return consistent.then_some(record.begin);
        }
        replayed = record.end;
        let consistent = replayed >= backup.stop;
        let stops_after = match aim {
            Aim::RestorePoint(wanted) => {
                matches!(&record.what, What::Point(name, _) if name == wanted)
            }
            Aim::Lsn(lsn) => inclusive && record.begin >= *lsn,
            Aim::Transaction(wanted) => inclusive && ends.is_some_and(|(xid, _)| xid == wanted.0),
            _ => false,
        };
        if stops_after {
            return consistent.then_some(record.end);
        }
    }
    None
}

#[derive(Debug)]
struct Case {
    log: Log,
    world: World,
    aims: Vec<(Aim, bool)>,
    in_order: bool,
}

/// A log of up to a few hundred records over some segments, some of which are not held, and backups in it.
fn case() -> impl Strategy<Value = Case> {
    let record = (
        prop_oneof![
            4 => Just(40u64), 2 => Just(104), 3 => 50u64..9_000, 2 => 40_000u64..200_000,
            1 => 400_000u64..1_500_000
        ],
        0u8..10,
        0i64..3,
    );
    (
        prop::collection::vec(record, 10..120),
        prop::collection::vec((any::<prop::sample::Index>(), 1usize..12), 1..4),
        prop::collection::vec(any::<prop::sample::Index>(), 0..2),
        any::<prop::sample::Index>(),
        any::<bool>(),
        prop::collection::vec(
            (any::<prop::sample::Index>(), 0u8..12, any::<bool>()),
            1..12,
        ),
    )
        .prop_map(|(shapes, backups, holes, tail, in_order, aims)| {
            let mut records = Vec::new();
            let mut position = FIRST * SEGMENT + 40;
            let mut clock = 1_000_000_000i64;
            for (at, (length, kind, hiccup)) in shapes.into_iter().enumerate() {
                clock += 700_000;
                // Not in order: up to half a second back.
                let time = if in_order {
                    clock
                } else {
                    clock - hiccup * 400_000
                };
                let xid = 700 + at as u32;
                let begin = position;
                position += length.div_ceil(8) * 8;
                let what = match kind {
                    // Ends of transactions are not so long.
                    _ if length > 9_000 => What::Other,
                    0..=3 => What::Commit(xid, time),
                    4 => What::Abort(xid, time),
                    5 if length == 104 => What::Point(format!("p{}", at % 5), time),
                    _ => What::Other,
                };
                records.push(Record {
                    begin: Lsn(begin),
                    end: Lsn(position),
                    what,
                });
            }
            let last = position / SEGMENT;
            let mut whole: Vec<u64> = (FIRST..last).collect();
            for hole in holes {
                if !whole.is_empty() {
                    whole.remove(hole.index(whole.len()));
                }
            }
            // The tail ends within a record as often as not.
            let tail_end = last * SEGMENT + tail.index((position % SEGMENT).max(1) as usize) as u64;
            let pieces = if tail_end > last * SEGMENT {
                vec![Lsn(last * SEGMENT)..Lsn(tail_end)]
            } else {
                Vec::new()
            };
            let backups = backups
                .iter()
                .enumerate()
                .map(|(at, (index, length))| {
                    let first = index.index(records.len());
                    let end = (first + length).min(records.len() - 1);
                    let tail = ["aaaa", "bbbb", "cccc", "dddd"][at];
                    backup(tail, 1, records[first].begin, records[end].end)
                })
                .collect();
            let aims = aims
                .into_iter()
                .map(|(index, kind, inclusive)| {
                    let record = &records[index.index(records.len())];
                    let time = match &record.what {
                        What::Commit(_, time) | What::Abort(_, time) | What::Point(_, time) => {
                            *time
                        }
                        What::Other => 1_000_000_000 + 700_000 * index.index(200) as i64,
                    };
                    let aim = match kind {
                        0 => Aim::Immediate,
                        1 => Aim::Lsn(record.begin),
                        2 => Aim::Lsn(Lsn(record.end.0 - 1)),
                        3 => Aim::Lsn(record.end),
                        4 | 5 => Aim::Time(TimestampTz(time)),
                        6 => Aim::Time(TimestampTz(time - 1)),
                        7 => Aim::Time(TimestampTz(time + 1)),
                        8 | 9 => Aim::Transaction(TransactionId(
                            700 + index.index(records.len() + 3) as u32,
                        )),
                        _ => Aim::RestorePoint(format!("p{}", index.index(6))),
                    };
                    (aim, inclusive)
                })
                .collect();
            Case {
                log: Log { records },
                world: World {
                    timelines: BTreeMap::from([(1, (whole, pieces))]),
                    backups,
                    histories: BTreeMap::from([(1, Vec::new())]),
                },
                aims,
                in_order,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn verdicts_are_the_servers(case in case()) {
        let coverage = coverage(&case.world, size());
        let path = Path::new(&coverage, TimelineId(1));
        let oldest = case.world.backups.iter().map(|b| b.start).min().expect("a backup");
        for (aim, inclusive) in &case.aims {
            // Recovery always stops with a restore point.
            let sight = Sight::new(&path, &case.log, aim, *inclusive, oldest).expect("a sight");
            for backup in &case.world.backups {
                let held_to = path.reach(backup.start);
                let truth = server(&case.log, backup, held_to, aim, *inclusive);
                let verdict = sight.judge(backup).expect("a verdict");
                let told = format!("{aim:?} inclusive {inclusive} from {backup:?} held to {held_to}: {truth:?}, {verdict:?}");
                match (verdict, truth) {
                    (Verdict::Reaches(stop), Some(at)) => match aim {
                        Aim::Time(_) if case.in_order => prop_assert_eq!(stop.lsn, at, "{}", told),
                        Aim::Time(_) | Aim::Lsn(_) | Aim::Immediate => {}
                        _ => prop_assert_eq!(stop.lsn, at, "{}", told),
                    },
                    (Verdict::TooNew | Verdict::Beyond, None) => {}
                    // An LSN within the last record before the backup is consistent: the server gets there, and we
                    // take an older backup or say no.
                    (Verdict::TooNew, Some(_)) if matches!(aim, Aim::Lsn(lsn) if *lsn < backup.stop) => {}
                    _ => prop_assert!(false, "{}", told),
                }
            }
        }
    }
}

/// Records of 100 KiB; every fourth commits, a second apart.
fn steady() -> Log {
    let mut records = Vec::new();
    for at in 0..200u64 {
        let begin = FIRST * SEGMENT + 40 + at * 102_400;
        let what = if at % 4 == 3 {
            What::Commit(1000 + at as u32, at as i64 * 1_000_000)
        } else {
            What::Other
        };
        records.push(Record {
            begin: Lsn(begin),
            end: Lsn(begin + 102_400),
            what,
        });
    }
    Log { records }
}

#[test]
fn few_frames_are_looked_at_for_a_time() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    struct Counting<'a>(&'a Log, AtomicUsize, AtomicUsize);
    impl Witness for Counting<'_> {
        fn contents(&self, steps: &[&Step]) -> Result<Vec<WalContents>> {
            self.1.fetch_add(steps.len(), Ordering::Relaxed);
            self.0.contents(steps)
        }
        fn last_record(&self, steps: &[&Step]) -> Result<Option<Lsn>> {
            self.0.last_record(steps)
        }
        fn walk(&self, steps: &[&Step], observe: &mut dyn FnMut(&WalEvent) -> bool) -> Result<()> {
            self.2.fetch_add(steps.len(), Ordering::Relaxed);
            self.0.walk(steps, observe)
        }
    }
    let log = steady();
    let world = World {
        timelines: BTreeMap::from([(1, ((FIRST..FIRST + 19).collect(), Vec::new()))]),
        backups: vec![backup("aaaa", 1, log.records[0].begin, log.records[5].end)],
        histories: BTreeMap::from([(1, Vec::new())]),
    };
    let coverage = coverage(&world, size());
    let path = Path::new(&coverage, TimelineId(1));
    let witness = Counting(&log, AtomicUsize::new(0), AtomicUsize::new(0));
    let aim = Aim::Time(TimestampTz(120_500_000));
    let sight = Sight::new(&path, &witness, &aim, true, Lsn(0)).expect("a sight");
    let verdict = sight.judge(&world.backups[0]).expect("a verdict");
    assert_eq!(
        verdict,
        Verdict::Reaches(Stop {
            lsn: log.records[123].begin,
            time: Some(TimestampTz(123_000_000)),
        })
    );
    let (frames, segments) = (witness.1.into_inner(), witness.2.into_inner());
    assert!(
        frames <= 9 && segments <= 4,
        "{frames} frames, {segments} segments"
    );
}

#[test]
fn a_commit_between_segments_without_any_other_is_found() {
    let border = |number: u64| (FIRST + number) * SEGMENT;
    let record = |begin, end, what| Record {
        begin: Lsn(begin),
        end: Lsn(end),
        what,
    };
    let first = border(0) + 40;
    let log = Log {
        records: vec![
            record(first, first + 40, What::Commit(700, 1_000_000)),
            record(first + 40, border(1) - 8, What::Other),
            record(border(1) - 8, border(1) + 32, What::Commit(701, 2_500_000)),
            record(border(1) + 32, border(2) + 40, What::Other),
            record(border(2) + 40, border(2) + 80, What::Commit(702, 5_000_000)),
            record(border(2) + 80, border(4) - 8, What::Other),
        ],
    };
    let world = World {
        timelines: BTreeMap::from([(1, ((FIRST..FIRST + 4).collect(), Vec::new()))]),
        backups: vec![backup("aaaa", 1, log.records[0].begin, log.records[0].end)],
        histories: BTreeMap::from([(1, Vec::new())]),
    };
    let coverage = coverage(&world, size());
    let path = Path::new(&coverage, TimelineId(1));
    let stop = Stop {
        lsn: log.records[2].begin,
        time: Some(TimestampTz(2_500_000)),
    };
    for aim in [
        Aim::Time(TimestampTz(2_200_000)),
        Aim::Transaction(TransactionId(701)),
    ] {
        let sight = Sight::new(&path, &log, &aim, false, Lsn(0)).expect("a sight");
        let verdict = sight.judge(&world.backups[0]).expect("a verdict");
        assert_eq!(verdict, Verdict::Reaches(stop), "{aim:?}");
    }
}

#[test]
fn names_may_come_twice() {
    let mut log = steady();
    for at in [22, 62] {
        log.records[at].what = What::Point("nightly".to_owned(), 0);
    }
    let world = World {
        timelines: BTreeMap::from([(1, ((FIRST..FIRST + 19).collect(), Vec::new()))]),
        backups: vec![
            backup("aaaa", 1, log.records[0].begin, log.records[5].end),
            backup("bbbb", 1, log.records[30].begin, log.records[35].end),
        ],
        histories: BTreeMap::from([(1, Vec::new())]),
    };
    let coverage = coverage(&world, size());
    let path = Path::new(&coverage, TimelineId(1));
    let aim = Aim::RestorePoint("nightly".to_owned());
    let sight = Sight::new(&path, &log, &aim, true, Lsn(0)).expect("a sight");
    let lsn = |backup: &OwnWal| match sight.judge(backup).expect("a verdict") {
        Verdict::Reaches(stop) => stop.lsn,
        other => panic!("{other:?}"),
    };
    assert_eq!(sight.found().len(), 2);
    assert_eq!(lsn(&world.backups[0]), log.records[22].end);
    assert_eq!(lsn(&world.backups[1]), log.records[62].end);
}
