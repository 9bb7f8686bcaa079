//! What must be in a backup because the server's catalogs say that it exists.
//!
//! A walk over files cannot tell an empty tablespace from one whose file system is not mounted, nor a dropped table from
//! a lost one. So the catalogs are read before anything is copied and once more at its end: what both name, and what was
//! not stored, is missing. Whatever is created or dropped in between is in the WAL that the backup brings.
//!
//! A missing tablespace, database or directory of the server's own fails the backup: somebody has to mount something.
//! Single missing files are damage, as damaged pages are: the backup is complete, marked, and names them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use leeward_pgformat::relation::{Fork, RelationSegment};
use leeward_pgformat::relation_map::{RELATION_MAP_MAX_SIZE, RELATION_MAP_NAME, RelationMap};
use leeward_pgformat::slru::{multixact_offset_files, transaction_status_files};
use leeward_pgformat::{Oid, TablespaceVersionDirectory};
use leeward_postgres::backup_session::BackupSession;
use leeward_postgres::catalogs::{Catalogs, Database, DatabaseCatalog, RelationFile};
use leeward_postgres::connection::Connection;
use leeward_postgres::data_directory::DataDirectory;
use leeward_postgres::target::ConnectTarget;
use leeward_repository::file_path::Root;
use leeward_repository::manifest::{FileKind, FileRecord};

use super::collect::DamagedFile;
use super::segments::{FULL, SegmentCheck, Suspect};
use crate::error::{Error, Result};
use crate::event::{Event, Observer};

/// How long what the catalogs name may be absent before the backup: a transaction that drops a database or tablespace
/// removes its files a moment before it commits.
const SETTLES_WITHIN: Duration = Duration::from_secs(3);

/// How often it is looked for meanwhile.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// The owner of what belongs to no database or tablespace, in messages.
const CLUSTER: &str = "the cluster";

const RUN_AGAIN: &str = "Then run the command again.";

/// PostgreSQL's own directories that hold what no server can make anew.
const OWN_DIRECTORIES: [&str; 9] = [
    "base",
    "global",
    "pg_commit_ts",
    "pg_logical",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_tblspc",
    "pg_twophase",
    "pg_xact",
];

/// Where the catalogs and relation maps are looked up.
pub(super) struct Server<'a> {
    pub directory: &'a DataDirectory,
    pub version_directory: TablespaceVersionDirectory,
    /// How the backup's session was connected.
    pub target: &'a ConnectTarget,
    pub observe: Observer<'a>,
}

/// What has to be in the backup.
#[derive(Debug)]
pub(super) struct Required {
    catalogs: Catalogs,
    /// Directories and files that must be there.
    places: BTreeMap<PathBuf, Place>,
    /// First files of relations, sorted: those of the relation maps, and of the databases that were asked.
    relations: Vec<RelationFile>,
    asked: BTreeSet<Oid>,
}

/// A directory or file that must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// What it is a part of: `tablespace "archive"`.
    owner: String,
    is_directory: bool,
}

/// What was stored of it.
#[derive(Debug)]
pub(super) struct Stored<'a> {
    required: &'a Required,
    places: BTreeSet<PathBuf>,
    /// Which of the relations, by their position.
    relations: Vec<bool>,
    /// Files of `pg_xact` and `pg_multixact`.
    statuses: HashSet<PathBuf>,
    segments: SegmentCheck,
}

#[cfg(test)]
impl Required {
    /// Requires nothing.
    pub(super) fn nothing() -> Self {
        Self {
            catalogs: Catalogs {
                databases: Vec::new(),
                tablespaces: Vec::new(),
                next_transaction: 3,
                next_multixact: 1,
            },
            places: BTreeMap::new(),
            relations: Vec::new(),
            asked: BTreeSet::new(),
        }
    }
}

impl Required {
    /// Finds out what must be there, and makes sure that it is.
    ///
    /// # Errors
    /// Those of the session, and one that names what is missing.
    pub(super) fn before(connection: &mut Connection, server: &Server<'_>) -> Result<Self> {
        let deadline = Instant::now() + SETTLES_WITHIN;
        loop {
            let mut required = Self::of(Catalogs::read(connection)?, server);
            let found = required
                .check(server)
                .and_then(|()| required.find_relations(server));
            match found {
                Ok(()) => return Ok(required),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::park_timeout(LOOK_AGAIN_AFTER),
            }
        }
    }

    /// Takes the numbers of the restartpoint or checkpoint that the backup starts from: all before them are on disk.
    pub(super) fn started(&mut self, session: &mut BackupSession) -> Result<()> {
        let catalogs = session.catalogs()?;
        self.catalogs.next_transaction = catalogs.next_transaction;
        self.catalogs.next_multixact = catalogs.next_multixact;
        Ok(())
    }

    fn of(catalogs: Catalogs, server: &Server<'_>) -> Self {
        let mut places = BTreeMap::new();
        let mut must = |path: PathBuf, owner: &str, is_directory| {
            let owner = owner.to_owned();
            places.insert(
                path,
                Place {
                    owner,
                    is_directory,
                },
            );
        };
        for directory in OWN_DIRECTORIES {
            must(directory.into(), CLUSTER, true);
        }
        must("PG_VERSION".into(), CLUSTER, false);
        must(Path::new("global").join(RELATION_MAP_NAME), CLUSTER, false);
        for (oid, name) in &catalogs.tablespaces {
            must(
                server.tablespace(*oid),
                &format!("tablespace \"{name}\""),
                true,
            );
        }
        for database in &catalogs.databases {
            let (directory, owner) = (server.database(database), owner(database));
            must(directory.join("PG_VERSION"), &owner, false);
            must(directory.join(RELATION_MAP_NAME), &owner, false);
        }
        Self {
            catalogs,
            places,
            relations: Vec::new(),
            asked: BTreeSet::new(),
        }
    }

    /// Looks at every place.
    fn check(&self, server: &Server<'_>) -> Result<()> {
        for (path, place) in &self.places {
            let found = server.directory.find(path);
            let problem = match found {
                Ok(Some(found)) if place.is_directory && !found.is_directory() => {
                    "is not a directory"
                }
                Ok(Some(found)) if !place.is_directory && !found.is_file() => "is not a file",
                Ok(Some(_)) => continue,
                Ok(None) => "does not exist",
                Err(e) => {
                    let path = server.directory.path().join(path);
                    return Err(
                        Error::failed(format!("could not read \"{}\"", path.display())).because(e),
                    );
                }
            };
            return Err(missing(server, path, place, problem));
        }
        Ok(())
    }

    fn find_relations(&mut self, server: &Server<'_>) -> Result<()> {
        let mut relations = Vec::new();
        let mut unasked = Vec::new();
        server.mapped(None, &mut relations)?;
        for database in &self.catalogs.databases {
            server.mapped(Some(database), &mut relations)?;
            if database.connectable {
                match server.listed(database, &mut relations) {
                    Ok(()) => _ = self.asked.insert(database.oid),
                    Err(error) if is_dropped(&error) => {}
                    Err(error) => unasked.push((database.name.as_str(), error)),
                }
            }
        }
        if let [(name, error), others @ ..] = unasked.as_slice() {
            let others = match others.len() {
                0 => String::new(),
                count => format!(" (and {count} more)"),
            };
            (server.observe)(Event::Notice(format!(
                "Whether each table of database \"{name}\"{others} has its file could not be made sure of: {error}."
            )));
        }
        relations.sort_unstable();
        relations.dedup();
        self.relations = relations;
        Ok(())
    }

    /// Returns a database that was there before.
    pub(super) fn database(&self, oid: Oid) -> Option<&Database> {
        self.catalogs.database(oid)
    }

    /// Compares what was stored with what the catalogs say now, and returns the files that the server has lost.
    ///
    /// # Errors
    /// One that names what the backup lacks.
    pub(super) fn after(
        &self,
        stored: Stored<'_>,
        now: Catalogs,
        server: &Server<'_>,
    ) -> Result<Vec<DamagedFile>> {
        let now = Self::of(now, server);
        for (path, place) in &self.places {
            if !stored.places.contains(path) && now.places.get(path) == Some(place) {
                return Err(missing(server, path, place, "was not there to be copied"));
            }
        }
        let mut lost = self.lost_relations(&stored, &now, server)?;
        lost.extend(self.lost_statuses(&stored, &now, server)?);
        lost.extend(self.lost_segments(stored.segments.finish(), server)?);
        Ok(lost)
    }

    fn lost_relations(
        &self,
        stored: &Stored<'_>,
        now: &Self,
        server: &Server<'_>,
    ) -> Result<Vec<DamagedFile>> {
        let unstored: Vec<RelationFile> = (self.relations.iter().zip(&stored.relations))
            .filter_map(|(relation, stored)| (!stored).then_some(*relation))
            .collect();
        let Some(first) = unstored.first() else {
            return Ok(Vec::new());
        };
        let mut named = Vec::new();
        if first.database == Oid::INVALID {
            server.mapped(None, &mut named)?;
        }
        for database in &now.catalogs.databases {
            if unstored.iter().any(|file| file.database == database.oid) {
                server.mapped(Some(database), &mut named)?;
                if self.asked.contains(&database.oid) {
                    match server.listed(database, &mut named) {
                        Err(error) if is_dropped(&error) => {}
                        listed => listed?,
                    }
                }
            }
        }
        let named: HashSet<RelationFile> = named.into_iter().collect();
        let still_named = unstored.into_iter().filter(|file| named.contains(file));
        still_named
            .map(|file| server.lost(&server.relation(first_segment(file))))
            .collect()
    }

    /// Files of `pg_xact` and `pg_multixact`: recovery reads a missing one as zeros.
    fn lost_statuses(
        &self,
        stored: &Stored<'_>,
        now: &Self,
        server: &Server<'_>,
    ) -> Result<Vec<DamagedFile>> {
        let next = self.catalogs.next_transaction;
        let transactions: Vec<String> =
            transaction_status_files(now.catalogs.oldest_transaction(next), next).collect();
        let next = self.catalogs.next_multixact;
        let multixacts: Vec<String> = multixact_offset_files(
            server.version_directory.major,
            now.catalogs.oldest_multixact(next),
            next,
        )
        .collect();
        let mut lost = Vec::new();
        for (folder, names) in [
            ("pg_xact", transactions),
            ("pg_multixact/offsets", multixacts),
        ] {
            let folder = Path::new(folder);
            let missing_ones: Vec<PathBuf> = names
                .iter()
                .map(|name| folder.join(name))
                .filter(|path| !stored.statuses.contains(path))
                .collect();
            if missing_ones.len() == names.len() && !names.is_empty() {
                let place = Place {
                    owner: CLUSTER.to_owned(),
                    is_directory: true,
                };
                return Err(missing(
                    server,
                    folder,
                    &place,
                    "has none of the files that the server needs",
                ));
            }
            for path in missing_ones {
                lost.push(server.lost(&path)?);
            }
        }
        Ok(lost)
    }

    fn lost_segments(
        &self,
        suspects: Vec<Suspect>,
        server: &Server<'_>,
    ) -> Result<Vec<DamagedFile>> {
        let mut lost = Vec::new();
        for Suspect { broken, behind } in suspects {
            let file = RelationFile {
                tablespace: broken.tablespace,
                database: broken.database,
                number: broken.relation,
            };
            // Leftovers of a crash are nobody's.
            if self.relations.binary_search(&file).is_err() {
                continue;
            }
            let size = |segment| server.size(&server.relation(segment));
            let (Some(_), Some(behind)) = (size(first_segment(file))?, size(behind)?) else {
                continue;
            };
            let short = size(broken)?.is_none_or(|size| size < FULL);
            if short && behind > 0 {
                lost.push(DamagedFile::missing(&server.relation(broken)));
            }
        }
        Ok(lost)
    }
}

impl<'a> Stored<'a> {
    pub(super) fn new(required: &'a Required) -> Self {
        Self {
            required,
            places: BTreeSet::new(),
            relations: vec![false; required.relations.len()],
            statuses: HashSet::new(),
            segments: SegmentCheck::default(),
        }
    }

    /// Takes note of what was stored.
    pub(super) fn add(&mut self, record: &FileRecord) {
        if record.path.root != Root::DataDirectory {
            return;
        }
        let is_directory = match record.kind {
            FileKind::Directory => true,
            FileKind::File { .. } => false,
            FileKind::Symlink { .. } => return,
        };
        if let (Some(segment), FileKind::File { size, .. }) =
            (record.path.relation_segment(), &record.kind)
        {
            self.segments.add(segment, *size);
            if segment.fork == Fork::Main && segment.segment == 0 {
                let relations = &self.required.relations;
                let file = RelationFile {
                    tablespace: segment.tablespace,
                    database: segment.database,
                    number: segment.relation,
                };
                if let Ok(at) = relations.binary_search(&file) {
                    self.relations[at] = true;
                }
            }
            return;
        }
        let path = Path::new(OsStr::from_bytes(&record.path.path));
        let required = self.required.places.get(path);
        if required.is_some_and(|place| place.is_directory == is_directory) {
            self.places.insert(path.to_owned());
        }
        if path.starts_with("pg_xact") || path.starts_with("pg_multixact") {
            self.statuses.insert(path.to_owned());
        }
    }
}

impl Server<'_> {
    fn tablespace(&self, oid: Oid) -> PathBuf {
        Path::new("pg_tblspc")
            .join(oid.to_string())
            .join(self.version_directory.to_string())
    }

    fn database(&self, database: &Database) -> PathBuf {
        let folder = match database.tablespace {
            Oid::DEFAULT_TABLESPACE => PathBuf::from("base"),
            other => self.tablespace(other),
        };
        folder.join(database.oid.to_string())
    }

    fn relation(&self, segment: RelationSegment) -> PathBuf {
        segment.path(self.version_directory).into()
    }

    /// The files of the catalogs in a relation map: of a database, or of the whole cluster.
    fn mapped(&self, database: Option<&Database>, found: &mut Vec<RelationFile>) -> Result<()> {
        let directory = database.map_or("global".into(), |database| self.database(database));
        let path = directory.join(RELATION_MAP_NAME);
        let bytes = self
            .directory
            .open_directory(&directory)
            .and_then(|d| d.read(OsStr::new(RELATION_MAP_NAME), RELATION_MAP_MAX_SIZE as u64));
        let map = match bytes {
            Ok(bytes) => RelationMap::parse(&bytes).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        let map = map.map_err(|problem| {
            let owner = database.map_or(CLUSTER.to_owned(), owner);
            let path = self.directory.path().join(&path);
            Error::failed(format!(
                "could not read the relation map of {owner}, \"{}\"",
                path.display()
            ))
            .because(problem)
            .hint("The server cannot open a database without it. Restore it from an older backup, or make the standby anew.")
        })?;
        found.extend(map.entries.into_iter().map(|(_, number)| match database {
            Some(database) => RelationFile {
                tablespace: database.tablespace,
                database: database.oid,
                number,
            },
            None => RelationFile {
                tablespace: Oid::GLOBAL_TABLESPACE,
                database: Oid::INVALID,
                number,
            },
        }));
        Ok(())
    }

    /// The files of the relations in a database's `pg_class`.
    fn listed(
        &self,
        database: &Database,
        found: &mut Vec<RelationFile>,
    ) -> std::result::Result<(), leeward_postgres::Error> {
        DatabaseCatalog::connect(self.target, database)?
            .relation_files(&mut |file| found.push(file))
    }

    /// A file that the backup has not and the server should have: lost, unless it was away just for the copying.
    fn lost(&self, path: &Path) -> Result<DamagedFile> {
        if self.size(path)?.is_some() {
            let full = self.directory.path().join(path);
            return Err(Error::failed(format!(
                "\"{}\" was not there to be copied, and is there now",
                full.display()
            ))
            .hint(RUN_AGAIN));
        }
        Ok(DamagedFile::missing(path))
    }

    fn size(&self, path: &Path) -> Result<Option<u64>> {
        let found = self.directory.find(path);
        found
            .map(|found| found.map(|facts| facts.size_bytes))
            .map_err(|e| {
                let path = self.directory.path().join(path);
                Error::failed(format!("could not read \"{}\"", path.display())).because(e)
            })
    }
}

fn first_segment(file: RelationFile) -> RelationSegment {
    RelationSegment {
        tablespace: file.tablespace,
        database: file.database,
        relation: file.number,
        fork: Fork::Main,
        segment: 0,
    }
}

/// Whether a session could not be opened because the database is no longer there, or no longer valid.
fn is_dropped(error: &leeward_postgres::Error) -> bool {
    // ERRCODE_UNDEFINED_DATABASE, ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE
    matches!(error.sqlstate(), Some("3D000" | "55000"))
}

fn owner(database: &Database) -> String {
    format!("database \"{}\"", database.name)
}

fn missing(server: &Server<'_>, path: &Path, place: &Place, problem: &str) -> Error {
    let mut parts = path.components();
    let (top, oid) = (parts.next(), parts.next());
    let link = match (top, oid) {
        (Some(top), Some(oid)) if top.as_os_str() == "pg_tblspc" => server
            .directory
            .open_directory(Path::new("pg_tblspc"))
            .and_then(|links| links.read_link(oid.as_os_str()))
            .ok(),
        _ => None,
    };
    // Where a file system would be mounted.
    let full = match link {
        Some(location) => location.join(parts.as_path()),
        None => server.directory.path().join(path),
    };
    // A name of several lines begins none of its own.
    let owner = &place.owner.replace('\n', "\\n");
    let hint = if owner == CLUSTER {
        format!("Mount the file system that belongs there, if it is on one of its own. {RUN_AGAIN}")
    } else {
        format!(
            "Mount the file system that belongs there. {RUN_AGAIN} If the files are lost for good, drop the {owner} on the primary."
        )
    };
    Error::failed(format!("\"{}\" of {owner} {problem}", full.display())).hint(hint)
}
