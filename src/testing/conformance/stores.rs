//! Clauses about [`Store`](crate::Store): queues by name.

use std::sync::Arc;

use super::bench::{Bench, Subject, assert_kind, at, must, requests};
use crate::{
    batch::{Claim, Page},
    error::ErrorKind,
    queue::{QueueOptions, Store},
    request::{MAX_QUEUE_NAME_BYTES, NewRequest, QueueName},
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

async fn names(store: &Arc<dyn Store>, prefix: &str) -> Vec<String> {
    let names = must("queues", store.queues(prefix).await);
    names.iter().map(ToString::to_string).collect()
}

pub(super) async fn a_queue_is_made_when_it_is_first_asked_for(bench: Bench) {
    let store = bench.store().await;
    assert_eq!(names(&store, "").await, [""; 0]);
    let queue = open(&store, "emails").await;
    assert_eq!(queue.name(), name("emails"));
    queue.has_nothing_to_take(at(0)).await;
    assert_eq!(names(&store, "").await, ["emails"]);
}

pub(super) async fn one_name_is_one_queue(bench: Bench) {
    let store = bench.store().await;
    let (one, again) = (open(&store, "emails").await, open(&store, "emails").await);
    one.put(at(0), &["a"]).await;
    assert_eq!(again.look(at(0)).await.ready, 1);
    let lease = again.take(at(0)).await;
    assert_eq!(one.payloads(&lease).await, ["a"]);
    one.finish_done(at(0), &lease).await;
    assert_eq!(again.look(at(0)).await.done, 1);
    assert_eq!(names(&store, "").await, ["emails"]);
}

pub(super) async fn queues_of_one_store_share_nothing(bench: Bench) {
    let store = bench.store().await;
    let (one, two) = (open(&store, "a").await, open(&store, "ab").await);
    let keyed = || vec![NewRequest::new("x").idempotency_key("k")];
    let first = one.put_all(at(5), keyed()).await;
    let pushed = must("push", two.push(at(5), keyed()).await);
    assert_eq!((pushed[0].id, pushed[0].duplicate), (first[0], false));
    let (mine, theirs) = (one.take(at(5)).await, two.take(at(5)).await);
    assert_ne!(mine.batch, theirs.batch);
    assert_kind(one.read(&theirs, Page::first()).await, ErrorKind::LeaseLost);
    one.finish_done(at(5), &mine).await;
    let stats = two.look(at(5)).await;
    assert_eq!((stats.pushed, stats.in_flight, stats.done), (1, 1, 0));
}

pub(super) async fn queues_are_listed_by_prefix_in_order(bench: Bench) {
    let store = bench.store().await;
    let longest = "z".repeat(MAX_QUEUE_NAME_BYTES);
    for text in ["b", "a:2", "a", "a:10", "a.x-Y_9", &longest, "a:2"] {
        open(&store, text).await;
    }
    let all = ["a", "a.x-Y_9", "a:10", "a:2", "b", &longest];
    assert_eq!(names(&store, "").await, all);
    assert_eq!(names(&store, "a:").await, ["a:10", "a:2"]);
    assert_eq!(names(&store, "a:2").await, ["a:2"]);
    assert_eq!(names(&store, "c").await, [""; 0]);
}

pub(super) async fn a_store_that_tells_of_new_queues_tells_of_each(bench: Bench) {
    let store = bench.store().await;
    for text in ["a", "b"] {
        let Some(mut created) = store.created() else {
            return;
        };
        created.mark_unchanged();
        open(&store, text).await;
        created.changed().await.expect("the store is open");
    }
}

pub(super) async fn closing_a_store_closes_its_queues(bench: Bench) {
    let store = bench.store().await;
    let (one, two) = (open(&store, "a").await, open(&store, "b").await);
    one.put(at(0), &["a"]).await;
    must("close", store.close().await);
    for queue in [one, two] {
        let pushed = queue.push(at(1), requests(&["b"])).await;
        assert_kind(pushed, ErrorKind::Closed);
        assert_kind(queue.stats(at(1)).await, ErrorKind::Closed);
        let claimed = queue.claim(at(1), &Claim::new()).await;
        assert_kind(claimed, ErrorKind::Closed);
    }
}
