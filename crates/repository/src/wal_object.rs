//! One WAL segment or timeline history file as an object: an ordinary zstd stream between two skippable zstd frames
//! with our metadata, so that `zstd -d` restores it without us. The bytes are drawn in `docs/format.md`.

mod contents;

use std::io::{Read, Write};
use std::ops::Range;

use bytes::Bytes;
use leeward_pgformat::{SystemIdentifier, TimelineId, WalContents};
use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer};

use self::contents::CONTENTS_LIMIT;
use crate::fields::Fields;
use crate::hash::{Hash, Hasher};
use crate::repository_error::RepositoryError;
use crate::store::{Key, Store};
use crate::zstd_frames::ZstdFrames;

/// What a WAL object says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalFacts {
    /// The cluster that wrote the WAL.
    pub system_identifier: SystemIdentifier,
    /// The timeline of the segment, or the one the history file describes.
    pub timeline: TimelineId,
}

/// A WAL object as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalObjectInfo {
    /// What it says of itself.
    pub facts: WalFacts,
    /// Bytes of the plain file.
    pub plain_length: u64,
    /// Bytes of the object.
    pub stored_length: u64,
    /// BLAKE3 of the plain file.
    pub plain_hash: Hash,
    /// BLAKE3 of the object but for the 32 bytes at its end, which are this hash.
    pub stored_hash: Hash,
    /// What the records in it say, where the writer knew.
    pub contents: Option<WalContents>,
}

/// The plain bytes of a WAL object and, once they are read, what they say.
pub trait WalSource: Read {
    /// Asked once, after the last byte: what the records say; `None` where there are none, as in history files.
    fn contents(&mut self) -> Option<WalContents>;
}

/// A source that knows nothing of records.
struct WithoutContents<'a>(&'a mut dyn Read);

impl Read for WithoutContents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl WalSource for WithoutContents<'_> {
    fn contents(&mut self) -> Option<WalContents> {
        None
    }
}

/// The most plain bytes of a WAL segment (`wal_segment_size` of 1 GiB).
const PLAIN_LIMIT: u64 = 1 << 30;
/// The most bytes of a WAL object: compressed bytes may be a little more than plain ones.
const STORED_LIMIT: u64 = PLAIN_LIMIT + (PLAIN_LIMIT >> 6);
/// The most plain bytes of a timeline history file or backup history file. The server's own are a few kB.
pub(crate) const FILE_LIMIT: u64 = 1 << 20;
/// zstd's window, as the power of two: what a reader must hold.
const WINDOW_LOG_LIMIT: u32 = 23;

/// `MAGIC_SKIPPABLE` 12 of zstd's format: any decompressor steps over such a frame.
const SKIPPABLE_MAGIC: u32 = 0x184D_2A5C;
const HEAD_MAGIC: [u8; 8] = *b"LWWALOBJ";
const TAIL_MAGIC: [u8; 8] = *b"LWWALEND";
const HEAD_BYTES: usize = 56;
const TAIL_BYTES: usize = 96;
/// The tail up to the hash that ends it.
const TAIL_HASHED_BYTES: usize = 64;
const WAL_OBJECT_VERSION: u16 = 1;
/// Plain bytes of a zstd frame: what was read and hashed is still in the core's cache when it is compressed, where it lies.
/// Readers take any.
const FRAME_BYTES: usize = 1 << 20;
/// The power of two of places in zstd's table at level 3.
const WAL_TABLE_LOG: u32 = 13;
/// Plain bytes that a reader hands on at once.
const BUFFER_BYTES: usize = 256 << 10;
const READ_BYTES: u64 = 4 << 20;

/// Compresses everything `plain` yields into a new object; durable when this returns. Memory: about 3 MiB.
/// `level` is zstd's; 1 and 3 have parameters of their own.
///
/// # Errors
/// Those of the store and of `plain`; more than 1 GiB.
pub fn write_wal_object(
    store: &dyn Store,
    key: &Key,
    facts: WalFacts,
    plain: &mut dyn Read,
    level: i32,
) -> Result<WalObjectInfo, RepositoryError> {
    write_wal_object_with_contents(store, key, facts, &mut WithoutContents(plain), level)
}

/// As [`write_wal_object`], for WAL whose records were looked at.
///
/// # Errors
/// As [`write_wal_object`].
pub fn write_wal_object_with_contents(
    store: &dyn Store,
    key: &Key,
    facts: WalFacts,
    plain: &mut dyn WalSource,
    level: i32,
) -> Result<WalObjectInfo, RepositoryError> {
    let mut upload = store.upload(key)?;
    let write = &mut |bytes: &[u8]| Ok(upload.write(bytes)?);
    let info = WalEncoder::new(level).encode_with_contents(key.as_str(), facts, plain, write)?;
    upload.finish()?;
    Ok(info)
}

/// Makes WAL objects, one after the other, in the same memory: about 3 MiB.
pub(crate) struct WalEncoder {
    level: i32,
    zstd: ZstdFrames,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl WalEncoder {
    /// `level` is zstd's; 1 and 3 have parameters of their own.
    pub(crate) fn new(level: i32) -> Self {
        Self {
            level,
            zstd: ZstdFrames::new(level, WAL_TABLE_LOG),
            input: vec![0; FRAME_BYTES],
            output: Vec::new(),
        }
    }

    /// The level that it was made with.
    pub(crate) const fn level(&self) -> i32 {
        self.level
    }

    /// As [`WalEncoder::encode_with_contents`], of a file without records.
    ///
    /// # Errors
    /// As [`WalEncoder::encode_with_contents`].
    pub(crate) fn encode(
        &mut self,
        object: &str,
        facts: WalFacts,
        plain: &mut dyn Read,
        write: &mut dyn FnMut(&[u8]) -> Result<(), RepositoryError>,
    ) -> Result<WalObjectInfo, RepositoryError> {
        self.encode_with_contents(object, facts, &mut WithoutContents(plain), write)
    }

    /// Compresses everything `plain` yields and hands the object's bytes to `write`. `object` is its name for messages.
    ///
    /// # Errors
    /// Those of `write` and of `plain`; more than 1 GiB.
    pub(crate) fn encode_with_contents(
        &mut self,
        object: &str,
        facts: WalFacts,
        plain: &mut dyn WalSource,
        write: &mut dyn FnMut(&[u8]) -> Result<(), RepositoryError>,
    ) -> Result<WalObjectInfo, RepositoryError> {
        let mut stored_hash = Hasher::new();
        let mut plain_hash = Hasher::new();
        let mut stored_length = 0;
        let mut plain_length = 0;
        let mut emit = |bytes: &[u8], hash: &mut Hasher| {
            hash.update(bytes);
            stored_length += bytes.len() as u64;
            write(bytes)
        };
        emit(&encode_head(facts), &mut stored_hash)?;

        loop {
            let length = fill(plain, &mut self.input).map_err(|source| RepositoryError::Io {
                action: format!("read the WAL for object \"{object}\""),
                source,
            })?;
            // There is a frame even of nothing.
            if length == 0 && plain_length > 0 {
                break;
            }
            plain_hash.update(&self.input[..length]);
            plain_length += length as u64;
            if plain_length > PLAIN_LIMIT {
                return Err(RepositoryError::Unwritable {
                    object: object.to_owned(),
                    problem: "a WAL segment has at most 1 GiB".to_owned(),
                });
            }
            self.zstd
                .compress(&self.input[..length], &mut self.output)?;
            emit(&self.output, &mut stored_hash)?;
            if length < self.input.len() {
                break;
            }
        }

        let contents = plain.contents();
        if let Some(contents) = &contents {
            emit(&contents::encode(contents), &mut stored_hash)?;
        }
        let plain_hash = plain_hash.finish();
        let mut tail = Vec::with_capacity(TAIL_BYTES);
        tail.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
        tail.extend_from_slice(&(TAIL_BYTES as u32 - 8).to_le_bytes());
        tail.extend_from_slice(&TAIL_MAGIC);
        tail.extend_from_slice(&plain_length.to_le_bytes());
        tail.extend_from_slice(&(stored_length + TAIL_BYTES as u64).to_le_bytes());
        tail.extend_from_slice(&plain_hash.0);
        stored_hash.update(&tail);
        let stored_hash = stored_hash.finish();
        tail.extend_from_slice(&stored_hash.0);
        write(&tail)?;
        Ok(WalObjectInfo {
            facts,
            plain_length,
            stored_length: stored_length + TAIL_BYTES as u64,
            plain_hash,
            stored_hash,
            contents,
        })
    }
}

/// Reads until the buffer is full or there is no more.
fn fill(from: &mut dyn WalSource, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn encode_head(facts: WalFacts) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    head[4..8].copy_from_slice(&(HEAD_BYTES as u32 - 8).to_le_bytes());
    head[8..16].copy_from_slice(&HEAD_MAGIC);
    head[16..18].copy_from_slice(&WAL_OBJECT_VERSION.to_le_bytes());
    head[20..24].copy_from_slice(&facts.timeline.0.to_le_bytes());
    head[24..32].copy_from_slice(&facts.system_identifier.0.to_le_bytes());
    head
}

/// Decompresses an object into `plain` and checks every hash. What was written to `plain` may be used only if this
/// returns `Ok`. `stored_length` is the object's size. Memory: a few MiB.
///
/// # Errors
/// [`RepositoryError::Damaged`], [`RepositoryError::NewerFormat`], those of the store and of `plain`.
pub fn read_wal_object(
    store: &dyn Store,
    key: &Key,
    stored_length: u64,
    plain: &mut dyn Write,
) -> Result<WalObjectInfo, RepositoryError> {
    decode_wal_object(
        key.as_str(),
        stored_length,
        &mut |range| Ok(store.get_range(key, range)?),
        plain,
    )
}

/// Reads a timeline history file that is stored as an object, with the timeline that the object says it is of.
///
/// # Errors
/// As [`read_wal_object`]; [`RepositoryError::Damaged`] when it has more than 1 MiB.
pub fn read_history_object(
    store: &dyn Store,
    key: &Key,
) -> Result<(TimelineId, Vec<u8>), RepositoryError> {
    let mut content = Bounded::new(FILE_LIMIT);
    let info = read_wal_object(store, key, store.size(key)?, &mut content)?;
    if info.plain_length > FILE_LIMIT {
        return Err(RepositoryError::damaged(
            key,
            "file",
            format!(
                "it has {} bytes, more than any such file",
                info.plain_length
            ),
        ));
    }
    Ok((info.facts.timeline, content.bytes))
}

/// Memory that does not grow beyond a limit; what is more is left out, and seen by the length that the reader is told.
pub(crate) struct Bounded {
    pub(crate) bytes: Vec<u8>,
    limit: u64,
}

impl Bounded {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            bytes: Vec::new(),
            limit,
        }
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = self.limit - self.bytes.len() as u64;
        let kept = room.min(bytes.len() as u64) as usize;
        self.bytes.extend_from_slice(&bytes[..kept]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// As [`read_wal_object`], getting the object's bytes from `read`.
pub(crate) fn decode_wal_object(
    object: &str,
    stored_length: u64,
    read: &mut dyn FnMut(Range<u64>) -> Result<Bytes, RepositoryError>,
    plain: &mut dyn Write,
) -> Result<WalObjectInfo, RepositoryError> {
    let damaged = |part: &str, problem: &str| RepositoryError::damaged(object, part, problem);
    let Some(stream_end) = stored_length
        .checked_sub(TAIL_BYTES as u64)
        .filter(|end| *end > HEAD_BYTES as u64 && stored_length <= STORED_LIMIT)
    else {
        return Err(damaged(
            "length",
            &format!("no WAL object has {stored_length} bytes"),
        ));
    };
    // The tail comes first: it says how much there is to be. Small objects are read at once.
    let mut chunk_start = if stored_length <= READ_BYTES {
        0
    } else {
        stream_end - CONTENTS_LIMIT as u64
    };
    let mut chunk = read(chunk_start..stored_length)?;
    let raw_tail = chunk.slice((stream_end - chunk_start) as usize..);
    let tail = Tail::decode(&raw_tail).ok_or_else(|| damaged("tail", "does not begin as one"))?;
    if tail.stored_length != stored_length || tail.plain_length > PLAIN_LIMIT {
        return Err(damaged(
            "tail",
            &format!("impossible lengths for an object of {stored_length} bytes"),
        ));
    }

    let contents = contents::decode_at_end(&chunk[..(stream_end - chunk_start) as usize]);

    let mut stored_hash = Hasher::new();
    let mut plain_hash = Hasher::new();
    let mut plain_length = 0;
    let mut head = None;
    let mut stream = WalStream::new(object)?;
    let mut position = 0;
    while position < stream_end {
        if chunk_start != 0 || position > 0 {
            chunk_start = position;
            chunk = read(position..stream_end.min(position + READ_BYTES))?;
        }
        let mut stored = &chunk[..chunk.len().min((stream_end - position) as usize)];
        stored_hash.update(stored);
        position += stored.len() as u64;
        if head.is_none() {
            let (raw, rest) = stored
                .split_at_checked(HEAD_BYTES)
                .ok_or_else(|| damaged("head", "too short"))?;
            head = Some(decode_head(object, raw));
            stored = rest;
        }
        // A newer version may only be believed once the hash over it holds.
        if matches!(head, Some(Err(_))) {
            continue;
        }
        stream.decompress(stored, &mut |bytes| {
            plain_hash.update(bytes);
            plain_length += bytes.len() as u64;
            if plain_length > tail.plain_length {
                return Err(damaged(
                    "compressed bytes",
                    &format!("more than {} plain bytes", tail.plain_length),
                ));
            }
            plain
                .write_all(bytes)
                .map_err(|source| RepositoryError::Io {
                    action: format!("write the WAL from object \"{object}\""),
                    source,
                })
        })?;
    }
    stored_hash.update(&raw_tail[..TAIL_HASHED_BYTES]);
    if stored_hash.finish() != tail.stored_hash {
        return Err(damaged(
            "compressed bytes",
            "the object's bytes are not those that were written",
        ));
    }
    let facts = head.ok_or_else(|| damaged("head", "too short"))??;
    if plain_length != tail.plain_length || plain_hash.finish() != tail.plain_hash {
        return Err(damaged(
            "compressed bytes",
            "they decompress to something else than was stored",
        ));
    }
    Ok(WalObjectInfo {
        facts,
        plain_length,
        stored_length,
        plain_hash: tail.plain_hash,
        stored_hash: tail.stored_hash,
        contents: contents.map_err(|problem| damaged("contents", problem))?,
    })
}

/// What the records in an object of `stored_length` bytes say, by one ranged read of its end; `None` where it does not
/// tell. Proven by a hash of its own, not by the WAL.
///
/// # Errors
/// [`RepositoryError::Damaged`], those of the store.
pub fn read_wal_object_contents(
    store: &dyn Store,
    key: &Key,
    stored_length: u64,
) -> Result<Option<WalContents>, RepositoryError> {
    let begin = stored_length.saturating_sub((CONTENTS_LIMIT + TAIL_BYTES) as u64);
    let end = store.get_range(key, begin..stored_length)?;
    let (before, tail) = end
        .split_last_chunk::<TAIL_BYTES>()
        .ok_or_else(|| RepositoryError::damaged(key, "tail", "too short"))?;
    if Tail::decode(tail).is_none_or(|tail| tail.stored_length != stored_length) {
        return Err(RepositoryError::damaged(
            key,
            "tail",
            "does not begin as one, or is another object's",
        ));
    }
    contents::decode_at_end(before)
        .map_err(|problem| RepositoryError::damaged(key, "contents", problem))
}

fn decode_head(object: &str, head: &[u8]) -> Result<WalFacts, RepositoryError> {
    let short = || RepositoryError::damaged(object, "head", "too short");
    let mut fields = Fields(head);
    let magic = fields.u32().ok_or_else(short)?;
    let length = fields.u32().ok_or_else(short)?;
    let name = fields.take::<8>().ok_or_else(short)?;
    let version = fields.u16().ok_or_else(short)?;
    let [sealing, _] = fields.take::<2>().ok_or_else(short)?;
    let timeline = TimelineId(fields.u32().ok_or_else(short)?);
    let system_identifier = SystemIdentifier(fields.u64().ok_or_else(short)?);
    if magic != SKIPPABLE_MAGIC || length as usize != HEAD_BYTES - 8 || name != HEAD_MAGIC {
        return Err(RepositoryError::damaged(
            object,
            "head",
            "does not begin as one",
        ));
    }
    for (what, found, known) in [
        ("format version", version, WAL_OBJECT_VERSION),
        ("sealing", sealing.into(), 0),
    ] {
        if found > known {
            return Err(RepositoryError::NewerFormat {
                object: object.to_owned(),
                what,
                found: found.into(),
                known: known.into(),
            });
        }
    }
    Ok(WalFacts {
        system_identifier,
        timeline,
    })
}

/// What the tail says.
pub(crate) struct Tail {
    pub(crate) plain_length: u64,
    pub(crate) stored_length: u64,
    pub(crate) plain_hash: Hash,
    pub(crate) stored_hash: Hash,
}

/// Reads the tail of an object of `stored_length` bytes: which WAL it holds, not proven by reading that.
pub(crate) fn read_wal_tail(
    store: &dyn Store,
    key: &Key,
    stored_length: u64,
) -> Result<Tail, RepositoryError> {
    let begin = stored_length.saturating_sub(TAIL_BYTES as u64);
    let raw = store.get_range(key, begin..stored_length)?;
    Tail::decode(&raw)
        .filter(|tail| tail.stored_length == stored_length && tail.plain_length <= PLAIN_LIMIT)
        .ok_or_else(|| {
            RepositoryError::damaged(
                key,
                "tail",
                "does not begin as one, or gives impossible lengths",
            )
        })
}

impl Tail {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let magic = fields.u32()?;
        let length = fields.u32()?;
        let name = fields.take::<8>()?;
        if magic != SKIPPABLE_MAGIC || length as usize != TAIL_BYTES - 8 || name != TAIL_MAGIC {
            return None;
        }
        Some(Self {
            plain_length: fields.u64()?,
            stored_length: fields.u64()?,
            plain_hash: Hash(fields.take()?),
            stored_hash: Hash(fields.take()?),
        })
    }
}

/// The zstd stream between head and tail.
struct WalStream<'a> {
    object: &'a str,
    context: DCtx<'static>,
    output: Vec<u8>,
}

impl<'a> WalStream<'a> {
    fn new(object: &'a str) -> Result<Self, RepositoryError> {
        let mut context = DCtx::create();
        context
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_LIMIT))
            .map_err(|code| {
                RepositoryError::damaged(
                    object,
                    "compressed bytes",
                    zstd_safe::get_error_name(code),
                )
            })?;
        Ok(Self {
            object,
            context,
            output: Vec::with_capacity(BUFFER_BYTES),
        })
    }

    fn decompress(
        &mut self,
        stored: &[u8],
        take: &mut dyn FnMut(&[u8]) -> Result<(), RepositoryError>,
    ) -> Result<(), RepositoryError> {
        let mut source = InBuffer::around(stored);
        loop {
            self.output.clear();
            {
                let mut sink = OutBuffer::around(&mut self.output);
                self.context
                    .decompress_stream(&mut sink, &mut source)
                    .map_err(|code| {
                        RepositoryError::damaged(
                            self.object,
                            "compressed bytes",
                            zstd_safe::get_error_name(code),
                        )
                    })?;
            }
            take(&self.output)?;
            // A full output may hide more behind it.
            if source.pos() == stored.len() && self.output.len() < BUFFER_BYTES {
                return Ok(());
            }
        }
    }
}
