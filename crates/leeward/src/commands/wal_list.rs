//! `leeward wal list`

use std::io::IsTerminal;
use std::process::ExitCode;

use leeward_engine::moment::{rfc3339, utc};
use leeward_engine::wal::list::{TimelineList, WalGap, WalList, WalRange, WindowList, list};
use leeward_pgformat::TimestampTz;
use leeward_pgformat::wal_segment::history_file_name;
use serde_json::{Value, json};

use crate::args::Global;
use crate::config::Config;
use crate::failure::Failure;
use crate::moment::{length, now};
use crate::table::{Align, table};
use crate::{json, output, units};

pub fn run(global: &Global, config: &Config) -> Result<ExitCode, Failure> {
    let list = list(&config.store()?, config.cluster.as_deref())?;
    if global.json {
        json::print(&as_json(&list));
    } else if list.timelines.is_empty() && list.windows.is_empty() {
        output::say("No WAL yet.");
    } else {
        output::data(&text(&list, std::io::stdout().is_terminal()));
    }
    Ok(ExitCode::SUCCESS)
}

/// A row, and whether it tells of something missing.
type Row = (Vec<String>, bool);

fn text(list: &WalList, colours: bool) -> String {
    let mut out = format!("Cluster \"{}\"\n\n", output::escaped(&list.cluster));
    let mut rows: Vec<Row> = Vec::new();
    for timeline in &list.timelines {
        rows.extend(timeline_rows(timeline));
    }
    if !rows.is_empty() {
        let titles = [
            ("TIMELINE", Align::Right),
            ("FROM", Align::Left),
            ("TO", Align::Left),
            ("WAL", Align::Right),
            ("", Align::Left),
        ];
        let cells: Vec<Vec<String>> = rows.iter().map(|(cells, _)| cells.clone()).collect();
        let plain = table(&titles, &cells);
        for (number, line) in plain.lines().enumerate() {
            let gap = number > 0 && rows.get(number - 1).is_some_and(|(_, gap)| *gap);
            if gap && colours {
                out.push_str(&format!("\x1b[31m{line}\x1b[0m\n"));
            } else {
                out.push_str(line);
                out.push('\n');
            }
        }
        let segments: u64 = list
            .timelines
            .iter()
            .map(|timeline| timeline.segments)
            .sum();
        let plain: u64 = list
            .timelines
            .iter()
            .map(|timeline| timeline.plain_bytes)
            .sum();
        let stored: u64 = list
            .timelines
            .iter()
            .map(|timeline| timeline.stored_bytes)
            .sum();
        out.push_str(&format!(
            "\n{} segments, {} of WAL, stored in {}\n",
            units::count(segments),
            units::bytes(plain),
            units::bytes(stored)
        ));
    }
    if list.windows.is_empty() {
        out.push_str("\nNothing can be recovered: there is no backup.\n");
    } else {
        out.push_str("\nRecoverable\n");
        for window in &list.windows {
            let line = window_text(window);
            out.push_str(&format!("  {}\n", output::escaped(&line)));
        }
    }
    out
}

fn timeline_rows(timeline: &TimelineList) -> Vec<Row> {
    let parent = timeline
        .parent
        .map(|(parent, left)| format!("left timeline {parent} at {left}"));
    let mut rows: Vec<(leeward_pgformat::Lsn, Row)> = Vec::new();
    let number = timeline.timeline.to_string();
    for (at, range) in timeline.ranges.iter().enumerate() {
        let mut remarks: Vec<String> = Vec::new();
        remarks.extend(parent.clone().filter(|_| at == 0));
        let unknown = timeline.history_missing && at == 0;
        if unknown {
            remarks.push(format!(
                "MISSING: {}, without which nothing recovers to here",
                history_file_name(timeline.timeline)
            ));
        }
        if let Some(from) = range.pieces_from {
            remarks.push(format!("pieces from {from}"));
        }
        let cells = vec![
            number.clone(),
            range.begin.to_string(),
            range.end.to_string(),
            units::bytes(range.end - range.begin),
            remarks.join(", "),
        ];
        rows.push((range.begin, (cells, unknown)));
    }
    for gap in &timeline.gaps {
        let cells = vec![
            number.clone(),
            gap.begin.to_string(),
            gap.end.to_string(),
            String::new(),
            gap_text(gap),
        ];
        rows.push((gap.begin, (cells, !gap.in_backups)));
    }
    if rows.is_empty() {
        let cells = vec![
            number,
            String::new(),
            String::new(),
            String::new(),
            format!(
                "no WAL; {}",
                parent.unwrap_or_else(|| "no history".to_owned())
            ),
        ];
        rows.push((leeward_pgformat::Lsn(0), (cells, false)));
    }
    rows.sort_by_key(|(begin, _)| *begin);
    rows.into_iter().map(|(_, row)| row).collect()
}

fn gap_text(gap: &WalGap) -> String {
    let (first, last) = &gap.segments;
    let what = if first == last {
        first.clone()
    } else {
        format!("{first} to {last}")
    };
    if let Some(why) = &gap.impassable {
        return format!("CANNOT BE PASSED: {why}");
    }
    let state = if gap.in_backups {
        "with backups only"
    } else {
        "MISSING"
    };
    match &gap.record {
        Some((when, why)) => format!("{state}: {what}; lost, found {when}: {why}"),
        None => format!("{state}: {what}"),
    }
}

fn window_text(window: &WindowList) -> String {
    let backups = match window.backups {
        1 => format!("backup {}", window.backup),
        n => format!("{n} backups from {}", window.backup),
    };
    let present = TimestampTz::from_unix_micros(now().timestamp().as_microsecond());
    let from = window
        .from
        .as_deref()
        .map_or_else(|| window.from_lsn.to_string(), minutes);
    let what = match window.to {
        Some(to) => format!(
            "any moment from {from} to {} ago ({})",
            length(to, present),
            utc(to)
        ),
        None => format!("the moment {from}"),
    };
    format!(
        "timeline {}: {what}, LSN {} to {}, {backups}",
        window.timeline, window.from_lsn, window.to_lsn
    )
}

/// A backup's time, as people say it.
fn minutes(rfc3339: &str) -> String {
    rfc3339.parse::<jiff::Timestamp>().map_or_else(
        |_| rfc3339.to_owned(),
        |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
    )
}

fn as_json(list: &WalList) -> Value {
    json!({
        "cluster": list.cluster,
        "timelines": list.timelines.iter().map(|t| json!({
            "timeline": t.timeline.0,
            "parent": t.parent.map(|(parent, _)| parent.0),
            "left_parent_at": t.parent.map(|(_, lsn)| lsn.to_string()),
            "history_missing": t.history_missing,
            "segments": t.segments,
            "plain_bytes": t.plain_bytes,
            "stored_bytes": t.stored_bytes,
            "ranges": t.ranges.iter().map(range_json).collect::<Vec<_>>(),
            "gaps": t.gaps.iter().map(gap_json).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "windows": list.windows.iter().map(|w| json!({
            "timeline": w.timeline.0,
            "backup": w.backup.as_str(),
            "backups": w.backups,
            "from_time": w.from,
            "from_lsn": w.from_lsn.to_string(),
            "to_time": w.to.map(rfc3339),
            "to_lsn": w.to_lsn.to_string(),
        })).collect::<Vec<_>>(),
    })
}

fn range_json(range: &WalRange) -> Value {
    json!({
        "begin": range.begin.to_string(),
        "end": range.end.to_string(),
        "bytes": range.end - range.begin,
        "first_segment": range.segments.as_ref().map(|(first, _)| first),
        "last_segment": range.segments.as_ref().map(|(_, last)| last),
        "pieces_from": range.pieces_from.map(|lsn| lsn.to_string()),
    })
}

fn gap_json(gap: &WalGap) -> Value {
    json!({
        "begin": gap.begin.to_string(),
        "end": gap.end.to_string(),
        "bytes": gap.end - gap.begin,
        "first_segment": gap.segments.0,
        "last_segment": gap.segments.1,
        "in_backups": gap.in_backups,
        "found_at": gap.record.as_ref().map(|(when, _)| when),
        "reason": gap.record.as_ref().map(|(_, why)| why),
        "impassable": gap.impassable,
    })
}
