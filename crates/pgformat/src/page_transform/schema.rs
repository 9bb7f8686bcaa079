//! Schemas: where in a row the values of its columns lie.
//!
//! What a column is stands in PostgreSQL's catalogs, which are not at hand; but its length and alignment can be read off the
//! rows themselves (see `infer`), and that is all it takes. A row that does not follow, byte by byte, the rules by which
//! PostgreSQL forms tuples (`heap_fill_tuple` in `access/common/heaptuple.c`) is left whole.

use std::ops::Range;

use super::TransformDamage;
use super::words::Mode;
use crate::u32_at;

/// Length and alignment of a column's values (`attlen`, `attalign`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes; 0: varying, told by each value.
    pub length: usize,
    pub align: usize,
}

/// Every shape a column can be found to have, by its number in the stored bytes.
pub(super) const SHAPES: [Shape; 9] = [
    Shape {
        length: 0,
        align: 4,
    },
    Shape {
        length: 0,
        align: 8,
    },
    Shape {
        length: 1,
        align: 1,
    },
    Shape {
        length: 2,
        align: 2,
    },
    Shape {
        length: 4,
        align: 4,
    },
    Shape {
        length: 8,
        align: 8,
    },
    // uuid; interval and point; name
    Shape {
        length: 16,
        align: 1,
    },
    Shape {
        length: 16,
        align: 8,
    },
    Shape {
        length: 64,
        align: 1,
    },
];

/// Columns that a schema has at most: a bit each in a word.
pub(super) const COLUMNS: usize = 64;

/// Schemas that a frame has at most: one for each of its relations, or nearly.
pub(super) const SCHEMAS: usize = 16;

/// A column: its shape, which is [`SHAPES`]' of this number, and how values of a number's length are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    number: u8,
    pub shape: Shape,
    pub mode: Mode,
}

impl Column {
    /// A column of the shape of this number, its values written as they are.
    pub(super) fn new(number: u8) -> Option<Self> {
        let shape = *SHAPES.get(usize::from(number))?;
        Some(Self {
            number,
            shape,
            mode: Mode::Plain,
        })
    }

    /// Bytes of a row of its streams: values of varying length have one for their headers and one for what follows them, numbers
    /// that may be exceptions a second one for these, others one; 0: there is no second.
    fn widths(self) -> [usize; 2] {
        match (self.shape.length, self.mode) {
            (0, _) => [1, 1],
            (8, Mode::Decimal(_) | Mode::DecimalDifference(_)) => [8, 8],
            (length @ (2 | 4 | 8), _) => [length, 0],
            _ => [1, 0],
        }
    }

    pub(super) fn streams(self) -> usize {
        1 + usize::from(self.widths()[1] > 0)
    }
}

/// The columns of a relation's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Schema {
    pub columns: Vec<Column>,
}

/// A row as it lies in its tuple.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    /// How many columns it has; the relation may have got more since.
    pub columns: usize,
    /// A bit for each of these columns, set where there is a value.
    pub present: u64,
    pub bytes: &'a [u8],
}

impl Row<'_> {
    pub(super) fn has(&self, column: usize) -> bool {
        self.present >> column & 1 == 1
    }
}

/// Where the value of this shape behind `offset` lies, the padding before it left out; `None`: there cannot be one.
pub(super) fn span(shape: Shape, row: &[u8], offset: usize) -> Option<Range<usize>> {
    let (mut start, mut length) = (offset, shape.length);
    if length == 0
        && let first = *row.get(offset)?
        && first & 1 == 1
    {
        length = short_length(first);
        if is_external(first) && row.get(offset + 1) != Some(&ON_DISK) {
            return None;
        }
    } else {
        start = aligned(offset, shape.align);
        if start != offset && row.get(offset..start)?.iter().any(|byte| *byte != 0) {
            return None;
        }
        if length == 0 {
            length = long_length(row.get(start..start + LONG)?)?;
        }
    }
    let end = start + length;
    (end <= row.len()).then_some(start..end)
}

/// The next multiple of a power of two.
#[inline]
pub(super) fn aligned(offset: usize, align: usize) -> usize {
    (offset + align - 1) & !(align - 1)
}

/// Bytes of the header of a value that is not short (`VARHDRSZ`).
pub(super) const LONG: usize = 4;

/// First byte of a value that lies in the TOAST table (`VARATT_IS_1B_E`), tag and length of such a pointer
/// (`VARTAG_ONDISK`, `varatt_external`).
const EXTERNAL: u8 = 1;
pub(super) const ON_DISK: u8 = 18;
const EXTERNAL_LENGTH: usize = 18;

pub(super) fn is_external(first: u8) -> bool {
    first == EXTERNAL
}

/// Length of a value whose header is one byte (`VARSIZE_1B`, `VARSIZE_EXTERNAL`), header and all.
#[inline]
pub(super) fn short_length(first: u8) -> usize {
    if first == EXTERNAL {
        EXTERNAL_LENGTH
    } else {
        usize::from(first >> 1)
    }
}

/// Length of a value whose header is four bytes, compressed or not (`VARSIZE_4B`), header and all.
pub(super) fn long_length(header: &[u8]) -> Option<usize> {
    let header = u32_at(header, 0);
    let length = (header >> 2) as usize;
    (header & 1 == 0 && length >= LONG).then_some(length)
}

/// Columns whose values lie one right behind the other in every row of a page; or one of varying length, or one that not every
/// row has.
pub(super) struct Run {
    pub columns: Range<usize>,
    /// What it begins at a multiple of.
    pub align: usize,
    /// Bytes; 0: varying.
    pub length: usize,
    /// Whether there can be padding before it.
    pub padded: bool,
}

/// Which columns the rows of a page have.
pub(super) struct Presence {
    /// A bit for each column that has a value in every row, and in some.
    pub every: u64,
    pub some: u64,
    /// What the rows begin at multiples of.
    pub align: usize,
}

impl Schema {
    /// The runs of the columns that rows have.
    pub(super) fn runs(&self, presence: &Presence) -> impl Iterator<Item = Run> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let run = self.run(from, presence)?;
            from = run.columns.end;
            Some(run)
        })
    }

    /// The first run of columns from this one on.
    fn run(&self, from: usize, presence: &Presence) -> Option<Run> {
        let Presence { every, some, align } = *presence;
        let has = |columns: u64, column: usize| columns >> column & 1 == 1;
        let first = (from..self.columns.len()).find(|column| has(some, *column))?;
        let shape = self.columns[first].shape;
        // Of nothing but the first value in the row it is known what it stands at a multiple of.
        let stands_at = if some.trailing_zeros() as usize == first {
            align
        } else {
            1
        };
        let aligned = stands_at.max(shape.align);
        let mut run = Run {
            columns: first..first + 1,
            align: shape.align,
            length: shape.length,
            padded: shape.align > stands_at,
        };
        let follows = |column: &Column, run: &Run| {
            let Shape { length, align } = column.shape;
            let there = has(every, run.columns.end) && length > 0;
            there && align <= aligned && run.length.is_multiple_of(align)
        };
        if has(every, first) && run.length > 0 {
            for column in &self.columns[first + 1..] {
                if !follows(column, &run) {
                    break;
                }
                run.length += column.shape.length;
                run.columns.end += 1;
            }
        }
        Some(run)
    }

    /// Whether the row is one of this schema; tells `each` the number of every column that it has, and where in the row its value
    /// lies, as far as it is one.
    pub(super) fn walk(&self, row: &Row<'_>, mut each: impl FnMut(usize, Range<usize>)) -> bool {
        if row.columns > self.columns.len() {
            return false;
        }
        let mut offset = 0;
        for (number, column) in self.columns.iter().enumerate().take(row.columns) {
            if row.has(number) {
                let Some(found) = span(column.shape, row.bytes, offset) else {
                    return false;
                };
                offset = found.end;
                each(number, found);
            }
        }
        offset == row.bytes.len()
    }

    /// Widths of the streams of its columns.
    pub(super) fn widths(&self) -> impl Iterator<Item = usize> {
        self.columns.iter().flat_map(|column| {
            let widths = column.widths();
            widths.into_iter().take_while(|width| *width > 0)
        })
    }

    /// A byte for the number of columns; two for each.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.push(self.columns.len() as u8);
        for column in &self.columns {
            out.extend_from_slice(&[column.number, column.mode.number()]);
        }
    }

    /// The schema at the beginning of `bytes`, which then begin behind it.
    pub(super) fn read(bytes: &mut &[u8]) -> Result<Self, TransformDamage> {
        const IMPOSSIBLE: TransformDamage = TransformDamage("a schema is impossible");
        let (count, rest) = bytes.split_first().ok_or(IMPOSSIBLE)?;
        let count = usize::from(*count);
        let (pairs, rest) = rest.split_at_checked(count * 2).ok_or(IMPOSSIBLE)?;
        *bytes = rest;
        if count > COLUMNS {
            return Err(IMPOSSIBLE);
        }
        let column = |[number, mode]: &[u8; 2]| {
            let column = Column {
                mode: Mode::from_number(*mode)?,
                ..Column::new(*number)?
            };
            column.mode.fits(column.shape.length).then_some(column)
        };
        let (pairs, _) = pairs.as_chunks::<2>();
        let columns = pairs
            .iter()
            .map(column)
            .collect::<Option<_>>()
            .ok_or(IMPOSSIBLE)?;
        Ok(Self { columns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First column, columns, alignment, bytes, and whether there can be padding before.
    fn runs(shapes: &[u8], every: u64, some: u64) -> Vec<(usize, usize, usize, usize, bool)> {
        let columns = shapes.iter().filter_map(|number| Column::new(*number));
        let schema = Schema {
            columns: columns.collect(),
        };
        let presence = Presence {
            every,
            some,
            align: 8,
        };
        let run = |run: Run| {
            let Range { start, end } = run.columns;
            (start, end - start, run.align, run.length, run.padded)
        };
        schema.runs(&presence).map(run).collect()
    }

    #[test]
    fn values_in_one_run_have_no_padding_between_them() {
        const ALL: u64 = u64::MAX;
        // Numbers of 4, 4, 8, 2, 1 and 4 bytes: before the last, there is padding of one.
        assert_eq!(
            runs(&[4, 4, 5, 3, 2, 4], ALL, ALL),
            [(0, 5, 4, 19, false), (5, 1, 4, 4, true)]
        );
        // Behind a text, numbers of 4 and 8 bytes: where the first ends is not known to be a multiple of 8.
        assert_eq!(
            runs(&[0, 4, 5, 4], ALL, ALL),
            [(0, 1, 4, 0, false), (1, 1, 4, 4, true), (2, 2, 8, 12, true)]
        );
        // A uuid stands anywhere, and so does what is behind it.
        assert_eq!(
            runs(&[0, 6, 2, 4], ALL, ALL),
            [
                (0, 1, 4, 0, false),
                (1, 2, 1, 17, false),
                (3, 1, 4, 4, true)
            ]
        );
    }

    #[test]
    fn columns_that_only_some_rows_have_are_runs_by_themselves() {
        assert_eq!(
            runs(&[4, 4, 4, 4, 4], 0b1_1011, 0b1_1111),
            [(0, 2, 4, 8, false), (2, 1, 4, 4, true), (3, 2, 4, 8, true)]
        );
        // Nobody has the first and the third.
        assert_eq!(
            runs(&[4, 5, 4, 4], 0b1010, 0b1010),
            [(1, 1, 8, 8, false), (3, 1, 4, 4, true)]
        );
        assert_eq!(runs(&[4, 5], 0, 0), []);
    }
}
