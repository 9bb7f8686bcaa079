//! The threads behind a stream, over a store in memory that fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use leeward_fixtures::{SYSTEM_IDENTIFIER, Wal, segment};
use leeward_pgformat::WalSegmentSize;
use leeward_repository::catalog::Cluster;
use leeward_repository::store::memory::{Action, Fault, FaultPoint, MemoryStore};
use leeward_repository::wal_archive::WalArchive;

use super::bell::{Bell, Stop};
use super::queue::Queue;
use super::storer::Storer;

/// Longer than any of this takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A stream's queue and store, with one whole WAL segment received and the next one begun.
struct Receiving {
    memory: MemoryStore,
    stop: Stop,
    queue: Arc<Queue>,
    storer: Storer,
    wal: Wal,
}

impl Receiving {
    fn new(seed: u64) -> Receiving {
        let memory = MemoryStore::bucket();
        let store = Arc::new(memory.clone());
        let cluster = Cluster::assumed(store, "main").expect("a name");
        let stop = Stop::new().expect("descriptors");
        let bell = Bell::of(&stop).expect("a descriptor");
        let size = WalSegmentSize::new(1 << 20).expect("a size");
        let queue = Queue::new(bell, size, std::env::temp_dir(), Duration::ZERO);
        let queue = Arc::new(queue);
        let storer = Storer {
            archive: WalArchive::new(&cluster),
            system_identifier: SYSTEM_IDENTIFIER,
            level: 1,
            queue: Arc::clone(&queue),
        };
        Receiving {
            memory,
            stop,
            queue,
            storer,
            wal: segment(size, 2, seed),
        }
    }

    fn receive(&self) {
        self.queue.begin(self.wal.segment(), None).expect("a file");
        self.queue.append(&self.wal.bytes).expect("room");
    }

    fn start(&self) {
        let (storing, sweeping) = (self.storer.clone(), self.storer.clone());
        self.queue
            .spawn("store", move || storing.run())
            .expect("a thread");
        self.queue
            .spawn("sweep", move || sweeping.sweep())
            .expect("a thread");
    }

    /// Waits until `happened`, which is asked whenever a thread rings.
    fn wait(&self, what: &str, mut happened: impl FnMut(&Queue) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !happened(&self.queue) {
            assert!(Instant::now() < until, "{what}: it hangs");
            self.stop.wait(Instant::now() + Duration::from_millis(20));
        }
    }
}

#[test]
fn an_outage_is_sat_out() {
    let receiving = Receiving::new(1);
    receiving
        .memory
        .inject(FaultPoint::new(Fault::Fail).on(&[Action::Create]).times(2));
    receiving.receive();
    receiving.start();
    let end = receiving.wal.end();
    receiving.wait("storing", |queue| queue.durable() == end);
    assert!(receiving.queue.take_failure().is_none());
    let told = receiving.queue.take_notices().concat();
    assert!(told.contains("goes on trying"), "{told}");
    receiving.queue.stop();
    receiving.wait("the end", Queue::is_done);
}

#[test]
fn a_panic_of_the_storer_ends_the_receiver() {
    let receiving = Receiving::new(1);
    let point = FaultPoint::new(Fault::Panic).on(&[Action::Create]);
    receiving.memory.inject(point);
    receiving.receive();
    receiving.start();
    receiving.wait("the storer's end", Queue::is_done);
    let failure = receiving.queue.take_failure().expect("a failure");
    assert_eq!(failure.to_string(), "the thread \"store\" panicked");
    assert_eq!(receiving.queue.durable(), receiving.wal.start);
}

#[test]
fn a_panic_of_the_sweeper_ends_the_receiver() {
    let receiving = Receiving::new(1);
    receiving.storer.queue.leave_over(receiving.wal.segment());
    let point = FaultPoint::new(Fault::Panic).on(&[Action::Size, Action::List]);
    receiving.memory.inject(point);
    receiving.start();
    receiving.wait("the sweeper's end", Queue::is_done);
    let failure = receiving.queue.take_failure().expect("a failure");
    assert_eq!(failure.to_string(), "the thread \"sweep\" panicked");
}

#[test]
fn other_wal_in_the_archive_ends_the_receiver() {
    let receiving = Receiving::new(1);
    let other = segment(receiving.wal.size, 2, 2);
    receiving
        .storer
        .archive
        .store_segment(
            other.segment(),
            other.size,
            SYSTEM_IDENTIFIER,
            &mut &other.bytes[..],
            1,
        )
        .expect("archived");
    receiving.receive();
    receiving.start();
    receiving.wait("the storer's end", Queue::is_done);
    let failure = receiving.queue.take_failure().expect("a failure");
    assert!(failure.to_string().contains("differ"), "{failure}");
    assert_eq!(receiving.queue.durable(), receiving.wal.start);
}
