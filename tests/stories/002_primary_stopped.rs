//! The primary is gone. The standby alone is enough, and waits for nobody.

use std::time::Duration;

use leeward_tests::contents::fingerprint;
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::Leeward;
use leeward_tests::load::Load;
use leeward_tests::pair::Pair;
use leeward_tests::story::Story;

fn check(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::new(&story);
    let leeward = Leeward::new(&story);
    Load::start(&story, &pair.primary).stop();
    pair.stop_primary();

    let outcome = leeward.backup(&pair.standby, &[]).expect(0);
    assert!(
        outcome.elapsed < Duration::from_secs(20),
        "it waited for something: {outcome}"
    );
    let backup = leeward.latest();
    // Nothing moves any more: the standby itself is the truth.
    let truth = fingerprint(&pair.standby);
    let mut restored = leeward.restored(&backup.id(), "restored", &[]);
    assert_sound(&story, &mut restored, &backup, &truth);

    // And again, and again: the standby was left as it was, and each backup stands for itself.
    let again = leeward.back_up(&pair.standby, &["--compression", "lz4"]);
    let plain = leeward.back_up(&pair.standby, &["--compression", "none"]);
    assert_eq!(leeward.listed(), [backup.id(), again.id(), plain.id()]);
    assert!(plain.count("stored_bytes") > again.count("stored_bytes"));
    assert_sound(
        &story,
        &mut leeward.restored(&again.id(), "restored-lz4", &[]),
        &again,
        &truth,
    );
    assert_sound(
        &story,
        &mut leeward.restored(&plain.id(), "restored-none", &[]),
        &plain,
        &truth,
    );
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
