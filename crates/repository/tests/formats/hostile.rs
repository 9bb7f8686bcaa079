//! Bytes that nobody wrote, behind hashes that hold: decoders answer with an error, never with a panic, and allocate
//! no more than the limits they declare. The ends of objects are put together here by hand, after `docs/format.md`.

use std::sync::Arc;

use leeward_repository::RepositoryError;
use leeward_repository::codec::{CompressionUsed, Decompressor};
use leeward_repository::frame::{FrameDamage, FrameDecoder, FrameEntry};
use leeward_repository::hash::Hash;
use leeward_repository::manifest::ManifestReader;
use leeward_repository::pack::{PackIndex, check_pack};
use leeward_repository::store::Key;
use leeward_repository::wal_object::read_wal_object;
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::kit::{Place, key, write_small_manifest, write_small_pack};
use leeward_fixtures::noise;

/// Fields of a trailer that a test wants to choose.
#[derive(Clone, Copy)]
struct Chosen {
    version: u16,
    compression: u8,
    sealing: u8,
    count: u32,
    plain_length: u32,
}

/// `before`, then `index` as stored, then a trailer that vouches for it.
fn finish_object(before: &[u8], index: &[u8], magic: &[u8; 8], chosen: Chosen) -> (Vec<u8>, Hash) {
    let mut trailer = Vec::new();
    trailer.extend_from_slice(magic);
    trailer.extend_from_slice(&chosen.version.to_le_bytes());
    trailer.extend_from_slice(&[chosen.compression, chosen.sealing]);
    trailer.extend_from_slice(&chosen.count.to_le_bytes());
    trailer.extend_from_slice(&(before.len() as u64).to_le_bytes());
    trailer.extend_from_slice(&(index.len() as u32).to_le_bytes());
    trailer.extend_from_slice(&chosen.plain_length.to_le_bytes());
    trailer.extend_from_slice(&((before.len() + index.len() + 96) as u64).to_le_bytes());
    trailer.extend_from_slice(&[0; 16]);
    let hash = Hash::of(&[index, &trailer].concat());
    trailer.extend_from_slice(&hash.0);
    trailer.extend_from_slice(magic);
    assert_eq!(trailer.len(), 96);
    ([before, index, &trailer].concat(), hash)
}

const PACK_END: &[u8; 8] = b"LWPKEND\n";
const MANIFEST_END: &[u8; 8] = b"LWMFEND\n";

fn raw(count: u32, index: &[u8]) -> Chosen {
    Chosen {
        version: 1,
        compression: 0,
        sealing: 0,
        count,
        plain_length: index.len() as u32,
    }
}

/// The plain index or footer of an object of ours, its bytes before, and its count.
fn take_apart(place: &Place, key: &Key) -> (Vec<u8>, Vec<u8>, u32) {
    let bytes = place.bytes(key);
    let trailer = &bytes[bytes.len() - 96..];
    let u32_at =
        |at: usize| u32::from_le_bytes(trailer[at..at + 4].try_into().expect("four bytes"));
    let offset = u64::from_le_bytes(trailer[16..24].try_into().expect("eight bytes")) as usize;
    let used = CompressionUsed::from_u8(trailer[10]).expect("a compression");
    let index = Decompressor::new()
        .decompress(&bytes[offset..bytes.len() - 96], used, u32_at(28) as usize)
        .expect("an index");
    (bytes[..offset].to_vec(), index, u32_at(12))
}

/// Any edits to some bytes: overwritten, cut, grown.
fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, Vec<u8>, usize)>> {
    vec(
        (
            any::<prop::sample::Index>(),
            vec(any::<u8>(), 0..9),
            0..9_usize,
        ),
        1..6,
    )
}

fn apply(mut bytes: Vec<u8>, edits: &[(prop::sample::Index, Vec<u8>, usize)]) -> Vec<u8> {
    for (at, insert, remove) in edits {
        let at = at.index(bytes.len() + 1);
        let end = (at + remove).min(bytes.len());
        bytes.splice(at..end, insert.iter().copied());
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn pack_indexes(edits in edits(), wild in vec(any::<u8>(), 0..400), take_wild in prop::bool::weighted(0.1)) {
        let place = Place::new();
        let pack = key("pack");
        write_small_pack(&*place.store, &pack).expect("a pack");
        let (before, index, count) = take_apart(&place, &pack);
        let index = if take_wild { wild } else { apply(index, &edits) };
        let (object, _) = finish_object(&before, &index, PACK_END, raw(count, &index));
        place.overwrite(&pack, &object);
        match PackIndex::read(&*place.store, &pack, None) {
            // Whatever is accepted can be used without a panic.
            Ok(_) => drop(check_pack(&*place.store, &pack, None, &mut |_| {})),
            Err(error) => prop_assert!(error.is_damage(), "{}", error),
        }
    }

    #[test]
    fn manifest_footers_and_blocks(
        footer_edits in proptest::option::of(edits()),
        block_edits in proptest::option::of(edits()),
    ) {
        let place = Place::new();
        let manifest = key("manifest");
        write_small_manifest(&*place.store, &manifest, &[]).expect("a manifest");
        let (before, mut footer, count) = take_apart(&place, &manifest);
        let mut blocks = before[64..].to_vec();
        if let Some(edits) = &block_edits {
            // The first block's hash in the footer follows its bytes, so that the edits get past it.
            let entry = first_block(&footer);
            let plain = Decompressor::new()
                .decompress(&blocks[..entry.stored], CompressionUsed::from_u8(entry.compression).expect("known"), entry.plain)
                .expect("a block");
            let edited = apply(plain, edits);
            let mut stored = Vec::new();
            let used = leeward_repository::codec::Compressor::new(leeward_repository::codec::Compression::None)
                .compress(&edited, &mut stored)
                .expect("stored");
            prop_assume!(stored.len() < 65_536 && stored.len() > 255);
            let rest = blocks.split_off(entry.stored);
            footer = with_first_block(&footer, &entry, &stored, used as u8, edited.len());
            footer = move_second_block(&footer, &entry, stored.len());
            blocks = [stored, rest].concat();
        }
        if let Some(edits) = &footer_edits {
            footer = apply(footer, edits);
        }
        let (object, hash) = finish_object(&[&before[..64], &blocks].concat(), &footer, MANIFEST_END, raw(count, &footer));
        place.overwrite(&manifest, &object);
        match ManifestReader::open(Arc::clone(&place.store), manifest, object.len() as u64, hash) {
            Ok(reader) => {
                for entry in reader.entries().take(10_000) {
                    if let Err(error) = entry {
                        prop_assert!(error.is_damage() || matches!(error, RepositoryError::NewerFormat { .. }), "{}", error);
                    }
                }
            }
            Err(error) => prop_assert!(error.is_damage(), "{}", error),
        }
    }

    #[test]
    fn any_bytes_as_any_object(bytes in vec(any::<u8>(), 0..600)) {
        let place = Place::new();
        let object = key("object");
        place.overwrite(&object, &bytes);
        prop_assert!(PackIndex::read(&*place.store, &object, None).is_err());
        let size = bytes.len() as u64;
        prop_assert!(ManifestReader::open(Arc::clone(&place.store), object.clone(), size, Hash::of(b"")).is_err());
        prop_assert!(read_wal_object(&*place.store, &object, size, &mut Vec::new()).is_err());
    }

    #[test]
    fn any_bytes_as_compressed(bytes in vec(any::<u8>(), 0..600), length in 0..100_000_usize, which in 0..3_u8) {
        let used = CompressionUsed::from_u8(which).expect("known");
        if let Ok(plain) = Decompressor::new().decompress(&bytes, used, length) {
            prop_assert_eq!(plain.len(), length);
        }
    }
}

/// The first block's line in the footer of the small manifest, whose encoding is known: offset 64 (two bytes), stored
/// length, plain length, compression, sealing, section, records, hash.
struct FirstBlock {
    /// Where the line's stored length begins, and the hash ends.
    start: usize,
    end: usize,
    stored: usize,
    plain: usize,
    compression: u8,
    records: u8,
}

fn first_block(footer: &[u8]) -> FirstBlock {
    let mut d = minicbor::Decoder::new(footer);
    let mut read = || -> Result<FirstBlock, minicbor::decode::Error> {
        d.map()?;
        d.u32()?;
        d.bytes()?;
        d.u32()?;
        d.array()?;
        d.array()?;
        assert_eq!(d.u64()?, 64, "the first block follows the header");
        let start = d.position();
        let stored = d.u32()? as usize;
        let plain = d.u32()? as usize;
        let compression = d.u8()?;
        assert_eq!((d.u8()?, d.u8()?), (0, 0));
        let records = d.u32()? as u8;
        d.bytes()?;
        Ok(FirstBlock {
            start,
            end: d.position(),
            stored,
            plain,
            compression,
            records,
        })
    };
    read().expect("a footer of ours")
}

fn with_first_block(
    footer: &[u8],
    at: &FirstBlock,
    stored: &[u8],
    compression: u8,
    plain: usize,
) -> Vec<u8> {
    let mut line = Vec::new();
    let mut e = minicbor::Encoder::new(&mut line);
    e.u32(stored.len() as u32)
        .and_then(|e| e.u32(plain as u32))
        .and_then(|e| e.u8(compression))
        .and_then(|e| e.u8(0))
        .and_then(|e| e.u8(0))
        .and_then(|e| e.u8(at.records))
        .and_then(|e| e.bytes(&Hash::of(stored).0))
        .expect("encoded");
    [&footer[..at.start], &line, &footer[at.end..]].concat()
}

/// The second block (WAL) lies behind the first, wherever that ends now.
fn move_second_block(footer: &[u8], at: &FirstBlock, stored: usize) -> Vec<u8> {
    let mut old = Vec::new();
    let mut new = Vec::new();
    minicbor::Encoder::new(&mut old)
        .u64(64 + at.stored as u64)
        .expect("encoded");
    minicbor::Encoder::new(&mut new)
        .u64(64 + stored as u64)
        .expect("encoded");
    let position = footer[at.start..]
        .windows(old.len() + 1)
        .position(|window| window[0] == 0x8c && window[1..] == old[..])
        .expect("the second block")
        + at.start
        + 1;
    [&footer[..position], &new, &footer[position + old.len()..]].concat()
}

fn hostile_entry() -> FrameEntry {
    let stored = b"tiny".to_vec();
    FrameEntry {
        offset: 64,
        stored_length: stored.len() as u32,
        transformed_length: 4,
        plain_length: 4,
        page_size: 0,
        compression: 0,
        transform: 0,
        sealing: 0,
        plain_hash: Hash::of(&stored),
        stored_hash: Hash::of(&stored).short(),
        pieces: Vec::new(),
    }
}

/// Declared lengths of gigabytes are refused before anything of that size is allocated: the address space has no room
/// for them here.
#[test]
fn declared_lengths_are_checked_before_allocation() {
    let used = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: u64 = used
        .split(' ')
        .next()
        .and_then(|pages| pages.parse().ok())
        .expect("pages");
    let before = getrlimit(Resource::As);
    let limit = Rlimit {
        current: Some(pages * 4096 + (768 << 20)),
        maximum: before.maximum,
    };
    setrlimit(Resource::As, limit).expect("a limit");

    let place = Place::new();
    let pack = key("pack");
    write_small_pack(&*place.store, &pack).expect("a pack");
    let (header, index, count) = take_apart(&place, &pack);
    for length in [u32::MAX, 3 << 30, 65 << 20] {
        // A trailer that declares a huge index.
        let (object, _) = finish_object(
            &header,
            &index,
            PACK_END,
            Chosen {
                plain_length: length,
                ..raw(count, &index)
            },
        );
        place.overwrite(&pack, &object);
        assert!(PackIndex::read(&*place.store, &pack, None).is_err());
        let manifest = key("manifest");
        let (object, hash) = finish_object(
            &header,
            &index,
            MANIFEST_END,
            Chosen {
                plain_length: length,
                ..raw(count, &index)
            },
        );
        place.overwrite(&manifest, &object);
        assert!(
            ManifestReader::open(
                Arc::clone(&place.store),
                manifest,
                object.len() as u64,
                hash
            )
            .is_err()
        );
        // Tables that declare huge counts: files, frames, pieces, bytes of names.
        for at in [64, 68, 72, 76] {
            let mut index = index.clone();
            index[at..at + 4].copy_from_slice(&length.to_le_bytes());
            let (object, _) = finish_object(&header, &index, PACK_END, raw(length, &index));
            place.overwrite(&pack, &object);
            assert!(PackIndex::read(&*place.store, &pack, None).is_err());
        }
        // Frames that declare huge contents, in every compression.
        for compression in 0..3 {
            let entry = FrameEntry {
                plain_length: length,
                transformed_length: length,
                compression,
                ..hostile_entry()
            };
            let damage = FrameDecoder::new()
                .decode(&entry, &[], b"tiny")
                .expect_err("too much");
            assert!(matches!(damage, FrameDamage::Lengths(_)), "{damage}");
        }
    }
    // CBOR that declares huge arrays and maps.
    for footer in [
        [0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff].as_slice(),
        &[
            0xa1, 0x01, 0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ],
        &[
            0xa1, 0x00, 0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ],
    ] {
        let manifest = key("manifest");
        let (object, hash) = finish_object(&[0; 64], footer, MANIFEST_END, raw(0, footer));
        place.overwrite(&manifest, &object);
        assert!(
            ManifestReader::open(
                Arc::clone(&place.store),
                manifest,
                object.len() as u64,
                hash
            )
            .is_err()
        );
    }
    // A zstd frame that declares 4 GiB, and a window as large.
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    bomb.extend_from_slice(&(4_u64 << 30).to_le_bytes());
    bomb.extend_from_slice(&[0; 20]);
    assert!(
        Decompressor::new()
            .decompress(&bomb, CompressionUsed::Zstd, 1 << 20)
            .is_err()
    );
    setrlimit(Resource::As, before).expect("the limit before");
}

#[test]
fn newer_formats_are_refused_and_named() {
    let mut decoder = FrameDecoder::new();
    for (entry, what) in [
        (
            FrameEntry {
                sealing: 1,
                ..hostile_entry()
            },
            "sealing 1",
        ),
        (
            FrameEntry {
                transform: 2,
                ..hostile_entry()
            },
            "page transform 2",
        ),
        (
            FrameEntry {
                compression: 9,
                ..hostile_entry()
            },
            "compression 9",
        ),
    ] {
        let text = decoder
            .decode(&entry, &[], b"tiny")
            .expect_err("unknown")
            .to_string();
        assert!(text.contains(what) && text.contains("newer"), "{text}");
    }

    let place = Place::new();
    let pack = key("pack");
    write_small_pack(&*place.store, &pack).expect("a pack");
    let (before, index, count) = take_apart(&place, &pack);
    for (chosen, what) in [
        (
            Chosen {
                version: 2,
                ..raw(count, &index)
            },
            "format version 2, and this version of leeward knows up to 1",
        ),
        (
            Chosen {
                sealing: 1,
                ..raw(count, &index)
            },
            "sealing 1",
        ),
        (
            Chosen {
                compression: 7,
                ..raw(count, &index)
            },
            "compression 7",
        ),
    ] {
        let (object, _) = finish_object(&before, &index, PACK_END, chosen);
        place.overwrite(&pack, &object);
        let error = PackIndex::read(&*place.store, &pack, None).expect_err("newer");
        assert!(error.to_string().contains(what), "{error}");
        assert!(
            error.hint().is_some_and(|hint| hint.contains("later")),
            "{error}"
        );
        assert!(!error.is_damage(), "{error}");
    }
}

/// What a later version may add without becoming unreadable to this one: longer entries, fields in spare bytes.
#[test]
fn longer_entries_and_spare_bytes_are_skipped() {
    let place = Place::new();
    let pack = key("pack");
    let info = write_small_pack(&*place.store, &pack).expect("a pack");
    let sound = PackIndex::read(&*place.store, &pack, Some(&info)).expect("an index");
    let (before, index, count) = take_apart(&place, &pack);
    let names = u32::from_le_bytes(index[76..80].try_into().expect("four")) as usize;
    let (head, rest) = index.split_at(96 + names);
    let (entries, pieces) = rest.split_at(88 * count as usize);
    let mut newer = head.to_vec();
    newer[80..82].copy_from_slice(&100_u16.to_le_bytes());
    newer[82..84].copy_from_slice(&20_u16.to_le_bytes());
    newer[90] = 1;
    for entry in entries.chunks(88) {
        newer.extend_from_slice(&entry[..80]);
        newer.extend_from_slice(&noise(20, 1));
    }
    for piece in pieces.chunks(16) {
        newer.extend_from_slice(piece);
        newer.extend_from_slice(&[7; 4]);
    }
    let (object, _) = finish_object(&before, &newer, PACK_END, raw(count, &newer));
    place.overwrite(&pack, &object);
    let read = PackIndex::read(&*place.store, &pack, None).expect("an index");
    assert_eq!(read, sound);
}
