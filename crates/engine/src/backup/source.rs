//! The units of work that flow through a backup: source files, batches of pieces of them, and what became of each piece.

use std::path::PathBuf;
use std::sync::OnceLock;

use leeward_pgformat::page::PageDamage;
use leeward_pgformat::relation::RelationSegment;
use leeward_pgformat::{BlockNumber, Lsn};
use leeward_postgres::data_directory::{DataDirectoryError, SourceFile};
use leeward_repository::frame::EncodedFrame;
use leeward_repository::manifest::FileRecord;
use std::sync::Arc;

/// One thing to be stored: its manifest record as far as it is known, and where its bytes are.
#[derive(Debug)]
pub(super) struct Source {
    /// The record to be completed with what was read.
    pub record: FileRecord,
    /// Where to read it.
    pub absolute: PathBuf,
    /// Set when the file is a relation segment, whose pages are checked.
    pub segment: Option<RelationSegment>,
    /// Opened by whoever needs it first; `None` inside when it had vanished.
    file: OnceLock<Result<Option<SourceFile>, String>>,
}

impl Source {
    pub(super) fn new(
        record: FileRecord,
        absolute: PathBuf,
        segment: Option<RelationSegment>,
    ) -> Self {
        Self {
            record,
            absolute,
            segment,
            file: OnceLock::new(),
        }
    }

    /// The open file, or `None` when it is gone.
    pub(super) fn file(&self) -> Result<Option<&SourceFile>, String> {
        let opened = self.file.get_or_init(|| {
            SourceFile::open(&self.absolute).map_err(|e: DataDirectoryError| e.to_string())
        });
        match opened {
            Ok(file) => Ok(file.as_ref()),
            Err(message) => Err(message.clone()),
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
    pub damage: Vec<(BlockNumber, PageDamage)>,
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
