//! What the WAL on a path says: contents frames where they tell enough, and the records themselves where not.

use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use leeward_pgformat::{
    Lsn, TimelineId, TimestampTz, WalContents, WalEvent, WalScanner, WalSegmentSize,
};
use leeward_repository::RepositoryError;
use leeward_repository::catalog::Cluster;
use leeward_repository::layout;
use leeward_repository::wal_archive::WalArchive;
use leeward_repository::wal_object::read_wal_object;

use crate::error::{Error, Result};
use crate::parallel;
use crate::repository::doing;
use crate::wal::path::{Source, Step};

/// Who can say what lies in segments.
pub(crate) trait Witness: Sync {
    /// What the records of each say, as far as they belong to the path.
    fn contents(&self, steps: &[&Step]) -> Result<Vec<WalContents>>;

    /// The moment of the last commit or rollback in a segment, with as little asking as can be.
    fn last_time(&self, step: &Step) -> Result<Option<TimestampTz>> {
        Ok(self
            .contents(&[step])?
            .iter()
            .find_map(|contents| contents.last_time))
    }

    /// The beginning of the last whole record in segments that follow one another.
    fn last_record(&self, steps: &[&Step]) -> Result<Option<Lsn>>;

    /// Walks segments that follow one another, telling `observe` each event until it returns false.
    fn walk(&self, steps: &[&Step], observe: &mut dyn FnMut(&WalEvent) -> bool) -> Result<()>;
}

/// As many objects are asked at once.
const AT_ONCE: usize = 16;

/// The repository as a witness. What it was asked once it remembers.
pub(crate) struct Repository<'a> {
    cluster: &'a Cluster,
    archive: WalArchive,
    size: WalSegmentSize,
    known: Mutex<HashMap<(TimelineId, u64), WalContents>>,
}

impl<'a> Repository<'a> {
    pub(crate) fn new(cluster: &'a Cluster, size: WalSegmentSize) -> Self {
        Self {
            cluster,
            archive: WalArchive::new(cluster),
            size,
            known: Mutex::default(),
        }
    }

    fn known(&self, step: &Step) -> Option<WalContents> {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&(step.timeline, step.number))
            .cloned()
    }

    fn ask(&self, step: &Step) -> Result<WalContents> {
        let told = match &step.source {
            Source::Whole { stored_length } if step.end == step.name().end_lsn(self.size) => self
                .archive
                .contents(step.name(), self.size, Some(*stored_length)),
            Source::Pieces(pieces) if pieces.last().is_some_and(|last| last.end == step.end) => {
                self.ask_pieces(step, pieces)
            }
            // Frames also tell of what does not belong to the path, or are not there.
            _ => Ok(None),
        };
        let told = told.map_err(|e| self.could_not_read(step, e))?;
        if let Some(contents) = told {
            return Ok(contents);
        }
        let mut contents = WalContents::default();
        let scanner = self.scan(&[step], &mut |event| {
            contents.note(event);
            true
        })?;
        contents.first_record = scanner.contents().first_record;
        contents.last_record = scanner.contents().last_record;
        contents.end = scanner.contents().end;
        Ok(contents)
    }

    fn ask_pieces(
        &self,
        step: &Step,
        pieces: &[Range<Lsn>],
    ) -> std::result::Result<Option<WalContents>, RepositoryError> {
        let mut contents = WalContents::default();
        for piece in pieces {
            match self
                .archive
                .piece_contents(step.timeline, piece, self.size)?
            {
                Some(found) => contents.merge(&found),
                None => return Ok(None),
            }
        }
        Ok(Some(contents))
    }

    fn scan(
        &self,
        steps: &[&Step],
        observe: &mut dyn FnMut(&WalEvent) -> bool,
    ) -> Result<WalScanner> {
        let Some(first) = steps.first() else {
            return Ok(WalScanner::new(Lsn(0), self.size));
        };
        let mut walk = Walk {
            scanner: WalScanner::new(first.name().start_lsn(self.size), self.size),
            left: 0,
            observe,
            goes_on: true,
        };
        for step in steps {
            walk.left = step.end - step.name().start_lsn(self.size);
            self.read(step, &mut walk)
                .map_err(|e| self.could_not_read(step, e))?;
            if !walk.goes_on {
                break;
            }
        }
        Ok(walk.scanner)
    }

    fn read(&self, step: &Step, to: &mut dyn Write) -> std::result::Result<(), RepositoryError> {
        match &step.source {
            Source::Whole { .. } => self
                .archive
                .read_segment(step.name(), self.size, to)
                .map(drop),
            Source::Pieces(_) => match self.archive.read_pieces(step.name(), self.size, to)? {
                Some(_) => Ok(()),
                // A receiver has made them whole since they were listed.
                None => self
                    .archive
                    .read_segment(step.name(), self.size, to)
                    .map(drop),
            },
            Source::Backup(id) => {
                let name = step.name().name(self.size);
                let key = layout::backup_wal(self.cluster.name(), id, &name)?;
                let store = self.cluster.store();
                let length = store.size(&key)?;
                read_wal_object(store.as_ref(), &key, length, to).map(drop)
            }
        }
    }

    fn could_not_read(&self, step: &Step, error: RepositoryError) -> Error {
        let name = step.name().name(self.size);
        doing(
            &format!("could not look into WAL segment \"{name}\""),
            error,
        )
    }
}

impl Witness for Repository<'_> {
    fn last_time(&self, step: &Step) -> Result<Option<TimestampTz>> {
        // Of many pieces the last ones tell.
        if let Source::Pieces(pieces) = &step.source
            && pieces.last().is_some_and(|last| last.end == step.end)
        {
            for piece in pieces.iter().rev() {
                let told = self
                    .archive
                    .piece_contents(step.timeline, piece, self.size)
                    .map_err(|e| self.could_not_read(step, e))?;
                if let Some(last) = told.and_then(|contents| contents.last_time) {
                    return Ok(Some(last));
                }
            }
            return Ok(None);
        }
        let contents = self.contents(&[step])?;
        Ok(contents.iter().find_map(|contents| contents.last_time))
    }

    fn contents(&self, steps: &[&Step]) -> Result<Vec<WalContents>> {
        let unknown: Vec<&Step> = steps
            .iter()
            .filter(|step| self.known(step).is_none())
            .copied()
            .collect();
        parallel::for_each(&unknown, AT_ONCE, |step| {
            let contents = self.ask(step)?;
            self.known
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert((step.timeline, step.number), contents);
            Ok(())
        })?;
        Ok(steps
            .iter()
            .map(|step| self.known(step).unwrap_or_default())
            .collect())
    }

    fn last_record(&self, steps: &[&Step]) -> Result<Option<Lsn>> {
        let scanner = self.scan(steps, &mut |_| true)?;
        Ok(scanner.contents().last_record)
    }

    fn walk(&self, steps: &[&Step], observe: &mut dyn FnMut(&WalEvent) -> bool) -> Result<()> {
        self.scan(steps, observe).map(drop)
    }
}

/// Walks over what is written to it, as far as it belongs to the path and somebody listens. Where WAL ends, so does the
/// walk: recovery comes no further either.
struct Walk<'a> {
    scanner: WalScanner,
    left: u64,
    observe: &'a mut dyn FnMut(&WalEvent) -> bool,
    goes_on: bool,
}

impl Write for Walk<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let ours = bytes
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= ours as u64;
        if self.goes_on {
            let (observe, goes_on) = (&mut self.observe, &mut self.goes_on);
            let damage = self.scanner.feed(&bytes[..ours], &mut |event| {
                if *goes_on {
                    *goes_on = observe(&event);
                }
            });
            // Damage is the walk's end.
            self.goes_on &= damage.is_ok();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
