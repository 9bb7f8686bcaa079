//! Places as people have them: a directory made beforehand, two restores into the same one, a database moved to another
//! disk by a link, a tablespace that comes or goes while the backup runs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use leeward_tests::contents::fingerprint;
use leeward_tests::dataset;
use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::server::{Initdb, Server, Stop};
use leeward_tests::story::Story;

/// A slow backup of small things: long enough to do something meanwhile.
const SLOW: [&str; 4] = ["--compression", "zstd:16", "--threads", "1"];

fn check(major: u32) {
    let story = Story::begin(major);
    let goes = story.path("goes");
    fs::create_dir(&goes).expect("could not create a directory");
    let mut pair = Pair::with(&story, &Initdb::default(), |primary: &mut Server| {
        dataset::fill(primary, 1);
        // Primary and standby share this host: replay of CREATE TABLESPACE needs places of its own.
        primary.append_config("allow_in_place_tablespaces = on");
        primary.sql("SET allow_in_place_tablespaces = on; CREATE TABLESPACE goes LOCATION ''");
    });
    let leeward = Leeward::new(&story);

    // While the backup runs, one tablespace goes and another comes.
    let mut running = leeward.spawn(&Leeward::backup_args(&pair.standby, &SLOW));
    wait_until("the backup has begun", PATIENCE, || {
        running.has_ended()
            || pair
                .standby
                .sql("SELECT count(*) FROM pg_replication_slots")
                == "1"
    });
    running.freeze();
    pair.primary.sql("DROP TABLESPACE goes");
    pair.primary
        .sql("SET allow_in_place_tablespaces = on; CREATE TABLESPACE comes LOCATION ''");
    pair.primary
        .sql("CREATE TABLE story.came TABLESPACE comes AS SELECT generate_series(1, 500) AS id");
    pair.standby.wait_for(&pair.primary);
    // The stop LSN is the standby's minimum recovery point, which only a flush moves on.
    pair.standby.sql("CHECKPOINT");
    running.thaw();
    running.wait().expect(exit::DONE);
    let mut restored = leeward.restored("latest", "changing", &[]);
    restored.append_config("allow_in_place_tablespaces = on");
    restored.start();
    wait_until("the restored server opens for writes", PATIENCE, || {
        !restored.in_recovery()
    });
    assert_eq!(restored.sql("SELECT count(*) FROM story.came"), "500");
    assert_eq!(
        restored.sql("SELECT string_agg(spcname, ' ') FROM pg_tablespace WHERE oid > 16383"),
        "comes"
    );
    restored.stop(Stop::Fast);

    // A database that somebody moved to another disk by a link is part of the cluster.
    pair.stop_primary();
    let oid = pair
        .standby
        .sql("SELECT oid FROM pg_database WHERE datname = 'postgres'");
    pair.standby.stop(Stop::Fast);
    let (inside, elsewhere) = (
        pair.standby.data().join("base").join(&oid),
        story.path("other disk"),
    );
    fs::rename(&inside, &elsewhere).expect("could not move the database");
    symlink(&elsewhere, &inside).expect("could not link the database");
    pair.standby.start();
    let backup = leeward.back_up(&pair.standby, &[]);
    let truth = fingerprint(&pair.standby);

    // Into a directory that was made beforehand, with the mode that mkdir gives.
    let made = story.path("made");
    fs::create_dir(&made).expect("could not create a directory");
    fs::set_permissions(&made, fs::Permissions::from_mode(0o755)).expect("could not set a mode");
    let mut restored = leeward.restored("latest", "made", &[]);
    assert!(
        !fs::symlink_metadata(restored.data().join("base").join(&oid))
            .expect("it is there")
            .is_symlink()
    );
    restored.append_config("allow_in_place_tablespaces = on");
    assert_sound(&story, &mut restored, &backup, &truth);

    // Two restores into one directory: the second keeps its hands off.
    let contested = story.path("contested");
    let to = contested.display().to_string();
    let mut first = leeward.spawn(&["restore", "latest", "--to", &to, "--threads", "1"]);
    let mark = contested.join("leeward.restoring/data");
    wait_until("the first restore has begun", PATIENCE, || {
        first.has_ended() || mark.exists()
    });
    first.freeze();
    assert!(!first.has_ended(), "the first restore was over too soon");
    leeward
        .restore("latest", &contested, &[])
        .expect(exit::REFUSED)
        .expect_words(&["another restore"]);
    first.thaw();
    first.wait().expect(exit::DONE);
    let mut restored = Server::over(&story, "contested-server", &contested);
    restored.append_config("allow_in_place_tablespaces = on");
    assert_sound(&story, &mut restored, &backup, &truth);
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
