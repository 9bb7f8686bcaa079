//! Taking a backup of a running server, in the order of design rule 4.
//!
//! One thread holds the session and watches the server; a planner cuts the data directory into batches; copiers read,
//! check and compress; a collector puts frames into packs and files into the manifest; a finisher makes packs durable.
//! Everything between them is bounded, and the first failure ends all of them.

mod collect;
mod copy;
mod copying;
mod databases;
mod horizon;
mod objects;
mod plan;
mod preflight;
mod replayed;
mod required;
mod segments;
mod source;
mod summary;
mod wal;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use leeward_pgformat::Lsn;
use leeward_pgformat::control_file::{ControlFile, DbState};
use leeward_pgformat::{BackupLabel, TablespaceMap, TimelineId};
use leeward_postgres::backup_session::{BackupFrom, BackupSession, BackupStop, Position};
use leeward_postgres::configuration_files::{OutsideFiles, outside_files};
use leeward_postgres::configuration_syntax::Syntax;
use leeward_postgres::connection::Connection;
use leeward_postgres::data_directory::DataDirectory;
use leeward_postgres::known_faults::{end_of_life_warning, standby_warning};
use leeward_postgres::server_facts::{Role, ServerFacts};
use leeward_repository::backup_id::BackupId;
use leeward_repository::catalog::Cluster;
use leeward_repository::codec::FrameCompression;
use leeward_repository::file_path::FilePath;
use leeward_repository::layout;
use leeward_repository::lease::Lease;
use leeward_repository::manifest::{Content, FileKind, FileRecord, ManifestWriter};
use leeward_repository::store::Store;
use leeward_repository::summary::BackupSummary;

pub use collect::DamagedFile;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer, Phase};
use crate::recovery::one_history::check_one_history;
use crate::repository::{self, Writable};
use collect::Collected;
use copying::{Copying, Pages};
use required::{Required, Stored};
use source::PageRules;
use wal::PgWal;

/// What a backup is to be.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// The data directory of the running server.
    pub pgdata: PathBuf,
    /// libpq's connection string or URI, where the environment and `postmaster.pid` are not enough.
    pub conninfo: Option<String>,
    /// The cluster's name in the repository.
    pub cluster: String,
    /// Which role the server must have.
    pub from: BackupFrom,
    /// How frames are compressed.
    pub compression: FrameCompression,
    /// Copiers; by default twice the cores.
    pub threads: Option<usize>,
}

/// A finished backup.
#[derive(Debug)]
pub struct BackupOutcome {
    /// What was committed.
    pub summary: BackupSummary,
    /// Damaged pages, by file.
    pub damaged: Vec<DamagedFile>,
    /// Where the server was when the backup began.
    pub before: Position,
    /// Where it was when the pages were copied.
    pub after: Position,
    /// Frames whose pages did not come back from the page transform and were stored without it: a mistake of ours.
    pub transform_differences: u64,
}

/// Backs up the server that runs on `options.pgdata` into `store`.
///
/// # Errors
/// [`Error`] with its kind; nothing is listed in the repository then.
pub fn backup(
    store: &Arc<dyn Store>,
    options: &BackupOptions,
    observe: Observer<'_>,
) -> Result<BackupOutcome> {
    let started = Instant::now();
    observe(Event::Phase(Phase::Preparing));
    let directory = DataDirectory::open(&options.pgdata).map_err(|e| {
        Error::new(ErrorKind::Usage, "could not use this data directory")
            .because(e)
            .hint("Name the directory of the running server with --pgdata or PGDATA.")
    })?;
    let (control, _) = directory
        .control_file()
        .map_err(|e| Error::failed("could not read the control file").because(e))?;
    let target = preflight::target(options, &directory);
    let mut connection = Connection::connect(&target).map_err(Error::from)?;
    let facts = ServerFacts::read(&mut connection).map_err(Error::from)?;
    preflight::check_same_server(&mut connection, &facts, &control, &directory)?;
    preflight::check_repository_outside(store, &directory)?;
    facts.check_supported().map_err(Error::from)?;
    options.from.check_server(&facts)?;
    facts.check_privileges().map_err(Error::from)?;
    warn_of_version(&facts, observe);
    let server = required::Server {
        directory: &directory,
        version_directory: control.tablespace_version_directory(),
        target: &target,
        observe,
    };
    let required = Required::before(&mut connection, &server)?;

    let writable = Writable::open(store, observe)?;
    let store = &writable.store;
    let cluster = repository::open_or_create(
        store,
        &options.cluster,
        control.system_identifier,
        control.checkpoint_timeline,
    )?;
    let mut lease = repository::take_lease(&writable, &options.cluster, "backup", observe)?;
    repository::remove_unfinished(&cluster, observe)?;

    observe(Event::Phase(Phase::Starting));
    let id = cluster.new_backup_id(jiff_now())?;
    let session = BackupSession::start(connection, &format!("leeward {id}"), options.from)
        .map_err(Error::from)?;
    let run = Run {
        store,
        options,
        directory: &directory,
        server: &server,
        cluster: &cluster,
        id: &id,
        observe,
    };
    let outcome = run.take(session, &facts, required, &mut lease, started);
    if outcome.is_err() {
        // Best effort: the next run removes what stays.
        let _ = cluster.remove(&id);
    }
    let released = lease.release();
    let outcome = outcome?;
    if let Err(e) = released {
        observe(Event::Notice(format!(
            "The backup is complete, but its lease could not be given back: {e}."
        )));
    }
    Ok(outcome)
}

/// Tells of a major version past its end, and of faults of a standby's minor version.
fn warn_of_version(facts: &ServerFacts, observe: Observer<'_>) {
    let ended = facts.version.major.and_then(end_of_life_warning);
    let faults = (facts.role == Role::Standby)
        .then(|| standby_warning(&facts.version.text))
        .flatten();
    for warning in ended.into_iter().chain(faults) {
        observe(Event::Notice(warning));
    }
}

fn jiff_now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// One backup under way.
struct Run<'a> {
    store: &'a Arc<dyn Store>,
    options: &'a BackupOptions,
    directory: &'a DataDirectory,
    server: &'a required::Server<'a>,
    cluster: &'a Cluster,
    id: &'a BackupId,
    observe: Observer<'a>,
}

impl Run<'_> {
    fn take(
        &self,
        mut session: BackupSession,
        facts: &ServerFacts,
        mut required: Required,
        lease: &mut Lease,
        started: Instant,
    ) -> Result<BackupOutcome> {
        let before = session.position()?;
        let (start_lsn, role) = (session.started().start_lsn, session.started().role);
        preflight::check_moves_along(self.directory, start_lsn)?;
        PgWal::open(self.directory)?.expect_begin(start_lsn, facts.wal_segment_size)?;
        required.started(&mut session)?;
        let mut stored = Stored::new(&required);
        let outside = self.outside(facts);
        let mut manifest = ManifestWriter::create(
            self.store.as_ref(),
            &layout::manifest(&self.options.cluster, self.id)?,
        )
        .map_err(|e| repository::doing("could not begin the manifest", e))?;

        (self.observe)(Event::Phase(Phase::Copying));
        let rules = PageRules {
            checksums: facts.data_checksums,
            start_lsn,
        };
        let Pages {
            mut collected,
            after,
            transform_differences,
        } = Copying {
            store: self.store.as_ref(),
            cluster: &self.options.cluster,
            backup: self.id,
            directory: self.directory,
            outside: &outside,
            role,
            rules,
            compression: self.options.compression,
            threads: self.options.threads,
            observe: self.observe,
        }
        .run(&mut || Ok(session.position()?), &mut manifest, &mut stored)?;
        let catalogs = session.catalogs()?;
        let lost = required.after(stored, catalogs.clone(), self.server)?;
        collected.damaged.extend(lost);

        let replay = match role {
            Role::Standby => Some(replayed::end_of_replay(
                &PgWal::open(self.directory)?,
                &mut session,
                facts.wal_segment_size,
            )?),
            Role::Primary => None,
        };
        let consistent = self.add_control_file(role, replay, &mut manifest, &mut collected)?;
        let mut stop = session.stop()?;
        let label = BackupLabel::parse(&stop.backup_label).map_err(|e| {
            Error::failed("could not make sense of the backup label that the server returned")
                .because(e)
        })?;
        self.add_label(&stop, &mut manifest, &mut collected)?;

        (self.observe)(Event::Phase(Phase::StoringWal));
        let mut stop_timeline = self.stop_timeline(role)?;
        if let Some((lsn, timeline)) = consistent.filter(|(lsn, _)| *lsn > stop.stop_lsn) {
            (stop.stop_lsn, stop_timeline) = (lsn, timeline);
        }
        let stretch = wal::Stretch {
            system_identifier: facts.system_identifier,
            segment_size: facts.wal_segment_size,
            start: start_lsn,
            stop: stop.stop_lsn,
            timeline: stop_timeline,
        };
        let to = wal::Destination {
            store: self.store.as_ref(),
            cluster: &self.options.cluster,
            backup: self.id,
            level: wal::level(self.options.compression),
        };
        let pg_wal = PgWal::open(self.directory)?;
        let wal = wal::store_wal(&pg_wal, stretch, &to, self.observe)?;
        if let Some(copy) = wal.events.iter().find(|event| databases::is_copy(event)) {
            let changes = wal::directory_changes(&pg_wal, stretch, copy.begin())?;
            let exists = |oid| catalogs.database(oid).is_some();
            if let Some(lost) = databases::lost_copy(&wal.events, &changes, &exists) {
                return Err(lost.error(&|oid| {
                    let found = catalogs.database(oid).or_else(|| required.database(oid))?;
                    Some(found.name.clone())
                }));
            }
        }
        let records = wal.records;
        // A slot that was lost meanwhile may have let the server recycle what was being read.
        session.position()?;
        session.finish()?;

        (self.observe)(Event::Phase(Phase::Committing));
        for record in &records {
            manifest
                .add_wal(record)
                .map_err(|e| repository::doing("could not write the manifest", e))?;
        }
        let manifest = manifest
            .finish(&collected.packs)
            .map_err(|e| repository::doing("could not store the manifest", e))?;
        let damaged = std::mem::take(&mut collected.damaged);
        let summary = summary::summary(&summary::Parts {
            run: self,
            facts,
            role,
            start_lsn,
            label: &label,
            stop_lsn: stop.stop_lsn,
            consistent_lsn: consistent.map(|(lsn, _)| lsn),
            stop_timeline,
            wal: &records,
            collected: &collected,
            damaged: &damaged,
            manifest: &manifest,
            outside: &outside,
            before: &before,
            after: &after,
            elapsed: started.elapsed(),
        })?;
        objects::check_stored(
            self.store.as_ref(),
            (&self.options.cluster, self.id),
            &collected.packs,
            &records,
            &manifest,
        )?;
        check_one_history(self.cluster, &summary)?;
        lease.still_held().map_err(|e| {
            Error::new(
                ErrorKind::Held,
                "the lease on this cluster was lost before the backup could be committed",
            )
            .because(e)
        })?;
        self.cluster
            .commit(&summary)
            .map_err(|e| repository::doing("could not commit the backup", e))?;
        // Whoever took the lease over between these two may have removed our packs as left behind.
        if let Err(e) = lease.still_held() {
            self.cluster.remove(self.id)?;
            return Err(Error::new(ErrorKind::Held, "the lease on this cluster was lost while the backup was committed, so it was taken back").because(e));
        }
        self.tell_new_tablespaces(&stop, &summary);
        Ok(BackupOutcome {
            summary,
            damaged,
            before,
            after,
            transform_differences,
        })
    }

    /// A tablespace made while the backup ran is in it, but replay makes its link anew, to its original place.
    fn tell_new_tablespaces(&self, stop: &BackupStop, summary: &BackupSummary) {
        let map = TablespaceMap::parse(stop.tablespace_map.as_deref().unwrap_or_default())
            .unwrap_or_default();
        for tablespace in summary.tablespaces.iter().filter(|t| !t.in_place) {
            if !map
                .entries
                .iter()
                .any(|entry| entry.tablespace == tablespace.oid)
            {
                (self.observe)(Event::Notice(format!(
                    "Tablespace {} at \"{}\" was created while the backup ran. This backup can only be restored where that place is free; take another one.",
                    tablespace.oid, tablespace.path
                )));
            }
        }
    }

    fn outside(&self, facts: &ServerFacts) -> OutsideFiles {
        let named: Vec<(Syntax, &Path)> = [
            (Syntax::Settings, &facts.config_file),
            (Syntax::Rules, &facts.hba_file),
            (Syntax::Rules, &facts.ident_file),
            (Syntax::Hosts, &facts.hosts_file),
        ]
        .into_iter()
        .filter_map(|(syntax, file)| Some((syntax, file.as_deref()?)))
        .collect();
        if named.is_empty() {
            (self.observe)(Event::Notice(
                "The server does not tell this role where its configuration lies, so configuration outside the data directory is not backed up; \
                 grant pg_read_all_settings to change that."
                    .to_owned(),
            ));
        }
        let outside = outside_files(self.directory.path(), &named);
        for (path, reason) in &outside.unreadable {
            (self.observe)(Event::Notice(format!(
                "\"{}\" could not be read and is not part of the backup: {reason}.",
                path.display()
            )));
        }
        outside
    }

    /// `global/pg_control`, read last: its minimum recovery point then covers every page that was copied. Of a standby, that
    /// is where recovery is consistent (`read_backup_label`, src/backend/access/transam/xlogrecovery.c), and is returned; it is
    /// moved on to the end of `replay`.
    fn add_control_file(
        &self,
        role: Role,
        replay: Option<(Lsn, TimelineId)>,
        manifest: &mut ManifestWriter,
        collected: &mut Collected,
    ) -> Result<Option<(Lsn, TimelineId)>> {
        let (control, mut bytes) = self
            .directory
            .control_file()
            .map_err(|e| Error::failed("could not read the control file").because(e))?;
        let expected = match role {
            Role::Standby => DbState::InArchiveRecovery,
            Role::Primary => DbState::InProduction,
        };
        if control.state != expected {
            return Err(Error::failed(format!(
                "the server's state changed during the backup: its control file says \"{}\" instead of \"{expected}\"",
                control.state
            ))
            .hint("It was promoted, stopped or restarted; back up again."));
        }
        let known = (
            control.min_recovery_point,
            control.min_recovery_point_timeline,
        );
        let consistent = replay.map(|replay| replay.max(known));
        if let Some((lsn, timeline)) = consistent.filter(|consistent| *consistent > known) {
            bytes = ControlFile::with_min_recovery_point(&bytes, lsn, timeline)
                .map_err(|e| Error::failed("could not read the control file").because(e))?;
        }
        self.add_inline(b"global/pg_control", bytes, 0o600, manifest, collected)?;
        Ok(consistent)
    }

    fn add_label(
        &self,
        stop: &BackupStop,
        manifest: &mut ManifestWriter,
        collected: &mut Collected,
    ) -> Result<()> {
        self.add_inline(
            b"backup_label",
            stop.backup_label.clone().into_bytes(),
            0o600,
            manifest,
            collected,
        )?;
        match &stop.tablespace_map {
            Some(map) if !map.is_empty() => self.add_inline(
                b"tablespace_map",
                map.clone().into_bytes(),
                0o600,
                manifest,
                collected,
            ),
            _ => Ok(()),
        }
    }

    fn add_inline(
        &self,
        path: &[u8],
        bytes: Vec<u8>,
        mode: u32,
        manifest: &mut ManifestWriter,
        collected: &mut Collected,
    ) -> Result<()> {
        collected.files += 1;
        collected.size_bytes += bytes.len() as u64;
        let record = FileRecord {
            path: FilePath::in_data_directory(path),
            kind: FileKind::File {
                size: bytes.len() as u64,
                content: Content::Inline(bytes),
            },
            mode,
            owner: None,
            mtime: jiff_now().as_second(),
            damaged: Vec::new(),
        };
        manifest
            .add_file(&record)
            .map_err(|e| repository::doing("could not write the manifest", e))
    }

    /// The timeline of the stop LSN. A standby that followed its primary to a new timeline says so in its control file.
    fn stop_timeline(&self, role: Role) -> Result<TimelineId> {
        let (control, _) = self
            .directory
            .control_file()
            .map_err(|e| Error::failed("could not read the control file").because(e))?;
        Ok(match role {
            Role::Standby => control.min_recovery_point_timeline,
            Role::Primary => control.checkpoint_timeline,
        })
    }
}

impl From<leeward_postgres::error::Error> for Error {
    fn from(error: leeward_postgres::error::Error) -> Self {
        use leeward_postgres::error::Error as Postgres;
        let kind = match &error {
            Postgres::Declined { .. } => ErrorKind::Declined,
            Postgres::InvalidConninfo { .. }
            | Postgres::UnsupportedVersion { .. }
            | Postgres::UnsupportedBlockSize { .. } => ErrorKind::Usage,
            _ => ErrorKind::Failed,
        };
        let hint = error.hint();
        let mut ours = Error::new(kind, error.to_string());
        if let Some(hint) = hint {
            ours = ours.hint(hint);
        }
        ours
    }
}
