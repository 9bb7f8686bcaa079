//! What can go wrong with a repository.

use leeward_pgformat::{Lsn, SystemIdentifier};

use crate::codec::CompressionError;
use crate::hash::Hash;
use crate::store::{RemoteProblem, StoreError};

/// A failed operation on a repository. Every message names the object; [`RepositoryError::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// The store failed.
    #[error(transparent)]
    Store(Box<StoreError>),
    /// An object is not what was written.
    #[error("object \"{object}\" is damaged: {part}: {problem}")]
    Damaged {
        /// The object's key.
        object: String,
        /// Which part of it: "frame 12", "index", "block 3 (\"base/5/1259\" to \"base/5/2619\")".
        part: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A newer leeward wrote this.
    #[error(
        "object \"{object}\" has {what} {found}, and this version of leeward knows up to {known}"
    )]
    NewerFormat {
        /// The object's key.
        object: String,
        /// "format version", "page transform", ...
        what: &'static str,
        /// The number found.
        found: u64,
        /// The highest number known.
        known: u64,
    },
    /// There is no repository.
    #[error("no repository at \"{location}\": object \"leeward.json\" does not exist")]
    NoRepository {
        /// Its URL.
        location: String,
    },
    /// There is a repository already.
    #[error("there is a repository at \"{location}\" already")]
    RepositoryExists {
        /// Its URL.
        location: String,
    },
    /// The folder belongs to another cluster.
    #[error(
        "cluster \"{cluster}\" in the repository has system identifier {recorded}, but this server has {found}"
    )]
    ClusterMismatch {
        /// The cluster's name in the repository.
        cluster: String,
        /// The system identifier in `cluster.json`.
        recorded: SystemIdentifier,
        /// The server's.
        found: SystemIdentifier,
    },
    /// A backup of another cluster, whose folder somebody copied here.
    #[error(
        "object \"{object}\" is of the cluster with system identifier {found}, and this folder is of {recorded}"
    )]
    ForeignBackup {
        /// The summary's key.
        object: String,
        /// The system identifier in `cluster.json`.
        recorded: SystemIdentifier,
        /// The backup's.
        found: SystemIdentifier,
    },
    /// Nothing has been backed up under this name.
    #[error("no cluster \"{cluster}\" in the repository")]
    NoCluster {
        /// The cluster's name.
        cluster: String,
    },
    /// A name that no cluster may have.
    #[error(
        "\"{name}\" cannot be the name of a cluster: use 1 to 63 of a-z, A-Z, 0-9, \"-\", \"_\" and \".\", beginning with a letter or digit"
    )]
    InvalidClusterName {
        /// The name.
        name: String,
    },
    /// No backup goes by this name.
    #[error("no backup \"{wanted}\" of cluster \"{cluster}\"")]
    NoBackup {
        /// What was asked for.
        wanted: String,
        /// The cluster.
        cluster: String,
    },
    /// Several backups go by this name.
    #[error("\"{wanted}\" may be any of {}", candidates.join(", "))]
    AmbiguousBackup {
        /// The prefix asked for.
        wanted: String,
        /// The ids it fits.
        candidates: Vec<String>,
    },
    /// The same backup is there already.
    #[error("backup \"{id}\" of cluster \"{cluster}\" is there already")]
    BackupExists {
        /// The backup.
        id: String,
        /// The cluster.
        cluster: String,
    },
    /// The caller handed over something that the format cannot hold.
    #[error("could not write \"{object}\": {problem}")]
    Unwritable {
        /// The object's key.
        object: String,
        /// Why.
        problem: String,
    },
    /// The archive has WAL under this name, or of this LSN range, that is not the same. Nothing was overwritten.
    #[error(
        "object \"{object}\" and {other} should be the same WAL, and differ{}: {theirs_length} bytes with hash {theirs}, and {ours_length} bytes with hash {ours}",
        differs_at.map(|lsn| format!(" from LSN {lsn} on")).unwrap_or_default()
    )]
    WalConflict {
        /// The key of the object that is there.
        object: String,
        /// What differs from it: the WAL being stored, or another object.
        other: String,
        /// The first LSN at which they differ, where that is known.
        differs_at: Option<Lsn>,
        /// Hash of the plain bytes of `object`.
        theirs: Hash,
        /// Their number.
        theirs_length: u64,
        /// Hash of the plain bytes of `other`.
        ours: Hash,
        /// Their number.
        ours_length: u64,
    },
    /// WAL that was to be stored is damaged: recovery would end there.
    #[error("WAL \"{wal}\" is damaged at LSN {lsn}: {problem}")]
    WalDamaged {
        /// The WAL file's name.
        wal: String,
        /// Where.
        lsn: Lsn,
        /// What is wrong there.
        problem: String,
    },
    /// A WAL segment that is not full: valid WAL ends inside of it, and no switch record says that this is meant.
    #[error("WAL \"{wal}\" is not a whole WAL segment: the WAL in it ends at LSN {end}: {problem}")]
    WalUnfinished {
        /// The WAL file's name.
        wal: String,
        /// Where the next record or page should be.
        end: Lsn,
        /// What is there instead.
        problem: String,
    },
    /// A file that is not what its name says, or that no archive takes.
    #[error("\"{wal}\" does not go into the WAL archive: {problem}")]
    WalRefused {
        /// The WAL file's name.
        wal: String,
        /// Why.
        problem: String,
    },
    /// A compression library refused to work.
    #[error(transparent)]
    Compression(#[from] CompressionError),
    /// The file being stored could not be read, or the one being restored not written.
    #[error("could not {action}: {source}")]
    Io {
        /// What was being done, and to which object.
        action: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl From<StoreError> for RepositoryError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

impl RepositoryError {
    /// An object, or a part of it, is not what it has to be.
    pub fn damaged(object: impl ToString, part: impl ToString, problem: impl ToString) -> Self {
        Self::Damaged {
            object: object.to_string(),
            part: part.to_string(),
            problem: problem.to_string(),
        }
    }

    /// An object is longer or shorter than it was when written.
    pub(crate) fn wrong_size(object: impl ToString, found: u64, recorded: u64) -> Self {
        Self::damaged(
            object,
            "size",
            format!("it has {found} bytes, not {recorded}"),
        )
    }

    /// Returns whether the error is about one object, and not about reaching the store: commands that do not need the object go on.
    #[must_use]
    pub fn is_about_one_object(&self) -> bool {
        self.is_damage() || self.is_closed() || matches!(self, RepositoryError::NewerFormat { .. })
    }

    /// Returns whether this user may not read the object: another one made it, or the store keeps it in an archive tier.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let RepositoryError::Store(error) = self else {
            return false;
        };
        matches!(
            **error,
            StoreError::PermissionDenied { .. }
                | StoreError::Remote {
                    problem: RemoteProblem::Forbidden | RemoteProblem::Archived,
                    ..
                }
        )
    }

    /// Whether data was found damaged, stored or about to be (exit code 4).
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::WalDamaged { .. } | Self::ForeignBackup { .. } => true,
            Self::Store(error) => matches!(
                **error,
                StoreError::Truncated { .. }
                    | StoreError::TooLarge { .. }
                    | StoreError::TooMany { .. }
            ),
            _ => false,
        }
    }

    /// What to do about it, in one sentence, where there is something to say.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Store(error) => error.hint(),
            Self::NewerFormat { .. } => {
                Some("use the version of leeward that wrote it, or a later one")
            }
            Self::NoRepository { .. } => {
                Some("check the URL; the first \"leeward backup\" creates the repository")
            }
            Self::ClusterMismatch { .. } => Some(
                "check the data directory and the URL; another cluster goes into the same repository under a name of its own, by --cluster NAME",
            ),
            Self::NoCluster { .. } => Some(
                "see \"leeward list\" for the clusters in the repository, and choose one with --cluster NAME",
            ),
            Self::NoBackup { .. } => Some("see \"leeward list\" for the backups there are"),
            Self::AmbiguousBackup { .. } => Some("give more letters of the backup's id"),
            Self::Damaged { .. } => Some(
                "restore the object from another copy of the repository, or use another backup",
            ),
            Self::WalConflict { .. } => Some(
                "two servers wrote the same timeline, or one file is damaged: compare the two with pg_waldump; the archive keeps the one that is there",
            ),
            Self::WalDamaged { .. } => Some(
                "recovery cannot go past this LSN: look for a sound copy of the file on another server, and take a new backup",
            ),
            Self::WalUnfinished { .. } => Some(
                "wait until the server has filled or switched it; the last one of a timeline is archived as .partial",
            ),
            _ => None,
        }
    }
}
