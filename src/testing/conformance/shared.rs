//! Clauses about a queue that several processes use: two handles, one queue.

use super::bench::{Bench, assert_kind, at, must};
use crate::{
    batch::{Claim, Outcome, Then, Update},
    error::ErrorKind,
    request::NewRequest,
};

pub(super) async fn what_one_handle_pushes_the_other_claims(bench: Bench) {
    let here = bench.queue().await;
    let there = bench.another(&here).await;
    let id = here
        .put_one(at(0), NewRequest::new("a").attribute("from", "here"))
        .await;
    assert_eq!(there.look(at(0)).await, here.look(at(0)).await);
    let lease = there.take(at(0)).await;
    let member = there.members(&lease).await.remove(0);
    assert_eq!((member.id, &member.payload[..]), (id, &b"a"[..]));
    here.has_nothing_to_take(at(0)).await;
    there.finish_done(at(1), &lease).await;
    assert_eq!(here.look(at(1)).await.done, 1);
}

pub(super) async fn a_batch_of_a_dead_process_is_taken_over_and_the_late_holder_fenced_off(
    bench: Bench,
) {
    let here = bench.queue().await;
    let there = bench.another(&here).await;
    let ids = here.put(at(0), &["a", "b"]).await;
    let late = here.take(at(0)).await;
    let update = Update {
        outcomes: vec![(ids[0], Outcome::result("kept"))],
        checkpoint: Some("after a".into()),
        then: Then::Hold { until: late.until },
    };
    here.give(at(1), &late, update).await;
    there.has_nothing_to_take(at(2)).await;
    let holder = there.take(late.until).await;
    assert_eq!(
        (holder.batch, holder.attempt, holder.unsettled),
        (late.batch, 2, 1)
    );
    assert_eq!(holder.checkpoint.as_deref(), Some(&b"after a"[..]));
    let update = super::bench::finishing(Outcome::done(), late.until);
    let refused = here.update(late.until, &late, update).await;
    assert_kind(refused, ErrorKind::LeaseLost);
    let refused = here.read(&late, crate::Page::first()).await;
    assert_kind(refused, ErrorKind::LeaseLost);
    there.finish_done(late.until, &holder).await;
    assert_eq!(here.look(late.until).await.done, 2);
}

pub(super) async fn a_lease_is_good_on_every_handle(bench: Bench) {
    let here = bench.queue().await;
    let there = bench.another(&here).await;
    here.put(at(0), &["a"]).await;
    let lease = here.take(at(0)).await;
    assert_eq!(there.payloads(&lease).await, ["a"]);
    there.finish_done(at(1), &lease).await;
    let again = here
        .update(at(1), &lease, Update::then(Then::Release))
        .await;
    assert_kind(again, ErrorKind::LeaseLost);
}

pub(super) async fn keys_and_ids_belong_to_the_queue_not_to_a_handle(bench: Bench) {
    let here = bench.queue().await;
    let there = bench.another(&here).await;
    let keyed = || vec![NewRequest::new("a").idempotency_key("k")];
    let id = here.put_all(at(5), keyed()).await[0];
    let pushed = must("push", there.push(at(6), keyed()).await);
    assert_eq!((pushed[0].id, pushed[0].duplicate), (id, true));
    let next = there.put(at(0), &["b"]).await[0];
    assert_eq!(next.as_u64(), id.as_u64() + 1);
}

pub(super) async fn two_handles_never_claim_the_same(bench: Bench) {
    let here = bench.queue().await;
    let there = bench.another(&here).await;
    let payloads: Vec<String> = (0..40).map(|i| i.to_string()).collect();
    let texts: Vec<&str> = payloads.iter().map(String::as_str).collect();
    here.put(at(0), &texts).await;
    let takers = [here.queue.clone(), there.queue.clone()].map(|queue| {
        tokio::spawn(async move {
            let mut taken = Vec::new();
            let claim = super::bench::claim_up_to(3);
            while let Some(lease) = must("claim", queue.claim(at(1), &claim).await) {
                let page = crate::Page::first();
                let members = must("read", queue.read(&lease, page).await);
                taken.extend(members.into_iter().map(|member| member.payload));
            }
            taken
        })
    });
    let mut taken = Vec::new();
    for taker in takers {
        taken.extend(taker.await.expect("it does not panic"));
    }
    taken.sort();
    let mut expected: Vec<_> = payloads.into_iter().map(String::into_bytes).collect();
    expected.sort();
    assert_eq!(taken, expected);
}

pub(super) async fn a_push_of_one_handle_wakes_the_other(bench: Bench) {
    let here = bench.queue().await;
    let there = bench.another(&here).await;
    let mut changes = there.pushed().expect("this backend has wake-ups");
    changes.mark_unchanged();
    here.put(at(0), &["a"]).await;
    changes.changed().await.expect("the queue is open");
    assert!(there.try_take(at(0), &Claim::new()).await.is_some());
}
