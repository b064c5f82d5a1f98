//! Clauses about time: `not_before`, promotion, `ttl`, and a `now` that goes back.

use std::time::Duration;

use super::bench::{Bench, at, finishing, just_before, secs};
use crate::{batch::Outcome, clock::Timestamp, request::NewRequest};

/// A request that is due at this time.
fn due(payload: &str, time: Timestamp) -> NewRequest {
    NewRequest::new(payload.to_owned()).not_before(time)
}

/// A request that lives this many seconds.
fn brief(payload: &str, seconds: u64) -> NewRequest {
    NewRequest::new(payload.to_owned()).ttl(secs(seconds))
}

pub(super) async fn a_request_before_its_time_is_delayed(bench: Bench) {
    let queue = bench.queue().await;
    queue.put_one(at(0), due("later", at(10))).await;
    let stats = queue.look(at(0)).await;
    assert_eq!((stats.delayed, stats.ready, stats.held_bytes), (1, 0, 5));
    assert_eq!((stats.ready_bytes, stats.oldest_ready_at), (0, None));
    assert_eq!(stats.next_due, Some(at(10)));
    queue.has_nothing_to_take(just_before(at(10))).await;
}

pub(super) async fn a_delayed_request_is_ready_at_its_time(bench: Bench) {
    let queue = bench.queue().await;
    let id = queue.put_one(at(0), due("later", at(10))).await;
    let stats = queue.look(at(10)).await;
    assert_eq!((stats.delayed, stats.ready, stats.next_due), (0, 1, None));
    let lease = queue.take(at(10)).await;
    let member = &queue.members(&lease).await[0];
    assert_eq!(
        (member.id, member.pushed_at, member.attempt),
        (id, at(0), 1)
    );
    assert!(
        member.position.as_u64() > id.as_u64(),
        "promoted to the tail"
    );
}

pub(super) async fn a_time_that_has_come_is_no_delay(bench: Bench) {
    let queue = bench.queue().await;
    let new = vec![
        due("past", at(3)),
        due("now", at(5)),
        NewRequest::new("plain"),
    ];
    queue.put_all(at(5), new).await;
    assert_eq!(queue.look(at(5)).await.delayed, 0);
    let lease = queue.take(at(5)).await;
    assert_eq!(queue.payloads(&lease).await, ["past", "now", "plain"]);
}

pub(super) async fn a_request_may_never_be_due(bench: Bench) {
    let queue = bench.queue().await;
    queue.put_one(at(0), due("never", Timestamp::MAX)).await;
    queue.has_nothing_to_take(at(10_000_000)).await;
    let stats = queue.look(at(10_000_000)).await;
    assert_eq!((stats.delayed, stats.next_due), (1, Some(Timestamp::MAX)));
}

pub(super) async fn due_requests_are_promoted_in_order_of_their_times(bench: Bench) {
    let queue = bench.queue().await;
    let new = vec![
        due("third", at(30)),
        due("first", at(10)),
        due("second", at(20)),
        due("much later", at(500)),
    ];
    queue.put_all(at(0), new).await;
    let stats = queue.look(at(40)).await;
    assert_eq!(
        (stats.ready, stats.delayed, stats.next_due),
        (3, 1, Some(at(500)))
    );
    let lease = queue.take(at(40)).await;
    assert_eq!(queue.payloads(&lease).await, ["first", "second", "third"]);
}

pub(super) async fn requests_due_at_the_same_time_keep_their_order(bench: Bench) {
    let queue = bench.queue().await;
    for payloads in [["a", "b"], ["c", "d"]] {
        let new = payloads.map(|payload| due(payload, at(10))).to_vec();
        queue.put_all(at(0), new).await;
    }
    let lease = queue.take(at(10)).await;
    assert_eq!(queue.payloads(&lease).await, ["a", "b", "c", "d"]);
}

pub(super) async fn times_are_told_apart_to_the_nanosecond(bench: Bench) {
    let queue = bench.queue().await;
    let nanos = |n: u64| at(10).after(Duration::from_nanos(n));
    let new = vec![due("c", nanos(3)), due("a", nanos(1)), due("b", nanos(2))];
    queue.put_all(at(0), new).await;
    assert_eq!(queue.look(at(10)).await.next_due, Some(nanos(1)));
    let lease = queue.take(nanos(2)).await;
    assert_eq!(queue.payloads(&lease).await, ["a", "b"]);
    assert_eq!(queue.look(nanos(2)).await.next_due, Some(nanos(3)));
}

pub(super) async fn promotion_happens_before_a_push_adds(bench: Bench) {
    let queue = bench.queue().await;
    queue.put_one(at(0), due("promoted", at(10))).await;
    queue.put(at(20), &["pushed"]).await;
    let lease = queue.take(at(20)).await;
    assert_eq!(queue.payloads(&lease).await, ["promoted", "pushed"]);
}

pub(super) async fn promotion_happens_before_an_update_settles(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["retried"]).await;
    queue.put_one(at(0), due("promoted", at(10))).await;
    let lease = queue.take(at(0)).await;
    queue.finish(at(20), &lease, Outcome::retry("x")).await;
    let lease = queue.take(at(20)).await;
    assert_eq!(queue.payloads(&lease).await, ["promoted", "retried"]);
}

pub(super) async fn promotion_happens_before_a_claim_forms(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["ready"]).await;
    queue.put_one(at(0), due("promoted", at(10))).await;
    let lease = queue.take(at(10)).await;
    assert_eq!(queue.payloads(&lease).await, ["ready", "promoted"]);
}

pub(super) async fn a_now_that_went_back_undoes_nothing(bench: Bench) {
    let queue = bench.queue().await;
    let new = vec![
        due("due", at(10)),
        brief("brief", 20),
        NewRequest::new("plain"),
    ];
    queue.put_all(at(0), new).await;
    let later = queue.look(at(50)).await;
    assert_eq!((later.ready, later.delayed, later.expired), (2, 0, 1));
    let earlier = queue.look(at(1)).await;
    assert_eq!((earlier.ready, earlier.delayed, earlier.expired), (2, 0, 1));
    let lease = queue.take(at(1)).await;
    assert_eq!(queue.payloads(&lease).await, ["plain", "due"]);
}

pub(super) async fn a_claim_at_an_earlier_now_is_legal(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(100), &["a"]).await;
    let lease = queue.take(at(0)).await;
    assert_eq!(lease.until, at(60));
    queue.finish_done(at(0), &lease).await;
    assert_eq!(queue.look(at(0)).await.done, 1);
}

pub(super) async fn a_request_expires_when_its_ttl_has_passed_and_not_before(bench: Bench) {
    let queue = bench.queue().await;
    queue
        .put_all(at(0), vec![brief("brief", 10), NewRequest::new("plain")])
        .await;
    let stats = queue.look(just_before(at(10))).await;
    assert_eq!((stats.ready, stats.expired), (2, 0));
    let stats = queue.look(at(10)).await;
    assert_eq!((stats.ready, stats.expired), (1, 1));
    assert_eq!((stats.ready_bytes, stats.held_bytes), (5, 5));
}

pub(super) async fn a_claim_takes_no_expired_request(bench: Bench) {
    let queue = bench.queue().await;
    let new = vec![
        brief("x", 10),
        NewRequest::new("a"),
        brief("y", 99),
        brief("z", 5),
    ];
    queue.put_all(at(0), new).await;
    let lease = queue.take(at(10)).await;
    assert_eq!(queue.payloads(&lease).await, ["a", "y"]);
    assert_eq!(queue.look(at(10)).await.expired, 2);
}

pub(super) async fn a_request_whose_ttl_has_no_end_never_expires(bench: Bench) {
    let queue = bench.queue().await;
    let new = NewRequest::new("a").ttl(Duration::MAX);
    queue.put_one(at(0), new).await;
    assert_eq!(queue.look(at(1_000_000_000)).await.ready, 1);
}

pub(super) async fn a_delayed_request_expires_too(bench: Bench) {
    let queue = bench.queue().await;
    queue.put_one(at(0), due("x", at(50)).ttl(secs(10))).await;
    let stats = queue.look(at(10)).await;
    assert_eq!((stats.delayed, stats.expired, stats.next_due), (0, 1, None));
    assert_eq!(stats.held_bytes, 0);
}

pub(super) async fn expiry_comes_before_promotion(bench: Bench) {
    let queue = bench.queue().await;
    queue.put_one(at(0), due("x", at(5)).ttl(secs(10))).await;
    queue.has_nothing_to_take(at(20)).await;
    assert_eq!(queue.look(at(20)).await.expired, 1);
}

pub(super) async fn a_promoted_request_still_expires(bench: Bench) {
    let queue = bench.queue().await;
    queue.put_one(at(0), due("x", at(5)).ttl(secs(10))).await;
    assert_eq!(queue.look(at(6)).await.ready, 1);
    assert_eq!(
        queue.look(at(10)).await.expired,
        1,
        "ttl counts from the push"
    );
}

pub(super) async fn a_request_in_flight_does_not_expire(bench: Bench) {
    let queue = bench.queue().await;
    queue.put_one(at(0), brief("a", 10)).await;
    let lease = queue.take(at(5)).await;
    let stats = queue.look(at(50)).await;
    assert_eq!((stats.in_flight, stats.expired), (1, 0));
    let orphan = queue.take(lease.until).await;
    assert_eq!(queue.payloads(&orphan).await, ["a"], "members never change");
    queue.finish_done(lease.until, &orphan).await;
    assert_eq!(queue.look(lease.until).await.done, 1);
}

pub(super) async fn a_request_that_would_come_back_after_its_ttl_expires(bench: Bench) {
    let queue = bench.queue().await;
    queue
        .put_all(at(0), vec![brief("brief", 10), NewRequest::new("plain")])
        .await;
    let lease = queue.take(at(5)).await;
    queue.finish(at(20), &lease, Outcome::retry("x")).await;
    let stats = queue.look(at(20)).await;
    assert_eq!((stats.ready, stats.expired), (1, 1));
    let lease = queue.take(at(20)).await;
    assert_eq!(queue.payloads(&lease).await, ["plain"]);
}

pub(super) async fn a_ttl_does_not_keep_a_rejected_request_from_the_dead(bench: Bench) {
    let queue = bench.queue().await;
    queue.put_one(at(0), brief("x", 10)).await;
    let lease = queue.take(at(5)).await;
    queue.finish(at(20), &lease, Outcome::reject("bad")).await;
    let stats = queue.look(at(20)).await;
    assert_eq!((stats.dead, stats.expired), (1, 0));
}

pub(super) async fn a_retried_request_expires_while_it_waits(bench: Bench) {
    let queue = bench.queue().await;
    queue.put_one(at(0), brief("ready again", 10)).await;
    queue.put_one(at(0), brief("delayed again", 10)).await;
    let (one, two) = (
        queue.take_up_to(at(1), 1).await,
        queue.take_up_to(at(1), 1).await,
    );
    queue.finish(at(2), &one, Outcome::retry("x")).await;
    queue
        .give(at(2), &two, finishing(Outcome::retry("x"), at(100)))
        .await;
    let stats = queue.look(at(2)).await;
    assert_eq!((stats.ready, stats.delayed), (1, 1));
    let stats = queue.look(at(10)).await;
    assert_eq!((stats.ready, stats.delayed, stats.expired), (0, 0, 2));
}

pub(super) async fn a_retried_request_expires_even_if_now_went_back_before(bench: Bench) {
    let queue = bench.queue().await;
    queue.put_one(at(0), brief("x", 10)).await;
    let lease = queue.take(at(5)).await;
    queue.look(at(20)).await;
    queue.finish(at(6), &lease, Outcome::retry("again")).await;
    assert_eq!(queue.look(at(6)).await.ready, 1);
    assert_eq!(queue.look(at(10)).await.expired, 1);
}
