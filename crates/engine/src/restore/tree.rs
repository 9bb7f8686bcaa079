//! The directories that a restore writes: its data directory and the tablespaces outside it, each below an open handle.
//! Every name is created exclusively in a directory that this restore made, so nothing that somebody else puts in the
//! way, be it a link, is followed or changed.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use leeward_postgres::server_user::{Acting, ServerUser};

use super::could_not;
use super::folder::Folder;
use crate::configuration::CONFIGURATION_BYTES_LIMIT;
use crate::error::{self, Error, Result};

/// Directories that are kept open, of all roots together. A restore has to do with 1,024 descriptors, whatever the number of its
/// databases and tablespaces.
const OPEN_DIRECTORIES: usize = 128;

/// The device and inode of something this restore made.
pub(super) type Made = (u64, u64);

/// The tree of files that a restore writes.
#[derive(Debug)]
pub(super) struct Tree {
    /// The data directory, then the tablespaces outside it.
    roots: Vec<Root>,
    /// The location of each linked tablespace, by its name below `pg_tblspc`.
    tablespaces: HashMap<OsString, Location>,
    /// As root: whose rights all of it is done with.
    user: Option<ServerUser>,
}

/// The location of a tablespace.
#[derive(Debug)]
pub(super) enum Location {
    /// In the data directory, at this path relative to it.
    Inside(PathBuf),
    /// In this directory.
    Outside(Arc<Folder>),
}

#[derive(Debug)]
struct Root {
    directory: Arc<Folder>,
    known: Mutex<Known>,
    /// Its share of [`OPEN_DIRECTORIES`].
    open_directories: usize,
}

/// Directories of a root by their path in it.
#[derive(Debug, Default)]
struct Known {
    made: HashMap<PathBuf, Made>,
    open: HashMap<PathBuf, Arc<Folder>>,
}

impl Root {
    fn new(directory: Arc<Folder>, open_directories: usize) -> Self {
        Self {
            directory,
            known: Mutex::default(),
            open_directories,
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing panics with it half-changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tree {
    /// A tree whose data directory is `data`, with these linked tablespaces.
    pub(super) fn new(
        data: Arc<Folder>,
        tablespaces: impl IntoIterator<Item = (OsString, Location)>,
        user: Option<ServerUser>,
    ) -> Self {
        let tablespaces: HashMap<OsString, Location> = tablespaces.into_iter().collect();
        let mut directories = vec![data];
        for location in tablespaces.values() {
            if let Location::Outside(directory) = location {
                directories.push(Arc::clone(directory));
            }
        }
        let share = (OPEN_DIRECTORIES / directories.len()).max(2);
        let roots = directories.into_iter();
        Self {
            roots: roots.map(|directory| Root::new(directory, share)).collect(),
            tablespaces,
            user,
        }
    }

    /// Begins to write. As root, this thread acts as the server's user until the writer is dropped, so a store is read
    /// before or after.
    pub(super) fn writer(&self) -> Result<Writer<'_>> {
        Ok(Writer {
            tree: self,
            _acting: act(self.user.as_ref())?,
        })
    }

    /// Makes everything durable on the file systems written to. They are held open from before the first write: an error
    /// of writing back is told once to each that was open when it happened.
    pub(super) fn sync_file_systems(&self) -> Result<()> {
        self.roots.iter().try_for_each(|root| {
            root.directory
                .sync_file_system()
                .map_err(|e| could_not("sync the file system of", root.directory.path(), e))
        })
    }

    /// Returns whether a directory of this path has been made.
    pub(super) fn has_directory(&self, place: &Path) -> bool {
        let (root, inside) = self.resolve(place);
        inside == Path::new("") || root.known().made.contains_key(&inside)
    }

    /// The root and the path in it of a path relative to the data directory.
    fn resolve(&self, place: &Path) -> (&Root, PathBuf) {
        if let Ok(inside) = place.strip_prefix("pg_tblspc") {
            let mut names = inside.iter();
            let location = names.next().and_then(|name| self.tablespaces.get(name));
            match location {
                Some(Location::Inside(path)) => {
                    return (&self.roots[0], path.join(names.as_path()));
                }
                Some(Location::Outside(directory)) => {
                    let root = self
                        .roots
                        .iter()
                        .find(|root| Arc::ptr_eq(&root.directory, directory));
                    if let Some(root) = root {
                        return (root, names.as_path().to_owned());
                    }
                }
                None => {}
            }
        }
        (&self.roots[0], place.to_owned())
    }
}

/// Lets this thread act as `user`, if there is one to act as.
pub(super) fn act(user: Option<&ServerUser>) -> Result<Option<Acting>> {
    user.map(|user| {
        user.act()
            .map_err(|e| Error::failed(format!("could not act as {}", user.describe())).because(e))
    })
    .transpose()
}

/// A thread that writes.
pub(super) struct Writer<'a> {
    tree: &'a Tree,
    _acting: Option<Acting>,
}

impl Writer<'_> {
    /// Makes a directory, with those it lies in, unless this restore has made it already.
    pub(super) fn make_directory(&self, place: &Path) -> Result<()> {
        let (root, inside) = self.tree.resolve(place);
        make(root, &mut root.known(), &inside).map(drop)
    }

    /// Creates a file, for writing. Its directory has been made.
    pub(super) fn create(&self, place: &Path, mode: u32) -> Result<File> {
        let (directory, name) = self.parent(place)?;
        let file = directory
            .create(&name, mode)
            .map_err(|e| could_not_make("create", &directory.path_of(&name), e))?;
        if mode & 0o77 != 0 {
            // The process's umask may have taken bits away.
            file.set_permissions(Permissions::from_mode(mode & 0o777))
                .map_err(|e| could_not("set the mode of", &directory.path_of(&name), e))?;
        }
        Ok(file)
    }

    /// Opens a file that this restore created, to write more of it.
    pub(super) fn reopen(&self, place: &Path, made: Made) -> Result<File> {
        let (directory, name) = self.parent(place)?;
        let opened = directory.open_to_write(&name).and_then(|file| {
            let found = file.metadata()?;
            if (found.dev(), found.ino()) == made {
                Ok(file)
            } else {
                Err(replaced())
            }
        });
        opened.map_err(|e| could_not("open", &directory.path_of(&name), e))
    }

    /// Writes a new file whole.
    pub(super) fn write(&self, place: &Path, bytes: &[u8], mode: u32) -> Result<()> {
        let mut file = self.create(place, mode)?;
        file.write_all(bytes)
            .map_err(|e| could_not("write", &self.path(place), e))
    }

    /// Writes a file whole, in place of the one that this restore wrote before, whose mode it keeps.
    pub(super) fn rewrite(&self, place: &Path, bytes: &[u8]) -> Result<()> {
        if let Some(parent) = place.parent() {
            self.make_directory(parent)?;
        }
        let (directory, name) = self.parent(place)?;
        let path = directory.path_of(&name);
        let mut mode = 0o600;
        if let Some(found) = directory
            .look(&name)
            .map_err(|e| could_not("look at", &path, e))?
        {
            mode = found.mode & 0o777 | 0o600;
            directory
                .remove_file(&name)
                .map_err(|e| could_not("remove", &path, e))?;
        }
        self.write(place, bytes, mode)
    }

    /// Gives a file of the data directory another name there, in place of the file that has it.
    pub(super) fn rename(&self, from: &OsStr, to: &OsStr) -> Result<()> {
        let directory = &self.tree.roots[0].directory;
        directory
            .replace(from, to)
            .map_err(|e| could_not("rename", &directory.path().join(from), e))
    }

    /// Makes a symbolic link.
    pub(super) fn make_link(&self, target: &Path, place: &Path) -> Result<()> {
        if let Some(parent) = place.parent() {
            self.make_directory(parent)?;
        }
        // The link of a tablespace lies in the data directory, the tablespace does not.
        let directory = self.open(&self.tree.roots[0], place.parent().unwrap_or(Path::new("")))?;
        let name = place.file_name().unwrap_or_default();
        directory
            .make_link(target, name)
            .map_err(|e| could_not_make("make the link", &directory.path_of(name), e))
    }

    /// Sets the mode of a directory that this restore made.
    pub(super) fn set_directory_mode(&self, place: &Path, mode: u32) -> Result<()> {
        let (root, inside) = self.tree.resolve(place);
        let directory = self.open(root, &inside)?;
        directory
            .set_mode(mode)
            .map_err(|e| could_not("set the mode of", directory.path(), e))
    }

    /// Reads a file of the data directory that may be configuration; `None` where there is no such file.
    pub(super) fn read(&self, place: &Path) -> Result<Option<Vec<u8>>> {
        let parent = place.parent().unwrap_or(Path::new(""));
        if !self.tree.has_directory(parent) || place.file_name().is_none() {
            return Ok(None);
        }
        let (directory, name) = self.parent(place)?;
        let path = directory.path_of(&name);
        let is_file = directory
            .look(&name)
            .map_err(|e| could_not("look at", &path, e))?
            .is_some_and(|found| found.is_file());
        if !is_file {
            return Ok(None);
        }
        directory
            .read(&name, CONFIGURATION_BYTES_LIMIT)
            .map(Some)
            .map_err(|e| could_not("read", &path, e))
    }

    /// The names in a directory of the data directory; `None` where there is no such directory.
    pub(super) fn names(&self, place: &Path) -> Option<Vec<OsString>> {
        if !self.tree.has_directory(place) {
            return None;
        }
        let (root, inside) = self.tree.resolve(place);
        self.open(root, &inside).ok()?.names().ok()
    }

    /// Returns whether this restore wrote a file or directory of this path.
    pub(super) fn has(&self, place: &Path) -> bool {
        let parent = place.parent().unwrap_or(Path::new(""));
        self.tree.has_directory(parent)
            && self
                .parent(place)
                .is_ok_and(|(directory, name)| matches!(directory.look(&name), Ok(Some(_))))
    }

    /// The open directory that `place` lies in, and its name there.
    fn parent(&self, place: &Path) -> Result<(Arc<Folder>, OsString)> {
        let (root, inside) = self.tree.resolve(place);
        let name = inside.file_name().unwrap_or_default().to_owned();
        let parent = inside.parent().unwrap_or(Path::new(""));
        Ok((self.open(root, parent)?, name))
    }

    fn open(&self, root: &Root, inside: &Path) -> Result<Arc<Folder>> {
        open(root, &mut root.known(), inside)
    }

    /// The whole path of a file, for messages.
    pub(super) fn path(&self, place: &Path) -> PathBuf {
        let (root, inside) = self.tree.resolve(place);
        root.directory.path().join(inside)
    }
}

/// An open directory of a root that this restore made.
fn open(root: &Root, known: &mut Known, inside: &Path) -> Result<Arc<Folder>> {
    if inside == Path::new("") {
        return Ok(Arc::clone(&root.directory));
    }
    if let Some(directory) = known.open.get(inside) {
        return Ok(Arc::clone(directory));
    }
    let opened = root.directory.below(inside).and_then(|directory| {
        if known.made.get(inside) == Some(&directory.facts()?.place) {
            Ok(directory)
        } else {
            Err(replaced())
        }
    });
    let directory =
        opened.map_err(|e| could_not("open directory", &root.directory.path().join(inside), e))?;
    Ok(keep(root, known, inside, directory))
}

/// As [`open`], making what has not been made.
fn make(root: &Root, known: &mut Known, inside: &Path) -> Result<Arc<Folder>> {
    if inside == Path::new("") || known.made.contains_key(inside) {
        return open(root, known, inside);
    }
    let parent = make(root, known, inside.parent().unwrap_or(Path::new("")))?;
    let name = inside.file_name().unwrap_or_default();
    let path = parent.path_of(name);
    parent
        .make_directory(name, 0o700)
        .map_err(|e| could_not_make("make directory", &path, e))?;
    let opened = parent
        .folder(name)
        .and_then(|directory| Ok((directory.facts()?.place, directory)));
    let (made, directory) = opened.map_err(|e| could_not("open directory", &path, e))?;
    known.made.insert(inside.to_owned(), made);
    Ok(keep(root, known, inside, directory))
}

fn keep(root: &Root, known: &mut Known, inside: &Path, directory: Folder) -> Arc<Folder> {
    if known.open.len() >= root.open_directories {
        known.open.clear();
    }
    let directory = Arc::new(directory);
    known.open.insert(inside.to_owned(), Arc::clone(&directory));
    directory
}

fn replaced() -> io::Error {
    io::Error::other("it is not what this restore made there: something else replaced it")
}

/// A name that could not be made, perhaps because there is something of that name.
fn could_not_make(what: &str, path: &Path, source: io::Error) -> Error {
    if source.kind() != ErrorKind::AlreadyExists {
        return could_not(what, path, source);
    }
    Error::new(
        error::ErrorKind::Damaged,
        format!(
            "could not {what} \"{}\": there is something of that name already",
            path.display()
        ),
    )
    .hint("The manifest names it twice, or as a file and as a directory; or something else writes there. Restore another backup.")
}
