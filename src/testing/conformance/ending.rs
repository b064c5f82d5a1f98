//! Clauses about how a batch ends: finish, split, and what becomes of its members.

use std::num::NonZeroU32;

use super::bench::{
    Bench, Subject, assert_kind, at, finishing, just_before, retries, secs, splitting,
};
use crate::{
    batch::{Claim, Lease, Outcome, Retries, Then, Update},
    clock::Timestamp,
    error::ErrorKind,
    request::{DeadReason, NewRequest},
};

pub(super) async fn finish_settles_the_rest_as_done(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c"]).await;
    let lease = queue.take(at(0)).await;
    queue
        .record(at(1), &lease, &[(ids[1], Outcome::reject("x"))])
        .await;
    queue.finish_done(at(2), &lease).await;
    let stats = queue.look(at(2)).await;
    assert_eq!((stats.done, stats.dead, stats.held()), (2, 1, 0));
    assert_eq!(
        (stats.batches, stats.next_offer, stats.held_bytes),
        (0, None, 0)
    );
}

pub(super) async fn finish_settles_the_rest_as_rejected(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c"]).await;
    let lease = queue.take(at(0)).await;
    let update = Update {
        outcomes: vec![(ids[0], Outcome::done())],
        ..finishing(Outcome::reject("all bad"), at(1))
    };
    queue.give(at(1), &lease, update).await;
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.done, stats.dead), (1, 2));
}

pub(super) async fn a_retried_request_is_ready_at_the_tail_and_keeps_what_it_was(bench: Bench) {
    let queue = bench.queue().await;
    let new = NewRequest::new("again").attribute("tenant", "7");
    let id = queue.put_one(at(0), new.clone()).await;
    let lease = queue.take(at(0)).await;
    let old = queue.members(&lease).await.remove(0);
    queue.put(at(1), &["waits"]).await;
    queue
        .finish(at(2), &lease, Outcome::retry("once more"))
        .await;
    queue.put(at(3), &["later"]).await;
    let lease = queue.take(at(4)).await;
    assert_eq!(queue.payloads(&lease).await, ["waits", "again", "later"]);
    let member = queue.members(&lease).await.remove(1);
    assert_eq!((member.id, member.pushed_at), (id, at(0)));
    assert_eq!(
        (member.payload, member.attributes),
        (new.payload, new.attributes)
    );
    assert_eq!((member.attempt, member.outcome), (2, None));
    assert!(member.position > old.position);
}

pub(super) async fn retried_requests_stay_in_order_among_themselves(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c", "d"]).await;
    let lease = queue.take(at(0)).await;
    let backwards = [(ids[3], Outcome::retry("x")), (ids[0], Outcome::retry("y"))];
    queue.record(at(1), &lease, &backwards).await;
    queue.finish(at(1), &lease, Outcome::retry("z")).await;
    let lease = queue.take(at(1)).await;
    assert_eq!(queue.payloads(&lease).await, ["a", "b", "c", "d"]);
}

pub(super) async fn a_retry_in_the_future_is_delayed_until_then(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    let due = at(30);
    queue
        .give(at(1), &lease, finishing(Outcome::retry("x"), due))
        .await;
    let stats = queue.look(at(1)).await;
    assert_eq!(
        (stats.delayed, stats.ready, stats.next_due),
        (1, 0, Some(due))
    );
    queue.has_nothing_to_take(just_before(due)).await;
    let lease = queue.take(due).await;
    assert_eq!(queue.members(&lease).await[0].attempt, 2);
}

pub(super) async fn an_outcome_may_delay_its_retry_further_but_not_less(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["sooner", "later"]).await;
    let lease = queue.take(at(0)).await;
    let not_before = |time: Timestamp| Outcome::Retry {
        error: "x".into(),
        not_before: Some(time),
    };
    let outcomes = [(ids[0], not_before(at(10))), (ids[1], not_before(at(50)))];
    queue.record(at(1), &lease, &outcomes).await;
    queue
        .give(at(1), &lease, finishing(Outcome::done(), at(30)))
        .await;
    assert_eq!(queue.look(at(29)).await.next_due, Some(at(30)));
    let first = queue.take(at(30)).await;
    assert_eq!(queue.payloads(&first).await, ["sooner"]);
    queue.has_nothing_to_take(at(49)).await;
    let second = queue.take(at(50)).await;
    assert_eq!(queue.payloads(&second).await, ["later"]);
}

pub(super) async fn attempts_count_over_batches_and_redeliveries(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    let orphan = queue.take(lease.until).await;
    let now = lease.until;
    assert_eq!(queue.members(&orphan).await[0].attempt, 2);
    queue.finish(now, &orphan, Outcome::retry("x")).await;
    let lease = queue.take(now).await;
    assert_ne!(
        lease.batch, orphan.batch,
        "a retry comes in a batch of its own"
    );
    assert_eq!(lease.attempt, 1);
    assert_eq!(queue.members(&lease).await[0].attempt, 3);
}

pub(super) async fn a_request_whose_attempts_are_used_up_is_dead(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let update = || {
        Update::then(Then::Finish {
            rest: Outcome::retry("still failing"),
            retries: Retries {
                at: at(0),
                max_attempts: NonZeroU32::new(3).expect("not zero"),
            },
        })
    };
    for attempt in 1..=3 {
        let lease = queue.take(at(0)).await;
        assert_eq!(queue.members(&lease).await[0].attempt, attempt);
        queue.give(at(0), &lease, update()).await;
        let dead = u64::from(attempt == 3);
        assert_eq!(queue.look(at(0)).await.dead, dead);
    }
    queue.has_nothing_to_take(at(0)).await;
}

/// The batches offered, oldest first, with their payloads.
async fn offered(queue: &Subject, now: Timestamp) -> Vec<(Lease, Vec<String>)> {
    let only_offered = Claim {
        form: false,
        ..Claim::new()
    };
    let mut batches = Vec::new();
    while let Some(lease) = queue.try_take(now, &only_offered).await {
        let payloads = queue.payloads(&lease).await;
        batches.push((lease, payloads));
    }
    batches
}

fn size(members: &[String]) -> u32 {
    u32::try_from(members.len()).expect("a small batch")
}

pub(super) async fn a_split_makes_two_batches_of_equal_size_in_order(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b", "c", "d", "e"]).await;
    let claim = Claim {
        context: "in force".into(),
        ..Claim::new()
    };
    let parent = queue.try_take(at(0), &claim).await.expect("a batch");
    queue.split(at(1), &parent).await;
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.batches, stats.offered, stats.in_flight), (2, 2, 5));
    let halves = offered(&queue, at(1)).await;
    assert_eq!(halves[0].1, ["a", "b", "c"]);
    assert_eq!(halves[1].1, ["d", "e"]);
    for (half, members) in &halves {
        assert_eq!(half.parent, Some(parent.batch));
        assert_eq!((half.attempt, &half.checkpoint), (1, &None));
        assert_eq!(half.context, "in force");
        assert_eq!(
            (half.requests, half.unsettled),
            (size(members), size(members))
        );
        assert_eq!(half.bytes, u64::from(size(members)), "one byte each");
        assert!(half.batch > parent.batch && half.fence > parent.fence);
    }
    assert_ne!(halves[0].0.batch, halves[1].0.batch);
}

pub(super) async fn a_split_drops_the_checkpoint(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b"]).await;
    let parent = queue.take(at(0)).await;
    let update = Update {
        checkpoint: Some("of the parent".into()),
        ..Update::then(splitting(at(1)))
    };
    queue.give(at(1), &parent, update).await;
    for (half, _) in offered(&queue, at(1)).await {
        assert_eq!(half.checkpoint, None);
    }
}

pub(super) async fn a_split_settles_members_that_have_an_outcome(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c", "d", "e"]).await;
    let parent = queue.take(at(0)).await;
    queue
        .record(at(1), &parent, &[(ids[0], Outcome::done())])
        .await;
    let update = Update {
        outcomes: vec![
            (ids[2], Outcome::reject("x")),
            (ids[3], Outcome::retry("y")),
        ],
        checkpoint: None,
        then: splitting(at(20)),
    };
    queue.give(at(2), &parent, update).await;
    let stats = queue.look(at(2)).await;
    assert_eq!((stats.done, stats.dead, stats.delayed), (1, 1, 1));
    assert_eq!((stats.in_flight, stats.next_due), (2, Some(at(20))));
    let halves = offered(&queue, at(2)).await;
    let members: Vec<_> = halves.into_iter().map(|(_, members)| members).collect();
    assert_eq!(members, [["b"], ["e"]]);
}

pub(super) async fn attempts_count_on_across_a_split(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b", "c", "d"]).await;
    let parent = queue.take(at(0)).await;
    queue.split(at(0), &parent).await;
    let halves = offered(&queue, at(0)).await;
    for (half, _) in &halves {
        assert_eq!(half.attempt, 1);
        let members = queue.members(half).await;
        assert!(
            members.iter().all(|member| member.attempt == 2),
            "{members:?}"
        );
    }
    queue.split(at(0), &halves[0].0).await;
    let quarters = offered(&queue, at(0)).await;
    assert_eq!(quarters.len(), 2);
    for (quarter, _) in &quarters {
        assert_eq!(
            quarter.parent,
            Some(halves[0].0.batch),
            "the batch it came from"
        );
        assert_eq!(queue.members(quarter).await[0].attempt, 3);
        queue.finish(at(1), quarter, Outcome::retry("x")).await;
    }
    let again = queue.take(at(1)).await;
    assert_eq!(queue.members(&again).await[0].attempt, 4);
}

pub(super) async fn a_split_of_fewer_than_two_without_an_outcome_changes_nothing(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(0)).await;
    let update = Update {
        outcomes: vec![(ids[0], Outcome::done())],
        checkpoint: Some("not kept".into()),
        then: splitting(at(1)),
    };
    assert_kind(
        queue.update(at(1), &lease, update).await,
        ErrorKind::Invalid,
    );
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.done, stats.in_flight, stats.batches), (0, 2, 1));
    assert_eq!(queue.members(&lease).await[0].outcome, None);
    queue
        .record(at(2), &lease, &[(ids[1], Outcome::done())])
        .await;
    let split = queue
        .update(at(2), &lease, Update::then(splitting(at(2))))
        .await;
    assert_kind(split, ErrorKind::Invalid);
    queue.finish_done(at(3), &lease).await;
}

pub(super) async fn splitting_isolates_one_poisonous_request(bench: Bench) {
    let queue = bench.queue().await;
    let payloads: Vec<String> = (0..16).map(|i| i.to_string()).collect();
    let texts: Vec<&str> = payloads.iter().map(String::as_str).collect();
    queue.put(at(0), &texts).await;
    let mut claims = 0;
    while let Some(lease) = queue.try_take(at(0), &Claim::new()).await {
        claims += 1;
        let members = queue.payloads(&lease).await;
        if !members.contains(&"11".to_owned()) {
            queue.finish_done(at(0), &lease).await;
        } else if members.len() == 1 {
            queue.finish(at(0), &lease, Outcome::reject("poison")).await;
        } else {
            queue.split(at(0), &lease).await;
        }
    }
    let stats = queue.look(at(0)).await;
    assert_eq!((stats.done, stats.dead), (15, 1));
    assert_eq!(claims, 9, "one for the batch, two for each halving of 16");
}

pub(super) async fn a_half_is_a_batch_like_any_other(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c", "d"]).await;
    let parent = queue.take(at(0)).await;
    queue.split(at(0), &parent).await;
    let half = queue.take(at(0)).await;
    queue
        .record(at(1), &half, &[(ids[1], Outcome::result("kept"))])
        .await;
    let orphan = queue.take_up_to(half.until, 1).await;
    assert_eq!(
        (orphan.batch, orphan.parent),
        (half.batch, Some(parent.batch))
    );
    assert_eq!((orphan.attempt, orphan.unsettled), (2, 1));
    let members = queue.members(&orphan).await;
    assert_eq!(members[1].outcome, Some(Outcome::result("kept")));
    let stranger = [(ids[2], Outcome::done())];
    let update = super::bench::recording(&orphan, &stranger);
    let update = queue.update(half.until, &orphan, update).await;
    assert_kind(update, ErrorKind::Invalid);
    let defer = Then::Defer {
        until: half.until.after(secs(9)),
    };
    queue.give(half.until, &orphan, Update::then(defer)).await;
}

pub(super) async fn a_batch_whose_members_are_all_settled_is_still_open_until_it_ends(
    bench: Bench,
) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(0)).await;
    let done = [(ids[0], Outcome::done()), (ids[1], Outcome::done())];
    queue.record(at(1), &lease, &done).await;
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.done, stats.in_flight, stats.batches), (2, 0, 1));
    let orphan = queue.take(lease.until).await;
    assert_eq!(
        (orphan.batch, orphan.requests, orphan.unsettled),
        (lease.batch, 2, 0)
    );
    queue
        .finish(lease.until, &orphan, Outcome::reject("nobody is left"))
        .await;
    let stats = queue.look(lease.until).await;
    assert_eq!((stats.done, stats.dead, stats.batches), (2, 0, 0));
}

pub(super) async fn a_dead_letter_tells_its_reason_error_and_attempts(bench: Bench) {
    let queue = bench.queue().await;
    let new = NewRequest::new("bad").attribute("tenant", "7");
    let id = queue.put_one(at(0), new.clone()).await;
    let lease = queue.take(at(1)).await;
    let lease = queue.take(lease.until).await;
    let now = lease.until;
    let reject = Outcome::Reject {
        reason: DeadReason::Undecodable,
        error: "no such field".into(),
    };
    queue.finish(now, &lease, reject).await;
    let entry = queue.entry(now, id).await;
    assert_eq!(entry.state, crate::State::Dead);
    assert_eq!(entry.reason, Some(DeadReason::Undecodable));
    assert_eq!(entry.error.as_deref(), Some("no such field"));
    assert_eq!((entry.attempts, entry.batch), (2, Some(lease.batch)));
    assert_eq!((entry.pushed_at, entry.at), (at(0), now));
    assert_eq!((entry.attributes, entry.bytes), (new.attributes, 3));
}

pub(super) async fn an_exhausted_request_keeps_its_last_error(bench: Bench) {
    let queue = bench.queue().await;
    let id = queue.put(at(0), &["a"]).await[0];
    let lease = queue.take(at(0)).await;
    queue.finish(at(0), &lease, Outcome::retry("first")).await;
    let lease = queue.take(at(0)).await;
    let then = Then::Finish {
        rest: Outcome::retry("last"),
        retries: Retries {
            max_attempts: NonZeroU32::new(2).expect("not zero"),
            ..retries(at(0))
        },
    };
    queue.give(at(0), &lease, Update::then(then)).await;
    let entry = queue.entry(at(0), id).await;
    assert_eq!(entry.reason, Some(DeadReason::Exhausted));
    assert_eq!((entry.error.as_deref(), entry.attempts), (Some("last"), 2));
}

pub(super) async fn a_request_too_large_for_a_batch_tells_so(bench: Bench) {
    let queue = bench.queue().await;
    let id = queue.put(at(0), &["123456"]).await[0];
    let claim = super::bench::claim_bytes(5);
    assert_eq!(queue.try_take(at(1), &claim).await, None);
    let entry = queue.entry(at(1), id).await;
    assert_eq!(entry.reason, Some(DeadReason::TooLarge));
    assert!(entry.error.is_some(), "it says what happened");
    assert_eq!((entry.state, entry.attempts), (crate::State::Dead, 0));
}
