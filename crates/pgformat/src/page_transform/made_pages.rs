//! Pages as PostgreSQL forms them, made up: tables and indexes with what their pages have in common, and what there may be on
//! a page beside it.
//!
//! Facts from `storage/bufpage.h`, `access/htup_details.h`, `access/itup.h` and `access/nbtree.h`.

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngCore};

use super::made_values::{Column, bitmap, bytes, column, form, happens};
use crate::page::page_checksum;
use crate::{BlockNumber, PAGE_SIZE};

pub type Page = [u8; PAGE_SIZE];

/// What the pages of one relation have in common.
#[derive(Debug, Clone)]
pub enum Relation {
    Table(Table),
    Index(Index),
    /// Items of no known shape behind a special space of so many bytes.
    Items(u16),
    /// A map of free space: a few bytes in what is nothing on other pages.
    Map,
    /// Any bytes.
    Noise,
    /// Pages that were allocated and never written.
    Zeros,
}

/// A table.
#[derive(Debug, Clone)]
pub struct Table {
    pub columns: Vec<Column>,
    /// Every so many values is null; 0: none is.
    pub nulls: u32,
    /// Its first rows were written before it had all its columns.
    pub grown: bool,
    /// Transactions that wrote a page, one after the other.
    pub writers: u32,
    /// Bytes of the special space: none in tables, 8 in sequences.
    pub special: u16,
    pub habits: Habits,
}

/// An index.
#[derive(Debug, Clone)]
pub struct Index {
    pub key: Vec<Column>,
    pub nulls: u32,
    /// Keys lie in another order than rows.
    pub scattered: bool,
    /// Every so many tuples has a posting list; 0: none has.
    pub postings: u32,
    /// Bytes of the special space: 16 in most, 8 in GIN.
    pub special: u16,
    /// The last two bytes of the special space.
    pub page_id: u16,
    pub habits: Habits,
}

/// What happens to pages of any relation.
#[derive(Debug, Clone)]
pub struct Habits {
    /// Every so many line pointers is unused, dead or a redirection; 0: none is.
    pub without_item: u32,
    /// Pruning has moved items.
    pub shuffled: bool,
    /// Behind items and between the bounds there is what was there before.
    pub stale: bool,
    /// Pages are full to so many eighths.
    pub eighths: usize,
    pub checksums: bool,
}

impl Relation {
    /// Page number `number` of the relation, which lies in this block.
    pub fn page(&self, number: u64, block: BlockNumber, rng: &mut StdRng) -> Page {
        let mut page = [0; PAGE_SIZE];
        match self {
            Self::Table(table) => {
                let special = bytes(table.special.into(), rng);
                fill(&special, block, &table.habits, rng, |item, rng| {
                    table.tuple(number * 100 + u64::from(item), (block, item), rng)
                })
            }
            Self::Index(index) => {
                let special = index.special(block, rng);
                fill(&special, block, &index.habits, rng, |item, rng| {
                    index.tuple(number * 200 + u64::from(item), item, rng)
                })
            }
            Self::Items(special) => {
                let special = bytes((*special).into(), rng);
                fill(&special, block, &Habits::TIDY, rng, |_, rng| {
                    let length = rng.random_range(1..200);
                    bytes(length, rng)
                })
            }
            Self::Map => {
                let mut page = fill(&[], block, &Habits::TIDY, rng, |_, _| Vec::new());
                let at = rng.random_range(24..PAGE_SIZE - 300);
                page[at..at + 300].fill(rng.random());
                page
            }
            Self::Noise => {
                rng.fill_bytes(&mut page);
                page
            }
            Self::Zeros => page,
        }
    }
}

impl Table {
    fn tuple(&self, row: u64, here: (BlockNumber, u16), rng: &mut StdRng) -> Vec<u8> {
        let grown = self.grown && row % 300 < 100;
        let columns = &self.columns[..self.columns.len() - usize::from(grown)];
        let (values, present) = form(columns, self.nulls, row, rng);
        let with_nulls = present.contains(&false);
        let xmin = 700 + row as u32 / 3 * self.writers / 8;
        let xmax = match rng.random_range(0..8) {
            0 => xmin + rng.random_range(1..500),
            1 => xmin + 1,
            _ => 0,
        };
        let mut to = here;
        if happens(10, rng) {
            to = (BlockNumber(here.0.0.wrapping_add(1)), rng.random());
        }
        let varies = columns.iter().any(|column| column.varies());
        let infomask = u16::from(with_nulls) | u16::from(varies) << 1 | 0x0900;
        let mut tuple = Vec::new();
        tuple.extend_from_slice(&xmin.to_le_bytes());
        tuple.extend_from_slice(&xmax.to_le_bytes());
        tuple.extend_from_slice(&(row as u32 % 2).to_le_bytes());
        tuple.extend_from_slice(&tid(to.0.0, to.1));
        tuple.extend_from_slice(&(columns.len() as u16).to_le_bytes());
        tuple.extend_from_slice(&infomask.to_le_bytes());
        tuple.push(0);
        if with_nulls {
            tuple.extend_from_slice(&bitmap(&present));
        }
        tuple.resize(tuple.len().next_multiple_of(8), 0);
        tuple[22] = tuple.len() as u8;
        tuple.extend_from_slice(&values);
        tuple
    }
}

impl Index {
    fn tuple(&self, row: u64, item: u16, rng: &mut StdRng) -> Vec<u8> {
        let (values, present) = form(&self.key, self.nulls, row, rng);
        let with_nulls = present.contains(&false);
        let varies = self.key.iter().any(|column| column.varies());
        let mut info = u16::from(with_nulls) << 15 | u16::from(varies) << 14;
        let (block, number) = if self.scattered {
            (rng.random_range(0..100_000), rng.random_range(1..200))
        } else {
            (row as u32 / 60, row as u16 % 60 + 1)
        };
        let mut tuple = tid(block, number).to_vec();
        tuple.extend_from_slice(&[0; 2]);
        if with_nulls {
            tuple.extend_from_slice(&bitmap(&present));
            tuple.resize(16, 0);
        }
        tuple.extend_from_slice(&values);
        tuple.resize(tuple.len().next_multiple_of(8), 0);
        if happens(self.postings, rng) {
            info |= 0x2000;
            let count = rng.random_range(2..60_u16);
            tuple.splice(..6, tid(tuple.len() as u32, 0x2000 | count));
            let mut block = block;
            for _ in 0..count {
                block = block.wrapping_add(match rng.random_range(0..12) {
                    0 => 70_000,
                    1 => rng.random_range(200..300),
                    _ => rng.random_range(0..9),
                });
                tuple.extend_from_slice(&tid(block, rng.random_range(1..100)));
            }
            tuple.resize(tuple.len().next_multiple_of(8), 0);
        } else if item == 1 && self.postings > 0 {
            // A pivot: it points to no row, and says how many columns it has.
            info |= 0x2000;
            tuple.splice(..6, tid(block, 1));
        }
        info |= tuple.len() as u16;
        tuple.splice(6..8, info.to_le_bytes());
        tuple
    }

    fn special(&self, block: BlockNumber, rng: &mut StdRng) -> Vec<u8> {
        let mut special = bytes(self.special.into(), rng);
        if let Some(siblings) = special.get_mut(..16) {
            siblings.fill(0);
            siblings[..4].copy_from_slice(&block.0.wrapping_sub(1).to_le_bytes());
            siblings[4..8].copy_from_slice(&block.0.wrapping_add(1).to_le_bytes());
            siblings[14..].copy_from_slice(&self.page_id.to_le_bytes());
        }
        special
    }
}

/// An `ItemPointerData`.
fn tid(block: u32, number: u16) -> [u8; 6] {
    let ([a, b, c, d], [e, f]) = (block.rotate_left(16).to_le_bytes(), number.to_le_bytes());
    [a, b, c, d, e, f]
}

impl Habits {
    pub const TIDY: Self = Self {
        without_item: 0,
        shuffled: false,
        stale: false,
        eighths: 8,
        checksums: true,
    };
}

/// A page with as many items as have room, or as habit wants.
fn fill(
    special: &[u8],
    block: BlockNumber,
    habits: &Habits,
    rng: &mut StdRng,
    mut tuple: impl FnMut(u16, &mut StdRng) -> Vec<u8>,
) -> Page {
    let mut page = [0; PAGE_SIZE];
    if habits.stale {
        rng.fill_bytes(&mut page);
    }
    let end = PAGE_SIZE - special.len();
    page[end..].copy_from_slice(special);
    // Line pointers, and what they point to.
    let mut pointers: Vec<u32> = Vec::new();
    let mut tuples: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut left = (end - 24) * habits.eighths / 8;
    loop {
        let number = pointers.len();
        if left >= 4 && happens(habits.without_item, rng) {
            left -= 4;
            // Unused; dead; a redirection.
            let redirection = 2 << 15 | rng.random_range(1..60);
            pointers.push([0, 3 << 15, redirection][rng.random_range(0..3)]);
            continue;
        }
        let tuple = tuple(number as u16 + 1, rng);
        let room = 4 + tuple.len().next_multiple_of(8);
        if tuple.is_empty() || left < room {
            break;
        }
        left -= room;
        pointers.push(1 << 15 | (tuple.len() as u32) << 17);
        tuples.push((number, tuple));
    }
    if habits.shuffled {
        tuples.shuffle(rng);
    }
    let mut upper = end;
    for (number, tuple) in &tuples {
        upper -= tuple.len().next_multiple_of(8);
        page[upper..upper + tuple.len()].copy_from_slice(tuple);
        pointers[*number] |= upper as u32;
    }
    let lower = 24 + pointers.len() * 4;
    for (place, pointer) in page[24..lower].chunks_exact_mut(4).zip(pointers) {
        place.copy_from_slice(&pointer.to_le_bytes());
    }
    let lsn = 0x0100_0000_u32 + block.0.wrapping_mul(200) % 100_000;
    page[..4].copy_from_slice(&[3, 0, 0, 0]);
    page[4..8].copy_from_slice(&lsn.to_le_bytes());
    for (at, value) in [
        (8, 0),
        (10, u16::from(habits.without_item > 0)),
        (12, lower as u16),
        (14, upper as u16),
        (16, end as u16),
        (18, PAGE_SIZE as u16 | 4),
        (20, rng.random_range(0..3)),
        (22, 0),
    ] {
        page[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    if habits.checksums {
        set_checksum(&mut page, block);
    }
    page
}

pub fn set_checksum(page: &mut Page, block: BlockNumber) {
    let checksum = page_checksum(page, block);
    page[8..10].copy_from_slice(&checksum.to_le_bytes());
}

/// Relations of every kind.
pub fn relation() -> impl Strategy<Value = Relation> {
    prop_oneof![
        5 => table().prop_map(Relation::Table),
        5 => index().prop_map(Relation::Index),
        1 => prop::sample::select(vec![0, 8, 16, 64]).prop_map(Relation::Items),
        1 => Just(Relation::Map),
        1 => Just(Relation::Noise),
        1 => Just(Relation::Zeros),
    ]
}

pub fn table() -> impl Strategy<Value = Table> {
    let special = prop_oneof![9 => Just(0), 1 => prop::sample::select(vec![8, 16, 40])];
    let columns = prop::collection::vec(column(), 1..12);
    (
        columns,
        0..4_u32,
        any::<bool>(),
        1..20_u32,
        special,
        habits(),
    )
        .prop_map(|(columns, nulls, grown, writers, special, habits)| Table {
            columns,
            nulls,
            grown,
            writers,
            special,
            habits,
        })
}

pub fn index() -> impl Strategy<Value = Index> {
    let special = prop_oneof![6 => Just(16), 1 => Just(8), 1 => Just(24)];
    let page_id = prop::sample::select(vec![0, 1, 0xFF7F, 0xFF80, 0xFF81, 0xFF82]);
    let key = prop::collection::vec(column(), 1..4);
    let nulls = prop_oneof![3 => Just(0), 1 => 2..9_u32];
    let postings = 0..4_u32;
    (
        key,
        nulls,
        any::<bool>(),
        postings,
        special,
        page_id,
        habits(),
    )
        .prop_map(
            |(key, nulls, scattered, postings, special, page_id, habits)| Index {
                key,
                nulls,
                scattered,
                postings,
                special,
                page_id,
                habits,
            },
        )
}

fn habits() -> impl Strategy<Value = Habits> {
    (
        0..6_u32,
        any::<bool>(),
        any::<bool>(),
        1..9_usize,
        any::<bool>(),
    )
        .prop_map(
            |(without_item, shuffled, stale, eighths, checksums)| Habits {
                without_item,
                shuffled,
                stale,
                eighths,
                checksums,
            },
        )
}
