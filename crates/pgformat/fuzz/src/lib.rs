//! What is asked of the page transform with any bytes: the fuzzer's two targets, which the tests repeat over the stored
//! corpus.

use leeward_pgformat::page_transform::PageTransform;
use leeward_pgformat::{BlockNumber, PAGE_SIZE};

/// Bytes of what is read first, before the pages, or before what may be pages taken apart.
pub const HEAD: usize = 6;

struct Input<'a> {
    first: u32,
    /// By how much the next block lies behind.
    step: u32,
    /// Each target has its own use for it.
    number: usize,
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn read(input: &'a [u8]) -> Option<Self> {
        let ([a, b, c, d, step, number], rest) = input.split_first_chunk::<HEAD>()?;
        Some(Self {
            first: u32::from_le_bytes([*a, *b, *c, *d]),
            step: u32::from(*step),
            number: usize::from(*number),
            rest,
        })
    }

    fn blocks(&self, count: usize) -> Vec<BlockNumber> {
        let block = |index| BlockNumber(self.first.wrapping_add(self.step.wrapping_mul(index)));
        (0..count as u32).map(block).collect()
    }
}

/// Any pages, the last one filled up with zeros, come back: a frame of some of them, and one of the others, which is written
/// as was chosen for the first.
pub fn encode(input: &[u8]) {
    let Some(input) = Input::read(input) else {
        return;
    };
    let mut pages = input.rest.to_vec();
    pages.resize(pages.len().next_multiple_of(PAGE_SIZE), 0);
    let count = pages.len() / PAGE_SIZE;
    let blocks = input.blocks(count);
    let of_first = input.number.min(count);
    let mut transform = PageTransform::new();
    let (mut apart, mut plain) = (Vec::new(), Vec::new());
    let mut known = None;
    for range in [0..of_first, of_first..count] {
        let blocks = &blocks[range.clone()];
        let pages = &pages[range.start * PAGE_SIZE..range.end * PAGE_SIZE];
        let Some(choice) = transform.take_apart(pages, blocks, known.as_ref(), &mut apart) else {
            continue;
        };
        assert!(apart.len() < pages.len(), "nothing is saved");
        let result = transform.put_together(&apart, blocks, &mut plain);
        assert_eq!(result, Ok(()));
        assert!(plain == pages, "other pages came back");
        known = Some(choice);
    }
}

/// Any bytes are the pages of a frame, which come back like any others, or are refused.
pub fn decode(input: &[u8]) {
    let Some(input) = Input::read(input) else {
        return;
    };
    let blocks = input.blocks(input.number % 33);
    let mut transform = PageTransform::new();
    let mut pages = Vec::new();
    let result = transform.put_together(input.rest, &blocks, &mut pages);
    assert!(pages.len() <= blocks.len() * PAGE_SIZE);
    if result.is_err() {
        return;
    }
    assert_eq!(pages.len(), blocks.len() * PAGE_SIZE);
    let (mut apart, mut plain) = (Vec::new(), Vec::new());
    if transform
        .take_apart(&pages, &blocks, None, &mut apart)
        .is_some()
    {
        let result = transform.put_together(&apart, &blocks, &mut plain);
        assert_eq!(result, Ok(()));
        assert!(plain == pages, "other pages came back");
    }
}
