//! The repository as a command meets it: opened or created, held by a lease, rid of what an earlier run left unfinished.

use std::sync::Arc;

use leeward_pgformat::{SystemIdentifier, TimelineId};
use leeward_repository::catalog::{Cluster, Repository};
use leeward_repository::lease::{Lease, LeaseError, LeaseOptions, probe_conditional_writes};
use leeward_repository::repository_error::RepositoryError;
use leeward_repository::store::Store;
use leeward_repository::url::RepositoryUrl;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};
use crate::frames::stored;

/// Opens the repository, creating it where there is none, and the cluster's folder in it.
pub(crate) fn open_or_create(
    store: &Arc<dyn Store>,
    name: &str,
    system_identifier: SystemIdentifier,
    timeline: TimelineId,
) -> Result<Cluster> {
    let cluster = Repository::open_or_create(Arc::clone(store))?.cluster(name)?;
    cluster.claim(system_identifier, timeline)?;
    Ok(cluster)
}

/// Opens an existing repository and a cluster in it; without a name, the only one there is.
pub(crate) fn open(store: &Arc<dyn Store>, name: Option<&str>) -> Result<Cluster> {
    let repository = Repository::open(Arc::clone(store))?;
    let name = match name {
        Some(name) => name.to_owned(),
        None => {
            let mut names = repository.clusters()?;
            match (names.pop(), names.is_empty()) {
                (Some(only), true) => only,
                (None, _) => {
                    return Err(Error::failed(format!(
                        "the repository at {} holds no cluster yet",
                        store.location()
                    ))
                    .hint("Take a first backup with \"leeward backup\"."));
                }
                (Some(last), false) => {
                    names.push(last);
                    return Err(Error::new(
                        ErrorKind::Usage,
                        "the repository holds several clusters",
                    )
                    .hint(format!("Name one with --cluster: {}.", names.join(", "))));
                }
            }
        }
    };
    Ok(repository.cluster(&name)?)
}

/// Takes the cluster's lease for `what`. A bucket is asked first whether it honours conditional writes; one that does not
/// gets claims instead.
pub(crate) fn take_lease(store: &Arc<dyn Store>, cluster: &str, what: &str) -> Result<Lease> {
    let conditional_writes = match store.location() {
        RepositoryUrl::Local(_) => true,
        RepositoryUrl::Bucket { .. } => probe_conditional_writes(store.as_ref()).map_err(|e| {
            stored(
                "could not find out whether the store honours conditional writes".to_owned(),
                e,
            )
        })?,
    };
    let options = LeaseOptions {
        conditional_writes,
        ..LeaseOptions::default()
    };
    Lease::acquire(Arc::clone(store), cluster, what, &options).map_err(|e| {
        let kind = if matches!(e, LeaseError::Held { .. }) {
            ErrorKind::Held
        } else {
            ErrorKind::Failed
        };
        let error = Error::new(kind, e.to_string());
        match e.hint() {
            Some(hint) => error.hint(sentence(hint)),
            None => error,
        }
    })
}

/// Removes what backups that never finished have left. Only the holder of the lease may.
pub(crate) fn remove_unfinished(cluster: &Cluster, observe: Observer<'_>) -> Result<()> {
    for id in cluster.unfinished()? {
        cluster.remove(&id)?;
        observe(Event::Notice(format!(
            "Removed what the unfinished backup {id} had left."
        )));
    }
    Ok(())
}

impl From<RepositoryError> for Error {
    fn from(error: RepositoryError) -> Self {
        let kind = match &error {
            // Objects of a listed backup do not go missing by themselves.
            RepositoryError::Store(e) if e.is_not_found() => return missing(&error),
            _ if error.is_damage() => ErrorKind::Damaged,
            RepositoryError::ClusterMismatch { .. }
            | RepositoryError::WalConflict { .. }
            | RepositoryError::WalUnfinished { .. }
            | RepositoryError::WalRefused { .. } => ErrorKind::Refused,
            RepositoryError::InvalidClusterName { .. }
            | RepositoryError::NoBackup { .. }
            | RepositoryError::NoCluster { .. }
            | RepositoryError::AmbiguousBackup { .. } => ErrorKind::Usage,
            _ => ErrorKind::Failed,
        };
        let ours = Self::new(kind, error.to_string());
        match error.hint() {
            Some(hint) => ours.hint(sentence(hint)),
            None => ours,
        }
    }
}

/// A failure of the repository in the middle of something, with its kind and advice.
pub(crate) fn doing(what: &str, error: RepositoryError) -> Error {
    let plain = Error::from(error);
    let (kind, hint) = (plain.kind(), plain.advice().map(str::to_owned));
    let error = Error::new(kind, what).because(plain);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// An object that a listed backup needs is not there.
pub(crate) fn missing(error: &dyn std::error::Error) -> Error {
    Error::new(ErrorKind::Damaged, error.to_string())
        .hint("It belongs to a listed backup. Use another backup, or this one from another copy of the repository.")
}

/// The repository's hints are fragments; ours are sentences.
fn sentence(hint: &str) -> String {
    let mut letters = hint.chars();
    let first = letters
        .next()
        .map(|letter| letter.to_uppercase().to_string())
        .unwrap_or_default();
    format!("{first}{}.", letters.as_str().trim_end_matches('.'))
}
