//! `leeward wal push` as archive_command: on a primary, on its standby, on both at once; behind, refused, hindered.

use std::fs;
use std::path::{Path, PathBuf};

use leeward_tests::damage::{files_under, flip_bit};
use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::load::Load;
use leeward_tests::pair::Pair;
use leeward_tests::s3::S3Server;
use leeward_tests::server::{Initdb, Server, Stop};
use leeward_tests::story::Story;
use leeward_tests::{dataset, server};

/// What stands in `postgresql.conf` of a server that archives with Leeward.
fn archive_command(story: &Story, leeward: &Leeward<'_>) -> String {
    format!(
        "archive_command = '{} wal push %p --repository {}'",
        story.program().display(),
        leeward.repository()
    )
}

/// Names of the objects in the archive's folder of a timeline, without `.zst`; pieces as `segment/range`.
fn archived(story: &Story, timeline: u32) -> Vec<String> {
    let folder = story.path(&format!("repository/main/wal/{timeline:08X}"));
    files_under(&folder)
        .iter()
        .map(|path| {
            let name = path.strip_prefix(&folder).expect("it lies there");
            name.display()
                .to_string()
                .trim_end_matches(".zst")
                .to_owned()
        })
        .collect()
}

fn wal_file(server: &Server, name: &str) -> PathBuf {
    server.data().join("pg_wal").join(name)
}

fn spool(server: &Server) -> PathBuf {
    server.data().join("pg_wal/leeward")
}

fn wait_archived(server: &Server, name: &str) {
    wait_until(&format!("{name} is archived"), PATIENCE, || {
        server.sql(&format!(
            "SELECT coalesce(last_archived_wal >= '{name}', false) FROM pg_stat_archiver"
        )) == "t"
    });
}

fn failures(server: &Server) -> String {
    server.sql("SELECT failed_count, coalesce(last_failed_wal, '') FROM pg_stat_archiver")
}

/// The plain bytes of an archived file, as zstd's own program gives them.
fn plain(story: &Story, timeline: u32, name: &str) -> Vec<u8> {
    let object = story.path(&format!("repository/main/wal/{timeline:08X}/{name}.zst"));
    let to = story.path("plain");
    server::run(
        std::process::Command::new("zstd")
            .args(["-d", "-q", "-f", "-o"])
            .arg(&to)
            .arg(object),
    );
    fs::read(to).expect("it was written")
}

/// The primary and its standby archive the same WAL into the same place, at the same time, under load; then the standby
/// is promoted and goes on.
fn two_senders(major: u32) {
    let story = Story::begin(major);
    let leeward = Leeward::new(&story);
    let command = archive_command(&story, &leeward);
    let mut pair = Pair::with(&story, &Initdb::default(), |primary| {
        dataset::fill(primary, 1);
        primary.append_config(&format!("archive_mode = always\n{command}"));
    });
    let load = Load::start(&story, &pair.primary);
    let mut names = Vec::new();
    for _ in 0..6 {
        names.push(pair.primary.switch_wal());
    }
    load.stop();
    names.push(pair.primary.switch_wal());
    let last = names.last().expect("some").clone();
    wait_archived(&pair.primary, &last);
    pair.standby.wait_for(&pair.primary);
    wait_archived(&pair.standby, &last);
    assert_eq!(failures(&pair.primary), "0|");
    assert_eq!(failures(&pair.standby), "0|");
    let held = archived(&story, 1);
    for name in &names {
        assert!(held.contains(name), "{name} is not among {held:?}");
        let own = fs::read(wal_file(&pair.primary, name)).expect("wal_keep_size keeps it");
        let plain = plain(&story, 1, name);
        assert_eq!(plain.len(), own.len());
        let end = plain
            .iter()
            .rposition(|byte| *byte != 0)
            .expect("not empty");
        assert!(
            plain[..=end] == own[..=end],
            "{name} differs from what the primary wrote"
        );
    }

    // A base backup's history file comes along as the others do.
    if major >= 15 {
        pair.primary
            .sql("SELECT pg_backup_start('x', true); SELECT pg_backup_stop(false)");
        let name = pair.primary.switch_wal();
        wait_archived(&pair.primary, &name);
        wait_until("a backup history file is archived", PATIENCE, || {
            archived(&story, 1)
                .iter()
                .any(|name| name.ends_with(".backup"))
        });
    }

    pair.stop_primary();
    pair.standby.promote();
    let name = pair.standby.switch_wal();
    wait_archived(&pair.standby, &name);
    let new = archived(&story, 2);
    assert!(new.contains(&"00000002.history".to_owned()), "{new:?}");
    assert!(new.contains(&name), "{new:?}");
    assert_eq!(failures(&pair.standby), "0|");
    // What the old timeline's last segment holds is not under a whole segment's name.
    wait_until("the partial segment is archived", PATIENCE, || {
        let ready = fs::read_dir(pair.standby.data().join("pg_wal/archive_status"));
        !ready
            .expect("it is there")
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().ends_with(".ready"))
    });
    for name in archived(&story, 1) {
        assert!(!name.contains("partial"), "{name}");
    }
}

/// The archive is behind by a hundred segments: one call brings many, and the calls for those find their work done.
fn behind(major: u32) {
    let story = Story::begin(major);
    let leeward = Leeward::new(&story);
    let small = Initdb {
        wal_segment_mib: 1,
        ..Initdb::default()
    };
    let mut server = Server::initdb(&story, "primary", &small);
    server.append_config("archive_mode = on\narchive_command = 'false'");
    server.start();
    server.sql("CREATE TABLE filler (what text)");
    while ready(&server).len() < 100 {
        server.sql(
            "INSERT INTO filler SELECT repeat(md5(i::text), 20) FROM generate_series(1, 5000) i",
        );
    }
    // One call by hand: 64 files, in order, and marks for them.
    let waiting = ready(&server);
    let outcome = leeward
        .push(&server, &waiting[0], &["--verbose"])
        .expect(exit::DONE);
    assert!(outcome.stderr.contains("64 files stored"), "{outcome}");
    assert_eq!(archived(&story, 1), waiting[..64]);
    // The next one has nothing to do, so much so that it needs no repository.
    fs::rename(story.path("repository"), story.path("away")).expect("moved away");
    let outcome = leeward
        .push(&server, &waiting[1], &["--verbose"])
        .expect(exit::DONE);
    assert!(outcome.stderr.contains("0 files stored"), "{outcome}");
    // Where there is something to do, a repository that has vanished is not begun anew: it may lie on a file system that
    // is not mounted.
    leeward
        .push(&server, &waiting[64], &[])
        .expect(exit::FAILED)
        .expect_words(&["no repository"]);
    assert!(!story.path("repository").exists());
    fs::rename(story.path("away"), story.path("repository")).expect("moved back");
    // A file that changes is another file.
    let path = wal_file(&server, &waiting[1]);
    let bytes = fs::read(&path).expect("it is there");
    fs::write(&path, bytes).expect("written");
    let outcome = leeward
        .push(&server, &waiting[1], &["--verbose"])
        .expect(exit::DONE);
    assert!(
        outcome.stderr.contains("1 of them were there already"),
        "{outcome}"
    );
    // The server itself takes over.
    server.sql(&format!(
        "ALTER SYSTEM SET {}",
        archive_command(&story, &leeward)
    ));
    server.sql("SELECT pg_reload_conf()");
    let last = server.switch_wal();
    wait_archived(&server, &last);
    let held = archived(&story, 1);
    for name in &waiting {
        assert!(held.contains(name), "{name} is not among {held:?}");
    }
    // Marks of what the server has ticked off go.
    let marks = files_under(&spool(&server));
    let marks = fs::read_to_string(&marks[0]).expect("marks are text");
    assert!(!marks.contains(&waiting[0]), "{marks}");
    server.stop(Stop::Fast);
}

fn ready(server: &Server) -> Vec<String> {
    let status = fs::read_dir(server.data().join("pg_wal/archive_status")).expect("it is there");
    let mut names: Vec<String> = status
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.strip_suffix(".ready").map(str::to_owned)
        })
        .collect();
    names.sort();
    names
}

/// A server whose archiver is left to the story: every segment stays ready.
fn unarchived(story: &Story, name: &str) -> Server {
    let small = Initdb {
        wal_segment_mib: 1,
        ..Initdb::default()
    };
    let mut server = Server::initdb(story, name, &small);
    server.append_config("archive_mode = on\narchive_command = 'false'\nautovacuum = off");
    server.start();
    server.sql("CREATE TABLE filler (what text)");
    while ready(&server).len() < 5 {
        server.sql(
            "INSERT INTO filler SELECT repeat(md5(i::text), 20) FROM generate_series(1, 2000) i",
        );
    }
    server
}

/// What must not get in does not, each for its own reason, and nothing is overwritten.
fn refused(major: u32) {
    let story = Story::begin(major);
    let leeward = Leeward::new(&story);
    let mut server = unarchived(&story, "primary");
    server.stop(Stop::Fast);
    let twin = server.cold_copy(&story, "twin");
    let names = ready(&server);
    let alone = |server: &Server| {
        // Without its notes the server has only what is asked for.
        let status = server.data().join("pg_wal/archive_status");
        for name in ready(server) {
            fs::remove_file(status.join(format!("{name}.ready"))).expect("it is there");
        }
    };
    alone(&server);
    leeward.push(&server, &names[0], &[]).expect(exit::DONE);
    leeward.push(&server, &names[0], &[]).expect(exit::DONE);
    fs::remove_dir_all(spool(&server)).expect("the spool is only a memory");
    let again = leeward
        .push(&server, &names[0], &["--verbose"])
        .expect(exit::DONE);
    assert!(
        again.stderr.contains("1 of them were there already"),
        "{again}"
    );
    let objects = || {
        let files = files_under(&story.path("repository"));
        let content = |path: &PathBuf| fs::read(path).expect("it can be read");
        files
            .iter()
            .map(|path| (path.clone(), content(path)))
            .collect::<Vec<_>>()
    };
    let before = objects();

    // One flipped bit in a record: recovery would end there, and so does archiving, naming the place.
    let copy = |name: &str| fs::read(wal_file(&server, name)).expect("it is there");
    let sound = copy(&names[1]);
    flip_bit(&wal_file(&server, &names[1]), 8192 * 3 + 2000, 3);
    leeward
        .push(&server, &names[1], &[])
        .expect(exit::DAMAGED)
        .expect_words(&[&names[1], "damaged at LSN"]);
    // Too short, too long, empty, nothing at all.
    for length in [sound.len() - 1, 8192 * 4, 20, 0] {
        fs::write(wal_file(&server, &names[1]), &sound[..length]).expect("written");
        let outcome = leeward.push(&server, &names[1], &[]);
        assert!(matches!(outcome.code(), Some(3 | 4)), "{outcome}");
        outcome.expect_words(&[&names[1]]);
    }
    fs::write(wal_file(&server, &names[1]), vec![0; sound.len()]).expect("written");
    leeward
        .push(&server, &names[1], &[])
        .expect(exit::DAMAGED)
        .expect_words(&["all zeros"]);
    fs::remove_file(wal_file(&server, &names[1])).expect("removed");
    leeward
        .push(&server, &names[1], &[])
        .expect(exit::FAILED)
        .expect_words(&[&names[1], "No such file"]);
    // Another segment under this name.
    fs::write(wal_file(&server, &names[1]), copy(&names[2])).expect("written");
    let outcome = leeward.push(&server, &names[1], &[]);
    assert!(matches!(outcome.code(), Some(3 | 4)), "{outcome}");
    outcome.expect_words(&[&names[1], "its name says"]);
    // Names that are no WAL file's.
    for name in ["nonsense", "RECOVERYXLOG", "../global/pg_control"] {
        leeward.push(&server, name, &[]).expect(exit::USAGE);
    }
    fs::write(wal_file(&server, &names[1]), &sound).expect("written");

    // Another cluster's segment: told by the control file beside it, and without one by what is in the repository.
    let mut other = unarchived(&story, "other");
    other.stop(Stop::Fast);
    let foreign = ready(&other)[0].clone();
    alone(&other);
    leeward
        .push(&other, &foreign, &[])
        .expect(exit::REFUSED)
        .expect_words(&["system identifier", "--cluster"]);
    fs::copy(wal_file(&other, &foreign), wal_file(&server, &names[3])).expect("copied");
    leeward
        .push(&server, &names[3], &[])
        .expect(exit::REFUSED)
        .expect_words(&["system identifier", &names[3]]);
    assert_eq!(objects(), before, "something changed in the repository");
    // Under a name of its own it is welcome.
    leeward
        .push(&other, &foreign, &["--cluster", "other"])
        .expect(exit::DONE);

    // The twin goes on by itself from the same point: same names, other WAL. Whoever comes second is told.
    let mut twin = twin;
    alone(&twin);
    twin.start();
    server.start();
    twin.sql("CREATE TABLE twin AS SELECT 'twin' FROM generate_series(1, 30000)");
    server.sql("CREATE TABLE other AS SELECT 'none' FROM generate_series(1, 30000)");
    let theirs = twin.switch_wal();
    let ours = server.switch_wal();
    let name = theirs.min(ours);
    for server in [&mut server, &mut twin] {
        server.stop(Stop::Fast);
        alone(server);
    }
    leeward.push(&server, &name, &[]).expect(exit::DONE);
    let before = objects();
    leeward
        .push(&twin, &name, &[])
        .expect(exit::REFUSED)
        .expect_words(&[&name, "blake3:", "differ"]);
    assert_eq!(objects(), before, "something changed in the repository");
}

/// The store is down and comes back; the spool cannot be written; a file that cannot be pushed hinders only itself.
fn hindered(major: u32) {
    let story = Story::begin(major);
    let leeward = Leeward::new(&story);
    let mut server = unarchived(&story, "primary");
    // Down: in the place of the repository is something else.
    fs::write(story.path("repository"), "in the way").expect("written");
    server.sql(&format!(
        "ALTER SYSTEM SET {}",
        archive_command(&story, &leeward)
    ));
    server.sql("SELECT pg_reload_conf()");
    let before = failures(&server);
    wait_until("a push has failed", PATIENCE, || {
        failures(&server) != before && server.log().contains("could not")
    });
    assert!(!ready(&server).is_empty());
    fs::remove_file(story.path("repository")).expect("removed");
    // Back.
    let last = server.switch_wal();
    wait_archived(&server, &last);

    // The spool cannot be written: said, and no more than that.
    server.stop(Stop::Fast);
    fs::remove_dir_all(spool(&server)).expect("it is there");
    fs::write(spool(&server), "in the way").expect("written");
    server.start();
    let last = server.switch_wal();
    wait_archived(&server, &last);
    wait_until("the server's log tells of it", PATIENCE, || {
        server.log().contains("could not be noted in")
    });
    fs::remove_file(spool(&server)).expect("removed");
    server.sql("ALTER SYSTEM SET archive_command = 'false'");
    server.sql("SELECT pg_reload_conf()");

    // A damaged file among those that are ready: it is named, and what lies behind it waits for its own calls.
    while ready(&server).len() < 4 {
        server.switch_wal();
    }
    server.stop(Stop::Fast);
    let names = ready(&server);
    flip_bit(&wal_file(&server, &names[1]), 8192 + 30, 1);
    leeward
        .push(&server, &names[0], &[])
        .expect(exit::DONE)
        .expect_words(&[&names[1], "was not pushed along"]);
    let held = archived(&story, 1);
    assert!(held.contains(&names[0]), "{held:?}");
    assert!(!held.contains(&names[1]), "{held:?}");
    leeward.push(&server, &names[1], &[]).expect(exit::DAMAGED);
    leeward.push(&server, &names[2], &[]).expect(exit::DONE);
    // Kept elsewhere, a file goes alone, and leaves nothing behind.
    let elsewhere = story.path("elsewhere");
    fs::create_dir(&elsewhere).expect("made");
    fs::copy(wal_file(&server, &names[2]), elsewhere.join(&names[2])).expect("copied");
    let path = elsewhere.join(&names[2]).display().to_string();
    leeward.run(&["wal", "push", &path]).expect(exit::DONE);
    assert_eq!(listing(&elsewhere), 1);
}

/// Two calls at once for the same server bring the same files; and a bucket holds them as well as a directory.
fn at_once(major: u32) {
    let story = Story::begin(major);
    let mut server = unarchived(&story, "primary");
    server.stop(Stop::Fast);
    let names = ready(&server);
    let leeward = Leeward::new(&story);
    let spawn =
        |name: &str| leeward.spawn_in(server.data(), &["wal", "push", &format!("pg_wal/{name}")]);
    let calls = [spawn(&names[0]), spawn(&names[0]), spawn(&names[1])];
    for call in calls {
        call.wait().expect(exit::DONE);
    }
    assert_eq!(archived(&story, 1), names);

    let s3 = S3Server::start();
    let leeward = Leeward::over(&story, &s3.repository("deep/inside"), &s3.endpoint());
    let outcome = leeward
        .push(&server, &names[2], &["--verbose"])
        .expect(exit::DONE);
    let all = format!("{} files stored, 0 of them", names.len());
    assert!(outcome.stderr.contains(&all), "{outcome}");
    fs::remove_dir_all(spool(&server)).expect("it is there");
    let outcome = leeward
        .push(&server, &names[2], &["--verbose"])
        .expect(exit::DONE);
    let all = format!("{} of them were there already", names.len());
    assert!(outcome.stderr.contains(&all), "{outcome}");
    let to = story.path("brought").display().to_string();
    for name in &names {
        leeward.run(&["wal", "get", name, &to]).expect(exit::DONE);
        let (brought, own) = (fs::read(&to), fs::read(wal_file(&server, name)));
        assert!(brought.expect("brought") == own.expect("kept"), "{name}");
    }
    leeward
        .run(&["wal", "get", "0000000100000000000000FF", &to])
        .expect(1);
}

fn listing(folder: &Path) -> usize {
    fs::read_dir(folder).expect("it is there").count()
}

#[test]
fn two_senders_postgres_15() {
    two_senders(15);
}

#[test]
fn two_senders_postgres_16() {
    two_senders(16);
}

#[test]
fn two_senders_postgres_17() {
    two_senders(17);
}

#[test]
fn two_senders_postgres_18() {
    two_senders(18);
}

#[test]
fn two_senders_postgres_19() {
    two_senders(19);
}

#[test]
fn behind_postgres_15() {
    behind(15);
}

#[test]
fn behind_postgres_16() {
    behind(16);
}

#[test]
fn behind_postgres_17() {
    behind(17);
}

#[test]
fn behind_postgres_18() {
    behind(18);
}

#[test]
fn behind_postgres_19() {
    behind(19);
}

#[test]
fn refused_postgres_15() {
    refused(15);
}

#[test]
fn refused_postgres_16() {
    refused(16);
}

#[test]
fn refused_postgres_17() {
    refused(17);
}

#[test]
fn refused_postgres_18() {
    refused(18);
}

#[test]
fn refused_postgres_19() {
    refused(19);
}

#[test]
fn hindered_postgres_15() {
    hindered(15);
}

#[test]
fn hindered_postgres_16() {
    hindered(16);
}

#[test]
fn hindered_postgres_17() {
    hindered(17);
}

#[test]
fn hindered_postgres_18() {
    hindered(18);
}

#[test]
fn hindered_postgres_19() {
    hindered(19);
}

#[test]
fn at_once_postgres_15() {
    at_once(15);
}

#[test]
fn at_once_postgres_16() {
    at_once(16);
}

#[test]
fn at_once_postgres_17() {
    at_once(17);
}

#[test]
fn at_once_postgres_18() {
    at_once(18);
}

#[test]
fn at_once_postgres_19() {
    at_once(19);
}
