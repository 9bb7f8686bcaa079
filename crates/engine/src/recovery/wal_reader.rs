//! Reading the WAL of a path: the summaries of its segments, and their records where the summaries do not tell enough.

use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use leeward_pgformat::{
    Lsn, MajorVersion, SystemIdentifier, TimelineId, WalContents, WalDamage, WalEvent, WalScanner,
    WalSegmentSize,
};
use leeward_repository::RepositoryError;
use leeward_repository::catalog::Cluster;
use leeward_repository::parallel;
use leeward_repository::wal_archive::WalArchive;

use super::path::{PathSegment, SegmentSource};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::doing;

/// What was seen of WAL that was walked, as far as it belongs to the path.
#[derive(Clone, Debug)]
pub(crate) struct Walked {
    /// Its summary.
    pub contents: WalContents,
    /// The bounds of the first complete record from the LSN on that was asked for.
    pub found: Option<Range<Lsn>>,
    /// Where recovery would not go on although there are more bytes, and why.
    pub damage: Option<WalDamage>,
    /// The major version that wrote the WAL.
    pub major: Option<MajorVersion>,
}

/// A source of WAL.
pub(crate) trait WalReader: Sync {
    /// The summary of each segment, walked by itself.
    fn summaries(&self, segments: &[&PathSegment]) -> Result<Vec<WalContents>>;

    /// Walks segments that follow one another from the beginning of the first, telling `observe` each event of a proven
    /// record, and looks for the first record from `wanted` on.
    fn walk(
        &self,
        segments: &[&PathSegment],
        wanted: Option<Lsn>,
        observe: &mut dyn FnMut(&WalEvent),
    ) -> Result<Walked>;
}

/// As many objects are asked for at once.
const AT_ONCE: usize = 16;

/// The WAL in a repository. A summary is read once.
pub(crate) struct ArchiveWalReader<'a> {
    cluster: &'a Cluster,
    archive: WalArchive,
    size: WalSegmentSize,
    /// The cluster whose WAL it must be.
    owner: SystemIdentifier,
    known: Mutex<HashMap<(TimelineId, u64), WalContents>>,
}

impl<'a> ArchiveWalReader<'a> {
    pub(crate) fn new(cluster: &'a Cluster, size: WalSegmentSize, owner: SystemIdentifier) -> Self {
        Self {
            cluster,
            archive: WalArchive::new(cluster),
            size,
            owner,
            known: Mutex::default(),
        }
    }

    fn known(&self, segment: &PathSegment) -> Option<WalContents> {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&(segment.timeline, segment.number))
            .cloned()
    }

    fn summary(&self, segment: &PathSegment) -> Result<WalContents> {
        // A summary also tells of WAL that does not belong to the path, where it ends within the segment.
        let whole = segment.end == segment.name().end_lsn(self.size);
        let stored = match &segment.source {
            SegmentSource::Whole { stored_length } if whole => {
                self.archive
                    .contents(segment.name(), self.size, Some(*stored_length))
            }
            SegmentSource::Backup(backup) if whole => self
                .cluster
                .backup_wal_contents(backup, &segment.name().name(self.size)),
            _ => Ok(None),
        };
        match stored.map_err(|e| self.could_not_read(segment, e))? {
            Some(contents) => Ok(contents),
            None => Ok(self.walk(&[segment], None, &mut |_| {})?.contents),
        }
    }

    fn read(&self, segment: &PathSegment, to: &mut Feed<'_>) -> Result<()> {
        let name = segment.name();
        let failed = |e| self.could_not_read(segment, e);
        let owner = match &segment.source {
            SegmentSource::Whole { .. } => self
                .archive
                .read_segment(name, self.size, to)
                .map_err(failed)?
                .map(|info| info.facts.system_identifier),
            SegmentSource::Pieces(_) => {
                match self
                    .archive
                    .read_pieces(name, self.size, to)
                    .map_err(failed)?
                {
                    Some(_) => None,
                    // A receiver has made them whole since they were listed.
                    None => self
                        .archive
                        .read_segment(name, self.size, to)
                        .map_err(failed)?
                        .map(|info| info.facts.system_identifier),
                }
            }
            SegmentSource::Backup(backup) => Some(
                self.cluster
                    .read_backup_wal(backup, &name.name(self.size), None, to)
                    .map_err(failed)?
                    .facts
                    .system_identifier,
            ),
        };
        let owner = owner.or(to.scanner.system_identifier());
        if let Some(owner) = owner.filter(|owner| *owner != self.owner) {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!(
                    "WAL segment \"{}\" in the repository is of the cluster with system identifier {owner}, not {}",
                    name.name(self.size),
                    self.owner
                ),
            )
            .hint("Somebody copied it there. Remove it, or restore from another copy of the repository."));
        }
        Ok(())
    }

    fn could_not_read(&self, segment: &PathSegment, error: RepositoryError) -> Error {
        let name = segment.name().name(self.size);
        doing(&format!("could not read WAL segment \"{name}\""), error)
    }
}

impl WalReader for ArchiveWalReader<'_> {
    fn summaries(&self, segments: &[&PathSegment]) -> Result<Vec<WalContents>> {
        let unknown: Vec<&PathSegment> = segments
            .iter()
            .filter(|segment| self.known(segment).is_none())
            .copied()
            .collect();
        parallel::for_each(&unknown, AT_ONCE, |segment| -> Result<()> {
            let contents = self.summary(segment)?;
            self.known
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert((segment.timeline, segment.number), contents);
            Ok(())
        })?;
        Ok(segments
            .iter()
            .map(|segment| self.known(segment).unwrap_or_default())
            .collect())
    }

    fn walk(
        &self,
        segments: &[&PathSegment],
        wanted: Option<Lsn>,
        observe: &mut dyn FnMut(&WalEvent),
    ) -> Result<Walked> {
        let start = segments
            .first()
            .map_or(Lsn(0), |first| first.begin(self.size));
        let mut feed = Feed::new(start, self.size, wanted, observe);
        for segment in segments {
            feed.left = segment.end - segment.begin(self.size);
            self.read(segment, &mut feed)?;
            if feed.damage.is_some() {
                break;
            }
        }
        Ok(feed.finish())
    }
}

/// Walks over what is written to it, as far as it belongs to the path. Where WAL ends, so does the walk.
pub(super) struct Feed<'a> {
    scanner: WalScanner,
    /// Bytes that still belong to the path.
    left: u64,
    observe: &'a mut dyn FnMut(&WalEvent),
    damage: Option<WalDamage>,
}

impl<'a> Feed<'a> {
    pub(super) fn new(
        start: Lsn,
        size: WalSegmentSize,
        wanted: Option<Lsn>,
        observe: &'a mut dyn FnMut(&WalEvent),
    ) -> Self {
        let mut scanner = WalScanner::new(start, size);
        if let Some(wanted) = wanted {
            scanner.look_for(wanted);
        }
        Self {
            scanner,
            left: u64::MAX,
            observe,
            damage: None,
        }
    }

    pub(super) fn finish(mut self) -> Walked {
        Walked {
            major: self.scanner.major(),
            found: self.scanner.found(),
            damage: self.damage.or_else(|| self.scanner.expect_complete().err()),
            contents: self.scanner.take_contents(),
        }
    }
}

impl Write for Feed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let ours = bytes
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= ours as u64;
        if self.damage.is_none() {
            let observe = &mut self.observe;
            self.damage = self
                .scanner
                .feed(&bytes[..ours], &mut |event| observe(&event))
                .err();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
