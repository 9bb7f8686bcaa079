//! The command line, as it is typed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use leeward_engine::recovery::TimelineSelection;
use leeward_pgformat::{Lsn, TimelineId};
use leeward_postgres::backup_session::BackupFrom;
use leeward_repository::codec::{Compression, FrameCompression};

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
    /// Look into a pack of a backup: recovery by hand
    #[command(subcommand)]
    Frame(Frame),
}

#[derive(Debug, Subcommand)]
pub enum Frame {
    /// What each frame of a pack holds
    List {
        /// An id, a unique prefix of one, or latest
        backup: String,
        /// The pack's number, from 0
        pack: u32,
    },
    /// Write the plain bytes of a frame to standard output: pages as the server had them
    Cat {
        /// An id, a unique prefix of one, or latest
        backup: String,
        /// The pack's number, from 0
        pack: u32,
        /// The frame's number, from 0
        frame: u32,
    },
}

#[derive(Debug, Subcommand)]
pub enum Wal {
    /// Store a WAL file: for archive_command = 'leeward wal push %p'
    Push {
        /// The file, as the server names it: %p
        path: PathBuf,
        /// zstd, or zstd:LEVEL (1 to 19) [default: zstd:3]
        #[arg(long, value_name = "HOW")]
        compression: Option<Compression>,
    },
    /// Fetch a WAL file: for restore_command = 'leeward wal get %f %p'
    Get {
        /// The file's name: %f
        name: String,
        /// Where to put it: %p
        path: PathBuf,
        /// Say that this WAL segment and all behind it do not exist; restore writes it where a hole lies behind its target
        #[arg(long, value_name = "SEGMENT", hide = true)]
        ends_before: Option<String>,
    },
    /// Stream WAL from a standby (or a primary) until stopped
    Receive(WalReceive),
    /// What WAL is held, what is missing, and which moments can be recovered to
    List,
    /// Fetch ahead of a server in recovery: get starts this by itself
    #[command(hide = true)]
    Prefetch {
        folder: PathBuf,
        after: String,
        segment_size_bytes: u64,
        system_identifier: u64,
    },
}

#[derive(Debug, ClapArgs)]
pub struct WalReceive {
    /// The replication slot that keeps the WAL on the server until it is stored; made where there is none
    #[arg(long, value_name = "NAME", default_value = "leeward_wal")]
    pub slot: String,
    /// How long WAL waits for more before it is stored as a piece of its segment
    #[arg(long, value_name = "MS", default_value_t = 800)]
    pub piece_interval: u64,
    /// Where WAL lies on its way: room for five WAL segments, not in memory [default: TMPDIR, else /var/tmp]
    #[arg(long, value_name = "DIR")]
    pub buffer: Option<PathBuf>,
    /// zstd, or zstd:LEVEL (1 to 19) [default: zstd:3]
    #[arg(long, value_name = "HOW")]
    pub compression: Option<Compression>,
}

#[derive(Debug, ClapArgs)]
pub struct Backup {
    /// Which role the server must have: standby, prefer-standby or any
    #[arg(long, value_name = "ROLE")]
    pub from: Option<BackupFrom>,
    /// pages, pages+zstd:LEVEL (1 to 19), pages+lz4, zstd, zstd:LEVEL, lz4 or none [default: pages]
    #[arg(long, value_name = "HOW")]
    pub compression: Option<FrameCompression>,
    /// Read the whole database, whatever earlier backups hold; today every backup does
    #[arg(long)]
    pub full: bool,
    /// Threads that read and compress [default: twice the cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

#[derive(Debug, ClapArgs)]
pub struct Restore {
    /// An id or a unique prefix of one [default: the newest that fits]
    pub backup: Option<String>,
    /// An absent or empty directory
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    #[command(flatten)]
    pub target: Target,
    /// Recover along this timeline: latest, current or a number [default: latest]
    #[arg(long, value_name = "TLI", value_parser = timeline)]
    pub target_timeline: Option<TimelineSelection>,
    /// Stop just before the target, and not with it (for a time, an LSN or a transaction)
    #[arg(long)]
    pub target_exclusive: bool,
    /// What the server does when it gets there [default: promote]
    #[arg(long, value_name = "ACTION", requires = "Target")]
    pub target_action: Option<TargetAction>,
    /// What the server becomes
    #[arg(long = "as", value_name = "ROLE", default_value = "primary")]
    pub role: Role,
    /// Where a standby streams from, as libpq reads it
    #[arg(long, value_name = "STR")]
    pub primary_conninfo: Option<String>,
    /// The replication slot there
    #[arg(long, value_name = "NAME", requires = "primary_conninfo")]
    pub primary_slot_name: Option<String>,
    /// Put the tablespace that lay in OLD into NEW; may be given several times
    #[arg(long, value_name = "OLD=NEW", value_parser = mapping)]
    pub tablespace: Vec<(PathBuf, PathBuf)>,
    /// Threads that fetch and write [default: twice the cores; 12 for a bucket]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// Where recovery is to stop; without any of them, at the end of the WAL that is held.
#[derive(Debug, ClapArgs)]
#[group(multiple = false)]
pub struct Target {
    /// Recover to this moment: "2026-11-22 03:00 Europe/Vienna", "10 minutes ago", "yesterday 23:15"
    #[arg(long, value_name = "TIME")]
    pub target_time: Option<String>,
    /// Recover to this LSN: 16/B374D848
    #[arg(long, value_name = "LSN")]
    pub target_lsn: Option<Lsn>,
    /// Recover to the end of this transaction
    #[arg(long, value_name = "XID")]
    pub target_xid: Option<u64>,
    /// Recover to this restore point (pg_create_restore_point)
    #[arg(long, value_name = "NAME")]
    pub target_name: Option<String>,
    /// Recover no further than to where the backup is consistent
    #[arg(long)]
    pub target_immediate: bool,
}

/// What the server does when it has recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TargetAction {
    /// It stays in recovery and answers queries
    Pause,
    /// It opens for writes, on a new timeline
    Promote,
    /// It stops
    Shutdown,
}

/// What a restored server becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// A server of its own
    Primary,
    /// A standby
    Standby,
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

/// Reads a timeline as PostgreSQL does, in decimal or hexadecimal digits (`check_recovery_target_timeline`,
/// src/backend/access/transam/xlogrecovery.c). A number with zeros before it, as in the name of a file, PostgreSQL takes for
/// an octal one, and nobody means that.
fn timeline(text: &str) -> Result<TimelineSelection, String> {
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let number = match (text, hexadecimal) {
        ("latest", _) => return Ok(TimelineSelection::Latest),
        ("current", _) => return Ok(TimelineSelection::Current),
        (_, Some(digits)) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => {
            u32::from_str_radix(digits, 16).ok()
        }
        _ if text.len() > 1
            && text.starts_with('0')
            && text.bytes().all(|digit| digit.is_ascii_hexdigit()) =>
        {
            let digits = text.trim_start_matches('0');
            return Err(format!(
                "write 0x{digits} for the timeline of a file whose name begins with {text}, or its number in decimal digits without zeros before it"
            ));
        }
        _ if text.bytes().all(|digit| digit.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    };
    match number {
        Some(number @ 1..) => Ok(TimelineSelection::Number(TimelineId(number))),
        _ => Err("write latest, current, or a timeline's number".to_owned()),
    }
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
    fn timelines() {
        assert_eq!(timeline("latest"), Ok(TimelineSelection::Latest));
        assert_eq!(timeline("3"), Ok(TimelineSelection::Number(TimelineId(3))));
        for (text, number) in [("0x10", 16), ("0XfF", 255), ("4294967295", u32::MAX)] {
            let expected = Ok(TimelineSelection::Number(TimelineId(number)));
            assert_eq!(timeline(text), expected);
        }
        for wrong in [
            "",
            "0",
            "-1",
            "+1",
            "newest",
            "0x",
            "0x0",
            "4294967296",
            "1 ",
        ] {
            assert!(timeline(wrong).is_err(), "{wrong}");
        }
        for copied in ["00000010", "010", "0000000A"] {
            let told = timeline(copied).expect_err("sixteen or eight?");
            let digits = copied.trim_start_matches('0');
            assert!(told.contains(&format!("0x{digits}")), "{told}");
        }
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
