//! Objects that an earlier version wrote, in `tests/golden`: every later version reads them as they are. They are never
//! written again; a new format version gets files of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use leeward_pgformat::{SystemIdentifier, TimelineId};
use leeward_repository::catalog::Repository;
use leeward_repository::frame::FrameDecoder;
use leeward_repository::layout;
use leeward_repository::manifest::{Entry, ManifestReader};
use leeward_repository::pack::{PackIndex, check_pack};
use leeward_repository::store::local::LocalStore;
use leeward_repository::store::{Key, Store};
use leeward_repository::summary::{BackupSummary, ManifestSummary};
use leeward_repository::wal_object::{
    WalFacts, read_wal_object, read_wal_object_contents, write_wal_object,
    write_wal_object_with_contents,
};

use crate::kit::{
    ScannedWal, file, small_records, small_wal, summary, wal_contents, write_small_manifest,
    write_small_pack,
};
use leeward_fixtures::{noise, rows};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/format-1")
}

fn wal_facts() -> WalFacts {
    WalFacts {
        system_identifier: summary().system_identifier,
        timeline: TimelineId(1),
    }
}

fn wal_plain() -> Vec<u8> {
    [rows(4_000), noise(100, 2)].concat()
}

/// How the files came to be.
#[test]
#[ignore = "writes the golden files; only for a new format version"]
fn write() {
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(golden()));
    let repository = Repository::create(Arc::clone(&store)).expect("created");
    let cluster = repository.cluster("main").expect("a cluster");
    cluster
        .claim(summary().system_identifier, TimelineId(1))
        .expect("claimed");
    let id = summary().id;
    let pack =
        write_small_pack(&*store, &layout::pack("main", &id, 7).expect("a key")).expect("a pack");
    let key = layout::manifest("main", &id).expect("a key");
    let manifest = write_small_manifest(&*store, &key, &[pack]).expect("a manifest");
    let key = layout::backup_wal("main", &id, &small_wal().name).expect("a key");
    write_wal_object(&*store, &key, wal_facts(), &mut &wal_plain()[..], 3).expect("written");
    let summary = BackupSummary {
        manifest: ManifestSummary {
            size_bytes: manifest.size,
            hash: manifest.hash,
        },
        ..summary()
    };
    cluster.commit(&summary).expect("committed");
}

#[test]
fn format_1_is_read() {
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(golden()));
    let repository = Repository::open(Arc::clone(&store)).expect("leeward.json");
    assert_eq!(repository.clusters().expect("clusters"), ["main"]);
    let cluster = repository.cluster("main").expect("a cluster");
    let file_of_cluster = cluster.file().expect("cluster.json").expect("cluster.json");
    assert_eq!(
        file_of_cluster.system_identifier,
        SystemIdentifier(7_412_345_678_901_234_567)
    );
    assert_eq!(file_of_cluster.timelines, [1]);

    // backup.json -> manifest -> pack -> frames, each held to the hash in the one before.
    let backup = cluster.resolve("latest").expect("backup.json");
    assert_eq!(
        BackupSummary {
            manifest: summary().manifest,
            ..backup.clone()
        },
        summary()
    );
    let manifest = ManifestReader::open(
        Arc::clone(&store),
        layout::manifest("main", &backup.id).expect("a key"),
        backup.manifest.size_bytes,
        backup.manifest.hash,
    )
    .expect("a manifest");
    let entries: Vec<Entry> = manifest
        .entries()
        .map(|entry| entry.expect("an entry"))
        .collect();
    let expected: Vec<Entry> = small_records()
        .into_iter()
        .map(Entry::File)
        .chain([Entry::Wal(small_wal())])
        .collect();
    assert_eq!(entries, expected);
    assert_eq!(
        manifest.find(&file("PG_VERSION")).expect("find"),
        small_records().get(1).cloned()
    );

    let info = manifest.sources()[0].packs[0];
    let pack = layout::pack("main", &backup.id, info.number).expect("a key");
    let index = PackIndex::read(&*store, &pack, Some(&info)).expect("an index");
    let mut decoder = FrameDecoder::new();
    let mut frame = |number| {
        index
            .read_frame(&*store, &pack, number, &mut decoder)
            .expect("a frame")
    };
    assert_eq!(frame(0), rows(2 * 8192));
    assert_eq!(frame(1), noise(300, 1));
    assert_eq!(frame(2), rows(8192));
    let mut damages = Vec::new();
    let sound = check_pack(&*store, &pack, Some(&info), &mut |error| {
        damages.push(error)
    })
    .expect("read");
    assert_eq!((sound, damages.len()), (3, 0));

    let wal = layout::backup_wal("main", &backup.id, &small_wal().name).expect("a key");
    let mut plain = Vec::new();
    let size = store.size(&wal).expect("a size");
    let found = read_wal_object(&*store, &wal, size, &mut plain).expect("a WAL object");
    assert_eq!(found.facts, wal_facts());
    assert_eq!(plain, wal_plain());
    assert_eq!(found.contents, None, "written before there were contents");
    assert_eq!(
        read_wal_object_contents(&*store, &wal, size).expect("read"),
        None
    );
}

/// A WAL object with contents of this version.
fn wal_with_contents(version: u16) -> Key {
    let name = format!("00000001000000000000000{}", version + 1);
    layout::archived_wal("main", TimelineId(1), &name).expect("a key")
}

/// Writes the golden file of contents version 2.
#[test]
#[ignore = "writes a golden file; only for a new format version"]
fn write_wal_with_contents() {
    let store = LocalStore::new(golden());
    let plain = wal_plain();
    let mut source = ScannedWal(&plain);
    write_wal_object_with_contents(&store, &wal_with_contents(2), wal_facts(), &mut source, 3)
        .expect("written");
}

#[test]
fn contents_of_version_1_are_left_alone_and_of_version_2_are_read() {
    let store = LocalStore::new(golden());
    for (version, expected) in [(1, None), (2, Some(wal_contents()))] {
        let key = wal_with_contents(version);
        let size = store.size(&key).expect("a size");
        let mut plain = Vec::new();
        let found = read_wal_object(&store, &key, size, &mut plain).expect("a WAL object");
        assert_eq!(plain, wal_plain());
        assert_eq!(found.facts, wal_facts());
        assert_eq!(found.contents, expected);
        assert_eq!(
            read_wal_object_contents(&store, &key, size).expect("read"),
            expected
        );
    }
}
