//! Reading the shapes of a relation's columns off its rows.
//!
//! A row tells how many columns it has, which of them are null, and where it ends. A guess at the columns is right when
//! every row of a sample can be walked with it and ends where it should: with values of varying length among them, hardly
//! any wrong guess survives that; and one that does cuts up every row so that it can be put together again, which
//! is all that is asked.

use std::collections::HashSet;

use super::schema::{COLUMNS, Row, SHAPES, Shape, span};

/// Rows that a guess is made from: more make wrong guesses rarer and each step dearer.
pub(super) const ROWS: usize = 48;

/// Fewer rows tell too little.
const ROWS_AT_LEAST: usize = 6;

/// Steps after which the search is given up, each a look at all rows.
const STEPS: usize = 10_000;

/// Numbers of [`SHAPES`].
const VARYING: u8 = 0;
const VARYING_WIDE: u8 = 1;
const BYTE: u8 = 2;
const HALF: u8 = 3;
const FOUR: u8 = 4;
const EIGHT: u8 = 5;
const UUID: u8 = 6;
const PAIR: u8 = 7;
const NAME: u8 = 8;

/// The shapes of the rows' columns.
pub(super) fn shapes(rows: &[Row<'_>]) -> Option<Vec<u8>> {
    let columns = rows.iter().map(|row| row.columns).max()?;
    if rows.len() < ROWS_AT_LEAST || columns > COLUMNS {
        return None;
    }
    let mut search = Search {
        rows,
        columns,
        shapes: Vec::new(),
        failed: HashSet::new(),
        steps: 0,
    };
    search.walk(&vec![0; rows.len()]).then_some(search.shapes)
}

struct Search<'a> {
    rows: &'a [Row<'a>],
    columns: usize,
    shapes: Vec<u8>,
    /// From where no way leads to the end: a column, and where it would begin in each row.
    failed: HashSet<(usize, Vec<u16>)>,
    steps: usize,
}

impl Search<'_> {
    /// Tries every shape for the next column, given where it begins in each row, and the columns behind it.
    fn walk(&mut self, offsets: &[u16]) -> bool {
        let column = self.shapes.len();
        let ended = |(row, offset): (&Row<'_>, &u16)| {
            let left = row.bytes.len() - usize::from(*offset);
            if row.columns == column {
                left == 0
            } else {
                row.columns < column || left > 0 || row.present >> column == 0
            }
        };
        if !self.rows.iter().zip(offsets).all(ended) {
            return false;
        }
        if column == self.columns {
            return true;
        }
        if self.failed.contains(&(column, offsets.to_vec())) {
            return false;
        }
        for shape in self.candidates(column, offsets) {
            self.steps += 1;
            if self.steps > STEPS {
                return false;
            }
            if let Some(next) = self.step(column, SHAPES[usize::from(shape)], offsets) {
                self.shapes.push(shape);
                if self.walk(&next) {
                    return true;
                }
                self.shapes.pop();
            }
        }
        self.failed.insert((column, offsets.to_vec()));
        false
    }

    /// Where the next column begins in each row, if this one has the shape.
    fn step(&self, column: usize, shape: Shape, offsets: &[u16]) -> Option<Vec<u16>> {
        let next = |(row, offset): (&Row<'_>, &u16)| {
            if column >= row.columns || !row.has(column) {
                return Some(*offset);
            }
            span(shape, row.bytes, usize::from(*offset)).map(|span| span.end as u16)
        };
        self.rows.iter().zip(offsets).map(next).collect()
    }

    /// Shapes in the order in which they are worth a try. Those of single bytes and of many fit nearly everywhere, so they have
    /// to look like what they are for.
    fn candidates(&self, column: usize, offsets: &[u16]) -> Vec<u8> {
        let with_value = |(row, _): &(&Row<'_>, &u16)| column < row.columns && row.has(column);
        let values: Vec<_> = self.rows.iter().zip(offsets).filter(with_value).collect();
        if values.is_empty() {
            return vec![VARYING];
        }
        // How many different bytes there are in this place behind the beginning of each value.
        let different = |align: usize, place: usize| {
            let mut seen = [0_u64; 4];
            for (row, offset) in &values {
                let at = usize::from(**offset).next_multiple_of(align) + place;
                let byte = row.bytes.get(at).copied().unwrap_or_default();
                seen[usize::from(byte / 64)] |= 1 << (byte % 64);
            }
            seen.iter()
                .map(|word| word.count_ones() as usize)
                .sum::<usize>()
        };
        // In a number of eight bytes, each byte varies no more than the one below it (in a float, no less): where the fifth
        // varies and the fourth does not, a number of four bytes ends.
        let mut shapes = if different(4, 3) < different(4, 4) {
            vec![VARYING, FOUR, EIGHT, HALF]
        } else {
            vec![VARYING, EIGHT, FOUR, HALF]
        };
        let few = 2 + values.len() / 8;
        if different(1, 0) <= few {
            shapes.push(BYTE);
        }
        if different(1, 0) > few && different(1, 15) > few {
            shapes.push(UUID);
        }
        shapes.push(PAIR);
        if different(1, 63) == 1 {
            shapes.push(NAME);
        }
        shapes.push(VARYING_WIDE);
        shapes
    }
}
