//! The manifest of a backup: its files, where their bytes are, its WAL. Written and read as a stream of blocks in
//! constant memory; one file is found by two range reads. The bytes are drawn in `docs/format.md`.

use crate::backup_id::BackupId;
use crate::file_path::FilePath;
use crate::hash::Hash;
use crate::pack::PackInfo;

mod footer;
mod reader;
mod record;
mod writer;

pub use reader::ManifestReader;
pub use writer::ManifestWriter;

/// A file, directory or symbolic link of the backed-up cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    /// Its name.
    pub path: FilePath,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, as `chmod` takes them.
    pub mode: u32,
    /// User and group id, only where they differ from the data directory's.
    pub owner: Option<(u32, u32)>,
    /// Modification time, seconds since 1970; for people, nothing rests on it.
    pub mtime: i64,
    /// Damaged pages: their relation-wide blocks, ascending.
    pub damaged: Vec<u32>,
}

/// What a [`FileRecord`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// Where they are.
        content: Content,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points, as `readlink` says it.
        target: Vec<u8>,
    },
}

/// Where the bytes of a file are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Here; for small files made during the backup (`backup_label`, `tablespace_map`), at most [`INLINE_BYTES_LIMIT`].
    Inline(Vec<u8>),
    /// In frames; sorted by `file_offset`, not overlapping. Bytes that no run covers are zero.
    Runs(Vec<Run>),
}

/// The most bytes that [`Content::Inline`] takes.
pub const INLINE_BYTES_LIMIT: usize = 1 << 20;

/// Consecutive bytes of a file that lie in one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Index in the footer's table of backups; 0: this backup.
    pub source: u16,
    /// The pack's number in that backup.
    pub pack: u32,
    /// The frame's number in the pack.
    pub frame: u32,
    /// Where in the frame's plain bytes.
    pub frame_offset: u32,
    /// Where in the file.
    pub file_offset: u64,
    /// Bytes.
    pub length: u32,
}

/// A WAL object of the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalRecord {
    /// Name of the WAL segment or timeline history file, without the `.zst` of its object.
    pub name: String,
    /// Bytes of the plain file.
    pub plain_length: u64,
    /// Bytes of the object.
    pub stored_length: u64,
    /// BLAKE3 of the plain file.
    pub plain_hash: Hash,
    /// What the object ends with: BLAKE3 of all its other bytes.
    pub stored_hash: Hash,
}

/// One entry of a manifest, in the order in which they were added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A file, directory or symbolic link.
    File(FileRecord),
    /// A WAL object; these follow the files.
    Wal(WalRecord),
}

/// A backup whose packs a manifest points into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// `None` for the manifest's own backup, which is always source 0.
    pub backup: Option<BackupId>,
    /// Its packs that are in use.
    pub packs: Vec<PackInfo>,
}

/// What `backup.json` remembers of a finished manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestInfo {
    /// Bytes of the object.
    pub size: u64,
    /// The hash that proves its footer, and through it every block.
    pub hash: Hash,
    /// Regular files.
    pub files: u64,
    /// All file records: files, directories, links.
    pub entries: u64,
    /// Bytes of all regular files.
    pub size_bytes: u64,
    /// WAL objects.
    pub wal_objects: u64,
}
