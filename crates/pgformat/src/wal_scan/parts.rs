//! A record that leads from one WAL segment into the next, put together from what the summaries of both keep of it: its
//! checksum is proven, and most records are told, without the segments themselves.

use crate::wal_contents::RecordPart;
use crate::wal_segment::WAL_PAGE_SIZE;
use crate::{Lsn, MajorVersion, WalSegmentSize};

use super::page_header::header_size;
use super::record::{Body, HEADER_HASHED_SIZE, HEADER_SIZE, Header};
use super::{WalEvent, WalProblem, aligned};

/// A record whose parts lie in several WAL segments, complete and proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedRecord {
    /// The record that it names as the one before it.
    pub previous: Lsn,
    /// The aligned position after it.
    pub end: Lsn,
    /// What it says, if anything is told of such records.
    pub event: Option<WalEvent>,
    /// The record is of a kind of which something is told, and the parts do not hold enough of it: both segments have to
    /// be walked.
    pub is_cut: bool,
    /// The number of the extension's resource manager that it belongs to.
    pub custom_manager: Option<u8>,
}

/// Joins the record that begins at `begin` with `open` and goes on with `tails`, one for each WAL segment that follows; the
/// last of these begins at `last_segment`. `None` where the record goes on behind the last part.
///
/// # Errors
/// Why recovery would not take the record for one: its length, or its checksum.
pub fn join(
    begin: Lsn,
    open: &RecordPart,
    tails: &[RecordPart],
    last_segment: Lsn,
    size: WalSegmentSize,
    major: MajorVersion,
) -> Result<Option<JoinedRecord>, WalProblem> {
    let whole = tails
        .iter()
        .fold(open.clone(), |whole, tail| whole.followed_by(tail));
    let Some(header_bytes) = whole.head.get(..HEADER_SIZE) else {
        return Ok(None);
    };
    let header = Header::read(header_bytes);
    Header::check_length(header.length)?;
    let length = u64::from(header.length);
    if whole.length < length {
        return Ok(None);
    }
    if whole.length > length {
        return Err(WalProblem::RecordLength(header.length));
    }
    let behind = header.length as usize - HEADER_SIZE;
    let hashed = &header_bytes[..HEADER_HASHED_SIZE];
    // The checksum of the bytes behind the header, out of that of all; then the header's, in PostgreSQL's order.
    let body = if behind == 0 {
        0
    } else {
        crc32c::crc32c_combine(crc32c::crc32c(header_bytes), whole.checksum, behind)
    };
    if crc32c::crc32c_append(body, hashed) != header.checksum {
        return Err(WalProblem::Checksum {
            length: header.length,
        });
    }
    let last = tails.last().map_or(0, |tail| tail.length);
    let end = aligned(position_after(last_segment, last, size));
    let mut joined = JoinedRecord {
        previous: header.previous,
        end,
        event: None,
        is_cut: false,
        custom_manager: header.custom_manager(),
    };
    if let Some(mut body) = Body::new(&header, major) {
        body.feed(&whole.head[HEADER_SIZE..]);
        // What follows the head of a record that is longer is not known; one that is not longer has told all it can.
        joined.is_cut = !body.is_complete() && whole.length > whole.head.len() as u64;
        if !joined.is_cut {
            joined.event = body.event(begin, end);
        }
    }
    Ok(Some(joined))
}

/// Where `length` bytes of a record end that begin with the WAL segment at `segment`, page headers counted.
fn position_after(segment: Lsn, length: u64, size: WalSegmentSize) -> Lsn {
    let page_size = u64::from(WAL_PAGE_SIZE);
    let mut page = segment;
    let mut left = length;
    loop {
        let header = header_size(page, size);
        let room = page_size - header;
        if left <= room {
            return page + header + left;
        }
        left -= room;
        page = page + page_size;
    }
}
