//! What turns copied files into a directory that a server starts from: WAL, the label, the recovery settings, and
//! configuration of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use leeward_pgformat::wal_segment::{history_file_name, is_history_file_name, is_wal_segment_name};
use leeward_pgformat::{TablespaceMap, TimelineId};
use leeward_postgres::configuration_files::lexical;
use leeward_repository::catalog::Cluster;
use leeward_repository::manifest::WalRecord;
use leeward_repository::parallel;
use leeward_repository::summary::BackupSummary;

use super::could_not;
use super::destination::Destination;
use super::plan::SetAside;
use super::settings::Settings;
use super::tree::{Tree, Writer};
use crate::configuration::{self, AUTO, Adoption, Files};
use crate::error::{Error, ErrorKind, Result};

/// As many WAL objects are fetched at once: each is one answer of the store away.
const WAL_AT_ONCE: usize = 8;

/// Writes the WAL of the backup into `pg_wal`, each object proven against the manifest.
pub(super) fn write_wal(
    cluster: &Cluster,
    summary: &BackupSummary,
    wal: &[WalRecord],
    tree: &Tree,
) -> Result<()> {
    let pg_wal = Path::new("pg_wal");
    let archive_status = pg_wal.join("archive_status");
    tree.writer()?.make_directory(&archive_status)?;
    parallel::for_each(wal, WAL_AT_ONCE, |record| {
        let place = pg_wal.join(&record.name);
        let file = tree.writer()?.create(&place, 0o600)?;
        let mut file = BufWriter::new(file);
        read_wal(cluster, summary, record, &mut file)?;
        file.flush().map_err(|e| could_not("write", &place, e))
    })
}

/// Checks that a WAL record of a backup has the name of a WAL segment or a timeline history file.
pub(crate) fn check_wal_name(record: &WalRecord) -> Result<()> {
    if is_wal_segment_name(&record.name) || is_history_file_name(&record.name) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Damaged,
        format!(
            "the manifest names \"{}\" as WAL, which no WAL file is called",
            record.name
        ),
    )
    .hint("Restore another backup, or this one from another copy of the repository."))
}

/// Reads one WAL object of a backup, held against its record.
pub(crate) fn read_wal(
    cluster: &Cluster,
    summary: &BackupSummary,
    record: &WalRecord,
    to: &mut dyn Write,
) -> Result<()> {
    let found =
        cluster.read_backup_wal(&summary.id, &record.name, Some(record.stored_length), to)?;
    if found.plain_hash != record.plain_hash
        || found.stored_hash != record.stored_hash
        || found.plain_length != record.plain_length
    {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!(
                "WAL file \"{}\" of backup {} is not what the manifest says it is",
                record.name, summary.id
            ),
        )
        .hint("Restore another backup, or this one from another copy of the repository."));
    }
    Ok(())
}

/// The tablespace map with the places that tablespaces have now. In-place tablespaces have no link to make.
pub(super) fn tablespace_map(stored: &[u8], destination: &Destination) -> Result<Option<Vec<u8>>> {
    let mut map = TablespaceMap::parse(stored).map_err(|e| {
        Error::new(
            ErrorKind::Damaged,
            "could not make sense of the tablespace map",
        )
        .because(e)
    })?;
    map.entries.retain_mut(|entry| {
        match destination.tablespaces.get(&entry.tablespace.to_string()) {
            Some(tablespace) => {
                entry.location.clone_from(&tablespace.link);
                true
            }
            None => false,
        }
    });
    Ok((!map.entries.is_empty()).then(|| map.to_bytes()))
}

/// Takes the numbers of timelines whose history files nobody has: a server that opens looks for a number that has no history
/// file, in the archive and then in `pg_wal` (`existsTimeLineHistory`, src/backend/access/transam/timeline.c).
pub(super) fn reserve_timelines(writer: &Writer<'_>, timelines: &[TimelineId]) -> Result<()> {
    for timeline in timelines {
        let place = Path::new("pg_wal").join(history_file_name(*timeline));
        if !writer.has(&place) {
            writer.write(
                &place,
                b"# The WAL archive has WAL of this timeline, and not its history file. This file keeps the number taken.\n",
                0o600,
            )?;
        }
    }
    Ok(())
}

/// Writes the recovery settings, those that are `raised` for it, and the file that makes the server recover.
pub(super) fn write_recovery(
    writer: &Writer<'_>,
    settings: &Settings<'_>,
    raised: &[(&str, u32)],
) -> Result<()> {
    let auto = Path::new(AUTO);
    let mut text = writer.read(auto)?.unwrap_or_default();
    text.extend_from_slice(settings.text(raised).as_bytes());
    writer.rewrite(auto, &text)?;
    writer.write(Path::new(settings.signal()), b"", 0o600)
}

/// Gives the directory configuration of its own; returns that, and what a person should know.
pub(super) fn adopt_configuration(
    writer: &Writer<'_>,
    destination: &Destination,
    aside: &SetAside,
    summary: &BackupSummary,
) -> Result<(Adoption, Vec<String>)> {
    let copy = Written {
        writer,
        data_directory: &destination.path,
        links: aside.links.iter().cloned().collect(),
    };
    let adoption = configuration::adopt_for(&copy, summary)?;
    for (from, to) in &adoption.moved {
        writer.rename(from.as_os_str(), to.as_os_str())?;
    }
    for (file, bytes) in &adoption.files {
        writer.rewrite(file, bytes)?;
    }
    let mut notes = adoption.notes.clone();
    notes.extend(adoption.collisions(&destination.path));
    Ok((adoption, notes))
}

/// Makes the links, last of all that has a name: nothing is written any more that could be led astray by one.
pub(super) fn make_links(
    writer: &Writer<'_>,
    destination: &Destination,
    aside: &SetAside,
) -> Result<()> {
    for (name, tablespace) in &destination.tablespaces {
        // One inside the data directory that the manifest has nothing of is made here.
        writer.make_directory(&Path::new("pg_tblspc").join(name))?;
        writer.make_link(&tablespace.link, &Path::new("pg_tblspc").join(name))?;
    }
    for (place, target) in &aside.links {
        writer.make_link(target, place)?;
    }
    Ok(())
}

/// A restored directory, as far as its configuration goes. Links are not made yet.
struct Written<'a> {
    writer: &'a Writer<'a>,
    data_directory: &'a Path,
    links: BTreeMap<PathBuf, PathBuf>,
}

impl Written<'_> {
    /// Returns a path in the data directory, with a link followed that stays inside it.
    fn followed(&self, path: &Path) -> PathBuf {
        let inside = path.ancestors().find_map(|ancestor| {
            let target = self.links.get(ancestor)?;
            let rest = path.strip_prefix(ancestor).ok()?;
            let path = ancestor.parent()?.join(target).join(rest);
            let path = lexical(self.data_directory, &path);
            path.strip_prefix(self.data_directory)
                .ok()
                .map(Path::to_owned)
        });
        inside.unwrap_or_else(|| path.to_owned())
    }
}

impl Files for Written<'_> {
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        self.writer.read(&self.followed(path))
    }

    fn names(&self, folder: &Path) -> Option<Vec<OsString>> {
        self.writer.names(&self.followed(folder))
    }

    fn can_open(&self, path: &Path) -> bool {
        if path.is_relative() && self.writer.has(&self.followed(path)) {
            return true;
        }
        let linked = path.ancestors().find_map(|ancestor| {
            let target = self.links.get(ancestor)?;
            let rest = path.strip_prefix(ancestor).ok()?;
            Some(
                self.data_directory
                    .join(ancestor.parent()?)
                    .join(target)
                    .join(rest),
            )
        });
        match linked {
            Some(elsewhere) => is_readable(&elsewhere),
            None if path.is_absolute() => is_readable(path),
            None => self.writer.has(path),
        }
    }
}

/// Returns whether this thread may read a file or directory. `faccessat2` with the effective user is not known to kernels
/// before 5.8, so a file is opened; a pipe is not, since that would have an effect.
fn is_readable(path: &Path) -> bool {
    fs::metadata(path)
        .is_ok_and(|found| found.is_dir() || (found.is_file() && File::open(path).is_ok()))
}
