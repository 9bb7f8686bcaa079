//! The fixed end of packs and manifests: where the index is, and the hash that proves it. Its 96 bytes stay as they
//! are in every format version. Drawn in `docs/format.md`.

use crate::codec::{CompressionUsed, Compressor, Decompressor};
use crate::fields::Fields;
use crate::hash::Hash;
use crate::repository_error::RepositoryError;
use crate::store::{Key, Store};

/// The format version that we write, and the newest that we read.
pub(crate) const OBJECT_VERSION: u16 = 1;
/// Bytes of the header at the beginning of packs and manifests.
pub(crate) const HEADER_BYTES: usize = 64;
/// Bytes of a trailer.
pub(crate) const TRAILER_BYTES: usize = 96;
/// How many bytes of it the hash covers, after the stored index.
const HASHED_BYTES: usize = 56;
/// The most bytes an index or footer may have, plain or stored.
pub(crate) const INDEX_BYTES_LIMIT: u32 = 64 << 20;
/// How much of an object's end is read at once.
const TAIL_BYTES: u64 = 512 << 10;

/// What kind of object a trailer ends, and what its parts are called in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ObjectKind {
    pub header_magic: [u8; 8],
    pub trailer_magic: [u8; 8],
    pub index_name: &'static str,
}

/// `docs/format.md`, Pack.
pub(crate) const PACK: ObjectKind = ObjectKind {
    header_magic: *b"LWPACK\r\n",
    trailer_magic: *b"LWPKEND\n",
    index_name: "index",
};

/// `docs/format.md`, Manifest.
pub(crate) const MANIFEST: ObjectKind = ObjectKind {
    header_magic: *b"LWMANIF\n",
    trailer_magic: *b"LWMFEND\n",
    index_name: "footer",
};

/// What a trailer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub version: u16,
    pub compression: u8,
    pub sealing: u8,
    pub count: u32,
    pub index_offset: u64,
    pub stored_length: u32,
    pub plain_length: u32,
    pub object_size: u64,
    pub hash: Hash,
}

/// The 64 bytes at the beginning: magic, version, header length, number, a random id, spare.
pub(crate) fn encode_header(kind: ObjectKind, number: u32, id: [u8; 16]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&kind.header_magic);
    header[8..10].copy_from_slice(&OBJECT_VERSION.to_le_bytes());
    header[10..12].copy_from_slice(&(HEADER_BYTES as u16).to_le_bytes());
    header[12..16].copy_from_slice(&number.to_le_bytes());
    header[16..32].copy_from_slice(&id);
    header
}

/// The index or footer as stored, and the trailer behind it, of an object that is `index_offset` long so far.
pub(crate) fn encode_end(
    kind: ObjectKind,
    object: &str,
    compressor: &mut Compressor,
    index: &[u8],
    count: u32,
    index_offset: u64,
) -> Result<(Vec<u8>, Hash, u64), RepositoryError> {
    if index.len() > INDEX_BYTES_LIMIT as usize {
        return Err(RepositoryError::Unwritable {
            object: object.to_owned(),
            problem: format!(
                "its {} would have {} bytes, at most {INDEX_BYTES_LIMIT}",
                kind.index_name,
                index.len()
            ),
        });
    }
    let mut end = Vec::new();
    let compression = compressor.compress(index, &mut end)?;
    let stored_length = end.len();
    let object_size = index_offset + (stored_length + TRAILER_BYTES) as u64;
    let mut trailer = Vec::with_capacity(TRAILER_BYTES);
    trailer.extend_from_slice(&kind.trailer_magic);
    trailer.extend_from_slice(&OBJECT_VERSION.to_le_bytes());
    trailer.extend_from_slice(&[compression as u8, 0]);
    trailer.extend_from_slice(&count.to_le_bytes());
    trailer.extend_from_slice(&index_offset.to_le_bytes());
    trailer.extend_from_slice(&(stored_length as u32).to_le_bytes());
    trailer.extend_from_slice(&(index.len() as u32).to_le_bytes());
    trailer.extend_from_slice(&object_size.to_le_bytes());
    trailer.resize(HASHED_BYTES, 0);
    let hash = Hash::of_parts(&[&end, &trailer]);
    trailer.extend_from_slice(&hash.0);
    trailer.extend_from_slice(&kind.trailer_magic);
    end.extend_from_slice(&trailer);
    Ok((end, hash, object_size))
}

impl Trailer {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        fields.take::<8>()?;
        let version = fields.u16()?;
        let [compression, sealing] = fields.take()?;
        let count = fields.u32()?;
        let index_offset = fields.u64()?;
        let stored_length = fields.u32()?;
        let plain_length = fields.u32()?;
        let object_size = fields.u64()?;
        fields.take::<16>()?;
        Some(Self {
            version,
            compression,
            sealing,
            count,
            index_offset,
            stored_length,
            plain_length,
            object_size,
            hash: Hash(fields.take()?),
        })
    }
}

/// Reads the end of an object of `size` bytes: trailer, then index or footer, each checked before it is believed.
/// `expected` is the hash that the object above it in the chain names.
pub(crate) fn read_end(
    kind: ObjectKind,
    store: &dyn Store,
    key: &Key,
    size: u64,
    expected: Option<Hash>,
) -> Result<(Trailer, Vec<u8>), RepositoryError> {
    if size < (HEADER_BYTES + TRAILER_BYTES) as u64 {
        return Err(RepositoryError::damaged(
            key,
            "trailer",
            format!("the object has only {size} bytes"),
        ));
    }
    let tail = store.get_range(key, size.saturating_sub(TAIL_BYTES)..size)?;
    decode_end(kind, key.as_str(), size, expected, &tail, &mut |length| {
        Ok(store
            .get_range(
                key,
                size - tail.len() as u64 - length..size - tail.len() as u64,
            )?
            .to_vec())
    })
}

/// As [`read_end`], of bytes at hand: the end of the object, and `more` for the given number of bytes before them.
pub(crate) fn decode_end(
    kind: ObjectKind,
    object: &str,
    size: u64,
    expected: Option<Hash>,
    tail: &[u8],
    more: &mut dyn FnMut(u64) -> Result<Vec<u8>, RepositoryError>,
) -> Result<(Trailer, Vec<u8>), RepositoryError> {
    let damaged = |part: &str, problem: &str| RepositoryError::damaged(object, part, problem);
    let Some((before, raw)) = tail.split_last_chunk::<TRAILER_BYTES>() else {
        return Err(damaged("trailer", "too short"));
    };
    if raw[..8] != kind.trailer_magic || raw[TRAILER_BYTES - 8..] != kind.trailer_magic {
        return Err(damaged("trailer", "does not begin and end as one"));
    }
    let Some(trailer) = Trailer::decode(raw) else {
        return Err(damaged("trailer", "too short"));
    };
    let index_end = trailer
        .index_offset
        .checked_add(u64::from(trailer.stored_length));
    if trailer.object_size != size
        || index_end != size.checked_sub(TRAILER_BYTES as u64)
        || trailer.index_offset < HEADER_BYTES as u64
        || trailer.stored_length > INDEX_BYTES_LIMIT
        || trailer.plain_length > INDEX_BYTES_LIMIT
    {
        return Err(damaged(
            "trailer",
            &format!("impossible lengths for an object of {size} bytes"),
        ));
    }
    let stored_length = trailer.stored_length as usize;
    let fetched;
    let stored = if stored_length <= before.len() {
        &before[before.len() - stored_length..]
    } else {
        let mut whole = more((stored_length - before.len()) as u64)?;
        whole.extend_from_slice(before);
        if whole.len() != stored_length {
            return Err(damaged(kind.index_name, "could not be read whole"));
        }
        fetched = whole;
        &fetched
    };
    if Hash::of_parts(&[stored, &raw[..HASHED_BYTES]]) != trailer.hash {
        return Err(damaged(
            kind.index_name,
            "its bytes are not those that were written",
        ));
    }
    if let Some(expected) = expected.filter(|expected| *expected != trailer.hash) {
        let problem = format!(
            "it is another one than was recorded: its hash is {}, not {expected}",
            trailer.hash
        );
        return Err(damaged(kind.index_name, &problem));
    }
    let newer = |what, found: u64, known: u64| RepositoryError::NewerFormat {
        object: object.to_owned(),
        what,
        found,
        known,
    };
    if trailer.version > OBJECT_VERSION {
        return Err(newer(
            "format version",
            trailer.version.into(),
            OBJECT_VERSION.into(),
        ));
    }
    if trailer.sealing != 0 {
        return Err(newer("sealing", trailer.sealing.into(), 0));
    }
    let compression = CompressionUsed::from_u8(trailer.compression).ok_or_else(|| {
        newer(
            "compression",
            trailer.compression.into(),
            CompressionUsed::Lz4 as u64,
        )
    })?;
    let index = Decompressor::new()
        .decompress(stored, compression, trailer.plain_length as usize)
        .map_err(|error| RepositoryError::damaged(object, kind.index_name, error))?;
    Ok((trailer, index))
}
