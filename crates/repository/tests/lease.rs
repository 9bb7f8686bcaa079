//! Leases on the local store, whose conditional writes are exact, and claims on the same.

use std::cell::RefCell;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use leeward_repository::hash::Hash;
use leeward_repository::lease::{Lease, LeaseError, LeaseOptions};
use leeward_repository::store::local::LocalStore;
use leeward_repository::store::memory::MemoryStore;
use leeward_repository::store::{Key, Store, list_all};
use leeward_tests::deadline::{PATIENCE, wait_until};
use serde_json::Value;

const PLACE: &str = "LEEWARD_TEST_PLACE";

fn store() -> (tempfile::TempDir, Arc<dyn Store>) {
    let folder = tempfile::tempdir().expect("a directory");
    let store = Arc::new(LocalStore::new(folder.path().to_owned()));
    (folder, store)
}

fn objects() -> LeaseOptions {
    LeaseOptions {
        ttl: Duration::from_secs(60),
        ..LeaseOptions::default()
    }
}

fn claims() -> LeaseOptions {
    LeaseOptions {
        conditional_writes: false,
        claim_settle: Duration::from_millis(200),
        ..objects()
    }
}

fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

fn acquire(store: &Arc<dyn Store>, options: &LeaseOptions) -> Result<Lease, LeaseError> {
    Lease::acquire(store.clone(), "main", "backup", options, &|_| {})
}

/// Waits as they were told: who was waited for, and how long the wait still was.
type Waits = Vec<(Option<String>, Duration)>;

/// Acquires it; returns what was told of waits, too.
fn acquire_and_listen(
    store: &Arc<dyn Store>,
    options: &LeaseOptions,
) -> (Result<Lease, LeaseError>, Waits) {
    let told = RefCell::new(Vec::new());
    let lease = Lease::acquire(store.clone(), "main", "backup", options, &|wait| {
        let holder = wait.holder.map(|holder| holder.process.host.clone());
        told.borrow_mut().push((holder, wait.left));
    });
    (lease, told.into_inner())
}

/// The record as a document, with its checksum.
fn document(record: &Value) -> Bytes {
    let mut record = record.clone();
    record.as_object_mut().expect("a record").remove("checksum");
    let text = serde_json::to_string_pretty(&record).expect("text");
    let body = format!("{},\n", text.strip_suffix("\n}").expect("an object"));
    let checksum = Hash::of(body.as_bytes());
    format!("{body}  \"checksum\": \"{checksum}\"\n}}\n").into()
}

fn record(store: &dyn Store) -> Value {
    serde_json::from_slice(&store.get(&key("main/lease.json")).expect("read")).expect("JSON")
}

/// Changes the lease behind everybody's back, as another host would.
fn rewrite(store: &dyn Store, change: impl FnOnce(&mut Value)) {
    let (content, version) = store
        .get_versioned(&key("main/lease.json"))
        .expect("read")
        .expect("there");
    let mut value: Value = serde_json::from_slice(&content).expect("JSON");
    change(&mut value);
    store
        .replace(&key("main/lease.json"), document(&value), &version)
        .expect("replaced");
}

fn now_plus(seconds: i64) -> String {
    jiff::Timestamp::now()
        .checked_add(jiff::SignedDuration::from_secs(seconds))
        .expect("in range")
        .to_string()
}

#[test]
fn one_holds_and_the_next_is_told_who() {
    for options in [objects(), claims()] {
        let (_folder, store) = store();
        let lease = acquire(&store, &options).expect("free");
        assert_eq!(lease.generation(), 1);
        lease.still_held().expect("held");
        let error = acquire(&store, &options).expect_err("held");
        let LeaseError::Held {
            holder,
            since,
            expires,
            ..
        } = &error
        else {
            panic!("{error:?}")
        };
        assert_eq!(
            (holder.what.as_str(), holder.process.pid),
            ("backup", std::process::id())
        );
        assert!(since < expires);
        let line = error.to_string();
        assert!(
            line.starts_with("a backup on host \"")
                && line.contains("works on cluster \"main\" since"),
            "{line}"
        );

        Lease::acquire(store.clone(), "other", "backup", &options, &|_| {})
            .expect("another cluster is free")
            .release()
            .expect("released");
        lease.release().expect("released");
        drop(acquire(&store, &options).expect("free again"));
        let third = acquire(&store, &options).expect("dropping released it");
        third.still_held().expect("held");
    }
}

#[test]
fn generations_grow() {
    let (_folder, store) = store();
    for generation in 1..4 {
        let lease = acquire(&store, &objects()).expect("free");
        assert_eq!(lease.generation(), generation);
        lease.release().expect("released");
    }
}

#[test]
fn of_many_at_once_one_holds() {
    for options in [objects(), claims()] {
        let (_folder, store) = store();
        let start = Barrier::new(8);
        let winners = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    match acquire(&store, &options) {
                        Ok(lease) => winners.lock().expect("whole").push(lease),
                        Err(LeaseError::Held { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                });
            }
        });
        let winners = winners.into_inner().expect("whole");
        // Claims that meet exactly may all withdraw, never two stay.
        assert!(
            winners.len() <= 1 && (winners.len() == 1 || !options.conditional_writes),
            "{}",
            winners.len()
        );
        for lease in &winners {
            lease.still_held().expect("held");
        }
    }
}

#[test]
fn a_killed_holder_is_followed_at_once() {
    if let Some(place) = std::env::var_os(PLACE) {
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(place.into()));
        let _lease = acquire(&store, &objects()).expect("free");
        std::process::abort();
    }
    let (folder, store) = store();
    let died = Command::new(std::env::current_exe().expect("known"))
        .args(["--exact", "a_killed_holder_is_followed_at_once"])
        .env(PLACE, folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("run");
    assert!(!died.success());
    assert_eq!(record(&*store)["released"], false);
    let lease = acquire(&store, &objects()).expect("its holder is dead");
    assert_eq!(lease.generation(), 2);
}

#[test]
fn a_lease_of_another_host_expires() {
    let (_folder, store) = store();
    let lease = acquire(&store, &objects()).expect("free");
    rewrite(&*store, |value| {
        value["holder"]["boot_id"] = "another".into();
        value["holder"]["host"] = "db2".into();
        value["expires_at"] = now_plus(30).into();
    });
    let error = acquire(&store, &objects())
        .expect_err("it lives for 30 s")
        .to_string();
    assert!(error.contains("on host \"db2\""), "{error}");
    rewrite(&*store, |value| value["expires_at"] = now_plus(-100).into());
    let second = acquire(&store, &objects()).expect("expired long ago");
    assert_eq!(second.generation(), 2);

    assert!(
        matches!(lease.still_held(), Err(LeaseError::Lost { .. })),
        "the first one notices"
    );
    assert!(matches!(lease.release(), Err(LeaseError::Lost { .. })));
    second.still_held().expect("and does not take it back");
}

#[test]
fn where_clocks_disagree_renewals_are_watched() {
    let (_folder, store) = store();
    let options = LeaseOptions {
        ttl: Duration::from_millis(900),
        ..objects()
    };
    drop(acquire(&store, &options).expect("free"));
    let doubtful = |seconds: i64| {
        rewrite(&*store, |value| {
            value["released"] = false.into();
            value["holder"]["boot_id"] = "another".into();
            value["expires_at"] = now_plus(seconds).into();
        });
    };
    // Dead, its clock an hour ahead: nobody renews it.
    doubtful(3600);
    let (lease, told) = acquire_and_listen(&store, &options);
    let lease = lease.expect("unchanged for a whole time to live");
    lease.still_held().expect("taken over just now");
    lease.release().expect("released");
    assert!(told.len() > 2, "{told:?}");
    assert!(told.iter().all(|(host, _)| host.is_some()), "{told:?}");
    assert!(told.is_sorted_by(|(_, a), (_, b)| a > b), "{told:?}");

    // Alive, its clock an hour ahead.
    doubtful(3600);
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut renewals = 100;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                renewals += 1;
                rewrite(&*store, |value| value["renewals"] = renewals.into());
                thread::park_timeout(Duration::from_millis(50));
            }
        });
        let refused = acquire(&store, &options);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(
            matches!(refused, Err(LeaseError::Held { .. })),
            "{refused:?}"
        );
    });
}

#[test]
fn a_lease_is_renewed_while_it_is_held() {
    for options in [objects(), claims()] {
        let (_folder, store) = store();
        let options = LeaseOptions {
            ttl: Duration::from_millis(1500),
            ..options
        };
        let lease = acquire(&store, &options).expect("free");
        let place = if options.conditional_writes {
            "main/lease.json"
        } else {
            "main/claims"
        };
        let state = || -> Vec<u8> {
            match store.get(&key(place)) {
                Ok(content) => content.to_vec(),
                Err(_) => format!("{:?}", leeward_repository::store::list_all(&*store, place))
                    .into_bytes(),
            }
        };
        for round in 0..4 {
            let before = state();
            wait_until(&format!("renewal {round}"), PATIENCE, || state() != before);
        }
        lease.still_held().expect("longer than its time to live");
        assert!(matches!(
            acquire(&store, &options),
            Err(LeaseError::Held { .. })
        ));
    }
}

#[test]
fn a_holder_notices_that_the_lease_is_gone() {
    let (_folder, store) = store();
    let options = LeaseOptions {
        ttl: Duration::from_millis(600),
        ..objects()
    };
    let lease = acquire(&store, &options).expect("free");
    store.delete(&key("main/lease.json")).expect("deleted");
    let error = lease.still_held().expect_err("lost");
    assert!(
        matches!(error, LeaseError::Lost { .. }) && error.hint().is_some(),
        "{error}"
    );
}

/// A claim or lease of a holder on another host, as its document.
fn foreign(store: &Arc<dyn Store>, options: &LeaseOptions) -> Value {
    let lease = acquire(store, options).expect("free");
    let object = list_all(&**store, "main").expect("listed").remove(0);
    let text = store.get(&object.key).expect("read");
    let mut value: Value = serde_json::from_slice(&text).expect("JSON");
    drop(lease);
    value["released"] = false.into();
    value["holder"]["boot_id"] = "another".into();
    value["holder"]["host"] = "db2".into();
    value
}

/// Puts `content` in the place of the lease, or of the only claim.
fn plant(memory: &MemoryStore, options: &LeaseOptions, content: Bytes) {
    let place = match options.conditional_writes {
        true => key("main/lease.json"),
        false => key("main/claims/00-00000001-00"),
    };
    memory.put(place, content);
}

#[test]
fn a_dead_holder_on_another_host_is_followed_after_a_wait_that_is_told() {
    for options in [objects(), claims()] {
        let memory = MemoryStore::bucket();
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        let options = LeaseOptions {
            ttl: Duration::from_millis(1_000),
            ..options
        };
        let mut record = foreign(&store, &options);
        // Expired, but no longer ago than clocks may differ.
        record["ttl_ms"] = 2_000.into();
        record["expires_at"] = now_plus(-1).into();
        plant(&memory, &options, document(&record));
        let (lease, told) = acquire_and_listen(&store, &options);
        let lease = lease.expect("nobody renews it");
        lease.still_held().expect("taken over just now");
        assert!(lease.generation() > 1);
        assert_eq!(told[0].0.as_deref(), Some("db2"));
        assert!(told[0].1 <= Duration::from_secs(2), "{told:?}");
    }
}

#[test]
fn a_lease_that_cannot_be_believed_is_taken_over_unless_it_is_renewed() {
    for options in [objects(), claims()] {
        let memory = MemoryStore::bucket();
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        let options = LeaseOptions {
            ttl: Duration::from_millis(300),
            ..options
        };
        let record = foreign(&store, &options);
        let mut endless = record.clone();
        endless["ttl_ms"] = u64::MAX.into();
        endless["expires_at"] = now_plus(1_000_000).into();
        let mut torn = document(&record);
        torn.truncate(torn.len() / 2);
        for content in [
            document(&endless),
            torn,
            Bytes::from(record.to_string()),
            Bytes::from_static(b"{}"),
            Bytes::from(vec![b' '; 1 << 20]),
        ] {
            plant(&memory, &options, content);
            let (lease, told) = acquire_and_listen(&store, &options);
            let lease = lease.expect("nobody renews it");
            lease.still_held().expect("taken over just now");
            assert!(!told.is_empty() && told.iter().all(|(holder, _)| holder.is_none()));
            lease.release().expect("released");
        }
    }
}

#[test]
fn a_lease_that_cannot_be_read_and_is_renewed_is_somebodys() {
    let memory = MemoryStore::bucket();
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    let options = LeaseOptions {
        ttl: Duration::from_millis(900),
        ..objects()
    };
    plant(&memory, &options, Bytes::from_static(b"0"));
    let renewals = RefCell::new(0);
    let refused = Lease::acquire(store, "main", "backup", &options, &|_| {
        *renewals.borrow_mut() += 1;
        plant(&memory, &options, renewals.borrow().to_string().into());
    });
    assert!(
        matches!(refused, Err(LeaseError::Unreadable { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_lease_of_a_newer_format_is_left_alone() {
    for options in [objects(), claims()] {
        let memory = MemoryStore::bucket();
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        let mut record = foreign(&store, &options);
        record["format_version"] = 2.into();
        plant(&memory, &options, document(&record));
        let before = memory.objects();
        let refused = acquire(&store, &options);
        assert!(
            matches!(refused, Err(LeaseError::NewerFormat { .. })),
            "{refused:?}"
        );
        assert!(memory.objects() == before);
    }
}
