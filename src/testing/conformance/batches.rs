//! Clauses about open batches: looked at, and taken from their holders.

use super::bench::{Bench, Subject, assert_kind, at, count, must, recording, requests, secs};
use crate::{
    batch::{BatchId, Claim, Lease, Outcome, Page, Then, Update},
    clock::Timestamp,
    error::ErrorKind,
    queue::{BatchEntry, BatchState, OutcomeCounts},
};

async fn batch(queue: &Subject, now: Timestamp, id: BatchId) -> Option<BatchEntry> {
    must("batch", queue.admin().batch(now, id).await)
}

/// What is known of a batch that is open.
async fn open(queue: &Subject, now: Timestamp, lease: &Lease) -> BatchEntry {
    let entry = batch(queue, now, lease.batch).await;
    entry.unwrap_or_else(|| panic!("batch {} is open", lease.batch))
}

/// All open batches, page by page.
async fn all(queue: &Subject, now: Timestamp, most: u32) -> Vec<BatchEntry> {
    let mut all: Vec<BatchEntry> = Vec::new();
    loop {
        let after = all.last().map(|entry| entry.id);
        let page = queue.admin().batches(now, after, count(most)).await;
        let page = must("batches", page);
        assert!(page.len() <= most as usize, "{page:?}");
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

async fn release(queue: &Subject, now: Timestamp, ids: &[BatchId]) -> Vec<BatchId> {
    must("release", queue.admin().release(now, ids).await)
}

/// Claims each of these requests as a batch of its own.
async fn take_each(queue: &Subject, now: Timestamp, payloads: &[&str]) -> Vec<Lease> {
    queue.put(now, payloads).await;
    let mut leases = Vec::new();
    for _ in payloads {
        leases.push(queue.take_up_to(now, 1).await);
    }
    leases
}

fn ids(leases: &[Lease]) -> Vec<BatchId> {
    leases.iter().map(|lease| lease.batch).collect()
}

pub(super) async fn a_batch_tells_what_its_lease_tells(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "bcd"]).await;
    assert_eq!(all(&queue, at(0), 9).await, []);
    let claim = Claim {
        context: "why".into(),
        ..Claim::new()
    };
    let lease = queue.try_take(at(5), &claim).await;
    let lease = lease.expect("there is something to claim");
    let expected = BatchEntry {
        id: lease.batch,
        parent: None,
        formed_at: at(5),
        attempt: 1,
        attempts_before: 0,
        state: BatchState::Held { until: lease.until },
        fence: Some(lease.fence),
        requests: 2,
        bytes: 4,
        outcomes: OutcomeCounts::default(),
        checkpoint_bytes: None,
        checkpoint: None,
        context: Some("why".into()),
    };
    assert_eq!(open(&queue, at(6), &lease).await, expected);
    let listed = BatchEntry {
        context: None,
        ..expected
    };
    assert_eq!(all(&queue, at(6), 9).await, [listed]);
}

pub(super) async fn a_batch_tells_who_has_it_and_until_when(bench: Bench) {
    let queue = bench.queue().await;
    let lease = take_each(&queue, at(0), &["a"]).await.remove(0);
    let shown = async |now| {
        let entry = open(&queue, now, &lease).await;
        (entry.state, entry.fence, entry.attempt)
    };
    let (until, fence) = (lease.until, Some(lease.fence));
    assert_eq!(shown(at(1)).await, (BatchState::Held { until }, fence, 1));
    assert_eq!(
        shown(until).await,
        (BatchState::Offered, fence, 1),
        "its holder may be late"
    );
    let longer = Then::Hold { until: at(400) };
    queue.give(at(2), &lease, Update::then(longer)).await;
    let held = BatchState::Held { until: at(400) };
    assert_eq!(shown(at(3)).await, (held, fence, 1));
    let defer = Then::Defer { until: at(500) };
    queue.give(at(3), &lease, Update::then(defer)).await;
    let deferred = BatchState::Deferred { until: at(500) };
    assert_eq!(shown(at(4)).await, (deferred, None, 1));
    assert_eq!(shown(at(500)).await, (BatchState::Offered, None, 1));
    let again = queue.take(at(500)).await;
    queue
        .give(at(501), &again, Update::then(Then::Release))
        .await;
    assert_eq!(shown(at(501)).await, (BatchState::Offered, None, 1));
}

pub(super) async fn a_batch_tells_how_many_of_its_members_have_which_outcome(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b", "c", "d", "e", "f"]).await;
    let lease = queue.take(at(0)).await;
    let outcomes = [
        (ids[5], Outcome::reject("bad")),
        (ids[0], Outcome::done()),
        (ids[2], Outcome::retry("busy")),
        (ids[1], Outcome::result("yes")),
        (ids[3], Outcome::retry("busy")),
        (ids[3], Outcome::done()),
    ];
    queue.record(at(1), &lease, &outcomes[..2]).await;
    let counts = async || open(&queue, at(2), &lease).await.outcomes;
    let (mut done, retry, reject) = (1, 0, 1);
    let expected = OutcomeCounts {
        done,
        retry,
        reject,
    };
    assert_eq!(counts().await, expected);
    queue.record(at(1), &lease, &outcomes[2..]).await;
    done = 2;
    let expected = OutcomeCounts {
        done,
        retry: 2,
        reject,
    };
    assert_eq!(counts().await, expected, "the first one wins");
    assert_eq!(all(&queue, at(2), 9).await[0].outcomes, expected);
    assert_eq!(open(&queue, at(2), &lease).await.requests, 6);
}

pub(super) async fn a_batch_shows_its_checkpoint_when_asked_for_by_its_id(bench: Bench) {
    let queue = bench.queue().await;
    let lease = take_each(&queue, at(0), &["a"]).await.remove(0);
    for note in ["submitted as 7", ""] {
        let update = Update {
            checkpoint: Some(note.into()),
            ..recording(&lease, &[])
        };
        queue.give(at(1), &lease, update).await;
        let bytes = Some(note.len() as u64);
        let entry = open(&queue, at(2), &lease).await;
        assert_eq!(
            (entry.checkpoint_bytes, entry.checkpoint),
            (bytes, Some(note.into()))
        );
        let entry = all(&queue, at(2), 1).await.remove(0);
        assert_eq!((entry.checkpoint_bytes, entry.checkpoint), (bytes, None));
    }
}

pub(super) async fn halves_tell_their_parent_and_the_attempts_before(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b", "c"]).await;
    let parent = queue.take(at(0)).await;
    queue.split(at(3), &parent).await;
    assert_eq!(batch(&queue, at(3), parent.batch).await, None);
    let halves = all(&queue, at(3), 9).await;
    let requests: Vec<u32> = halves.iter().map(|half| half.requests).collect();
    assert_eq!(requests, [2, 1]);
    for half in halves {
        assert_eq!((half.parent, half.formed_at), (Some(parent.batch), at(3)));
        assert_eq!((half.attempt, half.attempts_before), (0, 1));
        assert_eq!((half.state, half.fence), (BatchState::Offered, None));
    }
    let half = queue.take(at(4)).await;
    let entry = open(&queue, at(4), &half).await;
    assert_eq!((entry.attempt, entry.attempts_before), (1, 1));
}

pub(super) async fn batches_are_listed_in_pages_in_order_of_their_ids(bench: Bench) {
    let queue = bench.queue().await;
    let leases = take_each(&queue, at(0), &["a", "b", "c", "d", "e"]).await;
    let defer = Then::Defer { until: at(9) };
    queue.give(at(1), &leases[0], Update::then(defer)).await;
    queue
        .give(at(1), &leases[3], Update::then(Then::Release))
        .await;
    for most in [1, 2, 3, 5, 9] {
        let listed = all(&queue, at(2), most).await;
        let listed: Vec<BatchId> = listed.iter().map(|entry| entry.id).collect();
        assert_eq!(listed, ids(&leases), "in pages of {most}");
    }
    queue.finish_done(at(2), &leases[2]).await;
    let after = queue
        .admin()
        .batches(at(2), Some(leases[2].batch), count(9));
    let listed = must("batches", after.await);
    let listed: Vec<BatchId> = listed.iter().map(|entry| entry.id).collect();
    assert_eq!(
        listed,
        ids(&leases[3..]),
        "after one that has ended meanwhile"
    );
}

pub(super) async fn a_batch_that_has_ended_or_never_was_is_not_known(bench: Bench) {
    let queue = bench.queue().await;
    let lease = take_each(&queue, at(0), &["a"]).await.remove(0);
    let (formed, of) = lease.batch.halves();
    let never = [
        BatchId::new(formed + 1, of),
        BatchId::new(formed, of.wrapping_add(1)),
    ];
    for id in never {
        assert_eq!(batch(&queue, at(1), id).await, None);
        assert_eq!(release(&queue, at(1), &[id]).await, []);
    }
    queue.finish_done(at(1), &lease).await;
    assert_eq!(batch(&queue, at(1), lease.batch).await, None);
    assert_eq!(all(&queue, at(1), 9).await, []);
    assert_eq!(release(&queue, at(1), &[lease.batch]).await, []);
}

pub(super) async fn a_released_batch_is_offered_at_once_and_keeps_what_it_is(bench: Bench) {
    let queue = bench.queue().await;
    let requests = queue.put(at(0), &["a", "b", "c"]).await;
    let claim = Claim {
        context: "why".into(),
        ..Claim::new()
    };
    let lease = queue.try_take(at(0), &claim).await;
    let lease = lease.expect("there is something to claim");
    let outcomes = [
        (requests[1], Outcome::result("yes")),
        (requests[2], Outcome::retry("busy")),
    ];
    let update = Update {
        checkpoint: Some("half way".into()),
        ..recording(&lease, &outcomes)
    };
    queue.give(at(1), &lease, update).await;
    let members = queue.members(&lease).await;
    assert_eq!(queue.look(at(2)).await.offered, 0);
    assert_eq!(release(&queue, at(2), &[lease.batch]).await, [lease.batch]);
    let stats = queue.look(at(2)).await;
    assert_eq!((stats.offered, stats.next_offer), (1, None));
    let again = queue.take(at(2)).await;
    assert_eq!(
        Lease {
            fence: lease.fence,
            until: lease.until,
            ..again.clone()
        },
        Lease {
            unsettled: 1,
            checkpoint: Some("half way".into()),
            ..lease.clone()
        },
        "the attempt of its holder did not count"
    );
    assert!(again.fence > lease.fence);
    assert_eq!(queue.members(&again).await, members);
}

pub(super) async fn the_holder_of_a_released_batch_has_lost_its_lease(bench: Bench) {
    let queue = bench.queue().await;
    let requests = queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(0)).await;
    release(&queue, at(1), &[lease.batch]).await;
    let late = async |now| {
        for update in [
            recording(&lease, &[(requests[0], Outcome::done())]),
            Update::then(Then::Release),
            super::bench::finishing(Outcome::done(), now),
        ] {
            assert_kind(
                queue.update(now, &lease, update).await,
                ErrorKind::LeaseLost,
            );
        }
        assert_kind(
            queue.read(&lease, Page::first()).await,
            ErrorKind::LeaseLost,
        );
    };
    late(at(2)).await;
    let again = queue.take(at(3)).await;
    late(at(4)).await;
    let stats = queue.look(at(4)).await;
    assert_eq!((stats.done, stats.in_flight, stats.offered), (0, 2, 0));
    queue.finish_done(at(5), &again).await;
}

pub(super) async fn releasing_a_deferred_batch_ends_its_wait_and_its_attempt_counts(bench: Bench) {
    let queue = bench.queue().await;
    let lease = take_each(&queue, at(0), &["a"]).await.remove(0);
    let defer = Then::Defer { until: at(7_200) };
    queue.give(at(1), &lease, Update::then(defer)).await;
    queue.has_nothing_to_take(at(2)).await;
    assert_eq!(release(&queue, at(2), &[lease.batch]).await, [lease.batch]);
    let entry = open(&queue, at(2), &lease).await;
    assert_eq!((entry.state, entry.attempt), (BatchState::Offered, 1));
    assert_eq!(queue.take(at(2)).await.attempt, 2);
}

pub(super) async fn a_released_half_keeps_the_attempts_before(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b"]).await;
    let parent = queue.take(at(0)).await;
    queue.split(at(1), &parent).await;
    let half = queue.take(at(2)).await;
    release(&queue, at(3), &[half.batch]).await;
    let entry = open(&queue, at(3), &half).await;
    assert_eq!((entry.attempt, entry.attempts_before), (0, 1));
    let again = queue.take(at(4)).await;
    assert_eq!((again.batch, again.attempt), (half.batch, 1));
    assert_eq!(queue.members(&again).await[0].attempt, 2);
}

pub(super) async fn release_passes_over_what_is_offered_already(bench: Bench) {
    let queue = bench.queue().await;
    let leases = take_each(&queue, at(0), &["late", "released", "held", "deferred"]).await;
    queue
        .give(at(1), &leases[1], Update::then(Then::Release))
        .await;
    let hold = Then::Hold { until: at(500) };
    queue.give(at(1), &leases[2], Update::then(hold)).await;
    let defer = Then::Defer { until: at(500) };
    queue.give(at(1), &leases[3], Update::then(defer)).await;
    // The lease of the first has run out, and is good until another claim.
    let now = leases[0].until;
    let mut named = ids(&leases);
    named.reverse();
    named.extend(ids(&leases));
    assert_eq!(release(&queue, now, &named).await, ids(&leases[2..]));
    assert_eq!(release(&queue, now, &named).await, []);
    assert_eq!(release(&queue, now, &[]).await, []);
    queue.finish_done(now, &leases[0]).await;
    assert_eq!(queue.look(now).await.offered, 3);
    for (lease, attempt) in leases[1..].iter().zip([1, 1, 2]) {
        let again = queue.take(now).await;
        assert_eq!((again.batch, again.attempt), (lease.batch, attempt));
    }
}

pub(super) async fn releasing_wakes(bench: Bench) {
    let queue = bench.queue().await;
    let leases = take_each(&queue, at(0), &["held", "deferred"]).await;
    let defer = Then::Defer { until: at(500) };
    queue.give(at(1), &leases[1], Update::then(defer)).await;
    for lease in &leases {
        let mut changes = queue.pushed().expect("this backend has wake-ups");
        changes.mark_unchanged();
        release(&queue, at(2), &[lease.batch]).await;
        changes.changed().await.expect("the queue is open");
    }
}

pub(super) async fn a_release_brings_what_time_brought(bench: Bench) {
    let queue = bench.queue().await;
    let lease = take_each(&queue, at(0), &["a"]).await.remove(0);
    let brief = requests(&["brief"]).remove(0).ttl(secs(5));
    queue.put_one(at(1), brief).await;
    release(&queue, at(30), &[lease.batch]).await;
    assert_eq!(queue.look(at(2)).await.expired, 1);
    let brief = requests(&["brief"]).remove(0).ttl(secs(5));
    queue.put_one(at(31), brief).await;
    all(&queue, at(60), 9).await;
    assert_eq!(queue.look(at(32)).await.expired, 2);
}

pub(super) async fn open_batches_and_a_release_survive(bench: Bench) {
    let queue = bench.queue().await;
    let requests = queue.put(at(0), &["a", "b", "c", "d"]).await;
    let held = queue.take_up_to(at(0), 2).await;
    let outcomes = [
        (requests[0], Outcome::done()),
        (requests[1], Outcome::reject("bad")),
    ];
    let update = Update {
        checkpoint: Some("noted".into()),
        ..recording(&held, &outcomes)
    };
    queue.give(at(1), &held, update).await;
    let deferred = queue.take_up_to(at(1), 1).await;
    let defer = Then::Defer { until: at(500) };
    queue.give(at(1), &deferred, Update::then(defer)).await;
    let released = queue.take_up_to(at(1), 1).await;
    release(&queue, at(2), &[released.batch]).await;
    let before = all(&queue, at(3), 9).await;
    let alone = open(&queue, at(3), &held).await;
    assert_eq!(before.len(), 3);
    let queue = bench.reopen(queue).await;
    assert_eq!(all(&queue, at(3), 9).await, before);
    assert_eq!(open(&queue, at(3), &held).await, alone);
    let lost = queue
        .update(at(4), &released, Update::then(Then::Release))
        .await;
    assert_kind(lost, ErrorKind::LeaseLost);
    let again = queue.take(at(4)).await;
    assert_eq!((again.batch, again.attempt), (released.batch, 1));
    let both = release(&queue, at(5), &[held.batch, deferred.batch]).await;
    assert_eq!(both, [held.batch, deferred.batch]);
}

pub(super) async fn what_one_handle_holds_another_releases(bench: Bench) {
    let queue = bench.queue().await;
    let other = bench.another(&queue).await;
    let lease = take_each(&queue, at(0), &["a"]).await.remove(0);
    assert_eq!(
        open(&other, at(1), &lease).await,
        open(&queue, at(1), &lease).await
    );
    assert_eq!(release(&other, at(1), &[lease.batch]).await, [lease.batch]);
    let late = queue
        .update(at(2), &lease, Update::then(Then::Release))
        .await;
    assert_kind(late, ErrorKind::LeaseLost);
    assert_eq!(other.take(at(2)).await.batch, lease.batch);
}

/// More than a backend is likely to look at in one go.
const MANY: u64 = 5_000;

pub(super) async fn outcomes_of_many_members_are_counted(bench: Bench) {
    let queue = bench.queue().await;
    let new = (0..MANY).map(|number| crate::request::NewRequest::new(number.to_string()));
    let requests = queue.put_all(at(0), new.collect()).await;
    let mut leases = Vec::new();
    while let Some(lease) = queue.try_take(at(0), &Claim::new()).await {
        leases.push(lease);
    }
    let mut members = requests.into_iter();
    let mut expected = Vec::new();
    for lease in &leases {
        let outcomes = members.by_ref().take(lease.requests as usize);
        let outcomes = outcomes.enumerate().map(|(number, id)| {
            let outcome = match number % 3 {
                0 => Outcome::done(),
                1 => Outcome::retry("busy"),
                _ => Outcome::reject("bad"),
            };
            (id, outcome)
        });
        let outcomes: Vec<_> = outcomes.collect();
        queue.record(at(1), lease, &outcomes).await;
        let third = lease.requests / 3;
        expected.push(OutcomeCounts {
            done: third + u32::from(lease.requests % 3 > 0),
            retry: third + u32::from(lease.requests % 3 > 1),
            reject: third,
        });
    }
    let listed = all(&queue, at(2), 100).await;
    let counts: Vec<OutcomeCounts> = listed.iter().map(|entry| entry.outcomes).collect();
    assert_eq!(counts, expected);
    assert_eq!(release(&queue, at(3), &ids(&leases)).await, ids(&leases));
    assert_eq!(queue.look(at(3)).await.offered, leases.len() as u64);
}
