//! `restore_command`: one WAL file out of the repository. What the prefetcher has brought is taken from the spool;
//! everything else is fetched here.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use leeward_pgformat::control_file::ControlFile;
use leeward_pgformat::wal_segment::{
    WAL_LONG_HEADER_SIZE, WalLongHeader, WalSegmentName, WalSegmentSize,
    is_backup_history_file_name, is_history_file_name, is_wal_segment_name,
    parse_history_file_name,
};
use leeward_pgformat::{Lsn, SystemIdentifier, TimelineId};
use leeward_repository::catalog::{Cluster, Repository};
use leeward_repository::repository_error::RepositoryError;
use leeward_repository::store::Store;
use leeward_repository::url::RepositoryUrl;
use leeward_repository::wal_archive::WalArchive;

use super::backup_wal::{BackupWal, Cache, Look, backed_up_on, file_in_backups, in_backups};
use super::fetched::{Fetched, Take};
use super::server::ServerDirectories;
use super::target::{Target, unwritable};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::doing;

/// What is wanted, and from where.
#[derive(Clone, Debug)]
pub struct GetOptions {
    /// The repository, which is opened only if the spool does not hold the file.
    pub repository: RepositoryUrl,
    /// The cluster's name in it.
    pub cluster: String,
    /// The file's name (`%f`).
    pub name: String,
    /// Where it is wanted (`%p`).
    pub path: PathBuf,
    /// Whether to fetch ahead.
    pub prefetch: bool,
    /// Whether the caller knows that WAL is missing where recovery will end, so that nobody needs to be told.
    pub hole_is_known: bool,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GetOutcome {
    /// The file is where it was wanted.
    Found,
    /// The repository holds no such file: proven, not assumed.
    Absent,
}

/// What a process that fetches ahead is told when it is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefetchCall {
    /// Where its files go.
    pub folder: PathBuf,
    /// The WAL segment that the server has; what comes after it is to be fetched.
    pub after: String,
    /// The size of the cluster's WAL segments, in bytes.
    pub segment_size_bytes: u64,
    /// The cluster whose WAL the server needs.
    pub system_identifier: SystemIdentifier,
}

/// How the caller does what depends on the program: open the store, and start the process that fetches ahead.
#[derive(Clone, Copy)]
pub struct GetMeans<'a> {
    /// Opens the store.
    pub open: &'a dyn Fn() -> Result<Arc<dyn Store>>,
    /// Starts a process of its own that calls [`super::prefetch`].
    pub start: &'a dyn Fn(&PrefetchCall) -> io::Result<()>,
}

/// Brings one WAL file to where the server wants it.
///
/// # Errors
/// Everything but the file and its proven absence; also a hole: where the archive holds later WAL of the timeline, and
/// the end of recovery would be a silent loss.
pub fn get(means: GetMeans<'_>, options: &GetOptions) -> Result<GetOutcome> {
    let name = options.name.as_str();
    let server = ServerDirectories::around(&options.path);
    let control = server.control_file();
    let spool = control.as_ref().and_then(|control| {
        // Another user's spool, as root's who tries a call by hand, would be lost to the server.
        let status = fs::metadata(server.archive_status());
        let ours = status.is_ok_and(|status| status.uid() == rustix::process::geteuid().as_raw());
        ours.then(|| {
            Fetched::new(
                &server.spool(),
                &options.repository.to_string(),
                &options.cluster,
                control.system_identifier,
            )
        })
    });
    let get = Get {
        means,
        options,
        run: server.run(),
        server,
        control,
        spool,
    };
    if is_history_file_name(name) || is_backup_history_file_name(name) {
        return get.file();
    }
    if !is_wal_segment_name(name) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("\"{name}\" is not the name of a WAL file"),
        )
        .hint("Set restore_command = 'leeward wal get %f %p'."));
    }
    get.segment()
}

struct Get<'a> {
    means: GetMeans<'a>,
    options: &'a GetOptions,
    server: ServerDirectories,
    control: Option<ControlFile>,
    spool: Option<Fetched>,
    /// The run of the server that asked.
    run: Option<String>,
}

impl Get<'_> {
    fn segment(&self) -> Result<GetOutcome> {
        let path = &self.options.path;
        if let (Some(spool), Some(control)) = (&self.spool, &self.control) {
            match spool.take(&self.options.name, path) {
                Ok(Take::Taken) => {
                    if !spool.has_prefetcher() {
                        self.fetch_ahead(control.wal_segment_size);
                    }
                    return Ok(GetOutcome::Found);
                }
                Ok(Take::NotThere) => {}
                Err(e) => return Err(unwritable(path, e)),
            }
        }
        let store = (self.means.open)()?;
        let cluster = Cluster::assumed(store, &self.options.cluster)?;
        let archive = WalArchive::new(&cluster);
        let size = match &self.control {
            Some(control) => control.wal_segment_size,
            None => size_in_repository(&archive, &cluster)?,
        };
        let segment = WalSegmentName::parse(&self.options.name, size).ok_or_else(|| {
            Error::new(
                ErrorKind::Usage,
                format!(
                    "there is no WAL segment \"{}\" where segments have {size}",
                    self.options.name
                ),
            )
        })?;
        if self.whole(&archive, segment, size)? {
            self.fetch_ahead(size);
            return Ok(GetOutcome::Found);
        }
        let beginning = self.beginning(&archive, &cluster, segment, size)?;
        self.verify(&cluster)?;
        // The server would put ours over its own file, which may hold WAL that nobody else has: what a standby received
        // and confirmed last, before its primary died.
        let own_end = self.server.end_of(segment, size, self.owner());
        let beginning =
            beginning.filter(|(_, end)| own_end.unwrap_or(segment.start_lsn(size)) < *end);
        if beginning
            .as_ref()
            .is_none_or(|(_, end)| *end < segment.end_lsn(size))
        {
            self.refuse_a_hole(&archive, segment, size, own_end, beginning.is_some())?;
        }
        let Some((target, _)) = beginning else {
            return Ok(GetOutcome::Absent);
        };
        self.place(target)?;
        Ok(GetOutcome::Found)
    }

    /// Starts the prefetcher, or lets it run on. It is a convenience: nothing depends on whether it can be started.
    fn fetch_ahead(&self, size: WalSegmentSize) {
        let spool = self.spool.as_ref().filter(|_| self.options.prefetch);
        let (Some(spool), Some(system_identifier)) = (spool, self.owner()) else {
            return;
        };
        if spool.has_prefetcher() {
            spool.want(&self.options.name);
            return;
        }
        let call = PrefetchCall {
            folder: spool.folder().to_owned(),
            after: self.options.name.clone(),
            segment_size_bytes: size.bytes(),
            system_identifier,
        };
        if spool.make().is_ok() {
            let _ = (self.means.start)(&call);
        }
    }

    fn target(&self) -> Result<Target> {
        let Self { spool, options, .. } = self;
        Target::create(spool.as_ref(), &options.name, &options.path)
    }

    /// The whole segment, from the archive.
    fn whole(
        &self,
        archive: &WalArchive,
        segment: WalSegmentName,
        size: WalSegmentSize,
    ) -> Result<bool> {
        let mut target = self.target()?;
        let info = archive
            .read_segment(segment, size, &mut target.file)
            .map_err(|e| self.failed(e))?;
        let Some(info) = info else { return Ok(false) };
        self.check_owner(info.facts.system_identifier)?;
        self.place(target)?;
        Ok(true)
    }

    /// The beginning of the segment, from pieces or from a backup, whichever goes further, and where it ends; padded with
    /// zeros, where recovery stops as at the end of WAL.
    fn beginning(
        &self,
        archive: &WalArchive,
        cluster: &Cluster,
        segment: WalSegmentName,
        size: WalSegmentSize,
    ) -> Result<Option<(Target, Lsn)>> {
        let mut pieces = self.target()?;
        let pieces_end = archive
            .read_pieces(segment, size, &mut pieces.file)
            .map_err(|e| self.failed(e))?;
        let cache = self.cache_file();
        let found = in_backups(cluster, self.look(cache.as_deref()), segment, size)?;
        let found = found.filter(|found| pieces_end.is_none_or(|end| found.end > end));
        let (mut target, end) = match (found, pieces_end) {
            (Some(found), _) => {
                drop(pieces);
                (self.bring_from_backup(cluster, &found)?, found.end)
            }
            (None, Some(end)) => {
                self.check_owner(owner_of(&pieces.file).map_err(|e| self.failed(e))?)?;
                (pieces, end)
            }
            (None, None) => return Ok(None),
        };
        let missing = segment.end_lsn(size) - end.min(segment.end_lsn(size));
        target.pad(size.bytes(), missing)?;
        Ok(Some((target, end)))
    }

    fn cache_file(&self) -> Option<PathBuf> {
        Some(self.spool.as_ref()?.folder().join("backups-2"))
    }

    fn cache<'b>(&self, file: Option<&'b Path>) -> Option<Cache<'b>> {
        file.map(|file| Cache {
            file,
            lately_will_do: self.is_standby(),
        })
    }

    /// Returns the way to look at the backups. A standby asks again, and a server that was told where its WAL ends needs no more proof.
    fn look<'b>(&self, cache: Option<&'b Path>) -> Look<'b> {
        Look {
            cache: self.cache(cache),
            unreadable_are_passed_over: self.is_standby() || self.options.hole_is_known,
        }
    }

    fn bring_from_backup(&self, cluster: &Cluster, found: &BackupWal) -> Result<Target> {
        let mut target = self.target()?;
        let owner = found
            .read(cluster, &mut target.file)
            .map_err(|e| self.failed(e))?;
        self.check_owner(owner)?;
        Ok(target)
    }

    /// Whose WAL the server needs; `None` where no server tells.
    fn owner(&self) -> Option<SystemIdentifier> {
        Some(self.control.as_ref()?.system_identifier)
    }

    fn check_owner(&self, found: SystemIdentifier) -> Result<()> {
        match self.owner() {
            Some(owner) if owner != found => Err(RepositoryError::ClusterMismatch {
                cluster: self.options.cluster.clone(),
                recorded: found,
                found: owner,
            }
            .into()),
            _ => Ok(()),
        }
    }

    /// That nothing is there says something only of the right place.
    fn verify(&self, cluster: &Cluster) -> Result<()> {
        let standby = self.is_standby();
        if let Some(spool) = self.spool.as_ref().filter(|_| standby)
            && spool.verified_lately()
        {
            return Ok(());
        }
        verify(cluster, self.control.as_ref())?;
        if let Some(spool) = self.spool.as_ref().filter(|_| standby) {
            spool.note_verified();
        }
        Ok(())
    }

    fn is_standby(&self) -> bool {
        self.server.data.join("standby.signal").exists()
    }

    /// Where the archive holds later WAL of the same timeline, this is not the end but a hole. A standby may still get
    /// the WAL from its primary; a server that has the segment itself needs no archive: `own_end` is where what it has of it
    /// ends. `in_part` when the segment's beginning was found: with a recovery target, it may lie there, and if not, the server
    /// itself refuses to end before it (`StartupXLOG`, xlog.c: "recovery ended before configured recovery target was reached").
    fn refuse_a_hole(
        &self,
        archive: &WalArchive,
        segment: WalSegmentName,
        size: WalSegmentSize,
        own_end: Option<Lsn>,
        in_part: bool,
    ) -> Result<()> {
        let name = &self.options.name;
        if self.options.hole_is_known
            || self.is_standby()
            || ((in_part || own_end.is_some()) && self.server.has_recovery_target())
            || own_end.is_some_and(|end| end >= segment.end_lsn(size))
        {
            return Ok(());
        }
        // Having asked for the newest timeline's segment, the server asks for the same of its ancestors, which may well
        // have gone on after they were left (XLogFileReadAnyTLI, xlogrecovery.c).
        let newer_was_asked_for = self.spool.as_ref().is_some_and(|spool| {
            let last = spool.last_absent();
            spool.note_absent(name);
            let last = last.and_then(|last| WalSegmentName::parse(&last, size));
            last.is_some_and(|last| {
                last.number == segment.number && last.timeline > segment.timeline
            })
        });
        if newer_was_asked_for {
            return Ok(());
        }
        let holdings = archive
            .timeline_holdings(segment.timeline, size)
            .map_err(|e| self.failed(e))?;
        let next = match holdings.first_from(segment.number + 1) {
            Some(number) => Some(WalSegmentName { number, ..segment }),
            None => self.after_the_timeline(archive, segment, size)?,
        };
        let Some(next) = next else { return Ok(()) };
        Err(Error::new(
            ErrorKind::Damaged,
            format!(
                "{}WAL segment \"{name}\" is missing from the archive, which goes on with \"{}\": recovery cannot pass this hole",
                if in_part { "the end of " } else { "" },
                next.name(size)
            ),
        )
        .hint("Bring the missing segments from another server's pg_wal (leeward wal push), restore a backup that begins behind the hole, or set a recovery target before it."))
    }

    /// History files and backup history files: small, asked for once.
    fn file(&self) -> Result<GetOutcome> {
        let name = &self.options.name;
        let store = (self.means.open)()?;
        let cluster = Cluster::assumed(store, &self.options.cluster)?;
        // Its absence says something only of the right place.
        self.verify(&cluster)?;
        let archived = WalArchive::new(&cluster).read_file_and_owner(name);
        let content = match archived.map_err(|e| self.failed(e))? {
            Some((content, owner)) => {
                self.check_owner(owner)?;
                content
            }
            None => {
                let cache = self.cache_file();
                match file_in_backups(&cluster, self.look(cache.as_deref()), name)? {
                    Some(content) => content,
                    None => {
                        self.refuse_a_timeline_in_use(&cluster)?;
                        return Ok(GetOutcome::Absent);
                    }
                }
            }
        };
        let mut target = self.target()?;
        target.write(&content)?;
        self.place(target)?;
        Ok(GetOutcome::Found)
    }

    /// A server that asks for a timeline's history file and is told that there is none takes the timeline's number for its
    /// own (`findNewestTimeLine`, timeline.c), and mixes its WAL with what the archive has under that number. A file of that
    /// name in its own `pg_wal` keeps it from that; restore puts one there where it was told to follow an older timeline.
    fn refuse_a_timeline_in_use(&self, cluster: &Cluster) -> Result<()> {
        let name = &self.options.name;
        // A new number is greater than the server's own, whose file it may ask for all the same.
        let own = self
            .control
            .as_ref()
            .map_or(TimelineId(1), |control| control.checkpoint_timeline);
        let Some(timeline) = parse_history_file_name(name).filter(|timeline| *timeline > own)
        else {
            return Ok(());
        };
        // A standby takes no number before it is promoted, and must not stop before that.
        if self.is_standby() || self.server.wal.join(name).exists() {
            return Ok(());
        }
        let archive = WalArchive::new(cluster);
        let size = match &self.control {
            Some(control) => control.wal_segment_size,
            None => size_in_repository(&archive, cluster)?,
        };
        let held = archive
            .timeline_holdings(timeline, size)
            .map_err(|e| self.failed(e))?;
        if held.segments.is_empty()
            && held.pieces.is_empty()
            && !backed_up_on(cluster, self.look(self.cache_file().as_deref()), timeline)?
        {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Damaged,
            format!("timeline {timeline} is in use: the repository has WAL of it, and not its history file \"{name}\"")
        )
        .hint(format!(
            "Push the file from a server on that timeline (\"leeward wal push DATA_DIRECTORY/pg_wal/{name}\"). Where no server has it, restore along an older timeline with --target-timeline: the new server then takes another number."
        )))
    }

    /// Hands over what was fetched, unless the server that asked is gone: it does not wait for its restore_command when it
    /// is stopped, and its successor expects another file under the same name.
    fn place(&self, target: Target) -> Result<()> {
        if self.run.is_some() && self.server.run() != self.run {
            return Err(Error::failed(format!(
                "the server that asked for \"{}\" is gone",
                self.options.name
            )));
        }
        target.place()
    }

    /// WAL behind the end of the segment's timeline, on the way that the server is going: it keeps the history file of
    /// the timeline that it recovers to (`restoreTimeLineHistoryFiles`, timeline.c).
    fn after_the_timeline(
        &self,
        archive: &WalArchive,
        segment: WalSegmentName,
        size: WalSegmentSize,
    ) -> Result<Option<WalSegmentName>> {
        let Some(history) = self.server.newest_history() else {
            return Ok(None);
        };
        let needed = history
            .switch_lsn(segment.timeline)
            .is_some_and(|left| left >= segment.end_lsn(size));
        if !needed {
            return Ok(None);
        }
        for range in history.ranges() {
            if range.timeline <= segment.timeline {
                continue;
            }
            let held = archive
                .timeline_holdings(range.timeline, size)
                .map_err(|e| self.failed(e))?;
            if let Some(number) = held.first_from(0) {
                let timeline = range.timeline;
                return Ok(Some(WalSegmentName { timeline, number }));
            }
        }
        Ok(None)
    }

    fn failed(&self, e: RepositoryError) -> Error {
        doing(
            &format!("could not get WAL file \"{}\"", self.options.name),
            e,
        )
    }
}

/// The size of the cluster's WAL segments, where no server beside tells it.
fn size_in_repository(archive: &WalArchive, cluster: &Cluster) -> Result<WalSegmentSize> {
    if let Some(size) = archive.segment_size()? {
        return Ok(size);
    }
    let backups = cluster.backups()?.sound;
    let size = backups.last().map(|backup| backup.wal.segment_size_bytes);
    let size = size.and_then(|size| WalSegmentSize::new(u32::try_from(size).ok()?));
    Ok(size.unwrap_or(WalSegmentSize::DEFAULT))
}

/// Returns the cluster that a WAL segment is of, by its first page.
fn owner_of(segment: &File) -> std::result::Result<SystemIdentifier, RepositoryError> {
    let mut start = [0; WAL_LONG_HEADER_SIZE];
    let read = segment.read_exact_at(&mut start, 0);
    let header = read.and_then(|()| WalLongHeader::parse(&start).map_err(io::Error::other));
    header
        .map(|header| header.system_identifier)
        .map_err(|source| RepositoryError::Io {
            action: "read the header of a WAL segment".to_owned(),
            source,
        })
}

/// There is a repository, the cluster is in it, and it is this server's.
fn verify(cluster: &Cluster, control: Option<&ControlFile>) -> Result<()> {
    let Some(file) = cluster.file()? else {
        Repository::open(Arc::clone(cluster.store()))?;
        return Err(RepositoryError::NoCluster {
            cluster: cluster.name().to_owned(),
        }
        .into());
    };
    match control {
        Some(control) if control.system_identifier != file.system_identifier => {
            Err(RepositoryError::ClusterMismatch {
                cluster: cluster.name().to_owned(),
                recorded: file.system_identifier,
                found: control.system_identifier,
            }
            .into())
        }
        _ => Ok(()),
    }
}
