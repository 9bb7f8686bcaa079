//! Pages of every kind of relation are taken apart and come back, whoever wrote them and whenever they are read: from a
//! running server under load, half before a checkpoint and half after it, and from a stopped one.

#[path = "../../crates/pgformat/src/page_transform/frame_layout.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod frame_layout;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use leeward_pgformat::page_transform::{Choice, PageTransform};
use leeward_pgformat::{BlockNumber, Fork, PAGE_SIZE, RELATION_SEGMENT_BLOCKS, RelationSegment};
use leeward_tests::damage::files_under;
use leeward_tests::dataset;
use leeward_tests::load::Load;
use leeward_tests::server::{Initdb, Server, Stop};
use leeward_tests::story::{Story, note};

use frame_layout::ApartFrame;

const RELATIONS: &str =
    include_str!("../../crates/pgformat/tests/golden/page_transform/relations.sql");

/// Pages of a frame, as backups have them.
const FRAME: usize = 128;

/// The whole pages of every relation's files, by path.
type Files = BTreeMap<String, Vec<u8>>;

fn read(data: &Path) -> Files {
    let files = ["base", "global"].map(|folder| files_under(&data.join(folder)));
    let pages = files.into_iter().flatten().filter_map(|path| {
        let name = path
            .strip_prefix(data)
            .expect("a file inside")
            .display()
            .to_string();
        RelationSegment::parse(&name)?;
        // It may have gone since.
        let mut pages = fs::read(&path).ok()?;
        pages.truncate(pages.len() / PAGE_SIZE * PAGE_SIZE);
        Some((name, pages))
    });
    pages.collect()
}

/// Pages that a server wrote while they were read: the first part is as it was, the rest as it became. Returns how many.
fn tear(before: &mut Files, after: &Files) -> usize {
    let mut torn = 0;
    for (name, pages) in before {
        let Some(after) = after.get(name) else {
            continue;
        };
        for (page, after) in pages.chunks_mut(PAGE_SIZE).zip(after.chunks(PAGE_SIZE)) {
            if page != after {
                torn += 1;
                let part = 512 * (1 + torn % 15);
                page[part..].copy_from_slice(&after[part..]);
            }
        }
    }
    torn
}

// What is told of a page's shape in the stream of pages: "docs/format.md".
const HEAP: u8 = 2;
const INDEX: u8 = 3;
const ITEMS: u8 = 4;

/// How the pages of each kind are recognised, and of how many per cent that is expected. Maps of free space and of visibility
/// are tables without rows. Indexes other than B-tree and GiST have pages without items too: bitmaps, posting trees, maps
/// of ranges.
const KINDS: [(&str, u8, usize); 11] = [
    ("heap", HEAP, 100),
    ("toast", HEAP, 100),
    ("sequence", HEAP, 100),
    ("free space map", HEAP, 100),
    ("visibility map", HEAP, 100),
    ("btree", INDEX, 100),
    ("gist", INDEX, 100),
    ("gin", INDEX, 90),
    ("hash", INDEX, 90),
    ("spgist", ITEMS, 90),
    ("brin", ITEMS, 40),
];

/// How many pages with anything on them there were, and how many of these were taken apart.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    pages: usize,
    apart: usize,
}

/// Takes all pages apart and puts them together again; says of each kind of relation how far that went.
fn there_and_back(files: &Files, kinds: &BTreeMap<String, String>) -> BTreeMap<String, Share> {
    let mut shares: BTreeMap<String, Share> = BTreeMap::new();
    let mut transform = PageTransform::new();
    // What was chosen for one relation need not fit the next.
    let mut known: Option<Choice> = None;
    let (mut apart, mut plain) = (Vec::new(), Vec::new());
    for (name, pages) in files {
        let segment = RelationSegment::parse(name).expect("a relation's file");
        let main = name.split(['_', '.']).next().expect("a name");
        let kind = match segment.fork {
            Fork::Main => kinds.get(main).map_or("unknown", |kind| kind),
            Fork::FreeSpaceMap => "free space map",
            Fork::VisibilityMap => "visibility map",
            Fork::Init => "init",
        };
        let shape = KINDS
            .iter()
            .find(|known| known.0 == kind)
            .map_or(HEAP, |known| known.1);
        let share = shares.entry(kind.to_owned()).or_default();
        let blocks = (segment.segment * RELATION_SEGMENT_BLOCKS..).map(BlockNumber);
        let blocks: Vec<_> = blocks.take(pages.len() / PAGE_SIZE).collect();
        for (pages, blocks) in pages.chunks(FRAME * PAGE_SIZE).zip(blocks.chunks(FRAME)) {
            // Indexes begin with a page of their own kind, which is never taken apart for what it is.
            let counts = |page: &[u8], block: &BlockNumber| {
                page.iter().any(|byte| *byte != 0) && (*block != BlockNumber(0) || shape == HEAP)
            };
            let counted: Vec<_> = pages
                .chunks(PAGE_SIZE)
                .zip(blocks)
                .map(|(page, block)| counts(page, block))
                .collect();
            share.pages += counted.iter().filter(|counts| **counts).count();
            let choice = transform.take_apart(pages, blocks, known.as_ref(), &mut apart);
            if choice.is_none() {
                continue;
            }
            known = choice;
            let result = transform.put_together(&apart, blocks, &mut plain);
            assert_eq!(result, Ok(()), "{name}");
            assert!(plain == pages, "{name}: other pages came back");
            let frame = ApartFrame::read(&apart).expect("the layout");
            let right = frame.rows("page").iter().map(|page| page & 7 == shape);
            share.apart += right
                .zip(counted)
                .filter(|(right, counts)| *right && *counts)
                .count();
        }
    }
    shares
}

/// What each file of the database `postgres` belongs to.
fn kinds(server: &Server) -> BTreeMap<String, String> {
    let rows = server.sql(
        "SELECT pg_relation_filepath(c.oid), CASE relkind WHEN 't' THEN 'toast' WHEN 'S' THEN 'sequence' ELSE amname END
           FROM pg_class c LEFT JOIN pg_am am ON am.oid = relam
          WHERE pg_relation_filepath(c.oid) IS NOT NULL",
    );
    let pair = |row: &str| {
        let (path, kind) = row.split_once('|').expect("two columns");
        (path.to_owned(), kind.to_owned())
    };
    rows.lines().map(pair).collect()
}

fn check(major: u32) {
    let story = Story::begin(major);
    let mut server = Server::initdb(&story, "server", &Initdb::default());
    server.start();
    dataset::fill(&mut server, 2);
    server.sql(RELATIONS);

    let load = Load::start(&story, &server);
    let mut torn = 0;
    for _ in 0..3 {
        let mut before = read(server.data());
        server.sql("CHECKPOINT");
        let after = read(server.data());
        there_and_back(&after, &BTreeMap::new());
        torn += tear(&mut before, &after);
        there_and_back(&before, &BTreeMap::new());
    }
    assert!(torn > 100, "only {torn} pages were torn");
    load.stop();

    let kinds = kinds(&server);
    server.stop(Stop::Fast);
    let shares = there_and_back(&read(server.data()), &kinds);
    for (kind, _, per_cent) in KINDS {
        let Share { pages, apart } = shares[kind];
        note(&format!(
            "{major} {kind}: {apart} of {pages} pages taken apart"
        ));
        assert!(pages > 0 && apart * 100 >= pages * per_cent, "{kind}");
    }
}

#[test]
fn postgres_15() {
    check(15);
}

#[test]
fn postgres_16() {
    check(16);
}

#[test]
fn postgres_17() {
    check(17);
}

#[test]
fn postgres_18() {
    check(18);
}

#[test]
fn postgres_19() {
    check(19);
}
