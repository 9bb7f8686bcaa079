//! Line pointers: items lie one below the other in long chains, so most offsets follow from the lengths.

use super::TransformDamage;
use super::anatomy::{Item, NORMAL};
use super::streams::{Source, Stream, Streams};
use crate::PAGE_SIZE;

// The byte of a line pointer: its flags in the two lowest bits, then one of these,
/// right below the item before it in the main chain, which begins at the special space.
const MAIN: u8 = 0 << 2;
/// right below the last item whose offset was given.
const JUMP: u8 = 1 << 2;
/// The offset is given.
const GIVEN: u8 = 2 << 2;
const OFFSET: u8 = 3 << 2;
// and these.
/// The length is given; otherwise it is that of the item before.
const LENGTH_GIVEN: u8 = 1 << 4;
/// The length is zero; the offset is zero or given.
const NOTHING: u8 = 1 << 5;

/// What the next line pointer is told apart from.
pub(super) struct Pointers {
    length: u16,
}

impl Pointers {
    pub(super) fn new() -> Self {
        Self { length: 0 }
    }

    /// Line pointers that are all in use, each item right below the one before: only lengths are written, one where
    /// all are the same.
    pub(super) fn put_regular(items: &[Item], uniform: bool, streams: &mut Streams) {
        for item in items.iter().take(if uniform { 1 } else { items.len() }) {
            streams.put(Stream::RegularLength, &item.length().to_le_bytes());
        }
    }

    /// The opposite of [`Pointers::put_regular`]; returns where the lowest item begins (`pd_upper`).
    pub(super) fn take_regular(
        count: usize,
        special: usize,
        uniform: bool,
        source: &mut Source<'_>,
        items: &mut Vec<Item>,
    ) -> Result<usize, TransformDamage> {
        let mut length = 0;
        let mut upper = special;
        items.clear();
        for number in 0..count {
            if number == 0 || !uniform {
                length = u16::from_le_bytes(source.row(Stream::RegularLength)?);
            }
            let room = Item::new(0, length, NORMAL).room();
            upper = upper.checked_sub(room).ok_or(OUTSIDE)?;
            let item = Item::new(upper as u16, length, NORMAL);
            items.push(item);
        }
        Ok(upper)
    }

    /// The line pointers of one page whose special space begins at `special`.
    pub(super) fn put(&mut self, items: &[Item], special: usize, streams: &mut Streams) {
        let (mut main, mut jump) = (special, 0);
        for item in items {
            let given = |streams: &mut Streams| {
                streams.put(Stream::PointerOffset, &item.offset().to_le_bytes());
                GIVEN
            };
            let mut control = item.flags();
            if item.length() == 0 {
                control |= NOTHING;
                if item.offset() != 0 {
                    control |= given(streams);
                }
            } else {
                if item.length() != self.length {
                    self.length = item.length();
                    control |= LENGTH_GIVEN;
                    streams.put(Stream::PointerLength, &item.length().to_le_bytes());
                }
                if item.room_end() == main {
                    control |= MAIN;
                    main = item.start();
                } else {
                    control |= if item.room_end() == jump {
                        JUMP
                    } else {
                        given(streams)
                    };
                    jump = item.start();
                }
            }
            streams.put_byte(Stream::Pointer, control);
        }
    }

    /// `count` line pointers, in `items`; returns where the lowest of the items begins (`pd_upper`).
    pub(super) fn take(
        &mut self,
        count: usize,
        special: usize,
        source: &mut Source<'_>,
        items: &mut Vec<Item>,
    ) -> Result<usize, TransformDamage> {
        let (mut main, mut jump, mut filled) = (special, 0_usize, 0);
        items.clear();
        for _ in 0..count {
            let control = source.byte(Stream::Pointer)?;
            let given =
                |source: &mut Source<'_>| source.row(Stream::PointerOffset).map(u16::from_le_bytes);
            if control & NOTHING != 0 {
                let offset = if control & OFFSET == GIVEN {
                    given(source)?
                } else {
                    0
                };
                items.push(Item::new(offset, 0, control));
                continue;
            }
            if control & LENGTH_GIVEN != 0 {
                self.length = u16::from_le_bytes(source.row(Stream::PointerLength)?);
            }
            let room = Item::new(0, self.length, control).room();
            let offset = match control & OFFSET {
                MAIN => {
                    main = main.checked_sub(room).ok_or(OUTSIDE)?;
                    main
                }
                JUMP => {
                    jump = jump.checked_sub(room).ok_or(OUTSIDE)?;
                    jump
                }
                _ => {
                    jump = usize::from(given(source)?);
                    jump
                }
            };
            if offset + room > PAGE_SIZE {
                return Err(OUTSIDE);
            }
            filled += room;
            let item = Item::new(offset as u16, self.length, control);
            items.push(item);
        }
        special.checked_sub(filled).ok_or(OUTSIDE)
    }
}

const OUTSIDE: TransformDamage = TransformDamage("an item lies outside its page");
