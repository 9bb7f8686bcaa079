//! Numbers in every mode.

use proptest::prelude::*;

use crate::page_transform::words::Mode;

const DECIMALS: std::ops::RangeInclusive<u8> = 0..=6;

fn decimal(decimals: u8, number: f64) -> Option<u64> {
    Mode::Decimal(decimals).encode(number.to_bits(), 0, 8)
}

#[test]
fn modes_are_known_by_number() {
    let modes: Vec<_> = (0..=u8::MAX).map_while(Mode::from_number).collect();
    assert_eq!(modes.len(), 17);
    assert!(
        (0..)
            .zip(&modes)
            .all(|(number, mode)| mode.number() == number)
    );
    assert!((17..=u8::MAX).all(|number| Mode::from_number(number).is_none()));
    let fitting = |length| modes.iter().filter(|mode| mode.fits(length)).count();
    assert_eq!([0, 1, 2, 4, 8, 16, 64].map(fitting), [1, 1, 2, 2, 17, 1, 1]);
}

#[test]
fn differences_have_their_sign_in_the_lowest_bit() {
    let mode = Mode::Difference;
    assert_eq!(mode.encode(5, 5, 8), Some(0));
    assert_eq!(mode.encode(4, 5, 8), Some(1));
    assert_eq!(mode.encode(6, 5, 8), Some(2));
    // Of numbers of their own length: 0 is one behind the last of two and of four bytes.
    assert_eq!(mode.encode(0, 0xFFFF, 2), Some(2));
    assert_eq!(mode.encode(0, 0xFFFF, 4), Some(2 * 0xFFFF - 1));
    assert_eq!(mode.encode(0x8000, 0, 2), Some(0xFFFF));
    assert_eq!(mode.encode(0, u64::MAX, 8), Some(2));
    assert_eq!(mode.encode(1 << 63, 0, 8), Some(u64::MAX));
    // Two numbers of four bytes each.
    let (before, value) = (7 << 32 | 9, 6 << 32 | 10);
    assert_eq!(Mode::Halves.encode(value, before, 8), Some(1 << 32 | 2));
    assert_eq!(Mode::Halves.encode(0xFFFF_FFFF, 0, 8), Some(1));
}

#[test]
fn decimals_are_whole_numbers_without_their_point() {
    assert_eq!(decimal(2, 12.34), Some(2 * 1234));
    assert_eq!(decimal(2, -12.34), Some(2 * 1234 - 1));
    assert_eq!(decimal(2, 0.0), Some(0));
    assert_eq!(decimal(6, 0.000_001), Some(2));
    assert_eq!(decimal(1, 12.34), None);
    assert_eq!(decimal(1, 0.1 + 0.2), None);
    let before = 12.30_f64.to_bits();
    let difference = |number: f64| Mode::DecimalDifference(2).encode(number.to_bits(), before, 8);
    assert_eq!(difference(12.34), Some(2 * 4));
    assert_eq!(difference(12.29), Some(1));
    // What is no decimal counts as 0.
    let mode = Mode::DecimalDifference(2);
    assert_eq!(
        mode.encode(0.05_f64.to_bits(), f64::NAN.to_bits(), 8),
        Some(10)
    );
}

#[test]
fn what_is_no_decimal_is_an_exception() {
    // Up to here the whole number nearest to what a multiplication gives is the right one.
    let largest = (3_u64 << 49) as f64;
    for decimals in DECIMALS {
        for number in [
            -0.0,
            f64::NAN,
            -f64::NAN,
            f64::from_bits(0x7FF0_0000_0000_0001),
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::MIN_POSITIVE,
            f64::from_bits(1),
            f64::MAX,
            f64::MIN,
            1e-7,
            largest + 1.0,
            -largest - 1.0,
            largest * 2.0,
        ] {
            assert_eq!(decimal(decimals, number), None, "{number} {decimals}");
        }
    }
    assert_eq!(decimal(0, largest), Some(3 << 50));
    assert_eq!(decimal(0, -largest), Some((3 << 50) - 1));
    assert_eq!(decimal(6, largest), None);
    // The largest difference there is, and yet not the mark of an exception.
    let mode = Mode::DecimalDifference(0);
    let coded = mode.encode((-largest).to_bits(), largest.to_bits(), 8);
    assert_eq!(coded, Some((3 << 51) - 1));
}

/// Numbers of every kind: all bits, few bits, decimals, and what stands at the ends.
fn number() -> impl Strategy<Value = u64> {
    let decimal =
        |(whole, decimals): (i64, u8)| (whole as f64 / 10_f64.powi(i32::from(decimals))).to_bits();
    prop_oneof![
        any::<u64>(),
        (any::<u64>(), 0..64_u32).prop_map(|(bits, shift)| bits >> shift),
        (any::<i32>().prop_map(i64::from), 0..9_u8).prop_map(decimal),
        (-(1_i64 << 54)..1 << 54, DECIMALS).prop_map(decimal),
        any::<f64>().prop_map(f64::to_bits),
        any::<f32>().prop_map(|number| f64::from(number).to_bits()),
        prop::sample::select(vec![
            0,
            1,
            u64::MAX,
            1 << 63,
            f64::NAN.to_bits(),
            (-0.0_f64).to_bits()
        ]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_number_comes_back(value in number(), before in number()) {
        for mode in (0..17).filter_map(Mode::from_number) {
            for length in [2, 4, 8].into_iter().filter(|length| mode.fits(*length)) {
                let within = |number: u64| number & (u64::MAX >> (64 - 8 * length as u32));
                let (value, before) = (within(value), within(before));
                if let Some(coded) = mode.encode(value, before, length) {
                    // What is written is as long as the number.
                    prop_assert_eq!(mode.decode(within(coded), before, length), Some(value));
                } else {
                    prop_assert!(mode.number() >= 3);
                    prop_assert_eq!(mode.decode(u64::MAX, before, length), None);
                }
            }
        }
    }

    #[test]
    fn any_bits_are_a_number_or_an_exception(coded in any::<u64>(), before in number()) {
        for mode in (0..17).filter_map(Mode::from_number) {
            let _ = mode.decode(coded, before, 8);
        }
    }
}
