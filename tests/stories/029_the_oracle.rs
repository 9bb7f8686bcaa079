//! The oracle that judges recovery to a moment is itself right: PostgreSQL alone, with copied files as archive, recovers to
//! random moments on three timelines and holds what the oracle says; and any other moment is noticed.

use std::fs::{self, File};

use leeward_tests::oracle::judge;
use leeward_tests::server::Stop;
use leeward_tests::story::Story;
use leeward_tests::targets::{Kind, how_many, recover};
use leeward_tests::timelines::{Timelines, rewind};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

fn check(major: u32) {
    let story = Story::begin_light(major);
    let archive = story.path("archive");
    fs::create_dir(&archive).expect("could not create an archive");
    let archive = archive.display();
    let mut life = Timelines::begin(
        &story,
        1,
        &format!(
            "archive_mode = on
             archive_command = 'cp %p {archive}/%f.new && mv {archive}/%f.new {archive}/%f'"
        ),
    );
    life.live(40);
    life.live_apart(30);
    let old = life.fail_over(Stop::Kill);
    life.live(40);
    let next = if major == 15 {
        rewind(&old, &life.primary);
        old
    } else {
        life.primary.stop(Stop::Fast);
        let copy = life.primary.cold_copy(&story, "again");
        life.primary.start();
        life.oracle.reconnect(&life.primary);
        copy
    };
    life.rejoin(next);
    life.live(20);
    life.live_apart(30);
    life.fail_over(Stop::Fast);
    life.live(40);
    assert_eq!(life.oracle.timeline(), 3);
    life.primary.sql("SELECT pg_switch_wal()");
    life.primary.stop(Stop::Fast);
    life.oracle.save(&story);

    let mut random = StdRng::seed_from_u64(2900 + u64::from(major));
    for (number, kind) in Kind::ALL.iter().cycle().take(4 * how_many(2)).enumerate() {
        // Mostly the timeline that won; sometimes what was lost with the first primary.
        let timeline = if number % 5 == 4 { 1 } else { 3 };
        let end = life.lost.get(&timeline).copied().unwrap_or(u64::MAX);
        let target = life.oracle.target(*kind, timeline, 3..end, &mut random);
        let name = format!("recovered-{number}");
        let mut server = life.base.cold_copy(&story, &name);
        File::create(server.data().join("recovery.signal")).expect("could not create a file");
        server.append_config(&format!(
            "archive_mode = off
             restore_command = 'cp {archive}/%f %p'
             recovery_target_action = {}
             {}",
            if number % 3 == 0 { "promote" } else { "pause" },
            target.settings()
        ));
        recover(&mut server)
            .and_then(|()| judge(&server, &target.expected))
            .unwrap_or_else(|error| panic!("{target}: {error}"));

        // One transaction less or more would have been noticed.
        let last = *target.expected.last().expect("something is held");
        let all = life.oracle.until(timeline, u64::MAX);
        let next = *all.range(last + 1..).next().expect("there is more");
        for number in [last - 1, next] {
            assert!(
                judge(&server, &life.oracle.until(timeline, number)).is_err(),
                "{target}: the judge sees no difference"
            );
        }
        server.stop(Stop::Immediate);
        fs::remove_dir_all(server.data()).expect("could not remove a directory");
    }
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
