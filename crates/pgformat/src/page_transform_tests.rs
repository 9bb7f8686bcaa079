//! Any pages come back exactly, and no bytes bring the way back down.

#[path = "page_transform/frame_layout.rs"]
mod frame_layout;
#[path = "page_transform/hand_made.rs"]
mod hand_made;
#[path = "page_transform/heap_tests.rs"]
mod heap_tests;
#[path = "page_transform/index_tests.rs"]
mod index_tests;
#[path = "page_transform/made_damage.rs"]
mod made_damage;
#[path = "page_transform/made_frames.rs"]
mod made_frames;
#[path = "page_transform/made_pages.rs"]
mod made_pages;
#[path = "page_transform/made_values.rs"]
mod made_values;
#[path = "page_transform/pages_tests.rs"]
mod pages_tests;
#[path = "page_transform/pointers_tests.rs"]
mod pointers_tests;
#[path = "page_transform/rows_tests.rs"]
mod rows_tests;
#[path = "page_transform/sparse_tests.rs"]
mod sparse_tests;
#[path = "page_transform/words_tests.rs"]
mod words_tests;

use proptest::prelude::*;

use super::*;
use frame_layout::ApartFrame;
use made_damage::damage;
use made_frames::{Frame, Stretch, frame, sound_frame};
use made_pages::Relation;

/// Takes the pages apart and puts them together again; fails if they are not what they were.
fn there_and_back(
    transform: &mut PageTransform,
    pages: &[u8],
    blocks: &[BlockNumber],
    known: Option<&Choice>,
) -> Result<Option<(Choice, Vec<u8>)>, TestCaseError> {
    let (mut apart, mut plain) = (vec![7; 5], vec![9; 5]);
    let Some(choice) = transform.take_apart(pages, blocks, known, &mut apart) else {
        return Ok(None);
    };
    prop_assert!(apart.len() < pages.len());
    transform
        .put_together(&apart, blocks, &mut plain)
        .map_err(|damage| TestCaseError::fail(damage.to_string()))?;
    // Not compared in one: nobody reads a megabyte.
    prop_assert_eq!(plain.len(), pages.len());
    for (number, (plain, page)) in plain
        .chunks(PAGE_SIZE)
        .zip(pages.chunks(PAGE_SIZE))
        .enumerate()
    {
        let different = (0..PAGE_SIZE).find(|at| plain[*at] != page[*at]);
        prop_assert_eq!(different, None, "page {} is another from there on", number);
    }
    Ok(Some((choice, apart)))
}

fn frames_come_back(frames: &[Frame]) -> Result<(), TestCaseError> {
    let mut transform = PageTransform::new();
    let mut known: Option<Choice> = None;
    for frame in frames {
        let (pages, blocks) = frame.pages();
        let back = there_and_back(&mut transform, &pages, &blocks, known.as_ref())?;
        // The choice of the frame before need not fit this one.
        known = back.map(|(choice, _)| choice).or(known);
    }
    Ok(())
}

/// Puts together what may be nothing of the kind; pages that come of it go there and back like any others.
fn together(
    transform: &mut PageTransform,
    apart: &[u8],
    blocks: &[BlockNumber],
) -> Result<bool, TestCaseError> {
    let mut plain = Vec::new();
    let result = transform.put_together(apart, blocks, &mut plain);
    prop_assert!(plain.len() <= blocks.len() * PAGE_SIZE);
    if result.is_ok() {
        prop_assert_eq!(plain.len(), blocks.len() * PAGE_SIZE);
        there_and_back(transform, &plain, blocks, None)?;
    }
    Ok(result.is_ok())
}

proptest! {
    #[test]
    fn any_pages_come_back(frames in prop::collection::vec(frame(1..6), 1..4)) {
        frames_come_back(&frames)?;
    }

    /// Otherwise everything would come back, and nothing would be tested.
    #[test]
    fn sound_pages_are_taken_apart(frame in sound_frame(1..6)) {
        let (pages, blocks) = frame.pages();
        let Some((_, apart)) = there_and_back(&mut PageTransform::new(), &pages, &blocks, None)? else {
            // What cannot be foretold may take more than the page did.
            let hopeless = |stretch: &Stretch| match &stretch.relation {
                Relation::Table(table) => table.habits.stale,
                Relation::Index(index) => index.habits.stale,
                _ => true,
            };
            prop_assert!(frame.stretches.iter().any(hopeless));
            return Ok(());
        };
        let apart = ApartFrame::read(&apart).expect("the layout");
        let mut kinds = apart.rows("page").iter().map(|page| page & 7);
        for stretch in &frame.stretches {
            for kind in kinds.by_ref().take(stretch.pages) {
                let right = match &stretch.relation {
                    Relation::Zeros => kind == 0,
                    Relation::Noise => kind == 1,
                    // Pages of any kind may be without items.
                    Relation::Table(table) => kind == 2 || kind == 3 && table.special > 0,
                    Relation::Index(_) => kind == 3,
                    Relation::Map => kind == 2,
                    Relation::Items(_) => kind == 4,
                };
                prop_assert!(right, "kind {}: {:?}", kind, stretch.relation);
            }
        }
    }

    #[test]
    fn any_bytes_are_pages_or_are_refused(
        apart in prop::collection::vec(any::<u8>(), 0..3000),
        blocks in prop::collection::vec(any::<u32>().prop_map(BlockNumber), 0..4),
    ) {
        together(&mut PageTransform::new(), &apart, &blocks)?;
    }

    #[test]
    fn damaged_frames_are_pages_or_are_refused(
        frame in frame(1..4),
        seeds in prop::collection::vec(any::<u64>(), 1..20),
        more in -1..2_isize,
    ) {
        let mut transform = PageTransform::new();
        let (pages, mut blocks) = frame.pages();
        let Some((_, apart)) = there_and_back(&mut transform, &pages, &blocks, None)? else {
            return Ok(());
        };
        blocks.resize(blocks.len().saturating_add_signed(more), BlockNumber(7));
        for seed in seeds {
            let mut damaged = apart.clone();
            damage(&mut damaged, seed);
            together(&mut transform, &damaged, &blocks)?;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn large_frames_come_back(frames in prop::collection::vec(frame(30..33), 1..4)) {
        frames_come_back(&frames)?;
    }
}

#[test]
fn the_last_blocks_come_back() {
    let page = hand_made::page_of(
        &[vec![1; 40]],
        &[9, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    for first in [u32::MAX - 2, u32::MAX - 1, u32::MAX] {
        let blocks = [0, 1, 2].map(|step| BlockNumber(first.wrapping_add(step)));
        let back = there_and_back(
            &mut PageTransform::new(),
            &[page; 3].concat(),
            &blocks,
            None,
        );
        assert!(back.expect("the pages").is_some());
    }
}

#[test]
#[should_panic(expected = "16383 bytes are not 2 pages")]
fn half_pages_are_the_callers_mistake() {
    let blocks = [BlockNumber(0); 2];
    PageTransform::new().take_apart(&[0; 16_383], &blocks, None, &mut Vec::new());
}

#[test]
fn memory_used_before_leaves_no_trace() {
    let page = hand_made::page_of(&[vec![1; 40]], &[]);
    let blocks = [BlockNumber(1)];
    let mut used = PageTransform::new();
    let mut apart = Vec::new();
    assert!(
        used.take_apart(&[page; 4].concat(), &[BlockNumber(5); 4], None, &mut apart)
            .is_some()
    );
    let mut plain = vec![0xAA; 5 * PAGE_SIZE];
    assert!(
        used.put_together(&apart[1..], &[BlockNumber(5); 4], &mut plain)
            .is_err()
    );
    let mut fresh = Vec::new();
    assert!(used.take_apart(&page, &blocks, None, &mut apart).is_some());
    assert!(
        PageTransform::new()
            .take_apart(&page, &blocks, None, &mut fresh)
            .is_some()
    );
    assert_eq!(apart, fresh);
    assert_eq!(used.put_together(&apart, &blocks, &mut plain), Ok(()));
    assert!(plain == page);
}
