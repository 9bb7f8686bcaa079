//! Meeting a server: who it is, whether the repository's folder is its cluster's, and the slot.

use std::sync::Arc;

use leeward_pgformat::{SystemIdentifier, TimelineHistory, TimelineId, WalSegmentSize};
use leeward_postgres::connection::Connection;
use leeward_postgres::replication::ReplicationConnection;
use leeward_repository::catalog::Repository;
use leeward_repository::repository_error::RepositoryError;
use leeward_repository::wal_archive::WalArchive;

use super::bell::Bell;
use super::queue::Queue;
use super::slot::{self, SlotState};
use super::storer::Storer;
use super::{Desk, Receiver, Server, Trouble, in_use, watch};
use crate::error::{Error, ErrorKind};
use crate::repository::{Writable, open_or_create};

type Result<T> = std::result::Result<T, Trouble>;

impl Receiver<'_> {
    /// Connects, makes sure of everything that streaming stands on, and has the slot ready.
    pub(super) fn meet(&mut self) -> Result<Server> {
        let mut sql = Connection::connect(&self.target)?;
        let (role, size, state) = slot::look(&mut sql, &self.options.slot)?;
        let mut connection = ReplicationConnection::connect(&self.target)?;
        let identity = connection.identify_system()?;
        if self.desk.is_none()
            && state
                .as_ref()
                .is_some_and(|state| state.restart_lsn.is_some())
        {
            self.expect_cluster()?;
        }
        self.claim(identity.system_identifier, identity.timeline, size)?;
        let restart_lsn = match self.prepare_slot(&mut connection, state)? {
            Some(state) => state.restart_lsn,
            None => slot::look(&mut sql, &self.options.slot)?
                .2
                .and_then(|state| state.restart_lsn),
        };
        let history = self.history(&mut connection, identity.timeline)?;
        Ok(Server {
            connection,
            identity,
            role,
            history,
            restart_lsn,
        })
    }

    /// A slot that holds WAL for us says that we were here before. If the repository holds nothing of it, it is another
    /// place than then, as a mount point is whose file system is not mounted: to go on there would be to let go of the WAL.
    fn expect_cluster(&self) -> Result<()> {
        let elsewhere = || {
            let slot = &self.options.slot;
            Err(Trouble::Final(
                Error::failed(format!(
                    "slot \"{slot}\" holds WAL for cluster \"{}\", but {} holds nothing of that cluster",
                    self.options.cluster,
                    self.store.location()
                ))
                .hint(format!(
                    "Is it mounted, and the right one? To begin anew there, drop the slot: SELECT pg_drop_replication_slot('{slot}')."
                )),
            ))
        };
        match Repository::open(Arc::clone(self.store)) {
            Ok(repository) => match repository
                .cluster(&self.options.cluster)
                .and_then(|c| c.file())
            {
                Ok(Some(_)) => Ok(()),
                Ok(None) => elsewhere(),
                Err(error) => Err(Trouble::Final(error.into())),
            },
            Err(RepositoryError::NoRepository { .. }) => elsewhere(),
            Err(error) => Err(Trouble::Final(error.into())),
        }
    }

    /// Holds the server to the cluster that the repository's folder belongs to, and to the one met before.
    fn claim(
        &mut self,
        system_identifier: SystemIdentifier,
        timeline: TimelineId,
        size: WalSegmentSize,
    ) -> Result<()> {
        if let Some(desk) = &self.desk {
            if desk.system_identifier != system_identifier {
                return Err(Trouble::Final(
                    Error::new(
                        ErrorKind::Refused,
                        format!(
                            "the server has system identifier {system_identifier} now, and had {}",
                            desk.system_identifier
                        ),
                    )
                    .hint("Another cluster runs at this address. Give it a name of its own with --cluster."),
                ));
            }
            return self.patiently("look at cluster.json", |receiver| match &receiver.desk {
                Some(desk) => desk.cluster.claim(system_identifier, timeline),
                None => Ok(()),
            });
        }
        let writable = Writable::open(self.store, self.observe)?;
        let cluster = open_or_create(
            &writable.store,
            &self.options.cluster,
            system_identifier,
            timeline,
        )?;
        let archive = WalArchive::new(&cluster);
        let threads = |e: std::io::Error| {
            Trouble::Final(Error::failed("could not start a thread").because(e))
        };
        let bell = Bell::of(self.stop).map_err(threads)?;
        let queue = Arc::new(Queue::new(
            bell,
            size,
            self.options.buffer.clone(),
            self.options.piece_interval,
        ));
        // Tells at once whether the directory can be used.
        queue.file()?;
        let storer = Storer {
            archive: archive.clone(),
            system_identifier,
            level: self.options.level,
            queue: Arc::clone(&queue),
        };
        // None of them is waited for at the end: a store that does not answer may hold them for minutes, and whatever
        // they do is safe to break off.
        let (storing, sweeping) = (storer.clone(), storer.clone());
        queue
            .spawn("store", move || storing.run())
            .map_err(threads)?;
        queue
            .spawn("sweep", move || sweeping.sweep())
            .map_err(threads)?;
        let (watched, target, slot) = (
            Arc::clone(&queue),
            self.target.clone(),
            self.options.slot.clone(),
        );
        queue
            .spawn("watch", move || watch(&watched, &target, &slot))
            .map_err(threads)?;
        self.desk = Some(Desk {
            system_identifier,
            size,
            cluster,
            archive,
            storer,
            queue,
            timeline,
        });
        Ok(())
    }

    /// Makes the slot where there is none, and anew where it was lost. What is known of it, unless it was made now.
    fn prepare_slot(
        &mut self,
        connection: &mut ReplicationConnection,
        state: Option<SlotState>,
    ) -> Result<Option<SlotState>> {
        let slot = &self.options.slot;
        match state {
            Some(state) if !state.physical => {
                return Err(Trouble::Final(
                    Error::new(
                        ErrorKind::Usage,
                        format!("slot \"{slot}\" is a logical one"),
                    )
                    .hint("Name another one with --slot; it is made where there is none."),
                ));
            }
            Some(state) if state.is_lost() => {
                self.notice(format!(
                    "The server let go of WAL that slot \"{slot}\" held (max_slot_wal_keep_size, or \
                     idle_replication_slot_timeout); the slot is made anew."
                ));
                connection.drop_slot(slot)?;
            }
            Some(state) => {
                self.slot_seen = true;
                return match state.active_pid {
                    Some(pid) => Err(Trouble::Wait(in_use(slot, Some(pid)))),
                    None => Ok(Some(state)),
                };
            }
            None if self.slot_seen => {
                self.notice(format!("Slot \"{slot}\" is gone; it is made anew."));
            }
            None => {}
        }
        connection.create_slot(slot)?;
        self.slot_seen = true;
        Ok(None)
    }

    /// The ancestry of the server's timeline.
    fn history(
        &mut self,
        connection: &mut ReplicationConnection,
        timeline: TimelineId,
    ) -> Result<TimelineHistory> {
        if timeline.0 == 1 {
            return Ok(TimelineHistory::without_ancestors(timeline));
        }
        let file = connection.timeline_history(timeline)?;
        TimelineHistory::parse(&file.content, timeline).map_err(|e| {
            Trouble::Final(Error::failed(format!("could not read \"{}\"", file.name)).because(e))
        })
    }

    /// Has the history file of a timeline stored before anything that is received from now on.
    pub(super) fn store_history(
        &mut self,
        connection: &mut ReplicationConnection,
        timeline: TimelineId,
    ) -> Result<()> {
        if timeline.0 == 1 || self.histories.contains(&timeline) {
            return Ok(());
        }
        let file = connection.timeline_history(timeline)?;
        if let Some(desk) = &self.desk {
            desk.queue.history(file.name, file.content);
        }
        self.histories.insert(timeline);
        Ok(())
    }
}
