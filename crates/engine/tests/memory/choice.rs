//! Which backup is taken, where several lie side by side: damaged ones, copied ones, WAL of timelines nobody knows.

use leeward_engine::error::ErrorKind;
use leeward_engine::recovery::RecoveryTarget;
use leeward_engine::wal::GetOutcome;
use leeward_engine::{catalog, wal::list::list};
use leeward_fixtures::{Backup, Wal, archive, record_end};
use leeward_pgformat::wal_segment::history_file_name;
use leeward_pgformat::{Lsn, SystemIdentifier, TimelineId, TransactionId, WalSegmentName};
use leeward_repository::catalog::Repository;
use leeward_repository::layout;
use leeward_repository::store::Key;
use leeward_repository::wal_archive::WalArchive;

use crate::world::{BACKUP, CLUSTER, World, wal};

const SECOND: &str = "20261123T023000Z-aaaa";
const THIRD: &str = "20261124T023000Z-bbbb";

/// A world with two backups of one page damaged, newer than the sound one.
fn damaged_behind_a_sound_one() -> World {
    let world = World::new();
    for (id, segment) in [(SECOND, 3), (THIRD, 4)] {
        let at = |block: u64| {
            let near = world.wal.start + segment * world.wal.size.bytes() + block * 8192;
            record_end(&world.wal, near)
        };
        let backup = Backup {
            is_damaged: true,
            ..Backup::new(id, at(4)..at(40))
        };
        backup.store(&world.cluster, &world.wal);
    }
    world
}

/// The only sound backup is gone.
fn none_sound() -> World {
    let world = damaged_behind_a_sound_one();
    let id = world.backup.id.clone();
    world.cluster.remove(&id).expect("removed");
    world
}

fn targets(world: &World) -> [RecoveryTarget; 4] {
    let behind = record_end(&world.wal, Lsn(world.wal.end().0 - 8192));
    [
        RecoveryTarget::End,
        RecoveryTarget::Immediate,
        RecoveryTarget::Lsn(behind),
        RecoveryTarget::Transaction(TransactionId(704)),
    ]
}

#[test]
fn a_sound_backup_is_taken_before_a_newer_damaged_one() {
    let world = damaged_behind_a_sound_one();
    for (number, target) in targets(&world).into_iter().enumerate() {
        for wanted in [None, Some("latest")] {
            let to = format!("restored {number} {}", wanted.unwrap_or_default());
            let outcome = world
                .restore_to(wanted, target.clone(), &to)
                .unwrap_or_else(|e| panic!("{target}: {e}"));
            assert_eq!(outcome.summary.id.as_str(), BACKUP, "{target}");
            // A target that lies before the third backup's end leaves only the second to be told.
            let told = outcome.notes.iter().any(|note| {
                note.contains("was passed over") && (note.contains(THIRD) || note.contains(SECOND))
            });
            assert!(told, "{target}: {:?}", outcome.notes);
        }
    }
}

#[test]
fn the_newest_sound_backup_is_exported() {
    let world = damaged_behind_a_sound_one();
    let outcome = world.export_stream(Vec::new()).expect("exported");
    assert_eq!(outcome.summary.id.as_str(), BACKUP);
    let error = none_sound()
        .export_stream(Vec::new())
        .expect_err("no sound backup");
    assert_eq!(error.kind(), ErrorKind::Damaged);
    let words = error.to_string();
    assert!(words.contains(SECOND) && words.contains(THIRD), "{words}");
}

#[test]
fn a_damaged_backup_is_taken_by_its_name_alone() {
    let world = damaged_behind_a_sound_one();
    for name in [THIRD, "20261124"] {
        let outcome = world
            .restore_to(Some(name), RecoveryTarget::End, name)
            .expect("restored");
        assert_eq!(outcome.summary.id.as_str(), THIRD);
        assert!(
            outcome.notes[0].starts_with("DAMAGED"),
            "{:?}",
            outcome.notes
        );
    }
}

#[test]
fn where_no_backup_is_sound_the_damaged_ones_are_listed() {
    let world = none_sound();
    for (number, target) in targets(&world).into_iter().enumerate() {
        let to = format!("refused {number}");
        let error = world
            .restore_to(None, target.clone(), &to)
            .expect_err("no sound backup");
        assert_eq!(error.kind(), ErrorKind::Damaged, "{target}: {error}");
        let words = error.to_string();
        let hint = error.advice().unwrap_or_default();
        for id in [SECOND, THIRD] {
            assert!(words.contains(id) || hint.contains(id), "{target}: {hint}");
        }
        let leads = if words.contains(THIRD) { THIRD } else { SECOND };
        let command = format!("leeward restore {leads}");
        assert!(hint.contains(&command), "{target}: {hint}");
        // The command that is named succeeds.
        let named = world.restore_to(Some(leads), target.clone(), &format!("by name {number}"));
        let named = named.unwrap_or_else(|e| panic!("{target}: {e}"));
        assert_eq!(named.summary.id.as_str(), leads);
        assert!(!world.path(&to).exists(), "nothing was written");
    }
}

#[test]
fn a_summary_that_cannot_be_read_costs_its_own_backup() {
    let world = damaged_behind_a_sound_one();
    let id = THIRD.parse().expect("an id");
    let key = layout::summary(CLUSTER, &id).expect("a key");
    world.memory.put(key, "torn");
    let outcome = world.restore("restored").expect("restored");
    assert_eq!(outcome.summary.id.as_str(), BACKUP);
    let told = |note: &String| note.contains(THIRD) && note.contains("cannot be read");
    assert!(outcome.notes.iter().any(told), "{:?}", outcome.notes);
    assert!(list(&world.store, None).is_ok());
}

/// Copies everything below one folder of the repository to another.
fn copy(world: &World, from: &str, to: &str) {
    for (key, bytes) in world.memory.objects() {
        if let Some(inside) = key.as_str().strip_prefix(from) {
            let key = Key::new(format!("{to}{inside}")).expect("a key");
            world.memory.put(key, bytes);
        }
    }
}

#[test]
fn a_folder_copied_from_another_cluster_is_told_and_not_counted() {
    let world = World::new();
    // A copied folder names its own cluster.
    let id = THIRD.parse().expect("an id");
    let backup = Backup::new(THIRD, world.backup.range.clone());
    let mut summary = backup.store(&world.cluster, &world.wal);
    summary.system_identifier = SystemIdentifier(4_711);
    let key = layout::summary(CLUSTER, &id).expect("a key");
    world.memory.remove(&key);
    world.cluster.commit(&summary).expect("committed");

    let listed = catalog::list(&world.store, None).expect("listed");
    assert_eq!(listed[0].backups.sound.len(), 1);
    let (told, problem) = &listed[0].backups.unreadable[0];
    assert_eq!(told, &id);
    assert!(problem.to_string().contains("4711"), "{problem}");
    let outcome = world.restore("restored").expect("restored");
    assert_eq!(outcome.summary.id.as_str(), BACKUP);
    let latest = world.cluster.resolve("latest").expect("a backup");
    assert_eq!(latest.id.as_str(), BACKUP);
    let error = world
        .restore_to(Some(THIRD), RecoveryTarget::End, "refused")
        .expect_err("another cluster's");
    assert!(error.to_string().contains("4711"), "{error}");
    // Its WAL is no source either: the archive has none of this cluster.
    for (key, _) in world.memory.objects() {
        if key.as_str().starts_with(&format!("{CLUSTER}/wal/")) {
            world.memory.remove(&key);
        }
    }
    world.cluster.remove(&world.backup.id).expect("removed");
    let server = world.server("server");
    let (segment, _) = world.wal.segments().next().expect("a segment");
    let found = world.get(&server, &segment.name(world.wal.size));
    assert_eq!(found.expect("asked"), GetOutcome::Absent);
}

#[test]
fn a_backup_under_another_name_is_told_and_not_counted() {
    let world = World::new();
    copy(
        &world,
        &format!("{CLUSTER}/backups/{BACKUP}/"),
        &format!("{CLUSTER}/backups/{THIRD}/"),
    );
    let outcome = world.restore("restored").expect("restored");
    assert_eq!(outcome.summary.id.as_str(), BACKUP);
    // A cluster's folder under another cluster's name.
    copy(&world, &format!("{CLUSTER}/"), "copy/");
    let repository = Repository::open(std::sync::Arc::clone(&world.store)).expect("opened");
    let listed = repository.cluster("copy").and_then(|copy| copy.backups());
    assert!(listed.is_err() || listed.is_ok_and(|backups| backups.sound.is_empty()));
}

/// The next segment, on another timeline.
fn going_on(wal: &Wal, timeline: u32) -> Wal {
    let mut next = wal.clone();
    next.start = wal.end();
    next.bytes.clear();
    next.timeline = TimelineId(timeline);
    next.filler(5_000);
    next.fill_segment(30_000);
    next
}

#[test]
fn a_timeline_without_its_history_file_is_no_free_number() {
    let world = World::new();
    archive(&world.cluster, &going_on(&world.wal, 2));
    let history = history_file_name(TimelineId(2));

    // Told that there is none, a server in recovery would take the number for itself.
    let server = world.server("server");
    let error = world
        .get(&server, &history)
        .expect_err("the number is taken");
    assert!(
        error.to_string().contains("timeline 2 is in use"),
        "{error}"
    );
    // A number that nobody uses is free, and the first timeline has no such file.
    for timeline in [3, 1] {
        let free = world.get(&server, &history_file_name(TimelineId(timeline)));
        assert_eq!(free.expect("asked"), GetOutcome::Absent);
    }
    // A standby takes none before it is promoted, and goes on.
    let standby = world.server("standby");
    standby.write("standby.signal", b"");
    let asked = world.get(&standby, &history);
    assert_eq!(asked.expect("asked"), GetOutcome::Absent);

    // Restored to the end, the WAL of that timeline would be missing; along the older one the number is kept taken.
    let error = world.restore("refused").expect_err("WAL would be left out");
    assert!(error.to_string().contains("timeline 2"), "{error}");
    let to_immediate = world.restore_to(None, RecoveryTarget::Immediate, "restored");
    to_immediate.expect("restored");
    assert!(world.path("restored/pg_wal").join(&history).exists());
    // The number of a timeline that is passed by on the way to a newer one is kept taken too: the server asks for it.
    archive(&world.cluster, &going_on(&world.wal, 3));
    let store_history = |timeline: u32| {
        let content = format!("1\t{}\tno recovery target specified\n", world.wal.end());
        WalArchive::new(&world.cluster)
            .store_file(
                &history_file_name(TimelineId(timeline)),
                world.wal.system_identifier,
                content.as_bytes(),
            )
            .expect("stored");
    };
    store_history(3);
    let outcome = world.restore("newer").expect("restored");
    assert!(
        outcome
            .notes
            .iter()
            .all(|note| !note.contains("WAL of timeline"))
    );
    assert!(world.path("newer/pg_wal").join(&history).exists());
    // With its history file, everything is as it should be.
    store_history(2);
    let found = world.get(&server, &history).expect("asked");
    assert_eq!(found, GetOutcome::Found);
}

fn causes(error: &dyn std::error::Error) -> String {
    let source = error.source().map(causes).unwrap_or_default();
    format!("{error}: {source}")
}

/// A file that somebody copied from another cluster's archive: what it says is not of this one.
#[test]
fn a_history_file_of_another_cluster_is_refused() {
    let world = World::new();
    archive(&world.cluster, &going_on(&world.wal, 2));
    let content = format!("1\t{}\tno recovery target specified\n", world.wal.end());
    let history = history_file_name(TimelineId(2));
    let other = SystemIdentifier(world.wal.system_identifier.0 + 1);
    WalArchive::new(&world.cluster)
        .store_file(&history, other, content.as_bytes())
        .expect("stored");

    let error = world.restore("refused").expect_err("it leads elsewhere");
    assert!(causes(&error).contains(&other.to_string()), "{error}");
    let server = world.server("server");
    let error = world.get(&server, &history).expect_err("it is refused");
    assert!(causes(&error).contains(&other.to_string()), "{error}");
}

/// Two servers went on from one moment: one was backed up, the other archives. Recovery would take what the other did.
#[test]
fn a_backup_that_the_archive_contradicts_is_refused() {
    for segment in [1, 2] {
        let world = World::new();
        let size = world.wal.size;
        let number = size.segment_number(world.wal.start) + segment;
        let name = WalSegmentName {
            timeline: TimelineId(1),
            number,
        };
        let key = layout::archived_wal(CLUSTER, name.timeline, &name.name(size)).expect("a key");
        world.store.delete(&key).expect("deleted");
        // One of both alone contradicts nothing.
        let immediate = || RecoveryTarget::Immediate;
        let alone = world.restore_to(None, immediate(), "alone");
        alone.expect("restored");
        // The records begin and end where those of the other do: nothing but their content tells.
        let mut other = wal(2, 5);
        let begin = (segment * size.bytes()) as usize;
        other.bytes = other.bytes[begin..begin + size.bytes() as usize].to_vec();
        other.start = name.start_lsn(size);
        archive(&world.cluster, &other);
        for target in [RecoveryTarget::End, immediate()] {
            let error = world
                .restore_to(None, target, "refused")
                .expect_err("two histories");
            assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
            assert!(error.to_string().contains(&name.name(size)), "{error}");
            assert!(!world.path("refused").exists());
        }
        // As the hint says.
        world.export("exported").expect("exported");
    }
}
