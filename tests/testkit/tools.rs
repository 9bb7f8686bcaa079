//! Other people's tools, held against what Leeward restores.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::installation::{SYSTEM_MAJOR, system_tool};
use crate::server::run;

/// Whether the system's tools can read the control file of this major version: 14 to 16 share one format
/// (`pg_control.h`, PG_CONTROL_VERSION 1300).
pub fn tools_understand(major: u32) -> bool {
    (14..=16).contains(&major)
}

/// One field of what `pg_controldata` says about a data directory.
pub fn pg_controldata(data: &Path, field: &str) -> String {
    let text = run(Command::new(system_tool("pg_controldata"))
        .arg("-D")
        .arg(data));
    assert!(!text.contains("WARNING"), "pg_controldata warns:\n{text}");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("pg_controldata says nothing of \"{field}\":\n{text}"))
        .trim()
        .to_owned()
}

/// Runs `pg_checksums --check` over a cleanly stopped data directory. Tablespaces are named after the catalogue's
/// version, so with any of them the tool looks at directories of its own major version only: it is then left out.
pub fn pg_checksums(data: &Path, major: u32) {
    let tablespaces = fs::read_dir(data.join("pg_tblspc"))
        .expect("there is a pg_tblspc")
        .count();
    if tablespaces > 0 && major != SYSTEM_MAJOR {
        return;
    }
    let text = run(Command::new(system_tool("pg_checksums"))
        .arg("--check")
        .arg("-D")
        .arg(data));
    assert!(text.contains("Bad checksums:  0"), "{text}");
}
