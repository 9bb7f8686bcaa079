//! Databases that were copied file by file while the backup ran: recovery copies them again, from the files of the backup.
//!
//! Replay of such a record removes the new directory and copies whatever the old one holds by then (`dbase_redo`,
//! src/backend/commands/dbcommands.c). Nothing else of the old directory is in WAL. So the old directory must be in the backup
//! as it was at the record: not when it was removed before the walk had been there, and not when it was changed
//! between the record and the walk. All other records bring what they need, or find it in files that were there
//! throughout (decision 12).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use leeward_pgformat::{DatabaseDirectory, Lsn, Oid, WalEvent};

use crate::error::Error;

/// A database that recovery would make from files that the backup may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LostCopy {
    pub database: Oid,
    /// The database that was copied.
    pub source: Oid,
    /// The beginning of the record that copies it.
    pub record: Lsn,
    pub reason: LossReason,
}

/// Why the directory that was copied may not be in the backup as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LossReason {
    /// The database left it.
    Moved,
    /// The database that was copied was dropped.
    SourceDropped,
    /// The record at this LSN changed it.
    SourceChanged(Lsn),
}

/// Returns whether a record makes or removes a database's directory.
pub(super) const fn concerns(event: &WalEvent) -> bool {
    matches!(
        event,
        WalEvent::DatabaseCopy { .. }
            | WalEvent::DatabaseCreate { .. }
            | WalEvent::DatabaseDrop { .. }
    )
}

/// Returns whether a record copies a database file by file.
pub(super) const fn is_copy(event: &WalEvent) -> bool {
    matches!(event, WalEvent::DatabaseCopy { .. })
}

/// Returns the first database that recovery would not make as it was. `events` are those of the backup's WAL, `changes` the
/// last record that changed each directory, and `exists` says which databases were there when everything was copied.
pub(super) fn lost_copy(
    events: &[WalEvent],
    changes: &BTreeMap<DatabaseDirectory, Lsn>,
    exists: &dyn Fn(Oid) -> bool,
) -> Option<LostCopy> {
    // The directories that recovery makes by copying, and what is wrong with each.
    let mut made: BTreeMap<DatabaseDirectory, Option<LostCopy>> = BTreeMap::new();
    // Those of which WAL has every page; but files that are there already stay.
    let mut logged = BTreeSet::new();
    for (at, event) in events.iter().enumerate() {
        match event {
            WalEvent::DatabaseCopy {
                database,
                tablespace,
                source_database,
                source_tablespace,
                begin,
                ..
            } => {
                let source = DatabaseDirectory {
                    database: *source_database,
                    tablespace: *source_tablespace,
                };
                let target = DatabaseDirectory {
                    database: *database,
                    tablespace: *tablespace,
                };
                // In any directory of it: a table dropped from one is told by the change of the catalog in another.
                let changed = (changes.iter())
                    .filter(|(directory, _)| directory.database == source.database)
                    .map(|(_, change)| *change)
                    .max()
                    .filter(|change| change > begin)
                    .map(LossReason::SourceChanged);
                let reason = if logged.contains(&source) {
                    changed
                } else if source.database == target.database {
                    Some(LossReason::Moved)
                } else if !exists(source.database) || drops(&events[at..], source.database) {
                    Some(LossReason::SourceDropped)
                } else {
                    changed
                };
                let lost = match made.get(&source) {
                    // All of it comes from WAL, and is then what it was.
                    Some(lost) => *lost,
                    None => reason.map(|reason| LostCopy {
                        database: *database,
                        source: *source_database,
                        record: *begin,
                        reason,
                    }),
                };
                made.insert(target, lost);
            }
            WalEvent::DatabaseDrop {
                database,
                tablespaces,
                ..
            } => {
                made.retain(|directory, _| {
                    directory.database != *database || !tablespaces.contains(&directory.tablespace)
                });
            }
            WalEvent::DatabaseCreate {
                database,
                tablespace,
                ..
            } => {
                logged.insert(DatabaseDirectory {
                    database: *database,
                    tablespace: *tablespace,
                });
            }
            _ => {}
        }
    }
    made.into_values().flatten().min_by_key(|lost| lost.record)
}

fn drops(events: &[WalEvent], dropped: Oid) -> bool {
    events.iter().any(
        |event| matches!(event, WalEvent::DatabaseDrop { database, .. } if *database == dropped),
    )
}

impl LostCopy {
    /// The error that fails the backup; `name` gives a database's name, where it is known.
    pub(super) fn error(&self, name: &dyn Fn(Oid) -> Option<String>) -> Error {
        let named = |oid| Named(oid, name(oid));
        let (database, source) = (named(self.database), named(self.source));
        let happened = match self.reason {
            LossReason::Moved => {
                format!("database {database} was moved to another tablespace while the backup ran")
            }
            LossReason::SourceDropped => format!(
                "database {database} was created as a copy of database {source} while the backup ran, and database {source} was dropped"
            ),
            LossReason::SourceChanged(lsn) => format!(
                "database {database} was created as a copy of database {source} while the backup ran, and database {source} was written to afterwards, at {lsn}"
            ),
        };
        Error::failed(happened)
            .because(format!(
                "recovery repeats the copy at {} from the files in the backup, and they may not be what was copied",
                self.record
            ))
            .hint("Run the command again: the next backup begins after the copy.")
    }
}

/// A database, for a sentence.
struct Named(Oid, Option<String>);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.1 {
            Some(name) => write!(f, "\"{name}\""),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: u32 = 1663;
    const FAR: u32 = 16_400;
    const SHOP: u32 = 16_384;
    const COPY: u32 = 16_385;
    const SECOND: u32 = 16_386;

    fn directory(database: u32, tablespace: u32) -> DatabaseDirectory {
        DatabaseDirectory {
            database: Oid(database),
            tablespace: Oid(tablespace),
        }
    }

    fn copy(from: (u32, u32), to: (u32, u32), begin: u64) -> WalEvent {
        WalEvent::DatabaseCopy {
            database: Oid(to.0),
            tablespace: Oid(to.1),
            source_database: Oid(from.0),
            source_tablespace: Oid(from.1),
            begin: Lsn(begin),
            end: Lsn(begin + 48),
        }
    }

    fn dropped(database: u32, tablespaces: &[u32], begin: u64) -> WalEvent {
        WalEvent::DatabaseDrop {
            database: Oid(database),
            tablespaces: tablespaces.iter().copied().map(Oid).collect(),
            begin: Lsn(begin),
            end: Lsn(begin + 48),
        }
    }

    /// Every database exists, but those in `gone`.
    fn lost(
        events: &[WalEvent],
        changes: &[(DatabaseDirectory, u64)],
        gone: &[u32],
    ) -> Option<(u32, u64, LossReason)> {
        let changes = changes.iter().map(|(at, lsn)| (*at, Lsn(*lsn))).collect();
        lost_copy(events, &changes, &|oid| !gone.contains(&oid.0))
            .map(|lost| (lost.database.0, lost.record.0, lost.reason))
    }

    const AT_HOME: (u32, u32) = (SHOP, DEFAULT);
    const COPIED: (u32, u32) = (COPY, DEFAULT);

    #[test]
    fn a_copy_of_what_stayed_as_it_was_is_made_again() {
        let made = [copy(AT_HOME, COPIED, 100)];
        let shop = directory(SHOP, DEFAULT);
        assert_eq!(lost(&made, &[], &[]), None);
        // Earlier changes are in WAL, and so are changes of the copy.
        assert_eq!(lost(&made, &[(shop, 99)], &[]), None);
        assert_eq!(lost(&made, &[(directory(COPY, DEFAULT), 500)], &[]), None);
        // A table dropped from this directory may be told by the catalog in another one.
        assert_eq!(
            lost(&made, &[(directory(SHOP, FAR), 500)], &[]),
            Some((COPY, 100, LossReason::SourceChanged(Lsn(500))))
        );
        assert_eq!(
            lost(&made, &[(shop, 101)], &[]),
            Some((COPY, 100, LossReason::SourceChanged(Lsn(101))))
        );
    }

    #[test]
    fn a_copy_of_what_was_dropped_is_lost() {
        let found = Some((COPY, 100, LossReason::SourceDropped));
        let mut made = vec![copy(AT_HOME, COPIED, 100)];
        // The primary removes the files first, and writes the record later.
        assert_eq!(lost(&made, &[], &[SHOP]), found);
        made.push(dropped(SHOP, &[DEFAULT], 200));
        assert_eq!(lost(&made, &[], &[SHOP]), found);
        assert_eq!(lost(&made, &[], &[]), found);
        // Nobody wants it when it was dropped itself.
        made.push(dropped(COPY, &[DEFAULT], 300));
        assert_eq!(lost(&made, &[], &[SHOP, COPY]), None);
    }

    #[test]
    fn a_database_that_was_moved_is_lost_wherever_it_ended() {
        let away = (SHOP, FAR);
        let mut moved = vec![copy(AT_HOME, away, 100), dropped(SHOP, &[DEFAULT], 200)];
        let found = Some((SHOP, 100, LossReason::Moved));
        assert_eq!(lost(&moved[..1], &[], &[]), found);
        assert_eq!(lost(&moved, &[], &[]), found);
        // And back again.
        moved.extend([copy(away, AT_HOME, 300), dropped(SHOP, &[FAR], 400)]);
        assert_eq!(lost(&moved, &[], &[]), found);
        moved.push(dropped(SHOP, &[DEFAULT], 500));
        assert_eq!(lost(&moved, &[], &[SHOP]), None);
    }

    #[test]
    fn a_copy_of_what_came_in_wal_itself_is_made_again_if_nothing_changed_since() {
        let logged = WalEvent::DatabaseCreate {
            database: Oid(SHOP),
            tablespace: Oid(DEFAULT),
            begin: Lsn(50),
            end: Lsn(90),
        };
        let dropped = dropped(SHOP, &[DEFAULT], 200);
        for target in [COPIED, (SHOP, FAR)] {
            let made = [logged.clone(), copy(AT_HOME, target, 100), dropped.clone()];
            assert_eq!(lost(&made, &[], &[]), None);
            assert_eq!(
                lost(&made, &[(directory(SHOP, DEFAULT), 150)], &[]),
                Some((target.0, 100, LossReason::SourceChanged(Lsn(150))))
            );
        }
    }

    #[test]
    fn a_copy_of_a_copy_is_what_the_first_is() {
        let chain = |last| {
            [
                copy(AT_HOME, COPIED, 100),
                copy(COPIED, (SECOND, DEFAULT), 200),
                last,
            ]
        };
        let changed = [(directory(COPY, DEFAULT), 900)];
        let made = chain(dropped(COPY, &[DEFAULT], 300));
        // The first copy comes from WAL: what happened to it later does not matter.
        assert_eq!(lost(&made, &changed, &[COPY]), None);
        // But what the first lacks, the second lacks too, though the first is gone.
        assert_eq!(
            lost(&made, &[(directory(SHOP, DEFAULT), 150)], &[COPY]),
            Some((COPY, 100, LossReason::SourceChanged(Lsn(150))))
        );
    }

    #[test]
    fn a_database_is_named_in_the_message() {
        let name = |oid: Oid| (oid.0 == SHOP).then(|| "shop".to_owned());
        let lost = |reason| {
            let lost = LostCopy {
                database: Oid(COPY),
                source: Oid(SHOP),
                record: Lsn(0x100),
                reason,
            };
            lost.error(&name).with_causes()
        };
        let text = lost(LossReason::SourceChanged(Lsn(0x200)));
        assert!(
            text.contains("database 16385 was created as a copy of database \"shop\""),
            "{text}"
        );
        assert!(text.contains("at 0/200"), "{text}");
        assert!(text.contains("at 0/100"), "{text}");
        let text = lost(LossReason::SourceDropped);
        assert!(text.contains("database \"shop\" was dropped"), "{text}");
    }
}
