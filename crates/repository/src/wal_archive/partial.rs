//! WAL segments of which only the beginning is WAL: the last one of a timeline that a promotion left.

use std::io::{self, Read};

use leeward_pgformat::{
    Lsn, SystemIdentifier, WalContents, WalScanner, WalSegmentName, WalSegmentSize,
};

use super::object::Comparison;
use super::pieces::contiguous_pieces;
use super::store_segment::{damaged, read_header, wrong_length};
use super::{PIECE_BYTES_LIMIT, Piece, StoredPartial, WalArchive};
use crate::repository_error::RepositoryError;

/// A piece is closed at the end of the last record, once there are so many bytes.
const PIECE_BYTES: usize = 16 << 20;
const READ_BYTES: usize = 256 << 10;

impl WalArchive {
    /// Stores a WAL segment of which only the beginning is WAL, as `.partial` files are: from its beginning to the end
    /// of the last whole record, as pieces. What the archive has of these bytes is compared, and only the rest
    /// stored. Memory: some 130 MiB.
    ///
    /// # Errors
    /// [`RepositoryError::WalConflict`], [`RepositoryError::WalDamaged`], [`RepositoryError::WalRefused`] when not one
    /// record ends in it or its header does not fit; those of the store and of `plain`.
    pub fn store_partial(
        &self,
        segment: WalSegmentName,
        size: WalSegmentSize,
        system_identifier: SystemIdentifier,
        plain: &mut dyn Read,
        level: i32,
    ) -> Result<StoredPartial, RepositoryError> {
        let start = segment.start_lsn(size);
        let header = read_header(segment, size, system_identifier, plain)?;
        let mut wal = WalkedWal {
            name: format!("{}.partial", segment.name(size)),
            plain: io::Cursor::new(header).chain(plain),
            scanner: WalScanner::new(start, size),
            start,
            size,
            read: 0,
            failure: None,
        };
        let mut held = self.compare_with_held(segment, size, &mut wal)?;
        // What is held tells its contents itself.
        wal.scanner.take_contents();
        let mut stored_to = start + held.compared;
        let mut new_bytes = 0;
        let mut buffer = Vec::new();
        loop {
            let filled = buffer.len();
            buffer.resize(filled + READ_BYTES, 0);
            let length = wal.read(&mut buffer[filled..]);
            let length = length.map_err(|source| wal.failed(source))?;
            buffer.truncate(filled + length);
            if let Some((_, conflict)) = held.differs.take_if(|(lsn, _)| *lsn < wal.end()) {
                return Err(conflict);
            }
            // Only what lies before the end of a whole record is known to be WAL of this place.
            let sound = ((wal.end() - stored_to) as usize).min(buffer.len());
            let last = length == 0;
            if sound >= PIECE_BYTES || (last && sound > 0) {
                let mut contents = wal.scanner.take_contents();
                let mut parts = buffer[..sound]
                    .chunks(PIECE_BYTES_LIMIT as usize)
                    .peekable();
                while let Some(bytes) = parts.next() {
                    // Records count where they end: in the last part, if one is longer than a piece can be.
                    let none = WalContents::default();
                    let contents = match parts.peek() {
                        Some(_) => none,
                        None => std::mem::take(&mut contents),
                    };
                    let piece = Piece {
                        timeline: segment.timeline,
                        begin: stored_to,
                        bytes,
                        contents: &contents,
                        segment_size: size,
                        system_identifier,
                    };
                    if self.store_piece(&piece, level)?.is_new() {
                        new_bytes += bytes.len() as u64;
                    }
                    stored_to = stored_to + bytes.len() as u64;
                }
                buffer.drain(..sound);
            }
            if wal.scanner.reached_end() && !last {
                // What follows is only walked over, to see whether WAL goes on behind damage.
                buffer.truncate(((wal.end() - stored_to) as usize).min(buffer.len()));
            }
            if last {
                break;
            }
        }
        let end = wal.end();
        if end == start {
            return Err(RepositoryError::WalRefused {
                wal: wal.name,
                problem: "not one record ends in it".to_owned(),
            });
        }
        Ok(StoredPartial { end, new_bytes })
    }

    /// Reads as much of `wal` as the archive has of the segment.
    fn compare_with_held(
        &self,
        segment: WalSegmentName,
        size: WalSegmentSize,
        wal: &mut WalkedWal<'_>,
    ) -> Result<Held, RepositoryError> {
        let start = segment.start_lsn(size);
        let mut pieces = Vec::new();
        let mut comparison = Comparison::new(wal);
        let read = match self.read_segment(segment, size, &mut comparison) {
            Ok(None) => {
                pieces = contiguous_pieces(&self.pieces(segment, size)?, start);
                self.read_chain(segment, size, &pieces, &mut comparison)
            }
            other => other.map(drop),
        };
        let compared = comparison.compared();
        let differs_at = comparison.differs_at().map(|place| start + place);
        let (ours, theirs) = comparison.hashes();
        // Why reading ended says more than that it did.
        if let Some(failure) = wal.failure.take() {
            return Err(failure);
        }
        read?;
        let Some(lsn) = differs_at else {
            return Ok(Held {
                compared,
                differs: None,
            });
        };
        let key = match pieces.iter().find(|piece| piece.contains(&lsn)) {
            Some(piece) => self.piece_key(segment, size, piece)?,
            None => self.segment_key(segment, size)?,
        };
        let conflict = RepositoryError::WalConflict {
            object: key.to_string(),
            other: format!("WAL \"{}\"", wal.name),
            differs_at,
            theirs,
            theirs_length: compared,
            ours,
            ours_length: compared,
        };
        Ok(Held {
            compared,
            differs: Some((lsn, conflict)),
        })
    }
}

/// What [`WalArchive::compare_with_held`] found.
struct Held {
    /// How many bytes from the beginning are there.
    compared: u64,
    /// Where they differ, and the error that this is if the WAL goes so far.
    differs: Option<(Lsn, RepositoryError)>,
}

/// A file that begins as a WAL segment, walked over while it is read.
struct WalkedWal<'a> {
    name: String,
    plain: io::Chain<io::Cursor<Vec<u8>>, &'a mut dyn Read>,
    scanner: WalScanner,
    start: Lsn,
    size: WalSegmentSize,
    /// Bytes read.
    read: u64,
    /// Why reading ended, where it ended badly.
    failure: Option<RepositoryError>,
}

impl WalkedWal<'_> {
    /// The end of the last whole record; padding that was not read yet does not count.
    fn end(&self) -> Lsn {
        self.scanner.end_of_valid().min(self.start + self.read)
    }

    fn failed(&mut self, source: io::Error) -> RepositoryError {
        self.failure.take().unwrap_or_else(|| RepositoryError::Io {
            action: format!("read WAL \"{}\"", self.name),
            source,
        })
    }
}

impl Read for WalkedWal<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.plain.read(buffer)?;
        self.read += length as u64;
        let walked = if self.read > self.size.bytes() {
            Err(wrong_length(&self.name, "more", self.size))
        } else {
            self.scanner
                .feed(&buffer[..length], &mut |_| {})
                .map_err(|damage| damaged(&self.name, &damage))
        };
        walked.map(|()| length).map_err(|failure| {
            self.failure = Some(failure);
            io::Error::other("not sound WAL")
        })
    }
}
