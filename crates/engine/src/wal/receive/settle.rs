//! Where to go on with a server: at once where the stream broke off, or after what the archive holds, or behind what is
//! lost.

use std::ops::Range;
use std::time::{Duration, Instant};

use leeward_pgformat::{Lsn, TimelineId, WalSegmentName};
use leeward_repository::repository_error::RepositoryError;
use leeward_repository::wal_archive::{Gap, Holdings, TimelineHoldings};

use super::storer::Storer;
use super::{Receiver, Server, Trouble, loss, resume, storer};
use crate::error::Error;

type Result<T> = std::result::Result<T, Trouble>;

impl Receiver<'_> {
    /// The timeline and LSN to ask for, with the queue ready for what comes from there.
    pub(super) fn position(&mut self, server: &mut Server) -> Result<(TimelineId, Lsn)> {
        let Some(queue) = self.desk.as_ref().map(|desk| desk.queue.clone()) else {
            return Err(Trouble::Final(Error::failed("no server was met")));
        };
        let reached = |lsn: Lsn| {
            if lsn <= server.identity.flushed {
                return Ok(());
            }
            Err(Trouble::Wait(format!(
                "the server has WAL up to {} only, and {lsn} comes next",
                server.identity.flushed
            )))
        };
        if let Some((timeline, lsn)) = queue.position()
            && resume::goes_on(&server.history, timeline, lsn)
        {
            reached(lsn)?;
            return Ok((timeline, lsn));
        }
        queue.end();
        self.drain()?;
        let (segment, holdings) = self.start(server)?;
        let size = queue.segment_size();
        reached(segment.start_lsn(size))?;
        self.send_histories(server, &holdings)?;
        let expected = self.expected(segment, &holdings)?;
        let lacking = self.lacking.take();
        self.comparing =
            resume::held_before(segment, &holdings).filter(|held| lacking != Some(*held));
        let first = match self.comparing {
            Some(held) => {
                queue.begin_before(held, expected)?;
                held
            }
            None => {
                queue.begin(segment, expected)?;
                segment
            }
        };
        Ok((first.timeline, first.start_lsn(size)))
    }

    /// Waits until what was received is stored.
    fn drain(&mut self) -> Result<()> {
        let Some(queue) = self.desk.as_ref().map(|desk| desk.queue.clone()) else {
            return Ok(());
        };
        while !queue.is_empty() {
            if self.stop.is_asked() {
                return Err(Trouble::Stopped);
            }
            self.check()?;
            self.stop.wait(Instant::now() + Duration::from_secs(1));
            self.tell();
        }
        queue.clear();
        Ok(())
    }

    /// The WAL segment to begin with, and what the archive holds. What pieces cover becomes whole; what the server has
    /// no more is looked for, and else recorded as lost.
    fn start(&mut self, server: &Server) -> Result<(WalSegmentName, Holdings)> {
        let mut holdings = self.tidy_holdings()?;
        let size = self.size();
        let by_slot =
            |lsn: Lsn| WalSegmentName::containing(server.history.timeline_of(lsn), lsn, size);
        let kept_from = server.restart_lsn.unwrap_or(server.identity.flushed);
        let from_slot = by_slot(kept_from);
        loop {
            let wanted = match resume::first_missing(&server.history, &holdings, kept_from, size) {
                Some(segment) => segment,
                None => {
                    let behind_backup = self.behind_newest_backup(server)?;
                    let lacking = behind_backup.is_some() && behind_backup == self.missing;
                    if lacking {
                        self.notice(
                            "The server no longer has the WAL between the newest backup and here. Take a new backup: \
                             the WAL received from now on does not fit the ones there are."
                                .to_owned(),
                        );
                        self.missing = None;
                    }
                    return Ok((
                        behind_backup.filter(|_| !lacking).unwrap_or(from_slot),
                        holdings,
                    ));
                }
            };
            if self.missing != Some(wanted) {
                return Ok((wanted, holdings));
            }
            if self.store_files(wanted, from_slot)? {
                self.missing = None;
                holdings = self.tidy_holdings()?;
                continue;
            }
            let lost = self.record_loss(server, wanted, &holdings)?;
            self.missing = None;
            // The archive's own word for it is not read again.
            for gap in lost {
                let held = holdings
                    .timelines
                    .entry(gap.timeline)
                    .or_insert_with(|| TimelineHoldings::empty(gap.timeline));
                held.gaps.push(gap.begin..gap.end);
            }
        }
    }

    fn size(&self) -> leeward_pgformat::WalSegmentSize {
        self.desk
            .as_ref()
            .map_or(leeward_pgformat::WalSegmentSize::DEFAULT, |desk| desk.size)
    }

    /// What the archive holds, after everything that an interrupted receiver left was put right.
    fn tidy_holdings(&mut self) -> Result<Holdings> {
        let size = self.size();
        let mut merged = 0;
        let holdings = self.holdings()?;
        for segment in resume::covered_by_pieces(&holdings, size) {
            merged += u64::from(self.merge(segment)?);
        }
        let holdings = if merged > 0 {
            self.holdings()?
        } else {
            holdings
        };
        for segment in resume::left_over(&holdings) {
            if self.is_proven(segment)?
                && let Some(desk) = &self.desk
            {
                desk.queue.leave_over(segment);
            }
        }
        Ok(holdings)
    }

    /// Reads a whole WAL segment back, before its pieces are deleted: they may be the only sound copy.
    fn is_proven(&mut self, segment: WalSegmentName) -> Result<bool> {
        let size = self.size();
        let what = format!("read WAL segment {}", segment.name(size));
        let damage = self.patiently(&what, |receiver| {
            let Some(desk) = &receiver.desk else {
                return Ok(None);
            };
            let read = desk
                .archive
                .read_segment(segment, size, &mut std::io::sink());
            match read {
                Err(error) if error.is_about_one_object() => Ok(Some(error.to_string())),
                read => read.map(|_| None),
            }
        })?;
        if let Some(damage) = &damage {
            self.notice(format!(
                "WAL segment {} cannot be used as the archive has it, so its pieces are kept; remove that object: {damage}.",
                segment.name(size)
            ));
        }
        Ok(damage.is_none())
    }

    /// Makes a whole WAL segment of its pieces. Whether that was possible.
    fn merge(&mut self, segment: WalSegmentName) -> Result<bool> {
        let size = self.size();
        let what = format!(
            "put the pieces of WAL segment {} together",
            segment.name(size)
        );
        let Some((file, length)) = self.pieces(segment)? else {
            return Ok(false);
        };
        if length < size.bytes() {
            return Ok(false);
        }
        let file = std::sync::Arc::new(file);
        self.store_plain(segment, &what, &file)
    }

    /// Stores a whole WAL segment from a file; `false`, and a notice, when it is not sound.
    fn store_plain(
        &mut self,
        segment: WalSegmentName,
        what: &str,
        file: &std::sync::Arc<std::fs::File>,
    ) -> Result<bool> {
        let size = self.size();
        let stored = self.patiently(what, |receiver| {
            let Some(desk) = &receiver.desk else {
                return Ok(Ok(()));
            };
            let mut plain = super::buffer::FileReader {
                file: std::sync::Arc::clone(file),
                position: 0,
            };
            let Storer {
                archive,
                system_identifier,
                level,
                ..
            } = &desk.storer;
            match archive.store_segment(segment, size, *system_identifier, &mut plain, *level) {
                Ok(_) => Ok(Ok(())),
                Err(error) if storer::is_outage(&error) => Err(error),
                Err(error) => Ok(Err(error)),
            }
        })?;
        if let Err(error) = &stored {
            self.notice(format!("Could not {what}: {error}."));
        }
        Ok(stored.is_ok())
    }

    /// What the archive's pieces hold of a WAL segment from its beginning on.
    fn pieces(&mut self, segment: WalSegmentName) -> Result<Option<(std::fs::File, u64)>> {
        let size = self.size();
        let what = format!("read the pieces of WAL segment {}", segment.name(size));
        let Some(queue) = self.desk.as_ref().map(|desk| desk.queue.clone()) else {
            return Ok(None);
        };
        self.patiently(&what, |receiver| {
            let Some(desk) = &receiver.desk else {
                return Ok(None);
            };
            let mut file = queue.file().map_err(|e| RepositoryError::Io {
                action: "create a temporary file".to_owned(),
                source: std::io::Error::other(e),
            })?;
            match desk.archive.read_pieces(segment, size, &mut file) {
                Ok(Some(end)) => Ok(Some((file, end - segment.start_lsn(size)))),
                Ok(None) => Ok(None),
                // Another receiver has stored the whole segment meanwhile, and deleted its pieces.
                Err(RepositoryError::Store(error)) if error.is_not_found() => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn expected(
        &mut self,
        segment: WalSegmentName,
        holdings: &Holdings,
    ) -> Result<Option<(std::fs::File, u64)>> {
        let held = holdings
            .timelines
            .get(&segment.timeline)
            .is_some_and(|held| held.pieces.contains_key(&segment.number));
        if held { self.pieces(segment) } else { Ok(None) }
    }

    /// Has the history files of the server's timeline and its ancestors stored, as far as the archive has them not.
    fn send_histories(&mut self, server: &mut Server, holdings: &Holdings) -> Result<()> {
        for range in server.history.ranges() {
            let held = holdings
                .timelines
                .get(&range.timeline)
                .is_some_and(|held| held.history);
            if held {
                self.histories.insert(range.timeline);
                continue;
            }
            match self.store_history(&mut server.connection, range.timeline) {
                // Servers may have forgotten old ancestors' files.
                Err(Trouble::Server(error))
                    if range.end.is_some() && error.sqlstate() == Some(super::UNDEFINED_FILE) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// The WAL segment in which the newest backup of the server's history ends.
    fn behind_newest_backup(&mut self, server: &Server) -> Result<Option<WalSegmentName>> {
        let backups = self.patiently("list the backups", |receiver| match &receiver.desk {
            Some(desk) => desk.cluster.backups().map(|backups| backups.sound),
            None => Ok(Vec::new()),
        })?;
        let size = self.size();
        Ok(backups
            .iter()
            .rev()
            .find(|backup| {
                server
                    .history
                    .descends_from(backup.stop_timeline, backup.stop_lsn)
            })
            .map(|backup| WalSegmentName {
                timeline: backup.stop_timeline,
                number: size.segment_number_before(backup.stop_lsn),
            }))
    }

    /// Stores what `pg_wal` itself still has of the WAL that the server does not send. Whether there was any.
    fn store_files(&mut self, missing: WalSegmentName, end: WalSegmentName) -> Result<bool> {
        let Some(pgdata) = self.options.pgdata.clone() else {
            return Ok(false);
        };
        let size = self.size();
        let mut segment = missing;
        while segment.number < end.number {
            let Some(file) = loss::file(&pgdata, segment, size) else {
                break;
            };
            let what = format!("store WAL segment {} from pg_wal", segment.name(size));
            if !self.store_plain(segment, &what, &std::sync::Arc::new(file))? {
                break;
            }
            segment = segment.next();
        }
        Ok(segment != missing)
    }

    /// Finds out how much is lost, and records it.
    fn record_loss(
        &mut self,
        server: &Server,
        missing: WalSegmentName,
        holdings: &Holdings,
    ) -> Result<Vec<Gap>> {
        let size = self.size();
        let segment = |number: u64| {
            let lsn = Lsn(number * size.bytes());
            WalSegmentName::containing(server.history.timeline_of(lsn), lsn, size)
        };
        let newest = size.segment_number_before(server.identity.flushed);
        // A standby that changes its timeline has a moment in which the new one's first segment is not there yet, and no
        // WAL is called lost while nothing newer is there.
        if newest <= missing.number
            || loss::has(&self.target, missing, size)?
            || !loss::has(&self.target, segment(newest), size)?
        {
            self.missing = None;
            return Err(Trouble::Wait(format!(
                "the server has not got WAL segment {} at the moment",
                missing.name(size)
            )));
        }
        let oldest = loss::oldest(missing.number, newest, |number| {
            loss::has(&self.target, segment(number), size)
        })?;
        let next_held = loss::next_held(holdings, missing).unwrap_or(u64::MAX);
        let lost: Range<Lsn> =
            loss::begin(holdings, missing, size)..Lsn(oldest.min(next_held) * size.bytes());
        let gaps = loss::gaps(
            &server.history,
            &lost,
            "the server no longer had this WAL when it was asked for it",
        );
        for gap in &gaps {
            self.patiently("record the gap", |receiver| match &receiver.desk {
                Some(desk) => desk.archive.record_gap(gap),
                None => Ok(()),
            })?;
            self.gaps += 1;
            self.notice(format!(
                "LOST: the WAL from {} to {} on timeline {} ({} MiB) is neither in the archive nor on this server. The gap is \
                 recorded. Take a new backup now: from older ones nothing behind {} can be reached.",
                gap.begin,
                gap.end,
                gap.timeline,
                (gap.end - gap.begin) >> 20,
                gap.begin
            ));
        }
        Ok(gaps)
    }
}
