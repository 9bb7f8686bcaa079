//! What goes in comes out.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use leeward_pgformat::{SystemIdentifier, TimelineId};
use leeward_repository::codec::{
    Compression, CompressionUsed, Compressor, Decompressor, FrameCompression,
};
use leeward_repository::file_path::{FilePath, Root};
use leeward_repository::frame::{FRAME_BYTES, FrameDecoder};
use leeward_repository::manifest::{
    Content, Entry, FileKind, FileRecord, ManifestReader, ManifestWriter, Run, WalRecord,
};
use leeward_repository::pack::{PackIndex, PackInfo, PackWriter};
use leeward_repository::store::Key;
use leeward_repository::wal_object::{
    WalFacts, read_wal_object, read_wal_object_contents, write_wal_object,
    write_wal_object_with_contents,
};
use leeward_repository::{RepositoryError, hash::Hash};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::kit::{
    Place, ScannedWal, file, key, plain_frame, small_records, small_wal, wal_contents,
    write_small_manifest,
};
use leeward_fixtures::{noise, rows};

fn compressions() -> impl Strategy<Value = Compression> {
    prop_oneof![
        Just(Compression::None),
        Just(Compression::Lz4),
        (1..6).prop_map(|level| Compression::Zstd { level }),
    ]
}

/// Bytes of every temper: empty, noise, repetitive, and mixtures.
fn contents() -> impl Strategy<Value = Vec<u8>> {
    vec(
        prop_oneof![
            (0..60_000_usize, any::<u64>()).prop_map(|(length, seed)| noise(length, seed)),
            (0..60_000_usize).prop_map(rows),
            (0..60_000_usize, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
        ],
        0..4,
    )
    .prop_map(|parts| parts.concat())
}

fn paths() -> impl Strategy<Value = FilePath> {
    (
        prop_oneof![Just(Root::DataDirectory), Just(Root::Configuration)],
        vec(vec(any::<u8>(), 1..12), 1..4),
    )
        .prop_map(|(root, names)| FilePath {
            root,
            path: names.join(&b'/'),
        })
        .prop_filter("a path that can be restored", FilePath::is_safe)
}

#[test]
fn every_level_of_every_compression_brings_the_bytes_back() {
    let plain = [rows(200_000), noise(200_000, 3), vec![0; 100_000]].concat();
    let mut decompressor = Decompressor::new();
    for text in [
        "none", "lz4", "zstd", "zstd:1", "zstd:2", "zstd:3", "zstd:9", "zstd:19",
    ] {
        let mut compressor = Compressor::new(text.parse().expect("a compression"));
        let mut stored = Vec::new();
        for length in [plain.len(), 0, 1, 8192, plain.len()] {
            let used = compressor
                .compress(&plain[..length], &mut stored)
                .expect("compressed");
            let back = decompressor
                .decompress(&stored, used, length)
                .expect("decompressed");
            assert!(back == plain[..length], "{text}: {length} bytes");
            assert!(
                stored.len() <= length,
                "{text}: {length} bytes became {}",
                stored.len()
            );
        }
    }
}

#[test]
fn random_frames_are_stored_raw_and_their_holes_are_not() {
    let zstd = Compression::default();
    let random = plain_frame(zstd, &noise(FRAME_BYTES, 9), &[]);
    assert_eq!(random.compression, CompressionUsed::None);
    assert_eq!(random.stored_hash, random.plain_hash.short());

    // Pages of random rows: 400 bytes of each are free.
    let mut pages = noise(FRAME_BYTES, 10);
    for page in pages.chunks_mut(8192) {
        page[..400].fill(0);
    }
    let blocks: Vec<u32> = (0..128).collect();
    let pages = plain_frame(zstd, &pages, &blocks);
    assert_eq!(pages.compression, CompressionUsed::Zstd);
    assert!(
        pages.stored.len() < FRAME_BYTES * 96 / 100,
        "{} bytes",
        pages.stored.len()
    );

    // The same random half twice: found, although every byte looks random.
    let half = noise(FRAME_BYTES / 2, 11);
    let twice = plain_frame(zstd, &[&half[..], &half[..]].concat(), &[]);
    assert!(
        twice.stored.len() < FRAME_BYTES * 6 / 10,
        "{} bytes",
        twice.stored.len()
    );
}

#[test]
fn names_of_compressions() {
    for wrong in [
        "",
        "zstd:",
        "zstd:0",
        "zstd:20",
        "zstd:-1",
        "gzip",
        "lz4:1",
        "ZSTD",
        "pages",
        "pages+lz4",
    ] {
        assert!(wrong.parse::<Compression>().is_err(), "{wrong}");
    }
    assert_eq!(Compression::default().to_string(), "zstd:3");
    assert_eq!(
        "zstd:7".parse::<Compression>().expect("valid").to_string(),
        "zstd:7"
    );
    let elsewhere = "pages".parse::<Compression>().expect_err("not here");
    assert!(elsewhere.to_string().contains("backups"), "{elsewhere}");

    for wrong in [
        "page",
        "pages+",
        "pages:1",
        "pages+none",
        "pages+zstd:0",
        "pages+pages",
        "+zstd",
        "gzip",
    ] {
        let error = wrong.parse::<FrameCompression>().expect_err(wrong);
        assert!(error.to_string().contains("pages+zstd:19"), "{error}");
    }
    assert_eq!(FrameCompression::default().to_string(), "pages");
    for text in [
        "pages",
        "pages+zstd:1",
        "pages+lz4",
        "zstd:3",
        "zstd:19",
        "lz4",
        "none",
    ] {
        let read: FrameCompression = text.parse().expect(text);
        assert_eq!(read.to_string(), text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn packs(
        frames in vec((contents(), compressions(), vec(paths(), 1..5)), 0..6),
        number in any::<u32>(),
    ) {
        let place = Place::new();
        let pack_key = key("main/backups/x/packs/000000.pack");
        let mut writer = PackWriter::create(&*place.store, &pack_key, number).expect("a pack");
        let mut expected = Vec::new();
        for (at, (plain, compression, paths)) in frames.iter().enumerate() {
            let frame = plain_frame(*compression, plain, &[]);
            // The bytes go to the paths in equal shares.
            let share = plain.len() / paths.len();
            let pieces: Vec<(&FilePath, u64, u32)> = paths
                .iter()
                .enumerate()
                .map(|(n, path)| {
                    let length = if n + 1 == paths.len() { plain.len() - share * n } else { share };
                    (path, (at * 1_000_000 + n) as u64, length as u32)
                })
                .collect();
            let location = writer.append(frame, &pieces).expect("appended");
            prop_assert_eq!((location.pack, location.frame as usize), (number, at));
            expected.push(pieces.iter().map(|(p, o, l)| ((*p).clone(), *o, *l)).collect::<Vec<_>>());
        }
        let info = writer.finish().expect("a pack");
        prop_assert_eq!(info.size, place.bytes(&pack_key).len() as u64);
        for known in [Some(&info), None] {
            let index = PackIndex::read(&*place.store, &pack_key, known).expect("an index");
            prop_assert_eq!(index.number(), number);
            prop_assert_eq!(index.frames.len(), frames.len());
            let mut decoder = FrameDecoder::new();
            for (at, (plain, _, _)) in frames.iter().enumerate() {
                let entry = &index.frames[at];
                prop_assert_eq!((entry.page_size, entry.transform), (0, 0));
                let pieces: Vec<_> = entry
                    .pieces
                    .iter()
                    .map(|piece| (index.files[piece.file as usize].clone(), piece.offset, piece.length))
                    .collect();
                prop_assert_eq!(&pieces, &expected[at]);
                let back = index.read_frame(&*place.store, &pack_key, at as u32, &mut decoder).expect("a frame");
                prop_assert!(back == *plain);
            }
        }
    }

    #[test]
    fn manifests(records in vec(records(), 0..40), wal in vec(wal_records(), 0..4)) {
        // One record a path.
        let records: BTreeMap<FilePath, FileRecord> = records.into_iter().map(|r| (r.path.clone(), r)).collect();
        let place = Place::new();
        let manifest_key = key("main/backups/x/manifest");
        let mut writer = ManifestWriter::create(&*place.store, &manifest_key).expect("a manifest");
        let parent = "20261121T023000Z-aaaa".parse().expect("an id");
        let parent_packs = vec![PackInfo { number: 9, size: 1 << 40, frames: 3, index_hash: Hash::of(b"p") }];
        prop_assert_eq!(writer.add_source(parent, parent_packs.clone()).expect("a source"), 1);
        for record in records.values() {
            writer.add_file(record).expect("added");
        }
        for record in &wal {
            writer.add_wal(record).expect("added");
        }
        let info = writer.finish(&[]).expect("a manifest");
        let reader = open(&place, &manifest_key, &info).expect("open");
        prop_assert_eq!(reader.info(), &info);
        prop_assert_eq!(&reader.sources()[1].packs, &parent_packs);
        let found: Vec<Entry> = reader.entries().map(|entry| entry.expect("an entry")).collect();
        let expected: Vec<Entry> = records.values().cloned().map(Entry::File).chain(wal.iter().cloned().map(Entry::Wal)).collect();
        prop_assert_eq!(found, expected);
        for record in records.values() {
            prop_assert_eq!(reader.find(&record.path).expect("find"), Some(record.clone()));
        }
        prop_assert_eq!(reader.find(&file("not/there")).expect("find"), None);
        prop_assert_eq!(reader.wal().count(), wal.len());
    }
}

fn records() -> impl Strategy<Value = FileRecord> {
    let runs = vec(
        (
            0..2_u16,
            any::<u32>(),
            any::<u32>(),
            0..1_u32 << 20,
            0..1_u64 << 40,
            1..1_u32 << 20,
        ),
        0..20,
    )
    .prop_map(|runs| {
        let mut end = 0;
        let runs: Vec<Run> = runs
            .into_iter()
            .map(|(source, pack, frame, frame_offset, gap, length)| {
                // Every other run follows its neighbour, as they do in life.
                let file_offset = if gap % 2 == 0 { end } else { end + gap };
                end = file_offset + u64::from(length);
                Run {
                    source,
                    pack,
                    frame,
                    frame_offset,
                    file_offset,
                    length,
                }
            })
            .collect();
        FileKind::File {
            size: end,
            content: Content::Runs(runs),
        }
    });
    let inline = vec(any::<u8>(), 0..300).prop_map(|bytes| FileKind::File {
        size: bytes.len() as u64,
        content: Content::Inline(bytes),
    });
    let kinds = prop_oneof![
        4 => runs,
        1 => inline,
        1 => Just(FileKind::Directory),
        1 => vec(any::<u8>(), 0..50).prop_map(|target| FileKind::Symlink { target }),
    ];
    (
        paths(),
        kinds,
        any::<u32>(),
        any::<Option<(u32, u32)>>(),
        any::<i64>(),
        proptest::collection::btree_set(any::<u32>(), 0..5),
    )
        .prop_map(|(path, kind, mode, owner, mtime, damaged)| FileRecord {
            path,
            kind,
            mode,
            owner,
            mtime,
            damaged: damaged.into_iter().collect(),
        })
}

fn wal_records() -> impl Strategy<Value = WalRecord> {
    (
        "[0-9A-F]{24}",
        any::<u64>(),
        any::<u64>(),
        any::<[u8; 32]>(),
        any::<[u8; 32]>(),
    )
        .prop_map(
            |(name, plain_length, stored_length, plain, stored)| WalRecord {
                name,
                plain_length,
                stored_length,
                plain_hash: Hash(plain),
                stored_hash: Hash(stored),
            },
        )
}

fn open(
    place: &Place,
    key: &Key,
    info: &leeward_repository::manifest::ManifestInfo,
) -> Result<ManifestReader, RepositoryError> {
    ManifestReader::open(Arc::clone(&place.store), key.clone(), info.size, info.hash)
}

#[test]
fn small_manifest_counts_what_it_holds() {
    let place = Place::new();
    let manifest_key = key("manifest");
    let info = write_small_manifest(&*place.store, &manifest_key, &[]).expect("a manifest");
    assert_eq!((info.files, info.entries, info.wal_objects), (5, 7, 1));
    assert_eq!(info.size_bytes, 10 * 8192 + 3 + 29 + 297);
    let reader = open(&place, &manifest_key, &info).expect("open");
    assert_eq!(reader.entries().count(), small_records().len() + 1);
    match reader.wal().next() {
        Some(Ok(Entry::Wal(record))) => assert_eq!(record, small_wal()),
        other => panic!("{other:?}"),
    }
}

/// A table of 1 GiB costs a few bytes a frame, and 200,000 files a few dozen each.
#[test]
fn manifests_are_compact() {
    let place = Place::new();
    let manifest_key = key("manifest");
    let mut writer = ManifestWriter::create(&*place.store, &manifest_key).expect("a manifest");
    let record = |name: String, size, runs| FileRecord {
        path: file(&name),
        kind: FileKind::File {
            size,
            content: Content::Runs(runs),
        },
        mode: 0o600,
        owner: None,
        mtime: 1_795_000_000,
        damaged: Vec::new(),
    };
    for segment in 0..64_u32 {
        let runs = (0..1024_u32)
            .map(|frame| Run {
                source: 0,
                pack: segment / 4,
                // Neighbours finish in another order now and then.
                frame: (segment % 4 * 1024 + frame) ^ u32::from(frame % 7 == 0),
                frame_offset: 0,
                file_offset: u64::from(frame) << 20,
                length: 1 << 20,
            })
            .collect();
        writer
            .add_file(&record(format!("base/5/16384.{segment}"), 1 << 30, runs))
            .expect("added");
    }
    let small = 200_000_u32;
    for number in 0..small {
        let run = Run {
            source: 0,
            pack: 20 + number / 100_000,
            frame: number / 128,
            frame_offset: number % 128 * 8192,
            file_offset: 0,
            length: 8192,
        };
        writer
            .add_file(&record(
                format!("base/6/{}", 100_000 + number),
                8192,
                vec![run],
            ))
            .expect("added");
    }
    let info = writer.finish(&[]).expect("a manifest");
    assert!(
        info.size < 64 * 1024 * 3 + u64::from(small) * 8,
        "{} bytes",
        info.size
    );

    let reader = open(&place, &manifest_key, &info).expect("open");
    let found = reader
        .find(&file("base/6/250000"))
        .expect("find")
        .expect("a file");
    assert_eq!(found.path, file("base/6/250000"));
    assert_eq!(
        reader.entries().filter(|entry| entry.is_ok()).count(),
        64 + small as usize
    );
}

#[test]
fn wal_objects_of_every_length_come_back_and_plain_zstd_reads_them() {
    let place = Place::new();
    let facts = WalFacts {
        system_identifier: SystemIdentifier(7_412_345_678_901_234_567),
        timeline: TimelineId(3),
    };
    for length in [0, 1, 262_144, 4_194_303, 4_194_304, 4_194_305, 8_388_608] {
        for (temper, plain) in [("noise", noise(length, 5)), ("rows", rows(length))] {
            let wal_key = key(&format!("wal/{temper}-{length}.zst"));
            let mut source = plain.as_slice();
            let info =
                write_wal_object(&*place.store, &wal_key, facts, &mut source, 3).expect("written");
            assert_eq!(info.plain_length, length as u64);
            assert_eq!(info.plain_hash, Hash::of(&plain));
            let object = place.bytes(&wal_key);
            assert_eq!(info.stored_length, object.len() as u64);
            assert_eq!(info.stored_hash, Hash::of(&object[..object.len() - 32]));

            let mut back = Vec::new();
            let found = read_wal_object(&*place.store, &wal_key, info.stored_length, &mut back)
                .expect("read");
            assert!(back == plain, "{temper} {length}");
            assert_eq!(found, info);

            let mut by_zstd = Vec::new();
            zstd::stream::read::Decoder::new(&object[..])
                .expect("a decoder")
                .read_to_end(&mut by_zstd)
                .expect("zstd alone");
            assert!(by_zstd == plain, "{temper} {length} by zstd alone");
        }
    }
}

#[test]
fn what_wal_says_is_read_without_reading_the_wal() {
    let place = Place::new();
    let facts = WalFacts {
        system_identifier: SystemIdentifier(7_412_345_678_901_234_567),
        timeline: TimelineId(3),
    };
    for length in [0, 100, 6_000_000] {
        let plain = noise(length, 5);
        let wal_key = key(&format!("wal/{length}.zst"));
        let info = write_wal_object_with_contents(
            &*place.store,
            &wal_key,
            facts,
            &mut ScannedWal(&plain),
            3,
        )
        .expect("written");
        assert_eq!(info.contents, Some(wal_contents()));
        let size = place.store.size(&wal_key).expect("a size");
        assert_eq!(
            read_wal_object_contents(&*place.store, &wal_key, size).expect("read"),
            Some(wal_contents())
        );
        let mut back = Vec::new();
        let found = read_wal_object(&*place.store, &wal_key, size, &mut back).expect("read");
        assert_eq!(found, info);
        assert!(back == plain);

        let object = place.bytes(&wal_key);
        let mut by_zstd = Vec::new();
        zstd::stream::read::Decoder::new(&object[..])
            .expect("a decoder")
            .read_to_end(&mut by_zstd)
            .expect("zstd alone");
        assert!(by_zstd == plain, "{length} by zstd alone");

        // Without contents the same WAL is the same WAL.
        let silent_key = key(&format!("wal/{length}-silent.zst"));
        let silent = write_wal_object(&*place.store, &silent_key, facts, &mut &plain[..], 3)
            .expect("written");
        assert_eq!(silent.plain_hash, info.plain_hash);
        assert_eq!(
            read_wal_object_contents(&*place.store, &silent_key, silent.stored_length)
                .expect("read"),
            None
        );
    }
}

#[test]
fn what_a_restore_could_not_use_is_not_written() {
    let place = Place::new();
    let mut writer = ManifestWriter::create(&*place.store, &key("manifest")).expect("a manifest");
    let sound = small_records().remove(0);
    for path in ["../x", "/etc/passwd", "base//5", "base/./5", "base/5\0"] {
        let record = FileRecord {
            path: file(path),
            ..sound.clone()
        };
        let error = writer.add_file(&record).expect_err(path);
        assert!(
            matches!(error, RepositoryError::Unwritable { .. }),
            "{error}"
        );
        let mut pack = PackWriter::create(&*place.store, &key("pack"), 0).expect("a pack");
        let frame = plain_frame(Compression::None, b"12", &[]);
        assert!(
            pack.append(frame, &[(&file(path), 0, 2)]).is_err(),
            "{path}"
        );
    }
    let outside = FileRecord {
        kind: FileKind::File {
            size: 100,
            content: Content::Runs(vec![Run {
                source: 0,
                pack: 0,
                frame: 0,
                frame_offset: 0,
                file_offset: 50,
                length: 51,
            }]),
        },
        ..sound
    };
    assert!(writer.add_file(&outside).is_err());
    let mut pack = PackWriter::create(&*place.store, &key("pack"), 0).expect("a pack");
    let frame = plain_frame(Compression::None, b"12", &[]);
    assert!(
        pack.append(frame, &[(&file("x"), 0, 3)]).is_err(),
        "pieces longer than the frame"
    );
    drop((writer, pack));
    assert!(
        place.store.size(&key("manifest")).is_err(),
        "dropped without finish"
    );
    assert!(
        place.store.size(&key("pack")).is_err(),
        "dropped without finish"
    );
}
