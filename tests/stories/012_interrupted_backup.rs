//! The standby is promoted, stopped or killed in the middle of a backup, or the backup itself is told to end: it ends
//! with the reason, nothing is listed, and the server is left as it was.

use std::fs;

use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::leeward::{Leeward, Running, exit};
use leeward_tests::pair::Pair;
use leeward_tests::server::{Server, Stop};
use leeward_tests::story::Story;
use rustix::process::Signal;

/// A backup that is frozen somewhere between its start and its end.
fn frozen(leeward: &Leeward<'_>, standby: &Server) -> Running {
    // Slow on purpose: one thread at the highest level.
    let slow = Leeward::backup_args(standby, &["--compression", "zstd:19", "--threads", "1"]);
    let mut running = leeward.spawn(&slow);
    wait_until("the backup has begun", PATIENCE, || {
        running.has_ended()
            || standby.sql("SELECT count(*) FROM pg_replication_slots WHERE temporary") == "1"
    });
    running.freeze();
    assert!(
        !running.has_ended(),
        "the backup was over too soon: {}",
        running.wait()
    );
    running
}

fn is_left_alone(standby: &Server) {
    wait_until("the session and its slot are gone", PATIENCE, || {
        standby.sql(
            "SELECT (SELECT count(*) FROM pg_replication_slots)
                  + (SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'leeward%')",
        ) == "0"
    });
}

fn check(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::new(&story);
    let leeward = Leeward::new(&story);
    pair.stop_primary();

    let running = frozen(&leeward, &pair.standby);
    pair.standby.stop(Stop::Fast);
    running.thaw();
    running.wait().expect(exit::FAILED);
    assert!(leeward.listed().is_empty());
    pair.standby.start();
    is_left_alone(&pair.standby);

    let running = frozen(&leeward, &pair.standby);
    pair.standby.stop(Stop::Kill);
    running.thaw();
    running.wait().expect(exit::FAILED);
    assert!(leeward.listed().is_empty());
    pair.standby.start();
    is_left_alone(&pair.standby);

    for signal in [Signal::INT, Signal::TERM] {
        let running = frozen(&leeward, &pair.standby);
        running.signal(signal);
        running.thaw();
        let outcome = running.wait();
        assert!(outcome.code() != Some(exit::DONE), "{outcome}");
        assert!(leeward.listed().is_empty());
        is_left_alone(&pair.standby);
    }

    let running = frozen(&leeward, &pair.standby);
    pair.standby.promote();
    running.thaw();
    running
        .wait()
        .expect(exit::FAILED)
        .expect_words(&["promoted"]);
    assert!(leeward.listed().is_empty());
    is_left_alone(&pair.standby);

    // What was a standby is a primary now, and declines; asked explicitly, it is backed up, and nothing is left of
    // the five attempts.
    leeward.backup(&pair.standby, &[]).expect(exit::DECLINED);
    leeward
        .backup(&pair.standby, &["--from", "any"])
        .expect(exit::DONE);
    assert_eq!(leeward.listed().len(), 1);
    assert_eq!(
        fs::read_dir(story.path("repository/main/backups"))
            .expect("there are backups")
            .count(),
        1
    );
    let mut restored = leeward.restored("latest", "restored", &[]);
    restored.start();
    wait_until("the restored server opens for writes", PATIENCE, || {
        !restored.in_recovery()
    });
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
