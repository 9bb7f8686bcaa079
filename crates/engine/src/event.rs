//! What the engine tells while it works. It prints nothing; the program renders these.

use std::time::Duration;

/// The steps of a command, in the words shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connecting, checking, taking the lease.
    Preparing,
    /// Waiting for the server's restartpoint or checkpoint.
    Starting,
    /// Reading relation segments and everything else.
    Copying,
    /// Storing the WAL from start to stop.
    StoringWal,
    /// Writing the manifest and `backup.json`.
    Committing,
    /// Writing files back.
    Restoring,
    /// Making what was written durable.
    Syncing,
    /// Writing the archives of an export.
    Exporting,
}

/// One piece of news.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A new step began.
    Phase(Phase),
    /// The number of bytes this step will handle, as far as is known.
    Total(u64),
    /// So many more bytes were handled.
    Advanced(u64),
    /// What is being handled now: a path.
    At(&'a str),
    /// Nothing goes on until somebody else has done something or `left` is over. Told about once a second.
    Waiting {
        /// The thing waited for.
        what: &'a str,
        /// The longest time the wait still takes.
        left: Duration,
    },
    /// Something a person should know, as a sentence; the work goes on.
    Notice(String),
}

/// Who is told. Called from several threads.
pub type Observer<'a> = &'a (dyn Fn(Event<'_>) + Sync);
