//! A repository in memory, which keeps what every store promises except to outlive its process, or breaks the promise
//! that a [`FaultPoint`] names.
//!
//! Faults depend on the operation and on how often the same one came before, never on time, so the same calls meet the
//! same faults. Every operation is logged before it is carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::key::folder;
use super::{Key, ObjectInfo, ObjectVersion, Store, Upload, check_small};
use crate::error::{RemoteProblem, StoreError};
use crate::url::RepositoryUrl;

mod fault;

use fault::Faults;
pub use fault::{Action, Fault, FaultPoint, Operation};

/// Objects in memory. Clones share them.
#[derive(Debug, Clone)]
pub struct MemoryStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    location: RepositoryUrl,
    state: Mutex<State>,
    /// Signaled when an operation stalls, and when stalled ones are released.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<Key, Bytes>,
    faults: Faults,
    operations: Vec<Operation>,
    stalled: usize,
    /// How often stalled operations were released.
    releases: u64,
}

impl MemoryStore {
    /// Creates an empty store that says it is at `location`: code that treats directories and buckets differently takes
    /// it for what that says.
    #[must_use]
    pub fn new(location: RepositoryUrl) -> MemoryStore {
        MemoryStore(Arc::new(Shared {
            location,
            state: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// Creates an empty store that says it is the bucket `s3://memory`.
    #[must_use]
    pub fn bucket() -> MemoryStore {
        MemoryStore::new(RepositoryUrl::Bucket {
            service: crate::url::Service::S3,
            bucket: "memory".to_owned(),
            prefix: String::new(),
        })
    }

    /// Adds a fault point. Of several that fit an operation the first added applies.
    pub fn inject(&self, point: FaultPoint) {
        self.0.state().faults.points.push(point);
    }

    /// From now on, about `percent` of the operations that no fault point fits meet one of `faults`: the same ones for the
    /// same seed. An operation that is repeated four times is let through.
    pub fn inject_random(&self, seed: u64, percent: u64, faults: &'static [Fault]) {
        self.0.state().faults.random = Some((seed, percent, faults));
    }

    /// Forgets all fault points and releases what stalls.
    pub fn heal(&self) {
        let mut state = self.0.state();
        state.faults.points.clear();
        state.faults.random = None;
        drop(state);
        self.release();
    }

    /// Lets every operation that stalls now go on.
    pub fn release(&self) {
        self.0.state().releases += 1;
        self.0.changed.notify_all();
    }

    /// Waits until an operation stalls. Returns whether one did before `patience` ended.
    #[must_use]
    pub fn wait_for_stall(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.0.state();
        while state.stalled == 0 {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return false;
            };
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Returns every operation so far, in the order in which they began.
    #[must_use]
    pub fn operations(&self) -> Vec<Operation> {
        self.0.state().operations.clone()
    }

    /// Forgets the operations logged so far. How often each came before is still known.
    pub fn clear_operations(&self) {
        self.0.state().operations.clear();
    }

    /// Returns every object. Neither logged nor subject to faults, as [`MemoryStore::put`] and [`MemoryStore::remove`].
    #[must_use]
    pub fn objects(&self) -> BTreeMap<Key, Bytes> {
        self.0.state().objects.clone()
    }

    /// Puts an object in place, whatever was there.
    pub fn put(&self, key: Key, content: impl Into<Bytes>) {
        self.0.state().objects.insert(key, content.into());
    }

    /// Removes an object; returns it.
    pub fn remove(&self, key: &Key) -> Option<Bytes> {
        self.0.state().objects.remove(key)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs an operation and returns the fault that it meets. Stalls and panics happen here; an operation that stalled
    /// is carried out when it is released.
    fn begin(&self, action: Action, key: &str) -> Option<Fault> {
        let mut state = self.state();
        let operation = state.faults.count(action, key);
        let fault = state.faults.choose(&operation);
        state.operations.push(operation);
        match fault {
            Some(Fault::Panic) => {
                drop(state);
                panic!("the store panics, as it was told to: {action:?} \"{key}\"");
            }
            Some(Fault::Stall) => {
                let releases = state.releases;
                state.stalled += 1;
                self.changed.notify_all();
                while state.releases == releases {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                state.stalled -= 1;
                None
            }
            other => other,
        }
    }

    fn failed(&self, action: &'static str, object: &str) -> StoreError {
        StoreError::Remote {
            action,
            object: format!("object \"{object}\""),
            location: self.location.clone(),
            problem: RemoteProblem::Unavailable(503),
            attempts: 1,
        }
    }

    fn not_found(&self, key: &Key) -> StoreError {
        StoreError::NotFound {
            key: key.clone(),
            location: self.location.clone(),
        }
    }

    fn already_exists(&self, key: &Key) -> StoreError {
        StoreError::AlreadyExists {
            key: key.clone(),
            location: self.location.clone(),
        }
    }

    fn conflict(&self, key: &Key) -> StoreError {
        StoreError::Conflict {
            key: key.clone(),
            location: self.location.clone(),
        }
    }

    /// Reads an object as the fault lets it be seen, with the size that is told of it.
    fn read(&self, action: Action, key: &Key) -> Result<(Bytes, u64), StoreError> {
        let fault = self.begin(action, key.as_str());
        if matches!(fault, Some(Fault::Fail | Fault::FailAfterEffect)) {
            return Err(self.failed("read", key.as_str()));
        }
        if fault == Some(Fault::NotFound) {
            return Err(self.not_found(key));
        }
        let Some(content) = self.state().objects.get(key).cloned() else {
            return Err(self.not_found(key));
        };
        let size = content.len() as u64;
        Ok(match fault {
            Some(Fault::FlipBit) => {
                let mut content = content.to_vec();
                let middle = content.len() / 2;
                if let Some(byte) = content.get_mut(middle) {
                    *byte ^= 1;
                }
                (content.into(), size)
            }
            Some(Fault::Size(told)) => (content, told),
            _ => (content, size),
        })
    }

    fn read_small(&self, key: &Key) -> Result<Bytes, StoreError> {
        let (content, size_bytes) = self.read(Action::Get, key)?;
        check_small(key, &self.location, size_bytes)?;
        Ok(content)
    }

    /// Writes an object as the fault lets it be kept, if `may` says so of what is there and the fault does not make the
    /// store ignore it.
    fn write(
        &self,
        action: Action,
        key: &Key,
        content: &Bytes,
        may: impl FnOnce(Option<&Bytes>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let fault = self.begin(action, key.as_str());
        if fault == Some(Fault::Fail) {
            return Err(self.failed("write", key.as_str()));
        }
        let mut state = self.state();
        if fault != Some(Fault::IgnoreCondition) {
            may(state.objects.get(key))?;
        }
        match fault {
            Some(Fault::Forget) => {}
            Some(Fault::Tear) => {
                let torn = content.slice(..content.len() / 2);
                state.objects.insert(key.clone(), torn);
            }
            _ => {
                state.objects.insert(key.clone(), content.clone());
            }
        }
        if fault == Some(Fault::FailAfterEffect) {
            return Err(self.failed("write", key.as_str()));
        }
        Ok(())
    }

    fn create(&self, action: Action, key: &Key, content: &Bytes) -> Result<(), StoreError> {
        self.write(action, key, content, |found| match found {
            Some(_) => Err(self.already_exists(key)),
            None => Ok(()),
        })
    }

    /// The objects inside a folder, as the faults of a listing show them.
    fn inside(&self, action: Action, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let folder = folder(prefix)?;
        let fault = self.begin(action, folder);
        if matches!(fault, Some(Fault::Fail | Fault::FailAfterEffect)) {
            return Err(self.failed("list", folder));
        }
        let mut state = self.state();
        let State {
            objects, faults, ..
        } = &mut *state;
        let mut found = Vec::new();
        for (key, content) in objects.iter() {
            let inside = key.as_str().strip_prefix(folder);
            if !inside.is_some_and(|rest| folder.is_empty() || rest.starts_with('/')) {
                continue;
            }
            let operation = faults.count(Action::Listed, key.as_str());
            match faults.choose(&operation) {
                Some(Fault::NotFound) => {}
                told => found.push(ObjectInfo {
                    key: key.clone(),
                    size_bytes: match told {
                        Some(Fault::Size(told)) => told,
                        _ => content.len() as u64,
                    },
                }),
            }
        }
        Ok(found)
    }
}

impl Store for MemoryStore {
    fn location(&self) -> &RepositoryUrl {
        &self.0.location
    }

    fn endpoint(&self) -> Option<&str> {
        match &self.0.location {
            RepositoryUrl::Local(_) => None,
            RepositoryUrl::Bucket { bucket, .. } => Some(bucket),
        }
    }

    fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        self.0.read_small(key)
    }

    fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.end <= range.start {
            return Ok(Bytes::new());
        }
        let (content, size_bytes) = self.0.read(Action::GetRange, key)?;
        let held = content.len() as u64;
        if range.end > held {
            return Err(StoreError::Truncated {
                key: key.clone(),
                location: self.0.location.clone(),
                wanted_end: range.end,
                size_bytes,
            });
        }
        Ok(content.slice(range.start as usize..range.end as usize))
    }

    fn get_start(&self, key: &Key, limit: u64) -> Result<(Bytes, u64), StoreError> {
        let (content, size) = self.0.read(Action::GetStart, key)?;
        let length = (content.len() as u64).min(limit.max(1));
        Ok((content.slice(..length as usize), size))
    }

    fn size(&self, key: &Key) -> Result<u64, StoreError> {
        self.0.read(Action::Size, key).map(|(_, size)| size)
    }

    fn create(&self, key: &Key, content: Bytes) -> Result<(), StoreError> {
        self.0.create(Action::Create, key, &content)
    }

    fn get_versioned(&self, key: &Key) -> Result<Option<(Bytes, ObjectVersion)>, StoreError> {
        match self.0.read_small(key) {
            Ok(content) => {
                let version = ObjectVersion::of_content(&content);
                Ok(Some((content, version)))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn replace(
        &self,
        key: &Key,
        content: Bytes,
        expected: &ObjectVersion,
    ) -> Result<ObjectVersion, StoreError> {
        self.0
            .write(Action::Replace, key, &content, |found| match found {
                Some(found) if ObjectVersion::of_content(found) == *expected => Ok(()),
                _ => Err(self.0.conflict(key)),
            })?;
        Ok(ObjectVersion::of_content(&content))
    }

    fn overwrite(&self, key: &Key, content: Bytes) -> Result<ObjectVersion, StoreError> {
        self.0.write(Action::Overwrite, key, &content, |_| Ok(()))?;
        Ok(ObjectVersion::of_content(&content))
    }

    fn upload(&self, key: &Key) -> Result<Box<dyn Upload>, StoreError> {
        match self.0.begin(Action::Upload, key.as_str()) {
            Some(Fault::Fail | Fault::FailAfterEffect) => Err(self.0.failed("write", key.as_str())),
            _ => Ok(Box::new(MemoryUpload {
                store: Arc::clone(&self.0),
                key: key.clone(),
                content: Vec::new(),
            })),
        }
    }

    fn list(
        &self,
        prefix: &str,
        found: &mut dyn FnMut(ObjectInfo) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        for object in self.0.inside(Action::List, prefix)? {
            if found(object).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let folder = folder(prefix)?;
        let objects = self.0.inside(Action::ListFolders, prefix)?;
        let names: BTreeSet<&str> = objects
            .iter()
            .filter_map(|object| {
                let rest = object.key.as_str().strip_prefix(folder)?;
                let rest = rest.strip_prefix('/').unwrap_or(rest);
                rest.split_once('/').map(|(name, _)| name)
            })
            .collect();
        Ok(names.into_iter().map(str::to_owned).collect())
    }

    fn sync(&self, key: &Key) -> Result<(), StoreError> {
        match self.0.begin(Action::Sync, key.as_str()) {
            Some(Fault::Fail | Fault::FailAfterEffect) => Err(self.0.failed("sync", key.as_str())),
            _ => Ok(()),
        }
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        let fault = self.0.begin(Action::Delete, key.as_str());
        if fault == Some(Fault::Fail) {
            return Err(self.0.failed("delete", key.as_str()));
        }
        if fault != Some(Fault::Forget) {
            self.0.state().objects.remove(key);
        }
        match fault {
            Some(Fault::FailAfterEffect) => Err(self.0.failed("delete", key.as_str())),
            _ => Ok(()),
        }
    }

    fn remove_leftovers(&self, prefix: &str) -> Result<u64, StoreError> {
        let folder = folder(prefix)?;
        match self.0.begin(Action::RemoveLeftovers, folder) {
            Some(Fault::Fail | Fault::FailAfterEffect) => Err(self.0.failed("delete", folder)),
            _ => Ok(0),
        }
    }
}

struct MemoryUpload {
    store: Arc<Shared>,
    key: Key,
    content: Vec<u8>,
}

impl Upload for MemoryUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        match self.store.begin(Action::Write, self.key.as_str()) {
            Some(Fault::Fail | Fault::FailAfterEffect) => {
                Err(self.store.failed("write", self.key.as_str()))
            }
            _ => {
                self.content.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn finish(self: Box<Self>) -> Result<u64, StoreError> {
        let size = self.content.len() as u64;
        let content = Bytes::from(self.content);
        self.store.create(Action::Finish, &self.key, &content)?;
        Ok(size)
    }
}
