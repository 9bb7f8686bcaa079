//! Changes by others to the places of a restore while it runs.

use std::fs;
use std::os::unix::fs::symlink;

use leeward_engine::error::ErrorKind;

use crate::place::{Place, VERSION, refused};

#[test]
fn a_second_restore_keeps_its_hands_off() {
    let place = Place::new();
    let outcome = place.meanwhile(|| {
        refused(place.restore(), ErrorKind::Refused, &["another restore"]);
        refused(
            place.restore_to("restored", "other"),
            ErrorKind::Refused,
            &["another restore"],
        );
        assert!(!place.path("other").exists());
    });
    outcome.expect("the first is not disturbed");
    place.assert_whole("space");
    refused(
        place.restore_to("restored", "other"),
        ErrorKind::Refused,
        &["data directory"],
    );
}

#[test]
fn a_restore_elsewhere_does_not_share_a_tablespace() {
    let place = Place::new();
    let outcome = place.meanwhile(|| {
        let error = refused(
            place.restore_to("elsewhere", "space"),
            ErrorKind::Refused,
            &["unfinished restore", "leeward.restoring-"],
        );
        assert!(error.to_string().contains("space"), "{error}");
    });
    outcome.expect("the first is not disturbed");
    place.assert_whole("space");
}

#[test]
fn a_file_that_comes_to_the_data_directory_is_not_replaced() {
    let place = Place::new();
    let letter = place.path("restored/postgresql.conf");
    let outcome = place.meanwhile(|| fs::write(&letter, "mine").expect("a file"));
    refused(
        outcome,
        ErrorKind::Refused,
        &["postgresql.conf", "while the restore ran"],
    );
    assert_eq!(fs::read_to_string(&letter).expect("read"), "mine");
    place.assert_not_startable();
    refused(place.restore(), ErrorKind::Refused, &["postgresql.conf"]);
    fs::remove_file(&letter).expect("removed");
    place.restore().expect("restored");
    place.assert_whole("space");
}

#[test]
fn a_server_that_comes_to_a_tablespace_keeps_its_rows() {
    let place = Place::new();
    let outcome = place.meanwhile(|| {
        place.move_a_server_into("space");
    });
    refused(
        outcome,
        ErrorKind::Refused,
        &[VERSION, "while the restore ran"],
    );
    let rows = place.path("space").join(VERSION).join("5/30000");
    assert_eq!(fs::read_to_string(rows).expect("read"), "live rows");
    place.assert_not_startable();
}

#[test]
fn directories_replaced_by_links_lead_nowhere() {
    let place = Place::new();
    let victim = place.path("victim");
    fs::create_dir(&victim).expect("made");
    let data = place.path("restored/leeward.restoring/data");
    let outcome = place.meanwhile(|| {
        for name in ["pg_wal", "global", "base/5"] {
            fs::rename(data.join(name), place.path(&name.replace('/', "-"))).expect("moved");
            symlink(&victim, data.join(name)).expect("a link");
        }
        let own = place.own_in("space");
        fs::rename(&own, place.path("own")).expect("moved");
        symlink(&victim, &own).expect("a link");
    });
    outcome.expect_err("it is noticed");
    assert_eq!(fs::read_dir(&victim).expect("read").count(), 0);
    place.assert_not_startable();
}

#[test]
fn the_destination_replaced_by_a_link_leads_nowhere() {
    let place = Place::new();
    let victim = place.path("victim");
    fs::create_dir(&victim).expect("made");
    let outcome = place.meanwhile(|| {
        fs::rename(place.path("restored"), place.path("moved")).expect("moved");
        symlink(&victim, place.path("restored")).expect("a link");
    });
    refused(outcome, ErrorKind::Refused, &["another directory"]);
    assert_eq!(fs::read_dir(&victim).expect("read").count(), 0);
    assert!(!place.path("moved/global/pg_control").exists());
}

#[test]
fn a_link_that_a_person_names_is_followed_once() {
    let place = Place::new();
    fs::create_dir(place.path("real")).expect("made");
    fs::create_dir(place.path("real-space")).expect("made");
    symlink("real", place.path("restored")).expect("a link");
    symlink(place.path("real-space"), place.path("linked-space")).expect("a link");
    place
        .restore_to("restored", "linked-space")
        .expect("restored");
    place.assert_whole("real-space");
    let real = fs::canonicalize(place.path("restored")).expect("a path");
    assert!(real.ends_with("real"));
}

#[test]
fn places_that_are_one_are_told() {
    let place = Place::new();
    fs::create_dir_all(place.path("real/inner")).expect("made");
    symlink("real", place.path("alias")).expect("a link");
    // The tablespace around the data directory, by another name.
    let around = place.restore_to("real/inner", "alias");
    refused(around, ErrorKind::Usage, &["overlaps"]);
    fs::remove_dir(place.path("real/inner")).expect("removed");
    let same = place.restore_to("real", "alias");
    refused(same, ErrorKind::Usage, &["overlaps"]);
    let real = fs::read_dir(place.path("real")).expect("read");
    assert_eq!(real.count(), 0);
}

#[test]
fn a_tablespace_inside_the_data_directory_is_restored_there() {
    let place = Place::new();
    place
        .restore_to("restored", "restored/spaces/one")
        .expect("restored");
    let link = fs::read_link(place.path("restored/pg_tblspc/16400")).expect("a link");
    assert_eq!(link, place.path("restored/spaces/one"));
    assert!(link.join(crate::place::VERSION).join("5/20000").exists());
}
