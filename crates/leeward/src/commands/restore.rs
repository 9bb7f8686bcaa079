//! `leeward restore`

use std::process::ExitCode;
use std::time::Instant;

use leeward_engine::restore::{RestoreOptions, restore};
use serde_json::json;

use crate::args::{Global, Restore};
use crate::config::Config;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{json, output, table, units};

pub fn run(global: &Global, config: &Config, args: Restore) -> Result<ExitCode, Failure> {
    let options = RestoreOptions {
        cluster: config.cluster.clone(),
        backup: args.backup,
        to: args.to,
        tablespaces: args.tablespace,
        threads: args.threads.or(config.threads),
    };
    let started = Instant::now();
    let progress = Progress::new(global);
    let outcome = restore(&config.store()?, &options, &|event| progress.event(event));
    progress.finish();
    let outcome = outcome?;
    let took = started.elapsed();
    let s = &outcome.summary;
    if !global.quiet {
        let rows = [
            (
                "size",
                format!(
                    "{} in {} files",
                    units::bytes(s.size_bytes),
                    units::count(s.files)
                ),
            ),
            (
                "rate",
                format!(
                    "{}, {} in all",
                    units::rate(outcome.written_bytes, took),
                    units::duration(took)
                ),
            ),
            (
                "consistent at",
                format!("{} on timeline {}", s.stop_lsn, s.stop_timeline),
            ),
            (
                "start it",
                format!(
                    "postgres -D {}  (PostgreSQL {})",
                    outcome.data_directory.display(),
                    s.major
                ),
            ),
        ];
        output::say(&format!(
            "Backup {} of cluster \"{}\" is restored to \"{}\".\n{}",
            s.id,
            s.cluster,
            outcome.data_directory.display(),
            table::facts(&rows).trim_end()
        ));
        for note in &outcome.notes {
            output::say(&format!("  note: {note}"));
        }
    }
    if global.json {
        json::print(&json!({
            "backup": json::backup(s),
            "data_directory": outcome.data_directory,
            "written_bytes": outcome.written_bytes,
            "notes": outcome.notes,
            "seconds": took.as_secs_f64(),
        }));
    }
    Ok(ExitCode::SUCCESS)
}
