//! Columns read off rows, and rows written by column.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::frame_layout::ApartFrame;
use super::hand_made::{apart, heap_tuple, page_of, together};
use super::made_pages::{Habits, Table};
use super::made_values::Column;
use crate::BlockNumber;

// Numbers of shapes.
const VARYING: u8 = 0;
const BYTE: u8 = 2;
const HALF: u8 = 3;
const FOUR: u8 = 4;
const EIGHT: u8 = 5;
const UUID: u8 = 6;
const PAIR: u8 = 7;
const NAME: u8 = 8;

/// A few pages of a table with these columns.
fn table(columns: &[Column], nulls: u32) -> ApartFrame {
    let table = Table {
        columns: columns.to_vec(),
        nulls,
        grown: false,
        writers: 3,
        special: 0,
        habits: Habits::TIDY,
    };
    let mut rng = StdRng::seed_from_u64(7);
    let mut page = |number| {
        let relation = super::made_pages::Relation::Table(table.clone());
        relation.page(number, BlockNumber(10 + number as u32), &mut rng)
    };
    apart(&[0, 1, 2, 3].map(&mut page))
}

fn shapes(frame: &ApartFrame) -> Vec<Vec<u8>> {
    let shapes = |columns: &Vec<[u8; 2]>| columns.iter().map(|[shape, _]| *shape).collect();
    frame.schemas.iter().map(shapes).collect()
}

#[test]
fn columns_are_read_off_the_rows() {
    use Column::*;
    for (columns, expected) in [
        (
            vec![Int, Text(20), Time, Text(60)],
            vec![FOUR, VARYING, EIGHT, VARYING],
        ),
        (
            vec![Text(9), Time, Text(9), Decimal(2), Text(300)],
            vec![VARYING, EIGHT, VARYING, EIGHT, VARYING],
        ),
        (vec![Text(20), Uuid, Text(20)], vec![VARYING, UUID, VARYING]),
        (
            vec![Text(40), Interval, Text(40)],
            vec![VARYING, PAIR, VARYING],
        ),
        (vec![Text(5), Name, Text(20)], vec![VARYING, NAME, VARYING]),
        (
            vec![Text(20), Small, Text(20), Bool, Text(5)],
            vec![VARYING, HALF, VARYING, BYTE, VARYING],
        ),
        (
            vec![Toast, Int, Toast, Compressed(40), Time],
            vec![VARYING, FOUR, VARYING, VARYING, EIGHT],
        ),
    ] {
        for nulls in [0, 5] {
            let frame = table(&columns, nulls);
            assert_eq!(
                shapes(&frame),
                [&expected[..]],
                "{columns:?}, nulls {nulls}"
            );
            let schemas = frame.rows("schema of the row");
            assert!(schemas.iter().all(|schema| *schema == 1), "{columns:?}");
        }
    }
}

/// Rows of a number, a text and a number, the fourth without text.
fn rows(count: u16) -> Vec<Vec<u8>> {
    let tuple = |row: u16| {
        let text = &b"abcdefgh"[..usize::from(row % 8)];
        let mut values = (1000 + u32::from(row)).to_le_bytes().to_vec();
        if row != 3 {
            values.push((text.len() as u8 + 1) << 1 | 1);
            values.extend_from_slice(text);
        }
        values.resize(values.len().next_multiple_of(4), 0);
        values.extend_from_slice(&(u32::from(row).pow(2) * 1000).to_le_bytes());
        let mut tuple = heap_tuple(10, row + 1, 3, &values);
        if row == 3 {
            tuple[20] |= 1;
            tuple[23] = 0b101;
        }
        tuple
    };
    (0..count).map(tuple).collect()
}

#[test]
fn values_stand_one_behind_the_other() {
    let frame = apart(&[page_of(&rows(8), &[])]);
    // The first number is written as a difference, the second as it is.
    assert_eq!(frame.schemas, [[[FOUR, 1], [VARYING, 0], [FOUR, 0]]]);
    assert_eq!(frame.rows("schema of the row"), [1; 8]);
    assert!(frame.rows("rest of rows").is_empty());
    let numbers: Vec<_> = frame
        .streams
        .iter()
        .filter(|stream| stream.name == "numbers")
        .collect();
    let [first, last] = &numbers[..] else {
        panic!("{} streams of numbers", numbers.len())
    };
    assert_eq!(first.rows[..8], [0xD0, 7, 0, 0, 2, 0, 0, 0]);
    assert_eq!(
        last.rows[..12],
        [0, 0, 0, 0, 0xE8, 3, 0, 0, 0xA0, 0x0F, 0, 0]
    );
    // Their headers, of which the fourth row has none; and what they hold.
    assert_eq!(frame.rows("headers of values"), [3, 5, 7, 11, 13, 15, 17]);
    assert_eq!(frame.rows("varying values"), b"aababcdabcdeabcdefabcdefg");
}

#[test]
fn rows_of_another_shape_are_left_whole() {
    // In the last row something stands in the padding, where PostgreSQL writes zeros.
    let mut tuples = rows(82);
    let end = tuples[81].len();
    tuples[81][end - 5] = 1;
    let frame = apart(&[page_of(&tuples, &[])]);
    let mut schemas = [1; 82];
    schemas[81] = 0;
    assert_eq!(frame.rows("schema of the row"), schemas);
    // Its first word has a stream of its own.
    assert_eq!(frame.rows("rest of rows"), &tuples[81][32..]);
}

#[test]
fn decimals_and_their_exceptions_come_back() {
    let number = |row: u32| match row {
        20 => f64::NAN,
        30 => -0.0,
        40 => 1.0 / 3.0,
        _ => f64::from(row * row * 7919 % 397) / 100.0,
    };
    let text = |row: u16| [&[11][..], &[b'a' + row as u8 % 20; 4], &[0; 3]].concat();
    let tuples: Vec<_> = (0..100)
        .map(|row| {
            heap_tuple(
                10,
                row + 1,
                2,
                &[&text(row)[..], &number(row.into()).to_le_bytes()].concat(),
            )
        })
        .collect();
    let frame = apart(&[page_of(&tuples, &[])]);
    assert_eq!(frame.schemas, [[[VARYING, 0], [EIGHT, 3 + 2 * 2]]]);
    let numbers = frame.rows("numbers");
    assert_eq!(numbers[8..16], (2 * 376_u64).to_le_bytes());
    assert_eq!(numbers[20 * 8..21 * 8], u64::MAX.to_le_bytes());
    let exceptions = [f64::NAN, -0.0, 1.0 / 3.0].map(f64::to_le_bytes);
    assert_eq!(frame.rows("exceptions"), exceptions.as_flattened());
}

#[test]
fn impossible_rows_are_refused() {
    let good = apart(&[page_of(&rows(8), &[])]);
    let mut unknown = good.clone();
    unknown.set("schema of the row", &[1, 1, 1, 1, 2, 1, 1, 1]);
    assert_eq!(
        together(&unknown, 1),
        Err("a row's schema is impossible".to_owned())
    );
    // Longer than their tuples have room for; shorter.
    for first in [9, 1, 0xFF, 2] {
        let mut bad = good.clone();
        bad.set("headers of values", &[3, 5, 7, 11, 13, 15, first]);
        assert!(together(&bad, 1).is_err(), "{first}");
    }
    let mut bad = good.clone();
    bad.schemas[0][1] = [VARYING, 1];
    assert_eq!(together(&bad, 1), Err("a schema is impossible".to_owned()));
    bad.schemas[0][1] = [9, 0];
    assert_eq!(together(&bad, 1), Err("a schema is impossible".to_owned()));
    let mut bad = good;
    bad.schemas = vec![vec![[VARYING, 0]; 65]];
    bad.fit();
    assert_eq!(together(&bad, 1), Err("a schema is impossible".to_owned()));
    bad.schemas = vec![vec![[VARYING, 0]]; 17];
    bad.fit();
    assert_eq!(
        together(&bad, 1),
        Err("there are too many schemas".to_owned())
    );
}
