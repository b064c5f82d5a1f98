//! Clauses about kept results: looking up what is done, for how long, and reading it in order.

use super::bench::{Bench, Subject, at, bytes, count, finishing, must, secs};
use crate::{
    batch::{Claim, Outcome, Update},
    clock::Timestamp,
    queue::{List, QueueExt, QueueOptions, ResultCursor, SettledPage},
    request::{NewRequest, RequestId, State},
};

/// All pages of at most `most` results after a cursor: the ids, and the last cursor.
async fn results(
    queue: &Subject,
    now: Timestamp,
    mut after: Option<ResultCursor>,
    most: u32,
) -> (Vec<RequestId>, Option<ResultCursor>) {
    let mut ids = Vec::new();
    loop {
        let page = queue.admin().results(now, after, count(most)).await;
        let SettledPage { entries, next } = must("results", page);
        assert!(entries.len() <= most as usize);
        ids.extend(entries.iter().map(|entry| entry.id));
        if next.is_none() {
            assert_eq!(entries, [], "without a next page this one is the end");
            return (ids, after);
        }
        assert!(after < next, "cursors grow");
        assert_ne!(entries, [], "an empty page is the end");
        after = next;
    }
}

pub(super) async fn a_done_request_can_be_looked_up_with_its_result(bench: Bench) {
    let queue = bench.queue().await;
    let new = NewRequest::new("payload").attribute("tenant", "7");
    let id = queue.put_one(at(0), new.clone()).await;
    let lease = queue.take(at(1)).await;
    let outcomes = [(id, Outcome::result("r\0"))];
    queue.record(at(2), &lease, &outcomes).await;
    let open = queue.entry(at(2), id).await;
    assert_eq!(
        (open.state, open.result.as_deref()),
        (State::Done, Some(&b"r\0"[..]))
    );
    queue.finish_done(at(3), &lease).await;
    let entry = queue.entry(at(4), id).await;
    assert_eq!((entry.id, entry.state), (id, State::Done));
    assert_eq!(entry.result.as_deref(), Some(&b"r\0"[..]));
    assert_eq!((entry.attempts, entry.batch), (1, Some(lease.batch)));
    assert_eq!((entry.pushed_at, entry.at), (at(0), at(2)));
    assert_eq!(entry.attributes, new.attributes);
    assert_eq!((entry.bytes, entry.payload), (0, None));
    assert_eq!((entry.reason, entry.error), (None, None));
}

pub(super) async fn a_request_done_by_the_rest_has_no_result(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(0)).await;
    queue
        .record(at(1), &lease, &[(ids[0], Outcome::done())])
        .await;
    queue.finish_done(at(2), &lease).await;
    for id in ids {
        let entry = queue.entry(at(3), id).await;
        assert_eq!((entry.state, entry.result), (State::Done, None));
    }
}

pub(super) async fn an_empty_result_is_a_result(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(0)).await;
    queue
        .record(at(1), &lease, &[(ids[0], Outcome::result(""))])
        .await;
    queue.finish(at(1), &lease, Outcome::result("")).await;
    for id in ids {
        let entry = queue.entry(at(1), id).await;
        assert_eq!(entry.result.as_deref(), Some(&b""[..]));
    }
}

pub(super) async fn a_large_result_comes_back_whole(bench: Bench) {
    let queue = bench.queue().await;
    let large: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 253) as u8).collect();
    let id = queue.put(at(0), &["a"]).await[0];
    let lease = queue.take(at(0)).await;
    queue
        .record(at(0), &lease, &[(id, Outcome::result(large.clone()))])
        .await;
    queue.finish_done(at(0), &lease).await;
    let entry = queue.entry(at(0), id).await;
    assert!(entry.result.is_some_and(|result| result == large));
}

pub(super) async fn done_requests_are_listed_without_payloads(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(0)).await;
    queue
        .record(at(0), &lease, &[(ids[1], Outcome::result("r"))])
        .await;
    assert_eq!(queue.ids(at(0), State::Done).await, ids[1..]);
    queue.finish_done(at(0), &lease).await;
    let list = List::new(State::Done).with_payloads();
    let listed = must("list", queue.admin().list(at(0), &list).await);
    let shown: Vec<_> = listed
        .iter()
        .map(|entry| (entry.id, &entry.payload))
        .collect();
    assert_eq!(shown, [(ids[0], &None), (ids[1], &None)]);
    assert_eq!(listed[1].result.as_deref(), Some(&b"r"[..]));
}

pub(super) async fn a_done_request_is_forgotten_after_its_retention(bench: Bench) {
    let options = QueueOptions::default().retention(secs(100));
    let queue = bench.queue_with(options).await;
    let id = queue.put(at(0), &["a"]).await[0];
    let lease = queue.take(at(0)).await;
    queue.finish_done(at(10), &lease).await;
    assert!(queue.status(at(109), id).await.is_some());
    assert_eq!(queue.status(at(111), id).await, None);
    assert_eq!(queue.ids(at(111), State::Done).await, []);
    assert_eq!(results(&queue, at(111), None, 10).await.0, []);
    let stats = queue.look(at(111)).await;
    assert_eq!((stats.done, stats.pushed), (1, 1), "the counter remains");
}

pub(super) async fn retention_counts_from_the_end_of_the_batch(bench: Bench) {
    let options = QueueOptions::default().retention(secs(100));
    let queue = bench.queue_with(options).await;
    let ids = queue.put(at(0), &["early", "late"]).await;
    let lease = queue.take(at(0)).await;
    queue
        .record(at(1), &lease, &[(ids[0], Outcome::result("r"))])
        .await;
    let entry = queue.entry(at(5_000), ids[0]).await;
    assert_eq!(
        entry.result.as_deref(),
        Some(&b"r"[..]),
        "its batch is open"
    );
    queue.finish_done(at(5_000), &lease).await;
    assert!(queue.status(at(5_099), ids[0]).await.is_some());
    assert_eq!(queue.status(at(5_101), ids[0]).await, None);
}

pub(super) async fn results_may_be_kept_for_ever(bench: Bench) {
    let options = QueueOptions::default().retention(std::time::Duration::MAX);
    let queue = bench.queue_with(options).await;
    let id = queue.put(at(0), &["a"]).await[0];
    let lease = queue.take(at(0)).await;
    queue.finish_done(at(0), &lease).await;
    assert!(queue.status(at(1_000_000_000), id).await.is_some());
}

pub(super) async fn dead_letters_are_kept_beyond_retention(bench: Bench) {
    let options = QueueOptions::default().retention(secs(1));
    let queue = bench.queue_with(options).await;
    let id = queue.put(at(0), &["a"]).await[0];
    let lease = queue.take(at(0)).await;
    queue.finish(at(0), &lease, Outcome::reject("bad")).await;
    assert_eq!(queue.entry(at(1_000_000), id).await.state, State::Dead);
    assert_eq!(results(&queue, at(1_000_000), None, 10).await.0, [id]);
}

pub(super) async fn results_come_in_the_order_in_which_they_were_settled(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c", "d"]).await;
    let one = queue.take_up_to(at(0), 2).await;
    let two = queue.take_up_to(at(0), 2).await;
    queue
        .record(at(1), &two, &[(ids[3], Outcome::done())])
        .await;
    queue
        .record(at(2), &one, &[(ids[1], Outcome::reject("bad"))])
        .await;
    queue
        .record(at(3), &one, &[(ids[0], Outcome::done())])
        .await;
    assert_eq!(results(&queue, at(3), None, 10).await.0, [ids[3], ids[0]]);
    queue
        .record(at(4), &two, &[(ids[2], Outcome::done())])
        .await;
    queue.finish_done(at(5), &one).await;
    queue.finish_done(at(6), &two).await;
    let order = [ids[3], ids[0], ids[2], ids[1]];
    for most in [1, 2, 3, 100] {
        assert_eq!(
            results(&queue, at(7), None, most).await.0,
            order,
            "{most} a page"
        );
    }
}

pub(super) async fn one_update_settles_done_members_before_dead_ones(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c", "d", "e"]).await;
    let lease = queue.take(at(0)).await;
    let outcomes = vec![
        (ids[4], Outcome::done()),
        (ids[3], Outcome::reject("bad")),
        (ids[1], Outcome::reject("bad too")),
        (ids[0], Outcome::done()),
    ];
    let update = Update {
        outcomes,
        ..finishing(Outcome::done(), at(1))
    };
    queue.give(at(1), &lease, update).await;
    assert_eq!(
        results(&queue, at(1), None, 10).await.0,
        [ids[4], ids[0], ids[2], ids[1], ids[3]],
        "done as named, the rest, then the dead in order"
    );
}

pub(super) async fn a_cursor_goes_on_where_it_was(bench: Bench) {
    let queue = bench.queue().await;
    assert_eq!(results(&queue, at(0), None, 10).await, (vec![], None));
    let mut cursor = None;
    for round in 0..5 {
        let ids = queue.put(at(round), &["a", "b", "c"]).await;
        let lease = queue.take(at(round)).await;
        queue.finish_done(at(round), &lease).await;
        let (mut news, next) = results(&queue, at(round), cursor, 2).await;
        news.sort();
        assert_eq!(news, ids);
        cursor = next;
        assert_eq!(
            results(&queue, at(round), cursor, 2).await,
            (vec![], cursor)
        );
    }
    assert_eq!(results(&queue, at(9), None, 2).await.0.len(), 15);
}

pub(super) async fn results_are_the_entries_of_status(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["done", "dead"]).await;
    let lease = queue.take(at(0)).await;
    queue
        .record(at(1), &lease, &[(ids[0], Outcome::result("r"))])
        .await;
    queue.finish(at(2), &lease, Outcome::reject("bad")).await;
    let page = queue.admin().results(at(3), None, count(10)).await;
    for (entry, id) in must("results", page).entries.iter().zip(&ids) {
        assert_eq!(entry, &queue.entry(at(3), *id).await);
    }
}

pub(super) async fn results_leave_out_what_was_redriven_or_purged(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c"]).await;
    let lease = queue.take(at(0)).await;
    queue.finish(at(0), &lease, Outcome::reject("bad")).await;
    must("redrive", queue.admin().redrive(at(1), &ids[..1]).await);
    must("purge", queue.admin().purge(at(1), &ids[1..2]).await);
    let (left, cursor) = results(&queue, at(2), None, 10).await;
    assert_eq!(left, ids[2..]);
    let lease = queue.take(at(3)).await;
    queue.finish_done(at(3), &lease).await;
    let (news, _) = results(&queue, at(4), cursor, 10).await;
    assert_eq!(news, ids[..1], "settled anew, told anew");
}

pub(super) async fn a_request_too_large_is_among_the_results(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["123456"]).await;
    let claim = Claim {
        max_bytes: bytes(5),
        ..Claim::new()
    };
    assert_eq!(queue.try_take(at(0), &claim).await, None);
    assert_eq!(results(&queue, at(0), None, 10).await.0, ids);
}

pub(super) async fn a_retried_request_is_no_result_until_it_is_settled(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    queue
        .give(at(0), &lease, finishing(Outcome::retry("x"), at(9)))
        .await;
    assert_eq!(results(&queue, at(1), None, 10).await.0, []);
    let lease = queue.take(at(9)).await;
    queue.finish_done(at(9), &lease).await;
    assert_eq!(results(&queue, at(10), None, 10).await.0, ids);
    assert_eq!(queue.entry(at(10), ids[0]).await.attempts, 2);
}

pub(super) async fn a_half_that_is_done_is_found_behind_a_batch_of_redriven_ones(bench: Bench) {
    let queue = bench.queue().await;
    let back = queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    queue.finish(at(0), &lease, Outcome::reject("no")).await;
    let halves = queue.put(at(1), &["b", "c"]).await;
    let whole = queue.take(at(1)).await;
    must("redrive", queue.admin().redrive(at(2), &back).await);
    // This batch begins and ends where the cursor is, and is older than the halves.
    let redriven = queue.take(at(2)).await;
    queue.split(at(3), &whole).await;
    queue.finish_done(at(3), &redriven).await;
    for _ in 0..2 {
        let half = queue.take(at(4)).await;
        queue.finish_done(at(4), &half).await;
    }
    let all = [back[0], halves[0], halves[1]];
    for id in all {
        assert_eq!(queue.entry(at(5), id).await.state, State::Done, "{id}");
    }
    assert_eq!(queue.ids(at(5), State::Done).await, all);
    assert_eq!(results(&queue, at(5), None, 10).await.0.len(), all.len());
}

pub(super) async fn waiting_for_a_request_answers_when_it_is_settled(bench: Bench) {
    let queue = bench.queue().await;
    let done = queue.queue.push_one(NewRequest::new("a")).await;
    let dead = queue
        .queue
        .push_one(NewRequest::json(&["b"]).expect("json"))
        .await;
    let (done, dead) = (must("push_one", done).id, must("push_one", dead).id);
    let waits = [done, dead].map(|id| {
        let queue = queue.queue.clone();
        tokio::spawn(async move { queue.wait(id).await })
    });
    let now = queue.now();
    let lease = queue.take(now).await;
    queue
        .record(now, &lease, &[(done, Outcome::result("r"))])
        .await;
    queue.finish(now, &lease, Outcome::reject("bad")).await;
    let [first, second] = waits;
    let first = must("wait", first.await.expect("it does not panic"));
    assert_eq!(
        (first.state, first.result.as_deref()),
        (State::Done, Some(&b"r"[..]))
    );
    let second = must("wait", second.await.expect("it does not panic"));
    assert_eq!(
        (second.state, second.error.as_deref()),
        (State::Dead, Some("bad"))
    );
}

pub(super) async fn waiting_for_what_will_never_be_settled_is_not_found(bench: Bench) {
    let queue = bench.queue().await;
    let unknown = queue.queue.wait(RequestId::from_u64(7)).await;
    super::bench::assert_kind(unknown, crate::ErrorKind::NotFound);
    let id = must("push_one", queue.queue.push_one(NewRequest::new("a")).await).id;
    must("cancel", queue.admin().cancel(queue.now(), &[id]).await);
    super::bench::assert_kind(queue.queue.wait(id).await, crate::ErrorKind::NotFound);
}

pub(super) async fn a_page_of_results_is_empty_only_at_the_end(bench: Bench) {
    let queue = bench.queue().await;
    let payloads: Vec<String> = (0..40).map(|i| i.to_string()).collect();
    let texts: Vec<&str> = payloads.iter().map(String::as_str).collect();
    let ids = queue.put(at(0), &texts).await;
    let lease = queue.take(at(0)).await;
    queue.finish(at(0), &lease, Outcome::reject("bad")).await;
    must("purge", queue.admin().purge(at(1), &ids[1..38]).await);
    for most in [1, 2, 3, 50] {
        let (left, _) = results(&queue, at(2), None, most).await;
        assert_eq!(left, [ids[0], ids[38], ids[39]], "{most} a page");
    }
}

pub(super) async fn a_page_of_results_is_empty_where_the_rest_is_gone(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c"]).await;
    let lease = queue.take(at(0)).await;
    queue.finish(at(0), &lease, Outcome::reject("bad")).await;
    must("purge", queue.admin().purge(at(1), &ids[1..2]).await);
    must("redrive", queue.admin().redrive(at(1), &ids[2..]).await);
    for most in [1, 2] {
        let (left, _) = results(&queue, at(2), None, most).await;
        assert_eq!(left, ids[..1], "{most} a page");
    }
}
