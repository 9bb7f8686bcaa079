//! Threads that hand work to one another and end together.
//!
//! The first failure of any thread, an error or a panic, is recorded; from then on every channel of the pipeline is closed,
//! and whoever waits at one is told to stop. [`run`] returns that failure once all threads have ended.

use std::any::Any;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::Instant;

use crossbeam_channel::{TryRecvError, at, bounded, never, select_biased};

use crate::error::{Error, Result};

/// Why a stage ended before its work was done.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Another stage failed.
    Stopped,
    /// This one failed.
    Failed(Error),
}

/// The result of a stage.
pub(crate) type StageResult<T> = std::result::Result<T, Ended>;

impl<E: Into<Error>> From<E> for Ended {
    fn from(error: E) -> Ended {
        Ended::Failed(error.into())
    }
}

#[derive(Debug)]
enum Failure {
    Error(Error),
    Panic(Box<dyn Any + Send>),
}

/// The state that all threads of a pipeline share.
#[derive(Debug)]
struct Signal {
    failure: Mutex<Option<Failure>>,
    /// A stage was stopped.
    cut_off: AtomicBool,
    /// Dropped at the first failure, which wakes everybody who waits.
    running: Mutex<Option<crossbeam_channel::Sender<Infallible>>>,
    stopped: crossbeam_channel::Receiver<Infallible>,
}

impl Signal {
    fn new() -> Signal {
        let (running, stopped) = bounded(0);
        Signal {
            failure: Mutex::new(None),
            cut_off: AtomicBool::new(false),
            running: Mutex::new(Some(running)),
            stopped,
        }
    }

    /// Does `work` and records how it failed, if it did.
    fn watch<T>(&self, work: impl FnOnce() -> StageResult<T>) -> StageResult<T> {
        let failure = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Err(Ended::Failed(error))) => Failure::Error(error),
            Ok(Err(Ended::Stopped)) => {
                self.cut_off.store(true, Ordering::Relaxed);
                return Err(Ended::Stopped);
            }
            Ok(done) => return done,
            Err(panic) => Failure::Panic(panic),
        };
        lock(&self.failure).get_or_insert(failure);
        *lock(&self.running) = None;
        Err(Ended::Stopped)
    }

    fn is_stopped(&self) -> bool {
        self.stopped.try_recv() == Err(TryRecvError::Disconnected)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A piece of work that several threads do.
#[derive(Debug)]
pub(crate) struct Pipeline<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    signal: Arc<Signal>,
}

/// Calls `work`, which spawns stages, and waits for all of them.
///
/// # Errors
/// The first failure of `work` or a stage.
///
/// # Panics
/// When the first failure is a panic: with the same.
pub(crate) fn run<'env, T>(
    work: impl for<'scope> FnOnce(&Pipeline<'scope, 'env>) -> StageResult<T>,
) -> Result<T> {
    let signal = Arc::new(Signal::new());
    let result = std::thread::scope(|scope| {
        let pipeline = Pipeline {
            scope,
            signal: Arc::clone(&signal),
        };
        signal.watch(|| work(&pipeline))
    });
    match (lock(&signal.failure).take(), result) {
        (Some(Failure::Error(error)), _) => Err(error),
        (Some(Failure::Panic(panic)), _) => resume_unwind(panic),
        (None, Ok(result)) if !signal.cut_off.load(Ordering::Relaxed) => Ok(result),
        // A mistake of ours, which must not pass for an end.
        (None, _) => Err(Error::failed("a stage ended before the one that feeds it")),
    }
}

impl<'scope> Pipeline<'scope, '_> {
    /// Spawns a stage. `work` is called once, and kept until its failure is recorded: so the ends of channels in it are
    /// not dropped before, and nobody takes a failure for the end of the work.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn spawn<T: Send + 'scope>(
        &self,
        name: &str,
        mut work: impl FnMut() -> StageResult<T> + Send + 'scope,
    ) -> StageResult<Stage<'scope, T>> {
        let signal = Arc::clone(&self.signal);
        let thread = Builder::new()
            .name(name.to_owned())
            .spawn_scoped(self.scope, move || signal.watch(&mut work))
            .map_err(|e| {
                Error::failed("could not start a thread")
                    .because(e)
                    .hint("Allow this user more processes (ulimit -u, TasksMax).")
            })?;
        Ok(Stage(thread))
    }

    /// Makes a channel that holds `capacity` items.
    pub(crate) fn channel<T>(&self, capacity: usize) -> (Sender<T>, Receiver<T>) {
        let (items, received) = bounded(capacity);
        let signal = Arc::clone(&self.signal);
        let sender = Sender { items, signal };
        let signal = Arc::clone(&self.signal);
        let items = received;
        (sender, Receiver { items, signal })
    }

    /// Returns what tells whether the pipeline has failed, for those that wait at no channel.
    pub(crate) fn stop(&self) -> Stop {
        Stop(Arc::clone(&self.signal))
    }
}

/// A thread of a pipeline.
#[derive(Debug)]
pub(crate) struct Stage<'scope, T>(ScopedJoinHandle<'scope, StageResult<T>>);

impl<T> Stage<'_, T> {
    /// Waits for the stage's end.
    ///
    /// # Errors
    /// [`Ended::Stopped`] when it did not come to its end.
    pub(crate) fn join(self) -> StageResult<T> {
        self.0.join().unwrap_or(Err(Ended::Stopped))
    }
}

/// Tells whether a pipeline has failed.
#[derive(Debug, Clone)]
pub(crate) struct Stop(Arc<Signal>);

impl Stop {
    pub(crate) fn is_asked(&self) -> bool {
        self.0.is_stopped()
    }
}

/// The sending end of a channel.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    items: crossbeam_channel::Sender<T>,
    signal: Arc<Signal>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender {
            items: self.items.clone(),
            signal: Arc::clone(&self.signal),
        }
    }
}

impl<T> Sender<T> {
    /// Waits for room and sends.
    ///
    /// # Errors
    /// [`Ended::Stopped`] when the pipeline has failed or every receiver is gone.
    pub(crate) fn send(&self, item: T) -> StageResult<()> {
        select_biased! {
            recv(self.signal.stopped) -> _ => Err(Ended::Stopped),
            send(self.items, item) -> sent => sent.map_err(|_| Ended::Stopped),
        }
    }
}

/// The receiving end of a channel.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    items: crossbeam_channel::Receiver<T>,
    signal: Arc<Signal>,
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Receiver {
            items: self.items.clone(),
            signal: Arc::clone(&self.signal),
        }
    }
}

/// The outcome of a wait with a deadline.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<T> {
    /// An item.
    Item(T),
    /// Nothing came in time.
    Nothing,
    /// All senders have ended.
    End,
}

impl<T> Receiver<T> {
    /// Waits for the next item; `None` when all senders have ended.
    ///
    /// # Errors
    /// [`Ended::Stopped`] when the pipeline has failed.
    pub(crate) fn recv(&self) -> StageResult<Option<T>> {
        match self.next(&never())? {
            Next::Item(item) => Ok(Some(item)),
            Next::Nothing | Next::End => Ok(None),
        }
    }

    /// Waits for the next item until `deadline`.
    ///
    /// # Errors
    /// [`Ended::Stopped`] when the pipeline has failed.
    pub(crate) fn recv_deadline(&self, deadline: Instant) -> StageResult<Next<T>> {
        self.next(&at(deadline))
    }

    fn next(&self, late: &crossbeam_channel::Receiver<Instant>) -> StageResult<Next<T>> {
        select_biased! {
            recv(self.signal.stopped) -> _ => Err(Ended::Stopped),
            recv(self.items) -> item => match item {
                Ok(item) => Ok(Next::Item(item)),
                // A sender that failed has said so before it was dropped.
                Err(_) if self.signal.is_stopped() => Err(Ended::Stopped),
                Err(_) => Ok(Next::End),
            },
            recv(late) -> _ => Ok(Next::Nothing),
        }
    }
}

#[cfg(test)]
#[path = "pipeline_tests.rs"]
mod tests;
