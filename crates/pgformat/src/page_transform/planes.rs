//! Byte planes: the first bytes of all rows, then the second bytes, and so on. Bytes of equal meaning come together,
//! and those that hardly differ from row to row cost next to nothing.
//!
//! Sixteen rows at a time are a matrix that is turned over in vector registers, with instructions that every x86-64
//! and every ARM of 64 bits has.

use wide::u8x16;

/// Rows turned over at a time: bytes of a register.
const ROWS: usize = 16;

/// Appends the planes of `rows`, each of `width` bytes. Bytes behind the last whole row do not count.
pub(super) fn split(rows: &[u8], width: usize, out: &mut Vec<u8>) {
    let start = out.len();
    if width == 1 {
        return out.extend_from_slice(rows);
    }
    out.resize(start + rows.len() / width * width, 0);
    let planes = &mut out[start..];
    match width {
        2 => split_rows::<2, 2>(rows, planes),
        3 => split_rows::<3, 4>(rows, planes),
        4 => split_rows::<4, 4>(rows, planes),
        6 => split_rows::<6, 8>(rows, planes),
        8 => split_rows::<8, 8>(rows, planes),
        16 => split_rows::<16, 16>(rows, planes),
        20 => split_slowly::<20>(rows, planes, 0),
        _ => unreachable!("no stream has rows of {width} bytes"),
    }
}

/// Fills `rows` with the rows whose planes these are; the opposite of [`split`]. Both are of one length.
pub(super) fn join(planes: &[u8], width: usize, rows: &mut [u8]) {
    match width {
        1 => rows.copy_from_slice(planes),
        2 => join_rows::<2, 2>(planes, rows),
        3 => join_rows::<3, 4>(planes, rows),
        4 => join_rows::<4, 4>(planes, rows),
        6 => join_rows::<6, 8>(planes, rows),
        8 => join_rows::<8, 8>(planes, rows),
        16 => join_rows::<16, 16>(planes, rows),
        20 => join_slowly::<20>(planes, rows, 0),
        _ => unreachable!("no stream has rows of {width} bytes"),
    }
}

/// `SIZE` is the width, or the next power of two: a row is read with what lies behind it, which goes nowhere.
fn split_rows<const WIDTH: usize, const SIZE: usize>(rows: &[u8], planes: &mut [u8]) {
    let count = rows.len() / WIDTH;
    let mut done = 0;
    while let Some(block) = rows[done * WIDTH..].get(..(ROWS - 1) * WIDTH + SIZE) {
        let mut matrix = std::array::from_fn(|register| gather::<WIDTH, SIZE>(block, register));
        for _ in 0..ROWS.ilog2() {
            matrix = shuffle::<SIZE>(matrix);
        }
        for (plane, bytes) in matrix.iter().take(WIDTH).enumerate() {
            let at = plane * count + done;
            planes[at..at + ROWS].copy_from_slice(&bytes.to_array());
        }
        done += ROWS;
    }
    split_slowly::<WIDTH>(rows, planes, done);
}

fn join_rows<const WIDTH: usize, const SIZE: usize>(planes: &[u8], rows: &mut [u8]) {
    let count = rows.len() / WIDTH;
    let mut done = 0;
    while let Some(block) = rows[done * WIDTH..].get_mut(..(ROWS - 1) * WIDTH + SIZE) {
        let mut matrix = [u8x16::ZERO; SIZE];
        for (plane, register) in matrix.iter_mut().take(WIDTH).enumerate() {
            let at = plane * count + done;
            *register = u8x16::from(&planes[at..at + ROWS]);
        }
        for _ in 0..SIZE.ilog2() {
            matrix = shuffle::<SIZE>(matrix);
        }
        for (register, bytes) in matrix.iter().enumerate() {
            scatter::<WIDTH, SIZE>(block, register, bytes.to_array());
        }
        done += ROWS;
    }
    join_slowly::<WIDTH>(planes, rows, done);
}

/// As many rows as go into one register, of the block's.
#[inline(always)]
fn gather<const WIDTH: usize, const SIZE: usize>(block: &[u8], register: usize) -> u8x16 {
    let mut bytes = [0; ROWS];
    let first = register * (ROWS / SIZE);
    for (row, bytes) in bytes.chunks_exact_mut(SIZE).enumerate() {
        bytes.copy_from_slice(&block[(first + row) * WIDTH..][..SIZE]);
    }
    u8x16::new(bytes)
}

/// The opposite of [`gather`]: what goes too far is overwritten by the next row.
#[inline(always)]
fn scatter<const WIDTH: usize, const SIZE: usize>(
    block: &mut [u8],
    register: usize,
    bytes: [u8; ROWS],
) {
    let first = register * (ROWS / SIZE);
    for (row, bytes) in bytes.chunks_exact(SIZE).enumerate() {
        block[(first + row) * WIDTH..][..SIZE].copy_from_slice(bytes);
    }
}

/// The first half of all bytes and the second one, in turns. The bits of a byte's place are rotated by one that way, so
/// that a few rounds exchange those of the row for those of the byte within the row.
#[inline(always)]
fn shuffle<const SIZE: usize>(matrix: [u8x16; SIZE]) -> [u8x16; SIZE] {
    std::array::from_fn(|register| {
        let (a, b) = (matrix[register / 2], matrix[SIZE / 2 + register / 2]);
        if register % 2 == 0 {
            u8x16::unpack_low(a, b)
        } else {
            u8x16::unpack_high(a, b)
        }
    })
}

/// The planes of the rows from `first` on.
fn split_slowly<const WIDTH: usize>(rows: &[u8], planes: &mut [u8], first: usize) {
    let (rows, _) = rows.as_chunks::<WIDTH>();
    for (byte, plane) in planes.chunks_exact_mut(rows.len().max(1)).enumerate() {
        for (value, row) in plane.iter_mut().zip(rows).skip(first) {
            *value = row[byte];
        }
    }
}

/// The rows from `first` on.
fn join_slowly<const WIDTH: usize>(planes: &[u8], rows: &mut [u8], first: usize) {
    let (rows, _) = rows.as_chunks_mut::<WIDTH>();
    for (byte, plane) in planes
        .chunks_exact(rows.len().max(1))
        .enumerate()
        .take(WIDTH)
    {
        for (row, value) in rows.iter_mut().zip(plane).skip(first) {
            row[byte] = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn joined_planes_are_the_rows(
            width in prop::sample::select(vec![1_usize, 2, 3, 4, 6, 8, 16, 20]),
            rows in prop::collection::vec(any::<u8>(), 0..1200),
        ) {
            let rows = &rows[..rows.len() / width * width];
            let (mut planes, mut joined) = (vec![7], vec![9; rows.len()]);
            split(rows, width, &mut planes);
            let expected = (0..width).flat_map(|byte| rows.iter().skip(byte).step_by(width));
            prop_assert!(planes[1..].iter().eq(expected));
            join(&planes[1..], width, &mut joined);
            prop_assert_eq!(&joined[..], rows);
        }
    }
}
