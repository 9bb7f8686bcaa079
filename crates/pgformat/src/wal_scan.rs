//! Walking WAL from record to record: what it says, where it ends, and whether recovery would stumble over it.
//!
//! Facts from `access/transam/xlogreader.c`.

mod directories;
mod event;
mod page_header;
mod parts;
mod record;

use std::collections::BTreeMap;
use std::ops::Range;

use crate::wal_segment::WAL_PAGE_SIZE;
use crate::{
    Lsn, MajorVersion, RecordPart, SystemIdentifier, TimelineId, WalContents, WalSegmentSize,
    u32_at,
};

pub use directories::DatabaseDirectory;
pub use event::{WalDamage, WalEvent, WalProblem};
pub use parts::{JoinedRecord, join};

use directories::DirectoryChanges;
use page_header::{Known, PageStart, header_size};
use record::{Body, HEADER_HASHED_SIZE, HEADER_SIZE, Header};

const PAGE: u64 = WAL_PAGE_SIZE as u64;

/// Walks WAL that is fed in order, in chunks of any size, in constant memory.
///
/// Each record's header, its place and its checksum are proven as recovery proves them. Where recovery would end, the
/// walk ends: [`reached_end`](Self::reached_end). Whether that is the end of WAL or damage depends on what lies behind
/// and on what the caller knows:
///
/// - A crashed server leaves behind the last record: zeros, what a recycled file held before, or a record half
///   written, in the last page or across pages that were never written. That is the end of WAL, and no error.
/// - If a later page does belong to this WAL, it went on, and what stopped the walk is damage: [`feed`](Self::feed)
///   says so.
/// - Who knows that every byte fed is WAL, as of a whole segment, asks [`expect_complete`](Self::expect_complete).
///
/// A record that began before the walk is stepped over, and one that goes on behind the last byte fed is not judged: of a
/// segment walked alone, the records that cross its borders are held only to the lengths that the pages give.
#[derive(Debug, Clone)]
pub struct WalScanner {
    start: Lsn,
    position: Lsn,
    state: State,
    known: Known,
    page_header: [u8; 40],
    record: OpenRecord,
    /// The last complete record: the next one names it.
    previous: Option<Lsn>,
    contents: WalContents,
    end_of_valid: Lsn,
    switched_at: Option<Lsn>,
    end: Option<WalDamage>,
    /// The first complete record from some LSN on is wanted, and its bounds once it was seen.
    wanted: Option<Lsn>,
    found: Option<Range<Lsn>>,
    /// The changes of directories, when they are asked for.
    changes: Option<DirectoryChanges>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A record may begin here, or at the next aligned position.
    Between,
    /// In the record that is open.
    Record,
    /// In a record that began before the walk, with so many bytes left.
    Tail(u64),
    /// Behind a switch, up to the end of the segment.
    Unused,
    /// Behind the end of WAL.
    Ended,
}

/// A record whose end has not been seen yet.
#[derive(Debug, Clone)]
struct OpenRecord {
    begin: Lsn,
    /// Its first bytes, the header among them.
    head: [u8; RecordPart::HEAD_LIMIT],
    /// Bytes of it seen so far.
    seen: u64,
    /// CRC-32C of the bytes behind the header.
    checksum: u32,
    body: Option<Body>,
}

impl OpenRecord {
    /// Its length, once four bytes were seen.
    fn length(&self) -> u32 {
        u32_at(&self.head, 0)
    }

    fn header(&self) -> &[u8] {
        &self.head[..HEADER_SIZE]
    }

    /// What was seen of it.
    fn part(&self) -> RecordPart {
        let header = &self.head[..HEADER_SIZE.min(self.seen as usize)];
        let behind = self.seen as usize - header.len();
        let checksum = crc32c::crc32c(header);
        RecordPart {
            length: self.seen,
            head: self.head[..self.head.len().min(self.seen as usize)].to_vec(),
            checksum: if behind == 0 {
                checksum
            } else {
                crc32c::crc32c_combine(checksum, self.checksum, behind)
            },
        }
    }
}

impl WalScanner {
    /// A scanner of WAL from `start` on: the beginning of a segment, or of any page.
    #[must_use]
    pub fn new(start: Lsn, size: WalSegmentSize) -> WalScanner {
        let mut scanner = WalScanner {
            start,
            position: start,
            state: State::Between,
            known: Known {
                segment_size: size,
                major: None,
                timeline: TimelineId(0),
                system_identifier: None,
            },
            page_header: [0; 40],
            record: OpenRecord {
                begin: start,
                head: [0; RecordPart::HEAD_LIMIT],
                seen: 0,
                checksum: 0,
                body: None,
            },
            previous: None,
            contents: WalContents::default(),
            end_of_valid: start,
            switched_at: None,
            end: None,
            wanted: None,
            found: None,
            changes: None,
        };
        if !start.0.is_multiple_of(PAGE) {
            scanner.end_at(start, WalProblem::Start { start });
        }
        scanner
    }

    /// Asks for the first complete record that begins at `lsn` or later: [`found`](Self::found).
    pub fn look_for(&mut self, lsn: Lsn) {
        self.wanted = Some(lsn);
    }

    /// The bounds of the record that was asked for, once it is complete.
    #[must_use]
    pub fn found(&self) -> Option<Range<Lsn>> {
        self.found.clone()
    }

    /// Asks for the directories that records change from here on: [`directory_changes`](Self::directory_changes).
    pub fn follow_directories(&mut self) {
        self.changes = Some(DirectoryChanges::default());
    }

    /// Returns the beginning of the last record that changed a file, for each database's directory with such a record. Files
    /// that a commit removes are not among them: the record that removes their row from the database's catalog is.
    #[must_use]
    pub fn directory_changes(&self) -> Option<&BTreeMap<DatabaseDirectory, Lsn>> {
        self.changes.as_ref().map(|changes| &changes.last)
    }

    /// Takes the next bytes, and tells what the records that end in them say.
    ///
    /// # Errors
    /// [`WalDamage`] when the walk ended although WAL goes on. What was told before holds; more bytes bring the same
    /// error.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        observe: &mut dyn FnMut(WalEvent),
    ) -> Result<(), WalDamage> {
        if let Some(damage) = self.end.as_ref().filter(|end| end.goes_on.is_some()) {
            return Err(damage.clone());
        }
        while !bytes.is_empty() {
            let size = self.known.segment_size;
            if self.state == State::Unused {
                let left = size.bytes() - size.offset(self.position);
                let passed = left.min(bytes.len() as u64);
                bytes = self.pass(bytes, passed as usize);
                self.leave_unused();
                continue;
            }
            let in_page = self.position.0 % PAGE;
            let header = header_size(Lsn(self.position.0 - in_page), size);
            if in_page < header {
                let taken = bytes.len().min((header - in_page) as usize);
                self.page_header[in_page as usize..][..taken].copy_from_slice(&bytes[..taken]);
                bytes = self.pass(bytes, taken);
                if in_page + taken as u64 == header {
                    self.begin_page(header)?;
                }
                continue;
            }
            let room = bytes.len().min((PAGE - in_page) as usize);
            let (page, rest) = bytes.split_at(room);
            self.walk(page, observe);
            bytes = rest;
        }
        Ok(())
    }

    fn pass<'a>(&mut self, bytes: &'a [u8], count: usize) -> &'a [u8] {
        self.position = self.position + count as u64;
        &bytes[count..]
    }

    /// With the next segment, WAL goes on.
    fn leave_unused(&mut self) {
        if self.state == State::Unused && self.known.segment_size.offset(self.position) == 0 {
            self.state = State::Between;
        }
    }

    fn end_at(&mut self, lsn: Lsn, problem: WalProblem) {
        self.state = State::Ended;
        self.end = Some(WalDamage {
            lsn,
            problem,
            goes_on: None,
        });
    }

    /// The header of a page is complete; `position` is behind it.
    fn begin_page(&mut self, header_size: u64) -> Result<(), WalDamage> {
        let page = Lsn(self.position.0 - header_size);
        let first = self.known.major.is_none();
        let start = match self
            .known
            .take(page, &self.page_header[..header_size as usize])
        {
            Ok(start) => start,
            Err(problem) => {
                match self.state {
                    State::Ended => {}
                    State::Record => self.end_at(self.record.begin, problem),
                    _ => self.end_at(page, problem),
                }
                return Ok(());
            }
        };
        if let Some(end) = &mut self.end {
            end.goes_on = Some(page);
            return Err(end.clone());
        }
        if self.known.segment_size.offset(page) == 0 {
            self.switched_at = None;
        }
        let (open, lsn) = match self.state {
            State::Record => (
                u64::from(self.record.length()) - self.record.seen,
                self.record.begin,
            ),
            State::Tail(left) => (left, page),
            _ => (0, page),
        };
        match start {
            PageStart::Overwrites => {
                self.state = State::Between;
                self.contents.overwrites |= first;
            }
            PageStart::Continuation(found) if first => self.state = State::Tail(found.into()),
            PageStart::Continuation(found) if u64::from(found) == open && open > 0 => {}
            PageStart::Record if open == 0 => {}
            PageStart::Continuation(_) | PageStart::Record => {
                let found = match start {
                    PageStart::Continuation(found) => found.into(),
                    _ => 0,
                };
                self.end_at(
                    lsn,
                    WalProblem::Continuation {
                        page,
                        expected: open,
                        found,
                    },
                );
            }
        }
        Ok(())
    }

    /// Walks over bytes of one page.
    fn walk(&mut self, mut bytes: &[u8], observe: &mut dyn FnMut(WalEvent)) {
        while !bytes.is_empty() {
            match self.state {
                State::Between => {
                    let padding = (self.position.0.wrapping_neg() % 8) as usize;
                    if padding > 0 {
                        bytes = self.pass(bytes, padding.min(bytes.len()));
                        continue;
                    }
                    match self.whole_record(bytes, observe) {
                        Some(length) => bytes = self.pass(bytes, length),
                        None => {
                            self.record.begin = self.position;
                            self.record.seen = 0;
                            self.state = State::Record;
                        }
                    }
                }
                State::Record => {
                    let taken = self.part_of_record(bytes);
                    bytes = self.pass(bytes, taken);
                    if self.state == State::Record
                        && self.record.seen >= HEADER_SIZE as u64
                        && self.record.seen == self.record.length().into()
                    {
                        self.close_record(observe);
                    }
                }
                State::Tail(left) => {
                    let taken = left.min(bytes.len() as u64);
                    self.contents.note_tail(&bytes[..taken as usize]);
                    bytes = self.pass(bytes, taken as usize);
                    self.state = State::Tail(left - taken);
                    if left == taken {
                        self.state = State::Between;
                        self.end_of_valid = aligned(self.position);
                        self.contents.end = Some(self.end_of_valid);
                    }
                }
                State::Unused | State::Ended => {
                    bytes = self.pass(bytes, bytes.len());
                    self.leave_unused();
                }
            }
        }
    }

    fn check_header(&self, header: &Header, begin: Lsn) -> Result<(), WalProblem> {
        Header::check_length(header.length)?;
        let follows = match self.previous {
            Some(previous) => header.previous == previous,
            None => header.previous < begin,
        };
        if follows {
            Ok(())
        } else {
            Err(WalProblem::PreviousRecord {
                found: header.previous,
            })
        }
    }

    fn told_of(&self, header: &Header) -> Option<Body> {
        Body::new(header, self.known.major?)
    }

    /// The common case: a record that lies whole in `bytes`. Returns its length, or `None` where there is none.
    fn whole_record(&mut self, bytes: &[u8], observe: &mut dyn FnMut(WalEvent)) -> Option<usize> {
        let header = Header::read(bytes.get(..HEADER_SIZE)?);
        let begin = self.position;
        let record = bytes.get(..header.length as usize)?;
        self.check_header(&header, begin).ok()?;
        let body = &record[HEADER_SIZE..];
        let checksum = crc32c::crc32c_append(crc32c::crc32c(body), &record[..HEADER_HASHED_SIZE]);
        if checksum != header.checksum {
            return None;
        }
        self.contents.note_beginning(begin, header.previous);
        let mut told = self.told_of(&header);
        if let Some(told) = &mut told {
            told.feed(body);
        }
        if let Some(changes) = &mut self.changes {
            changes.begin();
            changes.feed(body);
        }
        self.finish_record(
            begin,
            begin + u64::from(header.length),
            &header,
            told,
            observe,
        );
        Some(header.length as usize)
    }

    /// Takes bytes of the open record; says how many.
    fn part_of_record(&mut self, bytes: &[u8]) -> usize {
        let record = &mut self.record;
        let header_seen = (record.seen as usize).min(HEADER_SIZE);
        if header_seen < HEADER_SIZE {
            let taken = bytes.len().min(HEADER_SIZE - header_seen);
            record.head[header_seen..header_seen + taken].copy_from_slice(&bytes[..taken]);
            record.seen += taken as u64;
            let begin = record.begin;
            let complete = record.seen == HEADER_SIZE as u64;
            let checked = if complete {
                self.check_header(&Header::read(self.record.header()), begin)
            } else if record.seen >= 4 {
                Header::check_length(record.length())
            } else {
                Ok(())
            };
            match checked {
                Err(problem) => self.end_at(begin, problem),
                Ok(()) if complete => {
                    let header = Header::read(self.record.header());
                    self.contents.note_beginning(begin, header.previous);
                    self.record.checksum = 0;
                    self.record.body = self.told_of(&header);
                    if let Some(changes) = &mut self.changes {
                        changes.begin();
                    }
                }
                Ok(()) => {}
            }
            return taken;
        }
        let left = u64::from(record.length()) - record.seen;
        let taken = left.min(bytes.len() as u64) as usize;
        if record.seen < record.head.len() as u64 {
            let seen = record.seen as usize;
            let kept = taken.min(record.head.len() - seen);
            record.head[seen..seen + kept].copy_from_slice(&bytes[..kept]);
        }
        record.checksum = crc32c::crc32c_append(record.checksum, &bytes[..taken]);
        if let Some(body) = &mut record.body {
            body.feed(&bytes[..taken]);
        }
        if let Some(changes) = &mut self.changes {
            changes.feed(&bytes[..taken]);
        }
        record.seen += taken as u64;
        taken
    }

    /// The open record is complete; `position` is behind it.
    fn close_record(&mut self, observe: &mut dyn FnMut(WalEvent)) {
        let header = Header::read(self.record.header());
        let checksum = crc32c::crc32c_append(
            self.record.checksum,
            &self.record.header()[..HEADER_HASHED_SIZE],
        );
        if checksum == header.checksum {
            let body = self.record.body.take();
            self.finish_record(self.record.begin, self.position, &header, body, observe);
        } else {
            let length = header.length;
            self.end_at(self.record.begin, WalProblem::Checksum { length });
        }
    }

    /// A record is complete and proven.
    fn finish_record(
        &mut self,
        begin: Lsn,
        end: Lsn,
        header: &Header,
        body: Option<Body>,
        observe: &mut dyn FnMut(WalEvent),
    ) {
        let end = aligned(end);
        self.state = State::Between;
        self.previous = Some(begin);
        self.end_of_valid = end;
        self.contents.last_record = Some(begin);
        self.contents.end = Some(end);
        if self.wanted.is_some_and(|wanted| begin >= wanted) {
            self.wanted = None;
            self.found = Some(begin..end);
        }
        if let Some(manager) = header.custom_manager() {
            self.contents.custom_managers |= 1 << (manager - 128);
        }
        if header.is_switch() {
            self.switched_at = Some(end);
            // A switch in the last bytes of a segment leaves nothing unused.
            if self.known.segment_size.offset(end) != 0 {
                self.state = State::Unused;
            }
        }
        if let (Some(changes), Some(major)) = (&mut self.changes, self.known.major) {
            changes.finish(begin, header, major);
        }
        if let Some(event) = body.and_then(|body| body.event(begin, end)) {
            self.contents.note(&event);
            observe(event);
        }
    }

    /// The position of the next byte to be fed.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// What the records say that ended since the beginning or the last [`take_contents`](Self::take_contents).
    #[must_use]
    pub fn contents(&self) -> &WalContents {
        &self.contents
    }

    /// As [`contents`](Self::contents), with the record that goes on behind the last byte fed; begins anew.
    pub fn take_contents(&mut self) -> WalContents {
        let mut contents = std::mem::take(&mut self.contents);
        if self.state == State::Record && self.record.seen > 0 {
            contents.open = Some((self.record.begin, self.record.part()));
        }
        contents
    }

    /// The end of the record that switched away from the segment that was fed last: recovery never looks at what
    /// follows in that segment.
    #[must_use]
    pub fn switched_at(&self) -> Option<Lsn> {
        self.switched_at
    }

    /// The end of the last complete record, aligned; where the walk began when there was none.
    #[must_use]
    pub fn end_of_valid(&self) -> Lsn {
        self.end_of_valid
    }

    /// Whether WAL ended before the bytes did.
    #[must_use]
    pub fn reached_end(&self) -> bool {
        self.end.is_some()
    }

    /// For a caller that knows that every byte fed is WAL, as those of a whole segment are: then an end is damage.
    ///
    /// # Errors
    /// [`WalDamage`] that says where recovery would end, and why.
    pub fn expect_complete(&self) -> Result<(), WalDamage> {
        self.end.clone().map_or(Ok(()), Err)
    }

    /// Where the walk began.
    #[must_use]
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// The timeline of the last page.
    #[must_use]
    pub fn timeline(&self) -> Option<TimelineId> {
        self.known.major.map(|_| self.known.timeline)
    }

    /// The cluster, once the first page of a segment was fed.
    #[must_use]
    pub fn system_identifier(&self) -> Option<SystemIdentifier> {
        self.known.system_identifier
    }

    /// The major version, once a page was fed.
    #[must_use]
    pub fn major(&self) -> Option<MajorVersion> {
        self.known.major
    }
}

/// The next position at which a record may begin (`MAXALIGN`).
pub(crate) const fn aligned(lsn: Lsn) -> Lsn {
    Lsn(lsn.0.saturating_add(7) & !7)
}

#[cfg(test)]
mod tests;
