use proptest::prelude::*;

use super::*;

const MIB: u32 = 1 << 20;

fn size(mib: u32) -> WalSegmentSize {
    WalSegmentSize::new(mib * MIB).expect("a power of two")
}

fn any_size() -> impl Strategy<Value = WalSegmentSize> {
    (0..=10_u32).prop_map(|power| size(1 << power))
}

#[test]
fn sizes_are_powers_of_two_within_bounds() {
    for bytes in [0, 1, MIB / 2, 3 * MIB, MIB + 1, 1 << 31, u32::MAX] {
        assert_eq!(WalSegmentSize::new(bytes), None, "{bytes}");
    }
    assert_eq!(WalSegmentSize::new(16 * MIB), Some(WalSegmentSize::DEFAULT));
    assert_eq!(size(1024).bytes(), 1 << 30);
    assert_eq!(
        (size(1).to_string(), size(1024).to_string()),
        ("1MB".to_owned(), "1GB".to_owned())
    );
}

#[test]
fn names_depend_on_the_segment_size() {
    let lsn = "16/B374D848".parse().expect("LSN");
    for (mib, expected) in [
        (1, "000000020000001600000B37"),
        (16, "0000000200000016000000B3"),
        (64, "00000002000000160000002C"),
        (1024, "000000020000001600000002"),
    ] {
        let segment = WalSegmentName::containing(TimelineId(2), lsn, size(mib));
        assert_eq!(segment.name(size(mib)), expected);
        assert_eq!(WalSegmentName::parse(expected, size(mib)), Some(segment));
    }
}

#[test]
fn impossible_names_are_refused() {
    for name in [
        "",
        "00000001000000000000000",
        "0000000100000000000000010",
        "00000001000000000000000a",
        "00000001000000000000000G",
        "000000010000000000000001.partial",
        "000000010000000000000100",
        "00000001é0000000000000000",
    ] {
        assert_eq!(WalSegmentName::parse(name, size(16)), None, "{name}");
    }
    assert!(
        WalSegmentName::parse("000000010000000000000100", size(1)).is_some(),
        "256 MiB in, with 1 MiB segments"
    );
}

#[test]
fn boundaries_belong_to_the_next_segment_unless_asked_for_the_one_before() {
    let boundary = Lsn(32 << 20);
    assert_eq!(size(16).segment_number(boundary), 2);
    assert_eq!(size(16).segment_number_before(boundary), 1);
    assert_eq!(size(16).segment_number_before(boundary + 1), 2);
    assert_eq!(size(16).segment_number_before(Lsn::INVALID), 0);
    assert_eq!(size(16).offset(boundary + 40), 40);
    let segment = WalSegmentName {
        timeline: TimelineId(1),
        number: 2,
    };
    assert_eq!(
        (segment.start_lsn(size(16)), segment.end_lsn(size(16))),
        (boundary, Lsn(48 << 20))
    );
    assert_eq!(
        segment.next().start_lsn(size(16)),
        segment.end_lsn(size(16))
    );
}

#[test]
fn neighbours_in_pg_wal_are_told_apart() {
    assert_eq!(history_file_name(TimelineId(0x1F)), "0000001F.history");
    assert_eq!(
        parse_history_file_name("0000001F.history"),
        Some(TimelineId(0x1F))
    );
    for name in [
        "0000001f.history",
        "1F.history",
        "0000001F.history.done",
        "0000001F",
        "+000001F.history",
    ] {
        assert!(!is_history_file_name(name), "{name}");
    }
    assert!(is_partial_wal_segment_name(
        "000000010000000000000004.partial"
    ));
    assert!(!is_partial_wal_segment_name("000000010000000000000004"));
    assert!(is_backup_history_file_name(
        "000000010000000000000004.00000028.backup"
    ));
    assert!(!is_backup_history_file_name(
        "000000010000000000000004.backup"
    ));
}

fn header() -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&0xD118_u16.to_le_bytes());
    bytes.extend_from_slice(&0x0007_u16.to_le_bytes());
    bytes.extend_from_slice(&3_u32.to_le_bytes());
    bytes.extend_from_slice(&(5_u64 << 24).to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&42_u64.to_le_bytes());
    bytes.extend_from_slice(&(16 * MIB).to_le_bytes());
    bytes.extend_from_slice(&8192_u32.to_le_bytes());
    bytes
}

#[test]
fn headers_that_cannot_be_are_refused_with_the_reason() {
    assert!(WalLongHeader::parse(&header()).is_ok());
    let reason = |at: usize, value: &[u8]| {
        let mut bytes = header();
        bytes[at..at + value.len()].copy_from_slice(value);
        WalLongHeader::parse(&bytes).map_err(|error| error.to_string())
    };
    let refused = |why: &str| Err(format!("could not read the WAL segment's header: {why}"));
    assert_eq!(
        reason(0, &[0x0B, 0xD1]),
        refused("magic number D10B is of no PostgreSQL version from 14 to 19")
    );
    assert_eq!(reason(2, &[0x12, 0]), refused("unknown flags 0012"));
    assert!(reason(2, &[0x0F, 0]).is_ok());
    assert_eq!(
        reason(0, &[0x22, 0xD1, 0x0F, 0]),
        refused("unknown flags 000F"),
        "19 has fewer"
    );
    assert_eq!(
        reason(2, &[1, 0]),
        refused("it is not the first page of a segment")
    );
    assert_eq!(
        reason(32, &[1]),
        refused("segment size 16777217 is not a power of two from 1 MB to 1 GB")
    );
    assert_eq!(
        reason(36, &[0, 0x40]),
        refused("WAL page size 16384 is not supported, only 8192")
    );
    assert_eq!(
        reason(9, &[0x20]),
        refused("its LSN 0/5002000 is not the beginning of a segment")
    );
    assert_eq!(
        reason(0, &[0; 40]),
        refused("it is all zeros: nothing was ever written to this segment")
    );
    let short = WalLongHeader::parse(&header()[..39]).map_err(|error| error.to_string());
    assert_eq!(short, refused("it has only 39 bytes, 40 are needed"));
}

#[test]
fn headers_belong_to_one_segment() {
    let header = WalLongHeader::parse(&header()).expect("header");
    let name = |timeline: u32, number: u64| WalSegmentName {
        timeline: TimelineId(timeline),
        number,
    };
    assert_eq!(header.check(name(3, 5), SystemIdentifier(42)), Ok(()));
    assert_eq!(
        header.check(name(4, 5), SystemIdentifier(42)),
        Ok(()),
        "a promotion happened in this segment"
    );
    let wrong = |name, system| {
        header
            .check(name, SystemIdentifier(system))
            .expect_err("wrong")
            .to_string()
    };
    assert!(wrong(name(3, 6), 42).ends_with("it begins at LSN 0/5000000, its name says 0/6000000"));
    assert!(wrong(name(2, 5), 42).ends_with("it is from timeline 3, its name says 2"));
    assert!(
        wrong(name(3, 5), 41).ends_with("it is from the cluster with system identifier 42, not 41")
    );
}

proptest! {
    #[test]
    fn names_round_trip(timeline: u32, lsn: u64, size in any_size()) {
        let segment = WalSegmentName::containing(TimelineId(timeline), Lsn(lsn), size);
        prop_assert_eq!(WalSegmentName::parse(&segment.name(size), size), Some(segment));
        prop_assert!(segment.start_lsn(size) <= Lsn(lsn));
        prop_assert!(Lsn(lsn) <= segment.end_lsn(size));
        prop_assert_eq!(segment.start_lsn(size) + size.offset(Lsn(lsn)), Lsn(lsn));
    }

    #[test]
    fn names_of_a_timeline_sort_as_their_lsns_do(one: u64, other: u64, size in any_size()) {
        let name = |lsn| WalSegmentName::containing(TimelineId(1), Lsn(lsn), size);
        prop_assert_eq!(name(one).cmp(&name(other)), name(one).name(size).cmp(&name(other).name(size)));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = WalLongHeader::parse(&bytes);
    }

    #[test]
    fn any_name_is_read_or_refused(name in "\\PC{0,30}", size in any_size()) {
        if let Some(segment) = WalSegmentName::parse(&name, size) {
            prop_assert_eq!(segment.name(size), name);
        }
    }
}
