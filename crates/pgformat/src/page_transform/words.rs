//! Words: the first values of rows and keys, eight bytes at a time, each in a stream of its own.

use super::TransformDamage;
use super::streams::{HEAP_WORDS, INDEX_WORDS, Source, Stream, Streams};
use crate::PAGE_SIZE;

/// How a number is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// As it is.
    Plain,
    /// The difference to the row before, its sign in the lowest bit.
    Difference,
    /// The same for each half.
    Halves,
    /// A floating-point number with so many decimals, without its point: as [`Mode::Plain`], its sign in the lowest bit.
    Decimal(u8),
    /// As [`Mode::Difference`].
    DecimalDifference(u8),
}

/// Decimals tried.
const DECIMALS: u8 = 6;

impl Mode {
    /// In place of a number that has more decimals than the others, or is none.
    pub(super) const EXCEPTION: u64 = u64::MAX;

    /// Every mode for words.
    pub(super) const WORDS: [Self; 3] = [Self::Plain, Self::Difference, Self::Halves];

    /// Every mode for values of this length.
    pub(super) fn of_length(length: usize) -> impl Iterator<Item = Self> {
        (0..=u8::MAX)
            .map_while(Self::from_number)
            .filter(move |mode| mode.fits(length))
    }

    pub(super) fn number(self) -> u8 {
        match self {
            Self::Plain => 0,
            Self::Difference => 1,
            Self::Halves => 2,
            Self::Decimal(decimals) => 3 + 2 * decimals,
            Self::DecimalDifference(decimals) => 4 + 2 * decimals,
        }
    }

    pub(super) fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Plain,
            1 => Self::Difference,
            2 => Self::Halves,
            _ => {
                let decimals = (number - 3) / 2;
                if decimals > DECIMALS {
                    return None;
                }
                if number % 2 == 1 {
                    Self::Decimal(decimals)
                } else {
                    Self::DecimalDifference(decimals)
                }
            }
        })
    }

    /// Whether values of this length can be written so.
    pub(super) fn fits(self, length: usize) -> bool {
        match self {
            Self::Plain => true,
            Self::Difference => matches!(length, 2 | 4 | 8),
            Self::Halves | Self::Decimal(_) | Self::DecimalDifference(_) => length == 8,
        }
    }

    /// A value of two, four or eight bytes as it is written; `None`: it cannot be written so.
    #[inline(always)]
    pub(super) fn encode(self, value: u64, before: u64, length: usize) -> Option<u64> {
        Some(match self {
            Self::Plain => value,
            Self::Difference => difference(value, before, length),
            Self::Halves => halves(value, before),
            Self::Decimal(decimals) => fold(without_point(value, decimals)?.cast_unsigned()),
            Self::DecimalDifference(decimals) => {
                let before = without_point(before, decimals).unwrap_or(0);
                fold((without_point(value, decimals)? - before).cast_unsigned())
            }
        })
    }

    /// The opposite of [`Mode::encode`]; `None`: the value is an exception.
    #[inline(always)]
    pub(super) fn decode(self, coded: u64, before: u64, length: usize) -> Option<u64> {
        Some(match self {
            Self::Plain => coded,
            Self::Difference => add_difference(coded, before, length),
            Self::Halves => add_halves(coded, before),
            Self::Decimal(_) | Self::DecimalDifference(_) if coded == Self::EXCEPTION => {
                return None;
            }
            Self::Decimal(decimals) => with_point(unfold(coded).cast_signed(), decimals),
            Self::DecimalDifference(decimals) => {
                let before = without_point(before, decimals).unwrap_or(0);
                with_point(before.wrapping_add(unfold(coded).cast_signed()), decimals)
            }
        })
    }
}

/// Powers of ten: exact as floating-point numbers, so that a division by them gives the same bits everywhere (IEEE 754).
const POWERS: [f64; DECIMALS as usize + 1] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6];

/// The whole number that this floating-point number has without its point; `None`: it has more decimals, or is too large.
#[inline]
fn without_point(bits: u64, decimals: u8) -> Option<i64> {
    /// Up to half of this every whole number is a floating-point number; added and taken away again, it rounds to a whole one
    /// (to even, and without a call).
    const ROUNDING: f64 = (3_i64 << 51) as f64;
    let scaled = f64::from_bits(bits) * POWERS[usize::from(decimals)];
    if scaled.is_nan() || scaled.abs() > ROUNDING / 4.0 {
        return None;
    }
    let whole = (scaled + ROUNDING - ROUNDING) as i64;
    (with_point(whole, decimals) == bits).then_some(whole)
}

/// The opposite of [`without_point`].
#[inline]
fn with_point(whole: i64, decimals: u8) -> u64 {
    (whole as f64 / POWERS[usize::from(decimals)]).to_bits()
}

/// 0, -1, 1, -2, 2 ... as 0, 1, 2, 3, 4: small differences of either sign have zeros in their upper bytes.
#[inline]
pub(super) fn fold(difference: u64) -> u64 {
    (difference << 1) ^ ((difference as i64) >> 63) as u64
}

#[inline]
pub(super) fn unfold(folded: u64) -> u64 {
    (folded >> 1) ^ (folded & 1).wrapping_neg()
}

#[inline]
pub(super) fn fold_half(difference: u32) -> u32 {
    (difference << 1) ^ ((difference as i32) >> 31) as u32
}

#[inline]
pub(super) fn unfold_half(folded: u32) -> u32 {
    (folded >> 1) ^ (folded & 1).wrapping_neg()
}

/// Rows whose words mean the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Rows without values of variable length (no `HEAP_HASVARWIDTH`).
    HeapFixed = 0,
    HeapVariable = 1,
    /// Keys without values of variable length and without nulls.
    IndexFixed = 2,
    IndexVariable = 3,
}

impl Class {
    pub(super) const ALL: [Self; 4] = [
        Self::HeapFixed,
        Self::HeapVariable,
        Self::IndexFixed,
        Self::IndexVariable,
    ];

    pub(super) fn words(self) -> usize {
        match self {
            Self::HeapFixed | Self::HeapVariable => HEAP_WORDS,
            Self::IndexFixed | Self::IndexVariable => INDEX_WORDS,
        }
    }
}

/// Which words of a class have streams, and how they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub count: u8,
    pub modes: [Mode; HEAP_WORDS],
}

impl Plan {
    pub(super) const NONE: Self = Self {
        count: 0,
        modes: [Mode::Plain; HEAP_WORDS],
    };

    pub(super) fn modes(&self) -> &[Mode] {
        &self.modes[..usize::from(self.count)]
    }

    /// A byte for the count, and one for each mode.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.push(self.count);
        out.extend(self.modes().iter().map(|mode| mode.number()));
    }

    /// The plan at the beginning of `bytes`, which then begin behind it.
    pub(super) fn read(bytes: &mut &[u8], class: Class) -> Result<Self, TransformDamage> {
        const IMPOSSIBLE: TransformDamage = TransformDamage("a plan of words is impossible");
        let (count, rest) = bytes.split_first().ok_or(IMPOSSIBLE)?;
        let mut plan = Self {
            count: *count,
            ..Self::NONE
        };
        if usize::from(*count) > class.words() {
            return Err(IMPOSSIBLE);
        }
        let (modes, rest) = rest
            .split_at_checked(usize::from(*count))
            .ok_or(IMPOSSIBLE)?;
        *bytes = rest;
        for (mode, number) in plan.modes.iter_mut().zip(modes) {
            *mode = *Mode::WORDS.get(usize::from(*number)).ok_or(IMPOSSIBLE)?;
        }
        Ok(plan)
    }
}

/// The words of the row before, in the streams that begin at `first`.
pub(super) struct Words {
    first: Stream,
    before: [u64; HEAP_WORDS],
}

impl Words {
    pub(super) fn new(first: Stream) -> Self {
        Self {
            first,
            before: [0; HEAP_WORDS],
        }
    }

    /// Takes words off `row`; returns what is left of it.
    #[inline]
    pub(super) fn put<'a>(
        &mut self,
        plan: &Plan,
        row: &'a [u8],
        streams: &mut Streams,
    ) -> &'a [u8] {
        let (words, _) = row.as_chunks::<8>();
        let mut taken = 0;
        for (bytes, mode) in words.iter().zip(plan.modes()) {
            let value = u64::from_le_bytes(*bytes);
            let coded = mode.encode(value, self.before[taken], 8).unwrap_or(value);
            streams.put_word(self.first, taken, coded);
            self.before[taken] = value;
            taken += 1;
        }
        &row[taken * 8..]
    }

    /// Puts words into `row`; returns the room that is left of it.
    #[inline]
    pub(super) fn take<'a>(
        &mut self,
        plan: &Plan,
        row: &'a mut [u8],
        source: &mut Source<'_>,
    ) -> Result<&'a mut [u8], TransformDamage> {
        let (words, _) = row.as_chunks_mut::<8>();
        let mut taken = 0;
        for (bytes, mode) in words.iter_mut().zip(plan.modes()) {
            let coded = source.word(self.first, taken)?;
            let value = mode.decode(coded, self.before[taken], 8).unwrap_or(coded);
            *bytes = value.to_le_bytes();
            self.before[taken] = value;
            taken += 1;
        }
        Ok(&mut row[taken * 8..])
    }

    /// As [`Words::put`] for many keys of a page, which begin there and have every word of the plan.
    pub(super) fn put_all(
        &mut self,
        plan: &Plan,
        page: &[u8; PAGE_SIZE],
        keys: impl ExactSizeIterator<Item = usize> + Clone,
        streams: &mut Streams,
    ) {
        for (word, mode) in plan.modes().iter().enumerate() {
            let rows = streams.add_words(self.first, word, keys.len());
            let before = &mut self.before[word];
            let starts = keys.clone().map(|key| key + word * 8);
            encode_all(*mode, rows, starts, page, before);
        }
    }

    /// The opposite of [`Words::put_all`].
    pub(super) fn take_all(
        &mut self,
        plan: &Plan,
        page: &mut [u8; PAGE_SIZE],
        keys: impl ExactSizeIterator<Item = usize> + Clone,
        source: &mut Source<'_>,
    ) -> Result<(), TransformDamage> {
        for (word, mode) in plan.modes().iter().enumerate() {
            let rows = source.words(self.first, word, keys.len())?;
            let before = &mut self.before[word];
            let starts = keys.clone().map(|key| key + word * 8);
            decode_all(*mode, rows, starts, page, before);
        }
        Ok(())
    }
}

/// Fills `rows` with the numbers that begin at `starts`; in no mode that has exceptions.
#[inline]
pub(super) fn encode_all<const LENGTH: usize>(
    mode: Mode,
    rows: &mut [[u8; LENGTH]],
    starts: impl Iterator<Item = usize>,
    page: &[u8; PAGE_SIZE],
    before: &mut u64,
) {
    // One loop for each form, so that within it nothing has to be asked.
    let rows = rows.iter_mut().zip(starts);
    match mode {
        Mode::Difference => encode(rows, page, before, |value, before| {
            difference(value, before, LENGTH)
        }),
        Mode::Halves => encode(rows, page, before, halves),
        _ => encode(rows, page, before, |value, _| value),
    }
}

#[inline]
fn encode<'r, const LENGTH: usize>(
    rows: impl Iterator<Item = (&'r mut [u8; LENGTH], usize)>,
    page: &[u8; PAGE_SIZE],
    before: &mut u64,
    encode: impl Fn(u64, u64) -> u64,
) {
    for (row, start) in rows {
        let value = widened(&page[start..start + LENGTH]);
        *row = narrowed(encode(value, *before));
        *before = value;
    }
}

/// The opposite of [`encode_all`].
#[inline]
pub(super) fn decode_all<const LENGTH: usize>(
    mode: Mode,
    rows: &[[u8; LENGTH]],
    starts: impl Iterator<Item = usize>,
    page: &mut [u8; PAGE_SIZE],
    before: &mut u64,
) {
    let rows = rows.iter().zip(starts);
    match mode {
        Mode::Difference => decode(rows, page, before, |coded, before| {
            add_difference(coded, before, LENGTH)
        }),
        Mode::Halves => decode(rows, page, before, add_halves),
        _ => decode(rows, page, before, |coded, _| coded),
    }
}

#[inline]
fn decode<'r, const LENGTH: usize>(
    rows: impl Iterator<Item = (&'r [u8; LENGTH], usize)>,
    page: &mut [u8; PAGE_SIZE],
    before: &mut u64,
    decode: impl Fn(u64, u64) -> u64,
) {
    for (row, start) in rows {
        let value = decode(widened(row), *before);
        page[start..start + LENGTH].copy_from_slice(&narrowed::<LENGTH>(value));
        *before = value;
    }
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

/// The difference of two numbers of this many bytes.
#[inline]
pub(super) fn difference(value: u64, before: u64, length: usize) -> u64 {
    // Sign-extended from that length.
    let shift = 64 - 8 * length as u32;
    let difference = (value.wrapping_sub(before) << shift).cast_signed() >> shift;
    fold(difference.cast_unsigned())
}

#[inline]
pub(super) fn add_difference(coded: u64, before: u64, length: usize) -> u64 {
    before.wrapping_add(unfold(coded)) & (u64::MAX >> (64 - 8 * length as u32))
}

#[inline]
fn halves(value: u64, before: u64) -> u64 {
    let half = |shift| fold_half(((value >> shift) as u32).wrapping_sub((before >> shift) as u32));
    u64::from(half(32)) << 32 | u64::from(half(0))
}

#[inline]
fn add_halves(coded: u64, before: u64) -> u64 {
    let half =
        |shift| ((before >> shift) as u32).wrapping_add(unfold_half((coded >> shift) as u32));
    u64::from(half(32)) << 32 | u64::from(half(0))
}
