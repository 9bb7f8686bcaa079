//! The planner walks the data directory and cuts it into batches, in the order of design rule 4: relation segments, then
//! everything else. `global/pg_control` is not its business: it is read when all of this is stored.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use leeward_pgformat::classify::FileClass;
use leeward_pgformat::relation::RelationSegment;
use leeward_postgres::configuration_files::OutsideFiles;
use leeward_postgres::data_directory::{DataDirectory, Entry, EntryKind, Pass, Place};
use leeward_postgres::directory::Directory;
use leeward_repository::file_path::FilePath;
use leeward_repository::frame::FRAME_BYTES;
use leeward_repository::manifest::{Content, FileKind, FileRecord};

use super::source::{Batch, Piece, Source};
use crate::configuration;
use crate::error::Error;
use crate::event::{Event, Observer};
use crate::pipeline::{Ended, Pipeline, Receiver, Sender, StageResult};

/// As many pieces as one batch takes, so that a hundred thousand empty files do not become one message.
const MAX_PIECES: usize = 1024;

/// The right to have one more batch under way. All of them together bound the memory of a backup.
pub(super) struct Permits {
    free: Receiver<()>,
    in_hand: usize,
    count: usize,
}

impl Permits {
    /// `count` permits, and where the collector returns those that were used.
    pub(super) fn new(pipeline: &Pipeline<'_, '_>, count: usize) -> (Self, Sender<()>) {
        let (back, free) = pipeline.channel(count);
        (
            Self {
                free,
                in_hand: count,
                count,
            },
            back,
        )
    }

    /// Waits for a permit.
    fn take(&mut self) -> StageResult<()> {
        if self.in_hand == 0 {
            self.wait()?;
        }
        self.in_hand -= 1;
        Ok(())
    }

    /// Waits until every batch that was sent has been stored.
    fn drain(&mut self) -> StageResult<()> {
        while self.in_hand < self.count {
            self.wait()?;
        }
        Ok(())
    }

    fn wait(&mut self) -> StageResult<()> {
        self.free.recv()?.ok_or(Ended::Stopped)?;
        self.in_hand += 1;
        Ok(())
    }
}

/// Cuts a data directory into batches.
pub(super) struct Planner<'a> {
    pub directory: &'a DataDirectory,
    /// Configuration outside the data directory.
    pub outside: &'a OutsideFiles,
    /// The owner of the data directory; records name an owner only where it differs.
    pub owner: (u32, u32),
    pub batches: Sender<Batch>,
    pub permits: Permits,
    pub observe: Observer<'a>,
    pending: Vec<Piece>,
    pending_bytes: usize,
    sequence: u64,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        directory: &'a DataDirectory,
        outside: &'a OutsideFiles,
        owner: (u32, u32),
        batches: Sender<Batch>,
        permits: Permits,
        observe: Observer<'a>,
    ) -> Self {
        Self {
            directory,
            outside,
            owner,
            batches,
            permits,
            observe,
            pending: Vec::new(),
            pending_bytes: 0,
            sequence: 0,
        }
    }

    /// Sends every batch.
    pub(super) fn run(&mut self) -> StageResult<()> {
        for pass in [Pass::Relations, Pass::EverythingElse] {
            let mut ended = Ok(());
            let directory = self.directory;
            directory
                .walk(pass, &mut |entry| {
                    ended = self.entry(entry);
                    ended.is_ok()
                })
                .map_err(|e| Error::failed("could not read the data directory").because(e))?;
            ended?;
            if pass == Pass::EverythingElse {
                self.configuration()?;
            }
            self.flush()?;
            self.permits.drain()?;
        }
        Ok(())
    }

    fn configuration(&mut self) -> StageResult<()> {
        let mut folder: Option<(&Path, Arc<Directory>)> = None;
        for path in self.outside.folders.iter().chain(&self.outside.files) {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                continue;
            };
            // Opened once for all files in it, which follow one another.
            let directory = match folder.take() {
                Some((path, directory)) if path == parent => directory,
                _ => match std::fs::canonicalize(parent).and_then(|path| Directory::open(&path)) {
                    Ok(directory) => Arc::new(directory),
                    Err(_) => continue,
                },
            };
            folder = Some((parent, Arc::clone(&directory)));
            let Ok(facts) = directory.look_behind(name) else {
                continue;
            };
            let (kind, size) = if facts.is_directory() {
                (FileKind::Directory, 0)
            } else if facts.is_file() {
                let (size, content) = (facts.size_bytes, Content::Runs(Vec::new()));
                (FileKind::File { size, content }, size)
            } else {
                continue;
            };
            let record = FileRecord {
                path: FilePath::configuration(path.as_os_str().as_bytes()),
                kind,
                mode: facts.mode,
                owner: self.other_owner(facts.owner),
                mtime: facts.modified_s,
                damaged: Vec::new(),
            };
            self.add(record, Place::outside(directory, path), None, size)?;
        }
        Ok(())
    }

    fn other_owner(&self, owner: (u32, u32)) -> Option<(u32, u32)> {
        (owner != self.owner).then_some(owner)
    }

    /// What an earlier restore put into the data directory, where the server's configuration lies outside it again: the
    /// file outside is the one in use, and takes its place in the backup.
    fn is_stale_configuration(&self, path: &Path) -> bool {
        path.strip_prefix(configuration::FOLDER).is_ok_and(|rest| {
            let original = Path::new("/").join(rest);
            self.outside
                .files
                .iter()
                .chain(&self.outside.folders)
                .any(|outside| *outside == original)
        })
    }

    /// A linked directory that is none of PostgreSQL's own stays a link; what it leads to is not in the backup.
    fn tell_link(&self, path: &Path, target: &Path) {
        if !path.starts_with("pg_tblspc") {
            (self.observe)(Event::Notice(format!(
                "\"{}\" is a link to \"{}\" and is stored as a link; what it leads to is not part of the backup.",
                path.display(),
                target.display()
            )));
        }
    }

    fn entry(&mut self, entry: Entry) -> StageResult<()> {
        if self.is_stale_configuration(&entry.path) {
            return Ok(());
        }
        let (kind, size) = match entry.kind {
            EntryKind::File { size_bytes } => (
                FileKind::File {
                    size: size_bytes,
                    content: Content::Runs(Vec::new()),
                },
                size_bytes,
            ),
            EntryKind::Directory => (FileKind::Directory, 0),
            EntryKind::Symlink { target } => {
                self.tell_link(&entry.path, &target);
                (
                    FileKind::Symlink {
                        target: target.into_os_string().into_encoded_bytes(),
                    },
                    0,
                )
            }
        };
        let segment = match entry.class {
            FileClass::Relation(segment) => Some(segment),
            _ => None,
        };
        let record = FileRecord {
            path: FilePath::in_data_directory(entry.path.as_os_str().as_bytes()),
            kind,
            mode: entry.mode,
            owner: self.other_owner(entry.owner),
            mtime: entry.modified_s,
            damaged: Vec::new(),
        };
        self.add(record, entry.place, segment, size)
    }

    /// Cuts one source into pieces. A file larger than a frame starts at a frame of its own and fills whole frames; small
    /// files share one.
    fn add(
        &mut self,
        record: FileRecord,
        place: Place,
        segment: Option<RelationSegment>,
        size: u64,
    ) -> StageResult<()> {
        let small = size <= FRAME_BYTES as u64;
        let source = Arc::new(Source::new(record, place, segment, !small));
        if !small
            || self.pending_bytes + size as usize > FRAME_BYTES
            || self.pending.len() == MAX_PIECES
        {
            self.flush()?;
        }
        let mut offset = 0;
        loop {
            let length = (size - offset).min(FRAME_BYTES as u64) as usize;
            let end = offset + length as u64;
            self.pending.push(Piece {
                source: Arc::clone(&source),
                offset,
                length,
                last: end == size,
            });
            self.pending_bytes += length;
            if self.pending_bytes == FRAME_BYTES {
                self.flush()?;
            }
            offset = end;
            if offset == size {
                return Ok(());
            }
        }
    }

    /// Sends what has gathered.
    fn flush(&mut self) -> StageResult<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.permits.take()?;
        let pieces = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        let sequence = self.sequence;
        self.sequence += 1;
        self.batches.send(Batch { sequence, pieces })
    }
}
