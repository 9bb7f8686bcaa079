//! `kill -9` at random moments of `wal push`, `wal get` and `wal receive`: what lies in the archive under its name is whole at
//! every moment, the next run goes on, and recovery to the end finds everything.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use leeward_tests::archive::{Archive, decoded};
use leeward_tests::deadline::{PATIENCE, let_pass, reached, wait_until};
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::oracle::{Noise, address, judge};
use leeward_tests::processes;
use leeward_tests::server::{Server, Stop};
use leeward_tests::story::Story;
use leeward_tests::targets::recover;
use leeward_tests::timelines::{Timelines, wait_archived};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// How often each command is killed on each major version: more than a hundred times in all; `LEEWARD_KILLS` sets another
/// number.
fn kills() -> u32 {
    std::env::var("LEEWARD_KILLS")
        .map_or(7, |count| count.parse().expect("LEEWARD_KILLS is a number"))
}

/// Segments that wait for the archiver, oldest first.
fn ready(server: &Server) -> BTreeSet<String> {
    let answer = server.sql(
        "SELECT replace(name, '.ready', '') FROM pg_ls_archive_statusdir() WHERE name ~ '^[0-9A-F]{24}.ready$'",
    );
    answer.lines().map(str::to_owned).collect()
}

/// Everything that was written is in the archive and comes out of it.
fn assert_recovers(leeward: &Leeward<'_>, life: &Timelines<'_>, name: &str) {
    let mut server = leeward.restored_to(name, &[]);
    server.set("archive_mode", "off");
    recover(&mut server)
        .and_then(|()| judge(&server, &life.oracle.until(1, u64::MAX)))
        .unwrap_or_else(|error| panic!("{error}"));
}

fn push_and_get(major: u32) {
    let story = Story::begin_light(major);
    let leeward = Leeward::new(&story);
    let archive = Archive::of(&story.path("repository"), 1);
    let mut random = StdRng::seed_from_u64(3800 + u64::from(major));
    // Nobody archives yet but this story.
    let mut life = Timelines::begin(&story, 1, "archive_mode = on\narchive_command = 'exit 1'");
    leeward.back_up(life.standby(), &[]);

    let mut usual = Duration::from_millis(50);
    let mut killed = 0;
    for moment in 0..=kills() {
        life.oracle.write(80);
        life.primary.sql("SELECT pg_switch_wal()");
        let stored = archive.segments();
        let ready = ready(&life.primary);
        let next = ready.difference(&stored).next().expect("there is work");
        let path = format!("pg_wal/{next}");
        let running = leeward.spawn_in(life.primary.data(), &["wal", "push", &path]);
        if moment == 0 {
            usual = running.wait().expect(exit::DONE).elapsed;
        } else {
            let_pass(usual.mul_f64(random.random_range(0.0..1.0)));
            killed += u32::from(running.kill().was_killed());
        }
        archive.assert_whole(&[life.primary.data()]);
    }
    assert!(killed > kills() / 4, "only {killed} were killed in time");
    // The archiver takes over where the dead ones left off.
    life.primary.sql(&format!(
        "ALTER SYSTEM SET archive_command = '{}'",
        leeward.shell("wal push %p")
    ));
    life.primary.sql("SELECT pg_reload_conf()");
    wait_archived(&life.primary);
    let (objects, compared) = archive.assert_whole(&[life.primary.data()]);
    assert!(compared > 8, "only {compared} of {objects} compared");

    gets(&story, &leeward, &archive, &mut random);
    recoveries(&story, &leeward, &life, &mut random);
    assert_recovers(&leeward, &life, "undisturbed");
}

/// A `get` that is killed leaves no file or a whole one; the next one brings it, whatever lies in the spool.
fn gets(story: &Story, leeward: &Leeward<'_>, archive: &Archive, random: &mut StdRng) {
    let directory = leeward.restored("latest", "fetching", &[]);
    let place = directory.data().join("pg_wal/RECOVERYXLOG");
    let mut usual = Duration::from_millis(20);
    let mut killed = 0;
    let segments: Vec<String> = archive.segments().into_iter().collect();
    for (moment, name) in segments
        .iter()
        .cycle()
        .take(2 * kills() as usize + 1)
        .enumerate()
    {
        let whole = decoded(&archive.segment_path(name));
        let args = ["wal", "get", name, "pg_wal/RECOVERYXLOG"];
        let running = leeward.spawn_in(directory.data(), &args);
        if moment == 0 {
            usual = running.wait().expect(exit::DONE).elapsed;
        } else {
            let_pass(usual.mul_f64(random.random_range(0.0..1.0)));
            killed += u32::from(running.kill().was_killed());
            if moment % 3 == 0 {
                processes::kill(story, "wal prefetch");
            }
            assert!(
                fs::read(&place).is_ok_and(|bytes| bytes == whole) || !place.exists(),
                "half a segment was handed over"
            );
            leeward
                .spawn_in(directory.data(), &args)
                .wait()
                .expect(exit::DONE);
        }
        assert!(
            fs::read(&place).is_ok_and(|bytes| bytes == whole),
            "{name} came out changed"
        );
        fs::remove_file(&place).expect("could not remove a segment");
    }
    assert!(killed > kills() / 2, "only {killed} were killed in time");
    processes::kill(story, "wal prefetch");
    fs::remove_dir_all(directory.data()).expect("could not remove a directory");
}

/// A recovery whose `get` is killed ends, since the server cannot know what that means; started again, it goes on.
fn recoveries(story: &Story, leeward: &Leeward<'_>, life: &Timelines<'_>, random: &mut StdRng) {
    let mut server = leeward.restored_to("disturbed", &[]);
    server.set("archive_mode", "off");
    let mut starts = 0;
    for _ in 0..kills() {
        if !server.is_running() {
            server.stop(Stop::Immediate);
            server.launch();
            starts += 1;
        }
        let wait = Duration::from_millis(random.random_range(0..100));
        let_pass(wait);
        let victims = ["wal get", "wal prefetch"][random.random_range(0..2)];
        let _met_or_not = reached(Duration::from_millis(300), || {
            processes::kill(story, victims) > 0
        });
    }
    assert!(starts > 0);
    if !reached(Duration::from_secs(1), || server.has_ended()) {
        server.stop(Stop::Immediate);
    }
    server.stop(Stop::Immediate);
    recover(&mut server)
        .and_then(|()| judge(&server, &life.oracle.until(1, u64::MAX)))
        .unwrap_or_else(|error| panic!("{error}"));
}

fn receive(major: u32) {
    let story = Story::begin_light(major);
    let leeward = Leeward::new(&story);
    let archive = Archive::of(&story.path("repository"), 1);
    let mut random = StdRng::seed_from_u64(3850 + u64::from(major));
    let mut life = Timelines::begin(&story, 1, "");
    let backup = leeward.back_up(life.standby(), &[]);
    let first = address(&backup.stop_lsn()) >> 20 << 20;

    life.oracle.set_alone(false);
    let noise = Noise::start(&story, &life.primary, 300);
    let mut killed = 0;
    for moment in 0..kills() {
        let running = leeward.receive(life.standby());
        let ahead = moment % 3 != 0;
        if ahead {
            wait_until("the stream is there", PATIENCE, || {
                life.standby()
                    .sql("SELECT count(*) FROM pg_stat_replication")
                    != "0"
            });
        }
        life.oracle.write(random.random_range(5..60));
        let_pass(Duration::from_millis(random.random_range(0..1200)));
        killed += u32::from(running.kill().was_killed());
        archive.assert_whole(&[life.standby().data(), life.primary.data()]);
        // What the server was told is durable is there.
        let told = life
            .standby()
            .sql("SELECT restart_lsn FROM pg_replication_slots WHERE restart_lsn IS NOT NULL");
        if !told.is_empty() && archive.reach(1, first) > first {
            assert!(
                archive.reach(1, first) >= address(&told),
                "{told} was confirmed, and the archive ends before it"
            );
        }
    }
    assert_eq!(killed, kills(), "some ended by themselves");
    noise.stop(&life.primary);
    life.oracle.write(5);
    let running = leeward.receive(life.standby());
    let end = life.primary.sql("SELECT pg_current_wal_flush_lsn()");
    wait_until("the stream is stored", PATIENCE, || {
        life.standby().sql(&format!(
            "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{end}'"
        )) == "1"
    });
    running.kill();
    assert!(archive.reach(1, first) >= address(&end));
    let (objects, compared) = archive.assert_whole(&[life.standby().data(), life.primary.data()]);
    assert!(compared > 5, "only {compared} of {objects} compared");
    life.primary.stop(Stop::Kill);
    assert_recovers(&leeward, &life, "recovered");
}

#[test]
fn push_and_get_postgres_15() {
    push_and_get(15);
}

#[test]
fn receive_postgres_15() {
    receive(15);
}

#[test]
fn push_and_get_postgres_16() {
    push_and_get(16);
}

#[test]
fn receive_postgres_16() {
    receive(16);
}

#[test]
fn push_and_get_postgres_17() {
    push_and_get(17);
}

#[test]
fn receive_postgres_17() {
    receive(17);
}

#[test]
fn push_and_get_postgres_18() {
    push_and_get(18);
}

#[test]
fn push_and_get_postgres_19() {
    push_and_get(19);
}

#[test]
fn receive_postgres_18() {
    receive(18);
}

#[test]
fn receive_postgres_19() {
    receive(19);
}
