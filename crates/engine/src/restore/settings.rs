//! The recovery settings of a restored directory, as they are appended to `postgresql.auto.conf`.
//!
//! What the configuration may carry for recovery is taken back: targets and a delay, and commands that act on the archive
//! of the server that was backed up. A target is set after the others were emptied: in the other order the server would
//! complain of several (`error_multiple_recovery_targets`, src/backend/access/transam/xlogrecovery.c).

use std::fmt::Write as _;

use leeward_pgformat::TransactionId;
use leeward_repository::backup_id::BackupId;

use crate::moment;
use crate::recovery::choose::{RecoveryRoute, TimelineSetting};
use crate::recovery::{RecoveryOptions, RecoveryTarget, TargetAction};

const TARGETS: [&str; 5] = [
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

/// What is known of a recovery when it is written down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings<'a> {
    pub backup: &'a BackupId,
    pub recovery: &'a RecoveryOptions,
    pub route: &'a RecoveryRoute,
}

impl Settings<'_> {
    /// The file that makes the server recover (`xlog.h`).
    pub(super) const fn signal(&self) -> &'static str {
        match self.route {
            RecoveryRoute::Standby => "standby.signal",
            _ => "recovery.signal",
        }
    }

    /// The lines; `raised` are settings that have to be higher than they are configured.
    pub(super) fn text(&self, raised: &[(&str, u32)]) -> String {
        let mut text = self.recovery_text();
        for (name, value) in raised {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name} = {value}");
        }
        text
    }

    fn recovery_text(&self) -> String {
        let command = &self.recovery.restore_command;
        match self.route {
            RecoveryRoute::OwnWal { stop } => {
                let mut text = own_wal(self.backup.as_str());
                if stop.is_some() {
                    self.set_target(&mut text, &self.recovery.target);
                }
                text
            }
            RecoveryRoute::Standby => {
                let mut text = beginning(
                    self.backup.as_str(),
                    "a standby, with the WAL archive behind it",
                    &format!("{command} %f %p"),
                );
                let standby = self.recovery.standby.clone().unwrap_or_default();
                set(&mut text, "recovery_target_timeline", "latest");
                let conninfo = standby.primary_conninfo.unwrap_or_default();
                set(&mut text, "primary_conninfo", &conninfo);
                let slot = standby.primary_slot_name.unwrap_or_default();
                set(&mut text, "primary_slot_name", &slot);
                text
            }
            RecoveryRoute::Archive {
                timeline,
                stop,
                ends_before,
                ..
            } => {
                // The server reads ahead of where it stops (xlogprefetcher.c). Where a hole lies behind that, it is to
                // see the end of WAL, and no error.
                let command = match ends_before {
                    Some(segment) => format!("{command} --ends-before {segment} %f %p"),
                    None => format!("{command} %f %p"),
                };
                let target = &self.recovery.target;
                let to = match stop {
                    Some(_) => target.to_string(),
                    None => "the end of WAL".to_owned(),
                };
                let mut text = beginning(self.backup.as_str(), &format!("to {to}"), &command);
                let timeline = match timeline {
                    TimelineSetting::Number(number) => number.to_string(),
                    TimelineSetting::Current(_) => "current".to_owned(),
                };
                set(&mut text, "recovery_target_timeline", &timeline);
                if stop.is_some() {
                    self.set_target(&mut text, target);
                }
                text
            }
        }
    }

    /// What has to be taken back once the server is open: on a standby made of it, or if it becomes one, the settings would
    /// hold again.
    pub(super) fn afterwards(&self) -> Option<String> {
        let (stop, ends_before) = match self.route {
            RecoveryRoute::Archive {
                stop, ends_before, ..
            } => (stop, ends_before.as_ref()),
            RecoveryRoute::OwnWal {
                stop: stop @ Some(_),
            } => (stop, None),
            RecoveryRoute::OwnWal { stop: None } | RecoveryRoute::Standby => return None,
        };
        let target = stop.and_then(|_| match self.recovery.target {
            RecoveryTarget::End => None,
            RecoveryTarget::Immediate => Some("recovery_target"),
            RecoveryTarget::Time(_) => Some("recovery_target_time"),
            RecoveryTarget::Lsn(_) => Some("recovery_target_lsn"),
            RecoveryTarget::Transaction(_) => Some("recovery_target_xid"),
            RecoveryTarget::RestorePoint(_) => Some("recovery_target_name"),
        });
        let command = ends_before.map(|_| "restore_command");
        let names = ["recovery_target_timeline"]
            .into_iter()
            .chain(target)
            .chain(command);
        let statements: Vec<String> = names
            .map(|name| format!("ALTER SYSTEM RESET {name};"))
            .collect();
        Some(format!(
            "Once it is open, and before a standby is made of it: {}",
            statements.join(" ")
        ))
    }

    fn set_target(&self, text: &mut String, target: &RecoveryTarget) {
        let on = if self.recovery.inclusive { "on" } else { "off" };
        set(text, "recovery_target_inclusive", on);
        let action = match self.recovery.action {
            TargetAction::Pause => "pause",
            TargetAction::Promote => "promote",
            TargetAction::Shutdown => "shutdown",
        };
        set(text, "recovery_target_action", action);
        match target {
            RecoveryTarget::End => {}
            RecoveryTarget::Immediate => set(text, "recovery_target", "immediate"),
            RecoveryTarget::Time(time) => {
                set(text, "recovery_target_time", &moment::setting(*time))
            }
            RecoveryTarget::Lsn(lsn) => set(text, "recovery_target_lsn", &lsn.to_string()),
            RecoveryTarget::Transaction(TransactionId(xid)) => {
                set(text, "recovery_target_xid", &xid.to_string());
            }
            RecoveryTarget::RestorePoint(name) => set(text, "recovery_target_name", name),
        }
    }
}

/// Recovery of a backup with its own WAL: `recovery.signal` demands a `restore_command`
/// (`validateRecoveryParameters` in src/backend/access/transam/xlogrecovery.c), and there is nothing to fetch.
pub(crate) fn own_wal(backup: &str) -> String {
    let mut text = beginning(
        backup,
        "its own WAL lies in pg_wal, and there is no other to fetch",
        "false",
    );
    set(&mut text, "recovery_target_timeline", "latest");
    text
}

fn beginning(backup: &str, what: &str, restore_command: &str) -> String {
    let what = what.replace(['\n', '\r'], " ");
    let mut text = format!("\n# Recovery of leeward backup {backup}: {what}.\n");
    set(&mut text, "restore_command", restore_command);
    for target in TARGETS {
        set(&mut text, target, "");
    }
    text.push_str("recovery_min_apply_delay = 0\n");
    set(&mut text, "recovery_end_command", "");
    set(&mut text, "archive_cleanup_command", "");
    text
}

/// One line. In a quoted value the server reads two quotes as one, and a backslash as the beginning of an escape
/// (`GUC_scanstr`, src/backend/utils/misc/guc-file.l).
fn set(text: &mut String, name: &str, value: &str) {
    let value = value.replace('\\', "\\\\").replace('\'', "''");
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{name} = '{value}'");
}

#[cfg(test)]
mod tests {
    use leeward_pgformat::{Lsn, TimelineId, TimestampTz};

    use super::*;
    use crate::recovery::{Standby, StopPoint, TimelineSelection};

    fn recovery(target: RecoveryTarget) -> RecoveryOptions {
        RecoveryOptions {
            target,
            inclusive: true,
            timeline: TimelineSelection::Latest,
            action: TargetAction::Promote,
            standby: None,
            restore_command: "'/opt/o'\\''clock/leeward' wal get".to_owned(),
        }
    }

    fn text(recovery: &RecoveryOptions, route: &RecoveryRoute) -> String {
        let backup = "20261122T023000Z-k7q2".parse().expect("an id");
        Settings {
            backup: &backup,
            recovery,
            route,
        }
        .text(&[])
    }

    fn archive() -> RecoveryRoute {
        RecoveryRoute::Archive {
            timeline: TimelineSetting::Number(TimelineId(3)),
            stop: Some(StopPoint {
                lsn: Lsn(8),
                time: None,
            }),
            end: Lsn(8),
            ends_before: None,
        }
    }

    /// The server takes the last value of each name, at the place where it stands last.
    fn value(text: &str, name: &str) -> Option<(usize, String)> {
        let found = text.lines().enumerate().filter_map(|(at, line)| {
            let (key, value) = line.split_once(" = ")?;
            (key == name).then(|| (at, value.to_owned()))
        });
        found.last()
    }

    #[test]
    fn one_target_after_the_others_were_emptied() {
        for (target, name, expected) in [
            (RecoveryTarget::Immediate, "recovery_target", "'immediate'"),
            (
                RecoveryTarget::Time(TimestampTz(500_000)),
                "recovery_target_time",
                "'2000-01-01 00:00:00.5+00'",
            ),
            (
                RecoveryTarget::Lsn(Lsn(0x16_0000_0028)),
                "recovery_target_lsn",
                "'16/28'",
            ),
            (
                RecoveryTarget::Transaction(TransactionId(4_000_000_000)),
                "recovery_target_xid",
                "'4000000000'",
            ),
            (
                RecoveryTarget::RestorePoint("o'clock\\".to_owned()),
                "recovery_target_name",
                "'o''clock\\\\'",
            ),
        ] {
            let text = text(&recovery(target), &archive());
            let (at, found) = value(&text, name).expect(name);
            assert_eq!(found, expected);
            for other in TARGETS.iter().filter(|other| **other != name) {
                let (place, found) = value(&text, other).expect(other);
                assert_eq!(found, "''", "{other}");
                assert!(place < at, "{other} is emptied after the target is set");
            }
            assert_eq!(
                value(&text, "recovery_target_timeline")
                    .expect("a timeline")
                    .1,
                "'3'"
            );
            assert_eq!(
                value(&text, "recovery_target_action").expect("an action").1,
                "'promote'"
            );
        }
    }

    #[test]
    fn quoted_for_the_server() {
        let text = text(&recovery(RecoveryTarget::Immediate), &archive());
        let (_, command) = value(&text, "restore_command").expect("a command");
        assert_eq!(command, "'''/opt/o''\\\\''''clock/leeward'' wal get %f %p'");
    }

    #[test]
    fn without_a_stop_there_is_no_target() {
        let route = RecoveryRoute::Archive {
            timeline: TimelineSetting::Current(TimelineId(2)),
            stop: None,
            end: Lsn(8),
            ends_before: Some("000000010000000000000007".to_owned()),
        };
        let text = text(&recovery(RecoveryTarget::End), &route);
        assert!(text.contains(" wal get --ends-before 000000010000000000000007 %f %p'"));
        for target in TARGETS {
            assert_eq!(value(&text, target).expect(target).1, "''");
        }
        assert_eq!(
            value(&text, "recovery_target_timeline")
                .expect("a timeline")
                .1,
            "'current'"
        );
        assert_eq!(value(&text, "recovery_target_action"), None);
    }

    #[test]
    fn a_standby() {
        let mut recovery = recovery(RecoveryTarget::End);
        recovery.standby = Some(Standby {
            primary_conninfo: Some("host=p password='x y'".to_owned()),
            primary_slot_name: None,
        });
        let text = text(&recovery, &RecoveryRoute::Standby);
        assert_eq!(
            value(&text, "primary_conninfo").expect("conninfo").1,
            "'host=p password=''x y'''"
        );
        assert_eq!(value(&text, "primary_slot_name").expect("slot").1, "''");
    }
}
