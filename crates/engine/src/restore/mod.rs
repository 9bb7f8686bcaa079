//! Putting a backup back: the mirror of taking it. A planner reads the manifest, workers fetch ranges of packs, prove
//! every frame and write it where it belongs, a syncer keeps the disk busy; `global/pg_control` gets its name last.

mod apply;
mod destination;
pub(crate) mod finish;
mod folder;
mod owner;
mod plan;
mod record;
pub(crate) mod requirements;
pub(crate) mod settings;
mod tree;
mod unfinished;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use leeward_pgformat::{ControlFile, Lsn, RequiredSettings, TablespaceMap, TimelineId};
use leeward_postgres::known_faults::recovery_warning;
use leeward_repository::catalog::Cluster;
use leeward_repository::file_path::FilePath;
use leeward_repository::layout;
use leeward_repository::manifest::{Content, FileKind, ManifestReader};
use leeward_repository::store::Store;
use leeward_repository::summary::BackupSummary;
use leeward_repository::url::RepositoryUrl;

use crate::admission::UNFINISHED_CONTROL_FILE;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer, Phase};
use crate::frames::Packs;
use crate::pipeline::{self, Next, Receiver, StageResult};
use crate::recovery::choose::{RecoveryPlan, RecoveryRoute, choose};
use crate::recovery::one_history::check_one_history;
use crate::recovery::replay::Requirements;
use crate::recovery::sources::BackupRange;
use crate::recovery::{RecoveryOptions, StopPoint};
use crate::repository;
use apply::{OpenFiles, Worker};
use destination::{Destination, LinkedTablespace};
use plan::{Planner, SetAside};
use requirements::ReplayedTablespaces;
use tree::Tree;
use unfinished::Unfinished;

/// Workers for a bucket, where answers are far away and many have to be under way.
const REMOTE_WORKERS: usize = 12;

/// The disk is put to work whenever so much has been written, so that little is left to sync at the end.
const SYNC_EVERY_BYTES: u64 = 256 << 20;
/// The interval at which the number of bytes written is checked.
const SYNC_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// What is to be restored, and where to.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The cluster's name in the repository; needed where there are several.
    pub cluster: Option<String>,
    /// An id or a unique prefix of one. Without one, or with `latest`, the newest that recovery can get there from.
    pub backup: Option<String>,
    /// What the server is to do with it.
    pub recovery: RecoveryOptions,
    /// An absent or empty directory.
    pub to: PathBuf,
    /// New places of tablespaces, by their old ones.
    pub tablespaces: Vec<(PathBuf, PathBuf)>,
    /// Workers; by default twice the cores, or more for a bucket.
    pub threads: Option<usize>,
}

/// What the server will do when it is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryOutcome {
    /// It recovers from what came with the backup, to the LSN, and opens.
    OwnWal(Lsn),
    /// It recovers through `restore_command` along `timeline`, to `stop`, or to the end of WAL.
    Archive {
        /// The timeline it follows.
        timeline: TimelineId,
        /// Where it stops; `None` at the end of WAL.
        stop: Option<StopPoint>,
        /// Where the WAL ends that it recovers from.
        end: Lsn,
    },
    /// It recovers through `restore_command`, and goes on as a standby.
    Standby,
}

/// A finished restore.
#[derive(Debug)]
pub struct RestoreOutcome {
    /// The backup.
    pub summary: BackupSummary,
    /// What the server will do.
    pub recovery: RecoveryOutcome,
    /// The data directory.
    pub data_directory: PathBuf,
    /// Bytes written.
    pub written_bytes: u64,
    /// What to know before starting a server on it.
    pub notes: Vec<String>,
}

/// Restores a backup from `store`.
///
/// # Errors
/// [`ErrorKind::Refused`] when the directory is not free, [`ErrorKind::Damaged`] naming what is damaged. No server starts
/// on what a failed restore leaves.
pub fn restore(
    store: &Arc<dyn Store>,
    options: &RestoreOptions,
    observe: Observer<'_>,
) -> Result<RestoreOutcome> {
    observe(Event::Phase(Phase::Preparing));
    let cluster = repository::open(store, options.cluster.as_deref())?;
    let RecoveryPlan {
        summary,
        route,
        mut requirements,
        reserved_timelines,
        mut notes,
    } = choose(&cluster, options.backup.as_deref(), &options.recovery)?;
    check_one_history(&cluster, &summary)?;
    let backup = BackupRange::of(&summary);
    requirements::check_mapping(&requirements, &backup, &options.tablespaces)?;
    let manifest = open_manifest(store, &cluster, &summary)?;
    let linked = linked_tablespaces(&manifest, &summary)?;
    let destination =
        Destination::check(&options.to, &linked, &options.tablespaces, &summary.owner)?;
    let control_file = control_file(&manifest, &summary)?;
    let made_by_replay = requirements::check_places(&requirements, &backup, &destination)?;
    requirements.settings = requirements
        .settings
        .max(required_settings(&control_file, &summary)?);
    plan::check_names(&manifest, summary.major)?;
    check_space(&destination, &summary)?;
    let unfinished = Unfinished::begin(&destination, &summary.id)?;
    notes.extend(made_by_replay.make(&destination)?);
    notes.extend(requirements::extensions_note(&requirements, &summary.id));
    let tree = unfinished.tree(&destination);
    let run = Run {
        store,
        cluster: cluster.name(),
        summary: &summary,
        manifest: &manifest,
        destination: &destination,
        tree: &tree,
        settings: settings::Settings {
            backup: &summary.id,
            recovery: &options.recovery,
            route: &route,
        },
        requirements: &requirements,
        reserved_timelines: &reserved_timelines,
        made_by_replay: &made_by_replay,
        observe,
    };

    observe(Event::Phase(Phase::Restoring));
    observe(Event::Total(summary.size_bytes));
    let workers = options
        .threads
        .unwrap_or_else(|| default_workers(store.location()))
        .max(1);
    run.write_control_file(&control_file)?;
    let (aside, written_bytes) = run.write_files(workers)?;
    finish::write_wal(&cluster, &summary, &aside.wal, &tree)?;
    notes.extend(run.complete(&aside)?);
    notes.extend(run.settings.afterwards());
    notes.extend(recovery_warning(&summary.postgres_version));
    notes.extend(unfinished.finish(&destination)?);
    Ok(RestoreOutcome {
        recovery: outcome(&route, &summary),
        summary,
        data_directory: destination.path,
        written_bytes,
        notes,
    })
}

/// One restore under way.
struct Run<'a> {
    store: &'a Arc<dyn Store>,
    cluster: &'a str,
    summary: &'a BackupSummary,
    manifest: &'a ManifestReader,
    destination: &'a Destination,
    tree: &'a Tree,
    settings: settings::Settings<'a>,
    requirements: &'a Requirements,
    reserved_timelines: &'a [TimelineId],
    made_by_replay: &'a ReplayedTablespaces,
    observe: Observer<'a>,
}

impl Run<'_> {
    /// Writes the control file under the name that it keeps until everything else is there.
    fn write_control_file(&self, bytes: &[u8]) -> Result<()> {
        let writer = self.tree.writer()?;
        writer.make_directory(Path::new("global"))?;
        writer.write(Path::new(UNFINISHED_CONTROL_FILE), bytes, 0o600)
    }

    /// Writes every file of the manifest but those set aside; returns them, and the bytes written.
    fn write_files(&self, workers: usize) -> Result<(SetAside, u64)> {
        let written = AtomicU64::new(0);
        let store = self.store.as_ref();
        let files = OpenFiles::default();
        let worker = Worker {
            store,
            tree: self.tree,
            files: &files,
            observe: self.observe,
            written: &written,
        };
        let aside = pipeline::run(|pipeline| {
            let (jobs, work) = pipeline.channel(workers);
            let (writing, written_all) = pipeline.channel::<()>(0);
            let packs = Packs::new(
                store,
                self.cluster,
                &self.summary.id,
                self.manifest.sources(),
            );
            let mut planner =
                Planner::new(self.tree, self.summary.major, packs, jobs, self.observe);
            let planner = pipeline.spawn("plan", move || planner.run(self.manifest))?;
            let mut writers = Vec::new();
            for _ in 0..workers {
                let (worker, work) = (&worker, work.clone());
                writers.push(pipeline.spawn("write", move || worker.run(&work))?);
            }
            let progress = &written;
            let syncer = pipeline.spawn("sync", move || {
                keep_syncing(self.tree, progress, &written_all)
            })?;
            for writer in writers {
                writer.join()?;
            }
            // Ends the syncer.
            drop(writing);
            syncer.join()?;
            planner.join()
        })?;
        Ok((aside, written.load(Ordering::Relaxed)))
    }

    /// Everything between the last frame and the rename that makes the directory startable.
    fn complete(&self, aside: &SetAside) -> Result<Vec<String>> {
        let label = aside.backup_label.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Damaged,
                format!(
                    "the manifest of backup {} has no backup label",
                    self.summary.id
                ),
            )
        })?;
        let writer = self.tree.writer()?;
        writer.write(Path::new("backup_label"), label, 0o600)?;
        if let Some(map) = &aside.tablespace_map
            && let Some(map) = finish::tablespace_map(map, self.destination)?
        {
            writer.write(Path::new("tablespace_map"), &map, 0o600)?;
        }
        finish::reserve_timelines(&writer, self.reserved_timelines)?;
        let (adoption, mut notes) =
            finish::adopt_configuration(&writer, self.destination, aside, self.summary)?;
        let (raised, note) = requirements::settings_to_raise(self.requirements.settings, &adoption);
        notes.extend(note);
        finish::write_recovery(&writer, &self.settings, &raised)?;
        for (place, mode) in &aside.directories {
            writer.set_directory_mode(place, *mode)?;
        }
        self.made_by_replay.make_inside(&writer)?;
        finish::make_links(&writer, self.destination, aside)?;
        drop(writer);
        notes.extend(self.notes(aside));
        (self.observe)(Event::Phase(Phase::Syncing));
        self.tree.sync_file_systems()?;
        Ok(notes)
    }

    /// Lists the manifest entries that were not restored as the backup had them.
    fn notes(&self, aside: &SetAside) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(user) = &self.destination.user {
            notes.push(format!("Everything in it belongs to {}.", user.describe()));
        }
        if let Some(others) = aside.others.describe() {
            notes.push(format!(
                "Files of other users belong to the server's user now, with mode 0600: {others}."
            ));
        }
        if let Some(left_out) = aside.left_out.describe() {
            notes.push(format!("Not restored: {left_out}."));
        }
        if let Some(links) = aside.links_in_words() {
            notes.push(format!(
                "Links are as they were, whatever they lead to on this host: {links}."
            ));
        }
        notes
    }
}

/// What the server will do, for the caller.
fn outcome(route: &RecoveryRoute, summary: &BackupSummary) -> RecoveryOutcome {
    match route {
        RecoveryRoute::OwnWal { stop } => {
            RecoveryOutcome::OwnWal(stop.map_or(summary.stop_lsn, |stop| stop.lsn))
        }
        RecoveryRoute::Archive {
            timeline,
            stop,
            end,
            ..
        } => RecoveryOutcome::Archive {
            timeline: timeline.id(),
            stop: *stop,
            end: *end,
        },
        RecoveryRoute::Standby => RecoveryOutcome::Standby,
    }
}

/// The settings of the server that was backed up, which the control file keeps.
pub(crate) fn required_settings(
    control_file: &[u8],
    summary: &BackupSummary,
) -> Result<RequiredSettings> {
    let control = ControlFile::parse(control_file).map_err(|e| {
        Error::new(
            ErrorKind::Damaged,
            format!("backup {} has no usable control file", summary.id),
        )
        .because(e)
    })?;
    Ok(control.required_settings())
}

pub(crate) fn open_manifest(
    store: &Arc<dyn Store>,
    cluster: &Cluster,
    summary: &BackupSummary,
) -> Result<ManifestReader> {
    let key = layout::manifest(cluster.name(), &summary.id)?;
    Ok(ManifestReader::open(
        Arc::clone(store),
        key,
        summary.manifest.size_bytes,
        summary.manifest.hash,
    )?)
}

fn linked_tablespaces(
    manifest: &ManifestReader,
    summary: &BackupSummary,
) -> Result<Vec<LinkedTablespace>> {
    let map = inline(manifest, b"tablespace_map")?.unwrap_or_default();
    let map = TablespaceMap::parse(&map).map_err(|e| {
        Error::new(
            ErrorKind::Damaged,
            "could not make sense of the tablespace map",
        )
        .because(e)
    })?;
    let linked = summary
        .tablespaces
        .iter()
        .filter(|tablespace| !tablespace.in_place);
    Ok(linked
        .map(|tablespace| LinkedTablespace {
            name: tablespace.oid.to_string(),
            location: PathBuf::from(&tablespace.path),
            made_by_replay: !map
                .entries
                .iter()
                .any(|entry| entry.tablespace == tablespace.oid),
        })
        .collect())
}

/// A small file that the manifest itself holds.
fn inline(manifest: &ManifestReader, path: &[u8]) -> Result<Option<Vec<u8>>> {
    let record = manifest.find(&FilePath::in_data_directory(path))?;
    Ok(match record.map(|record| record.kind) {
        Some(FileKind::File {
            content: Content::Inline(bytes),
            ..
        }) => Some(bytes),
        _ => None,
    })
}

pub(crate) fn control_file(manifest: &ManifestReader, summary: &BackupSummary) -> Result<Vec<u8>> {
    inline(manifest, b"global/pg_control")?.ok_or_else(|| {
        Error::new(
            ErrorKind::Damaged,
            format!("the manifest of backup {} has no control file", summary.id),
        )
    })
}

fn check_space(destination: &Destination, summary: &BackupSummary) -> Result<()> {
    let place = destination
        .path
        .ancestors()
        .find(|place| place.exists())
        .unwrap_or(Path::new("/"));
    let Ok(space) = rustix::fs::statvfs(place) else {
        return Ok(());
    };
    let free = space.f_bavail * space.f_frsize;
    let wal = summary
        .wal
        .count
        .saturating_mul(summary.wal.segment_size_bytes);
    let needed = summary.size_bytes.saturating_add(wal);
    // Tablespaces may go elsewhere, and holes take no room, so only the clear case is refused.
    if destination.tablespaces.is_empty() && free < needed / 8 {
        return Err(Error::failed(format!(
            "not enough room in \"{}\": {needed} bytes are to be written and {free} are free",
            place.display()
        ))
        .hint("Restore to another file system; nothing was written."));
    }
    Ok(())
}

fn default_workers(location: &RepositoryUrl) -> usize {
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    match location {
        RepositoryUrl::Local(_) => (cores * 2).min(16),
        RepositoryUrl::Bucket { .. } => REMOTE_WORKERS,
    }
}

/// Syncs the target's file system whenever enough has been written, until everything is.
fn keep_syncing(tree: &Tree, written: &AtomicU64, written_all: &Receiver<()>) -> StageResult<()> {
    let mut synced = 0;
    while written_all.recv_deadline(Instant::now() + SYNC_CHECK_INTERVAL)? != Next::End {
        let now = written.load(Ordering::Relaxed);
        if now - synced >= SYNC_EVERY_BYTES {
            tree.sync_file_systems()?;
            synced = now;
        }
    }
    Ok(())
}

/// An operation on a file of the destination that failed.
fn could_not(what: &str, path: &Path, source: io::Error) -> Error {
    let full = source.kind() == io::ErrorKind::StorageFull;
    let error = Error::failed(format!("could not {what} \"{}\"", path.display())).because(source);
    if full {
        error.hint("Free some space or restore elsewhere; the next restore clears away what this one left.")
    } else {
        error
    }
}
