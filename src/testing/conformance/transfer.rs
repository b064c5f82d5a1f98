//! Clauses about taking a queue to another: nothing is lost, and a part is nothing.

use std::{sync::Arc, time::Duration};

use super::bench::{Bench, Subject, assert_kind, at, must, requests};
use crate::{
    batch::{BatchId, Lease, Outcome, Retries, Then, Update},
    clock::Timestamp,
    error::{ErrorKind, Result},
    queue::{
        Queue, QueueOptions,
        memory::MemoryQueue,
        transfer::{DumpFrom, MOST, Record, StoredRequest, Transfer, lines},
    },
    request::{Bookmark, NewRequest, Position, QueueName, RequestId, State},
    testing::random,
};

/// What takes a queue elsewhere; it was found a moment ago.
fn transfer(queue: &dyn Queue) -> &dyn Transfer {
    queue.transfer().expect("it answered a moment ago")
}

/// All records of a queue, in as few as there can be.
async fn dump(queue: &dyn Queue, now: Timestamp) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    let mut from = Some(DumpFrom::Start);
    while let Some(next) = from {
        let page = must("dump", transfer(queue).dump(now, next).await);
        for record in page.records {
            match (records.last_mut(), record) {
                (Some(Record::Settled(ids)), Record::Settled(more)) => ids.extend(more),
                (_, record) => records.push(record),
            }
        }
        from = page.next;
    }
    records
}

/// Takes records in, a few at a time.
async fn restore(queue: &dyn Queue, records: &[Record]) -> Result<()> {
    let mut restore = transfer(queue).restore().await?;
    for few in records.chunks(7) {
        restore.add(few.to_vec()).await?;
    }
    Ok(())
}

/// Takes everything to another queue, by way of lines, and checks that it is the same there.
async fn carry(from: &dyn Queue, to: &dyn Queue, now: Timestamp) {
    let records = dump(from, now).await;
    let name = QueueName::default();
    let read = records.iter().map(|record| {
        let mut line = Vec::new();
        must("encode", lines::encode(&name, record, &mut line));
        must("decode", lines::decode(&line)).1
    });
    let read: Vec<Record> = read.collect();
    assert_eq!(read, records, "lines are what they were made of");
    must("restore", restore(to, &read).await);
    let again = dump(to, now).await;
    for (record, was) in again.iter().zip(&records) {
        assert_eq!(record, was, "what was restored is dumped the same");
    }
    assert_eq!(again.len(), records.len(), "a dump of the same length");
}

fn retries() -> Retries {
    Retries {
        at: at(30),
        max_attempts: std::num::NonZeroU32::new(3).expect("not zero"),
    }
}

async fn update(
    queue: &Subject,
    now: u64,
    lease: &Lease,
    outcomes: Vec<(RequestId, Outcome)>,
    then: Then,
) {
    let update = Update {
        outcomes,
        checkpoint: Some("a \"note\"".into()),
        then,
    };
    must("update", queue.update(at(now), lease, update).await);
}

/// A queue with something in every state.
async fn lived_in(bench: &Bench) -> Subject {
    let queue = bench.queue().await;
    let first = queue
        .put_all(at(0), requests(&["done", "back", "dead", "also done"]))
        .await;
    let lease = queue.take(at(1)).await;
    let outcomes = vec![
        (first[3], Outcome::result("{\"also\": 1}\n")),
        (first[0], Outcome::result(vec![0, 255])),
        (first[1], Outcome::retry("not yet")),
        (first[2], Outcome::reject("never")),
    ];
    let rest = Outcome::done();
    let finish = Then::Finish {
        rest,
        retries: retries(),
    };
    update(&queue, 2, &lease, outcomes, finish).await;
    // A batch with members of each kind, deferred.
    let second = queue
        .put_all(
            at(3),
            requests(&["m done", "m retry", "m reject", "m open", "m cancelled"]),
        )
        .await;
    let lease = queue.take(at(3)).await;
    let outcomes = vec![
        (second[0], Outcome::done()),
        (
            second[1],
            Outcome::Retry {
                error: "later".into(),
                not_before: Some(at(500)),
            },
        ),
        (second[2], Outcome::reject("no")),
    ];
    let until = at(100);
    update(&queue, 4, &lease, outcomes, Then::Defer { until }).await;
    if let Some(admin) = queue.queue.admin() {
        must("cancel", admin.cancel(at(4), &[second[4]]).await);
    }
    // A split one.
    queue.put_all(at(5), requests(&["s1", "s2", "s3"])).await;
    let lease = queue.take(at(5)).await;
    let retries = retries();
    update(&queue, 6, &lease, Vec::new(), Then::Split { retries }).await;
    // Waiting ones.
    let ttl = Duration::from_secs(1000);
    let new = vec![
        NewRequest::new("ready").attribute("a", "b").ttl(ttl),
        NewRequest::new(vec![255, 0]).not_before(at(40)).ttl(ttl),
        NewRequest::new("null").idempotency_key("key"),
        NewRequest::new(" [1,\n2]"),
    ];
    queue.put_all(at(7), new).await;
    queue
}

/// When everything in it still is.
const THEN: u64 = 8;

pub(super) async fn what_is_dumped_and_restored_is_dumped_the_same(bench: Bench) {
    let queue = lived_in(&bench).await;
    if queue.capabilities().bookmarks {
        // A directive comes along as well, and is shown.
        let paused = at(THEN).to_string();
        for (source, value) in [("file", "7"), ("batchyard:paused", &paused)] {
            let bookmark = Bookmark {
                source: source.into(),
                value: value.to_owned().into(),
            };
            let pushed = queue.push_from(at(THEN), Vec::new(), bookmark).await;
            must("push_from", pushed);
        }
        assert_eq!(queue.look(at(THEN)).await.paused_at, Some(at(THEN)));
    }
    let memory = MemoryQueue::new(QueueOptions::default());
    carry(&*queue, &memory, at(THEN)).await;
    let other = bench.queue().await;
    carry(&memory, &*other, at(THEN)).await;
    let stats = queue.look(at(THEN)).await;
    assert_eq!(other.look(at(THEN)).await, stats);
    let counts = (stats.ready, stats.delayed, stats.in_flight, stats.batches);
    assert_eq!(counts, (3, 2, 7, 3), "{stats:?}");
    assert_eq!((stats.done, stats.dead), (3, 1), "{stats:?}");
    if queue.capabilities().bookmarks {
        let bookmark = must("bookmark", other.bookmark("file").await);
        assert_eq!(bookmark.as_deref(), Some(&b"7"[..]));
    }
}

pub(super) async fn a_batch_that_was_held_is_offered_at_once_under_a_higher_fence(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(1)).await;
    let hold = Then::Hold { until: at(1000) };
    update(&queue, 2, &lease, vec![(ids[0], Outcome::done())], hold).await;
    let other = bench.queue().await;
    carry(&*queue, &*other, at(3)).await;
    let read = other.read(&lease, crate::Page::first()).await;
    assert_kind(read, ErrorKind::LeaseLost);
    let again = other.take(at(3)).await;
    assert_eq!((again.batch, again.attempt), (lease.batch, 2));
    assert!(again.fence > lease.fence, "{again:?} after {lease:?}");
    assert_eq!(again.checkpoint.as_deref(), Some(&b"a \"note\""[..]));
    assert_eq!((again.requests, again.unsettled), (2, 1));
    let members = must("read", other.read(&again, crate::Page::first()).await);
    assert_eq!(members[0].outcome, Some(Outcome::done()));
    assert_eq!(&members[0].payload[..], b"a");
    assert_eq!((members[1].id, &members[1].outcome), (ids[1], &None));
}

pub(super) async fn a_restored_queue_goes_on_where_the_other_was(bench: Bench) {
    let queue = lived_in(&bench).await;
    let other = bench.queue().await;
    carry(&*queue, &*other, at(THEN)).await;
    let again = NewRequest::new("null").idempotency_key("key");
    let one = must("push", queue.push(at(9), vec![again.clone()]).await);
    let two = must("push", other.push(at(9), vec![again]).await);
    assert!(two[0].duplicate, "the key is known");
    assert_eq!(one, two);
    for new in ["more", "yet more"] {
        let (one, two) = (
            queue.put(at(9), &[new]).await,
            other.put(at(9), &[new]).await,
        );
        assert_eq!(one, two, "ids go on where they were");
    }
    loop {
        let claim = crate::Claim::new();
        let (one, two) = (
            queue.try_take(at(600), &claim).await,
            other.try_take(at(600), &claim).await,
        );
        let (Some(lease), Some(its)) = (&one, &two) else {
            assert_eq!(one, two, "the same batches");
            break;
        };
        // Each queue has fences of its own.
        let alike = crate::Lease {
            fence: lease.fence,
            ..its.clone()
        };
        assert_eq!(*lease, alike, "the same batches in the same order");
        let (one, two) = (
            must("read", queue.read(lease, crate::Page::first()).await),
            must("read", other.read(its, crate::Page::first()).await),
        );
        assert_eq!(one, two, "the same members");
        for (queue, lease) in [(&queue, lease), (&other, its)] {
            let rest = Outcome::retry("again");
            let finish = Then::Finish {
                rest,
                retries: retries(),
            };
            update(queue, 600, lease, Vec::new(), finish).await;
        }
        assert_eq!(queue.look(at(600)).await, other.look(at(600)).await);
    }
    let (mut one, mut two) = (dump(&*queue, at(600)).await, dump(&*other, at(600)).await);
    for record in one.iter_mut().chain(&mut two) {
        if let Record::Queue(end) = record {
            end.last_fence = crate::Fence(0);
        }
    }
    assert_eq!(one, two);
}

pub(super) async fn a_restored_queue_survives_a_restart(bench: Bench) {
    let queue = lived_in(&bench).await;
    let other = bench.queue().await;
    carry(&*queue, &*other, at(THEN)).await;
    let other = bench.reopen(other).await;
    assert_eq!(dump(&*queue, at(THEN)).await, dump(&*other, at(THEN)).await);
    assert_eq!(queue.look(at(THEN)).await, other.look(at(THEN)).await);
}

pub(super) async fn a_restore_without_its_end_leaves_nothing(bench: Bench) {
    let queue = lived_in(&bench).await;
    let records = dump(&*queue, at(THEN)).await;
    let other = bench.queue().await;
    let part = &records[..records.len() - 1];
    must("restore", restore(&*other, part).await);
    assert_eq!(other.look(at(THEN)).await, crate::Stats::default());
    must("restore", restore(&*other, &records).await);
    assert_eq!(other.look(at(THEN)).await, queue.look(at(THEN)).await);
}

pub(super) async fn a_dump_that_is_not_whole_is_invalid_and_leaves_nothing(bench: Bench) {
    let queue = lived_in(&bench).await;
    let records = dump(&*queue, at(THEN)).await;
    let other = bench.queue().await;
    for lost in 0..records.len() {
        // Nothing tells how many keys and bookmarks there were.
        if matches!(
            records[lost],
            Record::Key(_) | Record::Bookmark(_) | Record::Queue(_)
        ) {
            continue;
        }
        let mut some = records.clone();
        let lost = some.remove(lost);
        let restored = restore(&*other, &some).await;
        assert!(restored.is_err(), "without {lost:?}");
        assert_kind(restored, ErrorKind::Invalid);
        assert_eq!(other.look(at(THEN)).await, crate::Stats::default());
    }
    let backwards: Vec<_> = records.iter().rev().cloned().collect();
    assert_kind(restore(&*other, &backwards).await, ErrorKind::Invalid);
    let twice = [&records[..1], &records[..]].concat();
    assert_kind(restore(&*other, &twice).await, ErrorKind::Invalid);
}

pub(super) async fn what_no_queue_dumps_is_invalid_and_leaves_nothing(bench: Bench) {
    let queue = lived_in(&bench).await;
    let records = dump(&*queue, at(THEN)).await;
    let other = bench.queue().await;
    for (what, spoil) in SPOILS {
        let mut some = records.clone();
        some.iter_mut().for_each(spoil);
        assert_ne!(some, records, "nothing is spoilt by {what}");
        let restored = restore(&*other, &some).await;
        assert!(restored.is_err(), "{what}");
        assert_kind(restored, ErrorKind::Invalid);
        assert_eq!(other.look(at(THEN)).await, crate::Stats::default());
    }
    let keys = records.iter().filter(|one| matches!(one, Record::Key(_)));
    let end = records.len() - 1;
    let key_twice = [
        &records[..end],
        &keys.cloned().collect::<Vec<_>>(),
        &records[end..],
    ]
    .concat();
    assert_kind(restore(&*other, &key_twice).await, ErrorKind::Invalid);
    let behind_the_end = [&records[..], &records[..1]].concat();
    let mut at_once = must("restore", transfer(&*other).restore().await);
    assert_kind(at_once.add(behind_the_end).await, ErrorKind::Invalid);
    drop(at_once);
    assert_eq!(other.look(at(THEN)).await, crate::Stats::default());
}

pub(super) async fn a_queue_in_use_takes_no_dump(bench: Bench) {
    let queue = lived_in(&bench).await;
    let records = dump(&*queue, at(THEN)).await;
    let other = bench.queue().await;
    let mut late = must("restore", transfer(&*other).restore().await);
    other.put(at(0), &["a"]).await;
    assert_kind(late.add(records.clone()).await, ErrorKind::Invalid);
    drop(late);
    assert_kind(restore(&*other, &records).await, ErrorKind::Invalid);
    assert_eq!(other.look(at(0)).await.ready, 1);
}

pub(super) async fn a_handle_from_before_a_restore_gives_batches_their_ids(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b"]).await;
    let batch = queue.take_up_to(at(0), 1).await.batch;
    let records = dump(&*queue, at(1)).await;
    let other = bench.queue().await;
    let (one, two) = (bench.another(&other).await, bench.another(&other).await);
    must("restore", restore(&*other, &records).await);
    let lease = one.take(at(1)).await;
    assert_eq!((lease.batch, lease.attempt), (batch, 2));
    two.finish_done(at(1), &lease).await;
    assert_eq!(two.look(at(1)).await.done, 1);
}

pub(super) async fn a_random_life_goes_on_in_other_queues(bench: Bench) {
    let options = random::narrow();
    for seed in random::seeds() {
        let reference = Arc::new(MemoryQueue::new(options));
        let queue = bench.harness.open(options).await;
        let carry_on = async |queue: Arc<dyn Queue>, now| {
            let memory = MemoryQueue::new(options);
            carry(&*queue, &memory, now).await;
            let other = bench.harness.open(options).await;
            carry(&memory, &*other, now).await;
            other
        };
        random::differential_across_queues(reference, queue, seed, STEPS, carry_on).await;
    }
}

/// Fewer than of a life in one queue: all of it is moved now and then.
const STEPS: u32 = 300;

/// What is wrong, and what makes a record so.
type Spoil = (&'static str, fn(&mut Record));

/// What could not come out again as it came in.
const SPOILS: [Spoil; 10] = [
    ("a position before its id", |record| {
        of(record, State::Ready, |one| {
            one.position = Some(Position::from_u64(0));
        });
    }),
    ("one position for two", |record| {
        of(record, State::Ready, |one| {
            one.position = Some(Position::from_u64(MOST));
        });
    }),
    ("more attempts than its batch has", |record| {
        of(record, State::InFlight, |one| one.entry.attempts += 1);
    }),
    ("a result of what is ready", |record| {
        of(record, State::Ready, |one| {
            one.entry.result = Some("7".into());
        });
    }),
    ("an error of what is done", |record| {
        of(record, State::Done, |one| {
            one.entry.error = Some("no".into());
        });
    }),
    ("a dead letter without its error", |record| {
        of(record, State::Dead, |one| one.entry.error = None);
    }),
    ("a time to live of what is dead", |record| {
        of(record, State::Dead, |one| one.expires_at = Some(at(9)));
    }),
    (
        "a batch that is offered from the beginning of time",
        |record| {
            if let Record::Batch(batch) = record {
                batch.offered_from = Some(Timestamp::EPOCH);
            }
        },
    ),
    ("requests behind the last position", |record| {
        if let Record::Queue(end) = record {
            end.last_position = Position::from_u64(0);
        }
    }),
    ("batches behind the last one", |record| {
        if let Record::Queue(end) = record {
            end.last_batch = BatchId::new(0, end.last_batch.halves().1);
        }
    }),
];

/// Changes a request in this state.
fn of(record: &mut Record, state: State, change: impl FnOnce(&mut StoredRequest)) {
    if let Record::Request(request) = record
        && request.entry.state == state
    {
        change(request);
    }
}
