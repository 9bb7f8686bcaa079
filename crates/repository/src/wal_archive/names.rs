//! The names inside the archive's folder, written and read.

use std::ops::Range;

use leeward_pgformat::wal_segment::{
    WAL_LONG_HEADER_SIZE, is_backup_history_file_name, is_wal_segment_name, parse_history_file_name,
};
use leeward_pgformat::{Lsn, TimelineId, WalSegmentName, WalSegmentSize};

use crate::store::Key;

/// What an object in the archive is, by its name alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ArchivedName<'a> {
    Segment(WalSegmentName),
    /// A piece, and the WAL segment it lies in.
    Piece(WalSegmentName, Range<Lsn>),
    History(TimelineId),
    BackupFile(TimelineId, &'a str),
    Gap(TimelineId, Range<Lsn>),
}

impl<'a> ArchivedName<'a> {
    /// Reads a key inside `folder`, the archive's; `None` for whatever is not ours.
    pub(super) fn parse(key: &'a Key, folder: &str, size: WalSegmentSize) -> Option<Self> {
        let inside = key.as_str().strip_prefix(folder)?.strip_prefix('/')?;
        let (timeline, name) = inside.split_once('/')?;
        let timeline = parse_timeline(timeline)?;
        if let Some(range) = name.strip_suffix(".gap.json") {
            return Some(Self::Gap(timeline, parse_range(range)?));
        }
        let name = name.strip_suffix(".zst")?;
        if let Some((segment, range)) = name.split_once('/') {
            let segment = parse_segment(segment, timeline, size)?;
            let range = parse_range(range)?;
            let inside =
                segment.start_lsn(size) <= range.start && range.end <= segment.end_lsn(size);
            return inside.then_some(Self::Piece(segment, range));
        }
        if is_wal_segment_name(name) {
            return parse_segment(name, timeline, size).map(Self::Segment);
        }
        if let Some(described) = parse_history_file_name(name) {
            return (described == timeline).then_some(Self::History(timeline));
        }
        let is_backup_file = is_backup_history_file_name(name)
            && name.get(..8).and_then(parse_timeline) == Some(timeline);
        is_backup_file.then_some(Self::BackupFile(timeline, name))
    }

    pub(super) fn timeline(&self) -> TimelineId {
        match self {
            Self::Segment(segment) | Self::Piece(segment, _) => segment.timeline,
            Self::History(timeline) | Self::BackupFile(timeline, _) | Self::Gap(timeline, _) => {
                *timeline
            }
        }
    }
}

/// Whether an object holds the first bytes of a WAL segment, as far as that can be told when the size of segments is not
/// known: then its WAL tells the size.
pub(super) fn begins_wal_segment(key: &Key, folder: &str) -> bool {
    (20..=30).any(|power| {
        let Some(size) = WalSegmentSize::new(1 << power) else {
            return false;
        };
        match ArchivedName::parse(key, folder, size) {
            Some(ArchivedName::Segment(_)) => true,
            Some(ArchivedName::Piece(segment, range)) => {
                range.start == segment.start_lsn(size)
                    && range.end - range.start >= WAL_LONG_HEADER_SIZE as u64
            }
            _ => false,
        }
    })
}

/// The timeline that a file other than a segment is kept with; `None` when the archive takes no file of this name.
pub(super) fn timeline_of_file(name: &str) -> Option<TimelineId> {
    if is_backup_history_file_name(name) {
        name.get(..8).and_then(parse_timeline)
    } else {
        parse_history_file_name(name)
    }
}

fn parse_segment(name: &str, timeline: TimelineId, size: WalSegmentSize) -> Option<WalSegmentName> {
    WalSegmentName::parse(name, size).filter(|segment| segment.timeline == timeline)
}

fn parse_timeline(digits: &str) -> Option<TimelineId> {
    Some(TimelineId(u32::try_from(parse_hex(digits, 8)?).ok()?))
}

fn parse_range(text: &str) -> Option<Range<Lsn>> {
    let (begin, end) = text.split_once('-')?;
    let range = Lsn(parse_hex(begin, 16)?)..Lsn(parse_hex(end, 16)?);
    (!range.is_empty()).then_some(range)
}

/// As many digits as are written, and no others.
fn parse_hex(digits: &str, length: usize) -> Option<u64> {
    let well_formed = digits.len() == length
        && digits
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    if well_formed {
        u64::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout;

    const SIZE: WalSegmentSize = WalSegmentSize::DEFAULT;
    const TIMELINE: TimelineId = TimelineId(0x2A);

    fn parse(key: &str) -> Option<String> {
        let key = Key::new(key).expect("a key");
        ArchivedName::parse(&key, "main/wal", SIZE).map(|name| format!("{name:?}"))
    }

    #[test]
    fn what_is_written_is_read() {
        let segment = WalSegmentName {
            timeline: TIMELINE,
            number: 0x1_0203,
        };
        let name = segment.name(SIZE);
        let start = segment.start_lsn(SIZE);
        let range = start + 8192..segment.end_lsn(SIZE);
        for (key, expected) in [
            (
                layout::archived_wal("main", TIMELINE, &name),
                ArchivedName::Segment(segment),
            ),
            (
                layout::archived_piece("main", TIMELINE, &name, &range),
                ArchivedName::Piece(segment, range.clone()),
            ),
            (
                layout::archived_wal("main", TIMELINE, "0000002A.history"),
                ArchivedName::History(TIMELINE),
            ),
            (
                layout::archived_wal("main", TIMELINE, "0000002A0000000000000004.00000028.backup"),
                ArchivedName::BackupFile(TIMELINE, "0000002A0000000000000004.00000028.backup"),
            ),
            (
                layout::wal_gap("main", TIMELINE, &range),
                ArchivedName::Gap(TIMELINE, range.clone()),
            ),
        ] {
            let key = key.expect("a key");
            let read = ArchivedName::parse(&key, "main/wal", SIZE);
            assert_eq!(read, Some(expected), "{key}");
            assert_eq!(read.map(|name| name.timeline()), Some(TIMELINE));
        }
    }

    #[test]
    fn strangers_are_not_ours() {
        for key in [
            "main/walrus/0000002A/0000002A0000000000000004.zst",
            "main/wal/0000002A0000000000000004.zst",
            "main/wal/0000002A/0000002A0000000000000004",
            "main/wal/0000002A/0000002A0000000000000004.zst.tmp",
            "main/wal/0000002A/0000002A0000000000000004.partial.zst",
            "main/wal/0000002A/0000002a0000000000000004.zst",
            "main/wal/0000002A/000000010000000000000004.zst",
            "main/wal/0000002a/0000002A0000000000000004.zst",
            "main/wal/0000002A/0000002A0000000000000104.zst",
            "main/wal/0000002A/0000002B.history.zst",
            "main/wal/0000002A/000000010000000000000004.00000028.backup.zst",
            "main/wal/0000002A/0000002A0000000000000004/0000000004000000-0000000004000000.zst",
            "main/wal/0000002A/0000002A0000000000000004/0000000004000000-0000000005000001.zst",
            "main/wal/0000002A/0000002A0000000000000004/0000000003FFFFFF-0000000004000001.zst",
            "main/wal/0000002A/0000002A0000000000000004/4000000-5000000.zst",
            "main/wal/0000002A/0000002A0000000000000004/+000000004000000-0000000005000000.zst",
            "main/wal/0000002A/0000002A0000000000000004/a/0000000004000000-0000000005000000.zst",
            "main/wal/0000002A/0000000005000000-0000000004000000.gap.json",
            "main/wal/0000002A/notes.txt",
        ] {
            assert_eq!(parse(key), None, "{key}");
        }
    }

    #[test]
    fn files_know_their_timeline() {
        assert_eq!(timeline_of_file("0000002A.history"), Some(TIMELINE));
        assert_eq!(
            timeline_of_file("0000002A0000000000000004.00000028.backup"),
            Some(TIMELINE)
        );
        for name in [
            "0000002A0000000000000004",
            "0000002A0000000000000004.partial",
            "x",
            "",
        ] {
            assert_eq!(timeline_of_file(name), None, "{name}");
        }
    }
}
