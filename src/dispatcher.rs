//! Lets requests go in batches: decides when, hands each batch to a handler, and deals with failures.
//!
//! ```text
//!   pushes, deadlines, commands            readings, ends of batches
//!            │                                        │
//!            ▼                                        ▼
//!        driver (tokio) ──── now, events ────▶ engine (pure) ──── Look | Claim | Wait ──┐
//!            ▲                                                                          │
//!            └──────────────────────────────────────────────────────────────────────────┘
//!            └─ per batch: an attempt: handler, heartbeats, time-out ─▶ Finish | Defer | Split | Release
//! ```
//! The engine is a function of what it is told; the driver has the clock, the queue and the tasks.
//! While all slots are taken, batches keep filling instead of being cut small.

mod attempt;
mod builder;
mod driver;
mod engine;
mod event;
mod explain;
mod panic;

use std::{fmt, num::NonZeroU32, sync::Arc};

use bytes::Bytes;
use serde::Serialize;
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use self::driver::{Command, Driver};
#[cfg(feature = "metrics")]
pub(crate) use self::engine::{Surveyed, SurveyedQueue};
pub use self::{builder::DispatcherBuilder, event::Event, explain::Explanation};
use crate::{
    error::{Error, Result},
    handler::BatchHandler,
    policy::{Policies, Policy},
    queue::{Queue, Store},
    request::QueueName,
};

/// A dispatcher that is ready to start.
///
/// ```
/// use std::{num::NonZeroU32, sync::Arc, time::Duration};
/// use batchyard::{Batch, Dispatcher, HandlerError, MemoryQueue, QueueExt, QueueOptions, Report};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let queue = Arc::new(MemoryQueue::new(QueueOptions::default()));
/// let dispatcher = Dispatcher::builder(queue.clone())
///     .queue_threshold(NonZeroU32::new(100).unwrap())
///     .time_threshold(Duration::from_secs(60))
///     .handler(|batch: Batch| async move {
///         println!("batch {} of {} requests", batch.id(), batch.len());
///         Ok::<_, HandlerError>(Report::done())
///     })
///     .build()?
///     .start();
/// queue.push_json("hello").await?;
/// dispatcher.drain().await?;
/// let report = dispatcher.shut_down().await?;
/// assert_eq!(report.ended, 1);
/// # Ok::<(), batchyard::Error>(()) }).unwrap();
/// ```
pub struct Dispatcher {
    source: Source,
    policies: Policies,
    max_in_flight_total: Option<NonZeroU32>,
    /// The encoded template, for batches formed from now on.
    context: Bytes,
    handler: Arc<dyn BatchHandler>,
    observers: Vec<event::Observer>,
}

/// Where the queues of a dispatcher come from.
#[derive(Clone, Debug)]
enum Source {
    Queue(Arc<dyn Queue>),
    /// Every queue of the store whose name begins so, present and future.
    Store(Arc<dyn Store>, String),
}

impl Dispatcher {
    /// A dispatcher of one queue.
    pub fn builder(queue: Arc<dyn Queue>) -> DispatcherBuilder {
        DispatcherBuilder::new(Source::Queue(queue))
    }

    /// A dispatcher of every queue of a store whose name begins with `prefix`, present and future;
    /// the due queue that was served longest ago comes first.
    pub fn over(store: Arc<dyn Store>, prefix: impl Into<String>) -> DispatcherBuilder {
        DispatcherBuilder::new(Source::Store(store, prefix.into()))
    }

    /// Starts it on the current tokio runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(self) -> RunningDispatcher {
        self.start_observed().0
    }

    /// Starts it, with its events from the very first one.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start_observed(mut self) -> (RunningDispatcher, broadcast::Receiver<Event>) {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let events = event::Events::new(std::mem::take(&mut self.observers));
        let observed = events.subscribe();
        let shutdown = CancellationToken::new();
        let driver = Driver::new(self, receiver, events.clone(), shutdown);
        let running = RunningDispatcher {
            commands,
            events,
            task: tokio::spawn(driver.run()),
        };
        (running, observed)
    }

    /// The policy for what is not about one queue of several: that of its only queue, or the general one.
    fn own_policy(&self) -> &Policy {
        match &self.source {
            Source::Queue(queue) => self.policies.of(&queue.name()),
            Source::Store(..) => &self.policies.general,
        }
    }
}

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// A dispatcher at work.
///
/// Dropping it stops it as a crash would: handlers are dropped, and their batches are offered again
/// when their leases run out. [`shut_down`](Self::shut_down) gives them back at once.
#[derive(Debug)]
pub struct RunningDispatcher {
    commands: mpsc::Sender<Command>,
    events: event::Events,
    task: JoinHandle<Result<ShutdownReport>>,
}

/// What others may ask of a [`RunningDispatcher`]; it does not keep it running.
#[derive(Clone, Debug)]
pub struct DispatcherHandle {
    commands: mpsc::WeakSender<Command>,
}

impl DispatcherHandle {
    /// As [`RunningDispatcher::explain`].
    ///
    /// # Errors
    /// As [`RunningDispatcher::explain`].
    pub async fn explain(&self, queue: &QueueName) -> Result<Explanation> {
        let commands = self.commands.upgrade().ok_or_else(stopped)?;
        ask(&commands, |answer| Command::Explain(queue.clone(), answer)).await?
    }

    /// Answers once the loop that decides has turned: one that hangs, as in a call to a disk that hangs, does not answer.
    ///
    /// # Errors
    /// [`Closed`](crate::ErrorKind::Closed): the dispatcher has stopped, or is about to.
    pub async fn turned(&self) -> Result<()> {
        let commands = self.commands.upgrade().ok_or_else(stopped)?;
        ask(&commands, Command::Turn).await
    }

    /// Where every queue stands that it serves, as the loop that decides sees it: an answer says that this loop turns.
    ///
    /// # Errors
    /// [`Closed`](crate::ErrorKind::Closed): the dispatcher has stopped, or is about to.
    #[cfg(feature = "metrics")]
    pub(crate) async fn survey(&self) -> Result<Surveyed> {
        let commands = self.commands.upgrade().ok_or_else(stopped)?;
        ask(&commands, Command::Survey).await
    }
}

/// What became of batches when a dispatcher shut down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Attempts that came to their end, from start to shut-down.
    pub ended: u64,
    /// Batches given back because their handlers did not finish in time.
    pub released: u64,
}

impl RunningDispatcher {
    /// For others that ask something of it.
    pub fn handle(&self) -> DispatcherHandle {
        DispatcherHandle {
            commands: self.commands.downgrade(),
        }
    }

    /// The events from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Lets everything leave that is ready now; answers when that is noted.
    ///
    /// # Errors
    /// [`Closed`](crate::ErrorKind::Closed): the dispatcher has stopped.
    pub async fn flush(&self) -> Result<()> {
        self.ask(Command::Flush).await
    }

    /// Lets everything leave as soon as it is ready, and answers when nothing is delayed, ready or in
    /// flight any more. While paused it waits.
    ///
    /// # Errors
    /// [`Closed`](crate::ErrorKind::Closed): the dispatcher has stopped.
    pub async fn drain(&self) -> Result<()> {
        self.ask(Command::Drain).await
    }

    /// Claims nothing until [`resume`](Self::resume); batches in handlers go on.
    ///
    /// # Errors
    /// [`Closed`](crate::ErrorKind::Closed): the dispatcher has stopped.
    pub async fn pause(&self) -> Result<()> {
        self.tell(Command::Pause(true)).await
    }

    /// Goes on after [`pause`](Self::pause).
    ///
    /// # Errors
    /// [`Closed`](crate::ErrorKind::Closed): the dispatcher has stopped.
    pub async fn resume(&self) -> Result<()> {
        self.tell(Command::Pause(false)).await
    }

    /// Why nothing has gone yet, and when it will.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound): the queue is not served here.
    /// [`Closed`](crate::ErrorKind::Closed): the dispatcher has stopped. And as [`Queue::stats`].
    pub async fn explain(&self, queue: &QueueName) -> Result<Explanation> {
        self.ask(|answer| Command::Explain(queue.clone(), answer))
            .await?
    }

    /// Asks it to shut down and does not wait; asked a second time, it stops handlers at once.
    /// Without effect if it has stopped.
    pub async fn begin_shut_down(&self) {
        // It has stopped already: nothing to do.
        let _ = self.tell(Command::ShutDown).await;
    }

    /// Stops claiming, lets handlers finish until `shutdown_timeout`, gives the other batches back, and
    /// answers what became of them.
    ///
    /// # Errors
    /// Why it had stopped by itself: the queue it served can't be served any more.
    pub async fn shut_down(self) -> Result<ShutdownReport> {
        self.begin_shut_down().await;
        self.stopped().await
    }

    /// Waits until it has stopped, and leaves asking a second time possible meanwhile. Cancel safe.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }

    /// Waits until it has stopped, as [`begin_shut_down`](Self::begin_shut_down) asks, or by itself.
    ///
    /// # Errors
    /// As [`shut_down`](Self::shut_down).
    pub async fn stopped(mut self) -> Result<ShutdownReport> {
        match (&mut self.task).await {
            Ok(report) => report,
            Err(error) => Err(Error::internal("the dispatcher died").with_source(error)),
        }
    }

    async fn tell(&self, command: Command) -> Result<()> {
        self.commands.send(command).await.map_err(|_| stopped())
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        ask(&self.commands, command).await
    }
}

impl Drop for RunningDispatcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn ask<T>(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T> {
    let (answer, answered) = oneshot::channel();
    let asked = commands.send(command(answer)).await;
    asked.map_err(|_| stopped())?;
    answered.await.map_err(|_| stopped())
}

fn stopped() -> Error {
    Error::closed("the dispatcher has stopped")
}

const COMMANDS: usize = 16;
