//! WAL that is known to be missing.

use std::ops::Range;

use jiff::Timestamp;
use leeward_pgformat::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};

use super::WalArchive;
use crate::document;
use crate::layout;
use crate::repository_error::RepositoryError;
use crate::store::StoreError;
use crate::summary::FORMAT_VERSION;

/// WAL that was lost on its way to the archive. The archive may have got it since, by another way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The timeline.
    pub timeline: TimelineId,
    /// The LSN of the first byte that is missing.
    pub begin: Lsn,
    /// The LSN after the last byte that is missing.
    pub end: Lsn,
    /// When it was noticed; kept to the second.
    pub found_at: Timestamp,
    /// How it came about, for people.
    pub reason: String,
}

/// `<begin>-<end>.gap.json`.
#[derive(Serialize, Deserialize)]
struct GapFile {
    format_version: u32,
    timeline: u32,
    #[serde(with = "crate::summary::text")]
    begin: Lsn,
    #[serde(with = "crate::summary::text")]
    end: Lsn,
    found_at: String,
    reason: String,
    leeward_version: String,
}

impl WalArchive {
    /// Records a gap. Where the same one is recorded already, the earlier record stands.
    ///
    /// # Errors
    /// [`RepositoryError::WalRefused`] for an empty range; those of the store.
    pub fn record_gap(&self, gap: &Gap) -> Result<(), RepositoryError> {
        if gap.begin >= gap.end {
            return Err(RepositoryError::WalRefused {
                wal: format!("a gap from {} to {}", gap.begin, gap.end),
                problem: "nothing is missing in it".to_owned(),
            });
        }
        let key = layout::wal_gap(&self.cluster, gap.timeline, &(gap.begin..gap.end))?;
        let file = GapFile {
            format_version: FORMAT_VERSION,
            timeline: gap.timeline.0,
            begin: gap.begin,
            end: gap.end,
            found_at: gap.found_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            reason: gap.reason.clone(),
            leeward_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        match self
            .store
            .create(&key, document::encode(key.as_str(), &file)?)
        {
            Ok(()) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the record of a gap that [`super::TimelineHoldings::gaps`] names.
    ///
    /// # Errors
    /// [`RepositoryError::Damaged`], [`RepositoryError::NewerFormat`]; those of the store.
    pub fn gap(&self, timeline: TimelineId, range: &Range<Lsn>) -> Result<Gap, RepositoryError> {
        let key = layout::wal_gap(&self.cluster, timeline, range)?;
        let file: GapFile = document::decode(key.as_str(), &self.store.get(&key)?)?;
        let damaged = |problem: String| RepositoryError::damaged(&key, "text", problem);
        if file.timeline != timeline.0 || (file.begin..file.end) != *range {
            return Err(damaged(format!(
                "it describes WAL of timeline {} from {} to {}",
                file.timeline, file.begin, file.end
            )));
        }
        Ok(Gap {
            timeline,
            begin: file.begin,
            end: file.end,
            found_at: file
                .found_at
                .parse()
                .map_err(|error| damaged(format!("found_at: {error}")))?,
            reason: file.reason,
        })
    }
}
