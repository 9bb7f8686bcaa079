use proptest::prelude::*;

use super::*;

const TEXT: &str = "START WAL LOCATION: 0/19FD510 (file 000000020000000000000001)
CHECKPOINT LOCATION: 0/19FD548
BACKUP METHOD: streamed
BACKUP FROM: standby
START TIME: 2026-11-22 21:12:54 CET
LABEL: a: b
START TIMELINE: 2
";

#[test]
fn reads_every_field() {
    assert_eq!(
        BackupLabel::parse(TEXT),
        Ok(BackupLabel {
            start_lsn: Lsn(0x19F_D510),
            start_wal_segment: "000000020000000000000001".to_owned(),
            checkpoint: Lsn(0x19F_D548),
            method: Some("streamed".to_owned()),
            from: Some(BackupFrom::Standby),
            start_time: Some("2026-11-22 21:12:54 CET".to_owned()),
            label: Some("a: b".to_owned()),
            start_timeline: TimelineId(2),
            incremental_from: None,
        })
    );
}

#[test]
fn an_incremental_backup_names_its_base() {
    let text = format!("{TEXT}INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n");
    let label = BackupLabel::parse(&text).expect("label");
    assert_eq!(
        label.incremental_from,
        Some((Lsn(0x100_0028), TimelineId(1)))
    );
}

#[test]
fn only_the_first_two_lines_are_needed() {
    let text: String = TEXT
        .lines()
        .take(2)
        .map(|line| format!("{line}\n"))
        .collect();
    let label = BackupLabel::parse(&text).expect("label");
    assert_eq!(
        label.start_timeline,
        TimelineId(2),
        "from the segment's name"
    );
    assert_eq!((label.from, label.label), (None, None));
}

#[test]
fn refuses_with_a_reason() {
    for (from, to, reason) in [
        (
            "START WAL",
            "BEGIN WAL",
            "expected \"START WAL LOCATION: ...\", found \"BEGIN WAL LOCATION: 0/19FD510 (file 000000020000000000000001)\"",
        ),
        (
            "CHECKPOINT LOCATION: 0/19FD548\n",
            "",
            "expected \"CHECKPOINT LOCATION: ...\", found \"BACKUP METHOD: streamed\"",
        ),
        (
            " (file 000000020000000000000001)",
            "",
            "START WAL LOCATION \"0/19FD510\" has no LSN and WAL segment name",
        ),
        (
            "000000020000000000000001",
            "0000000200000000000000",
            "\"0000000200000000000000\" is not the name of a WAL segment",
        ),
        (
            "0/19FD548",
            "0-1",
            "could not read LSN \"0-1\": expected two hexadecimal numbers as in \"16/B374D848\"",
        ),
        (
            "FROM: standby",
            "FROM: master",
            "BACKUP FROM \"master\" is neither primary nor standby",
        ),
        (
            "TIMELINE: 2",
            "TIMELINE: 1",
            "START TIMELINE 1 does not agree with WAL segment \"000000020000000000000001\"",
        ),
    ] {
        assert!(TEXT.contains(from));
        assert_eq!(
            BackupLabel::parse(&TEXT.replace(from, to)),
            Err(FormatError::BackupLabel {
                reason: reason.to_owned()
            })
        );
    }
    assert!(BackupLabel::parse("").is_err());
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(start in 0..TEXT.len(), length in 0..20_usize, junk in "\\PC{0,10}") {
        let mut text = TEXT.to_owned();
        text.replace_range(start..(start + length).min(TEXT.len()), &junk);
        let _ = BackupLabel::parse(&text);
    }
}
