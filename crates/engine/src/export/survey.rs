//! What has to be known of a backup before the first byte of its archive is written: the manifest lists files before the
//! links that lead to them, and configuration last.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use leeward_postgres::configuration_files::lexical;
use leeward_postgres::data_directory::path_from_bytes;
use leeward_repository::file_path::Root;
use leeward_repository::frame::FrameDecoder;
use leeward_repository::manifest::{Content, Entry, FileKind, FileRecord, ManifestReader, Run};
use leeward_repository::store::Store;
use leeward_repository::summary::BackupSummary;

use crate::admission::{Admission, Several, admit};
use crate::configuration::{CONFIGURATION_BYTES_LIMIT, Files};
use crate::error::{Error, ErrorKind, Result};
use crate::frames::{Packs, decode};

/// Where linked tablespaces lie in the archive, relative to the data directory.
pub(super) const TABLESPACES: &str = "tablespaces";

/// The parts of a manifest that decide where its files go.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Names of the links in `pg_tblspc`.
    linked: BTreeSet<OsString>,
    /// Tablespaces that lie inside the data directory, as an export puts them: what is there belongs to the link.
    inside: Vec<PathBuf>,
    /// Files that may be configuration, by their place in the archive.
    files: BTreeMap<PathBuf, FileRecord>,
    /// Directories that may hold some.
    folders: BTreeSet<PathBuf>,
    /// Directories of the archive that have no record of their own.
    pub(super) parents: BTreeSet<PathBuf>,
    /// The entries that are not in the archive.
    pub(super) left_out: Several,
    /// The backup's major version of PostgreSQL.
    major: u32,
}

impl Survey {
    pub(super) fn of(manifest: &ManifestReader, major: u32) -> Result<Self> {
        let mut survey = Self {
            major,
            ..Self::default()
        };
        for entry in manifest.entries() {
            if let Entry::File(record) = entry? {
                survey.note(record)?;
            }
        }
        Ok(survey)
    }

    fn note(&mut self, record: FileRecord) -> Result<()> {
        let path = match admitted(&record, self.major)? {
            Admission::Place(path) => path,
            Admission::LeftOut(path, reason) => {
                self.left_out
                    .add(format!("\"{}\" ({reason})", path.display()));
                return Ok(());
            }
        };
        let outside = record.path.root == Root::Configuration;
        if !outside && path.parent() == Some(Path::new("pg_tblspc")) {
            if let (FileKind::Symlink { target }, Some(name)) = (&record.kind, path.file_name()) {
                self.linked.insert(name.to_owned());
                self.parents.insert(TABLESPACES.into());
                let target = path_from_bytes(target);
                if target.is_relative() {
                    self.inside.push(lexical(Path::new("pg_tblspc"), &target));
                }
            }
            return Ok(());
        }
        if !outside && is_of_the_server(&path) {
            return Ok(());
        }
        let place = self.place_of(&path);
        if outside {
            let parents = place.ancestors().skip(1);
            self.parents.extend(
                parents
                    .filter(|parent| *parent != Path::new(""))
                    .map(Path::to_owned),
            );
        }
        match record.kind {
            FileKind::File { .. } => {
                self.files.insert(place, record);
            }
            FileKind::Directory => {
                self.folders.insert(place);
            }
            FileKind::Symlink { .. } => {}
        }
        Ok(())
    }

    /// Returns a file's path in the archive; `None` when it is left out.
    pub(super) fn place(&self, record: &FileRecord) -> Result<Option<PathBuf>> {
        Ok(match admitted(record, self.major)? {
            Admission::Place(path) => Some(self.place_of(&path)),
            Admission::LeftOut(..) => None,
        })
    }

    fn place_of(&self, path: &Path) -> PathBuf {
        let mut parts = path.components();
        match (parts.next(), parts.next(), parts.as_path()) {
            (Some(first), Some(name), rest)
                if first.as_os_str() == "pg_tblspc"
                    && rest != Path::new("")
                    && self.linked.contains(name.as_os_str()) =>
            {
                Path::new(TABLESPACES).join(name).join(rest)
            }
            _ => path.to_owned(),
        }
    }

    /// Whether the record is a second sight of a tablespace that lies inside the data directory.
    pub(super) fn is_second_sight(&self, record: &FileRecord) -> bool {
        let path = path_from_bytes(&record.path.path);
        record.path.root == Root::DataDirectory
            && self.inside.iter().any(|place| path.starts_with(place))
    }
}

/// Returns the treatment of a manifest entry in an archive. No links but those of tablespaces are taken: their targets are
/// unknown where the archive is extracted.
fn admitted(record: &FileRecord, major: u32) -> Result<Admission> {
    Ok(match admit(record, major)? {
        Admission::Place(path)
            if matches!(record.kind, FileKind::Symlink { .. })
                && path.parent() != Some(Path::new("pg_tblspc")) =>
        {
            Admission::LeftOut(path, "a link".to_owned())
        }
        admission => admission,
    })
}

/// The directories that hold nothing that is a person's.
fn is_of_the_server(path: &Path) -> bool {
    let first = path.components().next().map(|first| first.as_os_str());
    let first = first.and_then(|first| first.to_str()).unwrap_or_default();
    matches!(first, "base" | "global")
        || (first.starts_with("pg_") && path.parent() != Some(Path::new("")))
}

/// A decoded frame and its name: source, pack, frame.
type Held = ((u16, u32, u32), Vec<u8>);

/// Reads stretches of files; the frame that the last one was cut from is kept for the next.
pub(super) struct Frames<'a> {
    store: &'a dyn Store,
    packs: Packs<'a>,
    decoder: FrameDecoder,
    held: Option<Held>,
}

impl<'a> Frames<'a> {
    pub(super) fn new(
        store: &'a Arc<dyn Store>,
        cluster: &'a str,
        summary: &'a BackupSummary,
        manifest: &'a ManifestReader,
    ) -> Self {
        Self {
            store: store.as_ref(),
            packs: Packs::new(store.as_ref(), cluster, &summary.id, manifest.sources()),
            decoder: FrameDecoder::new(),
            held: None,
        }
    }

    /// The bytes of one run.
    pub(super) fn run(&mut self, run: Run) -> Result<Vec<u8>> {
        let name = (run.source, run.pack, run.frame);
        let pack = self.packs.get(run.source, run.pack)?;
        if self.held.as_ref().is_none_or(|(kept, _)| *kept != name) {
            let entry = pack.frame(run.frame)?;
            let end = entry.offset + u64::from(entry.stored_length);
            let stored = pack.fetch(self.store, entry.offset..end)?;
            let plain = decode(&pack, run.frame, &stored, &mut self.decoder)?;
            self.held = Some((name, plain));
        }
        let plain = self.held.as_ref().map_or(&[][..], |(_, plain)| plain);
        let (from, length) = (run.frame_offset as usize, run.length as usize);
        Ok(pack.piece(run.frame, plain, from, length)?.to_vec())
    }
}

/// The configuration in a backup, as it will lie in the archive.
pub(super) struct InBackup<'a> {
    pub(super) survey: &'a Survey,
    pub(super) frames: RefCell<Frames<'a>>,
}

impl Files for InBackup<'_> {
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        match self.survey.files.get(path).map(|record| &record.kind) {
            Some(FileKind::File { size, .. }) if *size > CONFIGURATION_BYTES_LIMIT => {
                Err(Error::new(
                    ErrorKind::Damaged,
                    format!(
                        "\"{}\" is read for its settings and has {size} bytes",
                        path.display()
                    ),
                ))
            }
            Some(FileKind::File {
                content: Content::Inline(bytes),
                ..
            }) => Ok(Some(bytes.clone())),
            Some(FileKind::File {
                content: Content::Runs(runs),
                ..
            }) => {
                let mut bytes = Vec::new();
                for run in runs {
                    bytes.extend(self.frames.borrow_mut().run(*run)?);
                }
                Ok(Some(bytes))
            }
            _ => Ok(None),
        }
    }

    fn names(&self, folder: &Path) -> Option<Vec<OsString>> {
        let inside = |path: &&PathBuf| path.parent() == Some(folder);
        let names: Vec<OsString> = (self.survey.files.keys().filter(inside))
            .filter_map(|path| path.file_name().map(ToOwned::to_owned))
            .collect();
        (!names.is_empty() || self.survey.folders.contains(folder)).then_some(names)
    }

    /// Nobody knows what there will be outside the archive.
    fn can_open(&self, path: &Path) -> bool {
        self.survey.files.contains_key(path) || self.survey.folders.contains(path)
    }
}
