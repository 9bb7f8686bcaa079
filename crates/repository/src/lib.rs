//! What Leeward stores and how: places for objects, the bytes in them, and who may write.
//!
//! Knows no server, prints nothing, and blocks: asynchronous code stays behind [`store`].

pub mod backup_id;
pub mod catalog;
pub mod codec;
mod fields;
pub mod file_path;
pub mod frame;
pub mod hash;
pub mod layout;
pub mod manifest;
pub mod pack;
pub mod repository_error;
pub mod summary;
mod trailer;
pub mod wal_object;
pub mod error;
pub mod process;
pub mod store;
pub mod url;

pub use repository_error::RepositoryError;
