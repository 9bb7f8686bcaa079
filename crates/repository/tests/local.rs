//! The local store: the contract, and what only a directory can get wrong.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use bytes::Bytes;
use leeward_repository::store::local::LocalStore;
use leeward_repository::store::{Store, StoreError, list_all};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

mod contract;
use contract::{bytes, key};

/// Set in children that play a part.
const PART: &str = "LEEWARD_TEST_PART";
const PLACE: &str = "LEEWARD_TEST_PLACE";

fn store() -> (tempfile::TempDir, LocalStore) {
    let folder = tempfile::tempdir().expect("a directory");
    // A root that does not exist yet, below another that does not.
    let store = LocalStore::new(folder.path().join("some/where"));
    (folder, store)
}

/// Every file below a directory, hidden ones included.
fn files(place: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(place).expect("read") {
        let entry = entry.expect("read");
        if entry.file_type().expect("known").is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

#[test]
fn a_directory_keeps_the_contract() {
    let (folder, store) = store();
    contract::check(&store);
    let hidden: Vec<_> = files(folder.path())
        .into_iter()
        .filter(|name| name.starts_with(".tmp"))
        .collect();
    assert_eq!(hidden, Vec::<String>::new(), "no temporary file stays");
}

#[test]
fn one_of_many_creators_wins() {
    let (_folder, store) = store();
    for round in 0..40 {
        let place = key(&format!("race/{round}"));
        let start = Barrier::new(16);
        let winners = AtomicU32::new(0);
        thread::scope(|scope| {
            for contender in 0..16 {
                let (store, place, start, winners) = (&store, &place, &start, &winners);
                scope.spawn(move || {
                    start.wait();
                    match store.create(place, Bytes::from(format!("{contender}"))) {
                        Ok(()) => {
                            winners.fetch_add(1, Ordering::Relaxed);
                            assert_eq!(
                                store.get(place).expect("read"),
                                format!("{contender}").as_bytes()
                            );
                        }
                        Err(StoreError::AlreadyExists { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                });
            }
        });
        assert_eq!(winners.into_inner(), 1, "round {round}");
    }
}

#[test]
fn no_replacement_is_lost() {
    let (folder, store) = store();
    let place = key("counter");
    store
        .create(&place, Bytes::from_static(b"0"))
        .expect("created");
    thread::scope(|scope| {
        for _ in 0..8 {
            // A store of its own each, as processes would have.
            let store = LocalStore::new(folder.path().join("some/where"));
            let place = &place;
            scope.spawn(move || {
                let mut done = 0;
                while done < 10 {
                    let (content, version) =
                        store.get_versioned(place).expect("read").expect("there");
                    let count: u32 = std::str::from_utf8(&content)
                        .expect("text")
                        .parse()
                        .expect("a number");
                    match store.replace(place, Bytes::from((count + 1).to_string()), &version) {
                        Ok(_) => done += 1,
                        Err(StoreError::Conflict { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    assert_eq!(&store.get(&place).expect("read")[..], b"80");
}

#[test]
fn creators_and_deleters_do_not_trip_over_a_folder() {
    let (_folder, store) = store();
    thread::scope(|scope| {
        for worker in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..50 {
                    let place = key(&format!("deep/er/{worker}-{round}"));
                    store
                        .create(&place, Bytes::from_static(b"x"))
                        .expect("created");
                    store.delete(&place).expect("deleted");
                }
            });
        }
    });
    assert_eq!(
        store.list_folders("").expect("listed"),
        Vec::<String>::new()
    );
}

#[test]
fn a_killed_writer_leaves_nothing_for_long() {
    if std::env::var(PART).as_deref() == Ok("writer") {
        let store = LocalStore::new(std::env::var_os(PLACE).expect("set").into());
        let mut upload = store
            .upload(&key("main/backups/x/packs/1.pack"))
            .expect("begun");
        upload.write(&bytes(40 << 20, 1)).expect("written");
        std::process::abort();
    }
    let folder = tempfile::tempdir().expect("a directory");
    let died = Command::new(std::env::current_exe().expect("known"))
        .args(["--exact", "a_killed_writer_leaves_nothing_for_long"])
        .envs([
            (PART, "writer".into()),
            (PLACE, folder.path().as_os_str().to_owned()),
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("run");
    assert!(!died.success());
    assert!(
        files(folder.path())
            .iter()
            .any(|name| name.starts_with(".tmp")),
        "it died in the middle"
    );

    let store = LocalStore::new(folder.path().to_owned());
    assert_eq!(list_all(&store, "").expect("listed"), []);
    assert_eq!(
        store.list_folders("").expect("listed"),
        Vec::<String>::new()
    );

    // A writer that lives keeps its file.
    let mut alive = store
        .upload(&key("main/backups/y/packs/1.pack"))
        .expect("begun");
    alive.write(b"alive").expect("written");
    assert_eq!(store.remove_leftovers("main").expect("removed"), 1);
    assert_eq!(alive.finish().expect("finished"), 5);
    assert_eq!(files(folder.path()), ["1.pack"]);
    assert!(
        !folder.path().join("main/backups/x").exists(),
        "its empty folders went along"
    );
}

#[test]
fn a_full_disk_is_named() {
    if std::env::var(PART).as_deref() == Ok("full") {
        let place = std::path::PathBuf::from(std::env::var_os(PLACE).expect("set"));
        let store = LocalStore::new(place.clone());
        let mut upload = store.upload(&key("a/large")).expect("begun");
        let error = upload
            .write(&bytes(3 << 20, 1))
            .expect_err("1 MiB does not hold 3");
        let StoreError::DiskFull {
            needed_bytes,
            free_bytes,
            path,
            ..
        } = &error
        else {
            panic!("{error:?}")
        };
        assert_eq!((*needed_bytes, *free_bytes), (3 << 20, Some(0)));
        assert!(path.starts_with(&place) && error.hint().is_some());
        drop(upload);
        assert_eq!(
            files(&place),
            Vec::<String>::new(),
            "what was written is gone"
        );
        store
            .create(&key("a/small"), Bytes::from_static(b"fits"))
            .expect("there is room again");
        return;
    }
    let folder = tempfile::tempdir().expect("a directory");
    // A file system of one MiB in a mount namespace of its own.
    let script = "mount -t tmpfs -o size=1m none \"$0\" && exec \"$@\"";
    let full = Command::new("unshare")
        .args(["-rm", "sh", "-c", script])
        .arg(folder.path())
        .arg(std::env::current_exe().expect("known"))
        .args(["--exact", "a_full_disk_is_named", "--nocapture"])
        .envs([
            (PART, "full".into()),
            (PLACE, folder.path().as_os_str().to_owned()),
        ])
        .output()
        .expect("unshare is there");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&full.stdout),
        String::from_utf8_lossy(&full.stderr)
    );
    assert!(full.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn strangers_files_are_left_alone() {
    let (folder, store) = store();
    store
        .create(&key("a/object"), Bytes::from_static(b"x"))
        .expect("created");
    let root = folder.path().join("some/where");
    std::fs::write(root.join("a/.hidden"), "").expect("written");
    std::fs::write(root.join("a/with space"), "").expect("written");
    assert_eq!(list_all(&store, "").expect("listed").len(), 1);
    assert!(
        store
            .get(&key("a"))
            .expect_err("a folder is no object")
            .is_not_found()
    );
    store.delete(&key("a/object")).expect("deleted");
    assert!(root.join("a/with space").exists() && root.join("a/.hidden").exists());
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&root).expect("known").permissions(),
    );
    assert_eq!(mode & 0o777, 0o700, "a repository is for its owner only");
}

#[test]
fn pipes_and_devices_are_no_objects() {
    let (folder, store) = store();
    let root = folder.path().join("some/where");
    std::fs::create_dir_all(&root).expect("a directory");
    let status = Command::new("mkfifo")
        .arg(root.join("pipe"))
        .status()
        .expect("run");
    assert!(status.success());
    // A read of it would never end.
    let place = key("pipe");
    let absent = |result: Result<(), StoreError>| {
        assert!(
            matches!(result, Err(StoreError::NotFound { .. })),
            "{result:?}"
        );
    };
    absent(store.get(&place).map(drop));
    absent(store.get_range(&place, 0..1).map(drop));
    absent(store.get_start(&place, 1).map(drop));
    absent(store.size(&place).map(drop));
    assert_eq!(list_all(&store, "").expect("listed"), []);
}

/// Whoever can write to a repository leads nobody out of it: not into a server's data directory, and to no file.
#[test]
fn links_are_not_followed() {
    let (folder, store) = store();
    let root = folder.path().join("some/where");
    let outside = folder.path().join("victim");
    std::fs::create_dir_all(outside.join("pg_wal/archive_status")).expect("directories");
    std::fs::create_dir_all(&root).expect("a directory");
    std::fs::write(outside.join("cluster.json"), "theirs").expect("a file");
    let link = |name: &str| {
        std::os::unix::fs::symlink(&outside, root.join(name)).expect("a link");
    };
    link("main");
    std::fs::create_dir(root.join("other")).expect("a directory");
    link("other/wal");
    link("file");
    store
        .create(&key("real"), bytes::Bytes::from_static(b"theirs"))
        .expect("stored");
    for folder in ["main", "other/wal"] {
        let place = key(&format!("{folder}/cluster.json"));
        let (_, version) = store
            .get_versioned(&key("real"))
            .expect("read")
            .expect("there");
        let content = || bytes::Bytes::from_static(b"ours");
        let outcomes = [
            store.get(&place).map(drop),
            store.size(&place).map(drop),
            store.create(&place, content()),
            store.create(&key(&format!("{folder}/new/object")), content()),
            store.overwrite(&place, content()).map(drop),
            store.replace(&place, content(), &version).map(drop),
            store.upload(&place).map(drop),
            store.sync(&place),
            store.delete(&place),
            list_all(&store, folder).map(drop),
            store.list_folders(folder).map(drop),
            store.remove_leftovers(folder).map(drop),
        ];
        for (at, outcome) in outcomes.into_iter().enumerate() {
            let error = outcome.expect_err("refused");
            let text = format!("{error}: {:?}", std::error::Error::source(&error));
            assert!(text.contains("it is a link"), "{folder}, {at}: {text}");
        }
    }
    store.get(&key("file")).expect_err("refused");
    // Nothing outside is touched, and the rest of the repository can be used.
    let left = std::fs::read_to_string(outside.join("cluster.json"));
    assert_eq!(left.expect("read"), "theirs");
    assert!(outside.join("pg_wal/archive_status").exists());
    assert_eq!(std::fs::read_dir(&outside).expect("read").count(), 2);
    let listed = list_all(&store, "").expect("listed");
    assert_eq!(listed.len(), 1, "{listed:?}");
    store.remove_leftovers("").expect("cleared");
    assert!(outside.join("pg_wal/archive_status").exists());
}

/// The lock neither waits for a reader nor is made elsewhere.
#[test]
fn a_lock_that_is_a_pipe_or_a_link_is_refused() {
    let (folder, store) = store();
    let root = folder.path().join("some/where");
    std::fs::create_dir_all(&root).expect("a directory");
    let lock = root.join(".lock");
    let status = Command::new("mkfifo").arg(&lock).status().expect("run");
    assert!(status.success());
    store.delete(&key("a")).expect_err("refused");
    std::fs::remove_file(&lock).expect("removed");
    let elsewhere = folder.path().join("elsewhere");
    std::os::unix::fs::symlink(&elsewhere, &lock).expect("a link");
    store.delete(&key("a")).expect_err("refused");
    assert!(!elsewhere.exists());
}

/// Lets the folders of the store be opened, and so be synced, or only be written to.
fn let_open(folder: &Path, open: bool) {
    let mode = if open { 0o700 } else { 0o300 };
    std::fs::set_permissions(folder, Permissions::from_mode(mode)).expect("the mode is set");
}

#[test]
fn what_is_there_is_told_only_once_its_folder_is_synced() {
    // Root could open the folder all the same. Capabilities are the thread's, and nothing else runs on this one.
    let nothing = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, nothing).expect("given up");
    let (folder, store) = store();
    let wal = folder.path().join("some/where/wal");
    let (small, large) = (key("wal/small"), key("wal/large"));
    let create = || store.create(&small, Bytes::from_static(b"content"));
    let upload = || {
        let mut upload = store.upload(&large)?;
        upload.write(b"content")?;
        upload.finish().map(drop)
    };
    store
        .create(&key("wal/other"), Bytes::new())
        .expect("created");

    let_open(&wal, false);
    let unsynced = |result: Result<(), StoreError>| {
        let text = result.expect_err("the folder cannot be synced").to_string();
        assert!(text.starts_with("could not sync"), "{text}");
    };
    for _ in 0..2 {
        unsynced(create());
        unsynced(upload());
        unsynced(store.sync(&small));
    }
    let_open(&wal, true);
    store.sync(&small).expect("synced");
    for result in [create(), upload()] {
        assert!(
            matches!(result, Err(StoreError::AlreadyExists { .. })),
            "{result:?}"
        );
    }

    let_open(&wal, false);
    for _ in 0..2 {
        unsynced(store.delete(&small));
    }
    let_open(&wal, true);
    store.delete(&small).expect("deleted");
    store.delete(&key("nowhere/at/all")).expect("no error");
}
