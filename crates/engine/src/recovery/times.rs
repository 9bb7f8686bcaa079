//! Whether a backup holds anything later than a target time: the commits and rollbacks before its start.
//!
//! PostgreSQL stops before the first later commit behind the start of a backup. What lies before the start it does not see: a
//! backup taken after the target time would bring rows that were written after it, on a quiet server without a word. So the
//! WAL before the backup is asked, as far back as it is held without a hole.

use leeward_pgformat::{Lsn, TimestampTz, WalEvent};

use super::continuity::Continuity;
use super::path::{PathSegment, RecoveryPath};
use super::replay::is_later;
use super::sources::BackupRange;
use super::wal_reader::WalReader;
use crate::error::Result;

/// As many summaries are read together.
const SUMMARIES_AT_ONCE: usize = 32;

/// A clock that was set back by more than this, in microseconds, is not noticed: nobody reads a year of WAL to restore.
const CLOCK_STEP_LIMIT: i64 = 24 * 60 * 60 * 1_000_000;

/// A checkpoint's time is told to the second, cut off, in microseconds.
const CHECKPOINT_TIME_UNIT: i64 = 1_000_000;

/// Whether every commit and rollback before the start of `backup` is known not to be later than `target`.
///
/// Where no commit before the start is held, the checkpoint that the backup begins with has to be older than `target`.
///
/// # Errors
/// Those of the reader.
pub(super) fn all_before(
    path: &RecoveryPath,
    reader: &dyn WalReader,
    backup: &BackupRange,
    target: TimestampTz,
    inclusive: bool,
) -> Result<bool> {
    let mut upper = backup.start;
    let mut seen = false;
    loop {
        let segments = path.contiguous_before(upper, SUMMARIES_AT_ONCE);
        let times = times_before(path, reader, &segments, backup.start)?;
        if let Some((earliest, latest)) = times.bounds {
            if is_later(latest, target, inclusive) {
                return Ok(false);
            }
            if earliest.0 < target.0.saturating_sub(CLOCK_STEP_LIMIT) {
                return Ok(true);
            }
            seen = true;
        }
        let begins_here = times.is_broken || segments.len() <= 1;
        match segments.first() {
            // The next ones end with this segment, for the record that leads into it.
            Some(first) if !begins_here => upper = Lsn(first.begin(path.size()).0 + 1),
            _ => break,
        }
    }
    if seen {
        return Ok(true);
    }
    let checkpoint = checkpoint_time(path, reader, backup)?;
    Ok(checkpoint.is_some_and(|time| time.0.saturating_add(CHECKPOINT_TIME_UNIT) <= target.0))
}

/// The times of commits and rollbacks.
struct Times {
    /// The earliest and the latest.
    bounds: Option<(TimestampTz, TimestampTz)>,
    /// The first segments do not belong to the last ones, and were left out.
    is_broken: bool,
}

impl Times {
    fn add(&mut self, first: TimestampTz, last: TimestampTz) {
        self.bounds = Some(self.bounds.map_or((first, last), |(earliest, latest)| {
            (earliest.min(first), latest.max(last))
        }));
    }

    fn add_event(&mut self, event: &WalEvent) {
        if let WalEvent::Commit { time, .. } | WalEvent::Abort { time, .. } = event {
            self.add(*time, *time);
        }
    }
}

/// The times in segments that follow one another, before `start`.
fn times_before(
    path: &RecoveryPath,
    reader: &dyn WalReader,
    segments: &[&PathSegment],
    start: Lsn,
) -> Result<Times> {
    let mut times = Times {
        bounds: None,
        is_broken: false,
    };
    let mut continuity = Continuity::new(reader, path.size());
    let summaries = reader.summaries(segments)?;
    for (segment, summary) in segments.iter().copied().zip(&summaries) {
        match continuity.enter(segment, summary)? {
            Ok(Some(crossing)) if crossing.bounds.start < start => {
                crossing
                    .event
                    .iter()
                    .for_each(|event| times.add_event(event));
            }
            Ok(_) => {}
            Err(_) => {
                times = Times {
                    bounds: None,
                    is_broken: true,
                };
                continuity = Continuity::new(reader, path.size());
            }
        }
        if segment.end > start {
            let walked = reader.walk(&[segment], None, &mut |event| {
                if event.begin() < start {
                    times.add_event(event);
                }
            })?;
            continuity.set_major(walked.major);
        } else if let (Some(first), Some(last)) = (summary.first_time, summary.last_time) {
            times.add(first, last);
        }
        continuity.leave(segment, summary);
    }
    Ok(times)
}

/// When the checkpoint was made that recovery of a backup begins with, to the second.
pub(super) fn checkpoint_time(
    path: &RecoveryPath,
    reader: &dyn WalReader,
    backup: &BackupRange,
) -> Result<Option<TimestampTz>> {
    // It may lead into the next segment.
    let end = Lsn(backup.checkpoint.0 + path.size().bytes()).min(path.reach(backup.start));
    let segments = path.segments(backup.checkpoint, end);
    let mut found = None;
    reader.walk(&segments, None, &mut |event| {
        if let WalEvent::Checkpoint { time, begin, .. } = event
            && *begin == backup.checkpoint
        {
            found = Some(*time);
        }
    })?;
    Ok(found)
}
