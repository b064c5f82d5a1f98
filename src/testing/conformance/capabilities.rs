//! Clauses about [`Queue::capabilities`](crate::Queue::capabilities): declared is had, and had is declared.

use super::bench::{Bench, assert_kind, at, count, must, requests};
use crate::{
    batch::BatchId,
    error::ErrorKind,
    queue::{Durability, QueueExt},
    request::{Bookmark, RequestId},
};

pub(super) async fn administration_is_there_if_it_is_declared_and_only_then(bench: Bench) {
    let queue = bench.queue().await;
    let declared = queue.capabilities().administration;
    assert_eq!(queue.queue.admin().is_some(), declared);
    if !declared {
        let wait = queue.queue.wait(RequestId::from_u64(7)).await;
        assert_kind(wait, ErrorKind::Invalid);
    }
}

pub(super) async fn bookmarks_that_are_not_declared_are_invalid(bench: Bench) {
    let queue = bench.queue().await;
    if queue.capabilities().bookmarks {
        assert_eq!(must("bookmark", queue.bookmark("file").await), None);
        return;
    }
    let mark = Bookmark {
        source: "file".into(),
        value: "1".into(),
    };
    let refused = queue.push_from(at(0), requests(&["a"]), mark).await;
    assert_kind(refused, ErrorKind::Invalid);
    assert_kind(queue.bookmark("file").await, ErrorKind::Invalid);
    assert_eq!(queue.look(at(0)).await.pushed, 0);
}

pub(super) async fn batches_that_are_not_declared_are_invalid(bench: Bench) {
    let queue = bench.queue().await;
    if queue.capabilities().batches {
        return;
    }
    let (admin, unknown) = (queue.admin(), BatchId::new(7, 7));
    assert_kind(admin.batch(at(0), unknown).await, ErrorKind::Invalid);
    let page = admin.batches(at(0), None, count(1)).await;
    assert_kind(page, ErrorKind::Invalid);
    assert_kind(admin.release(at(0), &[unknown]).await, ErrorKind::Invalid);
}

pub(super) async fn what_is_declared_fits_together(bench: Bench) {
    let can = bench.queue().await.capabilities();
    assert!(
        can.administration || !can.batches,
        "batches are looked at through the administration: {can:?}"
    );
    assert!(
        can.administration || !can.results,
        "results are looked up through the administration: {can:?}"
    );
    assert!(
        can.survives_restart || can.durability == Durability::Process,
        "what outlives the process survives a restart: {can:?}"
    );
    if let Durability::Server { policy } = &can.durability {
        assert!(!policy.is_empty(), "the server's settings are told");
    }
}

pub(super) async fn what_is_declared_does_not_change(bench: Bench) {
    let queue = bench.queue().await;
    let (before, name) = (queue.capabilities(), queue.name());
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    queue.finish_done(at(0), &lease).await;
    assert_eq!((queue.capabilities(), queue.name()), (before, name));
}

pub(super) async fn the_queue_s_clock_does_not_go_back(bench: Bench) {
    let queue = bench.queue().await;
    let mut last = queue.now();
    assert!(last > at(0), "it tells the time");
    for _ in 0..100 {
        let now = queue.now();
        assert!(last <= now, "{last} then {now}");
        last = now;
    }
}
