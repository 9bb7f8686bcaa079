//! Questions, deadlines, cancelling, and servers that go away.

use std::time::{Duration, Instant};

use leeward_postgres::Error;
use leeward_postgres::throwaway::StopMode;

use crate::cluster::{Cluster, DEADLINE, usual, value};

#[test]
fn answers_and_errors_come_back_whole() {
    let cluster = Cluster::start(usual(), "");
    let mut session = cluster.primary.connect().unwrap();
    let rows = session
        .query(
            "SELECT $1::int4 + 1, NULL, $2::text",
            &[Some("41"), Some("naïve")],
        )
        .unwrap();
    assert_eq!(
        (
            rows.parse::<i32>(0, 0).unwrap(),
            rows.get(0, 1),
            rows.get(0, 2)
        ),
        (42, None, Some("naïve"))
    );
    assert_eq!((rows.get(1, 0), rows.get(0, 3)), (None, None));
    assert!(rows.parse::<u8>(0, 2).is_err());

    let Error::Sql(error) = session.query("SELECT 1/0", &[]).unwrap_err() else {
        panic!("not refused")
    };
    assert_eq!(
        (error.sqlstate.as_str(), error.severity.as_str()),
        ("22012", "ERROR")
    );
    session
        .execute("DO $$ BEGIN RAISE WARNING 'mind the gap'; END $$")
        .unwrap();
    assert_eq!(session.take_notices(), ["mind the gap"]);
    assert_eq!(session.take_notices(), Vec::<String>::new());
    assert!(
        session
            .execute("SELECT 1; SELECT nonsense; SELECT 2")
            .is_err()
    );
    assert!(matches!(
        session.query("COPY pg_class TO STDOUT", &[]),
        Err(Error::UnexpectedAnswer { .. })
    ));
}

#[test]
fn settings_of_the_server_cannot_end_a_session() {
    let config = "statement_timeout = '200ms'\nidle_session_timeout = '200ms'\nDateStyle = 'German'\nsearch_path = 'nowhere'";
    let cluster = Cluster::start(usual(), config);
    let mut session = cluster.primary.connect().unwrap();
    assert_eq!(value(&mut session, "SELECT pg_sleep(0.5)"), "");
    // Idle for longer than the server allows, by the clock of a session that is not idle.
    let mut other = cluster.primary.connect().unwrap();
    other.query("SELECT pg_sleep(0.5)", &[]).unwrap();
    assert_eq!(
        value(&mut session, "SELECT date '2026-01-31'"),
        "2026-01-31"
    );
    assert_eq!(value(&mut session, "SHOW search_path"), "pg_catalog");
}

#[test]
fn a_deadline_cancels_and_leaves_the_session_usable() {
    let cluster = Cluster::start(usual(), "");
    let mut session = cluster.primary.connect().unwrap();
    let began = Instant::now();
    let error = session
        .query_with_deadline("SELECT pg_sleep(60)", &[], Duration::from_millis(200))
        .unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(value(&mut session, "SELECT 1"), "1");
}

#[test]
fn another_thread_cancels() {
    let cluster = Cluster::start(usual(), "");
    let mut session = cluster.primary.connect().unwrap();
    let pid = session.backend_pid();
    let handle = session.cancel_handle().unwrap();
    let error = std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| session.query("SELECT pg_sleep(60)", &[]).unwrap_err());
        let mut watcher = cluster.primary.connect().unwrap();
        let sql = format!("SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}");
        crate::cluster::wait_for("the sleep", || value(&mut watcher, &sql) == "PgSleep");
        handle.cancel().unwrap();
        sleeper.join().unwrap()
    });
    // ERRCODE_QUERY_CANCELED
    assert_eq!(error.sqlstate(), Some("57014"), "{error:?}");
}

#[test]
fn a_stopped_server_is_noticed_and_says_why() {
    let mut cluster = Cluster::start(usual(), "");
    let mut session = cluster.primary.connect().unwrap();
    cluster.primary.stop(StopMode::Fast, DEADLINE).unwrap();
    let error = session.query("SELECT 1", &[]).unwrap_err();
    let Error::ServerGone { sqlstate, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(sqlstate.as_deref(), Some("57P01"), "{error:?}");

    cluster.primary.start(DEADLINE).unwrap();
    let mut session = cluster.primary.connect().unwrap();
    cluster.primary.kill9();
    assert!(matches!(
        session.query("SELECT 1", &[]),
        Err(Error::ServerGone { .. })
    ));
    assert!(matches!(
        session.query("SELECT 1", &[]),
        Err(Error::ServerGone { .. })
    ));
}
