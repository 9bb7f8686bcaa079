use leeward_pgformat::timeline::TimelineHistoryEntry;
use leeward_repository::wal_archive::Holdings;

use super::*;

const SIZE: WalSegmentSize = WalSegmentSize::DEFAULT;
const MIB: u64 = 1 << 20;

/// The LSN so many MiB into segment `number`.
fn at(number: u64, mib: u64) -> Lsn {
    Lsn(number * SIZE.bytes() + mib * MIB)
}

/// What an archive holds, for tests.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub timelines: BTreeMap<u32, (Vec<u64>, Vec<Range<Lsn>>)>,
    pub backups: Vec<BackupRange>,
    pub histories: BTreeMap<u32, Vec<(u32, Lsn)>>,
}

impl World {
    fn sources(&self) -> RecoverySources {
        sources(self, SIZE)
    }
}

pub(crate) fn sources(world: &World, size: WalSegmentSize) -> RecoverySources {
    let mut archive = Holdings::default();
    for (timeline, (whole, pieces)) in &world.timelines {
        let timeline = TimelineId(*timeline);
        let mut held: BTreeMap<u64, Vec<Range<Lsn>>> = BTreeMap::new();
        for piece in pieces {
            held.entry(size.segment_number(piece.start))
                .or_default()
                .push(piece.clone());
        }
        archive.timelines.insert(
            timeline,
            TimelineHoldings {
                segments: whole.iter().map(|number| (*number, 1000)).collect(),
                pieces: held,
                history: true,
                ..TimelineHoldings::empty(timeline)
            },
        );
    }
    let histories = world
        .histories
        .iter()
        .map(|(timeline, entries)| {
            let target = TimelineId(*timeline);
            let entries = entries
                .iter()
                .map(|(timeline, switch_lsn)| TimelineHistoryEntry {
                    timeline: TimelineId(*timeline),
                    switch_lsn: *switch_lsn,
                    reason: String::new(),
                })
                .collect();
            (target, TimelineHistory { target, entries })
        })
        .collect();
    RecoverySources {
        size,
        archive,
        backups: world.backups.clone(),
        histories,
        recorded: world.histories.keys().copied().map(TimelineId).collect(),
        damaged_histories: BTreeMap::new(),
    }
}

pub(crate) fn backup(tail: &str, timeline: u32, start: Lsn, stop: Lsn) -> BackupRange {
    BackupRange {
        id: format!("20261122T023000Z-{tail}").parse().expect("an id"),
        start,
        checkpoint: start,
        start_timeline: TimelineId(timeline),
        stop,
        stop_timeline: TimelineId(timeline),
        consistent: stop,
        is_damaged: false,
    }
}

#[test]
fn whole_segments_pieces_and_a_hole() {
    let world = World {
        timelines: BTreeMap::from([(
            1,
            (
                vec![3, 4, 7, 8],
                vec![
                    at(9, 0)..at(9, 2),
                    at(9, 1)..at(9, 3),
                    at(9, 3)..at(9, 5),
                    at(9, 6)..at(9, 7),
                ],
            ),
        )]),
        ..World::default()
    };
    let path = RecoveryPath::new(&world.sources(), TimelineId(1));
    assert_eq!(path.reach(at(3, 5)), at(5, 0));
    assert_eq!(path.reach(at(2, 0)), at(2, 0), "not held");
    assert_eq!(
        path.reach(at(7, 0)),
        at(9, 5),
        "a chain of pieces ends at a gap"
    );
    let hole = path.missing_at(at(5, 0)).expect("a hole");
    assert_eq!((hole.begin, hole.end), (at(5, 0), at(7, 0)));
    assert_eq!(
        (
            hole.first.name(SIZE).as_str(),
            hole.last.name(SIZE).as_str()
        ),
        ("000000010000000000000005", "000000010000000000000006")
    );
    let hole = path
        .missing_at(at(9, 5))
        .expect("a hole before the last piece");
    assert_eq!(
        (hole.begin, hole.end, hole.count()),
        (at(9, 5), at(9, 6), 1)
    );
    assert_eq!(path.missing_at(at(9, 7)), None, "nothing is held behind it");
}

#[test]
fn a_piece_that_ends_within_a_held_timeline_is_a_hole() {
    let world = World {
        timelines: BTreeMap::from([(1, (vec![3, 5], vec![at(4, 0)..at(4, 6)]))]),
        ..World::default()
    };
    let path = RecoveryPath::new(&world.sources(), TimelineId(1));
    assert_eq!(path.reach(at(3, 0)), at(4, 6));
    let hole = path.missing_at(at(4, 6)).expect("a hole");
    assert_eq!(
        (hole.begin, hole.end, hole.count()),
        (at(4, 6), at(5, 0), 1)
    );
}

/// Timeline 2 left timeline 1 in the middle of segment 5; both went on.
fn forked() -> World {
    World {
        timelines: BTreeMap::from([
            (1, (vec![3, 4, 5, 6], vec![])),
            (2, (vec![5, 6, 7], vec![])),
        ]),
        histories: BTreeMap::from([(1, vec![]), (2, vec![(1, at(5, 8))])]),
        ..World::default()
    }
}

#[test]
fn each_timeline_goes_its_own_way() {
    let sources = forked().sources();
    let old = RecoveryPath::new(&sources, TimelineId(1));
    assert_eq!(old.reach(at(3, 0)), at(7, 0));
    let new = RecoveryPath::new(&sources, TimelineId(2));
    assert_eq!(new.reach(at(3, 0)), at(8, 0));
    let names: Vec<String> = new
        .segments(at(3, 0), at(8, 0))
        .iter()
        .map(|segment| segment.name().name(SIZE))
        .collect();
    assert_eq!(
        names,
        [
            "000000010000000000000003",
            "000000010000000000000004",
            "000000020000000000000005",
            "000000020000000000000006",
            "000000020000000000000007"
        ]
    );
}

#[test]
fn an_old_timeline_counts_to_where_it_was_left() {
    let mut world = forked();
    world.timelines.insert(2, (vec![], vec![]));
    let path = RecoveryPath::new(&world.sources(), TimelineId(2));
    assert_eq!(path.reach(at(3, 0)), at(5, 8));
    assert_eq!(path.missing_at(at(5, 8)), None);
    // Where the new one goes on without the segment in which it began, the old one's is not given in its place.
    world.timelines.insert(2, (vec![6, 7], vec![]));
    let path = RecoveryPath::new(&world.sources(), TimelineId(2));
    assert_eq!(path.reach(at(3, 0)), at(5, 0));
    let hole = path.missing_at(at(5, 0)).expect("a hole");
    assert_eq!(hole.first.name(SIZE), "000000020000000000000005");
    assert_eq!(hole.count(), 1);
}

#[test]
fn backups_bring_their_own() {
    let mut world = forked();
    world.timelines.insert(1, (vec![4, 5, 6], vec![]));
    world.backups = vec![backup("aaaa", 1, at(2, 3), at(3, 9))];
    let path = RecoveryPath::new(&world.sources(), TimelineId(2));
    assert_eq!(path.reach(at(2, 3)), at(3, 9), "its last segment is cut");
    let hole = path.missing_at(at(3, 9)).expect("a hole");
    assert_eq!(hole.first.name(SIZE), "000000010000000000000003");
    // The next backup's WAL begins with the whole segment.
    world.backups.push(backup("bbbb", 1, at(3, 10), at(4, 1)));
    let path = RecoveryPath::new(&world.sources(), TimelineId(2));
    assert_eq!(path.reach(at(2, 3)), at(8, 0));
}

#[test]
fn backups_behind_the_fork_are_not_on_the_way() {
    let mut world = forked();
    let before = backup("aaaa", 1, at(4, 0), at(5, 8));
    let behind = backup("bbbb", 1, at(4, 0), at(5, 9));
    let new = backup("cccc", 2, at(6, 0), at(6, 9));
    world.backups = vec![before.clone(), behind.clone(), new.clone()];
    let sources = world.sources();
    let on = |timeline| -> Vec<&BackupRange> {
        RecoveryPath::new(&sources, TimelineId(timeline)).backups(&sources)
    };
    assert_eq!(on(2), [&before, &new]);
    assert_eq!(on(1), [&before, &behind]);
    assert_eq!(sources.newest_timeline(), Some(TimelineId(2)));
    assert_eq!(sources.newest_timeline_of(&behind), TimelineId(1));
    assert_eq!(sources.newest_timeline_of(&before), TimelineId(2));
}

#[test]
fn wal_whose_history_is_not_held() {
    let mut world = forked();
    assert_eq!(world.sources().without_history().next(), None);
    world.histories.remove(&2);
    world.backups = vec![backup("aaaa", 1, at(4, 0), at(5, 8))];
    let sources = world.sources();
    let found: Vec<TimelineId> = sources.without_history().collect();
    assert_eq!(found, [TimelineId(2)]);
    assert_eq!(sources.newest_timeline(), Some(TimelineId(1)));
    // Without WAL there is nothing that would be passed over.
    world.timelines.insert(2, (vec![], vec![]));
    assert_eq!(world.sources().without_history().next(), None);
}
