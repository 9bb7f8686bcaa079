//! The header of each WAL page (`XLogPageHeaderData`, `XLogLongPageHeaderData`; `access/xlog_internal.h`).

use crate::wal_segment::{WAL_LONG_HEADER_SIZE, WAL_PAGE_SIZE, wal_page_flags, wal_page_magic};
use crate::{
    Lsn, MajorVersion, SystemIdentifier, TimelineId, WalSegmentSize, u16_at, u32_at, u64_at,
};

use super::WalProblem;

/// `SizeOfXLogShortPHD`: a page that is not its segment's first.
const SHORT_HEADER_SIZE: u64 = 24;

/// `XLP_FIRST_IS_CONTRECORD`: the page begins with the rest of a record.
const FIRST_IS_CONTINUATION: u16 = 0x0001;
/// `XLP_LONG_HEADER`.
const LONG_HEADER: u16 = 0x0002;

/// Returns `XLP_FIRST_IS_OVERWRITE_CONTRECORD`: the record that was to continue here never will; a crash took its rest.
const fn first_overwrites_continuation(major: MajorVersion) -> u16 {
    if major.as_u32() >= 19 { 0x0004 } else { 0x0008 }
}

/// What earlier pages said that later ones must agree with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub segment_size: WalSegmentSize,
    pub major: Option<MajorVersion>,
    pub timeline: TimelineId,
    pub system_identifier: Option<SystemIdentifier>,
}

/// How a page goes on from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageStart {
    /// With a record.
    Record,
    /// With so many more bytes of a record.
    Continuation(u32),
    /// With a record, in place of the rest of one.
    Overwrites,
}

/// Bytes of the header of the page at `page`.
pub(super) const fn header_size(page: Lsn, segment_size: WalSegmentSize) -> u64 {
    if segment_size.offset(page) == 0 {
        WAL_LONG_HEADER_SIZE as u64
    } else {
        SHORT_HEADER_SIZE
    }
}

impl Known {
    /// Reads the header of the page at `page` and takes over what it says (`XLogReaderValidatePageHeader`). A header
    /// that does not belong there changes nothing.
    pub fn take(&mut self, page: Lsn, header: &[u8]) -> Result<PageStart, WalProblem> {
        let magic = u16_at(header, 0);
        let flags = u16_at(header, 2);
        let timeline = TimelineId(u32_at(header, 4));
        let found = Lsn(u64_at(header, 8));
        let major = MajorVersion::ALL
            .into_iter()
            .find(|major| wal_page_magic(*major) == magic)
            .filter(|major| self.major.is_none_or(|known| known == *major));
        let Some(major) = major else {
            return Err(if header.iter().all(|byte| *byte == 0) {
                WalProblem::Zeros
            } else {
                WalProblem::Magic { page, magic }
            });
        };
        let first_of_segment = self.segment_size.offset(page) == 0;
        if flags & !wal_page_flags(major) != 0 || (flags & LONG_HEADER != 0) != first_of_segment {
            return Err(WalProblem::Flags { page, flags });
        }
        if found != page {
            return Err(WalProblem::PageAddress { page, found });
        }
        if timeline < self.timeline {
            return Err(WalProblem::PageTimeline { page, timeline });
        }
        if first_of_segment {
            let system_identifier = SystemIdentifier(u64_at(header, 24));
            if self
                .system_identifier
                .is_some_and(|known| known != system_identifier)
            {
                return Err(WalProblem::Cluster {
                    page,
                    system_identifier,
                });
            }
            let (segment_size, page_size) = (u32_at(header, 32), u32_at(header, 36));
            if u64::from(segment_size) != self.segment_size.bytes() || page_size != WAL_PAGE_SIZE {
                return Err(WalProblem::Sizes {
                    page,
                    segment_size,
                    page_size,
                });
            }
            self.system_identifier = Some(system_identifier);
        }
        self.major = Some(major);
        self.timeline = timeline;
        Ok(if flags & first_overwrites_continuation(major) != 0 {
            PageStart::Overwrites
        } else if flags & FIRST_IS_CONTINUATION != 0 {
            PageStart::Continuation(u32_at(header, 16))
        } else {
            PageStart::Record
        })
    }
}
