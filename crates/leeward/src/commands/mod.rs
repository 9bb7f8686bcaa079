//! One file a command: arguments and configuration in, one call of the engine, its outcome shown.

mod backup;
mod export;
mod frame;
mod list;
mod restore;
mod show;
pub mod wal;
mod wal_list;
mod wal_receive;

use std::process::ExitCode;

use crate::args::{Args, Command};
use crate::config::Config;
use crate::failure::Failure;

/// Runs the command that was typed.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let config = Config::load(&args.global)?;
    match args.command {
        Command::Backup(backup) => backup::run(&args.global, &config, &backup),
        Command::List => list::run(&args.global, &config),
        Command::Show { backup } => show::run(&args.global, &config, &backup),
        Command::Restore(restore) => restore::run(&args.global, &config, restore),
        Command::Export(export) => export::run(&args.global, &config, &export),
        Command::Frame(frame) => frame::run(&args.global, &config, &frame),
        Command::Wal(wal) => wal::run(&args.global, &config, wal),
    }
}
