//! `backup.json`, put together from what the parts of a backup know.

use std::path::PathBuf;
use std::time::Duration;

use leeward_pgformat::wal_segment::is_history_file_name;
use leeward_pgformat::{BackupLabel, Lsn, TimelineId};
use leeward_postgres::backup_session::Position;
use leeward_postgres::configuration_files::OutsideFiles;
use leeward_postgres::server_facts::{Role, ServerFacts};
use leeward_repository::manifest::{ManifestInfo, WalRecord};
use leeward_repository::summary::{
    BackupFrom, BackupSummary, ConfigurationSummary, DamagedRelation, FORMAT_VERSION, Lag,
    ManifestSummary, Owner, ReplayLag, WalSummary,
};

use super::Run;
use super::collect::{Collected, DamagedFile};
use crate::error::{Error, Result};

/// Everything that `backup.json` is made of.
pub(super) struct Parts<'a> {
    pub run: &'a Run<'a>,
    pub facts: &'a ServerFacts,
    pub role: Role,
    pub start_lsn: Lsn,
    pub label: &'a BackupLabel,
    pub stop_lsn: Lsn,
    /// Where recovery is consistent, if that is not where the backup stopped.
    pub consistent_lsn: Option<Lsn>,
    pub stop_timeline: TimelineId,
    pub wal: &'a [WalRecord],
    pub collected: &'a Collected,
    pub damaged: &'a [DamagedFile],
    pub manifest: &'a ManifestInfo,
    pub outside: &'a OutsideFiles,
    pub before: &'a Position,
    pub after: &'a Position,
    pub elapsed: Duration,
}

pub(super) fn summary(parts: &Parts<'_>) -> Result<BackupSummary> {
    let Parts { run, facts, .. } = parts;
    let finished = jiff::Timestamp::now();
    let started = finished - jiff::SignedDuration::try_from(parts.elapsed).unwrap_or_default();
    let (uid, gid) = run
        .directory
        .owner()
        .map_err(|e| Error::failed("could not read the data directory").because(e))?;
    let segments: Vec<&WalRecord> = parts
        .wal
        .iter()
        .filter(|record| !is_history_file_name(&record.name))
        .collect();
    let wal_stored: u64 = parts.wal.iter().map(|record| record.stored_length).sum();
    let wal = WalSummary {
        first: segments
            .first()
            .map(|record| record.name.clone())
            .unwrap_or_default(),
        last: segments
            .last()
            .map(|record| record.name.clone())
            .unwrap_or_default(),
        count: segments.len() as u64,
        bytes: parts.stop_lsn.0.saturating_sub(parts.start_lsn.0),
        stored_bytes: wal_stored,
        segment_size_bytes: facts.wal_segment_size.bytes(),
        history: parts
            .wal
            .iter()
            .filter(|record| is_history_file_name(&record.name))
            .map(|record| record.name.clone())
            .collect(),
    };
    let text = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let lag = |position: &Position| Lag {
        bytes: position.replay_lag_bytes,
        seconds: position.replay_lag.map(|lag| lag.as_secs_f64()),
    };
    let packs: u64 = parts.collected.packs.iter().map(|pack| pack.size).sum();
    Ok(BackupSummary {
        format_version: FORMAT_VERSION,
        id: run.id.clone(),
        cluster: run.options.cluster.clone(),
        system_identifier: facts.system_identifier,
        postgres_version: facts
            .version
            .text
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned(),
        major: u32::try_from(facts.version.number / 10_000).unwrap_or_default(),
        from: match parts.role {
            Role::Standby => BackupFrom::Standby,
            Role::Primary => BackupFrom::Primary,
        },
        host: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        label: parts.label.label.clone().unwrap_or_default(),
        started_at: seconds(started),
        finished_at: seconds(finished),
        start_lsn: parts.start_lsn,
        start_timeline: parts.label.start_timeline,
        checkpoint_lsn: parts.label.checkpoint,
        stop_lsn: parts.stop_lsn,
        consistent_lsn: parts.consistent_lsn,
        stop_timeline: parts.stop_timeline,
        wal,
        data_checksums: facts.data_checksums,
        files: parts.collected.files,
        size_bytes: parts.collected.size_bytes,
        stored_bytes: packs + wal_stored + parts.manifest.size,
        pages_checked: parts.collected.pages_checked,
        damaged: (parts.damaged.iter().take(LISTED_FILES))
            .map(damaged_relation)
            .collect(),
        compression: run.options.compression.to_string(),
        packs: parts.collected.packs.len() as u32,
        manifest: ManifestSummary {
            size_bytes: parts.manifest.size,
            hash: parts.manifest.hash,
        },
        tablespaces: parts.collected.tablespaces.clone(),
        data_directory: run.directory.path().display().to_string(),
        wal_directory: run
            .directory
            .wal_link()
            .map(|link| link.display().to_string()),
        configuration_files: parts
            .outside
            .files
            .iter()
            .map(|file| file.display().to_string())
            .collect(),
        configuration: Some(ConfigurationSummary {
            config_file: text(&facts.config_file),
            hba_file: text(&facts.hba_file),
            ident_file: text(&facts.ident_file),
            hosts_file: text(&facts.hosts_file),
            data_directory: text(&facts.data_directory),
        }),
        replay_lag: (parts.role == Role::Standby).then(|| ReplayLag {
            before: lag(parts.before),
            after: lag(parts.after),
        }),
        leeward_version: env!("CARGO_PKG_VERSION").to_owned(),
        owner: Owner {
            user: name_of("/etc/passwd", uid),
            group: name_of("/etc/group", gid),
            uid,
            gid,
        },
    })
}

fn seconds(time: jiff::Timestamp) -> String {
    time.round(jiff::Unit::Second).unwrap_or(time).to_string()
}

/// As many damaged files are named at most: the summary stays a small object. The manifest has the damaged pages of all.
const LISTED_FILES: usize = 20_000;

fn damaged_relation(file: &DamagedFile) -> DamagedRelation {
    DamagedRelation {
        relation: file.path.clone(),
        blocks: file.blocks.iter().map(|(block, _)| block.0).collect(),
        missing: file.missing,
    }
}

/// The name that `/etc/passwd` or `/etc/group` has for an id. Users of directories elsewhere go by their number.
fn name_of(file: &str, id: u32) -> Option<String> {
    let lines = std::fs::read_to_string(file).ok()?;
    let line = lines
        .lines()
        .find(|line| line.split(':').nth(2) == Some(&id.to_string()))?;
    line.split(':').next().map(str::to_owned)
}
