//! What PostgreSQL makes of a backup and a recovery target: which record it stops at, or where WAL ends for it, and what
//! it needs on the way. The rules are those of `PerformWalRecovery`, `recoveryStopsBefore`, `recoveryStopsAfter`,
//! `CheckRecoveryConsistency` and `CheckRequiredParameterValues` (src/backend/access/transam/xlogrecovery.c, xlog.c), applied
//! before anything is written.
//!
//! Segments are read only where their summaries do not tell enough: the first and the last, and those in which recovery may
//! stop or which need something.

use std::ops::Range;

use leeward_pgformat::{
    Lsn, Oid, RequiredSettings, TimestampTz, WalContents, WalEvent, WalLevel, WalSegmentSize,
};

use super::continuity::{Break, Continuity};
use super::path::{MissingWal, PathSegment, RecoveryPath};
use super::sources::BackupRange;
use super::target::{RecoveryTarget, StopPoint};
use super::wal_reader::WalReader;
use crate::error::{ErrorKind, Result};

/// As many summaries are read together.
const SUMMARIES_AT_ONCE: usize = 32;

/// What came of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replay {
    pub outcome: ReplayOutcome,
    /// Where the last record ends that was replayed.
    pub end: Lsn,
    /// What the server needs to come as far.
    pub requirements: Requirements,
}

/// How a replay ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReplayOutcome {
    /// At the target.
    Stops(StopPoint),
    /// At the target, before the backup is consistent: the server gives up.
    StopsTooEarly(StopPoint),
    /// At the end of WAL, after the backup is consistent.
    Ends(WalEnd),
    /// At the end of WAL, before the backup is consistent.
    NeverConsistent(WalEnd),
}

/// Why recovery goes no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WalEnd {
    /// There is no more WAL.
    NoMore,
    /// There is more behind WAL that is missing.
    Missing(MissingWal),
    /// There is more, and it does not follow: the LSN, and why.
    Broken(Lsn, String),
    /// The server that wrote the WAL was set to `wal_level = minimal` by the record at this LSN.
    MinimalWal(Lsn),
    /// The object that holds the segment at this LSN is damaged, and how.
    Damaged(Lsn, String),
    /// The replay was to go no further.
    Limit,
}

/// What a server needs for its recovery beyond the files of the backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requirements {
    /// The highest values that the WAL asks for.
    pub settings: RequiredSettings,
    /// Directories outside the data directory that records name, in the order of the records.
    pub tablespaces: Vec<RequiredTablespace>,
    /// The resource managers of extensions: bit n is number 128 + n.
    pub custom_managers: u128,
}

/// A directory that replay of `CREATE TABLESPACE` needs and links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequiredTablespace {
    pub tablespace: Oid,
    /// The absolute path in the record.
    pub location: Vec<u8>,
    /// The beginning of the record.
    pub record: Lsn,
}

/// How far a replay goes, and for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplayGoal<'a> {
    pub target: &'a RecoveryTarget,
    /// Whether the target itself is replayed (`recovery_target_inclusive`).
    pub inclusive: bool,
    /// Nothing in segments that begin here or later is wanted.
    pub until: Option<Lsn>,
}

/// Replays `backup` along `path`.
///
/// # Errors
/// Those of the reader.
pub(crate) fn replay(
    path: &RecoveryPath,
    reader: &dyn WalReader,
    backup: &BackupRange,
    goal: ReplayGoal<'_>,
) -> Result<Replay> {
    let held_to = path.reach(backup.start);
    let limit = goal.until.map_or(held_to, |until| held_to.min(until));
    let segments = path.segments(backup.start, limit);
    let mut server = Server::new(backup, goal, path.size());
    let mut continuity = Continuity::new(reader, path.size());
    for chunk in segments.chunks(SUMMARIES_AT_ONCE) {
        // Of several it is not known which one is damaged.
        let together = match reader.summaries(chunk) {
            Err(error) if error.kind() == ErrorKind::Damaged => Vec::new(),
            other => other?,
        };
        for (at, segment) in chunk.iter().copied().enumerate() {
            let begin = segment.begin(path.size());
            let entered = match together.get(at) {
                Some(summary) => Ok(summary.clone()),
                None => reader
                    .summaries(&[segment])
                    .map(|mut summaries| summaries.swap_remove(0)),
            }
            .and_then(|summary| Ok((continuity.enter(segment, &summary)?, summary)));
            let (entered, summary) = match entered {
                Err(error) if error.kind() == ErrorKind::Damaged => {
                    server.end = Some(WalEnd::Damaged(begin, error.with_causes()));
                    return Ok(server.finish());
                }
                other => other?,
            };
            let summary = &summary;
            match entered {
                Ok(None) => {}
                Ok(Some(crossing)) => {
                    server.note_record(&crossing.bounds, crossing.event.as_ref());
                    if let Some(manager) = crossing.custom_manager {
                        server.requirements.custom_managers |= 1 << (manager - 128);
                    }
                }
                Err(broken) => server.break_at(broken),
            }
            if server.is_done() {
                return Ok(server.finish());
            }
            let is_last = segment.end == held_to;
            let is_first = begin <= backup.start;
            if is_first || is_last || server.may_concern(segment, summary) {
                let beginning = if is_first {
                    server.check_beginning(reader, segment)
                } else {
                    Ok(())
                };
                let wanted = server.wanted(begin);
                let walked = beginning.and_then(|()| {
                    reader.walk(&[segment], wanted, &mut |event| server.note_event(event))
                });
                let walked = match walked {
                    // What was told before is not proven either.
                    Err(error) if error.kind() == ErrorKind::Damaged => {
                        server.stop = None;
                        server.end = Some(WalEnd::Damaged(begin, error.with_causes()));
                        return Ok(server.finish());
                    }
                    other => other?,
                };
                continuity.set_major(walked.major);
                server.note_found(walked.found);
                server.note_end(segment, &walked.contents, path);
                if let Some(damage) = walked.damage.filter(|_| !is_last) {
                    server.break_at(Break {
                        lsn: damage.lsn,
                        problem: damage.problem.to_string(),
                    });
                }
                continuity.leave(segment, &walked.contents);
            } else {
                server.note_end(segment, summary, path);
                continuity.leave(segment, summary);
            }
            if server.is_done() {
                return Ok(server.finish());
            }
        }
    }
    let end = if limit < held_to {
        WalEnd::Limit
    } else {
        path.missing_at(held_to)
            .map_or(WalEnd::NoMore, WalEnd::Missing)
    };
    server.end = Some(end);
    Ok(server.finish())
}

/// A server in recovery, as far as it matters where it stops.
struct Server<'a> {
    backup: &'a BackupRange,
    goal: ReplayGoal<'a>,
    size: WalSegmentSize,
    /// The first record is behind this; where the checkpoint is the first record, it is not replayed.
    first: Lsn,
    /// The first record from here on is where recovery stops: the LSN of the target, or where the backup is consistent.
    position: Option<Lsn>,
    /// An event of the first record with one from `position` on, kept until it is known whether it is the first of all.
    held: Option<WalEvent>,
    requirements: Requirements,
    replayed_to: Lsn,
    stop: Option<(StopPoint, bool)>,
    end: Option<WalEnd>,
}

impl<'a> Server<'a> {
    fn new(backup: &'a BackupRange, goal: ReplayGoal<'a>, size: WalSegmentSize) -> Self {
        let first = if backup.start == backup.checkpoint {
            Lsn(backup.start.0 + 1)
        } else {
            backup.start
        };
        let position = match goal.target {
            RecoveryTarget::Lsn(lsn) => Some((*lsn).max(first)),
            RecoveryTarget::Immediate => Some(backup.consistent.max(first)),
            _ => None,
        };
        Self {
            backup,
            goal,
            size,
            first,
            position,
            held: None,
            requirements: Requirements::default(),
            replayed_to: backup.start,
            stop: None,
            end: None,
        }
    }

    fn is_done(&self) -> bool {
        self.stop.is_some() || self.end.is_some()
    }

    fn finish(self) -> Replay {
        let consistent = self.replayed_to >= self.backup.consistent;
        let outcome = match (self.stop, self.end) {
            (Some((stop, true)), _) => ReplayOutcome::Stops(stop),
            (Some((stop, false)), _) => ReplayOutcome::StopsTooEarly(stop),
            (None, end) => {
                let end = end.unwrap_or(WalEnd::NoMore);
                if consistent {
                    ReplayOutcome::Ends(end)
                } else {
                    ReplayOutcome::NeverConsistent(end)
                }
            }
        };
        Replay {
            outcome,
            end: self.replayed_to,
            requirements: self.requirements,
        }
    }

    /// Whether a commit or rollback at `time` is behind a target time.
    fn is_later(&self, time: TimestampTz) -> bool {
        match self.goal.target {
            RecoveryTarget::Time(target) => is_later(time, *target, self.goal.inclusive),
            _ => false,
        }
    }

    /// Whether something in a segment that was not walked may stop recovery, or may need something.
    fn may_concern(&self, segment: &PathSegment, summary: &WalContents) -> bool {
        if summary.has_requirements {
            return true;
        }
        match self.goal.target {
            RecoveryTarget::End => false,
            RecoveryTarget::Immediate | RecoveryTarget::Lsn(_) => {
                self.position.is_some_and(|position| {
                    segment.end > position && summary.first_record.is_some()
                }) || self.is_consistent_in(segment)
            }
            RecoveryTarget::Time(_) => summary.last_time.is_some_and(|last| self.is_later(last)),
            RecoveryTarget::Transaction(xid) => summary
                .xids
                .is_some_and(|(least, most)| (least..=most).contains(&xid.0)),
            RecoveryTarget::RestorePoint(name) => {
                summary.more_restore_points
                    || summary
                        .restore_points
                        .iter()
                        .any(|point| point.name == *name)
            }
        }
    }

    /// The record with which an immediate recovery becomes consistent may be one after which that is noticed.
    fn is_consistent_in(&self, segment: &PathSegment) -> bool {
        *self.goal.target == RecoveryTarget::Immediate && segment.end >= self.backup.consistent
    }

    /// From which LSN on the first record of a segment is wanted.
    fn wanted(&self, segment_begin: Lsn) -> Option<Lsn> {
        self.position.map(|position| position.max(segment_begin))
    }

    /// That the record where recovery begins is there: the server looks for it, and gives up without it.
    fn check_beginning(&mut self, reader: &dyn WalReader, segment: &PathSegment) -> Result<()> {
        let walked = reader.walk(&[segment], Some(self.backup.start), &mut |_| {})?;
        let begins = match (&walked.found, &walked.contents.open) {
            (Some(found), _) => found.start == self.backup.start,
            // The first record may be one that leads into the next segment.
            (None, Some((begin, _))) => *begin == self.backup.start,
            (None, None) => false,
        };
        if !begins {
            self.break_at(Break {
                lsn: self.backup.start,
                problem: "no record begins where recovery has to".to_owned(),
            });
        }
        Ok(())
    }

    fn break_at(&mut self, broken: Break) {
        if !self.is_done() {
            self.end = Some(WalEnd::Broken(broken.lsn, broken.problem));
        }
    }

    /// A record that was put together from two segments.
    fn note_record(&mut self, bounds: &Range<Lsn>, event: Option<&WalEvent>) {
        let reached = self
            .position
            .is_some_and(|position| bounds.start >= position);
        if let Some(event) = event {
            self.note_event(event);
        }
        if reached {
            self.note_found(Some(bounds.clone()));
        }
        if !self.is_done() {
            self.replayed_to = bounds.end;
        }
    }

    /// A commit or another record of which something is told, in the order of WAL.
    fn note_event(&mut self, event: &WalEvent) {
        if self.is_done() || event.begin() < self.first {
            return;
        }
        if self
            .position
            .is_some_and(|position| event.begin() >= position)
        {
            if self.held.is_none() {
                self.held = Some(event.clone());
            }
            return;
        }
        self.apply(event);
    }

    fn apply(&mut self, event: &WalEvent) {
        let ends_transaction = match event {
            WalEvent::Commit { xid, time, .. } | WalEvent::Abort { xid, time, .. } => {
                Some((*xid, *time))
            }
            _ => None,
        };
        let is_target =
            |xid| matches!(self.goal.target, RecoveryTarget::Transaction(wanted) if *wanted == xid);
        if let Some((xid, time)) = ends_transaction
            && (self.is_later(time) || !self.goal.inclusive && is_target(xid))
        {
            self.stop_before(event.begin(), Some(time));
            return;
        }
        match event {
            WalEvent::ParameterChange {
                settings,
                wal_level,
                ..
            } => {
                if *wal_level == Some(WalLevel::Minimal) {
                    self.replayed_to = event.begin();
                    self.end = Some(WalEnd::MinimalWal(event.begin()));
                    return;
                }
                self.requirements.settings = self.requirements.settings.max(*settings);
            }
            WalEvent::TablespaceCreate {
                tablespace,
                location,
                begin,
                ..
            } if !location.is_empty() => self.requirements.tablespaces.push(RequiredTablespace {
                tablespace: *tablespace,
                location: location.clone(),
                record: *begin,
            }),
            _ => {}
        }
        let noticed =
            ends_transaction.is_some() || matches!(event, WalEvent::OtherTransaction { .. });
        let stops_after = match (self.goal.target, event) {
            (RecoveryTarget::RestorePoint(wanted), WalEvent::RestorePoint { name, .. }) => {
                wanted == name
            }
            (RecoveryTarget::Transaction(_), _) => {
                self.goal.inclusive && ends_transaction.is_some_and(|(xid, _)| is_target(xid))
            }
            (RecoveryTarget::Immediate, _) => noticed && event.end() >= self.backup.consistent,
            _ => false,
        };
        if stops_after {
            let time = match event {
                WalEvent::RestorePoint { time, .. } => Some(*time),
                _ => ends_transaction.map(|(_, time)| time),
            };
            self.stop_after(event.end(), time);
        }
    }

    /// The first record from the wanted position on, once it is known.
    fn note_found(&mut self, found: Option<Range<Lsn>>) {
        if self.is_done() {
            return;
        }
        let Some(found) = found else { return };
        let time = match *self.goal.target {
            RecoveryTarget::Lsn(_) if self.goal.inclusive => {
                let mut end = found.end;
                if let Some(event) = self.held.take_if(|event| event.begin() == found.start) {
                    // Behind a switch, the server's position is the next segment.
                    if matches!(event, WalEvent::Switch { .. }) {
                        end = Lsn(end.0.next_multiple_of(self.size.bytes()));
                    }
                    self.position = None;
                    self.apply(&event);
                    if self.is_done() {
                        return;
                    }
                }
                self.stop_after(end, None);
                return;
            }
            _ => None,
        };
        self.stop_before(found.start, time);
    }

    /// A segment is replayed to its end.
    fn note_end(&mut self, segment: &PathSegment, contents: &WalContents, path: &RecoveryPath) {
        self.requirements.custom_managers |= contents.custom_managers;
        if self.is_done() {
            return;
        }
        // Behind a switch, the server's position is the next segment.
        let end = match (contents.switch, contents.end) {
            (Some(switch), Some(end)) if switch == end => segment.name().end_lsn(path.size()),
            (_, Some(end)) => end,
            (_, None) => return,
        };
        self.replayed_to = self.replayed_to.max(end);
    }

    fn stop_before(&mut self, lsn: Lsn, time: Option<TimestampTz>) {
        self.replayed_to = lsn;
        self.stop = Some((StopPoint { lsn, time }, lsn >= self.backup.consistent));
    }

    fn stop_after(&mut self, lsn: Lsn, time: Option<TimestampTz>) {
        self.replayed_to = lsn;
        self.stop = Some((StopPoint { lsn, time }, lsn >= self.backup.consistent));
    }
}

/// Whether the server stops before a commit or rollback at `time`.
pub(super) fn is_later(time: TimestampTz, target: TimestampTz, inclusive: bool) -> bool {
    if inclusive {
        time > target
    } else {
        time >= target
    }
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
