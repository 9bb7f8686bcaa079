//! What the server's catalogs say must exist in the data directory.
//!
//! A file system that is not mounted leaves an empty directory behind, and a reader of files takes it for an empty
//! tablespace. Only the server knows better.

use std::time::Duration;

use leeward_pgformat::{Oid, RelFileNumber};

use crate::connection::{Connection, Rows};
use crate::error::Error;
use crate::target::ConnectTarget;

/// Longest wait for one of these queries.
const PATIENCE: Duration = Duration::from_secs(60);

/// Rows of `pg_class` that are fetched at once.
const ROWS: usize = 10_000;

/// How often a query is repeated that a standby cancelled because replay was in its way.
const ATTEMPTS: u32 = 5;

/// SQLSTATE of "canceling statement due to conflict with recovery" (`errcodes.txt`).
const SERIALIZATION_FAILURE: &str = "40001";

/// A database that can be used. One whose `DROP DATABASE` was interrupted cannot (`datconnlimit` is -2,
/// `DATCONNLIMIT_INVALID_DB` in `pg_database.h`), and its files may be gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// Its OID, the name of its directory.
    pub oid: Oid,
    /// Its name.
    pub name: String,
    /// The tablespace in which its directory with `PG_VERSION` lies.
    pub tablespace: Oid,
    /// Whether it allows connections, and its name is one that can be asked for.
    pub connectable: bool,
    /// No row in it has an older transaction that is not marked as frozen.
    oldest_transaction: u32,
    /// The same of multixacts.
    oldest_multixact: u32,
}

/// The shared catalogs, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalogs {
    /// Databases, by OID.
    pub databases: Vec<Database>,
    /// OIDs and names of the tablespaces other than the two built-in ones, by OID.
    pub tablespaces: Vec<(Oid, String)>,
    /// The next transaction as of the last checkpoint or restartpoint.
    pub next_transaction: u32,
    /// The next multixact, likewise.
    pub next_multixact: u32,
}

impl Catalogs {
    /// Reads them.
    ///
    /// # Errors
    /// Those of [`Connection::query`], and [`Error::UnexpectedAnswer`].
    pub fn read(connection: &mut Connection) -> Result<Catalogs, Error> {
        let rows = ask(
            connection,
            "SELECT oid, datname, dattablespace, datallowconn, datfrozenxid, datminmxid FROM pg_database \
             WHERE datconnlimit <> -2 ORDER BY oid",
            &[],
        )?;
        let databases = (0..rows.len())
            .map(|row| {
                let name = rows.bytes(row, 1).unwrap_or_default();
                Ok(Database {
                    oid: Oid(rows.parse(row, 0)?),
                    name: String::from_utf8_lossy(name).into_owned(),
                    tablespace: Oid(rows.parse(row, 2)?),
                    connectable: rows.is_true(row, 3) && std::str::from_utf8(name).is_ok(),
                    oldest_transaction: rows.parse(row, 4)?,
                    oldest_multixact: rows.parse(row, 5)?,
                })
            })
            .collect::<Result<_, Error>>()?;
        let rows = ask(
            connection,
            "SELECT oid, spcname FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid",
            &[],
        )?;
        let tablespaces = (0..rows.len())
            .map(|row| {
                let name = rows.bytes(row, 1).unwrap_or_default();
                let name = String::from_utf8_lossy(name).into_owned();
                Ok((Oid(rows.parse(row, 0)?), name))
            })
            .collect::<Result<_, Error>>()?;
        // The next transaction is written with its epoch: 0:733.
        let rows = ask(
            connection,
            "SELECT split_part(next_xid, ':', 2), next_multixact_id FROM pg_control_checkpoint()",
            &[],
        )?;
        Ok(Catalogs {
            databases,
            tablespaces,
            next_transaction: rows.parse(0, 0)?,
            next_multixact: rows.parse(0, 1)?,
        })
    }

    /// Returns a database.
    #[must_use]
    pub fn database(&self, oid: Oid) -> Option<&Database> {
        self.databases.iter().find(|database| database.oid == oid)
    }

    /// The oldest transaction before `next` whose status anybody may ask for: the server removes that of older ones
    /// (`vac_truncate_clog`, commands/vacuum.c). `next` where all are frozen.
    #[must_use]
    pub fn oldest_transaction(&self, next: u32) -> u32 {
        oldest(self.databases.iter().map(|d| d.oldest_transaction), next)
    }

    /// The oldest multixact before `next` that anybody may ask for; `next` where there is none.
    #[must_use]
    pub fn oldest_multixact(&self, next: u32) -> u32 {
        oldest(self.databases.iter().map(|d| d.oldest_multixact), next)
    }
}

/// The oldest of numbers that wrap around, all of them less than 2^31 away from `next`, of those before `next`; `next` where there
/// are none.
fn oldest(numbers: impl Iterator<Item = u32>, next: u32) -> u32 {
    let ages = numbers.map(|number| next.wrapping_sub(number).cast_signed());
    next.wrapping_sub(ages.max().unwrap_or(0).max(0).cast_unsigned())
}

/// The first file of a relation that is neither temporary nor unlogged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationFile {
    /// The tablespace.
    pub tablespace: Oid,
    /// The database; [`Oid::INVALID`] for relations shared by the whole cluster.
    pub database: Oid,
    /// The file number.
    pub number: RelFileNumber,
}

/// What a database's `pg_class` names, read in a session of its own.
#[derive(Debug)]
pub struct DatabaseCatalog {
    connection: Connection,
    database: Oid,
    tablespace: Oid,
}

impl DatabaseCatalog {
    /// Connects to `database` as `target` connects to another.
    ///
    /// # Errors
    /// Those of [`Connection::connect`].
    pub fn connect(target: &ConnectTarget, database: &Database) -> Result<Self, Error> {
        let target = ConnectTarget {
            database: Some(database.name.clone()),
            ..target.clone()
        };
        Ok(Self {
            connection: Connection::connect(&target)?,
            database: database.oid,
            tablespace: database.tablespace,
        })
    }

    /// Calls `found` with each relation's first file.
    ///
    /// # Errors
    /// Those of [`Connection::query`], and [`Error::UnexpectedAnswer`].
    pub fn relation_files(&mut self, found: &mut dyn FnMut(RelationFile)) -> Result<(), Error> {
        // Relations with files, by the table of `relkind` in the manual, and of access methods that come with the server:
        // others may keep their data elsewhere. The server knows the numbers of mapped catalogs too.
        let sql = "SELECT oid, reltablespace, pg_relation_filenode(oid) FROM pg_class \
                   WHERE oid > $1::oid AND relkind IN ('r', 'i', 'S', 't', 'm') AND relpersistence = 'p' \
                   AND relam < 16384 ORDER BY oid LIMIT $2::int";
        let limit = ROWS.to_string();
        let mut after = "0".to_owned();
        loop {
            let rows = ask(&mut self.connection, sql, &[Some(&after), Some(&limit)])?;
            for row in 0..rows.len() {
                // None for a relation that was dropped in between.
                let Some(number) = rows.parse_optional(row, 2)? else {
                    continue;
                };
                let (tablespace, database) = match Oid(rows.parse(row, 1)?) {
                    Oid::INVALID => (self.tablespace, self.database),
                    Oid::GLOBAL_TABLESPACE => (Oid::GLOBAL_TABLESPACE, Oid::INVALID),
                    other => (other, self.database),
                };
                found(RelationFile {
                    tablespace,
                    database,
                    number: RelFileNumber(number),
                });
            }
            if rows.len() < ROWS {
                return Ok(());
            }
            after = rows.text(rows.len() - 1, 0)?.to_owned();
        }
    }
}

fn ask(connection: &mut Connection, sql: &str, parameters: &[Option<&str>]) -> Result<Rows, Error> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let asked =
            connection.query_during("read the server's catalogs", sql, parameters, PATIENCE);
        match asked {
            Err(error) if error.sqlstate() == Some(SERIALIZATION_FAILURE) && attempt < ATTEMPTS => {
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_numbers_that_wrap_around() {
        assert_eq!(oldest([700, 500, 900].into_iter(), 1000), 500);
        assert_eq!(oldest([u32::MAX - 5, 7].into_iter(), 1000), u32::MAX - 5);
        assert_eq!(oldest([3_000_000_000, 3].into_iter(), 1000), 3_000_000_000);
        assert_eq!(oldest(std::iter::empty(), 1000), 1000);
        // Frozen after `next` was: the number of the last checkpoint.
        assert_eq!(oldest([1005, 1200].into_iter(), 1000), 1000);
        assert_eq!(oldest([1005, 990].into_iter(), 1000), 990);
        assert_eq!(oldest([5].into_iter(), u32::MAX - 5), u32::MAX - 5);
    }
}
