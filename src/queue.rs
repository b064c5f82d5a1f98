//! The port of every backend: five required verbs with a written contract.
//!
//! [`Queue`] is one named queue. [`Store`] opens queues by name. [`Administration`] looks into a queue
//! and mends it. [`QueueExt`] adds sugar to every queue. The contract below is tested, clause by
//! clause, by the conformance suite (`testing` feature) on our backends and on yours.

mod admin;
#[cfg(any(feature = "journal", feature = "sled"))]
pub(crate) mod compact;
pub(crate) mod directive;
mod ext;
#[cfg(feature = "journal")]
pub(crate) mod folder;
#[cfg(feature = "journal")]
pub(crate) mod journal;
#[cfg(any(feature = "journal", feature = "sled"))]
pub(crate) mod lock;
pub(crate) mod memory;
mod options;
#[cfg(any(feature = "journal", feature = "sled"))]
pub(crate) mod progress;
#[cfg(feature = "redis")]
pub(crate) mod redis;
mod room;
#[cfg(feature = "sled")]
pub(crate) mod sled;
#[cfg(any(feature = "journal", feature = "sled"))]
pub(crate) mod stated;
#[cfg(any(feature = "journal", feature = "sled"))]
mod stored;
pub mod transfer;
pub(crate) mod verified;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use self::{
    admin::{
        Administration, BatchEntry, BatchState, Cancelled, Entry, List, OutcomeCounts,
        ResultCursor, Settled, SettledPage,
    },
    ext::QueueExt,
    options::{QueueOptions, WhenFull},
};
pub(crate) use self::{
    transfer::{Moment, Transfer},
    verified::{Verified, VerifyProgress},
};
use crate::{
    batch::{Claim, Lease, Member, Page, Update},
    clock::{self, Timestamp},
    error::{Error, Result},
    request::{Bookmark, NewRequest, Pushed, QueueName},
    stats::Stats,
};

/// A durable queue of requests that leave in batches.
///
/// # Contract
/// - **`now` is a value.** Each verb that takes `now` acts as if it were that time: expiry and
///   promotion of due requests are applied by the first verb whose `now` is past them, before
///   anything else. A time has come when `now` is equal to it or later. A `now` smaller than an
///   earlier one is legal; nothing is undone by it.
/// - **One step.** Each verb is atomic and isolated: all of it or nothing, and no other call sees a
///   part of it. A verb that answered `Ok` is visible to every later call.
/// - **Conservation.** Every acknowledged request is in exactly one [`State`](crate::State), and
///   [`Stats::adds_up`] holds in every reading.
/// - **Fencing.** [`update`](Self::update) and [`read`](Self::read) with a lease whose fence is no
///   longer the batch's are [`LeaseLost`](crate::ErrorKind::LeaseLost) and change nothing. A lease
///   whose `until` has passed is still good until another claim takes the batch: work that was
///   done is not thrown away because a heartbeat was late. It is good after the queue was closed
///   and opened again, too; a backend whose opening proves that every holder is gone may offer
///   their batches at once, instead of when their leases run out.
/// - **No spinning.** After a `claim` that answered `None`, the next `stats` shows nothing that the
///   claim could have taken, or names a later time.
///
/// # Durability
/// A verb that changes something answers after the change is as durable as
/// [`capabilities`](Self::capabilities) say. There is no weaker mode.
///
/// # Ordering
/// Batches form in position order, and members are read in position order. Requests of one push
/// stay in their order and next to each other.
///
/// # Cancel safety
/// Dropping the future of a verb leaves the queue consistent. Whether a dropped `push`, `claim` or
/// `update` took effect is unknown: a dropped claim's batch is offered again when its lease runs out;
/// give requests an idempotency key if their push may be repeated.
///
/// # Errors
/// Every verb may fail with [`Closed`](crate::ErrorKind::Closed), [`Poisoned`](crate::ErrorKind::Poisoned),
/// [`Unavailable`](crate::ErrorKind::Unavailable), [`Corrupt`](crate::ErrorKind::Corrupt) or
/// [`Internal`](crate::ErrorKind::Internal), besides what it names itself.
#[async_trait]
pub trait Queue: Send + Sync + fmt::Debug + 'static {
    /// Adds requests, all or none, at the tail; answers in their order. An empty push adds nothing.
    ///
    /// A request with `not_before` after `now` is delayed. An idempotency key that was pushed within
    /// the queue's window, or earlier in this very push, answers with that request's id and
    /// `duplicate`, whatever became of it since. The new requests of one push have consecutive ids.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid): a request over a limit ([`NewRequest::validate`]), or a
    /// known key with another payload. [`QueueFull`](crate::ErrorKind::QueueFull): the bounds of the
    /// queue would be exceeded, after waiting as [`WhenFull`] says, or the disk is nearly full.
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>>;

    /// One consistent reading. Cheap at any depth: the oldest request is one seek, nothing is counted.
    ///
    /// # Errors
    /// As every verb.
    async fn stats(&self, now: Timestamp) -> Result<Stats>;

    /// Takes a batch: the longest-formed one of those offered again (orphans, released ones, due
    /// deferred ones), else, if `claim.form` and the queue is [`due`](Claim::due), a new one of the first
    /// ready requests within both limits.
    ///
    /// Forming is one durable step. Its requests are in flight before the answer. The claim walks in
    /// position order: a request that alone exceeds `max_bytes` is dead-lettered as `TooLarge` and the
    /// claim goes on; the first that does not fit beside those taken ends the batch, and no smaller
    /// one behind it overtakes. A backend may end a new batch earlier, but not before its 64th
    /// request, and never with none. A batch offered again keeps its id, members, order, recorded
    /// outcomes, checkpoint and context, whatever the limits of this claim; its attempt is one more
    /// and its fence is new.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid): a context over 64 KiB ([`Claim::validate`]).
    async fn claim(&self, now: Timestamp, claim: &Claim) -> Result<Option<Lease>>;

    /// Reads the next members of a held batch in position order, each with its recorded outcome; an
    /// empty page is the end.
    ///
    /// # Errors
    /// [`LeaseLost`](crate::ErrorKind::LeaseLost): the batch has another holder, was given back or
    /// [released](Administration::release), or has ended.
    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>>;

    /// Records outcomes, replaces the checkpoint and decides what is next, in one atomic durable step.
    ///
    /// The first outcome of a member wins. `Done` is visible at once; retry and reject take effect
    /// when the batch ends. A retried member gets a position at the tail and keeps its id, payload and
    /// attributes; if it was cancelled or its `ttl` has passed, that is what becomes of it instead.
    /// Within one update members are settled in this order: those recorded as done, as they are named;
    /// the rest as done, by position; dead letters, by position.
    ///
    /// # Errors
    /// [`LeaseLost`](crate::ErrorKind::LeaseLost): the batch has another holder, was given back or
    /// [released](Administration::release), or has ended.
    /// [`Invalid`](crate::ErrorKind::Invalid): an id that is not a member, a checkpoint over 64 KiB
    /// ([`Update::validate`]), or a split with fewer than two members without an outcome. In either
    /// case nothing changes.
    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> Result<()>;

    /// The time to call verbs with: the process's clock, which never steps; a shared backend answers
    /// its server's time.
    fn now(&self) -> Timestamp {
        clock::now()
    }

    /// The queue's name, for logs, events and handlers.
    fn name(&self) -> QueueName {
        QueueName::default()
    }

    /// What this backend promises; the conformance suite tests all of it.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// A counter that moves whenever a call, of this process or another, may have given a dispatcher
    /// something to do, a waiting push room, or a request its outcome.
    ///
    /// Mark it seen, look at the queue, then wait for a change: no wake-up is lost. A backend without
    /// one (the default) relies on the dispatcher's `time_interval`.
    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// [`push`](Self::push) that also stores how far its producer has read, in the same atomic step.
    ///
    /// # Errors
    /// As `push`; and [`Invalid`](crate::ErrorKind::Invalid) on a backend without the `bookmarks`
    /// capability, or with a source over 512 bytes or a value over 64 KiB ([`Bookmark::validate`]).
    async fn push_from(
        &self,
        now: Timestamp,
        requests: Vec<NewRequest>,
        bookmark: Bookmark,
    ) -> Result<Vec<Pushed>> {
        let _ = (now, requests);
        Err(no_bookmarks(&bookmark.source))
    }

    /// The value of the last bookmark stored for this source.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) on a backend without the `bookmarks` capability.
    async fn bookmark(&self, source: &str) -> Result<Option<Bytes>> {
        Err(no_bookmarks(source))
    }

    /// The verbs that look into the queue and mend it, if this backend has them.
    fn admin(&self) -> Option<&dyn Administration> {
        None
    }

    /// What takes the queue to another backend without loss, if this backend has it.
    fn transfer(&self) -> Option<&dyn Transfer> {
        None
    }

    /// Refuses new calls, waits for those under way, and lets go of what it holds. Dropping the last
    /// handle does the same without waiting. What was answered is durable either way. The default
    /// does nothing, which suits a backend that can't be opened again.
    ///
    /// # Errors
    /// As every verb.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

fn no_bookmarks(source: &str) -> Error {
    Error::invalid(format!(
        "this backend keeps no bookmarks, so none for {source:?}"
    ))
}

/// Opens queues by name: one directory, one server, or one process's memory.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// The queue of this name, made if it does not exist yet.
    ///
    /// # Errors
    /// [`Closed`](crate::ErrorKind::Closed), [`Unavailable`](crate::ErrorKind::Unavailable),
    /// [`Poisoned`](crate::ErrorKind::Poisoned).
    async fn queue(&self, name: &QueueName) -> Result<Arc<dyn Queue>>;

    /// The names of all queues that begin with `prefix` (the empty one: all), in order.
    ///
    /// # Errors
    /// As [`queue`](Self::queue).
    async fn queues(&self, prefix: &str) -> Result<Vec<QueueName>>;

    /// A counter that moves when a queue was made, as [`Queue::pushed`]; `None`: ask now and then.
    fn created(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// All that is stored as of `now`, of all queues at one moment, to be dumped while the store goes on; `None` if this
    /// backend can't hold a moment, and dumps queue by queue and page by page only.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable): there are as many moments as there may be. Others as every verb of [`Queue`].
    async fn moment(&self, now: Timestamp) -> Result<Option<Box<dyn Moment>>> {
        let _ = now;
        Ok(None)
    }

    /// How much was found to be damaged when the store was opened, as its log says. What nobody has read yet is not
    /// known then: that [`verify`](Self::verify) finds.
    ///
    /// # Errors
    /// As [`queue`](Self::queue).
    async fn damages(&self) -> Result<u64> {
        Ok(0)
    }

    /// Reads all that the store holds, beside those who use it, and says what of it is damaged; `tell` hears how far that is.
    /// Pushes and claims go on meanwhile. What only a store that nobody has open shows is named in
    /// [`not_looked_at`](Verified::not_looked_at).
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid): this backend can't. [`Unavailable`](crate::ErrorKind::Unavailable): nothing went on
    /// for 10 minutes, or it was given up so that pushes go on. And as [`queue`](Self::queue).
    ///
    /// # Cancel safety
    /// Dropped, it ends soon.
    async fn verify(&self, tell: &mut (dyn FnMut(VerifyProgress) + Send)) -> Result<Verified> {
        let _ = tell;
        Err(Error::invalid(
            "this backend tells damage when it is met, and can't look for it",
        ))
    }

    /// Closes every queue and lets go of the store.
    ///
    /// # Errors
    /// As [`queue`](Self::queue).
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// What a backend promises.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent yes-or-no answers, read by name"
)]
pub struct Capabilities {
    /// What an answered call survives.
    pub durability: Durability,
    /// Opening it again brings back what it held.
    pub survives_restart: bool,
    /// Several processes may use it at the same time.
    pub shared: bool,
    /// Resident memory grows neither with depth nor with batch size.
    pub bounded_memory: bool,
    /// Opens whatever was damaged, and serves the rest.
    pub opens_after_damage: bool,
    /// [`Queue::admin`] answers.
    pub administration: bool,
    /// [`Queue::push_from`] and [`Queue::bookmark`] work.
    pub bookmarks: bool,
    /// Kept results: a `done` request can be looked up for the queue's retention.
    pub results: bool,
    /// [`Administration::batch`], [`Administration::batches`] and [`Administration::release`] work.
    pub batches: bool,
}

impl Default for Capabilities {
    /// The least a backend can have: nothing beyond the five verbs.
    fn default() -> Self {
        Self {
            durability: Durability::Process,
            survives_restart: false,
            shared: false,
            bounded_memory: false,
            opens_after_damage: false,
            administration: false,
            bookmarks: false,
            results: false,
            batches: false,
        }
    }
}

/// What an answered call survives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Nothing beyond this process.
    Process,
    /// Power loss: the bytes are on stable storage.
    Disk,
    /// What the server's own settings survive, as read at connect.
    Server {
        /// The settings in words, such as `appendonly yes, appendfsync always`.
        policy: String,
    },
}
