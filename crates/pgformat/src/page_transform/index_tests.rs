//! Index tuples and posting lists as they are written.

use super::hand_made::{apart, index_tuple, page_of, tid, together};

const BTREE: [u8; 16] = [0; 16];

/// A tuple with a key of eight bytes and a posting list of these places, to which two bytes of something are aligned.
fn with_posting_list(key: u8, places: &[(u32, u16)]) -> Vec<u8> {
    let mut rest = vec![key; 8];
    let list = places
        .iter()
        .flat_map(|(block, number)| tid(*block, *number));
    rest.extend(list);
    rest.extend([0xAA, 0xBB]);
    index_tuple(16, 0x2000 | places.len() as u16, 0x2000, &rest)
}

#[test]
fn where_a_tuple_points_follows_from_the_one_before() {
    let places = [(10, 1), (12, 2), (312, 3), (70_312, 4), (70_312, 5)];
    let tuples = [
        index_tuple(300, 7, 0, &[1; 8]),
        index_tuple(300, 8, 0, &[2; 8]),
        with_posting_list(3, &places),
        index_tuple(302, 1, 0, &[4; 8]),
    ];
    let frame = apart(&[page_of(&tuples, &BTREE)]);
    assert_eq!(frame.rows("page"), [1 << 6 | 3]);
    // A place that is given, the next item, a posting list, a block near that of the tuple before the list.
    assert_eq!(frame.rows("index tuple"), [2, 0, 0x20 | 3, 1]);
    assert_eq!(frame.rows("place"), [0x2C, 1, 0, 0, 7, 0]);
    assert_eq!(frame.rows("place, near"), [2, 1, 0]);
    // Where the list begins, and how many places it has.
    assert_eq!(frame.rows("posting list"), [16, 0, 5, 0x20]);
    // A block, two farther, farther than a byte can tell, farther than two can, the same.
    assert_eq!(frame.rows("posting, near"), [255, 2, 254, 255, 0]);
    assert_eq!(frame.rows("posting, far"), [0x2C, 1]);
    let blocks = [10_u32.to_le_bytes(), 70_312_u32.to_le_bytes()];
    assert_eq!(frame.rows("posting, block"), blocks.as_flattened());
    assert_eq!(
        frame.rows("posting, offset"),
        [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    );
    assert_eq!(frame.rows("behind the list"), [0xAA, 0xBB]);
    let word = frame
        .streams
        .iter()
        .find(|stream| stream.name == "words of keys");
    assert_eq!(
        word.expect("words").rows.len() + frame.rows("rest of keys").len(),
        32
    );
}

#[test]
fn the_last_differences_of_one_and_two_bytes() {
    let tuples = [with_posting_list(
        1,
        &[
            (0, 1),
            (253, 1),
            (253 + 254, 1),
            (507 + 0xFFFF, 1),
            (66_042 + 0x1_0000, 1),
        ],
    )];
    let frame = apart(&[page_of(&tuples, &BTREE)]);
    assert_eq!(frame.rows("posting, near"), [255, 253, 254, 254, 255]);
    assert_eq!(frame.rows("posting, far"), [254, 0, 0xFF, 0xFF]);
    // Backwards is far.
    let tuples = [with_posting_list(
        1,
        &[(9, 1), (8, 1), (u32::MAX, 1), (0, 1), (1, 1)],
    )];
    let frame = apart(&[page_of(&tuples, &BTREE)]);
    assert_eq!(frame.rows("posting, near"), [255, 255, 255, 1, 1]);
}

#[test]
fn scattered_tuples_say_where_they_point_unless_it_is_the_next_item() {
    let tuples = [
        index_tuple(5_000, 7, 0, &[1; 8]),
        index_tuple(300, 8, 0, &[2; 8]),
        index_tuple(300, 9, 0, &[3; 8]),
        index_tuple(90_000, 1, 0, &[4; 8]),
        index_tuple(40_000, 1, 0, &[5; 8]),
    ];
    let frame = apart(&[page_of(&tuples, &BTREE)]);
    assert_eq!(frame.rows("index tuple"), [2, 2, 0, 2, 2]);
    assert_eq!(frame.rows("place").len(), 4 * 6);
}

#[test]
fn keys_of_variable_length_share_what_they_begin_with() {
    const VARIABLE: u16 = 0x4000;
    let tuples = [
        index_tuple(0, 1, VARIABLE, b"\x0Dapple\0\0"),
        index_tuple(0, 2, VARIABLE, b"\x0Dapply\0\0"),
        index_tuple(0, 3, VARIABLE, b"\x13applying"),
    ];
    let frame = apart(&[page_of(&tuples, &BTREE)]);
    // From block 0, item 0 on each is the next.
    assert_eq!(frame.rows("index tuple"), [0x40; 3]);
    assert_eq!(frame.rows("key, first byte"), [0x0D, 0x0D, 0x13]);
    assert_eq!(frame.rows("key, shared"), [0, 4, 5]);
    assert_eq!(frame.rows("rest of keys"), b"apple\0\0y\0\0ing");
}

#[test]
fn ascending_keys_are_differences() {
    let tuples: Vec<_> = (0..20_u16)
        .map(|number| {
            index_tuple(
                0,
                number + 1,
                0,
                &(1_000_000 + u64::from(number) * 3).to_le_bytes(),
            )
        })
        .collect();
    let frame = apart(&[page_of(&tuples, &BTREE)]);
    // Of the four classes, keys without values of variable length are the third: one word, as a difference.
    assert_eq!(frame.plans, [vec![], vec![], vec![1], vec![]]);
    let words = frame.rows("words of keys");
    assert_eq!(words[..8], 2_000_000_u64.to_le_bytes());
    // The sign of a difference is in its lowest bit.
    assert!(words[8..].chunks(8).all(|word| word == 6_u64.to_le_bytes()));
    assert!(frame.rows("rest of keys").is_empty());
}

#[test]
fn what_only_looks_like_a_posting_list_comes_back() {
    for (block, number) in [
        // It would begin in the header, behind the tuple, end behind it.
        (7, 0x2001),
        (4_000, 0x2001),
        (u32::MAX, 0x2001),
        (16, 0x2FFF),
        // It is a pivot tuple: another status.
        (16, 0x1001),
        (16, 0x3001),
    ] {
        let tuple = index_tuple(block, number, 0x2000, &[9; 40]);
        let frame = apart(&[page_of(&[tuple.clone(), tuple], &BTREE)]);
        assert_eq!(frame.rows("posting list"), [], "{block} {number:#x}");
    }
}

#[test]
fn impossible_tuples_are_refused() {
    let places = [(10, 1), (11, 1), (12, 1), (13, 1), (14, 1)];
    let tuples = [with_posting_list(1, &places), index_tuple(0, 1, 0, &[2; 8])];
    let good = apart(&[page_of(&tuples, &BTREE)]);
    let impossible = Err("an index tuple is impossible".to_owned());
    for posting in [
        [7, 0, 1, 0x20],
        [49, 0, 0, 0x20],
        [0xFF, 0xFF, 0, 0x20],
        [16, 0, 6, 0x20],
    ] {
        let mut bad = good.clone();
        bad.set("posting list", &posting);
        assert_eq!(together(&bad, 1), impossible, "{posting:?}");
    }
    let mut bad = good.clone();
    bad.set("regular length", &[48, 0, 7, 0]);
    assert_eq!(together(&bad, 1), impossible);

    let keys = [
        index_tuple(0, 1, 0x4000, b"\x05ab"),
        index_tuple(0, 2, 0x4000, b"\x05abcdef"),
    ];
    let good = apart(&[page_of(&keys, &BTREE)]);
    for shared in [[1, 2], [3, 2], [0, 3]] {
        let mut bad = good.clone();
        bad.set("key, shared", &shared);
        assert_eq!(together(&bad, 1), impossible, "{shared:?}");
    }
}
