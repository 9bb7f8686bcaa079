//! `leeward wal receive` beside a standby: under load and idle, through restarts, crashes and promotions, alone and in
//! company. The archive is held against the servers' own `pg_wal`, byte for byte.

use std::time::Duration;

use leeward_tests::archive::{Archive, Kind};
use leeward_tests::deadline::{PATIENCE, let_pass, wait_until};
use leeward_tests::faults::FaultProxy;
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::load::Load;
use leeward_tests::oracle::{Address, address};
use leeward_tests::pair::Pair;
use leeward_tests::s3::S3Server;
use leeward_tests::server::{Initdb, Stop};
use leeward_tests::story::Story;
use leeward_tests::wal::SLOT;
use leeward_tests::{dataset, server};
use rustix::process::Signal;

/// Where the archive's WAL of a timeline begins.
fn beginning(archive: &Archive, timeline: u32, size: u64) -> Address {
    let timeline = format!("{timeline:08X}");
    let starts = archive
        .objects()
        .into_iter()
        .filter_map(|object| match object.kind {
            Kind::Segment(name) if name.starts_with(&timeline) => {
                let part =
                    |from: usize| u64::from_str_radix(&name[from..from + 8], 16).expect("hex");
                Some((part(8) << 32) + part(16) * size)
            }
            Kind::Piece(name, begin, _) if name.starts_with(&timeline) => Some(begin),
            _ => None,
        });
    starts.min().unwrap_or(Address::MAX)
}

/// Waits until the archive holds everything of a timeline up to here, from its first byte on.
fn wait_reach(archive: &Archive, timeline: u32, size: u64, end: Address, what: &str) {
    wait_until(what, PATIENCE, || {
        let from = beginning(archive, timeline, size);
        from <= end && archive.reach(timeline, from) >= end
    });
}

fn no_pieces_of_whole_segments(archive: &Archive) -> bool {
    let whole = archive.segments();
    archive
        .objects()
        .iter()
        .all(|object| !matches!(&object.kind, Kind::Piece(segment, ..) if whole.contains(segment)))
}

fn under_load(major: u32) {
    let story = Story::begin(major);
    let pair = Pair::new(&story);
    let leeward = Leeward::new(&story);
    let archive = Archive::of(&story.path("repository"), 16);
    let size = 16 << 20;
    let data = pair.standby.data().to_str().expect("UTF-8").to_owned();
    let mut running = leeward.spawn(&["wal", "receive", "--pgdata", &data, "--json"]);
    running.wait_for_words("Receiving WAL");

    let load = Load::start(&story, &pair.primary);
    pair.primary.sql(
        "CREATE TABLE story.bulk AS SELECT i, repeat(md5(i::text), 30) AS t FROM generate_series(1, 45000) i",
    );
    load.stop();
    let end = pair.primary.written();
    wait_reach(&archive, 1, size, end, "everything is in the archive");
    wait_until("the server is told", PATIENCE, || {
        pair.standby.acknowledged() >= end
    });
    assert!(archive.segments().len() >= 2, "{:?}", archive.segments());
    wait_until("pieces go when the segment is whole", PATIENCE, || {
        no_pieces_of_whole_segments(&archive)
    });

    // Nobody but the standby was asked, and nobody takes the receiver for a standby.
    assert_eq!(
        pair.primary.sql("SELECT count(*) FROM pg_stat_replication"),
        "1"
    );
    assert_eq!(
        pair.standby
            .sql("SELECT count(*) FROM pg_stat_replication WHERE replay_lsn IS NOT NULL"),
        "0"
    );

    // One commit, and it is there.
    pair.primary
        .sql("INSERT INTO story.bulk VALUES (0, 'one more')");
    let end = pair.primary.written();
    wait_reach(&archive, 1, size, end, "a commit is in the archive");

    // A second one on the same slot is turned away, one with a slot of its own is welcome.
    let other = leeward.spawn(&["wal", "receive", "--pgdata", &data]);
    other
        .wait()
        .expect(exit::LEASED)
        .expect_words(&["in use", SLOT]);
    let mut second = leeward.spawn(&["wal", "receive", "--pgdata", &data, "--slot", "second"]);
    second.wait_for_words("Receiving WAL");
    let load = Load::start(&story, &pair.primary);
    pair.primary.sql("INSERT INTO story.bulk SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 30000) i");
    load.stop();
    let end = pair.primary.written();
    pair.standby.wait_for(&pair.primary);
    wait_until("both have told the server", PATIENCE, || {
        pair.standby.sql(&format!(
            "SELECT count(*) FROM pg_replication_slots WHERE restart_lsn >= '{}'",
            leeward_tests::oracle::lsn(end)
        )) == "2"
    });
    archive.assert_whole(&[pair.standby.data(), pair.primary.data()]);

    // What was received last becomes a piece before the end.
    pair.primary
        .sql("INSERT INTO story.bulk VALUES (0, 'the last one')");
    let end = pair.primary.written();
    pair.standby.wait_for(&pair.primary);
    wait_until("it is received", PATIENCE, || {
        pair.standby.sql(&format!(
            "SELECT count(*) FROM pg_stat_replication WHERE write_lsn >= '{}'",
            leeward_tests::oracle::lsn(end)
        )) == "2"
    });
    running.signal(Signal::TERM);
    second.signal(Signal::INT);
    let outcome = running.wait().expect(exit::DONE);
    second.wait().expect(exit::DONE);
    let durable = address(outcome.json()["durable_lsn"].as_str().expect("an LSN"));
    assert!(durable >= end, "{outcome}");
    assert!(archive.reach(1, beginning(&archive, 1, size)) >= end);
    wait_until("the last word reached the server", PATIENCE, || {
        pair.standby.acknowledged() >= end
    });
    let (objects, compared) = archive.assert_whole(&[pair.standby.data(), pair.primary.data()]);
    assert_eq!(objects, compared, "nothing the servers do not have");
}

fn restarts(major: u32) {
    let story = Story::begin(major);
    let how = Initdb {
        wal_segment_mib: 1,
        ..Initdb::default()
    };
    let mut pair = Pair::with(&story, &how, |primary| dataset::fill(primary, 1));
    let leeward = Leeward::new(&story);
    let archive = Archive::of(&story.path("repository"), 1);
    let size = 1 << 20;
    let mut running = leeward.receive(&pair.standby);
    running.wait_for_words("Receiving WAL");
    let load = Load::start(&story, &pair.primary);
    for how in [Stop::Fast, Stop::Kill, Stop::Immediate] {
        pair.standby.stop(how);
        pair.primary.switch_wal();
        pair.standby.start();
        let end = pair.primary.written();
        wait_reach(&archive, 1, size, end, "the stream goes on");
        assert!(!running.has_ended(), "{}", running.stderr_so_far());
    }
    load.stop();

    // The primary is lost, its standby takes over: the stream follows it onto the new timeline.
    pair.primary.stop(Stop::Kill);
    pair.standby.promote();
    let load = Load::start(&story, &pair.standby);
    pair.standby
        .sql("CREATE TABLE story.after AS SELECT 1 AS id");
    load.stop();
    let end = pair.standby.written();
    wait_reach(&archive, 2, size, end, "the new timeline is in the archive");
    let history = archive
        .objects()
        .into_iter()
        .any(|object| object.kind == Kind::History("00000002.history".to_owned()));
    assert!(history, "{:?}", archive.objects());
    running.signal(Signal::TERM);
    running.wait().expect(exit::DONE);
    archive.assert_whole(&[pair.standby.data(), pair.primary.data()]);
}

/// A second standby is fed by the first one, which is promoted: its own receiver follows it from afar.
fn re_pointed(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::new(&story);
    let mut second = pair.base.cold_copy(&story, "second");
    second.follow(&pair.primary);
    second.start();
    second.wait_for(&pair.primary);
    let leeward = Leeward::new(&story);
    let archive = Archive::of(&story.path("repository"), 16);
    let mut running = leeward.receive(&second);
    running.wait_for_words("Receiving WAL");
    Load::start(&story, &pair.primary).stop();
    second.wait_for(&pair.primary);
    pair.stop_primary();
    pair.standby.promote();
    pair.standby
        .sql("CREATE TABLE story.after AS SELECT 1 AS id");
    let conninfo = format!(
        "host={} port={} user=postgres",
        pair.standby.sockets().display(),
        server::PORT
    );
    second.sql(&format!("ALTER SYSTEM SET primary_conninfo = '{conninfo}'"));
    second.sql("SELECT pg_reload_conf()");
    second.wait_for(&pair.standby);
    let end = pair.standby.written();
    wait_reach(
        &archive,
        2,
        16 << 20,
        end,
        "the new timeline is in the archive",
    );
    assert!(
        running.stderr_so_far().contains("Timeline 2 follows"),
        "{}",
        running.stderr_so_far()
    );

    // Once more without the receiver: it takes up the path afterwards.
    running.signal(Signal::TERM);
    running.wait().expect(exit::DONE);
    pair.standby.stop(Stop::Fast);
    wait_until("all that was received is replayed", PATIENCE, || {
        second.sql(
            "SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver) AND pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn()",
        ) == "t"
    });
    second.promote();
    second.sql("CREATE TABLE story.third AS SELECT 1 AS id");
    let mut running = leeward.receive(&second);
    running.wait_for_words("Timeline 3 follows");
    let end = second.written();
    wait_reach(
        &archive,
        3,
        16 << 20,
        end,
        "the third timeline is in the archive",
    );
    running.signal(Signal::TERM);
    running.wait().expect(exit::DONE);
    archive.assert_whole(&[second.data(), pair.standby.data(), pair.primary.data()]);
}

#[test]
fn idle_postgres_17() {
    let story = Story::begin(17);
    let mut pair = Pair::new(&story);
    let s3 = S3Server::start();
    let proxy = FaultProxy::start(s3.address());
    let leeward = Leeward::over(&story, &s3.repository("stories"), &proxy.endpoint());
    let mut running = leeward.receive(&pair.standby);
    running.wait_for_words("Receiving WAL");
    pair.stop_primary();
    let end = address(&pair.standby.sql("SELECT pg_last_wal_receive_lsn()"));
    wait_until("all is stored", PATIENCE, || {
        pair.standby.acknowledged() >= end
    });
    let before = proxy.requests();
    assert!(before > 0);
    // Longer than anything that comes again and again, but for the server's own keepalives.
    let_pass(Duration::from_secs(12));
    assert_eq!(
        proxy.requests(),
        before,
        "requests although nothing happens"
    );
    assert!(!running.has_ended());
    running.signal(Signal::TERM);
    running.wait().expect(exit::DONE);
}

/// A primary can be the source too, and is told what it costs.
#[test]
fn from_a_primary_postgres_16() {
    let story = Story::begin(16);
    let pair = Pair::new(&story);
    let leeward = Leeward::new(&story);
    let archive = Archive::of(&story.path("repository"), 16);
    let mut running = leeward.receive(&pair.primary);
    running.wait_for_words("is a primary");
    pair.primary
        .sql("CREATE TABLE story.more AS SELECT 1 AS id");
    let end = pair.primary.written();
    wait_reach(&archive, 1, 16 << 20, end, "it is in the archive");
    running.signal(Signal::TERM);
    running.wait().expect(exit::DONE);
    archive.assert_whole(&[pair.primary.data()]);
}

#[test]
fn under_load_postgres_15() {
    under_load(15);
}

#[test]
fn under_load_postgres_16() {
    under_load(16);
}

#[test]
fn under_load_postgres_17() {
    under_load(17);
}

#[test]
fn under_load_postgres_18() {
    under_load(18);
}

#[test]
fn under_load_postgres_19() {
    under_load(19);
}

#[test]
fn restarts_postgres_15() {
    restarts(15);
}

#[test]
fn restarts_postgres_16() {
    restarts(16);
}

#[test]
fn restarts_postgres_17() {
    restarts(17);
}

#[test]
fn restarts_postgres_18() {
    restarts(18);
}

#[test]
fn restarts_postgres_19() {
    restarts(19);
}

#[test]
fn re_pointed_postgres_15() {
    re_pointed(15);
}

#[test]
fn re_pointed_postgres_16() {
    re_pointed(16);
}

#[test]
fn re_pointed_postgres_17() {
    re_pointed(17);
}

#[test]
fn re_pointed_postgres_18() {
    re_pointed(18);
}

#[test]
fn re_pointed_postgres_19() {
    re_pointed(19);
}
