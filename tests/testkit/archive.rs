//! The WAL archive of a repository, looked at from outside: every object is decompressed with zstd alone and held against
//! the servers' own `pg_wal`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::damage::files_under;
use crate::oracle::Address;

/// One object of the archive.
#[derive(Debug, Clone)]
pub struct Object {
    /// Where it lies.
    pub path: PathBuf,
    /// What its name says it is.
    pub kind: Kind,
}

/// What a name says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A whole segment.
    Segment(String),
    /// A piece of a segment: from here to there.
    Piece(String, Address, Address),
    /// A timeline history file.
    History(String),
    /// A backup history file.
    BackupHistory(String),
    /// A note of lost WAL.
    Gap(Address, Address),
}

/// The archive of a cluster in a repository that is a directory.
#[derive(Debug, Clone)]
pub struct Archive {
    directory: PathBuf,
    segment_bytes: u64,
}

impl Archive {
    /// The archive below `repository` of the cluster that everything calls `main`.
    pub fn of(repository: &Path, wal_segment_mib: u32) -> Archive {
        Archive {
            directory: repository.join("main/wal"),
            segment_bytes: u64::from(wal_segment_mib) << 20,
        }
    }

    /// Bytes in a segment.
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Every object. A name that is none of PostgreSQL's fails the story; hidden files are a writer's own until it is
    /// done, and no part of the archive.
    pub fn objects(&self) -> Vec<Object> {
        files_under(&self.directory)
            .into_iter()
            .filter(|path| !name_of(path).starts_with('.'))
            .map(|path| Object {
                kind: self.kind(&path),
                path,
            })
            .collect()
    }

    fn kind(&self, path: &Path) -> Kind {
        let relative = path.strip_prefix(&self.directory).expect("it lies there");
        let parts: Vec<&str> = relative
            .components()
            .map(|part| part.as_os_str().to_str().expect("UTF-8"))
            .collect();
        let kind = match parts.as_slice() {
            [timeline, file] => {
                let name = file.strip_suffix(".zst");
                match name {
                    Some(name) if !name.starts_with(timeline) => None,
                    Some(name) if is_hex(name, 24) => Some(Kind::Segment(name.to_owned())),
                    Some(name) if name.ends_with(".history") => {
                        Some(Kind::History(name.to_owned()))
                    }
                    Some(name) if name.ends_with(".backup") => {
                        Some(Kind::BackupHistory(name.to_owned()))
                    }
                    Some(_) => None,
                    None => file
                        .strip_suffix(".gap.json")
                        .and_then(range)
                        .map(|(begin, end)| Kind::Gap(begin, end)),
                }
            }
            [timeline, segment, file] if segment.starts_with(timeline) && is_hex(segment, 24) => {
                file.strip_suffix(".zst")
                    .and_then(range)
                    .map(|(begin, end)| Kind::Piece((*segment).to_owned(), begin, end))
            }
            _ => None,
        };
        kind.unwrap_or_else(|| panic!("{} is no name of the archive", path.display()))
    }

    /// The names of all whole segments.
    pub fn segments(&self) -> BTreeSet<String> {
        self.objects()
            .into_iter()
            .filter_map(|object| match object.kind {
                Kind::Segment(name) => Some(name),
                _ => None,
            })
            .collect()
    }

    /// Where the object of a segment lies.
    pub fn segment_path(&self, name: &str) -> PathBuf {
        self.directory.join(&name[..8]).join(format!("{name}.zst"))
    }

    /// Everything that lies there, to the byte.
    pub fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        files_under(&self.directory)
            .into_iter()
            .map(|path| {
                let bytes = fs::read(&path).expect("could not read an object");
                (path, bytes)
            })
            .collect()
    }

    /// Decompresses every object, and holds the WAL in it against these servers' directories: each byte is the server's own,
    /// or zero behind a switch. Returns how many objects there were, and how many of them a server still had.
    pub fn assert_whole(&self, servers: &[&Path]) -> (usize, usize) {
        let objects = self.objects();
        let mut compared = 0;
        for object in &objects {
            let (segment, offset, length) = match &object.kind {
                Kind::Segment(name) => (name, 0, self.segment_bytes),
                Kind::Piece(name, begin, end) => {
                    let start = self.start_of(name);
                    assert!(
                        *begin >= start && end > begin && *end <= start + self.segment_bytes,
                        "{object:?} is not inside its segment"
                    );
                    (name, begin - start, end - begin)
                }
                Kind::Gap(..) => continue,
                Kind::History(_) | Kind::BackupHistory(_) => {
                    assert!(!decoded(&object.path).is_empty(), "{object:?} is empty");
                    continue;
                }
            };
            let plain = decoded(&object.path);
            assert_eq!(plain.len() as u64, length, "{object:?}");
            let offset = usize::try_from(offset).expect("64 bits");
            let truths: Vec<Vec<u8>> = servers
                .iter()
                .filter_map(|data| fs::read(data.join("pg_wal").join(segment)).ok())
                .filter(|bytes| {
                    bytes.len() as u64 == self.segment_bytes
                        && self.is_of(bytes, self.start_of(segment))
                })
                .collect();
            let same = truths
                .iter()
                .any(|truth| is_same(&plain, &truth[offset..offset + plain.len()]));
            assert!(
                same || truths.is_empty(),
                "{object:?} is not what the servers have: {}",
                differences(&plain, truths.first().map_or(&[], |truth| &truth[offset..]))
            );
            compared += usize::from(same);
        }
        (objects.len(), compared)
    }

    /// How far the WAL of a timeline reaches without a hole from this address on, which must be held.
    pub fn reach(&self, timeline: u32, from: Address) -> Address {
        let timeline = format!("{timeline:08X}");
        let mut ranges: Vec<(Address, Address)> = self
            .objects()
            .into_iter()
            .filter_map(|object| match object.kind {
                Kind::Segment(name) if name.starts_with(&timeline) => {
                    let start = self.start_of(&name);
                    Some((start, start + self.segment_bytes))
                }
                Kind::Piece(name, begin, end) if name.starts_with(&timeline) => Some((begin, end)),
                _ => None,
            })
            .collect();
        ranges.sort_unstable();
        ranges.iter().fold(from, |reach, (begin, end)| {
            if *begin <= reach {
                reach.max(*end)
            } else {
                reach
            }
        })
    }

    /// The address of a segment's first byte.
    pub fn start_of(&self, segment: &str) -> Address {
        let part = |from: usize| u64::from_str_radix(&segment[from..from + 8], 16).expect("hex");
        (part(8) << 32) + part(16) * self.segment_bytes
    }

    /// Whether a file of `pg_wal` holds what its name says: one that waits to be used again holds something older.
    fn is_of(&self, bytes: &[u8], start: Address) -> bool {
        // xlp_pageaddr (`xlog_internal.h`, XLogPageHeaderData).
        bytes[8..16] == start.to_le_bytes()
    }
}

fn name_of(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .expect("a name in UTF-8")
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn range(text: &str) -> Option<(Address, Address)> {
    let (begin, end) = text.split_once('-')?;
    let part = |text| {
        is_hex(text, 16)
            .then(|| Address::from_str_radix(text, 16).ok())
            .flatten()
    };
    Some((part(begin)?, part(end)?))
}

/// What an object holds, decompressed with zstd alone.
pub fn decoded(object: &Path) -> Vec<u8> {
    let bytes = fs::read(object)
        .unwrap_or_else(|error| panic!("could not read {}: {error}", object.display()));
    let mut plain = Vec::new();
    zstd::Decoder::new(&bytes[..])
        .and_then(|mut decoder| decoder.read_to_end(&mut plain))
        .unwrap_or_else(|error| panic!("{} does not decode: {error}", object.display()));
    plain
}

/// Whether stored WAL is the server's: to the end, or up to a switch record and zeros from there on.
fn is_same(stored: &[u8], truth: &[u8]) -> bool {
    let Some(different) = stored.iter().zip(truth).position(|(a, b)| a != b) else {
        return true;
    };
    if stored[different..].iter().any(|byte| *byte != 0) {
        return false;
    }
    // The last record before the zeros: 24 bytes long, XLOG_SWITCH of the resource manager 0 (`pg_control.h`,
    // `xlogrecord.h`). Its own last bytes may be zeros, and a page header may part it.
    let used = stored
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    let end = used.next_multiple_of(8);
    end % 8192 < 64
        || (0..=3).any(|back| {
            end.checked_sub(24 + 8 * back).is_some_and(|at| {
                stored[at..at + 4] == 24_u32.to_le_bytes() && stored[at + 16..at + 18] == [0x40, 0]
            })
        })
}

fn differences(stored: &[u8], truth: &[u8]) -> String {
    let mut text = String::new();
    let different = stored.iter().zip(truth).position(|(a, b)| a != b);
    let used = stored.iter().rposition(|byte| *byte != 0);
    let _never_fails = write!(
        text,
        "first difference at {different:?}, last byte that is not zero at {used:?}, of {}",
        stored.len()
    );
    text
}
