//! `backup.json`: what a person wants to know of a backup, and the commit: a backup exists once this object does.

use std::fmt::Display;
use std::str::FromStr;

use leeward_pgformat::wal_segment::parse_history_file_name;
use leeward_pgformat::{Lsn, Oid, SystemIdentifier, TimelineId, WalSegmentName, WalSegmentSize};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::backup_id::BackupId;
use crate::hash::Hash;

/// The newest `format_version` of `backup.json`, `cluster.json` and `leeward.json` that we know.
pub const FORMAT_VERSION: u32 = 1;

/// Everything in `backup.json`. Times are RFC 3339 in UTC, LSNs as PostgreSQL prints them, sizes bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupSummary {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The backup's id, the same as its folder's name.
    pub id: BackupId,
    /// The cluster's name in the repository.
    pub cluster: String,
    /// PostgreSQL's identifier of the cluster; a string in JSON, as it may exceed 2^53.
    #[serde(with = "text")]
    pub system_identifier: SystemIdentifier,
    /// The server's version, as `15.18`.
    pub postgres_version: String,
    /// The server's major version, 14 to 19.
    pub major: u32,
    /// The role of the server that was read.
    pub from: BackupFrom,
    /// The host that was read.
    pub host: String,
    /// The label given to `pg_backup_start`.
    pub label: String,
    /// When the backup began.
    pub started_at: String,
    /// When its last page and WAL were stored.
    pub finished_at: String,
    /// Where recovery begins (START WAL LOCATION of `backup_label`).
    #[serde(with = "text")]
    pub start_lsn: Lsn,
    /// The timeline at the start.
    #[serde(with = "number")]
    pub start_timeline: TimelineId,
    /// CHECKPOINT LOCATION of `backup_label`.
    #[serde(with = "text")]
    pub checkpoint_lsn: Lsn,
    /// Where the WAL of the backup ends; recovery is consistent here at the latest.
    #[serde(with = "text")]
    pub stop_lsn: Lsn,
    /// Where recovery is consistent by the control file of a standby's backup (`minRecoveryPoint`), which was read before the
    /// backup's end; absent in older backups, and of a primary, where that is the stop LSN.
    #[serde(
        default,
        with = "optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub consistent_lsn: Option<Lsn>,
    /// The timeline at the stop.
    #[serde(with = "number")]
    pub stop_timeline: TimelineId,
    /// The WAL stored with the backup.
    pub wal: WalSummary,
    /// Whether the cluster has data checksums.
    pub data_checksums: bool,
    /// Regular files.
    pub files: u64,
    /// Bytes of the files as they were read.
    pub size_bytes: u64,
    /// Bytes in the repository: packs, manifest and WAL.
    pub stored_bytes: u64,
    /// Pages whose header and, with data checksums, checksum were looked at.
    pub pages_checked: u64,
    /// Relations with damaged pages; empty in a sound backup.
    #[serde(default)]
    pub damaged: Vec<DamagedRelation>,
    /// The compression asked for, as `zstd:3`.
    pub compression: String,
    /// How many packs the backup wrote.
    pub packs: u32,
    /// What proves the manifest.
    pub manifest: ManifestSummary,
    /// Tablespaces other than the two built-in ones.
    #[serde(default)]
    pub tablespaces: Vec<TablespaceSummary>,
    /// The data directory, as the server says it.
    pub data_directory: String,
    /// Where `pg_wal` points if it is a symbolic link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_directory: Option<String>,
    /// Configuration files outside the data directory that were stored too.
    #[serde(default)]
    pub configuration_files: Vec<String>,
    /// Which files the server takes its configuration from; absent in older backups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<ConfigurationSummary>,
    /// How far the standby lagged before and after; absent on a primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_lag: Option<ReplayLag>,
    /// The version of leeward that made it.
    pub leeward_version: String,
    /// Who owns the data directory.
    pub owner: Owner,
}

/// The most WAL segments of a backup: 16 TiB of 16 MiB each.
const WAL_SEGMENTS_LIMIT: u64 = 1 << 20;
/// The most timeline history files of a backup.
const HISTORY_FILES_LIMIT: usize = 10_000;

impl BackupSummary {
    /// The size of the cluster's WAL segments; `None` when it is none that a cluster can have.
    #[must_use]
    pub fn wal_segment_size(&self) -> Option<WalSegmentSize> {
        WalSegmentSize::new(u32::try_from(self.wal.segment_size_bytes).ok()?)
    }

    /// Checks the bounds of the backup's WAL, so that a loop over its segments ends.
    ///
    /// # Errors
    /// The problem, in words.
    pub(crate) fn check_wal(&self) -> Result<(), String> {
        let size = self.wal_segment_size().ok_or_else(|| {
            format!(
                "WAL segments of {} bytes, which no cluster has",
                self.wal.segment_size_bytes
            )
        })?;
        if self.start_lsn > self.stop_lsn {
            return Err(format!("WAL from {} to {}", self.start_lsn, self.stop_lsn));
        }
        let begin = size.segment_number(self.start_lsn);
        let by_lsn = begin..=size.segment_number_before(self.stop_lsn).max(begin);
        let named = |name: &str| WalSegmentName::parse(name, size).map(|named| named.number);
        let (first, last) = (named(&self.wal.first), named(&self.wal.last));
        let by_name = match (first, last) {
            (Some(first), Some(last)) if first == begin && last >= begin => first..=last,
            _ => {
                return Err(format!(
                    "WAL from {} to {} in segments from \"{}\" to \"{}\"",
                    self.start_lsn, self.stop_lsn, self.wal.first, self.wal.last
                ));
            }
        };
        for range in [by_lsn, by_name] {
            if range.end() - range.start() >= WAL_SEGMENTS_LIMIT {
                return Err(format!(
                    "WAL segments {:X} to {:X}, more than any backup has",
                    range.start(),
                    range.end()
                ));
            }
        }
        if self.wal.history.len() > HISTORY_FILES_LIMIT
            || !(self.wal.history.iter()).all(|name| parse_history_file_name(name).is_some())
        {
            return Err("history files that are none, or too many".to_owned());
        }
        Ok(())
    }
}

/// The server's settings of these names: absolute paths, absent where the role may not see them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationSummary {
    /// What takes the place of `postgresql.conf`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<String>,
    /// What takes the place of `pg_hba.conf`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hba_file: Option<String>,
    /// What takes the place of `pg_ident.conf`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ident_file: Option<String>,
    /// What takes the place of `pg_hosts.conf`, since 19.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts_file: Option<String>,
    /// The data directory under the name that the server uses, which may lead there through links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_directory: Option<String>,
}

/// The role of the server that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupFrom {
    /// It was in recovery.
    Standby,
    /// It was not.
    Primary,
}

/// The WAL stored with a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalSummary {
    /// Name of the first WAL segment.
    pub first: String,
    /// Name of the last WAL segment.
    pub last: String,
    /// How many WAL segments.
    pub count: u64,
    /// Their plain bytes, as stored: the last one ends at the stop LSN.
    pub bytes: u64,
    /// Their bytes in the repository.
    pub stored_bytes: u64,
    /// The server's `wal_segment_size`.
    pub segment_size_bytes: u64,
    /// Names of the timeline history files stored.
    #[serde(default)]
    pub history: Vec<String>,
}

/// What is damaged of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedRelation {
    /// The file, relative to the data directory.
    pub relation: String,
    /// Relation-wide blocks.
    pub blocks: Vec<u32>,
    /// The whole file is missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missing: bool,
}

/// What proves the manifest, see [`crate::manifest::ManifestInfo`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestSummary {
    /// Bytes of the object.
    pub size_bytes: u64,
    /// Hash of its footer.
    pub hash: Hash,
}

/// One tablespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceSummary {
    /// Its OID, the name of its entry in `pg_tblspc`.
    #[serde(with = "number")]
    pub oid: Oid,
    /// Where it was.
    pub path: String,
    /// Whether it is a directory inside `pg_tblspc` (`allow_in_place_tablespaces`) and not a link.
    pub in_place: bool,
}

/// How far a standby's replay was behind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplayLag {
    /// When the backup began.
    pub before: Lag,
    /// When it ended.
    pub after: Lag,
}

/// Replay lag at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// WAL received and not yet replayed.
    pub bytes: u64,
    /// Age of the last replayed transaction, in seconds, where anything is left to replay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// Who owned the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User name, where the host had one.
    pub user: Option<String>,
    /// Group name, where the host had one.
    pub group: Option<String>,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// PostgreSQL's numbers as JSON strings, in their usual spelling.
pub(crate) mod text {
    use super::*;

    pub fn serialize<T: Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// As [`text`], where it may be absent.
mod optional_text {
    use super::*;

    pub fn serialize<T: Display, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| text.parse().map_err(serde::de::Error::custom))
            .transpose()
    }
}

/// PostgreSQL's small numbers as JSON numbers.
pub(crate) mod number {
    use super::*;

    /// A newtype over `u32`.
    pub trait Number: Copy {
        fn number(self) -> u32;
        fn from_number(number: u32) -> Self;
    }

    impl Number for TimelineId {
        fn number(self) -> u32 {
            self.0
        }
        fn from_number(number: u32) -> Self {
            Self(number)
        }
    }

    impl Number for Oid {
        fn number(self) -> u32 {
            self.0
        }
        fn from_number(number: u32) -> Self {
            Self(number)
        }
    }

    pub fn serialize<T: Number, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(value.number())
    }

    pub fn deserialize<'de, T: Number, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        u32::deserialize(deserializer).map(T::from_number)
    }
}
