//! Asking again: exponential pauses with jitter, inside one total time.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::failure::{Again, Cause, Failure};
use crate::error::RemoteProblem;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long an address that never answered is tried.
const UNPROVEN: Duration = Duration::from_secs(5);
/// The slowest line that is waited for, at the first attempt; each further one waits twice as long.
const SLOWEST_BYTES_PER_SECOND: u64 = 512 << 10;

/// How patient a store is, and what it knows about its server.
#[derive(Debug)]
pub(super) struct Retry {
    /// No attempt begins later than this after the first one.
    pub(super) retry_for: Duration,
    /// How long an answer may take to begin or to go on.
    pub(super) patience: Duration,
    /// Whether the server has ever answered.
    proven: AtomicBool,
}

/// What came of all attempts.
pub(super) struct Outcome<T> {
    pub(super) result: Result<T, Failure>,
    pub(super) attempts: u32,
    /// Whether an attempt before the last may have had its effect although it failed.
    pub(super) ambiguous: bool,
}

impl Retry {
    pub(super) fn new(retry_for: Duration, patience: Duration) -> Retry {
        Retry {
            retry_for,
            patience,
            proven: AtomicBool::new(false),
        }
    }

    /// Runs attempts until one succeeds, fails for good, or the time is over. An attempt gets the time that sending
    /// `body_bytes` may take; with none it watches the time itself.
    pub(super) async fn run<T, F>(
        &self,
        body_bytes: Option<usize>,
        mut attempt: impl FnMut() -> F,
    ) -> Outcome<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let begun = Instant::now();
        let mut attempts = 0;
        let mut ambiguous = false;
        let mut pause = FIRST_PAUSE;
        let sending = body_bytes
            .map(|bytes| Duration::from_millis(bytes as u64 * 1000 / SLOWEST_BYTES_PER_SECOND));
        let mut time = sending.map(|sending| self.patience + sending);
        loop {
            attempts += 1;
            let result = match time {
                None => attempt().await,
                Some(time) => match tokio::time::timeout(time, attempt()).await {
                    Ok(result) => result,
                    Err(_) => Err(Failure::timed_out()),
                },
            };
            let failure = match result {
                Ok(value) => {
                    self.proven.store(true, Ordering::Relaxed);
                    return Outcome {
                        result: Ok(value),
                        attempts,
                        ambiguous,
                    };
                }
                Err(failure) => failure,
            };
            if failure.again != Again::IfProven
                && failure.cause != Cause::Problem(RemoteProblem::TimedOut)
            {
                self.proven.store(true, Ordering::Relaxed);
            }
            let limit = match failure.again {
                Again::No => Duration::ZERO,
                Again::IfProven if !self.proven.load(Ordering::Relaxed) => {
                    self.retry_for.min(UNPROVEN)
                }
                Again::Yes | Again::IfProven => self.retry_for,
            };
            // Half to whole of the pause, so that many clients do not come back in step.
            let wait = pause.mul_f64(rand::random_range(0.5..1.0));
            if begun.elapsed() + wait > limit {
                return Outcome {
                    result: Err(failure),
                    attempts,
                    ambiguous,
                };
            }
            ambiguous |= failure.ambiguous;
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            time = time.map(|time| time * 2);
        }
    }
}
