//! Every flipped bit is found, and the message names the object and the part.

use std::sync::Arc;

use leeward_pgformat::{SystemIdentifier, TimelineId};
use leeward_repository::RepositoryError;
use leeward_repository::catalog::Repository;
use leeward_repository::frame::FrameDecoder;
use leeward_repository::layout;
use leeward_repository::manifest::ManifestReader;
use leeward_repository::pack::{PackIndex, PackInfo, check_pack};
use leeward_repository::store::Key;
use leeward_repository::wal_object::{
    WalFacts, read_wal_object, read_wal_object_contents, write_wal_object,
    write_wal_object_with_contents,
};

use crate::kit::{
    Place, ScannedWal, key, summary, write_pages_pack, write_small_manifest, write_small_pack,
};
use leeward_fixtures::{noise, rows};

/// Flips each bit of an object in turn and expects `check` to find something that names the object.
fn flip_every_bit(place: &Place, key: &Key, check: &dyn Fn() -> Result<(), RepositoryError>) {
    check().unwrap_or_else(|error| panic!("sound: {error}"));
    let sound = place.bytes(key);
    for bit in 0..sound.len() * 8 {
        let mut bytes = sound.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        place.overwrite(key, &bytes);
        match check() {
            Ok(()) => panic!(
                "bit {} of byte {} of \"{key}\" was not missed",
                bit % 8,
                bit / 8
            ),
            Err(error) => {
                let text = error.to_string();
                assert!(error.is_damage(), "byte {}: {text}", bit / 8);
                assert!(text.contains(key.as_str()), "byte {}: {text}", bit / 8);
            }
        }
    }
    // An object that ends early.
    for length in 0..sound.len() {
        place.overwrite(key, &sound[..length]);
        assert!(check().is_err(), "cut to {length} bytes");
    }
    place.overwrite(key, &sound);
    check().unwrap_or_else(|error| panic!("sound again: {error}"));
}

#[test]
fn of_a_pack() {
    let place = Place::new();
    let pack = key("main/backups/20261122T023000Z-k7q2/packs/000007.pack");
    let info = write_small_pack(&*place.store, &pack).expect("a pack");
    for expected in [Some(&info), None] {
        flip_every_bit(&place, &pack, &|| first_damage(&place, &pack, expected));
    }
}

#[test]
fn of_a_pack_of_pages_taken_apart() {
    let place = Place::new();
    let pack = key("main/backups/20261122T023000Z-k7q2/packs/000007.pack");
    let info = write_pages_pack(&*place.store, &pack).expect("a pack");
    flip_every_bit(&place, &pack, &|| first_damage(&place, &pack, Some(&info)));
}

fn first_damage(
    place: &Place,
    pack: &Key,
    known: Option<&PackInfo>,
) -> Result<(), RepositoryError> {
    let mut damages = Vec::new();
    check_pack(&*place.store, pack, known, &mut |error| damages.push(error))?;
    damages.into_iter().next().map_or(Ok(()), Err)
}

#[test]
fn a_byte_too_many_is_found() {
    let place = Place::new();
    let (pack, manifest) = (key("pack"), key("manifest"));
    let pack_info = write_small_pack(&*place.store, &pack).expect("a pack");
    let info = write_small_manifest(&*place.store, &manifest, &[]).expect("a manifest");
    for key in [&pack, &manifest] {
        place.overwrite(key, &[place.bytes(key), b"x".to_vec()].concat());
    }
    let mut found = Vec::new();
    check_pack(&*place.store, &pack, Some(&pack_info), &mut |error| {
        found.push(error)
    })
    .expect("read");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].is_damage(), "{}", found[0]);
    let store = Arc::clone(&place.store);
    let reader = ManifestReader::open(store, manifest, info.size, info.hash).expect("open");
    assert!(reader.check().expect_err("too long").is_damage());
}

#[test]
fn of_a_frame_names_relation_and_blocks() {
    let place = Place::new();
    let pack = key("main/backups/x/packs/000007.pack");
    let info = write_small_pack(&*place.store, &pack).expect("a pack");
    let index = PackIndex::read(&*place.store, &pack, Some(&info)).expect("an index");
    let mut bytes = place.bytes(&pack);
    for entry in &index.frames {
        bytes[entry.offset as usize + 5] ^= 0x10;
    }
    place.overwrite(&pack, &bytes);
    let text = |frame| {
        let mut decoder = FrameDecoder::new();
        let read = index.read_frame(&*place.store, &pack, frame, &mut decoder);
        read.expect_err("damaged").to_string()
    };
    assert!(
        text(0)
            .contains("frame 0 (\"base/5/16384.1\" blocks 131073 to 131074): stored bytes damaged"),
        "{}",
        text(0)
    );
    assert!(
        text(1).contains("frame 1 (\"PG_VERSION\" from byte 0"),
        "{}",
        text(1)
    );
    assert!(text(2).contains("blocks 131072 to 131072"), "{}", text(2));

    let mut found = Vec::new();
    let sound = check_pack(&*place.store, &pack, Some(&info), &mut |error| {
        found.push(error)
    })
    .expect("read");
    assert_eq!((sound, found.len()), (0, 3));
}

#[test]
fn of_a_manifest() {
    let place = Place::new();
    let pack = key("main/backups/x/packs/000007.pack");
    let packs = [write_small_pack(&*place.store, &pack).expect("a pack")];
    let manifest = key("main/backups/x/manifest");
    let info = write_small_manifest(&*place.store, &manifest, &packs).expect("a manifest");
    flip_every_bit(&place, &manifest, &|| {
        ManifestReader::open(
            Arc::clone(&place.store),
            manifest.clone(),
            info.size,
            info.hash,
        )?
        .check()
    });
}

#[test]
fn of_a_wal_object() {
    let place = Place::new();
    let wal = key("main/backups/x/wal/000000010000000000000002.zst");
    let facts = WalFacts {
        system_identifier: SystemIdentifier(7),
        timeline: TimelineId(1),
    };
    let plain = [rows(3_000), noise(300, 4)].concat();
    let info = write_wal_object(&*place.store, &wal, facts, &mut &plain[..], 3).expect("written");
    flip_every_bit(&place, &wal, &|| {
        let mut back = Vec::new();
        let found = read_wal_object(&*place.store, &wal, info.stored_length, &mut back)?;
        // What the manifest knows is held against what was found.
        if found != info {
            return Err(RepositoryError::Damaged {
                object: wal.to_string(),
                part: "hash".to_owned(),
                problem: "not the manifest's".to_owned(),
            });
        }
        Ok(())
    });
}

#[test]
fn of_a_wal_object_with_contents() {
    let place = Place::new();
    let wal = key("main/wal/00000001/000000010000000000000002.zst");
    let facts = WalFacts {
        system_identifier: SystemIdentifier(7),
        timeline: TimelineId(1),
    };
    let mut plain = ScannedWal(b"few bytes");
    let info =
        write_wal_object_with_contents(&*place.store, &wal, facts, &mut plain, 3).expect("written");
    flip_every_bit(&place, &wal, &|| {
        let found = read_wal_object(&*place.store, &wal, info.stored_length, &mut Vec::new())?;
        assert_eq!(found, info);
        Ok(())
    });
    // The ranged read may miss that there are contents, and notices damage in what lies before; it never tells what
    // was not written.
    let sound = place.bytes(&wal);
    for bit in 0..sound.len() * 8 {
        let mut bytes = sound.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        place.overwrite(&wal, &bytes);
        match read_wal_object_contents(&*place.store, &wal, info.stored_length) {
            Ok(None) => {}
            Ok(found) => assert_eq!(found, info.contents, "bit {bit}"),
            Err(error) => assert!(error.is_damage(), "{error}"),
        }
    }
}

#[test]
fn of_the_json_documents() {
    let place = Place::new();
    let repository = Repository::create(Arc::clone(&place.store)).expect("a repository");
    let cluster = repository.cluster("main").expect("a cluster");
    cluster
        .claim(summary().system_identifier, TimelineId(1))
        .expect("claimed");
    cluster.commit(&summary()).expect("committed");

    let repository_key = layout::repository().expect("a key");
    flip_every_bit(&place, &repository_key, &|| {
        Repository::open(Arc::clone(&place.store)).map(drop)
    });
    let cluster_key = layout::cluster("main").expect("a key");
    flip_every_bit(&place, &cluster_key, &|| cluster.file().map(drop));
    let summary_key = layout::summary("main", &summary().id).expect("a key");
    flip_every_bit(&place, &summary_key, &|| {
        cluster.backup(&summary().id).map(drop)
    });
}

#[test]
fn a_pack_or_manifest_in_anothers_place_is_found() {
    let place = Place::new();
    let one = key("packs/000000.pack");
    let info = write_small_pack(&*place.store, &one).expect("a pack");
    // One of the same length: the numbers in it are random, so others may be a byte longer or shorter, which tells too.
    let mut others = (1..100).map(|number| {
        let other = key(&format!("packs/{number:06}.pack"));
        write_small_pack(&*place.store, &other).expect("a pack");
        place.bytes(&other)
    });
    let length = place.bytes(&one).len();
    let bytes = others.find(|bytes| bytes.len() == length);
    place.overwrite(&one, &bytes.expect("a pack of this length"));
    let error = PackIndex::read(&*place.store, &one, Some(&info)).expect_err("another pack");
    assert!(
        error.to_string().contains("another one than was recorded"),
        "{error}"
    );

    let manifest = key("manifest");
    let first = write_small_manifest(&*place.store, &manifest, &[]).expect("a manifest");
    let replaced = key("replaced");
    write_small_manifest(&*place.store, &replaced, &[]).expect("a manifest");
    place.overwrite(&manifest, &place.bytes(&replaced));
    let error = ManifestReader::open(Arc::clone(&place.store), manifest, first.size, first.hash)
        .expect_err("another");
    assert!(error.is_damage(), "{error}");
}
