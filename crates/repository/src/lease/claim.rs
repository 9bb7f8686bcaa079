//! Claims: a lease on stores that ignore the conditions of writes.
//!
//! Each contender first looks whether a live claim is there. If not, it creates one of its own under a unique name
//! (`<cluster>/claims/<token>-<renewal>-<random>`), waits until everybody who did the same at the same time must have shown up,
//! and looks again: among those, the oldest holds and the others withdraw. A claim is renewed by creating the next one
//! and deleting the one before, so that no object is ever changed.

use jiff::Timestamp;

use super::record::{Judgement, Record};
use super::{LeaseError, LeaseOptions, held, pause};
use crate::store::{Key, Store, StoreError, list_all};

pub(super) fn acquire(
    store: &dyn Store,
    folder: &Key,
    what: &str,
    options: &LeaseOptions,
) -> Result<(Record, Key), LeaseError> {
    let claims = folder.join("claims")?;
    let mut generation = 1;
    for (key, found) in records(store, &claims)? {
        generation = generation.max(found.generation + 1);
        // Doubt counts as life: with claims there is nothing to take over, only to wait for.
        if found.judge(Timestamp::now()) != Judgement::Dead {
            return Err(held(folder, found));
        }
        store.delete(&key)?;
    }
    let mut record = Record::new(what, options.ttl, generation);
    let key = place(&claims, &record)?;
    store.create(&key, record.to_bytes())?;
    pause(options.claim_settle);

    let mut there = false;
    let mut older = None;
    let others = records(store, &claims);
    for (_, found) in others.inspect_err(|_| drop(store.delete(&key)))? {
        if found.token == record.token {
            there = true;
        } else if found.judge(Timestamp::now()) != Judgement::Dead
            && (found.acquired_at, &found.token) < (record.acquired_at, &record.token)
        {
            older = Some(found);
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
    let key = renew(store, &key, record_renewed(&mut record))?;
    Ok((record, key))
}

fn record_renewed(record: &mut Record) -> &Record {
    record.renew();
    record
}

/// Puts a renewed record in place of the claim `key`; returns its key.
pub(super) fn renew(store: &dyn Store, key: &Key, record: &Record) -> Result<Key, StoreError> {
    let claims = key
        .as_str()
        .strip_suffix(&format!("/{}", key.name()))
        .unwrap_or_default();
    if !store.size(key).map(|_| true).or_else(|error| {
        if error.is_not_found() {
            Ok(false)
        } else {
            Err(error)
        }
    })? {
        // Deleted by somebody who took us for dead.
        return Err(StoreError::Conflict {
            key: key.clone(),
            location: store.location().clone(),
        });
    }
    let next = place(&Key::new(claims)?, record)?;
    store.create(&next, record.to_bytes())?;
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

/// All claims. One that disappears while it is read was withdrawn or renewed; a renewed one shows up under its next
/// name in the same or the next listing, and its holder's own look finds us.
fn records(store: &dyn Store, claims: &Key) -> Result<Vec<(Key, Record)>, LeaseError> {
    let mut found = Vec::new();
    for object in list_all(store, claims.as_str())? {
        match store.get(&object.key) {
            Ok(content) => {
                let record = Record::parse(&object.key, &content)?;
                found.push((object.key, record));
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}
