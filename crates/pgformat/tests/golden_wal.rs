//! WAL that real servers wrote (see `golden/make-wal`), and what those servers said of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use leeward_pgformat::wal_segment::{WAL_PAGE_SIZE, WalSegmentName};
use leeward_pgformat::{Lsn, MajorVersion, WalDamage, WalEvent, WalScanner, WalSegmentSize};

fn directory(major: MajorVersion) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(major.to_string())
}

fn size() -> WalSegmentSize {
    WalSegmentSize::new(1 << 20).expect("a size")
}

/// The segment up to its switch record, and its first LSN.
fn wal(major: MajorVersion) -> (Lsn, Vec<u8>) {
    fs::read_dir(directory(major))
        .expect("golden directory")
        .find_map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_name()?.to_str()?.strip_prefix("wal.")?;
            let segment = WalSegmentName::parse(name, size())?;
            Some((segment.start_lsn(size()), fs::read(path).expect("WAL")))
        })
        .expect("golden WAL")
}

fn walk(start: Lsn, bytes: &[u8]) -> (Vec<WalEvent>, WalScanner, Result<(), WalDamage>) {
    let mut scanner = WalScanner::new(start, size());
    let mut events = Vec::new();
    let fed = scanner.feed(bytes, &mut |event| events.push(event));
    (events, scanner, fed)
}

/// A line of facts, its LSNs written as this crate does: 19 pads them with zeros.
fn lsns_unpadded(line: &str) -> String {
    let words: Vec<String> = line
        .split(' ')
        .map(|word| {
            word.parse::<Lsn>()
                .map_or_else(|_| word.to_owned(), |lsn| lsn.to_string())
        })
        .collect();
    words.join(" ")
}

#[test]
fn the_walk_tells_what_the_server_said() {
    for major in MajorVersion::ALL {
        let (start, bytes) = wal(major);
        let (events, scanner, fed) = walk(start, &bytes);
        assert_eq!(
            (fed, scanner.expect_complete()),
            (Ok(()), Ok(())),
            "{major}"
        );
        assert_eq!(scanner.major(), Some(major));
        assert_eq!(scanner.switched_at(), Some(scanner.position()), "{major}");
        let found: BTreeSet<String> = events
            .iter()
            // What was done to find out the segment's name.
            .skip(1)
            .filter_map(|event| {
                Some(match event {
                    WalEvent::Commit { xid, time, .. } => {
                        format!("commit {} {}", xid.0, time.unix_micros())
                    }
                    WalEvent::Abort { xid, .. } => format!("abort {}", xid.0),
                    WalEvent::RestorePoint { name, end, .. } => {
                        format!("restore_point {name} {end}")
                    }
                    WalEvent::Checkpoint {
                        time, redo, begin, ..
                    } => format!(
                        "checkpoint {begin} {redo} {}",
                        time.unix_micros() / 1_000_000
                    ),
                    WalEvent::Switch { end, .. } => format!("switch {end}"),
                    // A prepared transaction is told again when it ends.
                    WalEvent::OtherTransaction { .. } => return None,
                    other => format!("{other:?}"),
                })
            })
            .collect();
        let facts = fs::read_to_string(directory(major).join("wal.facts")).expect("facts");
        let facts: BTreeSet<String> = facts.lines().map(lsns_unpadded).collect();
        assert_eq!(found, facts, "{major}");
        assert!(facts.len() >= 10, "{major}");
    }
}

#[test]
fn a_flipped_bit_in_any_record_is_noticed() {
    for major in MajorVersion::ALL {
        let (start, mut bytes) = wal(major);
        let (sound, _, _) = walk(start, &bytes);
        let page = WAL_PAGE_SIZE as usize;
        let mut passed = 0;
        for at in 40..bytes.len() {
            if at % page < 24 {
                continue;
            }
            let bit = 1 << (at % 8);
            bytes[at] ^= bit;
            let (events, scanner, fed) = walk(start, &bytes);
            bytes[at] ^= bit;
            if fed.is_ok() && scanner.expect_complete().is_ok() && scanner.switched_at().is_some() {
                assert_eq!(events, sound, "{major}, byte {at}");
                passed += 1;
            }
        }
        // The bytes between records, at most seven each; they mean nothing.
        assert!(
            passed < bytes.len() / 20,
            "{major}: {passed} bytes of {}",
            bytes.len()
        );
    }
}
