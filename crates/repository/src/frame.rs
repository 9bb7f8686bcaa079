//! A frame: up to [`FRAME_BYTES`] of one or more files, compressed, sealed and checksummed on its own.
//! The bytes are drawn in `docs/format.md`.

mod decoder;
mod encoder;

use std::ops::Range;

use leeward_pgformat::page_transform::TransformDamage;
use leeward_pgformat::{PAGE_SIZE, RELATION_SEGMENT_BLOCKS};

use crate::codec::CompressionUsed;
use crate::fields::Fields;
use crate::file_path::FilePath;
use crate::hash::{Hash, ShortHash};

pub use decoder::FrameDecoder;
pub use encoder::FrameEncoder;
pub use leeward_pgformat::page_transform::Choice;

/// How many plain bytes a frame holds at most when we write it: 128 pages.
pub const FRAME_BYTES: usize = 1 << 20;

/// How many plain bytes of a frame a reader accepts; later writers may go up to here without a new format.
pub const FRAME_BYTES_LIMIT: usize = 16 << 20;

/// Consecutive bytes of one file, in the order in which a frame holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Index in the pack's table of files.
    pub file: u32,
    /// Where in that file the piece begins, in bytes. The relation-wide block of a page is
    /// `segment * 131072 + offset / 8192`, the segment being in the file's name.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// The relation-wide blocks of the pages in `length` bytes of `file` from `offset`, as everybody has to count them who
/// encodes or decodes a frame. `None` where these are not whole pages of a relation.
#[must_use]
pub fn blocks_of_piece(file: &FilePath, offset: u64, length: u32) -> Option<Range<u32>> {
    const PAGE: u32 = PAGE_SIZE as u32;
    let segment = file.relation_segment()?;
    if !offset.is_multiple_of(PAGE.into()) || !length.is_multiple_of(PAGE) {
        return None;
    }
    let first = u64::from(segment.segment) * u64::from(RELATION_SEGMENT_BLOCKS);
    let begin = u32::try_from(first.checked_add(offset / u64::from(PAGE))?).ok()?;
    Some(begin..begin.checked_add(length / PAGE)?)
}

/// Everything that a pack's index knows of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameEntry {
    /// Where the stored bytes begin in the pack.
    pub offset: u64,
    /// Bytes in the pack.
    pub stored_length: u32,
    /// Bytes after the page transform, before compression; `plain_length` where there is no transform.
    pub transformed_length: u32,
    /// Bytes of the files' contents.
    pub plain_length: u32,
    /// Bytes of one page: 8,192 where the frame holds pages of relations, 0 where it holds other files.
    pub page_size: u16,
    /// [`CompressionUsed`] as a number.
    pub compression: u8,
    /// The page transform; 0: none, else [`PAGE_TRANSFORM`](leeward_pgformat::page_transform::PAGE_TRANSFORM).
    pub transform: u8,
    /// How the frame is encrypted; 0: not.
    pub sealing: u8,
    /// BLAKE3 of the plain bytes.
    pub plain_hash: Hash,
    /// BLAKE3, shortened, of the stored bytes.
    pub stored_hash: ShortHash,
    /// What the plain bytes are, in order; the lengths add up to `plain_length`.
    pub pieces: Vec<Piece>,
}

/// A frame ready to be appended to a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedFrame {
    /// The bytes to store.
    pub stored: Vec<u8>,
    /// As in [`FrameEntry`].
    pub transformed_length: u32,
    /// As in [`FrameEntry`].
    pub plain_length: u32,
    /// As in [`FrameEntry`].
    pub page_size: u16,
    /// How `stored` was compressed.
    pub compression: CompressionUsed,
    /// As in [`FrameEntry`].
    pub transform: u8,
    /// As in [`FrameEntry`].
    pub sealing: u8,
    /// As in [`FrameEntry`].
    pub plain_hash: Hash,
    /// As in [`FrameEntry`].
    pub stored_hash: ShortHash,
}

/// Why a frame could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameDamage {
    /// The stored bytes are not those that were written.
    #[error("stored bytes damaged: their hash is {found}, not {expected}")]
    StoredHash {
        /// The hash in the index.
        expected: ShortHash,
        /// The hash of what was read.
        found: ShortHash,
    },
    /// The stored bytes are intact, but decode to something else than what was read from the server.
    #[error("plain bytes differ after decoding: their hash is {found}, not {expected}")]
    PlainHash {
        /// The hash in the index.
        expected: Hash,
        /// The hash of what was decoded.
        found: Hash,
    },
    /// The lengths in the index contradict each other or the bytes.
    #[error("impossible lengths: {0}")]
    Lengths(String),
    /// Declared to be pages taken apart, and cannot be.
    #[error("pages taken apart, but {0}")]
    NotPages(String),
    /// The bytes are not those of pages taken apart.
    #[error("the pages cannot be put together: {0}")]
    Transform(#[from] TransformDamage),
    /// The bytes do not decompress.
    #[error(transparent)]
    Decompression(#[from] crate::codec::DecompressionError),
    /// A newer leeward wrote this frame.
    #[error(
        "{what} {number} is not known to this version of leeward (repository format 1): a newer leeward wrote it"
    )]
    Unknown {
        /// "compression", "page transform" or "sealing".
        what: &'static str,
        /// The number found.
        number: u8,
    },
}

impl FrameEntry {
    /// Bytes of an encoded entry, without its pieces.
    pub(crate) const ENCODED_BYTES: usize = 88;
    /// Bytes of an encoded piece.
    pub(crate) const PIECE_BYTES: usize = 16;
    /// How much longer than its input sealing may make a frame: an AES-256-GCM tag and some room.
    const SEALING_BYTES: u32 = 64;

    /// Whether the lengths can be those of a frame; to be asked before anything is allocated.
    pub(crate) fn check_lengths(&self) -> Result<(), String> {
        if self.plain_length as usize > FRAME_BYTES_LIMIT {
            return Err(format!(
                "{} plain bytes, at most {FRAME_BYTES_LIMIT}",
                self.plain_length
            ));
        }
        if self.transformed_length > self.plain_length {
            return Err(format!(
                "{} transformed bytes of {} plain bytes",
                self.transformed_length, self.plain_length
            ));
        }
        if self.transform == 0 && self.transformed_length != self.plain_length {
            return Err(format!(
                "{} transformed bytes of {} plain bytes without a transform",
                self.transformed_length, self.plain_length
            ));
        }
        if self.stored_length > self.transformed_length + Self::SEALING_BYTES {
            return Err(format!(
                "{} stored bytes of {} bytes",
                self.stored_length, self.transformed_length
            ));
        }
        Ok(())
    }

    /// The 88 bytes drawn in `docs/format.md`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.stored_length.to_le_bytes());
        out.extend_from_slice(&self.transformed_length.to_le_bytes());
        out.extend_from_slice(&self.plain_length.to_le_bytes());
        out.extend_from_slice(&self.page_size.to_le_bytes());
        out.extend_from_slice(&[self.compression, self.transform, self.sealing, 0, 0, 0]);
        out.extend_from_slice(&(self.pieces.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.plain_hash.0);
        out.extend_from_slice(&self.stored_hash.0);
        out.extend_from_slice(&[0; 8]);
    }

    /// An entry without its pieces, and how many there are. `bytes` are at least 88.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, u32)> {
        let mut fields = Fields(bytes);
        let entry = Self {
            offset: fields.u64()?,
            stored_length: fields.u32()?,
            transformed_length: fields.u32()?,
            plain_length: fields.u32()?,
            page_size: fields.u16()?,
            compression: fields.u8()?,
            transform: fields.u8()?,
            sealing: fields.u8()?,
            plain_hash: Hash([0; 32]),
            stored_hash: ShortHash([0; 16]),
            pieces: Vec::new(),
        };
        fields.take::<3>()?;
        let pieces = fields.u32()?;
        let plain_hash = Hash(fields.take()?);
        let stored_hash = ShortHash(fields.take()?);
        Some((
            Self {
                plain_hash,
                stored_hash,
                ..entry
            },
            pieces,
        ))
    }
}

impl Piece {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.file.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self {
            file: fields.u32()?,
            length: fields.u32()?,
            offset: fields.u64()?,
        })
    }
}
