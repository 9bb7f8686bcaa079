//! Line pointers as they are written.

use super::hand_made::{DEAD, NORMAL, REDIRECT, UNUSED, apart, page, page_of, together};

#[test]
fn most_offsets_follow_from_lengths() {
    let pointers = [
        (8160, NORMAL, 32),
        (8128, NORMAL, 32),
        (0, UNUSED, 0),
        (1, REDIRECT, 0),
        (8064, NORMAL, 30),
        (8096, NORMAL, 30),
        (8032, NORMAL, 30),
        (0, DEAD, 0),
    ];
    let frame = apart(&[page(&pointers, &[])]);
    assert_eq!(frame.rows("page"), [4]);
    assert_eq!(
        frame.rows("line pointer"),
        [
            // In the two lowest bits the flags: NORMAL; right below the special space, length given.
            0b01_00_01, // As long, right below.
            0b00_00_01, // Nothing; nothing at an offset that is given.
            0b10_00_00, 0b10_10_10,
            // Offset and length are given: it leaves room for the next.
            0b01_10_01, // In that room, right below the one before the gap.
            0b00_00_01, // Right below the last one whose offset was given.
            0b00_01_01, 0b10_00_11,
        ]
    );
    assert_eq!(frame.rows("its offset"), [1, 0, 0x80, 0x1F]);
    assert_eq!(frame.rows("its length"), [32, 0, 30, 0]);
    assert!(frame.rows("regular length").is_empty());
}

#[test]
fn a_length_is_told_apart_from_that_on_the_page_before() {
    let gap = [(8160, NORMAL, 32), (0, UNUSED, 0)];
    let frame = apart(&[page(&gap, &[]), page(&gap, &[])]);
    assert_eq!(
        frame.rows("line pointer"),
        [0b01_00_01, 0b10_00_00, 1, 0b10_00_00]
    );
    assert_eq!(frame.rows("its length"), [32, 0]);
}

#[test]
fn regular_pages_have_lengths_alone() {
    let items = [vec![1; 32], vec![2; 30], vec![3; 300]];
    let frame = apart(&[page_of(&items, &[])]);
    assert_eq!(frame.rows("page"), [1 << 6 | 4]);
    assert_eq!(frame.rows("regular length"), [32, 0, 30, 0, 44, 1]);
    assert!(frame.rows("line pointer").is_empty());

    let items = [vec![1; 30], vec![2; 30], vec![3; 30]];
    let frame = apart(&[page_of(&items, &[])]);
    assert_eq!(frame.rows("page"), [1 << 7 | 1 << 6 | 4]);
    assert_eq!(frame.rows("regular length"), [30, 0]);
}

#[test]
fn items_outside_their_page_are_refused() {
    let outside = Err("an item lies outside its page".to_owned());
    let good = apart(&[page(
        &[(8064, NORMAL, 96), (8160, NORMAL, 32), (0, DEAD, 0)],
        &[],
    )]);
    assert_eq!(good.rows("its offset"), 8064_u16.to_le_bytes());
    for offset in [8161_u16, 8192, 0xFFFF] {
        let mut bad = good.clone();
        bad.set("its offset", &offset.to_le_bytes());
        assert_eq!(together(&bad, 1), outside);
    }
    for length in [8161_u16, 8192, 0xFFFF] {
        let mut bad = good.clone();
        bad.set(
            "its length",
            &[length.to_le_bytes(), length.to_le_bytes()].concat(),
        );
        assert_eq!(together(&bad, 1), outside);
    }
    let good = apart(&[page_of(&[vec![1; 32], vec![2; 30]], &[])]);
    for length in [8161_u16, 0xFFFF] {
        let mut bad = good.clone();
        bad.set("regular length", &[length.to_le_bytes(), [32, 0]].concat());
        assert_eq!(together(&bad, 1), outside);
    }
}
