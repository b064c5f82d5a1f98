//! A durable, embedded batch queue and dispatcher.

mod batch;
mod clock;
mod dispatcher;
mod error;
pub mod format;
mod handler;
mod policy;
mod queue;
mod request;
mod retry;
mod stats;
#[cfg(feature = "testing")]
pub mod testing;

#[cfg(feature = "command")]
pub use self::handler::{CommandHandler, supervise};
#[cfg(feature = "http")]
pub use self::handler::{HttpHandler, HttpHandlerBuilder};
#[cfg(feature = "sled")]
pub use self::queue::sled::{SledOptions, SledQueue, SledStore};
pub use self::{
    batch::{
        BatchId, Claim, Due, Fence, Lease, MAX_CHECKPOINT_BYTES, Member, Outcome, Page, Retries,
        Then, Update,
    },
    clock::{Timestamp, now},
    dispatcher::{
        Dispatcher, DispatcherBuilder, Event, Explanation, RunningDispatcher, ShutdownReport,
    },
    error::{Error, ErrorKind, Result},
    format::template::{RequestsType, Template},
    handler::{
        Batch, BatchHandler, BatchOptions, FailureKind, HandlerError, JsonBatch, JsonHandler,
        Report, Rest, json_handler,
    },
    policy::{Decision, Policy, Trigger, decide},
    queue::{
        Administration, Cancelled, Capabilities, Durability, Entry, List, Queue, QueueExt,
        QueueOptions, ResultCursor, Settled, SettledPage, Store, WhenFull,
        memory::{MemoryQueue, MemoryStore},
    },
    request::{
        Attributes, Bookmark, DeadReason, MAX_ATTRIBUTE_BYTES, MAX_ATTRIBUTES, MAX_KEY_BYTES,
        MAX_PAYLOAD_BYTES, MAX_QUEUE_NAME_BYTES, NewRequest, Position, Pushed, QueueName,
        RequestId, State,
    },
    stats::{FirstSeen, Stats},
};
