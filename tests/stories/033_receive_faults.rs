//! `leeward wal receive` when things go wrong: a store that fails and stalls, a slot that the server takes away, another
//! cluster at the same address, WAL that is not what was received before; and the whole site lost at once.

use std::fs;
use std::time::{Duration, Instant};

use leeward_tests::archive::{Archive, Kind};
use leeward_tests::deadline::{PATIENCE, let_pass, wait_until};
use leeward_tests::faults::{Fault, FaultProxy};
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::load::Load;
use leeward_tests::oracle::{Address, Noise, Oracle, address};
use leeward_tests::pair::Pair;
use leeward_tests::s3::S3Server;
use leeward_tests::server::{Initdb, Server, Stop};
use leeward_tests::story::{Story, note};
use leeward_tests::targets::recover;
use leeward_tests::{dataset, session::Session};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::Signal;

const MEMORY_KIB: u64 = 256 * 1024;

/// A pair with small WAL segments.
fn small_pair(story: &Story, config: &str) -> Pair {
    let how = Initdb {
        wal_segment_mib: 1,
        ..Initdb::default()
    };
    Pair::with(story, &how, |primary| {
        dataset::fill(primary, 1);
        primary.append_config(config);
    })
}

/// Ends some WAL segments, each with a little in it.
fn switch(server: &Server, times: u32) {
    for _ in 0..times {
        server.switch_wal();
    }
}

/// The store answers errors, tears connections, and then nothing at all for a while. The server keeps what is not stored,
/// the receiver does not grow, and afterwards everything is there.
fn outage(major: u32) {
    let story = Story::begin(major);
    let pair = small_pair(&story, "");
    let s3 = S3Server::start();
    let proxy = FaultProxy::start(s3.address());
    let leeward = Leeward::over(&story, &s3.repository("stories"), &proxy.endpoint());
    let mut running = leeward.receive(&pair.standby);
    running.wait_for_words("Receiving WAL");
    let archive = Archive::of(&s3.bucket_dir().join("stories"), 1);
    let mut load = Load::start(&story, &pair.primary);
    proxy.set_random(
        u64::from(major),
        30,
        &[
            Fault::Unavailable,
            Fault::UnavailableAfterEffect,
            Fault::CutBefore,
            Fault::CutAfterEffect,
            Fault::CutBody,
        ],
    );
    let target = pair.primary.written() + (12 << 20);
    wait_until("the load goes on through a bad line", PATIENCE, || {
        pair.primary.written() >= target
    });
    assert!(proxy.injected() > 0);

    proxy.set(|_| Fault::Unavailable);
    running.wait_for_words("The store fails");
    let stuck = pair.standby.acknowledged();
    switch(&pair.primary, 20);
    pair.standby.wait_for(&pair.primary);
    // The stream's own messages go on although nothing is read.
    let_pass(Duration::from_secs(2));
    assert!(!running.has_ended(), "{}", running.stderr_so_far());
    assert_eq!(
        pair.standby.acknowledged(),
        stuck,
        "nothing is durable, so nothing is acknowledged"
    );

    proxy.set(|_| Fault::None);
    running.wait_for_words("The store works again");
    assert!(load.is_running());
    load.stop();
    let end = pair.primary.written();
    wait_until("all is durable", PATIENCE, || {
        pair.standby.acknowledged() >= end
    });
    running.signal(Signal::TERM);
    let outcome = running.wait().expect(exit::DONE);
    assert!(
        outcome.peak_rss_kib < MEMORY_KIB,
        "{} KiB: {outcome}",
        outcome.peak_rss_kib
    );
    let (objects, compared) = archive.assert_whole(&[pair.standby.data(), pair.primary.data()]);
    assert_eq!(objects, compared);
    let first = first_byte(&archive);
    assert!(archive.reach(1, first) >= end);
}

fn first_byte(archive: &Archive) -> Address {
    let starts = archive
        .objects()
        .into_iter()
        .filter_map(|object| match object.kind {
            Kind::Segment(name) => {
                let part =
                    |from: usize| u64::from_str_radix(&name[from..from + 8], 16).expect("hex");
                Some((part(8) << 32) + (part(16) << 20))
            }
            Kind::Piece(_, begin, _) => Some(begin),
            _ => None,
        });
    starts.min().expect("the archive holds something")
}

/// A server that is told to stop does not wait for a store that fails.
fn shutdown_in_an_outage(major: u32) {
    let story = Story::begin(major);
    let mut pair = small_pair(&story, "");
    let s3 = S3Server::start();
    let proxy = FaultProxy::start(s3.address());
    let leeward = Leeward::over(&story, &s3.repository("stories"), &proxy.endpoint());
    let mut running = leeward.receive(&pair.standby);
    running.wait_for_words("Receiving WAL");
    proxy.set(|_| Fault::Unavailable);
    switch(&pair.primary, 3);
    running.wait_for_words("The store fails");
    pair.standby.stop(Stop::Fast);
    proxy.set(|_| Fault::None);
    pair.standby.start();
    pair.standby.wait_for(&pair.primary);
    let end = pair.primary.written();
    wait_until("all is durable", PATIENCE, || {
        pair.standby.acknowledged() >= end
    });
    running.signal(Signal::TERM);
    running.wait().expect(exit::DONE);
}

/// The server takes the slot away while nobody receives. What it still has is fetched; the rest is a gap, recorded, and
/// said aloud; and the stream goes on.
fn slot_lost(major: u32) {
    let story = Story::begin(major);
    let mut pair = small_pair(&story, "");
    pair.standby.append_config("max_slot_wal_keep_size = '8MB'\nwal_keep_size = 0\nmax_wal_size = '4MB'\nmin_wal_size = '2MB'");
    pair.standby.stop(Stop::Fast);
    pair.standby.start();
    pair.wait_streaming();
    let leeward = Leeward::new(&story);
    let archive = Archive::of(&story.path("repository"), 1);
    let mut running = leeward.receive(&pair.standby);
    running.wait_for_words("Receiving WAL");
    switch(&pair.primary, 3);
    let end = pair.primary.written();
    wait_until("all is durable", PATIENCE, || {
        pair.standby.acknowledged() >= end
    });
    running.kill();
    let first = first_byte(&archive);
    let held = archive.reach(1, first);
    assert!(held >= end);

    wait_until("the slot is lost", PATIENCE, || {
        switch(&pair.primary, 5);
        pair.primary.sql("CHECKPOINT");
        pair.standby.wait_for(&pair.primary);
        pair.standby.sql("CHECKPOINT");
        pair.standby
            .sql("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'leeward_wal'")
            == "lost"
    });
    let mut running = leeward.receive(&pair.standby);
    running.wait_for_words("Take a new backup");
    let words = running.stderr_so_far();
    assert!(
        words.contains("made anew") && words.contains("LOST"),
        "{words}"
    );
    switch(&pair.primary, 2);
    pair.standby.wait_for(&pair.primary);
    let end = pair.primary.written();
    wait_until("the stream goes on behind the gap", PATIENCE, || {
        pair.standby.acknowledged() >= end
    });
    let gaps: Vec<_> = archive
        .objects()
        .into_iter()
        .filter_map(|object| match object.kind {
            Kind::Gap(begin, end) => Some((begin, end)),
            _ => None,
        })
        .collect();
    let [(begin, behind)] = gaps.as_slice() else {
        panic!("{gaps:?}")
    };
    assert_eq!(*begin, held, "the gap begins where the archive ends");
    assert!(archive.reach(1, *behind) >= end);
    running.signal(Signal::TERM);
    running.wait().expect(exit::DONE);

    // The next one knows of the gap, and asks for nothing behind it.
    let mut running = leeward.receive(&pair.standby);
    running.wait_for_words("Receiving WAL");
    assert!(
        !running.stderr_so_far().contains("LOST"),
        "{}",
        running.stderr_so_far()
    );
    running.signal(Signal::TERM);
    running.wait().expect(exit::DONE);
}

/// Before the server takes the slot away, there is a warning; and when the danger is over, a word of that.
fn warned(major: u32) {
    let story = Story::begin(major);
    let mut pair = small_pair(&story, "");
    pair.standby
        .append_config("max_slot_wal_keep_size = '64MB'\nwal_keep_size = 0");
    pair.standby.stop(Stop::Fast);
    pair.standby.start();
    pair.wait_streaming();
    let s3 = S3Server::start();
    let proxy = FaultProxy::start(s3.address());
    let leeward = Leeward::over(&story, &s3.repository("stories"), &proxy.endpoint());
    let mut running = leeward.receive(&pair.standby);
    running.wait_for_words("Receiving WAL");
    proxy.set(|_| Fault::Unavailable);
    switch(&pair.primary, 1);
    running.wait_for_words("The store fails");
    wait_until("little room is left", PATIENCE, || {
        switch(&pair.primary, 1);
        pair.standby.wait_for(&pair.primary);
        pair.standby.sql(
            "SELECT pg_last_wal_receive_lsn() - restart_lsn > 61000000 FROM pg_replication_slots",
        ) == "t"
    });
    running.wait_for_words("close to being lost");
    proxy.set(|_| Fault::None);
    running.wait_for_words("is safe again");
    assert!(!running.stderr_so_far().contains("LOST"));
    running.signal(Signal::TERM);
    running.wait().expect(exit::DONE);
}

#[test]
fn warned_postgres_17() {
    warned(17);
}

/// Pieces that are not what the server sends again: named, and nothing is overwritten. The same for another cluster.
fn contradictions(major: u32) {
    let story = Story::begin(major);
    let pair = small_pair(&story, "");
    let leeward = Leeward::new(&story);
    let archive = Archive::of(&story.path("repository"), 1);
    let mut running = leeward.receive(&pair.standby);
    running.wait_for_words("Receiving WAL");
    pair.primary
        .sql("CREATE TABLE story.more AS SELECT 1 AS id");
    let end = pair.primary.written();
    wait_until("all is durable", PATIENCE, || {
        pair.standby.acknowledged() >= end
    });
    running.kill();

    let mut stranger = Server::initdb(&story, "stranger", &Initdb::default());
    stranger.start();
    leeward
        .receive(&stranger)
        .wait()
        .expect(exit::REFUSED)
        .expect_words(&["system identifier"]);

    let piece = archive
        .objects()
        .into_iter()
        .rfind(|object| matches!(object.kind, Kind::Piece(..)))
        .expect("there is a piece");
    let bytes = fs::read(&piece.path).expect("could not read a piece");
    leeward_tests::damage::flip_bit(&piece.path, bytes.len() as u64 / 2, 3);
    let damaged = fs::read(&piece.path).expect("could not read a piece");
    let name = piece
        .path
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    leeward
        .receive(&pair.standby)
        .wait()
        .expect(exit::DAMAGED)
        .expect_words(&[&name]);
    assert_eq!(fs::read(&piece.path).expect("it is there"), damaged);
}

/// What one loss of a site cost: the time whose WAL is not in the archive, and its bytes, by what the standby had flushed
/// and by what the primary had.
#[derive(Debug, Clone, Copy)]
struct Loss {
    standby: (Duration, u64),
    primary: (Duration, u64),
}

/// How far a server had come, and when.
type Course = Vec<(Instant, Address)>;

fn loss(course: &Course, died: Instant, reach: Address) -> (Duration, u64) {
    let last = course.last().expect("the server was looked at").1;
    let time = course
        .iter()
        .find(|(_, lsn)| *lsn > reach)
        .map_or(Duration::ZERO, |(at, _)| died.duration_since(*at));
    (time, last.saturating_sub(reach))
}

/// Primary, standby and receiver die in the same moment, again and again. Everything the standby had flushed a second
/// before is in the archive.
fn site_lost(major: u32, kills: u32) -> Vec<Loss> {
    let story = Story::begin(major);
    let mut pair = small_pair(&story, "");
    let leeward = Leeward::new(&story);
    let archive = Archive::of(&story.path("repository"), 1);
    let mut random = StdRng::seed_from_u64(33);
    let _oracle = Oracle::begin(&pair.primary, 50_000);
    pair.primary
        .sql("CREATE TABLE story.marks (id serial PRIMARY KEY)");
    pair.standby.wait_for(&pair.primary);
    leeward.back_up(&pair.standby, &[]);
    let mut losses = Vec::new();
    for kill in 1..=kills {
        let mut running = leeward.receive(&pair.standby);
        running.wait_for_words("Receiving WAL");
        let noise = Noise::start(&story, &pair.primary, 200);
        let (mut at_standby, mut at_primary): (Course, Course) = (Vec::new(), Vec::new());
        let mut marks: Vec<(Instant, u64)> = Vec::new();
        let mut standby = Session::open(&pair.standby);
        let mut primary = Session::open(&pair.primary);
        let until = Instant::now() + Duration::from_millis(random.random_range(2500..4500));
        wait_until("some seconds of load", PATIENCE, || {
            let rows = primary
                .run("INSERT INTO story.marks DEFAULT VALUES; SELECT pg_current_wal_flush_lsn();");
            at_primary.push((Instant::now(), address(rows.last().expect("a row"))));
            let rows = standby
                .run("SELECT pg_last_wal_receive_lsn(), coalesce(max(id), 0) FROM story.marks;");
            let (lsn, mark) = rows[0].split_once('|').expect("two columns");
            at_standby.push((Instant::now(), address(lsn)));
            marks.push((Instant::now(), mark.parse().expect("a number")));
            Instant::now() >= until
        });
        let died = Instant::now();
        pair.primary.stop(Stop::Kill);
        pair.standby.stop(Stop::Kill);
        running.kill();
        drop((noise, standby, primary));
        let reach = archive.reach(1, first_byte(&archive));
        let lost = Loss {
            standby: loss(&at_standby, died, reach),
            primary: loss(&at_primary, died, reach),
        };
        assert!(
            lost.standby.0 <= Duration::from_secs(1),
            "what the standby had flushed a second before is not all in the archive: {lost:?}"
        );
        losses.push(lost);
        if kill == kills {
            // Not only held: it comes out again, the rows that the standby showed a second before among it.
            let shown = marks
                .iter()
                .rfind(|(at, _)| died.duration_since(*at) >= Duration::from_secs(1))
                .expect("there was a second");
            let mut restored = leeward.restored_to("restored", &[]);
            recover(&mut restored).unwrap_or_else(|error| panic!("{error}"));
            let found: u64 = restored
                .sql("SELECT coalesce(max(id), 0) FROM story.marks")
                .parse()
                .expect("a number");
            assert!(
                found >= shown.1,
                "mark {} is lost, {found} is the last",
                shown.1
            );
        }
        pair.primary.start();
        pair.standby.start();
        pair.wait_streaming();
    }
    archive.assert_whole(&[pair.standby.data(), pair.primary.data()]);
    losses
}

/// The measurement behind the manual's figure: `--run-ignored all`, some minutes.
#[test]
#[ignore = "a measurement, of some minutes"]
fn fifty_sites_lost_postgres_16() {
    let losses = site_lost(16, 50);
    for (who, one) in [
        (
            "standby",
            (|loss: &Loss| loss.standby) as fn(&Loss) -> (Duration, u64),
        ),
        ("primary", |loss| loss.primary),
    ] {
        let mut seconds: Vec<f64> = losses
            .iter()
            .map(|loss| one(loss).0.as_secs_f64())
            .collect();
        let mut bytes: Vec<u64> = losses.iter().map(|loss| one(loss).1).collect();
        seconds.sort_by(f64::total_cmp);
        bytes.sort_unstable();
        note(&format!(
            "{} kills, lost of what the {who} had flushed: seconds median {:.2}, 95 % {:.2}, most {:.2}; \
             KiB median {}, most {}",
            losses.len(),
            seconds[seconds.len() / 2],
            seconds[seconds.len() * 95 / 100],
            seconds[seconds.len() - 1],
            bytes[bytes.len() / 2] >> 10,
            bytes[bytes.len() - 1] >> 10,
        ));
    }
}

#[test]
fn site_lost_postgres_16() {
    let _losses = site_lost(16, 5);
}

#[test]
fn outage_postgres_15() {
    outage(15);
}

#[test]
fn outage_postgres_16() {
    outage(16);
}

#[test]
fn outage_postgres_17() {
    outage(17);
}

#[test]
fn outage_postgres_18() {
    outage(18);
}

#[test]
fn outage_postgres_19() {
    outage(19);
}

#[test]
fn shutdown_in_an_outage_postgres_15() {
    shutdown_in_an_outage(15);
}

#[test]
fn shutdown_in_an_outage_postgres_16() {
    shutdown_in_an_outage(16);
}

#[test]
fn shutdown_in_an_outage_postgres_17() {
    shutdown_in_an_outage(17);
}

#[test]
fn shutdown_in_an_outage_postgres_18() {
    shutdown_in_an_outage(18);
}

#[test]
fn shutdown_in_an_outage_postgres_19() {
    shutdown_in_an_outage(19);
}

#[test]
fn slot_lost_postgres_15() {
    slot_lost(15);
}

#[test]
fn slot_lost_postgres_16() {
    slot_lost(16);
}

#[test]
fn slot_lost_postgres_17() {
    slot_lost(17);
}

#[test]
fn slot_lost_postgres_18() {
    slot_lost(18);
}

#[test]
fn slot_lost_postgres_19() {
    slot_lost(19);
}

#[test]
fn contradictions_postgres_15() {
    contradictions(15);
}

#[test]
fn contradictions_postgres_16() {
    contradictions(16);
}

#[test]
fn contradictions_postgres_17() {
    contradictions(17);
}

#[test]
fn contradictions_postgres_18() {
    contradictions(18);
}

#[test]
fn contradictions_postgres_19() {
    contradictions(19);
}
