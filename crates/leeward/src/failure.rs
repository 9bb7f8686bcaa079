//! How a failure is told: one line, its causes, what to do; or one JSON object. Exit codes are decided here and nowhere else.

use std::error::Error as _;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use leeward_engine::error::{Error, ErrorKind};

use crate::json;
use crate::output::escaped;

/// The exit code of a command that found stored data or pages damaged.
pub const DAMAGED: u8 = 4;

/// The exit code of every failure of a `restore_command`: above 125 the server stops, instead of taking it for the end of
/// WAL.
pub const RESTORE_COMMAND: u8 = 128;

/// A command's failure.
#[derive(Debug)]
pub struct Failure(Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl Failure {
    fn code(&self) -> u8 {
        match self.0.kind() {
            ErrorKind::Failed => 1,
            ErrorKind::Usage => 2,
            ErrorKind::Refused => 3,
            ErrorKind::Damaged => DAMAGED,
            ErrorKind::Held => 5,
            ErrorKind::Declined => 6,
        }
    }

    fn kind(&self) -> &'static str {
        match self.0.kind() {
            ErrorKind::Failed => "failed",
            ErrorKind::Usage => "usage",
            ErrorKind::Refused => "refused",
            ErrorKind::Damaged => "damaged",
            ErrorKind::Held => "held",
            ErrorKind::Declined => "declined",
        }
    }

    fn causes(&self) -> Vec<String> {
        let mut causes: Vec<String> = Vec::new();
        let mut told = self.0.to_string();
        let mut source = self.0.source();
        while let Some(error) = source {
            let text = error.to_string();
            // Some errors repeat their cause in their own words.
            if !told.contains(&text) {
                told.clone_from(&text);
                causes.push(text);
            }
            source = error.source();
        }
        causes
    }

    /// Tells it and returns the exit code.
    pub fn report(&self, as_json: bool) -> ExitCode {
        let mut stderr = std::io::stderr().lock();
        let (strong, plain) = if stderr.is_terminal() {
            ("\x1b[1;31m", "\x1b[0m")
        } else {
            ("", "")
        };
        let declined = self.0.kind() == ErrorKind::Declined;
        let (title, strong) = if declined {
            ("declined", "")
        } else {
            ("error", strong)
        };
        // Nothing is left to do if standard error is closed.
        let message = self.0.to_string();
        let _ = writeln!(stderr, "{strong}{title}:{plain} {}", escaped(&message));
        for cause in self.causes() {
            let _ = writeln!(stderr, "  because: {}", escaped(&cause));
        }
        if let Some(hint) = self.0.advice() {
            // A hint may list statements, each in its line.
            let lines: Vec<_> = hint.split('\n').map(escaped).collect();
            let _ = writeln!(stderr, "  hint: {}", lines.join("\n    "));
        }
        if as_json {
            json::print(&json::failure(
                self.kind(),
                self.code(),
                &self.0.to_string(),
                self.causes(),
                self.0.advice(),
            ));
        }
        ExitCode::from(self.code())
    }
}
