//! What Leeward does: take backups, put them back, export them. It prints nothing; it tells an [`event::Observer`].

mod admission;
pub mod backup;
pub mod catalog;
mod configuration;
pub mod error;
pub mod event;
pub mod export;
mod frames;
pub mod moment;
pub mod pack;
mod pipeline;
pub mod recovery;
mod repository;
pub mod restore;
pub mod wal;
