//! The planner of a restore reads the manifest as a stream, makes directories and links, and hands out frames in the order
//! in which they lie in their packs.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use leeward_postgres::data_directory::path_from_bytes;
use leeward_repository::manifest::{
    Content, Entry, FileKind, FileRecord, ManifestReader, Run, WalRecord,
};

use super::apply::{FrameUse, Job, Placement, TargetFile};
use super::finish::check_wal_name;
use super::tree::Tree;
use crate::admission::{Admission, Several, admit};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};
use crate::frames::{Pack, Packs};
use crate::pipeline::{Sender, StageResult};

/// Stored bytes that one worker fetches at a time: enough to make a store's answer worth its delay.
const JOB_BYTES: u64 = 4 << 20;

/// More links of its own no data directory has; they are kept until the end.
const LINKS_LIMIT: usize = 100_000;

/// Checks every name in the manifest, so that one with impossible names is refused before anything is written.
///
/// # Errors
/// [`ErrorKind::Damaged`] naming the first.
pub(super) fn check_names(manifest: &ManifestReader, major: u32) -> Result<()> {
    for entry in manifest.entries() {
        match entry? {
            Entry::File(record) => drop(admit(&record, major)?),
            Entry::Wal(record) => check_wal_name(&record)?,
        }
    }
    Ok(())
}

/// What is not written by the workers, because something is still to be done with it.
#[derive(Debug, Default)]
pub(super) struct SetAside {
    pub backup_label: Option<Vec<u8>>,
    pub tablespace_map: Option<Vec<u8>>,
    pub wal: Vec<WalRecord>,
    /// Symbolic links but those of tablespaces, with where they lead: made when everything else is there.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Directories whose mode is set when everything in them is written.
    pub directories: Vec<(PathBuf, u32)>,
    /// Files that belonged to another user.
    pub others: Several,
    /// The entries that are not restored.
    pub left_out: Several,
}

impl SetAside {
    /// The links in words; `None` when there are none.
    pub(super) fn links_in_words(&self) -> Option<String> {
        let mut links = Several::default();
        for (place, target) in &self.links {
            links.add(format!(
                "\"{}\" to \"{}\"",
                place.display(),
                target.display()
            ));
        }
        links.describe()
    }
}

pub(super) struct Planner<'a> {
    pub tree: &'a Tree,
    /// The backup's major version of PostgreSQL.
    pub major: u32,
    pub packs: Packs<'a>,
    pub jobs: Sender<Job>,
    pub observe: Observer<'a>,
    job: Option<Job>,
    aside: SetAside,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        major: u32,
        packs: Packs<'a>,
        jobs: Sender<Job>,
        observe: Observer<'a>,
    ) -> Self {
        Self {
            tree,
            major,
            packs,
            jobs,
            observe,
            job: None,
            aside: SetAside::default(),
        }
    }

    /// Goes through the manifest.
    pub(super) fn run(&mut self, manifest: &ManifestReader) -> StageResult<SetAside> {
        for entry in manifest.entries() {
            match entry? {
                Entry::Wal(record) => self.aside.wal.push(record),
                Entry::File(record) => self.file(record)?,
            }
        }
        self.send()?;
        Ok(std::mem::take(&mut self.aside))
    }

    fn file(&mut self, record: FileRecord) -> StageResult<()> {
        let place = match admit(&record, self.major)? {
            Admission::Place(place) => place,
            Admission::LeftOut(path, reason) => {
                let left_out = format!("\"{}\" ({reason})", path.display());
                self.aside.left_out.add(left_out);
                return Ok(());
            }
        };
        let is_others = record.owner.is_some();
        match record.kind {
            FileKind::Directory => {
                self.directory(&place)?;
                // The server's user has all rights, and nobody has more than permission bits.
                let mode = record.mode & if is_others { 0o700 } else { 0o777 } | 0o700;
                if mode != 0o700 {
                    self.aside.directories.push((place, mode));
                }
            }
            FileKind::Symlink { target } => self.link(place, path_from_bytes(&target))?,
            FileKind::File {
                content: Content::Inline(bytes),
                ..
            } => match place.as_os_str().as_bytes() {
                // Already there under the name that marks an unfinished restore.
                b"global/pg_control" => {}
                b"backup_label" => self.aside.backup_label = Some(bytes),
                b"tablespace_map" => self.aside.tablespace_map = Some(bytes),
                _ => {
                    let mode = self.mode(&place, record.mode, is_others);
                    let writer = self.tree.writer()?;
                    writer.make_directory(place.parent().unwrap_or(Path::new("")))?;
                    writer.write(&place, &bytes, mode)?;
                }
            },
            FileKind::File {
                size,
                content: Content::Runs(runs),
            } => {
                let mode = self.mode(&place, record.mode, is_others);
                self.directory(place.parent().unwrap_or(Path::new("")))?;
                if runs.len() > 1 {
                    (self.observe)(Event::At(&place.to_string_lossy()));
                }
                let file = Arc::new(TargetFile::new(place, size, mode, runs.len()));
                if runs.is_empty() {
                    file.create(&self.tree.writer()?)?;
                }
                for run in runs {
                    self.place(&file, run)?;
                }
            }
        }
        Ok(())
    }

    /// The mode that a file gets: permission bits only. A file that was another user's is now the server's user's alone:
    /// the server refuses a key of its own that others may read (`check_ssl_key_file_permissions` in
    /// src/backend/libpq/be-secure-common.c), and takes one of root's.
    fn mode(&mut self, place: &Path, stored: u32, is_others: bool) -> u32 {
        if is_others {
            self.aside.others.add(format!("\"{}\"", place.display()));
            return 0o600;
        }
        stored & 0o777
    }

    fn link(&mut self, place: PathBuf, target: PathBuf) -> Result<()> {
        if place.parent() == Some(Path::new("pg_tblspc")) {
            // A tablespace's, which leads to its new place.
            return Ok(());
        }
        if self.aside.links.len() == LINKS_LIMIT {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("the manifest has more than {LINKS_LIMIT} links"),
            ));
        }
        self.aside.links.push((place, target));
        Ok(())
    }

    fn directory(&mut self, place: &Path) -> Result<()> {
        if self.tree.has_directory(place) {
            return Ok(());
        }
        self.tree.writer()?.make_directory(place)
    }

    /// Adds one run to the job that is being put together.
    fn place(&mut self, file: &Arc<TargetFile>, run: Run) -> StageResult<()> {
        let pack = self.packs.get(run.source, run.pack)?;
        if self
            .job
            .as_ref()
            .is_some_and(|job| !continues(job, &pack, run.frame))
        {
            self.send()?;
        }
        pack.frame(run.frame)?;
        let job = self.job.get_or_insert_with(|| Job {
            pack,
            frames: Vec::new(),
        });
        if job.frames.last().is_none_or(|last| last.frame != run.frame) {
            job.frames.push(FrameUse {
                frame: run.frame,
                placements: Vec::new(),
            });
        }
        if let Some(frame) = job.frames.last_mut() {
            frame.placements.push(Placement {
                file: Arc::clone(file),
                file_offset: run.file_offset,
                frame_offset: run.frame_offset,
                length: run.length,
            });
        }
        Ok(())
    }

    fn send(&mut self) -> StageResult<()> {
        match self.job.take() {
            Some(job) => self.jobs.send(job),
            None => Ok(()),
        }
    }
}

/// Whether `frame` of `pack` can be fetched together with what `job` has.
fn continues(job: &Job, pack: &Arc<Pack>, frame: u32) -> bool {
    let (Some(first), Some(last)) = (job.frames.first(), job.frames.last()) else {
        return true;
    };
    if !Arc::ptr_eq(&job.pack, pack) {
        return false;
    }
    if last.frame == frame {
        return true;
    }
    let within =
        || Some(pack.frame_end(frame).ok()? - pack.frame(first.frame).ok()?.offset <= JOB_BYTES);
    last.frame + 1 == frame && within() == Some(true)
}
