use proptest::prelude::*;

use super::*;

const DIRECTORY: TablespaceVersionDirectory = TablespaceVersionDirectory {
    major: MajorVersion::V15,
    catalog_version: 202_209_061,
};

fn segment(
    tablespace: u32,
    database: u32,
    relation: u32,
    fork: Fork,
    segment: u32,
) -> RelationSegment {
    RelationSegment {
        tablespace: Oid(tablespace),
        database: Oid(database),
        relation: RelFileNumber(relation),
        fork,
        segment,
    }
}

#[test]
fn paths_of_every_kind() {
    for (path, expected) in [
        ("base/5/16384", segment(1663, 5, 16384, Fork::Main, 0)),
        ("base/5/16384.1", segment(1663, 5, 16384, Fork::Main, 1)),
        (
            "base/5/16384_fsm.12",
            segment(1663, 5, 16384, Fork::FreeSpaceMap, 12),
        ),
        (
            "base/4294967295/4294967295_vm",
            segment(1663, u32::MAX, u32::MAX, Fork::VisibilityMap, 0),
        ),
        ("global/1262", segment(1664, 0, 1262, Fork::Main, 0)),
        (
            "global/1262_fsm",
            segment(1664, 0, 1262, Fork::FreeSpaceMap, 0),
        ),
        (
            "pg_tblspc/16400/PG_15_202209061/5/16385_init",
            segment(16400, 5, 16385, Fork::Init, 0),
        ),
    ] {
        assert_eq!(RelationSegment::parse(path), Some(expected), "{path}");
        assert_eq!(expected.path(DIRECTORY), path);
        assert_eq!(expected.to_string(), path.replace("PG_15_202209061", "*"));
    }
}

#[test]
fn other_files_are_not_relations() {
    for path in [
        "",
        "base",
        "base/5",
        "base/5/",
        "base//16384",
        "base/05/16384",
        "base/0/16384",
        "base/5/016384",
        "base/5/0",
        "base/5/16384.",
        "base/5/16384.0",
        "base/5/16384.01",
        "base/5/16384_",
        "base/5/16384_main",
        "base/5/16384_fsm_vm",
        "base/5/16384.1_fsm",
        "base/5/16384.1.2",
        "base/5/+1",
        "base/5/4294967296",
        "base/5/t3_16384",
        "base/5/PG_VERSION",
        "base/5/16384/1",
        "base/x/16384",
        "./base/5/16384",
        "/base/5/16384",
        "global/pg_control",
        "global/pg_filenode.map",
        "global/5/1262",
        "pg_tblspc/16400/5/16385",
        "pg_tblspc/16400/PG_13_202007201/5/16385",
        "pg_tblspc/16400/PG_15_202209061/16385",
        "pg_xact/0000",
        "pg_wal/000000010000000000000001",
        "old/base/5/16384",
    ] {
        assert_eq!(RelationSegment::parse(path), None, "{path}");
    }
}

#[test]
fn blocks_are_relation_wide() {
    let third = segment(1663, 5, 16384, Fork::Main, 2);
    assert_eq!(third.first_block(), BlockNumber(262_144));
    assert_eq!(third.block(131_071), BlockNumber(393_215));
    let last = segment(1663, 5, 16384, Fork::Main, 32_767);
    assert_eq!(last.block(131_071), BlockNumber(u32::MAX));
    assert_eq!(
        segment(1663, 5, 1, Fork::Main, u32::MAX).block(1),
        BlockNumber(u32::MAX),
        "no such segment, no panic"
    );
}

#[test]
fn maps_are_repaired_and_data_is_not() {
    let repaired = Fork::ALL.map(Fork::is_repaired_by_server);
    assert_eq!(repaired, [false, true, true, false], "main, fsm, vm, init");
}

#[test]
fn version_directories() {
    assert_eq!(
        TablespaceVersionDirectory::parse("PG_15_202209061"),
        Some(DIRECTORY)
    );
    for name in [
        "PG_15",
        "PG_15_",
        "PG__202209061",
        "PG_13_202007201",
        "PG_15_x",
        "PG_15_202209061_",
        "15_202209061",
    ] {
        assert_eq!(TablespaceVersionDirectory::parse(name), None, "{name}");
    }
    assert_eq!(
        tablespace_version_directory("pg_tblspc/16400/PG_15_202209061"),
        Some(DIRECTORY)
    );
    assert_eq!(
        tablespace_version_directory("pg_tblspc/16400/PG_15_202209061/5/16385"),
        Some(DIRECTORY)
    );
    assert_eq!(tablespace_version_directory("pg_tblspc/16400"), None);
    assert_eq!(tablespace_version_directory("base/5/16384"), None);
}

#[test]
fn temporary_relations() {
    for name in [
        "t3_16384",
        "t03_16384.1",
        "t3_16384_fsm",
        "t3_16384_vm.2",
        "t12_1_init",
    ] {
        assert!(is_temporary_relation_name(name), "{name}");
    }
    for name in [
        "16384",
        "t3",
        "t_16384",
        "t3_",
        "tx_1",
        "t3_x",
        "t3_1_main",
        "t3_1.",
        "t3_1_fsm.x",
        "t3_1.2.3",
        "t3_1_",
    ] {
        assert!(!is_temporary_relation_name(name), "{name}");
    }
}

fn any_segment() -> impl Strategy<Value = RelationSegment> {
    let place = prop_oneof![
        Just((Oid::GLOBAL_TABLESPACE, Oid::INVALID)),
        (1..=u32::MAX).prop_map(|database| (Oid::DEFAULT_TABLESPACE, Oid(database))),
        (16384..=u32::MAX, 1..=u32::MAX)
            .prop_map(|(tablespace, database)| (Oid(tablespace), Oid(database))),
    ];
    (
        place,
        1..=u32::MAX,
        prop::sample::select(Fork::ALL.to_vec()),
        any::<u32>(),
    )
        .prop_map(
            |((tablespace, database), relation, fork, segment)| RelationSegment {
                tablespace,
                database,
                relation: RelFileNumber(relation),
                fork,
                segment,
            },
        )
}

proptest! {
    #[test]
    fn paths_round_trip(segment in any_segment()) {
        prop_assert_eq!(RelationSegment::parse(&segment.path(DIRECTORY)), Some(segment));
    }

    #[test]
    fn a_path_is_the_only_name_of_its_segment(path in "(base/[0-9]{1,2}|global)/[0-9]{1,4}(_(fsm|vm|init))?([.][0-9]{1,2})?") {
        if let Some(segment) = RelationSegment::parse(&path) {
            prop_assert_eq!(segment.path(DIRECTORY), path);
        }
    }
}
