//! Reading whole segments and files.

use std::io::{self, Write};

use bytes::Bytes;
use leeward_pgformat::wal_segment::WAL_LONG_HEADER_SIZE;
use leeward_pgformat::{
    Lsn, SystemIdentifier, WalContents, WalScanner, WalSegmentName, WalSegmentSize,
};

use super::WalArchive;
use super::names::timeline_of_file;
use super::store_segment::check_header;
use crate::layout;
use crate::repository_error::RepositoryError;
use crate::store::{Key, Store};
use crate::wal_object::{
    Bounded, FILE_LIMIT, WalObjectInfo, decode_wal_object, read_wal_object_contents,
};

/// What is read of an object at first, without asking how long it is: all of nearly every one.
const FIRST_READ_BYTES: u64 = 32 << 20;

impl WalArchive {
    /// Writes a whole WAL segment to `to`; `None` when the store answered that there is none. What was written may be
    /// used only if this returns `Ok(Some(_))`: then it is proven by hash, length, and its own header. One request
    /// for objects of up to 32 MiB.
    ///
    /// # Errors
    /// [`RepositoryError::Damaged`], [`RepositoryError::NewerFormat`]; those of the store and of `to`.
    pub fn read_segment(
        &self,
        segment: WalSegmentName,
        size: WalSegmentSize,
        to: &mut dyn Write,
    ) -> Result<Option<WalObjectInfo>, RepositoryError> {
        let key = self.segment_key(segment, size)?;
        let mut wal = Beginning::new(to, size);
        let info = match read_object(&*self.store, &key, &mut wal) {
            Err(RepositoryError::Store(error)) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        let damaged = |problem: String| RepositoryError::damaged(&key, "WAL segment", problem);
        if info.facts.timeline != segment.timeline {
            return Err(damaged(format!(
                "it is of timeline {}",
                info.facts.timeline
            )));
        }
        if info.plain_length != size.bytes() {
            return Err(damaged(format!(
                "it has {} bytes, not {}",
                info.plain_length,
                size.bytes()
            )));
        }
        check_header(&wal.start, segment, size, info.facts.system_identifier).map_err(damaged)?;
        Ok(Some(info))
    }

    /// The content of a timeline history file or backup history file, by its name in PostgreSQL; `None` when the store
    /// answered that there is none.
    ///
    /// # Errors
    /// [`RepositoryError::WalRefused`] for another name, [`RepositoryError::Damaged`],
    /// [`RepositoryError::NewerFormat`]; those of the store.
    pub fn read_file(&self, name: &str) -> Result<Option<Vec<u8>>, RepositoryError> {
        let found = self.read_file_and_owner(name)?;
        Ok(found.map(|(content, _)| content))
    }

    /// [`WalArchive::read_file`], with the cluster that the file is of.
    ///
    /// # Errors
    /// Those of [`WalArchive::read_file`].
    pub fn read_file_and_owner(
        &self,
        name: &str,
    ) -> Result<Option<(Vec<u8>, SystemIdentifier)>, RepositoryError> {
        let timeline = timeline_of_file(name).ok_or_else(|| RepositoryError::WalRefused {
            wal: name.to_owned(),
            problem: "it is neither a timeline history file nor a backup history file".to_owned(),
        })?;
        let key = layout::archived_wal(&self.cluster, timeline, name)?;
        let mut content = Bounded::new(FILE_LIMIT);
        match read_object(&*self.store, &key, &mut content) {
            Ok(info) if info.facts.timeline != timeline => Err(RepositoryError::damaged(
                &key,
                "file",
                format!("it is of timeline {}", info.facts.timeline),
            )),
            Ok(info) if info.plain_length > FILE_LIMIT => Err(RepositoryError::damaged(
                &key,
                "file",
                format!(
                    "it has {} bytes, more than any such file",
                    info.plain_length
                ),
            )),
            Ok(info) => Ok(Some((content.bytes, info.facts.system_identifier))),
            Err(RepositoryError::Store(error)) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the records in a whole WAL segment say; `None` when it is not there. `stored_length` is its object's size
    /// where a listing told it ([`super::Segments::get`]): that saves a request.
    ///
    /// # Errors
    /// [`RepositoryError::Damaged`], [`RepositoryError::NewerFormat`]; those of the store.
    pub fn contents(
        &self,
        segment: WalSegmentName,
        size: WalSegmentSize,
        stored_length: Option<u64>,
    ) -> Result<Option<WalContents>, RepositoryError> {
        let key = self.segment_key(segment, size)?;
        contents_of(
            &*self.store,
            &key,
            Some(segment.start_lsn(size)),
            size,
            stored_length,
        )
    }
}

/// Reads a whole object in as few requests as can be, and proves it.
pub(super) fn read_object(
    store: &dyn Store,
    key: &Key,
    to: &mut dyn Write,
) -> Result<WalObjectInfo, RepositoryError> {
    let (start, stored_length) = store.get_start(key, FIRST_READ_BYTES)?;
    let read = &mut |range: std::ops::Range<u64>| -> Result<Bytes, RepositoryError> {
        if range.end <= start.len() as u64 {
            Ok(start.slice(range.start as usize..range.end as usize))
        } else {
            Ok(store.get_range(key, range)?)
        }
    };
    decode_wal_object(key.as_str(), stored_length, read, to)
}

/// What the records in an object say: told by the object, or found by walking it, if it was stored without and there is
/// a `start` to walk from.
pub(super) fn contents_of(
    store: &dyn Store,
    key: &Key,
    start: Option<Lsn>,
    size: WalSegmentSize,
    stored_length: Option<u64>,
) -> Result<Option<WalContents>, RepositoryError> {
    let told = stored_length
        .map_or_else(|| store.size(key), Ok)
        .map_err(RepositoryError::from)
        .and_then(|length| read_wal_object_contents(store, key, length));
    let found = match told {
        Ok(Some(contents)) => return Ok(Some(contents)),
        Ok(None) => {
            let start = start.ok_or_else(|| {
                RepositoryError::damaged(key, "contents", "the object does not tell them")
            })?;
            let mut walk = Walk(WalScanner::new(start, size));
            read_object(store, key, &mut walk).map(|_| Some(walk.0.take_contents()))
        }
        Err(error) => Err(error),
    };
    match found {
        Err(RepositoryError::Store(error)) if error.is_not_found() => Ok(None),
        other => other,
    }
}

/// Walks over what is written to it. Where WAL ends, so does the walk: recovery comes no further either.
struct Walk(WalScanner);

impl Write for Walk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Damage is the walk's end.
        let _ = self.0.feed(bytes, &mut |_| {});
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hands on what is written to it, a segment at most, and keeps the first bytes. What is more is left out, and seen by the
/// length that the reader is told.
pub(super) struct Beginning<'a> {
    pub(super) start: Vec<u8>,
    to: &'a mut dyn Write,
    left: u64,
}

impl<'a> Beginning<'a> {
    pub(super) fn new(to: &'a mut dyn Write, size: WalSegmentSize) -> Self {
        Self {
            start: Vec::with_capacity(WAL_LONG_HEADER_SIZE),
            to,
            left: size.bytes(),
        }
    }
}

impl Write for Beginning<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(bytes.len());
        }
        let room = self.left.min(bytes.len() as u64) as usize;
        let length = self.to.write(&bytes[..room])?;
        self.left -= length as u64;
        let wanted = WAL_LONG_HEADER_SIZE - self.start.len();
        self.start.extend_from_slice(&bytes[..length.min(wanted)]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
