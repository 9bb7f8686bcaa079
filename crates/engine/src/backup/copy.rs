//! Copiers: each takes a batch, reads it, checks its pages and makes a frame of it. Reading and compressing happen on the
//! same thread while the bytes are in its caches; there are more copiers than cores so that one reads while others compress.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use leeward_pgformat::page::{PageDamage, PageVerdict, check_page, page_lsn};
use leeward_pgformat::relation::RelationSegment;
use leeward_pgformat::{BlockNumber, PAGE_SIZE, RELATION_SEGMENT_BLOCKS};
use leeward_postgres::data_directory::SourceFile;
use leeward_repository::codec::FrameCompression;
use leeward_repository::frame::{Choice, EncodedFrame, FRAME_BYTES, FrameEncoder, blocks_of_piece};

use super::horizon::Horizon;
use super::source::{Batch, Copied, CopiedPiece, Damage, PageRules, Piece};
use crate::error::{Error, Result};
use crate::pipeline::{Receiver, Sender, StageResult};

/// How often a page that looks damaged is read again before it is believed. The server may be writing it at this moment;
/// two equal readings in a row end the question.
const REREADS: u32 = 10;

/// How long the server is given to finish a write before a page is read again.
const REREAD_AFTER: Duration = Duration::from_millis(2);

/// So many pages are waited for in one backup; where more look damaged, the server is not about to finish writing them.
const PATIENT_REREADS: u32 = 2_000;

/// What a copier needs to know.
pub(super) struct Copier<'a> {
    pub rules: PageRules,
    pub horizon: Arc<Horizon<'a>>,
    pub compression: FrameCompression,
    /// Waits for pages so far, see [`PATIENT_REREADS`].
    pub waits: &'a AtomicU32,
    /// Frames whose pages did not come back from the page transform, and were stored without.
    pub differences: &'a AtomicU64,
}

/// What a copier keeps from one batch to the next.
struct Desk {
    /// What is read, and then made a frame of.
    buffer: Vec<u8>,
    /// The relation-wide blocks of the pages in the buffer.
    blocks: Vec<BlockNumber>,
    encoder: FrameEncoder,
    /// Whose pages were in the last frame, and how they were best written: good for the next of the same.
    choice: (Owner, Option<Choice>),
}

/// Whose pages a frame holds: those of a fork of one relation, by its first relation segment, or those of several, `None`.
type Owner = Option<RelationSegment>;

impl Copier<'_> {
    /// Works until there are no more batches.
    pub(super) fn run(
        &self,
        batches: &Receiver<Batch>,
        results: &Sender<Copied>,
    ) -> StageResult<()> {
        let mut desk = Desk {
            buffer: vec![0u8; FRAME_BYTES],
            blocks: Vec::new(),
            encoder: FrameEncoder::new(self.compression),
            choice: (None, None),
        };
        while let Some(batch) = batches.recv()? {
            results.send(self.copy(batch, &mut desk)?)?;
        }
        (self.differences).fetch_add(desk.encoder.differences(), Ordering::Relaxed);
        Ok(())
    }

    fn copy(&self, batch: Batch, desk: &mut Desk) -> Result<Copied> {
        let mut filled = 0;
        let mut pieces = Vec::with_capacity(batch.pieces.len());
        let mut pages_checked = 0;
        // What a configuration file may have grown by since it was seen.
        let planned: usize = batch.pieces.iter().map(|piece| piece.length).sum();
        let mut spare = desk.buffer.len() - planned;
        for piece in batch.pieces {
            let grown = if piece.may_grow() { spare } else { 0 };
            let room = &mut desk.buffer[filled..filled + piece.length + grown];
            let (read, vanished, damage) = self.read(&piece, room)?;
            spare -= read.saturating_sub(piece.length);
            if piece.source.segment.is_some() {
                pages_checked += (read / PAGE_SIZE) as u64;
            }
            pieces.push(CopiedPiece {
                source: piece.source,
                offset: piece.offset,
                frame_offset: filled as u32,
                length: read as u32,
                last: piece.last,
                vanished,
                damage,
            });
            filled += read;
        }
        let frame = match filled {
            0 => None,
            _ => Some(desk.encode(filled, &pieces)?),
        };
        Ok(Copied {
            sequence: batch.sequence,
            frame,
            pieces,
            pages_checked,
        })
    }

    /// Reads a piece and checks its pages; returns the bytes read, whether the file had vanished, and what is damaged.
    fn read(&self, piece: &Piece, room: &mut [u8]) -> Result<(usize, bool, Damage)> {
        if room.is_empty() {
            return Ok((0, false, Vec::new()));
        }
        piece.source.with_file(|file| {
            let Some(file) = file else {
                return Ok((0, true, Vec::new()));
            };
            let read = file
                .read_at(room, piece.offset)
                .map_err(|e| unreadable(piece, e))?;
            let damage = match &piece.source.segment {
                Some(segment) => {
                    self.check(piece, file, segment, &mut room[..read - read % PAGE_SIZE])?
                }
                None => Vec::new(),
            };
            Ok((read, false, damage))
        })
    }

    /// Checks each page, reading again what looks damaged, and returns what stayed damaged.
    fn check(
        &self,
        piece: &Piece,
        file: &SourceFile,
        segment: &RelationSegment,
        pages: &mut [u8],
    ) -> Result<Damage> {
        let first = u64::from(segment.segment) * u64::from(RELATION_SEGMENT_BLOCKS);
        let mut damage = Vec::new();
        for (index, page) in pages.chunks_exact_mut(PAGE_SIZE).enumerate() {
            let at = piece.offset + (index * PAGE_SIZE) as u64;
            let block = BlockNumber((first + at / PAGE_SIZE as u64) as u32);
            if let Some(found) = self.judge(page, block)
                && let Some(found) = self.read_again(piece, file, page, at, block, found)?
            {
                damage.push((block, found));
            }
        }
        Ok(damage)
    }

    fn judge(&self, page: &[u8], block: BlockNumber) -> Option<PageDamage> {
        match check_page(page, block, self.rules.checksums, self.rules.start_lsn) {
            PageVerdict::Damaged(damage) => Some(damage),
            PageVerdict::NewerThanStart if !self.horizon.reaches(page_lsn(page)) => {
                Some(PageDamage::LsnBeyondReplay)
            }
            _ => None,
        }
    }

    fn read_again(
        &self,
        piece: &Piece,
        file: &SourceFile,
        page: &mut [u8],
        at: u64,
        block: BlockNumber,
        first: PageDamage,
    ) -> Result<Option<PageDamage>> {
        let mut found = first;
        let mut again = [0u8; PAGE_SIZE];
        for _ in 0..REREADS {
            if self.waits.fetch_add(1, Ordering::Relaxed) < PATIENT_REREADS {
                std::thread::park_timeout(REREAD_AFTER);
            }
            let read = file
                .read_at(&mut again, at)
                .map_err(|e| unreadable(piece, e))?;
            // Truncated meanwhile: the server has no use for this page any more, and replay says so too.
            if read < PAGE_SIZE {
                return Ok(None);
            }
            let same = again == *page;
            page.copy_from_slice(&again);
            match self.judge(page, block) {
                None => return Ok(None),
                Some(_) if same => return Ok(Some(found)),
                Some(now) => found = now,
            }
        }
        Ok(Some(found))
    }
}

impl Desk {
    /// Makes a frame of what these pieces have put into the buffer.
    fn encode(&mut self, filled: usize, pieces: &[CopiedPiece]) -> Result<EncodedFrame> {
        let pieces = || pieces.iter().filter(|piece| piece.length > 0);
        self.blocks.clear();
        for piece in pieces() {
            let path = &piece.source.record.path;
            let Some(blocks) = blocks_of_piece(path, piece.offset, piece.length) else {
                // Not pages alone.
                self.blocks.clear();
                break;
            };
            self.blocks.extend(blocks.map(BlockNumber));
        }
        let mut owners = pieces().map(|piece| {
            let segment = piece.source.segment?;
            Some(RelationSegment {
                segment: 0,
                ..segment
            })
        });
        let first: Owner = owners.next().flatten();
        let owner = first.filter(|_| owners.all(|owner| owner == first));
        if self.choice.0 != owner {
            self.choice = (owner, None);
        }
        let plain = &self.buffer[..filled];
        self.encoder
            .encode(plain, &self.blocks, &mut self.choice.1)
            .map_err(|e| Error::failed("could not compress a frame").because(e))
    }
}

fn unreadable(piece: &Piece, source: std::io::Error) -> Error {
    Error::failed(format!(
        "could not read \"{}\" at byte {}",
        piece.source.place.path().display(),
        piece.offset
    ))
    .because(source)
    .hint("The disk may be failing: look into the kernel's log.")
}
