//! Heap tuples: of the header, only what cannot be foretold from the tuple before is written.
//!
//! The header is drawn in `access/htup_details.h` (`HeapTupleHeaderData`).

use super::TransformDamage;
use super::anatomy::Item;
use super::rows::{RowSpan, Rows};
use super::schema::{COLUMNS, Row};
use super::streams::{Source, Stream, Streams};
use super::words::{Class, widened};
use crate::{BlockNumber, PAGE_SIZE, u16_at, u32_at, u64_at};

// The control byte of a tuple.
/// `t_xmin`: as before, 0; ...
const XMIN_NEAR: u8 = 1;
const XMIN_GIVEN: u8 = 2;
const XMIN: u8 = 3;
/// `t_xmax`: zero, 0; as the last one that was not zero; ...
const XMAX_SAME: u8 = 1 << 2;
const XMAX_NEAR: u8 = 2 << 2;
const XMAX_GIVEN: u8 = 3 << 2;
const XMAX: u8 = 3 << 2;
/// `t_cid`, `t_infomask2` and `t_infomask`, `t_hoff` and the null bitmap are not as before.
const CID_GIVEN: u8 = 1 << 4;
const INFOMASKS_GIVEN: u8 = 1 << 5;
const PREFIX_GIVEN: u8 = 1 << 6;
/// `t_ctid` is another place than the tuple's own.
const CTID_GIVEN: u8 = 1 << 7;

/// `HEAP_HASVARWIDTH` in `t_infomask`.
const HAS_VARIABLE: u16 = 0x0002;

/// Where `t_hoff` is, and behind it the null bitmap.
const PREFIX: usize = 22;

/// Bytes of a header without a null bitmap, or with that of eight columns: three words.
const HEADER: usize = 24;

/// The first bytes of a tuple.
#[derive(Debug, Clone, Copy)]
struct Header {
    xmin: u32,
    xmax: u32,
    cid: u32,
    /// `t_ctid`
    block: u32,
    number: u16,
    /// `t_infomask2` and `t_infomask`
    infomasks: u32,
    /// `t_hoff` and the byte behind it
    prefix: u16,
}

impl Header {
    const ZERO: Self = Self {
        xmin: 0,
        xmax: 0,
        cid: 0,
        block: 0,
        number: 0,
        infomasks: 0,
        prefix: 0,
    };

    #[inline]
    fn read(tuple: &[u8]) -> Self {
        let last = u64_at(tuple, 16);
        Self {
            xmin: u32_at(tuple, 0),
            xmax: u32_at(tuple, 4),
            cid: u32_at(tuple, 8),
            block: block_at(tuple, 12),
            number: last as u16,
            infomasks: (last >> 16) as u32,
            prefix: (last >> 48) as u16,
        }
    }

    /// Its bytes.
    #[inline]
    fn words(self) -> [u64; 3] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let last =
            u64::from(self.number) | u64::from(self.infomasks) << 16 | u64::from(self.prefix) << 48;
        [
            pair(self.xmin, self.xmax),
            pair(self.cid, self.block.rotate_left(16)),
            last,
        ]
    }

    #[inline]
    fn write(self, tuple: &mut [u8]) {
        let words = tuple.as_chunks_mut().0.iter_mut();
        for (slot, word) in words.zip(self.words()) {
            *slot = word.to_le_bytes();
        }
    }

    /// `t_hoff`
    #[inline]
    fn length(self) -> usize {
        usize::from(self.prefix as u8)
    }
}

/// The tuple before.
pub(super) struct HeapTuples {
    /// But `t_xmax` is the last one that was not zero, and `t_ctid` means nothing.
    header: Header,
    /// What lies between these bytes and the row.
    bitmap: [u8; 256 - HEADER],
    /// What the header says of the row.
    row: RowSpan,
}

impl HeapTuples {
    pub(super) fn new() -> Self {
        Self {
            header: Header::ZERO,
            bitmap: [0; _],
            row: RowSpan::NONE,
        }
    }

    /// Whether the bitmap goes on in this way: whole words, and in most headers none, which are compared without a call.
    #[inline]
    fn has(&self, bitmap: &[u8]) -> bool {
        let (words, before) = (bitmap.as_chunks::<8>().0, self.bitmap.as_chunks().0);
        let mut pairs = words.iter().zip(before);
        pairs.all(|(word, before)| u64::from_le_bytes(*word) == u64::from_le_bytes(*before))
    }

    /// A tuple that is `item` number `number` (from 1) of its page; its row is collected by `rows`.
    #[inline]
    pub(super) fn put(
        &mut self,
        page: &[u8; PAGE_SIZE],
        item: Item,
        (block, number): (BlockNumber, u16),
        rows: &mut Rows<'_>,
        streams: &mut Streams,
    ) {
        let tuple = &page[item.start()..item.end()];
        let xmax = u32_at(tuple, 4);
        let expected = Header {
            xmax: if xmax == 0 { 0 } else { self.header.xmax },
            block: block.0,
            number,
            ..self.header
        };
        let length = usize::from(tuple[PREFIX]);
        let [a, b, c] = expected.words();
        // One question, since for most tuples the answer is no.
        let difference = a ^ u64_at(tuple, 0) | b ^ u64_at(tuple, 8) | c ^ u64_at(tuple, 16);
        let control = if difference == 0 && self.has(&tuple[HEADER..length]) {
            if xmax == 0 { 0 } else { XMAX_SAME }
        } else {
            self.put_header(tuple, Header::read(tuple), expected, streams)
        };
        streams.put_byte(Stream::HeapControl, control);
        rows.add(self.row.of(item, length));
    }

    /// Puts what is not as expected; returns the control byte.
    fn put_header(
        &mut self,
        tuple: &[u8],
        header: Header,
        expected: Header,
        streams: &mut Streams,
    ) -> u8 {
        let mut control = 0;
        if header.xmin != expected.xmin {
            control |= match near(header.xmin, expected.xmin) {
                Some(byte) => {
                    streams.put_byte(Stream::XminNear, byte);
                    XMIN_NEAR
                }
                None => {
                    streams.put(Stream::Xmin, &tuple[0..4]);
                    XMIN_GIVEN
                }
            };
        }
        if header.xmax != 0 {
            control |= match near(header.xmax, expected.xmax) {
                Some(0) => XMAX_SAME,
                Some(byte) => {
                    streams.put_byte(Stream::XmaxNear, byte);
                    XMAX_NEAR
                }
                None => {
                    streams.put(Stream::Xmax, &tuple[4..8]);
                    XMAX_GIVEN
                }
            };
        }
        if header.cid != expected.cid {
            control |= CID_GIVEN;
            streams.put(Stream::Cid, &tuple[8..12]);
        }
        if (header.block, header.number) != (expected.block, expected.number) {
            control |= CTID_GIVEN;
            let mut row = [0; 6];
            let ahead = header.block.wrapping_sub(expected.block);
            row[..4].copy_from_slice(&ahead.to_le_bytes());
            row[4..].copy_from_slice(&header.number.to_le_bytes());
            streams.put(Stream::Ctid, &row);
        }
        if header.infomasks != expected.infomasks {
            control |= INFOMASKS_GIVEN;
            streams.put(Stream::Infomasks, &tuple[18..22]);
        }
        let bitmap = &tuple[HEADER..header.length()];
        if header.prefix != expected.prefix || !self.has(bitmap) {
            control |= PREFIX_GIVEN;
            streams.put(Stream::HeapPrefix, &tuple[PREFIX..header.length()]);
            self.bitmap[..bitmap.len()].copy_from_slice(bitmap);
        }
        let xmax = self.header.xmax;
        self.header = header;
        if header.xmax == 0 {
            self.header.xmax = xmax;
        }
        if control & (INFOMASKS_GIVEN | PREFIX_GIVEN) != 0 {
            self.row = row_behind(tuple);
        }
        control
    }

    /// Fills the tuple, but for a row that `rows` collects.
    #[inline]
    pub(super) fn take(
        &mut self,
        page: &mut [u8; PAGE_SIZE],
        item: Item,
        (block, number): (BlockNumber, u16),
        rows: &mut Rows<'_>,
        source: &mut Source<'_>,
    ) -> Result<(), TransformDamage> {
        let tuple = &mut page[item.start()..item.end()];
        let control = source.byte(Stream::HeapControl)?;
        if control & !XMAX_SAME != 0 {
            self.take_header(control, block, source)?;
        }
        let mut header = self.header;
        if control & XMAX == 0 {
            header.xmax = 0;
        }
        if control & CTID_GIVEN == 0 {
            (header.block, header.number) = (block.0, number);
        }
        let length = header.length();
        if length < HEADER || length > tuple.len() {
            return Err(SHORT);
        }
        header.write(tuple);
        if length > HEADER {
            tuple[HEADER..length].copy_from_slice(&self.bitmap[..length - HEADER]);
        }
        if control & (INFOMASKS_GIVEN | PREFIX_GIVEN) != 0 {
            self.row = row_behind(tuple);
        }
        rows.add(self.row.of(item, length));
        Ok(())
    }

    /// Takes what is not as expected.
    fn take_header(
        &mut self,
        control: u8,
        block: BlockNumber,
        source: &mut Source<'_>,
    ) -> Result<(), TransformDamage> {
        let header = &mut self.header;
        match control & XMIN {
            0 => {}
            XMIN_NEAR => header.xmin = far(source.byte(Stream::XminNear)?, header.xmin),
            _ => header.xmin = u32::from_le_bytes(source.row(Stream::Xmin)?),
        }
        match control & XMAX {
            0 | XMAX_SAME => {}
            XMAX_NEAR => header.xmax = far(source.byte(Stream::XmaxNear)?, header.xmax),
            _ => header.xmax = u32::from_le_bytes(source.row(Stream::Xmax)?),
        }
        if control & CID_GIVEN != 0 {
            header.cid = u32::from_le_bytes(source.row(Stream::Cid)?);
        }
        if control & CTID_GIVEN != 0 {
            let row: [u8; 6] = source.row(Stream::Ctid)?;
            header.block = block.0.wrapping_add(u32_at(&row, 0));
            header.number = u16_at(&row, 4);
        }
        if control & INFOMASKS_GIVEN != 0 {
            header.infomasks = u32::from_le_bytes(source.row(Stream::Infomasks)?);
        }
        if control & PREFIX_GIVEN != 0 {
            let length = source.byte(Stream::HeapPrefix)?;
            let bitmap = usize::from(length).checked_sub(HEADER).ok_or(SHORT)?;
            let first = source.byte(Stream::HeapPrefix)?;
            header.prefix = u16::from_le_bytes([length, first]);
            self.bitmap[..bitmap].copy_from_slice(source.bytes(Stream::HeapPrefix, bitmap)?);
        }
        Ok(())
    }
}

const SHORT: TransformDamage = TransformDamage("a heap tuple is shorter than its header");

/// A row behind the tuple's header; where is still missing.
fn row_behind(tuple: &[u8]) -> RowSpan {
    let (columns, present) = columns(tuple, usize::from(tuple[PREFIX]));
    RowSpan {
        columns: columns.try_into().unwrap_or(u16::MAX),
        present,
        class: class(tuple),
        ..RowSpan::NONE
    }
}

/// A heap tuple's values.
#[inline]
pub(super) fn row(tuple: &[u8]) -> Row<'_> {
    let header = usize::from(tuple[PREFIX]);
    let (columns, present) = columns(tuple, header);
    Row {
        columns,
        present,
        bytes: &tuple[header..],
    }
}

/// How many columns a tuple has (`HeapTupleHeaderGetNatts`), and a bit for each of the first that is not null. A header of so
/// many bytes that its null bitmap has no room in it has more columns than any schema.
#[inline]
fn columns(tuple: &[u8], header: usize) -> (usize, u64) {
    /// `HEAP_HASNULL` in `t_infomask`.
    const HAS_NULL: u16 = 0x0001;
    let columns = usize::from(u16_at(tuple, 18) & 0x07FF);
    let given = 1_u64
        .checked_shl(columns as u32)
        .unwrap_or(0)
        .wrapping_sub(1);
    if u16_at(tuple, 20) & HAS_NULL == 0 {
        return (columns, given);
    }
    let bitmap = PREFIX + 1;
    if header.saturating_sub(bitmap) * 8 < columns.min(COLUMNS) {
        return (usize::MAX, 0);
    }
    // With what lies behind the bitmap, which has no column.
    let wide = tuple.get(bitmap..bitmap + 8);
    let present = wide.map_or_else(|| widened(&tuple[bitmap..header]), |wide| u64_at(wide, 0));
    (columns, present & given)
}

/// Which words the tuple's values have.
pub(super) fn class(tuple: &[u8]) -> Class {
    if u16_at(tuple, 20) & HAS_VARIABLE == 0 {
        Class::HeapFixed
    } else {
        Class::HeapVariable
    }
}

/// The difference as a signed byte, if it is one.
fn near(value: u32, before: u32) -> Option<u8> {
    let difference = value.wrapping_sub(before) as i32;
    i8::try_from(difference).ok().map(|byte| byte as u8)
}

/// The opposite of [`near`].
fn far(near: u8, before: u32) -> u32 {
    before.wrapping_add_signed(i32::from(near as i8))
}

/// A block number as tuples have it (`BlockIdData`): two halves, the high one first.
pub(super) fn block_at(bytes: &[u8], offset: usize) -> u32 {
    u32_at(bytes, offset).rotate_left(16)
}
