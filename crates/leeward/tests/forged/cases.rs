//! The forged repositories: what each says that no backup says.

use std::path::Path;

use leeward_fixtures::{Forged, ForgedRecord as Record, ForgedRun, ForgedWal};
use leeward_pgformat::{Lsn, Oid, TimelineId, WalContents};
use leeward_repository::summary::{ConfigurationSummary, TablespaceSummary};

/// The right outcome of a restore from a forged repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It refuses.
    Refused,
    /// Root refuses; the server's user may restore it.
    RefusedAsRoot,
    /// It may succeed. In any case it does no harm.
    Harmless,
}

/// A forged repository.
pub struct Case {
    /// The forgery, in words.
    pub name: &'static str,
    pub expected: Expected,
    /// Makes it. The folder holds what it may not touch.
    pub forge: fn(&mut Forged, &Path),
}

const fn case(name: &'static str, expected: Expected, forge: fn(&mut Forged, &Path)) -> Case {
    Case {
        name,
        expected,
        forge,
    }
}

const fn refused(name: &'static str, forge: fn(&mut Forged, &Path)) -> Case {
    case(name, Expected::Refused, forge)
}

const fn harmless(name: &'static str, forge: fn(&mut Forged, &Path)) -> Case {
    case(name, Expected::Harmless, forge)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn run(file_offset: u64, length: u64) -> ForgedRun {
    ForgedRun {
        file_offset,
        length,
        ..ForgedRun::default()
    }
}

/// A file of these runs, whatever the frames hold.
fn of_runs(path: &str, size: u64, runs: Vec<ForgedRun>) -> Record {
    let mut record = Record::file(path, b"");
    record.size = size;
    record.runs = Some(runs);
    record
}

fn wal(name: &str) -> ForgedWal {
    ForgedWal {
        name: name.as_bytes().to_vec(),
        content: vec![1; 8192],
        contents: None,
    }
}

/// WAL with a record that creates a tablespace (`xl_tblspc_create_rec`, src/include/commands/tablespace.h).
fn create_tablespace(forged: &mut Forged, location: &str) {
    const RM_TBLSPC: u8 = 5;
    let data = [&16_500_u32.to_le_bytes(), location.as_bytes(), &[0][..]].concat();
    forged.set_wal(|wal| {
        // The first is the checkpoint's, which is not replayed.
        wal.filler(5_000);
        wal.record(RM_TBLSPC, 0, 700, &data);
        wal.commit(700, 1_000_000);
    });
}

/// Makes a setting the last line of `postgresql.conf`.
fn configure(forged: &mut Forged, line: &str) {
    forged.remove("postgresql.conf");
    let text = format!("port = 5432\n{line}\n");
    forged.add([Record::file("postgresql.conf", text.as_bytes())]);
}

pub const CASES: &[Case] = &[
    // Names.
    refused("a name that goes up", |f, _| {
        f.add([Record::file("../victim/new", b"x")])
    }),
    refused("a name that goes up further in", |f, _| {
        f.add([Record::file("base/../../victim/new", b"x")]);
    }),
    refused("an absolute name", |f, w| {
        f.add([Record::file(text(&w.join("victim/new")), b"x")]);
    }),
    refused("an empty component", |f, _| {
        f.add([Record::file("base//new", b"x")])
    }),
    refused("a slash at the end", |f, _| {
        f.add([Record::directory("base/6/")])
    }),
    refused("a dot", |f, _| f.add([Record::file("base/./new", b"x")])),
    refused("only dots", |f, _| f.add([Record::directory("..")])),
    refused("a NUL byte", |f, _| {
        f.add([Record::file(*b"base/a\0b", b"x")])
    }),
    refused("a file in place of the data directory", |f, _| {
        f.add([Record::file("", b"x")])
    }),
    refused("a link in place of the data directory", |f, w| {
        f.add([Record::link("", text(&w.join("victim")))]);
    }),
    refused("a path longer than paths are", |f, _| {
        f.add([Record::file("a/".repeat(40) + &"b".repeat(8000), b"x")]);
    }),
    refused("a path deeper than directories are", |f, _| {
        f.add([Record::file("a/".repeat(2000) + "b", b"x")]);
    }),
    refused("a name longer than names are", |f, _| {
        f.add([Record::file("b".repeat(300), b"x")])
    }),
    refused("configuration that goes up", |f, _| {
        f.add([Record::file("../../victim/new", b"x").configuration()]);
    }),
    harmless("a name of bytes that are no text", |f, _| {
        f.add([Record::file(*b"\xff\xfe\x1b[31m\n", b"x")]);
    }),
    harmless("a name that looks like an option", |f, _| {
        f.add([Record::file("--checkpoint-action=exec=sh", b"x")])
    }),
    // Kinds.
    refused("pg_wal as a file", |f, _| {
        f.remove("pg_wal");
        f.add([Record::file("pg_wal", b"x")]);
    }),
    refused("global as a file", |f, _| {
        f.remove("global");
        f.add([Record::file("global", b"x")]);
    }),
    refused("a file where a directory is", |f, _| {
        f.add([Record::file("base", b"x")])
    }),
    refused("a directory where a file is", |f, _| {
        f.add([Record::directory("PG_VERSION")])
    }),
    refused("a file below a file", |f, _| {
        f.add([Record::file("PG_VERSION/new", b"x")])
    }),
    refused("two files of one name", |f, _| {
        f.add([Record::file("PG_VERSION", b"16\n")])
    }),
    refused("two files of one name in the manifest itself", |f, _| {
        f.add([Record::inline("one", b"1"), Record::inline("one", b"2")]);
    }),
    harmless("two labels", |f, _| {
        f.add([Record::inline("backup_label", b"other")])
    }),
    harmless("two control files", |f, _| {
        f.add([Record::inline("global/pg_control", &[3; 8192])]);
    }),
    harmless("a control file in a frame", |f, _| {
        f.add([Record::file("global/pg_control", &[3; 8192])]);
    }),
    refused("no control file", |f, _| f.remove("global/pg_control")),
    refused("no label", |f, _| f.remove("backup_label")),
    // Links.
    refused("a record below a link", |f, w| {
        f.add([
            Record::link("conf", text(&w.join("victim"))),
            Record::file("conf/new", b"x"),
        ]);
    }),
    refused("a record below a link, the link later", |f, w| {
        f.add([
            Record::file("conf/letter", b"x"),
            Record::link("conf", text(&w.join("victim"))),
        ]);
    }),
    refused("a file over a link", |f, w| {
        f.add([
            Record::link("note", text(&w.join("victim/letter"))),
            Record::file("note", b"x"),
        ]);
    }),
    refused("two links of one name", |f, w| {
        f.add([
            Record::link("conf", text(&w.join("victim"))),
            Record::link("conf", "base"),
        ]);
    }),
    harmless("base as a link to a live server's", |f, w| {
        f.remove("base");
        f.remove("base/5");
        f.remove("base/5/16384");
        f.remove("base/5/PG_VERSION");
        f.add([Record::link("base", text(&w.join("live/base")))]);
    }),
    harmless("pg_wal as a link to a live server's", |f, w| {
        f.remove("pg_wal");
        f.add([Record::link("pg_wal", text(&w.join("live/pg_wal")))]);
    }),
    harmless("pg_xact as a link to a live server's", |f, w| {
        f.remove("pg_xact");
        f.remove("pg_xact/0000");
        f.add([Record::link("pg_xact", text(&w.join("live/pg_xact")))]);
    }),
    refused("global as a link", |f, w| {
        f.remove("global");
        f.add([
            Record::link("global", text(&w.join("live/global"))),
            Record::file("global/1260", b"x"),
            Record::directory("global/x"),
            Record::file("global/x", b""),
        ]);
    }),
    harmless("pg_tblspc as a link", |f, w| {
        f.remove("pg_tblspc");
        f.add([Record::link("pg_tblspc", text(&w.join("victim")))]);
    }),
    refused("postgresql.auto.conf as a link", |f, w| {
        f.remove("postgresql.auto.conf");
        f.add([Record::link(
            "postgresql.auto.conf",
            text(&w.join("victim/letter")),
        )]);
    }),
    harmless("recovery.signal as a link", |f, w| {
        f.add([Record::link("recovery.signal", text(&w.join("victim/new")))]);
    }),
    harmless("backup_label as a link", |f, w| {
        f.add([Record::link("backup_label", text(&w.join("victim/letter")))]);
    }),
    harmless("tablespace_map as a link", |f, w| {
        f.add([Record::link(
            "tablespace_map",
            text(&w.join("victim/letter")),
        )]);
    }),
    harmless("postgresql.conf as a link", |f, w| {
        f.remove("postgresql.conf");
        f.add([Record::link(
            "postgresql.conf",
            text(&w.join("victim/letter")),
        )]);
    }),
    harmless("configuration included through a link", |f, w| {
        f.add([Record::link("conf.d", text(&w.join("victim")))]);
        configure(f, "include 'conf.d/letter'\ninclude_dir 'conf.d'");
    }),
    harmless("links that leave the directory", |f, w| {
        f.add([
            Record::link("log", text(&w.join("victim"))),
            Record::link("up", "../victim"),
            Record::link("root", "/"),
            Record::link("self", "self"),
        ]);
    }),
    harmless("a link among configuration", |f, w| {
        f.add([Record::link("etc/x.conf", text(&w.join("victim/letter"))).configuration()]);
    }),
    refused("a link that leads nowhere at all", |f, _| {
        f.add([Record::link("log", "")])
    }),
    refused("a link with a NUL byte", |f, _| {
        f.add([Record::link("log", *b"a\0b")])
    }),
    harmless("a link below a link's place", |f, w| {
        f.add([
            Record::link("a", text(&w.join("victim"))),
            Record::link("b", "a"),
        ]);
    }),
    refused("a link below a link", |f, w| {
        f.add([
            Record::link("a", text(&w.join("victim"))),
            Record::link("a/new", "/"),
        ]);
    }),
    // Modes and owners.
    harmless("a setuid program", |f, _| {
        f.add([Record::file("sh", b"#!/bin/sh\n").mode(0o6755)]);
    }),
    harmless("a setuid program of root's", |f, _| {
        f.add([Record::inline("sh", b"#!/bin/sh\n")
            .mode(0o7777)
            .owner(0, 0)]);
    }),
    harmless("a sticky and setgid directory", |f, _| {
        f.add([
            Record::directory("tmp").mode(0o7777),
            Record::file("tmp/x", b"x"),
        ]);
    }),
    harmless("modes with bits of other kinds of files", |f, _| {
        f.add([
            Record::file("device", b"x").mode(0o060_666),
            Record::directory("d").mode(u32::MAX),
        ]);
    }),
    harmless("nothing may be read", |f, _| {
        f.add([
            Record::file("none", b"x").mode(0),
            Record::directory("closed").mode(0),
            Record::file("closed/x", b"x"),
        ]);
    }),
    harmless("files of root's and of others", |f, _| {
        f.add([
            Record::file("server.key", b"key").mode(0o640).owner(0, 42),
            Record::file("his", b"x").mode(0o666).owner(1000, 1000),
            Record::directory("hers").mode(0o777).owner(1001, 0),
            Record::link("theirs", "his").owner(0, 0),
        ]);
    }),
    harmless("the data directory open to everybody", |f, _| {
        f.add([Record::directory("").mode(0o777)]);
    }),
    case("everything is root's", Expected::RefusedAsRoot, |f, _| {
        f.summary.owner.user = Some("root".to_owned())
    }),
    case(
        "everything is nobody's here",
        Expected::RefusedAsRoot,
        |f, _| f.summary.owner.user = Some("no such user".to_owned()),
    ),
    harmless("another group", |f, _| {
        f.summary.owner.group = Some("root".to_owned());
        f.summary.owner.gid = 0;
    }),
    // Names that mean something to a server.
    harmless("a pid file", |f, _| {
        f.add([Record::file("postmaster.pid", b"1\n/\n")])
    }),
    harmless("standby.signal", |f, _| {
        f.add([Record::file("standby.signal", b"")])
    }),
    harmless("standby.signal as a directory", |f, _| {
        f.add([Record::directory("standby.signal")])
    }),
    harmless("a file in recovery.signal", |f, _| {
        f.add([Record::file("recovery.signal/x", b"")])
    }),
    harmless("recovery.conf and promote", |f, _| {
        f.add([
            Record::file("recovery.conf", b""),
            Record::inline("promote", b""),
        ]);
    }),
    harmless("a label in a frame", |f, _| {
        f.add([Record::file("backup_label", b"other")])
    }),
    harmless("a map of tablespaces in a frame", |f, w| {
        let map = format!("16400 {}\n", text(&w.join("victim")));
        f.add([Record::file("tablespace_map", map.as_bytes())]);
    }),
    harmless(
        "a map of tablespaces that backup.json does not know",
        |f, w| {
            let map = format!("16400 {}\n16401 /\n", text(&w.join("victim")));
            f.add([Record::inline("tablespace_map", map.as_bytes())]);
        },
    ),
    refused("a map of tablespaces that is none", |f, _| {
        f.add([Record::inline("tablespace_map", b"x\\")])
    }),
    harmless("the mark of an unfinished restore", |f, _| {
        f.add([
            Record::file("global/pg_control.restoring", b"x"),
            Record::directory("leeward.restoring"),
            Record::file("leeward.restoring/restore.json", b"{}"),
            Record::file("leeward.restoring/data/PG_VERSION", b"16\n"),
        ]);
    }),
    harmless("slots and WAL among the files", |f, _| {
        f.add([
            Record::file("pg_replslot/live/state", b"x"),
            Record::file("pg_wal/000000010000000000000009", b"x"),
            Record::directory("pg_wal/archive_status"),
            Record::file("pg_wal/archive_status/000000010000000000000009.ready", b""),
        ]);
    }),
    // WAL.
    refused("WAL of a name that goes up", |f, _| {
        f.wal.push(wal("../../victim/new"))
    }),
    refused("WAL of an absolute name", |f, _| {
        f.wal.push(wal("/victim/new"))
    }),
    refused("WAL of no name", |f, _| f.wal.push(wal(""))),
    refused("WAL of a name that is no segment's", |f, _| {
        f.wal.push(wal("archivestatus"))
    }),
    refused("WAL called as a directory in pg_wal", |f, _| {
        f.wal.push(wal("summaries"))
    }),
    refused("the same WAL twice", |f, _| {
        f.wal.push(wal("000000010000000000000002"))
    }),
    refused("WAL of zeros", |f, _| f.wal[0].content.fill(0)),
    refused("WAL that ends before the backup does", |f, _| {
        f.wal[0].content[8192..].fill(0);
        f.summary.stop_lsn = Lsn(0x20_8000);
    }),
    refused("no WAL at all", |f, _| f.wal.clear()),
    harmless("WAL of half a segment", |f, _| {
        f.wal[0].content.truncate(1 << 19)
    }),
    harmless("WAL of two segments in one", |f, _| {
        f.wal[0].content.resize(2 << 20, 7)
    }),
    refused("a record as long as numbers are", |f, _| {
        f.wal[0].content[40..44].fill(0xff);
    }),
    harmless("WAL of another cluster under this one's name", |f, _| {
        f.wal[0].content[24..32].fill(9);
    }),
    harmless("WAL whose summary says what is not in it", |f, _| {
        f.wal[0].contents = Some(WalContents::default());
    }),
    refused(
        "a tablespace by WAL in a live tablespace's place",
        |f, w| {
            create_tablespace(f, &text(&w.join("live-space")));
        },
    ),
    refused(
        "a tablespace by WAL in a directory that is not empty",
        |f, w| {
            create_tablespace(f, &text(&w.join("victim")));
        },
    ),
    refused(
        "a tablespace by WAL in a live server's empty directory",
        |f, w| {
            create_tablespace(f, &text(&w.join("live/pg_twophase")));
        },
    ),
    refused("a tablespace by WAL below a live tablespace", |f, w| {
        create_tablespace(f, &text(&w.join("live-space/PG_17_202406281/9")));
    }),
    refused("a tablespace by WAL that is the data directory", |f, w| {
        create_tablespace(f, &text(&w.join("restored")));
    }),
    refused(
        "a tablespace by WAL in PostgreSQL's own directory",
        |f, w| {
            create_tablespace(f, &text(&w.join("restored/global")));
        },
    ),
    refused("a tablespace by WAL in the unfinished restore", |f, w| {
        create_tablespace(f, &text(&w.join("restored/leeward.restoring/x")));
    }),
    refused("a tablespace by WAL around the data directory", |f, w| {
        create_tablespace(f, &text(w));
    }),
    refused("a tablespace by WAL at the root", |f, _| {
        create_tablespace(f, "/")
    }),
    refused("a relative tablespace by WAL", |f, _| {
        create_tablespace(f, "../victim/new")
    }),
    refused("a tablespace by WAL that goes up", |f, w| {
        create_tablespace(f, &text(&w.join("absent/../victim/new")));
    }),
    refused(
        "a tablespace by WAL through a link that leads nowhere",
        |f, w| {
            create_tablespace(f, &text(&w.join("dangling/new")));
        },
    ),
    refused("a tablespace by WAL where a file is", |f, w| {
        create_tablespace(f, &text(&w.join("victim/letter")));
    }),
    harmless("a tablespace by WAL where nothing is", |f, w| {
        create_tablespace(f, &text(&w.join("space")));
    }),
    // The restore does no harm; docs/restore.md says what a server that is started on a forged backup may do.
    harmless(
        "a tablespace by WAL that the summary keeps quiet about",
        |f, w| {
            create_tablespace(f, &text(&w.join("live-space")));
            f.wal[0].contents = Some(WalContents::default());
        },
    ),
    harmless("a history file that is none", |f, _| {
        f.wal.push(ForgedWal {
            content: b"1\t../../victim\t\xff\n".to_vec(),
            ..wal("00000002.history")
        });
    }),
    // Numbers and texts of backup.json.
    refused("a backup of a format to come", |f, _| {
        f.summary.format_version = 99
    }),
    refused("a backup of another cluster's name", |f, _| {
        f.summary.cluster = "../main".to_owned();
    }),
    refused("a backup of another id", |f, _| {
        f.change_json = Some(|text| text.replace("20261122T023000Z-k7q2", "20261122T023000Z-aaaa"));
    }),
    refused("an id that goes up", |f, _| {
        f.change_json = Some(|text| text.replace("20261122T023000Z-k7q2", "../../victim"));
    }),
    refused("backup.json that is none", |f, _| {
        f.change_json = Some(|_| "{\n".to_owned())
    }),
    refused("backup.json that never ends", |f, _| {
        f.change_json = Some(|_| "[".repeat(1 << 20));
    }),
    refused("backup.json that ends early", |f, _| {
        f.change_json = Some(|text| text[..text.len() / 2].to_owned());
    }),
    refused("no segment size", |f, _| {
        f.summary.wal.segment_size_bytes = 0
    }),
    refused("a segment size of all bits", |f, _| {
        f.summary.wal.segment_size_bytes = u64::MAX;
    }),
    refused("a backup that ends before it begins", |f, _| {
        f.summary.stop_lsn = Lsn(8)
    }),
    refused("a backup that ends where numbers do", |f, _| {
        f.summary.stop_lsn = Lsn(u64::MAX);
    }),
    refused("a backup that begins where numbers end", |f, _| {
        f.summary.start_lsn = Lsn(u64::MAX);
        f.summary.checkpoint_lsn = Lsn(u64::MAX);
    }),
    refused("a backup of timeline 0", |f, _| {
        f.summary.start_timeline = TimelineId(0);
        f.summary.stop_timeline = TimelineId(0);
    }),
    refused(
        "a backup that ends on the last timeline there can be",
        |f, _| {
            f.summary.stop_timeline = TimelineId(u32::MAX);
        },
    ),
    refused("history files and WAL with names that go up", |f, _| {
        f.summary.wal.history = vec!["../../victim/letter".to_owned(); 3];
        f.summary.wal.first = "../first".to_owned();
        f.summary.wal.last = String::new();
    }),
    harmless("a major version that is none", |f, _| {
        f.summary.major = u32::MAX
    }),
    harmless("texts that are orders to a terminal", |f, _| {
        let order = "\u{1b}]0;x\u{7}\u{1b}[2J\nerror: \u{202e}";
        f.summary.host = order.to_owned();
        f.summary.label = order.to_owned();
        f.summary.postgres_version = order.to_owned();
        f.summary.started_at = order.to_owned();
        f.summary.finished_at = order.to_owned();
        f.summary.leeward_version = order.to_owned();
        f.summary.owner.group = Some(order.to_owned());
    }),
    // Lengths.
    refused("a file of 2^63 bytes", |f, _| {
        f.add([of_runs("huge", 1 << 63, Vec::new())])
    }),
    refused("pieces that overlap", |f, _| {
        f.add([of_runs("over", 8192, vec![run(0, 4096), run(2048, 4096)])]);
    }),
    refused("pieces in the wrong order", |f, _| {
        f.add([of_runs("order", 8192, vec![run(4096, 10), run(0, 10)])]);
    }),
    refused("a piece behind the end of its file", |f, _| {
        f.add([of_runs("end", 10, vec![run(0, 8192)])]);
    }),
    refused("a piece longer than its frame", |f, _| {
        f.add([of_runs("long", 9000, vec![run(0, 9000)])]);
    }),
    refused("a piece of a frame that is not there", |f, _| {
        f.add([of_runs(
            "none",
            10,
            vec![ForgedRun {
                frame: 4000,
                ..run(0, 10)
            }],
        )]);
    }),
    refused("a piece of a pack that is not there", |f, _| {
        f.add([of_runs(
            "none",
            10,
            vec![ForgedRun {
                pack: 4000,
                ..run(0, 10)
            }],
        )]);
    }),
    refused("a piece of a backup that is not there", |f, _| {
        f.add([of_runs(
            "none",
            10,
            vec![ForgedRun {
                source: 7,
                ..run(0, 10)
            }],
        )]);
    }),
    refused("a piece of no bytes", |f, _| {
        f.add([of_runs("none", 10, vec![run(0, 0)])])
    }),
    refused("more inline than its size", |f, _| {
        let mut record = Record::inline("inline", b"more");
        record.size = 1;
        f.add([record]);
    }),
    refused("frames that overlap in the pack", |f, _| {
        f.change_index = Some(|index| index[96 + 14 + 88 + 1] = 0);
    }),
    refused("a frame of 4 GiB", |f, _| {
        f.change_index = Some(|index| index[96 + 14 + 16..96 + 14 + 20].fill(0xff));
    }),
    refused("a pack of more frames than it has", |f, _| {
        f.change_index = Some(|index| index[68..72].fill(0x7f));
    }),
    refused("a pack of files that go up", |f, _| {
        f.change_index = Some(|index| index[100..110].copy_from_slice(b"../PG_VERS"));
    }),
    harmless("totals as large as numbers are", |f, _| {
        f.totals = Some([u64::MAX; 4]);
        f.summary.files = u64::MAX;
        f.summary.stored_bytes = u64::MAX;
        f.summary.pages_checked = u64::MAX;
    }),
    refused("more bytes than any disk has", |f, _| {
        f.summary.size_bytes = u64::MAX;
        f.summary.wal.count = u64::MAX;
        f.summary.wal.segment_size_bytes = u64::MAX;
    }),
    // Tablespaces.
    harmless("a tablespace where nothing is", |f, w| {
        f.add_tablespace(16400, &text(&w.join("space")));
    }),
    refused("a tablespace at the root", |f, _| {
        f.add_tablespace(16400, "/")
    }),
    refused("a tablespace in a directory that is not empty", |f, w| {
        f.add_tablespace(16400, &text(&w.join("victim")));
    }),
    refused("a tablespace in a live server's empty directory", |f, w| {
        f.add_tablespace(16400, &text(&w.join("live/pg_twophase")));
    }),
    refused("a tablespace in a live server's WAL directory", |f, w| {
        f.add_tablespace(16400, &text(&w.join("live-wal/archive_status")));
    }),
    refused("a tablespace in a live tablespace", |f, w| {
        f.add_tablespace(16400, &text(&w.join("live-space/PG_17_202406281/7")));
    }),
    refused("a tablespace in a live tablespace's place", |f, w| {
        f.add_tablespace(16400, &text(&w.join("live-space")));
    }),
    refused("a tablespace that is the data directory", |f, w| {
        f.add_tablespace(16400, &text(&w.join("restored")));
    }),
    refused("a tablespace around the data directory", |f, w| {
        f.add_tablespace(16400, &text(w))
    }),
    refused("a tablespace in PostgreSQL's own directory", |f, w| {
        f.add_tablespace(16400, &text(&w.join("restored/base")));
    }),
    refused("a tablespace in the unfinished restore", |f, w| {
        f.add_tablespace(16400, &text(&w.join("restored/leeward.restoring/data")));
    }),
    refused("a relative tablespace outside", |f, _| {
        f.add_tablespace(16400, "../../victim")
    }),
    refused(
        "a relative tablespace that is the data directory",
        |f, _| {
            f.add_tablespace(16400, "..");
        },
    ),
    refused("a tablespace whose path is empty", |f, _| {
        f.add_tablespace(16400, "")
    }),
    refused("a tablespace with a NUL byte", |f, _| {
        f.add_tablespace(16400, "/a\0b")
    }),
    refused("a tablespace that goes up where nothing is", |f, w| {
        f.add_tablespace(16400, &text(&w.join("absent/../victim/new")));
    }),
    refused("a tablespace below a file", |f, w| {
        f.add_tablespace(16400, &text(&w.join("victim/letter/new")));
    }),
    refused("a tablespace through a link that leads nowhere", |f, w| {
        f.add_tablespace(16400, &text(&w.join("dangling/new")));
    }),
    refused("a tablespace in another", |f, w| {
        f.add_tablespace(16400, &text(&w.join("space")));
        f.add_tablespace(16401, &text(&w.join("space/inner")));
    }),
    refused("one tablespace twice", |f, w| {
        f.add_tablespace(16400, &text(&w.join("space")));
        f.add_tablespace(16400, &text(&w.join("space2")));
    }),
    refused("other files in a tablespace", |f, w| {
        f.add_tablespace(16400, &text(&w.join("space")));
        f.add([Record::file(
            "pg_tblspc/16400/authorized_keys",
            b"ssh-rsa x",
        )]);
    }),
    refused("another version's directory in a tablespace", |f, w| {
        f.add_tablespace(16400, &text(&w.join("space")));
        f.add([Record::file("pg_tblspc/16400/PG_16_202307071/5/1", b"x")]);
    }),
    harmless("a tablespace that is a file", |f, w| {
        f.add_tablespace(16400, &text(&w.join("space")));
        f.add([Record::file("pg_tblspc/16400", b"x")]);
    }),
    refused("a link in a tablespace's version directory", |f, w| {
        f.add_tablespace(16400, &text(&w.join("space")));
        f.add([Record::link("pg_tblspc/16400/x", text(&w.join("victim")))]);
    }),
    harmless(
        "a tablespace's link that backup.json does not know",
        |f, w| {
            f.add([
                Record::link("pg_tblspc/16409", text(&w.join("victim"))),
                Record::file("pg_tblspc/16409/PG_17_202406281/5/1", b"x"),
            ]);
        },
    ),
    harmless(
        "a tablespace's link that leads elsewhere than backup.json",
        |f, w| {
            f.summary.tablespaces.push(TablespaceSummary {
                oid: Oid(16400),
                path: "../inner".to_owned(),
                in_place: false,
            });
            f.add([
                Record::link("pg_tblspc/16400", text(&w.join("victim"))),
                Record::file("pg_tblspc/16400/PG_17_202406281/5/1", b"x"),
            ]);
        },
    ),
    harmless("an in-place tablespace with a path", |f, w| {
        f.summary.tablespaces.push(TablespaceSummary {
            oid: Oid(16400),
            path: text(&w.join("victim")),
            in_place: true,
        });
        f.add([
            Record::directory("pg_tblspc/16400"),
            Record::file("pg_tblspc/16400/PG_17_202406281/5/1", b"x"),
        ]);
    }),
    // Configuration.
    refused("a data directory that is nowhere", |f, _| {
        f.summary.data_directory = String::new()
    }),
    harmless("a data directory that is everything", |f, w| {
        f.summary.data_directory = "/".to_owned();
        let include = text(&w.join("victim/letter"));
        configure(f, &format!("include '{include}'"));
    }),
    harmless(
        "configuration of the server at places of its own",
        |f, w| {
            f.summary.configuration = Some(ConfigurationSummary {
                config_file: Some(text(&w.join("victim/letter"))),
                hba_file: Some("../victim/letter".to_owned()),
                ident_file: Some(String::new()),
                hosts_file: Some("/".to_owned()),
                data_directory: Some(String::new()),
            });
            configure(
                f,
                "include '../victim/letter'\ninclude_if_exists '/etc/passwd'",
            );
        },
    ),
    harmless("configuration that includes itself", |f, _| {
        configure(
            f,
            "include 'postgresql.conf'\ninclude_dir '.'\ninclude_dir '/'",
        );
    }),
    refused("configuration larger than memory", |f, _| {
        f.remove("postgresql.conf");
        f.add([of_runs("postgresql.conf", 1 << 40, Vec::new())]);
    }),
    harmless(
        "configuration named as the server's, in a directory",
        |f, _| {
            f.add([
                Record::file("etc/postgresql/17/main/postgresql.conf", b"port = 1\n")
                    .configuration(),
                Record::file("configuration/etc/x", b"x"),
            ]);
        },
    ),
];
