//! Probing of whether a store honors the conditions of writes, and the comparisons that replace them where it does not.
//!
//! Everything that must not be overwritten is created on the condition that its name is free, and everything that changes is
//! replaced on the condition that it is the version read before. Some stores take such a request and ignore its condition.
//! So a writer probes the store, and keeps the answer in the repository for a day, one for each way to reach it. On a store
//! that ignores conditions it writes through [`ComparingStore`].

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::document;
use crate::layout;
use crate::repository_error::RepositoryError;
use crate::store::{Key, ObjectInfo, ObjectVersion, RemoteProblem, Store, StoreError, Upload};
use crate::summary::FORMAT_VERSION;
use crate::url::RepositoryUrl;

/// The time for which a probe's answer is believed.
const BELIEVED_FOR: SignedDuration = SignedDuration::from_hours(24);
/// The most by which the clock of the probing host may be ahead.
const CLOCKS_DIFFER_BY: SignedDuration = SignedDuration::from_mins(5);
/// As much of an object's end is compared. Every object that is created on condition ends with a hash of all its bytes.
const COMPARED_BYTES: u64 = 64 << 10;

/// `store-<hash>.json`.
#[derive(Serialize, Deserialize)]
struct ProbeFile {
    format_version: u32,
    endpoint: String,
    repository: String,
    probed_at: Timestamp,
    conditional_writes: bool,
    leeward_version: String,
}

/// Returns whether `store` honors the conditions of writes: as it was probed during the last day through the same endpoint,
/// else by probing it now. A directory always does.
///
/// # Errors
/// Those of the store.
pub fn are_honored(store: &dyn Store) -> Result<bool, RepositoryError> {
    let Some(endpoint) = store.endpoint() else {
        return Ok(true);
    };
    let repository = store.location().to_string();
    let key = layout::probe(endpoint, &repository)?;
    let now = Timestamp::now();
    if let Some((text, _)) = store.get_versioned(&key)?
        && let Ok(file) = document::decode::<ProbeFile>(key.as_str(), &text)
        && file.endpoint == endpoint
        && file.repository == repository
        && (-CLOCKS_DIFFER_BY..BELIEVED_FOR).contains(&now.duration_since(file.probed_at))
    {
        return Ok(file.conditional_writes);
    }
    let honored = probe(store)?;
    let file = ProbeFile {
        format_version: FORMAT_VERSION,
        endpoint: endpoint.to_owned(),
        repository,
        probed_at: now,
        conditional_writes: honored,
        leeward_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    // Whoever does the same at the same time has found out the same. Where that may not be written, it is probed again.
    match store.overwrite(&key, document::encode(key.as_str(), &file)?) {
        Err(error) if is_denied(&error) => {}
        other => _ = other?,
    }
    Ok(honored)
}

/// Returns whether this user may not do it, for good.
fn is_denied(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::PermissionDenied { .. }
            | StoreError::Remote {
                problem: RemoteProblem::Forbidden,
                ..
            }
    )
}

/// Returns whether a store honors the conditions of writes: one name is written twice, one version replaced twice, and the
/// second write has to be refused each time. The object is deleted afterwards.
///
/// # Errors
/// Those of the store, but for its not knowing conditions, which is an answer.
pub fn probe(store: &dyn Store) -> Result<bool, StoreError> {
    let key = Key::new(format!("probe-{:016x}", rand::random::<u64>()))?;
    let honored = probe_with(store, &key);
    let deleted = store.delete(&key);
    let honored = match honored {
        Err(StoreError::Remote {
            problem: RemoteProblem::NoConditionalWrites,
            ..
        }) => false,
        other => other?,
    };
    // Credentials that may not delete are no reason not to back up: the object stays.
    match deleted {
        Err(error) if is_denied(&error) => {}
        other => other?,
    }
    Ok(honored)
}

fn probe_with(store: &dyn Store, key: &Key) -> Result<bool, StoreError> {
    store.create(key, Bytes::from_static(b"first\n"))?;
    match store.create(key, Bytes::from_static(b"second\n")) {
        Err(StoreError::AlreadyExists { .. }) => {}
        Ok(()) => return Ok(false),
        Err(error) => return Err(error),
    }
    let Some((_, version)) = store.get_versioned(key)? else {
        return Ok(false);
    };
    match store.replace(key, Bytes::from_static(b"third\n"), &version) {
        // A bucket that lets nothing be replaced overwrites nothing.
        Err(error) if is_denied(&error) => return Ok(true),
        other => other?,
    };
    match store.replace(key, Bytes::from_static(b"fourth\n"), &version) {
        Err(StoreError::Conflict { .. }) => Ok(true),
        Ok(_) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A store that ignores the conditions of writes, with a look before and a comparison after each write in their place.
///
/// An object that was there before a write began is never overwritten. Of two writers that write different content under one name at
/// the same time, each looks after its write whether its content is there: a writer whose content was replaced by then gets
/// the error that the condition would have given. One whose content is replaced later does not notice.
#[derive(Debug)]
pub struct ComparingStore(Arc<dyn Store>);

impl ComparingStore {
    /// Wraps a store of which [`are_honored`] says that it ignores conditions.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> ComparingStore {
        ComparingStore(store)
    }

    fn already_exists(&self, key: &Key) -> StoreError {
        StoreError::AlreadyExists {
            key: key.clone(),
            location: self.location().clone(),
        }
    }

    fn conflict(&self, key: &Key) -> StoreError {
        StoreError::Conflict {
            key: key.clone(),
            location: self.location().clone(),
        }
    }

    fn exists(&self, key: &Key) -> Result<bool, StoreError> {
        match self.0.size(key) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns whether an object has the size and the end of `content`.
    fn holds(&self, key: &Key, content: &Bytes) -> Result<bool, StoreError> {
        let size = content.len() as u64;
        let begin = size.saturating_sub(COMPARED_BYTES);
        let same_size = match self.0.size(key) {
            Ok(found) => found == size,
            Err(error) if error.is_not_found() => false,
            Err(error) => return Err(error),
        };
        if !same_size {
            return Ok(false);
        }
        match self.0.get_range(key, begin..size) {
            Ok(end) => Ok(end == content.slice(begin as usize..)),
            Err(StoreError::NotFound { .. } | StoreError::Truncated { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Store for ComparingStore {
    fn location(&self) -> &RepositoryUrl {
        self.0.location()
    }

    fn endpoint(&self) -> Option<&str> {
        self.0.endpoint()
    }

    fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        self.0.get(key)
    }

    fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.0.get_range(key, range)
    }

    fn get_start(&self, key: &Key, limit: u64) -> Result<(Bytes, u64), StoreError> {
        self.0.get_start(key, limit)
    }

    fn size(&self, key: &Key) -> Result<u64, StoreError> {
        self.0.size(key)
    }

    fn create(&self, key: &Key, content: Bytes) -> Result<(), StoreError> {
        if self.exists(key)? {
            return Err(self.already_exists(key));
        }
        self.0.overwrite(key, content.clone())?;
        if self.holds(key, &content)? {
            Ok(())
        } else {
            Err(self.already_exists(key))
        }
    }

    fn get_versioned(&self, key: &Key) -> Result<Option<(Bytes, ObjectVersion)>, StoreError> {
        self.0.get_versioned(key)
    }

    fn replace(
        &self,
        key: &Key,
        content: Bytes,
        expected: &ObjectVersion,
    ) -> Result<ObjectVersion, StoreError> {
        match self.0.get_versioned(key)? {
            Some((_, found)) if found == *expected => {}
            _ => return Err(self.conflict(key)),
        }
        self.0.overwrite(key, content.clone())?;
        match self.0.get_versioned(key)? {
            Some((found, version)) if found == content => Ok(version),
            _ => Err(self.conflict(key)),
        }
    }

    fn sync(&self, key: &Key) -> Result<(), StoreError> {
        self.0.sync(key)
    }

    fn overwrite(&self, key: &Key, content: Bytes) -> Result<ObjectVersion, StoreError> {
        self.0.overwrite(key, content)
    }

    fn upload(&self, key: &Key) -> Result<Box<dyn Upload>, StoreError> {
        Ok(Box::new(ComparingUpload {
            upload: self.0.upload(key)?,
            store: Arc::clone(&self.0),
            key: key.clone(),
        }))
    }

    fn list(
        &self,
        prefix: &str,
        found: &mut dyn FnMut(ObjectInfo) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.0.list(prefix, found)
    }

    fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.0.list_folders(prefix)
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.0.delete(key)
    }

    fn remove_leftovers(&self, prefix: &str) -> Result<u64, StoreError> {
        self.0.remove_leftovers(prefix)
    }
}

/// An upload with a look before it is finished. Uploads have unique names, so none is needed after.
struct ComparingUpload {
    upload: Box<dyn Upload>,
    store: Arc<dyn Store>,
    key: Key,
}

impl Upload for ComparingUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.upload.write(bytes)
    }

    fn finish(self: Box<Self>) -> Result<u64, StoreError> {
        match self.store.size(&self.key) {
            Ok(_) => Err(StoreError::AlreadyExists {
                key: self.key,
                location: self.store.location().clone(),
            }),
            Err(error) if error.is_not_found() => self.upload.finish(),
            Err(error) => Err(error),
        }
    }
}
