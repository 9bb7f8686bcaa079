//! A failover, and life after it: the same repository, no edit; and a restored server that is itself backed up.

use std::fs;

use leeward_tests::contents::fingerprint;
use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::judgement::{assert_sound, start_restored};
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::load::Load;
use leeward_tests::pair::Pair;
use leeward_tests::server::Stop;
use leeward_tests::story::Story;

fn check(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::new(&story);
    let mut second = pair.base.cold_copy(&story, "second");
    second.follow(&pair.standby);
    second.start();
    let leeward = Leeward::new(&story);
    leeward.back_up(&second, &[]);

    // The primary is lost; its standby takes over, and the second standby follows that one onto the new timeline.
    pair.stop_primary();
    pair.standby.promote();
    leeward.backup(&pair.standby, &[]).expect(exit::DECLINED);
    Load::start(&story, &pair.standby).stop();
    second.wait_for(&pair.standby);
    pair.standby.stop(Stop::Fast);
    wait_until(
        "the second standby has replayed what it received",
        PATIENCE,
        || {
            second.sql(
            "SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver) AND pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn()",
        ) == "t"
        },
    );
    let backup = leeward.back_up(&second, &[]);
    assert_eq!(backup.count("stop_timeline"), 2);
    let truth = fingerprint(&second);
    let mut restored = leeward.restored("latest", "restored", &[]);
    assert!(
        restored.data().join("pg_wal/00000002.history").exists(),
        "the history file did not come along"
    );
    start_restored(&story, &mut restored, &backup);
    fingerprint(&restored).assert_equals(&truth, "the restored contents differ");

    // The restored server is a primary on timeline 3, and can be backed up in its turn.
    restored.sql("CREATE TABLE story.after_restore AS SELECT 1 AS id; CHECKPOINT");
    let truth = fingerprint(&restored);
    let again = leeward.back_up(&restored, &["--from", "any"]);
    assert_eq!(again.count("stop_timeline"), 3);
    assert_eq!(leeward.listed().len(), 3);
    restored.stop(Stop::Fast);
    fs::rename(restored.data(), story.path("restored.gone"))
        .expect("could not move a directory away");
    let mut grandchild = leeward.restored("latest", "grandchild", &[]);
    assert_sound(&story, &mut grandchild, &again, &truth);
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
