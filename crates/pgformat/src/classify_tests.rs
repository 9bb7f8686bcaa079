use proptest::prelude::*;

use super::*;
use crate::{Fork, Oid, RelFileNumber};

fn file(path: &str) -> FileClass {
    classify(path, false)
}

fn directory(path: &str) -> FileClass {
    classify(path, true)
}

#[test]
fn the_servers_exclusions() {
    // backup/basebackup.c, excludeDirContents
    for path in [
        "pg_stat_tmp",
        "pg_replslot",
        "pg_dynshmem",
        "pg_notify",
        "pg_serial",
        "pg_snapshots",
        "pg_subtrans",
        "pg_wal",
    ] {
        assert_eq!(directory(path), FileClass::SkipContents, "{path}");
        assert!(
            matches!(file(&format!("{path}/0000")), FileClass::Skip(_)),
            "{path}: what a walker finds inside"
        );
        assert!(
            matches!(directory(&format!("{path}/deep")), FileClass::Skip(_)),
            "{path}"
        );
        assert!(
            matches!(file(&format!("{path}/deep/state")), FileClass::Skip(_)),
            "{path}"
        );
    }
    // excludeFiles, with the names that are matched by their beginning
    for path in [
        "postgresql.auto.conf.tmp",
        "current_logfiles.tmp",
        "pg_internal.init",
        "global/pg_internal.init",
        "base/5/pg_internal.init.1234",
        "pg_tblspc/16400/PG_15_202209061/5/pg_internal.init",
        "backup_label",
        "tablespace_map",
        "backup_manifest",
        "postmaster.pid",
        "postmaster.opts",
        ".DS_Store",
        "base/.DS_Store",
    ] {
        assert!(matches!(file(path), FileClass::Skip(_)), "{path}");
    }
    // sendDir: PG_TEMP_FILE_PREFIX, files and directories alike
    assert_eq!(
        directory("base/pgsql_tmp"),
        FileClass::Skip(SkipReason::Temporary)
    );
    assert_eq!(
        file("base/pgsql_tmp/pgsql_tmp123.0"),
        FileClass::Skip(SkipReason::Temporary)
    );
    assert_eq!(
        directory("pg_tblspc/16400/PG_15_202209061/pgsql_tmp"),
        FileClass::Skip(SkipReason::Temporary)
    );
}

#[test]
fn our_exclusions() {
    for path in [
        "standby.signal",
        "recovery.signal",
        "recovery.conf",
        "promote",
    ] {
        assert_eq!(
            file(path),
            FileClass::Skip(SkipReason::RecoverySetting),
            "{path}"
        );
    }
    for path in ["backup_label.old", "tablespace_map.old"] {
        assert_eq!(
            file(path),
            FileClass::Skip(SkipReason::OtherBackup),
            "{path}"
        );
    }
    assert_eq!(
        file("current_logfiles"),
        FileClass::Skip(SkipReason::ThisServersRun)
    );
    assert_eq!(
        directory("lost+found"),
        FileClass::Skip(SkipReason::OperatingSystem)
    );
}

#[test]
fn wal_keeps_its_two_directories() {
    for name in WAL_SUBDIRECTORIES {
        assert_eq!(
            directory(&format!("pg_wal/{name}")),
            FileClass::SkipContents
        );
        assert_eq!(
            file(&format!("pg_wal/{name}")),
            FileClass::Skip(SkipReason::Wal),
            "not a directory"
        );
        assert_eq!(
            file(&format!("pg_wal/{name}/x.done")),
            FileClass::Skip(SkipReason::Wal)
        );
    }
    assert_eq!(
        file("pg_wal/000000010000000000000001"),
        FileClass::Skip(SkipReason::Wal)
    );
    assert_eq!(
        file("pg_wal/00000002.history"),
        FileClass::Skip(SkipReason::Wal)
    );
}

#[test]
fn what_recovery_needs_is_never_left_out() {
    for path in [
        "PG_VERSION",
        "base/5/PG_VERSION",
        "base/5/pg_filenode.map",
        "global/pg_filenode.map",
        "pg_xact/0000",
        "pg_multixact/offsets/0000",
        "pg_multixact/members/0000",
        "pg_commit_ts/0000",
        "pg_twophase/000003E8",
        "pg_logical/replorigin_checkpoint",
        "pg_stat/pgstat.stat",
        "postgresql.conf",
        "postgresql.auto.conf",
        "pg_hba.conf",
        "log/postgresql.log",
        "backup_labels",
        "conf.d/backup_label",
        "conf.d/standby.signal",
        "pg_walrus",
        "recovery.done",
    ] {
        assert_eq!(file(path), FileClass::Other, "{path}");
    }
    for path in [
        "base",
        "base/5",
        "global",
        "pg_tblspc",
        "pg_tblspc/16400",
        "pg_xact",
        "pg_logical",
        "conf.d/pg_wal",
    ] {
        assert_eq!(directory(path), FileClass::Other, "{path}");
    }
    assert_eq!(
        classify(b"caf\xE9.conf", false),
        FileClass::Other,
        "names need not be UTF-8"
    );
}

#[test]
fn relations_and_the_control_file() {
    assert_eq!(
        file("base/5/16384_vm.1"),
        FileClass::Relation(RelationSegment {
            tablespace: Oid::DEFAULT_TABLESPACE,
            database: Oid(5),
            relation: RelFileNumber(16384),
            fork: Fork::VisibilityMap,
            segment: 1,
        })
    );
    assert_eq!(
        directory("base/5/16384"),
        FileClass::Other,
        "a directory holds no pages"
    );
    assert_eq!(file("global/pg_control"), FileClass::ControlFile);
    assert_eq!(file("base/global/pg_control"), FileClass::Other);
    assert_eq!(file("base/5/t3_16384_fsm"), FileClass::TemporaryRelation);
    assert_eq!(
        file("pg_tblspc/16400/PG_15_202209061/5/t3_16384"),
        FileClass::TemporaryRelation
    );
    assert_eq!(
        file("pg_xact/t3_16384"),
        FileClass::Other,
        "temporary relations lie where relations do"
    );
}

proptest! {
    #[test]
    fn every_relation_path_is_a_relation(database in 1..=u32::MAX, relation in 1..=u32::MAX, segment in 1..=u32::MAX) {
        for path in [format!("base/{database}/{relation}.{segment}"), format!("global/{relation}_fsm")] {
            prop_assert!(matches!(file(&path), FileClass::Relation(_)), "{}", path);
        }
    }

    #[test]
    fn any_name_is_classified(path in prop::collection::vec(any::<u8>(), 0..40), is_directory: bool) {
        let _ = classify(path, is_directory);
    }
}
