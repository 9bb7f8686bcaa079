//! Storing whole segments and files.

use std::io::{self, Read};

use leeward_pgformat::wal_scan::WalProblem;
use leeward_pgformat::wal_segment::{WAL_LONG_HEADER_SIZE, parse_history_file_name};
use leeward_pgformat::{
    Lsn, SystemIdentifier, TimelineHistory, WalContents, WalDamage, WalLongHeader, WalScanner,
    WalSegmentName, WalSegmentSize,
};

use super::names::timeline_of_file;
use super::object::NewObject;
use super::workplace::Workplace;
use super::{Stored, WalArchive};
use crate::layout;
use crate::repository_error::RepositoryError;
use crate::wal_object::{FILE_LIMIT, WalFacts, WalSource};

/// zstd's level for such files; they are small.
const FILE_LEVEL: i32 = 3;

impl WalArchive {
    /// Stores a whole WAL segment, if every record in it is sound; durable when this returns. What lies behind a switch
    /// record is stored as zeros. `level` is zstd's. Memory: up to 70 MiB.
    ///
    /// # Errors
    /// [`RepositoryError::WalConflict`] when the archive has other bytes under this name,
    /// [`RepositoryError::WalDamaged`] when a record's checksum does not hold, [`RepositoryError::WalUnfinished`] when
    /// the WAL ends before the segment does, [`RepositoryError::WalRefused`] when length or header are not the
    /// segment's, [`RepositoryError::Damaged`] when the object of this name cannot be read; those of the store and of
    /// `plain`.
    pub fn store_segment(
        &self,
        segment: WalSegmentName,
        size: WalSegmentSize,
        system_identifier: SystemIdentifier,
        plain: &mut dyn Read,
        level: i32,
    ) -> Result<Stored, RepositoryError> {
        let key = self.segment_key(segment, size)?;
        let facts = WalFacts {
            system_identifier,
            timeline: segment.timeline,
        };
        let mut wal = SoundWal::open(segment, size, system_identifier, plain)?;
        self.workplaces
            .lend(level, |Workplace { encoder, object }| {
                let mut new = NewObject::new(&*self.store, &key, object);
                let write = &mut |bytes: &[u8]| new.write(bytes);
                let encoded = encoder.encode_with_contents(key.as_str(), facts, &mut wal, write);
                // Why reading ended says more than that it did.
                if let Some(failure) = wal.failure.take() {
                    return Err(failure);
                }
                new.finish(encoded?, &wal.name, Some(segment.start_lsn(size)))
            })
    }

    /// Stores a timeline history file or a backup history file, by its name in PostgreSQL; durable when this returns.
    ///
    /// # Errors
    /// [`RepositoryError::WalConflict`] when the archive has other bytes under this name,
    /// [`RepositoryError::WalRefused`] for another name or content; those of the store.
    pub fn store_file(
        &self,
        name: &str,
        system_identifier: SystemIdentifier,
        content: &[u8],
    ) -> Result<Stored, RepositoryError> {
        let refused = |problem: String| RepositoryError::WalRefused {
            wal: name.to_owned(),
            problem,
        };
        let timeline = timeline_of_file(name).ok_or_else(|| {
            refused("it is neither a timeline history file nor a backup history file".to_owned())
        })?;
        if content.len() as u64 > FILE_LIMIT {
            return Err(refused(format!(
                "it has {} bytes, more than any such file",
                content.len()
            )));
        }
        let sound = match parse_history_file_name(name) {
            Some(target) => TimelineHistory::parse(content, target)
                .map(drop)
                .map_err(|error| error.to_string()),
            None if content.starts_with(b"START WAL LOCATION: ") => Ok(()),
            None => Err("it does not begin as a backup history file".to_owned()),
        };
        sound.map_err(refused)?;
        let key = layout::archived_wal(&self.cluster, timeline, name)?;
        let facts = WalFacts {
            system_identifier,
            timeline,
        };
        let mut plain = content;
        self.workplaces
            .lend(FILE_LEVEL, |Workplace { encoder, object }| {
                let mut new = NewObject::new(&*self.store, &key, object);
                let write = &mut |bytes: &[u8]| new.write(bytes);
                let info = encoder.encode(key.as_str(), facts, &mut plain, write)?;
                new.finish(info, name, None)
            })
    }
}

/// A WAL segment being read: every record is checked on the way, and what follows a switch record comes out as zeros.
/// It ends with an error unless it is whole.
struct SoundWal<'a> {
    name: String,
    plain: io::Chain<io::Cursor<Vec<u8>>, &'a mut dyn Read>,
    scanner: WalScanner,
    size: WalSegmentSize,
    start: Lsn,
    /// Bytes read.
    read: u64,
    /// Why reading ended, where it ended badly.
    failure: Option<RepositoryError>,
}

impl<'a> SoundWal<'a> {
    fn open(
        segment: WalSegmentName,
        size: WalSegmentSize,
        system_identifier: SystemIdentifier,
        plain: &'a mut dyn Read,
    ) -> Result<Self, RepositoryError> {
        let name = segment.name(size);
        let start = read_header(segment, size, system_identifier, plain)?;
        Ok(Self {
            name,
            plain: io::Cursor::new(start).chain(plain),
            scanner: WalScanner::new(segment.start_lsn(size), size),
            size,
            start: segment.start_lsn(size),
            read: 0,
            failure: None,
        })
    }

    /// Checks the next bytes, and makes zeros of those behind a switch record.
    fn take(&mut self, bytes: &mut [u8]) -> Result<(), RepositoryError> {
        let begin = self.start + self.read;
        self.read += bytes.len() as u64;
        if self.read > self.size.bytes() {
            return Err(wrong_length(&self.name, "more", self.size));
        }
        if self.scanner.switched_at().is_none() {
            self.scanner
                .feed(bytes, &mut |_| {})
                .map_err(|damage| damaged(&self.name, &damage))?;
            self.check_end()?;
        }
        if let Some(switch) = self.scanner.switched_at() {
            let used = (switch - begin).min(bytes.len() as u64);
            bytes[used as usize..].fill(0);
        }
        Ok(())
    }

    /// A whole segment has WAL up to its last byte.
    fn check_end(&self) -> Result<(), RepositoryError> {
        let Err(end) = self.scanner.expect_complete() else {
            return Ok(());
        };
        Err(match end.problem {
            WalProblem::Checksum { .. } => damaged(&self.name, &end),
            _ => RepositoryError::WalUnfinished {
                wal: self.name.clone(),
                end: end.lsn,
                problem: end.problem.to_string(),
            },
        })
    }
}

impl Read for SoundWal<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.plain.read(buffer)?;
        let taken = if length > 0 || buffer.is_empty() {
            self.take(&mut buffer[..length])
        } else if self.read < self.size.bytes() {
            Err(wrong_length(
                &self.name,
                &format!("only {}", self.read),
                self.size,
            ))
        } else {
            Ok(())
        };
        taken.map(|()| length).map_err(|failure| {
            self.failure = Some(failure);
            io::Error::other("not sound WAL")
        })
    }
}

impl WalSource for SoundWal<'_> {
    fn contents(&mut self) -> Option<WalContents> {
        Some(self.scanner.take_contents())
    }
}

pub(super) fn damaged(name: &str, damage: &WalDamage) -> RepositoryError {
    RepositoryError::WalDamaged {
        wal: name.to_owned(),
        lsn: damage.lsn,
        problem: match damage.goes_on {
            Some(page) => format!("{}, and WAL goes on at {page}", damage.problem),
            None => damage.problem.to_string(),
        },
    }
}

pub(super) fn wrong_length(name: &str, bytes: &str, size: WalSegmentSize) -> RepositoryError {
    RepositoryError::WalRefused {
        wal: name.to_owned(),
        problem: format!(
            "it has {bytes} bytes, and WAL segments of this cluster have {}",
            size.bytes()
        ),
    }
}

/// Reads the long header that every WAL segment begins with, checks that it is this segment's, and returns its bytes.
pub(super) fn read_header(
    segment: WalSegmentName,
    size: WalSegmentSize,
    system_identifier: SystemIdentifier,
    plain: &mut dyn Read,
) -> Result<Vec<u8>, RepositoryError> {
    let name = segment.name(size);
    let mut start = Vec::with_capacity(WAL_LONG_HEADER_SIZE);
    (&mut *plain)
        .take(WAL_LONG_HEADER_SIZE as u64)
        .read_to_end(&mut start)
        .map_err(|source| RepositoryError::Io {
            action: format!("read WAL \"{name}\""),
            source,
        })?;
    if start.len() < WAL_LONG_HEADER_SIZE {
        return Err(wrong_length(&name, &format!("only {}", start.len()), size));
    }
    check_header(&start, segment, size, system_identifier)
        .map_err(|problem| RepositoryError::WalRefused { wal: name, problem })?;
    Ok(start)
}

/// Whether the first bytes of a WAL segment are those of `segment`; says what is wrong.
pub(super) fn check_header(
    start: &[u8],
    segment: WalSegmentName,
    size: WalSegmentSize,
    system_identifier: SystemIdentifier,
) -> Result<(), String> {
    let header = WalLongHeader::parse(start).map_err(|error| error.to_string())?;
    if header.segment_size != size {
        return Err(format!(
            "it is from a cluster with WAL segments of {}, not {size}",
            header.segment_size
        ));
    }
    header
        .check(segment, system_identifier)
        .map_err(|error| error.to_string())
}
