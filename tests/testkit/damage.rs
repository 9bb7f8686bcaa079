//! Breaking things on purpose: pages of a data directory, bits of a repository.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Bytes in a page.
pub const PAGE: u64 = 8192;

/// Every way a page can be damaged that a backup must notice (`bufpage.c`, PageIsVerified).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageDamage {
    /// One bit of a row flipped.
    FlippedBit,
    /// The stored checksum overwritten.
    Checksum,
    /// The line pointers end after the rows begin.
    PointersPastRows,
    /// Flag bits that do not exist.
    UnknownFlags,
    /// Another page size than the server's.
    PageSize,
    /// Claims to be new, with something in it.
    NewButNotEmpty,
    /// Half of it zeroed, as by a torn write that nobody repaired.
    HalfLost,
    /// An LSN that no server has reached.
    LsnFromTheFuture,
    /// A sound page of another block.
    Misplaced,
}

impl PageDamage {
    /// All of them.
    pub const ALL: [PageDamage; 9] = [
        PageDamage::FlippedBit,
        PageDamage::Checksum,
        PageDamage::PointersPastRows,
        PageDamage::UnknownFlags,
        PageDamage::PageSize,
        PageDamage::NewButNotEmpty,
        PageDamage::HalfLost,
        PageDamage::LsnFromTheFuture,
        PageDamage::Misplaced,
    ];

    /// Damages one page of a file that holds at least one more.
    pub fn inflict(self, file: &Path, page: u64) {
        let handle = OpenOptions::new().read(true).write(true).open(file);
        let handle =
            handle.unwrap_or_else(|error| panic!("could not open {}: {error}", file.display()));
        let mut bytes = vec![0; usize::try_from(PAGE).expect("a page fits")];
        handle
            .read_exact_at(&mut bytes, page * PAGE)
            .expect("the page is there");
        assert!(
            bytes.iter().any(|byte| *byte != 0),
            "damage to an empty page would be no damage"
        );
        let sound = bytes.clone();
        // Offsets in the page header (`bufpage.h`, PageHeaderData).
        match self {
            PageDamage::FlippedBit => bytes[8000] ^= 0x10,
            PageDamage::Checksum => bytes[8] ^= 0xff,
            PageDamage::PointersPastRows => bytes[12..14].copy_from_slice(&8190u16.to_le_bytes()),
            PageDamage::UnknownFlags => bytes[11] = 0x80,
            PageDamage::PageSize => bytes[18..20].copy_from_slice(&(4096u16 | 4).to_le_bytes()),
            PageDamage::NewButNotEmpty => bytes[14..16].fill(0),
            PageDamage::HalfLost => bytes[4096..].fill(0),
            PageDamage::LsnFromTheFuture => {
                bytes[0..4].copy_from_slice(&0x00ff_ffffu32.to_le_bytes())
            }
            PageDamage::Misplaced => {
                let other = if page == 0 { 1 } else { page - 1 };
                handle
                    .read_exact_at(&mut bytes, other * PAGE)
                    .expect("another page is there");
            }
        }
        assert_ne!(bytes, sound, "{self:?} changed nothing");
        handle
            .write_all_at(&bytes, page * PAGE)
            .expect("could not write the page");
    }
}

/// Flips one bit of a file.
pub fn flip_bit(file: &Path, byte: u64, bit: u8) {
    let mode = fs::metadata(file).expect("the file is there").permissions();
    let mut writable = mode.clone();
    std::os::unix::fs::PermissionsExt::set_mode(&mut writable, 0o600);
    fs::set_permissions(file, writable).expect("could not open a file for writing");
    let handle = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .expect("could not open a file for writing");
    let mut value = [0];
    handle
        .read_exact_at(&mut value, byte)
        .expect("the byte is there");
    value[0] ^= 1 << bit;
    handle
        .write_all_at(&value, byte)
        .expect("could not write the byte");
    fs::set_permissions(file, mode).expect("could not restore a file's mode");
}

/// All files under a directory, sorted.
pub fn files_under(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                Ok(_) => files.push(entry.path()),
                Err(_) => {}
            }
        }
    }
    files.sort();
    files
}
