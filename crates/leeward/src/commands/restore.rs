//! `leeward restore`

use std::process::ExitCode;
use std::time::Instant;

use leeward_engine::catalog;
use leeward_engine::error::{Error, ErrorKind};
use leeward_engine::moment::{rfc3339, utc};
use leeward_engine::restore::{
    Aim, Prospect, Recovery, RestoreOptions, RestoreOutcome, Standby, Stop, TargetAction, restore,
};
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
    let aim = aim(global, &args)?;
    let standby = standby(&args, &aim)?;
    let store = config.store()?;
    let cluster = catalog::cluster_name(&store, config.cluster.as_deref())?;
    let action = match args.target_action {
        Some(args::TargetAction::Pause) => TargetAction::Pause,
        Some(args::TargetAction::Shutdown) => TargetAction::Shutdown,
        Some(args::TargetAction::Promote) | None => TargetAction::Promote,
    };
    let options = RestoreOptions {
        backup: args.backup,
        recovery: Recovery {
            aim,
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
    if outcome.prospect != Prospect::OwnWal {
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
            ("recovers to", prospect(&outcome, &options.recovery)),
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
            "recovery": recovery_json(&outcome, &options.recovery),
            "notes": outcome.notes,
            "seconds": took.as_secs_f64(),
        }));
    }
    Ok(ExitCode::SUCCESS)
}

/// Where recovery is to stop, and, for a time, how that was understood.
fn aim(global: &Global, args: &Restore) -> Result<Aim, Error> {
    let target = &args.target;
    let aim = if let Some(text) = &target.target_time {
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
        Aim::Time(moment.timestamp())
    } else if let Some(lsn) = target.target_lsn {
        Aim::Lsn(lsn)
    } else if let Some(xid) = target.target_xid {
        Aim::Transaction(transaction(xid)?)
    } else if let Some(name) = &target.target_name {
        if name.is_empty() || name.len() > RESTORE_POINT_NAME_BYTES || name.contains(['\n', '\r']) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("no restore point can have the name \"{name}\""),
            )
            .hint(format!("Names have 1 to {RESTORE_POINT_NAME_BYTES} bytes.")));
        }
        Aim::RestorePoint(name.clone())
    } else if target.target_immediate {
        Aim::Immediate
    } else {
        Aim::End
    };
    if args.target_exclusive && !matches!(aim, Aim::Time(_) | Aim::Lsn(_) | Aim::Transaction(_)) {
        return Err(Error::new(
            ErrorKind::Usage,
            "--target-exclusive goes with a time, an LSN or a transaction",
        )
        .hint("The server always stops after a restore point."));
    }
    Ok(aim)
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

fn standby(args: &Restore, aim: &Aim) -> Result<Option<Standby>, Error> {
    let usage = |message: &str| Error::new(ErrorKind::Usage, message);
    if args.role == Role::Primary {
        if args.primary_conninfo.is_some() {
            return Err(usage("--primary-conninfo goes with --as standby"));
        }
        return Ok(None);
    }
    if *aim != Aim::End {
        return Err(usage("a standby follows its primary, and has no target")
            .hint("Leave the target out, or --as standby."));
    }
    Ok(Some(Standby {
        primary_conninfo: args.primary_conninfo.clone(),
        primary_slot_name: args.primary_slot_name.clone(),
    }))
}

/// What will come of it when the server is started.
fn prospect(outcome: &RestoreOutcome, recovery: &Recovery) -> String {
    let s = &outcome.summary;
    match outcome.prospect {
        Prospect::OwnWal => format!("{}, and opens", s.stop_lsn),
        Prospect::Standby => "what its primary has, as a standby".to_owned(),
        Prospect::Archive {
            timeline,
            stop: None,
        } => format!("the end of WAL on timeline {timeline}, and opens"),
        Prospect::Archive {
            timeline,
            stop: Some(stop),
        } => {
            let then = match recovery.action {
                TargetAction::Pause => "pauses",
                TargetAction::Promote => "opens",
                TargetAction::Shutdown => "stops",
            };
            format!(
                "{} on timeline {timeline}, and {then}",
                stopped(&stop, recovery)
            )
        }
    }
}

fn stopped(stop: &Stop, recovery: &Recovery) -> String {
    let at = match stop.time {
        Some(time) => format!("{} ({})", stop.lsn, utc(time)),
        None => stop.lsn.to_string(),
    };
    match &recovery.aim {
        Aim::Time(time) => format!("{}: before the commit or rollback at {at}", utc(*time)),
        Aim::Transaction(_) | Aim::RestorePoint(_) => format!("{}: {at}", recovery.aim),
        _ => at,
    }
}

fn recovery_json(outcome: &RestoreOutcome, recovery: &Recovery) -> Value {
    let kind = match &recovery.aim {
        Aim::End => "end",
        Aim::Immediate => "immediate",
        Aim::Time(_) => "time",
        Aim::Lsn(_) => "lsn",
        Aim::Transaction(_) => "xid",
        Aim::RestorePoint(_) => "name",
    };
    let target = match &recovery.aim {
        Aim::End | Aim::Immediate => Value::Null,
        Aim::Time(time) => json!(rfc3339(*time)),
        Aim::Lsn(lsn) => json!(lsn.to_string()),
        Aim::Transaction(TransactionId(xid)) => json!(xid),
        Aim::RestorePoint(name) => json!(name),
    };
    let (route, timeline, stop) = match outcome.prospect {
        Prospect::OwnWal => ("backup", Some(outcome.summary.stop_timeline), None),
        Prospect::Archive { timeline, stop } => ("archive", Some(timeline), stop),
        Prospect::Standby => ("standby", None, None),
    };
    json!({
        "wal_from": route,
        "target": { "kind": kind, "value": target, "inclusive": recovery.inclusive },
        "timeline": timeline.map(|timeline| timeline.0),
        "stop_lsn": stop.map(|stop| stop.lsn.to_string()),
        "stop_time": stop.and_then(|stop| stop.time).map(rfc3339),
    })
}
