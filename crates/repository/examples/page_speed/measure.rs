//! The clock: ways take turns, so that what slows the machine for a while slows all of them.

use std::error::Error;

use rustix::time::{ClockId, clock_gettime};

use crate::files::Frame;
use crate::way::{Stored, Way};

/// Frames that one way works on before the next has its turn.
const TURN: usize = 8;

/// What one way did with the frames of a kind.
#[derive(Clone)]
pub struct Measured {
    pub plain_bytes: usize,
    pub stored_bytes: usize,
    /// CPU seconds of each round, over all frames.
    pub compress_s: Vec<f64>,
    pub decompress_s: Vec<f64>,
}

impl Measured {
    /// Takes the other's frames in, round by round.
    pub fn add(&mut self, other: &Measured) {
        self.plain_bytes += other.plain_bytes;
        self.stored_bytes += other.stored_bytes;
        let rounds = self.compress_s.iter_mut().zip(&other.compress_s);
        rounds.for_each(|(sum, one)| *sum += one);
        let rounds = self.decompress_s.iter_mut().zip(&other.decompress_s);
        rounds.for_each(|(sum, one)| *sum += one);
    }
}

/// Every frame goes each way there and back in each round.
///
/// # Errors
/// A frame that came back as something else; a codec that failed.
pub fn measure(
    frames: &[Frame],
    ways: &mut [Way],
    rounds: usize,
) -> Result<Vec<Measured>, Box<dyn Error>> {
    let mut measured = vec![
        Measured {
            plain_bytes: frames.iter().map(|frame| frame.plain.len()).sum(),
            stored_bytes: 0,
            compress_s: vec![0.0; rounds],
            decompress_s: vec![0.0; rounds],
        };
        ways.len()
    ];
    let mut stored: Vec<Stored> = std::iter::repeat_with(Stored::default).take(TURN).collect();
    let mut plain: Vec<Vec<u8>> = vec![Vec::new(); TURN];
    for round in 0..rounds {
        for (turn, frames) in frames.chunks(TURN).enumerate() {
            for step in 0..ways.len() {
                // Another begins each time: the first finds the frames outside the processor's caches.
                let number = (round + turn + step) % ways.len();
                let (way, measured) = (&mut ways[number], &mut measured[number]);
                let start = cpu_s();
                for (frame, stored) in frames.iter().zip(&mut stored) {
                    way.store(frame, stored)?;
                }
                let middle = cpu_s();
                for ((frame, stored), plain) in frames.iter().zip(&stored).zip(&mut plain) {
                    way.restore(frame, stored, plain)?;
                }
                measured.compress_s[round] += middle - start;
                measured.decompress_s[round] += cpu_s() - middle;
                for ((frame, stored), plain) in frames.iter().zip(&stored).zip(&plain) {
                    if *plain != frame.plain {
                        return Err("a frame did not come back as it was".into());
                    }
                    if round == 0 {
                        measured.stored_bytes += stored.bytes.len();
                    }
                }
            }
        }
    }
    Ok(measured)
}

/// The middle one; of an even number the upper.
pub fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_unstable_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// How many times as fast as the first the second is, round by round.
pub fn median_ratio(first_s: &[f64], second_s: &[f64]) -> f64 {
    median(first_s.iter().zip(second_s).map(|(a, b)| a / b).collect())
}

fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
