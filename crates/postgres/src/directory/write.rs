//! Writing below an open directory: each name is one name, and what has it already is neither followed nor replaced.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, RenameFlags, ResolveFlags, StatxFlags, Uid};
use rustix::io::Errno;

use super::{DIRECTORY, Directory, regular, single};

/// Tells a file or directory from another that has its name later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its inode number, unique in its file system while it exists.
    pub inode: u64,
    /// When it was created, seconds and nanoseconds since 1970, where the file system tells: inode numbers are used again.
    pub born: Option<(i64, u32)>,
}

/// Something below a directory that could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("could not remove \"{}\": {source}", path.display())]
pub struct RemoveError {
    /// Its path, relative to the directory.
    pub path: PathBuf,
    /// The system's answer.
    pub source: io::Error,
}

/// Files that could not all get their final names, so that none has one.
#[derive(Debug)]
pub struct NameError {
    /// The final name that was refused; `None` where the directory could not be synced.
    pub refused: Option<OsString>,
    /// The system's answer.
    pub source: io::Error,
    /// Final names that could not be taken back.
    pub left: Vec<OsString>,
}

impl Directory {
    /// The identity of what has the name `name`; `None` when nothing has it.
    ///
    /// # Errors
    /// The system's.
    pub fn identity(&self, name: &OsStr) -> io::Result<Option<Identity>> {
        let wanted = StatxFlags::INO | StatxFlags::BTIME;
        match fs::statx(self, single(name)?, AtFlags::SYMLINK_NOFOLLOW, wanted) {
            Ok(found) => {
                let told = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::BTIME);
                Ok(Some(Identity {
                    inode: found.stx_ino,
                    born: told.then_some((found.stx_btime.tv_sec, found.stx_btime.tv_nsec)),
                }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOSYS) => Ok(self.look(name)?.map(|facts| Identity {
                inode: facts.place.1,
                born: None,
            })),
            Err(e) => Err(e.into()),
        }
    }

    /// Makes the directory `name`.
    ///
    /// # Errors
    /// The system's; `EEXIST` when anything has the name.
    pub fn make_directory(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        let mode = Mode::from_raw_mode(mode & 0o777);
        Ok(fs::mkdirat(self, single(name)?, mode)?)
    }

    /// Creates the file `name`, for writing.
    ///
    /// # Errors
    /// The system's; `EEXIST` when anything has the name, be it a link that leads nowhere.
    pub fn create(&self, name: &OsStr, mode: u32) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        Ok(File::from(self.open_with(name, flags, mode)?))
    }

    /// Opens the regular file `name` for reading and writing.
    ///
    /// # Errors
    /// The system's; a link, and anything else that is no regular file, are errors.
    pub fn open_to_write(&self, name: &OsStr) -> io::Result<File> {
        regular(
            self.open_with(name, OFlags::RDWR | OFlags::NONBLOCK, 0)?
                .into(),
        )
    }

    /// Opens the regular file `name` for reading and writing, and creates it where nothing has the name.
    ///
    /// # Errors
    /// As [`Self::open_to_write`].
    pub fn open_or_create(&self, name: &OsStr, mode: u32) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK;
        regular(self.open_with(name, flags, mode)?.into())
    }

    fn open_with(&self, name: &OsStr, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(fs::openat(
            self,
            single(name)?,
            flags,
            Mode::from_raw_mode(mode & 0o777),
        )?)
    }

    /// Makes the symbolic link `name`.
    ///
    /// # Errors
    /// The system's; `EEXIST` when anything has the name.
    pub fn make_link(&self, target: &Path, name: &OsStr) -> io::Result<()> {
        Ok(fs::symlinkat(target, self, single(name)?)?)
    }

    /// Moves `name` to the name `to` in a directory of the same file system.
    ///
    /// # Errors
    /// The system's; `EEXIST` when anything has the name there.
    pub fn move_to(&self, name: &OsStr, other: &Self, to: &OsStr) -> io::Result<()> {
        let (name, to) = (single(name)?, single(to)?);
        match fs::renameat_with(self, name, other, to, RenameFlags::NOREPLACE) {
            // Some file systems, as NFS, cannot promise it. There, a directory is still not replaced unless it is empty.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                if other.look(to)?.is_some() {
                    return Err(Errno::EXIST.into());
                }
                Ok(fs::renameat(self, name, other, to)?)
            }
            moved => Ok(moved?),
        }
    }

    /// Gives `name` the name `to`, in place of the file that has it.
    ///
    /// # Errors
    /// The system's.
    pub fn replace(&self, name: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(fs::renameat(self, single(name)?, self, single(to)?)?)
    }

    /// Gives files their final names, durably: all or, where one cannot have it or the directory cannot be synced, none.
    /// Whoever looks into the directory then finds the same end as whoever reads the error.
    ///
    /// # Errors
    /// The system's; `EEXIST` when anything has a final name.
    pub fn name_files(&self, names: &[(&OsStr, &OsStr)]) -> Result<(), NameError> {
        self.name_files_and(names, Self::sync)
    }

    pub(super) fn name_files_and(
        &self,
        names: &[(&OsStr, &OsStr)],
        sync: impl Fn(&Self) -> io::Result<()>,
    ) -> Result<(), NameError> {
        let mut named = 0;
        let mut name_all = || {
            for (name, to) in names {
                self.move_to(name, self, to)
                    .map_err(|e| (Some(OsString::from(to)), e))?;
                named += 1;
            }
            sync(self).map_err(|e| (None, e))
        };
        name_all().map_err(|(refused, source)| {
            let mut left = Vec::new();
            for (name, to) in names[..named].iter().rev() {
                if self.move_to(to, self, name).is_err() {
                    left.push(OsString::from(to));
                }
            }
            // The sync that failed a moment ago may fail again; a crash then brings back one of two names of a whole file.
            let _ = sync(self);
            NameError {
                refused,
                source,
                left,
            }
        })
    }

    /// Removes the file or link `name`.
    ///
    /// # Errors
    /// The system's.
    pub fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        Ok(fs::unlinkat(self, single(name)?, AtFlags::empty())?)
    }

    /// Removes the empty directory `name`.
    ///
    /// # Errors
    /// The system's.
    pub fn remove_directory(&self, name: &OsStr) -> io::Result<()> {
        Ok(fs::unlinkat(self, single(name)?, AtFlags::REMOVEDIR)?)
    }

    /// Removes `name` and, if it is a directory, everything below it, but nothing that a link leads to or that is mounted.
    ///
    /// # Errors
    /// The system's, with the path that could not be removed.
    pub fn remove_all(&self, name: &OsStr) -> Result<(), RemoveError> {
        let failed = |source: io::Error| RemoveError {
            path: PathBuf::from(name),
            source,
        };
        let Some(found) = self.look(name).map_err(failed)? else {
            return Ok(());
        };
        if !found.is_directory() {
            return self.remove_file(name).map_err(failed);
        }
        let inner = self.open_unless_mounted(name).map_err(failed)?;
        for entry in inner.names().map_err(failed)? {
            inner.remove_all(&entry).map_err(|e| RemoveError {
                path: Path::new(name).join(e.path),
                source: e.source,
            })?;
        }
        drop(inner);
        self.remove_directory(name).map_err(failed)
    }

    /// Opens the directory `name` unless something is mounted there.
    fn open_unless_mounted(&self, name: &OsStr) -> io::Result<Self> {
        let rules = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        match fs::openat2(self, single(name)?, DIRECTORY, Mode::empty(), rules) {
            Ok(handle) => Ok(Self { handle }),
            // Without the call a file system of its own is seen, a bind mount is not.
            Err(Errno::NOSYS | Errno::PERM) => {
                let inner = self.open_directory(name)?;
                if inner.facts()?.place.0 != self.facts()?.place.0 {
                    return Err(Errno::XDEV.into());
                }
                Ok(inner)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Sets the directory's own permission bits.
    ///
    /// # Errors
    /// The system's.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(fs::fchmod(self, Mode::from_raw_mode(mode & 0o777))?)
    }

    /// Gives the directory itself to a user and group.
    ///
    /// # Errors
    /// The system's; only root can.
    pub fn set_owner(&self, (user, group): (u32, u32)) -> io::Result<()> {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        Ok(fs::fchown(self, Some(user), Some(group))?)
    }

    /// Makes the names in it durable.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self) -> io::Result<()> {
        Ok(fs::fsync(self)?)
    }

    /// Makes everything on its file system durable (`syncfs`, which tells of errors since Linux 5.8).
    ///
    /// # Errors
    /// The system's.
    pub fn sync_file_system(&self) -> io::Result<()> {
        Ok(fs::syncfs(self)?)
    }
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
