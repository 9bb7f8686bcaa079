//! The planner of a restore reads the manifest as a stream, makes directories and links, and hands out frames in the order
//! in which they lie in their packs.

use std::collections::HashSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam_channel::Sender;
use leeward_postgres::data_directory::path_from_bytes;
use leeward_repository::file_path::Root;
use leeward_repository::manifest::{
    Content, Entry, FileKind, FileRecord, ManifestReader, Run, WalRecord,
};

use super::apply::{FrameUse, Job, Placement, TargetFile};
use super::target::{Target, could_not, make_directory};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};
use crate::frames::{Pack, Packs};

/// Stored bytes that one worker fetches at a time: enough to make a store's answer worth its delay.
const JOB_BYTES: u64 = 4 << 20;

/// What is not written by the workers, because something is still to be done with it.
#[derive(Debug, Default)]
pub(super) struct SetAside {
    pub backup_label: Option<Vec<u8>>,
    pub tablespace_map: Option<Vec<u8>>,
    pub wal: Vec<WalRecord>,
    /// Directories whose mode is set when everything in them is written.
    directories: Vec<(PathBuf, u32)>,
    /// What belonged to somebody other than the data directory's owner.
    owners: Vec<(PathBuf, (u32, u32))>,
}

pub(super) struct Planner<'a> {
    pub target: &'a Target,
    pub packs: Packs<'a>,
    pub jobs: Sender<Job>,
    pub observe: Observer<'a>,
    made: HashSet<PathBuf>,
    job: Option<Job>,
    aside: SetAside,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        target: &'a Target,
        packs: Packs<'a>,
        jobs: Sender<Job>,
        observe: Observer<'a>,
    ) -> Self {
        Self {
            target,
            packs,
            jobs,
            observe,
            made: HashSet::new(),
            job: None,
            aside: SetAside::default(),
        }
    }

    /// Goes through the manifest; ends early, without an error of its own, when the workers have stopped.
    pub(super) fn run(mut self, manifest: &ManifestReader) -> Result<SetAside> {
        for entry in manifest.entries() {
            match entry? {
                Entry::Wal(record) => self.aside.wal.push(record),
                Entry::File(record) => {
                    if self.file(record)?.is_none() {
                        return Ok(self.aside);
                    }
                }
            }
        }
        // Nobody listening means that a worker has failed, and says why.
        let _ = self.send();
        Ok(self.aside)
    }

    fn file(&mut self, record: FileRecord) -> Result<Option<()>> {
        if !record.path.is_safe() {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!(
                    "the manifest names a file outside the data directory: \"{}\"",
                    record.path
                ),
            ));
        }
        let relative = match record.path.root {
            Root::DataDirectory => path_from_bytes(&record.path.path),
            Root::Configuration => {
                Path::new(crate::configuration::FOLDER).join(path_from_bytes(&record.path.path))
            }
        };
        let place = self.target.place(&relative);
        if let Some(owner) = record.owner {
            self.aside.owners.push((place.clone(), owner));
        }
        match record.kind {
            FileKind::Directory => {
                self.directory(&place)?;
                self.aside.directories.push((place, record.mode));
            }
            FileKind::Symlink { target } => {
                self.link(&relative, &place, &path_from_bytes(&target))?
            }
            FileKind::File {
                content: Content::Inline(bytes),
                ..
            } => match relative.as_os_str().as_bytes() {
                // Already there under the name that marks an unfinished restore.
                b"global/pg_control" => {}
                b"backup_label" => self.aside.backup_label = Some(bytes),
                b"tablespace_map" => self.aside.tablespace_map = Some(bytes),
                _ => {
                    self.parent(&place)?;
                    super::target::write_durably(&place, &bytes)?;
                }
            },
            FileKind::File {
                size,
                content: Content::Runs(runs),
            } => {
                self.parent(&place)?;
                let file = Arc::new(TargetFile::new(place, size, record.mode, runs.len()));
                if runs.is_empty() {
                    file.create()?;
                }
                if runs.len() > 1 {
                    (self.observe)(Event::At(&relative.to_string_lossy()));
                }
                for run in runs {
                    if self.place(&file, run)?.is_none() {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(Some(()))
    }

    fn link(&mut self, relative: &Path, place: &Path, target: &Path) -> Result<()> {
        if relative.parent() == Some(Path::new("pg_tblspc")) {
            // Made with the target, where it leads to the tablespace's new place.
            return Ok(());
        }
        self.parent(place)?;
        std::os::unix::fs::symlink(target, place).map_err(|e| could_not("link", place, e))
    }

    fn parent(&mut self, place: &Path) -> Result<()> {
        match place.parent() {
            Some(parent) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn directory(&mut self, place: &Path) -> Result<()> {
        if !self.made.contains(place) {
            make_directory(place)?;
            self.made.insert(place.to_owned());
        }
        Ok(())
    }

    /// Adds one run to the job that is being put together; `None` when nobody listens any more.
    fn place(&mut self, file: &Arc<TargetFile>, run: Run) -> Result<Option<()>> {
        let pack = self.packs.get(run.source, run.pack)?;
        if self
            .job
            .as_ref()
            .is_some_and(|job| !continues(job, &pack, run.frame))
            && self.send().is_none()
        {
            return Ok(None);
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
        Ok(Some(()))
    }

    fn send(&mut self) -> Option<()> {
        match self.job.take() {
            Some(job) => self.jobs.send(job).ok(),
            None => Some(()),
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

impl SetAside {
    /// Gives back what belonged to others; only root can.
    pub(super) fn set_other_owners(&self) -> Result<()> {
        self.owners.iter().try_for_each(|(path, (user, group))| {
            std::os::unix::fs::lchown(path, Some(*user), Some(*group))
                .map_err(|e| could_not("change the owner of", path, e))
        })
    }

    /// Gives every directory the mode it had. A directory made by us has 0700.
    pub(super) fn set_directory_modes(&self) -> Result<()> {
        for (path, mode) in self.directories.iter().filter(|(_, mode)| *mode != 0o700) {
            fs::set_permissions(path, fs::Permissions::from_mode(*mode))
                .map_err(|e| could_not("set the mode of", path, e))?;
        }
        Ok(())
    }
}
