//! What a command's failure says: what was being done and to what, why it failed, and what to do next.

use std::error::Error as StdError;
use std::fmt;

/// How a failure is to be taken; the program turns it into an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// It failed; nothing was lost.
    Failed,
    /// The call or the configuration has to be changed first.
    Usage,
    /// It was not done because it would have destroyed something.
    Refused,
    /// Stored data is damaged.
    Damaged,
    /// Somebody else is at work on the same cluster.
    Held,
    /// This server's role is not the one that backups are taken from.
    Declined,
}

/// A failure, in the order in which a person reads it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    hint: Option<String>,
}

impl Error {
    /// A failure of `kind`; `message` is one line, lower case, without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
            hint: None,
        }
    }

    /// A plain failure ([`ErrorKind::Failed`]).
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds what to do next, as a sentence.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The message and all causes, in one line.
    pub(crate) fn with_causes(&self) -> String {
        let mut text = self.message.clone();
        let mut source = StdError::source(self);
        while let Some(cause) = source {
            text += &format!(": {cause}");
            source = cause.source();
        }
        text
    }

    /// How the failure is to be taken.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What to do next, if that is known.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The engine's results.
pub type Result<T> = std::result::Result<T, Error>;
