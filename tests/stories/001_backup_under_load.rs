//! A standby is backed up while its primary is busy; the copy holds exactly what the standby held at the stop LSN.

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

    let told = leeward.backup(&pair.standby, &[]).expect(exit::DONE);
    assert!(load.is_running(), "the load ended by itself");
    // 14 is taken with a warning, in one line that says since when and what to do.
    let ended = told
        .stderr
        .lines()
        .filter(|line| line.contains("reached its end of life on") && line.contains("upgrade"));
    assert_eq!(ended.count(), usize::from(major == 14), "{}", told.stderr);
    let backup = leeward.latest();
    assert_eq!(backup.text("from"), "standby");
    assert!(backup.count("pages_checked") > 1000, "{:#}", backup.0);
    // The cluster goes on, and is not in the backup.
    pair.standby.wait_for(&pair.primary);
    load.stop();
    reference::write_beyond(&pair.primary);

    let mut restored = leeward.restored("latest", "restored", &[]);
    let truth = fingerprint(&reference::server_at(&story, &pair, &backup.stop_lsn()));
    assert_sound(&story, &mut restored, &backup, &truth);

    // The standby is as it was: no slot, no backup mode, still following.
    assert_eq!(
        pair.standby
            .sql("SELECT count(*) FROM pg_replication_slots"),
        "0"
    );
    pair.wait_streaming();
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

#[test]
fn postgres_19() {
    check(19);
}
