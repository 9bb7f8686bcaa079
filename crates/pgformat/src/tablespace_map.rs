//! The `tablespace_map` file: where each tablespace of a backup belongs.
//!
//! Facts from `access/transam/xlog.c` (`do_pg_backup_start`, which writes it) and `access/transam/xlogrecovery.c`
//! (`read_tablespace_map`); the format has not changed from 14 to 19.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::{FormatError, Oid};

/// What a `tablespace_map` says: at the start of recovery the server makes the links in `pg_tblspc` from it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TablespaceMap {
    /// The tablespaces, in the file's order.
    pub entries: Vec<TablespaceMapEntry>,
}

/// One tablespace and its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceMapEntry {
    /// The tablespace; the name of its link in `pg_tblspc`.
    pub tablespace: Oid,
    /// Where the link points.
    pub location: PathBuf,
}

impl TablespaceMap {
    /// Reads the content of a `tablespace_map`: a line for each tablespace, OID, one space, and the path with a
    /// backslash before each backslash, newline and carriage return of its own. Empty for an empty file.
    ///
    /// # Errors
    ///
    /// [`FormatError::TablespaceMap`] for what the server would refuse, naming the line.
    pub fn parse(content: impl AsRef<[u8]>) -> Result<TablespaceMap, FormatError> {
        let mut entries = Vec::new();
        let mut line = Vec::new();
        let mut escaped = false;
        for &byte in content.as_ref() {
            if escaped {
                line.push(byte);
                escaped = false;
            } else if byte == b'\\' {
                escaped = true;
            } else if byte == b'\n' || byte == b'\r' {
                // An empty line is the second half of a line end of two bytes.
                if !line.is_empty() {
                    entries.push(parse_line(&line, entries.len() + 1)?);
                    line.clear();
                }
            } else {
                line.push(byte);
            }
        }
        if escaped || !line.is_empty() {
            return Err(wrong(
                entries.len() + 1,
                "it does not end, the file may be cut short".to_owned(),
            ));
        }
        Ok(TablespaceMap { entries })
    }

    /// The content of the file, as the server writes it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut content = Vec::new();
        for entry in &self.entries {
            content.extend_from_slice(entry.tablespace.to_string().as_bytes());
            content.push(b' ');
            for &byte in entry.location.as_os_str().as_bytes() {
                if matches!(byte, b'\n' | b'\r' | b'\\') {
                    content.push(b'\\');
                }
                content.push(byte);
            }
            content.push(b'\n');
        }
        content
    }
}

fn parse_line(line: &[u8], number: usize) -> Result<TablespaceMapEntry, FormatError> {
    // One space exactly: the path may begin with others.
    let Some(space) = line.iter().position(|byte| *byte == b' ') else {
        return Err(wrong(
            number,
            "it has no space between OID and path".to_owned(),
        ));
    };
    let (oid, location) = (String::from_utf8_lossy(&line[..space]), &line[space + 1..]);
    let tablespace: Oid = oid
        .parse()
        .map_err(|_| wrong(number, format!("\"{oid}\" is not an OID")))?;
    if location.is_empty() {
        return Err(wrong(number, "the path is empty".to_owned()));
    }
    Ok(TablespaceMapEntry {
        tablespace,
        location: PathBuf::from(OsString::from_vec(location.to_vec())),
    })
}

fn wrong(line: usize, reason: String) -> FormatError {
    FormatError::TablespaceMap { line, reason }
}

#[cfg(test)]
#[path = "tablespace_map_tests.rs"]
mod tests;
