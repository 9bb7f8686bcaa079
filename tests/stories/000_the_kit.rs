//! The kit itself: what the other stories hold backups against must tell sound from unsound.

use leeward_tests::contents::{assert_amcheck_clean, assert_pgbench_invariants, fingerprint};
use leeward_tests::damage::PageDamage;
use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::load::Load;
use leeward_tests::pair::Pair;
use leeward_tests::reference;
use leeward_tests::server::Stop;
use leeward_tests::story::Story;
use leeward_tests::tools::{pg_checksums, pg_controldata, tools_understand};

/// The reference at an LSN holds what the standby held when its replay stood there, under load; and no other moment
/// looks the same.
fn check(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::new(&story);
    let load = Load::start(&story, &pair.primary);

    // With replay paused the standby stands at one LSN, and shows what it holds there; but not where replay holds the
    // locks of somebody's half-done DDL.
    wait_until("replay is paused and holds no lock", PATIENCE, || {
        pair.standby.sql("SELECT pg_wal_replay_pause()");
        wait_until("replay is paused", PATIENCE, || {
            pair.standby.sql("SELECT pg_get_wal_replay_pause_state()") == "paused"
        });
        let free = pair
            .standby
            .sql("SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock'")
            == "0";
        if !free {
            pair.standby.sql("SELECT pg_wal_replay_resume()");
        }
        free
    });
    let lsn = pair.standby.sql("SELECT pg_last_wal_replay_lsn()");
    let truth = fingerprint(&pair.standby);
    load.stop();
    reference::write_beyond(&pair.primary);

    let mut reference = reference::server_at(&story, &pair, &lsn);
    fingerprint(&reference).assert_equals(&truth, "the reference differs from the standby");
    assert_pgbench_invariants(&reference);
    assert_amcheck_clean(&reference);
    assert_ne!(
        fingerprint(&pair.primary),
        truth,
        "the primary has gone on, and must look different"
    );

    reference.stop(Stop::Fast);
    if tools_understand(story.installation()) {
        assert_eq!(
            pg_controldata(
                story.installation(),
                reference.data(),
                "Database cluster state"
            ),
            "shut down"
        );
        pg_checksums(story.installation(), reference.data());
    }

    // A damaged page is seen by the checks that other stories rely on.
    reference.start();
    let file = reference.sql("SELECT pg_relation_filepath('pgbench_accounts')");
    reference.stop(Stop::Fast);
    PageDamage::FlippedBit.inflict(&reference.data().join(file), 7);
    reference.start();
    let error = reference.try_sql_in("postgres", "SELECT sum(abalance) FROM pgbench_accounts");
    assert!(error.is_err_and(|error| error.contains("invalid page in block 7")));

    // A standby that has lost its primary has replayed all of it.
    pair.standby.sql("SELECT pg_wal_replay_resume()");
    pair.stop_primary();
    let history = "SELECT count(*), sum(delta), max(mtime) FROM pgbench_history";
    let alone = pair.standby.sql(history);
    pair.primary.start();
    assert_eq!(
        pair.primary.sql(history),
        alone,
        "the standby stopped short of the primary"
    );
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
