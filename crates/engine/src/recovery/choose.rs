//! The choice of a backup and a timeline, from what the repository holds, before anything is written.

use leeward_pgformat::{Lsn, TimelineId};
use leeward_repository::catalog::{Backups, Cluster};
use leeward_repository::summary::BackupSummary;

use super::damaged::{damage_note, listed, none_can_be_read, passed_over_note, unread_and_newer};
use super::explain::{self, TargetError};
use super::path::RecoveryPath;
use super::replay::{Replay, ReplayGoal, ReplayOutcome, Requirements, WalEnd, replay};
use super::sources::{BackupRange, RecoverySources, segment_size_of};
use super::target::{RecoveryOptions, RecoveryTarget, StopPoint, TargetAction, TimelineSelection};
use super::times::all_before;
use super::unknown_timelines::{UnknownTimelines, push_history};
use super::wal_reader::{ArchiveWalReader, WalReader};
use crate::error::{Error, ErrorKind, Result};

/// The backup that was chosen, and how the server recovers.
#[derive(Debug)]
pub(crate) struct RecoveryPlan {
    pub summary: BackupSummary,
    pub route: RecoveryRoute,
    /// What the server needs beyond the files of the backup.
    pub requirements: Requirements,
    /// Timelines that have WAL and no history file: their numbers must not be taken again.
    pub reserved_timelines: Vec<TimelineId>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// How the server recovers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RecoveryRoute {
    /// From the backup's own WAL, which lies in `pg_wal`: no repository is needed.
    OwnWal {
        /// Where recovery stops; `None` at the end of that WAL.
        stop: Option<StopPoint>,
    },
    /// Through `restore_command`.
    Archive {
        timeline: TimelineSetting,
        /// Where recovery stops; `None` at the end of WAL.
        stop: Option<StopPoint>,
        /// Where the WAL ends that it recovers from.
        end: Lsn,
        /// The first segment that is missing behind that, if there is WAL behind it.
        ends_before: Option<String>,
    },
    /// Through `restore_command`, and on from a primary.
    Standby,
}

/// The value of `recovery_target_timeline`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimelineSetting {
    /// `current`: the backup's own, of which no history file is held.
    Current(TimelineId),
    /// A number; the server finds its history file.
    Number(TimelineId),
}

impl TimelineSetting {
    pub(crate) const fn id(self) -> TimelineId {
        match self {
            Self::Current(id) | Self::Number(id) => id,
        }
    }
}

/// Chooses a backup of `cluster`: the one of that id or unique prefix, else whichever fits.
///
/// # Errors
/// [`ErrorKind::Failed`] and what can be reached instead, where the target cannot; [`ErrorKind::Damaged`] where only damaged
/// backups lead there.
pub(crate) fn choose(
    cluster: &Cluster,
    backup: Option<&str>,
    options: &RecoveryOptions,
) -> Result<RecoveryPlan> {
    let named = match backup {
        None | Some("latest") => None,
        Some(name) => Some(cluster.resolve(name)?),
    };
    let Backups { sound, unreadable } = cluster.backups()?;
    let Some(newest) = sound.last() else {
        return Err(none_can_be_read(cluster, &unreadable));
    };
    let size = segment_size_of(named.as_ref().unwrap_or(newest))?;
    let sources = RecoverySources::read(cluster, &sound, size)?;
    let choosing = Choosing {
        sources: &sources,
        reader: ArchiveWalReader::new(cluster, size, newest.system_identifier),
        options,
        named: named.as_ref().map(BackupRange::of),
        is_any_unreadable: !unreadable.is_empty(),
    };
    let choice = choosing.run()?;
    let summary = sound
        .into_iter()
        .find(|summary| summary.id == choice.backup.id)
        .ok_or_else(|| Error::failed("the backups changed while they were looked at"))?;
    let mut notes = choice.notes;
    if named.is_none() {
        notes.splice(0..0, unread_and_newer(&unreadable, &summary));
    }
    notes.splice(0..0, damage_note(&summary));
    Ok(RecoveryPlan {
        summary,
        route: choice.route,
        requirements: choice.requirements,
        reserved_timelines: choice.reserved_timelines,
        notes,
    })
}

/// What recovery of a backup from its own WAL alone needs.
///
/// # Errors
/// [`ErrorKind::Damaged`] where it does not become consistent.
pub(crate) fn own_requirements(cluster: &Cluster, summary: &BackupSummary) -> Result<Requirements> {
    let size = segment_size_of(summary)?;
    let sources = RecoverySources::of_backup(cluster, summary, size)?;
    let backup = BackupRange::of(summary);
    let path = RecoveryPath::new(&sources, backup.stop_timeline);
    let reader = ArchiveWalReader::new(cluster, size, summary.system_identifier);
    let target = RecoveryTarget::End;
    let goal = ReplayGoal {
        target: &target,
        inclusive: true,
        until: None,
    };
    let replayed = replay(&path, &reader, &backup, goal)?;
    match &replayed.outcome {
        ReplayOutcome::NeverConsistent(end) => Err(explain::never_consistent(&backup, end)),
        _ => Ok(replayed.requirements),
    }
}

struct Choosing<'a> {
    sources: &'a RecoverySources,
    reader: ArchiveWalReader<'a>,
    options: &'a RecoveryOptions,
    named: Option<BackupRange>,
    /// A backup cannot be read, so it cannot be proven to the server where WAL ends: it is told.
    is_any_unreadable: bool,
}

/// What was chosen, as far as it is known without the backup's summary.
struct Choice {
    backup: BackupRange,
    route: RecoveryRoute,
    requirements: Requirements,
    reserved_timelines: Vec<TimelineId>,
    notes: Vec<String>,
}

impl Choosing<'_> {
    fn run(&self) -> Result<Choice> {
        if self.options.standby.is_some() {
            return self.standby();
        }
        match &self.options.target {
            RecoveryTarget::End => self.end(),
            RecoveryTarget::Immediate => self.immediate(),
            _ => self.target(),
        }
    }

    fn goal(&self) -> ReplayGoal<'_> {
        ReplayGoal {
            target: &self.options.target,
            inclusive: self.options.inclusive,
            until: None,
        }
    }

    fn replay(&self, path: &RecoveryPath, backup: &BackupRange) -> Result<Replay> {
        replay(path, &self.reader, backup, self.goal())
    }

    /// Newer timelines than the path's, of which it is not known where they come from.
    fn unknown_timelines(&self, path: &RecoveryPath) -> Option<UnknownTimelines> {
        UnknownTimelines::beyond(self.sources, path.timeline())
    }

    /// The path of a backup, or of whichever fits.
    fn path(&self, backup: Option<&BackupRange>) -> Result<RecoveryPath> {
        let newest = self.sources.backups.last();
        let current = backup
            .or(newest)
            .map_or(TimelineId(1), |backup| backup.stop_timeline);
        let timeline = match self.options.timeline {
            TimelineSelection::Latest => match backup {
                Some(backup) => self.sources.newest_timeline_of(backup),
                None => self.sources.newest_timeline().unwrap_or(current),
            },
            TimelineSelection::Current => current,
            TimelineSelection::Number(timeline) => {
                if let Some(problem) = self.sources.damaged_histories.get(&timeline) {
                    return Err(Error::new(
                        ErrorKind::Damaged,
                        format!("recovery cannot follow timeline {timeline}: {problem}"),
                    )
                    .hint(push_history(timeline)));
                }
                if !self.sources.histories.contains_key(&timeline) {
                    return Err(self.unknown_timeline(timeline));
                }
                timeline
            }
        };
        let path = RecoveryPath::new(self.sources, timeline);
        if let Some(backup) = backup
            && !backup.lies_on(&path.history)
        {
            return Err(self.not_an_ancestor(backup, &path));
        }
        Ok(path)
    }

    fn unknown_timeline(&self, timeline: TimelineId) -> Error {
        let known: Vec<String> = self
            .sources
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

    fn not_an_ancestor(&self, backup: &BackupRange, path: &RecoveryPath) -> Error {
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
            .backups(self.sources)
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
            .sources
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

    /// The backups on a path that may be chosen, newest first: the one that was named, or those without damaged pages.
    fn candidates<'b>(&'b self, path: &RecoveryPath) -> Vec<&'b BackupRange> {
        match &self.named {
            Some(named) => vec![named],
            None => self.unnamed(path, false),
        }
    }

    /// The backups on a path that have damaged pages, or that have none; newest first.
    fn unnamed<'b>(&'b self, path: &RecoveryPath, damaged: bool) -> Vec<&'b BackupRange> {
        let mut backups = path.backups(self.sources);
        backups.reverse();
        backups.retain(|backup| backup.is_damaged == damaged);
        backups
    }

    /// Says that a newer backup would have led to `stop` too, and was not taken.
    fn passed_over(&self, path: &RecoveryPath, chosen: &BackupRange, stop: Lsn) -> Option<String> {
        if self.named.is_some() {
            return None;
        }
        self.unnamed(path, true)
            .into_iter()
            .find(|damaged| damaged.stop > chosen.stop && damaged.stop <= stop)
            .map(|damaged| passed_over_note(&damaged.id))
    }

    /// Recovery to the end of WAL, from the newest backup that leads there.
    fn end(&self) -> Result<Choice> {
        let path = self.path(self.named.as_ref())?;
        let unknown = self.unknown_timelines(&path);
        if self.options.timeline == TimelineSelection::Latest
            && let Some(unknown) = &unknown
        {
            return Err(unknown.refusal());
        }
        let on_path = path.backups(self.sources);
        let Some(newest) = self.named.as_ref().or(on_path.last().copied()) else {
            return Err(self.nothing_leads_to(&path));
        };
        let mut backup = newest;
        let mut notes = Vec::new();
        if self.named.is_none() && newest.is_damaged {
            // An older one leads to the same end if no WAL is missing between them.
            let end = path.reach(newest.start);
            let sound = self
                .candidates(&path)
                .into_iter()
                .find(|backup| path.reach(backup.start) == end);
            backup = sound.ok_or_else(|| self.only_damaged(&path, newest))?;
            notes.extend(self.passed_over(&path, backup, newest.stop));
        }
        let replayed = self.replay(&path, backup)?;
        match &replayed.outcome {
            ReplayOutcome::Ends(WalEnd::NoMore) => {}
            ReplayOutcome::Ends(end) | ReplayOutcome::NeverConsistent(end) => {
                return Err(explain::cannot_reach_the_end(
                    &path,
                    &self.reader,
                    backup,
                    &replayed,
                    end,
                )?);
            }
            ReplayOutcome::Stops(_) | ReplayOutcome::StopsTooEarly(_) => {}
        }
        notes.extend(self.other_timelines(&path));
        let (reserved_timelines, note) = self.reserved(&path, unknown.as_ref());
        notes.extend(note);
        let route = if replayed.end <= backup.stop && !self.has_newer_timeline(backup) {
            RecoveryRoute::OwnWal { stop: None }
        } else {
            self.archive(&path, backup, None, replayed.end)?
        };
        Ok(Choice {
            backup: backup.clone(),
            route,
            requirements: replayed.requirements,
            reserved_timelines,
            notes,
        })
    }

    /// Recovery to where the backup is consistent.
    fn immediate(&self) -> Result<Choice> {
        let path = self.path(self.named.as_ref())?;
        let backup = self.newest_sound(&path)?;
        let (reserved_timelines, note) =
            self.reserved(&path, self.unknown_timelines(&path).as_ref());
        let mut notes: Vec<String> = self
            .passed_over(&path, backup, Lsn(u64::MAX))
            .into_iter()
            .collect();
        notes.extend(note);
        let replayed = self.replay(&path, backup)?;
        let stop = match replayed.outcome {
            ReplayOutcome::Stops(stop) => Some(stop),
            // Nothing follows that could be replayed too much.
            ReplayOutcome::Ends(WalEnd::NoMore) if self.options.action == TargetAction::Promote => {
                None
            }
            ReplayOutcome::Ends(_) => {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!(
                        "the server would not stop where backup {} is consistent: no WAL is held that begins after {}",
                        backup.id, backup.consistent
                    ),
                )
                .hint(format!("Backup {} opens there with --target-action promote.", backup.id)));
            }
            ReplayOutcome::NeverConsistent(end) => {
                return Err(explain::never_consistent(backup, &end));
            }
            ReplayOutcome::StopsTooEarly(_) => None,
        };
        let own = self.options.action == TargetAction::Promote
            && !self.has_newer_timeline(backup)
            && replayed.end <= backup.stop;
        let route = if own {
            RecoveryRoute::OwnWal {
                stop: stop.filter(|stop| stop.lsn < backup.stop),
            }
        } else {
            self.archive(&path, backup, stop, replayed.end)?
        };
        Ok(Choice {
            backup: backup.clone(),
            route,
            requirements: replayed.requirements,
            reserved_timelines,
            notes,
        })
    }

    /// The newest backup that a standby can begin with.
    fn standby(&self) -> Result<Choice> {
        let path = self.path(self.named.as_ref())?;
        let backup = self.newest_sound(&path)?;
        let end = RecoveryTarget::End;
        let goal = ReplayGoal {
            target: &end,
            ..self.goal()
        };
        let replayed = replay(&path, &self.reader, backup, goal)?;
        let (reserved_timelines, note) =
            self.reserved(&path, self.unknown_timelines(&path).as_ref());
        let mut notes: Vec<String> = self
            .passed_over(&path, backup, Lsn(u64::MAX))
            .into_iter()
            .collect();
        notes.extend(note);
        match &replayed.outcome {
            ReplayOutcome::Ends(
                end @ (WalEnd::Missing(_) | WalEnd::Broken(..) | WalEnd::Damaged(..)),
            ) => {
                notes.push(format!(
                    "{} The standby gets no further than that unless its primary still has this WAL.",
                    explain::describe_end(end, path.size())
                ));
            }
            ReplayOutcome::Ends(WalEnd::MinimalWal(_)) => {
                return Err(explain::cannot_reach_the_end(
                    &path,
                    &self.reader,
                    backup,
                    &replayed,
                    match &replayed.outcome {
                        ReplayOutcome::Ends(end) => end,
                        _ => &WalEnd::NoMore,
                    },
                )?);
            }
            ReplayOutcome::NeverConsistent(end) => {
                return Err(explain::never_consistent(backup, end));
            }
            _ => {}
        }
        Ok(Choice {
            backup: backup.clone(),
            route: RecoveryRoute::Standby,
            requirements: replayed.requirements,
            reserved_timelines,
            notes,
        })
    }

    /// The newest backup from which recovery stops at the target.
    fn target(&self) -> Result<Choice> {
        let path = self.path(self.named.as_ref())?;
        if path.backups(self.sources).is_empty() {
            return Err(self.nothing_leads_to(&path));
        }
        let unknown = self.unknown_timelines(&path);
        if let Some((backup, replayed)) = self.resolve(&path, &self.candidates(&path))? {
            let (stop, end) = match &replayed.outcome {
                ReplayOutcome::Stops(stop) => (Some(*stop), replayed.end),
                _ => (None, replayed.end),
            };
            let reached = stop.map_or(end, |stop| stop.lsn);
            let mut notes: Vec<String> = self
                .passed_over(&path, &backup, reached)
                .into_iter()
                .collect();
            notes.extend(self.ambiguous(&path, &backup, stop)?);
            if stop.is_none() {
                notes.push(format!(
                    "LSN {end} is where the archived WAL ends, and no record begins there at which the server could stop: it recovers everything, without a recovery target, and opens."
                ));
            }
            let (reserved_timelines, note) = self.reserved(&path, unknown.as_ref());
            notes.extend(note);
            return Ok(Choice {
                route: self.archive(&path, &backup, stop, end)?,
                backup,
                requirements: replayed.requirements,
                reserved_timelines,
                notes,
            });
        }
        if self.named.is_none() {
            let damaged = self.unnamed(&path, true);
            if let Some((leads, _)) = self.resolve(&path, &damaged)? {
                return Err(self.only_damaged(&path, &leads));
            }
        }
        let refusal = TargetError {
            sources: self.sources,
            path: &path,
            reader: &self.reader,
            target: &self.options.target,
            inclusive: self.options.inclusive,
            named: self.named.as_ref(),
        };
        let error = refusal.explain(self.other_timelines_that_reach(&path)?)?;
        Err(match unknown {
            Some(unknown) => {
                let known = error.advice().unwrap_or_default();
                let hint = format!(
                    "{known} {} {}",
                    unknown.note(),
                    push_history(unknown.newest())
                );
                error.hint(hint.trim_start())
            }
            None => error,
        })
    }

    /// The first of these backups of `path` from which recovery reaches the target, and its replay.
    fn resolve(
        &self,
        path: &RecoveryPath,
        backups: &[&BackupRange],
    ) -> Result<Option<(BackupRange, Replay)>> {
        for backup in backups {
            if self.is_before(path, backup)? {
                continue;
            }
            let replayed = self.replay(path, backup)?;
            match &replayed.outcome {
                ReplayOutcome::Stops(_) => return Ok(Some(((*backup).clone(), replayed))),
                // An older backup meets the same end.
                ReplayOutcome::Ends(WalEnd::NoMore) => {
                    let at_end = matches!(self.options.target, RecoveryTarget::Lsn(lsn) if lsn == replayed.end);
                    if at_end {
                        return Ok(Some(((*backup).clone(), replayed)));
                    }
                    if matches!(
                        self.options.target,
                        RecoveryTarget::Time(_) | RecoveryTarget::Lsn(_)
                    ) {
                        return Ok(None);
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Whether the target lies before what the backup holds, so that recovery from it would bring too much.
    fn is_before(&self, path: &RecoveryPath, backup: &BackupRange) -> Result<bool> {
        Ok(match &self.options.target {
            RecoveryTarget::Lsn(lsn) => *lsn < backup.start,
            RecoveryTarget::Time(time) => {
                !all_before(path, &self.reader, backup, *time, self.options.inclusive)?
            }
            _ => false,
        })
    }

    /// Other timelines on which recovery reaches the target.
    fn other_timelines_that_reach(&self, path: &RecoveryPath) -> Result<Vec<TimelineId>> {
        let mut found = Vec::new();
        for timeline in self.sources.timelines_with_wal() {
            if timeline == path.timeline() {
                continue;
            }
            let other = RecoveryPath::new(self.sources, timeline);
            let leads = self
                .named
                .as_ref()
                .is_none_or(|named| named.lies_on(&other.history));
            if leads && self.resolve(&other, &self.candidates(&other))?.is_some() {
                found.push(timeline);
            }
        }
        Ok(found)
    }

    /// Restore points may share a name; recovery stops at the first it meets.
    fn ambiguous(
        &self,
        path: &RecoveryPath,
        backup: &BackupRange,
        stop: Option<StopPoint>,
    ) -> Result<Vec<String>> {
        let (RecoveryTarget::RestorePoint(name), Some(stop)) = (&self.options.target, stop) else {
            return Ok(Vec::new());
        };
        let behind = path.segments(stop.lsn, path.reach(backup.start));
        let again = self
            .reader
            .summaries(&behind)?
            .iter()
            .flat_map(|summary| &summary.restore_points)
            .any(|point| point.name == *name && point.lsn > stop.lsn);
        Ok(if again {
            vec![format!(
                "There are several restore points of that name behind backup {}; recovery stops at the first. Name a time or an LSN to stop at another.",
                backup.id
            )]
        } else {
            Vec::new()
        })
    }

    fn other_timelines(&self, path: &RecoveryPath) -> Vec<String> {
        let empty = self.sources.histories.keys().rfind(|timeline| {
            **timeline > path.timeline()
                && !self.sources.timelines_with_wal().contains(timeline)
                && self.sources.history(**timeline).contains(path.timeline())
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

    /// The timelines whose numbers are taken although their history files are missing, and what is said of newer ones. The
    /// server asks for those of older ones on its way, and a server told that there is none could take the number.
    fn reserved(
        &self,
        path: &RecoveryPath,
        newer: Option<&UnknownTimelines>,
    ) -> (Vec<TimelineId>, Option<String>) {
        let numbers = self.sources.without_history();
        (
            numbers
                .filter(|number| *number != path.timeline())
                .collect(),
            newer.map(UnknownTimelines::note),
        )
    }

    /// Whether the archive knows a timeline that a server recovered without it might take for its own.
    fn has_newer_timeline(&self, backup: &BackupRange) -> bool {
        self.sources
            .archive
            .timelines
            .keys()
            .any(|timeline| *timeline > backup.stop_timeline)
    }

    fn archive(
        &self,
        path: &RecoveryPath,
        backup: &BackupRange,
        stop: Option<StopPoint>,
        end: Lsn,
    ) -> Result<RecoveryRoute> {
        let held_to = path.reach(backup.start);
        let size = path.size();
        // A segment that is held in part is still given.
        let behind = || {
            path.expected(size.segment_number_before(held_to) + 1)
                .name(size)
        };
        Ok(RecoveryRoute::Archive {
            timeline: self.timeline(path, backup)?,
            stop,
            end,
            ends_before: (path.missing_at(held_to).is_some() || self.is_any_unreadable)
                .then(behind),
        })
    }

    fn timeline(&self, path: &RecoveryPath, backup: &BackupRange) -> Result<TimelineSetting> {
        let id = path.timeline();
        if id.0 == 1 || self.sources.recorded.contains(&id) {
            Ok(TimelineSetting::Number(id))
        } else if id == backup.stop_timeline {
            Ok(TimelineSetting::Current(id))
        } else {
            Err(Error::failed(format!(
                "the history file of timeline {id} is not held, and the server needs it to go there"
            ))
            .hint(push_history(id)))
        }
    }

    fn nothing_leads_to(&self, path: &RecoveryPath) -> Error {
        Error::failed(format!("no backup leads to timeline {}", path.timeline()))
            .hint("Name another timeline with --target-timeline, or take a backup.")
    }

    /// The backup that was named, or the newest without damage.
    fn newest_sound<'b>(&'b self, path: &RecoveryPath) -> Result<&'b BackupRange> {
        match self.candidates(path).first() {
            Some(backup) => Ok(backup),
            None => Err(match self.unnamed(path, true).first() {
                Some(damaged) => self.only_damaged(path, damaged),
                None => self.nothing_leads_to(path),
            }),
        }
    }

    /// A damaged backup leads where no sound one does. All damaged ones are listed.
    fn only_damaged(&self, path: &RecoveryPath, leads: &BackupRange) -> Error {
        let id = &leads.id;
        let mut hints = vec![format!(
            "\"leeward restore {id}\" with the same options restores it with its damage; \"leeward show {id}\" lists that."
        )];
        let others = self.unnamed(path, true);
        let others = others.iter().map(|one| &one.id).filter(|one| *one != id);
        let others = listed(others);
        if !others.is_empty() {
            hints.push(format!("Damaged as well: {others}."));
        }
        if let Some(sound) = self.candidates(path).first() {
            hints.push(format!(
                "The newest sound backup is {}, with WAL up to {}.",
                sound.id,
                path.reach(sound.start)
            ));
        }
        Error::new(
            ErrorKind::Damaged,
            format!("backup {id} has damaged pages, and no sound backup leads to the same point"),
        )
        .hint(hints.join(" "))
    }
}
