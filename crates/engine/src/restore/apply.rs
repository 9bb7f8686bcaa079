//! Workers of a restore: each takes a range of a pack, fetches it, proves every frame and writes its pieces where the
//! manifest says. All-zero pages are left as holes.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use leeward_pgformat::PAGE_SIZE;
use leeward_pgformat::page::is_zero;
use leeward_postgres::cache_neutral::write_all_at;
use leeward_repository::frame::FrameDecoder;
use leeward_repository::store::Store;

use super::could_not;
use super::tree::{Made, Tree, Writer};
use crate::error::Result;
use crate::event::{Event, Observer};
use crate::frames::{Pack, decode};
use crate::pipeline::{Receiver, StageResult};

/// Files of several pieces that are kept open. A restore has to do with 1,024 descriptors, whatever the number of files.
const OPEN_FILES: usize = 256;

/// A file to be written, perhaps by several workers.
#[derive(Debug)]
pub(super) struct TargetFile {
    /// Its path relative to the data directory.
    pub place: PathBuf,
    pub size: u64,
    pub mode: u32,
    /// Of a file that comes in several pieces; one that comes in a single piece is never kept open.
    shared: Option<Mutex<Shared>>,
}

/// A file that comes in several pieces.
#[derive(Debug)]
enum Shared {
    /// None has come.
    Absent,
    Open(Arc<File>),
    /// It was created, and is opened again for the next piece.
    Closed(Made),
}

impl TargetFile {
    /// A file that comes in `pieces`.
    pub(super) fn new(place: PathBuf, size: u64, mode: u32, pieces: usize) -> Self {
        Self {
            place,
            size,
            mode,
            shared: (pieces > 1).then(|| Mutex::new(Shared::Absent)),
        }
    }

    /// Creates the file at its full length.
    pub(super) fn create(&self, writer: &Writer<'_>) -> Result<File> {
        let file = writer.create(&self.place, self.mode)?;
        if self.size > 0 {
            file.set_len(self.size)
                .map_err(|e| could_not("set the length of", &writer.path(&self.place), e))?;
        }
        Ok(file)
    }

    /// The open file of several pieces, and whether it was opened just now.
    fn open(&self, shared: &Mutex<Shared>, writer: &Writer<'_>) -> Result<(Arc<File>, bool)> {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match &*shared {
            Shared::Open(file) => return Ok((Arc::clone(file), false)),
            Shared::Absent => self.create(writer)?,
            Shared::Closed(made) => writer.reopen(&self.place, *made)?,
        };
        let file = Arc::new(file);
        *shared = Shared::Open(Arc::clone(&file));
        Ok((file, true))
    }

    /// Closes the file, once those who write to it have.
    fn close(&self) -> std::io::Result<()> {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Shared::Open(file) = &*shared {
            let found = file.metadata()?;
            *shared = Shared::Closed((found.dev(), found.ino()));
        }
        Ok(())
    }

    /// Writes what is not zero.
    fn write_to(&self, writer: &Writer<'_>, file: &File, bytes: &[u8], offset: u64) -> Result<()> {
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
                .map_err(|e| could_not("write", &writer.path(&self.place), e))?;
            begin = end;
        }
        Ok(())
    }
}

fn next_chunk(bytes: &[u8], begin: usize) -> usize {
    (begin + PAGE_SIZE).min(bytes.len())
}

/// The files of several pieces that are open, the oldest first.
#[derive(Debug, Default)]
pub(super) struct OpenFiles(Mutex<VecDeque<Arc<TargetFile>>>);

impl OpenFiles {
    /// Writes one piece.
    fn write(
        &self,
        writer: &Writer<'_>,
        target: &Arc<TargetFile>,
        bytes: &[u8],
        offset: u64,
    ) -> Result<()> {
        let Some(shared) = &target.shared else {
            return target.write_to(writer, &target.create(writer)?, bytes, offset);
        };
        let (file, is_new) = target.open(shared, writer)?;
        if is_new {
            self.add(target)
                .map_err(|e| could_not("look at", &writer.path(&target.place), e))?;
        }
        target.write_to(writer, &file, bytes, offset)
    }

    /// Keeps one more open, and closes the oldest where there are too many.
    fn add(&self, target: &Arc<TargetFile>) -> std::io::Result<()> {
        let oldest = {
            let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            open.push_back(Arc::clone(target));
            (open.len() > OPEN_FILES)
                .then(|| open.pop_front())
                .flatten()
        };
        oldest.map_or(Ok(()), |file| file.close())
    }
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
    pub tree: &'a Tree,
    pub files: &'a OpenFiles,
    pub observe: Observer<'a>,
    /// Bytes written since the beginning, for the syncer.
    pub written: &'a AtomicU64,
}

impl Worker<'_> {
    pub(super) fn run(&self, jobs: &Receiver<Job>) -> StageResult<()> {
        let mut decoder = FrameDecoder::new();
        while let Some(job) = jobs.recv()? {
            self.apply(&job, &mut decoder)?;
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
            let writer = self.tree.writer()?;
            for placement in &frame.placements {
                let from = placement.frame_offset as usize;
                let piece = job
                    .pack
                    .piece(frame.frame, &plain, from, placement.length as usize)?;
                self.files
                    .write(&writer, &placement.file, piece, placement.file_offset)?;
                bytes += u64::from(placement.length);
            }
            drop(writer);
            self.written.fetch_add(bytes, Ordering::Relaxed);
            (self.observe)(Event::Advanced(bytes));
        }
        Ok(())
    }
}
