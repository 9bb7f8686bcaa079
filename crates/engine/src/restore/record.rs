//! The record that a restore writes before it acts, from which the next one into the same directory knows its files.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use leeward_postgres::directory::Identity;
use leeward_repository::backup_id::BackupId;
use serde::{Deserialize, Serialize};

use super::could_not;
use super::destination::{is_free, refused};
use super::folder::Folder;
use crate::admission::UNFINISHED;
use crate::error::Result;

pub(super) const LOCK: &str = "lock";
pub(super) const RECORD: &str = "restore.json";
const NEW_RECORD: &str = "restore.json.new";

/// Bytes of the largest record: a path for each tablespace.
const RECORD_BYTES_LIMIT: u64 = 64 << 20;

/// The record of a restore: the places and files that it made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    format_version: u32,
    /// Random, and part of the names of its directories in tablespaces.
    id: String,
    /// The backup, for people.
    backup: String,
    /// Directories of tablespaces in which it has a directory of its own.
    tablespaces: Vec<Name>,
    /// The entries to be moved up into the data directory, recorded before the first move.
    moved: Vec<Moved>,
}

/// Something that is moved up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Moved {
    name: Name,
    inode: u64,
    born: Option<(i64, u32)>,
}

/// A name or path: text where it is UTF-8, else its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Bytes(Vec<u8>),
}

impl Name {
    fn of(name: &OsStr) -> Self {
        match name.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes(name.as_bytes().to_vec()),
        }
    }

    fn to_os_string(&self) -> OsString {
        match self {
            Self::Text(text) => OsString::from(text),
            Self::Bytes(bytes) => OsString::from_vec(bytes.clone()),
        }
    }
}

impl Record {
    /// A record of a restore that has a directory of its own in each of `tablespaces`.
    pub(super) fn new(backup: &BackupId, tablespaces: &[&Path]) -> Self {
        Self {
            format_version: 1,
            id: format!("{:032x}", rand::random::<u128>()),
            backup: backup.to_string(),
            tablespaces: tablespaces
                .iter()
                .map(|path| Name::of(path.as_os_str()))
                .collect(),
            moved: Vec::new(),
        }
    }

    /// The name of its directory in each tablespace.
    pub(super) fn name_in_tablespaces(&self) -> OsString {
        format!("{UNFINISHED}-{}", self.id).into()
    }

    /// The tablespaces' directories.
    pub(super) fn tablespaces(&self) -> impl Iterator<Item = PathBuf> {
        self.tablespaces
            .iter()
            .map(|path| path.to_os_string().into())
    }

    /// Notes what will be moved up.
    pub(super) fn add_moved(&mut self, name: &OsStr, identity: Identity) {
        self.moved.push(Moved {
            name: Name::of(name),
            inode: identity.inode,
            born: identity.born,
        });
    }

    /// Returns the entries that were, or were to be, moved up.
    pub(super) fn moved(&self) -> impl Iterator<Item = (OsString, Identity)> {
        self.moved.iter().map(|moved| {
            let Moved { inode, born, .. } = *moved;
            (moved.name.to_os_string(), Identity { inode, born })
        })
    }

    /// Returns whether `found` is the entry that was moved up to this name.
    fn has_moved(&self, name: &OsStr, found: Identity) -> bool {
        self.moved()
            .any(|(known, identity)| known == name && identity == found)
    }

    fn read(folder: &Folder) -> io::Result<Option<Self>> {
        let bytes = match folder.read(OsStr::new(RECORD), RECORD_BYTES_LIMIT) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let record: Self = serde_json::from_slice(&bytes)?;
        let is_id = record.id.len() == 32 && record.id.bytes().all(|b| b.is_ascii_hexdigit());
        if record.format_version != 1 || !is_id {
            return Err(io::Error::other("a restore of another version wrote it"));
        }
        Ok(Some(record))
    }

    /// Writes it durably, in place of the one before.
    pub(super) fn write(&self, folder: &Folder) -> io::Result<()> {
        let new = OsStr::new(NEW_RECORD);
        if folder.look(new)?.is_some() {
            folder.remove_file(new)?;
        }
        let mut file = folder.create(new, 0o600)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        folder.replace(new, OsStr::new(RECORD))?;
        folder.sync()
    }
}

/// Looks whether the data directory is empty but for what an interrupted restore of `owner`'s left and recorded; returns
/// that record.
///
/// # Errors
/// [`ErrorKind::Refused`](crate::error::ErrorKind::Refused) naming what else is there.
pub(super) fn look(directory: &Folder, owner: u32) -> Result<Option<Record>> {
    let path = directory.path();
    let names = directory.names().map_err(|e| could_not("read", path, e))?;
    if !names.iter().any(|name| name == UNFINISHED) {
        return is_free(directory, &names, None).map(|()| None);
    }
    let record = recorded(directory, owner).map_err(|e| {
        refused(
            path,
            &format!("\"{UNFINISHED}\" in it cannot be told for what an interrupted restore left"),
        )
        .because(e)
        .hint(format!(
            "Nothing was touched. If nothing in it is needed, remove it and repeat: rm -rf {}",
            quoted(&path.join(UNFINISHED))
        ))
    })?;
    let Some(record) = record else {
        return is_free(directory, &names, Some(OsStr::new(UNFINISHED))).map(|()| None);
    };
    // The last act of a restore but for clearing up: the directory is whole, and a server may have run on it since.
    let is_whole = directory
        .below(Path::new("global"))
        .is_ok_and(|global| !matches!(global.look(OsStr::new("pg_control")), Ok(None)));
    if is_whole {
        return Err(refused(path, "a restore into it is complete, and left only its record").hint(
            format!(
                "Nothing was touched. Start the server on it and remove the record (rm -rf {}), or restore to another directory.",
                quoted(&path.join(UNFINISHED))
            ),
        ));
    }
    for name in names.iter().filter(|name| *name != UNFINISHED) {
        let found = directory
            .identity(name)
            .map_err(|e| could_not("look at", &path.join(name), e))?;
        if found.is_some_and(|found| !record.has_moved(name, found)) {
            return Err(refused(
                path,
                &format!(
                    "an interrupted restore left it, and \"{}\" in it is not of that restore's making",
                    name.display()
                ),
            )
            .hint("Nothing was touched. Move that away and repeat, or restore to another directory."));
        }
    }
    Ok(Some(record))
}

/// The record in `leeward.restoring`; `None` where the restore was interrupted before it wrote one.
fn recorded(directory: &Folder, owner: u32) -> io::Result<Option<Record>> {
    let folder = directory.folder(OsStr::new(UNFINISHED))?;
    if folder.facts()?.owner.0 != owner {
        return Err(io::Error::other("another user made it"));
    }
    let record = Record::read(&folder)?;
    // The record comes before anything that it would have to speak of.
    let is_early = |name: &OsString| name == LOCK || name == NEW_RECORD;
    if record.is_none() && !folder.names()?.iter().all(is_early) {
        return Err(io::Error::other("it has no record"));
    }
    Ok(record)
}

/// A path as a shell takes it.
pub(super) fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
