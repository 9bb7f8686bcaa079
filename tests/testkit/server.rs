//! One PostgreSQL server: a data directory and, while it runs, a postmaster that dies with the story.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::deadline::{PATIENCE, reached, wait_until};
use crate::installation::{Installation, system_tool};
use crate::story::Story;
use crate::tools::{set_checksums, tools_understand};

/// How to ask a server to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Disconnects clients, writes a checkpoint (a restartpoint on a standby), ends clean.
    Fast,
    /// Ends at once, without a checkpoint; the next start recovers.
    Immediate,
    /// `kill -9`: nobody cleans up.
    Kill,
}

/// What a new cluster is made with.
#[derive(Debug, Clone)]
pub struct Initdb {
    /// Data checksums; on unless the story is about their absence.
    pub checksums: bool,
    /// WAL segment size, MiB.
    pub wal_segment_mib: u32,
    /// Put `pg_wal` outside the data directory, behind a link.
    pub linked_wal: bool,
}

impl Default for Initdb {
    fn default() -> Self {
        Initdb {
            checksums: true,
            wal_segment_mib: 16,
            linked_wal: false,
        }
    }
}

/// A server's directory and, between start and stop, its process.
#[derive(Debug)]
pub struct Server {
    name: String,
    installation: Installation,
    data: PathBuf,
    sockets: PathBuf,
    log: PathBuf,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    postmaster: Option<Child>,
}

/// All servers use the same port: their socket directories differ, and none listens on TCP unless told to.
pub const PORT: u16 = 5432;

impl Server {
    /// Makes a new cluster with `initdb`. The superuser is `postgres`, without a password.
    pub fn initdb(story: &Story, name: &str, how: &Initdb) -> Server {
        let server = Server::over(story, name, &story.path(name));
        let mut initdb = Command::new(server.installation.program("initdb"));
        initdb.args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        initdb.arg("-D").arg(&server.data);
        initdb.arg(format!("--wal-segsize={}", how.wal_segment_mib));
        let off_later = !how.checksums && tools_understand(&server.installation);
        if how.checksums || off_later {
            initdb.arg("--data-checksums");
        } else if server.installation.major() >= 18 {
            initdb.arg("--no-data-checksums");
        }
        if how.linked_wal {
            initdb
                .arg("--waldir")
                .arg(story.path(&format!("{name}.wal")));
        }
        run(&mut initdb);
        if off_later {
            set_checksums(&server.installation, &server.data, false);
        }
        server.append_config(
            "fsync = off
             wal_level = replica
             wal_keep_size = '4GB'
             max_wal_size = '2GB'
             max_wal_senders = 10
             max_replication_slots = 10
             max_connections = 40
             max_prepared_transactions = 5
             shared_buffers = '32MB'
             checkpoint_timeout = '30s'
             wal_receiver_status_interval = '1s'
             wal_retrieve_retry_interval = '100ms'
             autovacuum_naptime = '5s'
             log_line_prefix = '%m [%p] '",
        );
        server
    }

    /// A server over a data directory that is there already, or will be before the start.
    pub fn over(story: &Story, name: &str, data: &Path) -> Server {
        let sockets = story.path(&format!("{name}.s"));
        if !sockets.exists() {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&sockets)
                .expect("could not create a socket directory");
        }
        Server {
            name: name.to_owned(),
            installation: story.installation().clone(),
            data: data.to_path_buf(),
            log: story.path(&format!("{name}.log")),
            sockets,
            options: Vec::new(),
            environment: Vec::new(),
            postmaster: None,
        }
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The directory of the server's socket.
    pub fn sockets(&self) -> &Path {
        &self.sockets
    }

    /// A conninfo for this server, as the superuser.
    pub fn conninfo(&self) -> String {
        format!(
            "host={} port={PORT} user=postgres dbname=postgres",
            self.sockets.display()
        )
    }

    /// Adds lines to `postgresql.conf`.
    pub fn append_config(&self, lines: &str) {
        append(&self.data.join("postgresql.conf"), lines);
    }

    /// Sets a parameter on the command line of the next start, where it overrides every file.
    pub fn set(&mut self, name: &str, value: &str) {
        self.options.push(format!("{name}={value}"));
    }

    /// Sets what another server has on its command line.
    pub fn set_like(&mut self, other: &Server) {
        self.options.extend_from_slice(&other.options);
    }

    /// Sets an environment variable for the next starts.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the server and waits until it accepts connections.
    pub fn start(&mut self) {
        // The children of a killed postmaster end a little after it, and no other may start before.
        let ready = reached(PATIENCE, || {
            let logged = fs::metadata(&self.log).map_or(0, |log| log.len());
            self.launch();
            let ended =
                !reached(PATIENCE, || self.is_ready() || self.has_ended()) || self.has_ended();
            let log = fs::read(&self.log).unwrap_or_default();
            let said = String::from_utf8_lossy(log.get(logged as usize..).unwrap_or_default());
            let is_too_early = ended && said.contains("pre-existing shared memory block");
            if is_too_early {
                self.postmaster = None;
            }
            !is_too_early
        });
        assert!(
            ready && self.is_ready() && !self.has_ended(),
            "server {} did not start:\n{}",
            self.name,
            self.log_tail()
        );
    }

    /// Starts the server, expecting that it refuses to run; its log is returned.
    pub fn start_in_vain(&mut self) -> String {
        self.launch();
        let ended = reached(PATIENCE, || self.has_ended() || self.is_ready());
        assert!(
            ended && self.has_ended(),
            "server {} started, and should not have:\n{}",
            self.name,
            self.log_tail()
        );
        self.postmaster = None;
        self.log_tail()
    }

    /// Starts the postmaster without waiting. It gets SIGQUIT when the thread that started it ends, so that no
    /// story leaves a server behind, however it ends.
    pub fn launch(&mut self) {
        assert!(
            self.postmaster.is_none(),
            "server {} runs already",
            self.name
        );
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("could not open a server log");
        let errors = log
            .try_clone()
            .expect("could not duplicate a file descriptor");
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "QUIT", "--"])
            .arg(self.installation.program("postgres"));
        command.arg("-D").arg(&self.data);
        command.args(["-c", "listen_addresses=", "-c", &format!("port={PORT}")]);
        command.arg("-c").arg(format!(
            "unix_socket_directories={}",
            self.sockets.display()
        ));
        for option in &self.options {
            command.args(["-c", option]);
        }
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        clean_environment(&mut command);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if !self.environment.is_empty() {
            crate::clock::remove_leftovers();
        }
        self.postmaster = Some(
            command
                .spawn()
                .expect("could not run postgres through setpriv"),
        );
    }

    fn is_ready(&self) -> bool {
        // The eighth line of postmaster.pid is the postmaster's own word (miscadmin.h, PM_STATUS_READY); the first is
        // its process id, which tells it from a killed predecessor's.
        let text = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.first() == Some(&self.pid().to_string().as_str()) && lines.get(7) == Some(&"ready")
    }

    /// Whether the postmaster has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.exit_status().is_some()
    }

    fn exit_status(&mut self) -> Option<ExitStatus> {
        self.postmaster
            .as_mut()?
            .try_wait()
            .expect("could not look at the postmaster")
    }

    /// Whether a postmaster runs.
    pub fn is_running(&mut self) -> bool {
        self.postmaster.is_some() && !self.has_ended()
    }

    /// The process id of the running postmaster.
    pub fn pid(&self) -> u32 {
        self.postmaster.as_ref().expect("the server runs").id()
    }

    /// Stops the server and waits for its end.
    pub fn stop(&mut self, how: Stop) {
        let Some(mut postmaster) = self.postmaster.take() else {
            return;
        };
        let signal = match how {
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
            Stop::Kill => Signal::KILL,
        };
        send(postmaster.id(), signal);
        let mut status = None;
        let ended = reached(PATIENCE, || {
            status = postmaster
                .try_wait()
                .expect("could not look at the postmaster");
            status.is_some()
        });
        if !ended {
            let _result = postmaster.kill();
            panic!("server {} did not stop:\n{}", self.name, self.log_tail());
        }
        if how == Stop::Fast {
            let status = status.expect("it has ended");
            assert!(
                status.success(),
                "server {} ended with {status}:\n{}",
                self.name,
                self.log_tail()
            );
        } else if how == Stop::Kill {
            assert_eq!(status.and_then(|status| status.signal()), Some(9));
        }
    }

    /// Promotes a standby and waits until it accepts writes.
    pub fn promote(&self) {
        // Not waiting inside the query: its snapshot might hold up what is still to be replayed.
        self.sql("SELECT pg_promote(false)");
        wait_until("the promoted server leaves recovery", PATIENCE, || {
            !self.in_recovery()
        });
    }

    /// Whether the server is in recovery.
    pub fn in_recovery(&self) -> bool {
        self.sql("SELECT pg_is_in_recovery()") == "t"
    }

    /// Runs SQL in the database `postgres` as the superuser; the answer comes unaligned, rows on lines, columns
    /// parted by `|`. Panics when a statement fails.
    pub fn sql(&self, sql: &str) -> String {
        self.sql_in("postgres", sql)
    }

    /// The same in another database.
    pub fn sql_in(&self, database: &str, sql: &str) -> String {
        self.try_sql_in(database, sql).unwrap_or_else(|error| {
            panic!(
                "server {}: {error}\nin: {sql}\n{}",
                self.name,
                self.log_tail()
            )
        })
    }

    /// The same, with the error that `psql` reports.
    pub fn try_sql_in(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut psql = self.psql(database);
        psql.args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = psql.spawn().expect("could not run psql");
        let mut input = child.stdin.take().expect("psql has an input");
        let sql = sql.to_owned();
        // A thread of its own: a long script would otherwise wait for answers that nobody reads.
        let writer = std::thread::spawn(move || {
            let _error_shows_in_psql = input.write_all(sql.as_bytes());
        });
        let output = child.wait_with_output().expect("psql ends");
        writer.join().expect("the writer ends");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout)
                .trim_end()
                .to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr)
                .trim_end()
                .to_owned())
        }
    }

    /// A `psql` for this server, without the user's own settings, that stops at the first error.
    pub fn psql(&self, database: &str) -> Command {
        let mut psql = Command::new(system_tool("psql"));
        psql.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            database,
            "-U",
            "postgres",
        ]);
        psql.arg("-h")
            .arg(&self.sockets)
            .args(["-p", &PORT.to_string()]);
        clean_environment(&mut psql);
        // A query that waits (for a lock that replay holds, say) shall fail with its name, not hang the story.
        psql.env("PGOPTIONS", "-c statement_timeout=120s");
        psql
    }

    /// Waits until this standby has replayed all that the primary has written.
    pub fn wait_for(&self, primary: &Server) {
        let target = primary.sql("SELECT pg_current_wal_lsn()");
        let query = format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{target}', false)");
        wait_until("the standby has caught up", PATIENCE, || {
            self.try_sql_in("postgres", &query).as_deref() == Ok("t")
        });
    }

    /// The last part of the server's log.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// The whole of the server's log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Copies a stopped server into a new directory of this name, tablespaces and linked `pg_wal` with it, each at
    /// a place of its own.
    pub fn cold_copy(&self, story: &Story, name: &str) -> Server {
        assert!(
            self.postmaster.is_none(),
            "only a stopped server can be copied cold"
        );
        let copy = Server::over(story, name, &story.path(name));
        copy_tree(&self.data, &copy.data);
        let links = fs::read_dir(copy.data.join("pg_tblspc")).expect("could not read pg_tblspc");
        for link in links.map(|entry| entry.expect("could not read pg_tblspc").path()) {
            if let Ok(target) = fs::read_link(&link) {
                let oid = link
                    .file_name()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned();
                relink(
                    &link,
                    &target,
                    &story.path(&format!("{name}.tablespace.{oid}")),
                );
            }
        }
        let wal = copy.data.join("pg_wal");
        if let Ok(target) = fs::read_link(&wal) {
            relink(&wal, &target, &story.path(&format!("{name}.wal")));
        }
        copy
    }

    /// Makes this directory a standby that streams from `primary`.
    pub fn follow(&self, primary: &Server) {
        File::create(self.data.join("standby.signal")).expect("could not create standby.signal");
        let conninfo = format!(
            "host={} port={PORT} user=postgres",
            primary.sockets.display()
        );
        append(
            &self.data.join("postgresql.auto.conf"),
            &format!("primary_conninfo = '{conninfo}'"),
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut postmaster) = self.postmaster.take() {
            send(postmaster.id(), Signal::QUIT);
            if !reached(Duration::from_secs(10), || {
                !matches!(postmaster.try_wait(), Ok(None))
            }) {
                let _result = postmaster.kill();
            }
            let _status = postmaster.wait();
        }
        if std::thread::panicking() {
            // The panic's own message rarely tells what the server thought of it.
            let mut out = std::io::stderr().lock();
            let _best_effort = writeln!(
                out,
                "--- log of server {} ---\n{}",
                self.name,
                self.log_tail()
            );
        }
    }
}

/// Sends a signal to a process of the story's own; it may have ended meanwhile.
pub fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .expect("a process id");
    let _ended_meanwhile = kill_process(pid, signal);
}

/// Copies a directory tree with everything `cp -a` keeps.
pub fn copy_tree(from: &Path, to: &Path) {
    run(Command::new("cp")
        .args(["-a", "--reflink=auto", "-T"])
        .arg(from)
        .arg(to));
}

/// Runs a command; panics with its output when it fails.
pub fn run(command: &mut Command) -> String {
    clean_environment(command);
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("could not run {command:?}: {error}"));
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success(),
        "{command:?} ended with {}:\n{text}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Removes from a command's environment what would lead it to another server or speak another language.
pub fn clean_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("PG") || text.starts_with("LEEWARD") || text.starts_with("AWS_") {
            command.env_remove(&name);
        }
    }
    command.env("LC_ALL", "C").env("HOME", "/nonexistent");
}

fn append(path: &Path, lines: &str) {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .expect("could not open a configuration file");
    for line in lines.lines() {
        writeln!(file, "{}", line.trim()).expect("could not write a configuration file");
    }
}

fn relink(link: &Path, target: &Path, new_target: &Path) {
    copy_tree(target, new_target);
    fs::remove_file(link).expect("could not remove a link");
    std::os::unix::fs::symlink(new_target, link).expect("could not make a link");
}
