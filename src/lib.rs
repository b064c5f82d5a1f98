//! A durable, embedded batch queue and dispatcher: requests arrive one by one, are on stable storage
//! when `push` answers, and leave in batches.
//!
//! - [`Queue`] is the contract of every backend: `SledQueue` (feature `sled`, the embedded default),
//!   `JournalQueue` (feature `journal`, a segmented log of our own), [`MemoryQueue`], `RedisQueue` (feature `redis`), or your own.
//! - [`Dispatcher`] decides when a batch leaves, by a [`Policy`], and hands it to a [`BatchHandler`]: a
//!   closure, [typed](json_handler) or not, a child process (`CommandHandler`), an HTTP endpoint
//!   (`HttpHandler`).
//! - [`Batch`] is what a handler works with: members, outcomes, a checkpoint, and an id that stays the
//!   same at every redelivery.
//! - [`remote`] is how requests to the batch APIs of OpenAI, Anthropic and others are written, and their answers read.
//! - The guides are in [`documentation`]: [how it works](documentation::how_it_works),
//!   [remote batches](documentation::remote_batches), [durability](documentation::durability), [your own queue](documentation::your_own_queue),
//!   [coming from LangBatch](documentation::coming_from_langbatch), [metrics](documentation::metrics),
//!   [tracing](documentation::tracing), [upgrades](documentation::upgrades), [design](documentation::design).

mod batch;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod clock;
#[cfg(feature = "configuration")]
#[doc(hidden)]
pub mod configuration;
#[cfg(feature = "control")]
mod control;
mod dispatcher;
pub mod documentation;
mod error;
#[doc(hidden)]
pub mod fault;
pub mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod handler;
#[cfg(feature = "metrics")]
mod metrics;
mod policy;
mod queue;
pub mod remote;
mod request;
mod retry;
mod stats;
#[cfg(feature = "journal")]
mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(feature = "torture")]
#[doc(hidden)]
pub mod torture;
mod trace;

#[cfg(feature = "control")]
pub use self::control::{
    ControlAccess, ControlQueue, ControlServer, ControlStore, OwnerGone, serve_control,
    serve_control_for_now,
};
#[cfg(feature = "command")]
pub use self::handler::{CommandHandler, supervise};
#[cfg(feature = "http")]
pub use self::handler::{HttpHandler, HttpHandlerBuilder};
#[cfg(feature = "metrics")]
pub use self::metrics::{Metrics, MetricsServer, serve_metrics};
#[cfg(any(feature = "journal", feature = "sled"))]
pub use self::queue::compact::Compacted;
#[cfg(feature = "journal")]
pub use self::queue::journal::{JournalOptions, JournalQueue, JournalStore};
#[cfg(feature = "redis")]
pub use self::queue::redis::{RedisQueue, RedisStore};
#[cfg(feature = "sled")]
pub use self::queue::sled::{Repaired, SledOptions, SledQueue, SledStore};
pub use self::queue::verified::{Finding, FindingKind, Verified, VerifyPhase, VerifyProgress};
pub use self::{
    batch::{
        BatchId, Claim, Due, Fence, Lease, MAX_CHECKPOINT_BYTES, Member, Outcome, Page, Retries,
        Then, Update,
    },
    clock::{Timestamp, now},
    dispatcher::{
        Dispatcher, DispatcherBuilder, DispatcherHandle, Event, Explanation, RunningDispatcher,
        ShutdownReport,
    },
    error::{Error, ErrorKind, Result},
    format::template::{RequestsType, Template},
    handler::{
        AttemptOutcomes, Batch, BatchHandler, BatchOptions, FailureKind, HandlerError, JsonBatch,
        JsonHandler, Report, Rest, json_handler,
    },
    policy::{Decision, Policies, Policy, Trigger, decide},
    queue::{
        Administration, BatchEntry, BatchState, Cancelled, Capabilities, Durability, Entry, List,
        OutcomeCounts, Queue, QueueExt, QueueOptions, ResultCursor, Settled, SettledPage, Store,
        WhenFull,
        memory::{MemoryQueue, MemoryStore},
        transfer,
    },
    request::{
        Attributes, Bookmark, DeadReason, MAX_ATTRIBUTE_BYTES, MAX_ATTRIBUTES, MAX_KEY_BYTES,
        MAX_PAYLOAD_BYTES, MAX_QUEUE_NAME_BYTES, NewRequest, Position, Pushed, QueueName,
        RequestId, State, TRACEPARENT, TRACESTATE,
    },
    stats::{FirstSeen, Stats},
};

/// The example of the README, compiled.
#[cfg(all(doctest, feature = "sled"))]
#[doc = include_str!("../README.md")]
struct Readme;
