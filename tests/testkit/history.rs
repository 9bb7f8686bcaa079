//! Random lives of a cluster, for targets that nobody chose with an answer in mind: idle stretches, checkpoints, switches,
//! restarts and crashes, clocks that are set ahead and back, timelines, prepared transactions, commit records over several
//! segments, changed settings, `wal_level = minimal`, `pg_resetwal`, and backups at odd moments.
//!
//! What was true at a moment nobody needs to know: PostgreSQL is asked, from a copy of the beginning and from each backup.

use std::fs::{self, File};
use std::process::Command;

use rand::Rng as _;
use rand::rngs::StdRng;

use crate::clock::Clock;
use crate::deadline::{PATIENCE, wait_until};
use crate::leeward::{Leeward, exit};
use crate::oracle::{Address, address};
use crate::server::{Initdb, Server, Stop, run};
use crate::session::Session;
use crate::story::Story;

/// A backup of a history.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Its id.
    pub id: String,
    /// When the checkpoint was made that it begins with, or a later one, in microseconds since 1970.
    pub checkpoint_micros: i64,
    /// Where its WAL begins.
    pub start: Address,
}

/// The life of a cluster, and what can be a target in it.
#[derive(Debug)]
pub struct History<'story> {
    story: &'story Story,
    leeward: &'story Leeward<'story>,
    clock: Clock,
    /// Who is written to.
    pub primary: Server,
    standby: Option<Server>,
    /// The first primary, stopped, before anything was written.
    pub base: Server,
    session: Option<Session>,
    servers: u32,
    number: u64,
    prepared: Option<u64>,
    raised: bool,
    /// The backups, oldest first.
    pub backups: Vec<Taken>,
    /// Times, in microseconds since 1970: of commits, and between them.
    pub times: Vec<i64>,
    /// WAL positions between commits.
    pub lsns: Vec<Address>,
    /// Transaction ids.
    pub xids: Vec<u64>,
    /// Names of restore points.
    pub names: Vec<String>,
    /// The highest timeline.
    pub timeline: u32,
    /// The number of backups taken before WAL that recovery cannot pass, if there is any.
    pub broken_after: Option<usize>,
    /// What was done, for a person.
    pub deeds: Vec<String>,
}

/// All that is archived lies here too, as it came.
pub const PLAIN: &str = "plain";

impl<'story> History<'story> {
    /// A cluster that archives with Leeward, and beside it into plain files.
    pub fn begin(
        story: &'story Story,
        leeward: &'story Leeward<'story>,
        wal_segment_mib: u32,
    ) -> History<'story> {
        let clock = Clock::new(story);
        fs::create_dir(story.path(PLAIN)).expect("could not make a directory");
        let how = Initdb {
            wal_segment_mib,
            ..Initdb::default()
        };
        let mut primary = Server::initdb(story, "server-0", &how);
        primary.append_config(&format!(
            "archive_mode = on
             archive_command = '{} {} && cp %p {}/%f'
             track_commit_timestamp = on
             autovacuum = off
             wal_keep_size = 0
             checkpoint_timeout = '1h'
             max_connections = 30
             max_locks_per_transaction = 128
             hot_standby = on",
            clock.off(),
            leeward.shell("wal push %p"),
            story.path(PLAIN).display()
        ));
        primary.start();
        primary.sql(
            "CREATE TABLE numbers (number bigint); CREATE TABLE filler (what text); CHECKPOINT",
        );
        primary.stop(Stop::Fast);
        let base = primary.cold_copy(story, "base");
        clock.rules(&mut primary);
        primary.start();
        let mut history = History {
            story,
            leeward,
            clock,
            session: None,
            primary,
            standby: None,
            base,
            servers: 1,
            number: 0,
            prepared: None,
            raised: false,
            backups: Vec::new(),
            times: Vec::new(),
            lsns: Vec::new(),
            xids: Vec::new(),
            names: Vec::new(),
            timeline: 1,
            broken_after: None,
            deeds: Vec::new(),
        };
        history.connect();
        history
    }

    fn connect(&mut self) {
        let mut session = Session::open(&self.primary);
        session.run("SET log_min_messages = fatal;");
        self.session = Some(session);
    }

    fn run(&mut self, sql: &str) -> Vec<String> {
        self.session.as_mut().expect("a session").run(sql)
    }

    fn did(&mut self, what: impl Into<String>) {
        self.deeds.push(what.into());
        self.look();
    }

    /// Remembers the time and the position.
    fn look(&mut self) {
        let rows = self.run(
            "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, pg_current_wal_insert_lsn() - '0/0';",
        );
        let (time, lsn) = rows[0].split_once('|').expect("two columns");
        self.times.push(time.parse().expect("a time"));
        self.lsns.push(lsn.parse().expect("a position"));
    }

    /// Does something that is not decided by what was done before.
    pub fn step(&mut self, random: &mut StdRng) {
        match random.random_range(0..100) {
            0..38 => self.commit(random),
            38..44 => self.roll_back(),
            44..49 => self.prepare(),
            49..57 => self.idle(random),
            57..62 => self.restore_point(random),
            62..67 => {
                self.run("CHECKPOINT;");
                self.did("checkpoint");
            }
            67..72 => {
                self.run("SELECT pg_switch_wal();");
                self.did("switch");
            }
            72..77 => self.fill(random),
            77..80 => self.set_clock(random),
            80..84 => self.restart(random),
            84..93 => self.back_up(random),
            93..96 => self.new_standby(),
            96..97 => self.change_settings(random),
            97..98 => self.wide_commit(),
            98..99 => self.new_timeline(random),
            _ => self.break_off(random),
        }
    }

    fn commit(&mut self, random: &mut StdRng) {
        for _ in 0..random.random_range(1..4) {
            self.number += 1;
            let number = self.number;
            let rows = self.run(&format!(
                "BEGIN; INSERT INTO numbers VALUES ({number}) RETURNING xmin; COMMIT;"
            ));
            self.note_commit(&rows[0]);
        }
        self.did(format!("commits up to {}", self.number));
    }

    fn note_commit(&mut self, xid: &str) {
        let rows = self.run(&format!(
            "SELECT (extract(epoch FROM pg_xact_commit_timestamp('{xid}'::xid)) * 1000000)::bigint;"
        ));
        self.times.extend(rows[0].parse::<i64>());
        self.xids.push(xid.parse().expect("an id"));
        self.look();
    }

    fn roll_back(&mut self) {
        let rows = self.run(
            "BEGIN; INSERT INTO filler VALUES ('never') RETURNING xmin; ROLLBACK;
             BEGIN; SAVEPOINT a; INSERT INTO filler VALUES ('never') RETURNING xmin; ROLLBACK TO a; COMMIT;",
        );
        self.xids
            .extend(rows.iter().filter_map(|xid| xid.parse::<u64>().ok()));
        self.did("rollbacks");
    }

    /// Prepares a transaction, or ends the one that is prepared.
    fn prepare(&mut self) {
        if let Some(number) = self.prepared.take() {
            let end = if number.is_multiple_of(3) {
                "ROLLBACK"
            } else {
                "COMMIT"
            };
            self.run(&format!("{end} PREPARED 'p{number}';"));
            self.did(format!("{end} PREPARED {number}"));
            return;
        }
        self.number += 1;
        let number = self.number;
        let rows = self.run(&format!(
            "BEGIN; INSERT INTO numbers VALUES ({number}) RETURNING xmin; PREPARE TRANSACTION 'p{number}';"
        ));
        self.xids.push(rows[0].parse().expect("an id"));
        self.prepared = Some(number);
        self.did(format!("PREPARE {number}"));
    }

    /// Time passes, and nobody commits.
    fn idle(&mut self, random: &mut StdRng) {
        let seconds = random.random_range(2..900);
        self.clock.step(seconds);
        self.did(format!("idle for {seconds} s"));
    }

    fn restore_point(&mut self, random: &mut StdRng) {
        let name = format!("point {}", random.random_range(0..4));
        self.run(&format!("SELECT pg_create_restore_point('{name}');"));
        self.names.push(name.clone());
        self.did(name);
    }

    /// Writes WAL that means nothing, so that what means something falls anywhere in segments.
    fn fill(&mut self, random: &mut StdRng) {
        let bytes = random.random_range(100..1_500_000);
        self.run(&format!(
            "DO $$BEGIN PERFORM pg_logical_emit_message(false, 'fill', repeat('x', {bytes})); END$$;"
        ));
        self.did(format!("{bytes} bytes of nothing"));
    }

    fn set_clock(&mut self, random: &mut StdRng) {
        let seconds = random.random_range(-7_200..7_200);
        self.clock.step(seconds);
        self.did(format!("clock set by {seconds} s"));
    }

    fn stop(&mut self, how: Stop) {
        self.session = None;
        self.primary.stop(how);
    }

    fn start(&mut self) {
        self.primary.start();
        self.connect();
    }

    fn restart(&mut self, random: &mut StdRng) {
        let how = [Stop::Fast, Stop::Immediate, Stop::Kill][random.random_range(0..3)];
        self.stop(how);
        self.start();
        self.did(format!("restart after {how:?}"));
    }

    fn back_up(&mut self, random: &mut StdRng) {
        if self.backups.len() >= 5 {
            return self.commit(random);
        }
        let from_standby = self.standby.is_some() && random.random_bool(0.6);
        let (server, extra): (&Server, &[&str]) = match &self.standby {
            Some(standby) if from_standby => (standby, &[]),
            _ => (&self.primary, &["--from", "any"]),
        };
        self.leeward.backup(server, extra).expect(exit::DONE);
        let checkpoint = server.sql(
            "SELECT (extract(epoch FROM checkpoint_time) * 1000000)::bigint FROM pg_control_checkpoint()",
        );
        let backup = self.leeward.latest();
        let id = backup.id();
        self.backups.push(Taken {
            id: id.clone(),
            checkpoint_micros: checkpoint.parse().expect("a time"),
            start: address(&backup.start_lsn()),
        });
        let role = if from_standby { "standby" } else { "primary" };
        self.did(format!("backup {id} of the {role}"));
    }

    /// A standby from a copy of the stopped primary.
    fn new_standby(&mut self) {
        self.standby = None;
        self.stop(Stop::Fast);
        let mut standby = self
            .primary
            .cold_copy(self.story, &format!("server-{}", self.servers));
        self.servers += 1;
        standby.follow(&self.primary);
        for (name, value) in [
            ("archive_mode", "off"),
            ("max_connections", "200"),
            ("max_worker_processes", "50"),
            ("max_prepared_transactions", "50"),
            ("max_locks_per_transaction", "500"),
        ] {
            standby.set(name, value);
        }
        self.clock.rules(&mut standby);
        self.start();
        standby.start();
        standby.wait_for(&self.primary);
        self.standby = Some(standby);
        self.did("new standby");
    }

    /// Settings that a server in recovery needs, on the command line or in the configuration.
    fn change_settings(&mut self, random: &mut StdRng) {
        if self.raised {
            return self.commit(random);
        }
        self.raised = true;
        self.stop(Stop::Fast);
        let value = random.random_range(41..120).to_string();
        if random.random_bool(0.5) {
            self.primary.set("max_connections", &value);
        } else {
            self.primary
                .append_config(&format!("max_connections = {value}"));
        }
        self.primary.set("max_locks_per_transaction", "180");
        self.start();
        self.did(format!("max_connections raised to {value}"));
    }

    /// A commit record that is longer than a segment of 1 MiB.
    fn wide_commit(&mut self) {
        self.number += 1;
        let number = self.number;
        let rows = self.run(&format!(
            "BEGIN; INSERT INTO numbers VALUES ({number}) RETURNING xmin;
             DO $$BEGIN FOR i IN 1..2500 LOOP EXECUTE 'CREATE TABLE wide_{number}_' || i || ' (i int)'; END LOOP; END$$;
             COMMIT;
             DO $$BEGIN FOR i IN 1..2500 LOOP EXECUTE 'DROP TABLE wide_{number}_' || i; END LOOP; END$$;"
        ));
        self.note_commit(&rows[0]);
        self.did("a wide commit");
    }

    /// The cluster goes on with a new timeline: its own, or that of a copy that did not see its end.
    fn new_timeline(&mut self, random: &mut StdRng) {
        if self.timeline >= 3 {
            return self.commit(random);
        }
        self.standby = None;
        let left_behind = random.random_bool(0.5);
        if left_behind {
            self.stop(Stop::Fast);
            let copy = self
                .primary
                .cold_copy(self.story, &format!("server-{}", self.servers));
            self.servers += 1;
            self.start();
            self.commit(random);
            self.wait_archived();
            self.stop(Stop::Immediate);
            let mut copy = copy;
            self.clock.rules(&mut copy);
            copy.set_like(&self.primary);
            self.primary = copy;
        } else {
            self.wait_archived();
            self.stop(Stop::Fast);
        }
        File::create(self.primary.data().join("recovery.signal"))
            .expect("could not create recovery.signal");
        self.primary.append_config(&format!(
            "restore_command = 'cp {}/%f %p'
             recovery_target_timeline = '{}'",
            self.story.path(PLAIN).display(),
            if left_behind { "current" } else { "latest" }
        ));
        if left_behind {
            self.primary.append_config("restore_command = 'false'");
        }
        self.primary.start();
        let primary = &self.primary;
        wait_until("recovery has ended", PATIENCE, || !primary.in_recovery());
        self.connect();
        self.prepared = None;
        self.run("SELECT gid FROM pg_prepared_xacts;")
            .iter()
            .for_each(|gid| {
                let number = gid.trim_start_matches('p').parse().ok();
                self.prepared = self.prepared.or(number);
            });
        self.timeline += 1;
        // What the copy did not see is numbered anew, and differs from what the other timeline has of these numbers.
        self.number += 1_000;
        self.did(format!(
            "timeline {}{}",
            self.timeline,
            if left_behind {
                ", from before the last commits"
            } else {
                ""
            }
        ));
    }

    /// WAL that recovery cannot pass.
    fn break_off(&mut self, random: &mut StdRng) {
        if self.broken_after.is_some() || self.backups.is_empty() {
            return self.commit(random);
        }
        self.broken_after = Some(self.backups.len());
        self.standby = None;
        self.wait_archived();
        self.stop(Stop::Fast);
        let resetwal = self.story.installation().program("pg_resetwal");
        if resetwal.exists() && random.random_bool(0.5) {
            run(Command::new(resetwal).arg("-D").arg(self.primary.data()));
            self.start();
            self.did("pg_resetwal");
        } else {
            let config = self.primary.data().join("postgresql.auto.conf");
            let before = fs::read(&config).expect("a configuration");
            fs::write(
                &config,
                "wal_level = minimal\nmax_wal_senders = 0\narchive_mode = off\n",
            )
            .expect("could not write a configuration");
            self.start();
            self.commit(random);
            self.stop(Stop::Fast);
            fs::write(&config, before).expect("could not write a configuration");
            self.start();
            self.did("wal_level = minimal for a while");
        }
        self.commit(random);
        let random_backup = random.random_bool(0.7);
        if random_backup {
            self.back_up(random);
        }
    }

    /// Ends the segment that is being written, and waits until all is archived.
    fn wait_archived(&mut self) {
        self.run("SELECT pg_switch_wal();");
        let primary = &self.primary;
        wait_until("everything is archived", PATIENCE, || {
            primary.sql("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'")
                == "0"
        });
    }

    /// Ends the history; returns what the cluster holds at its end.
    pub fn finish(&mut self, random: &mut StdRng) -> String {
        if self.backups.is_empty() {
            self.back_up(random);
        }
        self.commit(random);
        if random.random_bool(0.5) {
            self.idle(random);
            self.commit(random);
        }
        self.wait_archived();
        let numbers = numbers(&self.primary);
        self.standby = None;
        self.stop(Stop::Immediate);
        numbers
    }
}

/// What a server holds.
pub fn numbers(server: &Server) -> String {
    server.sql("SELECT coalesce(string_agg(number::text, ',' ORDER BY number), '') FROM numbers")
}
