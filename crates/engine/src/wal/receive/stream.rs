//! One stream: from the server into the queue, and back to the server what is durable.

use std::time::{Duration, Instant};

use leeward_pgformat::Lsn;
use leeward_postgres::Error as PostgresError;
use leeward_postgres::replication::{NextTimeline, Streamed, WalStream};

use super::bell::Stop;
use super::queue::Queue;
use super::{Trouble, UNDEFINED_FILE};
use crate::error::Error;

/// The server hears from us this often although nothing happens (`wal_receiver_status_interval`).
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// A server that was asked for a sign of life after half of this, and gave none, is given up
/// (`wal_receiver_timeout`).
const SILENCE: Duration = Duration::from_secs(60);
/// How long a reply waits for what is being stored.
const REPLY_WITHIN: Duration = Duration::from_millis(100);
/// How long a server that wants to stop is kept waiting for a store that fails.
const LET_GO_AFTER: Duration = Duration::from_secs(5);
/// A server that stops waits until everything is acknowledged (`walsender.c`, WalSndDone), however long that takes.
const LEAVING: &str = "the server is stopping, and would wait for the store";
/// How long the last bytes may take at the end.
const FAREWELL: Duration = Duration::from_secs(20);

/// How a stream ended.
pub(super) enum End {
    /// Somebody asked us to stop.
    Stopped,
    /// The timeline is over.
    Timeline(NextTimeline, WalStream),
    /// The server no longer has the WAL it was asked for.
    Missing,
}

/// What was said to the server.
struct Conversation {
    /// When the stream began, until it brought the first WAL.
    unproven_since: Option<Instant>,
    told: Option<(Instant, Lsn)>,
    reply_wanted: Option<Instant>,
    /// Since when, and how often, it has asked for replies although not all it sent is durable: so does a server that
    /// wants to stop (`walsender.c`, WalSndDone).
    urged: Option<(Instant, u32)>,
    asked: bool,
}

impl Conversation {
    /// Tells the server what is durable, when there is something to tell or it wants to hear.
    fn keep_up(&mut self, stream: &mut WalStream, queue: &Queue) -> Result<(), PostgresError> {
        // In this order: what is durable once nothing is compared any more lies behind it.
        let comparing = queue.is_comparing();
        let durable = queue.durable();
        let received = queue.position().map_or(durable, |(_, lsn)| lsn);
        if durable >= received {
            self.urged = None;
            queue.hurry(false);
        }
        let now = Instant::now();
        let silent = stream.silent_for() >= SILENCE / 2;
        let due = self
            .told
            .is_none_or(|(at, lsn)| lsn != durable || now.duration_since(at) >= STATUS_EVERY)
            || self.reply_wanted.is_some_and(|since| {
                durable >= received || now.duration_since(since) >= REPLY_WITHIN
            });
        if due || (silent && !self.asked) {
            // The slot would go back to before a WAL segment that is compared, and the server may let go of that.
            let flushed = if self.is_proven() && !comparing {
                durable
            } else {
                Lsn::INVALID
            };
            stream.status(received, flushed, silent)?;
            self.told = Some((now, durable));
            self.reply_wanted = None;
        }
        self.asked = silent;
        Ok(())
    }

    /// Whether the server has what it was asked for. A position it has not must not reach the slot, which would hold from
    /// there on, and so be lost.
    fn is_proven(&self) -> bool {
        self.unproven_since
            .is_none_or(|since| since.elapsed() >= STATUS_EVERY / 2)
    }

    /// When [`Conversation::keep_up`] has something to do at the latest.
    fn next_deadline(&self) -> Instant {
        let now = Instant::now();
        let status = self.told.map_or(now, |(at, _)| at + STATUS_EVERY);
        self.reply_wanted
            .map_or(status, |since| status.min(since + REPLY_WITHIN))
    }

    fn reply_requested(&mut self, queue: &Queue) -> Result<(), Trouble> {
        let now = Instant::now();
        self.reply_wanted.get_or_insert(now);
        if queue.is_empty() {
            return Ok(());
        }
        queue.hurry(true);
        let (since, times) = self.urged.unwrap_or((now, 0));
        self.urged = Some((since, times + 1));
        if times >= 3 && now.duration_since(since) >= LET_GO_AFTER && queue.trouble().is_some() {
            return Err(Trouble::Wait(LEAVING.to_owned()));
        }
        Ok(())
    }
}

/// Takes what the server sends until the stream ends. `tell` is called again and again.
pub(super) fn follow(
    mut stream: WalStream,
    queue: &Queue,
    stop: &Stop,
    tell: &mut dyn FnMut(),
) -> Result<End, Trouble> {
    let mut conversation = Conversation {
        unproven_since: Some(Instant::now()),
        told: None,
        reply_wanted: None,
        urged: None,
        asked: false,
    };
    let mut farewell: Option<Instant> = None;
    loop {
        stop.hush();
        tell();
        if let Some(failure) = queue.take_failure() {
            return Err(Trouble::Final(failure));
        }
        if stop.is_asked() && farewell.is_none() {
            farewell = Some(Instant::now() + FAREWELL);
            queue.stop();
        }
        if queue.is_server_leaving() && (queue.trouble().is_some() || !queue.has_room()) {
            return Err(Trouble::Wait(LEAVING.to_owned()));
        }
        conversation.keep_up(&mut stream, queue)?;
        if let Some(until) = farewell {
            if queue.is_done() || Instant::now() >= until {
                conversation.keep_up(&mut stream, queue)?;
                return Ok(End::Stopped);
            }
            stop.wait(conversation.next_deadline().min(until));
            continue;
        }
        if !queue.has_room() {
            stop.wait(conversation.next_deadline());
            // Nobody listened, so nothing says that the server was silent.
            stream.listened();
            continue;
        }
        match stream.next(conversation.next_deadline(), Some(stop.descriptor())) {
            Ok(Streamed::Wal(data)) => {
                let expected = queue.position().map(|(_, lsn)| lsn);
                if expected != Some(data.start) {
                    return Err(Trouble::Final(Error::failed(format!(
                        "the server sent WAL from {} on, and {} was to come next",
                        data.start,
                        expected.unwrap_or(Lsn::INVALID)
                    ))));
                }
                queue.append(data.bytes()).map_err(Trouble::Final)?;
                if conversation.unproven_since.take().is_some() {
                    conversation.told = None;
                }
            }
            Ok(Streamed::Keepalive {
                reply_requested: true,
                ..
            }) => conversation.reply_requested(queue)?,
            Ok(Streamed::Keepalive { .. }) => {}
            Ok(Streamed::TimelineEnded(next)) => return Ok(End::Timeline(next, stream)),
            Ok(Streamed::Idle) if stream.silent_for() >= SILENCE => {
                return Err(Trouble::Wait(format!(
                    "the server has said nothing for {} s",
                    SILENCE.as_secs()
                )));
            }
            Ok(Streamed::Idle) => {}
            Err(error) if error.sqlstate() == Some(UNDEFINED_FILE) => return Ok(End::Missing),
            Err(error) => return Err(error.into()),
        }
    }
}
