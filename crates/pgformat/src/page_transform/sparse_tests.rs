//! What is mostly zeros as it is written.

use super::hand_made::{apart, page, together};
use crate::PAGE_SIZE;

/// A page without items: what is on it lies between the bounds, as in a map of free space.
fn map(filled: &[usize]) -> [u8; PAGE_SIZE] {
    let mut page = page(&[], &[]);
    for at in filled {
        page[24 + at] = 7;
    }
    page
}

#[test]
fn only_cells_with_something_in_them_are_written() {
    // 8,168 bytes: 127 cells of 64 bytes, and 40 bytes.
    let frame = apart(&[map(&[0, 63, 128, 512, 8167])]);
    assert_eq!(frame.rows("page"), [1 << 3 | 2]);
    let mut cells = [0; 16];
    cells[..2].copy_from_slice(&[0b101, 1]);
    cells[15] = 0x80;
    assert_eq!(frame.rows("cells"), cells);
    let hole = frame.rows("hole");
    assert_eq!(hole.len(), 3 * 64 + 40);
    for (at, byte) in hole.iter().enumerate() {
        let expected = [0, 63, 64, 128, 3 * 64 + 39].contains(&at);
        assert_eq!(*byte != 0, expected, "{at}");
    }
}

#[test]
fn every_cell_comes_back() {
    for cell in 0..128 {
        apart(&[map(&[cell * 64]), map(&[cell * 64 + 39])]);
    }
    apart(&[map(&(0..8168).collect::<Vec<_>>()), map(&[]), map(&[])]);
}

#[test]
fn pages_of_no_known_shape_are_sparse_too() {
    let mut raw = [0; PAGE_SIZE];
    raw[4096] = 1;
    let frame = apart(&[raw, map(&[0])]);
    assert_eq!(frame.rows("page"), [1, 1 << 3 | 2]);
    assert_eq!(
        frame.rows("cells")[..16],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(frame.rows("raw pages").len(), 64);
    assert_eq!(frame.rows("header").len(), 20);
}

#[test]
fn missing_and_surplus_cells_are_refused() {
    let good = apart(&[map(&[0, 8167])]);
    let mut fewer = good.clone();
    fewer.set("hole", &good.rows("hole")[1..]);
    assert_eq!(
        together(&fewer, 1),
        Err("a stream ends too early".to_owned())
    );
    let mut more = good.clone();
    more.set("hole", &[good.rows("hole"), &[0]].concat());
    let surplus = Err("a stream is longer than the pages need".to_owned());
    assert_eq!(together(&more, 1), surplus);
}
