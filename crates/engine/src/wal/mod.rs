//! The WAL archive: files and streams into it, files out of it, and what it holds.

mod backup_wal;
mod fetched;
mod get;
pub mod list;
mod prefetch;
mod push;
pub mod receive;
mod server;
mod spool;
mod target;

pub(crate) use backup_wal::{Look, file_in_backups};
pub use get::{GetMeans, GetOptions, GetOutcome, PrefetchCall, get};
pub use prefetch::{PrefetchOptions, prefetch};
pub use push::{PushOptions, PushOutcome, push};
