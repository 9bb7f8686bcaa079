//! Tablespaces, linked and in-place: they come along, go where they are told, and never onto a live one.

use std::fs;

use leeward_tests::contents::fingerprint;
use leeward_tests::dataset;
use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::server::{Initdb, Server, Stop};
use leeward_tests::story::Story;

fn check(major: u32) {
    let story = Story::begin(major);
    // A space in the name, as the tablespace map has to cope with.
    let original = story.path("fast disk");
    fs::create_dir(&original).expect("could not create a tablespace's directory");
    let mut pair = Pair::with(&story, &Initdb::default(), |primary: &mut Server| {
        dataset::fill(primary, 1);
        // Recovery refuses directories in pg_tblspc otherwise.
        primary.append_config("allow_in_place_tablespaces = on");
        primary.sql(&format!(
            "CREATE TABLESPACE linked LOCATION '{}'",
            original.display()
        ));
        primary.sql("SET allow_in_place_tablespaces = on; CREATE TABLESPACE inside LOCATION ''");
        primary.sql(
            "CREATE TABLE story.on_linked TABLESPACE linked AS SELECT i AS id, md5(i::text) FROM generate_series(1, 9000) i;
             CREATE INDEX ON story.on_linked (id) TABLESPACE inside;
             CREATE TABLE story.on_inside TABLESPACE inside AS SELECT i AS id FROM generate_series(1, 9000) i;
             CREATE UNLOGGED TABLE story.fleeting_linked (id int) TABLESPACE linked;
             INSERT INTO story.fleeting_linked SELECT generate_series(1, 9000)",
        );
        primary.sql("CREATE DATABASE moved TABLESPACE linked");
        primary.sql_in(
            "moved",
            "CREATE TABLE there AS SELECT i AS id FROM generate_series(1, 100) i",
        );
    });
    let leeward = Leeward::new(&story);
    pair.stop_primary();
    let backup = leeward.back_up(&pair.standby, &[]);
    let truth = fingerprint(&pair.standby);

    let oid = pair
        .standby
        .sql("SELECT oid FROM pg_tablespace WHERE spcname = 'linked'");
    let live = pair
        .standby
        .sql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'linked'");
    let spaces = backup.field("tablespaces");
    let spaces = spaces.as_array().expect("a list");
    assert_eq!(spaces.len(), 2, "{spaces:?}");
    assert!(
        spaces
            .iter()
            .any(|space| space["path"] == live.as_str() && space["in_place"] == false),
        "{spaces:?}"
    );
    assert!(
        spaces.iter().any(|space| space["in_place"] == true),
        "{spaces:?}"
    );

    // Where the standby's tablespace lies nothing is written, and nothing is left of the attempt.
    let refused = story.path("refused");
    let before = fs::read_dir(&live)
        .expect("the tablespace is there")
        .count();
    leeward
        .restore("latest", &refused, &[])
        .expect(exit::REFUSED)
        .expect_words(&[live.as_str(), "--tablespace"]);
    assert_eq!(
        fs::read_dir(&live)
            .expect("the tablespace is there")
            .count(),
        before
    );
    assert!(
        !refused.join("PG_VERSION").exists(),
        "a refused restore left files"
    );

    // A mapping of a tablespace that the backup has not is a mistake, not a wish to ignore.
    let unknown = format!("/no/such/place={}", story.path("nowhere").display());
    let outcome = leeward.restore(
        "latest",
        &story.path("refused-2"),
        &["--tablespace", &unknown],
    );
    assert!(
        matches!(outcome.code(), Some(exit::USAGE | exit::REFUSED)),
        "{outcome}"
    );

    let elsewhere = story.path("slow=disk");
    let mapping = format!(
        "{live}={}",
        elsewhere.display().to_string().replace("slow=", "slow\\=")
    );
    let mut restored = leeward.restored("latest", "restored", &["--tablespace", &mapping]);
    assert_sound(&story, &mut restored, &backup, &truth);
    let link = restored.data().join("pg_tblspc").join(&oid);
    assert_eq!(fs::read_link(&link).expect("a link"), elsewhere);
    restored.start();
    assert_eq!(restored.sql("SELECT count(*) FROM story.on_linked"), "9000");
    assert_eq!(
        restored.sql("SELECT count(*) FROM story.fleeting_linked"),
        "0"
    );

    // A restore that was interrupted left its own in a directory that a live server takes for a tablespace later.
    let contested = story.path("contested");
    let mapping = format!("{live}={}", contested.display());
    let half_made = story.path("half-made");
    let packs = story.path(&format!("repository/main/backups/{}/packs", backup.id()));
    let away = story.path("packs-away");
    fs::rename(&packs, &away).expect("could not move the backup's packs away");
    leeward
        .restore("latest", &half_made, &["--tablespace", &mapping])
        .expect(exit::DAMAGED);
    fs::rename(&away, &packs).expect("could not move the backup's packs back");
    restored.sql(&format!(
        "CREATE TABLESPACE moved_in LOCATION '{}'",
        contested.display()
    ));
    restored
        .sql("CREATE TABLE live_rows TABLESPACE moved_in AS SELECT generate_series(1, 9000) AS id");
    restored.sql("CHECKPOINT");
    leeward
        .restore("latest", &half_made, &["--tablespace", &mapping])
        .expect(exit::REFUSED)
        .expect_words(&["contested", "--tablespace"]);
    // As the hint says: to another place. What the first attempt left beside the live rows is gone, the rows are not.
    let other = format!("{live}={}", story.path("uncontested").display());
    leeward
        .restore("latest", &half_made, &["--tablespace", &other])
        .expect(exit::DONE);
    restored.stop(Stop::Fast);
    restored.start();
    assert_eq!(restored.sql("SELECT sum(id) FROM live_rows"), "40504500");
    let names: Vec<_> = fs::read_dir(&contested)
        .expect("it is there")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(names.len(), 1, "{names:?}");
    restored.stop(Stop::Fast);
    let mut again = Server::over(&story, "half-made-server", &half_made);
    again.set("autovacuum", "off");
    assert_sound(&story, &mut again, &backup, &truth);

    // With the old host gone, the same path is free, and is used.
    pair.standby.stop(Stop::Fast);
    fs::rename(&live, story.path("gone")).expect("could not move a tablespace away");
    let mut home = leeward.restored("latest", "home", &[]);
    home.start();
    wait_until("the restored server opens for writes", PATIENCE, || {
        !home.in_recovery()
    });
    assert_eq!(home.sql("SELECT count(*) FROM story.on_linked"), "9000");
    assert_eq!(
        fs::read_link(home.data().join("pg_tblspc").join(&oid))
            .expect("a link")
            .display()
            .to_string(),
        live
    );
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
