//! The WAL that lies with backups, as a source for recovery: where the archive has nothing, a backup whose stretch of WAL
//! holds the segment has it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use leeward_pgformat::wal_segment::{WalSegmentName, WalSegmentSize};
use leeward_pgformat::{Lsn, SystemIdentifier, TimelineId};
use leeward_repository::RepositoryError;
use leeward_repository::backup_id::BackupId;
use leeward_repository::catalog::Cluster;
use leeward_repository::layout;

use crate::error::Result;

/// What backups there are is asked again after this time.
const FRESH_FOR: Duration = Duration::from_secs(60);

/// A segment that lies with a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BackupWal {
    backup: BackupId,
    name: String,
    /// The LSN up to which it holds WAL.
    pub end: Lsn,
}

/// The WAL of one backup, as its `backup.json` says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stretch {
    first: String,
    last: String,
    stop: Lsn,
    /// The timeline history files that lie with it.
    history: Vec<String>,
}

/// What is known of the backups' WAL, and how long it may be believed that there is no other backup.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cache<'a> {
    /// The file in which it is remembered: a backup never changes.
    pub file: &'a Path,
    /// Whether a look less than a minute old will do.
    pub lately_will_do: bool,
}

/// A look at the backups' WAL.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Look<'a> {
    /// The file in which the WAL of backups is remembered.
    pub cache: Option<Cache<'a>>,
    /// Backups that cannot be read may have what was asked for, and are passed over all the same.
    pub unreadable_are_passed_over: bool,
}

impl BackupWal {
    /// Writes the segment to `to`, and returns whose it is.
    pub(super) fn read(
        &self,
        cluster: &Cluster,
        to: &mut dyn Write,
    ) -> std::result::Result<SystemIdentifier, RepositoryError> {
        let info = cluster.read_backup_wal(&self.backup, &self.name, None, to)?;
        Ok(info.facts.system_identifier)
    }
}

/// The backup that holds most of `segment`.
///
/// # Errors
/// Those of the store. A backup that cannot be read does not hide the others.
pub(super) fn in_backups(
    cluster: &Cluster,
    look: Look<'_>,
    segment: WalSegmentName,
    size: WalSegmentSize,
) -> Result<Option<BackupWal>> {
    let mut best: Option<BackupWal> = None;
    let mut known = stretches(cluster, look.cache)?;
    for (backup, stretch) in &known.stretches {
        let Some(end) = stretch.end_in(segment, size) else {
            continue;
        };
        if best.as_ref().is_some_and(|best| best.end >= end) {
            continue;
        }
        let name = segment.name(size);
        if cluster.has_backup_wal(backup, &name)? {
            best = Some(BackupWal {
                backup: backup.clone(),
                name,
                end,
            });
        } else if stretch.is_of_one_timeline() {
            // Of a stretch over a change of timeline, some segments lie with the backup on one of the timelines only.
            let key = layout::backup_wal(cluster.name(), backup, &name)?;
            let lost = RepositoryError::damaged(key, "object", "it is not there any more");
            known.unreadable.get_or_insert(lost);
        }
    }
    if best.is_none() {
        known.prove_absence(look)?;
    }
    Ok(best)
}

/// A timeline history file that lies with a backup.
///
/// # Errors
/// Those of the store.
pub(crate) fn file_in_backups(
    cluster: &Cluster,
    look: Look<'_>,
    name: &str,
) -> Result<Option<Vec<u8>>> {
    let known = stretches(cluster, look.cache)?;
    for (backup, stretch) in known.stretches.iter().rev() {
        if stretch.history.iter().any(|history| history == name) {
            return Ok(Some(cluster.read_backup_history(backup, name)?));
        }
    }
    known.prove_absence(look)?;
    Ok(None)
}

/// Returns whether a backup has WAL of this timeline.
///
/// # Errors
/// Those of the store.
pub(super) fn backed_up_on(
    cluster: &Cluster,
    look: Look<'_>,
    timeline: TimelineId,
) -> Result<bool> {
    let name = |segment: &str| segment.starts_with(&format!("{:08X}", timeline.0));
    Ok(stretches(cluster, look.cache)?
        .stretches
        .values()
        .any(|stretch| name(&stretch.first) || name(&stretch.last)))
}

impl Stretch {
    fn is_of_one_timeline(&self) -> bool {
        self.first.get(..8) == self.last.get(..8)
    }

    /// Up to where it holds WAL of `segment`; `None` when it lies outside.
    fn end_in(&self, segment: WalSegmentName, size: WalSegmentSize) -> Option<Lsn> {
        let first = WalSegmentName::parse(&self.first, size)?;
        let last = WalSegmentName::parse(&self.last, size)?;
        let inside = (first.number..=last.number).contains(&segment.number)
            && (first.timeline..=last.timeline).contains(&segment.timeline);
        if !inside {
            return None;
        }
        let end = segment.end_lsn(size);
        Some(if segment.number == last.number {
            end.min(self.stop)
        } else {
            end
        })
    }
}

/// The WAL of every backup that can be read.
struct Known {
    stretches: BTreeMap<BackupId, Stretch>,
    /// The first that cannot be read: damaged, or closed to this user.
    unreadable: Option<RepositoryError>,
}

impl Known {
    /// Checks that no other backup may have what these have not.
    fn prove_absence(self, look: Look<'_>) -> Result<()> {
        match self.unreadable {
            Some(error) if !look.unreadable_are_passed_over => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn stretches(cluster: &Cluster, cache: Option<Cache<'_>>) -> Result<Known> {
    let known = cache.map(|cache| read(cache.file)).unwrap_or_default();
    let age = |file: &Path| fs::metadata(file).ok()?.modified().ok()?.elapsed().ok();
    let fresh = cache
        .filter(|cache| cache.lately_will_do)
        .and_then(|cache| age(cache.file));
    if fresh.is_some_and(|age| age < FRESH_FOR) {
        return Ok(Known {
            stretches: known,
            unreadable: None,
        });
    }
    let mut stretches = BTreeMap::new();
    let owner = cluster.owner()?;
    let mut unreadable = None;
    let ids = cluster
        .store()
        .list_folders(&layout::backups_folder(cluster.name()))
        .map_err(RepositoryError::from)?;
    for id in ids.iter().filter_map(|id| id.parse::<BackupId>().ok()) {
        let stretch = match known.get(&id) {
            Some(stretch) => stretch.clone(),
            None => match cluster.owned_backup(&id, owner) {
                Ok(summary) => Stretch {
                    first: summary.wal.first,
                    last: summary.wal.last,
                    stop: summary.stop_lsn,
                    history: summary.wal.history,
                },
                Err(RepositoryError::NoBackup { .. }) => continue,
                // Of another cluster: no source.
                Err(RepositoryError::ForeignBackup { .. }) => continue,
                Err(error) if error.is_closed() || error.is_about_one_object() => {
                    unreadable.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error.into()),
            },
        };
        stretches.insert(id, stretch);
    }
    if let Some(cache) = cache {
        write(cache.file, &stretches);
    }
    Ok(Known {
        stretches,
        unreadable,
    })
}

fn read(cache: &Path) -> BTreeMap<BackupId, Stretch> {
    let text = fs::read_to_string(cache).unwrap_or_default();
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [id, first, last, stop, history @ ..] = words.as_slice() else {
            return None;
        };
        let stretch = Stretch {
            first: (*first).to_owned(),
            last: (*last).to_owned(),
            stop: stop.parse().ok()?,
            history: history.iter().map(|name| (*name).to_owned()).collect(),
        };
        Some((id.parse().ok()?, stretch))
    };
    text.lines().filter_map(line).collect()
}

fn write(cache: &Path, stretches: &BTreeMap<BackupId, Stretch>) {
    let mut text = String::new();
    for (id, stretch) in stretches {
        let Stretch {
            first,
            last,
            stop,
            history,
        } = stretch;
        text += &format!("{id} {first} {last} {stop}");
        for name in history {
            text.push(' ');
            text += name;
        }
        text.push('\n');
    }
    let own = cache.with_extension(std::process::id().to_string());
    // Without a cache everything is asked again.
    let _ = fs::write(&own, text).and_then(|()| fs::rename(&own, cache));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_backup_holds_of_a_segment() {
        let size = WalSegmentSize::DEFAULT;
        let stretch = Stretch {
            first: "000000010000000000000002".to_owned(),
            last: "000000010000000000000004".to_owned(),
            stop: Lsn(0x4_000_100),
            history: Vec::new(),
        };
        let end = |timeline, number| {
            let timeline = TimelineId(timeline);
            stretch.end_in(WalSegmentName { timeline, number }, size)
        };
        assert_eq!(end(1, 1), None);
        assert_eq!(end(1, 2), Some(Lsn(0x3_000_000)));
        assert_eq!(end(1, 4), Some(Lsn(0x4_000_100)));
        assert_eq!(end(1, 5), None);
        assert_eq!(end(2, 3), None);
    }
}
