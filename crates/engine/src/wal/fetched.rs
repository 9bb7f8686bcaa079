//! The spool of fetched segments: files that were proven, ready to be handed over by rename. Its folder belongs to one
//! boot of the machine, one repository, one cluster and one system identifier; another one is never looked into.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use leeward_pgformat::SystemIdentifier;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Flock, FlockType, fcntl_getlk};

use super::spool;

/// Where a prefetcher is told which segment was asked for.
pub(super) const WANTED: &str = "wanted";
/// Locked by the prefetcher as long as it lives.
pub(super) const LOCK: &str = "lock";
/// The ending of a segment that the prefetcher is fetching.
pub(super) const PART: &str = ".part";
const VERIFIED: &str = "verified";
const ABSENT: &str = "absent";
/// So long a get waits for the prefetcher to finish a segment before it fetches the segment itself.
const WAIT: Duration = Duration::from_secs(60);
/// So often it says meanwhile that it waits.
const REMIND: Duration = Duration::from_secs(2);
/// That the repository is the right one is asked again after this time.
const VERIFIED_FOR: Duration = Duration::from_secs(60);

/// The folder of one origin.
#[derive(Debug)]
pub(super) struct Fetched {
    folder: PathBuf,
}

/// Whether the spool had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    Taken,
    NotThere,
}

impl Fetched {
    pub(super) fn new(
        spool: &Path,
        repository: &str,
        cluster: &str,
        system_identifier: SystemIdentifier,
    ) -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let origin = spool::target(&[&boot, repository, cluster, &system_identifier.to_string()]);
        Self {
            folder: spool.join(format!("fetched-{}", spool::short(&origin))),
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the folder.
    pub(super) fn make(&self) -> io::Result<()> {
        spool::make_folder(self.folder.parent())?;
        spool::make_folder(Some(&self.folder))?;
        if self.is_ours() {
            Ok(())
        } else {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }

    /// Returns whether only processes of this user can have put files there.
    fn is_ours(&self) -> bool {
        self.folder.parent().is_some_and(spool::is_ours) && spool::is_ours(&self.folder)
    }

    /// A new file for a segment that this process fetches itself.
    pub(super) fn own_file(&self, name: &str) -> io::Result<(PathBuf, File)> {
        let path = self
            .folder
            .join(format!("{name}-{}.{}", next(), std::process::id()));
        let file = create(&path)?;
        Ok((path, file))
    }

    /// Hands the segment over to `path`, if it is there, or will be soon because the prefetcher is at it.
    pub(super) fn take(&self, name: &str, path: &Path) -> io::Result<Take> {
        if self.taken(name, path)? {
            return Ok(Take::Taken);
        }
        let part = self.folder.join(format!("{name}{PART}"));
        if !part.exists() || !self.has_prefetcher() {
            return Ok(Take::NotThere);
        }
        // From here on, whatever happens to the segment is told.
        let Some(watch) = watch(&self.folder) else {
            return Ok(Take::NotThere);
        };
        let begun = Instant::now();
        let mut asked: Option<Instant> = None;
        loop {
            // Again and again, so that a prefetcher with a slow line knows that somebody waits.
            if asked.is_none_or(|asked| asked.elapsed() > REMIND) {
                asked = Some(Instant::now());
                self.want(name);
            }
            let fetching = part.exists();
            if self.taken(name, path)? {
                return Ok(Take::Taken);
            }
            if !fetching || !self.has_prefetcher() || begun.elapsed() > WAIT {
                return Ok(Take::NotThere);
            }
            wait(&watch, Duration::from_secs(1));
            drain(&watch);
        }
    }

    fn taken(&self, name: &str, path: &Path) -> io::Result<bool> {
        if !self.is_ours() {
            return Ok(false);
        }
        match hand_over(&self.folder.join(name), path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            // A folder that root made, who tried something by hand: everything can be done without it.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether a prefetcher lives.
    pub(super) fn has_prefetcher(&self) -> bool {
        // The lock is only looked at: taking it could keep a prefetcher that is just starting from having it.
        let lock = OpenOptions::new().read(true).open(self.folder.join(LOCK));
        let holder = lock
            .ok()
            .map(|lock| fcntl_getlk(&lock, &Flock::from(FlockType::ReadLock)));
        matches!(holder, Some(Ok(Some(_))))
    }

    /// Tells the prefetcher which segment was asked for.
    pub(super) fn want(&self, name: &str) {
        let _ = self.note(WANTED, name);
    }

    /// The last segment that was told to be absent.
    pub(super) fn last_absent(&self) -> Option<String> {
        if !self.is_ours() {
            return None;
        }
        fs::read_to_string(self.folder.join(ABSENT)).ok()
    }

    pub(super) fn note_absent(&self, name: &str) {
        let _ = self.make().and_then(|()| self.note(ABSENT, name));
    }

    /// Whether the repository was found to be the right one less than a minute ago.
    pub(super) fn verified_lately(&self) -> bool {
        if !self.is_ours() {
            return false;
        }
        let noted = fs::metadata(self.folder.join(VERIFIED)).and_then(|noted| noted.modified());
        noted
            .ok()
            .and_then(|noted| noted.elapsed().ok())
            .is_some_and(|ago| ago < VERIFIED_FOR)
    }

    pub(super) fn note_verified(&self) {
        let _ = self.make().and_then(|()| self.note(VERIFIED, ""));
    }

    fn note(&self, file: &str, text: &str) -> io::Result<()> {
        let own = self.folder.join(format!("{file}.{}", std::process::id()));
        fs::write(&own, text)?;
        fs::rename(own, self.folder.join(file))
    }
}

/// Tells this process's files from each other.
pub(super) fn next() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Creates a file as the server creates its WAL.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let create = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    };
    match create() {
        // A leftover of a dead process with this number, or a link that somebody put there to be followed.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            create()
        }
        other => other,
    }
}

/// Moves a file, or copies it where the other place is on another file system. It appears whole. It need not be synced:
/// the server does so before it relies on it (`durable_rename` in `KeepFileRestoredFromArchive`, xlogarchive.c).
pub(super) fn hand_over(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            let mut own = to.as_os_str().to_owned();
            own.push(format!(".leeward-{}", std::process::id()));
            let own = PathBuf::from(own);
            let copied = fs::copy(from, &own).and_then(|_| fs::rename(&own, to));
            if copied.is_err() {
                let _ = fs::remove_file(&own);
            }
            copied?;
            fs::remove_file(from)
        }
        other => other,
    }
}

/// Watches a folder for files that come and go.
pub(super) fn watch(folder: &Path) -> Option<std::os::fd::OwnedFd> {
    let watch =
        inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
    let what = inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::DELETE_SELF
        | inotify::WatchFlags::MOVE_SELF;
    inotify::add_watch(&watch, folder, what).ok()?;
    Some(watch)
}

/// Waits until something happened, at most `time`.
pub(super) fn wait(watch: &std::os::fd::OwnedFd, time: Duration) {
    let time = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    // A signal that comes in between only makes the caller look earlier.
    let _ = poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&time));
}

/// Forgets what was told: the caller looks for itself.
fn drain(watch: &std::os::fd::OwnedFd) {
    let mut buffer = [0; 4096];
    while matches!(rustix::io::read(watch, &mut buffer), Ok(read) if read > 0) {}
}
