//! Looking into a queue and mending it: status, list, results, cancel, redrive, purge, batches, release.

use std::num::NonZeroU32;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    batch::{BatchId, Fence},
    clock::Timestamp,
    error::{Error, Result},
    request::{Attributes, DeadReason, RequestId, State},
};

/// The optional verbs of a queue; [`Queue::admin`](crate::Queue::admin) answers whether it has them.
///
/// # Contract
/// As [`Queue`](crate::Queue): `now` is a value, each verb is one step, durable when answered. Ids that
/// are unknown, or in a state that the verb does not apply to, are passed over and not counted.
///
/// A cancel, redrive or purge that a crash cuts off before it is answered may be done for some of its requests, each of them as a
/// whole, if they are many or large. Make the call again: those that are through are passed over.
#[async_trait]
pub trait Administration: Send + Sync {
    /// Where a request is and what is known of it, without its payload; `None` if it was never
    /// pushed or is past its retention (done), or expired, cancelled or purged.
    ///
    /// # Errors
    /// As every verb of [`Queue`](crate::Queue).
    async fn status(&self, now: Timestamp, id: RequestId) -> Result<Option<Entry>>;

    /// The next requests in one state, in order of their ids. `Expired` and `Cancelled` ones are only
    /// counted, so their lists are empty.
    ///
    /// # Errors
    /// As every verb of [`Queue`](crate::Queue).
    async fn list(&self, now: Timestamp, list: &List) -> Result<Vec<Entry>>;

    /// What was settled since a cursor, in the order in which it was: `done` as it is recorded,
    /// dead letters as their batches end. Entries past their retention, purged or redriven since are
    /// left out. An empty page is the end so far.
    ///
    /// # Errors
    /// As every verb of [`Queue`](crate::Queue).
    async fn results(
        &self,
        now: Timestamp,
        after: Option<ResultCursor>,
        max_requests: NonZeroU32,
    ) -> Result<SettledPage>;

    /// Cancels requests: ready and delayed ones at once; those in flight are marked, and cancelled
    /// if they would come back. What happened to each, in order.
    ///
    /// # Errors
    /// As every verb of [`Queue`](crate::Queue).
    async fn cancel(&self, now: Timestamp, ids: &[RequestId]) -> Result<Vec<Cancelled>>;

    /// Makes dead letters ready again, at the tail, with no attempts counted and without their `ttl`;
    /// how many. All of them, or none if there is no room for all.
    ///
    /// # Errors
    /// [`QueueFull`](crate::ErrorKind::QueueFull): the bounds of the queue would be exceeded.
    async fn redrive(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64>;

    /// Forgets dead letters and their payloads; how many.
    ///
    /// # Errors
    /// As every verb of [`Queue`](crate::Queue).
    async fn purge(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64>;

    /// An open batch with its checkpoint and its context; `None` if it has ended, or never was.
    ///
    /// # Errors
    /// As every verb of [`Queue`](crate::Queue); and [`Invalid`](crate::ErrorKind::Invalid) on a backend without the `batches`
    /// [capability](crate::Capabilities::batches).
    async fn batch(&self, now: Timestamp, id: BatchId) -> Result<Option<BatchEntry>> {
        let _ = now;
        Err(no_batches(&format!("nothing of batch {id}")))
    }

    /// The next open batches, held or not, in order of their ids, which is that in which they were formed; without their
    /// checkpoints and contexts. A page may be shorter than asked for; an empty one is the end.
    ///
    /// # Errors
    /// As [`batch`](Self::batch).
    async fn batches(
        &self,
        now: Timestamp,
        after: Option<BatchId>,
        max_batches: NonZeroU32,
    ) -> Result<Vec<BatchEntry>> {
        let _ = (now, after, max_batches);
        Err(no_batches("none of its batches"))
    }

    /// Takes batches from their holders, and ends the wait of deferred ones: each is offered again at once. The ids of those
    /// that it changed, in order, each once; a batch that is offered already, has ended, or never was is passed over.
    ///
    /// The batch keeps its id, members, order, recorded outcomes, checkpoint and context. The attempt of a holder that it is taken
    /// from does not count, as with [`Then::Release`](crate::Then::Release); that of a deferred batch does, because it has failed. From then
    /// on every call with the lease of that holder is [`LeaseLost`](crate::ErrorKind::LeaseLost), and changes nothing.
    ///
    /// Release only a batch whose holder is gone or hangs. A handler that is still at work learns of it with its next heartbeat or
    /// update; until then another may work on the same batch, under the same id. And a batch that kills its holders is found
    /// by its attempts: not if it is released each time before its lease has run out.
    ///
    /// # Errors
    /// As [`batch`](Self::batch).
    async fn release(&self, now: Timestamp, ids: &[BatchId]) -> Result<Vec<BatchId>> {
        let _ = (now, ids);
        Err(no_batches("no batch that could be released"))
    }
}

fn no_batches(shown: &str) -> Error {
    Error::invalid(format!(
        "this backend does not show its open batches, so {shown}"
    ))
}

/// Which requests to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// In this state.
    pub state: State,
    /// With ids larger than this; `None` from the first.
    pub after: Option<RequestId>,
    /// The most entries.
    pub max_requests: NonZeroU32,
    /// Whether to read their payloads; then a page also ends after about 4 MiB of them. A done
    /// request has none.
    pub payloads: bool,
}

impl List {
    /// The first 1,000 requests in this state, without payloads.
    pub fn new(state: State) -> Self {
        Self {
            state,
            after: None,
            max_requests: LIST_REQUESTS,
            payloads: false,
        }
    }

    /// Those after this id.
    #[must_use]
    pub fn after(mut self, id: RequestId) -> Self {
        self.after = Some(id);
        self
    }

    /// With payloads.
    #[must_use]
    pub fn with_payloads(mut self) -> Self {
        self.payloads = true;
        self
    }

    /// At most this many.
    #[must_use]
    pub fn max_requests(mut self, most: NonZeroU32) -> Self {
        self.max_requests = most;
        self
    }
}

/// What is known of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The request.
    pub id: RequestId,
    /// Where it is.
    pub state: State,
    /// How many attempts it has had since it was pushed or redriven.
    pub attempts: u32,
    /// When it was pushed.
    pub pushed_at: Timestamp,
    /// Since when it is in this state; for a delayed one: when it is due; for one in flight: when
    /// its batch was formed.
    pub at: Timestamp,
    /// Its attributes.
    pub attributes: Attributes,
    /// The bytes of its payload (0 for a done one).
    pub bytes: u64,
    /// Its payload, if asked for and still held.
    pub payload: Option<Bytes>,
    /// The batch it is in, or was settled by.
    pub batch: Option<BatchId>,
    /// Done: its result.
    pub result: Option<Bytes>,
    /// Dead: why. Delayed, ready or in flight: `Damaged` if what is stored of it is, for which it will be
    /// dead-lettered.
    pub reason: Option<DeadReason>,
    /// Dead: what happened. Delayed, ready or in flight after a retry: the last error. Of any: that
    /// something of it is damaged.
    pub error: Option<String>,
}

/// A place in the order of settling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ResultCursor(pub u64, pub u64);

/// A request that was settled.
pub type Settled = Entry;

/// A page of [`Administration::results`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledPage {
    /// Done and dead requests, in the order in which they were settled.
    pub entries: Vec<Settled>,
    /// Where the next page begins; `None` if there was nothing after the cursor.
    pub next: Option<ResultCursor>,
}

/// What [`Administration::cancel`] did to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cancelled {
    /// It was ready or delayed and is cancelled now.
    Now,
    /// It is in flight, and will be cancelled if it would come back.
    IfItComesBack,
    /// It is settled or unknown.
    No,
}

/// What is known of a batch that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchEntry {
    /// The batch.
    pub id: BatchId,
    /// The batch that was split into this one and another.
    pub parent: Option<BatchId>,
    /// When it was formed.
    pub formed_at: Timestamp,
    /// How often it has been claimed without being released: 0 if it has not been yet.
    pub attempt: u32,
    /// The attempts of the batches that it was split from.
    pub attempts_before: u32,
    /// Who has it, and until when.
    pub state: BatchState,
    /// The fence of its holder; also of one whose lease has run out, until another claim takes the batch.
    pub fence: Option<Fence>,
    /// How many members it has.
    pub requests: u32,
    /// The payload bytes of all members.
    pub bytes: u64,
    /// How many of them have an outcome.
    pub outcomes: OutcomeCounts,
    /// The bytes of the last checkpoint that a holder left, if one did.
    pub checkpoint_bytes: Option<u64>,
    /// That checkpoint, if the batch was asked for by its id.
    pub checkpoint: Option<Bytes>,
    /// The context of the claim that formed it, if the batch was asked for by its id.
    pub context: Option<Bytes>,
}

/// Who has an open batch, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BatchState {
    /// A holder, whose lease runs out then.
    Held {
        /// When it is offered again, unless its holder holds on to it.
        until: Timestamp,
    },
    /// Nobody: a claim would get it now. Released, deferred until a time that has come, a half of a batch that was split, or an
    /// orphan.
    Offered,
    /// Nobody: it waits.
    Deferred {
        /// When it is offered again.
        until: Timestamp,
    },
}

impl BatchState {
    /// Of a batch that a holder has or nobody, and that is offered from `until` on.
    pub fn new(now: Timestamp, is_held: bool, until: Timestamp) -> Self {
        if until <= now {
            Self::Offered
        } else if is_held {
            Self::Held { until }
        } else {
            Self::Deferred { until }
        }
    }
}

/// How many members of an open batch have which outcome; what has none is not settled yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeCounts {
    /// Done, which is visible already.
    pub done: u32,
    /// To be tried again when the batch has ended.
    pub retry: u32,
    /// To be dead-lettered when the batch has ended.
    pub reject: u32,
}

const LIST_REQUESTS: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");
