//! Configuration that lies outside the data directory, as Debian keeps it in `/etc/postgresql`.
//!
//! A restored directory that lacks `postgresql.conf` does not start, so a backup takes these files along: those that the
//! server names (`config_file`, `hba_file`, `ident_file`, since 19 `hosts_file`) and what they include, directly or not
//! (`ParseConfigFp` in src/backend/utils/misc/guc-file.l; `tokenize_include_file` in src/backend/libpq/hba.c).
//!
//! Files go by the names that the server has for them, without following links, so that a name in one file still leads to
//! the other when all of them lie somewhere else.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::configuration_syntax::{Directive, Syntax, lines, references};
use crate::directory::read_file;

/// As deep as the server itself follows includes (`CONF_FILE_MAX_DEPTH` in src/include/utils/conffiles.h).
pub const MAX_DEPTH: u32 = 10;

/// No configuration file is longer.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What was found outside the data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutsideFiles {
    /// Absolute paths of files, sorted, each once.
    pub files: Vec<PathBuf>,
    /// Absolute paths of directories that are included, sorted, each once. The server wants even an empty one to exist.
    pub folders: Vec<PathBuf>,
    /// Files and directories that are named but could not be read, with the reason.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// Follows `named` (the server's configuration files) and their includes; returns those outside `data_directory`, whose
/// own links must be resolved.
#[must_use]
pub fn outside_files(data_directory: &Path, named: &[(Syntax, &Path)]) -> OutsideFiles {
    let mut search = Search {
        data_directory,
        seen: BTreeSet::new(),
        files: BTreeSet::new(),
        folders: BTreeSet::new(),
        unreadable: Vec::new(),
    };
    for (syntax, file) in named {
        search.file(&lexical(data_directory, file), *syntax, 0);
    }
    OutsideFiles {
        files: search.files.into_iter().collect(),
        folders: search.folders.into_iter().collect(),
        unreadable: search.unreadable,
    }
}

/// What `include_dir` takes of a directory: files whose names end in `.conf` and do not begin with a dot
/// (`GetConfFilesInDir` in src/backend/utils/misc/conffiles.c).
#[must_use]
pub fn is_included_name(name: &std::ffi::OsStr) -> bool {
    let name = name.as_bytes();
    name.len() >= 6 && name.ends_with(b".conf") && !name.starts_with(b".")
}

/// `path`, relative to `folder` where it is relative, without `.` and `..`, and without looking at the file system: as the
/// server makes it out (`AbsoluteConfigLocation` in src/backend/utils/misc/conffiles.c).
#[must_use]
pub fn lexical(folder: &Path, path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in folder.join(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

struct Search<'a> {
    data_directory: &'a Path,
    seen: BTreeSet<(PathBuf, Syntax)>,
    files: BTreeSet<PathBuf>,
    folders: BTreeSet<PathBuf>,
    unreadable: Vec<(PathBuf, String)>,
}

impl Search<'_> {
    fn file(&mut self, path: &Path, syntax: Syntax, depth: u32) {
        if depth > MAX_DEPTH || !self.seen.insert((path.to_owned(), syntax)) {
            return;
        }
        let text = match read_file(path, MAX_FILE_BYTES) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return,
            Err(e) => return self.cannot_read(path, &e),
        };
        if self.is_outside(path) {
            self.files.insert(path.to_owned());
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        for line in lines(syntax, &text) {
            for reference in references(syntax, line) {
                let path = lexical(folder, &reference.path);
                let syntax = reference.syntax(syntax);
                match reference.directive {
                    Directive::IncludeDir => self.folder(&path, syntax, depth + 1),
                    _ => self.file(&path, syntax, depth + 1),
                }
            }
        }
    }

    fn folder(&mut self, path: &Path, syntax: Syntax, depth: u32) {
        let listing = match fs::read_dir(path) {
            Ok(listing) => listing,
            Err(e) if e.kind() == ErrorKind::NotFound => return,
            Err(e) => return self.cannot_read(path, &e),
        };
        if self.is_outside(path) {
            self.folders.insert(path.to_owned());
        }
        let mut names: Vec<_> = listing.flatten().map(|entry| entry.file_name()).collect();
        names.sort_unstable();
        for name in names.iter().filter(|name| is_included_name(name)) {
            let file = path.join(name);
            if file.is_file() {
                self.file(&file, syntax, depth);
            }
        }
    }

    /// With the links of its folder resolved, so that `/var/lib/pgsql/data`, itself a link, does not pass for another place.
    fn is_outside(&self, path: &Path) -> bool {
        let place = match (path.parent().map(fs::canonicalize), path.file_name()) {
            (Some(Ok(folder)), Some(name)) => folder.join(name),
            _ => path.to_owned(),
        };
        !place.starts_with(self.data_directory)
    }

    fn cannot_read(&mut self, path: &Path, error: &std::io::Error) {
        if self.is_outside(path) {
            self.unreadable.push((path.to_owned(), error.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &[u8]) {
        fs::create_dir_all(path.parent().expect("has a parent")).expect("folder");
        fs::write(path, text).expect("file");
    }

    #[test]
    fn follows_includes_out_of_the_data_directory() {
        let root = std::env::temp_dir().join(format!("leeward-conf-{}", std::process::id()));
        let data = root.join("data");
        let etc = root.join("etc");
        write(&data.join("inside.conf"), b"include '../etc/far.conf'\n");
        write(&etc.join("far.conf"), b"work_mem = '1MB'\n");
        write(
            &etc.join("main.conf"),
            b"# caf\xe9\ninclude_dir 'conf.d' # all\ninclude_dir = 'empty.d'\ninclude_dir = 'absent.d'\n\
              include_if_exists = 'absent.conf'\n#include 'no.conf'\ninclude '../link/back.conf'\n",
        );
        write(&etc.join("conf.d/b.conf"), b"");
        write(&etc.join("conf.d/a.conf"), b"");
        write(&etc.join("conf.d/.hidden.conf"), b"");
        write(&etc.join("conf.d/other.txt"), b"");
        fs::create_dir(etc.join("empty.d")).expect("folder");
        write(
            &etc.join("pg_hba.conf"),
            b"local all @admins,@\"more admins\" peer\n",
        );
        write(&etc.join("admins"), b"alice @bosses\n");
        write(&etc.join("more admins"), b"");
        write(&etc.join("bosses"), b"bob");
        write(&etc.join("no.conf"), b"");
        write(&data.join("back.conf"), b"");
        std::os::unix::fs::symlink(&data, root.join("link")).expect("link");

        let named = [
            (Syntax::Settings, &*data.join("inside.conf")),
            (Syntax::Settings, &*etc.join("main.conf")),
            (Syntax::Rules, &*etc.join("pg_hba.conf")),
            (Syntax::Rules, &*etc.join("gone.conf")),
        ];
        let found = outside_files(&data, &named);
        let expected = [
            "admins",
            "bosses",
            "conf.d/a.conf",
            "conf.d/b.conf",
            "far.conf",
            "main.conf",
            "more admins",
            "pg_hba.conf",
        ];
        assert_eq!(found.files, expected.map(|name| etc.join(name)));
        assert_eq!(
            found.folders,
            ["conf.d", "empty.d"].map(|name| etc.join(name))
        );
        assert_eq!(found.unreadable, []);
        fs::remove_dir_all(&root).expect("clean up");
    }
}
