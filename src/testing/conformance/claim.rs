//! Clauses about [`Queue::claim`](crate::Queue::claim): how a batch is formed, and what its lease says.

use std::time::Duration;

use super::bench::{
    Bench, Subject, assert_kind, at, bytes, claim_bytes, claim_up_to, count, just_before, must,
    requests, secs,
};
use crate::{
    batch::{Claim, Due, Lease, Then, Update},
    clock::Timestamp,
    error::ErrorKind,
    request::NewRequest,
};

/// Claims until nothing is left; the payloads of each batch.
async fn take_all(queue: &Subject, now: Timestamp, claim: &Claim) -> Vec<(Lease, Vec<String>)> {
    let mut batches = Vec::new();
    while let Some(lease) = queue.try_take(now, claim).await {
        let payloads = queue.payloads(&lease).await;
        batches.push((lease, payloads));
    }
    batches
}

/// The payload bytes of a batch.
fn size(payloads: &[String]) -> u64 {
    payloads.iter().map(|payload| payload.len() as u64).sum()
}

pub(super) async fn a_small_batch_is_formed_whole(bench: Bench) {
    let queue = bench.queue().await;
    let payloads: Vec<String> = (0..64).map(|i| i.to_string()).collect();
    let texts: Vec<&str> = payloads.iter().map(String::as_str).collect();
    for (number, part) in (0..).zip(texts.chunks(16)) {
        queue.put(at(number), part).await;
    }
    let lease = queue.take(at(10)).await;
    assert_eq!(queue.payloads(&lease).await, payloads);
}

pub(super) async fn claim_of_an_empty_queue_is_none(bench: Bench) {
    let queue = bench.queue().await;
    queue.has_nothing_to_take(at(0)).await;
    let stats = queue.look(at(0)).await;
    assert_eq!((stats.next_due, stats.next_offer), (None, None));
}

pub(super) async fn claim_forms_no_batch_before_the_queue_is_due(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["aaaa", "bbbb"]).await;
    let never = Due {
        requests: u64::MAX,
        bytes: u64::MAX,
        oldest_at: None,
    };
    let claim = |due| Claim {
        due: Some(due),
        ..Claim::new()
    };
    for undue in [
        never,
        Due {
            requests: 3,
            ..never
        },
        Due { bytes: 9, ..never },
        Due {
            oldest_at: Some(just_before(at(0))),
            ..never
        },
    ] {
        assert_eq!(
            queue.try_take(at(1), &claim(undue)).await,
            None,
            "{undue:?}"
        );
    }
    for due in [
        Due {
            requests: 2,
            ..never
        },
        Due { bytes: 8, ..never },
        Due {
            oldest_at: Some(at(0)),
            ..never
        },
    ] {
        let lease = queue.try_take(at(1), &claim(due)).await.expect("it is due");
        // What is offered again needs no trigger.
        queue.give(at(1), &lease, Update::then(Then::Release)).await;
        let again = queue
            .try_take(at(1), &claim(never))
            .await
            .expect("it is offered");
        assert_eq!(again.batch, lease.batch);
        queue.finish_done(at(1), &again).await;
        queue.put(at(0), &["aaaa", "bbbb"]).await;
    }
}

pub(super) async fn claim_takes_requests_in_order(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b"]).await;
    queue.put(at(0), &["c"]).await;
    queue.put(at(5), &["d", "e"]).await;
    let batches = take_all(&queue, at(9), &claim_up_to(2)).await;
    let order: Vec<String> = batches
        .into_iter()
        .flat_map(|(_, payloads)| payloads)
        .collect();
    assert_eq!(order, ["a", "b", "c", "d", "e"]);
}

pub(super) async fn position_decides_the_order_when_now_went_back(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(100), &["first"]).await;
    queue.put(at(0), &["second"]).await;
    queue.put(at(50), &["third"]).await;
    let lease = queue.take(at(50)).await;
    assert_eq!(queue.payloads(&lease).await, ["first", "second", "third"]);
}

pub(super) async fn claim_takes_no_more_than_max_requests(bench: Bench) {
    let queue = bench.queue().await;
    let payloads: Vec<String> = (0..25).map(|i| i.to_string()).collect();
    let texts: Vec<&str> = payloads.iter().map(String::as_str).collect();
    queue.put(at(0), &texts).await;
    let batches = take_all(&queue, at(0), &claim_up_to(7)).await;
    for (lease, members) in &batches {
        assert!((1..=7).contains(&lease.requests), "{lease:?}");
        assert_eq!(lease.requests as usize, members.len());
    }
    let order: Vec<String> = batches
        .into_iter()
        .flat_map(|(_, members)| members)
        .collect();
    assert_eq!(order, payloads);
}

pub(super) async fn claim_takes_no_more_than_max_bytes(bench: Bench) {
    let queue = bench.queue().await;
    let payloads: Vec<String> = (0..30).map(|i| "x".repeat(i % 10 + 1)).collect();
    let texts: Vec<&str> = payloads.iter().map(String::as_str).collect();
    queue.put(at(0), &texts).await;
    let batches = take_all(&queue, at(0), &claim_bytes(12)).await;
    for (lease, members) in &batches {
        assert!(!members.is_empty() && size(members) <= 12, "{members:?}");
        assert_eq!(lease.bytes, size(members));
    }
    let order: Vec<String> = batches
        .into_iter()
        .flat_map(|(_, members)| members)
        .collect();
    assert_eq!(
        order, payloads,
        "a smaller one further back does not overtake"
    );
}

pub(super) async fn both_limits_of_a_claim_hold_together(bench: Bench) {
    let queue = bench.queue().await;
    queue
        .put(at(0), &["aaaa", "b", "c", "d", "eeee", "ffff", "g"])
        .await;
    let claim = Claim {
        max_requests: count(3),
        ..claim_bytes(8)
    };
    let mut order = Vec::new();
    for (_, members) in take_all(&queue, at(0), &claim).await {
        assert!(members.len() <= 3 && size(&members) <= 8, "{members:?}");
        order.extend(members);
    }
    assert_eq!(order, ["aaaa", "b", "c", "d", "eeee", "ffff", "g"]);
}

pub(super) async fn a_request_of_exactly_max_bytes_is_taken(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["12345"]).await;
    let lease = queue.try_take(at(0), &claim_bytes(5)).await;
    assert_eq!(lease.expect("it fits").bytes, 5);
    assert_eq!(queue.look(at(0)).await.dead, 0);
}

pub(super) async fn a_request_over_max_bytes_is_dead_and_the_claim_goes_on(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["123456", "a", "1234567", "b"]).await;
    let batches = take_all(&queue, at(1), &claim_bytes(5)).await;
    let order: Vec<String> = batches
        .into_iter()
        .flat_map(|(_, members)| members)
        .collect();
    assert_eq!(order, ["a", "b"]);
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.dead, stats.in_flight, stats.ready), (2, 2, 0));
    assert_eq!(stats.held_bytes, 2);
}

pub(super) async fn a_claim_of_only_too_large_requests_answers_none(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["123", "456"]).await;
    assert_eq!(queue.try_take(at(1), &claim_bytes(2)).await, None);
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.dead, stats.ready, stats.batches), (2, 0, 0));
    queue.has_nothing_to_take(at(1)).await;
}

pub(super) async fn a_lease_tells_what_was_claimed(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "bcd"]).await;
    let claim = Claim {
        lease_duration: secs(30),
        context: "in force".into(),
        ..Claim::new()
    };
    let lease = queue.try_take(at(7), &claim).await.expect("a batch");
    assert_eq!(lease.parent, None);
    assert_eq!(lease.attempt, 1);
    assert_eq!((lease.requests, lease.unsettled, lease.bytes), (2, 2, 4));
    assert_eq!((lease.formed_at, lease.until), (at(7), at(37)));
    assert_eq!(lease.checkpoint, None);
    assert_eq!(lease.context, "in force");
}

pub(super) async fn requests_are_in_flight_before_the_claim_answers(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "bc", "d"]).await;
    queue.take_up_to(at(1), 2).await;
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.ready, stats.ready_bytes), (1, 1));
    assert_eq!((stats.in_flight, stats.batches, stats.offered), (2, 1, 0));
    assert_eq!(stats.held_bytes, 4);
}

pub(super) async fn no_request_is_in_two_batches(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b", "c", "d"]).await;
    let (one, two) = (
        queue.take_up_to(at(0), 2).await,
        queue.take_up_to(at(0), 2).await,
    );
    assert_ne!(one.batch, two.batch);
    assert_eq!(queue.payloads(&one).await, ["a", "b"]);
    assert_eq!(queue.payloads(&two).await, ["c", "d"]);
    queue.has_nothing_to_take(at(0)).await;
}

pub(super) async fn batch_ids_sort_by_when_they_were_formed(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b", "c", "d"]).await;
    let mut last = None;
    for now in [at(9), at(9), at(3), at(10)] {
        let lease = queue.take_up_to(now, 1).await;
        assert!(last < Some(lease.batch), "{last:?} then {:?}", lease.batch);
        last = Some(lease.batch);
    }
}

pub(super) async fn every_claim_has_a_larger_fence(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b"]).await;
    let first = queue.take_up_to(at(0), 1).await;
    let second = queue.take_up_to(at(0), 1).await;
    let orphan = queue.take(at(100)).await;
    assert_eq!(orphan.batch, first.batch);
    queue.finish_done(at(100), &orphan).await;
    queue.put(at(101), &["c"]).await;
    let third = queue.take(at(101)).await;
    assert_eq!(third.batch, second.batch);
    let fourth = queue.take(at(101)).await;
    let fences = [
        first.fence,
        second.fence,
        orphan.fence,
        third.fence,
        fourth.fence,
    ];
    assert!(fences.is_sorted_by(|a, b| a < b), "{fences:?}");
}

pub(super) async fn a_claim_that_may_not_form_takes_no_ready_request(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b"]).await;
    let only_offered = Claim {
        form: false,
        ..Claim::new()
    };
    assert_eq!(queue.try_take(at(0), &only_offered).await, None);
    assert_eq!(queue.look(at(0)).await.ready, 2);
    let lease = queue.take_up_to(at(0), 1).await;
    let orphan = queue.try_take(lease.until, &only_offered).await;
    assert_eq!(orphan.expect("an orphan").batch, lease.batch);
}

pub(super) async fn what_is_promoted_by_a_claim_counts_for_whether_the_queue_is_due(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b"]).await;
    queue
        .put_one(at(0), NewRequest::new("c").not_before(at(5)))
        .await;
    let claim = Claim {
        due: Some(Due {
            requests: 3,
            bytes: 100,
            oldest_at: None,
        }),
        ..Claim::new()
    };
    assert_eq!(queue.try_take(at(4), &claim).await, None);
    let lease = queue.try_take(at(5), &claim).await;
    assert_eq!(lease.expect("three are ready").requests, 3);
}

pub(super) async fn a_batch_offered_again_is_taken_whether_or_not_the_queue_is_due(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b", "far too large"]).await;
    let lease = queue.take_up_to(at(0), 1).await;
    let claim = Claim {
        due: Some(Due {
            requests: 100,
            bytes: 100,
            oldest_at: None,
        }),
        ..claim_bytes(5)
    };
    assert_eq!(queue.try_take(at(1), &claim).await, None);
    let orphan = queue.try_take(lease.until, &claim).await;
    assert_eq!(orphan.expect("an orphan").batch, lease.batch);
    let stats = queue.look(lease.until).await;
    assert_eq!((stats.ready, stats.dead), (2, 0), "nothing was touched");
}

pub(super) async fn a_context_of_64_kib_is_taken_and_more_is_invalid(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let with = |size: usize| Claim {
        context: vec![b'c'; size].into(),
        ..Claim::new()
    };
    let refused = queue.claim(at(0), &with((64 << 10) + 1)).await;
    assert_kind(refused, ErrorKind::Invalid);
    let stats = queue.look(at(0)).await;
    assert_eq!((stats.ready, stats.batches), (1, 0), "nothing was claimed");
    let lease = queue
        .try_take(at(0), &with(64 << 10))
        .await
        .expect("a batch");
    assert_eq!(lease.context, vec![b'c'; 64 << 10]);
}

pub(super) async fn a_lease_may_last_for_ever(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let claim = Claim {
        lease_duration: Duration::MAX,
        ..Claim::new()
    };
    let lease = queue.try_take(at(0), &claim).await.expect("a batch");
    assert_eq!(lease.until, Timestamp::MAX);
    queue.has_nothing_to_take(at(1_000_000_000)).await;
    queue.finish_done(at(1_000_000_000), &lease).await;
}

pub(super) async fn an_orphan_is_offered_when_its_lease_has_run_out_and_not_before(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    queue.has_nothing_to_take(just_before(lease.until)).await;
    let orphan = queue.take(lease.until).await;
    assert_eq!(orphan.batch, lease.batch);
    assert_eq!(orphan.until, lease.until.after(secs(60)));
}

pub(super) async fn an_orphan_keeps_its_id_members_and_order(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b", "c"]).await;
    let first = queue.take_up_to(at(0), 2).await;
    let members = queue.members(&first).await;
    queue.put(at(1), &["d"]).await;
    for attempt in 2..=5 {
        let lease = queue.take(at(u64::from(attempt) * 100)).await;
        assert_eq!((lease.batch, lease.attempt), (first.batch, attempt));
        assert_eq!(
            (lease.requests, lease.bytes, lease.formed_at),
            (first.requests, first.bytes, first.formed_at)
        );
        for (again, member) in queue.members(&lease).await.iter().zip(&members) {
            assert_eq!(
                (again.id, again.position, &again.payload),
                (member.id, member.position, &member.payload)
            );
            assert_eq!(again.attempt, attempt);
        }
    }
}

pub(super) async fn an_orphan_ignores_the_limits_and_context_of_its_next_claim(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["aaa", "bbb"]).await;
    let context = |text: &'static str| Claim {
        context: text.into(),
        ..Claim::new()
    };
    let first = queue
        .try_take(at(0), &context("old"))
        .await
        .expect("a batch");
    let small = Claim {
        max_requests: count(1),
        max_bytes: bytes(1),
        ..context("new")
    };
    let again = queue
        .try_take(first.until, &small)
        .await
        .expect("an orphan");
    assert_eq!((again.batch, again.requests), (first.batch, 2));
    assert_eq!(again.context, "old");
    assert_eq!(queue.payloads(&again).await, ["aaa", "bbb"]);
    assert_eq!(queue.look(first.until).await.dead, 0);
}

pub(super) async fn batches_offered_again_come_before_new_ones_oldest_first(bench: Bench) {
    use crate::batch::{Then, Update};
    let queue = bench.queue().await;
    queue
        .put(at(0), &["orphan", "deferred", "released", "new"])
        .await;
    let orphan = queue.take_up_to(at(0), 1).await;
    let deferred = queue.take_up_to(at(0), 1).await;
    let released = queue.take_up_to(at(0), 1).await;
    queue
        .give(at(1), &released, Update::then(Then::Release))
        .await;
    let until = at(200);
    queue
        .give(at(1), &deferred, Update::then(Then::Defer { until }))
        .await;
    let order = [orphan.batch, deferred.batch, released.batch];
    for batch in order {
        assert_eq!(queue.take_up_to(until, 1).await.batch, batch);
    }
    let new = queue.take_up_to(until, 1).await;
    assert_eq!(queue.payloads(&new).await, ["new"]);
}

pub(super) async fn after_a_claim_that_answers_none_nothing_invites_another(bench: Bench) {
    let queue = bench.queue().await;
    let new = requests(&["a", "b"]);
    queue.put_all(at(0), new).await;
    let delayed = NewRequest::new("later").not_before(at(500));
    queue.put_one(at(0), delayed).await;
    let (one, two) = (
        queue.take_up_to(at(0), 1).await,
        queue.take_up_to(at(0), 1).await,
    );
    queue.has_nothing_to_take(at(1)).await;
    let until = at(300);
    let defer = crate::Update::then(crate::Then::Defer { until });
    queue.give(at(2), &one, defer).await;
    queue.has_nothing_to_take(at(3)).await;
    let stats = queue.look(at(3)).await;
    assert_eq!(stats.next_offer, Some(two.until));
    assert_eq!(stats.next_due, Some(at(500)));
    queue.finish_done(at(4), &two).await;
    queue.has_nothing_to_take(at(5)).await;
    assert_eq!(queue.look(at(5)).await.next_offer, Some(until));
    let claimed = must("claim", queue.claim(until, &Claim::new()).await);
    assert_eq!(claimed.map(|lease| lease.batch), Some(one.batch));
}
