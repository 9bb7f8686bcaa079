//! The marks: what was pushed and where to, so that the call that the server makes for it finds its work done.
//!
//! A small text file in the spool, replaced as a whole and not synced: a mark is written after the store has said that
//! the file is durable, so one that is there is true, and one that is lost costs a comparison. A hash over everything
//! tells a torn file from a whole one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use leeward_pgformat::{SystemIdentifier, TimelineId};
use leeward_repository::hash::Hash;

const TITLE: &str = "leeward pushed 2";

/// A file as it was when it was pushed. Whoever writes to a file, or puts another in its place, changes this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileMark {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for FileMark {
    fn from(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What was pushed to one cluster of one repository.
#[derive(Debug)]
pub(super) struct Marks {
    path: PathBuf,
    target: Hash,
    /// Whose WAL the cluster in the repository holds, as of the last look.
    pub identity: Option<Identity>,
    /// By name.
    pub files: BTreeMap<String, FileMark>,
}

/// What was last seen in, or written to, the cluster's `cluster.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// The cluster's.
    pub system_identifier: SystemIdentifier,
    /// Those that are recorded there.
    pub timelines: Vec<TimelineId>,
    /// When that was, in seconds since 1970.
    pub seen_at: i64,
    /// The endpoint of the requests then; empty for a directory.
    pub endpoint: String,
    /// The store there honors the conditions of writes.
    pub conditional_writes: bool,
}

impl Marks {
    /// Reads the marks for `cluster` in the repository at `repository` from the folder `spool`. Whatever cannot be read
    /// or believed is as if it were not there.
    pub(super) fn read(spool: &Path, repository: &str, cluster: &str) -> Self {
        let target = target(&[repository, cluster]);
        let path = spool.join(format!("pushed-{}", short(&target)));
        let mut marks = Self {
            path,
            target,
            identity: None,
            files: BTreeMap::new(),
        };
        if is_ours(spool)
            && let Ok(text) = fs::read_to_string(&marks.path)
        {
            // What was understood before something was not is no less true: the hash held.
            let _ = marks.parse(&text);
        }
        marks
    }

    /// Whether the file `name`, as it is now, has been pushed.
    pub(super) fn knows(&self, name: &str, now: FileMark) -> bool {
        self.files.get(name) == Some(&now)
    }

    fn parse(&mut self, text: &str) -> Option<()> {
        let (body, hash) = text.strip_suffix('\n')?.rsplit_once('\n')?;
        if Hash::of(body.as_bytes()).to_string() != hash {
            return None;
        }
        let mut lines = body.lines();
        if lines.next()? != TITLE || lines.next()? != self.target.to_string() {
            return None;
        }
        let mut words = lines.next().unwrap_or_default().split(' ');
        if let Some(identifier) = words.next().filter(|word| !word.is_empty()) {
            self.identity = Some(Identity {
                system_identifier: SystemIdentifier(identifier.parse().ok()?),
                seen_at: words.next()?.parse().ok()?,
                conditional_writes: words.next()?.parse().ok()?,
                endpoint: words.next()?.to_owned(),
                timelines: words
                    .map(|word| word.parse().ok().map(TimelineId))
                    .collect::<Option<_>>()?,
            });
        }
        for line in lines {
            let (name, numbers) = line.split_once(' ')?;
            let numbers: Vec<i64> = numbers
                .split(' ')
                .map(|number| number.parse().ok())
                .collect::<Option<_>>()?;
            let [inode, size, modified, modified_ns, changed, changed_ns] = *numbers else {
                return None;
            };
            let mark = FileMark {
                inode: inode.cast_unsigned(),
                size: size.cast_unsigned(),
                modified: (modified, modified_ns),
                changed: (changed, changed_ns),
            };
            self.files.insert(name.to_owned(), mark);
        }
        Some(())
    }

    fn text(&self) -> String {
        let mut text = format!("{TITLE}\n{}\n", self.target);
        if let Some(identity) = &self.identity {
            let Identity {
                system_identifier,
                seen_at,
                endpoint,
                conditional_writes,
                ..
            } = identity;
            let _ = write!(
                text,
                "{system_identifier} {seen_at} {conditional_writes} {endpoint}"
            );
            for timeline in &identity.timelines {
                let _ = write!(text, " {timeline}");
            }
        }
        for (name, mark) in &self.files {
            let _ = write!(
                text,
                "\n{name} {} {} {} {} {} {}",
                mark.inode.cast_signed(),
                mark.size.cast_signed(),
                mark.modified.0,
                mark.modified.1,
                mark.changed.0,
                mark.changed.1
            );
        }
        let hash = Hash::of(text.as_bytes());
        let _ = writeln!(text, "\n{hash}");
        text
    }

    /// Replaces the file. Two processes that do so at once lose marks, never truth.
    ///
    /// # Errors
    /// The system's: the spool cannot be made or written.
    pub(super) fn write(&self) -> io::Result<()> {
        let own = self.path.with_extension(std::process::id().to_string());
        let written = make_folder(self.path.parent())
            .and_then(|()| fs::write(&own, self.text()))
            .and_then(|()| fs::rename(&own, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&own);
        }
        written
    }

    /// Removes what processes that died while they wrote have left.
    pub(super) fn remove_leftovers(&self) {
        let Some(folder) = self.path.parent() else {
            return;
        };
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((stem, pid)) = name.split_once('.') else {
                continue;
            };
            if stem.starts_with("pushed-") && !is_alive(pid) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Makes the spool's folder if it is missing.
pub(super) fn make_folder(folder: Option<&Path>) -> io::Result<()> {
    let Some(folder) = folder else { return Ok(()) };
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Returns whether nobody else could have put anything into this folder: in `/tmp` anybody may have made it.
pub(super) fn is_ours(folder: &Path) -> bool {
    let user = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(folder)
        .is_ok_and(|found| found.is_dir() && found.uid() == user && found.mode() & 0o022 == 0)
}

/// Whether a process of this id is there. Words that are no process ids are nobody's.
pub(super) fn is_alive(pid: &str) -> bool {
    let pid = pid.parse().ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

/// Tells one destination or origin from every other one.
pub(super) fn target(parts: &[&str]) -> Hash {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(part.as_bytes());
        bytes.push(0);
    }
    Hash::of(&bytes)
}

/// A hash as part of a file name.
pub(super) fn short(hash: &Hash) -> String {
    hash.0[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks() -> Marks {
        Marks {
            path: PathBuf::new(),
            target: target(&["/repository", "main"]),
            identity: Some(Identity {
                system_identifier: SystemIdentifier(u64::MAX - 1),
                timelines: vec![TimelineId(1), TimelineId(7)],
                seen_at: 1_795_000_000,
                endpoint: "https://store.example:9000".to_owned(),
                conditional_writes: false,
            }),
            files: BTreeMap::from([
                (
                    "000000010000000000000002".to_owned(),
                    FileMark {
                        inode: u64::MAX,
                        size: 16 << 20,
                        modified: (-1, 999_999_999),
                        changed: (1_795_000_000, 0),
                    },
                ),
                (
                    "00000002.history".to_owned(),
                    FileMark {
                        inode: 5,
                        size: 42,
                        modified: (3, 4),
                        changed: (5, 6),
                    },
                ),
            ]),
        }
    }

    fn empty() -> Marks {
        Marks {
            identity: None,
            files: BTreeMap::new(),
            ..marks()
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for written in [marks(), empty()] {
            let mut read = empty();
            assert_eq!(read.parse(&written.text()), Some(()));
            assert_eq!(read.identity, written.identity);
            assert_eq!(read.files, written.files);
        }
    }

    #[test]
    fn what_is_torn_or_foreign_is_not_believed() {
        let text = marks().text();
        for length in 0..text.len() {
            let mut read = empty();
            assert_eq!(read.parse(&text[..length]), None, "{length}");
            assert!(read.files.is_empty());
        }
        let mut zeros = text.clone().into_bytes();
        zeros[80..].fill(0);
        assert_eq!(empty().parse(&String::from_utf8_lossy(&zeros)), None);
        let mut other = Marks {
            target: target(&["/repository", "other"]),
            ..empty()
        };
        assert_eq!(other.parse(&text), None);
        assert!(other.files.is_empty());
    }

    #[test]
    fn marks_that_somebody_else_may_have_written_are_not_believed() {
        use std::os::unix::fs::PermissionsExt;
        let spool = tempfile::tempdir().expect("a directory");
        let mut written = Marks::read(spool.path(), "/repository", "main");
        written.files = marks().files;
        written.write().expect("written");
        let known = || Marks::read(spool.path(), "/repository", "main").files.len();
        assert_eq!(known(), written.files.len());
        let set_mode = |mode| {
            fs::set_permissions(spool.path(), fs::Permissions::from_mode(mode)).expect("a mode");
        };
        set_mode(0o770);
        assert_eq!(known(), 0);
        set_mode(0o700);
        let folder = spool.path().join("real");
        fs::create_dir(&folder).expect("made");
        std::os::unix::fs::symlink(&folder, spool.path().join("link")).expect("linked");
        assert!(!is_ours(&spool.path().join("link")));
        assert!(!is_ours(&spool.path().join("absent")));
    }

    #[test]
    fn names_do_not_run_together() {
        assert_ne!(target(&["ab", "c"]), target(&["a", "bc"]));
    }
}
