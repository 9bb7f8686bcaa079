//! A standby that lags, with replay paused: the backup takes what is replayed, waits for nothing, and says how far
//! behind it was.

use std::time::Duration;

use leeward_tests::contents::fingerprint;
use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::load::Load;
use leeward_tests::pair::Pair;
use leeward_tests::reference;
use leeward_tests::story::Story;

fn check(major: u32) {
    let story = Story::begin(major);
    let pair = Pair::new(&story);
    let leeward = Leeward::new(&story);
    let load = Load::start(&story, &pair.primary);
    pair.standby.sql("SELECT pg_wal_replay_pause()");
    wait_until("replay is paused", PATIENCE, || {
        pair.standby.sql("SELECT pg_get_wal_replay_pause_state()") == "paused"
    });
    // WAL keeps arriving, and is not replayed.
    wait_until("the standby lags", PATIENCE, || {
        pair.standby
            .sql("SELECT pg_last_wal_receive_lsn() - pg_last_wal_replay_lsn() > 200000")
            == "t"
    });
    let replayed = pair.standby.sql("SELECT pg_last_wal_replay_lsn()");
    let outcome = leeward.backup(&pair.standby, &[]).expect(exit::DONE);
    assert!(
        outcome.elapsed < Duration::from_secs(20),
        "it waited for something: {outcome}"
    );
    let backup = leeward.latest();
    assert!(
        backup.count("before_bytes") > 100_000,
        "the lag is not told: {:#}",
        backup.0
    );
    assert_eq!(
        pair.standby.sql(&format!(
            "SELECT '{}'::pg_lsn <= '{replayed}'::pg_lsn",
            backup.stop_lsn()
        )),
        "t",
        "it claims what was not replayed"
    );
    assert_eq!(
        pair.standby.sql("SELECT pg_get_wal_replay_pause_state()"),
        "paused",
        "it meddled with the server"
    );
    pair.standby.sql("SELECT pg_wal_replay_resume()");
    load.stop();
    reference::write_beyond(&pair.primary);
    let truth = fingerprint(&reference::server_at(&story, &pair, &backup.stop_lsn()));
    let mut restored = leeward.restored("latest", "restored", &[]);
    assert_sound(&story, &mut restored, &backup, &truth);
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
