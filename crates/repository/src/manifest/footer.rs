//! The footer of a manifest: the table of its blocks, the backups its runs point into, totals.

use std::convert::Infallible;

use minicbor::{Decoder, Encoder};

use super::{ManifestInfo, Source};
use crate::file_path::{FilePath, Root};
use crate::hash::Hash;
use crate::pack::PackInfo;
use crate::trailer::HEADER_BYTES;

/// The most plain bytes of one block. Blocks are far smaller, except for one with a single very fragmented file.
pub(super) const BLOCK_BYTES_LIMIT: u32 = 32 << 20;

/// The most blocks of a manifest: of files without runs, half a billion; of full relation segments, 67 PB.
pub(super) const BLOCKS_LIMIT: usize = 1 << 18;
/// The most backups that a manifest points into, itself among them.
pub(super) const SOURCES_LIMIT: usize = 1 << 16;

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Files = 0,
    Wal = 1,
}

/// One line of the block table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub offset: u64,
    pub stored_length: u32,
    pub plain_length: u32,
    pub compression: u8,
    pub sealing: u8,
    pub section: Section,
    pub records: u32,
    /// BLAKE3 of the stored bytes.
    pub hash: Hash,
    /// The least and the greatest path in it; of WAL objects the name.
    pub first: FilePath,
    pub last: FilePath,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footer {
    pub header: [u8; HEADER_BYTES],
    pub blocks: Vec<Block>,
    pub sources: Vec<Source>,
    pub files: u64,
    pub entries: u64,
    pub size_bytes: u64,
    pub wal_objects: u64,
}

impl Block {
    pub(super) fn describe(&self, number: usize) -> String {
        match self.section {
            Section::Files => format!("block {number} (\"{}\" to \"{}\")", self.first, self.last),
            Section::Wal => format!(
                "block {number} (WAL \"{}\" to \"{}\")",
                self.first, self.last
            ),
        }
    }
}

impl Footer {
    pub(super) fn info(&self, size: u64, hash: Hash) -> ManifestInfo {
        ManifestInfo {
            size,
            hash,
            files: self.files,
            entries: self.entries,
            size_bytes: self.size_bytes,
            wal_objects: self.wal_objects,
        }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, minicbor::encode::Error<Infallible>> {
        let mut out = Vec::new();
        let mut e = Encoder::new(&mut out);
        e.map(4)?.u32(0)?.bytes(&self.header)?;
        e.u32(1)?.array(self.blocks.len() as u64)?;
        for block in &self.blocks {
            e.array(12)?
                .u64(block.offset)?
                .u32(block.stored_length)?
                .u32(block.plain_length)?
                .u8(block.compression)?
                .u8(block.sealing)?
                .u8(block.section as u8)?
                .u32(block.records)?
                .bytes(&block.hash.0)?;
            for path in [&block.first, &block.last] {
                e.u8(path.root as u8)?.bytes(&path.path)?;
            }
        }
        e.u32(2)?.array(self.sources.len() as u64)?;
        for source in &self.sources {
            e.array(2)?;
            match &source.backup {
                Some(id) => e.str(id.as_str())?,
                None => e.null()?,
            };
            e.array(source.packs.len() as u64)?;
            for pack in &source.packs {
                e.array(4)?
                    .u32(pack.number)?
                    .u64(pack.size)?
                    .u32(pack.frames)?
                    .bytes(&pack.index_hash.0)?;
            }
        }
        e.u32(3)?.array(4)?;
        for total in [self.files, self.entries, self.size_bytes, self.wal_objects] {
            e.u64(total)?;
        }
        Ok(out)
    }

    /// Reads a footer; `footer_offset` is where its stored form begins: the blocks fill everything before.
    pub(super) fn decode(bytes: &[u8], footer_offset: u64) -> Result<Self, String> {
        let footer = Self::parse(bytes).map_err(|error| error.to_string())?;
        let mut offset = HEADER_BYTES as u64;
        for (number, block) in footer.blocks.iter().enumerate() {
            if block.offset != offset
                || block.plain_length > BLOCK_BYTES_LIMIT
                || block.stored_length > BLOCK_BYTES_LIMIT
            {
                return Err(format!("block {number} has impossible lengths"));
            }
            offset += u64::from(block.stored_length);
        }
        if offset != footer_offset {
            return Err("the blocks do not fill the manifest".to_owned());
        }
        if footer
            .sources
            .first()
            .is_none_or(|source| source.backup.is_some())
        {
            return Err("its own backup is not the first of its sources".to_owned());
        }
        Ok(footer)
    }

    fn parse(bytes: &[u8]) -> Result<Self, minicbor::decode::Error> {
        let mut d = Decoder::new(bytes);
        let mut footer = Self {
            header: [0; HEADER_BYTES],
            blocks: Vec::new(),
            sources: Vec::new(),
            files: 0,
            entries: 0,
            size_bytes: 0,
            wal_objects: 0,
        };
        for _ in 0..length(d.map()?)? {
            match d.u32()? {
                0 => {
                    footer.header = d
                        .bytes()?
                        .try_into()
                        .map_err(|_| message("a header of another length"))?
                }
                1 => {
                    for _ in 0..at_most(BLOCKS_LIMIT - footer.blocks.len(), d.array()?)? {
                        footer.blocks.push(parse_block(&mut d)?);
                    }
                }
                2 => {
                    for _ in 0..at_most(SOURCES_LIMIT - footer.sources.len(), d.array()?)? {
                        footer.sources.push(parse_source(&mut d)?);
                    }
                }
                3 => {
                    let count = length(d.array()?)?;
                    if count < 4 {
                        return Err(message("too few totals"));
                    }
                    footer.files = d.u64()?;
                    footer.entries = d.u64()?;
                    footer.size_bytes = d.u64()?;
                    footer.wal_objects = d.u64()?;
                    skip(&mut d, count - 4)?;
                }
                _ => d.skip()?,
            }
        }
        if d.position() != bytes.len() {
            return Err(message("bytes behind the end"));
        }
        Ok(footer)
    }
}

fn message(text: &'static str) -> minicbor::decode::Error {
    minicbor::decode::Error::message(text)
}

/// The length of an array or map; nothing is allocated for it in advance.
fn length(length: Option<u64>) -> Result<u64, minicbor::decode::Error> {
    length.ok_or_else(|| message("an array or map without a length"))
}

/// As [`length`], of an array that may have so many elements.
fn at_most(limit: usize, found: Option<u64>) -> Result<u64, minicbor::decode::Error> {
    match length(found)? {
        length if length <= limit as u64 => Ok(length),
        _ => Err(message("more elements than any footer has")),
    }
}

fn skip(d: &mut Decoder<'_>, count: u64) -> Result<(), minicbor::decode::Error> {
    (0..count).try_for_each(|_| d.skip())
}

fn parse_hash(d: &mut Decoder<'_>) -> Result<Hash, minicbor::decode::Error> {
    d.bytes()?
        .try_into()
        .map(Hash)
        .map_err(|_| message("a hash of another length"))
}

fn parse_path(d: &mut Decoder<'_>) -> Result<FilePath, minicbor::decode::Error> {
    Ok(FilePath {
        root: Root::from_u8(d.u8()?).ok_or_else(|| message("a path below an unknown root"))?,
        path: d.bytes()?.to_vec(),
    })
}

fn parse_block(d: &mut Decoder<'_>) -> Result<Block, minicbor::decode::Error> {
    let count = length(d.array()?)?;
    if count < 12 {
        return Err(message("a block with too few fields"));
    }
    let block = Block {
        offset: d.u64()?,
        stored_length: d.u32()?,
        plain_length: d.u32()?,
        compression: d.u8()?,
        sealing: d.u8()?,
        section: match d.u8()? {
            0 => Section::Files,
            1 => Section::Wal,
            _ => return Err(message("a block of an unknown section")),
        },
        records: d.u32()?,
        hash: parse_hash(d)?,
        first: parse_path(d)?,
        last: parse_path(d)?,
    };
    skip(d, count - 12)?;
    Ok(block)
}

fn parse_source(d: &mut Decoder<'_>) -> Result<Source, minicbor::decode::Error> {
    let fields = length(d.array()?)?;
    if fields < 2 {
        return Err(message("a source with too few fields"));
    }
    let backup = match d.datatype()? {
        minicbor::data::Type::Null => {
            d.null()?;
            None
        }
        _ => Some(
            d.str()?
                .parse()
                .map_err(|_| message("a source that is not a backup's id"))?,
        ),
    };
    let mut packs = Vec::new();
    for _ in 0..length(d.array()?)? {
        let count = length(d.array()?)?;
        if count < 4 {
            return Err(message("a pack with too few fields"));
        }
        packs.push(PackInfo {
            number: d.u32()?,
            size: d.u64()?,
            frames: d.u32()?,
            index_hash: parse_hash(d)?,
        });
        skip(d, count - 4)?;
    }
    skip(d, fields - 2)?;
    Ok(Source { backup, packs })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A footer with its blocks or sources given as they are encoded, once or several times.
    fn footer(key: u8, count: u64, element: &[u8], times: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut e = Encoder::new(&mut out);
        e.map(times as u64).expect("encoded");
        for _ in 0..times {
            let mut e = Encoder::new(&mut out);
            e.u8(key).expect("encoded").array(count).expect("encoded");
            for _ in 0..count {
                out.extend_from_slice(element);
            }
        }
        out
    }

    fn refusal(bytes: &[u8]) -> String {
        Footer::parse(bytes).expect_err("refused").to_string()
    }

    #[test]
    fn more_elements_than_any_footer_has_are_refused() {
        // Array of two: no backup, no packs.
        let source = [0x82, 0xF6, 0x80];
        let limit = SOURCES_LIMIT as u64;
        assert!(Footer::parse(&footer(2, limit, &source, 1)).is_ok());
        for bytes in [
            footer(2, limit + 1, &source, 1),
            footer(2, limit / 2 + 1, &source, 2),
            // Nothing is allocated for what is only announced.
            footer(1, 0, &[], 1)[..2]
                .iter()
                .copied()
                .chain([0x9B, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF])
                .collect(),
        ] {
            let text = refusal(&bytes);
            assert!(text.contains("more elements than any footer has"), "{text}");
        }
    }
}
