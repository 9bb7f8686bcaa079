//! `kill -9` at random moments of backup and of restore: nothing is listed that does not restore, nothing half-made
//! starts, and the next run succeeds.

use std::fs;
use std::path::Path;

use leeward_tests::contents::{Fingerprint, fingerprint};
use leeward_tests::deadline::{PATIENCE, let_pass, wait_until};
use leeward_tests::judgement::{cannot_start, start_restored};
use leeward_tests::leeward::{Backup, Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::server::{Server, Stop};
use leeward_tests::story::Story;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// How many moments: the whole number on one major version, a sample on the others.
fn moments(major: u32) -> u32 {
    if major == 17 { 50 } else { 8 }
}

fn seed(major: u32) -> StdRng {
    StdRng::seed_from_u64(9000 + u64::from(major))
}

fn kill_backups(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::new(&story);
    pair.stop_primary();
    let leeward = Leeward::new(&story);
    let truth = fingerprint(&pair.standby);
    let usual = leeward
        .backup(&pair.standby, &[])
        .expect(exit::DONE)
        .elapsed;
    let mut random = seed(major);
    let mut killed = 0;
    for moment in 0..moments(major) {
        let before = leeward.listed();
        let running = leeward.spawn(&Leeward::backup_args(&pair.standby, &[]));
        let_pass(usual.mul_f64(random.random_range(0.0..1.0)));
        let outcome = running.kill();
        killed += u32::from(outcome.was_killed());
        for id in leeward.listed().iter().filter(|id| !before.contains(id)) {
            // It had committed before it died: then it is as good as any.
            judge(&story, &leeward, id, &format!("survivor-{moment}"), &truth);
        }
        wait_until("the dead backup's slot is gone", PATIENCE, || {
            pair.standby
                .sql("SELECT count(*) FROM pg_replication_slots")
                == "0"
        });
        leeward.backup(&pair.standby, &[]).expect(exit::DONE);
    }
    assert!(
        killed > moments(major) / 4,
        "only {killed} were killed in time"
    );
    judge(&story, &leeward, "latest", "last", &truth);
    // The next run has cleared away what the dead ones left.
    let folders = fs::read_dir(story.path("repository/main/backups"))
        .expect("there are backups")
        .count();
    assert_eq!(
        folders,
        leeward.listed().len(),
        "something of the dead backups is left"
    );
}

fn judge(story: &Story, leeward: &Leeward<'_>, id: &str, name: &str, truth: &Fingerprint) {
    let backup = Backup(
        leeward
            .run(&["show", id, "--json"])
            .expect(exit::DONE)
            .json(),
    );
    let mut restored = leeward.restored(id, name, &[]);
    start_restored(story, &mut restored, &backup);
    fingerprint(&restored).assert_equals(truth, "a backup made beside dying ones differs");
    restored.stop(Stop::Fast);
    fs::remove_dir_all(restored.data()).expect("could not remove a restored directory");
}

fn kill_restores(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::new(&story);
    pair.stop_primary();
    let leeward = Leeward::new(&story);
    let truth = fingerprint(&pair.standby);
    let backup = leeward.back_up(&pair.standby, &[]);
    let usual = leeward
        .restore("latest", &story.path("usual"), &[])
        .expect(exit::DONE)
        .elapsed;
    let mut random = seed(major);
    let mut killed = 0;
    for moment in 0..moments(major) {
        let name = format!("restored-{moment}");
        let to = story.path(&name);
        let running = leeward.spawn(&[
            "restore",
            "latest",
            "--to",
            to.to_str().expect("a path in UTF-8"),
        ]);
        let_pass(usual.mul_f64(random.random_range(0.0..1.0)));
        killed += u32::from(running.kill().was_killed());
        let mut server = Server::over(&story, &name, &to);
        server.set("autovacuum", "off");
        if cannot_start(&server) {
            if to.join("PG_VERSION").exists() {
                server.start_in_vain();
            }
            again(&leeward, &to);
            assert!(!cannot_start(&server));
        }
        // Whether it was whole before the kill or is the next run's: it is complete.
        start_restored(&story, &mut server, &backup);
        fingerprint(&server).assert_equals(&truth, "a restored directory that starts is not whole");
        server.stop(Stop::Immediate);
        fs::remove_dir_all(&to).expect("could not remove a restored directory");
    }
    assert!(
        killed > moments(major) / 4,
        "only {killed} were killed in time"
    );
}

/// The next run over what a dead one left: it succeeds, or says what to remove first.
fn again(leeward: &Leeward<'_>, to: &Path) {
    let outcome = leeward.restore("latest", to, &[]);
    if outcome.code() == Some(exit::REFUSED) {
        fs::remove_dir_all(to).expect("could not remove a half-made directory");
        leeward.restore("latest", to, &[]).expect(exit::DONE);
    } else {
        outcome.expect(exit::DONE);
    }
}

#[test]
fn backup_postgres_15() {
    kill_backups(15);
}

#[test]
fn restore_postgres_15() {
    kill_restores(15);
}

#[test]
fn backup_postgres_16() {
    kill_backups(16);
}

#[test]
fn restore_postgres_16() {
    kill_restores(16);
}

#[test]
fn backup_postgres_17() {
    kill_backups(17);
}

#[test]
fn restore_postgres_17() {
    kill_restores(17);
}

#[test]
fn backup_postgres_18() {
    kill_backups(18);
}

#[test]
fn backup_postgres_19() {
    kill_backups(19);
}

#[test]
fn restore_postgres_18() {
    kill_restores(18);
}

#[test]
fn restore_postgres_19() {
    kill_restores(19);
}
