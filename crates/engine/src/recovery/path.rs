//! The WAL that leads to a timeline, segment by segment, as recovery would be given it; how far it reaches, and what is
//! missing.
//!
//! The server asks for each segment on the newest timeline of the path first, then on its ancestors
//! (`XLogFileReadAnyTLI`, src/backend/access/transam/xlogrecovery.c), and `wal get` answers with the whole segment, else
//! with the longest of pieces and backups' WAL; where a timeline's later WAL is there and this segment is not, it
//! refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use leeward_pgformat::timeline::{TimelineHistory, TimelineRange};
use leeward_pgformat::{Lsn, TimelineId, WalSegmentName, WalSegmentSize};
use leeward_repository::backup_id::BackupId;
use leeward_repository::wal_archive::{TimelineHoldings, contiguous_pieces};

use super::sources::{BackupRange, RecoverySources};

/// Where the bytes of a segment come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SegmentSource {
    /// A whole segment in the archive, of that stored length.
    Whole { stored_length: u64 },
    /// Pieces in the archive that follow one another from the segment's beginning.
    Pieces(Vec<Range<Lsn>>),
    /// The WAL of a backup.
    Backup(BackupId),
}

/// A WAL segment of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathSegment {
    pub number: u64,
    /// The timeline in the file's name.
    pub timeline: TimelineId,
    pub source: SegmentSource,
    /// Up to where it holds WAL of the path.
    pub end: Lsn,
}

impl PathSegment {
    pub(crate) const fn name(&self) -> WalSegmentName {
        WalSegmentName {
            timeline: self.timeline,
            number: self.number,
        }
    }

    /// Its first byte.
    pub(crate) const fn begin(&self, size: WalSegmentSize) -> Lsn {
        self.name().start_lsn(size)
    }
}

/// WAL that is missing between what is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MissingWal {
    /// The first missing byte.
    pub begin: Lsn,
    /// Where WAL is held again.
    pub end: Lsn,
    /// The first segment that is missing, or not whole.
    pub first: WalSegmentName,
    /// The last one.
    pub last: WalSegmentName,
}

impl MissingWal {
    /// How many segments are missing.
    pub(crate) const fn count(&self) -> u64 {
        self.last.number - self.first.number + 1
    }
}

/// The WAL segments that recovery along a timeline is given.
#[derive(Clone, Debug)]
pub(crate) struct RecoveryPath {
    pub history: TimelineHistory,
    size: WalSegmentSize,
    segments: BTreeMap<u64, PathSegment>,
    /// For each segment, how far WAL reaches from it without a hole.
    reach: BTreeMap<u64, Lsn>,
    /// Where pieces begin that follow on none.
    strays: BTreeSet<Lsn>,
}

impl RecoveryPath {
    pub(crate) fn new(sources: &RecoverySources, timeline: TimelineId) -> Self {
        let history = sources.history(timeline);
        let size = sources.size;
        let mut segments = BTreeMap::new();
        let mut strays = BTreeSet::new();
        for range in history.ranges() {
            strays.extend(strays_of(sources, range));
            for (number, segment) in of_timeline(sources, &history, range) {
                // Newer timelines come later, and are asked first.
                segments.insert(number, segment);
            }
            // Where this timeline goes on, an ancestor's segment is not given in place of a missing one.
            segments.retain(|number, segment: &mut PathSegment| {
                segment.timeline == range.timeline
                    || *number < size.segment_number(range.begin)
                    || !has_later(sources, range.timeline, *number)
            });
        }
        let mut reach: BTreeMap<u64, Lsn> = BTreeMap::new();
        for (number, segment) in segments.iter().rev() {
            let mut end = segment.end;
            let whole = segment.end == segment.name().end_lsn(size);
            if whole
                && let Some(next) = segments.get(&(number + 1))
                && next.timeline >= segment.timeline
                && let Some(further) = reach.get(&(number + 1))
            {
                end = *further;
            }
            reach.insert(*number, end);
        }
        Self {
            history,
            size,
            segments,
            reach,
            strays,
        }
    }

    /// The timeline that it leads to.
    pub(crate) const fn timeline(&self) -> TimelineId {
        self.history.target
    }

    pub(crate) const fn size(&self) -> WalSegmentSize {
        self.size
    }

    /// How far WAL reaches from `from` without a hole; `from` where that is not held.
    pub(crate) fn reach(&self, from: Lsn) -> Lsn {
        self.reach
            .get(&self.size.segment_number(from))
            .map_or(from, |end| from.max(*end))
    }

    /// The segments from that of `from` to that of the byte before `to`.
    pub(crate) fn segments(&self, from: Lsn, to: Lsn) -> Vec<&PathSegment> {
        let (first, last) = (
            self.size.segment_number(from),
            self.size.segment_number_before(to),
        );
        if from >= to {
            return Vec::new();
        }
        self.segments
            .range(first..=last)
            .map(|(_, segment)| segment)
            .collect()
    }

    /// The segments that lead without a hole to the byte before `to`, in order: that byte's own and up to `count` before it.
    pub(crate) fn contiguous_before(&self, to: Lsn, count: usize) -> Vec<&PathSegment> {
        let mut found: Vec<&PathSegment> = Vec::new();
        let mut next = self.size.segment_number_before(to) + 1;
        while found.len() <= count
            && let Some(number) = next.checked_sub(1)
            && let Some(segment) = self.segments.get(&number)
        {
            let leads_on = found.last().is_none_or(|later| {
                segment.end == segment.name().end_lsn(self.size)
                    && later.timeline >= segment.timeline
            });
            if !leads_on {
                break;
            }
            found.push(segment);
            next = number;
        }
        found.reverse();
        found
    }

    /// The beginning of the first WAL held and the end of the last.
    pub(crate) fn bounds(&self) -> Option<Range<Lsn>> {
        let (_, first) = self.segments.first_key_value()?;
        let (_, last) = self.segments.last_key_value()?;
        Some(first.name().start_lsn(self.size)..last.end)
    }

    /// What is missing behind `end`, where WAL ends; `None` when nothing is held after it.
    pub(crate) fn missing_at(&self, end: Lsn) -> Option<MissingWal> {
        let number = self.size.segment_number(end);
        let next_segment = self
            .segments
            .range(number..)
            .map(|(_, segment)| segment.name().start_lsn(self.size))
            .find(|begin| *begin >= end);
        let stray = self.strays.range(Lsn(end.0 + 1)..).next().copied();
        let begin_of_next = match (next_segment, stray) {
            (Some(segment), Some(stray)) => segment.min(stray),
            (one, other) => one.or(other)?,
        };
        Some(MissingWal {
            begin: end,
            end: begin_of_next,
            first: self.expected(number),
            last: self.expected(self.size.segment_number_before(begin_of_next).max(number)),
        })
    }

    /// What is missing between the WAL of one timeline and that of another behind it; and behind the last WAL, where that
    /// ends in a segment before the one in which its timeline was left.
    pub(crate) fn missing_at_switches(&self) -> Vec<Range<Lsn>> {
        let mut holes = Vec::new();
        let mut segments = self.segments.values().peekable();
        while let Some(segment) = segments.next() {
            let next = segments
                .peek()
                .map(|next| (next.name().start_lsn(self.size), next.timeline));
            let stray = self
                .strays
                .range(Lsn(segment.end.0 + 1)..)
                .next()
                .map(|begin| (*begin, self.history.timeline_of(*begin)));
            // Left, it goes on in the first segment of the next timeline, which may not be full yet.
            let left = self
                .history
                .switch_lsn(segment.timeline)
                .filter(|left| {
                    self.size.segment_number(segment.end) < self.size.segment_number(*left)
                })
                .map(|left| (left, self.timeline()));
            let behind = match (next, stray) {
                (Some(next), Some(stray)) => Some(next.min(stray)),
                (one, other) => one.or(other).or(left),
            };
            if let Some((begin, timeline)) = behind
                && begin > segment.end
                && timeline != segment.timeline
            {
                holes.push(segment.end..begin);
            }
        }
        holes
    }

    /// The file that should hold a segment of this path.
    pub(crate) fn expected(&self, number: u64) -> WalSegmentName {
        let segment = WalSegmentName {
            timeline: self.timeline(),
            number,
        };
        WalSegmentName {
            timeline: self
                .history
                .timeline_of(Lsn(segment.end_lsn(self.size).0 - 1)),
            number,
        }
    }

    /// The backups whose recovery leads along here, oldest first.
    pub(crate) fn backups<'a>(&self, sources: &'a RecoverySources) -> Vec<&'a BackupRange> {
        let mut backups: Vec<&BackupRange> = sources
            .backups
            .iter()
            .filter(|backup| backup.lies_on(&self.history))
            .collect();
        backups.sort_by_key(|backup| (backup.stop, backup.start));
        backups
    }
}

/// The segments with the name of one timeline of a path, as far as their WAL belongs to it.
fn of_timeline(
    sources: &RecoverySources,
    history: &TimelineHistory,
    range: TimelineRange,
) -> BTreeMap<u64, PathSegment> {
    let size = sources.size;
    let first = size.segment_number(range.begin);
    let mut segments: BTreeMap<u64, PathSegment> = BTreeMap::new();
    let mut offer = |number: u64, source: SegmentSource, end: Lsn| {
        let name = WalSegmentName {
            timeline: range.timeline,
            number,
        };
        let end = range.end.map_or(end, |left| end.min(left));
        if number < first || end <= name.start_lsn(size) {
            return;
        }
        let better = segments
            .get(&number)
            .is_none_or(|segment| segment.end < end);
        if better {
            segments.insert(
                number,
                PathSegment {
                    number,
                    timeline: range.timeline,
                    source,
                    end,
                },
            );
        }
    };
    if let Some(held) = sources.archive.timelines.get(&range.timeline) {
        for (number, stored_length) in held.segments.iter() {
            let end = end_of(range.timeline, number, size);
            offer(number, SegmentSource::Whole { stored_length }, end);
        }
        for (number, pieces) in &held.pieces {
            let begin = WalSegmentName {
                timeline: range.timeline,
                number: *number,
            }
            .start_lsn(size);
            let chain = contiguous_pieces(pieces, begin);
            if let Some(last) = chain.last() {
                let end = last.end;
                offer(*number, SegmentSource::Pieces(chain), end);
            }
        }
    }
    for backup in &sources.backups {
        let own = sources.history(backup.stop_timeline);
        // Its WAL is this path's as far as both have the same past.
        let shared = backup.stop.min(common_past(&own, history));
        let mut number = size.segment_number(backup.start);
        while shared > end_before(number, size) {
            let end = end_of(range.timeline, number, size).min(shared);
            // The file has the name of the timeline on which the segment, as far as it is stored, ends.
            let stored_end = end_of(range.timeline, number, size).min(backup.stop);
            if own.timeline_of(Lsn(stored_end.0 - 1)) == range.timeline {
                offer(number, SegmentSource::Backup(backup.id.clone()), end);
            }
            number += 1;
        }
    }
    segments
}

/// Where pieces of one timeline of a path begin that follow on none.
fn strays_of(sources: &RecoverySources, range: TimelineRange) -> Vec<Lsn> {
    let size = sources.size;
    let Some(held) = sources.archive.timelines.get(&range.timeline) else {
        return Vec::new();
    };
    let mut strays = Vec::new();
    for (number, pieces) in &held.pieces {
        if held.segments.contains(*number) {
            continue;
        }
        let mut reached = end_before(*number, size);
        for piece in pieces {
            let begin = piece.start;
            if begin > reached && begin >= range.begin && range.end.is_none_or(|left| begin < left)
            {
                strays.push(begin);
            }
            reached = reached.max(piece.end);
        }
    }
    strays
}

fn end_of(timeline: TimelineId, number: u64, size: WalSegmentSize) -> Lsn {
    WalSegmentName { timeline, number }.end_lsn(size)
}

fn end_before(number: u64, size: WalSegmentSize) -> Lsn {
    Lsn(number * size.bytes())
}

/// Up to where two timelines have the same past.
fn common_past(one: &TimelineHistory, other: &TimelineHistory) -> Lsn {
    let everything = Lsn(u64::MAX);
    for (a, b) in one.ranges().iter().zip(other.ranges()) {
        if a.timeline != b.timeline {
            return a.begin.max(b.begin);
        }
        if a.end != b.end {
            return a.end.unwrap_or(everything).min(b.end.unwrap_or(everything));
        }
    }
    everything
}

/// Whether the archive holds WAL of `timeline` behind segment `number`, so that `wal get` refuses to call it absent.
fn has_later(sources: &RecoverySources, timeline: TimelineId, number: u64) -> bool {
    let later = |held: &TimelineHoldings| {
        held.segments.last().is_some_and(|last| last > number)
            || held
                .pieces
                .keys()
                .next_back()
                .is_some_and(|last| *last > number)
    };
    sources.archive.timelines.get(&timeline).is_some_and(later)
}

#[cfg(test)]
#[path = "path_tests.rs"]
pub(crate) mod tests;
