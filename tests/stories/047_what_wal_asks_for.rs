//! Records that ask more of a server than the backup has: settings that were raised, a tablespace created later, WAL that
//! nothing recovers. What cannot be is refused before a byte is written, and the command that is named succeeds.

use std::fs;
use std::path::Path;

use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::leeward::{Leeward, Outcome, exit};
use leeward_tests::server::{Initdb, Server, Stop};
use leeward_tests::story::Story;
use leeward_tests::targets::recover;
use leeward_tests::timelines::wait_archived;

/// The arguments of the first command in an error's hint that begins like this.
fn hinted(outcome: &Outcome, begins: &str) -> Vec<String> {
    let text = outcome.stderr.as_str();
    let (_, rest) = text
        .split_once(&format!("\"leeward {begins}"))
        .unwrap_or_else(|| panic!("no such command: {outcome}"));
    let (rest, _) = rest.split_once('"').expect("the command ends");
    let command = format!("{begins}{rest}");
    command.split_whitespace().map(str::to_owned).collect()
}

fn refused(story: &Story, leeward: &Leeward<'_>, code: i32, words: &[&str]) -> Outcome {
    let to = story.path("refused");
    let outcome = leeward
        .run(&["restore", "--to", to.to_str().expect("a path in UTF-8")])
        .expect(code)
        .expect_words(words);
    assert!(!to.exists(), "something was written: {outcome}");
    outcome
}

/// Runs a command that a hint named, then the server, and lists what is in its table.
fn follow(story: &Story, leeward: &Leeward<'_>, command: &[String], name: &str) -> String {
    let to = story.path(name);
    let mut args: Vec<&str> = command.iter().map(String::as_str).collect();
    args.extend(["--to", to.to_str().expect("a path in UTF-8")]);
    leeward.run(&args).expect(exit::DONE);
    let mut server = Server::over(story, name, &to);
    server.set("archive_mode", "off");
    recover(&mut server).unwrap_or_else(|error| panic!("{args:?}: {error}"));
    let numbers = server.sql("SELECT string_agg(n::text, ' ' ORDER BY n) FROM numbers");
    server.stop(Stop::Immediate);
    numbers
}

fn bytes_below(place: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(place).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(bytes_below(&path));
        } else {
            found.push((path.clone(), fs::read(&path).expect("a file")));
        }
    }
    found.sort();
    found
}

fn check(major: u32) {
    let story = Story::begin(major);
    let leeward = Leeward::new(&story);
    let mut primary = Server::initdb(&story, "primary", &Initdb::default());
    primary.append_config(&leeward.archiving("on"));
    primary.append_config("autovacuum = off");
    primary.start();
    primary.sql("CREATE TABLE numbers AS SELECT 1 AS n");
    let backup = leeward.back_up(&primary, &["--from", "any"]);

    // On the command line, where no file that is backed up has them.
    primary.stop(Stop::Fast);
    primary.set("max_connections", "57");
    primary.set("max_locks_per_transaction", "200");
    primary.start();
    primary.sql("INSERT INTO numbers VALUES (2)");

    // A tablespace that the backup does not know.
    let far = story.path("far");
    fs::create_dir(&far).expect("could not create a directory");
    primary.sql(&format!(
        "CREATE TABLESPACE far LOCATION '{}'",
        far.display()
    ));
    primary.sql("CREATE TABLE distant TABLESPACE far AS SELECT generate_series(1, 1000) AS n");
    primary.sql("INSERT INTO numbers VALUES (3); CHECKPOINT");
    wait_archived(&primary);

    // Beside the live server, replay would write into the live server's directory.
    let live = bytes_below(&far);
    let place = far.display().to_string();
    let outcome = refused(
        &story,
        &leeward,
        exit::REFUSED,
        &[&place, "creates tablespace"],
    );
    let command = hinted(&outcome, "restore");
    assert_eq!(command[1], backup.id());
    assert_eq!(follow(&story, &leeward, &command, "before"), "1 2");
    assert!(
        live == bytes_below(&far),
        "the live server's files are as they were"
    );

    // An absent place is made, and the settings are as high as the WAL asks for.
    primary.stop(Stop::Fast);
    let away = story.path("far away");
    fs::rename(&far, &away).expect("could not move a directory");
    let to = story.path("restored");
    let outcome = leeward
        .run(&["restore", "--to", to.to_str().expect("a path in UTF-8")])
        .expect(exit::DONE)
        .expect_words(&[
            &place,
            "max_connections from 40 to 57",
            "ALTER SYSTEM RESET max_connections",
        ]);
    let mut restored = Server::over(&story, "restored", &to);
    restored.set("archive_mode", "off");
    recover(&mut restored).expect("it recovers");
    wait_until("it is open", PATIENCE, || !restored.in_recovery());
    assert_eq!(restored.sql("SELECT count(*) FROM distant"), "1000");
    assert_eq!(restored.sql("SHOW max_connections"), "57");
    for reset in outcome.stderr.split("ALTER SYSTEM RESET ").skip(1) {
        let (name, _) = reset.split_once(';').expect("a command");
        restored.sql(&format!("ALTER SYSTEM RESET {name}"));
    }
    restored.stop(Stop::Fast);
    restored.start();
    assert_eq!(restored.sql("SHOW max_connections"), "40");
    restored.stop(Stop::Immediate);
    fs::remove_dir_all(&far).expect("could not remove a directory");
    fs::rename(&away, &far).expect("could not move a directory");

    // WAL that nothing recovers: minimal for a while, then archived again.
    let config = primary.data().join("postgresql.conf");
    let before = fs::read_to_string(&config).expect("could not read");
    primary.append_config("wal_level = minimal\nmax_wal_senders = 0\narchive_mode = off");
    primary.start();
    primary.sql("INSERT INTO numbers VALUES (4)");
    primary.stop(Stop::Fast);
    fs::write(&config, before).expect("could not write");
    primary.start();
    primary.sql("INSERT INTO numbers VALUES (5)");
    wait_archived(&primary);
    primary.sql("DROP TABLE distant");
    primary.sql("DROP TABLESPACE far");
    fs::remove_dir(&far).expect("it is empty");
    let outcome = refused(&story, &leeward, exit::FAILED, &["minimal"]);
    let (_, options) = outcome
        .stderr
        .split_once("with --target-lsn ")
        .unwrap_or_else(|| panic!("no target: {outcome}"));
    let (options, _) = options.split_once(';').expect("an end");
    let command: Vec<String> = ["restore", "--target-lsn"]
        .into_iter()
        .chain(options.split_whitespace())
        .map(str::to_owned)
        .collect();
    assert_eq!(follow(&story, &leeward, &command, "last"), "1 2 3");
    let listed = leeward.run(&["wal", "list"]).expect(exit::DONE);
    assert!(listed.stdout.contains("CANNOT BE PASSED"), "{listed}");
    // Another backup, and everything behind it is a window again.
    leeward.back_up(&primary, &["--from", "any"]);
    primary.sql("INSERT INTO numbers VALUES (6)");
    wait_archived(&primary);
    let command = ["restore".to_owned()];
    assert_eq!(follow(&story, &leeward, &command, "after"), "1 2 3 4 5 6");
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
