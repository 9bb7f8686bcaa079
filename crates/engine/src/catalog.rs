//! Looking at what a repository holds.

use std::sync::Arc;

use leeward_repository::catalog::{Backups, Repository};
use leeward_repository::store::Store;
use leeward_repository::summary::BackupSummary;

use crate::error::Result;
use crate::repository;

/// The backups of one cluster.
#[derive(Debug)]
pub struct ClusterBackups {
    /// The cluster's name.
    pub cluster: String,
    /// Its backups, newest last.
    pub backups: Backups,
}

/// All backups of `cluster`, or of every cluster.
///
/// # Errors
/// When the repository cannot be read. A damaged `backup.json` is in the result, beside the sound ones.
pub fn list(store: &Arc<dyn Store>, cluster: Option<&str>) -> Result<Vec<ClusterBackups>> {
    let repository = Repository::open(Arc::clone(store))?;
    let names = match cluster {
        Some(name) => vec![name.to_owned()],
        None => repository.clusters()?,
    };
    names
        .into_iter()
        .map(|name| {
            let backups = repository.cluster(&name)?.backups()?;
            Ok(ClusterBackups {
                cluster: name,
                backups,
            })
        })
        .collect()
}

/// One backup: an id, a unique prefix of one, or `latest`.
///
/// # Errors
/// When there is no such backup, or it is damaged.
pub fn show(store: &Arc<dyn Store>, cluster: Option<&str>, backup: &str) -> Result<BackupSummary> {
    Ok(repository::open(store, cluster)?.resolve(backup)?)
}

/// The name of the cluster that a command means: `name`, or the only one there is.
///
/// # Errors
/// When there is none, or several.
pub fn cluster_name(store: &Arc<dyn Store>, name: Option<&str>) -> Result<String> {
    Ok(repository::open(store, name)?.name().to_owned())
}
