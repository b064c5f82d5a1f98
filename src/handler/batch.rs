//! The handle of a batch that a handler works with.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    num::NonZeroU32,
    ops::AddAssign,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::Span;

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
    /// Requests whose outcome was recorded through this handle, and which it was.
    recorded: Mutex<HashMap<RequestId, Given>>,
    /// Members read so far that have had more attempts than one, and how many.
    tried: Mutex<HashMap<RequestId, u32>>,
    /// The most attempts that a member read so far has had.
    attempts: AtomicU32,
    /// That of the handler's work, if somebody traces.
    span: OnceLock<Span>,
    /// How many members it is linked to.
    #[cfg(feature = "otel")]
    links: AtomicU32,
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
            tried: Mutex::default(),
            attempts: AtomicU32::new(lease.attempt),
            span: OnceLock::new(),
            #[cfg(feature = "otel")]
            links: AtomicU32::new(0),
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
        let given: Vec<_> = outcomes
            .iter()
            .map(|(id, outcome)| (*id, Given::of(outcome)))
            .collect();
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
        let mut recorded = locked(&self.0.recorded);
        for (id, given) in given {
            // The first one wins.
            recorded.entry(id).or_insert(given);
        }
        drop(recorded);
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
            #[cfg(feature = "otel")]
            self.link(&member);
            if member.attempt > 1 {
                locked(&self.0.tried).insert(member.id, member.attempt);
            }
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

    /// The span of the handler's work.
    pub(crate) fn trace(&self, span: &Span) {
        let _ = self.0.span.set(span.clone());
    }

    /// The trace context of that span, as `traceparent` and `tracestate`, for who is called by the handler; `None` if nobody traces.
    #[cfg(any(feature = "command", feature = "http"))]
    pub(crate) fn trace_context(&self) -> Option<(String, String)> {
        self.0.span.get().and_then(crate::trace::context)
    }

    /// Links the span to the one in which this member was pushed.
    #[cfg(feature = "otel")]
    fn link(&self, member: &Member) {
        if let Some(span) = self.0.span.get()
            && self.0.links.load(Ordering::Relaxed) < MAX_LINKS
            && crate::trace::link(span, member.id, &member.attributes)
        {
            self.0.links.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The most attempts that a member read so far has had, this one included.
    pub(crate) fn attempts(&self) -> u32 {
        self.0.attempts.load(Ordering::Relaxed)
    }

    /// The outcomes that were recorded through this handle, and this one for the members that have none, if it is given.
    /// A retry of what has no attempts left is a dead letter, as the end of the batch makes it one.
    pub(crate) fn outcomes(
        &self,
        rest: Option<&Outcome>,
        max_attempts: NonZeroU32,
    ) -> AttemptOutcomes {
        let recorded = locked(&self.0.recorded);
        let tried = locked(&self.0.tried);
        let all_used_up = self.0.lease.attempt.max(1) >= max_attempts.get();
        let used_up = |id: &RequestId| {
            let attempts = tried.get(id).copied().unwrap_or(self.0.lease.attempt);
            attempts >= max_attempts.get()
        };
        let mut counts = AttemptOutcomes::default();
        for (id, given) in recorded.iter() {
            counts.add(*given, 1, || u64::from(used_up(id)));
        }
        let open = (self.0.lease.unsettled as usize).saturating_sub(recorded.len()) as u64;
        if let Some(rest) = rest.map(Given::of) {
            counts.add(rest, open, || {
                if all_used_up {
                    return open;
                }
                let open = tried.keys().filter(|id| !recorded.contains_key(id));
                open.filter(|id| used_up(id)).count() as u64
            });
        }
        counts
    }
}

/// Which outcome a member was given.
#[derive(Clone, Copy, Debug)]
enum Given {
    Done,
    Retry,
    Dead(DeadReason),
}

impl Given {
    fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Done { .. } => Self::Done,
            Outcome::Retry { .. } => Self::Retry,
            Outcome::Reject { reason, .. } => Self::Dead(*reason),
        }
    }
}

/// How many members of a batch were given which outcome, in one attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AttemptOutcomes {
    /// Done.
    pub done: u64,
    /// To be tried again in a later batch.
    pub retried: u64,
    /// Dead: the handler rejected them, or failed for good with each alone.
    pub rejected: u64,
    /// Dead: they failed, or killed their holder, as often as `max_attempts` allows.
    pub exhausted: u64,
    /// Dead: each alone exceeds the limits of a batch.
    pub too_large: u64,
    /// Dead: their payloads are not what the handler or `request_kwargs` needs.
    pub undecodable: u64,
    /// Dead: their stored bytes are damaged.
    pub damaged: u64,
}

impl AddAssign for AttemptOutcomes {
    fn add_assign(&mut self, other: Self) {
        self.done += other.done;
        self.retried += other.retried;
        self.rejected += other.rejected;
        self.exhausted += other.exhausted;
        self.too_large += other.too_large;
        self.undecodable += other.undecodable;
        self.damaged += other.damaged;
    }
}

impl AttemptOutcomes {
    /// Of a batch that no handler can be given.
    pub(crate) fn all_damaged(members: u32) -> Self {
        Self {
            damaged: members.into(),
            ..Self::default()
        }
    }

    /// Counts members; `used_up` are those of them that have no attempts left.
    fn add(&mut self, given: Given, members: u64, used_up: impl FnOnce() -> u64) {
        match given {
            Given::Done => self.done += members,
            Given::Retry => {
                let used_up = used_up().min(members);
                self.retried += members - used_up;
                self.exhausted += used_up;
            }
            Given::Dead(DeadReason::Rejected) => self.rejected += members,
            Given::Dead(DeadReason::Exhausted) => self.exhausted += members,
            Given::Dead(DeadReason::TooLarge) => self.too_large += members,
            Given::Dead(DeadReason::Undecodable) => self.undecodable += members,
            Given::Dead(DeadReason::Damaged) => self.damaged += members,
        }
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

/// The most links of a span: what the SDKs of OpenTelemetry keep by default.
#[cfg(feature = "otel")]
const MAX_LINKS: u32 = 128;
