//! What is durable, what is stored next, and when.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use leeward_pgformat::{Lsn, TimelineId, WalSegmentName, WalSegmentSize};

use super::bell::{Bell, Stop};
use super::buffer::Job;
use super::queue::Queue;

const MIB: usize = 1 << 20;

fn queue(interval: Duration) -> Queue {
    let stop = Stop::new().expect("descriptors");
    let bell = Bell::of(&stop).expect("a descriptor");
    let size = WalSegmentSize::new(1 << 20).expect("a size");
    Queue::new(bell, size, std::env::temp_dir(), interval)
}

fn segment(number: u64) -> WalSegmentName {
    WalSegmentName {
        timeline: TimelineId(1),
        number,
    }
}

/// The file of a segment whose first 3000 bytes are held in pieces: all of them 7.
fn held(queue: &Queue) -> (File, u64) {
    let file = queue.file().expect("a file");
    file.write_all_at(&[7; 3000], 0).expect("room");
    (file, 3000)
}

#[test]
fn only_what_is_stored_is_durable() {
    let queue = queue(Duration::ZERO);
    queue.begin(segment(3), None).expect("a file");
    assert_eq!(queue.durable(), Lsn(3 << 20));
    queue.append(&[1; 1000]).expect("room");
    assert_eq!(
        queue.position(),
        Some((TimelineId(1), Lsn((3 << 20) + 1000)))
    );
    assert_eq!(queue.durable(), Lsn(3 << 20));
    let job = queue.job();
    assert!(matches!(
        job,
        Job::Piece {
            from: 0,
            to: 1000,
            ..
        }
    ));
    queue.append(&[1; 10]).expect("room");
    assert_eq!(queue.durable(), Lsn(3 << 20));
    queue.done(&job);
    assert_eq!(queue.durable(), Lsn((3 << 20) + 1000));
    assert!(!queue.is_empty());
    let job = queue.job();
    assert!(matches!(
        job,
        Job::Piece {
            from: 1000,
            to: 1010,
            ..
        }
    ));
    queue.done(&job);
    assert!(queue.is_empty());
}

#[test]
fn a_full_segment_is_stored_whole_and_a_few_are_enough() {
    let queue = queue(Duration::from_secs(3600));
    queue.begin(segment(3), None).expect("a file");
    queue.append(&vec![1; 4 * MIB - 1]).expect("room");
    assert!(queue.has_room());
    queue.append(&[1]).expect("room");
    assert!(!queue.has_room(), "four are full");
    for number in 3..7 {
        assert_eq!(queue.durable(), Lsn(number << 20));
        let job = queue.job();
        assert!(
            matches!(&job, Job::Segment { segment, has_pieces: false, .. } if segment.number == number)
        );
        queue.done(&job);
        assert!(queue.has_room());
    }
    assert_eq!(queue.position(), Some((TimelineId(1), Lsn(7 << 20))));
    assert_eq!(queue.durable(), Lsn(7 << 20));
}

#[test]
fn a_timeline_that_ends_leaves_pieces_and_history_goes_first() {
    let queue = queue(Duration::from_secs(3600));
    queue.begin(segment(3), None).expect("a file");
    queue.append(&[1; 5000]).expect("room");
    queue.end();
    assert_eq!(queue.position(), None);
    queue.history("00000002.history".to_owned(), vec![1]);
    let next = WalSegmentName {
        timeline: TimelineId(2),
        number: 3,
    };
    queue.begin(next, None).expect("a file");
    queue.append(&[1; 6000]).expect("room");
    let job = queue.job();
    assert!(matches!(&job, Job::Piece { segment, to: 5000, .. } if segment.timeline.0 == 1));
    queue.done(&job);
    let job = queue.job();
    assert!(matches!(job, Job::History { .. }));
    assert_eq!(
        queue.durable(),
        Lsn(3 << 20),
        "nothing of the new timeline is"
    );
    queue.done(&job);
    queue.hurry(true);
    let job = queue.job();
    assert!(matches!(&job, Job::Piece { segment, to: 6000, .. } if segment.timeline.0 == 2));
    queue.done(&job);
    queue.stop();
    assert!(matches!(queue.job(), Job::Done));
}

#[test]
fn what_comes_again_must_be_the_same() {
    for (different, outcome) in [
        (None, true),
        (Some(0), false),
        (Some(2999), false),
        (Some(3000), true),
    ] {
        let queue = queue(Duration::ZERO);
        queue.begin(segment(3), Some(held(&queue))).expect("a file");
        let mut bytes = vec![7; 4000];
        if let Some(at) = different {
            bytes[at] = 8;
        }
        let appended = bytes.chunks(700).try_for_each(|bytes| queue.append(bytes));
        assert_eq!(appended.is_ok(), outcome, "{different:?}");
        if outcome {
            assert_eq!(queue.durable(), Lsn((3 << 20) + 3000));
            let job = queue.job();
            assert!(matches!(
                job,
                Job::Piece {
                    from: 3000,
                    to: 4000,
                    ..
                }
            ));
        }
    }
}

#[test]
fn what_is_held_whole_is_compared_and_not_stored() {
    let queue = queue(Duration::ZERO);
    queue
        .begin_before(segment(3), Some(held(&queue)))
        .expect("a file");
    queue.hurry(true);
    queue.append(&[1; MIB - 1]).expect("room");
    assert!(queue.is_comparing());
    assert!(queue.is_empty(), "nothing of it is to be stored");
    assert_eq!(queue.durable(), Lsn(3 << 20));
    queue.append(&[1]).expect("room");
    assert!(!queue.is_empty(), "it is to be compared");
    queue.append(&[7; 2000]).expect("the same as the pieces");
    assert_eq!(
        queue.durable(),
        Lsn(3 << 20),
        "no word of what lies behind before"
    );
    let job = queue.job();
    assert!(matches!(&job, Job::Segment { segment, has_pieces: false, .. } if segment.number == 3));
    queue.done(&job);
    assert!(!queue.is_comparing());
    assert_eq!(queue.durable(), Lsn((4 << 20) + 2000));
    queue.append(&[8; 2000]).expect_err("other than the pieces");
    queue.append(&[7; 1000]).expect("the same as the pieces");
    queue.append(&[8; 10]).expect("behind the pieces");
    let job = queue.job();
    assert!(matches!(
        job,
        Job::Piece {
            from: 3000,
            to: 3010,
            ..
        }
    ));
}

#[test]
fn pieces_are_known_whoever_goes_on_with_their_segment() {
    let queue = queue(Duration::ZERO);
    queue
        .begin_before(segment(3), Some(held(&queue)))
        .expect("a file");
    queue.append(&[1; MIB]).expect("room");
    let job = queue.job();
    queue.done(&job);
    assert_eq!(queue.position(), Some((TimelineId(1), Lsn(4 << 20))));
    queue.append(&[8]).expect_err("other than the pieces");
}

#[test]
fn a_comparison_that_breaks_off_leaves_nothing() {
    let queue = queue(Duration::ZERO);
    queue.begin_before(segment(3), None).expect("a file");
    queue.append(&[1; 1000]).expect("room");
    queue.end();
    queue.stop();
    assert!(matches!(queue.job(), Job::Done));
    assert_eq!(queue.durable(), Lsn(3 << 20));
    assert!(!queue.is_comparing());
}
