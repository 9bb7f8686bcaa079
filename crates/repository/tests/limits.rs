//! Objects and listings that would cost more than any of their kind: refused before they do.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use leeward_fixtures::{SYSTEM_IDENTIFIER, Wal, segment};
use leeward_pgformat::{Lsn, TimelineId, WalSegmentSize};
use leeward_repository::RepositoryError;
use leeward_repository::catalog::{Cluster, Repository};
use leeward_repository::hash::Hash;
use leeward_repository::layout;
use leeward_repository::store::memory::{Action, Fault, FaultPoint, MemoryStore};
use leeward_repository::store::{Key, ObjectInfo, ObjectVersion, Store, StoreError, Upload};
use leeward_repository::summary::BackupSummary;
use leeward_repository::url::RepositoryUrl;
use leeward_repository::wal_archive::WalArchive;
use leeward_repository::wal_object::{WalFacts, read_history_object, write_wal_object};

fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

fn size() -> WalSegmentSize {
    WalSegmentSize::new(1 << 20).expect("a size")
}

/// A store that lists made-up objects, as many as are taken.
#[derive(Debug)]
struct Endless {
    memory: MemoryStore,
    name: fn(u64) -> String,
    listed: AtomicU64,
}

impl Endless {
    fn new(name: fn(u64) -> String) -> Arc<Endless> {
        Arc::new(Endless {
            memory: MemoryStore::bucket(),
            name,
            listed: AtomicU64::new(0),
        })
    }
}

impl Store for Endless {
    fn location(&self) -> &RepositoryUrl {
        self.memory.location()
    }

    fn endpoint(&self) -> Option<&str> {
        None
    }

    fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        self.memory.get(key)
    }

    fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.memory.get_range(key, range)
    }

    fn get_start(&self, key: &Key, limit: u64) -> Result<(Bytes, u64), StoreError> {
        self.memory.get_start(key, limit)
    }

    fn size(&self, key: &Key) -> Result<u64, StoreError> {
        self.memory.size(key)
    }

    fn create(&self, key: &Key, content: Bytes) -> Result<(), StoreError> {
        self.memory.create(key, content)
    }

    fn get_versioned(&self, key: &Key) -> Result<Option<(Bytes, ObjectVersion)>, StoreError> {
        self.memory.get_versioned(key)
    }

    fn replace(
        &self,
        key: &Key,
        content: Bytes,
        expected: &ObjectVersion,
    ) -> Result<ObjectVersion, StoreError> {
        self.memory.replace(key, content, expected)
    }

    fn sync(&self, key: &Key) -> Result<(), StoreError> {
        self.memory.sync(key)
    }

    fn overwrite(&self, key: &Key, content: Bytes) -> Result<ObjectVersion, StoreError> {
        self.memory.overwrite(key, content)
    }

    fn upload(&self, key: &Key) -> Result<Box<dyn Upload>, StoreError> {
        self.memory.upload(key)
    }

    fn list(
        &self,
        _prefix: &str,
        found: &mut dyn FnMut(ObjectInfo) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        for number in 0.. {
            self.listed.fetch_add(1, Ordering::Relaxed);
            let object = ObjectInfo {
                key: key(&(self.name)(number)),
                size_bytes: u64::MAX,
            };
            if found(object).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.memory.list_folders(prefix)
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.memory.delete(key)
    }

    fn remove_leftovers(&self, prefix: &str) -> Result<u64, StoreError> {
        self.memory.remove_leftovers(prefix)
    }
}

fn archive(store: Arc<dyn Store>) -> WalArchive {
    WalArchive::new(&Cluster::assumed(store, "main").expect("a name"))
}

fn expect_too_many<T: std::fmt::Debug>(result: Result<T, RepositoryError>, what: &str, limit: u64) {
    match result {
        Err(error @ RepositoryError::Store(_)) => {
            assert!(error.is_damage());
            let text = error.to_string();
            let expected = format!("holds more than {limit} {what}");
            assert!(text.contains(&expected), "{text}");
        }
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn a_listing_ends_at_its_limits() {
    let history = |n: u64| format!("main/wal/{n:08X}/{n:08X}.history.zst", n = n + 2);
    let gap = |n: u64| format!("main/wal/00000001/{n:016X}-{:016X}.gap.json", n + 1);
    for (what, limit, name) in [
        ("timelines", 10_000, history as fn(u64) -> String),
        ("gaps", 1 << 18, gap),
    ] {
        let store = Endless::new(name);
        let held = archive(store.clone()).holdings(size());
        expect_too_many(held, what, limit);
        assert_eq!(store.listed.load(Ordering::Relaxed), limit + 1, "{what}");
    }
}

#[test]
fn names_at_the_end_of_all_lsns_are_not_ours() {
    let memory = MemoryStore::bucket();
    for name in ["FFFFFFFF00000FFF", "FFFFFFFF00000FFE"] {
        memory.put(
            key(&format!("main/wal/00000001/00000001{name}.zst")),
            Bytes::new(),
        );
    }
    let held = archive(Arc::new(memory)).holdings(size()).expect("listed");
    let segments = &held.timelines[&TimelineId(1)].segments;
    // The last segment has no end that is an LSN.
    assert_eq!(segments.len(), 1);
    let last = segments.last().expect("one");
    assert_eq!(Lsn((last + 1) << 20), Lsn(u64::MAX - (1 << 20) + 1));
}

/// A cluster whose folder is claimed.
fn cluster(memory: &MemoryStore) -> Cluster {
    let cluster = Repository::open_or_create(Arc::new(memory.clone()))
        .and_then(|repository| repository.cluster("main"))
        .expect("a cluster");
    cluster
        .claim(SYSTEM_IDENTIFIER, TimelineId(1))
        .expect("claimed");
    cluster
}

/// A backup's summary with one member changed, its checksum made right.
fn changed(text: &str, from: &str, to: &str) -> Bytes {
    assert!(text.contains(from), "{text}");
    let text = text.replacen(from, to, 1);
    let (body, _) = text.rsplit_once("  \"checksum\"").expect("a checksum");
    let checksum = Hash::of(body.as_bytes());
    format!("{body}  \"checksum\": \"{checksum}\"\n}}\n").into()
}

fn backup(cluster: &Cluster) -> leeward_repository::summary::BackupSummary {
    let mut wal = Wal::new(size(), 2, 1);
    for _ in 0..2 {
        wal.filler(100);
        wal.fill_segment(30_000);
    }
    let stop = wal.start + wal.size.bytes() + 8192;
    leeward_fixtures::Backup::new("20261122T023000Z-k7q2", wal.start + 40..stop)
        .store(cluster, &wal)
}

/// The place of a summary, and its text.
fn stored_summary(memory: &MemoryStore, summary: &BackupSummary) -> (Key, String) {
    let place = layout::summary("main", &summary.id).expect("a key");
    let text = memory.objects()[&place].to_vec();
    (place, String::from_utf8(text).expect("text"))
}

#[test]
fn the_wal_of_a_summary_is_checked_before_it_is_gone_along() {
    let memory = MemoryStore::bucket();
    let cluster = cluster(&memory);
    let summary = backup(&cluster);
    let (place, text) = stored_summary(&memory, &summary);
    assert!(cluster.backup(&summary.id).is_ok());
    let history = |count: usize| {
        let names: Vec<String> = (0..count)
            .map(|n| format!("\"{:08X}.history\"", n + 2))
            .collect();
        format!("\"history\": [{}]", names.join(", "))
    };
    for (from, to) in [
        (
            "\"stop_lsn\": \"0/302000\"",
            "\"stop_lsn\": \"FFFFFFFF/FFFFFFFF\"",
        ),
        ("\"stop_lsn\": \"0/302000\"", "\"stop_lsn\": \"0/100\""),
        ("\"start_lsn\": \"0/200028\"", "\"start_lsn\": \"0/0\""),
        (
            "\"first\": \"000000010000000000000002\"",
            "\"first\": \"000000010000000000000000\"",
        ),
        (
            "\"last\": \"000000010000000000000003\"",
            "\"last\": \"00000001FFFFFFFF00000000\"",
        ),
        (
            "\"last\": \"000000010000000000000003\"",
            "\"last\": \"../../../etc/passwd\"",
        ),
        (
            "\"segment_size_bytes\": 1048576",
            "\"segment_size_bytes\": 3",
        ),
        (
            "\"segment_size_bytes\": 1048576",
            "\"segment_size_bytes\": 0",
        ),
        ("\"history\": []", "\"history\": [\"../x\"]"),
        ("\"history\": []", &history(10_001)),
    ] {
        memory.put(place.clone(), changed(&text, from, to));
        let found = cluster.backup(&summary.id);
        assert!(
            matches!(found, Err(RepositoryError::Damaged { .. })),
            "{to:.60}: {found:?}"
        );
        let listed = cluster.backups().expect("listed");
        assert_eq!((listed.sound.len(), listed.unreadable.len()), (0, 1));
    }
}

#[test]
fn all_summaries_together_have_a_limit() {
    let memory = MemoryStore::bucket();
    let cluster = cluster(&memory);
    let summary = backup(&cluster);
    let (_, text) = stored_summary(&memory, &summary);
    let long = "x".repeat(7 << 20);
    for number in 0..19 {
        let id = format!("20261122T0230{number:02}Z-k7q2");
        let text = text.replace("20261122T023000Z-k7q2", &id);
        memory.put(
            key(&format!("main/backups/{id}/backup.json")),
            changed(&text, "\"host\": \"db2\"", &format!("\"host\": \"{long}\"")),
        );
    }
    let error = cluster.backups().expect_err("too much");
    assert!(error.is_damage(), "{error}");
    assert!(error.to_string().contains("bytes together"), "{error}");
}

#[test]
fn documents_have_a_limit() {
    let memory = MemoryStore::bucket();
    let cluster = cluster(&memory);
    let store = cluster.store().clone();
    let large = Bytes::from(vec![b' '; (8 << 20) + 1]);
    let id = "20261122T023000Z-k7q2".parse().expect("an id");
    memory.put(key("leeward.json"), large.clone());
    memory.put(key("main/cluster.json"), large.clone());
    memory.put(
        key("main/backups/20261122T023000Z-k7q2/backup.json"),
        large.clone(),
    );
    memory.put(
        key("main/wal/00000001/0000000000000000-0000000000000001.gap.json"),
        large,
    );
    let gap = archive(store.clone()).gap(TimelineId(1), &(Lsn(0)..Lsn(1)));
    for refused in [
        Repository::open(store).map(drop),
        cluster.file().map(drop),
        cluster.backup(&id).map(drop),
        gap.map(drop),
    ] {
        match refused {
            Err(error @ RepositoryError::Store(_)) => assert!(error.is_damage(), "{error}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_wal_object_that_says_it_is_endless_is_not_read() {
    let memory = MemoryStore::bucket();
    let archive = archive(Arc::new(memory.clone()));
    let wal = segment(size(), 2, 1);
    let mut bytes = &wal.bytes[..];
    archive
        .store_segment(wal.segment(), size(), SYSTEM_IDENTIFIER, &mut bytes, 1)
        .expect("stored");
    for told in [1 << 40, (1 << 30) + (1 << 24) + 1, u64::MAX] {
        memory.heal();
        memory.clear_operations();
        memory.inject(FaultPoint::new(Fault::Size(told)));
        let read = archive.read_segment(wal.segment(), size(), &mut std::io::sink());
        assert!(
            matches!(read, Err(RepositoryError::Damaged { .. })),
            "{told}: {read:?}"
        );
        assert_eq!(memory.operations().len(), 1, "{told}");
    }
}

#[test]
fn a_history_file_that_expands_is_not_kept() {
    let memory = MemoryStore::bucket();
    let store: &dyn Store = &memory;
    let facts = WalFacts {
        system_identifier: SYSTEM_IDENTIFIER,
        timeline: TimelineId(2),
    };
    let place = key("main/backups/20261122T023000Z-k7q2/wal/00000002.history.zst");
    let write = |text: &[u8]| {
        memory.remove(&place);
        write_wal_object(store, &place, facts, &mut &text[..], 3).expect("written");
    };
    write(&vec![b'#'; 64 << 20]);
    assert!(memory.objects()[&place].len() < 64 << 10, "it expands");
    let read = read_history_object(store, &place);
    assert!(
        matches!(read, Err(RepositoryError::Damaged { .. })),
        "{read:?}"
    );
    write(b"1\t0/3000000\tx\n");
    let (timeline, text) = read_history_object(store, &place).expect("read");
    assert_eq!(
        (timeline, &text[..]),
        (TimelineId(2), &b"1\t0/3000000\tx\n"[..])
    );
}

#[test]
fn of_claims_only_a_thousand_are_looked_at() {
    use leeward_repository::lease::{Lease, LeaseOptions};
    let memory = MemoryStore::bucket();
    for number in 0..1_001 {
        memory.put(key(&format!("main/claims/{number}-0-0")), &b"x"[..]);
    }
    let options = LeaseOptions {
        conditional_writes: false,
        ..LeaseOptions::default()
    };
    let refused = Lease::acquire(
        Arc::new(memory.clone()),
        "main",
        "backup",
        &options,
        &|_| {},
    );
    let text = refused.expect_err("too many").to_string();
    assert!(text.contains("holds more than 1000 objects"), "{text}");
    let read =
        |operation: &leeward_repository::store::memory::Operation| operation.action == Action::Get;
    assert_eq!(
        memory
            .operations()
            .iter()
            .filter(|operation| read(operation))
            .count(),
        0
    );
}
