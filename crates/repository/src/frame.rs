//! A frame: up to [`FRAME_BYTES`] of one or more files, compressed, sealed and checksummed on its own.
//! The bytes are drawn in `docs/format.md`.

use crate::codec::{CompressionError, CompressionUsed, Compressor, Decompressor};
use crate::hash::{Hash, ShortHash};

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
    /// The page transform; 0: none.
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
    /// The bytes do not decompress.
    #[error(transparent)]
    Decompression(#[from] crate::codec::DecompressionError),
    /// A newer leeward wrote this frame.
    #[error("{what} {number} is not known to this version of leeward (repository format 1): a newer leeward wrote it")]
    Unknown {
        /// "compression", "page transform" or "sealing".
        what: &'static str,
        /// The number found.
        number: u8,
    },
}

/// Hashes, compresses and hashes again; runs on compression workers. `page_size` is 8,192 for pages of relations
/// and 0 for other bytes. At most [`FRAME_BYTES_LIMIT`] bytes.
pub fn encode_frame(
    compressor: &mut Compressor,
    plain: &[u8],
    page_size: u16,
) -> Result<EncodedFrame, CompressionError> {
    let _ = (compressor, plain, page_size);
    todo!()
}

/// The plain bytes of a frame, after its stored hash, its lengths and its plain hash have been checked.
pub fn decode_frame(
    entry: &FrameEntry,
    stored: &[u8],
    decompressor: &mut Decompressor,
) -> Result<Vec<u8>, FrameDamage> {
    let _ = (entry, stored, decompressor);
    todo!()
}
