//! Clauses about calls whose caller goes away: at each wait of each verb, all of it happened or nothing.
//!
//! A call is polled until its first, second, ... wait and dropped there, until one comes to its end before. What was
//! left behind is looked at, and the same call is made again, as by one who was not answered: it has to come to its
//! end, so no lock and no room may be lost with a dropped call.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use super::bench::{
    Bench, Subject, assert_kind, at, finishing, must, recording, requests, secs, splitting,
};
use crate::{
    batch::{Claim, Outcome, Page, Then, Update},
    clock::Timestamp,
    error::ErrorKind,
    queue::{List, QueueOptions, WhenFull},
    request::{Bookmark, NewRequest, RequestId, State},
};

/// Polls a call until its n-th wait, and drops it there; what it answered if it came to its end before.
async fn until_wait<T>(n: usize, call: impl Future<Output = T>) -> Option<T> {
    let mut call = pin!(call);
    let mut waits = 0;
    poll_fn(|context| {
        if waits == n {
            return Poll::Ready(None);
        }
        waits += 1;
        match call.as_mut().poll(context) {
            Poll::Pending if waits == n => Poll::Ready(None),
            polled => polled.map(Some),
        }
    })
    .await
}

/// For each wait of a call, from before its first poll on, until a round says that the call was answered before.
async fn at_each_wait(mut round: impl AsyncFnMut(usize, Timestamp) -> bool) {
    for n in 0..MOST_WAITS {
        // Leases of the round before have run out, and nothing is forgotten yet.
        if round(n, at(100 * n as u64)).await {
            return;
        }
    }
    panic!("a call waits more than {MOST_WAITS} times");
}

/// Two requests that are known when they come again.
fn keyed(n: usize) -> Vec<NewRequest> {
    let keyed = |part| NewRequest::new("x").idempotency_key(format!("{n}/{part}"));
    ["a", "b"].map(keyed).into()
}

/// Takes all that is left and settles it.
async fn drain(queue: &Subject, now: Timestamp) {
    while let Some(lease) = queue.try_take(now, &Claim::new()).await {
        queue.finish_done(now, &lease).await;
    }
    let stats = queue.look(now).await;
    let left = (stats.delayed, stats.ready, stats.in_flight);
    assert_eq!(left, (0, 0, 0), "{stats:?}");
}

pub(super) async fn a_dropped_push_adds_all_or_nothing_and_its_keys_tell(bench: Bench) {
    let queue = bench.queue().await;
    at_each_wait(async |n, now| {
        let before = 2 * n as u64;
        let answer = until_wait(n, queue.push(now, keyed(n))).await;
        let pushed = queue.look(now).await.pushed;
        assert!(
            [before, before + 2].contains(&pushed),
            "both or none: {pushed} after {before}"
        );
        let again = must("push", queue.push(now, keyed(n)).await);
        assert_eq!(again[0].duplicate, again[1].duplicate);
        assert_eq!(queue.look(now).await.pushed, before + 2);
        let Some(answer) = answer else { return false };
        let ids = must("push", answer).into_iter().map(|pushed| pushed.id);
        let known = again.iter().map(|pushed| pushed.id);
        assert!(known.eq(ids) && again[0].duplicate, "{again:?}");
        true
    })
    .await;
    drain(&queue, at(100_000)).await;
}

pub(super) async fn the_batch_of_a_dropped_claim_is_offered_again(bench: Bench) {
    let queue = bench.queue().await;
    let claim = Claim::new();
    at_each_wait(async |n, now| {
        queue.put(now, &["a", "b"]).await;
        let answer = until_wait(n, queue.claim(now, &claim)).await;
        let stats = queue.look(now).await;
        let counts = (stats.ready, stats.in_flight);
        assert!([(2, 0), (0, 2)].contains(&counts), "{stats:?}");
        let lease = queue.take(now.after(claim.lease_duration)).await;
        assert_eq!(queue.payloads(&lease).await, ["a", "b"]);
        queue
            .finish_done(now.after(claim.lease_duration), &lease)
            .await;
        let Some(answer) = answer else { return false };
        let first = must("claim", answer).expect("two requests were ready");
        assert_eq!((lease.batch, lease.attempt), (first.batch, 2));
        true
    })
    .await;
    drain(&queue, at(100_000)).await;
}

pub(super) async fn a_dropped_read_changes_nothing(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b", "c"]).await;
    let lease = queue.take(at(0)).await;
    at_each_wait(async |n, now| {
        let answer = until_wait(n, queue.read(&lease, Page::first())).await;
        assert_eq!(queue.payloads(&lease).await, ["a", "b", "c"]);
        let answer = answer.map(|answer| must("read", answer));
        // Looking brings what time brings; the batch stays with its holder until another claims it.
        assert_eq!(queue.look(now).await.in_flight, 3);
        answer.is_some()
    })
    .await;
    queue.finish_done(at(0), &lease).await;
}

pub(super) async fn a_dropped_reading_changes_nothing(bench: Bench) {
    let queue = bench.queue().await;
    at_each_wait(async |n, now| {
        // What is due and what expires is for this reading to find.
        let new = NewRequest::new("later").not_before(now.after(secs(10)));
        let brief = NewRequest::new("brief").ttl(secs(10));
        queue.put_all(now, vec![new, brief]).await;
        let then = now.after(secs(20));
        let answer = until_wait(n, queue.stats(then)).await;
        let stats = queue.look(then).await;
        let all = n as u64 + 1;
        assert_eq!((stats.ready, stats.expired), (all, all), "{stats:?}");
        answer.is_some_and(|answer| must("stats", answer) == stats)
    })
    .await;
}

pub(super) async fn a_dropped_update_took_effect_or_did_not(bench: Bench) {
    let queue = bench.queue().await;
    at_each_wait(async |n, now| {
        let ids = queue.put(now, &["a", "b"]).await;
        let lease = queue.take(now).await;
        let outcomes = [(ids[0], Outcome::done()), (ids[1], Outcome::done())];
        let update = Update {
            checkpoint: Some("both".into()),
            ..recording(&lease, &outcomes)
        };
        let answer = until_wait(n, queue.update(now, &lease, update)).await;
        let orphan = queue.take(lease.until).await;
        let effect = (orphan.unsettled, orphan.checkpoint.as_deref());
        let all = (0, Some(&b"both"[..]));
        assert!(
            effect == all || (effect == (2, None) && answer.is_none()),
            "all of it or nothing: {orphan:?}"
        );
        queue.finish_done(lease.until, &orphan).await;
        answer.is_some()
    })
    .await;
    drain(&queue, at(100_000)).await;
}

/// Each way to let go of a batch, given again after it was dropped: it takes effect once.
pub(super) async fn a_dropped_end_of_a_batch_may_be_given_again(bench: Bench) {
    let ends: [fn(Timestamp) -> Update; 5] = [
        |_| Update::then(Then::Release),
        |now| Update::then(Then::Defer { until: now }),
        |now| Update::then(splitting(now)),
        |now| finishing(Outcome::retry("again"), now),
        |now| finishing(Outcome::result("done"), now),
    ];
    for end in ends {
        let queue = bench.queue().await;
        at_each_wait(async |n, now| {
            queue.put(now, &["a", "b"]).await;
            let lease = queue.take(now).await;
            let answer = until_wait(n, queue.update(now, &lease, end(now))).await;
            queue.look(now).await;
            let again = queue.update(now, &lease, end(now)).await;
            if answer.is_some() || again.is_err() {
                assert_kind(again, ErrorKind::LeaseLost);
            }
            drain(&queue, now).await;
            assert_eq!(queue.look(now).await.done, 2 * (n as u64 + 1));
            answer.map(|answer| must("update", answer)).is_some()
        })
        .await;
    }
}

pub(super) async fn a_dropped_push_stores_its_bookmark_with_it(bench: Bench) {
    at_each_wait(async |n, now| {
        // One that was dropped in an earlier round may still be under way.
        let queue = bench.queue().await;
        let bookmark = Bookmark {
            source: "source".into(),
            value: n.to_string().into(),
        };
        let new = requests(&["a", "b"]);
        let answer = until_wait(n, queue.push_from(now, new, bookmark)).await;
        let is_stored = async || {
            let stored = must("bookmark", queue.bookmark("source").await);
            stored.is_some_and(|value| value == n.to_string())
        };
        // A push that is still under way may be seen from one look to the next, and then all of it.
        let is_stored_before = is_stored().await;
        let is_pushed = queue.look(now).await.pushed == 2;
        assert!(
            !is_stored_before || is_pushed,
            "only the bookmark is stored"
        );
        assert!(
            is_stored().await || !is_pushed,
            "only the bookmark is missing"
        );
        answer.map(|answer| must("push", answer)).is_some()
    })
    .await;
}

pub(super) async fn dropped_pushes_take_no_room(bench: Bench) {
    let options = QueueOptions::default().max_requests(4).max_bytes(40);
    let timeout = secs(3600);
    for when_full in [WhenFull::Reject, WhenFull::Block { timeout }] {
        let queue = bench.queue_with(options.when_full(when_full)).await;
        queue.put(at(0), &["a", "b", "c", "d"]).await;
        for n in 0..40 {
            let push = queue.push(at(1), requests(&["no room"]));
            // Nobody makes room for it: it waits for ever where pushes block.
            let mut push = pin!(push);
            for _ in 0..=n {
                if poll_fn(|context| Poll::Ready(push.as_mut().poll(context).is_ready())).await {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        let stats = queue.look(at(1)).await;
        assert_eq!(stats.ready, 4, "{stats:?}");
        drain(&queue, at(2)).await;
        queue.put(at(3), &["0123456789"; 4]).await;
        assert_eq!(queue.look(at(3)).await.held_bytes, 40);
    }
}

pub(super) async fn dropped_administration_took_effect_or_did_not(bench: Bench) {
    let queue = bench.queue().await;
    let admin = queue.admin();
    at_each_wait(async |n, now| {
        let before = queue.look(now).await.cancelled;
        let ids = queue.put(now, &["a", "b"]).await;
        let answer = until_wait(n, admin.cancel(now, &ids)).await;
        let cancelled = queue.look(now).await.cancelled - before;
        assert!([0, 2].contains(&cancelled), "both or none: {cancelled}");
        must("cancel", admin.cancel(now, &ids).await);
        assert_eq!(queue.look(now).await.cancelled, before + 2);
        answer.is_some()
    })
    .await;
    at_each_wait(async |n, now| {
        let ids = dead(&queue, now).await;
        let answer = until_wait(n, admin.redrive(now, &ids)).await;
        let stats = queue.look(now).await;
        let counts = (stats.dead, stats.ready);
        assert!([(2, 0), (0, 2)].contains(&counts), "{stats:?}");
        must("redrive", admin.redrive(now, &ids).await);
        drain(&queue, now).await;
        answer.is_some()
    })
    .await;
    at_each_wait(async |n, now| {
        let ids = dead(&queue, now).await;
        let answer = until_wait(n, admin.purge(now, &ids)).await;
        let dead = queue.look(now).await.dead;
        assert!([0, 2].contains(&dead), "both or none: {dead}");
        must("purge", admin.purge(now, &ids).await);
        assert_eq!(queue.look(now).await.dead, 0);
        answer.is_some()
    })
    .await;
    let ids = queue.put(at(0), &["a", "b"]).await;
    at_each_wait(async |n, now| {
        let list = List::new(State::Ready).with_payloads();
        let answers = (
            until_wait(n, admin.status(now, ids[0])).await,
            until_wait(n, admin.list(now, &list)).await,
        );
        assert_eq!(queue.look(now).await.ready, 2);
        answers.0.is_some() && answers.1.is_some()
    })
    .await;
}

/// Two dead letters.
async fn dead(queue: &Subject, now: Timestamp) -> Vec<RequestId> {
    let ids = queue.put(now, &["a", "b"]).await;
    let lease = queue.take(now).await;
    queue.finish(now, &lease, Outcome::reject("no good")).await;
    ids
}

/// Far more than any call has.
const MOST_WAITS: usize = 64;
