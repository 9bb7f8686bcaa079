//! WAL segments: their sizes, their names, and the long header on the first page of each.
//!
//! Facts from `access/xlog_internal.h`.

use std::fmt;

use crate::{FormatError, Lsn, MajorVersion, SystemIdentifier, TimelineId, u16_at, u32_at, u64_at};

/// Bytes of the long header on a WAL segment's first page (`SizeOfXLogLongPHD`).
pub const WAL_LONG_HEADER_SIZE: usize = 40;

/// Bytes of a WAL page: `XLOG_BLCKSZ` of every distributed PostgreSQL.
pub const WAL_PAGE_SIZE: u32 = 8192;

/// Digits in a WAL segment's name (`XLOG_FNAME_LEN`).
const NAME_LENGTH: usize = 24;

/// `XLP_LONG_HEADER`: the page header carries the segment's identity.
const LONG_HEADER_FLAG: u16 = 0x0002;

/// The size of each WAL segment of a cluster: a power of two from 1 MiB to 1 GiB, chosen at `initdb`, 16 MiB unless
/// asked otherwise (`IsValidWalSegSize`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WalSegmentSize(u32);

impl WalSegmentSize {
    /// What `initdb` chooses: 16 MiB (`DEFAULT_XLOG_SEG_SIZE`, `pg_config_manual.h`).
    pub const DEFAULT: WalSegmentSize = WalSegmentSize(16 << 20);

    /// That many bytes; `None` unless a power of two from 1 MiB to 1 GiB.
    #[must_use]
    pub const fn new(size_bytes: u32) -> Option<WalSegmentSize> {
        if size_bytes.is_power_of_two() && size_bytes >= 1 << 20 && size_bytes <= 1 << 30 {
            Some(WalSegmentSize(size_bytes))
        } else {
            None
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// The number of the WAL segment that holds the byte at `lsn` (`XLByteToSeg`).
    #[must_use]
    pub const fn segment_number(self, lsn: Lsn) -> u64 {
        lsn.0 / self.bytes()
    }

    /// The number of the WAL segment that holds the byte before `lsn` (`XLByteToPrevSeg`): the last segment needed
    /// to replay up to `lsn`. Zero for [`Lsn::INVALID`].
    #[must_use]
    pub const fn segment_number_before(self, lsn: Lsn) -> u64 {
        lsn.0.saturating_sub(1) / self.bytes()
    }

    /// Bytes from the beginning of its WAL segment to `lsn` (`XLogSegmentOffset`).
    #[must_use]
    pub const fn offset(self, lsn: Lsn) -> u64 {
        lsn.0 % self.bytes()
    }

    /// WAL segments in 4 GiB of WAL (`XLogSegmentsPerXLogId`): the last eight digits of a name stay below it.
    const fn segments_per_id(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

impl fmt::Display for WalSegmentSize {
    /// As `SHOW wal_segment_size` does: `16MB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 1 << 30 {
            f.pad("1GB")
        } else {
            f.pad(&format!("{}MB", self.0 >> 20))
        }
    }
}

/// A WAL segment: a timeline and a number counted from the beginning of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalSegmentName {
    /// The timeline it was written on.
    pub timeline: TimelineId,
    /// Its number: the LSN of its first byte divided by the segment size.
    pub number: u64,
}

impl WalSegmentName {
    /// The WAL segment of `timeline` that holds the byte at `lsn`.
    #[must_use]
    pub const fn containing(
        timeline: TimelineId,
        lsn: Lsn,
        size: WalSegmentSize,
    ) -> WalSegmentName {
        WalSegmentName {
            timeline,
            number: size.segment_number(lsn),
        }
    }

    /// The file name: 24 hexadecimal digits (`XLogFileName`). It depends on the segment size.
    #[must_use]
    pub fn name(self, size: WalSegmentSize) -> String {
        let per_id = size.segments_per_id();
        format!(
            "{:08X}{:08X}{:08X}",
            self.timeline.0,
            self.number / per_id,
            self.number % per_id
        )
    }

    /// Reads a file name (`IsXLogFileName`, `XLogFromFileName`); `None` for anything else, and for a name that
    /// cannot occur with this segment size.
    #[must_use]
    pub fn parse(name: &str, size: WalSegmentSize) -> Option<WalSegmentName> {
        if !is_wal_segment_name(name) {
            return None;
        }
        let part = |from: usize| u32::from_str_radix(name.get(from..from + 8)?, 16).ok();
        let (timeline, id, low) = (part(0)?, part(8)?, part(16)?);
        if u64::from(low) >= size.segments_per_id() {
            return None;
        }
        let number = u64::from(id) * size.segments_per_id() + u64::from(low);
        // Of the last one of all, no LSN is the end: the server stops before.
        (number + 1).checked_mul(size.bytes())?;
        Some(WalSegmentName {
            timeline: TimelineId(timeline),
            number,
        })
    }

    /// The LSN of its first byte.
    #[must_use]
    pub const fn start_lsn(self, size: WalSegmentSize) -> Lsn {
        Lsn(self.number.saturating_mul(size.bytes()))
    }

    /// The LSN after its last byte.
    #[must_use]
    pub const fn end_lsn(self, size: WalSegmentSize) -> Lsn {
        Lsn(self.number.saturating_add(1).saturating_mul(size.bytes()))
    }

    /// The next WAL segment of the same timeline.
    #[must_use]
    pub const fn next(self) -> WalSegmentName {
        WalSegmentName {
            timeline: self.timeline,
            number: self.number + 1,
        }
    }
}

fn is_upper_hex(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'))
}

/// Whether a file name is a whole WAL segment's, whatever the segment size (`IsXLogFileName`).
#[must_use]
pub fn is_wal_segment_name(name: &str) -> bool {
    name.len() == NAME_LENGTH && is_upper_hex(name)
}

/// Whether a file name is that of an incomplete WAL segment, as `pg_receivewal` and a promotion leave them
/// (`IsPartialXLogFileName`).
#[must_use]
pub fn is_partial_wal_segment_name(name: &str) -> bool {
    name.strip_suffix(".partial")
        .is_some_and(is_wal_segment_name)
}

/// Whether a file name is a backup history file's (`IsBackupHistoryFileName`), as
/// `000000010000000000000004.00000028.backup`.
#[must_use]
pub fn is_backup_history_file_name(name: &str) -> bool {
    name.strip_suffix(".backup")
        .and_then(|stem| stem.split_once('.'))
        .is_some_and(|(segment, offset)| {
            is_wal_segment_name(segment) && offset.len() == 8 && is_upper_hex(offset)
        })
}

/// The name of a timeline's history file (`TLHistoryFileName`): `00000002.history`.
#[must_use]
pub fn history_file_name(timeline: TimelineId) -> String {
    format!("{:08X}.history", timeline.0)
}

/// The timeline whose history file has this name; `None` when it is no such name (`IsTLHistoryFileName`).
#[must_use]
pub fn parse_history_file_name(name: &str) -> Option<TimelineId> {
    let digits = name
        .strip_suffix(".history")
        .filter(|digits| digits.len() == 8 && is_upper_hex(digits))?;
    u32::from_str_radix(digits, 16).ok().map(TimelineId)
}

/// Whether a file name is a timeline history file's (`IsTLHistoryFileName`).
#[must_use]
pub fn is_history_file_name(name: &str) -> bool {
    parse_history_file_name(name).is_some()
}

/// The number each WAL page of that major version begins with (`XLOG_PAGE_MAGIC`).
#[must_use]
pub const fn wal_page_magic(major: MajorVersion) -> u16 {
    match major {
        MajorVersion::V14 => 0xD10D,
        MajorVersion::V15 => 0xD110,
        MajorVersion::V16 => 0xD113,
        MajorVersion::V17 => 0xD116,
        MajorVersion::V18 => 0xD118,
        MajorVersion::V19 => 0xD122,
    }
}

/// Returns every flag that a WAL page of that major version may have (`XLP_ALL_FLAGS`). 19 gave up
/// `XLP_BKP_REMOVABLE` (0x0004) and renumbered the one above it.
pub(crate) const fn wal_page_flags(major: MajorVersion) -> u16 {
    if major.as_u32() >= 19 { 0x0007 } else { 0x000F }
}

/// The header on the first page of a WAL segment, which says whose it is (`XLogLongPageHeaderData`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalLongHeader {
    /// The format of the pages; see [`wal_page_magic`].
    pub magic: u16,
    /// The major version that writes such pages.
    pub major: MajorVersion,
    /// The timeline of the first record that begins on this page. *At most* the timeline in the file's name: the
    /// segment in which a promotion happened begins with the old timeline's pages.
    pub timeline: TimelineId,
    /// The LSN of the page, and so of the segment.
    pub page_address: Lsn,
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The size of the cluster's WAL segments.
    pub segment_size: WalSegmentSize,
    /// The size of WAL pages, in bytes.
    pub block_size: u32,
}

impl WalLongHeader {
    /// Reads the header from the first bytes of a WAL segment (40 or more).
    ///
    /// # Errors
    ///
    /// [`FormatError::WalHeader`] when the bytes cannot be the beginning of a WAL segment of a known version: among
    /// them a segment that was created but never written (all zeros).
    pub fn parse(bytes: &[u8]) -> Result<WalLongHeader, FormatError> {
        let wrong = |reason: String| FormatError::WalHeader { reason };
        if bytes.len() < WAL_LONG_HEADER_SIZE {
            return Err(wrong(format!(
                "it has only {} bytes, {WAL_LONG_HEADER_SIZE} are needed",
                bytes.len()
            )));
        }
        let magic = u16_at(bytes, 0);
        let Some(major) = MajorVersion::ALL
            .into_iter()
            .find(|major| wal_page_magic(*major) == magic)
        else {
            return Err(wrong(
                if bytes[..WAL_LONG_HEADER_SIZE].iter().all(|byte| *byte == 0) {
                    "it is all zeros: nothing was ever written to this segment".to_owned()
                } else {
                    format!(
                        "magic number {magic:04X} is of no PostgreSQL version from {} to {}",
                        MajorVersion::OLDEST,
                        MajorVersion::NEWEST
                    )
                },
            ));
        };
        let info = u16_at(bytes, 2);
        if info & !wal_page_flags(major) != 0 {
            return Err(wrong(format!("unknown flags {info:04X}")));
        }
        if info & LONG_HEADER_FLAG == 0 {
            return Err(wrong("it is not the first page of a segment".to_owned()));
        }
        let size_bytes = u32_at(bytes, 32);
        let Some(segment_size) = WalSegmentSize::new(size_bytes) else {
            return Err(wrong(format!(
                "segment size {size_bytes} is not a power of two from 1 MB to 1 GB"
            )));
        };
        let block_size = u32_at(bytes, 36);
        if block_size != WAL_PAGE_SIZE {
            return Err(wrong(format!(
                "WAL page size {block_size} is not supported, only {WAL_PAGE_SIZE}"
            )));
        }
        let page_address = Lsn(u64_at(bytes, 8));
        if segment_size.offset(page_address) != 0 {
            return Err(wrong(format!(
                "its LSN {page_address} is not the beginning of a segment"
            )));
        }
        Ok(WalLongHeader {
            magic,
            major,
            timeline: TimelineId(u32_at(bytes, 4)),
            page_address,
            system_identifier: SystemIdentifier(u64_at(bytes, 24)),
            segment_size,
            block_size,
        })
    }

    /// Whether this header belongs at the beginning of the WAL segment `name` of cluster `system_identifier`. A
    /// recycled segment, renamed ahead and not yet written, still has the header of its former life.
    ///
    /// # Errors
    ///
    /// [`FormatError::WalHeader`] saying which of cluster, LSN or timeline does not agree.
    pub fn check(
        &self,
        name: WalSegmentName,
        system_identifier: SystemIdentifier,
    ) -> Result<(), FormatError> {
        let wrong = |reason: String| Err(FormatError::WalHeader { reason });
        let expected = name.start_lsn(self.segment_size);
        if self.system_identifier != system_identifier {
            wrong(format!(
                "it is from the cluster with system identifier {}, not {system_identifier}",
                self.system_identifier
            ))
        } else if self.page_address != expected {
            wrong(format!(
                "it begins at LSN {}, its name says {expected}",
                self.page_address
            ))
        } else if self.timeline > name.timeline {
            wrong(format!(
                "it is from timeline {}, its name says {}",
                self.timeline, name.timeline
            ))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
#[path = "wal_segment_tests.rs"]
mod tests;
