//! The memory store: the contract, and the faults that it injects.

use std::thread;
use std::time::Duration;

use bytes::Bytes;
use leeward_repository::store::memory::{Action, Fault, FaultPoint, MemoryStore};
use leeward_repository::store::{Store, StoreError, list_all};
use leeward_repository::url::RepositoryUrl;

mod contract;
use contract::key;

/// How long something may take that takes no time.
const PATIENCE: Duration = Duration::from_secs(60);

fn text(content: &'static str) -> Bytes {
    Bytes::from_static(content.as_bytes())
}

fn get(store: &MemoryStore, name: &str) -> Option<Bytes> {
    store.objects().get(&key(name)).cloned()
}

#[test]
fn memory_keeps_the_contract() {
    contract::check(&MemoryStore::bucket());
    contract::check(&MemoryStore::new(RepositoryUrl::Local("/nowhere".into())));
}

#[test]
fn the_operation_that_a_fault_point_names_meets_its_fault() {
    let store = MemoryStore::bucket();
    store.inject(
        FaultPoint::new(Fault::Fail)
            .on(&[Action::Create])
            .keys("/wal/")
            .after(1)
            .times(2),
    );
    let create = |name: &str| store.create(&key(name), text("x")).is_ok();
    let met = [
        create("main/wal/1"),
        create("main/other"),
        create("main/wal/2"),
        create("main/wal/2"),
        create("main/wal/2"),
    ];
    assert_eq!(met, [true, true, false, false, true]);
    let log: Vec<_> = store
        .operations()
        .into_iter()
        .map(|operation| (operation.key, operation.repetition))
        .collect();
    let logged = |name: &str, repetition| (name.to_owned(), repetition);
    assert_eq!(
        log,
        [
            logged("main/wal/1", 0),
            logged("main/other", 0),
            logged("main/wal/2", 0),
            logged("main/wal/2", 1),
            logged("main/wal/2", 2),
        ]
    );
}

#[test]
fn writes_fail_tear_and_get_lost() {
    let store = MemoryStore::bucket();
    let once = |fault| {
        store.heal();
        store.inject(FaultPoint::new(fault).times(1));
    };
    once(Fault::FailAfterEffect);
    assert!(store.create(&key("a"), text("whole")).is_err());
    assert_eq!(get(&store, "a"), Some(text("whole")));
    once(Fault::Tear);
    assert!(store.create(&key("b"), text("whole!")).is_ok());
    assert_eq!(get(&store, "b"), Some(text("who")));
    once(Fault::Forget);
    assert!(store.create(&key("c"), text("whole")).is_ok());
    assert_eq!(get(&store, "c"), None);
    once(Fault::Forget);
    assert!(store.delete(&key("a")).is_ok());
    assert_eq!(get(&store, "a"), Some(text("whole")));

    let mut upload = store.upload(&key("d")).expect("begun");
    once(Fault::Fail);
    assert!(upload.write(b"lost").is_err());
    upload.write(b"whole").expect("written");
    once(Fault::Fail);
    assert!(upload.finish().is_err());
    assert_eq!(get(&store, "d"), None);
}

#[test]
fn conditions_are_ignored_and_reads_lie() {
    let store = MemoryStore::bucket();
    store.create(&key("a"), text("one")).expect("created");
    let (_, version) = store.get_versioned(&key("a")).expect("read").expect("one");
    store.inject(FaultPoint::new(Fault::IgnoreCondition));
    store.create(&key("a"), text("two")).expect("overwritten");
    store
        .replace(&key("a"), text("three"), &version)
        .expect("overwritten");
    assert_eq!(get(&store, "a"), Some(text("three")));

    store.heal();
    store.inject(FaultPoint::new(Fault::FlipBit).on(&[Action::Get]));
    assert_eq!(store.get(&key("a")).expect("read"), text("thsee"));
    store.inject(FaultPoint::new(Fault::Size(7)).on(&[Action::Size, Action::Listed]));
    assert_eq!(store.size(&key("a")).expect("told"), 7);
    assert_eq!(list_all(&store, "").expect("listed")[0].size_bytes, 7);
    store.heal();
    store.inject(FaultPoint::new(Fault::NotFound).keys("a"));
    assert!(matches!(
        store.get(&key("a")),
        Err(StoreError::NotFound { .. })
    ));
    assert_eq!(list_all(&store, "").expect("listed"), []);
    store.heal();
    assert_eq!(list_all(&store, "").expect("listed").len(), 1);
}

#[test]
fn what_stalls_goes_on_when_it_is_released() {
    let store = MemoryStore::bucket();
    store.inject(FaultPoint::new(Fault::Stall).on(&[Action::Create]).times(1));
    assert!(!store.wait_for_stall(Duration::ZERO));
    thread::scope(|scope| {
        let stalling = scope.spawn(|| store.create(&key("a"), text("x")));
        assert!(store.wait_for_stall(PATIENCE));
        assert_eq!(get(&store, "a"), None);
        store
            .create(&key("b"), text("y"))
            .expect("created meanwhile");
        store.release();
        stalling.join().expect("no panic").expect("created");
    });
    assert_eq!(get(&store, "a"), Some(text("x")));
}

#[test]
fn the_same_seed_gives_the_same_faults() {
    const FAULTS: &[Fault] = &[Fault::Fail, Fault::Tear, Fault::Forget];
    let outcome = |seed| {
        let store = MemoryStore::bucket();
        store.inject_random(seed, 30, FAULTS);
        let created: Vec<bool> = (0..200)
            .map(|n| {
                let name = key(&format!("many/{n}"));
                store.create(&name, text("content")).is_ok()
            })
            .collect();
        (created, store.objects())
    };
    let (created, objects) = outcome(1);
    assert_eq!((created.clone(), objects.clone()), outcome(1));
    assert_ne!((created.clone(), objects.clone()), outcome(2));
    let failed = created.iter().filter(|created| !**created).count();
    let lost = created.len() - failed - objects.len();
    let torn = objects.values().filter(|kept| kept.len() == 3).count();
    assert!(failed > 5 && lost > 5 && torn > 5, "{failed} {lost} {torn}");
}
