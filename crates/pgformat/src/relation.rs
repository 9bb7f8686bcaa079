//! Relation file names: from a path to tablespace, database, relation, fork and segment, and back.
//!
//! Facts from `common/relpath.c` (paths), `storage/file/reinit.c` (`parse_filename_for_nontemp_relation`) and
//! `storage/smgr/md.c` (segments).

use std::fmt;
use std::str::FromStr;

use crate::{BlockNumber, MajorVersion, Oid, RELATION_SEGMENT_BLOCKS, RelFileNumber};

/// A fork of a relation: each has files of its own (`ForkNumber`, `common/relpath.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// The relation's own pages; no suffix.
    Main,
    /// The free space map, `_fsm`. Not WAL-logged.
    FreeSpaceMap,
    /// The visibility map, `_vm`. A record that clears a bit names the map's block only since 17.11, 18.6 and 19.
    VisibilityMap,
    /// What an unlogged relation is reset to after a crash, `_init`.
    Init,
}

impl Fork {
    /// Every fork.
    pub const ALL: [Fork; 4] = [
        Fork::Main,
        Fork::FreeSpaceMap,
        Fork::VisibilityMap,
        Fork::Init,
    ];

    /// The fork's name in PostgreSQL's words (`forkNames`): `main`, `fsm`, `vm`, `init`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Fork::Main => "main",
            Fork::FreeSpaceMap => "fsm",
            Fork::VisibilityMap => "vm",
            Fork::Init => "init",
        }
    }

    /// Whether the server puts an empty page in the place of a damaged one of this fork, and says nothing
    /// (`RBM_ZERO_ON_ERROR` in `storage/freespace/freespace.c` and `access/heap/visibilitymap.c`): what such a page
    /// says can be found out again from the relation, so that its damage loses no data.
    #[must_use]
    pub const fn is_repaired_by_server(self) -> bool {
        matches!(self, Fork::FreeSpaceMap | Fork::VisibilityMap)
    }

    fn from_suffix(suffix: &str) -> Option<Fork> {
        [Fork::FreeSpaceMap, Fork::VisibilityMap, Fork::Init]
            .into_iter()
            .find(|fork| fork.name() == suffix)
    }
}

impl fmt::Display for Fork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The directory inside a tablespace that holds one cluster version's files: `PG_15_202209061`
/// (`TABLESPACE_VERSION_DIRECTORY`, `common/relpath.h`). `pg_upgrade` leaves the old version's beside the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TablespaceVersionDirectory {
    /// The major version.
    pub major: MajorVersion,
    /// The catalog version (`CATALOG_VERSION_NO`), as in the control file.
    pub catalog_version: u32,
}

impl TablespaceVersionDirectory {
    /// Reads a directory's name; `None` for anything else, and for a major version this crate does not know.
    #[must_use]
    pub fn parse(name: &str) -> Option<TablespaceVersionDirectory> {
        let (major, catalog_version) = name.strip_prefix("PG_")?.split_once('_')?;
        Some(TablespaceVersionDirectory {
            major: MajorVersion::from_u32(plain_number(major)?)?,
            catalog_version: plain_number(catalog_version)?,
        })
    }
}

impl fmt::Display for TablespaceVersionDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("PG_{}_{}", self.major, self.catalog_version))
    }
}

/// A relation segment: one file, at most 1 GiB, of a fork of a relation.
///
/// Ordered by tablespace, database, relation, fork and segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationSegment {
    /// The tablespace; [`Oid::DEFAULT_TABLESPACE`] under `base/`, [`Oid::GLOBAL_TABLESPACE`] under `global/`.
    pub tablespace: Oid,
    /// The database; [`Oid::INVALID`] for relations shared by the whole cluster.
    pub database: Oid,
    /// The relation's file number.
    pub relation: RelFileNumber,
    /// The fork.
    pub fork: Fork,
    /// The segment, from 0; all but the last of a fork have exactly 131072 pages.
    pub segment: u32,
}

impl RelationSegment {
    /// Reads a path relative to the data directory: `base/5/16384_fsm.1`, `global/1262`,
    /// `pg_tblspc/16400/PG_15_202209061/5/16384`. `None` for every other file, temporary relations among them.
    ///
    /// The version directory of a tablespace must be well formed but is not kept:
    /// see [`tablespace_version_directory`].
    #[must_use]
    pub fn parse(path: &str) -> Option<RelationSegment> {
        let mut parts = path.split('/');
        let (tablespace, database) = match parts.next()? {
            "global" => (Oid::GLOBAL_TABLESPACE, Oid::INVALID),
            "base" => (
                Oid::DEFAULT_TABLESPACE,
                Oid(positive_number(parts.next()?)?),
            ),
            "pg_tblspc" => {
                let tablespace = Oid(positive_number(parts.next()?)?);
                TablespaceVersionDirectory::parse(parts.next()?)?;
                (tablespace, Oid(positive_number(parts.next()?)?))
            }
            _ => return None,
        };
        let (relation, fork, segment) = parse_file_name(parts.next()?)?;
        match parts.next() {
            None => Some(RelationSegment {
                tablespace,
                database,
                relation,
                fork,
                segment,
            }),
            Some(_) => None,
        }
    }

    /// The path relative to the data directory (`GetRelationPath`). The version directory is used only for relations
    /// in a tablespace of their own.
    #[must_use]
    pub fn path(&self, version_directory: TablespaceVersionDirectory) -> String {
        self.path_with(&version_directory)
    }

    fn path_with(&self, version_directory: &dyn fmt::Display) -> String {
        let directory = match self.tablespace {
            Oid::GLOBAL_TABLESPACE => "global".to_owned(),
            Oid::DEFAULT_TABLESPACE => format!("base/{}", self.database),
            Oid(tablespace) => format!(
                "pg_tblspc/{tablespace}/{version_directory}/{}",
                self.database
            ),
        };
        format!("{directory}/{}", self.file_name())
    }

    /// The file's name without directory: `16384_fsm.1`.
    #[must_use]
    pub fn file_name(&self) -> String {
        let mut name = self.relation.to_string();
        if self.fork != Fork::Main {
            name.push('_');
            name.push_str(self.fork.name());
        }
        if self.segment > 0 {
            name.push('.');
            name.push_str(&self.segment.to_string());
        }
        name
    }

    /// The relation-wide number of the file's first page; the last possible one for a segment too high to exist.
    #[must_use]
    pub const fn first_block(&self) -> BlockNumber {
        BlockNumber(self.segment.saturating_mul(RELATION_SEGMENT_BLOCKS))
    }

    /// The relation-wide number of the page that lies `page_index` pages into this file.
    #[must_use]
    pub const fn block(&self, page_index: u32) -> BlockNumber {
        BlockNumber(self.first_block().0.saturating_add(page_index))
    }
}

impl fmt::Display for RelationSegment {
    /// The path, with `*` for a tablespace's version directory, so that a shell in the data directory finds the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.path_with(&"*"))
    }
}

/// The version directory in a path relative to the data directory; `None` when the path is not inside one.
#[must_use]
pub fn tablespace_version_directory(path: &str) -> Option<TablespaceVersionDirectory> {
    let (_, inside) = path.strip_prefix("pg_tblspc/")?.split_once('/')?;
    TablespaceVersionDirectory::parse(inside.split('/').next()?)
}

/// Whether a file name is a temporary relation's, of any fork and segment: `t3_16384_fsm.1`
/// (`looks_like_temp_rel_name`, `storage/file/fd.c`).
#[must_use]
pub fn is_temporary_relation_name(name: &str) -> bool {
    let is_number =
        |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let Some((backend, rest)) = name.strip_prefix('t').and_then(|rest| rest.split_once('_')) else {
        return false;
    };
    let (rest, segment) = match rest.split_once('.') {
        Some((rest, segment)) => (rest, Some(segment)),
        None => (rest, None),
    };
    let (relation, fork) = match rest.split_once('_') {
        Some((relation, fork)) => (relation, Some(fork)),
        None => (rest, None),
    };
    is_number(backend)
        && is_number(relation)
        && fork.is_none_or(|fork| Fork::from_suffix(fork).is_some())
        && segment.is_none_or(is_number)
}

/// `<relation>[_<fork>][.<segment>]`, numbers without sign or leading zero, the first segment without a number.
fn parse_file_name(name: &str) -> Option<(RelFileNumber, Fork, u32)> {
    let (stem, segment) = match name.split_once('.') {
        Some((stem, segment)) => (stem, positive_number(segment)?),
        None => (name, 0),
    };
    let (relation, fork) = match stem.split_once('_') {
        Some((relation, fork)) => (relation, Fork::from_suffix(fork)?),
        None => (stem, Fork::Main),
    };
    Some((RelFileNumber(positive_number(relation)?), fork, segment))
}

/// A number as PostgreSQL prints it in names: digits only, no leading zero, at least 1.
fn positive_number(digits: &str) -> Option<u32> {
    plain_number(digits).filter(|number| *number > 0)
}

fn plain_number<N: FromStr>(digits: &str) -> Option<N> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'));
    if plain { digits.parse().ok() } else { None }
}

#[cfg(test)]
#[path = "relation_tests.rs"]
mod tests;
