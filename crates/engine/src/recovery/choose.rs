//! The choice of a backup and a timeline, from what the repository holds, before anything is written.

use std::path::PathBuf;

use leeward_pgformat::wal_segment::history_file_name;
use leeward_pgformat::{Lsn, TimelineId};
use leeward_repository::RepositoryError;
use leeward_repository::backup_id::BackupId;
use leeward_repository::catalog::{Backups, Cluster};
use leeward_repository::summary::BackupSummary;

use super::explain::{self, TargetError};
use super::path::RecoveryPath;
use super::replay::{Replay, ReplayGoal, ReplayOutcome, Requirements, WalEnd, replay};
use super::sources::{BackupRange, RecoverySources, segment_size_of};
use super::target::{RecoveryOptions, RecoveryTarget, StopPoint, TargetAction, TimelineSelection};
use super::times::all_before;
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

/// Chooses a backup to be taken by itself: the one of that id or unique prefix, or for `latest` the newest sound one.
/// Returns what a person should know as well.
///
/// # Errors
/// [`ErrorKind::Damaged`] where none is sound; those of the store.
pub(crate) fn choose_alone(
    cluster: &Cluster,
    wanted: &str,
) -> Result<(BackupSummary, Vec<String>)> {
    if wanted != "latest" {
        let summary = cluster.resolve(wanted)?;
        let notes = damage_note(&summary).into_iter().collect();
        return Ok((summary, notes));
    }
    let Backups {
        mut sound,
        unreadable,
    } = cluster.backups()?;
    if sound.is_empty() {
        return Err(none_can_be_read(cluster, &unreadable));
    }
    let Some(at) = sound.iter().rposition(|one| damage(one).is_none()) else {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!(
                "all backups have damaged pages or missing files: {}",
                listed(sound.iter().rev().map(|one| &one.id))
            ),
        )
        .hint("Name one to take it with its damage; \"leeward show\" lists that."));
    };
    let passed_over = sound.split_off(at + 1);
    let Some(summary) = sound.pop() else {
        return Err(none_can_be_read(cluster, &unreadable));
    };
    let mut notes = unread_and_newer(&unreadable, &summary);
    notes.extend(
        passed_over
            .iter()
            .map(|damaged| passed_over_note(&damaged.id)),
    );
    Ok((summary, notes))
}

fn none_can_be_read(cluster: &Cluster, unreadable: &[(BackupId, RepositoryError)]) -> Error {
    match unreadable {
        [(id, error)] => Error::new(
            ErrorKind::Damaged,
            format!("backup {id} cannot be read: {error}"),
        ),
        [.., (newest, error)] => Error::new(
            ErrorKind::Damaged,
            format!(
                "none of the backups can be read: {}",
                listed(unreadable.iter().map(|(id, _)| id))
            ),
        )
        .hint(format!("Of {newest}: {error}.")),
        // Says that there is none.
        [] => cluster.resolve("latest").map_or_else(Error::from, |_| {
            Error::failed("the backups changed while they were looked at")
        }),
    }
}

fn unread_and_newer(
    unreadable: &[(BackupId, RepositoryError)],
    chosen: &BackupSummary,
) -> Vec<String> {
    unreadable
        .iter()
        .filter(|(id, _)| id.as_str() > chosen.id.as_str())
        .map(|(id, error)| {
            format!("Backup {id} is newer and was passed over, since it cannot be read: {error}.")
        })
        .collect()
}

fn damage_note(summary: &BackupSummary) -> Option<String> {
    damage(summary).map(|damage| {
        format!(
            "DAMAGED: backup {} has {damage}, and so has what is made of it: \"leeward show {}\" lists what.",
            summary.id, summary.id
        )
    })
}

fn passed_over_note(damaged: &BackupId) -> String {
    format!(
        "Backup {damaged} is newer and was passed over, since it has damaged pages or missing files: \"leeward show {damaged}\" lists them."
    )
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
            let damaged = || self.only_damaged(&path, &self.unnamed(&path, true));
            backup = sound.ok_or_else(damaged)?;
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
        let candidates = self.candidates(&path);
        let Some(backup) = candidates.first().copied() else {
            return Err(self.no_sound_backup(&path));
        };
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
        let Some(backup) = self.candidates(&path).first().copied() else {
            return Err(self.no_sound_backup(&path));
        };
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
            if self.resolve(&path, &damaged)?.is_some() {
                return Err(self.only_damaged(&path, &damaged));
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
            ends_before: path.missing_at(held_to).map(|_| behind()),
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

    fn no_sound_backup(&self, path: &RecoveryPath) -> Error {
        let damaged = self.unnamed(path, true);
        if damaged.is_empty() {
            self.nothing_leads_to(path)
        } else {
            self.only_damaged(path, &damaged)
        }
    }

    /// Every backup that would do has damaged pages; they are given newest first.
    fn only_damaged(&self, path: &RecoveryPath, damaged: &[&BackupRange]) -> Error {
        let message = match damaged {
            [one] => format!(
                "backup {} has damaged pages, and no sound backup leads to the same point",
                one.id
            ),
            several => format!(
                "all backups that lead there have damaged pages: {}",
                listed(several.iter().map(|one| &one.id))
            ),
        };
        let error = Error::new(ErrorKind::Damaged, message);
        let by_name = damaged.first().map_or_else(String::new, |newest| {
            format!(
                "\"leeward restore {}\" restores it with its damage; \"leeward show {}\" lists that.",
                newest.id, newest.id
            )
        });
        error.hint(match self.candidates(path).first() {
            Some(sound) => format!(
                "{by_name} The newest sound backup is {}, with WAL up to {}.",
                sound.id,
                path.reach(sound.start)
            ),
            None => by_name,
        })
    }
}

/// What is damaged in a backup, in words; `None` when nothing is.
fn damage(summary: &BackupSummary) -> Option<String> {
    let pages: usize = summary.damaged.iter().map(|one| one.blocks.len()).sum();
    let files = summary.damaged.iter().filter(|one| one.missing).count();
    match (pages, files) {
        (0, 0) => None,
        (_, 0) => Some(format!("{pages} damaged pages")),
        (0, _) => Some(format!("{files} missing files")),
        _ => Some(format!("{pages} damaged pages and {files} missing files")),
    }
}

fn listed<'a>(ids: impl Iterator<Item = &'a BackupId>) -> String {
    let ids: Vec<String> = ids.map(ToString::to_string).collect();
    ids.join(", ")
}

/// How the history file of a timeline gets into the repository.
fn push_history(timeline: TimelineId) -> String {
    let file = PathBuf::from("DATA_DIRECTORY/pg_wal").join(history_file_name(timeline));
    format!(
        "From a server on that timeline: \"leeward wal push {}\".",
        file.display()
    )
}

/// Timelines with WAL that are newer than the one that recovery follows, and whose history files are not held: they may be
/// where the cluster went on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct UnknownTimelines {
    /// Ascending.
    numbers: Vec<TimelineId>,
    followed: TimelineId,
}

impl UnknownTimelines {
    fn beyond(sources: &RecoverySources, followed: TimelineId) -> Option<Self> {
        let numbers: Vec<TimelineId> = sources
            .without_history()
            .filter(|timeline| *timeline > followed)
            .collect();
        (!numbers.is_empty()).then_some(Self { numbers, followed })
    }

    fn newest(&self) -> TimelineId {
        self.numbers.last().copied().unwrap_or(self.followed)
    }

    fn note(&self) -> String {
        format!(
            "WAL of timeline {} is held, but not its history file \"{}\", so that it is not known where it comes from: recovery follows timeline {}.",
            self.newest(),
            history_file_name(self.newest()),
            self.followed
        )
    }

    fn refusal(&self) -> Error {
        Error::failed(format!(
            "the WAL of timeline {} would be left out: it is held, but not its history file \"{}\", which says where it comes from",
            self.newest(),
            history_file_name(self.newest())
        ))
        .hint(format!(
            "{} Or --target-timeline {} restores without it.",
            push_history(self.newest()),
            self.followed
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use leeward_pgformat::{Lsn, WalSegmentSize};

    use super::*;
    use crate::recovery::path::tests::{World, sources};

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
            UnknownTimelines::beyond(
                &sources(world, WalSegmentSize::DEFAULT),
                TimelineId(timeline),
            )
        };
        assert_eq!(by(&world, 3), None, "timeline 2 is older");
        world.histories.clear();
        let passed = by(&world, 1).expect("timelines 2 and 3");
        assert_eq!(passed.newest(), TimelineId(3));
        assert!(passed.note().ends_with("recovery follows timeline 1."));
        let refusal = passed.refusal();
        assert!(refusal.to_string().contains("timeline 3"), "{refusal}");
        let hint = refusal.advice().unwrap_or_default();
        assert!(hint.contains("wal push DATA_DIRECTORY/pg_wal/00000003.history"));
        assert!(hint.contains("--target-timeline 1"));
    }
}
