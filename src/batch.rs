//! Batches: how one is claimed, what its holder may do with it, and how it ends.
//!
//! ```text
//!            claim (attempt + 1, new fence)
//!   formed ─────────────────────────────────▶ held ── Finish ──▶ ended
//!                    ▲                          │ ├── Split ───▶ ended, and two batches begin
//!                    │                          │ └── Hold ────▶ held for longer
//!                    ├──── at once ◀── Release ─┤
//!                    ├──── at its time ◀─ Defer ┤
//!                    └──── once `until` passed ─┘   (an orphan: its holder is gone)
//! ```
//! Its id, members, their order and its context never change. Every claim carries a new [`Fence`];
//! a holder whose fence is no longer the batch's gets [`ErrorKind::LeaseLost`](crate::ErrorKind::LeaseLost).

use std::{
    fmt,
    num::{NonZeroU32, NonZeroU64},
    str::FromStr,
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    clock::Timestamp,
    error::{Error, Result},
    request::{Attributes, DeadReason, Position, RequestId},
};

/// The largest checkpoint, context of a claim, or value of a bookmark: 64 KiB.
pub const MAX_CHECKPOINT_BYTES: usize = 64 << 10;

/// Names a batch, the same at every redelivery: the handler's idempotency key.
///
/// The upper half is the monotonic time at which it was formed, so ids of one queue sort by age; the
/// lower half belongs to the queue, so ids of different queues and stores differ. Prints as 32
/// hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BatchId(u128);

impl BatchId {
    /// From the two halves.
    pub const fn new(formed: u64, queue: u64) -> Self {
        Self((formed as u128) << 64 | queue as u128)
    }

    /// The two halves.
    #[expect(clippy::cast_possible_truncation, reason = "a half at a time")]
    pub(crate) const fn halves(self) -> (u64, u64) {
        ((self.0 >> 64) as u64, self.0 as u64)
    }

    /// From its number.
    pub const fn from_u128(value: u128) -> Self {
        Self(value)
    }

    /// Its number.
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BatchId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        u128::from_str_radix(text, 16)
            .ok()
            .filter(|_| digits)
            .map(Self)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "{text:?} is not a batch id: 32 hexadecimal digits are"
                ))
            })
    }
}

impl TryFrom<String> for BatchId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<BatchId> for String {
    fn from(id: BatchId) -> Self {
        id.to_string()
    }
}

/// Tells one claim of a batch from every other claim in its queue, ever; later claims have larger ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(pub u64);

/// What to claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The most requests of a new batch.
    pub max_requests: NonZeroU32,
    /// The most payload bytes of a new batch.
    pub max_bytes: NonZeroU64,
    /// How long the batch is held, unless its holder says `Hold` before.
    pub lease_duration: Duration,
    /// Whether to form a new batch if none is offered again. Default: true.
    pub form: bool,
    /// Form one only if the queue is due at that very moment, whatever a reading said before: of two
    /// dispatchers that saw the same full queue, the second does not get the few requests that the
    /// first left over. Default: whenever anything is ready.
    pub due: Option<Due>,
    /// Stored with a new batch, at most 64 KiB, and given back at every claim of it.
    pub context: Bytes,
}

impl Claim {
    /// A claim of up to 50,000 requests of any size, held for 60 seconds, without a context.
    pub fn new() -> Self {
        Self {
            max_requests: DEFAULT_BATCH_REQUESTS,
            max_bytes: NonZeroU64::MAX,
            lease_duration: Duration::from_secs(60),
            form: true,
            due: None,
            context: Bytes::new(),
        }
    }

    /// Checks the limits that hold on every backend; each `claim` calls it before it changes anything.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid), naming the limit.
    pub fn validate(&self) -> Result<()> {
        check_note("the context of a claim", &self.context)
    }
}

impl Default for Claim {
    fn default() -> Self {
        Self::new()
    }
}

/// When a queue is due for a new batch: as soon as any of these holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    /// This many requests are ready.
    pub requests: u64,
    /// This many payload bytes are ready.
    pub bytes: u64,
    /// The oldest ready request became ready at this time or before.
    pub oldest_at: Option<Timestamp>,
}

impl Due {
    /// Whether a queue that holds this is due; never if nothing is ready.
    pub fn is_met(&self, ready: u64, ready_bytes: u64, oldest_ready_at: Option<Timestamp>) -> bool {
        oldest_ready_at.is_some_and(|oldest| {
            ready >= self.requests
                || ready_bytes >= self.bytes
                || self.oldest_at.is_some_and(|latest| oldest <= latest)
        })
    }
}

/// The handle of a claimed batch: all later calls on the batch carry it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The batch.
    pub batch: BatchId,
    /// The batch that was split into this one and another.
    pub parent: Option<BatchId>,
    /// This claim of it.
    pub fence: Fence,
    /// How often this batch has been claimed without being released: 1 the first time.
    pub attempt: u32,
    /// How many members it has.
    pub requests: u32,
    /// How many of them had no outcome when it was claimed.
    pub unsettled: u32,
    /// The payload bytes of all members.
    pub bytes: u64,
    /// When it was formed.
    pub formed_at: Timestamp,
    /// Until when it is held.
    pub until: Timestamp,
    /// The last checkpoint that a holder left.
    pub checkpoint: Option<Bytes>,
    /// The context of the claim that formed it.
    pub context: Bytes,
}

/// What a backend answers to a lease that it can't serve, in the same words on each.
impl Lease {
    pub(crate) fn lost(&self) -> Error {
        Error::lease_lost(format!(
            "batch {} has ended, was given back, or has another holder",
            self.batch
        ))
    }

    pub(crate) fn no_member(&self, id: RequestId) -> Error {
        Error::invalid(format!(
            "request {id} is not a member of batch {}",
            self.batch
        ))
    }

    pub(crate) fn not_splittable(&self) -> Error {
        Error::invalid(format!(
            "batch {} has fewer than two members without an outcome and can't be split",
            self.batch
        ))
    }
}

/// Which members to read: the next ones after a position, up to both limits, but always at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The position of the last member of the page before; `None` for the first page.
    pub after: Option<Position>,
    /// The most members.
    pub max_requests: NonZeroU32,
    /// The most payload bytes; a single larger member is a page of its own.
    pub max_bytes: NonZeroU64,
}

impl Page {
    /// The first page: up to 1,000 members and 4 MiB.
    pub fn first() -> Self {
        Self {
            after: None,
            max_requests: PAGE_REQUESTS,
            max_bytes: PAGE_BYTES,
        }
    }

    /// The page after the one that ended with `last`.
    #[must_use]
    pub fn after(mut self, last: Position) -> Self {
        self.after = Some(last);
        self
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::first()
    }
}

/// A member of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The request.
    pub id: RequestId,
    /// Its position, which is its order in the batch.
    pub position: Position,
    /// How many attempts it has had, this one included, in this batch and in those before.
    pub attempt: u32,
    /// When it was pushed.
    pub pushed_at: Timestamp,
    /// Its bytes.
    pub payload: Bytes,
    /// Its attributes.
    pub attributes: Attributes,
    /// The outcome already recorded, if any: that work need not be done again.
    pub outcome: Option<Outcome>,
}

/// What became of a member. The first one recorded wins; later ones are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It succeeded; visible at once, and kept for the queue's retention.
    Done {
        /// What to keep as its result.
        result: Option<Bytes>,
    },
    /// It failed and is to be tried again in a later batch, when this one has ended.
    Retry {
        /// Why it failed.
        error: String,
        /// Not before this time, if it is later than the backoff.
        not_before: Option<Timestamp>,
    },
    /// It failed for good and is dead-lettered when its batch has ended.
    Reject {
        /// Why it is given up.
        reason: DeadReason,
        /// What happened.
        error: String,
    },
}

impl Outcome {
    /// Succeeded, without a result.
    pub fn done() -> Self {
        Self::Done { result: None }
    }

    /// Succeeded with this result.
    pub fn result(result: impl Into<Bytes>) -> Self {
        Self::Done {
            result: Some(result.into()),
        }
    }

    /// Failed; to be tried again after the usual backoff.
    pub fn retry(error: impl Into<String>) -> Self {
        Self::Retry {
            error: error.into(),
            not_before: None,
        }
    }

    /// Failed for good.
    pub fn reject(error: impl Into<String>) -> Self {
        Self::Reject {
            reason: DeadReason::Rejected,
            error: error.into(),
        }
    }
}

/// One atomic step of a holder on its batch: everything in it, or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// Outcomes to record; ids that are not members make the whole update `Invalid`.
    pub outcomes: Vec<(RequestId, Outcome)>,
    /// A new checkpoint in place of the last; `None` leaves it. At most [`MAX_CHECKPOINT_BYTES`].
    pub checkpoint: Option<Bytes>,
    /// What happens to the batch next.
    pub then: Then,
}

impl Update {
    /// An update that only does `then`.
    pub fn then(then: Then) -> Self {
        Self {
            outcomes: Vec::new(),
            checkpoint: None,
            then,
        }
    }

    /// Checks the limits that hold on every backend; each `update` calls it before it changes anything.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid), naming the limit.
    pub fn validate(&self) -> Result<()> {
        check_note(
            "a checkpoint",
            self.checkpoint.as_deref().unwrap_or_default(),
        )
    }
}

/// What happens to the batch after an [`Update`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Then {
    /// The holder keeps it, until this time unless it says so again.
    Hold {
        /// When it becomes an orphan.
        until: Timestamp,
    },
    /// The holder gives it back; it is offered again at once, and this attempt does not count.
    Release,
    /// The holder gives it back; it is offered again from this time on, and this attempt counts.
    Defer {
        /// When it is offered again.
        until: Timestamp,
    },
    /// The batch ends. Members with an outcome are settled by it; the others, in order, become two
    /// batches of equal size (the first may have one more), with ids of their own, this batch as
    /// `parent`, its context, no checkpoint, attempt 0, and offered at once. Needs two such members.
    Split {
        /// What becomes of the members to be retried.
        retries: Retries,
    },
    /// The batch ends and every member is settled.
    Finish {
        /// The outcome of members that have none.
        rest: Outcome,
        /// What becomes of the members to be retried.
        retries: Retries,
    },
}

/// What becomes of members with a retry outcome when their batch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retries {
    /// When they are ready again, or later if their outcome says so; in the past: at once.
    pub at: Timestamp,
    /// Those that have had this many attempts are dead-lettered as exhausted instead.
    pub max_attempts: NonZeroU32,
}

/// Contexts, checkpoints and bookmarks are notes of their callers, and small.
pub(crate) fn check_note(what: &str, note: &[u8]) -> Result<()> {
    if note.len() > MAX_CHECKPOINT_BYTES {
        return Err(Error::invalid(format!(
            "{what} has {} bytes, and at most {MAX_CHECKPOINT_BYTES} are allowed",
            note.len()
        )));
    }
    Ok(())
}

const DEFAULT_BATCH_REQUESTS: NonZeroU32 = NonZeroU32::new(50_000).expect("not zero");
const PAGE_REQUESTS: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");
const PAGE_BYTES: NonZeroU64 = NonZeroU64::new(4 << 20).expect("not zero");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_ids_sort_by_time_and_survive_text() {
        let (early, late) = (BatchId::new(1, u64::MAX), BatchId::new(2, 0));
        assert!(early < late);
        assert_eq!(early.to_string().parse::<BatchId>().unwrap(), early);
        assert!("2a".parse::<BatchId>().is_err());
    }
}
