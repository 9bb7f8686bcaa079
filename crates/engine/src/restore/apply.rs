//! Workers of a restore: each takes a range of a pack, fetches it, proves every frame and writes its pieces where the
//! manifest says. All-zero pages are left as holes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam_channel::Receiver;
use leeward_pgformat::PAGE_SIZE;
use leeward_pgformat::page::is_zero;
use leeward_postgres::cache_neutral::write_all_at;
use leeward_repository::frame::FrameDecoder;
use leeward_repository::store::Store;

use super::target::{Target, could_not};
use crate::error::Result;
use crate::event::{Event, Observer};
use crate::frames::{Pack, decode};

/// A file to be written, perhaps by several workers.
#[derive(Debug)]
pub(super) struct TargetFile {
    pub path: PathBuf,
    pub size: u64,
    pub mode: u32,
    /// Open while pieces of it are to come. A file that comes in one piece is never kept open: frames of small files hold
    /// thousands.
    shared: Option<OnceLock<std::result::Result<File, (std::io::ErrorKind, String)>>>,
}

impl TargetFile {
    /// A file that comes in `pieces`.
    pub(super) fn new(path: PathBuf, size: u64, mode: u32, pieces: usize) -> Self {
        Self {
            path,
            size,
            mode,
            shared: (pieces > 1).then(OnceLock::new),
        }
    }

    /// Creates the file at its full length.
    pub(super) fn create(&self) -> Result<File> {
        self.try_create()
            .map_err(|e| could_not("create", &self.path, e))
    }

    fn try_create(&self) -> std::io::Result<File> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(self.mode & 0o777)
            .open(&self.path)?;
        if self.mode & 0o77 != 0 {
            // The process's umask may have taken bits away.
            file.set_permissions(std::fs::Permissions::from_mode(self.mode))?;
        }
        if self.size > 0 {
            file.set_len(self.size)?;
        }
        Ok(file)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        match &self.shared {
            None => self.write_to(&self.create()?, bytes, offset),
            Some(shared) => match shared
                .get_or_init(|| self.try_create().map_err(|e| (e.kind(), e.to_string())))
            {
                Ok(file) => self.write_to(file, bytes, offset),
                Err((kind, text)) => Err(could_not(
                    "create",
                    &self.path,
                    std::io::Error::new(*kind, text.clone()),
                )),
            },
        }
    }

    /// Writes what is not zero.
    fn write_to(&self, file: &File, bytes: &[u8], offset: u64) -> Result<()> {
        let mut begin = 0;
        while begin < bytes.len() {
            let first = next_chunk(bytes, begin);
            if is_zero(&bytes[begin..first]) {
                begin = first;
                continue;
            }
            let mut end = first;
            while end < bytes.len() {
                let next = next_chunk(bytes, end);
                if is_zero(&bytes[end..next]) {
                    break;
                }
                end = next;
            }
            write_all_at(file, &bytes[begin..end], offset + begin as u64)
                .map_err(|e| could_not("write", &self.path, e))?;
            begin = end;
        }
        Ok(())
    }
}

fn next_chunk(bytes: &[u8], begin: usize) -> usize {
    (begin + PAGE_SIZE).min(bytes.len())
}

/// Where a stretch of a frame goes.
#[derive(Debug)]
pub(super) struct Placement {
    pub file: Arc<TargetFile>,
    pub file_offset: u64,
    pub frame_offset: u32,
    pub length: u32,
}

/// One frame and where its bytes go.
#[derive(Debug)]
pub(super) struct FrameUse {
    pub frame: u32,
    pub placements: Vec<Placement>,
}

/// Frames that lie behind one another in a pack, fetched at once.
#[derive(Debug)]
pub(super) struct Job {
    pub pack: Arc<Pack>,
    pub frames: Vec<FrameUse>,
}

/// What every worker shares.
pub(super) struct Worker<'a> {
    pub store: &'a dyn Store,
    pub observe: Observer<'a>,
    /// Bytes written since the beginning, for the syncer.
    pub written: &'a AtomicU64,
    /// Set by the first failure: the others need not go on.
    pub stopped: &'a AtomicBool,
}

impl Worker<'_> {
    pub(super) fn run(&self, jobs: &Receiver<Job>) -> Result<()> {
        let mut decoder = FrameDecoder::new();
        for job in jobs {
            if self.stopped.load(Ordering::Relaxed) {
                break;
            }
            if let Err(e) = self.apply(&job, &mut decoder) {
                self.stopped.store(true, Ordering::Relaxed);
                return Err(e);
            }
        }
        Ok(())
    }

    fn apply(&self, job: &Job, decoder: &mut FrameDecoder) -> Result<()> {
        let (Some(first), Some(last)) = (job.frames.first(), job.frames.last()) else {
            return Ok(());
        };
        let begin = job.pack.frame(first.frame)?.offset;
        let end = job.pack.frame_end(last.frame)?;
        let stored = job.pack.fetch(self.store, begin..end)?;
        for frame in &job.frames {
            let entry = job.pack.frame(frame.frame)?;
            let at = (entry.offset - begin) as usize;
            let plain = decode(
                &job.pack,
                frame.frame,
                &stored[at..at + entry.stored_length as usize],
                decoder,
            )?;
            let mut bytes = 0;
            for placement in &frame.placements {
                let from = placement.frame_offset as usize;
                let piece = job
                    .pack
                    .piece(frame.frame, &plain, from, placement.length as usize)?;
                placement.file.write(piece, placement.file_offset)?;
                bytes += u64::from(placement.length);
            }
            self.written.fetch_add(bytes, Ordering::Relaxed);
            (self.observe)(Event::Advanced(bytes));
        }
        Ok(())
    }
}

/// The file systems written to, held open from before the first write: an error of writing back is told once to each that
/// was open when it happened.
#[derive(Debug)]
pub(super) struct FileSystems(Vec<(PathBuf, File)>);

impl FileSystems {
    pub(super) fn open(target: &Target) -> Result<Self> {
        let places = [&target.path].into_iter().chain(
            target
                .tablespaces
                .values()
                .map(|tablespace| &tablespace.place),
        );
        let opened = places.map(|place| match File::open(place) {
            Ok(directory) => Ok((place.clone(), directory)),
            Err(e) => Err(could_not("open", place, e)),
        });
        Ok(Self(opened.collect::<Result<_>>()?))
    }

    /// Makes everything on them durable (`syncfs`, which tells of errors since Linux 5.8).
    pub(super) fn sync(&self) -> Result<()> {
        self.0.iter().try_for_each(|(place, directory)| {
            rustix::fs::syncfs(directory)
                .map_err(|e| could_not("sync the file system of", place, e.into()))
        })
    }
}
