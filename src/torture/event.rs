//! What a child tells its parent, a line of JSON each: every call before it is made, and its answer after it.
//!
//! ```text
//!   child ── Opened ─ Found ... Surveyed ──▶ parent     what the store holds: compared with the ledger
//!   child ◀── Go ─────────────────────────── parent     (nothing is changed before that)
//!   child ── Call ─ Answer ─ Call ─ Call ──▶ parent     killed anywhere; a line that is cut off was never said
//! ```

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::name::Name;
use crate::{
    batch::{BatchId, Outcome},
    clock::Timestamp,
    queue::Cancelled,
    request::{Position, RequestId, State},
    stats::Stats,
};

/// A line of a child.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Event {
    /// The store is open.
    Opened {
        /// How long that took.
        micros: u64,
        /// What was found amiss.
        report: Vec<String>,
    },
    /// A request that the store holds.
    Request(FoundRequest),
    /// A batch that has not ended.
    Batch(FoundBatch),
    /// That was all of it.
    Surveyed(Whole),
    /// A call is about to be made.
    Call {
        /// Its number.
        call: u64,
        /// The time it is made with.
        now: Timestamp,
        /// What it asks for.
        verb: Verb,
    },
    /// It was answered.
    Answer {
        /// Its number.
        call: u64,
        /// What came back.
        answer: Answer,
    },
    /// Something failed that changes nothing.
    Failed(String),
    /// The store was closed.
    Closed,
}

/// What the parent answers once it has compared.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Go {
    /// Keyed pushes to make again, answered or not, with how many requests they have.
    pub repeat: Vec<(u64, u32)>,
    /// Settle all that is there, tell what is left, and close.
    pub drain: bool,
}

/// A call that changes something.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Verb {
    /// A push of this number; its requests follow from that.
    Push {
        /// Its number.
        push: u64,
        /// How many requests.
        requests: u32,
        /// Whether each has an idempotency key.
        keyed: bool,
    },
    /// A claim, and a read of all members.
    Claim,
    /// A step of a holder.
    Update(Step),
    /// As [`Administration::cancel`](crate::Administration::cancel).
    Cancel(Vec<RequestId>),
    /// As [`Administration::redrive`](crate::Administration::redrive).
    Redrive(Vec<RequestId>),
    /// As [`Administration::purge`](crate::Administration::purge).
    Purge(Vec<RequestId>),
}

/// A step of a holder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    /// The batch.
    pub batch: BatchId,
    /// The checkpoint it leaves; has the fence.
    pub note: Note,
    /// The outcomes it records.
    pub outcomes: Vec<(RequestId, Fate)>,
    /// What happens to the batch.
    pub then: Next,
}

/// A checkpoint: the fence of the claim, and how many updates it has made. Later ones are larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Note(pub u64, pub u32);

impl Note {
    /// As stored.
    pub fn bytes(self) -> Bytes {
        format!("{} {}", self.0, self.1).into()
    }

    /// From what is stored.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (fence, count) = str::from_utf8(bytes).ok()?.split_once(' ')?;
        Some(Self(fence.parse().ok()?, count.parse().ok()?))
    }
}

/// An outcome without its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// With the result that follows from its name.
    Done,
    /// Done without a result.
    Plain,
    /// To be tried again.
    Retry,
    /// Given up.
    Reject,
    /// Done, with a result that is not its own.
    Foreign,
}

impl Fate {
    /// The outcome of a request of this name.
    pub fn outcome(self, name: Name) -> Outcome {
        match self {
            Self::Done | Self::Foreign => Outcome::result(name.result()),
            Self::Plain => Outcome::done(),
            Self::Retry => Outcome::retry("again"),
            Self::Reject => Outcome::reject("never"),
        }
    }

    /// What an outcome is that a request of this name has.
    pub fn of(outcome: &Outcome, name: Option<Name>) -> Self {
        match outcome {
            Outcome::Done { result } => Self::done(result.as_ref(), name),
            Outcome::Retry { .. } => Self::Retry,
            Outcome::Reject { .. } => Self::Reject,
        }
    }

    /// Done with this result.
    pub fn done(result: Option<&Bytes>, name: Option<Name>) -> Self {
        match result {
            None => Self::Plain,
            Some(result) if name.map(Name::result).as_ref() == Some(result) => Self::Done,
            Some(_) => Self::Foreign,
        }
    }

    /// Whether it succeeded.
    pub fn is_done(self) -> bool {
        !matches!(self, Self::Retry | Self::Reject)
    }
}

/// What happens to the batch after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    /// Held, released or deferred: it goes on.
    On,
    /// Ended, and two begin.
    Split,
    /// Ended, the rest with this outcome.
    Finish(Fate),
}

/// What a call was answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The ids, and whether each was known by its key.
    Pushed(Vec<(RequestId, bool)>),
    /// No room: nothing was pushed.
    Full,
    /// A batch with all its members, or none.
    Claimed(Option<Claimed>),
    /// The step was taken.
    Updated,
    /// Another has the batch.
    Lost,
    /// What happened to each.
    Cancelled(Vec<Mark>),
    /// To how many it happened.
    Count(u64),
    /// An error that leaves open what happened.
    Failed(String),
}

/// What a cancel did to a request, as [`Cancelled`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each is that of Cancelled")]
pub enum Mark {
    Now,
    IfItComesBack,
    No,
}

impl From<Cancelled> for Mark {
    fn from(cancelled: Cancelled) -> Self {
        match cancelled {
            Cancelled::Now => Self::Now,
            Cancelled::IfItComesBack => Self::IfItComesBack,
            Cancelled::No => Self::No,
        }
    }
}

/// A claimed batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// The batch.
    pub batch: BatchId,
    /// The one it was split from.
    pub parent: Option<BatchId>,
    /// Of this claim.
    pub fence: u64,
    /// The last checkpoint.
    pub note: Option<Note>,
    /// The context of the claim that formed it.
    pub context: String,
    /// All members, in order.
    pub members: Vec<Seen>,
}

/// A member of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The request.
    pub id: RequestId,
    /// Its name; `None` if it has none of ours.
    pub name: Option<Name>,
    /// Whether its payload is what follows from its name.
    pub intact: bool,
    /// The recorded outcome.
    pub fate: Option<Fate>,
}

/// A request that a store holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FoundRequest {
    /// The request, its name, its bytes, its outcome.
    pub seen: Seen,
    /// Where it is.
    pub state: State,
    /// The open batch in which it is, and its position there.
    pub member: Option<(BatchId, Position)>,
    /// Whether something stored of it is damaged.
    pub damaged: bool,
}

/// A batch that a store holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FoundBatch {
    /// The batch.
    pub batch: BatchId,
    /// The one it was split from.
    pub parent: Option<BatchId>,
    /// The last checkpoint.
    pub note: Option<Note>,
    /// The context of the claim that formed it.
    pub context: String,
}

/// The counters of a store.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Whole {
    /// When it was looked at.
    pub now: Timestamp,
    /// The last fence given.
    pub fence: u64,
    /// As in [`Stats`].
    pub counts: Counts,
}

/// The counters of [`Stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each is that of Stats")]
pub struct Counts {
    pub pushed: u64,
    pub delayed: u64,
    pub ready: u64,
    pub in_flight: u64,
    pub batches: u64,
    pub done: u64,
    pub dead: u64,
    pub expired: u64,
    pub cancelled: u64,
    pub purged: u64,
    pub adds_up: bool,
}

impl From<Stats> for Counts {
    fn from(stats: Stats) -> Self {
        Self {
            pushed: stats.pushed,
            delayed: stats.delayed,
            ready: stats.ready,
            in_flight: stats.in_flight,
            batches: stats.batches,
            done: stats.done,
            dead: stats.dead,
            expired: stats.expired,
            cancelled: stats.cancelled,
            purged: stats.purged,
            adds_up: stats.adds_up(),
        }
    }
}
