//! What is beside a restored queue in its store: what did not end, and other queues; and dumps that are whole.

use std::{num::NonZeroU32, time::Duration};

use batchyard::{
    Claim, ErrorKind, MemoryQueue, NewRequest, Outcome, Position, Queue, QueueName, QueueOptions,
    Retries, SledStore, Store, Then, Timestamp, Update,
    transfer::{DumpFrom, Record, Transfer},
};

use crate::support::NOW;

async fn dump(queue: &dyn Transfer) -> Vec<Record> {
    dump_at(queue, NOW).await
}

async fn dump_at(queue: &dyn Transfer, now: Timestamp) -> Vec<Record> {
    let (mut records, mut from) = (Vec::new(), Some(DumpFrom::Start));
    while let Some(at) = from {
        let page = queue.dump(now, at).await.expect("dumped");
        records.extend(page.records);
        from = page.next;
    }
    records
}

/// Some in a batch, some ready, one of them with parts.
async fn filled() -> Vec<Record> {
    let queue = MemoryQueue::new(QueueOptions::default());
    let requests = |count: u8| (0..count).map(|number| NewRequest::new(vec![number; 2_000]));
    let pushed = queue.push(NOW, requests(3).collect()).await;
    pushed.expect("pushed");
    let lease = queue.claim(NOW, &Claim::new()).await.expect("claimed");
    assert_eq!(lease.map(|lease| lease.requests), Some(3));
    let keyed = |request: NewRequest| request.idempotency_key("one of many");
    let pushed = queue.push(NOW, requests(1).map(keyed).collect()).await;
    pushed.expect("pushed");
    dump(&queue).await
}

#[tokio::test]
async fn a_repair_leaves_out_what_a_restore_had_not_ended() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, mended) = (folder.path().join("store"), folder.path().join("mended"));
    let store = SledStore::open(&path).await.expect("opens");
    let queue = store.queue(&QueueName::default()).await.expect("opens");
    queue.push(NOW, Vec::new()).await.expect("pushed");
    let records = filled().await;
    let (_, part) = records.split_last().expect("an end");
    let mut restore = queue
        .transfer()
        .expect("transfers")
        .restore()
        .await
        .expect("begun");
    restore.add(part.to_vec()).await.expect("taken in");
    drop(restore);
    drop(queue);
    store.close().await.expect("closed");

    let repaired = SledStore::repair(&path, &mended).await.expect("repaired");
    assert_eq!(
        (repaired.queues, repaired.held, repaired.damaged),
        (1, 0, 0)
    );
    for path in [path, mended] {
        let store = SledStore::open(&path).await.expect("opens");
        let queue = store.queue(&QueueName::default()).await.expect("opens");
        let mut restore = queue
            .transfer()
            .expect("transfers")
            .restore()
            .await
            .expect("begun");
        restore.add(records.clone()).await.expect("taken in");
        drop(restore);
        assert_eq!(dump(queue.transfer().expect("transfers")).await, records);
        store.close().await.expect("closed");
    }
}

#[tokio::test]
async fn what_a_restore_left_is_cleared_in_slices_with_other_verbs_between_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let memory = MemoryQueue::new(QueueOptions::default());
    let keyed = |number: u32| NewRequest::new("a").idempotency_key(number.to_string());
    let pushed = memory.push(NOW, (0..3_000).map(keyed).collect()).await;
    pushed.expect("pushed");
    let records = dump(&memory).await;
    let (_, part) = records.split_last().expect("an end");

    let store = SledStore::open(folder.path()).await.expect("opens");
    let queue = store.queue(&QueueName::default()).await.expect("opens");
    let transfer = queue.transfer().expect("transfers");
    let mut left = transfer.restore().await.expect("begun");
    left.add(part.to_vec()).await.expect("taken in");
    let second = transfer.restore().await.err().map(|error| error.kind());
    assert_eq!(second, Some(ErrorKind::Invalid), "it has not ended yet");
    drop(left);

    // Each slice is a group of its own: the writer takes what waits between two of them.
    let before = store.sync_count();
    let mut restore = transfer.restore().await.expect("begun");
    let groups = store.sync_count() - before;
    assert!(groups >= 6, "{groups} groups for 6,000 entries and more");
    restore.add(records.clone()).await.expect("taken in");
    drop(restore);
    assert_eq!(dump(transfer).await, records);
    store.close().await.expect("closed");
}

#[tokio::test]
async fn queues_that_were_restored_and_queues_made_later_keep_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let name = |name: &str| name.parse::<QueueName>().expect("a name");
    let records = filled().await;
    for round in 0..3 {
        let store = SledStore::open(folder.path()).await.expect("opens");
        let restored = store
            .queue(&name(&format!("restored-{round}")))
            .await
            .expect("opens");
        let mut restore = restored
            .transfer()
            .expect("transfers")
            .restore()
            .await
            .expect("begun");
        let second = restored.transfer().expect("transfers").restore().await;
        assert_eq!(
            second.err().map(|error| error.kind()),
            Some(ErrorKind::Invalid)
        );
        restore.add(records.clone()).await.expect("taken in");
        drop(restore);
        let pushed = store
            .queue(&name(&format!("pushed-{round}")))
            .await
            .expect("opens");
        pushed
            .push(NOW, vec![NewRequest::new("mine")])
            .await
            .expect("pushed");
        store.close().await.expect("closed");
        let store = SledStore::open(folder.path()).await.expect("opens");
        for earlier in 0..=round {
            let restored = store
                .queue(&name(&format!("restored-{earlier}")))
                .await
                .expect("opens");
            assert_eq!(dump(restored.transfer().expect("transfers")).await, records);
            let pushed = store
                .queue(&name(&format!("pushed-{earlier}")))
                .await
                .expect("opens");
            let stats = pushed.stats(NOW).await.expect("stats");
            assert_eq!((stats.pushed, stats.ready), (1, 1));
        }
        store.close().await.expect("closed");
    }
}

#[tokio::test]
async fn a_dump_whose_positions_can_not_be_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = SledStore::open(folder.path()).await.expect("opens");
    let queue = store.queue(&QueueName::default()).await.expect("opens");
    let records = filled().await;
    let ready = records[3].clone();
    let Record::Request(ready) = ready else {
        panic!("four requests come first");
    };
    let behind = Position::from_u64(ready.entry.id.as_u64() + 1);
    let cases = [
        (Position::from_u64(1), "stands where it can't"),
        (ready.position.expect("a position"), "stands where it can't"),
        (behind, "not apart"),
    ];
    for (position, why) in cases {
        let mut records = records.clone();
        for record in &mut records[2..] {
            match record {
                Record::Request(member) if member.member.is_some() => {
                    member.position = Some(position);
                }
                Record::Queue(end) => end.last_position = behind,
                _ => {}
            }
        }
        let restore = queue.transfer().expect("transfers").restore().await;
        let taken = restore.expect("begun").add(records).await;
        let error = taken.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(why), "{error}");
    }
    assert_eq!(queue.stats(NOW).await.expect("stats").pushed, 0);
    store.close().await.expect("closed");
}

/// Members of a large batch are settled between other calls, here after what is kept of them is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_made_while_a_batch_is_settled_is_taken_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let retention = Duration::from_secs(1);
    let options = QueueOptions::default().retention(retention);
    let store = SledStore::open(folder.path()).await.expect("opens");
    for round in 0..200_u32 {
        let name = format!("round-{round}").parse().expect("a name");
        let queue = store.queue_with(&name, options).await.expect("opens");
        let requests = (0..600).map(|_| NewRequest::new("a")).collect();
        queue.push(NOW, requests).await.expect("pushed");
        let lease = queue.claim(NOW, &Claim::new()).await.expect("claims");
        let retries = Retries {
            at: NOW,
            max_attempts: NonZeroU32::MIN,
        };
        let rest = Outcome::result("one of many");
        let finish = Update::then(Then::Finish { rest, retries });
        let ended = queue.update(NOW, &lease.expect("a batch"), finish).await;
        ended.expect("ended");
        // At another moment of the settling each time.
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        let later = NOW.after(2 * retention);
        let records = dump_at(queue.transfer().expect("transfers"), later).await;
        let memory = MemoryQueue::new(options);
        let restore = memory.transfer().expect("transfers").restore().await;
        let taken = restore.expect("begun").add(records).await;
        taken.unwrap_or_else(|error| panic!("round {round}: {error}"));
    }
    store.close().await.expect("closed");
}
