//! `postmaster.pid`: what a running server writes about itself into its data directory.
//!
//! Lines as in `src/include/utils/pidfile.h`: process, data directory, start time, port, first socket directory, first
//! listen address, shared memory key, status.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::directory::read_file;
use crate::error::Error;

/// The file has eight short lines.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// The status line (`pidfile.h`, `PM_STATUS_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostmasterStatus {
    /// Starting, or recovering without accepting sessions.
    Starting,
    /// Shutting down.
    Stopping,
    /// Accepting sessions.
    Ready,
    /// A standby that does not accept sessions (`hot_standby` off).
    StandbyNotAccepting,
    /// Not written yet, or a word of a later version.
    Unknown,
}

/// The file, line by line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostmasterPid {
    /// The server's process.
    pub pid: u32,
    /// The data directory as the server names it.
    pub data_directory: PathBuf,
    /// Start time in seconds since 1970.
    pub start_time_seconds: i64,
    /// The TCP port, which is in the socket's name too. 0 while the server has not written it yet.
    pub port: u16,
    /// The first of `unix_socket_directories`, absent when there is none.
    pub socket_directory: Option<PathBuf>,
    /// The first of `listen_addresses`, absent when there is none.
    pub listen_address: Option<String>,
    /// What the server is doing.
    pub status: PostmasterStatus,
}

impl PostmasterPid {
    /// Reads the file of a data directory; `None` when there is none, so that no server runs (or one that was never
    /// told to).
    ///
    /// # Errors
    /// [`Error::Io`] when the file exists and cannot be read, or makes no sense.
    pub fn read(pgdata: &Path) -> Result<Option<PostmasterPid>, Error> {
        let path = pgdata.join("postmaster.pid");
        let failed = |source| Error::Io {
            action: "read",
            path: path.clone(),
            source,
        };
        let text = match read_file(&path, MAX_FILE_BYTES) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        PostmasterPid::parse(&text).map(Some).ok_or_else(|| {
            failed(std::io::Error::new(
                ErrorKind::InvalidData,
                "its first line is not a process number",
            ))
        })
    }

    /// Reads the lines; those that the server has not written yet are absent. `None` when even the process is missing.
    pub fn parse(text: &str) -> Option<PostmasterPid> {
        let mut lines = text.lines().map(str::trim_end);
        // A standalone backend writes its process number negated (`miscinit.c`, `CreateLockFile`).
        let pid = lines.next()?.trim().trim_start_matches('-').parse().ok()?;
        let mut next = || lines.next().unwrap_or_default();
        let data_directory = PathBuf::from(next());
        let start_time_seconds = next().parse().unwrap_or_default();
        let port = next().parse().unwrap_or_default();
        let socket_directory = Some(next())
            .filter(|line| !line.is_empty())
            .map(PathBuf::from);
        let listen_address = Some(next())
            .filter(|line| !line.is_empty())
            .map(str::to_owned);
        let _shared_memory_key = next();
        let status = match next().trim() {
            "starting" => PostmasterStatus::Starting,
            "stopping" => PostmasterStatus::Stopping,
            "ready" => PostmasterStatus::Ready,
            "standby" => PostmasterStatus::StandbyNotAccepting,
            _ => PostmasterStatus::Unknown,
        };
        Some(PostmasterPid {
            pid,
            data_directory,
            start_time_seconds,
            port,
            socket_directory,
            listen_address,
            status,
        })
    }

    /// Whether a process of that number exists. `true` does not prove that it is the server: numbers are reused, and
    /// another container has its own.
    pub fn is_alive(&self) -> bool {
        let pid = i32::try_from(self.pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        // EPERM means that it exists and belongs to somebody else.
        pid.is_some_and(|pid| {
            matches!(
                rustix::process::test_kill_process(pid),
                Ok(()) | Err(rustix::io::Errno::PERM)
            )
        })
    }

    /// What to pass to libpq as `host`: the socket directory before TCP, and an address that can be connected to where
    /// the server listens on all of them.
    pub fn host(&self) -> Option<String> {
        if let Some(directory) = &self.socket_directory {
            return directory.to_str().map(str::to_owned);
        }
        self.listen_address.as_deref().map(|address| match address {
            "*" => "localhost".to_owned(),
            "0.0.0.0" => "127.0.0.1".to_owned(),
            "::" => "::1".to_owned(),
            other => other.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: &str =
        "1234\n/srv/pg\n1700000000\n5433\n/run/pg\nlocalhost\n  5433001  3\nready   \n";

    fn check(text: &str, port: u16, host: Option<&str>, status: PostmasterStatus) {
        let parsed = PostmasterPid::parse(text).expect("a process number");
        assert_eq!(
            (parsed.port, parsed.host().as_deref(), parsed.status),
            (port, host, status),
            "{text:?}"
        );
    }

    #[test]
    fn lines_are_read_by_their_number() {
        check(RUNNING, 5433, Some("/run/pg"), PostmasterStatus::Ready);
        check(
            &RUNNING.replace("/run/pg", ""),
            5433,
            Some("localhost"),
            PostmasterStatus::Ready,
        );
        check(
            "1\n/d\n1\n5432\n\n*\n\nstandby\n",
            5432,
            Some("localhost"),
            PostmasterStatus::StandbyNotAccepting,
        );
        check(
            "1\n/d\n1\n5432\n\n0.0.0.0\n\nstopping\n",
            5432,
            Some("127.0.0.1"),
            PostmasterStatus::Stopping,
        );
        check(
            "1\n/d\n1\n5432\n\n::\n\nstarting\n",
            5432,
            Some("::1"),
            PostmasterStatus::Starting,
        );
        check(
            "1\n/d\n1\n5432\n\n\n\nready\n",
            5432,
            None,
            PostmasterStatus::Ready,
        );
    }

    #[test]
    fn a_half_written_file_is_no_error() {
        check(
            "77\n/srv/pg\n1700000000\n",
            0,
            None,
            PostmasterStatus::Unknown,
        );
        check("-77\n", 0, None, PostmasterStatus::Unknown);
        assert_eq!(PostmasterPid::parse(""), None);
        assert_eq!(PostmasterPid::parse("elephant\n"), None);
    }
}
