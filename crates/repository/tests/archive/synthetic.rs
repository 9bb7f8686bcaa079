//! WAL as a server writes it (`CopyXLogRecordToWAL`, `AdvanceXLInsertBuffer` in `access/transam/xlog.c`), made up: as
//! much as wanted, the same for the same calls, in segments of any size.

use leeward_pgformat::wal_segment::{WAL_PAGE_SIZE, wal_page_magic};
use leeward_pgformat::{
    Lsn, MajorVersion, SystemIdentifier, TimelineId, WalSegmentName, WalSegmentSize,
};

const PAGE: usize = WAL_PAGE_SIZE as usize;
const HEADER: usize = 24;

pub const SYSTEM: SystemIdentifier = SystemIdentifier(7_434_567_890_123_456_789);

/// A stretch of WAL that begins with a segment.
#[derive(Clone)]
pub struct Wal {
    pub size: WalSegmentSize,
    pub system_identifier: SystemIdentifier,
    /// The timeline of the pages to come.
    pub timeline: TimelineId,
    pub start: Lsn,
    pub bytes: Vec<u8>,
    previous: Lsn,
    noise: u64,
}

impl Wal {
    /// Nothing yet; it begins with segment `number`. Different seeds give different records.
    pub fn new(size: WalSegmentSize, number: u64, seed: u64) -> Wal {
        let start = Lsn(number * size.bytes());
        Wal {
            size,
            system_identifier: SYSTEM,
            timeline: TimelineId(1),
            start,
            bytes: Vec::new(),
            previous: Lsn(start.0 - 40),
            noise: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
        }
    }

    pub fn end(&self) -> Lsn {
        self.start + self.bytes.len() as u64
    }

    /// The name of the segment with the first byte.
    pub fn segment(&self) -> WalSegmentName {
        WalSegmentName::containing(TimelineId(1), self.start, self.size)
    }

    fn page_header(&mut self, flags: u16, left: u32) {
        let page = self.end();
        let long = self.size.offset(page) == 0;
        let magic = wal_page_magic(MajorVersion::V17);
        let flags = flags | if long { 2 } else { 0 };
        self.bytes.extend_from_slice(&magic.to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&self.timeline.0.to_le_bytes());
        self.bytes.extend_from_slice(&page.0.to_le_bytes());
        self.bytes.extend_from_slice(&left.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        if long {
            let size = self.size.bytes() as u32;
            self.bytes
                .extend_from_slice(&self.system_identifier.0.to_le_bytes());
            self.bytes.extend_from_slice(&size.to_le_bytes());
            self.bytes.extend_from_slice(&WAL_PAGE_SIZE.to_le_bytes());
        }
    }

    fn at_page(&self) -> bool {
        self.bytes.len().is_multiple_of(PAGE)
    }

    /// Lays down a record and returns where it begins and ends.
    fn record(&mut self, manager: u8, info: u8, xid: u32, body: &[u8]) -> (Lsn, Lsn) {
        let mut record = Vec::with_capacity(HEADER + body.len());
        record.extend_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
        record.extend_from_slice(&xid.to_le_bytes());
        record.extend_from_slice(&self.previous.0.to_le_bytes());
        record.extend_from_slice(&[info, manager, 0, 0]);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend_from_slice(&checksum.to_le_bytes());
        record.extend_from_slice(body);
        if self.at_page() {
            self.page_header(0, 0);
        }
        let begin = self.end();
        let mut left = &record[..];
        while !left.is_empty() {
            if self.at_page() {
                self.page_header(1, left.len() as u32);
            }
            let room = PAGE - self.bytes.len() % PAGE;
            let (now, later) = left.split_at(room.min(left.len()));
            self.bytes.extend_from_slice(now);
            left = later;
        }
        self.previous = begin;
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        (begin, self.end())
    }

    /// A record that says nothing about moments, with a body of `length` bytes that do not compress.
    pub fn filler(&mut self, length: usize) -> (Lsn, Lsn) {
        let mut body = Vec::with_capacity(length + 8);
        while body.len() < length {
            self.noise ^= self.noise << 13;
            self.noise ^= self.noise >> 7;
            self.noise ^= self.noise << 17;
            body.extend_from_slice(&self.noise.to_le_bytes());
        }
        body.truncate(length);
        self.record(10, 0x20, 5, &body)
    }

    /// The commit of a transaction, at a moment in microseconds since 2000.
    pub fn commit(&mut self, xid: u32, time: i64) -> (Lsn, Lsn) {
        let mut body = vec![255, 8];
        body.extend_from_slice(&time.to_le_bytes());
        self.record(1, 0x00, xid, &body)
    }

    /// Switches to the next segment; the rest of this one is `rest`, over and over.
    pub fn switch(&mut self, rest: u8) -> (Lsn, Lsn) {
        let switch = self.record(0, 0x40, 0, &[]);
        let segment = self.size.bytes() as usize;
        self.bytes
            .resize(self.bytes.len().next_multiple_of(segment), rest);
        switch
    }

    /// Fills the segment with records of about `length` bytes, to its last byte.
    pub fn fill_segment(&mut self, length: usize) {
        let segment = self.size.bytes() as usize;
        while self.bytes.is_empty() || !self.bytes.len().is_multiple_of(segment) {
            let left = segment - self.bytes.len() % segment;
            if left > length + 3 * PAGE {
                self.filler(length);
                continue;
            }
            // Page by page, so that the last record ends where the segment does.
            let room = match self.bytes.len() % PAGE {
                0 if left == segment => PAGE - 40,
                0 => PAGE - 24,
                in_page => PAGE - in_page,
            };
            let next = if room <= 400 { room } else { 200 };
            self.filler(if next < HEADER { 400 } else { next - HEADER });
        }
    }
}

/// One whole segment with a few commits in it.
pub fn segment(size: WalSegmentSize, number: u64, seed: u64) -> Wal {
    let mut wal = Wal::new(size, number, seed);
    wal.filler(5_000);
    wal.commit(700, 1_000);
    wal.filler(60_000);
    wal.commit(701, 2_000);
    wal.fill_segment(30_000);
    wal
}
