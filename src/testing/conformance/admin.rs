//! Clauses about [`Administration`](crate::Administration): status, list, cancel, redrive, purge.

use super::bench::{Bench, Subject, at, count, finishing, must, requests, secs};
use crate::{
    batch::Outcome,
    clock::Timestamp,
    error::ErrorKind,
    queue::{Cancelled, List, QueueOptions},
    request::{DeadReason, NewRequest, RequestId, State},
};

async fn cancel(queue: &Subject, now: Timestamp, ids: &[RequestId]) -> Vec<Cancelled> {
    must("cancel", queue.admin().cancel(now, ids).await)
}

async fn redrive(queue: &Subject, now: Timestamp, ids: &[RequestId]) -> u64 {
    must("redrive", queue.admin().redrive(now, ids).await)
}

async fn purge(queue: &Subject, now: Timestamp, ids: &[RequestId]) -> u64 {
    must("purge", queue.admin().purge(now, ids).await)
}

/// Pushes these and rejects them; their ids.
async fn put_dead(queue: &Subject, now: Timestamp, payloads: &[&str]) -> Vec<RequestId> {
    let ids = queue.put(now, payloads).await;
    let lease = queue.take(now).await;
    queue.finish(now, &lease, Outcome::reject("bad")).await;
    ids
}

/// An id that was never pushed.
const UNKNOWN: RequestId = RequestId::from_u64(7);

pub(super) async fn status_of_an_unknown_request_is_none(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    assert_eq!(queue.status(at(0), UNKNOWN).await, None);
}

pub(super) async fn status_tells_of_a_ready_request(bench: Bench) {
    let queue = bench.queue().await;
    let new = NewRequest::new("abc").attribute("tenant", "7");
    let id = queue.put_one(at(3), new.clone()).await;
    let entry = queue.entry(at(9), id).await;
    assert_eq!((entry.id, entry.state), (id, State::Ready));
    assert_eq!((entry.pushed_at, entry.at), (at(3), at(3)));
    assert_eq!((entry.attempts, entry.bytes, entry.payload), (0, 3, None));
    assert_eq!(entry.attributes, new.attributes);
    assert_eq!(
        (entry.batch, entry.result, entry.reason, entry.error),
        (None, None, None, None)
    );
}

pub(super) async fn status_tells_when_a_delayed_request_is_due(bench: Bench) {
    let queue = bench.queue().await;
    let id = queue
        .put_one(at(0), NewRequest::new("a").not_before(at(50)))
        .await;
    let entry = queue.entry(at(9), id).await;
    assert_eq!(
        (entry.state, entry.pushed_at, entry.at),
        (State::Delayed, at(0), at(50))
    );
    let entry = queue.entry(at(60), id).await;
    assert_eq!(
        (entry.state, entry.at),
        (State::Ready, at(50)),
        "status promotes too"
    );
}

pub(super) async fn status_tells_the_batch_of_a_request_in_flight(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(5)).await;
    for id in &ids {
        let entry = queue.entry(at(6), *id).await;
        assert_eq!(
            (entry.state, entry.batch),
            (State::InFlight, Some(lease.batch))
        );
        assert_eq!(entry.attempts, 1);
    }
    queue.split(at(7), &lease).await;
    let half = queue.take(at(7)).await;
    let entry = queue.entry(at(8), ids[0]).await;
    assert_eq!((entry.batch, entry.attempts), (Some(half.batch), 2));
}

pub(super) async fn status_tells_why_a_request_came_back(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["now", "later"]).await;
    let (one, two) = (
        queue.take_up_to(at(1), 1).await,
        queue.take_up_to(at(1), 1).await,
    );
    queue.finish(at(2), &one, Outcome::retry("too busy")).await;
    queue
        .give(
            at(2),
            &two,
            finishing(Outcome::retry("much too busy"), at(90)),
        )
        .await;
    let entry = queue.entry(at(3), ids[0]).await;
    assert_eq!(
        (entry.state, entry.attempts, entry.at),
        (State::Ready, 1, at(2))
    );
    assert_eq!(
        (entry.error.as_deref(), entry.batch),
        (Some("too busy"), None)
    );
    let entry = queue.entry(at(3), ids[1]).await;
    assert_eq!(
        (entry.state, entry.attempts, entry.at),
        (State::Delayed, 1, at(90))
    );
    assert_eq!(entry.error.as_deref(), Some("much too busy"));
}

pub(super) async fn expired_and_cancelled_requests_are_only_counted(bench: Bench) {
    let queue = bench.queue().await;
    let brief = queue
        .put_one(at(0), NewRequest::new("a").ttl(secs(5)))
        .await;
    let id = queue.put(at(0), &["b"]).await[0];
    cancel(&queue, at(1), &[id]).await;
    assert_eq!(queue.status(at(9), id).await, None);
    assert_eq!(queue.status(at(9), brief).await, None, "status expires too");
    assert_eq!(queue.ids(at(9), State::Expired).await, []);
    assert_eq!(queue.ids(at(9), State::Cancelled).await, []);
    let stats = queue.look(at(9)).await;
    assert_eq!((stats.expired, stats.cancelled), (1, 1));
}

pub(super) async fn list_tells_each_state_in_order_of_ids(bench: Bench) {
    let queue = bench.queue().await;
    let dead = put_dead(&queue, at(0), &["dead", "dead too"]).await;
    let flying = queue.put(at(1), &["x", "y"]).await;
    let lease = queue.take(at(1)).await;
    let delayed = [20, 10].map(|due| NewRequest::new("z").not_before(at(due)));
    let delayed = queue.put_all(at(2), delayed.to_vec()).await;
    let back = queue.put(at(2), &["back"]).await;
    let one = queue.take(at(2)).await;
    let ready = queue.put(at(3), &["plain"]).await;
    queue.finish(at(4), &one, Outcome::retry("x")).await;
    assert_eq!(queue.ids(at(5), State::Dead).await, dead);
    assert_eq!(queue.ids(at(5), State::InFlight).await, flying);
    assert_eq!(queue.ids(at(5), State::Delayed).await, delayed);
    let by_id = [back[0], ready[0]];
    assert_eq!(
        queue.ids(at(5), State::Ready).await,
        by_id,
        "not by position"
    );
    queue.finish(at(6), &lease, Outcome::retry("x")).await;
    assert_eq!(queue.ids(at(6), State::InFlight).await, []);
    assert_eq!(queue.ids(at(6), State::Ready).await.len(), 4);
}

pub(super) async fn list_entries_are_those_of_status(bench: Bench) {
    let queue = bench.queue().await;
    put_dead(&queue, at(0), &["dead"]).await;
    queue.put(at(1), &["in flight"]).await;
    queue.take(at(1)).await;
    queue
        .put_one(at(2), NewRequest::new("later").not_before(at(99)))
        .await;
    queue
        .put_one(at(2), NewRequest::new("ready").attribute("a", "b"))
        .await;
    for state in [State::Dead, State::InFlight, State::Delayed, State::Ready] {
        let listed = must("list", queue.admin().list(at(3), &List::new(state)).await);
        assert_eq!(listed.len(), 1, "{state}");
        assert_eq!(listed[0], queue.entry(at(3), listed[0].id).await);
    }
}

pub(super) async fn list_answers_in_pages(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c", "d", "e"]).await;
    let mut list = List::new(State::Ready).max_requests(count(2));
    let mut all = Vec::new();
    loop {
        let page = must("list", queue.admin().list(at(1), &list).await);
        assert!(page.len() <= 2);
        let Some(end) = page.last() else { break };
        list = list.after(end.id);
        all.extend(page.iter().map(|entry| entry.id));
    }
    assert_eq!(all, ids);
}

pub(super) async fn list_reads_payloads_when_asked(bench: Bench) {
    let queue = bench.queue().await;
    put_dead(&queue, at(0), &["dead"]).await;
    queue.put(at(1), &["in flight"]).await;
    queue.take(at(1)).await;
    queue
        .put_one(at(2), NewRequest::new("delayed").not_before(at(99)))
        .await;
    queue.put(at(2), &["ready"]).await;
    for (state, payload) in [
        (State::Dead, "dead"),
        (State::InFlight, "in flight"),
        (State::Delayed, "delayed"),
        (State::Ready, "ready"),
    ] {
        let list = List::new(state);
        let without = must("list", queue.admin().list(at(3), &list).await);
        assert_eq!(without[0].payload, None);
        let with = must(
            "list",
            queue.admin().list(at(3), &list.with_payloads()).await,
        );
        assert_eq!(with[0].payload.as_deref(), Some(payload.as_bytes()));
        assert_eq!(with[0].bytes, payload.len() as u64);
    }
}

pub(super) async fn a_list_with_payloads_ends_a_page_after_about_4_mib(bench: Bench) {
    let queue = bench.queue().await;
    let new = (0..12_u8).map(|byte| NewRequest::new(vec![byte; 1 << 20]));
    let ids = queue.put_all(at(0), new.collect()).await;
    let mut list = List::new(State::Ready).with_payloads();
    let mut all = Vec::new();
    loop {
        let page = must("list", queue.admin().list(at(1), &list).await);
        let Some(end) = page.last() else { break };
        assert!(page.len() <= 6, "a page of {} MiB", page.len());
        list = list.after(end.id);
        all.extend(page.iter().map(|entry| entry.id));
    }
    assert_eq!(all, ids);
}

pub(super) async fn cancelling_takes_ready_and_delayed_requests_at_once(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["aa", "b", "cc"]).await;
    let later = queue
        .put_one(at(0), NewRequest::new("dd").not_before(at(9)))
        .await;
    let done = cancel(&queue, at(1), &[later, ids[0], ids[2]]).await;
    assert_eq!(done, [Cancelled::Now; 3]);
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.ready, stats.delayed, stats.cancelled), (1, 0, 3));
    assert_eq!(
        (stats.ready_bytes, stats.held_bytes, stats.next_due),
        (1, 1, None)
    );
    let lease = queue.take(at(10)).await;
    assert_eq!(queue.payloads(&lease).await, ["b"]);
}

pub(super) async fn cancelling_passes_over_what_it_does_not_apply_to(bench: Bench) {
    let queue = bench.queue().await;
    let dead = put_dead(&queue, at(0), &["dead"]).await[0];
    let done = queue.put(at(1), &["done"]).await[0];
    let lease = queue.take(at(1)).await;
    queue.finish_done(at(1), &lease).await;
    let id = queue.put(at(2), &["ready"]).await[0];
    let answers = cancel(&queue, at(2), &[dead, UNKNOWN, done, id, id]).await;
    let no = Cancelled::No;
    assert_eq!(answers, [no, no, no, Cancelled::Now, no]);
    assert_eq!(cancel(&queue, at(2), &[]).await, []);
    let stats = queue.look(at(2)).await;
    assert_eq!((stats.cancelled, stats.dead, stats.done), (1, 1, 1));
}

pub(super) async fn a_request_cancelled_in_flight_does_not_come_back(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["cancelled", "retried"]).await;
    let lease = queue.take(at(0)).await;
    let answers = cancel(&queue, at(1), &ids[..1]).await;
    assert_eq!(answers, [Cancelled::IfItComesBack]);
    let again = cancel(&queue, at(1), &ids[..1]).await;
    assert_eq!(again, [Cancelled::IfItComesBack]);
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.in_flight, stats.cancelled), (2, 0));
    assert_eq!(
        queue.payloads(&lease).await.len(),
        2,
        "members never change"
    );
    let orphan = queue.take(lease.until).await;
    assert_eq!(
        queue.payloads(&orphan).await.len(),
        2,
        "not even for the next holder"
    );
    queue
        .finish(lease.until, &orphan, Outcome::retry("x"))
        .await;
    let stats = queue.look(lease.until).await;
    assert_eq!((stats.ready, stats.cancelled), (1, 1));
    assert_eq!(queue.status(lease.until, ids[0]).await, None);
}

pub(super) async fn a_mark_to_cancel_does_not_change_done_or_dead(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue
        .put(at(0), &["done", "dead", "done by the rest"])
        .await;
    let lease = queue.take(at(0)).await;
    cancel(&queue, at(1), &ids).await;
    let outcomes = [(ids[0], Outcome::done()), (ids[1], Outcome::reject("bad"))];
    queue.record(at(2), &lease, &outcomes).await;
    queue.finish_done(at(3), &lease).await;
    let stats = queue.look(at(3)).await;
    assert_eq!((stats.done, stats.dead, stats.cancelled), (2, 1, 0));
}

pub(super) async fn a_done_member_of_an_open_batch_can_not_be_cancelled(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(0)).await;
    queue
        .record(at(1), &lease, &[(ids[0], Outcome::done())])
        .await;
    let answers = cancel(&queue, at(1), &ids).await;
    assert_eq!(answers, [Cancelled::No, Cancelled::IfItComesBack]);
}

pub(super) async fn a_mark_to_cancel_survives_a_split(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b"]).await;
    let parent = queue.take(at(0)).await;
    cancel(&queue, at(1), &ids[..1]).await;
    queue.split(at(2), &parent).await;
    for _ in 0..2 {
        let half = queue.take(at(3)).await;
        queue.finish(at(3), &half, Outcome::retry("x")).await;
        let stats = queue.look(at(3)).await;
        assert_eq!(stats.cancelled, 1);
        if stats.batches == 0 {
            assert_eq!(stats.ready, 1);
        }
    }
}

pub(super) async fn a_cancelled_request_makes_room(bench: Bench) {
    let queue = bench
        .queue_with(QueueOptions::default().max_requests(1))
        .await;
    let ids = queue.put(at(0), &["a"]).await;
    super::bench::assert_kind(
        queue.push(at(0), requests(&["b"])).await,
        ErrorKind::QueueFull,
    );
    cancel(&queue, at(0), &ids).await;
    queue.put(at(0), &["b"]).await;
}

pub(super) async fn redrive_makes_dead_letters_ready_at_the_tail(bench: Bench) {
    let queue = bench.queue().await;
    let new = NewRequest::new("dead").attribute("tenant", "7");
    let id = queue.put_one(at(0), new.clone()).await;
    let lease = queue.take(at(0)).await;
    queue.finish(at(0), &lease, Outcome::reject("bad")).await;
    queue.put(at(1), &["waits"]).await;
    assert_eq!(redrive(&queue, at(5), &[id]).await, 1);
    let stats = queue.look(at(5)).await;
    assert_eq!((stats.dead, stats.ready, stats.held_bytes), (0, 2, 9));
    let entry = queue.entry(at(6), id).await;
    assert_eq!(
        (entry.state, entry.attempts, entry.at),
        (State::Ready, 0, at(5))
    );
    assert_eq!((entry.reason, entry.error), (None, None));
    let lease = queue.take(at(6)).await;
    assert_eq!(queue.payloads(&lease).await, ["waits", "dead"]);
    let member = queue.members(&lease).await.remove(1);
    assert_eq!(
        (member.id, member.attempt, member.pushed_at),
        (id, 1, at(0))
    );
    assert_eq!(member.attributes, new.attributes);
}

pub(super) async fn a_redriven_request_has_no_ttl_any_more(bench: Bench) {
    let queue = bench.queue().await;
    let id = queue
        .put_one(at(0), NewRequest::new("a").ttl(secs(10)))
        .await;
    let lease = queue.take(at(0)).await;
    queue.finish(at(0), &lease, Outcome::reject("bad")).await;
    assert_eq!(redrive(&queue, at(5), &[id]).await, 1);
    let stats = queue.look(at(10_000)).await;
    assert_eq!((stats.ready, stats.expired), (1, 0));
    let lease = queue.take(at(10_000)).await;
    queue.finish(at(10_000), &lease, Outcome::retry("x")).await;
    assert_eq!(queue.look(at(10_000)).await.ready, 1);
}

pub(super) async fn redrive_passes_over_what_is_not_dead(bench: Bench) {
    let queue = bench.queue().await;
    let dead = put_dead(&queue, at(0), &["dead", "dead too"]).await;
    let ready = queue.put(at(1), &["ready"]).await[0];
    let ids = [dead[0], ready, UNKNOWN, dead[0], dead[1]];
    assert_eq!(redrive(&queue, at(1), &ids).await, 2);
    assert_eq!(redrive(&queue, at(1), &ids).await, 0);
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.ready, stats.dead), (3, 0));
}

pub(super) async fn redrive_over_the_bounds_is_queue_full_and_moves_none(bench: Bench) {
    let queue = bench
        .queue_with(QueueOptions::default().max_requests(3))
        .await;
    let dead = put_dead(&queue, at(0), &["a", "b"]).await;
    queue.put(at(1), &["c", "d"]).await;
    let over = queue.admin().redrive(at(1), &dead).await;
    super::bench::assert_kind(over, ErrorKind::QueueFull);
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.dead, stats.ready), (2, 2));
    assert_eq!(redrive(&queue, at(1), &dead[..1]).await, 1);
}

pub(super) async fn a_request_too_large_may_be_redriven_to_a_larger_batch(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["123456"]).await;
    let small = super::bench::claim_bytes(5);
    assert_eq!(queue.try_take(at(0), &small).await, None);
    assert_eq!(redrive(&queue, at(1), &ids).await, 1);
    let lease = queue.take(at(1)).await;
    assert_eq!(queue.payloads(&lease).await, ["123456"]);
}

pub(super) async fn a_delayed_request_too_large_is_whole_when_redriven(bench: Bench) {
    let queue = bench.queue().await;
    // Alone in its push: nothing but itself keeps what was pushed with it.
    let new = NewRequest::new("123456").not_before(at(1));
    let id = queue.put_one(at(0), new).await;
    let small = super::bench::claim_bytes(5);
    assert_eq!(queue.try_take(at(2), &small).await, None);
    let entry = queue.entry(at(2), id).await;
    assert_eq!(
        (entry.state, entry.reason),
        (State::Dead, Some(DeadReason::TooLarge))
    );
    assert_eq!(queue.ids(at(2), State::Dead).await, [id]);
    assert_eq!(redrive(&queue, at(3), &[id]).await, 1);
    let lease = queue.take(at(3)).await;
    assert_eq!(queue.payloads(&lease).await, ["123456"]);
}

pub(super) async fn purge_forgets_dead_letters(bench: Bench) {
    let queue = bench.queue().await;
    let dead = put_dead(&queue, at(0), &["a", "b", "c"]).await;
    let ready = queue.put(at(1), &["ready"]).await[0];
    let ids = [dead[0], ready, UNKNOWN, dead[2], dead[2]];
    assert_eq!(purge(&queue, at(1), &ids).await, 2);
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.dead, stats.purged, stats.ready), (1, 2, 1));
    assert_eq!(queue.status(at(1), dead[0]).await, None);
    assert_eq!(queue.ids(at(1), State::Dead).await, [dead[1]]);
    assert_eq!(redrive(&queue, at(1), &dead).await, 1);
    assert_eq!(purge(&queue, at(1), &dead).await, 0);
}

pub(super) async fn every_reason_to_die_comes_back_as_it_was_given(bench: Bench) {
    let queue = bench.queue().await;
    let reasons = [
        DeadReason::Rejected,
        DeadReason::Exhausted,
        DeadReason::TooLarge,
        DeadReason::Undecodable,
        DeadReason::Damaged,
    ];
    let ids = queue.put(at(0), &["a", "b", "c", "d", "e"]).await;
    let lease = queue.take(at(0)).await;
    let reject = |reason: &DeadReason| Outcome::Reject {
        reason: *reason,
        error: reason.to_string(),
    };
    let outcomes: Vec<_> = ids
        .iter()
        .copied()
        .zip(reasons.iter().map(reject))
        .collect();
    queue.record(at(0), &lease, &outcomes).await;
    queue.finish_done(at(0), &lease).await;
    for (id, reason) in ids.iter().zip(reasons) {
        let entry = queue.entry(at(0), *id).await;
        assert_eq!(
            (entry.reason, entry.error),
            (Some(reason), Some(reason.to_string()))
        );
    }
}
