//! Frames of made pages, and the accidents that happen to pages.

use std::ops::Range;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use super::made_pages::{Page, Relation, relation, set_checksum};
use crate::{BlockNumber, PAGE_SIZE};

/// Pages of one or several relations.
#[derive(Debug, Clone)]
pub struct Frame {
    pub stretches: Vec<Stretch>,
    pub accidents: Vec<Accident>,
    /// Block numbers have nothing to do with one another.
    pub any_blocks: bool,
    pub seed: u64,
}

/// Consecutive pages of a relation.
#[derive(Debug, Clone)]
pub struct Stretch {
    pub relation: Relation,
    pub first: BlockNumber,
    pub pages: usize,
}

/// What happens to a page.
#[derive(Debug, Clone)]
pub struct Accident {
    pub page: prop::sample::Index,
    pub harm: Harm,
    /// The checksum is right afterwards.
    pub checksum: bool,
}

#[derive(Debug, Clone, Copy)]
pub enum Harm {
    /// Some bits are not what they were.
    Bits,
    /// A stretch of bytes is something else.
    Bytes,
    /// Line pointers say something else, mostly little else.
    Pointers,
    /// Two line pointers have changed places.
    SwappedPointers,
    /// The beginning of an item is something else: the tuple's header.
    Header,
    /// `pd_lower`, `pd_upper`, `pd_special` or what is behind them has moved.
    Bounds,
    /// The first half is the page's, the second that of another page.
    Torn,
    /// It is a copy of another page.
    Borrowed,
}

impl Frame {
    /// The pages, one behind the other, and their blocks.
    pub fn pages(&self) -> (Vec<u8>, Vec<BlockNumber>) {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let (mut pages, mut blocks): (Vec<Page>, _) = (Vec::new(), Vec::new());
        for stretch in &self.stretches {
            for number in 0..stretch.pages {
                let block = if self.any_blocks {
                    BlockNumber(rng.next_u32())
                } else {
                    BlockNumber(stretch.first.0.wrapping_add(number as u32))
                };
                pages.push(stretch.relation.page(number as u64, block, &mut rng));
                blocks.push(block);
            }
        }
        for accident in &self.accidents {
            let at = accident.page.index(pages.len());
            let other = pages[rng.random_range(0..pages.len())];
            accident.harm.befall(&mut pages[at], &other, &mut rng);
            if accident.checksum {
                set_checksum(&mut pages[at], blocks[at]);
            }
        }
        (pages.concat(), blocks)
    }
}

impl Harm {
    fn befall(self, page: &mut Page, other: &Page, rng: &mut StdRng) {
        match self {
            Self::Bits => {
                for _ in 0..rng.random_range(1..20) {
                    page[rng.random_range(0..PAGE_SIZE)] ^= 1 << rng.random_range(0..8);
                }
            }
            Self::Bytes => {
                let at = rng.random_range(0..PAGE_SIZE);
                let length = rng.random_range(0..=(PAGE_SIZE - at).min(600));
                rng.fill_bytes(&mut page[at..at + length]);
            }
            Self::Pointers => {
                for _ in 0..rng.random_range(1..6) {
                    let at = pointer(page, rng);
                    let pointer =
                        u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
                    let pointer = match rng.random_range(0..5) {
                        0 => rng.next_u32(),
                        1 => 0,
                        2 => pointer ^ rng.random_range(0..4) << 15,
                        3 => pointer.wrapping_add(8 << 17),
                        _ => pointer.wrapping_sub(8),
                    };
                    page[at..at + 4].copy_from_slice(&pointer.to_le_bytes());
                }
            }
            Self::SwappedPointers => {
                let (one, two) = (pointer(page, rng), pointer(page, rng));
                for byte in 0..4 {
                    page.swap(one + byte, two + byte);
                }
            }
            Self::Header => {
                let at = pointer(page, rng);
                let item = usize::from(number_at(page, at) & 0x1FFF);
                let header = item..(item + 24).min(PAGE_SIZE);
                for byte in &mut page[header] {
                    if rng.random_ratio(1, 6) {
                        *byte = rng.random();
                    }
                }
            }
            Self::Bounds => {
                let at = [12, 14, 16, 18][rng.random_range(0..4)];
                let by = [1, 4, 8, 64, 0xFFFF, 0xFFFC, 0xFFF8, rng.random()];
                let bound = number_at(page, at).wrapping_add(by[rng.random_range(0..8)]);
                page[at..at + 2].copy_from_slice(&bound.to_le_bytes());
            }
            Self::Torn => {
                let half = 512 * rng.random_range(1..16);
                page[half..].copy_from_slice(&other[half..]);
            }
            Self::Borrowed => *page = *other,
        }
    }
}

fn number_at(page: &Page, at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

/// Where one of the page's line pointers is; of a page without, the first place for one.
fn pointer(page: &Page, rng: &mut StdRng) -> usize {
    let count = (usize::from(number_at(page, 12)).clamp(28, 8000) - 24) / 4;
    24 + 4 * rng.random_range(0..count)
}

/// Frames without accidents of so many pages in each stretch.
pub fn sound_frame(pages: Range<usize>) -> impl Strategy<Value = Frame> {
    let first = prop_oneof![
        8 => 0..200_000_u32,
        1 => Just(u32::MAX - 20),
    ];
    let stretch =
        (relation(), first.prop_map(BlockNumber), pages).prop_map(|(relation, first, pages)| {
            Stretch {
                relation,
                first,
                pages,
            }
        });
    let any_blocks = prop::bool::weighted(0.1);
    (
        prop::collection::vec(stretch, 1..5),
        any_blocks,
        any::<u64>(),
    )
        .prop_map(|(stretches, any_blocks, seed)| Frame {
            stretches,
            accidents: Vec::new(),
            any_blocks,
            seed,
        })
}

/// Frames of any pages.
pub fn frame(pages: Range<usize>) -> impl Strategy<Value = Frame> {
    let harm = prop::sample::select(vec![
        Harm::Bits,
        Harm::Bytes,
        Harm::Pointers,
        Harm::SwappedPointers,
        Harm::Header,
        Harm::Bounds,
        Harm::Torn,
        Harm::Borrowed,
    ]);
    let accident =
        (any::<prop::sample::Index>(), harm, any::<bool>()).prop_map(|(page, harm, checksum)| {
            Accident {
                page,
                harm,
                checksum,
            }
        });
    let accidents = prop::collection::vec(accident, 0..8);
    (sound_frame(pages), accidents).prop_map(|(frame, accidents)| Frame { accidents, ..frame })
}
