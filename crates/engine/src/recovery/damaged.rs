//! Damaged and unreadable backups: they are passed over, unless a damaged one is asked for by its id.

use leeward_repository::RepositoryError;
use leeward_repository::backup_id::BackupId;
use leeward_repository::catalog::{Backups, Cluster};
use leeward_repository::summary::BackupSummary;

use crate::error::{Error, ErrorKind, Result};

/// Chooses a backup to be taken by itself: the one of that id or unique prefix, or for `latest` the newest sound one.
/// Returns what a person should know as well.
///
/// # Errors
/// [`ErrorKind::Damaged`] where none is sound; those of the store.
pub(crate) fn choose_alone(
    cluster: &Cluster,
    wanted: &str,
) -> Result<(BackupSummary, Vec<String>)> {
    if wanted != "latest" {
        let summary = cluster.resolve(wanted)?;
        let notes = damage_note(&summary).into_iter().collect();
        return Ok((summary, notes));
    }
    let Backups {
        mut sound,
        unreadable,
    } = cluster.backups()?;
    if sound.is_empty() {
        return Err(none_can_be_read(cluster, &unreadable));
    }
    let Some(at) = sound.iter().rposition(|one| damage(one).is_none()) else {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!(
                "all backups have damaged pages or missing files: {}",
                listed(sound.iter().rev().map(|one| &one.id))
            ),
        )
        .hint("Name one to take it with its damage; \"leeward show\" lists that."));
    };
    let mut notes: Vec<String> = sound
        .drain(at + 1..)
        .map(|damaged| passed_over_note(&damaged.id))
        .collect();
    let summary = sound.swap_remove(at);
    notes.splice(0..0, unread_and_newer(&unreadable, &summary));
    Ok((summary, notes))
}

pub(super) fn none_can_be_read(
    cluster: &Cluster,
    unreadable: &[(BackupId, RepositoryError)],
) -> Error {
    match unreadable {
        [(id, error)] => Error::new(
            ErrorKind::Damaged,
            format!("backup {id} cannot be read: {error}"),
        ),
        [.., (newest, error)] => Error::new(
            ErrorKind::Damaged,
            format!(
                "none of the backups can be read: {}",
                listed(unreadable.iter().map(|(id, _)| id))
            ),
        )
        .hint(format!("Of {newest}: {error}.")),
        // Says that there is none.
        [] => cluster.resolve("latest").map_or_else(Error::from, |_| {
            Error::failed("the backups changed while they were looked at")
        }),
    }
}

pub(super) fn unread_and_newer(
    unreadable: &[(BackupId, RepositoryError)],
    chosen: &BackupSummary,
) -> Vec<String> {
    unreadable
        .iter()
        .filter(|(id, _)| id.as_str() > chosen.id.as_str())
        .map(|(id, error)| {
            format!("Backup {id} is newer and was passed over, since it cannot be read: {error}.")
        })
        .collect()
}

pub(super) fn damage_note(summary: &BackupSummary) -> Option<String> {
    damage(summary).map(|damage| {
        format!(
            "DAMAGED: backup {} has {damage}, and so has what is made of it: \"leeward show {}\" lists what.",
            summary.id, summary.id
        )
    })
}

pub(super) fn passed_over_note(damaged: &BackupId) -> String {
    format!(
        "Backup {damaged} is newer and was passed over, since it has damaged pages or missing files: \"leeward show {damaged}\" lists them."
    )
}

/// Describes the damage in a backup; `None` when there is none.
fn damage(summary: &BackupSummary) -> Option<String> {
    let pages: usize = summary.damaged.iter().map(|one| one.blocks.len()).sum();
    let files = summary.damaged.iter().filter(|one| one.missing).count();
    match (pages, files) {
        (0, 0) => None,
        (_, 0) => Some(format!("{pages} damaged pages")),
        (0, _) => Some(format!("{files} missing files")),
        _ => Some(format!("{pages} damaged pages and {files} missing files")),
    }
}

pub(super) fn listed<'a>(ids: impl Iterator<Item = &'a BackupId>) -> String {
    let ids: Vec<String> = ids.map(ToString::to_string).collect();
    ids.join(", ")
}
