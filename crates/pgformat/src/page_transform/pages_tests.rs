//! Page headers and special spaces as they are written, and which pages are taken apart.

use super::hand_made::{NORMAL, apart, page, page_of, together};
use super::made_pages::{Page, set_checksum};
use crate::BlockNumber;

fn with_lsn(high: u32, low: u32, prune_xid: u32) -> Page {
    let mut page = page_of(&[vec![1; 16]], &[]);
    page[..4].copy_from_slice(&high.to_le_bytes());
    page[4..8].copy_from_slice(&low.to_le_bytes());
    page[20..24].copy_from_slice(&prune_xid.to_le_bytes());
    page
}

#[test]
fn lsn_and_xid_are_differences_to_the_page_before() {
    let pages = [
        with_lsn(3, 0x100, 700),
        with_lsn(3, 0xFF, 703),
        with_lsn(4, 0x2FF, 0),
    ];
    let frame = apart(&pages);
    let rows: Vec<_> = frame.rows("header").chunks(20).collect();
    // Twice the distance, less one where it is backwards.
    let lsns = [2 * 0x3_0000_0100_u64, 1, 2 * 0x1_0000_0200];
    let xids = [1400_u32, 6, 1405];
    for ((row, lsn), xid) in rows.iter().zip(lsns).zip(xids) {
        assert_eq!(row[..8], lsn.to_le_bytes());
        assert_eq!(row[16..], xid.to_le_bytes());
        // No checksum; no flags; pd_lower and pd_special.
        assert_eq!(row[8..16], [0, 0, 0, 0, 28, 0, 0, 0x20]);
    }
}

#[test]
fn a_right_checksum_is_not_written_and_a_wrong_one_is() {
    let (mut right, mut wrong, mut elsewhere) =
        (with_lsn(1, 1, 1), with_lsn(1, 1, 1), with_lsn(1, 1, 1));
    set_checksum(&mut right, BlockNumber(10));
    set_checksum(&mut wrong, BlockNumber(11));
    wrong[8] ^= 1;
    set_checksum(&mut elsewhere, BlockNumber(11));
    let frame = apart(&[right, wrong, elsewhere]);
    let kind = 1 << 7 | 1 << 6 | 4;
    assert_eq!(frame.rows("page"), [1 << 5 | kind, kind, kind]);
    let checksums: Vec<_> = frame
        .rows("header")
        .chunks(20)
        .map(|row| &row[8..10])
        .collect();
    assert_eq!(checksums, [&[0, 0], &wrong[8..10], &elsewhere[8..10]]);
}

#[test]
fn siblings_of_a_btree_page_are_distances() {
    let special = |left: u32, right: u32, id: u16| {
        let mut special = vec![0; 16];
        special[..4].copy_from_slice(&left.to_le_bytes());
        special[4..8].copy_from_slice(&right.to_le_bytes());
        special[14..].copy_from_slice(&id.to_le_bytes());
        page_of(&[vec![1; 16]], &special)
    };
    let pages = [
        special(9, 11, 0),
        special(0, 20, 0xFF7F),
        special(9, 11, 0xFF80),
        special(9, 11, 0xFF82),
    ];
    let frame = apart(&pages);
    let distances: Vec<_> = frame
        .rows("special space of 16")
        .chunks(16)
        .map(|row| &row[..8])
        .collect();
    let minus_eleven = (-11_i32).to_le_bytes();
    assert_eq!(distances[0], [0xFF, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0]);
    assert_eq!(distances[1], [minus_eleven, [9, 0, 0, 0]].concat());
    // GiST and hash pages have other things there.
    assert_eq!(distances[2], [9, 0, 0, 0, 11, 0, 0, 0]);
    assert_eq!(distances[3], [9, 0, 0, 0, 11, 0, 0, 0]);
    let frame = apart(&[page_of(&[vec![1; 16]], &[1, 2, 3, 4, 5, 6, 7, 8])]);
    assert_eq!(frame.rows("special space, other"), [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn what_lies_behind_items_is_written_where_there_is_something() {
    let mut pages = [page_of(&[vec![1; 15], vec![2; 12], vec![3; 8]], &[]); 2];
    assert_eq!(apart(&pages).rows("padding"), []);
    pages[1][8192 - 1] = 0xAA;
    let frame = apart(&pages);
    assert_eq!(frame.rows("page"), [1 << 6 | 4, 1 << 6 | 1 << 4 | 4]);
    assert_eq!(frame.rows("padding"), [0xAA, 0, 0, 0, 0]);
}

/// Items must lie side by side, without gap or overlap, from `pd_upper` to `pd_special`; otherwise something would be
/// left out or be written twice.
#[test]
fn pages_with_gaps_and_overlaps_stay_as_they_are() {
    let fine = page(&[(8160, NORMAL, 32), (8128, NORMAL, 32)], &[]);
    let harmed = |harm: &dyn Fn(&mut Page)| {
        let mut page = fine;
        harm(&mut page);
        page
    };
    let set = |page: &mut Page, at: usize, value: u16| {
        page[at..at + 2].copy_from_slice(&value.to_le_bytes())
    };
    let pages = [
        page(&[(8160, NORMAL, 32), (8120, NORMAL, 32)], &[]),
        page(&[(8160, NORMAL, 32), (8136, NORMAL, 32)], &[]),
        page(&[(8160, NORMAL, 32), (8160, NORMAL, 32)], &[]),
        page(&[(8164, NORMAL, 28)], &[]),
        page(&[(8160, NORMAL, 40)], &[]),
        harmed(&|page| set(page, 12, 34)),
        harmed(&|page| set(page, 14, 8120)),
        harmed(&|page| set(page, 14, 8136)),
        harmed(&|page| set(page, 14, 20)),
        harmed(&|page| set(page, 12, 20)),
        harmed(&|page| set(page, 16, 8184)),
        harmed(&|page| set(page, 16, 8200)),
        harmed(&|page| set(page, 18, 0x2005)),
        harmed(&|page| set(page, 18, 0x4004)),
    ];
    for (number, page) in pages.into_iter().enumerate() {
        assert_eq!(apart(&[fine, page]).rows("page")[1], 1, "page {number}");
    }
    let frame = apart(&[fine, [0; 8192]]);
    assert_eq!(frame.rows("page"), [1 << 7 | 1 << 6 | 4, 0]);
}

#[test]
fn impossible_bounds_are_refused() {
    let good = apart(&[page(&[(8160, NORMAL, 32), (8128, NORMAL, 32)], &[])]);
    for (lower, special) in [
        (23, 8192),
        (8193, 8192),
        (24, 8193),
        (0xFFFF, 0xFFFF),
        (8160, 8184_u16),
    ] {
        let mut bad = good.clone();
        let mut row = good.rows("header").to_vec();
        row[12..14].copy_from_slice(&u16::to_le_bytes(lower));
        row[14..16].copy_from_slice(&special.to_le_bytes());
        bad.set("header", &row);
        assert!(together(&bad, 1).is_err(), "{lower} {special}");
    }
    for kind in [5, 6, 7, 0xFF] {
        let mut bad = good.clone();
        bad.set("page", &[kind]);
        let unknown = Err("a page is of no known kind".to_owned());
        assert_eq!(together(&bad, 1), unknown);
    }
    let early = Err("a stream ends too early".to_owned());
    assert_eq!(together(&good, 2), early);
    assert!(together(&good, 0).is_err());
}
