//! Standbys that get their WAL in other ways: from an archive only, and from another standby.

use std::fs::{self, File};

use leeward_tests::contents::fingerprint;
use leeward_tests::dataset;
use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::Leeward;
use leeward_tests::load::Load;
use leeward_tests::pair::Pair;
use leeward_tests::reference;
use leeward_tests::server::Initdb;
use leeward_tests::story::Story;

fn check(major: u32) {
    let story = Story::begin(major);
    let archive = story.path("archive");
    fs::create_dir(&archive).expect("could not create an archive");
    let how = Initdb {
        wal_segment_mib: 1,
        ..Initdb::default()
    };
    let pair = Pair::with(&story, &how, |primary| {
        dataset::fill(primary, 1);
        let archive = archive.display();
        primary.append_config("archive_mode = on");
        primary.append_config(&format!(
            "archive_command = 'cp %p {archive}/%f.new && mv {archive}/%f.new {archive}/%f'"
        ));
    });

    let mut fed = pair.base.cold_copy(&story, "fed");
    File::create(fed.data().join("standby.signal")).expect("could not create standby.signal");
    fed.append_config(&format!(
        "restore_command = 'cp {}/%f %p'",
        archive.display()
    ));
    fed.start();
    let mut cascaded = pair.base.cold_copy(&story, "cascaded");
    cascaded.follow(&pair.standby);
    cascaded.start();

    let load = Load::start(&story, &pair.primary);
    let start = pair.primary.sql("SELECT pg_current_wal_lsn()");
    pair.primary.sql("SELECT pg_switch_wal()");
    wait_until("both have replayed some of it", PATIENCE, || {
        [&fed, &cascaded].iter().all(|server| {
            server.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{start}'")) == "t"
        })
    });

    for server in [&fed, &cascaded] {
        let leeward = Leeward::at(&story, story.path("repository").to_str().expect("UTF-8"));
        leeward.back_up(server, &[]);
    }
    load.stop();
    reference::write_beyond(&pair.primary);
    let leeward = Leeward::new(&story);
    let listed = leeward.listed();
    assert_eq!(listed.len(), 2);
    for (id, name) in listed.iter().zip(["from-fed", "from-cascaded"]) {
        let backup = leeward_tests::leeward::Backup(leeward.run(&["show", id, "--json"]).json());
        let mut reference = reference::server_at(&story, &pair, &backup.stop_lsn());
        let truth = fingerprint(&reference);
        reference.stop(leeward_tests::server::Stop::Immediate);
        fs::remove_dir_all(reference.data()).expect("could not remove the reference");
        let mut restored = leeward.restored(id, name, &["--target-immediate"]);
        assert_sound(&story, &mut restored, &backup, &truth);
    }
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
