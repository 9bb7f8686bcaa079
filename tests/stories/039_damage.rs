//! What can be wrong with an archive is found before it hurts, and named: a hole, a flipped bit, a segment of another cluster,
//! two clusters under one name, one cluster that lived twice. Nothing is ever overwritten.

use std::fs;
use std::path::Path;

use leeward_tests::archive::{Archive, decoded};
use leeward_tests::damage::{files_under, flip_bit};
use leeward_tests::deadline::{PATIENCE, reached, wait_until};
use leeward_tests::leeward::{Leeward, Outcome, exit};
use leeward_tests::oracle::{Step, address, judge, lsn};
use leeward_tests::server::{Initdb, Server, Stop};
use leeward_tests::story::Story;
use leeward_tests::targets::recover;
use leeward_tests::timelines::{Timelines, wait_archived};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// The exit code by which a `restore_command` makes the server stop, not promote.
const STOP_RECOVERY: i32 = 128;

fn get(leeward: &Leeward<'_>, directory: &Path, name: &str) -> Outcome {
    let outcome = leeward.run_in(directory, &["wal", "get", name, "pg_wal/RECOVERYXLOG"]);
    let place = directory.join("pg_wal/RECOVERYXLOG");
    assert_eq!(outcome.code() == Some(exit::DONE), place.exists());
    let _nothing_there = fs::remove_file(place);
    outcome
}

/// A server that needs what is missing or damaged ends; it does not open with less.
fn assert_stays_closed(server: &mut Server, name: &str) {
    server.launch();
    let ended = reached(PATIENCE, || server.has_ended());
    let log = server.log_tail();
    assert!(ended, "the server did not give up:\n{log}");
    assert!(log.contains(name), "{name} is not named:\n{log}");
    assert!(
        !log.contains("selected new timeline"),
        "the server opened:\n{log}"
    );
    server.stop(Stop::Immediate);
}

struct Scene<'story> {
    story: &'story Story,
    leeward: Leeward<'story>,
    archive: Archive,
    life: Timelines<'story>,
    begin: u64,
    /// A segment in the middle of what lies behind the backup.
    segment: String,
}

impl Scene<'_> {
    /// The last step that is complete before this segment, and the first that began behind it.
    fn around(&self, segment: &str) -> (Step, Step) {
        let start = self.archive.start_of(segment);
        let steps = self.life.oracle.steps();
        let before = steps.iter().rfind(|step| step.point_end < start);
        let after = steps.iter().find(|step| step.before >= start + (1 << 20));
        (
            before.expect("a step before").clone(),
            after.expect("a step behind").clone(),
        )
    }

    /// A directory restored to a moment behind the segment, not started; it will archive nothing.
    fn restored_beyond(&self, name: &str) -> Server {
        let (_, after) = self.around(&self.segment);
        let mut server = self.leeward.restored_to(
            name,
            &[
                "--target-lsn",
                &lsn(after.after),
                "--target-action",
                "promote",
            ],
        );
        server.set("archive_mode", "off");
        server
    }
}

fn check(major: u32) {
    let story = Story::begin_light(major);
    let leeward = Leeward::new(&story);
    let mut life = Timelines::begin(&story, 1, &leeward.archiving("on"));
    let backup = leeward.back_up(life.standby(), &[]);
    life.oracle.write(100);
    life.live(40);
    wait_archived(&life.primary);
    let archive = Archive::of(&story.path("repository"), 1);
    let begin = life.oracle.first_from(1, address(&backup.stop_lsn()));
    let stop = address(&backup.stop_lsn());
    let behind: Vec<String> = archive
        .segments()
        .into_iter()
        .filter(|name| archive.start_of(name) > stop)
        .collect();
    assert!(behind.len() > 5, "only {behind:?}");
    let scene = Scene {
        story: &story,
        leeward,
        archive,
        life,
        begin,
        segment: behind[2].clone(),
    };
    hole(&scene);
    flipped_bit(&scene, major);
    let mut other = other_cluster(&scene);
    other_segment(&scene, &mut other);
    lived_twice(&scene);
    // After all that, the archive still does what it is for.
    let mut server = scene.leeward.restored_to("whole", &[]);
    server.set("archive_mode", "off");
    recover(&mut server)
        .and_then(|()| judge(&server, &scene.life.oracle.until(1, u64::MAX)))
        .unwrap_or_else(|error| panic!("{error}"));
}

/// A segment that is gone.
fn hole(scene: &Scene<'_>) {
    let Scene {
        story,
        leeward,
        life,
        segment,
        ..
    } = scene;
    let mut beyond = scene.restored_beyond("beyond-hole");
    let object = scene.archive.segment_path(segment);
    let content = fs::read(&object).expect("could not read an object");
    fs::remove_file(&object).expect("could not remove an object");
    let before = scene.archive.snapshot();

    let listed = leeward.run(&["wal", "list"]).expect(exit::DONE);
    assert!(
        listed.stdout.contains(segment),
        "the hole is not listed: {listed}"
    );
    let (last, first) = scene.around(segment);
    assert!(last.number >= scene.begin);
    let to = story.path("refused");
    let outcome = leeward.run(&[
        "restore",
        "--to",
        to.to_str().expect("UTF-8"),
        "--target-lsn",
        &lsn(first.after),
    ]);
    assert_ne!(outcome.code(), Some(exit::DONE), "{outcome}");
    let outcome = outcome.expect_words(&[segment]);
    assert!(!to.exists(), "something was written: {outcome}");
    // What lies before the hole can be had.
    let target = ["--target-name", &last.point, "--target-action", "promote"];
    let mut server = leeward.restored_to("before-hole", &target);
    server.set("archive_mode", "off");
    recover(&mut server)
        .and_then(|()| judge(&server, &life.oracle.until(1, last.number)))
        .unwrap_or_else(|error| panic!("{error}"));

    // Who comes to the hole all the same is told, and does not take it for the end.
    get(leeward, beyond.data(), segment)
        .expect(STOP_RECOVERY)
        .expect_words(&[segment]);
    assert_stays_closed(&mut beyond, segment);
    assert_eq!(scene.archive.snapshot(), before);

    // The standby still has it.
    leeward
        .push(life.standby(), segment, &[])
        .expect(exit::DONE);
    assert!(
        decoded(&object) == {
            fs::write(story.path("was.zst"), content).expect("could not write a file");
            decoded(&story.path("was.zst"))
        }
    );
    recover(&mut beyond)
        .and_then(|()| judge(&beyond, &life.oracle.until(1, first.number)))
        .unwrap_or_else(|error| panic!("{error}"));
}

/// One bit, in any place.
fn flipped_bit(scene: &Scene<'_>, major: u32) {
    let mut random = StdRng::seed_from_u64(3900 + u64::from(major));
    let object = scene.archive.segment_path(&scene.segment);
    let size = fs::metadata(&object).expect("it is there").len();
    let mut beyond = scene.restored_beyond("beyond-damage");
    for round in 0..12 {
        // Head, contents and tail are few bytes; they get their turn.
        let byte = match round % 3 {
            0 => random.random_range(0..56),
            1 => size - 1 - random.random_range(0..300),
            _ => random.random_range(0..size),
        };
        let bit = random.random_range(0..8);
        flip_bit(&object, byte, bit);
        let before = scene.archive.snapshot();
        let outcome = get(&scene.leeward, beyond.data(), &scene.segment);
        assert_eq!(
            outcome.code(),
            Some(STOP_RECOVERY),
            "bit {bit} of byte {byte} of {size}: {outcome}"
        );
        outcome.expect_words(&[&scene.segment]);
        if round == 2 {
            assert_stays_closed(&mut beyond, &scene.segment);
        }
        // Who brings the same segment again changes nothing, whatever he is told.
        scene
            .leeward
            .push(scene.life.standby(), &scene.segment, &[]);
        assert!(
            scene.archive.snapshot() == before,
            "something was overwritten"
        );
        flip_bit(&object, byte, bit);
    }
    let (_, after) = scene.around(&scene.segment);
    recover(&mut beyond)
        .and_then(|()| judge(&beyond, &scene.life.oracle.until(1, after.number)))
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Another cluster, configured by mistake to archive under the same name.
fn other_cluster(scene: &Scene<'_>) -> Server {
    let before = scene.archive.snapshot();
    let how = Initdb {
        wal_segment_mib: 1,
        ..Initdb::default()
    };
    let mut other = Server::initdb(scene.story, "other", &how);
    other.append_config(&scene.leeward.archiving("on"));
    other.start();
    other.sql(
        "CREATE TABLE other AS SELECT i FROM generate_series(1, 1000) i; SELECT pg_switch_wal()",
    );
    wait_until("the archiver has failed", PATIENCE, || {
        other.sql("SELECT failed_count > 0 FROM pg_stat_archiver") == "t"
    });
    let ours = scene
        .life
        .primary
        .sql("SELECT system_identifier FROM pg_control_system()");
    let theirs = other.sql("SELECT system_identifier FROM pg_control_system()");
    let log = other.log();
    assert!(
        log.contains(&ours) && log.contains(&theirs),
        "the two clusters are not named:\n{log}"
    );
    assert_eq!(
        other.sql("SELECT archived_count FROM pg_stat_archiver"),
        "0"
    );
    assert!(
        scene.archive.snapshot() == before,
        "something was overwritten"
    );
    other.stop(Stop::Fast);
    other
}

/// One segment of another cluster, among the right server's files, and among the archive's objects.
fn other_segment(scene: &Scene<'_>, other: &mut Server) {
    let own = Leeward::at(
        scene.story,
        &scene.story.path("others").display().to_string(),
    );
    let ready = files_under(&other.data().join("pg_wal/archive_status"));
    let name = ready
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.strip_suffix(".ready"))
        .find(|name| name.len() == 24)
        .expect("a segment waits");
    own.push(other, name, &[]).expect(exit::DONE);
    let others = Archive::of(&scene.story.path("others"), 1);

    // A file of the other cluster, under a name of the future, so that only its header tells.
    let before = scene.archive.snapshot();
    let foreign = scene.story.path("foreign");
    fs::create_dir_all(foreign.join("pg_wal")).expect("could not create a directory");
    fs::copy(
        other.data().join("pg_wal").join(name),
        foreign.join("pg_wal").join(name),
    )
    .expect("could not copy a segment");
    let outcome = scene
        .leeward
        .run_in(&foreign, &["wal", "push", &format!("pg_wal/{name}")]);
    assert_ne!(outcome.code(), Some(exit::DONE), "{outcome}");
    let ours = scene
        .life
        .primary
        .sql("SELECT system_identifier FROM pg_control_system()");
    outcome.expect_words(&[&ours]);
    assert!(
        scene.archive.snapshot() == before,
        "something was overwritten"
    );

    // Its object, put into the archive by hand.
    let object = scene.archive.segment_path(&scene.segment);
    let right = fs::read(&object).expect("could not read an object");
    fs::copy(others.segment_path(name), &object).expect("could not replace an object");
    get(&scene.leeward, &foreign, &scene.segment)
        .expect(STOP_RECOVERY)
        .expect_words(&[&scene.segment]);
    fs::write(&object, right).expect("could not put an object back");
}

/// A copy of the same cluster was started somewhere and went its own way: the same names, other bytes.
fn lived_twice(scene: &Scene<'_>) {
    let before = scene.archive.snapshot();
    let mut twin = scene.life.base.cold_copy(scene.story, "twin");
    twin.start();
    twin.sql(
        "CREATE TABLE twin AS SELECT i FROM generate_series(1, 50000) i; SELECT pg_switch_wal()",
    );
    wait_until("its archiver has failed", PATIENCE, || {
        twin.sql("SELECT failed_count > 0 FROM pg_stat_archiver") == "t"
    });
    let name = twin.sql("SELECT last_failed_wal FROM pg_stat_archiver");
    twin.stop(Stop::Fast);
    let outcome = scene.leeward.push(&twin, &name, &[]);
    assert_ne!(outcome.code(), Some(exit::DONE), "{outcome}");
    outcome.expect_words(&[&name, "differ"]);
    assert!(
        scene.archive.snapshot() == before,
        "something was overwritten"
    );
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
