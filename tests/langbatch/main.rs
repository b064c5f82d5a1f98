//! What LangBatch, which this crate's words come from, loses or dies of: each case measured there is a
//! test here, in a module for each part of the measurements.
//!
//! Killed means: the dispatcher and its handler are dropped where they are, nothing is given back, and
//! another dispatcher is started on what the queue holds. Time is paused, so waits cost none.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod dispatching;
mod failing;
mod handling;
mod killed;
mod shared;

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use batchyard::{
    Batch, BatchHandler, BatchId, Dispatcher, Entry, Event, HandlerError, List, MemoryQueue,
    NewRequest, Page, Policy, Queue, QueueOptions, Report, RequestId, RunningDispatcher, State,
    Stats, Trigger,
};
use tokio::sync::broadcast;

const SECOND: Duration = Duration::from_secs(1);

fn queue() -> Arc<MemoryQueue> {
    Arc::new(MemoryQueue::new(QueueOptions::default()))
}

fn count(requests: u32) -> NonZeroU32 {
    NonZeroU32::new(requests).unwrap()
}

/// Their example: batches of ten, or when a request is one second old.
fn policy() -> Policy {
    Policy {
        queue_threshold: count(10),
        time_threshold: SECOND,
        ..Policy::default()
    }
}

async fn push(queue: &dyn Queue, requests: u32) -> Vec<RequestId> {
    let requests = (0..requests).map(|n| NewRequest::new(format!("{{\"input\":{n}}}")));
    let pushed = queue.push(queue.now(), requests.collect()).await.unwrap();
    pushed.into_iter().map(|pushed| pushed.id).collect()
}

fn start(queue: &Arc<MemoryQueue>, handler: impl BatchHandler) -> RunningDispatcher {
    start_with(queue, policy(), handler)
}

fn start_with(
    queue: &Arc<MemoryQueue>,
    policy: Policy,
    handler: impl BatchHandler,
) -> RunningDispatcher {
    let dispatcher = Dispatcher::builder(queue.clone())
        .policy(policy)
        .handler(handler);
    dispatcher.build().unwrap().start()
}

/// Starts a dispatcher, lets it settle everything and shuts it down.
async fn settle(queue: &Arc<MemoryQueue>, handler: impl BatchHandler) -> Stats {
    drained(queue, start(queue, handler)).await
}

async fn drained(queue: &Arc<MemoryQueue>, dispatcher: RunningDispatcher) -> Stats {
    dispatcher.drain().await.unwrap();
    dispatcher.shut_down().await.unwrap();
    stats(&**queue).await
}

async fn stats(queue: &dyn Queue) -> Stats {
    let stats = queue.stats(queue.now()).await.unwrap();
    assert!(stats.adds_up(), "{stats:?}");
    stats
}

async fn dead(queue: &dyn Queue) -> Vec<Entry> {
    let admin = queue.admin().unwrap();
    admin
        .list(queue.now(), &List::new(State::Dead))
        .await
        .unwrap()
}

/// Waits for the first event that `pick` picks; an hour of paused time without one is a failure.
async fn event<T>(events: &mut broadcast::Receiver<Event>, pick: impl Fn(Event) -> Option<T>) -> T {
    let picked = async {
        loop {
            if let Some(picked) = pick(events.recv().await.unwrap()) {
                return picked;
            }
        }
    };
    tokio::time::timeout(3600 * SECOND, picked).await.unwrap()
}

/// The next batch that is claimed, how many requests it has, and why it was formed.
async fn claimed(events: &mut broadcast::Receiver<Event>) -> (BatchId, u32, Option<Trigger>) {
    let claim = |event| match event {
        Event::Claimed {
            batch,
            requests,
            trigger,
            ..
        } => Some((batch, requests, trigger)),
        _ => None,
    };
    event(events, claim).await
}

async fn done(_: Batch) -> Result<Report, HandlerError> {
    Ok(Report::done())
}

/// What the outside world has seen, whoever was killed: files, jobs of a provider, effects, by batch.
type World<T> = Arc<Mutex<BTreeMap<BatchId, T>>>;

async fn ids(batch: &Batch) -> Result<Vec<RequestId>, HandlerError> {
    let members = batch.page(Page::first()).await?;
    Ok(members.iter().map(|member| member.id).collect())
}
