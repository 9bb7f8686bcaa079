//! The configuration: `/etc/leeward/leeward.toml`, then the stage's file beside it, then the environment, then flags.

use std::fs::{File as OpenFile, Metadata};
use std::io::{ErrorKind as IoErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use leeward_engine::error::{Error, ErrorKind};
use leeward_postgres::backup_session::BackupFrom;
use leeward_postgres::server_user::{ServerUser, is_root};
use leeward_repository::codec::{Compression, FrameCompression};
use leeward_repository::store::{self, Secret, Store, StoreOptions};
use leeward_repository::url::RepositoryUrl;
use serde::Deserialize;

use crate::args::Global;
use crate::restore_command::quoted;

const DEFAULT_FILE: &str = "/etc/leeward/leeward.toml";

/// The cluster's name where none is given.
pub const DEFAULT_CLUSTER: &str = "main";

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    repository: RepositorySection,
    cluster: ClusterSection,
    backup: BackupSection,
    wal: WalSection,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RepositorySection {
    url: Option<String>,
    endpoint: Option<String>,
    region: Option<String>,
    path_style: Option<bool>,
    allow_http: Option<bool>,
    ca_certificate: Option<PathBuf>,
    skip_tls_verification: Option<bool>,
    access_key_id: Option<SecretText>,
    secret_access_key: Option<SecretText>,
    session_token: Option<SecretText>,
    profile: Option<String>,
    credentials_file: Option<PathBuf>,
    storage_class: Option<String>,
    part_size_bytes: Option<usize>,
    concurrency: Option<usize>,
}

/// A secret on its way from the file to the store: it cannot be printed.
#[derive(Deserialize)]
struct SecretText(String);

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ClusterSection {
    name: Option<String>,
    pgdata: Option<PathBuf>,
    conninfo: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BackupSection {
    from: Option<String>,
    compression: Option<String>,
    threads: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WalSection {
    compression: Option<String>,
    prefetch_bytes: Option<u64>,
}

/// What holds for this call, from all its sources.
#[derive(Debug)]
pub struct Config {
    url: Option<String>,
    options: StoreOptions,
    /// The cluster's name, where one is given.
    pub cluster: Option<String>,
    pub pgdata: Option<PathBuf>,
    pub conninfo: Option<String>,
    pub from: Option<BackupFrom>,
    pub compression: Option<FrameCompression>,
    pub threads: Option<usize>,
    /// How archived WAL is compressed.
    pub wal_compression: Option<Compression>,
    /// How much WAL is fetched ahead of a server in recovery.
    pub prefetch_bytes: Option<u64>,
}

impl Config {
    /// Reads what there is to read.
    pub fn load(global: &Global) -> Result<Self, Error> {
        let file = read(global)?;
        let options = store_options(file.repository);
        let usage = |message: String| Error::new(ErrorKind::Usage, message);
        let from = file.backup.from.map(|text| {
            text.parse::<BackupFrom>()
                .map_err(|e| usage(format!("could not read [backup] from: {e}")))
        });
        let compression = file.backup.compression.map(|text| {
            text.parse::<FrameCompression>()
                .map_err(|e| usage(format!("could not read [backup] compression: {e}")))
        });
        let wal_compression = file.wal.compression.map(|text| {
            text.parse::<Compression>()
                .map_err(|e| usage(format!("could not read [wal] compression: {e}")))
        });
        Ok(Self {
            url: global.repository.clone().or(options.0),
            options: options.1.overridden_by(|name| std::env::var(name).ok()),
            cluster: global.cluster.clone().or(file.cluster.name),
            pgdata: global.pgdata.clone().or(file.cluster.pgdata),
            conninfo: global.conninfo.clone().or(file.cluster.conninfo),
            from: from.transpose()?,
            compression: compression.transpose()?,
            threads: file.backup.threads,
            wal_compression: wal_compression.transpose()?,
            prefetch_bytes: file.wal.prefetch_bytes,
        })
    }

    /// The repository's address.
    pub fn url(&self) -> Result<RepositoryUrl, Error> {
        let text = self.url.as_deref().ok_or_else(|| {
            Error::new(ErrorKind::Usage, "no repository given")
                .hint(format!("Name it with --repository URL, LEEWARD_REPOSITORY, or url under [repository] in {DEFAULT_FILE}."))
        })?;
        absolute(text).parse().map_err(|e| {
            Error::new(ErrorKind::Usage, "could not read the repository's URL")
                .because(Box::new(e) as Box<dyn std::error::Error + Send + Sync>)
        })
    }

    /// Opens the repository's store.
    pub fn store(&self) -> Result<Arc<dyn Store>, Error> {
        self.open(&self.options)
    }

    /// Opens it for somebody who has patience of their own: each answer may take `patience`, and an operation is tried
    /// again for twice as long.
    pub fn impatient_store(&self, patience: Duration) -> Result<Arc<dyn Store>, Error> {
        self.open(&StoreOptions {
            patience: patience.min(self.options.patience),
            retry_for: (patience * 2).min(self.options.retry_for),
            ..self.options.clone()
        })
    }

    fn open(&self, options: &StoreOptions) -> Result<Arc<dyn Store>, Error> {
        let url = self.url()?;
        store::open(&url, options).map_err(|e| {
            let hint = e.hint();
            let error = Error::new(ErrorKind::Usage, e.to_string());
            hint.map_or_else(
                || Error::new(ErrorKind::Usage, e.to_string()),
                |hint| error.hint(hint),
            )
        })
    }
}

/// A relative directory is meant from where the command was typed.
fn absolute(url: &str) -> String {
    if url.is_empty() || url.contains("://") || url.starts_with("file:") {
        return url.to_owned();
    }
    std::path::absolute(url).map_or_else(|_| url.to_owned(), |path| path.display().to_string())
}

/// Reads the file and lays the stage's file over it.
fn read(global: &Global) -> Result<File, Error> {
    let path = global
        .config
        .clone()
        .unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let pgdata = global.pgdata.as_deref();
    let mut table = match table(&path, pgdata)? {
        Some(table) => table,
        None if global.config.is_some() => {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("there is no configuration file \"{}\"", path.display()),
            ));
        }
        None => toml::Table::new(),
    };
    if let Some(stage) = &global.stage {
        let file = path.with_file_name(format!("{stage}.toml"));
        match self::table(&file, pgdata)? {
            Some(over) => merge(&mut table, over),
            None => {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!(
                        "stage \"{stage}\" has no configuration file \"{}\"",
                        file.display()
                    ),
                ));
            }
        }
    }
    table.try_into().map_err(|e: toml::de::Error| {
        Error::new(
            ErrorKind::Usage,
            format!(
                "could not make sense of \"{}\": {}",
                path.display(),
                e.message()
            ),
        )
    })
}

fn table(path: &Path, pgdata: Option<&Path>) -> Result<Option<toml::Table>, Error> {
    match read_text(path, pgdata)? {
        Ok(text) => text.parse().map(Some).map_err(|e: toml::de::Error| {
            let line = e
                .span()
                .map(|span| text[..span.start.min(text.len())].lines().count().max(1));
            let place = line
                .map(|line| format!(", line {line}"))
                .unwrap_or_default();
            // The offending line itself may hold a secret, so it is not shown.
            Error::new(
                ErrorKind::Usage,
                format!(
                    "could not read \"{}\"{place}: {}",
                    path.display(),
                    e.message()
                ),
            )
        }),
        Err(e) if e.kind() == IoErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::new(
            ErrorKind::Usage,
            format!("could not read \"{}\"", path.display()),
        )
        .because(e)),
    }
}

/// Reads a configuration file. Run by root, it must be nobody's to write but root's and the server's user's: it says where root
/// connects and writes.
fn read_text(path: &Path, pgdata: Option<&Path>) -> Result<std::io::Result<String>, Error> {
    let mut file = match OpenFile::open(path) {
        Ok(file) => file,
        Err(e) => return Ok(Err(e)),
    };
    if is_root()
        && let Ok(found) = file.metadata()
        && let Some(fix) = writable_by_others(&found, path, server_user(pgdata))
    {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "others than root and the server's user can write \"{}\"",
                path.display()
            ),
        )
        .because("run by root, leeward does what this file says")
        .hint(format!("Run as root: {fix}")));
    }
    let mut text = String::new();
    Ok(file.read_to_string(&mut text).map(|_| text))
}

/// The user that a server on this host runs as: the owner of the directory, where it is named on the command line, else the
/// one that packages make.
fn server_user(pgdata: Option<&Path>) -> Option<u32> {
    match pgdata {
        Some(pgdata) => std::fs::metadata(pgdata).ok().map(|found| found.uid()),
        None => ServerUser::by_name("postgres").map(|user| user.uid),
    }
}

/// The command that keeps others from writing a regular file, if they can.
fn writable_by_others(found: &Metadata, path: &Path, server_user: Option<u32>) -> Option<String> {
    if !found.is_file() {
        return None;
    }
    let file = quoted(&path.display().to_string());
    let owner_is_trusted = found.uid() == 0 || Some(found.uid()) == server_user;
    match (owner_is_trusted, found.mode() & 0o022) {
        (true, 0) => None,
        (true, _) => Some(format!("chmod go-w {file}")),
        (false, 0) => Some(format!("chown root {file}")),
        (false, _) => Some(format!("chown root {file} && chmod go-w {file}")),
    }
}

fn merge(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

fn store_options(section: RepositorySection) -> (Option<String>, StoreOptions) {
    let secret = |text: Option<SecretText>| text.map(|SecretText(text)| Secret::new(text));
    let default = StoreOptions::default();
    let options = StoreOptions {
        endpoint: section.endpoint,
        region: section.region,
        path_style: section.path_style,
        allow_http: section.allow_http.unwrap_or(default.allow_http),
        ca_certificate: section.ca_certificate,
        skip_tls_verification: section
            .skip_tls_verification
            .unwrap_or(default.skip_tls_verification),
        access_key_id: secret(section.access_key_id),
        secret_access_key: secret(section.secret_access_key),
        session_token: secret(section.session_token),
        profile: section.profile,
        credentials_file: section.credentials_file,
        storage_class: section.storage_class,
        part_bytes: section.part_size_bytes.unwrap_or(default.part_bytes),
        concurrency: section.concurrency.unwrap_or(default.concurrency),
        ..default
    };
    (section.url, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_overrides_single_settings() {
        let mut base: toml::Table = "[repository]\nurl = 'a'\nregion = 'r'\n[cluster]\nname = 'x'"
            .parse()
            .expect("base");
        merge(&mut base, "[repository]\nurl = 'b'".parse().expect("stage"));
        let file: File = base.try_into().expect("file");
        assert_eq!(file.repository.url.as_deref(), Some("b"));
        assert_eq!(file.repository.region.as_deref(), Some("r"));
        assert_eq!(file.cluster.name.as_deref(), Some("x"));
    }

    #[test]
    fn secrets_are_not_printed() {
        let file: File =
            toml::from_str("[repository]\nsecret_access_key = 'hunter2'").expect("file");
        assert!(!format!("{file:?}").contains("hunter2"));
    }

    #[test]
    fn who_may_write_what_root_believes() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("leeward.toml");
        std::fs::write(&path, "").expect("written");
        let owner = std::fs::metadata(&path).expect("it is there").uid();
        let fix = |mode, server_user| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
            let found = std::fs::metadata(&path).expect("it is there");
            writable_by_others(&found, &path, server_user)
        };
        for mode in [0o600, 0o644, 0o640, 0o755] {
            assert_eq!(fix(mode, Some(owner)), None, "{mode:o}");
        }
        for mode in [0o660, 0o646, 0o666, 0o777] {
            let command = fix(mode, Some(owner)).expect("a command");
            assert_eq!(command, format!("chmod go-w {}", path.display()));
        }
        if owner != 0 {
            let command = fix(0o644, Some(owner + 1)).expect("a command");
            assert_eq!(command, format!("chown root {}", path.display()));
        }
        let pipe = std::fs::metadata("/dev/null").expect("it is there");
        assert_eq!(
            writable_by_others(&pipe, Path::new("/dev/null"), None),
            None
        );
    }

    #[test]
    fn unknown_settings_are_refused() {
        assert!(toml::from_str::<File>("[repository]\nurll = 'a'").is_err());
    }
}
