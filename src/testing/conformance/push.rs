//! Clauses about [`Queue::push`](crate::Queue::push): ids, order, all or none, limits of a request.

use std::collections::BTreeSet;

use super::bench::{Bench, assert_kind, at, must, requests};
use crate::{
    error::ErrorKind,
    request::{MAX_ATTRIBUTE_BYTES, MAX_ATTRIBUTES, MAX_KEY_BYTES, MAX_PAYLOAD_BYTES, NewRequest},
};

pub(super) async fn push_answers_one_id_for_each_request(bench: Bench) {
    let queue = bench.queue().await;
    let pushed = must("push", queue.push(at(0), requests(&["a", "b", "c"])).await);
    assert_eq!(pushed.len(), 3);
    assert!(pushed.iter().all(|pushed| !pushed.duplicate));
    let ids: BTreeSet<_> = pushed.iter().map(|pushed| pushed.id).collect();
    assert_eq!(ids.len(), 3, "ids are unique");
}

pub(super) async fn push_answers_in_the_order_of_its_requests(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c"]).await;
    let lease = queue.take(at(0)).await;
    let members = queue.members(&lease).await;
    let read: Vec<_> = members
        .iter()
        .map(|member| (member.id, &member.payload[..]))
        .collect();
    assert_eq!(read, [(ids[0], &b"a"[..]), (ids[1], b"b"), (ids[2], b"c")]);
}

pub(super) async fn ids_of_one_push_are_consecutive(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c", "d"]).await;
    for (offset, id) in (0..).zip(&ids) {
        assert_eq!(id.as_u64(), ids[0].as_u64() + offset);
    }
}

pub(super) async fn ids_of_later_pushes_are_larger_even_if_now_went_back(bench: Bench) {
    let queue = bench.queue().await;
    let mut last = None;
    for now in [at(50), at(50), at(10), at(0), at(60)] {
        let ids = queue.put(now, &["a", "b"]).await;
        assert!(
            last < Some(ids[0]) && ids[0] < ids[1],
            "{last:?} then {ids:?}"
        );
        last = Some(ids[1]);
    }
}

pub(super) async fn an_id_is_the_time_of_its_push_or_one_more_than_the_last(bench: Bench) {
    let queue = bench.queue().await;
    let first = queue.put(at(5), &["a", "b"]).await;
    assert_eq!(first[0].as_u64(), at(5).as_nanos());
    let earlier = queue.put(at(4), &["c"]).await;
    assert_eq!(earlier[0].as_u64(), at(5).as_nanos() + 2);
    let later = queue.put(at(6), &["d"]).await;
    assert_eq!(later[0].as_u64(), at(6).as_nanos());
}

pub(super) async fn an_empty_push_adds_nothing(bench: Bench) {
    let queue = bench.queue().await;
    assert_eq!(must("push", queue.push(at(0), Vec::new()).await), []);
    assert_eq!(queue.look(at(0)).await.pushed, 0);
}

pub(super) async fn an_answered_push_is_visible_to_the_next_call(bench: Bench) {
    let queue = bench.queue().await;
    for round in 1..=20 {
        queue.put(at(round), &["a"]).await;
        let stats = queue.look(at(round)).await;
        assert_eq!((stats.pushed, stats.ready), (round, round));
    }
}

pub(super) async fn a_push_with_one_invalid_request_adds_none(bench: Bench) {
    let queue = bench.queue().await;
    let mut new = requests(&["a", "b", "c"]);
    new[1].idempotency_key = Some("k".repeat(MAX_KEY_BYTES + 1));
    assert_kind(queue.push(at(0), new).await, ErrorKind::Invalid);
    let stats = queue.look(at(0)).await;
    assert_eq!((stats.pushed, stats.ready, stats.held_bytes), (0, 0, 0));
    queue.has_nothing_to_take(at(0)).await;
}

pub(super) async fn an_empty_payload_is_legal(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["", "x", ""]).await;
    let lease = queue.take(at(0)).await;
    assert_eq!(queue.payloads(&lease).await, ["", "x", ""]);
}

pub(super) async fn a_payload_comes_back_byte_for_byte(bench: Bench) {
    let queue = bench.queue().await;
    let every_byte: Vec<u8> = (0..=255).cycle().take(5_000).collect();
    let awkward = [
        every_byte,
        b"two\nlines\r\n".to_vec(),
        vec![0; 3],
        b"\xff\xfe not utf-8".to_vec(),
        b"{\"a\":1,\"a\":2}".to_vec(),
    ];
    let new = awkward.iter().cloned().map(NewRequest::new).collect();
    queue.put_all(at(0), new).await;
    let lease = queue.take(at(0)).await;
    for (member, payload) in queue.members(&lease).await.iter().zip(&awkward) {
        assert_eq!(member.payload, payload);
    }
}

pub(super) async fn a_payload_larger_than_a_page_comes_back_whole(bench: Bench) {
    let queue = bench.queue().await;
    let large: Vec<u8> = (0..9_000_000_u32).map(|i| (i % 251) as u8).collect();
    let new = vec![
        NewRequest::new("before"),
        NewRequest::new(large.clone()),
        NewRequest::new("after"),
    ];
    queue.put_all(at(0), new).await;
    let lease = queue.take(at(0)).await;
    let members = queue.members(&lease).await;
    assert_eq!(members[0].payload, "before");
    assert!(members[1].payload == large, "9 MB come back as they were");
    assert_eq!(members[2].payload, "after");
}

pub(super) async fn the_largest_payload_is_taken_and_one_byte_more_is_invalid(bench: Bench) {
    let queue = bench.queue().await;
    let over = NewRequest::new(vec![7; MAX_PAYLOAD_BYTES + 1]);
    assert_kind(queue.push(at(0), vec![over]).await, ErrorKind::Invalid);
    let most = NewRequest::new(vec![7; MAX_PAYLOAD_BYTES]);
    queue.put_one(at(0), most).await;
    let stats = queue.look(at(0)).await;
    assert_eq!(
        (stats.pushed, stats.ready_bytes),
        (1, MAX_PAYLOAD_BYTES as u64)
    );
    let lease = queue.take(at(0)).await;
    let members = queue.members(&lease).await;
    assert_eq!(members[0].payload.len(), MAX_PAYLOAD_BYTES);
    assert!(members[0].payload.iter().all(|byte| *byte == 7));
}

pub(super) async fn attributes_come_back_as_they_were_pushed(bench: Bench) {
    let queue = bench.queue().await;
    let new = NewRequest::new("a")
        .attribute("tenant", "7")
        .attribute("", "an empty name")
        .attribute("empty", "")
        .attribute("größe", "日本 \"quoted\"\n\0");
    queue.put_one(at(0), new.clone()).await;
    queue.put(at(0), &["none"]).await;
    let lease = queue.take(at(0)).await;
    let members = queue.members(&lease).await;
    assert_eq!(members[0].attributes, new.attributes);
    assert!(members[1].attributes.is_empty());
}

pub(super) async fn as_many_attributes_as_allowed_are_taken_and_more_are_invalid(bench: Bench) {
    let queue = bench.queue().await;
    let with = |count: usize, value: usize| {
        let all = (0..count).map(|i| (format!("{i:02}"), "v".repeat(value)));
        NewRequest {
            attributes: all.collect(),
            ..NewRequest::new("a")
        }
    };
    let most = with(MAX_ATTRIBUTES, MAX_ATTRIBUTE_BYTES / MAX_ATTRIBUTES - 2);
    queue.put_one(at(0), most.clone()).await;
    for over in [
        with(MAX_ATTRIBUTES + 1, 0),
        with(1, MAX_ATTRIBUTE_BYTES - 1),
    ] {
        assert_kind(queue.push(at(0), vec![over]).await, ErrorKind::Invalid);
    }
    let lease = queue.take(at(0)).await;
    assert_eq!(queue.members(&lease).await[0].attributes, most.attributes);
    assert_eq!(queue.look(at(0)).await.pushed, 1);
}

pub(super) async fn equal_requests_without_a_key_are_separate(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["same", "same"]).await;
    let again = queue.put(at(0), &["same"]).await;
    assert!(ids[0] < ids[1] && ids[1] < again[0]);
    assert_eq!(queue.look(at(0)).await.ready, 3);
}

pub(super) async fn a_push_of_many_requests_is_one_push(bench: Bench) {
    let queue = bench.queue().await;
    let payloads: Vec<String> = (0..3_000).map(|i| format!("payload {i}")).collect();
    let new = payloads.iter().cloned().map(NewRequest::new).collect();
    let ids = queue.put_all(at(0), new).await;
    assert_eq!(ids[2_999].as_u64(), ids[0].as_u64() + 2_999);
    let mut read = Vec::new();
    while read.len() < payloads.len() {
        let lease = queue.take(at(1)).await;
        read.extend(queue.payloads(&lease).await);
    }
    assert_eq!(read, payloads);
    queue.has_nothing_to_take(at(1)).await;
}

pub(super) async fn queues_share_nothing(bench: Bench) {
    let (one, two) = (bench.queue().await, bench.queue().await);
    let new = || vec![NewRequest::new("a").idempotency_key("k")];
    one.put_all(at(0), new()).await;
    two.has_nothing_to_take(at(0)).await;
    let pushed = must("push", two.push(at(0), new()).await);
    assert!(!pushed[0].duplicate, "keys belong to their queue");
    let (mine, theirs) = (one.take(at(0)).await, two.take(at(0)).await);
    assert_ne!(
        mine.batch, theirs.batch,
        "batch ids of different queues differ"
    );
    assert_kind(
        one.read(&theirs, crate::Page::first()).await,
        ErrorKind::LeaseLost,
    );
    assert_eq!(one.look(at(0)).await.pushed, 1);
    assert_eq!(two.look(at(0)).await.pushed, 1);
}
