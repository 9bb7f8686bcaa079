//! WAL that only one place has is not put at risk: not by a shorter beginning from the archive over a standby's own file,
//! and not by taking a mount point for the repository that should be mounted there.

use std::fs;
use std::path::{Path, PathBuf};

use leeward_tests::archive::{Archive, Kind};
use leeward_tests::dataset;
use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::oracle::{Address, address, lsn};
use leeward_tests::pair::Pair;
use leeward_tests::server::{Initdb, Server, Stop};
use leeward_tests::story::Story;
use leeward_tests::wal::SLOT;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::Signal;
use serde_json::Value;

/// Waits until all that the primary has written is durable, as far as the standby was told.
fn wait_durable(pair: &Pair) -> Address {
    let end = pair.primary.written();
    pair.standby.wait_for(&pair.primary);
    wait_until("the server is told that all is durable", PATIENCE, || {
        pair.standby.acknowledged() >= end
    });
    end
}

/// How far the archive reaches from its first byte on.
fn held(archive: &Archive) -> Address {
    let begins = archive
        .objects()
        .into_iter()
        .filter_map(|object| match object.kind {
            Kind::Segment(name) => Some(archive.start_of(&name)),
            Kind::Piece(_, begin, _) => Some(begin),
            _ => None,
        });
    archive.reach(1, begins.min().expect("something is held"))
}

/// Writes into this many WAL segments, and ends all but the last.
fn write(primary: &Server, segments: u32) {
    for number in 1..=segments {
        primary.sql("INSERT INTO story.steps SELECT max(id) + 1 FROM story.steps");
        if number < segments {
            primary.sql("SELECT pg_switch_wal()");
        }
    }
}

/// A pair with small WAL segments.
fn small_pair(story: &Story) -> Pair {
    let how = Initdb {
        wal_segment_mib: 1,
        ..Initdb::default()
    };
    Pair::with(story, &how, |primary| {
        dataset::fill(primary, 1);
        primary.sql("CREATE TABLE story.steps AS SELECT 0 AS id");
    })
}

/// A repository that is mounted, and an empty directory to be there in its stead.
struct Mount {
    place: PathBuf,
    aside: PathBuf,
}

impl Mount {
    fn over(story: &Story) -> Mount {
        let mount = Mount {
            place: story.path("repository"),
            aside: story.path("aside"),
        };
        fs::create_dir(&mount.aside).expect("could not create a directory");
        mount
    }

    /// One takes the other's place, in one step, as with a mount.
    fn exchange(&self) {
        renameat_with(CWD, &self.place, CWD, &self.aside, RenameFlags::EXCHANGE)
            .expect("could not exchange two directories");
    }
}

fn assert_empty(directory: &Path) {
    let entries = fs::read_dir(directory).expect("it is there");
    let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    assert!(
        names.is_empty(),
        "{names:?} in {} although nothing may be",
        directory.display()
    );
}

/// Nothing is missing from the first byte up to here, as Leeward and as the names tell, and each byte is the server's own.
fn assert_contiguous(leeward: &Leeward<'_>, archive: &Archive, pair: &Pair, end: Address) {
    let list = leeward
        .run(&["wal", "list", "--json"])
        .expect(exit::DONE)
        .json();
    let timeline = &list["timelines"][0];
    assert_eq!(timeline["gaps"], Value::Array(Vec::new()), "{list:#}");
    let ranges = timeline["ranges"].as_array().expect("ranges");
    assert_eq!(ranges.len(), 1, "{list:#}");
    assert!(
        address(ranges[0]["end"].as_str().expect("an LSN")) >= end,
        "{list:#}"
    );
    assert!(held(archive) >= end);
    archive.assert_whole(&[pair.standby.data(), pair.primary.data()]);
}

/// A synchronous standby has confirmed commits that it has not replayed yet, the archive holds the beginning of their WAL
/// segment only, and the primary is lost.
fn confirmed(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::new(&story);
    let leeward = Leeward::new(&story);
    let archive = Archive::of(&story.path("repository"), 16);
    pair.primary
        .sql("CREATE TABLE story.commits (id int PRIMARY KEY)");
    let mut receiver = leeward.receive(&pair.standby);
    receiver.wait_for_words("Receiving WAL");
    pair.primary.sql("SELECT pg_switch_wal()");
    pair.primary.sql("INSERT INTO story.commits VALUES (0)");
    let current = pair
        .primary
        .sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    wait_durable(&pair);
    receiver.signal(Signal::TERM);
    receiver.wait().expect(exit::DONE);

    // The server's shell notes what was asked for, and what came of it.
    let answers = story.path("answers");
    pair.standby.append_config(&format!(
        "restore_command = '{}; code=$?; echo \"%f $code\" >> \"{}\"; exit $code'",
        leeward.shell("wal get %f %p"),
        answers.display()
    ));
    pair.standby.sql("SELECT pg_reload_conf()");
    pair.primary
        .append_config("synchronous_standby_names = 'walreceiver'");
    pair.primary.sql("SELECT pg_reload_conf()");
    wait_until("the standby is synchronous", PATIENCE, || {
        pair.primary
            .sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")
            == "1"
    });
    pair.standby.sql("SELECT pg_wal_replay_pause()");
    wait_until("replay is paused", PATIENCE, || {
        pair.standby.sql("SELECT pg_get_wal_replay_pause_state()") == "paused"
    });
    for id in 1..=20 {
        pair.primary
            .sql(&format!("INSERT INTO story.commits VALUES ({id})"));
    }
    let end = pair.primary.written();
    assert_eq!(
        pair.primary
            .sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())"),
        current
    );
    assert!(!archive.segments().contains(&current));
    let stored = archive.reach(1, archive.start_of(&current));
    assert!(
        archive.start_of(&current) < stored && stored < end,
        "the archive has the beginning only"
    );

    pair.primary.stop(Stop::Kill);
    wait_until("the standby has lost its primary", PATIENCE, || {
        pair.standby
            .sql("SELECT count(*) FROM pg_stat_wal_receiver")
            == "0"
    });
    assert_eq!(
        pair.standby.sql("SELECT max(id) FROM story.commits"),
        "0",
        "nothing was replayed yet"
    );
    let before = fs::read_to_string(&answers).map_or(0, |text| text.len());
    pair.standby.sql("SELECT pg_wal_replay_resume()");
    wait_until(
        "the archive was asked for the WAL segment",
        PATIENCE,
        || {
            fs::read_to_string(&answers).is_ok_and(|text| {
                text[before..]
                    .lines()
                    .any(|line| line.starts_with(&current))
            })
        },
    );
    pair.standby.promote();
    assert_eq!(
        pair.standby
            .sql("SELECT count(*) || ' up to ' || max(id) FROM story.commits"),
        "21 up to 20",
        "commits that were acknowledged are lost; the archive answered:\n{}",
        fs::read_to_string(&answers).unwrap_or_default()
    );
}

/// The repository's file system goes away under the receiver, and the mount point is there still.
fn unmounted(major: u32) {
    let story = Story::begin(major);
    let pair = small_pair(&story);
    let leeward = Leeward::new(&story);
    let mut receiver = leeward.receive(&pair.standby);
    receiver.wait_for_words("Receiving WAL");
    write(&pair.primary, 3);
    let mount = Mount::over(&story);
    wait_durable(&pair);
    mount.exchange();

    let away = Archive::of(&mount.aside, 1);
    let nothing_lost = || {
        assert_empty(&mount.place);
        let (slot, held) = (pair.standby.acknowledged(), held(&away));
        assert!(
            0 < slot && slot <= held,
            "acknowledged {}, and held is WAL up to {}",
            lsn(slot),
            lsn(held)
        );
        assert_eq!(
            pair.standby.sql(&format!(
                "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn > '{}'",
                lsn(held)
            )),
            "0"
        );
    };
    write(&pair.primary, 2);
    let end = pair.primary.written();
    assert!(held(&away) < end);
    receiver.wait_for_words("The store fails");
    wait_until("it is received", PATIENCE, || {
        pair.standby.sql(&format!(
            "SELECT count(*) FROM pg_stat_replication WHERE write_lsn >= '{}'",
            lsn(end)
        )) == "1"
    });
    nothing_lost();
    // More than the receiver takes in meanwhile.
    write(&pair.primary, 10);
    pair.standby.wait_for(&pair.primary);
    assert!(!receiver.has_ended(), "{}", receiver.stderr_so_far());
    nothing_lost();

    mount.exchange();
    receiver.wait_for_words("The store works again");
    write(&pair.primary, 2);
    let end = wait_durable(&pair);
    receiver.signal(Signal::TERM);
    receiver.wait().expect(exit::DONE);
    assert_empty(&mount.aside);
    let archive = Archive::of(&mount.place, 1);
    assert_contiguous(&leeward, &archive, &pair, end);
}

/// The receiver is started while the repository is not mounted, or another one is.
fn elsewhere(major: u32) {
    let story = Story::begin(major);
    let pair = small_pair(&story);
    let leeward = Leeward::new(&story);
    let mut receiver = leeward.receive(&pair.standby);
    receiver.wait_for_words("Receiving WAL");
    write(&pair.primary, 2);
    wait_durable(&pair);
    receiver.signal(Signal::TERM);
    receiver.wait().expect(exit::DONE);
    let slot = pair.standby.acknowledged();
    let mount = Mount::over(&story);
    mount.exchange();

    let refused = || {
        write(&pair.primary, 3);
        leeward
            .receive(&pair.standby)
            .wait()
            .expect(exit::FAILED)
            .expect_words(&[SLOT, "holds nothing of that cluster", "Is it mounted"]);
        assert_eq!(pair.standby.acknowledged(), slot);
    };
    refused();
    assert_empty(&mount.place);
    // A repository, but not this cluster's.
    let file = "leeward.json";
    let copy = mount.place.join(file);
    fs::copy(mount.aside.join(file), &copy).expect("could not copy a file");
    refused();
    fs::remove_file(&copy).expect("could not remove a file");
    assert_empty(&mount.place);

    mount.exchange();
    let mut receiver = leeward.receive(&pair.standby);
    receiver.wait_for_words("Receiving WAL");
    write(&pair.primary, 2);
    let end = wait_durable(&pair);
    receiver.signal(Signal::TERM);
    receiver.wait().expect(exit::DONE);
    let archive = Archive::of(&mount.place, 1);
    assert_contiguous(&leeward, &archive, &pair, end);
}

#[test]
fn confirmed_postgres_15() {
    confirmed(15);
}

#[test]
fn confirmed_postgres_16() {
    confirmed(16);
}

#[test]
fn confirmed_postgres_17() {
    confirmed(17);
}

#[test]
fn confirmed_postgres_18() {
    confirmed(18);
}

#[test]
fn confirmed_postgres_19() {
    confirmed(19);
}

#[test]
fn unmounted_postgres_15() {
    unmounted(15);
}

#[test]
fn unmounted_postgres_16() {
    unmounted(16);
}

#[test]
fn unmounted_postgres_17() {
    unmounted(17);
}

#[test]
fn unmounted_postgres_18() {
    unmounted(18);
}

#[test]
fn unmounted_postgres_19() {
    unmounted(19);
}

#[test]
fn elsewhere_postgres_15() {
    elsewhere(15);
}

#[test]
fn elsewhere_postgres_16() {
    elsewhere(16);
}

#[test]
fn elsewhere_postgres_17() {
    elsewhere(17);
}

#[test]
fn elsewhere_postgres_18() {
    elsewhere(18);
}

#[test]
fn elsewhere_postgres_19() {
    elsewhere(19);
}
