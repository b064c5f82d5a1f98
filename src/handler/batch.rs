//! The handle of a batch that a handler works with.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio_util::sync::CancellationToken;

use crate::{
    batch::{BatchId, Lease, Member, Outcome, Page, Then, Update},
    error::Result,
    fault::point,
    format::template::Template,
    queue::Queue,
    request::{DeadReason, QueueName, RequestId},
};

/// A batch in the hands of its handler: cheap to clone, and free to move between threads.
///
/// Its members, their order and its id are the same at every redelivery. Everything that it records is
/// durable when the call answers, is fenced, and extends the lease.
#[derive(Clone)]
pub struct Batch(Arc<Inner>);

struct Inner {
    queue: Arc<dyn Queue>,
    lease: Lease,
    template: Template,
    options: BatchOptions,
    checkpoint: Mutex<Option<Bytes>>,
    /// Requests whose outcome was recorded through this handle.
    recorded: Mutex<HashSet<RequestId>>,
    /// The most attempts that a member read so far has had.
    attempts: AtomicU32,
}

/// What a [`Batch`] is made with, besides its queue and its lease.
#[derive(Clone, Debug)]
pub struct BatchOptions {
    /// For how long each recorded step extends the lease. Default: 60 seconds.
    pub lease_duration: Duration,
    /// Cancelled when the handler should stop: its lease is lost, or the dispatcher shuts down.
    pub stop: CancellationToken,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(60),
            stop: CancellationToken::new(),
        }
    }
}

impl Batch {
    /// A handle on a claimed batch: what a dispatcher does, and what a test of a handler needs.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if the batch's context is not one of ours.
    pub fn new(queue: Arc<dyn Queue>, lease: Lease, options: BatchOptions) -> Result<Self> {
        Ok(Self(Arc::new(Inner {
            queue,
            template: Template::decode(&lease.context)?,
            checkpoint: Mutex::new(lease.checkpoint.clone()),
            recorded: Mutex::default(),
            attempts: AtomicU32::new(lease.attempt),
            lease,
            options,
        })))
    }

    /// The batch's id: the idempotency key for whatever the handler does outside the store.
    pub fn id(&self) -> BatchId {
        self.0.lease.batch
    }

    /// The batch that was split into this one and another, if any.
    pub fn parent(&self) -> Option<BatchId> {
        self.0.lease.parent
    }

    /// The queue that it is from.
    pub fn queue(&self) -> QueueName {
        self.0.queue.name()
    }

    /// How often this batch has been handed out without being released: 1 the first time.
    pub fn attempt(&self) -> u32 {
        self.0.lease.attempt
    }

    /// How many members it has, those with an outcome included; never 0.
    #[expect(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> u32 {
        self.0.lease.requests
    }

    /// How many members had no outcome when it was handed out.
    pub fn unsettled(&self) -> u32 {
        self.0.lease.unsettled
    }

    /// The payload bytes of all members.
    pub fn bytes(&self) -> u64 {
        self.0.lease.bytes
    }

    /// The lease behind it.
    pub fn lease(&self) -> &Lease {
        &self.0.lease
    }

    /// The members that have no outcome yet, in order, read page by page as the stream is polled.
    ///
    /// `request_kwargs` are merged under their payloads; a payload that they can't be merged under
    /// is rejected as undecodable on the way and left out. The stream borrows nothing.
    pub fn members(&self) -> impl Stream<Item = Result<Member>> + Send + Unpin + use<> {
        let start = (self.clone(), Some(Page::first()), VecDeque::new());
        Box::pin(stream::try_unfold(
            start,
            |(batch, mut page, mut buffer)| async move {
                loop {
                    if let Some(member) = buffer.pop_front() {
                        return Ok(Some((member, (batch, page, buffer))));
                    }
                    let Some(next) = page else { return Ok(None) };
                    let members = batch.page(next).await?;
                    page = members
                        .last()
                        .map(|last: &Member| next.after(last.position));
                    buffer = batch.prepare(members).await?;
                }
            },
        ))
    }

    /// All members that have no outcome yet, in memory: [`members`](Self::members) collected.
    ///
    /// # Errors
    /// As [`Queue::read`] and [`Queue::update`].
    pub async fn load(&self) -> Result<Vec<Member>> {
        futures_util::TryStreamExt::try_collect(self.members()).await
    }

    /// A page of all members as they are stored, with their outcomes, without `request_kwargs`.
    ///
    /// # Errors
    /// As [`Queue::read`].
    pub async fn page(&self, page: Page) -> Result<Vec<Member>> {
        self.0.queue.read(&self.0.lease, page).await
    }

    /// The checkpoint that was saved last, by this holder or one before it.
    pub fn checkpoint(&self) -> Option<Bytes> {
        locked(&self.0.checkpoint).clone()
    }

    /// Saves a note on how far the work is; the next holder gets it if this one dies.
    ///
    /// # Errors
    /// As [`Queue::update`].
    pub async fn save_checkpoint(&self, checkpoint: impl Into<Bytes> + Send) -> Result<()> {
        self.update(Vec::new(), Some(checkpoint.into())).await
    }

    /// Records outcomes; a member that has one keeps its first.
    ///
    /// # Errors
    /// As [`Queue::update`].
    pub async fn record(&self, outcomes: Vec<(RequestId, Outcome)>) -> Result<()> {
        self.update(outcomes, None).await
    }

    /// Records a page of outcomes and the checkpoint that has passed it, in one atomic step.
    ///
    /// # Errors
    /// As [`Queue::update`].
    pub async fn update(
        &self,
        outcomes: Vec<(RequestId, Outcome)>,
        checkpoint: Option<Bytes>,
    ) -> Result<()> {
        let now = self.0.queue.now();
        let ids: Vec<RequestId> = outcomes.iter().map(|(id, _)| *id).collect();
        let update = Update {
            outcomes,
            checkpoint: checkpoint.clone(),
            then: Then::Hold {
                until: now.after(self.0.options.lease_duration),
            },
        };
        point("handler.record");
        self.0.queue.update(now, &self.0.lease, update).await?;
        point("handler.recorded");
        locked(&self.0.recorded).extend(ids);
        if checkpoint.is_some() {
            *locked(&self.0.checkpoint) = checkpoint;
        }
        Ok(())
    }

    /// Waits until the handler should stop: its lease is lost, or the dispatcher shuts down past its
    /// time-out. Soon after, its future is dropped.
    pub async fn stopped(&self) {
        self.0.options.stop.cancelled().await;
    }

    /// What was in force when the batch was formed.
    pub fn template(&self) -> &Template {
        &self.0.template
    }

    /// The members that are the handler's to work on, with `request_kwargs` merged under them.
    async fn prepare(&self, members: Vec<Member>) -> Result<VecDeque<Member>> {
        let mut ready = VecDeque::with_capacity(members.len());
        let mut bad = Vec::new();
        for mut member in members {
            if member.outcome.is_some() {
                continue;
            }
            self.0.attempts.fetch_max(member.attempt, Ordering::Relaxed);
            match self.0.template.apply(member.payload) {
                Ok(payload) => {
                    member.payload = payload;
                    ready.push_back(member);
                }
                Err(error) => {
                    let reason = DeadReason::Undecodable;
                    bad.push((member.id, Outcome::Reject { reason, error }));
                }
            }
        }
        if !bad.is_empty() {
            self.record(bad).await?;
        }
        Ok(ready)
    }

    /// How many members may still have no outcome. Never too high a count of what is settled by
    /// somebody else: a handler that records again what an earlier holder recorded makes it too low,
    /// so zero is a reason to end the batch, never to call a member done.
    pub(crate) fn remaining(&self) -> usize {
        let recorded = locked(&self.0.recorded).len();
        (self.0.lease.unsettled as usize).saturating_sub(recorded)
    }

    /// The most attempts that a member read so far has had, this one included.
    pub(crate) fn attempts(&self) -> u32 {
        self.0.attempts.load(Ordering::Relaxed)
    }
}

fn locked<T>(slot: &Mutex<T>) -> MutexGuard<'_, T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("queue", &self.queue())
            .field("lease", &self.0.lease)
            .finish_non_exhaustive()
    }
}
