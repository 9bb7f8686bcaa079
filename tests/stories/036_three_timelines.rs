//! Any moment of a cluster's life, across two failovers: the primary dies, its standby is promoted, the old primary comes
//! back as a standby and is promoted in its turn. Whatever the moment is named by, the restored server holds the transactions
//! that existed then, no more and no less, also where a timeline lost its end.

use std::fs;

use leeward_tests::archive::Archive;
use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::leeward::{Leeward, Running, exit};
use leeward_tests::oracle::{address, judge};
use leeward_tests::server::{Server, Stop};
use leeward_tests::story::Story;
use leeward_tests::targets::{Kind, Target, how_many, recover};
use leeward_tests::timelines::{Timelines, rewind, wait_archived};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Targets of each kind on each major version: 40 over all of them, unless `LEEWARD_TARGETS` says otherwise.
const TARGETS: usize = 8;

fn check(major: u32) {
    let story = Story::begin_light(major);
    let leeward = Leeward::new(&story);
    // Segments as small as can be, so that there are many; and once as most people have them.
    let segment_mib = if major == 16 { 16 } else { 1 };
    let mode = if major.is_multiple_of(2) {
        "on"
    } else {
        "always"
    };
    let mut life = Timelines::begin(&story, segment_mib, &leeward.archiving(mode));
    let receive = leeward.receive(life.standby());
    life.live(20);
    let first = leeward.back_up(life.standby(), &[]);
    life.live(40);
    life.live_apart(30);

    let old = life.fail_over(Stop::Kill);
    life.live(40);
    rejoin(&story, &leeward, &mut life, old);
    stop(receive);
    let receive = leeward.receive(life.standby());
    life.live(30);
    leeward.back_up(life.standby(), &[]);
    life.live(20);
    life.live_apart(30);

    life.fail_over(Stop::Fast);
    assert_eq!(life.oracle.timeline(), 3);
    life.live(30);
    wait_archived(&life.primary);
    // What is written now, nobody archives: it is in the stream alone.
    life.primary
        .sql("ALTER SYSTEM SET archive_command = 'false'");
    life.primary.sql("SELECT pg_reload_conf()");
    life.oracle.write(7);
    let end = life.primary.sql("SELECT pg_current_wal_flush_lsn()");
    wait_until("the stream is stored", PATIENCE, || {
        life.primary.sql(&format!(
            "SELECT flush_lsn >= '{end}' FROM pg_stat_replication"
        )) == "t"
    });
    life.oracle.save(&story);
    life.primary.stop(Stop::Immediate);
    receive.kill();
    Archive::of(&story.path("repository"), segment_mib).assert_whole(&[]);

    let begin = life.oracle.first_from(1, address(&first.stop_lsn()));
    let mut random = StdRng::seed_from_u64(3600 + u64::from(major));
    for number in 0..how_many(TARGETS) {
        for kind in Kind::ALL {
            // Mostly the timeline that won, and that is taken unless another is asked for; sometimes what was lost.
            let timeline = [3, 3, 3, 1, 3, 3, 2, 3][number % 8];
            let end = life.lost.get(&timeline).copied().unwrap_or(u64::MAX);
            let target = life.oracle.target(kind, timeline, begin..end, &mut random);
            let action = ["pause", "promote", "pause"][random.random_range(0..3)];
            reach(&story, &leeward, &target, action, &mut random);
        }
    }

    // As soon as a backup is consistent: what was there at its stop LSN.
    let mut server = leeward.restored_to("immediate", &[&first.id(), "--target-immediate"]);
    server.set("archive_mode", "off");
    recover(&mut server)
        .and_then(|()| judge(&server, &life.oracle.until(1, begin - 1)))
        .unwrap_or_else(|error| panic!("{error}"));
    server.stop(Stop::Immediate);

    // No target: everything there is, to the last byte.
    let mut server = leeward.restored_to("everything", &[]);
    server.set("archive_mode", "off");
    recover(&mut server)
        .and_then(|()| judge(&server, &life.oracle.until(3, u64::MAX)))
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Restores to a target, lets the server recover, and judges it.
fn reach(story: &Story, leeward: &Leeward<'_>, target: &Target, action: &str, random: &mut StdRng) {
    let value = match target.kind {
        Kind::Time => written(&target.value, random),
        _ => target.value.clone(),
    };
    let mut args = vec![format!("--target-{}", target.kind.word()), value];
    if target.timeline != 3 {
        args.extend(["--target-timeline".to_owned(), target.timeline.to_string()]);
    }
    if !target.inclusive {
        args.push("--target-exclusive".to_owned());
    }
    args.extend(["--target-action".to_owned(), action.to_owned()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut server = leeward.restored_to("recovered", &args);
    // It has a timeline of its own now, and no business in the archive.
    server.set("archive_mode", "off");
    recover(&mut server)
        .and_then(|()| judge(&server, &target.expected))
        .unwrap_or_else(|error| panic!("{target}: {error}\n{}", server.log_tail()));
    assert_eq!(server.in_recovery(), action == "pause", "{target}");
    server.stop(Stop::Immediate);
    fs::remove_dir_all(server.data()).expect("could not remove a directory");
    fs::remove_file(story.path("recovered.log")).expect("could not remove a log");
}

/// A time in one of the ways people write it.
fn written(time: &str, random: &mut StdRng) -> String {
    let (time, _) = time.split_once('+').expect("it ends with +00");
    let zone = ["+00", " UTC", "Z", " Africa/Abidjan"][random.random_range(0..4)];
    if zone == "Z" {
        format!("{}{zone}", time.replace(' ', "T"))
    } else {
        format!("{time}{zone}")
    }
}

/// Brings the old primary back: rewound where there is the tool for it, else restored as a standby.
fn rejoin(story: &Story, leeward: &Leeward<'_>, life: &mut Timelines<'_>, old: Server) {
    if story.installation().major() == 15 {
        rewind(&old, &life.primary);
        life.rejoin(old);
    } else {
        let again = leeward.restored_to("again", &["--as", "standby"]);
        life.rejoin(again);
    }
}

fn stop(receive: Running) {
    receive.signal(rustix::process::Signal::TERM);
    receive.wait().expect(exit::DONE);
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
