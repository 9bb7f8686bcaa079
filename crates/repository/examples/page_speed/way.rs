//! The ways of storing a frame and of getting it back.

use std::error::Error;

use leeward_pgformat::PAGE_SIZE;
use leeward_repository::codec::{Compression, CompressionUsed, Compressor, Decompressor};
use leeward_repository::frame::{FrameEntry, decode_frame_into, encode_frame};

use crate::files::Frame;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One way, with all that is kept from frame to frame.
pub struct Way {
    coder: Coder,
    decompressor: Decompressor,
}

enum Coder {
    /// zstd as its library does it.
    Library(zstd::bulk::Compressor<'static>),
    Codec(Compressor),
    /// `encode_frame` and `decode_frame_into`.
    Frame(Compressor),
}

/// What one frame became.
#[derive(Default)]
pub struct Stored {
    pub bytes: Vec<u8>,
    how: Option<How>,
}

enum How {
    Compressed(CompressionUsed),
    Frame(Box<FrameEntry>),
}

impl Way {
    pub fn new(name: &str) -> Result<Self> {
        let coder = match name.split_once(':') {
            Some(("library", name)) => match name.parse()? {
                Compression::Zstd { level } => Coder::Library(zstd::bulk::Compressor::new(level)?),
                other => return Err(format!("\"library:{other}\": only zstd:1 to zstd:19").into()),
            },
            Some(("codec", name)) => Coder::Codec(Compressor::new(name.parse()?)),
            Some(("frame", name)) => Coder::Frame(Compressor::new(name.parse()?)),
            _ => return Err(format!("\"{name}\" is no way; --help names them").into()),
        };
        Ok(Self {
            coder,
            decompressor: Decompressor::new(),
        })
    }

    /// Replaces what is in `stored`, using its memory again.
    pub fn store(&mut self, frame: &Frame, stored: &mut Stored) -> Result<()> {
        let plain = &frame.plain;
        stored.how = Some(match &mut self.coder {
            Coder::Library(library) => {
                stored.bytes.clear();
                stored
                    .bytes
                    .reserve(zstd::zstd_safe::compress_bound(plain.len()));
                library.compress_to_buffer(plain, &mut stored.bytes)?;
                How::Compressed(CompressionUsed::Zstd)
            }
            Coder::Codec(codec) => How::Compressed(codec.compress(plain, &mut stored.bytes)?),
            Coder::Frame(codec) => {
                let page_size = if frame.blocks.is_empty() {
                    0
                } else {
                    PAGE_SIZE as u16
                };
                let encoded = encode_frame(codec, plain, page_size)?;
                stored.bytes = encoded.stored;
                How::Frame(Box::new(FrameEntry {
                    offset: 0,
                    stored_length: stored.bytes.len() as u32,
                    transformed_length: encoded.transformed_length,
                    plain_length: encoded.plain_length,
                    page_size: encoded.page_size,
                    compression: encoded.compression as u8,
                    transform: encoded.transform,
                    sealing: encoded.sealing,
                    plain_hash: encoded.plain_hash,
                    stored_hash: encoded.stored_hash,
                    pieces: Vec::new(),
                }))
            }
        });
        Ok(())
    }

    /// Replaces what is in `plain`, using its memory again. Of the frame nothing is used but what an index would know.
    pub fn restore(&mut self, frame: &Frame, stored: &Stored, plain: &mut Vec<u8>) -> Result<()> {
        let decompressor = &mut self.decompressor;
        match &stored.how {
            None => return Err("nothing was stored".into()),
            Some(How::Compressed(used)) => {
                decompressor.decompress_into(&stored.bytes, *used, frame.plain.len(), plain)?;
            }
            Some(How::Frame(entry)) => {
                decode_frame_into(entry, &stored.bytes, decompressor, plain)?;
            }
        }
        Ok(())
    }
}
