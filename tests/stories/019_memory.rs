//! Two hundred thousand files cost no more memory than two hundred.

use std::fs;

use leeward_tests::damage::files_under;
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::story::Story;

const FILES: u32 = 200_000;
const MEMORY_KIB: u64 = 256 * 1024;

fn check(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::new(&story);
    pair.stop_primary();
    // Files that look like relations of the database, small ones: a page, half of them with a visibility map.
    let file = pair
        .standby
        .sql("SELECT pg_relation_filepath('pgbench_accounts')");
    let page = fs::read(pair.standby.data().join(&file)).expect("could not read a relation")
        [..8192]
        .to_vec();
    let directory = pair
        .standby
        .data()
        .join(file.rsplit_once('/').expect("a directory").0);
    for number in 0..FILES {
        let name = directory.join(format!(
            "{}{}",
            20_000_000 + number / 2,
            if number % 2 == 0 { "" } else { "_vm" }
        ));
        fs::write(name, if number % 20 == 0 { &page[..] } else { &[] })
            .expect("could not write a file");
    }
    let leeward = Leeward::new(&story);
    let outcome = leeward.backup(&pair.standby, &[]);
    assert!(
        matches!(outcome.code(), Some(exit::DONE | exit::DAMAGED)),
        "{outcome}"
    );
    assert!(
        outcome.peak_rss_kib < MEMORY_KIB,
        "{} KiB resident: {outcome}",
        outcome.peak_rss_kib
    );
    let backup = leeward.latest();
    assert!(backup.count("files") >= u64::from(FILES));
    let objects = files_under(&story.path("repository")).len();
    assert!(objects < 60, "{objects} objects");

    let to = story.path("restored");
    let outcome = leeward.restore("latest", &to, &[]);
    assert!(
        matches!(outcome.code(), Some(exit::DONE | exit::DAMAGED)),
        "{outcome}"
    );
    assert!(
        outcome.peak_rss_kib < MEMORY_KIB,
        "{} KiB resident: {outcome}",
        outcome.peak_rss_kib
    );
    assert!(files_under(&to).len() > FILES as usize);

    let outcome = leeward.run(&["list"]).expect(exit::DONE);
    assert!(outcome.peak_rss_kib < MEMORY_KIB);
}

#[test]
fn postgres_15() {
    check(15);
}
