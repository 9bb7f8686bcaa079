//! What a repository holds: its clusters and their backups.

use std::sync::Arc;

use leeward_pgformat::{SystemIdentifier, TimelineId};
use serde::{Deserialize, Serialize};

use crate::backup_id::BackupId;
use crate::repository_error::RepositoryError;
use crate::store::Store;
use crate::summary::BackupSummary;

/// `leeward.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryFile {
    /// [`crate::summary::FORMAT_VERSION`].
    pub format_version: u32,
    /// A random identifier, 32 hexadecimal digits.
    pub repository_id: String,
    /// When it was created, RFC 3339 in UTC.
    pub created_at: String,
    /// The version of leeward that created it.
    pub leeward_version: String,
    /// Wrapped keys of a sealed repository; none in format 1.
    #[serde(default)]
    pub key_slots: Vec<serde_json::Value>,
}

/// `cluster.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    /// [`crate::summary::FORMAT_VERSION`].
    pub format_version: u32,
    /// The cluster's name, the same as its folder's.
    pub cluster: String,
    /// PostgreSQL's identifier of the cluster.
    #[serde(with = "crate::summary::text")]
    pub system_identifier: SystemIdentifier,
    /// Timelines that backups were taken on, ascending.
    pub timelines: Vec<u32>,
    /// When the first backup was begun, RFC 3339 in UTC.
    pub created_at: String,
}

/// An open repository.
#[derive(Debug, Clone)]
pub struct Repository {
    store: Arc<dyn Store>,
    file: RepositoryFile,
}

/// A cluster's folder in a repository.
#[derive(Debug, Clone)]
pub struct Cluster {
    store: Arc<dyn Store>,
    name: String,
}

/// What [`Cluster::backups`] found.
#[derive(Debug, Default)]
pub struct Backups {
    /// Those that can be read, newest last.
    pub sound: Vec<BackupSummary>,
    /// Those whose `backup.json` is damaged or of a newer format, with the reason.
    pub unreadable: Vec<(BackupId, RepositoryError)>,
}

impl Repository {
    /// Creates `leeward.json`. [`RepositoryError::RepositoryExists`] if there is one.
    pub fn create(store: Arc<dyn Store>) -> Result<Self, RepositoryError> {
        let _ = store;
        todo!()
    }

    /// Reads `leeward.json`. [`RepositoryError::NoRepository`] if there is none.
    pub fn open(store: Arc<dyn Store>) -> Result<Self, RepositoryError> {
        let _ = store;
        todo!()
    }

    /// Opens, or creates where there is none; two that create at once agree.
    pub fn open_or_create(store: Arc<dyn Store>) -> Result<Self, RepositoryError> {
        let _ = store;
        todo!()
    }

    /// Where its objects are.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// `leeward.json`.
    #[must_use]
    pub fn file(&self) -> &RepositoryFile {
        &self.file
    }

    /// The folder of the cluster `name`, which need not exist yet.
    pub fn cluster(&self, name: &str) -> Result<Cluster, RepositoryError> {
        let _ = name;
        todo!()
    }

    /// The names of all clusters, sorted.
    pub fn clusters(&self) -> Result<Vec<String>, RepositoryError> {
        todo!()
    }
}

impl Cluster {
    /// Its name in the repository.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its objects are.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// `cluster.json`; `None` before the first backup.
    pub fn file(&self) -> Result<Option<ClusterFile>, RepositoryError> {
        todo!()
    }

    /// Before anything is written: records the system identifier, or holds it to the recorded one
    /// ([`RepositoryError::ClusterMismatch`]); remembers the timeline.
    pub fn claim(&self, system_identifier: SystemIdentifier, timeline: TimelineId) -> Result<(), RepositoryError> {
        let _ = (system_identifier, timeline);
        todo!()
    }

    /// All listed backups. One that cannot be read does not hide the others.
    pub fn backups(&self) -> Result<Backups, RepositoryError> {
        todo!()
    }

    /// The summary of one backup.
    pub fn backup(&self, id: &BackupId) -> Result<BackupSummary, RepositoryError> {
        let _ = id;
        todo!()
    }

    /// The backup that `latest`, an id, or a unique prefix of one names.
    pub fn resolve(&self, wanted: &str) -> Result<BackupSummary, RepositoryError> {
        let _ = wanted;
        todo!()
    }

    /// Writes `backup.json`, which makes the backup exist. Everything else must be durable before.
    pub fn commit(&self, summary: &BackupSummary) -> Result<(), RepositoryError> {
        let _ = summary;
        todo!()
    }

    /// Backups that were begun and never committed, oldest first.
    pub fn unfinished(&self) -> Result<Vec<BackupId>, RepositoryError> {
        todo!()
    }

    /// Deletes a backup, finished or not: `backup.json` first, then the rest.
    pub fn remove(&self, id: &BackupId) -> Result<(), RepositoryError> {
        let _ = id;
        todo!()
    }
}
