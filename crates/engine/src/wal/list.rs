//! What is held of a cluster's WAL: ranges, gaps, sizes, and the moments that can be recovered to.

use std::ops::Range;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use leeward_pgformat::{Lsn, TimelineId, TimestampTz, WalSegmentName, WalSegmentSize};
use leeward_repository::backup_id::BackupId;
use leeward_repository::store::Store;
use leeward_repository::wal_archive::{Gap, TimelineHoldings, WalArchive};

use super::coverage::{Coverage, segment_size_of};
use super::path::Path;
use crate::error::Result;
use crate::repository::{self, doing};
use crate::restore::unreachable::windows;
use crate::restore::witness::{Repository as Looking, Witness};

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
    /// Runs of whole segments, and the pieces behind each.
    pub ranges: Vec<WalRange>,
    /// What is missing between them.
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
    let coverage = Coverage::read(&cluster, &backups, size)?;
    let timelines = coverage
        .archive
        .timelines
        .values()
        .map(|held| timeline(&coverage, &archive, held))
        .collect::<Result<_>>()?;
    let mut found = Vec::new();
    let looking = Looking::new(&cluster, size);
    for timeline in leaves(&coverage) {
        let path = Path::new(&coverage, timeline);
        for window in windows(&path, &coverage) {
            let taken = backups.iter().find(|backup| backup.id == window.backup.id);
            found.push(WindowList {
                timeline,
                from: taken.map(|backup| next_second(&backup.finished_at)),
                from_lsn: window.backup.stop,
                backups: window.backups,
                to: last_time(&path, &looking, window.backup.stop..window.end)?,
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

/// Backups tell their end to the second, cut off; from the next one on everything is behind them.
fn next_second(finished_at: &str) -> String {
    finished_at
        .parse::<Timestamp>()
        .and_then(|time| time.checked_add(SignedDuration::from_secs(1)))
        .map_or_else(|_| finished_at.to_owned(), |time| time.to_string())
}

/// The timelines to recover along: those from which no other with WAL descends, and those that were left behind with WAL
/// of their own.
fn leaves(coverage: &Coverage) -> Vec<TimelineId> {
    let with_wal = coverage.timelines_with_wal();
    let paths: Vec<Path> = with_wal
        .iter()
        .map(|timeline| Path::new(coverage, *timeline))
        .collect();
    let goes_further = |path: &Path, other: &Path| {
        let Some(left) = other.history.switch_lsn(path.timeline()) else {
            return false;
        };
        path.bounds().is_none_or(|held| held.end <= left)
    };
    paths
        .iter()
        .filter(|path| !paths.iter().any(|other| goes_further(path, other)))
        .map(Path::timeline)
        .collect()
}

fn timeline(
    coverage: &Coverage,
    archive: &WalArchive,
    held: &TimelineHoldings,
) -> Result<TimelineList> {
    let size = coverage.size;
    let history = coverage.history(held.timeline);
    let ranges = ranges(held, size);
    let plain_bytes = ranges.iter().map(|range| range.end - range.begin).sum();
    let path = Path::new(coverage, held.timeline);
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
        })
        .collect();
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
        ranges,
        gaps,
        segments: held.segments.len(),
        plain_bytes,
        stored_bytes: held.segments.iter().map(|(_, length)| length).sum(),
    })
}

/// Adds what is recorded of a gap to the one that is seen there, or as one that nothing held shows yet.
fn note(gaps: &mut Vec<WalGap>, record: &Gap, size: WalSegmentSize, path: &Path) {
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
    path: &Path,
    witness: &dyn Witness,
    stretch: Range<Lsn>,
) -> Result<Option<TimestampTz>> {
    for step in path
        .steps(stretch.start, stretch.end)
        .into_iter()
        .rev()
        .take(FRAMES)
    {
        let last = witness.last_time(step)?;
        if last.is_some() {
            return Ok(last);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use leeward_repository::wal_archive::Segments;
    use std::collections::BTreeMap;

    const MIB: u64 = 1 << 20;

    #[test]
    fn ranges_join_segments_and_their_tail() {
        let size = WalSegmentSize::DEFAULT;
        let at = |number: u64, mib: u64| Lsn(number * size.bytes() + mib * MIB);
        let held = TimelineHoldings {
            timeline: TimelineId(1),
            segments: [(3, 1), (4, 1), (7, 1)].into_iter().collect::<Segments>(),
            pieces: BTreeMap::from([
                (4, vec![at(4, 0)..at(4, 1)]),
                (
                    8,
                    vec![at(8, 0)..at(8, 1), at(8, 1)..at(8, 3), at(8, 2)..at(8, 3)],
                ),
                (9, vec![at(9, 4)..at(9, 5)]),
            ]),
            history: false,
            backup_files: Vec::new(),
            gaps: Vec::new(),
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
}
