//! The same work on many things, a few of them at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

/// Calls `work` on each of `items`, `at_once` of them at a time, in the order of the items. Returns the results in that
/// order.
///
/// # Errors
/// The first failure. It keeps the rest from beginning.
///
/// # Panics
/// When `work` does, which keeps the rest from beginning as well.
pub fn map<T: Sync, R: Send, E: Send>(
    items: &[T],
    at_once: usize,
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let worker = || {
        let rest = Rest {
            next: &next,
            count: items.len(),
        };
        let mut done = Vec::new();
        while let Some(index) = rest.take() {
            match work(&items[index]) {
                Ok(result) => done.push((index, result)),
                Err(error) => {
                    rest.cancel();
                    let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                    failure.get_or_insert(error);
                }
            }
        }
        done
    };
    let mut done = std::thread::scope(|scope| {
        // The calling thread works too: where the system has no thread left, it does everything.
        let others: Vec<_> = (1..at_once.min(items.len()))
            .filter_map(|_| Builder::new().spawn_scoped(scope, worker).ok())
            .collect();
        let mut done = worker();
        for other in others {
            let joined = other.join();
            done.extend(joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => {
            done.sort_unstable_by_key(|(index, _)| *index);
            Ok(done.into_iter().map(|(_, result)| result).collect())
        }
    }
}

/// As [`map`], for work without results.
///
/// # Errors
/// As [`map`].
pub fn for_each<T: Sync, E: Send>(
    items: &[T],
    at_once: usize,
    work: impl Fn(&T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    map(items, at_once, work).map(drop)
}

/// The items that nobody has begun.
struct Rest<'a> {
    next: &'a AtomicUsize,
    count: usize,
}

impl Rest<'_> {
    fn take(&self) -> Option<usize> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        (index < self.count).then_some(index)
    }

    fn cancel(&self) {
        self.next.store(self.count, Ordering::Relaxed);
    }
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<u32> = (0..1_000).collect();
        for at_once in [0, 1, 3, 16] {
            let doubled = map(&items, at_once, |item| Ok::<_, ()>(item * 2));
            let expected: Vec<u32> = items.iter().map(|item| item * 2).collect();
            assert_eq!(doubled, Ok(expected));
        }
        assert_eq!(map(&[], 4, |(): &()| Ok::<_, ()>(())), Ok(Vec::new()));
    }

    #[test]
    fn a_failure_keeps_the_rest_from_beginning() {
        let items: Vec<u32> = (0..100).collect();
        let begun = AtomicUsize::new(0);
        let both = Barrier::new(2);
        let result = for_each(&items, 2, |item| {
            begun.fetch_add(1, Ordering::Relaxed);
            both.wait();
            Err::<(), _>(*item)
        });
        assert!(matches!(result, Err(0 | 1)), "{result:?}");
        assert_eq!(begun.into_inner(), 2);
    }

    #[test]
    fn a_panic_keeps_the_rest_from_beginning_and_is_passed_on() {
        let next = AtomicUsize::new(1);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let rest = Rest {
                next: &next,
                count: 100,
            };
            assert_eq!(rest.take(), Some(1));
            panic!("in the work");
        }));
        assert!(caught.is_err());
        assert_eq!(next.into_inner(), 100);

        let items: Vec<u32> = (0..100).collect();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            for_each(&items, 4, |item| match item {
                50 => panic!("in the work"),
                _ => Ok::<_, ()>(()),
            })
        }));
        let panic = caught.expect_err("a panic");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"in the work"));
    }
}
