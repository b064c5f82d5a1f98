//! A queue's life with every verb in it, which answers the same each time, and how to bring any life to an end.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    time::Duration,
};

use batchyard::{
    BatchId, Bookmark, Claim, Lease, List, Member, NewRequest, Outcome, Page, Queue, QueueOptions,
    RedisQueue, RequestId, Result, Retries, State, Then, Timestamp, Update,
    transfer::{DumpFrom, Record, Transfer},
};
use futures_util::future::{join_all, try_join_all};

use crate::differential::{formed, plain};

/// How many requests a whole life pushes.
pub(crate) const REQUESTS: u64 = 15;

/// Which of so many places to try: one of `stride`, others with another seed; more of them with `BATCHYARD_LONG`,
/// all with `BATCHYARD_STRIDE=1`.
pub(crate) fn chosen(places: usize, stride: usize) -> Vec<usize> {
    let number = |name| {
        env::var(name)
            .ok()
            .map(|value| value.parse::<usize>().unwrap())
    };
    let is_long = env::var("BATCHYARD_LONG").is_ok();
    let stride = if is_long { stride.div_ceil(6) } else { stride };
    let stride = number("BATCHYARD_STRIDE").unwrap_or(stride);
    let seed = number("BATCHYARD_SEED").unwrap_or(1);
    println!("seed {seed}");
    (seed % stride..places).step_by(stride).collect()
}

/// When every life begins.
pub(crate) fn start() -> Timestamp {
    Timestamp::from_millis(1_700_000_000_000)
}

pub(crate) fn seconds(after: u64) -> Timestamp {
    start().after(Duration::from_secs(after))
}

/// What was done is kept to the end of the test.
pub(crate) fn options() -> QueueOptions {
    QueueOptions::default().retention(Duration::from_hours(10_000))
}

pub(crate) fn keyed(part: &str, count: usize) -> Vec<NewRequest> {
    let request = |n| NewRequest::new(format!("{part} {n}")).idempotency_key(format!("{part}-{n}"));
    (0..count).map(request).collect()
}

/// The pushes of a life: each has a name, and keys.
pub(crate) fn pushes() -> BTreeMap<&'static str, Vec<NewRequest>> {
    let mut first = keyed("first", 6);
    first[4] = first[4].clone().not_before(seconds(20));
    first[5] = first[5].clone().ttl(Duration::from_secs(5));
    BTreeMap::from([
        ("first", first),
        ("marked", keyed("marked", 2)),
        ("one", keyed("one", 1)),
        ("two", keyed("two", 2)),
        ("three", keyed("three", 3)),
        ("last", keyed("last", 1)),
    ])
}

pub(crate) fn finish(rest: Outcome) -> Update {
    Update::then(Then::Finish {
        rest,
        retries: retries(),
    })
}

fn retries() -> Retries {
    Retries {
        at: seconds(8),
        max_attempts: 9.try_into().unwrap(),
    }
}

/// What a life was answered, call by call, but for what differs from one queue to the next.
#[derive(Debug, Default)]
pub(crate) struct Life {
    pub(crate) answers: Vec<String>,
}

impl Life {
    fn note(&mut self, what: &str, answer: &impl std::fmt::Debug) {
        self.answers.push(format!("{what}: {answer:?}"));
    }

    fn note_lease(&mut self, lease: &Lease) {
        let plain = (
            formed(lease.batch),
            lease.parent.map(formed),
            (lease.attempt, lease.requests, lease.unsettled, lease.bytes),
            (&lease.checkpoint, &lease.context, lease.until),
        );
        self.note("claim", &plain);
    }

    /// Lives through it all: every verb, every way to end a batch, administration, a dump and a restore.
    pub(crate) async fn live(&mut self, queue: &RedisQueue, copy: &RedisQueue) -> Result<()> {
        let mut new = pushes();
        let mut take = |name| new.remove(name).unwrap();
        let pushed = queue.push(start(), take("first")).await?;
        self.note("push", &pushed);
        let bookmark = Bookmark {
            source: "input".into(),
            value: "line 2".into(),
        };
        self.note(
            "push from",
            &queue.push_from(start(), take("marked"), bookmark).await?,
        );
        self.note("bookmark", &queue.bookmark("input").await?);
        let gathered = [take("one"), take("two"), take("three")];
        let gathered = join_all(gathered.map(|one| queue.push(seconds(1), one))).await;
        for answer in gathered {
            self.note("gathered push", &answer?);
        }
        self.note("stats", &queue.stats(seconds(2)).await?);

        self.hold_and_release(queue).await?;
        self.split(queue).await?;
        self.administer(queue, &pushed.iter().map(|one| one.id).collect::<Vec<_>>())
            .await?;

        self.note("push", &queue.push(seconds(30), take("last")).await?);
        self.move_to(queue, copy).await?;
        self.note("stats", &queue.stats(seconds(31)).await?);
        self.note("stats of the copy", &copy.stats(seconds(31)).await?);
        Ok(())
    }

    async fn claim(
        &mut self,
        queue: &RedisQueue,
        at: Timestamp,
        most: u32,
    ) -> Result<(Lease, Vec<Member>)> {
        let claim = Claim {
            max_requests: most.try_into().unwrap(),
            context: "context".into(),
            ..Claim::new()
        };
        let lease = queue.claim(at, &claim).await?.expect("some are ready");
        self.note_lease(&lease);
        let members = queue.read(&lease, Page::first()).await?;
        self.note("read", &members);
        Ok((lease, members))
    }

    async fn hold_and_release(&mut self, queue: &RedisQueue) -> Result<()> {
        let (lease, members) = self.claim(queue, seconds(2), 4).await?;
        let held = Update {
            outcomes: vec![
                (members[0].id, Outcome::result("42")),
                (members[1].id, Outcome::retry("busy")),
            ],
            checkpoint: Some("half".into()),
            ..Update::then(Then::Hold { until: seconds(90) })
        };
        self.note("hold", &queue.update(seconds(3), &lease, held).await?);
        let release = Update::then(Then::Release);
        self.note("release", &queue.update(seconds(3), &lease, release).await?);
        let (lease, members) = self.claim(queue, seconds(4), 4).await?;
        let defer = Update {
            outcomes: vec![(members[2].id, Outcome::reject("no"))],
            ..Update::then(Then::Defer { until: seconds(6) })
        };
        self.note("defer", &queue.update(seconds(4), &lease, defer).await?);
        let (lease, _) = self.claim(queue, seconds(6), 4).await?;
        self.note(
            "finish",
            &queue
                .update(seconds(7), &lease, finish(Outcome::done()))
                .await?,
        );
        Ok(())
    }

    async fn split(&mut self, queue: &RedisQueue) -> Result<()> {
        let (lease, _) = self.claim(queue, seconds(9), 4).await?;
        let split = Update::then(Then::Split { retries: retries() });
        self.note("split", &queue.update(seconds(9), &lease, split).await?);
        for rest in [Outcome::done(), Outcome::retry("again")] {
            let (half, _) = self.claim(queue, seconds(10), 4).await?;
            self.note(
                "finish",
                &queue.update(seconds(10), &half, finish(rest)).await?,
            );
        }
        Ok(())
    }

    async fn administer(&mut self, queue: &RedisQueue, ids: &[RequestId]) -> Result<()> {
        let admin = queue.admin().unwrap();
        let at = seconds(11);
        self.note(
            "status",
            &plain(admin.status(at, ids[0]).await?.into_iter().collect()),
        );
        for state in [State::Delayed, State::Ready, State::Dead, State::Done] {
            let list = admin.list(at, &List::new(state).with_payloads()).await?;
            self.note("list", &plain(list));
        }
        let settled = admin.results(at, None, 3.try_into().unwrap()).await?;
        self.note("results", &(plain(settled.entries), settled.next));
        self.note("cancel", &admin.cancel(at, &ids[4..5]).await?);
        self.note("redrive", &admin.redrive(at, &ids[2..3]).await?);
        let (lease, members) = self.claim(queue, at, 1).await?;
        let update = finish(Outcome::reject("never"));
        self.note("finish", &queue.update(at, &lease, update).await?);
        self.note("purge", &admin.purge(at, &[members[0].id]).await?);
        Ok(())
    }

    async fn move_to(&mut self, queue: &RedisQueue, copy: &RedisQueue) -> Result<()> {
        let (mut restore, mut from) = (copy.restore().await?, Some(DumpFrom::Start));
        while let Some(at) = from {
            let page = queue.dump(seconds(31), at).await?;
            for record in &page.records {
                if let Record::Request(request) = record {
                    self.note("dump", &plain(vec![request.entry.clone()]));
                }
            }
            restore.add(page.records).await?;
            from = page.next;
        }
        Ok(())
    }
}

/// Pushes again, under the same keys, whatever of a life was pushed or not: all of it is there then, once.
pub(crate) async fn push_again(queue: &RedisQueue) -> Vec<RequestId> {
    let again = pushes().into_values();
    let pushed = try_join_all(again.map(|one| queue.push(start(), one))).await;
    let ids: Vec<_> = pushed.unwrap().concat().iter().map(|one| one.id).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    assert_eq!(queue.stats(start()).await.unwrap().pushed, REQUESTS);
    ids
}

/// Finishes what was begun long after every lease has run out: open batches are offered under their ids and with
/// their members, no request is in two, and every request ends once.
pub(crate) async fn drain(queue: &RedisQueue) {
    let late = seconds(1_000_000);
    let admin = queue.admin().unwrap();
    let mut open: BTreeMap<BatchId, BTreeSet<RequestId>> = BTreeMap::new();
    for entry in admin.list(late, &List::new(State::InFlight)).await.unwrap() {
        open.entry(entry.batch.unwrap())
            .or_default()
            .insert(entry.id);
    }
    assert_eq!(queue.stats(late).await.unwrap().batches, open.len() as u64);
    let mut seen = BTreeSet::new();
    while let Some(lease) = queue.claim(late, &Claim::new()).await.unwrap() {
        let members = queue.read(&lease, Page::first()).await.unwrap();
        assert_eq!(members.len(), lease.requests as usize);
        let left = members
            .iter()
            .filter(|one| !matches!(one.outcome, Some(Outcome::Done { .. })));
        // One that is retried goes into another batch later.
        for one in left.clone().filter(|one| one.outcome.is_none()) {
            assert!(seen.insert(one.id), "{} was in two batches", one.id);
        }
        let left: BTreeSet<RequestId> = left.map(|one| one.id).collect();
        if let Some(known) = open.remove(&lease.batch) {
            assert_eq!(left, known, "the batch has other members than before");
        }
        queue
            .update(late, &lease, finish(Outcome::done()))
            .await
            .unwrap();
    }
    assert!(open.is_empty(), "never offered again: {open:?}");
    let stats = queue.stats(late).await.unwrap();
    assert!(stats.adds_up(), "{stats:?}");
    assert_eq!(
        (stats.batches, stats.ready, stats.delayed, stats.in_flight),
        (0, 0, 0, 0)
    );
    assert_eq!(stats.held_bytes, 0, "{stats:?}");
    let mut settled = BTreeSet::new();
    let page = admin
        .results(late, None, 1_000.try_into().unwrap())
        .await
        .unwrap();
    assert!(
        page.entries.iter().all(|one| settled.insert(one.id)),
        "settled twice"
    );
    assert_eq!(settled.len() as u64, stats.done + stats.dead);
}
