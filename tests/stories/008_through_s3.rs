//! Through a real S3 server, in several parts, and through a line that drops and delays.

use leeward_tests::contents::fingerprint;
use leeward_tests::dataset;
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::Leeward;
use leeward_tests::load::Load;
use leeward_tests::pair::Pair;
use leeward_tests::reference;
use leeward_tests::s3::{S3Server, SECRET_ACCESS_KEY};
use leeward_tests::server::Initdb;
use leeward_tests::story::Story;

fn check(major: u32) {
    let story = Story::begin(major);
    let pair = Pair::with(&story, &Initdb::default(), |primary| {
        dataset::fill(primary, 1);
        // What does not compress makes a pack of many parts.
        primary.sql(
            "CREATE TABLE story.noise (id int, bytes bytea);
             ALTER TABLE story.noise ALTER bytes SET STORAGE EXTERNAL;
             INSERT INTO story.noise SELECT i, (SELECT string_agg(sha512((i * 1000 + j)::text::bytea), '')
                                                  FROM generate_series(1, 200) j) FROM generate_series(1, 3500) i;
             ALTER SYSTEM SET autovacuum = off",
        );
    });
    let s3 = S3Server::start();
    let leeward = Leeward::over(&story, &s3.repository("stories"), &s3.endpoint());
    let load = Load::start(&story, &pair.primary);
    let backup = leeward.back_up(&pair.standby, &[]);
    load.stop();
    reference::write_beyond(&pair.primary);
    assert!(
        backup.count("stored_bytes") > 40 << 20,
        "too little for several parts: {:#}",
        backup.0
    );
    assert_eq!(leeward.listed(), [backup.id()]);

    let truth = fingerprint(&reference::server_at(&story, &pair, &backup.stop_lsn()));
    let mut restored = leeward.restored("latest", "restored", &[]);
    assert_sound(&story, &mut restored, &backup, &truth);

    // A secret is nobody's business.
    for args in [
        &["show", "latest"][..],
        &["list", "--json"],
        &["show", "no-such-backup"],
    ] {
        let outcome = leeward.run(args);
        assert!(
            !outcome.to_string().contains(SECRET_ACCESS_KEY),
            "{outcome}"
        );
    }
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
