//! A WAL file on its way to the server that asked for it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::fetched::{self, Fetched};
use crate::error::{Error, Result};

/// A file on its way to where it is wanted: it appears there whole.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    /// The file itself, to be written.
    pub file: File,
    wanted: PathBuf,
}

impl Target {
    /// A file for `name`, which is wanted at `wanted`: in the spool, or beside that place.
    pub(super) fn create(spool: Option<&Fetched>, name: &str, wanted: &Path) -> Result<Self> {
        if let Some(spool) = spool
            && let Ok((path, file)) = spool.make().and_then(|()| spool.own_file(name))
        {
            return Ok(Self {
                path,
                file,
                wanted: wanted.to_owned(),
            });
        }
        Self::beside(wanted)
    }

    fn beside(wanted: &Path) -> Result<Self> {
        let mut path = wanted.as_os_str().to_owned();
        path.push(format!(
            ".leeward-{}-{}",
            std::process::id(),
            fetched::next()
        ));
        let path = PathBuf::from(path);
        let file = fetched::create(&path).map_err(|e| unwritable(&path, e))?;
        Ok(Self {
            path,
            file,
            wanted: wanted.to_owned(),
        })
    }

    /// `missing` of its `size` bytes are to be zeros.
    pub(super) fn pad(&mut self, size: u64, missing: u64) -> Result<()> {
        // Written, not left as a hole: the server uses the file again for WAL to come, and counts on its space.
        let zeros = io::repeat(0).take(missing);
        let padded = self
            .file
            .seek(SeekFrom::Start(size - missing))
            .and_then(|_| io::copy(&mut { zeros }, &mut self.file));
        padded.map(drop).map_err(|e| unwritable(&self.path, e))
    }

    /// Writes all of a small file.
    pub(super) fn write(&mut self, content: &[u8]) -> Result<()> {
        self.file
            .write_all(content)
            .map_err(|e| unwritable(&self.path, e))
    }

    /// Puts it there.
    pub(super) fn place(self) -> Result<()> {
        fetched::hand_over(&self.path, &self.wanted).map_err(|e| unwritable(&self.wanted, e))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What is told when a file could not be written.
pub(super) fn unwritable(path: &Path, e: io::Error) -> Error {
    Error::failed(format!("could not write \"{}\"", path.display())).because(e)
}
