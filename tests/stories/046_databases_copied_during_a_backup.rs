//! Databases that are moved, copied file by file and dropped while a backup runs. Recovery repeats the copy from the files in
//! the backup: where they may not be what was copied, there is no backup.

use leeward_tests::contents::fingerprint;
use leeward_tests::dataset;
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::server::{Initdb, Server};
use leeward_tests::story::Story;

/// Runs statements on the primary, each in its database, until the standby has them on disk: a backup ends there.
fn run(pair: &Pair, statements: &[(&str, &str)]) {
    for (database, sql) in statements {
        pair.primary.sql_in(database, sql);
    }
    pair.primary.sql("CHECKPOINT");
    pair.standby.wait_for(&pair.primary);
    pair.standby.sql("CHECKPOINT");
}

/// Does what is said while a backup stands still; the backup fails, and the next one does not.
fn fails_once(pair: &Pair, leeward: &Leeward<'_>, what: &[(&str, &str)], words: &[&str]) {
    let listed = leeward.listed().len();
    let running = leeward.frozen_backup(&pair.standby);
    run(pair, what);
    running.thaw();
    let outcome = running.wait().expect(exit::FAILED).expect_words(words);
    outcome.expect_words(&["recovery repeats the copy", "Run the command again"]);
    assert_eq!(leeward.listed().len(), listed);
    leeward.back_up(&pair.standby, &[]);
}

fn check(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::with(&story, &Initdb::default(), |primary: &mut Server| {
        dataset::fill(primary, 1);
        primary.append_config("allow_in_place_tablespaces = on\nautovacuum = off");
        primary.sql("SET allow_in_place_tablespaces = on; CREATE TABLESPACE far LOCATION ''");
        for database in ["shop", "model", "gone"] {
            primary.sql(&format!("CREATE DATABASE {database}"));
            primary.sql_in(
                database,
                "CREATE TABLE orders AS SELECT g AS id, repeat('x', 100) AS note FROM generate_series(1, 5000) g",
            );
        }
    });
    let leeward = Leeward::new(&story);
    leeward.back_up(&pair.standby, &[]);

    fails_once(
        &pair,
        &leeward,
        &[("postgres", "ALTER DATABASE shop SET TABLESPACE far")],
        &["database \"shop\" was moved to another tablespace"],
    );
    fails_once(
        &pair,
        &leeward,
        &[
            (
                "postgres",
                "CREATE DATABASE heir TEMPLATE model STRATEGY file_copy",
            ),
            ("postgres", "DROP DATABASE model"),
        ],
        &[
            "database \"heir\" was created as a copy of database \"model\"",
            "database \"model\" was dropped",
        ],
    );
    fails_once(
        &pair,
        &leeward,
        &[
            (
                "postgres",
                "CREATE DATABASE twin TEMPLATE shop STRATEGY file_copy",
            ),
            ("shop", "INSERT INTO orders VALUES (5001, 'later')"),
        ],
        &[
            "database \"twin\" was created as a copy of database \"shop\"",
            "database \"shop\" was written to afterwards",
        ],
    );

    // Recovery can repeat all this, so it fails no backup: copies of unchanged databases, copies of copies, pages that are in WAL,
    // and databases that are gone at the end, however they were moved before.
    let running = leeward.frozen_backup(&pair.standby);
    let copy = "CREATE DATABASE copied TEMPLATE shop STRATEGY file_copy";
    let chain = "CREATE DATABASE chained TEMPLATE copied STRATEGY file_copy TABLESPACE far";
    let plain = "CREATE DATABASE plain TEMPLATE template0 STRATEGY file_copy";
    let statements = [
        ("shop", "INSERT INTO orders VALUES (5002, 'before')"),
        ("postgres", "CREATE DATABASE logged TEMPLATE shop"),
        ("postgres", copy),
        ("copied", "INSERT INTO orders VALUES (5003, 'copied')"),
        ("postgres", chain),
        ("copied", "DELETE FROM orders WHERE id < 100"),
        ("copied", "VACUUM orders"),
        ("copied", "CREATE TABLE fresh AS SELECT 1 AS one"),
        ("postgres", plain),
        ("postgres", "ALTER DATABASE gone SET TABLESPACE far"),
        ("postgres", "DROP DATABASE gone"),
        ("postgres", "CREATE DATABASE passing TEMPLATE heir"),
        ("postgres", "ALTER DATABASE passing SET TABLESPACE far"),
        ("postgres", "DROP DATABASE passing"),
    ];
    run(&pair, &statements);
    running.thaw();
    running.wait().expect(exit::DONE);
    pair.stop_primary();
    let backup = leeward.latest();
    let truth = fingerprint(&pair.standby);
    let mut restored = leeward.restored(&backup.id(), "restored", &[]);
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
