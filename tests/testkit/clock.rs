//! A clock that servers go by, and that a story sets ahead and back.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use crate::server::Server;
use crate::story::Story;

/// The time that servers see, as a difference to the time that it is. Their sleeps and timeouts go by the true one.
#[derive(Debug)]
pub struct Clock {
    file: PathBuf,
    library: PathBuf,
    ahead_seconds: Cell<i64>,
}

impl Clock {
    /// A clock that is right.
    pub fn new(story: &Story) -> Clock {
        let clock = Clock {
            file: story.path("clock"),
            library: library(),
            ahead_seconds: Cell::new(0),
        };
        clock.step(0);
        clock
    }

    /// Makes a server go by this clock from its next start on.
    pub fn rules(&self, server: &mut Server) {
        for (name, value) in [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ] {
            server.set_environment(name, &value);
        }
    }

    /// What undoes that for a command that a server runs, at its beginning.
    pub fn off(&self) -> &'static str {
        "env -u LD_PRELOAD"
    }

    /// Sets the clock ahead by so many seconds, or back.
    pub fn step(&self, seconds: i64) {
        self.ahead_seconds.set(self.ahead_seconds.get() + seconds);
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{:+}s\n", self.ahead_seconds.get()))
            .and_then(|()| fs::rename(&new, &self.file))
            .expect("could not set a clock");
    }
}

/// Removes what libfaketime left of processes that were killed: a server whose process gets the number of one of them would end
/// at its start.
pub(crate) fn remove_leftovers() {
    for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| {
            name.strip_prefix("sem.faketime_sem_")
                .or_else(|| name.strip_prefix("faketime_shm_"))
        });
        if let Some(process) = process
            && !Path::new("/proc").join(process).exists()
        {
            // Another story may be faster.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Debian's libfaketime.
fn library() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").expect("there is /usr/lib");
    folders
        .flatten()
        .map(|folder| folder.path().join("faketime/libfaketime.so.1"))
        .find(|library| library.exists())
        .expect("libfaketime is not installed: run scripts/test once")
}
