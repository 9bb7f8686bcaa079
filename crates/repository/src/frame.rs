//! A frame: up to [`FRAME_BYTES`] of one or more files, compressed, sealed and checksummed on its own.
//! The bytes are drawn in `docs/format.md`.

use crate::codec::{CompressionError, CompressionUsed, Compressor, Decompressor};
use crate::fields::Fields;
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

/// Hashes, compresses and hashes again; runs on compression workers. `page_size` is 8,192 for pages of relations
/// and 0 for other bytes. At most [`FRAME_BYTES_LIMIT`] bytes.
///
/// # Errors
/// Too many bytes, or the library has no memory.
pub fn encode_frame(
    compressor: &mut Compressor,
    plain: &[u8],
    page_size: u16,
) -> Result<EncodedFrame, CompressionError> {
    if plain.len() > FRAME_BYTES_LIMIT {
        return Err(CompressionError {
            length: plain.len(),
            reason: format!("a frame holds at most {FRAME_BYTES_LIMIT} bytes"),
        });
    }
    let plain_hash = Hash::of(plain);
    let (compression, stored) = compressor.compress_to_vec(plain)?;
    let stored_hash = match compression {
        // The same bytes: no need to look at them twice.
        CompressionUsed::None => plain_hash.short(),
        _ => Hash::of(&stored).short(),
    };
    Ok(EncodedFrame {
        stored,
        transformed_length: plain.len() as u32,
        plain_length: plain.len() as u32,
        page_size,
        compression,
        transform: 0,
        sealing: 0,
        plain_hash,
        stored_hash,
    })
}

/// The plain bytes of a frame, after its stored hash, its lengths and its plain hash have been checked.
///
/// # Errors
/// The first check that fails.
pub fn decode_frame(
    entry: &FrameEntry,
    stored: &[u8],
    decompressor: &mut Decompressor,
) -> Result<Vec<u8>, FrameDamage> {
    let mut plain = Vec::new();
    decode_frame_into(entry, stored, decompressor, &mut plain)?;
    Ok(plain)
}

/// As [`decode_frame`], replacing what is in `plain` and using its memory again.
///
/// # Errors
/// As [`decode_frame`]; `plain` then holds anything.
pub fn decode_frame_into(
    entry: &FrameEntry,
    stored: &[u8],
    decompressor: &mut Decompressor,
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
    let hash = Hash::of(stored);
    if hash.short() != entry.stored_hash {
        return Err(FrameDamage::StoredHash {
            expected: entry.stored_hash,
            found: hash.short(),
        });
    }
    let unknown = |what, number| FrameDamage::Unknown { what, number };
    if entry.sealing != 0 {
        return Err(unknown("sealing", entry.sealing));
    }
    let compression = CompressionUsed::from_u8(entry.compression)
        .ok_or_else(|| unknown("compression", entry.compression))?;
    if entry.transform != 0 {
        return Err(unknown("page transform", entry.transform));
    }
    decompressor.decompress_into(
        stored,
        compression,
        entry.transformed_length as usize,
        plain,
    )?;
    let plain_hash = match compression {
        CompressionUsed::None => hash,
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
