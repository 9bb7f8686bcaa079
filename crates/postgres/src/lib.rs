//! A live PostgreSQL server and its data directory, from outside and from beside.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`target`] | which server: connection string, `PG*`, service, or the data directory's `postmaster.pid` |
//! | [`connection`] | one session by libpq: query, deadline, cancel |
//! | [`server_user`] | the user that a server runs as, and acting with its rights |
//! | [`server_facts`] | what a backup has to know about a server, and what is missing, with the statement that grants it |
//! | [`known_faults`] | minor versions that a standby should not run, and major versions past their end |
//! | [`catalogs`] | what the catalogs say must exist on disk |
//! | [`backup_session`] | slot, `pg_backup_start`, position, `pg_backup_stop`: one session for a whole backup |
//! | [`replication`] | WAL as it is written, from a walsender |
//! | [`bin_directory`] | the programs of a PostgreSQL installation |
//! | [`throwaway`] | servers to start, promote and stop: for drills, clones and tests |
//! | [`directory`] | directories as open handles, below which no link is followed |
//! | [`data_directory`] | the walk over a data directory, and reading its files |
//! | [`cache_neutral`] | reading without displacing what the server has in the page cache |
//! | [`configuration_files`] | configuration that lies outside the data directory |
//! | [`configuration_syntax`] | how configuration files are spelled: settings, and names of other files |
//!
//! Everything blocks; nothing prints. The only `unsafe` for the server's side is in the private module `libpq`.

pub mod backup_session;
pub mod bin_directory;
pub mod cache_neutral;
pub mod catalogs;
pub mod configuration_files;
pub mod configuration_syntax;
pub mod connection;
pub mod data_directory;
pub mod directory;
pub mod error;
pub mod known_faults;
mod libpq;
mod opening;
pub mod postmaster_pid;
pub mod replication;
pub mod server_facts;
pub mod server_user;
pub mod target;
pub mod throwaway;

pub use error::Error;
