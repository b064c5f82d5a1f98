//! [`SledQueue`]: one named queue of a store.

use std::{fmt, num::NonZeroU32, path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::{
    SledStore,
    apply::{Keyed, PushPlan, Step},
    handle::Handle,
    reader::View,
    state::Live,
};
use crate::{
    batch::{BatchId, Claim, Lease, Member, Page, Update},
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    queue::{
        Administration, BatchEntry, Cancelled, Capabilities, Durability, Entry, List, Queue,
        ResultCursor, SettledPage,
        room::Room,
        transfer::{Transfer, digest},
    },
    request::{Bookmark, NewRequest, Pushed, QueueName, RequestId},
    stats::Stats,
};

/// A durable queue on this machine's disk, in a [`SledStore`].
///
/// ```
/// use batchyard::{Claim, NewRequest, Queue, QueueExt, SledQueue};
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("store");
/// # tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
/// let queue = SledQueue::open(&path).await?;
/// queue.push_one(NewRequest::new("hello")).await?; // on stable storage from here on
/// let lease = queue.claim(queue.now(), &Claim::new()).await?.expect("one request is ready");
/// assert_eq!((lease.requests, lease.attempt), (1, 1));
/// queue.close().await?;
/// # Ok::<(), batchyard::Error>(()) }).unwrap();
/// ```
pub struct SledQueue {
    pub(super) handle: Handle,
    pub(super) live: Arc<Live>,
    /// Set once this handle is closed.
    closed: watch::Sender<bool>,
    /// Whether the store was opened for this queue alone and is closed with it.
    owns_store: bool,
}

impl fmt::Debug for SledQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledQueue")
            .field("store", &self.handle)
            .field("name", &self.live.name)
            .finish_non_exhaustive()
    }
}

impl SledQueue {
    /// Opens the store in this folder, made if need be, and its queue `default`; closing the queue
    /// closes the store. For several queues, or other options, use [`SledStore`].
    ///
    /// # Errors
    /// As [`SledStore::open`].
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        let store = SledStore::open(path).await?;
        let live = store.handle.open(QueueName::default(), None).await?;
        Ok(Self {
            owns_store: true,
            ..Self::new(store.handle.clone(), live)
        })
    }

    pub(super) fn new(handle: Handle, live: Arc<Live>) -> Self {
        Self {
            handle,
            live,
            closed: watch::Sender::new(false),
            owns_store: false,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        if *self.closed.borrow() {
            return Err(Error::closed(format!(
                "queue {:?} was closed",
                self.live.name
            )));
        }
        self.handle.check()
    }

    /// Brings the queue to `now`, and settles what has ended, then reads.
    pub(super) async fn view<T: Send + 'static>(
        &self,
        now: Timestamp,
        read: impl FnOnce(View<'_>) -> Result<T> + Clone + Send + 'static,
    ) -> Result<T> {
        self.check()?;
        loop {
            let value = self
                .handle
                .view(self.live.id, Some(now), read.clone())
                .await?;
            if let Some(value) = value {
                return Ok(value);
            }
            let settle = move |step: &mut Step<'_>| {
                step.advance(now)?;
                step.settle_all()
            };
            self.handle.call(self.live.id, settle).await?;
        }
    }

    /// Pushes now, or as soon as there is room.
    async fn push_all(
        &self,
        now: Timestamp,
        requests: Vec<NewRequest>,
        bookmark: Option<Bookmark>,
    ) -> Result<Vec<Pushed>> {
        self.check()?;
        requests.iter().try_for_each(NewRequest::validate)?;
        bookmark.as_ref().map_or(Ok(()), Bookmark::validate)?;
        let bytes = requests.iter().map(|request| request.payload.len()).sum();
        let mut room = Room::new(now, &requests, self.live.changes.subscribe());
        let keyed = requests.iter().map(digests).collect();
        let mut plan = PushPlan {
            requests,
            keyed,
            bookmark,
        };
        loop {
            let now = room.now();
            let pushed = self.handle.push(self.live.id, bytes, move |step| {
                match step.push(now, &plan) {
                    Ok(pushed) => Ok(Ok(pushed)),
                    // Only a lack of room in the queue is worth waiting for.
                    Err(full)
                        if full.kind() == ErrorKind::QueueFull && step.low_space.is_none() =>
                    {
                        Ok(Err((full, plan)))
                    }
                    Err(error) => Err(error),
                }
            });
            let (full, back) = match pushed.await? {
                Ok(pushed) => return Ok(pushed),
                Err(full) => full,
            };
            plan = back;
            room.wait(full, &self.live.options()).await?;
            self.check()?;
        }
    }
}

#[async_trait]
impl Queue for SledQueue {
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>> {
        self.push_all(now, requests, None).await
    }

    async fn stats(&self, now: Timestamp) -> Result<Stats> {
        self.check()?;
        if let Some(stats) = self.live.stats(now) {
            return self.handle.sound().map(|()| stats);
        }
        self.handle
            .call(self.live.id, move |step| step.advance(now))
            .await?;
        Ok(self.live.stats_after(now))
    }

    async fn claim(&self, now: Timestamp, claim: &Claim) -> Result<Option<Lease>> {
        self.check()?;
        claim.validate()?;
        let claim = claim.clone();
        self.handle
            .call(self.live.id, move |step| step.claim(now, &claim))
            .await
    }

    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        self.check()?;
        let lease = lease.clone();
        let members = self
            .handle
            .view(self.live.id, None, move |view| view.read(&lease, page))
            .await?;
        Ok(members.unwrap_or_default())
    }

    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> Result<()> {
        self.check()?;
        update.validate()?;
        let lease = lease.clone();
        self.handle
            .call(self.live.id, move |step| step.update(now, &lease, &update))
            .await
    }

    fn name(&self) -> QueueName {
        self.live.name.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: Durability::Disk,
            survives_restart: true,
            shared: false,
            bounded_memory: true,
            opens_after_damage: false,
            administration: true,
            bookmarks: true,
            results: true,
            batches: true,
        }
    }

    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        Some(self.live.changes.subscribe())
    }

    async fn push_from(
        &self,
        now: Timestamp,
        requests: Vec<NewRequest>,
        bookmark: Bookmark,
    ) -> Result<Vec<Pushed>> {
        self.push_all(now, requests, Some(bookmark)).await
    }

    async fn bookmark(&self, source: &str) -> Result<Option<Bytes>> {
        self.check()?;
        let source = source.to_owned();
        let value = self
            .handle
            .view(self.live.id, None, move |view| view.bookmark(&source))
            .await?;
        Ok(value.flatten())
    }

    fn admin(&self) -> Option<&dyn Administration> {
        Some(self)
    }

    fn transfer(&self) -> Option<&dyn Transfer> {
        Some(self)
    }

    async fn close(&self) -> Result<()> {
        self.closed.send_replace(true);
        let closed = if self.owns_store {
            self.handle.close().await
        } else {
            // What was sent before this is answered before it.
            match self.handle.call(self.live.id, |_| Ok(())).await {
                Err(error) if error.kind() == ErrorKind::Closed => Ok(()),
                closed => closed,
            }
        };
        self.live.changed();
        closed
    }
}

#[async_trait]
impl Administration for SledQueue {
    async fn status(&self, now: Timestamp, id: RequestId) -> Result<Option<Entry>> {
        self.view(now, move |view| view.status(id)).await
    }

    async fn list(&self, now: Timestamp, list: &List) -> Result<Vec<Entry>> {
        let list = *list;
        self.view(now, move |view| view.list(&list)).await
    }

    async fn results(
        &self,
        now: Timestamp,
        after: Option<ResultCursor>,
        max_requests: NonZeroU32,
    ) -> Result<SettledPage> {
        self.view(now, move |view| view.results(after, max_requests))
            .await
    }

    async fn cancel(&self, now: Timestamp, ids: &[RequestId]) -> Result<Vec<Cancelled>> {
        self.check()?;
        let ids = ids.to_vec();
        self.handle
            .call(self.live.id, move |step| step.cancel(now, &ids))
            .await
    }

    async fn redrive(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        self.check()?;
        let ids = ids.to_vec();
        self.handle
            .call(self.live.id, move |step| step.redrive(now, &ids))
            .await
    }

    async fn purge(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        self.check()?;
        let ids = ids.to_vec();
        self.handle
            .call(self.live.id, move |step| step.purge(now, &ids))
            .await
    }

    async fn batch(&self, now: Timestamp, id: BatchId) -> Result<Option<BatchEntry>> {
        self.view(now, move |view| view.batch(now, id)).await
    }

    async fn batches(
        &self,
        now: Timestamp,
        after: Option<BatchId>,
        max_batches: NonZeroU32,
    ) -> Result<Vec<BatchEntry>> {
        self.view(now, move |view| view.batches(now, after, max_batches))
            .await
    }

    async fn release(&self, now: Timestamp, ids: &[BatchId]) -> Result<Vec<BatchId>> {
        self.check()?;
        let ids = ids.to_vec();
        self.handle
            .call(self.live.id, move |step| step.release(now, &ids))
            .await
    }
}

fn digests(request: &NewRequest) -> Option<Keyed> {
    let key = request.idempotency_key.as_ref()?;
    Some(Keyed {
        key: digest(key.as_bytes()),
        payload: digest(&request.payload),
    })
}
