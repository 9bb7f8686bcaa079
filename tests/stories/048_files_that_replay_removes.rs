//! Files that replay removes while a backup runs. The minimum recovery point of a standby, where PostgreSQL's own tools end a
//! backup, may lie before the record that removed them: restored alone, such a backup would miss them.

use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::server::{Initdb, Server, Stop};
use leeward_tests::story::Story;

/// A transaction that was prepared before the backup and committed while files are copied: replay removes its file.
fn check(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::with(&story, &Initdb::default(), |primary: &mut Server| {
        // Nothing but a restartpoint moves the standby's minimum recovery point.
        primary.append_config(
            "max_prepared_transactions = 5\nautovacuum = off\nbgwriter_lru_maxpages = 0\ncheckpoint_timeout = '1h'",
        );
        primary.sql("CREATE TABLE accounts (id int)");
    });
    pair.primary
        .sql("BEGIN; INSERT INTO accounts VALUES (1); PREPARE TRANSACTION 'transfer'");
    pair.primary.sql("CHECKPOINT");
    pair.standby.wait_for(&pair.primary);
    let leeward = Leeward::new(&story);

    let running = leeward.frozen_backup(&pair.standby);
    pair.primary.sql("COMMIT PREPARED 'transfer'");
    pair.standby.wait_for(&pair.primary);
    running.thaw();
    running.wait().expect(exit::DONE);
    pair.stop_primary();

    // Both where the backup is consistent and where its WAL ends.
    let backup = leeward.latest();
    for (name, target) in [
        ("end", &[][..]),
        (
            "immediate",
            &["--target-immediate", "--target-action", "promote"],
        ),
    ] {
        let mut restored = leeward.restored(&backup.id(), name, target);
        restored.start();
        let prepared = restored.sql("SELECT count(*) FROM pg_prepared_xacts");
        let rows = restored.sql("SELECT count(*) FROM accounts");
        assert_eq!((prepared.as_str(), rows.as_str()), ("0", "1"), "{name}");
        restored.stop(Stop::Immediate);
    }
}

#[test]
fn postgres_15() {
    check(15);
}

#[test]
fn postgres_17() {
    check(17);
}

#[test]
fn postgres_19() {
    check(19);
}
