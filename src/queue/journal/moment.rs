//! Moments of a store: what all its queues held, read while it goes on.
//!
//! ```text
//!  under the lock     all queues are brought to `now`, the group is ended, the state is written down, segments are pinned
//!  once it is durable the state is read back, apart from the live one, and pages are read from the pinned segments
//! ```
//! Nothing that lies in the log is ever changed, so the state and the segments it names are all there is to a moment.
//! The writer waits for neither: the lock is held for as long as a baseline needs it. What is freed meanwhile stays on the
//! disk, since segments are reused oldest first and never under a reader. So a moment gives way when the disk gets low.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock, PoisonError, Weak},
};

use async_trait::async_trait;
use tokio::task::spawn_blocking;

use super::{
    Keeper, NO_QUEUE,
    codec::{self, Codec},
    core::{Core, Inner},
    log::{Cursor, Pin},
    state::State,
    step::Step,
};
use crate::{
    clock::Timestamp,
    error::{Error, Result},
    queue::transfer::{DumpFrom, DumpPage, Moment, Turns, not_there},
    request::QueueName,
    sync::Mutex,
};

/// The moments of a store that are being read.
#[derive(Debug, Default)]
pub(super) struct Moments {
    turns: Turns,
    held: Mutex<Vec<Weak<Held>>>,
}

/// What a moment keeps from being reused, until it is dropped or has to give way.
#[derive(Debug, Default)]
struct Held {
    pins: Mutex<Option<Vec<Pin>>>,
    gave_way: OnceLock<String>,
}

impl Moments {
    fn begin(&self) -> Result<(Arc<Held>, Arc<()>)> {
        let turn = self.turns.take()?;
        let held = Arc::new(Held::default());
        let mut all = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(&held));
        Ok((held, turn))
    }

    /// Lets go of all that is kept for them.
    pub(super) fn give_way(&self, why: &str) {
        let all = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        for held in all.iter().filter_map(Weak::upgrade) {
            tracing::warn!("a dump is given up: {why}");
            // Who reads looks for the reason when a page is there.
            let _ = held.gave_way.set(why.to_owned());
            drop(held.pins().take());
        }
    }
}

impl Held {
    fn pins(&self) -> crate::sync::MutexGuard<'_, Option<Vec<Pin>>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pin(&self, pin: Pin) {
        self.pins().get_or_insert_default().push(pin);
    }

    fn check(&self) -> Result<()> {
        match self.gave_way.get() {
            Some(why) => Err(Error::unavailable(format!("the dump was given up: {why}"))),
            None => Ok(()),
        }
    }
}

/// What is written down under the lock.
struct Noted {
    state: Vec<u8>,
    salt: u64,
    /// All of it lies before this place.
    end: Cursor,
    /// The first segment that it needs.
    first: u32,
}

impl Step<'_> {
    /// Brings all queues to `now`, and writes down what is known of them.
    fn note_all(&mut self, now: Timestamp, held: &Held) -> Result<Noted> {
        let queues: Vec<u32> = self.inner.state.queues.keys().copied().collect();
        for id in queues {
            self.id = id;
            self.advance(now)?;
        }
        self.inner.seal();
        self.core.notify();
        let mut state = Vec::new();
        self.inner.state.put(&mut state);
        let end = self.inner.filling.at;
        let current = end.place().segment;
        let first = self.inner.state.oldest_segment().unwrap_or(current);
        // The last one may not have been begun. The one before it keeps it from being reused.
        let first = first.min(current).saturating_sub(1);
        held.pin(self.core.reader.pin(first..=u32::MAX));
        Ok(Noted {
            state,
            salt: self.inner.state.salt,
            end,
            first,
        })
    }
}

/// What all queues held at one moment.
pub(super) struct Still {
    keeper: Arc<Keeper>,
    now: Timestamp,
    names: BTreeMap<QueueName, u32>,
    /// A state that nothing happens to.
    inner: Arc<Mutex<Inner>>,
    held: Arc<Held>,
    _turn: Arc<()>,
}

impl fmt::Debug for Still {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Still")
            .field("store", &self.keeper.core)
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

impl Still {
    /// What all queues hold as of `now`.
    pub(super) async fn of(keeper: &Arc<Keeper>, now: Timestamp) -> Result<Self> {
        keeper.check()?;
        let core = &keeper.core;
        let (held, turn) = core.moments.begin()?;
        let noted = core.call(NO_QUEUE, |step| step.note_all(now, &held));
        let noted = noted.await?;
        held.pin(core.reader.pin(noted.first..=u32::MAX));
        let read_back = move || -> Result<Inner> {
            let mut state: State = codec::whole(&noted.state)?;
            state.salt = noted.salt;
            Ok(Inner::of(state, noted.end))
        };
        let inner = spawn_blocking(read_back).await;
        let inner = inner.map_err(|error| Error::internal("a dump was cut off").with_source(error));
        let inner = inner??;
        let names = inner.state.queues.iter();
        let names = names.map(|(id, queue)| Ok((queue.stored.name.parse()?, *id)));
        Ok(Self {
            keeper: Arc::clone(keeper),
            now,
            names: names.collect::<Result<_>>()?,
            inner: Arc::new(Mutex::new(inner)),
            held,
            _turn: turn,
        })
    }

    /// Fails if what it needs may have been reused.
    fn check(&self) -> Result<()> {
        self.held.check()?;
        self.keeper.check()
    }
}

#[async_trait]
impl Moment for Still {
    fn queues(&self) -> Vec<QueueName> {
        self.names.keys().cloned().collect()
    }

    async fn dump(&self, queue: &QueueName, from: DumpFrom) -> Result<DumpPage> {
        let id = *self.names.get(queue).ok_or_else(|| not_there(queue))?;
        self.check()?;
        let (core, inner, now) = (
            Arc::clone(&self.keeper.core),
            Arc::clone(&self.inner),
            self.now,
        );
        let read = move || page(&core, &inner, (id, now, from));
        let page = spawn_blocking(read).await;
        // What was read may have been something else by then.
        self.check()?;
        page.map_err(|error| Error::internal("a dump was cut off").with_source(error))?
    }
}

fn page(
    core: &Core,
    inner: &Mutex<Inner>,
    (id, now, from): (u32, Timestamp, DumpFrom),
) -> Result<DumpPage> {
    let mut inner = inner.lock().unwrap_or_else(PoisonError::into_inner);
    Step::new(core, &mut inner, id).dump(now, from)
}
