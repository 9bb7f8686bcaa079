//! Where objects are kept: one small interface, a durable local directory and the common object stores behind it.
//!
//! The rules are the same everywhere. An object appears whole or not at all, and is durable when the call that made
//! it returns. Objects are written once; only [`Store::replace`] changes one, and only from a version that the caller
//! has seen. Calls block, and may come from any number of threads.

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;

mod connect;
mod failure;
mod key;
pub mod local;
mod local_file;
pub mod memory;
mod options;
mod profile;
pub mod remote;
mod remote_upload;
mod retry;
mod secret;

pub use crate::error::{RemoteProblem, StoreError};
pub use key::{InvalidKey, Key, MAX_KEY_BYTES};
pub use options::{
    DEFAULT_CONCURRENCY, DEFAULT_PART_BYTES, MAX_PART_BYTES, MIN_PART_BYTES, StoreOptions,
};
pub use secret::Secret;

use crate::url::RepositoryUrl;

/// The most bytes of an object that is read whole: nobody knows how long it is before, and it is not proven.
pub const SMALL_OBJECT_BYTES_LIMIT: u64 = 8 << 20;

/// Checks that an object of this size may be read whole.
///
/// # Errors
/// [`StoreError::TooLarge`].
fn check_small(key: &Key, location: &RepositoryUrl, size_bytes: u64) -> Result<(), StoreError> {
    if size_bytes <= SMALL_OBJECT_BYTES_LIMIT {
        return Ok(());
    }
    Err(StoreError::TooLarge {
        key: key.clone(),
        location: location.clone(),
        size_bytes,
        limit_bytes: SMALL_OBJECT_BYTES_LIMIT,
    })
}

/// A place for objects.
pub trait Store: Send + Sync + fmt::Debug {
    /// The repository's address, safe to print.
    fn location(&self) -> &RepositoryUrl;

    /// Returns the endpoint of requests; `None` for a directory of this host.
    fn endpoint(&self) -> Option<&str>;

    /// Reads a whole object of at most [`SMALL_OBJECT_BYTES_LIMIT`].
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none, [`StoreError::TooLarge`].
    fn get(&self, key: &Key) -> Result<Bytes, StoreError>;

    /// Reads exactly the bytes of `range`.
    ///
    /// # Errors
    /// [`StoreError::Truncated`] when the object ends before the range does, [`StoreError::NotFound`].
    fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// Reads the beginning of an object, at most `limit` bytes (at least one), and tells the object's size: one request
    /// for what may be small.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none.
    fn get_start(&self, key: &Key, limit: u64) -> Result<(Bytes, u64), StoreError>;

    /// The object's size in bytes.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none.
    fn size(&self, key: &Key) -> Result<u64, StoreError>;

    /// Writes a new object, durably, and only if the name is free.
    ///
    /// When the answer to a write got lost, the object is read back, and the write counts as ours if it holds our
    /// content. So where it matters who won, the content must name its writer.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] when it is not.
    fn create(&self, key: &Key, content: Bytes) -> Result<(), StoreError>;

    /// As [`Store::get`], together with the version that [`Store::replace`] wants; `None` when there is none.
    ///
    /// # Errors
    /// Anything but the object's absence.
    fn get_versioned(&self, key: &Key) -> Result<Option<(Bytes, ObjectVersion)>, StoreError>;

    /// Replaces an object, durably, and only if it still is the expected version. Returns the new version.
    ///
    /// A version stands for the content: bytes that were replaced and put back are the same version again.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when it is another version or gone.
    fn replace(
        &self,
        key: &Key,
        content: Bytes,
        expected: &ObjectVersion,
    ) -> Result<ObjectVersion, StoreError>;

    /// Makes the name of an object that was found as durable as the object: whoever created it may have failed at that, or
    /// died before. For whoever confirms something because the object was there already, or deletes what it replaces.
    ///
    /// # Errors
    /// Whatever hinders that.
    fn sync(&self, key: &Key) -> Result<(), StoreError>;

    /// Writes an object, durably, whatever is there. Only [`crate::conditional_writes`] may use it.
    ///
    /// # Errors
    /// Whatever hinders the writing.
    fn overwrite(&self, key: &Key, content: Bytes) -> Result<ObjectVersion, StoreError>;

    /// Begins a large object, which becomes visible when it is finished. Its name must be unique: a store need not
    /// notice that somebody else finishes the same name at the same time.
    ///
    /// # Errors
    /// Whatever hinders the first byte; some stores notice only later.
    fn upload(&self, key: &Key) -> Result<Box<dyn Upload>, StoreError>;

    /// Calls `found` for every object inside the folder `prefix` (empty: the whole repository), at any depth, in no
    /// promised order, until it breaks. Folders are whole parts of keys: `main` does not find `mainly/x`.
    ///
    /// # Errors
    /// Whatever hinders the listing. A folder that does not exist is empty.
    fn list(
        &self,
        prefix: &str,
        found: &mut dyn FnMut(ObjectInfo) -> ControlFlow<()>,
    ) -> Result<(), StoreError>;

    /// The names (not keys) of the folders directly inside the folder `prefix`, sorted: at most [`LISTED_OBJECTS_LIMIT`].
    ///
    /// # Errors
    /// As for [`Store::list`]; [`StoreError::TooMany`].
    fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError>;

    /// Deletes an object, durably. One that is not there is no error.
    ///
    /// # Errors
    /// Whatever hinders the deletion.
    fn delete(&self, key: &Key) -> Result<(), StoreError>;

    /// Removes what processes that died in the middle of a write left inside the folder `prefix`, as far as a store
    /// can tell (a local directory; object stores do it by a lifecycle rule). Returns how many things it removed.
    ///
    /// # Errors
    /// As for [`Store::delete`].
    fn remove_leftovers(&self, prefix: &str) -> Result<u64, StoreError>;
}

/// A large object being written. Dropped without [`Upload::finish`], it is aborted and nothing becomes visible.
pub trait Upload: Send {
    /// Appends bytes. Returns when they are buffered; blocks while too many are in flight.
    ///
    /// # Errors
    /// Also those of earlier bytes, which were still on their way.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Makes the object durable, then visible; returns its size in bytes.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] where a store notices it; nothing is visible after an error, unless the answer
    /// to the last request got lost.
    fn finish(self: Box<Self>) -> Result<u64, StoreError>;
}

/// What [`Store::list`] tells of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its key.
    pub key: Key,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// A version of an object as its store names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectVersion {
    pub(crate) e_tag: Option<String>,
    pub(crate) version: Option<String>,
}

impl ObjectVersion {
    /// Returns a version that stands for a content, so that comparing it needs no clock and no inode.
    fn of_content(content: &[u8]) -> ObjectVersion {
        ObjectVersion {
            e_tag: Some(blake3::hash(content).to_hex().to_string()),
            version: None,
        }
    }
}

/// The most objects or folders that are collected of one folder.
pub const LISTED_OBJECTS_LIMIT: usize = 1 << 20;

/// Collects what [`Store::list`] finds, sorted by key: at most [`LISTED_OBJECTS_LIMIT`] objects.
///
/// # Errors
/// As for [`Store::list`]; [`StoreError::TooMany`].
pub fn list_all(store: &dyn Store, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
    list_at_most(store, prefix, LISTED_OBJECTS_LIMIT)
}

/// As [`list_all`], with another limit.
pub(crate) fn list_at_most(
    store: &dyn Store,
    prefix: &str,
    limit: usize,
) -> Result<Vec<ObjectInfo>, StoreError> {
    let mut objects = Vec::new();
    let mut exceeded = false;
    store.list(prefix, &mut |object| {
        exceeded = objects.len() == limit;
        if exceeded {
            return ControlFlow::Break(());
        }
        objects.push(object);
        ControlFlow::Continue(())
    })?;
    if exceeded {
        return Err(too_many(store.location(), prefix, "objects", limit));
    }
    objects.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(objects)
}

pub(crate) fn too_many(
    location: &RepositoryUrl,
    folder: &str,
    what: &'static str,
    limit: usize,
) -> StoreError {
    StoreError::TooMany {
        folder: folder.to_owned(),
        location: location.clone(),
        what,
        limit: limit as u64,
    }
}

/// Opens the store at an address. Nothing is created yet, and a bucket is not asked yet.
///
/// # Errors
/// [`StoreError::Options`] when the options do not fit together.
pub fn open(url: &RepositoryUrl, options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    match url {
        RepositoryUrl::Local(path) => Ok(Arc::new(local::LocalStore::new(path.clone()))),
        RepositoryUrl::Bucket { .. } => Ok(Arc::new(remote::RemoteStore::new(url, options)?)),
    }
}
