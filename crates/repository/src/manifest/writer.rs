//! Writing a manifest.

use super::footer::{BLOCK_BYTES_LIMIT, BLOCKS_LIMIT, Block, Footer, Section};
use super::record::{self, HELD_BYTES_LIMIT};
use super::{FileKind, FileRecord, ManifestInfo, Source, WalRecord};
use crate::backup_id::BackupId;
use crate::codec::{Compression, Compressor};
use crate::file_path::FilePath;
use crate::hash::Hash;
use crate::pack::PackInfo;
use crate::repository_error::RepositoryError;
use crate::store::{Key, Store, Upload};
use crate::trailer::{self, HEADER_BYTES, encode_end, encode_header};

/// A block is closed when it has this many plain bytes or records.
const BLOCK_BYTES: usize = 256 << 10;
const BLOCK_RECORDS: u32 = 2_000;

/// Writes a manifest, uploading while records arrive; memory holds one block and the block table.
pub struct ManifestWriter {
    upload: Box<dyn Upload>,
    object: String,
    compressor: Compressor,
    stored: Vec<u8>,
    offset: u64,
    footer: Footer,
    plain: Vec<u8>,
    section: Section,
    records: u32,
    /// The memory of a reader, see [`HELD_BYTES_LIMIT`].
    held_bytes: usize,
    /// The least and the greatest path of the block being filled.
    range: Option<(FilePath, FilePath)>,
}

impl ManifestWriter {
    /// Begins the manifest under `key`. Nothing is visible there before [`ManifestWriter::finish`].
    ///
    /// # Errors
    /// Those of the store.
    pub fn create(store: &dyn Store, key: &Key) -> Result<Self, RepositoryError> {
        let header = encode_header(trailer::MANIFEST, 0, rand::random());
        let mut upload = store.upload(key)?;
        upload.write(&header)?;
        Ok(Self {
            upload,
            object: key.to_string(),
            compressor: Compressor::new(Compression::default()),
            stored: Vec::new(),
            offset: HEADER_BYTES as u64,
            footer: Footer {
                header,
                blocks: Vec::new(),
                sources: vec![Source {
                    backup: None,
                    packs: Vec::new(),
                }],
                files: 0,
                entries: 0,
                size_bytes: 0,
                wal_objects: 0,
            },
            plain: Vec::new(),
            section: Section::Files,
            records: 0,
            held_bytes: 0,
            range: None,
        })
    }

    /// Names an earlier backup that runs point into; the number is for [`super::Run::source`].
    ///
    /// # Errors
    /// More than 65,535 backups.
    pub fn add_source(
        &mut self,
        backup: BackupId,
        packs: Vec<PackInfo>,
    ) -> Result<u16, RepositoryError> {
        let number = u16::try_from(self.footer.sources.len()).map_err(|_| {
            self.unwritable("it would point into more than 65,535 backups".to_owned())
        })?;
        self.footer.sources.push(Source {
            backup: Some(backup),
            packs,
        });
        Ok(number)
    }

    /// Adds a file, directory or link. Order: relation files, other files, `global/pg_control` last, each sorted by path.
    ///
    /// # Errors
    /// Those of the store; a record that the format cannot hold; a file after WAL.
    pub fn add_file(&mut self, record: &FileRecord) -> Result<(), RepositoryError> {
        if self.section != Section::Files {
            return Err(self.unwritable(format!("file \"{}\" comes after WAL", record.path)));
        }
        record::check_file(record, self.footer.sources.len())
            .map_err(|problem| self.unwritable(format!("\"{}\": {problem}", record.path)))?;
        self.hold(record::held_bytes_of_file(record))?;
        record::encode_file(record, &mut self.plain)
            .map_err(|error| self.unwritable(error.to_string()))?;
        self.footer.entries += 1;
        if let FileKind::File { size, .. } = record.kind {
            self.footer.files += 1;
            self.footer.size_bytes += size;
        }
        self.added(&record.path)
    }

    /// Adds a WAL object; after the last file.
    ///
    /// # Errors
    /// Those of the store.
    pub fn add_wal(&mut self, record: &WalRecord) -> Result<(), RepositoryError> {
        if self.section == Section::Files {
            self.close_block()?;
            self.section = Section::Wal;
        }
        record::check_wal_name(&record.name).map_err(|problem| self.unwritable(problem))?;
        self.hold(record::held_bytes_of_wal(record))?;
        record::encode_wal(record, &mut self.plain)
            .map_err(|error| self.unwritable(error.to_string()))?;
        self.footer.wal_objects += 1;
        self.added(&FilePath::in_data_directory(record.name.as_bytes()))
    }

    fn hold(&mut self, bytes: usize) -> Result<(), RepositoryError> {
        self.held_bytes += bytes;
        if self.held_bytes > HELD_BYTES_LIMIT {
            return Err(self.unwritable(
                "there are more directories, links and WAL files than a reader holds".to_owned(),
            ));
        }
        Ok(())
    }

    fn added(&mut self, path: &FilePath) -> Result<(), RepositoryError> {
        self.records += 1;
        match &mut self.range {
            None => self.range = Some((path.clone(), path.clone())),
            Some((_, last)) if path > last => last.clone_from(path),
            Some((first, _)) if path < first => first.clone_from(path),
            Some(_) => {}
        }
        if self.plain.len() >= BLOCK_BYTES || self.records >= BLOCK_RECORDS {
            self.close_block()?;
        }
        Ok(())
    }

    fn close_block(&mut self) -> Result<(), RepositoryError> {
        let Some((first, last)) = self.range.take() else {
            return Ok(());
        };
        if self.plain.len() > BLOCK_BYTES_LIMIT as usize {
            return Err(self.unwritable(format!("a block would have {} bytes", self.plain.len())));
        }
        if self.footer.blocks.len() == BLOCKS_LIMIT {
            return Err(self.unwritable(format!("it would have more than {BLOCKS_LIMIT} blocks")));
        }
        let compression = self.compressor.compress(&self.plain, &mut self.stored)?;
        self.upload.write(&self.stored)?;
        self.footer.blocks.push(Block {
            offset: self.offset,
            stored_length: self.stored.len() as u32,
            plain_length: self.plain.len() as u32,
            compression: compression as u8,
            sealing: 0,
            section: self.section,
            records: self.records,
            hash: Hash::of(&self.stored),
            first,
            last,
        });
        self.offset += self.stored.len() as u64;
        self.plain.clear();
        self.records = 0;
        Ok(())
    }

    fn unwritable(&self, problem: String) -> RepositoryError {
        RepositoryError::Unwritable {
            object: self.object.clone(),
            problem,
        }
    }

    /// Writes the footer with this backup's packs; the manifest is durable when this returns.
    ///
    /// # Errors
    /// Those of the store.
    pub fn finish(mut self, packs: &[PackInfo]) -> Result<ManifestInfo, RepositoryError> {
        self.close_block()?;
        self.footer.sources[0].packs = packs.to_vec();
        let footer = self
            .footer
            .encode()
            .map_err(|error| self.unwritable(error.to_string()))?;
        let (end, hash, size) = encode_end(
            trailer::MANIFEST,
            &self.object,
            &mut self.compressor,
            &footer,
            self.footer.blocks.len() as u32,
            self.offset,
        )?;
        self.upload.write(&end)?;
        let written = self.upload.finish()?;
        if written != size {
            return Err(RepositoryError::Unwritable {
                object: self.object,
                problem: format!("the store counted {written} bytes, not {size}"),
            });
        }
        Ok(self.footer.info(size, hash))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::manifest::ManifestReader;
    use crate::store::memory::MemoryStore;

    fn directory(number: usize) -> FileRecord {
        let path = format!("pg_replslot/{number:08}/{}", "x".repeat(8_000));
        FileRecord {
            path: FilePath::in_data_directory(path),
            kind: FileKind::Directory,
            mode: 0o700,
            owner: None,
            mtime: 0,
            damaged: Vec::new(),
        }
    }

    #[test]
    fn what_a_reader_holds_has_a_limit() {
        let store = Arc::new(MemoryStore::bucket());
        let key = Key::new("manifest").expect("a key");
        let mut manifest = ManifestWriter::create(&*store, &key).expect("begun");
        let refused = (0..10_000).find_map(|number| manifest.add_file(&directory(number)).err());
        let error = refused.expect("refused").to_string();
        assert!(
            error.contains("more directories, links and WAL files"),
            "{error}"
        );

        // A writer that does not care.
        let mut manifest = ManifestWriter::create(&*store, &key).expect("begun");
        for number in 0..10_000 {
            manifest.held_bytes = 0;
            manifest.add_file(&directory(number)).expect("added");
        }
        let info = manifest.finish(&[]).expect("finished");
        let reader = ManifestReader::open(store, key, info.size, info.hash).expect("opened");
        let entries: Vec<_> = reader.entries().collect();
        assert!(entries.len() < 9_000, "{}", entries.len());
        let error = entries
            .into_iter()
            .last()
            .expect("an error")
            .expect_err("an error");
        assert!(error.is_damage(), "{error}");
        assert!(error.to_string().contains("than any backup has"), "{error}");
    }
}
