//! Clauses about [`Queue::pushed`](crate::Queue::pushed): no wake-up is lost.

use tokio::sync::watch;

use super::bench::{Bench, Subject, at, must};
use crate::{
    batch::{Outcome, Then, Update},
    queue::QueueExt as _,
    request::NewRequest,
};

/// A receiver that has seen everything so far.
fn watching(queue: &Subject) -> watch::Receiver<u64> {
    let mut changes = queue.pushed().expect("this backend has wake-ups");
    changes.mark_unchanged();
    changes
}

/// Waits until the counter has moved.
async fn has_moved(mut changes: watch::Receiver<u64>) {
    changes.changed().await.expect("the queue is open");
}

pub(super) async fn a_push_wakes(bench: Bench) {
    let queue = bench.queue().await;
    let changes = watching(&queue);
    queue.put(at(0), &["a"]).await;
    has_moved(changes).await;
    let changes = watching(&queue);
    queue
        .put_one(at(0), NewRequest::new("a").not_before(at(9)))
        .await;
    has_moved(changes).await;
}

pub(super) async fn giving_a_batch_back_wakes(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b"]).await;
    for then in [
        Then::Release,
        Then::Defer { until: at(0) },
        super::bench::splitting(at(0)),
    ] {
        let lease = queue.take(at(0)).await;
        let changes = watching(&queue);
        queue.give(at(0), &lease, Update::then(then)).await;
        has_moved(changes).await;
    }
}

pub(super) async fn holding_a_batch_for_less_time_wakes(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    for until in [at(30), at(0)] {
        let changes = watching(&queue);
        queue
            .give(at(0), &lease, Update::then(Then::Hold { until }))
            .await;
        has_moved(changes).await;
    }
    assert_eq!(queue.look(at(0)).await.offered, 1);
}

pub(super) async fn an_outcome_wakes_who_waits_for_it(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(0)).await;
    let changes = watching(&queue);
    queue
        .record(at(0), &lease, &[(ids[0], Outcome::done())])
        .await;
    has_moved(changes).await;
    let changes = watching(&queue);
    queue.finish_done(at(0), &lease).await;
    has_moved(changes).await;
}

pub(super) async fn cancelling_and_redriving_wake(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    queue.finish(at(0), &lease, Outcome::reject("bad")).await;
    let changes = watching(&queue);
    must("redrive", queue.admin().redrive(at(0), &ids).await);
    has_moved(changes).await;
    let changes = watching(&queue);
    must("cancel", queue.admin().cancel(at(0), &ids).await);
    has_moved(changes).await;
}

pub(super) async fn every_receiver_sees_the_change(bench: Bench) {
    let queue = bench.queue().await;
    let all = [watching(&queue), watching(&queue), watching(&queue)];
    queue.put(at(0), &["a"]).await;
    for changes in all {
        has_moved(changes).await;
    }
}

pub(super) async fn pausing_resuming_and_flushing_wake(bench: Bench) {
    let queue = bench.queue().await;
    let changes = watching(&queue);
    must("pause", queue.pause().await);
    has_moved(changes).await;
    let changes = watching(&queue);
    must("flush", queue.flush().await);
    has_moved(changes).await;
    let changes = watching(&queue);
    must("resume", queue.resume().await);
    has_moved(changes).await;
}
