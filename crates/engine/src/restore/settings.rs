//! The recovery settings of a restored directory, as they are appended to `postgresql.auto.conf`.
//!
//! What the configuration may carry for recovery is taken back: targets and a delay, and commands that act on the archive
//! of the server that was backed up. A target is set after the others were emptied: in the other order the server would
//! complain of several (`error_multiple_recovery_targets`, src/backend/access/transam/xlogrecovery.c).

use std::fmt::Write as _;

use leeward_pgformat::TransactionId;
use leeward_repository::backup_id::BackupId;

use super::aim::Aim;
use super::choose::{Route, Timeline};
use super::{Recovery, TargetAction};
use crate::moment;

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
    pub recovery: &'a Recovery,
    pub route: &'a Route,
}

impl Settings<'_> {
    /// The file that makes the server recover (`xlog.h`).
    pub(super) const fn signal(&self) -> &'static str {
        match self.route {
            Route::Standby => "standby.signal",
            _ => "recovery.signal",
        }
    }

    /// The lines.
    pub(super) fn text(&self) -> String {
        let command = &self.recovery.restore_command;
        match self.route {
            Route::Own => own_wal(self.backup.as_str()),
            Route::Standby => {
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
            Route::Archive {
                timeline,
                stop,
                ends_before,
            } => {
                // The server reads ahead of where it stops (xlogprefetcher.c). Where a hole lies behind that, it is to
                // see the end of WAL, and no error.
                let command = match ends_before {
                    Some(segment) => format!("{command} --ends-before {segment} %f %p"),
                    None => format!("{command} %f %p"),
                };
                let aim = &self.recovery.aim;
                let to = match stop {
                    Some(_) => aim.to_string(),
                    None => "the end of WAL".to_owned(),
                };
                let mut text = beginning(self.backup.as_str(), &format!("to {to}"), &command);
                let timeline = match timeline {
                    Timeline::Number(number) => number.to_string(),
                    Timeline::Current(_) => "current".to_owned(),
                };
                set(&mut text, "recovery_target_timeline", &timeline);
                if stop.is_some() {
                    self.set_target(&mut text, aim);
                }
                text
            }
        }
    }

    /// What has to be taken back once the server is open: on a standby made of it, or if it becomes one, the settings would
    /// hold again.
    pub(super) fn afterwards(&self) -> Option<String> {
        let Route::Archive {
            stop, ends_before, ..
        } = self.route
        else {
            return None;
        };
        let target = stop.and_then(|_| match self.recovery.aim {
            Aim::End => None,
            Aim::Immediate => Some("recovery_target"),
            Aim::Time(_) => Some("recovery_target_time"),
            Aim::Lsn(_) => Some("recovery_target_lsn"),
            Aim::Transaction(_) => Some("recovery_target_xid"),
            Aim::RestorePoint(_) => Some("recovery_target_name"),
        });
        let command = ends_before.as_ref().map(|_| "restore_command");
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

    fn set_target(&self, text: &mut String, aim: &Aim) {
        let on = if self.recovery.inclusive { "on" } else { "off" };
        set(text, "recovery_target_inclusive", on);
        let action = match self.recovery.action {
            TargetAction::Pause => "pause",
            TargetAction::Promote => "promote",
            TargetAction::Shutdown => "shutdown",
        };
        set(text, "recovery_target_action", action);
        match aim {
            Aim::End => {}
            Aim::Immediate => set(text, "recovery_target", "immediate"),
            Aim::Time(time) => set(text, "recovery_target_time", &moment::setting(*time)),
            Aim::Lsn(lsn) => set(text, "recovery_target_lsn", &lsn.to_string()),
            Aim::Transaction(TransactionId(xid)) => {
                set(text, "recovery_target_xid", &xid.to_string());
            }
            Aim::RestorePoint(name) => set(text, "recovery_target_name", name),
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

    use super::super::{Standby, Stop, TimelineWish};
    use super::*;

    fn recovery(aim: Aim) -> Recovery {
        Recovery {
            aim,
            inclusive: true,
            timeline: TimelineWish::Latest,
            action: TargetAction::Promote,
            standby: None,
            restore_command: "'/opt/o'\\''clock/leeward' wal get".to_owned(),
        }
    }

    fn text(recovery: &Recovery, route: &Route) -> String {
        let backup = "20261122T023000Z-k7q2".parse().expect("an id");
        Settings {
            backup: &backup,
            recovery,
            route,
        }
        .text()
    }

    fn archive() -> Route {
        Route::Archive {
            timeline: Timeline::Number(TimelineId(3)),
            stop: Some(Stop {
                lsn: Lsn(8),
                time: None,
            }),
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
        for (aim, name, expected) in [
            (Aim::Immediate, "recovery_target", "'immediate'"),
            (
                Aim::Time(TimestampTz(500_000)),
                "recovery_target_time",
                "'2000-01-01 00:00:00.5+00'",
            ),
            (
                Aim::Lsn(Lsn(0x16_0000_0028)),
                "recovery_target_lsn",
                "'16/28'",
            ),
            (
                Aim::Transaction(TransactionId(4_000_000_000)),
                "recovery_target_xid",
                "'4000000000'",
            ),
            (
                Aim::RestorePoint("o'clock\\".to_owned()),
                "recovery_target_name",
                "'o''clock\\\\'",
            ),
        ] {
            let text = text(&recovery(aim), &archive());
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
        let text = text(&recovery(Aim::Immediate), &archive());
        let (_, command) = value(&text, "restore_command").expect("a command");
        assert_eq!(command, "'''/opt/o''\\\\''''clock/leeward'' wal get %f %p'");
    }

    #[test]
    fn without_a_stop_there_is_no_target() {
        let route = Route::Archive {
            timeline: Timeline::Current(TimelineId(2)),
            stop: None,
            ends_before: Some("000000010000000000000007".to_owned()),
        };
        let text = text(&recovery(Aim::End), &route);
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
        let mut recovery = recovery(Aim::End);
        recovery.standby = Some(Standby {
            primary_conninfo: Some("host=p password='x y'".to_owned()),
            primary_slot_name: None,
        });
        let text = text(&recovery, &Route::Standby);
        assert_eq!(
            value(&text, "primary_conninfo").expect("conninfo").1,
            "'host=p password=''x y'''"
        );
        assert_eq!(value(&text, "primary_slot_name").expect("slot").1, "''");
    }
}
