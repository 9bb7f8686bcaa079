//! The ways of storing a frame and of getting it back.

use std::error::Error;

use leeward_pgformat::page_transform::PageTransform;
use leeward_pgformat::{BlockNumber, PAGE_SIZE, RELATION_SEGMENT_BLOCKS, RelationSegment};
use leeward_repository::codec::{Compression, CompressionUsed, Compressor, Decompressor};
use leeward_repository::file_path::FilePath;
use leeward_repository::frame::{Choice, FrameDecoder, FrameEncoder, FrameEntry, Piece};

use crate::files::Frame;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One way, with all that is kept from frame to frame.
pub struct Way {
    coder: Coder,
    decompressor: Decompressor,
    transform: PageTransform,
    /// Pages taken apart, on the way back.
    apart: Vec<u8>,
    decoder: FrameDecoder,
}

enum Coder {
    /// zstd as its library does it.
    Library(zstd::bulk::Compressor<'static>),
    Codec(Compressor),
    /// The page transform with leeward's codec behind, and nothing else.
    Pages(Box<Pages>),
    Frame(Box<Frames>),
}

struct Pages {
    transform: PageTransform,
    codec: Compressor,
    apart: Vec<u8>,
    choice: RelationChoice,
}

/// How the last relation's pages were best written.
type RelationChoice = (Option<RelationSegment>, Option<Choice>);

/// All that a frame takes, as a copier of a backup does it.
struct Frames {
    encoder: FrameEncoder,
    choice: RelationChoice,
}

/// What one frame became.
#[derive(Default)]
pub struct Stored {
    pub bytes: Vec<u8>,
    how: Option<How>,
}

enum How {
    Compressed(CompressionUsed),
    /// Bytes after the page transform, and how these were compressed.
    Apart(usize, CompressionUsed),
    Frame(Box<(FrameEntry, Vec<FilePath>)>),
}

impl Way {
    pub fn new(name: &str) -> Result<Self> {
        let coder = match name.split_once(':') {
            Some(("library", name)) => Coder::Library(library(name)?),
            Some(("pages", name)) => Coder::Pages(Box::new(Pages {
                transform: PageTransform::new(),
                codec: Compressor::new(name.parse()?),
                apart: Vec::new(),
                choice: (None, None),
            })),
            Some(("codec", name)) => Coder::Codec(Compressor::new(name.parse()?)),
            Some(("frame", name)) => Coder::Frame(Box::new(Frames {
                encoder: FrameEncoder::new(name.parse()?),
                choice: (None, None),
            })),
            _ => return Err(format!("\"{name}\" is no way; --help names them").into()),
        };
        Ok(Self {
            coder,
            decompressor: Decompressor::new(),
            transform: PageTransform::new(),
            apart: Vec::new(),
            decoder: FrameDecoder::new(),
        })
    }

    /// Replaces what is in `stored`, using its memory again.
    pub fn store(&mut self, frame: &Frame, stored: &mut Stored) -> Result<()> {
        let plain = &frame.plain;
        stored.how = Some(match &mut self.coder {
            Coder::Library(library) => {
                compress(library, plain, &mut stored.bytes)?;
                How::Compressed(CompressionUsed::Zstd)
            }
            Coder::Pages(pages) => {
                if pages.choice.0 != frame.owner {
                    pages.choice = (frame.owner, None);
                }
                let known = pages.choice.1.as_ref();
                let chosen =
                    pages
                        .transform
                        .take_apart(plain, &frame.blocks, known, &mut pages.apart);
                if let Some(choice) = chosen {
                    pages.choice.1 = Some(choice);
                    let used = pages.codec.compress(&pages.apart, &mut stored.bytes)?;
                    How::Apart(pages.apart.len(), used)
                } else {
                    How::Compressed(pages.codec.compress(plain, &mut stored.bytes)?)
                }
            }
            Coder::Codec(codec) => How::Compressed(codec.compress(plain, &mut stored.bytes)?),
            Coder::Frame(frames) => {
                if frames.choice.0 != frame.owner {
                    frames.choice = (frame.owner, None);
                }
                let choice = &mut frames.choice.1;
                let encoded = frames.encoder.encode(plain, &frame.blocks, choice)?;
                stored.bytes = encoded.stored;
                let (pieces, files) = places(&frame.blocks, plain.len());
                let entry = FrameEntry {
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
                    pieces,
                };
                How::Frame(Box::new((entry, files)))
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
            Some(How::Apart(length, used)) => {
                let apart = &mut self.apart;
                decompressor.decompress_into(&stored.bytes, *used, *length, apart)?;
                self.transform.put_together(apart, &frame.blocks, plain)?;
            }
            Some(How::Frame(index)) => {
                let (entry, files) = &**index;
                self.decoder
                    .decode_into(entry, files, &stored.bytes, plain)?;
            }
        }
        Ok(())
    }
}

/// zstd's own compressor of the level that this names.
fn library(name: &str) -> Result<zstd::bulk::Compressor<'static>> {
    match name.parse()? {
        Compression::Zstd { level } => Ok(zstd::bulk::Compressor::new(level)?),
        other => Err(format!("\"{other}\": only zstd:1 to zstd:19").into()),
    }
}

fn compress(
    library: &mut zstd::bulk::Compressor<'static>,
    bytes: &[u8],
    out: &mut Vec<u8>,
) -> Result<()> {
    out.clear();
    out.reserve(zstd::zstd_safe::compress_bound(bytes.len()));
    library.compress_to_buffer(bytes, out)?;
    Ok(())
}

/// What a pack's index would say of a frame: pieces of files, from which the blocks of its pages follow again.
fn places(blocks: &[BlockNumber], plain_length: usize) -> (Vec<Piece>, Vec<FilePath>) {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut files = Vec::new();
    for stretch in blocks.chunk_by(|a, b| b.0.checked_sub(1) == Some(a.0)) {
        let (segment, page) = (
            stretch[0].0 / RELATION_SEGMENT_BLOCKS,
            stretch[0].0 % RELATION_SEGMENT_BLOCKS,
        );
        pieces.push(Piece {
            file: files.len() as u32,
            offset: u64::from(page) * PAGE_SIZE as u64,
            length: (stretch.len() * PAGE_SIZE) as u32,
        });
        files.push(FilePath::in_data_directory(match segment {
            0 => "base/1/1".to_owned(),
            _ => format!("base/1/1.{segment}"),
        }));
    }
    if blocks.is_empty() {
        pieces.push(Piece {
            file: 0,
            offset: 0,
            length: plain_length as u32,
        });
        files.push(FilePath::in_data_directory("other"));
    }
    (pieces, files)
}
