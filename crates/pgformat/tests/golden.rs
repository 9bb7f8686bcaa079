//! Bytes that real servers wrote, one directory a major version under `golden/` (see `golden/make`), and what those
//! servers said about them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use leeward_pgformat::backup_label::BackupFrom;
use leeward_pgformat::control_file::WalLevel;
use leeward_pgformat::page::{check_page, page_checksum, page_lsn, stored_checksum};
use leeward_pgformat::relation_map::RelationMap;
use leeward_pgformat::wal_segment::wal_page_magic;
use leeward_pgformat::{
    BackupLabel, BlockNumber, ControlFile, ControlFileError, DbState, Lsn, MajorVersion, PAGE_SIZE,
    PageDamage, PageVerdict, SystemIdentifier, TablespaceMap, TimelineHistory, TimelineId,
    WalLongHeader, WalSegmentName,
};

fn directory(major: MajorVersion) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(major.to_string())
}

fn bytes(major: MajorVersion, name: &str) -> Vec<u8> {
    let path = directory(major).join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn text(major: MajorVersion, name: &str) -> String {
    String::from_utf8(bytes(major, name)).expect("UTF-8")
}

fn control_file(major: MajorVersion, name: &str) -> ControlFile {
    ControlFile::parse(&bytes(major, name))
        .unwrap_or_else(|error| panic!("{major} {name}: {error}"))
}

/// The files of a version whose name begins so, with the rest of their names.
fn files_named(major: MajorVersion, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory(major)).expect("golden directory") {
        let name = entry
            .expect("entry")
            .file_name()
            .into_string()
            .expect("UTF-8");
        if let Some(rest) = name.strip_prefix(prefix) {
            found.push((rest.to_owned(), bytes(major, &name)));
        }
    }
    found.sort();
    found
}

/// What the server said, by the name of the function's column or of the setting.
fn facts(major: MajorVersion, name: &str) -> BTreeMap<String, String> {
    let lines = text(major, name);
    lines
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

#[test]
fn control_files_say_what_the_server_says() {
    for major in MajorVersion::ALL {
        for (kind, state) in [
            ("primary", DbState::InProduction),
            ("standby", DbState::InArchiveRecovery),
        ] {
            let control = control_file(major, &format!("pg_control.{kind}"));
            let facts = facts(major, &format!("pg_control.{kind}.facts"));
            let said = |name: &str| {
                facts
                    .get(name)
                    .unwrap_or_else(|| panic!("{major} {kind}: no {name}"))
                    .as_str()
            };
            let number = |name: &str| {
                said(name)
                    .parse::<u64>()
                    .unwrap_or_else(|_| panic!("{name}"))
            };
            let on = |name: &str| matches!(said(name), "true" | "on" | "t");
            let lsn = |name: &str| said(name).parse::<Lsn>().expect("LSN");
            let wal_level = match said("wal_level") {
                "replica" => WalLevel::Replica,
                other => panic!("{other}"),
            };
            let (epoch, transaction) = said("next_xid").split_once(':').expect("epoch:xid");
            let next_transaction_id = epoch.parse::<u64>().expect("epoch") << 32
                | transaction.parse::<u64>().expect("xid");
            let expected = ControlFile {
                system_identifier: SystemIdentifier(number("system_identifier")),
                control_version: number("pg_control_version") as u32,
                catalog_version: number("catalog_version_no") as u32,
                major,
                state,
                time: number("last_modified_epoch") as i64,
                checkpoint: lsn("checkpoint_lsn"),
                redo: lsn("redo_lsn"),
                checkpoint_timeline: TimelineId(number("timeline_id") as u32),
                checkpoint_previous_timeline: TimelineId(number("prev_timeline_id") as u32),
                checkpoint_time: number("checkpoint_epoch") as i64,
                full_page_writes: on("full_page_writes"),
                next_transaction_id,
                min_recovery_point: lsn("min_recovery_end_lsn"),
                min_recovery_point_timeline: TimelineId(number("min_recovery_end_timeline") as u32),
                backup_start_point: lsn("backup_start_lsn"),
                backup_end_point: lsn("backup_end_lsn"),
                backup_end_required: on("end_of_backup_record_required"),
                wal_level,
                wal_log_hints: on("wal_log_hints"),
                max_connections: number("max_connections") as u32,
                max_worker_processes: number("max_worker_processes") as u32,
                max_wal_senders: number("max_wal_senders") as u32,
                max_prepared_transactions: number("max_prepared_transactions") as u32,
                max_locks_per_transaction: number("max_locks_per_transaction") as u32,
                track_commit_timestamp: on("track_commit_timestamp"),
                block_size: number("database_block_size") as u32,
                wal_block_size: number("wal_block_size") as u32,
                relation_segment_blocks: number("blocks_per_segment") as u32,
                wal_segment_size: leeward_pgformat::WalSegmentSize::new(number(
                    "bytes_per_wal_segment",
                ) as u32)
                .expect("segment size"),
                data_checksum_version: number("data_page_checksum_version") as u32,
            };
            assert_eq!(control, expected, "{major} {kind}");
            assert!(control.data_checksums());
            assert_eq!(control.check_block_sizes(), Ok(()));
            assert_eq!(
                control.tablespace_version_directory().to_string(),
                format!("PG_{major}_{}", said("catalog_version_no"))
            );
        }
        // The two settings that only another value can prove: 17 was made with larger WAL segments.
        let segment_mib = if major == MajorVersion::V17 { 64 } else { 16 };
        assert_eq!(
            control_file(major, "pg_control.primary")
                .wal_segment_size
                .bytes(),
            segment_mib << 20
        );
    }
}

#[test]
fn control_files_know_a_clean_stop() {
    for major in MajorVersion::ALL {
        let primary = control_file(major, "pg_control.shut_down");
        assert_eq!(primary.state, DbState::ShutDown, "{major}");
        assert_eq!(primary.min_recovery_point, Lsn::INVALID);
        let standby = control_file(major, "pg_control.shut_down_in_recovery");
        assert_eq!(standby.state, DbState::ShutDownInRecovery, "{major}");
        assert!(standby.min_recovery_point.is_valid());
        assert_eq!(primary.system_identifier, standby.system_identifier);
    }
}

#[test]
fn a_later_minimum_recovery_point_changes_nothing_else() {
    for major in MajorVersion::ALL {
        let old = bytes(major, "pg_control.shut_down_in_recovery");
        let (lsn, timeline) = (Lsn(0x12_3456_7890), TimelineId(77));
        let new = ControlFile::with_min_recovery_point(&old, lsn, timeline).expect("sound");
        assert_eq!(new.len(), old.len());
        let expected = ControlFile {
            min_recovery_point: lsn,
            min_recovery_point_timeline: timeline,
            ..ControlFile::parse(&old).expect("sound")
        };
        assert_eq!(ControlFile::parse(&new), Ok(expected), "{major}");
        let differing = old.iter().zip(&new).filter(|(old, new)| old != new);
        assert!(
            differing.count() <= 8 + 4 + 4,
            "{major}: point, timeline and CRC"
        );
    }
}

#[test]
fn every_flipped_bit_of_a_control_file_is_noticed() {
    for major in MajorVersion::ALL {
        let good = bytes(major, "pg_control.primary");
        let crc_end = match major.as_u32() {
            ..=17 => 292,
            18 => 296,
            _ => 312,
        };
        for bit in 0..crc_end * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = ControlFile::parse(&bad).expect_err("one bit differs");
            match bit / 64 {
                1 => assert!(
                    matches!(
                        error,
                        ControlFileError::UnsupportedVersion { .. }
                            | ControlFileError::BadCrc { .. }
                            | ControlFileError::ByteOrder
                    ),
                    "{error}"
                ),
                _ => assert!(
                    matches!(error, ControlFileError::BadCrc { .. }),
                    "{major} bit {bit}: {error}"
                ),
            }
        }
        let mut beyond = good.clone();
        beyond[crc_end] ^= 1;
        assert_eq!(
            ControlFile::parse(&beyond),
            ControlFile::parse(&good),
            "nothing lies beyond the CRC"
        );
        assert!(ControlFile::parse(&good[..crc_end]).is_ok());
        let short = ControlFile::parse(&good[..crc_end - 1]);
        assert_eq!(
            short,
            Err(ControlFileError::TooShort {
                actual: crc_end - 1,
                needed: crc_end
            })
        );
    }
}

#[test]
fn relation_maps_say_what_the_server_says() {
    for major in MajorVersion::ALL {
        let map = RelationMap::parse(&bytes(major, "relation_map")).expect("a relation map");
        let mut mapped: Vec<(String, String)> = (map.entries.iter())
            .map(|(oid, number)| (oid.to_string(), number.to_string()))
            .collect();
        mapped.sort();
        let said: Vec<(String, String)> = facts(major, "relation_map.facts").into_iter().collect();
        assert_eq!(mapped, said, "{major}");
        // One that was written anew, so that a map which just repeats the OIDs would not do.
        assert!(said.iter().any(|(oid, number)| oid != number), "{major}");
    }
}

#[test]
fn pages_of_every_kind_are_good_at_their_block_only() {
    for major in MajorVersion::ALL {
        let lsns = text(major, "page.lsns");
        let pages = files_named(major, "page.");
        let pages: Vec<_> = pages
            .into_iter()
            .filter(|(name, _)| name != "lsns")
            .collect();
        assert_eq!(pages.len(), 4, "{major}");
        for (name, page) in pages {
            let (kind, block) = name.split_once(".block").expect("kind.block<n>");
            let block = BlockNumber(block.parse().expect("block"));
            assert_eq!(page.len(), PAGE_SIZE);
            let said = lsns
                .lines()
                .find_map(|line| line.strip_prefix(kind))
                .expect("a line")
                .trim();
            assert_eq!(Ok(page_lsn(&page)), said.parse(), "{major} {name}");

            let after = page_lsn(&page) + 1;
            assert_eq!(
                check_page(&page, block, true, after),
                PageVerdict::Ok,
                "{major} {name}"
            );
            assert_eq!(
                check_page(&page, block, true, page_lsn(&page)),
                PageVerdict::NewerThanStart
            );
            let stored = stored_checksum(&page);
            assert_eq!(page_checksum(&page, block), stored);

            let elsewhere = BlockNumber(block.0 + 1);
            let computed = page_checksum(&page, elsewhere);
            let damage = PageDamage::Checksum { stored, computed };
            assert_eq!(
                check_page(&page, elsewhere, true, after),
                PageVerdict::Damaged(damage),
                "{major} {name}"
            );
            assert_eq!(
                check_page(&page, elsewhere, false, after),
                PageVerdict::Ok,
                "no checksums, no judgement"
            );
        }
    }
}

#[test]
fn wal_segments_say_whose_they_are() {
    for major in MajorVersion::ALL {
        let control = control_file(major, "pg_control.primary");
        let segments = files_named(major, "wal_segment_head.");
        assert_eq!(segments.len(), 2, "{major}");
        for (file_name, head) in segments {
            let header = WalLongHeader::parse(&head)
                .unwrap_or_else(|error| panic!("{major} {file_name}: {error}"));
            assert_eq!(header.major, major);
            assert_eq!(header.magic, wal_page_magic(major));
            assert_eq!(header.segment_size, control.wal_segment_size);
            assert_eq!(header.block_size, control.wal_block_size);
            assert_eq!(
                header.timeline,
                TimelineId(1),
                "even where the segment's name says timeline 3"
            );
            let name =
                WalSegmentName::parse(&file_name, control.wal_segment_size).expect("segment name");
            assert_eq!(name.name(control.wal_segment_size), file_name);
            assert_eq!(
                header.page_address,
                name.start_lsn(control.wal_segment_size)
            );
            assert_eq!(header.check(name, control.system_identifier), Ok(()));
            assert!(
                header
                    .check(name.next(), control.system_identifier)
                    .is_err()
            );
            assert!(header.check(name, SystemIdentifier(1)).is_err());
        }
    }
}

#[test]
fn backup_labels_name_their_start() {
    for major in MajorVersion::ALL {
        for (kind, from) in [
            ("primary", BackupFrom::Primary),
            ("standby", BackupFrom::Standby),
        ] {
            let label = BackupLabel::parse(&text(major, &format!("backup_label.{kind}")))
                .unwrap_or_else(|error| panic!("{major} {kind}: {error}"));
            assert_eq!(label.from, Some(from));
            assert_eq!(label.method.as_deref(), Some("streamed"));
            assert_eq!(label.label.as_deref(), Some("nightly: \"one\""));
            assert_eq!(label.start_timeline, TimelineId(1));
            assert_eq!(label.incremental_from, None);
            assert!(label.start_time.expect("start time").ends_with(" CET"));
            let size = control_file(major, "pg_control.primary").wal_segment_size;
            let segment = WalSegmentName::containing(label.start_timeline, label.start_lsn, size);
            assert_eq!(label.start_wal_segment, segment.name(size));
            assert!(label.checkpoint > label.start_lsn);
        }
        // The control file copied during the standby's backup names the same restartpoint.
        let label = BackupLabel::parse(&text(major, "backup_label.standby")).expect("label");
        let control = control_file(major, "pg_control.standby");
        assert_eq!(
            (control.redo, control.checkpoint),
            (label.start_lsn, label.checkpoint),
            "{major}"
        );
    }
}

#[test]
fn tablespace_maps_keep_awkward_paths() {
    for major in MajorVersion::ALL {
        let content = bytes(major, "tablespace_map");
        let map = TablespaceMap::parse(&content).unwrap_or_else(|error| panic!("{major}: {error}"));
        let mut paths: Vec<_> = map
            .entries
            .iter()
            .map(|entry| entry.location.to_str().expect("UTF-8"))
            .collect();
        paths.sort_unstable();
        assert_eq!(
            paths,
            [
                "/scratch/ two  spaces",
                "/scratch/back\\slash",
                "/scratch/new\nline",
                "/scratch/plain"
            ],
            "{major}: and no tablespace that lies in pg_tblspc itself"
        );
        assert_eq!(map.to_bytes(), content, "{major}");
    }
}

#[test]
fn timeline_histories_lead_back_to_the_first_timeline() {
    for major in MajorVersion::ALL {
        let history = TimelineHistory::parse(bytes(major, "00000003.history"), TimelineId(3))
            .unwrap_or_else(|error| panic!("{major}: {error}"));
        let [first, second] = history.entries.as_slice() else {
            panic!("{major}: {history:?}")
        };
        assert_eq!(
            (first.timeline, second.timeline),
            (TimelineId(1), TimelineId(2))
        );
        assert_eq!(first.reason, "no recovery target specified");
        assert!(first.switch_lsn < second.switch_lsn);
        assert_eq!(
            history.timeline_of(Lsn(first.switch_lsn.0 - 1)),
            TimelineId(1)
        );
        assert_eq!(history.timeline_of(first.switch_lsn), TimelineId(2));
        assert_eq!(history.timeline_of(second.switch_lsn), TimelineId(3));
    }
}
