//! Clauses about [`Queue::stats`](crate::Queue::stats): counts that add up, and the age of the oldest.

use super::bench::{Bench, at, claim_bytes, finishing, secs};
use crate::{
    batch::{Outcome, Then, Update},
    request::NewRequest,
    stats::Stats,
};

pub(super) async fn stats_of_an_empty_queue_are_zero(bench: Bench) {
    let queue = bench.queue().await;
    assert_eq!(queue.look(at(0)).await, Stats::default());
}

pub(super) async fn every_request_is_counted_in_exactly_one_state(bench: Bench) {
    let queue = bench.queue().await;
    let new = vec![
        NewRequest::new("far too large for a batch"),
        NewRequest::new("done"),
        NewRequest::new("dead"),
        NewRequest::new("in flight"),
        NewRequest::new("expired").ttl(secs(10)),
        NewRequest::new("ready"),
        NewRequest::new("delayed").not_before(at(500)),
    ];
    let ids = queue.put_all(at(0), new).await;
    let lease = queue
        .try_take(at(1), &claim_bytes(17))
        .await
        .expect("a batch");
    assert_eq!(lease.requests, 3);
    let outcomes = [(ids[1], Outcome::done()), (ids[2], Outcome::reject("x"))];
    queue.record(at(1), &lease, &outcomes).await;
    let stats = queue.look(at(2)).await;
    let counts = |stats: Stats| {
        let open = (stats.delayed, stats.ready, stats.in_flight);
        (open, stats.done, stats.dead, stats.expired)
    };
    assert_eq!(counts(stats), ((1, 2, 2), 1, 1, 0));
    queue.give(at(3), &lease, Update::then(Then::Release)).await;
    let lease = queue.take(at(3)).await;
    queue.finish(at(4), &lease, Outcome::retry("again")).await;
    assert_eq!(counts(queue.look(at(4)).await), ((1, 3, 0), 1, 2, 0));
    let lease = queue
        .try_take(at(20), &claim_bytes(17))
        .await
        .expect("a batch");
    assert_eq!(queue.payloads(&lease).await, ["ready", "in flight"]);
    let stats = queue.look(at(20)).await;
    assert_eq!(counts(stats), ((1, 0, 2), 1, 2, 1));
    assert_eq!((stats.pushed, stats.held_bytes), (7, 7 + 5 + 9));
}

pub(super) async fn looking_twice_shows_the_same(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b", "c"]).await;
    queue
        .put_one(at(0), NewRequest::new("later").not_before(at(50)))
        .await;
    queue.take_up_to(at(1), 1).await;
    let once = queue.look(at(2)).await;
    assert_eq!(queue.look(at(2)).await, once);
}

pub(super) async fn next_due_is_the_first_of_the_delayed(bench: Bench) {
    let queue = bench.queue().await;
    for seconds in [30, 10, 20] {
        let new = NewRequest::new("x").not_before(at(seconds));
        queue.put_one(at(0), new).await;
    }
    for (now, next) in [(0, Some(10)), (10, Some(20)), (25, Some(30)), (30, None)] {
        assert_eq!(queue.look(at(now)).await.next_due, next.map(at));
    }
}

pub(super) async fn next_offer_is_the_first_of_those_not_offered_yet(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b", "c"]).await;
    let held = queue.take_up_to(at(0), 1).await;
    let deferred = queue.take_up_to(at(0), 1).await;
    let released = queue.take_up_to(at(0), 1).await;
    let defer = Update::then(Then::Defer { until: at(30) });
    queue.give(at(1), &deferred, defer).await;
    queue
        .give(at(1), &released, Update::then(Then::Release))
        .await;
    for (now, offered, next) in [
        (at(1), 1, Some(at(30))),
        (at(30), 2, Some(held.until)),
        (held.until, 3, None),
    ] {
        let stats = queue.look(now).await;
        assert_eq!((stats.offered, stats.next_offer), (offered, next));
        assert_eq!((stats.batches, stats.in_flight), (3, 3));
    }
}

pub(super) async fn duplicates_are_not_counted(bench: Bench) {
    let queue = bench.queue().await;
    for _ in 0..3 {
        let new = NewRequest::new("a").idempotency_key("k");
        queue.put_one(at(0), new).await;
    }
    let stats = queue.look(at(0)).await;
    assert_eq!((stats.pushed, stats.ready, stats.held_bytes), (1, 1, 1));
}

pub(super) async fn the_age_is_that_of_the_first_ready_request(bench: Bench) {
    let queue = bench.queue().await;
    for seconds in [3, 5, 9] {
        queue.put(at(seconds), &["x"]).await;
    }
    assert_eq!(queue.look(at(10)).await.oldest_ready_at, Some(at(3)));
    queue.take_up_to(at(11), 1).await;
    assert_eq!(queue.look(at(12)).await.oldest_ready_at, Some(at(5)));
    queue.take_up_to(at(11), 1).await;
    assert_eq!(queue.look(at(12)).await.oldest_ready_at, Some(at(9)));
    queue.take_up_to(at(11), 1).await;
    assert_eq!(queue.look(at(12)).await.oldest_ready_at, None);
}

pub(super) async fn a_batch_in_flight_has_no_part_in_the_age(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["old"]).await;
    let lease = queue.take(at(1)).await;
    queue.put(at(2), &["young"]).await;
    queue.give(at(3), &lease, Update::then(Then::Release)).await;
    assert_eq!(queue.look(at(3)).await.oldest_ready_at, Some(at(2)));
}

pub(super) async fn the_age_of_a_retried_request_counts_from_its_return(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(10)).await;
    queue.finish(at(20), &lease, Outcome::retry("x")).await;
    assert_eq!(queue.look(at(30)).await.oldest_ready_at, Some(at(20)));
    let lease = queue.take(at(30)).await;
    queue
        .give(at(30), &lease, finishing(Outcome::retry("x"), at(40)))
        .await;
    assert_eq!(queue.look(at(90)).await.oldest_ready_at, Some(at(40)));
}

pub(super) async fn the_age_of_a_promoted_request_counts_from_its_due_time(bench: Bench) {
    let queue = bench.queue().await;
    queue
        .put_one(at(0), NewRequest::new("x").not_before(at(10)))
        .await;
    assert_eq!(queue.look(at(70)).await.oldest_ready_at, Some(at(10)));
}

pub(super) async fn an_expired_request_has_no_part_in_the_age(bench: Bench) {
    let queue = bench.queue().await;
    queue
        .put_one(at(0), NewRequest::new("x").ttl(secs(10)))
        .await;
    queue.put(at(5), &["y"]).await;
    assert_eq!(queue.look(at(9)).await.oldest_ready_at, Some(at(0)));
    assert_eq!(queue.look(at(10)).await.oldest_ready_at, Some(at(5)));
}

pub(super) async fn a_ready_time_in_the_future_counts_from_when_it_was_first_seen(bench: Bench) {
    let queue = bench.queue().await;
    queue
        .put(at(7_200), &["pushed before the clock stepped back"])
        .await;
    assert_eq!(queue.look(at(100)).await.oldest_ready_at, Some(at(100)));
    assert_eq!(queue.look(at(160)).await.oldest_ready_at, Some(at(100)));
    assert_eq!(queue.look(at(3_000)).await.oldest_ready_at, Some(at(100)));
}

pub(super) async fn the_age_is_never_past_the_now_that_was_asked_with(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(100), &["a"]).await;
    for seconds in [200, 50, 70, 10, 100, 5] {
        let now = at(seconds);
        let oldest = queue.look(now).await.oldest_ready_at;
        assert!(oldest <= Some(now), "{oldest:?} is after {now}");
    }
}

pub(super) async fn every_reading_adds_up_along_the_way(bench: Bench) {
    let queue = bench.queue().await;
    for round in 0..30_u64 {
        let now = at(round * 7);
        let new = vec![
            NewRequest::new("plain"),
            NewRequest::new("brief").ttl(secs(round % 5 + 1)),
            NewRequest::new("later").not_before(now.after(secs(round % 11))),
        ];
        queue.put_all(now, new).await;
        queue.look(now).await;
        let Some(lease) = queue.try_take(now, &crate::Claim::new()).await else {
            continue;
        };
        queue.look(now).await;
        match round % 4 {
            0 => queue.finish(now, &lease, Outcome::retry("x")).await,
            1 => queue.finish(now, &lease, Outcome::reject("x")).await,
            2 => queue.give(now, &lease, Update::then(Then::Release)).await,
            _ => queue.finish_done(now, &lease).await,
        }
        queue.look(now).await;
    }
}
