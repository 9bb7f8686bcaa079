//! The page transform: pages taken apart into streams of bytes of equal meaning, and put together again, byte
//! for byte. Of tables and indexes, streams compress to three fifths of what pages do.
//!
//! A compressor sees bytes; PostgreSQL's pages are tables. What can be foretold is left out (checksums, offsets, lengths,
//! most of a tuple's header), numbers are written as differences and by byte planes, rows and keys in order. The layout
//! is drawn in `docs/format.md`, and what each step is worth stands in `docs/decisions/0007-page-transform.md`.
//!
//! Any bytes come back exactly. A page is taken apart only if its shape checks out (see `anatomy`), and stays
//! as it is otherwise: an unknown access method, a torn page or a later PostgreSQL costs size, never bytes.
//! Nothing here proves what comes back, least of all the checksums, which are computed anew: compare a hash of
//! the plain pages.

mod anatomy;
mod choose;
mod columns;
mod heap;
mod index;
mod infer;
mod pages;
mod places;
mod planes;
mod pointers;
mod rows;
mod schema;
mod sparse;
mod streams;
mod words;

use anatomy::Item;
use pages::State;
use schema::{SCHEMAS, Schema};
use streams::{Source, Streams};
use words::{Class, Plan};

use crate::page::{page_checksum, page_checksums, stored_checksum};
use crate::{BlockNumber, PAGE_SIZE};

/// The number of this transform in the repository's format.
pub const PAGE_TRANSFORM: u8 = 1;

/// Rows from which a choice is good for a relation's other frames.
const ROWS_OF_CHOICE: usize = 128;

/// Bytes that are not those of pages taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TransformDamage(&'static str);

/// How a relation's rows are written: chosen for one frame, good for the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    plans: [Plan; 4],
    schemas: Vec<Schema>,
    /// Rows it was made from.
    rows: usize,
}

impl Choice {
    fn write(&self, out: &mut Vec<u8>) {
        self.plans.iter().for_each(|plan| plan.write(out));
        out.push(self.schemas.len() as u8);
        self.schemas.iter().for_each(|schema| schema.write(out));
    }

    /// The choice at the beginning of `bytes`, which then begin behind it.
    fn read(bytes: &mut &[u8]) -> Result<Self, TransformDamage> {
        const IMPOSSIBLE: TransformDamage = TransformDamage("there are too many schemas");
        let mut plans = [Plan::NONE; 4];
        for (plan, class) in plans.iter_mut().zip(Class::ALL) {
            *plan = Plan::read(bytes, class)?;
        }
        let (count, rest) = bytes.split_first().ok_or(IMPOSSIBLE)?;
        *bytes = rest;
        if usize::from(*count) > SCHEMAS {
            return Err(IMPOSSIBLE);
        }
        let schemas = (0..*count)
            .map(|_| Schema::read(bytes))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            plans,
            schemas,
            rows: 0,
        })
    }
}

/// Takes pages apart and puts them together; keep one per worker, it uses its memory again.
pub struct PageTransform {
    streams: Streams,
    items: Vec<Item>,
    rows: Vec<u8>,
}

impl Default for PageTransform {
    fn default() -> Self {
        Self::new()
    }
}

impl PageTransform {
    /// A transform without memory yet; at frames of 1 MiB it takes about 2 MiB.
    #[must_use]
    pub fn new() -> Self {
        Self {
            streams: Streams::new(),
            items: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Replaces `out` by the streams of `pages`, each at its relation-wide block of `blocks`. Returns the choice made, to be
    /// handed in with the next pages of the same relation. Returns `None`, and anything in `out`, where the
    /// pages are better stored as they are: none could be taken apart, or nothing would be saved.
    ///
    /// # Panics
    ///
    /// When `pages` are not as many as `blocks`, or not whole.
    pub fn take_apart(
        &mut self,
        pages: &[u8],
        blocks: &[BlockNumber],
        known: Option<&Choice>,
        out: &mut Vec<u8>,
    ) -> Option<Choice> {
        let length = pages.len();
        let (pages, rest) = pages.as_chunks::<PAGE_SIZE>();
        assert!(
            rest.is_empty() && pages.len() == blocks.len(),
            "{length} bytes are not {} pages",
            blocks.len()
        );
        let choice = match known {
            Some(choice)
                if choice.rows >= ROWS_OF_CHOICE && choose::stretch(blocks) == blocks.len() =>
            {
                choice.clone()
            }
            _ => choose::choose(pages, blocks, known, &mut self.items),
        };
        self.streams.begin(&choice.schemas);
        let mut apart = 0;
        let mut state = State::new(&choice);
        for (pages, blocks) in pages.chunks(2).zip(blocks.chunks(2)) {
            // First of all, since it reads pages from beginning to end, which is the quickest way into the caches.
            let given = |page: usize| {
                pages
                    .get(page)
                    .is_some_and(|page| stored_checksum(page) != 0)
            };
            let checksums = checksums(pages, blocks, [given(0), given(1)]);
            for ((page, block), checksum) in pages.iter().zip(blocks).zip(checksums) {
                let (items, streams) = (&mut self.items, &mut self.streams);
                apart += usize::from(state.put_page(page, *block, checksum, items, streams));
            }
        }
        if apart == 0 {
            return None;
        }
        out.clear();
        choice.write(out);
        self.streams.write(out);
        (out.len() < length).then_some(choice)
    }

    /// Replaces `plain` by the pages that were taken apart, as many as there are `blocks`.
    ///
    /// # Errors
    /// The bytes are not those of as many pages. That they are those of other pages is not noticed.
    pub fn put_together(
        &mut self,
        apart: &[u8],
        blocks: &[BlockNumber],
        plain: &mut Vec<u8>,
    ) -> Result<(), TransformDamage> {
        let mut bytes = apart;
        let choice = Choice::read(&mut bytes)?;
        let mut source = Source::new(bytes, &choice.schemas, &mut self.rows)?;
        let mut state = State::new(&choice);
        plain.resize(blocks.len() * PAGE_SIZE, 0);
        let (pages, _) = plain.as_chunks_mut::<PAGE_SIZE>();
        for (pages, blocks) in pages.chunks_mut(2).zip(blocks.chunks(2)) {
            let mut missing = [false; 2];
            for ((page, block), missing) in pages.iter_mut().zip(blocks).zip(&mut missing) {
                *missing = state.take_page(page, *block, &mut self.items, &mut source)?;
            }
            let checksums = checksums(pages, blocks, missing);
            let pages = pages.iter_mut().zip(checksums).zip(missing);
            for ((page, checksum), _) in pages.filter(|(_, missing)| *missing) {
                page[8..10].copy_from_slice(&checksum.to_le_bytes());
            }
        }
        source.finish()
    }
}

/// The checksums of two pages, or of one; 0 for those that are not `wanted`.
fn checksums(pages: &[[u8; PAGE_SIZE]], blocks: &[BlockNumber], wanted: [bool; 2]) -> [u16; 2] {
    match (pages, blocks, wanted) {
        ([one, two], [first, second], [true, true]) => {
            page_checksums([one, two], [*first, *second])
        }
        ([one, ..], [first, ..], [true, _]) => [page_checksum(one, *first), 0],
        ([_, two], [_, second], [_, true]) => [0, page_checksum(two, *second)],
        _ => [0; 2],
    }
}

#[cfg(test)]
#[path = "page_transform_tests.rs"]
mod tests;
