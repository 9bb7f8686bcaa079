//! Byte planes: the first bytes of all rows, then the second bytes, and so on. Bytes of equal meaning come together,
//! and those that hardly differ from row to row cost next to nothing.

/// Appends the planes of `rows`, each of `width` bytes. Bytes behind the last whole row do not count.
pub(super) fn split(rows: &[u8], width: usize, out: &mut Vec<u8>) {
    match width {
        1 => out.extend_from_slice(rows),
        2 => split_rows::<2>(rows, out),
        3 => split_rows::<3>(rows, out),
        4 => split_rows::<4>(rows, out),
        6 => split_rows::<6>(rows, out),
        8 => split_words(rows, out),
        16 => split_rows::<16>(rows, out),
        20 => split_rows::<20>(rows, out),
        _ => unreachable!("no stream has rows of {width} bytes"),
    }
}

/// Fills `rows` with the rows whose planes these are; the opposite of [`split`]. Both are of one length.
pub(super) fn join(planes: &[u8], width: usize, rows: &mut [u8]) {
    match width {
        1 => rows.copy_from_slice(planes),
        2 => join_rows::<2>(planes, rows),
        3 => join_rows::<3>(planes, rows),
        4 => join_rows::<4>(planes, rows),
        6 => join_rows::<6>(planes, rows),
        8 => join_words(planes, rows),
        16 => join_rows::<16>(planes, rows),
        20 => join_rows::<20>(planes, rows),
        _ => unreachable!("no stream has rows of {width} bytes"),
    }
}

fn split_rows<const WIDTH: usize>(rows: &[u8], out: &mut Vec<u8>) {
    let (rows, _) = rows.as_chunks::<WIDTH>();
    for byte in 0..WIDTH {
        out.extend(rows.iter().map(|row| row[byte]));
    }
}

fn join_rows<const WIDTH: usize>(planes: &[u8], rows: &mut [u8]) {
    let (rows, _) = rows.as_chunks_mut::<WIDTH>();
    for (byte, plane) in planes
        .chunks_exact(rows.len().max(1))
        .enumerate()
        .take(WIDTH)
    {
        for (row, value) in rows.iter_mut().zip(plane) {
            row[byte] = *value;
        }
    }
}

/// As `split_rows::<8>`, eight rows at a time in eight registers.
fn split_words(rows: &[u8], out: &mut Vec<u8>) {
    let (rows, _) = rows.as_chunks::<8>();
    let start = out.len();
    out.resize(start + rows.len() * 8, 0);
    let mut planes = planes_of(&mut out[start..]);
    let (blocks, tail) = rows.as_chunks::<8>();
    for (index, block) in blocks.iter().enumerate() {
        let turned = turn(block.map(u64::from_le_bytes));
        for (plane, bytes) in planes.iter_mut().zip(turned) {
            plane[index * 8..index * 8 + 8].copy_from_slice(&bytes.to_le_bytes());
        }
    }
    for (index, row) in tail.iter().enumerate() {
        for (plane, byte) in planes.iter_mut().zip(row) {
            plane[blocks.len() * 8 + index] = *byte;
        }
    }
}

fn join_words(planes: &[u8], rows: &mut [u8]) {
    let (rows, _) = rows.as_chunks_mut::<8>();
    let count = rows.len();
    let (blocks, tail) = rows.as_chunks_mut::<8>();
    let whole = blocks.len() * 8;
    for (index, block) in blocks.iter_mut().enumerate() {
        let mut words = [0; 8];
        for (plane, word) in words.iter_mut().enumerate() {
            *word = crate::u64_at(planes, plane * count + index * 8);
        }
        for (row, word) in block.iter_mut().zip(turn(words)) {
            *row = word.to_le_bytes();
        }
    }
    for (index, row) in tail.iter_mut().enumerate() {
        for (plane, byte) in row.iter_mut().enumerate() {
            *byte = planes[plane * count + whole + index];
        }
    }
}

/// Eight planes of equal length.
fn planes_of(bytes: &mut [u8]) -> [&mut [u8]; 8] {
    let count = bytes.len() / 8;
    let mut left = bytes;
    std::array::from_fn(|_| {
        let (plane, rest) = std::mem::take(&mut left).split_at_mut(count);
        left = rest;
        plane
    })
}

/// Byte `i` of word `j` becomes byte `j` of word `i`: a matrix of 8 × 8 bytes, turned in three rounds of swaps. Its own
/// opposite.
fn turn(mut words: [u64; 8]) -> [u64; 8] {
    for (distance, mask) in [
        (4, 0x0000_0000_FFFF_FFFF_u64),
        (2, 0x0000_FFFF_0000_FFFF),
        (1, 0x00FF_00FF_00FF_00FF),
    ] {
        let shift = distance * 8;
        for low in (0..8).filter(|index| index & distance == 0) {
            let (a, b) = (words[low], words[low + distance]);
            words[low] = (a & mask) | ((b & mask) << shift);
            words[low + distance] = ((a >> shift) & mask) | (b & !mask);
        }
    }
    words
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
