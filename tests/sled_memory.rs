//! A batch of 50,000 requests of 4 KiB is handled in bounded memory. Alone in its process, because it
//! reads how much memory the process has resident.

#![cfg(all(feature = "sled", target_os = "linux"))]

use std::{num::NonZeroU32, time::Duration};

use batchyard::{
    Claim, NewRequest, Outcome, Page, Queue, Retries, SledQueue, Then, Timestamp, Update,
};

const REQUESTS: usize = 50_000;
const PAYLOAD_BYTES: usize = 4 << 10;
const MOST_GROWTH: u64 = 128 << 20;

/// Resident bytes of this process.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: u64 = pages
        .split(' ')
        .nth(1)
        .expect("a second field")
        .parse()
        .expect("a number");
    pages * 4096
}

/// The largest growth seen so far.
struct Watch {
    start: u64,
    most: u64,
}

impl Watch {
    fn look(&mut self, when: &str) {
        let grown = resident().saturating_sub(self.start);
        self.most = self.most.max(grown);
        println!("{when}: {} MiB above the start", grown >> 20);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_50_000_requests_of_4_kib_grows_memory_by_less_than_128_mib() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = SledQueue::open(folder.path().join("store"))
        .await
        .expect("opens");
    let mut watch = Watch {
        start: resident(),
        most: 0,
    };
    let now = Timestamp::from_millis(1_700_000_000_000);
    for page in 0..REQUESTS / 500 {
        let payload = |index: usize| {
            let mut bytes = vec![0; PAYLOAD_BYTES];
            fastrand::Rng::new().fill(&mut bytes);
            bytes[..8].copy_from_slice(&(page * 500 + index).to_be_bytes());
            NewRequest::new(bytes)
        };
        queue
            .push(now, (0..500).map(payload).collect())
            .await
            .expect("pushed");
    }
    watch.look("pushed");
    let claim = Claim {
        lease_duration: Duration::from_hours(1),
        ..Claim::new()
    };
    let lease = queue
        .claim(now, &claim)
        .await
        .expect("claimed")
        .expect("a batch");
    assert_eq!(lease.requests as usize, REQUESTS);
    watch.look("claimed");
    let (mut page, mut read) = (Page::first(), 0_usize);
    loop {
        let members = queue.read(&lease, page).await.expect("read");
        let Some(end) = members.last() else { break };
        page = page.after(end.position);
        for member in &members {
            assert_eq!(member.payload[..8], read.to_be_bytes());
            read += 1;
        }
        let outcomes = members
            .iter()
            .map(|member| (member.id, Outcome::result("ok")))
            .collect();
        let update = Update {
            outcomes,
            checkpoint: None,
            then: Then::Hold { until: lease.until },
        };
        queue.update(now, &lease, update).await.expect("recorded");
    }
    assert_eq!(read, REQUESTS);
    watch.look("read and recorded");
    let retries = Retries {
        at: now,
        max_attempts: NonZeroU32::MIN,
    };
    let finish = Then::Finish {
        rest: Outcome::done(),
        retries,
    };
    queue
        .update(now, &lease, Update::then(finish))
        .await
        .expect("finished");
    watch.look("finished");
    assert_eq!(queue.stats(now).await.expect("stats").done, REQUESTS as u64);
    queue.close().await.expect("closed");
    watch.look("closed");
    assert!(watch.most < MOST_GROWTH, "grew by {} MiB", watch.most >> 20);
}
