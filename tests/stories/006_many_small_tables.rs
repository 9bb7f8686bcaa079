//! Twenty thousand small tables: few objects, little memory, everything there.

use leeward_tests::contents::fingerprint;
use leeward_tests::damage::files_under;
use leeward_tests::dataset;
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::server::Initdb;
use leeward_tests::story::Story;

const TABLES: u32 = 20_000;

/// More would be too much, whatever the number of files.
const MEMORY_KIB: u64 = 256 * 1024;

fn check(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::with(&story, &Initdb::default(), |primary| {
        dataset::fill(primary, 1);
        primary.sql(&format!(
            "CREATE SCHEMA many;
             DO $$
             BEGIN
                 FOR i IN 1 .. {TABLES} LOOP
                     EXECUTE format('CREATE TABLE many.t%s (id int)', i);
                     EXECUTE format('INSERT INTO many.t%s VALUES (%s)', i, i);
                     IF i % 500 = 0 THEN COMMIT; END IF;
                 END LOOP;
             END $$"
        ));
    });
    let leeward = Leeward::new(&story);
    pair.stop_primary();
    let outcome = leeward.backup(&pair.standby, &[]).expect(exit::DONE);
    assert!(
        outcome.peak_rss_kib < MEMORY_KIB,
        "{} KiB resident: {outcome}",
        outcome.peak_rss_kib
    );
    let backup = leeward.latest();
    assert!(backup.count("files") > u64::from(TABLES));
    let objects = files_under(&story.path("repository")).len();
    assert!(objects < 60, "{objects} objects for {TABLES} tables");

    let truth = fingerprint(&pair.standby);
    assert!(truth.relations() > TABLES as usize);
    let mut restored = leeward.restored("latest", "restored", &[]);
    assert_sound(&story, &mut restored, &backup, &truth);
}

#[test]
fn postgres_15() {
    check(15);
}

#[test]
fn postgres_19() {
    check(19);
}
