//! `leeward list`

use std::collections::BTreeSet;
use std::process::ExitCode;

use leeward_engine::catalog;
use leeward_repository::summary::{BackupFrom, BackupSummary};
use serde_json::json;

use crate::args::Global;
use crate::config::Config;
use crate::failure::{DAMAGED, Failure};
use crate::table::{Align, table};
use crate::{json, output, units};

pub fn run(global: &Global, config: &Config) -> Result<ExitCode, Failure> {
    let clusters = catalog::list(&config.store()?, config.cluster.as_deref())?;
    // A folder that another user has closed to this one is named, and is no damage where there are others.
    let unreadable = || {
        let clusters = clusters.iter().map(|cluster| &cluster.backups);
        clusters.flat_map(|backups| {
            let unreadable = backups.unreadable.iter();
            unreadable.map(move |(_, error)| (backups, error))
        })
    };
    let damaged =
        unreadable().any(|(backups, error)| !error.is_closed() || backups.sound.is_empty());
    if global.json {
        let clusters: Vec<_> = clusters
            .iter()
            .map(|c| json::backups(&c.cluster, &c.backups))
            .collect();
        json::print(&json!({ "clusters": clusters }));
    } else {
        let rows: Vec<Vec<String>> = clusters
            .iter()
            .flat_map(|cluster| cluster.backups.sound.iter().map(row))
            .collect();
        if rows.is_empty() && unreadable().next().is_none() {
            output::say("No backups yet.");
        } else if !rows.is_empty() {
            let titles = [
                ("CLUSTER", Align::Left),
                ("BACKUP", Align::Left),
                ("FROM", Align::Left),
                ("VERSION", Align::Left),
                ("SIZE", Align::Right),
                ("STORED", Align::Right),
                ("TOOK", Align::Right),
                ("CONSISTENT AT", Align::Left),
                ("", Align::Left),
            ];
            output::data(&table(&titles, &rows));
        }
    }
    let warnings: BTreeSet<String> = clusters
        .iter()
        .flat_map(|cluster| &cluster.backups.sound)
        .filter_map(json::version_warning)
        .collect();
    for warning in warnings {
        output::say(&warning);
    }
    for (id, error) in clusters
        .iter()
        .flat_map(|cluster| &cluster.backups.unreadable)
    {
        let line = format!("backup {id} cannot be read: {error}");
        output::say(&output::escaped(&line));
    }
    Ok(if damaged {
        ExitCode::from(DAMAGED)
    } else {
        ExitCode::SUCCESS
    })
}

fn row(summary: &BackupSummary) -> Vec<String> {
    let from = match summary.from {
        BackupFrom::Standby => "standby",
        BackupFrom::Primary => "primary",
    };
    let damaged: usize = summary
        .damaged
        .iter()
        .map(|relation| relation.blocks.len())
        .sum();
    let missing = summary.damaged.iter().filter(|file| file.missing).count();
    vec![
        summary.cluster.clone(),
        summary.id.to_string(),
        from.to_owned(),
        summary.postgres_version.clone(),
        units::bytes(summary.size_bytes),
        units::bytes(summary.stored_bytes),
        took(summary).unwrap_or_default(),
        format!("{}/{}", summary.stop_timeline, summary.stop_lsn),
        match (damaged, missing) {
            (0, 0) => String::new(),
            (pages, 0) => format!("{pages} damaged pages"),
            (0, files) => format!("{files} missing files"),
            (pages, files) => format!("{pages} damaged pages, {files} missing files"),
        },
    ]
}

/// How long a backup took, from its own times.
pub fn took(summary: &BackupSummary) -> Option<String> {
    let started: jiff::Timestamp = summary.started_at.parse().ok()?;
    let finished: jiff::Timestamp = summary.finished_at.parse().ok()?;
    let took = std::time::Duration::try_from(finished.duration_since(started)).ok()?;
    Some(units::duration(took))
}
