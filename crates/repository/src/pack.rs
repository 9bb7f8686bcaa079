//! A pack: an immutable object of many frames with its index at the end. The bytes are drawn in `docs/format.md`.

use crate::file_path::FilePath;
use crate::frame::{EncodedFrame, FrameEntry};
use crate::hash::Hash;
use crate::repository_error::RepositoryError;
use crate::store::{Key, Store};

/// When a pack holds this many stored bytes, the next frame goes to a new one.
pub const PACK_BYTES: u64 = 128 << 20;

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameLocation {
    /// The pack's number in its backup.
    pub pack: u32,
    /// The frame's number in the pack, from 0.
    pub frame: u32,
}

/// What the manifest remembers of a finished pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackInfo {
    /// The pack's number in its backup.
    pub number: u32,
    /// Bytes of the whole object.
    pub size: u64,
    /// How many frames it holds.
    pub frames: u32,
    /// The hash that proves its index, see `docs/format.md`.
    pub index_hash: Hash,
}

/// Writes one pack, uploading while frames arrive.
pub struct PackWriter {}

impl PackWriter {
    /// Begins pack `number` under `key`. Nothing is visible there before [`PackWriter::finish`].
    pub fn create(store: &dyn Store, key: &Key, number: u32) -> Result<Self, RepositoryError> {
        let _ = (store, key, number);
        todo!()
    }

    /// Appends a frame. `pieces` are (file, offset in the file, length), in the order of the frame's plain bytes.
    pub fn append(
        &mut self,
        frame: EncodedFrame,
        pieces: &[(&FilePath, u64, u32)],
    ) -> Result<FrameLocation, RepositoryError> {
        let _ = (frame, pieces);
        todo!()
    }

    /// Stored bytes so far.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        todo!()
    }

    /// Whether the next frame should go to a new pack: [`PACK_BYTES`] reached, or the index has grown to its share.
    #[must_use]
    pub fn is_full(&self) -> bool {
        todo!()
    }

    /// Writes the index; the pack is durable when this returns. Dropping the writer instead leaves nothing.
    pub fn finish(self) -> Result<PackInfo, RepositoryError> {
        todo!()
    }
}

/// The index of one pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackIndex {
    /// The files of which the pack holds pieces.
    pub files: Vec<FilePath>,
    /// The frames in the order of their bytes.
    pub frames: Vec<FrameEntry>,
}

impl PackIndex {
    /// Reads and checks the index with one ranged read of the object's tail where it is not unusually large.
    /// `expected` is what the manifest says of the pack; without it (rebuilding a lost manifest) the index
    /// is held to its own hash only, and the object's size is asked of the store.
    pub fn read(store: &dyn Store, key: &Key, expected: Option<&PackInfo>) -> Result<Self, RepositoryError> {
        let _ = (store, key, expected);
        todo!()
    }
}
