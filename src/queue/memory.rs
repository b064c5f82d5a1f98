//! The reference backend: everything in this process's memory, behind one lock.
//!
//! It is the shortest faithful reading of the contract, and the oracle that the other backends are
//! compared with. Nothing survives the process.

mod admin;
mod state;
mod transfer;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use self::{state::State, transfer::Still};
use crate::{
    batch::{Claim, Lease, Member, Page, Update},
    clock::Timestamp,
    error::{Error, Result},
    queue::{
        Administration, Capabilities, Durability, Moment, Queue, QueueOptions, Store, Transfer,
        room::Room, transfer::Turns,
    },
    request::{Bookmark, NewRequest, Pushed, QueueName},
    stats::Stats,
};

/// A queue in memory: for tests, for comparison, and for work that may be lost with the process.
///
/// ```
/// use batchyard::{Claim, MemoryQueue, NewRequest, Queue, QueueExt, QueueOptions};
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let queue = MemoryQueue::new(QueueOptions::default());
/// queue.push_one(NewRequest::new("hello")).await?;
/// let lease = queue.claim(queue.now(), &Claim::new()).await?.expect("one request is ready");
/// assert_eq!((lease.requests, lease.attempt), (1, 1));
/// # Ok::<(), batchyard::Error>(()) }).unwrap();
/// ```
#[derive(Debug)]
pub struct MemoryQueue {
    name: QueueName,
    options: QueueOptions,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

impl MemoryQueue {
    /// An empty queue named `default`.
    pub fn new(options: QueueOptions) -> Self {
        Self::named(QueueName::default(), options)
    }

    /// An empty queue of this name.
    pub fn named(name: QueueName, options: QueueOptions) -> Self {
        Self {
            name,
            options,
            state: Mutex::new(State::new(options, fastrand::u64(..))),
            changes: watch::Sender::new(0),
        }
    }

    /// The state as of `now`; fails once the queue is closed.
    fn at(&self, now: Timestamp) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(Error::closed(format!("queue {:?} was closed", self.name)));
        }
        state.advance(now);
        Ok(state)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Pushes now, or as soon as there is room.
    async fn push_all(
        &self,
        asked: Timestamp,
        mut requests: Vec<NewRequest>,
        bookmark: Option<&Bookmark>,
    ) -> Result<Vec<Pushed>> {
        requests.iter().try_for_each(NewRequest::validate)?;
        bookmark.map_or(Ok(()), Bookmark::validate)?;
        let mut room = Room::new(asked, &requests, self.changes.subscribe());
        loop {
            let now = room.now();
            let pushed = self.at(now)?.push(now, &mut requests, bookmark);
            match pushed {
                Err(failed) => room.wait(failed, &self.options).await?,
                Ok(pushed) => {
                    self.changed();
                    return Ok(pushed);
                }
            }
        }
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>> {
        self.push_all(now, requests, None).await
    }

    async fn stats(&self, now: Timestamp) -> Result<Stats> {
        Ok(self.at(now)?.stats(now))
    }

    async fn claim(&self, now: Timestamp, claim: &Claim) -> Result<Option<Lease>> {
        claim.validate()?;
        let mut state = self.at(now)?;
        let dead = state.dead_letters();
        let lease = state.claim(now, claim);
        // A claim that changed nothing must not wake a dispatcher to claim again.
        let changed = lease.is_some() || state.dead_letters() > dead;
        drop(state);
        if changed {
            self.changed();
        }
        Ok(lease)
    }

    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        self.at(Timestamp::EPOCH)?.read(lease, page)
    }

    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> Result<()> {
        update.validate()?;
        if self.at(now)?.update(now, lease, update)? {
            self.changed();
        }
        Ok(())
    }

    fn name(&self) -> QueueName {
        self.name.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: Durability::Process,
            administration: true,
            bookmarks: true,
            results: true,
            batches: true,
            ..Capabilities::default()
        }
    }

    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        Some(self.changes.subscribe())
    }

    async fn push_from(
        &self,
        now: Timestamp,
        requests: Vec<NewRequest>,
        bookmark: Bookmark,
    ) -> Result<Vec<Pushed>> {
        self.push_all(now, requests, Some(&bookmark)).await
    }

    async fn bookmark(&self, source: &str) -> Result<Option<Bytes>> {
        Ok(self.at(Timestamp::EPOCH)?.bookmarks.get(source).cloned())
    }

    fn admin(&self) -> Option<&dyn Administration> {
        Some(self)
    }

    fn transfer(&self) -> Option<&dyn Transfer> {
        Some(self)
    }

    async fn close(&self) -> Result<()> {
        let state = self.state.lock();
        state.unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed();
        Ok(())
    }
}

/// Queues in memory, by name, each made when it is first asked for.
#[derive(Debug)]
pub struct MemoryStore {
    options: QueueOptions,
    queues: Mutex<BTreeMap<QueueName, Arc<MemoryQueue>>>,
    created: watch::Sender<u64>,
    turns: Turns,
}

impl MemoryStore {
    /// A store without queues, which are made with these options.
    pub fn new(options: QueueOptions) -> Self {
        Self {
            options,
            queues: Mutex::default(),
            created: watch::Sender::new(0),
            turns: Turns::default(),
        }
    }

    fn queues(&self) -> MutexGuard<'_, BTreeMap<QueueName, Arc<MemoryQueue>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn queue(&self, name: &QueueName) -> Result<Arc<dyn Queue>> {
        if let Some(queue) = self.queues().get(name) {
            return Ok(queue.clone());
        }
        let queue = Arc::new(MemoryQueue::named(name.clone(), self.options));
        let queue = self.queues().entry(name.clone()).or_insert(queue).clone();
        self.created.send_modify(|count| *count += 1);
        Ok(queue)
    }

    async fn queues(&self, prefix: &str) -> Result<Vec<QueueName>> {
        let names = self.queues();
        Ok(names
            .keys()
            .filter(|name| name.as_str().starts_with(prefix))
            .cloned()
            .collect())
    }

    fn created(&self) -> Option<watch::Receiver<u64>> {
        Some(self.created.subscribe())
    }

    async fn moment(&self, now: Timestamp) -> Result<Option<Box<dyn Moment>>> {
        Ok(Some(Box::new(Still::of(self, now)?)))
    }

    async fn close(&self) -> Result<()> {
        let queues: Vec<_> = self.queues().values().cloned().collect();
        for queue in queues {
            queue.close().await?;
        }
        Ok(())
    }
}
