//! The WAL archive of a cluster: whole WAL segments, pieces of those still being filled, timeline history files, and
//! the gaps that are known. Names and rules are in `docs/format.md` and `docs/decisions/0005-wal-archive.md`.
//!
//! Several senders may store the same WAL at once; nothing is ever overwritten. What lies where follows from the names
//! alone: one listing tells what is held, to the byte.

use std::ops::Range;
use std::sync::Arc;

use leeward_pgformat::{
    Lsn, SystemIdentifier, TimelineId, WalContents, WalSegmentName, WalSegmentSize,
};

use crate::catalog::Cluster;
use crate::layout;
use crate::repository_error::RepositoryError;
use crate::store::{Key, Store};
use crate::wal_object::WalObjectInfo;

mod contradiction;
mod gap;
mod holdings;
mod names;
mod object;
mod partial;
mod pieces;
mod read;
mod store_segment;
mod workplace;

use workplace::Workplaces;

pub use gap::Gap;
pub use holdings::{Holdings, Segments, TimelineHoldings};
pub use pieces::contiguous_pieces;

/// The most plain bytes that one piece may have, so that a reader can hold several in memory.
pub const PIECE_BYTES_LIMIT: u64 = 32 << 20;

/// The WAL archive of one cluster. Cheap to clone; its calls block and may come from any number of threads.
#[derive(Debug, Clone)]
pub struct WalArchive {
    store: Arc<dyn Store>,
    cluster: String,
    workplaces: Workplaces,
}

impl WalArchive {
    /// The archive in the folder of `cluster`. To hold the folder to one system identifier, [`Cluster::claim`] it
    /// before anything is stored.
    #[must_use]
    pub fn new(cluster: &Cluster) -> Self {
        Self {
            store: Arc::clone(cluster.store()),
            cluster: cluster.name().to_owned(),
            workplaces: Workplaces::default(),
        }
    }

    fn segment_key(
        &self,
        segment: WalSegmentName,
        size: WalSegmentSize,
    ) -> Result<Key, RepositoryError> {
        layout::archived_wal(&self.cluster, segment.timeline, &segment.name(size))
    }

    fn piece_key(
        &self,
        segment: WalSegmentName,
        size: WalSegmentSize,
        range: &Range<Lsn>,
    ) -> Result<Key, RepositoryError> {
        layout::archived_piece(&self.cluster, segment.timeline, &segment.name(size), range)
    }
}

/// What became of WAL that was handed over. Either way it is durable under its name.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored {
    /// A new object.
    New(WalObjectInfo),
    /// The same plain bytes were there already; this is the object that holds them.
    Same(WalObjectInfo),
}

impl Stored {
    /// The object that holds the WAL.
    #[must_use]
    pub const fn info(&self) -> &WalObjectInfo {
        match self {
            Self::New(info) | Self::Same(info) => info,
        }
    }

    /// Whether an object was written.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        matches!(self, Self::New(_))
    }
}

/// A stretch of WAL inside one WAL segment.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// The timeline it was written on.
    pub timeline: TimelineId,
    /// The LSN of its first byte.
    pub begin: Lsn,
    /// Its bytes: at least one, at most [`PIECE_BYTES_LIMIT`], none beyond the WAL segment that holds `begin`.
    pub bytes: &'a [u8],
    /// What the records in it say.
    pub contents: &'a WalContents,
    /// The size of the cluster's WAL segments.
    pub segment_size: WalSegmentSize,
    /// The cluster.
    pub system_identifier: SystemIdentifier,
}

/// What [`WalArchive::store_partial`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredPartial {
    /// The end of the last whole record in the WAL handed over: everything before is in the archive.
    pub end: Lsn,
    /// Plain bytes that were stored now; the others were there.
    pub new_bytes: u64,
}
