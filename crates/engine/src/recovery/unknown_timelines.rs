//! Timelines with archived WAL and no history file.

use std::path::PathBuf;

use leeward_pgformat::TimelineId;
use leeward_pgformat::wal_segment::history_file_name;

use super::sources::RecoverySources;
use crate::error::Error;

/// The command that brings the history file of a timeline into the repository.
pub(super) fn push_history(timeline: TimelineId) -> String {
    let file = PathBuf::from("DATA_DIRECTORY/pg_wal").join(history_file_name(timeline));
    format!(
        "From a server on that timeline: \"leeward wal push {}\".",
        file.display()
    )
}

/// Timelines with WAL that are newer than the one that recovery follows, and whose history files are not held: they may be
/// where the cluster went on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnknownTimelines {
    /// Ascending.
    numbers: Vec<TimelineId>,
    followed: TimelineId,
    /// Why the newest one's history file cannot be read, if there is one.
    damage: Option<String>,
}

impl UnknownTimelines {
    pub(super) fn beyond(sources: &RecoverySources, followed: TimelineId) -> Option<Self> {
        let numbers: Vec<TimelineId> = sources
            .without_history()
            .filter(|timeline| *timeline > followed)
            .collect();
        let newest = numbers.last()?;
        let damage = sources.damaged_histories.get(newest).cloned();
        Some(Self {
            numbers,
            followed,
            damage,
        })
    }

    pub(super) fn newest(&self) -> TimelineId {
        self.numbers.last().copied().unwrap_or(self.followed)
    }

    /// Returns the reason why its history file says nothing.
    fn problem(&self) -> String {
        let file = history_file_name(self.newest());
        match &self.damage {
            Some(damage) => format!("its history file \"{file}\" cannot be used ({damage})"),
            None => format!("its history file \"{file}\" is not held"),
        }
    }

    pub(super) fn note(&self) -> String {
        format!(
            "WAL of timeline {} is held, and {}, so that it is not known where it comes from: recovery follows timeline {}.",
            self.newest(),
            self.problem(),
            self.followed
        )
    }

    pub(super) fn refusal(&self) -> Error {
        let remedy = match &self.damage {
            Some(_) => format!(
                "Remove the file from the repository and bring it again. {}",
                push_history(self.newest())
            ),
            None => push_history(self.newest()),
        };
        Error::failed(format!(
            "the WAL of timeline {} would be left out: {}, which says where it comes from",
            self.newest(),
            self.problem()
        ))
        .hint(format!(
            "{remedy} Or --target-timeline {} restores without it.",
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
