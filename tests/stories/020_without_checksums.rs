//! A cluster without data checksums: nothing is verified that cannot be, everything else is the same.

use leeward_tests::contents::fingerprint;
use leeward_tests::damage::PageDamage;
use leeward_tests::dataset;
use leeward_tests::judgement::start_restored;
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::load::Load;
use leeward_tests::pair::Pair;
use leeward_tests::reference;
use leeward_tests::server::{Initdb, Stop};
use leeward_tests::story::Story;
use leeward_tests::tools::set_checksums;

fn check(major: u32) {
    let story = Story::begin(major);
    let how = Initdb {
        checksums: false,
        ..Initdb::default()
    };
    let mut pair = Pair::with(&story, &how, |primary| dataset::fill(primary, 1));
    let leeward = Leeward::new(&story);
    let load = Load::start(&story, &pair.primary);
    let backup = leeward.back_up(&pair.standby, &[]);
    load.stop();
    reference::write_beyond(&pair.primary);
    assert_eq!(backup.field("data_checksums"), false);
    let truth = fingerprint(&reference::server_at(&story, &pair, &backup.stop_lsn()));
    let mut restored = leeward.restored("latest", "restored", &[]);
    start_restored(&story, &mut restored, &backup);
    fingerprint(&restored).assert_equals(
        &truth,
        "the restored contents differ from what they were at the stop LSN",
    );

    // Turned on later, they count from then on.
    pair.stop_primary();
    let file = pair
        .standby
        .sql("SELECT pg_relation_filepath('pgbench_accounts')");
    pair.standby.stop(Stop::Fast);
    let table = pair.standby.data().join(&file);
    if set_checksums(story.installation(), pair.standby.data(), true) {
        PageDamage::FlippedBit.inflict(&table, 17);
        pair.standby.start();
        leeward
            .backup(&pair.standby, &[])
            .expect(exit::DAMAGED)
            .expect_words(&[&file, "17"]);
        assert_eq!(leeward.latest().field("data_checksums"), true);
        pair.standby.stop(Stop::Fast);
        set_checksums(story.installation(), pair.standby.data(), false);
    }

    // A header that is nonsense needs no checksum to be found.
    PageDamage::PageSize.inflict(&table, 21);
    pair.standby.start();
    leeward
        .backup(&pair.standby, &[])
        .expect(exit::DAMAGED)
        .expect_words(&[&file, "21"]);
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
