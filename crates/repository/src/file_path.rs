//! The name of a file of the cluster, as packs and manifests spell it.

use std::fmt;

use leeward_pgformat::RelationSegment;

/// What a [`FilePath`] is relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Root {
    /// The data directory (PGDATA). Tablespaces are below it, as the server sees them: `pg_tblspc/<oid>/...`.
    DataDirectory = 0,
    /// The root directory of the host: configuration outside PGDATA, as `etc/postgresql/15/main/postgresql.conf`.
    Configuration = 1,
}

impl Root {
    /// The root with this number in a pack or manifest.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::DataDirectory),
            1 => Some(Self::Configuration),
            _ => None,
        }
    }
}

/// A file, directory or symbolic link of the cluster. The path is bytes, since names need not be UTF-8;
/// it has no leading slash and uses `/` between names. Empty: the root itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FilePath {
    /// What the path is relative to.
    pub root: Root,
    /// The path, at most [`FilePath::MAX_LENGTH`] bytes.
    pub path: Vec<u8>,
}

impl FilePath {
    /// The longest path a pack or manifest can hold, in bytes (Linux's `PATH_MAX` is 4,096).
    pub const MAX_LENGTH: usize = 8192;

    /// A path inside the data directory.
    #[must_use]
    pub fn in_data_directory(path: impl Into<Vec<u8>>) -> Self {
        Self {
            root: Root::DataDirectory,
            path: path.into(),
        }
    }

    /// An absolute path outside the data directory; leading slashes are dropped.
    #[must_use]
    pub fn configuration(path: &[u8]) -> Self {
        let start = path.iter().position(|b| *b != b'/').unwrap_or(path.len());
        Self {
            root: Root::Configuration,
            path: path[start..].to_vec(),
        }
    }

    /// The relation segment that has this name; `None` for any other file.
    #[must_use]
    pub fn relation_segment(&self) -> Option<RelationSegment> {
        match self.root {
            Root::DataDirectory => RelationSegment::parse(std::str::from_utf8(&self.path).ok()?),
            Root::Configuration => None,
        }
    }

    /// Whether a restore may use this path below a directory of its choice: no empty name, `.` or `..`
    /// in it, no leading slash, no NUL byte, not too long.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        self.path.len() <= Self::MAX_LENGTH
            && !self.path.contains(&0)
            && (self.path.is_empty()
                || self
                    .path
                    .split(|b| *b == b'/')
                    .all(|name| !name.is_empty() && name != b"." && name != b".."))
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.root == Root::Configuration {
            f.write_str("/")?;
        }
        f.write_str(&String::from_utf8_lossy(&self.path))
    }
}
