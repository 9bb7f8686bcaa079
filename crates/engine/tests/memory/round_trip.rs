//! Nothing fails.

use std::collections::BTreeMap;
use std::fs::{self, File};

use leeward_engine::catalog;
use leeward_engine::wal::list::list;
use leeward_engine::wal::{GetOutcome, PushOutcome};
use leeward_fixtures::control_file;
use leeward_repository::store::memory::{Action, Fault, FaultPoint};
use leeward_repository::wal_archive::WalArchive;

use crate::world::{BACKUP, World, files, files_in_archive, wal};

/// Whether `found` has all files of the backup, but for those that a restore adds to.
fn assert_whole(world: &World, found: &BTreeMap<String, Vec<u8>>) {
    for (path, bytes) in &world.backup.files {
        if path != "postgresql.auto.conf" {
            assert!(found.get(path) == Some(bytes), "\"{path}\" is as backed up");
        }
    }
    let expected = control_file(world.wal.size);
    assert!(found.get("global/pg_control") == Some(&expected));
    assert!(found.contains_key("backup_label") && found.contains_key("recovery.signal"));
    let own: Vec<_> = found
        .iter()
        .filter(|(path, _)| path.starts_with("pg_wal/0"))
        .collect();
    assert_eq!(own.len(), 3, "the backup's own WAL");
    let size = world.wal.size.bytes() as usize;
    let own: Vec<u8> = own
        .into_iter()
        .flat_map(|(_, bytes)| bytes.clone())
        .collect();
    let stop = (world.backup.range.end - world.wal.start) as usize;
    assert!(own[..stop] == world.wal.bytes[..stop] && own.len() == 3 * size);
}

#[test]
fn a_backup_is_listed_restored_and_exported() {
    let world = World::new();
    let listed = catalog::list(&world.store, None).expect("listed");
    assert_eq!(listed[0].backups.sound[0].id.as_str(), BACKUP);

    let outcome = world.restore("restored").expect("restored");
    assert_eq!(outcome.summary.id.as_str(), BACKUP);
    assert_whole(&world, &files(&world.path("restored")));

    let mut stream = Vec::new();
    world.export_stream(&mut stream).expect("exported");
    assert_whole(&world, &files_in_archive(&stream[..]));

    let outcome = world.export("exported").expect("exported");
    let mut found = BTreeMap::new();
    for file in outcome.files {
        found.extend(files_in_archive(File::open(file).expect("an archive")));
    }
    assert_whole(&world, &found);
}

#[test]
fn archived_wal_is_listed_and_fetched() {
    let world = World::new();
    let listed = list(&world.store, None).expect("listed");
    assert_eq!(listed.timelines[0].segments, 5);
    assert_eq!(listed.windows.len(), 1);
    assert_eq!(listed.windows[0].to_lsn, world.wal.end());
    let server = world.server("server");
    for (segment, bytes) in world.wal.segments() {
        let name = segment.name(world.wal.size);
        let outcome = world.get(&server, &name).expect("fetched");
        assert_eq!(outcome, GetOutcome::Found);
        let found = fs::read(server.data.join("pg_wal/RECOVERYXLOG")).expect("a file");
        assert!(found == bytes, "{name} is as it was archived");
    }
    let next = world.wal.segments().last().expect("segments").0.next();
    let outcome = world.get(&server, &next.name(world.wal.size));
    assert_eq!(outcome.expect("asked"), GetOutcome::Absent);
}

#[test]
fn pushed_wal_is_archived_once() {
    let world = World::new();
    let server = world.server("server");
    let wal = wal(1, 9);
    let paths = server.write_wal(&wal);
    let outcome = world.push(&paths[8]).expect("pushed");
    assert_eq!((outcome.stored, outcome.present), (9, 5));
    for path in &paths {
        let outcome = world.push(path).expect("pushed");
        assert_eq!(
            outcome,
            PushOutcome::default(),
            "an earlier call brought it"
        );
    }
    let archive = WalArchive::new(&world.cluster);
    for (segment, bytes) in wal.segments() {
        let mut found = Vec::new();
        archive
            .read_segment(segment, wal.size, &mut found)
            .expect("read")
            .expect("archived");
        assert!(found == bytes);
    }
}

#[test]
fn other_wal_is_never_put_in_place() {
    let world = World::new();
    let server = world.server("server");
    let paths = server.write_wal(&wal(2, 5));
    let before = world.objects();
    let error = world.push(&paths[0]).expect_err("other WAL");
    assert!(error.to_string().contains("could not archive"), "{error}");
    assert_eq!(world.objects(), before);
}

#[test]
fn a_store_that_ignores_conditions_keeps_the_wal_it_has() {
    let world = World::new();
    world
        .memory
        .inject(FaultPoint::new(Fault::IgnoreCondition).on(&[
            Action::Create,
            Action::Replace,
            Action::Finish,
        ]));
    let server = world.server("server");
    let paths = server.write_wal(&wal(2, 5));
    let before = world.objects();
    for path in &paths {
        let (outcome, told) = world.push_and_listen(path);
        let error = outcome.expect_err("other WAL");
        assert!(error.to_string().contains("could not archive"), "{error}");
        assert!(told.contains("ignores conditional writes"), "{told}");
    }
    assert_eq!(world.objects(), before);

    // It is known for a while, and said once.
    let paths = world.server("another").write_wal(&wal(1, 6));
    let (outcome, told) = world.push_and_listen(&paths[5]);
    assert_eq!(outcome.expect("pushed").stored, 6);
    assert!(told.contains("ignores conditional writes"), "{told}");
    let paths = world.server("another").write_wal(&wal(1, 7));
    world.memory.clear_operations();
    let (outcome, told) = world.push_and_listen(&paths[6]);
    assert_eq!(outcome.expect("pushed").stored, 7);
    assert_eq!(told, "");
    let asked = world.memory.operations();
    assert!(
        asked
            .iter()
            .all(|operation| !operation.key.starts_with("store-"))
    );
}
