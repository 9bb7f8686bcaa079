//! One lasting connection: a `psql` that is told statement after statement and answers each at once.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use crate::server::Server;

/// A connection that stays open. It ends when dropped, or with the first statement that fails.
#[derive(Debug)]
pub struct Session {
    psql: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    /// Connects to the database `postgres` as the superuser.
    pub fn open(server: &Server) -> Session {
        let mut psql = server.psql("postgres");
        psql.args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut psql = psql.spawn().expect("could not run psql");
        let input = psql.stdin.take().expect("psql has an input");
        let output = BufReader::new(psql.stdout.take().expect("psql has an output"));
        Session {
            psql,
            input,
            output,
        }
    }

    /// Runs SQL and returns its rows, columns parted by `|`; `None` when the connection broke or a statement failed:
    /// which of the statements took effect is then unknown.
    pub fn try_run(&mut self, sql: &str) -> Option<Vec<String>> {
        const END: &str = "--end of answer--";
        writeln!(self.input, "{sql}\nSELECT '{END}';").ok()?;
        let mut rows = Vec::new();
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end() {
                END => return Some(rows),
                row => rows.push(row.to_owned()),
            }
        }
    }

    /// The same, where failure is the story's.
    pub fn run(&mut self, sql: &str) -> Vec<String> {
        self.try_run(sql)
            .unwrap_or_else(|| panic!("a session broke in: {sql}"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _result = self.psql.kill();
        let _status = self.psql.wait();
    }
}
