//! WAL as a server writes it, made by hand.

use std::ops::Range;

use super::super::*;
use super::{START, size};
use crate::wal_segment::wal_page_magic;
use crate::{TimestampTz, TransactionId};

/// Writes WAL as a server does (`CopyXLogRecordToWAL`, `AdvanceXLInsertBuffer`).
pub struct Writer {
    pub start: Lsn,
    pub major: MajorVersion,
    pub timeline: TimelineId,
    pub bytes: Vec<u8>,
    pub previous: Lsn,
    /// The bytes of each record, page headers between them left out.
    pub records: Vec<Vec<Range<usize>>>,
}

impl Writer {
    pub fn new(major: MajorVersion) -> Writer {
        Writer {
            start: START,
            major,
            timeline: TimelineId(1),
            bytes: Vec::new(),
            previous: Lsn(0x2_FFF0),
            records: Vec::new(),
        }
    }

    pub fn position(&self) -> Lsn {
        self.start + self.bytes.len() as u64
    }

    pub fn page_header(&mut self, flags: u16, left: u32) {
        let page = self.position();
        let long = size().offset(page) == 0;
        let flags = flags | if long { 2 } else { 0 };
        self.bytes
            .extend_from_slice(&wal_page_magic(self.major).to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&self.timeline.0.to_le_bytes());
        self.bytes.extend_from_slice(&page.0.to_le_bytes());
        self.bytes.extend_from_slice(&left.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        if long {
            self.bytes.extend_from_slice(&77_u64.to_le_bytes());
            self.bytes
                .extend_from_slice(&(size().bytes() as u32).to_le_bytes());
            self.bytes.extend_from_slice(&WAL_PAGE_SIZE.to_le_bytes());
        }
    }

    pub fn at_page(&self) -> bool {
        self.bytes.len().is_multiple_of(PAGE as usize)
    }

    /// Lays down a record whose bytes are given, and returns its bounds.
    pub fn lay(&mut self, record: &[u8]) -> (Lsn, Lsn) {
        if self.at_page() {
            self.page_header(0, 0);
        }
        let begin = self.position();
        let mut pieces = Vec::new();
        let mut left = record;
        while !left.is_empty() {
            if self.at_page() {
                self.page_header(1, left.len() as u32);
            }
            let room = PAGE as usize - self.bytes.len() % PAGE as usize;
            let (piece, rest) = left.split_at(room.min(left.len()));
            pieces.push(self.bytes.len()..self.bytes.len() + piece.len());
            self.bytes.extend_from_slice(piece);
            left = rest;
        }
        self.records.push(pieces);
        self.previous = begin;
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        (begin, self.position())
    }

    pub fn record(&mut self, manager: u8, info: u8, xid: u32, body: &[u8]) -> (Lsn, Lsn) {
        let record = encode_record(self.previous, manager, info, xid, body);
        self.lay(&record)
    }

    /// A record without meaning for moments; `length` is that of its body.
    pub fn filler(&mut self, length: usize) -> (Lsn, Lsn) {
        let salt = self.start.0 as usize >> 20;
        let body: Vec<u8> = (0..length)
            .map(|at| 1 + ((at * 31 + salt) % 251) as u8)
            .collect();
        self.record(10, 0x20, 5, &body)
    }

    pub fn commit(&mut self, xid: u32, time: i64) -> WalEvent {
        let (begin, end) = self.record(1, 0x00, xid, &main_data(&time.to_le_bytes()));
        WalEvent::Commit {
            xid: TransactionId(xid),
            time: TimestampTz(time),
            begin,
            end,
        }
    }

    pub fn switch(&mut self) -> WalEvent {
        let (begin, end) = self.record(0, 0x40, 0, &[]);
        self.bytes.resize(
            self.bytes.len().next_multiple_of(size().bytes() as usize),
            0,
        );
        WalEvent::Switch { begin, end }
    }

    /// Fills the segment to its last byte.
    pub fn fill_segment(&mut self) {
        let segment = size().bytes() as usize;
        while !self.bytes.len().is_multiple_of(segment) || self.bytes.is_empty() {
            let in_page = self.bytes.len() % PAGE as usize;
            let room = match in_page {
                0 => PAGE as usize - 24,
                _ => PAGE as usize - in_page,
            };
            // What is left must hold a header, or be nothing.
            let length = if room <= 400 { room } else { 200 };
            if length < HEADER_SIZE {
                self.filler(400);
            } else {
                self.filler(length - HEADER_SIZE);
            }
        }
    }
}

pub fn encode_record(previous: Lsn, manager: u8, info: u8, xid: u32, body: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend_from_slice(&((HEADER_SIZE + body.len()) as u32).to_le_bytes());
    header.extend_from_slice(&xid.to_le_bytes());
    header.extend_from_slice(&previous.0.to_le_bytes());
    header.extend_from_slice(&[info, manager, 0, 0]);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(body), &header);
    header.extend_from_slice(&checksum.to_le_bytes());
    header.extend_from_slice(body);
    header
}

pub fn main_data(data: &[u8]) -> Vec<u8> {
    let mut body = match u8::try_from(data.len()) {
        Ok(length) => vec![255, length],
        Err(_) => [&[254][..], &(data.len() as u32).to_le_bytes()].concat(),
    };
    body.extend_from_slice(data);
    body
}
