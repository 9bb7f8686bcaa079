//! Compression of one buffer at a time: pure bytes, one context per worker, used again and again.
//!
//! `docs/decisions/0003-repository-format.md` has the measurements behind every number here.

use std::fmt;
use std::str::FromStr;

use zstd::zstd_safe::{self, DCtx};

use crate::zstd_frames::ZstdFrames;

/// How frames are compressed when it pays. Parsed from `zstd`, `zstd:<level>`, `lz4`, `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Stored as they are.
    None,
    /// Zstandard at this level, 1 to 19.
    Zstd {
        /// zstd's compression level.
        level: i32,
    },
    /// LZ4 blocks: a fifth of the CPU time of zstd at level 3, twice its size.
    Lz4,
}

/// How one stored buffer was compressed in fact: the `compression` byte of frames, indexes and blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CompressionUsed {
    /// Raw bytes.
    None = 0,
    /// One zstd frame with its content size.
    Zstd = 1,
    /// One LZ4 block.
    Lz4 = 2,
}

/// A text that names no compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a compression: use zstd, zstd:1 to zstd:19, lz4 or none")]
pub struct InvalidCompression(pub String);

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd { level: 3 }
    }
}

impl FromStr for Compression {
    type Err = InvalidCompression;

    fn from_str(text: &str) -> Result<Self, InvalidCompression> {
        match text {
            "none" => Ok(Self::None),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::default()),
            _ => match text.strip_prefix("zstd:").map(str::parse) {
                Some(Ok(level @ 1..=19)) => Ok(Self::Zstd { level }),
                _ => Err(InvalidCompression(text.chars().take(100).collect())),
            },
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Zstd { level } => write!(f, "zstd:{level}"),
            Self::Lz4 => f.write_str("lz4"),
        }
    }
}

impl CompressionUsed {
    /// The compression with this number in a stored table.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Zstd),
            2 => Some(Self::Lz4),
            _ => None,
        }
    }
}

/// Compresses buffers one after the other; keep one per worker thread.
pub struct Compressor {
    compression: Compression,
    /// Made when first used.
    zstd: Option<ZstdFrames>,
    /// What [`Compressor::compress_to_vec`] compresses into.
    scratch: Vec<u8>,
}

/// A compression library refused to work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("could not compress {length} bytes: {reason}")]
pub struct CompressionError {
    /// Plain length, in bytes.
    pub length: usize,
    /// What the library said.
    pub reason: String,
}

/// For pages, the power of two of places in zstd's table at level 3.
const PAGES_TABLE_LOG: u32 = 14;
/// Compression pays if it saves at least this share (1/128) of the plain bytes.
const PAYING_SHARE: usize = 128;

impl Compressor {
    /// A compressor with a context of its own (about 1 MiB, once used).
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        Self {
            compression,
            zstd: None,
            scratch: Vec::new(),
        }
    }

    /// Replaces `out` by the compressed form of `plain`, or by `plain` itself where compression does not pay.
    ///
    /// # Errors
    /// Only when the library has no memory.
    pub fn compress(
        &mut self,
        plain: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<CompressionUsed, CompressionError> {
        let used = self.compress_paying(plain, out)?;
        if used == CompressionUsed::None {
            out.clear();
            out.extend_from_slice(plain);
        }
        Ok(used)
    }

    /// The stored form of `plain` in a vector of its own. Compressing into a buffer that is used again and copying
    /// costs less than touching fresh memory for the largest possible result.
    pub(crate) fn compress_to_vec(
        &mut self,
        plain: &[u8],
    ) -> Result<(CompressionUsed, Vec<u8>), CompressionError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let used = self.compress_paying(plain, &mut scratch)?;
        if used == CompressionUsed::None {
            self.scratch = scratch;
            return Ok((used, plain.to_vec()));
        }
        let stored = scratch.to_vec();
        self.scratch = scratch;
        Ok((used, stored))
    }

    /// As [`Compressor::compress`], but leaves anything in `out` where compression does not pay.
    fn compress_paying(
        &mut self,
        plain: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<CompressionUsed, CompressionError> {
        let used = match self.compression {
            Compression::None => return Ok(CompressionUsed::None),
            Compression::Zstd { level } => {
                let zstd = self
                    .zstd
                    .get_or_insert_with(|| ZstdFrames::new(level, PAGES_TABLE_LOG));
                zstd.compress(plain, out)?;
                CompressionUsed::Zstd
            }
            Compression::Lz4 => {
                out.resize(lz4_flex::block::get_maximum_output_size(plain.len()), 0);
                let length = lz4_flex::block::compress_into(plain, out).map_err(|error| {
                    CompressionError {
                        length: plain.len(),
                        reason: error.to_string(),
                    }
                })?;
                out.truncate(length);
                CompressionUsed::Lz4
            }
        };
        if out.len() < plain.len() - plain.len() / PAYING_SHARE {
            Ok(used)
        } else {
            Ok(CompressionUsed::None)
        }
    }
}

/// Decompresses buffers one after the other; keep one per worker thread.
#[derive(Default)]
pub struct Decompressor {
    context: Option<DCtx<'static>>,
}

/// Bytes that do not decompress to what was declared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("could not decompress {stored} bytes into {expected}: {reason}")]
pub struct DecompressionError {
    /// Stored length, in bytes.
    pub stored: usize,
    /// Expected plain length, in bytes.
    pub expected: usize,
    /// What the library said.
    pub reason: String,
}

impl Decompressor {
    /// A decompressor with a context of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Exactly `expected_length` plain bytes, or an error. Never allocates more than that: the caller has checked
    /// `expected_length` against its limit.
    ///
    /// # Errors
    /// The bytes are something else than a compressed form of that many bytes.
    pub fn decompress(
        &mut self,
        stored: &[u8],
        used: CompressionUsed,
        expected_length: usize,
    ) -> Result<Vec<u8>, DecompressionError> {
        let mut plain = Vec::new();
        self.decompress_into(stored, used, expected_length, &mut plain)?;
        Ok(plain)
    }

    /// As [`Decompressor::decompress`], replacing what is in `plain` and using its memory again.
    ///
    /// # Errors
    /// As [`Decompressor::decompress`]; `plain` then holds anything.
    pub fn decompress_into(
        &mut self,
        stored: &[u8],
        used: CompressionUsed,
        expected_length: usize,
        plain: &mut Vec<u8>,
    ) -> Result<(), DecompressionError> {
        let failed = |reason: String| DecompressionError {
            stored: stored.len(),
            expected: expected_length,
            reason,
        };
        plain.clear();
        plain.reserve_exact(expected_length);
        match used {
            CompressionUsed::None => {
                if stored.len() != expected_length {
                    return Err(failed("raw bytes of another length".to_owned()));
                }
                plain.extend_from_slice(stored);
            }
            CompressionUsed::Zstd => {
                match zstd_safe::get_frame_content_size(stored) {
                    Ok(Some(length)) if length == expected_length as u64 => {}
                    Ok(Some(length)) => {
                        return Err(failed(format!("the zstd frame declares {length} bytes")));
                    }
                    Ok(None) => return Err(failed("the zstd frame declares no length".to_owned())),
                    Err(_) => return Err(failed("not a zstd frame".to_owned())),
                }
                if self.context.is_none() {
                    self.context = DCtx::try_create();
                }
                let Some(context) = &mut self.context else {
                    return Err(failed("out of memory".to_owned()));
                };
                context
                    .decompress(plain, stored)
                    .map_err(|code| failed(zstd_safe::get_error_name(code).to_owned()))?;
            }
            CompressionUsed::Lz4 => {
                plain.resize(expected_length, 0);
                let length = lz4_flex::block::decompress_into(stored, plain)
                    .map_err(|error| failed(error.to_string()))?;
                plain.truncate(length);
            }
        }
        if plain.len() != expected_length {
            return Err(failed(format!("there are {} bytes", plain.len())));
        }
        Ok(())
    }
}
