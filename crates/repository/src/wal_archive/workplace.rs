//! Where objects are made, kept for the next one.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::wal_object::WalEncoder;

/// What it takes to make an object: touching fresh memory for each would cost a twentieth of the time.
pub(super) struct Workplace {
    pub(super) encoder: WalEncoder,
    /// The object being made.
    pub(super) object: Vec<u8>,
}

/// Those that nobody works at: never more than have worked at once.
#[derive(Clone, Default)]
pub(super) struct Workplaces(Arc<Mutex<Vec<Workplace>>>);

impl Workplaces {
    /// One for this level, as long as `work` takes.
    pub(super) fn lend<T>(&self, level: i32, work: impl FnOnce(&mut Workplace) -> T) -> T {
        let kept = self.idle().pop();
        let mut place = kept
            .filter(|place| place.encoder.level() == level)
            .unwrap_or_else(|| Workplace {
                encoder: WalEncoder::new(level),
                object: Vec::new(),
            });
        let done = work(&mut place);
        self.idle().push(place);
        done
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Workplace>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Workplaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Workplaces")
    }
}
