//! What the page transform allocates at most. On the way back nothing is proven yet: whatever the bytes claim, it may take no
//! more than the pages and a few times what is there of them.

#[path = "../src/page_transform/frame_layout.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod frame_layout;
#[path = "../src/page_transform/made_damage.rs"]
mod made_damage;
#[path = "../src/page_transform/made_frames.rs"]
mod made_frames;
#[path = "../src/page_transform/made_pages.rs"]
mod made_pages;
#[path = "../src/page_transform/made_values.rs"]
mod made_values;

use std::sync::Mutex;

use leeward_pgformat::page_transform::PageTransform;
use leeward_pgformat::{BlockNumber, PAGE_SIZE, page};
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use rand::SeedableRng;
use rand::rngs::StdRng;

use frame_layout::ApartFrame;
use made_damage::damage;
use made_frames::frame;
use made_pages::{Habits, Relation, Table};
use made_values::Column;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Tests run one at a time, since they count what all threads allocate.
static ALONE: Mutex<()> = Mutex::new(());

const MIB: usize = 1 << 20;

/// The most bytes there were at a time while this was done.
fn peak(work: impl FnOnce()) -> usize {
    HEAP.reset_peak_usage();
    work();
    HEAP.peak_usage()
}

/// So many pages of a table from block 0 on.
fn table(columns: &[Column], pages: u32) -> (Vec<u8>, Vec<BlockNumber>) {
    let table = Relation::Table(Table {
        columns: columns.to_vec(),
        nulls: 0,
        grown: false,
        writers: 1,
        special: 0,
        habits: Habits::TIDY,
    });
    let mut rng = StdRng::seed_from_u64(1);
    let blocks: Vec<_> = (0..pages).map(BlockNumber).collect();
    let page = |block: &BlockNumber| table.page(block.0.into(), *block, &mut rng);
    (blocks.iter().flat_map(page).collect(), blocks)
}

/// However many relations a worker has seen, and of whatever shapes.
#[test]
fn taking_apart_takes_little() {
    let _alone = ALONE.lock();
    let mut runner = TestRunner::deterministic();
    let frames = frame(20..33);
    let any = (0..50).map(|_| {
        frames
            .new_tree(&mut runner)
            .expect("a frame")
            .current()
            .pages()
    });
    // Long texts behind more and more numbers.
    let shapes = (0..40).map(|numbers| {
        let mut columns = vec![Column::Int; numbers];
        columns.extend([Column::Text(1000), Column::Text(3)]);
        table(&columns, 128)
    });
    let mut transform = PageTransform::new();
    for (pages, blocks) in any.chain(shapes) {
        let before = HEAP.current_usage();
        let mut out = Vec::new();
        let mut fresh = PageTransform::new();
        let most = peak(|| drop(fresh.take_apart(&pages, &blocks, None, &mut out)));
        let (taken, length) = (most - before, pages.len());
        assert!(taken <= 4 * length + MIB, "{taken} for {length} bytes");
        transform.take_apart(&pages, &blocks, None, &mut out);
    }
    let kept = kept(transform);
    assert!(kept <= 12 * MIB, "{kept} are kept");
}

/// What is free without it.
fn kept(transform: PageTransform) -> usize {
    let before = HEAP.current_usage();
    drop(transform);
    before - HEAP.current_usage()
}

/// Frames that claim much.
fn hostile() -> Vec<Vec<u8>> {
    let (pages, blocks) = table(&[Column::Int, Column::Text(30), Column::Decimal(2)], 16);
    let mut apart = Vec::new();
    let choice = PageTransform::new().take_apart(&pages, &blocks, None, &mut apart);
    assert!(choice.is_some());
    let good = ApartFrame::read(&apart).expect("the layout");
    let mut frames = vec![
        Vec::new(),
        vec![0; MIB],
        vec![0xFF; MIB],
        // The longest lengths there are, each alone and all at once, with nothing behind.
        [&[0; 5][..], &[0xFF, 0xFF, 0xFF, 0x7F].repeat(60)].concat(),
        [&[0; 5][..], &[0xFF, 0xFF, 0xFF, 0x7F], &[0; 59]].concat(),
    ];
    // Schemas of as many columns as can be written down, and of as many as are allowed, of every shape.
    for (schemas, columns) in [(255, 255), (16, 64), (16, 255), (255, 1), (16, 0)] {
        for column in (0..10).flat_map(|shape| [0, 1, 16].map(|mode| [shape, mode])) {
            let mut frame = good.clone();
            frame.schemas = vec![vec![column; columns]; schemas];
            frame.fit();
            frames.push(frame.write());
        }
    }
    for stream in 0..good.streams.len() {
        // More than the pages need, of everything; the largest numbers and lengths; none at all.
        let mut frame = good.clone();
        let width = frame.streams[stream].width;
        frame.streams[stream].rows = vec![1; MIB / width * width];
        frames.push(frame.write());
        frame.streams[stream].rows.fill(0xFF);
        frames.push(frame.write());
        frame.streams[stream].rows.clear();
        frames.push(frame.write());
    }
    frames
}

#[test]
fn putting_together_takes_what_the_pages_do() {
    let _alone = ALONE.lock();
    let mut runner = TestRunner::deterministic();
    let frames = frame(20..33);
    let mut damaged = Vec::new();
    for _ in 0..50 {
        let frame = frames.new_tree(&mut runner).expect("a frame").current();
        let (pages, blocks) = frame.pages();
        let mut apart = Vec::new();
        PageTransform::new().take_apart(&pages, &blocks, None, &mut apart);
        damaged.push(apart.clone());
        for seed in 0..20 {
            let mut apart = apart.clone();
            damage(&mut apart, seed);
            damaged.push(apart);
        }
    }
    let blocks: Vec<_> = (0..128).map(BlockNumber).collect();
    let mut transform = PageTransform::new();
    for apart in damaged.into_iter().chain(hostile()) {
        for pages in [0, 1, 128] {
            let blocks = &blocks[..pages];
            let pages = pages * PAGE_SIZE;
            let mut plain = Vec::new();
            let before = HEAP.current_usage();
            let most = peak(|| {
                let _ = PageTransform::new().put_together(&apart, blocks, &mut plain);
            });
            assert!(plain.len() <= pages);
            let taken = most - before;
            assert!(
                taken <= pages + 3 * apart.len() + MIB,
                "{taken} for {} bytes",
                apart.len()
            );
            let _ = transform.put_together(&apart, blocks, &mut plain);
        }
    }
    let kept = kept(transform);
    assert!(kept <= 3 * MIB, "{kept} are kept");
}
