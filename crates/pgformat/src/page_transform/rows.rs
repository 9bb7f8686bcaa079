//! Rows: values of one column, one behind the other.

use super::TransformDamage;
use super::schema::{COLUMNS, LONG, Row, Schema, Shape, Span, aligned, long_length, short_length};
use super::streams::{Source, Stream, Streams};
use super::words::{Mode, add_difference, difference};
use crate::PAGE_SIZE;

/// The schemas of a frame, and the values before of each.
pub(super) struct Rows<'a> {
    schemas: &'a [Schema],
    /// The first stream of each schema's columns.
    first: Vec<usize>,
    before: Vec<[u64; COLUMNS]>,
    /// The schema of the row before.
    current: usize,
    /// The rows of a page that come one behind the other and have the same schema.
    batch: Batch,
}

/// Rows are collected, and then written or filled column by column: what a column is has to be asked only once.
#[derive(Default)]
struct Batch {
    schema: usize,
    /// On the way out: for each row, where it begins, and a span for each column.
    starts: Vec<u16>,
    spans: Vec<Span>,
    /// On the way back.
    rows: Vec<Place>,
}

/// Where a row is to be put on its page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub start: usize,
    pub end: usize,
    /// As in [`Row`].
    pub columns: usize,
    pub present: u64,
}

impl<'a> Rows<'a> {
    pub(super) fn new(schemas: &'a [Schema]) -> Self {
        let mut streams = 0;
        let first = |schema: &Schema| {
            let first = streams;
            streams += schema.widths().count();
            first
        };
        Self {
            schemas,
            first: schemas.iter().map(first).collect(),
            before: vec![[0; COLUMNS]; schemas.len()],
            current: 0,
            batch: Batch::default(),
        }
    }

    /// Takes the row, which begins at `start` on its page; `false`: it has none of the schemas.
    pub(super) fn put(
        &mut self,
        row: &Row<'_>,
        start: usize,
        page: &[u8; PAGE_SIZE],
        streams: &mut Streams,
    ) -> bool {
        let collected = self.batch.spans.len();
        let mut has = |schema: usize| {
            let Some(schema) = self.schemas.get(schema) else {
                return false;
            };
            self.batch
                .spans
                .resize(collected + schema.columns.len(), Span::NULL);
            schema.find(row, &mut self.batch.spans[collected..])
        };
        let others = || (0..self.schemas.len()).filter(|other| *other != self.current);
        let found = if has(self.current) {
            Some(self.current)
        } else {
            others().find(|other| has(*other))
        };
        streams.put_byte(
            Stream::RowSchema,
            found.map_or(0, |schema| schema as u8 + 1),
        );
        let Some(schema) = found else {
            self.batch.spans.truncate(collected);
            return false;
        };
        self.current = schema;
        if schema != self.batch.schema {
            let spans = self.batch.spans.split_off(collected);
            self.put_batch(page, streams);
            self.batch.schema = schema;
            self.batch.spans = spans;
        }
        self.batch.starts.push(start as u16);
        true
    }

    /// Puts the values of the rows collected into the streams of their columns.
    pub(super) fn put_batch(&mut self, page: &[u8; PAGE_SIZE], streams: &mut Streams) {
        let Batch {
            schema: number,
            starts,
            spans,
            ..
        } = &mut self.batch;
        if starts.is_empty() {
            return;
        }
        let schema = &self.schemas[*number];
        let mut stream = self.first[*number];
        let columns = schema.columns.len();
        for ((number, column), before) in schema
            .columns
            .iter()
            .enumerate()
            .zip(&mut self.before[*number])
        {
            // The bytes from each value on, and its length.
            let values = starts
                .iter()
                .zip(spans.iter().skip(number).step_by(columns))
                .filter_map(|(start, span)| {
                    let from = usize::from(*start) + usize::from(span.start);
                    Some((
                        page.get(from..)?,
                        usize::from(span.end) - usize::from(span.start),
                    ))
                });
            let out = streams.column(stream);
            match column.shape.length {
                0 => put_varying(values, out),
                2 => put_numbers::<2>(values, column.mode, before, out),
                4 => put_numbers::<4>(values, column.mode, before, out),
                8 => put_numbers::<8>(values, column.mode, before, out),
                length => values.for_each(|(value, _)| out[0].extend_from_slice(&value[..length])),
            }
            stream += column.streams();
        }
        starts.clear();
        spans.clear();
    }

    /// Which schema the next row has, if any; then `place` is where it goes.
    pub(super) fn take(
        &mut self,
        place: Place,
        page: &mut [u8; PAGE_SIZE],
        source: &mut Source<'_>,
    ) -> Result<bool, TransformDamage> {
        const UNKNOWN: TransformDamage = TransformDamage("a row's schema is impossible");
        let Some(schema) = usize::from(source.byte(Stream::RowSchema)?).checked_sub(1) else {
            return Ok(false);
        };
        let columns = self.schemas.get(schema).ok_or(UNKNOWN)?.columns.len();
        if place.columns > columns {
            return Err(UNKNOWN);
        }
        if schema != self.batch.schema {
            self.take_batch(page, source)?;
            self.batch.schema = schema;
        }
        self.batch.rows.push(place);
        Ok(true)
    }

    /// Fills the rows collected with values.
    pub(super) fn take_batch(
        &mut self,
        page: &mut [u8; PAGE_SIZE],
        source: &mut Source<'_>,
    ) -> Result<(), TransformDamage> {
        let Batch {
            schema: number,
            rows,
            ..
        } = &mut self.batch;
        let Some(schema) = self.schemas.get(*number) else {
            return Ok(());
        };
        let mut stream = self.first[*number];
        for ((number, column), before) in schema
            .columns
            .iter()
            .enumerate()
            .zip(&mut self.before[*number])
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
        column < self.columns && self.present >> column & 1 == 1
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

/// Copies of this many bytes are quicker than those of any number: a shorter value takes some of what follows along.
const QUICK: usize = 16;

/// Values with their headers: one byte, or four.
#[inline]
fn put_varying<'p>(values: impl Iterator<Item = (&'p [u8], usize)>, out: &mut [Vec<u8>]) {
    let [heads, bodies, ..] = out else {
        return;
    };
    for (value, length) in values {
        let head = if value[0] & 1 == 1 {
            heads.push(value[0]);
            1
        } else {
            heads.extend_from_slice(&value[..LONG]);
            LONG
        };
        let body = &value[head..];
        match body.first_chunk::<QUICK>() {
            Some(quick) if length - head <= QUICK => {
                let end = bodies.len() + length - head;
                bodies.extend_from_slice(quick);
                bodies.truncate(end);
            }
            _ => bodies.extend_from_slice(&body[..length - head]),
        }
    }
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

/// One loop for each form, so that within it nothing has to be asked.
#[inline]
fn put_numbers<'p, const LENGTH: usize>(
    values: impl Iterator<Item = (&'p [u8], usize)>,
    mode: Mode,
    before: &mut u64,
    out: &mut [Vec<u8>],
) {
    let [out, exceptions @ ..] = out else {
        return;
    };
    let values = values.filter_map(|(value, _)| value.first_chunk::<LENGTH>());
    match mode {
        Mode::Plain => values.for_each(|value| out.extend_from_slice(value)),
        Mode::Difference => {
            for bytes in values {
                let value = widened(bytes);
                let coded = difference(value, *before, LENGTH);
                out.extend_from_slice(&narrowed::<LENGTH>(coded));
                *before = value;
            }
        }
        _ => {
            for bytes in values {
                let value = widened(bytes);
                let coded = mode.encode(value, *before, LENGTH).unwrap_or_else(|| {
                    exceptions[0].extend_from_slice(bytes);
                    Mode::EXCEPTION
                });
                out.extend_from_slice(&narrowed::<LENGTH>(coded));
                *before = value;
            }
        }
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
