//! What turns copied files into a directory that a server starts from: WAL, the label, the recovery settings, and
//! configuration where it would have none.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use leeward_pgformat::TablespaceMap;
use leeward_repository::layout;
use leeward_repository::manifest::WalRecord;
use leeward_repository::store::Store;
use leeward_repository::summary::BackupSummary;
use leeward_repository::wal_object::read_wal_object;

use super::target::{Target, could_not, make_directory, write_durably};
use crate::error::{Error, ErrorKind, Result};

/// Where configuration from outside the data directory is put, inside it.
pub(crate) const CONFIGURATION: &str = "configuration";

/// What recovery of a backup with its own WAL needs: `recovery.signal` demands a `restore_command`
/// (`validateRecoveryParameters` in src/backend/access/transam/xlogrecovery.c), and there is nothing to fetch. Targets of
/// an earlier recovery that the configuration may still carry are taken back.
pub(crate) fn recovery_settings(id: &str) -> String {
    format!(
        "\n# Recovery of leeward backup {id}: its own WAL lies in pg_wal, and there is no other to fetch.\n\
         restore_command = 'false'\n\
         recovery_target = ''\nrecovery_target_lsn = ''\nrecovery_target_name = ''\nrecovery_target_time = ''\nrecovery_target_xid = ''\n\
         recovery_target_timeline = 'latest'\n"
    )
}

/// Writes the WAL of the backup into `pg_wal`, each object proven against the manifest before it gets its name.
pub(super) fn write_wal(
    store: &dyn Store,
    cluster: &str,
    summary: &BackupSummary,
    wal: &[WalRecord],
    target: &Target,
) -> Result<()> {
    let pg_wal = target.place(Path::new("pg_wal"));
    make_directory(&pg_wal.join("archive_status"))?;
    for record in wal {
        let place = pg_wal.join(&record.name);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&place);
        let mut file = BufWriter::new(file.map_err(|e| could_not("create", &place, e))?);
        read_wal(store, cluster, summary, record, &mut file)?;
        file.flush().map_err(|e| could_not("write", &place, e))?;
    }
    Ok(())
}

/// Reads one WAL object of a backup, held against its record.
pub(crate) fn read_wal(
    store: &dyn Store,
    cluster: &str,
    summary: &BackupSummary,
    record: &WalRecord,
    to: &mut dyn Write,
) -> Result<()> {
    let key = layout::backup_wal(cluster, &summary.id, &record.name)?;
    let found = read_wal_object(store, &key, record.stored_length, to)?;
    if found.plain_hash != record.plain_hash
        || found.stored_hash != record.stored_hash
        || found.plain_length != record.plain_length
    {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("object \"{key}\" is not what the manifest says it is"),
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
            Some(place) => {
                entry.location.clone_from(place);
                true
            }
            None => false,
        },
    );
    Ok((!map.entries.is_empty()).then(|| map.to_bytes()))
}

/// Writes `recovery.signal` and the recovery settings.
pub(super) fn write_recovery(target: &Target, summary: &BackupSummary) -> Result<()> {
    let auto = target.place(Path::new("postgresql.auto.conf"));
    let append = || {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&auto)?
            .write_all(recovery_settings(summary.id.as_str()).as_bytes())
    };
    append().map_err(|e| could_not("write", &auto, e))?;
    write_durably(&target.place(Path::new("recovery.signal")), b"")
}

/// Gives the directory a `postgresql.conf`, `pg_hba.conf` and `pg_ident.conf` where they lay outside; returns the
/// settings files in effect, for [`collisions`].
pub(crate) fn adopt_configuration(data: &Path, stored: &[String]) -> Result<Vec<PathBuf>> {
    let mut settings = vec![
        data.join("postgresql.conf"),
        data.join("postgresql.auto.conf"),
    ];
    let inside = |file: &str| Path::new(CONFIGURATION).join(file.trim_start_matches('/'));
    for file in stored {
        let copy = data.join(inside(file));
        let Ok(text) = fs::read_to_string(&copy) else {
            continue;
        };
        let text = relocated(&text, Path::new(file), stored, data);
        write_durably(&copy, text.as_bytes())?;
        settings.push(copy);
    }
    let named = |name: &str| {
        stored
            .iter()
            .find(|file| Path::new(file).file_name().is_some_and(|n| n == name))
    };
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        let place = data.join(name);
        if place.exists() {
            continue;
        }
        let Some(original) = named(name) else {
            continue;
        };
        let copy = inside(original);
        let text = if name == "postgresql.conf" {
            format!(
                "# The configuration of this server lay outside its data directory, in {original};\n# it was restored into {CONFIGURATION}/, with its paths made to fit.\ninclude '{}'\n",
                copy.display()
            )
        } else {
            fs::read_to_string(data.join(&copy))
                .map_err(|e| could_not("read", &data.join(&copy), e))?
        };
        write_durably(&place, text.as_bytes())?;
    }
    Ok(settings)
}

/// Settings that name places of the server that was backed up; a restored directory has its own.
const PLACES: [&str; 4] = [
    "data_directory",
    "hba_file",
    "ident_file",
    "external_pid_file",
];

/// The text of a configuration file with includes of stored files pointing at their copies, and with settings that would
/// lead the restored server to the live server's files turned into comments.
fn relocated(text: &str, file: &Path, stored: &[String], data: &Path) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let name = line
            .trim_start()
            .split(|c: char| c.is_whitespace() || c == '=')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        if PLACES.contains(&name.as_str()) {
            out.push_str("# not in a restored directory: ");
            out.push_str(line);
        } else if name.starts_with("include") {
            out.push_str(&relocated_include(line, file, stored, data));
        } else if name == "ssl" && !certificates_exist(text, data) {
            out.push_str("ssl = off # its certificate or key is not on this machine; was: ");
            out.push_str(line.trim());
        } else {
            out.push_str(line);
        }
        out.push('\n');
    }
    out
}

/// An absolute include of a stored file becomes one of its copy; relative ones keep working, as the copies lie alike.
fn relocated_include(line: &str, _file: &Path, stored: &[String], data: &Path) -> String {
    let root = data.join(CONFIGURATION);
    let Some(start) = line.find('/') else {
        return line.to_owned();
    };
    let end = line[start..]
        .find(['\'', '"', ' ', '\t', '#'])
        .map_or(line.len(), |length| start + length);
    let path = &line[start..end];
    let known = line[..start].ends_with(['\'', '"', ' ', '\t', '='])
        && stored.iter().any(|file| Path::new(file).starts_with(path));
    if known {
        format!(
            "{}{}{}",
            &line[..start],
            root.join(path.trim_start_matches('/')).display(),
            &line[end..]
        )
    } else {
        line.to_owned()
    }
}

fn certificates_exist(text: &str, data: &Path) -> bool {
    [
        ("ssl_cert_file", "server.crt"),
        ("ssl_key_file", "server.key"),
    ]
    .iter()
    .all(|(setting, default)| {
        let file = value(text, setting).unwrap_or_else(|| (*default).to_owned());
        File::open(data.join(file)).is_ok()
    })
}

/// The value of a setting in one configuration file; the last one counts.
fn value(text: &str, wanted: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| {
            let line = line.trim_start();
            let (name, rest) = line.split_once(|c: char| c.is_whitespace() || c == '=')?;
            if !name.eq_ignore_ascii_case(wanted) {
                return None;
            }
            let rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '=');
            match rest.strip_prefix('\'') {
                Some(quoted) => quoted.split('\'').next(),
                None => rest.split(|c: char| c.is_whitespace() || c == '#').next(),
            }
            .map(str::to_owned)
        })
        .next_back()
}

/// What a person should know before starting the restored server on the host of the live one.
pub(crate) fn collisions(settings: &[PathBuf], data: &Path) -> Vec<String> {
    let texts: Vec<String> = settings
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect();
    let of = |name: &str| {
        texts
            .iter()
            .filter_map(|text| value(text, name))
            .next_back()
            .filter(|value| !value.is_empty())
    };
    let port = of("port").unwrap_or_else(|| "5432".to_owned());
    let mut notes = vec![format!(
        "It will listen on port {port}, as the server that was backed up did; beside that server start it with another: postgres -D {} -p PORT.",
        data.display()
    )];
    if of("archive_mode").is_some_and(|mode| mode != "off")
        && let Some(command) = of("archive_command").or_else(|| of("archive_library"))
    {
        notes.push(format!("It will archive its WAL as the live server does ({command}); set archive_mode = off unless it replaces that server."));
    }
    for name in ["log_directory", "stats_temp_directory", "external_pid_file"] {
        if let Some(place) = of(name).filter(|place| place.starts_with('/')) {
            notes.push(format!(
                "{name} is \"{place}\", which a live server on this host may use."
            ));
        }
    }
    notes
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
