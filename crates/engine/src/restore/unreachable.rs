//! Why recovery cannot get somewhere: which WAL is missing, and the nearest moments that can be reached.

use leeward_pgformat::{Lsn, TimelineId, TimestampTz, TransactionId, WalSegmentSize};

use super::aim::{Aim, Sight, Verdict, last_moment};
use super::witness::Witness;
use crate::error::{Error, Result};
use crate::moment::utc;
use crate::wal::coverage::{Coverage, OwnWal};
use crate::wal::path::{Hole, Path};

/// WAL without a hole behind at least one backup: recovery stops anywhere from where that is consistent to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// The oldest backup in it.
    pub backup: OwnWal,
    /// How many backups lie in it.
    pub backups: usize,
    /// Where its WAL ends.
    pub end: Lsn,
}

/// The windows of a path, oldest first.
pub(crate) fn windows(path: &Path, coverage: &Coverage) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    for backup in path.backups(coverage) {
        let end = path.reach(backup.start);
        match windows.last_mut() {
            Some(last) if last.end == end => last.backups += 1,
            _ if end >= backup.stop => windows.push(Window {
                backup: backup.clone(),
                backups: 1,
                end,
            }),
            _ => {}
        }
    }
    windows
}

/// The beginning of the last whole record before `end`: where an LSN can still be aimed at.
fn last_record(path: &Path, witness: &dyn Witness, from: Lsn, end: Lsn) -> Result<Option<Lsn>> {
    for step in path.steps(from, end).into_iter().rev() {
        let contents = witness.contents(&[step])?;
        if let Some(last) = contents.iter().find_map(|contents| contents.last_record) {
            return Ok(Some(last).filter(|last| *last >= from));
        }
    }
    Ok(None)
}

/// The end of a window in words, with the option that leads there.
fn told_end(path: &Path, witness: &dyn Witness, from: Lsn, end: Lsn) -> Result<String> {
    let moment = last_moment(path, witness, from, end)?.map_or_else(
        || format!("LSN {end}"),
        |last| format!("{} (LSN {end})", utc(last.time)),
    );
    Ok(match last_record(path, witness, from, end)? {
        Some(record) => format!("{moment}, with --target-lsn {record}"),
        None => format!("{moment}, with --target-immediate"),
    })
}

/// A backup that is the first that can be reached, in words.
fn told_beginning(path: &Path, witness: &dyn Witness, backup: &OwnWal) -> Result<String> {
    let moment = last_moment(path, witness, backup.start, backup.stop)?
        .map_or_else(String::new, |last| format!("{} (", utc(last.time)));
    let close = if moment.is_empty() { "" } else { ")" };
    Ok(format!(
        "{moment}LSN {}{close}, where backup {} is consistent: \"leeward restore {} --target-immediate\"",
        backup.stop, backup.id, backup.id
    ))
}

/// The missing segments in words.
pub(crate) fn told_hole(hole: &Hole, size: WalSegmentSize) -> String {
    if hole.segments() == 1 {
        format!("WAL segment {} is missing", hole.first.name(size))
    } else {
        format!(
            "WAL segments {} to {} ({}) are missing",
            hole.first.name(size),
            hole.last.name(size),
            hole.segments()
        )
    }
}

/// There is WAL behind a backup, and it cannot be replayed to its end.
pub(super) fn hole_behind(
    path: &Path,
    witness: &dyn Witness,
    backup: &OwnWal,
    end: Lsn,
    hole: &Hole,
) -> Result<Error> {
    let ways = if end > backup.stop {
        format!(
            "The last moment before the hole is {}; backup {} alone is restored with --target-immediate.",
            told_end(path, witness, backup.start, end)?,
            backup.id
        )
    } else {
        format!(
            "Backup {} alone is restored with --target-immediate.",
            backup.id
        )
    };
    Ok(Error::failed(format!(
        "backup {} cannot be recovered to the end of the WAL that is held: {}, from {} to {}",
        backup.id,
        told_hole(hole, path.size()),
        hole.begin,
        hole.end
    ))
    .hint(format!(
        "If a server still has them, push them. {ways} A later backup would lie behind the hole."
    )))
}

/// An aim that cannot be reached.
pub(super) struct Refusal<'a> {
    pub coverage: &'a Coverage,
    pub sight: &'a Sight<'a>,
    /// The backup that was asked for by name.
    pub named: Option<&'a OwnWal>,
}

/// Where an aim lies, as seen from the windows.
enum Place {
    /// Before the first one.
    Before,
    /// Behind the end of one, and before the next.
    Behind(usize),
}

impl Refusal<'_> {
    /// Says why, and what can be reached instead; `elsewhere` are timelines on which it can.
    pub(super) fn explain(&self, elsewhere: Vec<TimelineId>) -> Result<Error> {
        let path = self.sight.path;
        let aim = self.sight.aim;
        if let Some(named) = self.named
            && let Some(other) = self.another(named)?
        {
            let why = match self.sight.judge(named)? {
                Verdict::TooNew => format!(
                    "recovery cannot stop there before the backup is consistent, at {}",
                    named.stop
                ),
                _ => format!("the WAL behind it reaches to {}", path.reach(named.start)),
            };
            return Ok(Error::failed(format!(
                "backup {} cannot be recovered to {aim}: {why}",
                named.id
            ))
            .hint(format!(
                "Backup {} can; without a backup's name the newest that can is taken.",
                other.id
            )));
        }
        let windows = windows(path, self.coverage);
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

    /// A backup that would do.
    fn another(&self, named: &OwnWal) -> Result<Option<OwnWal>> {
        for backup in self.sight.path.backups(self.coverage).into_iter().rev() {
            if backup != named && matches!(self.sight.judge(backup)?, Verdict::Reaches(_)) {
                return Ok(Some(backup.clone()));
            }
        }
        Ok(None)
    }

    /// Where the aim lies, and what it is in words; `None` where nothing is known of it.
    fn place(&self, windows: &[Window]) -> Result<Option<(Place, String)>> {
        let aim = self.sight.aim;
        let by_lsn = |lsn: Lsn| match windows.iter().rposition(|window| window.backup.stop <= lsn) {
            Some(at) => Place::Behind(at),
            None => Place::Before,
        };
        Ok(match aim {
            Aim::Lsn(lsn) => Some((by_lsn(*lsn), aim.to_string())),
            Aim::Time(time) => {
                let mut place = Place::Before;
                for (at, window) in windows.iter().enumerate() {
                    let backup = &window.backup;
                    let consistent = self.sight.last_moment(backup.start, backup.stop)?;
                    if consistent.is_none_or(|last| last.time <= *time) {
                        place = Place::Behind(at);
                    }
                }
                Some((place, aim.to_string()))
            }
            _ => self.sight.found().first().map(|found| {
                let what = format!("{aim}, at {} (LSN {})", utc(found.time), found.end);
                (by_lsn(found.begin), what)
            }),
        })
    }

    fn before_all(&self, windows: &[Window], what: String) -> Result<(String, Vec<String>)> {
        let path = self.sight.path;
        let Some(first) = windows.first() else {
            return Ok((
                format!("no backup leads to {what}"),
                vec!["Take a backup.".to_owned()],
            ));
        };
        let backup = &first.backup;
        Ok((
            format!(
                "{what} lies before backup {} is consistent, the oldest on the way to timeline {}",
                backup.id,
                path.timeline()
            ),
            vec![format!(
                "Nearest after it: {}.",
                told_beginning(path, self.sight.witness, backup)?
            )],
        ))
    }

    fn behind(&self, windows: &[Window], at: usize, what: String) -> Result<(String, Vec<String>)> {
        let (path, witness) = (self.sight.path, self.sight.witness);
        let window = &windows[at];
        let end = told_end(path, witness, window.backup.start, window.end)?;
        let mut hints = vec![format!("Nearest before it: {end}.")];
        let hole = path.hole_at(window.end);
        if let Some(next) = windows.get(at + 1) {
            hints.push(format!(
                "Nearest after it: {}.",
                told_beginning(path, witness, &next.backup)?
            ));
        }
        let problem = match hole {
            Some(hole) => format!(
                "{what} cannot be reached on timeline {}: {}, from {} to {}",
                path.timeline(),
                told_hole(&hole, path.size()),
                hole.begin,
                hole.end
            ),
            None => {
                let last = self
                    .sight
                    .last_moment(window.backup.start, window.end)?
                    .map(|last| last.time);
                if matches!(self.sight.aim, Aim::Time(_)) {
                    hints.insert(0, end_of_time(last, window.end));
                    hints.truncate(1);
                }
                match (self.sight.aim, last) {
                    (Aim::Time(_), Some(last)) => format!(
                        "{what} lies behind the last commit or rollback that is held of timeline {}, at {}",
                        path.timeline(),
                        utc(last)
                    ),
                    _ => format!(
                        "{what} cannot be reached: the WAL that is held of timeline {} ends at {}",
                        path.timeline(),
                        window.end
                    ),
                }
            }
        };
        Ok((problem, hints))
    }

    /// Nothing of that name is in the WAL.
    fn nowhere(&self, windows: &[Window]) -> Result<(String, Vec<String>)> {
        let path = self.sight.path;
        let problem = match self.sight.aim {
            Aim::Transaction(TransactionId(xid)) => format!(
                "no commit or rollback of transaction {xid} is in the WAL that is held on the way to timeline {}",
                path.timeline()
            ),
            aim => format!(
                "no {aim} is in the WAL that is held on the way to timeline {}",
                path.timeline()
            ),
        };
        let mut hints = Vec::new();
        if matches!(self.sight.aim, Aim::Transaction(_)) {
            hints.push(
                "A subtransaction's id will not do, nor that of a transaction that wrote nothing."
                    .to_owned(),
            );
        }
        for window in windows {
            let from = told_beginning(path, self.sight.witness, &window.backup)?;
            let to = told_end(path, self.sight.witness, window.backup.start, window.end)?;
            hints.push(format!("It holds: from {from}, to {to}."));
        }
        Ok((problem, hints))
    }
}

/// What to ask for instead of a time that nothing follows: the server stops at a time only before a later commit.
fn end_of_time(last: Option<TimestampTz>, end: Lsn) -> String {
    let everything = format!("Leave --target-time out to recover everything, to LSN {end}.");
    match last {
        Some(last) => format!(
            "{everything} The server stops at a time only when it meets a later commit or rollback: the last time it can stop at is \"{}\".",
            utc(TimestampTz(last.0 - 1))
        ),
        None => everything,
    }
}
