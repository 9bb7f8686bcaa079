//! Where a restore goes: what it takes over, what it leaves alone, and what comes to its places while it runs.

mod at_once;
mod interrupted;
mod owners;
mod place;
mod replayed;
