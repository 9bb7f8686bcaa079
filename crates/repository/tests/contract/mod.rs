//! What every store promises, checked on any store: one function over the interface.

use std::ops::ControlFlow;
use std::thread;

use bytes::Bytes;
use leeward_repository::store::{Key, SMALL_OBJECT_BYTES_LIMIT, Store, StoreError, list_all};

pub fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

/// Bytes that do not repeat at any part's size, the same for the same seed.
pub fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut content = Vec::with_capacity(length + 8);
    while content.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(length);
    content
}

fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    list_all(store, prefix)
        .expect("listed")
        .into_iter()
        .map(|object| object.key.to_string())
        .collect()
}

/// Everything. The store must be empty.
pub fn check(store: &dyn Store) {
    absent_objects(store);
    small_objects(store);
    replacing(store);
    overwriting(store);
    large_objects(store);
    uploads(store);
    ranges_in_parallel(store);
    listing(store);
    deleting(store);
}

fn absent_objects(store: &dyn Store) {
    let absent = key("nowhere/nothing");
    assert!(matches!(
        store.get(&absent),
        Err(StoreError::NotFound { .. })
    ));
    assert!(matches!(
        store.get_range(&absent, 0..1),
        Err(StoreError::NotFound { .. })
    ));
    assert!(matches!(
        store.get_start(&absent, 10),
        Err(StoreError::NotFound { .. })
    ));
    assert!(matches!(
        store.size(&absent),
        Err(StoreError::NotFound { .. })
    ));
    assert!(matches!(store.get_versioned(&absent), Ok(None)));
    assert_eq!(keys(store, ""), Vec::<String>::new());
    assert_eq!(keys(store, "nowhere"), Vec::<String>::new());
    assert_eq!(
        store.list_folders("").expect("listed"),
        Vec::<String>::new()
    );
    store
        .delete(&absent)
        .expect("deleting what is not there is no error");
}

fn small_objects(store: &dyn Store) {
    let place = key("small/a/object.json");
    let content = Bytes::from_static(b"0123456789");
    store.create(&place, content.clone()).expect("created");
    assert_eq!(store.get(&place).expect("read"), content);
    assert_eq!(store.size(&place).expect("known"), 10);
    assert_eq!(&store.get_range(&place, 3..7).expect("read")[..], b"3456");
    assert_eq!(
        &store.get_range(&place, 0..10).expect("read")[..],
        b"0123456789"
    );
    assert_eq!(store.get_range(&place, 4..4).expect("read").len(), 0);

    for (limit, expected) in [
        (1, "0"),
        (9, "012345678"),
        (10, "0123456789"),
        (11, "0123456789"),
        (1 << 40, "0123456789"),
    ] {
        assert_eq!(
            store.get_start(&place, limit).expect("read"),
            (Bytes::from_static(expected.as_bytes()), 10),
            "limit {limit}"
        );
    }

    for range in [8..11, 0..u64::MAX / 4, 10..11, 50..60] {
        match store.get_range(&place, range.clone()) {
            Err(StoreError::Truncated {
                wanted_end,
                size_bytes: 10,
                ..
            }) => assert_eq!(wanted_end, range.end),
            other => panic!("{range:?}: {other:?}"),
        }
    }

    match store.create(&place, Bytes::from_static(b"other")) {
        Err(StoreError::AlreadyExists { key, .. }) => assert_eq!(key, place),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        store.get(&place).expect("read"),
        content,
        "the first one stays"
    );

    let empty = key("small/empty");
    store.create(&empty, Bytes::new()).expect("created");
    assert_eq!(store.get(&empty).expect("read").len(), 0);
    assert_eq!(store.size(&empty).expect("known"), 0);
    assert_eq!(
        store.get_start(&empty, 5).expect("read"),
        (Bytes::new(), 0),
        "an empty object has a beginning too"
    );
}

fn replacing(store: &dyn Store) {
    let place = key("replaced/lease.json");
    store
        .create(&place, Bytes::from_static(b"one"))
        .expect("created");
    let (content, first) = store.get_versioned(&place).expect("read").expect("there");
    assert_eq!(&content[..], b"one");

    let second = store
        .replace(&place, Bytes::from_static(b"two"), &first)
        .expect("replaced");
    assert_ne!(first, second);
    assert!(matches!(
        store.replace(&place, Bytes::from_static(b"three"), &first),
        Err(StoreError::Conflict { .. })
    ));
    let (content, version) = store.get_versioned(&place).expect("read").expect("there");
    assert_eq!(
        (&content[..], &version),
        (&b"two"[..], &second),
        "the version a replacement returns is the object's"
    );
    store
        .replace(&place, Bytes::from_static(b"three"), &second)
        .expect("replaced again");

    let absent = key("replaced/nothing");
    assert!(matches!(
        store.replace(&absent, Bytes::from_static(b"x"), &second),
        Err(StoreError::Conflict { .. })
    ));
    match store.get(&absent) {
        Err(StoreError::NotFound { .. }) => {}
        other => panic!("{other:?}"),
    }
}

fn overwriting(store: &dyn Store) {
    let place = key("replaced/probe.json");
    store
        .overwrite(&place, Bytes::from_static(b"one"))
        .expect("written where nothing was");
    let version = store
        .overwrite(&place, Bytes::from_static(b"two"))
        .expect("written over what was there");
    let (content, found) = store.get_versioned(&place).expect("read").expect("there");
    assert_eq!((&content[..], found), (&b"two"[..], version));
}

fn large_objects(store: &dyn Store) {
    let place = key("replaced/large");
    let size_bytes = SMALL_OBJECT_BYTES_LIMIT + 1;
    let content = bytes(size_bytes as usize, 3);
    store
        .create(&place, content.clone().into())
        .expect("created");
    for refused in [
        store.get(&place).map(drop),
        store.get_versioned(&place).map(drop),
    ] {
        match refused {
            Err(StoreError::TooLarge {
                size_bytes: found,
                limit_bytes: SMALL_OBJECT_BYTES_LIMIT,
                ..
            }) => assert_eq!(found, size_bytes),
            other => panic!("{other:?}"),
        }
    }
    store.delete(&place).expect("deleted");
    let limit = SMALL_OBJECT_BYTES_LIMIT as usize;
    let content = Bytes::from(content).slice(..limit);
    store.create(&place, content.clone()).expect("created");
    assert!(store.get(&place).expect("just small enough") == content);
}

fn uploads(store: &dyn Store) {
    for (name, length) in [
        ("empty", 0),
        ("small", 70_000),
        ("exact", 16 << 20),
        ("large", (21 << 20) + 12_345),
    ] {
        let place = key(&format!("uploaded/{name}.pack"));
        let content = bytes(length, 7);
        let mut upload = store.upload(&place).expect("begun");
        for piece in content.chunks(777_777) {
            upload.write(piece).expect("written");
        }
        assert!(
            matches!(store.size(&place), Err(StoreError::NotFound { .. })),
            "invisible until it is finished"
        );
        assert_eq!(upload.finish().expect("finished"), length as u64);
        assert_eq!(store.size(&place).expect("known"), length as u64);
        let whole = store.get_range(&place, 0..length as u64).expect("read");
        assert!(whole[..] == content[..], "{name} came back differently");
        let (start, size) = store.get_start(&place, 10 << 20).expect("read");
        assert_eq!(size, length as u64);
        assert!(start[..] == content[..length.min(10 << 20)], "{name}");

        let mut again = store.upload(&place).expect("begun");
        again.write(&bytes(length + 1, 8)).expect("written");
        assert!(
            matches!(again.finish(), Err(StoreError::AlreadyExists { .. })),
            "{name} is never overwritten"
        );
        assert_eq!(store.size(&place).expect("known"), length as u64);
    }
    let aborted = key("uploaded/aborted.pack");
    let mut upload = store.upload(&aborted).expect("begun");
    upload.write(&bytes(20 << 20, 9)).expect("written");
    drop(upload);
    assert!(matches!(
        store.size(&aborted),
        Err(StoreError::NotFound { .. })
    ));
    assert_eq!(keys(store, "uploaded").len(), 4);
}

fn ranges_in_parallel(store: &dyn Store) {
    let place = key("uploaded/large.pack");
    let content = bytes((21 << 20) + 12_345, 7);
    thread::scope(|scope| {
        for reader in 0..12_u64 {
            let (place, content) = (&place, &content);
            scope.spawn(move || {
                for round in 0..8 {
                    let begin = (reader * 1_700_000 + round * 33_333) as usize;
                    let end = (begin + 500_000).min(content.len());
                    let read = store
                        .get_range(place, begin as u64..end as u64)
                        .expect("read");
                    assert!(read[..] == content[begin..end], "{begin}..{end}");
                }
            });
        }
    });
}

fn listing(store: &dyn Store) {
    // More than one page of any object store.
    let many: Vec<String> = (0..1_050)
        .map(|n| format!("many/{}/{n:04}", n % 3))
        .collect();
    thread::scope(|scope| {
        for share in many.chunks(many.len().div_ceil(8)) {
            scope.spawn(move || {
                for name in share {
                    store
                        .create(&key(name), Bytes::from(name.clone()))
                        .expect("created");
                }
            });
        }
    });
    store
        .create(&key("many-more/x"), Bytes::from_static(b"x"))
        .expect("created");
    let mut expected = many.clone();
    expected.sort();
    assert_eq!(keys(store, "many"), expected);
    assert_eq!(keys(store, "many/"), expected);
    assert_eq!(keys(store, "many/1").len(), 350);
    assert_eq!(
        keys(store, "man"),
        Vec::<String>::new(),
        "folders are whole parts of keys"
    );
    assert_eq!(store.list_folders("many").expect("listed"), ["0", "1", "2"]);
    assert_eq!(
        store.list_folders("many/1").expect("listed"),
        Vec::<String>::new()
    );
    assert_eq!(
        store.list_folders("").expect("listed"),
        ["many", "many-more", "replaced", "small", "uploaded"]
    );
    assert!(store.list_folders("../x").is_err());

    let mut calls = 0;
    store
        .list("many", &mut |object| {
            calls += 1;
            // The callback may use the store.
            assert_eq!(store.size(&object.key).expect("known"), object.size_bytes);
            if calls == 3 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .expect("listed");
    assert_eq!(calls, 3, "a listing ends when it is told to");
}

fn deleting(store: &dyn Store) {
    let place = key("small/a/object.json");
    store.delete(&place).expect("deleted");
    store.delete(&place).expect("deleted again");
    assert!(matches!(
        store.get(&place),
        Err(StoreError::NotFound { .. })
    ));
    assert_eq!(
        store.list_folders("small").expect("listed"),
        Vec::<String>::new(),
        "an empty folder does not exist"
    );
    store
        .create(&place, Bytes::from_static(b"back"))
        .expect("the name is free again");
    assert_eq!(&store.get(&place).expect("read")[..], b"back");
}
