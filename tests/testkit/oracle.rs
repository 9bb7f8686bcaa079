//! The truth about every moment of a cluster's life: which transactions exist at a time, an LSN, a transaction id, a
//! restore point, on each timeline.
//!
//! One writer commits one small transaction after the other, and between any two asks the server what time it is and how
//! far its WAL reaches. Such a *moment* is exact whatever else happens in the cluster: the commit before it lies before that
//! time and LSN, and everything of the next transaction behind them. What the writer knows it keeps to itself, outside
//! any database; each transaction leaves its number in the table `story.oracle`. A server recovered to a moment is
//! right if it holds the numbers the oracle names, no more and no less.
//!
//! Noise ([`Noise`]) commits beside it; steps written without it also know exactly where their commit lies, so that targets
//! can be put on the commit itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Child, Command, Stdio};

use crate::deadline::{PATIENCE, wait_until};
use crate::installation::system_tool;
use crate::server::{PORT, Server, clean_environment};
use crate::session::Session;
use crate::story::Story;

/// A WAL address, as a number.
pub type Address = u64;

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// `COMMIT`.
    Commit,
    /// `PREPARE TRANSACTION`, then `COMMIT PREPARED`.
    CommitPrepared,
    /// `ROLLBACK`: its number never appears.
    Rollback,
}

/// One transaction of the writer, and the moment after it.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its number, rising over all timelines.
    pub number: u64,
    /// The timeline it was written on.
    pub timeline: u32,
    /// Its transaction id.
    pub xid: u64,
    /// How it ended.
    pub ending: Ending,
    /// Its commit time, exactly, in UTC; empty after a rollback.
    pub committed: String,
    /// Where WAL ended before its last statement was given: its commit record begins here or later.
    pub before: Address,
    /// A time after its end and before anything of the next step, in UTC.
    pub time: String,
    /// A WAL address after its end and before anything of the next step.
    pub after: Address,
    /// The name of the restore point made then, and where WAL ended after that.
    pub point: String,
    /// The end of the restore point's record, or later.
    pub point_end: Address,
    /// Whether nobody else wrote.
    pub alone: bool,
}

/// The writer and what it knows.
#[derive(Debug)]
pub struct Oracle {
    steps: Vec<Step>,
    /// By timeline: where it began, and the numbers it began with.
    worlds: BTreeMap<u32, World>,
    timeline: u32,
    next: u64,
    session: Session,
    alone: bool,
    bulk: u64,
}

/// What a timeline inherited.
#[derive(Debug, Clone)]
struct World {
    parent: u32,
    switch: Address,
    inherited: BTreeSet<u64>,
}

/// The current time to the microsecond, in UTC.
const NOW: &str = r#"to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00')"#;

impl Oracle {
    /// Prepares a running primary that nobody has written to (`track_commit_timestamp = on`) for noise, too. Each step is
    /// to write about `bulk` bytes of WAL.
    pub fn begin(primary: &Server, bulk: u64) -> Oracle {
        primary.sql(
            "CREATE SCHEMA IF NOT EXISTS story;
             CREATE TABLE story.oracle (number bigint PRIMARY KEY, xid bigint NOT NULL, filler text);
             CREATE TABLE story.scales (id int PRIMARY KEY, one bigint NOT NULL, other bigint NOT NULL, filler text);
             INSERT INTO story.scales SELECT i, 0, 0, '' FROM generate_series(1, 100) i;
             CREATE TABLE story.noise (id bigserial PRIMARY KEY, what text);",
        );
        Oracle {
            steps: Vec::new(),
            worlds: BTreeMap::new(),
            timeline: 1,
            next: 1,
            session: open(primary),
            alone: true,
            bulk,
        }
    }

    /// Says whether somebody else writes from now on.
    pub fn set_alone(&mut self, alone: bool) {
        self.alone = alone;
    }

    /// Goes on with another server, which has just been promoted. What it holds is checked against what it must hold, by
    /// where its timeline began.
    pub fn move_to(&mut self, promoted: &Server) {
        let timeline: u32 = promoted
            .sql("SELECT ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint")
            .parse()
            .expect("a timeline");
        let (parent, switch) = switch_point(promoted, timeline);
        assert_eq!(
            parent, self.timeline,
            "the promoted server followed another timeline"
        );
        let inherited = numbers(promoted);
        for step in self
            .steps
            .iter()
            .filter(|step| step.timeline == parent && step.ending != Ending::Rollback)
        {
            let held = inherited.contains(&step.number);
            assert!(held || step.after > switch, "{step:?} was lost at {switch}");
            assert!(
                !held || step.before < switch,
                "{step:?} came from beyond {switch}"
            );
        }
        self.worlds.insert(
            timeline,
            World {
                parent,
                switch,
                inherited,
            },
        );
        self.timeline = timeline;
        self.session = open(promoted);
    }

    /// Reconnects to the same server after a restart.
    pub fn reconnect(&mut self, server: &Server) {
        self.session = open(server);
    }

    /// Writes this many transactions.
    pub fn write(&mut self, count: u64) {
        for _ in 0..count {
            assert!(self.step(), "the writer's connection broke");
        }
    }

    /// Writes until the connection breaks; returns how many transactions were acknowledged. The one that was under way
    /// may or may not have happened.
    pub fn write_until_it_breaks(&mut self) -> u64 {
        let before = self.next;
        while self.step() {}
        self.next - before - 1
    }

    fn step(&mut self) -> bool {
        let number = self.next;
        self.next += 1;
        let ending = match number % 10 {
            3 => Ending::Rollback,
            6 => Ending::CommitPrepared,
            _ => Ending::Commit,
        };
        let last = match ending {
            Ending::Commit => "COMMIT;".to_owned(),
            Ending::Rollback => "ROLLBACK;".to_owned(),
            Ending::CommitPrepared => format!("COMMIT PREPARED 'step {number}';"),
        };
        let prepare = match ending {
            Ending::CommitPrepared => format!("PREPARE TRANSACTION 'step {number}';"),
            _ => String::new(),
        };
        let point = format!("point {number}");
        // Sometimes a few bytes, sometimes a lot, so that steps fall into all parts of pages and segments.
        let bulk = self.bulk * (number * 7919 % 100) / 50;
        let answer = self.session.try_run(&format!(
            "DO $$BEGIN PERFORM pg_logical_emit_message(false, 'bulk', repeat('leeward ', {bulk} / 8)); END$$;
             BEGIN;
             INSERT INTO story.oracle
                 VALUES ({number}, pg_current_xact_id()::text::bigint, repeat('{number} ', {number} % 300)) RETURNING xid;
             {prepare}
             SELECT pg_current_wal_insert_lsn() - '0/0';
             {last}
             SELECT {NOW}, pg_current_wal_insert_lsn() - '0/0';
             SELECT to_char(pg_xact_commit_timestamp(xid::text::xid) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00')
               FROM story.oracle WHERE number = {number};
             SELECT pg_create_restore_point('{point}') - '0/0', pg_current_wal_insert_lsn() - '0/0';"
        ));
        let Some(rows) = answer else {
            return false;
        };
        let expected = if ending == Ending::Rollback { 4 } else { 5 };
        assert_eq!(rows.len(), expected, "{rows:?}");
        let address = |text: &str| text.parse::<Address>().expect("an address");
        let (time, after) = rows[2].split_once('|').expect("a time and an address");
        let (_, point_end) = rows[rows.len() - 1].split_once('|').expect("two addresses");
        self.steps.push(Step {
            number,
            timeline: self.timeline,
            xid: rows[0].parse().expect("a transaction id"),
            ending,
            committed: if ending == Ending::Rollback {
                String::new()
            } else {
                rows[3].clone()
            },
            before: address(&rows[1]),
            time: time.to_owned(),
            after: address(after),
            point,
            point_end: address(point_end),
            alone: self.alone,
        });
        true
    }

    /// All steps, in the order they were written.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The last step of all.
    pub fn last(&self) -> &Step {
        self.steps.last().expect("something was written")
    }

    /// The timeline that is written to.
    pub fn timeline(&self) -> u32 {
        self.timeline
    }

    /// Whether the moment after this step lies on the path that leads to `timeline`.
    pub fn leads_to(&self, step: &Step, timeline: u32) -> bool {
        if step.timeline == timeline {
            return true;
        }
        let Some(world) = self.worlds.get(&timeline) else {
            return false;
        };
        // Timelines fork in order, so a moment before the fork of its own timeline is before all later ones.
        if step.timeline == world.parent {
            step.point_end <= world.switch
        } else {
            self.leads_to(step, world.parent)
        }
    }

    /// The committed transactions up to this number on the path to `timeline`: what must be there, and nothing else.
    pub fn until(&self, timeline: u32, number: u64) -> BTreeSet<u64> {
        let own = self
            .steps
            .iter()
            .filter(|step| step.timeline == timeline && step.ending != Ending::Rollback)
            .map(|step| step.number);
        let inherited = self.worlds.get(&timeline).map(|world| &world.inherited);
        own.chain(inherited.into_iter().flatten().copied())
            .filter(|each| *each <= number)
            .collect()
    }

    /// The first step that began at this address of its timeline or behind it.
    pub fn first_from(&self, timeline: u32, address: Address) -> u64 {
        self.steps
            .iter()
            .find(|step| {
                step.timeline > timeline || step.timeline == timeline && step.before >= address
            })
            .map_or(u64::MAX, |step| step.number)
    }

    /// Writes what the writer knows to a file, for a person who looks into a failure.
    pub fn save(&self, story: &Story) {
        let lines: Vec<String> = self.steps.iter().map(|step| format!("{step:?}")).collect();
        fs::write(story.path("oracle.txt"), lines.join("\n")).expect("could not write a file");
    }
}

fn open(server: &Server) -> Session {
    let mut session = Session::open(server);
    // A line for each restore point would bury everything else in the server's log.
    session.run("SET log_min_messages = fatal;");
    session
}

/// The numbers a server holds.
pub fn numbers(server: &Server) -> BTreeSet<u64> {
    let answer = server.sql("SELECT number FROM story.oracle");
    answer
        .lines()
        .map(|line| line.parse().expect("a number"))
        .collect()
}

/// Holds what a server has against what it should; the error names what is missing and what is too many.
///
/// # Errors
/// When the server holds other transactions than it should, or half of one.
pub fn judge(server: &Server, expected: &BTreeSet<u64>) -> Result<(), String> {
    let held = numbers(server);
    let missing: Vec<_> = expected.difference(&held).take(10).collect();
    let surplus: Vec<_> = held.difference(expected).take(10).collect();
    if !missing.is_empty() || !surplus.is_empty() {
        return Err(format!(
            "of {} transactions {} are there: missing {missing:?}, too many {surplus:?}",
            expected.len(),
            held.len()
        ));
    }
    // The noise moves weight from one scale to the other: their sum is nothing at every moment.
    let scales = server.sql("SELECT sum(one) + sum(other), count(*) FROM story.scales");
    if scales == "0|100" {
        Ok(())
    } else {
        Err(format!("the scales show {scales}"))
    }
}

/// The timeline that this one came from, and where: the last line of its history file.
fn switch_point(server: &Server, timeline: u32) -> (u32, Address) {
    let path = server.data().join(format!("pg_wal/{timeline:08X}.history"));
    let text = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("could not read {}: {error}", path.display()));
    let line = text
        .lines()
        .rfind(|line| line.starts_with(|first: char| first.is_ascii_digit()));
    let mut words = line.expect("a history has a line").split_whitespace();
    let parent = words.next().and_then(|word| word.parse().ok());
    let switch = words.next().map(address);
    (parent.expect("a timeline"), switch.expect("a switch point"))
}

/// Reads a WAL address as PostgreSQL writes it.
pub fn address(text: &str) -> Address {
    let (high, low) = text.split_once('/').expect("an LSN");
    let part = |text| Address::from_str_radix(text, 16).expect("an LSN");
    part(high) << 32 | part(low)
}

/// Writes a WAL address as PostgreSQL does.
pub fn lsn(address: Address) -> String {
    format!("{:X}/{:X}", address >> 32, address & 0xffff_ffff)
}

/// Others who write beside the oracle; they end when dropped, or with their server.
#[derive(Debug)]
pub struct Noise {
    pgbench: Child,
}

const SCALES: &str = r"
\set id random(1, 100)
\set weight random(-1000, 1000)
\set size random(1, 80)
BEGIN;
UPDATE story.scales SET one = one + :weight, filler = repeat('x', :size) WHERE id = :id;
INSERT INTO story.noise (what) VALUES (repeat(md5((:weight)::text), :size));
UPDATE story.scales SET other = other - :weight WHERE id = 1 + (:id + :size) % 100;
COMMIT;
";

impl Noise {
    /// Two sessions that commit this often a second in all; each transaction writes about 2 KiB of WAL.
    pub fn start(story: &Story, primary: &Server, per_second: u32) -> Noise {
        let script = story.path("scales.sql");
        fs::write(&script, SCALES).expect("could not write a script");
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(system_tool("pgbench"))
            .args(["-n", "-c", "2", "-j", "1", "-T", "3600", "-R"])
            .arg(per_second.to_string())
            .arg("-f")
            .arg(&script)
            .arg("-h")
            .arg(primary.sockets())
            .args(["-p", &PORT.to_string(), "-U", "postgres", "postgres"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        clean_environment(&mut command);
        Noise {
            pgbench: command.spawn().expect("could not run pgbench"),
        }
    }

    /// Whether it still writes.
    pub fn is_running(&mut self) -> bool {
        matches!(self.pgbench.try_wait(), Ok(None))
    }

    /// Ends it, and waits until the server has seen that too: whoever writes then is alone.
    pub fn stop(mut self, primary: &Server) {
        assert!(self.is_running(), "the noise ended by itself");
        drop(self);
        wait_until("the noise has ended", PATIENCE, || {
            primary.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'")
                == "0"
        });
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        let _result = self.pgbench.kill();
        let _status = self.pgbench.wait();
    }
}
