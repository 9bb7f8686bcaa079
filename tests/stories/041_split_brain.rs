//! Two standbys are promoted to the same timeline, at the same LSN, and both are written to. The archive holds the WAL of the
//! one that came first; nothing of the other's is stored behind it, be it pushed or streamed.

use std::fs;

use leeward_tests::archive::{Archive, Kind};
use leeward_tests::dataset;
use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::server::{Initdb, Server};
use leeward_tests::story::Story;
use leeward_tests::timelines::wait_archived;
use leeward_tests::wal::SLOT;
use rustix::process::Signal;

/// Writes rows of a server's own into this many WAL segments, and ends them.
fn write(server: &Server, name: &str, segments: u32) {
    for _ in 0..segments {
        server.sql(&format!(
            "INSERT INTO story.rows SELECT '{name}', count(*) FROM story.rows"
        ));
        server.sql("SELECT pg_switch_wal()");
    }
}

fn rows(server: &Server) -> String {
    server.sql("SELECT server, id FROM story.rows ORDER BY id, server")
}

fn current_segment(server: &Server) -> String {
    server.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
}

/// Receives from a server until it knows that all it has written so far is durable.
fn receive_all(leeward: &Leeward<'_>, server: &Server) {
    let end = server.written();
    let mut running = leeward.receive(server);
    running.wait_for_words("Receiving WAL");
    wait_until("all is durable", PATIENCE, || {
        assert!(!running.has_ended(), "{}", running.stderr_so_far());
        server.acknowledged() >= end
    });
    running.signal(Signal::TERM);
    running.wait().expect(exit::DONE);
}

struct Scene {
    pair: Pair,
    /// The standby that takes over as well, and should not.
    other: Server,
}

impl Scene {
    /// Both standbys have all that the primary wrote.
    fn begin(story: &Story) -> Scene {
        let how = Initdb {
            wal_segment_mib: 1,
            ..Initdb::default()
        };
        let pair = Pair::with(story, &how, |primary| {
            dataset::fill(primary, 1);
            primary.append_config("autovacuum = off\narchive_mode = on");
            primary.sql("CREATE TABLE story.rows AS SELECT 'both' AS server, 0::int8 AS id");
        });
        let mut other = pair.base.cold_copy(story, "other");
        other.follow(&pair.primary);
        other.start();
        wait_until("the other standby streams", PATIENCE, || {
            pair.primary
                .sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")
                == "2"
        });
        other.wait_for(&pair.primary);
        Scene { pair, other }
    }

    /// The primary is gone, and one standby takes over. The name of its first WAL segment.
    fn fail_over(&mut self) -> String {
        self.other.wait_for(&self.pair.primary);
        self.pair.stop_primary();
        let end = self
            .pair
            .standby
            .sql("SELECT pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()");
        wait_until("both standbys have the same", PATIENCE, || {
            self.other
                .sql("SELECT pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()")
                == end
        });
        self.pair.standby.promote();
        let first = current_segment(&self.pair.standby);
        assert!(first.starts_with("00000002"), "{first}");
        first
    }

    /// The other one takes over, too.
    fn split(&self, first: &str) {
        self.other.promote();
        assert_eq!(current_segment(&self.other), first);
        let history = |server: &Server| {
            fs::read(server.data().join("pg_wal/00000002.history")).expect("it is there")
        };
        assert_eq!(history(&self.other), history(&self.pair.standby));
    }
}

fn pushed_and_streamed(major: u32) {
    let story = Story::begin(major);
    let mut scene = Scene::begin(&story);
    let leeward = Leeward::new(&story);
    let archive = Archive::of(&story.path("repository"), 1);
    scene.pair.primary.append_config(&leeward.archiving("on"));
    scene.pair.primary.sql("SELECT pg_reload_conf()");
    leeward.back_up(&scene.pair.standby, &[]);
    wait_archived(&scene.pair.primary);
    let first = scene.fail_over();
    scene.split(&first);
    let (true_one, other) = (&scene.pair.standby, &scene.other);
    write(true_one, "true", 1);
    write(other, "other", 4);

    leeward.push(true_one, &first, &[]).expect(exit::DONE);
    assert!(archive.segments().contains(&first));
    let before = archive.snapshot();

    // The other one has four WAL segments waiting.
    leeward
        .push(other, &first, &[])
        .expect(exit::REFUSED)
        .expect_words(&[&first]);
    assert!(archive.snapshot() == before, "{:?}", archive.objects());
    leeward
        .push(other, "00000002.history", &[])
        .expect(exit::DONE)
        .expect_words(&[&first]);
    assert!(archive.snapshot() == before, "{:?}", archive.objects());

    other.sql(&format!(
        "SELECT pg_create_physical_replication_slot('{SLOT}', true)"
    ));
    let slot = || {
        other.sql(&format!(
            "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
        ))
    };
    let held = slot();
    for _ in 0..2 {
        leeward
            .receive(other)
            .wait()
            .expect(exit::REFUSED)
            .expect_words(&[
                &format!("object \"main/wal/00000002/{first}.zst\""),
                &format!("WAL \"{first}\""),
                "the archive keeps the one that is there",
            ]);
        assert!(archive.snapshot() == before, "{:?}", archive.objects());
        assert_eq!(slot(), held, "the server was told nothing");
    }

    // The true one is not hindered: what it streams follows what it pushed, and the other way round.
    receive_all(&leeward, true_one);
    write(true_one, "true", 2);
    true_one.append_config(&leeward.archiving("on"));
    true_one.sql("SELECT pg_reload_conf()");
    wait_archived(true_one);
    // With the last whole WAL segment gone from its directory there is nothing to compare, and nothing lost.
    let last = archive.segments().pop_last().expect("there are some");
    true_one.sql("CHECKPOINT");
    fs::remove_file(true_one.data().join("pg_wal").join(&last)).expect("it is there");
    true_one.sql("INSERT INTO story.rows SELECT 'true', count(*) FROM story.rows");
    receive_all(&leeward, true_one);
    let gap = archive
        .objects()
        .into_iter()
        .find(|object| matches!(object.kind, Kind::Gap(..)));
    assert!(gap.is_none(), "{gap:?}");
    archive.assert_whole(&[true_one.data(), scene.pair.primary.data()]);

    let truth = rows(true_one);
    assert!(!truth.contains("other") && truth.lines().count() == 5);
    let mut restored = leeward.restored_to("restored", &[]);
    restored.set("archive_mode", "off");
    restored.start();
    wait_until("recovery ends", PATIENCE, || !restored.in_recovery());
    assert_eq!(rows(&restored), truth);
}

/// A receiver that follows its server onto the new timeline finds that somebody else is there already.
fn followed(major: u32) {
    let story = Story::begin(major);
    let mut scene = Scene::begin(&story);
    let leeward = Leeward::new(&story);
    let archive = Archive::of(&story.path("repository"), 1);
    let mut running = leeward.receive(&scene.other);
    running.wait_for_words("Receiving WAL");
    let first = scene.fail_over();
    write(&scene.pair.standby, "true", 1);
    leeward
        .push(&scene.pair.standby, &first, &[])
        .expect(exit::DONE);
    let of_it = || {
        let mut objects = archive.snapshot();
        objects.retain(|path, _| path.to_str().is_some_and(|path| path.contains("00000002")));
        objects
    };
    let before = of_it();
    scene.split(&first);
    write(&scene.other, "other", 3);
    running
        .wait()
        .expect(exit::REFUSED)
        .expect_words(&["Timeline 2 follows", &first]);
    assert!(of_it() == before, "{:?}", archive.objects());
    receive_all(&leeward, &scene.pair.standby);
    archive.assert_whole(&[scene.pair.standby.data(), scene.pair.primary.data()]);
}

#[test]
fn pushed_and_streamed_postgres_15() {
    pushed_and_streamed(15);
}

#[test]
fn pushed_and_streamed_postgres_16() {
    pushed_and_streamed(16);
}

#[test]
fn pushed_and_streamed_postgres_17() {
    pushed_and_streamed(17);
}

#[test]
fn pushed_and_streamed_postgres_18() {
    pushed_and_streamed(18);
}

#[test]
fn pushed_and_streamed_postgres_19() {
    pushed_and_streamed(19);
}

#[test]
fn followed_postgres_15() {
    followed(15);
}

#[test]
fn followed_postgres_16() {
    followed(16);
}

#[test]
fn followed_postgres_17() {
    followed(17);
}

#[test]
fn followed_postgres_18() {
    followed(18);
}

#[test]
fn followed_postgres_19() {
    followed(19);
}
