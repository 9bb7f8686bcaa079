//! What can go wrong with a live server, and what to do about it.
//!
//! The variant is the kind: callers match on it to choose an exit code. Messages follow PostgreSQL's error style guide
//! (`doc/src/sgml/sources.sgml`): lower case, no full stop, names of objects in double quotes. No message carries a
//! password.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use leeward_pgformat::MajorVersion;

use crate::backup_session::BackupFrom;
use crate::server_facts::{MissingPrivilege, Role};

/// An error that the server reported, field by field (`src/include/postgres_ext.h`, `PG_DIAG_*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlError {
    /// What was being asked of the server, in words that follow "could not".
    pub during: String,
    /// `ERROR`, `FATAL` or `PANIC`, never translated.
    pub severity: String,
    /// The five characters of `src/backend/utils/errcodes.txt`; empty when libpq itself raised the error.
    pub sqlstate: String,
    /// The primary message.
    pub message: String,
    /// The server's detail line.
    pub detail: Option<String>,
    /// The server's own hint.
    pub hint: Option<String>,
}

/// Why nothing could be asked of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectFailure {
    /// Where the connection was to go: `host=... port=... dbname=... user=...`, without secrets.
    pub target: String,
    /// libpq's message; with several hosts, one line for each.
    pub message: String,
    /// The SQLSTATE, where the server answered at all.
    pub sqlstate: Option<String>,
    /// The server wanted a password and none was found.
    pub password_missing: bool,
    /// What is known about the server from its `postmaster.pid`, when that file chose the address.
    pub postmaster: Option<String>,
}

/// Everything this crate's server side can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection string cannot be used. The reason never repeats a part of it that might be a password.
    #[error("could not understand the connection string: {reason}")]
    InvalidConninfo {
        /// What libpq, or we, object to.
        reason: String,
    },
    /// Nothing names a host, and the data directory says that no server runs on it.
    #[error("no server is running on \"{}\": {reason}", pgdata.display())]
    NotRunning {
        /// The data directory.
        pgdata: PathBuf,
        /// How that was found out.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("could not {action} \"{}\": {source}", path.display())]
    Io {
        /// The verb: "read", "create".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// No session could be opened.
    #[error("could not connect to the server ({}): {}", .0.target, .0.message)]
    ConnectFailed(Box<ConnectFailure>),
    /// The session ended under our feet: the server stopped, crashed, or somebody ended the session.
    #[error("lost the connection to the server while trying to {during}: {message}")]
    ServerGone {
        /// What was being asked, in words that follow "could not".
        during: String,
        /// The last thing the server or libpq said.
        message: String,
        /// The SQLSTATE of that, where the server still spoke.
        sqlstate: Option<String>,
    },
    /// The server did not answer in time; the statement was cancelled.
    #[error("could not {during}: the server did not answer within {} s", after.as_secs_f32())]
    Timeout {
        /// What was being asked.
        during: String,
        /// How long we waited.
        after: Duration,
    },
    /// The server refused a statement.
    #[error("could not {}: {}{}", .0.during, .0.message, .0.detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Sql(Box<SqlError>),
    /// The policy does not let this server be backed up in its present role. Not a failure: exit code 6.
    #[error("declined: this server is a {role}, and backups are taken from \"{policy}\"{reason}")]
    Declined {
        /// What `backup_from` says.
        policy: BackupFrom,
        /// What the server is.
        role: Role,
        /// More about why, empty or beginning with ": ".
        reason: String,
    },
    /// The server's major version is none of [`MajorVersion::ALL`].
    #[error(
        "the server runs PostgreSQL {version}, and this program knows {} to {}",
        MajorVersion::OLDEST,
        MajorVersion::NEWEST
    )]
    UnsupportedVersion {
        /// `server_version` as the server spells it.
        version: String,
    },
    /// The server was compiled with another page size.
    #[error("the server uses pages of {block_size_bytes} bytes, and this program knows 8192")]
    UnsupportedBlockSize {
        /// `block_size`, in bytes.
        block_size_bytes: u32,
    },
    /// The role may not do what a backup needs.
    #[error("role \"{user}\" lacks what a backup needs: {}", list(missing))]
    MissingPrivileges {
        /// The role of the session.
        user: String,
        /// What is missing, each with the statement that grants it.
        missing: Vec<MissingPrivilege>,
    },
    /// Every replication slot of the server is taken (or none is allowed).
    #[error(
        "no replication slot is free: all {max_replication_slots} allowed by max_replication_slots are in use"
    )]
    NoFreeSlot {
        /// The server's `max_replication_slots`.
        max_replication_slots: u32,
    },
    /// `wal_level` writes too little WAL to recover from.
    #[error("wal_level is \"{wal_level}\", which writes too little WAL for a backup")]
    WalLevelTooLow {
        /// The server's `wal_level`.
        wal_level: String,
    },
    /// The server gave up the WAL that the backup still needs.
    #[error(
        "the server no longer keeps the WAL that this backup needs: slot \"{slot}\" is {state}"
    )]
    SlotLost {
        /// The temporary slot.
        slot: String,
        /// `wal_status`, or "gone".
        state: String,
    },
    /// The standby became a primary during the backup, which ends it (`xlog.c`, `do_pg_backup_stop`).
    #[error("the standby was promoted while it was being backed up")]
    Promoted,
    /// The primary ran with `full_page_writes = off`, so that torn pages could not be mended (`xlog.c`).
    #[error(
        "the primary wrote WAL with full_page_writes off {when}, so the copied pages cannot be trusted"
    )]
    FullPageWritesOff {
        /// "since the last restartpoint" or "during the backup".
        when: &'static str,
    },
    /// The server answered with something that no supported version answers.
    #[error("could not {during}: unexpected answer from the server: {problem}")]
    UnexpectedAnswer {
        /// What was being asked.
        during: String,
        /// What is odd about the answer.
        problem: String,
    },
    /// A program of a PostgreSQL installation failed, or could not be started.
    #[error("could not run \"{}\": {problem}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// Its last words, or the system's.
        problem: String,
    },
    /// A throwaway server did not reach a state in time.
    #[error("the server on \"{}\" {expected} within {} s: {state}", data_directory.display(), after.as_secs_f32())]
    DeadlinePassed {
        /// The server's data directory.
        data_directory: PathBuf,
        /// What did not happen: "did not accept connections".
        expected: &'static str,
        /// How long we waited.
        after: Duration,
        /// What was seen instead, with the end of the server's log.
        state: String,
    },
}

impl Error {
    /// The SQLSTATE, where the server gave one.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Error::Sql(error) => Some(error.sqlstate.as_str()).filter(|state| !state.is_empty()),
            Error::ConnectFailed(failure) => failure.sqlstate.as_deref(),
            Error::ServerGone { sqlstate, .. } => sqlstate.as_deref(),
            _ => None,
        }
    }

    /// What to do next, in one or a few lines, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::InvalidConninfo { .. } => {
                "write keyword=value pairs, or postgresql://user@host:port/dbname; quote values that hold spaces with \
                 single quotes, percent-encode @, / and : inside a URI, and keep the password in a password file"
            }
            Error::NotRunning { .. } => {
                "start the server, or name it with --conninfo if it runs elsewhere"
            }
            Error::ConnectFailed(failure) => return connect_hint(failure),
            Error::ServerGone { sqlstate, .. } if sqlstate.as_deref() == Some("57P01") => {
                "an administrator ended the session or stopped the server, or the server took back the WAL that the \
                 slot held (max_slot_wal_keep_size, idle_replication_slot_timeout): its log says which"
            }
            Error::ServerGone { .. } => "see the server's log, then run the command again",
            Error::Timeout { .. } => {
                "see whether the server is overloaded or its disk hangs, then run the command again"
            }
            // Several lines are for lists of our own.
            Error::Sql(error) => return error.hint.as_ref().map(|hint| hint.replace('\n', " ")),
            Error::Declined { .. } => {
                "nothing is wrong where a standby of this cluster runs the same command; to back up here, set \
                 backup_from (or --from) to \"any\""
            }
            Error::MissingPrivileges { missing, .. } => {
                let fixes: Vec<&str> = missing
                    .iter()
                    .map(|privilege| privilege.fix.as_str())
                    .collect();
                return Some(format!(
                    "run on the primary, as a superuser:\n{}",
                    fixes.join("\n")
                ));
            }
            Error::NoFreeSlot { .. } => {
                "drop a slot that nobody uses (see pg_replication_slots), or raise max_replication_slots and restart"
            }
            Error::WalLevelTooLow { .. } => "set wal_level = replica and restart",
            Error::SlotLost { .. } => {
                "raise max_slot_wal_keep_size so that it covers the WAL written during a backup"
            }
            Error::Promoted => "run the command again on a standby, or with --from any",
            Error::FullPageWritesOff { .. } => {
                "set full_page_writes = on on the primary, run CHECKPOINT there, wait until the standby has replayed it, \
                 and run the command again"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

fn connect_hint(failure: &ConnectFailure) -> Option<String> {
    if failure.password_missing {
        return Some(
            "put the password in a password file (~/.pgpass, mode 0600) or in PGPASSWORD"
                .to_owned(),
        );
    }
    let hint = match failure.sqlstate.as_deref() {
        // ERRCODE_INVALID_PASSWORD
        Some("28P01") => "check the password in the password file, PGPASSWORD or the service file",
        // ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION
        Some("28000") => {
            "let this role connect in the server's pg_hba.conf, or create it, or allow it to log in"
        }
        // ERRCODE_CANNOT_CONNECT_NOW
        Some("57P03") => {
            "the server is starting, stopping or not yet consistent, or hot_standby is off: wait, and see its log"
        }
        // ERRCODE_TOO_MANY_CONNECTIONS
        Some("53300") => {
            "free a connection or raise max_connections; a role with pg_use_reserved_connections gets in (16 and later)"
        }
        // ERRCODE_UNDEFINED_DATABASE
        Some("3D000") => "name an existing database with dbname=, for example dbname=postgres",
        Some(_) => return None,
        None => return failure.postmaster.clone(),
    };
    Some(hint.to_owned())
}

fn list(missing: &[MissingPrivilege]) -> String {
    let names: Vec<&str> = missing
        .iter()
        .map(|privilege| privilege.what.as_str())
        .collect();
    names.join("; ")
}
