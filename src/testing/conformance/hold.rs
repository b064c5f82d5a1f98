//! Clauses about what a holder may do without ending its batch: hold, release, defer.

use super::bench::{Bench, at, just_before, secs};
use crate::{
    batch::{Then, Update},
    clock::Timestamp,
};

fn hold(until: Timestamp) -> Update {
    Update::then(Then::Hold { until })
}

fn release() -> Update {
    Update::then(Then::Release)
}

fn defer(until: Timestamp) -> Update {
    Update::then(Then::Defer { until })
}

pub(super) async fn a_held_batch_is_offered_to_nobody(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    queue.give(at(50), &lease, hold(at(110))).await;
    queue.has_nothing_to_take(lease.until).await;
    queue.give(at(100), &lease, hold(at(160))).await;
    queue.has_nothing_to_take(just_before(at(160))).await;
    assert_eq!(queue.look(at(100)).await.next_offer, Some(at(160)));
    assert_eq!(queue.take(at(160)).await.attempt, 2);
}

pub(super) async fn a_hold_may_be_shortened(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    queue.give(at(1), &lease, hold(at(10))).await;
    queue.has_nothing_to_take(at(9)).await;
    assert_eq!(queue.take(at(10)).await.batch, lease.batch);
}

pub(super) async fn a_holder_that_was_late_may_hold_again(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    let late = lease.until.after(secs(5));
    queue.give(late, &lease, hold(late.after(secs(60)))).await;
    queue.has_nothing_to_take(late.after(secs(1))).await;
    queue.finish_done(late.after(secs(2)), &lease).await;
}

pub(super) async fn a_released_batch_is_offered_at_once(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(0)).await;
    queue.give(at(1), &lease, release()).await;
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.offered, stats.batches, stats.in_flight), (1, 1, 2));
    assert_eq!(stats.next_offer, None);
    let again = queue.take(at(1)).await;
    assert_eq!(again.batch, lease.batch);
    assert!(again.fence > lease.fence);
    assert_eq!(queue.payloads(&again).await, ["a", "b"]);
}

pub(super) async fn a_release_burns_no_attempt(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    for _ in 0..4 {
        let lease = queue.take(at(0)).await;
        assert_eq!(lease.attempt, 1);
        assert_eq!(queue.members(&lease).await[0].attempt, 1);
        queue.give(at(0), &lease, release()).await;
    }
    let lease = queue.take(at(0)).await;
    let orphan = queue.take(lease.until).await;
    assert_eq!(orphan.attempt, 2);
    queue.give(lease.until, &orphan, release()).await;
    assert_eq!(queue.take(lease.until).await.attempt, 2);
}

pub(super) async fn a_deferred_batch_is_offered_at_its_time_and_not_before(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    let until = at(500);
    queue.give(at(1), &lease, defer(until)).await;
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.offered, stats.next_offer), (0, Some(until)));
    queue.has_nothing_to_take(lease.until).await;
    queue.has_nothing_to_take(just_before(until)).await;
    let stats = queue.look(until).await;
    assert_eq!((stats.offered, stats.next_offer), (1, None));
    assert_eq!(queue.take(until).await.batch, lease.batch);
}

pub(super) async fn a_deferred_attempt_counts(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    for attempt in 1..=4 {
        let now = at(u64::from(attempt) * 10);
        let lease = queue.take(now).await;
        assert_eq!(lease.attempt, attempt);
        assert_eq!(queue.members(&lease).await[0].attempt, attempt);
        queue.give(now, &lease, defer(now.after(secs(5)))).await;
    }
}

pub(super) async fn a_defer_to_the_past_is_offered_at_once(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(10)).await;
    queue.give(at(11), &lease, defer(at(5))).await;
    assert_eq!(queue.look(at(11)).await.offered, 1);
    assert_eq!(queue.take(at(11)).await.attempt, 2);
}

pub(super) async fn a_batch_may_be_deferred_for_ever(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    queue.give(at(0), &lease, defer(Timestamp::MAX)).await;
    queue.has_nothing_to_take(at(1_000_000_000)).await;
    let stats = queue.look(at(1_000_000_000)).await;
    assert_eq!(stats.next_offer, Some(Timestamp::MAX));
}
