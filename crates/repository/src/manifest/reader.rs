//! Reading a manifest.

use std::ops::Range;
use std::sync::Arc;

use super::footer::{Block, Footer, Section};
use super::record::{self, HELD_BYTES_LIMIT};
use super::{Entry, FileRecord, ManifestInfo, Source};
use crate::codec::{CompressionUsed, Decompressor};
use crate::file_path::FilePath;
use crate::hash::Hash;
use crate::repository_error::RepositoryError;
use crate::store::{Key, Store};
use crate::trailer::{self, HEADER_BYTES};

/// Reads a manifest: the footer at once, the blocks as they are asked for.
#[derive(Debug, Clone)]
pub struct ManifestReader {
    store: Arc<dyn Store>,
    key: Key,
    footer: Footer,
    info: ManifestInfo,
}

impl ManifestReader {
    /// Reads and checks the footer. `size` and `hash` are what `backup.json` says.
    ///
    /// # Errors
    /// [`RepositoryError::Damaged`], [`RepositoryError::NewerFormat`], and those of the store.
    pub fn open(
        store: Arc<dyn Store>,
        key: Key,
        size: u64,
        hash: Hash,
    ) -> Result<Self, RepositoryError> {
        let (trailer, bytes) =
            trailer::read_end(trailer::MANIFEST, &*store, &key, size, Some(hash))?;
        let footer = Footer::decode(&bytes, trailer.index_offset)
            .map_err(|problem| RepositoryError::damaged(&key, "footer", problem))?;
        let info = footer.info(size, hash);
        Ok(Self {
            store,
            key,
            footer,
            info,
        })
    }

    /// The backups whose packs the runs point into, indexed by [`super::Run::source`]; 0 is this backup.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.footer.sources
    }

    /// What is in it, as [`super::ManifestWriter::finish`] returned it.
    #[must_use]
    pub fn info(&self) -> &ManifestInfo {
        &self.info
    }

    /// All entries in order, one block in memory at a time. After an error of the store there is nothing more; a
    /// damaged block is one error, and the blocks after it follow.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry, RepositoryError>> + '_ {
        self.walk(0..self.footer.blocks.len())
    }

    /// The WAL objects, in order.
    pub fn wal(&self) -> impl Iterator<Item = Result<Entry, RepositoryError>> + '_ {
        let first = self
            .footer
            .blocks
            .partition_point(|block| block.section == Section::Files);
        self.walk(first..self.footer.blocks.len())
    }

    fn walk(&self, blocks: Range<usize>) -> Entries<'_> {
        Entries {
            reader: self,
            blocks,
            plain: Vec::new(),
            position: 0,
            current: 0,
            left: 0,
            held_bytes: 0,
            decompressor: Decompressor::new(),
        }
    }

    /// One file, with one range read.
    ///
    /// # Errors
    /// As for [`ManifestReader::entries`].
    pub fn find(&self, path: &FilePath) -> Result<Option<FileRecord>, RepositoryError> {
        for (number, block) in self.footer.blocks.iter().enumerate() {
            if block.section != Section::Files || *path < block.first || *path > block.last {
                continue;
            }
            for entry in self.walk(number..number + 1) {
                match entry? {
                    Entry::File(record) if record.path == *path => return Ok(Some(record)),
                    _ => {}
                }
            }
        }
        Ok(None)
    }

    /// The plain bytes of a block. With the first block the header before it is checked too.
    fn read_block(
        &self,
        number: usize,
        decompressor: &mut Decompressor,
    ) -> Result<Vec<u8>, RepositoryError> {
        let block = &self.footer.blocks[number];
        let damaged =
            |problem: String| RepositoryError::damaged(&self.key, block.describe(number), problem);
        let end = block.offset + u64::from(block.stored_length);
        let start = if number == 0 { 0 } else { block.offset };
        let bytes = self.store.get_range(&self.key, start..end)?;
        let (header, stored) = bytes.split_at((block.offset - start) as usize);
        if number == 0 {
            self.check_header(header)?;
        }
        if Hash::of(stored) != block.hash {
            return Err(damaged(
                "its bytes are not those that were written".to_owned(),
            ));
        }
        let newer = |what, found: u8, known| RepositoryError::NewerFormat {
            object: self.key.to_string(),
            what,
            found: found.into(),
            known,
        };
        if block.sealing != 0 {
            return Err(newer("sealing", block.sealing, 0));
        }
        let compression = CompressionUsed::from_u8(block.compression).ok_or_else(|| {
            newer(
                "compression",
                block.compression,
                CompressionUsed::Lz4 as u64,
            )
        })?;
        decompressor
            .decompress(stored, compression, block.plain_length as usize)
            .map_err(|error| damaged(error.to_string()))
    }

    /// Reads every byte and checks it.
    ///
    /// # Errors
    /// The first damage found, and as for [`ManifestReader::entries`].
    pub fn check(&self) -> Result<(), RepositoryError> {
        let size = self.store.size(&self.key)?;
        if size != self.info.size {
            return Err(RepositoryError::wrong_size(&self.key, size, self.info.size));
        }
        if self.footer.blocks.is_empty() {
            self.check_header(&self.store.get_range(&self.key, 0..HEADER_BYTES as u64)?)?;
        }
        self.entries().try_for_each(|entry| entry.map(drop))
    }

    fn check_header(&self, header: &[u8]) -> Result<(), RepositoryError> {
        if header == self.footer.header {
            return Ok(());
        }
        let problem = "it is not the one that the footer repeats";
        Err(RepositoryError::damaged(&self.key, "header", problem))
    }
}

/// The iterator of [`ManifestReader::entries`].
struct Entries<'a> {
    reader: &'a ManifestReader,
    blocks: Range<usize>,
    plain: Vec<u8>,
    position: usize,
    current: usize,
    /// Records left in the block.
    left: u32,
    /// The memory held by now by the code that collects them.
    held_bytes: usize,
    decompressor: Decompressor,
}

impl Entries<'_> {
    fn block(&self) -> &Block {
        &self.reader.footer.blocks[self.current]
    }

    fn damaged(&mut self, problem: String) -> RepositoryError {
        self.left = 0;
        self.position = self.plain.len();
        RepositoryError::damaged(
            &self.reader.key,
            self.block().describe(self.current),
            problem,
        )
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry, RepositoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.left == 0 {
            if self.position != self.plain.len() {
                return Some(Err(self.damaged("bytes behind the last record".to_owned())));
            }
            self.current = self.blocks.next()?;
            self.plain.clear();
            self.position = 0;
            match self.reader.read_block(self.current, &mut self.decompressor) {
                Ok(plain) => {
                    self.left = self.block().records;
                    self.plain = plain;
                }
                Err(error) => {
                    if !error.is_damage() {
                        self.blocks = 0..0;
                    }
                    return Some(Err(error));
                }
            }
        }
        match record::decode(
            &self.plain[self.position..],
            self.reader.footer.sources.len(),
        ) {
            Ok((entry, length)) => {
                self.position += length;
                self.left -= 1;
                self.held_bytes += match &entry {
                    Entry::File(record) => record::held_bytes_of_file(record),
                    Entry::Wal(record) => record::held_bytes_of_wal(record),
                };
                if self.held_bytes > HELD_BYTES_LIMIT {
                    self.blocks = 0..0;
                    let problem = "more directories, links and WAL files than any backup has";
                    return Some(Err(self.damaged(problem.to_owned())));
                }
                Some(Ok(entry))
            }
            Err(problem) => Some(Err(self.damaged(problem))),
        }
    }
}
