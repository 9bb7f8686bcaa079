//! Whom a restored directory belongs to: the server's user, all of it. As root that user is chosen by the directory that
//! a person made, else by the name that the backup has, if this host has a user of that name.

use std::fs;
use std::io::ErrorKind::PermissionDenied;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use leeward_postgres::server_user::{ServerUser, is_mapped, is_root};
use leeward_repository::summary::Owner;
use rustix::process::geteuid;

use super::destination::refused;
use super::record::quoted;
use super::tree::act;
use crate::error::{Error, ErrorKind, Result};

/// Chooses the user for a data directory that may exist; `None` unless this is root.
///
/// # Errors
/// [`ErrorKind::Refused`] when the directory is another user's, or root does not know whom to give it to.
pub(super) fn choose(path: &Path, stored: &Owner) -> Result<Option<ServerUser>> {
    let existing = fs::symlink_metadata(path).ok();
    let existing = existing.map(|found| (found.uid(), found.gid()));
    if !is_root() {
        return match existing {
            Some((uid, gid)) if uid != geteuid().as_raw() => {
                let whose = ServerUser::by_number(uid, gid).describe();
                Err(refused(path, &format!("it belongs to {whose}")).hint(
                    "PostgreSQL runs as the owner of its data directory. Restore as that user, or to another directory.",
                ))
            }
            _ => Ok(None),
        };
    }
    if let Some((uid, gid)) = existing
        && uid != 0
    {
        return Ok(Some(ServerUser::by_number(uid, gid)));
    }
    let named = stored.user.as_deref();
    let user = named
        .and_then(ServerUser::by_name)
        .filter(|user| user.uid != 0);
    if let Some(user) = user {
        // In a namespace of one user, root is that user: it can be nobody else, and gains nothing.
        return Ok(is_mapped(user.uid).then_some(user));
    }
    let problem = match named {
        Some("root") => {
            "the backup's files belong to root, as whom PostgreSQL does not run".to_owned()
        }
        Some(name) => {
            format!("this host has no user \"{name}\", whom the backup's files belong to")
        }
        None => "the backup does not say by name whom its files belong to".to_owned(),
    };
    Err(Error::new(ErrorKind::Refused, problem).hint(format!(
        "Make the directory for the user that the server will run as, and repeat: install -d -m 700 -o USER {}",
        quoted(path)
    )))
}

/// Checks that the user can enter the directories that `path` lies in.
///
/// # Errors
/// [`ErrorKind::Refused`] naming the first that it cannot enter.
pub(super) fn check_reach(user: &ServerUser, path: &Path) -> Result<()> {
    let _acting = act(Some(user))?;
    let mut ancestors: Vec<&Path> = path.ancestors().skip(1).collect();
    ancestors.reverse();
    for ancestor in ancestors {
        let entered = fs::symlink_metadata(ancestor.join("."));
        if entered.is_err_and(|e| e.kind() == PermissionDenied) {
            return Err(refused(
                path,
                &format!(
                    "{} cannot enter \"{}\"",
                    user.describe(),
                    ancestor.display()
                ),
            )
            .hint(format!(
                "Restore to a directory that it can enter, or let it: chmod o+x {}",
                quoted(ancestor)
            )));
        }
    }
    Ok(())
}
