//! Directories as open handles. A name is looked up below a handle, one name at a time, and no symbolic link is followed
//! that was not asked for, so that nobody who renames or replaces what lies on the way leads a reader elsewhere.
//!
//! One name below a handle, opened with `O_NOFOLLOW`, is what `openat2` with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`
//! gives, and holds on every kernel.

mod write;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

pub use write::{Identity, NameError, RemoveError};

/// How a directory is opened: for reading, never through a link, never kept by a child process.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// How a file is opened. Without `O_NONBLOCK` a pipe in its place would make the reader wait for ever.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    handle: OwnedFd,
}

/// What the file system says of a name, which may be a link's.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// What it is.
    pub kind: FileType,
    /// Permission bits (`st_mode & 07777`).
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Bytes.
    pub size_bytes: u64,
    /// When the content was changed, seconds since 1970 UTC.
    pub modified_s: i64,
    /// The file system's number and the inode's.
    pub place: (u64, u64),
}

impl Facts {
    fn of(stat: &Stat) -> Self {
        Self {
            kind: FileType::from_raw_mode(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
            size_bytes: u64::try_from(stat.st_size).unwrap_or_default(),
            modified_s: stat.st_mtime,
            place: (stat.st_dev, stat.st_ino),
        }
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.kind == FileType::Directory
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.kind == FileType::RegularFile
    }

    /// Whether it is a symbolic link.
    #[must_use]
    pub fn is_link(&self) -> bool {
        self.kind == FileType::Symlink
    }
}

impl Directory {
    /// Opens an absolute path from the root directory on. A link anywhere on it is an error, so resolve a path that a
    /// user named (`std::fs::canonicalize`) before.
    ///
    /// # Errors
    /// The system's; `ELOOP` or `ENOTDIR` for a link.
    pub fn open(path: &Path) -> io::Result<Self> {
        // To pass through a directory takes the right to search it, not to read it.
        let passed = DIRECTORY.union(OFlags::PATH);
        let mut names = Vec::new();
        for part in path.components() {
            match part {
                Component::RootDir => {}
                Component::Normal(name) => names.push(name),
                _ => return Err(Errno::INVAL.into()),
            }
        }
        if !path.is_absolute() {
            return Err(Errno::INVAL.into());
        }
        let Some((last, parents)) = names.split_last() else {
            let handle = fs::open("/", DIRECTORY, Mode::empty())?;
            return Ok(Self { handle });
        };
        let mut handle = fs::open("/", passed, Mode::empty())?;
        for name in parents {
            handle = fs::openat(&handle, *name, passed, Mode::empty())?;
        }
        let handle = fs::openat(&handle, *last, DIRECTORY, Mode::empty())?;
        Ok(Self { handle })
    }

    /// Opens the directory `name` in this one.
    ///
    /// # Errors
    /// The system's; `ELOOP` or `ENOTDIR` when it is a link or a file.
    pub fn open_directory(&self, name: &OsStr) -> io::Result<Self> {
        let handle = fs::openat(&self.handle, single(name)?, DIRECTORY, Mode::empty())?;
        Ok(Self { handle })
    }

    /// Opens the directory `name`, or the one that a link of this name leads to, wherever that is.
    ///
    /// # Errors
    /// The system's.
    pub fn open_linked_directory(&self, name: &OsStr) -> io::Result<Self> {
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        let handle = fs::openat(&self.handle, single(name)?, flags, Mode::empty())?;
        Ok(Self { handle })
    }

    /// Opens what lies behind several names, each a directory in the one before.
    ///
    /// # Errors
    /// As [`Self::open_directory`]; `EINVAL` for `..` or an absolute path.
    pub fn open_path(&self, relative: &Path) -> io::Result<Self> {
        let mut inner = Self {
            handle: self.handle.try_clone()?,
        };
        for part in relative.components() {
            let Component::Normal(name) = part else {
                return Err(Errno::INVAL.into());
            };
            inner = inner.open_directory(name)?;
        }
        Ok(inner)
    }

    /// Opens the regular file `name` for reading. A pipe does not make it wait.
    ///
    /// # Errors
    /// The system's; `ELOOP` for a link, `EINVAL` for anything else that is no regular file.
    pub fn open_file(&self, name: &OsStr) -> io::Result<File> {
        self.open_regular(name, FILE | OFlags::NOFOLLOW)
    }

    /// Opens the regular file `name` for reading, or the one that a link of this name leads to, wherever that is.
    ///
    /// # Errors
    /// The system's; `EINVAL` for anything that is no regular file.
    pub fn open_linked_file(&self, name: &OsStr) -> io::Result<File> {
        self.open_regular(name, FILE)
    }

    fn open_regular(&self, name: &OsStr, flags: OFlags) -> io::Result<File> {
        regular(fs::openat(&self.handle, single(name)?, flags, Mode::empty())?.into())
    }

    /// Reads the regular file `name`, `limit` bytes at most.
    ///
    /// # Errors
    /// As [`Self::open_file`], and [`io::ErrorKind::FileTooLarge`].
    pub fn read(&self, name: &OsStr, limit: u64) -> io::Result<Vec<u8>> {
        read_limited(self.open_file(name)?, limit)
    }

    /// The names in it, in no order.
    ///
    /// # Errors
    /// The system's.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.handle)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        Ok(names)
    }

    /// What `name` is; `None` when there is none.
    ///
    /// # Errors
    /// The system's.
    pub fn look(&self, name: &OsStr) -> io::Result<Option<Facts>> {
        match fs::statat(&self.handle, single(name)?, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Facts::of(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// What lies behind the link `name`.
    ///
    /// # Errors
    /// The system's; `ENOENT` and `ELOOP` for one that leads nowhere.
    pub fn look_behind(&self, name: &OsStr) -> io::Result<Facts> {
        let stat = fs::statat(&self.handle, single(name)?, AtFlags::empty())?;
        Ok(Facts::of(&stat))
    }

    /// What the directory itself is.
    ///
    /// # Errors
    /// The system's.
    pub fn facts(&self) -> io::Result<Facts> {
        Ok(Facts::of(&fs::fstat(&self.handle)?))
    }

    /// Where the symbolic link `name` points, as it says.
    ///
    /// # Errors
    /// The system's; `EINVAL` when it is no link.
    pub fn read_link(&self, name: &OsStr) -> io::Result<PathBuf> {
        let target = fs::readlinkat(&self.handle, single(name)?, Vec::new())?;
        Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// Reads a regular file by its path, through links if there are any on the way, `limit` bytes at most. A pipe in its
/// place does not make the reader wait.
///
/// # Errors
/// The system's; `EINVAL` for what is no regular file, and [`io::ErrorKind::FileTooLarge`].
pub fn read_file(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_limited(regular(fs::open(path, FILE, Mode::empty())?.into())?, limit)
}

fn read_limited(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is longer than {limit} bytes"),
        ));
    }
    Ok(bytes)
}

/// Refuses what is not one name: the kernel would look for a path.
fn single(name: &OsStr) -> io::Result<&OsStr> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(Errno::INVAL.into());
    }
    Ok(name)
}

fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(Errno::INVAL.into())
    }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
