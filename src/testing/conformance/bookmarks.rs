//! Clauses about bookmarks: how far a producer has read, stored with what it pushed.

use super::bench::{Bench, Subject, assert_kind, at, must, requests};
use crate::{
    error::ErrorKind,
    queue::{QueueExt as _, QueueOptions},
    request::{Bookmark, MAX_KEY_BYTES, NewRequest},
};

fn mark(source: &str, value: &str) -> Bookmark {
    Bookmark {
        source: source.to_owned(),
        value: value.to_owned().into(),
    }
}

async fn stored(queue: &Subject, source: &str) -> Option<String> {
    let value = must("bookmark", queue.bookmark(source).await);
    value.map(|value| String::from_utf8_lossy(&value).into_owned())
}

pub(super) async fn a_bookmark_is_stored_with_its_push(bench: Bench) {
    let queue = bench.queue().await;
    assert_eq!(stored(&queue, "file").await, None);
    let pushed = queue
        .push_from(at(0), requests(&["a", "b"]), mark("file", "2"))
        .await;
    assert_eq!(must("push_from", pushed).len(), 2);
    assert_eq!(stored(&queue, "file").await.as_deref(), Some("2"));
    assert_eq!(queue.look(at(0)).await.ready, 2);
    let pushed = queue
        .push_from(at(1), requests(&["c"]), mark("file", "3"))
        .await;
    must("push_from", pushed);
    assert_eq!(stored(&queue, "file").await.as_deref(), Some("3"));
}

pub(super) async fn each_source_has_a_bookmark_of_its_own(bench: Bench) {
    let queue = bench.queue().await;
    for (source, value) in [("a", "1"), ("b", "2"), ("", "3"), ("größe/\0", "4")] {
        let pushed = queue
            .push_from(at(0), requests(&["x"]), mark(source, value))
            .await;
        must("push_from", pushed);
    }
    assert_eq!(stored(&queue, "a").await.as_deref(), Some("1"));
    assert_eq!(stored(&queue, "b").await.as_deref(), Some("2"));
    assert_eq!(stored(&queue, "").await.as_deref(), Some("3"));
    assert_eq!(stored(&queue, "größe/\0").await.as_deref(), Some("4"));
    assert_eq!(stored(&queue, "c").await, None);
}

pub(super) async fn a_bookmark_without_requests_is_stored(bench: Bench) {
    let queue = bench.queue().await;
    must(
        "push_from",
        queue
            .push_from(at(0), Vec::new(), mark("file", "end"))
            .await,
    );
    assert_eq!(stored(&queue, "file").await.as_deref(), Some("end"));
    assert_eq!(queue.look(at(0)).await.pushed, 0);
}

pub(super) async fn a_bookmark_with_only_duplicates_is_stored(bench: Bench) {
    let queue = bench.queue().await;
    for value in ["1", "2"] {
        let new = vec![NewRequest::new("a").idempotency_key("k")];
        must(
            "push_from",
            queue.push_from(at(0), new, mark("file", value)).await,
        );
        assert_eq!(stored(&queue, "file").await.as_deref(), Some(value));
    }
    assert_eq!(queue.look(at(0)).await.pushed, 1);
}

pub(super) async fn a_refused_push_stores_no_bookmark(bench: Bench) {
    let queue = bench.queue().await;
    must(
        "push_from",
        queue
            .push_from(at(0), Vec::new(), mark("file", "old"))
            .await,
    );
    let over = vec![NewRequest::new("a").idempotency_key("k".repeat(MAX_KEY_BYTES + 1))];
    let refused = queue.push_from(at(1), over, mark("file", "new")).await;
    assert_kind(refused, ErrorKind::Invalid);
    assert_eq!(stored(&queue, "file").await.as_deref(), Some("old"));
}

pub(super) async fn a_push_without_room_stores_no_bookmark(bench: Bench) {
    let queue = bench
        .queue_with(QueueOptions::default().max_requests(1))
        .await;
    let refused = queue
        .push_from(at(0), requests(&["a", "b"]), mark("file", "2"))
        .await;
    assert_kind(refused, ErrorKind::QueueFull);
    assert_eq!(stored(&queue, "file").await, None);
}

pub(super) async fn a_bookmark_over_its_limits_is_invalid_and_adds_nothing(bench: Bench) {
    let queue = bench.queue().await;
    let (source, value) = ("s".repeat(512), "v".repeat(64 << 10));
    for over in [
        mark(&format!("{source}s"), "v"),
        mark("s", &format!("{value}v")),
    ] {
        let refused = queue.push_from(at(0), requests(&["a"]), over).await;
        assert_kind(refused, ErrorKind::Invalid);
    }
    assert_eq!(queue.look(at(0)).await.pushed, 0);
    let most = queue
        .push_from(at(0), requests(&["a"]), mark(&source, &value))
        .await;
    must("push_from", most);
    assert_eq!(stored(&queue, &source).await, Some(value));
}

pub(super) async fn a_pause_is_shown_until_it_is_resumed(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    assert_eq!(queue.look(at(0)).await.paused_at, None);
    must("pause", queue.pause().await);
    let paused = queue.look(at(1)).await.paused_at;
    assert!(
        paused.is_some_and(|since| since <= queue.now()),
        "{paused:?}"
    );
    must("pause", queue.pause().await);
    assert_eq!(
        queue.look(at(1)).await.paused_at,
        paused,
        "paused since then"
    );
    // It is for dispatchers to obey.
    let lease = queue.take(at(2)).await;
    queue.finish_done(at(2), &lease).await;
    must("resume", queue.resume().await);
    let stats = queue.look(at(3)).await;
    assert_eq!((stats.paused_at, stats.done), (None, 1));
    must("resume", queue.resume().await);
    // What others keep under the name is no directive, and harms nobody.
    let mark = mark("batchyard:paused", "by Easter");
    must("push_from", queue.push_from(at(4), Vec::new(), mark).await);
    assert_eq!(queue.look(at(4)).await.paused_at, None);
}

pub(super) async fn a_flush_is_shown(bench: Bench) {
    let queue = bench.queue().await;
    assert_eq!(queue.look(at(0)).await.flushed_at, None);
    must("flush", queue.flush().await);
    let flushed = queue.look(at(0)).await.flushed_at;
    assert!(
        flushed.is_some_and(|when| when <= queue.now()),
        "{flushed:?}"
    );
    must("pause", queue.pause().await);
    assert_eq!(queue.look(at(1)).await.flushed_at, flushed);
}
