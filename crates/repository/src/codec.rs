//! Compression of one buffer at a time: pure bytes, one context per worker, used again and again.
//!
//! `docs/decisions/0003-repository-format.md` has the measurements behind every number here.

use std::fmt;
use std::str::FromStr;

use zstd::zstd_safe::{self, DCtx};

use crate::zstd_frames::ZstdFrames;

/// How bytes are compressed when it pays. Parsed from `zstd`, `zstd:<level>`, `lz4`, `none`.
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

/// How the frames of a backup are compressed when it pays. Parsed from `pages`, `pages+zstd:<level>`, `pages+lz4`, and
/// from what [`Compression`] is parsed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameCompression {
    /// Pages of relations are taken apart where that saves something (`leeward_pgformat::page_transform`). Then
    /// everything is compressed like this; `None`: each frame by what is best for it.
    Pages(Option<Compression>),
    /// Everything as it is.
    Plain(Compression),
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
pub enum InvalidCompression {
    /// Of anything.
    #[error("\"{0}\" is not a compression: use zstd, zstd:1 to zstd:19, lz4 or none")]
    Unknown(String),
    /// Of the frames of a backup.
    #[error(
        "\"{0}\" is not a compression: use pages, pages+zstd:1 to pages+zstd:19, pages+lz4, zstd, zstd:1 to zstd:19, lz4 or none"
    )]
    UnknownOfFrames(String),
    /// Of a backup's frames, where there are none.
    #[error(
        "\"{0}\" is for the pages of backups, and there are none here: use zstd, or zstd:1 to zstd:19"
    )]
    OfFrames(String),
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd { level: 3 }
    }
}

impl Compression {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "none" => Some(Self::None),
            "lz4" => Some(Self::Lz4),
            "zstd" => Some(Self::default()),
            _ => match text.strip_prefix("zstd:")?.parse() {
                Ok(level @ 1..=19) => Some(Self::Zstd { level }),
                _ => None,
            },
        }
    }
}

impl FromStr for Compression {
    type Err = InvalidCompression;

    fn from_str(text: &str) -> Result<Self, InvalidCompression> {
        Self::parse(text).ok_or_else(|| {
            if text.parse::<FrameCompression>().is_ok() {
                InvalidCompression::OfFrames(shortened(text))
            } else {
                InvalidCompression::Unknown(shortened(text))
            }
        })
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
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

impl Default for FrameCompression {
    fn default() -> Self {
        Self::Pages(None)
    }
}

impl FromStr for FrameCompression {
    type Err = InvalidCompression;

    fn from_str(text: &str) -> Result<Self, InvalidCompression> {
        let read = match text.strip_prefix("pages") {
            None => Compression::parse(text).map(Self::Plain),
            Some("") => Some(Self::Pages(None)),
            // Streams that are not compressed are of no use to anybody.
            Some(behind) => behind
                .strip_prefix('+')
                .and_then(Compression::parse)
                .filter(|compression| *compression != Compression::None)
                .map(|compression| Self::Pages(Some(compression))),
        };
        read.ok_or_else(|| InvalidCompression::UnknownOfFrames(shortened(text)))
    }
}

impl fmt::Display for FrameCompression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pages(None) => f.write_str("pages"),
            Self::Pages(Some(compression)) => write!(f, "pages+{compression}"),
            Self::Plain(compression) => compression.fmt(f),
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

/// Whether `stored` bytes are worth undoing for whoever wants `plain` bytes.
pub(crate) fn pays(stored: usize, plain: usize) -> bool {
    stored < plain - plain / PAYING_SHARE
}

impl Compressor {
    /// A compressor with a context of its own (about 1 MiB, once used).
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        Self {
            compression,
            zstd: None,
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

    /// The stored form of `plain` in a vector of its own. Compressing into `scratch`, which is used again, and copying
    /// costs less than touching fresh memory for the largest possible result.
    pub(crate) fn compress_to_vec(
        &mut self,
        plain: &[u8],
        scratch: &mut Vec<u8>,
    ) -> Result<(CompressionUsed, Vec<u8>), CompressionError> {
        let used = self.compress_paying(plain, scratch)?;
        let stored = if used == CompressionUsed::None {
            plain
        } else {
            scratch
        };
        Ok((used, stored.to_vec()))
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
        if pays(out.len(), plain.len()) {
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
