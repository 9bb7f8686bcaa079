//! Waiting: always for a condition, never longer than a deadline.

use std::thread;
use std::time::{Duration, Instant};

/// How long anything a healthy server does may take here before the story has failed, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Lets time pass: for faults that come at a moment of their own choosing, never to wait for something.
#[expect(
    clippy::disallowed_methods,
    reason = "a random moment is what the caller wants"
)]
pub fn let_pass(time: Duration) {
    thread::sleep(time);
}

const POLL: Duration = Duration::from_millis(10);

/// Waits until `condition` holds; panics with `what` when `deadline` has passed.
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    assert!(
        reached(deadline, &mut condition),
        "waited {deadline:?} in vain: {what}"
    );
}

/// Waits until `condition` holds, and says whether it did before `deadline` passed.
#[expect(
    clippy::disallowed_methods,
    reason = "other processes' states can only be looked at, and this is the one place that looks again and again"
)]
pub fn reached(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(POLL);
    }
}
