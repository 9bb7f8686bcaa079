//! The ranges of WAL in which recovery can stop anywhere.

use leeward_pgformat::Lsn;

use super::path::RecoveryPath;
use super::replay::{ReplayGoal, ReplayOutcome, WalEnd, replay};
use super::sources::{BackupRange, RecoverySources};
use super::target::RecoveryTarget;
use super::wal_reader::WalReader;
use crate::error::Result;

/// WAL that recovery of at least one backup goes along without stumbling: it stops anywhere from where that backup is
/// consistent to the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// The oldest backup in it.
    pub backup: BackupRange,
    /// How many backups lie in it.
    pub backups: usize,
    /// Where its last record ends.
    pub end: Lsn,
    /// Why recovery goes no further.
    pub why: WalEnd,
}

/// The windows of a path, oldest first.
///
/// # Errors
/// Those of the reader.
pub(crate) fn windows(
    path: &RecoveryPath,
    reader: &dyn WalReader,
    sources: &RecoverySources,
) -> Result<Vec<Window>> {
    let target = RecoveryTarget::End;
    let goal = ReplayGoal {
        target: &target,
        inclusive: true,
        until: None,
    };
    let mut windows: Vec<Window> = Vec::new();
    for backup in path.backups(sources) {
        if let Some(last) = windows.last_mut()
            && backup.start < last.end
            && backup.consistent <= last.end
        {
            last.backups += 1;
            continue;
        }
        let replayed = replay(path, reader, backup, goal)?;
        if let ReplayOutcome::Ends(why) = replayed.outcome {
            windows.push(Window {
                backup: backup.clone(),
                backups: 1,
                end: replayed.end,
                why,
            });
        }
    }
    Ok(windows)
}
