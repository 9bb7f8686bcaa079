//! One session with a server: connect, ask, cancel. Blocking, one statement at a time.
//!
//! Every answer is text. Every statement has a deadline: past it the statement is cancelled, and a server that does not
//! even take the cancel request is given up.

use std::ffi::CString;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::error::{Error, SqlError};
use crate::libpq::{Answer, AnswerKind, Cancellation, Field, Progress, Session};
use crate::opening::{describe, one_line, open, wait_for};
use crate::target::ConnectTarget;

/// How long a cancel request, and then the answer to it, may take.
const CANCEL_PATIENCE: Duration = Duration::from_secs(2);

/// The deadline of statements without one of their own: all of them ask for a few rows.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a session behave the same on every server, whatever its `postgresql.conf`, `ALTER ROLE` and `ALTER DATABASE`
/// say. No timeout of the server's may end a backup; names mean those of `pg_catalog`.
const SESSION_SETTINGS: &str = "SET search_path = pg_catalog; SET statement_timeout = 0; SET lock_timeout = 0; \
     SET idle_in_transaction_session_timeout = 0; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; \
     SET TimeZone = 'UTC'; SET extra_float_digits = 1; SET bytea_output = 'hex'; SET standard_conforming_strings = on; \
     SET client_min_messages = warning; SET default_transaction_isolation = 'read committed'";

/// Settings that not every supported server has: `idle_session_timeout` since 14, `transaction_timeout` since 17.
const NEWER_SETTINGS: [(i32, &str); 2] = [
    (140_000, "SET idle_session_timeout = 0"),
    (170_000, "SET transaction_timeout = 0"),
];

/// A session. Dropping it closes the connection.
pub struct Connection {
    pub(crate) session: Session,
    description: String,
}

impl Connection {
    /// Connects and makes the session's settings known ones.
    ///
    /// # Errors
    /// [`Error::InvalidConninfo`], [`Error::NotRunning`], [`Error::Io`] (an unreadable `postmaster.pid`),
    /// [`Error::ConnectFailed`], and what [`Connection::execute`] gives.
    pub fn connect(target: &ConnectTarget) -> Result<Connection, Error> {
        let resolved = target.resolve()?;
        let session = open(&resolved)?;
        let description = describe(&session);
        let mut connection = Connection {
            session,
            description,
        };
        let mut settings = SESSION_SETTINGS.to_owned();
        for (since, setting) in NEWER_SETTINGS {
            if connection.server_version() >= since {
                settings.push_str("; ");
                settings.push_str(setting);
            }
        }
        let patience = resolved.connect_timeout.unwrap_or(PATIENCE);
        connection.execute_during("prepare the session", &settings, patience)?;
        Ok(connection)
    }

    /// Opens a physical replication connection; no SQL is understood there (`walsender.c`, `exec_replication_command`).
    pub(crate) fn connect_for_replication(target: &ConnectTarget) -> Result<Connection, Error> {
        let mut resolved = target.resolve()?;
        // What pg_receivewal says too: "replication" is the database of a password file's lines and of pg_hba.conf.
        for (keyword, value) in [("dbname", "replication"), ("replication", "true")] {
            resolved
                .parameters
                .push((keyword.to_owned(), value.to_owned()));
        }
        let session = open(&resolved)?;
        let description = describe(&session);
        Ok(Connection {
            session,
            description,
        })
    }

    /// Runs a replication command, which cannot have parameters, and waits for its rows.
    pub(crate) fn command_during(
        &mut self,
        during: &str,
        command: &str,
        timeout: Duration,
    ) -> Result<Rows, Error> {
        self.send_command(during, command)?;
        let answer = self.wait(during, timeout)?;
        Ok(Rows {
            answer,
            during: during.to_owned(),
        })
    }

    /// Sends a replication command.
    pub(crate) fn send_command(&mut self, during: &str, command: &str) -> Result<(), Error> {
        let command =
            CString::new(command).map_err(|_| unexpected(during, "it holds a NUL byte"))?;
        if self.session.send_simple(&command) {
            Ok(())
        } else {
            Err(self.gone(during, None))
        }
    }

    /// The next answer to what was sent; `None` after the last.
    pub(crate) fn next_answer(
        &mut self,
        during: &str,
        timeout: Duration,
    ) -> Result<Option<Answer>, Error> {
        if !self.wait_readable(Some(Instant::now() + timeout)) {
            return Err(Error::Timeout {
                during: during.to_owned(),
                after: timeout,
            });
        }
        match self.session.next_answer() {
            Some(answer) if answer.kind() == AnswerKind::Error => {
                Err(self.refused(during, &answer))
            }
            other => Ok(other),
        }
    }

    /// Runs one statement with text parameters and waits for its answer, a minute at most.
    ///
    /// # Errors
    /// [`Error::Sql`] when the server refuses, [`Error::ServerGone`] when the connection breaks, [`Error::Timeout`].
    pub fn query(&mut self, sql: &str, parameters: &[Option<&str>]) -> Result<Rows, Error> {
        self.query_with_deadline(sql, parameters, PATIENCE)
    }

    /// As [`Connection::query`], cancelled after `timeout`.
    ///
    /// # Errors
    /// As [`Connection::query`].
    pub fn query_with_deadline(
        &mut self,
        sql: &str,
        parameters: &[Option<&str>],
        timeout: Duration,
    ) -> Result<Rows, Error> {
        self.query_during("run a query", sql, parameters, timeout)
    }

    /// Runs one or several statements and drops what they answer.
    ///
    /// # Errors
    /// As [`Connection::query`]; the first statement that fails ends the series.
    pub fn execute(&mut self, sql: &str) -> Result<(), Error> {
        self.execute_during("run a statement", sql, PATIENCE)
    }

    /// The server's version as a number: 150018 for 15.18, 180000 for 18 before its first minor.
    pub fn server_version(&self) -> i32 {
        self.session.server_version()
    }

    /// The process that serves this session.
    pub fn backend_pid(&self) -> i32 {
        self.session.backend_pid()
    }

    /// Whether TLS protects the session.
    pub fn uses_tls(&self) -> bool {
        self.session.uses_tls()
    }

    /// Where the session goes: `host=... port=... dbname=... user=...`, never a password.
    pub fn describe(&self) -> &str {
        &self.description
    }

    /// The notices and warnings that came since the last call.
    pub fn take_notices(&mut self) -> Vec<String> {
        self.session.take_notices()
    }

    /// What cancels the running statement from another thread.
    ///
    /// # Errors
    /// [`Error::ServerGone`] when the connection is no longer open.
    pub fn cancel_handle(&self) -> Result<CancelHandle, Error> {
        self.session
            .cancellation()
            .map(CancelHandle)
            .ok_or_else(|| self.gone("prepare a cancel request", None))
    }

    /// As [`Connection::query`]; `during` follows "could not" in errors.
    pub(crate) fn query_during(
        &mut self,
        during: &str,
        sql: &str,
        parameters: &[Option<&str>],
        timeout: Duration,
    ) -> Result<Rows, Error> {
        let nul = || unexpected(during, "a parameter holds a NUL byte");
        let statement = CString::new(sql).map_err(|_| nul())?;
        let mut values = Vec::with_capacity(parameters.len());
        for parameter in parameters {
            values.push(parameter.map(CString::new).transpose().map_err(|_| nul())?);
        }
        if !self.session.send(&statement, &values) {
            return Err(self.gone(during, None));
        }
        let answer = self.wait(during, timeout)?;
        Ok(Rows {
            answer,
            during: during.to_owned(),
        })
    }

    fn execute_during(&mut self, during: &str, sql: &str, timeout: Duration) -> Result<(), Error> {
        let statement =
            CString::new(sql).map_err(|_| unexpected(during, "the statement holds a NUL byte"))?;
        if !self.session.send_simple(&statement) {
            return Err(self.gone(during, None));
        }
        self.wait(during, timeout).map(drop)
    }

    /// Waits for every answer to what was sent; the last one, or the first error.
    fn wait(&mut self, during: &str, timeout: Duration) -> Result<Answer, Error> {
        let deadline = Instant::now() + timeout;
        let mut last: Option<Answer> = None;
        loop {
            if !self.wait_readable(Some(deadline)) {
                self.give_up();
                return Err(Error::Timeout {
                    during: during.to_owned(),
                    after: timeout,
                });
            }
            let Some(answer) = self.session.next_answer() else {
                break;
            };
            match answer.kind() {
                AnswerKind::Copy => {
                    // Nothing here starts a COPY; a connection in that state can only be closed.
                    return Err(unexpected(during, "the server began a COPY"));
                }
                AnswerKind::Error
                    if last
                        .as_ref()
                        .is_some_and(|last| last.kind() == AnswerKind::Error) => {}
                _ => last = Some(answer),
            }
        }
        match last {
            Some(answer) if answer.kind() == AnswerKind::Error => {
                Err(self.refused(during, &answer))
            }
            Some(answer) => Ok(answer),
            None => Err(self.gone(during, None)),
        }
    }

    /// Waits until an answer is whole or the connection broke. `false` at the deadline.
    fn wait_readable(&mut self, deadline: Option<Instant>) -> bool {
        while self.session.is_busy() {
            let Some(socket) = self.session.socket() else {
                return true;
            };
            if !wait_for(socket, PollFlags::IN, deadline) {
                return false;
            }
            if !self.session.consume_input() {
                return true;
            }
        }
        true
    }

    /// Cancels the running statement and takes what comes of it, so that the session can be used again; a server that
    /// does not answer that either leaves the session busy, and it can only be dropped.
    fn give_up(&mut self) {
        if let Some(cancellation) = self.session.cancellation()
            && CancelHandle(cancellation).cancel().is_err()
        {
            return;
        }
        let deadline = Some(Instant::now() + CANCEL_PATIENCE);
        while self.wait_readable(deadline) && self.session.next_answer().is_some() {}
    }

    pub(crate) fn refused(&self, during: &str, answer: &Answer) -> Error {
        let severity = answer.field(Field::Severity).unwrap_or_default();
        let sqlstate = answer.field(Field::SqlState).unwrap_or_default();
        let message = answer
            .field(Field::Message)
            .unwrap_or_else(|| one_line(&answer.error_message()));
        if self.session.is_bad() || severity == "FATAL" || severity == "PANIC" {
            let sqlstate = Some(sqlstate).filter(|state| !state.is_empty());
            return Error::ServerGone {
                during: during.to_owned(),
                message,
                sqlstate,
            };
        }
        Error::Sql(Box::new(SqlError {
            during: during.to_owned(),
            severity,
            sqlstate,
            message,
            detail: answer.field(Field::Detail),
            hint: answer.field(Field::Hint),
        }))
    }

    pub(crate) fn gone(&self, during: &str, sqlstate: Option<String>) -> Error {
        let message = one_line(&self.session.error_message());
        let message = if message.is_empty() {
            "the connection is closed".to_owned()
        } else {
            message
        };
        Error::ServerGone {
            during: during.to_owned(),
            message,
            sqlstate,
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Connection")
            .field(&self.description)
            .finish()
    }
}

/// Cancels the statement that its connection is running, over a connection of its own.
pub struct CancelHandle(Cancellation);

impl CancelHandle {
    /// Sends the request and waits, two seconds at most, until the server has taken it. That the statement ends is
    /// seen by whoever waits for it.
    ///
    /// # Errors
    /// [`Error::ServerGone`] when the request could not be delivered, [`Error::Timeout`] when it was not taken.
    pub fn cancel(mut self) -> Result<(), Error> {
        let during = "cancel the running statement";
        let deadline = Instant::now() + CANCEL_PATIENCE;
        let mut progress = if self.0.start() {
            Progress::Writing
        } else {
            Progress::Failed
        };
        loop {
            let flags = match progress {
                Progress::Done => return Ok(()),
                Progress::Failed => {
                    let message = one_line(&self.0.error_message());
                    return Err(Error::ServerGone {
                        during: during.to_owned(),
                        message,
                        sqlstate: None,
                    });
                }
                Progress::Reading => PollFlags::IN,
                Progress::Writing => PollFlags::OUT,
            };
            if !self
                .0
                .socket()
                .is_some_and(|socket| wait_for(socket, flags, Some(deadline)))
            {
                return Err(Error::Timeout {
                    during: during.to_owned(),
                    after: CANCEL_PATIENCE,
                });
            }
            progress = self.0.poll();
        }
    }
}

impl fmt::Debug for CancelHandle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("CancelHandle")
    }
}

/// The answer to a query. Rows and columns count from 0.
pub struct Rows {
    pub(crate) answer: Answer,
    pub(crate) during: String,
}

impl Rows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.answer.rows()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a value; `None` for NULL and outside the answer. Paths and names may be no UTF-8 in a database
    /// whose encoding is `SQL_ASCII`.
    pub fn bytes(&self, row: usize, column: usize) -> Option<&[u8]> {
        self.answer.value(row, column)
    }

    /// A value as text; `None` for NULL, outside the answer, and where it is no UTF-8.
    pub fn get(&self, row: usize, column: usize) -> Option<&str> {
        self.bytes(row, column)
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// A value that must be there.
    ///
    /// # Errors
    /// [`Error::UnexpectedAnswer`] when it is NULL, missing or no UTF-8.
    pub fn text(&self, row: usize, column: usize) -> Result<&str, Error> {
        self.get(row, column).ok_or_else(|| {
            unexpected(
                &self.during,
                &format!("no value in row {row}, column {column}"),
            )
        })
    }

    /// A value that must be there, as a `T`.
    ///
    /// # Errors
    /// As [`Rows::text`], and when the text is no `T`.
    pub fn parse<T: FromStr>(&self, row: usize, column: usize) -> Result<T, Error> {
        let text = self.text(row, column)?;
        text.parse().map_err(|_| {
            unexpected(
                &self.during,
                &format!("\"{text}\" in row {row}, column {column}"),
            )
        })
    }

    /// As [`Rows::parse`], with NULL as `None`.
    ///
    /// # Errors
    /// When the value is there and no `T`.
    pub fn parse_optional<T: FromStr>(
        &self,
        row: usize,
        column: usize,
    ) -> Result<Option<T>, Error> {
        self.bytes(row, column)
            .map(|_| self.parse(row, column))
            .transpose()
    }

    /// A boolean, which the server writes `t` or `f`; NULL is `false`.
    pub fn is_true(&self, row: usize, column: usize) -> bool {
        self.get(row, column) == Some("t")
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "Rows({} of {} columns)",
            self.len(),
            self.answer.columns()
        )
    }
}

pub(crate) fn unexpected(during: &str, problem: &str) -> Error {
    Error::UnexpectedAnswer {
        during: during.to_owned(),
        problem: problem.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// A server that lets in whoever comes, and never says another word.
    #[test]
    fn a_server_that_falls_silent_after_the_greeting_ends_in_a_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                std::thread::spawn(move || {
                    let mut client = client.expect("a client");
                    let mut startup = [0; 4096];
                    let _length = client.read(&mut startup);
                    // AuthenticationOk, ReadyForQuery.
                    let greeting = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
                    let _sent = client.write_all(greeting);
                    let _silence = client.read_to_end(&mut Vec::new());
                });
            }
        });
        let target = ConnectTarget {
            conninfo: Some(format!(
                "host=127.0.0.1 port={port} user=nobody sslmode=disable gssencmode=disable"
            )),
            connect_timeout: Some(Duration::from_secs(2)),
            ..ConnectTarget::default()
        };
        let error = Connection::connect(&target).expect_err("nobody answers");
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
        assert!(error.to_string().contains("prepare the session"), "{error}");
    }
}
