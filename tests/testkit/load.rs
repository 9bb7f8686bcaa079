//! Load on a primary: pgbench's own transactions, and a script that creates, truncates, drops, vacuums and rolls
//! back, so that a backup sees files come, shrink and go.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::deadline::{PATIENCE, wait_until};
use crate::installation::system_tool;
use crate::server::{PORT, Server, clean_environment};
use crate::story::Story;

/// A running load; it ends when stopped or dropped.
#[derive(Debug)]
pub struct Load {
    pgbench: Child,
}

const CHURN: &str = r"
\set n random(1, 1000000000)
\set kind random(1, 7)
\set size random(1, 300)
BEGIN;
INSERT INTO story.events (kind, payload) VALUES (:kind, repeat(md5(:n::text), :size));
SAVEPOINT half;
UPDATE story.events SET payload = payload || 'x' WHERE id = 1 + :n % 2000;
ROLLBACK TO half;
UPDATE story.shapes SET place = point(:n % 317, :n % 211), tags = tags || :kind WHERE id = 1 + :n % 5000;
DELETE FROM story.events WHERE id = 2000 + :n % 3000;
COMMIT;
";

const FILES: &str = r"
\set n random(1, 1000000000)
CREATE TABLE story.brief_:n (id int PRIMARY KEY, what text);
INSERT INTO story.brief_:n SELECT i, md5(i::text) FROM generate_series(1, 500) i;
TRUNCATE story.brief_:n;
INSERT INTO story.brief_:n SELECT i, md5(i::text) FROM generate_series(1, 200) i;
DROP TABLE story.brief_:n;
CREATE TABLE story.kept_:n AS SELECT i AS id FROM generate_series(1, 100) i;
VACUUM story.events;
";

impl Load {
    /// Starts load on `primary` and waits until its transactions commit.
    pub fn start(story: &Story, primary: &Server) -> Load {
        let (churn, files) = (story.path("churn.sql"), story.path("files.sql"));
        fs::write(&churn, CHURN).expect("could not write a script");
        fs::write(&files, FILES).expect("could not write a script");
        let log = fs::File::create(story.path("pgbench.log")).expect("could not create a log");
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(system_tool("pgbench"));
        // Bounded in rate and time: enough that every second rewrites some pages, not so much that nothing else runs.
        command.args([
            "-n",
            "-c",
            "3",
            "-j",
            "1",
            "-R",
            "300",
            "-T",
            "600",
            "--random-seed=7",
            "-b",
            "tpcb-like@70",
        ]);
        command
            .arg("-f")
            .arg(format!("{}@28", churn.display()))
            .arg("-f")
            .arg(format!("{}@2", files.display()));
        command.arg("-h").arg(primary.sockets()).args([
            "-p",
            &PORT.to_string(),
            "-U",
            "postgres",
            "postgres",
        ]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        clean_environment(&mut command);
        let pgbench = command.spawn().expect("could not run pgbench");
        let load = Load { pgbench };
        wait_until("the load's transactions commit", PATIENCE, || {
            primary.sql("SELECT count(*) >= 50 FROM pgbench_history") == "t"
        });
        load
    }

    /// Whether it still runs: a load that gave up proves nothing.
    pub fn is_running(&mut self) -> bool {
        matches!(self.pgbench.try_wait(), Ok(None))
    }

    /// Stops the load.
    pub fn stop(mut self) {
        assert!(self.is_running(), "the load ended by itself");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _result = self.pgbench.kill();
        let _status = self.pgbench.wait();
    }
}
