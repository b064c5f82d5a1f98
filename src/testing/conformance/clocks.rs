//! Clauses about clocks that step back a day, stand still, or jump a year ahead and come back.
//!
//! A queue takes each `now` as it is given: what has come by then has come, and nothing that came is undone. What has
//! to grow (ids, positions, batch ids, fences) grows whatever `now` does. So does age: it counts from when a request
//! was first seen, if it became ready at a time that has not come.

use std::{collections::BTreeSet, time::Duration};

use super::bench::{
    Bench, Subject, assert_kind, at, claim_up_to, finishing, must, secs, splitting,
};
use crate::{
    batch::{Claim, Due, Lease, Outcome, Page, Then, Update},
    clock::Timestamp,
    error::ErrorKind,
    queue::QueueOptions,
    request::{NewRequest, State},
};

/// Any time, a year ahead of it, a day before it, and standing still in between.
fn moments() -> [Timestamp; 9] {
    let ahead = NOW.after(YEAR);
    let back = NOW.before(DAY);
    [
        NOW,
        NOW,
        ahead,
        ahead,
        NOW,
        back,
        back,
        NOW.after(secs(1)),
        ahead,
    ]
}

/// Each of these as a batch of its own, whatever was offered before.
async fn take_one(queue: &Subject, now: Timestamp) -> Lease {
    queue.take_up_to(now, 1).await
}

pub(super) async fn ids_and_positions_grow_whatever_now_does(bench: Bench) {
    let queue = bench.queue().await;
    let mut ids = Vec::new();
    for now in moments() {
        ids.extend(queue.put(now, &["a", "b"]).await);
    }
    assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
    let lease = queue.take(NOW).await;
    let members = must("read", queue.read(&lease, Page::first()).await);
    let order: Vec<_> = members.iter().map(|member| member.id).collect();
    assert_eq!(order, ids, "the order is that in which they were pushed");
    // Those that come back go to the tail, even at an earlier time.
    let first = queue.put(NOW.before(DAY), &["first"]).await;
    queue
        .give(
            NOW.before(DAY),
            &lease,
            finishing(Outcome::retry("again"), NOW.before(DAY)),
        )
        .await;
    let lease = queue.take(NOW.before(DAY)).await;
    let members = must("read", queue.read(&lease, Page::first()).await);
    let order: Vec<_> = members.iter().map(|member| member.id).collect();
    assert_eq!(order, [first, ids].concat());
}

pub(super) async fn batch_ids_and_fences_are_never_given_twice_whatever_now_does(bench: Bench) {
    let queue = bench.queue().await;
    let mut batches = BTreeSet::new();
    let mut last = 0;
    for now in moments() {
        queue.put(now, &["a", "b"]).await;
        let lease = queue.take_up_to(now, 2).await;
        assert!(
            batches.insert(lease.batch),
            "{:?} is given twice",
            lease.batch
        );
        assert!(lease.fence.0 > last, "a fence is given twice");
        queue.give(now, &lease, Update::then(splitting(now))).await;
        for _ in 0..2 {
            let half = queue.take(now).await;
            assert!(
                batches.insert(half.batch),
                "{:?} is given twice",
                half.batch
            );
            assert!(half.fence.0 > last, "a fence is given twice");
            last = half.fence.0;
            queue.finish_done(now, &half).await;
        }
    }
}

pub(super) async fn a_now_that_stands_still_holds_nothing_up(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(NOW, &["a", "b", "c", "d"]).await;
    let lease = queue.take(NOW).await;
    queue.give(NOW, &lease, Update::then(Then::Release)).await;
    let lease = queue.take(NOW).await;
    queue
        .give(NOW, &lease, Update::then(Then::Defer { until: NOW }))
        .await;
    let lease = queue.take(NOW).await;
    queue.give(NOW, &lease, Update::then(splitting(NOW))).await;
    let first = queue.take(NOW).await;
    queue.finish(NOW, &first, Outcome::retry("again")).await;
    let second = queue.take(NOW).await;
    queue
        .give(NOW, &second, Update::then(Then::Hold { until: NOW }))
        .await;
    let second = queue.take(NOW).await;
    queue.finish_done(NOW, &second).await;
    let again = queue.take(NOW).await;
    assert_eq!(queue.payloads(&again).await, ["a", "b"]);
    queue.finish_done(NOW, &again).await;
    queue
        .put_one(NOW, NewRequest::new("now").not_before(NOW))
        .await;
    queue
        .put_one(NOW, NewRequest::new("never").ttl(Duration::ZERO))
        .await;
    let last = queue.take(NOW).await;
    assert_eq!(queue.payloads(&last).await, ["now"]);
    queue.finish_done(NOW, &last).await;
    let stats = queue.look(NOW).await;
    assert_eq!(
        (stats.done, stats.expired, stats.held()),
        (5, 1, 0),
        "{stats:?}"
    );
}

pub(super) async fn a_step_back_only_prolongs_a_lease(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(NOW, &["a"]).await;
    let lease = queue.take(NOW).await;
    queue.has_nothing_to_take(NOW.before(DAY)).await;
    queue.record(NOW.before(DAY), &lease, &[]).await;
    queue
        .has_nothing_to_take(super::bench::just_before(lease.until))
        .await;
    let next = queue.take(lease.until).await;
    assert_eq!((next.batch, next.attempt), (lease.batch, 2));
}

pub(super) async fn a_jump_ahead_offers_what_is_held_and_fences_its_holder_off(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(NOW, &["a"]).await;
    let lease = queue.take(NOW).await;
    let next = queue.take(NOW.after(YEAR)).await;
    assert_eq!(next.batch, lease.batch);
    let late = queue.update(NOW, &lease, Update::then(Then::Release)).await;
    assert_kind(late, ErrorKind::LeaseLost);
    queue.has_nothing_to_take(NOW).await;
    // A heartbeat by the clock that came back brings the end of the lease back with it.
    let until = NOW.after(secs(60));
    queue
        .give(NOW, &next, Update::then(Then::Hold { until }))
        .await;
    queue
        .has_nothing_to_take(super::bench::just_before(until))
        .await;
    let last = queue.take(until).await;
    assert_eq!((last.batch, last.attempt), (lease.batch, 3));
}

pub(super) async fn what_a_jump_ahead_brought_stays(bench: Bench) {
    let queue = bench.queue().await;
    queue
        .put_one(NOW, NewRequest::new("later").not_before(NOW.after(DAY)))
        .await;
    queue.put_one(NOW, NewRequest::new("brief").ttl(DAY)).await;
    queue
        .put_one(
            NOW,
            NewRequest::new("after all").not_before(NOW.after(2 * YEAR)),
        )
        .await;
    let ahead = queue.look(NOW.after(YEAR)).await;
    assert_eq!((ahead.ready, ahead.delayed, ahead.expired), (1, 1, 1));
    let back = queue.look(NOW).await;
    assert_eq!((back.ready, back.delayed, back.expired), (1, 1, 1));
    assert_eq!(
        back.oldest_ready_at,
        Some(NOW),
        "it is seen at that time first"
    );
    let lease = queue.take(NOW).await;
    assert_eq!(queue.payloads(&lease).await, ["later"]);
}

pub(super) async fn what_a_jump_ahead_pushed_ages_from_when_it_is_seen(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(NOW.after(YEAR), &["a"]).await;
    assert_eq!(queue.look(NOW).await.oldest_ready_at, Some(NOW));
    queue.put(NOW.after(secs(1)), &["b"]).await;
    let due_when = |age: u64, now: Timestamp| Claim {
        due: Some(Due {
            requests: 100,
            bytes: 1 << 30,
            oldest_at: Some(now.before(secs(age))),
        }),
        ..Claim::new()
    };
    let young = NOW.after(secs(7_199));
    assert_eq!(queue.try_take(young, &due_when(7_200, young)).await, None);
    let old = NOW.after(secs(7_200));
    let lease = queue.try_take(old, &due_when(7_200, old)).await;
    let lease = lease.expect("it is two hours old");
    assert_eq!(queue.payloads(&lease).await, ["a", "b"]);
}

pub(super) async fn what_a_jump_ahead_deferred_is_not_lost(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(NOW, &["a", "b"]).await;
    let ahead = NOW.after(YEAR);
    let lease = take_one(&queue, ahead).await;
    let until = ahead.after(secs(30));
    queue
        .give(ahead, &lease, Update::then(Then::Defer { until }))
        .await;
    let other = take_one(&queue, ahead).await;
    queue
        .give(ahead, &other, finishing(Outcome::retry("later"), until))
        .await;
    let stats = queue.look(NOW).await;
    assert_eq!((stats.in_flight, stats.delayed), (1, 1), "{stats:?}");
    assert_eq!(
        (stats.next_offer, stats.next_due),
        (Some(until), Some(until))
    );
    assert_eq!(queue.payloads(&take_one(&queue, until).await).await, ["a"]);
    assert_eq!(queue.payloads(&take_one(&queue, until).await).await, ["b"]);
}

pub(super) async fn a_key_from_the_future_is_known_until_its_window_has_passed(bench: Bench) {
    let window = QueueOptions::default().idempotency_window(secs(100));
    let queue = bench.queue_with(window).await;
    let keyed = || vec![NewRequest::new("a").idempotency_key("k")];
    let ahead = NOW.after(YEAR);
    let id = queue.put_all(ahead, keyed()).await[0];
    for now in [NOW.before(DAY), NOW, NOW.after(DAY), ahead.after(secs(99))] {
        let pushed = must("push", queue.push(now, keyed()).await)[0];
        assert_eq!((pushed.id, pushed.duplicate), (id, true), "at {now}");
    }
    let pushed = must("push", queue.push(ahead.after(secs(100)), keyed()).await)[0];
    assert!(!pushed.duplicate && pushed.id > id);
}

pub(super) async fn what_was_done_in_the_future_is_kept(bench: Bench) {
    let retention = QueueOptions::default().retention(secs(100));
    let queue = bench.queue_with(retention).await;
    let ahead = NOW.after(YEAR);
    let ids = queue.put(NOW, &["a"]).await;
    let lease = queue.take(ahead).await;
    queue
        .finish(ahead, &lease, Outcome::result("paid for"))
        .await;
    for now in [NOW.before(DAY), NOW.after(DAY), ahead.after(secs(99))] {
        let entry = queue.entry(now, ids[0]).await;
        assert_eq!(
            (entry.state, entry.result.as_deref()),
            (State::Done, Some(&b"paid for"[..]))
        );
    }
    queue.look(ahead.after(secs(100))).await;
    assert_eq!(queue.status(NOW, ids[0]).await, None);
}

pub(super) async fn a_restart_does_not_trust_the_clock(bench: Bench) {
    let mut queue = bench.queue().await;
    let (mut ids, mut batches, mut last) = (Vec::new(), BTreeSet::new(), 0);
    for now in moments() {
        ids.extend(queue.put(now, &["a"]).await);
        let lease = take_one(&queue, now).await;
        assert!(
            batches.insert(lease.batch),
            "{:?} is given twice",
            lease.batch
        );
        assert!(lease.fence.0 > last, "a fence is given twice");
        last = lease.fence.0;
        queue.finish_done(now, &lease).await;
        queue = bench.reopen(queue).await;
    }
    assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
}

pub(super) async fn downtime_counts(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(NOW, &["held"]).await;
    let lease = queue.take(NOW).await;
    queue
        .put_one(
            NOW,
            NewRequest::new("later").not_before(NOW.after(secs(600))),
        )
        .await;
    queue
        .put_one(NOW, NewRequest::new("brief").ttl(secs(700)))
        .await;
    queue.put(NOW.after(secs(1)), &["old"]).await;
    let queue = bench.reopen(queue).await;
    let stats = queue.look(NOW.after(DAY)).await;
    assert_eq!(
        (stats.ready, stats.expired, stats.offered),
        (2, 1, 1),
        "{stats:?}"
    );
    assert_eq!(stats.oldest_ready_at, Some(NOW.after(secs(1))));
    let next = queue.take(NOW.after(DAY)).await;
    assert_eq!((next.batch, next.attempt), (lease.batch, 2));
    let rest = queue.try_take(NOW.after(DAY), &claim_up_to(9)).await;
    let rest = rest.expect("two more are ready");
    assert_eq!(queue.payloads(&rest).await, ["old", "later"]);
}

pub(super) async fn a_step_back_over_a_restart_undoes_nothing(bench: Bench) {
    let queue = bench.queue().await;
    queue
        .put_one(
            NOW,
            NewRequest::new("later").not_before(NOW.after(secs(600))),
        )
        .await;
    queue
        .put_one(NOW, NewRequest::new("brief").ttl(secs(600)))
        .await;
    let ahead = queue.look(NOW.after(YEAR)).await;
    assert_eq!((ahead.ready, ahead.expired), (1, 1));
    queue.put(NOW.after(YEAR), &["a year ahead"]).await;
    let queue = bench.reopen(queue).await;
    let back = queue.look(NOW.before(DAY)).await;
    assert_eq!(
        (back.ready, back.expired, back.delayed),
        (2, 1, 0),
        "{back:?}"
    );
    assert_eq!(back.oldest_ready_at, Some(NOW.before(DAY)));
    let lease = queue.take(NOW.before(DAY)).await;
    assert_eq!(lease.until, NOW.before(DAY).after(secs(60)));
    let queue = bench.reopen(queue).await;
    queue.has_nothing_to_take(NOW.before(DAY)).await;
    assert_eq!(queue.payloads(&lease).await, ["later", "a year ahead"]);
    queue.finish_done(NOW, &lease).await;
}

const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const NOW: Timestamp = at(10_000);
