//! Each operation of the store fails in turn, and each stage of a command panics in turn. Commands end, say what failed,
//! leave nothing behind that passes for a success, and succeed when they are repeated.

use std::collections::BTreeSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use leeward_engine::error::{Error, Result};
use leeward_engine::event::Event;
use leeward_engine::export::{ExportTo, export};
use leeward_engine::wal::list::list;
use leeward_engine::wal::{GetOutcome, PrefetchOptions, prefetch};
use leeward_engine::{catalog, restore};
use leeward_repository::store::memory::{Fault, FaultPoint, Operation};
use leeward_repository::wal_archive::WalArchive;

use crate::restore_options::restore_options;
use crate::world::{CLUSTER, World, files, wal};

/// Longer than any of this takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The outcome of a command under a fault: a result, or a panic.
type Outcome<T> = std::thread::Result<Result<T>>;

/// Runs a command; one that does not end fails the test.
fn in_time<T: Send + 'static>(
    what: &str,
    command: impl FnOnce() -> Result<T> + Send + 'static,
) -> Outcome<T> {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(command));
        let _ = done.send(outcome);
    });
    ended
        .recv_timeout(PATIENCE)
        .unwrap_or_else(|_| panic!("{what}: it hangs"))
}

/// The faults that hit each of `operations` once.
fn fault_points(operations: &[Operation], faults: &[Fault]) -> Vec<(String, Fault, FaultPoint)> {
    let mut points = Vec::new();
    for (index, operation) in operations.iter().enumerate() {
        let same = |other: &&Operation| {
            other.action == operation.action && other.key.contains(&operation.key)
        };
        let before = operations[..index].iter().filter(same).count();
        for fault in faults {
            let name = format!(
                "{fault:?} at {:?} {:?} number {before}",
                operation.action, operation.key
            );
            let point = FaultPoint::new(*fault)
                .on(&[operation.action])
                .keys(&operation.key)
                .after(before as u64)
                .times(1);
            points.push((name, *fault, point));
        }
    }
    points
}

/// Runs `command` once for each operation and fault; `check` sees what came of it. Each run has a number.
fn sweep<T: Send + 'static>(
    faults: &[Fault],
    command: impl Fn(&World, u64) -> Result<T> + Clone + Send + 'static,
    check: impl Fn(&World, u64, &str, Outcome<T>),
) {
    let world = Arc::new(World::new());
    command(&world, 0).expect("without faults");
    let points = fault_points(&world.memory.operations(), faults);
    assert!(points.len() >= faults.len());
    for (number, (name, _, point)) in (1..).zip(points) {
        world.memory.heal();
        world.memory.inject(point);
        let (running, command) = (Arc::clone(&world), command.clone());
        let outcome = in_time(&name, move || command(&running, number));
        world.memory.heal();
        check(&world, number, &name, outcome);
    }
}

const ALL: &[Fault] = &[
    Fault::Fail,
    Fault::NotFound,
    Fault::FlipBit,
    Fault::Size(u64::MAX / 2),
    Fault::Size(3),
    Fault::Panic,
];

#[test]
fn a_restore_ends_and_is_repeated() {
    let name = |number: u64| format!("restored-{number}");
    sweep(
        ALL,
        move |world, number| world.restore(&name(number)).map(drop),
        |world, number, fault, outcome| {
            let place = world.path(&format!("restored-{number}"));
            let startable = place.join("global/pg_control").exists();
            assert_eq!(startable, matches!(outcome, Ok(Ok(()))), "{fault}");
            if !startable {
                world
                    .restore(&format!("restored-{number}"))
                    .unwrap_or_else(|e| panic!("{fault}, repeated: {e}"));
            }
            let found = files(&place);
            for (path, bytes) in &world.backup.files {
                let same = found.get(path) == Some(bytes) || path == "postgresql.auto.conf";
                assert!(same, "{fault}: \"{path}\"");
            }
            std::fs::remove_dir_all(place).expect("removed");
        },
    );
}

#[test]
fn an_export_ends_and_leaves_no_archive() {
    sweep(
        ALL,
        |world, number| world.export(&format!("exported-{number}")).map(drop),
        |world, number, fault, outcome| {
            let place = world.path(&format!("exported-{number}"));
            let whole = |archive: &str| place.join(archive).exists();
            let exported = matches!(outcome, Ok(Ok(())));
            assert_eq!(whole("data.tar.zst"), exported, "{fault}");
            assert_eq!(whole("wal.tar.zst"), exported, "{fault}");
            if !exported {
                world
                    .export(&format!("exported-{number}"))
                    .unwrap_or_else(|e| panic!("{fault}, repeated: {e}"));
            }
            std::fs::remove_dir_all(place).expect("removed");
        },
    );
}

#[test]
fn lists_end() {
    sweep(
        ALL,
        |world, _| {
            catalog::list(&world.store, None)?;
            list(&world.store, None).map(drop)
        },
        |_, _, _, _| {},
    );
}

#[test]
fn what_is_fetched_is_right_or_an_error() {
    sweep(
        ALL,
        |world, number| {
            let server = world.server(&format!("server-{number}"));
            let (third, bytes) = world.wal.segments().nth(2).expect("a segment");
            let outcome = world.get(&server, &third.name(world.wal.size))?;
            let found = std::fs::read(server.data.join("pg_wal/RECOVERYXLOG"));
            assert!(found.is_ok_and(|found| found == bytes));
            assert_eq!(outcome, GetOutcome::Found);
            Ok(())
        },
        |world, number, fault, outcome| {
            let server = world.path(&format!("server-{number}"));
            // A panic of the test's own checks is not the fault's.
            if let Err(panic) = outcome {
                let text = panic.downcast_ref::<String>();
                assert!(
                    text.is_some_and(|text| text.starts_with("the store panics")),
                    "{fault}"
                );
            }
            std::fs::remove_dir_all(server).expect("removed");
        },
    );
}

#[test]
fn what_is_pushed_is_archived_or_an_error() {
    const PUSH: &[Fault] = &[
        Fault::Fail,
        Fault::FailAfterEffect,
        Fault::NotFound,
        Fault::Panic,
    ];
    let pushing = |world: &World| {
        let server = world.server("server");
        let paths = server.write_wal(&wal(1, 9));
        world.push(&paths[6])
    };
    let world = World::new();
    pushing(&world).expect("without faults");
    for (name, fault, point) in fault_points(&world.memory.operations(), PUSH) {
        let world = Arc::new(World::new());
        world.memory.inject(point);
        let running = Arc::clone(&world);
        let outcome = in_time(&name, move || pushing(&running));
        world.memory.heal();
        let archive = WalArchive::new(&world.cluster);
        let archived = |number: usize| {
            let wal = wal(1, 9);
            let (segment, bytes) = wal.segments().nth(number).expect("a segment");
            let mut found = Vec::new();
            let read = archive.read_segment(segment, wal.size, &mut found);
            matches!(read, Ok(Some(_))) && found == bytes
        };
        match outcome {
            Ok(Ok(_)) => assert!(archived(6), "{name}: acknowledged"),
            Ok(Err(_)) => {}
            Err(_) => assert_eq!(fault, Fault::Panic, "{name}"),
        }
        let again = pushing(&world);
        again.unwrap_or_else(|e| panic!("{name}, repeated: {e}"));
        assert!((0..9).all(archived), "{name}, repeated");
    }
}

#[test]
fn a_prefetcher_ends_and_leaves_nothing() {
    let world = Arc::new(World::new());
    let fetching = |world: &World| {
        let server = world.server("server");
        let folder = server.data.join("pg_wal/leeward/fetched-000000000000");
        std::fs::create_dir_all(&folder).expect("a folder");
        let first = world.wal.segment().name(world.wal.size);
        let options = PrefetchOptions {
            system_identifier: leeward_fixtures::SYSTEM_IDENTIFIER,
            folder,
            after: first,
            segment_size_bytes: world.wal.size.bytes(),
            ahead_bytes: 2 << 20,
            cluster: CLUSTER.to_owned(),
        };
        prefetch(&|| Ok(Arc::clone(&world.store)), &options)
    };
    for fault in [Fault::Fail, Fault::Panic, Fault::NotFound, Fault::FlipBit] {
        world.memory.heal();
        world.memory.inject(FaultPoint::new(fault));
        let running = Arc::clone(&world);
        let outcome = in_time(&format!("{fault:?}"), move || fetching(&running));
        assert!(matches!(outcome, Ok(Ok(()))), "{fault:?}: {outcome:?}");
        let left = files(&world.path("server/pg_wal/leeward"));
        let names: BTreeSet<_> = left.keys().filter(|name| !name.ends_with("lock")).collect();
        assert_eq!(names, BTreeSet::new(), "{fault:?}");
    }
}

/// A writer that takes some bytes and then fails or panics.
struct Closing {
    left: usize,
    panics: bool,
}

impl io::Write for Closing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(self.left > 0 || !self.panics, "the writer panics");
        if self.left == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let length = bytes.len().min(self.left);
        self.left -= length;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_export_into_a_pipe_that_closes_ends() {
    let world = Arc::new(World::new());
    let mut stream = Vec::new();
    world.export_stream(&mut stream).expect("exported");
    let whole = stream.len();
    for left in [0, 1, 1_000, whole / 3, whole / 2, whole - 1] {
        for panics in [false, true] {
            let running = Arc::clone(&world);
            let outcome = in_time(&format!("closed after {left}"), move || {
                running.export_stream(Closing { left, panics }).map(drop)
            });
            match outcome {
                Ok(result) => assert!(result.is_err() && !panics, "closed after {left}"),
                Err(_) => assert!(panics, "closed after {left}"),
            }
        }
    }
}

/// Runs `command` again and again, with an observer that panics at its first event, its second, and so on, until there are
/// no more events.
fn panic_at_every_event(
    command: impl Fn(&World, &Path, &(dyn Fn(Event<'_>) + Sync)) -> Result<()> + Clone + Send + 'static,
) {
    let world = Arc::new(World::new());
    for at in 0.. {
        let place = world.path(&format!("place-{at}"));
        let (running, command, to) = (Arc::clone(&world), command.clone(), place.clone());
        let outcome = in_time(&format!("a panic at event {at}"), move || {
            let events = AtomicU64::new(0);
            command(&running, &to, &|_| {
                let number = events.fetch_add(1, Ordering::Relaxed);
                assert_ne!(number, at, "the observer panics");
            })
        });
        let startable = place.join("global/pg_control").exists();
        let exported = place.join("data.tar.zst").exists();
        match outcome {
            Err(_) => assert!(!startable && !exported, "a panic at event {at}"),
            Ok(result) => {
                result.unwrap_or_else(|e| panic!("event {at}: {e}"));
                assert!(at > 5 && (startable || exported));
                break;
            }
        }
    }
}

#[test]
fn a_panic_in_any_thread_ends_a_restore() {
    panic_at_every_event(|world, to, observe| {
        let options = restore_options(to);
        restore::restore(&world.store, &options, observe).map(drop)
    });
}

#[test]
fn a_panic_in_any_thread_ends_an_export() {
    panic_at_every_event(|world, to, observe| {
        let to = ExportTo::Directory(to.to_owned());
        export(&world.store, None, "latest", &to, io::sink(), observe).map(drop)
    });
}

#[test]
fn a_restore_whose_target_disappears_ends() {
    let world = Arc::new(World::new());
    for at in 0..6 {
        let to = world.path(&format!("target-{at}"));
        let running = Arc::clone(&world);
        let outcome = in_time(&format!("gone at event {at}"), move || {
            let events = AtomicU64::new(0);
            let options = restore_options(&to);
            restore::restore(&running.store, &options, &|_| {
                if events.fetch_add(1, Ordering::Relaxed) == at {
                    let _ = std::fs::remove_dir_all(&to);
                }
            })
            .map(drop)
        });
        let result: std::result::Result<(), Error> = outcome.expect("no panic");
        // Before the first byte is written it is as good as absent.
        assert!(result.is_err() || at < 3, "gone at event {at}");
    }
}
