//! Where recovery goes: which backup, along which timeline, to which record, and what it needs on the way. Decided from the
//! repository alone, before anything is written, by PostgreSQL's own rules.
//!
//! [`sources`] is what recovery can be given; [`path`] the segments that lead to a timeline; [`replay`] what a server makes
//! of a backup on a path, read through [`wal_reader`] and joined by [`continuity`]; [`choose`] takes a backup, [`damaged`] those that it
//! passes over, and [`explain`] says why none will do; [`one_history`]
//! holds a backup's WAL to the archive's; [`windows`] is what can be reached at all.

pub(crate) mod choose;
mod continuity;
pub(crate) mod damaged;
pub(crate) mod explain;
pub(crate) mod one_history;
pub(crate) mod path;
pub(crate) mod replay;
pub(crate) mod sources;
mod target;
mod times;
mod unknown_timelines;
pub(crate) mod wal_reader;
pub(crate) mod windows;

pub use target::{
    RecoveryOptions, RecoveryTarget, Standby, StopPoint, TargetAction, TimelineSelection,
};
