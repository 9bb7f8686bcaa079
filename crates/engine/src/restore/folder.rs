//! An open directory of the destination, with its path for messages.

use std::ffi::OsStr;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use leeward_postgres::directory::Directory;

/// An open directory.
#[derive(Debug)]
pub(super) struct Folder {
    directory: Directory,
    path: PathBuf,
}

impl Folder {
    /// Opens a resolved path; one that leads through a link by now is another place, and an error.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            directory: Directory::open(path)?,
            path: path.to_owned(),
        })
    }

    /// Opens a directory in it.
    pub(super) fn folder(&self, name: &OsStr) -> io::Result<Self> {
        Ok(Self {
            directory: self.directory.open_directory(name)?,
            path: self.path.join(name),
        })
    }

    /// Opens a directory below it.
    pub(super) fn below(&self, relative: &Path) -> io::Result<Self> {
        Ok(Self {
            directory: self.directory.open_path(relative)?,
            path: self.path.join(relative),
        })
    }

    /// The path it was opened by. It is for people: another directory may have it by now.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a name in it, for messages.
    pub(super) fn path_of(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }
}

impl Deref for Folder {
    type Target = Directory;

    fn deref(&self) -> &Directory {
        &self.directory
    }
}
