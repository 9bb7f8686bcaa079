//! Pages made by hand, byte by byte, and what stands in the streams of a frame of them.

use super::frame_layout::ApartFrame;
use super::made_pages::Page;
use crate::page_transform::PageTransform;
use crate::{BlockNumber, PAGE_SIZE};

/// `lp_flags`.
pub const UNUSED: u32 = 0;
pub const NORMAL: u32 = 1;
pub const REDIRECT: u32 = 2;
pub const DEAD: u32 = 3;

/// A page of these line pointers (offset, flags, length) over this special space; all items are zeros, and lie right above
/// one another.
pub fn page(pointers: &[(usize, u32, usize)], special: &[u8]) -> Page {
    let mut page = [0; PAGE_SIZE];
    let (lower, end) = (24 + pointers.len() * 4, PAGE_SIZE - special.len());
    let upper = pointers
        .iter()
        .filter(|(_, _, length)| *length > 0)
        .map(|(offset, _, _)| *offset)
        .min()
        .unwrap_or(end);
    for (at, value) in [(12, lower), (14, upper), (16, end), (18, PAGE_SIZE | 4)] {
        page[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
    }
    for (place, (offset, flags, length)) in page[24..].chunks_exact_mut(4).zip(pointers) {
        let pointer = *offset as u32 | flags << 15 | (*length as u32) << 17;
        place.copy_from_slice(&pointer.to_le_bytes());
    }
    page[end..].copy_from_slice(special);
    page
}

/// A page of these items, each right below the one before.
pub fn page_of(items: &[Vec<u8>], special: &[u8]) -> Page {
    let mut end = PAGE_SIZE - special.len();
    let pointer = |item: &Vec<u8>| {
        end -= item.len().next_multiple_of(8);
        (end, NORMAL, item.len())
    };
    let pointers: Vec<_> = items.iter().map(pointer).collect();
    let mut page = page(&pointers, special);
    for ((offset, _, length), item) in pointers.iter().zip(items) {
        page[*offset..offset + length].copy_from_slice(item);
    }
    page
}

/// A heap tuple without nulls: 24 bytes of header, made by one command of transaction 700, and its row.
pub fn heap_tuple(block: u32, number: u16, columns: u16, row: &[u8]) -> Vec<u8> {
    let mut tuple = vec![0; 24];
    tuple[..4].copy_from_slice(&700_u32.to_le_bytes());
    tuple[12..18].copy_from_slice(&tid(block, number));
    tuple[18..20].copy_from_slice(&columns.to_le_bytes());
    // HEAP_HASVARWIDTH, HEAP_XMIN_COMMITTED, HEAP_XMAX_INVALID.
    tuple[20..22].copy_from_slice(&0x0902_u16.to_le_bytes());
    tuple[22] = 24;
    tuple.extend_from_slice(row);
    tuple
}

/// An index tuple that points there; `flags` are those of `t_info`.
pub fn index_tuple(block: u32, number: u16, flags: u16, key: &[u8]) -> Vec<u8> {
    let mut tuple = tid(block, number).to_vec();
    tuple.extend_from_slice(&(flags | (8 + key.len()) as u16).to_le_bytes());
    tuple.extend_from_slice(key);
    tuple
}

/// An `ItemPointerData`.
pub fn tid(block: u32, number: u16) -> [u8; 6] {
    let ([a, b, c, d], [e, f]) = (block.rotate_left(16).to_le_bytes(), number.to_le_bytes());
    [a, b, c, d, e, f]
}

/// The frame of these pages, which come back from it; they begin at block 10.
pub fn apart(pages: &[Page]) -> ApartFrame {
    let blocks: Vec<_> = (10..).map(BlockNumber).take(pages.len()).collect();
    let mut transform = PageTransform::new();
    let (mut bytes, mut plain) = (Vec::new(), Vec::new());
    transform
        .take_apart(pages.as_flattened(), &blocks, None, &mut bytes)
        .expect("pages that can be taken apart");
    transform
        .put_together(&bytes, &blocks, &mut plain)
        .expect("pages");
    assert!(plain == pages.as_flattened(), "they are other pages");
    let frame = ApartFrame::read(&bytes).expect("the layout");
    assert_eq!(frame.write(), bytes, "the layout, written again");
    frame
}

/// What comes of a frame that was meddled with, of so many pages from block 10 on.
pub fn together(frame: &ApartFrame, pages: u32) -> Result<Vec<u8>, String> {
    let blocks: Vec<_> = (10..10 + pages).map(BlockNumber).collect();
    let mut plain = Vec::new();
    PageTransform::new()
        .put_together(&frame.write(), &blocks, &mut plain)
        .map(|()| plain)
        .map_err(|damage| damage.to_string())
}
