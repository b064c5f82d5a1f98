//! How much memory a process has resident while its queue grows and while a large batch is handled.

use std::{num::NonZeroU32, time::Duration};

use batchyard::{
    Claim, NewRequest, Outcome, Page, Queue, Retries, Then, Timestamp, Update, testing::proof,
};

const REQUESTS: usize = 50_000;
const PAYLOAD_BYTES: usize = 4 << 10;
const MOST_GROWTH: u64 = 128 << 20;
/// How many small requests are queued before the depth counts as depth, and how many in the end.
const DEEP: [usize; 2] = [50_000, 200_000];
const MOST_GROWTH_BY_DEPTH: u64 = 64 << 20;

/// Resident bytes of this process.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages = pages.split(' ').nth(1).expect("a second field");
    pages.parse::<u64>().expect("a number") * 4096
}

/// The largest growth seen so far.
struct Watch {
    start: u64,
    most: u64,
}

impl Watch {
    fn begin() -> Self {
        Self {
            start: resident(),
            most: 0,
        }
    }

    fn look(&mut self, when: &str) {
        let grown = resident().saturating_sub(self.start);
        self.most = self.most.max(grown);
        println!("{when}: {} MiB above the start", grown >> 20);
    }
}

/// A batch of 50,000 requests of 4 KiB, then a queue of 200,000 small ones.
pub(crate) async fn stays_bounded(backend: &str, queue: &dyn Queue) {
    let batch = handles_a_large_batch(queue).await;
    let depth = grows_deep(queue).await;
    let measured = format!(
        "{} MiB more for 200 MiB in one batch, {} MiB more from {} to {} queued",
        batch >> 20,
        depth >> 20,
        DEEP[0],
        DEEP[1]
    );
    proof("G11", backend, measured, &[]);
    assert!(batch < MOST_GROWTH, "grew by {} MiB", batch >> 20);
    assert!(depth < MOST_GROWTH_BY_DEPTH, "grew by {} MiB", depth >> 20);
}

/// By how much memory grew at most.
async fn handles_a_large_batch(queue: &dyn Queue) -> u64 {
    let mut watch = Watch::begin();
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
    watch.most
}

/// By how much memory grew at most once the queue was deep.
async fn grows_deep(queue: &dyn Queue) -> u64 {
    let now = Timestamp::from_millis(1_700_000_100_000);
    let push = async |requests: usize| {
        for _ in 0..requests / 1000 {
            let page = (0..1000).map(|_| NewRequest::new(vec![7; 200])).collect();
            queue.push(now, page).await.expect("pushed");
        }
    };
    push(DEEP[0]).await;
    let mut watch = Watch::begin();
    push(DEEP[1] - DEEP[0]).await;
    watch.look("deep");
    let stats = queue.stats(now).await.expect("stats");
    assert_eq!(stats.ready, DEEP[1] as u64);
    watch.most
}
