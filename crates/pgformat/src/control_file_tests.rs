use proptest::prelude::*;

use super::*;

/// A control file a real server wrote; the other versions are read in `tests/golden.rs`.
const GOLDEN: &[u8] = include_bytes!("../tests/golden/18/pg_control.primary");

/// The golden bytes with a field changed and the CRC made right again.
fn changed(offset: usize, value: u32) -> Result<ControlFile, ControlFileError> {
    let mut bytes = GOLDEN.to_vec();
    bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..LAYOUT_18.crc]);
    bytes[LAYOUT_18.crc..LAYOUT_18.crc + 4].copy_from_slice(&crc.to_le_bytes());
    ControlFile::parse(&bytes)
}

#[test]
fn unknown_versions_are_named() {
    let error = changed(offset::CONTROL_VERSION, 1901).expect_err("a beta of 19 is not known");
    assert_eq!(
        error.to_string(),
        "could not read the control file: control file version 1901 (catalog version 202506291) is of no PostgreSQL \
         version from 14 to 19"
    );
    assert_eq!(
        changed(offset::CATALOG_VERSION, 202_505_071),
        Err(ControlFileError::UnsupportedVersion {
            control_version: 1800,
            catalog_version: 202_505_071
        }),
        "a beta's catalog"
    );
    assert_eq!(
        changed(offset::CONTROL_VERSION, 1800_u32.swap_bytes()),
        Err(ControlFileError::ByteOrder)
    );
}

#[test]
fn fields_that_make_no_sense_are_named() {
    let field = |field, value| Err(ControlFileError::Field { field, value });
    assert_eq!(
        changed(offset::STATE, 7),
        field("database cluster state", 7)
    );
    assert_eq!(changed(LAYOUT_18.wal_level, 3), field("wal_level", 3));
    assert_eq!(
        changed(LAYOUT_18.wal_segment_size, 1000),
        field("WAL segment size", 1000)
    );
}

#[test]
fn unusual_block_sizes_are_read_and_refused() {
    let refusal = |offset, value| {
        changed(offset, value)
            .expect("well formed")
            .check_block_sizes()
    };
    let field = |field, value| Err(ControlFileError::Field { field, value });
    assert_eq!(
        refusal(LAYOUT_18.block_size, 32768),
        field("page size", 32768)
    );
    assert_eq!(
        refusal(LAYOUT_18.wal_block_size, 4096),
        field("WAL page size", 4096)
    );
    assert_eq!(
        refusal(LAYOUT_18.relation_segment_blocks, 262_144),
        field("pages per relation segment", 262_144)
    );
    assert_eq!(refusal(LAYOUT_18.block_size, 8192), Ok(()));
}

#[test]
fn a_torn_read_is_told_from_an_empty_file() {
    let mut torn = GOLDEN.to_vec();
    torn[128..].fill(0);
    assert!(matches!(
        ControlFile::parse(&torn),
        Err(ControlFileError::BadCrc { .. })
    ));
    assert_eq!(
        ControlFile::parse(&[0; CONTROL_FILE_SIZE]),
        Err(ControlFileError::AllZero)
    );
    assert!(matches!(
        ControlFile::parse(&GOLDEN[..100]),
        Err(ControlFileError::TooShort { actual: 100, .. })
    ));
    assert!(matches!(
        ControlFile::parse(&[]),
        Err(ControlFileError::TooShort { actual: 0, .. })
    ));
}

#[test]
fn states_read_as_pg_controldata_prints_them() {
    let names: Vec<_> = (0..8)
        .filter_map(DbState::from_u32)
        .map(|state| state.to_string())
        .collect();
    assert_eq!(
        names,
        [
            "starting up",
            "shut down",
            "shut down in recovery",
            "shutting down",
            "in crash recovery",
            "in archive recovery",
            "in production"
        ]
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(ControlFile::parse(&bytes).is_err());
    }

    #[test]
    fn any_field_may_hold_anything(word in 4..73_usize, value: u32) {
        // Behind a right CRC, every value is either taken or named.
        match changed(word * 4, value) {
            Ok(_) | Err(ControlFileError::Field { .. }) => {}
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}
