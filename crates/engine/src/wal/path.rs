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
use leeward_repository::wal_archive::TimelineHoldings;

use super::coverage::{Coverage, OwnWal};

/// Where the bytes of a segment come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A whole segment in the archive, of that stored length.
    Whole { stored_length: u64 },
    /// Pieces in the archive that follow one another from the segment's beginning.
    Pieces(Vec<Range<Lsn>>),
    /// The WAL of a backup.
    Backup(BackupId),
}

/// One segment on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub number: u64,
    /// The timeline in the file's name.
    pub timeline: TimelineId,
    pub source: Source,
    /// Up to where it holds WAL of the path.
    pub end: Lsn,
}

impl Step {
    pub(crate) const fn name(&self) -> WalSegmentName {
        WalSegmentName {
            timeline: self.timeline,
            number: self.number,
        }
    }
}

/// WAL that is missing between what is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hole {
    /// The first missing byte.
    pub begin: Lsn,
    /// Where WAL is held again.
    pub end: Lsn,
    /// The first segment that is missing, or not whole.
    pub first: WalSegmentName,
    /// The last one.
    pub last: WalSegmentName,
}

impl Hole {
    pub(crate) const fn segments(&self) -> u64 {
        self.last.number - self.first.number + 1
    }
}

/// The way to a timeline.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    pub history: TimelineHistory,
    size: WalSegmentSize,
    steps: BTreeMap<u64, Step>,
    /// For each step, how far WAL reaches from it without a hole.
    reach: BTreeMap<u64, Lsn>,
    /// Where pieces begin that follow on none.
    strays: BTreeSet<Lsn>,
}

impl Path {
    pub(crate) fn new(coverage: &Coverage, timeline: TimelineId) -> Self {
        let history = coverage.history(timeline);
        let size = coverage.size;
        let mut steps = BTreeMap::new();
        let mut strays = BTreeSet::new();
        for range in history.ranges() {
            strays.extend(strays_of(coverage, range));
            for (number, step) in of_timeline(coverage, &history, range) {
                // Newer timelines come later, and are asked first.
                steps.insert(number, step);
            }
            // Where this timeline goes on, an ancestor's segment is not given in place of a missing one.
            steps.retain(|number, step: &mut Step| {
                step.timeline == range.timeline
                    || *number < size.segment_number(range.begin)
                    || !has_later(coverage, range.timeline, *number)
            });
        }
        let mut reach: BTreeMap<u64, Lsn> = BTreeMap::new();
        for (number, step) in steps.iter().rev() {
            let mut end = step.end;
            let whole = step.end == step.name().end_lsn(size);
            if whole
                && let Some(next) = steps.get(&(number + 1))
                && next.timeline >= step.timeline
                && let Some(further) = reach.get(&(number + 1))
            {
                end = *further;
            }
            reach.insert(*number, end);
        }
        Self {
            history,
            size,
            steps,
            reach,
            strays,
        }
    }

    /// The timeline it leads to.
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
    pub(crate) fn steps(&self, from: Lsn, to: Lsn) -> Vec<&Step> {
        let (first, last) = (
            self.size.segment_number(from),
            self.size.segment_number_before(to),
        );
        if from >= to {
            return Vec::new();
        }
        self.steps
            .range(first..=last)
            .map(|(_, step)| step)
            .collect()
    }

    /// The beginning of the first WAL held and the end of the last.
    pub(crate) fn bounds(&self) -> Option<Range<Lsn>> {
        let (_, first) = self.steps.first_key_value()?;
        let (_, last) = self.steps.last_key_value()?;
        Some(first.name().start_lsn(self.size)..last.end)
    }

    /// What is missing behind `end`, where WAL ends; `None` when nothing is held after it.
    pub(crate) fn hole_at(&self, end: Lsn) -> Option<Hole> {
        let number = self.size.segment_number(end);
        let next_step = self
            .steps
            .range(number..)
            .map(|(_, step)| step.name().start_lsn(self.size))
            .find(|begin| *begin >= end);
        let stray = self.strays.range(Lsn(end.0 + 1)..).next().copied();
        let begin_of_next = match (next_step, stray) {
            (Some(step), Some(stray)) => step.min(stray),
            (one, other) => one.or(other)?,
        };
        Some(Hole {
            begin: end,
            end: begin_of_next,
            first: self.expected(number),
            last: self.expected(self.size.segment_number_before(begin_of_next).max(number)),
        })
    }

    /// What is missing between the WAL of one timeline and that of another behind it; and behind the last WAL, where that
    /// ends in a segment before the one in which its timeline was left.
    pub(crate) fn holes_at_switches(&self) -> Vec<Range<Lsn>> {
        let mut holes = Vec::new();
        let mut steps = self.steps.values().peekable();
        while let Some(step) = steps.next() {
            let next = steps
                .peek()
                .map(|next| (next.name().start_lsn(self.size), next.timeline));
            let stray = self
                .strays
                .range(Lsn(step.end.0 + 1)..)
                .next()
                .map(|begin| (*begin, self.history.timeline_of(*begin)));
            // Left, it goes on in the first segment of the next timeline, which may not be full yet.
            let left = self
                .history
                .switch_lsn(step.timeline)
                .filter(|left| self.size.segment_number(step.end) < self.size.segment_number(*left))
                .map(|left| (left, self.timeline()));
            let behind = match (next, stray) {
                (Some(next), Some(stray)) => Some(next.min(stray)),
                (one, other) => one.or(other).or(left),
            };
            if let Some((begin, timeline)) = behind
                && begin > step.end
                && timeline != step.timeline
            {
                holes.push(step.end..begin);
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
    pub(crate) fn backups<'a>(&self, coverage: &'a Coverage) -> Vec<&'a OwnWal> {
        let mut backups: Vec<&OwnWal> = coverage
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
    coverage: &Coverage,
    history: &TimelineHistory,
    range: TimelineRange,
) -> BTreeMap<u64, Step> {
    let size = coverage.size;
    let first = size.segment_number(range.begin);
    let mut steps: BTreeMap<u64, Step> = BTreeMap::new();
    let mut offer = |number: u64, source: Source, end: Lsn| {
        let name = WalSegmentName {
            timeline: range.timeline,
            number,
        };
        let end = range.end.map_or(end, |left| end.min(left));
        if number < first || end <= name.start_lsn(size) {
            return;
        }
        let better = steps.get(&number).is_none_or(|step| step.end < end);
        if better {
            steps.insert(
                number,
                Step {
                    number,
                    timeline: range.timeline,
                    source,
                    end,
                },
            );
        }
    };
    if let Some(held) = coverage.archive.timelines.get(&range.timeline) {
        for (number, stored_length) in held.segments.iter() {
            let end = end_of(range.timeline, number, size);
            offer(number, Source::Whole { stored_length }, end);
        }
        for (number, pieces) in &held.pieces {
            let begin = WalSegmentName {
                timeline: range.timeline,
                number: *number,
            }
            .start_lsn(size);
            let chain = chain(pieces, begin);
            if let Some(last) = chain.last() {
                let end = last.end;
                offer(*number, Source::Pieces(chain), end);
            }
        }
    }
    for backup in &coverage.backups {
        let own = coverage.history(backup.stop_timeline);
        // Its WAL is this path's as far as both have the same past.
        let shared = backup.stop.min(common_past(&own, history));
        let mut number = size.segment_number(backup.start);
        while shared > end_before(number, size) {
            let end = end_of(range.timeline, number, size).min(shared);
            // The file has the name of the timeline on which the segment, as far as it is stored, ends.
            let stored_end = end_of(range.timeline, number, size).min(backup.stop);
            if own.timeline_of(Lsn(stored_end.0 - 1)) == range.timeline {
                offer(number, Source::Backup(backup.id.clone()), end);
            }
            number += 1;
        }
    }
    steps
}

/// Where pieces of one timeline of a path begin that follow on none.
fn strays_of(coverage: &Coverage, range: TimelineRange) -> Vec<Lsn> {
    let size = coverage.size;
    let Some(held) = coverage.archive.timelines.get(&range.timeline) else {
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
fn has_later(coverage: &Coverage, timeline: TimelineId, number: u64) -> bool {
    let later = |held: &TimelineHoldings| {
        held.segments.last().is_some_and(|last| last > number)
            || held
                .pieces
                .keys()
                .next_back()
                .is_some_and(|last| *last > number)
    };
    coverage.archive.timelines.get(&timeline).is_some_and(later)
}

/// The pieces that, one after the other, cover most from `begin` on.
fn chain(pieces: &[Range<Lsn>], begin: Lsn) -> Vec<Range<Lsn>> {
    let mut chain: Vec<Range<Lsn>> = Vec::new();
    let mut reached = begin;
    let mut best: Option<&Range<Lsn>> = None;
    for piece in pieces {
        if piece.start > reached {
            match best.take() {
                Some(next) if piece.start <= next.end => {
                    reached = next.end;
                    chain.push(next.clone());
                }
                other => {
                    best = other;
                    break;
                }
            }
        }
        if piece.end > reached && best.is_none_or(|best| piece.end > best.end) {
            best = Some(piece);
        }
    }
    chain.extend(best.cloned());
    chain
}

#[cfg(test)]
#[path = "path_tests.rs"]
pub(crate) mod tests;
