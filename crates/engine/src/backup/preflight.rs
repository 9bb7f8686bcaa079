//! What is made sure of before a backup begins: that the server that answers is the one that runs on the directory, and
//! that the repository is not inside it.

use std::sync::Arc;

use leeward_pgformat::Lsn;
use leeward_pgformat::control_file::ControlFile;
use leeward_postgres::connection::Connection;
use leeward_postgres::data_directory::DataDirectory;
use leeward_postgres::server_facts::ServerFacts;
use leeward_postgres::target::{ConnectTarget, PostmasterPid};
use leeward_repository::store::Store;
use leeward_repository::url::RepositoryUrl;

use super::BackupOptions;
use crate::error::{Error, ErrorKind, Result};

/// The server notes its start in `postmaster.pid` and, a little later, for `pg_postmaster_start_time`.
const START_TIMES_DIFFER_S: i64 = 60;

/// How to connect to the server on the directory.
pub(super) fn target(options: &BackupOptions, directory: &DataDirectory) -> ConnectTarget {
    ConnectTarget {
        conninfo: options.conninfo.clone(),
        pgdata: Some(directory.path().to_owned()),
        ..ConnectTarget::default()
    }
}

/// A primary and its standby on one host have the same system identifier, so the directory itself is compared as well.
pub(super) fn check_same_server(
    connection: &mut Connection,
    facts: &ServerFacts,
    control: &ControlFile,
    directory: &DataDirectory,
) -> Result<()> {
    let wrong = |why: String| {
        Error::new(
            ErrorKind::Usage,
            format!(
                "the server that answers is not the one running on \"{}\"",
                directory.path().display()
            ),
        )
        .because(why)
        .hint("Set --pgdata and --conninfo (or PGHOST and PGPORT) to the same server.")
    };
    if facts.system_identifier != control.system_identifier {
        return Err(wrong(format!(
            "its system identifier is {}, the directory's is {}",
            facts.system_identifier, control.system_identifier
        )));
    }
    if let Some(served) = &facts.data_directory {
        let served = std::fs::canonicalize(served).unwrap_or_else(|_| served.clone());
        if served != directory.path() {
            return Err(wrong(format!("it runs on \"{}\"", served.display())));
        }
    }
    let pid = match PostmasterPid::read(directory.path())? {
        Some(pid) if pid.is_alive() => pid,
        _ => return Err(wrong("no server is running on the directory".to_owned())),
    };
    if facts.data_directory.is_none() {
        // What every role may ask.
        let rows = connection.query(
            "SELECT current_setting('port'), extract(epoch FROM pg_postmaster_start_time())::bigint",
            &[],
        )?;
        let (port, started): (u16, i64) = (rows.parse(0, 0)?, rows.parse(0, 1)?);
        if port != pid.port {
            return Err(wrong(format!(
                "it listens on port {port}, the directory's server on {}",
                pid.port
            )));
        }
        if (started - pid.start_time_seconds).abs() > START_TIMES_DIFFER_S {
            return Err(wrong("it was started at another time".to_owned()));
        }
    }
    Ok(())
}

/// Whether the control file on disk is the one that the server writes: a start LSN is the redo LSN of a checkpoint that is
/// recorded there. In a copy, or under something that was mounted over the directory, it stays what it was.
pub(super) fn check_moves_along(directory: &DataDirectory, start_lsn: Lsn) -> Result<()> {
    let (control, _) = directory
        .control_file()
        .map_err(|e| Error::failed("could not read the control file").because(e))?;
    if control.redo >= start_lsn {
        return Ok(());
    }
    Err(Error::failed(format!(
        "the files in \"{}\" are not those that the server writes",
        directory.path().display()
    ))
    .because(format!(
        "the backup starts at {start_lsn}, and the last checkpoint in the control file there at {}",
        control.redo
    ))
    .hint("See whether something is mounted over the directory, or the server runs on another one in a container."))
}

/// A backup does not contain itself.
pub(super) fn check_repository_outside(
    store: &Arc<dyn Store>,
    directory: &DataDirectory,
) -> Result<()> {
    let RepositoryUrl::Local(path) = store.location() else {
        return Ok(());
    };
    let existing = path
        .ancestors()
        .find_map(|place| std::fs::canonicalize(place).ok());
    if existing.is_some_and(|place| place.starts_with(directory.path())) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "the repository \"{}\" lies inside the data directory",
                path.display()
            ),
        )
        .hint("Put it on another file system, or at least beside the data directory."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_the_server_does_not_write_are_noticed() {
        let place = tempfile::tempdir().expect("a directory");
        let write = |name: &str, bytes: &[u8]| {
            let path = place.path().join(name);
            std::fs::create_dir_all(path.parent().expect("has a parent")).expect("made");
            std::fs::write(path, bytes).expect("written");
        };
        write("PG_VERSION", b"17\n");
        let control = include_bytes!("../../../pgformat/tests/golden/17/pg_control.standby");
        write("global/pg_control", control);
        let directory = DataDirectory::open(place.path()).expect("a data directory");
        let redo = ControlFile::parse(control).expect("a control file").redo;
        check_moves_along(&directory, redo).expect("the same checkpoint");
        check_moves_along(&directory, Lsn(redo.0 - 1)).expect("a later checkpoint");
        let error = check_moves_along(&directory, Lsn(redo.0 + 1)).expect_err("an older one");
        assert!(
            error
                .to_string()
                .contains("not those that the server writes")
        );
    }
}
