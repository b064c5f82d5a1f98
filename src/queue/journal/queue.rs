//! [`JournalQueue`]: one named queue of a store.

use std::{fmt, num::NonZeroU32, path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::{
    JournalStore, Keeper,
    published::Live,
    step::{Plan, Step, UpdatePlan},
    view,
};
use crate::{
    batch::{BatchId, Claim, Lease, Member, Outcome, Page, Then, Update},
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    queue::{
        Administration, BatchEntry, Cancelled, Capabilities, Durability, Entry, List, Queue,
        ResultCursor, SettledPage, Transfer, room::Room,
    },
    request::{Bookmark, DeadReason, NewRequest, Position, Pushed, QueueName, RequestId},
    stats::Stats,
    sync::spawn_blocking,
};

/// A durable queue on this machine's disk, in a [`JournalStore`].
///
/// ```
/// use batchyard::{Claim, JournalQueue, NewRequest, Queue, QueueExt};
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("store");
/// # tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
/// let queue = JournalQueue::open(&path).await?;
/// queue.push_one(NewRequest::new("hello")).await?; // on stable storage from here on
/// let lease = queue.claim(queue.now(), &Claim::new()).await?.expect("one request is ready");
/// assert_eq!((lease.requests, lease.attempt), (1, 1));
/// queue.close().await?;
/// # Ok::<(), batchyard::Error>(()) }).unwrap();
/// ```
pub struct JournalQueue {
    pub(super) keeper: Arc<Keeper>,
    pub(super) live: Arc<Live>,
    /// Set once this handle is closed.
    closed: watch::Sender<bool>,
    /// Whether the store was opened for this queue alone and is closed with it.
    owns_store: bool,
}

impl fmt::Debug for JournalQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalQueue")
            .field("store", &self.keeper.core)
            .field("name", &self.live.name)
            .finish_non_exhaustive()
    }
}

impl JournalQueue {
    /// Opens the store in this folder, made if need be, and its queue `default`; closing the queue
    /// closes the store. For several queues, or other options, use [`JournalStore`].
    ///
    /// # Errors
    /// As [`JournalStore::open`].
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        let store = JournalStore::open(path).await?;
        let live = store.live(&QueueName::default(), None).await?;
        Ok(Self {
            owns_store: true,
            ..Self::new(store.keeper.clone(), live)
        })
    }

    pub(super) fn new(keeper: Arc<Keeper>, live: Arc<Live>) -> Self {
        Self {
            keeper,
            live,
            closed: watch::Sender::new(false),
            owns_store: false,
        }
    }

    fn check(&self) -> Result<()> {
        if *self.closed.borrow() {
            let name = &self.live.name;
            return Err(Error::closed(format!("queue {name:?} was closed")));
        }
        self.keeper.check()
    }

    pub(super) async fn call<T>(&self, verb: impl FnOnce(&mut Step<'_>) -> Result<T>) -> Result<T> {
        self.check()?;
        self.keeper.core.call(self.live.id, verb).await
    }

    /// Looks at members of a batch that is held, which have been durable since it was claimed. Outcomes that were recorded
    /// for them, and what was pushed into or carried with the same stretches, may not be so yet: then it waits.
    async fn plan<T>(
        &self,
        look: impl Fn(&Step<'_>) -> Result<T>,
        is_waiting: impl Fn(&T) -> bool,
    ) -> Result<T> {
        self.check()?;
        match self.keeper.core.look(self.live.id, &look) {
            Ok(plan) if !is_waiting(&plan) => Ok(plan),
            // An error may rest on what is not durable yet.
            _ => self.call(|step| look(step)).await,
        }
    }

    /// Reads what was planned: at once if it is in memory, else on a thread that may wait.
    async fn fill(
        &self,
        plan: view::PagePlan,
        page: Page,
        mut members: view::Members,
    ) -> Result<(view::PagePlan, view::Members)> {
        let reader = &self.keeper.core.reader;
        if plan.is_short() {
            let before = members.mark();
            if view::fill(&plan, &reader.only_cached(), &page, &mut members).is_ok() {
                return Ok((plan, members));
            }
            members.back_to(before);
        }
        let reader = reader.clone();
        let read = spawn_blocking(move || {
            let filled = view::fill(&plan, &reader, &page, &mut members);
            filled.map(|()| (plan, members))
        });
        read.await
            .map_err(|error| Error::internal("a reading was cut off").with_source(error))?
    }

    /// Pushes now, or as soon as there is room.
    async fn push_all(
        &self,
        now: Timestamp,
        requests: Vec<NewRequest>,
        bookmark: Option<Bookmark>,
    ) -> Result<Vec<Pushed>> {
        self.check()?;
        let room = (self.live.options().blocks())
            .then(|| Room::new(now, &requests, self.live.changes.subscribe()));
        let plan = Plan::new(now, requests, bookmark)?;
        // All others are told that the store can't do it just now.
        let no_space = |error: Error| match error.kind() {
            ErrorKind::Unavailable => Error::queue_full(error.to_string()),
            _ => error,
        };
        let Some(mut room) = room else {
            let pushed = self.call(|step| step.push(now, &plan)).await;
            return pushed.map_err(no_space);
        };
        loop {
            let now = room.now();
            let pushed = self
                .call(|step| {
                    Ok(step
                        .push(now, &plan)
                        .map_err(|error| (error, step.is_full())))
                })
                .await
                .map_err(no_space)?;
            match pushed {
                Ok(pushed) => return Ok(pushed),
                Err((full, false)) if full.kind() == ErrorKind::QueueFull => {
                    room.wait(full, &self.live.options()).await?;
                }
                Err((error, _)) => return Err(no_space(error)),
            }
        }
    }

    /// Dead-letters, once their batch has ended, members of which something is damaged.
    async fn reject_damaged(
        &self,
        lease: &Lease,
        until: Timestamp,
        damaged: Vec<(RequestId, &'static str)>,
    ) -> Result<()> {
        let rejected = damaged.into_iter().map(|(id, damage)| {
            let reject = Outcome::Reject {
                reason: DeadReason::Damaged,
                error: damage.into(),
            };
            (id, reject)
        });
        let update = Update {
            outcomes: rejected.collect(),
            ..Update::then(Then::Hold { until })
        };
        // Nothing that time brings: this is no verb of the caller's.
        self.update(Timestamp::EPOCH, lease, update).await
    }
}

#[async_trait]
impl Queue for JournalQueue {
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>> {
        self.push_all(now, requests, None).await
    }

    async fn stats(&self, now: Timestamp) -> Result<Stats> {
        self.check()?;
        if let Some(stats) = self.live.stats(now) {
            return self.keeper.core.check().map(|()| stats);
        }
        self.call(|step| step.advance(now)).await?;
        Ok(self.live.stats_after(now))
    }

    async fn claim(&self, now: Timestamp, claim: &Claim) -> Result<Option<Lease>> {
        self.check()?;
        claim.validate()?;
        let live = &self.live;
        self.call(|step| step.claim(now, claim, live)).await
    }

    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        let mut after = page.after.map_or(0, Position::as_u64);
        let mut members = view::Members::default();
        loop {
            let look = |step: &Step<'_>| step.plan_page(lease, &page, after);
            let plan = self.plan(look, view::PagePlan::is_waiting).await?;
            let (plan, filled) = self.fill(plan, page, members).await?;
            members = filled;
            if !members.damaged.is_empty() {
                let damaged = std::mem::take(&mut members.damaged);
                self.reject_damaged(lease, plan.until, damaged).await?;
                members = view::Members::default();
                after = page.after.map_or(0, Position::as_u64);
                continue;
            }
            match plan.next {
                Some(next) if !members.is_full => after = next,
                _ => return Ok(members.all),
            }
        }
    }

    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> Result<()> {
        self.check()?;
        update.validate()?;
        loop {
            let look = |step: &Step<'_>| step.plan_update(lease, &update);
            let is_waiting =
                |plan: &Option<UpdatePlan>| plan.as_ref().is_some_and(UpdatePlan::is_waiting);
            let plan = self.plan(look, is_waiting).await?;
            let prepared = match plan {
                None => None,
                Some(plan) => {
                    let reader = self.keeper.core.reader.clone();
                    let read = spawn_blocking(move || plan.read(&reader)).await;
                    let read = read.map_err(|error| {
                        Error::internal("a reading was cut off").with_source(error)
                    })?;
                    Some(read?)
                }
            };
            let applied = self.call(|step| step.update(now, lease, &update, prepared.as_ref()));
            if applied.await?.is_some() {
                return Ok(());
            }
        }
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
            opens_after_damage: true,
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
        self.call(|step| Ok(step.queue()?.stored.bookmarks.get(source).cloned()))
            .await
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
            self.keeper.close().await
        } else {
            // What was sent before this is answered before it.
            match self.keeper.core.call(self.live.id, |_| Ok(())).await {
                Err(error) if error.kind() == ErrorKind::Closed => Ok(()),
                closed => closed,
            }
        };
        self.live.changed();
        closed
    }
}

#[async_trait]
impl Administration for JournalQueue {
    async fn status(&self, now: Timestamp, id: RequestId) -> Result<Option<Entry>> {
        self.call(|step| step.status(now, id)).await
    }

    async fn list(&self, now: Timestamp, list: &List) -> Result<Vec<Entry>> {
        self.call(|step| step.list(now, list)).await
    }

    async fn results(
        &self,
        now: Timestamp,
        after: Option<ResultCursor>,
        max_requests: NonZeroU32,
    ) -> Result<SettledPage> {
        self.call(|step| step.results(now, after, max_requests))
            .await
    }

    async fn cancel(&self, now: Timestamp, ids: &[RequestId]) -> Result<Vec<Cancelled>> {
        self.call(|step| step.cancel(now, ids)).await
    }

    async fn redrive(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        self.call(|step| step.redrive(now, ids)).await
    }

    async fn purge(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        self.call(|step| step.purge(now, ids)).await
    }

    async fn batch(&self, now: Timestamp, id: BatchId) -> Result<Option<BatchEntry>> {
        self.call(|step| step.batch(now, id)).await
    }

    async fn batches(
        &self,
        now: Timestamp,
        after: Option<BatchId>,
        max_batches: NonZeroU32,
    ) -> Result<Vec<BatchEntry>> {
        self.call(|step| step.batches(now, after, max_batches))
            .await
    }

    async fn release(&self, now: Timestamp, ids: &[BatchId]) -> Result<Vec<BatchId>> {
        self.call(|step| step.release(now, ids)).await
    }
}
