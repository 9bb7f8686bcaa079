//! A repository with a tablespace, and a folder with the places it may be restored to.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use leeward_engine::error::{Error, ErrorKind, Result};
use leeward_engine::restore::{RestoreOptions, RestoreOutcome, restore};
use leeward_fixtures::Forged;
use leeward_repository::store::Store;
use leeward_repository::store::memory::{Action, Fault, FaultPoint, MemoryStore, Operation};

use crate::restore_options::restore_options;

/// The oldest wait for anything in these tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// The version directory of the backup's tablespace.
pub const VERSION: &str = "PG_17_202406281";

/// The user that everything belongs to when root restores.
pub const USER: &str = "nobody";

pub struct Place {
    pub memory: MemoryStore,
    store: Arc<dyn Store>,
    folder: tempfile::TempDir,
}

impl Place {
    /// A backup whose tablespace lay in `space`.
    pub fn new() -> Place {
        Place::of(|_, _| {})
    }

    pub fn of(change: impl FnOnce(&mut Forged, &Path)) -> Place {
        let memory = MemoryStore::bucket();
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().to_owned();
        let mut backup = Forged::new(USER);
        backup.add_tablespace(16400, &path.join("space").display().to_string());
        change(&mut backup, &path);
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        backup.store(&store);
        Place {
            memory,
            store,
            folder,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Restores to `restored`. The tablespace goes to `space`, as a person says, or elsewhere.
    pub fn restore(&self) -> Result<RestoreOutcome> {
        self.restore_to("restored", "space")
    }

    pub fn restore_to(&self, to: &str, space: &str) -> Result<RestoreOutcome> {
        let mapping = (self.path("space"), self.path(space));
        self.restore_with(&self.path(to), vec![mapping])
    }

    pub fn restore_with(
        &self,
        to: &Path,
        tablespaces: Vec<(PathBuf, PathBuf)>,
    ) -> Result<RestoreOutcome> {
        let options = RestoreOptions {
            tablespaces,
            ..restore_options(to)
        };
        restore(&self.store, &options, &|_| {})
    }

    /// Makes the next restore meet a fault when all files are written: WAL is read once to decide where recovery goes, and
    /// at the end to write it.
    fn inject(&self, fault: Fault, times: u64) {
        self.memory.clear_operations();
        let mapping = (self.path("space"), self.path("probe/space"));
        self.restore_with(&self.path("probe/restored"), vec![mapping])
            .expect("restored");
        fs::remove_dir_all(self.path("probe")).expect("removed");
        let is_of_wal = |operation: &&Operation| {
            operation.action == Action::GetRange && operation.key.contains("/wal/")
        };
        let count = self.memory.operations().iter().filter(is_of_wal).count();
        self.memory.inject(
            FaultPoint::new(fault)
                .on(&[Action::GetRange])
                .keys("/wal/")
                .after(count as u64 - 1)
                .times(times),
        );
    }

    /// Interrupts a restore when all files are written and its WAL is to come.
    pub fn interrupt(&self) {
        self.inject(Fault::Fail, u64::MAX);
        let error = self.restore().expect_err("it is interrupted");
        assert_eq!(error.kind(), ErrorKind::Failed, "{error}");
        self.memory.heal();
        assert!(
            self.path("restored/leeward.restoring/data/base/5/16384")
                .exists()
        );
        assert!(self.own_in("space").join(VERSION).exists());
    }

    /// A restore that is killed when it has moved up the first directory.
    pub fn interrupt_among_moves(&self) {
        self.interrupt();
        let unfinished = self.path("restored/leeward.restoring");
        let base = unfinished.join("data/base");
        let facts = fs::metadata(&base).expect("look");
        let born = facts.created().ok().map(|born| {
            let since = born.duration_since(UNIX_EPOCH).expect("after 1970");
            (since.as_secs(), since.subsec_nanos())
        });
        let record = unfinished.join("restore.json");
        let mut json: serde_json::Value =
            serde_json::from_slice(&fs::read(&record).expect("read")).expect("JSON");
        json["moved"] = serde_json::json!([{"name": "base", "inode": facts.ino(), "born": born}]);
        fs::write(&record, json.to_string()).expect("written");
        fs::rename(&base, self.path("restored/base")).expect("moved");
    }

    /// Does something while a restore waits with all files written; returns what became of the restore.
    pub fn meanwhile(&self, act: impl FnOnce()) -> Result<RestoreOutcome> {
        // Once: others that restore meanwhile read WAL too.
        self.inject(Fault::Stall, 1);
        std::thread::scope(|scope| {
            let restoring = scope.spawn(|| self.restore());
            assert!(self.memory.wait_for_stall(PATIENCE), "the restore waits");
            act();
            self.memory.heal();
            self.memory.release();
            restoring.join().expect("no panic")
        })
    }

    /// The directory of a restore's own in a tablespace's.
    pub fn own_in(&self, space: &str) -> PathBuf {
        let mut own = fs::read_dir(self.path(space))
            .expect("the tablespace's directory")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.display().to_string().contains("leeward.restoring-"));
        let only = own.next().expect("a directory of the restore's");
        assert_eq!(own.next(), None);
        only
    }

    /// A live server's tablespace in `space`.
    pub fn move_a_server_into(&self, space: &str) -> PathBuf {
        let rows = self.path(space).join(VERSION).join("5/30000");
        fs::create_dir_all(rows.parent().expect("a folder")).expect("directories");
        fs::write(&rows, "live rows").expect("a file");
        rows
    }

    /// The restored directory is whole and holds nothing of a restore's making but itself.
    pub fn assert_whole(&self, space: &str) {
        let restored = self.path("restored");
        assert!(restored.join("global/pg_control").is_file());
        assert!(!restored.join("leeward.restoring").exists());
        assert_eq!(
            fs::read(restored.join("base/5/16384")).expect("read"),
            [7; 8192]
        );
        let link = fs::read_link(restored.join("pg_tblspc/16400")).expect("a link");
        assert_eq!(link, self.path(space));
        let relation = link.join(VERSION).join("5/20000");
        assert_eq!(fs::read(relation).expect("read"), [9; 8192]);
        let names: Vec<_> = fs::read_dir(self.path(space)).expect("read").collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    pub fn assert_not_startable(&self) {
        assert!(!self.path("restored/global/pg_control").exists());
    }
}

/// An error of this kind that says all of these words.
pub fn refused(outcome: Result<RestoreOutcome>, kind: ErrorKind, words: &[&str]) -> Error {
    let error = match outcome {
        Ok(_) => panic!("it was not refused: {words:?}"),
        Err(error) => error,
    };
    let mut text = format!("{error} {}", error.advice().unwrap_or_default());
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(&format!(" {cause}"));
        source = cause.source();
    }
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "\"{word}\" is not in: {text}");
    }
    error
}

/// Runs the last command that a hint names, which follows a colon.
pub fn run_hint(error: &Error) {
    let hint = error.advice().expect("a hint");
    let (_, command) = hint.rsplit_once(": ").expect("a command");
    let status = std::process::Command::new("sh")
        .args(["-ec", command.trim_end_matches('.')])
        .status()
        .expect("a shell");
    assert!(status.success(), "{command}");
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn owner(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("it is there").uid()
}
