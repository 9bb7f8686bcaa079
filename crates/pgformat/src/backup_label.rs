//! The `backup_label` file: where recovery of a backup begins, and what kind of server the backup came from.
//!
//! Facts from `access/transam/xlogbackup.c` (`build_backup_content`) and `access/transam/xlogrecovery.c`
//! (`read_backup_label`); `xlog.c` before 15.

use std::fmt;

use crate::{FormatError, Lsn, TimelineId};

/// What a `backup_label` says. A restored cluster without it begins recovery at the wrong place and is silently
/// corrupt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// The redo LSN: the first WAL that recovery needs.
    pub start_lsn: Lsn,
    /// The name of the WAL segment that holds it.
    pub start_wal_segment: String,
    /// Where the checkpoint record lies that the backup begins with.
    pub checkpoint: Lsn,
    /// `BACKUP METHOD`: `streamed` for every backup made with the functions of 9.6 and later.
    pub method: Option<String>,
    /// Whether the backup was taken on a primary or a standby.
    pub from: Option<BackupFrom>,
    /// When it began, in the server's `log_timezone`; free text.
    pub start_time: Option<String>,
    /// The label given to `pg_backup_start`.
    pub label: Option<String>,
    /// The timeline the backup began on.
    pub start_timeline: TimelineId,
    /// For an incremental backup of 17 or later: the start LSN and timeline of the backup it builds on. The server
    /// refuses to start on one.
    pub incremental_from: Option<(Lsn, TimelineId)>,
}

/// The kind of server a backup was taken on: `BACKUP FROM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackupFrom {
    /// Recovery ends where it sees the end-of-backup record.
    Primary,
    /// Recovery is consistent at the minimum recovery point in the backup's control file.
    Standby,
}

impl fmt::Display for BackupFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            BackupFrom::Primary => "primary",
            BackupFrom::Standby => "standby",
        })
    }
}

impl BackupLabel {
    /// Reads the content of a `backup_label`.
    ///
    /// # Errors
    ///
    /// [`FormatError::BackupLabel`] when a line recovery needs is missing or malformed, and when the two places that
    /// name the timeline differ.
    pub fn parse(text: &str) -> Result<BackupLabel, FormatError> {
        let wrong = |reason: String| FormatError::BackupLabel { reason };
        let mut lines = text.lines();
        let mut next_field = |name: &'static str| -> Result<&str, FormatError> {
            let line = lines.next().unwrap_or_default();
            field(line, name)
                .ok_or_else(|| wrong(format!("expected \"{name}: ...\", found \"{line}\"")))
        };
        // The server reads these two lines first and in this order, the others where it finds them.
        let start = next_field("START WAL LOCATION")?;
        let checkpoint = next_field("CHECKPOINT LOCATION")?;

        let (start_lsn, start_wal_segment) = start
            .split_once(" (file ")
            .and_then(|(lsn, file)| Some((lsn, file.strip_suffix(')')?)))
            .ok_or_else(|| {
                wrong(format!(
                    "START WAL LOCATION \"{start}\" has no LSN and WAL segment name"
                ))
            })?;
        if !crate::wal_segment::is_wal_segment_name(start_wal_segment) {
            return Err(wrong(format!(
                "\"{start_wal_segment}\" is not the name of a WAL segment"
            )));
        }
        let segment_timeline = u32::from_str_radix(&start_wal_segment[..8], 16)
            .map(TimelineId)
            .map_err(|_| {
                wrong(format!(
                    "\"{start_wal_segment}\" is not the name of a WAL segment"
                ))
            })?;
        let lsn = |text: &str| {
            text.parse::<Lsn>()
                .map_err(|error| wrong(error.to_string()))
        };
        let timeline = |text: &str| {
            text.parse::<TimelineId>()
                .map_err(|error| wrong(error.to_string()))
        };

        let mut label = BackupLabel {
            start_lsn: lsn(start_lsn)?,
            start_wal_segment: start_wal_segment.to_owned(),
            checkpoint: lsn(checkpoint)?,
            method: None,
            from: None,
            start_time: None,
            label: None,
            start_timeline: segment_timeline,
            incremental_from: None,
        };
        let (mut incremental_lsn, mut incremental_timeline) = (None, None);
        for line in lines {
            if let Some(value) = field(line, "BACKUP METHOD") {
                label.method = Some(value.to_owned());
            } else if let Some(value) = field(line, "BACKUP FROM") {
                label.from = Some(match value {
                    "primary" => BackupFrom::Primary,
                    "standby" => BackupFrom::Standby,
                    other => {
                        return Err(wrong(format!(
                            "BACKUP FROM \"{other}\" is neither primary nor standby"
                        )));
                    }
                });
            } else if let Some(value) = field(line, "START TIME") {
                label.start_time = Some(value.to_owned());
            } else if let Some(value) = field(line, "LABEL") {
                label.label = Some(value.to_owned());
            } else if let Some(value) = field(line, "START TIMELINE") {
                label.start_timeline = timeline(value)?;
            } else if let Some(value) = field(line, "INCREMENTAL FROM LSN") {
                incremental_lsn = Some(lsn(value)?);
            } else if let Some(value) = field(line, "INCREMENTAL FROM TLI") {
                incremental_timeline = Some(timeline(value)?);
            }
            // Lines of other names: a later version's business.
        }
        if label.start_timeline != segment_timeline {
            return Err(wrong(format!(
                "START TIMELINE {} does not agree with WAL segment \"{start_wal_segment}\"",
                label.start_timeline
            )));
        }
        label.incremental_from = incremental_lsn.zip(incremental_timeline);
        Ok(label)
    }
}

/// The value of a `NAME: value` line of that name.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.strip_prefix(name)?.strip_prefix(": ")
}

#[cfg(test)]
#[path = "backup_label_tests.rs"]
mod tests;
