//! Heap tuples as they are written.

use super::hand_made::{apart, heap_tuple, page_of, tid, together};

/// Three tuples of one column, the second updated to the fifth of the next page.
fn tuples() -> [Vec<u8>; 3] {
    let mut tuples = [1, 2, 3].map(|number| heap_tuple(10, number, 1, &[number as u8; 8]));
    tuples[1][..4].copy_from_slice(&701_u32.to_le_bytes());
    tuples[1][4..8].copy_from_slice(&702_u32.to_le_bytes());
    tuples[1][8] = 1;
    tuples[1][12..18].copy_from_slice(&tid(11, 5));
    tuples[2][..12].copy_from_slice(&[0xBE, 2, 0, 0, 0xBE, 2, 0, 0, 1, 0, 0, 0]);
    tuples
}

#[test]
fn what_is_as_in_the_tuple_before_is_not_written() {
    let frame = apart(&[page_of(&tuples(), &[])]);
    assert_eq!(frame.rows("page"), [1 << 7 | 1 << 6 | 2]);
    assert_eq!(
        frame.rows("heap tuple"),
        [
            // xmin, infomasks and prefix are given.
            0b0110_0010,
            // xmin is near, xmax given, so are cid and ctid.
            0b1001_1101,
            // xmin is near, xmax the same.
            0b0000_0101,
        ]
    );
    assert_eq!(frame.rows("xmin"), 700_u32.to_le_bytes());
    assert_eq!(frame.rows("xmin, near"), [1, 1]);
    assert_eq!(frame.rows("xmax"), 702_u32.to_le_bytes());
    assert_eq!(frame.rows("cid"), 1_u32.to_le_bytes());
    assert_eq!(frame.rows("ctid"), [1, 0, 0, 0, 5, 0]);
    assert_eq!(frame.rows("infomasks"), [1, 0, 2, 9]);
    assert_eq!(frame.rows("prefix"), [24, 0]);
    // Three rows tell too little of columns.
    assert_eq!(frame.rows("schema of the row"), [0; 3]);
    let rows = [[1; 8], [2; 8], [3; 8]];
    assert_eq!(frame.rows("rest of rows"), rows.as_flattened());
}

#[test]
fn transactions_before_are_near_as_well() {
    let mut tuples = tuples();
    tuples[1][..4].copy_from_slice(&(700_u32 - 128).to_le_bytes());
    tuples[2][..4].copy_from_slice(&(700_u32 - 128 + 127).to_le_bytes());
    let frame = apart(&[page_of(&tuples, &[])]);
    assert_eq!(frame.rows("xmin, near"), [0x80, 0x7F]);
    tuples[2][..4].copy_from_slice(&(700_u32 - 128 + 128).to_le_bytes());
    let frame = apart(&[page_of(&tuples, &[])]);
    assert_eq!(frame.rows("xmin, near"), [0x80]);
    assert_eq!(frame.rows("xmin").len(), 8);
}

/// A null bitmap of one byte stands for eight columns. Damage can claim more.
#[test]
fn a_null_bitmap_that_is_too_short_comes_back() {
    for columns in [9_u16, 63, 64, 65, 100, 2047] {
        let mut tuples = tuples();
        for tuple in &mut tuples {
            tuple[18..20].copy_from_slice(&columns.to_le_bytes());
            tuple[20] |= 1;
        }
        let frame = apart(&[page_of(&tuples, &[])]);
        assert_eq!(frame.rows("schema of the row"), [0; 3]);
    }
}

#[test]
fn tuples_shorter_than_their_header_are_refused() {
    let good = apart(&[page_of(&tuples(), &[])]);
    for (stream, rows) in [
        ("regular length", vec![22, 0]),
        ("prefix", vec![21, 0]),
        ("prefix", vec![23, 0]),
        ("regular length", vec![23, 0]),
    ] {
        let mut bad = good.clone();
        bad.set(stream, &rows);
        let damage = together(&bad, 1).expect_err("it is too short");
        assert_eq!(
            damage, "a heap tuple is shorter than its header",
            "{stream}"
        );
    }
}
