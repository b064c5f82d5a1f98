//! Clauses about many at work at once: every request is handled, and none is lost or made up.
//!
//! Bounded by how many requests there are, not by time; and more if `BATCHYARD_LONG` is set.

use std::{
    collections::BTreeSet,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::bench::{Bench, Subject, must};
use crate::{
    batch::Claim,
    dispatcher::{Dispatcher, RunningDispatcher},
    error::ErrorKind,
    handler::{Batch, HandlerError, Report},
    policy::Policy,
    queue::Queue,
    request::{NewRequest, RequestId},
};

/// The requests that handlers have seen, and how many those are.
#[derive(Clone, Default)]
struct Seen {
    ids: Arc<Mutex<BTreeSet<RequestId>>>,
    count: watch::Sender<usize>,
}

impl Seen {
    fn dispatcher(&self, queue: &Arc<dyn Queue>) -> RunningDispatcher {
        let policy = Policy {
            queue_threshold: NonZeroU32::new(7).expect("not zero"),
            max_in_flight: NonZeroU32::new(2).expect("not zero"),
            time_threshold: Duration::from_millis(5),
            time_interval: Duration::from_millis(50),
            ..Policy::default()
        };
        let seen = self.clone();
        let handler = move |batch: Batch| {
            let seen = seen.clone();
            async move {
                seen.note(&batch).await?;
                Ok::<_, HandlerError>(Report::done())
            }
        };
        let builder = Dispatcher::builder(queue.clone()).policy(policy);
        let dispatcher = builder.handler(handler).build();
        must("build", dispatcher).start()
    }

    async fn note(&self, batch: &Batch) -> Result<(), HandlerError> {
        let members = batch.load().await?;
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        for member in members {
            let is_new = ids.insert(member.id);
            assert!(
                is_new || batch.attempt() > 1,
                "{} is handled twice",
                member.id
            );
        }
        self.count.send_replace(ids.len());
        Ok(())
    }
}

/// Pushes so many requests one by one, or two at a time, until the queue is closed; the ids that were answered.
async fn produce(queue: Arc<dyn Queue>, count: usize) -> Vec<RequestId> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let both = (1..=2.min(count - ids.len())).map(|part| NewRequest::new(part.to_string()));
        match queue.push(queue.now(), both.collect()).await {
            Ok(pushed) => ids.extend(pushed.iter().map(|pushed| pushed.id)),
            Err(error) if error.kind() == ErrorKind::Closed => break,
            Err(error) => panic!("push must succeed: {error}"),
        }
    }
    ids
}

pub(super) async fn sixty_four_producers_and_eight_dispatchers_lose_nothing(bench: Bench) {
    let queue = bench.queue().await;
    busy(&queue.queue).await;
}

pub(super) async fn several_queues_are_busy_at_once(bench: Bench) {
    let store = bench.store().await;
    let mut all = Vec::new();
    for name in ["first", "second", "third"] {
        let name = must("name", name.parse());
        let queue = must("queue", store.queue(&name).await);
        all.push(tokio::spawn(async move { busy(&queue).await }));
    }
    for one in all {
        one.await.expect("a busy queue does not panic");
    }
    must("close", store.close().await);
}

async fn busy(queue: &Arc<dyn Queue>) {
    let seen = Seen::default();
    let dispatchers = [(); DISPATCHERS].map(|()| seen.dispatcher(queue));
    let producers = [(); PRODUCERS].map(|()| tokio::spawn(produce(queue.clone(), each())));
    let mut pushed = BTreeSet::new();
    for producer in producers {
        pushed.extend(producer.await.expect("a producer does not panic"));
    }
    assert_eq!(pushed.len(), PRODUCERS * each(), "no id is given twice");
    // The last few leave without a trigger, also where `now` stands still.
    must("drain", dispatchers[0].drain().await);
    for dispatcher in dispatchers {
        must("shut down", dispatcher.shut_down().await);
    }
    let stats = must("stats", queue.stats(queue.now()).await);
    let counts = (stats.pushed, stats.done, stats.held());
    assert_eq!(
        counts,
        (pushed.len() as u64, pushed.len() as u64, 0),
        "{stats:?}"
    );
    assert_eq!(
        *seen.ids.lock().unwrap_or_else(PoisonError::into_inner),
        pushed
    );
}

pub(super) async fn closing_while_all_are_busy_loses_nothing(bench: Bench) {
    let queue = bench.queue().await;
    let seen = Seen::default();
    let mut count = seen.count.subscribe();
    let dispatchers = [(); DISPATCHERS].map(|()| seen.dispatcher(&queue.queue));
    let producers =
        [(); PRODUCERS].map(|()| tokio::spawn(produce(queue.queue.clone(), 10 * each())));
    let some = count.wait_for(|count| *count >= PRODUCERS).await;
    drop(some.expect("the sender is kept"));
    must("close", queue.close().await);
    let mut answered = BTreeSet::new();
    for producer in producers {
        answered.extend(producer.await.expect("a producer does not panic"));
    }
    for dispatcher in dispatchers {
        // It has stopped, since its queue is closed.
        let _ = dispatcher.shut_down().await;
    }
    let queue = bench.reopen(queue).await;
    let rest = drain(&queue).await;
    let offered = {
        let seen = seen.ids.lock().unwrap_or_else(PoisonError::into_inner);
        &*seen | &rest
    };
    let lost: Vec<_> = answered.difference(&offered).copied().collect();
    assert_eq!(lost, [], "they were answered, and never offered");
    let stats = queue.look(queue.now()).await;
    assert!(stats.pushed >= answered.len() as u64, "{stats:?}");
    assert_eq!(stats.done, stats.pushed, "{stats:?}");
}

/// Settles what is left, whoever held it; what that was.
async fn drain(queue: &Subject) -> BTreeSet<RequestId> {
    let mut ids = BTreeSet::new();
    let later = queue.now().after(Duration::from_secs(600));
    while let Some(lease) = queue.try_take(later, &Claim::new()).await {
        ids.extend(queue.members(&lease).await.iter().map(|member| member.id));
        queue.finish_done(later, &lease).await;
    }
    ids
}

/// How many requests each producer brings.
fn each() -> usize {
    match std::env::var_os("BATCHYARD_LONG") {
        None => 4,
        Some(_) => 100,
    }
}

const PRODUCERS: usize = 64;
const DISPATCHERS: usize = 8;
