//! The databases' directories that records change: files in them are created, written, cut or mapped otherwise.
//!
//! Facts from `access/xlogrecord.h`, `access/transam/xlogreader.c` (`DecodeXLogRecord`), `catalog/storage_xlog.h` and
//! `utils/relmapper.h`.

use std::collections::BTreeMap;

use crate::{Lsn, MajorVersion, Oid, u16_at, u32_at};

use super::record::{
    HEADER_SIZE, Header, ID_DATA_LONG, ID_DATA_SHORT, ID_ORIGIN, ID_TOPLEVEL_XID, INFO_MASK,
};

const RM_SMGR: u8 = 2;
const RM_RELMAP: u8 = 7;
const XLOG_SMGR_CREATE: u8 = 0x10;
const XLOG_SMGR_TRUNCATE: u8 = 0x20;

/// `XLR_MAX_BLOCK_ID`.
const MAX_BLOCK_ID: u8 = 32;
const BLOCK_HAS_IMAGE: u8 = 0x10;
const BLOCK_SAME_RELATION: u8 = 0x80;
const IMAGE_HAS_HOLE: u8 = 0x01;

/// More than all headers of a record with as many blocks as there can be, and the main data that is looked at.
pub(super) const HEAD_BYTES: usize = 1024;

/// The directory of a database in one tablespace. Shared relations are in that of [`Oid::GLOBAL_TABLESPACE`] and no
/// database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseDirectory {
    /// The database.
    pub database: Oid,
    /// The tablespace.
    pub tablespace: Oid,
}

/// The last record that changed each directory.
#[derive(Debug, Clone, Default)]
pub(super) struct DirectoryChanges {
    /// The beginning of the body of the record that is open.
    head: Vec<u8>,
    pub last: BTreeMap<DatabaseDirectory, Lsn>,
}

impl DirectoryChanges {
    /// A record's header was seen.
    pub fn begin(&mut self) {
        self.head.clear();
    }

    /// Takes the next bytes of its body.
    pub fn feed(&mut self, bytes: &[u8]) {
        let room = HEAD_BYTES - self.head.len();
        self.head.extend_from_slice(&bytes[..room.min(bytes.len())]);
    }

    /// The record is complete and proven.
    pub fn finish(&mut self, begin: Lsn, header: &Header, major: MajorVersion) {
        let Self { head, last } = self;
        // A proven record has all that its headers announce.
        let _complete = each(header, head, major, &mut |directory| {
            last.insert(directory, begin);
        });
    }
}

/// Tells each directory that the record changes; `None` where the record is cut off.
fn each(
    header: &Header,
    head: &[u8],
    major: MajorVersion,
    tell: &mut dyn FnMut(DatabaseDirectory),
) -> Option<()> {
    let mut left = head;
    let mut take = |count: usize| {
        let (taken, rest) = left.split_at_checked(count)?;
        left = rest;
        Some(taken)
    };
    // The headers end where as much is left as they announced.
    let mut unread = u64::from(header.length) - HEADER_SIZE as u64;
    let mut announced = 0;
    while unread > announced {
        let id = take(1)?[0];
        unread -= 1;
        match id {
            ID_DATA_SHORT | ID_DATA_LONG => {
                take(if id == ID_DATA_SHORT { 1 } else { 4 })?;
                break;
            }
            ID_ORIGIN => {
                take(2)?;
                unread -= 2;
            }
            ID_TOPLEVEL_XID => {
                take(4)?;
                unread -= 4;
            }
            0..=MAX_BLOCK_ID => {
                let block = take(3)?;
                unread -= 3;
                announced += u64::from(u16_at(block, 1));
                let flags = block[0];
                if flags & BLOCK_HAS_IMAGE != 0 {
                    let image = take(5)?;
                    unread -= 5;
                    announced += u64::from(u16_at(image, 0));
                    if image[4] & IMAGE_HAS_HOLE != 0 && image[4] & image_compressed(major) != 0 {
                        take(2)?;
                        unread -= 2;
                    }
                }
                if flags & BLOCK_SAME_RELATION == 0 {
                    tell(directory(take(12)?));
                    unread -= 12;
                }
                take(4)?;
                unread -= 4;
            }
            _ => return None,
        }
    }
    match (header.manager, header.info & INFO_MASK) {
        (RM_SMGR, XLOG_SMGR_CREATE) => tell(directory(take(12)?)),
        (RM_SMGR, XLOG_SMGR_TRUNCATE) => tell(directory(&take(16)?[4..])),
        (RM_RELMAP, _) => {
            let map = take(8)?;
            tell(DatabaseDirectory {
                database: Oid(u32_at(map, 0)),
                tablespace: Oid(u32_at(map, 4)),
            });
        }
        _ => {}
    }
    Some(())
}

/// Returns the directory of a `RelFileLocator` (`RelFileNode` before 16).
fn directory(locator: &[u8]) -> DatabaseDirectory {
    DatabaseDirectory {
        tablespace: Oid(u32_at(locator, 0)),
        database: Oid(u32_at(locator, 4)),
    }
}

/// Returns the flags of a compressed image (`BKPIMAGE_COMPRESSED`, `BKPIMAGE_IS_COMPRESSED` in 14).
const fn image_compressed(major: MajorVersion) -> u8 {
    match major {
        MajorVersion::V14 => 0x02,
        _ => 0x1C,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: DatabaseDirectory = DatabaseDirectory {
        database: Oid(16_384),
        tablespace: Oid(1663),
    };

    fn locator(database: u32) -> Vec<u8> {
        [1663_u32, database, 2619]
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect()
    }

    /// The header of a block with its locator, if it has one, and its number.
    fn block(id: u8, flags: u8, data: u16, image: &[u8], locator: &[u8]) -> Vec<u8> {
        let mut bytes = vec![id, flags];
        bytes.extend_from_slice(&data.to_le_bytes());
        bytes.extend_from_slice(image);
        bytes.extend_from_slice(locator);
        bytes.extend_from_slice(&7_u32.to_le_bytes());
        bytes
    }

    fn image(length: u16, info: u8) -> Vec<u8> {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[0, 0, info]);
        bytes
    }

    fn changed(manager: u8, info: u8, body: &[u8], major: MajorVersion) -> Vec<(u32, u64)> {
        let header = Header {
            length: (HEADER_SIZE + body.len()) as u32,
            xid: 5,
            previous: Lsn(8),
            info,
            manager,
            checksum: 0,
        };
        let mut changes = DirectoryChanges::default();
        changes.begin();
        // As it comes by, in pieces.
        for piece in body.chunks(3) {
            changes.feed(piece);
        }
        changes.finish(Lsn(64), &header, major);
        (changes.last.iter())
            .map(|(directory, lsn)| (directory.database.0, lsn.0))
            .collect()
    }

    #[test]
    fn every_block_names_its_relation_or_that_of_the_block_before() {
        for major in MajorVersion::ALL {
            let compressed = image_compressed(major) & 0x06;
            let mut body = vec![ID_TOPLEVEL_XID, 1, 0, 0, 0, ID_ORIGIN, 9, 0];
            body.extend(block(0, 0x20, 2, &[], &locator(16_384)));
            body.extend(block(
                1,
                BLOCK_HAS_IMAGE | BLOCK_SAME_RELATION,
                0,
                &image(3, IMAGE_HAS_HOLE),
                &[],
            ));
            let squeezed = [image(4, IMAGE_HAS_HOLE | compressed), vec![0xEE, 0xEE]].concat();
            body.extend(block(2, BLOCK_HAS_IMAGE, 0, &squeezed, &locator(5)));
            body.extend(block(
                3,
                BLOCK_HAS_IMAGE,
                0,
                &image(1, compressed),
                &locator(6),
            ));
            // Without main data the rest is the blocks', whatever it looks like.
            body.extend([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
            assert_eq!(
                changed(10, 0, &body, major),
                [(5, 64), (6, 64), (16_384, 64)],
                "{major}"
            );
            assert_eq!(locator(SHOP.database.0).len(), 12);
            assert_eq!(directory(&locator(16_384)), SHOP);
        }
    }

    #[test]
    fn files_are_created_cut_and_mapped_by_main_data() {
        let main = |data: &[u8]| [&[ID_DATA_SHORT, data.len() as u8], data].concat();
        let tell =
            |manager, info, data: &[u8]| changed(manager, info, &main(data), MajorVersion::V17);
        let created = [locator(16_384), vec![0; 4]].concat();
        let cut = [vec![9, 0, 0, 0], locator(16_384), vec![7, 0, 0, 0]].concat();
        assert_eq!(tell(RM_SMGR, XLOG_SMGR_CREATE, &created), [(16_384, 64)]);
        assert_eq!(tell(RM_SMGR, XLOG_SMGR_TRUNCATE, &cut), [(16_384, 64)]);
        let mut map = Vec::new();
        for number in [16_384_u32, 1663, 512] {
            map.extend_from_slice(&number.to_le_bytes());
        }
        map.resize(200, 0);
        assert_eq!(tell(RM_RELMAP, 0, &map), [(16_384, 64)]);
        // A commit changes no files that its own records do not.
        assert!(tell(1, 0, &[1; 40]).is_empty());
        assert!(tell(10, 0, &[]).is_empty());
    }

    #[test]
    fn a_record_with_as_many_blocks_as_there_can_be_is_read_to_its_end() {
        let mut body = Vec::new();
        for id in 0..=MAX_BLOCK_ID {
            let squeezed = [image(0, IMAGE_HAS_HOLE | 0x04), vec![0, 0]].concat();
            body.extend(block(
                id,
                BLOCK_HAS_IMAGE,
                0,
                &squeezed,
                &locator(100 + u32::from(id)),
            ));
        }
        assert!(body.len() < HEAD_BYTES);
        let body = [body, vec![ID_DATA_SHORT, 1, 1]].concat();
        assert_eq!(changed(10, 0, &body, MajorVersion::V18).len(), 33);
    }
}
