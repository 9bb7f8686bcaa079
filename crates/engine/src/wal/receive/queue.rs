//! WAL between the stream and the store: a few WAL segments in unlinked files, the newest one still being filled.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use leeward_pgformat::{Lsn, TimelineId, WalSegmentName, WalSegmentSize};

use super::bell::Bell;
use super::buffer::{Buffer, Due, Job, compare};
use crate::error::{Error, Result};

/// WAL segments under way at most, the one being filled among them.
const SEGMENTS_LIMIT: usize = 4;

#[derive(Debug)]
enum Item {
    Buffer(Buffer),
    History { name: String, content: Vec<u8> },
}

/// Numbers for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Whole WAL segments stored, or found stored already.
    pub segments: u64,
    /// Pieces stored.
    pub pieces: u64,
    /// Bytes of WAL received.
    pub received_bytes: u64,
}

#[derive(Debug)]
struct State {
    items: VecDeque<Item>,
    /// Where what comes next begins, while nothing is under way: all before is stored.
    base: Lsn,
    /// What the archive's pieces hold of a WAL segment that comes later.
    ahead: Option<(WalSegmentName, File, u64)>,
    /// Somebody waits for what was received: pieces do not wait for company.
    hurry: bool,
    stopping: bool,
    done: bool,
    failure: Option<Error>,
    /// Since when the store has failed.
    trouble: Option<Instant>,
    /// The server takes no sessions any more: it wants to stop.
    leaving: bool,
    notices: Vec<String>,
    tally: Tally,
    /// WAL segments that are whole in the archive and whose pieces are not needed any more.
    leftovers: VecDeque<WalSegmentName>,
}

impl State {
    /// What the archive's pieces hold of this WAL segment, as far as that was said beforehand.
    fn expected(&mut self, segment: WalSegmentName) -> Option<(File, u64)> {
        self.ahead
            .take_if(|(of, ..)| *of == segment)
            .map(|(_, file, length)| (file, length))
    }
}

/// The queue, shared by the threads of a receiver.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    bell: Bell,
    size: WalSegmentSize,
    folder: PathBuf,
    interval: Duration,
}

impl Queue {
    pub(super) fn new(
        bell: Bell,
        size: WalSegmentSize,
        folder: PathBuf,
        interval: Duration,
    ) -> Queue {
        Queue {
            state: Mutex::new(State {
                items: VecDeque::new(),
                base: Lsn::INVALID,
                ahead: None,
                hurry: false,
                stopping: false,
                done: false,
                failure: None,
                trouble: None,
                leaving: false,
                notices: Vec::new(),
                tally: Tally::default(),
                leftovers: VecDeque::new(),
            }),
            changed: Condvar::new(),
            bell,
            size,
            folder,
            interval,
        }
    }

    /// Spawns a thread that works on the queue. Its panic ends the receiver, as a failure does.
    pub(super) fn spawn(
        self: &Arc<Self>,
        name: &'static str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let queue = Arc::clone(self);
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                queue.fail(Error::failed(format!("the thread \"{name}\" panicked")));
            }
        });
        thread.map(drop)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The size of WAL segments.
    pub(super) fn segment_size(&self) -> WalSegmentSize {
        self.size
    }

    /// An unlinked file.
    pub(super) fn file(&self) -> Result<File> {
        tempfile::tempfile_in(&self.folder).map_err(|e| self.broken("create", e))
    }

    fn broken(&self, action: &str, error: io::Error) -> Error {
        Error::failed(format!(
            "could not {action} a temporary file in \"{}\"",
            self.folder.display()
        ))
        .because(error)
        .hint("Name another directory, with room for five WAL segments, by --buffer.")
    }

    // What the stream's thread does.

    /// What comes next begins with `segment`; the archive has the bytes of `expected` of it, from its beginning.
    pub(super) fn begin(
        &self,
        segment: WalSegmentName,
        expected: Option<(File, u64)>,
    ) -> Result<()> {
        let file = Arc::new(self.file()?);
        self.push(Buffer::new(segment, file, expected), None);
        Ok(())
    }

    /// What comes next begins with `held`, which the archive has as a whole and which must be the same; of the WAL segment
    /// behind it the archive has the bytes of `expected`, from its beginning.
    pub(super) fn begin_before(
        &self,
        held: WalSegmentName,
        expected: Option<(File, u64)>,
    ) -> Result<()> {
        let file = Arc::new(self.file()?);
        let ahead = expected.map(|(file, length)| (held.next(), file, length));
        self.push(Buffer::of_held(held, file), ahead);
        Ok(())
    }

    fn push(&self, buffer: Buffer, ahead: Option<(WalSegmentName, File, u64)>) {
        let mut state = self.lock();
        if let Some(Item::Buffer(before)) = state.items.back_mut() {
            before.ended = true;
        }
        state.items.push_back(Item::Buffer(buffer));
        state.ahead = ahead;
        drop(state);
        self.changed.notify_all();
    }

    /// Goes on with the WAL segment behind one that is full, unless the store's thread has done so.
    fn follow(&self, full: WalSegmentName) -> Result<()> {
        let file = Arc::new(self.file()?);
        let mut state = self.lock();
        if let Some(Item::Buffer(before)) = state.items.back_mut()
            && before.segment == full
        {
            before.ended = true;
            let expected = state.expected(full.next());
            state
                .items
                .push_back(Item::Buffer(Buffer::new(full.next(), file, expected)));
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Whether more WAL may be taken from the server.
    pub(super) fn has_room(&self) -> bool {
        let state = self.lock();
        let open =
            matches!(state.items.back(), Some(Item::Buffer(b)) if b.filled < self.size.bytes());
        let count = state.items.len();
        count < SEGMENTS_LIMIT || (open && count == SEGMENTS_LIMIT)
    }

    /// Takes WAL that follows what came before, on the timeline of the WAL segment begun last.
    pub(super) fn append(&self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (segment, file, filled, expected) = self.open_buffer()?;
            let room = (self.size.bytes() - filled).min(bytes.len() as u64) as usize;
            let (now, later) = bytes.split_at(room);
            if let Some((expected, length)) = expected {
                compare(&expected, length, filled, now)
                    .map_err(|e| self.broken("read", e))?
                    .map_or(Ok(()), |at| Err(self.differs(segment, at)))?;
            }
            file.write_all_at(now, filled)
                .map_err(|e| self.broken("write", e))?;
            let mut state = self.lock();
            state.tally.received_bytes += room as u64;
            if let Some(Item::Buffer(buffer)) = state.items.back_mut() {
                buffer.filled += room as u64;
                if buffer.waiting_since.is_none() && buffer.filled > buffer.stored {
                    buffer.waiting_since = Some(Instant::now());
                }
            }
            drop(state);
            self.changed.notify_all();
            bytes = later;
        }
        Ok(())
    }

    /// The buffer to write to: the last one, or a new one behind it when that is full.
    fn open_buffer(&self) -> Result<Open> {
        let full = {
            let state = self.lock();
            let Some(Item::Buffer(buffer)) = state.items.back() else {
                return Err(Error::failed("WAL came although none was asked for"));
            };
            if buffer.filled < self.size.bytes() {
                let expected = buffer
                    .expected
                    .as_ref()
                    .filter(|(_, length)| buffer.filled < *length)
                    .map(|(file, length)| file.try_clone().map(|file| (file, *length)))
                    .transpose()
                    .map_err(|e| self.broken("read", e))?;
                let file = Arc::clone(&buffer.file);
                return Ok((buffer.segment, file, buffer.filled, expected));
            }
            buffer.segment
        };
        self.follow(full)?;
        self.open_buffer()
    }

    /// The timeline that is being received, and up to where; `None` when nothing is.
    pub(super) fn position(&self) -> Option<(TimelineId, Lsn)> {
        match self.lock().items.back() {
            Some(Item::Buffer(buffer)) if !buffer.ended => Some((
                buffer.segment.timeline,
                buffer.segment.start_lsn(self.size) + buffer.filled,
            )),
            _ => None,
        }
    }

    fn differs(&self, segment: WalSegmentName, at: u64) -> Error {
        let lsn = segment.start_lsn(self.size) + at;
        Error::new(
            crate::error::ErrorKind::Refused,
            format!(
                "the server sends other WAL than the archive's pieces of WAL segment {} hold, from LSN {lsn} on",
                segment.name(self.size)
            ),
        )
        .hint(
            "Nothing was overwritten. Two servers wrote the same timeline, or one of the two is damaged: compare them \
             before you remove the wrong pieces.",
        )
    }

    /// Nothing more will come of the WAL segment begun last: its timeline ended, or its server lost what follows.
    pub(super) fn end(&self) {
        if let Some(Item::Buffer(buffer)) = self.lock().items.back_mut() {
            buffer.ended = true;
        }
        self.changed.notify_all();
    }

    /// A timeline history file that goes before what comes next.
    pub(super) fn history(&self, name: String, content: Vec<u8>) {
        self.lock().items.push_back(Item::History { name, content });
        self.changed.notify_all();
    }

    /// Everything before this LSN is durable.
    pub(super) fn durable(&self) -> Lsn {
        let state = self.lock();
        state
            .items
            .iter()
            .filter_map(|item| match item {
                Item::Buffer(buffer) => {
                    Some(buffer.segment.start_lsn(self.size) + buffer.filled.min(buffer.stored))
                }
                Item::History { .. } => None,
            })
            .min()
            .unwrap_or(state.base)
    }

    /// Whether WAL that the archive has as a whole is still to be compared with what the server sends.
    pub(super) fn is_comparing(&self) -> bool {
        self.lock()
            .items
            .iter()
            .any(|item| matches!(item, Item::Buffer(buffer) if buffer.held))
    }

    /// What was received is wanted soon, or need not hurry any more.
    pub(super) fn hurry(&self, hurry: bool) {
        let mut state = self.lock();
        if state.hurry != hurry {
            state.hurry = hurry;
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Nothing more will come at all.
    pub(super) fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
    }

    /// Whether everything is stored, or the store's thread has given up.
    pub(super) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.items.iter().all(|item| match item {
            Item::Buffer(buffer) => {
                !buffer.ended
                    && buffer.filled < self.size.bytes()
                    && (buffer.held || buffer.filled <= buffer.stored)
            }
            Item::History { .. } => false,
        })
    }

    /// Takes away what a stream that will not go on has left behind it, once all of it is stored.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        state.items.clear();
        state.ahead = None;
    }

    /// Whether the store's thread has come to its end.
    pub(super) fn is_done(&self) -> bool {
        self.lock().done
    }

    /// How long the store has failed, if it does.
    pub(super) fn trouble(&self) -> Option<Duration> {
        self.lock().trouble.map(|since| since.elapsed())
    }

    /// Whether the server wants to stop, as far as is known.
    pub(super) fn is_server_leaving(&self) -> bool {
        self.lock().leaving
    }

    /// The server wants to stop, or is as usual.
    pub(super) fn set_server_leaving(&self, leaving: bool) {
        let changed = std::mem::replace(&mut self.lock().leaving, leaving) != leaving;
        if changed {
            self.bell.ring();
        }
    }

    /// What made the store's thread give up.
    pub(super) fn take_failure(&self) -> Option<Error> {
        self.lock().failure.take()
    }

    /// What people should know.
    pub(super) fn take_notices(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().notices)
    }

    /// Numbers for people.
    pub(super) fn tally(&self) -> Tally {
        self.lock().tally
    }

    // What the other threads do.

    /// Tells people something.
    pub(super) fn notice(&self, text: String) {
        self.lock().notices.push(text);
        self.bell.ring();
    }

    /// Waits for something to store.
    pub(super) fn job(&self) -> Job {
        let mut state = self.lock();
        loop {
            let hurry = state.hurry || state.stopping;
            let mut patience = None;
            match state.items.front_mut() {
                Some(Item::History { name, content }) => {
                    return Job::History {
                        name: name.clone(),
                        content: content.clone(),
                    };
                }
                Some(Item::Buffer(buffer)) => match buffer.due(self.size, hurry, self.interval) {
                    Due::Job(job) => return job,
                    Due::Nothing => {
                        let stored = buffer.filled.min(buffer.stored);
                        state.base = buffer.segment.start_lsn(self.size) + stored;
                        state.items.pop_front();
                        self.bell.ring();
                        continue;
                    }
                    Due::At(instant) => patience = instant,
                },
                None => {}
            }
            if state.stopping {
                return Job::Done;
            }
            state = match patience {
                Some(at) => {
                    let left = at.saturating_duration_since(Instant::now());
                    self.changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// The job is done, and durable.
    pub(super) fn done(&self, job: &Job) {
        let mut state = self.lock();
        match job {
            Job::History { .. } => {
                state.items.pop_front();
            }
            Job::Segment {
                segment,
                has_pieces,
                ..
            } => {
                state.tally.segments += 1;
                if *has_pieces {
                    state.leftovers.push_back(*segment);
                }
                let ended = matches!(state.items.pop_front(), Some(Item::Buffer(b)) if b.ended);
                // What follows has a buffer before this one is forgotten, and with it the timeline.
                if state.items.is_empty() && !ended {
                    let expected = state.expected(segment.next());
                    match tempfile::tempfile_in(&self.folder) {
                        Ok(file) => state.items.push_back(Item::Buffer(Buffer::new(
                            segment.next(),
                            Arc::new(file),
                            expected,
                        ))),
                        Err(error) => state.failure = Some(self.broken("create", error)),
                    }
                }
                state.base = segment.end_lsn(self.size);
            }
            Job::Piece { to, .. } => {
                state.tally.pieces += 1;
                if let Some(Item::Buffer(buffer)) = state.items.front_mut() {
                    buffer.stored = *to;
                    if buffer.filled == *to {
                        buffer.waiting_since = None;
                    }
                }
            }
            Job::Done => state.done = true,
        }
        drop(state);
        self.changed.notify_all();
        self.bell.ring();
    }

    /// The store failed, or works again. Whether that is news.
    pub(super) fn set_trouble(&self, failing: bool) -> Option<Duration> {
        let mut state = self.lock();
        let since = state.trouble.map(|since| since.elapsed());
        if failing {
            state.trouble.get_or_insert_with(Instant::now);
        } else {
            state.trouble = None;
        }
        since
    }

    /// Nothing can be stored any more, for this reason.
    pub(super) fn fail(&self, error: Error) {
        let mut state = self.lock();
        state.failure.get_or_insert(error);
        state.done = true;
        drop(state);
        self.changed.notify_all();
        self.bell.ring();
    }

    /// Waits, for `time` at most or until somebody wants to stop. Whether somebody does.
    pub(super) fn pause(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut state = self.lock();
        while !state.stopping && Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        state.stopping
    }

    /// Pieces of this WAL segment, which is whole in the archive, may go.
    pub(super) fn leave_over(&self, segment: WalSegmentName) {
        self.lock().leftovers.push_back(segment);
        self.changed.notify_all();
    }

    /// Waits for a WAL segment whose pieces may go; `None` at the end.
    pub(super) fn leftover(&self) -> Option<WalSegmentName> {
        let mut state = self.lock();
        loop {
            if let Some(segment) = state.leftovers.pop_front() {
                return Some(segment);
            }
            if state.done {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Where to write: the WAL segment, its file, how far it is filled, and what to compare with.
type Open = (WalSegmentName, Arc<File>, u64, Option<(File, u64)>);
