//! Clauses about moments of a store: dumps of all queues as they were, while they go on.

use std::sync::Arc;

use super::bench::{Bench, Subject, assert_kind, at, must};
use crate::{
    clock::Timestamp,
    error::ErrorKind,
    queue::{
        Queue, QueueOptions, Store,
        transfer::{DumpFrom, Moment, Record},
    },
    request::QueueName,
    testing::random,
};

fn name(text: &str) -> QueueName {
    must("parsing a name", text.parse())
}

async fn open(store: &Arc<dyn Store>, text: &str) -> Subject {
    Subject {
        queue: must("queue", store.queue(&name(text)).await),
        options: QueueOptions::default(),
    }
}

async fn moment(store: &Arc<dyn Store>, now: Timestamp) -> Box<dyn Moment> {
    let moment = must("moment", store.moment(now).await);
    moment.expect("it answered a moment ago")
}

/// All records of a queue as they were.
async fn was(moment: &dyn Moment, queue: &str) -> Vec<Record> {
    let (mut records, mut from) = (Vec::new(), Some(DumpFrom::Start));
    while let Some(next) = from {
        let page = must("dump", moment.dump(&name(queue), next).await);
        records.extend(page.records);
        from = page.next;
    }
    records
}

async fn is(queue: &dyn Queue, now: Timestamp) -> Vec<Record> {
    let transfer = queue.transfer().expect("a store with moments has it");
    let (mut records, mut from) = (Vec::new(), Some(DumpFrom::Start));
    while let Some(next) = from {
        let page = must("dump", transfer.dump(now, next).await);
        records.extend(page.records);
        from = page.next;
    }
    records
}

pub(super) async fn a_moment_is_one_of_all_queues_and_stays_so(bench: Bench) {
    let store = bench.store().await;
    let (one, two) = (open(&store, "one").await, open(&store, "two").await);
    one.put(at(0), &["a", "b", "c"]).await;
    two.put(at(0), &["d"]).await;
    let lease = one.take_up_to(at(1), 2).await;
    let (first, second) = (is(&*one, at(2)).await, is(&*two, at(2)).await);
    let moment = moment(&store, at(2)).await;
    one.finish_done(at(3), &lease).await;
    let lease = two.take(at(3)).await;
    two.finish_done(at(4), &lease).await;
    two.put(at(5), &["e"]).await;
    assert_eq!(moment.queues(), [name("one"), name("two")]);
    assert_eq!(was(&*moment, "two").await, second);
    assert_eq!(was(&*moment, "one").await, first);
    assert_ne!(is(&*one, at(5)).await, first);
    assert_eq!(was(&*moment, "one").await, first, "again");
}

pub(super) async fn what_is_due_by_then_has_come_in_a_moment(bench: Bench) {
    let store = bench.store().await;
    let queue = open(&store, "q").await;
    let new = vec![crate::NewRequest::new("later").not_before(at(50))];
    queue.put_all(at(0), new).await;
    let moment = moment(&store, at(60)).await;
    let records = was(&*moment, "q").await;
    let Some(Record::Request(request)) = records.first() else {
        panic!("a request is first: {records:?}");
    };
    assert_eq!(request.entry.state, crate::State::Ready);
}

pub(super) async fn a_queue_that_is_made_later_is_not_in_a_moment(bench: Bench) {
    let store = bench.store().await;
    open(&store, "one").await.put(at(0), &["a"]).await;
    let moment = moment(&store, at(0)).await;
    open(&store, "two").await.put(at(0), &["b"]).await;
    assert_eq!(moment.queues(), [name("one")]);
    let page = moment.dump(&name("two"), DumpFrom::Start).await;
    assert_kind(page, ErrorKind::NotFound);
}

pub(super) async fn a_store_has_few_moments_and_one_that_is_dropped_makes_room(bench: Bench) {
    let store = bench.store().await;
    open(&store, "one").await.put(at(0), &["a"]).await;
    let mut moments = Vec::new();
    let refused = loop {
        match store.moment(at(0)).await {
            Ok(moment) => moments.push(moment),
            Err(error) => break error,
        }
        assert!(moments.len() < 100, "there is no end to them");
    };
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    assert!(moments.len() >= 2, "{} at a time", moments.len());
    moments.pop();
    drop(moment(&store, at(0)).await);
}

pub(super) async fn a_moment_of_a_store_that_was_closed_is_no_dump(bench: Bench) {
    let store = bench.store().await;
    open(&store, "one").await.put(at(0), &["a"]).await;
    let moment = moment(&store, at(0)).await;
    let before = was(&*moment, "one").await;
    must("close", store.close().await);
    // What is in memory is still there; of files others may have made something else.
    if let Ok(page) = moment.dump(&name("one"), DumpFrom::Start).await {
        assert_eq!(page.records[..], before[..page.records.len()]);
    }
}

pub(super) async fn a_random_life_changes_no_moment(bench: Bench) {
    let seeds = random::seeds();
    for seed in seeds {
        let store = bench.harness.store(random::narrow()).await;
        let store = store.expect("the harness had a store a moment ago");
        random::moments(store, seed, STEPS).await;
    }
}

/// Enough for a few moments that see results forgotten and windows dropped.
const STEPS: u32 = 400;
