//! The destination of a restore: leftovers it takes over, places it leaves alone, and changes while it runs.

mod at_once;
mod interrupted;
mod owners;
mod place;
mod replayed;
#[path = "../shared/restore_options.rs"]
mod restore_options;
