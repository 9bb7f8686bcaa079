//! Whether WAL segments belong together, and the records that lead from one into the next, from the segments' summaries.
//!
//! Recovery goes from record to record: each names the one before it (`XLogReadRecord`,
//! src/backend/access/transam/xlogreader.c). Where one does not, as after `pg_resetwal` or between the WAL of two servers, WAL
//! ends there, however many segments follow.

use std::ops::Range;

use leeward_pgformat::wal_scan::join;
use leeward_pgformat::{Lsn, MajorVersion, RecordPart, WalContents, WalEvent, WalSegmentSize};

use super::path::PathSegment;
use super::wal_reader::WalReader;
use crate::error::Result;

/// Follows the records over the borders of segments.
pub(super) struct Continuity<'a> {
    reader: &'a dyn WalReader,
    size: WalSegmentSize,
    major: Option<MajorVersion>,
    /// The beginning of the last complete record.
    previous: Option<Lsn>,
    open: Option<OpenRecord<'a>>,
    /// Whether a segment was entered.
    begun: bool,
}

/// A record that goes on in the next segment.
struct OpenRecord<'a> {
    begin: Lsn,
    part: RecordPart,
    tails: Vec<RecordPart>,
    segments: Vec<&'a PathSegment>,
}

/// A record that lies across borders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CrossingRecord {
    pub bounds: Range<Lsn>,
    pub event: Option<WalEvent>,
    pub custom_manager: Option<u8>,
}

/// Where WAL does not go on with the next segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Break {
    /// The first record or byte that recovery does not take.
    pub lsn: Lsn,
    pub problem: String,
}

impl<'a> Continuity<'a> {
    /// Begins before the first segment.
    pub(super) fn new(reader: &'a dyn WalReader, size: WalSegmentSize) -> Self {
        Self {
            reader,
            size,
            major: None,
            previous: None,
            open: None,
            begun: false,
        }
    }

    /// Says which version wrote the WAL; known once any of it was walked.
    pub(super) fn set_major(&mut self, major: Option<MajorVersion>) {
        self.major = self.major.or(major);
    }

    /// Goes on with `segment`; returns the record that leads into it, once that is complete.
    ///
    /// # Errors
    /// Those of the reader.
    pub(super) fn enter(
        &mut self,
        segment: &'a PathSegment,
        summary: &WalContents,
    ) -> Result<std::result::Result<Option<CrossingRecord>, Break>> {
        let first = !std::mem::replace(&mut self.begun, true);
        let begin = segment.begin(self.size);
        let crossing = match (self.open.take(), &summary.tail) {
            // A crash took the rest of it, and the server wrote on in its place.
            (Some(_), _) if summary.overwrites => None,
            (Some(mut open), Some(tail)) => {
                open.tails.push(tail.clone());
                open.segments.push(segment);
                match self.join(open, begin)? {
                    Ok(crossing) => crossing,
                    Err(problem) => return Ok(Err(problem)),
                }
            }
            (Some(open), None) => {
                return Ok(Err(Break {
                    lsn: open.begin,
                    problem: "the record does not go on in the next segment".to_owned(),
                }));
            }
            (None, Some(_)) if !first => {
                return Ok(Err(Break {
                    lsn: begin,
                    problem: "the segment continues a record that did not begin".to_owned(),
                }));
            }
            (None, _) => None,
        };
        if let Some(crossing) = &crossing {
            self.previous = Some(crossing.bounds.start);
        }
        if let (Some(lsn), Some(previous)) = (summary.first_record, self.previous)
            && summary.previous_record != Some(previous)
        {
            let problem = match summary.previous_record {
                Some(named) => format!("the record there follows one at {named}, not {previous}"),
                None => "the WAL begins anew there, as after pg_resetwal".to_owned(),
            };
            return Ok(Err(Break { lsn, problem }));
        }
        Ok(Ok(crossing))
    }

    /// The segment that was entered is over.
    pub(super) fn leave(&mut self, segment: &'a PathSegment, summary: &WalContents) {
        self.previous = summary.last_record.or(self.previous);
        if let Some((begin, part)) = &summary.open {
            self.open = Some(OpenRecord {
                begin: *begin,
                part: part.clone(),
                tails: Vec::new(),
                segments: vec![segment],
            });
        }
    }

    fn join(
        &mut self,
        open: OpenRecord<'a>,
        last_segment: Lsn,
    ) -> Result<std::result::Result<Option<CrossingRecord>, Break>> {
        let begin = open.begin;
        if self.major.is_none() {
            let walked = self.reader.walk(&open.segments[..1], None, &mut |_| {})?;
            self.major = walked.major;
        }
        let Some(major) = self.major else {
            return Ok(Err(Break {
                lsn: begin,
                problem: "no known version of PostgreSQL wrote it".to_owned(),
            }));
        };
        let joined = match join(
            begin,
            &open.part,
            &open.tails,
            last_segment,
            self.size,
            major,
        ) {
            Ok(Some(joined)) => joined,
            Ok(None) => {
                self.open = Some(open);
                return Ok(Ok(None));
            }
            Err(problem) => {
                return Ok(Err(Break {
                    lsn: begin,
                    problem: problem.to_string(),
                }));
            }
        };
        if let Some(previous) = self.previous
            && joined.previous != previous
        {
            return Ok(Err(Break {
                lsn: begin,
                problem: format!(
                    "the record there follows one at {}, not {previous}",
                    joined.previous
                ),
            }));
        }
        let mut event = joined.event;
        if joined.is_cut {
            self.reader.walk(&open.segments, None, &mut |seen| {
                if seen.begin() == begin {
                    event = Some(seen.clone());
                }
            })?;
        }
        Ok(Ok(Some(CrossingRecord {
            bounds: begin..joined.end,
            event,
            custom_manager: joined.custom_manager,
        })))
    }
}
