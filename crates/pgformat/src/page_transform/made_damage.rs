//! Damage to pages taken apart: to any byte, and to streams as such, which gets by the lengths and so comes farther.

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use super::frame_layout::ApartFrame;

/// What happens to a frame's bytes.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// Some bits are not what they were.
    Bits,
    /// The bytes from somewhere on are missing.
    Cut,
    /// A stretch of bytes is twice there.
    Doubled,
    /// Bytes of a stream are others.
    Bytes,
    /// Bytes of a stream are all the same: the largest numbers, the longest lengths.
    Extremes,
    /// A stream has lost rows.
    FewerRows,
    /// A stream has more rows.
    MoreRows,
    /// One stream is as another of rows as long.
    Exchanged,
    /// Words or columns are written otherwise.
    Modes,
    /// A schema has more columns, fewer or others.
    Columns,
}

impl Damage {
    fn befall(self, bytes: &mut Vec<u8>, rng: &mut StdRng) {
        let at = rng.random_range(0..bytes.len().max(1));
        match self {
            Self::Bits => {
                for _ in 0..rng.random_range(1..8) {
                    if !bytes.is_empty() {
                        let at = rng.random_range(0..bytes.len());
                        bytes[at] ^= 1 << rng.random_range(0..8);
                    }
                }
            }
            Self::Cut => bytes.truncate(at),
            Self::Doubled => {
                let length = rng.random_range(0..=(bytes.len() - at.min(bytes.len())).min(100));
                bytes.splice(at..at, bytes[at..at + length].to_vec());
            }
            _ => {
                if let Some(mut frame) = ApartFrame::read(bytes) {
                    self.befall_frame(&mut frame, rng);
                    *bytes = frame.write();
                }
            }
        }
    }

    fn befall_frame(self, frame: &mut ApartFrame, rng: &mut StdRng) {
        match self {
            Self::Modes => {
                let plan = &mut frame.plans[rng.random_range(0..4)];
                let length = rng.random_range(0..18);
                plan.resize(length, 1);
                plan.iter_mut()
                    .for_each(|mode| *mode = rng.random_range(0..4));
                for column in frame.schemas.iter_mut().flatten() {
                    if rng.random_ratio(1, 3) {
                        column[1] = rng.random_range(0..18);
                    }
                }
                return frame.fit();
            }
            Self::Columns => {
                let count = rng.random_range(0..67);
                let columns = (0..count).map(|_| [rng.random_range(0..10), rng.random_range(0..4)]);
                let columns = columns.collect();
                match rng.random_range(0..frame.schemas.len() + 1) {
                    new if new == frame.schemas.len() => frame.schemas.push(columns),
                    number => frame.schemas[number] = columns,
                }
                return frame.fit();
            }
            _ => {}
        }
        let filled: Vec<usize> = (0..frame.streams.len())
            .filter(|number| !frame.streams[*number].rows.is_empty())
            .collect();
        if filled.is_empty() {
            return;
        }
        let number = filled[rng.random_range(0..filled.len())];
        let other = frame.streams[filled[rng.random_range(0..filled.len())]].clone();
        let stream = &mut frame.streams[number];
        let rows = stream.rows.len() / stream.width;
        let row = rng.random_range(0..rows) * stream.width;
        let some = rng.random_range(1..=rows.min(20)) * stream.width;
        let end = (row + some).min(stream.rows.len());
        match self {
            Self::Bytes => rng.fill_bytes(&mut stream.rows[row..end]),
            Self::Extremes => {
                let extreme = [0, 1, 0x7F, 0x80, 0xFE, 0xFF][rng.random_range(0..6)];
                stream.rows[row..end].fill(extreme);
            }
            Self::FewerRows => drop(stream.rows.drain(row..end)),
            Self::MoreRows => {
                let more = stream.rows[row..end].to_vec();
                stream.rows.splice(row..row, more);
            }
            _ if other.width == stream.width => stream.rows = other.rows,
            _ => {}
        }
    }
}

/// Does some damage to the bytes, which depends on the seed alone.
pub fn damage(bytes: &mut Vec<u8>, seed: u64) {
    use Damage::*;
    // What keeps to the layout more often.
    const KINDS: [Damage; 12] = [
        Bits, Cut, Doubled, Bytes, Bytes, Extremes, Extremes, FewerRows, MoreRows, Exchanged,
        Modes, Columns,
    ];
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..rng.random_range(1..4) {
        KINDS[rng.random_range(0..KINDS.len())].befall(bytes, &mut rng);
    }
}
