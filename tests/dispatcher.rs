//! The dispatcher on a queue in memory, in paused time: triggers, failures, shutting down.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::match_bool, reason = "two outcomes side by side read better")]

use std::{
    collections::BTreeMap,
    num::{NonZeroU32, NonZeroU64},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use batchyard::{
    Batch, BatchHandler, BatchId, Claim, DeadReason, Dispatcher, Entry, Error, Event, HandlerError,
    Lease, List, Member, MemoryQueue, MemoryStore, NewRequest, Outcome, Page, Policies, Policy,
    Pushed, Queue, QueueExt, QueueName, QueueOptions, Report, RequestId, RequestsType,
    RunningDispatcher, State, Stats, Store, Then, Timestamp, Trigger, Update,
};
use tokio::sync::{Semaphore, broadcast, watch};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn queue() -> Arc<MemoryQueue> {
    Arc::new(MemoryQueue::new(QueueOptions::default()))
}

fn count(requests: u32) -> NonZeroU32 {
    NonZeroU32::new(requests).unwrap()
}

/// Batches of ten, or when the oldest is a minute old.
fn policy() -> Policy {
    Policy {
        queue_threshold: count(10),
        time_threshold: MINUTE,
        max_attempts: count(3),
        ..Policy::default()
    }
}

async fn push(queue: &dyn Queue, payloads: impl IntoIterator<Item = u32>) -> Vec<RequestId> {
    let requests = payloads
        .into_iter()
        .map(|n| NewRequest::new(n.to_string()))
        .collect();
    let pushed = queue.push(queue.now(), requests).await.unwrap();
    pushed.into_iter().map(|pushed| pushed.id).collect()
}

async fn stats(queue: &dyn Queue) -> Stats {
    let stats = queue.stats(queue.now()).await.unwrap();
    assert!(stats.adds_up(), "{stats:?}");
    stats
}

async fn dead(queue: &dyn Queue) -> Vec<Entry> {
    let list = List::new(State::Dead).with_payloads();
    queue
        .admin()
        .unwrap()
        .list(queue.now(), &list)
        .await
        .unwrap()
}

/// Waits for the first event that `pick` picks.
async fn event<T>(events: &mut broadcast::Receiver<Event>, pick: impl Fn(Event) -> Option<T>) -> T {
    loop {
        if let Some(picked) = pick(events.recv().await.unwrap()) {
            return picked;
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what `event` takes")]
fn claimed(event: Event) -> Option<(BatchId, u32, u32, Option<Trigger>)> {
    match event {
        Event::Claimed {
            batch,
            attempt,
            requests,
            trigger,
            ..
        } => Some((batch, attempt, requests, trigger)),
        _ => None,
    }
}

fn start(
    queue: &Arc<MemoryQueue>,
    policy: Policy,
    handler: impl BatchHandler,
) -> RunningDispatcher {
    let builder = Dispatcher::builder(queue.clone()).policy(policy);
    builder.handler(handler).build().unwrap().start()
}

async fn done(_: Batch) -> Result<Report, HandlerError> {
    Ok(Report::done())
}

#[tokio::test(start_paused = true)]
async fn the_count_trigger_fires_at_once_and_the_rest_waits_for_its_own_age() {
    let queue = queue();
    let dispatcher = start(&queue, policy(), done);
    let mut events = dispatcher.events();
    let start = queue.now();
    push(&*queue, 0..23).await;
    for _ in 0..2 {
        let (_, _, requests, trigger) = event(&mut events, claimed).await;
        assert_eq!((requests, trigger), (10, Some(Trigger::Count)));
    }
    assert!(queue.now().since(start) < SECOND);
    let (_, _, requests, trigger) = event(&mut events, claimed).await;
    assert_eq!((requests, trigger), (3, Some(Trigger::Age)));
    let age = queue.now().since(start);
    assert!(age >= MINUTE && age < MINUTE + SECOND, "{age:?}");
    dispatcher.shut_down().await.unwrap();
    assert_eq!(stats(&*queue).await.done, 23);
}

#[tokio::test(start_paused = true)]
async fn a_lone_request_after_idle_time_leaves_when_it_is_old_enough_itself() {
    let queue = queue();
    let dispatcher = start(&queue, policy(), done);
    let mut events = dispatcher.events();
    tokio::time::sleep(10 * MINUTE).await;
    let pushed = queue.now();
    push(&*queue, [1]).await;
    event(&mut events, claimed).await;
    assert!(queue.now().since(pushed) >= MINUTE);
}

#[tokio::test(start_paused = true)]
async fn max_batch_bytes_triggers_and_limits() {
    let queue = queue();
    let policy = Policy {
        max_batch_bytes: NonZeroU64::new(100).unwrap(),
        ..policy()
    };
    let dispatcher = start(&queue, policy, done);
    let mut events = dispatcher.events();
    for size in [40, 40, 40, 101] {
        queue
            .push_one(NewRequest::new(vec![b'x'; size]))
            .await
            .unwrap();
    }
    let (_, _, requests, trigger) = event(&mut events, claimed).await;
    assert_eq!((requests, trigger), (2, Some(Trigger::Bytes)));
    dispatcher.drain().await.unwrap();
    let dead = dead(&*queue).await;
    assert_eq!(
        (dead.len(), dead[0].reason),
        (1, Some(DeadReason::TooLarge))
    );
}

#[tokio::test(start_paused = true)]
async fn a_panic_costs_an_attempt_of_its_batch_and_the_same_batch_comes_again() {
    let queue = queue();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = calls.clone();
    let handler = move |batch: Batch| {
        let seen = seen.clone();
        async move {
            let members = batch.load().await?.len();
            seen.lock()
                .unwrap()
                .push((batch.id(), batch.attempt(), members));
            assert!(batch.attempt() > 1, "boom");
            Ok(Report::done())
        }
    };
    let dispatcher = start(&queue, policy(), handler);
    let mut events = dispatcher.events();
    push(&*queue, 0..10).await;
    let error = event(&mut events, |event| match event {
        Event::Deferred { error, .. } => Some(error),
        _ => None,
    });
    assert_eq!(error.await, "the handler panicked: boom");
    dispatcher.drain().await.unwrap();
    let calls = calls.lock().unwrap().clone();
    assert_eq!(calls, [(calls[0].0, 1, 10), (calls[0].0, 2, 10)]);
    assert_eq!(stats(&*queue).await.done, 10);
}

#[tokio::test(start_paused = true)]
async fn a_permanent_failure_is_narrowed_down_to_the_guilty_at_bounded_cost() {
    let queue = queue();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let handler = move |batch: Batch| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            let members = batch.load().await?;
            match members.iter().any(|member| &member.payload[..] == b"666") {
                true => Err(HandlerError::permanent("bad number in the batch")),
                false => Ok(Report::done()),
            }
        }
    };
    let policy = Policy {
        queue_threshold: count(1000),
        ..policy()
    };
    let dispatcher = start(&queue, policy, handler);
    push(&*queue, 0..1000).await;
    dispatcher.drain().await.unwrap();
    let dead = dead(&*queue).await;
    assert_eq!(dead.len(), 1, "one bad request costs one request");
    assert_eq!(dead[0].payload.as_deref(), Some(&b"666"[..]));
    assert_eq!(dead[0].reason, Some(DeadReason::Rejected));
    assert_eq!(dead[0].error.as_deref(), Some("bad number in the batch"));
    assert_eq!(stats(&*queue).await.done, 999);
    // 1 + 2 for each of the 10 levels under 1,000.
    assert!(calls.load(Ordering::Relaxed) <= 21, "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_fails_too_often_is_narrowed_down_as_exhausted() {
    let queue = queue();
    let handler = |batch: Batch| async move {
        match batch
            .load()
            .await?
            .iter()
            .any(|member| &member.payload[..] == b"7")
        {
            true => Err(HandlerError::transient("timed out")),
            false => Ok(Report::done()),
        }
    };
    let dispatcher = start(&queue, policy(), handler);
    let mut events = dispatcher.events();
    push(&*queue, 0..10).await;
    for attempt in 1..=3 {
        assert_eq!(event(&mut events, claimed).await.1, attempt);
    }
    dispatcher.drain().await.unwrap();
    let dead = dead(&*queue).await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].reason, Some(DeadReason::Exhausted));
    assert!(
        dead[0].attempts > 3,
        "attempts of its earlier batches count: {}",
        dead[0].attempts
    );
    assert_eq!(stats(&*queue).await.done, 9);
}

#[tokio::test(start_paused = true)]
async fn members_without_an_outcome_come_again_in_the_same_batch_and_the_others_do_not() {
    let queue = queue();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = calls.clone();
    let handler = move |batch: Batch| {
        let seen = seen.clone();
        async move {
            let members = batch.load().await?;
            let half = members.iter().take(members.len().div_ceil(2));
            let outcomes = half.map(|member| (member.id, Outcome::done())).collect();
            seen.lock().unwrap().push((batch.id(), members.len()));
            Ok(Report::outcomes(outcomes))
        }
    };
    let dispatcher = start(&queue, policy(), handler);
    push(&*queue, 0..10).await;
    dispatcher.drain().await.unwrap();
    let calls = calls.lock().unwrap().clone();
    let sizes: Vec<usize> = calls.iter().map(|(_, size)| *size).collect();
    assert_eq!(sizes, [10, 5, 2], "three attempts, as max_attempts says");
    assert!(calls.iter().all(|(id, _)| *id == calls[0].0));
    let dead = dead(&*queue).await;
    assert_eq!((stats(&*queue).await.done, dead.len()), (9, 1));
    assert_eq!(dead[0].reason, Some(DeadReason::Exhausted));
}

#[tokio::test(start_paused = true)]
async fn a_hanging_handler_is_stopped_and_its_batch_comes_again() {
    let queue = queue();
    let handler = |batch: Batch| async move {
        if batch.attempt() == 1 {
            std::future::pending::<()>().await;
        }
        Ok(Report::done())
    };
    let policy = Policy {
        handler_timeout: Some(5 * MINUTE),
        ..policy()
    };
    let dispatcher = start(&queue, policy, handler);
    let mut events = dispatcher.events();
    push(&*queue, 0..10).await;
    let error = event(&mut events, |event| match event {
        Event::Deferred { error, .. } => Some(error),
        _ => None,
    });
    assert_eq!(error.await, "the handler did not finish within 300s");
    dispatcher.drain().await.unwrap();
    assert_eq!(stats(&*queue).await.done, 10);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_keep_a_batch_with_a_slow_handler() {
    let queue = queue();
    let handler = |_: Batch| async {
        tokio::time::sleep(3 * 3600 * SECOND).await;
        Ok::<_, HandlerError>(Report::done())
    };
    let dispatcher = start(&queue, policy(), handler);
    let mut events = dispatcher.events();
    push(&*queue, 0..10).await;
    event(&mut events, claimed).await;
    for _ in 0..100 {
        tokio::time::sleep(MINUTE).await;
        assert_eq!(queue.claim(queue.now(), &Claim::new()).await.unwrap(), None);
    }
    dispatcher.drain().await.unwrap();
    assert_eq!(stats(&*queue).await.done, 10);
}

#[tokio::test(start_paused = true)]
async fn an_outage_burns_no_attempt_and_is_probed_by_one_batch_at_a_time() {
    let queue = queue();
    let down = Arc::new(AtomicU32::new(20));
    let (running, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (outages, peak) = (down.clone(), most.clone());
    let handler = move |batch: Batch| {
        let (down, running, most) = (down.clone(), running.clone(), most.clone());
        async move {
            assert_eq!(batch.attempt(), 1, "an outage burns no attempt");
            // The first four batches met the outage together.
            let probing = (1..=16).contains(&down.load(Ordering::SeqCst));
            let at_once = running.fetch_add(1, Ordering::SeqCst) + 1;
            if probing {
                most.fetch_max(at_once, Ordering::SeqCst);
            }
            tokio::time::sleep(SECOND).await;
            running.fetch_sub(1, Ordering::SeqCst);
            match down.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            }) {
                Ok(_) => Err(HandlerError::outage("503").retry_after(2 * MINUTE)),
                Err(_) => Ok(Report::done()),
            }
        }
    };
    let dispatcher = start(&queue, policy(), handler);
    let mut events = dispatcher.events();
    let start = queue.now();
    push(&*queue, 0..100).await;
    event(&mut events, |event| {
        matches!(event, Event::BreakerOpened { .. }).then_some(())
    })
    .await;
    event(&mut events, |event| {
        matches!(event, Event::BreakerClosed { .. }).then_some(())
    })
    .await;
    assert!(
        queue.now().since(start) >= 16 * 2 * MINUTE,
        "Retry-After is honoured"
    );
    assert_eq!(
        (outages.load(Ordering::SeqCst), peak.load(Ordering::SeqCst)),
        (0, 1)
    );
    dispatcher.drain().await.unwrap();
    assert_eq!(stats(&*queue).await.done, 100);
}

#[tokio::test(start_paused = true)]
async fn ids_that_were_not_given_harm_only_their_own_batch() {
    let queue = queue();
    let handler = |batch: Batch| async move {
        let members = batch.load().await?;
        let odd = members.iter().any(|member| member.payload.as_ref() == b"3");
        let stranger = (RequestId::from_u64(1), Outcome::done());
        let outcomes = members.iter().map(|member| (member.id, Outcome::done()));
        Ok::<_, HandlerError>(Report::outcomes(match odd {
            true => outcomes.chain([stranger]).collect(),
            // Answering twice is harmless: the first outcome wins.
            false => outcomes.clone().chain(outcomes).collect(),
        }))
    };
    let dispatcher = start(&queue, policy(), handler);
    push(&*queue, 0..40).await;
    dispatcher.drain().await.unwrap();
    let stats = stats(&*queue).await;
    assert_eq!((stats.done, stats.dead), (39, 1));
    let error = dead(&*queue).await[0].error.clone().unwrap();
    assert!(error.contains("is not a member"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn single_requests_can_be_retried_and_rejected() {
    let queue = queue();
    let handler = |batch: Batch| async move {
        let mut report = Report::done();
        for member in batch.load().await? {
            report = match (&member.payload[..], member.attempt) {
                (b"1", _) => report.with(member.id, Outcome::reject("never")),
                (b"2", 1) => report.with(member.id, Outcome::retry("not yet")),
                (b"3", _) => report.with(member.id, Outcome::retry("not ever")),
                _ => report,
            };
        }
        Ok::<_, HandlerError>(report)
    };
    let dispatcher = start(&queue, policy(), handler);
    let ids = push(&*queue, 0..10).await;
    dispatcher.drain().await.unwrap();
    let dead = dead(&*queue).await;
    let why: BTreeMap<_, _> = dead
        .iter()
        .map(|entry| (entry.id, (entry.reason, entry.attempts)))
        .collect();
    assert_eq!(why[&ids[1]], (Some(DeadReason::Rejected), 1));
    assert_eq!(why[&ids[3]], (Some(DeadReason::Exhausted), 3));
    assert_eq!((why.len(), stats(&*queue).await.done), (2, 8));
    assert_eq!(queue.wait(ids[2]).await.unwrap().attempts, 2);
}

#[tokio::test(start_paused = true)]
async fn on_results_is_called_until_it_succeeds_and_sees_every_outcome() {
    let queue = queue();
    let calls = Arc::new(AtomicU32::new(0));
    let handled = Arc::new(AtomicU32::new(0));
    let (told, counted) = (calls.clone(), handled.clone());
    let dispatcher = Dispatcher::builder(queue.clone())
        .policy(policy())
        .handler(move |_: Batch| {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Ok(Report::rest(Outcome::result("fine"))) }
        })
        .on_results(move |batch: Batch| {
            let call = told.fetch_add(1, Ordering::Relaxed);
            async move {
                let members = batch.page(batchyard::Page::first()).await?;
                assert_eq!(members.len(), 10);
                assert!(
                    members
                        .iter()
                        .all(|member| member.outcome == Some(Outcome::result("fine")))
                );
                // More failures than max_attempts: nobody is guilty.
                if call < 7 {
                    Err(HandlerError::permanent("downstream"))
                } else {
                    Ok(())
                }
            }
        })
        .build()
        .unwrap()
        .start();
    push(&*queue, 0..10).await;
    dispatcher.drain().await.unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 8);
    assert_eq!(
        handled.load(Ordering::Relaxed),
        1,
        "what has outcomes is not handled again"
    );
    assert_eq!(stats(&*queue).await.done, 10);
}

#[tokio::test(start_paused = true)]
async fn on_results_may_fail_while_a_batch_is_narrowed_down() {
    let queue = queue();
    let calls = Arc::new(AtomicU32::new(0));
    let told = calls.clone();
    let dispatcher = Dispatcher::builder(queue.clone())
        .policy(policy())
        .handler(|batch: Batch| async move {
            let members = batch.load().await?;
            if members.len() == 10 {
                batch.record(vec![(members[0].id, Outcome::done())]).await?;
            }
            Err(HandlerError::permanent("no good"))
        })
        .on_results(move |_| {
            let call = told.fetch_add(1, Ordering::Relaxed);
            async move {
                match call {
                    0 => Err(HandlerError::transient("downstream")),
                    _ => Ok(()),
                }
            }
        })
        .build()
        .unwrap()
        .start();
    let mut events = dispatcher.events();
    push(&*queue, 0..10).await;
    let error = event(&mut events, |event| match event {
        Event::Deferred { error, .. } => Some(error),
        Event::LeaseLost { .. } => Some("the lease was lost".to_owned()),
        _ => None,
    });
    assert_eq!(error.await, "downstream");
    dispatcher.drain().await.unwrap();
    let stats = stats(&*queue).await;
    assert_eq!((stats.done, stats.dead), (1, 9));
}

/// A queue to which others push while it answers what it holds.
#[derive(Debug)]
struct Busy {
    queue: Arc<MemoryQueue>,
    looks: AtomicU32,
}

#[async_trait::async_trait]
impl Queue for Busy {
    async fn push(
        &self,
        now: Timestamp,
        requests: Vec<NewRequest>,
    ) -> batchyard::Result<Vec<Pushed>> {
        self.queue.push(now, requests).await
    }

    async fn stats(&self, now: Timestamp) -> batchyard::Result<Stats> {
        let looks = self.looks.fetch_add(1, Ordering::Relaxed);
        assert!(looks < 1000, "it looks and looks, and never claims");
        let stats = self.queue.stats(now).await;
        push(&*self.queue, [1]).await;
        tokio::task::yield_now().await; // whoever watches hears of it
        stats
    }

    async fn claim(&self, now: Timestamp, claim: &Claim) -> batchyard::Result<Option<Lease>> {
        self.queue.claim(now, claim).await
    }

    async fn read(&self, lease: &Lease, page: Page) -> batchyard::Result<Vec<Member>> {
        self.queue.read(lease, page).await
    }

    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> batchyard::Result<()> {
        self.queue.update(now, lease, update).await
    }

    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        self.queue.pushed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_changes_at_every_look_is_served() {
    let busy = Busy {
        queue: queue(),
        looks: AtomicU32::new(0),
    };
    let (dispatcher, mut events) = Dispatcher::builder(Arc::new(busy))
        .policy(policy())
        .handler(done)
        .build()
        .unwrap()
        .start_observed();
    let claimed = tokio::time::timeout(SECOND, event(&mut events, claimed)).await;
    let (_, _, requests, trigger) = claimed.expect("it claims");
    assert_eq!((requests, trigger), (10, Some(Trigger::Count)));
    drop(dispatcher);
}

#[tokio::test(start_paused = true)]
async fn kwargs_in_force_when_a_batch_was_formed_stay_with_it() {
    let queue = queue();
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let start = |kwargs: &str, fails: bool| {
        let seen = bodies.clone();
        let handler = move |batch: Batch| {
            let seen = seen.clone();
            async move {
                let members = batch.load().await?;
                let texts = members
                    .iter()
                    .map(|member| String::from_utf8_lossy(&member.payload).into_owned());
                seen.lock()
                    .unwrap()
                    .push((batch.id(), texts.collect::<Vec<_>>()));
                if fails {
                    Err(HandlerError::transient("first"))
                } else {
                    Ok(Report::done())
                }
            }
        };
        let builder = Dispatcher::builder(queue.clone())
            .policy(policy())
            .handler(handler);
        builder
            .request_kwargs(kwargs)
            .requests_type(RequestsType::Partial)
            .build()
            .unwrap()
            .start()
    };
    let first = start(r#"{"model":"old"}"#, true);
    let mut events = first.events();
    let payloads = [r#"{"input":1}"#, "[]", r#"{"model":"own"}"#];
    queue
        .push(queue.now(), payloads.map(NewRequest::new).to_vec())
        .await
        .unwrap();
    first.flush().await.unwrap();
    event(&mut events, |event| {
        matches!(event, Event::Deferred { .. }).then_some(())
    })
    .await;
    first.shut_down().await.unwrap();
    let second = start(r#"{"model":"new"}"#, false);
    second.drain().await.unwrap();
    let bodies = bodies.lock().unwrap().clone();
    assert_eq!(bodies.len(), 2);
    assert_eq!(bodies[0], bodies[1], "one id never carries two bodies");
    assert_eq!(
        bodies[0].1,
        [r#"{"model":"old","input":1}"#, r#"{"model":"own"}"#]
    );
    assert_eq!(dead(&*queue).await[0].reason, Some(DeadReason::Undecodable));
}

#[tokio::test(start_paused = true)]
async fn shutting_down_lets_handlers_finish_and_gives_the_others_back() {
    let queue = queue();
    let handler = |batch: Batch| async move {
        match batch.load().await?[0].payload.as_ref() {
            b"0" => tokio::time::sleep(10 * SECOND).await,
            _ => std::future::pending().await,
        }
        Ok::<_, HandlerError>(Report::done())
    };
    let dispatcher = start(&queue, policy(), handler);
    let mut events = dispatcher.events();
    push(&*queue, 0..20).await;
    event(&mut events, claimed).await;
    let (stuck, ..) = event(&mut events, claimed).await;
    dispatcher.begin_shut_down().await;
    // Whoever asks meanwhile is told so, and not that it has stopped.
    let explained = dispatcher.handle().explain(&queue.name()).await.unwrap();
    assert_eq!(explained.summary, "the dispatcher is shutting down");
    dispatcher.handle().turned().await.unwrap();
    let report = dispatcher.stopped().await.unwrap();
    assert_eq!((report.ended, report.released), (1, 1));
    let stats = stats(&*queue).await;
    assert_eq!((stats.done, stats.offered), (10, 1));
    let lease = queue
        .claim(queue.now(), &Claim::new())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (lease.batch, lease.attempt),
        (stuck, 1),
        "the same batch, and no attempt burned"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_stops_the_handler_and_fences_its_late_outcome_off() {
    let queue = queue();
    let dropped = Arc::new(Semaphore::new(0));
    let guard = dropped.clone();
    let handler = move |batch: Batch| {
        let guard = guard.clone();
        async move {
            struct Told(Arc<Semaphore>);
            impl Drop for Told {
                fn drop(&mut self) {
                    self.0.add_permits(1);
                }
            }
            let _told = Told(guard);
            batch.stopped().await;
            std::future::pending::<()>().await;
            Ok::<_, HandlerError>(Report::done())
        }
    };
    let dispatcher = start(&queue, policy(), handler);
    let mut events = dispatcher.events();
    push(&*queue, 0..10).await;
    let (batch, ..) = event(&mut events, claimed).await;
    // Somebody whose clock is far ahead takes the batch over.
    let lease = queue
        .claim(queue.now().after(3600 * SECOND), &Claim::new())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((lease.batch, lease.attempt), (batch, 2));
    event(&mut events, |event| {
        matches!(event, Event::LeaseLost { .. }).then_some(())
    })
    .await;
    let _ = dropped.acquire().await.unwrap();
    queue
        .update(queue.now(), &lease, Update::then(Then::Release))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_kills_its_holders_is_narrowed_down_without_being_handled_again() {
    let queue = queue();
    push(&*queue, 0..10).await;
    // Three holders take the batch and are never heard of again.
    for attempt in 1..=3 {
        let now = queue.now().after(attempt * 2 * MINUTE);
        assert_eq!(
            queue
                .claim(now, &Claim::new())
                .await
                .unwrap()
                .unwrap()
                .attempt,
            attempt
        );
    }
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let seen = sizes.clone();
    let handler = move |batch: Batch| {
        seen.lock().unwrap().push(batch.len());
        async { Ok::<_, HandlerError>(Report::done()) }
    };
    let dispatcher = start(&queue, policy(), handler);
    dispatcher.drain().await.unwrap();
    assert_eq!(
        *sizes.lock().unwrap(),
        [5, 5],
        "the whole is not handed out a fourth time"
    );
}

#[tokio::test(start_paused = true)]
async fn one_dispatcher_serves_every_queue_of_a_prefix_present_and_future() {
    let store = Arc::new(MemoryStore::new(QueueOptions::default()));
    let present = store.queue(&"tenant.a".parse().unwrap()).await.unwrap();
    let other = store.queue(&"other".parse().unwrap()).await.unwrap();
    let dispatcher = Dispatcher::over(store.clone(), "tenant.")
        .policy(policy())
        .handler(done)
        .build()
        .unwrap()
        .start();
    let mut events = dispatcher.events();
    push(&*present, 0..10).await;
    push(&*other, 0..10).await;
    event(&mut events, claimed).await;
    let future = store.queue(&"tenant.b".parse().unwrap()).await.unwrap();
    push(&*future, 0..10).await;
    event(&mut events, claimed).await;
    dispatcher.drain().await.unwrap();
    assert_eq!(
        (stats(&*present).await.done, stats(&*future).await.done),
        (10, 10)
    );
    assert_eq!(stats(&*other).await.ready, 10);
}

/// Of `threshold` requests a batch, so many batches at a time.
fn limits(threshold: u32, in_flight: u32) -> Policy {
    Policy {
        queue_threshold: count(threshold),
        max_in_flight: count(in_flight),
        ..policy()
    }
}

#[tokio::test(start_paused = true)]
async fn each_queue_has_its_own_policy_and_all_of_them_one_total() {
    let store = Arc::new(MemoryStore::new(QueueOptions::default()));
    let may_end = Arc::new(Semaphore::new(0));
    let gate = may_end.clone();
    let handler = move |_: Batch| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            Ok::<_, HandlerError>(Report::done())
        }
    };
    let policies = Policies::new(limits(10, 4))
        .prefix("tenant.", limits(3, 1))
        .queue("tenant.big".parse().unwrap(), limits(5, 2));
    let dispatcher = Dispatcher::over(store.clone(), "")
        .policies(policies)
        .max_in_flight_total(count(6))
        .handler(handler)
        .build()
        .unwrap();
    let (dispatcher, mut events) = dispatcher.start_observed();
    // The last is made while the others are served.
    for (name, batch, batches) in [("tenant.a", 3, 1), ("tenant.big", 5, 2), ("other", 10, 3)] {
        let name: QueueName = name.parse().unwrap();
        let queue = store.queue(&name).await.unwrap();
        push(&*queue, 0..40).await;
        for _ in 0..batches {
            let (of, requests) = event(&mut events, |event| match event {
                Event::Claimed {
                    queue, requests, ..
                } => Some((queue, requests)),
                _ => None,
            })
            .await;
            assert_eq!((&of, requests), (&name, batch));
        }
    }
    // Six are in handlers: `other` would have a slot of its own left, the tenants have none.
    for (name, slots) in [
        ("tenant.a", "all 1 slots of the queue"),
        ("tenant.big", "all 2 slots of the queue"),
        ("other", "all slots of the dispatcher"),
    ] {
        let explained = dispatcher.explain(&name.parse().unwrap()).await.unwrap();
        assert!(explained.summary.contains(slots), "{explained}");
    }
    may_end.add_permits(100);
    dispatcher.drain().await.unwrap();
    for name in store.queues("").await.unwrap() {
        let queue = store.queue(&name).await.unwrap();
        assert_eq!(stats(&*queue).await.done, 40, "{name}");
    }
}

#[test]
fn a_dispatcher_is_not_built_with_a_policy_that_does_not_fit_together() {
    let bad = Policy {
        time_interval: Duration::ZERO,
        ..policy()
    };
    let policies = Policies::new(policy()).prefix("tenant.", bad);
    let builder = Dispatcher::builder(queue())
        .policies(policies)
        .handler(done);
    let error = builder.build().unwrap_err().to_string();
    assert!(
        error.contains("tenant.") && error.contains("time_interval"),
        "{error}"
    );
}

/// A store that does not answer as often as it is told, and tells of no new queue.
#[derive(Debug)]
struct Flaky {
    store: MemoryStore,
    away: AtomicU32,
}

#[async_trait::async_trait]
impl Store for Flaky {
    async fn queue(&self, name: &QueueName) -> batchyard::Result<Arc<dyn Queue>> {
        self.store.queue(name).await
    }

    async fn queues(&self, prefix: &str) -> batchyard::Result<Vec<QueueName>> {
        let away = |left: u32| left.checked_sub(1);
        match self
            .away
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, away)
        {
            Ok(_) => Err(Error::unavailable("the server is away")),
            Err(_) => self.store.queues(prefix).await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn draining_finds_a_queue_made_just_before_although_the_store_is_away_for_a_while() {
    let store = Arc::new(Flaky {
        store: MemoryStore::new(QueueOptions::default()),
        away: AtomicU32::new(0),
    });
    let over = Dispatcher::over(store.clone(), "").policy(policy());
    let dispatcher = over.handler(done).build().unwrap().start();
    // Served from here on, with nothing to serve.
    dispatcher.drain().await.unwrap();
    let queue = store.queue(&QueueName::default()).await.unwrap();
    push(&*queue, 0..3).await;
    store.away.store(3, Ordering::SeqCst);
    dispatcher.drain().await.unwrap();
    assert_eq!(stats(&*queue).await.done, 3);
    dispatcher.shut_down().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn pausing_holds_everything_back_and_explain_says_so() {
    let queue = queue();
    let dispatcher = start(&queue, policy(), done);
    dispatcher.pause().await.unwrap();
    push(&*queue, 0..10).await;
    tokio::time::sleep(2 * MINUTE).await;
    let explanation = dispatcher.explain(&queue.name()).await.unwrap();
    assert!(explanation.summary.contains("paused"), "{explanation}");
    assert_eq!(stats(&*queue).await.ready, 10);
    dispatcher.resume().await.unwrap();
    dispatcher.drain().await.unwrap();
    let explanation = dispatcher.explain(&queue.name()).await.unwrap();
    assert_eq!(explanation.summary, "nothing waits");
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_paused_stays_so_whoever_serves_it_and_a_flush_waits_with_it() {
    let queue = queue();
    let policy = || Policy {
        time_threshold: 60 * MINUTE,
        ..policy()
    };
    queue.pause().await.unwrap();
    let dispatcher = start(&queue, policy(), done);
    push(&*queue, 0..15).await;
    tokio::time::sleep(2 * MINUTE).await;
    let explanation = dispatcher.explain(&queue.name()).await.unwrap();
    assert!(
        explanation.summary.contains("paused since"),
        "{explanation}"
    );
    dispatcher.shut_down().await.unwrap();

    let (dispatcher, mut events) = (Dispatcher::builder(queue.clone())
        .policy(policy())
        .handler(done))
    .build()
    .unwrap()
    .start_observed();
    queue.flush().await.unwrap();
    push(&*queue, [15]).await;
    tokio::time::sleep(SECOND).await;
    assert_eq!(stats(&*queue).await.ready, 16);
    queue.resume().await.unwrap();
    let claimed = async |events: &mut broadcast::Receiver<Event>| {
        let claimed = event(events, |event| match event {
            Event::Claimed {
                requests, trigger, ..
            } => Some((requests, trigger)),
            _ => None,
        });
        claimed.await
    };
    // Sixteen are more than one batch of ten; of the rest five were there when it was flushed.
    assert_eq!(claimed(&mut events).await, (10, Some(Trigger::Count)));
    assert_eq!(claimed(&mut events).await, (6, Some(Trigger::Flush)));
    dispatcher.shut_down().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn typed_payloads_that_do_not_decode_are_dead_lettered_with_their_bytes() {
    #[derive(serde::Deserialize)]
    struct Order {
        sku: String,
    }
    let queue = queue();
    let skus = Arc::new(Mutex::new(Vec::new()));
    let seen = skus.clone();
    let handler = batchyard::json_handler(move |orders: batchyard::JsonBatch<Order>| {
        seen.lock()
            .unwrap()
            .extend(orders.requests.into_iter().map(|(_, order)| order.sku));
        async { Ok::<_, HandlerError>(Report::done()) }
    });
    let dispatcher = start(&queue, policy(), handler);
    for payload in [r#"{"sku":"a"}"#, r#"{"sku":7}"#, "junk", r#"{"sku":"b"}"#] {
        queue.push_one(NewRequest::new(payload)).await.unwrap();
    }
    dispatcher.drain().await.unwrap();
    assert_eq!(*skus.lock().unwrap(), ["a", "b"]);
    let payloads: Vec<_> = dead(&*queue)
        .await
        .into_iter()
        .filter_map(|entry| entry.payload)
        .collect();
    assert_eq!(payloads, [&br#"{"sku":7}"#[..], &b"junk"[..]]);
}

/// A handler that is not a closure, to see that both ways compile.
struct Nothing;

#[async_trait::async_trait]
impl BatchHandler for Nothing {
    async fn handle(&self, _: Batch) -> Result<Report, HandlerError> {
        Ok(Report::done())
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_durations_are_taken_for_what_they_are() {
    let queue = queue();
    let eternal = Policy {
        time_threshold: Duration::MAX,
        time_interval: Duration::MAX,
        initial_backoff: Duration::MAX,
        max_backoff: Duration::MAX,
        lease_duration: Duration::MAX,
        heartbeat_interval: Duration::MAX / 2,
        handler_timeout: Some(Duration::MAX),
        shutdown_timeout: Duration::MAX,
        ..policy()
    };
    let dispatcher = Dispatcher::builder(queue.clone())
        .policy(eternal)
        .handler(done)
        .build()
        .unwrap()
        .start();
    push(&*queue, 0..13).await;
    dispatcher.drain().await.unwrap();
    dispatcher.shut_down().await.unwrap();
    assert_eq!(stats(&*queue).await.done, 13);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shortest_interval_holds_nothing_up() {
    let queue = queue();
    let dispatcher = Dispatcher::builder(queue.clone())
        .policy(Policy {
            time_interval: Duration::from_millis(1),
            max_in_flight: count(1),
            ..policy()
        })
        .handler(done)
        .build()
        .unwrap()
        .start();
    push(&*queue, 0..33).await;
    let drained = tokio::time::timeout(MINUTE, dispatcher.drain()).await;
    drained.expect("it only looks").unwrap();
    dispatcher.shut_down().await.unwrap();
    assert_eq!(stats(&*queue).await.done, 33);
}

#[tokio::test(start_paused = true)]
async fn bad_settings_are_refused_before_anything_is_taken() {
    let builder = || Dispatcher::builder(queue()).handler(Nothing);
    assert!(Dispatcher::builder(queue()).build().is_err(), "no handler");
    assert!(builder().request_kwargs("[1]").build().is_err());
    for interval in [
        Duration::ZERO,
        Duration::from_nanos(1),
        Duration::from_micros(999),
    ] {
        let policy = Policy {
            time_interval: interval,
            ..policy()
        };
        let error = builder().policy(policy).build().unwrap_err();
        assert!(error.to_string().contains("at least 1ms"), "{error}");
    }
    for (heartbeat_interval, lease_duration) in [
        (Duration::ZERO, MINUTE),
        (MINUTE / 2 + SECOND, MINUTE),
        (Duration::MAX, Duration::MAX),
    ] {
        let policy = Policy {
            heartbeat_interval,
            lease_duration,
            ..policy()
        };
        assert!(policy.validate().is_err(), "{policy:?}");
    }
    assert!(builder().build().is_ok());
}
