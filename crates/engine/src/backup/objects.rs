//! The objects of a backup that is about to be committed.

use std::collections::HashMap;

use leeward_repository::backup_id::BackupId;
use leeward_repository::layout;
use leeward_repository::manifest::{ManifestInfo, WalRecord};
use leeward_repository::pack::PackInfo;
use leeward_repository::store::{Key, Store, list_all};

use crate::error::{Error, Result};
use crate::repository::doing;

/// Checks that everything that `backup.json` will promise is there, in its length: a store may lose what it took, and others may
/// remove it.
///
/// # Errors
/// The first object that is missing or has another length; those of the store.
pub(super) fn check_stored(
    store: &dyn Store,
    (cluster, id): (&str, &BackupId),
    packs: &[PackInfo],
    wal: &[WalRecord],
    manifest: &ManifestInfo,
) -> Result<()> {
    let listed = list_all(store, &layout::backup_folder(cluster, id))
        .map_err(|e| doing("could not list the objects of the backup", e.into()))?;
    let sizes: HashMap<Key, u64> = listed
        .into_iter()
        .map(|object| (object.key, object.size_bytes))
        .collect();
    let packs = packs
        .iter()
        .map(|pack| (layout::pack(cluster, id, pack.number), pack.size));
    let wal = wal.iter().map(|file| {
        let key = layout::backup_wal(cluster, id, &file.name);
        (key, file.stored_length)
    });
    let manifest = (layout::manifest(cluster, id), manifest.size);
    for (key, size) in packs.chain(wal).chain([manifest]) {
        let key = key?;
        let problem = match sizes.get(&key) {
            Some(found) if *found == size => continue,
            Some(found) => format!("has {found} bytes instead of {size}"),
            None => "is not there any more".to_owned(),
        };
        return Err(Error::failed(format!(
            "object \"{key}\", which this backup has stored, {problem}"
        ))
        .hint("Somebody or a rule of the bucket removed it, or the store lost it. Run the command again; if it fails again, do not trust this store."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use leeward_repository::hash::Hash;
    use leeward_repository::store::memory::MemoryStore;

    use super::*;

    #[test]
    fn an_object_that_was_lost_is_named() {
        let id: BackupId = "20261122T023000Z-k7q2".parse().expect("an id");
        let hash = Hash::of(b"");
        let packs = [1, 2].map(|number| PackInfo {
            number,
            size: 100,
            frames: 1,
            index_hash: hash,
        });
        let wal = [WalRecord {
            name: "000000010000000000000003".to_owned(),
            plain_length: 16 << 20,
            stored_length: 100,
            plain_hash: hash,
            stored_hash: hash,
        }];
        let manifest = ManifestInfo {
            size: 100,
            hash,
            files: 1,
            entries: 1,
            size_bytes: 1,
            wal_objects: 1,
        };
        let keys = [
            layout::pack("main", &id, 1),
            layout::pack("main", &id, 2),
            layout::backup_wal("main", &id, &wal[0].name),
            layout::manifest("main", &id),
        ]
        .map(|key| key.expect("a key"));
        let store = MemoryStore::bucket();
        let check = || check_stored(&store, ("main", &id), &packs, &wal, &manifest);
        for key in &keys {
            store
                .create(key, Bytes::from(vec![7; 100]))
                .expect("stored");
        }
        check().expect("all is there");
        for key in &keys {
            store.delete(key).expect("deleted");
            let lost = check().expect_err("it is lost").to_string();
            assert!(lost.contains(key.as_str()) && lost.contains("is not there any more"));
            store.create(key, Bytes::from_static(b"x")).expect("stored");
            let short = check().expect_err("it is short").to_string();
            assert!(short.contains("has 1 bytes instead of 100"), "{short}");
            store.delete(key).expect("deleted");
            store
                .create(key, Bytes::from(vec![7; 100]))
                .expect("stored");
        }
    }
}
