//! What WAL is held, what is missing, and which moments can be recovered to, at one glance.

use std::fs;

use leeward_pgformat::{TimelineHistory, TimelineId};
use leeward_tests::archive::{Archive, Kind, Object};
use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::oracle::address;
use leeward_tests::server::Stop;
use leeward_tests::story::Story;
use leeward_tests::timelines::{Timelines, wait_archived};
use serde_json::Value;

fn listed(leeward: &Leeward<'_>) -> Value {
    leeward
        .run(&["wal", "list", "--json"])
        .expect(exit::DONE)
        .json()
}

fn lsn_of(value: &Value) -> u64 {
    address(value.as_str().unwrap_or_else(|| panic!("no LSN: {value}")))
}

fn check(major: u32) {
    let story = Story::begin(major);
    let leeward = Leeward::new(&story);
    let mut life = Timelines::begin(&story, 1, &leeward.archiving("on"));
    life.oracle.write(10);
    wait_archived(&life.primary);
    let list = listed(&leeward);
    assert_eq!(list["cluster"], "main");
    assert_eq!(
        list["windows"],
        Value::Array(Vec::new()),
        "there is no backup yet"
    );
    assert!(
        leeward
            .run(&["wal", "list"])
            .expect(exit::DONE)
            .stdout
            .contains("Nothing can be recovered")
    );

    let backup = leeward.back_up(life.standby(), &[]);
    life.oracle.write(40);
    wait_archived(&life.primary);
    let last = life.oracle.last().clone();
    let list = listed(&leeward);
    let timeline = &list["timelines"][0];
    assert_eq!(timeline["timeline"], 1);
    assert_eq!(timeline["gaps"], Value::Array(Vec::new()));
    let ranges = timeline["ranges"].as_array().expect("ranges");
    assert_eq!(ranges.len(), 1, "{list:#}");
    let bytes = timeline["plain_bytes"].as_u64().expect("bytes");
    assert_eq!(Some(bytes >> 20), timeline["segments"].as_u64());
    assert!(
        timeline["stored_bytes"]
            .as_u64()
            .is_some_and(|stored| stored > 0 && stored < bytes)
    );
    let window = &list["windows"][0];
    assert_eq!(window["backup"], backup.id());
    assert_eq!(window["from_lsn"], backup.stop_lsn());
    assert!(lsn_of(&window["to_lsn"]) >= last.after);
    // The last moment is the last commit's, to the microsecond.
    let told = window["to_time"]
        .as_str()
        .expect("a time")
        .replace('T', " ");
    let truth = last.committed.replace("+00", "");
    assert_eq!(
        told.trim_end_matches(['Z', '0', '.']),
        truth.trim_end_matches(['Z', '0', '.'])
    );
    let text = leeward.run(&["wal", "list"]).expect(exit::DONE).stdout;
    assert!(
        text.contains("any moment from") && text.contains("ago"),
        "{text}"
    );
    assert!(
        !text.contains("MISSING") && !text.contains('\x1b'),
        "{text}"
    );

    // A segment goes missing in the middle.
    let archive = Archive::of(&story.path("repository"), 1);
    let mut segments: Vec<Object> = archive
        .objects()
        .into_iter()
        .filter(|object| matches!(object.kind, Kind::Segment(_)))
        .collect();
    segments.sort_by_key(|object| object.path.clone());
    let gone = &segments[segments.len() - 3];
    let Kind::Segment(name) = &gone.kind else {
        unreachable!("only segments are left");
    };
    let aside = story.path("aside");
    fs::rename(&gone.path, &aside).expect("could not move a segment away");
    let list = listed(&leeward);
    let gap = &list["timelines"][0]["gaps"][0];
    assert_eq!(gap["first_segment"], name.as_str());
    assert_eq!(gap["last_segment"], name.as_str());
    assert_eq!(gap["in_backups"], false);
    assert_eq!(list["windows"][0]["to_lsn"], gap["begin"]);
    let text = leeward.run(&["wal", "list"]).expect(exit::DONE).stdout;
    assert!(text.contains(&format!("MISSING: {name}")), "{text}");
    fs::rename(&aside, &gone.path).expect("could not move a segment back");

    // The segment that is being filled comes in pieces.
    let receive = leeward.receive(life.standby());
    life.oracle.write(3);
    let end = life.oracle.last().after;
    wait_until("the pieces are listed", PATIENCE, || {
        let list = listed(&leeward);
        let ranges = list["timelines"][0]["ranges"]
            .as_array()
            .expect("ranges")
            .clone();
        let tail = ranges.last().expect("a range");
        lsn_of(&tail["end"]) >= end && (tail["pieces_from"].is_string() || ranges.len() == 1)
    });
    assert!(lsn_of(&listed(&leeward)["windows"][0]["to_lsn"]) >= end);
    receive.kill();

    // After a failover there are two timelines, and one way leads through both.
    life.fail_over(Stop::Fast);
    life.oracle.write(10);
    wait_archived(&life.primary);
    let list = listed(&leeward);
    let second = &list["timelines"][1];
    assert_eq!(
        (&second["timeline"], &second["parent"]),
        (&2.into(), &1.into())
    );
    let history = fs::read(life.primary.data().join("pg_wal/00000002.history"))
        .expect("could not read a history file");
    let history = TimelineHistory::parse(&history, TimelineId(2)).expect("a history");
    let left = second["left_parent_at"].as_str().expect("an LSN");
    assert_eq!(history.entries[0].switch_lsn.to_string(), left);
    // What lies on one timeline only is looked for on the others, too.
    let point = &life.oracle.last().point;
    let to = story.path("refused");
    let to = to.to_str().expect("a path in UTF-8");
    leeward
        .run(&[
            "restore",
            "--to",
            to,
            "--target-name",
            point,
            "--target-timeline",
            "1",
        ])
        .expect(exit::FAILED)
        .expect_words(&[
            "on the way to timeline 1",
            "Timeline 2 leads there: --target-timeline 2.",
        ]);

    let windows = list["windows"].as_array().expect("windows");
    let newest = windows.last().expect("a window");
    assert_eq!(
        (&newest["timeline"], &newest["backup"]),
        (&2.into(), &backup.id().into())
    );
    assert!(lsn_of(&newest["to_lsn"]) >= life.oracle.last().after);
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
