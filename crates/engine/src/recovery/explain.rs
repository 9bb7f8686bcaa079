//! Why recovery does not get somewhere, and the nearest points that it does get to.

use leeward_pgformat::{Lsn, TimelineId, TimestampTz, TransactionId, WalEvent, WalSegmentSize};

use super::path::{MissingWal, RecoveryPath};
use super::replay::{Replay, ReplayGoal, ReplayOutcome, WalEnd, replay};
use super::sources::{BackupRange, RecoverySources};
use super::target::RecoveryTarget;
use super::times::{all_before, checkpoint_time};
use super::wal_reader::WalReader;
use super::windows::{Window, windows};
use crate::error::{Error, ErrorKind, Result};
use crate::moment::utc;

/// A commit or rollback, or a restore point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    begin: Lsn,
    end: Lsn,
    time: TimestampTz,
}

/// The last commit or rollback of a path in `[from, end)`.
fn last_transaction(
    path: &RecoveryPath,
    reader: &dyn WalReader,
    from: Lsn,
    end: Lsn,
) -> Result<Option<Found>> {
    let segments = path.segments(from, end);
    for at in (0..segments.len()).rev() {
        let summary = reader.summaries(&segments[at..=at])?.swap_remove(0);
        if summary.last_time.is_none() && summary.tail.is_none() {
            continue;
        }
        // With the one before, for a record that leads from there.
        let first = if summary.tail.is_some() {
            at.saturating_sub(1)
        } else {
            at
        };
        let mut last = None;
        reader.walk(&segments[first..=at], None, &mut |event| {
            if let WalEvent::Commit {
                time,
                begin,
                end: after,
                ..
            }
            | WalEvent::Abort {
                time,
                begin,
                end: after,
                ..
            } = event
                && *begin >= from
                && *after <= end
            {
                last = Some(Found {
                    begin: *begin,
                    end: *after,
                    time: *time,
                });
            }
        })?;
        if last.is_some() {
            return Ok(last);
        }
    }
    Ok(None)
}

/// Returns the options of the last target before `end`, where recovery ends for the reason `why`.
fn last_target(
    path: &RecoveryPath,
    reader: &dyn WalReader,
    from: Lsn,
    end: Lsn,
    why: &WalEnd,
) -> Result<Option<String>> {
    // The record there can be read, and the server stops before it.
    if matches!(why, WalEnd::MinimalWal(_)) {
        return Ok(Some(format!("--target-lsn {end} --target-exclusive")));
    }
    for segment in path.segments(from, end).into_iter().rev() {
        let summary = reader.summaries(&[segment])?.swap_remove(0);
        // A summary may tell of records behind damage; the walk ends before it.
        let last = match summary.last_record {
            Some(last) if last >= end => {
                let walked = reader.walk(&[segment], None, &mut |_| {})?;
                walked.contents.last_record
            }
            last => last,
        };
        if let Some(last) = last {
            let last = Some(last).filter(|last| *last >= from && *last < end);
            return Ok(last.map(|last| format!("--target-lsn {last}")));
        }
    }
    Ok(None)
}

/// Describes the end of a window, with the options that lead there.
fn describe_window_end(
    path: &RecoveryPath,
    reader: &dyn WalReader,
    backup: &BackupRange,
    end: Lsn,
    why: &WalEnd,
) -> Result<String> {
    let moment = last_transaction(path, reader, backup.start, end)?.map_or_else(
        || format!("LSN {end}"),
        |last| format!("{} (LSN {end})", utc(last.time)),
    );
    let options = last_target(path, reader, backup.consistent, end, why)?;
    Ok(match options {
        Some(options) => format!("{moment}, with {options}"),
        None => format!(
            "{moment}, with \"leeward restore {} --target-immediate\"",
            backup.id
        ),
    })
}

/// Describes a backup as the first point that can be reached.
fn describe_window_begin(
    path: &RecoveryPath,
    reader: &dyn WalReader,
    backup: &BackupRange,
) -> Result<String> {
    let moment = last_transaction(path, reader, backup.start, backup.consistent)?
        .map_or_else(String::new, |last| format!("{} (", utc(last.time)));
    let close = if moment.is_empty() { "" } else { ")" };
    Ok(format!(
        "{moment}LSN {}{close}, where backup {} is consistent: \"leeward restore {} --target-immediate\"",
        backup.consistent, backup.id, backup.id
    ))
}

/// Describes missing segments.
pub(crate) fn describe_missing(missing: &MissingWal, size: WalSegmentSize) -> String {
    if missing.count() == 1 {
        format!("WAL segment {} is missing", missing.first.name(size))
    } else {
        format!(
            "WAL segments {} to {} ({}) are missing",
            missing.first.name(size),
            missing.last.name(size),
            missing.count()
        )
    }
}

/// Says why recovery goes no further, as a sentence.
pub(crate) fn describe_end(end: &WalEnd, size: WalSegmentSize) -> String {
    format!("{}.", capitalized(&describe_cause(end, size)))
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

/// Says why recovery goes no further, for the middle of a sentence.
pub(crate) fn describe_cause(end: &WalEnd, size: WalSegmentSize) -> String {
    match end {
        WalEnd::NoMore | WalEnd::Limit => "the archived WAL ends there".to_owned(),
        WalEnd::Missing(missing) => format!(
            "{}, from {} to {}",
            describe_missing(missing, size),
            missing.begin,
            missing.end
        ),
        WalEnd::Broken(lsn, problem) => {
            format!("the WAL does not continue at {lsn}: {problem}")
        }
        WalEnd::Damaged(lsn, problem) => {
            format!("the stored WAL is damaged from {lsn} on: {problem}")
        }
        WalEnd::MinimalWal(lsn) => format!(
            "the server was set to wal_level = minimal at {lsn}, and WAL written so cannot be recovered from"
        ),
    }
}

/// There is WAL behind a backup, and it cannot be replayed to its end.
pub(super) fn cannot_reach_the_end(
    path: &RecoveryPath,
    reader: &dyn WalReader,
    backup: &BackupRange,
    replayed: &Replay,
    end: &WalEnd,
) -> Result<Error> {
    if let ReplayOutcome::NeverConsistent(end) = &replayed.outcome {
        return Ok(never_consistent(backup, end));
    }
    let alone = format!(
        "\"leeward restore {} --target-immediate\" restores the backup alone.",
        backup.id
    );
    let ways = if replayed.end > backup.stop {
        format!(
            "The last point before that is {}; {alone}",
            describe_window_end(path, reader, backup, replayed.end, end)?
        )
    } else {
        capitalized(&alone)
    };
    let bring = match end {
        WalEnd::Missing(_) => "If a server still has them, push them. ",
        _ => "",
    };
    let kind = match end {
        WalEnd::Damaged(..) => ErrorKind::Damaged,
        _ => ErrorKind::Failed,
    };
    Ok(Error::new(
        kind,
        format!(
            "backup {} cannot be recovered to the end of the archived WAL: {}",
            backup.id,
            describe_cause(end, path.size()),
        ),
    )
    .hint(format!(
        "{bring}{ways} A backup taken after that leads further."
    )))
}

/// Recovery of a backup does not even come to where it is consistent.
pub(super) fn never_consistent(backup: &BackupRange, end: &WalEnd) -> Error {
    let why = match end {
        WalEnd::Broken(lsn, problem) => format!("the WAL does not continue at {lsn}: {problem}"),
        WalEnd::Damaged(lsn, problem) => {
            format!("its WAL is damaged from {lsn} on: {problem}")
        }
        WalEnd::MinimalWal(lsn) => format!("wal_level was set to minimal at {lsn}"),
        WalEnd::NoMore | WalEnd::Limit | WalEnd::Missing(_) => {
            format!("its WAL does not reach to {}", backup.consistent)
        }
    };
    Error::new(
        ErrorKind::Damaged,
        format!("backup {} cannot become consistent: {why}", backup.id),
    )
    .hint("Restore another backup.")
}

/// A target that cannot be reached.
pub(super) struct TargetError<'a> {
    pub sources: &'a RecoverySources,
    pub path: &'a RecoveryPath,
    pub reader: &'a dyn WalReader,
    pub target: &'a RecoveryTarget,
    pub inclusive: bool,
    /// The backup that was asked for by its id.
    pub named: Option<&'a BackupRange>,
}

/// The place of a target among the windows.
enum Place {
    /// Before the first one.
    Before,
    /// Behind the end of one, and before the next.
    Behind(usize),
}

impl TargetError<'_> {
    fn replay(&self, backup: &BackupRange) -> Result<ReplayOutcome> {
        let goal = ReplayGoal {
            target: self.target,
            inclusive: self.inclusive,
            until: None,
        };
        Ok(replay(self.path, self.reader, backup, goal)?.outcome)
    }

    /// Whether everything that the backup holds is known to lie before the target.
    fn is_after(&self, backup: &BackupRange) -> Result<bool> {
        match self.target {
            RecoveryTarget::Time(time) => {
                all_before(self.path, self.reader, backup, *time, self.inclusive)
            }
            _ => Ok(true),
        }
    }

    /// Says why, and what can be reached instead; `elsewhere` are timelines on which it can.
    pub(super) fn explain(&self, elsewhere: Vec<TimelineId>) -> Result<Error> {
        if let Some(named) = self.named
            && let Some(other) = self.another(named)?
        {
            let why = match self.replay(named)? {
                _ if !self.is_after(named)? => {
                    format!("it was begun later, at LSN {}", named.start)
                }
                ReplayOutcome::StopsTooEarly(_) => format!(
                    "recovery cannot stop there before the backup is consistent, at {}",
                    named.consistent
                ),
                _ => format!(
                    "the WAL behind it reaches to {}",
                    self.path.reach(named.start)
                ),
            };
            return Ok(Error::failed(format!(
                "backup {} cannot be recovered to {}: {why}",
                named.id, self.target
            ))
            .hint(format!(
                "Backup {} can; without a backup's name the newest that can is taken.",
                other.id
            )));
        }
        let windows = windows(self.path, self.reader, self.sources)?;
        let (problem, mut hints) = match self.place(&windows)? {
            Some((Place::Before, what)) => self.before_all(&windows, what)?,
            Some((Place::Behind(at), what)) => self.behind(&windows, at, what)?,
            None => self.nowhere(&windows)?,
        };
        if let Some(timeline) = elsewhere.last() {
            hints.insert(
                0,
                format!("Timeline {timeline} leads there: --target-timeline {timeline}."),
            );
        }
        Ok(Error::failed(problem).hint(hints.join(" ")))
    }

    /// A sound backup that would do.
    fn another(&self, named: &BackupRange) -> Result<Option<BackupRange>> {
        for backup in self.path.backups(self.sources).into_iter().rev() {
            if backup != named
                && !backup.is_damaged
                && self.is_after(backup)?
                && matches!(self.replay(backup)?, ReplayOutcome::Stops(_))
            {
                return Ok(Some(backup.clone()));
            }
        }
        Ok(None)
    }

    /// The first record that the target names, anywhere in the WAL of the path.
    fn found(&self) -> Result<Option<Found>> {
        let Some(held) = self.path.bounds() else {
            return Ok(None);
        };
        let segments = self.path.segments(held.start, held.end);
        for (at, segment) in segments.iter().enumerate() {
            let summary = self.reader.summaries(&[segment])?.swap_remove(0);
            let within = match self.target {
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
                _ => return Ok(None),
            };
            let follows = at > 0 && segments[at - 1].number + 1 == segment.number;
            if !(within || follows && summary.tail.is_some()) {
                continue;
            }
            let first = if follows && summary.tail.is_some() {
                at - 1
            } else {
                at
            };
            let mut found = None;
            self.reader
                .walk(&segments[first..=at], None, &mut |event| {
                    if found.is_none() {
                        found = self.named_by_target(event);
                    }
                })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn named_by_target(&self, event: &WalEvent) -> Option<Found> {
        let time = match (self.target, event) {
            (
                RecoveryTarget::Transaction(wanted),
                WalEvent::Commit { xid, time, .. } | WalEvent::Abort { xid, time, .. },
            ) if wanted == xid => *time,
            (RecoveryTarget::RestorePoint(wanted), WalEvent::RestorePoint { name, time, .. })
                if wanted == name =>
            {
                *time
            }
            _ => return None,
        };
        Some(Found {
            begin: event.begin(),
            end: event.end(),
            time,
        })
    }

    /// The place of the target, and the target in words; `None` where nothing is known of it.
    fn place(&self, windows: &[Window]) -> Result<Option<(Place, String)>> {
        let target = self.target;
        let by_lsn = |lsn: Lsn| match windows
            .iter()
            .rposition(|window| window.backup.consistent <= lsn)
        {
            Some(at) => Place::Behind(at),
            None => Place::Before,
        };
        Ok(match target {
            RecoveryTarget::Lsn(lsn) => Some((by_lsn(*lsn), target.to_string())),
            RecoveryTarget::Time(time) => {
                let mut place = Place::Before;
                for (at, window) in windows.iter().enumerate() {
                    let backup = &window.backup;
                    let stops_early =
                        matches!(self.replay(backup)?, ReplayOutcome::StopsTooEarly(_));
                    if !stops_early
                        && all_before(self.path, self.reader, backup, *time, self.inclusive)?
                    {
                        place = Place::Behind(at);
                    }
                }
                Some((place, target.to_string()))
            }
            _ => self.found()?.map(|found| {
                let what = format!("{target}, at {} (LSN {})", utc(found.time), found.end);
                (by_lsn(found.begin), what)
            }),
        })
    }

    fn before_all(&self, windows: &[Window], what: String) -> Result<(String, Vec<String>)> {
        let (path, reader) = (self.path, self.reader);
        let Some(first) = windows.first() else {
            return Ok((
                format!("no backup leads to {what}"),
                vec!["Take a backup.".to_owned()],
            ));
        };
        let backup = &first.backup;
        let nearest = describe_window_begin(path, reader, backup)?;
        let mut hints = vec![format!("Nearest after it: {nearest}.")];
        if let (RecoveryTarget::Time(_), Some(checkpoint)) =
            (self.target, checkpoint_time(path, reader, backup)?)
        {
            hints.push(format!(
                "That backup begins with a checkpoint of {}; what was so before it only an older backup could tell.",
                utc(checkpoint)
            ));
        }
        Ok((
            format!(
                "{what} lies before backup {} is consistent, the oldest on the way to timeline {}",
                backup.id,
                path.timeline()
            ),
            hints,
        ))
    }

    fn behind(&self, windows: &[Window], at: usize, what: String) -> Result<(String, Vec<String>)> {
        let (path, reader) = (self.path, self.reader);
        let window = &windows[at];
        let end = describe_window_end(path, reader, &window.backup, window.end, &window.why)?;
        let mut hints = vec![format!("Nearest before it: {end}.")];
        if let Some(next) = windows.get(at + 1) {
            hints.push(format!(
                "Nearest after it: {}.",
                describe_window_begin(path, reader, &next.backup)?
            ));
        }
        if !matches!(window.why, WalEnd::NoMore) {
            return Ok((
                format!(
                    "{what} cannot be reached on timeline {}: {}",
                    path.timeline(),
                    describe_cause(&window.why, path.size())
                ),
                hints,
            ));
        }
        let last =
            last_transaction(path, reader, window.backup.start, window.end)?.map(|last| last.time);
        if matches!(self.target, RecoveryTarget::Time(_)) {
            hints = vec![describe_last_time(last, window.end)];
        }
        let problem = match (self.target, last) {
            (RecoveryTarget::Time(_), Some(last)) => format!(
                "{what} lies behind the last commit or rollback that is held of timeline {}, at {}",
                path.timeline(),
                utc(last)
            ),
            _ => format!(
                "{what} cannot be reached: the WAL that is held of timeline {} ends at {}",
                path.timeline(),
                window.end
            ),
        };
        Ok((problem, hints))
    }

    /// Nothing of that name is in the WAL.
    fn nowhere(&self, windows: &[Window]) -> Result<(String, Vec<String>)> {
        let (path, reader) = (self.path, self.reader);
        let problem = match self.target {
            RecoveryTarget::Transaction(TransactionId(xid)) => format!(
                "no commit or rollback of transaction {xid} is in the WAL that is held on the way to timeline {}",
                path.timeline()
            ),
            target => format!(
                "no {target} is in the WAL that is held on the way to timeline {}",
                path.timeline()
            ),
        };
        let mut hints = Vec::new();
        if matches!(self.target, RecoveryTarget::Transaction(_)) {
            hints.push(
                "A subtransaction's id will not do, nor that of a transaction that wrote nothing."
                    .to_owned(),
            );
        }
        for window in windows {
            let from = describe_window_begin(path, reader, &window.backup)?;
            let to = describe_window_end(path, reader, &window.backup, window.end, &window.why)?;
            hints.push(format!("It holds: from {from}, to {to}."));
        }
        Ok((problem, hints))
    }
}

/// What to ask for instead of a time that no commit follows.
fn describe_last_time(last: Option<TimestampTz>, end: Lsn) -> String {
    let everything = format!("Leave --target-time out to recover everything, to LSN {end}.");
    match last {
        Some(last) => format!(
            "{everything} The server stops at a time only when it meets a later commit or rollback: the last time it can stop at is \"{}\".",
            utc(TimestampTz(last.0 - 1))
        ),
        None => everything,
    }
}
