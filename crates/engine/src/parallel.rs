//! The same work on many things, a few of them at a time.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::Result;

/// Calls `work` on each of `items`, `at_once` of them at a time, in order of their beginning. The first failure keeps the
/// rest from beginning, and is returned.
pub(crate) fn for_each<T: Sync>(
    items: &[T],
    at_once: usize,
    work: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let one_after_another = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = work(item) {
                next.store(items.len(), Ordering::Relaxed);
                return Err(e);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once.min(items.len()))
            .map(|_| scope.spawn(one_after_another))
            .collect();
        // The scope waits for those that a failure leaves unjoined.
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}
