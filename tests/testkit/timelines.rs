//! A pair that fails over, and over again: three timelines, one of which loses its end.

use std::collections::BTreeMap;
use std::process::Command;

use crate::deadline::{PATIENCE, wait_until};
use crate::installation::system_tool;
use crate::oracle::{Noise, Oracle};
use crate::pair::Pair;
use crate::server::{Initdb, Server, Stop, run};
use crate::story::Story;

/// A primary and a standby that change places, and the oracle that writes on whichever is primary.
#[derive(Debug)]
pub struct Timelines<'story> {
    story: &'story Story,
    /// Whichever is primary now.
    pub primary: Server,
    /// Whichever follows it; nobody between a failover and [`Timelines::rejoin`].
    standby: Option<Server>,
    /// The first primary, stopped, before anything was written.
    pub base: Server,
    /// What was written.
    pub oracle: Oracle,
    /// By timeline that was lost: the number behind the last step that is archived.
    pub lost: BTreeMap<u32, u64>,
}

impl<'story> Timelines<'story> {
    /// A primary and its standby, with these lines in the configuration of both.
    pub fn begin(story: &'story Story, wal_segment_mib: u32, config: &str) -> Timelines<'story> {
        let how = Initdb {
            wal_segment_mib,
            ..Initdb::default()
        };
        let pair = Pair::with(story, &how, |primary| {
            primary.append_config("track_commit_timestamp = on\nautovacuum = off");
            primary.append_config(config);
        });
        let oracle = Oracle::begin(&pair.primary, u64::from(wal_segment_mib) * 1_048_576 / 20);
        pair.standby.wait_for(&pair.primary);
        Timelines {
            story,
            primary: pair.primary,
            standby: Some(pair.standby),
            base: pair.base,
            oracle,
            lost: BTreeMap::new(),
        }
    }

    /// Writes some transactions alone, some beside noise, over several segments.
    pub fn live(&mut self, steps: u64) {
        self.oracle.write(steps / 2);
        self.oracle.set_alone(false);
        let noise = Noise::start(self.story, &self.primary, 300);
        self.oracle.write(steps / 2);
        self.primary.sql("SELECT pg_switch_wal()");
        noise.stop(&self.primary);
        self.oracle.set_alone(true);
    }

    /// Whichever follows the primary.
    pub fn standby(&self) -> &Server {
        self.standby.as_ref().expect("there is a standby")
    }

    /// Cuts the standby off, and goes on without it: what is written now dies with the primary, but for what is archived.
    pub fn live_apart(&mut self, steps: u64) {
        let standby = self.standby();
        standby.wait_for(&self.primary);
        standby.sql("ALTER SYSTEM SET primary_conninfo = ''");
        standby.sql("ALTER SYSTEM SET restore_command = ''");
        standby.sql("SELECT pg_reload_conf()");
        wait_until("the standby is cut off", PATIENCE, || {
            standby.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0"
        });
        self.live(steps);
        wait_archived(&self.primary);
        self.lost
            .insert(self.oracle.timeline(), self.oracle.last().number + 1);
    }

    /// Ends the primary this way while it is written to, and promotes the standby. The old primary is returned.
    pub fn fail_over(&mut self, how: Stop) -> Server {
        let noise = Noise::start(self.story, &self.primary, 300);
        let (oracle, primary) = (&mut self.oracle, &mut self.primary);
        oracle.set_alone(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| oracle.write_until_it_breaks());
            let begun = primary.sql("SELECT pg_current_wal_lsn()");
            wait_until("the load goes on", PATIENCE, || {
                primary.sql(&format!("SELECT pg_current_wal_lsn() - '{begun}' > 200000")) == "t"
            });
            primary.stop(how);
            writer.join().expect("the writer ends")
        });
        oracle.set_alone(true);
        drop(noise);
        let promoted = self.standby.take().expect("there is a standby");
        promoted.promote();
        self.oracle.move_to(&promoted);
        std::mem::replace(&mut self.primary, promoted)
    }

    /// Starts a server that can follow the primary as its standby.
    pub fn rejoin(&mut self, mut server: Server) {
        server.follow(&self.primary);
        server.start();
        wait_until("the new standby streams", PATIENCE, || {
            self.primary
                .sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")
                != "0"
        });
        server.wait_for(&self.primary);
        self.standby = Some(server);
    }
}

/// Ends the segment that is being written, and waits until the archiver has nothing left to do.
pub fn wait_archived(server: &Server) {
    server.sql("SELECT pg_switch_wal()");
    wait_until("everything is archived", PATIENCE, || {
        server.sql("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'")
            == "0"
    });
}

/// Takes a dead primary back to where the new one's timeline begins, with PostgreSQL's own tool.
pub fn rewind(old: &Server, primary: &Server) {
    // The tool reads the primary's timeline from its control file, where a promotion puts it with the next checkpoint.
    primary.sql("CHECKPOINT");
    run(Command::new(system_tool("pg_rewind"))
        .arg("--target-pgdata")
        .arg(old.data())
        .arg("--source-server")
        .arg(primary.conninfo())
        .arg("--no-sync"));
}
