//! Requests come and go by the thousand, and lie in many trees: what is there is what should be.

use std::{collections::VecDeque, num::NonZeroU32, path::Path, time::Duration};

use batchyard::{
    Claim, Lease, NewRequest, Outcome, Page, Queue, QueueName, QueueOptions, Retries, SledQueue,
    SledStore, Store, Then, Update,
};

use crate::support::{self, NOW};

async fn open(path: &Path, options: QueueOptions) -> (SledStore, SledQueue) {
    // Leases are kept across a close and an open.
    let store = SledStore::options().offer_held(false).open(path).await;
    let store = store.expect("opens, and holds as much as was written");
    let queue = store.queue_with(&QueueName::default(), options).await;
    (store, queue.expect("opens"))
}

/// A payload that is told from all others by its number.
fn payload(number: u64) -> Vec<u8> {
    let bytes = usize::try_from(700 + number * 31 % 324).expect("about 1 KiB");
    let mut payload = vec![number.to_le_bytes()[0]; bytes];
    payload[..8].copy_from_slice(&number.to_be_bytes());
    payload
}

/// The payloads of a batch, in order.
async fn read(queue: &SledQueue, lease: &Lease) -> Vec<Vec<u8>> {
    let (mut page, mut payloads) = (Page::first(), Vec::new());
    loop {
        let members = queue.read(lease, page).await.expect("read");
        let Some(last) = members.last() else {
            return payloads;
        };
        page = page.after(last.position);
        payloads.extend(members.iter().map(|member| member.payload.to_vec()));
    }
}

/// Batches that are held end in any order, and some of their members come back.
async fn come_and_go(options: QueueOptions) {
    let mut random = support::random();
    let folder = tempfile::tempdir().expect("a folder");
    let (mut store, mut queue) = open(folder.path(), options).await;
    let (mut pushed, mut done) = (0_u64, 0_u64);
    let mut ready: VecDeque<Vec<u8>> = VecDeque::new();
    let mut held: Vec<(Lease, Vec<Vec<u8>>)> = Vec::new();
    for _ in 0..120 {
        let filling = pushed < 8_000;
        match random.u8(..10) {
            0..4 if filling => {
                let numbers = pushed..pushed + random.u64(1..400);
                pushed = numbers.end;
                ready.extend(numbers.clone().map(payload));
                support::push(&queue, numbers.map(payload)).await;
            }
            4..7 if held.len() < 4 => {
                let claim = Claim {
                    max_requests: NonZeroU32::new(random.u32(1..900)).expect("one or more"),
                    lease_duration: Duration::from_hours(1),
                    ..Claim::new()
                };
                if let Some(lease) = queue.claim(NOW, &claim).await.expect("claimed") {
                    let members: Vec<_> = ready.drain(..lease.requests as usize).collect();
                    held.push((lease, members));
                }
            }
            7..9 if !held.is_empty() => {
                let (lease, members) = held.swap_remove(random.usize(..held.len()));
                assert!(read(&queue, &lease).await == members);
                let back = if random.bool() { members.len() / 3 } else { 0 };
                let page = Page {
                    max_requests: NonZeroU32::new(u32::try_from(back.max(1)).expect("few"))
                        .expect("one or more"),
                    ..Page::first()
                };
                let first = queue.read(&lease, page).await.expect("read");
                let retry = first[..back].iter().map(|member| {
                    let error = "again".to_owned();
                    let not_before = None;
                    (member.id, Outcome::Retry { error, not_before })
                });
                let (at, max_attempts) = (NOW, NonZeroU32::MAX);
                let update = Update {
                    outcomes: retry.collect(),
                    checkpoint: None,
                    then: Then::Finish {
                        rest: Outcome::done(),
                        retries: Retries { at, max_attempts },
                    },
                };
                queue.update(NOW, &lease, update).await.expect("finished");
                done += (members.len() - first[..back].len()) as u64;
                ready.extend(first[..back].iter().map(|member| member.payload.to_vec()));
            }
            9 => {
                store.close().await.expect("closed");
                (store, queue) = open(folder.path(), options).await;
            }
            _ => {}
        }
        let stats = queue.stats(NOW).await.expect("stats");
        assert!(stats.adds_up(), "{stats:?}");
        assert_eq!((stats.ready, stats.done), (ready.len() as u64, done));
    }
    for (lease, members) in &held {
        assert!(read(&queue, lease).await == *members);
    }
    let rest = queue.claim(NOW, &Claim::new()).await.expect("claimed");
    if let Some(lease) = rest {
        assert!(ready == read(&queue, &lease).await);
    }
    store.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_many_trees_come_and_go_in_order_when_nothing_is_kept() {
    come_and_go(QueueOptions::default().retention(Duration::ZERO)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_many_trees_come_and_go_in_order_when_results_are_kept() {
    come_and_go(QueueOptions::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_of_many_trees_and_several_queues_are_whole_after_an_open() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = SledStore::open(folder.path()).await.expect("opens");
    let names: Vec<QueueName> = ["a", "b", "c"]
        .map(|name| name.parse().expect("a name"))
        .into();
    for round in 0..3 {
        for name in &names {
            let queue = store.queue(name).await.expect("opens");
            let numbers = round * 2_000..(round + 1) * 2_000;
            let requests = numbers.map(|number| NewRequest::new(payload(number)));
            queue.push(NOW, requests.collect()).await.expect("pushed");
        }
    }
    store.close().await.expect("closed");
    let store = SledStore::open(folder.path()).await.expect("opens");
    for name in &names {
        let options = QueueOptions::default();
        let queue = store.queue_with(name, options).await.expect("opens");
        let lease = queue.claim(NOW, &Claim::new()).await.expect("claimed");
        let payloads = read(&queue, &lease.expect("a batch")).await;
        assert!(payloads.into_iter().eq((0..6_000).map(payload)), "{name:?}");
    }
    store.close().await.expect("closed");
}
