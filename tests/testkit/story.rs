//! The stage of one story: a scratch directory, an installation, and an unprivileged user.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use rustix::process::{Gid, Uid, geteuid};
use tempfile::TempDir;

use crate::installation::{Installation, leeward_program, leeward_program_within_reach};
use crate::processes;

/// Free bytes in memory that a light story asks for: it takes a tenth of that.
const MEMORY_ROOM: u64 = 4 << 30;

/// One story's scratch directory and installation. The directory goes away with it, unless `LEEWARD_KEEP` is set.
#[derive(Debug)]
pub struct Story {
    directory: Option<TempDir>,
    program_directory: Option<TempDir>,
    path: PathBuf,
    installation: Installation,
    program: PathBuf,
}

impl Story {
    /// Begins a story on this major version. As root, the story goes on as the user `postgres`, since a PostgreSQL
    /// server refuses to run as root and a backup belongs to the servers' own user.
    pub fn begin(major: u32) -> Story {
        let place = env::var_os("LEEWARD_TEST_DIR").unwrap_or_else(|| "/tmp".into());
        Story::begin_in(major, Path::new(&place))
    }

    /// A story that holds little and restores it often: in memory, where there is room, so that nobody waits for a disk.
    pub fn begin_light(major: u32) -> Story {
        let memory = Path::new("/dev/shm");
        let room = rustix::fs::statvfs(memory).map_or(0, |facts| facts.f_bavail * facts.f_frsize);
        if room < MEMORY_ROOM || env::var_os("LEEWARD_TEST_DIR").is_some() {
            return Story::begin(major);
        }
        Story::begin_in(major, memory)
    }

    fn begin_in(major: u32, place: &Path) -> Story {
        let scratch = |place: &Path| {
            tempfile::Builder::new()
                .prefix("leeward-")
                .tempdir_in(place)
                .expect("could not create a scratch directory")
        };
        let directory = scratch(place);
        let path = directory.path().to_path_buf();
        // Programs may not run where files are kept in memory.
        let mut program_directory = None;
        let program = if geteuid().is_root() {
            let reach = program_directory.insert(scratch(Path::new("/tmp")));
            fs::set_permissions(reach.path(), fs::Permissions::from_mode(0o755))
                .expect("could not open a directory for others");
            leeward_program_within_reach(reach.path())
        } else {
            leeward_program()
        };
        let story = Story {
            directory: Some(directory),
            program_directory,
            path,
            installation: Installation::of(major),
            program,
        };
        story.leave_root();
        story
    }

    /// A path inside the scratch directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The PostgreSQL this story is told on.
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The program under test.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Gives up root for this thread and all it starts. Credentials are a thread's own in Linux, so other tests in
    /// the same process keep theirs.
    fn leave_root(&self) {
        if !geteuid().is_root() {
            return;
        }
        let (uid, gid) = (id_of("-u"), id_of("-g"));
        let program_directory = self.program_directory.as_ref().map(TempDir::path);
        for directory in [Some(self.path.as_path()), program_directory]
            .into_iter()
            .flatten()
        {
            std::os::unix::fs::chown(directory, Some(uid), Some(gid))
                .expect("could not hand over the scratch directory");
        }
        rustix::thread::set_thread_groups(&[]).expect("could not drop the groups");
        rustix::thread::set_thread_res_gid(
            Gid::from_raw(gid),
            Gid::from_raw(gid),
            Gid::from_raw(gid),
        )
        .expect("could not drop the group");
        rustix::thread::set_thread_res_uid(
            Uid::from_raw(uid),
            Uid::from_raw(uid),
            Uid::from_raw(uid),
        )
        .expect("could not drop root");
        let owner = fs::metadata(&self.path)
            .expect("the scratch directory exists")
            .uid();
        assert_eq!(owner, uid);
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        // What fetches WAL ahead outlives the server it works for by some seconds.
        processes::kill(self, "");
        if env::var_os("LEEWARD_KEEP").is_some() {
            for directory in [self.directory.take(), self.program_directory.take()] {
                let _kept = directory.map(TempDir::keep);
            }
        }
        // A tablespace or a half-made directory may have been closed to its owner by the story.
        let _best_effort = Command::new("chmod")
            .args(["-R", "u+rwX"])
            .arg(&self.path)
            .output();
    }
}

/// Says something about the run itself, beside the runner's own lines.
pub fn note(text: &str) {
    let _nobody_listens = writeln!(std::io::stderr().lock(), "{text}");
}

fn id_of(flag: &str) -> u32 {
    let output = Command::new("id")
        .args([flag, "postgres"])
        .output()
        .expect("could not run id");
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("there is no user postgres: run scripts/test once"))
}
