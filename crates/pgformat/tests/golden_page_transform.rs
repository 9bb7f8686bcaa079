//! Pages of real servers (see `golden/make-pages`), and what they were taken apart to when the layout was settled. Later
//! transforms may take them apart otherwise; put together, these are the same pages for ever.

use std::fs;
use std::path::PathBuf;

use leeward_pgformat::page_transform::PageTransform;
use leeward_pgformat::{BlockNumber, MajorVersion, PAGE_SIZE};

/// Relations without and with items of indexes.
const FRAMES: [&str; 2] = ["tables", "indexes"];

fn path(major: MajorVersion, name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/page_transform")
        .join(major.to_string())
        .join(name)
}

fn decompressed(path: &PathBuf) -> Vec<u8> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    zstd::decode_all(&bytes[..]).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The pages of a frame, and for each the relation's name and the block.
fn pages(major: MajorVersion, frame: &str) -> (Vec<u8>, Vec<(String, BlockNumber)>) {
    let pages = decompressed(&path(major, &format!("{frame}.pages.zst")));
    let relations = fs::read_to_string(path(major, "relations")).expect("relations");
    let mut places = Vec::new();
    for line in relations.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [of, name, first, count] = fields[..] else {
            panic!("{line}")
        };
        if of == frame {
            let [first, count] =
                [first, count].map(|number| number.parse::<u32>().expect("a number"));
            places
                .extend((first..first + count).map(|block| (name.to_owned(), BlockNumber(block))));
        }
    }
    assert_eq!(pages.len(), places.len() * PAGE_SIZE, "{major} {frame}");
    (pages, places)
}

fn blocks(places: &[(String, BlockNumber)]) -> Vec<BlockNumber> {
    places.iter().map(|(_, block)| *block).collect()
}

#[test]
fn what_was_taken_apart_once_is_put_together_for_ever() {
    let mut transform = PageTransform::new();
    let mut plain = Vec::new();
    for major in MajorVersion::ALL {
        for frame in FRAMES {
            let (pages, places) = pages(major, frame);
            let apart = decompressed(&path(major, &format!("{frame}.apart.zst")));
            let result = transform.put_together(&apart, &blocks(&places), &mut plain);
            assert_eq!(result, Ok(()), "{major} {frame}");
            let same = |(plain, page): (&[u8], &[u8])| plain == page;
            let other = plain
                .chunks(PAGE_SIZE)
                .zip(pages.chunks(PAGE_SIZE))
                .position(|pair| !same(pair));
            assert_eq!(other.map(|number| &places[number]), None, "{major} {frame}");
        }
    }
}

#[test]
fn todays_transform_takes_them_apart_too() {
    let mut transform = PageTransform::new();
    let (mut apart, mut plain) = (Vec::new(), Vec::new());
    let mut known = None;
    for major in MajorVersion::ALL {
        for frame in FRAMES {
            let (pages, places) = pages(major, frame);
            let blocks = blocks(&places);
            known = transform.take_apart(&pages, &blocks, known.as_ref(), &mut apart);
            assert!(known.is_some(), "{major} {frame}");
            assert_eq!(transform.put_together(&apart, &blocks, &mut plain), Ok(()));
            assert!(plain == pages, "{major} {frame}");
        }
    }
}

/// Writes what is not there yet: of a new major version. What is there stays.
#[test]
#[ignore = "writes golden files; only for a new major version"]
fn write_what_is_missing() {
    for major in MajorVersion::ALL {
        for frame in FRAMES {
            let path = path(major, &format!("{frame}.apart.zst"));
            if path.exists() {
                continue;
            }
            let (pages, places) = pages(major, frame);
            let mut apart = Vec::new();
            let choice =
                PageTransform::new().take_apart(&pages, &blocks(&places), None, &mut apart);
            assert!(choice.is_some(), "{major} {frame}");
            let compressed = zstd::encode_all(&apart[..], 19).expect("compressed");
            fs::write(&path, compressed)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}
