//! `leeward`: backups of PostgreSQL, taken on the standby. This crate reads arguments and configuration, calls the engine
//! and shows what it says; everything else is the engine's.

mod args;
mod bug;
mod commands;
mod config;
mod failure;
mod json;
mod moment;
mod output;
mod progress;
mod restore_command;
mod server_user;
mod table;
mod units;

use std::process::ExitCode;

use clap::Parser;

use crate::commands::wal::may_be_restore_command;

fn main() -> ExitCode {
    if may_be_restore_command(std::env::args_os()) {
        // A mistake of ours must not look like the end of WAL either.
        let failed = ExitCode::from(failure::RESTORE_COMMAND);
        return bug::guard(failed, run_as_restore_command);
    }
    bug::guard(ExitCode::FAILURE, || {
        let args = args::Args::parse();
        let json = args.global.json;
        match commands::run(args) {
            Ok(code) => code,
            Err(failure) => failure.report(json),
        }
    })
}

fn run_as_restore_command() -> ExitCode {
    let failed = ExitCode::from(failure::RESTORE_COMMAND);
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            // Also prints help and version where they were asked for, which are no failures.
            let _ = e.print();
            return if e.use_stderr() {
                failed
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let json = args.global.json;
    match commands::run(args) {
        Ok(code) => code,
        Err(failure) => {
            let _ = failure.report(json);
            failed
        }
    }
}
