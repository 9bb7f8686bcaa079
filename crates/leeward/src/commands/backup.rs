//! `leeward backup`

use std::process::ExitCode;
use std::time::Instant;

use leeward_engine::backup::{BackupOptions, BackupOutcome, DamagedFile, backup};
use leeward_engine::error::{Error, ErrorKind};
use leeward_postgres::backup_session::{BackupFrom, Position};
use serde_json::json;

use crate::args::{Backup, Global};
use crate::config::{Config, DEFAULT_CLUSTER};
use crate::failure::{DAMAGED, Failure};
use crate::progress::Progress;
use crate::{json, output, server_user, table, units};

pub fn run(global: &Global, config: &Config, args: &Backup) -> Result<ExitCode, Failure> {
    let store = config.store()?;
    let pgdata = config.pgdata.clone().ok_or_else(|| {
        Error::new(ErrorKind::Usage, "no data directory given")
            .hint("Name the directory of the running server with --pgdata or PGDATA.")
    })?;
    server_user::work_as_owner_of(&pgdata, &config.url()?)?;
    let options = BackupOptions {
        pgdata,
        conninfo: config.conninfo.clone(),
        cluster: config
            .cluster
            .clone()
            .unwrap_or_else(|| DEFAULT_CLUSTER.to_owned()),
        from: args.from.or(config.from).unwrap_or(BackupFrom::Standby),
        compression: args.compression.or(config.compression).unwrap_or_default(),
        threads: args.threads.or(config.threads),
    };
    let started = Instant::now();
    let progress = Progress::new(global);
    let outcome = backup(&store, &options, &|event| progress.event(event));
    progress.finish();
    let outcome = outcome?;
    if !global.quiet {
        output::say(summary(&outcome, started).trim_end());
    }
    if !outcome.damaged.is_empty() {
        output::say(damage(&outcome.damaged).trim_end());
    }
    if outcome.transform_differences > 0 {
        output::say(&differences(outcome.transform_differences));
    }
    if global.json {
        json::print(&json!({
            "backup": json::backup(&outcome.summary),
            "transform_differences": outcome.transform_differences,
            "seconds": started.elapsed().as_secs_f64(),
        }));
    }
    Ok(if outcome.damaged.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DAMAGED)
    })
}

fn summary(outcome: &BackupOutcome, started: Instant) -> String {
    let s = &outcome.summary;
    let took = started.elapsed();
    let checked = if s.data_checksums {
        format!(
            "{} checked, {} damaged",
            units::count(s.pages_checked),
            outcome.damaged.iter().map(|file| file.pages).sum::<u64>()
        )
    } else {
        format!(
            "{} looked at; data checksums are off, so only headers could be checked",
            units::count(s.pages_checked)
        )
    };
    let mut rows = vec![
        (
            "size",
            format!(
                "{} in {} files",
                units::bytes(s.size_bytes),
                units::count(s.files)
            ),
        ),
        (
            "stored",
            format!(
                "{}, {:.1} to 1, {} packs",
                units::bytes(s.stored_bytes),
                s.size_bytes as f64 / s.stored_bytes.max(1) as f64,
                s.packs
            ),
        ),
        (
            "rate",
            format!(
                "{}, {} in all",
                units::rate(s.size_bytes, took),
                units::duration(took)
            ),
        ),
        ("pages", checked),
        (
            "WAL",
            format!(
                "{} to {} on timeline {}, {} segments",
                s.start_lsn, s.stop_lsn, s.stop_timeline, s.wal.count
            ),
        ),
    ];
    if s.replay_lag.is_some() {
        rows.push((
            "replay lag",
            format!(
                "{} before, {} after",
                lag(&outcome.before),
                lag(&outcome.after)
            ),
        ));
    }
    format!(
        "Backup {} of cluster \"{}\" is complete.\n{}",
        s.id,
        s.cluster,
        table::facts(&rows)
    )
}

fn lag(position: &Position) -> String {
    match position.replay_lag {
        Some(time) if position.replay_lag_bytes > 0 => format!(
            "{} ({})",
            units::bytes(position.replay_lag_bytes),
            units::duration(time)
        ),
        _ => units::bytes(position.replay_lag_bytes),
    }
}

/// A mistake in the page transform, which was noticed before it could do harm.
fn differences(frames: u64) -> String {
    format!(
        "WARNING: the pages of {frames} frames did not come back from the page transform as they were, so these frames are stored without it. \
         The backup is sound; please report this, with the version of leeward and of the server.\n  \
         hint: --compression zstd:3 does without the page transform."
    )
}

/// What is damaged: the first blocks of each file, one a line.
fn damage(files: &[DamagedFile]) -> String {
    const SHOWN: u64 = 20;
    let total: u64 = files.iter().map(|file| file.pages).sum();
    let missing: Vec<&DamagedFile> = files.iter().filter(|file| file.missing).collect();
    let what = match (total, missing.len()) {
        (pages, 0) => format!("{pages} pages were damaged"),
        (0, missing) => format!("{missing} files were missing"),
        (pages, missing) => format!("{pages} pages were damaged and {missing} files missing"),
    };
    let mut text = format!(
        "DAMAGED: {what} on the server. The backup stands and is marked; it holds everything as it is.\n"
    );
    for file in missing.iter().take(SHOWN as usize) {
        let path = output::escaped(&file.path);
        text.push_str(&format!("  {path}: the file is missing\n"));
    }
    if let Some(more @ 1..) = (missing.len() as u64).checked_sub(SHOWN) {
        text.push_str(&format!("  and {more} more: see \"leeward show\"\n"));
    }
    let blocks = files.iter().flat_map(|file| {
        file.blocks
            .iter()
            .map(move |(block, damage)| (file, block, damage))
    });
    for (file, block, damage) in blocks.take(SHOWN as usize) {
        let path = output::escaped(&file.path);
        text.push_str(&format!("  {path} block {block}: {damage}\n"));
    }
    if total > SHOWN {
        text.push_str(&format!(
            "  and {} more: see \"leeward show\"\n",
            total - SHOWN
        ));
    }
    text.push_str(
        "  hint: Look at these relations on the primary; if it is sound, make the standby anew.\n",
    );
    text
}
