//! What the WAL of a recovery needs of the restored server beyond the files of the backup: settings that are high enough,
//! and the directories of tablespaces that replay creates.
//!
//! Replay of `CREATE TABLESPACE` removes the link in `pg_tblspc` and links the path in the record
//! (`create_tablespace_directories`, src/backend/commands/tablespace.c), so no prepared link leads it elsewhere. On the host of
//! the live server that path is the live server's: nothing may be started that writes there.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use leeward_pgformat::RequiredSettings;
use leeward_repository::backup_id::BackupId;

use super::destination::{Destination, Place};
use super::tree::Writer;
use crate::configuration::Adoption;
use crate::error::{Error, ErrorKind, Result};
use crate::recovery::replay::{RequiredTablespace, Requirements};
use crate::recovery::sources::BackupRange;

/// PostgreSQL's values where a setting is not set (`guc_parameters.dat`, `guc_tables.c`).
const DEFAULTS: [(&str, u32); 5] = [
    ("max_connections", 100),
    ("max_worker_processes", 8),
    ("max_wal_senders", 10),
    ("max_prepared_transactions", 0),
    ("max_locks_per_transaction", 64),
];

/// Checks that no tablespace that replay creates was asked to lie elsewhere.
///
/// # Errors
/// [`ErrorKind::Usage`] naming the first that was.
pub(super) fn check_mapping(
    requirements: &Requirements,
    backup: &BackupRange,
    mapped: &[(PathBuf, PathBuf)],
) -> Result<()> {
    for required in &requirements.tablespaces {
        let location = Path::new(OsStr::from_bytes(&required.location));
        if let Some((_, new)) = mapped.iter().find(|(old, _)| old == location) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "tablespace {} cannot be given \"{}\" as its place: replay of the record at {}, which creates it, links \"{}\"",
                    required.tablespace.0,
                    new.display(),
                    required.record,
                    location.display()
                ),
            )
            .hint(way_out(required, backup)));
        }
    }
    Ok(())
}

/// Directories of tablespaces that replay creates, which the restored server needs and the backup does not have.
#[derive(Debug, Default)]
pub(super) struct ReplayedTablespaces {
    /// In the data directory, relative to it.
    inside: BTreeSet<PathBuf>,
    /// Elsewhere: absolute, links resolved.
    outside: BTreeSet<PathBuf>,
}

/// Checks that every directory that replay will link is free here; returns those that have to be made.
///
/// # Errors
/// [`ErrorKind::Refused`] naming the first that is in use.
pub(super) fn check_places(
    requirements: &Requirements,
    backup: &BackupRange,
    destination: &Destination,
) -> Result<ReplayedTablespaces> {
    let mut places = ReplayedTablespaces::default();
    for required in &requirements.tablespaces {
        let location = Path::new(OsStr::from_bytes(&required.location));
        match destination.place_replayed(location) {
            Ok(Some(Place::Inside(path))) => {
                places.inside.insert(path);
            }
            Ok(Some(Place::Outside { path, .. })) => {
                places.outside.insert(path);
            }
            // A tablespace of the backup too, which the restore makes.
            Ok(None) => {}
            Err(e) if e.kind() == ErrorKind::Refused => {
                return Err(Error::new(
                    ErrorKind::Refused,
                    format!(
                        "the restored server would write into \"{}\": replay of the record at {} creates tablespace {} there",
                        location.display(),
                        required.record,
                        required.tablespace.0
                    ),
                )
                .because(e)
                .hint(way_out(required, backup)));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(places)
}

impl ReplayedTablespaces {
    /// Makes the directories outside the data directory; returns what to say of them.
    pub(super) fn make(&self, destination: &Destination) -> Result<Vec<String>> {
        self.outside
            .iter()
            .map(|path| {
                destination.make_replayed(path)?;
                Ok(format!(
                    "\"{}\" is made for a tablespace that replay creates there.",
                    path.display()
                ))
            })
            .collect()
    }

    /// Makes the directories in the data directory.
    pub(super) fn make_inside(&self, writer: &Writer<'_>) -> Result<()> {
        self.inside
            .iter()
            .try_for_each(|path| writer.make_directory(path))
    }
}

/// How to restore without the record that creates a tablespace.
fn way_out(required: &RequiredTablespace, backup: &BackupRange) -> String {
    if required.record >= backup.consistent {
        format!(
            "The last point before it: \"leeward restore {} --target-lsn {} --target-exclusive\". Or restore where that directory is absent or empty, or a backup that was begun later.",
            backup.id, required.record
        )
    } else {
        "Restore where that directory is absent or empty, or a backup that was begun later."
            .to_owned()
    }
}

/// The settings that have to be higher than they are configured, with the value that is needed; and what to say of them.
pub(crate) fn settings_to_raise(
    required: RequiredSettings,
    configured: &Adoption,
) -> (Vec<(&'static str, u32)>, Option<String>) {
    let raised: Vec<(&'static str, u32, u32)> = required
        .by_name()
        .into_iter()
        .zip(DEFAULTS)
        .filter_map(|((name, needed), (_, default))| {
            let now = configured.number(name).unwrap_or(i64::from(default));
            let now = u32::try_from(now).unwrap_or(0);
            (now < needed).then_some((name, now, needed))
        })
        .collect();
    let told: Vec<String> = raised
        .iter()
        .map(|(name, now, needed)| format!("{name} from {now} to {needed}"))
        .collect();
    let note = (!told.is_empty()).then(|| {
        let resets: Vec<String> = raised
            .iter()
            .map(|(name, ..)| format!("ALTER SYSTEM RESET {name};"))
            .collect();
        format!(
            "Raised for recovery, as the server that wrote the WAL had them: {}. Once it is open: {}",
            told.join(", "),
            resets.join(" ")
        )
    });
    (
        raised
            .into_iter()
            .map(|(name, _, needed)| (name, needed))
            .collect(),
        note,
    )
}

/// What to say of records that belong to extensions.
pub(super) fn extensions_note(requirements: &Requirements, backup: &BackupId) -> Option<String> {
    let numbers: Vec<String> = (0..128_u8)
        .filter(|bit| requirements.custom_managers >> bit & 1 == 1)
        .map(|bit| (128 + u16::from(bit)).to_string())
        .collect();
    (!numbers.is_empty()).then(|| {
        format!(
            "The WAL behind backup {backup} has records of extensions (resource managers {}): the server recovers only if they are installed and in shared_preload_libraries.",
            numbers.join(", ")
        )
    })
}
