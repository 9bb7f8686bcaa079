//! `leeward wal ...`

use std::process::ExitCode;

use leeward_engine::error::Error;

use crate::args::{Global, Wal};
use crate::config::Config;
use crate::failure::Failure;

pub fn run(_global: &Global, _config: &Config, wal: Wal) -> Result<ExitCode, Failure> {
    match wal {
        Wal::Push { .. } | Wal::Get { .. } => Err(Error::failed("not done yet").into()),
    }
}
