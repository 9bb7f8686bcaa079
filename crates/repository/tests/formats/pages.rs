//! Frames of pages taken apart: they come back, smaller; and whatever is wrong with one is found.

use leeward_pgformat::BlockNumber;
use leeward_pgformat::page_transform::{PAGE_TRANSFORM, PageTransform};
use leeward_repository::RepositoryError;
use leeward_repository::codec::{Compression, CompressionUsed, FrameCompression};
use leeward_repository::file_path::FilePath;
use leeward_repository::frame::{
    EncodedFrame, FrameDamage, FrameDecoder, FrameEncoder, FrameEntry, Piece, blocks_of_piece,
};
use leeward_repository::hash::Hash;
use leeward_repository::pack::{PackIndex, PackWriter};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::kit::{Place, file, frame, key, plain_frame};
use leeward_fixtures::{heap_pages, noise, rows};

const SETTINGS: [&str; 8] = [
    "pages",
    "pages+zstd:9",
    "pages+lz4",
    "zstd:3",
    "pages+zstd:3",
    "zstd:1",
    "lz4",
    "none",
];

fn setting(text: &str) -> FrameCompression {
    text.parse().expect("a compression")
}

/// The entry of a frame of whole files or parts of them: (file, offset, length).
fn entry_of(frame: &EncodedFrame, pieces: &[(u32, u64, u32)]) -> FrameEntry {
    FrameEntry {
        offset: 64,
        stored_length: frame.stored.len() as u32,
        transformed_length: frame.transformed_length,
        plain_length: frame.plain_length,
        page_size: frame.page_size,
        compression: frame.compression as u8,
        transform: frame.transform,
        sealing: 0,
        plain_hash: frame.plain_hash,
        stored_hash: frame.stored_hash,
        pieces: pieces
            .iter()
            .map(|(file, offset, length)| Piece {
                file: *file,
                offset: *offset,
                length: *length,
            })
            .collect(),
    }
}

#[test]
fn every_setting_brings_pages_back_and_one_pack_holds_them_all() {
    let place = Place::new();
    let pack = key("main/backups/x/packs/000000.pack");
    let mut writer = PackWriter::create(&*place.store, &pack, 0).expect("a pack");
    // Two relations and both segments of one, in pieces, and in no order.
    let blocks: Vec<u32> = (131_080..131_140).chain(0..3).chain([131_071]).collect();
    let plain = heap_pages(&blocks);
    let (first, second, other) = (
        file("base/5/16384"),
        file("base/5/16384.1"),
        file("global/1262"),
    );
    let pieces: [(&FilePath, u64, u32); 3] = [
        (&second, 8 * 8192, 60 * 8192),
        (&other, 0, 3 * 8192),
        (&first, 131_071 * 8192, 8192),
    ];
    for text in SETTINGS {
        let location = writer.append(frame(setting(text), &plain, &blocks), &pieces);
        location.unwrap_or_else(|error| panic!("{text}: {error}"));
    }
    let info = writer.finish().expect("a pack");
    let index = PackIndex::read(&*place.store, &pack, Some(&info)).expect("an index");
    let mut decoder = FrameDecoder::new();
    let mut sizes = Vec::new();
    for (number, text) in SETTINGS.iter().enumerate() {
        let entry = &index.frames[number];
        let apart = text.starts_with("pages");
        assert_eq!(
            entry.transform,
            if apart { PAGE_TRANSFORM } else { 0 },
            "{text}"
        );
        assert_eq!(entry.page_size, 8192);
        assert_eq!(
            entry.transformed_length < entry.plain_length,
            apart,
            "{text}"
        );
        let back = index.read_frame(&*place.store, &pack, number as u32, &mut decoder);
        assert!(back.expect("a frame") == plain, "{text}");
        sizes.push(entry.stored_length);
    }
    assert!(
        sizes[0] * 10 < sizes[3] * 8,
        "pages, then zstd:3: {sizes:?}"
    );
    assert!(sizes[2] < sizes[6], "pages+lz4, then lz4: {sizes:?}");
}

#[test]
fn what_one_frame_has_chosen_is_good_for_the_next() {
    let mut encoder = FrameEncoder::new(FrameCompression::default());
    let mut decoder = FrameDecoder::new();
    let mut choice = None;
    for first in [0, 64, 128, 192] {
        let blocks: Vec<u32> = (first..first + 64).collect();
        let plain = heap_pages(&blocks);
        let numbers: Vec<BlockNumber> = blocks.iter().copied().map(BlockNumber).collect();
        let frame = encoder
            .encode(&plain, &numbers, &mut choice)
            .expect("a frame");
        assert_eq!(frame.transform, PAGE_TRANSFORM);
        assert!(choice.is_some());
        // Each stands for itself: nothing but the frame is needed to read it.
        let entry = entry_of(&frame, &[(0, u64::from(first) * 8192, 64 * 8192)]);
        let back = decoder.decode(&entry, &[file("base/5/16384")], &frame.stored);
        assert!(back.expect("decoded") == plain);
    }
    assert_eq!(encoder.differences(), 0);
}

#[test]
fn what_is_not_helped_is_left_alone() {
    let blocks: Vec<u32> = (0..16).collect();
    let apart = FrameCompression::default();
    // Other files; pages that are none; pages whose rows are noise.
    let text = frame(apart, &rows(50_000), &[]);
    assert_eq!((text.transform, text.page_size), (0, 0));
    assert_eq!(
        text,
        plain_frame(Compression::default(), &rows(50_000), &[])
    );
    for bytes in [noise(16 * 8192, 3), rows(16 * 8192), vec![0; 16 * 8192]] {
        let frame = frame(apart, &bytes, &blocks);
        assert_eq!((frame.transform, frame.page_size), (0, 8192));
        assert_eq!(frame, plain_frame(Compression::default(), &bytes, &blocks));
    }
}

#[test]
fn blocks_come_from_names_and_offsets() {
    let at = |name: &str, offset, length| blocks_of_piece(&file(name), offset, length);
    assert_eq!(at("base/5/16384", 0, 8192), Some(0..1));
    assert_eq!(at("base/5/16384.3", 16_384, 16_384), Some(393_218..393_220));
    assert_eq!(at("base/5/16384_fsm.1", 8192, 8192), Some(131_073..131_074));
    assert_eq!(
        at("pg_tblspc/16400/PG_15_202209061/5/16384", 0, 8192),
        Some(0..1)
    );
    for (name, offset, length) in [
        ("PG_VERSION", 0, 8192),
        ("base/5/16384", 1, 8192),
        ("base/5/16384", 0, 8191),
        ("base/5/16384.32768", 0, 8192),
        ("base/5/16384.32767", 131_071 * 8192, 16_384),
        ("base/5/16384", u64::MAX - 8191, 8192),
    ] {
        assert_eq!(at(name, offset, length), None, "{name} {offset} {length}");
    }
    let outside = FilePath::configuration(b"/base/5/16384");
    assert_eq!(blocks_of_piece(&outside, 0, 8192), None);
}

/// A sound frame of 16 pages, its entry and files, and what a test makes of the entry.
fn damaged(change: impl FnOnce(&mut FrameEntry, &mut Vec<FilePath>)) -> FrameDamage {
    let blocks: Vec<u32> = (131_080..131_096).collect();
    let frame = frame(FrameCompression::default(), &heap_pages(&blocks), &blocks);
    assert_eq!(frame.transform, PAGE_TRANSFORM);
    let mut entry = entry_of(&frame, &[(0, 8 * 8192, 16 * 8192)]);
    let mut files = vec![file("base/5/16384.1")];
    let mut decoder = FrameDecoder::new();
    decoder
        .decode(&entry, &files, &frame.stored)
        .expect("sound");
    change(&mut entry, &mut files);
    let damage = decoder.decode(&entry, &files, &frame.stored);
    let damage = damage.expect_err("damaged");
    decoder
        .decode(
            &entry_of(&frame, &[(0, 8 * 8192, 16 * 8192)]),
            &[file("base/5/16384.1")],
            &frame.stored,
        )
        .expect("the decoder has taken no harm");
    damage
}

#[test]
fn pages_at_other_blocks_are_not_these_pages() {
    for damage in [
        damaged(|entry, _| entry.pieces[0].offset += 8192),
        damaged(|entry, _| entry.pieces[0].offset = 0),
        damaged(|_, files| files[0] = file("base/5/16384.2")),
        damaged(|_, files| files[0] = file("base/5/16384")),
    ] {
        assert!(matches!(damage, FrameDamage::PlainHash { .. }), "{damage}");
    }
}

#[test]
fn pieces_that_are_no_pages_are_told() {
    for (damage, words) in [
        (
            damaged(|_, files| files[0] = file("pg_xact/0000")),
            "\"pg_xact/0000\" from byte 65536 are not pages of a relation",
        ),
        (
            damaged(|_, files| files[0] = FilePath::configuration(b"/base/5/16384")),
            "not pages of a relation",
        ),
        (
            damaged(|entry, _| entry.pieces[0].offset += 1),
            "from byte 65537",
        ),
        (
            damaged(|entry, _| entry.pieces[0].file = 7),
            "there is no file 7",
        ),
        (
            damaged(|entry, _| entry.pieces.clear()),
            "pieces have 0 bytes",
        ),
        (
            damaged(|entry, _| entry.pieces.push(entry.pieces[0])),
            "pieces have 262144 bytes, not 131072",
        ),
        (
            damaged(|entry, _| entry.page_size = 0),
            "a page has 0 bytes",
        ),
        (
            damaged(|entry, _| entry.page_size = 4096),
            "a page has 4096 bytes",
        ),
        (
            damaged(|entry, _| {
                entry.pieces[0].length -= 100;
                entry.pieces.push(Piece {
                    length: 100,
                    ..entry.pieces[0]
                });
            }),
            "not pages of a relation",
        ),
    ] {
        assert!(matches!(damage, FrameDamage::NotPages(_)), "{damage}");
        assert!(damage.to_string().contains(words), "{damage}");
    }
}

#[test]
fn lengths_that_lie_are_found() {
    for (damage, words) in [
        (
            damaged(|entry, _| entry.transformed_length -= 1),
            "could not decompress",
        ),
        (
            damaged(|entry, _| entry.transformed_length += 1),
            "could not decompress",
        ),
        (
            damaged(|entry, _| entry.transformed_length = entry.plain_length + 1),
            "transformed bytes of",
        ),
        (
            damaged(|entry, _| entry.transform = 0),
            "without a transform",
        ),
        (
            damaged(|entry, _| {
                entry.plain_length -= 8192;
                entry.pieces[0].length -= 8192;
            }),
            "cannot be put together",
        ),
        (
            damaged(|entry, _| {
                entry.plain_length += 8192;
                entry.pieces[0].length += 8192;
            }),
            "cannot be put together",
        ),
    ] {
        assert!(damage.to_string().contains(words), "{damage}");
    }
}

#[test]
fn a_transform_of_the_future_is_refused_by_number() {
    let damage = damaged(|entry, _| entry.transform = 2);
    let unknown = FrameDamage::Unknown {
        what: "page transform",
        number: 2,
    };
    assert_eq!(damage, unknown);

    let place = Place::new();
    let pack = key("pack");
    let mut writer = PackWriter::create(&*place.store, &pack, 0).expect("a pack");
    let newer = EncodedFrame {
        transform: 2,
        ..frame(FrameCompression::default(), &heap_pages(&[0]), &[0])
    };
    let relation = file("base/5/16384");
    writer
        .append(newer, &[(&relation, 0, 8192)])
        .expect("appended");
    let info = writer.finish().expect("a pack");
    let index = PackIndex::read(&*place.store, &pack, Some(&info)).expect("an index");
    let mut decoder = FrameDecoder::new();
    let error = index
        .read_frame(&*place.store, &pack, 0, &mut decoder)
        .expect_err("newer");
    assert!(
        matches!(error, RepositoryError::NewerFormat { .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("page transform 2") && text.contains("up to 1"),
        "{text}"
    );
}

/// Streams that nobody wrote, behind hashes that hold.
fn hostile(streams: Vec<u8>, plain_hash: Hash, pages: u32) -> Result<Vec<u8>, FrameDamage> {
    let frame = EncodedFrame {
        transformed_length: streams.len() as u32,
        plain_length: pages * 8192,
        page_size: 8192,
        compression: CompressionUsed::None,
        transform: PAGE_TRANSFORM,
        sealing: 0,
        plain_hash,
        stored_hash: Hash::of(&streams).short(),
        stored: streams,
    };
    let entry = entry_of(&frame, &[(0, 0, pages * 8192)]);
    FrameDecoder::new().decode(&entry, &[file("base/5/16384")], &frame.stored)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_come_back(
        parts in vec(
            prop_oneof![
                (0..20_u32).prop_map(|block| heap_pages(&[block])),
                any::<u64>().prop_map(|seed| noise(8192, seed)),
                any::<u8>().prop_map(|byte| vec![byte; 8192]),
            ],
            1..12,
        ),
        blocks in vec(any::<u32>(), 12),
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        text in prop::sample::select(&SETTINGS[..]),
    ) {
        let blocks: Vec<u32> = blocks[..parts.len()].iter().map(|block| block % (1 << 31)).collect();
        let mut plain = parts.concat();
        for (at, byte) in edits {
            let at = at.index(plain.len());
            plain[at] = byte;
        }
        let frame = frame(setting(text), &plain, &blocks);
        // A piece for each page.
        let (mut files, mut pieces) = (Vec::new(), Vec::new());
        for block in &blocks {
            pieces.push((files.len() as u32, u64::from(block % 131_072) * 8192, 8192));
            files.push(match block / 131_072 {
                0 => file("base/5/16384"),
                segment => file(&format!("base/5/16384.{segment}")),
            });
        }
        let back = FrameDecoder::new().decode(&entry_of(&frame, &pieces), &files, &frame.stored);
        prop_assert!(back.expect("decoded") == plain);
    }

    #[test]
    fn streams_that_nobody_wrote_are_damage(
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        wild in proptest::option::weighted(0.1, vec(any::<u8>(), 0..16_000)),
    ) {
        let blocks: Vec<u32> = (0..2).collect();
        let plain = heap_pages(&blocks);
        let numbers: Vec<BlockNumber> = blocks.iter().copied().map(BlockNumber).collect();
        let mut sound = Vec::new();
        PageTransform::new().take_apart(&plain, &numbers, None, &mut sound).expect("taken apart");
        let mut streams = wild.unwrap_or_else(|| sound.clone());
        for (at, byte) in edits {
            if !streams.is_empty() {
                let at = at.index(streams.len());
                streams[at] = byte;
            }
        }
        if let Some(cut) = cut {
            streams.truncate(cut.index(streams.len() + 1));
        }
        match hostile(streams, Hash::of(&plain), 2) {
            Ok(back) => prop_assert!(back == plain),
            Err(damage) => prop_assert!(
                matches!(damage, FrameDamage::Transform(_) | FrameDamage::PlainHash { .. }),
                "{}", damage
            ),
        }
    }
}
