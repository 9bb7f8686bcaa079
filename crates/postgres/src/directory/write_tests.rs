use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::directory::tests::{Scene, name};

impl Scene {
    fn victim_is_untouched(&self) {
        let victim = self.folder.path().join("victim");
        assert_eq!(fs::read_dir(&victim).expect("it is there").count(), 1);
        let letter = fs::read_to_string(victim.join("letter"));
        assert_eq!(letter.expect("it is there"), "mine");
    }
}

#[test]
fn no_link_is_followed() {
    let scene = Scene::new();
    let inside = &scene.inside;
    assert!(inside.open_directory(name("away")).is_err());
    assert!(inside.open_unless_mounted(name("away")).is_err());
    assert!(inside.open_path(Path::new("away")).is_err());
    assert!(inside.open_file(name("letter")).is_err());
    assert!(inside.open_to_write(name("letter")).is_err());
    assert!(inside.open_or_create(name("letter"), 0o600).is_err());
    assert!(inside.open_or_create(name("dangling"), 0o600).is_err());
    assert!(inside.create(name("dangling"), 0o600).is_err());
    assert!(inside.make_directory(name("dangling"), 0o700).is_err());
    let path = scene.folder.path().join("inside/away");
    assert!(Directory::open(&path).is_err());
    assert!(Directory::open(&path.join("deeper")).is_err());
    let facts = inside.look(name("letter")).expect("a look");
    assert!(facts.expect("it is there").is_link());
    scene.victim_is_untouched();
}

#[test]
fn only_single_names_are_taken() {
    let scene = Scene::new();
    for bad in ["", ".", "..", "a/b", "/etc", "../victim", "a\0b"] {
        let bad = name(bad);
        let inside = &scene.inside;
        assert!(inside.open_directory(bad).is_err(), "{bad:?}");
        assert!(inside.make_directory(bad, 0o700).is_err(), "{bad:?}");
        assert!(inside.create(bad, 0o600).is_err(), "{bad:?}");
        assert!(inside.make_link(Path::new("x"), bad).is_err(), "{bad:?}");
        assert!(inside.remove_all(bad).is_err(), "{bad:?}");
        assert!(
            inside.move_to(name("letter"), inside, bad).is_err(),
            "{bad:?}"
        );
    }
    for bad in ["..", "/etc", "a/../../victim", "./../victim"] {
        assert!(scene.inside.open_path(Path::new(bad)).is_err(), "{bad}");
    }
    assert!(Directory::open(Path::new("relative")).is_err());
    assert!(Directory::open(Path::new("/tmp/../etc")).is_err());
    scene.victim_is_untouched();
}

#[test]
fn what_is_removed_ends_at_links() {
    let scene = Scene::new();
    let path = scene.folder.path().join("inside");
    fs::create_dir_all(path.join("tree/a/b")).expect("directories");
    fs::write(path.join("tree/a/b/file"), "x").expect("a file");
    symlink("../../../victim", path.join("tree/a/out")).expect("a link");
    let whole = scene.inside.open_directory(name("tree"));
    drop(whole.expect("a directory"));
    scene
        .inside
        .remove_all(name("tree"))
        .expect("it is removed");
    assert!(!path.join("tree").exists());
    scene.inside.remove_all(name("tree")).expect("none is fine");
    scene.inside.remove_all(name("away")).expect("the link");
    scene.victim_is_untouched();
}

#[test]
fn nothing_is_replaced_by_a_move() {
    let scene = Scene::new();
    let path = scene.folder.path().join("inside");
    let inside = &scene.inside;
    inside.make_directory(name("from"), 0o700).expect("made");
    let from = inside.open_directory(name("from")).expect("opened");
    for file in ["one", "dangling", "two"] {
        fs::write(path.join("from").join(file), file).expect("a file");
    }
    fs::write(path.join("one"), "another").expect("a file");
    for taken in ["one", "dangling"] {
        let moved = from.move_to(name(taken), inside, name(taken));
        let kind = moved.expect_err("it is taken").kind();
        assert_eq!(kind, io::ErrorKind::AlreadyExists, "{taken}");
    }
    assert_eq!(
        fs::read_to_string(path.join("one")).expect("it is there"),
        "another"
    );
    from.move_to(name("two"), inside, name("two"))
        .expect("it is free");
    assert_eq!(
        fs::read_to_string(path.join("two")).expect("it is there"),
        "two"
    );
    scene.victim_is_untouched();
}

#[test]
fn another_of_the_same_name_is_told() {
    let scene = Scene::new();
    let inside = &scene.inside;
    let identity = |of: &str| inside.identity(name(of)).expect("a look");
    inside.make_directory(name("a"), 0o700).expect("a is made");
    let first = identity("a").expect("it is there");
    assert_eq!(identity("a"), Some(first));
    inside.replace(name("a"), name("b")).expect("renamed");
    assert_eq!(identity("b"), Some(first));
    inside.make_directory(name("a"), 0o700).expect("a is made");
    assert_ne!(identity("a"), Some(first));
    assert_eq!(identity("none"), None);
}
