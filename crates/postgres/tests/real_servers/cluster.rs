//! Clusters for the tests: a primary, and standbys copied from it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use leeward_pgformat::MajorVersion;
use leeward_postgres::connection::Connection;
use leeward_postgres::throwaway::{BinDirectory, Server, StopMode};

/// Long enough for a loaded machine; nothing waits that long when all is well.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The programs of one major version, if they are installed.
pub fn programs(major: MajorVersion) -> Option<BinDirectory> {
    if let Some(path) = std::env::var_os(format!("LEEWARD_TEST_PG_BIN_{major}")) {
        return Some(BinDirectory::new(PathBuf::from(path)).unwrap());
    }
    let project =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../.leeward-work/pg{major}/bin"));
    match project.canonicalize() {
        Ok(path) => Some(BinDirectory::new(path).unwrap()),
        Err(_) => BinDirectory::find(major),
    }
}

/// Every major version that is installed, and at least one.
pub fn installed() -> Vec<BinDirectory> {
    let found: Vec<BinDirectory> = MajorVersion::ALL.into_iter().filter_map(programs).collect();
    assert!(
        !found.is_empty(),
        "no PostgreSQL is installed: run scripts/test"
    );
    found
}

/// The version most tests run on.
pub fn usual() -> BinDirectory {
    programs(MajorVersion::V15).expect("PostgreSQL 15 is not installed: run scripts/test")
}

/// A directory with servers in it, all gone when dropped.
pub struct Cluster {
    pub primary: Server,
    pub directory: tempfile::TempDir,
}

impl Cluster {
    /// A running primary that standbys can be made of.
    pub fn start(bin: BinDirectory, config: &str) -> Cluster {
        let mut cluster = Cluster::prepare(bin, config, 5432);
        cluster.primary.start(DEADLINE).unwrap();
        cluster
    }

    /// As `start`, not running yet.
    pub fn prepare(bin: BinDirectory, config: &str, port: u16) -> Cluster {
        let directory = tempfile::Builder::new()
            .prefix("leeward-pg")
            .tempdir()
            .unwrap();
        // The server's user has to pass through.
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let primary = Server::new(
            bin,
            directory.path().join("primary"),
            directory.path().join("primary.run"),
            port,
        );
        primary.initdb(&["--no-sync"]).unwrap();
        primary
            .append_config(
                "fsync = off\nshared_buffers = 4MB\nmax_connections = 20\nwal_level = replica",
            )
            .unwrap();
        primary.append_config(config).unwrap();
        Cluster { primary, directory }
    }

    /// A standby, copied from the primary while that is stopped, streaming from it and caught up.
    pub fn standby(&mut self, name: &str) -> Server {
        self.primary.stop(StopMode::Fast, DEADLINE).unwrap();
        let data_directory = self.directory.path().join(name);
        copy(self.primary.data_directory(), &data_directory);
        let socket_directory = self.directory.path().join(format!("{name}.run"));
        let mut standby = Server::new(
            self.primary.bin().clone(),
            &data_directory,
            socket_directory,
            5432,
        );
        let source = self.primary.socket_directory().display();
        standby
            .append_config(&format!(
                "primary_conninfo = 'host={source} port=5432 user=postgres'"
            ))
            .unwrap();
        std::fs::write(data_directory.join("standby.signal"), "").unwrap();
        self.primary.start(DEADLINE).unwrap();
        standby.start(DEADLINE).unwrap();
        self.catch_up(&standby);
        standby
    }

    /// Waits until the standby has replayed everything that the primary has written.
    pub fn catch_up(&self, standby: &Server) {
        let lsn = value(
            &mut self.primary.connect().unwrap(),
            "SELECT pg_current_wal_flush_lsn()",
        );
        let mut session = standby.connect().unwrap();
        wait_for("replay", || {
            value(
                &mut session,
                &format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'"),
            ) == "t"
        });
    }
}

fn copy(from: &Path, to: &Path) {
    assert!(
        Command::new("cp")
            .arg("-a")
            .arg(from)
            .arg(to)
            .status()
            .unwrap()
            .success()
    );
}

/// The first value of a query's answer; empty for NULL and for no row.
pub fn value(session: &mut Connection, sql: &str) -> String {
    session
        .query(sql, &[])
        .unwrap()
        .get(0, 0)
        .unwrap_or_default()
        .to_owned()
}

/// Looks until something is so.
#[expect(
    clippy::disallowed_methods,
    reason = "another process changes it; the deadline is ours"
)]
pub fn wait_for(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !so() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
