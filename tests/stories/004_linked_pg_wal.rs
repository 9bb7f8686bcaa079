//! A cluster whose `pg_wal` is a link to another disk, with small WAL segments.

use std::fs;

use leeward_tests::contents::fingerprint;
use leeward_tests::dataset;
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::Leeward;
use leeward_tests::load::Load;
use leeward_tests::pair::Pair;
use leeward_tests::reference;
use leeward_tests::server::Initdb;
use leeward_tests::story::Story;

fn check(major: u32) {
    let story = Story::begin(major);
    let how = Initdb {
        linked_wal: true,
        wal_segment_mib: 1,
        ..Initdb::default()
    };
    let pair = Pair::with(&story, &how, |primary| dataset::fill(primary, 1));
    let link = pair.standby.data().join("pg_wal");
    assert!(
        fs::symlink_metadata(&link)
            .expect("pg_wal is there")
            .is_symlink()
    );
    let leeward = Leeward::new(&story);
    let load = Load::start(&story, &pair.primary);
    let backup = leeward.back_up(&pair.standby, &[]);
    load.stop();
    reference::write_beyond(&pair.primary);

    let live = fs::read_link(&link).expect("a link");
    let before = files(&live);
    let mut restored = leeward.restored("latest", "restored", &[]);
    assert!(
        files(&live).is_superset(&before),
        "the restore took WAL away from the live standby"
    );
    let wal = fs::canonicalize(restored.data().join("pg_wal")).expect("pg_wal is there");
    assert_ne!(
        wal,
        fs::canonicalize(&live).expect("the live pg_wal is there"),
        "restored onto the live pg_wal"
    );
    let truth = fingerprint(&reference::server_at(&story, &pair, &backup.stop_lsn()));
    assert_sound(&story, &mut restored, &backup, &truth);
}

fn files(directory: &std::path::Path) -> std::collections::BTreeSet<std::ffi::OsString> {
    let entries = fs::read_dir(directory).expect("the directory is there");
    entries
        .map(|entry| entry.expect("an entry").file_name())
        .filter(|name| name.len() == 24)
        .collect()
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
