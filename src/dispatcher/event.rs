//! What a dispatcher tells while it runs: for logs, metrics and tests.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Serialize, Serializer};
use tokio::sync::broadcast;

use crate::{
    batch::BatchId,
    clock::Timestamp,
    handler::{AttemptOutcomes, FailureKind},
    policy::Trigger,
    request::QueueName,
};

/// Something that happened to a queue or to a batch in the hands of a dispatcher.
///
/// Events tell, they do not decide: what counts is in the queue. A receiver that falls more than
/// 1,024 events behind misses the oldest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The dispatcher serves this queue from now on.
    Serving {
        /// The queue.
        queue: QueueName,
    },
    /// A batch was claimed, and its handler is called next.
    Claimed {
        /// The queue.
        queue: QueueName,
        /// The batch.
        batch: BatchId,
        /// The batch that it was split from.
        parent: Option<BatchId>,
        /// How often it has been handed out: 1 the first time.
        attempt: u32,
        /// Its members.
        requests: u32,
        /// Their payload bytes.
        bytes: u64,
        /// Why it was formed; `None` for one that is offered again.
        trigger: Option<Trigger>,
        /// How old the oldest of it was, in seconds where it is printed; `None` for one that is offered again.
        #[serde(rename = "waited_seconds", serialize_with = "seconds")]
        waited: Option<Duration>,
    },
    /// What a handler did with a batch is over, whatever came of it; the event that tells comes before.
    AttemptEnded {
        /// The queue.
        queue: QueueName,
        /// The batch.
        batch: BatchId,
        /// How long the handler took, in seconds where it is printed; `None` if it was not called, or cut off.
        #[serde(rename = "took_seconds", serialize_with = "seconds")]
        took: Option<Duration>,
        /// How it failed, if it did.
        failure: Option<FailureKind>,
        /// The outcomes that members were given.
        outcomes: AttemptOutcomes,
    },
    /// A batch ended, every member settled.
    Finished {
        /// The queue.
        queue: QueueName,
        /// The batch.
        batch: BatchId,
        /// Its members.
        requests: u32,
    },
    /// A batch failed and is offered again later.
    Deferred {
        /// The queue.
        queue: QueueName,
        /// The batch.
        batch: BatchId,
        /// When it is offered again.
        until: Timestamp,
        /// Why it failed.
        error: String,
    },
    /// A batch was given back untried, or after an outage; its attempt does not count.
    Released {
        /// The queue.
        queue: QueueName,
        /// The batch.
        batch: BatchId,
        /// The outage, if it was one.
        error: Option<String>,
    },
    /// A batch that can't succeed as a whole was split in two.
    Split {
        /// The queue.
        queue: QueueName,
        /// The batch that ended.
        batch: BatchId,
        /// Why it failed.
        error: String,
    },
    /// The last request of a failing batch was dead-lettered.
    Rejected {
        /// The queue.
        queue: QueueName,
        /// The batch that ended.
        batch: BatchId,
        /// Why it failed.
        error: String,
    },
    /// A batch has another holder; what its handler still did here is fenced off.
    LeaseLost {
        /// The queue.
        queue: QueueName,
        /// The batch.
        batch: BatchId,
    },
    /// A handler did not stop when it was told to; it may still be at work.
    HandlerHung {
        /// The queue.
        queue: QueueName,
        /// The batch.
        batch: BatchId,
    },
    /// What the handler needs is down: the queue claims nothing until then, and then one probe.
    BreakerOpened {
        /// The queue.
        queue: QueueName,
        /// When the next batch may probe.
        until: Timestamp,
        /// The outage.
        error: String,
    },
    /// The outage is over.
    BreakerClosed {
        /// The queue.
        queue: QueueName,
    },
    /// A call to the queue failed; it is tried again if that can help.
    QueueFailed {
        /// The queue.
        queue: QueueName,
        /// What happened.
        error: String,
        /// Whether the queue is given up until the dispatcher is started again.
        given_up: bool,
    },
    /// The dispatcher claims nothing any more.
    ShuttingDown,
}

/// Is told of every event, on the way.
pub(super) type Observer = Arc<dyn Fn(&Event) + Send + Sync>;

/// The sending side of the event stream; every event is logged as well.
#[derive(Clone)]
pub(super) struct Events {
    sender: broadcast::Sender<Event>,
    observers: Arc<[Observer]>,
}

impl Events {
    pub(super) fn new(observers: Vec<Observer>) -> Self {
        Self {
            sender: broadcast::Sender::new(CAPACITY),
            observers: observers.into(),
        }
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }

    pub(super) fn emit(&self, event: Event) {
        log(&event);
        self.observers.iter().for_each(|observe| observe(&event));
        // Nobody listening is fine.
        let _ = self.sender.send(event);
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

#[expect(clippy::ref_option, reason = "what serde calls")]
fn seconds<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration
        .map(|duration| duration.as_secs_f64())
        .serialize(serializer)
}

fn log(event: &Event) {
    use tracing::{debug, error, info, warn};
    match event {
        Event::Serving { queue } => debug!(%queue, "serving"),
        Event::Claimed {
            queue,
            batch,
            attempt,
            requests,
            bytes,
            trigger,
            ..
        } => {
            let trigger = trigger.map_or("offered again", Trigger::name);
            info!(%queue, %batch, attempt, requests, bytes, trigger, "batch claimed");
        }
        Event::Finished {
            queue,
            batch,
            requests,
        } => {
            info!(%queue, %batch, requests, "batch finished");
        }
        Event::AttemptEnded {
            queue, batch, took, ..
        } => debug!(%queue, %batch, ?took, "attempt ended"),
        Event::Deferred {
            queue,
            batch,
            until,
            error,
        } => {
            warn!(%queue, %batch, %until, error, "batch failed and is offered again later");
        }
        Event::Released {
            queue,
            batch,
            error,
        } => {
            info!(%queue, %batch, error, "batch given back");
        }
        Event::Split {
            queue,
            batch,
            error,
        } => {
            warn!(%queue, %batch, error, "failing batch split in two");
        }
        Event::Rejected {
            queue,
            batch,
            error,
        } => {
            warn!(%queue, %batch, error, "request dead-lettered");
        }
        Event::LeaseLost { queue, batch } => warn!(%queue, %batch, "lease lost"),
        Event::HandlerHung { queue, batch } => {
            error!(%queue, %batch, "the handler did not stop when told to");
        }
        Event::BreakerOpened {
            queue,
            until,
            error,
        } => {
            warn!(%queue, %until, error, "outage: nothing is claimed");
        }
        Event::BreakerClosed { queue } => info!(%queue, "outage over"),
        Event::QueueFailed {
            queue,
            error,
            given_up,
        } => {
            error!(%queue, error, given_up, "queue failed");
        }
        Event::ShuttingDown => info!("shutting down"),
    }
}

const CAPACITY: usize = 1024;
