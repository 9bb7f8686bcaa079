//! Who works on a cluster now: one at a time, and the next one when that one is gone.
//!
//! The lease is one small object, `<cluster>/lease.json`, changed by conditional writes only. It names its holder, is
//! renewed while the holder works, and expires when it is not. Nothing's correctness rests on it alone: the names of
//! objects are unique and a backup is committed by one conditional write, so two holders would waste work, not spoil
//! it. [`Lease::still_held`] lets whoever lost it notice before the commit.
//!
//! Stores that ignore the conditions of writes ([`crate::conditional_writes`]) use claims instead: see [`claim`].

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::store::{InvalidKey, Key, ObjectVersion, Store, StoreError};

mod claim;
mod record;

pub use record::Holder;
use record::{Judgement, Record};

/// How long a lease lives without being renewed.
pub const DEFAULT_TTL: Duration = Duration::from_secs(60);

/// How to acquire a lease.
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    /// How long the lease lives without being renewed; it is renewed three times as often.
    pub ttl: Duration,
    /// Whether the store honours the conditions of writes; else claims are used.
    pub conditional_writes: bool,
    /// How long contenders wait for each other's claims to show up in listings. Used with claims only.
    pub claim_settle: Duration,
}

impl Default for LeaseOptions {
    fn default() -> LeaseOptions {
        LeaseOptions {
            ttl: DEFAULT_TTL,
            conditional_writes: true,
            claim_settle: Duration::from_secs(3),
        }
    }
}

/// Why a lease is not ours.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// Somebody else works on the cluster.
    #[error(
        "a {holder} works on cluster \"{cluster}\" since {since} (its lease expires at {expires})"
    )]
    Held {
        /// The cluster's folder.
        cluster: String,
        /// Who.
        holder: Box<Holder>,
        /// Since when.
        since: Timestamp,
        /// When the lease ends unless it is renewed, by the holder's clock.
        expires: Timestamp,
    },
    /// The lease was ours and is not any more.
    #[error("the lease of cluster \"{cluster}\" was lost: {reason}")]
    Lost {
        /// The cluster's folder.
        cluster: String,
        /// How.
        reason: String,
    },
    /// A newer leeward wrote it.
    #[error(
        "the lease \"{key}\" has format version {found}, and this version of leeward knows up to {known}"
    )]
    NewerFormat {
        /// The object.
        key: Key,
        /// The version found.
        found: u64,
        /// The highest version known.
        known: u64,
    },
    /// Somebody writes it, and it makes no sense.
    #[error("the lease \"{key}\" cannot be read, and somebody renews it: {reason}")]
    Unreadable {
        /// The object.
        key: Key,
        /// What is wrong with it.
        reason: String,
    },
    /// It cannot be put into words.
    #[error("could not write the lease \"{key}\": {reason}")]
    Unwritable {
        /// The object.
        key: Key,
        /// Why.
        reason: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster's name names no folder.
    #[error(transparent)]
    InvalidCluster(#[from] InvalidKey),
}

impl LeaseError {
    /// What to do about it, in one sentence, where there is something to say.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            LeaseError::Held { .. } => {
                Some("wait for it to end; a holder that died loses the lease by itself")
            }
            LeaseError::Lost { .. } => Some("nothing was committed; start again"),
            LeaseError::NewerFormat { .. } => {
                Some("use the version of leeward that wrote it, or a later one")
            }
            LeaseError::Unreadable { .. } => {
                Some("find out who writes it: every holder renews it three times a minute")
            }
            LeaseError::Unwritable { .. } => None,
            LeaseError::Store(error) => error.hint(),
            LeaseError::InvalidCluster(_) => None,
        }
    }
}

/// A wait for the holder of a lease that may be dead.
#[derive(Debug)]
pub struct LeaseWait<'a> {
    /// The holder; `None` when its record cannot be read.
    pub holder: Option<&'a Holder>,
    /// After so much more time it is taken over, unless it is renewed.
    pub left: Duration,
}

/// The function that is told of waits.
pub type LeaseObserver<'a> = &'a dyn Fn(&LeaseWait<'_>);

/// The interval at which a lease is checked for renewal, and the rest of the wait is told.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The right to work on a cluster. Renewed in the background; released when dropped.
#[derive(Debug)]
pub struct Lease {
    shared: Arc<Shared>,
    renewer: Option<(Sender<()>, JoinHandle<()>)>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    cluster: String,
    state: Mutex<State>,
    /// Held while the record is on its way to the store and the state does not know it yet.
    renewing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    record: Record,
    place: Place,
    /// When the last renewal that succeeded was begun, on this process's own clock.
    renewed: Instant,
    lost: Option<String>,
}

/// Where the record is kept.
#[derive(Debug)]
enum Place {
    /// In one object that is replaced.
    Object { key: Key, version: ObjectVersion },
    /// In a claim of our own.
    Claim { key: Key },
}

impl Lease {
    /// Acquires the lease of a cluster for `what` ("backup", "prune"), and removes what dead writers left in the
    /// cluster's folder. Takes it over from a holder that is known to be dead or whose lease has expired long ago. Where
    /// clocks may disagree, or its record cannot be read, watches for one time to live whether it is still renewed, and
    /// tells `observe` so about once a second.
    ///
    /// # Errors
    /// [`LeaseError::Held`] when somebody else has it.
    pub fn acquire(
        store: Arc<dyn Store>,
        cluster: &str,
        what: &str,
        options: &LeaseOptions,
        observe: LeaseObserver<'_>,
    ) -> Result<Lease, LeaseError> {
        let folder = Key::new(cluster)?;
        let Acquired {
            record,
            place,
            renewed,
        } = if options.conditional_writes {
            acquire_object(&*store, &folder, what, options, observe)?
        } else {
            claim::acquire(&*store, &folder, what, options, observe)?
        };
        // Only a courtesy to the file system: what cannot be removed does no harm.
        let _ = store.remove_leftovers(cluster);
        let shared = Arc::new(Shared {
            store,
            cluster: cluster.to_owned(),
            state: Mutex::new(State {
                record,
                place,
                renewed,
                lost: None,
            }),
            renewing: Mutex::new(()),
        });
        let (stop, stopped) = channel();
        let renewing = shared.clone();
        let interval = options.ttl / 3;
        let thread = std::thread::Builder::new()
            .name("lease".to_owned())
            .spawn(move || {
                let mut wait = interval;
                while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(wait) {
                    // After a failure, sooner: each try may be the last one in time.
                    wait = if renewing.renew() {
                        interval
                    } else {
                        interval / 4
                    };
                }
            });
        let mut lease = Lease {
            shared,
            renewer: None,
        };
        match thread {
            Ok(thread) => lease.renewer = Some((stop, thread)),
            // Without renewal it would be lost in the middle of the work; dropping it releases it.
            Err(error) => {
                return Err(LeaseError::Lost {
                    cluster: cluster.to_owned(),
                    reason: format!("could not start the thread that renews it: {error}"),
                });
            }
        }
        Ok(lease)
    }

    /// The lease's generation, which grows by one with each holder.
    pub fn generation(&self) -> u64 {
        self.shared.state().record.generation
    }

    /// Makes sure, by asking the store, that the lease is still ours. To be called right before a commit.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] when somebody took it over or it could not be renewed in time.
    pub fn still_held(&self) -> Result<(), LeaseError> {
        self.shared.still_held()
    }

    /// Gives the lease back, so that the next one need not wait for it to expire.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] when it was not ours any more; the store's errors.
    pub fn release(mut self) -> Result<(), LeaseError> {
        self.stop_renewing();
        self.shared.release()
    }

    fn stop_renewing(&mut self) {
        if let Some((stop, thread)) = self.renewer.take() {
            drop(stop);
            // A panic of the renewer means no renewal, which the record shows by itself.
            let _ = thread.join();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.renewer.is_some() {
            self.stop_renewing();
            // It expires by itself if this fails.
            let _ = self.shared.release();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is written in single steps, so a panic elsewhere cannot leave it half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self, reason: impl Into<String>) -> LeaseError {
        LeaseError::Lost {
            cluster: self.cluster.clone(),
            reason: reason.into(),
        }
    }

    fn is_overdue(state: &State) -> bool {
        state.renewed.elapsed() >= state.record.ttl()
    }

    /// Renews the record; whether that worked.
    fn renew(&self) -> bool {
        let _renewing = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        // The store is asked without the state's lock, because it may take long, and `still_held` must not wait for it.
        let (mut record, place) = {
            let state = self.state();
            if state.lost.is_some() {
                return false;
            }
            let place = match &state.place {
                Place::Object { key, version } => Place::Object {
                    key: key.clone(),
                    version: version.clone(),
                },
                Place::Claim { key } => Place::Claim { key: key.clone() },
            };
            (state.record.clone(), place)
        };
        let begun = Instant::now();
        record.renew();
        let renewed = match place {
            Place::Object { key, version } => record.encode(&key).and_then(|text| {
                let version = self.store.replace(&key, text, &version)?;
                Ok(Place::Object { key, version })
            }),
            Place::Claim { key } => {
                claim::renew(&*self.store, &key, &record).map(|key| Place::Claim { key })
            }
        };
        let mut state = self.state();
        match renewed {
            Ok(place) => {
                state.place = place;
                state.record = record;
                state.renewed = begun;
                true
            }
            Err(LeaseError::Store(StoreError::Conflict { .. })) => {
                state.lost = Some("somebody else took it over".to_owned());
                false
            }
            Err(_) => false,
        }
    }

    fn still_held(&self) -> Result<(), LeaseError> {
        let (key, token, renewals) = {
            let state = self.state();
            if let Some(reason) = &state.lost {
                return Err(self.lost(reason.clone()));
            }
            if Shared::is_overdue(&state) {
                return Err(self.lost("it could not be renewed in time"));
            }
            let key = match &state.place {
                Place::Object { key, .. } | Place::Claim { key } => key.clone(),
            };
            (key, state.record.token.clone(), state.record.renewals)
        };
        let found = match self.store.get(&key) {
            Ok(content) => Record::decode(&key, &content)?,
            Err(error) if error.is_not_found() => {
                // A claim moves on with each renewal: let one that is under way come to its end, then ask where it is now.
                drop(self.renewing.lock().unwrap_or_else(PoisonError::into_inner));
                if self.state().record.renewals != renewals {
                    return self.still_held();
                }
                return Err(self.lost("it was deleted"));
            }
            Err(error) => return Err(error.into()),
        };
        match found {
            Ok(found) if found.token == token && !found.released => {}
            Ok(found) => return Err(self.lost(format!("a {} took it over", found.holder))),
            Err(reason) => return Err(self.lost(format!("it was overwritten: {reason}"))),
        }
        // Asking took time, too.
        if Shared::is_overdue(&self.state()) {
            return Err(self.lost("it could not be renewed in time"));
        }
        Ok(())
    }

    fn release(&self) -> Result<(), LeaseError> {
        let state = self.state();
        if let Some(reason) = &state.lost {
            return Err(self.lost(reason.clone()));
        }
        match &state.place {
            // Replaced, not deleted: a deletion has no condition, and might hit the next holder's lease.
            Place::Object { key, version } => {
                let mut record = state.record.clone();
                record.released = true;
                match self.store.replace(key, record.encode(key)?, version) {
                    Ok(_) => Ok(()),
                    Err(StoreError::Conflict { .. }) => {
                        Err(self.lost("somebody else took it over"))
                    }
                    Err(error) => Err(error.into()),
                }
            }
            Place::Claim { key } => Ok(self.store.delete(key)?),
        }
    }
}

/// A lease that was just acquired.
struct Acquired {
    record: Record,
    place: Place,
    /// Before the record was written, on this process's own clock.
    renewed: Instant,
}

fn acquire_object(
    store: &dyn Store,
    folder: &Key,
    what: &str,
    options: &LeaseOptions,
    observe: LeaseObserver<'_>,
) -> Result<Acquired, LeaseError> {
    /// Each lost round means that somebody else won one, and that one is then found as the holder.
    const ROUNDS: u32 = 100;
    let key = folder.join("lease.json")?;
    let mut watched: Option<ObjectVersion> = None;
    for _ in 0..ROUNDS {
        let Some((content, version)) = store.get_versioned(&key)? else {
            let renewed = Instant::now();
            let record = Record::new(what, options.ttl, 1);
            match store.create(&key, record.encode(&key)?) {
                // Read back for its version, which a creation does not return.
                Ok(()) => match store.get_versioned(&key)? {
                    Some((content, version))
                        if Record::decode(&key, &content)?
                            .is_ok_and(|found| found.token == record.token) =>
                    {
                        return Ok(Acquired {
                            record,
                            place: Place::Object { key, version },
                            renewed,
                        });
                    }
                    _ => continue,
                },
                Err(StoreError::AlreadyExists { .. }) => continue,
                Err(error) => return Err(error.into()),
            }
        };
        let found = Record::decode(&key, &content)?;
        let state = found.as_ref().map(|found| found.judge(Timestamp::now()));
        let generation = match (&found, state) {
            (Ok(found), Ok(Judgement::Alive)) => return Err(held(folder, found.clone())),
            (Ok(found), Ok(Judgement::Dead)) => found.generation,
            _ if watched.as_ref() == Some(&version) => {
                found.as_ref().map_or(0, |found| found.generation)
            }
            _ => {
                let same = || {
                    Ok(store
                        .get_versioned(&key)?
                        .is_some_and(|(_, now)| now == version))
                };
                if watch(&found, options, observe, &same)? {
                    watched = Some(version);
                } else if let Some((content, _)) = store.get_versioned(&key)? {
                    // It lives, whatever its clock says, or it was released meanwhile.
                    match Record::decode(&key, &content)? {
                        Ok(found) if found.released => {}
                        Ok(found) => return Err(held(folder, found)),
                        Err(reason) => return Err(LeaseError::Unreadable { key, reason }),
                    }
                }
                continue;
            }
        };
        let renewed = Instant::now();
        let record = Record::new(what, options.ttl, generation.saturating_add(1));
        match store.replace(&key, record.encode(&key)?, &version) {
            Ok(version) => {
                return Ok(Acquired {
                    record,
                    place: Place::Object { key, version },
                    renewed,
                });
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(LeaseError::Lost {
        cluster: folder.to_string(),
        reason: format!("{ROUNDS} others took it, one after the other"),
    })
}

fn held(folder: &Key, record: Record) -> LeaseError {
    LeaseError::Held {
        cluster: folder.to_string(),
        holder: Box::new(record.holder),
        since: record.acquired_at,
        expires: record.expires_at,
    }
}

/// Returns whether a record stays the same for its time to live, on our own clock. One that cannot be read is given ours.
fn watch(
    found: &std::result::Result<Record, String>,
    options: &LeaseOptions,
    observe: LeaseObserver<'_>,
    is_same: &dyn Fn() -> Result<bool, LeaseError>,
) -> Result<bool, LeaseError> {
    let found = found.as_ref().ok();
    let time = found.map_or(options.ttl, Record::ttl);
    let begun = Instant::now();
    while let Some(left) = time
        .checked_sub(begun.elapsed())
        .filter(|left| !left.is_zero())
    {
        observe(&LeaseWait {
            holder: found.map(|found| &found.holder),
            left,
        });
        pause(
            (time / 20)
                .clamp(Duration::from_millis(10), LOOK_EVERY)
                .min(left),
        );
        if !is_same()? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Lets time pass while others act on the store, which tells nobody when it changes.
fn pause(time: Duration) {
    let begun = Instant::now();
    while let Some(left) = time
        .checked_sub(begun.elapsed())
        .filter(|left| !left.is_zero())
    {
        std::thread::park_timeout(left);
    }
}
