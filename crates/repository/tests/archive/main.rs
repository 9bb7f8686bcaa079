//! The WAL archive, in a directory and in a bucket.

use std::sync::Arc;
use std::time::Duration;

use leeward_pgformat::WalSegmentSize;
use leeward_repository::catalog::{Cluster, Repository};
use leeward_repository::store::local::LocalStore;
use leeward_repository::store::memory::MemoryStore;
use leeward_repository::store::{self, Key, Secret, Store, StoreOptions, list_all};
use leeward_repository::url::RepositoryUrl;
use leeward_repository::wal_archive::WalArchive;
use leeward_tests::faults::FaultProxy;
use leeward_tests::s3::{ACCESS_KEY_ID, S3Server, SECRET_ACCESS_KEY};

mod files;
mod golden;
mod partial;
mod pieces;
mod refused;
mod segments;

/// An archive, and the store below it.
struct Place {
    archive: WalArchive,
    store: Arc<dyn Store>,
}

impl Place {
    fn new(store: Arc<dyn Store>) -> Place {
        // In a directory WAL is stored only where a repository is.
        if matches!(store.location(), RepositoryUrl::Local(_)) {
            Repository::open_or_create(Arc::clone(&store)).expect("a repository");
        }
        let cluster = Cluster::assumed(Arc::clone(&store), "main").expect("a name");
        Place {
            archive: WalArchive::new(&cluster),
            store,
        }
    }

    /// The bytes of an object.
    fn object(&self, key: &str) -> Vec<u8> {
        let key = self::key(key);
        let size = self.store.size(&key).expect("an object");
        self.store.get_range(&key, 0..size).expect("read").to_vec()
    }

    /// Puts an object there as nobody should.
    fn plant(&self, key: &str, content: &[u8]) {
        let key = self::key(key);
        self.store.delete(&key).expect("deleted");
        self.store
            .create(&key, content.to_vec().into())
            .expect("created");
    }

    fn keys(&self) -> Vec<String> {
        list_all(&*self.store, "main")
            .expect("listed")
            .into_iter()
            .map(|object| object.key.to_string())
            .collect()
    }
}

fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

fn mebibytes(size: u32) -> WalSegmentSize {
    WalSegmentSize::new(size << 20).expect("a size")
}

/// An archive in a directory, which lives as long as the first of the two.
fn local() -> (tempfile::TempDir, Place) {
    let folder = tempfile::tempdir().expect("a directory");
    let store = Arc::new(LocalStore::new(folder.path().join("repository")));
    (folder, Place::new(store))
}

/// An archive in a bucket behind a proxy that does no harm yet.
fn bucket() -> (S3Server, FaultProxy, Place) {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.address());
    let place = open(&server, proxy.endpoint());
    (server, proxy, place)
}

fn open(server: &S3Server, endpoint: String) -> Place {
    let url = RepositoryUrl::parse(&server.repository("team/one")).expect("a URL");
    let options = StoreOptions {
        endpoint: Some(endpoint),
        access_key_id: Some(Secret::new(ACCESS_KEY_ID)),
        secret_access_key: Some(Secret::new(SECRET_ACCESS_KEY)),
        retry_for: Duration::from_secs(30),
        ..StoreOptions::default()
    };
    Place::new(store::open(&url, &options).expect("opened"))
}

/// The same in memory, on an empty directory and an empty bucket.
fn on_each_store(check: impl Fn(&Place)) {
    check(&Place::new(Arc::new(MemoryStore::bucket())));
    let (_folder, place) = local();
    check(&place);
    let (_server, _proxy, place) = bucket();
    check(&place);
}
