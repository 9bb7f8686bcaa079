//! Where the PostgreSQL installations, the tools and the program under test lie.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// The major version whose tools come from the system's packages: `pgbench`, `psql` and `pg_controldata` are its.
const SYSTEM_MAJOR: u32 = 15;

/// One installed PostgreSQL.
#[derive(Debug, Clone)]
pub struct Installation {
    major: u32,
    bin: PathBuf,
}

impl Installation {
    /// The installation of this major version; panics with the remedy when it is missing, since a story that is
    /// skipped in silence proves nothing.
    pub fn of(major: u32) -> Installation {
        let candidates = [
            PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")),
            work_dir().join(format!("pg{major}/bin")),
        ];
        let bin = candidates.iter().find(|bin| bin.join("postgres").exists());
        let bin = bin.unwrap_or_else(|| {
            panic!("PostgreSQL {major} is not installed (looked in {candidates:?}): run scripts/test once")
        });
        Installation {
            major,
            bin: bin.clone(),
        }
    }

    /// The major version, 14 to 19.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// One of its programs: `postgres` or `initdb`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// A tool of the system's PostgreSQL, which works with servers of every major version when it is a client.
pub fn system_tool(name: &str) -> PathBuf {
    let path = PathBuf::from(format!("/usr/lib/postgresql/{SYSTEM_MAJOR}/bin/{name}"));
    assert!(
        path.exists(),
        "{} is missing: run scripts/test once",
        path.display()
    );
    path
}

/// The scratch directory of the scripts, where they put the PostgreSQLs that the system has no packages for.
pub fn work_dir() -> PathBuf {
    env::var_os("LEEWARD_WORK").map_or_else(|| project().join(".leeward-work"), PathBuf::from)
}

/// The `leeward` program under test: `LEEWARD_BIN`, or the one built beside the running test.
pub fn leeward_program() -> PathBuf {
    if let Some(path) = env::var_os("LEEWARD_BIN") {
        return PathBuf::from(path);
    }
    // A test runs as target/release/deps/stories-<hash>; the program lies two levels up.
    let test = env::current_exe().expect("the running test has a path");
    let program = test
        .ancestors()
        .nth(2)
        .expect("a test lies in target/<profile>/deps")
        .join("leeward");
    assert!(
        program.exists(),
        "{} is not built: cargo build --release",
        program.display()
    );
    program
}

/// The same program, at a place where the unprivileged user of the stories can run it.
///
/// # Panics
/// When the program cannot be copied to `directory`.
pub(crate) fn leeward_program_within_reach(directory: &Path) -> PathBuf {
    let program = leeward_program();
    let copy = directory.join("leeward");
    // A link costs nothing; another file system wants a copy.
    if fs::hard_link(&program, &copy).is_err() {
        fs::copy(&program, &copy)
            .unwrap_or_else(|error| panic!("could not copy {}: {error}", program.display()));
    }
    copy
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests lie inside the project")
        .to_path_buf()
}
