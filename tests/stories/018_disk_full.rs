//! The disk is full: it is said, nothing is listed, nothing half-made starts, and with room again it works.

use std::fs;
use std::process::Command;

use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::server::clean_environment;
use leeward_tests::story::{Story, note};

/// Runs a shell script that sees a small file system of its own at `$SMALL`. `None` where the kernel allows a user no
/// mount of his own.
fn with_small_disk(story: &Story, size: &str, script: &str) -> Option<String> {
    let small = story.path("small");
    fs::create_dir_all(&small).expect("could not create a directory");
    let allowed = Command::new("unshare")
        .args(["-rm", "true"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !allowed {
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["-rm", "bash", "-c"]);
    command.arg(format!(
        "set -u; mount -t tmpfs -o size={size} none \"$SMALL\" || exit 99\n{script}"
    ));
    clean_environment(&mut command);
    command
        .env("SMALL", &small)
        .env("LEEWARD", story.program())
        .env("PGUSER", "postgres")
        .env("PGDATABASE", "postgres");
    command.current_dir(story.path(""));
    let output = command.output().expect("could not run unshare");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(99), "{text}");
    Some(text)
}

fn check(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::new(&story);
    pair.stop_primary();
    let leeward = Leeward::new(&story);
    let data = pair.standby.data().display().to_string();

    // A repository with less room than the backup takes: it fails, says why, and lists nothing. Then there is room.
    let said = with_small_disk(
        &story,
        "60m",
        &format!(
            "head -c 61000000 /dev/zero >\"$SMALL\"/ballast
             \"$LEEWARD\" backup --pgdata '{data}' --repository \"$SMALL\"/repository; echo \"code: $?\"
             \"$LEEWARD\" list --json --repository \"$SMALL\"/repository; echo \"list: $?\"
             rm \"$SMALL\"/ballast
             \"$LEEWARD\" backup --pgdata '{data}' --repository \"$SMALL\"/repository; echo \"again: $?\"
             \"$LEEWARD\" list --repository \"$SMALL\"/repository"
        ),
    );
    let Some(said) = said else {
        note("not told here: this kernel allows a user no mount of his own");
        return;
    };
    assert!(
        said.contains("code: 1") && said.to_lowercase().contains("no space left"),
        "{said}"
    );
    assert!(
        !said.contains("\"id\""),
        "a backup is listed that cannot be whole: {said}"
    );
    assert!(said.contains("again: 0"), "{said}");
    assert_eq!(
        pair.standby
            .sql("SELECT count(*) FROM pg_replication_slots"),
        "0"
    );

    // A restore with less room than the cluster takes.
    leeward.back_up(&pair.standby, &[]);
    let repository = leeward.repository();
    let said = with_small_disk(
        &story,
        "20m",
        &format!(
            "\"$LEEWARD\" restore latest --to \"$SMALL\"/data --repository '{repository}'; echo \"code: $?\"
             ls \"$SMALL\"/data/global/pg_control"
        ),
    );
    let said = said.expect("it could be mounted before");
    assert!(
        said.contains("code: 1") && said.to_lowercase().contains("no space left"),
        "{said}"
    );
    assert!(
        said.contains("No such file"),
        "a half-made directory could start: {said}"
    );
    leeward
        .restore("latest", &story.path("restored"), &[])
        .expect(exit::DONE);
}

#[test]
fn postgres_15() {
    check(15);
}

#[test]
fn postgres_19() {
    check(19);
}
