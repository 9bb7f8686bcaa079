//! The collector puts frames into packs and files into the manifest, in the order in which they were planned, whatever
//! order the copiers finish in. A full pack is made durable by a thread of its own while the next one fills.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use leeward_repository::backup_id::BackupId;
use leeward_repository::file_path::{FilePath, Root};
use leeward_repository::frame::EncodedFrame;
use leeward_repository::layout;
use leeward_repository::manifest::{Content, FileKind, FileRecord, ManifestWriter, Run};
use leeward_repository::pack::{FrameLocation, PackInfo, PackWriter};
use leeward_repository::store::Store;
use leeward_repository::summary::TablespaceSummary;

use super::required::Stored;
use super::source::{Copied, CopiedPiece, Damage, Source};
use crate::error::Result;
use crate::event::{Event, Observer};
use crate::pipeline::{Receiver, Sender, StageResult};
use crate::repository;

/// One damaged relation segment, as it is reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedFile {
    /// Path relative to the data directory.
    pub path: String,
    /// How many of its pages are damaged.
    pub pages: u64,
    /// The damaged blocks, relation-wide, with what is wrong with each; empty once a whole backup has named
    /// [`LISTED_BLOCKS`]. The manifest has them all.
    pub blocks: Damage,
    /// The whole file is missing.
    pub missing: bool,
}

impl DamagedFile {
    /// A file that the server should have and has not.
    pub(super) fn missing(path: &Path) -> Self {
        Self {
            path: path.display().to_string(),
            pages: 0,
            blocks: Damage::new(),
            missing: true,
        }
    }
}

/// As many damaged blocks are named in `backup.json` and on the screen at most: a disk that lies throughout must not
/// take the memory of the host.
pub const LISTED_BLOCKS: u64 = 100_000;

/// What the collector has to show at the end.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub packs: Vec<PackInfo>,
    pub files: u64,
    pub size_bytes: u64,
    pub stored_bytes: u64,
    pub pages_checked: u64,
    pub damaged: Vec<DamagedFile>,
    /// Blocks named in `damaged` so far.
    listed_blocks: u64,
    /// Tablespaces as the walk met them.
    pub tablespaces: Vec<TablespaceSummary>,
}

/// Where packs go.
pub(super) struct Packs<'a> {
    pub store: &'a dyn Store,
    pub cluster: &'a str,
    pub backup: &'a BackupId,
}

pub(super) struct Collector<'a, 'b> {
    pub packs: Packs<'a>,
    pub manifest: &'a mut ManifestWriter,
    pub stored: &'a mut Stored<'b>,
    pub observe: Observer<'a>,
    /// Full packs go here to be finished.
    pub full: Sender<PackWriter>,
    pub permits: Sender<()>,
}

/// A file of which more pieces are to come.
struct Open {
    source: Arc<Source>,
    record: FileRecord,
    runs: Vec<Run>,
    end: u64,
    damage: Damage,
    vanished: bool,
}

/// Finishes packs as they come and returns what is known of them.
pub(super) fn finish_packs(full: &Receiver<PackWriter>) -> StageResult<Vec<PackInfo>> {
    let mut packs = Vec::new();
    while let Some(pack) = full.recv()? {
        packs.push(
            pack.finish()
                .map_err(|e| repository::doing("could not store a pack", e))?,
        );
    }
    Ok(packs)
}

impl Collector<'_, '_> {
    /// Takes results until there are no more.
    pub(super) fn run(&mut self, results: &Receiver<Copied>) -> StageResult<Collected> {
        let mut waiting = BTreeMap::new();
        let mut next = 0;
        let mut pack: Option<PackWriter> = None;
        let mut packs_begun = 0;
        let mut open: Option<Open> = None;
        let mut collected = Collected::default();
        while let Some(copied) = results.recv()? {
            waiting.insert(copied.sequence, copied);
            while let Some(copied) = waiting.remove(&next) {
                next += 1;
                self.take(
                    copied,
                    &mut pack,
                    &mut packs_begun,
                    &mut open,
                    &mut collected,
                )?;
                // Nobody to return it to means that the planner is done.
                let _ = self.permits.send(());
            }
        }
        if let Some(pack) = pack {
            self.full.send(pack)?;
        }
        Ok(collected)
    }

    fn take(
        &mut self,
        copied: Copied,
        pack: &mut Option<PackWriter>,
        packs_begun: &mut u32,
        open: &mut Option<Open>,
        collected: &mut Collected,
    ) -> StageResult<()> {
        collected.pages_checked += copied.pages_checked;
        let mut bytes = 0;
        let location = match copied.frame {
            None => None,
            Some(frame) => {
                bytes = u64::from(frame.plain_length);
                collected.stored_bytes += frame.stored.len() as u64;
                Some(self.store(frame, &copied.pieces, pack, packs_begun)?)
            }
        };
        for piece in copied.pieces {
            if open.is_none() {
                (self.observe)(Event::At(&piece.source.record.path.to_string()));
            }
            let last = piece.last;
            let file = open.get_or_insert_with(|| Open::new(&piece.source));
            file.add(piece, location);
            if last && let Some(file) = open.take() {
                self.close(file, collected)?;
            }
        }
        (self.observe)(Event::Advanced(bytes));
        Ok(())
    }

    fn store(
        &mut self,
        frame: EncodedFrame,
        pieces: &[CopiedPiece],
        pack: &mut Option<PackWriter>,
        packs_begun: &mut u32,
    ) -> StageResult<FrameLocation> {
        let mut writer = match pack.take() {
            Some(writer) => writer,
            None => {
                let number = *packs_begun;
                *packs_begun += 1;
                let key = layout::pack(self.packs.cluster, self.packs.backup, number)?;
                PackWriter::create(self.packs.store, &key, number)
                    .map_err(|e| repository::doing("could not begin a pack", e))?
            }
        };
        let pieces: Vec<(&FilePath, u64, u32)> = pieces
            .iter()
            .filter(|p| p.length > 0)
            .map(|p| (&p.source.record.path, p.offset, p.length))
            .collect();
        let location = writer
            .append(frame, &pieces)
            .map_err(|e| repository::doing("could not store a frame", e))?;
        if writer.is_full() {
            self.full.send(writer)?;
        } else {
            *pack = Some(writer);
        }
        Ok(location)
    }

    fn close(&mut self, file: Open, collected: &mut Collected) -> Result<()> {
        if file.vanished {
            return Ok(());
        }
        let mut record = file.record;
        if let FileKind::File { size, content } = &mut record.kind {
            *size = file.end;
            *content = Content::Runs(file.runs);
            collected.files += 1;
            collected.size_bytes += file.end;
        }
        collected.tablespaces.extend(tablespace(&record));
        self.stored.add(&record);
        if !file.damage.is_empty() {
            record.damaged = file.damage.iter().map(|(block, _)| block.0).collect();
            let pages = file.damage.len() as u64;
            let blocks = if collected.listed_blocks + pages <= LISTED_BLOCKS {
                collected.listed_blocks += pages;
                file.damage
            } else {
                Damage::new()
            };
            collected.damaged.push(DamagedFile {
                path: record.path.to_string(),
                pages,
                blocks,
                missing: false,
            });
        }
        self.manifest
            .add_file(&record)
            .map_err(|e| repository::doing("could not write the manifest", e))
    }
}

/// The tablespace that a record below `pg_tblspc` stands for.
fn tablespace(record: &FileRecord) -> Option<TablespaceSummary> {
    let name = record
        .path
        .path
        .strip_prefix(b"pg_tblspc/")
        .filter(|_| record.path.root == Root::DataDirectory)?;
    let oid = std::str::from_utf8(name).ok()?.parse().ok()?;
    let (path, in_place) = match &record.kind {
        FileKind::Symlink { target } => (String::from_utf8_lossy(target).into_owned(), false),
        FileKind::Directory => (record.path.to_string(), true),
        FileKind::File { .. } => return None,
    };
    Some(TablespaceSummary {
        oid,
        path,
        in_place,
    })
}

impl Open {
    fn new(source: &Arc<Source>) -> Self {
        Self {
            source: Arc::clone(source),
            record: source.record.clone(),
            runs: Vec::new(),
            end: 0,
            damage: Vec::new(),
            vanished: false,
        }
    }

    fn add(&mut self, piece: CopiedPiece, location: Option<FrameLocation>) {
        debug_assert!(
            Arc::ptr_eq(&self.source, &piece.source),
            "pieces of one file come one after another"
        );
        self.vanished |= piece.vanished;
        self.damage.extend(piece.damage);
        if let Some(location) = location.filter(|_| piece.length > 0) {
            self.runs.push(Run {
                source: 0,
                pack: location.pack,
                frame: location.frame,
                frame_offset: piece.frame_offset,
                file_offset: piece.offset,
                length: piece.length,
            });
            self.end = piece.offset + u64::from(piece.length);
        }
    }
}
