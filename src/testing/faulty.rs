//! A queue that counts its calls and fails when it is told to.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    batch::{Claim, Lease, Member, Page, Update},
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    queue::{Administration, Capabilities, Queue, Transfer},
    request::{Bookmark, NewRequest, Pushed, QueueName},
    stats::Stats,
};

/// The required verbs of a [`Queue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// [`Queue::push`] and [`Queue::push_from`].
    Push,
    /// [`Queue::stats`].
    Stats,
    /// [`Queue::claim`].
    Claim,
    /// [`Queue::read`].
    Read,
    /// [`Queue::update`].
    Update,
}

/// Any queue, with calls counted, and with failures at the calls that the test chooses.
///
/// A call fails [before](Self::fail_next) it reaches the queue, or [after](Self::lose_next) it took
/// effect: the caller can't tell which, as with a connection that is cut.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> batchyard::Result<()> {
/// use std::sync::Arc;
/// use batchyard::{ErrorKind, MemoryQueue, NewRequest, Queue, QueueOptions, testing::{Faulty, Verb}};
/// let queue = Faulty::new(Arc::new(MemoryQueue::new(QueueOptions::default())));
/// queue.fail_next(Verb::Push, ErrorKind::Unavailable);
/// queue.lose_next(Verb::Push, ErrorKind::Unavailable);
/// for _ in 0..2 {
///     let failed = queue.push(queue.now(), vec![NewRequest::new("a")]).await;
///     assert_eq!(failed.unwrap_err().kind(), ErrorKind::Unavailable);
/// }
/// assert_eq!(queue.calls(Verb::Push), 2);
/// assert_eq!(queue.stats(queue.now()).await?.pushed, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Faulty {
    queue: Arc<dyn Queue>,
    calls: Mutex<HashMap<Verb, Calls>>,
}

#[derive(Debug, Default)]
struct Calls {
    count: u64,
    faults: VecDeque<Fault>,
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    kind: ErrorKind,
    took_effect: bool,
}

impl Faulty {
    /// This queue, without faults so far.
    pub fn new(queue: Arc<dyn Queue>) -> Self {
        Self {
            queue,
            calls: Mutex::default(),
        }
    }

    /// How often this verb has been called.
    pub fn calls(&self, verb: Verb) -> u64 {
        self.table().get(&verb).map_or(0, |calls| calls.count)
    }

    /// The next call of this verb without a fault yet fails, and does nothing.
    pub fn fail_next(&self, verb: Verb, kind: ErrorKind) {
        self.plan(verb, kind, false);
    }

    /// The next call of this verb without a fault yet takes effect, but its answer is this error.
    pub fn lose_next(&self, verb: Verb, kind: ErrorKind) {
        self.plan(verb, kind, true);
    }

    fn plan(&self, verb: Verb, kind: ErrorKind, took_effect: bool) {
        let fault = Fault { kind, took_effect };
        let mut table = self.table();
        table.entry(verb).or_default().faults.push_back(fault);
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Verb, Calls>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call and makes it, unless it is to fail.
    async fn call<T>(&self, verb: Verb, call: impl Future<Output = Result<T>>) -> Result<T> {
        let fault = {
            let mut table = self.table();
            let calls = table.entry(verb).or_default();
            calls.count += 1;
            calls.faults.pop_front()
        };
        let Some(Fault { kind, took_effect }) = fault else {
            return call.await;
        };
        if took_effect {
            call.await?;
        }
        Err(Error::new(kind, format!("{verb:?} was told to fail")))
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Queue for Faulty {
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>> {
        let push = self.queue.push(now, requests);
        self.call(Verb::Push, push).await
    }

    async fn stats(&self, now: Timestamp) -> Result<Stats> {
        self.call(Verb::Stats, self.queue.stats(now)).await
    }

    async fn claim(&self, now: Timestamp, claim: &Claim) -> Result<Option<Lease>> {
        self.call(Verb::Claim, self.queue.claim(now, claim)).await
    }

    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        self.call(Verb::Read, self.queue.read(lease, page)).await
    }

    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> Result<()> {
        let update = self.queue.update(now, lease, update);
        self.call(Verb::Update, update).await
    }

    fn now(&self) -> Timestamp {
        self.queue.now()
    }

    fn name(&self) -> QueueName {
        self.queue.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.queue.capabilities()
    }

    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        self.queue.pushed()
    }

    async fn push_from(
        &self,
        now: Timestamp,
        requests: Vec<NewRequest>,
        bookmark: Bookmark,
    ) -> Result<Vec<Pushed>> {
        let push = self.queue.push_from(now, requests, bookmark);
        self.call(Verb::Push, push).await
    }

    async fn bookmark(&self, source: &str) -> Result<Option<Bytes>> {
        self.queue.bookmark(source).await
    }

    fn admin(&self) -> Option<&dyn Administration> {
        self.queue.admin()
    }

    fn transfer(&self) -> Option<&dyn Transfer> {
        self.queue.transfer()
    }

    async fn close(&self) -> Result<()> {
        self.queue.close().await
    }
}
