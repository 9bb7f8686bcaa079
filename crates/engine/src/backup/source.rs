//! The units of work that flow through a backup: source files, batches of pieces of them, and what became of each piece.

use std::sync::{Arc, OnceLock};

use leeward_pgformat::page::PageDamage;
use leeward_pgformat::relation::RelationSegment;
use leeward_pgformat::{BlockNumber, Lsn};
use leeward_postgres::data_directory::{DataDirectoryError, Place, SourceFile};
use leeward_repository::frame::EncodedFrame;
use leeward_repository::manifest::FileRecord;

use crate::error::Error;

/// One thing to be stored: its manifest record as far as it is known, and where its bytes are.
#[derive(Debug)]
pub(super) struct Source {
    /// The record to be completed with what was read.
    pub record: FileRecord,
    /// Where to read it.
    pub place: Place,
    /// Set when the file is a relation segment, whose pages are checked.
    pub segment: Option<RelationSegment>,
    /// A file in several pieces is opened by whoever needs it first and stays open; `None` inside when it had vanished.
    /// One that comes in one piece is never kept open: batches of small files hold thousands.
    shared: Option<OnceLock<Result<Option<SourceFile>, String>>>,
}

impl Source {
    /// A source that comes in one piece, or in several.
    pub(super) fn new(
        record: FileRecord,
        place: Place,
        segment: Option<RelationSegment>,
        several: bool,
    ) -> Self {
        Self {
            record,
            place,
            segment,
            shared: several.then(OnceLock::new),
        }
    }

    /// Calls `read` with the open file, or with `None` when it is gone.
    pub(super) fn with_file<T>(
        &self,
        read: impl FnOnce(Option<&SourceFile>) -> crate::error::Result<T>,
    ) -> crate::error::Result<T> {
        let open = || SourceFile::open(&self.place).map_err(|e: DataDirectoryError| e.to_string());
        match &self.shared {
            None => read(open().map_err(Error::failed)?.as_ref()),
            Some(shared) => read(
                shared
                    .get_or_init(open)
                    .as_ref()
                    .map_err(|text| Error::failed(text.clone()))?
                    .as_ref(),
            ),
        }
    }
}

/// A stretch of one source.
#[derive(Debug)]
pub(super) struct Piece {
    pub source: Arc<Source>,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes wanted; fewer may be there. Zero for directories, links and empty files.
    pub length: usize,
    /// The last piece of its source.
    pub last: bool,
}

impl Piece {
    /// A file that is not a relation segment and comes in one piece is read to its end, should it have been replaced by a
    /// longer one since the walk saw it: half a configuration file keeps a server from starting.
    pub(super) fn may_grow(&self) -> bool {
        self.source.segment.is_none() && self.offset == 0 && self.last && self.length > 0
    }
}

/// What goes into one frame, at most.
#[derive(Debug)]
pub(super) struct Batch {
    pub sequence: u64,
    pub pieces: Vec<Piece>,
}

/// What became of a piece.
#[derive(Debug)]
pub(super) struct CopiedPiece {
    pub source: Arc<Source>,
    pub offset: u64,
    /// Where its bytes lie in the frame.
    pub frame_offset: u32,
    /// Bytes read.
    pub length: u32,
    pub last: bool,
    /// The file was gone when it was to be opened.
    pub vanished: bool,
    /// Damaged pages, by relation-wide block.
    pub damage: Damage,
}

/// A batch after reading, checking and compressing.
#[derive(Debug)]
pub(super) struct Copied {
    pub sequence: u64,
    /// `None` when no bytes came of it.
    pub frame: Option<EncodedFrame>,
    pub pieces: Vec<CopiedPiece>,
    pub pages_checked: u64,
}

/// What the pages are held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageRules {
    /// Data checksums are on.
    pub checksums: bool,
    /// Pages older than this cannot be torn.
    pub start_lsn: Lsn,
}

/// Damaged pages with their relation-wide blocks.
pub(super) type Damage = Vec<(BlockNumber, PageDamage)>;
