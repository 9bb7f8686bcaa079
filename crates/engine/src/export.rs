//! An export: the backup as two compressed tar archives that need nothing but `tar` and PostgreSQL. Extracted on top of
//! each other they are a data directory that starts and is consistent; tablespaces come along inside it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use leeward_postgres::data_directory::path_from_bytes;
use leeward_repository::codec::Decompressor;
use leeward_repository::file_path::Root;
use leeward_repository::manifest::{
    Content, Entry, FileKind, FileRecord, ManifestReader, Run, WalRecord,
};
use leeward_repository::store::Store;
use leeward_repository::summary::BackupSummary;
use tar::{Builder, EntryType, Header};

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer, Phase};
use crate::frames::{Packs, decode};
use crate::repository;
use crate::configuration::FOLDER;
use crate::restore::finish::{read_wal, recovery_settings};
use crate::restore::open_manifest;

/// zstd level of the archives.
const LEVEL: i32 = 3;

/// Where linked tablespaces lie in the archive, relative to the data directory.
const TABLESPACES: &str = "tablespaces";

/// Where an export goes.
#[derive(Clone, Debug)]
pub enum ExportTo {
    /// `data.tar.zst` and `wal.tar.zst` in this directory, which is made if need be.
    Directory(PathBuf),
    /// One archive of both, for standard output.
    Stream,
}

/// A finished export.
#[derive(Debug)]
pub struct ExportOutcome {
    /// The backup.
    pub summary: BackupSummary,
    /// The files written.
    pub files: Vec<PathBuf>,
}

type Archive<W> = Builder<zstd::Encoder<'static, W>>;

/// Exports a backup.
///
/// # Errors
/// [`ErrorKind::Refused`] when the archives are there already, [`ErrorKind::Damaged`] naming what is damaged.
pub fn export(
    store: &Arc<dyn Store>,
    cluster: Option<&str>,
    backup: &str,
    to: &ExportTo,
    stream: impl Write,
    observe: Observer<'_>,
) -> Result<ExportOutcome> {
    observe(Event::Phase(Phase::Preparing));
    let cluster = repository::open(store, cluster)?;
    let summary = cluster.resolve(backup)?;
    let manifest = open_manifest(store, &cluster, &summary)?;
    observe(Event::Phase(Phase::Exporting));
    observe(Event::Total(summary.size_bytes));
    let export = Export {
        store,
        cluster: cluster.name(),
        summary: &summary,
        manifest: &manifest,
        observe,
    };
    let files = match to {
        ExportTo::Stream => {
            let mut archive = archive(stream)?;
            let wal = export.data(&mut archive)?;
            export.wal(&mut archive, &wal)?;
            finish(archive)?.flush().map_err(unwritable)?;
            Vec::new()
        }
        ExportTo::Directory(folder) => {
            std::fs::create_dir_all(folder).map_err(|e| {
                Error::failed(format!("could not make directory \"{}\"", folder.display()))
                    .because(e)
            })?;
            let (data, mut data_archive) = new_archive(folder, "data.tar.zst")?;
            let (wal, mut wal_archive) = new_archive(folder, "wal.tar.zst")?;
            let records = export.data(&mut data_archive)?;
            export.wal(&mut wal_archive, &records)?;
            for (archive, (partial, place)) in [(data_archive, &data), (wal_archive, &wal)] {
                finish(archive)?.sync_all().map_err(unwritable)?;
                std::fs::rename(partial, place).map_err(unwritable)?;
            }
            File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(unwritable)?;
            vec![data.1, wal.1]
        }
    };
    Ok(ExportOutcome { summary, files })
}

/// A new archive under a name that says it is not whole yet, and the name it will have.
fn new_archive(folder: &Path, name: &str) -> Result<((PathBuf, PathBuf), Archive<File>)> {
    let (partial, place) = (folder.join(format!("{name}.partial")), folder.join(name));
    if place.exists() {
        return Err(Error::new(
            ErrorKind::Refused,
            format!("\"{}\" exists already", place.display()),
        )
        .hint("Move it away or export into another directory."));
    }
    let file = File::create(&partial).map_err(|e| {
        Error::failed(format!("could not create \"{}\"", partial.display())).because(e)
    })?;
    Ok(((partial, place), archive(file)?))
}

fn archive<W: Write>(to: W) -> Result<Archive<W>> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u32;
    let mut encoder = zstd::Encoder::new(to, LEVEL).map_err(unwritable)?;
    encoder.include_checksum(true).map_err(unwritable)?;
    encoder.multithread(cores).map_err(unwritable)?;
    Ok(Builder::new(encoder))
}

fn finish<W: Write>(archive: Archive<W>) -> Result<W> {
    archive
        .into_inner()
        .and_then(zstd::Encoder::finish)
        .map_err(unwritable)
}

fn unwritable(source: io::Error) -> Error {
    Error::failed("could not write the archive").because(source)
}

struct Export<'a> {
    store: &'a Arc<dyn Store>,
    cluster: &'a str,
    summary: &'a BackupSummary,
    manifest: &'a ManifestReader,
    observe: Observer<'a>,
}

/// A decoded frame and its name: source, pack, frame.
type Held = ((u16, u32, u32), Vec<u8>);

/// What the reading thread hands to the one that writes.
enum Item {
    File(FileRecord),
    Bytes(Vec<u8>),
    Wal(WalRecord),
    Failed(Error),
}

impl Export<'_> {
    /// Writes everything but WAL; returns the WAL's records.
    fn data<W: Write>(&self, archive: &mut Archive<W>) -> Result<Vec<WalRecord>> {
        let (items, reader) = bounded(16);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                if let Err(e) = self.read(&items) {
                    // Without a listener there is nobody to tell.
                    let _ = items.send(Item::Failed(e));
                }
            });
            self.write(&reader, archive)
        })
    }

    fn read(&self, items: &Sender<Item>) -> Result<()> {
        let mut packs = Packs::new(
            self.store.as_ref(),
            self.cluster,
            &self.summary.id,
            self.manifest.sources(),
        );
        let mut decompressor = Decompressor::new();
        let mut held: Option<Held> = None;
        for entry in self.manifest.entries() {
            let record = match entry? {
                Entry::Wal(record) => {
                    if items.send(Item::Wal(record)).is_err() {
                        return Ok(());
                    }
                    continue;
                }
                Entry::File(record) => record,
            };
            if !record.path.is_safe() {
                return Err(Error::new(
                    ErrorKind::Damaged,
                    format!(
                        "the manifest names a file outside the data directory: \"{}\"",
                        record.path
                    ),
                ));
            }
            let runs = match &record.kind {
                FileKind::File {
                    content: Content::Runs(runs),
                    ..
                } => runs.clone(),
                _ => Vec::new(),
            };
            if items.send(Item::File(record)).is_err() {
                return Ok(());
            }
            let mut at = 0;
            for run in runs {
                let hole = run.file_offset.saturating_sub(at);
                if hole > 0 && items.send(Item::Bytes(vec![0; hole as usize])).is_err() {
                    return Ok(());
                }
                let bytes = self.run(run, &mut packs, &mut held, &mut decompressor)?;
                at = run.file_offset + bytes.len() as u64;
                if items.send(Item::Bytes(bytes)).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The bytes of one run; the frame it is cut from is kept for the next.
    fn run(
        &self,
        run: Run,
        packs: &mut Packs<'_>,
        held: &mut Option<Held>,
        decompressor: &mut Decompressor,
    ) -> Result<Vec<u8>> {
        let name = (run.source, run.pack, run.frame);
        let pack = packs.get(run.source, run.pack)?;
        if held.as_ref().is_none_or(|(kept, _)| *kept != name) {
            let entry = pack.frame(run.frame)?;
            let stored = pack.fetch(
                self.store.as_ref(),
                entry.offset..entry.offset + u64::from(entry.stored_length),
            )?;
            *held = Some((name, decode(&pack, run.frame, &stored, decompressor)?));
        }
        let plain = held.as_ref().map_or(&[][..], |(_, plain)| plain);
        Ok(pack
            .piece(
                run.frame,
                plain,
                run.frame_offset as usize,
                run.length as usize,
            )?
            .to_vec())
    }

    fn write<W: Write>(
        &self,
        items: &Receiver<Item>,
        archive: &mut Archive<W>,
    ) -> Result<Vec<WalRecord>> {
        let mut wal = Vec::new();
        // The control file comes last of all, so that a directory extracted halfway does not start.
        let mut control_file = None;
        while let Ok(item) = items.recv() {
            match item {
                Item::File(record)
                    if record.path.path == b"global/pg_control"
                        && record.path.root == Root::DataDirectory =>
                {
                    control_file = Some(record);
                }
                Item::File(record) => self.file(&record, items, archive)?,
                Item::Wal(record) => wal.push(record),
                Item::Failed(e) => return Err(e),
                Item::Bytes(_) => {
                    return Err(Error::new(
                        ErrorKind::Damaged,
                        "the manifest has more bytes than its files",
                    ));
                }
            }
        }
        let signal = header(EntryType::Regular, 0o600, 0, 0);
        append(archive, signal, Path::new("recovery.signal"), io::empty())?;
        match control_file {
            Some(record) => self.file(&record, items, archive)?,
            None => {
                return Err(Error::new(
                    ErrorKind::Damaged,
                    "the manifest has no control file",
                ));
            }
        }
        Ok(wal)
    }

    fn file<W: Write>(
        &self,
        record: &FileRecord,
        items: &Receiver<Item>,
        archive: &mut Archive<W>,
    ) -> Result<()> {
        let path = self.place(record);
        match &record.kind {
            FileKind::Directory => append(
                archive,
                header(EntryType::Directory, record.mode, 0, record.mtime),
                &path,
                io::empty(),
            ),
            FileKind::Symlink { target } => self.link(record, &path, target, archive),
            FileKind::File {
                content: Content::Inline(bytes),
                ..
            } => {
                // Tablespaces lie inside, so there is no place to map.
                if path == Path::new("tablespace_map") {
                    return Ok(());
                }
                append(
                    archive,
                    header(
                        EntryType::Regular,
                        record.mode,
                        bytes.len() as u64,
                        record.mtime,
                    ),
                    &path,
                    bytes.as_slice(),
                )
            }
            FileKind::File {
                size,
                content: Content::Runs(_),
            } => {
                (self.observe)(Event::At(&path.to_string_lossy()));
                let settings = if path == Path::new("postgresql.auto.conf") {
                    recovery_settings(self.summary.id.as_str())
                } else {
                    String::new()
                };
                let mut content = FileContent {
                    items,
                    left: *size,
                    buffer: Vec::new(),
                    at: 0,
                    failed: None,
                    observe: self.observe,
                };
                let length = *size + settings.len() as u64;
                let written = append(
                    archive,
                    header(EntryType::Regular, record.mode, length, record.mtime),
                    &path,
                    (&mut content).chain(settings.as_bytes()),
                );
                content.failed.map_or(written, Err)
            }
        }
    }

    /// A linked tablespace becomes a directory beside the others and a relative link to it.
    fn link<W: Write>(
        &self,
        record: &FileRecord,
        path: &Path,
        target: &[u8],
        archive: &mut Archive<W>,
    ) -> Result<()> {
        let mut link = header(EntryType::Symlink, 0o777, 0, record.mtime);
        let to = match path.strip_prefix("pg_tblspc") {
            Ok(oid) => {
                let inside = Path::new(TABLESPACES).join(oid);
                append(
                    archive,
                    header(EntryType::Directory, 0o700, 0, record.mtime),
                    &inside,
                    io::empty(),
                )?;
                Path::new("..").join(inside)
            }
            Err(_) => path_from_bytes(target),
        };
        archive.append_link(&mut link, path, to).map_err(unwritable)
    }

    /// Where a file lies in the archive.
    fn place(&self, record: &FileRecord) -> PathBuf {
        let path = path_from_bytes(&record.path.path);
        if record.path.root == Root::Configuration {
            return Path::new(FOLDER).join(path);
        }
        let mut parts = path.components();
        let linked = |oid: &str| {
            self.summary
                .tablespaces
                .iter()
                .any(|t| !t.in_place && t.oid.to_string() == oid)
        };
        match (parts.next(), parts.next(), parts.as_path()) {
            (Some(first), Some(oid), rest)
                if first.as_os_str() == "pg_tblspc"
                    && rest != Path::new("")
                    && linked(&oid.as_os_str().to_string_lossy()) =>
            {
                Path::new(TABLESPACES).join(oid).join(rest)
            }
            _ => path,
        }
    }

    fn wal<W: Write>(&self, archive: &mut Archive<W>, records: &[WalRecord]) -> Result<()> {
        append(
            archive,
            header(EntryType::Directory, 0o700, 0, 0),
            Path::new("pg_wal"),
            io::empty(),
        )?;
        append(
            archive,
            header(EntryType::Directory, 0o700, 0, 0),
            Path::new("pg_wal/archive_status"),
            io::empty(),
        )?;
        let mut bytes = Vec::new();
        for record in records {
            bytes.clear();
            read_wal(
                self.store.as_ref(),
                self.cluster,
                self.summary,
                record,
                &mut bytes,
            )?;
            let path = Path::new("pg_wal").join(&record.name);
            append(
                archive,
                header(EntryType::Regular, 0o600, bytes.len() as u64, 0),
                &path,
                bytes.as_slice(),
            )?;
        }
        Ok(())
    }
}

fn header(kind: EntryType, mode: u32, size: u64, mtime: i64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(mtime.max(0) as u64);
    header
}

fn append<W: Write>(
    archive: &mut Archive<W>,
    mut header: Header,
    path: &Path,
    content: impl Read,
) -> Result<()> {
    archive
        .append_data(&mut header, path, content)
        .map_err(unwritable)
}

/// The content of one file as it comes from the reading thread; what the manifest does not cover is zeros.
struct FileContent<'a> {
    items: &'a Receiver<Item>,
    left: u64,
    buffer: Vec<u8>,
    at: usize,
    failed: Option<Error>,
    observe: Observer<'a>,
}

impl Read for FileContent<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        if self.at == self.buffer.len() {
            match self.items.recv() {
                Ok(Item::Bytes(bytes)) => {
                    (self.observe)(Event::Advanced(bytes.len() as u64));
                    (self.buffer, self.at) = (bytes, 0);
                }
                Ok(Item::Failed(e)) => {
                    self.failed = Some(e);
                    return Err(io::Error::other("the backup could not be read"));
                }
                _ => {
                    return Err(io::Error::other(
                        "the manifest has fewer bytes than its files",
                    ));
                }
            }
        }
        let length = to
            .len()
            .min(self.buffer.len() - self.at)
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        to[..length].copy_from_slice(&self.buffer[self.at..self.at + length]);
        self.at += length;
        self.left -= length as u64;
        Ok(length)
    }
}
