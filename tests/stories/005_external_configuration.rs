//! Debian keeps the configuration outside the data directory. It comes along, and the restored directory starts by
//! itself, with it.

use std::fs;
use std::path::Path;
use std::process::Command;

use leeward_tests::contents::fingerprint;
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::server::{Server, Stop, run};
use leeward_tests::story::Story;

const CONFIGURATION: [&str; 4] = [
    "postgresql.conf",
    "pg_hba.conf",
    "pg_ident.conf",
    "pg_hosts.conf",
];

/// `pg_hosts.conf` came with 19.
fn has_hosts(folder: &Path) -> bool {
    folder.join("pg_hosts.conf").exists()
}

/// Moves a stopped server's configuration into a directory of its own, as `pg_createcluster` lays it out.
fn move_configuration_out(story: &Story, server: &mut Server) {
    let etc = story.path("etc");
    fs::create_dir_all(etc.join("conf.d")).expect("could not create a configuration directory");
    for name in CONFIGURATION {
        if name == "pg_hosts.conf" && !has_hosts(server.data()) {
            continue;
        }
        fs::rename(server.data().join(name), etc.join(name))
            .expect("could not move a configuration file");
    }
    let main = etc.join("postgresql.conf");
    let mut text = fs::read_to_string(&main).expect("could not read postgresql.conf");
    let (data, etc_name) = (server.data().display(), etc.display());
    text.push_str(&format!(
        "data_directory = '{data}'\nhba_file = '{etc_name}/pg_hba.conf'\nident_file = '{etc_name}/pg_ident.conf'\n\
         include_dir = 'conf.d'\ninclude_dir = 'empty.d'\ninclude_if_exists = 'extra.conf'\nwork_mem = '7MB'\n"
    ));
    if has_hosts(&etc) {
        text.push_str(&format!(
            "hosts_file = '{etc_name}/pg_hosts.conf'\nssl = on\nssl_sni = on\n"
        ));
        add_host(server, &etc);
    }
    fs::create_dir(etc.join("empty.d")).expect("could not create an empty directory");
    let mut text = text.into_bytes();
    text.extend_from_slice(b"# caf\xe9, in Latin-1\n");
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
    fs::write(
        &hba,
        format!("# the story's own rules\nlocal all @nobody reject\n{rules}"),
    )
    .expect("could not write pg_hba.conf");
    fs::write(etc.join("nobody"), "story_nobody\n").expect("could not write a list");
    server.set("config_file", &main.display().to_string());
}

/// Gives the server a host with a certificate of its own, which lies in the data directory.
fn add_host(server: &Server, etc: &Path) {
    let data = server.data();
    run(Command::new("openssl")
        .current_dir(data)
        .args([
            "req",
            "-x509",
            "-subj",
            "/CN=db.example",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-keyout", "host.key", "-out", "host.crt"]));
    let line = format!(
        "db.example \\\n {0}/host.crt {0}/host.key # the story's own host\n",
        data.display()
    );
    fs::write(etc.join("pg_hosts.conf"), line).expect("could not write pg_hosts.conf");
}

/// The server uses the configuration that came along, and none from elsewhere.
fn judge(server: &Server) {
    assert_eq!(server.sql("SHOW work_mem"), "7MB");
    assert_eq!(server.sql("SHOW story.marker"), "outside");
    assert_eq!(server.sql("SHOW story.extra"), "included");
    let data = server.data().display().to_string();
    assert_eq!(server.sql("SHOW data_directory"), data);
    assert!(
        server.sql("SHOW hba_file").starts_with(&data),
        "it uses a pg_hba.conf from elsewhere"
    );
    assert_eq!(
        server.sql("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL"),
        "0"
    );
    if has_hosts(server.data()) {
        assert_eq!(server.sql("SHOW ssl"), "on");
        assert!(server.sql("SHOW hosts_file").starts_with(&data));
        assert_eq!(
            fs::read_to_string(server.data().join("pg_hosts.conf"))
                .expect("there is a pg_hosts.conf"),
            "db.example \\\n \"host.crt\" \"host.key\" # the story's own host\n"
        );
    }
    let hba =
        fs::read_to_string(server.data().join("pg_hba.conf")).expect("there is a pg_hba.conf");
    assert!(hba.contains("the story's own rules"));
    assert_eq!(
        server.sql("SELECT user_name FROM pg_hba_file_rules WHERE auth_method = 'reject'"),
        "{story_nobody}"
    );
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
    let hosts = has_hosts(&story.path("etc"));
    for name in CONFIGURATION
        .iter()
        .filter(|name| hosts || **name != "pg_hosts.conf")
        .chain(&["10-story.conf", "extra.conf", "nobody"])
    {
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
    judge(&restored);
    restored.stop(Stop::Fast);

    let out = story.path("export");
    let to = out.to_str().expect("a path in UTF-8");
    leeward
        .run(&["export", "latest", "--to", to])
        .expect(exit::DONE);
    let extracted = story.path("extracted");
    fs::create_dir(&extracted).expect("could not create a directory");
    for name in ["data.tar.zst", "wal.tar.zst"] {
        let mut tar = Command::new("tar");
        run(tar
            .args(["--zstd", "-xf"])
            .arg(out.join(name))
            .arg("-C")
            .arg(&extracted));
    }
    let mut exported = Server::over(&story, "exported", &extracted);
    assert_sound(&story, &mut exported, &backup, &truth);
    exported.start();
    judge(&exported);
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
