//! Replays held against a server in miniature, which goes from record to record by the rules of `PerformWalRecovery`
//! (src/backend/access/transam/xlogrecovery.c); the WAL is real.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use leeward_fixtures::Wal;
use leeward_pgformat::{TimelineId, TransactionId, WalSegmentSize};
use proptest::prelude::*;

use super::super::path::tests::{World, backup, sources};
use super::super::times::all_before;
use super::super::wal_reader::{Feed, Walked};
use super::*;

const SEGMENT: u64 = 1 << 20;
const FIRST: u64 = 3;

/// The smallest segments there are.
fn size() -> WalSegmentSize {
    WalSegmentSize::new(1 << 20).expect("a size")
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    Filler(usize),
    Commit(i64),
    Abort(i64),
    Prepare,
    Point(String, i64),
    Parameters(u32, bool),
    Tablespace(String),
    Extension(u8),
    Checkpoint(i64),
    Switch,
    /// What follows does not follow.
    Break,
}

#[derive(Clone, Debug)]
struct Record {
    begin: Lsn,
    /// Where the server stands behind it: behind a switch, at the next segment.
    end: Lsn,
    /// After its bytes.
    bytes_end: Lsn,
    xid: u32,
    what: What,
    /// It does not name the record before it.
    breaks: bool,
}

/// The WAL of a cluster, and its records.
struct Log {
    wal: Wal,
    records: Vec<Record>,
    walked: AtomicUsize,
    summarized: AtomicUsize,
}

impl Log {
    fn new(what: &[What]) -> Log {
        let mut log = Log {
            wal: Wal::new(size(), FIRST, 1),
            records: Vec::new(),
            walked: AtomicUsize::new(0),
            summarized: AtomicUsize::new(0),
        };
        let mut breaks = false;
        for (at, what) in what.iter().enumerate() {
            if *what == What::Break {
                // Each segment that is stored follows from record to record within itself.
                if !log.wal.bytes.len().is_multiple_of(SEGMENT as usize) {
                    log.add(0, What::Switch, false);
                }
                // The first record of all names one before it, which nobody asks for.
                breaks = !log.records.is_empty();
                log.wal.begin_anew();
                continue;
            }
            log.add(700 + at as u32, what.clone(), breaks);
            breaks = false;
        }
        log
    }

    fn add(&mut self, xid: u32, what: What, breaks: bool) {
        let wal = &mut self.wal;
        let number = |number: u32| number.to_le_bytes();
        let (begin, bytes_end) = match &what {
            What::Filler(length) => wal.filler(*length),
            What::Commit(time) => wal.commit(xid, *time),
            What::Abort(time) => wal.record(1, 0x20, xid, &time.to_le_bytes()),
            What::Prepare => wal.record(1, 0x10, xid, &[7; 60]),
            What::Point(name, time) => {
                let mut data = time.to_le_bytes().to_vec();
                data.extend_from_slice(name.as_bytes());
                data.resize(72, 0);
                wal.record(0, 0x70, 0, &data)
            }
            What::Parameters(connections, minimal) => {
                let level = u32::from(!minimal);
                let data = [*connections, 8, 10, 0, 64, level].map(number).concat();
                wal.record(0, 0x60, 0, &data)
            }
            What::Tablespace(path) => {
                let data = [&number(16_384)[..], path.as_bytes(), &[0]].concat();
                wal.record(5, 0x00, 0, &data)
            }
            What::Extension(manager) => wal.record(*manager, 0, 0, &[1]),
            What::Checkpoint(seconds) => {
                let mut data = vec![0; 88];
                data[64..72].copy_from_slice(&(946_684_800 + seconds).to_le_bytes());
                wal.record(0, 0x10, 0, &data)
            }
            What::Switch => wal.switch(0),
            What::Break => unreachable!(),
        };
        let end = if what == What::Switch {
            wal.end()
        } else {
            bytes_end
        };
        self.records.push(Record {
            begin,
            end,
            bytes_end,
            xid,
            what,
            breaks,
        });
    }

    fn bytes(&self, segment: &PathSegment) -> &[u8] {
        let from = (segment.begin(size()) - self.wal.start) as usize;
        let to = (segment.end - self.wal.start) as usize;
        &self.wal.bytes[from..to.min(self.wal.bytes.len())]
    }

    /// Whole segments, and what follows as a piece that ends at `tail`.
    fn world(&self, tail: Lsn, backups: Vec<BackupRange>, missing: &[u64]) -> World {
        let last = tail.0 / SEGMENT;
        let whole = (FIRST..last)
            .filter(|number| !missing.contains(number))
            .collect();
        let mut pieces = Vec::new();
        if tail.0 > last * SEGMENT {
            pieces.push(Lsn(last * SEGMENT)..tail);
        }
        World {
            timelines: BTreeMap::from([(1, (whole, pieces))]),
            backups,
            histories: BTreeMap::from([(1, Vec::new())]),
        }
    }
}

impl WalReader for Log {
    fn summaries(&self, segments: &[&PathSegment]) -> Result<Vec<WalContents>> {
        self.summarized.fetch_add(segments.len(), Ordering::Relaxed);
        segments
            .iter()
            .map(|segment| {
                let mut nobody = |_: &WalEvent| {};
                let mut feed = Feed::new(segment.begin(size()), size(), None, &mut nobody);
                feed.write_all(self.bytes(segment)).expect("fed");
                Ok(feed.finish().contents)
            })
            .collect()
    }

    fn walk(
        &self,
        segments: &[&PathSegment],
        wanted: Option<Lsn>,
        observe: &mut dyn FnMut(&WalEvent),
    ) -> Result<Walked> {
        self.walked.fetch_add(segments.len(), Ordering::Relaxed);
        for pair in segments.windows(2) {
            assert_eq!(pair[0].number + 1, pair[1].number);
        }
        let start = segments.first().map_or(Lsn(0), |first| first.begin(size()));
        let mut feed = Feed::new(start, size(), wanted, observe);
        for segment in segments {
            feed.write_all(self.bytes(segment)).expect("fed");
        }
        Ok(feed.finish())
    }
}

/// What the server makes of a backup and a target.
fn server(
    log: &Log,
    backup: &BackupRange,
    held_to: Lsn,
    goal: ReplayGoal<'_>,
    end: WalEnd,
) -> Replay {
    let mut requirements = Requirements::default();
    let mut replayed = backup.start;
    let ended = |replayed: Lsn, requirements: Requirements, end: WalEnd| Replay {
        outcome: if replayed >= backup.consistent {
            ReplayOutcome::Ends(end)
        } else {
            ReplayOutcome::NeverConsistent(end)
        },
        end: replayed,
        requirements,
    };
    let stopped = |lsn: Lsn, time: Option<i64>, requirements: Requirements| {
        let stop = StopPoint {
            lsn,
            time: time.map(TimestampTz),
        };
        Replay {
            outcome: if lsn >= backup.consistent {
                ReplayOutcome::Stops(stop)
            } else {
                ReplayOutcome::StopsTooEarly(stop)
            },
            end: lsn,
            requirements,
        }
    };
    if !log
        .records
        .iter()
        .any(|record| record.begin == backup.start)
    {
        let problem = "no record begins where recovery has to".to_owned();
        return ended(
            replayed,
            requirements,
            WalEnd::Broken(backup.start, problem),
        );
    }
    // The checkpoint of a server that was shut down is not replayed: recovery begins behind it.
    let mut first = backup.start;
    if backup.start == backup.checkpoint
        && let Some(checkpoint) = log.records.iter().find(|record| record.begin == first)
        && checkpoint.bytes_end <= held_to
    {
        replayed = checkpoint.end;
        first = Lsn(first.0 + 1);
    }
    let from = |record: &&Record| record.begin >= first;
    for record in log.records.iter().filter(from) {
        // A record's header is enough to see that it does not follow.
        let is_seen = record.begin + 24 <= held_to || record.bytes_end <= held_to;
        if record.breaks && record.begin > backup.start && is_seen {
            let problem = "the WAL begins anew there, as after pg_resetwal".to_owned();
            return ended(
                replayed,
                requirements,
                WalEnd::Broken(record.begin, problem),
            );
        }
        if record.bytes_end > held_to {
            break;
        }
        let consistent = replayed >= backup.consistent;
        let ends = match &record.what {
            What::Commit(time) | What::Abort(time) => Some(*time),
            _ => None,
        };
        let stops_before = match goal.target {
            RecoveryTarget::Immediate => consistent,
            RecoveryTarget::Lsn(lsn) => !goal.inclusive && record.begin >= *lsn,
            RecoveryTarget::Transaction(wanted) => {
                !goal.inclusive && ends.is_some() && record.xid == wanted.0
            }
            RecoveryTarget::Time(target) => ends.is_some_and(|time| {
                if goal.inclusive {
                    time > target.0
                } else {
                    time >= target.0
                }
            }),
            _ => false,
        };
        if stops_before {
            let time = match goal.target {
                RecoveryTarget::Immediate | RecoveryTarget::Lsn(_) => None,
                _ => ends,
            };
            return stopped(record.begin, time, requirements);
        }
        match &record.what {
            What::Parameters(_, true) => {
                return ended(record.begin, requirements, WalEnd::MinimalWal(record.begin));
            }
            What::Parameters(connections, false) => {
                requirements.settings = requirements.settings.max(RequiredSettings {
                    max_connections: *connections,
                    max_worker_processes: 8,
                    max_wal_senders: 10,
                    max_prepared_transactions: 0,
                    max_locks_per_transaction: 64,
                });
            }
            What::Tablespace(path) => requirements.tablespaces.push(RequiredTablespace {
                tablespace: Oid(16_384),
                location: path.clone().into_bytes(),
                record: record.begin,
            }),
            _ => {}
        }
        replayed = record.end;
        let consistent = replayed >= backup.consistent;
        let is_transaction = matches!(
            record.what,
            What::Commit(_) | What::Abort(_) | What::Prepare
        );
        let (stops_after, time) = match (goal.target, &record.what) {
            (RecoveryTarget::RestorePoint(wanted), What::Point(name, time)) => {
                (name == wanted, Some(*time))
            }
            (RecoveryTarget::Lsn(lsn), _) => (goal.inclusive && record.begin >= *lsn, None),
            (RecoveryTarget::Transaction(wanted), _) => (
                goal.inclusive && ends.is_some() && record.xid == wanted.0,
                ends,
            ),
            (RecoveryTarget::Immediate, _) => (is_transaction && consistent, ends),
            _ => (false, None),
        };
        if stops_after {
            // Behind a switch the server's position is the next segment, and so is ours.
            return stopped(record.end, time, requirements);
        }
    }
    ended(replayed, requirements, end)
}

#[derive(Debug)]
struct Case {
    what: Vec<What>,
    tail: prop::sample::Index,
    /// Where they start and how many records they last, and whether they are consistent before their end.
    backups: Vec<(prop::sample::Index, usize, usize)>,
    missing: Vec<u64>,
    targets: Vec<(prop::sample::Index, u8, bool)>,
}

fn case() -> impl Strategy<Value = Case> {
    let what = prop_oneof![
        6 => (0usize..400).prop_map(What::Filler),
        3 => (400usize..9_000).prop_map(What::Filler),
        2 => (40_000usize..200_000).prop_map(What::Filler),
        1 => (400_000usize..2_300_000).prop_map(What::Filler),
        8 => (0i64..60).prop_map(|time| What::Commit(time * 1_000_000)),
        2 => (0i64..60).prop_map(|time| What::Abort(time * 1_000_000)),
        1 => Just(What::Prepare),
        2 => (0u8..4, 0i64..60).prop_map(|(name, time)| What::Point(format!("p{name}"), time)),
        1 => (0u32..200, prop::bool::weighted(0.1)).prop_map(|(n, minimal)| What::Parameters(n, minimal)),
        1 => "/[a-z]{1,300}".prop_map(What::Tablespace),
        1 => (128u8..=255).prop_map(What::Extension),
        1 => (0i64..60).prop_map(What::Checkpoint),
        1 => Just(What::Switch),
        1 => prop::bool::weighted(0.2).prop_map(|breaks| if breaks { What::Break } else { What::Prepare }),
    ];
    (
        prop::collection::vec(what, 8..120),
        any::<prop::sample::Index>(),
        prop::collection::vec((any::<prop::sample::Index>(), 1usize..12, 0usize..3), 1..4),
        prop::collection::vec(FIRST..FIRST + 12, 0..2),
        prop::collection::vec(
            (any::<prop::sample::Index>(), 0u8..14, any::<bool>()),
            1..12,
        ),
    )
        .prop_map(|(what, tail, backups, missing, targets)| Case {
            what,
            tail,
            backups,
            missing,
            targets,
        })
}

impl Case {
    fn backups(&self, log: &Log) -> Vec<BackupRange> {
        let records = &log.records;
        self.backups
            .iter()
            .enumerate()
            .map(|(at, (index, length, early))| {
                let first = index.index(records.len());
                let last = (first + length).min(records.len() - 1);
                let consistent = last.saturating_sub(*early).max(first);
                let tail = ["aaaa", "bbbb", "cccc", "dddd"][at];
                BackupRange {
                    consistent: records[consistent].end,
                    // Some begin with a shutdown's checkpoint, the others before an online one.
                    checkpoint: records[if early % 2 == 0 { last } else { first }].begin,
                    ..backup(tail, 1, records[first].begin, records[last].end)
                }
            })
            .collect()
    }

    fn targets(&self, log: &Log) -> Vec<(RecoveryTarget, bool)> {
        let records = &log.records;
        self.targets
            .iter()
            .map(|(index, kind, inclusive)| {
                let record = &records[index.index(records.len())];
                let time = match &record.what {
                    What::Commit(time) | What::Abort(time) => *time,
                    _ => index.index(60) as i64 * 1_000_000,
                };
                let target = match kind {
                    0 => RecoveryTarget::Immediate,
                    1 => RecoveryTarget::Lsn(record.begin),
                    2 => RecoveryTarget::Lsn(Lsn(record.end.0 - 1)),
                    3 => RecoveryTarget::Lsn(record.end),
                    4 => RecoveryTarget::Lsn(Lsn(record.begin.0 + 1)),
                    5 => RecoveryTarget::Lsn(Lsn(record.begin.0 - 1)),
                    6 => RecoveryTarget::Time(TimestampTz(time)),
                    7 => RecoveryTarget::Time(TimestampTz(time - 1)),
                    8 => RecoveryTarget::Time(TimestampTz(time + 1)),
                    9 | 10 => RecoveryTarget::Transaction(TransactionId(
                        700 + index.index(records.len() + 3) as u32,
                    )),
                    11 | 12 => RecoveryTarget::RestorePoint(format!("p{}", index.index(5))),
                    _ => RecoveryTarget::End,
                };
                (target, *inclusive)
            })
            .collect()
    }

    /// Somewhere in the last third, as often as not within a record.
    fn tail(&self, log: &Log) -> Lsn {
        let length = log.wal.bytes.len();
        log.wal.start + (length - self.tail.index(length / 3 + 1)) as u64
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn replays_are_the_servers(case in case()) {
        let log = Log::new(&case.what);
        prop_assume!(log.records.len() > 4);
        let backups = case.backups(&log);
        let world = log.world(case.tail(&log), backups.clone(), &case.missing);
        let sources = sources(&world, size());
        let path = RecoveryPath::new(&sources, TimelineId(1));
        for (target, inclusive) in &case.targets(&log) {
            let goal = ReplayGoal { target, inclusive: *inclusive, until: None };
            for backup in &backups {
                let held_to = path.reach(backup.start);
                if held_to < backup.stop {
                    continue;
                }
                let end = path.missing_at(held_to).map_or(WalEnd::NoMore, WalEnd::Missing);
                let expected = server(&log, backup, held_to, goal, end);
                let mut found = replay(&path, &log, backup, goal).expect("a replay");
                // Extensions are told by the segment, so a record too many may count.
                found.requirements.custom_managers = 0;
                prop_assert_eq!(found, expected, "{:?} {:?}", target, backup);
            }
        }
    }

    #[test]
    fn nothing_later_lies_before_a_backup(case in case()) {
        let log = Log::new(&case.what);
        prop_assume!(log.records.len() > 4);
        let backups = case.backups(&log);
        let tail = case.tail(&log);
        let world = log.world(tail, backups.clone(), &case.missing);
        let sources = sources(&world, size());
        let path = RecoveryPath::new(&sources, TimelineId(1));
        for backup in backups.iter().filter(|backup| path.reach(backup.start) >= backup.stop) {
            // Other backups bring WAL, too.
            let begin = path.contiguous_before(backup.start, 100)[0].begin(size());
            let before: Vec<&Record> = log
                .records
                .iter()
                .filter(|record| record.begin >= begin && record.begin < backup.start)
                .collect();
            // WAL before a break is another history.
            let anew = log.records.iter().rposition(|record| {
                record.breaks && record.begin >= begin && record.begin <= backup.start
            });
            let from = anew.map_or(begin, |at| log.records[at].begin);
            for seconds in [0, 7, 30, 31, 59] {
                for inclusive in [true, false] {
                    let target = TimestampTz(seconds * 1_000_000);
                    let times: Vec<i64> = before
                        .iter()
                        .filter(|record| record.begin >= from)
                        .filter_map(|record| match record.what {
                            What::Commit(time) | What::Abort(time) => Some(time),
                            _ => None,
                        })
                        .collect();
                    let is_late = |time: &&i64| is_later(TimestampTz(**time), target, inclusive);
                    let checkpoint = log.records.iter().find_map(|record| match record.what {
                        What::Checkpoint(time) if record.begin == backup.checkpoint => Some(time),
                        _ => None,
                    });
                    let expected = if times.is_empty() {
                        checkpoint.is_some_and(|time| time < seconds)
                    } else {
                        !times.iter().any(|time| is_late(&time))
                    };
                    let found = all_before(&path, &log, backup, target, inclusive).expect("known");
                    prop_assert_eq!(found, expected, "{} {} {:?} {:?}", seconds, inclusive, backup, times);
                }
            }
        }
    }
}

#[test]
fn a_backup_after_the_target_on_a_quiet_server_is_told() {
    let second = 1_000_000;
    let log = Log::new(&[
        What::Checkpoint(10),
        What::Commit(11 * second),
        What::Commit(12 * second),
        What::Checkpoint(13),
        What::Commit(20 * second),
        What::Switch,
        What::Checkpoint(21),
        What::Filler(40),
        What::Commit(30 * second),
    ]);
    let records = &log.records;
    let first = backup("aaaa", 1, records[0].begin, records[0].end);
    let second_backup = backup("bbbb", 1, records[6].begin, records[6].end);
    let world = log.world(
        log.wal.end(),
        vec![first.clone(), second_backup.clone()],
        &[],
    );
    let sources = sources(&world, size());
    let path = RecoveryPath::new(&sources, TimelineId(1));
    let all_before = |backup, seconds: i64| {
        let target = TimestampTz(seconds * second);
        all_before(&path, &log, backup, target, true).expect("known")
    };
    assert!(!all_before(&second_backup, 15), "it holds the row of 20");
    assert!(all_before(&second_backup, 20));
    assert!(all_before(&second_backup, 25));
    assert!(!all_before(&first, 10), "the checkpoint may be later");
    assert!(all_before(&first, 11));
}

#[test]
fn few_segments_are_read() {
    let mut what = vec![What::Checkpoint(0)];
    for at in 0..200 {
        what.push(What::Filler(102_000));
        if at % 4 == 3 {
            what.push(What::Commit(i64::from(at) * 1_000_000));
        }
    }
    let log = Log::new(&what);
    let start = backup("aaaa", 1, log.records[0].begin, log.records[5].end);
    let world = log.world(log.wal.end(), vec![start.clone()], &[]);
    let sources = sources(&world, size());
    let path = RecoveryPath::new(&sources, TimelineId(1));
    let target = RecoveryTarget::Time(TimestampTz(120_500_000));
    let goal = ReplayGoal {
        target: &target,
        inclusive: true,
        until: None,
    };
    let replayed = replay(&path, &log, &start, goal).expect("a replay");
    assert!(matches!(
        replayed.outcome,
        ReplayOutcome::Stops(StopPoint {
            time: Some(TimestampTz(123_000_000)),
            ..
        })
    ));
    let (summaries, walked) = (log.summarized.into_inner(), log.walked.into_inner());
    assert!(
        summaries <= 32 && walked <= 4,
        "{summaries} summaries, {walked} segments"
    );
}
