//! How often the disk is read for what many requests share.

use std::num::NonZeroU32;

use super::{Rig, wait};
use crate::{
    batch::{Claim, Outcome, Page, Retries, Then, Update},
    clock::Timestamp,
    queue::{
        List, Queue, QueueOptions,
        journal::{JournalOptions, moment::Still, simulated::SimDisk},
        transfer::{DumpFrom, Moment},
    },
    request::{NewRequest, QueueName, RequestId, State},
};

const REQUESTS: u32 = 600;
const BATCH: u32 = 100;

fn now() -> Timestamp {
    Timestamp::from_millis(5000)
}

/// A store of requests that are done, in batches, with results of their own, which were recorded in two pages a batch:
/// those at even places and then those at odd ones, so that each page goes from the first to the last.
fn done(disk: &SimDisk) -> Rig {
    let queues = QueueOptions::default().retention(std::time::Duration::from_secs(3600));
    let options = JournalOptions::default().segment_bytes(1 << 20);
    let rig = Rig::open_with(disk, options.queues(queues)).unwrap();
    let claim = Claim {
        max_requests: NonZeroU32::new(BATCH).unwrap(),
        ..Claim::new()
    };
    wait(&rig.core, async {
        for _ in 0..REQUESTS / 50 {
            let requests = (0..50).map(|_| NewRequest::new(vec![7; 200])).collect();
            rig.queue.push(now(), requests).await.unwrap();
        }
        while let Some(lease) = rig.queue.claim(now(), &claim).await.unwrap() {
            let members = rig.queue.read(&lease, Page::first()).await.unwrap();
            assert_eq!(members.len(), BATCH as usize);
            for first in [0, 1] {
                let members = members.iter().skip(first).step_by(2);
                let result = |id: RequestId| Outcome::Done {
                    result: Some(id.to_string().into()),
                };
                let update = Update {
                    outcomes: members.map(|one| (one.id, result(one.id))).collect(),
                    ..Update::then(Then::Hold { until: lease.until })
                };
                rig.queue.update(now(), &lease, update).await.unwrap();
            }
            let finish = Then::Finish {
                rest: Outcome::done(),
                retries: Retries {
                    at: now(),
                    max_attempts: NonZeroU32::MIN,
                },
            };
            let update = Update::then(finish);
            rig.queue.update(now(), &lease, update).await.unwrap();
        }
    });
    rig
}

/// How many runs of requests, and pages of outcomes, there are to read.
fn shared(rig: &Rig) -> usize {
    let inner = rig.core.lock().unwrap();
    let queue = inner.state.queues.values().next().unwrap();
    let ended = queue.stored.ended.values();
    queue.stored.stretches.len() + ended.map(|ended| ended.pages.len()).sum::<usize>()
}

/// The results, by how they were read, and how often that read the disk.
fn read(disk: &SimDisk, rig: &Rig, how: &str, page: u32) -> (Vec<String>, usize) {
    let before = disk.looks();
    let page = NonZeroU32::new(page).unwrap();
    let admin = rig.queue.admin().unwrap();
    let mut entries = Vec::new();
    wait(&rig.core, async {
        match how {
            "list" => {
                let mut query = List::new(State::Done);
                query.max_requests = page;
                loop {
                    let listed = admin.list(now(), &query).await.unwrap();
                    let Some(last) = listed.last() else { break };
                    query = query.after(last.id);
                    entries.extend(listed);
                }
            }
            "results" => {
                let mut after = None;
                loop {
                    let results = admin.results(now(), after, page).await.unwrap();
                    entries.extend(results.entries);
                    match results.next {
                        None => break,
                        next => after = next,
                    }
                }
            }
            _ => {
                let moment = Still::of(&rig.queue.keeper, now()).await.unwrap();
                let mut from = Some(DumpFrom::Start);
                while let Some(at) = from {
                    let page = moment.dump(&QueueName::default(), at).await.unwrap();
                    from = page.next;
                    for record in page.records {
                        if let crate::queue::transfer::Record::Request(request) = record {
                            entries.push(request.entry);
                        }
                    }
                }
            }
        }
    });
    entries.sort_by_key(|entry| entry.id);
    let told = entries.iter().map(|entry| {
        let result = entry.result.as_deref().unwrap_or_default();
        assert_eq!(result, entry.id.to_string().as_bytes());
        entry.id.to_string()
    });
    (told.collect(), disk.looks() - before)
}

/// What a page needs is read once for it, however many requests of the page need it.
#[test]
fn what_requests_share_is_read_once_a_page() {
    let disk = SimDisk::new();
    let rig = done(&disk);
    let shared = shared(&rig);
    for how in ["list", "results", "dump"] {
        let (all, reads) = read(&disk, &rig, how, 1000);
        assert_eq!(all.len(), REQUESTS as usize, "{how}");
        let most = match how {
            "list" => shared,
            // That there are no more is found behind the last.
            "results" => shared + 1,
            // It reads what there is, and in which order that was settled.
            _ => 2 * shared + 1,
        };
        assert!(reads <= most, "{how}: {reads} reads for {shared} to read");
    }
}

/// Pages begin in the middle of what is shared: that is read once more.
#[test]
fn small_pages_read_what_they_share_once_each() {
    let disk = SimDisk::new();
    let rig = done(&disk);
    let shared = shared(&rig);
    for how in ["list", "results"] {
        let (all, reads) = read(&disk, &rig, how, 50);
        assert_eq!(all.len(), REQUESTS as usize, "{how}");
        // A run of requests and two pages of outcomes, on both sides of where one ends.
        let most = shared + 6 * (REQUESTS as usize / 50);
        assert!(reads <= most, "{how}: {reads} reads for {shared} to read");
    }
}
