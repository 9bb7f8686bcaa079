//! Putting a backup back: the mirror of taking it. A planner reads the manifest, workers fetch ranges of packs, prove
//! every frame and write it where it belongs, a syncer keeps the disk busy; `global/pg_control` gets its name last.

mod apply;
pub(crate) mod finish;
mod plan;
pub(crate) mod requirements;
pub(crate) mod settings;
mod target;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use leeward_pgformat::{ControlFile, Lsn, RequiredSettings, TablespaceMap, TimelineId};
use leeward_postgres::known_faults::recovery_warning;
use leeward_repository::catalog::Cluster;
use leeward_repository::file_path::FilePath;
use leeward_repository::layout;
use leeward_repository::manifest::{Content, FileKind, ManifestReader};
use leeward_repository::store::Store;
use leeward_repository::summary::{BackupSummary, Owner};
use leeward_repository::url::RepositoryUrl;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer, Phase};
use crate::frames::Packs;
use crate::recovery::choose::{RecoveryPlan, RecoveryRoute, choose};
use crate::recovery::replay::Requirements;
use crate::recovery::sources::BackupRange;
use crate::recovery::{RecoveryOptions, StopPoint};
use crate::repository;
use apply::{FileSystems, Worker};
use plan::{Planner, SetAside};
use target::{LinkedTablespace, Target};

/// Workers for a bucket, where answers are far away and many have to be under way.
const REMOTE_WORKERS: usize = 12;

/// The disk is put to work whenever so much has been written, so that little is left to sync at the end.
const SYNC_EVERY_BYTES: u64 = 256 << 20;

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
    let backup = BackupRange::of(&summary);
    let made_by_replay =
        requirements::check_tablespaces(&requirements, &backup, &options.tablespaces)?;
    let manifest = open_manifest(store, &cluster, &summary)?;
    let linked = linked_tablespaces(&manifest, &summary)?;
    let target = Target::check(&options.to, &linked, &options.tablespaces)?;
    let control_file = control_file(&manifest, &summary)?;
    requirements.settings = requirements
        .settings
        .max(required_settings(&control_file, &summary)?);
    check_space(&target, &summary)?;
    let mark = target.prepare(&control_file)?;
    notes.extend(requirements::make_tablespaces(&made_by_replay)?);
    notes.extend(requirements::extensions_note(&requirements, &summary.id));
    let file_systems = FileSystems::open(&target)?;
    let run = Run {
        store,
        cluster: cluster.name(),
        summary: &summary,
        manifest: &manifest,
        target: &target,
        settings: settings::Settings {
            backup: &summary.id,
            recovery: &options.recovery,
            route: &route,
        },
        requirements: &requirements,
        file_systems,
        observe,
    };

    observe(Event::Phase(Phase::Restoring));
    observe(Event::Total(summary.size_bytes));
    let workers = options
        .threads
        .unwrap_or_else(|| default_workers(store.location()))
        .max(1);
    let (aside, written_bytes) = run.write_files(workers)?;
    finish::write_wal(&cluster, &summary, &aside.wal, &target)?;
    finish::reserve_timelines(&target, &reserved_timelines)?;
    notes.extend(run.complete(&aside)?);
    notes.extend(run.settings.afterwards());
    notes.extend(recovery_warning(&summary.postgres_version));
    mark.complete()?;
    Ok(RestoreOutcome {
        recovery: outcome(&route, &summary),
        summary,
        data_directory: target.path,
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
    target: &'a Target,
    settings: settings::Settings<'a>,
    requirements: &'a Requirements,
    file_systems: FileSystems,
    observe: Observer<'a>,
}

impl Run<'_> {
    /// Writes every file of the manifest but those set aside; returns them, and the bytes written.
    fn write_files(&self, workers: usize) -> Result<(SetAside, u64)> {
        let written = AtomicU64::new(0);
        let stopped = AtomicBool::new(false);
        let (jobs, work) = bounded(workers);
        let (finished, ended) = bounded::<()>(0);
        let store = self.store.as_ref();
        let worker = Worker {
            store,
            observe: self.observe,
            written: &written,
            stopped: &stopped,
        };
        let aside = std::thread::scope(|scope| {
            let packs = Packs::new(
                store,
                self.cluster,
                &self.summary.id,
                self.manifest.sources(),
            );
            let planner = Planner::new(self.target, packs, jobs, self.observe);
            let planner = scope.spawn(move || planner.run(self.manifest));
            let workers: Vec<_> = (0..workers)
                .map(|_| {
                    let (worker, work) = (&worker, work.clone());
                    scope.spawn(move || worker.run(&work))
                })
                .collect();
            drop(work);
            let syncer = scope.spawn(|| keep_syncing(&self.file_systems, &written, &ended));
            let mut failure = None;
            for worker in workers {
                // The first failure is the one to tell.
                if let Err(e) = joined(worker.join()) {
                    failure.get_or_insert(e);
                }
            }
            let aside = joined(planner.join());
            drop(finished);
            let synced = joined(syncer.join());
            match failure {
                Some(e) => Err(e),
                None => synced.and(aside),
            }
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
        target::write_durably(&self.target.place(Path::new("backup_label")), label)?;
        if let Some(map) = &aside.tablespace_map
            && let Some(map) = finish::tablespace_map(map, self.target)?
        {
            target::write_durably(&self.target.place(Path::new("tablespace_map")), &map)?;
        }
        let (adoption, mut notes) = finish::adopt_configuration(self.target, self.summary)?;
        let (raised, note) = requirements::settings_to_raise(self.requirements.settings, &adoption);
        notes.extend(note);
        finish::write_recovery(self.target, &self.settings, &raised)?;
        aside.set_directory_modes()?;
        if rustix::process::geteuid().is_root() {
            let owner = owner(&self.summary.owner);
            let mut roots: Vec<&Path> = vec![&self.target.path];
            roots.extend(
                self.target
                    .tablespaces
                    .values()
                    .map(|tablespace| tablespace.place.as_path()),
            );
            finish::give_to(owner, &roots)?;
            aside.set_other_owners()?;
            if owner.0 == 0 {
                notes.push("Its files belong to root, as in the backup, and PostgreSQL does not run as root: chown them first.".to_owned());
            }
        }
        (self.observe)(Event::Phase(Phase::Syncing));
        self.file_systems.sync()?;
        Ok(notes)
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

fn joined<T>(result: std::thread::Result<Result<T>>) -> Result<T> {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
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

fn check_space(target: &Target, summary: &BackupSummary) -> Result<()> {
    let place = target
        .path
        .ancestors()
        .find(|place| place.exists())
        .unwrap_or(Path::new("/"));
    let Ok(space) = rustix::fs::statvfs(place) else {
        return Ok(());
    };
    let free = space.f_bavail * space.f_frsize;
    let needed = summary.size_bytes + summary.wal.count * summary.wal.segment_size_bytes;
    // Tablespaces may go elsewhere, and holes take no room, so only the clear case is refused.
    if target.tablespaces.is_empty() && free < needed / 8 {
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

/// Syncs the target's file system whenever enough has been written, until the workers have ended.
fn keep_syncing(
    file_systems: &FileSystems,
    written: &AtomicU64,
    ended: &Receiver<()>,
) -> Result<()> {
    let mut synced = 0;
    loop {
        match ended.recv_deadline(Instant::now() + Duration::from_millis(50)) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        let now = written.load(Ordering::Relaxed);
        if now - synced >= SYNC_EVERY_BYTES {
            file_systems.sync()?;
            synced = now;
        }
    }
}

/// Who is to own what root restores: the user of that name here, else the number it had.
fn owner(stored: &Owner) -> (u32, u32) {
    let here = |file: &str, name: &Option<String>| {
        let name = name.as_deref()?;
        let lines = std::fs::read_to_string(file).ok()?;
        let line = lines
            .lines()
            .find(|line| line.split(':').next() == Some(name))?;
        line.split(':').nth(2)?.parse().ok()
    };
    (
        here("/etc/passwd", &stored.user).unwrap_or(stored.uid),
        here("/etc/group", &stored.group).unwrap_or(stored.gid),
    )
}
