//! Values of columns, from the rows of a page into the columns' streams and back.

use super::TransformDamage;
use super::rows::RowSpan;
use super::schema::{Column, LONG, ON_DISK, Run, aligned, is_external, long_length, short_length};
use super::streams::{Source, add_rows};
use super::words::{Mode, decode_all, encode_all};
use crate::{PAGE_SIZE, u64_at};

const ENDS: TransformDamage = TransformDamage("the values of a column end too early");
pub(super) const LENGTH: TransformDamage = TransformDamage("a row is not as long as its values");

/// Finds where the run begins in each row that has it, and goes behind it; `None`: a row ends before. Returns what was found in
/// `padding`, which is told where each row stood and where the run begins.
#[inline]
fn find(
    run: &Run,
    rows: &mut [RowSpan],
    starts: &mut Vec<u16>,
    padding: impl Fn(usize, usize) -> u64,
) -> Option<u64> {
    starts.clear();
    starts.resize(rows.len(), 0);
    let mut left = starts.iter_mut();
    let (mut found, mut short) = (0, false);
    let column = run.columns.start;
    for (row, slot) in rows.iter_mut().filter(|row| row.has(column)).zip(&mut left) {
        // Values are aligned to the row's beginning, which is aligned on the page.
        let start = aligned(usize::from(row.start), run.align);
        found |= padding(usize::from(row.start), start);
        let end = start + run.length;
        short |= end > usize::from(row.end);
        row.start = end as u16;
        *slot = start as u16;
    }
    let unused = left.len();
    starts.truncate(starts.len() - unused);
    (!short).then_some(found)
}

/// Puts the next values of the rows; `false`: one of them has none of this shape.
pub(super) fn put_run<'c>(
    run: &Run,
    columns: impl Iterator<Item = (&'c Column, &'c mut u64)>,
    rows: &mut [RowSpan],
    page: &[u8; PAGE_SIZE],
    starts: &mut Vec<u16>,
    mut streams: &mut [Vec<u8>],
) -> bool {
    if run.length == 0 {
        return put_varying(run, rows, page, streams).is_some();
    }
    // Padding is less than a word, and in one.
    let (words, _) = page.as_chunks::<8>();
    let padding = |end: usize, start: usize| {
        let word = u64::from_le_bytes(words[end / 8 % words.len()]) >> (end % 8 * 8);
        word & !(u64::MAX << ((start - end) * 8))
    };
    let found = if run.padded {
        find(run, rows, starts, padding)
    } else {
        find(run, rows, starts, |_, _| 0)
    };
    if found != Some(0) {
        return false;
    }
    let mut offset = 0;
    for (column, before) in columns {
        let (out, rest) = streams.split_at_mut(column.streams());
        streams = rest;
        let starts = starts.iter().map(|start| usize::from(*start) + offset);
        put_values(column, starts, page, before, out);
        offset += column.shape.length;
    }
    true
}

fn put_values(
    column: &Column,
    starts: impl ExactSizeIterator<Item = usize>,
    page: &[u8; PAGE_SIZE],
    before: &mut u64,
    out: &mut [Vec<u8>],
) {
    let mode = column.mode;
    match (column.shape.length, out) {
        (2, [out]) => put_numbers::<2>(mode, starts, page, before, out),
        (4, [out]) => put_numbers::<4>(mode, starts, page, before, out),
        (8, [out]) => put_numbers::<8>(mode, starts, page, before, out),
        (8, [out, exceptions]) => {
            let rows = add_rows::<8>(out, starts.len());
            for (row, start) in rows.iter_mut().zip(starts) {
                let value = u64_at(page, start);
                let coded = mode.encode(value, *before, 8).unwrap_or_else(|| {
                    exceptions.extend_from_slice(&value.to_le_bytes());
                    Mode::EXCEPTION
                });
                *row = coded.to_le_bytes();
                *before = value;
            }
        }
        (1, [out]) => put_bytes::<1>(starts, page, out),
        (16, [out]) => put_bytes::<16>(starts, page, out),
        (64, [out]) => put_bytes::<64>(starts, page, out),
        (length, _) => unreachable!("no column has values of {length} bytes"),
    }
}

#[inline]
fn put_bytes<const LENGTH: usize>(
    starts: impl ExactSizeIterator<Item = usize>,
    page: &[u8; PAGE_SIZE],
    out: &mut Vec<u8>,
) {
    let rows = add_rows::<LENGTH>(out, starts.len());
    for (row, start) in rows.iter_mut().zip(starts) {
        row.copy_from_slice(&page[start..start + LENGTH]);
    }
}

#[inline]
fn put_numbers<const LENGTH: usize>(
    mode: Mode,
    starts: impl ExactSizeIterator<Item = usize>,
    page: &[u8; PAGE_SIZE],
    before: &mut u64,
    out: &mut Vec<u8>,
) {
    let rows = add_rows::<LENGTH>(out, starts.len());
    encode_all(mode, rows, starts, page, before);
}

/// Copies of this many bytes are quicker than those of any number: a shorter value takes some of what follows along.
const QUICK: usize = 32;

/// Values with their headers: one byte, or four. `None`: there is another.
fn put_varying(
    run: &Run,
    rows: &mut [RowSpan],
    page: &[u8; PAGE_SIZE],
    streams: &mut [Vec<u8>],
) -> Option<()> {
    let [heads, bodies, ..] = streams else {
        return None;
    };
    let column = run.columns.start;
    for row in rows.iter_mut().filter(|row| row.has(column)) {
        let (at, row_end) = (usize::from(row.start), usize::from(row.end));
        let first = *page[..row_end].get(at)?;
        let (start, end) = if first & 1 == 1 {
            heads.push(first);
            (at + 1, at + short_length(first))
        } else {
            let start = aligned(at, run.align);
            let head = page.get(start..start + LONG)?;
            if page[at..start].iter().any(|byte| *byte != 0) {
                return None;
            }
            heads.extend_from_slice(head);
            (start + LONG, start + long_length(head)?)
        };
        if end > row_end || is_external(first) && page[start] != ON_DISK {
            return None;
        }
        row.start = end as u16;
        let length = end - start;
        match page[start..].first_chunk::<QUICK>() {
            Some(quick) if length <= QUICK => {
                let end = bodies.len() + length;
                bodies.extend_from_slice(quick);
                bodies.truncate(end);
            }
            _ => bodies.extend_from_slice(&page[start..end]),
        }
    }
    Some(())
}

/// Fills the next values of the rows; padding stays zeros. `stream` is the first of the run's.
pub(super) fn take_run<'c>(
    run: &Run,
    columns: impl Iterator<Item = (&'c Column, &'c mut u64)>,
    rows: &mut [RowSpan],
    page: &mut [u8; PAGE_SIZE],
    starts: &mut Vec<u16>,
    mut stream: usize,
    source: &mut Source<'_>,
) -> Result<(), TransformDamage> {
    if run.length == 0 {
        let left = take_varying(run, rows, page, source.column(stream))?;
        source.put_back(stream, left);
        return Ok(());
    }
    find(run, rows, starts, |_, _| 0).ok_or(LENGTH)?;
    let mut offset = 0;
    for (column, before) in columns {
        let mut left = source.column(stream);
        let starts = starts.iter().map(|start| usize::from(*start) + offset);
        take_values(column, starts, page, before, &mut left)?;
        source.put_back(stream, left);
        stream += column.streams();
        offset += column.shape.length;
    }
    Ok(())
}

fn take_values(
    column: &Column,
    starts: impl ExactSizeIterator<Item = usize>,
    page: &mut [u8; PAGE_SIZE],
    before: &mut u64,
    [left, exceptions]: &mut [&[u8]; 2],
) -> Result<(), TransformDamage> {
    let (mode, length) = (column.mode, column.shape.length);
    let coded = left.split_off(..starts.len() * length).ok_or(ENDS)?;
    match length {
        2 => decode_all::<2>(mode, coded.as_chunks().0, starts, page, before),
        4 => decode_all::<4>(mode, coded.as_chunks().0, starts, page, before),
        8 if column.streams() == 1 => {
            decode_all::<8>(mode, coded.as_chunks().0, starts, page, before)
        }
        8 => {
            for (coded, start) in coded.as_chunks::<8>().0.iter().zip(starts) {
                let coded = u64::from_le_bytes(*coded);
                let value = match mode.decode(coded, *before, 8) {
                    Some(value) => value,
                    None => u64_at(exceptions.split_off(..8).ok_or(ENDS)?, 0),
                };
                page[start..start + 8].copy_from_slice(&value.to_le_bytes());
                *before = value;
            }
        }
        1 => take_bytes::<1>(coded, starts, page),
        16 => take_bytes::<16>(coded, starts, page),
        64 => take_bytes::<64>(coded, starts, page),
        _ => unreachable!("no column has values of {length} bytes"),
    }
    Ok(())
}

#[inline]
fn take_bytes<const LENGTH: usize>(
    values: &[u8],
    starts: impl Iterator<Item = usize>,
    page: &mut [u8; PAGE_SIZE],
) {
    for (value, start) in values.as_chunks::<LENGTH>().0.iter().zip(starts) {
        page[start..start + LENGTH].copy_from_slice(value);
    }
}

fn take_varying<'s>(
    run: &Run,
    rows: &mut [RowSpan],
    page: &mut [u8; PAGE_SIZE],
    [mut heads, mut bodies]: [&'s [u8]; 2],
) -> Result<[&'s [u8]; 2], TransformDamage> {
    let column = run.columns.start;
    for row in rows.iter_mut().filter(|row| row.has(column)) {
        let at = usize::from(row.start);
        let room = &mut page[..usize::from(row.end)];
        let first = *heads.first().ok_or(ENDS)?;
        let (start, length) = if first & 1 == 1 {
            heads = &heads[1..];
            *room.get_mut(at).ok_or(LENGTH)? = first;
            (at + 1, short_length(first) - 1)
        } else {
            let head = heads.split_off(..LONG).ok_or(ENDS)?;
            let start = aligned(at, run.align);
            room.get_mut(start..start + LONG)
                .ok_or(LENGTH)?
                .copy_from_slice(head);
            (start + LONG, long_length(head).ok_or(LENGTH)? - LONG)
        };
        let end = start + length;
        if end > room.len() {
            return Err(LENGTH);
        }
        row.start = end as u16;
        copy(
            &mut room[start..end],
            bodies.split_off(..length).ok_or(ENDS)?,
        );
    }
    Ok([heads, bodies])
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
