//! Rows: values of one column, one behind the other.

use super::TransformDamage;
use super::schema::{
    COLUMNS, Column, LONG, ON_DISK, Row, Schema, Shape, aligned, is_external, long_length,
    short_length,
};
use super::streams::{Source, Stream, Streams};
use super::words::{Class, Mode, Plan, Words, add_difference, difference};
use crate::PAGE_SIZE;

/// The schemas of a frame, and the values before of each; for rows that have none of them, the words before.
///
/// The rows of a page are collected, and then written or filled column by column: what a column is has to be asked only
/// once.
pub(super) struct Rows<'a> {
    plans: &'a [Plan; 4],
    words: Words,
    schemas: &'a [Schema],
    /// The first stream of each schema's columns.
    first: Vec<usize>,
    before: Vec<[u64; COLUMNS]>,
    /// The schema of the rows before.
    current: usize,
    rows: Vec<Place>,
    /// What is left of each row while it is written.
    left: Vec<Place>,
    lengths: Vec<usize>,
}

/// Where the values of a row are on their page, or those of them that are left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub start: usize,
    pub end: usize,
    /// As in [`Row`].
    pub columns: usize,
    pub present: u64,
    pub class: Class,
}

impl<'a> Rows<'a> {
    pub(super) fn new(plans: &'a [Plan; 4], schemas: &'a [Schema]) -> Self {
        let mut streams = 0;
        let first = |schema: &Schema| {
            let first = streams;
            streams += schema.widths().count();
            first
        };
        Self {
            plans,
            words: Words::new(Stream::HeapWords),
            schemas,
            first: schemas.iter().map(first).collect(),
            before: vec![[0; COLUMNS]; schemas.len()],
            current: 0,
            rows: Vec::new(),
            left: Vec::new(),
            lengths: Vec::new(),
        }
    }

    /// Collects a row.
    pub(super) fn add(&mut self, row: Place) {
        self.rows.push(row);
    }

    /// Puts the rows collected into the streams of their columns, and which schema they have.
    pub(super) fn put(&mut self, page: &[u8; PAGE_SIZE], streams: &mut Streams) {
        let mut rows = std::mem::take(&mut self.rows);
        let current = self.current;
        let others = (0..self.schemas.len()).filter(|other| *other != current);
        let mut schemas = std::iter::once(current).chain(others);
        // On nearly every page all rows have the same one.
        let whole = schemas.find(|schema| self.put_columns(*schema, &rows, page, streams));
        match whole {
            Some(schema) => {
                self.current = schema;
                let number = schema as u8 + 1;
                streams.put_bytes(Stream::RowSchema, rows.iter().map(|_| number));
            }
            None => self.put_mixed(&rows, page, streams),
        }
        rows.clear();
        self.rows = rows;
    }

    /// Finds the schema of each row by itself.
    fn put_mixed(&mut self, rows: &[Place], page: &[u8; PAGE_SIZE], streams: &mut Streams) {
        let schema_of = |row: &Place| {
            let row = Row {
                columns: row.columns,
                present: row.present,
                bytes: &page[row.start..row.end],
            };
            self.schemas
                .iter()
                .position(|schema| schema.values(&row).is_some())
        };
        let found: Vec<(Option<usize>, Place)> =
            rows.iter().map(|row| (schema_of(row), *row)).collect();
        let number =
            |(schema, _): &(Option<usize>, Place)| schema.map_or(0, |schema| schema as u8 + 1);
        streams.put_bytes(Stream::RowSchema, found.iter().map(number));
        for (schema, row) in found {
            match schema {
                Some(schema) => {
                    self.put_columns(schema, &[row], page, streams);
                }
                None => {
                    let plan = &self.plans[row.class as usize];
                    let rest = self.words.put(plan, &page[row.start..row.end], streams);
                    streams.put(Stream::HeapRest, rest);
                }
            }
        }
    }

    /// Puts the values of rows that all have this schema into the streams of its columns; `false`: not all have it, and nothing
    /// was put.
    fn put_columns(
        &mut self,
        schema: usize,
        rows: &[Place],
        page: &[u8; PAGE_SIZE],
        streams: &mut Streams,
    ) -> bool {
        let Some(Schema { columns }) = self.schemas.get(schema) else {
            return false;
        };
        if rows.iter().any(|row| row.columns > columns.len()) {
            return false;
        }
        let first = self.first[schema];
        let count: usize = columns.iter().map(|column| column.streams()).sum();
        let streams = &mut streams.column(first)[..count];
        self.lengths.clear();
        self.lengths.extend(streams.iter().map(Vec::len));
        self.left.clear();
        self.left.extend_from_slice(rows);
        let mut before = self.before[schema];
        let mut stream = 0;
        let mut put = |(number, (column, before)): (usize, (&Column, &mut u64))| {
            let column_streams = stream..stream + column.streams();
            stream = column_streams.end;
            put_column(
                column,
                number,
                &mut self.left,
                page,
                before,
                &mut streams[column_streams],
            )
        };
        let put = columns.iter().zip(&mut before).enumerate().all(&mut put)
            && self.left.iter().all(|row| row.start == row.end);
        if put {
            self.before[schema] = before;
        } else {
            for (stream, length) in streams.iter_mut().zip(&self.lengths) {
                stream.truncate(*length);
            }
        }
        put
    }

    /// Collects a row to be filled, or fills it at once if it has no schema.
    pub(super) fn take(
        &mut self,
        row: Place,
        page: &mut [u8; PAGE_SIZE],
        source: &mut Source<'_>,
    ) -> Result<(), TransformDamage> {
        const UNKNOWN: TransformDamage = TransformDamage("a row's schema is impossible");
        let Some(schema) = usize::from(source.byte(Stream::RowSchema)?).checked_sub(1) else {
            let values = &mut page[row.start..row.end];
            let rest = self
                .words
                .take(&self.plans[row.class as usize], values, source)?;
            rest.copy_from_slice(source.bytes(Stream::HeapRest, rest.len())?);
            return Ok(());
        };
        let columns = self.schemas.get(schema).ok_or(UNKNOWN)?.columns.len();
        if row.columns > columns {
            return Err(UNKNOWN);
        }
        if schema != self.current {
            self.take_columns(page, source)?;
            self.current = schema;
        }
        self.rows.push(row);
        Ok(())
    }

    /// Fills the rows collected with values.
    pub(super) fn take_columns(
        &mut self,
        page: &mut [u8; PAGE_SIZE],
        source: &mut Source<'_>,
    ) -> Result<(), TransformDamage> {
        let Some(Schema { columns }) = self.schemas.get(self.current) else {
            return Ok(());
        };
        let rows = &mut self.rows;
        let mut stream = self.first[self.current];
        for ((number, column), before) in columns
            .iter()
            .enumerate()
            .zip(&mut self.before[self.current])
        {
            let Shape { length, align } = column.shape;
            let mut left = source.column(stream);
            match length {
                0 => take_varying(rows, number, align, page, &mut left)?,
                2 => take_numbers::<2>(rows, number, align, column.mode, before, page, &mut left)?,
                4 => take_numbers::<4>(rows, number, align, column.mode, before, page, &mut left)?,
                8 => take_numbers::<8>(rows, number, align, column.mode, before, page, &mut left)?,
                _ => {
                    for row in rows.iter_mut() {
                        if row.has(number) {
                            let value = left[0].split_off(..length).ok_or(ENDS)?;
                            row.room(length, align, page)?.copy_from_slice(value);
                        }
                    }
                }
            }
            source.put_back(stream, left);
            stream += column.streams();
        }
        if rows.iter().any(|row| row.start != row.end) {
            return Err(LENGTH);
        }
        rows.clear();
        Ok(())
    }
}

const ENDS: TransformDamage = TransformDamage("the values of a column end too early");
const LENGTH: TransformDamage = TransformDamage("a row is not as long as its values");

impl Place {
    #[inline]
    fn has(&self, column: usize) -> bool {
        self.present >> column & 1 == 1
    }

    /// Room for the next value; the padding before it stays zeros.
    #[inline(always)]
    fn room<'a>(
        &mut self,
        length: usize,
        align: usize,
        page: &'a mut [u8; PAGE_SIZE],
    ) -> Result<&'a mut [u8], TransformDamage> {
        // Values are aligned to the row's beginning, which is aligned on the page.
        let start = aligned(self.start, align);
        let end = start + length;
        if end > self.end {
            return Err(LENGTH);
        }
        self.start = end;
        page.get_mut(start..end).ok_or(LENGTH)
    }
}

impl Place {
    /// The next value; `None`: there is none of this shape.
    #[inline(always)]
    fn next<'p>(
        &mut self,
        length: usize,
        align: usize,
        page: &'p [u8; PAGE_SIZE],
    ) -> Option<&'p [u8]> {
        let start = aligned(self.start, align);
        let end = start + length;
        let padding = page.get(self.start..start)?;
        if end > self.end || padding.iter().any(|byte| *byte != 0) {
            return None;
        }
        self.start = end;
        page.get(start..end)
    }
}

/// Puts the next value of each row; `false`: one has none of this shape.
fn put_column(
    column: &Column,
    number: usize,
    rows: &mut [Place],
    page: &[u8; PAGE_SIZE],
    before: &mut u64,
    out: &mut [Vec<u8>],
) -> bool {
    let Shape { length, align } = column.shape;
    let mut rows = rows.iter_mut().filter(|row| row.has(number));
    match (length, out) {
        (0, [heads, bodies]) => {
            rows.all(|row| put_varying(row, align, page, heads, bodies).is_some())
        }
        (2, [out]) => put_numbers::<2>(rows, align, page, column.mode, before, out),
        (4, [out]) => put_numbers::<4>(rows, align, page, column.mode, before, out),
        (8, [out]) => put_numbers::<8>(rows, align, page, column.mode, before, out),
        (8, [out, exceptions]) => rows.all(|row| {
            row.next(8, align, page).map(widened).is_some_and(|value| {
                let coded = column.mode.encode(value, *before, 8);
                if coded.is_none() {
                    exceptions.extend_from_slice(&value.to_le_bytes());
                }
                out.extend_from_slice(&coded.unwrap_or(Mode::EXCEPTION).to_le_bytes());
                *before = value;
                true
            })
        }),
        (_, out) => rows.all(|row| {
            let value = row.next(length, align, page);
            out[0].extend_from_slice(value.unwrap_or_default());
            value.is_some()
        }),
    }
}

/// One loop for each form, so that within it nothing has to be asked.
#[inline]
fn put_numbers<'r, const LENGTH: usize>(
    mut rows: impl Iterator<Item = &'r mut Place>,
    align: usize,
    page: &[u8; PAGE_SIZE],
    mode: Mode,
    before: &mut u64,
    out: &mut Vec<u8>,
) -> bool {
    let mut each = |encode: &mut dyn FnMut(u64) -> u64| {
        rows.all(|row| {
            let value = row.next(LENGTH, align, page);
            value.is_some_and(|value| {
                out.extend_from_slice(&narrowed::<LENGTH>(encode(widened(value))));
                true
            })
        })
    };
    match mode {
        Mode::Plain => each(&mut |value| value),
        Mode::Difference => each(&mut |value| {
            let coded = difference(value, *before, LENGTH);
            *before = value;
            coded
        }),
        _ => each(&mut |value| {
            let coded = mode.encode(value, *before, LENGTH).unwrap_or(value);
            *before = value;
            coded
        }),
    }
}

/// Copies of this many bytes are quicker than those of any number: a shorter value takes some of what follows along.
const QUICK: usize = 16;

/// A value with its header: one byte, or four.
#[inline]
fn put_varying(
    row: &mut Place,
    align: usize,
    page: &[u8; PAGE_SIZE],
    heads: &mut Vec<u8>,
    bodies: &mut Vec<u8>,
) -> Option<()> {
    let first = *page[..row.end].get(row.start)?;
    let length = if first & 1 == 1 {
        row.start += 1;
        heads.push(first);
        short_length(first) - 1
    } else {
        let head = row.next(LONG, align, page)?;
        heads.extend_from_slice(head);
        long_length(head)? - LONG
    };
    let start = row.start;
    let body = row.next(length, 1, page)?;
    if is_external(first) && !body.starts_with(&[ON_DISK]) {
        return None;
    }
    match page[start..].first_chunk::<QUICK>() {
        Some(quick) if length <= QUICK => {
            let end = bodies.len() + length;
            bodies.extend_from_slice(quick);
            bodies.truncate(end);
        }
        _ => bodies.extend_from_slice(body),
    }
    Some(())
}

#[inline]
fn take_varying(
    rows: &mut [Place],
    number: usize,
    align: usize,
    page: &mut [u8; PAGE_SIZE],
    [heads, bodies]: &mut [&[u8]; 2],
) -> Result<(), TransformDamage> {
    for row in rows {
        if !row.has(number) {
            continue;
        }
        let first = *heads.split_off_first().ok_or(ENDS)?;
        let length = if first & 1 == 1 {
            row.room(1, 1, page)?[0] = first;
            Some(short_length(first) - 1)
        } else {
            let [second, third, fourth] = *heads.split_off(..3).ok_or(ENDS)? else {
                return Err(ENDS);
            };
            let head = [first, second, third, fourth];
            row.room(LONG, align, page)?.copy_from_slice(&head);
            long_length(&head).map(|length| length - LONG)
        };
        let length = length.ok_or(LENGTH)?;
        copy(
            row.room(length, 1, page)?,
            bodies.split_off(..length).ok_or(ENDS)?,
        );
    }
    Ok(())
}

/// Copies a few bytes without a call: for most lengths, the first and the last of them, which may overlap.
#[inline]
fn copy(to: &mut [u8], from: &[u8]) {
    let length = to.len().min(from.len());
    match length {
        0 => {}
        1..4 => {
            to[0] = from[0];
            to[length / 2] = from[length / 2];
            to[length - 1] = from[length - 1];
        }
        4..8 => copy_ends::<4>(to, from),
        8..=16 => copy_ends::<8>(to, from),
        _ => to.copy_from_slice(from),
    }
}

#[inline]
fn copy_ends<const HALF: usize>(to: &mut [u8], from: &[u8]) {
    let last = |bytes: &[u8]| bytes.last_chunk::<HALF>().copied();
    if let (Some(head), Some(tail)) = (from.first_chunk::<HALF>(), last(from)) {
        to[..HALF].copy_from_slice(head);
        let end = to.len() - HALF;
        to[end..].copy_from_slice(&tail);
    }
}

#[inline]
fn take_numbers<const LENGTH: usize>(
    rows: &mut [Place],
    number: usize,
    align: usize,
    mode: Mode,
    before: &mut u64,
    page: &mut [u8; PAGE_SIZE],
    [left, exceptions]: &mut [&[u8]; 2],
) -> Result<(), TransformDamage> {
    let mut decode = |coded: &[u8; LENGTH]| {
        let coded = widened(coded);
        let value = match mode {
            Mode::Difference => add_difference(coded, *before, LENGTH),
            _ => match mode.decode(coded, *before, LENGTH) {
                Some(value) => value,
                None => widened(exceptions.split_off(..LENGTH).ok_or(ENDS)?),
            },
        };
        *before = value;
        Ok(narrowed::<LENGTH>(value))
    };
    for row in rows {
        if !row.has(number) {
            continue;
        }
        let (coded, rest) = left.split_first_chunk::<LENGTH>().ok_or(ENDS)?;
        *left = rest;
        let value = if mode == Mode::Plain {
            *coded
        } else {
            decode(coded)?
        };
        row.room(LENGTH, align, page)?.copy_from_slice(&value);
    }
    Ok(())
}

/// A number of up to eight bytes.
#[inline]
pub(super) fn widened(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(wide)
}

#[inline]
fn narrowed<const LENGTH: usize>(value: u64) -> [u8; LENGTH] {
    let bytes = value.to_le_bytes();
    std::array::from_fn(|byte| bytes[byte])
}
