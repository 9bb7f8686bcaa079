//! Root backs up, archives and restores what belongs to the server's user: it works as that user, reads no more than that
//! user may, and leaves nothing that the user cannot use.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use leeward_tests::contents::fingerprint;
use leeward_tests::damage::files_under;
use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::installation::leeward_program;
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::{Leeward, exit};
use leeward_tests::pair::Pair;
use leeward_tests::s3::{S3Server, environment};
use leeward_tests::server::{Server, send};
use leeward_tests::story::{Story, note};
use rustix::process::{Signal, geteuid};

/// Text that only root may read.
const SECRET: &str = "the secret of root, 4711";

/// Root, as the servers' user can ask it for things.
struct Root {
    ask: Sender<Request>,
    done: Receiver<Done>,
}

enum Request {
    /// A shell command.
    Shell(String),
    /// The program under test.
    Leeward(Vec<String>),
    /// The program under test, ended as soon as it works as another user.
    Receive(Vec<String>),
}

/// The exit code and what was printed for people.
struct Done(Option<i32>, String);

impl Done {
    #[track_caller]
    fn expect(self, code: i32, words: &[&str]) -> String {
        assert_eq!(self.0, Some(code), "{}", self.1);
        for word in words {
            assert!(self.1.contains(word), "\"{word}\" is not in: {}", self.1);
        }
        self.1
    }
}

impl Root {
    fn request(&self, request: Request) -> Done {
        self.ask.send(request).expect("root listens");
        self.done.recv().expect("root has done it")
    }

    #[track_caller]
    fn shell(&self, command: &str) {
        self.request(Request::Shell(command.to_owned()))
            .expect(0, &[]);
    }

    fn leeward(&self, args: &[&str]) -> Done {
        self.request(Request::Leeward(owned(args)))
    }

    /// Runs what a message says that root should run.
    #[track_caller]
    fn follow(&self, message: &str) {
        let (_, command) = message.split_once("Run as root: ").expect("a command");
        self.shell(command.lines().next().expect("a line"));
    }
}

fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn owner(path: &Path) -> (u32, u32) {
    fs::symlink_metadata(path)
        .map(|data| (data.uid(), data.gid()))
        .expect("it is there")
}

#[track_caller]
fn assert_owned(folder: &Path, expected: (u32, u32)) {
    assert_eq!(owner(folder), expected, "{}", folder.display());
    for file in files_under(folder) {
        assert_eq!(owner(&file), expected, "{}", file.display());
    }
}

/// The part of the story that the servers' user tells.
fn servers(major: u32, root: &Root) {
    let story = Story::begin(major);
    let mut pair = Pair::new(&story);
    pair.stop_primary();
    let truth = fingerprint(&pair.standby);
    let standby = &pair.standby;
    let data = standby.data();
    let expected = owner(data);
    assert_ne!(expected.0, 0);

    // Only the server's user may connect: root has to become it first.
    let hba = data.join("pg_hba.conf");
    let rules = fs::read_to_string(&hba).expect("could not read pg_hba.conf");
    fs::write(&hba, "local all postgres peer\n").expect("could not write pg_hba.conf");
    standby.sql("SELECT pg_reload_conf()");

    // Links out of the data directory, to what root alone may read.
    let secrets = story.path("secrets");
    root.shell(&format!(
        "umask 077; mkdir {0}; echo '{SECRET}' >{0}/file",
        text(&secrets)
    ));
    symlink(secrets.join("file"), data.join("notes")).expect("could not link");
    symlink(secrets.join("file"), data.join("base/1/99999")).expect("could not link");
    let repository = story.path("repository");
    let backup = |repository: &Path| {
        let mut args = vec!["backup", "--pgdata", text(data), "--compression", "none"];
        args.extend(["--repository", text(repository)]);
        root.leeward(&args)
    };
    backup(&repository).expect(
        exit::DONE,
        &["\"notes\" is a link", "is not part of the backup"],
    );
    // A configuration that others can write is not root's to follow, whoever wrote it.
    let config = story.path("leeward.toml");
    let settings = format!("[repository]\nurl = '{}'\n", text(&repository));
    fs::write(&config, settings).expect("could not write the configuration");
    for (owner, mode) in [(expected.0, "666"), (4_000_000_001, "644")] {
        let config = text(&config);
        root.shell(&format!("chown {owner} {config}; chmod {mode} {config}"));
        let list = || root.leeward(&["list", "--config", config, "--pgdata", text(data)]);
        let words = "others than root and the server's user can write";
        root.follow(&list().expect(exit::USAGE, &[words]));
        list().expect(exit::DONE, &[]);
    }
    symlink(&secrets, data.join("base/99999")).expect("could not link");
    backup(&repository).expect(exit::FAILED, &["base/99999"]);
    fs::remove_file(data.join("base/99999")).expect("could not remove a link");
    for file in files_under(&repository) {
        let content = fs::read(&file).expect("it belongs to us");
        assert!(
            !content
                .windows(SECRET.len())
                .any(|part| part == SECRET.as_bytes()),
            "{} holds the secret",
            file.display()
        );
    }
    assert_owned(&repository, expected);

    // The server's user goes on with the repository that root began.
    let leeward = Leeward::new(&story);
    let first = leeward.latest().id();
    leeward.back_up(standby, &[]);
    assert_eq!(leeward.listed().len(), 2);
    leeward
        .restore(&first, &story.path("restored-by-user"), &[])
        .expect(exit::DONE);

    // Root is told how to let the server's user write.
    let closed = story.path("root's");
    root.shell(&format!("install -d -m 755 \"{}\"", text(&closed)));
    let elsewhere = closed.join("repository");
    let refused = backup(&elsewhere).expect(exit::FAILED, &["could not create the repository"]);
    root.follow(&refused);
    backup(&elsewhere).expect(exit::DONE, &[]);
    let theirs = Leeward::at(&story, text(&elsewhere));
    let sound = theirs.latest().id();
    backup(&elsewhere).expect(exit::DONE, &[]);
    let shut = theirs.latest().id();
    root.shell(&format!(
        "chown -R root \"{0}\"/main/backups/{shut}; chmod 700 \"{0}\"/main/backups/{shut}",
        text(&elsewhere)
    ));
    // A folder that is closed to the server's user costs only what needs it.
    let listed = theirs.run(&["list"]).expect(exit::DONE);
    let listed = listed.expect_words(&[&shut, "cannot be read"]);
    assert!(listed.stdout.contains(&sound), "{listed}");
    theirs
        .restore("latest", &story.path("beside-a-closed-one"), &[])
        .expect(exit::DONE)
        .expect_words(&[&sound, &shut, "passed over"]);
    let refused = backup(&elsewhere).expect(exit::FAILED, &["could not use", "main/backups/"]);
    root.follow(&refused);
    backup(&elsewhere).expect(exit::DONE, &[]);
    assert_owned(&elsewhere, expected);
    fs::remove_dir_all(story.path("beside-a-closed-one")).expect("could not remove a directory");
    root.shell(&format!("chmod 700 \"{}\"", text(&closed)));
    let refused = backup(&elsewhere).expect(exit::FAILED, &["could not reach the repository"]);
    root.follow(&refused);
    backup(&elsewhere).expect(exit::DONE, &[]);
    root.leeward(&[
        "backup",
        "--pgdata",
        "/root",
        "--repository",
        text(&repository),
    ])
    .expect(exit::USAGE, &["belongs to root"]);

    // Into a bucket.
    let s3 = S3Server::start();
    let variables = environment(&s3.endpoint());
    let variables: String = variables
        .iter()
        .map(|(name, value)| format!("{name}='{value}' "))
        .collect();
    root.shell(&format!(
        "{variables} '{}' backup --pgdata '{}' --repository {}",
        leeward_program().display(),
        text(data),
        s3.repository("as-root")
    ));
    let theirs = Leeward::over(&story, &s3.repository("as-root"), &s3.endpoint());
    assert_eq!(theirs.listed().len(), 1);

    // WAL, pushed, fetched and received by hand.
    let wal = data.join("pg_wal");
    let segment = newest_segment(&wal);
    let pushed = text(&wal).to_owned() + "/" + &segment;
    root.leeward(&["wal", "push", &pushed, "--repository", text(&repository)])
        .expect(exit::DONE, &[]);
    let fetched = wal.join("by_hand");
    root.leeward(&[
        "wal",
        "get",
        &segment,
        text(&fetched),
        "--repository",
        text(&repository),
    ])
    .expect(exit::DONE, &[]);
    assert_eq!(owner(&fetched), expected);
    assert_owned(&wal, expected);
    fs::remove_file(&fetched).expect("it belongs to us");
    fs::write(&hba, rules).expect("could not write pg_hba.conf");
    standby.sql("SELECT pg_reload_conf()");
    let received = root.request(Request::Receive(owned(&[
        "wal",
        "receive",
        "--pgdata",
        text(data),
        "--repository",
        text(&repository),
    ])));
    received.expect(exit::DONE, &[]);
    assert_owned(&repository, expected);

    let to = story.path("restored");
    root.leeward(&[
        "restore",
        &first,
        "--to",
        text(&to),
        "--repository",
        text(&repository),
    ])
    .expect(exit::DONE, &[]);
    assert_owned(&to, expected);
    let backup = Leeward::new(&story).latest();
    let mut restored = Server::over(&story, "restored", &to);
    fs::remove_file(to.join("notes")).expect("it is there");
    restored.set("autovacuum", "off");
    assert_sound(&story, &mut restored, &backup, &truth);
}

fn newest_segment(wal: &Path) -> String {
    let names = fs::read_dir(wal).expect("could not read pg_wal");
    let mut names: Vec<String> = names
        .filter_map(|entry| entry.expect("an entry").file_name().into_string().ok())
        .filter(|name| name.len() == 24)
        .collect();
    // The newest ones are still being written, or are files for WAL to come.
    names.sort();
    names.swap_remove(0)
}

/// Does what it is asked for until nobody asks any more.
fn be_root(asked: &Receiver<Request>, tell: &Sender<Done>) {
    let place = tempfile::tempdir().expect("could not create a directory");
    let (out, err) = (place.path().join("out"), place.path().join("err"));
    let prepared = |program: &OsStr| {
        let file = |path: &PathBuf| File::create(path).expect("could not create a file");
        let mut command = Command::new(program);
        command
            .stdin(Stdio::null())
            .stdout(file(&out))
            .stderr(file(&err))
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    };
    for request in asked {
        let status = match request {
            Request::Shell(text) => prepared("sh".as_ref()).args(["-c", &text]).status(),
            Request::Leeward(args) => prepared(leeward_program().as_ref()).args(args).status(),
            Request::Receive(args) => {
                let mut child = prepared(leeward_program().as_ref())
                    .args(args)
                    .spawn()
                    .expect("could not run the program");
                wait_until("it receives WAL", PATIENCE, || {
                    let ended = matches!(child.try_wait(), Ok(Some(_)));
                    ended || said(&err).contains("Receiving WAL")
                });
                let status = said(&PathBuf::from(format!("/proc/{}/status", child.id())));
                assert!(!status.contains("Uid:\t0\t"), "{status}");
                send(child.id(), Signal::TERM);
                child.wait()
            }
        };
        let code = status.expect("could not run it").code();
        if tell.send(Done(code, said(&err))).is_err() {
            break;
        }
    }
}

fn said(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

fn check(major: u32) {
    if !geteuid().is_root() {
        note("not told here: it takes root");
        return;
    }
    let (ask, asked) = channel();
    let (tell, done) = channel();
    let servers = thread::spawn(move || servers(major, &Root { ask, done }));
    be_root(&asked, &tell);
    if let Err(panic) = servers.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn postgres_15() {
    check(15);
}

#[test]
fn postgres_19() {
    check(19);
}
