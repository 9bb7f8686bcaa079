//! Comparison of the WAL that lies with a backup with the archive's. Recovery asks the archive first: other WAL under the same
//! name leads it elsewhere.

use std::collections::BTreeSet;
use std::io::{self, Write};

use leeward_pgformat::wal_segment::parse_history_file_name;
use leeward_pgformat::{TimelineId, WalSegmentName, WalSegmentSize};

use super::WalArchive;
use super::read::read_object;
use crate::hash::Hasher;
use crate::layout;
use crate::parallel;
use crate::repository_error::RepositoryError;
use crate::store::Key;
use crate::summary::BackupSummary;
use crate::wal_object::{Tail, read_wal_tail};

/// As many segments are looked at at once.
const AT_ONCE: usize = 8;

impl WalArchive {
    /// Returns the first WAL segment of a backup under whose name the archive has other WAL. A segment that is damaged, or that
    /// only one of both has, contradicts nothing.
    ///
    /// # Errors
    /// Those of the store.
    pub fn contradiction(
        &self,
        backup: &BackupSummary,
        size: WalSegmentSize,
    ) -> Result<Option<WalSegmentName>, RepositoryError> {
        let (Some(first), Some(last)) = (
            WalSegmentName::parse(&backup.wal.first, size),
            WalSegmentName::parse(&backup.wal.last, size),
        ) else {
            return Ok(None);
        };
        let timelines: BTreeSet<TimelineId> = (backup.wal.history.iter())
            .filter_map(|name| parse_history_file_name(name))
            .chain([first.timeline, last.timeline])
            .collect();
        let numbers: Vec<u64> = (first.number..=last.number).collect();
        let found = parallel::map(&numbers, AT_ONCE, |number| {
            // Of a segment in which a timeline was left, only the newer timeline's is on the way.
            for timeline in timelines.iter().rev() {
                let segment = WalSegmentName {
                    timeline: *timeline,
                    number: *number,
                };
                let key = layout::backup_wal(&self.cluster, &backup.id, &segment.name(size))?;
                let Some(ours) = self.tail(&key)? else {
                    continue;
                };
                // The last segment is stored up to the stop LSN, and zeros.
                let cut = match size.offset(backup.stop_lsn) {
                    cut if *number == last.number && cut > 0 => cut,
                    _ => size.bytes(),
                };
                let agrees = self.begins_like(&ours, cut, segment, size)?;
                return Ok::<_, RepositoryError>((!agrees).then_some(segment));
            }
            Ok(None)
        })?;
        Ok(found.into_iter().flatten().next())
    }

    /// Returns whether the archived segment, if there is one, begins with the first `cut` bytes of the backup's, which has zeros
    /// behind them.
    fn begins_like(
        &self,
        ours: &Tail,
        cut: u64,
        segment: WalSegmentName,
        size: WalSegmentSize,
    ) -> Result<bool, RepositoryError> {
        let key = self.segment_key(segment, size)?;
        let Some(theirs) = self.tail(&key)? else {
            return Ok(true);
        };
        if theirs.plain_hash == ours.plain_hash || theirs.plain_length != ours.plain_length {
            return Ok(true);
        }
        if cut == size.bytes() {
            return Ok(false);
        }
        let mut beginning = HashOfBeginning {
            hasher: Hasher::new(),
            left: cut,
        };
        if absent_or_damaged(read_object(&*self.store, &key, &mut beginning))?.is_none() {
            return Ok(true);
        }
        let zeros = [0; 8192];
        let mut left = size.bytes() - cut;
        while left > 0 {
            let length = left.min(zeros.len() as u64);
            beginning.hasher.update(&zeros[..length as usize]);
            left -= length;
        }
        Ok(beginning.hasher.finish() == ours.plain_hash)
    }

    fn tail(&self, key: &Key) -> Result<Option<Tail>, RepositoryError> {
        let length = self.store.size(key).map_err(RepositoryError::from);
        absent_or_damaged(length.and_then(|length| read_wal_tail(&*self.store, key, length)))
    }
}

fn absent_or_damaged<T>(read: Result<T, RepositoryError>) -> Result<Option<T>, RepositoryError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(RepositoryError::Store(error)) if error.is_not_found() => Ok(None),
        Err(error) if error.is_about_one_object() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Hashes the first bytes written to it.
struct HashOfBeginning {
    hasher: Hasher,
    left: u64,
}

impl Write for HashOfBeginning {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.left.min(bytes.len() as u64);
        self.hasher.update(&bytes[..taken as usize]);
        self.left -= taken;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
