//! Pages are taken apart in backups by default: smaller, byte for byte the same when they come back, and to be had by
//! hand.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use leeward_tests::contents::fingerprint;
use leeward_tests::damage::{files_under, flip_bit};
use leeward_tests::dataset;
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::{Backup, Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::server::{Initdb, Server, Stop};
use leeward_tests::story::Story;
use serde_json::Value;

/// The first is what a backup does when it is told nothing.
const SETTINGS: [&str; 5] = ["pages", "zstd:3", "lz4", "none", "pages+lz4"];

/// More rows than the usual contents have, in every kind of index; updated and vacuumed, as life does.
const MORE: &str = "
    CREATE TABLE story.orders (id bigserial PRIMARY KEY, customer int, at timestamptz, amount numeric, note text, tags int[], place point);
    INSERT INTO story.orders (customer, at, amount, note, tags, place)
    SELECT i % 997, '2026-01-01'::timestamptz + i * interval '7 s', i * 0.37, 'order ' || i, ARRAY[i % 10, i % 57], point(i % 317, i % 211)
      FROM generate_series(1, 40000) i;
    CREATE INDEX ON story.orders (customer);
    CREATE INDEX ON story.orders USING hash (customer);
    CREATE INDEX ON story.orders USING brin (at);
    CREATE INDEX ON story.orders USING gin (tags);
    CREATE INDEX ON story.orders USING gist (place);
    CREATE INDEX ON story.orders USING spgist (place);
    UPDATE story.orders SET amount = amount + 1 WHERE id % 3 = 0;
    DELETE FROM story.orders WHERE id % 11 = 0;
    VACUUM story.orders;
    UPDATE story.orders SET note = note || '!' WHERE id % 7 = 0;";

fn files_of(server: &Server) -> impl Iterator<Item = (String, Vec<u8>)> {
    ["base", "global"].into_iter().flat_map(|folder| {
        let files = files_under(&server.data().join(folder)).into_iter();
        files.map(|path| {
            let name = path.strip_prefix(server.data()).expect("a file inside");
            let bytes = fs::read(&path).expect("could not read a file");
            (name.display().to_string(), bytes)
        })
    })
}

/// Every file that was restored is the standby's, byte for byte; the servers of both are stopped.
fn assert_same_files(restored: &Server, standby: &Server) {
    let mut compared = 0;
    for (name, bytes) in files_of(restored) {
        if name == "global/pg_control" {
            continue;
        }
        let original = fs::read(standby.data().join(&name)).expect("the standby has it");
        assert!(bytes == original, "{name} is not what it was");
        compared += 1;
    }
    assert!(compared > 500, "only {compared} files compared");
}

/// What `frame list` says of the only pack of a backup.
fn frames(leeward: &Leeward<'_>, backup: &str) -> Vec<Value> {
    let list = leeward.run(&["frame", "list", backup, "0", "--json"]);
    let list = list.expect(exit::DONE).json();
    list["frames"].as_array().expect("a list").clone()
}

/// The bytes of a frame, through a file.
fn cat(story: &Story, leeward: &Leeward<'_>, backup: &str, frame: usize) -> Vec<u8> {
    let path = story.path("frame");
    let mut command = leeward.command(&["frame", "cat", backup, "0", &frame.to_string()]);
    command.stdout(File::create(&path).expect("could not create a file"));
    let status = command.status().expect("could not run the program");
    assert!(status.success(), "frame cat {frame} ended with {status}");
    fs::read(&path).expect("could not read a frame")
}

/// The bytes of a frame as `scripts/read-frame` reads them, which knows of Leeward only what `docs/format.md` says.
fn read_frame(story: &Story, backup: &str, frame: usize) -> Vec<u8> {
    let folder = story.path("repository/main/backups").join(backup);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/read-frame");
    let mut command = Command::new(script);
    command.arg(folder.join("packs/000000.pack"));
    let output = command.arg(frame.to_string()).output();
    let output = output.expect("could not run scripts/read-frame");
    assert!(output.status.success(), "frame {frame}: {output:?}");
    output.stdout
}

/// Each frame, written out by hand, holds what the list says: the bytes of the standby's own files.
fn assert_frames_hold_files(story: &Story, leeward: &Leeward<'_>, backup: &str, data: &Path) {
    let frames = frames(leeward, backup);
    let apart = frames.iter().filter(|frame| frame["transform"] == "pages");
    assert!(apart.count() > 10, "{} frames", frames.len());
    assert!(
        frames.iter().any(|frame| frame["transform"] == "none"),
        "every file is taken for pages"
    );
    for (number, frame) in frames.iter().enumerate() {
        let plain = cat(story, leeward, backup, number);
        assert_eq!(frame["frame"], number);
        assert_eq!(frame["plain_bytes"], plain.len());
        // Python takes its time: every third.
        assert!(
            number % 3 > 0 || read_frame(story, backup, number) == plain,
            "scripts/read-frame reads something else in frame {number}"
        );
        let count = |piece: &Value, name: &str| {
            usize::try_from(piece[name].as_u64().expect("a count")).expect("it fits")
        };
        for piece in frame["holds"].as_array().expect("a list") {
            let path = piece["path"].as_str().expect("a path");
            if !path.starts_with("base/") && !path.starts_with("global/") {
                continue;
            }
            let (at, offset, length) = (
                count(piece, "at"),
                count(piece, "offset"),
                count(piece, "length"),
            );
            let file = fs::read(data.join(path)).expect("the standby has it");
            assert!(
                plain[at..at + length] == file[offset..offset + length],
                "frame {number}: {path} from byte {offset} is not what it was"
            );
            if piece["first_block"].is_u64() {
                assert_eq!(count(piece, "first_block"), offset / 8192, "{path}");
            }
        }
    }
}

fn check(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::with(&story, &Initdb::default(), |primary| {
        dataset::fill(primary, 1);
        primary.sql_in("postgres", MORE);
    });
    pair.stop_primary();
    // Everything lies on disk, not in the server's memory, and will not be written again.
    pair.standby.stop(Stop::Fast);
    pair.standby.start();
    let leeward = Leeward::new(&story);
    let backups: Vec<Backup> = SETTINGS
        .iter()
        .enumerate()
        .map(|(number, setting)| {
            let said = ["--compression", setting];
            let backup = leeward.back_up(&pair.standby, if number == 0 { &[] } else { &said });
            assert_eq!(backup.text("compression"), *setting);
            backup
        })
        .collect();
    let truth = fingerprint(&pair.standby);
    pair.standby.stop(Stop::Fast);

    let stored: Vec<u64> = backups.iter().map(|b| b.count("stored_bytes")).collect();
    let [pages, zstd, lz4, none, pages_lz4] = stored[..] else {
        panic!("{stored:?}");
    };
    assert!(pages * 4 < zstd * 3, "{stored:?}");
    assert!(pages_lz4 < lz4 && lz4 < none, "{stored:?}");

    for (backup, setting) in backups.iter().zip(SETTINGS) {
        let mut restored = leeward.restored(&backup.id(), &format!("restored-{setting}"), &[]);
        assert_same_files(&restored, &pair.standby);
        assert_sound(&story, &mut restored, backup, &truth);
    }
    let id = backups[0].id();
    assert_frames_hold_files(&story, &leeward, &id, pair.standby.data());
    by_hand(&story, &leeward, &id);
}

/// What `frame` refuses, and what it does when things are damaged.
fn by_hand(story: &Story, leeward: &Leeward<'_>, id: &str) {
    let list = leeward.run(&["frame", "list", id, "0"]).expect(exit::DONE);
    assert!(list.stdout.contains(" blocks 0 to "), "{list}");
    for (args, words) in [
        (&["frame", "cat", id, "7", "0"][..], "has no pack 7"),
        (&["frame", "cat", id, "0", "99999"], "has no frame 99999"),
        (&["frame", "cat", id, "0", "0", "--json"], "--json"),
        (
            &["wal", "push", "x", "--compression", "pages"],
            "of backups",
        ),
    ] {
        leeward.run(args).expect(exit::USAGE).expect_words(&[words]);
    }
    let folder = story.path("repository/main/backups").join(id);
    let pack = folder.join("packs/000000.pack");
    // The first byte of the first frame.
    flip_bit(&pack, 64, 3);
    leeward
        .run(&["frame", "cat", id, "0", "0"])
        .expect(exit::DAMAGED)
        .expect_words(&["frame 0", "block"]);
    flip_bit(&pack, 64, 3);
    // Without a manifest the pack proves itself.
    let sound = cat(story, leeward, id, 0);
    let manifest = folder.join("manifest");
    let end = fs::metadata(&manifest).expect("it is there").len();
    flip_bit(&manifest, end - 40, 1);
    leeward
        .run(&["frame", "list", &id[..id.len() - 1], "0"])
        .expect(exit::DAMAGED);
    assert!(cat(story, leeward, id, 0) == sound);
    leeward
        .run(&["frame", "list", id, "0"])
        .expect(exit::DONE)
        .expect_words(&["taken as it is"]);
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
