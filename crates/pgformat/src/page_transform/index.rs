//! Index tuples: where they point, and their keys.
//!
//! Facts from `access/itup.h` (`IndexTupleData`).

use std::ops::Range;

use super::TransformDamage;
use super::anatomy::{INDEX_HEADER, Item};
use super::places::{Header, IMPOSSIBLE, Places};
use super::streams::{Source, Stream, Streams};
use super::words::{Class, Plan, Words};
use crate::PAGE_SIZE;

/// `INDEX_NULL_MASK` and `INDEX_VAR_MASK` in `t_info`.
const NULL_OR_VARIABLE: u16 = 0xC000;

/// The tuple before.
pub(super) struct IndexTuples {
    places: Places,
    words: Words,
    // Of the page at hand: where keys lie that have all words of their plan, and tuples that have others.
    keys: Vec<Range<u16>>,
    others: Vec<Item>,
}

impl IndexTuples {
    pub(super) fn new() -> Self {
        Self {
            places: Places::new(),
            words: Words::new(Stream::IndexWords),
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
        self.places.put(page, tuples, streams);
        let plan = &plans[Class::IndexFixed as usize];
        if self.is_simple(tuples, plan) {
            return put_keys(&mut self.words, plan, page, keys(tuples), streams);
        }
        self.find_keys(page, tuples, plan);
        let keys = self.keys.iter().map(wide);
        put_keys(&mut self.words, plan, page, keys, streams);
        let mut before: &[u8] = &[];
        for tuple in &self.others {
            let tuple = &page[tuple.start()..tuple.end()];
            before = put_key(&mut self.words, tuple, before, plans, streams);
        }
    }

    /// Whether no tuple has nulls, values of variable length or a posting list, and each has all words of the plan.
    fn is_simple(&self, tuples: &[Item], plan: &Plan) -> bool {
        let headers = self.places.headers.iter();
        let infos = headers.fold(0, |all, header| all | header.info());
        let least = INDEX_HEADER + plan.modes().len() * 8;
        let has_words = |tuple: &Item| usize::from(tuple.length()) >= least;
        class(infos) == Class::IndexFixed
            && tuples
                .iter()
                .fold(true, |all, tuple| all & has_words(tuple))
            && !self.places.may_have_lists()
    }

    /// Finds the keys without nulls or values of variable length that have all words of the plan; and the other tuples.
    fn find_keys(&mut self, page: &[u8; PAGE_SIZE], tuples: &[Item], plan: &Plan) {
        let words = plan.modes().len() * 8;
        self.keys.clear();
        self.others.clear();
        for tuple in tuples {
            let (class, key) = key(&page[tuple.start()..tuple.end()]);
            if class == Class::IndexFixed && key.len() >= words {
                let start = tuple.offset() + INDEX_HEADER as u16;
                self.keys.push(start..start + key.len() as u16);
            } else {
                self.others.push(*tuple);
            }
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
        self.places.take(page, tuples, source)?;
        let plan = &plans[Class::IndexFixed as usize];
        if self.is_simple(tuples, plan) {
            return take_keys(&mut self.words, plan, page, keys(tuples), source);
        }
        self.find_keys(page, tuples, plan);
        let keys = self.keys.iter().map(wide);
        take_keys(&mut self.words, plan, page, keys, source)?;
        let mut before = 0..0;
        for tuple in &self.others {
            before = take_key(&mut self.words, page, *tuple, before, plans, source)?;
        }
        Ok(())
    }
}

/// Where the keys of tuples lie that have no posting lists.
fn keys(tuples: &[Item]) -> impl ExactSizeIterator<Item = Range<usize>> + Clone {
    tuples
        .iter()
        .map(|tuple| tuple.start() + INDEX_HEADER..tuple.end())
}

fn wide(key: &Range<u16>) -> Range<usize> {
    usize::from(key.start)..usize::from(key.end)
}

/// Keys that have all words of the plan: the words, then what is behind them.
fn put_keys(
    words: &mut Words,
    plan: &Plan,
    page: &[u8; PAGE_SIZE],
    keys: impl ExactSizeIterator<Item = Range<usize>> + Clone,
    streams: &mut Streams,
) {
    words.put_all(plan, page, keys.clone().map(|key| key.start), streams);
    for rest in rests(keys, plan) {
        streams.put(Stream::IndexRest, &page[rest]);
    }
}

/// The opposite of [`put_keys`].
fn take_keys(
    words: &mut Words,
    plan: &Plan,
    page: &mut [u8; PAGE_SIZE],
    keys: impl ExactSizeIterator<Item = Range<usize>> + Clone,
    source: &mut Source<'_>,
) -> Result<(), TransformDamage> {
    words.take_all(plan, page, keys.clone().map(|key| key.start), source)?;
    for rest in rests(keys, plan) {
        let rest = &mut page[rest];
        rest.copy_from_slice(source.bytes(Stream::IndexRest, rest.len())?);
    }
    Ok(())
}

/// What is behind the words of the plan, where there is something.
fn rests(
    keys: impl Iterator<Item = Range<usize>>,
    plan: &Plan,
) -> impl Iterator<Item = Range<usize>> {
    let words = plan.modes().len() * 8;
    keys.map(move |key| key.start + words..key.end)
        .filter(|rest| !rest.is_empty())
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

/// An index tuple's key, and which words it has.
pub(super) fn key(tuple: &[u8]) -> (Class, &[u8]) {
    let header = Header::at(tuple, 0);
    let (start, _) = header.list();
    let end = if header.has_list(tuple.len() as u16) {
        start as usize
    } else {
        tuple.len()
    };
    (class(header.info()), &tuple[INDEX_HEADER..end])
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
