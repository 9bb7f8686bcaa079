//! Stores that ignore the conditions of writes: how that is found out and remembered, and what takes their place.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use leeward_fixtures::{SYSTEM_IDENTIFIER, segment};
use leeward_pgformat::{Lsn, TimelineId, WalSegmentSize};
use leeward_repository::RepositoryError;
use leeward_repository::catalog::{Cluster, Repository};
use leeward_repository::conditional_writes::{ComparingStore, are_honored};
use leeward_repository::hash::Hash;
use leeward_repository::store::local::LocalStore;
use leeward_repository::store::memory::{Action, Fault, FaultPoint, MemoryStore};
use leeward_repository::store::{Key, Store, StoreError};
use leeward_repository::url::RepositoryUrl;
use leeward_repository::wal_archive::{Gap, Piece, WalArchive};

mod contract;
use contract::key;

const PATIENCE: Duration = Duration::from_secs(60);

/// A bucket that ignores the conditions of writes.
fn ignoring() -> MemoryStore {
    let store = MemoryStore::bucket();
    store.inject(FaultPoint::new(Fault::IgnoreCondition).on(&[
        Action::Create,
        Action::Replace,
        Action::Finish,
    ]));
    store
}

fn comparing(store: &MemoryStore) -> Arc<dyn Store> {
    Arc::new(ComparingStore::new(Arc::new(store.clone())))
}

/// The object that remembers the probe.
fn remembered(store: &MemoryStore) -> (Key, String) {
    let objects = store.objects();
    let (key, text) = objects.iter().next().expect("an object");
    assert_eq!(objects.len(), 1, "nothing else stays: {objects:?}");
    let text = String::from_utf8(text.to_vec()).expect("text");
    (key.clone(), text)
}

/// The document with one member changed and its checksum made right.
fn changed(text: &str, member: &str, value: &str) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let start = format!("  \"{member}\": ");
    let line = lines
        .iter_mut()
        .find(|line| line.starts_with(&start))
        .expect("the member");
    *line = format!("{start}{value},");
    lines.truncate(lines.len() - 2);
    let body = lines.join("\n") + "\n";
    let checksum = Hash::of(body.as_bytes());
    format!("{body}  \"checksum\": \"{checksum}\"\n}}\n")
}

#[test]
fn a_store_that_compares_keeps_the_contract() {
    contract::check(&*comparing(&ignoring()));
}

#[test]
fn what_was_probed_is_remembered() {
    for (store, honors) in [(MemoryStore::bucket(), true), (ignoring(), false)] {
        assert_eq!(are_honored(&store).expect("probed"), honors);
        let (key, text) = remembered(&store);
        assert!(key.as_str().starts_with("store-"), "{key}");
        let member = format!("\"conditional_writes\": {honors}");
        assert!(text.contains(&member), "{text}");
        store.clear_operations();
        assert_eq!(are_honored(&store).expect("known"), honors);
        let operations = store.operations();
        assert_eq!(operations.len(), 1, "{operations:?}");
        assert_eq!(operations[0].action, Action::Get);
    }
}

#[test]
fn what_is_old_foreign_or_damaged_is_probed_again() {
    let store = MemoryStore::bucket();
    are_honored(&store).expect("probed");
    let (key, text) = remembered(&store);
    let hours = |hours| {
        let time = Timestamp::now() + SignedDuration::from_hours(hours);
        format!("\"{time}\"")
    };
    let wrong = changed(&text, "conditional_writes", "false");
    for (again, found) in [
        (false, wrong.clone()),
        (false, changed(&wrong, "probed_at", &hours(-23))),
        (true, changed(&wrong, "probed_at", &hours(-25))),
        (true, changed(&wrong, "probed_at", &hours(1))),
        (true, changed(&wrong, "endpoint", "\"https://elsewhere\"")),
        (true, changed(&wrong, "repository", "\"s3://another\"")),
        (true, wrong.replace("false", "true")),
        (true, String::new()),
    ] {
        store.put(key.clone(), found.clone());
        let honors = are_honored(&store).expect("probed or known");
        assert_eq!(honors, again, "{found}");
    }
}

#[test]
fn a_directory_is_not_probed() {
    let folder = tempfile::tempdir().expect("a directory");
    let store = LocalStore::new(folder.path().join("repository"));
    assert!(are_honored(&store).expect("known"));
    assert!(!folder.path().join("repository").exists());
    let store = MemoryStore::new(RepositoryUrl::Local("/nowhere".into()));
    assert!(are_honored(&store).expect("known"));
    assert_eq!(store.operations(), []);
}

#[test]
fn a_probe_that_fails_is_an_error_and_leaves_nothing() {
    for action in [Action::Create, Action::Replace, Action::Delete] {
        let store = MemoryStore::bucket();
        store.inject(FaultPoint::new(Fault::Fail).on(&[action]).times(1));
        assert!(are_honored(&store).is_err(), "{action:?}");
        let left = store.objects().len();
        assert_eq!(left, usize::from(action == Action::Delete), "{action:?}");
    }
}

#[test]
fn a_writer_whose_content_is_replaced_is_told() {
    let memory = ignoring();
    let store = comparing(&memory);
    let place = key("main/wal/x.zst");
    // The look after the write.
    let looks = FaultPoint::new(Fault::Stall).on(&[Action::Size]);
    memory.inject(looks.after(1).times(1));
    thread::scope(|scope| {
        let writing = scope.spawn(|| store.create(&place, Bytes::from_static(b"ours")));
        assert!(memory.wait_for_stall(PATIENCE));
        memory.put(place.clone(), &b"else"[..]);
        memory.release();
        let result = writing.join().expect("no panic");
        assert!(
            matches!(result, Err(StoreError::AlreadyExists { .. })),
            "{result:?}"
        );
    });
}

#[test]
fn nothing_that_is_created_on_condition_is_overwritten() {
    let memory = ignoring();
    let store = comparing(&memory);
    let repository = Repository::open_or_create(Arc::clone(&store)).expect("a repository");
    let cluster = repository.cluster("main").expect("a cluster");
    let timeline = TimelineId(1);
    cluster.claim(SYSTEM_IDENTIFIER, timeline).expect("claimed");
    let archive = WalArchive::new(&cluster);
    let size = WalSegmentSize::new(1 << 20).expect("a size");
    let store_segment = |seed| {
        let wal = segment(size, 2, seed);
        let mut bytes = &wal.bytes[..];
        archive.store_segment(wal.segment(), size, SYSTEM_IDENTIFIER, &mut bytes, 1)
    };
    let store_piece = |seed| {
        let wal = segment(size, 3, seed);
        archive.store_piece(
            &Piece {
                timeline,
                begin: wal.start,
                bytes: &wal.bytes[..9_000],
                contents: &leeward_pgformat::WalContents::default(),
                segment_size: size,
                system_identifier: SYSTEM_IDENTIFIER,
            },
            1,
        )
    };
    let store_history = |reason: &str| {
        let text = format!("1\t0/3000000\t{reason}\n");
        archive.store_file("00000002.history", SYSTEM_IDENTIFIER, text.as_bytes())
    };
    let gap = |reason: &str| Gap {
        timeline,
        begin: Lsn(1 << 20),
        end: Lsn(2 << 20),
        found_at: Timestamp::now(),
        reason: reason.to_owned(),
    };
    assert!(store_segment(1).expect("stored").is_new());
    assert!(store_piece(1).expect("stored").is_new());
    assert!(store_history("promoted").expect("stored").is_new());
    archive.record_gap(&gap("lost")).expect("recorded");

    let before = memory.objects();
    for (what, stored) in [
        ("segment", store_segment(2)),
        ("piece", store_piece(2)),
        ("history file", store_history("forked")),
    ] {
        assert!(
            matches!(stored, Err(RepositoryError::WalConflict { .. })),
            "{what}: {stored:?}"
        );
    }
    assert!(!store_segment(1).expect("the same").is_new());
    archive.record_gap(&gap("lost again")).expect("recorded");
    assert!(matches!(
        Repository::create(Arc::clone(&store)),
        Err(RepositoryError::RepositoryExists { .. })
    ));
    cluster.claim(SYSTEM_IDENTIFIER, timeline).expect("claimed");
    assert!(memory.objects() == before);

    cluster
        .claim(SYSTEM_IDENTIFIER, TimelineId(2))
        .expect("claimed");
    let file = Cluster::assumed(store, "main")
        .and_then(|cluster| cluster.file())
        .expect("read")
        .expect("there");
    assert_eq!(file.timelines, [1, 2], "what may be replaced is");
}
