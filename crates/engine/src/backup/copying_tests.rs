//! A directory is copied into a store in memory, and each stage fails in turn.

use std::panic::catch_unwind;
use std::sync::mpsc;

use leeward_fixtures::{Server, heap_pages, noise};
use leeward_pgformat::{Lsn, TimelineId, WalSegmentSize};
use leeward_repository::catalog::Repository;
use leeward_repository::layout;
use leeward_repository::store::memory::{Action, Fault, FaultPoint, MemoryStore};

use super::super::required::Required;
use super::*;

/// Longer than any of this takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The directory of a standby, and where it is copied to.
struct World {
    folder: tempfile::TempDir,
    memory: MemoryStore,
}

impl World {
    fn new() -> World {
        let world = World {
            folder: tempfile::tempdir().expect("a directory"),
            memory: MemoryStore::bucket(),
        };
        let size = WalSegmentSize::new(1 << 20).expect("a size");
        let server = Server::create(&world.folder.path().join("data"), size);
        for relation in 0..6 {
            let path = format!("base/5/{}", 16_384 + relation);
            let blocks: Vec<u32> = (0..200).collect();
            server.write(&path, &heap_pages(&blocks));
        }
        for file in 0..50 {
            server.write(&format!("pg_xact/{file:04X}"), &noise(70_000, file));
        }
        world
    }

    /// Copies everything. `position` is what the server answers when it is asked where it is.
    fn copy(
        &self,
        mut position: impl FnMut() -> Result<()>,
        observe: Observer<'_>,
    ) -> Result<Pages> {
        let store: Arc<dyn Store> = Arc::new(self.memory.clone());
        let cluster = Repository::open_or_create(Arc::clone(&store))?.cluster("main")?;
        let directory =
            DataDirectory::open(&self.folder.path().join("data")).expect("a data directory");
        let id = BackupId::new(jiff::Timestamp::now());
        let copying = Copying {
            store: store.as_ref(),
            cluster: cluster.name(),
            backup: &id,
            directory: &directory,
            outside: &OutsideFiles::default(),
            role: Role::Standby,
            rules: PageRules {
                checksums: false,
                start_lsn: Lsn(u64::MAX),
            },
            compression: FrameCompression::default(),
            threads: Some(2),
            observe,
        };
        let key = layout::manifest("main", &id)?;
        let mut manifest = ManifestWriter::create(store.as_ref(), &key)?;
        let required = Required::nothing();
        copying.run(
            &mut || {
                position()?;
                Ok(Position {
                    replay_lsn: Lsn(1),
                    is_paused: false,
                    receive_lsn: None,
                    replay_lag_bytes: 0,
                    replay_lag: None,
                    slot_restart_lsn: None,
                    wal_at_risk: false,
                    server_time_epoch_ms: 0,
                    timeline: TimelineId(1),
                })
            },
            &mut manifest,
            &mut Stored::new(&required),
        )
    }
}

/// Returns the result of a copy, or its panic. A copy that does not end fails the test.
fn in_time<T: Send + 'static>(
    what: &str,
    copy: impl FnOnce() -> T + Send + 'static,
) -> std::thread::Result<T> {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let outcome = catch_unwind(std::panic::AssertUnwindSafe(copy));
        let _ = done.send(outcome);
    });
    ended
        .recv_timeout(PATIENCE)
        .unwrap_or_else(|_| panic!("{what}: it hangs"))
}

#[test]
fn every_file_is_collected() {
    let world = World::new();
    let pages = world.copy(|| Ok(()), &|_| {}).expect("copied");
    assert_eq!(pages.collected.files, 6 + 50 + 1);
    assert_eq!(pages.collected.packs.len(), 1);
    assert_eq!(pages.after.replay_lsn, Lsn(1));
}

#[test]
fn a_store_that_fails_or_panics_ends_the_copy() {
    let world = Arc::new(World::new());
    for action in [Action::Upload, Action::Write, Action::Finish] {
        for skip in [0, 1, 5] {
            for fault in [Fault::Fail, Fault::Panic] {
                world.memory.heal();
                let point = FaultPoint::new(fault).on(&[action]).keys(".pack");
                world.memory.inject(point.after(skip));
                let running = Arc::clone(&world);
                let what = format!("{fault:?} at {action:?} number {skip}");
                let outcome = in_time(&what, move || running.copy(|| Ok(()), &|_| {}).map(drop));
                match outcome {
                    Err(_) => assert_eq!(fault, Fault::Panic, "{what}"),
                    // There is one pack.
                    Ok(Ok(())) => assert!(skip > 0 && action != Action::Write, "{what}"),
                    Ok(Err(error)) => {
                        assert!(
                            error.to_string().contains("pack")
                                || error.to_string().contains("frame"),
                            "{what}: {error}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_server_that_goes_away_ends_the_copy_and_is_told() {
    let world = Arc::new(World::new());
    world.memory.inject(
        FaultPoint::new(Fault::Stall)
            .on(&[Action::Write])
            .keys(".pack")
            .after(3),
    );
    let running = Arc::clone(&world);
    let outcome = in_time("the server is gone", move || {
        let gone = || {
            // The store is in the middle of something, and ends it.
            running.memory.heal();
            Err(Error::failed("the server is gone"))
        };
        running.copy(gone, &|_| {}).map(drop)
    });
    let error = outcome.expect("no panic").expect_err("a failure");
    assert_eq!(error.to_string(), "the server is gone");

    let running = Arc::clone(&world);
    let outcome = in_time("a panic", move || {
        let panics = || -> Result<()> { panic!("no answer was understood") };
        running.copy(panics, &|_| {}).map(drop)
    });
    assert!(outcome.is_err());
}

#[test]
fn the_servers_end_explains_other_failures() {
    let world = World::new();
    world.memory.inject(
        FaultPoint::new(Fault::Fail)
            .on(&[Action::Write])
            .keys(".pack"),
    );
    let gone = || Err(Error::failed("the server is gone"));
    let error = world.copy(gone, &|_| {}).err().expect("a failure");
    assert_eq!(error.to_string(), "the server is gone");
}

#[test]
fn a_panic_in_any_stage_ends_the_copy() {
    let world = Arc::new(World::new());
    for at in [0, 1, 2, 5, 10, 20] {
        let running = Arc::clone(&world);
        let outcome = in_time(&format!("a panic at event {at}"), move || {
            let events = AtomicU64::new(0);
            let observe = |_: Event<'_>| {
                let number = events.fetch_add(1, Ordering::Relaxed);
                assert_ne!(number, at, "the observer panics");
            };
            running.copy(|| Ok(()), &observe).map(drop)
        });
        assert!(outcome.is_err(), "a panic at event {at}");
    }
}

#[test]
fn a_panic_of_the_planner_ends_the_copy() {
    let world = Arc::new(World::new());
    let data = world.folder.path().join("data");
    std::os::unix::fs::symlink("/tmp", data.join("elsewhere")).expect("a link");
    let running = Arc::clone(&world);
    let outcome = in_time("a panic of the planner", move || {
        // The link is met by the planner, which says so.
        let observe = |event: Event<'_>| assert!(!matches!(event, Event::Notice(_)), "told");
        running.copy(|| Ok(()), &observe).map(drop)
    });
    assert!(outcome.is_err());
}
