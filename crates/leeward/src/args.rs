//! The command line, as it is typed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use leeward_postgres::backup_session::BackupFrom;
use leeward_repository::codec::Compression;

/// PostgreSQL backups from the sheltered side: taken on the standby, kept in object storage, restored anywhere
#[derive(Debug, Parser)]
#[command(
    name = "leeward",
    version,
    propagate_version = true,
    max_term_width = 110
)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, ClapArgs)]
pub struct Global {
    /// Where backups live: /path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "LEEWARD_REPOSITORY",
        help_heading = "Global options"
    )]
    pub repository: Option<String>,
    /// The cluster's name in the repository
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        help_heading = "Global options"
    )]
    pub cluster: Option<String>,
    /// The data directory of the running server
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "PGDATA",
        help_heading = "Global options"
    )]
    pub pgdata: Option<PathBuf>,
    /// How to connect, as libpq reads it; else PG* variables, else what DIR/postmaster.pid says
    #[arg(
        long,
        global = true,
        value_name = "STR",
        help_heading = "Global options"
    )]
    pub conninfo: Option<String>,
    /// The configuration file
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "LEEWARD_CONFIG",
        help_heading = "Global options"
    )]
    pub config: Option<PathBuf>,
    /// A second file beside it, NAME.toml, that overrides it
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "LEEWARD_STAGE",
        help_heading = "Global options"
    )]
    pub stage: Option<String>,
    /// Print one JSON object on standard output
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// How to show progress
    #[arg(
        long,
        global = true,
        value_name = "HOW",
        default_value = "auto",
        help_heading = "Global options"
    )]
    pub progress: ProgressMode,
    /// Say how long each step took
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub verbose: bool,
    /// Say nothing but errors
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// A bar on a terminal, lines elsewhere
    Auto,
    /// Lines
    Plain,
    /// Not at all
    None,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Back up the server that runs here
    Backup(Backup),
    /// List the backups in a repository
    List,
    /// Show one backup
    Show {
        /// An id, a unique prefix of one, or latest
        #[arg(default_value = "latest")]
        backup: String,
    },
    /// Restore a backup into an absent or empty directory
    Restore(Restore),
    /// Write a backup as tar archives that start without Leeward
    Export(Export),
    /// Archive WAL, and give it back
    #[command(subcommand)]
    Wal(Wal),
}

#[derive(Debug, Subcommand)]
pub enum Wal {
    /// Store a WAL file: for archive_command = 'leeward wal push %p'
    Push {
        /// The file, as the server names it: %p
        path: PathBuf,
    },
    /// Fetch a WAL file: for restore_command = 'leeward wal get %f %p'
    Get {
        /// The file's name: %f
        name: String,
        /// Where to put it: %p
        path: PathBuf,
    },
}

#[derive(Debug, ClapArgs)]
pub struct Backup {
    /// Which role the server must have: standby, prefer-standby or any
    #[arg(long, value_name = "ROLE")]
    pub from: Option<BackupFrom>,
    /// zstd, zstd:LEVEL (1 to 19), lz4 or none [default: zstd:3]
    #[arg(long, value_name = "HOW")]
    pub compression: Option<Compression>,
    /// Read the whole database, whatever earlier backups hold; today every backup does
    #[arg(long)]
    pub full: bool,
    /// Threads that read and compress [default: twice the cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

#[derive(Debug, ClapArgs)]
pub struct Restore {
    /// An id, a unique prefix of one, or latest
    #[arg(default_value = "latest")]
    pub backup: String,
    /// An absent or empty directory
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Put the tablespace that lay in OLD into NEW; may be given several times
    #[arg(long, value_name = "OLD=NEW", value_parser = mapping)]
    pub tablespace: Vec<(PathBuf, PathBuf)>,
    /// Threads that fetch and write [default: twice the cores; 12 for a bucket]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

#[derive(Debug, ClapArgs)]
pub struct Export {
    /// An id, a unique prefix of one, or latest
    #[arg(default_value = "latest")]
    pub backup: String,
    /// A directory for data.tar.zst and wal.tar.zst, or - for one archive on standard output
    #[arg(long, value_name = "DIR|-")]
    pub to: PathBuf,
}

/// Reads `OLD=NEW`; a backslash takes an equals sign of a path for itself, as in `pg_basebackup --tablespace-mapping`.
fn mapping(text: &str) -> Result<(PathBuf, PathBuf), String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' if letters.peek() == Some(&'=') => {
                letters.next();
                parts.last_mut().ok_or("empty")?.push('=');
            }
            '=' => parts.push(String::new()),
            other => parts.last_mut().ok_or("empty")?.push(other),
        }
    }
    match parts.as_slice() {
        [old, new] if !old.is_empty() && !new.is_empty() => {
            Ok((PathBuf::from(old), PathBuf::from(new)))
        }
        _ => Err("write it as OLD=NEW, two directories".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn tablespace_mappings() {
        assert_eq!(
            mapping("/a=/b"),
            Ok((PathBuf::from("/a"), PathBuf::from("/b")))
        );
        assert_eq!(
            mapping("/a\\=1=/b"),
            Ok((PathBuf::from("/a=1"), PathBuf::from("/b")))
        );
        for wrong in ["", "/a", "/a=", "=/b", "/a=/b=/c"] {
            assert!(mapping(wrong).is_err(), "{wrong}");
        }
    }
}
