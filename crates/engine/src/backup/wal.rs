//! Stores the WAL that makes a backup consistent: from the start LSN to the stop LSN, out of the server's own `pg_wal`.
//! The last segment is cut at the stop LSN; what lies behind it, perhaps of a recycled segment, is stored as zeros.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use leeward_pgformat::timeline::TimelineHistory;
use leeward_pgformat::wal_scan::join;
use leeward_pgformat::wal_segment::{
    WAL_LONG_HEADER_SIZE, WalLongHeader, WalSegmentName, WalSegmentSize, history_file_name,
};
use leeward_pgformat::{
    DatabaseDirectory, Lsn, MajorVersion, RecordPart, SystemIdentifier, TimelineId, WalContents,
    WalDamage, WalEvent, WalScanner,
};
use leeward_postgres::data_directory::DataDirectory;
use leeward_postgres::directory::Directory;
use leeward_repository::RepositoryError;
use leeward_repository::backup_id::BackupId;
use leeward_repository::codec::{Compression, FrameCompression};
use leeward_repository::layout;
use leeward_repository::manifest::WalRecord;
use leeward_repository::parallel;
use leeward_repository::store::Store;
use leeward_repository::wal_object::{
    WalFacts, WalSource, write_wal_object, write_wal_object_with_contents,
};

use super::databases;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};

/// As many WAL segments are compressed and stored at once.
const PARALLEL: usize = 4;

/// As much WAL is read at once when it is walked again.
const WALK_BYTES: usize = 1 << 20;

/// A history file has a line for each timeline; this is far more than any.
const MAX_HISTORY_BYTES: u64 = 1 << 20;

/// The stretch of WAL that a backup needs, and whose it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    pub system_identifier: SystemIdentifier,
    pub segment_size: WalSegmentSize,
    pub start: Lsn,
    pub stop: Lsn,
    /// The timeline that the stop LSN lies on.
    pub timeline: TimelineId,
}

/// Where the WAL goes.
pub(super) struct Destination<'a> {
    pub store: &'a dyn Store,
    pub cluster: &'a str,
    pub backup: &'a BackupId,
    /// zstd level.
    pub level: i32,
}

/// The zstd level for the WAL of a backup whose frames are compressed like this.
pub(super) fn level(compression: FrameCompression) -> i32 {
    let compression = match compression {
        FrameCompression::Pages(None) => Compression::default(),
        FrameCompression::Pages(Some(all)) | FrameCompression::Plain(all) => all,
    };
    match compression {
        Compression::Zstd { level } => level,
        Compression::Lz4 | Compression::None => 1,
    }
}

/// One file of `pg_wal` to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
struct WalFile {
    name: String,
    timeline: TimelineId,
    segment: Option<Segment>,
}

/// The server's `pg_wal`.
#[derive(Debug)]
pub(super) struct PgWal {
    pub directory: Directory,
    /// Its path, for messages.
    pub path: PathBuf,
}

impl PgWal {
    pub(super) fn open(directory: &DataDirectory) -> Result<Self> {
        let path = directory.path().join("pg_wal");
        Ok(Self {
            directory: directory
                .open_directory(Path::new("pg_wal"))
                .map_err(|e| unreadable(&path, e))?,
            path,
        })
    }

    /// Makes sure that the segment is there in which the backup begins, on whatever timeline.
    pub(super) fn expect_begin(&self, start: Lsn, size: WalSegmentSize) -> Result<()> {
        let number = size.segment_number(start);
        let names = (self.directory.names()).map_err(|e| unreadable(&self.path, e))?;
        let is_wanted = |name: &OsString| {
            let name = name.to_str()?;
            Some(WalSegmentName::parse(name, size)?.number == number)
        };
        if names.iter().any(|name| is_wanted(name) == Some(true)) {
            return Ok(());
        }
        Err(Error::failed(format!(
            "\"{}\" does not hold the WAL of the start LSN, {start}",
            self.path.display()
        ))
        .hint("If pg_wal lies on a file system of its own, mount it where the server has it."))
    }

    pub(super) fn holds(&self, name: &str) -> Result<bool> {
        let found = self.directory.look(OsStr::new(name));
        found
            .map(|facts| facts.is_some_and(|facts| facts.is_file()))
            .map_err(|e| unreadable(&self.path.join(name), e))
    }
}

/// What a segment is to a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    name: WalSegmentName,
    /// How many of its bytes are ours.
    length: u64,
    /// Recovery goes along all of these bytes. Not so where a timeline was left: what its last segment holds behind
    /// that may be anything.
    needed: bool,
}

/// The WAL objects stored with a backup.
pub(super) struct StoredWal {
    /// The objects, in the order of their names.
    pub records: Vec<WalRecord>,
    /// The records that make and remove databases' directories, in their order.
    pub events: Vec<WalEvent>,
}

/// Stores everything of `stretch` from `pg_wal`.
pub(super) fn store_wal(
    pg_wal: &PgWal,
    stretch: Stretch,
    to: &Destination<'_>,
    observe: Observer<'_>,
) -> Result<StoredWal> {
    let files = files(pg_wal, stretch)?;
    let total =
        files.iter().filter(|f| f.segment.is_some()).count() as u64 * stretch.segment_size.bytes();
    observe(Event::Total(total));
    let stored = parallel::map(&files, PARALLEL, |file| -> Result<_> {
        let (record, told) = store_one(pg_wal, file, stretch, to)?;
        observe(Event::Advanced(record.plain_length));
        Ok((record, told))
    })?;
    let (mut records, told): (Vec<_>, Vec<_>) = stored.into_iter().unzip();
    records.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(StoredWal {
        records,
        events: events(told.into_iter().flatten().collect(), stretch)?,
    })
}

/// Returns the last record that changed each database's directory, of those from the WAL segment of `from` on.
pub(super) fn directory_changes(
    pg_wal: &PgWal,
    stretch: Stretch,
    from: Lsn,
) -> Result<BTreeMap<DatabaseDirectory, Lsn>> {
    let size = stretch.segment_size;
    let begin = Lsn(from.0 - size.offset(from));
    let mut scanner = WalScanner::new(begin, size);
    scanner.follow_directories();
    let mut buffer = vec![0; WALK_BYTES];
    for file in files(pg_wal, stretch)? {
        let Some(segment) = file
            .segment
            .filter(|segment| segment.needed && segment.name.start_lsn(size) >= begin)
        else {
            continue;
        };
        let path = pg_wal.path.join(&file.name);
        let mut source = (pg_wal.directory)
            .open_file(OsStr::new(&file.name))
            .map_err(|e| unreadable(&path, e))?
            .take(segment.length);
        loop {
            let length = source.read(&mut buffer).map_err(|e| unreadable(&path, e))?;
            if length == 0 {
                break;
            }
            scanner
                .feed(&buffer[..length], &mut |_| {})
                .map_err(|damage| unrecoverable(&path, damage))?;
        }
        scanner
            .expect_complete()
            .map_err(|damage| unrecoverable(&path, damage))?;
    }
    Ok(scanner.directory_changes().cloned().unwrap_or_default())
}

/// The events of one segment that recovery replays.
struct ToldSegment {
    begin: Lsn,
    major: Option<MajorVersion>,
    events: Vec<WalEvent>,
    contents: WalContents,
}

/// Puts together what the segments tell, and the records that lead from one into the next.
fn events(mut segments: Vec<ToldSegment>, stretch: Stretch) -> Result<Vec<WalEvent>> {
    segments.sort_by_key(|segment| segment.begin);
    let mut events = Vec::new();
    let mut open: Option<(Lsn, RecordPart, Vec<RecordPart>)> = None;
    for segment in segments {
        // A crash may have taken the rest of the record; then the server wrote on in its place, and says so.
        if let (Some((begin, part, mut tails)), false) = (open.take(), segment.contents.overwrites)
        {
            let broken = Error::new(
                ErrorKind::Damaged,
                format!("the WAL record at {begin} cannot be recovered from"),
            );
            let (Some(tail), Some(major)) = (segment.contents.tail, segment.major) else {
                return Err(broken.because("it does not go on in the next segment"));
            };
            tails.push(tail);
            let size = stretch.segment_size;
            match join(begin, &part, &tails, segment.begin, size, major) {
                Ok(Some(joined)) => events.extend(joined.event),
                Ok(None) => open = Some((begin, part, tails)),
                Err(e) => return Err(broken.because(e)),
            }
        }
        events.extend(segment.events);
        if let Some((begin, part)) = segment.contents.open {
            open = Some((begin, part, Vec::new()));
        }
    }
    events.retain(|event| databases::concerns(event) && event.begin() >= stretch.start);
    Ok(events)
}

/// Finds the segments and history files. A segment in which a timeline was left may be there once for each timeline;
/// the newest holds the old one's beginning, and the older is taken along where it exists.
fn files(pg_wal: &PgWal, stretch: Stretch) -> Result<Vec<WalFile>> {
    let (mut files, history) = histories(pg_wal, stretch.timeline)?;
    let size = stretch.segment_size;
    let first = size.segment_number(stretch.start);
    let last = size.segment_number_before(stretch.stop).max(first);
    for number in first..=last {
        let at = |timeline| WalSegmentName { timeline, number };
        let begin = at(stretch.timeline).start_lsn(size);
        let end = at(stretch.timeline)
            .end_lsn(size)
            .min(stretch.stop.max(begin + 1));
        let needed = history.timeline_of(Lsn(end.0 - 1));
        for range in history.ranges() {
            let touches = range.begin < end && range.end.is_none_or(|left| left > begin);
            if !touches && range.timeline != needed {
                continue;
            }
            let segment = at(range.timeline);
            let name = segment.name(size);
            if pg_wal.holds(&name)? {
                let length = if number == last {
                    end.0 - begin.0
                } else {
                    size.bytes()
                };
                files.push(WalFile {
                    name,
                    timeline: range.timeline,
                    segment: Some(Segment {
                        name: segment,
                        length,
                        needed: range.timeline == needed,
                    }),
                });
            } else if range.timeline == needed {
                return Err(Error::failed(format!("WAL segment \"{name}\" is not in \"{}\" any more", pg_wal.path.display()))
                    .hint("Something other than the server removed it, or max_slot_wal_keep_size is too small for the time a backup takes."));
            }
        }
    }
    Ok(files)
}

fn histories(pg_wal: &PgWal, timeline: TimelineId) -> Result<(Vec<WalFile>, TimelineHistory)> {
    let mut files = Vec::new();
    let mut history = TimelineHistory {
        target: timeline,
        entries: Vec::new(),
    };
    if timeline.0 > 1 {
        let name = history_file_name(timeline);
        let path = pg_wal.path.join(&name);
        match pg_wal.directory.read(OsStr::new(&name), MAX_HISTORY_BYTES) {
            Ok(text) => {
                history = TimelineHistory::parse(&text, timeline).map_err(|e| {
                    Error::failed(format!("could not make sense of \"{}\"", path.display()))
                        .because(e)
                })?;
            }
            // Without ancestors' WAL in the stretch nothing is missing; else the segment search says what is.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(unreadable(&path, e)),
        }
    }
    let ancestors = history.entries.iter().map(|entry| entry.timeline);
    for timeline in ancestors
        .chain([timeline])
        .filter(|timeline| timeline.0 > 1)
    {
        let name = history_file_name(timeline);
        if pg_wal.holds(&name)? {
            files.push(WalFile {
                name,
                timeline,
                segment: None,
            });
        }
    }
    Ok((files, history))
}

pub(super) fn unreadable(path: &Path, e: io::Error) -> Error {
    Error::failed(format!("could not read \"{}\"", path.display())).because(e)
}

fn store_one(
    pg_wal: &PgWal,
    file: &WalFile,
    stretch: Stretch,
    to: &Destination<'_>,
) -> Result<(WalRecord, Option<ToldSegment>)> {
    let path = pg_wal.path.join(&file.name);
    let mut told = None;
    let mut source = pg_wal
        .directory
        .open_file(OsStr::new(&file.name))
        .map_err(|e| unreadable(&path, e))?;
    let facts = WalFacts {
        system_identifier: stretch.system_identifier,
        timeline: file.timeline,
    };
    let key = layout::backup_wal(to.cluster, to.backup, &file.name)?;
    let failed = |e: RepositoryError| {
        Error::failed(format!("could not store WAL file \"{}\"", file.name)).because(e)
    };
    let stored = match file.segment {
        None => write_wal_object(to.store, &key, facts, &mut source, to.level).map_err(failed)?,
        Some(segment) => {
            check_header(&mut source, &path, segment.name, stretch)?;
            let mut plain = WalkedSegment::new(source, segment, stretch.segment_size);
            let stored =
                write_wal_object_with_contents(to.store, &key, facts, &mut plain, to.level);
            let walked = plain.finish(&path, stretch)?;
            let stored = stored.map_err(failed)?;
            told = walked.map(|(scanner, events)| ToldSegment {
                begin: scanner.start(),
                major: scanner.major(),
                events,
                contents: stored.contents.clone().unwrap_or_default(),
            });
            stored
        }
    };
    if file.segment.is_some() && stored.plain_length != stretch.segment_size.bytes() {
        return Err(Error::failed(format!(
            "WAL segment \"{}\" has {} bytes instead of {}",
            file.name,
            stored.plain_length,
            stretch.segment_size.bytes()
        )));
    }
    let record = WalRecord {
        name: file.name.clone(),
        plain_length: stored.plain_length,
        stored_length: stored.stored_length,
        plain_hash: stored.plain_hash,
        stored_hash: stored.stored_hash,
    };
    Ok((record, told))
}

fn unrecoverable(path: &Path, damage: WalDamage) -> Error {
    Error::new(
        ErrorKind::Damaged,
        format!(
            "WAL segment \"{}\" cannot be recovered from",
            path.display()
        ),
    )
    .because(damage)
    .hint("Recovery would end there. The disk is failing, or something other than the server changed the file.")
}

fn unjudged(path: &Path, damage: WalDamage, start: Lsn) -> Error {
    Error::new(
        ErrorKind::Damaged,
        format!(
            "WAL segment \"{}\" is damaged before the start LSN, {start}, so its records cannot be followed",
            path.display()
        ),
    )
    .because(damage)
    .hint("Recovery of this backup would not read the damaged place. Run the command again when the server writes another segment: SELECT pg_switch_wal(); on the primary. The disk is failing, or something other than the server changed the file.")
}

/// A segment being read: our bytes, whose records are followed on the way, then zeros.
struct WalkedSegment {
    source: io::Take<File>,
    zeros: io::Take<io::Repeat>,
    scanner: WalScanner,
    needed: bool,
    damage: Option<WalDamage>,
    /// The records that make, copy or remove databases.
    events: Vec<WalEvent>,
}

impl WalkedSegment {
    fn new(source: File, segment: Segment, size: WalSegmentSize) -> Self {
        Self {
            source: source.take(segment.length),
            zeros: io::repeat(0).take(size.bytes() - segment.length),
            scanner: WalScanner::new(segment.name.start_lsn(size), size),
            needed: segment.needed,
            damage: None,
            events: Vec::new(),
        }
    }

    /// Returns the events in the bytes, if recovery goes along them, and the scanner.
    ///
    /// # Errors
    /// That recovery, which begins at the start LSN, would end in them, or that its records are not known.
    fn finish(self, path: &Path, stretch: Stretch) -> Result<Option<(WalScanner, Vec<WalEvent>)>> {
        if !self.needed {
            return Ok(None);
        }
        let damage = self.damage.or_else(|| self.scanner.expect_complete().err());
        match damage {
            Some(damage) if damage.lsn >= stretch.start => Err(unrecoverable(path, damage)),
            // Recovery begins behind it; the records from there on are not known all the same.
            Some(damage) => Err(unjudged(path, damage, stretch.start)),
            None => Ok(Some((self.scanner, self.events))),
        }
    }
}

impl Read for WalkedSegment {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.source.limit() == 0 {
            return self.zeros.read(buffer);
        }
        let length = self.source.read(buffer)?;
        if self.damage.is_none() {
            let events = &mut self.events;
            let mut keep = |event: WalEvent| {
                if databases::concerns(&event) {
                    events.push(event);
                }
            };
            self.damage = self.scanner.feed(&buffer[..length], &mut keep).err();
        }
        Ok(length)
    }
}

impl WalSource for WalkedSegment {
    fn contents(&mut self) -> Option<WalContents> {
        Some(self.scanner.take_contents())
    }
}

fn check_header(
    source: &mut File,
    path: &Path,
    segment: WalSegmentName,
    stretch: Stretch,
) -> Result<()> {
    let foreign = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::failed(format!(
            "WAL segment \"{}\" does not hold what its name says",
            path.display()
        ))
        .because(e)
        .hint("It may have been recycled while it was still needed; back up again.")
    };
    let mut header = [0u8; WAL_LONG_HEADER_SIZE];
    source
        .read_exact(&mut header)
        .map_err(|e| foreign(Box::new(e)))?;
    WalLongHeader::parse(&header)
        .and_then(|header| header.check(segment, stretch.system_identifier))
        .map_err(|e| foreign(Box::new(e)))?;
    source.rewind().map_err(|e| foreign(Box::new(e)))
}

#[cfg(test)]
#[path = "wal_tests.rs"]
pub(super) mod tests;
