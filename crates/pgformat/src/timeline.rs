//! Timeline history files: the ancestry of a timeline, and where each ancestor was left.
//!
//! Facts from `access/transam/timeline.c`.

use crate::{FormatError, Lsn, TimelineId};

/// The ancestry of a timeline: the content of its history file. Timeline 1 has no file and no ancestors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The timeline whose history this is.
    pub target: TimelineId,
    /// Its ancestors, oldest first.
    pub entries: Vec<TimelineHistoryEntry>,
}

/// One line of a history file: an ancestor and where it was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistoryEntry {
    /// The ancestor.
    pub timeline: TimelineId,
    /// The LSN at which the next timeline begins; the ancestor's WAL from here on is not part of this history.
    pub switch_lsn: Lsn,
    /// Why, in the server's words; free text.
    pub reason: String,
}

/// The part of the log that belongs to one timeline of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineRange {
    /// The timeline.
    pub timeline: TimelineId,
    /// Its first LSN in this history: where its parent was left, or zero for the oldest.
    pub begin: Lsn,
    /// The LSN where it was left, itself not included; `None` for the target, which goes on.
    pub end: Option<Lsn>,
}

impl TimelineHistory {
    /// The history of a timeline without ancestors, as timeline 1 is.
    #[must_use]
    pub const fn without_ancestors(target: TimelineId) -> TimelineHistory {
        TimelineHistory {
            target,
            entries: Vec::new(),
        }
    }

    /// Reads the content of the history file of timeline `target`, as `readTimeLineHistory` does. Reasons that are
    /// not UTF-8 are read with replacement characters.
    ///
    /// # Errors
    ///
    /// [`FormatError::TimelineHistory`] for what the server would refuse, naming the line.
    pub fn parse(
        content: impl AsRef<[u8]>,
        target: TimelineId,
    ) -> Result<TimelineHistory, FormatError> {
        let text = String::from_utf8_lossy(content.as_ref());
        let mut entries: Vec<TimelineHistoryEntry> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let wrong = |reason: String| FormatError::TimelineHistory {
                timeline: target,
                line: index + 1,
                reason,
            };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (timeline, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let timeline: TimelineId = timeline
                .parse()
                .map_err(|_| wrong(format!("\"{timeline}\" is not a timeline number")))?;
            let rest = rest.trim_start();
            let (switch_lsn, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            let switch_lsn: Lsn = switch_lsn
                .parse()
                .map_err(|_| wrong(format!("\"{switch_lsn}\" is not a switch point LSN")))?;
            if let Some(last) = entries.last() {
                if timeline <= last.timeline {
                    return Err(wrong(format!(
                        "timeline {timeline} does not come after timeline {}",
                        last.timeline
                    )));
                }
                // The server does not look, but a history that runs backwards describes no possible log.
                if switch_lsn < last.switch_lsn {
                    return Err(wrong(format!(
                        "timeline {timeline} was left at {switch_lsn}, before it began at {}",
                        last.switch_lsn
                    )));
                }
            }
            if timeline >= target {
                return Err(wrong(format!(
                    "timeline {timeline} cannot be an ancestor of timeline {target}"
                )));
            }
            entries.push(TimelineHistoryEntry {
                timeline,
                switch_lsn,
                reason: reason.trim_start().to_owned(),
            });
        }
        Ok(TimelineHistory { target, entries })
    }

    /// The timeline that WAL at `lsn` belongs to in this history (`tliOfPointInHistory`): at a switch point, the
    /// later one.
    #[must_use]
    pub fn timeline_of(&self, lsn: Lsn) -> TimelineId {
        self.entries
            .iter()
            .find(|entry| lsn < entry.switch_lsn)
            .map_or(self.target, |entry| entry.timeline)
    }

    /// The parts of the log by timeline, oldest first; the last is the target's and has no end.
    #[must_use]
    pub fn ranges(&self) -> Vec<TimelineRange> {
        let mut begin = Lsn::INVALID;
        let mut ranges = Vec::with_capacity(self.entries.len() + 1);
        for entry in &self.entries {
            ranges.push(TimelineRange {
                timeline: entry.timeline,
                begin,
                end: Some(entry.switch_lsn),
            });
            begin = entry.switch_lsn;
        }
        ranges.push(TimelineRange {
            timeline: self.target,
            begin,
            end: None,
        });
        ranges
    }

    /// Whether this is the timeline or one of its ancestors (`tliInHistory`).
    #[must_use]
    pub fn contains(&self, timeline: TimelineId) -> bool {
        timeline == self.target || self.entries.iter().any(|entry| entry.timeline == timeline)
    }

    /// Where an ancestor was left (`tliSwitchPoint`); `None` for the target and for a timeline not in this history.
    #[must_use]
    pub fn switch_lsn(&self, timeline: TimelineId) -> Option<Lsn> {
        self.entries
            .iter()
            .find(|entry| entry.timeline == timeline)
            .map(|entry| entry.switch_lsn)
    }

    /// Whether this history descends from a cluster that had replayed `timeline` up to `lsn`: the timeline is the
    /// target, or an ancestor left no earlier than `lsn`. False says that the two have diverged, and that page LSNs
    /// of one prove nothing about the other.
    #[must_use]
    pub fn descends_from(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        timeline == self.target
            || self
                .switch_lsn(timeline)
                .is_some_and(|switch_lsn| lsn <= switch_lsn)
    }
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
