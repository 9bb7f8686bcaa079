//! WAL that the server no longer streams: found in its files, or recorded as lost.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use leeward_pgformat::{Lsn, TimelineHistory, WalSegmentName, WalSegmentSize};
use leeward_postgres::Error as PostgresError;
use leeward_postgres::replication::{ReplicationConnection, Streamed};
use leeward_postgres::target::ConnectTarget;
use leeward_repository::wal_archive::{Gap, Holdings};

use super::UNDEFINED_FILE;

/// How long a server may take to send the first byte of WAL that it has.
const FIRST_BYTE: Duration = Duration::from_secs(30);

/// Whether the server still has a WAL segment: it is asked to stream it, without a slot.
pub(super) fn has(
    target: &ConnectTarget,
    segment: WalSegmentName,
    size: WalSegmentSize,
) -> Result<bool, PostgresError> {
    let mut connection = ReplicationConnection::connect(target)?;
    // 14 streams to nobody who has not asked.
    connection.identify_system()?;
    let mut stream = connection.start(None, segment.start_lsn(size), segment.timeline)?;
    let deadline = Instant::now() + FIRST_BYTE;
    loop {
        match stream.next(deadline, None) {
            Ok(Streamed::Keepalive { .. }) => {}
            // A server that has it and is at its very end sends nothing.
            Ok(Streamed::Wal(_) | Streamed::TimelineEnded(_) | Streamed::Idle) => return Ok(true),
            Err(error) if error.sqlstate() == Some(UNDEFINED_FILE) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// The oldest number that the server has, between one that it has not and one that it has.
pub(super) fn oldest(
    missing: u64,
    there: u64,
    mut has: impl FnMut(u64) -> Result<bool, PostgresError>,
) -> Result<u64, PostgresError> {
    let (mut missing, mut there) = (missing, there);
    while there > missing + 1 {
        let middle = missing + (there - missing) / 2;
        if has(middle)? {
            there = middle;
        } else {
            missing = middle;
        }
    }
    Ok(there)
}

/// A WAL segment's file in the data directory, if there is one.
pub(super) fn file(pgdata: &Path, segment: WalSegmentName, size: WalSegmentSize) -> Option<File> {
    File::open(pgdata.join("pg_wal").join(segment.name(size))).ok()
}

/// The gaps that a loss from `begin` up to `end` is, one for each timeline.
pub(super) fn gaps(history: &TimelineHistory, lost: &Range<Lsn>, reason: &str) -> Vec<Gap> {
    let mut gaps = Vec::new();
    for range in history.ranges() {
        let begin = lost.start.max(range.begin);
        let end = range.end.map_or(lost.end, |end| end.min(lost.end));
        if begin < end {
            gaps.push(Gap {
                timeline: range.timeline,
                begin,
                end,
                found_at: Timestamp::now(),
                reason: reason.to_owned(),
            });
        }
    }
    gaps
}

/// Where a loss that begins in `segment` begins: behind the archive's pieces of it.
pub(super) fn begin(holdings: &Holdings, segment: WalSegmentName, size: WalSegmentSize) -> Lsn {
    let start = segment.start_lsn(size);
    holdings
        .timelines
        .get(&segment.timeline)
        .map_or(start, |held| held.covered_to(start, size))
}

/// The next WAL segment of the same timeline that the archive has as a whole.
pub(super) fn next_held(holdings: &Holdings, segment: WalSegmentName) -> Option<u64> {
    let held = holdings.timelines.get(&segment.timeline)?;
    held.segments
        .runs()
        .map(|run| run.start)
        .find(|start| *start > segment.number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use leeward_pgformat::TimelineId;

    #[test]
    fn the_oldest_is_found_by_halving() {
        for there in 3..40 {
            let mut asked = 0;
            let found = oldest(2, 40, |number| {
                asked += 1;
                Ok(number >= there)
            });
            assert!(matches!(found, Ok(found) if found == there), "{there}");
            assert!(asked <= 6, "{asked}");
        }
        assert!(matches!(oldest(2, 3, |_| Ok(false)), Ok(3)));
    }

    #[test]
    fn a_loss_over_a_switch_is_two_gaps() {
        let history = TimelineHistory::parse(
            "1\t0/3000100\tno recovery target specified\n",
            TimelineId(2),
        );
        let Ok(history) = history else {
            panic!("{history:?}")
        };
        let found = gaps(&history, &(Lsn(0x200_0000)..Lsn(0x500_0000)), "lost");
        let ranges: Vec<_> = found
            .iter()
            .map(|gap| (gap.timeline.0, gap.begin.0, gap.end.0))
            .collect();
        assert_eq!(
            ranges,
            [(1, 0x200_0000, 0x300_0100), (2, 0x300_0100, 0x500_0000)]
        );
    }
}
