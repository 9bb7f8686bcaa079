//! A restore to a moment: the boundaries are PostgreSQL's own, and what cannot be reached is refused before a byte is
//! written, with the reason and the way out.

use std::fs;
use std::path::PathBuf;

use leeward_tests::archive::{Archive, Kind, Object};
use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::leeward::{Backup, Leeward, Outcome, exit};
use leeward_tests::oracle::{Ending, Step, address, judge, lsn, numbers};
use leeward_tests::server::Stop;
use leeward_tests::story::Story;
use leeward_tests::targets::recover;
use leeward_tests::timelines::{Timelines, wait_archived};

/// Two backups of one timeline, with transactions before, between and after them, everything archived.
struct Scene<'story> {
    story: &'story Story,
    leeward: Leeward<'story>,
    life: Timelines<'story>,
    first: Backup,
    second: Backup,
}

impl<'story> Scene<'story> {
    fn set(story: &'story Story) -> Scene<'story> {
        let leeward = Leeward::new(story);
        let mut life = Timelines::begin(story, 1, &leeward.archiving("on"));
        life.oracle.write(9);
        let first = leeward.back_up(life.standby(), &[]);
        life.oracle.write(30);
        life.standby().wait_for(&life.primary);
        let second = leeward.back_up(life.standby(), &[]);
        for _ in 0..4 {
            life.oracle.write(10);
            life.primary.sql("SELECT pg_switch_wal()");
        }
        wait_archived(&life.primary);
        Scene {
            story,
            leeward,
            life,
            first,
            second,
        }
    }

    fn step(&self, number: u64) -> Step {
        let step = self.life.oracle.steps()[number as usize - 1].clone();
        assert_eq!(step.number, number);
        step
    }

    /// Restores with these options, recovers, and holds the server against the numbers up to `number`.
    fn reaches(&self, args: &[&str], number: u64) {
        let mut server = self.leeward.restored_to("recovered", args);
        server.set("archive_mode", "off");
        recover(&mut server)
            .and_then(|()| judge(&server, &self.life.oracle.until(1, number)))
            .unwrap_or_else(|error| panic!("{args:?}: {error}"));
        server.stop(Stop::Immediate);
        fs::remove_dir_all(server.data()).expect("could not remove a directory");
    }

    /// Restores with these options, which must fail, and leave no trace.
    fn refused(&self, args: &[&str], code: i32, words: &[&str]) -> Outcome {
        let to = self.story.path("refused");
        let mut all = vec!["restore", "--to", to.to_str().expect("a path in UTF-8")];
        all.extend(args);
        let outcome = self.leeward.run(&all).expect(code).expect_words(words);
        assert!(!to.exists(), "something was written: {outcome}");
        outcome
    }

    /// The archive's objects of whole segments that lie behind the second backup.
    fn segments_behind(&self) -> Vec<(String, PathBuf)> {
        let stop = address(&self.second.stop_lsn());
        let archive = Archive::of(&self.story.path("repository"), 1);
        let mut found: Vec<(String, PathBuf)> = archive
            .objects()
            .into_iter()
            .filter_map(|Object { path, kind }| match kind {
                Kind::Segment(name) => Some((name, path)),
                _ => None,
            })
            .filter(|(name, _)| begin_of(name) > stop)
            .collect();
        found.sort();
        found
    }
}

/// Where a segment of 1 MiB begins.
fn begin_of(name: &str) -> u64 {
    let part = |from: usize| u64::from_str_radix(&name[from..from + 8], 16).expect("digits");
    (part(8) << 32) + (part(16) << 20)
}

/// What stands behind an option in what was said.
fn offered<'a>(outcome: &'a Outcome, before: &str, end: char) -> &'a str {
    let (_, rest) = outcome
        .stderr
        .split_once(before)
        .unwrap_or_else(|| panic!("no {before:?} in {outcome}"));
    rest.split(end).next().expect("a word")
}

fn boundaries(scene: &Scene<'_>) {
    // Behind the second backup; before it, so that the first one is needed.
    for number in [61, 25] {
        let step = scene.step(number);
        assert_eq!(step.ending, Ending::Commit);
        let xid = step.xid.to_string();
        let before = lsn(step.before);
        scene.reaches(&["--target-time", &step.committed], number);
        scene.reaches(
            &["--target-time", &step.committed, "--target-exclusive"],
            number - 1,
        );
        scene.reaches(&["--target-xid", &xid, "--target-exclusive"], number - 1);
        scene.reaches(&["--target-lsn", &before, "--target-exclusive"], number - 1);
        scene.reaches(&["--target-name", &step.point], number);
    }
    let step = scene.step(63);
    assert_eq!(step.ending, Ending::Rollback);
    scene.reaches(&["--target-xid", &step.xid.to_string()], 63);
    let step = scene.step(66);
    assert_eq!(step.ending, Ending::CommitPrepared);
    scene.reaches(&["--target-xid", &step.xid.to_string()], 66);
    scene.reaches(&["--target-immediate"], 39);
    scene.reaches(&[], 79);
}

fn other_ends(scene: &Scene<'_>) {
    let step = scene.step(50);
    let mut server = scene.leeward.restored_to(
        "stopping",
        &["--target-time", &step.time, "--target-action", "shutdown"],
    );
    server.set("archive_mode", "off");
    server.launch();
    wait_until("the server stops at its target", PATIENCE, || {
        server.has_ended()
    });
    assert!(
        server
            .log()
            .contains("recovery stopping before commit of transaction")
            || server
                .log()
                .contains("recovery stopping before abort of transaction")
    );

    // A standby: from the backup, through the archive, and on from the primary.
    let primary = &scene.life.primary;
    primary.sql("SELECT pg_create_physical_replication_slot('restored')");
    let mut standby = scene.leeward.restored_to(
        "another",
        &[
            "--as",
            "standby",
            "--primary-conninfo",
            &primary.conninfo(),
            "--primary-slot-name",
            "restored",
        ],
    );
    standby.set("archive_mode", "off");
    standby.start();
    standby.wait_for(primary);
    wait_until("the restored standby streams", PATIENCE, || {
        primary.sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'restored'") == "t"
    });
    assert!(standby.in_recovery());
    assert_eq!(numbers(&standby), scene.life.oracle.until(1, u64::MAX));
    standby.stop(Stop::Fast);
    primary.sql("SELECT pg_drop_replication_slot('restored')");
}

fn refusals(scene: &Scene<'_>) {
    let (first, second) = (scene.first.id(), scene.second.id());
    // Before everything.
    let early = scene.step(2);
    for target in [
        ["--target-time", &early.time],
        ["--target-lsn", &lsn(early.after)],
    ] {
        scene.refused(
            &target,
            exit::FAILED,
            &[
                &format!("lies before backup {first} is consistent"),
                "Nearest after it",
                &format!("leeward restore {first} --target-immediate"),
            ],
        );
    }
    // After everything; what is offered instead is the last moment that can be reached.
    let late = scene.refused(
        &["--target-time", "2100-01-01 00:00 UTC"],
        exit::FAILED,
        &[
            "behind the last commit or rollback",
            "Leave --target-time out",
        ],
    );
    let last = offered(&late, "the last time it can stop at is \"", '"').to_owned();
    // The last transaction of all rolled nothing back.
    assert_eq!(scene.step(79).ending, Ending::Commit);
    scene.reaches(&["--target-time", &last], 78);
    let end = scene
        .life
        .primary
        .sql("SELECT pg_current_wal_lsn() + 1000000000");
    scene.refused(
        &["--target-lsn", &end],
        exit::FAILED,
        &["the WAL that is held of timeline 1 ends at"],
    );
    // Never there.
    scene.refused(
        &["--target-xid", "4000000000"],
        exit::FAILED,
        &["no commit or rollback of transaction 4000000000"],
    );
    scene.refused(
        &["--target-name", "nowhere"],
        exit::FAILED,
        &["no restore point \"nowhere\""],
    );
    scene.refused(
        &[
            "--target-lsn",
            &lsn(scene.step(60).after),
            "--target-timeline",
            "7",
        ],
        exit::USAGE,
        &["knows no timeline 7", "It knows: 1."],
    );
    // A backup that is too new for the moment.
    scene.refused(
        &[&second, "--target-xid", &scene.step(25).xid.to_string()],
        exit::FAILED,
        &[
            &format!("backup {second} cannot be recovered to transaction"),
            &format!("consistent, at {}", scene.second.stop_lsn()),
            &format!("Backup {first} can"),
        ],
    );
    // What is no moment.
    scene.refused(
        &["--target-time", "2026-11-22 03:00 CET"],
        exit::USAGE,
        &["\"CET\" may be several zones", "Europe/Vienna"],
    );
    scene.refused(
        &["--target-time", "2026-10-25 02:30 Europe/Vienna"],
        exit::USAGE,
        &["comes twice", "02:30:00+02", "02:30:00+01"],
    );
    scene.refused(
        &["--target-time", &early.time, "--target-xid", "777"],
        exit::USAGE,
        &["cannot be used with"],
    );
    scene.refused(
        &["--as", "standby", "--target-immediate"],
        exit::USAGE,
        &["a standby follows its primary"],
    );
}

fn a_hole(scene: &Scene<'_>) {
    let segments = scene.segments_behind();
    assert!(segments.len() > 2, "{segments:?}");
    let (name, path) = &segments[1];
    let aside = scene.story.path("aside");
    fs::rename(path, &aside).expect("could not move a segment away");
    let missing = format!("WAL segment {name} is missing");
    let step = scene.step(78);
    let refused = scene.refused(
        &["--target-time", &step.time],
        exit::FAILED,
        &[&missing, "Nearest before it"],
    );
    scene.refused(&["--target-name", &step.point], exit::FAILED, &[&missing]);
    scene.refused(&[], exit::FAILED, &[&missing, "--target-immediate"]);

    // What is offered instead works: everything before the hole.
    let last = offered(&refused, "--target-lsn ", '.').to_owned();
    assert!(address(&last) < begin_of(name));
    let mut server = scene
        .leeward
        .restored_to("before the hole", &["--target-lsn", &last]);
    server.set("archive_mode", "off");
    recover(&mut server).unwrap_or_else(|error| panic!("{error}"));
    let held = numbers(&server);
    let reached = *held.last().expect("something is held");
    judge(&server, &scene.life.oracle.until(1, reached)).unwrap_or_else(|error| panic!("{error}"));
    assert!((39..79).contains(&reached), "{reached}");
    server.stop(Stop::Immediate);
    fs::rename(&aside, path).expect("could not move a segment back");
}

fn check(major: u32) {
    let story = Story::begin(major);
    let scene = Scene::set(&story);
    refusals(&scene);
    a_hole(&scene);
    boundaries(&scene);
    other_ends(&scene);
}

#[test]
fn postgres_14() {
    check(14);
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
