//! Pages: the header, and in which order the parts of a page are written. Both ways stand below one another: what one puts
//! the other takes, in the same order and with the same state.

use super::anatomy::{Anatomy, Item, Kind, POINTER, examine, stored};
use super::heap::HeapTuples;
use super::index::IndexTuples;
use super::pointers::Pointers;
use super::rows::Rows;
use super::sparse::{put_sparse, take_sparse};
use super::streams::{Source, Stream, Streams};
use super::words::{Plan, fold, fold_half, unfold, unfold_half};
use super::{Choice, TransformDamage};
use crate::page::{PAGE_HEADER_SIZE, PAGE_SIZE_AND_VERSION, is_zero, page_lsn};
use crate::{BlockNumber, PAGE_SIZE, u16_at, u32_at, u64_at};

// A page's byte in the stream of kinds: its kind, and these.
/// There is something between `pd_lower` and `pd_upper`.
const HOLE: u8 = 1 << 3;
/// There is something in the padding behind items.
const PADDING: u8 = 1 << 4;
/// The checksum is that of the content.
const CHECKSUM: u8 = 1 << 5;
/// All line pointers are in use, each item right below the one before,
const REGULAR: u8 = 1 << 6;
/// and as long.
const UNIFORM: u8 = 1 << 7;
const KIND: u8 = 7;

/// What the next page, item and tuple are told apart from: the same on both ways.
pub(super) struct State<'a> {
    plans: &'a [Plan; 4],
    lsn: u64,
    prune_xid: u32,
    pointers: Pointers,
    heap: HeapTuples,
    rows: Rows<'a>,
    index: IndexTuples,
}

impl<'a> State<'a> {
    pub(super) fn new(choice: &'a Choice) -> Self {
        Self {
            plans: &choice.plans,
            lsn: 0,
            prune_xid: 0,
            pointers: Pointers::new(),
            heap: HeapTuples::new(),
            rows: Rows::new(&choice.plans, &choice.schemas),
            index: IndexTuples::new(),
        }
    }

    /// `pd_lsn` and `pd_prune_xid` as differences to the page before; `pd_upper` follows from the line pointers.
    fn put_header(&mut self, page: &[u8], checksum_known: bool, streams: &mut Streams) {
        let (lsn, prune_xid) = (page_lsn(page).0, u32_at(page, 20));
        let mut row = [0; 20];
        row[..8].copy_from_slice(&fold(lsn.wrapping_sub(self.lsn)).to_le_bytes());
        if !checksum_known {
            row[8..10].copy_from_slice(&page[8..10]);
        }
        row[10..14].copy_from_slice(&page[10..14]); // pd_flags, pd_lower
        row[14..16].copy_from_slice(&page[16..18]); // pd_special
        let ahead = fold_half(prune_xid.wrapping_sub(self.prune_xid));
        row[16..].copy_from_slice(&ahead.to_le_bytes());
        streams.put(Stream::PageHeader, &row);
        (self.lsn, self.prune_xid) = (lsn, prune_xid);
    }

    /// Returns `pd_lower` and `pd_special`; `pd_upper` is still missing.
    fn take_header(
        &mut self,
        page: &mut [u8; PAGE_SIZE],
        source: &mut Source<'_>,
    ) -> Result<(usize, usize), TransformDamage> {
        let row: [u8; 20] = source.row(Stream::PageHeader)?;
        self.lsn = self.lsn.wrapping_add(unfold(u64_at(&row, 0)));
        self.prune_xid = self.prune_xid.wrapping_add(unfold_half(u32_at(&row, 16)));
        page[0..8].copy_from_slice(&self.lsn.rotate_left(32).to_le_bytes());
        page[8..14].copy_from_slice(&row[8..14]);
        page[16..18].copy_from_slice(&row[14..16]);
        page[18..20].copy_from_slice(&PAGE_SIZE_AND_VERSION.to_le_bytes());
        page[20..24].copy_from_slice(&self.prune_xid.to_le_bytes());
        let (lower, special) = (u16_at(&row, 12), u16_at(&row, 14));
        Ok((usize::from(lower), usize::from(special)))
    }

    /// `checksum` is that of the content, or 0. Returns whether the page was taken apart.
    pub(super) fn put_page(
        &mut self,
        page: &[u8; PAGE_SIZE],
        block: BlockNumber,
        checksum: u16,
        items: &mut Vec<Item>,
        streams: &mut Streams,
    ) -> bool {
        let [stored_checksum, lower, upper, special] = [8, 12, 14, 16].map(|at| u16_at(page, at));
        let checksum_known = checksum != 0 && checksum == stored_checksum;
        let Anatomy {
            kind,
            regular,
            uniform,
            padding,
        } = examine(page, items);
        let mut control = kind as u8;
        match kind {
            Kind::Zero | Kind::Raw => {
                streams.put_byte(Stream::PageKind, control);
                if kind == Kind::Raw {
                    put_sparse(page, Stream::Raw, streams);
                }
                return false;
            }
            Kind::Heap | Kind::Index | Kind::Items => {}
        }
        let hole = &page[usize::from(lower)..usize::from(upper)];
        let special = usize::from(special);
        let flags = [
            (REGULAR, regular),
            (UNIFORM, uniform),
            (PADDING, padding),
            (HOLE, !is_zero(hole)),
            (CHECKSUM, checksum_known),
        ];
        control |= flags
            .iter()
            .filter(|(_, set)| *set)
            .fold(0, |flags, (flag, _)| flags | flag);
        streams.put_byte(Stream::PageKind, control);
        self.put_header(page, checksum_known, streams);
        put_special(&page[special..], block, streams);
        if regular {
            Pointers::put_regular(items, uniform, streams);
        } else {
            self.pointers.put(items, special, streams);
        }
        match kind {
            Kind::Index => {
                items.retain(|item| item.length() > 0);
                self.index.put(page, items, self.plans, streams);
            }
            Kind::Heap => {
                for (number, item) in stored(items) {
                    let here = (block, number);
                    self.heap.put(page, item, here, &mut self.rows, streams);
                }
                self.rows.put(page, streams);
            }
            _ => stored(items).for_each(|(_, item)| {
                streams.put(Stream::ItemRest, &page[item.start()..item.end()]);
            }),
        }
        if control & HOLE != 0 {
            put_sparse(hole, Stream::Hole, streams);
        }
        if padding {
            for (_, item) in stored(items) {
                streams.put(Stream::Padding, &page[item.end()..item.room_end()]);
            }
        }
        true
    }

    /// Replaces the page. Returns whether its checksum is that of the content, which is still missing.
    pub(super) fn take_page(
        &mut self,
        page: &mut [u8; PAGE_SIZE],
        block: BlockNumber,
        items: &mut Vec<Item>,
        source: &mut Source<'_>,
    ) -> Result<bool, TransformDamage> {
        const UNKNOWN: TransformDamage = TransformDamage("a page is of no known kind");
        const BOUNDS: TransformDamage = TransformDamage("a page's bounds are impossible");
        page.fill(0);
        let control = source.byte(Stream::PageKind)?;
        let kind = Kind::from_number(control & KIND).ok_or(UNKNOWN)?;
        match kind {
            Kind::Zero => return Ok(false),
            Kind::Raw => return take_sparse(page, Stream::Raw, source).map(|()| false),
            Kind::Heap | Kind::Index | Kind::Items => {}
        }
        let (lower, special) = self.take_header(page, source)?;
        if lower < PAGE_HEADER_SIZE || lower > special || special > PAGE_SIZE {
            return Err(BOUNDS);
        }
        take_special(&mut page[special..], block, source)?;
        let count = (lower - PAGE_HEADER_SIZE) / POINTER;
        let uniform = control & UNIFORM != 0;
        let upper = if control & REGULAR != 0 {
            Pointers::take_regular(count, special, uniform, source, items)?
        } else {
            self.pointers.take(count, special, source, items)?
        };
        if upper < lower {
            return Err(BOUNDS);
        }
        page[14..16].copy_from_slice(&(upper as u16).to_le_bytes());
        let (pointers, _) = page[PAGE_HEADER_SIZE..lower].as_chunks_mut::<POINTER>();
        for (pointer, item) in pointers.iter_mut().zip(&*items) {
            *pointer = item.0.to_le_bytes();
        }
        match kind {
            Kind::Index => {
                items.retain(|item| item.length() > 0);
                self.index.take(page, items, self.plans, source)?;
            }
            Kind::Heap => {
                for (number, item) in stored(items) {
                    let here = (block, number);
                    self.heap.take(page, item, here, &mut self.rows, source)?;
                }
                self.rows.take_columns(page, source)?;
            }
            _ => {
                for (_, item) in stored(items) {
                    let bytes = source.bytes(Stream::ItemRest, usize::from(item.length()))?;
                    page[item.start()..item.end()].copy_from_slice(bytes);
                }
            }
        }
        if control & HOLE != 0 {
            take_sparse(&mut page[lower..upper], Stream::Hole, source)?;
        }
        if control & PADDING != 0 {
            for (_, item) in stored(items) {
                let padding = &mut page[item.end()..item.room_end()];
                padding.copy_from_slice(source.bytes(Stream::Padding, padding.len())?);
            }
        }
        Ok(control & CHECKSUM != 0)
    }
}

/// Bytes of the special space of B-tree, GiST and hash indexes.
const SPECIAL: usize = 16;

/// The last two bytes of the special space of hash, GiST and SP-GiST pages (`HASHO_PAGE_ID`, `GIST_PAGE_ID`,
/// `SPGIST_PAGE_ID`) are these or above; on a B-tree page they are the number of a vacuum (`btpo_cycleid`), always less.
const OTHER_PAGE_IDS: u16 = 0xFF80;

/// The siblings of a B-tree page (`BTPageOpaqueData`) lie around it more often than not: they are written as distances.
fn put_special(special: &[u8], block: BlockNumber, streams: &mut Streams) {
    match <[u8; SPECIAL]>::try_from(special) {
        Ok(mut row) => {
            shift_siblings(&mut row, block.0.wrapping_neg());
            streams.put(Stream::Special16, &row);
        }
        Err(_) => streams.put(Stream::SpecialOther, special),
    }
}

fn take_special(
    special: &mut [u8],
    block: BlockNumber,
    source: &mut Source<'_>,
) -> Result<(), TransformDamage> {
    if special.len() == SPECIAL {
        let mut row: [u8; SPECIAL] = source.row(Stream::Special16)?;
        shift_siblings(&mut row, block.0);
        special.copy_from_slice(&row);
    } else {
        special.copy_from_slice(source.bytes(Stream::SpecialOther, special.len())?);
    }
    Ok(())
}

fn shift_siblings(special: &mut [u8; SPECIAL], by: u32) {
    if u16_at(special, 14) < OTHER_PAGE_IDS {
        for at in [0, 4] {
            let sibling = u32_at(special, at).wrapping_add(by);
            special[at..at + 4].copy_from_slice(&sibling.to_le_bytes());
        }
    }
}
