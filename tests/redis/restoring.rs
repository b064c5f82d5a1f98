//! Restores that do not end, or that others get in the way of.

use batchyard::{
    Claim, ErrorKind, MemoryQueue, NewRequest, Queue, QueueOptions,
    transfer::{DumpFrom, Record, Transfer},
};

use crate::server::Server;

async fn dump(queue: &MemoryQueue) -> Vec<Record> {
    let now = queue.now();
    let (mut records, mut from) = (Vec::new(), Some(DumpFrom::Start));
    while let Some(at) = from {
        let page = queue.dump(now, at).await.unwrap();
        records.extend(page.records);
        from = page.next;
    }
    records
}

/// Some ready, some members of a batch.
async fn filled() -> MemoryQueue {
    let queue = MemoryQueue::new(QueueOptions::default());
    let requests =
        |count: u8| (0..count).map(|n| NewRequest::new(vec![n]).idempotency_key(n.to_string()));
    let now = queue.now();
    queue.push(now, requests(3).collect()).await.unwrap();
    queue.claim(now, &Claim::new()).await.unwrap().unwrap();
    queue.push(now, requests(9).collect()).await.unwrap();
    queue
}

#[tokio::test]
async fn what_a_restore_left_that_did_not_end_goes_with_the_next() {
    let Some(server) = Server::start() else {
        return;
    };
    let queue = server.queue("left").await;
    let records = dump(&filled().await).await;
    let (_, part) = records.split_last().unwrap();
    let mut first = queue.restore().await.unwrap();
    first.add(part.to_vec()).await.unwrap();
    let keys = async |of: &str| {
        let pattern = format!("batchyard:{{left}}:{of}*");
        let mut keys: Vec<String> = server.command(&["KEYS", &pattern]).await;
        keys.retain(|key| !key.contains(":reply:"));
        keys.len()
    };
    assert_eq!(keys("payload:").await, 9);
    assert!(keys("restore:").await > 5);

    // Whoever begins anew has the queue for itself, and nothing of before is in it.
    let mut second = queue.restore().await.unwrap();
    let late = first.add(records[records.len() - 1..].to_vec()).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Invalid);
    let empty = MemoryQueue::new(QueueOptions::default());
    second.add(dump(&empty).await).await.unwrap();
    assert_eq!(
        queue.stats(queue.now()).await.unwrap(),
        batchyard::Stats::default()
    );
    assert_eq!(keys("").await, 1, "the state alone");

    // Nor is what the queue itself holds taken for something that was left.
    let mut third = queue.restore().await.unwrap();
    third.add(part.to_vec()).await.unwrap();
    queue
        .push(queue.now(), vec![NewRequest::new("mine")])
        .await
        .unwrap();
    let used = third.add(records[records.len() - 1..].to_vec()).await;
    assert_eq!(used.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(
        queue.restore().await.err().unwrap().kind(),
        ErrorKind::Invalid
    );
    assert_eq!((keys("restore:").await, keys("payload:").await), (0, 1));
}
