//! Bytes that are mostly zeros: maps of free space and of visibility, meta pages, holes.

use super::TransformDamage;
use super::streams::{Source, Stream, Streams};
use crate::PAGE_SIZE;
use std::ops::Range;

/// Bytes of a cell: what is left out where there are only zeros.
const CELL: usize = 64;

/// Bytes that are mostly zeros, as in maps of free space, on meta pages and in holes: a bit for each cell says whether
/// there is anything in it.
pub(super) fn put_sparse(bytes: &[u8], stream: Stream, streams: &mut Streams) {
    // The cells that follow one another and have something in them.
    let mut run = 0..0;
    let mut put = |run: &mut Range<usize>, cell: &[u8], start: usize| {
        // Without a branch for each byte: the compiler makes vector code of it.
        let something = cell.iter().fold(0, |seen, byte| seen | byte) != 0;
        if something {
            if run.end != start {
                streams.put(stream, &bytes[run.clone()]);
                run.start = start;
            }
            run.end = start + cell.len();
        }
        u8::from(something)
    };
    let (cells, last) = bytes.as_chunks::<CELL>();
    let (groups, cells) = cells.as_chunks::<8>();
    let mut start = 0;
    let mut bitmap = [0; PAGE_SIZE / CELL / 8 + 1];
    let mut count = 0;
    for group in groups {
        for (number, cell) in group.iter().enumerate() {
            bitmap[count] |= put(&mut run, cell, start) << number;
            start += CELL;
        }
        count += 1;
    }
    for (number, cell) in cells.iter().map(|cell| &cell[..]).chain([last]).enumerate() {
        bitmap[count] |= put(&mut run, cell, start) << number;
        start += cell.len();
    }
    count += usize::from(!(cells.is_empty() && last.is_empty()));
    streams.put(stream, &bytes[run]);
    streams.put(Stream::Cells, &bitmap[..count]);
}

/// The opposite of [`put_sparse`]; `bytes` are zeros.
pub(super) fn take_sparse(
    bytes: &mut [u8],
    stream: Stream,
    source: &mut Source<'_>,
) -> Result<(), TransformDamage> {
    for group in bytes.chunks_mut(CELL * 8) {
        let bits = source.byte(Stream::Cells)?;
        let cells = group.chunks_mut(CELL).enumerate();
        for (_, cell) in cells.filter(|(number, _)| bits >> number & 1 == 1) {
            cell.copy_from_slice(source.bytes(stream, cell.len())?);
        }
    }
    Ok(())
}
