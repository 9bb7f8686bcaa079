//! One SQL session that keeps a server in backup mode from the first page to the last byte of WAL.
//!
//! The order is rule 4 of the design: the slot reserves WAL, then the backup starts, the caller copies pages, the backup
//! stops without waiting for anything, and the slot stays until the caller has copied the WAL up to the stop LSN. The
//! backup mode and the slot belong to the session: when it ends, however it ends, the server forgets both (`xlog.c`,
//! `do_pg_abort_backup`; `slot.c`, `ReplicationSlotCleanup`).

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use leeward_pgformat::{Lsn, MajorVersion, TimelineId};

use crate::catalogs::Catalogs;
use crate::connection::{CancelHandle, Connection, unexpected};
use crate::error::{Error, SqlError};
use crate::server_facts::{Role, ServerFacts, read_replay_state};

/// Longest wait for the queries that only look.
const PATIENCE: Duration = Duration::from_secs(20);

/// The deadline of `pg_backup_start`: its restartpoint or checkpoint writes every dirty page of shared buffers.
const START_PATIENCE: Duration = Duration::from_secs(3600);

/// The deadline of `pg_backup_stop`, which waits for no archiving.
const STOP_PATIENCE: Duration = Duration::from_secs(600);

/// SQLSTATE of "object not in prerequisite state" (`errcodes.txt`).
const NOT_IN_PREREQUISITE_STATE: &str = "55000";
/// SQLSTATE of "configuration limit exceeded".
const CONFIGURATION_LIMIT_EXCEEDED: &str = "53400";

/// Which servers may be backed up: `backup_from` in the configuration, `--from` on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupFrom {
    /// Standbys only.
    #[default]
    Standby,
    /// A primary too, unless a standby is attached to it.
    PreferStandby,
    /// Any server.
    Any,
}

impl BackupFrom {
    /// Whether a server of this role may be backed up, as far as the role alone decides.
    ///
    /// # Errors
    /// [`Error::Declined`].
    pub fn check(self, role: Role) -> Result<(), Error> {
        if self == BackupFrom::Standby && role == Role::Primary {
            return Err(Error::Declined {
                policy: self,
                role,
                reason: String::new(),
            });
        }
        Ok(())
    }

    /// As [`BackupFrom::check`], with the standbys attached to a primary.
    ///
    /// # Errors
    /// [`Error::Declined`].
    pub fn check_server(self, facts: &ServerFacts) -> Result<(), Error> {
        self.check(facts.role)?;
        if self == BackupFrom::PreferStandby
            && facts.role == Role::Primary
            && facts.attached_standbys > 0
        {
            let reason = format!(": {} streaming from it", standbys(facts.attached_standbys));
            return Err(Error::Declined {
                policy: self,
                role: facts.role,
                reason,
            });
        }
        Ok(())
    }
}

fn standbys(count: u32) -> String {
    if count == 1 {
        "a standby is".to_owned()
    } else {
        format!("{count} standbys are")
    }
}

impl fmt::Display for BackupFrom {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            BackupFrom::Standby => "standby",
            BackupFrom::PreferStandby => "prefer-standby",
            BackupFrom::Any => "any",
        })
    }
}

/// A word that is no [`BackupFrom`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not one of \"standby\", \"prefer-standby\" and \"any\"")]
pub struct UnknownBackupFrom(String);

impl FromStr for BackupFrom {
    type Err = UnknownBackupFrom;

    fn from_str(text: &str) -> Result<Self, UnknownBackupFrom> {
        match text {
            "standby" => Ok(BackupFrom::Standby),
            "prefer-standby" => Ok(BackupFrom::PreferStandby),
            "any" => Ok(BackupFrom::Any),
            other => Err(UnknownBackupFrom(other.to_owned())),
        }
    }
}

/// How the backup began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupStart {
    /// Recovery of the backup begins here: the redo LSN of the checkpoint or restartpoint.
    pub start_lsn: Lsn,
    /// The timeline of that checkpoint. The backup label says it again, and is the last word.
    pub timeline: TimelineId,
    /// What the server was.
    pub role: Role,
    /// The server's clock, in milliseconds since 1970.
    pub started_at_epoch_ms: i64,
    /// The slot holds WAL from here; never later than `start_lsn`.
    pub slot_restart_lsn: Lsn,
}

/// Where the server is, during the backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Replayed up to here on a standby, flushed up to here on a primary.
    pub replay_lsn: Lsn,
    /// Replay stands still between two records, since somebody paused it.
    pub is_paused: bool,
    /// Received up to here by streaming.
    pub receive_lsn: Option<Lsn>,
    /// WAL received and not yet replayed, in bytes.
    pub replay_lag_bytes: u64,
    /// As [`crate::server_facts::ReplayState::lag`].
    pub replay_lag: Option<Duration>,
    /// The slot holds WAL from here.
    pub slot_restart_lsn: Option<Lsn>,
    /// The server may remove the slot's WAL at its next checkpoint (`wal_status` is "unreserved").
    pub wal_at_risk: bool,
    /// The server's clock, in milliseconds since 1970.
    pub server_time_epoch_ms: i64,
    /// The newest timeline that the control file knows.
    pub timeline: TimelineId,
}

/// What the server says at the end, byte for byte what it wants to find in the restored directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupStop {
    /// The backup is consistent once recovery has come this far.
    pub stop_lsn: Lsn,
    /// The text of `backup_label`.
    pub backup_label: String,
    /// The text of `tablespace_map`; absent when there are no tablespaces.
    pub tablespace_map: Option<String>,
    /// The server's clock, in milliseconds since 1970.
    pub stopped_at_epoch_ms: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Copying,
    Stopped,
}

/// A running backup. Dropping it at any moment closes the connection: the server leaves backup mode, if it was in it,
/// and drops the slot.
#[derive(Debug)]
pub struct BackupSession {
    connection: Connection,
    facts: ServerFacts,
    started: BackupStart,
    slot: String,
    phase: Phase,
}

impl BackupSession {
    /// Looks at the server, reserves WAL and starts the backup. `label` is for people and ends up in the backup label
    /// (1024 bytes at most). With a fast checkpoint this takes as long as the server needs to write its dirty pages;
    /// [`START_PATIENCE`] limits it.
    ///
    /// # Errors
    /// In this order: [`Error::UnsupportedVersion`], [`Error::UnsupportedBlockSize`], [`Error::WalLevelTooLow`],
    /// [`Error::Declined`], [`Error::MissingPrivileges`], [`Error::NoFreeSlot`], [`Error::FullPageWritesOff`], and
    /// whatever a query may fail with.
    pub fn start(
        mut connection: Connection,
        label: &str,
        from: BackupFrom,
    ) -> Result<BackupSession, Error> {
        let facts = ServerFacts::read(&mut connection)?;
        facts.check_supported()?;
        from.check_server(&facts)?;
        facts.check_privileges()?;
        let slot = slot_name(connection.backend_pid());
        let slot_restart_lsn = reserve_wal(&mut connection, &slot, &facts)?;
        let start_lsn = start_backup(&mut connection, label, &facts)?;
        if slot_restart_lsn > start_lsn {
            let problem = format!(
                "the slot holds WAL from {slot_restart_lsn}, the backup starts at {start_lsn}"
            );
            return Err(unexpected("reserve WAL", &problem));
        }
        let sql = "SELECT timeline_id, (extract(epoch FROM clock_timestamp()) * 1000)::int8 FROM pg_control_checkpoint()";
        let rows = connection.query_during("read the checkpoint's timeline", sql, &[], PATIENCE)?;
        let started = BackupStart {
            start_lsn,
            timeline: TimelineId(rows.parse(0, 0)?),
            role: facts.role,
            started_at_epoch_ms: rows.parse(0, 1)?,
            slot_restart_lsn,
        };
        Ok(BackupSession {
            connection,
            facts,
            started,
            slot,
            phase: Phase::Copying,
        })
    }

    /// What was found out about the server before the start.
    pub fn facts(&self) -> &ServerFacts {
        &self.facts
    }

    /// How the backup began.
    pub fn started(&self) -> &BackupStart {
        &self.started
    }

    /// The temporary slot's name.
    pub fn slot(&self) -> &str {
        &self.slot
    }

    /// Reads the shared catalogs.
    ///
    /// # Errors
    /// As [`Catalogs::read`].
    pub fn catalogs(&mut self) -> Result<Catalogs, Error> {
        Catalogs::read(&mut self.connection)
    }

    /// Asks where the server is. About once a second is enough to slow down for a lagging standby and to notice
    /// within a second that the backup is lost.
    ///
    /// # Errors
    /// [`Error::Promoted`] when the standby became a primary before [`BackupSession::stop`], [`Error::SlotLost`] when
    /// the WAL is no longer held, [`Error::ServerGone`], [`Error::Timeout`] after 20 s without an answer.
    pub fn position(&mut self) -> Result<Position, Error> {
        let during = "ask for the server's position";
        let sql = "SELECT s.restart_lsn, s.wal_status, pg_is_in_recovery() \
                   FROM (SELECT $1::text AS name) n LEFT JOIN pg_replication_slots s ON s.slot_name = n.name::name";
        let rows = self
            .connection
            .query_during(during, sql, &[Some(&self.slot)], PATIENCE)?;
        let in_recovery = rows.is_true(0, 2);
        if self.started.role == Role::Standby && !in_recovery && self.phase == Phase::Copying {
            return Err(Error::Promoted);
        }
        let status = rows.get(0, 1);
        if status.is_none_or(|status| status == "lost") {
            let state = status.unwrap_or("gone").to_owned();
            return Err(Error::SlotLost {
                slot: self.slot.clone(),
                state,
            });
        }
        let wal_at_risk = status == Some("unreserved");
        let slot_restart_lsn = rows.parse_optional(0, 0)?;
        let replay = read_replay_state(&mut self.connection, PATIENCE)?;
        Ok(Position {
            replay_lsn: replay.lsn,
            is_paused: replay.is_paused,
            receive_lsn: replay.receive_lsn,
            replay_lag_bytes: replay.lag_bytes,
            replay_lag: replay.lag,
            slot_restart_lsn,
            wal_at_risk,
            server_time_epoch_ms: replay.server_time_epoch_ms,
            timeline: replay.timeline,
        })
    }

    /// Ends backup mode without waiting for any archiving. The slot stays.
    ///
    /// # Errors
    /// [`Error::Promoted`], [`Error::FullPageWritesOff`] when the primary ran without full page writes meanwhile,
    /// [`Error::ServerGone`]. After any of them the backup is worth nothing.
    pub fn stop(&mut self) -> Result<BackupStop, Error> {
        let during = "stop the backup";
        if self.phase == Phase::Stopped {
            return Err(unexpected(during, "it was stopped before"));
        }
        let function = match self.facts.version.major {
            Some(MajorVersion::V14) => {
                "pg_stop_backup(exclusive => false, wait_for_archive => false)"
            }
            _ => "pg_backup_stop(wait_for_archive => false)",
        };
        let sql = format!(
            "SELECT lsn, labelfile, spcmapfile, (extract(epoch FROM clock_timestamp()) * 1000)::int8 FROM {function}"
        );
        let rows = match self
            .connection
            .query_during(during, &sql, &[], STOP_PATIENCE)
        {
            Ok(rows) => rows,
            Err(Error::Sql(error)) => return Err(self.explain(error, "during the backup")),
            Err(error) => return Err(error),
        };
        self.phase = Phase::Stopped;
        Ok(BackupStop {
            stop_lsn: rows.parse(0, 0)?,
            backup_label: rows.text(0, 1)?.to_owned(),
            tablespace_map: rows
                .get(0, 2)
                .filter(|map| !map.is_empty())
                .map(str::to_owned),
            stopped_at_epoch_ms: rows.parse(0, 3)?,
        })
    }

    /// Lets the server remove the WAL it held, after the caller has copied it, and ends the session.
    ///
    /// # Errors
    /// Those of [`Connection::query`]. The slot is gone in any case once the session has ended.
    pub fn finish(mut self) -> Result<(), Error> {
        let sql = "SELECT pg_drop_replication_slot($1)";
        self.connection
            .query_during(
                "drop the temporary slot",
                sql,
                &[Some(&self.slot)],
                PATIENCE,
            )
            .map(drop)
    }

    /// What cancels a running [`BackupSession::stop`] from another thread.
    ///
    /// # Errors
    /// As [`Connection::cancel_handle`].
    pub fn cancel_handle(&self) -> Result<CancelHandle, Error> {
        self.connection.cancel_handle()
    }

    fn explain(&mut self, error: Box<SqlError>, when: &'static str) -> Error {
        explain(&mut self.connection, self.facts.role, error, when)
    }
}

/// On a standby, two things put a backup out of its prerequisite state, and only one of them leaves it a standby
/// (`xlog.c`, `do_pg_backup_start` and `do_pg_backup_stop`). Message texts are translated and prove nothing.
fn explain(
    connection: &mut Connection,
    role: Role,
    error: Box<SqlError>,
    when: &'static str,
) -> Error {
    if role == Role::Primary || error.sqlstate != NOT_IN_PREREQUISITE_STATE {
        return Error::Sql(error);
    }
    match connection.query_during(
        "ask for the server's role",
        "SELECT pg_is_in_recovery()",
        &[],
        PATIENCE,
    ) {
        Ok(rows) if rows.is_true(0, 0) => Error::FullPageWritesOff { when },
        Ok(_) => Error::Promoted,
        Err(_) => Error::Sql(error),
    }
}

/// Lower-case letters, digits and underscores (`slot.c`, `ReplicationSlotValidateName`); the process number leads from
/// `pg_replication_slots` to the session.
fn slot_name(backend_pid: i32) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("leeward_{backend_pid}_{:08x}", now.subsec_nanos())
}

fn reserve_wal(connection: &mut Connection, slot: &str, facts: &ServerFacts) -> Result<Lsn, Error> {
    let max_replication_slots = facts.settings.max_replication_slots;
    if max_replication_slots == 0 {
        return Err(Error::NoFreeSlot {
            max_replication_slots,
        });
    }
    let during = "create a temporary replication slot";
    let sql = "SELECT lsn FROM pg_create_physical_replication_slot($1, immediately_reserve => true, temporary => true)";
    match connection.query_during(during, sql, &[Some(slot)], PATIENCE) {
        Ok(rows) => rows.parse(0, 0),
        Err(error) if error.sqlstate() == Some(CONFIGURATION_LIMIT_EXCEEDED) => {
            Err(Error::NoFreeSlot {
                max_replication_slots,
            })
        }
        Err(error) => Err(error),
    }
}

fn start_backup(
    connection: &mut Connection,
    label: &str,
    facts: &ServerFacts,
) -> Result<Lsn, Error> {
    let sql = match facts.version.major {
        Some(MajorVersion::V14) => "SELECT pg_start_backup($1, fast => true, exclusive => false)",
        _ => "SELECT pg_backup_start($1, fast => true)",
    };
    match connection.query_during("start the backup", sql, &[Some(label)], START_PATIENCE) {
        Ok(rows) => rows.parse(0, 0),
        Err(Error::Sql(error)) => Err(explain(
            connection,
            facts.role,
            error,
            "since the last restartpoint",
        )),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_written_as_it_is_read() {
        for policy in [
            BackupFrom::Standby,
            BackupFrom::PreferStandby,
            BackupFrom::Any,
        ] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert!("primary".parse::<BackupFrom>().is_err());
    }

    #[test]
    fn only_the_strict_policy_declines_by_role_alone() {
        assert!(matches!(
            BackupFrom::Standby.check(Role::Primary),
            Err(Error::Declined { .. })
        ));
        assert!(BackupFrom::Standby.check(Role::Standby).is_ok());
        assert!(BackupFrom::PreferStandby.check(Role::Primary).is_ok());
        assert!(BackupFrom::Any.check(Role::Primary).is_ok());
    }

    #[test]
    fn a_slots_name_is_one_the_server_accepts() {
        let name = slot_name(2_147_483_647);
        assert!(name.len() < 64, "{name}");
        assert!(
            name.bytes()
                .all(|byte| byte == b'_' || byte.is_ascii_lowercase() || byte.is_ascii_digit()),
            "{name}"
        );
    }
}
