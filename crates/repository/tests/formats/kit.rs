//! A repository in a directory, and things to put into it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use leeward_fixtures::{heap_pages, noise, rows};
use leeward_pgformat::{
    BlockNumber, Lsn, RecordPart, RestorePoint, SystemIdentifier, TimelineId, TimestampTz,
    WalContents,
};
use leeward_repository::RepositoryError;
use leeward_repository::codec::{Compression, FrameCompression};
use leeward_repository::file_path::FilePath;
use leeward_repository::frame::{EncodedFrame, FrameEncoder};
use leeward_repository::hash::Hash;
use leeward_repository::manifest::{
    Content, FileKind, FileRecord, ManifestInfo, ManifestWriter, Run, WalRecord,
};
use leeward_repository::pack::{PackInfo, PackWriter};
use leeward_repository::store::local::LocalStore;
use leeward_repository::store::{Key, Store};
use leeward_repository::summary::{
    BackupFrom, BackupSummary, DamagedRelation, Lag, ManifestSummary, Owner, ReplayLag,
    TablespaceSummary, WalSummary,
};
use leeward_repository::wal_object::WalSource;

pub struct Place {
    pub folder: tempfile::TempDir,
    pub store: Arc<dyn Store>,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let store = Arc::new(LocalStore::new(folder.path().to_path_buf()));
        Self { folder, store }
    }

    pub fn path(&self, key: &Key) -> PathBuf {
        self.folder.path().join(key.as_str())
    }

    pub fn bytes(&self, key: &Key) -> Vec<u8> {
        std::fs::read(self.path(key)).expect("an object")
    }

    /// Puts bytes under a key as nobody should: in place.
    pub fn overwrite(&self, key: &Key, bytes: &[u8]) {
        let path = self.path(key);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        // Without truncating it first: some file systems then flush it at once, a thousand times a test.
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .expect("an object");
        file.write_all_at(bytes, 0).expect("write");
        file.set_len(bytes.len() as u64).expect("cut");
    }
}

pub fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

pub fn file(path: &str) -> FilePath {
    FilePath::in_data_directory(path)
}

/// A pack of three frames: pages that compress, two small files that do not, pages in LZ4.
pub fn write_small_pack(store: &dyn Store, key: &Key) -> Result<PackInfo, RepositoryError> {
    let mut pack = PackWriter::create(store, key, 7)?;
    let relation = file("base/5/16384.1");
    let version = file("PG_VERSION");
    let outside = FilePath::configuration(b"/etc/postgresql/15/main/pg_hba.conf");
    let (zstd, lz4) = (Compression::default(), Compression::Lz4);
    pack.append(
        plain_frame(zstd, &rows(2 * 8192), &[131_073, 131_074]),
        &[(&relation, 8192, 16384)],
    )?;
    pack.append(
        plain_frame(zstd, &noise(300, 1), &[]),
        &[(&version, 0, 3), (&outside, 0, 297)],
    )?;
    pack.append(
        plain_frame(lz4, &rows(8192), &[131_072]),
        &[(&relation, 0, 8192)],
    )?;
    pack.finish()
}

/// A frame without the page transform; `blocks` are those of its pages, none for other bytes.
pub fn plain_frame(compression: Compression, plain: &[u8], blocks: &[u32]) -> EncodedFrame {
    frame(FrameCompression::Plain(compression), plain, blocks)
}

/// A frame on its own.
pub fn frame(compression: FrameCompression, plain: &[u8], blocks: &[u32]) -> EncodedFrame {
    let blocks: Vec<BlockNumber> = blocks.iter().copied().map(BlockNumber).collect();
    FrameEncoder::new(compression)
        .encode(plain, &blocks, &mut None)
        .expect("a frame")
}

/// A pack of two frames of pages taken apart: a stretch of one relation, and pages of two.
pub fn write_pages_pack(store: &dyn Store, key: &Key) -> Result<PackInfo, RepositoryError> {
    let mut pack = PackWriter::create(store, key, 7)?;
    let (one, other) = (file("base/5/16384.1"), file("base/5/16390"));
    let apart = FrameCompression::default();
    let blocks = [131_073, 131_074, 131_075];
    pack.append(
        frame(apart, &heap_pages(&blocks), &blocks),
        &[(&one, 8192, 3 * 8192)],
    )?;
    let blocks = [131_072, 0];
    pack.append(
        frame(apart, &heap_pages(&blocks), &blocks),
        &[(&one, 0, 8192), (&other, 0, 8192)],
    )?;
    pack.finish()
}

pub fn small_records() -> Vec<FileRecord> {
    let record = |path: FilePath, kind| FileRecord {
        path,
        kind,
        mode: 0o600,
        owner: None,
        mtime: 1_795_000_000,
        damaged: Vec::new(),
    };
    let run = |frame, frame_offset, file_offset, length| Run {
        source: 0,
        pack: 7,
        frame,
        frame_offset,
        file_offset,
        length,
    };
    vec![
        FileRecord {
            damaged: vec![131_072, 131_074],
            ..record(
                file("base/5/16384.1"),
                FileKind::File {
                    size: 10 * 8192,
                    content: Content::Runs(vec![run(2, 0, 0, 8192), run(0, 0, 8192, 16384)]),
                },
            )
        },
        record(
            file("PG_VERSION"),
            FileKind::File {
                size: 3,
                content: Content::Runs(vec![run(1, 0, 0, 3)]),
            },
        ),
        record(
            file("backup_label"),
            FileKind::File {
                size: 29,
                content: Content::Inline(b"START WAL LOCATION: 0/2000028".to_vec()),
            },
        ),
        FileRecord {
            owner: Some((0, 107)),
            ..record(
                FilePath::configuration(b"/etc/postgresql/15/main/pg_hba.conf"),
                FileKind::File {
                    size: 297,
                    content: Content::Runs(vec![run(1, 3, 0, 297)]),
                },
            )
        },
        record(file("pg_notify"), FileKind::Directory),
        record(
            file("pg_tblspc/16400"),
            FileKind::Symlink {
                target: b"/mnt/fast/\xff".to_vec(),
            },
        ),
        record(
            file("pg_empty"),
            FileKind::File {
                size: 0,
                content: Content::Runs(Vec::new()),
            },
        ),
    ]
}

pub fn small_wal() -> WalRecord {
    WalRecord {
        name: "000000010000000000000002".to_owned(),
        plain_length: 16 << 20,
        stored_length: 4_711,
        plain_hash: Hash::of(b"plain"),
        stored_hash: Hash::of(b"stored"),
    }
}

pub fn write_small_manifest(
    store: &dyn Store,
    key: &Key,
    packs: &[PackInfo],
) -> Result<ManifestInfo, RepositoryError> {
    let mut manifest = ManifestWriter::create(store, key)?;
    for record in small_records() {
        manifest.add_file(&record)?;
    }
    manifest.add_wal(&small_wal())?;
    manifest.finish(packs)
}

pub fn summary() -> BackupSummary {
    BackupSummary {
        format_version: 1,
        id: "20261122T023000Z-k7q2".parse().expect("an id"),
        cluster: "main".to_owned(),
        system_identifier: SystemIdentifier(7_412_345_678_901_234_567),
        postgres_version: "15.18".to_owned(),
        major: 15,
        from: BackupFrom::Standby,
        host: "db2".to_owned(),
        label: "leeward 20261122T023000Z-k7q2".to_owned(),
        started_at: "2026-11-22T02:30:00Z".to_owned(),
        finished_at: "2026-11-22T02:30:07Z".to_owned(),
        start_lsn: Lsn(0x0200_0028),
        start_timeline: TimelineId(1),
        checkpoint_lsn: Lsn(0x0200_0060),
        stop_lsn: Lsn(0x16_B374_D848),
        consistent_lsn: None,
        stop_timeline: TimelineId(1),
        wal: WalSummary {
            first: "000000010000000000000002".to_owned(),
            last: "000000010000000000000003".to_owned(),
            count: 2,
            bytes: 20 << 20,
            stored_bytes: 4_711,
            segment_size_bytes: 16 << 20,
            history: vec!["00000001.history".to_owned()],
        },
        data_checksums: true,
        files: 19_000,
        size_bytes: 4 << 30,
        stored_bytes: 600 << 20,
        pages_checked: 500_000,
        damaged: vec![DamagedRelation {
            missing: false,
            relation: "base/5/16384.1".to_owned(),
            blocks: vec![131_072, 131_074],
        }],
        compression: "zstd:3".to_owned(),
        packs: 5,
        manifest: ManifestSummary {
            size_bytes: 1_000,
            hash: Hash::of(b"manifest"),
        },
        tablespaces: vec![TablespaceSummary {
            oid: leeward_pgformat::Oid(16400),
            path: "/mnt/fast".to_owned(),
            in_place: false,
        }],
        data_directory: "/var/lib/postgresql/15/main".to_owned(),
        wal_directory: None,
        configuration_files: vec!["/etc/postgresql/15/main/pg_hba.conf".to_owned()],
        configuration: None,
        replay_lag: Some(ReplayLag {
            before: Lag {
                bytes: 0,
                seconds: None,
            },
            after: Lag {
                bytes: 8_192,
                seconds: Some(0.25),
            },
        }),
        leeward_version: "0.1.0".to_owned(),
        owner: Owner {
            user: Some("postgres".to_owned()),
            group: Some("postgres".to_owned()),
            uid: 105,
            gid: 112,
        },
    }
}

/// What some WAL says.
pub fn wal_contents() -> WalContents {
    WalContents {
        first_record: Some(Lsn(0x0200_0028)),
        last_record: Some(Lsn(0x02FF_FF00)),
        end: Some(Lsn(0x02FF_FF30)),
        switch: None,
        commits: 1_234,
        aborts: 5,
        first_time: Some(TimestampTz(848_705_728_138_190)),
        last_time: Some(TimestampTz(848_705_771_679_389)),
        xids: Some((740, 1_983)),
        checkpoint_time: None,
        restore_points: vec![RestorePoint {
            name: "before the migration".to_owned(),
            time: TimestampTz(848_705_730_000_000),
            lsn: Lsn(0x0210_0000),
        }],
        more_restore_points: false,
        previous_record: Some(Lsn(0x01FF_FFA0)),
        tail: Some(RecordPart {
            length: 3,
            head: vec![1, 2, 3],
            checksum: 0x1234_5678,
        }),
        open: Some((
            Lsn(0x02FF_FF30),
            RecordPart {
                length: 200,
                head: (0..128).collect(),
                checksum: 0x9ABC_DEF0,
            },
        )),
        overwrites: false,
        has_requirements: true,
        custom_managers: 1 << 2,
    }
}

/// Plain bytes with [`wal_contents`].
pub struct ScannedWal<'a>(pub &'a [u8]);

impl Read for ScannedWal<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl WalSource for ScannedWal<'_> {
    fn contents(&mut self) -> Option<WalContents> {
        Some(wal_contents())
    }
}
