//! The options of a restore to the end of WAL.

use std::path::Path;

use leeward_engine::recovery::{RecoveryOptions, RecoveryTarget, TargetAction, TimelineSelection};
use leeward_engine::restore::RestoreOptions;

pub fn restore_options(to: &Path) -> RestoreOptions {
    RestoreOptions {
        cluster: None,
        backup: None,
        recovery: RecoveryOptions {
            target: RecoveryTarget::End,
            inclusive: true,
            timeline: TimelineSelection::Latest,
            action: TargetAction::Promote,
            standby: None,
            restore_command: "leeward wal get".to_owned(),
        },
        to: to.to_owned(),
        tablespaces: Vec::new(),
        threads: Some(2),
    }
}
