//! What cannot be done is refused in one clear line, before anything is touched, with a code that scripts can tell
//! apart.

use std::fs;

use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::s3::S3Server;
use leeward_tests::server::{Initdb, Server, Stop};
use leeward_tests::story::Story;

/// One line says what is wrong; what to do may follow.
fn is_clear(outcome: &leeward_tests::leeward::Outcome) {
    let lines: Vec<&str> = outcome
        .stderr
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    assert!(
        (1..=6).contains(&lines.len()),
        "too much or too little said: {outcome}"
    );
}

fn check(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::new(&story);
    let leeward = Leeward::new(&story);

    // A repository that is not there.
    let outcome = leeward.run(&["list"]);
    assert!(
        matches!(outcome.code(), Some(exit::FAILED | exit::USAGE)),
        "{outcome}"
    );
    is_clear(&outcome.expect_words(&["no repository"]));

    // Not a data directory.
    let empty = story.path("empty");
    fs::create_dir(&empty).expect("could not create a directory");
    let outcome = leeward
        .run(&["backup", "--pgdata", empty.to_str().expect("UTF-8")])
        .expect(exit::USAGE);
    is_clear(&outcome.expect_words(&["empty"]));

    // A primary, which the default spares.
    let outcome = leeward.backup(&pair.primary, &[]).expect(exit::DECLINED);
    is_clear(&outcome);
    assert!(
        !story.path("repository/main/backups").exists(),
        "a declined backup left something"
    );
    leeward
        .backup(&pair.primary, &["--from", "any"])
        .expect(exit::DONE);
    assert_eq!(leeward.latest().text("from"), "primary");

    // The server of another directory.
    let mut stranger = Server::initdb(&story, "stranger", &Initdb::default());
    stranger.start();
    let conninfo = stranger.conninfo();
    let outcome = leeward.backup(&pair.standby, &["--conninfo", &conninfo]);
    assert!(
        matches!(outcome.code(), Some(exit::FAILED | exit::USAGE)),
        "{outcome}"
    );
    is_clear(&outcome);

    // A repository that holds another cluster's backups under this name.
    let outcome = leeward.backup(&stranger, &["--from", "any"]);
    assert!(
        matches!(
            outcome.code(),
            Some(exit::FAILED | exit::USAGE | exit::REFUSED)
        ),
        "{outcome}"
    );
    is_clear(&outcome.expect_words(&["--cluster"]));
    leeward
        .backup(&stranger, &["--from", "any", "--cluster", "stranger"])
        .expect(exit::DONE);
    assert_eq!(leeward.listed().len(), 2);
    stranger.stop(Stop::Fast);
    // With two clusters in one repository, which of them is meant has to be said.
    leeward
        .restore("latest", &story.path("ambiguous"), &[])
        .expect(exit::USAGE)
        .expect_words(&["--cluster", "main", "stranger"]);
    fs::remove_dir_all(story.path("repository/stranger"))
        .expect("could not remove a cluster's folder");

    // A user who may not; and a password that nobody shall read.
    pair.primary
        .sql("CREATE ROLE visitor LOGIN PASSWORD 'hunter2-secret'");
    pair.standby.wait_for(&pair.primary);
    let outcome = leeward
        .backup(
            &pair.standby,
            &["--conninfo", "user=visitor password=hunter2-secret"],
        )
        .expect(exit::FAILED);
    assert!(
        !outcome
            .to_string()
            .replace(&outcome.command, "")
            .contains("hunter2"),
        "{outcome}"
    );
    let outcome = outcome.expect_words(&["visitor", "GRANT"]);
    // What it says to do is enough: with these grants the same user succeeds, without being a superuser.
    for line in outcome
        .stderr
        .lines()
        .filter(|line| line.contains("GRANT") || line.contains("ALTER ROLE"))
    {
        let start = line
            .find("GRANT")
            .into_iter()
            .chain(line.find("ALTER ROLE"))
            .min()
            .expect("a statement");
        pair.primary.sql(&line[start..]);
    }
    pair.standby.wait_for(&pair.primary);
    leeward
        .backup(
            &pair.standby,
            &["--conninfo", "user=visitor password=hunter2-secret"],
        )
        .expect(exit::DONE);
    let outcome = leeward.backup(
        &pair.standby,
        &[
            "--conninfo",
            "host=/nonexistent user=visitor password=hunter2-secret",
        ],
    );
    assert!(
        !outcome
            .to_string()
            .replace(&outcome.command, "")
            .contains("hunter2"),
        "{outcome}"
    );

    // Where something is already.
    leeward
        .restore("latest", &story.path("first"), &[])
        .expect(exit::DONE);
    let mark = story.path("first/PG_VERSION");
    let age = fs::metadata(&mark)
        .and_then(|data| data.modified())
        .expect("it is there");
    is_clear(
        &leeward
            .restore("latest", &story.path("first"), &[])
            .expect(exit::REFUSED),
    );
    is_clear(
        &leeward
            .restore("latest", pair.standby.data(), &[])
            .expect(exit::REFUSED),
    );
    assert_eq!(
        fs::metadata(&mark)
            .and_then(|data| data.modified())
            .expect("it is there"),
        age
    );
    let occupied = story.path("occupied");
    fs::create_dir(&occupied).expect("could not create a directory");
    fs::write(occupied.join("letter"), "mine").expect("could not write a file");
    leeward
        .restore("latest", &occupied, &[])
        .expect(exit::REFUSED);
    assert_eq!(
        fs::read_dir(&occupied).expect("it is there").count(),
        1,
        "a refused restore left files"
    );
    leeward.restore("latest", &empty, &[]).expect(exit::DONE);

    // A backup that is not there.
    let outcome = leeward.restore("19990101T000000Z-aaaa", &story.path("never"), &[]);
    assert!(
        matches!(outcome.code(), Some(exit::FAILED | exit::USAGE)),
        "{outcome}"
    );
    is_clear(&outcome.expect_words(&["19990101T000000Z-aaaa"]));
    assert!(!story.path("never").exists());

    // No slot is free.
    pair.standby.stop(Stop::Fast);
    pair.standby.append_config("max_replication_slots = 1");
    pair.standby.start();
    pair.standby
        .sql("SELECT pg_create_physical_replication_slot('taken')");
    let outcome = leeward
        .backup(&pair.standby, &[])
        .expect(exit::FAILED)
        .expect_words(&["max_replication_slots"]);
    is_clear(&outcome);
    pair.standby.sql("SELECT pg_drop_replication_slot('taken')");
    leeward.backup(&pair.standby, &[]).expect(exit::DONE);

    // Pages could be torn for good.
    let listed = leeward.listed();
    pair.primary.sql("ALTER SYSTEM SET full_page_writes = off");
    pair.primary.sql("SELECT pg_reload_conf()");
    pair.primary
        .sql("SELECT pg_switch_wal(); CHECKPOINT; CREATE TABLE story.torn (id int); CHECKPOINT");
    pair.standby.wait_for(&pair.primary);
    is_clear(
        &leeward
            .backup(&pair.standby, &[])
            .expect(exit::FAILED)
            .expect_words(&["full_page_writes"]),
    );
    assert_eq!(leeward.listed(), listed);
    assert_eq!(
        pair.standby
            .sql("SELECT count(*) FROM pg_replication_slots"),
        "0"
    );

    // A server that does not run.
    pair.standby.stop(Stop::Fast);
    is_clear(
        &leeward
            .backup(&pair.standby, &[])
            .expect(exit::FAILED)
            .expect_words(&["running"]),
    );
    assert_eq!(leeward.listed(), listed);
}

fn check_bucket(major: u32) {
    let story = Story::begin(major);
    let s3 = S3Server::start();
    let missing = Leeward::over(&story, "s3://no-such-bucket/prefix", &s3.endpoint());
    let forbidden = Leeward::over(&story, &s3.repository("refusals"), &s3.endpoint())
        .env("AWS_SECRET_ACCESS_KEY", "wrong-secret-key");
    let outcome = missing.run(&["list"]);
    assert!(
        matches!(outcome.code(), Some(exit::FAILED | exit::USAGE)),
        "{outcome}"
    );
    is_clear(&outcome.expect_words(&["no-such-bucket"]));
    let outcome = forbidden.run(&["list"]);
    assert!(
        matches!(outcome.code(), Some(exit::FAILED | exit::USAGE)),
        "{outcome}"
    );
    assert!(
        !outcome.to_string().contains("wrong-secret-key"),
        "{outcome}"
    );
    is_clear(&outcome);
}

#[test]
fn bucket() {
    check_bucket(15);
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
