//! Which backup is restored, along which timeline, and whether recovery will get where it is to stop. All of it is decided
//! from what the repository holds, before anything is written.

use leeward_pgformat::TimelineId;
use leeward_pgformat::wal_segment::history_file_name;
use leeward_repository::catalog::Cluster;
use leeward_repository::summary::BackupSummary;

use super::aim::{Aim, Sight, Stop, Verdict};
use super::unreachable::{Refusal, hole_behind};
use super::witness::Repository;
use super::{Prospect, RestoreOptions, TargetAction};
use crate::error::{Error, ErrorKind, Result};
use crate::wal::coverage::{Coverage, OwnWal, segment_size_of};
use crate::wal::path::Path;

/// Which timeline recovery follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimelineWish {
    /// The newest that descends from the backup.
    #[default]
    Latest,
    /// The one that the backup was taken on.
    Current,
    /// This one.
    Number(TimelineId),
}

/// What was chosen.
#[derive(Debug)]
pub(super) struct Choice {
    pub summary: BackupSummary,
    pub route: Route,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// How the server will recover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// From what comes with the backup, which lies in `pg_wal`: no repository is needed.
    Own,
    /// Through `restore_command`.
    Archive {
        timeline: Timeline,
        /// Where recovery stops; `None` at the end of WAL.
        stop: Option<Stop>,
        /// The first segment of a hole behind that.
        ends_before: Option<String>,
    },
    /// Through `restore_command`, and on from a primary.
    Standby,
}

impl Route {
    /// What the server will do, for the caller.
    pub(super) const fn prospect(&self) -> Prospect {
        match self {
            Self::Own => Prospect::OwnWal,
            Self::Archive { timeline, stop, .. } => Prospect::Archive {
                timeline: timeline.id(),
                stop: *stop,
            },
            Self::Standby => Prospect::Standby,
        }
    }
}

/// The value of `recovery_target_timeline`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timeline {
    /// `current`: the backup's own, of which no history file is held.
    Current(TimelineId),
    /// A number; the server finds its history file.
    Number(TimelineId),
}

impl Timeline {
    pub(super) const fn id(self) -> TimelineId {
        match self {
            Self::Current(id) | Self::Number(id) => id,
        }
    }
}

/// Chooses a backup for `options`.
pub(super) fn choose(cluster: &Cluster, options: &RestoreOptions) -> Result<Choice> {
    let recovery = &options.recovery;
    let named = match options.backup.as_deref() {
        None | Some("latest") => None,
        Some(name) => Some(cluster.resolve(name)?),
    };
    let aimed = !matches!(recovery.aim, Aim::End | Aim::Immediate);
    // Behind the newest backup no other brings WAL.
    let backups = if aimed || named.is_some() || recovery.standby.is_some() {
        let backups = cluster.backups()?;
        if let (true, Some((id, error))) = (backups.sound.is_empty(), backups.unreadable.first()) {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("backup {id} cannot be read: {error}"),
            ));
        }
        backups.sound
    } else {
        vec![match &named {
            Some(summary) => summary.clone(),
            None => cluster.resolve("latest")?,
        }]
    };
    let Some(newest) = backups.last() else {
        // Says that there is none.
        return Err(cluster.resolve("latest").map_or_else(Error::from, |_| {
            Error::failed("the backups changed while they were looked at")
        }));
    };
    let size = segment_size_of(newest)?;
    let coverage = Coverage::read(cluster, &backups, size)?;
    let choosing = Choosing {
        coverage: &coverage,
        witness: Repository::new(cluster, size),
        options,
        named: named.as_ref().map(OwnWal::of),
    };
    let (own, route, notes) = choosing.run(&OwnWal::of(newest))?;
    let summary = backups
        .into_iter()
        .find(|summary| summary.id == own.id)
        .ok_or_else(|| Error::failed("the backups changed while they were looked at"))?;
    Ok(Choice {
        summary,
        route,
        notes,
    })
}

struct Choosing<'a> {
    coverage: &'a Coverage,
    witness: Repository<'a>,
    options: &'a RestoreOptions,
    named: Option<OwnWal>,
}

impl Choosing<'_> {
    fn run(&self, newest: &OwnWal) -> Result<(OwnWal, Route, Vec<String>)> {
        let recovery = &self.options.recovery;
        if recovery.standby.is_some() {
            return self.standby(newest);
        }
        match &recovery.aim {
            Aim::End => self.end(self.named.as_ref().unwrap_or(newest)),
            Aim::Immediate => self.immediate(self.named.as_ref().unwrap_or(newest)),
            _ => self.aimed(newest),
        }
    }

    /// Newer timelines than the path's of which it is not known where they come from.
    fn passed_over(&self, path: &Path) -> Option<PassedOver> {
        PassedOver::by(self.coverage, path.timeline())
    }

    fn note_passed_over(&self, path: &Path) -> Option<String> {
        self.passed_over(path).map(|passed| passed.note())
    }

    /// The path for a backup, or for whichever fits.
    fn path(&self, backup: Option<&OwnWal>, newest: &OwnWal) -> Result<Path> {
        let timeline = match self.options.recovery.timeline {
            TimelineWish::Latest => match backup {
                Some(backup) => self.coverage.newest_timeline_of(backup),
                None => self
                    .coverage
                    .newest_timeline()
                    .unwrap_or(newest.stop_timeline),
            },
            TimelineWish::Current => backup.unwrap_or(newest).stop_timeline,
            TimelineWish::Number(timeline) => {
                if !self.coverage.histories.contains_key(&timeline) {
                    return Err(self.unknown_timeline(timeline));
                }
                timeline
            }
        };
        let path = Path::new(self.coverage, timeline);
        if let Some(backup) = backup
            && !backup.lies_on(&path.history)
        {
            return Err(self.not_an_ancestor(backup, &path));
        }
        Ok(path)
    }

    fn unknown_timeline(&self, timeline: TimelineId) -> Error {
        let known: Vec<String> = self
            .coverage
            .histories
            .keys()
            .map(ToString::to_string)
            .collect();
        Error::new(
            ErrorKind::Usage,
            format!("the repository knows no timeline {timeline}"),
        )
        .hint(format!("It knows: {}.", known.join(", ")))
    }

    fn not_an_ancestor(&self, backup: &OwnWal, path: &Path) -> Error {
        let left = path
            .history
            .switch_lsn(backup.stop_timeline)
            .map(|lsn| {
                format!(
                    ", which left timeline {} at {lsn}, and the backup is consistent at {}",
                    backup.stop_timeline, backup.stop
                )
            })
            .unwrap_or_default();
        let others: Vec<String> = path
            .backups(self.coverage)
            .iter()
            .map(|backup| backup.id.to_string())
            .collect();
        let error = Error::new(
            ErrorKind::Usage,
            format!(
                "backup {} does not lead to timeline {}{left}",
                backup.id,
                path.timeline()
            ),
        );
        if self
            .coverage
            .without_history()
            .any(|timeline| timeline == path.timeline())
        {
            error.hint(format!(
                "Its history file is not held, so nothing is known to lead there. {}",
                push_history(path.timeline())
            ))
        } else if others.is_empty() {
            error.hint("No backup leads there.")
        } else {
            error.hint(format!("These do: {}.", others.join(", ")))
        }
    }

    /// Recovery to the end of WAL.
    fn end(&self, backup: &OwnWal) -> Result<(OwnWal, Route, Vec<String>)> {
        let path = self.path(Some(backup), backup)?;
        let passed = self.passed_over(&path);
        if self.options.recovery.timeline == TimelineWish::Latest
            && let Some(passed) = passed
        {
            return Err(passed.refusal());
        }
        let end = path.reach(backup.start);
        if let Some(hole) = path.hole_at(end) {
            return Err(hole_behind(&path, &self.witness, backup, end, &hole)?);
        }
        let mut notes = self.other_timelines(&path);
        notes.extend(passed.map(|passed| passed.note()));
        if end <= backup.stop && !self.has_newer_timeline(backup) {
            return Ok((backup.clone(), Route::Own, notes));
        }
        Ok((backup.clone(), self.archive(&path, backup, None)?, notes))
    }

    /// Recovery to where the backup is consistent.
    fn immediate(&self, backup: &OwnWal) -> Result<(OwnWal, Route, Vec<String>)> {
        let recovery = &self.options.recovery;
        let path = self.path(Some(backup), backup)?;
        let notes = self.note_passed_over(&path).into_iter().collect();
        let promotes = recovery.action == TargetAction::Promote;
        if promotes && !self.has_newer_timeline(backup) {
            // Its own WAL ends just there.
            return Ok((backup.clone(), Route::Own, notes));
        }
        let sight = Sight::new(&path, &self.witness, &recovery.aim, true, backup.start)?;
        match sight.judge(backup)? {
            Verdict::Reaches(stop) => {
                let route = self.archive(&path, backup, Some(stop))?;
                Ok((backup.clone(), route, notes))
            }
            // Nothing follows that could be replayed too much.
            _ if promotes => {
                let hole = path.hole_at(path.reach(backup.start));
                let route = match hole {
                    Some(_) => Route::Own,
                    None => self.archive(&path, backup, None)?,
                };
                Ok((backup.clone(), route, notes))
            }
            _ => Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "the server would not stop where backup {} is consistent: no WAL is held that begins after {}",
                    backup.id, backup.stop
                ),
            )
            .hint("With --target-action promote it opens there.")),
        }
    }

    /// The newest backup that a standby can begin with.
    fn standby(&self, newest: &OwnWal) -> Result<(OwnWal, Route, Vec<String>)> {
        let path = self.path(self.named.as_ref(), newest)?;
        let backup = match &self.named {
            Some(named) => named.clone(),
            None => path
                .backups(self.coverage)
                .last()
                .copied()
                .unwrap_or(newest)
                .clone(),
        };
        let mut notes: Vec<String> = self.note_passed_over(&path).into_iter().collect();
        let end = path.reach(backup.start);
        if let Some(hole) = path.hole_at(end) {
            notes.push(format!(
                "The WAL archive has a hole from {} to {}: the standby gets no further than that unless its primary still has this WAL.",
                hole.begin, hole.end
            ));
        }
        Ok((backup, Route::Standby, notes))
    }

    /// The newest backup from which recovery stops where it should.
    fn aimed(&self, newest: &OwnWal) -> Result<(OwnWal, Route, Vec<String>)> {
        let path = self.path(self.named.as_ref(), newest)?;
        let fitting = path.backups(self.coverage);
        let Some(oldest) = fitting.iter().map(|backup| backup.start).min() else {
            return Err(
                Error::failed(format!("no backup leads to timeline {}", path.timeline()))
                    .hint("Name another timeline with --target-timeline."),
            );
        };
        let recovery = &self.options.recovery;
        let sight = Sight::new(
            &path,
            &self.witness,
            &recovery.aim,
            recovery.inclusive,
            oldest,
        )?;
        let candidates = match &self.named {
            Some(named) => vec![named],
            None => fitting.iter().rev().copied().collect(),
        };
        for backup in candidates {
            if let Verdict::Reaches(stop) = sight.judge(backup)? {
                let route = self.archive(&path, backup, Some(stop))?;
                let mut notes = self.ambiguous(&sight, backup);
                notes.extend(self.note_passed_over(&path));
                return Ok((backup.clone(), route, notes));
            }
        }
        let refusal = Refusal {
            coverage: self.coverage,
            sight: &sight,
            named: self.named.as_ref(),
        };
        let error = refusal.explain(self.elsewhere(&path)?)?;
        Err(match self.passed_over(&path) {
            Some(passed) => {
                let known = error.advice().unwrap_or_default();
                let hint = format!("{known} {} {}", passed.note(), push_history(passed.newest));
                error.hint(hint.trim_start())
            }
            None => error,
        })
    }

    /// Other timelines on which recovery would get there.
    fn elsewhere(&self, path: &Path) -> Result<Vec<TimelineId>> {
        let recovery = &self.options.recovery;
        let mut found = Vec::new();
        for timeline in self.coverage.timelines_with_wal() {
            if timeline == path.timeline() {
                continue;
            }
            let other = Path::new(self.coverage, timeline);
            let backups = other.backups(self.coverage);
            let Some(oldest) = backups.iter().map(|backup| backup.start).min() else {
                continue;
            };
            let sight = Sight::new(
                &other,
                &self.witness,
                &recovery.aim,
                recovery.inclusive,
                oldest,
            )?;
            for backup in backups.iter().rev() {
                let wanted = self.named.as_ref().is_none_or(|named| named == *backup);
                if wanted && matches!(sight.judge(backup)?, Verdict::Reaches(_)) {
                    found.push(timeline);
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Restore points may share a name; recovery stops at the first it meets.
    fn ambiguous(&self, sight: &Sight<'_>, backup: &OwnWal) -> Vec<String> {
        let met = sight
            .found()
            .iter()
            .filter(|found| found.begin >= backup.start)
            .count();
        if met < 2 {
            return Vec::new();
        }
        vec![format!(
            "There are {met} restore points of that name behind backup {}; recovery stops at the first. Name a moment or an LSN to stop at another.",
            backup.id
        )]
    }

    fn other_timelines(&self, path: &Path) -> Vec<String> {
        let empty = self.coverage.histories.keys().rfind(|timeline| {
            **timeline > path.timeline()
                && !self.coverage.timelines_with_wal().contains(timeline)
                && self.coverage.history(**timeline).contains(path.timeline())
        });
        empty
            .map(|timeline| {
                format!(
                    "Timeline {timeline} exists, but none of its WAL is held: recovery follows timeline {}.",
                    path.timeline()
                )
            })
            .into_iter()
            .collect()
    }

    /// Whether the archive knows a timeline that a server recovered without it might take for its own.
    fn has_newer_timeline(&self, backup: &OwnWal) -> bool {
        self.coverage
            .archive
            .timelines
            .keys()
            .any(|timeline| *timeline > backup.stop_timeline)
    }

    fn archive(&self, path: &Path, backup: &OwnWal, stop: Option<Stop>) -> Result<Route> {
        let end = path.reach(backup.start);
        let size = path.size();
        // A segment that is held in part is still given.
        let behind = || {
            path.expected(size.segment_number_before(end) + 1)
                .name(size)
        };
        Ok(Route::Archive {
            timeline: self.timeline(path, backup)?,
            stop,
            ends_before: path.hole_at(end).map(|_| behind()),
        })
    }

    fn timeline(&self, path: &Path, backup: &OwnWal) -> Result<Timeline> {
        let id = path.timeline();
        if id.0 == 1 || self.coverage.recorded.contains(&id) {
            Ok(Timeline::Number(id))
        } else if id == backup.stop_timeline {
            Ok(Timeline::Current(id))
        } else {
            Err(Error::failed(format!(
                "the history file of timeline {id} is not held, and the server needs it to go there"
            ))
            .hint(push_history(id)))
        }
    }
}

/// How the history file of a timeline gets into the repository.
fn push_history(timeline: TimelineId) -> String {
    format!(
        "From a server on that timeline: \"leeward wal push DATA_DIRECTORY/pg_wal/{}\".",
        history_file_name(timeline)
    )
}

/// A timeline with WAL that is newer than the one that recovery follows, and whose history file is not held: it may be
/// where the cluster went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PassedOver {
    newest: TimelineId,
    followed: TimelineId,
}

impl PassedOver {
    /// What recovery along `followed` passes over.
    fn by(coverage: &Coverage, followed: TimelineId) -> Option<Self> {
        let newest = coverage
            .without_history()
            .rfind(|timeline| *timeline > followed)?;
        Some(Self { newest, followed })
    }

    fn note(self) -> String {
        let Self { newest, followed } = self;
        format!(
            "WAL of timeline {newest} is held, but not its history file \"{}\", so that it is not known where it comes from: recovery follows timeline {followed}.",
            history_file_name(newest)
        )
    }

    fn refusal(self) -> Error {
        let Self { newest, followed } = self;
        Error::failed(format!(
            "the WAL of timeline {newest} would be left out: it is held, but not its history file \"{}\", which says where it comes from",
            history_file_name(newest)
        ))
        .hint(format!(
            "{} Or --target-timeline {followed} restores without it.",
            push_history(newest)
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use leeward_pgformat::{Lsn, WalSegmentSize};

    use super::*;
    use crate::wal::path::tests::{World, coverage};

    #[test]
    fn a_newer_timeline_without_a_history_is_passed_over() {
        let mut world = World {
            timelines: BTreeMap::from([
                (1, (vec![3, 4], vec![])),
                (2, (vec![5], vec![])),
                (3, (vec![6], vec![])),
            ]),
            histories: BTreeMap::from([(3, vec![(1, Lsn(0x500_0000))])]),
            ..World::default()
        };
        let by = |world: &World, timeline| {
            PassedOver::by(
                &coverage(world, WalSegmentSize::DEFAULT),
                TimelineId(timeline),
            )
        };
        assert_eq!(by(&world, 3), None, "timeline 2 is older");
        world.histories.clear();
        let passed = by(&world, 1).expect("timelines 2 and 3");
        assert_eq!(passed.newest, TimelineId(3));
        assert!(passed.note().ends_with("recovery follows timeline 1."));
        let refusal = passed.refusal();
        assert!(refusal.to_string().contains("timeline 3"), "{refusal}");
        let hint = refusal.advice().unwrap_or_default();
        assert!(hint.contains("wal push DATA_DIRECTORY/pg_wal/00000003.history"));
        assert!(hint.contains("--target-timeline 1"));
    }
}
