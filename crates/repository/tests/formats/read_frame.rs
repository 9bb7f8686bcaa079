//! `scripts/read-frame`, which was written from `docs/format.md` alone and shares no code with Leeward, reads the same
//! bytes out of packs: what that page says is what is stored, and enough to read it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use leeward_repository::file_path::FilePath;
use leeward_repository::frame::FrameDecoder;
use leeward_repository::pack::{PackIndex, PackWriter};
use leeward_repository::store::local::LocalStore;
use leeward_repository::store::{Key, Store};

use crate::kit::{Place, file, frame, key, plain_frame, write_pages_pack};
use leeward_fixtures::{heap_pages, noise};

fn read_frame(pack: &Path, number: Option<usize>) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/read-frame");
    let mut command = Command::new(script);
    command.arg(pack).args(number.map(|n| n.to_string()));
    command.output().expect("could not run scripts/read-frame")
}

/// Every frame that the script lists and writes is what Leeward reads; how many there are.
fn assert_agreement(store: &dyn Store, pack: &Key, path: &Path) -> usize {
    let index = PackIndex::read(store, pack, None).expect("an index");
    let list = read_frame(path, None);
    let list = String::from_utf8(list.stdout).expect("text");
    let lines: Vec<&str> = list.lines().skip(1).collect();
    assert_eq!(lines.len(), index.frames.len(), "{list}");
    let mut decoder = FrameDecoder::new();
    for (number, (line, entry)) in lines.iter().zip(&index.frames).enumerate() {
        let words: Vec<&str> = line.split(' ').collect();
        let numbers = [words[0], words[1], words[2], words[3], words[5]];
        let expected = [
            number as u64,
            entry.offset,
            u64::from(entry.stored_length),
            u64::from(entry.plain_length),
            u64::from(entry.transform),
        ];
        assert_eq!(numbers, expected.map(|n| n.to_string()), "{line}");
        let frame = index.read_frame(store, pack, number as u32, &mut decoder);
        let written = read_frame(path, Some(number));
        assert!(written.status.success(), "{written:?}");
        assert!(written.stdout == frame.expect("a frame"), "frame {number}");
    }
    lines.len()
}

#[test]
fn the_golden_pack() {
    let golden: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/format-1");
    let name = "main/backups/20261122T023000Z-k7q2/packs/000007.pack";
    let store = LocalStore::new(golden.clone());
    assert_eq!(assert_agreement(&store, &key(name), &golden.join(name)), 3);
}

#[test]
fn pages_taken_apart() {
    let place = Place::new();
    let pack = key("main/backups/x/packs/000007.pack");
    write_pages_pack(&*place.store, &pack).expect("a pack");
    assert_eq!(
        assert_agreement(&*place.store, &pack, &place.path(&pack)),
        2
    );
}

#[test]
fn every_setting_and_kind_of_page() {
    let place = Place::new();
    let pack = key("main/backups/x/packs/000000.pack");
    let mut writer = PackWriter::create(&*place.store, &pack, 0).expect("a pack");
    let (relation, other) = (file("base/5/16384.2"), file("PG_VERSION"));
    let blocks: Vec<u32> = (262_150..262_170).collect();
    let mut plain = heap_pages(&blocks);
    // A page of zeros, a page that is none, one with a wrong checksum, and one with something in its hole.
    plain[8192..16384].fill(0);
    plain[16384..24576].copy_from_slice(&noise(8192, 5));
    plain[3 * 8192 + 8] ^= 1;
    plain[4 * 8192 + 500..4 * 8192 + 900].copy_from_slice(&noise(400, 6));
    let pieces: [(&FilePath, u64, u32); 1] = [(&relation, 6 * 8192, 20 * 8192)];
    let settings = ["pages", "pages+lz4", "zstd:9", "lz4", "none"];
    for text in settings {
        let setting = text.parse().expect("a setting");
        let appended = writer.append(frame(setting, &plain, &blocks), &pieces);
        appended.expect("a frame");
    }
    let text = plain_frame("lz4".parse().expect("a setting"), &b"15\n".repeat(99), &[]);
    writer.append(text, &[(&other, 0, 297)]).expect("a frame");
    writer.finish().expect("a pack");
    assert_eq!(
        assert_agreement(&*place.store, &pack, &place.path(&pack)),
        settings.len() + 1
    );
}

#[test]
fn what_is_no_pack_is_told_in_one_sentence() {
    let place = Place::new();
    let pack = key("main/backups/x/packs/000007.pack");
    write_pages_pack(&*place.store, &pack).expect("a pack");
    let missing = read_frame(&place.path(&pack), Some(2));
    let bytes = place.bytes(&pack);
    place.overwrite(&pack, &bytes[..bytes.len() - 1]);
    let cut = read_frame(&place.path(&pack), None);
    for (output, sentence) in [
        (
            missing,
            "read-frame: the pack has 2 frames: there is no frame 2\n",
        ),
        (
            cut,
            "read-frame: this is not a pack: its trailer is another\n",
        ),
    ] {
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        assert_eq!(String::from_utf8_lossy(&output.stderr), sentence);
    }
}
