use proptest::prelude::*;

use super::*;

const START: Lsn = Lsn(0x2_0000_0000);

/// A sane page changed last at `lsn`, with a right checksum for `block`.
fn page(lsn: Lsn, block: BlockNumber) -> Vec<u8> {
    let mut page: Vec<u8> = (0..PAGE_SIZE).map(|at| (at * 31 % 251) as u8).collect();
    page[..4].copy_from_slice(&((lsn.0 >> 32) as u32).to_le_bytes());
    page[4..8].copy_from_slice(&(lsn.0 as u32).to_le_bytes());
    for (at, value) in [
        (10, 0x0005_u16),
        (12, 100),
        (14, 4000),
        (16, 8176),
        (18, 0x2004),
    ] {
        page[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    set_checksum(&mut page, block);
    page
}

fn set_checksum(page: &mut [u8], block: BlockNumber) {
    let checksum = page_checksum(page, block);
    page[8..10].copy_from_slice(&checksum.to_le_bytes());
}

fn set(page: &mut [u8], at: usize, value: u16) {
    page[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn an_old_good_page_is_ok() {
    let page = page(Lsn(START.0 - 1), BlockNumber(9));
    assert_eq!(
        check_page(&page, BlockNumber(9), true, START),
        PageVerdict::Ok
    );
    assert_eq!(page_lsn(&page), Lsn(START.0 - 1));
}

#[test]
fn a_wrong_checksum_is_damage_only_where_it_counts() {
    let mut old = page(Lsn(START.0 - 1), BlockNumber(9));
    old[5000] ^= 1;
    let (stored, computed) = (stored_checksum(&old), page_checksum(&old, BlockNumber(9)));
    assert_ne!(stored, computed);
    let damaged = PageVerdict::Damaged(PageDamage::Checksum { stored, computed });
    assert_eq!(check_page(&old, BlockNumber(9), true, START), damaged);
    assert_eq!(
        check_page(&old, BlockNumber(9), false, START),
        PageVerdict::Ok,
        "the cluster has no checksums"
    );

    let mut new = page(START, BlockNumber(9));
    new[5000] ^= 1;
    assert_eq!(
        check_page(&new, BlockNumber(9), true, START),
        PageVerdict::NewerThanStart,
        "it may be torn"
    );
    assert_eq!(
        check_page(&new, BlockNumber(9), false, START),
        PageVerdict::NewerThanStart
    );
}

#[test]
fn a_page_in_anothers_place_is_noticed() {
    let page = page(Lsn(1), BlockNumber(131_072));
    assert_eq!(
        check_page(&page, BlockNumber(131_072), true, START),
        PageVerdict::Ok
    );
    assert!(matches!(
        check_page(&page, BlockNumber(0), true, START),
        PageVerdict::Damaged(PageDamage::Checksum { .. })
    ));
}

#[test]
fn new_pages_are_all_zero_or_damaged() {
    let mut page = vec![0; PAGE_SIZE];
    assert_eq!(
        check_page(&page, BlockNumber(0), true, START),
        PageVerdict::Zero
    );
    assert_eq!(
        check_page(&page, BlockNumber(0), false, Lsn::INVALID),
        PageVerdict::Zero
    );
    for at in [0, 8, 24, 8191] {
        page[at] = 1;
        let verdict = check_page(&page, BlockNumber(0), false, START);
        assert_eq!(
            verdict,
            PageVerdict::Damaged(PageDamage::NonZeroNew),
            "byte {at}"
        );
        page[at] = 0;
    }
}

#[test]
fn headers_are_judged_on_every_page() {
    let cases: [(usize, u16, HeaderFault); 8] = [
        (10, 0x0008, HeaderFault::Flags(0x0008)),
        (10, 0x8007, HeaderFault::Flags(0x8007)),
        (
            12,
            4001,
            HeaderFault::Bounds {
                lower: 4001,
                upper: 4000,
                special: 8176,
            },
        ),
        (
            14,
            8177,
            HeaderFault::Bounds {
                lower: 100,
                upper: 8177,
                special: 8176,
            },
        ),
        (
            16,
            8200,
            HeaderFault::Bounds {
                lower: 100,
                upper: 4000,
                special: 8200,
            },
        ),
        (16, 8175, HeaderFault::SpecialNotAligned(8175)),
        (18, 0x2003, HeaderFault::SizeAndVersion(0x2003)),
        (18, 0x4004, HeaderFault::SizeAndVersion(0x4004)),
    ];
    for (at, value, fault) in cases {
        for lsn in [Lsn(1), START] {
            let mut page = page(lsn, BlockNumber(3));
            set(&mut page, at, value);
            set_checksum(&mut page, BlockNumber(3));
            assert_eq!(header_fault(&page), Some(fault));
            for checksums in [true, false] {
                let verdict = check_page(&page, BlockNumber(3), checksums, START);
                assert_eq!(verdict, PageVerdict::Damaged(PageDamage::Header), "{fault}");
            }
        }
    }
}

#[test]
fn headers_at_their_bounds_are_sane() {
    let mut full = page(Lsn(1), BlockNumber(0));
    for (at, value) in [(10, 0x0007), (12, 8192), (14, 8192), (16, 8192)] {
        set(&mut full, at, value);
    }
    assert_eq!(header_fault(&full), None);
}

#[test]
fn a_page_from_the_future_is_noticed() {
    let page = page(START, BlockNumber(0));
    assert_eq!(check_page_lsn(&page, START), None);
    assert_eq!(
        check_page_lsn(&page, Lsn(START.0 - 1)),
        Some(PageDamage::LsnBeyondReplay)
    );
}

#[test]
fn damage_is_told_in_words() {
    let damage = PageDamage::Checksum {
        stored: 7,
        computed: 65535,
    };
    assert_eq!(
        damage.to_string(),
        "page checksum does not match: the content gives 65535, the page header says 7"
    );
    assert_eq!(
        HeaderFault::SizeAndVersion(0x4003).to_string(),
        "page size 16384 with layout version 3, expected 8192 with 4"
    );
}

#[test]
#[should_panic(expected = "a page has 8192 bytes")]
fn half_a_page_is_a_mistake_of_the_caller() {
    let _ = check_page(&[0; 4096], BlockNumber(0), false, START);
}

proptest! {
    #[test]
    fn one_byte_anywhere_is_not_zero(length in 0..1000_usize, at in 0..1000_usize, byte in 1..=u8::MAX) {
        let mut bytes = vec![0; length];
        prop_assert!(is_zero(&bytes));
        if at < length {
            bytes[at] = byte;
            prop_assert!(!is_zero(&bytes));
        }
    }

    #[test]
    fn a_damaged_old_page_never_passes_for_another_kind(at in 0..PAGE_SIZE, flip in 1..=u8::MAX) {
        let block = BlockNumber(5);
        let mut page = page(Lsn(START.0 - 1), block);
        page[at] ^= flip;
        match check_page(&page, block, true, START) {
            PageVerdict::Damaged(_) => {}
            // A flipped LSN is the one damage that looks like an answer.
            PageVerdict::NewerThanStart => prop_assert!(at < 8),
            // A chance of one in 65535, and then the checksums must truly agree.
            PageVerdict::Ok => prop_assert_eq!(page_checksum(&page, block), stored_checksum(&page), "byte {}", at),
            PageVerdict::Zero => prop_assert!(false, "byte {}", at),
        }
    }
}
