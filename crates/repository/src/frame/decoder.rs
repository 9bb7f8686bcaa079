//! From a frame to its plain bytes.

use leeward_pgformat::page_transform::{PAGE_TRANSFORM, PageTransform};
use leeward_pgformat::{BlockNumber, PAGE_SIZE};

use super::{FrameDamage, FrameEntry, blocks_of_piece};
use crate::codec::{CompressionUsed, Decompressor};
use crate::file_path::FilePath;
use crate::hash::Hash;

/// Decodes frames one after the other; keep one per worker, it uses its memory again.
#[derive(Default)]
pub struct FrameDecoder {
    decompressor: Decompressor,
    transform: PageTransform,
    /// Pages taken apart.
    apart: Vec<u8>,
}

impl FrameDecoder {
    /// A decoder without memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The plain bytes of a frame, after its lengths, its stored hash and its plain hash have been checked. `files` are
    /// those of the pack's index, at which the entry's pieces point.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn decode(
        &mut self,
        entry: &FrameEntry,
        files: &[FilePath],
        stored: &[u8],
    ) -> Result<Vec<u8>, FrameDamage> {
        let mut plain = Vec::new();
        self.decode_into(entry, files, stored, &mut plain)?;
        Ok(plain)
    }

    /// As [`FrameDecoder::decode`], replacing what is in `plain` and using its memory again.
    ///
    /// # Errors
    /// As [`FrameDecoder::decode`]; `plain` then holds anything.
    pub fn decode_into(
        &mut self,
        entry: &FrameEntry,
        files: &[FilePath],
        stored: &[u8],
        plain: &mut Vec<u8>,
    ) -> Result<(), FrameDamage> {
        entry.check_lengths().map_err(FrameDamage::Lengths)?;
        if stored.len() != entry.stored_length as usize {
            return Err(FrameDamage::Lengths(format!(
                "{} stored bytes instead of {}",
                stored.len(),
                entry.stored_length
            )));
        }
        let stored_hash = Hash::of(stored);
        if stored_hash.short() != entry.stored_hash {
            return Err(FrameDamage::StoredHash {
                expected: entry.stored_hash,
                found: stored_hash.short(),
            });
        }
        let unknown = |what, number| FrameDamage::Unknown { what, number };
        if entry.sealing != 0 {
            return Err(unknown("sealing", entry.sealing));
        }
        let compression = CompressionUsed::from_u8(entry.compression)
            .ok_or_else(|| unknown("compression", entry.compression))?;
        let transformed_length = entry.transformed_length as usize;
        match entry.transform {
            0 => {
                self.decompressor.decompress_into(
                    stored,
                    compression,
                    transformed_length,
                    plain,
                )?;
            }
            PAGE_TRANSFORM => {
                let blocks = entry.blocks(files).map_err(FrameDamage::NotPages)?;
                self.decompressor.decompress_into(
                    stored,
                    compression,
                    transformed_length,
                    &mut self.apart,
                )?;
                self.transform.put_together(&self.apart, &blocks, plain)?;
            }
            newer => return Err(unknown("page transform", newer)),
        }
        if plain.len() != entry.plain_length as usize {
            return Err(FrameDamage::Lengths(format!(
                "{} plain bytes instead of {}",
                plain.len(),
                entry.plain_length
            )));
        }
        let plain_hash = match compression {
            // The same bytes: no need to look at them twice.
            CompressionUsed::None if entry.transform == 0 => stored_hash,
            _ => Hash::of(plain),
        };
        if plain_hash != entry.plain_hash {
            return Err(FrameDamage::PlainHash {
                expected: entry.plain_hash,
                found: plain_hash,
            });
        }
        Ok(())
    }
}

impl FrameEntry {
    /// The relation-wide block of each page, from the pieces; or why these are no whole pages of relations.
    fn blocks(&self, files: &[FilePath]) -> Result<Vec<BlockNumber>, String> {
        if usize::from(self.page_size) != PAGE_SIZE {
            return Err(format!("a page has {} bytes", self.page_size));
        }
        let covered: u64 = self
            .pieces
            .iter()
            .map(|piece| u64::from(piece.length))
            .sum();
        if covered != u64::from(self.plain_length) {
            return Err(format!(
                "its pieces have {covered} bytes, not {}",
                self.plain_length
            ));
        }
        let mut blocks = Vec::with_capacity(self.plain_length as usize / PAGE_SIZE);
        for piece in &self.pieces {
            let file = files
                .get(piece.file as usize)
                .ok_or_else(|| format!("there is no file {}", piece.file))?;
            let range = blocks_of_piece(file, piece.offset, piece.length).ok_or_else(|| {
                format!(
                    "{} bytes of \"{file}\" from byte {} are not pages of a relation",
                    piece.length, piece.offset
                )
            })?;
            blocks.extend(range.map(BlockNumber));
        }
        Ok(blocks)
    }
}
