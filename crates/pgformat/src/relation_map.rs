//! The relation map, `pg_filenode.map`: file numbers of the catalogs that `pg_class` itself is needed to find.
//!
//! One for the relations shared by the whole cluster, in `global`, and one in each database's directory. A database whose
//! map is missing or damaged cannot be opened. Facts from `utils/cache/relmapper.c`.

use crate::{Oid, RelFileNumber, u32_at};

/// The file's name in its directory (`RELMAPPER_FILENAME`).
pub const RELATION_MAP_NAME: &str = "pg_filenode.map";

/// The most bytes that a map has in any version.
pub const RELATION_MAP_MAX_SIZE: usize = 524;

/// `RELMAPPER_FILEMAGIC`.
const MAGIC: u32 = 0x0059_2717;

/// Sizes of the file and the offset of its checksum: 62 entries and padding to 15, 64 entries since 16.
const LAYOUTS: [(usize, usize); 2] = [(512, 504), (RELATION_MAP_MAX_SIZE, 520)];

/// Where the entries begin: behind the magic and their count.
const ENTRIES_AT: usize = 8;

/// The file numbers of mapped catalogs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationMap {
    /// Each catalog's OID and file number, in the file's order.
    pub entries: Vec<(Oid, RelFileNumber)>,
}

/// Why a file is no relation map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelationMapError {
    /// The size of no version.
    #[error("it has {0} bytes instead of 512 or 524")]
    Size(usize),
    /// Other bytes at its beginning.
    #[error("it does not begin as a relation map")]
    Magic,
    /// More entries than there is room for.
    #[error("it claims to have {0} entries")]
    Count(u32),
    /// The checksum of its bytes is another.
    #[error("its checksum does not match")]
    Checksum,
}

impl RelationMap {
    /// Reads the bytes of the file.
    ///
    /// # Errors
    /// [`RelationMapError`] says what is wrong with them.
    pub fn parse(bytes: &[u8]) -> Result<RelationMap, RelationMapError> {
        let (_, checksum_at) = LAYOUTS
            .into_iter()
            .find(|(size, _)| *size == bytes.len())
            .ok_or(RelationMapError::Size(bytes.len()))?;
        if u32_at(bytes, 0) != MAGIC {
            return Err(RelationMapError::Magic);
        }
        if crc32c::crc32c(&bytes[..checksum_at]) != u32_at(bytes, checksum_at) {
            return Err(RelationMapError::Checksum);
        }
        let count = u32_at(bytes, 4);
        let entries = &bytes[ENTRIES_AT..checksum_at];
        let used = entries
            .get(..count as usize * 8)
            .ok_or(RelationMapError::Count(count))?;
        Ok(RelationMap {
            entries: used
                .chunks_exact(8)
                .map(|entry| (Oid(u32_at(entry, 0)), RelFileNumber(u32_at(entry, 4))))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(size: usize, checksum_at: usize, count: u32) -> Vec<u8> {
        let mut bytes = vec![0; size];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&count.to_le_bytes());
        for (index, word) in [1259u32, 16384, 1249, 1249].iter().enumerate() {
            bytes[ENTRIES_AT + 4 * index..][..4].copy_from_slice(&word.to_le_bytes());
        }
        let checksum = crc32c::crc32c(&bytes[..checksum_at]);
        bytes[checksum_at..checksum_at + 4].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    #[test]
    fn both_sizes_are_read() {
        for (size, checksum_at) in LAYOUTS {
            let read = RelationMap::parse(&map(size, checksum_at, 2)).expect("a map");
            assert_eq!(
                read.entries,
                [
                    (Oid(1259), RelFileNumber(16384)),
                    (Oid(1249), RelFileNumber(1249))
                ]
            );
        }
    }

    #[test]
    fn what_is_no_map_is_refused() {
        let good = map(512, 504, 2);
        for length in 0..512 {
            assert_eq!(
                RelationMap::parse(&good[..length]),
                Err(RelationMapError::Size(length))
            );
        }
        assert_eq!(RelationMap::parse(&[0; 512]), Err(RelationMapError::Magic));
        for at in 4..508 {
            let mut torn = good.clone();
            torn[at] ^= 0x40;
            assert_eq!(
                RelationMap::parse(&torn),
                Err(RelationMapError::Checksum),
                "{at}"
            );
        }
        for count in [63, 64, u32::MAX, u32::MAX / 8 + 1] {
            assert_eq!(
                RelationMap::parse(&map(512, 504, count)),
                Err(RelationMapError::Count(count))
            );
        }
        assert_eq!(
            RelationMap::parse(&map(512, 504, 62)).map(|m| m.entries.len()),
            Ok(62)
        );
    }
}
