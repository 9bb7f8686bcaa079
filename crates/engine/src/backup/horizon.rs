//! How far WAL has been applied: no page on disk may be newer.
//!
//! On a standby the answer lies in `global/pg_control`: before a page with some LSN reaches disk, the server has written
//! a minimum recovery point at or beyond it (`UpdateMinRecoveryPoint` in src/backend/access/transam/xlog.c). On a primary
//! the WAL itself is flushed first, and the session says how far.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use leeward_pgformat::Lsn;
use leeward_postgres::data_directory::DataDirectory;

use crate::pipeline::Sender;

/// How long a copier waits for the session to say how far the primary's WAL reaches.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// A message to the thread that holds the session.
#[derive(Debug)]
pub(super) enum Word {
    /// Somebody asks how far the WAL reaches.
    HowFar(crossbeam_channel::Sender<Lsn>),
    /// All files are copied.
    Copied,
}

/// Knows the newest LSN a page may carry.
#[derive(Debug)]
pub(super) struct Horizon<'a> {
    known: AtomicU64,
    way: Way<'a>,
}

#[derive(Debug)]
enum Way<'a> {
    ControlFile(&'a DataDirectory),
    Session(Sender<Word>),
}

impl<'a> Horizon<'a> {
    pub(super) fn of_standby(directory: &'a DataDirectory) -> Self {
        Self {
            known: AtomicU64::new(0),
            way: Way::ControlFile(directory),
        }
    }

    pub(super) fn of_primary(questions: Sender<Word>) -> Self {
        Self {
            known: AtomicU64::new(0),
            way: Way::Session(questions),
        }
    }

    /// Whether a page that was read before this call may honestly carry `lsn`.
    pub(super) fn reaches(&self, lsn: Lsn) -> bool {
        if lsn.0 <= self.known.load(Ordering::Relaxed) {
            return true;
        }
        let now = match &self.way {
            Way::ControlFile(directory) => match directory.control_file() {
                Ok((control, _)) => control.min_recovery_point,
                // Nothing can be said against the page.
                Err(_) => return true,
            },
            Way::Session(questions) => {
                let deadline = Instant::now() + ANSWER_DEADLINE;
                let (ask, answer) = bounded(1);
                if questions.send(Word::HowFar(ask)).is_err() {
                    return true;
                }
                match answer.recv_deadline(deadline) {
                    Ok(lsn) => lsn,
                    Err(_) => return true,
                }
            }
        };
        self.known.fetch_max(now.0, Ordering::Relaxed);
        lsn <= now
    }
}
