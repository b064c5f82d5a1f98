//! A queue whose clock the test sets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    batch::{Claim, Lease, Member, Page, Update},
    clock::Timestamp,
    error::Result,
    queue::{Administration, Capabilities, Queue, Transfer},
    request::{Bookmark, NewRequest, Pushed, QueueName},
    stats::Stats,
};

/// Any queue, with a [`now`](Queue::now) that stands still until the test moves it.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use batchyard::{MemoryQueue, Queue, QueueOptions, Timestamp, testing::WithNow};
/// let memory = Arc::new(MemoryQueue::new(QueueOptions::default()));
/// let queue = WithNow::new(memory, Timestamp::from_millis(1_000));
/// queue.advance(Duration::from_secs(2));
/// assert_eq!(queue.now(), Timestamp::from_millis(3_000));
/// ```
#[derive(Debug)]
pub struct WithNow {
    queue: Arc<dyn Queue>,
    nanos: AtomicU64,
}

impl WithNow {
    /// This queue at this time.
    pub fn new(queue: Arc<dyn Queue>, now: Timestamp) -> Self {
        Self {
            queue,
            nanos: AtomicU64::new(now.as_nanos()),
        }
    }

    /// Moves the clock to this time, which may lie in the past.
    pub fn set_now(&self, now: Timestamp) {
        self.nanos.store(now.as_nanos(), Ordering::SeqCst);
    }

    /// Moves the clock on.
    pub fn advance(&self, duration: Duration) {
        self.set_now(self.now().after(duration));
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Queue for WithNow {
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>> {
        self.queue.push(now, requests).await
    }

    async fn stats(&self, now: Timestamp) -> Result<Stats> {
        self.queue.stats(now).await
    }

    async fn claim(&self, now: Timestamp, claim: &Claim) -> Result<Option<Lease>> {
        self.queue.claim(now, claim).await
    }

    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        self.queue.read(lease, page).await
    }

    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> Result<()> {
        self.queue.update(now, lease, update).await
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_nanos(self.nanos.load(Ordering::SeqCst))
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
        self.queue.push_from(now, requests, bookmark).await
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
