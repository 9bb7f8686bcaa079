//! What a restore aims at, and whether recovery of a backup gets there: PostgreSQL's own rules (`recoveryStopsBefore` and
//! `recoveryStopsAfter`, src/backend/access/transam/xlogrecovery.c), applied before anything is written.

use std::fmt;

use leeward_pgformat::{Lsn, TimestampTz, TransactionId, WalContents, WalEvent};

use super::witness::Witness;
use crate::error::Result;
use crate::moment::utc;
use crate::wal::coverage::OwnWal;
use crate::wal::path::{Path, Step};

/// Where recovery is to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aim {
    /// At the end of what is held.
    End,
    /// As soon as the backup is consistent.
    Immediate,
    /// Before the first commit or rollback later than this.
    Time(TimestampTz),
    /// After the first record that begins here or later.
    Lsn(Lsn),
    /// After the end of this transaction.
    Transaction(TransactionId),
    /// At the first restore point of this name.
    RestorePoint(String),
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End => f.write_str("the end of WAL"),
            Self::Immediate => f.write_str("the consistent state of the backup"),
            Self::Time(time) => write!(f, "{}", utc(*time)),
            Self::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Self::Transaction(TransactionId(xid)) => write!(f, "transaction {xid}"),
            Self::RestorePoint(name) => write!(f, "restore point \"{name}\""),
        }
    }
}

/// Where recovery will stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The LSN of the record that it stops before or after, or that was named.
    pub lsn: Lsn,
    /// The moment of that record, where it has one.
    pub time: Option<TimestampTz>,
}

/// What recovery of a backup makes of an aim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It stops there.
    Reaches(Stop),
    /// It would stop before the backup is consistent: an older backup is needed.
    TooNew,
    /// It ends, or meets a hole, before it stops.
    Beyond,
}

/// An aim on a path, as far as it is the same for every backup.
pub(crate) struct Sight<'a> {
    pub path: &'a Path,
    pub witness: &'a dyn Witness,
    pub aim: &'a Aim,
    /// Whether what is aimed at is itself part of what is recovered (`recovery_target_inclusive`).
    pub inclusive: bool,
    /// Where transactions or restore points of that name end, in order.
    found: Vec<Found>,
}

/// A record that was aimed at by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub begin: Lsn,
    pub end: Lsn,
    pub time: TimestampTz,
}

/// So many microseconds a moment in WAL may be earlier than one before it: servers read the clock before they write.
const DISORDER: i64 = 1_000_000;

/// No record reaches over more segments that one would stop at.
const SEGMENTS_OF_A_RECORD: usize = 4;

/// As many contents frames are looked at together.
const FRAMES_AT_ONCE: usize = 32;

impl<'a> Sight<'a> {
    /// Finds what has a name, in all WAL of the path from `from` on.
    pub(crate) fn new(
        path: &'a Path,
        witness: &'a dyn Witness,
        aim: &'a Aim,
        inclusive: bool,
        from: Lsn,
    ) -> Result<Self> {
        let steps = match path.bounds() {
            Some(held) => path.steps(from, held.end),
            None => Vec::new(),
        };
        let found = match aim {
            Aim::Transaction(xid) => find_transaction(witness, &steps, *xid)?,
            Aim::RestorePoint(name) => find_points(witness, &steps, name)?,
            _ => Vec::new(),
        };
        Ok(Self {
            path,
            witness,
            aim,
            inclusive,
            found,
        })
    }

    /// Records of the name aimed at.
    pub(crate) fn found(&self) -> &[Found] {
        &self.found
    }

    /// What recovery of `backup` makes of it.
    pub(crate) fn judge(&self, backup: &OwnWal) -> Result<Verdict> {
        let end = self.path.reach(backup.start);
        if end < backup.stop {
            return Ok(Verdict::Beyond);
        }
        match self.aim {
            Aim::End => Ok(Verdict::Reaches(Stop {
                lsn: end,
                time: None,
            })),
            Aim::Immediate => {
                // The server notices at the next record.
                let next = self.has_record_from(backup.stop, end)?;
                Ok(if next {
                    Verdict::Reaches(Stop {
                        lsn: backup.stop,
                        time: None,
                    })
                } else {
                    Verdict::Beyond
                })
            }
            Aim::Lsn(lsn) => {
                if *lsn < backup.stop {
                    return Ok(Verdict::TooNew);
                }
                Ok(if *lsn < end && self.has_record_from(*lsn, end)? {
                    Verdict::Reaches(Stop {
                        lsn: *lsn,
                        time: None,
                    })
                } else {
                    Verdict::Beyond
                })
            }
            Aim::Time(time) => self.judge_time(backup, *time, end),
            // A restore point is always stopped at after it, whatever is asked (recoveryStopsAfter).
            Aim::RestorePoint(_) => Ok(self.judge_found(backup, end, true)),
            Aim::Transaction(_) => Ok(self.judge_found(backup, end, self.inclusive)),
        }
    }

    fn judge_found(&self, backup: &OwnWal, end: Lsn, after: bool) -> Verdict {
        let first = self.found.iter().find(|found| found.begin >= backup.start);
        match first {
            Some(found) if found.end <= end => {
                let at = if after { found.end } else { found.begin };
                if at < backup.stop {
                    Verdict::TooNew
                } else {
                    Verdict::Reaches(Stop {
                        lsn: at,
                        time: Some(found.time),
                    })
                }
            }
            Some(_) => Verdict::Beyond,
            None if self.found.is_empty() => Verdict::Beyond,
            None => Verdict::TooNew,
        }
    }

    /// Whether a whole record begins at `from` or later, and ends by `end`.
    fn has_record_from(&self, from: Lsn, end: Lsn) -> Result<bool> {
        let steps = self.path.steps(from, end);
        if steps.is_empty() {
            return Ok(false);
        }
        for step in steps.iter().rev() {
            let contents = self.witness.contents(&[step])?;
            if let Some(last) = contents.iter().find_map(|contents| contents.last_record) {
                if last >= from {
                    return Ok(true);
                }
                break;
            }
        }
        // Perhaps one that leads from one segment into the next, and is in no frame.
        let last = &steps[steps.len().saturating_sub(SEGMENTS_OF_A_RECORD)..];
        let last = self.witness.last_record(last)?;
        Ok(last.is_some_and(|last| last >= from))
    }

    /// Whether the server would stop before a commit or rollback at `time`.
    fn is_later(&self, time: TimestampTz, target: TimestampTz) -> bool {
        if self.inclusive {
            time > target
        } else {
            time >= target
        }
    }

    fn judge_time(&self, backup: &OwnWal, target: TimestampTz, end: Lsn) -> Result<Verdict> {
        let later =
            |event: &WalEvent| moment_of(event).filter(|end| self.is_later(end.time, target));
        let near = |contents: &WalContents| {
            let last = contents.last_time;
            last.is_some_and(|last| self.is_later(TimestampTz(last.0 + DISORDER), target))
        };

        // Replay begins before the backup is consistent: whatever is later there stops it too early.
        let before = self.path.steps(backup.start, backup.stop);
        let mut moments_seen = false;
        for chunk in before.rchunks(FRAMES_AT_ONCE) {
            let contents = self.witness.contents(chunk)?;
            for (step, contents) in chunk.iter().zip(&contents).rev() {
                // A record that leads from one segment into the next is in no frame; it matters where no other moment
                // comes after it.
                if !near(contents) && moments_seen {
                    continue;
                }
                let mut stops_early = false;
                self.walk_around(step, backup.start, &mut |event| {
                    let Some(found) = moment_of(event) else {
                        return true;
                    };
                    if found.begin < backup.start || found.begin >= backup.stop {
                        return true;
                    }
                    moments_seen = true;
                    stops_early |= later(event).is_some();
                    !stops_early
                })?;
                if stops_early {
                    return Ok(Verdict::TooNew);
                }
            }
        }

        // The first segment behind it that may hold something later: times rise.
        let after = self.path.steps(backup.stop, end);
        let (mut low, mut high) = (0, after.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match nearest(self.witness, &after[low..=middle], has_moment)? {
                Some(contents) if near(&contents) => high = middle,
                _ => low = middle + 1,
            }
        }
        // The record that leads into it, or out of the last, may be the one; or one of those between segments in which no
        // other transaction ended.
        let mut first = low.min(after.len().saturating_sub(1));
        while first > low.saturating_sub(BOUNDARIES_NEARBY)
            && self.witness.contents(&[after[first - 1]])?[0]
                .last_time
                .is_none()
        {
            first -= 1;
        }
        for step in &after[first..] {
            let mut stop = None;
            self.walk_around(step, backup.start, &mut |event| {
                stop = later(event).filter(|found| found.begin >= backup.stop && found.end <= end);
                stop.is_none()
            })?;
            if let Some(found) = stop {
                return Ok(Verdict::Reaches(Stop {
                    lsn: found.begin,
                    time: Some(found.time),
                }));
            }
        }
        Ok(Verdict::Beyond)
    }

    /// Walks a segment, and the one before it as far as it is held, for the record that leads from there.
    fn walk_around(
        &self,
        step: &Step,
        from: Lsn,
        observe: &mut dyn FnMut(&WalEvent) -> bool,
    ) -> Result<()> {
        let begin = step.name().start_lsn(self.path.size());
        let mut steps = Vec::new();
        if begin > from {
            steps.extend(self.path.steps(Lsn(begin.0 - 1), begin));
        }
        steps.push(step);
        self.witness.walk(&steps, observe)
    }

    /// The last commit or rollback of the path in `[from, end)`.
    pub(crate) fn last_moment(&self, from: Lsn, end: Lsn) -> Result<Option<Found>> {
        last_moment(self.path, self.witness, from, end)
    }
}

/// The contents of the last of `steps` that have what is asked for: segments in which no transaction ended do not tell how far
/// times or ids had come.
fn nearest(
    witness: &dyn Witness,
    steps: &[&Step],
    has: fn(&WalContents) -> bool,
) -> Result<Option<WalContents>> {
    for step in steps.iter().rev() {
        let contents = witness.contents(&[step])?.swap_remove(0);
        if has(&contents) {
            return Ok(Some(contents));
        }
    }
    Ok(None)
}

fn has_moment(contents: &WalContents) -> bool {
    contents.last_time.is_some()
}

/// The last commit or rollback of a path that begins in `[from, end)`.
pub(crate) fn last_moment(
    path: &Path,
    witness: &dyn Witness,
    from: Lsn,
    end: Lsn,
) -> Result<Option<Found>> {
    for step in path.steps(from, end).into_iter().rev() {
        let contents = witness.contents(&[step])?;
        if contents.iter().all(|contents| contents.last_time.is_none()) {
            continue;
        }
        let mut last = None;
        witness.walk(&[step], &mut |event| {
            if let Some(found) = moment_of(event)
                && found.begin >= from
                && found.end <= end
            {
                last = Some(found);
            }
            true
        })?;
        if last.is_some() {
            return Ok(last);
        }
    }
    Ok(None)
}

/// A commit or rollback.
fn moment_of(event: &WalEvent) -> Option<Found> {
    match event {
        WalEvent::Commit {
            time, begin, end, ..
        }
        | WalEvent::Abort {
            time, begin, end, ..
        } => Some(Found {
            begin: *begin,
            end: *end,
            time: *time,
        }),
        _ => None,
    }
}

fn end_of_transaction(event: &WalEvent, wanted: TransactionId) -> Option<Found> {
    match event {
        WalEvent::Commit { xid, .. } | WalEvent::Abort { xid, .. } if *xid == wanted => {
            moment_of(event)
        }
        _ => None,
    }
}

/// Where transaction `xid` ended. Ids rise with time, roughly: the search begins where they first reach it.
fn find_transaction(
    witness: &dyn Witness,
    steps: &[&Step],
    xid: TransactionId,
) -> Result<Vec<Found>> {
    let (mut low, mut high) = (0, steps.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let nearest = nearest(witness, &steps[low..=middle], |contents| {
            contents.xids.is_some()
        })?;
        let reached = nearest
            .and_then(|contents| contents.xids)
            .is_some_and(|(_, most)| most >= xid.0);
        if reached {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    // Forward from there, where a transaction that took long ended later; then what lies before.
    let likely = low.saturating_sub(1);
    let order = [&steps[likely..], &steps[..likely]];
    for part in order {
        for chunk in part.chunks(FRAMES_AT_ONCE) {
            let contents = witness.contents(chunk)?;
            for (step, contents) in chunk.iter().zip(&contents) {
                let within = contents
                    .xids
                    .is_some_and(|(least, most)| (least..=most).contains(&xid.0));
                if within
                    && let Some(found) =
                        find_in(witness, &[step], |event| end_of_transaction(event, xid))?
                {
                    return Ok(vec![found]);
                }
            }
        }
    }
    if steps.is_empty() {
        return Ok(Vec::new());
    }
    // No frame has it. Perhaps its record leads from one segment into the next.
    // Segments in which no transaction ended do not tell how far ids had come.
    let mut first = low.saturating_sub(1);
    let furthest = low.saturating_sub(BOUNDARIES_NEARBY);
    while first > furthest
        && witness.contents(&[steps[first.min(steps.len() - 1)]])?[0]
            .xids
            .is_none()
    {
        first -= 1;
    }
    let near = &steps[first.saturating_sub(1)..steps.len().min(low + BOUNDARIES_NEARBY)];
    for pair in near.windows(2) {
        if pair[0].number + 1 == pair[1].number
            && let Some(found) = find_in(witness, pair, |event| end_of_transaction(event, xid))?
        {
            return Ok(vec![found]);
        }
    }
    Ok(Vec::new())
}

/// As many pairs of segments are walked for a record that lies across their boundary.
const BOUNDARIES_NEARBY: usize = 16;

/// Bytes of a restore point's record: its header, that of its data, and `xl_restore_point` (`access/xlog_internal.h`).
const RESTORE_POINT_BYTES: u64 = 24 + 2 + 72;

/// All restore points of that name, in order.
fn find_points(witness: &dyn Witness, steps: &[&Step], name: &str) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    let is_it = |event: &WalEvent| match event {
        WalEvent::RestorePoint {
            name: other,
            time,
            begin,
            end,
        } if other == name => Some(Found {
            begin: *begin,
            end: *end,
            time: *time,
        }),
        _ => None,
    };
    let mut before: Option<(&Step, WalContents)> = None;
    for chunk in steps.chunks(FRAMES_AT_ONCE) {
        let contents = witness.contents(chunk)?;
        for (step, contents) in chunk.iter().zip(contents) {
            let across = before
                .as_ref()
                .is_some_and(|(last, end)| may_lie_across(last, end, step, &contents));
            let named = contents
                .restore_points
                .iter()
                .any(|point| point.name == name);
            if across || named || contents.more_restore_points {
                let pair = before.iter().map(|(step, _)| *step).filter(|_| across);
                let walked: Vec<&Step> = pair.chain([*step]).collect();
                witness.walk(&walked, &mut |event| {
                    found.extend(is_it(event));
                    true
                })?;
            }
            before = Some((step, contents));
        }
    }
    found.sort_by_key(|found: &Found| found.begin);
    found.dedup();
    Ok(found)
}

/// Whether a record as long as a restore point's may lead from one segment into the next.
fn may_lie_across(last: &Step, end: &WalContents, next: &Step, contents: &WalContents) -> bool {
    let (Some(from), Some(to), None) = (end.end, contents.first_record, end.switch) else {
        return last.number + 1 == next.number && end.switch.is_none();
    };
    // With alignment and the header of the segment's first page there is a little more between.
    last.number + 1 == next.number
        && (RESTORE_POINT_BYTES..RESTORE_POINT_BYTES + 96).contains(&(to - from))
}

fn find_in(
    witness: &dyn Witness,
    steps: &[&Step],
    is_it: impl Fn(&WalEvent) -> Option<Found>,
) -> Result<Option<Found>> {
    let mut found = None;
    witness.walk(steps, &mut |event| {
        found = is_it(event);
        found.is_none()
    })?;
    Ok(found)
}

#[cfg(test)]
#[path = "aim_tests.rs"]
mod tests;
