//! What an archive holds, from the names of its objects.

use std::collections::BTreeMap;
use std::io;
use std::ops::{ControlFlow, Range};

use leeward_pgformat::{Lsn, TimelineId, WalLongHeader, WalSegmentSize};

use super::WalArchive;
use super::names::{ArchivedName, begins_wal_segment};
use super::pieces::{PIECES_LIMIT, contiguous_pieces};
use super::read::{Beginning, read_object};
use crate::layout;
use crate::repository_error::RepositoryError;
use crate::store::too_many;

/// What the archive holds, timeline by timeline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    /// The timelines of which anything is there.
    pub timelines: BTreeMap<TimelineId, TimelineHoldings>,
}

/// What the archive holds of one timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHoldings {
    /// The timeline.
    pub timeline: TimelineId,
    /// Its whole WAL segments.
    pub segments: Segments,
    /// By WAL segment number, the pieces: each list sorted by beginning, then end. They may overlap.
    pub pieces: BTreeMap<u64, Vec<Range<Lsn>>>,
    /// Whether its history file is there.
    pub history: bool,
    /// The names of the backup history files, sorted.
    pub backup_files: Vec<String>,
    /// The recorded gaps, sorted. Something may have filled them since.
    pub gaps: Vec<Range<Lsn>>,
}

/// Whole WAL segments by number, with the stored length of each. They come in long runs, so one costs four bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segments {
    /// By the number of its first segment: a run's stored lengths.
    runs: BTreeMap<u64, Vec<u32>>,
}

impl Segments {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.runs.values().map(|run| run.len() as u64).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The stored length of a segment's object; `None` when it is not held.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<u64> {
        let (first, run) = self.runs.range(..=number).next_back()?;
        run.get(usize::try_from(number - first).ok()?)
            .map(|length| u64::from(*length))
    }

    /// Whether a segment is held.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        self.get(number).is_some()
    }

    /// The lowest number.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.runs.keys().next().copied()
    }

    /// The highest number.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.runs().next_back().map(|run| run.end - 1)
    }

    /// The unbroken runs of numbers, ascending, each as long as can be.
    pub fn runs(&self) -> impl DoubleEndedIterator<Item = Range<u64>> {
        self.runs
            .iter()
            .map(|(first, run)| *first..first + run.len() as u64)
    }

    /// The first number after the unbroken run that `number` is in; `number` itself when it is not held.
    #[must_use]
    pub fn run_end(&self, number: u64) -> u64 {
        match self.runs.range(..=number).next_back() {
            Some((first, run)) => number.max(first + run.len() as u64),
            None => number,
        }
    }

    /// Numbers and stored lengths, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> {
        self.runs.iter().flat_map(|(first, run)| {
            run.iter()
                .enumerate()
                .map(move |(at, length)| (first + at as u64, u64::from(*length)))
        })
    }
}

impl FromIterator<(u64, u64)> for Segments {
    /// From numbers and stored lengths, in any order.
    fn from_iter<T: IntoIterator<Item = (u64, u64)>>(held: T) -> Self {
        let held: BTreeMap<u64, u64> = held.into_iter().collect();
        let mut segments = Self::default();
        for (number, stored_length) in held {
            segments.insert(number, stored_length);
        }
        segments
    }
}

impl Segments {
    /// Adds a segment. Listings are in order, so nearly every one goes on a run.
    fn insert(&mut self, number: u64, stored_length: u64) {
        // More than four bytes hold is no object of ours; whoever reads it will be told.
        let stored_length = u32::try_from(stored_length).unwrap_or(u32::MAX);
        if let Some((first, run)) = self.runs.range_mut(..=number).next_back() {
            let end = first + run.len() as u64;
            if number < end {
                return;
            }
            if number == end {
                run.push(stored_length);
                return;
            }
        }
        self.runs.insert(number, vec![stored_length]);
    }

    /// Joins runs that turned out to be neighbours.
    fn join(&mut self) {
        let mut joined: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (first, mut run) in std::mem::take(&mut self.runs) {
            if let Some((before, lengths)) = joined
                .last_entry()
                .as_mut()
                .map(|last| (*last.key(), last.get_mut()))
                && before + lengths.len() as u64 == first
            {
                lengths.append(&mut run);
            } else {
                joined.insert(first, run);
            }
        }
        self.runs = joined;
    }
}

impl TimelineHoldings {
    /// Nothing.
    #[must_use]
    pub fn empty(timeline: TimelineId) -> Self {
        Self {
            timeline,
            segments: Segments::default(),
            pieces: BTreeMap::new(),
            history: false,
            backup_files: Vec::new(),
            gaps: Vec::new(),
        }
    }

    /// The lowest number from `number` on of a WAL segment that is held, whole or in pieces.
    #[must_use]
    pub fn first_from(&self, number: u64) -> Option<u64> {
        let run = self.segments.runs().find(|run| run.end > number);
        let whole = run.map(|run| run.start.max(number));
        let in_pieces = self.pieces.range(number..).next().map(|(held, _)| *held);
        whole.into_iter().chain(in_pieces).min()
    }

    /// How far whole segments and pieces reach from `from` on without a hole; `from` itself when the byte there is not
    /// held.
    #[must_use]
    pub fn covered_to(&self, from: Lsn, segment_size: WalSegmentSize) -> Lsn {
        let mut reached = from;
        loop {
            let number = segment_size.segment_number(reached);
            let next = match self.segments.run_end(number) {
                end if end > number => Lsn(end.saturating_mul(segment_size.bytes())),
                _ => self
                    .pieces
                    .get(&number)
                    .and_then(|pieces| {
                        contiguous_pieces(pieces, reached)
                            .last()
                            .map(|last| last.end)
                    })
                    .unwrap_or(reached),
            };
            // Inside of a segment, pieces have told all they can.
            if next == reached || segment_size.offset(next) != 0 {
                return next;
            }
            reached = next;
        }
    }

    fn note(&mut self, name: ArchivedName<'_>, stored_length: u64, counts: &mut Counts) {
        match name {
            ArchivedName::Segment(segment) => {
                let runs = self.segments.runs.len();
                self.segments.insert(segment.number, stored_length);
                counts.segments += 1;
                counts.runs += self.segments.runs.len() - runs;
            }
            ArchivedName::Piece(segment, range) => {
                self.pieces.entry(segment.number).or_default().push(range);
                counts.pieces += 1;
            }
            ArchivedName::History(_) => self.history = true,
            ArchivedName::BackupFile(_, name) => {
                self.backup_files.push(name.to_owned());
                counts.backup_files += 1;
            }
            ArchivedName::Gap(_, range) => {
                self.gaps.push(range);
                counts.gaps += 1;
            }
        }
    }

    fn sort(&mut self) {
        self.segments.join();
        for pieces in self.pieces.values_mut() {
            pieces.sort_unstable_by_key(|range| (range.start, range.end));
        }
        self.backup_files.sort_unstable();
        self.gaps
            .sort_unstable_by_key(|range| (range.start, range.end));
    }
}

/// The numbers of objects listed so far.
#[derive(Default)]
struct Counts {
    timelines: usize,
    segments: usize,
    runs: usize,
    pieces: usize,
    backup_files: usize,
    gaps: usize,
}

impl Counts {
    /// Returns the kind of object that exceeds its limit, and the limit: `docs/format.md`, Limits.
    fn exceeded(&self) -> Option<(&'static str, usize)> {
        [
            ("timelines", self.timelines, 10_000),
            ("unbroken runs of WAL segments", self.runs, 1 << 20),
            ("pieces", self.pieces, PIECES_LIMIT),
            ("backup history files", self.backup_files, 1 << 20),
            ("gaps", self.gaps, 1 << 18),
        ]
        .into_iter()
        .find(|(_, count, limit)| count > limit)
        .map(|(what, _, limit)| (what, limit))
    }
}

impl WalArchive {
    /// What the archive holds of every timeline: one listing.
    ///
    /// # Errors
    /// Those of the store.
    pub fn holdings(&self, segment_size: WalSegmentSize) -> Result<Holdings, RepositoryError> {
        let archive = layout::archive_folder(&self.cluster);
        let timelines = self.list(&archive, segment_size)?;
        Ok(Holdings { timelines })
    }

    /// What the archive holds of one timeline: one listing.
    ///
    /// # Errors
    /// Those of the store.
    pub fn timeline_holdings(
        &self,
        timeline: TimelineId,
        segment_size: WalSegmentSize,
    ) -> Result<TimelineHoldings, RepositoryError> {
        let folder = layout::archived_timeline_folder(&self.cluster, timeline);
        let held = self.list(&folder, segment_size)?.remove(&timeline);
        Ok(held.unwrap_or_else(|| TimelineHoldings::empty(timeline)))
    }

    fn list(
        &self,
        folder: &str,
        segment_size: WalSegmentSize,
    ) -> Result<BTreeMap<TimelineId, TimelineHoldings>, RepositoryError> {
        let archive = layout::archive_folder(&self.cluster);
        let mut timelines: BTreeMap<TimelineId, TimelineHoldings> = BTreeMap::new();
        let mut counts = Counts::default();
        let mut exceeded = None;
        self.store.list(folder, &mut |object| {
            if let Some(name) = ArchivedName::parse(&object.key, &archive, segment_size) {
                let timeline = name.timeline();
                let held = timelines.entry(timeline).or_insert_with(|| {
                    counts.timelines += 1;
                    TimelineHoldings::empty(timeline)
                });
                held.note(name, object.size_bytes, &mut counts);
                exceeded = counts.exceeded();
            }
            match exceeded {
                None => ControlFlow::Continue(()),
                Some(_) => ControlFlow::Break(()),
            }
        })?;
        if let Some((what, limit)) = exceeded {
            return Err(too_many(self.store.location(), folder, what, limit).into());
        }
        timelines.values_mut().for_each(TimelineHoldings::sort);
        Ok(timelines)
    }

    /// The size of the cluster's WAL segments, read from the first object that tells; `None` when the archive holds no
    /// WAL that does.
    ///
    /// # Errors
    /// [`RepositoryError::Damaged`], [`RepositoryError::NewerFormat`]; those of the store.
    pub fn segment_size(&self) -> Result<Option<WalSegmentSize>, RepositoryError> {
        let archive = layout::archive_folder(&self.cluster);
        let mut found = None;
        self.store.list(&archive, &mut |object| {
            if begins_wal_segment(&object.key, &archive) {
                found = Some(object.key);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        let Some(key) = found else { return Ok(None) };
        let mut nowhere = io::sink();
        let mut wal = Beginning::new(&mut nowhere, WalSegmentSize::DEFAULT);
        read_object(&*self.store, &key, &mut wal)?;
        match WalLongHeader::parse(&wal.start) {
            Ok(header) => Ok(Some(header.segment_size)),
            Err(error) => Err(RepositoryError::damaged(&key, "WAL segment", error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(numbers: impl IntoIterator<Item = u64>) -> Segments {
        let mut segments = Segments::default();
        for number in numbers {
            segments.insert(number, 1000 + number);
        }
        segments.join();
        segments
    }

    #[test]
    fn segments_are_kept_in_runs_whatever_their_order() {
        let held = segments([5, 6, 7, 10, 11, 20]);
        assert_eq!(held, segments([20, 11, 10, 7, 6, 5]));
        assert_eq!(held, segments([10, 5, 20, 7, 11, 6, 6]));
        assert_eq!(held.runs().collect::<Vec<_>>(), [5..8, 10..12, 20..21]);
        assert_eq!(held.len(), 6);
        assert_eq!((held.first(), held.last()), (Some(5), Some(20)));
        for number in 0..30 {
            let there = [5, 6, 7, 10, 11, 20].contains(&number);
            assert_eq!(held.get(number), there.then_some(1000 + number));
            assert_eq!(held.contains(number), there);
        }
        assert_eq!(held.run_end(4), 4);
        assert_eq!(held.run_end(5), 8);
        assert_eq!(held.run_end(7), 8);
        assert_eq!(held.run_end(8), 8);
        assert_eq!(
            held.iter().map(|(number, _)| number).collect::<Vec<_>>(),
            [5, 6, 7, 10, 11, 20]
        );
        let none = Segments::default();
        assert!(none.is_empty() && none.first().is_none() && none.last().is_none());
        assert_eq!(none.run_end(3), 3);
    }

    #[test]
    fn each_kind_of_object_is_counted() {
        let size = WalSegmentSize::DEFAULT;
        let mut held = TimelineHoldings::empty(TimelineId(1));
        let mut counts = Counts::default();
        for key in [
            "main/wal/00000001/000000010000000000000004.zst",
            "main/wal/00000001/000000010000000000000005.zst",
            "main/wal/00000001/000000010000000000000007.zst",
            "main/wal/00000001/000000010000000000000008/0000000008000000-0000000008000001.zst",
            "main/wal/00000001/000000010000000000000004.00000028.backup.zst",
            "main/wal/00000001/0000000004000000-0000000005000000.gap.json",
        ] {
            let key = crate::store::Key::new(key).expect("a key");
            let name = ArchivedName::parse(&key, "main/wal", size).expect("ours");
            held.note(name, 1, &mut counts);
        }
        let of = |counts: &Counts| {
            let Counts {
                segments,
                runs,
                pieces,
                backup_files,
                gaps,
                ..
            } = counts;
            [*segments, *runs, *pieces, *backup_files, *gaps]
        };
        assert_eq!(of(&counts), [3, 2, 1, 1, 1]);
        assert_eq!(counts.exceeded(), None);
        counts.pieces = PIECES_LIMIT + 1;
        assert_eq!(counts.exceeded(), Some(("pieces", PIECES_LIMIT)));
    }

    #[test]
    fn the_first_that_is_held_is_whole_or_in_pieces() {
        let mut held = TimelineHoldings::empty(TimelineId(1));
        assert_eq!(held.first_from(0), None);
        held.segments = segments([5, 6, 9]);
        for number in [2, 7, 9, 11] {
            held.pieces.insert(number, Vec::new());
        }
        for (number, first) in [
            (0, Some(2)),
            (2, Some(2)),
            (3, Some(5)),
            (6, Some(6)),
            (7, Some(7)),
            (8, Some(9)),
            (10, Some(11)),
            (12, None),
        ] {
            assert_eq!(held.first_from(number), first, "from {number}");
        }
        held.pieces.clear();
        assert_eq!((held.first_from(7), held.first_from(10)), (Some(9), None));
    }

    #[test]
    fn coverage_goes_over_segments_and_pieces() {
        let size = WalSegmentSize::new(1 << 20).expect("a size");
        let lsn = |number: u64, offset: u64| Lsn((number << 20) + offset);
        let mut held = TimelineHoldings::empty(TimelineId(1));
        held.segments = segments([5, 6, 9]);
        held.pieces.insert(
            7,
            vec![
                lsn(7, 0)..lsn(7, 5000),
                lsn(7, 3000)..lsn(7, 9000),
                lsn(7, 9000)..lsn(8, 0),
            ],
        );
        held.pieces
            .insert(8, vec![lsn(8, 0)..lsn(8, 70), lsn(8, 71)..lsn(9, 0)]);
        for (from, to) in [
            (lsn(5, 0), lsn(8, 70)),
            (lsn(6, 77), lsn(8, 70)),
            (lsn(7, 4000), lsn(8, 70)),
            (lsn(8, 70), lsn(8, 70)),
            (lsn(8, 71), lsn(10, 0)),
            (lsn(4, 0), lsn(4, 0)),
            (lsn(10, 0), lsn(10, 0)),
        ] {
            assert_eq!(held.covered_to(from, size), to, "from {from}");
        }
    }
}
