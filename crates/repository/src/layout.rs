//! The name of every object of a repository, in one place.
//!
//! ```text
//! leeward.json                               the repository's id and format version
//! store-<hash>.json                          whether the store honors conditional writes, as it was probed
//! <cluster>/cluster.json                     system identifier, timelines seen
//! <cluster>/lease.json                       who works here now
//! <cluster>/backups/<id>/backup.json         the summary; its presence is the commit
//! <cluster>/backups/<id>/manifest            files, page maps, checksums
//! <cluster>/backups/<id>/packs/<n>.pack      frames and their index
//! <cluster>/backups/<id>/wal/<name>.zst      WAL from start to stop LSN
//! <cluster>/wal/<timeline>/<name>.zst        the archive: whole WAL segments, history files
//! <cluster>/wal/<timeline>/<segment>/<begin>-<end>.zst   a piece of a WAL segment
//! <cluster>/wal/<timeline>/<begin>-<end>.gap.json        WAL that was lost on its way
//! ```

use std::ops::Range;

use leeward_pgformat::{Lsn, TimelineId};

use crate::backup_id::BackupId;
use crate::hash::Hash;
use crate::repository_error::RepositoryError;
use crate::store::{Key, StoreError};

/// Name of the object that makes a folder a repository.
pub const REPOSITORY_FILE: &str = "leeward.json";

fn key(text: String) -> Result<Key, RepositoryError> {
    Ok(Key::new(text).map_err(StoreError::from)?)
}

/// `leeward.json`.
pub fn repository() -> Result<Key, RepositoryError> {
    key(REPOSITORY_FILE.to_owned())
}

/// `store-<hash>.json`, the hash being of the endpoint and the repository's address.
pub fn probe(endpoint: &str, repository: &str) -> Result<Key, RepositoryError> {
    let hash = Hash::of_parts(&[endpoint.as_bytes(), b"\0", repository.as_bytes()]);
    let digits: String = hash.0[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    key(format!("store-{digits}.json"))
}

/// `<cluster>/cluster.json`.
pub fn cluster(cluster: &str) -> Result<Key, RepositoryError> {
    key(format!("{cluster}/cluster.json"))
}

/// `<cluster>/lease.json`.
pub fn lease(cluster: &str) -> Result<Key, RepositoryError> {
    key(format!("{cluster}/lease.json"))
}

/// The folder `<cluster>/backups`.
#[must_use]
pub fn backups_folder(cluster: &str) -> String {
    format!("{cluster}/backups")
}

/// The folder `<cluster>/backups/<id>`.
#[must_use]
pub fn backup_folder(cluster: &str, id: &BackupId) -> String {
    format!("{cluster}/backups/{id}")
}

/// `<cluster>/backups/<id>/backup.json`.
pub fn summary(cluster: &str, id: &BackupId) -> Result<Key, RepositoryError> {
    key(format!("{cluster}/backups/{id}/backup.json"))
}

/// `<cluster>/backups/<id>/manifest`.
pub fn manifest(cluster: &str, id: &BackupId) -> Result<Key, RepositoryError> {
    key(format!("{cluster}/backups/{id}/manifest"))
}

/// `<cluster>/backups/<id>/packs/<number>.pack`, the number in at least six digits.
pub fn pack(cluster: &str, id: &BackupId, number: u32) -> Result<Key, RepositoryError> {
    key(format!("{cluster}/backups/{id}/packs/{number:06}.pack"))
}

/// `<cluster>/backups/<id>/wal/<name>.zst`; `name` is a WAL segment's or a timeline history file's.
pub fn backup_wal(cluster: &str, id: &BackupId, name: &str) -> Result<Key, RepositoryError> {
    key(format!("{cluster}/backups/{id}/wal/{name}.zst"))
}

/// `<cluster>/wal/<timeline>/<name>.zst`, the timeline in eight hexadecimal digits as in WAL segment names.
pub fn archived_wal(
    cluster: &str,
    timeline: TimelineId,
    name: &str,
) -> Result<Key, RepositoryError> {
    key(format!("{cluster}/wal/{:08X}/{name}.zst", timeline.0))
}

/// The folder `<cluster>/wal`.
#[must_use]
pub fn archive_folder(cluster: &str) -> String {
    format!("{cluster}/wal")
}

/// The folder `<cluster>/wal/<timeline>`.
#[must_use]
pub fn archived_timeline_folder(cluster: &str, timeline: TimelineId) -> String {
    format!("{cluster}/wal/{:08X}", timeline.0)
}

/// The folder `<cluster>/wal/<timeline>/<segment>`: pieces of the WAL segment of that name.
#[must_use]
pub fn pieces_folder(cluster: &str, timeline: TimelineId, segment: &str) -> String {
    format!("{cluster}/wal/{:08X}/{segment}", timeline.0)
}

/// `<cluster>/wal/<timeline>/<segment>/<begin>-<end>.zst`, LSNs in 16 hexadecimal digits, so that names sort.
pub fn archived_piece(
    cluster: &str,
    timeline: TimelineId,
    segment: &str,
    range: &Range<Lsn>,
) -> Result<Key, RepositoryError> {
    key(format!(
        "{cluster}/wal/{:08X}/{segment}/{:016X}-{:016X}.zst",
        timeline.0, range.start.0, range.end.0
    ))
}

/// `<cluster>/wal/<timeline>/<begin>-<end>.gap.json`, LSNs in 16 hexadecimal digits.
pub fn wal_gap(
    cluster: &str,
    timeline: TimelineId,
    range: &Range<Lsn>,
) -> Result<Key, RepositoryError> {
    key(format!(
        "{cluster}/wal/{:08X}/{:016X}-{:016X}.gap.json",
        timeline.0, range.start.0, range.end.0
    ))
}
