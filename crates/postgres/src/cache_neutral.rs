//! Reading and writing files without changing what the page cache holds.
//!
//! A backup reads every page once. Left to itself the kernel would keep what was just read and drop what the standby is
//! working with. Linux 6.14 and newer drop behind the reader on request (`RWF_DONTCACHE`). Older kernels are asked in two
//! steps: what is cached already is taken and left (`RWF_NOWAIT`), what is not is read and given back at once
//! (`POSIX_FADV_DONTNEED`), with the kernel's own read-ahead off so that nothing is fetched that is not given back.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};

/// `RWF_DONTCACHE` of include/uapi/linux/fs.h.
const RWF_DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

const DONTCACHE: u8 = 0;
const NOWAIT: u8 = 1;
const PLAIN: u8 = 2;

/// The best way this machine's file systems have allowed so far; it only ever gets weaker.
static WAY: AtomicU8 = AtomicU8::new(DONTCACHE);

/// Reads from `offset` until `buffer` is full or the file ends; returns the bytes read.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        let read = some(file, &mut buffer[done..], offset + done as u64)?;
        if read == 0 {
            break;
        }
        done += read;
    }
    Ok(done)
}

fn some(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        let way = WAY.load(Ordering::Relaxed);
        let result = match way {
            DONTCACHE => preadv2(file, &mut [IoSliceMut::new(buffer)], offset, RWF_DONTCACHE),
            NOWAIT => return give_back(file, buffer, offset),
            _ => preadv2(
                file,
                &mut [IoSliceMut::new(buffer)],
                offset,
                ReadWriteFlags::empty(),
            ),
        };
        match result {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) if way != PLAIN => {
                WAY.fetch_max(way + 1, Ordering::Relaxed);
            }
            other => return other.map_err(io::Error::from),
        }
    }
}

fn give_back(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    match preadv2(
        file,
        &mut [IoSliceMut::new(buffer)],
        offset,
        ReadWriteFlags::NOWAIT,
    ) {
        Ok(read) => return Ok(read),
        Err(Errno::AGAIN | Errno::INTR) => {}
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
            WAY.fetch_max(PLAIN, Ordering::Relaxed);
            return some(file, buffer, offset);
        }
        Err(other) => return Err(other.into()),
    }
    fadvise(file, 0, None, Advice::Random)?;
    let read = loop {
        match preadv2(
            file,
            &mut [IoSliceMut::new(buffer)],
            offset,
            ReadWriteFlags::empty(),
        ) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    if let Some(length) = std::num::NonZeroU64::new(read as u64) {
        fadvise(file, offset, Some(length), Advice::DontNeed)?;
    }
    Ok(read)
}

/// Whether writes that drop behind the writer have been refused (Linux before 6.14, or a file system without them).
static WRITES_KEPT: AtomicBool = AtomicBool::new(false);

/// Writes all of `bytes` at `offset`. Where the kernel can, writing back begins at once and the page cache keeps nothing, so
/// that a restore neither pushes out what the machine works with nor leaves gigabytes for the last sync.
///
/// # Errors
/// The system's.
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let kept = WRITES_KEPT.load(Ordering::Relaxed);
        let flags = if kept {
            ReadWriteFlags::empty()
        } else {
            RWF_DONTCACHE
        };
        match pwritev2(
            file,
            &[IoSlice::new(&bytes[done..])],
            offset + done as u64,
            flags,
        ) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) if !kept => {
                WRITES_KEPT.store(true, Ordering::Relaxed)
            }
            Err(other) => return Err(other.into()),
        }
    }
    Ok(())
}
