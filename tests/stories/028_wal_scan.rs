//! What the walk over WAL tells is what the server did, and what PostgreSQL's own reader finds: commits and rollbacks
//! with their transaction ids, times and positions, restore points, switches and checkpoints, over crashes and
//! a promotion.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use leeward_pgformat::{
    Lsn, TimelineId, TimestampTz, TransactionId, WalContents, WalEvent, WalScanner, WalSegmentName,
    WalSegmentSize,
};
use leeward_tests::dataset;
use leeward_tests::deadline::{PATIENCE, wait_until};
use leeward_tests::installation::system_tool;
use leeward_tests::load::Load;
use leeward_tests::pair::Pair;
use leeward_tests::server::{Initdb, Server, Stop};
use leeward_tests::session::Session;
use leeward_tests::story::Story;

const CONFIG: &str = "\
track_commit_timestamp = on
max_prepared_transactions = 10
max_locks_per_transaction = 1024
wal_keep_size = 2GB
checkpoint_timeout = 30s
autovacuum = off";

fn size() -> WalSegmentSize {
    WalSegmentSize::new(1 << 20).expect("a size")
}

fn lsn(text: &str) -> Lsn {
    text.parse().expect("an LSN")
}

fn xid(text: &str) -> TransactionId {
    TransactionId(text.parse().expect("a transaction id"))
}

/// Something the server was told to do: what the walk must tell of it, and between which positions.
#[derive(Debug)]
struct Deed {
    what: What,
    after: Lsn,
    before: Lsn,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Commit(TransactionId),
    Abort(TransactionId),
    RestorePoint(String, Lsn),
    Switch(Lsn),
    Checkpoint,
}

impl Deed {
    fn is(&self, event: &WalEvent) -> bool {
        let (begin, end) = (event.begin(), event.end());
        let same = match (&self.what, event) {
            (What::Commit(mine), WalEvent::Commit { xid, .. })
            | (What::Abort(mine), WalEvent::Abort { xid, .. }) => mine == xid,
            (What::RestorePoint(mine, at), WalEvent::RestorePoint { name, end, .. }) => {
                mine == name && at == end
            }
            (What::Switch(at), WalEvent::Switch { end, .. }) => at == end,
            (What::Checkpoint, WalEvent::Checkpoint { .. }) => true,
            _ => false,
        };
        same && self.after <= begin && end <= self.before
    }
}

/// Does things one after the other, and remembers them.
struct Doer {
    session: Session,
    major: u32,
    deeds: Vec<Deed>,
}

impl Doer {
    fn new(server: &Server, major: u32) -> Doer {
        Doer {
            major,
            session: Session::open(server),
            deeds: Vec::new(),
        }
    }

    /// Runs `sql` between two looks at the position; returns its rows and notes what they mean.
    fn does(&mut self, sql: &str, meaning: impl Fn(&[String]) -> Vec<What>) {
        let here = "SELECT pg_current_wal_insert_lsn();";
        let rows = self.session.run(&format!("{here}\n{sql}\n{here}"));
        let (after, before) = (lsn(&rows[0]), lsn(&rows[rows.len() - 1]));
        for what in meaning(&rows[1..rows.len() - 1]) {
            self.deeds.push(Deed {
                what,
                after,
                before,
            });
        }
    }

    fn commits(&mut self, body: &str) {
        self.does(
            &format!("BEGIN; SELECT pg_current_xact_id()::xid; {body}; COMMIT;"),
            |rows| vec![What::Commit(xid(&rows[0]))],
        );
    }

    /// Everything there is.
    fn lives(&mut self, round: u32) {
        for row in 0..40 {
            self.commits(&format!(
                "INSERT INTO deeds VALUES ({row}, repeat('x', {row} * 200))"
            ));
        }
        self.does(
            "BEGIN; SELECT pg_current_xact_id()::xid; INSERT INTO deeds VALUES (1, 'y'); SAVEPOINT a;
             INSERT INTO deeds VALUES (2, 'y') RETURNING xmin; ROLLBACK TO a; INSERT INTO deeds VALUES (3, 'y'); COMMIT;",
            |rows| vec![What::Commit(xid(&rows[0])), What::Abort(xid(&rows[1]))],
        );
        self.does(
            "BEGIN; SELECT pg_current_xact_id()::xid; INSERT INTO deeds VALUES (4, 'z'); ROLLBACK;",
            |rows| vec![What::Abort(xid(&rows[0]))],
        );
        // Prepared ones, with subtransactions, dropped tables and their statistics, and messages to other sessions.
        let rich = "DO $$ BEGIN FOR i IN 1..120 LOOP
                BEGIN INSERT INTO deeds VALUES (i, 's'); EXCEPTION WHEN OTHERS THEN NULL; END;
            END LOOP; END $$; DROP TABLE brief; CREATE TABLE brief2 (id int PRIMARY KEY, t text)";
        for (end, gone) in [("COMMIT", "brief2"), ("ROLLBACK", "brief")] {
            self.commits("CREATE TABLE brief (id serial PRIMARY KEY, t text); INSERT INTO brief VALUES (1, repeat('x', 9000))");
            let mut prepared = String::new();
            let sql = format!(
                "BEGIN; SELECT pg_current_xact_id()::xid; {rich}; PREPARE TRANSACTION 'deed {round}';"
            );
            let rows = self.session.run(&sql);
            prepared.push_str(&rows[0]);
            self.does(&format!("{end} PREPARED 'deed {round}';"), |_| {
                vec![match end {
                    "COMMIT" => What::Commit(xid(&prepared)),
                    _ => What::Abort(xid(&prepared)),
                }]
            });
            self.commits(&format!("DROP TABLE {gone}"));
        }
        let name = format!("Größe {round}");
        self.does(
            &format!("SELECT pg_create_restore_point('{name}');"),
            |rows| vec![What::RestorePoint(name.clone(), lsn(&rows[0]))],
        );
        // A commit that is larger than pages, and a record that is larger than segments.
        self.commits(
            "DO $$ BEGIN FOR i IN 1..400 LOOP EXECUTE format('CREATE TABLE many_%s (id int)', i); END LOOP; END $$",
        );
        self.commits(
            "DO $$ BEGIN FOR i IN 1..400 LOOP EXECUTE format('DROP TABLE many_%s', i); END LOOP; END $$",
        );
        self.commits(
            "DO $$ BEGIN PERFORM pg_logical_emit_message(true, 'big', repeat('b', 3500000)); END $$",
        );
        self.does("SELECT pg_switch_wal();", |rows| {
            vec![What::Switch(lsn(&rows[0]))]
        });
        self.commits("INSERT INTO deeds VALUES (5, 'after the switch')");
        self.does("CHECKPOINT;", |_| vec![What::Checkpoint]);
        if self.major >= 15 {
            self.session.run(
                "SET allow_in_place_tablespaces = on;
                 CREATE TABLESPACE side LOCATION '';
                 CREATE DATABASE copied STRATEGY file_copy;
                 CREATE DATABASE logged STRATEGY wal_log;
                 ALTER DATABASE copied SET TABLESPACE side;
                 DROP DATABASE copied;
                 DROP DATABASE logged;
                 DROP TABLESPACE side;",
            );
        }
        self.commits("INSERT INTO deeds VALUES (6, 'after the checkpoint')");
    }
}

/// The files of `pg_wal` in the order of their numbers, of each number the newest timeline's.
fn segments(data: &Path) -> Vec<PathBuf> {
    let mut newest = BTreeMap::new();
    for entry in fs::read_dir(data.join("pg_wal")).expect("there is a pg_wal") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(segment) = name.and_then(|name| WalSegmentName::parse(name, size())) {
            let known: &mut (TimelineId, PathBuf) = newest
                .entry(segment.number)
                .or_insert((segment.timeline, path.clone()));
            if known.0 < segment.timeline {
                *known = (segment.timeline, path);
            }
        }
    }
    newest.into_values().map(|(_, path)| path).collect()
}

struct Walk {
    events: Vec<WalEvent>,
    scanner: WalScanner,
    contents: WalContents,
    segments: Vec<PathBuf>,
}

fn walk(data: &Path) -> Walk {
    let segments = segments(data);
    let first = segments[0].file_name().and_then(|name| name.to_str());
    let start = first
        .and_then(|name| WalSegmentName::parse(name, size()))
        .expect("a segment")
        .start_lsn(size());
    let mut whole = WalScanner::new(start, size());
    let mut pieces = WalScanner::new(start, size());
    let mut contents = WalContents::default();
    let (mut events, mut of_pieces) = (Vec::new(), Vec::new());
    for path in &segments {
        let bytes = fs::read(path).expect("a segment");
        let damage = |damage| panic!("{}: {damage}", path.display());
        whole
            .feed(&bytes, &mut |event| events.push(event))
            .unwrap_or_else(damage);
        for piece in bytes.chunks(3_777) {
            pieces
                .feed(piece, &mut |event| of_pieces.push(event))
                .unwrap_or_else(damage);
        }
        contents.merge(&pieces.take_contents());
        if whole.reached_end() {
            break;
        }
    }
    assert_eq!(events, of_pieces);
    assert_eq!(&contents, whole.contents());
    Walk {
        events,
        scanner: whole,
        contents,
        segments,
    }
}

/// Microseconds since 2000 as PostgreSQL prints them in UTC.
fn utc(time: TimestampTz) -> String {
    let (seconds, micros) = (
        time.unix_micros().div_euclid(1_000_000),
        time.unix_micros().rem_euclid(1_000_000),
    );
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01, in eras of 400 years.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06} UTC")
}

/// Every event is what `pg_waldump` says, and there are no others.
fn hold_against_pg_waldump(walk: &Walk) {
    let (first, last) = (&walk.segments[0], walk.segments.last().expect("segments"));
    let output = Command::new(system_tool("pg_waldump"))
        .args(["--rmgr=Transaction", "--rmgr=XLOG"])
        .args(["--rmgr=Tablespace", "--rmgr=Database"])
        .args([first, last])
        .env("TZ", "UTC")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .expect("pg_waldump");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut expected = Vec::new();
    for line in text.lines() {
        let (head, description) = line.split_once(" desc: ").expect("a description");
        let field = |name: &str| {
            let (_, rest) = head.split_once(name).expect("a field");
            rest.trim_start()
                .split(',')
                .next()
                .expect("a value")
                .to_owned()
        };
        let begin = lsn(&field("lsn:"));
        if begin >= walk.scanner.end_of_valid() {
            // The server wrote on after the walk.
            break;
        }
        let (kind, rest) = description.split_once(' ').unwrap_or((description, ""));
        let until_semicolon = rest.split(';').next().unwrap_or(rest);
        match kind {
            "COMMIT" | "ABORT" => {
                expected.push(format!("{kind} {} {begin} {until_semicolon}", field("tx:")));
            }
            "COMMIT_PREPARED" | "ABORT_PREPARED" => {
                let (xid, time) = until_semicolon.split_once(": ").expect("an id");
                let kind = kind.trim_end_matches("_PREPARED");
                expected.push(format!("{kind} {xid} {begin} {time}"));
            }
            "RESTORE_POINT" => expected.push(format!("RESTORE_POINT {begin} {rest}")),
            "SWITCH" => expected.push(format!("SWITCH {begin}")),
            "CHECKPOINT_SHUTDOWN" | "CHECKPOINT_ONLINE" => {
                expected.push(format!("{kind} {begin} {until_semicolon}"));
            }
            "PREPARE" | "ASSIGNMENT" | "INVALIDATION" => {
                expected.push(format!("Transaction {begin}"));
            }
            "PARAMETER_CHANGE" => {
                let (needed, _) = rest.split_once(" wal_log_hints").expect("the level before");
                expected.push(format!("{kind} {begin} {needed}"));
            }
            "CREATE" | "CREATE_FILE_COPY" | "CREATE_WAL_LOG" | "DROP" => {
                expected.push(format!("{kind} {begin} {rest}"));
            }
            _ => {}
        }
    }
    let found: Vec<String> = walk
        .events
        .iter()
        .map(|event| match event {
            WalEvent::Commit {
                xid, time, begin, ..
            } => format!("COMMIT {} {begin} {}", xid.0, utc(*time)),
            WalEvent::Abort {
                xid, time, begin, ..
            } => format!("ABORT {} {begin} {}", xid.0, utc(*time)),
            WalEvent::RestorePoint { name, begin, .. } => format!("RESTORE_POINT {begin} {name}"),
            WalEvent::Switch { begin, .. } => format!("SWITCH {begin}"),
            WalEvent::Checkpoint {
                shutdown: true,
                redo,
                begin,
                ..
            } => format!("CHECKPOINT_SHUTDOWN {begin} redo {redo}"),
            WalEvent::Checkpoint { redo, begin, .. } => {
                format!("CHECKPOINT_ONLINE {begin} redo {redo}")
            }
            WalEvent::OtherTransaction { begin, .. } => format!("Transaction {begin}"),
            WalEvent::ParameterChange {
                settings,
                wal_level,
                begin,
                ..
            } => {
                let values: Vec<String> = settings
                    .by_name()
                    .iter()
                    .map(|(name, value)| format!("{}={value}", shortened(name)))
                    .collect();
                let level = wal_level.expect("a level");
                format!(
                    "PARAMETER_CHANGE {begin} {} wal_level={level}",
                    values.join(" ")
                )
            }
            WalEvent::TablespaceCreate {
                tablespace,
                location,
                begin,
                ..
            } => {
                let location = String::from_utf8_lossy(location);
                format!("CREATE {begin} {} \"{location}\"", tablespace.0)
            }
            WalEvent::TablespaceDrop {
                tablespace, begin, ..
            } => format!("DROP {begin} {}", tablespace.0),
            WalEvent::DatabaseCopy {
                database,
                tablespace,
                source_database,
                source_tablespace,
                begin,
                ..
            } => format!(
                "CREATE_FILE_COPY {begin} copy dir {}/{} to {}/{}",
                source_tablespace.0, source_database.0, tablespace.0, database.0
            ),
            WalEvent::DatabaseCreate {
                database,
                tablespace,
                begin,
                ..
            } => format!(
                "CREATE_WAL_LOG {begin} create dir {}/{}",
                tablespace.0, database.0
            ),
            WalEvent::DatabaseDrop {
                database,
                tablespaces,
                begin,
                ..
            } => {
                let directories: Vec<String> = tablespaces
                    .iter()
                    .map(|tablespace| format!("{}/{}", tablespace.0, database.0))
                    .collect();
                format!("DROP {begin} dir {}", directories.join(" "))
            }
            WalEvent::EndOfRecovery { begin, .. } => format!("END_OF_RECOVERY {begin}"),
        })
        .collect();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    for kind in [
        "PARAMETER_CHANGE",
        "CREATE",
        "CREATE_FILE_COPY",
        "CREATE_WAL_LOG",
    ] {
        assert!(
            found
                .iter()
                .any(|event| event.starts_with(&format!("{kind} "))),
            "{kind}"
        );
    }
}

/// The name of a setting in what `pg_waldump` prints.
fn shortened(name: &str) -> String {
    name.replace("transactions", "xacts")
        .replace("transaction", "xact")
}

/// Each commit's time is the one that the server keeps.
fn hold_against_the_server(walk: &Walk, server: &Server) {
    let commits: BTreeMap<u32, TimestampTz> = walk
        .events
        .iter()
        .filter_map(|event| match event {
            WalEvent::Commit { xid, time, .. } => Some((xid.0, *time)),
            _ => None,
        })
        .collect();
    // Before track_commit_timestamp was on, the server kept none.
    let rows = server.sql(
        "SELECT xid, (extract(epoch FROM time) * 1000000)::bigint FROM (
             SELECT xid, pg_xact_commit_timestamp(xid::text::xid) AS time
             FROM generate_series(3, pg_current_xact_id()::text::bigint - 1) AS xid) AS kept
         WHERE time IS NOT NULL",
    );
    let mut compared = 0;
    for row in rows.lines() {
        let (xid, micros) = row.split_once('|').expect("two columns");
        // Subtransactions have a time in the server, and no commit of their own.
        if let Some(time) = commits.get(&xid.parse().expect("a transaction id")) {
            let micros = micros.parse().expect("a time");
            assert_eq!(*time, TimestampTz::from_unix_micros(micros), "{xid}");
            compared += 1;
        }
    }
    assert!(compared > 300, "{compared} commits compared");
}

/// Everything that was done is told, in its order.
fn hold_against_the_deeds(walk: &Walk, deeds: &[Deed]) {
    for deed in deeds {
        let told = walk.events.iter().filter(|event| deed.is(event)).count();
        assert!(told >= 1, "{deed:?} is not told");
        assert!(
            told == 1 || deed.what == What::Checkpoint,
            "{deed:?} is told {told} times"
        );
    }
    let points = deeds
        .iter()
        .filter(|deed| matches!(deed.what, What::RestorePoint(..)));
    assert_eq!(walk.contents.restore_points.len(), points.count());
    let commits = |event: &&WalEvent| matches!(event, WalEvent::Commit { .. });
    let aborts = |event: &&WalEvent| matches!(event, WalEvent::Abort { .. });
    assert_eq!(
        (walk.contents.commits, walk.contents.aborts),
        (
            walk.events.iter().filter(commits).count() as u64,
            walk.events.iter().filter(aborts).count() as u64
        )
    );
}

/// The walk ends where the server's WAL does.
fn hold_against_the_end(walk: &Walk, server: &Server, flushed: &str) {
    assert!(walk.scanner.reached_end());
    let now = lsn(&server.sql("SELECT pg_current_wal_insert_lsn()"));
    let end = walk.scanner.end_of_valid();
    assert!(
        lsn(flushed) <= end && end <= now,
        "{flushed} <= {end} <= {now}"
    );
}

fn check(major: u32) {
    let story = Story::begin(major);
    let how = Initdb {
        wal_segment_mib: 1,
        ..Initdb::default()
    };
    let mut pair = Pair::with(&story, &how, |primary| {
        primary.append_config(CONFIG);
        primary.stop(Stop::Fast);
        primary.start();
        dataset::fill(primary, 1);
        primary.sql("CREATE TABLE deeds (id int, what text)");
    });

    let mut doer = Doer::new(&pair.primary, major);
    doer.lives(1);
    let mut deeds = std::mem::take(&mut doer.deeds);
    drop(doer);

    // Two crashes under load: the end of WAL is found, and what follows is found after the restart.
    for how in [Stop::Immediate, Stop::Kill] {
        let load = Load::start(&story, &pair.primary);
        let before = pair.primary.sql("SELECT pg_current_wal_insert_lsn()");
        wait_until("the load writes", PATIENCE, || {
            pair.primary.sql(&format!(
                "SELECT pg_current_wal_insert_lsn() - '{before}'::pg_lsn > 1000000"
            )) == "t"
        });
        pair.primary.stop(how);
        drop(load);
        let crashed = walk(pair.primary.data());
        assert!(crashed.scanner.reached_end());
        hold_against_the_deeds(&crashed, &deeds);
        pair.primary.start();
    }
    let mut doer = Doer::new(&pair.primary, major);
    doer.lives(2);
    deeds.append(&mut doer.deeds);
    drop(doer);
    // Settings that a server in recovery needs, too.
    pair.primary
        .append_config("max_connections = 39\nmax_worker_processes = 7");
    pair.primary.stop(Stop::Fast);
    pair.primary.start();

    // Its end is flushed with its commit. What the server tells as flushed may be in the middle of a record.
    let flushed = pair
        .primary
        .sql("SELECT pg_logical_emit_message(true, 'story', 'the last of it')");
    let primary = walk(pair.primary.data());
    hold_against_the_deeds(&primary, &deeds);
    hold_against_the_end(&primary, &pair.primary, &flushed);
    hold_against_the_server(&primary, &pair.primary);
    assert_eq!(primary.scanner.timeline(), Some(TimelineId(1)));
    assert_eq!(
        primary.scanner.major().map(|found| found.as_u32()),
        Some(major)
    );
    if major == 15 {
        hold_against_pg_waldump(&primary);
    }

    // A promotion: the new timeline begins inside of a segment.
    pair.wait_streaming();
    pair.primary.stop(Stop::Immediate);
    pair.standby.promote();
    let mut doer = Doer::new(&pair.standby, major);
    doer.lives(3);
    deeds.append(&mut doer.deeds);
    drop(doer);
    let flushed = pair.standby.sql("SELECT pg_current_wal_flush_lsn()");
    let standby = walk(pair.standby.data());
    hold_against_the_deeds(&standby, &deeds);
    hold_against_the_end(&standby, &pair.standby, &flushed);
    hold_against_the_server(&standby, &pair.standby);
    assert_eq!(standby.scanner.timeline(), Some(TimelineId(2)));
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
