//! The repository as a command meets it: opened or created, held by a lease, rid of what an earlier run left unfinished.

use std::cell::Cell;
use std::sync::Arc;

use leeward_pgformat::{SystemIdentifier, TimelineId};
use leeward_repository::catalog::{Cluster, Repository};
use leeward_repository::conditional_writes::{ComparingStore, are_honored};
use leeward_repository::lease::{Lease, LeaseError, LeaseOptions, LeaseWait};
use leeward_repository::repository_error::RepositoryError;
use leeward_repository::store::Store;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};

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

/// The store as commands that write use it.
#[derive(Clone, Debug)]
pub(crate) struct Writable {
    /// A store that ignores the conditions of writes is wrapped: it compares before and after each write.
    pub store: Arc<dyn Store>,
    /// The store honors the conditions of writes.
    pub conditional_writes: bool,
}

impl Writable {
    /// Finds out whether the store honors the conditions of writes, and tells if it does not.
    pub(crate) fn open(store: &Arc<dyn Store>, observe: Observer<'_>) -> Result<Self> {
        let conditional_writes = are_honored(store.as_ref()).map_err(|e| {
            doing(
                "could not find out whether the store honors conditional writes",
                e,
            )
        })?;
        if !conditional_writes {
            observe(Event::Notice(format!(
                "The store at {} ignores conditional writes, so objects are compared before and after they are written: let no two \
                 servers archive the same timeline there.",
                store.location()
            )));
        }
        Ok(Self::known(Arc::clone(store), conditional_writes))
    }

    /// The same where it is known whether the store honors the conditions of writes.
    pub(crate) fn known(store: Arc<dyn Store>, conditional_writes: bool) -> Self {
        Self {
            store: match conditional_writes {
                true => store,
                false => Arc::new(ComparingStore::new(store)),
            },
            conditional_writes,
        }
    }
}

/// Why a lease is waited for.
fn waiting(cluster: &str, wait: &LeaseWait<'_>) -> String {
    let seconds = wait.left.as_secs_f64().ceil();
    match wait.holder {
        Some(holder) => format!(
            "Cluster \"{cluster}\" was last in use by a {holder}, which may be dead: it is taken over in {seconds} s unless its lease is renewed."
        ),
        None => format!(
            "The lease of cluster \"{cluster}\" cannot be read: it is taken over in {seconds} s unless somebody renews it."
        ),
    }
}

/// Takes the cluster's lease for `what`: by claims where the store ignores the conditions of writes.
pub(crate) fn take_lease(
    writable: &Writable,
    cluster: &str,
    what: &str,
    observe: Observer<'_>,
) -> Result<Lease> {
    let Writable {
        store,
        conditional_writes,
    } = writable;
    let options = LeaseOptions {
        conditional_writes: *conditional_writes,
        ..LeaseOptions::default()
    };
    let told = Cell::new(false);
    let tell = |wait: &LeaseWait<'_>| {
        if !told.replace(true) {
            observe(Event::Notice(waiting(cluster, wait)));
        }
        observe(Event::Waiting {
            what: "the holder of the lease",
            left: wait.left,
        });
    };
    Lease::acquire(Arc::clone(store), cluster, what, &options, &tell).map_err(|e| {
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
