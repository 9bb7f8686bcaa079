//! Beside a server, root works as the server's user: whatever lies in that user's directories, root gains nothing for it and
//! leaves nothing behind that the server's user cannot use.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use leeward_engine::error::{Error, ErrorKind, Result};
use leeward_postgres::server_user::{ServerUser, can_become_others};
use leeward_repository::url::RepositoryUrl;
use rustix::fs::{Access, access};

use crate::restore_command::quoted;

/// If root runs this, makes the process that of the owner of the data directory, for good. Call it before there is a second
/// thread, and after everything that is root's was read.
///
/// # Errors
/// When the directory is root's, which no server accepts, the system refuses, or that user cannot use the repository.
pub fn work_as_owner_of(pgdata: &Path, repository: &RepositoryUrl) -> Result<()> {
    // A directory that is not there is reported by the code that opens it.
    let (true, Ok(metadata)) = (can_become_others(), std::fs::metadata(pgdata)) else {
        return Ok(());
    };
    if metadata.uid() == 0 {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "\"{}\" belongs to root, as whom no server runs",
                pgdata.display()
            ),
        )
        .hint("Name the directory of the running server with --pgdata or PGDATA."));
    }
    become_owner(pgdata, &metadata, repository)
}

/// As [`work_as_owner_of`], for a WAL file: its folder is the server's, unless it is root's own.
///
/// # Errors
/// As [`work_as_owner_of`].
pub fn work_as_owner_of_folder(file: &Path, repository: &RepositoryUrl) -> Result<()> {
    if !can_become_others() {
        return Ok(());
    }
    let folder = match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    match std::fs::metadata(folder) {
        Ok(metadata) if metadata.uid() != 0 => become_owner(folder, &metadata, repository),
        _ => work_as_owner_of_repository(repository),
    }
}

/// As [`work_as_owner_of`], where there is no server on this host: a repository in a directory stays its owner's.
///
/// # Errors
/// As [`work_as_owner_of`].
pub fn work_as_owner_of_repository(repository: &RepositoryUrl) -> Result<()> {
    let RepositoryUrl::Local(path) = repository else {
        return Ok(());
    };
    match std::fs::metadata(path) {
        Ok(metadata) if can_become_others() && metadata.uid() != 0 => {
            become_owner(path, &metadata, repository)
        }
        _ => Ok(()),
    }
}

fn become_owner(
    place: &Path,
    metadata: &std::fs::Metadata,
    repository: &RepositoryUrl,
) -> Result<()> {
    let user = ServerUser::by_number(metadata.uid(), metadata.gid());
    user.take_over().map_err(|e| {
        Error::failed(format!(
            "could not go on as {}, the owner of \"{}\"",
            user.describe(),
            place.display()
        ))
        .because(e)
        .hint("Run the command as that user.")
    })?;
    match repository {
        RepositoryUrl::Local(path) => expect_usable(path, &user),
        RepositoryUrl::Bucket { .. } => Ok(()),
    }
}

/// Makes sure that the user we are now can use a repository in a directory. Root could do so without; what it wrote there
/// was lost to the user.
fn expect_usable(repository: &Path, user: &ServerUser) -> Result<()> {
    let name = (user.name.clone()).unwrap_or_else(|| user.uid.to_string());
    let group = user.gid;
    let shown = |path: &Path| quoted(&path.display().to_string());
    let refused = |problem: String, command: String| {
        Err(Error::failed(problem)
            .because(format!(
                "run by root, leeward works as {}, the owner of the server's files",
                user.describe()
            ))
            .hint(format!("Run as root: {command}")))
    };
    let mut existing = Path::new("/");
    for place in repository.ancestors().collect::<Vec<_>>().iter().rev() {
        if access(*place, Access::EXISTS).is_err() {
            break;
        }
        existing = place;
        if *place != repository && access(*place, Access::EXEC_OK).is_err() {
            return refused(
                format!(
                    "could not reach the repository \"{}\"",
                    repository.display()
                ),
                format!("chmod o+x {}", shown(place)),
            );
        }
    }
    if existing != repository {
        if access(existing, Access::WRITE_OK).is_ok() {
            return Ok(());
        }
        return refused(
            format!(
                "could not create the repository \"{}\"",
                repository.display()
            ),
            format!(
                "install -d -o {name} -g {group} -m 700 {}",
                shown(repository)
            ),
        );
    }
    match unusable(repository, FOLDER_DEPTH) {
        None => Ok(()),
        Some(place) => refused(
            format!("could not use \"{}\" in the repository", place.display()),
            format!("chown -R {name}:{group} {}", shown(repository)),
        ),
    }
}

/// So deep lie the folders of backups and timelines below the repository's: what somebody else began is seen there.
const FOLDER_DEPTH: u32 = 3;

/// A folder, or a file beside folders, that we may not read and write.
fn unusable(folder: &Path, depth: u32) -> Option<PathBuf> {
    let files = Access::READ_OK | Access::WRITE_OK;
    if access(folder, files | Access::EXEC_OK).is_err() {
        return Some(folder.to_owned());
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    if depth == 0 {
        return None;
    }
    entries.into_iter().find_map(|entry| {
        let place = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => unusable(&place, depth - 1),
            Ok(kind) if kind.is_file() => access(&place, files).is_err().then_some(place),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use leeward_postgres::server_user::is_root;

    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_somebody_else_left_in_a_repository_is_found() {
        // A thread of its own, which is no longer root's: root may use everything.
        let told = std::thread::spawn(|| {
            if is_root() {
                let nobody = rustix::process::Uid::from_raw(4_000_000_001);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("root may");
            }
            let place = tempfile::tempdir().expect("a directory");
            let backup = place.path().join("main/backups/20261122T023000Z-k7q2");
            fs::create_dir_all(backup.join("packs")).expect("made");
            fs::write(place.path().join("leeward.json"), "{}").expect("written");
            assert_eq!(unusable(place.path(), FOLDER_DEPTH), None);
            for closed in [&backup, &place.path().join("leeward.json")] {
                let mode = fs::metadata(closed).expect("it is there").permissions();
                fs::set_permissions(closed, fs::Permissions::from_mode(0o000)).expect("closed");
                assert_eq!(unusable(place.path(), FOLDER_DEPTH).as_ref(), Some(closed));
                fs::set_permissions(closed, mode).expect("opened");
            }
        });
        told.join().expect("as told");
    }
}
