//! What Leeward stores and how: places for objects, the bytes in them, and who may write.
//!
//! Knows no server, prints nothing, and blocks: asynchronous code stays behind [`store`].

pub mod backup_id;
mod backup_wal;
pub mod catalog;
pub mod codec;
pub mod conditional_writes;
mod document;
pub mod error;
mod fields;
pub mod file_path;
pub mod frame;
pub mod hash;
pub mod layout;
pub mod lease;
pub mod manifest;
pub mod pack;
pub mod parallel;
pub mod process;
pub mod repository_error;
pub mod store;
pub mod summary;
mod trailer;
pub mod url;
pub mod wal_archive;
pub mod wal_object;
mod zstd_frames;

pub use repository_error::RepositoryError;
