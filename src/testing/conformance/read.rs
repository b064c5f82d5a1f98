//! Clauses about [`Queue::read`](crate::Queue::read): members, pages, recorded outcomes.

use super::bench::{Bench, assert_kind, at, bytes, count, must};
use crate::{
    batch::{Fence, Lease, Outcome, Page},
    error::ErrorKind,
    request::{DeadReason, NewRequest},
};

pub(super) async fn read_tells_everything_of_a_member(bench: Bench) {
    let queue = bench.queue().await;
    let new = NewRequest::new("payload").attribute("tenant", "7");
    let id = queue.put_one(at(3), new.clone()).await;
    let lease = queue.take(at(9)).await;
    let member = &queue.members(&lease).await[0];
    assert_eq!(member.id, id);
    assert_eq!(member.position.as_u64(), id.as_u64(), "its first position");
    assert_eq!(member.attempt, 1);
    assert_eq!(member.pushed_at, at(3));
    assert_eq!(member.payload, new.payload);
    assert_eq!(member.attributes, new.attributes);
    assert_eq!(member.outcome, None);
}

pub(super) async fn read_answers_in_pages_of_max_requests(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b", "c", "d", "e"]).await;
    let lease = queue.take(at(0)).await;
    let mut page = Page {
        max_requests: count(2),
        ..Page::first()
    };
    let mut sizes = Vec::new();
    let mut payloads = Vec::new();
    loop {
        let members = must("read", queue.read(&lease, page).await);
        sizes.push(members.len());
        let Some(last) = members.last() else { break };
        page = page.after(last.position);
        payloads.extend(members.into_iter().map(|member| member.payload));
    }
    assert!(sizes.iter().all(|size| *size <= 2), "{sizes:?}");
    assert_eq!(payloads, ["a", "b", "c", "d", "e"]);
}

pub(super) async fn read_answers_in_pages_of_max_bytes(bench: Bench) {
    let queue = bench.queue().await;
    let all = ["aaa", "bbb", "a larger one than a page", "", "c", "dddd"];
    queue.put(at(0), &all).await;
    let lease = queue.take(at(0)).await;
    let mut page = Page {
        max_bytes: bytes(6),
        ..Page::first()
    };
    let mut payloads = Vec::new();
    loop {
        let members = must("read", queue.read(&lease, page).await);
        let size: usize = members.iter().map(|member| member.payload.len()).sum();
        assert!(size <= 6 || members.len() == 1, "{members:?}");
        let Some(last) = members.last() else { break };
        page = page.after(last.position);
        payloads.extend(members.into_iter().map(|member| member.payload));
    }
    assert_eq!(payloads, all);
}

pub(super) async fn a_page_has_at_least_one_member_until_the_end(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["large", "large too"]).await;
    let lease = queue.take(at(0)).await;
    let page = Page {
        max_bytes: bytes(1),
        ..Page::first()
    };
    let first = must("read", queue.read(&lease, page).await);
    assert_eq!(first.len(), 1);
    let page = page.after(first[0].position);
    let second = must("read", queue.read(&lease, page).await);
    assert_eq!(second.len(), 1);
    let page = page.after(second[0].position);
    assert_eq!(must("read", queue.read(&lease, page).await), []);
}

pub(super) async fn a_page_may_be_read_again(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b", "c"]).await;
    let lease = queue.take(at(0)).await;
    let before = queue.look(at(0)).await;
    let once = queue.members(&lease).await;
    assert_eq!(queue.members(&lease).await, once);
    assert_eq!(queue.look(at(0)).await, before, "reading changes nothing");
}

pub(super) async fn read_shows_each_outcome_as_it_was_recorded(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c", "d", "e", "f"]).await;
    let lease = queue.take(at(0)).await;
    let outcomes = [
        Outcome::done(),
        Outcome::result("r\0\u{ff}"),
        Outcome::retry("try again"),
        Outcome::Retry {
            error: "not now\n".into(),
            not_before: Some(at(77)),
        },
        Outcome::Reject {
            reason: DeadReason::Undecodable,
            error: "no such field".into(),
        },
    ];
    let recorded: Vec<_> = ids.iter().copied().zip(outcomes.clone()).collect();
    queue.record(at(1), &lease, &recorded).await;
    let read = |member: &crate::Member| member.outcome.clone();
    let mut expected: Vec<_> = outcomes.into_iter().map(Some).collect();
    expected.push(None);
    let shown: Vec<_> = queue.members(&lease).await.iter().map(read).collect();
    assert_eq!(shown, expected);
    let orphan = queue.take(lease.until).await;
    assert_eq!(orphan.unsettled, 1);
    let shown: Vec<_> = queue.members(&orphan).await.iter().map(read).collect();
    assert_eq!(shown, expected, "outcomes outlive their holder");
}

pub(super) async fn read_with_a_fence_that_is_not_the_batch_s_is_lease_lost(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    for fence in [lease.fence.0 + 1, lease.fence.0.wrapping_sub(1)] {
        let forged = Lease {
            fence: Fence(fence),
            ..lease.clone()
        };
        let read = queue.read(&forged, Page::first()).await;
        assert_kind(read, ErrorKind::LeaseLost);
    }
    assert_eq!(queue.payloads(&lease).await, ["a"]);
}

pub(super) async fn read_after_a_takeover_is_lease_lost(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let late = queue.take(at(0)).await;
    assert_eq!(queue.payloads(&late).await, ["a"]);
    let holder = queue.take(late.until).await;
    assert_kind(queue.read(&late, Page::first()).await, ErrorKind::LeaseLost);
    assert_eq!(queue.payloads(&holder).await, ["a"]);
}
