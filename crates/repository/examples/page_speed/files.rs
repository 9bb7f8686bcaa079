//! Files of a folder as frames.

use std::io;
use std::path::Path;

use leeward_pgformat::page::page_checksum;
use leeward_pgformat::{BlockNumber, Fork, PAGE_SIZE, RelationSegment};
use leeward_repository::frame::FRAME_BYTES;

/// The content of one frame.
#[derive(Default)]
pub struct Frame {
    /// What the files hold.
    pub plain: Vec<u8>,
    /// The relation-wide number of each page; empty where the bytes are no pages.
    pub blocks: Vec<BlockNumber>,
    /// The relation that all of it is of, by its first relation segment.
    pub owner: Option<RelationSegment>,
}

/// Files that are measured together.
pub struct Kind {
    /// The folder's name, and with `--by-type` the pages'.
    pub name: String,
    pub files: usize,
    pub frames: Vec<Frame>,
}

impl Kind {
    pub fn bytes(&self) -> usize {
        self.frames.iter().map(|frame| frame.plain.len()).sum()
    }

    pub fn pages(&self) -> usize {
        self.frames.iter().map(|frame| frame.blocks.len()).sum()
    }

    /// How many pages carry the checksum of their content and block number (`pd_checksum`, `storage/bufpage.h`).
    pub fn proven_pages(&self) -> usize {
        let proven = |(page, block): &(&[u8; PAGE_SIZE], &BlockNumber)| {
            page_checksum(&page[..], **block) == u16::from_le_bytes([page[8], page[9]])
        };
        let frames = self.frames.iter();
        frames
            .map(|frame| {
                let (pages, _) = frame.plain.as_chunks::<PAGE_SIZE>();
                pages.iter().zip(&frame.blocks).filter(proven).count()
            })
            .sum()
    }
}

struct File {
    bytes: Vec<u8>,
    /// For pages of a relation.
    segment: Option<RelationSegment>,
    page_type: &'static str,
}

/// The folder's files as one kind, or by type of page as several.
pub fn kinds(folder: &Path, by_type: bool) -> io::Result<Vec<Kind>> {
    let mut files = Vec::new();
    read(folder, "", &mut files)?;
    let folder = folder.canonicalize()?;
    let folder = folder.file_name().unwrap_or_default().to_string_lossy();
    let mut groups = Vec::new();
    if by_type {
        let mut types: Vec<&str> = files.iter().map(|file| file.page_type).collect();
        types.sort_unstable();
        types.dedup();
        for page_type in types {
            let same = files.iter().filter(|file| file.page_type == page_type);
            groups.push((format!("{folder} {page_type}"), same.collect()));
        }
    } else {
        groups.push((folder.into_owned(), files.iter().collect::<Vec<_>>()));
    }
    let kinds = groups.into_iter().map(|(name, files)| Kind {
        name,
        files: files.len(),
        frames: frames(&files),
    });
    Ok(kinds.filter(|kind| kind.bytes() > 0).collect())
}

/// Reads everything below a folder, names in byte order, as a backup walks a data directory.
fn read(folder: &Path, prefix: &str, files: &mut Vec<File>) -> io::Result<()> {
    let mut entries = std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_unstable_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            read(&entry.path(), &format!("{path}/"), files)?;
        } else {
            let bytes = std::fs::read(entry.path())?;
            let segment =
                RelationSegment::parse(&path).filter(|_| bytes.len().is_multiple_of(PAGE_SIZE));
            files.push(File {
                page_type: page_type(&bytes, segment),
                bytes,
                segment,
            });
        }
    }
    Ok(())
}

/// As the planner of a backup cuts (`engine/src/backup/plan.rs`): relations first; a file larger than a frame begins
/// one of its own, small files share one.
fn frames(files: &[&File]) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut pending = Frame::default();
    let mut flush = |pending: &mut Frame| {
        if !pending.plain.is_empty() {
            frames.push(std::mem::take(pending));
        }
    };
    for pass in [true, false] {
        for file in files.iter().filter(|file| file.segment.is_some() == pass) {
            if pending.plain.len() + file.bytes.len() > FRAME_BYTES {
                flush(&mut pending);
            }
            let mut block = 0;
            let relation = file.segment.map(|segment| RelationSegment {
                segment: 0,
                ..segment
            });
            for piece in file.bytes.chunks(FRAME_BYTES) {
                let first = pending.plain.is_empty();
                pending.owner = relation.filter(|_| first || pending.owner == relation);
                pending.plain.extend_from_slice(piece);
                if let Some(segment) = file.segment {
                    let end = block + (piece.len() / PAGE_SIZE) as u32;
                    let blocks = (block..end).map(|index| segment.block(index));
                    pending.blocks.extend(blocks);
                    block = end;
                }
                if pending.plain.len() == FRAME_BYTES {
                    flush(&mut pending);
                }
            }
        }
        flush(&mut pending);
    }
    frames
}

/// What pages of a file are, from its name and from what the access methods leave in the special area of the first
/// page (`nbtree.h`, `hash.h`, `gist_private.h`, `spgist_private.h`, `brin_page.h`, `ginblock.h`, `sequence.c`).
fn page_type(bytes: &[u8], segment: Option<RelationSegment>) -> &'static str {
    let Some(segment) = segment else {
        return "other";
    };
    let Some(page) = bytes.first_chunk::<PAGE_SIZE>() else {
        return "empty";
    };
    if segment.fork != Fork::Main {
        return segment.fork.name();
    }
    let special = &page[usize::from(u16::from_le_bytes([page[16], page[17]])).min(PAGE_SIZE)..];
    let last = u16::from_le_bytes([page[PAGE_SIZE - 2], page[PAGE_SIZE - 1]]);
    match (special.len(), last) {
        (0, _) => "heap",
        (16, 0xFF80) => "hash",
        (16, 0xFF81) => "gist",
        (16, ..=0xFF7F) => "btree",
        (8, 0xFF82) => "spgist",
        (8, 0xF091..=0xF093) => "brin",
        (8, _) if special == [0x17, 0x17, 0, 0, 0, 0, 0, 0] => "sequence",
        (8, _) => "gin",
        _ => "unknown",
    }
}
