//! Looking into a pack by hand: what its frames hold, and the plain bytes of one of them.

use std::sync::Arc;

use leeward_repository::backup_id::BackupId;
use leeward_repository::catalog::Cluster;
use leeward_repository::frame::FrameDecoder;
use leeward_repository::layout;
use leeward_repository::pack::{PackIndex, PackInfo};
use leeward_repository::store::{Key, Store};

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};
use crate::repository;
use crate::restore::open_manifest;

/// One pack of a backup, its index read and proven.
pub struct OpenPack {
    store: Arc<dyn Store>,
    key: Key,
    backup: BackupId,
    index: PackIndex,
}

impl OpenPack {
    /// Opens pack `number` of `backup`: an id, a unique prefix of one, or `latest`. A backup named by its whole id may have
    /// lost its summary or its manifest: the pack's index then proves itself, and `observe` is told so.
    ///
    /// # Errors
    /// When there is no such backup or pack, or it is damaged.
    pub fn open(
        store: &Arc<dyn Store>,
        cluster: Option<&str>,
        backup: &str,
        number: u32,
        observe: Observer<'_>,
    ) -> Result<Self> {
        let cluster = repository::open(store, cluster)?;
        let (id, info) = match find(store, &cluster, backup, number) {
            Ok((id, info)) => (id, Some(info)),
            Err(error) => match backup.parse() {
                Ok(id) if error.kind() == ErrorKind::Damaged => {
                    observe(Event::Notice(format!(
                        "What the backup says of its packs cannot be believed ({error}): pack {number} is taken as it is."
                    )));
                    (id, None)
                }
                _ => return Err(error),
            },
        };
        let key = layout::pack(cluster.name(), &id, number)?;
        let index = PackIndex::read(store.as_ref(), &key, info.as_ref())?;
        Ok(Self {
            store: Arc::clone(store),
            key,
            backup: id,
            index,
        })
    }

    /// The backup that it belongs to.
    #[must_use]
    pub fn backup(&self) -> &BackupId {
        &self.backup
    }

    /// What it holds.
    #[must_use]
    pub fn index(&self) -> &PackIndex {
        &self.index
    }

    /// The plain bytes of frame `number`, proven.
    ///
    /// # Errors
    /// When there is no such frame, or it is damaged.
    pub fn frame(&self, number: u32) -> Result<Vec<u8>> {
        let count = self.index.frames.len();
        if number as usize >= count {
            let missing = format!("object \"{}\" has no frame {number}", self.key);
            return Err(Error::new(ErrorKind::Usage, missing)
                .hint(format!("It has {count}, counted from 0.")));
        }
        let mut decoder = FrameDecoder::new();
        Ok(self
            .index
            .read_frame(self.store.as_ref(), &self.key, number, &mut decoder)?)
    }
}

/// What the manifest knows of the pack.
fn find(
    store: &Arc<dyn Store>,
    cluster: &Cluster,
    backup: &str,
    number: u32,
) -> Result<(BackupId, PackInfo)> {
    let summary = cluster.resolve(backup)?;
    let manifest = open_manifest(store, cluster, &summary)?;
    // The first source is the backup itself.
    let packs = manifest.sources().first().map_or(&[][..], |own| &own.packs);
    match packs.iter().find(|pack| pack.number == number) {
        Some(info) => Ok((summary.id, *info)),
        None => Err(Error::new(
            ErrorKind::Usage,
            format!("backup {} has no pack {number}", summary.id),
        )
        .hint(format!("It has {}, counted from 0.", packs.len()))),
    }
}
