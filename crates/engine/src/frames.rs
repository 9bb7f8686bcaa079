//! Reading frames back: packs with their index, ranges of them, and proof of every frame before its bytes are used.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use leeward_pgformat::PAGE_SIZE;
use leeward_pgformat::relation::RelationSegment;
use leeward_repository::frame::{FrameDamage, FrameDecoder, FrameEntry};
use leeward_repository::layout;
use leeward_repository::manifest::Source;
use leeward_repository::pack::{PackIndex, PackInfo};
use leeward_repository::store::{Key, Store};

use crate::error::{Error, ErrorKind, Result};
use crate::repository::missing;

/// A pack that is being read.
#[derive(Debug)]
pub(crate) struct Pack {
    key: Key,
    index: PackIndex,
}

impl Pack {
    /// The entry of frame `number`.
    pub(crate) fn frame(&self, number: u32) -> Result<&FrameEntry> {
        self.index.frames.get(number as usize).ok_or_else(|| {
            Error::new(
                ErrorKind::Damaged,
                format!(
                    "object \"{}\" has no frame {number}, but the manifest names it",
                    self.key
                ),
            )
        })
    }

    /// The first byte behind frame `number`.
    pub(crate) fn frame_end(&self, number: u32) -> Result<u64> {
        self.frame(number)
            .map(|frame| frame.offset + u64::from(frame.stored_length))
    }

    /// Bytes of the pack.
    pub(crate) fn fetch(&self, store: &dyn Store, range: Range<u64>) -> Result<Bytes> {
        store
            .get_range(&self.key, range)
            .map_err(|e| stored(format!("could not read object \"{}\"", self.key), e))
    }

    /// The stretch of a decoded frame that the manifest speaks of.
    pub(crate) fn piece<'a>(
        &self,
        number: u32,
        plain: &'a [u8],
        from: usize,
        length: usize,
    ) -> Result<&'a [u8]> {
        plain.get(from..from + length).ok_or_else(|| {
            Error::new(
                ErrorKind::Damaged,
                format!(
                    "frame {number} of object \"{}\" is shorter than the manifest says",
                    self.key
                ),
            )
        })
    }

    /// What frame `number` holds, in words: relations with their blocks, other files by name.
    fn contents(&self, number: u32) -> String {
        let Ok(frame) = self.frame(number) else {
            return String::new();
        };
        const NAMED: usize = 4;
        let mut words: Vec<String> = frame
            .pieces
            .iter()
            .take(NAMED)
            .map(|piece| {
                let Some(file) = self.index.files.get(piece.file as usize) else {
                    return "an unnamed file".to_owned();
                };
                match std::str::from_utf8(&file.path)
                    .ok()
                    .and_then(RelationSegment::parse)
                {
                    Some(segment) => {
                        let first = u64::from(segment.segment)
                            * u64::from(leeward_pgformat::RELATION_SEGMENT_BLOCKS)
                            + piece.offset / PAGE_SIZE as u64;
                        let blocks = (u64::from(piece.length) / PAGE_SIZE as u64).max(1);
                        format!(
                            "blocks {first} to {} of relation \"{}\"",
                            first + blocks - 1,
                            file
                        )
                    }
                    None => format!("file \"{file}\""),
                }
            })
            .collect();
        if frame.pieces.len() > NAMED {
            words.push(format!("{} more files", frame.pieces.len() - NAMED));
        }
        words.join(", ")
    }
}

/// Decodes a frame, proving its stored and its plain bytes.
pub(crate) fn decode(
    pack: &Pack,
    number: u32,
    stored: &[u8],
    decoder: &mut FrameDecoder,
) -> Result<Vec<u8>> {
    let entry = pack.frame(number)?;
    let decoded = decoder.decode(entry, &pack.index.files, stored);
    decoded.map_err(|damage| match damage {
        FrameDamage::Unknown { .. } => pack.index.frame_error(&pack.key, number, damage).into(),
        damage => Error::new(
            ErrorKind::Damaged,
            format!("frame {number} of object \"{}\" is damaged", pack.key),
        )
        .because(damage)
        .hint(format!(
            "It holds {}. Restore another backup, or this one from another copy of the repository.",
            pack.contents(number)
        )),
    })
}

/// Packs by number, with the few that were used last kept open.
pub(crate) struct Packs<'a> {
    store: &'a dyn Store,
    cluster: &'a str,
    backup: &'a leeward_repository::backup_id::BackupId,
    sources: &'a [Source],
    open: HashMap<(u16, u32), Arc<Pack>>,
    /// The memory of their indexes.
    open_bytes: usize,
}

/// An incremental backup goes back and forth between packs; more than a few at a time do not pay.
const OPEN_PACKS: usize = 16;
/// Nor may their indexes take more memory, where packs hold very many small files.
const OPEN_PACKS_BYTES: usize = 64 << 20;

impl<'a> Packs<'a> {
    pub(crate) fn new(
        store: &'a dyn Store,
        cluster: &'a str,
        backup: &'a leeward_repository::backup_id::BackupId,
        sources: &'a [Source],
    ) -> Self {
        Self {
            store,
            cluster,
            backup,
            sources,
            open: HashMap::new(),
            open_bytes: 0,
        }
    }

    /// The pack that a run of the manifest names, its index read and proven.
    pub(crate) fn get(&mut self, source: u16, number: u32) -> Result<Arc<Pack>> {
        if let Some(pack) = self.open.get(&(source, number)) {
            return Ok(Arc::clone(pack));
        }
        let unnamed = || {
            Error::new(
                ErrorKind::Damaged,
                format!(
                    "the manifest names pack {number} of source {source}, which it does not list"
                ),
            )
        };
        let from = self.sources.get(usize::from(source)).ok_or_else(unnamed)?;
        let info: &PackInfo = from
            .packs
            .iter()
            .find(|info| info.number == number)
            .ok_or_else(unnamed)?;
        let key = layout::pack(
            self.cluster,
            from.backup.as_ref().unwrap_or(self.backup),
            number,
        )?;
        let index = PackIndex::read(self.store, &key, Some(info))?;
        self.open_bytes += index.memory_bytes();
        if self.open.len() >= OPEN_PACKS || self.open_bytes > OPEN_PACKS_BYTES {
            self.open.clear();
            self.open_bytes = index.memory_bytes();
        }
        let pack = Arc::new(Pack { key, index });
        self.open.insert((source, number), Arc::clone(&pack));
        Ok(pack)
    }
}

/// A failure of the store, with its advice.
pub(crate) fn stored(message: String, error: leeward_repository::store::StoreError) -> Error {
    if error.is_not_found() {
        return missing(&error);
    }
    let hint = error.hint();
    let error = Error::failed(message).because(error);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
