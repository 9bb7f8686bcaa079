//! `leeward wal ...`: what becomes of each file of WAL.

use std::io;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use leeward_engine::error::{Error, ErrorKind};
use leeward_engine::event::Event;
use leeward_engine::wal::{
    GetMeans, GetOptions, GetOutcome, PrefetchCall, PrefetchOptions, PushOptions, get, prefetch,
    push,
};
use leeward_pgformat::SystemIdentifier;
use leeward_pgformat::wal_segment::is_wal_segment_name;
use leeward_postgres::server_user::is_root;
use leeward_repository::codec::Compression;
use leeward_repository::store::Store;

use super::{wal_list, wal_receive};
use crate::args::{Global, Wal};
use crate::config::{Config, DEFAULT_CLUSTER};
use crate::failure::Failure;
use crate::{output, server_user};

/// How much lies ready ahead of a server in recovery.
const PREFETCH_BYTES: u64 = 256 << 20;

/// The exit code of a `get` whose file does not exist: to the server the end of WAL.
const ABSENT: u8 = 1;

pub fn run(global: &Global, config: &Config, wal: Wal) -> Result<ExitCode, Failure> {
    let cluster = config
        .cluster
        .clone()
        .unwrap_or_else(|| DEFAULT_CLUSTER.to_owned());
    match wal {
        Wal::Push { path, compression } => {
            let repository = config.url()?;
            let store = root_store(config)?;
            server_user::work_as_owner_of_folder(&path, &repository)?;
            let options = PushOptions {
                repository,
                cluster,
                path,
                level: level(compression.or(config.wal_compression).unwrap_or_default())?,
            };
            let tell = |event: Event<'_>| {
                if let Event::Notice(text) = event {
                    output::say(&output::escaped(&text));
                }
            };
            let open = || store.clone().map_or_else(|| config.store(), Ok);
            let outcome = push(&open, &options, &tell)?;
            if global.verbose {
                output::say(&format!(
                    "{} files stored, {} of them were there already",
                    outcome.stored, outcome.present
                ));
            }
            Ok(ExitCode::SUCCESS)
        }
        Wal::Get {
            name,
            ends_before: Some(end),
            ..
        } if lies_behind(&name, &end) => {
            if global.verbose {
                output::say(&format!("\"{name}\" lies behind the recovery target"));
            }
            Ok(ExitCode::from(ABSENT))
        }
        Wal::Get {
            name,
            path,
            ends_before,
        } => {
            let repository = config.url()?;
            let store = root_store(config)?;
            server_user::work_as_owner_of_folder(&path, &repository)?;
            let ahead = config.prefetch_bytes.unwrap_or(PREFETCH_BYTES);
            let options = GetOptions {
                repository: repository.clone(),
                cluster,
                name,
                path,
                prefetch: ahead > 0,
                hole_is_known: ends_before.is_some(),
            };
            let means = GetMeans {
                open: &|| store.clone().map_or_else(|| config.store(), Ok),
                start: &|call| start(global, &repository.to_string(), &options.cluster, call),
            };
            match get(means, &options)? {
                GetOutcome::Found => Ok(ExitCode::SUCCESS),
                GetOutcome::Absent => {
                    if global.verbose {
                        output::say(&format!("\"{}\" does not exist", options.name));
                    }
                    Ok(ExitCode::from(ABSENT))
                }
            }
        }
        Wal::Receive(receive) => {
            let level = level(
                receive
                    .compression
                    .or(config.wal_compression)
                    .unwrap_or_default(),
            )?;
            wal_receive::run(global, config, &receive, level)
        }
        Wal::List => wal_list::run(global, config),
        Wal::Prefetch {
            folder,
            after,
            segment_size_bytes,
            system_identifier,
        } => {
            let options = PrefetchOptions {
                folder,
                after,
                segment_size_bytes,
                system_identifier: SystemIdentifier(system_identifier),
                ahead_bytes: config.prefetch_bytes.unwrap_or(PREFETCH_BYTES),
                cluster,
            };
            prefetch(&|| config.store(), &options)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The store, opened at once where root runs this: its credentials may be root's to read, and root is about to become the
/// server's user. A server's own calls open it only when they need it.
fn root_store(config: &Config) -> Result<Option<Arc<dyn Store>>, Error> {
    is_root().then(|| config.store()).transpose()
}

/// Whether `name` is `end` or a WAL segment behind it, on whatever timeline: the number follows the timeline's eight digits.
fn lies_behind(name: &str, end: &str) -> bool {
    is_wal_segment_name(name) && is_wal_segment_name(end) && name[8..] >= end[8..]
}

fn level(compression: Compression) -> Result<i32, Error> {
    match compression {
        Compression::Zstd { level } => Ok(level),
        other => Err(Error::new(
            ErrorKind::Usage,
            format!("WAL is stored as zstd, not as {other}"),
        )
        .hint("Choose zstd:1 to zstd:19.")),
    }
}

/// Starts this program once more, to fetch ahead. The server waits for the shell alone, but what is written to standard
/// error goes to its log, and it would keep pipes open: the process gets none of ours.
fn start(global: &Global, repository: &str, cluster: &str, call: &PrefetchCall) -> io::Result<()> {
    // The program as it runs, even if its file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.args(["--repository", repository, "--cluster", cluster]);
    if let Some(config) = &global.config {
        command.arg("--config").arg(config);
    }
    if let Some(stage) = &global.stage {
        command.args(["--stage", stage]);
    }
    command
        .args(["wal", "prefetch"])
        .arg(&call.folder)
        .arg(&call.after)
        .arg(call.segment_size_bytes.to_string())
        .arg(call.system_identifier.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // It outlives us; whoever adopts orphans will see to its end.
    command.spawn().map(drop)
}

/// What the server must not take for an absent file: exit codes from 1 to 125 of `restore_command` mean just that, and may
/// end its recovery (`RestoreArchivedFile`, xlogarchive.c). So of a `get`, and of whatever else was meant as one,
/// every failure has a code above.
pub fn may_be_restore_command(args: impl Iterator<Item = std::ffi::OsString>) -> bool {
    let mut words = args.skip(1).skip_while(|word| word != "wal");
    match words.next() {
        None => false,
        Some(_) => {
            // The last ones: "wal" was a name then.
            let others = [
                "push", "receive", "list", "prefetch", "backup", "show", "restore", "export",
                "frame",
            ];
            !words
                .next()
                .is_some_and(|word| others.iter().any(|other| word == *other))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_the_end() {
        let end = "000000010000000200000003";
        for (name, behind) in [
            ("000000010000000200000003", true),
            ("000000010000000300000000", true),
            ("000000020000000200000004", true),
            ("000000010000000200000002", false),
            ("000000020000000100000009", false),
            ("00000002.history", false),
        ] {
            assert_eq!(lies_behind(name, end), behind, "{name}");
        }
    }

    #[test]
    fn whatever_may_stand_for_get() {
        let may_be =
            |line: &str| may_be_restore_command(line.split(' ').map(std::ffi::OsString::from));
        for line in [
            "leeward wal get 1 2",
            "leeward wal gte 1 2",
            "leeward --quiet wal --quiet",
            "leeward wal",
        ] {
            assert!(may_be(line), "{line}");
        }
        for line in [
            "leeward",
            "leeward wal push x",
            "leeward backup --cluster x",
            "leeward --cluster wal backup",
        ] {
            assert!(!may_be(line), "{line}");
        }
    }
}
