//! A primary without a standby, asked for explicitly, under load.

use leeward_tests::contents::fingerprint;
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::{Backup, Leeward, Outcome, exit};
use leeward_tests::load::Load;
use leeward_tests::pair::Pair;
use leeward_tests::reference;
use leeward_tests::story::Story;
use serde_json::Value;

/// Faults of the minor version are told of the standby, wherever its version is shown, and never of the primary.
fn version_warnings(
    leeward: &Leeward<'_>,
    primary: (&Backup, &Outcome),
    standby: (&Backup, &Outcome),
) {
    let known = "on a standby: ";
    assert_eq!(primary.0.field("version_warning"), Value::Null);
    assert!(!primary.1.stderr.contains(known), "{}", primary.1.stderr);
    let show = |backup: &Backup| {
        leeward
            .run(&["show", &backup.id()])
            .expect(exit::DONE)
            .stdout
    };
    assert!(!show(primary.0).contains(known));
    let listed = leeward.run(&["list"]).expect(exit::DONE).stderr;
    let Value::String(warning) = standby.0.field("version_warning") else {
        // A minor version without known faults is installed.
        assert!(!standby.1.stderr.contains(known), "{}", standby.1.stderr);
        assert_eq!(listed, "");
        return;
    };
    let version = standby.0.text("postgres_version");
    assert!(
        warning.starts_with(&format!("PostgreSQL {version} has")),
        "{warning}"
    );
    assert_eq!(
        warning.contains("can hang"),
        ["14.23", "15.18", "16.14"].contains(&&*version)
    );
    for told in [&standby.1.stderr, &show(standby.0), &listed] {
        assert_eq!(told.matches(&warning).count(), 1, "{told}");
    }
}

fn check(major: u32) {
    let story = Story::begin(major);
    let pair = Pair::new(&story);
    let leeward = Leeward::new(&story);
    let mut load = Load::start(&story, &pair.primary);
    leeward
        .backup(&pair.primary, &["--from", "standby"])
        .expect(exit::DECLINED);
    let told = leeward
        .backup(&pair.primary, &["--from", "any"])
        .expect(exit::DONE);
    let backup = leeward.latest();
    assert!(load.is_running(), "the load ended by itself");
    assert_eq!(backup.text("from"), "primary");
    // Both nodes of one cluster back up into the same place.
    let told_of_standby = leeward.backup(&pair.standby, &[]).expect(exit::DONE);
    let other = leeward.latest();
    assert_eq!(
        other.text("system_identifier"),
        backup.text("system_identifier")
    );
    version_warnings(&leeward, (&backup, &told), (&other, &told_of_standby));
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
