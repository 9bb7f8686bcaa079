//! `leeward show`

use std::process::ExitCode;

use leeward_engine::catalog;
use leeward_repository::summary::{BackupFrom, BackupSummary};
use serde_json::json;

use crate::args::Global;
use crate::config::Config;
use crate::failure::Failure;
use crate::{json, output, table, units};

pub fn run(global: &Global, config: &Config, backup: &str) -> Result<ExitCode, Failure> {
    let summary = catalog::show(&config.store()?, config.cluster.as_deref(), backup)?;
    if global.json {
        json::print(&json!({ "backup": json::backup(&summary) }));
    } else {
        output::data(&text(&summary));
    }
    Ok(ExitCode::SUCCESS)
}

fn text(s: &BackupSummary) -> String {
    let from = match s.from {
        BackupFrom::Standby => "standby",
        BackupFrom::Primary => "primary",
    };
    let took = super::list::took(s)
        .map(|took| format!(" ({took})"))
        .unwrap_or_default();
    let mut rows = vec![
        (
            "cluster",
            format!("{}, system identifier {}", s.cluster, s.system_identifier),
        ),
        (
            "server",
            format!(
                "PostgreSQL {}, {from} on {}, {}",
                s.postgres_version, s.host, s.data_directory
            ),
        ),
        (
            "taken",
            format!("{} to {}{took}", s.started_at, s.finished_at),
        ),
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
                "{} in {} packs, {}",
                units::bytes(s.stored_bytes),
                s.packs,
                s.compression
            ),
        ),
        (
            "start",
            format!("{} on timeline {}", s.start_lsn, s.start_timeline),
        ),
        (
            "consistent at",
            format!("{} on timeline {}", s.stop_lsn, s.stop_timeline),
        ),
        (
            "WAL",
            format!(
                "{} segments, {} to {}, {}",
                s.wal.count,
                s.wal.first,
                s.wal.last,
                units::bytes(s.wal.stored_bytes)
            ),
        ),
        (
            "pages checked",
            format!(
                "{}, data checksums {}",
                units::count(s.pages_checked),
                if s.data_checksums { "on" } else { "off" }
            ),
        ),
    ];
    if let Some(lag) = &s.replay_lag {
        rows.push((
            "replay lag",
            format!(
                "{} before, {} after",
                units::bytes(lag.before.bytes),
                units::bytes(lag.after.bytes)
            ),
        ));
    }
    for tablespace in &s.tablespaces {
        let place = if tablespace.in_place {
            "in place".to_owned()
        } else {
            tablespace.path.clone()
        };
        rows.push(("tablespace", format!("{} {place}", tablespace.oid)));
    }
    for file in &s.configuration_files {
        rows.push(("configuration", file.clone()));
    }
    if let Some(warning) = json::version_warning(s) {
        rows.push(("WARNING", warning));
    }
    for damaged in &s.damaged {
        let what = if damaged.missing {
            "the file was missing".to_owned()
        } else {
            let blocks: Vec<String> = damaged.blocks.iter().map(u32::to_string).collect();
            format!("blocks {}", blocks.join(", "))
        };
        rows.push(("DAMAGED", format!("{} {what}", damaged.relation)));
    }
    format!("Backup {}\n{}", s.id, table::facts(&rows))
}
