use std::fs;
use std::os::unix::fs::symlink;

use super::*;

pub(super) fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

/// A directory of links and files, beside a victim that no call may touch.
pub(super) struct Scene {
    pub(super) folder: tempfile::TempDir,
    pub(super) inside: Directory,
}

impl Scene {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path();
        fs::create_dir_all(path.join("inside/deep")).expect("a directory");
        fs::create_dir(path.join("victim")).expect("a directory");
        fs::write(path.join("inside/deep/file"), "deep").expect("a file");
        fs::write(path.join("victim/letter"), "mine").expect("a file");
        symlink("../victim", path.join("inside/away")).expect("a link");
        symlink("../victim/letter", path.join("inside/letter")).expect("a link");
        symlink("../victim/new", path.join("inside/dangling")).expect("a link");
        let inside = Directory::open(&fs::canonicalize(path.join("inside")).expect("a path"));
        Self {
            inside: inside.expect("a directory"),
            folder,
        }
    }

    fn victim(&self) -> Directory {
        let path = fs::canonicalize(self.folder.path().join("victim")).expect("a path");
        Directory::open(&path).expect("opened")
    }
}

#[test]
fn no_link_is_followed() {
    let scene = Scene::new();
    let inside = &scene.inside;
    assert!(inside.open_directory(name("away")).is_err());
    assert!(inside.open_path(Path::new("away")).is_err());
    assert!(inside.open_file(name("letter")).is_err());
    assert!(inside.read(name("letter"), 100).is_err());
    let path = scene.folder.path().join("inside/away");
    assert!(Directory::open(&path).is_err());
    assert!(Directory::open(&path.join("deeper")).is_err());
    let facts = inside.look(name("letter")).expect("a look");
    assert!(facts.expect("it is there").is_link());
}

#[test]
fn a_link_is_followed_where_that_is_asked_for() {
    let scene = Scene::new();
    let inside = &scene.inside;
    let letter = inside.open_linked_file(name("letter")).expect("opened");
    assert_eq!(read_limited(letter, 4).expect("read"), b"mine");
    let away = inside.open_linked_directory(name("away")).expect("opened");
    assert_eq!(away.read(name("letter"), 4).expect("read"), b"mine");
    let facts = inside.look_behind(name("letter")).expect("a look");
    assert!(facts.is_file());
    assert!(inside.look_behind(name("dangling")).is_err());
    assert_eq!(
        inside.read_link(name("letter")).expect("a link"),
        Path::new("../victim/letter")
    );
}

#[test]
fn only_single_names_are_taken() {
    let scene = Scene::new();
    let inside = &scene.inside;
    for bad in [
        "",
        ".",
        "..",
        "a/b",
        "/etc",
        "../victim",
        "away/letter",
        "a\0b",
    ] {
        let bad = name(bad);
        assert!(inside.open_directory(bad).is_err(), "{bad:?}");
        assert!(inside.open_linked_directory(bad).is_err(), "{bad:?}");
        assert!(inside.open_file(bad).is_err(), "{bad:?}");
        assert!(inside.open_linked_file(bad).is_err(), "{bad:?}");
        assert!(inside.look(bad).is_err(), "{bad:?}");
        assert!(inside.look_behind(bad).is_err(), "{bad:?}");
    }
    for bad in ["..", "/etc", "deep/../../victim", "./../victim"] {
        assert!(inside.open_path(Path::new(bad)).is_err(), "{bad}");
    }
    assert!(inside.open_path(Path::new("deep")).is_ok());
    assert!(Directory::open(Path::new("relative")).is_err());
    assert!(Directory::open(Path::new("/tmp/../etc")).is_err());
}

#[test]
fn a_pipe_is_refused_instead_of_waited_for() {
    let scene = Scene::new();
    let pipe = scene.folder.path().join("inside/pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::from_raw_mode(0o600)).expect("a pipe");
    symlink("pipe", scene.folder.path().join("inside/to_pipe")).expect("a link");
    assert!(scene.inside.open_file(name("pipe")).is_err());
    assert!(scene.inside.open_linked_file(name("to_pipe")).is_err());
    assert!(read_file(&pipe, 100).is_err());
}

#[test]
fn a_file_that_is_read_has_a_limit() {
    let scene = Scene::new();
    let victim = scene.victim();
    assert_eq!(victim.read(name("letter"), 4).expect("read"), b"mine");
    let error = victim.read(name("letter"), 3).expect_err("too long");
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
}

#[test]
fn a_handle_stays_where_it_was_opened() {
    let scene = Scene::new();
    let path = scene.folder.path();
    let victim = scene.victim();
    fs::rename(path.join("victim"), path.join("moved")).expect("moved");
    symlink("inside", path.join("victim")).expect("a link");
    assert_eq!(victim.read(name("letter"), 4).expect("read"), b"mine");
}

/// Two files under the names that they have until they are whole.
fn unnamed() -> (Scene, [(&'static OsStr, &'static OsStr); 2]) {
    let scene = Scene::new();
    for half in ["one.partial", "two.partial"] {
        fs::write(scene.folder.path().join("inside").join(half), half).expect("a file");
    }
    let names = [("one.partial", "one"), ("two.partial", "two")];
    (scene, names.map(|(half, whole)| (name(half), name(whole))))
}

/// Which of the names are there.
fn there(scene: &Scene) -> Vec<&'static str> {
    ["one.partial", "two.partial", "one", "two"]
        .into_iter()
        .filter(|found| scene.inside.look(name(found)).expect("looked").is_some())
        .collect()
}

#[test]
fn files_get_their_names_together() {
    let (scene, names) = unnamed();
    scene.inside.name_files(&names).expect("named");
    assert_eq!(there(&scene), ["one", "two"]);
}

#[test]
fn a_name_that_is_taken_takes_back_the_others() {
    let (scene, names) = unnamed();
    fs::write(scene.folder.path().join("inside/two"), "mine").expect("a file");
    let error = scene.inside.name_files(&names).expect_err("taken");
    assert_eq!(error.source.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(error.refused.as_deref(), Some(name("two")));
    assert!(error.left.is_empty());
    assert_eq!(there(&scene), ["one.partial", "two.partial", "two"]);
    assert_eq!(scene.inside.read(name("two"), 4).expect("read"), b"mine");
}

#[test]
fn names_that_cannot_be_made_durable_are_taken_back() {
    let (scene, names) = unnamed();
    let broken = |_: &Directory| Err(Errno::IO.into());
    let error = scene
        .inside
        .name_files_and(&names, broken)
        .expect_err("no sync");
    assert_eq!((error.refused, error.left), (None, Vec::new()));
    assert_eq!(error.source.raw_os_error(), Some(Errno::IO.raw_os_error()));
    assert_eq!(there(&scene), ["one.partial", "two.partial"]);
    scene.inside.name_files(&names).expect("named now");
}

#[test]
fn names_that_cannot_be_taken_back_are_told() {
    let (scene, names) = unnamed();
    let broken = |_: &Directory| {
        // Somebody begins anew meanwhile.
        fs::write(scene.folder.path().join("inside/one.partial"), "new").expect("a file");
        Err(Errno::IO.into())
    };
    let error = scene
        .inside
        .name_files_and(&names, broken)
        .expect_err("no sync");
    assert_eq!(error.left, [name("one")]);
    assert_eq!(there(&scene), ["one.partial", "two.partial", "one"]);
}
