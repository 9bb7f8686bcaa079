//! Compression of one buffer at a time: pure bytes, one context per worker, used again and again.

use std::fmt;
use std::str::FromStr;

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

impl Compressor {
    /// A compressor with a context of its own (about 1.5 MiB at level 3).
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        Self { compression }
    }

    /// Replaces `out` by the compressed form of `plain`, or by `plain` itself where compression does not pay.
    pub fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<CompressionUsed, CompressionError> {
        let _ = (plain, out, self.compression);
        todo!()
    }
}

/// Decompresses buffers one after the other; keep one per worker thread.
pub struct Decompressor {}

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
        Self {}
    }

    /// Exactly `expected_length` plain bytes, or an error. Never allocates more than that: the caller has checked
    /// `expected_length` against its limit.
    pub fn decompress(
        &mut self,
        stored: &[u8],
        used: CompressionUsed,
        expected_length: usize,
    ) -> Result<Vec<u8>, DecompressionError> {
        let _ = (stored, used, expected_length);
        todo!()
    }
}

impl Default for Decompressor {
    fn default() -> Self {
        Self::new()
    }
}
