//! `leeward`: backups of PostgreSQL, taken on the standby. This crate reads arguments and configuration, calls the engine
//! and shows what it says; everything else is the engine's.

mod args;
mod commands;
mod config;
mod failure;
mod json;
mod output;
mod progress;
mod table;
mod units;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    let json = args.global.json;
    match commands::run(args) {
        Ok(code) => code,
        Err(failure) => failure.report(json),
    }
}
