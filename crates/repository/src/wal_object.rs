//! One WAL segment or timeline history file as an object: an ordinary zstd stream between two skippable zstd frames
//! with our metadata, so that `zstd -d` restores it without us. The bytes are drawn in `docs/format.md`.

use std::io::{Read, Write};

use leeward_pgformat::{SystemIdentifier, TimelineId};

use crate::hash::Hash;
use crate::repository_error::RepositoryError;
use crate::store::{Key, Store};

/// What a WAL object says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalFacts {
    /// The cluster that wrote the WAL.
    pub system_identifier: SystemIdentifier,
    /// The timeline of the segment, or the one the history file describes.
    pub timeline: TimelineId,
}

/// A WAL object as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalObjectInfo {
    /// What it says of itself.
    pub facts: WalFacts,
    /// Bytes of the plain file.
    pub plain_length: u64,
    /// Bytes of the object.
    pub stored_length: u64,
    /// BLAKE3 of the plain file.
    pub plain_hash: Hash,
    /// BLAKE3 of the object, all of it.
    pub stored_hash: Hash,
}

/// Compresses everything `plain` yields into a new object; durable when this returns. Memory: a few MiB.
/// `level` is zstd's.
pub fn write_wal_object(
    store: &dyn Store,
    key: &Key,
    facts: WalFacts,
    plain: &mut dyn Read,
    level: i32,
) -> Result<WalObjectInfo, RepositoryError> {
    let _ = (store, key, facts, plain, level);
    todo!()
}

/// Decompresses an object into `plain` and checks every hash. What was written to `plain` may be used only if this
/// returns `Ok`. `stored_length` is the object's size. Memory: a few MiB.
pub fn read_wal_object(
    store: &dyn Store,
    key: &Key,
    stored_length: u64,
    plain: &mut dyn Write,
) -> Result<WalObjectInfo, RepositoryError> {
    let _ = (store, key, stored_length, plain);
    todo!()
}
