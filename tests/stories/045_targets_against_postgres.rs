//! Where Leeward says a restore leads is where PostgreSQL goes, and what it refuses PostgreSQL does not reach either: random
//! lives of a cluster, random targets in them, a third of them a microsecond or a byte from where the answer changes.
//!
//! Each target is restored and recovered. The judge is PostgreSQL alone, on plain files: a copy from before everything, and
//! each backup, recovered to the same target. Two recoveries that both reach a target must agree on what was there; a
//! refusal is right if no backup reaches the target with that.
//!
//! Every run has another seed, which is told; `LEEWARD_SEED` repeats one, `LEEWARD_TARGETS` asks for more targets on each
//! major version.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use leeward_tests::deadline::{PATIENCE, reached};
use leeward_tests::history::{History, PLAIN, numbers};
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::oracle::{address, lsn};
use leeward_tests::server::{Server, Stop, copy_tree};
use leeward_tests::story::{Story, note};
use leeward_tests::targets::how_many;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

/// Targets on each major version, unless `LEEWARD_TARGETS` says otherwise.
const TARGETS: usize = 14;
/// Targets of one life.
const TARGETS_OF_A_LIFE: usize = 40;
const STEPS: usize = 45;

#[derive(Debug, Clone)]
struct Asked {
    /// `time`, `lsn`, `xid`, `name`, `immediate` or `end`.
    kind: &'static str,
    value: String,
    /// For a time: in microseconds since 1970.
    micros: Option<i64>,
    inclusive: bool,
    action: &'static str,
    backup: Option<String>,
    timeline: Option<u32>,
}

impl Asked {
    fn random(history: &History<'_>, random: &mut StdRng) -> Asked {
        let boundary = random.random_bool(0.34);
        let nudge = if boundary {
            [-1, 0, 1][random.random_range(0..3)]
        } else {
            0
        };
        let mut micros = None;
        let (kind, value) = match random.random_range(0..20) {
            0..8 => {
                let time = *history.times.choose(random).expect("a time");
                let time = if boundary {
                    time + nudge
                } else {
                    time + random.random_range(-60_000_000..600_000_000)
                };
                micros = Some(time);
                ("time", rfc3339(time))
            }
            8..13 => {
                let at = *history.lsns.choose(random).expect("a position");
                let at = if boundary {
                    at.saturating_add_signed(nudge)
                } else {
                    at.saturating_add_signed(random.random_range(-3_000..3_000))
                };
                ("lsn", lsn(at))
            }
            13..16 => {
                let xid = *history.xids.choose(random).expect("an id");
                ("xid", xid.saturating_add_signed(nudge).to_string())
            }
            16..18 => match history.names.choose(random) {
                Some(name) => ("name", name.clone()),
                None => ("name", "point 9".to_owned()),
            },
            18 => ("immediate", String::new()),
            _ => ("end", String::new()),
        };
        let backup = random
            .random_bool(0.2)
            .then(|| history.backups.choose(random).expect("a backup").id.clone());
        let timeline = (random.random_bool(0.15) && history.timeline > 1)
            .then(|| random.random_range(1..=history.timeline));
        Asked {
            inclusive: !matches!(kind, "time" | "lsn" | "xid") || random.random_bool(0.6),
            action: if kind == "end" {
                "promote"
            } else {
                ["pause", "promote", "shutdown"][random.random_range(0..3)]
            },
            kind,
            value,
            micros,
            backup,
            timeline,
        }
    }

    /// The arguments of `leeward restore`.
    fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = self.backup.iter().cloned().collect();
        match self.kind {
            "end" => {}
            "immediate" => arguments.push("--target-immediate".to_owned()),
            kind => arguments.extend([format!("--target-{kind}"), self.value.clone()]),
        }
        if !self.inclusive {
            arguments.push("--target-exclusive".to_owned());
        }
        if self.kind != "end" {
            arguments.extend(["--target-action".to_owned(), self.action.to_owned()]);
        }
        if let Some(timeline) = self.timeline {
            arguments.extend(["--target-timeline".to_owned(), timeline.to_string()]);
        }
        arguments
    }

    /// The settings of PostgreSQL's own recovery, which stays at the target.
    fn settings(&self, timeline: &str) -> Vec<(String, String)> {
        let mut settings = vec![
            ("recovery_target_timeline".to_owned(), timeline.to_owned()),
            ("recovery_target_action".to_owned(), "pause".to_owned()),
            (
                "recovery_target_inclusive".to_owned(),
                self.inclusive.to_string(),
            ),
        ];
        match self.kind {
            "end" => {}
            "immediate" => settings.push(("recovery_target".to_owned(), "immediate".to_owned())),
            kind => settings.push((format!("recovery_target_{kind}"), self.value.clone())),
        }
        settings
    }
}

fn rfc3339(micros: i64) -> String {
    jiff::Timestamp::from_microsecond(micros)
        .expect("a time")
        .to_string()
        .replace('T', " ")
        .replace('Z', "+00")
}

/// What PostgreSQL alone made of a target.
#[derive(Debug, Clone)]
struct Plain {
    /// What it held where it stopped; `None` where it did not get there.
    numbers: Option<String>,
    log: String,
}

struct Judge<'a> {
    story: &'a Story,
    leeward: &'a Leeward<'a>,
    history: &'a History<'a>,
    /// What the cluster held at its end.
    end: String,
    /// A directory of each backup, as restored and never started; and the one from before everything.
    directories: BTreeMap<String, PathBuf>,
    runs: usize,
    counts: BTreeMap<(String, &'static str), usize>,
    differences: Vec<String>,
    /// The log of PostgreSQL's last recovery.
    last_log: String,
}

const BASE: &str = "";

impl Judge<'_> {
    /// PostgreSQL's own recovery of a copy, with every setting high enough.
    fn recover(&mut self, from: &str, asked: &Asked, timeline: &str) -> Plain {
        self.runs += 1;
        let path = self.story.path("judged");
        copy_tree(&self.directories[from], &path);
        File::create(path.join("recovery.signal")).expect("could not create recovery.signal");
        let mut server = Server::over(self.story, "judged", &path);
        let restore = format!("cp {}/%f %p", self.story.path(PLAIN).display());
        for (name, value) in [
            ("restore_command", restore.as_str()),
            ("archive_mode", "off"),
            ("autovacuum", "off"),
            ("fsync", "off"),
            ("shared_buffers", "16MB"),
            ("max_connections", "300"),
            ("max_worker_processes", "60"),
            ("max_wal_senders", "60"),
            ("max_prepared_transactions", "60"),
            ("max_locks_per_transaction", "600"),
        ] {
            server.set(name, value);
        }
        for (name, value) in asked.settings(timeline) {
            server.set(&name, &value);
        }
        let log = self.story.path("judged.log");
        let _old = fs::remove_file(&log);
        server.launch();
        let outcome = self.watch(&mut server);
        let numbers = match outcome {
            State::Paused | State::Open
                if asked.kind == "end" || server.log().contains("recovery stopping") =>
            {
                Some(numbers(&server))
            }
            _ => None,
        };
        let plain = Plain {
            numbers,
            log: server.log_tail(),
        };
        self.last_log.clone_from(&plain.log);
        server.stop(Stop::Immediate);
        fs::remove_dir_all(&path).expect("could not remove a directory");
        plain
    }

    /// Waits until a server in recovery stands, is open, or has ended.
    fn watch(&self, server: &mut Server) -> State {
        let mut state = State::Running;
        let there = reached(PATIENCE * 2, || {
            if server.has_ended() {
                state = State::Ended;
                return true;
            }
            let query = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN 'open' ELSE pg_get_wal_replay_pause_state() END";
            match server.try_sql_in("postgres", query).as_deref() {
                Ok("open") => state = State::Open,
                Ok("paused") => state = State::Paused,
                _ => return false,
            }
            true
        });
        assert!(
            there,
            "neither stopped nor open:\n{}\n{}",
            self.history.deeds.join("\n"),
            server.log_tail()
        );
        state
    }

    /// The first recovery that reaches the target: from before everything, then from each backup, oldest first. Where recovery
    /// cannot pass, what lies before tells nothing of a backup behind it.
    fn truth(&mut self, asked: &Asked, timeline: &str, of: Option<&str>) -> Option<String> {
        if asked.kind == "end" && asked.timeline.is_none() {
            return Some(self.end.clone());
        }
        if asked.kind == "immediate" {
            return None;
        }
        let backups = &self.history.backups;
        let at = backups
            .iter()
            .position(|backup| Some(backup.id.as_str()) == of);
        let behind = self
            .history
            .broken_after
            .filter(|broken| at >= Some(*broken));
        let before = behind.is_none().then(|| BASE.to_owned());
        let backups = backups[behind.unwrap_or(0)..].iter();
        let sources: Vec<String> = before
            .into_iter()
            .chain(backups.map(|backup| backup.id.clone()))
            .collect();
        sources
            .iter()
            .find_map(|source| self.recover(source, asked, timeline).numbers)
    }

    fn ask(&mut self, asked: &Asked) {
        let to = self.story.path("restored");
        let arguments = asked.arguments();
        let mut command = vec!["restore"];
        command.extend(arguments.iter().map(String::as_str));
        command.extend(["--json", "--to", to.to_str().expect("UTF-8")]);
        let outcome = self.leeward.run(&command);
        let code = outcome.status.code().unwrap_or(-1);
        if code == exit::DONE {
            let told = outcome.json();
            let problem = self.reaches(asked, &told, &to);
            self.count(asked, "reaches");
            self.report(asked, problem, &outcome.stderr);
            fs::remove_dir_all(&to).expect("could not remove a directory");
        } else {
            assert!(!to.exists(), "a refused restore left something");
            let problem = self.refused(asked);
            self.count(asked, "refused");
            self.report(asked, problem, &outcome.stderr);
        }
    }

    fn count(&mut self, asked: &Asked, what: &'static str) {
        *self
            .counts
            .entry((asked.kind.to_owned(), what))
            .or_default() += 1;
    }

    fn report(&mut self, asked: &Asked, problem: Option<String>, told: &str) {
        if let Some(problem) = problem {
            self.differences.push(format!(
                "leeward restore {}: {problem}\nit said:\n{told}",
                asked.arguments().join(" ")
            ));
        }
    }

    /// Starts what was restored, and holds it against what was said and against PostgreSQL's own recovery.
    fn reaches(&mut self, asked: &Asked, told: &serde_json::Value, to: &Path) -> Option<String> {
        let log = self.story.path("restored.log");
        let _old = fs::remove_file(&log);
        let mut server = Server::over(self.story, "restored", to);
        server.set("archive_mode", "off");
        server.set("autovacuum", "off");
        server.set("fsync", "off");
        server.launch();
        let state = self.watch(&mut server);
        let stop = &told["recovery"]["stop_lsn"];
        let own = told["recovery"]["wal_from"] == "backup";
        let to_target = asked.kind != "end" && !(stop.is_null() && (asked.kind == "lsn" || own));
        let text = server.log();
        let expected = match asked.action {
            _ if !to_target => State::Open,
            "pause" => State::Paused,
            "shutdown" => State::Ended,
            _ => State::Open,
        };
        let stopped = text.contains("recovery stopping");
        let held = match state {
            State::Open | State::Paused => Some(numbers(&server)),
            _ => None,
        };
        let log = server.log_tail();
        server.stop(Stop::Immediate);
        if state != expected || stopped != to_target && !(own && asked.kind == "immediate") {
            return Some(format!("the server is {state:?}, not {expected:?}:\n{log}"));
        }
        // The time and the transaction that it said it would stop at.
        if let Some(time) = told["recovery"]["stop_time"].as_str()
            && matches!(asked.kind, "time" | "xid")
        {
            let time: jiff::Timestamp = time.parse().expect("a time");
            let shown = time.strftime("%Y-%m-%d %H:%M:%S").to_string();
            let line = text
                .lines()
                .find(|line| line.contains("recovery stopping"))
                .unwrap_or_default();
            if !line.contains(&shown) {
                return Some(format!("it said it would stop at {shown}: {line}"));
            }
        }
        let held = held?;
        let timeline = told["recovery"]["timeline"].to_string();
        let backup = told["backup"]["id"].as_str().expect("an id").to_owned();
        // Restore points may share a name: where recovery begins decides which one it meets first.
        let truth = if matches!(asked.kind, "immediate" | "name") {
            self.recover(&backup, asked, &timeline).numbers
        } else if to_target {
            self.truth(asked, &timeline, Some(&backup))
        } else {
            let end = Asked {
                kind: "end",
                ..asked.clone()
            };
            self.truth(&end, &timeline, Some(&backup))
        };
        match truth {
            Some(truth) if truth != held => Some(format!(
                "from backup {backup} it holds {held}, and PostgreSQL's own recovery {truth}"
            )),
            None if asked.kind != "immediate" => Some(format!(
                "PostgreSQL's own recovery reaches it from nowhere:\n{}",
                self.last_log
            )),
            _ => None,
        }
    }

    /// A refusal is right where no backup reaches the target with what was there then.
    fn refused(&mut self, asked: &Asked) -> Option<String> {
        if asked.kind == "end" && self.history.broken_after.is_some() {
            // WAL that recovery cannot pass: the server would open with less, and not say so.
            return None;
        }
        let timeline = asked.timeline.map_or_else(
            || self.history.timeline.to_string(),
            |number| number.to_string(),
        );
        let truth = self.truth(asked, &timeline, None);
        let backups = self.history.backups.clone();
        for backup in backups {
            if asked
                .backup
                .as_ref()
                .is_some_and(|named| *named != backup.id)
            {
                continue;
            }
            // What was so before a backup began, it does not tell; PostgreSQL stops where it begins.
            let unknown = match asked.kind {
                "time" => asked
                    .micros
                    .is_some_and(|micros| micros < backup.checkpoint_micros + 1_000_000),
                "lsn" => address(&asked.value) < backup.start,
                _ => false,
            };
            let plain = self.recover(&backup.id, asked, &timeline);
            if let Some(found) = plain.numbers
                && (truth.is_none() || truth.as_ref() == Some(&found))
                && !unknown
            {
                return Some(format!(
                    "PostgreSQL reaches it from backup {}, and holds {found}:\n{}",
                    backup.id, plain.log
                ));
            }
        }
        None
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Paused,
    Open,
    Ended,
}

/// One life, with this many targets. Returns what was counted, and the differences.
fn live(
    major: u32,
    seed: u64,
    targets: usize,
) -> (BTreeMap<(String, &'static str), usize>, Vec<String>) {
    let mut random = StdRng::seed_from_u64(seed);
    let story = Story::begin_light(major);
    let leeward = Leeward::new(&story);
    let segment_mib = [1, 1, 1, 1, 16, 64][random.random_range(0..6)];
    let mut history = History::begin(&story, &leeward, segment_mib);
    for _ in 0..STEPS {
        history.step(&mut random);
    }
    let end = history.finish(&mut random);
    let mut directories = BTreeMap::from([(BASE.to_owned(), history.base.data().to_owned())]);
    for backup in &history.backups {
        let to = story.path(&format!("backup-{}", backup.id));
        leeward
            .restore(
                &backup.id,
                &to,
                &["--target-immediate", "--target-action", "promote"],
            )
            .expect(exit::DONE);
        // PostgreSQL's own recovery takes nothing from Leeward but the files.
        fs::write(to.join("postgresql.auto.conf"), "").expect("could not write a file");
        directories.insert(backup.id.clone(), to);
    }
    let mut judge = Judge {
        story: &story,
        leeward: &leeward,
        history: &history,
        end,
        directories,
        runs: 0,
        counts: BTreeMap::new(),
        differences: Vec::new(),
        last_log: String::new(),
    };
    for _ in 0..targets {
        let asked = Asked::random(&history, &mut random);
        judge.ask(&asked);
    }
    let mut differences = judge.differences;
    if let Some(first) = differences.first_mut() {
        *first = format!(
            "on {major}, LEEWARD_SEED={seed}, segments of {segment_mib} MiB:\n{}\n{first}",
            history.deeds.join("\n")
        );
    }
    (judge.counts, differences)
}

fn check(major: u32) {
    let seed: u64 = std::env::var("LEEWARD_SEED").map_or_else(
        |_| rand::random(),
        |seed| seed.parse().expect("LEEWARD_SEED is a number"),
    );
    let mut left = how_many(TARGETS);
    let mut counts: BTreeMap<(String, &'static str), usize> = BTreeMap::new();
    let mut differences = Vec::new();
    let mut life = 0;
    while left > 0 {
        let targets = left.min(TARGETS_OF_A_LIFE);
        let (counted, found) = live(major, seed.wrapping_add(life), targets);
        for (key, count) in counted {
            *counts.entry(key).or_default() += count;
        }
        differences.extend(found);
        left -= targets;
        life += 1;
    }
    let told: Vec<String> = counts
        .iter()
        .map(|((kind, what), count)| format!("{kind} {what} {count}"))
        .collect();
    note(&format!(
        "PostgreSQL {major}, seed {seed}, {life} lives: {}; {} differences",
        told.join(", "),
        differences.len()
    ));
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

#[test]
fn postgres_15() {
    check(15);
}

#[test]
fn postgres_16() {
    check(16);
}

#[test]
fn postgres_17() {
    check(17);
}

#[test]
fn postgres_18() {
    check(18);
}

#[test]
fn postgres_19() {
    check(19);
}
