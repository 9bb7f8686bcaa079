//! A new object on its way into the archive, and what is there in its place.

use std::io::{self, Read, Write};

use bytes::Bytes;
use leeward_pgformat::Lsn;

use super::Stored;
use super::read::read_object;
use crate::hash::{Hash, Hasher};
use crate::layout;
use crate::repository_error::RepositoryError;
use crate::store::{Key, Store, StoreError, Upload};
use crate::url::RepositoryUrl;
use crate::wal_object::{WalObjectInfo, read_wal_tail};

/// Up to so many stored bytes an object is made in memory and created in one conditional step.
const IN_MEMORY_BYTES: usize = 64 << 20;

/// An object being made.
pub(super) struct NewObject<'a> {
    store: &'a dyn Store,
    key: &'a Key,
    memory: &'a mut Vec<u8>,
    made: Made,
}

enum Made {
    Memory,
    Upload(Box<dyn Upload>),
    /// Too large for memory, and its name is taken: its bytes are wanted only for their hash.
    Taken,
}

impl<'a> NewObject<'a> {
    /// What `memory` holds is forgotten; whoever has it back may use it for the next one.
    pub(super) fn new(store: &'a dyn Store, key: &'a Key, memory: &'a mut Vec<u8>) -> Self {
        memory.clear();
        Self {
            store,
            key,
            memory,
            made: Made::Memory,
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), RepositoryError> {
        if matches!(self.made, Made::Memory) {
            if self.memory.len() + bytes.len() <= IN_MEMORY_BYTES {
                self.memory.extend_from_slice(bytes);
                return Ok(());
            }
            // No store can upload in parts on condition, so look before it, and after it once more.
            self.made = match self.store.size(self.key) {
                Ok(_) => Made::Taken,
                Err(error) if error.is_not_found() => {
                    let mut upload = self.store.upload(self.key)?;
                    upload.write(self.memory)?;
                    Made::Upload(upload)
                }
                Err(error) => return Err(error.into()),
            };
            // So much is not kept for the next one.
            *self.memory = Vec::new();
        }
        if let Made::Upload(upload) = &mut self.made {
            upload.write(bytes)?;
        }
        Ok(())
    }

    /// Makes the object durable under its name. Where the name is taken, says whether by the same WAL. `what` is the
    /// WAL's name for messages; `start` the LSN of its first byte, of WAL that has LSNs.
    pub(super) fn finish(
        self,
        info: WalObjectInfo,
        what: &str,
        start: Option<Lsn>,
    ) -> Result<Stored, RepositoryError> {
        let (store, key) = (self.store, self.key);
        still_there(store)?;
        let mut ours = None;
        let written = match self.made {
            Made::Memory => {
                let made = Bytes::from(std::mem::take(self.memory));
                ours = Some(made.clone());
                store.create(key, made).map(|()| true)
            }
            Made::Upload(upload) => upload.finish().map(|_| false),
            Made::Taken => {
                store.sync(key)?;
                Err(StoreError::AlreadyExists {
                    key: key.clone(),
                    location: store.location().clone(),
                })
            }
        };
        let certain = match written {
            Ok(certain) => certain,
            Err(StoreError::AlreadyExists { .. }) => {
                return compare(store, key, info, what, start, ours.as_ref()).map(Stored::Same);
            }
            Err(error) => return Err(error.into()),
        };
        if certain {
            // Ours again, unless the store still holds it.
            if let Some(Ok(mut made)) = ours.map(Bytes::try_into_mut) {
                made.clear();
                *self.memory = made.into();
            }
            return Ok(Stored::New(info));
        }
        compare(store, key, info, what, start, None).map(Stored::New)
    }
}

/// A directory that holds no repository any more is a file system that is not mounted: what is stored below its mount point
/// would be told to be durable, and be missing once it is mounted again. Buckets do not go away like that.
fn still_there(store: &dyn Store) -> Result<(), RepositoryError> {
    if !matches!(store.location(), RepositoryUrl::Local(_)) {
        return Ok(());
    }
    match store.size(&layout::repository()?) {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Err(RepositoryError::NoRepository {
            location: store.location().to_string(),
        }),
        Err(error) => Err(error.into()),
    }
}

/// Whether the object that has the name holds the same WAL; the error says how it differs, or why that cannot be told.
fn compare(
    store: &dyn Store,
    key: &Key,
    info: WalObjectInfo,
    what: &str,
    start: Option<Lsn>,
    ours: Option<&Bytes>,
) -> Result<WalObjectInfo, RepositoryError> {
    let stored_length = store.size(key)?;
    let theirs = read_wal_tail(store, key, stored_length)?;
    if theirs.plain_hash == info.plain_hash && theirs.plain_length == info.plain_length {
        return Ok(WalObjectInfo {
            stored_length,
            stored_hash: theirs.stored_hash,
            ..info
        });
    }
    let mut differs_at = None;
    if let (Some(start), Some(ours)) = (start, ours) {
        // Skippable frames are no obstacle to any decompressor.
        let mut ours = zstd::Decoder::new(&ours[..]).map_err(|source| RepositoryError::Io {
            action: format!("compare WAL \"{what}\" with object \"{key}\""),
            source,
        })?;
        let mut comparison = Comparison::new(&mut ours);
        // An object that is damaged is no other WAL: that is the error then.
        read_object(store, key, &mut comparison)?;
        differs_at = Some(start + comparison.differs_at().unwrap_or(comparison.compared()));
    }
    Err(RepositoryError::WalConflict {
        object: key.to_string(),
        other: format!("WAL \"{what}\""),
        differs_at,
        theirs: theirs.plain_hash,
        theirs_length: theirs.plain_length,
        ours: info.plain_hash,
        ours_length: info.plain_length,
    })
}

/// Takes one run of bytes by being written to, and compares it with another that it reads.
pub(super) struct Comparison<'a> {
    ours: &'a mut dyn Read,
    buffer: Vec<u8>,
    /// Bytes of both seen.
    compared: u64,
    differs_at: Option<u64>,
    ours_ended: bool,
    our_hash: Hasher,
    their_hash: Hasher,
}

impl<'a> Comparison<'a> {
    pub(super) fn new(ours: &'a mut dyn Read) -> Self {
        Self {
            ours,
            buffer: vec![0; 64 << 10],
            compared: 0,
            differs_at: None,
            ours_ended: false,
            our_hash: Hasher::new(),
            their_hash: Hasher::new(),
        }
    }

    /// The hashes of what was compared: ours, and theirs.
    pub(super) fn hashes(&self) -> (Hash, Hash) {
        (self.our_hash.finish(), self.their_hash.finish())
    }

    /// The place of the first byte that differs.
    pub(super) fn differs_at(&self) -> Option<u64> {
        self.differs_at
    }

    /// How many bytes were there on both sides.
    pub(super) fn compared(&self) -> u64 {
        self.compared
    }
}

impl Write for Comparison<'_> {
    fn write(&mut self, theirs: &[u8]) -> io::Result<usize> {
        let wanted = theirs.len().min(self.buffer.len());
        if self.ours_ended {
            return Ok(wanted);
        }
        let length = self.ours.read(&mut self.buffer[..wanted])?;
        if length == 0 {
            self.ours_ended = true;
            return Ok(wanted);
        }
        let ours = &self.buffer[..length];
        if self.differs_at.is_none()
            && let Some(place) = ours.iter().zip(theirs).position(|(a, b)| a != b)
        {
            self.differs_at = Some(self.compared + place as u64);
        }
        self.our_hash.update(ours);
        self.their_hash.update(&theirs[..length]);
        self.compared += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
