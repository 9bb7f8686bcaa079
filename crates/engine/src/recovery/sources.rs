//! Everything that recovery of a cluster can be given: the archive's segments and pieces, the WAL of each backup, and the
//! timeline history files. Known from names alone: one listing of the archive, and the backups' summaries.

use std::collections::{BTreeMap, BTreeSet};

use leeward_pgformat::timeline::TimelineHistory;
use leeward_pgformat::wal_segment::{history_file_name, parse_history_file_name};
use leeward_pgformat::{Lsn, SystemIdentifier, TimelineId, WalSegmentSize};
use leeward_repository::backup_id::BackupId;
use leeward_repository::catalog::Cluster;
use leeward_repository::summary::BackupSummary;
use leeward_repository::wal_archive::{Holdings, WalArchive};

use crate::error::{Error, ErrorKind, Result};
use crate::repository::doing;
use crate::wal::{Look, file_in_backups};

/// Where recovery of a backup begins and is consistent, which is also the WAL that lies with the backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BackupRange {
    pub id: BackupId,
    /// Where recovery begins.
    pub start: Lsn,
    /// The checkpoint that recovery begins with.
    pub checkpoint: Lsn,
    /// The timeline of both.
    pub start_timeline: TimelineId,
    /// Where the WAL that lies with it ends.
    pub stop: Lsn,
    pub stop_timeline: TimelineId,
    /// Where recovery is consistent: at `stop`, or earlier where the control file says so.
    pub consistent: Lsn,
    /// It has damaged pages.
    pub is_damaged: bool,
}

impl BackupRange {
    pub(crate) fn of(summary: &BackupSummary) -> Self {
        Self {
            id: summary.id.clone(),
            start: summary.start_lsn,
            checkpoint: summary.checkpoint_lsn,
            start_timeline: summary.start_timeline,
            stop: summary.stop_lsn,
            stop_timeline: summary.stop_timeline,
            consistent: summary.consistent_lsn.unwrap_or(summary.stop_lsn),
            is_damaged: !summary.damaged.is_empty(),
        }
    }

    /// Whether recovery of this backup leads along `history`: the checks of `InitWalRecovery`
    /// (src/backend/access/transam/xlogrecovery.c).
    pub(crate) fn lies_on(&self, history: &TimelineHistory) -> bool {
        history.timeline_of(self.checkpoint) == self.start_timeline
            && history.timeline_of(Lsn(self.stop.0.saturating_sub(1))) == self.stop_timeline
    }
}

/// Everything that recovery can be given.
#[derive(Clone, Debug)]
pub(crate) struct RecoverySources {
    pub size: WalSegmentSize,
    pub archive: Holdings,
    /// Oldest first.
    pub backups: Vec<BackupRange>,
    /// Of every timeline that anything is known of.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
    /// The timelines whose history file is held.
    pub recorded: BTreeSet<TimelineId>,
    /// The timelines whose history file is held and cannot be read, with the reason.
    pub damaged_histories: BTreeMap<TimelineId, String>,
}

impl RecoverySources {
    /// Looks at the archive and at the histories of all timelines in it, and of those that backups were taken on.
    pub(crate) fn read(
        cluster: &Cluster,
        backups: &[BackupSummary],
        size: WalSegmentSize,
    ) -> Result<Self> {
        let archive = WalArchive::new(cluster);
        let holdings = archive
            .holdings(size)
            .map_err(|e| doing("could not look at the WAL archive", e))?;
        let mut timelines: BTreeSet<TimelineId> = holdings.timelines.keys().copied().collect();
        for backup in backups {
            timelines.extend([backup.start_timeline, backup.stop_timeline]);
            timelines.extend(
                backup
                    .wal
                    .history
                    .iter()
                    .filter_map(|name| parse_history_file_name(name)),
            );
        }
        let owner = backups.last().map(|backup| backup.system_identifier);
        let mut histories = BTreeMap::new();
        let mut recorded = BTreeSet::new();
        let mut damaged_histories = BTreeMap::new();
        for timeline in timelines {
            let archived = holdings
                .timelines
                .get(&timeline)
                .is_some_and(|held| held.history);
            let history = match history(cluster, &archive, timeline, archived, owner) {
                Ok(Some(history)) => {
                    recorded.insert(timeline);
                    history
                }
                Ok(None) => TimelineHistory::without_ancestors(timeline),
                // It costs only what needs it: recovery along this timeline.
                Err(error) if error.kind() == ErrorKind::Damaged => {
                    damaged_histories.insert(timeline, error.with_causes());
                    TimelineHistory::without_ancestors(timeline)
                }
                Err(error) => return Err(error),
            };
            histories.insert(timeline, history);
        }
        let mut sources = Self {
            size,
            archive: holdings,
            backups: backups.iter().map(BackupRange::of).collect(),
            histories,
            recorded,
            damaged_histories,
        };
        sources.know_ancestors();
        Ok(sources)
    }

    /// One backup alone, with the WAL and the histories that lie with it.
    pub(crate) fn of_backup(
        cluster: &Cluster,
        summary: &BackupSummary,
        size: WalSegmentSize,
    ) -> Result<Self> {
        let mut sources = Self {
            size,
            archive: Holdings::default(),
            backups: vec![BackupRange::of(summary)],
            histories: BTreeMap::new(),
            recorded: BTreeSet::new(),
            damaged_histories: BTreeMap::new(),
        };
        for name in &summary.wal.history {
            if let Some(timeline) = parse_history_file_name(name) {
                let text = cluster.read_backup_history(&summary.id, name)?;
                sources
                    .histories
                    .insert(timeline, parse_history(&text, timeline)?);
                sources.recorded.insert(timeline);
            }
        }
        sources.know_ancestors();
        Ok(sources)
    }

    /// Gives a history to every ancestor that a known history names.
    fn know_ancestors(&mut self) {
        let known: Vec<TimelineHistory> = self.histories.values().cloned().collect();
        for history in known {
            for (at, entry) in history.entries.iter().enumerate() {
                self.histories
                    .entry(entry.timeline)
                    .or_insert_with(|| TimelineHistory {
                        target: entry.timeline,
                        entries: history.entries[..at].to_vec(),
                    });
            }
        }
    }

    /// The history of a timeline; one without ancestors where nothing is known of it.
    pub(crate) fn history(&self, timeline: TimelineId) -> TimelineHistory {
        self.histories
            .get(&timeline)
            .cloned()
            .unwrap_or_else(|| TimelineHistory::without_ancestors(timeline))
    }

    /// The timelines of which WAL is held, in the archive or with a backup.
    pub(crate) fn timelines_with_wal(&self) -> BTreeSet<TimelineId> {
        let archived = self
            .archive
            .timelines
            .values()
            .filter(|held| !held.segments.is_empty() || !held.pieces.is_empty())
            .map(|held| held.timeline);
        archived
            .chain(self.backups.iter().map(|backup| backup.stop_timeline))
            .collect()
    }

    /// The timelines of which the archive holds WAL and nobody their history file, so that it is not known what leads there.
    pub(crate) fn without_history(&self) -> impl DoubleEndedIterator<Item = TimelineId> {
        self.archive
            .timelines
            .values()
            .filter(|held| !held.segments.is_empty() || !held.pieces.is_empty())
            .map(|held| held.timeline)
            .filter(|timeline| timeline.0 > 1 && !self.recorded.contains(timeline))
    }

    /// The newest timeline that descends from `backup` and has WAL.
    pub(crate) fn newest_timeline_of(&self, backup: &BackupRange) -> TimelineId {
        self.timelines_with_wal()
            .into_iter()
            .rfind(|timeline| backup.lies_on(&self.history(*timeline)))
            .unwrap_or(backup.stop_timeline)
    }

    /// The newest timeline that descends from any backup.
    pub(crate) fn newest_timeline(&self) -> Option<TimelineId> {
        self.timelines_with_wal().into_iter().rfind(|timeline| {
            let history = self.history(*timeline);
            self.backups.iter().any(|backup| backup.lies_on(&history))
        })
    }
}

/// Backups that cannot be read are told by the choice of a backup.
const PASSED_OVER: Look<'static> = Look {
    cache: None,
    unreadable_are_passed_over: true,
};

/// The ancestry of a timeline, from the archive or from a backup; `None` where neither has it.
fn history(
    cluster: &Cluster,
    archive: &WalArchive,
    timeline: TimelineId,
    archived: bool,
    owner: Option<SystemIdentifier>,
) -> Result<Option<TimelineHistory>> {
    let name = history_file_name(timeline);
    if timeline.0 == 1 {
        return Ok(None);
    }
    if archived {
        let found = archive.read_file_and_owner(&name).map_err(|e| {
            doing(
                &format!("could not read timeline history file \"{name}\""),
                e,
            )
        })?;
        return match found {
            Some((_, of)) if owner.is_some_and(|owner| owner != of) => Err(Error::new(
                ErrorKind::Damaged,
                format!(
                    "timeline history file \"{name}\" is of the cluster with system identifier {of}"
                ),
            )),
            Some((text, _)) => parse_history(&text, timeline).map(Some),
            None => Ok(None),
        };
    }
    let Some(text) = file_in_backups(cluster, PASSED_OVER, &name)? else {
        return Ok(None);
    };
    parse_history(&text, timeline).map(Some)
}

fn parse_history(text: &[u8], timeline: TimelineId) -> Result<TimelineHistory> {
    TimelineHistory::parse(text, timeline).map_err(|e| {
        Error::new(
            ErrorKind::Damaged,
            format!(
                "could not make sense of timeline history file \"{}\"",
                history_file_name(timeline)
            ),
        )
        .because(e)
    })
}

/// The size of the WAL segments of a backup's cluster.
pub(crate) fn segment_size_of(summary: &BackupSummary) -> Result<WalSegmentSize> {
    u32::try_from(summary.wal.segment_size_bytes)
        .ok()
        .and_then(WalSegmentSize::new)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Damaged,
                format!(
                    "backup {} says that its WAL segments have {} bytes, which no cluster's have",
                    summary.id, summary.wal.segment_size_bytes
                ),
            )
        })
}
