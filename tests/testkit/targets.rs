//! Moments to recover to, drawn from what the oracle knows, and recovery to them by PostgreSQL alone.

use std::collections::BTreeSet;
use std::env;
use std::ops::Range;

use rand::Rng;

use crate::deadline::{PATIENCE, reached};
use crate::oracle::{Ending, Oracle, Step, lsn};
use crate::server::Server;

/// How a moment is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `recovery_target_time`.
    Time,
    /// `recovery_target_lsn`.
    Lsn,
    /// `recovery_target_xid`.
    Xid,
    /// `recovery_target_name`.
    Name,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] = [Kind::Time, Kind::Lsn, Kind::Xid, Kind::Name];

    /// The last word of PostgreSQL's parameter, and of the option.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Time => "time",
            Kind::Lsn => "lsn",
            Kind::Xid => "xid",
            Kind::Name => "name",
        }
    }
}

/// A moment and what must exist then.
#[derive(Debug, Clone)]
pub struct Target {
    /// How it is named.
    pub kind: Kind,
    /// Its name.
    pub value: String,
    /// Whether what lies exactly at it is wanted. Restore points have no such choice.
    pub inclusive: bool,
    /// The timeline whose past it lies in.
    pub timeline: u32,
    /// Where it was put, in words.
    pub place: String,
    /// What must exist, and nothing else.
    pub expected: BTreeSet<u64>,
}

/// The length of a plain commit record (`xl_xact_commit` behind `XLogRecord` and the data header, aligned): where WAL grew by
/// this much around a lone commit, the record begins where WAL ended before.
const COMMIT_RECORD: u64 = 40;

impl Oracle {
    /// A random moment in the past of `timeline`, after one of these steps, with at least one commit of these behind it.
    pub fn target(
        &self,
        kind: Kind,
        timeline: u32,
        among: Range<u64>,
        random: &mut impl Rng,
    ) -> Target {
        let last = *self
            .until(timeline, among.end - 1)
            .last()
            .expect("something was written");
        // A time is a time on every timeline: one in a future that was lost means the end of what was not.
        let steps: Vec<&Step> = self
            .steps()
            .iter()
            .filter(|step| (among.start..last).contains(&step.number))
            .filter(|step| kind == Kind::Time || self.leads_to(step, timeline))
            .collect();
        assert!(
            steps.len() > 10,
            "only {} moments on timeline {timeline} among {among:?}, before {last}",
            steps.len()
        );
        let step = steps[random.random_range(0..steps.len())];
        let inclusive = random.random_bool(0.5);
        let at_commit = random.random_bool(0.4);
        let (value, with, place) = match kind {
            Kind::Time if at_commit && step.alone && step.ending != Ending::Rollback => {
                (step.committed.clone(), inclusive, "at the commit of")
            }
            Kind::Time => (step.time.clone(), true, "after"),
            Kind::Lsn
                if at_commit
                    && step.ending == Ending::Commit
                    && (!inclusive || step.alone && step.after - step.before == COMMIT_RECORD) =>
            {
                (lsn(step.before), inclusive, "at the commit of")
            }
            Kind::Lsn => (lsn(step.after), true, "after"),
            Kind::Xid => (step.xid.to_string(), inclusive, "of"),
            Kind::Name => (step.point.clone(), true, "after"),
        };
        let number = if with { step.number } else { step.number - 1 };
        Target {
            kind,
            value,
            inclusive: inclusive || kind == Kind::Name,
            timeline,
            place: format!(
                "{place} step {} ({:?} on timeline {}{})",
                step.number,
                step.ending,
                step.timeline,
                if step.alone { "" } else { ", with noise" }
            ),
            expected: self.until(timeline, number),
        }
    }
}

impl Target {
    /// PostgreSQL's own settings for it.
    pub fn settings(&self) -> String {
        format!(
            "recovery_target_{} = '{}'
             recovery_target_inclusive = {}
             recovery_target_timeline = {}",
            self.kind.word(),
            self.value,
            self.inclusive,
            self.timeline
        )
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} \"{}\", {}, on timeline {}: {}",
            self.kind.word(),
            self.value,
            if self.inclusive {
                "inclusive"
            } else {
                "exclusive"
            },
            self.timeline,
            self.place
        )
    }
}

/// How many targets of each kind a story tries on a major version: `usual`, or as many as `LEEWARD_TARGETS` says.
pub fn how_many(usual: usize) -> usize {
    env::var("LEEWARD_TARGETS").map_or(usual, |count| {
        count.parse().expect("LEEWARD_TARGETS is a number")
    })
}

/// Starts a server that recovers to a target, and waits until it stands there: paused, or open for writes.
///
/// # Errors
/// When it ends instead, with the last part of its log.
pub fn recover(server: &mut Server) -> Result<(), String> {
    server.launch();
    let mut ended = false;
    let there = reached(PATIENCE * 2, || {
        ended = server.has_ended();
        let state = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() ELSE 'open' END";
        ended
            || server
                .try_sql_in("postgres", state)
                .is_ok_and(|state| state == "paused" || state == "open")
    });
    if there && !ended {
        Ok(())
    } else {
        Err(format!(
            "the server did not recover:\n{}",
            server.log_tail()
        ))
    }
}
