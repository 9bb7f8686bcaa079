//! Pages: the header every page begins with, the checksum, and what a backup may believe about a page it has read.
//!
//! Facts from `storage/bufpage.h` (header), `storage/page/bufpage.c` (`PageIsVerified`) and
//! `storage/checksum_impl.h` (checksum).

mod checksum;

use std::fmt;

pub use checksum::page_checksum;
pub(crate) use checksum::page_checksums;

use crate::{BlockNumber, Lsn, PAGE_SIZE, u16_at, u32_at};

/// Bytes of the header on each page (`SizeOfPageHeaderData`).
pub const PAGE_HEADER_SIZE: usize = 24;

/// `PD_VALID_FLAG_BITS`: every flag a page header may carry.
const VALID_FLAGS: u16 = 0x0007;

/// `pd_pagesize_version` of each page since 8.3: the page size, with layout version 4 in the low byte
/// (`PG_PAGE_LAYOUT_VERSION`).
pub(crate) const PAGE_SIZE_AND_VERSION: u16 = PAGE_SIZE as u16 | 4;

/// What [`check_page`] finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageVerdict {
    /// A good page, unchanged since the backup began.
    Ok,
    /// All zeros: a page that was allocated and not yet written. Good, and without an LSN.
    Zero,
    /// A page changed since the backup began, with a sane header. It may be torn, which does no harm: WAL from the
    /// start LSN on holds it whole. So its checksum is not judged.
    NewerThanStart,
    /// Damaged, or read while the server was writing it: read again before believing it.
    Damaged(PageDamage),
}

/// What is wrong with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageDamage {
    /// The header is not one PostgreSQL writes; [`header_fault`] says what is wrong with it.
    Header,
    /// The header says the page is new and empty, yet there are bytes on it.
    NonZeroNew,
    /// The checksum in the header is not that of the content.
    Checksum {
        /// The checksum in the header.
        stored: u16,
        /// The checksum of the content.
        computed: u16,
    },
    /// The page claims a change from after the end of the WAL that the cluster has replayed.
    LsnBeyondReplay,
}

impl fmt::Display for PageDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PageDamage::Header => f.pad("page header is not valid"),
            PageDamage::NonZeroNew => f.pad("page is marked as new but is not empty"),
            // PostgreSQL's order and notation (decimal), so that both messages can be laid side by side.
            PageDamage::Checksum { stored, computed } => f.pad(&format!(
                "page checksum does not match: the content gives {computed}, the page header says {stored}"
            )),
            PageDamage::LsnBeyondReplay => f.pad("page LSN lies beyond the end of the replayed WAL"),
        }
    }
}

/// The first thing wrong with a page header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderFault {
    /// Flag bits that no version sets.
    Flags(u16),
    /// The bounds of the free space are not in order: `lower <= upper <= special <= 8192`.
    Bounds {
        /// Where free space begins (`pd_lower`).
        lower: u16,
        /// Where it ends (`pd_upper`).
        upper: u16,
        /// Where the special space begins (`pd_special`).
        special: u16,
    },
    /// The special space does not begin at a multiple of 8 bytes.
    SpecialNotAligned(u16),
    /// Not an 8192-byte page of layout version 4.
    SizeAndVersion(u16),
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderFault::Flags(flags) => write!(f, "unknown flags 0x{flags:04X}"),
            HeaderFault::Bounds {
                lower,
                upper,
                special,
            } => {
                write!(
                    f,
                    "free space bounds out of order: lower {lower}, upper {upper}, special {special}"
                )
            }
            HeaderFault::SpecialNotAligned(special) => {
                write!(f, "special space at {special} is not aligned")
            }
            HeaderFault::SizeAndVersion(found) => {
                write!(
                    f,
                    "page size {} with layout version {}, expected {PAGE_SIZE} with 4",
                    found & 0xFF00,
                    found & 0xFF
                )
            }
        }
    }
}

/// Judges a page read from a relation file while the server may be running.
///
/// `block` is relation-wide: segment × 131072 + position in the file. `checksums` says whether the cluster's pages
/// carry checksums (`data_checksum_version`). `start_lsn` is the backup's start LSN: a page changed at or after it
/// has only its header judged. Costs a look at 24 bytes unless a checksum or a test for zeros is called for.
///
/// The rules are the server's (`PageIsVerified`), and one more: page size and layout version must be right. A damaged
/// page of a free space map or visibility map loses no data: see [`crate::Fork::is_repaired_by_server`].
///
/// # Panics
///
/// When `page` is not exactly [`PAGE_SIZE`] bytes.
#[must_use]
pub fn check_page(page: &[u8], block: BlockNumber, checksums: bool, start_lsn: Lsn) -> PageVerdict {
    assert_eq!(page.len(), PAGE_SIZE, "a page has {PAGE_SIZE} bytes");
    if is_new(page) {
        return if is_zero(page) {
            PageVerdict::Zero
        } else {
            PageVerdict::Damaged(PageDamage::NonZeroNew)
        };
    }
    if header_fault(page).is_some() {
        return PageVerdict::Damaged(PageDamage::Header);
    }
    if page_lsn(page) >= start_lsn {
        return PageVerdict::NewerThanStart;
    }
    if checksums {
        let (stored, computed) = (stored_checksum(page), page_checksum(page, block));
        if stored != computed {
            return PageVerdict::Damaged(PageDamage::Checksum { stored, computed });
        }
    }
    PageVerdict::Ok
}

/// Whether a page claims a change later than the server had replayed *after* the page was read: no healthy page does,
/// since WAL is flushed before the pages it changes. Ask it of pages judged [`PageVerdict::NewerThanStart`].
#[must_use]
pub fn check_page_lsn(page: &[u8], replayed_after_read: Lsn) -> Option<PageDamage> {
    (page_lsn(page) > replayed_after_read).then_some(PageDamage::LsnBeyondReplay)
}

/// The LSN after the last WAL record that changed the page (`pd_lsn`): two 32-bit halves, the high one first.
///
/// # Panics
///
/// When `page` is shorter than 8 bytes.
#[must_use]
pub fn page_lsn(page: &[u8]) -> Lsn {
    Lsn(u64::from(u32_at(page, 0)) << 32 | u64::from(u32_at(page, 4)))
}

/// The checksum in the page's header (`pd_checksum`); meaningless without data checksums.
///
/// # Panics
///
/// When `page` is shorter than 10 bytes.
#[must_use]
pub fn stored_checksum(page: &[u8]) -> u16 {
    u16_at(page, 8)
}

/// Whether the header says that the page was allocated and never written (`PageIsNew`: `pd_upper` is zero).
///
/// # Panics
///
/// When `page` is shorter than 16 bytes.
#[must_use]
pub fn is_new(page: &[u8]) -> bool {
    u16_at(page, 14) == 0
}

/// What is wrong with the header of a page that is not new; `None` when it is sane.
///
/// # Panics
///
/// When `page` is shorter than [`PAGE_HEADER_SIZE`].
#[must_use]
pub fn header_fault(page: &[u8]) -> Option<HeaderFault> {
    let flags = u16_at(page, 10);
    let (lower, upper, special) = (u16_at(page, 12), u16_at(page, 14), u16_at(page, 16));
    let size_and_version = u16_at(page, 18);
    if flags & !VALID_FLAGS != 0 {
        Some(HeaderFault::Flags(flags))
    } else if lower > upper || upper > special || usize::from(special) > PAGE_SIZE {
        Some(HeaderFault::Bounds {
            lower,
            upper,
            special,
        })
    } else if special % 8 != 0 {
        Some(HeaderFault::SpecialNotAligned(special))
    } else if size_and_version != PAGE_SIZE_AND_VERSION {
        Some(HeaderFault::SizeAndVersion(size_and_version))
    } else {
        None
    }
}

/// Whether there is nothing but zeros, at the speed of memory; stops early where there is something.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    /// Bytes looked at between two decisions: wide enough for vector registers, small enough to stop soon.
    const STRIDE: usize = 128;
    let (strides, rest) = bytes.as_chunks::<STRIDE>();
    strides
        .iter()
        .all(|stride| stride.iter().fold(0, |seen, byte| seen | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
