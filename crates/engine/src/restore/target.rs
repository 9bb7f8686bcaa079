//! The directory that is restored into: when it may be used, and how it stays unusable until it is whole.
//!
//! The first file written is `global/pg_control.restoring`, with the bytes that `global/pg_control` will have; the last
//! act is to rename it. So one rename makes the directory startable, and a directory that has the one and not the other
//! is a restore that was cut short, which the next one takes over.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use leeward_postgres::configuration_files::lexical;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};

const CONTROL: &str = "global/pg_control";
const RESTORING: &str = "global/pg_control.restoring";

/// Where a restore goes.
#[derive(Debug)]
pub(super) struct Target {
    /// The data directory to be.
    pub path: PathBuf,
    /// Where each linked tablespace goes, by its name below `pg_tblspc`.
    pub tablespaces: BTreeMap<String, TablespaceTarget>,
    /// Directories whose contents an earlier, unfinished restore left behind.
    leftovers: bool,
}

/// Where a tablespace goes.
#[derive(Debug)]
pub(super) struct TablespaceTarget {
    /// The directory.
    pub place: PathBuf,
    /// What the link in `pg_tblspc` says: the directory, or the way to it inside the data directory.
    pub link: PathBuf,
}

/// A linked tablespace of the backup.
#[derive(Clone, Debug)]
pub(super) struct LinkedTablespace {
    /// Its OID, as the link below `pg_tblspc` is named.
    pub name: String,
    /// Where it lay on the server that was backed up.
    pub location: PathBuf,
    /// Made while the backup ran: replay makes its link anew, to its original place.
    pub made_by_replay: bool,
}

impl Target {
    /// Checks that `path` and every tablespace's place are free. Nothing is touched.
    pub(super) fn check(
        path: &Path,
        linked: &[LinkedTablespace],
        mapping: &[(PathBuf, PathBuf)],
    ) -> Result<Self> {
        let path = std::path::absolute(path)
            .map_err(|e| Error::new(ErrorKind::Usage, "could not resolve --to").because(e))?;
        for (old, _) in mapping {
            if !linked.iter().any(|tablespace| tablespace.location == *old) {
                let known: Vec<String> = linked
                    .iter()
                    .map(|t| format!("\"{}\"", t.location.display()))
                    .collect();
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("the backup has no tablespace at \"{}\"", old.display()),
                )
                .hint(if known.is_empty() {
                    "It has none at all.".to_owned()
                } else {
                    format!("Its tablespaces lie at {}.", known.join(", "))
                }));
            }
        }
        // A link to a directory is followed once, here.
        let path = fs::canonicalize(&path).unwrap_or(path);
        let leftovers = match occupied(&path)? {
            None => false,
            Some(_) if is_cut_short(&path) => true,
            Some(found) => {
                return Err(refused(&path, &found).hint(
                    "Name an absent or empty directory with --to; what is there was not touched.",
                ));
            }
        };
        let mut tablespaces: BTreeMap<String, TablespaceTarget> = BTreeMap::new();
        for tablespace in linked {
            let mapped = mapping.iter().find(|(old, _)| *old == tablespace.location);
            if tablespace.made_by_replay && mapped.is_some() {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("tablespace {} cannot be given another place: it was created while the backup ran, and replay puts it back", tablespace.name),
                )
                .hint("Restore another backup, or this one on a machine where its place is free."));
            }
            if mapped.is_none() && tablespace.location.is_relative() {
                // It lay inside the data directory, and does again.
                let place = lexical(&path.join("pg_tblspc"), &tablespace.location);
                if !place.starts_with(&path) {
                    return Err(Error::new(
                        ErrorKind::Usage,
                        format!(
                            "tablespace {} lay in \"{}\", outside the data directory",
                            tablespace.name,
                            tablespace.location.display()
                        ),
                    )
                    .hint(format!(
                        "Give it a place: --tablespace {}=DIR.",
                        tablespace.location.display()
                    )));
                }
                let link = tablespace.location.clone();
                tablespaces.insert(tablespace.name.clone(), TablespaceTarget { place, link });
                continue;
            }
            let place = mapped.map_or(&tablespace.location, |(_, new)| new);
            let place = std::path::absolute(place).map_err(|e| {
                Error::new(ErrorKind::Usage, "could not resolve --tablespace").because(e)
            })?;
            let place = fs::canonicalize(&place).unwrap_or(place);
            let ours = leftovers
                && fs::read_link(path.join("pg_tblspc").join(&tablespace.name))
                    .is_ok_and(|to| to == place);
            if !ours && let Some(found) = occupied(&place)? {
                return Err(refused(&place, &found).hint(format!(
                    "It may belong to the live server. Give the tablespace another place: --tablespace {}=DIR.",
                    tablespace.location.display()
                )));
            }
            if place.starts_with(&path)
                || path.starts_with(&place)
                || tablespaces
                    .values()
                    .any(|TablespaceTarget { place: other, .. }| {
                        other.starts_with(&place) || place.starts_with(other)
                    })
            {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!(
                        "tablespace {} cannot lie in \"{}\": it overlaps with another directory of the restore",
                        tablespace.name,
                        place.display()
                    ),
                ));
            }
            tablespaces.insert(
                tablespace.name.clone(),
                TablespaceTarget {
                    link: place.clone(),
                    place,
                },
            );
        }
        Ok(Self {
            path,
            tablespaces,
            leftovers,
        })
    }

    /// Makes the directory, empty but for the mark of an unfinished restore and the tablespaces' links. The mark is locked
    /// while it is being worked on, so that a second restore into the same directory does not clear this one away.
    pub(super) fn prepare(&self, control_file: &[u8]) -> Result<Mark> {
        make_private(&self.path)?;
        make_directory(&self.path.join("global"))?;
        let mark = Mark::take(&self.path, control_file)?;
        if self.leftovers {
            self.clear()?;
        }
        sync_directory(&self.path.join("global"))?;
        sync_directory(&self.path)?;
        if let Some(parent) = self.path.parent() {
            sync_directory(parent)?;
        }
        if !self.tablespaces.is_empty() {
            make_directory(&self.path.join("pg_tblspc"))?;
        }
        for (name, tablespace) in &self.tablespaces {
            // The link comes first: it says to a later run that what lies there is ours.
            let link = self.path.join("pg_tblspc").join(name);
            match std::os::unix::fs::symlink(&tablespace.link, &link) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(could_not("link", &link, e)),
            }
            sync_directory(&self.path.join("pg_tblspc"))?;
            make_private(&tablespace.place)?;
        }
        Ok(mark)
    }

    /// Where a path of the backup's data directory goes.
    pub(super) fn place(&self, relative: &Path) -> PathBuf {
        self.path.join(relative)
    }

    /// Takes an unfinished restore away, its mark last of all.
    fn clear(&self) -> Result<()> {
        let links = fs::read_dir(self.path.join("pg_tblspc"))
            .into_iter()
            .flatten()
            .flatten();
        for link in links {
            if let Ok(place) = fs::read_link(link.path()) {
                empty(&place, &[])?;
            }
        }
        empty(
            &self.path.join("global"),
            &[Path::new("pg_control.restoring")],
        )?;
        empty(&self.path, &[Path::new("global"), Path::new("pg_tblspc")])?;
        empty(&self.path.join("pg_tblspc"), &[])
    }
}

/// The mark of a restore under way: `global/pg_control` under the name it has until everything else is there.
#[derive(Debug)]
pub(super) struct Mark {
    data: PathBuf,
    file: File,
}

impl Mark {
    fn take(data: &Path, control_file: &[u8]) -> Result<Self> {
        let path = data.join(RESTORING);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| could_not("create", &path, e))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(
            |e| match e {
                Errno::WOULDBLOCK => refused(data, "another restore into it is running"),
                other => could_not("lock", &path, other.into()),
            },
        )?;
        let write = || -> io::Result<()> {
            file.set_len(0)?;
            (&file).write_all(control_file)?;
            file.sync_all()
        };
        write().map_err(|e| could_not("write", &path, e))?;
        Ok(Self {
            data: data.to_owned(),
            file,
        })
    }

    /// The last act of a restore: one rename, durable when this returns.
    pub(super) fn complete(self) -> Result<()> {
        let (mark, control) = (self.data.join(RESTORING), self.data.join(CONTROL));
        self.file
            .sync_all()
            .map_err(|e| could_not("sync", &mark, e))?;
        fs::rename(&mark, &control).map_err(|e| could_not("rename", &mark, e))?;
        sync_directory(&self.data.join("global"))
    }
}

/// What is in `path`, in words, or `None` when it is absent or empty. A lone empty `global` is where a restore was cut
/// short before it could leave its mark.
pub(super) fn occupied(path: &Path) -> Result<Option<String>> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(could_not("look at", path, e)),
    };
    if !metadata.is_dir() && !fs::metadata(path).is_ok_and(|m| m.is_dir()) {
        return Ok(Some("it is not a directory".to_owned()));
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(|e| could_not("read", path, e))? {
        names.push(entry.map_err(|e| could_not("read", path, e))?.file_name());
        if names.len() > 1 {
            break;
        }
    }
    if names.len() == 1
        && names[0] == "global"
        && fs::read_dir(path.join("global")).is_ok_and(|mut inside| inside.next().is_none())
    {
        return Ok(None);
    }
    if names.is_empty() {
        return Ok(None);
    }
    Ok(Some(if path.join("postmaster.pid").exists() {
        "a server is running on it, or was killed there".to_owned()
    } else if path.join("PG_VERSION").exists() {
        "it holds a data directory".to_owned()
    } else {
        "it is not empty".to_owned()
    }))
}

fn is_cut_short(path: &Path) -> bool {
    path.join(RESTORING).is_file()
        && !path.join(CONTROL).exists()
        && !path.join("postmaster.pid").exists()
}

fn refused(path: &Path, why: &str) -> Error {
    Error::new(
        ErrorKind::Refused,
        format!("\"{}\" cannot be restored into: {why}", path.display()),
    )
}

/// Removes what is in `path`, except `keep`.
fn empty(path: &Path, keep: &[&Path]) -> Result<()> {
    let listing = match fs::read_dir(path) {
        Ok(listing) => listing,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(could_not("read", path, e)),
    };
    for entry in listing {
        let entry = entry.map_err(|e| could_not("read", path, e))?;
        if keep
            .iter()
            .any(|kept| kept.as_os_str() == entry.file_name())
        {
            continue;
        }
        let found = entry.path();
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_directory {
            fs::remove_dir_all(&found)
        } else {
            fs::remove_file(&found)
        };
        removed.map_err(|e| could_not("remove", &found, e))?;
    }
    Ok(())
}

/// Makes a directory that only its owner may enter, with its parents; it may exist.
pub(super) fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| could_not("make directory", path, e))
}

/// Makes a directory of its own for PostgreSQL, which insists on its mode; it may exist, empty.
pub(super) fn make_private(path: &Path) -> Result<()> {
    make_directory(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .map_err(|e| could_not("set the mode of", path, e))
}

/// Writes a small file whole and syncs it.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| could_not("write", path, e))
}

pub(super) fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|e| could_not("sync", path, e))
}

/// An operation on a file of the target that failed.
pub(super) fn could_not(what: &str, path: &Path, source: io::Error) -> Error {
    let full = source.kind() == io::ErrorKind::StorageFull;
    let error = Error::failed(format!("could not {what} \"{}\"", path.display())).because(source);
    if full {
        error.hint("Free some space or restore elsewhere; the next restore clears away what this one left.")
    } else {
        error
    }
}
