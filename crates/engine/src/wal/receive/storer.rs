//! The thread that stores what was received, and the one that takes away what is not needed any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use leeward_pgformat::{SystemIdentifier, WalContents, WalScanner, WalSegmentName, WalSegmentSize};
use leeward_repository::repository_error::RepositoryError;
use leeward_repository::wal_archive::{Piece, WalArchive};

use super::buffer::{FileReader, Job};
use super::queue::Queue;
use crate::error::Error;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How often an outage of the store is told again.
const TELL_EVERY: Duration = Duration::from_secs(300);

/// What a thread needs to store things.
#[derive(Debug, Clone)]
pub(super) struct Storer {
    pub(super) archive: WalArchive,
    pub(super) system_identifier: SystemIdentifier,
    pub(super) level: i32,
    pub(super) queue: Arc<Queue>,
}

/// Whether trying again can help: the store failed, not what was to be stored.
pub(super) fn is_outage(error: &RepositoryError) -> bool {
    match error {
        RepositoryError::Store(store) => !store.is_not_found() && !error.is_damage(),
        // A file system that is not mounted, now.
        RepositoryError::NoRepository { .. } => true,
        _ => false,
    }
}

/// Pauses between attempts that have no end, and what is told of them.
#[derive(Debug)]
pub(super) struct Patience {
    pause: Duration,
    told: Option<Instant>,
}

impl Patience {
    pub(super) fn new() -> Patience {
        Patience {
            pause: FIRST_PAUSE,
            told: None,
        }
    }

    /// How long to wait now.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }

    /// Whether it is time to tell of it (again).
    pub(super) fn tells(&mut self) -> bool {
        let tells = self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY);
        if tells {
            self.told = Some(Instant::now());
        }
        tells
    }
}

impl Storer {
    /// Stores until the queue ends.
    pub(super) fn run(&self) {
        let size = self.queue.segment_size();
        let mut reader = ContentsReader::new(size);
        let mut patience = Patience::new();
        loop {
            let job = self.queue.job();
            if matches!(job, Job::Done) {
                self.queue.done(&job);
                return;
            }
            match self.store(&job, &mut reader) {
                Ok(()) => {
                    if let Some(outage) = self.queue.set_trouble(false) {
                        self.queue.notice(format!(
                            "The store works again after {} s; nothing was lost.",
                            outage.as_secs()
                        ));
                    }
                    patience = Patience::new();
                    self.queue.done(&job);
                }
                Err(Failure::Outage(error)) => {
                    self.queue.set_trouble(true);
                    if patience.tells() {
                        self.queue.notice(format!(
                            "The store fails: {error}. Leeward goes on trying; meanwhile the server keeps the WAL."
                        ));
                    }
                    if self.queue.pause(patience.pause()) {
                        self.queue.done(&Job::Done);
                        return;
                    }
                }
                Err(Failure::Final(error)) => return self.queue.fail(error),
            }
        }
    }

    fn store(&self, job: &Job, reader: &mut ContentsReader) -> Result<(), Failure> {
        let size = self.queue.segment_size();
        match job {
            Job::Done => {}
            Job::History { name, content } => {
                self.archive
                    .store_file(name, self.system_identifier, content)?;
            }
            Job::Segment { segment, file, .. } => {
                let mut plain = FileReader {
                    file: Arc::clone(file),
                    position: 0,
                };
                self.archive.store_segment(
                    *segment,
                    size,
                    self.system_identifier,
                    &mut plain,
                    self.level,
                )?;
            }
            Job::Piece {
                segment,
                file,
                from,
                to,
            } => {
                let contents = reader.read(*segment, file, *from, *to)?.unwrap_or_default();
                let bytes = read_range(file, *from, *to)?;
                self.archive.store_piece(
                    &Piece {
                        timeline: segment.timeline,
                        begin: segment.start_lsn(size) + *from,
                        bytes: &bytes,
                        contents: &contents,
                        segment_size: size,
                        system_identifier: self.system_identifier,
                    },
                    self.level,
                )?;
            }
        }
        Ok(())
    }

    /// Deletes pieces of whole WAL segments until the queue ends. A failure is no harm: the next start finds them.
    pub(super) fn sweep(&self) {
        while let Some(segment) = self.queue.leftover() {
            let size = self.queue.segment_size();
            if let Err(error) = self.archive.delete_pieces(segment, size) {
                self.queue.notice(format!(
                    "Could not delete the pieces of WAL segment {}, which is stored whole; the next start will: {error}.",
                    segment.name(size)
                ));
            }
        }
    }
}

enum Failure {
    Outage(RepositoryError),
    Final(Error),
}

impl From<RepositoryError> for Failure {
    fn from(error: RepositoryError) -> Failure {
        if is_outage(&error) {
            Failure::Outage(error)
        } else {
            Failure::Final(error.into())
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Final(Error::failed("could not read the WAL received so far").because(error))
    }
}

fn read_range(file: &std::fs::File, from: u64, to: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; (to - from) as usize];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, from)?;
    Ok(bytes)
}

/// Reads what the records in pieces say, each WAL segment from its beginning on.
struct ContentsReader {
    size: WalSegmentSize,
    current: Option<(WalSegmentName, WalScanner)>,
    /// What the piece says that was read last, so that another attempt to store it says the same.
    last: Option<(WalSegmentName, u64, u64, Option<WalContents>)>,
}

impl ContentsReader {
    fn new(size: WalSegmentSize) -> ContentsReader {
        ContentsReader {
            size,
            current: None,
            last: None,
        }
    }

    /// What the records that end between two offsets of a WAL segment say; `None` where they cannot be followed. Whether
    /// that is damage is decided when the WAL segment is whole.
    fn read(
        &mut self,
        segment: WalSegmentName,
        file: &std::fs::File,
        from: u64,
        to: u64,
    ) -> std::io::Result<Option<WalContents>> {
        if let Some((of, begin, end, contents)) = &self.last
            && (*of, *begin, *end) == (segment, from, to)
        {
            return Ok(contents.clone());
        }
        let start = segment.start_lsn(self.size);
        let fits = self
            .current
            .as_ref()
            .is_some_and(|(of, scanner)| *of == segment && scanner.position() == start + from);
        if !fits {
            let mut scanner = WalScanner::new(start, self.size);
            feed(&mut scanner, file, 0, from)?;
            scanner.take_contents();
            self.current = Some((segment, scanner));
        }
        let contents = match &mut self.current {
            Some((_, scanner)) => feed(scanner, file, from, to)?.then(|| scanner.take_contents()),
            None => None,
        };
        self.last = Some((segment, from, to, contents.clone()));
        Ok(contents)
    }
}

/// Whether the records could be followed.
fn feed(
    scanner: &mut WalScanner,
    file: &std::fs::File,
    mut from: u64,
    to: u64,
) -> std::io::Result<bool> {
    while from < to {
        let end = to.min(from + (1 << 20));
        if scanner
            .feed(&read_range(file, from, end)?, &mut |_| {})
            .is_err()
        {
            return Ok(false);
        }
        from = end;
    }
    Ok(true)
}
