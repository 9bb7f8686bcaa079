//! Where to go on: after what the archive holds, on the way to the timeline that the server has.

use leeward_pgformat::timeline::TimelineRange;
use leeward_pgformat::{Lsn, TimelineHistory, TimelineId, WalSegmentName, WalSegmentSize};
use leeward_repository::wal_archive::{Holdings, TimelineHoldings, contiguous_pieces};

/// The WAL segment that is missing first on the way to the server's timeline: behind what the archive holds without a
/// hole. What lies before the first thing it holds, or before the last recorded gap, is not looked for; what the server has from
/// `kept_from` on is no gap, whatever is recorded. `None` when it holds nothing on this way.
pub(super) fn first_missing(
    history: &TimelineHistory,
    holdings: &Holdings,
    kept_from: Lsn,
    size: WalSegmentSize,
) -> Option<WalSegmentName> {
    let ranges = history.ranges();
    let (at, anchor) = ranges.iter().enumerate().rev().find_map(|(at, range)| {
        let held = holdings.timelines.get(&range.timeline)?;
        anchor(held, range, kept_from, size).map(|number| (at, number))
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
fn anchor(
    held: &TimelineHoldings,
    range: &TimelineRange,
    kept_from: Lsn,
    size: WalSegmentSize,
) -> Option<u64> {
    let first = size.segment_number(range.begin);
    let last = range
        .end
        .map_or(u64::MAX, |end| size.segment_number_before(end));
    let within = |number: u64| (first..=last).contains(&number).then_some(number);
    let gap_end = held
        .gaps
        .iter()
        .filter(|gap| gap.start < kept_from)
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
            let covering = contiguous_pieces(pieces, segment.start_lsn(size));
            let covered = covering
                .last()
                .is_some_and(|last| last.end >= segment.end_lsn(size));
            if covered && !held.segments.contains(*number) {
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

/// The WAL segment before the wanted one, where the archive has it as a whole on the same timeline: a server that goes on
/// with this timeline has the same, or is not the one whose WAL the archive holds.
pub(super) fn held_before(wanted: WalSegmentName, holdings: &Holdings) -> Option<WalSegmentName> {
    let number = wanted.number.checked_sub(1)?;
    let held = holdings.timelines.get(&wanted.timeline)?;
    held.segments
        .contains(number)
        .then_some(WalSegmentName { number, ..wanted })
}

/// Whether anything of a timeline's WAL is held.
pub(super) fn has_wal(holdings: &Holdings, timeline: TimelineId) -> bool {
    holdings
        .timelines
        .get(&timeline)
        .is_some_and(|held| !held.segments.is_empty() || !held.pieces.is_empty())
}

/// Whether a stream that stands at `lsn` of `timeline` can go on with a server of this history.
pub(super) fn goes_on(history: &TimelineHistory, timeline: TimelineId, lsn: Lsn) -> bool {
    history.target == timeline
        || history
            .switch_lsn(timeline)
            .is_some_and(|switch| lsn <= switch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;

    const SIZE: WalSegmentSize = WalSegmentSize::DEFAULT;
    const MIB: u64 = 1 << 20;

    /// Timeline 2 begins in segment 5, timeline 3 in segment 8.
    fn history(target: u32) -> TimelineHistory {
        let text = ["1\t0/5400000\tx\n", "2\t0/8600000\tx\n"];
        TimelineHistory::parse(text[..target as usize - 1].concat(), TimelineId(target))
            .expect("a history")
    }

    /// Whole segments of timeline 1 and 2 by their numbers, and pieces of timeline 1 in MiB.
    fn holdings(whole: [&[u64]; 2], pieces: &[(u64, u64)], gap: Option<Range<u64>>) -> Holdings {
        let mut holdings = Holdings::default();
        for (timeline, numbers) in (1..).map(TimelineId).zip(whole) {
            let segments = numbers.iter().map(|number| (*number, 1)).collect();
            let mut held = TimelineHoldings {
                segments,
                ..TimelineHoldings::empty(timeline)
            };
            if timeline.0 == 1 {
                for (begin, end) in pieces {
                    let range = Lsn(begin * MIB)..Lsn(end * MIB);
                    held.pieces
                        .entry(SIZE.segment_number(range.start))
                        .or_default()
                        .push(range);
                }
                held.gaps.extend(
                    gap.clone()
                        .map(|gap| Lsn(gap.start * MIB)..Lsn(gap.end * MIB)),
                );
            }
            if !held.segments.is_empty() || !held.pieces.is_empty() || !held.gaps.is_empty() {
                holdings.timelines.insert(timeline, held);
            }
        }
        holdings
    }

    fn missing(target: u32, holdings: &Holdings) -> Option<(u32, u64)> {
        first_missing(&history(target), holdings, Lsn(u64::MAX), SIZE)
            .map(|segment| (segment.timeline.0, segment.number))
    }

    #[test]
    fn behind_what_is_held() {
        assert_eq!(missing(1, &holdings([&[], &[]], &[], None)), None);
        assert_eq!(
            missing(1, &holdings([&[2, 3, 4], &[]], &[], None)),
            Some((1, 5))
        );
        assert_eq!(
            missing(1, &holdings([&[2, 4], &[]], &[], None)),
            Some((1, 3)),
            "a hole"
        );
        assert_eq!(
            missing(1, &holdings([&[2, 4], &[]], &[], Some(48..64))),
            Some((1, 5)),
            "a recorded one"
        );
        let recorded = holdings([&[2, 4], &[]], &[], Some(48..64));
        let wanted = first_missing(&history(1), &recorded, Lsn(48 * MIB), SIZE);
        assert_eq!(
            wanted.map(|segment| segment.number),
            Some(3),
            "the server has it"
        );
        assert_eq!(
            missing(1, &holdings([&[2], &[]], &[(48, 50)], None)),
            Some((1, 3)),
            "pieces come again"
        );
        assert_eq!(
            missing(1, &holdings([&[], &[]], &[(48, 50)], None)),
            Some((1, 3))
        );
    }

    #[test]
    fn over_a_switch() {
        assert_eq!(
            missing(2, &holdings([&[3, 4], &[]], &[], None)),
            Some((1, 5)),
            "the old one's end"
        );
        assert_eq!(
            missing(2, &holdings([&[3, 4], &[]], &[(80, 84)], None)),
            Some((2, 5))
        );
        assert_eq!(
            missing(2, &holdings([&[3, 4], &[]], &[(80, 83)], None)),
            Some((1, 5))
        );
        assert_eq!(
            missing(2, &holdings([&[3, 4, 5, 6, 7], &[]], &[], None)),
            Some((2, 5)),
            "the old primary went on"
        );
        assert_eq!(
            missing(2, &holdings([&[3], &[5, 6]], &[], None)),
            Some((2, 7))
        );
        assert_eq!(
            missing(3, &holdings([&[3], &[5, 6, 7, 8]], &[], None)),
            Some((3, 8))
        );
        assert_eq!(
            missing(3, &holdings([&[3, 4], &[]], &[(80, 84)], None)),
            Some((2, 5))
        );
    }

    #[test]
    fn what_is_compared_first() {
        let before = |target: u32, holdings: &Holdings| {
            let wanted = first_missing(&history(target), holdings, Lsn(u64::MAX), SIZE)
                .expect("something held");
            held_before(wanted, holdings).map(|held| (held.timeline.0, held.number))
        };
        assert_eq!(
            before(1, &holdings([&[2, 3, 4], &[]], &[], None)),
            Some((1, 4))
        );
        assert_eq!(
            before(1, &holdings([&[2, 3], &[]], &[(64, 70)], None)),
            Some((1, 3)),
            "pieces of the wanted one are compared behind it"
        );
        assert_eq!(
            before(1, &holdings([&[], &[]], &[(48, 50)], None)),
            None,
            "nothing whole"
        );
        assert_eq!(
            before(1, &holdings([&[2], &[]], &[], Some(48..64))),
            None,
            "a gap"
        );
        assert_eq!(
            before(2, &holdings([&[3, 4], &[]], &[(80, 84)], None)),
            None,
            "of the parent"
        );
        assert_eq!(
            before(2, &holdings([&[3, 4], &[5]], &[], None)),
            Some((2, 5))
        );
        let first = WalSegmentName {
            timeline: TimelineId(1),
            number: 0,
        };
        assert_eq!(held_before(first, &Holdings::default()), None);
        let held = holdings([&[3, 4], &[]], &[], None);
        assert!(has_wal(&held, TimelineId(1)) && !has_wal(&held, TimelineId(2)));
    }

    #[test]
    fn what_an_interrupted_receiver_left() {
        let left = holdings(
            [&[3], &[]],
            &[(48, 50), (64, 70), (68, 80), (80, 90), (95, 96)],
            None,
        );
        let names = |found: Vec<WalSegmentName>| {
            found
                .iter()
                .map(|segment| segment.number)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(left_over(&left)), [3]);
        assert_eq!(names(covered_by_pieces(&left, SIZE)), [4]);
    }

    #[test]
    fn a_stream_goes_on_up_to_the_switch() {
        assert!(goes_on(&history(1), TimelineId(1), Lsn(1 << 40)));
        assert!(goes_on(&history(2), TimelineId(1), Lsn(0x540_0000)));
        assert!(!goes_on(&history(2), TimelineId(1), Lsn(0x540_0001)));
        assert!(!goes_on(&history(2), TimelineId(3), Lsn(1)));
    }
}
