//! Moments of a store: dumps of what it held, read while windows of requests come and go.

use std::{collections::VecDeque, num::NonZeroU32, path::Path, time::Duration};

use batchyard::{
    Claim, ErrorKind, Lease, NewRequest, Outcome, Queue, QueueName, QueueOptions, Retries,
    SledQueue, SledStore, Store, Then, Timestamp, Update,
    transfer::{DumpFrom, Moment, Record},
};

#[cfg(feature = "faults")]
use crate::support::with_failpoints;
use crate::support::{self, NOW};

async fn open(path: &Path) -> (SledStore, SledQueue) {
    let store = SledStore::options().offer_held(false).open(path).await;
    let store = store.expect("opens, and holds as much as was written");
    let options = QueueOptions::default().retention(Duration::from_secs(40));
    let queue = store.queue_with(&QueueName::default(), options).await;
    (store, queue.expect("opens"))
}

/// The time of a step.
fn at(step: u64) -> Timestamp {
    NOW.after(Duration::from_secs(step))
}

async fn moment(store: &SledStore, now: Timestamp) -> Box<dyn Moment> {
    let moment = store.moment(now).await.expect("a moment");
    moment.expect("sled has them")
}

/// Where each page begins, and its records, as the queue is now.
async fn pages(queue: &SledQueue, now: Timestamp) -> Vec<(DumpFrom, Vec<Record>)> {
    let transfer = queue.transfer().expect("it can be dumped");
    let (mut pages, mut from) = (Vec::new(), Some(DumpFrom::Start));
    while let Some(at) = from {
        let page = transfer.dump(now, at).await.expect("a page");
        pages.push((at, page.records));
        from = page.next;
    }
    pages
}

/// What is changed while a moment is read in pages: requests are pushed, claimed, done, retried, rejected, cancelled,
/// redriven and purged, and results are forgotten.
async fn live(
    queue: &SledQueue,
    random: &mut fastrand::Rng,
    held: &mut VecDeque<Lease>,
    step: u64,
) {
    let admin = queue.admin().expect("it has one");
    let now = at(step);
    match random.u8(..10) {
        0..3 => {
            let many = random.usize(1..300);
            let requests = (0..many).map(|number| {
                // Some have parts.
                let bytes = if number % 100 == 7 { 150_000 } else { 700 };
                let request = NewRequest::new(vec![random.u8(..); bytes]);
                match random.u8(..12) {
                    0 => request.not_before(at(step + random.u64(1..30))),
                    1 => request.ttl(Duration::from_secs(random.u64(1..30))),
                    2 => request.idempotency_key(format!("{step}-{number}")),
                    _ => request,
                }
            });
            let requests: Vec<_> = requests.collect();
            queue.push(now, requests).await.expect("pushed");
        }
        3..6 => {
            let claim = Claim {
                max_requests: NonZeroU32::new(random.u32(1..500)).expect("one or more"),
                lease_duration: Duration::from_secs(10_000),
                ..Claim::new()
            };
            held.extend(queue.claim(now, &claim).await.expect("claims"));
        }
        6..9 => {
            let Some(lease) = held.pop_front() else {
                return;
            };
            let page = batchyard::Page {
                max_requests: NonZeroU32::new(40).expect("not zero"),
                ..batchyard::Page::first()
            };
            let members = queue.read(&lease, page).await.expect("reads");
            let outcomes = members.iter().map(|member| {
                let outcome = match random.u8(..4) {
                    0 => Outcome::retry("again"),
                    1 => Outcome::reject("never"),
                    2 => Outcome::result(vec![7; 90_000]),
                    _ => Outcome::done(),
                };
                (member.id, outcome)
            });
            let update = Update {
                outcomes: outcomes.collect(),
                checkpoint: Some(step.to_string().into()),
                then: Then::Finish {
                    rest: Outcome::done(),
                    retries: Retries {
                        at: at(step + 5),
                        max_attempts: NonZeroU32::new(3).expect("not zero"),
                    },
                },
            };
            queue.update(now, &lease, update).await.expect("ends");
        }
        _ => {
            let dead = batchyard::List::new(batchyard::State::Dead);
            let dead = admin.list(now, &dead).await.expect("lists");
            let dead: Vec<_> = dead.iter().map(|entry| entry.id).collect();
            let (back, gone) = dead.split_at(dead.len() / 2);
            admin.redrive(now, back).await.expect("redrives");
            admin.purge(now, gone).await.expect("purges");
            let ready = batchyard::List::new(batchyard::State::Ready);
            let ready = admin.list(now, &ready).await.expect("lists");
            let some: Vec<_> = ready.iter().map(|entry| entry.id).step_by(9).collect();
            admin.cancel(now, &some).await.expect("cancels");
        }
    }
}

#[test]
fn what_a_moment_says_is_what_was_there_whatever_comes_and_goes() {
    #[cfg(feature = "faults")]
    batchyard::fault::begin();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut random = support::random();
        let folder = tempfile::tempdir().expect("a folder");
        let (store, queue) = open(&folder.path().join("store")).await;
        let (mut held, mut step) = (VecDeque::new(), 0);
        let mut pages_read = 0;
        for _ in 0..4 {
            for _ in 0..25 {
                step += 1;
                live(&queue, &mut random, &mut held, step).await;
            }
            // Now and then at the same time as another.
            let (one, two) = (
                moment(&store, at(step)).await,
                moment(&store, at(step)).await,
            );
            let then = pages(&queue, at(step)).await;
            let mut later = moment(&store, at(step)).await;
            let mut later_then = then.clone();
            for (number, (from, records)) in then.iter().enumerate() {
                for _ in 0..6 {
                    step += 1;
                    live(&queue, &mut random, &mut held, step).await;
                }
                let page = one.dump(&queue.name(), *from).await.expect("a page");
                assert!(page.records == *records, "step {step}, from {from:?}");
                if number % 3 == 1 {
                    drop(later);
                    later = moment(&store, at(step)).await;
                    later_then = pages(&queue, at(step)).await;
                }
                pages_read += 1;
            }
            for (from, records) in &then {
                let page = two.dump(&queue.name(), *from).await.expect("a page");
                assert!(page.records == *records, "at the end, from {from:?}");
            }
            for (from, records) in &later_then {
                let page = later.dump(&queue.name(), *from).await.expect("a page");
                assert!(page.records == *records, "later, from {from:?}");
            }
        }
        assert!(pages_read > 20, "{pages_read} pages");
        // All of it adds up when every entry is counted.
        drop(queue);
        store.close().await.expect("closes");
        drop(store);
        let (store, queue) = open(&folder.path().join("store")).await;
        let stats = queue.stats(at(step)).await.expect("reads");
        assert!(stats.adds_up(), "{stats:?}");
        store.close().await.expect("closes");
    });
}

#[cfg(feature = "faults")]
#[test]
fn what_is_not_saved_for_a_moment_is_seen() {
    let test = "moments::what_a_moment_says_is_what_was_there_whatever_comes_and_goes";
    let folder = tempfile::tempdir().expect("a folder");
    let (ended, said) = with_failpoints(test, "sled.save=return(skip)", folder.path());
    assert!(!ended.success(), "{said}");
    let is_other = said.contains("assertion failed: page.records");
    // What fits together no longer is taken for damage, whichever part of it was not saved.
    let is_damaged = said.contains("a page: Error { kind: Corrupt");
    assert!(is_other || is_damaged, "{said}");
}

/// A life that is killed when the first window is dropped that a moment still needs.
#[cfg(feature = "faults")]
#[test]
#[ignore = "it is started by another test"]
fn lives_until_a_window_is_dropped() {
    batchyard::fault::begin();
    let Some(store) = std::env::var_os("STORE") else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (store, queue) = open(Path::new(&store)).await;
        support::push(&queue, (0..3_000).map(|_| vec![7; 700])).await;
        let _moment = moment(&store, at(0)).await;
        loop {
            let lease = queue.claim(at(0), &Claim::new()).await.expect("claims");
            let lease = lease.expect("the point is passed before the end");
            let finish = Then::Finish {
                rest: Outcome::done(),
                retries: Retries {
                    at: at(1),
                    max_attempts: NonZeroU32::MIN,
                },
            };
            let ended = queue.update(at(0), &lease, Update::then(finish)).await;
            ended.expect("ends");
            // A list is of what is settled.
            let done = batchyard::List::new(batchyard::State::Done);
            let admin = queue.admin().expect("it has one");
            admin.list(at(0), &done).await.expect("lists");
        }
    });
}

#[cfg(feature = "faults")]
#[tokio::test]
async fn a_kill_while_a_moment_is_held_costs_nothing_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store");
    for kill in ["sled.dropped=return(kill)", "sled.save=5*off->return(kill)"] {
        let test = "moments::lives_until_a_window_is_dropped";
        let (ended, said) = with_failpoints(test, kill, &path);
        assert!(!ended.success(), "{kill}: {said}");
        assert!(!said.contains("panicked"), "{kill}: {said}");
        assert!(path.join("moments").is_dir(), "{kill}: none was held");
        // After such an end every entry is counted.
        let (store, queue) = open(&path).await;
        assert!(
            !path.join("moments").exists(),
            "{kill}: what was saved is left"
        );
        let stats = queue.stats(at(0)).await.expect("reads");
        assert!(stats.adds_up() && stats.pushed > 0, "{stats:?}");
        drop(queue);
        store.close().await.expect("closes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_gives_way_when_the_disk_gets_low_and_pushes_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = rustix::fs::statvfs(folder.path()).expect("a file system");
    let free = disk.f_bavail * disk.f_frsize;
    // Enough for pushes, too little for moments beside them.
    let options = SledStore::options().low_space_mark(free / 4 * 3);
    let store = options.open(folder.path().join("store")).await;
    let store = store.expect("opens");
    let queue = store.queue(&QueueName::default()).await.expect("a queue");
    support::push(&*queue, [vec![1], vec![2]]).await;
    let moment = moment(&store, NOW).await;
    support::push(&*queue, [vec![3]]).await;
    let error = moment.dump(&QueueName::default(), DumpFrom::Start).await;
    let error = error.expect_err("it was given up");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("low-space mark"), "{error}");
    let stats = queue.stats(NOW).await.expect("reads");
    assert_eq!(stats.ready, 3);
    store.close().await.expect("closes");
}
