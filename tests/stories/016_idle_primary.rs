//! An idle primary makes nothing wait, and hears nothing of a backup.

use std::time::Duration;

use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::story::Story;

fn check(major: u32) {
    let story = Story::begin(major);
    let pair = Pair::new(&story);
    let leeward = Leeward::new(&story);
    pair.primary.sql("ALTER SYSTEM SET log_connections = on");
    pair.primary
        .sql("ALTER SYSTEM SET log_replication_commands = on");
    // Housekeeping would write WAL as well.
    pair.primary.sql("ALTER SYSTEM SET autovacuum = off");
    pair.primary.sql("SELECT pg_reload_conf()");
    wait_until("no autovacuum works", PATIENCE, || {
        pair.primary
            .sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'autovacuum%'")
            == "0"
    });
    pair.standby.wait_for(&pair.primary);
    let connections = |text: &str| text.matches("connection received").count();

    // A heartbeat for the eyes of this story only: it proves that connections are logged at all.
    let before = connections(&pair.primary.log());
    let position = pair.primary.sql("SELECT pg_current_wal_insert_lsn()");
    let seen = connections(&pair.primary.log());
    // "immediate force wait", and "fast force wait" since 19.
    let requests = |text: &str| text.matches(" force wait").count();
    let requested = requests(&pair.primary.log());
    assert!(seen > before, "connections are not logged");

    for _ in 0..3 {
        let outcome = leeward.backup(&pair.standby, &[]).expect(exit::DONE);
        assert!(
            outcome.elapsed < Duration::from_secs(15),
            "it waited for something: {outcome}"
        );
    }
    assert_eq!(
        connections(&pair.primary.log()),
        seen,
        "a backup of the standby connected to the primary"
    );
    // Only the server's own checkpoints may have written WAL meanwhile; no switch, no checkpoint by request.
    let moved: i64 = pair
        .primary
        .sql(&format!(
            "SELECT pg_current_wal_insert_lsn() - '{position}'::pg_lsn"
        ))
        .parse()
        .expect("a distance");
    assert!(moved < 1 << 20, "the primary wrote {moved} bytes of WAL");
    assert_eq!(
        requests(&pair.primary.log()),
        requested,
        "a checkpoint was asked of the primary"
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
