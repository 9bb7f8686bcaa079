//! A restore under way. All of it is written below `leeward.restoring` in the data directory, and below
//! `leeward.restoring-<id>` in each tablespace outside it, and moved up when everything is there. So what an interrupted
//! restore left is known by where it lies: below a directory of a name that nobody else uses, made by a restore, and
//! recorded beforehand. Nothing else is ever removed, and nothing is ever moved onto a name that is taken.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::io::ErrorKind::{AlreadyExists, NotADirectory, NotFound};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use leeward_postgres::directory::NameError;
use leeward_repository::backup_id::BackupId;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::geteuid;

use super::destination::{Destination, Place, is_free, refused};
use super::folder::Folder;
use super::record::{LOCK, RECORD, Record, look};
use super::{could_not, tree};
use crate::admission::{UNFINISHED, UNFINISHED_CONTROL_FILE};
use crate::error::{Error, Result};

/// The name under which the data directory is made.
const DATA: &str = "data";

/// A restore under way.
#[derive(Debug)]
pub(super) struct Unfinished {
    destination: Folder,
    /// `leeward.restoring` in it.
    folder: Folder,
    /// The directory in which the data directory is made.
    data: Arc<Folder>,
    /// The tablespaces outside the data directory, by name.
    tablespaces: Vec<Staged>,
    record: Record,
    /// Held as long as the restore works, so that a second one does not clear it away.
    _lock: File,
}

/// A tablespace outside the data directory.
#[derive(Debug)]
struct Staged {
    name: OsString,
    place: Folder,
    /// `leeward.restoring-<id>` in it.
    folder: Arc<Folder>,
}

impl Unfinished {
    /// Takes the directories of `destination`, which are looked at once more, clears away what an interrupted restore left
    /// and makes this restore's own directories.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when one of them is not free any more or another restore is at work.
    pub(super) fn begin(destination: &Destination, backup: &BackupId) -> Result<Self> {
        let directory = destination.make_data_directory()?;
        let (taken, leftover) = {
            let _acting = tree::act(destination.user.as_ref())?;
            let taken = take(&directory)?;
            let leftover = look(&directory, geteuid().as_raw());
            let leftover = leftover.inspect_err(|_| taken.give_up(&directory))?;
            (taken, leftover)
        };
        let mut places = Vec::new();
        for (name, tablespace) in &destination.tablespaces {
            if let Place::Outside { path, .. } = &tablespace.place {
                let place = destination.make_tablespace_directory(tablespace, path)?;
                places.push((OsString::from(name), place));
            }
        }
        let _acting = tree::act(destination.user.as_ref())?;
        for (_, place) in &places {
            look_at_tablespace(place, leftover.as_ref())?;
        }
        if let Some(record) = &leftover {
            clear(&directory, &taken.folder, record)?;
        }
        let paths: Vec<&Path> = places.iter().map(|(_, place)| place.path()).collect();
        let record = Record::new(backup, &paths);
        let Taken { folder, lock, .. } = taken;
        let made = || -> io::Result<Folder> {
            directory.set_mode(0o700)?;
            record.write(&folder)?;
            folder.make_directory(OsStr::new(DATA), 0o700)?;
            folder.sync()?;
            directory.sync()?;
            folder.folder(OsStr::new(DATA))
        };
        let data = made().map_err(|e| could_not("write", folder.path(), e))?;
        let mut unfinished = Self {
            destination: directory,
            folder,
            data: Arc::new(data),
            tablespaces: Vec::new(),
            record,
            _lock: lock,
        };
        for (name, place) in places {
            let staged = unfinished.stage(name, place)?;
            unfinished.tablespaces.push(staged);
        }
        Ok(unfinished)
    }

    /// Makes this restore's directory in a tablespace's.
    fn stage(&self, name: OsString, place: Folder) -> Result<Staged> {
        let own = self.record.name_in_tablespaces();
        let path = place.path_of(&own);
        let made = || -> io::Result<Folder> {
            place.set_mode(0o700)?;
            place.make_directory(&own, 0o700)?;
            place.sync()?;
            place.folder(&own)
        };
        let folder = made().map_err(|e| could_not("make directory", &path, e))?;
        // A server, or another restore, that came after the last look.
        look_at_tablespace(&place, Some(&self.record))?;
        Ok(Staged {
            name,
            folder: Arc::new(folder),
            place,
        })
    }

    /// Returns the tree that the restore writes.
    pub(super) fn tree(&self, destination: &Destination) -> tree::Tree {
        let outside = self.tablespaces.iter().map(|staged| {
            (
                staged.name.clone(),
                tree::Location::Outside(Arc::clone(&staged.folder)),
            )
        });
        let inside = destination
            .tablespaces
            .iter()
            .filter_map(|(name, tablespace)| match &tablespace.place {
                Place::Inside(path) => Some((name.into(), tree::Location::Inside(path.clone()))),
                Place::Outside { .. } => None,
            });
        tree::Tree::new(
            Arc::clone(&self.data),
            outside.chain(inside),
            destination.user.clone(),
        )
    }

    /// Moves everything to its place and makes the directory startable: the last act but clearing up is one rename,
    /// durable when this returns. Everything that was written is durable before. Returns what a person should know.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when something has come to one of the places meanwhile.
    pub(super) fn finish(mut self, destination: &Destination) -> Result<Vec<String>> {
        let _acting = tree::act(destination.user.as_ref())?;
        still_alone(&self.destination, OsStr::new(UNFINISHED))?;
        for staged in &self.tablespaces {
            still_alone(&staged.place, &self.record.name_in_tablespaces())?;
        }
        let mut names = self
            .data
            .names()
            .map_err(|e| could_not("read", self.data.path(), e))?;
        // The files that a server looks for come last.
        names.sort_by_key(|name| name == "global");
        for name in &names {
            let identity = self
                .data
                .identity(name)
                .map_err(|e| could_not("look at", &self.data.path_of(name), e))?;
            if let Some(identity) = identity {
                self.record.add_moved(name, identity);
            }
        }
        self.record
            .write(&self.folder)
            .map_err(|e| could_not("write", &self.folder.path().join(RECORD), e))?;
        for name in &names {
            move_up(&self.data, name, &self.destination)?;
        }
        for staged in &self.tablespaces {
            let names = staged
                .folder
                .names()
                .map_err(|e| could_not("read", staged.folder.path(), e))?;
            for name in &names {
                move_up(&staged.folder, name, &staged.place)?;
            }
            let own = self.record.name_in_tablespaces();
            let cleared = || {
                staged.place.remove_directory(&own)?;
                staged.place.sync()
            };
            cleared().map_err(|e| could_not("remove", staged.folder.path(), e))?;
        }
        self.destination
            .sync()
            .map_err(|e| could_not("sync", self.destination.path(), e))?;
        self.complete()
    }

    /// Makes the directory startable; returns what a person should know.
    fn complete(&self) -> Result<Vec<String>> {
        let path = self.destination.path();
        let mark = path.join(UNFINISHED_CONTROL_FILE);
        let global = self
            .destination
            .folder(OsStr::new("global"))
            .map_err(|e| could_not("open directory", &path.join("global"), e))?;
        let names = [(
            mark.file_name().unwrap_or_default(),
            OsStr::new("pg_control"),
        )];
        global
            .name_files(&names)
            .map_err(|e| unnamed(&mark, &global, e))?;
        let cleared = self.destination.remove_all(OsStr::new(UNFINISHED));
        Ok(match cleared {
            Ok(()) => Vec::new(),
            Err(e) => vec![format!(
                "\"{}\" is not needed any more and could not be removed: {}.",
                path.join(UNFINISHED).display(),
                e.source
            )],
        })
    }
}

/// Why the control file could not get its name. As a rule it has the old one again, and no server starts.
fn unnamed(mark: &Path, global: &Folder, error: NameError) -> Error {
    let failed = match error.refused {
        Some(_) => could_not("rename", mark, error.source),
        None => could_not("sync", global.path(), error.source),
    };
    failed.hint(if error.left.is_empty() {
        "No server starts on the directory. Restore again, into the same one or another."
    } else {
        "A server starts on the directory, and everything but the control file's name is durable: if this machine fails now, restore again."
    })
}

/// `leeward.restoring`, locked.
struct Taken {
    folder: Folder,
    lock: File,
    /// It was not there before.
    is_new: bool,
}

impl Taken {
    /// Takes away what was made a moment ago in a directory that turns out to be somebody's.
    fn give_up(&self, directory: &Folder) {
        if self.is_new {
            // It is not this failure that is told; what is left is an empty directory at most.
            let _ = self.folder.remove_file(OsStr::new(LOCK));
            let _ = directory.remove_directory(OsStr::new(UNFINISHED));
        }
    }
}

/// Makes `leeward.restoring`, or opens the one that is there, and locks it.
fn take(directory: &Folder) -> Result<Taken> {
    let name = OsStr::new(UNFINISHED);
    let taken = || -> io::Result<Option<Taken>> {
        let is_new = match directory.make_directory(name, 0o700) {
            Err(e) if e.kind() == AlreadyExists => false,
            made => made.map(|()| true)?,
        };
        let folder = directory.folder(name)?;
        let lock = folder.open_or_create(OsStr::new(LOCK), 0o600)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            locked => locked?,
        }
        // The restore that held the lock before may have ended, and removed what was opened here.
        let current = folder.look(OsStr::new(LOCK))?;
        let is_current = current.is_some_and(|found| {
            lock.metadata()
                .is_ok_and(|ours| (ours.dev(), ours.ino()) == found.place)
        });
        Ok(is_current.then_some(Taken {
            folder,
            lock,
            is_new,
        }))
    };
    taken()
        .map_err(|e| could_not("lock", &directory.path_of(name), e))?
        .ok_or_else(|| {
            refused(
                directory.path(),
                "another restore into it is running, or has just ended",
            )
        })
}

/// Looks whether a tablespace's directory is empty but for what the recorded restore has there.
pub(super) fn look_at_tablespace(place: &Folder, record: Option<&Record>) -> Result<()> {
    let names = place
        .names()
        .map_err(|e| could_not("read", place.path(), e))?;
    let own = record.map(Record::name_in_tablespaces);
    is_free(place, &names, own.as_deref())
}

/// Removes what the recorded restore left, which was looked at before.
fn clear(directory: &Folder, folder: &Folder, record: &Record) -> Result<()> {
    for path in record.tablespaces() {
        match Folder::open(&path) {
            Ok(place) => remove(&place, &record.name_in_tablespaces())?,
            // It was taken away, or is not mounted: whoever uses it next is told what lies there.
            Err(e) if matches!(e.kind(), NotFound | NotADirectory) => {}
            Err(e) => return Err(could_not("open directory", &path, e)),
        }
    }
    for (name, identity) in record.moved() {
        let found = directory
            .identity(&name)
            .map_err(|e| could_not("look at", &directory.path_of(&name), e))?;
        if found == Some(identity) {
            remove(directory, &name)?;
        }
    }
    remove(folder, OsStr::new(DATA))
}

fn remove(directory: &Folder, name: &OsStr) -> Result<()> {
    directory
        .remove_all(name)
        .map_err(|e| could_not("remove", &directory.path().join(&e.path), e.source))
}

/// Checks that a place is still the directory that its path leads to, with nothing in it but `own`.
fn still_alone(place: &Folder, own: &OsStr) -> Result<()> {
    let path = place.path();
    let failed = |e| could_not("look at", path, e);
    let here = place.facts().map_err(failed)?.place;
    let is_here = Folder::open(path)
        .and_then(|named| named.facts())
        .is_ok_and(|named| named.place == here);
    if !is_here {
        return Err(
            refused(path, "another directory has its place by now").hint(
                "It may be a live server's. Nothing of it was touched; restore to another place.",
            ),
        );
    }
    let names = place.names().map_err(failed)?;
    match names.iter().find(|name| *name != own) {
        Some(name) => Err(came_meanwhile(place, name)),
        None => Ok(()),
    }
}

fn came_meanwhile(place: &Folder, name: &OsStr) -> Error {
    let problem = format!(
        "\"{}\" has come there while the restore ran",
        name.display()
    );
    refused(place.path(), &problem)
        .hint("It may be a live server's. Nothing of it was touched; restore to another place.")
}

/// Moves a name up where nothing may have come meanwhile.
fn move_up(from: &Folder, name: &OsStr, to: &Folder) -> Result<()> {
    from.move_to(name, to, name).map_err(|e| {
        if e.kind() == AlreadyExists {
            came_meanwhile(to, name)
        } else {
            could_not("move", &from.path_of(name), e)
        }
    })
}
