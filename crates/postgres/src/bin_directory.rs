//! The programs of a PostgreSQL installation: where they are, and running them.

use std::path::{Path, PathBuf};
use std::process::Command;

use leeward_pgformat::MajorVersion;

use crate::error::Error;

/// Where packages put the programs of one major version.
const BIN_DIRECTORIES: [&str; 3] = [
    "/usr/lib/postgresql/{}/bin",
    "/usr/pgsql-{}/bin",
    "/usr/local/pgsql-{}/bin",
];

/// The programs of one PostgreSQL installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinDirectory {
    path: PathBuf,
    major: MajorVersion,
}

impl BinDirectory {
    /// Takes the directory that holds `postgres`, and asks it for its version.
    ///
    /// # Errors
    /// [`Error::Program`] when there is no such program or it fails, [`Error::UnsupportedVersion`].
    pub fn new(path: impl Into<PathBuf>) -> Result<BinDirectory, Error> {
        let path = path.into();
        let program = path.join("postgres");
        let version = run(Command::new(&program).arg("--version"), &program)?;
        // "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"
        let number = version
            .split_whitespace()
            .find_map(|word| word.split(['.', 'd', 'b', 'r']).next()?.parse().ok());
        match number.and_then(MajorVersion::from_u32) {
            Some(major) => Ok(BinDirectory { path, major }),
            None => Err(Error::UnsupportedVersion {
                version: version.trim().to_owned(),
            }),
        }
    }

    /// Looks where packages put the programs, and then in `PATH`.
    pub fn find(major: MajorVersion) -> Option<BinDirectory> {
        let packaged = BIN_DIRECTORIES
            .iter()
            .map(|place| PathBuf::from(place.replace("{}", &major.to_string())));
        let in_path =
            std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
        packaged
            .chain(in_path.into_iter().flatten())
            .filter(|place| place.join("postgres").exists())
            .filter_map(|place| BinDirectory::new(place).ok())
            .find(|found| found.major == major)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The major version of the programs in it.
    pub fn major(&self) -> MajorVersion {
        self.major
    }

    /// One of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Runs a program to its end and gives back what it printed, or its last words as an error.
pub(crate) fn run(command: &mut Command, program: &Path) -> Result<String, Error> {
    let output = command
        .output()
        .map_err(|source| could_not_run(program, &source.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words: Vec<&str> = words
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    Err(could_not_run(
        program,
        &format!("{}: {}", output.status, words.join("; ")),
    ))
}

pub(crate) fn could_not_run(program: &Path, problem: &str) -> Error {
    Error::Program {
        program: program.to_owned(),
        problem: problem.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_programs_is_an_error() {
        let error = BinDirectory::new("/nonexistent").expect_err("no program there");
        assert!(
            error
                .to_string()
                .starts_with("could not run \"/nonexistent/postgres\""),
            "{error}"
        );
    }
}
