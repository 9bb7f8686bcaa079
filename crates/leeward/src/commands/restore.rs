//! `leeward restore`

use std::process::ExitCode;
use std::time::Instant;

use leeward_engine::catalog;
use leeward_engine::error::{Error, ErrorKind};
use leeward_engine::moment::{rfc3339, utc};
use leeward_engine::recovery::{RecoveryOptions, RecoveryTarget, Standby, StopPoint, TargetAction};
use leeward_engine::restore::{RecoveryOutcome, RestoreOptions, RestoreOutcome, restore};
use leeward_pgformat::TransactionId;
use serde_json::{Value, json};

use crate::args::{self, Global, Restore, Role};
use crate::config::Config;
use crate::failure::Failure;
use crate::moment::{Moment, now};
use crate::progress::Progress;
use crate::restore_command::{environment_needed, restore_command};
use crate::{json, output, table, units};

/// Bytes in the name of a restore point (`MAXFNAMELEN` in access/xlog_internal.h, less its end).
const RESTORE_POINT_NAME_BYTES: usize = 63;

pub fn run(global: &Global, config: &Config, args: Restore) -> Result<ExitCode, Failure> {
    let target = target(global, &args)?;
    let standby = standby(&args, &target)?;
    let store = config.store()?;
    let cluster = catalog::cluster_name(&store, config.cluster.as_deref())?;
    let action = match args.target_action {
        Some(args::TargetAction::Pause) => TargetAction::Pause,
        Some(args::TargetAction::Shutdown) => TargetAction::Shutdown,
        Some(args::TargetAction::Promote) | None => TargetAction::Promote,
    };
    let options = RestoreOptions {
        backup: args.backup,
        recovery: RecoveryOptions {
            target,
            inclusive: !args.target_exclusive,
            timeline: args.target_timeline.unwrap_or_default(),
            action,
            standby,
            restore_command: restore_command(global, config, &cluster)?,
        },
        cluster: Some(cluster),
        to: args.to,
        tablespaces: args.tablespace,
        threads: args.threads.or(config.threads),
    };
    let started = Instant::now();
    let progress = Progress::new(global);
    let outcome = restore(&store, &options, &|event| progress.event(event));
    progress.finish();
    let mut outcome = outcome?;
    let took = started.elapsed();
    if !matches!(outcome.recovery, RecoveryOutcome::OwnWal(_)) {
        outcome.notes.extend(environment_needed(config));
    }
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
                "recovers to",
                describe_recovery(&outcome, &options.recovery),
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
            output::say(&format!("  note: {}", output::escaped(note)));
        }
    }
    if global.json {
        json::print(&json!({
            "backup": json::backup(s),
            "data_directory": outcome.data_directory,
            "written_bytes": outcome.written_bytes,
            "recovery": recovery_json(&outcome, &options.recovery),
            "notes": outcome.notes,
            "seconds": took.as_secs_f64(),
        }));
    }
    Ok(ExitCode::SUCCESS)
}

/// Where recovery is to stop, and, for a time, how that was understood.
fn target(global: &Global, args: &Restore) -> Result<RecoveryTarget, Error> {
    let asked = &args.target;
    let target = if let Some(text) = &asked.target_time {
        let moment = Moment::parse(text, &now()).map_err(|no| {
            Error::new(
                ErrorKind::Usage,
                format!("could not read --target-time \"{text}\": {}", no.problem),
            )
            .hint(no.hint)
        })?;
        if !global.quiet {
            let assumed = if moment.assumed_zone() {
                "; no zone was given, so this host's was taken"
            } else {
                ""
            };
            output::say(&format!("Target time: {moment}{assumed}."));
        }
        RecoveryTarget::Time(moment.timestamp())
    } else if let Some(lsn) = asked.target_lsn {
        RecoveryTarget::Lsn(lsn)
    } else if let Some(xid) = asked.target_xid {
        RecoveryTarget::Transaction(transaction(xid)?)
    } else if let Some(name) = &asked.target_name {
        if name.is_empty() || name.len() > RESTORE_POINT_NAME_BYTES || name.contains(['\n', '\r']) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("no restore point can have the name \"{name}\""),
            )
            .hint(format!("Names have 1 to {RESTORE_POINT_NAME_BYTES} bytes.")));
        }
        RecoveryTarget::RestorePoint(name.clone())
    } else if asked.target_immediate {
        RecoveryTarget::Immediate
    } else {
        RecoveryTarget::End
    };
    if args.target_exclusive
        && !matches!(
            target,
            RecoveryTarget::Time(_) | RecoveryTarget::Lsn(_) | RecoveryTarget::Transaction(_)
        )
    {
        return Err(Error::new(
            ErrorKind::Usage,
            "--target-exclusive goes with a time, an LSN or a transaction",
        )
        .hint("The server always stops after a restore point."));
    }
    Ok(target)
}

/// The server knows transactions by the low half of what `pg_current_xact_id()` returns (`check_recovery_target_xid`).
fn transaction(xid: u64) -> Result<TransactionId, Error> {
    const FIRST_NORMAL: u32 = 3;
    let low = (xid & u64::from(u32::MAX)) as u32;
    if low < FIRST_NORMAL {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("{xid} is no transaction's id"),
        ));
    }
    Ok(TransactionId(low))
}

fn standby(args: &Restore, target: &RecoveryTarget) -> Result<Option<Standby>, Error> {
    let usage = |message: &str| Error::new(ErrorKind::Usage, message);
    if args.role == Role::Primary {
        if args.primary_conninfo.is_some() {
            return Err(usage("--primary-conninfo goes with --as standby"));
        }
        return Ok(None);
    }
    if *target != RecoveryTarget::End {
        return Err(usage("a standby follows its primary, and has no target")
            .hint("Leave the target out, or --as standby."));
    }
    Ok(Some(Standby {
        primary_conninfo: args.primary_conninfo.clone(),
        primary_slot_name: args.primary_slot_name.clone(),
    }))
}

/// What will come of it when the server is started.
fn describe_recovery(outcome: &RestoreOutcome, recovery: &RecoveryOptions) -> String {
    match outcome.recovery {
        RecoveryOutcome::OwnWal(end) => format!("{end}, and opens"),
        RecoveryOutcome::Standby => "what its primary has, as a standby".to_owned(),
        RecoveryOutcome::Archive {
            timeline,
            stop: None,
            end,
        } => format!("the end of WAL on timeline {timeline}, {end}, and opens"),
        RecoveryOutcome::Archive {
            timeline,
            stop: Some(stop),
            ..
        } => {
            let then = match recovery.action {
                TargetAction::Pause => "pauses",
                TargetAction::Promote => "opens",
                TargetAction::Shutdown => "stops",
            };
            format!(
                "{} on timeline {timeline}, and {then}",
                describe_stop(&stop, recovery)
            )
        }
    }
}

fn describe_stop(stop: &StopPoint, recovery: &RecoveryOptions) -> String {
    let at = match stop.time {
        Some(time) => format!("{} ({})", stop.lsn, utc(time)),
        None => stop.lsn.to_string(),
    };
    match &recovery.target {
        RecoveryTarget::Time(time) => {
            format!("{}: before the commit or rollback at {at}", utc(*time))
        }
        RecoveryTarget::Transaction(_) | RecoveryTarget::RestorePoint(_) => {
            format!("{}: {at}", recovery.target)
        }
        _ => at,
    }
}

fn recovery_json(outcome: &RestoreOutcome, recovery: &RecoveryOptions) -> Value {
    let kind = match &recovery.target {
        RecoveryTarget::End => "end",
        RecoveryTarget::Immediate => "immediate",
        RecoveryTarget::Time(_) => "time",
        RecoveryTarget::Lsn(_) => "lsn",
        RecoveryTarget::Transaction(_) => "xid",
        RecoveryTarget::RestorePoint(_) => "name",
    };
    let target = match &recovery.target {
        RecoveryTarget::End | RecoveryTarget::Immediate => Value::Null,
        RecoveryTarget::Time(time) => json!(rfc3339(*time)),
        RecoveryTarget::Lsn(lsn) => json!(lsn.to_string()),
        RecoveryTarget::Transaction(TransactionId(xid)) => json!(xid),
        RecoveryTarget::RestorePoint(name) => json!(name),
    };
    let (route, timeline, stop) = match outcome.recovery {
        RecoveryOutcome::OwnWal(_) => ("backup", Some(outcome.summary.stop_timeline), None),
        RecoveryOutcome::Archive { timeline, stop, .. } => ("archive", Some(timeline), stop),
        RecoveryOutcome::Standby => ("standby", None, None),
    };
    json!({
        "wal_from": route,
        "target": { "kind": kind, "value": target, "inclusive": recovery.inclusive },
        "timeline": timeline.map(|timeline| timeline.0),
        "stop_lsn": stop.map(|stop| stop.lsn.to_string()),
        "stop_time": stop.and_then(|stop| stop.time).map(rfc3339),
    })
}
