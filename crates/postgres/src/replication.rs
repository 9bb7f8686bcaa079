//! Physical replication: WAL as it is written, from a standby or a primary (`walsender.c`; PostgreSQL's manual,
//! "Streaming Replication Protocol").
//!
//! A connection asks who the server is and which history its timelines have, and becomes a stream. The stream hands out
//! WAL in the order of the log and tells the server what is safe here. Nothing waits for ever: each call has a deadline,
//! broken lines are found by TCP's keepalives, and a server that has fallen silent by [`WalStream::silent_for`].

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use leeward_pgformat::{Lsn, SystemIdentifier, TimelineId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::connection::{Connection, Rows, unexpected};
use crate::error::Error;
use crate::libpq::{AnswerKind, CopyData, CopyStep};
use crate::target::ConnectTarget;

/// Longest wait for a command's answer: the server reads small files at most.
const PATIENCE: Duration = Duration::from_secs(30);

/// Seconds from 1970 to 2000, where PostgreSQL's clock begins (`timestamp.h`).
const POSTGRES_EPOCH_SECONDS: u64 = 946_684_800;

/// A replication connection that is not streaming.
#[derive(Debug)]
pub struct ReplicationConnection(Connection);

/// `IDENTIFY_SYSTEM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The timeline whose WAL the server has newest.
    pub timeline: TimelineId,
    /// How far it has it: flushed by a primary, received or replayed by a standby.
    pub flushed: Lsn,
}

/// `TIMELINE_HISTORY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFile {
    /// `00000002.history`.
    pub name: String,
    /// The file, byte for byte.
    pub content: Vec<u8>,
}

impl ReplicationConnection {
    /// Connects with `replication=true`. The role needs `REPLICATION`, and `pg_hba.conf` a line for the database
    /// `replication`.
    ///
    /// # Errors
    /// As [`Connection::connect`].
    pub fn connect(target: &ConnectTarget) -> Result<ReplicationConnection, Error> {
        Connection::connect_for_replication(target).map(ReplicationConnection)
    }

    /// Where the connection goes; never a password.
    pub fn describe(&self) -> &str {
        self.0.describe()
    }

    /// The server's version as a number: 150018 for 15.18.
    pub fn server_version(&self) -> i32 {
        self.0.server_version()
    }

    /// Which cluster this is, and how far its WAL reaches.
    ///
    /// # Errors
    /// Those of [`Connection::query`].
    pub fn identify_system(&mut self) -> Result<SystemIdentity, Error> {
        let rows = self
            .0
            .command_during("identify the server", "IDENTIFY_SYSTEM", PATIENCE)?;
        Ok(SystemIdentity {
            system_identifier: SystemIdentifier(rows.parse(0, 0)?),
            timeline: TimelineId(rows.parse(0, 1)?),
            flushed: rows.parse(0, 2)?,
        })
    }

    /// The history file of `timeline`. Timeline 1 has none.
    ///
    /// # Errors
    /// Those of [`Connection::query`]; SQLSTATE 58P01 when the server has no such file.
    pub fn timeline_history(&mut self, timeline: TimelineId) -> Result<HistoryFile, Error> {
        let during = format!("read the history of timeline {timeline}");
        let command = format!("TIMELINE_HISTORY {}", timeline.0);
        let rows = self.0.command_during(&during, &command, PATIENCE)?;
        let content = rows
            .bytes(0, 1)
            .ok_or_else(|| unexpected(&during, "no content"))?;
        Ok(HistoryFile {
            name: rows.text(0, 0)?.to_owned(),
            content: content.to_vec(),
        })
    }

    /// Makes a physical slot that holds WAL from the last restartpoint (on a primary: checkpoint) on.
    ///
    /// # Errors
    /// Those of [`Connection::query`]; SQLSTATE 42710 when the slot exists, 53400 when all slots are taken, 42501
    /// without the `REPLICATION` attribute.
    pub fn create_slot(&mut self, slot: &str) -> Result<(), Error> {
        // 14 knows this spelling only; later ones read it too (`repl_gram.y`, create_slot_legacy_opt).
        let command = format!(
            "CREATE_REPLICATION_SLOT {} PHYSICAL RESERVE_WAL",
            quoted(slot)
        );
        self.0
            .command_during("create the replication slot", &command, PATIENCE)
            .map(drop)
    }

    /// Drops a slot that nobody uses.
    ///
    /// # Errors
    /// Those of [`Connection::query`]; SQLSTATE 42704 when there is none, 55006 when it is in use.
    pub fn drop_slot(&mut self, slot: &str) -> Result<(), Error> {
        let command = format!("DROP_REPLICATION_SLOT {}", quoted(slot));
        self.0
            .command_during("drop the replication slot", &command, PATIENCE)
            .map(drop)
    }

    /// Asks for the WAL of `timeline` from `from` on. That the server no longer has it is said only by the stream's
    /// first [`WalStream::next`] (SQLSTATE 58P01).
    ///
    /// # Errors
    /// Those of [`Connection::query`]; SQLSTATE 55006 when the slot is in use, 42704 when there is none, 55000 when it
    /// was invalidated (18).
    pub fn start(
        mut self,
        slot: Option<&str>,
        from: Lsn,
        timeline: TimelineId,
    ) -> Result<WalStream, Error> {
        const DURING: &str = "start streaming";
        let slot = slot.map_or_else(String::new, |slot| format!("SLOT {} ", quoted(slot)));
        let command = format!(
            "START_REPLICATION {slot}PHYSICAL {from} TIMELINE {}",
            timeline.0
        );
        self.0.send_command(DURING, &command)?;
        let answer = self
            .0
            .next_answer(DURING, PATIENCE)?
            .ok_or_else(|| self.0.gone(DURING, None))?;
        let mut stream = WalStream {
            connection: self.0,
            heard: Instant::now(),
            ended: None,
            unsent: false,
        };
        match answer.kind() {
            AnswerKind::Copy => {
                if !stream.connection.session.set_nonblocking(true) {
                    return Err(stream.connection.gone(DURING, None));
                }
            }
            // The timeline ended exactly here: the server says at once what comes next.
            AnswerKind::Rows => {
                let rows = Rows {
                    answer,
                    during: DURING.to_owned(),
                };
                stream.ended = Some(next_timeline(&rows)?);
                while stream.connection.next_answer(DURING, PATIENCE)?.is_some() {}
            }
            AnswerKind::Error => return Err(stream.connection.refused(DURING, &answer)),
        }
        Ok(stream)
    }
}

/// What a stream brings.
pub enum Streamed {
    /// WAL.
    Wal(WalData),
    /// A sign of life.
    Keepalive {
        /// How far the server's own WAL reaches.
        server_end: Lsn,
        /// The server wants a [`WalStream::status`] soon, and may hang up without.
        reply_requested: bool,
    },
    /// The timeline is over; the stream brings nothing more. See [`WalStream::into_connection`].
    TimelineEnded(NextTimeline),
    /// The deadline passed, or somebody woke us.
    Idle,
}

/// What follows a timeline that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextTimeline {
    /// The timeline that follows.
    pub timeline: TimelineId,
    /// Where it begins. What was received may reach further, by a part of a record that was never completed.
    pub begin: Lsn,
}

/// A stretch of WAL: 128 KiB at most (`walsender.c`, `MAX_SEND_SIZE`), whole pages or the end of what there is.
pub struct WalData {
    /// The LSN of the first byte.
    pub start: Lsn,
    /// How far the server's own WAL reached when it sent this.
    pub server_end: Lsn,
    message: CopyData,
}

/// Bytes before the WAL in a message: type, start, end, time.
const WAL_HEAD: usize = 25;

impl WalData {
    /// The WAL.
    pub fn bytes(&self) -> &[u8] {
        self.message.bytes().get(WAL_HEAD..).unwrap_or_default()
    }

    /// The LSN after the last byte.
    pub fn end(&self) -> Lsn {
        self.start + self.bytes().len() as u64
    }
}

/// A running stream. Dropping it closes the connection; the slot stays.
pub struct WalStream {
    connection: Connection,
    heard: Instant,
    ended: Option<NextTimeline>,
    unsent: bool,
}

impl WalStream {
    /// What comes next, until `deadline` at most, or until `wake` can be read.
    ///
    /// # Errors
    /// [`Error::Sql`] when the server refuses to go on (58P01: it no longer has the WAL), after which the connection
    /// can only be dropped; [`Error::ServerGone`], also when the server shuts down.
    pub fn next(
        &mut self,
        deadline: Instant,
        wake: Option<BorrowedFd<'_>>,
    ) -> Result<Streamed, Error> {
        const DURING: &str = "receive WAL";
        loop {
            if let Some(next) = self.ended {
                return Ok(Streamed::TimelineEnded(next));
            }
            match self.connection.session.next_copy_data() {
                CopyStep::Data(message) => {
                    self.heard = Instant::now();
                    return read_message(message);
                }
                CopyStep::End => self.ended = Some(self.take_end()?),
                CopyStep::Failed => return Err(self.connection.gone(DURING, None)),
                CopyStep::Nothing => {
                    if !self.wait(deadline, wake)? {
                        return Ok(Streamed::Idle);
                    }
                    if !self.connection.session.consume_input() {
                        return Err(self.connection.gone(DURING, None));
                    }
                }
            }
        }
    }

    /// Waits until the socket can be read. `false` at the deadline and when woken.
    fn wait(&mut self, deadline: Instant, wake: Option<BorrowedFd<'_>>) -> Result<bool, Error> {
        self.flush()?;
        let Some(socket) = self.connection.session.socket() else {
            return Err(self.connection.gone("receive WAL", None));
        };
        let flags = if self.unsent {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut descriptors = vec![PollFd::from_borrowed_fd(socket, flags)];
        descriptors.extend(wake.map(|wake| PollFd::from_borrowed_fd(wake, PollFlags::IN)));
        // A signal is a reason to look around too.
        let ready = poll(&mut descriptors, Some(&timeout)).unwrap_or(0);
        Ok(ready > 0 && !descriptors[0].revents().is_empty())
    }

    /// The end of the COPY: what comes after the timeline, or why there is no more.
    fn take_end(&mut self) -> Result<NextTimeline, Error> {
        const DURING: &str = "receive WAL";
        let mut next = None;
        let mut answered = false;
        while let Some(answer) = self.connection.next_answer(DURING, PATIENCE)? {
            match answer.kind() {
                // The server's half is closed, ours is not (`fe-protocol3.c`, getCopyDataMessage).
                AnswerKind::Copy if !answered => {
                    answered = true;
                    if !self.connection.session.put_copy_end() {
                        return Err(self.connection.gone(DURING, None));
                    }
                    self.flush()?;
                    self.connection.session.set_nonblocking(false);
                }
                AnswerKind::Copy => return Err(unexpected(DURING, "the stream ends twice")),
                AnswerKind::Rows if answer.rows() == 1 => {
                    next = Some(next_timeline(&Rows {
                        answer,
                        during: DURING.to_owned(),
                    })?);
                }
                // A shutdown ends the command without a row (`walsender.c`, WalSndDone).
                _ => {}
            }
        }
        next.ok_or_else(|| Error::ServerGone {
            during: DURING.to_owned(),
            message: "the server ended the stream".to_owned(),
            sqlstate: None,
        })
    }

    /// Tells the server what is safe here: written, and flushed, which lets it remove WAL that no slot holds back.
    /// It is never told that anything was replayed, so nobody takes this for a standby.
    ///
    /// # Errors
    /// [`Error::ServerGone`].
    pub fn status(
        &mut self,
        written: Lsn,
        flushed: Lsn,
        reply_requested: bool,
    ) -> Result<(), Error> {
        const DURING: &str = "acknowledge WAL";
        if self.ended.is_some() {
            return Ok(());
        }
        let mut message = Vec::with_capacity(34);
        message.push(b'r');
        for lsn in [written, flushed, Lsn::INVALID] {
            message.extend_from_slice(&lsn.0.to_be_bytes());
        }
        message.extend_from_slice(&clock().to_be_bytes());
        message.push(u8::from(reply_requested));
        // In the nonblocking mode libpq takes any message, and only the flush may have to wait.
        if !self.connection.session.put_copy_data(&message) {
            return Err(self.connection.gone(DURING, None));
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Error> {
        match self.connection.session.flush() {
            Some(done) => {
                self.unsent = !done;
                Ok(())
            }
            None => Err(self.connection.gone("acknowledge WAL", None)),
        }
    }

    /// How long the server has said nothing. It sends a keepalive when asked for one by [`WalStream::status`].
    pub fn silent_for(&self) -> Duration {
        self.heard.elapsed()
    }

    /// Does as if the server had spoken just now: after a time in which nobody listened.
    pub fn listened(&mut self) {
        self.heard = Instant::now();
    }

    /// The connection, after [`Streamed::TimelineEnded`]; `None` before.
    pub fn into_connection(self) -> Option<ReplicationConnection> {
        self.ended.map(|_| ReplicationConnection(self.connection))
    }
}

impl fmt::Debug for WalStream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("WalStream")
            .field(&self.connection)
            .finish()
    }
}

fn next_timeline(rows: &Rows) -> Result<NextTimeline, Error> {
    Ok(NextTimeline {
        timeline: TimelineId(rows.parse(0, 0)?),
        begin: rows.parse(0, 1)?,
    })
}

fn read_message(message: CopyData) -> Result<Streamed, Error> {
    let bytes = message.bytes();
    let number = |at: usize| {
        bytes
            .get(at..at + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    };
    let streamed = match bytes.first() {
        Some(b'w') if bytes.len() > WAL_HEAD => {
            number(1).zip(number(9)).map(|(start, server_end)| {
                Streamed::Wal(WalData {
                    start,
                    server_end,
                    message,
                })
            })
        }
        Some(b'k') if bytes.len() >= 18 => number(1).map(|server_end| Streamed::Keepalive {
            server_end,
            reply_requested: bytes[17] != 0,
        }),
        _ => None,
    };
    streamed.ok_or_else(|| unexpected("receive WAL", "a message of an unknown kind"))
}

/// Microseconds since 2000, as the server writes times.
fn clock() -> i64 {
    let epoch = std::time::UNIX_EPOCH + Duration::from_secs(POSTGRES_EPOCH_SECONDS);
    let since = std::time::SystemTime::now()
        .duration_since(epoch)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// A name in a replication command.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
