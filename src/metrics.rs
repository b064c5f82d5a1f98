//! Metrics of a dispatcher and its store, as Prometheus text.
//!
//! ```text
//!   dispatcher ── every event ─────────────▶ tally ─┐
//!   store ◀─▶ observed ── errors, latencies ─▶ ─────┤
//!   dispatcher ◀── survey: slots, breakers ─────────┼──▶ page ──▶ GET /metrics
//!   queues ◀────── stats: counts, ages ─────────────┤
//!   /proc, the folder ──────────────────────────────┘
//! ```
//! What is counted is counted as it happens, by a few additions under a lock that is held for no longer. All else is read
//! when the page is asked for, from the queues themselves: the dispatcher's loop is asked one question, which needs no I/O.
//!
//! The page is written here, in the text format 0.0.4, and not by a library: most of it is read when it is scraped, there is one
//! type of histogram, and the format has not changed since 2014.

mod families;
mod observed;
mod page;
mod process;
mod server;
mod tally;

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::time::{Instant, timeout, timeout_at};

pub use self::server::{MetricsServer, serve_metrics};
use self::{
    families as of,
    observed::{ObservedQueue, ObservedStore},
    page::Page,
    tally::{CLAIMED, ENDED, HANDLER_ERRORS, QueueTally, STORAGE_ERRORS, Tally},
};
use crate::{
    clock::Timestamp,
    dispatcher::{DispatcherHandle, Event, Surveyed, SurveyedQueue},
    error::{ErrorKind, Result},
    queue::{Queue, Store},
    request::QueueName,
    stats::Stats,
};

/// What a dispatcher and its store do and hold, to be scraped.
///
/// The guide [`metrics`](crate::documentation::metrics) names every metric. The first 100 queues that are seen have a label of their own;
/// all others share `queue="_other"`.
///
/// ```
/// use std::sync::Arc;
/// use batchyard::{Batch, Dispatcher, HandlerError, MemoryQueue, Metrics, Queue, QueueExt, QueueOptions, Report};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let metrics = Metrics::new();
/// let queue = metrics.observe_queue(Arc::new(MemoryQueue::new(QueueOptions::default())));
/// let dispatcher = Dispatcher::builder(queue.clone())
///     .handler(|_: Batch| async { Ok::<_, HandlerError>(Report::done()) })
///     .on_event(metrics.observer())
///     .build()?
///     .start();
/// metrics.watch_dispatcher(dispatcher.handle());
/// queue.push_one(batchyard::NewRequest::new("a")).await?;
/// dispatcher.drain().await?;
/// let page = metrics.render().await;
/// assert!(page.contains("batchyard_requests_done_total{queue=\"default\"} 1\n"));
/// # Ok::<(), batchyard::Error>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    counted: Arc<Counted>,
    watched: Mutex<Watched>,
    /// One page is made at a time.
    rendering: tokio::sync::Mutex<()>,
}

/// What is read when a page is made.
#[derive(Clone, Default)]
struct Watched {
    dispatcher: Option<DispatcherHandle>,
    queues: BTreeMap<QueueName, Arc<dyn Queue>>,
    folder: Option<PathBuf>,
    opened_in: Option<Duration>,
}

impl Metrics {
    /// Nothing observed yet.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            counted: Arc::new(Counted(Mutex::new(Tally::new(MOST_LABELS)))),
            watched: Mutex::default(),
            rendering: tokio::sync::Mutex::default(),
        }))
    }

    /// For [`DispatcherBuilder::on_event`](crate::DispatcherBuilder::on_event).
    pub fn observer(&self) -> impl Fn(&Event) + Send + Sync + 'static {
        let counted = Arc::clone(&self.0.counted);
        move |event| counted.tally().observe(event)
    }

    /// The same store, whose calls are counted from now on.
    pub fn observe_store(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        let counted = Arc::clone(&self.0.counted);
        Arc::new(ObservedStore { store, counted })
    }

    /// The same queue, whose calls are counted from now on, and which is on the page whoever serves it.
    pub fn observe_queue(&self, queue: Arc<dyn Queue>) -> Arc<dyn Queue> {
        let counted = Arc::clone(&self.0.counted);
        let queue: Arc<dyn Queue> = Arc::new(ObservedQueue { queue, counted });
        let mut watched = self.watched();
        watched.queues.insert(queue.name(), Arc::clone(&queue));
        drop(watched);
        queue
    }

    /// Has the queues of this dispatcher on the page.
    pub fn watch_dispatcher(&self, dispatcher: DispatcherHandle) {
        self.watched().dispatcher = Some(dispatcher);
    }

    /// Has on the page what this store's folder takes of the disk, and how long the store took to open.
    pub fn watch_folder(&self, folder: impl Into<PathBuf>, opened_in: Duration) {
        let mut watched = self.watched();
        watched.folder = Some(folder.into());
        watched.opened_in = Some(opened_in);
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.0
            .watched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The page, in the Prometheus text format 0.0.4. What can't be read within seconds is left out.
    pub async fn render(&self) -> String {
        let _one = self.0.rendering.lock().await;
        let watched = self.watched().clone();
        let mut page = Page::default();
        let survey = match &watched.dispatcher {
            Some(dispatcher) => timeout(PATIENCE, dispatcher.survey()).await.ok(),
            None => None,
        };
        let survey = survey.and_then(Result::ok);
        if watched.dispatcher.is_some() {
            page.flag(&of::DISPATCHER_UP, &[], survey.is_some());
        }
        let readings = self.read(watched.queues, survey, &mut page).await;
        let tally = self.0.counted.tally().clone();
        for (label, reading) in readings {
            let counted = tally.queues.get(&label).cloned().unwrap_or_default();
            reading.write(&label, &counted, &mut page);
        }
        let kinds = STORAGE_ERRORS.iter().zip(tally.storage_errors);
        for ((kind, _), count) in kinds {
            page.count(&of::STORAGE_ERRORS, &[kind], count);
        }
        page.histogram(&of::PUSH_SECONDS, &[], &tally.push_seconds);
        page.flag(&of::POISONED, &[], tally.is_poisoned);
        page.count(&of::BUILD, &[env!("CARGO_PKG_VERSION")], 1);
        if let Some(took) = watched.opened_in {
            page.add(&of::OPEN_SECONDS, &[], took.as_secs_f64());
        }
        let folder = watched.folder;
        let text = move || {
            if let Some(folder) = folder {
                page.count(&of::DISK_BYTES, &[], process::disk_bytes(&folder));
            }
            process::add(&mut page);
            page.text()
        };
        // It panics only where there is a bug; then the page is empty, which is seen.
        let text = tokio::task::spawn_blocking(text).await;
        text.unwrap_or_default()
    }

    /// Reads all queues, and adds up those of one label.
    async fn read(
        &self,
        watched: BTreeMap<QueueName, Arc<dyn Queue>>,
        survey: Option<Surveyed>,
        page: &mut Page,
    ) -> BTreeMap<String, Reading> {
        let mut queues: BTreeMap<QueueName, (Arc<dyn Queue>, Option<SurveyedQueue>)> = watched
            .into_iter()
            .map(|(name, queue)| (name, (queue, None)))
            .collect();
        if let Some(survey) = survey {
            page.flag(&of::DISPATCHER_PAUSED, &[], survey.is_paused);
            page.count(&of::TOTAL_SLOTS_USED, &[], survey.slots_used.into());
            let most = survey.max_in_flight.map(|most| f64::from(most.get()));
            page.add(&of::TOTAL_SLOTS, &[], most.unwrap_or(f64::INFINITY));
            for (queue, surveyed) in survey.queues {
                queues.insert(queue.name(), (queue, surveyed));
            }
        }
        if let Some((queue, _)) = queues.values().next() {
            self.probe(&**queue).await;
        }
        let until = Instant::now() + PATIENCE;
        let mut asked = Vec::with_capacity(queues.len());
        for (name, (queue, surveyed)) in queues {
            asked.push(ask(name, queue, surveyed, until));
        }
        let mut read = stream::iter(asked).buffered(AT_A_TIME);
        let mut readings: BTreeMap<String, Reading> = BTreeMap::new();
        while let Some((name, stats, surveyed)) = read.next().await {
            let label = self.0.counted.tally().label(&name).to_owned();
            readings.entry(label).or_default().add(stats, surveyed);
        }
        readings
    }

    /// Finds out whether the store can still be read: one that is poisoned may not be, and nobody may have noticed.
    async fn probe(&self, queue: &dyn Queue) {
        if let Ok(Err(error)) = timeout(PATIENCE, queue.bookmark(PROBE)).await
            && error.kind() == ErrorKind::Poisoned
        {
            self.0.counted.tally().is_poisoned = true;
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

async fn ask(
    name: QueueName,
    queue: Arc<dyn Queue>,
    surveyed: Option<SurveyedQueue>,
    until: Instant,
) -> (QueueName, Option<(Stats, Timestamp)>, Option<SurveyedQueue>) {
    let now = queue.now();
    let stats = timeout_at(until, queue.stats(now)).await;
    let stats = stats.ok().and_then(Result::ok);
    (name, stats.map(|stats| (stats, now)), surveyed)
}

/// The tally, where calls and events are noted.
#[derive(Debug)]
struct Counted(Mutex<Tally>);

impl Counted {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how a call ended.
    fn note<T>(&self, answer: Result<T>) -> Result<T> {
        if let Err(error) = &answer {
            self.tally().failed(error.kind());
        }
        answer
    }

    /// Notes how a push ended that began then, if it was one of requests.
    fn pushed<T>(&self, begun: Option<Instant>, answer: Result<T>) -> Result<T> {
        if let (Some(begun), Ok(_)) = (begun, &answer) {
            let took = begun.elapsed().as_secs_f64();
            self.tally().push_seconds.observe(took);
        }
        self.note(answer)
    }
}

/// The queues of one label, added up.
#[derive(Default)]
struct Reading {
    stats: Stats,
    readable: u64,
    paused: u64,
    served: u64,
    breakers: u64,
    slots_used: u64,
    oldest: Duration,
    fill: f64,
    policy: Option<SurveyedQueue>,
    queues: u64,
}

impl Reading {
    fn add(&mut self, stats: Option<(Stats, Timestamp)>, surveyed: Option<SurveyedQueue>) {
        self.queues += 1;
        if let Some(surveyed) = &surveyed {
            self.served += 1;
            self.breakers += u64::from(surveyed.is_breaker_open);
            self.slots_used += u64::from(surveyed.slots_used);
        }
        if let Some((stats, now)) = stats {
            self.readable += 1;
            self.paused += u64::from(stats.paused_at.is_some());
            let oldest = stats
                .oldest_ready_at
                .map_or(Duration::ZERO, |at| now.since(at));
            self.oldest = self.oldest.max(oldest);
            if let Some(surveyed) = &surveyed {
                self.fill = self.fill.max(fill(&stats, surveyed));
            }
            let sum = &mut self.stats;
            for (sum, count) in [
                (&mut sum.pushed, stats.pushed),
                (&mut sum.delayed, stats.delayed),
                (&mut sum.ready, stats.ready),
                (&mut sum.ready_bytes, stats.ready_bytes),
                (&mut sum.in_flight, stats.in_flight),
                (&mut sum.batches, stats.batches),
                (&mut sum.offered, stats.offered),
                (&mut sum.done, stats.done),
                (&mut sum.dead, stats.dead),
                (&mut sum.expired, stats.expired),
                (&mut sum.cancelled, stats.cancelled),
                (&mut sum.purged, stats.purged),
                (&mut sum.held_bytes, stats.held_bytes),
            ] {
                *sum = sum.saturating_add(count);
            }
        }
        self.policy = surveyed.or(self.policy.take());
    }

    fn write(&self, label: &str, counted: &QueueTally, page: &mut Page) {
        page.count(&of::QUEUE_READABLE, &[label], self.readable);
        // Counters that leave some queue out would go back.
        if self.readable == self.queues {
            self.write_stats(label, page);
        }
        page.count(&of::SERVED, &[label], self.served);
        if let Some(surveyed) = &self.policy {
            page.count(&of::BREAKER, &[label], self.breakers);
            page.count(&of::SLOTS_USED, &[label], self.slots_used);
            page.add(&of::FILL, &[label], self.fill);
            // Of several queues that share a label each has its own.
            if label != tally::OTHER {
                write_policy(surveyed, label, page);
            }
        }
        counted.write(label, page);
    }

    fn write_stats(&self, label: &str, page: &mut Page) {
        let stats = &self.stats;
        for (state, count) in [
            ("delayed", stats.delayed),
            ("ready", stats.ready),
            ("in_flight", stats.in_flight),
            ("dead", stats.dead),
        ] {
            page.count(&of::REQUESTS, &[label, state], count);
        }
        page.count(&of::BATCHES, &[label, "open"], stats.batches);
        page.count(&of::BATCHES, &[label, "offered"], stats.offered);
        page.add(&of::OLDEST_AGE, &[label], self.oldest.as_secs_f64());
        for (family, count) in [
            (of::READY_BYTES, stats.ready_bytes),
            (of::HELD_BYTES, stats.held_bytes),
            (of::PAUSED, self.paused),
            (of::PUSHED, stats.pushed),
            (of::DONE, stats.done),
            (of::EXPIRED, stats.expired),
            (of::CANCELLED, stats.cancelled),
            (of::PURGED, stats.purged),
        ] {
            page.count(&family, &[label], count);
        }
    }
}

fn write_policy(surveyed: &SurveyedQueue, label: &str, page: &mut Page) {
    let policy = &surveyed.policy;
    page.count(&of::SLOTS, &[label], policy.max_in_flight.get().into());
    let threshold = policy.queue_threshold.get().into();
    page.count(&of::QUEUE_THRESHOLD, &[label], threshold);
    let age = policy.time_threshold.as_secs_f64();
    page.add(&of::TIME_THRESHOLD, &[label], age);
    let most = policy.max_batch_requests().get().into();
    page.count(&of::MAX_REQUESTS, &[label], most);
    match policy.max_batch_bytes.get() {
        u64::MAX => page.add(&of::MAX_BYTES, &[label], f64::INFINITY),
        most => page.count(&of::MAX_BYTES, &[label], most),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio")]
fn fill(stats: &Stats, surveyed: &SurveyedQueue) -> f64 {
    let requests = stats.ready as f64 / f64::from(surveyed.policy.queue_threshold.get());
    let bytes = stats.ready_bytes as f64 / surveyed.policy.max_batch_bytes.get() as f64;
    requests.max(bytes).min(1.0)
}

impl QueueTally {
    fn write(&self, label: &str, page: &mut Page) {
        for (trigger, count) in CLAIMED.iter().zip(self.claimed) {
            page.count(&of::CLAIMED, &[label, trigger], count);
        }
        for (end, count) in ENDED.iter().zip(self.ended) {
            page.count(&of::ENDED, &[label, end], count);
        }
        for (kind, count) in HANDLER_ERRORS.iter().zip(self.handler_errors) {
            page.count(&of::HANDLER_ERRORS, &[label, kind], count);
        }
        let outcomes = &self.outcomes;
        for (outcome, count) in [
            ("done", outcomes.done),
            ("retried", outcomes.retried),
            ("rejected", outcomes.rejected),
            ("exhausted", outcomes.exhausted),
            ("too_large", outcomes.too_large),
            ("undecodable", outcomes.undecodable),
            ("damaged", outcomes.damaged),
        ] {
            page.count(&of::OUTCOMES, &[label, outcome], count);
        }
        for (family, count) in [
            (of::REDRIVEN, self.redriven),
            (of::HUNG, self.hung),
            (of::BREAKER_OPENED, self.breaker_opened),
            (of::QUEUE_FAILURES, self.failures),
        ] {
            page.count(&family, &[label], count);
        }
        for (family, histogram) in [
            (of::BATCH_REQUESTS, &self.batch_requests),
            (of::BATCH_BYTES, &self.batch_bytes),
            (of::BATCH_WAIT, &self.batch_wait),
            (of::HANDLER_SECONDS, &self.handler_seconds),
        ] {
            page.histogram(&family, &[label], histogram);
        }
    }
}

/// Queues that have a label of their own.
const MOST_LABELS: usize = 100;
/// How long anything is waited for that is to be on a page.
const PATIENCE: Duration = Duration::from_secs(3);
/// Queues that are read at the same time.
const AT_A_TIME: usize = 16;
const PROBE: &str = "batchyard:health";
