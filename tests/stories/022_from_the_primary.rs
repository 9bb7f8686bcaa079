//! A primary without a standby, asked for explicitly, under load.

use leeward_tests::contents::fingerprint;
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
    let mut load = Load::start(&story, &pair.primary);
    leeward
        .backup(&pair.primary, &["--from", "standby"])
        .expect(exit::DECLINED);
    let backup = leeward.back_up(&pair.primary, &["--from", "any"]);
    assert!(load.is_running(), "the load ended by itself");
    assert_eq!(backup.text("from"), "primary");
    // Both nodes of one cluster back up into the same place.
    let other = leeward.back_up(&pair.standby, &[]);
    assert_eq!(
        other.text("system_identifier"),
        backup.text("system_identifier")
    );
    load.stop();
    reference::write_beyond(&pair.primary);
    assert_eq!(
        pair.primary
            .sql("SELECT count(*) FROM pg_replication_slots"),
        "0"
    );

    let truth = fingerprint(&reference::server_at(&story, &pair, &backup.stop_lsn()));
    let mut restored = leeward.restored(&backup.id(), "restored", &["--target-immediate"]);
    assert_sound(&story, &mut restored, &backup, &truth);
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
