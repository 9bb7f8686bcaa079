//! A store that answers errors, tears connections and stalls at random while the load goes on, for those who push and for those
//! who receive at once: nothing is lost, nothing is there twice, `pg_wal` drains, memory stays small.
//!
//! A few seconds on each major version; `LEEWARD_MINUTES=10` makes it as many minutes.

use std::time::{Duration, Instant};

use leeward_tests::archive::{Archive, Kind};
use leeward_tests::deadline::{PATIENCE, let_pass, wait_until};
use leeward_tests::faults::{Fault, FaultProxy};
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::oracle::{Noise, address, judge};
use leeward_tests::processes;
use leeward_tests::s3::S3Server;
use leeward_tests::server::{Server, Stop};
use leeward_tests::story::{Story, note};
use leeward_tests::targets::recover;
use leeward_tests::timelines::Timelines;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// What one run may hold resident.
const MEMORY_KIB: u64 = 160 * 1024;

/// Faults, each as likely as the others; of a hundred requests so many meet one.
const FAULTS: [Fault; 5] = [
    Fault::Unavailable,
    Fault::UnavailableAfterEffect,
    Fault::CutBefore,
    Fault::CutAfterEffect,
    Fault::CutBody,
];
const PERCENT: u32 = 20;

/// How long the store misbehaves, and whether it stalls too: an answer that never comes is waited for half a minute.
fn ordeal(major: u32) -> (Duration, bool) {
    match std::env::var("LEEWARD_MINUTES") {
        Ok(minutes) => {
            let minutes: u64 = minutes.parse().expect("LEEWARD_MINUTES is a number");
            (Duration::from_secs(60 * minutes), true)
        }
        Err(_) => (Duration::from_secs(10), major == 15),
    }
}

fn check(major: u32) {
    let story = Story::begin(major);
    let s3 = S3Server::start();
    let line = FaultProxy::start(s3.address());
    let leeward = Leeward::over(&story, &s3.repository("faulty"), &line.endpoint());
    let segment_mib = if major == 16 { 16 } else { 1 };
    let mut life = Timelines::begin(&story, segment_mib, &leeward.archiving("on"));
    let backup = leeward.back_up(life.standby(), &[]);

    let (time, stalls) = ordeal(major);
    let mut random = StdRng::seed_from_u64(3700 + u64::from(major));
    line.set(move |request| {
        if stalls && (request.number % 400 == 150) {
            Fault::Stall
        } else if random.random_range(0..100) < PERCENT {
            FAULTS[random.random_range(0..FAULTS.len())]
        } else {
            Fault::None
        }
    });
    let mut receive = leeward.receive(life.standby());
    life.oracle.set_alone(false);
    let noise = Noise::start(&story, &life.primary, 400);
    let end = Instant::now() + time;
    let mut pushes_kib = 0;
    while Instant::now() < end {
        life.oracle.write(5);
        pushes_kib = pushes_kib.max(largest(&story, "wal push"));
        assert!(!receive.has_ended(), "{}", receive.stderr_so_far());
        let_pass(Duration::from_millis(100));
    }
    noise.stop(&life.primary);
    life.oracle.write(5);

    // The store has recovered; so does everybody.
    line.set(|_| Fault::None);
    let written = life.primary.sql("SELECT pg_current_wal_flush_lsn()");
    life.primary.sql("SELECT pg_switch_wal()");
    drained(&life.primary);
    wait_until("the stream is stored", 3 * PATIENCE, || {
        life.standby().sql(&format!(
            "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{written}'"
        )) == "1"
    });
    let archive = Archive::of(&s3.bucket_dir().join("faulty"), segment_mib);
    wait_until("pieces of whole segments are gone", PATIENCE, || {
        let whole = archive.segments();
        archive.objects().iter().all(
            |object| !matches!(&object.kind, Kind::Piece(segment, ..) if whole.contains(segment)),
        )
    });
    receive.signal(rustix::process::Signal::TERM);
    let outcome = receive.wait().expect(exit::DONE);
    let (objects, compared) = archive.assert_whole(&[life.primary.data(), life.standby().data()]);
    note(&format!(
        "{} of {} requests disturbed, {objects} objects; receive held {} KiB, a push {pushes_kib} KiB",
        line.injected(),
        line.requests(),
        outcome.peak_rss_kib
    ));
    assert!(line.injected() > 10, "only {} disturbed", line.injected());
    assert!(compared > 1, "only {compared} of {objects} compared");
    assert!(outcome.peak_rss_kib < MEMORY_KIB, "{outcome}");
    assert!(pushes_kib < MEMORY_KIB, "{pushes_kib} KiB");
    let first = address(&backup.stop_lsn()) / archive.segment_bytes() * archive.segment_bytes();
    assert!(archive.reach(1, first) >= address(&written));
    assert!(
        !archive
            .objects()
            .iter()
            .any(|object| matches!(object.kind, Kind::Gap(..))),
        "a gap was recorded: {outcome}"
    );

    life.primary.stop(Stop::Kill);
    // The bucket is a directory like another, once nobody writes to it.
    let local = Leeward::at(
        &story,
        &s3.bucket_dir().join("faulty").display().to_string(),
    );
    let mut server = local.restored_to("restored", &[]);
    server.set("archive_mode", "off");
    recover(&mut server)
        .and_then(|()| judge(&server, &life.oracle.until(1, u64::MAX)))
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Waits until the archiver has nothing left to do. After three failures in a row it rests for a minute.
fn drained(server: &Server) {
    wait_until("pg_wal has drained", 3 * PATIENCE, || {
        server.sql("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'")
            == "0"
    });
}

/// The most memory that one of these runs held resident so far, in KiB.
fn largest(story: &Story, words: &str) -> u64 {
    processes::running(story, words)
        .into_iter()
        .filter_map(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("VmHWM:"))?;
            line.trim().trim_end_matches(" kB").parse().ok()
        })
        .max()
        .unwrap_or(0)
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
