//! What turns copied files into a directory that a server starts from: WAL, the label, the recovery settings, and
//! configuration of its own.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use leeward_pgformat::wal_segment::history_file_name;
use leeward_pgformat::{TablespaceMap, TimelineId};
use leeward_repository::catalog::Cluster;
use leeward_repository::manifest::WalRecord;
use leeward_repository::summary::BackupSummary;

use super::settings::Settings;
use super::target::{Target, could_not, make_directory, write_durably};
use crate::configuration::{self, Adoption, Files};
use crate::error::{Error, ErrorKind, Result};
use crate::parallel;

/// As many WAL objects are fetched at once: each is one answer of the store away.
const WAL_AT_ONCE: usize = 8;

/// Writes the WAL of the backup into `pg_wal`, each object proven against the manifest.
pub(super) fn write_wal(
    cluster: &Cluster,
    summary: &BackupSummary,
    wal: &[WalRecord],
    target: &Target,
) -> Result<()> {
    let pg_wal = target.place(Path::new("pg_wal"));
    make_directory(&pg_wal.join("archive_status"))?;
    parallel::for_each(wal, WAL_AT_ONCE, |record| {
        let place = pg_wal.join(&record.name);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&place);
        let mut file = BufWriter::new(file.map_err(|e| could_not("create", &place, e))?);
        read_wal(cluster, summary, record, &mut file)?;
        file.flush().map_err(|e| could_not("write", &place, e))
    })
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
pub(super) fn tablespace_map(stored: &[u8], target: &Target) -> Result<Option<Vec<u8>>> {
    let mut map = TablespaceMap::parse(stored).map_err(|e| {
        Error::new(
            ErrorKind::Damaged,
            "could not make sense of the tablespace map",
        )
        .because(e)
    })?;
    map.entries.retain_mut(
        |entry| match target.tablespaces.get(&entry.tablespace.to_string()) {
            Some(tablespace) => {
                entry.location.clone_from(&tablespace.link);
                true
            }
            None => false,
        },
    );
    Ok((!map.entries.is_empty()).then(|| map.to_bytes()))
}

/// Takes the numbers of timelines whose history files nobody has: a server that opens looks for a number that has no history
/// file, in the archive and then in `pg_wal` (`existsTimeLineHistory`, src/backend/access/transam/timeline.c).
pub(super) fn reserve_timelines(target: &Target, timelines: &[TimelineId]) -> Result<()> {
    for timeline in timelines {
        let place = target
            .place(Path::new("pg_wal"))
            .join(history_file_name(*timeline));
        if !place.exists() {
            write_durably(
                &place,
                b"# The WAL archive has WAL of this timeline, and not its history file. This file keeps the number taken.\n",
            )?;
        }
    }
    Ok(())
}

/// Writes the recovery settings, those that are `raised` for it, and the file that makes the server recover.
pub(super) fn write_recovery(
    target: &Target,
    settings: &Settings<'_>,
    raised: &[(&str, u32)],
) -> Result<()> {
    let auto = target.place(Path::new("postgresql.auto.conf"));
    let append = || {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&auto)?
            .write_all(settings.text(raised).as_bytes())
    };
    append().map_err(|e| could_not("write", &auto, e))?;
    write_durably(&target.place(Path::new(settings.signal())), b"")
}

/// Gives the directory configuration of its own; returns that, and what a person should know.
pub(super) fn adopt_configuration(
    target: &Target,
    summary: &BackupSummary,
) -> Result<(Adoption, Vec<String>)> {
    let data = &target.path;
    let adoption = configuration::adopt_for(&OnDisk(data), summary)?;
    for (from, to) in &adoption.moved {
        let (from, to) = (data.join(from), data.join(to));
        fs::rename(&from, to).map_err(|e| could_not("rename", &from, e))?;
    }
    for (file, bytes) in &adoption.files {
        let place = data.join(file);
        let mode = fs::metadata(&place).map_or(0o600, |found| found.mode() & 0o777 | 0o600);
        write_durably(&place, bytes)?;
        fs::set_permissions(&place, Permissions::from_mode(mode))
            .map_err(|e| could_not("set the mode of", &place, e))?;
    }
    let mut notes = adoption.notes.clone();
    notes.extend(adoption.collisions(data));
    Ok((adoption, notes))
}

/// A restored directory, as far as its configuration goes.
struct OnDisk<'a>(&'a Path);

impl Files for OnDisk<'_> {
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        let place = self.0.join(path);
        match fs::read(&place) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if matches!(e.kind(), NotFound | NotADirectory | IsADirectory) => Ok(None),
            Err(e) => Err(could_not("read", &place, e)),
        }
    }

    fn names(&self, folder: &Path) -> Option<Vec<OsString>> {
        let listing = fs::read_dir(self.0.join(folder)).ok()?;
        Some(listing.flatten().map(|entry| entry.file_name()).collect())
    }

    fn can_open(&self, path: &Path) -> bool {
        File::open(self.0.join(path)).is_ok()
    }
}

/// Gives everything in `roots` to `owner`; only root can.
pub(super) fn give_to(owner: (u32, u32), roots: &[&Path]) -> Result<()> {
    for root in roots {
        std::os::unix::fs::lchown(root, Some(owner.0), Some(owner.1))
            .map_err(|e| could_not("change the owner of", root, e))?;
        if !fs::symlink_metadata(root).is_ok_and(|found| found.is_dir()) {
            continue;
        }
        for entry in fs::read_dir(root).map_err(|e| could_not("read", root, e))? {
            let entry = entry.map_err(|e| could_not("read", root, e))?;
            give_to(owner, &[&entry.path()])?;
        }
    }
    Ok(())
}
