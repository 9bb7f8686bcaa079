//! One record of a manifest as CBOR: a map with numbered fields. Readers skip numbers they do not know.

use std::convert::Infallible;

use minicbor::data::Type;
use minicbor::{Decoder, Encoder};

use super::{Content, Entry, FileKind, FileRecord, INLINE_BYTES_LIMIT, Run, WalRecord};
use crate::fields::{Fields, put_difference, put_varint};
use crate::file_path::{FilePath, Root};
use crate::frame::FRAME_BYTES_LIMIT;
use crate::hash::Hash;

/// The most runs of one file, and the most damaged pages.
pub(super) const RUNS_LIMIT: usize = 1 << 20;

/// Whoever restores or exports holds directories, links and WAL files in memory until everything else is written: so much
/// of them at most, counted as [`held_bytes_of_file`] and [`held_bytes_of_wal`] do.
pub(super) const HELD_BYTES_LIMIT: usize = 64 << 20;
/// The memory of one of them beside its names.
const HELD_BYTES_EACH: usize = 64;

/// Returns the bytes of memory of a file's record.
pub(super) fn held_bytes_of_file(record: &FileRecord) -> usize {
    match &record.kind {
        FileKind::File { .. } => 0,
        FileKind::Directory => HELD_BYTES_EACH + record.path.path.len(),
        FileKind::Symlink { target } => HELD_BYTES_EACH + record.path.path.len() + target.len(),
    }
}

/// Returns the bytes of memory of a WAL object's record.
pub(super) fn held_bytes_of_wal(record: &WalRecord) -> usize {
    HELD_BYTES_EACH * 2 + record.name.len()
}

/// Numbers of the fields, as `docs/format.md` lists them.
mod field {
    pub const KIND: u32 = 0;
    pub const ROOT: u32 = 1;
    pub const PATH: u32 = 2;
    pub const SIZE: u32 = 3;
    pub const RUNS: u32 = 4;
    pub const INLINE: u32 = 5;
    pub const TARGET: u32 = 6;
    pub const MODE: u32 = 7;
    pub const OWNER: u32 = 8;
    pub const MTIME: u32 = 9;
    pub const DAMAGED: u32 = 10;
    pub const STORED_LENGTH: u32 = 11;
    pub const PLAIN_HASH: u32 = 12;
    pub const STORED_HASH: u32 = 13;
}

const KIND_FILE: u8 = 0;
const KIND_DIRECTORY: u8 = 1;
const KIND_SYMLINK: u8 = 2;
const KIND_WAL: u8 = 3;

type Encoded = Result<(), minicbor::encode::Error<Infallible>>;

pub(super) fn encode_file(record: &FileRecord, out: &mut Vec<u8>) -> Encoded {
    let mut e = Encoder::new(out);
    let owner = u64::from(record.owner.is_some());
    let damaged = u64::from(!record.damaged.is_empty());
    let kind = match &record.kind {
        FileKind::File {
            content: Content::Runs(runs),
            ..
        } if runs.is_empty() => 1,
        FileKind::File { .. } => 2,
        FileKind::Directory => 0,
        FileKind::Symlink { .. } => 1,
    };
    e.map(5 + owner + damaged + kind)?.u32(field::KIND)?;
    match &record.kind {
        FileKind::File { .. } => e.u8(KIND_FILE)?,
        FileKind::Directory => e.u8(KIND_DIRECTORY)?,
        FileKind::Symlink { .. } => e.u8(KIND_SYMLINK)?,
    };
    e.u32(field::ROOT)?.u8(record.path.root as u8)?;
    e.u32(field::PATH)?.bytes(&record.path.path)?;
    match &record.kind {
        FileKind::File { size, content } => {
            e.u32(field::SIZE)?.u64(*size)?;
            match content {
                Content::Inline(bytes) => {
                    e.u32(field::INLINE)?.bytes(bytes)?;
                }
                Content::Runs(runs) if runs.is_empty() => {}
                Content::Runs(runs) => {
                    e.u32(field::RUNS)?.bytes(&encode_runs(runs))?;
                }
            }
        }
        FileKind::Directory => {}
        FileKind::Symlink { target } => {
            e.u32(field::TARGET)?.bytes(target)?;
        }
    }
    e.u32(field::MODE)?.u32(record.mode)?;
    if let Some((user, group)) = record.owner {
        e.u32(field::OWNER)?.array(2)?.u32(user)?.u32(group)?;
    }
    e.u32(field::MTIME)?.i64(record.mtime)?;
    if !record.damaged.is_empty() {
        e.u32(field::DAMAGED)?
            .bytes(&encode_blocks(&record.damaged))?;
    }
    Ok(())
}

pub(super) fn encode_wal(record: &WalRecord, out: &mut Vec<u8>) -> Encoded {
    let mut e = Encoder::new(out);
    e.map(6)?.u32(field::KIND)?.u8(KIND_WAL)?;
    e.u32(field::PATH)?.bytes(record.name.as_bytes())?;
    e.u32(field::SIZE)?.u64(record.plain_length)?;
    e.u32(field::STORED_LENGTH)?.u64(record.stored_length)?;
    e.u32(field::PLAIN_HASH)?.bytes(&record.plain_hash.0)?;
    e.u32(field::STORED_HASH)?.bytes(&record.stored_hash.0)?;
    Ok(())
}

/// WAL names become file names at restore.
pub(super) fn check_wal_name(name: &str) -> Result<(), String> {
    let valid = name.len() <= 64
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
    if valid && !name.is_empty() && !name.starts_with('.') {
        Ok(())
    } else {
        Err(format!("\"{name}\" is not the name of a WAL file"))
    }
}

/// Why a file record cannot be written; everything that is refused in reading is refused here too.
pub(super) fn check_file(record: &FileRecord, sources: usize) -> Result<(), String> {
    if !record.path.is_safe() {
        return Err("not a path that a restore could use".to_owned());
    }
    if record.damaged.len() > RUNS_LIMIT || !record.damaged.is_sorted_by(|a, b| a < b) {
        return Err("its damaged blocks are not in order".to_owned());
    }
    match &record.kind {
        FileKind::File {
            size,
            content: Content::Inline(bytes),
        } => {
            if bytes.len() > INLINE_BYTES_LIMIT || bytes.len() as u64 != *size {
                return Err(format!("{} bytes inline for a file of {size}", bytes.len()));
            }
        }
        FileKind::File {
            size,
            content: Content::Runs(runs),
        } => check_runs(runs, *size, sources)?,
        FileKind::Directory | FileKind::Symlink { .. } => {}
    }
    Ok(())
}

fn check_runs(runs: &[Run], size: u64, sources: usize) -> Result<(), String> {
    if runs.len() > RUNS_LIMIT {
        return Err(format!("{} runs, at most {RUNS_LIMIT}", runs.len()));
    }
    let mut end = 0;
    for (number, run) in runs.iter().enumerate() {
        let run_end = run
            .file_offset
            .checked_add(u64::from(run.length))
            .filter(|end| *end <= size);
        let in_frame =
            u64::from(run.frame_offset) + u64::from(run.length) <= FRAME_BYTES_LIMIT as u64;
        match run_end {
            Some(run_end) if run.length > 0 && in_frame && run.file_offset >= end => end = run_end,
            _ => {
                return Err(format!(
                    "run {number} lies outside the file, its frame, or out of order"
                ));
            }
        }
        if usize::from(run.source) >= sources {
            return Err(format!(
                "run {number} names backup {} of {sources}",
                run.source
            ));
        }
    }
    Ok(())
}

/// What differs from the run that is expected: the next frame of the same pack from its beginning, following in the
/// file, as long as the run before.
const SOURCE_DIFFERS: u8 = 1;
const PACK_DIFFERS: u8 = 2;
const FRAME_DIFFERS: u8 = 4;
const FRAME_OFFSET_FOLLOWS: u8 = 8;
const FILE_OFFSET_DIFFERS: u8 = 16;
const LENGTH_DIFFERS: u8 = 32;
const RUN_BITS: u8 = 63;

/// What the first run is compared with: frame 0 of pack 0 follows.
const BEFORE_FIRST: Run = Run {
    source: 0,
    pack: 0,
    frame: u32::MAX,
    frame_offset: 0,
    file_offset: 0,
    length: 0,
};

fn encode_runs(runs: &[Run]) -> Vec<u8> {
    let mut out = Vec::with_capacity(runs.len() + 16);
    let mut before = BEFORE_FIRST;
    for run in runs {
        let expected_frame = i64::from(before.frame.wrapping_add(1));
        let file_offset = before.file_offset + u64::from(before.length);
        let mut flags = 0;
        let mut differs = |flag: u8, differs: bool| {
            if differs {
                flags |= flag;
            }
        };
        differs(SOURCE_DIFFERS, run.source != before.source);
        differs(PACK_DIFFERS, run.pack != before.pack);
        differs(FRAME_DIFFERS, i64::from(run.frame) != expected_frame);
        differs(FRAME_OFFSET_FOLLOWS, run.frame_offset != 0);
        differs(FILE_OFFSET_DIFFERS, run.file_offset != file_offset);
        differs(LENGTH_DIFFERS, run.length != before.length);
        out.push(flags);
        if flags & SOURCE_DIFFERS != 0 {
            put_varint(&mut out, run.source.into());
        }
        if flags & PACK_DIFFERS != 0 {
            put_difference(&mut out, i64::from(run.pack) - i64::from(before.pack));
        }
        if flags & FRAME_DIFFERS != 0 {
            put_difference(&mut out, i64::from(run.frame) - expected_frame);
        }
        if flags & FRAME_OFFSET_FOLLOWS != 0 {
            put_varint(&mut out, run.frame_offset.into());
        }
        if flags & FILE_OFFSET_DIFFERS != 0 {
            put_varint(&mut out, run.file_offset - file_offset);
        }
        if flags & LENGTH_DIFFERS != 0 {
            put_varint(&mut out, run.length.into());
        }
        before = *run;
    }
    out
}

fn decode_runs(bytes: &[u8]) -> Option<Vec<Run>> {
    let mut fields = Fields(bytes);
    let mut runs = Vec::new();
    let mut run = BEFORE_FIRST;
    while !fields.0.is_empty() {
        if runs.len() == RUNS_LIMIT {
            return None;
        }
        let flags = fields.u8()?;
        if flags & !RUN_BITS != 0 {
            return None;
        }
        if flags & SOURCE_DIFFERS != 0 {
            run.source = fields.varint()?.try_into().ok()?;
        }
        if flags & PACK_DIFFERS != 0 {
            run.pack = i64::from(run.pack)
                .checked_add(fields.difference()?)?
                .try_into()
                .ok()?;
        }
        let mut frame = i64::from(run.frame.wrapping_add(1));
        if flags & FRAME_DIFFERS != 0 {
            frame = frame.checked_add(fields.difference()?)?;
        }
        run.frame = frame.try_into().ok()?;
        run.frame_offset = 0;
        if flags & FRAME_OFFSET_FOLLOWS != 0 {
            run.frame_offset = fields.varint()?.try_into().ok()?;
        }
        run.file_offset = run.file_offset.checked_add(run.length.into())?;
        if flags & FILE_OFFSET_DIFFERS != 0 {
            run.file_offset = run.file_offset.checked_add(fields.varint()?)?;
        }
        if flags & LENGTH_DIFFERS != 0 {
            run.length = fields.varint()?.try_into().ok()?;
        }
        runs.push(run);
    }
    Some(runs)
}

fn encode_blocks(blocks: &[u32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(blocks.len());
    let mut next = 0;
    for block in blocks {
        put_varint(&mut out, u64::from(*block) - next);
        next = u64::from(*block) + 1;
    }
    out
}

fn decode_blocks(bytes: &[u8]) -> Option<Vec<u32>> {
    let mut fields = Fields(bytes);
    let mut blocks = Vec::new();
    let mut next = 0_u64;
    while !fields.0.is_empty() {
        let block = next.checked_add(fields.varint()?)?;
        blocks.push(block.try_into().ok()?);
        next = block + 1;
        if blocks.len() > RUNS_LIMIT {
            return None;
        }
    }
    Some(blocks)
}

/// The record at the beginning of `bytes`, and its length. `sources` is how many backups the footer names.
pub(super) fn decode(bytes: &[u8], sources: usize) -> Result<(Entry, usize), String> {
    let mut d = Decoder::new(bytes);
    let fields = collect(&mut d).map_err(|error| error.to_string())?;
    let length = d.position();
    Ok((fields.into_entry(sources)?, length))
}

/// The fields of a record as they were found.
#[derive(Default)]
struct Found<'b> {
    kind: Option<u8>,
    root: u8,
    path: &'b [u8],
    size: u64,
    runs: &'b [u8],
    inline: Option<&'b [u8]>,
    target: &'b [u8],
    mode: u32,
    owner: Option<(u32, u32)>,
    mtime: i64,
    damaged: &'b [u8],
    stored_length: u64,
    plain_hash: &'b [u8],
    stored_hash: &'b [u8],
}

fn collect<'b>(d: &mut Decoder<'b>) -> Result<Found<'b>, minicbor::decode::Error> {
    let mut found = Found::default();
    let count = d
        .map()?
        .ok_or_else(|| minicbor::decode::Error::message("a map without a length"))?;
    for _ in 0..count {
        if !matches!(d.datatype()?, Type::U8 | Type::U16 | Type::U32) {
            return Err(minicbor::decode::Error::message("a field without a number"));
        }
        match d.u32()? {
            field::KIND => found.kind = Some(d.u8()?),
            field::ROOT => found.root = d.u8()?,
            field::PATH => found.path = d.bytes()?,
            field::SIZE => found.size = d.u64()?,
            field::RUNS => found.runs = d.bytes()?,
            field::INLINE => found.inline = Some(d.bytes()?),
            field::TARGET => found.target = d.bytes()?,
            field::MODE => found.mode = d.u32()?,
            field::OWNER => {
                if d.array()? != Some(2) {
                    return Err(minicbor::decode::Error::message(
                        "an owner is not two numbers",
                    ));
                }
                found.owner = Some((d.u32()?, d.u32()?));
            }
            field::MTIME => found.mtime = d.i64()?,
            field::DAMAGED => found.damaged = d.bytes()?,
            field::STORED_LENGTH => found.stored_length = d.u64()?,
            field::PLAIN_HASH => found.plain_hash = d.bytes()?,
            field::STORED_HASH => found.stored_hash = d.bytes()?,
            _ => d.skip()?,
        }
    }
    Ok(found)
}

impl Found<'_> {
    fn into_entry(self, sources: usize) -> Result<Entry, String> {
        let kind = match self.kind.ok_or("a record without its kind")? {
            KIND_FILE => FileKind::File {
                size: self.size,
                content: match self.inline {
                    Some(bytes) => Content::Inline(bytes.to_vec()),
                    None => {
                        Content::Runs(decode_runs(self.runs).ok_or("runs that cannot be read")?)
                    }
                },
            },
            KIND_DIRECTORY => FileKind::Directory,
            KIND_SYMLINK => FileKind::Symlink {
                target: self.target.to_vec(),
            },
            KIND_WAL => return self.into_wal(),
            kind => {
                return Err(format!(
                    "a record of unknown kind {kind}: a newer leeward wrote it"
                ));
            }
        };
        let record = FileRecord {
            path: FilePath {
                root: Root::from_u8(self.root).ok_or("a path below an unknown root")?,
                path: self.path.to_vec(),
            },
            kind,
            mode: self.mode,
            owner: self.owner,
            mtime: self.mtime,
            damaged: decode_blocks(self.damaged).ok_or("damaged blocks that cannot be read")?,
        };
        check_file(&record, sources)
            .map_err(|problem| format!("\"{}\": {problem}", record.path))?;
        Ok(Entry::File(record))
    }

    fn into_wal(self) -> Result<Entry, String> {
        let hash = |bytes: &[u8]| {
            bytes
                .try_into()
                .map(Hash)
                .map_err(|_| "a hash of another length")
        };
        let name =
            String::from_utf8(self.path.to_vec()).map_err(|_| "a WAL name that is not text")?;
        check_wal_name(&name)?;
        Ok(Entry::Wal(WalRecord {
            name,
            plain_length: self.size,
            stored_length: self.stored_length,
            plain_hash: hash(self.plain_hash)?,
            stored_hash: hash(self.stored_hash)?,
        }))
    }
}
