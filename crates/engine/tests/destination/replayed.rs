//! Tablespaces that replay creates: only WAL names their places, so they are free, or nothing is restored.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use leeward_engine::error::ErrorKind;
use leeward_fixtures::Forged;

use crate::place::{Place, is_root, owner, refused, run_hint};

/// `RM_TBLSPC_ID` (src/include/access/rmgrlist.h).
const RM_TBLSPC: u8 = 5;

/// A backup in whose WAL a tablespace is created at the location that `location` names.
fn with_record(location: impl Fn(&Path) -> String) -> Place {
    Place::of(|backup, folder| create(backup, &location(folder)))
}

/// `xl_tblspc_create_rec` (src/include/commands/tablespace.h).
fn create(backup: &mut Forged, location: &str) {
    let data = [&16_500_u32.to_le_bytes(), location.as_bytes(), &[0][..]].concat();
    backup.set_wal(|wal| {
        wal.filler(5_000);
        wal.record(RM_TBLSPC, 0, 700, &data);
        wal.commit(700, 1_000_000);
    });
}

fn at(name: &'static str) -> impl Fn(&Path) -> String {
    move |folder| folder.join(name).display().to_string()
}

#[test]
fn what_a_server_owns_is_refused() {
    for (name, file) in [
        ("live", "PG_16_202307071/5/1"),
        ("live", "PG_VERSION"),
        ("live", "postmaster.pid"),
        ("live", "letter"),
        ("server/pg_twophase", "../PG_VERSION"),
        ("server/archive_status/new", "../x"),
        ("live-space/PG_17_202406281/new", "5/1"),
    ] {
        let place = with_record(at(name));
        let folder = place.path(name);
        let parent = folder.parent().expect("a parent");
        let found = if name == "server/archive_status/new" {
            parent.to_owned()
        } else {
            folder.join(file)
        };
        fs::create_dir_all(&folder).expect("directories");
        if let Some(parent) = found.parent() {
            fs::create_dir_all(parent).expect("directories");
        }
        if !found.is_dir() {
            fs::write(&found, "live").expect("a file");
        }
        refused(
            place.restore(),
            ErrorKind::Refused,
            &[
                "the restored server would write into",
                "creates tablespace 16500",
                "absent or empty",
            ],
        );
        assert!(!place.path("restored").exists(), "{name}");
        assert!(!place.path("space").exists(), "{name}");
    }
}

#[test]
fn an_absent_one_is_made() {
    let place = with_record(at("new/replayed"));
    if is_root() {
        // Root makes nothing on the word of WAL.
        let error = refused(
            place.restore(),
            ErrorKind::Failed,
            &["new/replayed", "Only WAL names this directory"],
        );
        assert!(!place.path("new").exists());
        fs::create_dir(place.path("new")).expect("made");
        run_hint(&error);
    }
    let outcome = place.restore().expect("restored");
    let made = place.path("new/replayed");
    let mode = fs::metadata(&made)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o700);
    assert_eq!(owner(&made), owner(&place.path("restored")));
    let told = format!("\"{}\" is made for a tablespace", made.display());
    assert!(
        outcome.notes.iter().any(|note| note.starts_with(&told)),
        "{:?}",
        outcome.notes
    );
    place.assert_whole("space");
}

#[test]
fn an_empty_one_of_anothers_is_refused() {
    if !is_root() {
        return;
    }
    let place = with_record(at("replayed"));
    fs::create_dir(place.path("replayed")).expect("made");
    refused(
        place.restore(),
        ErrorKind::Refused,
        &["replayed", "it belongs to user \"root\""],
    );
    assert_eq!(owner(&place.path("replayed")), 0);
    assert!(!place.path("restored").exists());
}

#[test]
fn one_in_the_data_directory_is_made_there() {
    let place = with_record(at("restored/spaces/two"));
    place.restore().expect("restored");
    let made = place.path("restored/spaces/two");
    assert_eq!(fs::read_dir(&made).expect("it is there").count(), 0);
    assert_eq!(owner(&made), owner(&place.path("restored")));
}

#[test]
fn the_restored_servers_own_directories_are_refused() {
    for name in [
        "restored",
        "restored/base",
        "restored/pg_wal/x",
        "restored/leeward.restoring/data",
        "space/inner",
        "restored/../restored/base",
    ] {
        let place = with_record(at(name));
        refused(
            place.restore(),
            ErrorKind::Refused,
            &["the restored server would write into"],
        );
        assert!(!place.path("restored").exists(), "{name}");
    }
    let place = with_record(|_| "relative/path".to_owned());
    refused(
        place.restore(),
        ErrorKind::Refused,
        &["not an absolute path"],
    );
}

#[test]
fn links_are_resolved_before_they_are_judged() {
    let place = with_record(at("alias/new"));
    fs::create_dir_all(place.path("live")).expect("made");
    fs::write(place.path("live/PG_VERSION"), "17\n").expect("a file");
    symlink("live", place.path("alias")).expect("a link");
    refused(
        place.restore(),
        ErrorKind::Refused,
        &["alias/new", "it lies inside the data directory"],
    );
    assert!(!place.path("live/new").exists());
}

/// A tablespace that was created while the backup ran is in the backup and in its WAL.
#[test]
fn one_that_the_backup_has_too_stays_where_it_was() {
    let place = Place::of(|backup, folder| {
        create(backup, &folder.join("space").display().to_string());
    });
    refused(
        place.restore_to("restored", "other"),
        ErrorKind::Usage,
        &["cannot be given", "other"],
    );
    if is_root() {
        fs::create_dir(place.path("space")).expect("made");
        std::os::unix::fs::chown(place.path("space"), Some(65_534), Some(65_534))
            .expect("an owner");
    }
    place
        .restore_with(&place.path("restored"), Vec::new())
        .expect("restored");
    place.assert_whole("space");
}
