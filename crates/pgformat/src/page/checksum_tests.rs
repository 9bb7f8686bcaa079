use proptest::prelude::*;

use super::*;

/// The algorithm as the server's source describes it, one value at a time.
fn by_the_book(page: &[u8], block: u32) -> u16 {
    let mut sums = BASE_OFFSETS;
    let value = |row: usize, lane: usize| {
        let at = row * ROW + lane * 4;
        let mut word = [page[at], page[at + 1], page[at + 2], page[at + 3]];
        if at == 8 {
            word[..2].fill(0);
        }
        u32::from_le_bytes(word)
    };
    for (lane, sum) in sums.iter_mut().enumerate() {
        for row in 0..PAGE_SIZE / ROW + 2 {
            let value = if row < PAGE_SIZE / ROW {
                value(row, lane)
            } else {
                0
            };
            let mixed = *sum ^ value;
            *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
        }
    }
    let folded = sums.into_iter().fold(0, |folded, sum| folded ^ sum) ^ block;
    u16::try_from(folded % 65535 + 1).expect("at most 65535")
}

fn any_page() -> impl Strategy<Value = Vec<u8>> {
    // A few random rows repeated: random enough for every lane, cheap to make.
    prop::collection::vec(any::<u8>(), 1024).prop_map(|part| part.repeat(8))
}

#[test]
fn every_remainder_is_a_checksum_and_none_is_zero() {
    let page = vec![0xA5; PAGE_SIZE];
    let mut seen = vec![false; 65536];
    for block in 0..1 << 17 {
        seen[usize::from(page_checksum(&page, BlockNumber(block)))] = true;
    }
    assert!(!seen[0]);
    assert!(seen[1..].iter().all(|seen| *seen));
}

#[test]
#[should_panic(expected = "a page has 8192 bytes, not 8191")]
fn half_a_page_has_no_checksum() {
    let _ = page_checksum(&[0; PAGE_SIZE - 1], BlockNumber(0));
}

proptest! {
    #[test]
    fn two_pages_have_the_checksums_of_each(
        one in any_page(), two in any_page(), first: u32, second: u32
    ) {
        let blocks = [BlockNumber(first), BlockNumber(second)];
        let expected = [by_the_book(&one, first), by_the_book(&two, second)];
        let pages = [&one, &two].map(|page| page.as_slice().try_into().expect("a page"));
        prop_assert_eq!(page_checksums(pages, blocks), expected);
    }

    #[test]
    fn vector_code_and_plain_code_agree_with_the_book(page in any_page(), block: u32) {
        let expected = by_the_book(&page, block);
        prop_assert_eq!(page_checksum(&page, BlockNumber(block)), expected);
        let page: &[u8; PAGE_SIZE] = page.as_slice().try_into().expect("a page");
        prop_assert_eq!(checksum(sums_portable([page])[0], BlockNumber(block)), expected);
    }

    #[test]
    fn the_checksum_field_does_not_count_and_every_other_byte_does(
        page in any_page(), at in 0..PAGE_SIZE, flip in 1..=u8::MAX
    ) {
        let before = page_checksum(&page, BlockNumber(7));
        let mut changed = page;
        changed[at] ^= flip;
        let after = page_checksum(&changed, BlockNumber(7));
        if at == 8 || at == 9 {
            prop_assert_eq!(before, after);
        } else {
            // Two checksums may agree by chance, once in 65535; a byte that did not count would agree always.
            let agree = (1..=u8::MAX).filter(|flip| {
                changed[at] = changed[at].wrapping_add(*flip);
                page_checksum(&changed, BlockNumber(7)) == before
            });
            prop_assert!(agree.count() < 8);
        }
    }
}
