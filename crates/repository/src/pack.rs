//! A pack: an immutable object of many frames with its index at the end. The bytes are drawn in `docs/format.md`.

use std::collections::HashMap;

use leeward_pgformat::page_transform::PAGE_TRANSFORM;

use crate::codec::{Compression, CompressionUsed, Compressor};
use crate::fields::Fields;
use crate::file_path::{FilePath, Root};
use crate::frame::{EncodedFrame, FrameDamage, FrameDecoder, FrameEntry, Piece, blocks_of_piece};
use crate::hash::Hash;
use crate::repository_error::RepositoryError;
use crate::store::{Key, Store, Upload};
use crate::trailer::{self, HEADER_BYTES, Trailer, encode_end, encode_header};

/// When a pack holds this many stored bytes, the next frame goes to a new one.
pub const PACK_BYTES: u64 = 128 << 20;

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameLocation {
    /// The pack's number in its backup.
    pub pack: u32,
    /// The frame's number in the pack, from 0.
    pub frame: u32,
}

/// What the manifest remembers of a finished pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackInfo {
    /// The pack's number in its backup.
    pub number: u32,
    /// Bytes of the whole object.
    pub size: u64,
    /// How many frames it holds.
    pub frames: u32,
    /// The hash that proves its index, see `docs/format.md`.
    pub index_hash: Hash,
}

/// Once an index has grown to this many plain bytes, the next frame goes to a new pack too: memory stays bounded
/// whatever the number of small files.
const INDEX_BYTES_FULL: usize = 8 << 20;

/// Writes one pack, uploading while frames arrive.
pub struct PackWriter {
    upload: Box<dyn Upload>,
    object: String,
    number: u32,
    header: [u8; HEADER_BYTES],
    offset: u64,
    file_numbers: HashMap<FilePath, u32>,
    files: Vec<u8>,
    frames: Vec<u8>,
    frame_count: u32,
    pieces: Vec<u8>,
    piece_count: u32,
}

impl PackWriter {
    /// Begins pack `number` under `key`. Nothing is visible there before [`PackWriter::finish`].
    ///
    /// # Errors
    /// Those of the store.
    pub fn create(store: &dyn Store, key: &Key, number: u32) -> Result<Self, RepositoryError> {
        let header = encode_header(trailer::PACK, number, rand::random());
        let mut upload = store.upload(key)?;
        upload.write(&header)?;
        Ok(Self {
            upload,
            object: key.to_string(),
            number,
            header,
            offset: HEADER_BYTES as u64,
            file_numbers: HashMap::new(),
            files: Vec::new(),
            frames: Vec::new(),
            frame_count: 0,
            pieces: Vec::new(),
            piece_count: 0,
        })
    }

    /// Appends a frame. `pieces` are (file, offset in the file, length), in the order of the frame's plain bytes.
    ///
    /// # Errors
    /// Those of the store; pieces that are not the frame's; a path that no restore could use.
    pub fn append(
        &mut self,
        frame: EncodedFrame,
        pieces: &[(&FilePath, u64, u32)],
    ) -> Result<FrameLocation, RepositoryError> {
        let covered: u64 = pieces.iter().map(|(_, _, length)| u64::from(*length)).sum();
        if covered != u64::from(frame.plain_length) {
            return Err(self.unwritable(format!(
                "the pieces of a frame have {covered} bytes, the frame {}",
                frame.plain_length
            )));
        }
        let entry = FrameEntry {
            offset: self.offset,
            stored_length: frame.stored.len() as u32,
            transformed_length: frame.transformed_length,
            plain_length: frame.plain_length,
            page_size: frame.page_size,
            compression: frame.compression as u8,
            transform: frame.transform,
            sealing: frame.sealing,
            plain_hash: frame.plain_hash,
            stored_hash: frame.stored_hash,
            pieces: pieces
                .iter()
                .map(|(path, offset, length)| {
                    Ok(Piece {
                        file: self.file_number(path)?,
                        offset: *offset,
                        length: *length,
                    })
                })
                .collect::<Result<_, RepositoryError>>()?,
        };
        entry
            .check_lengths()
            .map_err(|problem| self.unwritable(problem))?;
        self.upload.write(&frame.stored)?;
        entry.encode(&mut self.frames);
        for piece in &entry.pieces {
            piece.encode(&mut self.pieces);
        }
        self.offset += u64::from(entry.stored_length);
        self.piece_count += entry.pieces.len() as u32;
        self.frame_count += 1;
        Ok(FrameLocation {
            pack: self.number,
            frame: self.frame_count - 1,
        })
    }

    fn file_number(&mut self, path: &FilePath) -> Result<u32, RepositoryError> {
        if let Some(number) = self.file_numbers.get(path) {
            return Ok(*number);
        }
        if !path.is_safe() {
            return Err(
                self.unwritable(format!("\"{path}\" is not a path that a restore could use"))
            );
        }
        let number = self.file_numbers.len() as u32;
        encode_path(path, &mut self.files);
        self.file_numbers.insert(path.clone(), number);
        Ok(number)
    }

    fn unwritable(&self, problem: String) -> RepositoryError {
        RepositoryError::Unwritable {
            object: self.object.clone(),
            problem,
        }
    }

    /// Stored bytes so far, without the index.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.offset
    }

    /// Whether the next frame should go to a new pack: [`PACK_BYTES`] reached, or the index has grown to its share.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.offset >= PACK_BYTES || self.index_bytes() >= INDEX_BYTES_FULL
    }

    fn index_bytes(&self) -> usize {
        INDEX_HEADER_BYTES + self.files.len() + self.frames.len() + self.pieces.len()
    }

    /// Writes the index; the pack is durable when this returns. Dropping the writer instead leaves nothing.
    ///
    /// # Errors
    /// Those of the store.
    pub fn finish(mut self) -> Result<PackInfo, RepositoryError> {
        let mut index = Vec::with_capacity(self.index_bytes());
        index.extend_from_slice(&self.header);
        for count in [
            self.file_numbers.len() as u32,
            self.frame_count,
            self.piece_count,
            self.files.len() as u32,
        ] {
            index.extend_from_slice(&count.to_le_bytes());
        }
        index.extend_from_slice(&(FrameEntry::ENCODED_BYTES as u16).to_le_bytes());
        index.extend_from_slice(&(FrameEntry::PIECE_BYTES as u16).to_le_bytes());
        index.resize(INDEX_HEADER_BYTES, 0);
        index.extend_from_slice(&self.files);
        index.extend_from_slice(&self.frames);
        index.extend_from_slice(&self.pieces);
        let (end, index_hash, size) = encode_end(
            trailer::PACK,
            &self.object,
            &mut Compressor::new(Compression::default()),
            &index,
            self.frame_count,
            self.offset,
        )?;
        self.upload.write(&end)?;
        let written = self.upload.finish()?;
        if written != size {
            return Err(RepositoryError::Unwritable {
                object: self.object,
                problem: format!("the store counted {written} bytes, not {size}"),
            });
        }
        Ok(PackInfo {
            number: self.number,
            size,
            frames: self.frame_count,
            index_hash,
        })
    }
}

/// The most files, frames and pieces of a pack. A writer closes it when its index has 8 MiB, and so at less than half.
const FILES_LIMIT: u32 = 1 << 20;
const FRAMES_LIMIT: u32 = 1 << 18;
const PIECES_LIMIT: u32 = 1 << 20;

/// Bytes before the file table of an index.
const INDEX_HEADER_BYTES: usize = 96;

fn encode_path(path: &FilePath, out: &mut Vec<u8>) {
    out.push(path.root as u8);
    out.push(0);
    out.extend_from_slice(&(path.path.len() as u16).to_le_bytes());
    out.extend_from_slice(&path.path);
}

/// The index of one pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackIndex {
    /// The first 64 bytes of the pack, as the index repeats them: its number and random id.
    pub header: [u8; HEADER_BYTES],
    /// The files of which the pack holds pieces.
    pub files: Vec<FilePath>,
    /// The frames in the order of their bytes.
    pub frames: Vec<FrameEntry>,
}

impl PackIndex {
    /// Reads and checks the index with one ranged read of the object's tail where it is not unusually large.
    /// `expected` is what the manifest says of the pack; without it (rebuilding a lost manifest) the index
    /// is held to its own hash only, and the object's size is asked of the store.
    ///
    /// # Errors
    /// [`RepositoryError::Damaged`], [`RepositoryError::NewerFormat`], and those of the store.
    pub fn read(
        store: &dyn Store,
        key: &Key,
        expected: Option<&PackInfo>,
    ) -> Result<Self, RepositoryError> {
        let size = match expected {
            Some(info) => info.size,
            None => store.size(key)?,
        };
        let hash = expected.map(|info| info.index_hash);
        let (trailer, index) = trailer::read_end(trailer::PACK, store, key, size, hash)?;
        let index = Self::decode(key.as_str(), &trailer, &index)?;
        match expected {
            Some(info)
                if info.number != index.number() || info.frames as usize != index.frames.len() =>
            {
                Err(RepositoryError::damaged(
                    key,
                    "index",
                    format!(
                        "it is that of pack {} with {} frames, not of pack {} with {}",
                        index.number(),
                        index.frames.len(),
                        info.number,
                        info.frames
                    ),
                ))
            }
            _ => Ok(index),
        }
    }

    /// Returns about how much memory it takes, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let files: usize = self.files.iter().map(|file| 64 + file.path.len()).sum();
        let frames: usize = self
            .frames
            .iter()
            .map(|frame| size_of::<FrameEntry>() + frame.pieces.len() * size_of::<Piece>())
            .sum();
        files + frames
    }

    /// The pack's number in its backup.
    #[must_use]
    pub fn number(&self) -> u32 {
        u32::from_le_bytes([
            self.header[12],
            self.header[13],
            self.header[14],
            self.header[15],
        ])
    }

    /// A decompressed index. Every length is checked before anything of that size is allocated.
    pub(crate) fn decode(
        object: &str,
        trailer: &Trailer,
        index: &[u8],
    ) -> Result<Self, RepositoryError> {
        let damaged = |problem: String| RepositoryError::damaged(object, "index", problem);
        let parsed = Self::parse(index)
            .ok_or_else(|| damaged("its tables do not fit its length".to_owned()))?;
        if parsed.frames.len() != trailer.count as usize {
            return Err(damaged(
                "it counts other frames than the trailer".to_owned(),
            ));
        }
        if parsed.header[..8] != trailer::PACK.header_magic {
            return Err(damaged("it does not repeat the pack's header".to_owned()));
        }
        let mut offset = HEADER_BYTES as u64;
        for (number, frame) in parsed.frames.iter().enumerate() {
            let wrong = |problem: String| damaged(format!("frame {number}: {problem}"));
            frame.check_lengths().map_err(wrong)?;
            if frame.offset != offset {
                return Err(wrong(format!(
                    "begins at byte {}, not {offset}",
                    frame.offset
                )));
            }
            offset += u64::from(frame.stored_length);
            let mut covered = 0_u64;
            for piece in &frame.pieces {
                covered += u64::from(piece.length);
                if piece.file as usize >= parsed.files.len()
                    || piece.offset.checked_add(piece.length.into()).is_none()
                {
                    return Err(wrong("a piece lies nowhere".to_owned()));
                }
            }
            if covered != u64::from(frame.plain_length) {
                return Err(wrong(format!(
                    "{covered} bytes in pieces, {} in all",
                    frame.plain_length
                )));
            }
        }
        if offset != trailer.index_offset {
            return Err(damaged("the frames do not fill the pack".to_owned()));
        }
        Ok(parsed)
    }

    fn parse(index: &[u8]) -> Option<Self> {
        let mut fields = Fields(index);
        let header = fields.take::<HEADER_BYTES>()?;
        let file_count = fields.u32()?;
        let frame_count = fields.u32()?;
        let piece_count = fields.u32()?;
        let file_bytes = fields.u32()?;
        let frame_size = usize::from(fields.u16()?);
        let piece_size = usize::from(fields.u16()?);
        fields.bytes(INDEX_HEADER_BYTES - HEADER_BYTES - 20)?;
        if frame_size < FrameEntry::ENCODED_BYTES || piece_size < FrameEntry::PIECE_BYTES {
            return None;
        }
        let mut file_fields = Fields(fields.bytes(file_bytes as usize)?);
        let frame_bytes = fields.bytes((frame_count as usize).checked_mul(frame_size)?)?;
        let piece_bytes = fields.bytes((piece_count as usize).checked_mul(piece_size)?)?;
        if !fields.0.is_empty()
            || file_count > FILES_LIMIT
            || frame_count > FRAMES_LIMIT
            || piece_count > PIECES_LIMIT
            // Four bytes at least for each file: what is allocated is bounded by bytes that are there.
            || file_count > file_bytes / 4
        {
            return None;
        }
        let mut files = Vec::with_capacity(file_count as usize);
        for _ in 0..file_count {
            let root = Root::from_u8(file_fields.u8()?)?;
            file_fields.u8()?;
            let length = usize::from(file_fields.u16()?);
            let path = file_fields.bytes(length)?.to_vec();
            files.push(FilePath { root, path });
        }
        if !file_fields.0.is_empty() || !files.iter().all(FilePath::is_safe) {
            return None;
        }
        let mut pieces = piece_bytes.chunks_exact(piece_size);
        let mut frames = Vec::with_capacity(frame_count as usize);
        for bytes in frame_bytes.chunks_exact(frame_size) {
            let (mut frame, count) = FrameEntry::decode(bytes)?;
            if count as usize > pieces.len() {
                return None;
            }
            frame.pieces.reserve_exact(count as usize);
            for bytes in pieces.by_ref().take(count as usize) {
                frame.pieces.push(Piece::decode(bytes)?);
            }
            frames.push(frame);
        }
        (pieces.len() == 0).then_some(Self {
            header,
            files,
            frames,
        })
    }

    /// What a frame holds, for messages: `frame 12 ("base/5/16384" blocks 128 to 255)`.
    #[must_use]
    pub fn describe_frame(&self, frame: u32) -> String {
        let Some(entry) = self.frames.get(frame as usize) else {
            return format!("frame {frame}");
        };
        let pieces: Vec<String> = entry
            .pieces
            .iter()
            .take(3)
            .map(|piece| self.describe_piece(entry, piece))
            .collect();
        let more = match entry.pieces.len() {
            0..=3 => String::new(),
            count => format!(" and {} more", count - 3),
        };
        format!("frame {frame} ({}{more})", pieces.join(", "))
    }

    fn describe_piece(&self, entry: &FrameEntry, piece: &Piece) -> String {
        let Some(path) = self.files.get(piece.file as usize) else {
            return format!("file {}", piece.file);
        };
        match blocks_of_piece(path, piece.offset, piece.length) {
            Some(blocks) if entry.page_size > 0 && !blocks.is_empty() => {
                format!("\"{path}\" blocks {} to {}", blocks.start, blocks.end - 1)
            }
            _ => format!("\"{path}\" from byte {}", piece.offset),
        }
    }

    /// Reads and decodes one frame; damage is named by object, frame, file and blocks.
    ///
    /// # Errors
    /// [`RepositoryError::Damaged`], [`RepositoryError::NewerFormat`], and those of the store.
    pub fn read_frame(
        &self,
        store: &dyn Store,
        key: &Key,
        frame: u32,
        decoder: &mut FrameDecoder,
    ) -> Result<Vec<u8>, RepositoryError> {
        let Some(entry) = self.frames.get(frame as usize) else {
            return Err(RepositoryError::damaged(
                key,
                format!("frame {frame}"),
                "the pack has no such frame",
            ));
        };
        let end = entry.offset + u64::from(entry.stored_length);
        let stored = store.get_range(key, entry.offset..end)?;
        decoder
            .decode(entry, &self.files, &stored)
            .map_err(|damage| self.frame_error(key, frame, damage))
    }

    /// What was found wrong with a frame as an error that names it.
    #[must_use]
    pub fn frame_error(&self, key: &Key, frame: u32, damage: FrameDamage) -> RepositoryError {
        match damage {
            FrameDamage::Unknown { what, number } => RepositoryError::NewerFormat {
                object: key.to_string(),
                what,
                found: number.into(),
                known: match what {
                    "compression" => CompressionUsed::Lz4 as u64,
                    "page transform" => PAGE_TRANSFORM.into(),
                    _ => 0,
                },
            },
            damage => RepositoryError::damaged(key, self.describe_frame(frame), damage),
        }
    }
}

/// Reads every byte of a pack and checks it: header, frames, index. Calls `found` for each damage; returns how many
/// frames are sound.
///
/// # Errors
/// Those of the store.
pub fn check_pack(
    store: &dyn Store,
    key: &Key,
    expected: Option<&PackInfo>,
    found: &mut dyn FnMut(RepositoryError),
) -> Result<u32, RepositoryError> {
    let size = store.size(key)?;
    if let Some(info) = expected.filter(|info| info.size != size) {
        found(RepositoryError::wrong_size(key, size, info.size));
    }
    let index = match PackIndex::read(store, key, expected) {
        Ok(index) => index,
        Err(error) if error.is_damage() || matches!(error, RepositoryError::NewerFormat { .. }) => {
            found(error);
            return Ok(0);
        }
        Err(error) => return Err(error),
    };
    if store.get_range(key, 0..HEADER_BYTES as u64)?[..] != index.header[..] {
        found(RepositoryError::damaged(
            key,
            "header",
            "it is not the one that the index repeats",
        ));
    }
    let mut decoder = FrameDecoder::new();
    let mut sound = 0;
    for frame in 0..index.frames.len() as u32 {
        match index.read_frame(store, key, frame, &mut decoder) {
            Ok(_) => sound += 1,
            Err(error @ RepositoryError::Store(_)) if !error.is_damage() => return Err(error),
            Err(error) => found(error),
        }
    }
    Ok(sound)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An index of so many files of the shortest names, frames and pieces, as far as its lengths go.
    fn index(files: u32, frames: u32, pieces: u32) -> Vec<u8> {
        let mut index = encode_header(trailer::PACK, 0, [0; 16]).to_vec();
        for field in [files, frames, pieces, files * 4] {
            index.extend_from_slice(&field.to_le_bytes());
        }
        index.extend_from_slice(&(FrameEntry::ENCODED_BYTES as u16).to_le_bytes());
        index.extend_from_slice(&(FrameEntry::PIECE_BYTES as u16).to_le_bytes());
        index.resize(INDEX_HEADER_BYTES, 0);
        let tables = files as usize * 4
            + frames as usize * FrameEntry::ENCODED_BYTES
            + pieces as usize * FrameEntry::PIECE_BYTES;
        index.resize(INDEX_HEADER_BYTES + tables, 0);
        index
    }

    #[test]
    fn an_index_counts_no_more_than_any_has() {
        assert!(PackIndex::parse(&index(FILES_LIMIT, FRAMES_LIMIT, 0)).is_some());
        assert!(PackIndex::parse(&index(FILES_LIMIT + 1, 0, 0)).is_none());
        assert!(PackIndex::parse(&index(0, FRAMES_LIMIT + 1, 0)).is_none());
        assert!(PackIndex::parse(&index(0, 0, PIECES_LIMIT + 1)).is_none());
    }

    #[test]
    fn what_an_index_takes_is_told() {
        let index = PackIndex::parse(&index(1_000, 100, 0)).expect("an index");
        let bytes = index.memory_bytes();
        assert!((64_000..100_000).contains(&bytes), "{bytes}");
    }
}
