//! Clauses about what [`Queue::update`](crate::Queue::update) records: outcomes and checkpoints.

use super::bench::{Bench, assert_kind, at, finishing, must, recording, retries, secs, splitting};
use crate::{
    batch::{MAX_CHECKPOINT_BYTES, Outcome, Then, Update},
    error::ErrorKind,
    request::RequestId,
};

pub(super) async fn the_first_outcome_of_a_member_wins(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c"]).await;
    let lease = queue.take(at(0)).await;
    let first = [
        (ids[0], Outcome::result("first")),
        (ids[0], Outcome::reject("second in one update")),
        (ids[1], Outcome::reject("first")),
    ];
    queue.record(at(1), &lease, &first).await;
    let second = [
        (ids[0], Outcome::retry("later")),
        (ids[1], Outcome::done()),
        (ids[2], Outcome::done()),
    ];
    queue.record(at(2), &lease, &second).await;
    let members = queue.members(&lease).await;
    assert_eq!(members[0].outcome, Some(Outcome::result("first")));
    assert_eq!(members[1].outcome, Some(Outcome::reject("first")));
    assert_eq!(members[2].outcome, Some(Outcome::done()));
    queue
        .finish(at(3), &lease, Outcome::retry("the rest"))
        .await;
    let stats = queue.look(at(3)).await;
    assert_eq!((stats.done, stats.dead, stats.ready), (2, 1, 0));
}

pub(super) async fn done_is_visible_at_once(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["aa", "bbb"]).await;
    let lease = queue.take(at(0)).await;
    queue
        .record(at(1), &lease, &[(ids[0], Outcome::done())])
        .await;
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.done, stats.in_flight, stats.batches), (1, 1, 1));
    assert_eq!(stats.held_bytes, 3);
}

pub(super) async fn retry_and_reject_take_effect_when_the_batch_ends(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c"]).await;
    let lease = queue.take(at(0)).await;
    let outcomes = [
        (ids[0], Outcome::retry("x")),
        (ids[1], Outcome::reject("y")),
    ];
    queue.record(at(1), &lease, &outcomes).await;
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.in_flight, stats.ready, stats.dead), (3, 0, 0));
    queue.finish_done(at(2), &lease).await;
    let stats = queue.look(at(2)).await;
    assert_eq!((stats.in_flight, stats.ready, stats.dead), (0, 1, 1));
    assert_eq!((stats.done, stats.batches), (1, 0));
}

pub(super) async fn recorded_outcomes_survive_a_takeover(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c"]).await;
    let lease = queue.take(at(0)).await;
    queue
        .record(at(1), &lease, &[(ids[1], Outcome::result("kept"))])
        .await;
    let orphan = queue.take(lease.until).await;
    assert_eq!((orphan.requests, orphan.unsettled), (3, 2));
    let members = queue.members(&orphan).await;
    assert_eq!(members.len(), 3, "members never change");
    assert_eq!(members[1].outcome, Some(Outcome::result("kept")));
    queue
        .finish(orphan.until, &orphan, Outcome::reject("rest"))
        .await;
    let stats = queue.look(orphan.until).await;
    assert_eq!((stats.done, stats.dead), (1, 2));
}

pub(super) async fn a_checkpoint_comes_back_with_the_next_claim(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    let note = |text: &'static str| Update {
        checkpoint: Some(text.into()),
        ..Update::then(Then::Hold { until: lease.until })
    };
    queue.give(at(1), &lease, note("uploaded")).await;
    queue.give(at(2), &lease, note("submitted")).await;
    queue.give(at(3), &lease, recording(&lease, &[])).await;
    let orphan = queue.take(lease.until).await;
    assert_eq!(orphan.checkpoint.as_deref(), Some(&b"submitted"[..]));
    let release = Update::then(Then::Release);
    queue.give(lease.until, &orphan, release).await;
    let again = queue.take(lease.until).await;
    assert_eq!(again.checkpoint.as_deref(), Some(&b"submitted"[..]));
}

pub(super) async fn a_checkpoint_may_come_with_release_and_defer(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    let with = |text: &'static str, then: Then| Update {
        checkpoint: Some(text.into()),
        ..Update::then(then)
    };
    queue.give(at(1), &lease, with("one", Then::Release)).await;
    let lease = queue.take(at(1)).await;
    assert_eq!(lease.checkpoint.as_deref(), Some(&b"one"[..]));
    let defer = Then::Defer { until: at(5) };
    queue.give(at(2), &lease, with("two", defer)).await;
    let lease = queue.take(at(5)).await;
    assert_eq!(lease.checkpoint.as_deref(), Some(&b"two"[..]));
}

pub(super) async fn an_empty_checkpoint_is_a_checkpoint(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    for text in ["old", ""] {
        let update = Update {
            checkpoint: Some(text.into()),
            ..recording(&lease, &[])
        };
        queue.give(at(1), &lease, update).await;
    }
    let orphan = queue.take(lease.until).await;
    assert_eq!(orphan.checkpoint.as_deref(), Some(&b""[..]));
}

pub(super) async fn a_checkpoint_of_64_kib_is_taken_and_more_is_invalid(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    let with = |size: usize, outcomes: &[(RequestId, Outcome)]| Update {
        checkpoint: Some(vec![b'c'; size].into()),
        ..recording(&lease, outcomes)
    };
    queue
        .give(at(1), &lease, with(MAX_CHECKPOINT_BYTES, &[]))
        .await;
    let over = with(MAX_CHECKPOINT_BYTES + 1, &[(ids[0], Outcome::done())]);
    assert_kind(queue.update(at(2), &lease, over).await, ErrorKind::Invalid);
    assert_eq!(
        queue.look(at(2)).await.done,
        0,
        "nothing of it was recorded"
    );
    let orphan = queue.take(lease.until).await;
    assert_eq!(
        orphan.checkpoint.map(|note| note.len()),
        Some(MAX_CHECKPOINT_BYTES)
    );
}

pub(super) async fn an_update_naming_a_request_that_is_not_a_member_changes_nothing(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "in another batch"]).await;
    let lease = queue.take_up_to(at(0), 2).await;
    let unknown = RequestId::from_u64(12);
    for stranger in [ids[2], unknown] {
        for then in [
            Then::Hold { until: at(9_999) },
            Then::Release,
            splitting(at(1)),
            Then::Finish {
                rest: Outcome::done(),
                retries: retries(at(1)),
            },
        ] {
            let update = Update {
                outcomes: vec![(ids[0], Outcome::done()), (stranger, Outcome::done())],
                checkpoint: Some("not kept".into()),
                then,
            };
            assert_kind(
                queue.update(at(1), &lease, update).await,
                ErrorKind::Invalid,
            );
        }
    }
    let stats = queue.look(at(1)).await;
    assert_eq!((stats.done, stats.in_flight, stats.ready), (0, 2, 1));
    assert!(
        queue
            .members(&lease)
            .await
            .iter()
            .all(|member| member.outcome.is_none())
    );
    let orphan = queue.take(lease.until).await;
    assert_eq!((orphan.batch, orphan.checkpoint), (lease.batch, None));
}

pub(super) async fn outcomes_checkpoint_and_what_is_next_land_together(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(0)).await;
    let update = Update {
        outcomes: vec![(ids[0], Outcome::result("page one"))],
        checkpoint: Some("after page one".into()),
        then: Then::Defer { until: at(10) },
    };
    queue.give(at(1), &lease, update).await;
    let lease = queue.take(at(10)).await;
    assert_eq!(lease.unsettled, 1);
    assert_eq!(lease.checkpoint.as_deref(), Some(&b"after page one"[..]));
    let members = queue.members(&lease).await;
    assert_eq!(members[0].outcome, Some(Outcome::result("page one")));
}

pub(super) async fn an_update_may_record_a_thousand_outcomes(bench: Bench) {
    let queue = bench.queue().await;
    let payloads: Vec<String> = (0..1_000).map(|i| i.to_string()).collect();
    let texts: Vec<&str> = payloads.iter().map(String::as_str).collect();
    queue.put(at(0), &texts).await;
    let mut done = 0;
    while done < 1_000 {
        let lease = queue.take(at(1)).await;
        let members = queue.members(&lease).await;
        let result = |member: &crate::Member| (member.id, Outcome::result(member.payload.clone()));
        let outcomes: Vec<_> = members.iter().map(result).collect();
        queue.record(at(1), &lease, &outcomes).await;
        done += u64::from(lease.requests);
        assert_eq!(queue.look(at(1)).await.done, done);
        for member in queue.members(&lease).await {
            assert_eq!(member.outcome, Some(Outcome::result(member.payload)));
        }
        queue
            .finish(at(1), &lease, Outcome::reject("none is left"))
            .await;
    }
    assert_eq!(queue.look(at(1)).await.dead, 0);
}

pub(super) async fn update_with_an_old_fence_is_lease_lost(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b"]).await;
    let late = queue.take(at(0)).await;
    let holder = queue.take(late.until).await;
    let now = late.until;
    for then in [
        Then::Hold { until: at(9_999) },
        Then::Release,
        Then::Defer { until: at(9_999) },
        splitting(now),
        Then::Finish {
            rest: Outcome::done(),
            retries: retries(now),
        },
    ] {
        let update = Update {
            outcomes: vec![(ids[0], Outcome::done())],
            checkpoint: Some("from the dead".into()),
            then,
        };
        assert_kind(queue.update(now, &late, update).await, ErrorKind::LeaseLost);
    }
    let stats = queue.look(now).await;
    assert_eq!((stats.in_flight, stats.done, stats.offered), (2, 0, 0));
    let members = queue.members(&holder).await;
    assert!(members.iter().all(|member| member.outcome.is_none()));
    let next = queue.take(holder.until).await;
    assert_eq!((next.batch, next.checkpoint), (holder.batch, None));
}

pub(super) async fn a_lease_that_ran_out_is_good_until_another_claim(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(0)).await;
    let late = lease.until.after(secs(1_000));
    assert_eq!(queue.look(late).await.offered, 1);
    assert_eq!(queue.payloads(&lease).await, ["a", "b"]);
    queue
        .record(late, &lease, &[(ids[0], Outcome::done())])
        .await;
    assert_eq!(queue.look(late).await.done, 1);
    queue.finish_done(late, &lease).await;
    assert_eq!(queue.look(late).await.done, 2);
    queue.has_nothing_to_take(late).await;
}

pub(super) async fn after_each_end_of_a_hold_the_lease_is_lost(bench: Bench) {
    let ends = [
        Then::Release,
        Then::Defer { until: at(1) },
        Then::Defer { until: at(500) },
        splitting(at(1)),
        Then::Finish {
            rest: Outcome::done(),
            retries: retries(at(1)),
        },
    ];
    for end in ends {
        let queue = bench.queue().await;
        queue.put(at(0), &["a", "b"]).await;
        let lease = queue.take(at(0)).await;
        queue.give(at(1), &lease, Update::then(end)).await;
        let before = queue.look(at(1)).await;
        let read = queue.read(&lease, crate::Page::first()).await;
        assert_kind(read, ErrorKind::LeaseLost);
        for update in [recording(&lease, &[]), finishing(Outcome::done(), at(1))] {
            let update = queue.update(at(1), &lease, update).await;
            assert_kind(update, ErrorKind::LeaseLost);
        }
        assert_eq!(queue.look(at(1)).await, before);
    }
}

pub(super) async fn a_lease_of_no_batch_is_lease_lost(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    let forged = crate::Lease {
        batch: crate::BatchId::new(1, 2),
        ..lease
    };
    let update = queue
        .update(at(1), &forged, Update::then(Then::Release))
        .await;
    assert_kind(update, ErrorKind::LeaseLost);
    let read = queue.read(&forged, crate::Page::first()).await;
    assert_kind(read, ErrorKind::LeaseLost);
}

pub(super) async fn an_answered_update_is_visible_to_the_next_call(bench: Bench) {
    let queue = bench.queue().await;
    for round in 1..=10 {
        queue.put(at(round), &["a"]).await;
        let lease = queue.take(at(round)).await;
        assert_eq!(queue.look(at(round)).await.in_flight, 1);
        must(
            "update",
            queue
                .update(at(round), &lease, finishing(Outcome::done(), at(round)))
                .await,
        );
        let stats = queue.look(at(round)).await;
        assert_eq!((stats.done, stats.in_flight, stats.batches), (round, 0, 0));
    }
}
