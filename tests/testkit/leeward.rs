//! The program under test, run as a user runs it.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::deadline::{PATIENCE, reached, wait_until};
use crate::s3::environment;
use crate::server::{Server, clean_environment, send};
use crate::story::Story;

/// Exit codes, as the manual lists them.
pub mod exit {
    /// Done.
    pub const DONE: i32 = 0;
    /// Failed.
    pub const FAILED: i32 = 1;
    /// Wrong usage or configuration.
    pub const USAGE: i32 = 2;
    /// Refused because it would destroy something.
    pub const REFUSED: i32 = 3;
    /// Data found damaged.
    pub const DAMAGED: i32 = 4;
    /// Somebody else holds the lease.
    pub const LEASED: i32 = 5;
    /// Declined because of the server's role.
    pub const DECLINED: i32 = 6;
}

/// No command of the stories takes longer.
const DEADLINE: Duration = Duration::from_secs(300);

/// The program with a repository.
#[derive(Debug)]
pub struct Leeward<'story> {
    story: &'story Story,
    repository: String,
    environment: Vec<(String, String)>,
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed for machines.
    pub stdout: String,
    /// What it printed for people.
    pub stderr: String,
    /// From start to end.
    pub elapsed: Duration,
    /// The most memory it held resident, in KiB, as far as looking every few milliseconds tells.
    pub peak_rss_kib: u64,
}

/// A run that has not ended.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    out: PathBuf,
    err: PathBuf,
    started: Instant,
    peak_rss_kib: u64,
}

impl<'story> Leeward<'story> {
    /// With a repository in a directory of the story.
    pub fn new(story: &'story Story) -> Leeward<'story> {
        Leeward::at(story, &story.path("repository").display().to_string())
    }

    /// With a repository at this URL.
    pub fn at(story: &'story Story, repository: &str) -> Leeward<'story> {
        Leeward {
            story,
            repository: repository.to_owned(),
            environment: Vec::new(),
        }
    }

    /// With a repository at this URL in a bucket of the story's own S3 server, which is found at an endpoint: its own, or
    /// that of a proxy before it.
    pub fn over(story: &'story Story, repository: &str, endpoint: &str) -> Leeward<'story> {
        environment(endpoint)
            .iter()
            .fold(Leeward::at(story, repository), |leeward, (name, value)| {
                leeward.env(name, value)
            })
    }

    /// Sets an environment variable for all runs.
    pub fn env(mut self, name: &str, value: &str) -> Leeward<'story> {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The repository's URL.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The program with these arguments and the repository, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        // The kernel ends the run when the story ends, however that comes about; open files are as scarce as for a
        // user who never heard of `ulimit`.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(["prlimit", "--nofile=1024:", "--"])
            .arg(self.story.program())
            .args(args);
        command.args(["--repository", &self.repository]);
        clean_environment(&mut command);
        command
            .env("RUST_BACKTRACE", "1")
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.story.path(""));
        command
    }

    /// A command line for the server's shell, as `archive_command` is one: the program with these arguments, the
    /// repository and the environment. It can stand between single quotes in a configuration file.
    pub fn shell(&self, args: &str) -> String {
        let environment: String = self
            .environment
            .iter()
            .map(|(name, value)| format!("{name}=\"{value}\" "))
            .collect();
        format!(
            "{environment}\"{}\" {args} --repository \"{}\"",
            self.story.program().display(),
            self.repository
        )
    }

    /// Lines of configuration that archive with `leeward wal push`.
    pub fn archiving(&self, mode: &str) -> String {
        format!(
            "archive_mode = {mode}\narchive_command = '{}'",
            self.shell("wal push %p")
        )
    }

    /// Starts `leeward wal receive` beside a server.
    pub fn receive(&self, server: &Server) -> Running {
        let data = server.data().to_str().expect("a path in UTF-8");
        self.spawn(&["wal", "receive", "--pgdata", data])
    }

    /// Pushes a file of a server's `pg_wal`, as the server does; whatever comes of it.
    pub fn push(&self, server: &Server, name: &str, extra: &[&str]) -> Outcome {
        let path = format!("pg_wal/{name}");
        let mut args = vec!["wal", "push", &path];
        args.extend(extra);
        self.run_in(server.data(), &args)
    }

    /// Runs the program in a server's directory, as the server does, to its end.
    pub fn run_in(&self, data: &Path, args: &[&str]) -> Outcome {
        self.spawn_in(data, args).wait()
    }

    /// Starts the program in a server's directory, as the server does.
    pub fn spawn_in(&self, data: &Path, args: &[&str]) -> Running {
        let mut command = self.command(args);
        command.current_dir(data);
        self.spawn_command(command)
    }

    /// Starts the program with these arguments and the repository.
    pub fn spawn(&self, args: &[&str]) -> Running {
        self.spawn_command(self.command(args))
    }

    /// Starts a command that [`Leeward::command`] made and the caller may have changed.
    pub fn spawn_command(&self, mut command: Command) -> Running {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let (out, err) = (
            self.story.path(&format!("run-{run}.out")),
            self.story.path(&format!("run-{run}.err")),
        );
        command.stdin(Stdio::null());
        command.stdout(File::create(&out).expect("could not create a file for output"));
        command.stderr(File::create(&err).expect("could not create a file for output"));
        let text = command
            .get_args()
            .skip(7)
            .map(|arg| arg.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        let child = command.spawn().expect("could not run the program");
        Running {
            child,
            command: text,
            out,
            err,
            started: Instant::now(),
            peak_rss_kib: 0,
        }
    }

    /// Runs the program with these arguments and the repository, to its end.
    pub fn run(&self, args: &[&str]) -> Outcome {
        self.spawn(args).wait()
    }

    /// The arguments of a backup of this server.
    pub fn backup_args<'a>(server: &'a Server, extra: &[&'a str]) -> Vec<&'a str> {
        let mut args = vec![
            "backup",
            "--pgdata",
            server.data().to_str().expect("a path in UTF-8"),
        ];
        args.extend(extra);
        args
    }

    /// Backs up a server; whatever comes of it.
    pub fn backup(&self, server: &Server, extra: &[&str]) -> Outcome {
        self.run(&Leeward::backup_args(server, extra))
    }

    /// Backs up a server, which must succeed; the backup is returned as `show --json` tells of it.
    pub fn back_up(&self, server: &Server, extra: &[&str]) -> Backup {
        self.backup(server, extra).expect(exit::DONE);
        self.latest()
    }

    /// The newest backup.
    pub fn latest(&self) -> Backup {
        Backup(
            self.run(&["show", "latest", "--json"])
                .expect(exit::DONE)
                .json(),
        )
    }

    /// The ids of all listed backups, oldest first.
    pub fn listed(&self) -> Vec<String> {
        let listed = self.run(&["list", "--json"]).expect(exit::DONE).json();
        let mut ids = Vec::new();
        collect(&listed, "id", &mut ids);
        ids.iter()
            .map(|id| id.as_str().expect("an id is text").to_owned())
            .collect()
    }

    /// Restores a backup; whatever comes of it.
    pub fn restore(&self, backup: &str, to: &Path, extra: &[&str]) -> Outcome {
        let mut args = vec![
            "restore",
            backup,
            "--to",
            to.to_str().expect("a path in UTF-8"),
        ];
        args.extend(extra);
        self.run(&args)
    }

    /// Restores a backup, which must succeed, into a new directory of the story; the server is not started.
    pub fn restored(&self, backup: &str, name: &str, extra: &[&str]) -> Server {
        let to = self.story.path(name);
        self.restore(backup, &to, extra).expect(exit::DONE);
        self.server_in(name, &to)
    }

    /// A backup that has begun, and stands still before it copies anything.
    pub fn frozen_backup(&self, standby: &Server) -> Running {
        let slow = ["-v", "--compression", "zstd:6", "--threads", "1"];
        let mut running = self.spawn(&Leeward::backup_args(standby, &slow));
        running.wait_for_words("waiting for the restartpoint");
        running.freeze();
        running
    }

    /// Restores to a moment, which must succeed, into a new directory of the story; which backup it takes is the
    /// program's choice. The server is not started.
    pub fn restored_to(&self, name: &str, extra: &[&str]) -> Server {
        let to = self.story.path(name);
        let mut args = vec!["restore", "--to", to.to_str().expect("a path in UTF-8")];
        args.extend(extra);
        self.run(&args).expect(exit::DONE);
        self.server_in(name, &to)
    }

    fn server_in(&self, name: &str, to: &Path) -> Server {
        let mut server = Server::over(self.story, name, to);
        // Without autovacuum the catalogues stay as the backup had them, and can be compared.
        server.set("autovacuum", "off");
        server.set("fsync", "off");
        server
    }
}

impl Running {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.look();
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Freezes it where it is.
    pub fn freeze(&self) {
        send(self.pid(), Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        send(self.pid(), Signal::CONT);
    }

    /// `kill -9`.
    pub fn kill(self) -> Outcome {
        self.signal(Signal::KILL);
        self.wait()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// What it printed for people so far.
    pub fn stderr_so_far(&self) -> String {
        read(&self.err)
    }

    /// Waits until the words stand in what it says; it must not end before.
    pub fn wait_for_words(&mut self, words: &str) {
        wait_until(words, PATIENCE, || {
            assert!(!self.has_ended(), "{}", self.stderr_so_far());
            self.stderr_so_far().contains(words)
        });
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Outcome {
        let mut status = None;
        let ended = reached(DEADLINE, || {
            self.look();
            status = self
                .child
                .try_wait()
                .expect("could not look at the program");
            status.is_some()
        });
        if !ended {
            let _result = self.child.kill();
            let _status = self.child.wait();
            panic!(
                "leeward {} did not end in {DEADLINE:?}:\n{}",
                self.command,
                read(&self.err)
            );
        }
        let elapsed = self.started.elapsed();
        let outcome = Outcome {
            command: self.command.clone(),
            status: status.expect("it has ended"),
            stdout: read(&self.out),
            stderr: read(&self.err),
            elapsed,
            peak_rss_kib: self.peak_rss_kib,
        };
        let panicked = outcome.stderr.contains("panicked at");
        assert!(
            !panicked,
            "leeward {} panicked:\n{}",
            outcome.command, outcome.stderr
        );
        outcome
    }

    fn look(&mut self) {
        // VmHWM only grows, so the last look misses nothing but the last milliseconds.
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak
            .and_then(|text| text.trim().trim_end_matches(" kB").parse().ok())
            .unwrap_or(0);
        self.peak_rss_kib = self.peak_rss_kib.max(peak);
    }
}

impl Outcome {
    /// The exit code; `None` when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Whether `kill -9` ended it.
    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }

    /// Panics unless it ended with this code.
    pub fn expect(self, code: i32) -> Outcome {
        assert_eq!(self.code(), Some(code), "{self}");
        self
    }

    /// Panics unless all these words stand in what it printed for people.
    pub fn expect_words(self, words: &[&str]) -> Outcome {
        for word in words {
            assert!(
                self.stderr.contains(word),
                "\"{word}\" is not in what it said: {self}"
            );
        }
        self
    }

    /// What it printed for machines.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "leeward {} ended with {} after {:?}\n--- stdout ---\n{}\n--- stderr ---\n{}",
            self.command, self.status, self.elapsed, self.stdout, self.stderr
        )
    }
}

/// A backup as `show --json` tells of it.
#[derive(Debug, Clone)]
pub struct Backup(pub Value);

impl Backup {
    /// Its id.
    pub fn id(&self) -> String {
        self.text("id")
    }

    /// Where its WAL begins.
    pub fn start_lsn(&self) -> String {
        self.text("start_lsn")
    }

    /// The LSN it restores to.
    pub fn stop_lsn(&self) -> String {
        self.text("stop_lsn")
    }

    /// A field, wherever it stands; panics when there is none.
    pub fn field(&self, name: &str) -> Value {
        let mut found = Vec::new();
        collect(&self.0, name, &mut found);
        found
            .into_iter()
            .next()
            .unwrap_or_else(|| panic!("no \"{name}\" in {:#}", self.0))
    }

    /// A field that is text.
    pub fn text(&self, name: &str) -> String {
        let value = self.field(name);
        value
            .as_str()
            .unwrap_or_else(|| panic!("\"{name}\" is {value}"))
            .to_owned()
    }

    /// A field that is a count.
    pub fn count(&self, name: &str) -> u64 {
        let value = self.field(name);
        value
            .as_u64()
            .unwrap_or_else(|| panic!("\"{name}\" is {value}"))
    }
}

fn collect(value: &Value, name: &str, found: &mut Vec<Value>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get(name).cloned());
            for (_, inner) in fields.iter().filter(|(key, _)| *key != name) {
                collect(inner, name, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, name, found)),
        _ => {}
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
