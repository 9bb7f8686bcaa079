//! One file of a local repository: written beside its place under a hidden name, then put in place, durably.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rustix::fs::{Advice, CWD, RenameFlags, fadvise, fdatasync, renameat_with};
use rustix::io::Errno;

use crate::error::StoreError;
use crate::process::ProcessIdentity;

/// How every temporary name begins. Keys never begin with a dot.
const TEMPORARY_PREFIX: &str = ".tmp-";
/// Backups hold everything the database holds: for their owner only.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;
/// How much is written before the helper thread is asked to bring it to the disk.
const WRITEBACK_BYTES: u64 = 16 << 20;
/// How many such requests may wait; more would only let dirty memory grow.
const WRITEBACK_QUEUE: usize = 2;

/// A file that is larger leaves the page cache once it is on the disk: it is not read again soon, the cache belongs to the
/// database server on this host, and memory that is used again is cheaper than fresh memory.
const CACHED_BYTES: u64 = 1 << 20;

/// How a finished file takes its place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Placing {
    /// Only where nothing is.
    New,
    /// In place of what is there; the caller holds the repository's lock.
    Replace,
}

/// A file under a hidden name, removed when dropped without having been placed.
pub(super) struct TemporaryFile {
    file: File,
    path: PathBuf,
    written_bytes: u64,
    placed: bool,
}

impl TemporaryFile {
    /// Creates a file in an existing folder. The raw error, because the caller may create the folder and come again.
    pub(super) fn create(folder: &Path) -> io::Result<TemporaryFile> {
        let path = folder.join(temporary_name());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&path)?;
        Ok(TemporaryFile {
            file,
            path,
            written_bytes: 0,
            placed: false,
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.written_bytes += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(|error| StoreError::from_io("write", &self.path, bytes.len() as u64, error))
    }

    /// Brings the file to the disk, gives it its name and brings that to the disk. `Ok(false)`: the name is taken.
    pub(super) fn place(mut self, target: &Path, placing: Placing) -> Result<bool, StoreError> {
        self.file
            .sync_all()
            .map_err(|error| StoreError::from_io("sync", &self.path, 0, error))?;
        if self.written_bytes >= CACHED_BYTES {
            // Advice only: whatever it answers, the bytes are safe.
            let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
        }
        let moved = match placing {
            Placing::Replace => fs::rename(&self.path, target).map(|()| true),
            Placing::New => rename_without_overwriting(&self.path, target),
        };
        let moved = moved.map_err(|error| StoreError::from_io("write", target, 0, error))?;
        if moved {
            self.placed = true;
            sync_folder(target.parent().unwrap_or(Path::new("/")))?;
        }
        Ok(moved)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if !self.placed {
            // Nothing can be done about a failure here; a later run removes what stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// `renameat2(RENAME_NOREPLACE)`, and by a hard link on file systems that do not know it (NFS, some FUSE).
fn rename_without_overwriting(from: &Path, to: &Path) -> io::Result<bool> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match fs::hard_link(from, to) {
            Ok(()) => {
                fs::remove_file(from)?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        },
        Err(error) => Err(error.into()),
    }
}

/// A large file on its way to the disk. A helper thread syncs behind the writer, so that [`StreamedFile::finish`] waits
/// for the last few megabytes only, and lets the page cache go as well.
pub(super) struct StreamedFile {
    temporary: TemporaryFile,
    requested_bytes: u64,
    requests: Option<SyncSender<u64>>,
    helper: Option<JoinHandle<io::Result<()>>>,
}

impl StreamedFile {
    pub(super) fn new(temporary: TemporaryFile) -> StreamedFile {
        StreamedFile {
            temporary,
            requested_bytes: 0,
            requests: None,
            helper: None,
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.temporary.write(bytes)?;
        let written_bytes = self.temporary.written_bytes;
        if written_bytes - self.requested_bytes < WRITEBACK_BYTES {
            return Ok(());
        }
        self.requested_bytes = written_bytes;
        if self.requests.is_none() {
            // Only now, since most files are small.
            let path = &self.temporary.path;
            let file = self
                .temporary
                .file
                .try_clone()
                .map_err(|error| StoreError::from_io("write", path, 0, error))?;
            let (sender, receiver) = sync_channel(WRITEBACK_QUEUE);
            let helper = std::thread::Builder::new()
                .name("writeback".to_owned())
                .spawn(move || write_back(&file, &receiver))
                .map_err(|error| StoreError::from_io("write", path, 0, error))?;
            self.requests = Some(sender);
            self.helper = Some(helper);
        }
        let sent = self
            .requests
            .as_ref()
            .map(|requests| requests.send(written_bytes));
        match sent {
            // The helper has gone: with an error, which must not get lost, because the kernel reports it once only.
            Some(Err(_)) => self.join_helper(),
            _ => Ok(()),
        }
    }

    pub(super) fn finish(mut self, target: &Path) -> Result<Option<u64>, StoreError> {
        self.join_helper()?;
        let written_bytes = self.temporary.written_bytes;
        let placed = self.temporary.place(target, Placing::New)?;
        Ok(placed.then_some(written_bytes))
    }

    fn join_helper(&mut self) -> Result<(), StoreError> {
        self.requests = None;
        match self.helper.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(StoreError::from_io(
                "sync",
                &self.temporary.path,
                self.temporary.written_bytes,
                error,
            )),
            Some(Err(_)) => Err(StoreError::Io {
                action: "sync",
                path: self.temporary.path.clone(),
                source: io::Error::other("the writeback thread panicked"),
            }),
        }
    }
}

fn write_back(file: &File, requests: &Receiver<u64>) -> io::Result<()> {
    let mut released = 0;
    while let Ok(mut end) = requests.recv() {
        while let Ok(later) = requests.try_recv() {
            end = later;
        }
        fdatasync(file)?;
        // Advice only: whatever it answers, the bytes are safe.
        let _ = fadvise(
            file,
            released,
            std::num::NonZeroU64::new(end - released),
            Advice::DontNeed,
        );
        released = end;
    }
    Ok(())
}

/// Brings a folder's entries to the disk.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    let synced = File::open(folder).and_then(|opened| match rustix::fs::fsync(&opened) {
        // Some network file systems cannot sync a folder; their server has written it before it answered.
        Err(Errno::INVAL | Errno::BADF) => Ok(()),
        other => other.map_err(io::Error::from),
    });
    synced.map_err(|error| StoreError::from_io("sync", folder, 0, error))
}

/// Creates a folder and its parents, and syncs them as [`sync_folders_above`] does.
pub(super) fn create_folders(root: &Path, folder: &Path) -> Result<(), StoreError> {
    let above = folders_above(root, folder);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(folder)
        .map_err(|error| StoreError::from_io("create", folder, 0, error))?;
    sync_all(root, &above)
}

/// Brings the names of a folder and of its parents to the disk. Those from `root` downwards that existed before are synced
/// too: whoever made them may have died before doing so.
pub(super) fn sync_folders_above(root: &Path, folder: &Path) -> Result<(), StoreError> {
    sync_all(root, &folders_above(root, folder))
}

fn folders_above(root: &Path, folder: &Path) -> Vec<PathBuf> {
    let mut to_sync = Vec::new();
    for place in folder.ancestors() {
        let inside = place != root && place.starts_with(root);
        if !inside && place.exists() {
            // The folder that holds the root is synced as well, for the root's own entry.
            if let Some(parent) = place.parent().filter(|_| place == root) {
                to_sync.push(parent.to_owned());
            }
            break;
        }
        if let Some(parent) = place.parent() {
            to_sync.push(parent.to_owned());
        }
    }
    to_sync
}

fn sync_all(root: &Path, folders: &[PathBuf]) -> Result<(), StoreError> {
    for folder in folders {
        match sync_folder(folder) {
            // A parent of the repository that we may not open is somebody else's and was there before.
            Err(StoreError::PermissionDenied { .. }) if !folder.starts_with(root) => {}
            other => other?,
        }
    }
    Ok(())
}

static COUNTER: AtomicU64 = AtomicU64::new(0);

fn temporary_name() -> String {
    let this = ProcessIdentity::current();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!(
        "{TEMPORARY_PREFIX}{}-{}-{}-{count}",
        place_hash(&this),
        this.pid,
        this.process_start_ticks
    )
}

/// Names the host, its current run and its container, as far as process ids mean the same there.
fn place_hash(process: &ProcessIdentity) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [&process.host, &process.boot_id, &process.pid_namespace] {
        hasher.update(part.as_bytes()).update(b"\0");
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// Whether a file name is one of ours that no reader may see.
pub(super) fn is_hidden(name: &str) -> bool {
    name.starts_with('.')
}

/// Whether a file name is that of a file being written, or of one that was.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY_PREFIX)
}

/// Whether a temporary file's writer is dead: told by the process where it was on this host, else by age.
pub(super) fn is_leftover(name: &str, age_seconds: u64) -> bool {
    /// Nobody writes to a file for so long without touching it.
    const FOREIGN_AGE_SECONDS: u64 = 2 * 24 * 3600;
    let Some(rest) = name.strip_prefix(TEMPORARY_PREFIX) else {
        return false;
    };
    let here = ProcessIdentity::current();
    let mut parts = rest.split('-');
    let (place, pid, ticks) = (parts.next(), parts.next(), parts.next());
    if place == Some(place_hash(&here).as_str())
        && let Some(pid) = pid.and_then(|pid| pid.parse().ok())
        && let Some(process_start_ticks) = ticks.and_then(|ticks| ticks.parse().ok())
    {
        return ProcessIdentity {
            pid,
            process_start_ticks,
            ..here
        }
        .is_known_dead();
    }
    age_seconds > FOREIGN_AGE_SECONDS
}
