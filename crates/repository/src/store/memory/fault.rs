//! What goes wrong with a [`super::MemoryStore`], and when.

use std::collections::HashMap;

/// What is asked of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A whole object is read, with its version or without.
    Get,
    /// A range of an object is read.
    GetRange,
    /// The beginning of an object is read.
    GetStart,
    /// The size of an object is asked for.
    Size,
    /// A new object is written at once.
    Create,
    /// An object is replaced.
    Replace,
    /// An object is written whatever is there.
    Overwrite,
    /// The name of an object that was found is made durable.
    Sync,
    /// An upload begins.
    Upload,
    /// Bytes are appended to an upload.
    Write,
    /// An upload is finished.
    Finish,
    /// The objects in a folder are listed; the key is the folder's.
    List,
    /// The folders in a folder are listed; the key is the folder's.
    ListFolders,
    /// An object is met in a listing. Not logged.
    Listed,
    /// An object is deleted.
    Delete,
    /// Leftovers in a folder are removed; the key is the folder's.
    RemoveLeftovers,
}

/// What goes wrong. Where a fault makes no sense for an action, nothing goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails and has no effect.
    Fail,
    /// The operation has its effect and fails all the same: the answer got lost.
    FailAfterEffect,
    /// The operation waits for [`super::MemoryStore::release`], then goes on.
    Stall,
    /// A write keeps the first half of its bytes and succeeds.
    Tear,
    /// A write or deletion succeeds and leaves everything as it was.
    Forget,
    /// A write has its effect whatever its condition says.
    IgnoreCondition,
    /// A read finds nothing, a listing leaves the object out.
    NotFound,
    /// A read brings one flipped bit, in the middle.
    FlipBit,
    /// The object's size is told as this, in bytes.
    Size(u64),
    /// The calling thread panics.
    Panic,
}

/// An operation on a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// What was asked.
    pub action: Action,
    /// The object's key, or the folder's.
    pub key: String,
    /// How often the same was asked of the same key before.
    pub repetition: u64,
}

/// A fault, and the operations that meet it.
#[derive(Debug, Clone)]
pub struct FaultPoint {
    fault: Fault,
    actions: Vec<Action>,
    keys: String,
    /// Operations that fit and are let through first.
    skip: u64,
    /// How many operations meet the fault after those.
    left: u64,
}

impl FaultPoint {
    /// Makes every operation meet the fault.
    #[must_use]
    pub fn new(fault: Fault) -> FaultPoint {
        FaultPoint {
            fault,
            actions: Vec::new(),
            keys: String::new(),
            skip: 0,
            left: u64::MAX,
        }
    }

    /// Limits it to these actions.
    #[must_use]
    pub fn on(mut self, actions: &[Action]) -> FaultPoint {
        self.actions = actions.to_vec();
        self
    }

    /// Limits it to keys that contain `part`.
    #[must_use]
    pub fn keys(mut self, part: &str) -> FaultPoint {
        part.clone_into(&mut self.keys);
        self
    }

    /// Lets the first `count` operations that fit through.
    #[must_use]
    pub fn after(mut self, count: u64) -> FaultPoint {
        self.skip = count;
        self
    }

    /// Ends it after `count` operations.
    #[must_use]
    pub fn times(mut self, count: u64) -> FaultPoint {
        self.left = count;
        self
    }

    fn fits(&self, operation: &Operation) -> bool {
        (self.actions.is_empty() || self.actions.contains(&operation.action))
            && operation.key.contains(&self.keys)
    }
}

/// All that may go wrong, and what was asked so far.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) points: Vec<FaultPoint>,
    /// Seed, percent, and what to choose from.
    pub(super) random: Option<(u64, u64, &'static [Fault])>,
    counts: HashMap<(Action, String), u64>,
}

/// How often a repeated operation meets random faults.
const RANDOM_REPETITIONS: u64 = 4;

impl Faults {
    /// Counts an operation.
    pub(super) fn count(&mut self, action: Action, key: &str) -> Operation {
        let count = self.counts.entry((action, key.to_owned())).or_default();
        let repetition = *count;
        *count += 1;
        Operation {
            action,
            key: key.to_owned(),
            repetition,
        }
    }

    /// The fault that an operation meets.
    pub(super) fn choose(&mut self, operation: &Operation) -> Option<Fault> {
        for point in &mut self.points {
            if !point.fits(operation) {
                continue;
            }
            if point.skip > 0 {
                point.skip -= 1;
            } else if point.left > 0 {
                point.left -= 1;
                return Some(point.fault);
            }
        }
        let (seed, percent, faults) = self.random?;
        let dice = dice(seed, operation);
        let meets = operation.repetition < RANDOM_REPETITIONS && dice % 100 < percent;
        faults
            .get((dice / 100) as usize % faults.len().max(1))
            .copied()
            .filter(|_| meets)
    }
}

/// A number that depends on nothing but the seed and the operation.
fn dice(seed: u64, operation: &Operation) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&operation.repetition.to_le_bytes());
    hasher.update(format!("{:?} {}", operation.action, operation.key).as_bytes());
    let hash = hasher.finalize();
    let mut number = [0; 8];
    number.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(number)
}
