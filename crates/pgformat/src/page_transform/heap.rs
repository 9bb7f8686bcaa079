//! Heap tuples: of the header, only what cannot be foretold from the tuple before is written.
//!
//! The header is drawn in `access/htup_details.h` (`HeapTupleHeaderData`).

use super::TransformDamage;
use super::anatomy::Item;
use super::rows::{Place, Rows, widened};
use super::schema::{COLUMNS, Row};
use super::streams::{Source, Stream, Streams};
use super::words::Class;
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

/// The tuple before.
pub(super) struct HeapTuples {
    xmin: u32,
    xmax: u32,
    cid: [u8; 4],
    infomasks: [u8; 4],
    /// `t_hoff` and what lies between it and the row.
    prefix: [u8; 256],
    prefix_length: usize,
}

impl HeapTuples {
    pub(super) fn new() -> Self {
        Self {
            xmin: 0,
            xmax: 0,
            cid: [0; 4],
            infomasks: [0; 4],
            prefix: [0; 256],
            prefix_length: 0,
        }
    }

    /// A tuple that is `item` number `number` (from 1) of its page; its row is collected by `rows`.
    pub(super) fn put(
        &mut self,
        page: &[u8; PAGE_SIZE],
        item: Item,
        here: (BlockNumber, u16),
        rows: &mut Rows<'_>,
        streams: &mut Streams,
    ) {
        let tuple = &page[item.start()..item.end()];
        let (block, number) = here;
        let mut control = 0;
        let (xmin, xmax) = (u32_at(tuple, 0), u32_at(tuple, 4));
        if xmin != self.xmin {
            control |= match near(xmin, self.xmin) {
                Some(byte) => {
                    streams.put_byte(Stream::XminNear, byte);
                    XMIN_NEAR
                }
                None => {
                    streams.put(Stream::Xmin, &xmin.to_le_bytes());
                    XMIN_GIVEN
                }
            };
            self.xmin = xmin;
        }
        if xmax != 0 {
            control |= match near(xmax, self.xmax) {
                Some(0) => XMAX_SAME,
                Some(byte) => {
                    streams.put_byte(Stream::XmaxNear, byte);
                    XMAX_NEAR
                }
                None => {
                    streams.put(Stream::Xmax, &xmax.to_le_bytes());
                    XMAX_GIVEN
                }
            };
            self.xmax = xmax;
        }
        let cid = u32_at(tuple, 8).to_le_bytes();
        if cid != self.cid {
            self.cid = cid;
            control |= CID_GIVEN;
            streams.put(Stream::Cid, &cid);
        }
        let (to_block, to_number) = (block_at(tuple, 12), u16_at(tuple, 16));
        if (to_block, to_number) != (block.0, number) {
            control |= CTID_GIVEN;
            let mut row = [0; 6];
            row[..4].copy_from_slice(&to_block.wrapping_sub(block.0).to_le_bytes());
            row[4..].copy_from_slice(&to_number.to_le_bytes());
            streams.put(Stream::Ctid, &row);
        }
        let infomasks = u32_at(tuple, 18).to_le_bytes();
        if infomasks != self.infomasks {
            self.infomasks = infomasks;
            control |= INFOMASKS_GIVEN;
            streams.put(Stream::Infomasks, &infomasks);
        }
        let values = usize::from(tuple[PREFIX]);
        let prefix = &tuple[PREFIX..values];
        if !same(prefix, &self.prefix[..self.prefix_length]) {
            self.prefix_length = prefix.len();
            self.prefix[..prefix.len()].copy_from_slice(prefix);
            control |= PREFIX_GIVEN;
            streams.put(Stream::HeapPrefix, prefix);
        }
        streams.put_byte(Stream::HeapControl, control);
        rows.add(place(tuple, item, values));
    }

    /// Fills the tuple, but for a row that `rows` collects.
    pub(super) fn take(
        &mut self,
        page: &mut [u8; PAGE_SIZE],
        item: Item,
        here: (BlockNumber, u16),
        rows: &mut Rows<'_>,
        source: &mut Source<'_>,
    ) -> Result<(), TransformDamage> {
        let tuple = &mut page[item.start()..item.end()];
        let (block, number) = here;
        const SHORT: TransformDamage = TransformDamage("a heap tuple is shorter than its header");
        if tuple.len() <= PREFIX {
            return Err(SHORT);
        }
        let control = source.byte(Stream::HeapControl)?;
        match control & XMIN {
            0 => {}
            XMIN_NEAR => self.xmin = far(source.byte(Stream::XminNear)?, self.xmin),
            _ => self.xmin = u32::from_le_bytes(source.row(Stream::Xmin)?),
        }
        tuple[0..4].copy_from_slice(&self.xmin.to_le_bytes());
        let xmax = match control & XMAX {
            0 => 0,
            XMAX_SAME => self.xmax,
            XMAX_NEAR => far(source.byte(Stream::XmaxNear)?, self.xmax),
            _ => u32::from_le_bytes(source.row(Stream::Xmax)?),
        };
        if control & XMAX != 0 {
            self.xmax = xmax;
        }
        tuple[4..8].copy_from_slice(&xmax.to_le_bytes());
        if control & CID_GIVEN != 0 {
            self.cid = source.row(Stream::Cid)?;
        }
        tuple[8..12].copy_from_slice(&self.cid);
        let (to_block, to_number) = if control & CTID_GIVEN != 0 {
            let row: [u8; 6] = source.row(Stream::Ctid)?;
            (block.0.wrapping_add(u32_at(&row, 0)), u16_at(&row, 4))
        } else {
            (block.0, number)
        };
        tuple[12..16].copy_from_slice(&block_bytes(to_block));
        tuple[16..18].copy_from_slice(&to_number.to_le_bytes());
        if control & INFOMASKS_GIVEN != 0 {
            self.infomasks = source.row(Stream::Infomasks)?;
        }
        tuple[18..22].copy_from_slice(&self.infomasks);
        if control & PREFIX_GIVEN != 0 {
            let header = source.byte(Stream::HeapPrefix)?;
            self.prefix_length = usize::from(header).checked_sub(PREFIX).ok_or(SHORT)?;
            if self.prefix_length < 2 {
                return Err(SHORT);
            }
            self.prefix[0] = header;
            let bitmap = source.bytes(Stream::HeapPrefix, self.prefix_length - 1)?;
            self.prefix[1..self.prefix_length].copy_from_slice(bitmap);
        }
        let prefix = tuple[PREFIX..].get_mut(..self.prefix_length).ok_or(SHORT)?;
        copy(prefix, &self.prefix[..self.prefix_length]);
        let place = place(tuple, item, PREFIX + self.prefix_length);
        rows.take(place, page, source)
    }
}

/// Where the tuple's row lies, which begins behind so many bytes of the tuple.
#[inline]
fn place(tuple: &[u8], item: Item, header: usize) -> Place {
    let (columns, present) = columns(tuple, header);
    Place {
        start: item.start() + header,
        end: item.end(),
        columns,
        present,
        class: class(tuple),
    }
}

/// Two bytes, as most tuples have them, are compared and copied without a call.
#[inline]
fn same(prefix: &[u8], before: &[u8]) -> bool {
    match (prefix, before) {
        ([a, b], [c, d]) => a == c && b == d,
        _ => prefix == before,
    }
}

#[inline]
fn copy(to: &mut [u8], from: &[u8]) {
    match (to, from) {
        ([a, b], [c, d]) => (*a, *b) = (*c, *d),
        (to, from) => to.copy_from_slice(from),
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
