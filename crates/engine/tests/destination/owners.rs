//! Owners of restored files, as root: all belong to the server's user, and root does nothing on a repository's word.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use leeward_engine::error::ErrorKind;

use crate::place::{Place, VERSION, is_root, owner, refused, run_hint};

fn nobody() -> u32 {
    let users = fs::read_to_string("/etc/passwd").expect("users");
    let line = users.lines().find(|line| line.starts_with("nobody:"));
    let id = line.and_then(|line| line.split(':').nth(2));
    id.and_then(|id| id.parse().ok())
        .expect("nobody has a number")
}

fn assert_all_belong_to(path: &Path, uid: u32) {
    assert_eq!(owner(path), uid, "{}", path.display());
    if fs::symlink_metadata(path).expect("it is there").is_dir() {
        for entry in fs::read_dir(path).expect("read") {
            assert_all_belong_to(&entry.expect("an entry").path(), uid);
        }
    }
}

#[test]
fn absent_parents_are_made_and_given() {
    let place = Place::new();
    place
        .restore_to("a/b/restored", "c/d/space")
        .expect("restored");
    let uid = if is_root() {
        nobody()
    } else {
        owner(&place.path("a"))
    };
    for path in ["a", "c"] {
        assert_all_belong_to(&place.path(path), uid);
    }
    for path in ["a", "a/b", "a/b/restored", "c/d/space"] {
        let mode = fs::metadata(place.path(path))
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o700, "{path}");
    }
}

#[test]
fn an_existing_directory_says_whose_it_is() {
    if !is_root() {
        return;
    }
    let place = Place::of(|backup, _| backup.summary.owner.user = None);
    let error = refused(
        place.restore_to("restored", "other"),
        ErrorKind::Refused,
        &["by name", "install -d"],
    );
    assert!(!place.path("restored").exists());
    // As the hint says, with some user.
    let hint = error.advice().expect("a hint").replace("USER", "4242");
    run_hint(&leeward_engine::error::Error::failed("x").hint(hint));
    place.restore_to("restored", "other").expect("restored");
    assert_all_belong_to(&place.path("restored"), 4242);
    assert_all_belong_to(&place.path("other"), 4242);
}

#[test]
fn an_empty_directory_of_roots_is_given() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    for name in ["restored", "space"] {
        fs::create_dir(place.path(name)).expect("made");
        fs::set_permissions(place.path(name), Permissions::from_mode(0o700)).expect("a mode");
    }
    place.restore().expect("restored");
    assert_all_belong_to(&place.path("restored"), nobody());
    assert_all_belong_to(&place.path("space"), nobody());
}

#[test]
fn where_only_the_backup_says_root_has_no_more_rights_than_the_servers_user() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    // The place lies where only root may write: a backup's word is not enough.
    let error = refused(
        place.restore_with(&place.path("restored"), Vec::new()),
        ErrorKind::Failed,
        &["space", "The backup alone names this directory"],
    );
    assert!(!place.path("space").exists());
    // As the hint says.
    let said = error.advice().expect("a hint").to_owned();
    assert!(said.contains("--tablespace"), "{said}");
    place.restore().expect("restored");
    place.assert_whole("space");
}

#[test]
fn an_empty_directory_of_roots_that_only_the_backup_names_stays_roots() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("space")).expect("made");
    let error = refused(
        place.restore_with(&place.path("restored"), Vec::new()),
        ErrorKind::Refused,
        &["it belongs to user \"root\"", "chown"],
    );
    assert_eq!(owner(&place.path("space")), 0);
    assert_eq!(fs::read_dir(place.path("space")).expect("read").count(), 0);
    // The first of the two ways out.
    let hint = error.advice().expect("a hint");
    let begin = hint.find("chown").expect("a command");
    let end = begin + hint[begin..].find(')').expect("its end");
    let status = std::process::Command::new("sh")
        .args(["-ec", &hint[begin..end]])
        .status();
    assert!(status.expect("a shell").success());
    place
        .restore_with(&place.path("restored"), Vec::new())
        .expect("restored");
    place.assert_whole("space");
}

#[test]
fn a_directory_that_the_user_cannot_enter_is_refused() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("closed")).expect("made");
    fs::set_permissions(place.path("closed"), Permissions::from_mode(0o700)).expect("a mode");
    let error = refused(
        place.restore_to("closed/restored", "space"),
        ErrorKind::Refused,
        &["cannot enter", "closed"],
    );
    assert_eq!(fs::read_dir(place.path("closed")).expect("read").count(), 0);
    run_hint(&error);
    place
        .restore_to("closed/restored", "space")
        .expect("restored");
}

#[test]
fn anothers_directory_is_refused() {
    if is_root() {
        // Root takes the directory's owner for the server's user; of a tablespace it does not.
        let place = Place::new();
        fs::create_dir(place.path("space")).expect("made");
        chown(place.path("space"), Some(4243), Some(4243)).expect("an owner");
        refused(
            place.restore(),
            ErrorKind::Refused,
            &["it belongs to user id 4243"],
        );
        assert_eq!(fs::read_dir(place.path("space")).expect("read").count(), 0);
    } else if owner(Path::new("/var/empty")) == 0 {
        let place = Place::new();
        let to = Path::new("/var/empty");
        refused(
            place.restore_with(to, Vec::new()),
            ErrorKind::Refused,
            &["it belongs to"],
        );
    }
}

#[test]
fn nothing_inside_a_server_is_a_place() {
    let place = Place::new();
    for (folder, file) in [
        ("live", Some("PG_VERSION")),
        (&format!("live-space/{VERSION}"), None),
        ("live-wal", Some("archive_status")),
    ] {
        fs::create_dir_all(place.path(folder).join("empty")).expect("made");
        if let Some(file) = file {
            fs::write(place.path(folder).join(file), "17\n").expect("a file");
        }
        for (to, space) in [
            ("restored", "empty"),
            ("restored", "empty/new"),
            ("empty", "other"),
        ] {
            let inside = |name: &str| match name.strip_prefix("empty") {
                Some(rest) => format!("{folder}/empty{rest}"),
                None => name.to_owned(),
            };
            refused(
                place.restore_to(&inside(to), &inside(space)),
                ErrorKind::Refused,
                &["it lies inside"],
            );
        }
        assert_eq!(
            fs::read_dir(place.path(folder).join("empty"))
                .expect("read")
                .count(),
            0
        );
    }
}
