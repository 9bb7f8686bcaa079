//! Streams WAL from a server into the archive: pieces within a second, whole segments when they are full, and to the
//! server the word that it may let go of what is durable, never of more.
//!
//! One thread talks to the server, one to the store; between them lie a few WAL segments in unlinked files. A third
//! deletes pieces that are no longer needed, a fourth keeps an eye on the slot. See
//! `docs/decisions/0006-wal-stream-and-targets.md`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leeward_pgformat::{
    Lsn, SystemIdentifier, TimelineHistory, TimelineId, WalSegmentName, WalSegmentSize,
};
use leeward_postgres::Error as PostgresError;
use leeward_postgres::connection::Connection;
use leeward_postgres::replication::{ReplicationConnection, SystemIdentity};
use leeward_postgres::server_facts::Role;
use leeward_postgres::target::ConnectTarget;
use leeward_repository::repository_error::RepositoryError;
use leeward_repository::store::Store;
use leeward_repository::wal_archive::{Holdings, WalArchive};

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};

mod bell;
mod buffer;
mod loss;
mod meet;
mod queue;
#[cfg(test)]
mod queue_tests;
mod resume;
mod settle;
mod slot;
mod storer;
#[cfg(test)]
mod storer_tests;
mod stream;

pub use bell::Stop;
pub use queue::Tally;

use queue::Queue;
use storer::{Patience, Storer};
use stream::End;

/// SQLSTATE of "undefined file": the server no longer has the WAL (`walsender.c`, WalSndSegmentOpen).
const UNDEFINED_FILE: &str = "58P01";
/// SQLSTATE of "cannot connect now": the server is starting up or stopping.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// How often numbers are told.
const NUMBERS_EVERY: Duration = Duration::from_secs(60);
/// How often the slot is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long a connection to the server that cannot be had is not tried again, at first and at most.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How often an outage of the server is told again.
const TELL_EVERY: Duration = Duration::from_secs(300);

/// What to receive, and how.
#[derive(Clone, Debug)]
pub struct ReceiveOptions {
    /// The data directory, where it can be read: its `postmaster.pid` names the server, its `pg_wal` may have what the
    /// server does not send.
    pub pgdata: Option<PathBuf>,
    /// As libpq reads it.
    pub conninfo: Option<String>,
    /// The cluster's name in the repository.
    pub cluster: String,
    /// The replication slot; made where there is none.
    pub slot: String,
    /// How long received WAL waits for more before it becomes a piece.
    pub piece_interval: Duration,
    /// Where the files of the WAL segments under way are made; they have no names there. A file system in memory
    /// counts as memory.
    pub buffer: PathBuf,
    /// zstd's level.
    pub level: i32,
}

/// What came of it when somebody asked for the end.
#[derive(Clone, Copy, Debug)]
pub struct ReceiveOutcome {
    /// The timeline that was received last.
    pub timeline: TimelineId,
    /// Everything before is durable, and the server knows.
    pub durable: Lsn,
    /// Numbers.
    pub tally: Tally,
    /// Stretches of WAL that were lost and recorded.
    pub gaps: u64,
}

/// Why a stream cannot begin or go on.
enum Trouble {
    /// The server cannot be talked to, now.
    Server(PostgresError),
    /// Something has to change before it makes sense to try again.
    Wait(String),
    /// Somebody asked us to stop.
    Stopped,
    /// Nothing helps.
    Final(Error),
}

impl From<PostgresError> for Trouble {
    fn from(error: PostgresError) -> Trouble {
        Trouble::Server(error)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Final(error)
    }
}

/// Receives WAL until `stop` is asked for it, whatever server and store do meanwhile.
///
/// # Errors
/// When the first connection to server or store fails; later, when trying again cannot help: another cluster's server,
/// damaged WAL, or WAL that differs from what the archive holds.
pub fn receive(
    store: &Arc<dyn Store>,
    options: &ReceiveOptions,
    stop: &Stop,
    observe: Observer<'_>,
) -> Result<ReceiveOutcome> {
    if !slot::is_slot_name(&options.slot) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "\"{}\" cannot be the name of a replication slot",
                options.slot
            ),
        )
        .hint("Use lower-case letters, digits and underscores, 63 at most."));
    }
    let mut receiver = Receiver {
        store,
        options,
        stop,
        observe,
        target: ConnectTarget {
            conninfo: options.conninfo.clone(),
            // Whoever names a server need not have its directory here.
            pgdata: options.pgdata.clone(),
            application_name: Some("leeward wal receive".to_owned()),
            ..ConnectTarget::default()
        },
        desk: None,
        histories: BTreeSet::new(),
        missing: None,
        comparing: None,
        lacking: None,
        slot_seen: false,
        gaps: 0,
        streamed: false,
        told: (Instant::now(), Tally::default()),
    };
    let result = receiver.run();
    receiver.tell();
    if let Some(desk) = &receiver.desk {
        desk.queue.stop();
    }
    result?;
    let (timeline, durable, tally) = receiver.desk.as_ref().map_or_else(
        || (TimelineId(0), Lsn::INVALID, Tally::default()),
        |desk| (desk.timeline, desk.queue.durable(), desk.queue.tally()),
    );
    Ok(ReceiveOutcome {
        timeline,
        durable,
        tally,
        gaps: receiver.gaps,
    })
}

/// What exists once the cluster is known.
struct Desk {
    system_identifier: SystemIdentifier,
    size: WalSegmentSize,
    cluster: leeward_repository::catalog::Cluster,
    archive: WalArchive,
    storer: Storer,
    queue: Arc<Queue>,
    timeline: TimelineId,
}

struct Receiver<'a> {
    store: &'a Arc<dyn Store>,
    options: &'a ReceiveOptions,
    stop: &'a Stop,
    observe: Observer<'a>,
    target: ConnectTarget,
    desk: Option<Desk>,
    /// Timelines whose history file is stored, or on its way.
    histories: BTreeSet<TimelineId>,
    /// What the server said it no longer has.
    missing: Option<WalSegmentName>,
    /// The WAL segment that the stream began with although the archive has it: to be compared.
    comparing: Option<WalSegmentName>,
    /// One that cannot be compared, because the server no longer has it. Nothing is lost by that.
    lacking: Option<WalSegmentName>,
    slot_seen: bool,
    gaps: u64,
    /// Whether any WAL was ever asked for: from then on nothing but a contradiction ends us.
    streamed: bool,
    told: (Instant, Tally),
}

/// A server as it was met.
struct Server {
    connection: ReplicationConnection,
    identity: SystemIdentity,
    role: Role,
    history: TimelineHistory,
    restart_lsn: Option<Lsn>,
}

impl Receiver<'_> {
    fn notice(&self, text: String) {
        (self.observe)(Event::Notice(text));
    }

    fn run(&mut self) -> Result<()> {
        let mut pause = RECONNECT.0;
        let mut told: Option<Instant> = None;
        let began = Instant::now();
        while !self.stop.is_asked() {
            let problem = match self.session(&mut told) {
                Ok(()) => {
                    pause = RECONNECT.0;
                    continue;
                }
                Err(Trouble::Stopped) => break,
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Server(error)) => {
                    let starting = error.sqlstate() == Some(CANNOT_CONNECT_NOW);
                    if !self.streamed && !starting {
                        return Err(error.into());
                    }
                    error.to_string()
                }
                Err(Trouble::Wait(problem)) => {
                    if !self.streamed && began.elapsed() > LOOK_EVERY {
                        return Err(Error::new(ErrorKind::Held, problem));
                    }
                    problem
                }
            };
            if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                told = Some(Instant::now());
                self.notice(format!("Not streaming: {problem}. Leeward goes on trying."));
            }
            let until = Instant::now() + pause;
            while Instant::now() < until && !self.stop.is_asked() {
                self.stop.wait(until);
                self.tell();
                self.check()?;
            }
            pause = (pause * 2).min(RECONNECT.1);
        }
        self.farewell()
    }

    /// At the end without a server: what was received is stored, if the store works.
    fn farewell(&self) -> Result<()> {
        let Some(desk) = &self.desk else {
            return Ok(());
        };
        desk.queue.stop();
        let until = Instant::now() + Duration::from_secs(20);
        while !desk.queue.is_done() && Instant::now() < until {
            self.stop.wait(until);
        }
        if !desk.queue.is_empty() {
            self.notice(
                "Some WAL that was received is not stored, because the store fails; the server's slot keeps it."
                    .to_owned(),
            );
        }
        self.check()
    }

    /// What the store's thread gave up over.
    fn check(&self) -> Result<()> {
        match self
            .desk
            .as_ref()
            .and_then(|desk| desk.queue.take_failure())
        {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// Passes on what the other threads have to tell, and numbers now and then.
    fn tell(&mut self) {
        let Some(desk) = &self.desk else {
            return;
        };
        for notice in desk.queue.take_notices() {
            (self.observe)(Event::Notice(notice));
        }
        let (at, before) = self.told;
        if at.elapsed() >= NUMBERS_EVERY {
            let now = desk.queue.tally();
            self.told = (Instant::now(), now);
            if now.received_bytes > before.received_bytes {
                self.notice(format!(
                    "Durable up to {} on timeline {}: {} MiB received since {} s ago, {} WAL segments and {} pieces stored.",
                    desk.queue.durable(),
                    desk.timeline,
                    (now.received_bytes - before.received_bytes) >> 20,
                    at.elapsed().as_secs(),
                    now.segments - before.segments,
                    now.pieces - before.pieces,
                ));
            }
        }
    }

    /// Runs something against the store. Before the first stream its failure is ours; later it is tried without end.
    fn patiently<T>(
        &mut self,
        what: &str,
        mut attempt: impl FnMut(&Self) -> std::result::Result<T, RepositoryError>,
    ) -> std::result::Result<T, Trouble> {
        let mut patience = Patience::new();
        loop {
            match attempt(self) {
                Ok(value) => return Ok(value),
                Err(error) if self.streamed && storer::is_outage(&error) => {
                    if patience.tells() {
                        self.notice(format!(
                            "Could not {what}: {error}. Leeward goes on trying."
                        ));
                    }
                    let until = Instant::now() + patience.pause();
                    while Instant::now() < until {
                        if self.stop.is_asked() {
                            return Err(Trouble::Stopped);
                        }
                        self.stop.wait(until);
                        self.tell();
                        self.check()?;
                    }
                }
                Err(error) => {
                    return Err(Trouble::Final(crate::repository::doing(
                        &format!("could not {what}"),
                        error,
                    )));
                }
            }
        }
    }

    /// Meets the server, decides where to go on, and streams until something ends it.
    fn session(&mut self, told: &mut Option<Instant>) -> std::result::Result<(), Trouble> {
        let mut server = self.meet()?;
        let (timeline, from) = self.position(&mut server)?;
        let slot = self.options.slot.clone();
        let mut stream = match server.connection.start(Some(&slot), from, timeline) {
            Ok(stream) => stream,
            Err(error) if error.sqlstate() == Some("55006") => {
                return Err(Trouble::Wait(in_use(&slot, None)));
            }
            Err(error) if error.sqlstate() == Some(UNDEFINED_FILE) => {
                self.note_missing(timeline, from);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let again = std::mem::replace(&mut self.streamed, true);
        if let Some(desk) = &self.desk {
            desk.queue.set_server_leaving(false);
        }
        self.notice(format!(
            "{} WAL of cluster \"{}\" from a {} ({}), slot \"{slot}\", from {from} on timeline {timeline} on.",
            if again { "Streaming" } else { "Receiving" },
            self.options.cluster,
            server.role,
            self.target_words(),
        ));
        if !again && server.role == Role::Primary {
            self.notice(
                "This server is a primary. From a standby the same stream costs the primary nothing.".to_owned(),
            );
        }
        *told = None;
        loop {
            let Some(desk) = &mut self.desk else {
                return Ok(());
            };
            desk.timeline = desk
                .queue
                .position()
                .map_or(desk.timeline, |(timeline, _)| timeline);
            let queue = Arc::clone(&desk.queue);
            let stop = self.stop;
            match stream::follow(stream, &queue, stop, &mut || self.tell())? {
                End::Stopped => return Err(Trouble::Stopped),
                End::Missing => {
                    if let Some((timeline, lsn)) = queue.position() {
                        self.note_missing(timeline, lsn);
                    }
                    return Ok(());
                }
                End::Timeline(next, ended) => {
                    queue.end();
                    self.notice(format!(
                        "Timeline {} follows at {}.",
                        next.timeline, next.begin
                    ));
                    // Somebody else's WAL of that timeline may be there: what follows is compared with it first.
                    if resume::has_wal(&self.holdings()?, next.timeline) {
                        return Ok(());
                    }
                    let Some(mut connection) = ended.into_connection() else {
                        return Ok(());
                    };
                    self.store_history(&mut connection, next.timeline)?;
                    let size = queue.segment_size();
                    let segment = WalSegmentName::containing(next.timeline, next.begin, size);
                    queue.begin(segment, None).map_err(Trouble::Final)?;
                    stream =
                        connection.start(Some(&slot), segment.start_lsn(size), next.timeline)?;
                }
            }
        }
    }

    fn note_missing(&mut self, timeline: TimelineId, lsn: Lsn) {
        if let Some(desk) = &self.desk {
            let segment = Some(WalSegmentName {
                timeline,
                number: desk.size.segment_number(lsn),
            });
            if self.comparing == segment {
                self.lacking = segment;
            } else {
                self.missing = segment;
            }
            desk.queue.end();
        }
    }

    fn target_words(&self) -> String {
        match &self.options.pgdata {
            Some(pgdata) if self.options.conninfo.is_none() => pgdata.display().to_string(),
            _ => "by its connection string".to_owned(),
        }
    }

    /// What the archive holds, as far as one listing says.
    fn holdings(&mut self) -> std::result::Result<Holdings, Trouble> {
        self.patiently("list the WAL archive", |receiver| match &receiver.desk {
            Some(desk) => desk.archive.holdings(desk.size),
            None => Ok(Holdings::default()),
        })
    }
}

fn in_use(slot: &str, pid: Option<i32>) -> String {
    match pid {
        Some(pid) => {
            format!("replication slot \"{slot}\" is in use by process {pid} of the server")
        }
        None => format!("replication slot \"{slot}\" is in use"),
    }
}

/// Keeps an eye on the slot until the queue ends.
fn watch(queue: &Queue, target: &ConnectTarget, name: &str) {
    let mut connection: Option<Connection> = None;
    let mut at_risk = false;
    while !queue.pause(if queue.trouble().is_some() {
        LOOK_EVERY / 5
    } else {
        LOOK_EVERY
    }) && !queue.is_done()
    {
        // A server that cannot be asked is the stream's news, not ours; but one that refuses although it streams is
        // about to stop.
        if connection.is_none() {
            let connected = Connection::connect(target);
            queue.set_server_leaving(
                matches!(&connected, Err(error) if error.sqlstate() == Some(CANNOT_CONNECT_NOW)),
            );
            connection = connected.ok();
        }
        let Some(looked) = connection
            .as_mut()
            .map(|connection| slot::look(connection, name))
        else {
            continue;
        };
        let Ok((_, size, Some(state))) = looked else {
            connection = None;
            continue;
        };
        let was_at_risk = std::mem::replace(&mut at_risk, state.is_at_risk(size));
        if at_risk && !was_at_risk {
            queue.notice(format!(
                "Slot \"{name}\" is close to being lost: the server may let go of WAL that is not stored yet after {} MiB \
                 more (max_slot_wal_keep_size is {} MiB). See whether the store keeps up.",
                state.safe_bytes(size).unwrap_or(0).max(0) >> 20,
                state.limit_bytes >> 20
            ));
        } else if was_at_risk && !at_risk {
            queue.notice(format!("Slot \"{name}\" is safe again."));
        }
    }
}
