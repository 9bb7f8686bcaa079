//! The destination of a restore: its data directory and the places of tablespaces, which must be absent or empty, and the
//! user that everything there will belong to.
//!
//! Places that a person named (`--to`, `--tablespace`) are told apart from those that only the backup names. As root,
//! directories that a person named are made as root and given to the server's user; where the backup alone says so, nothing is
//! done that the server's user could not do.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::io::ErrorKind::NotFound;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use leeward_postgres::configuration_files::lexical;
use leeward_postgres::server_user::ServerUser;
use leeward_repository::summary::Owner;
use rustix::process::geteuid;

use super::folder::Folder;
use super::record::{Record, look, quoted};
use super::tree::act;
use super::unfinished::look_at_tablespace;
use super::{could_not, owner};
use crate::admission::{UNFINISHED, is_of_the_server};
use crate::error::{Error, ErrorKind, Result};

/// The destination of a restore.
#[derive(Debug)]
pub(super) struct Destination {
    /// The data directory to be, absolute, links resolved.
    pub path: PathBuf,
    /// The place of each linked tablespace, by its name below `pg_tblspc`.
    pub tablespaces: BTreeMap<String, TablespacePlace>,
    /// As root: the server's user.
    pub user: Option<ServerUser>,
}

/// The place of a tablespace.
#[derive(Debug)]
pub(super) struct TablespacePlace {
    pub place: Place,
    /// The target of the link in `pg_tblspc`.
    pub link: PathBuf,
    /// The beginning of the option that changes the place, for messages.
    option: String,
}

/// A tablespace's directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the data directory, at this path relative to it.
    Inside(PathBuf),
    /// Elsewhere.
    Outside {
        /// Absolute, links resolved.
        path: PathBuf,
        /// A person named it, not the backup alone.
        named: bool,
    },
}

/// A linked tablespace of the backup.
#[derive(Clone, Debug)]
pub(super) struct LinkedTablespace {
    /// Its OID, as the link below `pg_tblspc` is named.
    pub name: String,
    /// Its location on the server that was backed up.
    pub location: PathBuf,
    /// Made while the backup ran: replay makes its link anew, to its original place.
    pub made_by_replay: bool,
}

impl Destination {
    /// Checks that `path` and every tablespace's place are free. Nothing is touched.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] naming what is in the way; [`ErrorKind::Usage`] for places that overlap or are not known.
    pub(super) fn check(
        path: &Path,
        linked: &[LinkedTablespace],
        mapping: &[(PathBuf, PathBuf)],
        stored: &Owner,
    ) -> Result<Self> {
        check_mapping(linked, mapping)?;
        let path = resolve(path, "--to")?;
        let user = owner::choose(&path, stored)?;
        if let Some(user) = &user {
            owner::check_reach(user, &path)?;
        }
        check_surroundings(&path)?;
        let mut destination = Self {
            path,
            tablespaces: BTreeMap::new(),
            user,
        };
        let leftover = destination.look()?;
        for tablespace in linked {
            let place = destination.place_tablespace(tablespace, mapping)?;
            if let Place::Outside { path, .. } = &place.place {
                if let Some(user) = destination.user.as_ref().filter(|_| place.is_named()) {
                    owner::check_reach(user, path)?;
                }
                // As root, what only the backup names is not even looked at with root's rights.
                let user = destination.user.as_ref().filter(|_| !place.is_named());
                let _acting = act(user)?;
                check_surroundings(path).map_err(|e| e.hint(place.elsewhere()))?;
                if let Some(found) = existing(path)? {
                    look_at_tablespace(&found, leftover.as_ref())
                        .map_err(|e| or_hint(e, &place.elsewhere()))?;
                    destination.check_owner(&found, &place)?;
                }
            }
            if destination
                .tablespaces
                .insert(tablespace.name.clone(), place)
                .is_some()
            {
                return Err(Error::new(
                    ErrorKind::Damaged,
                    format!("backup.json names tablespace {} twice", tablespace.name),
                ));
            }
        }
        Ok(destination)
    }

    /// Looks at the data directory, if there is one; returns the record of the restore that was interrupted there.
    fn look(&self) -> Result<Option<Record>> {
        let Some(found) = existing(&self.path)? else {
            return Ok(None);
        };
        let owner = self
            .user
            .as_ref()
            .map_or(geteuid().as_raw(), |user| user.uid);
        look(&found, owner).map_err(|e| {
            or_hint(
                e,
                "Name an absent or empty directory with --to; what is there was not touched.",
            )
        })
    }

    /// Decides where a tablespace goes; the places of those before are known.
    fn place_tablespace(
        &self,
        tablespace: &LinkedTablespace,
        mapping: &[(PathBuf, PathBuf)],
    ) -> Result<TablespacePlace> {
        let mapped = mapping.iter().find(|(old, _)| *old == tablespace.location);
        let option = format!(
            "--tablespace {}=",
            quoted(&PathBuf::from(
                tablespace
                    .location
                    .display()
                    .to_string()
                    .replace('=', "\\=")
            ))
        );
        if tablespace.made_by_replay && mapped.is_some() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("tablespace {} cannot be given another place: it was created while the backup ran, and replay puts it back", tablespace.name),
            )
            .hint("Restore another backup, or this one on a machine where its place is free."));
        }
        let wanted = mapped.map_or(&tablespace.location, |(_, new)| new);
        let (path, link) = if mapped.is_none() && wanted.is_relative() {
            // It lay inside the data directory, and does again.
            (
                lexical(&self.path.join("pg_tblspc"), wanted),
                Some(wanted.clone()),
            )
        } else if mapped.is_some() {
            (resolve(wanted, "--tablespace")?, None)
        } else {
            let _acting = act(self.user.as_ref())?;
            (resolve(wanted, "the tablespace's place")?, None)
        };
        let overlap = |other: &Path| path.starts_with(other) || other.starts_with(&path);
        let overlaps = self.tablespaces.values().any(|other| match &other.place {
            Place::Outside { path: other, .. } => overlap(other),
            Place::Inside(inside) => overlap(&self.path.join(inside)),
        });
        let inside = path.strip_prefix(&self.path).ok();
        let place = match inside {
            Some(inside) if link.is_some() && inside != Path::new("") => {
                Place::Inside(inside.to_owned())
            }
            // PostgreSQL warns of a tablespace inside the data directory, and takes it.
            Some(inside)
                if inside != Path::new("")
                    && !is_of_the_server(inside)
                    && inside.iter().next() != Some(OsStr::new(UNFINISHED)) =>
            {
                Place::Inside(inside.to_owned())
            }
            None if link.is_some() => {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!(
                        "tablespace {} lay in \"{}\", outside the data directory",
                        tablespace.name,
                        tablespace.location.display()
                    ),
                )
                .hint(format!("Give it a place: {option}DIR.")));
            }
            _ => Place::Outside {
                path: path.clone(),
                named: mapped.is_some(),
            },
        };
        let within = matches!(&place, Place::Outside { .. })
            && (self.path.starts_with(&path) || path.starts_with(&self.path));
        if overlaps || within {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "tablespace {} cannot lie in \"{}\": it overlaps with another directory of the restore",
                    tablespace.name,
                    path.display()
                ),
            )
            .hint(format!("Give it another place: {option}DIR.")));
        }
        Ok(TablespacePlace {
            place,
            link: link.unwrap_or(path),
            option,
        })
    }

    /// Checks whose a directory is that a tablespace is to be put into. The server sets its mode and must own it
    /// (`create_tablespace_directories` in src/backend/commands/tablespace.c).
    fn check_owner(&self, found: &Folder, tablespace: &TablespacePlace) -> Result<()> {
        let path = found.path();
        let owner = found
            .facts()
            .map_err(|e| could_not("look at", path, e))?
            .owner
            .0;
        let wanted = self
            .user
            .as_ref()
            .map_or(geteuid().as_raw(), |user| user.uid);
        if owner == wanted || (tablespace.is_named() && owner == 0 && self.user.is_some()) {
            return Ok(());
        }
        let whose = ServerUser::by_number(owner, 0).describe();
        let error = refused(path, &format!("it belongs to {whose}"));
        Err(match &self.user {
            Some(user) => error.hint(format!(
                "The backup alone names this directory. Give it to the server's user (chown {} {}), or say that it is meant: {}{}.",
                user.name.clone().unwrap_or_else(|| user.uid.to_string()),
                quoted(path),
                tablespace.option,
                quoted(path)
            )),
            None => error.hint(tablespace.elsewhere()),
        })
    }

    /// Decides about the directory of a tablespace that replay creates, which only WAL names: it has to be absent, or empty
    /// and the server user's. `None` when it is the place of a tablespace that is restored.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] with the reason.
    pub(super) fn place_replayed(&self, location: &Path) -> Result<Option<Place>> {
        let _acting = act(self.user.as_ref())?;
        if !location.is_absolute() {
            return Err(refused(location, "it is not an absolute path"));
        }
        let path = resolve(location, "the tablespace's place")
            .map_err(|e| refused(location, "its path does not lead anywhere").because(e))?;
        if let Ok(inside) = path.strip_prefix(&self.path) {
            let is_reserved = inside.iter().next().is_none_or(|first| first == UNFINISHED);
            if is_reserved || is_of_the_server(inside) {
                return Err(refused(
                    &path,
                    "it is a directory of the restored server's own",
                ));
            }
            return Ok(Some(Place::Inside(inside.to_owned())));
        }
        for tablespace in self.tablespaces.values() {
            match &tablespace.place {
                Place::Outside { path: other, .. } if *other == path => return Ok(None),
                Place::Outside { path: other, .. }
                    if other.starts_with(&path) || path.starts_with(other) =>
                {
                    return Err(refused(&path, "it overlaps with another tablespace"));
                }
                _ => {}
            }
        }
        if self.path.starts_with(&path) {
            return Err(refused(&path, "the restored data directory lies in it"));
        }
        check_surroundings(&path)?;
        if let Some(found) = existing(&path)? {
            self.check_replayed(&found)?;
        }
        Ok(Some(Place::Outside { path, named: false }))
    }

    /// Makes the directory of a tablespace that replay creates. The server sets its mode, and so must own it.
    pub(super) fn make_replayed(&self, path: &Path) -> Result<()> {
        let _acting = act(self.user.as_ref())?;
        let directory = make_path(path, None).map_err(|e| match &self.user {
            Some(user) => e.hint(format!(
                "Only WAL names this directory, so it is made with the rights of {}. Make it, and repeat: install -d -m 700 -o {} {}",
                user.describe(),
                user.name.clone().unwrap_or_else(|| user.uid.to_string()),
                quoted(path)
            )),
            None => e,
        })?;
        self.check_replayed(&directory)?;
        directory
            .set_mode(0o700)
            .map_err(|e| could_not("set the mode of", path, e))
    }

    fn check_replayed(&self, found: &Folder) -> Result<()> {
        let path = found.path();
        let names = found.names().map_err(|e| could_not("read", path, e))?;
        is_free(found, &names, None)?;
        let facts = found.facts().map_err(|e| could_not("look at", path, e))?;
        if facts.owner.0 == geteuid().as_raw() {
            return Ok(());
        }
        let whose = ServerUser::by_number(facts.owner.0, 0).describe();
        Err(refused(path, &format!("it belongs to {whose}")))
    }

    /// Makes the data directory, or opens the one that is there.
    pub(super) fn make_data_directory(&self) -> Result<Folder> {
        let directory = make_path(&self.path, self.user.as_ref())?;
        self.give(&directory)?;
        Ok(directory)
    }

    /// Makes the directory of a tablespace, or opens the one that is there.
    pub(super) fn make_tablespace_directory(
        &self,
        tablespace: &TablespacePlace,
        path: &Path,
    ) -> Result<Folder> {
        if tablespace.is_named() {
            let directory = make_path(path, self.user.as_ref())?;
            self.give(&directory)?;
            return Ok(directory);
        }
        let _acting = act(self.user.as_ref())?;
        let directory = make_path(path, None).map_err(|e| match &self.user {
            Some(user) => e.hint(format!(
                "The backup alone names this directory, so it is made with the rights of {}. Say that it is meant: {}{}.",
                user.describe(),
                tablespace.option,
                quoted(path)
            )),
            None => e.hint(tablespace.elsewhere()),
        })?;
        self.check_owner(&directory, tablespace)?;
        Ok(directory)
    }

    /// Gives an empty directory of root's that a person named to the server's user.
    fn give(&self, directory: &Folder) -> Result<()> {
        let Some(user) = &self.user else {
            return Ok(());
        };
        let path = directory.path();
        let owner = directory
            .facts()
            .map_err(|e| could_not("look at", path, e))?
            .owner
            .0;
        if owner == user.uid {
            return Ok(());
        }
        let names = directory.names().map_err(|e| could_not("read", path, e))?;
        is_free(directory, &names, None)?;
        if owner != 0 {
            let whose = ServerUser::by_number(owner, 0).describe();
            return Err(refused(path, &format!("it belongs to {whose}")));
        }
        directory
            .set_owner((user.uid, user.gid))
            .map_err(|e| could_not("change the owner of", path, e))
    }
}

impl TablespacePlace {
    /// Returns whether a person named it, not the backup alone.
    fn is_named(&self) -> bool {
        matches!(self.place, Place::Outside { named: true, .. })
    }

    fn elsewhere(&self) -> String {
        format!(
            "It may belong to the live server. Give the tablespace another place: {}DIR.",
            self.option
        )
    }
}

fn or_hint(error: Error, hint: &str) -> Error {
    if error.advice().is_some() {
        error
    } else {
        error.hint(hint)
    }
}

fn check_mapping(linked: &[LinkedTablespace], mapping: &[(PathBuf, PathBuf)]) -> Result<()> {
    for (old, _) in mapping {
        if linked.iter().any(|tablespace| tablespace.location == *old) {
            continue;
        }
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
    Ok(())
}

/// The absolute path of a directory that may be absent, the links in what exists of it resolved.
fn resolve(path: &Path, named: &str) -> Result<PathBuf> {
    let failed = |e: std::io::Error| {
        Error::new(
            ErrorKind::Usage,
            format!("could not resolve {named} \"{}\"", path.display()),
        )
        .because(e)
    };
    let absolute = std::path::absolute(path).map_err(failed)?;
    for ancestor in absolute.ancestors() {
        let real = match fs::canonicalize(ancestor) {
            Ok(real) => real,
            Err(e) if e.kind() == NotFound && fs::symlink_metadata(ancestor).is_err() => continue,
            Err(e) => return Err(failed(e)),
        };
        let absent = absolute.strip_prefix(ancestor).unwrap_or(Path::new(""));
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        if !absent.components().all(plain) {
            return Err(failed(NotFound.into()));
        }
        return Ok(real.components().chain(absent.components()).collect());
    }
    Err(failed(NotFound.into()))
}

/// The directory of a resolved path; `None` when there is none.
fn existing(path: &Path) -> Result<Option<Folder>> {
    match Folder::open(path) {
        Ok(directory) => Ok(Some(directory)),
        Err(e) if e.kind() == NotFound => Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            Err(refused(path, "it is not a directory"))
        }
        Err(e) => Err(could_not("open directory", path, e)),
    }
}

/// Makes a directory with the parents that it lacks, each for its user alone and given to `user`, and opens it.
fn make_path(path: &Path, user: Option<&ServerUser>) -> Result<Folder> {
    let failed = |e| could_not("make directory", path, e);
    let mut absent: Vec<&OsStr> = Vec::new();
    let mut directory = None;
    for ancestor in path.ancestors() {
        match Folder::open(ancestor) {
            Ok(found) => {
                directory = Some(found);
                break;
            }
            Err(e) if e.kind() == NotFound => absent.extend(ancestor.file_name()),
            Err(e) => return Err(could_not("open directory", ancestor, e)),
        }
    }
    let mut directory = directory.ok_or_else(|| failed(NotFound.into()))?;
    for name in absent.into_iter().rev() {
        let made = || {
            directory.make_directory(name, 0o700)?;
            let inner = directory.folder(name)?;
            if let Some(user) = user {
                // Whoever may write here may have put another directory in its place.
                let is_made =
                    inner.names()?.is_empty() && inner.facts()?.owner.0 == geteuid().as_raw();
                if !is_made {
                    return Err(io::Error::other("another directory has its place by now"));
                }
                inner.set_owner((user.uid, user.gid))?;
            }
            directory.sync()?;
            Ok(inner)
        };
        directory = made().map_err(failed)?;
    }
    Ok(directory)
}

/// Refuses a place inside what a server owns: another data directory, a tablespace's directory of a version, or a
/// directory of WAL. An empty directory there is the server's too.
fn check_surroundings(path: &Path) -> Result<()> {
    for ancestor in path.ancestors().skip(1) {
        let holds = |name: &str| fs::symlink_metadata(ancestor.join(name)).is_ok();
        let what = if holds("PG_VERSION") {
            "data directory"
        } else if is_version_directory(ancestor.file_name().unwrap_or_default()) {
            "tablespace directory"
        } else if holds("archive_status") {
            "WAL directory"
        } else {
            continue;
        };
        return Err(refused(
            path,
            &format!("it lies inside the {what} \"{}\"", ancestor.display()),
        ));
    }
    Ok(())
}

/// Returns whether a tablespace's directory of some version has this name (`TABLESPACE_VERSION_DIRECTORY` in
/// src/include/common/relpath.h).
fn is_version_directory(name: &OsStr) -> bool {
    let rest = name.to_str().and_then(|name| name.strip_prefix("PG_"));
    rest.and_then(|rest| rest.split_once('_'))
        .is_some_and(|(major, catalog)| {
            let is_number =
                |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            is_number(major) && is_number(catalog)
        })
}

/// Refuses a directory that holds anything but `own`.
pub(super) fn is_free(directory: &Folder, names: &[OsString], own: Option<&OsStr>) -> Result<()> {
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    let Some(other) = names.iter().find(|name| Some(name.as_os_str()) != own) else {
        return Ok(());
    };
    let path = directory.path();
    if has("postmaster.pid") {
        return Err(refused(
            path,
            "a server is running on it, or was killed there",
        ));
    }
    if has("PG_VERSION") {
        return Err(refused(path, "it holds a data directory"));
    }
    if let Some(version) = names.iter().find(|name| is_version_directory(name)) {
        return Err(refused(
            path,
            &format!(
                "it holds the tablespace directory \"{}\"",
                version.display()
            ),
        ));
    }
    if other.as_bytes().starts_with(UNFINISHED.as_bytes()) {
        let left = path.join(other);
        return Err(refused(
            path,
            &format!(
                "an unfinished restore into another directory left \"{}\"",
                other.display()
            ),
        )
        .hint(format!(
            "Repeat that restore, or, if none is running, remove what it left: rm -rf {}",
            quoted(&left)
        )));
    }
    Err(refused(path, &format!("it holds \"{}\"", other.display())))
}

pub(super) fn refused(path: &Path, why: &str) -> Error {
    Error::new(
        ErrorKind::Refused,
        format!("\"{}\" cannot be restored into: {why}", path.display()),
    )
}
