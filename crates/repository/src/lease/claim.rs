//! Claims: a lease on stores that ignore the conditions of writes.
//!
//! Each contender first looks whether a live claim is there. If not, it creates one of its own under a unique name
//! (`<cluster>/claims/<token>-<renewal>-<random>`), waits until everybody who did the same at the same time must have shown up,
//! and looks again: among those, the oldest holds and the others withdraw. A claim is renewed by creating the next one
//! and deleting the one before, so that no object is ever changed.

use std::time::Instant;

use jiff::Timestamp;

use super::record::{Judgement, Record};
use super::{Acquired, LeaseError, LeaseObserver, LeaseOptions, Place, held, pause, watch};
use crate::store::{Key, Store, StoreError, list_at_most};

/// The most claims that are looked at: there is one for each holder and contender.
const CLAIMS_LIMIT: usize = 1_000;

pub(super) fn acquire(
    store: &dyn Store,
    folder: &Key,
    what: &str,
    options: &LeaseOptions,
    observe: LeaseObserver<'_>,
) -> Result<Acquired, LeaseError> {
    let claims = folder.join("claims")?;
    let generation = clear(store, folder, &claims, options, observe)?;
    let mut record = Record::new(what, options.ttl, generation);
    let key = place(&claims, &record)?;
    store.create(&key, record.encode(&key)?)?;
    pause(options.claim_settle);

    let mut there = false;
    let mut older = None;
    let others = records(store, &claims);
    for (other, found) in others.inspect_err(|_| drop(store.delete(&key)))? {
        match found {
            Ok(found) if found.token == record.token => there = true,
            Ok(found) => {
                if found.judge(Timestamp::now()) != Judgement::Dead
                    && (found.acquired_at, &found.token) < (record.acquired_at, &record.token)
                {
                    older = Some(found);
                }
            }
            // It came after our look, so its writer lives.
            Err(reason) => {
                store.delete(&key)?;
                return Err(LeaseError::Unreadable { key: other, reason });
            }
        }
    }
    if let Some(older) = older {
        store.delete(&key)?;
        return Err(held(folder, older));
    }
    if !there {
        return Err(LeaseError::Lost {
            cluster: folder.to_string(),
            reason: "our claim disappeared".to_owned(),
        });
    }
    let renewed = Instant::now();
    record.renew();
    let key = renew(store, &key, &record)?;
    Ok(Acquired {
        record,
        place: Place::Claim { key },
        renewed,
    })
}

/// Deletes the claims of the dead, and returns the generation that follows theirs. What may be dead is watched.
fn clear(
    store: &dyn Store,
    folder: &Key,
    claims: &Key,
    options: &LeaseOptions,
    observe: LeaseObserver<'_>,
) -> Result<u64, LeaseError> {
    let mut generation: u64 = 1;
    for (key, found) in records(store, claims)? {
        if let Ok(found) = &found {
            generation = generation.max(found.generation.saturating_add(1));
            match found.judge(Timestamp::now()) {
                Judgement::Alive => return Err(held(folder, found.clone())),
                Judgement::Doubtful => {}
                Judgement::Dead => {
                    store.delete(&key)?;
                    continue;
                }
            }
        }
        let is_there = || match store.size(&key) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        };
        if watch(&found, options, observe, &is_there)? {
            store.delete(&key)?;
            continue;
        }
        // Renewed under its next name, or withdrawn.
        let token = key.name().split('-').next().unwrap_or_default();
        for (next, found) in records(store, claims)? {
            if next.name().split('-').next() == Some(token) {
                return Err(match found {
                    Ok(found) => held(folder, found),
                    Err(reason) => LeaseError::Unreadable { key: next, reason },
                });
            }
        }
    }
    Ok(generation)
}

/// Puts a renewed record in place of the claim `key`; returns its key.
pub(super) fn renew(store: &dyn Store, key: &Key, record: &Record) -> Result<Key, LeaseError> {
    let claims = key
        .as_str()
        .strip_suffix(&format!("/{}", key.name()))
        .unwrap_or_default();
    match store.size(key) {
        Ok(_) => {}
        // Deleted by somebody who took us for dead.
        Err(error) if error.is_not_found() => {
            return Err(LeaseError::Store(StoreError::Conflict {
                key: key.clone(),
                location: store.location().clone(),
            }));
        }
        Err(error) => return Err(error.into()),
    }
    let next = place(&Key::new(claims)?, record)?;
    store.create(&next, record.encode(&next)?)?;
    store.delete(key)?;
    Ok(next)
}

fn place(claims: &Key, record: &Record) -> Result<Key, StoreError> {
    // A renewal that failed halfway may have taken its name already.
    let tail = rand::random::<u32>();
    Ok(claims.join(&format!(
        "{}-{:08}-{tail:08x}",
        record.token, record.renewals
    ))?)
}

/// A claim's key, and its record or why that cannot be believed.
type Claim = (Key, std::result::Result<Record, String>);

/// All claims. One that disappears while it is read was withdrawn or renewed; a renewed one shows up under its next
/// name in the same or the next listing, and its holder's own look finds us.
fn records(store: &dyn Store, claims: &Key) -> Result<Vec<Claim>, LeaseError> {
    let mut found = Vec::new();
    for object in list_at_most(store, claims.as_str(), CLAIMS_LIMIT)? {
        match store.get(&object.key) {
            Ok(content) => {
                let record = Record::decode(&object.key, &content)?;
                found.push((object.key, record));
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}
