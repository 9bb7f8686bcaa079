//! Admission of manifest entries into a copy of a data directory, restored or exported. Leeward's own backups name nothing else; a
//! manifest that does was made by somebody else, and decides nothing but names inside the copy.

use std::path::{Path, PathBuf};

use leeward_pgformat::classify::{FileClass, SkipReason, classify};
use leeward_postgres::data_directory::{is_own_directory, path_from_bytes};
use leeward_repository::file_path::Root;
use leeward_repository::manifest::{Content, FileKind, FileRecord};

use crate::configuration;
use crate::error::{Error, ErrorKind, Result};

/// The directory below which a restore works until it is done.
pub(crate) const UNFINISHED: &str = "leeward.restoring";

/// The name of `global/pg_control` until everything else is there.
pub(crate) const UNFINISHED_CONTROL_FILE: &str = "global/pg_control.restoring";

/// Bytes of the longest path that Linux takes (`PATH_MAX`, less its end).
const PATH_BYTES_LIMIT: usize = 4095;

/// More directories inside each other are no data directory.
const DEPTH_LIMIT: usize = 100;

/// Bytes of the largest file that the usual file systems take.
const FILE_BYTES_LIMIT: u64 = 16 << 40;

/// The treatment of a manifest entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It has this place, relative to the data directory.
    Place(PathBuf),
    /// It is left out of the copy, with the reason in words.
    LeftOut(PathBuf, String),
}

/// Decides about one entry.
///
/// # Errors
/// [`ErrorKind::Damaged`] for a path that no data directory has.
pub(crate) fn admit(record: &FileRecord, major: u32) -> Result<Admission> {
    let refuse = |problem: &str| {
        Err(Error::new(
            ErrorKind::Damaged,
            format!("the manifest names \"{}\": {problem}", record.path),
        )
        .hint("Restore another backup, or this one from another copy of the repository."))
    };
    if !record.path.is_safe() {
        return refuse("it lies outside the data directory");
    }
    let inside = path_from_bytes(&record.path.path);
    let place = match record.path.root {
        Root::DataDirectory => inside,
        Root::Configuration => Path::new(configuration::FOLDER).join(inside),
    };
    let depth = place.components().count();
    if place.as_os_str().len() > PATH_BYTES_LIMIT || depth > DEPTH_LIMIT {
        return refuse("the path is too long");
    }
    if depth == 0 && record.kind != FileKind::Directory {
        return refuse("that is the data directory itself");
    }
    if matches!(record.kind, FileKind::File { size, .. } if size > FILE_BYTES_LIMIT) {
        return refuse("the file is too large");
    }
    if record.path.root == Root::DataDirectory
        && let Some(problem) = tablespace_problem(&place, major)
    {
        return refuse(problem);
    }
    Ok(match left_out(&place, record) {
        Some(reason) => Admission::LeftOut(place, reason),
        None => Admission::Place(place),
    })
}

/// Why an entry below `pg_tblspc` cannot be. A location may be shared by clusters of several versions, and each has one
/// directory in it (`GetDatabasePath` in src/common/relpath.c).
fn tablespace_problem(place: &Path, major: u32) -> Option<&'static str> {
    let inside = place.strip_prefix("pg_tblspc").ok()?;
    let mut names = inside.iter();
    let (Some(_), Some(version)) = (names.next(), names.next()) else {
        return None;
    };
    let ours = version
        .to_str()
        .is_some_and(|version| version.starts_with(&format!("PG_{major}_")));
    (!ours).then_some("a tablespace holds one directory of this version, and nothing else")
}

/// Returns whether a path of the data directory is one of PostgreSQL's own directories or lies in one.
pub(crate) fn is_of_the_server(place: &Path) -> bool {
    let first = place.iter().next();
    first.is_some_and(|first| is_own_directory(Path::new(first)))
}

fn left_out(place: &Path, record: &FileRecord) -> Option<String> {
    let is_link = matches!(record.kind, FileKind::Symlink { .. });
    if record.path.root == Root::Configuration {
        return is_link.then(|| "a link among configuration files".to_owned());
    }
    let bytes = &record.path.path;
    let is_directory = record.kind == FileKind::Directory;
    let first = place.iter().next()?;
    if first == UNFINISHED || place == Path::new(UNFINISHED_CONTROL_FILE) {
        return Some("what a restore left".to_owned());
    }
    let is_file = matches!(record.kind, FileKind::File { .. });
    if is_file && place.parent() == Some(Path::new("pg_tblspc")) {
        // PostgreSQL pays no attention to it.
        return Some("a file among the tablespaces".to_owned());
    }
    let is_inline = matches!(
        record.kind,
        FileKind::File {
            content: Content::Inline(_),
            ..
        }
    );
    if is_inline && matches!(bytes.as_slice(), b"backup_label" | b"tablespace_map") {
        // Made by the backup.
        return None;
    }
    let skipped = match classify(bytes, is_directory) {
        FileClass::ControlFile if !is_inline => {
            return Some("a control file read before the others".to_owned());
        }
        FileClass::Skip(reason) => Some(reason),
        FileClass::TemporaryRelation => Some(SkipReason::Temporary),
        // A directory is as good as a file to a server that asks whether there is such a name.
        _ => match classify(first.as_encoded_bytes(), false) {
            FileClass::Skip(reason) => Some(reason),
            _ => None,
        },
    };
    if let Some(reason) = skipped {
        return Some(reason.to_string());
    }
    let tablespace = place.parent() == Some(Path::new("pg_tblspc"));
    (is_link && !tablespace && is_of_the_server(place))
        .then(|| "a link in place of what is PostgreSQL's own".to_owned())
}

/// The first few of many names, and how many there are.
#[derive(Debug, Default)]
pub(crate) struct Several {
    first: Vec<String>,
    count: u64,
}

impl Several {
    /// Adds one.
    pub(crate) fn add(&mut self, name: String) {
        const NAMED: usize = 5;
        if self.first.len() < NAMED {
            self.first.push(name);
        }
        self.count += 1;
    }

    /// The names in words; `None` when there are none.
    pub(crate) fn describe(&self) -> Option<String> {
        let more = self.count - self.first.len() as u64;
        let mut text = self.first.join(", ");
        if more > 0 {
            text.push_str(&format!(" and {more} more"));
        }
        (self.count > 0).then_some(text)
    }
}
