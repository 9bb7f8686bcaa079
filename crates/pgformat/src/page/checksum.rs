//! The page checksum: 32 FNV-1a sums side by side, folded into 16 bits (`storage/checksum_impl.h`).
//!
//! The sums are independent of each other, so the compiler makes vector code of the plain loops below. Built for
//! any x86-64 it may only use SSE2, which has no 32-bit multiplication; so on x86-64 the same code is compiled a
//! second time for AVX2, and chosen at run time where the processor has it.

#![expect(
    unsafe_code,
    reason = "calling code compiled for AVX2 after asking the processor for it"
)]

use crate::{BlockNumber, PAGE_SIZE};

/// Sums kept side by side (`N_SUMS`).
const LANES: usize = 32;

/// Bytes that advance every sum by one value.
const ROW: usize = LANES * size_of::<u32>();

/// The multiplier of FNV-1a (`FNV_PRIME`).
const FNV_PRIME: u32 = 16_777_619;

/// What each sum begins with (`checksumBaseOffsets`).
const BASE_OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// The checksum of a page at a relation-wide block number (`pg_checksum_page`). The checksum field on the page does
/// not count; the block number does, so that a page in another's place is noticed. Never 0.
///
/// # Panics
///
/// When `page` is not exactly [`PAGE_SIZE`] bytes.
#[must_use]
pub fn page_checksum(page: &[u8], block: BlockNumber) -> u16 {
    let Ok(page) = <&[u8; PAGE_SIZE]>::try_from(page) else {
        panic!("a page has {PAGE_SIZE} bytes, not {}", page.len());
    };
    let [sum] = sums([page]);
    checksum(sum, block)
}

/// [`page_checksum`] of two pages, for two thirds of the time: each sum waits for its last multiplication most of it.
pub(crate) fn page_checksums(pages: [&[u8; PAGE_SIZE]; 2], blocks: [BlockNumber; 2]) -> [u16; 2] {
    let [one, two] = sums(pages);
    [checksum(one, blocks[0]), checksum(two, blocks[1])]
}

/// 65535 = 0xFFFF, so the remainder plus one fits 16 bits and is never 0.
fn checksum(sum: u32, block: BlockNumber) -> u16 {
    ((sum ^ block.0) % 0xFFFF + 1) as u16
}

#[cfg(target_arch = "x86_64")]
fn sums<const PAGES: usize>(pages: [&[u8; PAGE_SIZE]; PAGES]) -> [u32; PAGES] {
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: the function is safe code compiled for AVX2, and the processor has just said that it has AVX2.
        unsafe { sums_avx2(pages) }
    } else {
        sums_portable(pages)
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn sums<const PAGES: usize>(pages: [&[u8; PAGE_SIZE]; PAGES]) -> [u32; PAGES] {
    sums_portable(pages)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sums_avx2<const PAGES: usize>(pages: [&[u8; PAGE_SIZE]; PAGES]) -> [u32; PAGES] {
    sums_portable(pages)
}

/// `pg_checksum_block` of each page, with the checksum field taken for zero.
#[inline(always)]
fn sums_portable<const PAGES: usize>(pages: [&[u8; PAGE_SIZE]; PAGES]) -> [u32; PAGES] {
    let mut sums = [BASE_OFFSETS; PAGES];
    let pages = pages.map(|page| page.as_chunks::<ROW>().0);
    for (sums, rows) in sums.iter_mut().zip(pages) {
        let mut first = values(&rows[0]);
        first[2] &= 0xFFFF_0000; // pd_checksum: the two bytes at 8
        mix(sums, &first);
    }
    for row in 1..PAGE_SIZE / ROW {
        for (sums, rows) in sums.iter_mut().zip(pages) {
            mix(sums, &values(&rows[row]));
        }
    }
    sums.map(|mut sums| {
        // Two more rounds, for the bits of the last values.
        mix(&mut sums, &[0; LANES]);
        mix(&mut sums, &[0; LANES]);
        sums.iter().fold(0, |folded, sum| folded ^ sum)
    })
}

#[inline(always)]
fn values(row: &[u8; ROW]) -> [u32; LANES] {
    let (words, _) = row.as_chunks::<4>();
    std::array::from_fn(|lane| u32::from_le_bytes(words[lane]))
}

/// One round (`CHECKSUM_COMP`) for every sum.
#[inline(always)]
fn mix(sums: &mut [u32; LANES], values: &[u32; LANES]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        let mixed = *sum ^ value;
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

#[cfg(test)]
#[path = "checksum_tests.rs"]
mod tests;
