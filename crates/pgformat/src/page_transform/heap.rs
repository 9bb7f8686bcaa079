//! Heap tuples: of the header, only what cannot be foretold from the tuple before is written.
//!
//! The header is drawn in `access/htup_details.h` (`HeapTupleHeaderData`).

use super::TransformDamage;
use super::anatomy::Item;
use super::rows::{Place, Rows};
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

/// Bytes of a header that every tuple has: it is as long without a null bitmap, or with that of eight columns.
const HEADER: usize = 24;

/// The tuple before.
pub(super) struct HeapTuples {
    /// Its header, as far as `t_hoff` says.
    header: [u8; 256],
    /// The last `t_xmax` that was not zero.
    xmax: u32,
    /// What the header says of the row.
    row: Place,
}

impl HeapTuples {
    pub(super) fn new() -> Self {
        let header = [0; 256];
        Self {
            row: place(&header),
            header,
            xmax: 0,
        }
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
        let length = usize::from(tuple[PREFIX]);
        let header = &tuple[..length];
        self.header[12..16].copy_from_slice(&block_bytes(block.0));
        self.header[16..18].copy_from_slice(&number.to_le_bytes());
        // Two bytes, as most tuples have them, are compared without a call.
        let same = header[..HEADER] == self.header[..HEADER]
            && (length == HEADER || header[HEADER..] == self.header[HEADER..length]);
        let control = if !same {
            self.put_header(header, block, streams)
        } else if u32_at(header, 4) == 0 {
            0
        } else {
            XMAX_SAME
        };
        streams.put_byte(Stream::HeapControl, control);
        rows.add(self.row(item));
    }

    /// Puts what is not as before, which is the tuple's own place in `t_ctid`; returns the control byte.
    fn put_header(&mut self, header: &[u8], block: BlockNumber, streams: &mut Streams) -> u8 {
        let mut control = 0;
        let before = &self.header;
        let (xmin, xmin_before) = (u32_at(header, 0), u32_at(before, 0));
        if xmin != xmin_before {
            control |= match near(xmin, xmin_before) {
                Some(byte) => {
                    streams.put_byte(Stream::XminNear, byte);
                    XMIN_NEAR
                }
                None => {
                    streams.put(Stream::Xmin, &header[0..4]);
                    XMIN_GIVEN
                }
            };
        }
        let xmax = u32_at(header, 4);
        if xmax != 0 {
            control |= match near(xmax, self.xmax) {
                Some(0) => XMAX_SAME,
                Some(byte) => {
                    streams.put_byte(Stream::XmaxNear, byte);
                    XMAX_NEAR
                }
                None => {
                    streams.put(Stream::Xmax, &header[4..8]);
                    XMAX_GIVEN
                }
            };
            self.xmax = xmax;
        }
        if header[8..12] != before[8..12] {
            control |= CID_GIVEN;
            streams.put(Stream::Cid, &header[8..12]);
        }
        if header[12..18] != before[12..18] {
            control |= CTID_GIVEN;
            let mut row = [0; 6];
            let ahead = block_at(header, 12).wrapping_sub(block.0);
            row[..4].copy_from_slice(&ahead.to_le_bytes());
            row[4..].copy_from_slice(&header[16..18]);
            streams.put(Stream::Ctid, &row);
        }
        if header[18..22] != before[18..22] {
            control |= INFOMASKS_GIVEN;
            streams.put(Stream::Infomasks, &header[18..22]);
        }
        // With `t_hoff`: of another length there is another.
        if header[PREFIX..] != before[PREFIX..header.len()] {
            control |= PREFIX_GIVEN;
            streams.put(Stream::HeapPrefix, &header[PREFIX..]);
        }
        self.header[..header.len()].copy_from_slice(header);
        if control & (INFOMASKS_GIVEN | PREFIX_GIVEN) != 0 {
            self.row = place(&self.header);
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
        self.header[12..16].copy_from_slice(&block_bytes(block.0));
        self.header[16..18].copy_from_slice(&number.to_le_bytes());
        if control & !XMAX_SAME != 0 {
            self.take_header(control, block, source)?;
        }
        let xmax = if control & XMAX == 0 { 0 } else { self.xmax };
        self.header[4..8].copy_from_slice(&xmax.to_le_bytes());
        let length = usize::from(self.header[PREFIX]);
        if length < HEADER || length > tuple.len() {
            return Err(SHORT);
        }
        tuple[..HEADER].copy_from_slice(&self.header[..HEADER]);
        if length > HEADER {
            tuple[HEADER..length].copy_from_slice(&self.header[HEADER..length]);
        }
        rows.add(self.row(item));
        Ok(())
    }

    /// Takes what is not as before.
    fn take_header(
        &mut self,
        control: u8,
        block: BlockNumber,
        source: &mut Source<'_>,
    ) -> Result<(), TransformDamage> {
        let header = &mut self.header;
        match control & XMIN {
            0 => {}
            XMIN_NEAR => {
                let xmin = far(source.byte(Stream::XminNear)?, u32_at(header, 0));
                header[0..4].copy_from_slice(&xmin.to_le_bytes());
            }
            _ => header[0..4].copy_from_slice(source.bytes(Stream::Xmin, 4)?),
        }
        match control & XMAX {
            0 | XMAX_SAME => {}
            XMAX_NEAR => self.xmax = far(source.byte(Stream::XmaxNear)?, self.xmax),
            _ => self.xmax = u32::from_le_bytes(source.row(Stream::Xmax)?),
        }
        if control & CID_GIVEN != 0 {
            header[8..12].copy_from_slice(source.bytes(Stream::Cid, 4)?);
        }
        if control & CTID_GIVEN != 0 {
            let row: [u8; 6] = source.row(Stream::Ctid)?;
            let to_block = block.0.wrapping_add(u32_at(&row, 0));
            header[12..16].copy_from_slice(&block_bytes(to_block));
            header[16..18].copy_from_slice(&row[4..]);
        }
        if control & INFOMASKS_GIVEN != 0 {
            header[18..22].copy_from_slice(source.bytes(Stream::Infomasks, 4)?);
        }
        if control & PREFIX_GIVEN != 0 {
            header[PREFIX] = source.byte(Stream::HeapPrefix)?;
            let length = usize::from(header[PREFIX]);
            let bitmap = length.checked_sub(PREFIX + 1).ok_or(SHORT)?;
            header[PREFIX + 1..length].copy_from_slice(source.bytes(Stream::HeapPrefix, bitmap)?);
        }
        if control & (INFOMASKS_GIVEN | PREFIX_GIVEN) != 0 {
            self.row = place(header);
        }
        Ok(())
    }

    /// Where the row of a tuple with this header lies.
    #[inline]
    fn row(&self, item: Item) -> Place {
        Place {
            start: item.offset() + u16::from(self.header[PREFIX]),
            end: item.offset() + item.length(),
            ..self.row
        }
    }
}

const SHORT: TransformDamage = TransformDamage("a heap tuple is shorter than its header");

/// A row behind this header; where is still missing.
fn place(header: &[u8]) -> Place {
    let (columns, present) = columns(header, usize::from(header[PREFIX]));
    Place {
        start: 0,
        end: 0,
        columns: columns.try_into().unwrap_or(u16::MAX),
        present,
        class: class(header),
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

/// The opposite of [`block_at`].
pub(super) fn block_bytes(block: u32) -> [u8; 4] {
    block.rotate_left(16).to_le_bytes()
}
