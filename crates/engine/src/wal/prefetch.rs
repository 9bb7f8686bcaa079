//! The prefetcher: a process of its own that fetches ahead of a server in recovery. It is told of what the server takes by
//! the file system itself, and ends when nobody takes anything any more, when the server is gone, or when there is no more.
//! What it has fetched goes with it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use leeward_pgformat::SystemIdentifier;
use leeward_pgformat::wal_segment::{WalSegmentName, WalSegmentSize};
use leeward_repository::catalog::Cluster;
use leeward_repository::store::Store;
use leeward_repository::wal_archive::WalArchive;
use rustix::fs::inotify::{ReadFlags, Reader};
use rustix::fs::{FlockOperation, fcntl_lock};

use super::fetched::{self, LOCK, PART, WANTED};
use super::spool::is_alive;
use crate::error::{Error, ErrorKind, Result};

/// So many segments are fetched at once.
const PARALLEL: usize = 4;
/// It ends when nobody has taken anything for so long.
const IDLE: Duration = Duration::from_secs(10);
/// How often it looks whether the server is still there.
const LOOK: Duration = Duration::from_secs(1);

/// What to fetch, and where to put it.
#[derive(Clone, Debug)]
pub struct PrefetchOptions {
    /// The spool's folder, as [`super::PrefetchCall`] names it.
    pub folder: PathBuf,
    /// The segment after which to begin.
    pub after: String,
    /// The size of the cluster's WAL segments, in bytes.
    pub segment_size_bytes: u64,
    /// The cluster whose WAL the server needs.
    pub system_identifier: SystemIdentifier,
    /// How much may lie ready at once; two segments at least.
    pub ahead_bytes: u64,
    /// The cluster's name in the repository.
    pub cluster: String,
}

/// Fetches ahead until there is nothing more to do. Returns at once where another prefetcher is at work.
///
/// # Errors
/// When the folder cannot be used. A failure of the store ends the fetching; the call that asks for the segment meets it
/// itself, and tells it.
pub fn prefetch(
    open: &dyn Fn() -> Result<Arc<dyn Store>>,
    options: &PrefetchOptions,
) -> Result<()> {
    let usage = || Error::new(ErrorKind::Usage, "prefetching is begun by leeward wal get");
    let size = u32::try_from(options.segment_size_bytes)
        .ok()
        .and_then(WalSegmentSize::new)
        .ok_or_else(usage)?;
    let after = WalSegmentName::parse(&options.after, size).ok_or_else(usage)?;
    let unusable = |e: io::Error| {
        Error::failed(format!("could not use \"{}\"", options.folder.display())).because(e)
    };
    // A session of its own, so that no signal meant for the server's group ends it halfway, and no terminal holds it.
    let _ = rustix::process::setsid();
    let folder = fs::canonicalize(&options.folder).map_err(unusable)?;
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(folder.join(LOCK))
        .map_err(unusable)?;
    if fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    let archive = WalArchive::new(&Cluster::assumed(open()?, &options.cluster)?);
    let watch = fetched::watch(&folder).ok_or_else(|| unusable(io::Error::last_os_error()))?;
    let server = Server::of(&folder);
    if let Some(server) = &server {
        let _ = rustix::fs::inotify::add_watch(
            &watch,
            &server.data,
            rustix::fs::inotify::WatchFlags::DELETE,
        );
    }
    // Whoever removes or unmounts the directory finds no one in it.
    let _ = std::env::set_current_dir("/");
    remove_strangers(&folder);
    let prefetch = Arc::new(Prefetch {
        archive,
        owner: options.system_identifier,
        size,
        most: (options.ahead_bytes / size.bytes()).max(2),
        state: Mutex::new(State::beginning_after(after)),
        changed: Condvar::new(),
        folder,
    });
    prefetch.clear();
    for _ in 0..PARALLEL {
        let prefetch = Arc::clone(&prefetch);
        // Nobody waits for them: one may be in the middle of a slow download when the process ends.
        let thread = std::thread::Builder::new().spawn(move || prefetch.work());
        thread.map_err(|e| Error::failed("could not start a thread").because(e))?;
    }
    prefetch.attend(&watch, server.as_ref());
    prefetch.state().over = true;
    prefetch.clear();
    Ok(())
}

/// Which segments are where.
struct State {
    /// The last one that the server has.
    taken: WalSegmentName,
    /// The next one to be fetched.
    next: u64,
    /// Those that lie ready.
    ready: BTreeSet<u64>,
    /// How many are being fetched.
    fetching: u64,
    /// The first one that is not there, or could not be fetched.
    end: Option<u64>,
    /// Nothing more is to be begun.
    over: bool,
}

impl State {
    fn beginning_after(taken: WalSegmentName) -> Self {
        Self {
            taken,
            next: taken.number + 1,
            ready: BTreeSet::new(),
            fetching: 0,
            end: None,
            over: false,
        }
    }

    fn is_wanted(&self, segment: WalSegmentName) -> bool {
        segment.timeline == self.taken.timeline && segment.number > self.taken.number
    }
}

struct Prefetch {
    archive: WalArchive,
    folder: PathBuf,
    owner: SystemIdentifier,
    size: WalSegmentSize,
    /// How many segments may lie ready or be under way.
    most: u64,
    state: Mutex<State>,
    changed: Condvar,
}

impl Prefetch {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, segment: WalSegmentName) -> PathBuf {
        self.folder.join(segment.name(self.size))
    }

    fn part(&self, segment: WalSegmentName) -> PathBuf {
        self.folder.join(segment.name(self.size) + PART)
    }

    /// Fetches one segment after the other, as far ahead as is allowed.
    fn work(&self) {
        loop {
            let mut state = self.state();
            let segment = loop {
                if state.over {
                    return;
                }
                let room = state.ready.len() as u64 + state.fetching < self.most;
                if room && state.end.is_none_or(|end| state.next < end) {
                    let number = state.next;
                    state.next += 1;
                    state.fetching += 1;
                    break WalSegmentName {
                        number,
                        ..state.taken
                    };
                }
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            // A panic counts as a failure: the call that asks for the segment fetches it itself.
            let fetched = catch_unwind(AssertUnwindSafe(|| self.fetch(segment))).unwrap_or(false);
            let mut state = self.state();
            state.fetching -= 1;
            if !state.is_wanted(segment) || state.over {
                let _ = fs::remove_file(self.part(segment));
            } else if fetched && fs::rename(self.part(segment), self.path(segment)).is_ok() {
                state.ready.insert(segment.number);
            } else {
                let _ = fs::remove_file(self.part(segment));
                let end = state.end.unwrap_or(u64::MAX).min(segment.number);
                state.end = Some(end);
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Whether the segment is there now, proven.
    fn fetch(&self, segment: WalSegmentName) -> bool {
        let Ok(mut file) = fetched::create(&self.part(segment)) else {
            return false;
        };
        let read = self.archive.read_segment(segment, self.size, &mut file);
        // The server syncs what it gets before it goes on; that is the sooner done, the less is left to be written.
        // Another cluster's is left to the call that asks for the segment, which says so.
        let ours = matches!(read, Ok(Some(info)) if info.facts.system_identifier == self.owner);
        ours && file.sync_data().is_ok()
    }

    /// Follows the server until there is no reason to go on.
    fn attend(&self, watch: &OwnedFd, server: Option<&Server>) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(watch, &mut buffer);
        let mut last_taker = Instant::now();
        let mut last_look = Instant::now();
        loop {
            fetched::wait(watch, LOOK);
            // More than this would have to be read again anyway.
            while let Ok(event) = reader.next() {
                let what = event.events();
                if what
                    .intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT)
                {
                    return;
                }
                let name = event
                    .file_name()
                    .map(|name| name.to_bytes())
                    .unwrap_or_default();
                if what.contains(ReadFlags::DELETE) && name == b"postmaster.pid" {
                    return;
                }
                if what.contains(ReadFlags::MOVED_TO) && name == WANTED.as_bytes() {
                    last_taker = Instant::now();
                    self.asked_for();
                } else if what.contains(ReadFlags::MOVED_FROM) && self.was_taken(name) {
                    last_taker = Instant::now();
                }
            }
            let state = self.state();
            let nothing_left = state.end.is_some() && state.ready.is_empty() && state.fetching == 0;
            drop(state);
            if nothing_left || last_taker.elapsed() > IDLE {
                return;
            }
            if last_look.elapsed() >= LOOK {
                last_look = Instant::now();
                if !self.folder.is_dir() || server.is_some_and(|server| !server.is_running()) {
                    return;
                }
                self.missed();
            }
        }
    }

    /// The server has the segment of this name, if it is one of ours.
    fn was_taken(&self, name: &[u8]) -> bool {
        let segment = std::str::from_utf8(name)
            .ok()
            .and_then(|name| WalSegmentName::parse(name, self.size));
        match segment {
            Some(segment) if self.state().ready.contains(&segment.number) => {
                self.go_on_after(segment);
                true
            }
            _ => false,
        }
    }

    /// The segment that a call asked for and did not find.
    fn asked_for(&self) {
        let asked = fs::read_to_string(self.folder.join(WANTED)).unwrap_or_default();
        let Some(asked) = WalSegmentName::parse(&asked, self.size) else {
            return;
        };
        let state = self.state();
        let on_its_way = state.is_wanted(asked) && asked.number < state.next;
        let known = asked == state.taken;
        let follows = asked.timeline == state.taken.timeline && asked.number == state.next;
        drop(state);
        if on_its_way || known {
            // Its taker waits, or will go on from here.
            return;
        }
        if follows {
            self.go_on_after(asked);
            return;
        }
        let mut state = self.state();
        let ready = std::mem::take(&mut state.ready);
        let timeline = state.taken.timeline;
        let fetching = state.fetching;
        *state = State {
            fetching,
            ..State::beginning_after(asked)
        };
        for number in ready {
            let _ = fs::remove_file(self.path(WalSegmentName { timeline, number }));
        }
        drop(state);
        self.changed.notify_all();
    }

    fn go_on_after(&self, segment: WalSegmentName) {
        let mut state = self.state();
        let ahead = state.ready.split_off(&(segment.number + 1));
        let behind = std::mem::replace(&mut state.ready, ahead);
        state.taken = segment;
        state.next = state.next.max(segment.number + 1);
        // Those that were passed over: their takers fetched them themselves.
        for number in behind
            .into_iter()
            .filter(|number| *number != segment.number)
        {
            let passed = WalSegmentName { number, ..segment };
            let _ = fs::remove_file(self.path(passed));
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Notices what was taken without our being told, as when too much happened at once.
    fn missed(&self) {
        let state = self.state();
        let (taken, ready) = (state.taken, state.ready.clone());
        drop(state);
        let gone = |number: &u64| {
            let segment = WalSegmentName {
                number: *number,
                ..taken
            };
            !self.path(segment).exists()
        };
        if let Some(number) = ready.into_iter().rev().find(gone) {
            self.go_on_after(WalSegmentName { number, ..taken });
        }
    }

    /// Removes what was fetched, now or by one who was killed.
    fn clear(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // A name may have a dot of its own, as a history file's does; the process id comes last.
            let ours = match name.rsplit_once('.') {
                None => WalSegmentName::parse(&name, self.size).is_some(),
                Some((_, "part")) => true,
                // What a call that was killed has left.
                Some((_, pid)) => !is_alive(pid),
            };
            if ours {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// The server whose spool this is.
struct Server {
    data: PathBuf,
    postmaster: String,
}

impl Server {
    /// `None` where no server runs, as when somebody fetches by hand.
    fn of(folder: &Path) -> Option<Self> {
        // folder / leeward / pg_wal / data directory; a linked pg_wal has no data directory above it.
        let data = folder.ancestors().nth(3)?;
        let (data, postmaster) = [data, Path::new(".")].into_iter().find_map(|data| {
            let data = fs::canonicalize(data).ok()?;
            let postmaster = postmaster(&data)?;
            Some((data, postmaster))
        })?;
        Some(Self { data, postmaster })
    }

    fn is_running(&self) -> bool {
        postmaster(&self.data).as_ref() == Some(&self.postmaster) && is_alive(&self.postmaster)
    }
}

/// The process id in the first line of `postmaster.pid` (miscadmin.h).
fn postmaster(data: &Path) -> Option<String> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    text.lines().next().map(|line| line.trim().to_owned())
}

/// Removes the folders of other origins: another boot, repository or cluster. One in use is left alone.
fn remove_strangers(folder: &Path) {
    let Some(spool) = folder.parent() else { return };
    for entry in fs::read_dir(spool).into_iter().flatten().flatten() {
        let path = entry.path();
        let strange = path != folder
            && entry.file_name().as_bytes().starts_with(b"fetched-")
            && path
                .file_name()
                .is_some_and(|name: &OsStr| name.len() == 20);
        let used = || {
            let lock = File::options().write(true).open(path.join(LOCK));
            lock.is_ok_and(|lock| {
                fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive).is_err()
            })
        };
        if strange && !used() {
            let _ = fs::remove_dir_all(&path);
        }
    }
}
