//! `leeward wal get` as restore_command: recovery to the last byte there is, and a clear word where there is none.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use leeward_tests::contents::fingerprint;
use leeward_tests::damage::{files_under, flip_bit};
use leeward_tests::dataset;
use leeward_tests::deadline::{PATIENCE, let_pass, reached, wait_until};
use leeward_tests::leeward::{Leeward, Outcome, exit};
use leeward_tests::load::Load;
use leeward_tests::pair::Pair;
use leeward_tests::server::{Initdb, Server, Stop, send};
use leeward_tests::story::Story;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// What a call ends with when it must not be taken for the end of WAL.
const STOP: i32 = 128;
/// What it ends with when there is no such file.
const ABSENT: i32 = 1;

fn wal_command(story: &Story, leeward: &Leeward<'_>, what: &str) -> String {
    format!(
        "{} wal {what} --repository {}",
        story.program().display(),
        leeward.repository()
    )
}

/// A pair whose primary archives, and whose standby will once it is promoted.
fn archiving_pair(story: &Story, leeward: &Leeward<'_>) -> Pair {
    let command = wal_command(story, leeward, "push %p");
    Pair::with(story, &Initdb::default(), |primary| {
        dataset::fill(primary, 1);
        primary.append_config(&format!("archive_mode = on\narchive_command = '{command}'"));
    })
}

/// A server that will recover from the archive, over the pair's base.
fn recovering(
    story: &Story,
    leeward: &Leeward<'_>,
    pair: &Pair,
    name: &str,
    extra: &str,
) -> Server {
    let mut server = pair.base.cold_copy(story, name);
    File::create(server.data().join("recovery.signal")).expect("created");
    let command = wal_command(story, leeward, &format!("get %f %p {extra}"));
    server.append_config(&format!("restore_command = '{command}'\nautovacuum = off"));
    server.set("archive_mode", "off");
    server
}

fn recover(server: &mut Server) {
    server.start();
    wait_until("recovery has ended", PATIENCE, || !server.in_recovery());
}

/// `leeward wal get` as the server calls it.
fn get(leeward: &Leeward<'_>, server: &Server, name: &str, extra: &[&str]) -> Outcome {
    let _ = fs::remove_file(wanted(server));
    let mut args = vec!["wal", "get", name, "pg_wal/RECOVERYXLOG"];
    args.extend(extra);
    leeward.run_in(server.data(), &args)
}

fn wanted(server: &Server) -> PathBuf {
    server.data().join("pg_wal/RECOVERYXLOG")
}

/// What the prefetcher has brought, or is bringing: names of segments.
fn spooled(server: &Server) -> Vec<String> {
    let name = |path: &PathBuf| {
        path.file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned()
    };
    let files = files_under(&server.data().join("pg_wal/leeward"));
    let names = files.iter().map(name);
    names
        .filter(|name| name.len() == 24 || name.ends_with(".part"))
        .collect()
}

/// The prefetchers of this server.
fn prefetchers(server: &Server) -> Vec<u32> {
    let spool = server.data().join("pg_wal/leeward").display().to_string();
    let relative = server.data().display().to_string();
    let processes = fs::read_dir("/proc")
        .expect("there are processes")
        .flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let ours = command.contains(&spool) || holds(*pid, &relative);
        command.contains(" wal prefetch ") && ours
    })
    .collect()
}

/// Whether a process holds a file below a directory.
fn holds(pid: u32, directory: &str) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    let mut files = files.filter_map(|entry| fs::read_link(entry.path()).ok());
    files.any(|file| file.display().to_string().starts_with(directory))
}

fn wal_files(story: &Story, timeline: u32) -> Vec<String> {
    let folder = story.path(&format!("repository/main/wal/{timeline:08X}"));
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("there is an archive")
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let name = name.strip_suffix(".zst")?;
            (name.len() == 24).then(|| name.to_owned())
        })
        .collect();
    names.sort();
    names
}

fn object(story: &Story, name: &str) -> PathBuf {
    story.path(&format!("repository/main/wal/{}/{name}.zst", &name[..8]))
}

/// Recovery over two timelines, through a spool of two segments; onto the first one's very end, of which the archive
/// has the beginning only; and the spool is empty afterwards.
fn to_the_last_byte(major: u32) {
    let story = Story::begin(major);
    let leeward = Leeward::new(&story);
    let mut pair = archiving_pair(&story, &leeward);
    let load = Load::start(&story, &pair.primary);
    for _ in 0..8 {
        pair.primary.switch_wal();
    }
    load.stop();
    pair.primary
        .sql("CREATE TABLE story.last_before AS SELECT 1 AS id");
    pair.stop_primary();
    let first = fingerprint(&pair.standby);
    pair.standby.promote();
    let load = Load::start(&story, &pair.standby);
    for _ in 0..4 {
        pair.standby.switch_wal();
    }
    load.stop();
    // Replay runs ahead of a sequence's value, unless it was set.
    pair.standby
        .sql("SELECT setval('story.events_id_seq', 1000000)");
    pair.standby.stop(Stop::Fast);
    pair.standby.set("archive_mode", "off");
    pair.standby.set("autovacuum", "off");
    pair.standby.start();
    let second = fingerprint(&pair.standby);

    let config = story.path("leeward.toml");
    fs::write(&config, "[wal]\nprefetch_bytes = 33554432\n").expect("written");
    let extra = format!("--config {}", config.display());
    let mut server = recovering(&story, &leeward, &pair, "latest", &extra);
    server.launch();
    let mut most = 0;
    let ended = reached(PATIENCE, || {
        most = most.max(spooled(&server).len());
        server.try_sql_in("postgres", "SELECT pg_is_in_recovery()") == Ok("f".to_owned())
    });
    assert!(ended, "recovery did not end:\n{}", server.log_tail());
    assert!(most <= 2, "{most} segments were fetched ahead");
    assert!(most > 0, "nothing was fetched ahead");
    fingerprint(&server).assert_equals(&second, "the second timeline's contents differ");
    wait_until("the prefetcher has ended", PATIENCE, || {
        prefetchers(&server).is_empty()
    });
    assert_eq!(spooled(&server), Vec::<String>::new());
    server.stop(Stop::Fast);

    let mut server = recovering(&story, &leeward, &pair, "first", "");
    server.append_config("recovery_target_timeline = '1'");
    recover(&mut server);
    assert_eq!(server.sql("SELECT count(*) FROM story.last_before"), "1");
    fingerprint(&server).assert_equals(&first, "the first timeline's contents differ");
}

/// A standby that lives by the archive alone, and archives what it gets: it asks again and again, gets what comes, even
/// the beginning of a segment, and can be promoted; what it then has to archive goes through.
fn standby(major: u32) {
    let story = Story::begin(major);
    let leeward = Leeward::new(&story);
    let pair = archiving_pair(&story, &leeward);
    let mut server = recovering(&story, &leeward, &pair, "polling", "");
    fs::rename(
        server.data().join("recovery.signal"),
        server.data().join("standby.signal"),
    )
    .expect("renamed");
    server.set("archive_mode", "always");
    pair.primary
        .sql("CREATE TABLE story.round_0 (); SELECT pg_switch_wal()");
    wait_until("the first segment is archived", PATIENCE, || {
        story.path("repository/main/wal/00000001").exists()
    });
    server.start();
    let replayed = |table: &str| {
        wait_until("the standby has got what was archived", PATIENCE, || {
            let query = format!("SELECT to_regclass('story.{table}') IS NOT NULL");
            server.try_sql_in("postgres", &query) == Ok("t".to_owned())
        });
    };
    for round in 1..=4 {
        pair.primary.sql(&format!(
            "CREATE TABLE story.round_{round} (); SELECT pg_switch_wal()"
        ));
        replayed(&format!("round_{round}"));
    }
    // The beginning of a segment, as it might be left of a lost primary.
    pair.primary.sql("CREATE TABLE story.unfinished ()");
    let current = pair
        .primary
        .sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    let loose = story.path(&format!("{current}.partial"));
    fs::copy(pair.primary.data().join("pg_wal").join(&current), &loose).expect("copied");
    leeward
        .run(&["wal", "push", loose.to_str().expect("a path in UTF-8")])
        .expect(exit::DONE);
    replayed("unfinished");
    assert!(server.in_recovery());
    server.promote();
    server.sql("CREATE TABLE story.promoted (); SELECT pg_switch_wal()");
    wait_until("everything is archived", PATIENCE, || {
        let status = server.data().join("pg_wal/archive_status");
        let files = files_under(&status);
        files
            .iter()
            .all(|file| file.extension().is_some_and(|end| end == "done"))
    });
    assert!(!wal_files(&story, 1).contains(&current));
    assert!(!server.log().contains("FATAL"), "{}", server.log_tail());
    // With the server gone, so is the prefetcher, and the directory can be removed.
    server.stop(Stop::Fast);
    wait_until("the prefetcher has ended", PATIENCE, || {
        prefetchers(&server).is_empty()
    });
    fs::remove_dir_all(server.data()).expect("nothing is in the way");
}

/// 0, 1, or what makes the server stop.
fn exit_codes(major: u32) {
    let story = Story::begin(major);
    let leeward = Leeward::new(&story);
    let mut pair = archiving_pair(&story, &leeward);
    for _ in 0..6 {
        pair.primary.switch_wal();
    }
    pair.stop_primary();
    let names = wal_files(&story, 1);
    let server = pair.base.cold_copy(&story, "asking");
    let next = next_after(names.last().expect("some"));
    let config = story.path("leeward.toml");
    fs::write(&config, "[wal]\nprefetch_bytes = 0\n").expect("written");
    let config = config.display().to_string();
    let plainly = |name: &str| get(&leeward, &server, name, &["--config", &config]);

    for name in &names {
        plainly(name).expect(exit::DONE);
        let brought = fs::read(wanted(&server)).expect("it was brought");
        let own = fs::read(pair.primary.data().join("pg_wal").join(name)).expect("it is kept");
        let end = brought
            .iter()
            .rposition(|byte| *byte != 0)
            .expect("not empty");
        assert_eq!(brought.len(), own.len());
        assert!(
            brought[..=end] == own[..=end],
            "{name} is not what was archived"
        );
    }
    // Proven absence, of segments and of history files; nothing is left lying about.
    for name in [
        next.as_str(),
        "00000002.history",
        "000000020000000000000001",
    ] {
        plainly(name).expect(ABSENT);
        assert!(!wanted(&server).exists());
    }
    assert!(prefetchers(&server).is_empty());

    // A hole: later segments are there. A standby may get the WAL elsewhere, and so may a server that has it itself.
    let missing = &names[names.len() - 3];
    let away = story.path("away");
    fs::rename(object(&story, missing), &away).expect("moved");
    plainly(missing).expect(STOP).expect_words(&[
        missing,
        &names[names.len() - 2],
        "missing from the archive",
    ]);
    let signal = server.data().join("standby.signal");
    File::create(&signal).expect("created");
    plainly(missing).expect(ABSENT);
    fs::remove_file(&signal).expect("removed");
    let own = server.data().join("pg_wal").join(missing);
    fs::copy(pair.primary.data().join("pg_wal").join(missing), &own).expect("copied");
    plainly(missing).expect(ABSENT);
    // A file that is only laid out for later does not count.
    fs::copy(pair.primary.data().join("pg_wal").join(&names[1]), &own).expect("copied");
    plainly(missing).expect(STOP);
    fs::remove_file(own).expect("removed");
    // Asked for as an ancestor's, after the newer timeline's was not there, it is no hole.
    plainly(&missing.replacen("00000001", "00000002", 1)).expect(ABSENT);
    plainly(missing).expect(ABSENT);
    plainly(missing).expect(STOP);
    // Its beginning alone is a hole too, unless recovery has a target, which may lie there.
    let loose = story.path(&format!("{missing}.partial"));
    let own = pair.primary.data().join("pg_wal").join(missing);
    fs::copy(own, &loose).expect("copied");
    leeward
        .run(&["wal", "push", loose.to_str().expect("a path in UTF-8")])
        .expect(exit::DONE);
    plainly(missing)
        .expect(STOP)
        .expect_words(&["the end of", missing]);
    server.append_config("recovery_target_time = '2030-01-01'");
    plainly(missing).expect(exit::DONE);
    server.append_config("recovery_target_time = ''");
    plainly(missing).expect(STOP);
    fs::rename(&away, object(&story, missing)).expect("moved back");
    plainly(missing).expect(exit::DONE);

    // Damage is not served.
    let damaged = object(&story, &names[1]);
    let length = fs::metadata(&damaged).expect("it is there").len();
    for byte in [60, length / 2, length - 100, length - 1] {
        flip_bit(&damaged, byte, 5);
        plainly(&names[1]).expect(STOP).expect_words(&["damaged"]);
        assert!(!wanted(&server).exists());
        flip_bit(&damaged, byte, 5);
    }
    plainly(&names[1]).expect(exit::DONE);

    // Everything else stops the server too: another cluster, no repository, nonsense.
    let mut other = Server::initdb(&story, "other", &Initdb::default());
    other.start();
    other.stop(Stop::Fast);
    get(&leeward, &other, &names[0], &[])
        .expect(STOP)
        .expect_words(&["system identifier"]);
    get(&leeward, &other, &next, &[])
        .expect(STOP)
        .expect_words(&["system identifier"]);
    get(&leeward, &other, "00000002.history", &[]).expect(STOP);
    get(&leeward, &server, &next, &["--cluster", "nobody"])
        .expect(STOP)
        .expect_words(&["no cluster"]);
    for nonsense in [
        "RECOVERYXLOG",
        "pg_wal/000000010000000000000001",
        "0000000100000000FFFFFFFF",
    ] {
        plainly(nonsense).expect(STOP);
    }
    let elsewhere = Leeward::at(&story, &story.path("nowhere").display().to_string());
    get(&elsewhere, &server, &next, &[])
        .expect(STOP)
        .expect_words(&["no repository"]);
    get(&elsewhere, &server, &names[0], &[]).expect(STOP);
    let unreachable = Leeward::at(&story, "s3://bucket/prefix")
        .env("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        .env("AWS_ACCESS_KEY_ID", "x")
        .env("AWS_SECRET_ACCESS_KEY", "y");
    get(&unreachable, &server, &next, &[]).expect(STOP);
    for wrong in [
        vec!["wal", "get"],
        vec!["wal", "got", "x", "y"],
        vec!["wal", "get", "x", "y", "z"],
        vec!["wal", "get", &next, "pg_wal/x", "--no-such-option"],
        vec!["wal", "get", &next, "pg_wal/x", "--config", "/nowhere"],
        vec!["--no-such-option", "wal", "get", &next, "pg_wal/x"],
    ] {
        leeward.run(&wrong).expect(STOP);
    }
}

/// The name of the segment after another, far from where the low digits run over.
fn next_after(name: &str) -> String {
    let low = u32::from_str_radix(&name[16..], 16).expect("digits");
    format!("{}{:08X}", &name[..16], low + 1)
}

/// `kill -9` of get and of the prefetcher, whenever it hits them: the next call brings the segment, the right one.
fn killed(major: u32) {
    let story = Story::begin(major);
    let leeward = Leeward::new(&story);
    let mut pair = archiving_pair(&story, &leeward);
    let load = Load::start(&story, &pair.primary);
    for _ in 0..12 {
        pair.primary.switch_wal();
    }
    load.stop();
    pair.stop_primary();
    let names = wal_files(&story, 1);
    let server = pair.base.cold_copy(&story, "asking");
    let truth: Vec<Vec<u8>> = names
        .iter()
        .map(|name| direct(&story, &leeward, name))
        .collect();
    let mut random = StdRng::seed_from_u64(3100 + u64::from(major));
    let mut died = 0;
    for round in 0..30 {
        let number = random.random_range(0..names.len());
        let _ = fs::remove_file(wanted(&server));
        let args = ["wal", "get", &names[number], "pg_wal/RECOVERYXLOG"];
        let running = leeward.spawn_in(server.data(), &args);
        let_pass(std::time::Duration::from_micros(
            random.random_range(0..60_000),
        ));
        died += u32::from(running.kill().was_killed());
        if round % 3 == 0 {
            for pid in prefetchers(&server) {
                send(pid, rustix::process::Signal::KILL);
            }
        }
        for ahead in 0..3 {
            let number = (number + ahead).min(names.len() - 1);
            get(&leeward, &server, &names[number], &[]).expect(exit::DONE);
            assert!(
                fs::read(wanted(&server)).expect("it was brought") == truth[number],
                "{} is not what was archived",
                names[number]
            );
        }
    }
    assert!(died > 3, "only {died} were killed in time");
    wait_until("the prefetcher has ended", PATIENCE, || {
        prefetchers(&server).is_empty()
    });
    // A last one, which has cleared away behind the dead ones when it ends.
    get(&leeward, &server, &names[0], &[]).expect(exit::DONE);
    wait_until("the prefetcher has come and gone", PATIENCE, || {
        prefetchers(&server).is_empty() && spooled(&server).is_empty()
    });
    let left = files_under(&server.data().join("pg_wal/leeward"));
    let left: Vec<&PathBuf> = left.iter().filter(|file| is_large(file)).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    // It ends at once when its folder vanishes.
    get(&leeward, &server, &names[0], &[]).expect(exit::DONE);
    fs::rename(server.data(), story.path("renamed")).expect("renamed");
    wait_until("the prefetcher has ended", PATIENCE, || {
        prefetchers(&server).is_empty()
    });
}

fn is_large(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|file| file.len() > 100_000)
}

/// A segment brought to a place that is no server's.
fn direct(story: &Story, leeward: &Leeward<'_>, name: &str) -> Vec<u8> {
    let to = story.path("direct");
    leeward
        .run(&["wal", "get", name, to.to_str().expect("a path in UTF-8")])
        .expect(exit::DONE);
    fs::read(to).expect("it was brought")
}

/// Without an archive, the WAL that lies with a backup is found there.
fn from_a_backup(major: u32) {
    let story = Story::begin(major);
    let leeward = Leeward::new(&story);
    let mut pair = Pair::new(&story);
    let load = Load::start(&story, &pair.primary);
    let backup = leeward.back_up(&pair.standby, &[]);
    load.stop();
    let mut server = leeward.restored("latest", "restored", &[]);
    let wal = server.data().join("pg_wal");
    let mut removed = 0;
    for file in fs::read_dir(&wal).expect("it is there").flatten() {
        if file.file_name().len() == 24 {
            fs::remove_file(file.path()).expect("removed");
            removed += 1;
        }
    }
    assert!(removed > 0);
    let command = wal_command(&story, &leeward, "get %f %p");
    server.set("restore_command", &command);
    recover(&mut server);
    assert_eq!(
        server.sql(&format!(
            "SELECT pg_current_wal_lsn() >= '{}'",
            backup.stop_lsn()
        )),
        "t"
    );
    pair.primary.stop(Stop::Fast);
}

#[test]
fn to_the_last_byte_postgres_14() {
    to_the_last_byte(14);
}

#[test]
fn to_the_last_byte_postgres_15() {
    to_the_last_byte(15);
}

#[test]
fn to_the_last_byte_postgres_16() {
    to_the_last_byte(16);
}

#[test]
fn to_the_last_byte_postgres_17() {
    to_the_last_byte(17);
}

#[test]
fn to_the_last_byte_postgres_18() {
    to_the_last_byte(18);
}

#[test]
fn to_the_last_byte_postgres_19() {
    to_the_last_byte(19);
}

#[test]
fn standby_postgres_15() {
    standby(15);
}

#[test]
fn standby_postgres_16() {
    standby(16);
}

#[test]
fn standby_postgres_17() {
    standby(17);
}

#[test]
fn standby_postgres_18() {
    standby(18);
}

#[test]
fn standby_postgres_19() {
    standby(19);
}

#[test]
fn exit_codes_postgres_15() {
    exit_codes(15);
}

#[test]
fn exit_codes_postgres_16() {
    exit_codes(16);
}

#[test]
fn exit_codes_postgres_17() {
    exit_codes(17);
}

#[test]
fn exit_codes_postgres_18() {
    exit_codes(18);
}

#[test]
fn exit_codes_postgres_19() {
    exit_codes(19);
}

#[test]
fn killed_postgres_15() {
    killed(15);
}

#[test]
fn killed_postgres_16() {
    killed(16);
}

#[test]
fn killed_postgres_17() {
    killed(17);
}

#[test]
fn killed_postgres_18() {
    killed(18);
}

#[test]
fn killed_postgres_19() {
    killed(19);
}

#[test]
fn from_a_backup_postgres_15() {
    from_a_backup(15);
}

#[test]
fn from_a_backup_postgres_16() {
    from_a_backup(16);
}

#[test]
fn from_a_backup_postgres_17() {
    from_a_backup(17);
}

#[test]
fn from_a_backup_postgres_18() {
    from_a_backup(18);
}

#[test]
fn from_a_backup_postgres_19() {
    from_a_backup(19);
}
