//! An export needs `tar` and PostgreSQL, and nothing of ours.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use leeward_tests::contents::Fingerprint;
use leeward_tests::contents::fingerprint;
use leeward_tests::dataset;
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::{Backup, Leeward, exit};
use leeward_tests::load::Load;
use leeward_tests::pair::Pair;
use leeward_tests::reference;
use leeward_tests::server::{Initdb, Server, run};
use leeward_tests::story::Story;

fn untar(archive: &Path, into: &Path) {
    // The archive brings the mode that PostgreSQL demands.
    fs::create_dir_all(into).expect("could not create a directory");
    run(Command::new("tar")
        .arg("--zstd")
        .arg("-xf")
        .arg(archive)
        .arg("-C")
        .arg(into));
}

fn judge(story: &Story, name: &str, backup: &Backup, truth: &Fingerprint) {
    let mut server = Server::over(story, name, &story.path(name));
    server.set("autovacuum", "off");
    for entry in fs::read_dir(server.data().join("pg_tblspc")).expect("there is a pg_tblspc") {
        let link = entry.expect("an entry").path();
        let target = fs::canonicalize(&link).expect("a tablespace that is there");
        assert!(
            target.starts_with(server.data()),
            "{} leads outside, to {}",
            link.display(),
            target.display()
        );
    }
    assert_sound(story, &mut server, backup, truth);
}

fn check(major: u32) {
    let story = Story::begin(major);
    let space = story.path("space");
    fs::create_dir(&space).expect("could not create a tablespace's directory");
    let pair = Pair::with(&story, &Initdb::default(), |primary| {
        dataset::fill(primary, 1);
        primary.sql(&format!(
            "CREATE TABLESPACE linked LOCATION '{}'",
            space.display()
        ));
        primary.sql("CREATE TABLE story.on_linked TABLESPACE linked AS SELECT i AS id FROM generate_series(1, 9000) i");
    });
    let leeward = Leeward::new(&story);
    let load = Load::start(&story, &pair.primary);
    let backup = leeward.back_up(&pair.standby, &[]);
    load.stop();
    reference::write_beyond(&pair.primary);
    let truth = fingerprint(&reference::server_at(&story, &pair, &backup.stop_lsn()));

    // Two archives into one folder.
    let out = story.path("export");
    leeward
        .run(&[
            "export",
            "latest",
            "--to",
            out.to_str().expect("a path in UTF-8"),
        ])
        .expect(exit::DONE);
    for name in ["data.tar.zst", "wal.tar.zst"] {
        untar(&out.join(name), &story.path("extracted"));
    }
    // One archive through a pipe.
    let one = story.path("one.tar.zst");
    let mut command = leeward.command(&["export", "latest", "--to", "-"]);
    let status = command
        .stdout(File::create(&one).expect("could not create a file"))
        .status();
    assert!(status.expect("could not run the program").success());
    untar(&one, &story.path("extracted-one"));

    // Leeward's repository is gone: nothing of it is needed.
    fs::rename(story.path("repository"), story.path("repository.gone"))
        .expect("could not move the repository away");
    judge(&story, "extracted", &backup, &truth);
    judge(&story, "extracted-one", &backup, &truth);
}

#[test]
fn postgres_14() {
    check(14);
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
