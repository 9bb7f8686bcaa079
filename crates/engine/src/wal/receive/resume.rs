//! Where to go on: after what the archive holds, on the way to the timeline that the server has.

use leeward_pgformat::timeline::TimelineRange;
use leeward_pgformat::{Lsn, TimelineHistory, TimelineId, WalSegmentName, WalSegmentSize};
use leeward_repository::wal_archive::{Holdings, TimelineHoldings};

/// The WAL segment that is missing first on the way to the server's timeline: behind what the archive holds without a
/// hole. What lies before the first thing it holds, or before the last recorded gap, is not looked for. `None` when it
/// holds nothing on this way.
pub(super) fn first_missing(
    history: &TimelineHistory,
    holdings: &Holdings,
    size: WalSegmentSize,
) -> Option<WalSegmentName> {
    let ranges = history.ranges();
    let (at, anchor) = ranges.iter().enumerate().rev().find_map(|(at, range)| {
        let held = holdings.timelines.get(&range.timeline)?;
        anchor(held, range, size).map(|number| (at, number))
    })?;
    let mut number = anchor;
    for (range, next) in ranges[at..]
        .iter()
        .zip(ranges[at..].iter().skip(1).map(Some).chain([None]))
    {
        if let Some(held) = holdings.timelines.get(&range.timeline) {
            number = held.segments.run_end(number);
        }
        let segment = WalSegmentName {
            timeline: range.timeline,
            number,
        };
        let Some(next) = next else {
            return Some(segment);
        };
        if !is_covered(
            holdings.timelines.get(&range.timeline),
            segment,
            next.begin,
            size,
        ) {
            return Some(segment);
        }
        number = size.segment_number(next.begin);
    }
    None
}

/// The number of the WAL segment from which on a timeline's WAL is wanted without a hole.
fn anchor(held: &TimelineHoldings, range: &TimelineRange, size: WalSegmentSize) -> Option<u64> {
    let first = size.segment_number(range.begin);
    let last = range
        .end
        .map_or(u64::MAX, |end| size.segment_number_before(end));
    let within = |number: u64| (first..=last).contains(&number).then_some(number);
    let gap_end = held
        .gaps
        .iter()
        .map(|gap| size.segment_number(gap.end))
        .filter(|number| *number >= first && *number <= last)
        .max();
    if gap_end.is_some() {
        return gap_end;
    }
    let whole = held
        .segments
        .runs()
        .find(|run| run.end > first)
        .and_then(|run| within(run.start.max(first)));
    let piece = held.pieces.keys().copied().find_map(within);
    whole.into_iter().chain(piece).min()
}

/// Whether nothing is missing of a timeline from a WAL segment on up to where it was left.
fn is_covered(
    held: Option<&TimelineHoldings>,
    segment: WalSegmentName,
    left_at: Lsn,
    size: WalSegmentSize,
) -> bool {
    let start = segment.start_lsn(size);
    start >= left_at || held.is_some_and(|held| held.covered_to(start, size) >= left_at)
}

/// The WAL segments whose pieces cover them from the first byte to the last, although they are not there as a whole.
pub(super) fn covered_by_pieces(holdings: &Holdings, size: WalSegmentSize) -> Vec<WalSegmentName> {
    let mut found = Vec::new();
    for (timeline, held) in &holdings.timelines {
        for (number, pieces) in &held.pieces {
            let segment = WalSegmentName {
                timeline: *timeline,
                number: *number,
            };
            let mut reached = segment.start_lsn(size);
            for piece in pieces {
                if piece.start <= reached {
                    reached = reached.max(piece.end);
                }
            }
            if reached >= segment.end_lsn(size) && !held.segments.contains(*number) {
                found.push(segment);
            }
        }
    }
    found
}

/// The WAL segments that are there as a whole and as pieces.
pub(super) fn left_over(holdings: &Holdings) -> Vec<WalSegmentName> {
    let mut found = Vec::new();
    for (timeline, held) in &holdings.timelines {
        for number in held
            .pieces
            .keys()
            .filter(|number| held.segments.contains(**number))
        {
            found.push(WalSegmentName {
                timeline: *timeline,
                number: *number,
            });
        }
    }
    found
}

/// Whether a stream that stands at `lsn` of `timeline` can go on with a server of this history.
pub(super) fn goes_on(history: &TimelineHistory, timeline: TimelineId, lsn: Lsn) -> bool {
    history.target == timeline
        || history
            .switch_lsn(timeline)
            .is_some_and(|switch| lsn <= switch)
}
