//! A backup's WAL and the archive's under the same name have to be one.

use leeward_repository::catalog::Cluster;
use leeward_repository::summary::BackupSummary;
use leeward_repository::wal_archive::WalArchive;

use super::sources::segment_size_of;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::doing;

/// Holds the WAL of a backup to the archive's, which recovery asks first.
///
/// # Errors
/// [`ErrorKind::Refused`] where the archive has other WAL under the same name; those of the store.
pub(crate) fn check_one_history(cluster: &Cluster, summary: &BackupSummary) -> Result<()> {
    let size = segment_size_of(summary)?;
    let contradiction = WalArchive::new(cluster)
        .contradiction(summary, size)
        .map_err(|e| doing("could not compare the backup's WAL with the archive's", e))?;
    let Some(segment) = contradiction else {
        return Ok(());
    };
    let (id, name) = (&summary.id, cluster.name());
    Err(Error::new(
        ErrorKind::Refused,
        format!(
            "WAL segment \"{}\" of backup {id} is another one than that in the WAL archive of cluster \"{name}\"",
            segment.name(size)
        ),
    )
    .because("two servers went on from one moment, each on its own, and both use this cluster: recovery would mix what they did")
    .hint(format!("Let one of them use another cluster (--cluster). A backup of the server that archives restores: leeward list shows them. Without the archive, and so without any later WAL: leeward export {id} --to DIR")))
}
