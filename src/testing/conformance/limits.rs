//! Clauses about the bounds of a queue, and what a push does when it meets them.

use std::{future::Future, pin::pin, task::Poll};

use super::bench::{Bench, assert_kind, at, must, requests, secs};
use crate::{
    batch::Outcome,
    error::ErrorKind,
    queue::{QueueOptions, WhenFull},
    request::NewRequest,
};

fn most(requests: u64) -> QueueOptions {
    QueueOptions::default().max_requests(requests)
}

fn blocking(options: QueueOptions, milliseconds: u64) -> QueueOptions {
    let timeout = std::time::Duration::from_millis(milliseconds);
    options.when_full(WhenFull::Block { timeout })
}

pub(super) async fn a_push_over_max_requests_is_queue_full_and_adds_none(bench: Bench) {
    let queue = bench.queue_with(most(3)).await;
    queue.put(at(0), &["a", "b"]).await;
    let over = queue.push(at(0), requests(&["c", "d"])).await;
    assert_kind(over, ErrorKind::QueueFull);
    assert_eq!(queue.look(at(0)).await.pushed, 2);
    queue.put(at(0), &["c"]).await;
    let over = queue.push(at(0), requests(&[""])).await;
    assert_kind(over, ErrorKind::QueueFull);
}

pub(super) async fn a_push_over_max_bytes_is_queue_full_and_adds_none(bench: Bench) {
    let queue = bench
        .queue_with(QueueOptions::default().max_bytes(10))
        .await;
    queue.put(at(0), &["12345678"]).await;
    let over = queue.push(at(0), requests(&["1", "23"])).await;
    assert_kind(over, ErrorKind::QueueFull);
    assert_eq!(queue.look(at(0)).await.held_bytes, 8);
    queue.put(at(0), &["12", ""]).await;
    let over = queue.push(at(0), requests(&["x"])).await;
    assert_kind(over, ErrorKind::QueueFull);
}

pub(super) async fn delayed_and_in_flight_requests_take_room(bench: Bench) {
    let queue = bench.queue_with(most(2)).await;
    queue.put(at(0), &["in flight"]).await;
    queue.take(at(0)).await;
    queue
        .put_one(at(0), NewRequest::new("delayed").not_before(at(9)))
        .await;
    let over = queue.push(at(1), requests(&["x"])).await;
    assert_kind(over, ErrorKind::QueueFull);
}

pub(super) async fn settled_requests_take_no_room(bench: Bench) {
    let queue = bench.queue_with(most(4).max_bytes(4)).await;
    let ids = queue.put(at(0), &["a", "b", "c"]).await;
    queue
        .put_one(at(0), NewRequest::new("d").ttl(secs(10)))
        .await;
    let lease = queue.take_up_to(at(1), 3).await;
    let over = queue.push(at(1), requests(&["e"])).await;
    assert_kind(over, ErrorKind::QueueFull);
    queue
        .record(at(1), &lease, &[(ids[0], Outcome::done())])
        .await;
    queue.put(at(2), &["e"]).await;
    queue.finish(at(3), &lease, Outcome::reject("x")).await;
    queue.put(at(4), &["f", "g"]).await;
    let over = queue.push(at(4), requests(&["h"])).await;
    assert_kind(over, ErrorKind::QueueFull);
    queue.put(at(10), &["h"]).await;
    let stats = queue.look(at(10)).await;
    assert_eq!((stats.held(), stats.expired, stats.dead), (4, 1, 2));
}

pub(super) async fn a_full_queue_still_takes_back_what_is_retried(bench: Bench) {
    let queue = bench.queue_with(most(2)).await;
    queue.put(at(0), &["a", "b"]).await;
    for _ in 0..3 {
        let lease = queue.take(at(1)).await;
        queue.finish(at(1), &lease, Outcome::retry("x")).await;
        assert_eq!(queue.look(at(1)).await.ready, 2);
    }
}

pub(super) async fn an_empty_push_fits_into_a_full_queue(bench: Bench) {
    let queue = bench.queue_with(most(1)).await;
    queue.put(at(0), &["a"]).await;
    assert_eq!(must("push", queue.push(at(0), Vec::new()).await), []);
}

pub(super) async fn a_blocked_push_goes_on_when_there_is_room(bench: Bench) {
    let queue = bench.queue_with(blocking(most(2), 60_000)).await;
    queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(0)).await;
    let mut waiting = pin!(queue.push(at(1), requests(&["c", "d"])));
    let looked =
        std::future::poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_pending()));
    assert!(looked.await, "a push waits for room");
    queue.finish_done(at(2), &lease).await;
    assert_eq!(must("push", waiting.await).len(), 2);
    let stats = queue.look(at(3)).await;
    assert_eq!((stats.pushed, stats.ready, stats.done), (4, 2, 2));
}

pub(super) async fn a_blocked_push_is_queue_full_when_its_time_is_up(bench: Bench) {
    let queue = bench.queue_with(blocking(most(2), 1)).await;
    queue.put(at(0), &["a", "b"]).await;
    let over = queue.push(at(1), requests(&["c"])).await;
    assert_kind(over, ErrorKind::QueueFull);
    assert_eq!(queue.look(at(1)).await.pushed, 2);
}

pub(super) async fn a_push_that_alone_exceeds_the_bounds_does_not_wait(bench: Bench) {
    let options = blocking(most(2).max_bytes(10), 3_600_000);
    let queue = bench.queue_with(options).await;
    let many = queue.push(at(0), requests(&["a", "b", "c"])).await;
    assert_kind(many, ErrorKind::QueueFull);
    let large = queue.push(at(0), requests(&["12345678901"])).await;
    assert_kind(large, ErrorKind::QueueFull);
    assert_eq!(queue.look(at(0)).await.pushed, 0);
}

pub(super) async fn a_dropped_waiting_push_adds_nothing(bench: Bench) {
    let queue = bench.queue_with(blocking(most(1), 3_600_000)).await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    {
        let mut waiting = pin!(queue.push(at(1), requests(&["never mind"])));
        let looked = std::future::poll_fn(|context| {
            Poll::Ready(waiting.as_mut().poll(context).is_pending())
        });
        assert!(looked.await, "a push waits for room");
    }
    queue.look(at(1)).await;
    queue.finish_done(at(2), &lease).await;
    let stats = queue.look(at(3)).await;
    assert!(stats.held() <= 1, "{stats:?}");
}
