//! How fast pages are judged, on one core, with everything in the processor's cache:
//! `cargo run --release -p leeward-pgformat --example transform_speed`.
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::hint::black_box;
use std::time::Instant;

use leeward_pgformat::page::{check_page, is_zero, page_checksum};
use leeward_pgformat::{BlockNumber, Lsn, PAGE_SIZE};

/// Pages that fit the second-level cache together.
const PAGES: u32 = 64;
const ROUNDS: u32 = 20_000;

fn main() {
    let mut page = include_bytes!("../tests/golden/18/page.heap.block3").to_vec();
    page.truncate(PAGE_SIZE);
    let pages = page.repeat(PAGES as usize);
    let zeros = vec![0; pages.len()];
    measure("page_checksum", &pages, |page, block| {
        u64::from(page_checksum(page, block))
    });
    measure("check_page, with checksum", &pages, |page, block| {
        u64::from(matches!(
            check_page(page, block, true, Lsn(u64::MAX)),
            leeward_pgformat::PageVerdict::Ok
        ))
    });
    measure("check_page, newer than start", &pages, |page, block| {
        u64::from(matches!(
            check_page(page, block, true, Lsn(1)),
            leeward_pgformat::PageVerdict::NewerThanStart
        ))
    });
    measure("check_page, zero", &zeros, |page, block| {
        u64::from(matches!(
            check_page(page, block, true, Lsn(1)),
            leeward_pgformat::PageVerdict::Zero
        ))
    });
    measure("is_zero", &zeros, |page, _| u64::from(is_zero(page)));
}

fn measure(what: &str, pages: &[u8], judge: impl Fn(&[u8], BlockNumber) -> u64) {
    let mut best = f64::MAX;
    let mut sum = 0;
    for _ in 0..5 {
        let start = Instant::now();
        for _ in 0..ROUNDS / 5 {
            for (page, block) in black_box(pages).chunks_exact(PAGE_SIZE).zip(0..) {
                sum += black_box(judge(page, BlockNumber(block)));
            }
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    let bytes = f64::from(ROUNDS / 5) * pages.len() as f64;
    println!(
        "{what:<30} {:>8.1} GB/s {:>8.1} ns/page   ({sum})",
        bytes / best / 1e9,
        best * 1e9 / f64::from(ROUNDS / 5) / f64::from(PAGES)
    );
}
