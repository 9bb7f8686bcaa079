//! Commands over a repository in memory: what they bring, and what becomes of them when something fails.

mod choice;
mod failures;
#[path = "../shared/restore_options.rs"]
mod restore_options;
mod round_trip;
mod world;
