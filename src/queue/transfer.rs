//! Everything that a queue stores, as records in plain data: from one backend to another without loss.
//!
//! ```text
//!   dump     Request ... Request  Batch ...  Settled ...  Key ...  Bookmark ...  Queue
//!            by id                by id      in order     by key   by source     the counters, and the end
//!   moment   dumps of all queues of a store, as they were at one moment, while it goes on
//!   restore  the same, in the same order, into an empty queue: all of it is there once `Queue` is, or nothing
//! ```
//! [`lines`] has the records as JSON Lines, and [`copy`] takes all of a moment into another store.

mod copy;
pub mod lines;
mod order;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use self::copy::copy;
pub(crate) use self::order::Order;
use super::{Entry, ResultCursor};
use crate::{
    batch::{BatchId, Fence, Outcome},
    clock::Timestamp,
    error::{Error, Result},
    request::{Position, QueueName, RequestId},
    stats::Stats,
};

/// What takes a queue to another backend; [`Queue::transfer`](crate::Queue::transfer) answers whether it has it.
///
/// # Contract
/// A queue that took in what another dumped is like it: ids, payloads, attributes, states, order, ages,
/// attempts, errors, results and the order of settling, open batches with their outcomes, checkpoints
/// and contexts, idempotency keys, bookmarks, and counters; a dump of it is equal, record by record.
/// Other are: leases (a batch that was held is offered at once, and old leases are lost: fences go on above
/// all earlier ones), and cursors of [`results`](crate::Administration::results), which begin anew.
/// Options are not stored, so they don't move; what was kept stays kept for as long as it would have been.
#[async_trait]
pub trait Transfer: Send + Sync {
    /// The next records, as of `now`, in pages of about a thousand or 4 MiB. All pages are those of one moment
    /// only if nothing else calls the queue meanwhile, and `now` is the same; otherwise see [`Moment`].
    ///
    /// # Errors
    /// As every verb of [`Queue`](crate::Queue).
    async fn dump(&self, now: Timestamp, from: DumpFrom) -> Result<DumpPage>;

    /// Begins to take in what another queue dumped. Nothing of it is visible before its end.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid): something was pushed to this queue before, or claimed from it; or
    /// it takes in another dump just now. On a server, where nobody can tell whether that goes on, this one takes over.
    async fn restore(&self) -> Result<Box<dyn Restore + '_>>;
}

/// What is being taken in; dropped before its end, or cut off with its process, nothing of it is ever visible,
/// and nothing of it is in the way of the next restore: what came is freed then, or when the store is opened.
#[async_trait]
pub trait Restore: Send {
    /// Takes in the next records of a dump, in its order. With [`Record::Queue`], the last one, all of them are
    /// there, durably, in one step.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid): a record that does not fit to those before, or that no queue can have
    /// dumped, counts that don't add up, or a queue that was used meanwhile; nothing is taken in. Others as every verb of
    /// [`Queue`](crate::Queue).
    async fn add(&mut self, records: Vec<Record>) -> Result<()>;
}

/// All that the queues of a store held at one moment, whatever becomes of them while it is read;
/// [`Store::moment`](crate::Store::moment) answers it.
///
/// # Contract
/// What it dumps of a queue is what [`Transfer::dump`] would have at that moment, byte by byte, also while others push,
/// claim and settle: they don't wait for it. It takes memory that does not grow with what the queues hold, except where
/// they are in memory themselves. On the disk it keeps what is no longer needed otherwise, until it is dropped: when the
/// disk gets low, it is given up for that. A store has few of them at a time.
#[async_trait]
pub trait Moment: Send + Sync + fmt::Debug {
    /// The queues that there were, in order.
    fn queues(&self) -> Vec<QueueName>;

    /// The next records of a queue, in pages as those of [`Transfer::dump`]. Any page may be read again.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound): there was no such queue.
    /// [`Unavailable`](crate::ErrorKind::Unavailable): the disk got low, and the moment was given up; take another one when there
    /// is room. Others as every verb of [`Queue`](crate::Queue).
    async fn dump(&self, queue: &QueueName, from: DumpFrom) -> Result<DumpPage>;
}

/// The moments of a store that there are: few, since each keeps from being freed what it holds.
#[derive(Debug, Default)]
pub(crate) struct Turns(Arc<()>);

impl Turns {
    /// A turn for one more, which ends when it is dropped.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if there are as many as there may be.
    pub(crate) fn take(&self) -> Result<Arc<()>> {
        if Arc::strong_count(&self.0) > MOST_MOMENTS {
            return Err(Error::unavailable(format!(
                "{MOST_MOMENTS} dumps of this store are being read already; let one of them end first"
            )));
        }
        Ok(Arc::clone(&self.0))
    }
}

/// No queue of this name was there at the moment.
pub(crate) fn not_there(queue: &QueueName) -> Error {
    Error::not_found(format!("there was no queue {queue:?} at that moment"))
}

/// Where a page of a dump begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DumpFrom {
    /// At the first record.
    #[default]
    Start,
    /// After the request with this id.
    Request(RequestId),
    /// At the open batches, which are one page.
    Batches,
    /// After this place in the order of settling; `None`: at the first that was settled.
    Settled(Option<ResultCursor>),
    /// After this key; `None`: at the first one.
    Keys(Option<Digest>),
    /// At the bookmarks, behind which the end is.
    Bookmarks,
}

/// A page of a dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpPage {
    /// Its records; there may be none before the end.
    pub records: Vec<Record>,
    /// Those done requests of them whose result is damaged, and therefore not on their record.
    pub damaged: Vec<RequestId>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<DumpFrom>,
}

impl DumpPage {
    /// The bytes of its payloads and results.
    pub(super) fn bytes(&self) -> usize {
        let bytes = self.records.iter().map(|record| match record {
            Record::Request(request) => request.bytes(),
            _ => 0,
        });
        bytes.sum()
    }
}

/// Something that a queue stores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Record {
    /// A request in any state.
    Request(Box<StoredRequest>),
    /// A batch that has not ended; its members say that they are.
    Batch(OpenBatch),
    /// Done requests and dead letters, in the order in which they were settled.
    Settled(Vec<RequestId>),
    /// A known idempotency key.
    Key(KnownKey),
    /// How far a producer has read.
    Bookmark(crate::request::Bookmark),
    /// The counters: the end.
    Queue(QueueEnd),
}

/// A request with all that is stored of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRequest {
    /// What is known of it; with its payload, unless it is done and its batch has ended.
    pub entry: Entry,
    /// Where it stands: delayed, ready, and members of open batches, done or not.
    pub position: Option<Position>,
    /// When its `ttl` ends: delayed, ready, and members of open batches.
    pub expires_at: Option<Timestamp>,
    /// For members of open batches.
    pub member: Option<StoredMember>,
    /// Until when a done request is kept; `None`: its batch is open.
    pub kept_until: Option<Timestamp>,
}

impl StoredRequest {
    /// The bytes of its payload and of its result.
    pub(super) fn bytes(&self) -> usize {
        let bytes = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        bytes(&self.entry.payload) + bytes(&self.entry.result)
    }
}

/// What is stored of a member of an open batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMember {
    /// The attempts it had before this batch and those that this one was split from.
    pub attempts_before: u32,
    /// Whether it is cancelled if it would come back.
    pub is_cancelled: bool,
    /// The recorded outcome, unless it is done: then the entry says so.
    pub outcome: Option<Outcome>,
}

/// A batch that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenBatch {
    /// The batch.
    pub id: BatchId,
    /// The batch that it was split from.
    pub parent: Option<BatchId>,
    /// How often it has been claimed without being released.
    pub attempt: u32,
    /// The attempts of the batches that it was split from.
    pub attempts_before: u32,
    /// When it was formed.
    pub formed_at: Timestamp,
    /// From when on it is offered, if it was deferred; `None`: at once.
    pub offered_from: Option<Timestamp>,
    /// The context of the claim that formed it.
    pub context: Bytes,
    /// The last checkpoint that a holder left.
    pub checkpoint: Option<Bytes>,
}

/// The first half of a SHA-256.
pub type Digest = [u8; 16];

/// An idempotency key; what it was pushed with is told by digests alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownKey {
    /// The digest of the key.
    pub key: Digest,
    /// The request that was pushed with it.
    pub id: RequestId,
    /// The digest of that request's payload.
    pub payload: Digest,
    /// When it is forgotten.
    pub expires_at: Timestamp,
}

/// What a queue stores of itself; the counters that can't be told from its requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueEnd {
    /// The last position given.
    pub last_position: Position,
    /// The id of the last batch; its lower half is that of all batches of the queue.
    pub last_batch: BatchId,
    /// The last fence.
    pub last_fence: Fence,
    /// As in [`Stats`].
    pub pushed: u64,
    /// As in [`Stats`].
    pub done: u64,
    /// As in [`Stats`].
    pub expired: u64,
    /// As in [`Stats`].
    pub cancelled: u64,
    /// As in [`Stats`].
    pub purged: u64,
}

/// The digest that stands for a key or a payload.
pub(crate) fn digest(bytes: &[u8]) -> Digest {
    let mut digest = [0; 16];
    digest.copy_from_slice(&Sha256::digest(bytes)[..16]);
    digest
}

/// Checks that all batches of a dump are one queue's: the lower half of their ids is the same.
#[cfg(any(feature = "sled", feature = "redis"))]
#[derive(Debug, Default)]
pub(crate) struct OneQueue(Option<u64>);

#[cfg(any(feature = "sled", feature = "redis"))]
impl OneQueue {
    /// The upper half of a batch's id.
    pub(crate) fn formed(&mut self, id: BatchId) -> Result<u64> {
        let (formed, queue) = id.halves();
        if *self.0.get_or_insert(queue) != queue {
            return Err(Error::invalid(format!(
                "batch {id} of the dump is another queue's: a queue keeps its own batches only"
            )));
        }
        Ok(formed)
    }
}

/// What more records are answered once a restore has ended or failed.
pub(crate) fn is_over() -> Error {
    Error::invalid("this restore has ended; begin another one, in a new queue")
}

/// Another restore of the same queue is under way.
#[cfg(any(feature = "sled", feature = "redis"))]
pub(crate) fn is_being_restored() -> Error {
    Error::invalid("another dump is being taken in by this queue; let it end first")
}

/// A batch without members.
#[cfg(any(feature = "sled", feature = "redis"))]
pub(crate) fn no_members(batch: BatchId) -> Error {
    Error::invalid(format!("batch {batch} of the dump has no members"))
}

/// There were so many settled requests more than in the order of settling.
#[cfg(any(feature = "sled", feature = "redis"))]
pub(crate) fn unordered(count: u64) -> Error {
    Error::invalid(format!(
        "the dump is not whole: {count} of its requests have no place in the order of settling"
    ))
}

/// A record that can't be taken in.
pub(crate) fn unfit(id: RequestId, why: &str) -> Error {
    Error::invalid(format!("request {id} of the dump {why}"))
}

/// A request that says that it is in a batch which is not there, or one that is another queue's.
pub(crate) fn no_batch(id: RequestId, batch: BatchId) -> Error {
    unfit(id, &format!("is of batch {batch}, which is not in it"))
}

/// Fails unless nothing ever happened in a queue.
pub(crate) fn check_unused(pushed: u64, has_bookmarks: bool) -> Result<()> {
    match pushed {
        0 if !has_bookmarks => Ok(()),
        pushed => Err(Error::invalid(format!(
            "the queue is in use: {pushed} requests were pushed to it; take the dump into one that is new"
        ))),
    }
}

/// Fails unless what was taken in is as much as the end of the dump says.
pub(crate) fn check_sums(stats: &Stats) -> Result<()> {
    if stats.pushed > MOST_COUNTED {
        return Err(Error::invalid(
            "the counts of the dump leave no room for others",
        ));
    }
    if !stats.adds_up() {
        return Err(Error::invalid(format!(
            "the dump is not whole: {} requests were pushed, and it has {} delayed, {} ready, {} in flight, {} done, {} dead, {} expired, {} cancelled, {} purged",
            stats.pushed,
            stats.delayed,
            stats.ready,
            stats.in_flight,
            stats.done,
            stats.dead,
            stats.expired,
            stats.cancelled,
            stats.purged
        )));
    }
    Ok(())
}

/// Nobody counts as far as this; positions, batches and fences are below it for 200 years to come.
pub(crate) const MOST: u64 = u64::MAX / 2;
/// No counter goes beyond it, so that all of them can be summed up.
pub(crate) const MOST_COUNTED: u64 = MOST >> 2;
/// A store has no more moments at a time.
const MOST_MOMENTS: usize = 4;
/// A page of a dump ends after so many records, or about so many bytes of payloads.
pub(crate) const PAGE_RECORDS: usize = 1000;
pub(crate) const PAGE_BYTES: usize = 4 << 20;
