//! The configuration that lies outside the data directory, as Debian keeps it in `/etc/postgresql`.
//!
//! A restored directory that lacks `postgresql.conf` does not start, so a backup takes these files along: the three the
//! server names (`config_file`, `hba_file`, `ident_file`) and what they include, directly or not
//! (`ParseConfigFp` in src/backend/utils/misc/guc-file.l; `tokenize_include_file` in src/backend/libpq/hba.c).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// As deep as the server itself follows includes (`CONF_FILE_MAX_DEPTH` in src/include/utils/conffiles.h).
const MAX_DEPTH: u32 = 10;

/// What was found outside the data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutsideFiles {
    /// Absolute paths, sorted, each once.
    pub files: Vec<PathBuf>,
    /// Files that are named but could not be read, with the reason.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// Follows `named` (the server's configuration files) and their includes; returns those outside `data_directory`.
#[must_use]
pub fn outside_files(data_directory: &Path, named: &[PathBuf]) -> OutsideFiles {
    let mut search = Search {
        data_directory,
        seen: BTreeSet::new(),
        found: OutsideFiles::default(),
    };
    for file in named {
        search.file(file, 0);
    }
    let Search {
        seen, mut found, ..
    } = search;
    found.files = seen
        .into_iter()
        .filter(|file| !file.starts_with(data_directory))
        .collect();
    found.files.retain(|file| {
        !found
            .unreadable
            .iter()
            .any(|(unreadable, _)| unreadable == file)
    });
    found
}

struct Search<'a> {
    data_directory: &'a Path,
    seen: BTreeSet<PathBuf>,
    found: OutsideFiles,
}

impl Search<'_> {
    fn file(&mut self, path: &Path, depth: u32) {
        let path = plain(&if path.is_absolute() {
            path.to_owned()
        } else {
            self.data_directory.join(path)
        });
        if depth > MAX_DEPTH || !self.seen.insert(path.clone()) {
            return;
        }
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.seen.remove(&path);
                return;
            }
            Err(e) => {
                self.found.unreadable.push((path, e.to_string()));
                return;
            }
        };
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        for line in text.lines() {
            match included(line) {
                Some(Included::File(name)) => self.file(&folder.join(name), depth + 1),
                Some(Included::Folder(name)) => self.folder(&folder.join(name), depth + 1),
                None => {}
            }
        }
    }

    /// `include_dir` takes the files ending in `.conf` that do not begin with a dot.
    fn folder(&mut self, path: &Path, depth: u32) {
        let Ok(listing) = fs::read_dir(path) else {
            return;
        };
        let mut files: Vec<PathBuf> = listing.flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            let name = file
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default();
            if name.ends_with(".conf") && !name.starts_with('.') && file.is_file() {
                self.file(&file, depth);
            }
        }
    }
}

/// The path with the links and dots of its folder resolved, so that `data/../etc` does not pass for a place in `data`.
fn plain(path: &Path) -> PathBuf {
    match (path.parent().map(fs::canonicalize), path.file_name()) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

enum Included {
    File(String),
    Folder(String),
}

/// Reads one line: an include directive of any of the three files, or an `@file` list of `pg_hba.conf`.
fn included(line: &str) -> Option<Included> {
    let line = line.trim_start();
    if line.starts_with('#') {
        return None;
    }
    let (keyword, rest) = line
        .split_once(|c: char| c.is_whitespace() || c == '=')
        .unwrap_or((line, ""));
    let value = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '=');
    match keyword.to_ascii_lowercase().as_str() {
        "include" | "include_if_exists" => Some(Included::File(unquoted(value)?)),
        "include_dir" => Some(Included::Folder(unquoted(value)?)),
        _ => line
            .split(|c: char| c.is_whitespace() || c == ',')
            .find_map(|word| word.strip_prefix('@').filter(|name| !name.is_empty()))
            .filter(|_| !line.contains('='))
            .map(|name| Included::File(name.trim_matches('"').to_owned())),
    }
}

fn unquoted(value: &str) -> Option<String> {
    let quote = value.chars().next()?;
    if quote == '\'' || quote == '"' {
        let inner = &value[1..];
        return inner.find(quote).map(|end| inner[..end].to_owned());
    }
    let word = value
        .split(|c: char| c.is_whitespace() || c == '#')
        .next()?;
    (!word.is_empty()).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().expect("has a parent")).expect("folder");
        fs::write(path, text).expect("file");
    }

    #[test]
    fn follows_includes_out_of_the_data_directory() {
        let root = std::env::temp_dir().join(format!("leeward-conf-{}", std::process::id()));
        let data = root.join("data");
        let etc = root.join("etc");
        write(&data.join("inside.conf"), "include '../etc/far.conf'\n");
        write(&etc.join("far.conf"), "work_mem = '1MB'\n");
        write(
            &etc.join("postgresql.conf"),
            "include_dir 'conf.d' # all\ninclude_if_exists = 'absent.conf'\n#include 'no.conf'\n",
        );
        write(&etc.join("conf.d/b.conf"), "");
        write(&etc.join("conf.d/a.conf"), "");
        write(&etc.join("conf.d/.hidden.conf"), "");
        write(&etc.join("conf.d/other.txt"), "");
        write(&etc.join("pg_hba.conf"), "local all @admins peer\n");
        write(&etc.join("admins"), "alice\n");
        write(&etc.join("no.conf"), "");
        let named = [
            data.join("inside.conf"),
            etc.join("postgresql.conf"),
            etc.join("pg_hba.conf"),
            etc.join("gone.conf"),
        ];
        let found = outside_files(&data, &named);
        let names: BTreeSet<String> = found
            .files
            .iter()
            .map(|f| f.file_name().expect("name").to_string_lossy().into_owned())
            .collect();
        let expected = [
            "a.conf",
            "admins",
            "b.conf",
            "far.conf",
            "pg_hba.conf",
            "postgresql.conf",
        ];
        assert_eq!(names, expected.iter().map(|s| (*s).to_owned()).collect());
        assert!(found.unreadable.is_empty());
        fs::remove_dir_all(&root).expect("clean up");
    }
}
