//! The end of what a standby has replayed, which is where its backup ends: `docs/decisions/0015-the-end-of-a-backup.md`.

use std::ffi::OsStr;
use std::io::{self, Read, Seek};
use std::thread;
use std::time::{Duration, Instant};

use leeward_pgformat::wal_segment::{
    WAL_PAGE_SIZE, WalSegmentName, WalSegmentSize, parse_history_file_name,
};
use leeward_pgformat::{Lsn, TimelineId, WalEvent, WalScanner};
use leeward_postgres::backup_session::BackupSession;

use super::wal::{PgWal, unreadable};
use crate::error::{Error, Result};

/// A record that is replayed no sooner is held back, or is a long one.
const PATIENCE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(10);

/// Returns the end of the WAL that a standby has replayed whose files are all copied. Files that replay removed meanwhile, as
/// transaction status that vacuum needs no more or the file of a prepared transaction, are missing in the copy, and no minimum
/// recovery point tells: only behind the record that removed them is nothing missing. That may be the record under replay. One
/// that replay has not begun, since it is paused or holds a commit back, is not part of the backup.
pub(super) fn end_of_replay(
    pg_wal: &PgWal,
    session: &mut BackupSession,
    size: WalSegmentSize,
) -> Result<(Lsn, TimelineId)> {
    let mut position = session.position()?;
    let replayed = position.replay_lsn;
    // Nothing was replayed since the server started.
    if replayed == Lsn::INVALID {
        return Ok((replayed, position.timeline));
    }
    let next = pg_wal.next_record(replayed, position.timeline, size)?;
    let deadline = Instant::now() + PATIENCE;
    let is_replayed = loop {
        if position.replay_lsn > replayed {
            break true;
        }
        if position.is_paused || next.end <= replayed {
            break false;
        }
        if Instant::now() >= deadline {
            break !next.may_be_delayed;
        }
        thread::park_timeout(POLL);
        position = session.position()?;
    };
    let end = if is_replayed { next.end } else { replayed };
    Ok((end, next.timeline))
}

/// The record that follows on what a standby has replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NextRecord {
    /// Its end; the position itself where no complete record begins there, so that nothing is being replayed.
    end: Lsn,
    timeline: TimelineId,
    /// It is a commit, which `recovery_min_apply_delay` holds back before any of it is replayed.
    may_be_delayed: bool,
}

impl PgWal {
    /// Returns the record that a standby may be replaying which has replayed everything before `replayed`, on `timeline` or a
    /// later one that the standby has gone over to.
    ///
    /// # Errors
    /// The WAL before `replayed` is not there.
    fn next_record(
        &self,
        replayed: Lsn,
        timeline: TimelineId,
        size: WalSegmentSize,
    ) -> Result<NextRecord> {
        let names = (self.directory.names()).map_err(|e| unreadable(&self.path, e))?;
        let mut timelines: Vec<TimelineId> = names
            .iter()
            .filter_map(|name| parse_history_file_name(name.to_str()?))
            .filter(|later| *later > timeline)
            .chain([timeline])
            .collect();
        timelines.sort_unstable();
        for timeline in timelines {
            if let Some(next) = self.record_at(replayed, timeline, size)? {
                return Ok(next);
            }
        }
        Err(Error::failed(format!(
            "\"{}\" does not hold the WAL up to {replayed}, which the server has replayed",
            self.path.display()
        ))
        .hint("Something other than the server removed it, or the server was restarted meanwhile. Run the command again."))
    }

    /// Returns the record that begins at `lsn`; `None` when no record ends there.
    fn record_at(
        &self,
        lsn: Lsn,
        timeline: TimelineId,
        size: WalSegmentSize,
    ) -> Result<Option<NextRecord>> {
        let page_bytes = u64::from(WAL_PAGE_SIZE);
        // A position behind the header of a page is that of the page.
        let header = if size.offset(lsn) < page_bytes {
            40
        } else {
            24
        };
        let lsn = match lsn.0 % page_bytes {
            in_page if in_page <= header => Lsn(lsn.0 - in_page),
            _ => lsn,
        };
        // Behind a switch of segments nothing ends where the segment does.
        let mut ends_there = size.offset(lsn) == 0;
        let page = if ends_there {
            let before = WalSegmentName {
                timeline,
                number: size.segment_number_before(lsn),
            };
            if !self.holds(&before.name(size))? {
                return Ok(None);
            }
            lsn
        } else {
            Lsn((lsn.0 - 1) / page_bytes * page_bytes)
        };
        let mut scanner = WalScanner::new(page, size);
        scanner.look_for(lsn);
        let mut may_be_delayed = false;
        let nothing = NextRecord {
            end: lsn,
            timeline,
            may_be_delayed,
        };
        let mut buffer = vec![0; WAL_PAGE_SIZE as usize];
        for number in size.segment_number(page).. {
            let name = WalSegmentName { timeline, number }.name(size);
            if !self.holds(&name)? {
                break;
            }
            let path = self.path.join(&name);
            let failed = |e| unreadable(&path, e);
            let mut segment = (self.directory.open_file(OsStr::new(&name))).map_err(failed)?;
            segment
                .seek(io::SeekFrom::Start(size.offset(scanner.position())))
                .map_err(failed)?;
            loop {
                // The first page up to `lsn` first: a record has to end there.
                let left = match lsn.0.saturating_sub(scanner.position().0) {
                    0 => buffer.len(),
                    left => buffer.len().min(left as usize),
                };
                let length = segment.read(&mut buffer[..left]).map_err(failed)?;
                if length == 0 {
                    break;
                }
                // The bytes behind the last record received are anything.
                let damage = scanner.feed(&buffer[..length], &mut |event| {
                    may_be_delayed |=
                        matches!(event, WalEvent::Commit { begin, .. } if begin == lsn);
                });
                ends_there |= scanner.position() == lsn && scanner.end_of_valid() == lsn;
                let is_over = damage.is_err() || scanner.reached_end();
                if let (Some(found), true) = (scanner.found(), ends_there) {
                    return Ok(Some(NextRecord {
                        end: found.end,
                        may_be_delayed,
                        ..nothing
                    }));
                }
                if is_over {
                    return Ok(ends_there.then_some(nothing));
                }
            }
        }
        Ok(ends_there.then_some(nothing))
    }
}

#[cfg(test)]
mod tests {
    use leeward_fixtures::Wal;

    use super::*;
    use crate::backup::wal::tests::{pad, pg_wal, size};

    #[test]
    fn replay_ends_behind_the_record_that_begins_where_all_is_replayed() {
        let size = size();
        let mut wal = Wal::new(size, 3, 1);
        let mut ends = Vec::new();
        for length in [100, 8_100, 20_000, 1_200_000, 8, 500] {
            ends.push(wal.filler(length).1);
        }
        let (_, last) = wal.commit(700, 1_000);
        ends.push(last);
        pad(&mut wal);
        let folder = tempfile::tempdir().expect("a directory");
        let pg_wal = pg_wal(folder.path(), &[&wal]);
        let asked = |lsn| pg_wal.next_record(lsn, TimelineId(1), size);
        for pair in ends.windows(2) {
            let found = asked(pair[0]).expect("found");
            assert_eq!((found.end, found.timeline), (pair[1], TimelineId(1)));
            assert_eq!(found.may_be_delayed, pair[1] == last);
        }
        assert_eq!(asked(last).expect("found").end, last);
        // The position of a server that has only just begun to replay.
        let page = Lsn(ends[2].0 / 8192 * 8192);
        assert!(
            asked(page).is_err() && asked(page + 24).is_err(),
            "within a record"
        );
        // Nothing ends within a record, and nothing lies behind the end.
        for lsn in [ends[2] + 8, last + 8] {
            let error = asked(lsn).expect_err("no record ends there");
            assert!(
                error.to_string().contains("does not hold the WAL"),
                "{error}"
            );
        }
    }

    #[test]
    fn replay_goes_on_behind_a_switch_and_on_a_later_timeline() {
        let size = size();
        let mut wal = Wal::new(size, 3, 1);
        wal.filler(5_000);
        wal.switch(0);
        let border = wal.end();
        let folder = tempfile::tempdir().expect("a directory");
        let old = pg_wal(folder.path(), &[&wal]);
        let asked = |pg_wal: &PgWal, lsn| {
            let next = pg_wal.next_record(lsn, TimelineId(1), size);
            next.map(|next| (next.end, next.timeline))
        };
        assert_eq!(
            asked(&old, border).expect("found"),
            (border, TimelineId(1)),
            "the next segment has not begun"
        );

        let mut next = Wal::new(size, 4, 2);
        next.timeline = TimelineId(2);
        let (_, first) = next.filler(300);
        let (_, second) = next.filler(300);
        pad(&mut next);
        std::fs::write(folder.path().join("00000002.history"), "1\t0/400000\tx\n")
            .expect("written");
        let new = crate::backup::wal::tests::pg_wal(folder.path(), &[&next]);
        assert_eq!(asked(&new, first).expect("found"), (second, TimelineId(2)));
    }
}
