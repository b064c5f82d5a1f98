//! Their section 3.6, its first part: one bad thing, and what it costs.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use batchyard::{
    Administration, Batch, Claim, DeadReason, Dispatcher, Error, ErrorKind, HandlerError, Lease,
    Member, MemoryQueue, NewRequest, Outcome, Page, Policy, Pushed, Queue, Report, Stats,
    Timestamp, Update,
};
use tokio::sync::watch;

use crate::{World, claimed, count, dead, drained, policy, push, queue, settle, start_with, stats};

#[tokio::test(start_paused = true)]
async fn one_bad_item_among_1000_costs_one_item() {
    let queue = queue();
    let pushed = push(&*queue, 1000).await;
    let bad = pushed[613];
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let policy = Policy {
        queue_threshold: count(1000),
        ..policy()
    };
    let dispatcher = start_with(&queue, policy, move |batch: Batch| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let members = batch.load().await?;
            if members.iter().any(|member| member.id == bad) {
                return Err(HandlerError::permanent("messages is no list"));
            }
            Ok(Report::done())
        }
    });
    let stats = drained(&queue, dispatcher).await;
    assert_eq!((stats.done, stats.dead), (999, 1));
    let dead = dead(&*queue).await;
    assert_eq!(
        (dead[0].id, dead[0].reason),
        (bad, Some(DeadReason::Rejected))
    );
    assert!(
        dead[0]
            .error
            .as_ref()
            .unwrap()
            .contains("messages is no list")
    );
    assert!(
        calls.load(Ordering::SeqCst) <= 21,
        "one batch, narrowed down in ten halvings"
    );
}

/// Rejects what has no model, as a provider does.
async fn provider_that_wants_a_model(batch: Batch) -> Result<Report, HandlerError> {
    let mut report = Report::done();
    for member in batch.load().await? {
        let body: serde_json::Value = serde_json::from_slice(&member.payload)?;
        if body.get("model").is_none() {
            report = report.with(member.id, Outcome::reject("you must provide a model"));
        }
    }
    Ok(report)
}

#[tokio::test(start_paused = true)]
async fn a_model_missing_from_request_kwargs_loses_nothing_and_a_redrive_repairs_it() {
    let queue = queue();
    let pushed = push(&*queue, 3000).await;
    let stats = settle(&queue, provider_that_wants_a_model).await;
    assert_eq!((stats.done, stats.dead), (0, 3000), "kept, with the reason");
    let admin = queue.admin().unwrap();
    assert_eq!(admin.redrive(queue.now(), &pushed).await.unwrap(), 3000);
    let dispatcher = Dispatcher::builder(queue.clone())
        .request_kwargs(r#"{"model":"m"}"#)
        .handler(provider_that_wants_a_model)
        .build()
        .unwrap()
        .start();
    dispatcher.drain().await.unwrap();
    let stats = self::stats(&*queue).await;
    assert_eq!((stats.done, stats.dead), (3000, 0));
}

#[tokio::test(start_paused = true)]
async fn bad_request_kwargs_are_refused_before_anything_is_taken() {
    let queue = queue();
    push(&*queue, 5000).await;
    for kwargs in ["{\"model\":", "[]", "<object at 0x7f>", "{\"a\":NaN}"] {
        let builder = Dispatcher::builder(queue.clone()).handler(provider_that_wants_a_model);
        let error = builder.request_kwargs(kwargs).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{kwargs}");
    }
    assert_eq!(stats(&*queue).await.ready, 5000);
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_in_the_handler_delays_the_batch_and_loses_nothing() {
    let queue = queue();
    push(&*queue, 10).await;
    let batches = World::default();
    let seen = batches.clone();
    let stats = settle(&queue, move |batch: Batch| {
        let seen = seen.clone();
        async move {
            let attempt = batch.attempt();
            seen.lock().unwrap().insert(batch.id(), attempt);
            if attempt < 3 {
                Err(io::Error::from(io::ErrorKind::StorageFull))?;
            }
            Ok::<_, HandlerError>(Report::done())
        }
    })
    .await;
    assert_eq!(stats.done, 10);
    let attempts: Vec<_> = batches.lock().unwrap().values().copied().collect();
    assert_eq!(attempts, [3], "one batch, three attempts");
}

/// A queue that can't be reached for some calls.
#[derive(Debug)]
struct Flaky {
    queue: Arc<MemoryQueue>,
    failures: AtomicU32,
}

impl Flaky {
    fn reach(&self) -> Result<&MemoryQueue, Error> {
        let one_less = |left: u32| left.checked_sub(1);
        match self
            .failures
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
        {
            Ok(_) => Err(Error::unavailable("connection refused")),
            Err(_) => Ok(&self.queue),
        }
    }
}

#[async_trait]
impl Queue for Flaky {
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>, Error> {
        self.queue.push(now, requests).await
    }
    async fn stats(&self, now: Timestamp) -> Result<Stats, Error> {
        self.reach()?.stats(now).await
    }
    async fn claim(&self, now: Timestamp, claim: &Claim) -> Result<Option<Lease>, Error> {
        self.reach()?.claim(now, claim).await
    }
    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>, Error> {
        self.reach()?.read(lease, page).await
    }
    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> Result<(), Error> {
        self.reach()?.update(now, lease, update).await
    }
    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        self.queue.pushed()
    }
    fn admin(&self) -> Option<&dyn Administration> {
        self.queue.admin()
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_unreachable_for_a_while_does_not_end_the_dispatcher() {
    let queue = Arc::new(Flaky {
        queue: queue(),
        failures: AtomicU32::new(0),
    });
    let dispatcher = Dispatcher::builder(queue.clone())
        .policy(policy())
        .handler(|_| async { Ok::<_, HandlerError>(Report::done()) })
        .build()
        .unwrap()
        .start();
    let mut events = dispatcher.events();
    for _ in 0..3 {
        queue.failures.store(3, Ordering::SeqCst);
        push(&*queue, 10).await;
        assert_eq!(claimed(&mut events).await.1, 10);
    }
    dispatcher.drain().await.unwrap();
    dispatcher.shut_down().await.unwrap();
    assert_eq!(stats(&*queue.queue).await.done, 30);
}
