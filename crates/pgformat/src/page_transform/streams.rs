//! Streams: bytes of one meaning from all pages of a frame, one behind the other.

use super::TransformDamage;
use super::planes::{join, split};
use super::schema::Schema;

/// What each stream holds, in the order in which they are written. `docs/format.md` draws every one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Stream {
    PageKind,
    PageHeader,
    Special16,
    SpecialOther,
    Pointer,
    PointerOffset,
    PointerLength,
    RegularLength,
    HeapControl,
    Xmin,
    XminNear,
    Xmax,
    XmaxNear,
    Cid,
    Ctid,
    Infomasks,
    HeapPrefix,
    RowSchema,
    IndexControl,
    Tid,
    TidNear,
    Posting,
    PostingNear,
    PostingFar,
    PostingBlock,
    PostingOffset,
    PostingTail,
    /// The first of [`HEAP_WORDS`] streams.
    HeapWords,
    /// The first of [`INDEX_WORDS`] streams.
    IndexWords = Self::HeapWords as usize + HEAP_WORDS,
    KeyFirst = Self::IndexWords as usize + INDEX_WORDS,
    KeyShared,
    IndexRest,
    HeapRest,
    ItemRest,
    Padding,
    Cells,
    Hole,
    Raw,
}

/// Words of a row that have streams of their own, at most.
pub(super) const HEAP_WORDS: usize = 16;

/// Words of an index key that have streams of their own, at most.
pub(super) const INDEX_WORDS: usize = 8;

const COUNT: usize = Stream::Raw as usize + 1;

/// Bytes of a row of each stream; streams of more than one are stored as planes.
const WIDTHS: [usize; COUNT] = {
    let mut widths = [1; COUNT];
    widths[Stream::PageHeader as usize] = 20;
    widths[Stream::Special16 as usize] = 16;
    widths[Stream::PointerOffset as usize] = 2;
    widths[Stream::PointerLength as usize] = 2;
    widths[Stream::RegularLength as usize] = 2;
    widths[Stream::Xmin as usize] = 4;
    widths[Stream::Xmax as usize] = 4;
    widths[Stream::Cid as usize] = 4;
    widths[Stream::Ctid as usize] = 6;
    widths[Stream::Infomasks as usize] = 4;
    widths[Stream::Tid as usize] = 6;
    widths[Stream::TidNear as usize] = 3;
    widths[Stream::Posting as usize] = 4;
    widths[Stream::PostingFar as usize] = 2;
    widths[Stream::PostingBlock as usize] = 4;
    widths[Stream::PostingOffset as usize] = 2;
    let mut word = Stream::HeapWords as usize;
    while word < Stream::KeyFirst as usize {
        widths[word] = 8;
        word += 1;
    }
    widths
};

/// Streams being filled; used again from frame to frame.
pub(super) struct Streams {
    bytes: [Vec<u8>; COUNT],
    /// Those of the schemas' columns, and the bytes of a row in each; the first vectors are in use.
    columns: Vec<Vec<u8>>,
    column_widths: Vec<usize>,
}

impl Streams {
    pub(super) fn new() -> Self {
        Self {
            bytes: std::array::from_fn(|_| Vec::new()),
            columns: Vec::new(),
            column_widths: Vec::new(),
        }
    }

    /// Empties every stream, and has streams for the columns of these schemas.
    pub(super) fn begin(&mut self, schemas: &[Schema]) {
        self.column_widths.clear();
        self.column_widths
            .extend(schemas.iter().flat_map(Schema::widths));
        if self.columns.len() < self.column_widths.len() {
            self.columns.resize_with(self.column_widths.len(), Vec::new);
        }
        let streams = self.bytes.iter_mut().chain(&mut self.columns);
        streams.for_each(clear);
    }

    /// Adds a row, or bytes.
    #[inline]
    pub(super) fn put(&mut self, stream: Stream, bytes: &[u8]) {
        self.bytes[stream as usize].extend_from_slice(bytes);
    }

    #[inline]
    pub(super) fn put_byte(&mut self, stream: Stream, byte: u8) {
        self.bytes[stream as usize].push(byte);
    }

    /// Adds bytes, as many as the iterator has.
    #[inline]
    pub(super) fn put_bytes(&mut self, stream: Stream, bytes: impl ExactSizeIterator<Item = u8>) {
        self.bytes[stream as usize].extend(bytes);
    }

    /// Different streams, to add rows to each.
    #[inline]
    pub(super) fn several<const COUNT: usize>(
        &mut self,
        streams: [Stream; COUNT],
    ) -> [&mut Vec<u8>; COUNT] {
        let streams = self
            .bytes
            .get_disjoint_mut(streams.map(|stream| stream as usize));
        streams.unwrap_or_else(|_| unreachable!("the streams are different ones"))
    }

    /// Adds `count` rows to the word stream number `word` of those that begin at `first`; they are still zeros.
    #[inline]
    pub(super) fn add_words(&mut self, first: Stream, word: usize, count: usize) -> &mut [[u8; 8]] {
        add_rows(&mut self.bytes[first as usize + word], count)
    }

    /// Adds a row to the word stream number `word` of those that begin at `first`.
    #[inline]
    pub(super) fn put_word(&mut self, first: Stream, word: usize, value: u64) {
        self.bytes[first as usize + word].extend_from_slice(&value.to_le_bytes());
    }

    /// The streams of columns from this one on.
    pub(super) fn column(&mut self, stream: usize) -> &mut [Vec<u8>] {
        &mut self.columns[stream..]
    }

    /// Appends the lengths of all streams, then the streams.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let columns = self.columns.iter().zip(self.column_widths.iter().copied());
        let streams = || self.bytes.iter().zip(WIDTHS).chain(columns.clone());
        streams().for_each(|(bytes, _)| put_varint(bytes.len(), out));
        streams().for_each(|(bytes, width)| split(bytes, width, out));
    }
}

/// Empties the stream, and gives up memory that the last frame had no use for: relations differ in what they need.
fn clear(stream: &mut Vec<u8>) {
    if stream.capacity() > 4 * stream.len() + 1024 {
        *stream = Vec::new();
    }
    stream.clear();
}

pub(super) fn add_rows<const WIDTH: usize>(
    stream: &mut Vec<u8>,
    count: usize,
) -> &mut [[u8; WIDTH]] {
    let start = stream.len();
    stream.resize(start + count * WIDTH, 0);
    stream[start..].as_chunks_mut().0
}

/// Rows of which each stays only if it is needed: put without a branch, where the answer is hard to foresee.
pub(super) struct KeptRows<'a, const WIDTH: usize> {
    rows: &'a mut [[u8; WIDTH]],
    count: usize,
}

impl<'a, const WIDTH: usize> KeptRows<'a, WIDTH> {
    /// Room for so many at the end of a stream.
    pub(super) fn add(stream: &'a mut Vec<u8>, most: usize) -> Self {
        Self {
            rows: add_rows(stream, most),
            count: 0,
        }
    }

    #[inline(always)]
    pub(super) fn put_if(&mut self, needed: bool, row: [u8; WIDTH]) {
        self.rows[self.count] = row;
        self.count += usize::from(needed);
    }

    /// Bytes that were added and are not needed, at the end of the stream.
    pub(super) fn unneeded(self) -> usize {
        (self.rows.len() - self.count) * WIDTH
    }
}

/// Takes so many bytes away again.
pub(super) fn shorten(stream: &mut Vec<u8>, by: usize) {
    stream.truncate(stream.len() - by);
}

/// Streams being read: what is left of each.
pub(super) struct Source<'a> {
    left: [&'a [u8]; COUNT],
    columns: Vec<&'a [u8]>,
}

impl<'a> Source<'a> {
    /// Finds the streams in `bytes`, which are nothing else; rows are put together in `rows`.
    pub(super) fn new(
        bytes: &'a [u8],
        schemas: &[Schema],
        rows: &'a mut Vec<u8>,
    ) -> Result<Self, TransformDamage> {
        let widths = || {
            WIDTHS
                .into_iter()
                .chain(schemas.iter().flat_map(Schema::widths))
        };
        let mut at = bytes;
        let mut lengths = Vec::new();
        for width in widths() {
            let length = take_varint(&mut at)?;
            if length % width != 0 {
                return Err(TransformDamage("a stream ends within a row"));
            }
            lengths.push(length);
        }
        let mut streams = Vec::with_capacity(lengths.len());
        for length in lengths {
            let (stream, rest) = at
                .split_at_checked(length)
                .ok_or(TransformDamage("a stream is longer than the frame"))?;
            streams.push(stream);
            at = rest;
        }
        if !at.is_empty() {
            return Err(TransformDamage("there are bytes behind the last stream"));
        }
        let wide = |(_, width): &(&mut &[u8], usize)| *width > 1;
        // As long as all streams together would do; it only grows, so that it is not made zeros for each frame.
        if rows.len() < bytes.len() {
            rows.resize(bytes.len(), 0);
        }
        let mut free = &mut rows[..];
        for (stream, width) in streams.iter_mut().zip(widths()).filter(wide) {
            let (joined, rest) = std::mem::take(&mut free).split_at_mut(stream.len());
            join(stream, width, joined);
            (*stream, free) = (joined, rest);
        }
        let columns = streams.split_off(COUNT);
        let mut left: [&[u8]; COUNT] = [&[]; COUNT];
        left.copy_from_slice(&streams);
        Ok(Self { left, columns })
    }

    /// What is left of a column's stream, and of the one behind it.
    pub(super) fn column(&self, stream: usize) -> [&'a [u8]; 2] {
        [0, 1].map(|next| self.columns.get(stream + next).copied().unwrap_or_default())
    }

    /// What is now left of them.
    pub(super) fn put_back(&mut self, stream: usize, left: [&'a [u8]; 2]) {
        for (slot, left) in self.columns[stream..].iter_mut().zip(left) {
            *slot = left;
        }
    }

    /// The next row.
    #[inline]
    pub(super) fn row<const WIDTH: usize>(
        &mut self,
        stream: Stream,
    ) -> Result<[u8; WIDTH], TransformDamage> {
        let left = &mut self.left[stream as usize];
        let (row, rest) = left.split_first_chunk().ok_or(ENDS)?;
        *left = rest;
        Ok(*row)
    }

    #[inline]
    pub(super) fn byte(&mut self, stream: Stream) -> Result<u8, TransformDamage> {
        let [byte] = self.row(stream)?;
        Ok(byte)
    }

    /// The next `count` rows.
    pub(super) fn rows<const WIDTH: usize>(
        &mut self,
        stream: Stream,
        count: usize,
    ) -> Result<&'a [[u8; WIDTH]], TransformDamage> {
        Ok(self.bytes(stream, count * WIDTH)?.as_chunks().0)
    }

    /// All rows that are left, which stay there.
    pub(super) fn left_rows<const WIDTH: usize>(&self, stream: Stream) -> &'a [[u8; WIDTH]] {
        self.left[stream as usize].as_chunks().0
    }

    /// The next `count` rows of the word stream number `word` of those that begin at `first`.
    pub(super) fn words(
        &mut self,
        first: Stream,
        word: usize,
        count: usize,
    ) -> Result<&'a [[u8; 8]], TransformDamage> {
        let left = &mut self.left[first as usize + word];
        let (rows, rest) = left.split_at_checked(count * 8).ok_or(ENDS)?;
        *left = rest;
        Ok(rows.as_chunks().0)
    }

    /// The next row of the word stream number `word` of those that begin at `first`.
    #[inline]
    pub(super) fn word(&mut self, first: Stream, word: usize) -> Result<u64, TransformDamage> {
        let left = &mut self.left[first as usize + word];
        let (row, rest) = left.split_first_chunk().ok_or(ENDS)?;
        *left = rest;
        Ok(u64::from_le_bytes(*row))
    }

    /// The next bytes.
    #[inline]
    pub(super) fn bytes(
        &mut self,
        stream: Stream,
        count: usize,
    ) -> Result<&'a [u8], TransformDamage> {
        let left = &mut self.left[stream as usize];
        let (bytes, rest) = left.split_at_checked(count).ok_or(ENDS)?;
        *left = rest;
        Ok(bytes)
    }

    /// Whether nothing is left.
    pub(super) fn finish(&self) -> Result<(), TransformDamage> {
        if self
            .left
            .iter()
            .chain(&self.columns)
            .all(|left| left.is_empty())
        {
            Ok(())
        } else {
            Err(TransformDamage("a stream is longer than the pages need"))
        }
    }
}

const ENDS: TransformDamage = TransformDamage("a stream ends too early");

/// Seven bits a byte, the least first, the last byte below 128.
fn put_varint(mut value: usize, out: &mut Vec<u8>) {
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

/// At most four bytes: 256 MiB, far more than a frame has.
fn take_varint(bytes: &mut &[u8]) -> Result<usize, TransformDamage> {
    let mut value = 0;
    for shift in [0, 7, 14, 21] {
        let (byte, rest) = bytes.split_first().ok_or(ENDS)?;
        *bytes = rest;
        value |= usize::from(byte & 127) << shift;
        if *byte < 128 {
            return Ok(value);
        }
    }
    Err(TransformDamage("the length of a stream is impossible"))
}
