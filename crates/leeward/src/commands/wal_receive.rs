//! `leeward wal receive`

use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use leeward_engine::error::{Error, ErrorKind};
use leeward_engine::wal::receive::{ReceiveOptions, Stop, receive};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

use crate::args::{Global, WalReceive};
use crate::config::{Config, DEFAULT_CLUSTER};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{json, output, server_user};

/// How long the store may take to answer: what is received meanwhile is not safe yet.
const STORE_PATIENCE: Duration = Duration::from_secs(10);

/// What a shell says of a program that a second Ctrl-C ended.
const INTERRUPTED: i32 = 130;

pub fn run(
    global: &Global,
    config: &Config,
    args: &WalReceive,
    level: i32,
) -> Result<ExitCode, Failure> {
    let store = config.impatient_store(STORE_PATIENCE)?;
    match &config.pgdata {
        Some(pgdata) => server_user::work_as_owner_of(pgdata, &config.url()?)?,
        None => server_user::work_as_owner_of_repository(&config.url()?)?,
    }
    let options = ReceiveOptions {
        pgdata: config.pgdata.clone(),
        conninfo: config.conninfo.clone(),
        cluster: config
            .cluster
            .clone()
            .unwrap_or_else(|| DEFAULT_CLUSTER.to_owned()),
        slot: args.slot.clone(),
        piece_interval: Duration::from_millis(args.piece_interval),
        buffer: args.buffer.clone().unwrap_or_else(|| {
            std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), Into::into)
        }),
        level,
    };
    let stop = stop_by_signal()
        .map_err(|e| Error::new(ErrorKind::Failed, "could not wait for signals").because(e))?;
    let started = Instant::now();
    let progress = Progress::new(global);
    let outcome = receive(&store, &options, &stop, &|event| progress.event(event));
    progress.finish();
    let outcome = outcome?;
    if !global.quiet {
        output::say(&format!(
            "Stopped. Everything before {} on timeline {} is durable.",
            outcome.durable, outcome.timeline
        ));
    }
    if global.json {
        json::print(&json!({
            "timeline": outcome.timeline.0,
            "durable_lsn": outcome.durable.to_string(),
            "segments": outcome.tally.segments,
            "pieces": outcome.tally.pieces,
            "received_bytes": outcome.tally.received_bytes,
            "gaps": outcome.gaps,
            "seconds": started.elapsed().as_secs_f64(),
        }));
    }
    Ok(ExitCode::SUCCESS)
}

/// SIGTERM and SIGINT ask for a good end; a second one does not wait for it.
fn stop_by_signal() -> io::Result<Stop> {
    let stop = Stop::new()?;
    for signal in [SIGTERM, SIGINT] {
        flag::register_conditional_shutdown(signal, INTERRUPTED, stop.flag())?;
        flag::register(signal, stop.flag())?;
        pipe::register(signal, stop.ringer()?)?;
    }
    Ok(stop)
}
