//! The thin tokio driver: carries out what the engine says, one action at a time.

use std::{
    collections::{BTreeSet, HashMap},
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    Dispatcher, ShutdownReport, Source,
    attempt::{Attempt, AttemptEnd, Noted},
    engine::{Action, BreakerChange, Ended, Engine},
    event::{Event, Events},
    explain::Explanation,
};
use crate::{
    batch::{Claim, Due},
    clock::{self, Timestamp},
    error::{Error, ErrorKind, Result},
    fault,
    policy::Trigger,
    queue::Queue,
    request::QueueName,
    trace,
};

/// What a running dispatcher can be asked for.
#[derive(Debug)]
pub(super) enum Command {
    Flush(oneshot::Sender<()>),
    Drain(oneshot::Sender<()>),
    Pause(bool),
    Turn(oneshot::Sender<()>),
    Explain(QueueName, oneshot::Sender<Result<Explanation>>),
    #[cfg(feature = "metrics")]
    Survey(oneshot::Sender<super::engine::Surveyed>),
    ShutDown,
}

pub(super) struct Driver {
    dispatcher: Dispatcher,
    engine: Engine,
    queues: HashMap<QueueName, Arc<dyn Queue>>,
    events: Events,
    changes: Arc<Changes>,
    /// Tasks that turn changes of queues into entries of `changes`.
    watchers: JoinSet<()>,
    attempts: JoinSet<AttemptEnd>,
    commands: mpsc::Receiver<Command>,
    waiting_for_drain: Vec<oneshot::Sender<()>>,
    /// Cancelled when handlers have no time left.
    shutdown: CancellationToken,
    report: ShutdownReport,
    /// The store could not be asked for its queues; ask again soon.
    must_rescan: bool,
}

/// The queues that changed since the driver last looked.
#[derive(Debug, Default)]
struct Changes {
    queues: Mutex<BTreeSet<QueueName>>,
    /// The store may have new queues.
    notify: Notify,
}

impl Driver {
    pub(super) fn new(
        dispatcher: Dispatcher,
        commands: mpsc::Receiver<Command>,
        events: Events,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            engine: Engine::new(dispatcher.max_in_flight_total),
            dispatcher,
            queues: HashMap::new(),
            events,
            changes: Arc::default(),
            watchers: JoinSet::new(),
            attempts: JoinSet::new(),
            commands,
            waiting_for_drain: Vec::new(),
            shutdown,
            report: ShutdownReport::default(),
            must_rescan: false,
        }
    }

    /// Serves until it is told to shut down, or until there is nothing left to serve.
    pub(super) async fn run(mut self) -> Result<ShutdownReport> {
        let mut created = self.open_source().await?;
        loop {
            while let Ok(command) = self.commands.try_recv() {
                if self.obey(command).await?.is_break() {
                    return Ok(self.shut_down().await);
                }
            }
            while let Some(end) = self.attempts.try_join_next() {
                self.ended(end)?;
            }
            self.answer_drained();
            let now = self.now();
            match self.engine.next(now) {
                Action::Look(queue) => self.look(&queue, now).await?,
                Action::Claim(queue, trigger, due) => self.claim(&queue, trigger, due, now).await?,
                Action::Wait { until } => {
                    let rescan = self.rescan_after(&created);
                    tokio::select! {
                        command = self.commands.recv() => {
                            // Every handle is gone: as if the process were.
                            let Some(command) = command else { return Ok(self.shut_down().await) };
                            if self.obey(command).await?.is_break() {
                                return Ok(self.shut_down().await);
                            }
                        }
                        Some(end) = self.attempts.join_next() => self.ended(end)?,
                        // Only here: a queue that changes at every look must be decided on all the same.
                        () = self.changes.notify.notified() => self.take_changes(),
                        () = wait_until(until, now) => {}
                        () = may_have_queues(&mut created, rescan) => self.rescan().await?,
                    }
                }
            }
        }
    }

    async fn open_source(&mut self) -> Result<Created> {
        match self.dispatcher.source.clone() {
            Source::Queue(queue) => {
                self.serve(queue);
                Ok(Created::Never)
            }
            Source::Store(store, _) => {
                let created = store.created();
                self.find_queues().await?;
                Ok(created.map_or(Created::Silent, Created::Told))
            }
        }
    }

    /// When to look for new queues although nobody told of one.
    fn rescan_after(&self, created: &Created) -> Option<Duration> {
        if self.must_rescan {
            return Some(RESCAN_AFTER);
        }
        let is_silent = matches!(created, Created::Silent);
        is_silent.then(|| self.dispatcher.own_policy().time_interval)
    }

    /// Looks for new queues; a store that is away for a moment is asked again, and ends nothing.
    async fn rescan(&mut self) -> Result<()> {
        self.must_rescan = false;
        match self.find_queues().await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                tracing::warn!(%error, "the store can't be asked for its queues");
                self.must_rescan = true;
                Ok(())
            }
            found => found,
        }
    }

    /// Serves the queues of the prefix that it does not serve yet.
    async fn find_queues(&mut self) -> Result<()> {
        let Source::Store(store, prefix) = self.dispatcher.source.clone() else {
            return Ok(());
        };
        for name in store.queues(&prefix).await? {
            if !self.queues.contains_key(&name) {
                self.serve(store.queue(&name).await?);
            }
        }
        Ok(())
    }

    fn serve(&mut self, queue: Arc<dyn Queue>) {
        let name = queue.name();
        let policy = Arc::new(self.dispatcher.policies.of(&name).clone());
        self.engine.serve(name.clone(), policy);
        if let Some(mut changed) = queue.pushed() {
            let (changes, name) = (self.changes.clone(), name.clone());
            self.watchers.spawn(async move {
                while changed.changed().await.is_ok() {
                    changes.add(name.clone());
                }
            });
        }
        self.queues.insert(name.clone(), queue);
        self.events.emit(Event::Serving { queue: name });
    }

    fn take_changes(&mut self) {
        for queue in self.changes.take() {
            self.engine.changed(&queue);
        }
    }

    fn now(&self) -> Timestamp {
        // All queues are of one store, so any of them has the time of all.
        self.queues
            .values()
            .next()
            .map_or_else(clock::now, |queue| queue.now())
    }

    async fn look(&mut self, name: &QueueName, now: Timestamp) -> Result<()> {
        let Some(queue) = self.queues.get(name) else {
            return Ok(());
        };
        match queue.stats(now).await {
            Ok(stats) => self.engine.looked(name, stats, now),
            Err(error) => self.queue_failed(name, &error)?,
        }
        Ok(())
    }

    async fn claim(
        &mut self,
        name: &QueueName,
        trigger: Option<Trigger>,
        due: Due,
        now: Timestamp,
    ) -> Result<()> {
        let (Some(queue), Some(policy)) =
            (self.queues.get(name).cloned(), self.engine.policy(name))
        else {
            return Ok(());
        };
        let claim = Claim {
            max_requests: policy.max_batch_requests(),
            max_bytes: policy.max_batch_bytes,
            lease_duration: policy.lease_duration,
            form: trigger.is_some(),
            due: Some(due),
            context: self.dispatcher.context.clone(),
        };
        let waited = self.engine.oldest_age(name, now);
        let span = trace::receive(name);
        let claimed = queue.claim(now, &claim).instrument(span.clone()).await;
        let lease = claimed.as_ref().ok().and_then(Option::as_ref);
        trace::received(&span, lease);
        drop(span);
        let lease = match claimed {
            Ok(lease) => lease,
            Err(error) => return self.queue_failed(name, &error),
        };
        self.engine.claimed(name, lease.is_some());
        let Some(lease) = lease else { return Ok(()) };
        fault::point("dispatcher.claimed");
        let trigger = trigger.filter(|_| lease.attempt == 1 && lease.parent.is_none());
        self.events.emit(Event::Claimed {
            queue: name.clone(),
            batch: lease.batch,
            parent: lease.parent,
            attempt: lease.attempt,
            requests: lease.requests,
            bytes: lease.bytes,
            waited: waited.filter(|_| trigger.is_some()),
            trigger,
        });
        let attempt = Attempt {
            queue,
            name: name.clone(),
            policy,
            handler: self.dispatcher.handler.clone(),
            events: self.events.clone(),
            lease,
            noted: Noted::default(),
            shutdown: self.shutdown.clone(),
        };
        self.attempts.spawn(attempt.run());
        Ok(())
    }

    /// Notes how an attempt ended.
    fn ended(&mut self, end: Result<AttemptEnd, tokio::task::JoinError>) -> Result<()> {
        // An attempt runs the handler in a task of its own, so it can't panic by the handler's fault.
        let end = end.map_err(|error| {
            Error::internal("a batch could not be attended to").with_source(error)
        })?;
        let now = self.now();
        let queue = end.queue;
        if end.released {
            self.report.released += 1;
        } else if end.ended == Ended::Tried {
            self.report.ended += 1;
        }
        match self.engine.ended(&queue, end.ended, now, fastrand::f64()) {
            BreakerChange::None => {}
            BreakerChange::Closed => self.events.emit(Event::BreakerClosed {
                queue: queue.clone(),
            }),
            BreakerChange::Opened(until) => self.events.emit(Event::BreakerOpened {
                queue: queue.clone(),
                until,
                error: end.error.unwrap_or_default(),
            }),
        }
        match end.queue_error {
            Some(error) => self.queue_failed(&queue, &error),
            None => Ok(()),
        }
    }

    /// A call to a queue failed: leaves the queue alone for a while, or gives it up for good. An
    /// error only if nothing is left to serve and nothing can come.
    fn queue_failed(&mut self, name: &QueueName, error: &Error) -> Result<()> {
        let given_up =
            error.kind() != ErrorKind::Unavailable && error.kind() != ErrorKind::QueueFull;
        self.events.emit(Event::QueueFailed {
            queue: name.clone(),
            error: error.to_string(),
            given_up,
        });
        if !given_up {
            self.engine.failed(name, self.now());
            return Ok(());
        }
        self.engine.give_up(name);
        if self.engine.is_empty() && matches!(self.dispatcher.source, Source::Queue(_)) {
            return Err(Error::new(error.kind(), error.to_string())
                .context(format!("queue {name:?} can't be served any more")));
        }
        Ok(())
    }

    async fn obey(&mut self, command: Command) -> Result<ControlFlow<()>> {
        match command {
            Command::Flush(answer) => {
                self.engine.flush(self.now());
                let _ = answer.send(());
            }
            Command::Drain(answer) => {
                // A queue that was made a moment ago is to be drained as well.
                self.rescan().await?;
                self.engine.drain(true);
                self.waiting_for_drain.push(answer);
            }
            Command::Pause(paused) => self.engine.pause(paused),
            Command::Turn(answer) => {
                let _ = answer.send(());
            }
            Command::Explain(queue, answer) => {
                let _ = answer.send(self.explain(&queue).await);
            }
            #[cfg(feature = "metrics")]
            Command::Survey(answer) => {
                let _ = answer.send(self.engine.survey(&self.queues, self.now()));
            }
            Command::ShutDown => return Ok(ControlFlow::Break(())),
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn explain(&mut self, name: &QueueName) -> Result<Explanation> {
        let unknown =
            || Error::not_found(format!("queue {name:?} is not served by this dispatcher"));
        let queue = self.queues.get(name).ok_or_else(unknown)?;
        let now = self.now();
        let stats = queue.stats(now).await?;
        self.engine.looked(name, stats, now);
        let policy = self.engine.policy(name).ok_or_else(unknown)?;
        let (standing, _) = self.engine.stands(name, now).ok_or_else(unknown)?;
        Ok(Explanation::new(
            name.clone(),
            &policy,
            stats,
            standing,
            now,
        ))
    }

    fn answer_drained(&mut self) {
        if !self.waiting_for_drain.is_empty() && !self.must_rescan && self.engine.is_drained() {
            self.engine.drain(false);
            for answer in self.waiting_for_drain.drain(..) {
                let _ = answer.send(());
            }
        }
    }

    /// Claims nothing more, and lets handlers finish; those that don't are stopped and their batches
    /// given back.
    async fn shut_down(mut self) -> ShutdownReport {
        self.events.emit(Event::ShuttingDown);
        self.engine.stop();
        let limit = self.dispatcher.own_policy().shutdown_timeout;
        let (shutdown, mut handles_gone) = (self.shutdown.clone(), false);
        let out_of_time = sleep(limit);
        tokio::pin!(out_of_time);
        loop {
            tokio::select! {
                end = self.attempts.join_next() => match end {
                    None => return self.report,
                    Some(end) => {
                        // Nothing is left to decide: what failed here is told by its event.
                        let _ = self.ended(end);
                    }
                },
                () = &mut out_of_time, if !shutdown.is_cancelled() => shutdown.cancel(),
                command = self.commands.recv(), if !handles_gone => match command {
                    Some(Command::ShutDown) => shutdown.cancel(),
                    // Nothing leaves any more.
                    Some(Command::Flush(_) | Command::Drain(_) | Command::Pause(_)) => {}
                    Some(question) => {
                        let _ = self.obey(question).await;
                    }
                    None => handles_gone = true,
                },
            }
        }
    }
}

impl Changes {
    fn add(&self, queue: QueueName) {
        self.queues
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(queue);
        self.notify.notify_one();
    }

    fn take(&self) -> BTreeSet<QueueName> {
        std::mem::take(&mut *self.queues.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn wait_until(until: Option<Timestamp>, now: Timestamp) {
    match until {
        Some(until) => sleep(until.since(now)).await,
        None => std::future::pending().await,
    }
}

/// Waits until the store tells of a new queue, or until it is time to look.
async fn may_have_queues(created: &mut Created, rescan: Option<Duration>) {
    let due = async {
        match rescan {
            Some(wait) => sleep(wait).await,
            None => std::future::pending().await,
        }
    };
    let Created::Told(receiver) = created else {
        return due.await;
    };
    tokio::select! {
        told = receiver.changed() => {
            if told.is_err() {
                *created = Created::Silent;
            }
        }
        () = due => {}
    }
}

/// How a dispatcher learns of queues that are made while it runs.
enum Created {
    /// It serves one queue.
    Never,
    Silent,
    Told(watch::Receiver<u64>),
}

/// How long a store that could not be asked is left alone.
const RESCAN_AFTER: Duration = Duration::from_secs(1);
