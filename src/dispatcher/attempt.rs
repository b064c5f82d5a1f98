//! One batch through its handler: heartbeats, time-out, outcome, and what a failure leads to.
//!
//! ```text
//! claimed ─▶ handle ─▶ record ─▶ on_results ─▶ Finish
//!              │ outage ─────────────────────▶ Release, and the breaker opens
//!              │ transient (panic, time-out, foreign error, member without an outcome)
//!              │    attempts left ───────────▶ Defer, with backoff
//!              │    used up ─┐
//!              │ permanent ──┴▶ isolate ─────▶ Split; the last one alone: Finish, dead-lettered
//!              │ shut down ──────────────────▶ Release
//!              └ lease lost ─────────────────▶ nothing: it is another holder's now
//! ```

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument, Span};

use super::{
    engine::Ended,
    event::{Event, Events},
    panic::panicked,
};
use crate::{
    batch::{Lease, Outcome, Page, Retries, Then, Update},
    error::{Error, ErrorKind},
    fault::point,
    handler::{
        AttemptOutcomes, Batch, BatchHandler, BatchOptions, FailureKind, HandlerError, Report, Rest,
    },
    policy::Policy,
    queue::Queue,
    request::{DeadReason, QueueName, RequestId},
    retry::backoff,
    trace,
};

/// One claim of a batch in the hands of a dispatcher.
pub(super) struct Attempt {
    pub(super) queue: Arc<dyn Queue>,
    pub(super) name: QueueName,
    pub(super) policy: Arc<Policy>,
    pub(super) handler: Arc<dyn BatchHandler>,
    pub(super) events: Events,
    pub(super) lease: Lease,
    pub(super) noted: Noted,
    /// Cancelled when handlers have no time left.
    pub(super) shutdown: CancellationToken,
}

/// What is noted of an attempt on its way.
#[derive(Default)]
pub(super) struct Noted {
    /// How long the handler took.
    took: OnceLock<Duration>,
    failure: OnceLock<FailureKind>,
    span: OnceLock<Span>,
    /// What the members got that had no outcome of their own.
    rest: OnceLock<Outcome>,
}

/// How an attempt ended, for the driver.
#[derive(Debug)]
pub(super) struct AttemptEnd {
    pub(super) queue: QueueName,
    pub(super) ended: Ended,
    /// The outage, if it was one.
    pub(super) error: Option<String>,
    /// Given back because the dispatcher shut down.
    pub(super) released: bool,
    /// The queue itself failed while the batch was being settled.
    pub(super) queue_error: Option<Error>,
}

/// Why the work on a batch stopped.
enum Failure {
    Handler(HandlerError),
    LeaseLost,
    ShutDown,
    Queue(Error),
}

impl Attempt {
    pub(super) async fn run(self) -> AttemptEnd {
        let stop = CancellationToken::new();
        let _stop_when_dropped = stop.clone().drop_guard();
        let options = BatchOptions {
            lease_duration: self.policy.lease_duration,
            stop: stop.clone(),
        };
        let batch = match Batch::new(self.queue.clone(), self.lease.clone(), options) {
            Ok(batch) => batch,
            Err(error) => return self.unreadable(&error).await,
        };
        let span = trace::process(&self.name, &self.lease);
        batch.trace(&span);
        let _ = self.noted.span.set(span);
        let ended = match self.attempt(&batch, &stop).await {
            Err(Failure::Handler(error)) => self.fail(&batch, &stop, error).await,
            Ok(()) => {
                let (queue, requests) = (self.name.clone(), self.lease.requests);
                let batch = self.lease.batch;
                self.events.emit(Event::Finished {
                    queue,
                    batch,
                    requests,
                });
                Ok(self.end(Ended::Tried))
            }
            Err(failure) => Err(failure),
        };
        let end = self.ended(ended).await;
        self.tell_end(batch.outcomes(self.noted.rest.get(), self.policy.max_attempts));
        end
    }

    async fn ended(&self, ended: Result<AttemptEnd, Failure>) -> AttemptEnd {
        match ended {
            Ok(end) => end,
            Err(Failure::ShutDown) => self.release().await,
            Err(Failure::Queue(error)) => self.failed_queue(error),
            Err(Failure::LeaseLost | Failure::Handler(_)) => {
                let (queue, batch) = (self.name.clone(), self.lease.batch);
                self.events.emit(Event::LeaseLost { queue, batch });
                self.end(Ended::Tried)
            }
        }
    }

    fn tell_end(&self, outcomes: AttemptOutcomes) {
        self.events.emit(Event::AttemptEnded {
            queue: self.name.clone(),
            batch: self.lease.batch,
            took: self.noted.took.get().copied(),
            failure: self.noted.failure.get().copied(),
            outcomes,
        });
    }

    /// Settles the batch: these are the outcomes of the members that have none.
    async fn finish(&self, rest: Outcome, retries: Retries) -> Result<(), Failure> {
        let then = Then::Finish {
            rest: rest.clone(),
            retries,
        };
        self.update(then).await?;
        let _ = self.noted.rest.set(rest);
        Ok(())
    }

    fn end(&self, ended: Ended) -> AttemptEnd {
        AttemptEnd {
            queue: self.name.clone(),
            ended,
            error: None,
            released: false,
            queue_error: None,
        }
    }

    /// A batch whose context is none of ours can be handed to no handler, nor can its halves: it is
    /// dead-lettered whole, and a redrive gives its requests a context of today.
    async fn unreadable(&self, error: &Error) -> AttemptEnd {
        let text = error.to_string();
        let rest = Outcome::Reject {
            reason: DeadReason::Damaged,
            error: text.clone(),
        };
        let retries = Retries {
            at: self.queue.now(),
            max_attempts: self.policy.max_attempts,
        };
        match self.update(Then::Finish { rest, retries }).await {
            Ok(()) => {
                self.tell_end(AttemptOutcomes::all_damaged(self.lease.unsettled));
                let (queue, batch) = (self.name.clone(), self.lease.batch);
                self.events.emit(Event::Rejected {
                    queue,
                    batch,
                    error: text,
                });
                self.end(Ended::Tried)
            }
            Err(Failure::Queue(error)) => self.failed_queue(error),
            Err(Failure::LeaseLost | Failure::ShutDown | Failure::Handler(_)) => {
                self.end(Ended::Untried)
            }
        }
    }

    fn failed_queue(&self, error: Error) -> AttemptEnd {
        AttemptEnd {
            queue_error: Some(error),
            ..self.end(Ended::Untried)
        }
    }

    /// The whole way of a batch that succeeds.
    async fn attempt(&self, batch: &Batch, stop: &CancellationToken) -> Result<(), Failure> {
        let mut rest = Outcome::retry("no outcome was recorded for it");
        if self.lease.unsettled > 0 {
            self.check_deaths()?;
            let (handler, given) = (self.handler.clone(), batch.clone());
            let work = async move { handler.handle(given).await };
            point("dispatcher.handle");
            let begun = Instant::now();
            let report = self.supervise(stop, work).await;
            let _ = self.noted.took.set(begun.elapsed());
            let report = report?;
            point("dispatcher.handled");
            rest = self.record(batch, report).await?.unwrap_or(rest);
        }
        self.tell_results(batch, stop).await?;
        let retries = self.retries(batch);
        point("dispatcher.finish");
        self.finish(rest, retries).await?;
        point("dispatcher.finished");
        Ok(())
    }

    /// A batch that was claimed more often than allowed killed its holders: handing it out again
    /// would kill this one too.
    fn check_deaths(&self) -> Result<(), Failure> {
        // A half of a split batch has a short leash, but one crash of a host is not yet its fault.
        let most = match self.lease.parent {
            Some(_) => self.policy.max_attempts.get().min(2),
            None => self.policy.max_attempts.get(),
        };
        if self.lease.attempt <= most {
            return Ok(());
        }
        Err(Failure::Handler(HandlerError::transient(format!(
            "its holder died, or lost it, {most} times in a row"
        ))))
    }

    /// Runs a part of the handler in a task of its own, so that a panic costs only this batch, and
    /// keeps the lease alive meanwhile.
    async fn supervise<T: Send + 'static>(
        &self,
        stop: &CancellationToken,
        work: impl Future<Output = Result<T, HandlerError>> + Send + 'static,
    ) -> Result<T, Failure> {
        let span = self.noted.span.get_or_init(Span::none).clone();
        let mut task = AbortOnDropHandle::new(tokio::spawn(work.instrument(span)));
        let every = self.policy.heartbeat_interval.min(RARELY);
        let mut heartbeats = interval_at(Instant::now() + every, every);
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let deadline = async {
            match self.policy.handler_timeout {
                Some(limit) => sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(deadline);
        let failure = loop {
            tokio::select! {
                biased;
                joined = &mut task => {
                    return match joined {
                        Ok(Ok(value)) => Ok(value),
                        Ok(Err(error)) if error.is_lease_lost() => Err(Failure::LeaseLost),
                        Ok(Err(error)) => Err(Failure::Handler(error)),
                        Err(panic) => Err(Failure::Handler(panicked(panic))),
                    };
                }
                () = self.shutdown.cancelled() => break Failure::ShutDown,
                () = &mut deadline => {
                    let limit = self.policy.handler_timeout.unwrap_or_default();
                    break Failure::Handler(HandlerError::transient(format!(
                        "the handler did not finish within {limit:?}"
                    )));
                }
                _ = heartbeats.tick() => {
                    if self.heartbeat().await.is_err() {
                        break Failure::LeaseLost;
                    }
                }
            }
        };
        stop.cancel();
        task.abort();
        if timeout(STOP_GRACE, &mut task).await.is_err() {
            let (queue, batch) = (self.name.clone(), self.lease.batch);
            self.events.emit(Event::HandlerHung { queue, batch });
        }
        Err(failure)
    }

    /// Extends the lease; only a lost one is an error, since a queue that is away may come back.
    async fn heartbeat(&self) -> Result<(), ()> {
        let now = self.queue.now();
        let until = now.after(self.policy.lease_duration);
        let hold = self
            .queue
            .update(now, &self.lease, Update::then(Then::Hold { until }));
        match timeout(self.policy.heartbeat_interval, hold).await {
            Ok(Err(error)) if error.kind() == ErrorKind::LeaseLost => Err(()),
            Ok(Err(error)) => {
                tracing::warn!(queue = %self.name, batch = %self.lease.batch, %error, "heartbeat failed");
                Ok(())
            }
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    /// Records what the handler reported; answers the outcome of the members that it did not name,
    /// for the step that ends the batch.
    async fn record(&self, batch: &Batch, report: Report) -> Result<Option<Outcome>, Failure> {
        let mut outcomes = report.outcomes.into_iter().peekable();
        while outcomes.peek().is_some() {
            let page = outcomes.by_ref().take(PAGE).collect();
            self.record_page(batch, page).await?;
        }
        match report.rest {
            Rest::Missing if batch.remaining() > 0 => match self.count_open(batch).await? {
                // Those that it did not name were found damaged while it read, and rejected.
                0 => Ok(None),
                open => Err(Failure::Handler(HandlerError::transient(format!(
                    "the handler left {open} of {} requests without an outcome",
                    batch.len()
                )))),
            },
            Rest::Missing => Ok(None),
            Rest::Outcome(rest) if self.handler.wants_results() => {
                self.record_rest(batch, &rest).await?;
                Ok(None)
            }
            Rest::Outcome(rest) => Ok(Some(rest)),
        }
    }

    /// How many members have no outcome.
    async fn count_open(&self, batch: &Batch) -> Result<usize, Failure> {
        let (mut page, mut open) = (Page::first(), 0);
        loop {
            let members = self.persist(|| batch.page(page)).await?;
            let Some(last) = members.last() else {
                return Ok(open);
            };
            page = page.after(last.position);
            open += members
                .iter()
                .filter(|member| member.outcome.is_none())
                .count();
        }
    }

    async fn record_page(
        &self,
        batch: &Batch,
        page: Vec<(RequestId, Outcome)>,
    ) -> Result<(), Failure> {
        self.persist(|| batch.record(page.clone()))
            .await
            .map_err(|failure| match failure {
                Failure::Queue(error) if error.kind() == ErrorKind::Invalid => Failure::Handler(
                    HandlerError::transient("the handler's report was refused").with_source(error),
                ),
                failure => failure,
            })
    }

    /// Gives every member that has no outcome this one, page by page.
    async fn record_rest(&self, batch: &Batch, rest: &Outcome) -> Result<(), Failure> {
        let mut page = Page::first();
        loop {
            let members = self.persist(|| batch.page(page)).await?;
            let Some(last) = members.last() else {
                return Ok(());
            };
            page = page.after(last.position);
            let open = members.iter().filter(|member| member.outcome.is_none());
            let outcomes: Vec<_> = open.map(|member| (member.id, rest.clone())).collect();
            if !outcomes.is_empty() {
                self.record_page(batch, outcomes).await?;
            }
        }
    }

    /// Calls `on_results`, if the handler has it.
    async fn tell_results(&self, batch: &Batch, stop: &CancellationToken) -> Result<(), Failure> {
        if !self.handler.wants_results() {
            return Ok(());
        }
        let (handler, given) = (self.handler.clone(), batch.clone());
        point("dispatcher.tell");
        self.supervise(stop, async move { handler.on_results(given).await })
            .await?;
        point("dispatcher.told");
        Ok(())
    }

    fn retries(&self, batch: &Batch) -> Retries {
        let wait = backoff(&self.policy, batch.attempts(), fastrand::f64(), None);
        Retries {
            at: self.queue.now().after(wait),
            max_attempts: self.policy.max_attempts,
        }
    }

    async fn update(&self, then: Then) -> Result<(), Failure> {
        let span = trace::settle(&self.name, &self.lease, self.noted.span.get());
        let updating = self.persist(|| {
            self.queue
                .update(self.queue.now(), &self.lease, Update::then(then.clone()))
        });
        updating.instrument(span).await
    }

    /// Makes a call until it is answered: what a handler has done is not thrown away because the
    /// queue is away for a moment.
    async fn persist<T, F: Future<Output = Result<T, Error>>>(
        &self,
        call: impl Fn() -> F,
    ) -> Result<T, Failure> {
        let mut tries = 0;
        loop {
            let error = match call().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::LeaseLost => return Err(Failure::LeaseLost),
                ErrorKind::Unavailable => {
                    tries += 1;
                    tracing::warn!(queue = %self.name, batch = %self.lease.batch, %error, "trying again");
                    let wait = backoff(&self.policy, tries, 1.0, Some(SOON));
                    tokio::select! {
                        () = self.shutdown.cancelled() => return Err(Failure::ShutDown),
                        () = sleep(wait) => {}
                    }
                }
                _ => return Err(Failure::Queue(error)),
            }
        }
    }

    /// What follows from a handler's error, by its kind.
    async fn fail(
        &self,
        batch: &Batch,
        stop: &CancellationToken,
        error: HandlerError,
    ) -> Result<AttemptEnd, Failure> {
        let _ = self.noted.failure.set(error.kind());
        let used_up = match self.lease.parent {
            // A half of a batch that failed often enough is not tried often again.
            Some(_) => true,
            None => self.lease.attempt >= self.policy.max_attempts.get(),
        };
        let guilty = match error.kind() {
            FailureKind::Outage => return self.sit_out(&error).await,
            // With every outcome recorded, only `on_results` can have failed: nobody is guilty, and
            // it is called until it succeeds.
            _ if batch.remaining() == 0 => None,
            FailureKind::Permanent => Some(DeadReason::Rejected),
            FailureKind::Transient => used_up.then_some(DeadReason::Exhausted),
        };
        let deferred = match guilty {
            None => Some(error),
            Some(reason) => match self.isolate(batch, stop, reason, error.to_string()).await {
                Ok(()) => None,
                // `on_results` failed on the way, so the batch has not ended.
                Err(Failure::Handler(error)) => Some(error),
                Err(failure) => return Err(failure),
            },
        };
        if let Some(error) = deferred {
            self.defer(batch, &error).await?;
        }
        Ok(self.end(Ended::Tried))
    }

    /// Gives the batch back after an outage; its attempt does not count.
    async fn sit_out(&self, error: &HandlerError) -> Result<AttemptEnd, Failure> {
        self.update(Then::Release).await?;
        point("dispatcher.released");
        let text = error.to_string();
        self.events.emit(Event::Released {
            queue: self.name.clone(),
            batch: self.lease.batch,
            error: Some(text.clone()),
        });
        Ok(AttemptEnd {
            error: Some(text),
            ..self.end(Ended::Outage(error.wait()))
        })
    }

    /// Offers the same batch again after a backoff.
    async fn defer(&self, batch: &Batch, error: &HandlerError) -> Result<(), Failure> {
        let chance = fastrand::f64();
        let wait = backoff(&self.policy, batch.attempts(), chance, error.wait());
        let until = self.queue.now().after(wait);
        self.update(Then::Defer { until }).await?;
        point("dispatcher.deferred");
        self.events.emit(Event::Deferred {
            queue: self.name.clone(),
            batch: self.lease.batch,
            until,
            error: error.to_string(),
        });
        Ok(())
    }

    /// Narrows a failing batch down: splits it in two, or dead-letters the one request that is left.
    ///
    /// Each half is handed out once and, if it fails, split again, so that one guilty request among n
    /// costs about 2 log2(n) calls, and the worst case, all of them guilty, less than 2 n.
    async fn isolate(
        &self,
        batch: &Batch,
        stop: &CancellationToken,
        reason: DeadReason,
        error: String,
    ) -> Result<(), Failure> {
        let (queue, id) = (self.name.clone(), self.lease.batch);
        if batch.remaining() < batch.len() as usize {
            // The members that are settled are not in the halves.
            self.tell_results(batch, stop).await?;
        }
        let retries = self.retries(batch);
        point("dispatcher.split");
        match self.update(Then::Split { retries }).await {
            Ok(()) => {
                point("dispatcher.halved");
                self.events.emit(Event::Split {
                    queue,
                    batch: id,
                    error,
                });
                return Ok(());
            }
            // One member without an outcome, or none: nothing to split.
            Err(Failure::Queue(refused)) if refused.kind() == ErrorKind::Invalid => {}
            Err(failure) => return Err(failure),
        }
        let rest = Outcome::Reject {
            reason,
            error: error.clone(),
        };
        if self.handler.wants_results() {
            self.record_rest(batch, &rest).await?;
            self.tell_results(batch, stop).await?;
        }
        self.finish(rest, retries).await?;
        point("dispatcher.rejected");
        self.events.emit(Event::Rejected {
            queue,
            batch: id,
            error,
        });
        Ok(())
    }

    async fn release(&self) -> AttemptEnd {
        // One try: without it the batch is offered again all the same, when its lease runs out.
        let now = self.queue.now();
        match self
            .queue
            .update(now, &self.lease, Update::then(Then::Release))
            .await
        {
            Ok(()) => self.events.emit(Event::Released {
                queue: self.name.clone(),
                batch: self.lease.batch,
                error: None,
            }),
            Err(error) => {
                tracing::warn!(queue = %self.name, batch = %self.lease.batch, %error, "not given back");
            }
        }
        AttemptEnd {
            released: true,
            ..self.end(Ended::Untried)
        }
    }
}

/// How many outcomes are recorded in one step.
const PAGE: usize = 1000;
/// How long a queue that is away is left alone at the least, however short the backoff.
const SOON: Duration = Duration::from_millis(10);
/// Heartbeats are at least this frequent: a longer interval may be more than the timer can count.
const RARELY: Duration = Duration::from_secs(24 * 3600);
/// How long a handler may take to stop when it is dropped, before it is reported as hung.
const STOP_GRACE: Duration = Duration::from_secs(2);
