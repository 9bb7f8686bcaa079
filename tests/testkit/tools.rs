//! Other people's tools, held against what Leeward restores.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::installation::{Installation, system_tool};
use crate::server::run;

/// A tool that can read the control files of this installation's major version: its own, where its package has it, else
/// the system's, where the formats are the same (14 to 16; `pg_control.h`, PG_CONTROL_VERSION 1300).
fn tool(installation: &Installation, name: &str) -> Option<PathBuf> {
    let own = installation.program(name);
    if own.exists() {
        return Some(own);
    }
    (14..=16)
        .contains(&installation.major())
        .then(|| system_tool(name))
}

/// Whether there are tools that understand this major version.
pub fn tools_understand(installation: &Installation) -> bool {
    tool(installation, "pg_controldata").is_some()
}

/// One field of what `pg_controldata` says about a data directory.
pub fn pg_controldata(installation: &Installation, data: &Path, field: &str) -> String {
    let program = tool(installation, "pg_controldata").expect("tools_understand was asked");
    let text = run(Command::new(program).arg("-D").arg(data));
    assert!(!text.contains("WARNING"), "pg_controldata warns:\n{text}");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("pg_controldata says nothing of \"{field}\":\n{text}"))
        .trim()
        .to_owned()
}

/// Turns the checksums of a cleanly stopped data directory without tablespaces on or off, where a tool can: since 19 a
/// server tells apart what they are and what `initdb` chose. Returns whether it was done.
pub fn set_checksums(installation: &Installation, data: &Path, on: bool) -> bool {
    let Some(program) = tool(installation, "pg_checksums") else {
        return false;
    };
    let how = if on { "--enable" } else { "--disable" };
    run(Command::new(program)
        .args([how, "--no-sync", "-D"])
        .arg(data));
    true
}

/// Runs `pg_checksums --check` over a cleanly stopped data directory. Tablespaces are named after the catalogue's
/// version, so with any of them another major version's tool would look at none: it is then left out.
pub fn pg_checksums(installation: &Installation, data: &Path) {
    let program = tool(installation, "pg_checksums").expect("tools_understand was asked");
    let tablespaces = fs::read_dir(data.join("pg_tblspc"))
        .expect("there is a pg_tblspc")
        .count();
    let is_own = program == installation.program("pg_checksums");
    if tablespaces > 0 && !is_own {
        return;
    }
    let text = run(Command::new(program).arg("--check").arg("-D").arg(data));
    assert!(text.contains("Bad checksums:  0"), "{text}");
}
