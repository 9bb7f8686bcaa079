//! A primary and its streaming standby, with something worth keeping in them.

use crate::dataset;
use crate::deadline::{PATIENCE, wait_until};
use crate::server::{Initdb, Server, Stop};
use crate::story::Story;

/// A primary, a streaming standby, and a cold copy of both as they were before they parted: the base from which
/// PostgreSQL itself can rebuild any later moment (see [`crate::reference`]).
#[derive(Debug)]
pub struct Pair {
    /// The primary.
    pub primary: Server,
    /// Its streaming standby.
    pub standby: Server,
    /// The stopped primary's directory before either was used.
    pub base: Server,
}

impl Pair {
    /// The pair most stories want: the usual contents, default settings.
    pub fn new(story: &Story) -> Pair {
        Pair::with(story, &Initdb::default(), |primary| {
            dataset::fill(primary, 1)
        })
    }

    /// A pair of a given making; `fill` puts contents into the running primary before the standby is made.
    pub fn with(story: &Story, how: &Initdb, fill: impl FnOnce(&mut Server)) -> Pair {
        let mut primary = Server::initdb(story, "primary", how);
        primary.start();
        fill(&mut primary);
        primary.stop(Stop::Fast);
        let base = primary.cold_copy(story, "base");
        let mut standby = primary.cold_copy(story, "standby");
        standby.follow(&primary);
        primary.start();
        standby.start();
        let pair = Pair {
            primary,
            standby,
            base,
        };
        pair.wait_streaming();
        pair
    }

    /// Waits until the standby streams and has replayed all there is.
    pub fn wait_streaming(&self) {
        wait_until("the standby streams", PATIENCE, || {
            self.primary
                .sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")
                != "0"
        });
        self.standby.wait_for(&self.primary);
    }

    /// Lets the standby catch up, then stops the primary for good: from here on the standby is alone.
    pub fn stop_primary(&mut self) {
        self.standby.wait_for(&self.primary);
        self.primary.stop(Stop::Fast);
        wait_until("the standby's WAL receiver has ended", PATIENCE, || {
            self.standby
                .sql("SELECT count(*) FROM pg_stat_wal_receiver")
                == "0"
        });
        // What the primary wrote while it shut down (its last checkpoint) arrives before the connection ends.
        wait_until(
            "the standby has replayed what it received",
            PATIENCE,
            || {
                self.standby
                    .sql("SELECT pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn()")
                    == "t"
            },
        );
    }
}
