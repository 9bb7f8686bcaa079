//! Relation segments that are missing in the middle of a fork.
//!
//! The server takes a fork to end at the first segment that is missing or shorter than 1 GiB (`mdnblocks`,
//! src/backend/storage/smgr/md.c): whatever lies in the segments behind it is lost to queries, silently.

use leeward_pgformat::relation::RelationSegment;
use leeward_pgformat::{PAGE_SIZE, RELATION_SEGMENT_BLOCKS};

/// Bytes of every segment of a fork but the last.
pub(super) const FULL: u64 = RELATION_SEGMENT_BLOCKS as u64 * PAGE_SIZE as u64;

/// Finds forks that end before their last segment, from the segments that a backup stores, those of a fork one after
/// another.
#[derive(Debug, Default)]
pub(super) struct SegmentCheck {
    /// The fork that is passing by, as its first segment, and its segments' numbers and bytes.
    fork: Option<RelationSegment>,
    segments: Vec<(u32, u64)>,
    suspects: Vec<Suspect>,
}

/// A fork that may have lost a segment, or was caught in the middle of a change.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Suspect {
    /// The segment that is missing or short.
    pub broken: RelationSegment,
    /// A segment behind it that is not empty.
    pub behind: RelationSegment,
}

impl SegmentCheck {
    /// Takes note of a stored segment.
    pub(super) fn add(&mut self, segment: RelationSegment, size_bytes: u64) {
        let first = RelationSegment {
            segment: 0,
            ..segment
        };
        if self.fork != Some(first) {
            self.close();
            self.fork = Some(first);
        }
        self.segments.push((segment.segment, size_bytes));
    }

    /// The forks to be looked at again.
    pub(super) fn finish(mut self) -> Vec<Suspect> {
        self.close();
        self.suspects
    }

    fn close(&mut self) {
        let Some(fork) = self.fork.take() else {
            return;
        };
        let segments = &mut self.segments;
        segments.sort_unstable();
        if let Some((broken, behind)) = broken(segments) {
            self.suspects.push(Suspect {
                broken: RelationSegment {
                    segment: broken,
                    ..fork
                },
                behind: RelationSegment {
                    segment: behind,
                    ..fork
                },
            });
        }
        segments.clear();
    }
}

/// The first segment that is missing or short, and the last one that holds anything, where that lies behind it.
fn broken(segments: &[(u32, u64)]) -> Option<(u32, u32)> {
    let whole = segments
        .iter()
        .zip(0..)
        .take_while(|((number, size), expected)| number == expected && *size == FULL)
        .count() as u32;
    let (last, _) = segments.iter().rev().find(|(_, size)| *size > 0)?;
    (*last > whole).then_some((whole, *last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_ends_at_its_first_short_segment() {
        const HALF: u64 = FULL / 2;
        for (segments, expected) in [
            (vec![], None),
            (vec![(0, 0)], None),
            (vec![(0, HALF)], None),
            (vec![(0, FULL)], None),
            (vec![(0, FULL), (1, HALF)], None),
            (vec![(0, FULL), (1, FULL), (2, 0)], None),
            // Truncated: the server keeps the files behind, empty.
            (vec![(0, HALF), (1, 0), (2, 0)], None),
            (vec![(0, FULL), (2, HALF)], Some((1, 2))),
            (vec![(0, FULL), (2, FULL), (3, HALF)], Some((1, 3))),
            (vec![(1, HALF)], Some((0, 1))),
            (vec![(0, HALF), (1, HALF)], Some((0, 1))),
            (vec![(0, FULL), (1, 0), (2, HALF)], Some((1, 2))),
            (vec![(0, FULL), (2, 0)], None),
        ] {
            assert_eq!(broken(&segments), expected, "{segments:?}");
        }
    }

    #[test]
    fn forks_are_told_apart() {
        let segment = |path: &str| RelationSegment::parse(path).expect("a relation segment");
        let mut check = SegmentCheck::default();
        for (path, size) in [
            ("base/5/16384", FULL),
            ("base/5/16384.1", FULL),
            ("base/5/16384.10", 8192),
            ("base/5/16384_fsm", 8192),
            ("base/5/16385", FULL),
            ("base/6/16385.1", 8192),
        ] {
            check.add(segment(path), size);
        }
        let suspects = check.finish();
        let expected = [
            ("base/5/16384.2", "base/5/16384.10"),
            ("base/6/16385", "base/6/16385.1"),
        ]
        .map(|(broken, behind)| Suspect {
            broken: segment(broken),
            behind: segment(behind),
        });
        assert_eq!(suspects, expected);
    }
}
