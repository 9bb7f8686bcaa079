//! Copying all files: a planner cuts the data directory into batches; copiers read, check and compress; a collector puts
//! frames into packs and files into the manifest; a finisher makes packs durable; the calling thread watches the server.
//! Everything between them is bounded, and the first failure ends all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use leeward_postgres::backup_session::Position;
use leeward_postgres::configuration_files::OutsideFiles;
use leeward_postgres::data_directory::{DataDirectory, EntryKind, Pass};
use leeward_postgres::server_facts::Role;
use leeward_repository::backup_id::BackupId;
use leeward_repository::codec::FrameCompression;
use leeward_repository::manifest::ManifestWriter;
use leeward_repository::store::Store;

use super::collect::{Collected, Collector, Packs, finish_packs};
use super::copy::Copier;
use super::horizon::{Horizon, Word};
use super::plan::{Permits, Planner};
use super::required::Stored;
use super::source::PageRules;
use crate::error::{Error, Result};
use crate::event::{Event, Observer};
use crate::pipeline::{self, Next, Receiver, StageResult};

/// The interval at which the server's position and identity are checked.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Copiers at most, whatever the number of cores: each holds up to 11 MiB.
const MAX_COPIERS: usize = 16;

/// The source of a copy, and its destination.
pub(super) struct Copying<'a> {
    pub store: &'a dyn Store,
    pub cluster: &'a str,
    pub backup: &'a BackupId,
    pub directory: &'a DataDirectory,
    pub outside: &'a OutsideFiles,
    pub role: Role,
    pub rules: PageRules,
    pub compression: FrameCompression,
    /// Copiers; by default twice the cores.
    pub threads: Option<usize>,
    pub observe: Observer<'a>,
}

/// The results of copying that the rest of the backup needs.
pub(super) struct Pages {
    pub collected: Collected,
    pub after: Position,
    pub transform_differences: u64,
}

impl Copying<'_> {
    /// Copies pages, then everything else, watching the server meanwhile: `position` asks where it is.
    ///
    /// # Errors
    /// The first failure of any thread; that of the server where it is gone.
    pub(super) fn run(
        &self,
        position: &mut dyn FnMut() -> Result<Position>,
        manifest: &mut ManifestWriter,
        stored: &mut Stored<'_>,
    ) -> Result<Pages> {
        let owner = self
            .directory
            .owner()
            .map_err(|e| Error::failed("could not read the data directory").because(e))?;
        let copiers = self
            .threads
            .unwrap_or_else(default_copiers)
            .clamp(1, MAX_COPIERS);
        let copied_all = AtomicBool::new(false);
        let (waits, differences) = (AtomicU32::new(0), AtomicU64::new(0));
        let mut server_answers = true;
        let copied = pipeline::run(|pipeline| {
            let (words, heard) = pipeline.channel(copiers);
            let (batches, work) = pipeline.channel(copiers);
            let (results, done) = pipeline.channel(copiers);
            let (full, finishing) = pipeline.channel(1);
            let (permits, give_back) = Permits::new(pipeline, copiers * 2);
            let horizon = Arc::new(match self.role {
                Role::Standby => Horizon::of_standby(self.directory),
                Role::Primary => Horizon::of_primary(words.clone()),
            });
            let mut planner = Planner::new(
                self.directory,
                self.outside,
                owner,
                batches,
                permits,
                self.observe,
            );
            let planner = pipeline.spawn("plan", move || planner.run())?;
            let (stop, copied_all) = (pipeline.stop(), &copied_all);
            pipeline.spawn("estimate", move || {
                self.estimate(&|| copied_all.load(Ordering::Relaxed) || stop.is_asked());
                Ok(())
            })?;
            for _ in 0..copiers {
                let copier = Copier {
                    rules: self.rules,
                    horizon: Arc::clone(&horizon),
                    compression: self.compression,
                    waits: &waits,
                    differences: &differences,
                };
                let (work, results) = (work.clone(), results.clone());
                pipeline.spawn("copy", move || copier.run(&work, &results))?;
            }
            drop(results);
            let finisher = pipeline.spawn("finish", move || finish_packs(&finishing))?;
            let packs = Packs {
                store: self.store,
                cluster: self.cluster,
                backup: self.backup,
            };
            let mut collector = Collector {
                packs,
                manifest,
                stored,
                observe: self.observe,
                full,
                permits: give_back,
            };
            let collector = pipeline.spawn("collect", move || {
                let collected = collector.run(&done)?;
                words.send(Word::Copied)?;
                Ok(collected)
            })?;
            let ask = &mut || position().inspect_err(|_| server_answers = false);
            let after = watch(ask, &heard)?;
            copied_all.store(true, Ordering::Relaxed);
            planner.join()?;
            let mut collected = collector.join()?;
            collected.packs = finisher.join()?;
            Ok((collected, after))
        });
        // A server that is gone explains the failures of those who read its files.
        let (collected, after) = copied.map_err(|failure| match server_answers {
            true => position().err().unwrap_or(failure),
            false => failure,
        })?;
        Ok(Pages {
            collected,
            after,
            transform_differences: differences.load(Ordering::Relaxed),
        })
    }

    /// Adds up what there is to copy, beside the copying: for the progress bar only.
    fn estimate(&self, stopped: &(dyn Fn() -> bool + Sync)) {
        let mut total = 0;
        for pass in [Pass::Relations, Pass::EverythingElse] {
            let walked = self.directory.walk(pass, &mut |entry| {
                if let EntryKind::File { size_bytes } = entry.kind {
                    total += size_bytes;
                }
                !stopped()
            });
            if walked.is_err() || stopped() {
                return;
            }
        }
        (self.observe)(Event::Total(total));
    }
}

/// Asks the server every second where it is, and answers the copiers' questions, until everything is copied.
fn watch(
    position: &mut dyn FnMut() -> Result<Position>,
    words: &Receiver<Word>,
) -> StageResult<Position> {
    loop {
        let word = words.recv_deadline(Instant::now() + WATCH_INTERVAL)?;
        let position = position()?;
        match word {
            // Whoever asked may have given up.
            Next::Item(Word::HowFar(answer)) => drop(answer.send(position.replay_lsn)),
            Next::Item(Word::Copied) | Next::End => return Ok(position),
            Next::Nothing => {}
        }
    }
}

fn default_copiers() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get) * 2
}

#[cfg(test)]
#[path = "copying_tests.rs"]
mod tests;
