//! What a page must look like to be taken apart. Shapes are checked, page by page; nothing is believed of a version, a
//! relation or an access method, so what is unknown or damaged merely stays as it is.
//!
//! Facts from `storage/bufpage.h`, `storage/itemid.h`, `access/htup_details.h` and `access/itup.h`.

use std::ops::Range;

use crate::page::{PAGE_HEADER_SIZE, PAGE_SIZE_AND_VERSION, is_zero};
use crate::{PAGE_SIZE, u16_at, u64_at};

/// Bytes of a line pointer (`ItemIdData`).
pub(super) const POINTER: usize = 4;

/// Fixed bytes of a heap tuple's header (`SizeofHeapTupleHeader`), behind which its null bitmap begins.
const HEAP_HEADER: usize = 23;

/// Bytes of an index tuple's header (`IndexTupleData`).
pub(super) const INDEX_HEADER: usize = 8;

/// How a page is stored: the low bits of its byte in the stream of kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing but zeros.
    Zero = 0,
    /// 8,192 bytes as they are.
    Raw = 1,
    /// Every item is a heap tuple, as far as its bytes tell.
    Heap = 2,
    /// Every item is an index tuple.
    Index = 3,
    /// Items of another shape.
    Items = 4,
}

impl Kind {
    pub(super) fn from_number(number: u8) -> Option<Self> {
        let kinds = [Self::Zero, Self::Raw, Self::Heap, Self::Index, Self::Items];
        kinds.get(usize::from(number)).copied()
    }
}

/// A line pointer (`ItemIdData`), as it lies on the page. Where its length is 0, nothing on the page belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item(pub u32);

impl Item {
    #[inline]
    pub(super) fn new(offset: u16, length: u16, flags: u8) -> Self {
        Self(u32::from(offset & 0x7FFF) | u32::from(flags & 3) << 15 | u32::from(length) << 17)
    }

    /// `lp_off`.
    #[inline]
    pub(super) fn offset(self) -> u16 {
        (self.0 & 0x7FFF) as u16
    }

    /// `lp_flags`.
    #[inline]
    pub(super) fn flags(self) -> u8 {
        (self.0 >> 15 & 3) as u8
    }

    /// `lp_len`.
    #[inline]
    pub(super) fn length(self) -> u16 {
        (self.0 >> 17) as u16
    }

    #[inline]
    pub(super) fn start(self) -> usize {
        usize::from(self.offset())
    }

    #[inline]
    pub(super) fn end(self) -> usize {
        self.start() + usize::from(self.length())
    }

    /// Bytes with the padding behind it (`MAXALIGN`).
    #[inline]
    pub(super) fn room(self) -> usize {
        usize::from(self.length()).next_multiple_of(8)
    }

    /// The end of the padding behind it.
    #[inline]
    pub(super) fn room_end(self) -> usize {
        self.start() + self.room()
    }
}

/// The items that have bytes on the page, with their numbers (from 1).
pub(super) fn stored(items: &[Item]) -> impl Iterator<Item = (u16, Item)> {
    (1..)
        .zip(items.iter().copied())
        .filter(|(_, item)| item.length() > 0)
}

/// What was found on a page that can be taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Anatomy {
    pub kind: Kind,
    /// Every line pointer is in use, and its item lies right below the one before.
    pub regular: bool,
    /// All items are of one length, which is not 0.
    pub uniform: bool,

    /// There is something in the padding behind items.
    pub padding: bool,
}

impl Anatomy {
    const ZERO: Self = Self::whole(Kind::Zero);
    const RAW: Self = Self::whole(Kind::Raw);

    const fn whole(kind: Kind) -> Self {
        Self {
            kind,
            regular: false,
            uniform: false,

            padding: false,
        }
    }
}

/// What the page is, and in `items` its line pointers.
pub(super) fn examine(page: &[u8; PAGE_SIZE], items: &mut Vec<Item>) -> Anatomy {
    items.clear();
    if is_zero(page) {
        return Anatomy::ZERO;
    }
    let [lower, upper, special] = [12, 14, 16].map(|at| usize::from(u16_at(page, at)));
    let sane = u16_at(page, 18) == PAGE_SIZE_AND_VERSION
        && lower >= PAGE_HEADER_SIZE
        && (lower - PAGE_HEADER_SIZE).is_multiple_of(POINTER)
        && lower <= upper
        && upper <= special
        && special <= PAGE_SIZE
        && special.is_multiple_of(8);
    if !sane {
        return Anatomy::RAW;
    }
    let (pointers, _) = page[PAGE_HEADER_SIZE..lower].as_chunks::<POINTER>();
    items.extend(
        pointers
            .iter()
            .map(|pointer| Item(u32::from_le_bytes(*pointer))),
    );
    // Pages of indexes have a special space, those of tables have not; but a sequence's has.
    let bounds = upper..special;
    let found = if special == PAGE_SIZE {
        walk(page, items, bounds, Kind::Heap, is_heap_tuple)
    } else {
        walk(page, items, bounds, Kind::Index, is_index_tuple)
    };
    let Some(mut anatomy) = found else {
        return Anatomy::RAW;
    };
    let heap = || stored(items).all(|(_, item)| is_heap_tuple(page, item));
    if anatomy.kind == Kind::Items && special < PAGE_SIZE && heap() {
        anatomy.kind = Kind::Heap;
    }
    anatomy
}

/// Looks at each item once: where it lies, and whether it is a tuple of this kind. `None`: the items do not fill these
/// bounds, each with its padding, without a gap or an overlap.
#[inline]
fn walk(
    page: &[u8; PAGE_SIZE],
    items: &[Item],
    bounds: Range<usize>,
    kind: Kind,
    is_tuple: impl Fn(&[u8; PAGE_SIZE], Item) -> bool,
) -> Option<Anatomy> {
    let (mut tuples, mut padding) = (true, false);
    // What differs: gathered without a branch, since most pages differ somewhere.
    let first = items.first().map_or(0, |item| item.0);
    let (mut lengths, mut flags, mut gaps) = (0, 0, usize::from(items.is_empty()));
    let mut below = bounds.end;
    for item in items {
        lengths |= item.0 ^ first;
        flags |= item.flags() ^ NORMAL;
        gaps |= item.room_end() ^ below;
        below = item.start();
        if item.length() == 0 {
            gaps = usize::MAX;
            continue;
        }
        if item.room_end() > bounds.end {
            return None;
        }
        tuples &= is_tuple(page, *item);
        padding |= has_padding(page, *item);
    }
    let regular = gaps == 0 && flags == 0;
    let uniform = Item(lengths).length() == 0 && Item(first).length() > 0;
    let one_below_the_other = regular && below == bounds.start;
    if !one_below_the_other && !fill(items, bounds) {
        return None;
    }
    Some(Anatomy {
        kind: if tuples { kind } else { Kind::Items },
        regular,
        uniform,
        padding,
    })
}

/// Whether at the beginning of the bounds lies an item, behind each lies another, and the last one ends where they do.
fn fill(items: &[Item], bounds: Range<usize>) -> bool {
    // What room the item takes that begins at each multiple of eight.
    let mut rooms = [0_u16; PAGE_SIZE / 8];
    let mut left = 0;
    for (_, item) in stored(items) {
        if !item.start().is_multiple_of(8) {
            return false;
        }
        rooms[item.start() / 8] = item.room() as u16;
        left += 1;
    }
    let mut at = bounds.start;
    while at < bounds.end && rooms[at / 8] > 0 {
        at += usize::from(rooms[at / 8]);
        left -= 1;
    }
    at == bounds.end && left == 0
}

/// `LP_NORMAL`.
pub(super) const NORMAL: u8 = 1;

/// `t_hoff` is aligned and within the tuple, behind the fixed header.
#[inline]
fn is_heap_tuple(page: &[u8; PAGE_SIZE], item: Item) -> bool {
    if usize::from(item.length()) <= HEAP_HEADER {
        return false;
    }
    let header = usize::from(page[item.start() + HEAP_HEADER - 1]);
    header > HEAP_HEADER && header.is_multiple_of(8) && header <= usize::from(item.length())
}

/// The length in `t_info` is that of the line pointer.
#[inline]
fn is_index_tuple(page: &[u8; PAGE_SIZE], item: Item) -> bool {
    usize::from(item.length()) >= INDEX_HEADER
        && u16_at(page, item.start() + 6) & INDEX_SIZE == item.length()
}

/// Whether there is something behind the item, where the next one's alignment leaves room.
#[inline]
fn has_padding(page: &[u8; PAGE_SIZE], item: Item) -> bool {
    let over = item.length() % 8;
    over != 0 && u64_at(page, item.room_end() - 8) >> (over * 8) != 0
}

/// `INDEX_SIZE_MASK`.
pub(super) const INDEX_SIZE: u16 = 0x1FFF;
