//! What is held of a cluster's WAL: ranges, gaps, sizes, and the moments that can be recovered to.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use leeward_pgformat::{
    Lsn, SystemIdentifier, TimelineId, TimestampTz, WalSegmentName, WalSegmentSize,
};
use leeward_repository::backup_id::BackupId;
use leeward_repository::store::Store;
use leeward_repository::wal_archive::{Gap, TimelineHoldings, WalArchive};

use crate::error::Result;
use crate::recovery::explain::describe_cause;
use crate::recovery::path::RecoveryPath;
use crate::recovery::replay::WalEnd;
use crate::recovery::sources::{RecoverySources, segment_size_of};
use crate::recovery::wal_reader::{ArchiveWalReader, WalReader};
use crate::recovery::windows::{Window, windows};
use crate::repository::{self, doing};

/// What is held of a cluster's WAL.
#[derive(Clone, Debug)]
pub struct WalList {
    /// The cluster's name.
    pub cluster: String,
    /// Its timelines, oldest first.
    pub timelines: Vec<TimelineList>,
    /// What can be recovered to, by timeline and moment.
    pub windows: Vec<WindowList>,
}

/// What the archive holds of a timeline.
#[derive(Clone, Debug)]
pub struct TimelineList {
    /// The timeline.
    pub timeline: TimelineId,
    /// The timeline it came from, and where it left that.
    pub parent: Option<(TimelineId, Lsn)>,
    /// It has WAL, and its history file is not held, which alone tells where it comes from: recovery cannot go there.
    pub history_missing: bool,
    /// Runs of whole segments, and the pieces behind each.
    pub ranges: Vec<WalRange>,
    /// What is missing between them, and up to where the next timeline goes on.
    pub gaps: Vec<WalGap>,
    /// How many whole segments.
    pub segments: u64,
    /// Bytes of WAL held, pieces included.
    pub plain_bytes: u64,
    /// Bytes of the whole segments in the repository. What pieces take is not known without asking for each.
    pub stored_bytes: u64,
}

/// WAL without a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// Its first byte.
    pub begin: Lsn,
    /// After its last byte.
    pub end: Lsn,
    /// The names of its first and last segment, if any is whole.
    pub segments: Option<(String, String)>,
    /// From where on it consists of pieces.
    pub pieces_from: Option<Lsn>,
}

/// WAL that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalGap {
    /// Its first byte.
    pub begin: Lsn,
    /// After its last byte.
    pub end: Lsn,
    /// The names of the first and last segment that is missing or not whole.
    pub segments: (String, String),
    /// How it came about and when, where that was recorded.
    pub record: Option<(String, String)>,
    /// Backups bring this WAL, so nothing is missing to a recovery.
    pub in_backups: bool,
    /// The WAL is there, and recovery cannot pass it: why.
    pub impassable: Option<String>,
}

/// Moments that can be recovered to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowList {
    /// The timeline to recover along.
    pub timeline: TimelineId,
    /// The first moment: a backup's end, by the clock of the host that took it.
    pub from: Option<String>,
    /// Where that backup is consistent.
    pub from_lsn: Lsn,
    /// The oldest backup.
    pub backup: BackupId,
    /// How many there are.
    pub backups: usize,
    /// The last commit or rollback, if there is one behind the backup.
    pub to: Option<TimestampTz>,
    /// Where its WAL ends.
    pub to_lsn: Lsn,
}

/// How many contents frames are read from the end of a window backwards for a moment.
const FRAMES: usize = 8;

/// What is held of the WAL of `cluster`, or of the only cluster there is.
///
/// # Errors
/// When the repository cannot be read.
pub fn list(store: &Arc<dyn Store>, cluster: Option<&str>) -> Result<WalList> {
    let cluster = repository::open(store, cluster)?;
    let archive = WalArchive::new(&cluster);
    let backups = cluster.backups()?.sound;
    let size = match backups.last() {
        Some(backup) => Some(segment_size_of(backup)?),
        None => archive
            .segment_size()
            .map_err(|e| doing("could not look at the WAL archive", e))?,
    };
    let Some(size) = size else {
        return Ok(WalList {
            cluster: cluster.name().to_owned(),
            timelines: Vec::new(),
            windows: Vec::new(),
        });
    };
    let sources = RecoverySources::read(&cluster, &backups, size)?;
    let lost = lost_at_switches(&sources);
    let mut shown = sources.archive.timelines.clone();
    for id in lost.keys() {
        shown
            .entry(*id)
            .or_insert_with(|| TimelineHoldings::empty(*id));
    }
    let mut timelines: Vec<TimelineList> = shown
        .values()
        .map(|held| {
            let lost = lost.get(&held.timeline).map_or(&[][..], Vec::as_slice);
            timeline(&sources, &archive, held, lost)
        })
        .collect::<Result<_>>()?;
    let mut found = Vec::new();
    let owner = backups.last().map(|backup| backup.system_identifier);
    let owner = owner.unwrap_or(SystemIdentifier(0));
    let reader = ArchiveWalReader::new(&cluster, size, owner);
    for timeline in leaves(&sources) {
        let path = RecoveryPath::new(&sources, timeline);
        for window in windows(&path, &reader, &sources)? {
            note_impassable(&mut timelines, &path, &window, &sources);
            let taken = backups.iter().find(|backup| backup.id == window.backup.id);
            found.push(WindowList {
                timeline,
                from: taken.map(|backup| next_second(&backup.finished_at)),
                from_lsn: window.backup.consistent,
                backups: window.backups,
                to: last_time(&path, &reader, window.backup.consistent..window.end)?,
                backup: window.backup.id,
                to_lsn: window.end,
            });
        }
    }
    Ok(WalList {
        cluster: cluster.name().to_owned(),
        timelines,
        windows: found,
    })
}

/// Adds WAL that is there and that recovery cannot pass to the gaps of its timeline.
fn note_impassable(
    timelines: &mut [TimelineList],
    path: &RecoveryPath,
    window: &Window,
    sources: &RecoverySources,
) {
    let (WalEnd::Broken(lsn, _) | WalEnd::MinimalWal(lsn) | WalEnd::Damaged(lsn, _)) = &window.why
    else {
        return;
    };
    let size = path.size();
    let timeline = path.history.timeline_of(*lsn);
    // Behind it, recovery goes on from the next backup.
    let next = path
        .backups(sources)
        .iter()
        .map(|backup| backup.start)
        .find(|start| start > lsn);
    let end = next
        .or(path.bounds().map(|held| held.end))
        .unwrap_or(*lsn)
        .max(*lsn);
    let name = |number| WalSegmentName { timeline, number }.name(size);
    let gap = WalGap {
        begin: *lsn,
        end,
        segments: (
            name(size.segment_number(*lsn)),
            name(size.segment_number_before(end)),
        ),
        record: None,
        in_backups: false,
        impassable: Some(describe_cause(&window.why, size)),
    };
    if let Some(list) = timelines.iter_mut().find(|list| list.timeline == timeline)
        && !list.gaps.contains(&gap)
    {
        list.gaps.push(gap);
        list.gaps.sort_by_key(|gap| gap.begin);
    }
}

/// Backups tell their end to the second, cut off; from the next one on everything is behind them.
fn next_second(finished_at: &str) -> String {
    finished_at
        .parse::<Timestamp>()
        .and_then(|time| time.checked_add(SignedDuration::from_secs(1)))
        .map_or_else(|_| finished_at.to_owned(), |time| time.to_string())
}

/// The timelines to recover along: those from which no other with WAL descends, and those that were left behind with WAL
/// of their own.
fn leaves(sources: &RecoverySources) -> Vec<TimelineId> {
    let with_wal = sources.timelines_with_wal();
    let paths: Vec<RecoveryPath> = with_wal
        .iter()
        .map(|timeline| RecoveryPath::new(sources, *timeline))
        .collect();
    let goes_further = |path: &RecoveryPath, other: &RecoveryPath| {
        let Some(left) = other.history.switch_lsn(path.timeline()) else {
            return false;
        };
        path.bounds().is_none_or(|held| held.end <= left)
    };
    paths
        .iter()
        .filter(|path| !paths.iter().any(|other| goes_further(path, other)))
        .map(RecoveryPath::timeline)
        .collect()
}

fn timeline(
    sources: &RecoverySources,
    archive: &WalArchive,
    held: &TimelineHoldings,
    lost: &[WalGap],
) -> Result<TimelineList> {
    let size = sources.size;
    let history = sources.history(held.timeline);
    let ranges = ranges(held, size);
    let plain_bytes = ranges.iter().map(|range| range.end - range.begin).sum();
    let path = RecoveryPath::new(sources, held.timeline);
    let name = |number| {
        let timeline = held.timeline;
        WalSegmentName { timeline, number }.name(size)
    };
    let mut gaps: Vec<WalGap> = ranges
        .windows(2)
        .map(|pair| WalGap {
            begin: pair[0].end,
            end: pair[1].begin,
            segments: (
                name(size.segment_number(pair[0].end)),
                name(size.segment_number_before(pair[1].begin)),
            ),
            record: None,
            in_backups: path.reach(pair[0].end) >= pair[1].begin,
            impassable: None,
        })
        .collect();
    for gap in lost {
        let seen = |seen: &WalGap| seen.begin < gap.end && gap.begin < seen.end;
        if !gaps.iter().any(seen) {
            gaps.push(gap.clone());
        }
    }
    for recorded in &held.gaps {
        let filled = ranges
            .iter()
            .any(|range| range.begin <= recorded.start && range.end >= recorded.end);
        if filled {
            continue;
        }
        let record = archive
            .gap(held.timeline, recorded)
            .map_err(|e| doing("could not read the record of a gap", e))?;
        note(&mut gaps, &record, size, &path);
    }
    gaps.sort_by_key(|gap| gap.begin);
    Ok(TimelineList {
        timeline: held.timeline,
        parent: history
            .entries
            .last()
            .map(|entry| (entry.timeline, entry.switch_lsn)),
        history_missing: sources.without_history().any(|one| one == held.timeline),
        ranges,
        gaps,
        segments: held.segments.len(),
        plain_bytes,
        stored_bytes: held.segments.iter().map(|(_, length)| length).sum(),
    })
}

/// What is missing where one timeline was left for another: of the old one up to there, of the new one from there on.
fn lost_at_switches(sources: &RecoverySources) -> BTreeMap<TimelineId, Vec<WalGap>> {
    let size = sources.size;
    let archived = RecoverySources {
        backups: Vec::new(),
        ..sources.clone()
    };
    let mut lost: BTreeMap<TimelineId, Vec<WalGap>> = BTreeMap::new();
    for target in sources.histories.keys() {
        let path = RecoveryPath::new(sources, *target);
        for hole in RecoveryPath::new(&archived, *target).missing_at_switches() {
            for part in path.history.ranges() {
                let timeline = part.timeline;
                let mut begin = hole.start.max(part.begin);
                let mut end = part.end.map_or(hole.end, |left| hole.end.min(left));
                // What is held and leads nowhere is shown as held.
                if let Some(held) = sources.archive.timelines.get(&timeline) {
                    for range in ranges(held, size) {
                        if range.begin <= begin && begin < range.end {
                            begin = range.end;
                        }
                        if range.begin < end && end <= range.end {
                            end = range.begin;
                        }
                    }
                }
                if begin >= end {
                    continue;
                }
                let in_backups = path.reach(begin) >= end;
                let gaps = lost.entry(timeline).or_default();
                let (others, mut same): (Vec<WalGap>, Vec<WalGap>) = gaps
                    .drain(..)
                    .partition(|gap| gap.end < begin || end < gap.begin);
                same.push(WalGap {
                    begin,
                    end,
                    segments: (String::new(), String::new()),
                    record: None,
                    in_backups,
                    impassable: None,
                });
                *gaps = others;
                gaps.extend(joined(&same, timeline, size));
            }
        }
    }
    lost
}

/// Gaps of a timeline that overlap, which several that descend from it show, as one.
fn joined(gaps: &[WalGap], timeline: TimelineId, size: WalSegmentSize) -> Option<WalGap> {
    let begin = gaps.iter().map(|gap| gap.begin).min()?;
    let end = gaps.iter().map(|gap| gap.end).max()?;
    let name = |number| WalSegmentName { timeline, number }.name(size);
    Some(WalGap {
        begin,
        end,
        segments: (
            name(size.segment_number(begin)),
            name(size.segment_number_before(end)),
        ),
        record: None,
        in_backups: gaps.iter().all(|gap| gap.in_backups),
        impassable: None,
    })
}

/// Adds what is recorded of a gap to the one that is seen there, or as one that nothing held shows yet.
fn note(gaps: &mut Vec<WalGap>, record: &Gap, size: WalSegmentSize, path: &RecoveryPath) {
    let told = Some((record.found_at.to_string(), record.reason.clone()));
    let seen = gaps
        .iter_mut()
        .find(|gap| gap.begin < record.end && record.begin < gap.end);
    if let Some(gap) = seen {
        gap.record = told;
        return;
    }
    let name = |number| {
        let timeline = record.timeline;
        WalSegmentName { timeline, number }.name(size)
    };
    gaps.push(WalGap {
        begin: record.begin,
        end: record.end,
        segments: (
            name(size.segment_number(record.begin)),
            name(size.segment_number_before(record.end)),
        ),
        record: told,
        in_backups: path.reach(record.begin) >= record.end,
        impassable: None,
    });
}

/// A run of whole segments, with the first's number and the last's, or a piece.
type Stretch = (Range<Lsn>, Option<(u64, u64)>);

/// Whole segments and pieces, joined where they follow one another.
fn ranges(held: &TimelineHoldings, size: WalSegmentSize) -> Vec<WalRange> {
    let name = |number| {
        let timeline = held.timeline;
        WalSegmentName { timeline, number }.name(size)
    };
    let mut stretches: Vec<Stretch> = held
        .segments
        .runs()
        .map(|run| {
            let begin = Lsn(run.start * size.bytes());
            let end = Lsn(run.end * size.bytes());
            (begin..end, Some((run.start, run.end - 1)))
        })
        .collect();
    let pieces = held.pieces.values().flatten().cloned();
    stretches.extend(pieces.map(|piece| (piece, None)));
    stretches.sort_by_key(|(stretch, _)| (stretch.start, stretch.end));
    let mut ranges: Vec<WalRange> = Vec::new();
    for (stretch, whole) in stretches {
        let names = whole.map(|(first, last)| (name(first), name(last)));
        let pieces_from = whole.is_none().then_some(stretch.start);
        match ranges.last_mut() {
            Some(last) if stretch.start <= last.end => {
                if stretch.end > last.end {
                    last.end = stretch.end;
                    // Pieces count where they are the tail.
                    last.pieces_from = match (whole, last.pieces_from) {
                        (Some(_), _) => None,
                        (None, Some(from)) => Some(from),
                        (None, None) => pieces_from,
                    };
                }
                last.segments = match (last.segments.take(), names) {
                    (Some((first, _)), Some((_, end))) => Some((first, end)),
                    (known, new) => known.or(new),
                };
            }
            _ => ranges.push(WalRange {
                begin: stretch.start,
                end: stretch.end,
                segments: names,
                pieces_from,
            }),
        }
    }
    ranges
}

/// The last moment in a stretch of a path, from a few frames at its end.
fn last_time(
    path: &RecoveryPath,
    reader: &dyn WalReader,
    stretch: Range<Lsn>,
) -> Result<Option<TimestampTz>> {
    for segment in path
        .segments(stretch.start, stretch.end)
        .into_iter()
        .rev()
        .take(FRAMES)
    {
        let summary = reader.summaries(&[segment])?.swap_remove(0);
        if summary.last_time.is_some() {
            return Ok(summary.last_time);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::path::tests::{World, backup, sources};

    const MIB: u64 = 1 << 20;

    #[test]
    fn ranges_join_segments_and_their_tail() {
        let size = WalSegmentSize::DEFAULT;
        let at = |number: u64, mib: u64| Lsn(number * size.bytes() + mib * MIB);
        let held = TimelineHoldings {
            segments: [(3, 1), (4, 1), (7, 1)].into_iter().collect(),
            pieces: BTreeMap::from([
                (4, vec![at(4, 0)..at(4, 1)]),
                (
                    8,
                    vec![at(8, 0)..at(8, 1), at(8, 1)..at(8, 3), at(8, 2)..at(8, 3)],
                ),
                (9, vec![at(9, 4)..at(9, 5)]),
            ]),
            ..TimelineHoldings::empty(TimelineId(1))
        };
        let name = |number: u64| format!("{:08X}{:08X}{number:08X}", 1, 0);
        assert_eq!(
            ranges(&held, size),
            [
                WalRange {
                    begin: at(3, 0),
                    end: at(5, 0),
                    segments: Some((name(3), name(4))),
                    pieces_from: None,
                },
                WalRange {
                    begin: at(7, 0),
                    end: at(8, 3),
                    segments: Some((name(7), name(7))),
                    pieces_from: Some(at(8, 0)),
                },
                WalRange {
                    begin: at(9, 4),
                    end: at(9, 5),
                    segments: None,
                    pieces_from: Some(at(9, 4)),
                },
            ]
        );
    }

    const SIZE: WalSegmentSize = WalSegmentSize::DEFAULT;

    fn at(number: u64, mib: u64) -> Lsn {
        Lsn(number * SIZE.bytes() + mib * MIB)
    }

    /// Timeline 2 left timeline 1 in the middle of segment 5.
    fn left(old: &[u64], new: &[u64]) -> World {
        World {
            timelines: BTreeMap::from([(1, (old.to_vec(), vec![])), (2, (new.to_vec(), vec![]))]),
            histories: BTreeMap::from([(1, vec![]), (2, vec![(1, at(5, 8))])]),
            ..World::default()
        }
    }

    /// By timeline: from where to where, the first and last segment's numbers, and whether backups bring it.
    fn lost(world: &World) -> Vec<(u32, Lsn, Lsn, String, bool)> {
        lost_at_switches(&sources(world, SIZE))
            .into_iter()
            .flat_map(|(timeline, gaps)| {
                gaps.into_iter().map(move |gap| {
                    let short = |name: &str| name[6..8].to_owned() + "/" + &name[22..];
                    let names = format!("{}-{}", short(&gap.segments.0), short(&gap.segments.1));
                    (timeline.0, gap.begin, gap.end, names, gap.in_backups)
                })
            })
            .collect()
    }

    #[test]
    fn the_end_of_a_timeline_that_was_left_is_missing() {
        assert_eq!(lost(&left(&[2, 3, 4], &[5, 6])), [], "nothing is");
        assert_eq!(lost(&left(&[2, 3, 4, 5, 6], &[5, 6])), []);
        // The new one brings the segment in which it began.
        let names = "01/03-01/04".to_owned();
        assert_eq!(
            lost(&left(&[2], &[5, 6])),
            [(1, at(3, 0), at(5, 0), names, false)]
        );
        let names = "01/03-01/05".to_owned();
        assert_eq!(
            lost(&left(&[2], &[])),
            [(1, at(3, 0), at(5, 8), names.clone(), false)],
            "nothing of the new one is held"
        );
        assert_eq!(
            lost(&left(&[2], &[6])),
            [
                (1, at(3, 0), at(5, 8), names, false),
                (2, at(5, 8), at(6, 0), "02/05-02/05".to_owned(), false)
            ]
        );
        // What was filled last is not there yet.
        assert_eq!(lost(&left(&[2, 3, 4], &[])), []);
        // Nothing of the old one was ever kept.
        assert_eq!(lost(&left(&[], &[6])), []);
    }

    #[test]
    fn the_beginning_of_a_timeline_is_missing() {
        let names = "02/05-02/05".to_owned();
        assert_eq!(
            lost(&left(&[4, 5, 6], &[6, 7])),
            [(2, at(5, 8), at(6, 0), names, false)]
        );
    }

    #[test]
    fn backups_bring_the_end_of_a_timeline() {
        let mut world = left(&[2], &[5, 6]);
        world.backups = vec![backup("aaaa", 1, at(2, 3), at(4, 9))];
        let names = "01/03-01/04".to_owned();
        assert_eq!(
            lost(&world),
            [(1, at(3, 0), at(5, 0), names.clone(), false)],
            "not all of it"
        );
        world.backups.push(backup("bbbb", 2, at(3, 1), at(6, 1)));
        world.backups[1].start_timeline = TimelineId(1);
        assert_eq!(lost(&world), [(1, at(3, 0), at(5, 0), names, true)]);
    }

    #[test]
    fn descendants_show_the_same_end_once() {
        let mut world = left(&[2], &[5, 6]);
        world.timelines.insert(3, (vec![7, 8], vec![]));
        world
            .histories
            .insert(3, vec![(1, at(5, 8)), (2, at(7, 1))]);
        world.timelines.insert(4, (vec![8], vec![]));
        world.histories.insert(4, vec![(1, at(8, 1))]);
        assert_eq!(
            lost(&world),
            [(1, at(3, 0), at(8, 0), "01/03-01/07".to_owned(), false)]
        );
    }
}
