//! `leeward export`

use std::io::{IsTerminal, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use leeward_engine::error::{Error, ErrorKind};
use leeward_engine::export::{ExportTo, export};
use serde_json::json;

use crate::args::{Export, Global};
use crate::config::Config;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{json, output, units};

pub fn run(global: &Global, config: &Config, args: &Export) -> Result<ExitCode, Failure> {
    let to = if args.to == Path::new("-") {
        ExportTo::Stream
    } else {
        ExportTo::Directory(args.to.clone())
    };
    if matches!(to, ExportTo::Stream) {
        if global.json {
            return Err(Error::new(
                ErrorKind::Usage,
                "--json and --to - both want standard output",
            )
            .into());
        }
        if stdout().is_terminal() {
            return Err(
                Error::new(ErrorKind::Usage, "an archive does not go to a terminal")
                    .hint("Pipe it: leeward export --to - | tar x --zstd -C DIR")
                    .into(),
            );
        }
    }
    let started = Instant::now();
    let progress = Progress::new(global);
    let outcome = export(
        &config.store()?,
        config.cluster.as_deref(),
        &args.backup,
        &to,
        stdout(),
        &|event| progress.event(event),
    );
    progress.finish();
    let outcome = outcome?;
    let took = started.elapsed();
    if !global.quiet {
        output::say(&format!(
            "Backup {} of cluster \"{}\" is exported, {}.",
            outcome.summary.id,
            outcome.summary.cluster,
            units::duration(took)
        ));
        if !outcome.files.is_empty() {
            output::say("  mkdir -m 700 DIR");
        }
        for file in &outcome.files {
            output::say(&format!("  tar x --zstd -f {} -C DIR", file.display()));
        }
    }
    if global.json {
        json::print(
            &json!({ "backup": json::backup(&outcome.summary), "files": outcome.files, "seconds": took.as_secs_f64() }),
        );
    }
    Ok(ExitCode::SUCCESS)
}
