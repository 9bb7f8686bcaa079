//! The catalog of a repository.

use std::sync::Arc;
use std::thread;

use jiff::Timestamp;
use leeward_pgformat::{SystemIdentifier, TimelineId};
use leeward_repository::RepositoryError;
use leeward_repository::backup_id::BackupId;
use leeward_repository::catalog::{Cluster, Repository};
use leeward_repository::layout;
use leeward_repository::summary::BackupSummary;

use crate::kit::{Place, summary};

const SYSTEM: SystemIdentifier = SystemIdentifier(7_412_345_678_901_234_567);

fn cluster(place: &Place) -> Cluster {
    let repository = Repository::open_or_create(Arc::clone(&place.store)).expect("a repository");
    repository.cluster("main").expect("a cluster")
}

fn backup(cluster: &Cluster, id: &str) -> BackupSummary {
    let summary = BackupSummary {
        id: id.parse().expect("an id"),
        ..summary()
    };
    cluster.commit(&summary).expect("committed");
    summary
}

#[test]
fn a_repository_is_created_once_and_opened_where_it_is() {
    let place = Place::new();
    let error = Repository::open(Arc::clone(&place.store)).expect_err("nothing there");
    assert!(
        matches!(error, RepositoryError::NoRepository { .. }),
        "{error}"
    );
    assert!(error.hint().is_some());
    let created = Repository::create(Arc::clone(&place.store)).expect("created");
    let error = Repository::create(Arc::clone(&place.store)).expect_err("there is one");
    assert!(
        matches!(error, RepositoryError::RepositoryExists { .. }),
        "{error}"
    );
    let opened = Repository::open(Arc::clone(&place.store)).expect("opened");
    assert_eq!(opened.file(), created.file());
    assert_eq!(opened.file().repository_id.len(), 32);
}

#[test]
fn many_that_create_at_once_agree() {
    let place = Place::new();
    let ids: Vec<String> = thread::scope(|scope| {
        let racers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    Repository::open_or_create(Arc::clone(&place.store)).expect("a repository")
                })
            })
            .collect();
        racers
            .into_iter()
            .map(|racer| racer.join().expect("joined").file().repository_id.clone())
            .collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[test]
fn a_cluster_belongs_to_one_system_identifier_and_remembers_timelines() {
    let place = Place::new();
    let cluster = cluster(&place);
    assert_eq!(cluster.file().expect("read"), None);
    for timeline in [2, 1, 2, 5] {
        cluster
            .claim(SYSTEM, TimelineId(timeline))
            .expect("claimed");
    }
    let file = cluster.file().expect("read").expect("a file");
    assert_eq!(
        (file.system_identifier, file.timelines),
        (SYSTEM, vec![1, 2, 5])
    );
    let error = cluster
        .claim(SystemIdentifier(1), TimelineId(1))
        .expect_err("another cluster");
    assert!(
        matches!(error, RepositoryError::ClusterMismatch { .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("7412345678901234567") && text.contains("main") && text.ends_with('1'),
        "{text}"
    );
    assert!(error.hint().is_some_and(|hint| hint.contains("--cluster")));
    thread::scope(|scope| {
        for timeline in 10..16 {
            let cluster = &cluster;
            scope.spawn(move || {
                cluster
                    .claim(SYSTEM, TimelineId(timeline))
                    .expect("claimed")
            });
        }
    });
    assert_eq!(
        cluster
            .file()
            .expect("read")
            .expect("a file")
            .timelines
            .len(),
        9
    );
}

#[test]
fn names_of_clusters() {
    let place = Place::new();
    let repository = Repository::create(Arc::clone(&place.store)).expect("a repository");
    for wrong in ["", ".", "..", "-x", "a/b", "a b", "ä", &"x".repeat(64)] {
        assert!(repository.cluster(wrong).is_err(), "{wrong}");
    }
    for (name, system) in [("prod-1.eu", 1), ("a", 2)] {
        let cluster = repository.cluster(name).expect("a cluster");
        cluster
            .claim(SystemIdentifier(system), TimelineId(1))
            .expect("claimed");
    }
    assert_eq!(repository.clusters().expect("listed"), ["a", "prod-1.eu"]);
}

#[test]
fn backups_are_listed_once_committed_and_resolved_by_prefix() {
    let place = Place::new();
    let cluster = cluster(&place);
    let error = cluster.resolve("latest").expect_err("nothing there");
    assert!(matches!(error, RepositoryError::NoBackup { .. }), "{error}");
    let second = backup(&cluster, "20261122T030000Z-aaaa");
    let first = backup(&cluster, "20261121T030000Z-bbbb");
    // Begun, never committed.
    let unfinished: BackupId = "20261123T030000Z-cccc".parse().expect("an id");
    let pack = layout::pack("main", &unfinished, 0).expect("a key");
    place.store.create(&pack, "pack".into()).expect("created");

    let listed = cluster.backups().expect("listed");
    assert_eq!(listed.sound, [first.clone(), second.clone()]);
    assert!(listed.unreadable.is_empty());
    assert_eq!(
        cluster.unfinished().expect("listed"),
        std::slice::from_ref(&unfinished)
    );
    assert_eq!(cluster.resolve("latest").expect("resolved"), second);
    assert_eq!(cluster.resolve("20261121").expect("resolved"), first);
    assert_eq!(cluster.resolve(first.id.as_str()).expect("resolved"), first);
    match cluster.resolve("202611") {
        Err(RepositoryError::AmbiguousBackup { candidates, .. }) => {
            assert_eq!(
                candidates,
                ["20261121T030000Z-bbbb", "20261122T030000Z-aaaa"]
            );
        }
        other => panic!("{other:?}"),
    }
    for wrong in ["", "20261123", "x"] {
        assert!(
            matches!(
                cluster.resolve(wrong),
                Err(RepositoryError::NoBackup { .. })
            ),
            "{wrong}"
        );
    }
    let error = cluster.commit(&second).expect_err("there already");
    assert!(
        matches!(error, RepositoryError::BackupExists { .. }),
        "{error}"
    );

    cluster.remove(&unfinished).expect("removed");
    cluster.remove(&second.id).expect("removed");
    assert!(cluster.unfinished().expect("listed").is_empty());
    assert_eq!(cluster.backups().expect("listed").sound, [first]);
}

#[test]
fn a_damaged_summary_hides_no_other_and_is_never_passed_over() {
    let place = Place::new();
    let cluster = cluster(&place);
    let older = backup(&cluster, "20261121T030000Z-bbbb");
    let newer = backup(&cluster, "20261122T030000Z-aaaa");
    let key = layout::summary("main", &newer.id).expect("a key");
    let mut bytes = place.bytes(&key);
    bytes[100] ^= 1;
    place.overwrite(&key, &bytes);
    let listed = cluster.backups().expect("listed");
    assert_eq!(listed.sound, [older]);
    assert_eq!(listed.unreadable.len(), 1);
    assert!(listed.unreadable[0].1.to_string().contains(key.as_str()));
    let error = cluster.resolve("latest").expect_err("damaged");
    assert!(error.is_damage(), "{error}");

    // A summary copied into another backup's folder is not that backup.
    let copy =
        layout::summary("main", &"20261124T030000Z-dddd".parse().expect("an id")).expect("a key");
    let sound = layout::summary("main", &listed.sound[0].id).expect("a key");
    place.overwrite(&copy, &place.bytes(&sound));
    assert!(
        cluster
            .resolve("20261124")
            .expect_err("not that backup")
            .is_damage()
    );
}

#[test]
fn ids_sort_by_time_and_are_read_strictly() {
    let early = BackupId::new("2026-11-22T02:30:00Z".parse::<Timestamp>().expect("a time"));
    let late = BackupId::new("2026-11-22T02:30:01Z".parse::<Timestamp>().expect("a time"));
    assert!(
        early.as_str().starts_with("20261122T023000Z-") && early < late,
        "{early} {late}"
    );
    assert_eq!(early.as_str().parse::<BackupId>().expect("an id"), early);
    for wrong in [
        "",
        "20261122T023000Z",
        "20261122T023000Z-k7q",
        "20261122T023000Z-K7Q2",
        "20261122 023000Z-k7q2",
        "../../../../../../-k7q2",
    ] {
        assert!(wrong.parse::<BackupId>().is_err(), "{wrong}");
    }
}
