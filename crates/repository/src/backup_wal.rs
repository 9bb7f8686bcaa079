//! The WAL files that lie with a backup, in the folder `wal` beside its packs.

use std::io::Write;

use leeward_pgformat::WalContents;

use crate::backup_id::BackupId;
use crate::catalog::Cluster;
use crate::layout;
use crate::repository_error::RepositoryError;
use crate::wal_object::{
    WalObjectInfo, read_history_object, read_wal_object, read_wal_object_contents,
};

impl Cluster {
    /// Writes the WAL segment or timeline history file `name` of a backup to `to`. What was written may be used only if
    /// this returns `Ok`. `stored_length` is the object's size where it is known: that saves a request.
    ///
    /// # Errors
    /// [`RepositoryError::Damaged`], [`RepositoryError::NewerFormat`]; those of the store and of `to`.
    pub fn read_backup_wal(
        &self,
        backup: &BackupId,
        name: &str,
        stored_length: Option<u64>,
        to: &mut dyn Write,
    ) -> Result<WalObjectInfo, RepositoryError> {
        let key = layout::backup_wal(self.name(), backup, name)?;
        let store = &**self.store();
        let length = stored_length.map_or_else(|| store.size(&key), Ok)?;
        read_wal_object(store, &key, length, to)
    }

    /// The text of the timeline history file `name` of a backup.
    ///
    /// # Errors
    /// As [`Cluster::read_backup_wal`]; [`RepositoryError::Damaged`] when it has more than 1 MiB.
    pub fn read_backup_history(
        &self,
        backup: &BackupId,
        name: &str,
    ) -> Result<Vec<u8>, RepositoryError> {
        let key = layout::backup_wal(self.name(), backup, name)?;
        Ok(read_history_object(&**self.store(), &key)?.1)
    }

    /// The summary of a WAL segment of a backup; `None` where its object has none.
    ///
    /// # Errors
    /// As [`Cluster::read_backup_wal`].
    pub fn backup_wal_contents(
        &self,
        backup: &BackupId,
        name: &str,
    ) -> Result<Option<WalContents>, RepositoryError> {
        let key = layout::backup_wal(self.name(), backup, name)?;
        let store = &**self.store();
        read_wal_object_contents(store, &key, store.size(&key)?)
    }

    /// Whether a WAL file lies with a backup.
    ///
    /// # Errors
    /// Those of the store.
    pub fn has_backup_wal(&self, backup: &BackupId, name: &str) -> Result<bool, RepositoryError> {
        let key = layout::backup_wal(self.name(), backup, name)?;
        match self.store().size(&key) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
