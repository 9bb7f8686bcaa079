//! What can go wrong with a store.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::store::{InvalidKey, Key};
use crate::url::RepositoryUrl;

/// A failed operation on a store. No variant ever carries a secret, nor a server's answer word for word.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The object is not there.
    #[error("object \"{key}\" does not exist in {location}")]
    NotFound {
        /// The object.
        key: Key,
        /// The repository.
        location: RepositoryUrl,
    },
    /// A conditional create found the name taken.
    #[error("object \"{key}\" already exists in {location}")]
    AlreadyExists {
        /// The object.
        key: Key,
        /// The repository.
        location: RepositoryUrl,
    },
    /// A conditional replace found another version than the expected one, or none.
    #[error("object \"{key}\" in {location} was changed by someone else")]
    Conflict {
        /// The object.
        key: Key,
        /// The repository.
        location: RepositoryUrl,
    },
    /// An object is shorter than what was to be read of it.
    #[error(
        "object \"{key}\" in {location} ends early: byte {wanted_end} was wanted, and it has {size_bytes} bytes"
    )]
    Truncated {
        /// The object.
        key: Key,
        /// The repository.
        location: RepositoryUrl,
        /// The end of the range that was asked for.
        wanted_end: u64,
        /// The size the object has.
        size_bytes: u64,
    },
    /// An object is longer than any of its kind.
    #[error(
        "object \"{key}\" in {location} has {size_bytes} bytes, and an object of its kind at most {limit_bytes}"
    )]
    TooLarge {
        /// The object.
        key: Key,
        /// The repository.
        location: RepositoryUrl,
        /// The size it has.
        size_bytes: u64,
        /// The most bytes that are read.
        limit_bytes: u64,
    },
    /// A folder holds more than any of its kind.
    #[error(
        "folder \"{folder}\" in {location} holds more than {limit} {what}, which no folder of its kind does"
    )]
    TooMany {
        /// The folder; empty for the repository itself.
        folder: String,
        /// The repository.
        location: RepositoryUrl,
        /// Of what, in the plural.
        what: &'static str,
        /// The most that are looked at.
        limit: u64,
    },
    /// A name that no object can have.
    #[error(transparent)]
    InvalidKey(#[from] InvalidKey),
    /// The file system has no room.
    #[error(
        "could not write \"{}\": no space left on device ({needed_bytes} bytes needed, {} free)",
        path.display(), free(*free_bytes)
    )]
    DiskFull {
        /// The file being written.
        path: PathBuf,
        /// The bytes that were to be written.
        needed_bytes: u64,
        /// The bytes the file system has left for us, where it says so.
        free_bytes: Option<u64>,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A directory or file may not be used by this user.
    #[error("could not {action} \"{}\": permission denied", path.display())]
    PermissionDenied {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Any other failure of the local file system.
    #[error("could not {action} \"{}\": {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A failure of an object store, after all retries.
    #[error("could not {action} {object} in {location}: {problem}")]
    Remote {
        /// What was being done: "read", "write", "list", "delete".
        action: &'static str,
        /// The object or folder, quoted.
        object: String,
        /// The repository.
        location: RepositoryUrl,
        /// What the failure means.
        problem: RemoteProblem,
        /// How often it was tried.
        attempts: u32,
    },
    /// The store's options do not work.
    #[error("could not use {location}: {reason}")]
    Options {
        /// The repository.
        location: RepositoryUrl,
        /// What is wrong.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
}

/// What a failure of an object store means to the person who has to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RemoteProblem {
    /// The bucket or container does not exist.
    BucketMissing,
    /// The credentials are known, but may not do this.
    Forbidden,
    /// The credentials are unknown, wrong or expired; the text is the server's error code.
    BadCredentials(String),
    /// No credentials were found anywhere.
    NoCredentials,
    /// The bucket lies in another region; the right one where the server names it.
    WrongRegion(Option<String>),
    /// The clocks of client and server are too far apart for signatures.
    ClockSkew,
    /// No TLS connection: certificate or protocol. The text is the library's reason.
    Tls(String),
    /// The endpoint's name has no address.
    NameNotResolved(String),
    /// Nobody answers at the endpoint.
    Unreachable(String),
    /// The server did not answer in time.
    TimedOut,
    /// The server asked to come back later, again and again: its status.
    Unavailable(u16),
    /// The connection broke, again and again.
    ConnectionLost,
    /// The server does not know conditional writes.
    NoConditionalWrites,
    /// The archive tier holds it: it has to be brought back first.
    Archived,
    /// Anything else: HTTP status and the server's error code where known.
    Other(String),
}

impl RemoteProblem {
    /// What to do about it, in one sentence.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            RemoteProblem::BucketMissing => {
                "create the bucket, or correct its name in the repository's URL, or set the endpoint it lies at"
            }
            RemoteProblem::Forbidden => {
                "allow these credentials to list the bucket and to get, put and delete objects under the repository's prefix"
            }
            RemoteProblem::BadCredentials(_) => {
                "check access_key_id, secret_access_key and session_token, and that they belong to this endpoint"
            }
            RemoteProblem::NoCredentials => {
                "put them into the configuration file, the environment or the credentials file, or give this instance a role"
            }
            RemoteProblem::WrongRegion(_) => {
                "set region in [repository] or AWS_REGION to the bucket's region"
            }
            RemoteProblem::ClockSkew => "set this host's clock right (NTP)",
            RemoteProblem::Tls(_) => {
                "give the certificate authority's certificate as ca_certificate, and check that the endpoint's name is the certificate's"
            }
            RemoteProblem::NameNotResolved(_) => {
                "check the endpoint and this host's name resolution; a server that does not serve buckets as host names needs path_style = true"
            }
            RemoteProblem::Unreachable(_) => {
                "check the endpoint, its port, and the firewall between"
            }
            RemoteProblem::TimedOut | RemoteProblem::ConnectionLost => {
                "check the network to the endpoint; smaller part_bytes help on a slow line"
            }
            RemoteProblem::Unavailable(_) => "try again later, or lower the concurrency",
            RemoteProblem::NoConditionalWrites => return None,
            RemoteProblem::Archived => {
                "restore the object from the archive tier at the provider first"
            }
            RemoteProblem::Other(_) => return None,
        })
    }
}

impl fmt::Display for RemoteProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RemoteProblem::BucketMissing => write!(f, "the bucket does not exist"),
            RemoteProblem::Forbidden => write!(f, "access is forbidden to these credentials"),
            RemoteProblem::BadCredentials(code) if code.is_empty() => {
                write!(f, "the credentials are refused")
            }
            RemoteProblem::BadCredentials(code) => {
                write!(f, "the credentials are refused ({code})")
            }
            RemoteProblem::NoCredentials => write!(f, "no credentials were found"),
            RemoteProblem::WrongRegion(Some(region)) => {
                write!(f, "the bucket lies in region \"{region}\"")
            }
            RemoteProblem::WrongRegion(None) => write!(f, "the bucket lies in another region"),
            RemoteProblem::ClockSkew => {
                write!(f, "this host's clock differs too much from the server's")
            }
            RemoteProblem::Tls(reason) => write!(f, "no secure connection: {reason}"),
            RemoteProblem::NameNotResolved(name) => {
                write!(f, "the name \"{name}\" could not be resolved")
            }
            RemoteProblem::Unreachable(endpoint) => write!(f, "nothing answers at {endpoint}"),
            RemoteProblem::TimedOut => write!(f, "the server did not answer in time"),
            RemoteProblem::Unavailable(status) => {
                write!(f, "the server is overloaded or down (HTTP status {status})")
            }
            RemoteProblem::ConnectionLost => write!(f, "the connection broke"),
            RemoteProblem::NoConditionalWrites => {
                write!(f, "the server does not support conditional writes")
            }
            RemoteProblem::Archived => write!(f, "the object lies in an archive tier"),
            RemoteProblem::Other(reason) => write!(f, "{reason}"),
        }
    }
}

impl StoreError {
    /// What to do about it, in one sentence, where there is something to say.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            StoreError::DiskFull { .. } => {
                Some("free some space there, or move the repository to a larger file system")
            }
            StoreError::PermissionDenied { .. } => Some(
                "give the user this runs as read and write permission on the repository's directory",
            ),
            StoreError::Remote { problem, .. } => problem.hint(),
            StoreError::Options { hint, .. } => Some(hint),
            StoreError::NotFound { .. }
            | StoreError::AlreadyExists { .. }
            | StoreError::Conflict { .. }
            | StoreError::Truncated { .. }
            | StoreError::TooLarge { .. }
            | StoreError::TooMany { .. }
            | StoreError::InvalidKey(_)
            | StoreError::Io { .. } => None,
        }
    }

    /// Whether the object was simply not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, StoreError::NotFound { .. })
    }

    /// Puts a system error into the variant that says most.
    pub(crate) fn from_io(
        action: &'static str,
        path: impl Into<PathBuf>,
        needed_bytes: u64,
        source: io::Error,
    ) -> StoreError {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::DiskFull {
                free_bytes: free_space_bytes(&path),
                path,
                needed_bytes,
                source,
            },
            io::ErrorKind::PermissionDenied => StoreError::PermissionDenied {
                action,
                path,
                source,
            },
            _ => StoreError::Io {
                action,
                path,
                source,
            },
        }
    }
}

fn free(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), |bytes| bytes.to_string())
}

/// What the file system that holds `path` (or its nearest existing parent) has left for an ordinary user.
fn free_space_bytes(path: &std::path::Path) -> Option<u64> {
    let space = path
        .ancestors()
        .find_map(|place| rustix::fs::statvfs(place).ok())?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}
