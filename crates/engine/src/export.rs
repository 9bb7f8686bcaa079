//! An export: the backup as two compressed tar archives that need nothing but `tar` and PostgreSQL. Extracted on top of
//! each other they are a data directory that starts and is consistent; tablespaces come along inside it.

mod survey;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use leeward_postgres::directory::{Directory, NameError};
use leeward_postgres::known_faults::recovery_warning;
use leeward_repository::catalog::Cluster;
use leeward_repository::file_path::Root;
use leeward_repository::manifest::{
    Content, Entry, FileKind, FileRecord, ManifestReader, WalRecord,
};
use leeward_repository::store::Store;
use leeward_repository::summary::BackupSummary;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use crate::configuration::{AUTO, Adoption, Files, adopt_for};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer, Phase};
use crate::pipeline::{self, Ended, Receiver, Sender, StageResult};
use crate::recovery::choose::own_requirements;
use crate::recovery::damaged::choose_alone;
use crate::repository;
use crate::restore::finish::{check_wal_name, read_wal};
use crate::restore::requirements::settings_to_raise;
use crate::restore::settings;
use crate::restore::{control_file, open_manifest, required_settings};
use survey::{Frames, InBackup, Survey, TABLESPACES};

/// zstd level of the archives.
const LEVEL: i32 = 3;

/// What tar fills up: an entry ends at a multiple of this.
const TAR_BLOCK: u64 = 512;

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
    let (summary, choice) = choose_alone(&cluster, backup)?;
    let manifest = open_manifest(store, &cluster, &summary)?;
    let survey = Survey::of(&manifest, summary.major)?;
    let adoption = adopted(store, &cluster, &summary, &manifest, &survey)?;
    let caution = recovery_warning(&summary.postgres_version);
    let left_out = survey.left_out.describe();
    let left_out = left_out.map(|names| format!("Not in the archive: {names}."));
    for note in (choice.iter().chain(&adoption.notes))
        .chain(&caution)
        .chain(&left_out)
    {
        observe(Event::Notice(note.clone()));
    }
    observe(Event::Phase(Phase::Exporting));
    observe(Event::Total(summary.size_bytes));
    let export = Export {
        store,
        cluster: &cluster,
        summary: &summary,
        manifest: &manifest,
        survey: &survey,
        adoption: &adoption,
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
            let folder = open_folder(folder)?;
            let (data, mut data_archive) = new_archive(&folder, "data.tar.zst")?;
            let (wal, mut wal_archive) = new_archive(&folder, "wal.tar.zst")?;
            let records = export.data(&mut data_archive)?;
            export.wal(&mut wal_archive, &records)?;
            for archive in [data_archive, wal_archive] {
                finish(archive)?.sync_all().map_err(unwritable)?;
            }
            let names = [&data, &wal].map(|names| (names.partial.as_ref(), names.name.as_ref()));
            (folder.directory.name_files(&names)).map_err(|e| folder.unnamed(e))?;
            [data, wal].map(|names| folder.path.join(names.name)).into()
        }
    };
    Ok(ExportOutcome { summary, files })
}

/// The configuration that the archive gets.
fn adopted(
    store: &Arc<dyn Store>,
    cluster: &Cluster,
    summary: &BackupSummary,
    manifest: &ManifestReader,
    survey: &Survey,
) -> Result<Adoption> {
    let copy = InBackup {
        survey,
        frames: RefCell::new(Frames::new(store, cluster.name(), summary, manifest)),
    };
    let mut adoption = adopt_for(&copy, summary)?;
    let mut auto = match adoption.files.remove(Path::new(AUTO)) {
        Some(bytes) => bytes,
        None => copy.read(Path::new(AUTO))?.unwrap_or_default(),
    };
    auto.extend(settings::own_wal(summary.id.as_str()).into_bytes());
    let requirements = own_requirements(cluster, summary)?;
    if let Some(tablespace) = requirements.tablespaces.first() {
        return Err(Error::new(
            ErrorKind::Refused,
            format!(
                "backup {} cannot be exported: replay of the record at {} creates tablespace {} in \"{}\", wherever the archives are extracted",
                summary.id,
                tablespace.record,
                tablespace.tablespace.0,
                String::from_utf8_lossy(&tablespace.location)
            ),
        )
        .hint("Export a backup that was begun later."));
    }
    let control = control_file(manifest, summary)?;
    let needed = requirements
        .settings
        .max(required_settings(&control, summary)?);
    let (raised, note) = settings_to_raise(needed, &adoption);
    adoption.notes.extend(note);
    for (name, value) in raised {
        auto.extend(format!("{name} = {value}\n").into_bytes());
    }
    adoption.files.insert(AUTO.into(), auto);
    adoption.files.insert("recovery.signal".into(), Vec::new());
    Ok(adoption)
}

/// The directory that archives are written into.
struct Folder {
    directory: Directory,
    path: PathBuf,
}

impl Folder {
    /// Why the archives could not get their names.
    fn unnamed(&self, error: NameError) -> Error {
        match error.refused {
            Some(name) if error.source.kind() == io::ErrorKind::AlreadyExists => {
                self.taken(&name.to_string_lossy())
            }
            _ => {
                let failed = unwritable(error.source);
                let left: Vec<_> = error
                    .left
                    .iter()
                    .map(|name| name.to_string_lossy())
                    .collect();
                if left.is_empty() {
                    failed
                } else {
                    failed.hint(format!(
                        "Remove {} in \"{}\" and export again: it may not survive a failure of this machine.",
                        left.join(" and "),
                        self.path.display()
                    ))
                }
            }
        }
    }

    fn taken(&self, name: &str) -> Error {
        Error::new(
            ErrorKind::Refused,
            format!("\"{}\" exists already", self.path.join(name).display()),
        )
        .hint("Move it away or export into another directory.")
    }
}

/// Opens the directory, made if need be.
fn open_folder(path: &Path) -> Result<Folder> {
    let failed = |what: &str, e| {
        Error::failed(format!("could not {what} directory \"{}\"", path.display())).because(e)
    };
    std::fs::create_dir_all(path).map_err(|e| failed("make", e))?;
    let opened = std::fs::canonicalize(path).and_then(|path| {
        let directory = Directory::open(&path)?;
        Ok(Folder { directory, path })
    });
    opened.map_err(|e| failed("open", e))
}

/// The names of an archive.
struct ArchiveNames {
    name: &'static str,
    /// Until it is whole.
    partial: String,
}

/// A new archive under a name that says it is not whole yet, for its owner alone, as the database is. What an
/// interrupted export left under that name is removed.
fn new_archive(folder: &Folder, name: &'static str) -> Result<(ArchiveNames, Archive<File>)> {
    let names = ArchiveNames {
        name,
        partial: format!("{name}.partial"),
    };
    let (directory, partial) = (&folder.directory, OsStr::new(&names.partial));
    let path = folder.path.join(partial);
    let failed =
        |e: io::Error| Error::failed(format!("could not create \"{}\"", path.display())).because(e);
    if directory.look(OsStr::new(name)).map_err(failed)?.is_some() {
        return Err(folder.taken(name));
    }
    let another = || {
        let problem = format!("another export writes \"{}\"", path.display());
        Error::new(ErrorKind::Refused, problem)
            .hint("Wait for its end or export into another directory.")
    };
    // A lock counts only on the file that has the name: another export may have replaced it before this lock.
    let lock = |file: &File| -> Result<()> {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(another()),
            locked => locked.map_err(|e| failed(e.into()))?,
        }
        let locked = file.metadata().map_err(failed)?;
        let named = directory.look(partial).map_err(failed)?;
        let is_named = named.is_some_and(|named| named.place == (locked.dev(), locked.ino()));
        if is_named { Ok(()) } else { Err(another()) }
    };
    let leftover = match directory.look(partial).map_err(failed)? {
        Some(_) => {
            let file = directory.open_to_write(partial).map_err(failed)?;
            lock(&file)?;
            directory.remove_file(partial).map_err(failed)?;
            Some(file)
        }
        None => None,
    };
    let file = match directory.create(partial, 0o600) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(another()),
        created => created.map_err(failed)?,
    };
    lock(&file)?;
    // The old lock is held until the new one is.
    drop(leftover);
    let archive = archive(file)?;
    Ok((names, archive))
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

fn damaged(problem: &str) -> Error {
    Error::new(ErrorKind::Damaged, problem)
}

fn unwritable(source: io::Error) -> Error {
    Error::failed("could not write the archive").because(source)
}

struct Export<'a> {
    store: &'a Arc<dyn Store>,
    cluster: &'a Cluster,
    summary: &'a BackupSummary,
    manifest: &'a ManifestReader,
    survey: &'a Survey,
    adoption: &'a Adoption,
    observe: Observer<'a>,
}

/// An item that the reading stage hands to the writing stage.
enum Item {
    /// A file and its place in the archive.
    File(FileRecord, PathBuf),
    Bytes(Vec<u8>),
    /// A hole.
    Zeros(u64),
    Wal(WalRecord),
}

impl Export<'_> {
    /// Writes everything but WAL; returns the WAL's records.
    fn data<W: Write>(&self, archive: &mut Archive<W>) -> Result<Vec<WalRecord>> {
        pipeline::run(|pipeline| {
            let (items, reader) = pipeline.channel(16);
            pipeline.spawn("read", move || self.read(&items))?;
            self.write(&reader, archive)
        })
    }

    fn read(&self, items: &Sender<Item>) -> StageResult<()> {
        let mut frames = Frames::new(self.store, self.cluster.name(), self.summary, self.manifest);
        for entry in self.manifest.entries() {
            let record = match entry? {
                Entry::Wal(record) => {
                    items.send(Item::Wal(record))?;
                    continue;
                }
                Entry::File(record) => record,
            };
            let Some(place) = self.place(&record)? else {
                continue;
            };
            let (size, runs) = match &record.kind {
                FileKind::File {
                    size,
                    content: Content::Runs(runs),
                } => (*size, runs.clone()),
                _ => (0, Vec::new()),
            };
            items.send(Item::File(record, place))?;
            let mut at = 0;
            for run in runs {
                let hole = run.file_offset.saturating_sub(at);
                if hole > 0 {
                    items.send(Item::Zeros(hole))?;
                }
                let bytes = frames.run(run)?;
                at = run.file_offset + bytes.len() as u64;
                items.send(Item::Bytes(bytes))?;
            }
            if at < size {
                items.send(Item::Zeros(size - at))?;
            }
        }
        Ok(())
    }

    /// Where a file lies in the archive; `None` when it is not in it, or not with the bytes it had.
    fn place(&self, record: &FileRecord) -> Result<Option<PathBuf>> {
        let Some(place) = self.survey.place(record)? else {
            return Ok(None);
        };
        let place = self.adoption.moved.get(&place).unwrap_or(&place);
        // Tablespaces lie inside, so there is no place to map.
        let left_out = place == Path::new("tablespace_map")
            || self.adoption.files.contains_key(place)
            || self.survey.is_second_sight(record);
        Ok((!left_out).then(|| place.clone()))
    }

    fn write<W: Write>(
        &self,
        items: &Receiver<Item>,
        archive: &mut Archive<W>,
    ) -> StageResult<Vec<WalRecord>> {
        let mut wal = Vec::new();
        // The server refuses a data directory that others can read.
        self.directory(archive, Path::new("./"))?;
        for folder in &self.survey.parents {
            self.directory(archive, folder)?;
        }
        // The control file comes last of all, so that a directory extracted halfway does not start.
        let mut control_file = None;
        while let Some(item) = items.recv()? {
            match item {
                Item::File(record, place)
                    if record.path.path == b"global/pg_control"
                        && record.path.root == Root::DataDirectory =>
                {
                    control_file = Some((record, place));
                }
                Item::File(record, place) => self.file(&record, &place, items, archive)?,
                Item::Wal(record) => wal.push(record),
                Item::Bytes(_) | Item::Zeros(_) => {
                    return Err(damaged("the manifest has more bytes than its files").into());
                }
            }
        }
        for (place, bytes) in &self.adoption.files {
            let header = self.header(EntryType::Regular, bytes.len() as u64, self.finished());
            append(archive, header, place, bytes.as_slice())?;
        }
        match control_file {
            Some((record, place)) => self.file(&record, &place, items, archive)?,
            None => return Err(damaged("the manifest has no control file").into()),
        }
        Ok(wal)
    }

    fn file<W: Write>(
        &self,
        record: &FileRecord,
        path: &Path,
        items: &Receiver<Item>,
        archive: &mut Archive<W>,
    ) -> StageResult<()> {
        let header = |kind, size| self.header(kind, size, record.mtime);
        match &record.kind {
            FileKind::Directory => {
                append(archive, header(EntryType::Directory, 0), path, io::empty())?;
            }
            FileKind::Symlink { .. } => self.link(record, path, archive)?,
            FileKind::File {
                content: Content::Inline(bytes),
                ..
            } => {
                let header = header(EntryType::Regular, bytes.len() as u64);
                append(archive, header, path, bytes.as_slice())?;
            }
            FileKind::File {
                size,
                content: Content::Runs(_),
            } => {
                (self.observe)(Event::At(&path.to_string_lossy()));
                let mut content = FileContent {
                    items,
                    left: *size,
                    zeros: 0,
                    buffer: Vec::new(),
                    at: 0,
                    ended: None,
                    observe: self.observe,
                };
                let header = header(EntryType::Regular, *size);
                let written = append(archive, header, path, &mut content);
                content.ended.map_or(Ok(()), Err)?;
                written?;
            }
        }
        Ok(())
    }

    /// A linked tablespace becomes a directory beside the others and a relative link to it. There are no other links.
    fn link<W: Write>(
        &self,
        record: &FileRecord,
        path: &Path,
        archive: &mut Archive<W>,
    ) -> Result<()> {
        let oid = path.file_name().unwrap_or_default();
        let inside = Path::new(TABLESPACES).join(oid);
        self.directory(archive, &inside)?;
        let mut link = self.header(EntryType::Symlink, 0, record.mtime);
        archive
            .append_link(&mut link, path, Path::new("..").join(inside))
            .map_err(unwritable)
    }

    fn wal<W: Write>(&self, archive: &mut Archive<W>, records: &[WalRecord]) -> Result<()> {
        self.directory(archive, Path::new("pg_wal"))?;
        self.directory(archive, Path::new("pg_wal/archive_status"))?;
        for record in records {
            check_wal_name(record)?;
            let length = record.plain_length;
            let header = self.header(EntryType::Regular, length, self.finished());
            // The header alone: its bytes follow as they are decompressed, never all of them in memory.
            let path = Path::new("pg_wal").join(&record.name);
            append(archive, header, &path, io::empty())?;
            let to = archive.get_mut();
            read_wal(self.cluster, self.summary, record, to)?;
            let rest = length.next_multiple_of(TAR_BLOCK) - length;
            to.write_all(&vec![0; rest as usize]).map_err(unwritable)?;
        }
        Ok(())
    }

    fn directory<W: Write>(&self, archive: &mut Archive<W>, path: &Path) -> Result<()> {
        let header = self.header(EntryType::Directory, 0, self.finished());
        append(archive, header, path, io::empty())
    }

    /// When the backup was finished: the time of what has none of its own.
    fn finished(&self) -> i64 {
        let time = self.summary.finished_at.parse::<jiff::Timestamp>();
        time.map_or(0, jiff::Timestamp::as_second)
    }

    /// Everything belongs to the owner of the data directory that was backed up, by name where `tar` finds it, and to
    /// nobody else.
    fn header(&self, kind: EntryType, size: u64, mtime: i64) -> Header {
        let owner = &self.summary.owner;
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(match kind {
            EntryType::Directory => 0o700,
            EntryType::Symlink => 0o777,
            _ => 0o600,
        });
        header.set_size(size);
        header.set_mtime(mtime.max(0) as u64);
        header.set_uid(u64::from(owner.uid));
        header.set_gid(u64::from(owner.gid));
        // A name too long for a header is left out, and the number counts.
        let _ = header.set_username(owner.user.as_deref().unwrap_or_default());
        let _ = header.set_groupname(owner.group.as_deref().unwrap_or_default());
        header
    }
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

/// The content of one file as it comes from the reading stage.
struct FileContent<'a> {
    items: &'a Receiver<Item>,
    left: u64,
    /// Zeros to come before anything else.
    zeros: u64,
    buffer: Vec<u8>,
    at: usize,
    /// Why there is no more, where that is not the file's end.
    ended: Option<Ended>,
    observe: Observer<'a>,
}

impl FileContent<'_> {
    fn next(&mut self) -> StageResult<()> {
        match self.items.recv()? {
            Some(Item::Bytes(bytes)) => {
                (self.observe)(Event::Advanced(bytes.len() as u64));
                (self.buffer, self.at) = (bytes, 0);
            }
            Some(Item::Zeros(length)) => self.zeros = length,
            _ => return Err(damaged("the manifest has fewer bytes than its files").into()),
        }
        Ok(())
    }
}

impl Read for FileContent<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        if self.zeros == 0
            && self.at == self.buffer.len()
            && let Err(ended) = self.next()
        {
            self.ended = Some(ended);
            return Err(io::Error::other("the backup could not be read"));
        }
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let room = to.len().min(left);
        if self.zeros > 0 {
            let length = room.min(usize::try_from(self.zeros).unwrap_or(usize::MAX));
            to[..length].fill(0);
            self.zeros -= length as u64;
            self.left -= length as u64;
            return Ok(length);
        }
        let length = room.min(self.buffer.len() - self.at);
        to[..length].copy_from_slice(&self.buffer[self.at..self.at + length]);
        self.at += length;
        self.left -= length as u64;
        Ok(length)
    }
}
