//! `archive_command`: one file of `pg_wal` into the archive, and what else lies ready with it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use leeward_pgformat::timeline::TimelineHistory;
use leeward_pgformat::wal_segment::{
    WAL_LONG_HEADER_SIZE, WalLongHeader, WalSegmentName, WalSegmentSize,
    is_backup_history_file_name, is_history_file_name, is_partial_wal_segment_name,
    is_wal_segment_name, parse_history_file_name,
};
use leeward_pgformat::{SystemIdentifier, TimelineId};
use leeward_repository::RepositoryError;
use leeward_repository::catalog::{Cluster, Repository};
use leeward_repository::layout;
use leeward_repository::parallel;
use leeward_repository::store::Store;
use leeward_repository::url::RepositoryUrl;
use leeward_repository::wal_archive::WalArchive;

use super::server::ServerDirectories;
use super::spool::{FileMark, Identity, Marks};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};
use crate::repository::{Writable, doing};

/// One call takes at most so many files,
const BATCH_FILES: usize = 64;
/// or so many bytes,
const BATCH_BYTES: u64 = 4 << 30;
/// so many at once, whatever the cores: a good part of each is waiting for a disk or a store to say that it is durable.
const PARALLEL: usize = 4;
/// A history file is a few lines; this is far more than any.
const TEXT_BYTES: u64 = 1 << 20;
/// `cluster.json` is looked at again after this time.
const IDENTITY_SECONDS: i64 = 3600;

/// What is to be pushed, and where to.
#[derive(Clone, Debug)]
pub struct PushOptions {
    /// The repository, which is opened only if there is something to do.
    pub repository: RepositoryUrl,
    /// The cluster's name in it.
    pub cluster: String,
    /// The file, as the server names it (`%p`).
    pub path: PathBuf,
    /// zstd's level.
    pub level: i32,
}

/// What a push did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PushOutcome {
    /// Files that are in the archive now because of this call. None: an earlier call had brought the file.
    pub stored: u64,
    /// Of them, those whose same content was there already.
    pub present: u64,
}

/// What kind of file it is, told by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    History,
    Segment,
    BackupHistory,
    Partial,
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        match name {
            _ if is_wal_segment_name(name) => Some(Self::Segment),
            _ if is_history_file_name(name) => Some(Self::History),
            _ if is_backup_history_file_name(name) => Some(Self::BackupHistory),
            _ if is_partial_wal_segment_name(name) => Some(Self::Partial),
            _ => None,
        }
    }
}

/// Stores the file, durably, and what else the server has marked as ready beside it. The store is opened by `open`, if an
/// earlier call has not done the work already.
///
/// # Errors
/// Those of the file that was asked for. What goes wrong with another one is a notice, and comes back as the error of its
/// own call.
pub fn push(
    open: &dyn Fn() -> Result<Arc<dyn Store>>,
    options: &PushOptions,
    observe: Observer<'_>,
) -> Result<PushOutcome> {
    let name = options
        .path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let kind = Kind::of(name).ok_or_else(|| {
        Error::new(
            ErrorKind::Usage,
            format!("\"{}\" is not named as a WAL file", options.path.display()),
        )
        .hint("Set archive_command = 'leeward wal push %p'.")
    })?;
    let server = ServerDirectories::around(&options.path);
    let marks = Marks::read(
        &server.spool(),
        &options.repository.to_string(),
        &options.cluster,
    );
    let now = fs::metadata(&options.path).map_err(|e| unreadable(&options.path, e))?;
    if marks.knows(name, FileMark::from(&now)) {
        return Ok(PushOutcome::default());
    }
    Push {
        options,
        server,
        marks,
        observe,
    }
    .run(open, name, kind)
}

struct Push<'a> {
    options: &'a PushOptions,
    server: ServerDirectories,
    marks: Marks,
    observe: Observer<'a>,
}

impl Push<'_> {
    fn run(
        mut self,
        open: &dyn Fn() -> Result<Arc<dyn Store>>,
        name: &str,
        kind: Kind,
    ) -> Result<PushOutcome> {
        let whose = self.whose(name, kind)?;
        let store = open()?;
        let (cluster, claimed) = self.claim(store, whose, timeline(name))?;
        if claimed {
            self.marks.remove_leftovers();
        }
        let archive = WalArchive::new(&cluster);
        // The server's own files have a folder of marks beside them; a file that somebody keeps elsewhere goes alone.
        let status = fs::metadata(self.server.archive_status()).ok();
        let ready = match &status {
            Some(_) => ready(&self.server.archive_status()),
            None => HashMap::new(),
        };
        // The file that was asked for goes first and alone. What follows it is stored only if it is, or a server that went on
        // with a timeline that is not its own would fill the archive behind the first contradiction.
        let (mark, present) = self.store(&archive, name, kind, whose)?;
        let done: Mutex<Vec<(String, FileMark, bool)>> =
            Mutex::new(vec![(name.to_owned(), mark, present)]);
        // Where somebody else was there before, each file may be the first that contradicts.
        let at_once = if present { 1 } else { PARALLEL };
        let hopeless = AtomicBool::new(false);
        parallel::for_each(
            &self.others(&ready, name),
            at_once,
            |(file, kind)| -> Result<()> {
                if hopeless.load(Ordering::Relaxed) {
                    return Ok(());
                }
                match self.store(&archive, file, *kind, whose) {
                    Ok((mark, present)) => {
                        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                        done.push((file.clone(), mark, present));
                    }
                    Err(error) => {
                        hopeless.store(true, Ordering::Relaxed);
                        (self.observe)(Event::Notice(format!(
                            "\"{file}\" was not pushed along: {}",
                            in_full(&error)
                        )));
                    }
                }
                Ok(())
            },
        )?;
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        let outcome = PushOutcome {
            stored: done.len() as u64,
            present: done.iter().filter(|(_, _, present)| *present).count() as u64,
        };
        // As root, the spool would be lost to the server.
        let ours = status.is_some_and(|status| status.uid() == rustix::process::geteuid().as_raw());
        if ours && (claimed || !done.is_empty()) {
            self.marks
                .files
                .retain(|file, _| ready.contains_key(file) || file == name);
            self.marks
                .files
                .extend(done.into_iter().map(|(file, mark, _)| (file, mark)));
            if let Err(e) = self.marks.write() {
                (self.observe)(Event::Notice(format!(
                    "What was pushed could not be noted in \"{}\", so each file is compared again: {e}.",
                    self.server.spool().display()
                )));
            }
        }
        Ok(outcome)
    }

    /// The cluster that wrote the file: its header says so, and the control file beside must agree. Files without a
    /// header belong to the server beside, or to whom the earlier ones belonged.
    fn whose(&self, name: &str, kind: Kind) -> Result<SystemIdentifier> {
        let control = self.server.control_file();
        let control = control.map(|control| control.system_identifier);
        let path = &self.options.path;
        if matches!(kind, Kind::Segment | Kind::Partial) {
            let mut file = File::open(path).map_err(|e| unreadable(path, e))?;
            let header = header(&mut file, path)?.system_identifier;
            return match control {
                Some(control) if control != header => Err(Error::new(
                    ErrorKind::Refused,
                    format!(
                        "WAL file \"{name}\" is from the cluster with system identifier {header}, but this server has {control}"
                    ),
                )
                .hint("It came here from another server. Remove it from pg_wal and from pg_wal/archive_status if it does not belong here.")),
                _ => Ok(header),
            };
        }
        let seen = || Some(self.marks.identity.as_ref()?.system_identifier);
        control.or_else(seen).ok_or_else(|| {
            Error::new(
                ErrorKind::Usage,
                format!("could not tell which cluster \"{}\" belongs to", path.display()),
            )
            .hint("Such a file does not say so itself. Push it from its server's pg_wal, in the data directory.")
        })
    }

    /// Opens the cluster's folder, after a look at whose it is, which is remembered. Returns whether there was such a look.
    fn claim(
        &mut self,
        store: Arc<dyn Store>,
        whose: SystemIdentifier,
        timeline: TimelineId,
    ) -> Result<(Cluster, bool)> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        let name = &self.options.cluster;
        let before = self.marks.identity.take();
        let before = before.filter(|identity| identity.system_identifier == whose);
        let endpoint = store.endpoint().unwrap_or_default().to_owned();
        let known = before.as_ref().is_some_and(|identity| {
            identity.timelines.contains(&timeline)
                && identity.endpoint == endpoint
                && (identity.seen_at..=identity.seen_at + IDENTITY_SECONDS).contains(&now)
        });
        // The probe writes: not into a place that is not the repository any more.
        if before.is_some() && !known {
            Repository::open(Arc::clone(&store))?;
        }
        let Writable {
            store,
            conditional_writes,
        } = match &before {
            Some(identity) if known => Writable::known(store, identity.conditional_writes),
            _ => Writable::open(&store, self.observe)?,
        };
        // A repository that was there and is not any more is a file system that is not mounted, or worse: no new one is
        // begun in its place. In a directory the look costs nothing.
        let local = matches!(store.location(), RepositoryUrl::Local(_));
        let repository = match &before {
            Some(_) if known && !local => None,
            Some(_) => Some(Repository::open(Arc::clone(&store))?),
            None if local && self.server.has_archived(timeline) => {
                Some(Repository::open(Arc::clone(&store))?)
            }
            None => Some(Repository::open_or_create(Arc::clone(&store))?),
        };
        let cluster = match repository {
            Some(repository) => repository.cluster(name)?,
            None => Cluster::assumed(Arc::clone(&store), name)?,
        };
        if known {
            self.marks.identity = before;
            return Ok((cluster, false));
        }
        cluster.claim(whose, timeline)?;
        // What a push that was killed has left unfinished; nobody else comes by here.
        store
            .remove_leftovers(&layout::archived_timeline_folder(cluster.name(), timeline))
            .map_err(RepositoryError::from)?;
        let mut timelines = before
            .map(|identity| identity.timelines)
            .unwrap_or_default();
        if !timelines.contains(&timeline) {
            timelines.push(timeline);
        }
        self.marks.identity = Some(Identity {
            system_identifier: whose,
            timelines,
            seen_at: now,
            endpoint,
            conditional_writes,
        });
        Ok((cluster, true))
    }

    /// What else is to be pushed, in order: history files first, as the server does.
    fn others(&self, ready: &HashMap<String, Kind>, asked_for: &str) -> Vec<(String, Kind)> {
        let mut others: Vec<(&String, Kind)> = ready
            .iter()
            .filter(|(name, _)| *name != asked_for)
            .map(|(name, kind)| (name, *kind))
            .collect();
        others.sort_by_key(|(name, kind)| (*kind != Kind::History, *name));
        let mut bytes = 0;
        let mut batch = Vec::new();
        for (name, kind) in others {
            if batch.len() + 1 >= BATCH_FILES || bytes >= BATCH_BYTES {
                break;
            }
            // One that is not there is the server's business, when its turn comes.
            let Ok(metadata) = fs::metadata(self.server.wal.join(name)) else {
                continue;
            };
            if !self.marks.knows(name, FileMark::from(&metadata)) {
                bytes += metadata.len();
                batch.push((name.clone(), kind));
            }
        }
        batch
    }

    /// Whether the segment's timeline ended inside of it. Then it will never be whole, even where the server did not name
    /// it `.partial`: it does not when it got the segment by `restore_command`, under `archive_mode = always`
    /// (`CleanupAfterArchiveRecovery`, xlog.c).
    fn was_left_in(&self, segment: WalSegmentName, size: WalSegmentSize) -> bool {
        let history = |file: &str| {
            let timeline = parse_history_file_name(file).filter(|t| *t > segment.timeline)?;
            let text = fs::read(self.server.wal.join(file)).ok()?;
            TimelineHistory::parse(&text, timeline).ok()
        };
        let files = fs::read_dir(&self.server.wal)
            .into_iter()
            .flatten()
            .flatten();
        files
            .filter_map(|entry| history(entry.file_name().to_str()?))
            .flat_map(|history| history.entries)
            .any(|left| {
                left.timeline == segment.timeline
                    && size.segment_number_before(left.switch_lsn) == segment.number
            })
    }

    /// Stores one file; returns what it was then, and whether the archive had it.
    fn store(
        &self,
        archive: &WalArchive,
        name: &str,
        kind: Kind,
        whose: SystemIdentifier,
    ) -> Result<(FileMark, bool)> {
        let path = self.server.wal.join(name);
        let mut file = File::open(&path).map_err(|e| unreadable(&path, e))?;
        let mark = |file: &File| {
            let metadata = file.metadata().map_err(|e| unreadable(&path, e))?;
            Ok::<_, Error>(FileMark::from(&metadata))
        };
        let before = mark(&file)?;
        let wrong = |e| doing(&format!("could not archive \"{name}\""), e);
        let present = match kind {
            Kind::History | Kind::BackupHistory => {
                let mut content = Vec::new();
                (&file)
                    .take(TEXT_BYTES)
                    .read_to_end(&mut content)
                    .map_err(|e| unreadable(&path, e))?;
                let stored = archive.store_file(name, whose, &content).map_err(wrong)?;
                !stored.is_new()
            }
            Kind::Segment | Kind::Partial => {
                let size = header(&mut file, &path)?.segment_size;
                let stem = name.trim_end_matches(".partial");
                let segment = WalSegmentName::parse(stem, size).ok_or_else(|| {
                    Error::new(
                        ErrorKind::Damaged,
                        format!("there is no WAL segment \"{stem}\" where segments have {size}"),
                    )
                })?;
                let whole = match kind {
                    Kind::Partial => None,
                    _ => {
                        let stored = archive.store_segment(
                            segment,
                            size,
                            whose,
                            &mut file,
                            self.options.level,
                        );
                        match stored {
                            Err(RepositoryError::WalUnfinished { .. })
                                if self.was_left_in(segment, size) =>
                            {
                                file.rewind().map_err(|e| unreadable(&path, e))?;
                                None
                            }
                            other => Some(!other.map_err(wrong)?.is_new()),
                        }
                    }
                };
                match whole {
                    Some(present) => present,
                    None => {
                        let stored = archive
                            .store_partial(segment, size, whose, &mut file, self.options.level)
                            .map_err(wrong)?;
                        stored.new_bytes == 0
                    }
                }
            }
        };
        if mark(&file)? != before {
            return Err(
                Error::failed(format!("\"{}\" changed while it was read", path.display()))
                    .hint("A file is archived when the server has finished it. Who wrote to it?"),
            );
        }
        Ok((before, present))
    }
}

/// The files that the server has marked as ready, with their kinds (`XLogArchiveNotify`, xlogarchive.c).
fn ready(status: &Path) -> HashMap<String, Kind> {
    fs::read_dir(status)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let file = entry.file_name();
            let name = file.to_str()?.strip_suffix(".ready")?;
            Some((name.to_owned(), Kind::of(name)?))
        })
        .collect()
}

/// The timeline that a WAL file's name begins with.
fn timeline(name: &str) -> TimelineId {
    let digits = name
        .get(..8)
        .and_then(|digits| u32::from_str_radix(digits, 16).ok());
    TimelineId(digits.unwrap_or_default())
}

/// The header at the beginning of a WAL segment; the file is left at its beginning.
fn header(file: &mut File, path: &Path) -> Result<WalLongHeader> {
    let mut bytes = [0; WAL_LONG_HEADER_SIZE];
    let read = file.read_exact(&mut bytes).and_then(|()| file.rewind());
    match read {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!(
                    "WAL file \"{}\" ends before its header does",
                    path.display()
                ),
            ));
        }
        Err(e) => return Err(unreadable(path, e)),
    }
    WalLongHeader::parse(&bytes).map_err(|e| {
        Error::new(
            ErrorKind::Damaged,
            format!("WAL file \"{}\" does not begin as one", path.display()),
        )
        .because(e)
    })
}

fn unreadable(path: &Path, e: io::Error) -> Error {
    let error = Error::failed(format!("could not read \"{}\"", path.display())).because(e);
    if path.is_relative() && !path.exists() {
        return error.hint("A relative name is taken from the data directory, which is where the server calls archive_command.");
    }
    error
}

/// An error with its causes, in one line.
fn in_full(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_name() {
        for (name, kind) in [
            ("000000010000000000000002", Some(Kind::Segment)),
            ("000000010000000000000002.partial", Some(Kind::Partial)),
            ("00000002.history", Some(Kind::History)),
            (
                "000000010000000000000002.00000028.backup",
                Some(Kind::BackupHistory),
            ),
            ("000000010000000000000002.ready", None),
            ("00000001000000000000000g", None),
            ("RECOVERYXLOG", None),
            ("", None),
        ] {
            assert_eq!(Kind::of(name), kind, "{name}");
        }
        assert_eq!(timeline("0000000A.history"), TimelineId(10));
        assert!(Kind::History < Kind::Segment);
    }
}
