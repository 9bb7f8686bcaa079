//! Pieces of WAL segments that are not whole yet, or never will be.

use std::io::{self, Read, Write};
use std::ops::{ControlFlow, Range};

use leeward_pgformat::wal_segment::{WAL_LONG_HEADER_SIZE, WAL_PAGE_SIZE};
use leeward_pgformat::{
    Lsn, SystemIdentifier, TimelineId, WalContents, WalSegmentName, WalSegmentSize,
};

use super::names::ArchivedName;
use super::object::NewObject;
use super::read::{contents_of, read_object};
use super::store_segment::check_header;
use super::workplace::Workplace;
use super::{PIECE_BYTES_LIMIT, Piece, Stored, WalArchive};
use crate::hash::Hash;
use crate::layout;
use crate::parallel;
use crate::repository_error::RepositoryError;
use crate::store::{Key, too_many};
use crate::wal_object::{Bounded, WalFacts, WalSource};

/// How many requests are under way at once: pieces are small, and each answer takes its time.
const AT_ONCE: usize = 16;
/// The most pieces of one WAL segment, and of an archive. Little WAL comes in many: one every 0.8 s for 38 days.
pub(super) const PIECES_LIMIT: usize = 1 << 22;
/// Plain bytes of the pieces that are fetched together; one alone may have more.
const BATCH_BYTES: u64 = PIECE_BYTES_LIMIT;

impl WalArchive {
    /// Stores a piece; durable when this returns. `level` is zstd's. Pieces may overlap others; two that overlap and
    /// differ are found by whoever reads them.
    ///
    /// # Errors
    /// [`RepositoryError::WalConflict`] when the same range holds other bytes, [`RepositoryError::WalRefused`] for a
    /// range that no piece may have, or the header of another segment; those of the store.
    pub fn store_piece(&self, piece: &Piece<'_>, level: i32) -> Result<Stored, RepositoryError> {
        let size = piece.segment_size;
        let segment = WalSegmentName::containing(piece.timeline, piece.begin, size);
        let range = piece.begin..piece.begin + piece.bytes.len() as u64;
        let refused = |problem: String| RepositoryError::WalRefused {
            wal: format!(
                "{} from {} to {}",
                segment.name(size),
                range.start,
                range.end
            ),
            problem,
        };
        if piece.bytes.is_empty() || piece.bytes.len() as u64 > PIECE_BYTES_LIMIT {
            return Err(refused(format!(
                "a piece has 1 to {PIECE_BYTES_LIMIT} bytes, not {}",
                piece.bytes.len()
            )));
        }
        if range.end > segment.end_lsn(size) {
            return Err(refused(format!(
                "it goes beyond its WAL segment, which ends at {}",
                segment.end_lsn(size)
            )));
        }
        if range.start == segment.start_lsn(size)
            && let Some(start) = piece.bytes.get(..WAL_LONG_HEADER_SIZE)
        {
            check_header(start, segment, size, piece.system_identifier).map_err(refused)?;
        }
        let key = self.piece_key(segment, size, &range)?;
        let facts = WalFacts {
            system_identifier: piece.system_identifier,
            timeline: piece.timeline,
        };
        let mut source = PieceSource(piece.bytes, piece.contents);
        self.workplaces
            .lend(level, |Workplace { encoder, object }| {
                let mut new = NewObject::new(&*self.store, &key, object);
                let write = &mut |bytes: &[u8]| new.write(bytes);
                let info = encoder.encode_with_contents(key.as_str(), facts, &mut source, write)?;
                new.finish(info, &segment.name(size), Some(range.start))
            })
    }

    /// Writes the bytes of a WAL segment from its beginning as far as the archive has them without a hole, no padding after
    /// them, and returns where they end; `None` when the store answered that it has none. What was written may be used
    /// only if this returns `Ok`. Memory: up to 100 MiB.
    ///
    /// Pieces go once the segment is there as a whole. So where they end early, or are gone, the whole segment is looked
    /// for, again if need be: what is said to be missing was not there at any time.
    ///
    /// # Errors
    /// [`RepositoryError::WalConflict`] when two pieces that were read differ where they overlap,
    /// [`RepositoryError::Damaged`], [`RepositoryError::NewerFormat`]; those of the store and of `to`.
    pub fn read_pieces(
        &self,
        segment: WalSegmentName,
        size: WalSegmentSize,
        to: &mut dyn Write,
    ) -> Result<Option<Lsn>, RepositoryError> {
        let pieces = self.pieces(segment, size)?;
        let chain = contiguous_pieces(&pieces, segment.start_lsn(size));
        let end = chain.last().map(|range| range.end);
        let mut to = Continued {
            to,
            written: 0,
            known: 0,
        };
        let gone = match self.read_chain(segment, size, &chain, &mut to) {
            Err(RepositoryError::Store(error)) if error.is_not_found() => Some(error),
            other => {
                other?;
                if end == Some(segment.end_lsn(size)) {
                    return Ok(end);
                }
                None
            }
        };
        to.known = to.written;
        match (self.read_segment(segment, size, &mut to)?, gone) {
            (Some(_), _) => Ok(Some(segment.end_lsn(size))),
            (None, Some(error)) => Err(RepositoryError::Store(error)),
            (None, None) => Ok(end),
        }
    }

    /// The pieces of a WAL segment, sorted by beginning: one listing.
    ///
    /// # Errors
    /// Those of the store.
    pub fn pieces(
        &self,
        segment: WalSegmentName,
        size: WalSegmentSize,
    ) -> Result<Vec<Range<Lsn>>, RepositoryError> {
        let folder = layout::pieces_folder(&self.cluster, segment.timeline, &segment.name(size));
        let archive = layout::archive_folder(&self.cluster);
        let mut ranges = Vec::new();
        self.store.list(&folder, &mut |object| {
            if let Some(ArchivedName::Piece(_, range)) =
                ArchivedName::parse(&object.key, &archive, size)
            {
                ranges.push(range);
            }
            match ranges.len() <= PIECES_LIMIT {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        if ranges.len() > PIECES_LIMIT {
            return Err(too_many(self.store.location(), &folder, "pieces", PIECES_LIMIT).into());
        }
        ranges.sort_unstable_by_key(|range| (range.start, range.end));
        Ok(ranges)
    }

    /// Reads the pieces of a chain several at a time, and writes each byte once.
    pub(super) fn read_chain(
        &self,
        segment: WalSegmentName,
        size: WalSegmentSize,
        chain: &[Range<Lsn>],
        to: &mut dyn Write,
    ) -> Result<(), RepositoryError> {
        let mut before: Option<ReadPiece> = None;
        let mut left = chain;
        while !left.is_empty() {
            let (batch, rest) = left.split_at(batch_length(left));
            left = rest;
            let read = |range: &Range<Lsn>| self.read_piece(segment, size, range);
            for piece in parallel::map(batch, AT_ONCE, read)? {
                let mut fresh = &piece.bytes[..];
                match &before {
                    Some(before) => fresh = piece.behind(before)?,
                    None => check_header(&piece.bytes, segment, size, piece.system_identifier)
                        .map_err(|problem| {
                            RepositoryError::damaged(&piece.key, "WAL segment", problem)
                        })?,
                }
                to.write_all(fresh).map_err(|source| RepositoryError::Io {
                    action: format!("write the WAL from object \"{}\"", piece.key),
                    source,
                })?;
                before = Some(piece);
            }
        }
        Ok(())
    }

    fn read_piece(
        &self,
        segment: WalSegmentName,
        size: WalSegmentSize,
        range: &Range<Lsn>,
    ) -> Result<ReadPiece, RepositoryError> {
        let key = self.piece_key(segment, size, range)?;
        let length = range.end - range.start;
        let mut plain = Bounded::new(length);
        let info = read_object(&*self.store, &key, &mut plain)?;
        let damaged = |problem: String| RepositoryError::damaged(&key, "piece", problem);
        if info.plain_length != length {
            return Err(damaged(format!(
                "it has {} bytes, and its name says {length}",
                info.plain_length
            )));
        }
        if info.facts.timeline != segment.timeline {
            return Err(damaged(format!(
                "it is of timeline {}",
                info.facts.timeline
            )));
        }
        Ok(ReadPiece {
            range: range.clone(),
            bytes: plain.bytes,
            system_identifier: info.facts.system_identifier,
            hash: info.plain_hash,
            key,
        })
    }

    /// Deletes the pieces of a WAL segment that is in the archive as a whole, and returns how many there were. Where it
    /// is not, nothing is deleted.
    ///
    /// # Errors
    /// [`RepositoryError::WalRefused`] when the whole segment is not there; those of the store.
    pub fn delete_pieces(
        &self,
        segment: WalSegmentName,
        size: WalSegmentSize,
    ) -> Result<u64, RepositoryError> {
        let whole = self.segment_key(segment, size)?;
        match self.store.size(&whole) {
            Ok(_) => self.store.sync(&whole)?,
            Err(error) if error.is_not_found() => {
                return Err(RepositoryError::WalRefused {
                    wal: segment.name(size),
                    problem: "its pieces stay, since it is not there as a whole".to_owned(),
                });
            }
            Err(error) => return Err(error.into()),
        }
        let pieces = self.pieces(segment, size)?;
        parallel::for_each(&pieces, AT_ONCE, |range| -> Result<(), RepositoryError> {
            Ok(self.store.delete(&self.piece_key(segment, size, range)?)?)
        })?;
        Ok(pieces.len() as u64)
    }

    /// What the records in a piece say; `None` when there is no such piece.
    ///
    /// # Errors
    /// [`RepositoryError::Damaged`], [`RepositoryError::NewerFormat`]; those of the store.
    pub fn piece_contents(
        &self,
        timeline: TimelineId,
        range: &Range<Lsn>,
        size: WalSegmentSize,
    ) -> Result<Option<WalContents>, RepositoryError> {
        let segment = WalSegmentName::containing(timeline, range.start, size);
        let key = self.piece_key(segment, size, range)?;
        // Only from the beginning of a page can a piece be walked.
        let walkable = range.start.0.is_multiple_of(u64::from(WAL_PAGE_SIZE));
        let start = walkable.then_some(range.start);
        contents_of(&*self.store, &key, start, size, None)
    }
}

/// Hands on what is written to it; told that so many bytes are known, it begins behind them.
struct Continued<'a> {
    to: &'a mut dyn Write,
    written: u64,
    known: u64,
}

impl Write for Continued<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let known = self.known.min(bytes.len() as u64);
        if known > 0 {
            self.known -= known;
            return Ok(known as usize);
        }
        let length = self.to.write(bytes)?;
        self.written += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A piece's bytes, and what they say.
struct PieceSource<'a>(&'a [u8], &'a WalContents);

impl Read for PieceSource<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl WalSource for PieceSource<'_> {
    fn contents(&mut self) -> Option<WalContents> {
        Some(self.1.clone())
    }
}

/// A piece in memory.
struct ReadPiece {
    range: Range<Lsn>,
    bytes: Vec<u8>,
    system_identifier: SystemIdentifier,
    hash: Hash,
    key: Key,
}

impl ReadPiece {
    /// The bytes that `before` does not have, if the others are the same.
    fn behind(&self, before: &ReadPiece) -> Result<&[u8], RepositoryError> {
        if self.system_identifier != before.system_identifier {
            return Err(RepositoryError::damaged(
                &self.key,
                "head",
                format!(
                    "it is of the cluster with system identifier {}, and its neighbour of {}",
                    self.system_identifier, before.system_identifier
                ),
            ));
        }
        let theirs = &before.bytes[(self.range.start - before.range.start) as usize..];
        let (ours, fresh) = self.bytes.split_at(theirs.len().min(self.bytes.len()));
        match ours.iter().zip(theirs).position(|(a, b)| a != b) {
            None => Ok(fresh),
            Some(place) => Err(RepositoryError::WalConflict {
                object: before.key.to_string(),
                other: format!("object \"{}\"", self.key),
                differs_at: Some(self.range.start + place as u64),
                theirs: before.hash,
                theirs_length: before.bytes.len() as u64,
                ours: self.hash,
                ours_length: self.bytes.len() as u64,
            }),
        }
    }
}

/// The fewest pieces that cover the WAL from `begin` on as far as can be, in order. Each overlaps only its neighbours.
/// `pieces` are sorted by beginning.
pub fn contiguous_pieces(pieces: &[Range<Lsn>], begin: Lsn) -> Vec<Range<Lsn>> {
    let mut chain = Vec::new();
    let mut reached = begin;
    let mut best: Option<&Range<Lsn>> = None;
    for piece in pieces {
        if piece.start > reached {
            let Some(next) = best.take().filter(|best| best.end > reached) else {
                break;
            };
            reached = next.end;
            chain.push(next.clone());
            if piece.start > reached {
                break;
            }
        }
        if best.is_none_or(|best| best.end < piece.end) {
            best = Some(piece);
        }
    }
    chain.extend(best.filter(|best| best.end > reached).cloned());
    chain
}

/// How many of the first pieces are fetched together: at least one.
fn batch_length(chain: &[Range<Lsn>]) -> usize {
    let mut bytes = 0;
    let fitting = chain
        .iter()
        .take(AT_ONCE)
        .take_while(|range| {
            bytes += range.end - range.start;
            bytes <= BATCH_BYTES
        })
        .count();
    fitting.max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(pairs: &[(u64, u64)]) -> Vec<Range<Lsn>> {
        let mut ranges: Vec<_> = pairs.iter().map(|(a, b)| Lsn(*a)..Lsn(*b)).collect();
        ranges.sort_by_key(|range| (range.start, range.end));
        ranges
    }

    #[test]
    fn a_chain_takes_the_longest_and_ends_at_a_hole() {
        for (pieces, expected) in [
            (&[][..], &[][..]),
            (&[(1, 5)], &[]),
            (&[(0, 5)], &[(0, 5)]),
            (&[(0, 5), (5, 7), (8, 9)], &[(0, 5), (5, 7)]),
            (&[(0, 5), (0, 8), (3, 6), (7, 9), (8, 9)], &[(0, 8), (7, 9)]),
            (&[(0, 9), (2, 3), (4, 9)], &[(0, 9)]),
        ] {
            assert_eq!(
                contiguous_pieces(&ranges(pieces), Lsn(0)),
                ranges(expected),
                "{pieces:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_chain_reaches_as_far_as_the_pieces(pairs in prop::collection::vec((0_u64..60, 1_u64..20), 0..40)) {
            let pieces = ranges(&pairs.iter().map(|(a, b)| (*a, a + b)).collect::<Vec<_>>());
            let mut reached = 0;
            while let Some(piece) = pieces.iter().find(|piece| piece.start.0 <= reached && piece.end.0 > reached) {
                reached = piece.end.0;
            }
            let chain = contiguous_pieces(&pieces, Lsn(0));
            prop_assert_eq!(chain.last().map_or(0, |last| last.end.0), reached);
            let mut at = Lsn(0);
            let mut before = None;
            for piece in &chain {
                prop_assert!(piece.start <= at && piece.end > at);
                prop_assert!(before.is_none_or(|before: Lsn| piece.start > before), "overlaps only its neighbour");
                before = (at > Lsn(0)).then_some(at);
                at = piece.end;
            }
        }
    }
}
