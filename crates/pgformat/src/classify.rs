//! What each file of a data directory is to a backup.
//!
//! The server's own rules for what a base backup leaves out (`backup/basebackup.c`: `excludeDirContents`,
//! `excludeFiles`, `sendDir`), and a few more files that speak of this server's run and not of the data.
//!
//! Two rules cannot be told from a path and are the caller's: a relation is unlogged when its directory also holds
//! its init fork (then only the init fork is copied), and inside a tablespace only the directory that
//! [`crate::ControlFile::tablespace_version_directory`] names belongs to the cluster.

use std::fmt;

use crate::RelationSegment;
use crate::relation::is_temporary_relation_name;

/// The directories inside `pg_wal` that a restored cluster should find, empty (`basebackup.c`; `summaries` since 17,
/// harmless before).
pub const WAL_SUBDIRECTORIES: [&str; 2] = ["archive_status", "summaries"];

/// The directories kept empty: the server clears or rebuilds them when it starts (`excludeDirContents`).
const EMPTIED_DIRECTORIES: [(&str, SkipReason); 8] = [
    ("pg_wal", SkipReason::Wal),
    ("pg_dynshmem", SkipReason::RebuiltAtStart),
    ("pg_notify", SkipReason::RebuiltAtStart),
    ("pg_replslot", SkipReason::ReplicationSlot),
    ("pg_serial", SkipReason::RebuiltAtStart),
    ("pg_snapshots", SkipReason::RebuiltAtStart),
    ("pg_stat_tmp", SkipReason::Temporary),
    ("pg_subtrans", SkipReason::RebuiltAtStart),
];

/// The files left out, by their exact name, directly in the data directory: `excludeFiles`, and ours.
const SKIPPED_FILES: [(&str, SkipReason); 14] = [
    ("postmaster.pid", SkipReason::ThisServersRun),
    ("postmaster.opts", SkipReason::ThisServersRun),
    ("current_logfiles", SkipReason::ThisServersRun),
    ("current_logfiles.tmp", SkipReason::Temporary),
    ("postgresql.auto.conf.tmp", SkipReason::Temporary),
    ("backup_label", SkipReason::OtherBackup),
    ("backup_label.old", SkipReason::OtherBackup),
    ("tablespace_map", SkipReason::OtherBackup),
    ("tablespace_map.old", SkipReason::OtherBackup),
    ("backup_manifest", SkipReason::OtherBackup),
    ("standby.signal", SkipReason::RecoverySetting),
    ("recovery.signal", SkipReason::RecoverySetting),
    // 12 and later refuse to start where this file lies.
    ("recovery.conf", SkipReason::RecoverySetting),
    ("promote", SkipReason::RecoverySetting),
];

/// What a file or directory is to a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileClass {
    /// Pages of a relation.
    Relation(RelationSegment),
    /// Pages of a temporary relation, of one session: left out.
    TemporaryRelation,
    /// Left out, and with it everything inside when it is a directory.
    Skip(SkipReason),
    /// A directory that is kept, empty; in `pg_wal`, with [`WAL_SUBDIRECTORIES`].
    SkipContents,
    /// `global/pg_control`: copied after everything else.
    ControlFile,
    /// A file to copy whole, or a directory to go into.
    Other,
}

/// Why a file is left out of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// Made for the moment: temporary files of queries, half-written files.
    Temporary,
    /// Says something about the running server, not about the data.
    ThisServersRun,
    /// Belongs to another backup; this backup brings its own.
    OtherBackup,
    /// Says how this server recovers; a restore decides anew.
    RecoverySetting,
    /// A cache or a run's state that the server makes again when it starts.
    RebuiltAtStart,
    /// A replication slot: it belongs to this server.
    ReplicationSlot,
    /// WAL: a backup brings the WAL it needs by another way.
    Wal,
    /// Put there by the operating system.
    OperatingSystem,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SkipReason::Temporary => "temporary file",
            SkipReason::ThisServersRun => "state of the running server",
            SkipReason::OtherBackup => "part of another backup",
            SkipReason::RecoverySetting => "recovery setting of this server",
            SkipReason::RebuiltAtStart => "made again when the server starts",
            SkipReason::ReplicationSlot => "replication slot of this server",
            SkipReason::Wal => "WAL, which the backup brings separately",
            SkipReason::OperatingSystem => "put there by the operating system",
        })
    }
}

/// Says what the file or directory at `path` is to a backup.
///
/// `path` is relative to the data directory, without a leading `./`; tablespaces appear below `pg_tblspc/<oid>/`.
/// `is_directory` is about what a symbolic link points to, not the link.
#[must_use]
pub fn classify(path: impl AsRef<[u8]>, is_directory: bool) -> FileClass {
    let Ok(path) = std::str::from_utf8(path.as_ref()) else {
        return FileClass::Other; // the server gives no file such a name
    };
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    // These lie in many directories, and the server looks at the name alone.
    if name.starts_with("pgsql_tmp") {
        return FileClass::Skip(SkipReason::Temporary);
    }
    if name.starts_with("pg_internal.init") {
        return FileClass::Skip(SkipReason::RebuiltAtStart);
    }
    if name == ".DS_Store" {
        return FileClass::Skip(SkipReason::OperatingSystem);
    }
    if directory.is_empty() {
        return classify_at_top(name, is_directory);
    }
    let top = path.split('/').next().unwrap_or(path);
    if let Some((_, reason)) = EMPTIED_DIRECTORIES
        .iter()
        .find(|(emptied, _)| *emptied == top)
    {
        let kept = directory == "pg_wal" && is_directory && WAL_SUBDIRECTORIES.contains(&name);
        return if kept {
            FileClass::SkipContents
        } else {
            FileClass::Skip(*reason)
        };
    }
    if is_directory {
        return FileClass::Other;
    }
    if path == "global/pg_control" {
        return FileClass::ControlFile;
    }
    if let Some(segment) = RelationSegment::parse(path) {
        return FileClass::Relation(segment);
    }
    if is_temporary_relation_name(name) && is_relation_directory(directory) {
        return FileClass::TemporaryRelation;
    }
    FileClass::Other
}

fn classify_at_top(name: &str, is_directory: bool) -> FileClass {
    if is_directory {
        if EMPTIED_DIRECTORIES
            .iter()
            .any(|(emptied, _)| *emptied == name)
        {
            FileClass::SkipContents
        } else if name == "lost+found" {
            // Present where the data directory is a mount point, and readable by root only.
            FileClass::Skip(SkipReason::OperatingSystem)
        } else {
            FileClass::Other
        }
    } else {
        let skipped = SKIPPED_FILES.iter().find(|(skipped, _)| *skipped == name);
        skipped.map_or(FileClass::Other, |(_, reason)| FileClass::Skip(*reason))
    }
}

/// Whether relation files lie directly in this directory.
fn is_relation_directory(directory: &str) -> bool {
    RelationSegment::parse(&format!("{directory}/1")).is_some()
}

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;
