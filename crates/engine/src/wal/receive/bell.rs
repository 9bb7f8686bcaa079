//! What wakes the stream's thread out of a wait for its socket: something was stored, or somebody asked us to stop.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Asks a running command to come to an end in good order. Whoever asks sets [`Stop::flag`] and then writes a byte to
/// [`Stop::ringer`]; both may be done by a signal handler.
#[derive(Debug)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    listener: UnixStream,
    ringer: UnixStream,
}

impl Stop {
    /// Nobody has asked yet.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub fn new() -> io::Result<Stop> {
        let (listener, ringer) = UnixStream::pair()?;
        listener.set_nonblocking(true)?;
        ringer.set_nonblocking(true)?;
        Ok(Stop {
            flag: Arc::default(),
            listener,
            ringer,
        })
    }

    /// To be set first.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.flag)
    }

    /// To be written to then.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub fn ringer(&self) -> io::Result<UnixStream> {
        self.ringer.try_clone()
    }

    /// Whether somebody has asked.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }

    /// Becomes readable when something happened.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Forgets what rang so far.
    pub(super) fn hush(&self) {
        let mut bytes = [0; 64];
        while matches!((&self.listener).read(&mut bytes), Ok(length) if length > 0) {}
    }

    /// Waits until something happens, or until `deadline`.
    pub(super) fn wait(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut descriptors = [PollFd::from_borrowed_fd(self.descriptor(), PollFlags::IN)];
        // A signal is a reason to look around too.
        let _interrupted = poll(&mut descriptors, Some(&timeout));
        self.hush();
    }
}

/// Rings the bell of a [`Stop`] without asking for an end.
#[derive(Debug)]
pub(super) struct Bell(UnixStream);

impl Bell {
    pub(super) fn of(stop: &Stop) -> io::Result<Bell> {
        stop.ringer().map(Bell)
    }

    /// A bell that is full rings already.
    pub(super) fn ring(&self) {
        let _full = (&self.0).write(&[1]);
    }
}
