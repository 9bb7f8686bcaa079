//! A bit flipped anywhere in the repository is found before a server is started on it, and named.

use std::fs;

use leeward_tests::damage::{files_under, flip_bit};
use leeward_tests::judgement::cannot_start;
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::server::Server;
use leeward_tests::story::Story;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Flips in each object; the packs hold nearly all the bytes, and get more on one major version (nothing stored depends
/// on it).
const FLIPS: u32 = 4;

fn check(major: u32, flips_in_pack: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::new(&story);
    let leeward = Leeward::new(&story);
    pair.stop_primary();
    leeward.back_up(&pair.standby, &[]);
    let mut random = StdRng::seed_from_u64(1300 + u64::from(major));
    let mut flips = 0;
    for object in files_under(&story.path("repository")) {
        let name = object
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        // The lease says who works here now, and the lock file nothing: a restore has no use for them.
        if name == "lease.json" || name == ".lock" {
            continue;
        }
        let size = fs::metadata(&object).expect("it is there").len();
        assert!(size > 0, "{name} is empty");
        for _ in 0..if name.ends_with(".pack") {
            flips_in_pack
        } else {
            FLIPS
        } {
            let (byte, bit) = (random.random_range(0..size), random.random_range(0..8));
            flip_bit(&object, byte, bit);
            let directory = format!("restored-{flips}");
            let to = story.path(&directory);
            // Only a backup reads the cluster's own document.
            let outcome = if name == "cluster.json" {
                leeward.backup(&pair.standby, &[])
            } else {
                leeward.restore("latest", &to, &[])
            };
            assert_eq!(
                outcome.code(),
                Some(exit::DAMAGED),
                "bit {bit} of byte {byte} of {}: {outcome}",
                object.display()
            );
            assert!(
                outcome.stderr.contains(&name),
                "{name} is not named: {outcome}"
            );
            assert!(
                cannot_start(&Server::over(&story, &directory, &to)),
                "a server could start: {outcome}"
            );
            flip_bit(&object, byte, bit);
            let _nothing_there = fs::remove_dir_all(&to);
            flips += 1;
        }
    }
    assert!(flips >= 20 + flips_in_pack, "only {flips} bits flipped");
    // A frame is named with what lay in it.
    let packs = files_under(&story.path("repository/main/backups"));
    let pack = packs
        .iter()
        .find(|path| path.extension().is_some_and(|ext| ext == "pack"))
        .expect("there is a pack");
    let middle = fs::metadata(pack).expect("it is there").len() / 2;
    flip_bit(pack, middle, 3);
    let outcome = leeward
        .restore("latest", &story.path("named"), &[])
        .expect(exit::DAMAGED);
    outcome.expect_words(&["frame", "base/", "block"]);
    flip_bit(pack, middle, 3);
    leeward.restored("latest", "sound", &[]);

    // A shortened and a missing object are found as well.
    let copy = fs::read(pack).expect("could not read a pack");
    fs::write(pack, &copy[..copy.len() - 1]).expect("could not shorten a pack");
    leeward
        .restore("latest", &story.path("short"), &[])
        .expect(exit::DAMAGED);
    fs::remove_file(pack).expect("could not remove a pack");
    let outcome = leeward
        .restore("latest", &story.path("missing"), &[])
        .expect(exit::DAMAGED);
    outcome.expect_words(&[&pack.file_name().expect("a name").to_string_lossy()]);
}

#[test]
fn postgres_15() {
    check(15, 25);
}

#[test]
fn postgres_19() {
    check(19, 5);
}
