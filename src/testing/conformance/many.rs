//! Clauses about thousands at once: however a backend slices its work, a verb is one step.

use super::bench::{Bench, Subject, at, count, finishing, must, secs};
use crate::{
    batch::{Claim, Lease, Outcome},
    clock::Timestamp,
    queue::{List, QueueOptions},
    request::{NewRequest, RequestId, State},
};

/// More than any slice of work that a backend is likely to choose.
const MANY: u64 = 5_000;

/// Pushes many requests, whose payloads are their numbers.
async fn put_many(
    queue: &Subject,
    now: Timestamp,
    with: fn(NewRequest) -> NewRequest,
) -> Vec<RequestId> {
    let new = (0..MANY).map(|number| with(NewRequest::new(number.to_string())));
    queue.put_all(now, new.collect()).await
}

/// Claims until nothing is left: a backend may form smaller batches than it was asked for.
async fn take_all(queue: &Subject, now: Timestamp) -> Vec<Lease> {
    let mut leases = Vec::new();
    while let Some(lease) = queue.try_take(now, &Claim::new()).await {
        leases.push(lease);
    }
    leases
}

/// The ids of all members, batch by batch.
async fn all_members(queue: &Subject, leases: &[Lease]) -> Vec<RequestId> {
    let mut ids = Vec::new();
    for lease in leases {
        ids.extend(queue.members(lease).await.iter().map(|member| member.id));
    }
    ids
}

/// Pushes many requests and rejects them all.
async fn put_many_dead(queue: &Subject, now: Timestamp) -> Vec<RequestId> {
    let ids = put_many(queue, now, |new| new).await;
    for lease in take_all(queue, now).await {
        queue.finish(now, &lease, Outcome::reject("bad")).await;
    }
    assert_eq!(queue.look(now).await.dead, MANY);
    ids
}

pub(super) async fn many_members_are_settled_in_one_step(bench: Bench) {
    let queue = bench.queue().await;
    let ids = put_many(&queue, at(0), |new| new).await;
    let mut retried = Vec::new();
    for lease in take_all(&queue, at(0)).await {
        let members = queue.members(&lease).await;
        let odd = members.iter().filter(|member| member.id.as_u64() % 2 == 1);
        let outcomes: Vec<_> = odd.map(|member| (member.id, Outcome::done())).collect();
        let (done, rest) = (
            outcomes.len() as u64,
            members.len() as u64 - outcomes.len() as u64,
        );
        queue.record(at(0), &lease, &outcomes).await;
        let before = queue.look(at(0)).await;
        queue.finish(at(1), &lease, Outcome::retry("again")).await;
        let after = queue.look(at(1)).await;
        assert_eq!(before.done, after.done, "done was visible before: {done}");
        assert_eq!(after.ready, before.ready + rest);
        assert_eq!(
            (after.in_flight, after.batches),
            (before.in_flight - rest, before.batches - 1)
        );
        retried.extend(
            members
                .iter()
                .map(|member| member.id)
                .filter(|id| id.as_u64() % 2 == 0),
        );
    }
    let leases = take_all(&queue, at(2)).await;
    assert_eq!(
        all_members(&queue, &leases).await,
        retried,
        "in their order"
    );
    let even = ids.into_iter().filter(|id| id.as_u64() % 2 == 0);
    assert_eq!(retried, even.collect::<Vec<_>>());
}

pub(super) async fn many_members_are_split_in_one_step(bench: Bench) {
    let queue = bench.queue().await;
    let ids = put_many(&queue, at(0), |new| new).await;
    let parents = take_all(&queue, at(0)).await;
    for parent in &parents {
        queue.split(at(1), parent).await;
        queue.look(at(1)).await;
    }
    let halves = take_all(&queue, at(1)).await;
    assert_eq!(halves.len(), parents.len() * 2);
    assert_eq!(all_members(&queue, &halves).await, ids);
    for half in halves {
        queue.finish_done(at(2), &half).await;
    }
    let stats = queue.look(at(2)).await;
    assert_eq!((stats.done, stats.batches, stats.held_bytes), (MANY, 0, 0));
}

pub(super) async fn many_due_requests_are_promoted_in_one_step(bench: Bench) {
    let queue = bench.queue().await;
    let ids = put_many(&queue, at(0), |new| new.not_before(at(9))).await;
    assert_eq!(queue.look(at(0)).await.delayed, MANY);
    let stats = queue.look(at(9)).await;
    assert_eq!(
        (stats.delayed, stats.ready, stats.next_due),
        (0, MANY, None)
    );
    assert_eq!(stats.oldest_ready_at, Some(at(9)));
    let leases = take_all(&queue, at(9)).await;
    assert_eq!(all_members(&queue, &leases).await, ids);
}

pub(super) async fn many_requests_expire_in_one_step(bench: Bench) {
    let queue = bench.queue().await;
    put_many(&queue, at(0), |new| new.ttl(secs(9))).await;
    queue.put(at(0), &["stays"]).await;
    let stats = queue.look(at(9)).await;
    assert_eq!((stats.expired, stats.ready, stats.held_bytes), (MANY, 1, 5));
    let lease = queue.take(at(9)).await;
    assert_eq!(queue.payloads(&lease).await, ["stays"]);
}

pub(super) async fn many_too_large_requests_are_dead_in_one_claim(bench: Bench) {
    let queue = bench.queue().await;
    put_many(&queue, at(0), |new| {
        NewRequest::new([&new.payload[..], b"large"].concat())
    })
    .await;
    queue.put(at(0), &["fits"]).await;
    let lease = queue.try_take(at(1), &super::bench::claim_bytes(5)).await;
    let lease = lease.expect("the claim goes on until it finds one");
    assert_eq!(queue.payloads(&lease).await, ["fits"]);
    assert_eq!(queue.look(at(1)).await.dead, MANY);
}

pub(super) async fn many_known_keys_are_known_in_one_push(bench: Bench) {
    let queue = bench.queue().await;
    let keyed = || (0..MANY).map(|number| NewRequest::new("a").idempotency_key(number.to_string()));
    let first = queue.put_all(at(0), keyed().collect()).await;
    let again = queue.put_all(at(1), keyed().collect()).await;
    assert_eq!(first, again);
    assert_eq!(queue.look(at(1)).await.pushed, MANY);
}

pub(super) async fn many_requests_are_cancelled_in_one_step(bench: Bench) {
    let queue = bench.queue().await;
    let ids = put_many(&queue, at(0), |new| new).await;
    queue.take_up_to(at(0), 1).await;
    must("cancel", queue.admin().cancel(at(1), &ids).await);
    let stats = queue.look(at(1)).await;
    assert_eq!(stats.cancelled + stats.in_flight, MANY);
    assert_eq!((stats.ready, stats.ready_bytes), (0, 0));
}

pub(super) async fn many_dead_letters_are_redriven_in_order_in_one_step(bench: Bench) {
    let queue = bench.queue().await;
    let ids = put_many_dead(&queue, at(0)).await;
    assert_eq!(
        must("redrive", queue.admin().redrive(at(1), &ids).await),
        MANY
    );
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.dead, stats.ready), (0, MANY));
    let leases = take_all(&queue, at(1)).await;
    assert_eq!(all_members(&queue, &leases).await, ids);
}

pub(super) async fn many_dead_letters_are_purged_in_one_step(bench: Bench) {
    let queue = bench.queue().await;
    let ids = put_many_dead(&queue, at(0)).await;
    assert_eq!(
        must("purge", queue.admin().purge(at(1), &ids[1..]).await),
        MANY - 1
    );
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.dead, stats.purged), (1, MANY - 1));
    assert_eq!(queue.ids(at(1), State::Dead).await, ids[..1]);
}

pub(super) async fn many_results_are_kept_read_and_forgotten(bench: Bench) {
    let queue = bench
        .queue_with(QueueOptions::default().retention(secs(100)))
        .await;
    let ids = put_many(&queue, at(0), |new| new).await;
    for lease in take_all(&queue, at(0)).await {
        let members = queue.members(&lease).await;
        let result = |member: &crate::Member| (member.id, Outcome::result(member.payload.clone()));
        let outcomes: Vec<_> = members.iter().map(result).collect();
        queue.record(at(1), &lease, &outcomes).await;
        queue
            .give(at(2), &lease, finishing(Outcome::done(), at(2)))
            .await;
    }
    let (mut read, mut after) = (Vec::new(), None);
    loop {
        let page = must(
            "results",
            queue.admin().results(at(3), after, count(700)).await,
        );
        let numbered = |entry: &crate::Entry| (entry.id, entry.result.clone().unwrap_or_default());
        read.extend(page.entries.iter().map(numbered));
        if page.next.is_none() {
            break;
        }
        after = page.next;
    }
    let results = (0..MANY).map(|number| number.to_string().into());
    assert_eq!(read, ids.into_iter().zip(results).collect::<Vec<_>>());
    let list = List::new(State::Done);
    assert_eq!(must("list", queue.admin().list(at(200), &list).await), []);
    assert_eq!(queue.look(at(200)).await.done, MANY);
}

pub(super) async fn many_settled_members_are_settled_after_a_restart(bench: Bench) {
    let queue = bench.queue().await;
    put_many(&queue, at(0), |new| new).await;
    for lease in take_all(&queue, at(0)).await {
        queue.finish(at(1), &lease, Outcome::retry("again")).await;
    }
    let before = queue.look(at(2)).await;
    let queue = bench.reopen(queue).await;
    assert_eq!(queue.look(at(2)).await, before);
    let leases = take_all(&queue, at(2)).await;
    for lease in &leases {
        queue.finish_done(at(3), lease).await;
    }
    let queue = bench.reopen(queue).await;
    let stats = queue.look(at(4)).await;
    assert_eq!((stats.done, stats.held(), stats.batches), (MANY, 0, 0));
    queue.has_nothing_to_take(at(10_000)).await;
}
