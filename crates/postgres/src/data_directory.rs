//! A data directory as it lies on disk: what is in it, in a fixed order, and how its files are read.
//!
//! The walk visits names twice at most: once for relation segments, once for everything else (design rule 4 reads them
//! in that order). It holds the names of one directory at a time, so its memory is bounded by the largest directory,
//! not by the cluster.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use leeward_pgformat::classify::{FileClass, classify};
use leeward_pgformat::control_file::{CONTROL_FILE_SIZE, ControlFile, ControlFileError};
use leeward_pgformat::relation::Fork;

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

/// An opened data directory.
#[derive(Clone, Debug)]
pub struct DataDirectory {
    path: PathBuf,
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
        let metadata = fs::metadata(path).map_err(|e| refuse(e.to_string()))?;
        if !metadata.is_dir() {
            return Err(refuse("it is not a directory".into()));
        }
        for name in ["PG_VERSION", "global/pg_control"] {
            match fs::metadata(path.join(name)) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(DataDirectoryError::Read {
                        path: path.join(name),
                        source: e,
                    });
                }
                Err(_) => return Err(refuse(format!("it has no \"{name}\""))),
            }
        }
        let path = fs::canonicalize(path).map_err(|source| DataDirectoryError::Read {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { path })
    }

    /// The directory itself, absolute, links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Owner, group and permission bits of the directory.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn metadata(&self) -> Result<Metadata, DataDirectoryError> {
        fs::metadata(&self.path).map_err(|source| DataDirectoryError::Read {
            path: self.path.clone(),
            source,
        })
    }

    /// Reads `global/pg_control`, again while its checksum does not match, and returns it with its bytes.
    ///
    /// # Errors
    /// When it cannot be read, or is still damaged after several attempts.
    pub fn control_file(&self) -> Result<(ControlFile, Vec<u8>), DataDirectoryError> {
        let path = self.path.join("global/pg_control");
        let mut attempt = 0;
        loop {
            attempt += 1;
            let bytes = fs::read(&path).map_err(|source| DataDirectoryError::Read {
                path: path.clone(),
                source,
            })?;
            match ControlFile::parse(&bytes) {
                Ok(control) => {
                    let mut bytes = bytes;
                    bytes.resize(CONTROL_FILE_SIZE, 0);
                    return Ok((control, bytes));
                }
                Err(ControlFileError::BadCrc { .. }) if attempt < CONTROL_FILE_ATTEMPTS => {
                    std::thread::yield_now()
                }
                Err(source) => return Err(DataDirectoryError::ControlFile { path, source }),
            }
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
        Walk {
            root: &self.path,
            pass,
            visit,
            linked_inside: tablespaces_linked_inside(&self.path),
        }
        .directory(Path::new(""))
        .map(|_| ())
    }
}

struct Walk<'a> {
    root: &'a Path,
    pass: Pass,
    visit: &'a mut dyn FnMut(Entry) -> bool,
    /// Directories inside the data directory that links in `pg_tblspc` lead to: they are met through the links.
    linked_inside: Vec<PathBuf>,
}

impl Walk<'_> {
    /// Walks one directory; `false` means that the visitor has seen enough.
    fn directory(&mut self, relative: &Path) -> Result<bool, DataDirectoryError> {
        let Some(names) = self.names(relative)? else {
            return Ok(true);
        };
        let unlogged = unlogged_relations(&names);
        for name in names {
            let path = relative.join(&name);
            if !self.one(&path, &unlogged)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn names(&self, relative: &Path) -> Result<Option<Vec<OsString>>, DataDirectoryError> {
        let absolute = self.root.join(relative);
        let listing = match fs::read_dir(&absolute) {
            Ok(listing) => listing,
            Err(e) if gone(&e) && relative != Path::new("") => return Ok(None),
            Err(source) => {
                return Err(DataDirectoryError::Read {
                    path: absolute,
                    source,
                });
            }
        };
        let mut names = Vec::new();
        for entry in listing {
            match entry {
                Ok(entry) => names.push(entry.file_name()),
                Err(e) if gone(&e) => {}
                Err(source) => {
                    return Err(DataDirectoryError::Read {
                        path: absolute,
                        source,
                    });
                }
            }
        }
        names.sort_unstable();
        // A rename during the scan may show a name twice.
        names.dedup();
        Ok(Some(names))
    }

    fn one(&mut self, path: &Path, unlogged: &HashSet<u32>) -> Result<bool, DataDirectoryError> {
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

        if self.linked_inside.iter().any(|linked| linked == path) {
            return Ok(true);
        }
        let absolute = self.root.join(path);
        let Some(link) = present(fs::symlink_metadata(&absolute), &absolute)? else {
            return Ok(true);
        };
        let is_link = link.file_type().is_symlink();
        let metadata = if is_link {
            match present(fs::metadata(&absolute), &absolute)? {
                Some(metadata) => metadata,
                // A dangling link is still somebody's link.
                None => link.clone(),
            }
        } else {
            link.clone()
        };

        let class = classify(path.as_os_str().as_bytes(), metadata.is_dir());
        if matches!(class, FileClass::Skip(_) | FileClass::TemporaryRelation) {
            return Ok(true);
        }
        let entry = |kind, class, metadata: &Metadata| Entry {
            path: path.to_owned(),
            kind,
            class,
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            modified_s: metadata.mtime(),
        };

        if metadata.is_dir() {
            let tablespace = path.parent() == Some(Path::new("pg_tblspc"));
            let keep_link = is_link && (tablespace || !within_own_directory(path));
            if self.pass == Pass::EverythingElse {
                let kind = if keep_link {
                    let Some(target) = present(fs::read_link(&absolute), &absolute)? else {
                        return Ok(true);
                    };
                    EntryKind::Symlink { target }
                } else {
                    EntryKind::Directory
                };
                if !(self.visit)(entry(kind, class, &metadata)) {
                    return Ok(false);
                }
            }
            let descend = !matches!(class, FileClass::SkipContents) && (!keep_link || tablespace);
            return if tablespace {
                self.tablespace(path)
            } else if descend {
                self.directory(path)
            } else {
                Ok(true)
            };
        }
        if self.pass == Pass::Relations && !matches!(class, FileClass::Relation(_)) {
            return Ok(true);
        }
        if metadata.is_file() {
            let kind = EntryKind::File {
                size_bytes: metadata.len(),
            };
            return Ok((self.visit)(entry(kind, class, &metadata)));
        }
        if is_link && self.pass == Pass::EverythingElse {
            let Some(target) = present(fs::read_link(&absolute), &absolute)? else {
                return Ok(true);
            };
            return Ok((self.visit)(entry(
                EntryKind::Symlink { target },
                class,
                &link,
            )));
        }
        // Sockets, pipes and devices are nobody's data.
        Ok(true)
    }

    /// A tablespace's location may be shared by clusters of other majors: only `PG_<major>_<catalog version>` is ours.
    fn tablespace(&mut self, path: &Path) -> Result<bool, DataDirectoryError> {
        let Some(names) = self.names(path)? else {
            return Ok(true);
        };
        let major = fs::read_to_string(self.root.join("PG_VERSION")).unwrap_or_default();
        let prefix = format!("PG_{}_", major.trim());
        for name in names {
            if name.as_bytes().starts_with(prefix.as_bytes())
                && !self.one(&path.join(&name), &HashSet::new())?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Where links in `pg_tblspc` lead to inside the data directory itself, relative to it.
fn tablespaces_linked_inside(root: &Path) -> Vec<PathBuf> {
    let Ok(links) = fs::read_dir(root.join("pg_tblspc")) else {
        return Vec::new();
    };
    links
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()))
        .filter_map(|entry| {
            fs::canonicalize(entry.path())
                .ok()?
                .strip_prefix(root)
                .ok()
                .map(Path::to_owned)
        })
        .collect()
}

/// The directories in which relation segments can lie, and the way to them.
fn may_hold_relations(path: &Path) -> bool {
    path.starts_with("base") || path.starts_with("global") || path.starts_with("pg_tblspc")
}

/// PostgreSQL's own directories and what lies in them: linked elsewhere, they are still part of the data directory.
fn within_own_directory(path: &Path) -> bool {
    const OWN: [&str; 17] = [
        "base",
        "global",
        "pg_commit_ts",
        "pg_dynshmem",
        "pg_logical",
        "pg_multixact",
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
    OWN.iter().any(|own| path.starts_with(own))
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

fn present<T>(result: io::Result<T>, path: &Path) -> Result<Option<T>, DataDirectoryError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if gone(&e) => Ok(None),
        Err(source) => Err(DataDirectoryError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// A file of the running server, read without pushing the server's own pages out of the page cache.
#[derive(Debug)]
pub struct SourceFile {
    file: File,
}

impl SourceFile {
    /// Opens `path`; `None` when it is no longer there.
    ///
    /// # Errors
    /// When it is there and cannot be opened.
    pub fn open(path: &Path) -> Result<Option<Self>, DataDirectoryError> {
        Ok(present(File::open(path), path)?.map(|file| Self { file }))
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
