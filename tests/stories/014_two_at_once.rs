//! Two backups of one cluster do not run at once; who died does not stand in the way.

use std::time::Duration;

use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::story::Story;

fn check(major: u32) {
    let story = Story::begin(major);
    let pair = Pair::new(&story);
    let leeward = Leeward::new(&story);
    leeward.back_up(&pair.standby, &[]);

    let slow = Leeward::backup_args(
        &pair.standby,
        &["--compression", "zstd:16", "--threads", "1"],
    );
    let mut first = leeward.spawn(&slow);
    wait_until("the first has begun", PATIENCE, || {
        first.has_ended()
            || pair
                .standby
                .sql("SELECT count(*) FROM pg_replication_slots")
                == "1"
    });
    first.freeze();
    assert!(!first.has_ended(), "the first was over too soon");
    let second = leeward.backup(&pair.standby, &[]).expect(exit::LEASED);
    assert!(second.elapsed < Duration::from_secs(10), "{second}");
    // Who, and since when.
    second.expect_words(&[&first.pid().to_string(), "since"]);
    // Reading is free.
    assert_eq!(leeward.listed().len(), 1);
    first.thaw();
    first.wait().expect(exit::DONE);
    assert_eq!(leeward.listed().len(), 2);

    let mut dead = leeward.spawn(&slow);
    wait_until("the next has begun", PATIENCE, || {
        dead.has_ended()
            || pair
                .standby
                .sql("SELECT count(*) FROM pg_replication_slots")
                == "1"
    });
    assert!(dead.kill().was_killed());
    // On the same host a dead holder is known to be dead.
    leeward.backup(&pair.standby, &[]).expect(exit::DONE);
    assert_eq!(leeward.listed().len(), 3);
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
