//! Servers of our own: made, started, promoted, stopped and thrown away, for drills, clones and tests.
//!
//! A server listens on a Unix-domain socket in a directory of its own and, unless told otherwise, on no TCP address, so
//! that it never collides with another. It is a child of this process: when it dies while starting, its last words are
//! in the error. PostgreSQL refuses to run as root, so root starts it as another operating system user.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process, test_kill_process};

pub use crate::bin_directory::BinDirectory;
use crate::bin_directory::{could_not_run, run};
use crate::connection::Connection;
use crate::error::Error;
use crate::postmaster_pid::{PostmasterPid, PostmasterStatus};
use crate::target::ConnectTarget;

/// First and longest pause between two looks at a server.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));

/// How much of a server's log is repeated in an error, in bytes.
const LOG_TAIL_BYTES: u64 = 2048;

/// How a server stops (`postmaster.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Waits until all sessions have ended.
    Smart,
    /// Ends all sessions and writes a checkpoint.
    Fast,
    /// Ends at once, without a checkpoint: the next start recovers.
    Immediate,
}

/// An operating system user, by name and numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OsUser {
    uid: u32,
    gid: u32,
}

/// A server. Dropping it stops it at once, unless [`Server::keep_running`] was called.
#[derive(Debug)]
pub struct Server {
    bin: BinDirectory,
    data_directory: PathBuf,
    socket_directory: PathBuf,
    port: u16,
    superuser: String,
    os_user: Option<OsUser>,
    child: Option<Child>,
    keep: bool,
}

impl Server {
    /// Describes a server; nothing is touched. The port is only a part of the socket's name unless `listen_addresses`
    /// is set.
    pub fn new(
        bin: BinDirectory,
        data_directory: impl Into<PathBuf>,
        socket_directory: impl Into<PathBuf>,
        port: u16,
    ) -> Server {
        Server {
            bin,
            data_directory: data_directory.into(),
            socket_directory: socket_directory.into(),
            port,
            superuser: "postgres".to_owned(),
            os_user: None,
            child: None,
            keep: false,
        }
    }

    /// Runs the programs as this operating system user when we are root; without it, as the owner of the data
    /// directory, and as `postgres` where that is root too. Ignored when we are not root.
    ///
    /// # Errors
    /// [`Error::Program`] when there is no such user.
    pub fn as_user(mut self, name: &str) -> Result<Server, Error> {
        if geteuid().is_root() {
            self.os_user = Some(look_up(name)?);
        }
        Ok(self)
    }

    /// Names the role that [`Server::target`] connects as; `postgres` otherwise.
    #[must_use]
    pub fn with_superuser(mut self, name: &str) -> Server {
        name.clone_into(&mut self.superuser);
        self
    }

    /// The data directory.
    pub fn data_directory(&self) -> &Path {
        &self.data_directory
    }

    /// The programs it runs on.
    pub fn bin(&self) -> &BinDirectory {
        &self.bin
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of its socket and its log.
    pub fn socket_directory(&self) -> &Path {
        &self.socket_directory
    }

    /// Makes a cluster with `initdb`: locale C, UTF-8, everybody trusted on the local machine, unless the options say
    /// otherwise.
    ///
    /// # Errors
    /// [`Error::Program`] with `initdb`'s last words, [`Error::Io`].
    pub fn initdb(&self, options: &[&str]) -> Result<(), Error> {
        let user = self.user()?;
        make_directory(&self.data_directory, user.as_ref())?;
        let program = self.bin.program("initdb");
        let mut command = self.command(&program, user.as_ref());
        command
            .arg("-D")
            .arg(&self.data_directory)
            .args(["-U", &self.superuser]);
        command
            .args(["--auth=trust", "--encoding=UTF8", "--locale=C"])
            .args(options);
        run(&mut command, &program).map(drop)
    }

    /// Adds lines to `postgresql.conf`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append_config(&self, lines: &str) -> Result<(), Error> {
        let path = self.data_directory.join("postgresql.conf");
        let write = || {
            OpenOptions::new()
                .append(true)
                .open(&path)?
                .write_all(format!("{lines}\n").as_bytes())
        };
        write().map_err(|source| Error::Io {
            action: "write",
            path: path.clone(),
            source,
        })
    }

    /// Starts the server and waits until it accepts sessions.
    ///
    /// # Errors
    /// [`Error::Program`] when it ends instead, [`Error::DeadlinePassed`] when it takes too long (it is then still
    /// running, and stopped when dropped), [`Error::Io`].
    pub fn start(&mut self, deadline: Duration) -> Result<(), Error> {
        self.start_with(&[], deadline)
    }

    /// As [`Server::start`], with settings that win over every configuration file.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_with(
        &mut self,
        settings: &[(&str, &str)],
        deadline: Duration,
    ) -> Result<(), Error> {
        let user = self.user()?;
        make_directory(&self.socket_directory, user.as_ref())?;
        let log_path = self.log_path();
        let failed = |source| Error::Io {
            action: "open",
            path: log_path.clone(),
            source,
        };
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(failed)?;
        let program = self.bin.program("postgres");
        let mut command = self.command(&program, user.as_ref());
        command.arg("-D").arg(&self.data_directory);
        let socket_directory = self.socket_directory.display().to_string();
        let port = self.port.to_string();
        let ours = [
            ("port", port.as_str()),
            ("unix_socket_directories", socket_directory.as_str()),
            ("listen_addresses", ""),
            // Messages are wanted in our log, where they can be read back.
            ("logging_collector", "off"),
            ("log_destination", "stderr"),
        ];
        for (name, value) in ours.iter().chain(settings) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let errors = log.try_clone().map_err(failed)?;
        // A process group of its own: Ctrl-C in a terminal is for us, and we stop the server in order.
        command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0);
        let child = command
            .spawn()
            .map_err(|source| could_not_run(&program, &source.to_string()))?;
        self.child = Some(child);
        self.wait_until(
            "did not accept sessions",
            deadline,
            Server::accepts_sessions,
        )
    }

    /// Stops the server and waits until its process is gone. Nothing to do when none is running.
    ///
    /// # Errors
    /// [`Error::DeadlinePassed`].
    pub fn stop(&mut self, mode: StopMode, deadline: Duration) -> Result<(), Error> {
        let signal = match mode {
            StopMode::Smart => Signal::TERM,
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        };
        if let Some(pid) = self.process() {
            // A process that is gone already is what we want.
            let _ = kill_process(pid, signal);
        }
        self.wait_until("did not stop", deadline, |server| Ok(!server.is_running()))?;
        self.child = None;
        Ok(())
    }

    /// Makes a standby a primary (`pg_ctl promote`) and waits until it accepts writes.
    ///
    /// # Errors
    /// [`Error::Program`] when it is no standby, [`Error::DeadlinePassed`].
    pub fn promote(&mut self, deadline: Duration) -> Result<(), Error> {
        let program = self.bin.program("pg_ctl");
        let mut command = self.command(&program, self.user()?.as_ref());
        command
            .args(["promote", "--no-wait", "--silent", "-D"])
            .arg(&self.data_directory);
        run(&mut command, &program)?;
        self.wait_until("did not leave recovery", deadline, |server| {
            let answer = server
                .connect()
                .and_then(|mut session| session.query("SELECT pg_is_in_recovery()", &[]));
            Ok(answer.is_ok_and(|rows| rows.get(0, 0) == Some("f")))
        })
    }

    /// Kills the server and all its processes as a crash of the machine would, and waits until they are gone.
    pub fn kill9(&mut self) {
        let Some(postmaster) = self.process() else {
            return;
        };
        let raw = postmaster.as_raw_nonzero();
        let children =
            fs::read_to_string(format!("/proc/{raw}/task/{raw}/children")).unwrap_or_default();
        let children: Vec<Pid> = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok().and_then(Pid::from_raw))
            .collect();
        // The postmaster first, or it would start to recover.
        for pid in std::iter::once(postmaster).chain(children.iter().copied()) {
            let _ = kill_process(pid, Signal::KILL);
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        let mut pause = PAUSE.0;
        while children
            .iter()
            .any(|pid| test_kill_process(*pid).is_ok() && !is_zombie(*pid))
        {
            pause = wait_a_little(pause);
        }
    }

    /// Whether its process exists.
    pub fn is_running(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => {
                matches!(PostmasterPid::read(&self.data_directory), Ok(Some(pid)) if pid.is_alive())
            }
        }
    }

    /// Leaves the server running when this value is dropped.
    pub fn keep_running(&mut self) {
        self.keep = true;
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The file it logs to: `server.log` in the socket directory.
    pub fn log_path(&self) -> PathBuf {
        self.socket_directory.join("server.log")
    }

    /// How to connect to it as its superuser, to the database `postgres`.
    pub fn target(&self) -> ConnectTarget {
        let conninfo = format!(
            "host={} port={} user={} dbname=postgres passfile=/nonexistent sslmode=disable",
            quote(&self.socket_directory.display().to_string()),
            self.port,
            quote(&self.superuser)
        );
        ConnectTarget {
            conninfo: Some(conninfo),
            ..ConnectTarget::default()
        }
    }

    /// Opens a session as its superuser.
    ///
    /// # Errors
    /// As [`Connection::connect`].
    pub fn connect(&self) -> Result<Connection, Error> {
        Connection::connect(&self.target())
    }

    /// A program run as the server's user, in a directory everybody may enter, without our own libpq variables.
    fn command(&self, program: &Path, user: Option<&OsUser>) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/").stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("PG")) {
                command.env_remove(name);
            }
        }
        if let Some(user) = user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    fn user(&self) -> Result<Option<OsUser>, Error> {
        if self.os_user.is_some() || !geteuid().is_root() {
            return Ok(self.os_user.clone());
        }
        match fs::metadata(&self.data_directory) {
            Ok(owner) if owner.uid() != 0 => Ok(Some(OsUser {
                uid: owner.uid(),
                gid: owner.gid(),
            })),
            _ => look_up("postgres").map(Some),
        }
    }

    fn process(&mut self) -> Option<Pid> {
        if !self.is_running() {
            return None;
        }
        let pid = match &self.child {
            Some(child) => child.id(),
            None => PostmasterPid::read(&self.data_directory).ok()??.pid,
        };
        Pid::from_raw(i32::try_from(pid).ok()?)
    }

    fn accepts_sessions(&mut self) -> Result<bool, Error> {
        match self.connect() {
            Ok(_) => return Ok(true),
            // It answers, and only refuses us.
            Err(Error::ConnectFailed(failure))
                if failure.password_missing
                    || failure
                        .sqlstate
                        .as_deref()
                        .is_some_and(|state| state.starts_with("28") || state == "3D000") =>
            {
                return Ok(true);
            }
            Err(_) => {}
        }
        if !self.is_running() {
            return Err(could_not_run(
                &self.bin.program("postgres"),
                &self.log_tail(),
            ));
        }
        let status = PostmasterPid::read(&self.data_directory)
            .ok()
            .flatten()
            .map(|pid| pid.status);
        Ok(status == Some(PostmasterStatus::StandbyNotAccepting))
    }

    /// Looks again and again, ever less often, until something is so.
    fn wait_until(
        &mut self,
        expected: &'static str,
        deadline: Duration,
        mut so: impl FnMut(&mut Server) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let end = Instant::now() + deadline;
        let mut pause = PAUSE.0;
        loop {
            if so(self)? {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(Error::DeadlinePassed {
                    data_directory: self.data_directory.clone(),
                    expected,
                    after: deadline,
                    state: self.log_tail(),
                });
            }
            pause = wait_a_little(pause);
        }
    }

    fn log_tail(&self) -> String {
        let read = || {
            let mut file = File::open(self.log_path())?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        read()
            .ok()
            .filter(|tail| !tail.is_empty())
            .unwrap_or_else(|| "its log is empty".to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.keep || self.child.is_none() {
            return;
        }
        if self
            .stop(StopMode::Immediate, Duration::from_secs(5))
            .is_err()
        {
            self.kill9();
        }
    }
}

/// Lets some time pass, and says how much it should be the next time.
#[expect(
    clippy::disallowed_methods,
    reason = "nobody tells us when another process changes its state; callers look again"
)]
fn wait_a_little(pause: Duration) -> Duration {
    std::thread::sleep(pause);
    (pause * 2).min(PAUSE.1)
}

fn look_up(name: &str) -> Result<OsUser, Error> {
    let program = Path::new("id");
    let ask = |option: &str| {
        let answer = run(Command::new(program).args([option, "--", name]), program)?;
        answer
            .trim()
            .parse()
            .map_err(|_| could_not_run(program, &format!("it answered \"{}\"", answer.trim())))
    };
    Ok(OsUser {
        uid: ask("-u")?,
        gid: ask("-g")?,
    })
}

fn make_directory(path: &Path, user: Option<&OsUser>) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    let failed = |source| Error::Io {
        action: "create",
        path: path.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    if let Some(user) = user {
        chown(path, Some(user.uid), Some(user.gid)).map_err(failed)?;
    }
    Ok(())
}

/// A value of a connection string, quoted (libpq's manual, "Connection Strings").
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn is_zombie(pid: Pid) -> bool {
    let stat =
        fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    // The state follows the command's name, which stands in parentheses and may hold anything.
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_connection_string_are_quoted() {
        assert_eq!(quote("/tmp/a b"), "'/tmp/a b'");
        assert_eq!(quote("it's"), "'it\\'s'");
    }
}
