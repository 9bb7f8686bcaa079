//! What `--json` prints: one object, its fields described in `docs/json.md` and kept. These are mirrors of the engine's
//! types, so that those may change and this may not.

use leeward_postgres::known_faults::standby_warning;
use leeward_repository::catalog::Backups;
use leeward_repository::summary::{BackupFrom, BackupSummary};
use serde_json::{Value, json};

use crate::output;

/// Prints one object.
pub fn print(value: &Value) {
    output::data(&format!("{}\n", text(value)));
}

/// The object's text. What could steer a terminal stands in strings only, and is written there as JSON may write it.
fn text(value: &Value) -> String {
    let plain = format!("{value:#}");
    let mut text = String::with_capacity(plain.len());
    for c in plain.chars() {
        if c != '\n' && output::is_unsafe(c) {
            // None of these lies beyond the first plane.
            text.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            text.push(c);
        }
    }
    text
}

/// A backup as `list`, `show`, `backup`, `restore` and `export` tell of it.
pub fn backup(summary: &BackupSummary) -> Value {
    let s = summary;
    json!({
        "id": s.id.as_str(),
        "cluster": s.cluster,
        "system_identifier": s.system_identifier.to_string(),
        "postgres_version": s.postgres_version,
        "from": match s.from {
            BackupFrom::Standby => "standby",
            BackupFrom::Primary => "primary",
        },
        "host": s.host,
        "started_at": s.started_at,
        "finished_at": s.finished_at,
        "start_lsn": s.start_lsn.to_string(),
        "start_timeline": s.start_timeline.0,
        "stop_lsn": s.stop_lsn.to_string(),
        "stop_timeline": s.stop_timeline.0,
        "size_bytes": s.size_bytes,
        "stored_bytes": s.stored_bytes,
        "files": s.files,
        "packs": s.packs,
        "pages_checked": s.pages_checked,
        "data_checksums": s.data_checksums,
        "compression": s.compression,
        "wal": {
            "first": s.wal.first,
            "last": s.wal.last,
            "segments": s.wal.count,
            "bytes": s.wal.bytes,
            "stored_bytes": s.wal.stored_bytes,
        },
        "replay_lag": s.replay_lag.as_ref().map(|lag| json!({
            "before_bytes": lag.before.bytes,
            "before_seconds": lag.before.seconds,
            "after_bytes": lag.after.bytes,
            "after_seconds": lag.after.seconds,
        })),
        "tablespaces": s.tablespaces.iter().map(|t| json!({
            "oid": t.oid.0, "path": t.path, "in_place": t.in_place,
        })).collect::<Vec<_>>(),
        "configuration_files": s.configuration_files,
        "damaged": s.damaged.iter().map(|d| json!({
            "relation": d.relation, "blocks": d.blocks, "missing": d.missing,
        })).collect::<Vec<_>>(),
        "leeward_version": s.leeward_version,
        "version_warning": version_warning(s),
    })
}

/// What the version of the server that was backed up is known for.
pub fn version_warning(summary: &BackupSummary) -> Option<String> {
    match summary.from {
        BackupFrom::Standby => standby_warning(&summary.postgres_version),
        BackupFrom::Primary => None,
    }
}

/// The backups of one cluster.
pub fn backups(cluster: &str, backups: &Backups) -> Value {
    json!({
        "cluster": cluster,
        "backups": backups.sound.iter().map(backup).collect::<Vec<_>>(),
        "unreadable": backups.unreadable.iter().map(|(id, error)| json!({
            "id": id.as_str(), "error": error.to_string(),
        })).collect::<Vec<_>>(),
    })
}

/// A failure.
pub fn failure(
    kind: &str,
    exit_code: u8,
    message: &str,
    causes: Vec<String>,
    hint: Option<&str>,
) -> Value {
    json!({ "error": { "kind": kind, "exit_code": exit_code, "message": message, "causes": causes, "hint": hint } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_steer_a_terminal_comes_back_from_json() {
        let value = json!({ "host": "a\u{1b}[2J\u{9b}31m\u{202e}b\n\u{20ac}", "lines": [1, 2] });
        let text = text(&value);
        assert!(
            !text.chars().any(|c| c != '\n' && output::is_unsafe(c)),
            "{text}"
        );
        assert_eq!(text.parse::<Value>().expect("JSON"), value);
    }
}
