//! A repository in a directory, durable and safe for several processes at once.
//!
//! Files are written under a hidden name beside their place, synced, renamed without overwriting, and the folder is
//! synced. [`Store::replace`] and [`Store::delete`] take an advisory lock on `.lock` in the repository's root, which
//! works on any file system with `flock`, network ones included.
//!
//! The root may be reached through links. Below it there are none: whoever can write to a repository leads nobody out of it.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use rustix::fs::{FlockOperation, OFlags, flock};

use super::key::folder;
use super::local_file::{
    Placing, StreamedFile, TemporaryFile, create_folders, is_hidden, is_leftover, is_temporary,
    sync_folder, sync_folders_above,
};
use super::{
    Key, LISTED_OBJECTS_LIMIT, ObjectInfo, ObjectVersion, SMALL_OBJECT_BYTES_LIMIT, Store, Upload,
    check_small, too_many,
};
use crate::error::StoreError;
use crate::url::RepositoryUrl;

const LOCK_FILE: &str = ".lock";

/// Flags of an open that neither waits, as that of a pipe does, nor follows a link.
const NO_WAITING_NO_LINK: i32 = OFlags::NONBLOCK
    .union(OFlags::NOFOLLOW)
    .bits()
    .cast_signed();

/// Objects as files below one directory.
#[derive(Debug)]
pub struct LocalStore {
    location: RepositoryUrl,
    root: PathBuf,
    /// Folders known to be on the disk, so that each is synced once in a process's life.
    durable_folders: Arc<Mutex<HashSet<PathBuf>>>,
}

impl LocalStore {
    /// A store in a directory, which need not exist before the first object is written.
    pub fn new(root: PathBuf) -> LocalStore {
        LocalStore {
            location: RepositoryUrl::Local(root.clone()),
            root,
            durable_folders: Arc::default(),
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    /// Checks that no part of a path below the root is a link.
    fn check_place(&self, path: &Path) -> Result<(), StoreError> {
        let mut place = self.root.clone();
        for part in path.strip_prefix(&self.root).unwrap_or(path).components() {
            place.push(part);
            match fs::symlink_metadata(&place) {
                Ok(found) if found.is_symlink() => {
                    let link = io::Error::other("it is a link, and a repository has none");
                    return Err(StoreError::from_io("follow", place, 0, link));
                }
                Ok(_) => {}
                // Whoever goes on there is told more.
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// The path of a folder, without links below the root.
    fn folder_path(&self, prefix: &str) -> Result<PathBuf, StoreError> {
        let place = self.root.join(folder(prefix)?);
        self.check_place(&place)?;
        Ok(place)
    }

    fn not_found(&self, key: &Key) -> StoreError {
        StoreError::NotFound {
            key: key.clone(),
            location: self.location.clone(),
        }
    }

    fn already_exists(&self, key: &Key) -> StoreError {
        StoreError::AlreadyExists {
            key: key.clone(),
            location: self.location.clone(),
        }
    }

    fn conflict(&self, key: &Key) -> StoreError {
        StoreError::Conflict {
            key: key.clone(),
            location: self.location.clone(),
        }
    }

    fn read_error(&self, key: &Key, error: io::Error) -> StoreError {
        match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory => self.not_found(key),
            _ => StoreError::from_io("read", self.path(key), 0, error),
        }
    }

    fn open(&self, key: &Key) -> Result<(File, u64), StoreError> {
        let path = self.path(key);
        self.check_place(&path)?;
        // A pipe that somebody put there would wait for a writer, and a device has no end: neither is an object.
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(NO_WAITING_NO_LINK)
            .open(path)
            .and_then(|file| Ok((file.metadata()?, file)));
        match opened {
            Ok((metadata, _)) if !metadata.is_file() => Err(self.not_found(key)),
            Ok((metadata, file)) => Ok((file, metadata.len())),
            Err(error) => Err(self.read_error(key, error)),
        }
    }

    /// A temporary file in the folder of `target`, which is created where it is missing.
    fn temporary(&self, target: &Path) -> Result<TemporaryFile, StoreError> {
        let folder = target.parent().unwrap_or(&self.root);
        self.check_place(folder)?;
        let mut rounds = 0;
        loop {
            let durable = self.durable_folders().contains(folder);
            if !durable {
                create_folders(&self.root, folder)?;
                self.durable_folders().insert(folder.to_owned());
            }
            match TemporaryFile::create(folder) {
                Ok(temporary) => return Ok(temporary),
                // Somebody deleted the folder's last object, and the folder with it, in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound && rounds < 100 => {
                    rounds += 1;
                    self.durable_folders()
                        .retain(|known| !folder.starts_with(known));
                }
                Err(error) => {
                    return Err(StoreError::from_io("create a file in", folder, 0, error));
                }
            }
        }
    }

    fn durable_folders(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        // A set of paths is right at any moment, so a panic elsewhere does not spoil it.
        self.durable_folders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds the repository's lock until dropped.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.root.join(LOCK_FILE);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(NO_WAITING_NO_LINK)
            .open(&path)
            .map_err(|error| StoreError::from_io("lock", &path, 0, error))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(StoreError::from_io("lock", &path, 0, error.into())),
            }
        }
    }

    /// Syncs the folder in which an object would lie, or the nearest one above that exists.
    fn sync_nearest_folder(&self, object: &Path) -> Result<(), StoreError> {
        let folders = object.ancestors().skip(1);
        match folders
            .take_while(|folder| folder.starts_with(&self.root))
            .find(|folder| folder.is_dir())
        {
            Some(folder) => sync_folder(folder),
            None => Ok(()),
        }
    }

    /// Removes the folder of a deleted object and its parents, as far as they are empty, leftovers aside.
    fn remove_empty_folders(&self, from: &Path) -> Result<(), StoreError> {
        for place in from.ancestors() {
            if place == self.root || !place.starts_with(&self.root) {
                break;
            }
            if holds_more_than_leftovers(place)? {
                break;
            }
            remove_leftover_files(place)?;
            match fs::remove_dir(place) {
                Ok(()) => {
                    self.durable_folders().remove(place);
                    sync_folder(place.parent().unwrap_or(&self.root))?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // Not empty, or not ours to remove: it does no harm.
                Err(_) => break,
            }
        }
        Ok(())
    }
}

impl Store for LocalStore {
    fn location(&self) -> &RepositoryUrl {
        &self.location
    }

    fn endpoint(&self) -> Option<&str> {
        None
    }

    fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        let (content, size_bytes) = self.get_start(key, SMALL_OBJECT_BYTES_LIMIT)?;
        check_small(key, &self.location, size_bytes)?;
        Ok(content)
    }

    fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        let length = range.end.saturating_sub(range.start);
        if length == 0 {
            return Ok(Bytes::new());
        }
        let (mut file, size_bytes) = self.open(key)?;
        if range.end > size_bytes {
            return Err(StoreError::Truncated {
                key: key.clone(),
                location: self.location.clone(),
                wanted_end: range.end,
                size_bytes,
            });
        }
        // The size was checked first, so a damaged range cannot make this allocate without bound.
        let mut content = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        file.seek(SeekFrom::Start(range.start))
            .and_then(|_| file.take(length).read_to_end(&mut content))
            .map_err(|error| self.read_error(key, error))?;
        if (content.len() as u64) < length {
            return Err(StoreError::Truncated {
                key: key.clone(),
                location: self.location.clone(),
                wanted_end: range.end,
                size_bytes: range.start + content.len() as u64,
            });
        }
        Ok(content.into())
    }

    fn get_start(&self, key: &Key, limit: u64) -> Result<(Bytes, u64), StoreError> {
        let (file, size) = self.open(key)?;
        let length = size.min(limit);
        let mut content = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        file.take(length)
            .read_to_end(&mut content)
            .map_err(|error| self.read_error(key, error))?;
        Ok((content.into(), size))
    }

    fn size(&self, key: &Key) -> Result<u64, StoreError> {
        let path = self.path(key);
        self.check_place(&path)?;
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
            Ok(_) => Err(self.not_found(key)),
            Err(error) => Err(self.read_error(key, error)),
        }
    }

    fn create(&self, key: &Key, content: Bytes) -> Result<(), StoreError> {
        let target = self.path(key);
        let mut temporary = self.temporary(&target)?;
        temporary.write(&content)?;
        if temporary.place(&target, Placing::New)? {
            return Ok(());
        }
        // An object that is said to be there must survive a crash.
        self.sync(key)?;
        Err(self.already_exists(key))
    }

    fn sync(&self, key: &Key) -> Result<(), StoreError> {
        let target = self.path(key);
        let folder = target.parent().unwrap_or(&self.root);
        self.check_place(folder)?;
        if !self.durable_folders().contains(folder) {
            sync_folders_above(&self.root, folder)?;
        }
        sync_folder(folder)
    }

    fn get_versioned(&self, key: &Key) -> Result<Option<(Bytes, ObjectVersion)>, StoreError> {
        match self.get(key) {
            Ok(content) => {
                let version = ObjectVersion::of_content(&content);
                Ok(Some((content, version)))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn replace(
        &self,
        key: &Key,
        content: Bytes,
        expected: &ObjectVersion,
    ) -> Result<ObjectVersion, StoreError> {
        if !self.root.exists() {
            return Err(self.conflict(key));
        }
        let target = self.path(key);
        let _lock = self.lock()?;
        match self.get_versioned(key)? {
            Some((_, current)) if current == *expected => {}
            _ => return Err(self.conflict(key)),
        }
        let mut temporary = self.temporary(&target)?;
        temporary.write(&content)?;
        temporary.place(&target, Placing::Replace)?;
        Ok(ObjectVersion::of_content(&content))
    }

    fn overwrite(&self, key: &Key, content: Bytes) -> Result<ObjectVersion, StoreError> {
        let target = self.path(key);
        let mut temporary = self.temporary(&target)?;
        temporary.write(&content)?;
        let _lock = self.lock()?;
        temporary.place(&target, Placing::Replace)?;
        Ok(ObjectVersion::of_content(&content))
    }

    fn upload(&self, key: &Key) -> Result<Box<dyn Upload>, StoreError> {
        let target = self.path(key);
        let file = StreamedFile::new(self.temporary(&target)?);
        Ok(Box::new(LocalUpload {
            file,
            target,
            taken: self.already_exists(key),
        }))
    }

    fn list(
        &self,
        prefix: &str,
        found: &mut dyn FnMut(ObjectInfo) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        visit(&self.folder_path(prefix)?, folder(prefix)?, found).map(drop)
    }

    fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let place = self.folder_path(prefix)?;
        let mut names = Vec::new();
        for entry in entries(&place)? {
            if !entry.is_folder || folder(&entry.name).is_err() {
                continue;
            }
            // An object store has no empty folders, so neither have we. One that is closed to us is somebody's.
            let below = visit(&place.join(&entry.name), &entry.name, &mut |_| {
                ControlFlow::Break(())
            });
            let is_empty = match below {
                Err(StoreError::PermissionDenied { .. }) => false,
                below => below?.is_continue(),
            };
            if !is_empty {
                if names.len() == LISTED_OBJECTS_LIMIT {
                    return Err(too_many(&self.location, prefix, "folders", names.len()));
                }
                names.push(entry.name);
            }
        }
        Ok(names)
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        if !self.root.exists() {
            return Ok(());
        }
        let target = self.path(key);
        let _lock = self.lock()?;
        self.check_place(target.parent().unwrap_or(&self.root))?;
        match fs::remove_file(&target) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                // Whoever deleted it may have failed to bring that to the disk.
                return self.sync_nearest_folder(&target);
            }
            Err(error) => return Err(StoreError::from_io("delete", target, 0, error)),
        }
        let folder = target.parent().unwrap_or(&self.root);
        sync_folder(folder)?;
        self.remove_empty_folders(folder)
    }

    fn remove_leftovers(&self, prefix: &str) -> Result<u64, StoreError> {
        remove_leftovers_below(&self.folder_path(prefix)?)
    }
}

struct LocalUpload {
    file: StreamedFile,
    target: PathBuf,
    taken: StoreError,
}

impl Upload for LocalUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write(bytes)
    }

    fn finish(self: Box<Self>) -> Result<u64, StoreError> {
        let LocalUpload {
            file,
            target,
            taken,
        } = *self;
        match file.finish(&target)? {
            Some(size) => Ok(size),
            None => {
                // As in `create`.
                sync_folder(target.parent().unwrap_or(Path::new("/")))?;
                Err(taken)
            }
        }
    }
}

struct Entry {
    name: String,
    is_folder: bool,
}

/// What lies in a folder, hidden names left out, sorted by name. Nothing where there is no folder.
fn entries(place: &Path) -> Result<Vec<Entry>, StoreError> {
    let mut entries = Vec::new();
    each_in_folder(place, &mut |entry| {
        // Names that are not text are not ours.
        if let Ok(name) = entry.file_name().into_string()
            && !is_hidden(&name)
            && let Ok(kind) = entry.file_type()
        {
            entries.push(Entry {
                name,
                is_folder: kind.is_dir(),
            });
        }
        Ok(())
    })?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Calls `take` for each entry of a folder, of which there may be millions; for none where there is no folder.
fn each_in_folder(
    place: &Path,
    take: &mut dyn FnMut(&fs::DirEntry) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let failed = |error| StoreError::from_io("list", place, 0, error);
    match fs::read_dir(place) {
        Ok(mut entries) => entries.try_for_each(|entry| take(&entry.map_err(failed)?)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(failed(error)),
    }
}

fn visit(
    place: &Path,
    prefix: &str,
    found: &mut dyn FnMut(ObjectInfo) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, StoreError> {
    for entry in entries(place)? {
        let path = place.join(&entry.name);
        let text = if prefix.is_empty() {
            entry.name
        } else {
            format!("{prefix}/{}", entry.name)
        };
        let flow = if entry.is_folder {
            visit(&path, &text, found)?
        } else {
            // A name that is no key is a stranger's file ("lost+found" aside): not an object.
            let Ok(key) = Key::new(text) else { continue };
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_file() => found(ObjectInfo {
                    key,
                    size_bytes: metadata.len(),
                }),
                Ok(_) => continue,
                // Deleted since the folder was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(StoreError::from_io("list", path, 0, error)),
            }
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Whether anything else than temporary files lies in a folder: told by the first such entry, however many follow.
fn holds_more_than_leftovers(place: &Path) -> Result<bool, StoreError> {
    let is_more = |entry: &io::Result<fs::DirEntry>| !matches!(entry, Ok(entry) if entry.file_name().to_str().is_some_and(is_temporary));
    match fs::read_dir(place).map(|mut entries| entries.find(is_more)) {
        Ok(found) => found
            .transpose()
            .map(|found| found.is_some())
            .map_err(|error| StoreError::from_io("list", place, 0, error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::from_io("list", place, 0, error)),
    }
}

/// Removes the temporary files of dead processes that lie directly in a folder.
fn remove_leftover_files(place: &Path) -> Result<u64, StoreError> {
    let mut removed = 0;
    each_in_folder(place, &mut |entry| {
        let name = entry.file_name();
        // A folder may hold a hundred thousand objects: only a few are worth a closer look.
        let Some(name) = name.to_str().filter(|name| is_temporary(name)) else {
            return Ok(());
        };
        let age_seconds = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|modified| SystemTime::now().duration_since(modified).ok())
            .map_or(0, |age| age.as_secs());
        if is_leftover(name, age_seconds) {
            match fs::remove_file(entry.path()) {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::from_io("delete", entry.path(), 0, error)),
            }
        }
        Ok(())
    })?;
    Ok(removed)
}

fn remove_leftovers_below(place: &Path) -> Result<u64, StoreError> {
    let mut removed = remove_leftover_files(place)?;
    for entry in entries(place)? {
        if entry.is_folder && folder(&entry.name).is_ok() {
            let below = place.join(&entry.name);
            removed += remove_leftovers_below(&below)?;
            // Goes only where it is empty, as a killed deletion leaves it. A writer who just made it makes it again.
            let _ = fs::remove_dir(&below);
        }
    }
    Ok(removed)
}
