//! A store, and its queues, whose calls are counted on their way.

use std::{num::NonZeroU32, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{sync::watch, time::Instant};

use super::Counted;
use crate::{
    batch::{BatchId, Claim, Lease, Member, Page, Update},
    clock::Timestamp,
    error::{Error, Result},
    queue::{
        Administration, BatchEntry, Cancelled, Capabilities, Entry, List, Queue, ResultCursor,
        SettledPage, Store, Transfer, Verified, VerifyProgress, transfer::Moment,
    },
    request::{Bookmark, NewRequest, Pushed, QueueName, RequestId},
    stats::Stats,
};

#[derive(Debug)]
pub(super) struct ObservedStore {
    pub(super) store: Arc<dyn Store>,
    pub(super) counted: Arc<Counted>,
}

#[derive(Debug)]
pub(super) struct ObservedQueue {
    pub(super) queue: Arc<dyn Queue>,
    pub(super) counted: Arc<Counted>,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Store for ObservedStore {
    async fn queue(&self, name: &QueueName) -> Result<Arc<dyn Queue>> {
        let queue = self.counted.note(self.store.queue(name).await)?;
        let counted = Arc::clone(&self.counted);
        Ok(Arc::new(ObservedQueue { queue, counted }))
    }

    async fn queues(&self, prefix: &str) -> Result<Vec<QueueName>> {
        self.counted.note(self.store.queues(prefix).await)
    }

    fn created(&self) -> Option<watch::Receiver<u64>> {
        self.store.created()
    }

    async fn moment(&self, now: Timestamp) -> Result<Option<Box<dyn Moment>>> {
        self.counted.note(self.store.moment(now).await)
    }

    async fn damages(&self) -> Result<u64> {
        self.counted.note(self.store.damages().await)
    }

    async fn verify(&self, tell: &mut (dyn FnMut(VerifyProgress) + Send)) -> Result<Verified> {
        self.counted.note(self.store.verify(tell).await)
    }

    async fn close(&self) -> Result<()> {
        self.counted.note(self.store.close().await)
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Queue for ObservedQueue {
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>> {
        let is_push = !requests.is_empty();
        let begun = Instant::now();
        let pushed = self.queue.push(now, requests).await;
        self.counted.pushed(is_push.then_some(begun), pushed)
    }

    async fn stats(&self, now: Timestamp) -> Result<Stats> {
        self.counted.note(self.queue.stats(now).await)
    }

    async fn claim(&self, now: Timestamp, claim: &Claim) -> Result<Option<Lease>> {
        self.counted.note(self.queue.claim(now, claim).await)
    }

    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        self.counted.note(self.queue.read(lease, page).await)
    }

    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> Result<()> {
        self.counted
            .note(self.queue.update(now, lease, update).await)
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
        // Pausing, resuming and flushing are bookmarks without requests.
        let is_push = !requests.is_empty();
        let begun = Instant::now();
        let pushed = self.queue.push_from(now, requests, bookmark).await;
        self.counted.pushed(is_push.then_some(begun), pushed)
    }

    async fn bookmark(&self, source: &str) -> Result<Option<Bytes>> {
        self.counted.note(self.queue.bookmark(source).await)
    }

    fn admin(&self) -> Option<&dyn Administration> {
        self.queue.admin().map(|_| self as &dyn Administration)
    }

    fn transfer(&self) -> Option<&dyn Transfer> {
        self.queue.transfer()
    }

    async fn close(&self) -> Result<()> {
        self.counted.note(self.queue.close().await)
    }
}

impl ObservedQueue {
    fn inner(&self) -> Result<&dyn Administration> {
        let admin = self.queue.admin();
        admin.ok_or_else(|| Error::invalid("this backend has no administration"))
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Administration for ObservedQueue {
    async fn status(&self, now: Timestamp, id: RequestId) -> Result<Option<Entry>> {
        self.counted.note(self.inner()?.status(now, id).await)
    }

    async fn list(&self, now: Timestamp, list: &List) -> Result<Vec<Entry>> {
        self.counted.note(self.inner()?.list(now, list).await)
    }

    async fn results(
        &self,
        now: Timestamp,
        after: Option<ResultCursor>,
        max_requests: NonZeroU32,
    ) -> Result<SettledPage> {
        let page = self.inner()?.results(now, after, max_requests).await;
        self.counted.note(page)
    }

    async fn cancel(&self, now: Timestamp, ids: &[RequestId]) -> Result<Vec<Cancelled>> {
        self.counted.note(self.inner()?.cancel(now, ids).await)
    }

    async fn redrive(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        let redriven = self.counted.note(self.inner()?.redrive(now, ids).await)?;
        self.counted.tally().of(&self.queue.name()).redriven += redriven;
        Ok(redriven)
    }

    async fn purge(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        self.counted.note(self.inner()?.purge(now, ids).await)
    }

    async fn batch(&self, now: Timestamp, id: BatchId) -> Result<Option<BatchEntry>> {
        self.counted.note(self.inner()?.batch(now, id).await)
    }

    async fn batches(
        &self,
        now: Timestamp,
        after: Option<BatchId>,
        max_batches: NonZeroU32,
    ) -> Result<Vec<BatchEntry>> {
        let page = self.inner()?.batches(now, after, max_batches).await;
        self.counted.note(page)
    }

    async fn release(&self, now: Timestamp, ids: &[BatchId]) -> Result<Vec<BatchId>> {
        self.counted.note(self.inner()?.release(now, ids).await)
    }
}
