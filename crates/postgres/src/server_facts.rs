//! What a backup has to know about a server, read in a handful of queries at its start.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use leeward_pgformat::{Lsn, MajorVersion, Oid, SystemIdentifier, TimelineId, WalSegmentSize};

use crate::connection::{Connection, Rows, unexpected};
use crate::error::Error;

/// What the queries of this module were for, in errors.
const DURING: &str = "read the server's settings";

/// Longest wait for one of these queries: they touch memory and `pg_control` only.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a server is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It writes WAL of its own.
    Primary,
    /// It is in recovery (`pg_is_in_recovery()`).
    Standby,
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Role::Primary => "primary",
            Role::Standby => "standby",
        })
    }
}

/// The version, as a number and as the server spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerVersion {
    /// `server_version_num`: 150018 for 15.18.
    pub number: i32,
    /// `server_version`: "15.18 (Debian 15.18-0+deb12u1)".
    pub text: String,
    /// The major version, where this program knows it.
    pub major: Option<MajorVersion>,
}

/// A tablespace other than `pg_default` and `pg_global`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID, which is the name in `pg_tblspc`.
    pub oid: Oid,
    /// Its name in SQL.
    pub name: String,
    /// Where it lies (`pg_tablespace_location`): absolute, or relative to the data directory when it was made in place
    /// (`allow_in_place_tablespaces`).
    pub location: PathBuf,
}

impl Tablespace {
    /// Whether it is a directory in `pg_tblspc` instead of a symbolic link.
    pub fn is_in_place(&self) -> bool {
        !self.location.is_absolute()
    }
}

/// How far the server has come in the WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayState {
    /// Replayed up to here on a standby, flushed up to here on a primary.
    pub lsn: Lsn,
    /// Replay stands still between two records, since somebody paused it.
    pub is_paused: bool,
    /// Received by streaming up to here; absent on a primary and on a standby that was never streamed to.
    pub receive_lsn: Option<Lsn>,
    /// WAL received and not replayed yet, in bytes.
    pub lag_bytes: u64,
    /// How old the newest replayed transaction is; zero when everything received is replayed. On a standby that is fed
    /// by archive alone it grows while the primary is idle. Absent on a primary and before the first transaction.
    pub lag: Option<Duration>,
    /// The server's clock, in milliseconds since 1970.
    pub server_time_epoch_ms: i64,
    /// The newest timeline that the control file knows.
    pub timeline: TimelineId,
}

/// Settings that decide whether a backup works, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupSettings {
    /// `wal_level`.
    pub wal_level: String,
    /// `max_replication_slots`.
    pub max_replication_slots: u32,
    /// `max_wal_senders`. The backup's session is no walsender; streaming WAL takes one.
    pub max_wal_senders: u32,
    /// `max_slot_wal_keep_size` in MB; -1 is without limit.
    pub max_slot_wal_keep_size_mb: i64,
    /// `wal_keep_size` in MB.
    pub wal_keep_size_mb: i64,
    /// `archive_mode`.
    pub archive_mode: String,
    /// Whether `archive_command` is set; the command itself may hold secrets. (`archive_library` counts too.)
    pub archives: bool,
    /// Whether `restore_command` is set.
    pub has_restore_command: bool,
    /// `recovery_min_apply_delay` in milliseconds: lag that is wanted.
    pub recovery_min_apply_delay_ms: i64,
}

/// A right that the session's role lacks, and the statement that gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingPrivilege {
    /// The right: "EXECUTE on pg_backup_start(text, boolean)".
    pub what: String,
    /// SQL to run on the primary as a superuser.
    pub fix: String,
}

/// What the session's role may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Privileges {
    /// Whether the role is a superuser.
    pub superuser: bool,
    /// What a backup cannot do without.
    pub missing: Vec<MissingPrivilege>,
    /// What makes a backup poorer: without `pg_read_all_settings` the server does not tell where its data directory
    /// and its configuration files are.
    pub advisable: Vec<MissingPrivilege>,
}

/// Everything at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// The server's version.
    pub version: ServerVersion,
    /// Primary or standby.
    pub role: Role,
    /// `pg_control_system()`.
    pub system_identifier: SystemIdentifier,
    /// The newest timeline that the control file knows.
    pub timeline: TimelineId,
    /// `data_directory`; absent without `pg_read_all_settings`.
    pub data_directory: Option<PathBuf>,
    /// `config_file`; absent without `pg_read_all_settings`.
    pub config_file: Option<PathBuf>,
    /// `hba_file`, likewise.
    pub hba_file: Option<PathBuf>,
    /// `ident_file`, likewise.
    pub ident_file: Option<PathBuf>,
    /// `hosts_file`, likewise; a setting since 19.
    pub hosts_file: Option<PathBuf>,
    /// Every file that a setting in force comes from (`pg_settings.sourcefile`), likewise; included files are here.
    pub settings_files: Vec<PathBuf>,
    /// `wal_segment_size`.
    pub wal_segment_size: WalSegmentSize,
    /// `block_size` in bytes.
    pub block_size_bytes: u32,
    /// Whether pages carry checksums (`data_checksums`; since 19 `pg_control_init()` tells what `initdb` chose instead, even
    /// after `pg_checksums` has changed it).
    pub data_checksums: bool,
    /// Whether the primary wrote full page images at the last checkpoint (`pg_control_checkpoint()`).
    pub full_page_writes: bool,
    /// The tablespaces, by OID.
    pub tablespaces: Vec<Tablespace>,
    /// How far it has come.
    pub replay: ReplayState,
    /// Standbys that stream from this server and replay, as far as the role may see them; walsenders that only
    /// receive (`pg_receivewal`) do not count.
    pub attached_standbys: u32,
    /// Whether a walreceiver is running, so that the standby is fed by streaming.
    pub streaming: bool,
    /// Settings that matter.
    pub settings: BackupSettings,
    /// What the role may do.
    pub privileges: Privileges,
    /// The role of the session.
    pub user: String,
    /// The database of the session: grants on functions hold in one database.
    pub database: String,
}

impl ServerFacts {
    /// Reads all of it.
    ///
    /// # Errors
    /// [`Error::UnsupportedVersion`] (the queries below need 14 or newer), those of [`Connection::query`], and
    /// [`Error::UnexpectedAnswer`].
    pub fn read(connection: &mut Connection) -> Result<ServerFacts, Error> {
        let version = read_version(connection)?;
        let Some(major) = version.major else {
            return Err(Error::UnsupportedVersion {
                version: version.text,
            });
        };
        let settings = Settings::read(connection)?;
        let control = ask(connection, CONTROL)?;
        let role = if control.is_true(0, 0) {
            Role::Standby
        } else {
            Role::Primary
        };
        let (user, database) = (
            control.text(0, 4)?.to_owned(),
            control.text(0, 5)?.to_owned(),
        );
        let privileges = read_privileges(connection, major, &user, &database)?;
        let wal_segment_size = settings.number::<u32>("wal_segment_size")?;
        let replay = read_replay_state(connection, PATIENCE)?;
        let walsenders = ask(connection, WALSENDERS)?;
        Ok(ServerFacts {
            version,
            role,
            system_identifier: SystemIdentifier(control.parse::<i64>(0, 1)?.cast_unsigned()),
            timeline: replay.timeline,
            data_directory: settings.path("data_directory"),
            config_file: settings.path("config_file"),
            hba_file: settings.path("hba_file"),
            ident_file: settings.path("ident_file"),
            hosts_file: settings.path("hosts_file"),
            settings_files: read_settings_files(connection)?,
            wal_segment_size: WalSegmentSize::new(wal_segment_size).ok_or_else(|| {
                unexpected(DURING, &format!("wal_segment_size is {wal_segment_size}"))
            })?,
            block_size_bytes: settings.number("block_size")?,
            data_checksums: control.is_true(0, 2),
            full_page_writes: control.is_true(0, 3),
            tablespaces: read_tablespaces(connection)?,
            replay,
            attached_standbys: walsenders.parse(0, 0)?,
            streaming: walsenders.is_true(0, 1),
            settings: settings.for_backup()?,
            privileges,
            user,
            database,
        })
    }

    /// Whether this program knows such a server: 14 to 19 (refused by [`ServerFacts::read`] already), pages of 8192
    /// bytes, and a `wal_level` that recovery can use.
    ///
    /// # Errors
    /// [`Error::UnsupportedVersion`], [`Error::UnsupportedBlockSize`], [`Error::WalLevelTooLow`].
    pub fn check_supported(&self) -> Result<(), Error> {
        if self.version.major.is_none() {
            return Err(Error::UnsupportedVersion {
                version: self.version.text.clone(),
            });
        }
        if self.block_size_bytes != 8192 {
            return Err(Error::UnsupportedBlockSize {
                block_size_bytes: self.block_size_bytes,
            });
        }
        if self.settings.wal_level == "minimal" {
            return Err(Error::WalLevelTooLow {
                wal_level: self.settings.wal_level.clone(),
            });
        }
        Ok(())
    }

    /// Whether the role may do what a backup needs.
    ///
    /// # Errors
    /// [`Error::MissingPrivileges`], naming every one with its grant.
    pub fn check_privileges(&self) -> Result<(), Error> {
        if self.privileges.missing.is_empty() {
            return Ok(());
        }
        Err(Error::MissingPrivileges {
            user: self.user.clone(),
            missing: self.privileges.missing.clone(),
        })
    }
}

/// Role, identity and control file. `pg_control_*` may be called by everybody (`system_functions.sql`).
const CONTROL: &str = "SELECT pg_is_in_recovery(), \
     (SELECT system_identifier FROM pg_control_system()), \
     current_setting('data_checksums')::bool, \
     (SELECT full_page_writes FROM pg_control_checkpoint()), \
     current_user::text, current_database()::text";

/// A walsender that serves a standby gets replay positions back; `pg_receivewal` and `pg_basebackup` send none
/// (`receivelog.c`). Without `pg_read_all_stats` the positions of other roles' walsenders are hidden.
const WALSENDERS: &str = "SELECT (SELECT count(*) FROM pg_stat_replication WHERE replay_lsn IS NOT NULL), \
     EXISTS (SELECT FROM pg_stat_wal_receiver WHERE pid IS NOT NULL)";

/// The control file's timeline is that of the last checkpoint; on a standby, replay may be on a later one already.
const REPLAY_STATE: &str = "SELECT \
     CASE WHEN r.recovering THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, \
     CASE WHEN r.recovering THEN pg_last_wal_receive_lsn() END, \
     CASE WHEN r.recovering THEN extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 END, \
     (extract(epoch FROM clock_timestamp()) * 1000)::int8, \
     greatest((SELECT timeline_id FROM pg_control_checkpoint()), \
              CASE WHEN r.recovering THEN (SELECT min_recovery_end_timeline FROM pg_control_recovery()) END), \
     CASE WHEN r.recovering THEN pg_get_wal_replay_pause_state() = 'paused' END \
     FROM (SELECT pg_is_in_recovery() AS recovering) r";

fn ask(connection: &mut Connection, sql: &str) -> Result<Rows, Error> {
    connection.query_during(DURING, sql, &[], PATIENCE)
}

pub(crate) fn read_replay_state(
    connection: &mut Connection,
    timeout: Duration,
) -> Result<ReplayState, Error> {
    let rows = connection.query_during(
        "read the server's replay position",
        REPLAY_STATE,
        &[],
        timeout,
    )?;
    // No WAL is replayed yet on a standby that has only just started.
    let lsn = rows.parse_optional(0, 0)?.unwrap_or(Lsn::INVALID);
    let receive_lsn: Option<Lsn> = rows.parse_optional(0, 1)?;
    let age_seconds: Option<f64> = rows.parse_optional(0, 2)?;
    let lag = if receive_lsn.is_some_and(|received| received <= lsn) {
        Some(Duration::ZERO)
    } else {
        // Clocks of two hosts differ: an age below zero is none.
        age_seconds.map(|age| Duration::try_from_secs_f64(age).unwrap_or_default())
    };
    Ok(ReplayState {
        lsn,
        is_paused: rows.is_true(0, 5),
        receive_lsn,
        lag_bytes: receive_lsn.map_or(0, |received| received.0.saturating_sub(lsn.0)),
        lag,
        server_time_epoch_ms: rows.parse(0, 3)?,
        timeline: TimelineId(rows.parse(0, 4)?),
    })
}

fn read_version(connection: &mut Connection) -> Result<ServerVersion, Error> {
    let rows = ask(connection, "SELECT current_setting('server_version')")?;
    let number = connection.server_version();
    let major = u32::try_from(number / 10_000)
        .ok()
        .and_then(MajorVersion::from_u32);
    Ok(ServerVersion {
        number,
        text: rows.text(0, 0)?.to_owned(),
        major,
    })
}

/// The rows of `pg_settings` that are asked for and may be seen.
struct Settings(Rows);

impl Settings {
    fn read(connection: &mut Connection) -> Result<Settings, Error> {
        let sql = "SELECT name, setting FROM pg_settings WHERE name IN ('data_directory', 'config_file', 'hba_file', \
             'ident_file', 'hosts_file', 'wal_segment_size', 'block_size', 'wal_level', 'max_replication_slots', 'max_wal_senders', \
             'max_slot_wal_keep_size', 'wal_keep_size', 'archive_mode', 'archive_command', 'archive_library', \
             'restore_command', 'recovery_min_apply_delay')";
        ask(connection, sql).map(Settings)
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        let row = (0..self.0.len()).find(|row| self.0.get(*row, 0) == Some(name))?;
        self.0.bytes(row, 1)
    }

    fn text(&self, name: &str) -> &str {
        self.bytes(name)
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .unwrap_or_default()
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.bytes(name).filter(|bytes| !bytes.is_empty()).map(path)
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<T, Error> {
        let text = self.text(name);
        text.parse()
            .map_err(|_| unexpected(DURING, &format!("{name} is \"{text}\"")))
    }

    fn for_backup(&self) -> Result<BackupSettings, Error> {
        Ok(BackupSettings {
            wal_level: self.text("wal_level").to_owned(),
            max_replication_slots: self.number("max_replication_slots")?,
            max_wal_senders: self.number("max_wal_senders")?,
            max_slot_wal_keep_size_mb: self.number("max_slot_wal_keep_size")?,
            wal_keep_size_mb: self.number("wal_keep_size")?,
            archive_mode: self.text("archive_mode").to_owned(),
            // "(disabled)" is what the server shows while archive_mode is off (`pgarch.c`, `show_archive_command`).
            archives: !matches!(self.text("archive_command"), "" | "(disabled)")
                || !self.text("archive_library").is_empty(),
            has_restore_command: !self.text("restore_command").is_empty(),
            recovery_min_apply_delay_ms: self.number("recovery_min_apply_delay")?,
        })
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

fn read_settings_files(connection: &mut Connection) -> Result<Vec<PathBuf>, Error> {
    let rows = ask(
        connection,
        "SELECT DISTINCT sourcefile FROM pg_settings WHERE sourcefile IS NOT NULL ORDER BY 1",
    )?;
    Ok((0..rows.len())
        .filter_map(|row| rows.bytes(row, 0))
        .map(path)
        .collect())
}

fn read_tablespaces(connection: &mut Connection) -> Result<Vec<Tablespace>, Error> {
    let sql = "SELECT oid, spcname, pg_tablespace_location(oid) FROM pg_tablespace \
               WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid";
    let rows = ask(connection, sql)?;
    (0..rows.len())
        .map(|row| {
            Ok(Tablespace {
                oid: Oid(rows.parse(row, 0)?),
                name: String::from_utf8_lossy(rows.bytes(row, 1).unwrap_or_default()).into_owned(),
                location: path(rows.bytes(row, 2).unwrap_or_default()),
            })
        })
        .collect()
}

/// The functions that start and stop a backup: renamed in 15 (`xlogfuncs.c`).
fn backup_functions(major: MajorVersion) -> [&'static str; 2] {
    match major {
        MajorVersion::V14 => [
            "pg_start_backup(text, boolean, boolean)",
            "pg_stop_backup(boolean, boolean)",
        ],
        _ => ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"],
    }
}

fn read_privileges(
    connection: &mut Connection,
    major: MajorVersion,
    user: &str,
    database: &str,
) -> Result<Privileges, Error> {
    let [start, stop] = backup_functions(major);
    let sql = "SELECT rolsuper, rolreplication, has_function_privilege('pg_catalog.' || $1, 'EXECUTE'), \
               has_function_privilege('pg_catalog.' || $2, 'EXECUTE'), \
               pg_has_role('pg_read_all_settings', 'USAGE') FROM pg_roles WHERE rolname = current_user";
    let rows = connection.query_during(DURING, sql, &[Some(start), Some(stop)], PATIENCE)?;
    let superuser = rows.is_true(0, 0);
    let (grantee, database) = (quote_identifier(user), quote_identifier(database));
    let mut privileges = Privileges {
        superuser,
        ..Privileges::default()
    };
    for (function, allowed) in [(start, rows.is_true(0, 2)), (stop, rows.is_true(0, 3))] {
        if !allowed {
            privileges.missing.push(MissingPrivilege {
                what: format!("EXECUTE on {function}"),
                fix: format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {grantee};  -- in database {database}"),
            });
        }
    }
    // Slots are for superusers and roles with REPLICATION (`slot.c`, `CheckSlotPermissions`).
    if !superuser && !rows.is_true(0, 1) {
        privileges.missing.push(MissingPrivilege {
            what: "the attribute REPLICATION (for the temporary slot)".to_owned(),
            fix: format!("ALTER ROLE {grantee} REPLICATION;"),
        });
    }
    if !superuser && !rows.is_true(0, 4) {
        privileges.advisable.push(MissingPrivilege {
            what: "membership in pg_read_all_settings (to find the data directory and the configuration files)".to_owned(),
            fix: format!("GRANT pg_read_all_settings TO {grantee};"),
        });
    }
    Ok(privileges)
}

fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_quoted() {
        assert_eq!(quote_identifier("leeward"), "\"leeward\"");
        assert_eq!(quote_identifier("a\"; DROP"), "\"a\"\"; DROP\"");
    }

    #[test]
    fn a_tablespace_with_a_relative_location_is_in_place() {
        let tablespace = |location: &str| Tablespace {
            oid: Oid(1),
            name: "t".to_owned(),
            location: location.into(),
        };
        assert!(tablespace("pg_tblspc/16400").is_in_place());
        assert!(!tablespace("/srv/t").is_in_place());
    }
}
