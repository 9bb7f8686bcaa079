//! What belongs to the running server stays with it; everything else comes along as it is.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use leeward_tests::leeward::Leeward;
use leeward_tests::pair::Pair;
use leeward_tests::server::{Server, run};
use leeward_tests::story::Story;

fn write(path: &Path) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("could not create a directory");
    fs::write(path, "what the story put here\n").expect("could not write a file");
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// The paths of everything below a directory but what lies in `pg_wal`.
fn paths(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("could not read a directory") {
            let entry = entry.expect("could not read a directory");
            let path = entry.path();
            let relative = path.strip_prefix(root).expect("it is inside").to_owned();
            if entry.file_type().expect("it has a type").is_dir() && relative != Path::new("pg_wal")
            {
                folders.push(path);
            }
            found.insert(relative);
        }
    }
    found
}

/// What the server itself leaves out of a base backup (`excludeDirContents`, `excludeFiles`), this backup leaves out, and
/// nothing else; with the few declared exceptions. Asked where the server's package has the tool: on the oldest and the
/// newest major version.
fn compare_with_basebackup(story: &Story, standby: &Server, copy: &Path) {
    let tool = story.installation().program("pg_basebackup");
    if !tool.exists() {
        return;
    }
    let to = story.path("basebackup");
    run(Command::new(tool)
        .args(["--wal-method=none", "--checkpoint=fast", "--no-sync"])
        .args(["--no-manifest", "--dbname"])
        .arg(standby.conninfo())
        .arg("--pgdata")
        .arg(&to));
    let (theirs, ours) = (paths(&to), paths(copy));
    let difference = |of: &BTreeSet<PathBuf>, and: &BTreeSet<PathBuf>| -> Vec<String> {
        of.difference(and)
            .map(|path| path.display().to_string())
            .collect()
    };
    // A restore decides anew how the server recovers.
    assert_eq!(difference(&theirs, &ours), ["standby.signal"]);
    // The server's tool knows no links but those of tablespaces.
    assert_eq!(
        difference(&ours, &theirs),
        ["dangling", "link", "recovery.signal"]
    );
}

fn check(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::new(&story);
    // Two backups of the same files are compared below.
    pair.stop_primary();
    let data = pair.standby.data();
    pair.standby
        .sql("SELECT pg_create_physical_replication_slot('kept_here', true)");
    let unlogged = pair
        .standby
        .sql("SELECT pg_relation_filepath('story.fleeting')");
    let index = pair
        .standby
        .sql("SELECT pg_relation_filepath('story.fleeting_pkey')");
    let database = unlogged.rsplit_once('/').expect("a directory").0.to_owned();

    let left_behind = [
        format!("{database}/t3_99999"),
        format!("{database}/t12_99999_fsm"),
        format!("{database}/t3_99999.1"),
        format!("{database}/pg_internal.init.4711"),
        "global/pg_internal.init".to_owned(),
        "base/pgsql_tmp/pgsql_tmp4711.0".to_owned(),
        "pg_notify/0000".to_owned(),
        "pg_serial/0000".to_owned(),
        "pg_snapshots/00000003-1".to_owned(),
        "pg_stat_tmp/db_0.stat".to_owned(),
        "postgresql.auto.conf.tmp".to_owned(),
        "current_logfiles.tmp".to_owned(),
        "backup_manifest".to_owned(),
    ];
    for name in &left_behind {
        write(&data.join(name));
    }
    let unknown = [
        "notes of the DBA.txt",
        "extension_state/nested/file.bin",
        "base/unknown_file",
    ];
    for name in unknown {
        write(&data.join(name));
    }
    fs::create_dir(data.join("kept empty")).expect("could not create a directory");
    fs::set_permissions(
        data.join("notes of the DBA.txt"),
        fs::Permissions::from_mode(0o640),
    )
    .expect("could not chmod");
    // A linked file comes along as a file: its target may be on the old host only. A link to nothing stays one.
    symlink("notes of the DBA.txt", data.join("link")).expect("could not make a link");
    symlink("/nowhere at all", data.join("dangling")).expect("could not make a link");

    let leeward = Leeward::new(&story);
    leeward.back_up(&pair.standby, &[]);
    let mut restored = leeward.restored("latest", "restored", &[]);
    let copy = restored.data().to_path_buf();

    for name in &left_behind {
        assert!(!copy.join(name).exists(), "{name} came along");
    }
    for name in ["postmaster.pid", "postmaster.opts", "standby.signal"] {
        assert!(
            data.join(name).exists() && !copy.join(name).exists(),
            "{name} came along"
        );
    }
    for name in [
        "pg_replslot",
        "pg_notify",
        "pg_serial",
        "pg_snapshots",
        "pg_stat_tmp",
        "pg_dynshmem",
        "pg_subtrans",
    ] {
        assert!(
            is_empty(&copy.join(name)),
            "{name} is not an empty directory"
        );
    }
    for path in [&unlogged, &index] {
        assert!(
            data.join(format!("{path}_init")).exists(),
            "the standby has no init fork"
        );
        assert!(
            copy.join(format!("{path}_init")).exists(),
            "the init fork did not come along"
        );
        assert!(
            !copy.join(path).exists(),
            "more of an unlogged relation than its init fork came along"
        );
    }
    for name in unknown {
        assert_eq!(
            fs::read(copy.join(name)).ok(),
            fs::read(data.join(name)).ok(),
            "{name} differs"
        );
    }
    assert!(
        is_empty(&copy.join("kept empty")),
        "an empty directory did not come along"
    );
    assert_eq!(
        fs::read(copy.join("link")).ok(),
        fs::read(data.join("link")).ok()
    );
    assert_eq!(
        fs::read_link(copy.join("dangling")).ok(),
        Some("/nowhere at all".into())
    );
    let mode = |path: &Path| fs::metadata(path).expect("it is there").mode() & 0o7777;
    assert_eq!(mode(&copy.join("notes of the DBA.txt")), 0o640);
    assert_eq!(mode(&copy), 0o700);
    assert_eq!(mode(&copy.join("base")), mode(&data.join("base")));
    assert_eq!(
        mode(&copy.join("PG_VERSION")),
        mode(&data.join("PG_VERSION"))
    );

    compare_with_basebackup(&story, &pair.standby, &copy);

    restored.start();
    assert_eq!(
        restored.sql("SELECT count(*) FROM pg_replication_slots"),
        "0"
    );
    assert_eq!(
        pair.standby
            .sql("SELECT slot_name FROM pg_replication_slots"),
        "kept_here"
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
