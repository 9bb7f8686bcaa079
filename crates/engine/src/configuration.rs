//! The configuration of a copy of a data directory, restored or exported: with it, `postgres -D DIR` starts, and does not
//! touch the files of the server that was backed up.
//!
//! What lay outside the data directory is below [`FOLDER`] in the copy. From the files that the server used, all that
//! they include is followed; names of files are made to fit, relative to the file they stand in, so that the copy can lie
//! anywhere. Settings that lead back to the old server become comments. All other bytes stay what they were.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use leeward_postgres::configuration_files::{MAX_DEPTH, is_included_name, lexical};
use leeward_postgres::configuration_syntax::{
    Directive, Reference, Setting, Syntax, host_files, lines, quoted_value, references, setting,
};
use leeward_repository::summary::{BackupSummary, ConfigurationSummary};

use crate::error::{Error, ErrorKind, Result};

/// Where configuration from outside the data directory is put, inside it.
pub(crate) const FOLDER: &str = "configuration";

/// Bytes of the largest file that is read for the settings in it.
pub(crate) const CONFIGURATION_BYTES_LIMIT: u64 = 16 << 20;

/// What is added to the name of a file that the server did not use, where another has to have that name.
const UNUSED: &str = ".unused";

/// Settings that name places of the server that was backed up; a copy has its own.
const PLACES: [&str; 5] = [
    "data_directory",
    "hba_file",
    "ident_file",
    "hosts_file",
    "external_pid_file",
];

/// Files that a server with `ssl` on needs (`be_tls_init` in src/backend/libpq/be-secure-openssl.c), and their defaults;
/// with `ssl_sni` on and hosts in `pg_hosts.conf` it needs those that stand there instead.
const CERTIFICATES: [(&str, &str); 6] = [
    ("ssl_cert_file", "server.crt"),
    ("ssl_key_file", "server.key"),
    ("ssl_ca_file", ""),
    ("ssl_crl_file", ""),
    ("ssl_crl_dir", ""),
    ("ssl_dh_params_file", ""),
];

/// Settings that may be relative to the data directory.
const WITHIN: [&str; 8] = [
    "ssl_cert_file",
    "ssl_key_file",
    "ssl_ca_file",
    "ssl_crl_file",
    "ssl_crl_dir",
    "ssl_dh_params_file",
    "log_directory",
    "stats_temp_directory",
];

/// A copy that is being made. Paths are relative to its data directory.
pub(crate) trait Files {
    /// The bytes of a file; `None` where there is none.
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>>;
    /// The names in a directory; `None` where there is none.
    fn names(&self, folder: &Path) -> Option<Vec<OsString>>;
    /// Whether a server on the copy could open this, which may be absolute.
    fn can_open(&self, path: &Path) -> bool;
}

/// What makes the configuration of a copy its own.
#[derive(Debug, Default)]
pub(crate) struct Adoption {
    /// Files to rename first.
    pub moved: BTreeMap<PathBuf, PathBuf>,
    /// Files to write, new ones and ones to be replaced.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// What a person should know.
    pub notes: Vec<String>,
    settings: Settings,
}

/// Settings in effect, by name, where they lead inside the data directory relative to it.
type Settings = BTreeMap<String, Vec<u8>>;

/// The files that a server starts from.
const ROLES: [(&str, Syntax); 4] = [
    ("postgresql.conf", Syntax::Settings),
    ("pg_hba.conf", Syntax::Rules),
    ("pg_ident.conf", Syntax::Rules),
    ("pg_hosts.conf", Syntax::Hosts),
];

/// The settings of `ALTER SYSTEM`.
pub(crate) const AUTO: &str = "postgresql.auto.conf";

/// Finds what has to change in a copy of the backup that `summary` describes.
pub(crate) fn adopt_for(copy: &dyn Files, summary: &BackupSummary) -> Result<Adoption> {
    let data_directory = Path::new(&summary.data_directory);
    if !data_directory.is_absolute() {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!(
                "backup.json says that the data directory was \"{}\"",
                data_directory.display()
            ),
        )
        .hint("Restore another backup, or this one from another copy of the repository."));
    }
    let used = summary.configuration.clone();
    adopt(copy, data_directory, used, &summary.configuration_files)
}

/// `used` are the files that the server used, as far as is known, `outside` those that lay outside its data directory.
fn adopt(
    copy: &dyn Files,
    data_directory: &Path,
    used: Option<ConfigurationSummary>,
    outside: &[String],
) -> Result<Adoption> {
    let used = used.unwrap_or_default();
    let mut origins = vec![data_directory.to_owned()];
    let other_name = used.data_directory.iter().map(PathBuf::from);
    origins.extend(other_name.filter(|name| name.is_absolute()));
    let mut work = Work {
        copy,
        origins,
        read: Vec::new(),
        seen: BTreeMap::new(),
        named: BTreeMap::new(),
        host_files: Vec::new(),
        adoption: Adoption::default(),
    };
    let mut stub = None;
    for (standard, syntax) in ROLES {
        let origin = work.origin_of_role(standard, &used, outside)?;
        let place = work.place(&origin);
        if place != Path::new(standard) {
            if work.copy.read(Path::new(standard))?.is_some() {
                let unused = PathBuf::from(format!("{standard}{UNUSED}"));
                work.adoption.moved.insert(standard.into(), unused);
            }
            if syntax == Syntax::Settings {
                stub = Some(place.clone());
            } else {
                work.named.insert(place.clone(), standard.into());
            }
        }
        work.follow(origin, syntax, 0)?;
    }
    work.follow(work.origins[0].join(AUTO), Syntax::Settings, 0)?;
    work.rewrite();
    if let Some(place) = stub {
        let text = [
            b"# The server that was backed up had its configuration elsewhere; it came along, with its paths made to fit.\ninclude ".as_slice(),
            &quoted_value(place.as_os_str().as_bytes()),
            b"\n",
        ];
        let files = &mut work.adoption.files;
        files.insert("postgresql.conf".into(), text.concat());
    }
    Ok(work.adoption)
}

/// A configuration file of the copy.
struct Read {
    place: PathBuf,
    /// Where its original was.
    origin: PathBuf,
    syntax: Syntax,
    text: Vec<u8>,
}

struct Work<'a> {
    copy: &'a dyn Files,
    /// The names of the old data directory.
    origins: Vec<PathBuf>,
    /// Everything in use, in the order in which a server reads it.
    read: Vec<Read>,
    /// What was looked for, and whether the copy has it.
    seen: BTreeMap<(PathBuf, Syntax), bool>,
    /// Files that are used under another name; what has the old one stays as it is.
    named: BTreeMap<PathBuf, PathBuf>,
    /// What the hosts of `pg_hosts.conf` need, where it leads inside the data directory relative to it.
    host_files: Vec<PathBuf>,
    adoption: Adoption,
}

impl Work<'_> {
    /// Which file of the old host the server used as `standard`.
    fn origin_of_role(
        &self,
        standard: &str,
        used: &ConfigurationSummary,
        outside: &[String],
    ) -> Result<PathBuf> {
        let told = match standard {
            "postgresql.conf" => &used.config_file,
            "pg_hba.conf" => &used.hba_file,
            "pg_ident.conf" => &used.ident_file,
            _ => &used.hosts_file,
        };
        if let Some(told) = told {
            let told = lexical(Path::new("/"), Path::new(told));
            if self.copy.read(&self.place(&told))?.is_some() {
                return Ok(told);
            }
        }
        // The backup does not say, or does not have it: the usual name inside, else outside.
        if self.copy.read(Path::new(standard))?.is_none()
            && let Some(file) = outside
                .iter()
                .find(|file| Path::new(file).file_name().is_some_and(|n| n == standard))
        {
            return Ok(PathBuf::from(file));
        }
        Ok(self.origins[0].join(standard))
    }

    /// Where in the copy an absolute path of the old host lies, or would lie.
    fn place(&self, path: &Path) -> PathBuf {
        let path = lexical(Path::new("/"), path);
        let inside = self
            .origins
            .iter()
            .find_map(|origin| path.strip_prefix(origin).ok());
        match inside {
            Some(inside) => inside.to_owned(),
            None => Path::new(FOLDER).join(path.strip_prefix("/").unwrap_or(&path)),
        }
    }

    /// Reads a file of the old host and what it includes, noting settings on the way.
    fn follow(&mut self, origin: PathBuf, syntax: Syntax, depth: u32) -> Result<()> {
        let place = self.place(&origin);
        let key = (place.clone(), syntax);
        if depth > MAX_DEPTH || self.seen.contains_key(&key) {
            return Ok(());
        }
        let text = self.copy.read(&place)?;
        self.seen.insert(key, text.is_some());
        let Some(text) = text else {
            return Ok(());
        };
        for line in lines(syntax, &text) {
            for reference in references(syntax, line) {
                let path = target(&origin, &reference);
                let syntax = reference.syntax(syntax);
                if reference.directive != Directive::IncludeDir {
                    self.follow(path, syntax, depth + 1)?;
                    continue;
                }
                let mut names = self.copy.names(&self.place(&path)).unwrap_or_default();
                names.retain(|name| is_included_name(name));
                names.sort_unstable();
                for name in names {
                    self.follow(path.join(name), syntax, depth + 1)?;
                }
            }
            if syntax == Syntax::Settings
                && let Some(setting) = setting(line)
            {
                let value = match self.inside(&setting) {
                    Some(inside) => inside.into_os_string().into_vec(),
                    None => setting.value,
                };
                self.adoption.settings.insert(setting.name, value);
            }
            if syntax == Syntax::Hosts {
                for file in host_files(line) {
                    let place = self.relative_to_data(&file.path).unwrap_or(file.path);
                    self.host_files.push(place);
                }
            }
        }
        self.read.push(Read {
            place,
            origin,
            syntax,
            text,
        });
        Ok(())
    }

    fn rewrite(&mut self) {
        let ssl_off = self.is_without_certificates();
        for file in std::mem::take(&mut self.read) {
            let place = self.final_place(&file.place);
            let mut text = Vec::with_capacity(file.text.len());
            for line in lines(file.syntax, &file.text) {
                text.extend(self.line(&file, &place, line, ssl_off));
            }
            if place != file.place || text != file.text {
                self.adoption.files.insert(place, text);
            }
        }
        if ssl_off {
            self.adoption
                .settings
                .insert("ssl".to_owned(), b"off".to_vec());
            self.adoption.notes.push(
                "ssl is turned off in it: its certificate or key lay elsewhere and is not there."
                    .to_owned(),
            );
        }
    }

    /// The name that a file of the copy gets in the end.
    fn final_place(&self, place: &Path) -> PathBuf {
        self.named
            .get(place)
            .or_else(|| self.adoption.moved.get(place))
            .map_or_else(|| place.to_owned(), Clone::clone)
    }

    fn line(&mut self, file: &Read, place: &Path, line: &[u8], ssl_off: bool) -> Vec<u8> {
        let mut out = line.to_vec();
        // From the right, so that the places of the others stay true.
        for reference in references(file.syntax, line).iter().rev() {
            match self.reference(file, place, reference) {
                Some(Named::Unchanged) => {}
                Some(Named::Now(to)) => out = reference.renamed(file.syntax, &out, &to),
                None => return commented("not in the backup", line),
            }
        }
        if file.syntax == Syntax::Hosts {
            for named in host_files(&out).iter().rev() {
                if let Some(inside) = self.relative_to_data(&named.path) {
                    out = named.renamed(&out, &inside);
                }
            }
        }
        if file.syntax != Syntax::Settings {
            return out;
        }
        match setting(line) {
            Some(setting) if PLACES.contains(&setting.name.as_str()) => {
                commented("not in a copy", line)
            }
            Some(setting) if setting.name == "ssl" && ssl_off => {
                [b"ssl = off # there is no certificate; was: ", line].concat()
            }
            Some(setting) => match self.inside(&setting) {
                Some(inside) => setting.changed(line, inside.as_os_str().as_bytes()),
                None => out,
            },
            None => out,
        }
    }

    /// How a file or directory is to be named now; `None` when the line that names it must go.
    fn reference(&mut self, file: &Read, place: &Path, reference: &Reference) -> Option<Named> {
        let target = target(&file.origin, reference);
        let old = self.place(&target);
        let exists = match reference.directive {
            Directive::IncludeDir => self.copy.names(&old).is_some(),
            _ => self.seen.get(&(old.clone(), reference.syntax(file.syntax))) == Some(&true),
        };
        let lies = self.adoption.moved.get(&old).unwrap_or(&old);
        // An absent list or file of rules stays absent: a rule less may let in who should not be.
        if !exists
            && (file.syntax == Syntax::Settings || reference.directive == Directive::IncludeDir)
        {
            if reference.directive == Directive::Include {
                self.adoption.notes.push(format!(
                    "It lacks \"{}\", which its configuration included and the backup does not have.",
                    target.display()
                ));
            }
            return None;
        }
        let folder = place.parent().unwrap_or(Path::new(""));
        if reference.path.is_relative() && lexical(folder, &reference.path) == *lies {
            return Some(Named::Unchanged);
        }
        Some(Named::Now(relative(folder, lies)))
    }

    /// The value of a setting that names something in the old data directory, relative to it as it may be.
    fn inside(&self, setting: &Setting) -> Option<PathBuf> {
        WITHIN
            .contains(&setting.name.as_str())
            .then(|| self.relative_to_data(Path::new(OsStr::from_bytes(&setting.value))))?
    }

    /// An absolute path into the old data directory, relative to it.
    fn relative_to_data(&self, path: &Path) -> Option<PathBuf> {
        self.origins
            .iter()
            .find_map(|origin| path.strip_prefix(origin).ok())
            .filter(|inside| *inside != Path::new(""))
            .map(Path::to_owned)
    }

    fn is_without_certificates(&self) -> bool {
        let settings = &self.adoption.settings;
        let is_on = |name: &str| settings.get(name).is_some_and(|value| is_true(value));
        if is_on("ssl_sni") && !self.host_files.is_empty() {
            let absent = |file: &PathBuf| !self.copy.can_open(file);
            return is_on("ssl") && self.host_files.iter().any(absent);
        }
        is_on("ssl")
            && CERTIFICATES.iter().any(|(name, default)| {
                let value = settings
                    .get(*name)
                    .map_or(default.as_bytes(), Vec::as_slice);
                !value.is_empty() && !self.copy.can_open(Path::new(OsStr::from_bytes(value)))
            })
    }
}

/// The path on the old host that a file names.
fn target(origin: &Path, reference: &Reference) -> PathBuf {
    lexical(origin.parent().unwrap_or(Path::new("/")), &reference.path)
}

enum Named {
    Unchanged,
    Now(PathBuf),
}

/// PostgreSQL takes every beginning of these words (`parse_bool_with_len` in src/backend/utils/adt/bool.c).
fn is_true(value: &[u8]) -> bool {
    let value = value.to_ascii_lowercase();
    value == b"1"
        || value == b"on"
        || [b"true".as_slice(), b"yes"]
            .iter()
            .any(|word| !value.is_empty() && word.starts_with(&value))
}

fn commented(why: &str, line: &[u8]) -> Vec<u8> {
    [b"# ", why.as_bytes(), b": ", line].concat()
}

/// The way from one directory of the copy to something in it.
fn relative(folder: &Path, to: &Path) -> PathBuf {
    let (folder, to): (Vec<Component<'_>>, Vec<Component<'_>>) =
        (folder.components().collect(), to.components().collect());
    let common = folder.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n(Component::ParentDir, folder.len() - common);
    let path: PathBuf = up.chain(to[common..].iter().copied()).collect();
    if path.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        path
    }
}

impl Adoption {
    /// The value of a setting that is a whole number; `None` where it is not set, or cannot be read.
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        let text = std::str::from_utf8(self.settings.get(name)?).ok()?.trim();
        match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => i64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        }
    }

    /// What to know before starting a server on the copy at `data`, beside the one that was backed up.
    pub(crate) fn collisions(&self, data: &Path) -> Vec<String> {
        let of = |name: &str| {
            self.settings
                .get(name)
                .map(|value| String::from_utf8_lossy(value).into_owned())
                .filter(|value| !value.is_empty())
        };
        let port = of("port").unwrap_or_else(|| "5432".to_owned());
        let mut notes = vec![format!(
            "It will listen on port {port}, as the server that was backed up did; beside that server start it with another: postgres -D {} -p PORT.",
            data.display()
        )];
        if of("archive_mode").is_some_and(|mode| mode != "off")
            && let Some(command) = of("archive_command").or_else(|| of("archive_library"))
        {
            notes.push(format!("It will archive its WAL as the live server does ({command}); set archive_mode = off unless it replaces that server."));
        }
        for name in ["log_directory", "stats_temp_directory"] {
            if let Some(place) = of(name).filter(|place| place.starts_with('/')) {
                notes.push(format!(
                    "{name} is \"{place}\", which a live server on this host may use."
                ));
            }
        }
        notes
    }
}

#[cfg(test)]
#[path = "configuration_tests.rs"]
mod tests;
