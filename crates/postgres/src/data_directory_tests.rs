use super::*;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::server_user::{ServerUser, is_root};

/// A control file of PostgreSQL 17, and what it names each cluster's own directory in a tablespace.
const CONTROL_FILE: &[u8] = include_bytes!("../../pgformat/tests/golden/17/pg_control.standby");

/// A data directory in a place of its own, where other things may lie too.
struct Cluster {
    place: tempfile::TempDir,
    version_directory: String,
}

impl Cluster {
    fn new() -> Self {
        let cluster = Self {
            place: tempfile::tempdir().expect("a directory"),
            version_directory: ControlFile::parse(CONTROL_FILE)
                .expect("a control file")
                .tablespace_version_directory()
                .to_string(),
        };
        cluster.write("data/PG_VERSION", b"17\n");
        cluster.write("data/global/pg_control", CONTROL_FILE);
        cluster.write("data/base/5/1259", b"pages");
        cluster.write("data/base/5/PG_VERSION", b"17\n");
        cluster.directory("data/pg_tblspc");
        cluster
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.place.path().join(inside)
    }

    fn write(&self, inside: &str, content: &[u8]) {
        let path = self.path(inside);
        fs::create_dir_all(path.parent().expect("has a parent")).expect("made");
        fs::write(path, content).expect("written");
    }

    fn directory(&self, inside: &str) {
        fs::create_dir_all(self.path(inside)).expect("made");
    }

    fn link(&self, inside: &str, target: &str) {
        symlink(self.path(target), self.path(inside)).expect("linked");
    }

    fn open(&self) -> DataDirectory {
        DataDirectory::open(&self.path("data")).expect("a data directory")
    }

    /// Everything that both passes visit: the content of files, the target of links, and "" for directories.
    fn walk(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for entry in walk(&self.open(), &[Pass::Relations, Pass::EverythingElse]) {
            let what = match &entry.kind {
                EntryKind::Directory => String::new(),
                EntryKind::Symlink { target } => format!("-> {}", self.shortened(target)),
                EntryKind::File { .. } => content(&entry.place),
            };
            let earlier = found.insert(entry.path.display().to_string(), what);
            assert_eq!(earlier, None, "\"{}\" was met twice", entry.path.display());
        }
        found
    }

    fn shortened(&self, target: &Path) -> String {
        let inside = target.strip_prefix(self.place.path()).unwrap_or(target);
        inside.display().to_string()
    }
}

fn walk(directory: &DataDirectory, passes: &[Pass]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for pass in passes {
        directory
            .walk(*pass, &mut |entry| {
                entries.push(entry);
                true
            })
            .expect("walked");
    }
    entries
}

fn content(place: &Place) -> String {
    let file = SourceFile::open(place).expect("opened").expect("there");
    let mut bytes = [0; 100];
    let length = file.read_at(&mut bytes, 0).expect("read");
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

fn expect(found: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    for (path, what) in expected {
        let found = found.get(*path).map(String::as_str);
        assert_eq!(found, Some(*what), "{path}");
    }
}

#[test]
fn links_of_the_servers_own_lead_to_what_they_stand_for() {
    let cluster = Cluster::new();
    cluster.write("disk/16384/1259", b"moved pages");
    cluster.write("disk/16384/PG_VERSION", b"17\n");
    cluster.link("data/base/16384", "disk/16384");
    cluster.write("disk/xact/0000", b"status");
    cluster.link("data/pg_xact", "disk/xact");
    cluster.write("disk/24576.1", b"a segment alone");
    cluster.link("data/base/5/24576.1", "disk/24576.1");
    cluster.write("etc/postgresql.conf", b"port = 5433");
    cluster.link("data/postgresql.conf", "etc/postgresql.conf");
    expect(
        &cluster.walk(),
        &[
            ("base/16384", ""),
            ("base/16384/1259", "moved pages"),
            ("base/16384/PG_VERSION", "17\n"),
            ("pg_xact", ""),
            ("pg_xact/0000", "status"),
            ("base/5/24576.1", "a segment alone"),
            ("postgresql.conf", "port = 5433"),
        ],
    );
}

#[test]
fn other_directories_that_are_links_stay_links() {
    let cluster = Cluster::new();
    cluster.write("home/secret", b"nothing of the server's");
    for link in ["data/log", "data/base/5/backup", "data/base/x"] {
        cluster.link(link, "home");
    }
    cluster.link("data/base/5/up", "data");
    let found = cluster.walk();
    expect(
        &found,
        &[
            ("log", "-> home"),
            ("base/5/backup", "-> home"),
            ("base/x", "-> home"),
            ("base/5/up", "-> data"),
        ],
    );
    assert!(!found.keys().any(|path| path.ends_with("secret")));
}

#[test]
fn links_that_lead_nowhere_stay_links() {
    let cluster = Cluster::new();
    cluster.link("data/loop", "data/loop");
    cluster.link("data/gone", "gone");
    expect(
        &cluster.walk(),
        &[("loop", "-> data/loop"), ("gone", "-> gone")],
    );
}

#[test]
fn what_the_server_may_not_read_is_not_followed() {
    let cluster = Cluster::new();
    cluster.write("closed/file", b"");
    cluster.link("data/file", "closed/file");
    let closed = cluster.path("closed");
    let set_mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode is set");
    };
    set_mode(&closed, 0o000);
    set_mode(cluster.place.path(), 0o755);
    let acting = is_root().then(|| ServerUser::by_number(4_000_000_001, 4_000_000_001).act());
    let found = cluster.walk();
    drop(acting);
    set_mode(&closed, 0o700);
    expect(&found, &[("file", "-> closed/file")]);
}

#[test]
fn a_tablespace_holds_the_clusters_own_directory_and_others() {
    let cluster = Cluster::new();
    let own = cluster.version_directory.clone();
    cluster.write(&format!("disk/{own}/5/16400"), b"ours");
    cluster.write("disk/PG_17_202301011/5/16400", b"of a beta");
    cluster.write("disk/PG_16_202307071/5/16400", b"of 16");
    cluster.link("data/pg_tblspc/16399", "disk");
    cluster.write(&format!("data/pg_tblspc/16500/{own}/5/16501"), b"in place");
    let found = cluster.walk();
    let inside = |path: &str| path.replace("VERSION", &own);
    expect(
        &found,
        &[
            ("pg_tblspc/16399", "-> disk"),
            (&inside("pg_tblspc/16399/VERSION"), ""),
            (&inside("pg_tblspc/16399/VERSION/5/16400"), "ours"),
            ("pg_tblspc/16500", ""),
            (&inside("pg_tblspc/16500/VERSION/5/16501"), "in place"),
        ],
    );
    assert!(!found.values().any(|content| content.starts_with("of ")));
}

#[test]
fn a_tablespace_inside_the_data_directory_is_met_once() {
    let cluster = Cluster::new();
    let own = cluster.version_directory.clone();
    cluster.write(&format!("data/tablespaces/one/{own}/5/16400"), b"pages");
    cluster.link("data/pg_tblspc/16399", "data/tablespaces/one");
    let found = cluster.walk();
    let met: Vec<&String> = found
        .keys()
        .filter(|path| path.ends_with("16400"))
        .collect();
    assert_eq!(met, [&format!("pg_tblspc/16399/{own}/5/16400")]);
    assert!(!found.contains_key("tablespaces/one"));
}

#[test]
fn what_was_found_is_read_where_it_was_found() {
    let cluster = Cluster::new();
    cluster.write("disk/16384/1259", b"pages");
    cluster.link("data/base/16384", "disk/16384");
    let entries = walk(&cluster.open(), &[Pass::Relations]);
    // As a file system that is unmounted from its place.
    fs::rename(cluster.path("disk"), cluster.path("unmounted")).expect("moved");
    fs::rename(cluster.path("data"), cluster.path("renamed")).expect("moved");
    let read: Vec<String> = entries.iter().map(|entry| content(&entry.place)).collect();
    assert_eq!(read, ["pages", "pages"]);
}

#[test]
fn a_file_that_became_a_link_is_not_followed() {
    let cluster = Cluster::new();
    cluster.write("secret", b"secret");
    let entries = walk(&cluster.open(), &[Pass::Relations]);
    fs::remove_file(cluster.path("data/base/5/1259")).expect("removed");
    cluster.link("data/base/5/1259", "secret");
    assert!(SourceFile::open(&entries[0].place).is_err());
    fs::rename(cluster.path("data/base/5"), cluster.path("data/base/6")).expect("moved");
    cluster.write("elsewhere/1259", b"secret");
    cluster.link("data/base/5", "elsewhere");
    assert!(SourceFile::open(&entries[0].place).is_err());
}
