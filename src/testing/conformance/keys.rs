//! Clauses about idempotency keys: what a second push of a known key does, and for how long.

use super::bench::{Bench, Subject, assert_kind, at, must, requests, secs};
use crate::{
    batch::Outcome,
    error::ErrorKind,
    queue::QueueOptions,
    request::{NewRequest, RequestId},
};

/// A request with a key.
fn keyed(payload: &str, key: &str) -> NewRequest {
    NewRequest::new(payload.to_owned()).idempotency_key(key)
}

/// Pushing the key `k` again adds nothing and answers this id.
async fn is_known(queue: &Subject, seconds: u64, id: RequestId) {
    let before = queue.look(at(seconds)).await.pushed;
    let pushed = must("push", queue.push(at(seconds), vec![keyed("a", "k")]).await);
    assert_eq!((pushed[0].id, pushed[0].duplicate), (id, true));
    assert_eq!(queue.look(at(seconds)).await.pushed, before);
}

pub(super) async fn a_known_key_adds_nothing_and_answers_the_first_id(bench: Bench) {
    let queue = bench.queue().await;
    let id = queue.put_one(at(0), keyed("a", "k")).await;
    is_known(&queue, 0, id).await;
    is_known(&queue, 100, id).await;
    let lease = queue.take(at(100)).await;
    assert_eq!(queue.payloads(&lease).await, ["a"]);
}

pub(super) async fn a_known_key_with_another_payload_is_invalid(bench: Bench) {
    let queue = bench.queue().await;
    let id = queue.put_one(at(0), keyed("a", "k")).await;
    let new = vec![NewRequest::new("fresh"), keyed("other", "k")];
    assert_kind(queue.push(at(1), new).await, ErrorKind::Invalid);
    assert_eq!(
        queue.look(at(1)).await.pushed,
        1,
        "the whole push is refused"
    );
    is_known(&queue, 2, id).await;
}

pub(super) async fn a_key_twice_in_one_push_is_one_request(bench: Bench) {
    let queue = bench.queue().await;
    let new = vec![keyed("a", "k"), NewRequest::new("b"), keyed("a", "k")];
    let pushed = must("push", queue.push(at(0), new).await);
    assert_eq!(pushed[2].id, pushed[0].id);
    let duplicates: Vec<bool> = pushed.iter().map(|pushed| pushed.duplicate).collect();
    assert_eq!(duplicates, [false, false, true]);
    let lease = queue.take(at(0)).await;
    assert_eq!(queue.payloads(&lease).await, ["a", "b"]);
}

pub(super) async fn a_key_twice_in_one_push_with_two_payloads_is_invalid(bench: Bench) {
    let queue = bench.queue().await;
    let new = vec![keyed("a", "k"), keyed("b", "k")];
    assert_kind(queue.push(at(0), new).await, ErrorKind::Invalid);
    assert_eq!(queue.look(at(0)).await.pushed, 0);
    let pushed = must("push", queue.push(at(0), vec![keyed("b", "k")]).await);
    assert!(!pushed[0].duplicate, "a refused push leaves no key behind");
}

pub(super) async fn new_requests_among_duplicates_have_consecutive_ids(bench: Bench) {
    let queue = bench.queue().await;
    let known = queue.put_one(at(0), keyed("a", "k")).await;
    let new = vec![
        NewRequest::new("b"),
        keyed("a", "k"),
        NewRequest::new("c"),
        keyed("a", "k"),
        NewRequest::new("d"),
    ];
    let ids = queue.put_all(at(1), new).await;
    assert_eq!((ids[1], ids[3]), (known, known));
    let first = ids[0].as_u64();
    assert_eq!((ids[2].as_u64(), ids[4].as_u64()), (first + 1, first + 2));
}

pub(super) async fn a_key_is_known_whatever_became_of_its_request(bench: Bench) {
    for fate in [
        Outcome::done(),
        Outcome::reject("no"),
        Outcome::retry("again"),
    ] {
        let queue = bench.queue().await;
        let id = queue.put_one(at(0), keyed("a", "k")).await;
        let lease = queue.take(at(1)).await;
        is_known(&queue, 2, id).await;
        queue.finish(at(3), &lease, fate).await;
        is_known(&queue, 4, id).await;
    }
    let queue = bench.queue().await;
    let id = queue.put_one(at(0), keyed("a", "k").ttl(secs(1))).await;
    assert_eq!(queue.look(at(2)).await.expired, 1);
    is_known(&queue, 3, id).await;
}

pub(super) async fn a_key_is_known_after_retention_and_cancelling(bench: Bench) {
    let options = QueueOptions::default().retention(secs(1));
    let queue = bench.queue_with(options).await;
    let id = queue.put_one(at(0), keyed("a", "k")).await;
    let lease = queue.take(at(0)).await;
    queue.finish_done(at(0), &lease).await;
    assert_eq!(queue.status(at(10), id).await, None);
    is_known(&queue, 11, id).await;
    let queue = bench.queue().await;
    let id = queue.put_one(at(0), keyed("a", "k")).await;
    must("cancel", queue.admin().cancel(at(1), &[id]).await);
    is_known(&queue, 2, id).await;
}

pub(super) async fn a_key_is_forgotten_when_its_window_has_passed(bench: Bench) {
    let options = QueueOptions::default().idempotency_window(secs(10));
    let queue = bench.queue_with(options).await;
    let id = queue.put_one(at(0), keyed("a", "k")).await;
    is_known(&queue, 9, id).await;
    let pushed = must("push", queue.push(at(11), vec![keyed("other", "k")]).await);
    assert!(!pushed[0].duplicate);
    assert_ne!(pushed[0].id, id);
    assert_eq!(queue.look(at(11)).await.pushed, 2);
    let pushed = must("push", queue.push(at(20), vec![keyed("other", "k")]).await);
    assert!(
        pushed[0].duplicate,
        "the key now belongs to the second request"
    );
}

pub(super) async fn a_duplicate_does_not_lengthen_the_window(bench: Bench) {
    let options = QueueOptions::default().idempotency_window(secs(10));
    let queue = bench.queue_with(options).await;
    let id = queue.put_one(at(0), keyed("a", "k")).await;
    is_known(&queue, 8, id).await;
    let pushed = must("push", queue.push(at(12), vec![keyed("a", "k")]).await);
    assert!(!pushed[0].duplicate);
}

pub(super) async fn a_duplicate_changes_nothing_of_the_first(bench: Bench) {
    let queue = bench.queue().await;
    let first = keyed("a", "k").attribute("from", "first");
    queue.put_one(at(0), first.clone()).await;
    let second = keyed("a", "k")
        .attribute("from", "second")
        .not_before(at(100))
        .ttl(secs(1));
    let pushed = must("push", queue.push(at(1), vec![second]).await);
    assert!(pushed[0].duplicate);
    assert_eq!(queue.look(at(50)).await.ready, 1);
    let lease = queue.take(at(50)).await;
    let members = queue.members(&lease).await;
    assert_eq!(members[0].attributes, first.attributes);
    assert_eq!(members[0].pushed_at, at(0));
}

pub(super) async fn keys_are_told_apart_to_the_last_byte(bench: Bench) {
    let queue = bench.queue().await;
    let long = "k".repeat(crate::MAX_KEY_BYTES - 1);
    let keys = [
        "k",
        "K",
        "k ",
        "k\0",
        "",
        "ключ",
        &format!("{long}a"),
        &format!("{long}b"),
    ];
    let new = keys.iter().map(|key| keyed("same", key)).collect();
    let pushed = must("push", queue.push(at(0), new).await);
    assert!(pushed.iter().all(|pushed| !pushed.duplicate), "{pushed:?}");
    let new = keys.iter().map(|key| keyed("same", key)).collect();
    let again = must("push", queue.push(at(1), new).await);
    assert!(again.iter().all(|pushed| pushed.duplicate), "{again:?}");
    let ids = |all: &[crate::Pushed]| all.iter().map(|one| one.id).collect::<Vec<_>>();
    assert_eq!(ids(&again), ids(&pushed));
}

pub(super) async fn a_key_twice_in_one_push_is_one_request_even_without_a_window(bench: Bench) {
    let options = QueueOptions::default().idempotency_window(secs(0));
    let queue = bench.queue_with(options).await;
    let new = vec![keyed("a", "k"), keyed("a", "k")];
    let pushed = must("push", queue.push(at(0), new).await);
    assert_eq!((pushed[1].id, pushed[1].duplicate), (pushed[0].id, true));
    let pushed = must("push", queue.push(at(0), vec![keyed("b", "k")]).await);
    assert!(!pushed[0].duplicate, "its window has passed");
}

pub(super) async fn duplicates_need_no_room(bench: Bench) {
    let queue = bench
        .queue_with(QueueOptions::default().max_requests(2))
        .await;
    let id = queue.put_one(at(0), keyed("a", "k")).await;
    queue.put(at(0), &["b"]).await;
    assert_kind(
        queue.push(at(1), requests(&["c"])).await,
        ErrorKind::QueueFull,
    );
    is_known(&queue, 1, id).await;
}

pub(super) async fn a_push_refused_for_room_leaves_no_key_behind(bench: Bench) {
    let queue = bench
        .queue_with(QueueOptions::default().max_requests(1))
        .await;
    let new = vec![keyed("a", "k"), NewRequest::new("b")];
    assert_kind(queue.push(at(0), new).await, ErrorKind::QueueFull);
    let pushed = must("push", queue.push(at(0), vec![keyed("other", "k")]).await);
    assert!(!pushed[0].duplicate);
}
