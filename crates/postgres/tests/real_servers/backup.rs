//! The backup session, from the slot to its end, and every way it ends early.

use std::time::{Duration, Instant};

use leeward_pgformat::{BackupLabel, TimelineId};
use leeward_postgres::Error;
use leeward_postgres::backup_session::{BackupFrom, BackupSession};
use leeward_postgres::connection::Connection;
use leeward_postgres::server_facts::Role;
use leeward_postgres::throwaway::{Server, StopMode};

use crate::cluster::{Cluster, DEADLINE, installed, usual, value, wait_for};

fn begin(server: &Server, from: BackupFrom) -> Result<BackupSession, Error> {
    BackupSession::start(server.connect().unwrap(), "a test", from)
}

fn slots(session: &mut Connection) -> String {
    value(session, "SELECT count(*) FROM pg_replication_slots")
}

#[test]
fn a_primary_is_backed_up_when_that_is_allowed() {
    for bin in installed() {
        let cluster = Cluster::start(bin, "");
        let mut admin = cluster.primary.connect().unwrap();
        let mut session = begin(&cluster.primary, BackupFrom::Any).unwrap();
        let started = session.started().clone();
        assert_eq!(
            (started.role, started.timeline),
            (Role::Primary, TimelineId(1))
        );
        assert!(started.slot_restart_lsn <= started.start_lsn);
        let kind = format!(
            "SELECT temporary, slot_type FROM pg_replication_slots WHERE slot_name = '{}'",
            session.slot()
        );
        let rows = admin.query(&kind, &[]).unwrap();
        assert_eq!(
            (rows.get(0, 0), rows.get(0, 1)),
            (Some("t"), Some("physical"))
        );
        admin
            .execute("CREATE TABLE public.t AS SELECT generate_series(1, 1000)")
            .unwrap();
        let position = session.position().unwrap();
        assert!(
            position.replay_lsn > started.start_lsn
                && position.slot_restart_lsn == Some(started.slot_restart_lsn)
        );
        assert!(
            !position.wal_at_risk && position.server_time_epoch_ms >= started.started_at_epoch_ms
        );
        let stop = session.stop().unwrap();
        assert!(stop.stop_lsn > started.start_lsn);
        // 19 writes LSNs with zeros in front: as text they differ.
        let label = BackupLabel::parse(&stop.backup_label).unwrap();
        assert_eq!(label.start_lsn, started.start_lsn);
        assert!(
            stop.backup_label.contains("BACKUP FROM: primary")
                && stop.backup_label.contains("LABEL: a test")
        );
        assert_eq!(stop.tablespace_map, None);
        assert!(session.stop().is_err(), "stopped twice");
        // The WAL is copied after the stop: the slot has to be there still.
        assert!(session.position().is_ok() && slots(&mut admin) == "1");
        session.finish().unwrap();
        assert_eq!(slots(&mut admin), "0");
    }
}

#[test]
fn a_standby_is_backed_up_with_its_primary_gone() {
    for bin in installed() {
        let mut cluster = Cluster::start(bin, "");
        let mut standby = cluster.standby("standby");
        cluster
            .primary
            .connect()
            .unwrap()
            .execute("CREATE TABLE public.t AS SELECT generate_series(1, 1000)")
            .unwrap();
        cluster.catch_up(&standby);
        cluster.primary.stop(StopMode::Immediate, DEADLINE).unwrap();
        let mut session = begin(&standby, BackupFrom::Standby).unwrap();
        assert_eq!(session.started().role, Role::Standby);
        let position = session.position().unwrap();
        assert_eq!(
            (position.replay_lag_bytes, position.replay_lag),
            (0, Some(Duration::ZERO))
        );
        let began = Instant::now();
        let stop = session.stop().unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "waited for somebody"
        );
        assert!(
            stop.backup_label.contains("BACKUP FROM: standby"),
            "{stop:?}"
        );
        assert!(
            stop.stop_lsn >= session.started().start_lsn && stop.stop_lsn <= position.replay_lsn
        );
        session.finish().unwrap();
        assert_eq!(slots(&mut standby.connect().unwrap()), "0");
        standby.stop(StopMode::Fast, DEADLINE).unwrap();
    }
}

#[test]
fn the_policy_declines_primaries() {
    let mut cluster = Cluster::start(usual(), "");
    let error = begin(&cluster.primary, BackupFrom::Standby).unwrap_err();
    assert_eq!(
        error.to_string(),
        "declined: this server is a primary, and backups are taken from \"standby\""
    );
    let mut standby = cluster.standby("standby");
    let error = begin(&cluster.primary, BackupFrom::PreferStandby).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("\"prefer-standby\": a standby is streaming from it"),
        "{error}"
    );
    begin(&standby, BackupFrom::PreferStandby).unwrap();
    standby.stop(StopMode::Fast, DEADLINE).unwrap();
    let mut admin = cluster.primary.connect().unwrap();
    wait_for("the walsender's end", || {
        value(&mut admin, "SELECT count(*) FROM pg_stat_replication") == "0"
    });
    begin(&cluster.primary, BackupFrom::PreferStandby).unwrap();
}

#[test]
fn slots_run_out() {
    let cluster = Cluster::start(usual(), "max_replication_slots = 1");
    let mut admin = cluster.primary.connect().unwrap();
    admin
        .execute("SELECT pg_create_physical_replication_slot('somebodys')")
        .unwrap();
    let error = begin(&cluster.primary, BackupFrom::Any).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NoFreeSlot {
                max_replication_slots: 1
            }
        ),
        "{error:?}"
    );
    admin
        .execute("SELECT pg_drop_replication_slot('somebodys')")
        .unwrap();
    begin(&cluster.primary, BackupFrom::Any).unwrap();

    let cluster = Cluster::start(usual(), "max_replication_slots = 0");
    let error = begin(&cluster.primary, BackupFrom::Any).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NoFreeSlot {
                max_replication_slots: 0
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_dropped_session_leaves_neither_slot_nor_backup_mode() {
    // 14 can be asked whether a backup is running in any session; every version forgets it with the session.
    for bin in installed() {
        let fourteen = bin.major() == leeward_pgformat::MajorVersion::V14;
        let cluster = Cluster::start(bin, "max_replication_slots = 1");
        let mut admin = cluster.primary.connect().unwrap();
        let session = begin(&cluster.primary, BackupFrom::Any).unwrap();
        assert_eq!(slots(&mut admin), "1");
        drop(session);
        wait_for("the slot's end", || slots(&mut admin) == "0");
        let others = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'leeward' AND pid <> pg_backend_pid()";
        wait_for("the session's end", || value(&mut admin, others) == "0");
        if fourteen {
            assert_eq!(value(&mut admin, "SELECT pg_is_in_backup()"), "f");
        }
        assert!(
            !cluster
                .primary
                .data_directory()
                .join("backup_label")
                .exists()
        );
        begin(&cluster.primary, BackupFrom::Any)
            .unwrap()
            .stop()
            .unwrap();
    }
}

#[test]
fn a_promoted_standby_ends_the_backup() {
    let mut cluster = Cluster::start(usual(), "");
    let mut standby = cluster.standby("standby");
    let mut watching = begin(&standby, BackupFrom::Standby).unwrap();
    let mut unaware = begin(&standby, BackupFrom::Standby).unwrap();
    watching.position().unwrap();
    standby.promote(DEADLINE).unwrap();
    assert!(matches!(watching.position(), Err(Error::Promoted)));
    assert!(matches!(unaware.stop(), Err(Error::Promoted)));
}

#[test]
fn a_primary_without_full_page_writes_spoils_the_backup() {
    let mut cluster = Cluster::start(usual(), "");
    let standby = cluster.standby("standby");
    let mut session = begin(&standby, BackupFrom::Standby).unwrap();
    let mut admin = cluster.primary.connect().unwrap();
    admin
        .execute("ALTER SYSTEM SET full_page_writes = off")
        .unwrap();
    admin.execute("SELECT pg_reload_conf()").unwrap();
    // The checkpointer tells the WAL; a checkpoint of it is what the standby can restart from.
    wait_for("the setting in the WAL", || {
        admin.execute("CHECKPOINT").unwrap();
        value(
            &mut admin,
            "SELECT full_page_writes FROM pg_control_checkpoint()",
        ) == "f"
    });
    cluster.catch_up(&standby);
    let error = session.stop().unwrap_err();
    assert!(
        matches!(
            error,
            Error::FullPageWritesOff {
                when: "during the backup"
            }
        ),
        "{error:?}"
    );
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("full_page_writes = on"))
    );
    let error = begin(&standby, BackupFrom::Standby).unwrap_err();
    assert!(
        matches!(
            error,
            Error::FullPageWritesOff {
                when: "since the last restartpoint"
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_server_that_goes_away_is_noticed_at_once() {
    let mut cluster = Cluster::start(usual(), "");
    let mut session = begin(&cluster.primary, BackupFrom::Any).unwrap();
    cluster.primary.kill9();
    let began = Instant::now();
    assert!(matches!(session.position(), Err(Error::ServerGone { .. })));
    assert!(began.elapsed() < Duration::from_secs(2));
    drop(session);

    cluster.primary.start(DEADLINE).unwrap();
    assert_eq!(
        slots(&mut cluster.primary.connect().unwrap()),
        "0",
        "a temporary slot outlived a crash"
    );
    let mut session = begin(&cluster.primary, BackupFrom::Any).unwrap();
    cluster.primary.stop(StopMode::Fast, DEADLINE).unwrap();
    let error = session.stop().unwrap_err();
    assert_eq!(error.sqlstate(), Some("57P01"), "{error:?}");
}

#[test]
fn a_slot_that_falls_too_far_behind_ends_the_session() {
    for bin in installed() {
        let cluster = Cluster::start(
            bin,
            "max_slot_wal_keep_size = '48MB'\nmin_wal_size = '32MB'\nmax_wal_size = '32MB'",
        );
        let mut session = begin(&cluster.primary, BackupFrom::Any).unwrap();
        let mut admin = cluster.primary.connect().unwrap();
        for _ in 0..8 {
            admin.execute("CREATE TABLE public.t AS SELECT 1; DROP TABLE public.t; SELECT pg_switch_wal()").unwrap();
        }
        admin.execute("CHECKPOINT").unwrap();
        let error = session.position().unwrap_err();
        let hint = error.hint().unwrap_or_default();
        assert!(
            matches!(error, Error::SlotLost { .. } | Error::ServerGone { .. }),
            "{error:?}"
        );
        assert!(hint.contains("max_slot_wal_keep_size"), "{error:?}: {hint}");
    }
}
