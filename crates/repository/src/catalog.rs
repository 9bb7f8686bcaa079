//! What a repository holds: its clusters and their backups.

use std::sync::Arc;

use jiff::Timestamp;
use leeward_pgformat::{SystemIdentifier, TimelineId};
use serde::{Deserialize, Serialize};

use crate::backup_id::BackupId;
use crate::document;
use crate::layout;
use crate::repository_error::RepositoryError;
use crate::store::{self, Key, ObjectVersion, Store, StoreError};
use crate::summary::{BackupSummary, FORMAT_VERSION};

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
    /// Those whose `backup.json` is damaged, of a newer format, closed to this user, or of another cluster, with the reason.
    pub unreadable: Vec<(BackupId, RepositoryError)>,
}

impl Repository {
    /// Creates `leeward.json`.
    ///
    /// # Errors
    /// [`RepositoryError::RepositoryExists`] if there is one; those of the store.
    pub fn create(store: Arc<dyn Store>) -> Result<Self, RepositoryError> {
        let id: [u8; 16] = rand::random();
        let file = RepositoryFile {
            format_version: FORMAT_VERSION,
            repository_id: id.iter().map(|byte| format!("{byte:02x}")).collect(),
            created_at: now(),
            leeward_version: env!("CARGO_PKG_VERSION").to_owned(),
            key_slots: Vec::new(),
        };
        let key = layout::repository()?;
        match store.create(&key, document::encode(key.as_str(), &file)?) {
            Ok(()) => Ok(Self { store, file }),
            Err(StoreError::AlreadyExists { .. }) => Err(RepositoryError::RepositoryExists {
                location: store.location().to_string(),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads `leeward.json`.
    ///
    /// # Errors
    /// [`RepositoryError::NoRepository`] if there is none, [`RepositoryError::NewerFormat`],
    /// [`RepositoryError::Damaged`]; those of the store.
    pub fn open(store: Arc<dyn Store>) -> Result<Self, RepositoryError> {
        let key = layout::repository()?;
        match store.get(&key) {
            Ok(text) => {
                let file = document::decode(key.as_str(), &text)?;
                Ok(Self { store, file })
            }
            Err(error) if error.is_not_found() => Err(RepositoryError::NoRepository {
                location: store.location().to_string(),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens, or creates where there is none; two that create at once agree.
    ///
    /// # Errors
    /// As [`Repository::open`], but for the repository's absence.
    pub fn open_or_create(store: Arc<dyn Store>) -> Result<Self, RepositoryError> {
        match Self::open(Arc::clone(&store)) {
            Err(RepositoryError::NoRepository { .. }) => {}
            other => return other,
        }
        match Self::create(Arc::clone(&store)) {
            Err(RepositoryError::RepositoryExists { .. }) => Self::open(store),
            other => other,
        }
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
    ///
    /// # Errors
    /// [`RepositoryError::InvalidClusterName`].
    pub fn cluster(&self, name: &str) -> Result<Cluster, RepositoryError> {
        Cluster::assumed(Arc::clone(&self.store), name)
    }

    /// The names of all clusters, sorted.
    ///
    /// # Errors
    /// Those of the store.
    pub fn clusters(&self) -> Result<Vec<String>, RepositoryError> {
        let mut names = Vec::new();
        for name in self.store.list_folders("")? {
            if is_cluster_name(&name) && exists(&*self.store, &layout::cluster(&name)?)? {
                names.push(name);
            }
        }
        Ok(names)
    }
}

/// 1 to 63 letters, digits, `-`, `_` and `.`, the first a letter or digit.
fn is_cluster_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn exists(store: &dyn Store, key: &Key) -> Result<bool, RepositoryError> {
    match store.size(key) {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The most bytes of all summaries of a cluster: some 30,000 of usual length.
const SUMMARIES_BYTES_LIMIT: usize = 128 << 20;

/// How often `cluster.json` is read again when somebody else changes it at the same moment.
const CLAIM_ATTEMPTS: u32 = 10;

impl Cluster {
    /// The folder of the cluster `name`, without asking whether there is a repository: for who has looked before.
    ///
    /// # Errors
    /// [`RepositoryError::InvalidClusterName`].
    pub fn assumed(store: Arc<dyn Store>, name: &str) -> Result<Cluster, RepositoryError> {
        if !is_cluster_name(name) {
            return Err(RepositoryError::InvalidClusterName {
                name: name.to_owned(),
            });
        }
        Ok(Cluster {
            store,
            name: name.to_owned(),
        })
    }

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
    ///
    /// # Errors
    /// [`RepositoryError::Damaged`], [`RepositoryError::NewerFormat`]; those of the store.
    pub fn file(&self) -> Result<Option<ClusterFile>, RepositoryError> {
        Ok(self.versioned_file()?.map(|(file, _)| file))
    }

    fn versioned_file(&self) -> Result<Option<(ClusterFile, ObjectVersion)>, RepositoryError> {
        let key = layout::cluster(&self.name)?;
        match self.store.get_versioned(&key)? {
            Some((text, version)) => Ok(Some((document::decode(key.as_str(), &text)?, version))),
            None => Ok(None),
        }
    }

    /// Before anything is written: records the system identifier, or holds it to the recorded one; remembers the
    /// timeline.
    ///
    /// # Errors
    /// [`RepositoryError::ClusterMismatch`] and those of [`Cluster::file`].
    pub fn claim(
        &self,
        system_identifier: SystemIdentifier,
        timeline: TimelineId,
    ) -> Result<(), RepositoryError> {
        let key = layout::cluster(&self.name)?;
        for attempt in 1.. {
            let written = match self.versioned_file()? {
                None => {
                    // Somebody else may have just created it, and gone on.
                    if !self.may_begin(system_identifier)? && self.file()?.is_none() {
                        return Err(RepositoryError::damaged(
                            &key,
                            "object",
                            "it is missing, though the cluster's folder holds backups or WAL, which may be another cluster's",
                        ));
                    }
                    let file = ClusterFile {
                        format_version: FORMAT_VERSION,
                        cluster: self.name.clone(),
                        system_identifier,
                        timelines: vec![timeline.0],
                        created_at: now(),
                    };
                    self.store
                        .create(&key, document::encode(key.as_str(), &file)?)
                }
                Some((file, _)) if file.system_identifier != system_identifier => {
                    return Err(RepositoryError::ClusterMismatch {
                        cluster: self.name.clone(),
                        recorded: file.system_identifier,
                        found: system_identifier,
                    });
                }
                Some((file, _)) if file.timelines.contains(&timeline.0) => return Ok(()),
                Some((mut file, version)) => {
                    file.timelines.push(timeline.0);
                    file.timelines.sort_unstable();
                    let text = document::encode(key.as_str(), &file)?;
                    self.store.replace(&key, text, &version).map(drop)
                }
            };
            match written {
                Ok(()) => return Ok(()),
                Err(StoreError::AlreadyExists { .. } | StoreError::Conflict { .. })
                    if attempt < CLAIM_ATTEMPTS => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether the folder is free, or holds backups of this very cluster, whose `cluster.json` was lost.
    fn may_begin(&self, system_identifier: SystemIdentifier) -> Result<bool, RepositoryError> {
        let folders = self.store.list_folders(&self.name)?;
        if !folders
            .iter()
            .any(|folder| folder == "backups" || folder == "wal")
        {
            return Ok(true);
        }
        let backups = self.backups()?.sound;
        Ok(backups
            .last()
            .is_some_and(|backup| backup.system_identifier == system_identifier))
    }

    /// All listed backups. One that cannot be read, or that somebody copied here from another cluster, does not hide the
    /// others.
    ///
    /// # Errors
    /// Those of the store.
    pub fn backups(&self) -> Result<Backups, RepositoryError> {
        let mut backups = Backups::default();
        let mut bytes = 0;
        let owner = self.owner()?;
        for id in self.folders()? {
            match self.owned(&id, owner) {
                Ok((summary, length)) => {
                    bytes += length;
                    if bytes > SUMMARIES_BYTES_LIMIT {
                        return Err(RepositoryError::damaged(
                            layout::backups_folder(&self.name),
                            "summaries",
                            format!("they have more than {SUMMARIES_BYTES_LIMIT} bytes together"),
                        ));
                    }
                    backups.sound.push(summary);
                }
                Err(RepositoryError::NoBackup { .. }) => {}
                Err(error) if error.is_about_one_object() => backups.unreadable.push((id, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(backups)
    }

    /// The ids of all backup folders, finished or not, oldest first.
    fn folders(&self) -> Result<Vec<BackupId>, RepositoryError> {
        let names = self
            .store
            .list_folders(&layout::backups_folder(&self.name))?;
        let mut ids: Vec<BackupId> = names.iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort();
        Ok(ids)
    }

    /// A name for a backup that starts at `now`, later in order than every backup there is.
    ///
    /// # Errors
    /// Those of the store.
    pub fn new_backup_id(&self, now: Timestamp) -> Result<BackupId, RepositoryError> {
        Ok(BackupId::new_after(now, self.folders()?.last()))
    }

    /// The summary of one backup.
    ///
    /// # Errors
    /// [`RepositoryError::NoBackup`], [`RepositoryError::Damaged`], [`RepositoryError::NewerFormat`]; those of the store.
    pub fn backup(&self, id: &BackupId) -> Result<BackupSummary, RepositoryError> {
        self.backup_and_length(id).map(|(summary, _)| summary)
    }

    /// The summary of one backup, and the length of its text.
    fn backup_and_length(&self, id: &BackupId) -> Result<(BackupSummary, usize), RepositoryError> {
        let key = layout::summary(&self.name, id)?;
        let text = match self.store.get(&key) {
            Ok(text) => text,
            Err(error) if error.is_not_found() => return Err(self.no_backup(id.as_str())),
            Err(error) => return Err(error.into()),
        };
        let summary: BackupSummary = document::decode(key.as_str(), &text)?;
        if summary.id != *id || summary.cluster != self.name {
            let problem = format!(
                "it describes backup \"{}\" of cluster \"{}\"",
                summary.id, summary.cluster
            );
            return Err(RepositoryError::damaged(&key, "text", problem));
        }
        summary
            .check_wal()
            .map_err(|problem| RepositoryError::damaged(&key, "wal", problem))?;
        Ok((summary, text.len()))
    }

    fn no_backup(&self, wanted: &str) -> RepositoryError {
        RepositoryError::NoBackup {
            wanted: wanted.to_owned(),
            cluster: self.name.clone(),
        }
    }

    /// Returns the cluster that the backups must be of; `None` where `cluster.json` cannot be read, which every writing
    /// command refuses.
    ///
    /// # Errors
    /// Those of the store.
    pub fn owner(&self) -> Result<Option<SystemIdentifier>, RepositoryError> {
        match self.file() {
            Ok(file) => Ok(file.map(|file| file.system_identifier)),
            Err(error) if error.is_about_one_object() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the summary of a backup, which must be of `owner`.
    ///
    /// # Errors
    /// Those of [`Cluster::backup`], [`RepositoryError::ForeignBackup`].
    pub fn owned_backup(
        &self,
        id: &BackupId,
        owner: Option<SystemIdentifier>,
    ) -> Result<BackupSummary, RepositoryError> {
        self.owned(id, owner).map(|(summary, _)| summary)
    }

    fn owned(
        &self,
        id: &BackupId,
        owner: Option<SystemIdentifier>,
    ) -> Result<(BackupSummary, usize), RepositoryError> {
        let (summary, length) = self.backup_and_length(id)?;
        match owner {
            Some(recorded) if recorded != summary.system_identifier => {
                Err(RepositoryError::ForeignBackup {
                    object: layout::summary(&self.name, id)?.to_string(),
                    recorded,
                    found: summary.system_identifier,
                })
            }
            _ => Ok((summary, length)),
        }
    }

    /// The backup that `latest`, an id, or a unique prefix of one names. Where it names one whose summary is damaged, that
    /// is the error: never an older one in its place. `latest` passes over those of another cluster or closed to this user.
    ///
    /// # Errors
    /// [`RepositoryError::NoBackup`], [`RepositoryError::AmbiguousBackup`] and those of [`Cluster::backup`].
    pub fn resolve(&self, wanted: &str) -> Result<BackupSummary, RepositoryError> {
        let owner = self.owner()?;
        if wanted == "latest" {
            let mut closed = None;
            for id in self.folders()?.into_iter().rev() {
                match self.owned_backup(&id, owner) {
                    Ok(summary) => return Ok(summary),
                    Err(
                        RepositoryError::NoBackup { .. } | RepositoryError::ForeignBackup { .. },
                    ) => {}
                    Err(error) if error.is_closed() => _ = closed.get_or_insert(error),
                    Err(error) => return Err(error),
                }
            }
            return Err(closed.unwrap_or_else(|| self.no_backup(wanted)));
        }
        let mut candidates = Vec::new();
        for id in self.folders()?.into_iter().rev() {
            let fits = !wanted.is_empty() && id.as_str().starts_with(wanted);
            if fits && exists(&*self.store, &layout::summary(&self.name, &id)?)? {
                candidates.push(id);
            }
        }
        match candidates.as_slice() {
            [] => Err(self.no_backup(wanted)),
            [id] => self.owned_backup(id, owner),
            several => Err(RepositoryError::AmbiguousBackup {
                wanted: wanted.to_owned(),
                candidates: several.iter().rev().map(ToString::to_string).collect(),
            }),
        }
    }

    /// Writes `backup.json`, which makes the backup exist. Everything else must be durable before.
    ///
    /// # Errors
    /// [`RepositoryError::BackupExists`]; those of the store.
    pub fn commit(&self, summary: &BackupSummary) -> Result<(), RepositoryError> {
        let key = layout::summary(&self.name, &summary.id)?;
        match self
            .store
            .create(&key, document::encode(key.as_str(), summary)?)
        {
            Ok(()) => Ok(()),
            Err(StoreError::AlreadyExists { .. }) => Err(RepositoryError::BackupExists {
                id: summary.id.to_string(),
                cluster: self.name.clone(),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Backups that were begun and never committed, oldest first.
    ///
    /// # Errors
    /// Those of the store.
    pub fn unfinished(&self) -> Result<Vec<BackupId>, RepositoryError> {
        let mut unfinished = Vec::new();
        for id in self.folders()? {
            match exists(&*self.store, &layout::summary(&self.name, &id)?) {
                Ok(true) => {}
                Ok(false) => unfinished.push(id),
                // A folder that another user has closed to this one may be finished.
                Err(error) if error.is_closed() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(unfinished)
    }

    /// Deletes a backup, finished or not: `backup.json` first, then the rest. Other backups that point into its packs
    /// are the caller's business.
    ///
    /// # Errors
    /// Those of the store.
    pub fn remove(&self, id: &BackupId) -> Result<(), RepositoryError> {
        let folder = layout::backup_folder(&self.name, id);
        self.store.delete(&layout::summary(&self.name, id)?)?;
        for object in store::list_all(&*self.store, &folder)? {
            self.store.delete(&object.key)?;
        }
        self.store.remove_leftovers(&folder)?;
        Ok(())
    }
}
