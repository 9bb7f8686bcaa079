//! Values of columns as they lie in rows and keys, made up.
//!
//! Facts from `varatt.h` and `access/common/heaptuple.c` (`heap_fill_tuple`).

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, RngCore};

/// Values of one type.
#[derive(Debug, Clone, Copy)]
pub enum Column {
    Bool,
    Small,
    Int,
    Big,
    /// Microseconds, one row behind the other.
    Time,
    /// A float8 with so many decimals.
    Decimal(u8),
    /// A float8 of any bits, with those among them that are special.
    Float,
    Uuid,
    Interval,
    Name,
    /// Text of at most so many bytes.
    Text(u16),
    /// A long header, as values have that were compressed.
    Compressed(u16),
    /// An array: long header, aligned to eight.
    Wide(u16),
    /// A pointer into the TOAST table.
    Toast,
}

impl Column {
    fn align(self, value: &[u8]) -> usize {
        match self {
            Self::Small => 2,
            Self::Int => 4,
            Self::Big | Self::Time | Self::Decimal(_) | Self::Float | Self::Interval => 8,
            Self::Text(_) | Self::Compressed(_) if value[0] & 1 == 0 => 4,
            Self::Wide(_) => 8,
            _ => 1,
        }
    }

    pub fn varies(self) -> bool {
        matches!(
            self,
            Self::Text(_) | Self::Compressed(_) | Self::Wide(_) | Self::Toast
        )
    }

    /// The value in row number `row`, with its header if it has one.
    fn value(self, row: u64, rng: &mut StdRng) -> Vec<u8> {
        match self {
            Self::Bool => vec![rng.random_range(0..2)],
            Self::Small => rng.random_range(-3..300_i16).to_le_bytes().to_vec(),
            Self::Int => (row as u32 ^ rng.random_range(0..4)).to_le_bytes().to_vec(),
            Self::Big => (rng.next_u64() >> rng.random_range(0..64))
                .to_le_bytes()
                .to_vec(),
            Self::Time => (746_000_000_000_000 + row * 1_003_127)
                .to_le_bytes()
                .to_vec(),
            Self::Decimal(decimals) => {
                let whole = rng.random_range(-1_000_000..1_000_000_i64);
                (whole as f64 / 10_f64.powi(i32::from(decimals)))
                    .to_le_bytes()
                    .to_vec()
            }
            Self::Float => {
                const SPECIAL: [f64; 8] = [
                    -0.0,
                    f64::NAN,
                    f64::INFINITY,
                    f64::NEG_INFINITY,
                    f64::MIN_POSITIVE / 2.0,
                    9.007_199_254_740_993e15,
                    0.1,
                    f64::MAX,
                ];
                let special = SPECIAL.get(rng.random_range(0..16_usize)).copied();
                special
                    .unwrap_or_else(|| f64::from_bits(rng.next_u64()))
                    .to_le_bytes()
                    .to_vec()
            }
            Self::Uuid => bytes(16, rng),
            Self::Interval => {
                let mut value = bytes(8, rng);
                value.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0]);
                value
            }
            Self::Name => {
                let mut name = words(rng.random_range(1..63), rng);
                name.resize(64, 0);
                name
            }
            Self::Text(most) => {
                let text = words(rng.random_range(0..=most.into()), rng);
                if text.len() < 126 {
                    varlena(&[(text.len() as u8 + 1) << 1 | 1], &text)
                } else {
                    varlena(&long_header(text.len(), 0), &text)
                }
            }
            Self::Compressed(most) => {
                let length = rng.random_range(0..=most.into());
                varlena(&long_header(length, 2), &bytes(length, rng))
            }
            Self::Wide(most) => {
                let text = words(rng.random_range(0..=most.into()), rng);
                varlena(&long_header(text.len(), 0), &text)
            }
            Self::Toast => varlena(&[1, 18], &bytes(16, rng)),
        }
    }
}

/// The header of a value of so many bytes (`SET_VARSIZE`), `flags` in its lowest bits.
fn long_header(length: usize, flags: u32) -> [u8; 4] {
    ((length as u32 + 4) << 2 | flags).to_le_bytes()
}

fn varlena(header: &[u8], value: &[u8]) -> Vec<u8> {
    [header, value].concat()
}

/// Any bytes.
pub fn bytes(count: usize, rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; count];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn words(count: usize, rng: &mut StdRng) -> Vec<u8> {
    (0..count)
        .map(|_| b"eeenrist  ,aulmdogcfpbv"[rng.random_range(0..23)])
        .collect()
}

/// Whether the event happens this time, which does every so many times; 0: never.
pub fn happens(every: u32, rng: &mut StdRng) -> bool {
    every > 0 && rng.random_ratio(1, every)
}

/// Values one behind the other, each aligned (`heap_fill_tuple`), and a bit for each that is not null.
pub fn form(columns: &[Column], nulls: u32, row: u64, rng: &mut StdRng) -> (Vec<u8>, Vec<bool>) {
    let (mut values, mut present) = (Vec::new(), Vec::new());
    for column in columns {
        present.push(!happens(nulls, rng));
        let value = column.value(row, rng);
        if present.last() == Some(&true) {
            values.resize(values.len().next_multiple_of(column.align(&value)), 0);
            values.extend_from_slice(&value);
        }
    }
    (values, present)
}

/// A null bitmap.
pub fn bitmap(present: &[bool]) -> Vec<u8> {
    let byte = |bits: &[bool]| {
        (0..)
            .zip(bits)
            .fold(0, |byte, (bit, set)| byte | u8::from(*set) << bit)
    };
    present.chunks(8).map(byte).collect()
}

/// Columns of every type.
pub fn column() -> impl Strategy<Value = Column> {
    prop_oneof![
        Just(Column::Bool),
        Just(Column::Small),
        Just(Column::Int),
        Just(Column::Big),
        Just(Column::Time),
        (0..8_u8).prop_map(Column::Decimal),
        Just(Column::Float),
        Just(Column::Uuid),
        Just(Column::Interval),
        Just(Column::Name),
        (0..300_u16).prop_map(Column::Text),
        (0..300_u16).prop_map(Column::Compressed),
        (0..100_u16).prop_map(Column::Wide),
        Just(Column::Toast),
    ]
}
