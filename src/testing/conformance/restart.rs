//! Clauses about what a restart keeps: everything that was answered.

use super::bench::{Bench, Subject, assert_kind, at, claim_up_to, count, must, requests, secs};
use crate::{
    batch::{Claim, Outcome, Then, Update},
    error::ErrorKind,
    queue::{Cancelled, QueueExt as _, QueueOptions},
    request::{Bookmark, NewRequest, State},
};

pub(super) async fn ready_requests_survive_in_order(bench: Bench) {
    let queue = bench.queue().await;
    let new = NewRequest::new("a").attribute("tenant", "7");
    let id = queue.put_one(at(0), new.clone()).await;
    queue.put(at(1), &["b", "", "c"]).await;
    let queue = bench.reopen(queue).await;
    let lease = queue.take(at(2)).await;
    assert_eq!(queue.payloads(&lease).await, ["a", "b", "", "c"]);
    let member = queue.members(&lease).await.remove(0);
    assert_eq!((member.id, member.pushed_at), (id, at(0)));
    assert_eq!(member.attributes, new.attributes);
}

pub(super) async fn every_reading_is_the_same_after_a_restart(bench: Bench) {
    let queue = bench.queue().await;
    let new = vec![
        NewRequest::new("done"),
        NewRequest::new("dead"),
        NewRequest::new("in flight"),
        NewRequest::new("brief").ttl(secs(1)),
        NewRequest::new("ready"),
        NewRequest::new("later").not_before(at(500)),
    ];
    let ids = queue.put_all(at(0), new).await;
    let lease = queue.take_up_to(at(0), 2).await;
    queue
        .record(at(0), &lease, &[(ids[0], Outcome::done())])
        .await;
    queue.finish(at(0), &lease, Outcome::reject("bad")).await;
    let lease = queue.take_up_to(at(0), 1).await;
    let defer = Then::Defer { until: at(400) };
    queue.give(at(0), &lease, Update::then(defer)).await;
    let before = queue.look(at(5)).await;
    assert_eq!((before.done, before.dead, before.expired), (1, 1, 1));
    let queue = bench.reopen(queue).await;
    assert_eq!(queue.look(at(5)).await, before);
    let queue = bench.reopen(queue).await;
    assert_eq!(queue.look(at(5)).await, before, "and after another");
}

pub(super) async fn an_empty_queue_survives_as_an_empty_queue(bench: Bench) {
    let queue = bench.queue().await;
    let queue = bench.reopen(queue).await;
    assert_eq!(queue.look(at(0)).await, crate::Stats::default());
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    queue.finish_done(at(0), &lease).await;
    let queue = bench.reopen(queue).await;
    queue.has_nothing_to_take(at(1)).await;
    assert_eq!(queue.look(at(1)).await.done, 1);
}

pub(super) async fn ids_go_on_growing_after_a_restart(bench: Bench) {
    let queue = bench.queue().await;
    let before = queue.put(at(100), &["a", "b"]).await;
    let lease = queue.take(at(100)).await;
    queue.finish_done(at(100), &lease).await;
    let queue = bench.reopen(queue).await;
    let after = queue.put(at(0), &["c"]).await;
    assert_eq!(after[0].as_u64(), before[1].as_u64() + 1);
    let later = queue.take(at(0)).await;
    assert!(later.batch > lease.batch && later.fence > lease.fence);
}

pub(super) async fn a_batch_in_flight_is_resumed_under_its_id(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c"]).await;
    let claim = Claim {
        context: "in force".into(),
        ..Claim::new()
    };
    let lease = queue.try_take(at(0), &claim).await.expect("a batch");
    let members = queue.members(&lease).await;
    let update = Update {
        outcomes: vec![(ids[1], Outcome::result("kept"))],
        checkpoint: Some("after b".into()),
        then: Then::Hold { until: at(30) },
    };
    queue.give(at(1), &lease, update).await;
    queue.put(at(2), &["d"]).await;
    let queue = bench.reopen(queue).await;
    let again = queue
        .try_take(at(30), &claim_up_to(1))
        .await
        .expect("an orphan");
    assert_eq!((again.batch, again.attempt), (lease.batch, 2));
    assert!(again.fence > lease.fence);
    assert_eq!((again.requests, again.unsettled), (3, 2));
    assert_eq!(
        (again.bytes, again.formed_at),
        (lease.bytes, lease.formed_at)
    );
    assert_eq!(again.checkpoint.as_deref(), Some(&b"after b"[..]));
    assert_eq!(again.context, "in force");
    let resumed = queue.members(&again).await;
    assert_eq!(resumed[1].outcome, Some(Outcome::result("kept")));
    for (after, before) in resumed.iter().zip(&members) {
        assert_eq!((after.id, after.position), (before.id, before.position));
        assert_eq!(after.payload, before.payload);
    }
    let late = queue.read(&lease, crate::Page::first()).await;
    assert_kind(late, ErrorKind::LeaseLost);
}

pub(super) async fn a_lease_is_good_after_a_restart_too(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(0)).await;
    let queue = bench.reopen(queue).await;
    assert_eq!(queue.payloads(&lease).await, ["a", "b"]);
    queue.finish_done(at(1), &lease).await;
    assert_eq!(queue.look(at(1)).await.done, 2);
}

pub(super) async fn released_deferred_and_split_batches_survive(bench: Bench) {
    let queue = bench.queue().await;
    queue
        .put(at(0), &["released", "deferred", "left", "right"])
        .await;
    let released = queue.take_up_to(at(0), 1).await;
    let deferred = queue.take_up_to(at(0), 1).await;
    let parent = queue.take_up_to(at(0), 2).await;
    queue
        .give(at(1), &released, Update::then(Then::Release))
        .await;
    let defer = Then::Defer { until: at(500) };
    queue.give(at(1), &deferred, Update::then(defer)).await;
    queue.split(at(1), &parent).await;
    let queue = bench.reopen(queue).await;
    let again = queue.take(at(2)).await;
    assert_eq!((again.batch, again.attempt), (released.batch, 1));
    for payload in ["left", "right"] {
        let half = queue.take(at(2)).await;
        assert_eq!(half.parent, Some(parent.batch));
        assert_eq!(queue.payloads(&half).await, [payload]);
        assert_eq!(queue.members(&half).await[0].attempt, 2);
        queue.finish_done(at(2), &half).await;
    }
    queue.finish_done(at(2), &again).await;
    queue.has_nothing_to_take(at(499)).await;
    let again = queue.take(at(500)).await;
    assert_eq!((again.batch, again.attempt), (deferred.batch, 2));
}

pub(super) async fn attempts_and_retries_survive(bench: Bench) {
    let queue = bench.queue().await;
    let new = vec![NewRequest::new("now"), NewRequest::new("later")];
    let ids = queue.put_all(at(0), new).await;
    let lease = queue.take(at(0)).await;
    let later = Outcome::Retry {
        error: "x".into(),
        not_before: Some(at(90)),
    };
    queue.record(at(1), &lease, &[(ids[1], later)]).await;
    let queue = bench.reopen(queue).await;
    let lease = queue.take(lease.until).await;
    queue.finish(at(61), &lease, Outcome::retry("y")).await;
    let queue = bench.reopen(queue).await;
    let stats = queue.look(at(62)).await;
    assert_eq!(
        (stats.ready, stats.delayed, stats.next_due),
        (1, 1, Some(at(90)))
    );
    let lease = queue.take(at(90)).await;
    assert_eq!(queue.payloads(&lease).await, ["now", "later"]);
    for (member, id) in queue.members(&lease).await.iter().zip(&ids) {
        assert_eq!(
            (member.id, member.attempt, member.pushed_at),
            (*id, 3, at(0))
        );
    }
}

pub(super) async fn what_time_brought_while_it_was_closed_is_applied(bench: Bench) {
    let queue = bench.queue().await;
    let new = vec![
        NewRequest::new("brief").ttl(secs(10)),
        NewRequest::new("later").not_before(at(20)),
        NewRequest::new("plain"),
    ];
    queue.put_all(at(0), new).await;
    let queue = bench.reopen(queue).await;
    let stats = queue.look(at(100)).await;
    assert_eq!((stats.expired, stats.ready, stats.delayed), (1, 2, 0));
    let lease = queue.take(at(100)).await;
    assert_eq!(queue.payloads(&lease).await, ["plain", "later"]);
}

pub(super) async fn the_age_of_the_oldest_goes_on_across_a_restart(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(3), &["a"]).await;
    queue.put(at(9), &["b"]).await;
    let queue = bench.reopen(queue).await;
    assert_eq!(queue.look(at(7_200)).await.oldest_ready_at, Some(at(3)));
    queue.take_up_to(at(7_200), 1).await;
    let queue = bench.reopen(queue).await;
    assert_eq!(queue.look(at(7_200)).await.oldest_ready_at, Some(at(9)));
}

pub(super) async fn keys_survive(bench: Bench) {
    let options = QueueOptions::default().idempotency_window(secs(100));
    let queue = bench.queue_with(options).await;
    let keyed = |payload: &str| {
        let payload = payload.to_owned();
        vec![NewRequest::new(payload).idempotency_key("k")]
    };
    let id = queue.put_all(at(0), keyed("a")).await[0];
    let lease = queue.take(at(0)).await;
    queue.finish_done(at(0), &lease).await;
    let queue = bench.reopen(queue).await;
    let pushed = must("push", queue.push(at(50), keyed("a")).await);
    assert_eq!((pushed[0].id, pushed[0].duplicate), (id, true));
    assert_kind(queue.push(at(50), keyed("other")).await, ErrorKind::Invalid);
    let queue = bench.reopen(queue).await;
    let pushed = must("push", queue.push(at(101), keyed("a")).await);
    assert!(!pushed[0].duplicate, "its window has passed");
}

pub(super) async fn bookmarks_survive(bench: Bench) {
    let queue = bench.queue().await;
    let mark = Bookmark {
        source: "file".into(),
        value: "byte 17".into(),
    };
    must(
        "push_from",
        queue.push_from(at(0), requests(&["a"]), mark).await,
    );
    let queue = bench.reopen(queue).await;
    let value = must("bookmark", queue.bookmark("file").await);
    assert_eq!(value.as_deref(), Some(&b"byte 17"[..]));
    assert_eq!(queue.look(at(0)).await.ready, 1);
}

pub(super) async fn a_pause_and_a_flush_survive(bench: Bench) {
    let queue = bench.queue().await;
    must("pause", queue.pause().await);
    must("flush", queue.flush().await);
    let shown = async |queue: &Subject| {
        let stats = queue.look(at(0)).await;
        (stats.paused_at, stats.flushed_at)
    };
    let before = shown(&queue).await;
    let queue = bench.reopen(queue).await;
    assert_eq!(shown(&queue).await, before);
    assert!(before.0.is_some() && before.1.is_some());
    must("resume", queue.resume().await);
    let queue = bench.reopen(queue).await;
    assert_eq!(shown(&queue).await, (None, before.1));
}

pub(super) async fn bounds_count_what_was_there_before(bench: Bench) {
    let queue = bench
        .queue_with(QueueOptions::default().max_requests(3).max_bytes(100))
        .await;
    queue.put(at(0), &["a", "b"]).await;
    queue.take_up_to(at(0), 1).await;
    let queue = bench.reopen(queue).await;
    let over = queue.push(at(1), requests(&["c", "d"])).await;
    assert_kind(over, ErrorKind::QueueFull);
    queue.put(at(1), &["c"]).await;
    let over = queue.push(at(1), requests(&["d"])).await;
    assert_kind(over, ErrorKind::QueueFull);
}

pub(super) async fn dead_letters_and_marks_to_cancel_survive(bench: Bench) {
    let queue = bench.queue().await;
    let dead = queue.put(at(0), &["dead"]).await;
    let lease = queue.take(at(0)).await;
    queue.finish(at(0), &lease, Outcome::reject("bad")).await;
    let before = queue.entry(at(1), dead[0]).await;
    let ids = queue.put(at(1), &["cancelled", "marked"]).await;
    must("cancel", queue.admin().cancel(at(1), &ids[..1]).await);
    let lease = queue.take(at(1)).await;
    let marked = must("cancel", queue.admin().cancel(at(1), &ids[1..]).await);
    assert_eq!(marked, [Cancelled::IfItComesBack]);
    let queue = bench.reopen(queue).await;
    assert_eq!(queue.entry(at(1), dead[0]).await, before);
    let lease = queue.take(lease.until).await;
    queue.finish(at(62), &lease, Outcome::retry("x")).await;
    let stats = queue.look(at(62)).await;
    assert_eq!((stats.cancelled, stats.ready, stats.dead), (2, 0, 1));
    must("redrive", queue.admin().redrive(at(63), &dead).await);
    let queue = bench.reopen(queue).await;
    let lease = queue.take(at(63)).await;
    assert_eq!(queue.payloads(&lease).await, ["dead"]);
    assert_eq!(queue.members(&lease).await[0].attempt, 1);
}

pub(super) async fn results_and_their_order_survive(bench: Bench) {
    let queue = bench
        .queue_with(QueueOptions::default().retention(secs(100)))
        .await;
    let ids = queue.put(at(0), &["a", "b", "c"]).await;
    let lease = queue.take(at(0)).await;
    for id in [ids[2], ids[0]] {
        let result = Outcome::result(format!("of {id}"));
        queue.record(at(1), &lease, &[(id, result)]).await;
    }
    let queue = bench.reopen(queue).await;
    let lease = queue.take(lease.until).await;
    queue.finish(at(62), &lease, Outcome::reject("bad")).await;
    let page = |after| queue.admin().results(at(63), after, count(2));
    let first = must("results", page(None).await);
    let second = must("results", page(first.next).await);
    let queue = bench.reopen(queue).await;
    let page = |after| queue.admin().results(at(63), after, count(2));
    assert_eq!(must("results", page(None).await), first);
    assert_eq!(must("results", page(first.next).await), second);
    let all: Vec<_> = first.entries.iter().chain(&second.entries).collect();
    let order: Vec<_> = all.iter().map(|entry| entry.id).collect();
    assert_eq!(order, [ids[2], ids[0], ids[1]]);
    assert!(all[0].result.is_some() && all[2].result.is_none());
    assert_eq!(queue.ids(at(163), State::Done).await, []);
}

pub(super) async fn results_are_kept_as_long_as_was_set_when_their_batch_ended(bench: Bench) {
    let retention = |seconds| QueueOptions::default().retention(secs(seconds));
    let mut queue = bench.queue_with(retention(60)).await;
    let ids = queue.put(at(0), &["early", "late"]).await;
    let lease = queue.take(at(0)).await;
    queue
        .record(at(0), &lease, &[(ids[0], Outcome::done())])
        .await;
    queue.finish_done(at(10), &lease).await;
    queue.options = retention(1000);
    let mut queue = bench.reopen(queue).await;
    queue.options = retention(1);
    let queue = bench.reopen(queue).await;
    assert_eq!(queue.ids(at(69), State::Done).await, ids);
    assert_eq!(queue.ids(at(70), State::Done).await, []);
}

pub(super) async fn a_large_batch_survives(bench: Bench) {
    let queue = bench.queue().await;
    let payloads: Vec<String> = (0..500).map(|i| i.to_string().repeat(50)).collect();
    let new = payloads.iter().cloned().map(NewRequest::new).collect();
    queue.put_all(at(0), new).await;
    let lease = queue.take(at(0)).await;
    let members = queue.members(&lease).await;
    let queue = bench.reopen(queue).await;
    let again = queue.take(lease.until).await;
    assert_eq!(again.batch, lease.batch);
    for (after, before) in queue.members(&again).await.iter().zip(&members) {
        assert_eq!((after.id, &after.payload), (before.id, &before.payload));
    }
}

pub(super) async fn a_closed_queue_refuses_calls(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    must("close", queue.close().await);
    let release = Update::then(Then::Release);
    assert_kind(queue.push(at(1), requests(&["b"])).await, ErrorKind::Closed);
    assert_kind(queue.stats(at(1)).await, ErrorKind::Closed);
    assert_kind(queue.claim(at(1), &Claim::new()).await, ErrorKind::Closed);
    assert_kind(
        queue.read(&lease, crate::Page::first()).await,
        ErrorKind::Closed,
    );
    assert_kind(
        queue.update(at(1), &lease, release).await,
        ErrorKind::Closed,
    );
    let queue = bench.reopen(queue).await;
    assert_eq!(queue.payloads(&lease).await, ["a"]);
}
