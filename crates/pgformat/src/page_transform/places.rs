//! Where index tuples point: their headers, and their posting lists.
//!
//! Facts from `access/itup.h` (`IndexTupleData`) and `access/nbtree.h` (posting lists, `BTreeTupleIsPosting`).

use std::hint::select_unpredictable;

use super::TransformDamage;
use super::anatomy::{INDEX_HEADER, INDEX_SIZE, Item};
use super::heap::block_at;
use super::streams::{KeptRows, Source, Stream, Streams, add_rows, shorten};
use crate::{PAGE_SIZE, u16_at, u32_at, u64_at};

// The control byte of a tuple: where it points. 0: the next item of the same block as the tuple before;
/// a block that lies up to 255 behind that of the tuple before;
const NEAR: u8 = 1;
/// any place;
const GIVEN: u8 = 2;
/// a list of places: the tuple ends in a posting list.
const POSTING: u8 = 3;
const PLACE: u8 = 3;
// Then the three flags of `t_info`, in the highest bits.
const FLAGS: u8 = 0xE0;

/// `INDEX_ALT_TID_MASK` in `t_info`.
const OTHER_TID: u16 = 0x2000;
/// `BT_STATUS_OFFSET_MASK` and, of these bits, `BT_IS_POSTING`.
const STATUS: u16 = 0xF000;
const IS_POSTING: u16 = 0x2000;

/// Bytes of an `ItemPointerData`.
const TID: usize = 6;

/// A difference of blocks that is told by the byte in [`Stream::PostingNear`] is less than these.
const POSTING_FAR: u8 = 254;
const POSTING_BLOCK: u8 = 255;

pub(super) const IMPOSSIBLE: TransformDamage = TransformDamage("an index tuple is impossible");

/// An index tuple's first eight bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Header(u64);

impl Header {
    #[inline]
    pub(super) fn at(bytes: &[u8], start: usize) -> Self {
        Self(u64_at(bytes, start))
    }

    /// One that points there, still without `t_info`.
    #[inline]
    fn new(block: u32, number: u16) -> Self {
        Self(u64::from(block.rotate_left(16)) | u64::from(number) << 32)
    }

    #[inline]
    fn place(self) -> (u32, u16) {
        ((self.0 as u32).rotate_left(16), (self.0 >> 32) as u16)
    }

    /// `t_info`.
    #[inline]
    pub(super) fn info(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The flags of `t_info` for the control byte.
    #[inline]
    fn flags(self) -> u8 {
        (self.0 >> 56) as u8 & FLAGS
    }

    /// Whether it is as that of a tuple with a posting list.
    #[inline]
    fn is_posting(self) -> bool {
        const MASK: u64 = (OTHER_TID as u64) << 48 | (STATUS as u64) << 32;
        self.0 & MASK == (OTHER_TID as u64) << 48 | (IS_POSTING as u64) << 32
    }

    /// Whether it is that of a tuple of so many bytes with a posting list.
    #[inline]
    pub(super) fn has_list(self, length: u16) -> bool {
        let (start, bytes) = self.list();
        self.is_posting() & (start >= INDEX_HEADER as u64) & (start + bytes <= u64::from(length))
    }

    /// Where in the tuple its posting list begins, if it has one, and the bytes of the list.
    #[inline]
    pub(super) fn list(self) -> (u64, u64) {
        let (start, number) = self.place();
        (u64::from(start), u64::from(number & !STATUS) * TID as u64)
    }
}

/// Where the tuple before points, and those of the page at hand.
pub(super) struct Places {
    block: u32,
    number: u16,
    /// Of the tuples of the page at hand;
    pub headers: Vec<Header>,
    /// which of these have posting lists, counted from 0.
    lists: Vec<u16>,
}

impl Places {
    pub(super) fn new() -> Self {
        Self {
            block: 0,
            number: 0,
            headers: Vec::new(),
            lists: Vec::new(),
        }
    }

    /// Whether there are headers as tuples with posting lists have them. All are looked at, since without a branch for each
    /// the compiler makes vector code of it.
    pub(super) fn may_have_lists(&self) -> bool {
        let headers = self.headers.iter();
        headers.fold(false, |any, header| any | header.is_posting())
    }

    /// Puts where the tuples of a page point.
    pub(super) fn put(&mut self, page: &[u8; PAGE_SIZE], tuples: &[Item], streams: &mut Streams) {
        self.headers.clear();
        let headers = tuples.iter().map(|tuple| Header::at(page, tuple.start()));
        self.headers.extend(headers);
        if !self.may_have_lists() {
            return self.put_headers::<false>(tuples, streams);
        }
        self.put_headers::<true>(tuples, streams);
        for index in &self.lists {
            let (header, tuple) = (
                self.headers[usize::from(*index)],
                tuples[usize::from(*index)],
            );
            let (start, bytes) = header.list();
            let (_, number) = header.place();
            let row = u32::from(number) << 16 | start as u32;
            streams.put(Stream::Posting, &row.to_le_bytes());
            let list = &page[tuple.start() + start as usize..tuple.end()];
            let (list, tail) = list.split_at(bytes as usize);
            put_list(list, streams);
            streams.put(Stream::PostingTail, tail);
        }
    }

    /// Which way a place is written is hard to foresee: so each is put in every way, and stays where it has to.
    fn put_headers<const LISTS: bool>(&mut self, tuples: &[Item], streams: &mut Streams) {
        let [controls, near, given] =
            streams.several([Stream::IndexControl, Stream::TidNear, Stream::Tid]);
        let mut near_rows = KeptRows::<3>::add(near, tuples.len());
        let mut given_rows = KeptRows::<TID>::add(given, tuples.len());
        let controls = add_rows(controls, tuples.len());
        self.lists.clear();
        self.lists.resize(if LISTS { tuples.len() } else { 0 }, 0);
        let mut lists = 0;
        let (mut block, mut number) = (self.block, self.number);
        let headers = self.headers.iter().zip(tuples).enumerate();
        for ([control], (index, (header, tuple))) in controls.iter_mut().zip(headers) {
            let (to_block, to_number) = header.place();
            let ahead = to_block.wrapping_sub(block);
            let is_list = LISTS && header.has_list(tuple.length());
            let is_next = ahead == 0 && to_number == number.wrapping_add(1);
            let is_given = ahead > u32::from(u8::MAX) && !is_list;
            let is_near = !is_next & !is_given & !is_list;
            let [low, high] = to_number.to_le_bytes();
            near_rows.put_if(is_near, [ahead as u8, low, high]);
            let [a, b, c, d] = to_block.to_le_bytes();
            given_rows.put_if(is_given, [a, b, c, d, low, high]);
            let place = u8::from(is_near) * NEAR + u8::from(is_given) * GIVEN;
            *control = header.flags() + place + u8::from(is_list) * POSTING;
            if LISTS {
                self.lists[lists] = index as u16;
                lists += usize::from(is_list);
            }
            block = select_unpredictable(is_list, block, to_block);
            number = select_unpredictable(is_list, number, to_number);
        }
        self.lists.truncate(lists);
        (self.block, self.number) = (block, number);
        let (nears, givens) = (near_rows.unneeded(), given_rows.unneeded());
        shorten(near, nears);
        shorten(given, givens);
    }

    /// Fills the headers and posting lists of tuples.
    pub(super) fn take(
        &mut self,
        page: &mut [u8; PAGE_SIZE],
        tuples: &[Item],
        source: &mut Source<'_>,
    ) -> Result<(), TransformDamage> {
        let short = |tuple: &Item| usize::from(tuple.length()) < INDEX_HEADER;
        if tuples.iter().fold(false, |any, tuple| any | short(tuple)) {
            return Err(IMPOSSIBLE);
        }
        let controls = source.bytes(Stream::IndexControl, tuples.len())?;
        let list = |control: &u8| control & PLACE == POSTING;
        if controls
            .iter()
            .fold(false, |any, control| any | list(control))
        {
            self.take_headers::<true>(controls, source)?;
            for index in &self.lists {
                let index = usize::from(*index);
                self.headers[index] = take_tail(
                    &mut page[tuples[index].start()..tuples[index].end()],
                    source,
                )?;
            }
        } else {
            self.take_headers::<false>(controls, source)?;
        }
        for ((header, tuple), control) in self.headers.iter_mut().zip(tuples).zip(controls) {
            let info = u16::from(control & FLAGS) << 8 | tuple.length() & INDEX_SIZE;
            header.0 |= u64::from(info) << 48;
        }
        for (header, tuple) in self.headers.iter().zip(tuples) {
            let start = tuple.start();
            page[start..start + INDEX_HEADER].copy_from_slice(&header.0.to_le_bytes());
        }
        Ok(())
    }

    /// Where the tuples without posting lists point. As on the way there, rows are read whether they are needed or not.
    fn take_headers<const LISTS: bool>(
        &mut self,
        controls: &[u8],
        source: &mut Source<'_>,
    ) -> Result<(), TransformDamage> {
        let near_rows = source.left_rows::<3>(Stream::TidNear);
        let given_rows = source.left_rows::<TID>(Stream::Tid);
        let (mut nears, mut givens) = (0, 0);
        let (mut block, mut number) = (self.block, self.number);
        self.headers.clear();
        self.headers.resize(controls.len(), Header::default());
        self.lists.clear();
        self.lists.resize(if LISTS { controls.len() } else { 0 }, 0);
        let mut lists = 0;
        for (index, (header, control)) in self.headers.iter_mut().zip(controls).enumerate() {
            let is_list = LISTS && control & PLACE == POSTING;
            if LISTS {
                self.lists[lists] = index as u16;
                lists += usize::from(is_list);
            }
            let [ahead, low, high] = near_rows.get(nears).copied().unwrap_or_default();
            let given = given_rows.get(givens).copied().unwrap_or_default();
            let (is_near, is_given) = (control & PLACE == NEAR, control & PLACE == GIVEN);
            nears += usize::from(is_near);
            givens += usize::from(is_given);
            let ahead = select_unpredictable(is_near, ahead, 0);
            let near_number = u16::from_le_bytes([low, high]);
            let next_number = number.wrapping_add(u16::from(!is_list));
            number = select_unpredictable(is_near, near_number, next_number);
            number = select_unpredictable(is_given, u16_at(&given, 4), number);
            block = block.wrapping_add(u32::from(ahead));
            block = select_unpredictable(is_given, u32_at(&given, 0), block);
            *header = Header::new(block, number);
        }
        self.lists.truncate(lists);
        (self.block, self.number) = (block, number);
        source.rows::<3>(Stream::TidNear, nears)?;
        source.rows::<TID>(Stream::Tid, givens)?;
        Ok(())
    }
}

/// Fills what is behind the tuple's key; returns its header, still without `t_info`.
fn take_tail(tuple: &mut [u8], source: &mut Source<'_>) -> Result<Header, TransformDamage> {
    let row: [u8; 4] = source.row(Stream::Posting)?;
    let (start, number) = (u16_at(&row, 0), u16_at(&row, 2));
    if usize::from(start) < INDEX_HEADER {
        return Err(IMPOSSIBLE);
    }
    let header = Header::new(u32::from(start), number);
    let (_, bytes) = header.list();
    let list = tuple.get_mut(usize::from(start)..).ok_or(IMPOSSIBLE)?;
    let (list, tail) = list
        .split_at_mut_checked(bytes as usize)
        .ok_or(IMPOSSIBLE)?;
    take_list(list, source)?;
    tail.copy_from_slice(source.bytes(Stream::PostingTail, tail.len())?);
    Ok(header)
}

/// Places ascend: a byte for how many blocks farther each is, more where that is too little.
fn put_list(list: &[u8], streams: &mut Streams) {
    let mut before = None;
    for tid in list.chunks_exact(TID) {
        let block = block_at(tid, 0);
        let ahead = before.map(|before| block.wrapping_sub(before));
        match ahead {
            Some(ahead) if ahead < u32::from(POSTING_FAR) => {
                streams.put_byte(Stream::PostingNear, ahead as u8);
            }
            Some(ahead) if ahead <= u32::from(u16::MAX) => {
                streams.put_byte(Stream::PostingNear, POSTING_FAR);
                streams.put(Stream::PostingFar, &(ahead as u16).to_le_bytes());
            }
            _ => {
                streams.put_byte(Stream::PostingNear, POSTING_BLOCK);
                streams.put(Stream::PostingBlock, &block.to_le_bytes());
            }
        }
        streams.put(Stream::PostingOffset, &tid[4..]);
        before = Some(block);
    }
}

fn take_list(list: &mut [u8], source: &mut Source<'_>) -> Result<(), TransformDamage> {
    let mut block = 0_u32;
    for tid in list.chunks_exact_mut(TID) {
        block = match source.byte(Stream::PostingNear)? {
            POSTING_FAR => {
                let ahead = u16::from_le_bytes(source.row(Stream::PostingFar)?);
                block.wrapping_add(u32::from(ahead))
            }
            POSTING_BLOCK => u32::from_le_bytes(source.row(Stream::PostingBlock)?),
            ahead => block.wrapping_add(u32::from(ahead)),
        };
        tid[..4].copy_from_slice(&block_bytes(block));
        tid[4..].copy_from_slice(&source.row::<2>(Stream::PostingOffset)?);
    }
    Ok(())
}

/// The opposite of [`block_at`].
fn block_bytes(block: u32) -> [u8; 4] {
    block.rotate_left(16).to_le_bytes()
}
