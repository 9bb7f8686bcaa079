//! Repositories that somebody else can write to: whatever they say, a restore or an export is refused or harmless.
//!
//! Each case is restored, exported, listed and shown by the program, as root and as the server's user. Outside the
//! destination nothing changes, and inside there is nothing with rights or an owner that the server's user does not have.

mod cases;
mod world;

use cases::{CASES, Case, Expected};
use leeward_fixtures::{Forged, ForgedRecord as Record, ForgedRun};
use world::{As, World};

/// Runs every case in a world of its own, and tells of all that fail.
fn each(check: impl Fn(&World, &Case)) {
    let failed = CASES.iter().filter(|case| {
        let run = || {
            let world = World::new();
            let mut forged = Forged::new(world::USER);
            (case.forge)(&mut forged, world.path());
            world.store(&forged);
            check(&world, case);
        };
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err()
    });
    let failed: Vec<&str> = failed.map(|case| case.name).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

fn restores(who: As) {
    each(|world, case| {
        let before = world.snapshot();
        let outcome = world.run(who, &["restore", "--to", &world.text("restored")]);
        world.assert_unchanged(&before, case.name);
        if case.expected == Expected::Refused
            || (case.expected == Expected::RefusedAsRoot && who == As::Root)
        {
            assert_ne!(outcome.code, 0, "{}: {outcome}", case.name);
        }
        if outcome.code == 0 {
            world.assert_restored(case.name);
        } else {
            world.assert_not_startable(case.name);
        }
        assert!(
            outcome.stderr.contains("error: ") || outcome.code == 0,
            "{}: {outcome}",
            case.name
        );
    });
}

fn exports(who: As) {
    each(|world, case| {
        let before = world.snapshot();
        let outcome = world.run(who, &["export", "latest", "--to", &world.text("exported")]);
        world.assert_unchanged(&before, case.name);
        if outcome.code == 0 {
            for name in ["data.tar.zst", "wal.tar.zst"] {
                world.assert_archive(&world.path().join("exported").join(name), case.name);
            }
            world.assert_extracts(case.name);
        } else {
            assert!(
                outcome.stderr.contains("error: "),
                "{}: {outcome}",
                case.name
            );
        }
    });
}

#[test]
fn there_are_enough() {
    assert!(CASES.len() >= 60);
    let names: std::collections::BTreeSet<&str> = CASES.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), CASES.len());
}

/// The forger's own backup, unchanged, restores: what is refused is refused for what was changed.
#[test]
fn what_is_not_changed_restores() {
    for who in As::possible() {
        let world = World::new();
        let mut forged = Forged::new(world::USER);
        forged.add_tablespace(16400, &world.text("space"));
        world.store(&forged);
        let restored = world.text("restored");
        let place = format!("{}={}", world.text("space"), world.text("moved"));
        let outcome = world.run(who, &["restore", "--to", &restored, "--tablespace", &place]);
        assert_eq!(outcome.code, 0, "{outcome}");
        world.assert_restored("nothing");
        let relation = world.path().join("moved/PG_17_202406281/5/20000");
        assert_eq!(std::fs::read(relation).expect("it is there"), [9; 8192]);
    }
}

/// More directories, and more files in several pieces, than a process may have open.
#[test]
fn few_descriptors_are_enough() {
    let world = World::new();
    let mut forged = Forged::new(world::USER);
    let piece = |offset| ForgedRun {
        frame_offset: offset,
        file_offset: offset,
        length: 4096,
        ..ForgedRun::default()
    };
    for number in 0..1_000 {
        let folder = format!("base/{}", 20_000 + number);
        forged.add([Record::directory(folder.as_str())]);
        for file in ["16384", "16385"] {
            let mut record = Record::file(format!("{folder}/{file}"), b"");
            record.size = 8192;
            record.runs = Some(vec![piece(0), piece(4096)]);
            forged.add([record]);
        }
    }
    world.store(&forged);
    let restored = world.text("restored");
    let outcome = world.run_with_descriptors(As::User, 450, &["restore", "--to", &restored]);
    assert_eq!(outcome.code, 0, "{outcome}");
    let last = world.path().join("restored/base/20999/16385");
    assert_eq!(std::fs::read(last).expect("it is there"), [7; 8192]);
}

#[test]
fn restored_as_root() {
    if As::Root.is_possible() {
        restores(As::Root);
    }
}

#[test]
fn restored_by_the_servers_user() {
    restores(As::User);
}

#[test]
fn exported_as_root() {
    if As::Root.is_possible() {
        exports(As::Root);
    }
}

#[test]
fn exported_by_the_servers_user() {
    exports(As::User);
}

#[test]
fn listed_and_shown() {
    each(|world, case| {
        let before = world.snapshot();
        for who in As::possible() {
            for command in [["list"].as_slice(), &["show", "latest"]] {
                let outcome = world.run(who, command);
                let told =
                    ["error: ", "cannot be read"].map(|words| outcome.stderr.contains(words));
                let said = outcome.code == 0 || told.contains(&true);
                assert!(said, "{}: {outcome}", case.name);
            }
        }
        world.assert_unchanged(&before, case.name);
    });
}
