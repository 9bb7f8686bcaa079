//! Root backs up and restores what belongs to the server's user, and it stays that user's.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::{fs, thread};

use leeward_tests::contents::fingerprint;
use leeward_tests::damage::files_under;
use leeward_tests::installation::leeward_program;
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::Leeward;
use leeward_tests::pair::Pair;
use leeward_tests::server::{Server, run};
use leeward_tests::story::{Story, note};
use rustix::process::geteuid;

/// The part of the story that the servers' user tells; root does what it is asked to.
fn servers(major: u32, ask: &Sender<Vec<String>>, done: &Receiver<()>) {
    let story = Story::begin(major);
    let mut pair = Pair::new(&story);
    pair.stop_primary();
    let truth = fingerprint(&pair.standby);
    let text = |path: PathBuf| path.display().to_string();
    let (data, repository, to) = (
        text(pair.standby.data().to_path_buf()),
        text(story.path("repository")),
        text(story.path("restored")),
    );
    let as_root = |args: &[&str]| {
        ask.send(args.iter().map(|arg| (*arg).to_owned()).collect())
            .expect("root listens");
        done.recv().expect("root has done it");
    };
    as_root(&["backup", "--pgdata", &data, "--repository", &repository]);
    as_root(&[
        "restore",
        "latest",
        "--to",
        &to,
        "--repository",
        &repository,
    ]);
    as_root(&["chown", &repository]);

    let owner = |path: &PathBuf| {
        fs::symlink_metadata(path)
            .map(|data| (data.uid(), data.gid()))
            .expect("it is there")
    };
    let expected = owner(&PathBuf::from(&data));
    assert_ne!(expected.0, 0);
    assert_eq!(owner(&PathBuf::from(&to)), expected);
    for file in files_under(&story.path("restored")) {
        assert_eq!(
            owner(&file),
            expected,
            "{} belongs to somebody else",
            file.display()
        );
    }
    let backup = Leeward::new(&story).latest();
    let mut restored = Server::over(&story, "restored", &story.path("restored"));
    restored.set("autovacuum", "off");
    assert_sound(&story, &mut restored, &backup, &truth);
}

fn check(major: u32) {
    if !geteuid().is_root() {
        note("not told here: it takes root");
        return;
    }
    let (ask, asked) = channel::<Vec<String>>();
    let (tell, done) = channel();
    let servers = thread::spawn(move || servers(major, &ask, &done));
    for args in asked {
        if args[0] == "chown" {
            run(Command::new("chown").args(["-R", "postgres", &args[1]]));
        } else {
            let mut leeward = Command::new(leeward_program());
            run(leeward
                .args(&args)
                .env("PGUSER", "postgres")
                .env("PGDATABASE", "postgres"));
        }
        if tell.send(()).is_err() {
            break;
        }
    }
    if let Err(panic) = servers.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn postgres_15() {
    check(15);
}

#[test]
fn postgres_19() {
    check(19);
}
