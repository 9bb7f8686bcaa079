//! Debian keeps the configuration outside the data directory. It comes along, and the restored directory starts by
//! itself, with it.

use std::fs;

use leeward_tests::contents::fingerprint;
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::Leeward;
use leeward_tests::pair::Pair;
use leeward_tests::server::{Server, Stop};
use leeward_tests::story::Story;

/// Moves a stopped server's configuration into a directory of its own, as `pg_createcluster` lays it out.
fn move_configuration_out(story: &Story, server: &mut Server) {
    let etc = story.path("etc");
    fs::create_dir_all(etc.join("conf.d")).expect("could not create a configuration directory");
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(server.data().join(name), etc.join(name))
            .expect("could not move a configuration file");
    }
    let main = etc.join("postgresql.conf");
    let mut text = fs::read_to_string(&main).expect("could not read postgresql.conf");
    let (data, etc_name) = (server.data().display(), etc.display());
    text.push_str(&format!(
        "data_directory = '{data}'\nhba_file = '{etc_name}/pg_hba.conf'\nident_file = '{etc_name}/pg_ident.conf'\n\
         include_dir = 'conf.d'\ninclude_if_exists = 'extra.conf'\nwork_mem = '7MB'\n"
    ));
    fs::write(&main, text).expect("could not write postgresql.conf");
    fs::write(
        etc.join("conf.d/10-story.conf"),
        "story.marker = 'outside'\n",
    )
    .expect("could not write an include");
    fs::write(etc.join("extra.conf"), "story.extra = 'included'\n")
        .expect("could not write an include");
    let hba = etc.join("pg_hba.conf");
    let rules = fs::read_to_string(&hba).expect("could not read pg_hba.conf");
    fs::write(&hba, format!("# the story's own rules\n{rules}"))
        .expect("could not write pg_hba.conf");
    server.set("config_file", &main.display().to_string());
}

fn check(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::new(&story);
    let leeward = Leeward::new(&story);
    pair.stop_primary();
    pair.standby.stop(Stop::Fast);
    move_configuration_out(&story, &mut pair.standby);
    pair.standby.start();
    assert_eq!(pair.standby.sql("SHOW story.marker"), "outside");

    let backup = leeward.back_up(&pair.standby, &[]);
    let files = backup.field("configuration_files").to_string();
    for name in [
        "postgresql.conf",
        "pg_hba.conf",
        "pg_ident.conf",
        "10-story.conf",
        "extra.conf",
    ] {
        assert!(files.contains(name), "{name} is missing in {files}");
    }
    let truth = fingerprint(&pair.standby);

    // The old host is gone, with all its files.
    pair.standby.stop(Stop::Fast);
    fs::rename(story.path("etc"), story.path("etc.gone"))
        .expect("could not move the configuration away");
    fs::rename(pair.standby.data(), story.path("standby.gone"))
        .expect("could not move the standby away");

    let mut restored = leeward.restored("latest", "restored", &[]);
    assert_sound(&story, &mut restored, &backup, &truth);
    restored.start();
    assert_eq!(restored.sql("SHOW work_mem"), "7MB");
    assert_eq!(restored.sql("SHOW story.marker"), "outside");
    assert_eq!(restored.sql("SHOW story.extra"), "included");
    let data = restored.data().display().to_string();
    assert_eq!(restored.sql("SHOW data_directory"), data);
    assert!(
        restored.sql("SHOW hba_file").starts_with(&data),
        "it uses a pg_hba.conf from elsewhere"
    );
    assert_eq!(
        restored.sql("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL"),
        "0"
    );
    let hba =
        fs::read_to_string(restored.data().join("pg_hba.conf")).expect("there is a pg_hba.conf");
    assert!(hba.contains("the story's own rules"));
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
