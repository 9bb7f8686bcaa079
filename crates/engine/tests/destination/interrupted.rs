//! Repeating a restore that was interrupted: what is proven to be its own is cleared away, nothing else.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use leeward_engine::error::ErrorKind;

use crate::place::{Place, VERSION, refused, run_hint};

#[test]
fn it_is_done_again() {
    let place = Place::new();
    place.interrupt();
    place.assert_not_startable();
    let first = place.own_in("space");
    place.interrupt();
    assert!(!first.exists(), "the first one's was cleared away");
    place.restore().expect("restored");
    place.assert_whole("space");
}

#[test]
fn the_tablespace_may_go_elsewhere_the_second_time() {
    let place = Place::new();
    place.interrupt();
    place.restore_to("restored", "other").expect("restored");
    place.assert_whole("other");
    let left = fs::read_dir(place.path("space")).expect("read").count();
    assert_eq!(left, 0, "what the first one left is gone");
}

#[test]
fn a_server_that_moved_into_the_tablespace_keeps_its_rows() {
    let place = Place::new();
    place.interrupt();
    let rows = place.move_a_server_into("space");
    let error = refused(
        place.restore(),
        ErrorKind::Refused,
        &["space", VERSION, "--tablespace"],
    );
    assert!(error.advice().expect("a hint").contains("another place"));
    assert_eq!(fs::read_to_string(&rows).expect("read"), "live rows");
    assert!(place.own_in("space").exists(), "nothing was touched");

    // As the hint says: elsewhere. What the first one left beside the server's rows goes, the rows stay.
    place.restore_to("restored", "other").expect("restored");
    place.assert_whole("other");
    assert_eq!(fs::read_to_string(&rows).expect("read"), "live rows");
    assert_eq!(fs::read_dir(place.path("space")).expect("read").count(), 1);
}

#[test]
fn a_server_of_another_version_that_moved_in_keeps_its_rows() {
    let place = Place::new();
    place.interrupt();
    let rows = place.path("space/PG_16_202307071/5/30000");
    fs::create_dir_all(rows.parent().expect("a folder")).expect("directories");
    fs::write(&rows, "live rows").expect("a file");
    refused(place.restore(), ErrorKind::Refused, &["PG_16_202307071"]);
    assert_eq!(fs::read_to_string(&rows).expect("read"), "live rows");
}

#[test]
fn a_server_that_moved_into_the_data_directory_keeps_its_rows() {
    let place = Place::new();
    place.interrupt();
    let restored = place.path("restored");
    fs::create_dir_all(restored.join("base/5")).expect("directories");
    fs::write(restored.join("base/5/16384"), "live rows").expect("a file");
    fs::write(restored.join("postmaster.pid"), "1\n").expect("a file");
    refused(place.restore(), ErrorKind::Refused, &["restored", "base"]);
    let rows = fs::read_to_string(restored.join("base/5/16384"));
    assert_eq!(rows.expect("read"), "live rows");
}

#[test]
fn what_somebody_put_there_stays() {
    let place = Place::new();
    place.interrupt();
    let note = place.path("restored/notes.txt");
    fs::write(&note, "mine").expect("a file");
    refused(
        place.restore(),
        ErrorKind::Refused,
        &["notes.txt", "Move that away"],
    );
    assert_eq!(fs::read_to_string(&note).expect("read"), "mine");
    fs::rename(&note, place.path("notes.txt")).expect("moved");
    place.restore().expect("restored");
    place.assert_whole("space");
}

#[test]
fn links_in_what_is_left_are_not_followed() {
    let place = Place::new();
    place.interrupt();
    let victim = place.path("victim");
    fs::create_dir_all(victim.join("5")).expect("directories");
    fs::write(victim.join("5/30000"), "live rows").expect("a file");
    let data = place.path("restored/leeward.restoring/data");
    for link in ["pg_tblspc/16400", "pg_tblspc/relative", "base/6", "log"] {
        symlink(&victim, data.join(link)).expect("a link");
    }
    symlink("victim", place.own_in("space").join("link")).expect("a link");
    place.restore().expect("restored");
    place.assert_whole("space");
    let rows = fs::read_to_string(victim.join("5/30000"));
    assert_eq!(rows.expect("read"), "live rows");
}

#[test]
fn a_link_in_place_of_what_is_left_is_not_followed() {
    let place = Place::new();
    place.interrupt();
    let victim = place.path("victim");
    fs::rename(place.path("restored/leeward.restoring"), &victim).expect("moved");
    symlink(&victim, place.path("restored/leeward.restoring")).expect("a link");
    refused(place.restore(), ErrorKind::Refused, &["leeward.restoring"]);
    assert!(victim.join("data/base/5/16384").exists());
}

#[test]
fn a_link_in_place_of_the_tablespaces_directory_is_not_followed() {
    let place = Place::new();
    place.interrupt();
    let (space, moved) = (place.path("space"), place.path("moved"));
    let own = place.own_in("space");
    fs::rename(&space, &moved).expect("moved");
    symlink(&moved, &space).expect("a link");
    // A person may name a link; the record of the first run does not lead through one.
    place.restore_to("restored", "other").expect("restored");
    place.assert_whole("other");
    assert!(moved.join(own.file_name().expect("a name")).exists());
}

/// A copy of the marks alone, or marks of another kind, prove nothing.
#[test]
fn without_a_record_nothing_is_taken_over() {
    for spoil in [
        |folder: &Path| fs::remove_file(folder.join("restore.json")),
        |folder: &Path| fs::write(folder.join("restore.json"), "{}"),
        |folder: &Path| fs::write(folder.join("restore.json"), [0xff; 100]),
    ] {
        let place = Place::new();
        place.interrupt();
        let folder = place.path("restored/leeward.restoring");
        spoil(&folder).expect("spoiled");
        let error = refused(
            place.restore(),
            ErrorKind::Refused,
            &["leeward.restoring", "rm -rf"],
        );
        assert!(
            folder.join("data/base/5/16384").exists(),
            "nothing was touched"
        );
        // The tablespace's is found in its way then, and named with its own command.
        run_hint(&error);
        let error = refused(
            place.restore(),
            ErrorKind::Refused,
            &["leeward.restoring-", "rm -rf"],
        );
        run_hint(&error);
        place.restore().expect("restored");
        place.assert_whole("space");
    }
}

/// Directories left by versions of the program that wrote no record.
#[test]
fn marks_of_another_kind_prove_nothing() {
    let place = Place::new();
    let restored = place.path("restored");
    fs::create_dir_all(restored.join("global")).expect("directories");
    fs::create_dir_all(restored.join("pg_tblspc")).expect("directories");
    fs::write(restored.join("global/pg_control.restoring"), "x").expect("a file");
    let rows = place.move_a_server_into("space");
    symlink(place.path("space"), restored.join("pg_tblspc/16400")).expect("a link");
    refused(
        place.restore_to("restored", "other"),
        ErrorKind::Refused,
        &["restored"],
    );
    assert!(restored.join("global/pg_control.restoring").exists());
    assert_eq!(fs::read_to_string(rows).expect("read"), "live rows");
}

#[test]
fn one_that_was_interrupted_before_its_record_is_done_again() {
    let place = Place::new();
    place.interrupt();
    let folder = place.path("restored/leeward.restoring");
    fs::remove_dir_all(&folder).expect("removed");
    fs::remove_dir_all(place.own_in("space")).expect("removed");
    // Killed between two steps.
    fs::create_dir(&folder).expect("made");
    if crate::place::is_root() {
        let uid = crate::place::owner(&place.path("restored"));
        std::os::unix::fs::chown(&folder, Some(uid), Some(uid)).expect("an owner");
    }
    place.restore().expect("restored");
    place.assert_whole("space");
}

/// The last steps move everything up. Interrupted among them, the next restore knows what it moved.
#[test]
fn one_that_was_interrupted_while_it_moved_is_done_again() {
    let place = Place::new();
    place.interrupt_among_moves();
    place.move_a_server_into("space");

    // While the server is there it is refused, and nothing is touched.
    refused(place.restore(), ErrorKind::Refused, &[VERSION]);
    assert!(place.path("restored/base/5/16384").exists());
    fs::remove_dir_all(place.path("space").join(VERSION)).expect("the server left");
    place.restore().expect("restored");
    place.assert_whole("space");
}

#[test]
fn something_else_under_the_name_of_what_was_moved_stays() {
    let place = Place::new();
    place.interrupt_among_moves();
    let base = place.path("restored/base");
    fs::rename(&base, place.path("base")).expect("moved");
    fs::create_dir(&base).expect("made");
    fs::write(base.join("letter"), "mine").expect("a file");
    refused(
        place.restore(),
        ErrorKind::Refused,
        &["base", "not of that restore's making"],
    );
    assert_eq!(
        fs::read_to_string(base.join("letter")).expect("read"),
        "mine"
    );
}
