//! What the handles of a store share, and its group commit.
//!
//! ```text
//!  callers ──▶ lock: decide, fold, add to the filling group ──▶ unlock, wait for the group
//!                                  │ sealed
//!                                  ▼
//!              the writer, or a lone caller: write, one sync, publish, wake
//! ```
//! The state runs ahead of the disk: a verb is applied as soon as it is called, and answered when the
//! group that holds it is synced. What a verb saw of others lies in the same group or in one before, so
//! an answer never rests on what is not durable. After a failed write or sync nothing is answered any
//! more. If there is no space for a group, all that is not durable is taken back, by reading again what is.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    future::poll_fn,
    path::PathBuf,
    sync::{
        Arc, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::sync::watch;

use super::{
    compact::Locks,
    group::{Done, Filling, Group, Refused, Synced, poisoned},
    log::{
        Cursor, Log, Reader, Space,
        fault::{self, Fault},
    },
    moment::Moments,
    open::Origin,
    published::{Live, Reading},
    state::State,
    step::Step,
};
use crate::{
    error::{Error, ErrorKind, Result},
    fault::point,
    queue::QueueOptions,
    request::QueueName,
    sync::{Condvar, Mutex, MutexGuard},
};

pub(super) struct Core {
    pub(super) path: PathBuf,
    pub(super) reader: Reader,
    pub(super) space: Space,
    pub(super) origin: Origin,
    pub(super) defaults: QueueOptions,
    pub(super) lives: Mutex<BTreeMap<QueueName, Arc<Live>>>,
    pub(super) created: watch::Sender<u64>,
    pub(super) syncs: AtomicU64,
    pub(super) moments: Moments,
    pub(super) locks: Locks,
    inner: Mutex<Inner>,
    /// What the writer waits for.
    work: Condvar,
    /// Held while a group is written. Who holds `inner` never waits for it. `None` once the store is closed.
    pub(super) log: Mutex<Option<Log>>,
    poison: OnceLock<String>,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "they change one by one: who writes, who waits, what ended, what is known"
)]
pub(super) struct Inner {
    pub(super) state: State,
    pub(super) filling: Filling,
    /// Sealed groups that are not durable yet, the oldest first.
    pub(super) sealed: VecDeque<Arc<Group>>,
    /// Whether somebody is writing groups.
    busy: bool,
    pub(super) is_closed: bool,
    /// Buffers to fill.
    buffers: Vec<Vec<u8>>,
    /// What was logged since the last baseline.
    pub(super) since_baseline: u64,
    /// Bytes logged or no longer held, and groups, since the writer last looked what there is to tidy up.
    pub(super) since_look: (u64, u32),
    /// Whether the writer waits for its turn to add something.
    pub(super) waits_for_turn: bool,
    pub(super) lives: BTreeMap<u32, Arc<Live>>,
    /// The segment that is being carried away.
    pub(super) carrying: Option<u32>,
    /// Why the disk takes no more pushes, if so.
    pub(super) no_room: Option<String>,
    /// Whether a group follows the last one that says something, so that it is known to have been whole.
    pub(super) is_witnessed: bool,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.path, f)
    }
}

impl Core {
    pub(super) fn new(
        path: PathBuf,
        origin: Origin,
        defaults: QueueOptions,
        (state, filling): (State, Filling),
        (log, reader): (Log, Reader),
    ) -> Self {
        Self {
            path,
            origin,
            reader,
            space: log.space(),
            defaults,
            lives: Mutex::default(),
            created: watch::Sender::new(0),
            syncs: AtomicU64::new(0),
            moments: Moments::default(),
            locks: Locks::default(),
            inner: Mutex::new(Inner::new(state, filling)),
            work: Condvar::new(),
            log: Mutex::new(Some(log)),
            poison: OnceLock::new(),
        }
    }

    /// Shows every queue as it was found; says so of batches that are offered since their holders are gone.
    pub(super) fn publish_all(&self, offer_held: bool) -> Result<()> {
        let mut inner = self.lock()?;
        let queues: Vec<u32> = inner.state.queues.keys().copied().collect();
        for id in queues {
            if offer_held {
                Step::new(self, &mut inner, id).offer_held()?;
            }
            let Some(queue) = inner.state.queues.get_mut(&id) else {
                continue;
            };
            queue.options = self.defaults;
            let name: QueueName = queue.stored.name.parse()?;
            let live = Arc::new(Live::new(id, name.clone(), queue));
            inner.lives.insert(id, live.clone());
            self.lives().insert(name, live);
        }
        Ok(())
    }

    pub(super) fn closed(&self) -> Error {
        Error::closed(format!("the store {} was closed", self.path.display()))
    }

    /// Fails if nothing is answered any more.
    pub(super) fn check(&self) -> Result<()> {
        self.poison.get().map_or(Ok(()), |why| Err(poisoned(why)))
    }

    pub(super) fn poison(&self, why: String) {
        // The first reason is the one that counts.
        let _ = self.poison.set(why);
    }

    /// The state, unless a verb panicked over it.
    pub(super) fn lock(&self) -> Result<MutexGuard<'_, Inner>> {
        let inner = self.inner.lock().map_err(|_| {
            self.poison(PANICKED.into());
            poisoned(PANICKED)
        })?;
        // Under the lock: who comes after those who waited were told would wait for ever.
        self.check()?;
        Ok(inner)
    }

    pub(super) fn lives(&self) -> MutexGuard<'_, BTreeMap<QueueName, Arc<Live>>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies a verb to a queue, and answers once what it did and saw is durable.
    pub(super) async fn call<T>(
        self: &Arc<Self>,
        queue: u32,
        verb: impl FnOnce(&mut Step<'_>) -> Result<T>,
    ) -> Result<T> {
        let (value, ticket) = {
            let mut inner = self.lock()?;
            if inner.is_closed {
                return Err(self.closed());
            }
            let value = verb(&mut Step::new(self, &mut inner, queue));
            (value, self.ticket(&mut inner))
        };
        // An error, too, rests on what was seen, which may be taken back.
        if let Some(ticket) = ticket {
            ticket.wait().await?;
        }
        value
    }

    /// Looks at a queue, and answers at once: for what rests on nothing that is on its way to the disk.
    pub(super) fn look<T>(
        &self,
        queue: u32,
        verb: impl FnOnce(&Step<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut inner = self.lock()?;
        if inner.is_closed {
            return Err(self.closed());
        }
        verb(&Step::new(self, &mut inner, queue))
    }

    /// For a verb that has been applied: waits until what it did is durable.
    fn ticket(self: &Arc<Self>, inner: &mut Inner) -> Option<Ticket> {
        if inner.filling.is_empty() {
            // It changed nothing: what it saw may still be on its way to the disk.
            let done = inner.sealed.back()?.done.clone();
            return Some(Ticket { core: None, done });
        }
        inner.filling.callers += 1;
        let done = inner.filling.done.clone();
        let leads = !inner.busy && inner.filling.callers == 1;
        if !inner.busy && !leads {
            self.notify();
        }
        let core = leads.then(|| self.clone());
        Some(Ticket { core, done })
    }

    /// Sets the writer to work, if there is something to write.
    pub(super) fn notify(&self) {
        if !fault::is(Fault::ForgetTheWriter) {
            self.work.notify_one();
        }
    }

    /// Writes the group of a lone caller on its own thread; false if it is on its way already, or never will be.
    fn lead(&self, done: &Arc<Done>) -> bool {
        {
            let Ok(mut inner) = self.lock() else {
                return false;
            };
            let alone = !(inner.busy || inner.waits_for_turn)
                && inner.sealed.is_empty()
                && inner.filling.callers == 1
                && Arc::ptr_eq(&inner.filling.done, done);
            if !alone {
                return false;
            }
            inner.busy = true;
            inner.seal();
        }
        self.write_sealed();
        true
    }

    /// Writes all groups that are sealed. Whoever calls this has set `busy`, which ends with it.
    fn write_sealed(&self) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let next = match self.lock() {
                Ok(mut inner) => {
                    let next = inner.sealed.front().cloned();
                    inner.busy = next.is_some();
                    let is_awaited = inner.is_closed || inner.wants_writer();
                    if next.is_none() && (!inner.filling.is_empty() || is_awaited) {
                        self.work.notify_one();
                    }
                    next
                }
                Err(_) => None,
            };
            let Some(group) = next else { return };
            let written = match (&mut *log, self.check()) {
                (_, Err(error)) => Err(error),
                (None, _) => Err(self.closed()),
                (Some(log), _) => group.write(log),
            };
            match (written, &*log) {
                (Err(full), Some(log)) if full.kind() == ErrorKind::QueueFull => {
                    drop(group);
                    self.take_back(log, &full.to_string());
                }
                (written, _) => self.conclude(group, written),
            }
        }
    }

    /// Publishes what a group did, and wakes those who wait for it.
    fn conclude(&self, group: Arc<Group>, written: Result<()>) {
        let done = group.done.clone();
        if let Err(error) = written {
            self.poison(error.to_string());
            self.give_up();
            return;
        }
        self.syncs.fetch_add(1, Ordering::Relaxed);
        if fault::is(Fault::AnswerBeforePublishing) {
            done.set(Ok(()));
        }
        for (live, reading, wakes) in &group.readings {
            live.publish(reading.clone());
            if *wakes {
                live.changed();
            }
        }
        point("journal.published");
        let bytes = group.bytes();
        if let Ok(mut inner) = self.lock() {
            inner.sealed.pop_front();
            inner.since_baseline += bytes;
            inner.since_look.0 += bytes;
            inner.since_look.1 += 1;
            let buffer = Arc::into_inner(group).and_then(Group::into_buffer);
            if inner.buffers.len() < KEPT_BUFFERS {
                inner.buffers.extend(buffer);
            }
        }
        done.set(Ok(()));
        point("journal.answered");
    }

    /// Undoes all that is not durable, of which nothing was written, and tells those who wait.
    fn take_back(&self, log: &Log, full: &str) {
        let Ok(mut inner) = self.lock() else {
            self.give_up();
            return;
        };
        let state = match self.origin.read_again(log.cursor()) {
            Ok(state) => state,
            Err(error) => {
                drop(inner);
                self.poison(format!("{full}; then the log can't be read: {error}"));
                self.give_up();
                return;
            }
        };
        let waiting = inner.begin_again(state, log.cursor(), full);
        drop(inner);
        for done in waiting {
            if !fault::is(Fault::ForgetTheRefused) {
                done.set(Err(Refused::Full(full.to_owned())));
            }
        }
    }

    /// Tells everybody who waits that the store is poisoned.
    pub(super) fn give_up(&self) {
        let why = self.poison.get().cloned().unwrap_or_default();
        let waiting = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.busy = false;
            inner.waiting()
        };
        for done in waiting {
            if !fault::is(Fault::ForgetTheWaiting) {
                done.set(Err(Refused::Poisoned(why.clone())));
            }
        }
        self.lives().values().for_each(|live| live.changed());
        self.work.notify_one();
    }

    /// The writer: waits for groups and writes them, until the store is closed. `tend` is called between them.
    pub(super) fn serve(&self, mut tend: impl FnMut(&Self, bool)) {
        'serve: loop {
            let is_idle = {
                let Ok(mut inner) = self.lock() else {
                    self.give_up();
                    return;
                };
                let mut is_idle = false;
                while inner.busy || (inner.filling.is_empty() && !inner.wants_writer()) {
                    if inner.is_closed && !inner.busy {
                        return;
                    }
                    let waited = self.work.wait_timeout(inner, IDLE_AFTER);
                    let Ok((back, timeout)) = waited else {
                        self.poison(PANICKED.into());
                        self.give_up();
                        return;
                    };
                    inner = back;
                    if self.check().is_err() {
                        continue 'serve;
                    }
                    if timeout.timed_out() && !inner.busy && inner.filling.is_empty() {
                        is_idle = true;
                        break;
                    }
                }
                if !is_idle {
                    inner.busy = true;
                    inner.seal();
                }
                is_idle
            };
            if !is_idle {
                self.write_sealed();
            }
            if is_idle || self.lock().is_ok_and(|inner| inner.is_to_be_tended()) {
                tend(self, is_idle);
            }
        }
    }

    /// Adds something to the log and has it synced, on this thread, between the groups of others.
    ///
    /// # Errors
    /// `Poisoned`; `Unavailable` if it was taken back for want of space.
    pub(super) fn log_now(&self, add: impl FnOnce(&mut Inner)) -> Result<()> {
        let mut inner = self.lock()?;
        while inner.busy {
            inner.waits_for_turn = true;
            let waited = self.work.wait_timeout(inner, IDLE_AFTER);
            inner = waited.map_err(|_| Error::internal("a verb panicked"))?.0;
            self.check()?;
        }
        inner.waits_for_turn = false;
        inner.busy = true;
        add(&mut inner);
        let sealed = inner.sealed.iter();
        let sealed: Vec<Arc<Done>> = sealed.map(|group| group.done.clone()).collect();
        drop(inner);
        self.write_sealed();
        self.check()?;
        sealed.iter().filter_map(|done| done.get()).collect()
    }

    /// Refuses further calls; the writer ends when all is written.
    pub(super) fn refuse(&self) {
        if let Ok(mut inner) = self.lock() {
            inner.is_closed = true;
        }
        if !fault::is(Fault::CloseInSilence) {
            self.work.notify_one();
        }
    }
}

impl Inner {
    fn new(state: State, filling: Filling) -> Self {
        Self {
            state,
            filling,
            sealed: VecDeque::new(),
            busy: false,
            is_closed: false,
            buffers: Vec::new(),
            since_baseline: 0,
            since_look: (0, 0),
            waits_for_turn: false,
            lives: BTreeMap::new(),
            carrying: None,
            no_room: None,
            is_witnessed: true,
        }
    }

    /// A state to look at; all of it lies before this place.
    pub(super) fn of(state: State, end: Cursor) -> Self {
        let filling = Filling::new(end, Vec::new(), state.salt);
        Self::new(state, filling)
    }

    /// Whether there is something for the writer besides the filling group.
    fn wants_writer(&self) -> bool {
        !self.sealed.is_empty() || self.waits_for_turn || self.is_to_be_tended()
    }

    /// Whether it is time to look what there is to tidy up. Once the store is closed, that waits until it is opened again.
    pub(super) fn is_to_be_tended(&self) -> bool {
        !self.is_closed
            && (self.carrying.is_some()
                || self.since_look.0 >= LOOK_EVERY_BYTES
                || self.since_look.1 >= LOOK_EVERY_GROUPS)
    }

    /// Those who wait for what is not durable yet, which is given up.
    fn waiting(&mut self) -> Vec<Arc<Done>> {
        let mut waiting: Vec<_> = self
            .sealed
            .drain(..)
            .map(|group| group.done.clone())
            .collect();
        waiting.push(std::mem::take(&mut self.filling.done));
        waiting
    }

    /// Goes on from the state that is durable; those who wait for more than that.
    fn begin_again(&mut self, state: State, at: Cursor, full: &str) -> Vec<Arc<Done>> {
        let waiting = self.waiting();
        self.filling = Filling::new(at, Vec::new(), state.salt);
        let before = std::mem::replace(&mut self.state, state);
        let queues = &mut self.state.queues;
        self.lives.retain(|id, live| {
            let Some(queue) = queues.get_mut(id) else {
                return false;
            };
            queue.options = live.options();
            // What a restore has taken in so far is only known to it.
            let before = before.queues.get(id);
            queue.incoming_from = before.and_then(|queue| queue.incoming_from);
            true
        });
        self.carrying = None;
        self.is_witnessed = false;
        self.no_room = Some(full.to_owned());
        self.since_look.1 = LOOK_EVERY_GROUPS; // There may be room again at once.
        waiting
    }

    /// Makes room for so many bytes in the filling group, or begins another.
    ///
    /// # Errors
    /// `Unavailable` if it would need a segment that can't be had, as is known: finding that out when the group is
    /// written takes back all that waits with it.
    pub(super) fn make_room(&mut self, space: &Space, bytes: usize) -> Result<()> {
        if self.filling.takes(bytes) {
            return Ok(());
        }
        self.seal();
        if !self.filling.takes(bytes) {
            space.has_segment()?;
            self.filling.at = self.filling.at.next_segment();
        }
        Ok(())
    }

    /// Ends the filling group, if there is anything in it, and begins the next behind it.
    pub(super) fn seal(&mut self) {
        if !self.filling.is_empty() {
            self.seal_as_it_is();
        }
    }

    /// Ends the filling group even if it is empty: a witness for the one before.
    pub(super) fn seal_as_it_is(&mut self) {
        let buffer = self.buffers.pop().unwrap_or_default();
        let next = Filling::new(self.filling.at, buffer, self.state.salt);
        let filling = std::mem::replace(&mut self.filling, next);
        let reading = |queue| {
            let live = self.lives.get(&queue)?.clone();
            Some((live, Reading::of(self.state.queues.get(&queue)?)))
        };
        self.is_witnessed = filling.is_empty();
        let (group, next) = filling.seal(reading);
        self.filling.at = next;
        self.sealed.push_back(Arc::new(group));
    }
}

/// A caller's wait for its group.
struct Ticket {
    /// For the only caller of a group that nobody writes yet: it may do so itself.
    core: Option<Arc<Core>>,
    done: Arc<Done>,
}

impl Ticket {
    async fn wait(mut self) -> Result<()> {
        if self.core.is_some() {
            // Others that are ready to run come first, and may join the group.
            let mut has_yielded = false;
            poll_fn(|cx| {
                if std::mem::replace(&mut has_yielded, true) {
                    return Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
            if let Some(core) = self.core.take()
                && !core.lead(&self.done)
            {
                core.notify();
            }
        }
        Synced(self.done.clone()).await
    }
}

impl Drop for Ticket {
    /// The caller went away before it could write its group: the writer does.
    fn drop(&mut self) {
        if let Some(core) = self.core.take()
            && !fault::is(Fault::LeaveTheGroup)
        {
            core.notify();
        }
    }
}

const PANICKED: &str = "a verb of the journal backend panicked";
const KEPT_BUFFERS: usize = 3;
/// After so long without a call the writer looks what there is to tidy up.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// After so many groups, or bytes logged or no longer held, the writer looks whether a baseline is due.
const LOOK_EVERY_GROUPS: u32 = 512;
const LOOK_EVERY_BYTES: u64 = 4 << 20;
