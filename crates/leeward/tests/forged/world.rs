//! Files outside the destination, which a forged repository may not touch, and the checks that it did not.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use leeward_fixtures::Forged;
use leeward_repository::store::Store;
use leeward_repository::store::local::LocalStore;

/// The server's user: any that is not root.
pub const USER: &str = "nobody";

/// The places a restore or export may write to. The last is the place of a tablespace that a backup names and that is absent:
/// a restore makes it, with nothing in it but the tablespace.
const DESTINATIONS: [&str; 3] = ["restored", "exported", "space"];

/// The user that runs the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    Root,
    User,
}

impl As {
    /// Returns whether the tests themselves have the rights for it. Without root's, everything is done by whoever runs them.
    pub fn is_possible(self) -> bool {
        self == As::User || is_root()
    }

    pub fn possible() -> impl Iterator<Item = As> {
        [As::Root, As::User]
            .into_iter()
            .filter(|who| who.is_possible())
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The ids of the server's user.
fn user() -> (u32, u32) {
    if !is_root() {
        let process = (rustix::process::geteuid(), rustix::process::getegid());
        return (process.0.as_raw(), process.1.as_raw());
    }
    let users = fs::read_to_string("/etc/passwd").expect("there are users");
    let line = users.lines().find(|line| line.starts_with("nobody:"));
    let mut fields = line.expect("there is nobody").split(':').skip(2);
    let mut id = || fields.next().and_then(|id| id.parse().ok()).expect("an id");
    (id(), id())
}

/// A run of the program.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stderr: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit {}: {}", self.code, self.stderr)
    }
}

/// The metadata and content of a file, directory or link.
type Facts = (u32, u32, u32, u64, u64, u64, i64, Vec<u8>);

/// Directories of others, a repository, and the server's user who may write to all of them.
pub struct World {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl World {
    pub fn new() -> World {
        let folder = tempfile::tempdir().expect("a directory");
        let path = fs::canonicalize(folder.path()).expect("a path");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
        let world = World {
            _folder: folder,
            path,
        };
        for directory in [
            "victim/inner",
            "live/base/5",
            "live/global",
            "live/pg_twophase",
            "live/pg_wal/archive_status",
            "live/pg_xact",
            "live-wal/archive_status",
            "live-space/PG_17_202406281/5",
            "live-space/PG_17_202406281/7",
        ] {
            fs::create_dir_all(world.path.join(directory)).expect("a directory");
        }
        for (file, content) in [
            ("victim/letter", "mine\n"),
            ("victim/inner/key", "secret\n"),
            ("live/PG_VERSION", "17\n"),
            ("live/postmaster.pid", "1\n"),
            ("live/base/5/16384", "a row"),
            ("live/global/pg_control", "state"),
            ("live/pg_wal/000000010000000000000001", "WAL"),
            ("live-wal/000000010000000000000001", "WAL"),
            ("live-space/PG_17_202406281/5/20000", "a row"),
        ] {
            fs::write(world.path.join(file), content).expect("a file");
        }
        symlink("nowhere", world.path.join("dangling")).expect("a link");
        world.give_all(&world.path);
        world
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn text(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    /// The server's user owns everything, so that it is not the file system that refuses.
    fn give_all(&self, path: &Path) {
        if !is_root() {
            return;
        }
        let (uid, gid) = user();
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).expect("an owner");
        if fs::symlink_metadata(path).expect("it is there").is_dir() {
            for entry in fs::read_dir(path).expect("a directory") {
                self.give_all(&entry.expect("an entry").path());
            }
        }
    }

    pub fn store(&self, forged: &Forged) {
        let repository = self.path.join("repository");
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(repository.clone()));
        forged.store(&store);
        self.give_all(&repository);
    }

    /// Runs the program, without a configuration.
    pub fn run(&self, who: As, args: &[&str]) -> Outcome {
        self.run_with_descriptors(who, 1024, args)
    }

    /// Runs the program with so many descriptors.
    pub fn run_with_descriptors(&self, who: As, descriptors: u32, args: &[&str]) -> Outcome {
        // Opened here and not closed by exec: the server's user need not be able to enter the directories it lies in.
        let program = File::open(env!("CARGO_BIN_EXE_leeward")).expect("the program");
        rustix::io::fcntl_setfd(&program, rustix::io::FdFlags::empty()).expect("a flag");
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                &format!("ulimit -n {descriptors}; exec \"$0\" \"$@\""),
            ])
            .arg(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .args(args)
            .args([
                "--repository",
                &self.text("repository"),
                "--progress",
                "none",
            ])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LEEWARD_CONFIG", "/dev/null")
            .current_dir(&self.path);
        if who == As::User && is_root() {
            let (uid, gid) = user();
            command.uid(uid).gid(gid);
        }
        let output = command.output().expect("the program runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!stderr.contains("panicked"), "{stderr}");
        Outcome {
            code: output.status.code().expect("it was not killed"),
            stderr,
        }
    }

    /// Everything but what is restored or exported.
    pub fn snapshot(&self) -> BTreeMap<PathBuf, Facts> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.path).expect("a directory") {
            let entry = entry.expect("an entry");
            if !DESTINATIONS
                .map(OsString::from)
                .contains(&entry.file_name())
            {
                look(&entry.path(), &mut found);
            }
        }
        found
    }

    pub fn assert_unchanged(&self, before: &BTreeMap<PathBuf, Facts>, case: &str) {
        let after = self.snapshot();
        for (path, facts) in &after {
            assert_eq!(before.get(path), Some(facts), "{case}: {}", path.display());
        }
        for path in before.keys() {
            assert!(after.contains_key(path), "{case}: {}", path.display());
        }
        for entry in fs::read_dir(self.path.join("space")).into_iter().flatten() {
            let name = entry.expect("an entry").file_name();
            let name = name.to_str().expect("a name of ours");
            let own = name == "PG_17_202406281" || name.starts_with("leeward.restoring-");
            assert!(own, "{case}: {name}");
        }
    }

    /// Asserts that everything in the destination belongs to the server's user, with no permission for others.
    pub fn assert_restored(&self, case: &str) {
        let root = self.path.join("restored");
        let mut found = BTreeMap::new();
        look(&root, &mut found);
        let (uid, gid) = user();
        for (path, (mode, owner, group, ..)) in &found {
            let what = format!("{case}: {} {mode:o}", path.display());
            assert_eq!((*owner, *group), (uid, gid), "{what}");
            let metadata = fs::symlink_metadata(path).expect("it is there");
            let inside = path.strip_prefix(&root).expect("inside");
            if metadata.is_symlink() {
                let first = inside.iter().next().and_then(|name| name.to_str());
                let own = first.is_some_and(|name| {
                    ["base", "global"].contains(&name) || name.starts_with("pg_")
                });
                let tablespace = inside.parent() == Some(Path::new("pg_tblspc"));
                assert!(tablespace || !own, "{what} is a link");
                continue;
            }
            assert!(metadata.is_dir() || metadata.is_file(), "{what}");
            assert_eq!(mode & 0o7000, 0, "{what}");
            assert!(!metadata.is_dir() || mode & 0o700 == 0o700, "{what}");
        }
        assert_eq!(found[&root].0 & 0o777, 0o700, "{case}");
        for absent in [
            "postmaster.pid",
            "standby.signal",
            "recovery.conf",
            "leeward.restoring",
        ] {
            assert!(!root.join(absent).exists(), "{case}: {absent}");
        }
        for present in [
            "recovery.signal",
            "backup_label",
            "global/pg_control",
            "pg_wal",
        ] {
            let metadata = fs::symlink_metadata(root.join(present));
            assert!(
                !metadata.expect("it is there").is_symlink(),
                "{case}: {present}"
            );
        }
        let auto = fs::read_to_string(root.join("postgresql.auto.conf")).expect("settings");
        assert!(auto.contains("restore_command"), "{case}");
    }

    pub fn assert_not_startable(&self, case: &str) {
        let control = self.path.join("restored/global/pg_control");
        assert!(fs::symlink_metadata(control).is_err(), "{case}");
    }

    /// Asserts that an archive has names inside, no link but those of tablespaces, and permission bits for the owner alone.
    pub fn assert_archive(&self, path: &Path, case: &str) {
        let archive = zstd::Decoder::new(File::open(path).expect("an archive"));
        let mut archive = tar::Archive::new(archive.expect("zstd"));
        for entry in archive.entries().expect("an archive") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").into_owned();
            let what = format!("{case}: {}", path.display());
            let plain = |part| {
                use std::path::Component::{CurDir, Normal};
                matches!(part, Normal(_) | CurDir)
            };
            assert!(path.components().all(plain), "{what}");
            let mode = entry.header().mode().expect("a mode");
            let kind = entry.header().entry_type();
            if kind.is_symlink() {
                let oid = path.strip_prefix("pg_tblspc").expect(&what);
                let target = entry.link_name().expect("a target").expect("a target");
                assert_eq!(*target, *Path::new("../tablespaces").join(oid), "{what}");
            } else if kind.is_dir() {
                assert_eq!(mode, 0o700, "{what}");
            } else {
                assert!(kind.is_file(), "{what}");
                assert_eq!(mode, 0o600, "{what}");
            }
            assert_ne!(path, Path::new("postmaster.pid"), "{what}");
            assert_ne!(path, Path::new("standby.signal"), "{what}");
            let mut start = [0; 1];
            let _ = entry.read(&mut start).expect("its bytes");
        }
    }

    /// Extracts both archives where the victims are; nothing of them changes.
    pub fn assert_extracts(&self, case: &str) {
        let before = self.snapshot();
        let to = self.path.join("exported/extracted");
        fs::create_dir(&to).expect("a directory");
        for name in ["data.tar.zst", "wal.tar.zst"] {
            // tar refuses entries that cannot be extracted.
            let _ = Command::new("tar")
                .args(["x", "--zstd", "-f"])
                .arg(self.path.join("exported").join(name))
                .arg("-C")
                .arg(&to)
                .output()
                .expect("tar runs");
        }
        self.assert_unchanged(&before, case);
    }
}

fn look(path: &Path, found: &mut BTreeMap<PathBuf, Facts>) {
    let metadata = fs::symlink_metadata(path).expect("it is there");
    let content = if metadata.is_symlink() {
        fs::read_link(path)
            .expect("a link")
            .into_os_string()
            .into_encoded_bytes()
    } else if metadata.is_file() && metadata.len() < 1 << 20 {
        fs::read(path).unwrap_or_default()
    } else {
        Vec::new()
    };
    found.insert(
        path.to_owned(),
        (
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.ino(),
            metadata.nlink(),
            metadata.len(),
            metadata.mtime_nsec() ^ metadata.mtime(),
            content,
        ),
    );
    if metadata.is_dir() {
        for entry in fs::read_dir(path).expect("a directory") {
            look(&entry.expect("an entry").path(), found);
        }
    }
}
