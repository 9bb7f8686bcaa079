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

/// Looks at each item: where it lies, and whether it is a tuple of this kind. `None`: the items do not fill these bounds,
/// each with its padding, without a gap or an overlap.
#[inline]
fn walk(
    page: &[u8; PAGE_SIZE],
    items: &[Item],
    bounds: Range<usize>,
    kind: Kind,
    is_tuple: impl Fn(&[u8; PAGE_SIZE], Item) -> bool,
) -> Option<Anatomy> {
    let uniform = items.first().is_some_and(|first| first.length() > 0) && is_uniform(items);
    let regular = if uniform {
        fill_evenly(items, bounds)?
    } else {
        fill(items, bounds)?
    };
    let may_have_padding = !(uniform && items[0].length().is_multiple_of(8));
    let (mut tuples, mut padding) = (true, 0);
    for item in items.iter().filter(|item| uniform || item.length() > 0) {
        tuples &= is_tuple(page, *item);
        if may_have_padding {
            padding |= padding_of(page, *item);
        }
    }
    Some(Anatomy {
        kind: if tuples { kind } else { Kind::Items },
        regular,
        uniform,
        padding: padding != 0,
    })
}

/// Whether all items are of one length.
fn is_uniform(items: &[Item]) -> bool {
    let first = items.first().map_or(0, |item| item.0);
    let differences = items.iter().fold(0, |all, item| all | (item.0 ^ first));
    Item(differences).length() == 0
}

/// Whether at the beginning of the bounds lies an item, behind each lies another, and the last one ends where they do:
/// `None` if not, and otherwise whether they are regular.
fn fill(items: &[Item], bounds: Range<usize>) -> Option<bool> {
    // What room the item takes that begins at each multiple of eight.
    let mut rooms = [0_u16; PAGE_SIZE / 8];
    let (mut left, mut below, mut regular) = (0, bounds.end, !items.is_empty());
    for item in items {
        regular &= item.flags() == NORMAL && item.length() > 0 && item.room_end() == below;
        below = item.start();
        if item.length() > 0 {
            if !item.start().is_multiple_of(8) || item.room_end() > bounds.end {
                return None;
            }
            rooms[item.start() / 8] = item.room() as u16;
            left += 1;
        }
    }
    if regular && below == bounds.start {
        return Some(true);
    }
    let mut at = bounds.start;
    while at < bounds.end && rooms[at / 8] > 0 {
        at += usize::from(rooms[at / 8]);
        left -= 1;
    }
    (at == bounds.end && left == 0).then_some(regular)
}

/// As [`fill`], for items of one length.
fn fill_evenly(items: &[Item], bounds: Range<usize>) -> Option<bool> {
    let room = items.first()?.room();
    if items.len() * room != bounds.len() {
        return None;
    }
    // What differs from regular items: gathered without a branch, since most pages differ somewhere.
    let regular = items
        .iter()
        .rev()
        .zip(0..)
        .fold(0, |differences, (item, above)| {
            let start = bounds.start as u32 + above * room as u32;
            differences | Item::new(start as u16, item.length(), NORMAL).0 ^ item.0
        });
    if regular == 0 {
        return Some(true);
    }
    let mut begins = [false; PAGE_SIZE / 8];
    let mut starts = 0;
    for item in items {
        starts |= item.start();
        begins[item.start() / 8 % begins.len()] = true;
    }
    // As many items as there are places: if each place has one, no item lies elsewhere.
    (starts < PAGE_SIZE
        && starts.is_multiple_of(8)
        && bounds.step_by(room).all(|at| begins[at / 8]))
    .then_some(false)
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

/// What is behind the item, where the next one's alignment leaves room.
#[inline]
fn padding_of(page: &[u8; PAGE_SIZE], item: Item) -> u64 {
    let end = item.room_end();
    let bits = 8 * (end - item.end()) as u32;
    u64_at(page, end - 8) & !(u64::MAX >> bits)
}

/// `INDEX_SIZE_MASK`.
pub(super) const INDEX_SIZE: u16 = 0x1FFF;
