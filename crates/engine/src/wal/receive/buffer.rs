//! One WAL segment on its way: an unlinked file, and what has become of its bytes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leeward_pgformat::{WalSegmentName, WalSegmentSize};

/// Plain bytes of one piece at most; what one holds in memory.
const PIECE_BYTES: u64 = 8 << 20;

/// A stretch of WAL inside one WAL segment that is being received or stored.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) segment: WalSegmentName,
    pub(super) file: Arc<File>,
    /// Offsets in the WAL segment, as the others: received up to here.
    pub(super) filled: u64,
    /// Stored as pieces up to here.
    pub(super) stored: u64,
    /// No more bytes will come.
    pub(super) ended: bool,
    /// Whether the archive has pieces of it.
    pub(super) has_pieces: bool,
    /// When the first byte that is not stored came.
    pub(super) waiting_since: Option<Instant>,
    /// What the archive's pieces hold of it, and how much that is: the server must send the same again.
    pub(super) expected: Option<(File, u64)>,
    /// The archive has all of it, and it comes only to be compared: no pieces are stored, and none of it counts as durable
    /// before.
    pub(super) held: bool,
}

/// What to store next.
pub(super) enum Job {
    /// A timeline history file.
    History { name: String, content: Vec<u8> },
    /// A whole WAL segment.
    Segment {
        segment: WalSegmentName,
        file: Arc<File>,
        has_pieces: bool,
    },
    /// These offsets of a WAL segment.
    Piece {
        segment: WalSegmentName,
        file: Arc<File>,
        from: u64,
        to: u64,
    },
    /// Nothing will come any more.
    Done,
}

/// What is to be done with a buffer.
pub(super) enum Due {
    /// Now.
    Job(Job),
    /// All of it is stored and nothing more comes.
    Nothing,
    /// Later, or when more comes.
    At(Option<Instant>),
}

impl Buffer {
    /// An empty one; the archive's pieces hold what `expected` has.
    pub(super) fn new(
        segment: WalSegmentName,
        file: Arc<File>,
        expected: Option<(File, u64)>,
    ) -> Buffer {
        Buffer {
            segment,
            file,
            filled: 0,
            stored: expected.as_ref().map_or(0, |(_, length)| *length),
            ended: false,
            has_pieces: expected.is_some(),
            waiting_since: None,
            expected,
            held: false,
        }
    }

    /// An empty one of what the archive has as a whole.
    pub(super) fn of_held(segment: WalSegmentName, file: Arc<File>) -> Buffer {
        Buffer {
            held: true,
            ..Buffer::new(segment, file, None)
        }
    }

    /// What is to be stored of it now.
    pub(super) fn due(&mut self, size: WalSegmentSize, hurry: bool, interval: Duration) -> Due {
        if self.filled == size.bytes() {
            return Due::Job(Job::Segment {
                segment: self.segment,
                file: Arc::clone(&self.file),
                has_pieces: self.has_pieces,
            });
        }
        if self.held || self.filled <= self.stored {
            return if self.ended {
                Due::Nothing
            } else {
                Due::At(None)
            };
        }
        let at = self.waiting_since.map(|since| since + interval);
        if hurry || self.ended || at.is_none_or(|at| at <= Instant::now()) {
            let to = self.filled.min(self.stored + PIECE_BYTES);
            if to == self.filled {
                // Whatever comes from now on waits anew.
                self.waiting_since = None;
            }
            // It may get there although we are not told.
            self.has_pieces = true;
            return Due::Job(Job::Piece {
                segment: self.segment,
                file: Arc::clone(&self.file),
                from: self.stored,
                to,
            });
        }
        Due::At(at)
    }
}

/// The first offset at which `now`, received from `offset` on, differs from the first `length` bytes of `expected`.
pub(super) fn compare(
    expected: &File,
    length: u64,
    offset: u64,
    now: &[u8],
) -> io::Result<Option<u64>> {
    let common = length.saturating_sub(offset).min(now.len() as u64) as usize;
    let mut held = vec![0; common];
    expected.read_exact_at(&mut held, offset)?;
    Ok(held
        .iter()
        .zip(now)
        .position(|(held, now)| held != now)
        .map(|at| offset + at as u64))
}

/// Reads a file from its beginning, whatever others do with it.
pub(super) struct FileReader {
    pub(super) file: Arc<File>,
    pub(super) position: u64,
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.position)?;
        self.position += length as u64;
        Ok(length)
    }
}
