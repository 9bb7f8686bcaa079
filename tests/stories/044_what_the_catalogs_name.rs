//! What the catalogs name and the files lack: a tablespace that is not mounted, a database's directory that is gone, lost
//! files of tables. No backup takes an empty place for an empty tablespace.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use leeward_tests::dataset;
use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::server::{Initdb, Server, send};
use leeward_tests::story::Story;
use rustix::process::Signal;

/// A place that is emptied, as by unmounting, until it is put back.
struct Unmounted<'a> {
    place: &'a Path,
    disk: PathBuf,
}

impl<'a> Unmounted<'a> {
    fn new(place: &'a Path) -> Self {
        let disk = place.with_extension("disk");
        fs::rename(place, &disk).expect("could not move a directory");
        fs::create_dir(place).expect("could not make a mount point");
        Self { place, disk }
    }

    fn mount(self) {
        // A server in recovery makes the directories again that it misses (`TablespaceCreateDbspace`, tablespace.c).
        fs::remove_dir_all(self.place).expect("could not remove a mount point");
        fs::rename(&self.disk, self.place).expect("could not move a directory back");
    }
}

/// Directories of PostgreSQL's own, what a database cannot do without, the status of transactions, files of tables.
fn other_things_missing(pair: &Pair, leeward: &Leeward<'_>) {
    let standby = &pair.standby;
    let oid_of = |database: &str| {
        standby.sql(&format!(
            "SELECT oid FROM pg_database WHERE datname = '{database}'"
        ))
    };
    let shop = standby.data().join("base").join(oid_of("shop"));
    for (place, words) in [
        (standby.data().join("pg_twophase"), "of the cluster"),
        (shop.clone(), "database \"shop\""),
        (shop.join("PG_VERSION"), "database \"shop\""),
        (shop.join("pg_filenode.map"), "database \"shop\""),
    ] {
        let away = place.with_extension("away");
        fs::rename(&place, &away).expect("could not move it away");
        leeward
            .backup(standby, &[])
            .expect(exit::FAILED)
            .expect_words(&[words, &place.display().to_string()]);
        fs::rename(&away, &place).expect("could not move it back");
    }
    // The status of transactions: recovery would read a missing file as zeros, and take back what was committed.
    pair.primary.sql("CHECKPOINT");
    standby.wait_for(&pair.primary);
    standby.sql("CHECKPOINT");
    let status = standby.data().join("pg_xact/0000");
    fs::rename(&status, standby.data().join("pg_xact.away")).expect("could not move a file away");
    leeward
        .backup(standby, &[])
        .expect(exit::FAILED)
        .expect_words(&["pg_xact", "has none of the files"]);
    fs::rename(standby.data().join("pg_xact.away"), &status).expect("could not move it back");
    leeward.back_up(standby, &[]);

    // A database whose DROP DATABASE was interrupted has no files, and need not have any.
    pair.primary.sql("CHECKPOINT");
    pair.primary
        .sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'gone'");
    standby.wait_for(&pair.primary);
    fs::remove_dir_all(standby.data().join("base").join(oid_of("gone")))
        .expect("could not remove a database");
    // One that lets nobody in is not looked into, and that is said.
    let hba = standby.data().join("pg_hba.conf");
    let rules = fs::read_to_string(&hba).expect("could not read pg_hba.conf");
    fs::write(&hba, format!("local shop all reject\n{rules}")).expect("could not write");
    standby.sql("SELECT pg_reload_conf()");
    wait_until("the database lets nobody in", PATIENCE, || {
        standby.try_sql_in("shop", "SELECT 1").is_err()
    });
    let outcome = leeward.backup(standby, &[]).expect(exit::DONE);
    outcome.expect_words(&["database \"shop\"", "could not be made sure of"]);

    // The file of a table is lost: a damaged backup, which says so.
    let path = standby.sql("SELECT pg_relation_filepath('story.orders')");
    let file = standby.data().join(&path);
    fs::rename(&file, file.with_extension("away")).expect("could not move a file away");
    let outcome = leeward.backup(standby, &[]).expect(exit::DAMAGED);
    outcome.expect_words(&[&path, "missing"]);
    let damaged = leeward.latest().field("damaged");
    assert_eq!(damaged[0]["relation"], path.as_str(), "{damaged}");
    assert_eq!(damaged[0]["missing"], true, "{damaged}");
    fs::rename(file.with_extension("away"), &file).expect("could not move a file back");

    // A relation segment in the middle: the server takes the table to end there.
    {
        let whole = File::options()
            .write(true)
            .open(&file)
            .expect("the table's file");
        let size = whole.metadata().expect("it has a size").len();
        whole.set_len(1 << 30).expect("could not make it longer");
        let behind = PathBuf::from(format!("{}.2", file.display()));
        let segment = File::create(&behind).expect("could not create a segment");
        segment
            .write_all_at(&[0; 8192], 0)
            .expect("could not write");
        let outcome = leeward.backup(standby, &[]).expect(exit::DAMAGED);
        outcome.expect_words(&[&format!("{path}.1"), "missing"]);
        fs::remove_file(&behind).expect("could not remove a file");
        whole.set_len(size).expect("could not make it shorter");
    }
    leeward.back_up(standby, &[]);
}

fn check(major: u32) {
    let story = Story::begin(major);
    let original = story.path("archive disk");
    fs::create_dir(&original).expect("could not create a directory");
    let mut pair = Pair::with(&story, &Initdb::default(), |primary: &mut Server| {
        dataset::fill(primary, 1);
        // A vacuum replayed while the tablespace is not mounted would write into the mount point.
        primary.append_config("allow_in_place_tablespaces = on\nautovacuum = off");
        primary.sql(&format!(
            "CREATE TABLESPACE archive LOCATION '{}'",
            original.display()
        ));
        primary.sql(
            "SET allow_in_place_tablespaces = on; CREATE TABLESPACE \"never used\" LOCATION ''",
        );
        primary.sql(
            "CREATE TABLE story.old_orders TABLESPACE archive AS SELECT generate_series(1, 5000) AS id;
             CREATE TABLE story.orders AS SELECT generate_series(1, 5000) AS id",
        );
        primary.sql("CREATE DATABASE shop");
        primary.sql("CREATE DATABASE far TABLESPACE archive");
        primary.sql("CREATE DATABASE gone");
    });
    let leeward = Leeward::new(&story);
    let standby = &pair.standby;
    let live = PathBuf::from(
        standby
            .sql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'archive'"),
    );
    leeward.back_up(standby, &[]);

    // A tablespace that is not mounted: it is named, or a database in it, if the server has made the tablespace's own directory
    // again meanwhile.
    let unmounted = Unmounted::new(&live);
    leeward
        .backup(standby, &[])
        .expect(exit::FAILED)
        .expect_words(&[&live.display().to_string(), "Mount"]);
    unmounted.mount();

    // One that is unmounted while the backup runs, before its turn has come.
    // The server's checkpointer is frozen, so that the backup waits for its checkpoint.
    let checkpointer: u32 = standby
        .sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
        .parse()
        .expect("a process id");
    send(checkpointer, Signal::STOP);
    let running = leeward.spawn(&Leeward::backup_args(standby, &[]));
    wait_until("the backup waits for its checkpoint", PATIENCE, || {
        standby.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'CheckpointStart'")
            == "1"
    });
    let unmounted = Unmounted::new(&live);
    send(checkpointer, Signal::CONT);
    running
        .wait()
        .expect(exit::FAILED)
        .expect_words(&[&live.display().to_string(), "was not there to be copied"]);
    unmounted.mount();
    assert_eq!(leeward.listed().len(), 1);

    if major == 17 {
        other_things_missing(&pair, &leeward);
    }

    // What is lost for good is dropped on the primary, as the message says, and backups go on.
    fs::remove_dir_all(&live).expect("could not remove a tablespace");
    fs::create_dir(&live).expect("could not make a mount point");
    leeward
        .backup(standby, &[])
        .expect(exit::FAILED)
        .expect_words(&[&live.display().to_string(), "drop the ", "on the primary"]);
    pair.primary.sql("DROP TABLE story.old_orders");
    pair.primary.sql("DROP DATABASE far");
    pair.primary.sql("DROP TABLESPACE archive");
    pair.standby.wait_for(&pair.primary);
    leeward.back_up(&pair.standby, &[]);
    pair.stop_primary();
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
