//! The server that a WAL file belongs to, as far as its directory tells: `archive_command` and `restore_command` run in
//! the data directory and name files relative to it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use leeward_pgformat::control_file::ControlFile;
use leeward_pgformat::wal_segment::{
    WAL_LONG_HEADER_SIZE, WalLongHeader, WalSegmentName, WalSegmentSize, parse_history_file_name,
};
use leeward_pgformat::{Lsn, SystemIdentifier, TimelineHistory, TimelineId, WalScanner};
use leeward_postgres::configuration_syntax::{self, Syntax};
use leeward_postgres::data_directory::DataDirectory;

/// The settings that end recovery early (`xlogrecovery.c`).
const RECOVERY_TARGETS: [&str; 5] = [
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

/// The directories around a WAL file.
#[derive(Debug)]
pub(super) struct ServerDirectories {
    /// Where the file lies, or is wanted: `pg_wal`, if it is a server's.
    pub wal: PathBuf,
    /// The data directory, if that is where `wal` lies. A linked `pg_wal` is found, since names are taken as they are.
    pub data: PathBuf,
}

impl ServerDirectories {
    /// Those around the WAL file `path`.
    pub(super) fn around(path: &Path) -> Self {
        let wal = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let data = match wal.parent() {
            Some(_) if wal.ends_with("..") || wal.as_os_str() == "." => wal.join(".."),
            Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
            Some(parent) => parent.to_owned(),
            None => wal.join(".."),
        };
        Self { wal, data }
    }

    /// The control file; `None` where there is none that can be read.
    pub(super) fn control_file(&self) -> Option<ControlFile> {
        let (control, _) = DataDirectory::open(&self.data).ok()?.control_file().ok()?;
        Some(control)
    }

    /// Which run of the server this is: process id, directory and start time (the first lines of `postmaster.pid`,
    /// miscadmin.h). `None` where none runs.
    pub(super) fn run(&self) -> Option<String> {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        Some(text.lines().take(3).collect::<Vec<_>>().join("\n"))
    }

    /// Whether the configuration inside the data directory names a recovery target. One that stands elsewhere is not seen.
    pub(super) fn has_recovery_target(&self) -> bool {
        let mut targets = BTreeMap::new();
        // In the order in which they override each other.
        for file in ["postgresql.conf", "postgresql.auto.conf"] {
            let text = fs::read(self.data.join(file)).unwrap_or_default();
            let settings = configuration_syntax::lines(Syntax::Settings, &text)
                .filter_map(configuration_syntax::setting);
            for setting in settings.filter(|setting| RECOVERY_TARGETS.contains(&&*setting.name)) {
                targets.insert(setting.name, setting.value);
            }
        }
        targets.values().any(|value| !value.is_empty())
    }

    /// Where the WAL ends that the server has of a segment itself; `None` where it has nothing of it, or just a file for WAL
    /// to come under that name. `owner` is whose WAL it must be, where that is known.
    pub(super) fn end_of(
        &self,
        segment: WalSegmentName,
        size: WalSegmentSize,
        owner: Option<SystemIdentifier>,
    ) -> Option<Lsn> {
        let mut file = File::open(self.wal.join(segment.name(size))).ok()?;
        let mut head = [0; WAL_LONG_HEADER_SIZE];
        file.read_exact(&mut head).ok()?;
        let header = WalLongHeader::parse(&head).ok()?;
        let owner = owner.unwrap_or(header.system_identifier);
        header.check(segment, owner).ok()?;

        let mut scanner = WalScanner::new(segment.start_lsn(size), size);
        let mut wal = head.chain(file);
        let mut bytes = vec![0; 256 << 10];
        while let Ok(length @ 1..) = wal.read(&mut bytes) {
            // Behind damage recovery does not go on either.
            if scanner.feed(&bytes[..length], &mut |_| {}).is_err() || scanner.reached_end() {
                break;
            }
        }
        // A record that leads into the next segment is this one's last, and nothing is read behind a switch.
        let whole = scanner.position() >= segment.end_lsn(size) && !scanner.reached_end();
        Some(if whole || scanner.switched_at().is_some() {
            segment.end_lsn(size)
        } else {
            scanner.end_of_valid()
        })
    }

    /// The newest timeline's history file in `pg_wal`.
    pub(super) fn newest_history(&self) -> Option<TimelineHistory> {
        let names = fs::read_dir(&self.wal).into_iter().flatten().flatten();
        let histories = names.filter_map(|entry| {
            let timeline = parse_history_file_name(entry.file_name().to_str()?)?;
            TimelineHistory::parse(fs::read(entry.path()).ok()?, timeline).ok()
        });
        histories.max_by_key(|history| history.target)
    }

    /// The directory in which the server notes what it wants archived, if there is one beside the file.
    pub(super) fn archive_status(&self) -> PathBuf {
        self.wal.join("archive_status")
    }

    /// Whether this server, or the one it was made from, has archived before: then there is a repository somewhere.
    pub(super) fn has_archived(&self, timeline: TimelineId) -> bool {
        let status = fs::read_dir(self.archive_status())
            .into_iter()
            .flatten()
            .flatten();
        let mut names = status.map(|entry| entry.file_name());
        timeline.0 > 1 || names.any(|name| name.to_string_lossy().ends_with(".done"))
    }

    /// The spool: our own folder beside the WAL, on the file system to which files are handed over.
    pub(super) fn spool(&self) -> PathBuf {
        self.wal.join("leeward")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_target_that_was_taken_back_is_none() {
        let data = tempfile::tempdir().expect("a directory");
        let server = ServerDirectories {
            wal: data.path().join("pg_wal"),
            data: data.path().to_owned(),
        };
        assert!(!server.has_recovery_target());
        let write = |file: &str, text: &str| {
            fs::write(data.path().join(file), text).expect("written");
        };
        write(
            "postgresql.conf",
            "recovery_target_time = '2026-11-22'\nrecovery_target_timeline = 'latest'\n",
        );
        assert!(server.has_recovery_target());
        write("postgresql.auto.conf", "recovery_target_time = ''\n");
        assert!(!server.has_recovery_target());
        write(
            "postgresql.auto.conf",
            "recovery_target_time = ''\nrecovery_target_lsn = '0/3000000'\n",
        );
        assert!(server.has_recovery_target());
    }

    #[test]
    fn the_newest_history_is_the_highest_timelines() {
        let wal = tempfile::tempdir().expect("a directory");
        let server = ServerDirectories::around(&wal.path().join("RECOVERYHISTORY"));
        assert_eq!(server.newest_history(), None);
        for (name, text) in [
            (
                "00000003.history",
                "2\t0/5000000\tno recovery target specified\n",
            ),
            (
                "00000002.history",
                "1\t0/3000000\tno recovery target specified\n",
            ),
            ("00000004.history", "no history"),
            ("00000005.history.ready", ""),
        ] {
            fs::write(wal.path().join(name), text).expect("written");
        }
        let newest = server.newest_history().expect("there are two");
        assert_eq!(newest.target, TimelineId(3));
    }

    #[test]
    fn where_things_lie() {
        for (path, wal, data) in [
            ("pg_wal/1", "pg_wal", "."),
            ("/data/pg_wal/1", "/data/pg_wal", "/data"),
            ("1", ".", "./.."),
            ("../1", "..", "../.."),
            ("/1", "/", "/.."),
        ] {
            let found = ServerDirectories::around(Path::new(path));
            assert_eq!(found.wal, Path::new(wal), "{path}");
            assert_eq!(found.data, Path::new(data), "{path}");
        }
    }
}
