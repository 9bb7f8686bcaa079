//! Index tuples: where they point, their keys, and posting lists.
//!
//! Facts from `access/itup.h` (`IndexTupleData`) and `access/nbtree.h` (posting lists, `BT_IS_POSTING`).

use std::hint::select_unpredictable;
use std::ops::Range;

use super::TransformDamage;
use super::anatomy::{INDEX_HEADER, INDEX_SIZE, Item};
use super::heap::{block_at, block_bytes};
use super::streams::{Source, Stream, Streams, add_rows};
use super::words::{Class, Plan, Words};
use crate::{PAGE_SIZE, u16_at, u32_at, u64_at};

// The control byte of a tuple: where it points,
/// the next item of the same block as the tuple before;
const NEXT: u8 = 0;
/// a block that lies up to 255 behind that of the tuple before;
const NEAR: u8 = 1;
const GIVEN: u8 = 2;
/// a list of places: the tuple ends in a posting list.
const POSTING: u8 = 3;
const PLACE: u8 = 3;
// Then the three flags of `t_info`, in the highest bits.
const FLAGS: u8 = 0xE0;

/// `INDEX_NULL_MASK` and `INDEX_VAR_MASK` in `t_info`.
const NULL_OR_VARIABLE: u16 = 0xC000;
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

/// The tuple before.
pub(super) struct IndexTuples {
    block: u32,
    number: u16,
    words: Words,
    // Of the page at hand.
    headers: Vec<u64>,
    keys: Vec<Key>,
    others: Vec<Item>,
}

/// Where a key lies on its page, and where behind its words the rest of it begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    pub start: u16,
    pub words_end: u16,
    pub end: u16,
}

impl IndexTuples {
    pub(super) fn new() -> Self {
        Self {
            block: 0,
            number: 0,
            words: Words::new(Stream::IndexWords),
            headers: Vec::new(),
            keys: Vec::new(),
            others: Vec::new(),
        }
    }

    /// The tuples of a page: first where they point, then their keys.
    pub(super) fn put(
        &mut self,
        page: &[u8; PAGE_SIZE],
        tuples: &[Item],
        plans: &[Plan; 4],
        streams: &mut Streams,
    ) {
        self.headers.clear();
        let header = |tuple: &Item| u64_at(page, tuple.start());
        self.headers.extend(tuples.iter().map(header));
        if self.may_have_lists() {
            for tuple in tuples {
                let control = self.put_place(page, *tuple, streams);
                streams.put_byte(Stream::IndexControl, control);
            }
        } else {
            self.put_places(streams);
        }
        let plan = &plans[Class::IndexFixed as usize];
        if self.is_simple(tuples, plan) {
            self.words.put_all(plan, page, keys(tuples), streams);
            for rest in rests(tuples, plan) {
                streams.put(Stream::IndexRest, &page[rest]);
            }
            return;
        }
        self.find_keys(page, tuples, plan);
        let starts = self.keys.iter().map(|key| usize::from(key.start));
        self.words.put_all(plan, page, starts, streams);
        for key in self.keys.iter().filter(|key| key.words_end < key.end) {
            streams.put(
                Stream::IndexRest,
                &page[usize::from(key.words_end)..usize::from(key.end)],
            );
        }
        let mut before: &[u8] = &[];
        for tuple in &self.others {
            let tuple = &page[tuple.start()..tuple.end()];
            before = put_key(&mut self.words, tuple, before, plans, streams);
        }
    }

    /// Whether there are headers as tuples with posting lists have them.
    fn may_have_lists(&self) -> bool {
        let headers = self.headers.iter();
        headers.fold(false, |any, header| any | is_posting(*header))
    }

    /// Whether no tuple has nulls, values of variable length or a posting list, and each has all words of the plan.
    fn is_simple(&self, tuples: &[Item], plan: &Plan) -> bool {
        let all = self.headers.iter().fold(0, |all, header| all | header);
        let least = INDEX_HEADER + plan.modes().len() * 8;
        let has_words = |tuple: &Item| usize::from(tuple.length()) >= least;
        info(all) & NULL_OR_VARIABLE == 0
            && tuples
                .iter()
                .fold(true, |all, tuple| all & has_words(tuple))
            && !self.may_have_lists()
    }

    /// Finds the keys without nulls or values of variable length that have all words of the plan; and the other tuples.
    fn find_keys(&mut self, page: &[u8; PAGE_SIZE], tuples: &[Item], plan: &Plan) {
        let words = plan.modes().len() * 8;
        self.keys.clear();
        self.others.clear();
        let key = |tuple: &Item, end: usize| Key {
            start: (tuple.start() + INDEX_HEADER) as u16,
            words_end: (tuple.start() + INDEX_HEADER + words) as u16,
            end: end as u16,
        };
        for tuple in tuples {
            let bytes = &page[tuple.start()..tuple.end()];
            let end = posting_list(bytes).map_or(tuple.end(), |(start, _)| tuple.start() + start);
            if u16_at(bytes, 6) & NULL_OR_VARIABLE == 0
                && tuple.start() + INDEX_HEADER + words <= end
            {
                self.keys.push(key(tuple, end));
            } else {
                self.others.push(*tuple);
            }
        }
    }

    /// Puts where the tuples of a page point that has no posting lists. Which way a place is written is hard to foresee:
    /// so each is written in every way, and stays where it has to.
    fn put_places(&mut self, streams: &mut Streams) {
        let count = self.headers.len();
        let [controls, near, given] =
            streams.several([Stream::IndexControl, Stream::TidNear, Stream::Tid]);
        let (near_end, given_end) = (near.len(), given.len());
        let near_rows = add_rows::<3>(near, count);
        let given_rows = add_rows::<TID>(given, count);
        let (mut nears, mut givens) = (0, 0);
        let (mut before, mut number_before) = (self.block, self.number);
        controls.extend(self.headers.iter().map(|header| {
            let (block, number) = place(*header);
            let ahead = block.wrapping_sub(before);
            let [low, high] = number.to_le_bytes();
            near_rows[nears] = [ahead as u8, low, high];
            let [a, b, c, d] = block.to_le_bytes();
            given_rows[givens] = [a, b, c, d, low, high];
            let is_next = ahead == 0 && number == number_before.wrapping_add(1);
            let is_given = ahead > u32::from(u8::MAX);
            let is_near = !is_next & !is_given;
            nears += usize::from(is_near);
            givens += usize::from(is_given);
            (before, number_before) = (block, number);
            flags(*header) + u8::from(is_near) * NEAR + u8::from(is_given) * GIVEN
        }));
        near.truncate(near_end + nears * 3);
        given.truncate(given_end + givens * TID);
        (self.block, self.number) = (before, number_before);
    }

    /// Returns the control byte.
    #[inline]
    fn put_place(&mut self, page: &[u8; PAGE_SIZE], item: Item, streams: &mut Streams) -> u8 {
        let header = u64_at(page, item.start());
        let (block, number) = place(header);
        let flags = flags(header);
        let ahead = block.wrapping_sub(self.block);
        let next = ahead == 0 && number == self.number.wrapping_add(1);
        if is_posting(header)
            && let Some((start, count)) = posting_list(&page[item.start()..item.end()])
        {
            let mut row = [0; 4];
            row[..2].copy_from_slice(&(start as u16).to_le_bytes());
            row[2..].copy_from_slice(&number.to_le_bytes());
            streams.put(Stream::Posting, &row);
            let (list, tail) = page[item.start() + start..item.end()].split_at(count * TID);
            put_list(list, streams);
            streams.put(Stream::PostingTail, tail);
            return flags | POSTING;
        }
        (self.block, self.number) = (block, number);
        flags
            | if next {
                NEXT
            } else if let Ok(ahead) = u8::try_from(ahead) {
                let [low, high] = number.to_le_bytes();
                streams.put(Stream::TidNear, &[ahead, low, high]);
                NEAR
            } else {
                let [a, b, c, d] = block.to_le_bytes();
                let [low, high] = number.to_le_bytes();
                streams.put(Stream::Tid, &[a, b, c, d, low, high]);
                GIVEN
            }
    }

    /// Fills the tuples of a page.
    pub(super) fn take(
        &mut self,
        page: &mut [u8; PAGE_SIZE],
        tuples: &[Item],
        plans: &[Plan; 4],
        source: &mut Source<'_>,
    ) -> Result<(), TransformDamage> {
        let is_short = |tuple: &Item| usize::from(tuple.length()) < INDEX_HEADER;
        if tuples
            .iter()
            .fold(false, |any, tuple| any | is_short(tuple))
        {
            return Err(IMPOSSIBLE);
        }
        let controls = source.bytes(Stream::IndexControl, tuples.len())?;
        self.headers.clear();
        let is_list = |control: &u8| control & PLACE == POSTING;
        if controls
            .iter()
            .fold(false, |any, control| any | is_list(control))
        {
            for (tuple, control) in tuples.iter().zip(controls) {
                self.take_place(page, *tuple, *control, source)?;
            }
        } else {
            self.take_places(page, tuples, controls, source)?;
        }
        let plan = &plans[Class::IndexFixed as usize];
        if self.is_simple(tuples, plan) {
            self.words.take_all(plan, page, keys(tuples), source)?;
            for rest in rests(tuples, plan) {
                let rest = &mut page[rest];
                rest.copy_from_slice(source.bytes(Stream::IndexRest, rest.len())?);
            }
            return Ok(());
        }
        self.find_keys(page, tuples, plan);
        let starts = self.keys.iter().map(|key| usize::from(key.start));
        self.words.take_all(plan, page, starts, source)?;
        for key in self.keys.iter().filter(|key| key.words_end < key.end) {
            let rest = &mut page[usize::from(key.words_end)..usize::from(key.end)];
            rest.copy_from_slice(source.bytes(Stream::IndexRest, rest.len())?);
        }
        let mut before = 0..0;
        for tuple in &self.others {
            before = take_key(&mut self.words, page, *tuple, before, plans, source)?;
        }
        Ok(())
    }

    /// The opposite of [`IndexTuples::put_places`]; as there, the rows are read whether they are needed or not.
    fn take_places(
        &mut self,
        page: &mut [u8; PAGE_SIZE],
        tuples: &[Item],
        controls: &[u8],
        source: &mut Source<'_>,
    ) -> Result<(), TransformDamage> {
        let near_rows = source.left_rows::<3>(Stream::TidNear);
        let given_rows = source.left_rows::<TID>(Stream::Tid);
        let (mut nears, mut givens) = (0, 0);
        let (mut block, mut number) = (self.block, self.number);
        self.headers.resize(tuples.len(), 0);
        for (header, control) in self.headers.iter_mut().zip(controls) {
            let [ahead, low, high] = near_rows.get(nears).copied().unwrap_or_default();
            let given = given_rows.get(givens).copied().unwrap_or_default();
            let (is_near, is_given) = (control & PLACE == NEAR, control & PLACE == GIVEN);
            nears += usize::from(is_near);
            givens += usize::from(is_given);
            let ahead = select_unpredictable(is_near, ahead, 0);
            let near_number = u16::from_le_bytes([low, high]);
            number = select_unpredictable(is_near, near_number, number.wrapping_add(1));
            number = select_unpredictable(is_given, u16_at(&given, 4), number);
            block = block.wrapping_add(u32::from(ahead));
            block = select_unpredictable(is_given, u32_at(&given, 0), block);
            *header = header_of(block, number);
        }
        (self.block, self.number) = (block, number);
        source.rows::<3>(Stream::TidNear, nears)?;
        source.rows::<TID>(Stream::Tid, givens)?;
        for ((header, tuple), control) in self.headers.iter_mut().zip(tuples).zip(controls) {
            *header |= u64::from(info_of(*tuple, *control)) << 48;
        }
        for (header, tuple) in self.headers.iter().zip(tuples) {
            let start = tuple.start();
            page[start..start + INDEX_HEADER].copy_from_slice(&header.to_le_bytes());
        }
        Ok(())
    }

    /// Fills the tuple's header, and its posting list if it has one.
    #[inline]
    fn take_place(
        &mut self,
        page: &mut [u8; PAGE_SIZE],
        item: Item,
        control: u8,
        source: &mut Source<'_>,
    ) -> Result<(), TransformDamage> {
        let (block, number) = match control & PLACE {
            NEXT => (self.block, self.number.wrapping_add(1)),
            NEAR => {
                let [ahead, low, high] = source.row(Stream::TidNear)?;
                let block = self.block.wrapping_add(u32::from(ahead));
                (block, u16::from_le_bytes([low, high]))
            }
            GIVEN => {
                let row: [u8; 6] = source.row(Stream::Tid)?;
                (u32_at(&row, 0), u16_at(&row, 4))
            }
            _ => {
                let row: [u8; 4] = source.row(Stream::Posting)?;
                let (start, number) = (u16_at(&row, 0), u16_at(&row, 2));
                let count = usize::from(number & !STATUS) * TID;
                if usize::from(start) < INDEX_HEADER {
                    return Err(IMPOSSIBLE);
                }
                let tuple = &mut page[item.start()..item.end()];
                let list = tuple.get_mut(usize::from(start)..).ok_or(IMPOSSIBLE)?;
                let (list, tail) = list.split_at_mut_checked(count).ok_or(IMPOSSIBLE)?;
                take_list(list, source)?;
                tail.copy_from_slice(source.bytes(Stream::PostingTail, tail.len())?);
                (u32::from(start), number)
            }
        };
        // The next tuple is told apart from where this one points.
        if control & PLACE != POSTING {
            (self.block, self.number) = (block, number);
        }
        let header = header_of(block, number) | u64::from(info_of(item, control)) << 48;
        page[item.start()..item.start() + INDEX_HEADER].copy_from_slice(&header.to_le_bytes());
        self.headers.push(header);
        Ok(())
    }
}

/// The tuple's key; `before` is what the key before it on the page ends in, as this returned it.
fn put_key<'a>(
    words: &mut Words,
    tuple: &'a [u8],
    before: &[u8],
    plans: &[Plan; 4],
    streams: &mut Streams,
) -> &'a [u8] {
    let (class, key) = key(tuple);
    let rest = words.put(&plans[class as usize], key, streams);
    if class == Class::IndexFixed {
        streams.put(Stream::IndexRest, rest);
        return &[];
    }
    // A value of variable length begins with its length; the keys before and behind it in order are alike behind that.
    let Some((first, rest)) = rest.split_first() else {
        return &[];
    };
    streams.put_byte(Stream::KeyFirst, *first);
    let shared = shared(rest, before);
    streams.put_byte(Stream::KeyShared, shared);
    streams.put(Stream::IndexRest, &rest[usize::from(shared)..]);
    rest
}

/// Fills the tuple's key; `before` is where on the page the key before it lies, and so is what is returned.
fn take_key(
    words: &mut Words,
    page: &mut [u8; PAGE_SIZE],
    item: Item,
    before: Range<usize>,
    plans: &[Plan; 4],
    source: &mut Source<'_>,
) -> Result<Range<usize>, TransformDamage> {
    let tuple = &mut page[item.start()..item.end()];
    let (class, key) = key(tuple);
    let key_end = INDEX_HEADER + key.len();
    let end = item.start() + key_end;
    let key = &mut tuple[INDEX_HEADER..key_end];
    let rest = words.take(&plans[class as usize], key, source)?;
    if class == Class::IndexFixed {
        rest.copy_from_slice(source.bytes(Stream::IndexRest, rest.len())?);
        return Ok(0..0);
    }
    let Some((first, rest)) = rest.split_first_mut() else {
        return Ok(0..0);
    };
    *first = source.byte(Stream::KeyFirst)?;
    let shared = usize::from(source.byte(Stream::KeyShared)?);
    if shared > rest.len() || shared > before.len() {
        return Err(IMPOSSIBLE);
    }
    let tail = &mut rest[shared..];
    tail.copy_from_slice(source.bytes(Stream::IndexRest, tail.len())?);
    let key = end - rest.len()..end;
    page.copy_within(before.start..before.start + shared, key.start);
    Ok(key)
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

const IMPOSSIBLE: TransformDamage = TransformDamage("an index tuple is impossible");

/// Where the keys begin.
fn keys(tuples: &[Item]) -> impl ExactSizeIterator<Item = usize> + Clone {
    tuples.iter().map(|tuple| tuple.start() + INDEX_HEADER)
}

/// What is behind the words of the plan.
fn rests(tuples: &[Item], plan: &Plan) -> impl Iterator<Item = Range<usize>> {
    let words_end = INDEX_HEADER + plan.modes().len() * 8;
    let has_rest = move |tuple: &&Item| usize::from(tuple.length()) > words_end;
    let rest = move |tuple: &Item| tuple.start() + words_end..tuple.end();
    tuples.iter().filter(has_rest).map(rest)
}

/// The opposite of [`place`].
#[inline]
fn header_of(block: u32, number: u16) -> u64 {
    u64::from(block.rotate_left(16)) | u64::from(number) << 32
}

/// `t_info`, from the length and the control byte.
#[inline]
fn info_of(tuple: Item, control: u8) -> u16 {
    u16::from(control & FLAGS) << 8 | tuple.length() & INDEX_SIZE
}

/// Where a tuple points, from its header.
#[inline]
fn place(header: u64) -> (u32, u16) {
    ((header as u32).rotate_left(16), (header >> 32) as u16)
}

#[inline]
fn info(header: u64) -> u16 {
    (header >> 48) as u16
}

/// The flags of `t_info` for the control byte.
#[inline]
fn flags(header: u64) -> u8 {
    (header >> 56) as u8 & FLAGS
}

/// Whether the header is that of a tuple with a posting list (`BTreeTupleIsPosting`).
#[inline]
fn is_posting(header: u64) -> bool {
    const MASK: u64 = (OTHER_TID as u64) << 48 | (STATUS as u64) << 32;
    header & MASK == (OTHER_TID as u64) << 48 | (IS_POSTING as u64) << 32
}

/// Where the posting list in the tuple begins, and how many places it has.
fn posting_list(tuple: &[u8]) -> Option<(usize, usize)> {
    let header = u64_at(tuple, 0);
    if !is_posting(header) {
        return None;
    }
    let (start, number) = place(header);
    let start = usize::try_from(start).ok()?;
    let count = usize::from(number & !STATUS);
    (start >= INDEX_HEADER && start <= tuple.len() && count * TID <= tuple.len() - start)
        .then_some((start, count))
}

/// An index tuple's key, and which words it has.
pub(super) fn key(tuple: &[u8]) -> (Class, &[u8]) {
    let end = posting_list(tuple).map_or(tuple.len(), |(start, _)| start);
    (class(u16_at(tuple, 6)), &tuple[INDEX_HEADER..end])
}

fn class(info: u16) -> Class {
    if info & NULL_OR_VARIABLE == 0 {
        Class::IndexFixed
    } else {
        Class::IndexVariable
    }
}

/// How many bytes both begin with, 255 at most.
fn shared(key: &[u8], before: &[u8]) -> u8 {
    let most = key.len().min(before.len()).min(255);
    let (words, _) = key[..most].as_chunks::<8>();
    for (index, (word, before)) in words.iter().zip(before.as_chunks::<8>().0).enumerate() {
        let different = u64::from_le_bytes(*word) ^ u64::from_le_bytes(*before);
        if different != 0 {
            return (index * 8) as u8 + (different.trailing_zeros() / 8) as u8;
        }
    }
    let whole = words.len() * 8;
    let rest = key[whole..most].iter().zip(&before[whole..]);
    (whole + rest.take_while(|(a, b)| a == b).count()) as u8
}
