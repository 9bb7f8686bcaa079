//! A repository in memory with a backup and archived WAL, and the commands that use it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use leeward_engine::error::Result;
use leeward_engine::event::Event;
use leeward_engine::export::{ExportOutcome, ExportTo, export};
use leeward_engine::recovery::RecoveryTarget;
use leeward_engine::restore::{RestoreOutcome, restore};
use leeward_engine::wal::{GetMeans, GetOptions, GetOutcome, PushOptions, PushOutcome, get, push};
use leeward_fixtures::{Backup, SYSTEM_IDENTIFIER, Server, Wal, archive, first_record, record_end};
use leeward_pgformat::{TimelineId, WalSegmentSize};
use leeward_repository::catalog::{Cluster, Repository};
use leeward_repository::hash::Hash;
use leeward_repository::store::Store;
use leeward_repository::store::memory::MemoryStore;

use crate::restore_options::restore_options;

pub const CLUSTER: &str = "main";
pub const BACKUP: &str = "20261122T023000Z-k7q2";

/// A repository with one backup and the WAL around it.
pub struct World {
    pub memory: MemoryStore,
    pub store: Arc<dyn Store>,
    pub cluster: Cluster,
    pub wal: Wal,
    pub backup: Backup,
    /// For what commands write.
    pub folder: tempfile::TempDir,
}

impl World {
    /// Makes the repository. WAL has five segments of 1 MiB; the backup takes from the first to the third.
    pub fn new() -> World {
        let memory = MemoryStore::bucket();
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        let cluster = Repository::open_or_create(Arc::clone(&store))
            .and_then(|repository| repository.cluster(CLUSTER))
            .expect("a cluster");
        cluster
            .claim(SYSTEM_IDENTIFIER, TimelineId(1))
            .expect("claimed");
        let wal = wal(1, 5);
        let stop = record_end(&wal, wal.start + 2 * wal.size.bytes() + 4 * 8192);
        let backup = Backup::new(BACKUP, first_record(&wal)..stop);
        backup.store(&cluster, &wal);
        archive(&cluster, &wal);
        memory.clear_operations();
        World {
            memory,
            store,
            cluster,
            wal,
            backup,
            folder: tempfile::tempdir().expect("a directory"),
        }
    }

    /// The repository's objects by their hashes, but for what is remembered of the store.
    pub fn objects(&self) -> BTreeMap<String, Hash> {
        let objects = self.memory.objects();
        let objects = objects
            .iter()
            .map(|(key, content)| (key.to_string(), Hash::of(content)));
        objects
            .filter(|(key, _)| !key.starts_with("store-"))
            .collect()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn restore(&self, to: &str) -> Result<RestoreOutcome> {
        self.restore_to(None, RecoveryTarget::End, to)
    }

    /// Restores the backup of that name, or whichever leads to the target.
    pub fn restore_to(
        &self,
        backup: Option<&str>,
        target: RecoveryTarget,
        to: &str,
    ) -> Result<RestoreOutcome> {
        let mut options = restore_options(&self.path(to));
        options.backup = backup.map(str::to_owned);
        options.recovery.target = target;
        restore(&self.store, &options, &|_| {})
    }

    pub fn export(&self, to: &str) -> Result<ExportOutcome> {
        let to = ExportTo::Directory(self.path(to));
        export(&self.store, None, "latest", &to, io::sink(), &|_| {})
    }

    pub fn export_stream(&self, stream: impl io::Write) -> Result<ExportOutcome> {
        export(
            &self.store,
            None,
            "latest",
            &ExportTo::Stream,
            stream,
            &|_| {},
        )
    }

    /// A server without WAL of its own, in the directory `name`.
    pub fn server(&self, name: &str) -> Server {
        Server::create(&self.path(name), self.wal.size)
    }

    pub fn push(&self, path: &Path) -> Result<PushOutcome> {
        self.push_and_listen(path).0
    }

    /// Pushes; returns what it told, too.
    pub fn push_and_listen(&self, path: &Path) -> (Result<PushOutcome>, String) {
        let options = PushOptions {
            repository: self.store.location().clone(),
            cluster: CLUSTER.to_owned(),
            path: path.to_owned(),
            level: 1,
        };
        let told = Mutex::new(String::new());
        let outcome = push(&|| Ok(Arc::clone(&self.store)), &options, &|event| {
            if let Event::Notice(text) = event {
                told.lock().expect("no panic").push_str(&text);
            }
        });
        (outcome, told.into_inner().expect("no panic"))
    }

    pub fn get(&self, server: &Server, name: &str) -> Result<GetOutcome> {
        let options = GetOptions {
            repository: self.store.location().clone(),
            cluster: CLUSTER.to_owned(),
            name: name.to_owned(),
            path: server.data.join("pg_wal/RECOVERYXLOG"),
            prefetch: false,
            hole_is_known: false,
        };
        let means = GetMeans {
            open: &|| Ok(Arc::clone(&self.store)),
            start: &|_| Ok(()),
        };
        get(means, &options)
    }
}

/// WAL of `segments` whole segments from number 2 on, different for each seed.
pub fn wal(seed: u64, segments: u64) -> Wal {
    let size = WalSegmentSize::new(1 << 20).expect("a size");
    let mut wal = Wal::new(size, 2, seed);
    for number in 0..segments {
        wal.filler(5_000);
        wal.commit(700 + number as u32, 1_000_000 * (number as i64 + 1));
        wal.fill_segment(30_000);
    }
    wal
}

/// The regular files below a directory, by their path.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = |path: &Path| {
            let name = path.strip_prefix(folder).expect("inside");
            name.display().to_string()
        };
        if path.is_dir() {
            for (inside, bytes) in files(&path) {
                found.insert(format!("{}/{inside}", name(&path)), bytes);
            }
        } else {
            found.insert(name(&path), fs::read(&path).expect("a file"));
        }
    }
    found
}

/// The regular files in a compressed tar archive, by their path.
pub fn files_in_archive(archive: impl Read) -> BTreeMap<String, Vec<u8>> {
    let archive = zstd::Decoder::new(archive).expect("an archive");
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        if entry.header().entry_type().is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("its bytes");
            let path = entry.path().expect("its path").display().to_string();
            found.insert(path, bytes);
        }
    }
    found
}
