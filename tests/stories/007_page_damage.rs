//! Every kind of page damage is found, named by relation and block, and does not keep a backup from being made.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use leeward_tests::damage::{PAGE, PageDamage};
use leeward_tests::dataset;
use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::leeward::{Backup, Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::server::{Initdb, Server, Stop};
use leeward_tests::story::Story;

/// The blocks reported for one file.
fn reported(backup: &Backup, path: &str) -> Vec<u64> {
    let damaged = backup.field("damaged");
    let entries = damaged
        .as_array()
        .expect("a list")
        .iter()
        .filter(|entry| entry["relation"] == path);
    entries
        .flat_map(|entry| entry["blocks"].as_array().expect("a list").clone())
        .filter_map(|b| b.as_u64())
        .collect()
}

fn path_of(server: &Server, relation: &str) -> String {
    server.sql(&format!("SELECT pg_relation_filepath('{relation}')"))
}

fn check(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::with(&story, &Initdb::default(), |primary| {
        dataset::fill(primary, 1);
        primary.sql(
            "CREATE TABLE story.bad AS SELECT i AS id, repeat('x', 100) AS what FROM generate_series(1, 20000) i;
             CREATE INDEX bad_id ON story.bad (id);
             VACUUM story.bad",
        );
    });
    pair.stop_primary();
    // The pages lie on disk, not in the server's memory, and will not be written again.
    pair.standby.stop(Stop::Fast);
    pair.standby.start();
    let leeward = Leeward::new(&story);
    leeward.back_up(&pair.standby, &[]);
    assert_eq!(
        leeward.latest().field("damaged").as_array().map(Vec::len),
        Some(0)
    );

    let (table, index) = (
        path_of(&pair.standby, "story.bad"),
        path_of(&pair.standby, "story.bad_id"),
    );
    let file = |path: &str| -> PathBuf { pair.standby.data().join(path) };
    let blocks: Vec<u64> = (0..9).map(|n| 11 + 7 * n).collect();
    for (damage, block) in PageDamage::ALL.iter().zip(&blocks) {
        damage.inflict(&file(&table), *block);
    }
    PageDamage::Checksum.inflict(&file(&index), 3);
    let map = format!("{table}_vm");
    // The visibility map of a small table has one page only.
    let handle = OpenOptions::new()
        .write(true)
        .open(file(&map))
        .expect("there is a visibility map");
    handle
        .write_all_at(&[0xAA], 4000)
        .expect("could not damage the visibility map");
    // The second relation segment of a large, mostly empty relation: its blocks count on from the first's.
    let large = path_of(&pair.standby, "story.empty");
    let first = OpenOptions::new()
        .write(true)
        .open(file(&large))
        .expect("the table has a file");
    first
        .set_len(131_072 * PAGE)
        .expect("could not extend a file");
    let second = file(&format!("{large}.1"));
    std::fs::copy(file(&table), &second).expect("could not copy a file");
    let handle = OpenOptions::new()
        .write(true)
        .open(&second)
        .expect("the copy is there");
    handle.set_len(4 * PAGE).expect("could not shorten a file");
    // Pages that are all zero are legitimate everywhere.
    handle
        .write_all_at(&[0; 8192], PAGE)
        .expect("could not write a page");

    let outcome = leeward.backup(&pair.standby, &[]).expect(exit::DAMAGED);
    // A name, not a hint: the words are checked where people read them.
    let outcome = outcome.expect_words(&[&table, &index]);
    assert!(outcome.stderr.contains(&blocks[0].to_string()), "{outcome}");

    let backup = leeward.latest();
    assert_eq!(
        reported(&backup, &table),
        blocks,
        "{:#}",
        backup.field("damaged")
    );
    assert_eq!(
        reported(&backup, &index),
        [3],
        "{:#}",
        backup.field("damaged")
    );
    assert_eq!(
        reported(&backup, &map),
        [0],
        "{:#}",
        backup.field("damaged")
    );
    // Every page there belongs to another block: sound bytes at the wrong place.
    let in_second: Vec<u64> = [0, 2, 3].iter().map(|n| 131_072 + n).collect();
    assert_eq!(
        reported(&backup, &format!("{large}.1")),
        in_second,
        "{:#}",
        backup.field("damaged")
    );
    assert_eq!(
        backup.field("damaged").as_array().map(Vec::len),
        Some(4),
        "{:#}",
        backup.field("damaged")
    );
    assert_eq!(
        leeward.listed().len(),
        2,
        "the damaged backup stands beside the sound one"
    );

    // The damaged backup restores by its name, damage and all; whatever is sound in it can be read.
    let to = story.path("restored");
    leeward
        .restore(&backup.id(), &to, &[])
        .expect(exit::DONE)
        .expect_words(&["damaged"]);
    for path in [&table, &index] {
        let (original, copy) = (std::fs::read(file(path)), std::fs::read(to.join(path)));
        assert!(
            original.expect("it is there") == copy.expect("it is there"),
            "{path} differs from the damaged original"
        );
    }
    let mut restored = Server::over(&story, "restored", &to);
    restored.set("autovacuum", "off");
    restored.start();
    wait_until("the restored server opens for writes", PATIENCE, || {
        !restored.in_recovery()
    });
    assert_eq!(
        restored.sql("SELECT count(*) FROM pgbench_accounts"),
        "100000"
    );
    assert!(
        restored
            .try_sql_in("postgres", "SELECT count(*) FROM story.bad")
            .is_err()
    );
    restored.sql("SET zero_damaged_pages = on; SELECT count(*) FROM story.bad");
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
