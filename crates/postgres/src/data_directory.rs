//! A data directory as it lies on disk: what is in it, in a fixed order, and how its files are read.
//!
//! The walk visits names twice at most: once for relation segments, once for everything else (design rule 4 reads them
//! in that order). It holds the names of one directory at a time, so its memory is bounded by the largest directory,
//! not by the cluster.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use leeward_pgformat::classify::{FileClass, classify};
use leeward_pgformat::control_file::{CONTROL_FILE_SIZE, ControlFile, ControlFileError};
use leeward_pgformat::relation::Fork;
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::directory::{Directory, Facts};

/// Why a directory could not be taken for a data directory, or could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DataDirectoryError {
    /// The directory lacks what every data directory has.
    #[error("\"{}\" is not a PostgreSQL data directory: {reason}", path.display())]
    NotADataDirectory {
        /// The directory that was named.
        path: PathBuf,
        /// What is missing or wrong, in words.
        reason: String,
    },
    /// A file or directory inside could not be read.
    #[error("could not read \"{}\": {source}", path.display())]
    Read {
        /// What was being read.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// `global/pg_control` stayed unreadable over several attempts.
    #[error("could not make sense of \"{}\": {source}", path.display())]
    ControlFile {
        /// The control file.
        path: PathBuf,
        /// What is wrong with its bytes.
        source: ControlFileError,
    },
}

/// What one pass of the walk visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Relation segments only.
    Relations,
    /// Directories, links and every other file but `global/pg_control`.
    EverythingElse,
}

/// What kind of thing an [`Entry`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file, with its size in bytes when it was seen.
    File {
        /// Bytes.
        size_bytes: u64,
    },
    /// A directory. Its contents follow as entries of their own.
    Directory,
    /// A symbolic link that is kept as a link: a tablespace, or a linked directory that PostgreSQL does not know.
    Symlink {
        /// Where it points, as stored in the link.
        target: PathBuf,
    },
}

/// One thing found in the data directory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Path relative to the data directory; tablespaces appear below `pg_tblspc/<oid>`.
    pub path: PathBuf,
    /// Where it is read.
    pub place: Place,
    /// What it is.
    pub kind: EntryKind,
    /// How PostgreSQL would call it.
    pub class: FileClass,
    /// Permission bits (`st_mode & 07777`).
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Modification time, seconds since 1970 UTC.
    pub modified_s: i64,
}

/// Where a file of the data directory lies: beneath a directory that is held open, so that a file system that is
/// unmounted, or a directory that is renamed, meanwhile does not make it vanish.
#[derive(Clone, Debug)]
pub struct Place {
    /// The data directory itself, or a directory that a link in it leads to.
    directory: Arc<Directory>,
    /// The path in that directory.
    inside: PathBuf,
    /// Whether the name is a link to the file.
    linked: bool,
    /// The path in full, for messages.
    path: PathBuf,
}

impl Place {
    /// A file that lies outside the data directory at `path`, in the opened `directory`, and may be a link.
    #[must_use]
    pub fn outside(directory: Arc<Directory>, path: &Path) -> Self {
        Self {
            directory,
            inside: path.file_name().unwrap_or_default().into(),
            linked: true,
            path: path.to_owned(),
        }
    }

    /// The path in full, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self, directory: &Directory, name: &OsStr) -> io::Result<File> {
        if self.linked {
            directory.open_linked_file(name)
        } else {
            directory.open_file(name)
        }
    }
}

/// An opened data directory.
#[derive(Clone, Debug)]
pub struct DataDirectory {
    path: PathBuf,
    root: Arc<Directory>,
}

/// How often `global/pg_control` is read before a bad checksum is believed: the server rewrites it in place, so a reader
/// may see half of a write (`get_controlfile` in src/common/controldata_utils.c retries likewise).
const CONTROL_FILE_ATTEMPTS: u32 = 10;

impl DataDirectory {
    /// Opens `path`, which must hold `PG_VERSION` and `global/pg_control`.
    ///
    /// # Errors
    /// [`DataDirectoryError::NotADataDirectory`] says what is missing.
    pub fn open(path: &Path) -> Result<Self, DataDirectoryError> {
        let refuse = |reason: String| DataDirectoryError::NotADataDirectory {
            path: path.to_owned(),
            reason,
        };
        let resolved = std::fs::canonicalize(path).map_err(|e| refuse(e.to_string()))?;
        let root = match Directory::open(&resolved) {
            Ok(root) => root,
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
                return Err(refuse("it is not a directory".into()));
            }
            Err(source) => {
                return Err(DataDirectoryError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let found = |inside: &str, found: io::Result<Facts>| match found {
            Ok(_) => Ok(()),
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Err(DataDirectoryError::Read {
                    path: path.join(inside),
                    source,
                })
            }
            Err(_) => Err(refuse(format!("it has no \"{inside}\""))),
        };
        found("PG_VERSION", root.look_behind(OsStr::new("PG_VERSION")))?;
        let control = root
            .open_linked_directory(OsStr::new("global"))
            .and_then(|global| global.look_behind(OsStr::new("pg_control")));
        found("global/pg_control", control)?;
        Ok(Self {
            path: resolved,
            root: Arc::new(root),
        })
    }

    /// The directory itself, absolute, links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Owner and group of the directory: those of the server, which accepts no other owner (`checkDataDir` in
    /// src/backend/utils/init/miscinit.c).
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn owner(&self) -> Result<(u32, u32), DataDirectoryError> {
        let facts = self.root.facts().map_err(|e| self.unread("", e))?;
        Ok(facts.owner)
    }

    /// Opens a directory inside, by way of the links that the server follows too.
    ///
    /// # Errors
    /// The system's.
    pub fn open_directory(&self, path: &Path) -> io::Result<Directory> {
        let mut at = PathBuf::new();
        let mut directory = self.root.open_path(&at)?;
        for name in path {
            at.push(name);
            directory = if is_tablespace(&at) || is_own_directory(&at) {
                directory.open_linked_directory(name)?
            } else {
                directory.open_directory(name)?
            };
        }
        Ok(directory)
    }

    /// What lies at `path`, or behind the link there; `None` where there is nothing, or a link that leads nowhere.
    ///
    /// # Errors
    /// The system's.
    pub fn find(&self, path: &Path) -> io::Result<Option<Facts>> {
        let name = path.file_name().unwrap_or_default();
        let folder = path.parent().unwrap_or(Path::new(""));
        let found = self
            .open_directory(folder)
            .and_then(|folder| folder.look_behind(name));
        match found {
            Ok(facts) => Ok(Some(facts)),
            Err(e) if gone(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Where `pg_wal` leads to, as stored in the link; `None` where it is a directory.
    #[must_use]
    pub fn wal_link(&self) -> Option<PathBuf> {
        self.root.read_link(OsStr::new("pg_wal")).ok()
    }

    /// Reads `global/pg_control`, again while its checksum does not match, and returns it with its bytes.
    ///
    /// # Errors
    /// When it cannot be read, or is still damaged after several attempts.
    pub fn control_file(&self) -> Result<(ControlFile, Vec<u8>), DataDirectoryError> {
        const NAME: &str = "global/pg_control";
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut bytes = self
                .root
                .open_linked_directory(OsStr::new("global"))
                .and_then(|global| global.read(OsStr::new("pg_control"), CONTROL_FILE_SIZE as u64))
                .map_err(|e| self.unread(NAME, e))?;
            match ControlFile::parse(&bytes) {
                Ok(control) => {
                    bytes.resize(CONTROL_FILE_SIZE, 0);
                    return Ok((control, bytes));
                }
                Err(ControlFileError::BadCrc { .. }) if attempt < CONTROL_FILE_ATTEMPTS => {
                    std::thread::yield_now()
                }
                Err(source) => {
                    return Err(DataDirectoryError::ControlFile {
                        path: self.path.join(NAME),
                        source,
                    });
                }
            }
        }
    }

    fn unread(&self, inside: &str, source: io::Error) -> DataDirectoryError {
        DataDirectoryError::Read {
            path: self.path.join(inside),
            source,
        }
    }

    /// Visits everything of `pass`, directories before what they hold, names in byte order.
    ///
    /// What vanishes while it is looked at is passed over: the server drops files at any time, and WAL replay repeats it.
    /// `visit` returns `false` to end the walk.
    ///
    /// # Errors
    /// When a directory cannot be read (permissions, I/O).
    pub fn walk(
        &self,
        pass: Pass,
        visit: &mut dyn FnMut(Entry) -> bool,
    ) -> Result<(), DataDirectoryError> {
        let (control, _) = self.control_file()?;
        let root = Walked {
            directory: Arc::clone(&self.root),
            inside: PathBuf::new(),
        };
        Walk {
            root: &self.path,
            version_directory: control.tablespace_version_directory().to_string(),
            pass,
            visit,
            linked_inside: self.linked_tablespaces(),
        }
        .directory(Path::new(""), &root)
        .map(|_| ())
    }

    /// The directories that links in `pg_tblspc` lead to, so that one that lies inside the data directory too is met once.
    fn linked_tablespaces(&self) -> Vec<(u64, u64)> {
        let root = self.root.facts().map(|root| root.place).ok();
        let Ok(links) = self.root.open_linked_directory(OsStr::new("pg_tblspc")) else {
            return Vec::new();
        };
        let place = |name: OsString| {
            links.look(&name).ok()?.filter(Facts::is_link)?;
            let target = links.look_behind(&name).ok()?;
            Some(target.place).filter(|place| Some(*place) != root)
        };
        let names = links.names().unwrap_or_default();
        names.into_iter().filter_map(place).collect()
    }
}

/// A directory that is being walked.
struct Walked {
    /// The data directory, or a directory that a link leads to.
    directory: Arc<Directory>,
    /// The directory's path in that one.
    inside: PathBuf,
}

struct Walk<'a> {
    /// The data directory's path, for messages.
    root: &'a Path,
    /// The cluster's own directory in each tablespace, whose location other clusters may use too.
    version_directory: String,
    pass: Pass,
    visit: &'a mut dyn FnMut(Entry) -> bool,
    /// Directories that links in `pg_tblspc` lead to; inside the data directory too, they are met through the links.
    linked_inside: Vec<(u64, u64)>,
}

impl Walk<'_> {
    /// Walks the directory at `relative`; `false` means that the visitor has seen enough.
    fn directory(&mut self, relative: &Path, walked: &Walked) -> Result<bool, DataDirectoryError> {
        let opened = walked.directory.open_path(&walked.inside);
        let listed = opened.and_then(|directory| Ok((directory.names()?, directory)));
        let (mut names, directory) = match listed {
            Ok(listed) => listed,
            Err(e) if gone(&e) && relative != Path::new("") => return Ok(true),
            Err(e) => return Err(self.unread(relative, e)),
        };
        names.sort_unstable();
        // A rename during the listing may show a name twice.
        names.dedup();
        let unlogged = unlogged_relations(&names);
        let is_tablespace = is_tablespace(relative);
        for name in names {
            if is_tablespace && name.as_bytes() != self.version_directory.as_bytes() {
                continue;
            }
            let path = relative.join(&name);
            if !self.one(&path, &name, &directory, walked, &unlogged)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn one(
        &mut self,
        path: &Path,
        name: &OsStr,
        directory: &Directory,
        walked: &Walked,
        unlogged: &HashSet<u32>,
    ) -> Result<bool, DataDirectoryError> {
        // A name says whether it is a relation segment, so the first pass asks the file system about nothing else.
        let by_name = classify(path.as_os_str().as_bytes(), false);
        match (&by_name, self.pass) {
            (FileClass::Relation(segment), pass) => {
                let unlogged = segment.fork != Fork::Init && unlogged.contains(&segment.relation.0);
                if pass == Pass::EverythingElse || unlogged {
                    return Ok(true);
                }
            }
            (FileClass::TemporaryRelation | FileClass::ControlFile, _) => return Ok(true),
            _ => {}
        }
        if self.pass == Pass::Relations
            && !matches!(by_name, FileClass::Relation(_))
            && !may_hold_relations(path)
        {
            return Ok(true);
        }

        let Some(named) = directory.look(name).map_err(|e| self.unread(path, e))? else {
            return Ok(true);
        };
        let linked = named.is_link();
        let facts = match linked.then(|| directory.look_behind(name)) {
            None => named,
            Some(Ok(target)) => target,
            // A link that leads nowhere, or where the server may not go, is still somebody's link.
            Some(Err(e)) if leads_nowhere(&e) => named,
            Some(Err(e)) => return Err(self.unread(path, e)),
        };
        let met_elsewhere =
            !path.starts_with("pg_tblspc") && self.linked_inside.contains(&facts.place);
        let class = classify(path.as_os_str().as_bytes(), facts.is_directory());
        let skipped = matches!(class, FileClass::Skip(_) | FileClass::TemporaryRelation);
        if skipped || (facts.is_directory() && met_elsewhere) {
            return Ok(true);
        }
        let tablespace = is_tablespace(path);
        let keep_link = linked && (!facts.is_directory() || tablespace || !is_own_directory(path));
        let kind = match facts.kind {
            FileType::RegularFile => EntryKind::File {
                size_bytes: facts.size_bytes,
            },
            _ if keep_link => match directory.read_link(name) {
                Ok(target) => EntryKind::Symlink { target },
                Err(e) if gone(&e) => return Ok(true),
                Err(e) => return Err(self.unread(path, e)),
            },
            FileType::Directory => EntryKind::Directory,
            // Sockets, pipes and devices are nobody's data.
            _ => return Ok(true),
        };
        let is_of_this_pass = match self.pass {
            Pass::Relations => {
                matches!(
                    (&kind, class),
                    (EntryKind::File { .. }, FileClass::Relation(_))
                )
            }
            Pass::EverythingElse => true,
        };
        if is_of_this_pass
            && !(self.visit)(Entry {
                path: path.to_owned(),
                place: Place {
                    directory: Arc::clone(&walked.directory),
                    inside: walked.inside.join(name),
                    linked,
                    path: self.root.join(path),
                },
                kind,
                class,
                mode: facts.mode,
                owner: facts.owner,
                modified_s: facts.modified_s,
            })
        {
            return Ok(false);
        }
        if !facts.is_directory()
            || matches!(class, FileClass::SkipContents)
            || (keep_link && !tablespace)
        {
            return Ok(true);
        }
        let next = if linked {
            match directory.open_linked_directory(name) {
                Ok(target) => Walked {
                    directory: Arc::new(target),
                    inside: PathBuf::new(),
                },
                Err(e) if gone(&e) => return Ok(true),
                Err(e) => return Err(self.unread(path, e)),
            }
        } else {
            Walked {
                directory: Arc::clone(&walked.directory),
                inside: walked.inside.join(name),
            }
        };
        self.directory(path, &next)
    }

    fn unread(&self, path: &Path, source: io::Error) -> DataDirectoryError {
        DataDirectoryError::Read {
            path: self.root.join(path),
            source,
        }
    }
}

/// The directories in which relation segments can lie, and the way to them.
fn may_hold_relations(path: &Path) -> bool {
    path.starts_with("base") || path.starts_with("global") || path.starts_with("pg_tblspc")
}

/// `pg_tblspc/<oid>`: a link, or a directory for a tablespace that was made in place.
fn is_tablespace(path: &Path) -> bool {
    path.parent() == Some(Path::new("pg_tblspc"))
}

/// The directories that PostgreSQL makes for its own files, and those of databases: linked elsewhere, as people do to
/// spread a cluster over disks, they are still part of the data directory.
#[must_use]
pub fn is_own_directory(path: &Path) -> bool {
    const OWN: [&str; 21] = [
        "base",
        "global",
        "pg_commit_ts",
        "pg_dynshmem",
        "pg_logical",
        "pg_logical/mappings",
        "pg_logical/snapshots",
        "pg_multixact",
        "pg_multixact/members",
        "pg_multixact/offsets",
        "pg_notify",
        "pg_replslot",
        "pg_serial",
        "pg_snapshots",
        "pg_stat",
        "pg_stat_tmp",
        "pg_subtrans",
        "pg_tblspc",
        "pg_twophase",
        "pg_wal",
        "pg_xact",
    ];
    OWN.iter().any(|own| path == Path::new(own))
        || path.parent().is_some_and(|wal| wal == Path::new("pg_wal"))
        || is_database_directory(path)
}

/// `base/<oid>` and `pg_tblspc/<oid>/PG_<version>/<oid>`, and the version directory itself.
fn is_database_directory(path: &Path) -> bool {
    let mut parts = path.components().map(|part| part.as_os_str().as_bytes());
    let (top, name) = (parts.next(), path.file_name().unwrap_or_default());
    match (top, parts.count()) {
        (Some(b"base"), 1) | (Some(b"pg_tblspc"), 3) => {
            name.as_bytes().iter().all(u8::is_ascii_digit)
        }
        (Some(b"pg_tblspc"), 2) => true,
        _ => false,
    }
}

/// The relations of one directory that have an init fork: all their other forks are made anew at the end of recovery
/// (`ResetUnloggedRelations` in src/backend/storage/file/reinit.c), so only the init fork is kept.
fn unlogged_relations(names: &[OsString]) -> HashSet<u32> {
    names
        .iter()
        .filter_map(|name| {
            let name = std::str::from_utf8(name.as_bytes()).ok()?;
            let (number, rest) = name.split_once("_init")?;
            (rest.is_empty() || rest.starts_with('.')).then(|| number.parse().ok())?
        })
        .collect()
}

fn gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Whether a link could not be followed for what it says, and not for a failing disk.
fn leads_nowhere(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    gone(error)
        || matches!(
            errno,
            Some(Errno::LOOP | Errno::NAMETOOLONG | Errno::ACCESS | Errno::PERM)
        )
}

/// A file of the running server, read without pushing the server's own pages out of the page cache.
#[derive(Debug)]
pub struct SourceFile {
    file: File,
}

impl SourceFile {
    /// Opens the file at `place`; `None` when it is no longer there.
    ///
    /// # Errors
    /// When it is there and cannot be opened.
    pub fn open(place: &Place) -> Result<Option<Self>, DataDirectoryError> {
        let name = place.inside.file_name().unwrap_or_default();
        let opened = match place.inside.parent() {
            Some(parent) if parent != Path::new("") => place
                .directory
                .open_path(parent)
                .and_then(|parent| place.open(&parent, name)),
            _ => place.open(&place.directory, name),
        };
        match opened {
            Ok(file) => Ok(Some(Self { file })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DataDirectoryError::Read {
                path: place.path.clone(),
                source,
            }),
        }
    }

    /// Reads from `offset` until `buffer` is full or the file ends; returns the bytes read.
    ///
    /// # Errors
    /// The system's.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        crate::cache_neutral::read_at(&self.file, buffer, offset)
    }
}

/// Turns the bytes of a stored path into a path of this system.
#[must_use]
pub fn path_from_bytes(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

#[cfg(test)]
#[path = "data_directory_tests.rs"]
mod tests;
