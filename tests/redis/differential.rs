//! The same random calls on a queue in memory and on one on a server: every answer is the same, to the
//! nanosecond.

use std::{num::NonZeroU32, time::Duration};

use batchyard::{
    BatchId, Bookmark, Claim, DeadReason, Due, Entry, Fence, Lease, List, Member, MemoryQueue,
    NewRequest, Outcome, Page, Queue, QueueName, QueueOptions, RequestId, Result, Retries, State,
    Then, Timestamp, Update,
};

use crate::server::Server;

const STEPS: usize = 400;

#[tokio::test]
async fn memory_and_redis_answer_the_same() {
    let Some(server) = Server::start() else {
        return;
    };
    let first = std::env::var("BATCHYARD_SEED").map_or(1, |seed| seed.parse().unwrap());
    for seed in first..first + 8 {
        println!("seed {seed}");
        let name = format!("seed-{seed}");
        let options = QueueOptions::default()
            .max_requests(60)
            .max_bytes(2_000)
            .retention(Duration::from_secs(40))
            .idempotency_window(Duration::from_secs(25));
        let mut pair = Pair {
            memory: MemoryQueue::named(QueueName::default(), options),
            redis: server.queue_with(&name, options).await.unwrap(),
            random: fastrand::Rng::with_seed(seed),
            now: Timestamp::from_millis(1_700_000_000_000),
            leases: Vec::new(),
            ids: Vec::new(),
        };
        for step in 0..STEPS {
            pair.step().await;
            pair.compare_stats().await;
            if step % 8 == 0 {
                pair.compare().await;
            }
        }
    }
}

struct Pair<R> {
    memory: MemoryQueue,
    redis: R,
    random: fastrand::Rng,
    now: Timestamp,
    /// The leases of each claim, memory's and Redis'; kept beyond their end, so that late ones are tried.
    leases: Vec<(Lease, Lease)>,
    ids: Vec<RequestId>,
}

impl<R: Queue> Pair<R> {
    async fn step(&mut self) {
        let seconds = Duration::from_millis(self.random.u64(..4_000)) + Duration::from_nanos(1);
        self.now = match self.random.u8(..10) {
            0 => self.now.before(seconds),
            1..=6 => self.now.after(seconds),
            _ => self.now,
        };
        match self.random.u8(..100) {
            0..=29 => self.push().await,
            30..=49 => self.claim().await,
            50..=79 => self.update().await,
            80..=89 => self.read().await,
            _ => self.administer().await,
        }
    }

    async fn push(&mut self) {
        let requests: Vec<NewRequest> = (0..self.random.usize(..9))
            .map(|_| self.request())
            .collect();
        let bookmark = Bookmark {
            source: "input".into(),
            value: vec![self.random.u8(..)].into(),
        };
        let now = self.now;
        let (memory, redis) = if self.random.bool() {
            let memory = self.memory.push(now, requests.clone()).await;
            (memory, self.redis.push(now, requests).await)
        } else {
            let memory = self
                .memory
                .push_from(now, requests.clone(), bookmark.clone())
                .await;
            (memory, self.redis.push_from(now, requests, bookmark).await)
        };
        if let Some(pushed) = same("push", memory, redis) {
            self.ids.extend(pushed.iter().map(|pushed| pushed.id));
        }
    }

    fn request(&mut self) -> NewRequest {
        let random = &mut self.random;
        let mut request = NewRequest::new(vec![random.u8(..); random.usize(..120)]);
        if random.u8(..4) == 0 {
            request = request.attribute("tenant", random.u8(..3).to_string());
        }
        if random.u8(..5) == 0 {
            request = request.not_before(self.now.after(Duration::from_secs(random.u64(..20))));
        }
        if random.u8(..4) == 0 {
            request = request.ttl(Duration::from_secs(random.u64(..30)));
        }
        if random.u8(..4) == 0 {
            let key = random.u8(..8);
            request.payload = vec![key + random.u8(..16) / 15].into();
            request = request.idempotency_key(format!("key-{key}"));
        }
        request
    }

    async fn claim(&mut self) {
        let claim = Claim {
            max_requests: self.random.u32(1..20).try_into().unwrap(),
            max_bytes: self.random.u64(60..1_000).try_into().unwrap(),
            lease_duration: Duration::from_secs(self.random.u64(..20)),
            form: self.random.u8(..4) > 0,
            due: (self.random.u8(..3) == 0).then(|| Due {
                requests: self.random.u64(..12),
                bytes: self.random.u64(..900),
                oldest_at: self
                    .random
                    .bool()
                    .then(|| self.now.before(Duration::from_secs(3))),
            }),
            context: vec![self.random.u8(..)].into(),
        };
        let memory = self.memory.claim(self.now, &claim).await.unwrap();
        let redis = self.redis.claim(self.now, &claim).await.unwrap();
        let (memory, redis) = match (memory, redis) {
            (None, None) => return,
            (Some(memory), Some(redis)) => (memory, redis),
            (memory, redis) => panic!("claim: memory {memory:?}, redis {redis:?}"),
        };
        let as_in_memory = Lease {
            batch: memory.batch,
            parent: memory.parent,
            // Only the first digits count; the others tell it from those of a server that went back in time.
            fence: Fence(redis.fence.0 >> 24),
            ..redis.clone()
        };
        assert_eq!(as_in_memory, memory, "claim");
        assert_eq!(redis.parent.map(formed), memory.parent.map(formed), "claim");
        assert_eq!(formed(redis.batch), formed(memory.batch), "claim");
        self.leases.push((memory, redis));
    }

    fn lease(&mut self) -> Option<(Lease, Lease)> {
        let recent = self.leases.len().saturating_sub(4);
        self.leases
            .get(recent..)
            .filter(|recent| !recent.is_empty())?;
        Some(self.leases[self.random.usize(recent..self.leases.len())].clone())
    }

    async fn update(&mut self) {
        let Some((memory, redis)) = self.lease() else {
            return;
        };
        let update = self.random_update(&memory).await;
        let left = self.memory.update(self.now, &memory, update.clone()).await;
        let right = self.redis.update(self.now, &redis, update).await;
        same("update", left, right);
    }

    async fn random_update(&mut self, lease: &Lease) -> Update {
        let members = self
            .memory
            .read(lease, Page::first())
            .await
            .unwrap_or_default();
        let mut outcomes = Vec::new();
        for member in members {
            if self.random.u8(..3) == 0 {
                outcomes.push((member.id, self.outcome()));
            }
        }
        if self.random.u8(..12) == 0 && !self.ids.is_empty() {
            let id = self.ids[self.random.usize(..self.ids.len())];
            outcomes.push((id, self.outcome()));
        }
        let soon = self.now.after(Duration::from_secs(self.random.u64(..8)));
        let retries = Retries {
            at: soon,
            max_attempts: NonZeroU32::new(self.random.u32(1..5)).unwrap(),
        };
        Update {
            outcomes,
            checkpoint: self.random.bool().then(|| vec![self.random.u8(..)].into()),
            then: match self.random.u8(..8) {
                0 => Then::Release,
                1 => Then::Defer { until: soon },
                2 | 3 => Then::Split { retries },
                4 | 5 => Then::Hold { until: soon },
                _ => Then::Finish {
                    rest: self.outcome(),
                    retries,
                },
            },
        }
    }

    fn outcome(&mut self) -> Outcome {
        let note = self.random.u8(..).to_string();
        match self.random.u8(..6) {
            0 => Outcome::done(),
            1 => Outcome::result(note),
            2 => Outcome::Reject {
                reason: DeadReason::Undecodable,
                error: note,
            },
            3 => Outcome::Retry {
                error: note,
                not_before: Some(self.now.after(Duration::from_secs(self.random.u64(..15)))),
            },
            _ => Outcome::retry(note),
        }
    }

    async fn read(&mut self) {
        let Some((memory, redis)) = self.lease() else {
            return;
        };
        let mut page = Page {
            after: None,
            max_requests: NonZeroU32::new(self.random.u32(1..6)).unwrap(),
            max_bytes: self.random.u64(1..400).try_into().unwrap(),
        };
        loop {
            let left = self.memory.read(&memory, page).await;
            let right = self.redis.read(&redis, page).await;
            let read: Vec<Member> = same("read", left, right).unwrap_or_default();
            let Some(last) = read.last() else {
                return;
            };
            page = page.after(last.position);
        }
    }

    async fn administer(&mut self) {
        let (memory, redis) = (self.memory.admin().unwrap(), self.redis.admin().unwrap());
        let (now, random) = (self.now, &mut self.random);
        let mut ids: Vec<RequestId> = vec![RequestId::from_u64(7)];
        for _ in 0..random.usize(..6).min(self.ids.len()) {
            ids.push(self.ids[random.usize(..self.ids.len())]);
        }
        match random.u8(..3) {
            0 => drop(same(
                "cancel",
                memory.cancel(now, &ids).await,
                redis.cancel(now, &ids).await,
            )),
            1 => drop(same(
                "redrive",
                memory.redrive(now, &ids).await,
                redis.redrive(now, &ids).await,
            )),
            _ => drop(same(
                "purge",
                memory.purge(now, &ids).await,
                redis.purge(now, &ids).await,
            )),
        }
    }

    async fn compare_stats(&self) {
        let now = self.now;
        let stats = same(
            "stats",
            self.memory.stats(now).await,
            self.redis.stats(now).await,
        );
        assert!(stats.is_some_and(|stats| stats.adds_up()));
    }

    /// Looks at everything that can be looked at.
    async fn compare(&mut self) {
        let now = self.now;
        let (memory, redis) = (self.memory.admin().unwrap(), self.redis.admin().unwrap());
        for state in [
            State::Delayed,
            State::Ready,
            State::InFlight,
            State::Done,
            State::Dead,
        ] {
            let mut wanted = List::new(state)
                .with_payloads()
                .max_requests(NonZeroU32::new(self.random.u32(1..30)).unwrap());
            loop {
                let left = memory.list(now, &wanted).await.map(plain);
                let right = redis.list(now, &wanted).await.map(plain);
                let Some(last) =
                    same("list", left, right).and_then(|page| page.last().map(|entry| entry.id))
                else {
                    break;
                };
                wanted = wanted.after(last);
            }
        }
        let mut after = None;
        loop {
            let most = NonZeroU32::new(7).unwrap();
            let (memory_after, redis_after) = after.unzip();
            let left = memory.results(now, memory_after, most).await.unwrap();
            let right = redis.results(now, redis_after, most).await.unwrap();
            assert_eq!(plain(left.entries), plain(right.entries), "results");
            // Where each goes on is its own affair.
            after = left.next.zip(right.next);
            assert_eq!(left.next.is_some(), right.next.is_some(), "results");
            if after.is_none() {
                break;
            }
        }
        if let Some(id) = self.random.choice(self.ids.clone()) {
            let left = memory
                .status(now, id)
                .await
                .map(|entry| plain(entry.into_iter().collect()));
            let right = redis
                .status(now, id)
                .await
                .map(|entry| plain(entry.into_iter().collect()));
            same("status", left, right);
        }
        let (left, right) = (
            self.memory.bookmark("input").await,
            self.redis.bookmark("input").await,
        );
        same("bookmark", left, right);
    }
}

/// The half of a batch id that does not differ between queues.
pub(crate) fn formed(id: BatchId) -> u128 {
    id.as_u128() >> 64
}

/// Entries without the half of their batch ids that differs between queues.
pub(crate) fn plain(mut entries: Vec<Entry>) -> Vec<Entry> {
    for entry in &mut entries {
        entry.batch = entry.batch.map(|id| BatchId::from_u128(formed(id)));
    }
    entries
}

/// Asserts that both answered the same, or failed with the same kind.
fn same<T: PartialEq + std::fmt::Debug>(
    verb: &str,
    memory: Result<T>,
    redis: Result<T>,
) -> Option<T> {
    match (memory, redis) {
        (Ok(memory), Ok(redis)) => {
            assert_eq!(memory, redis, "{verb}: memory's answer on the left");
            Some(memory)
        }
        (Err(memory), Err(redis)) => {
            assert_eq!(memory.kind(), redis.kind(), "{verb}: {memory} or {redis}");
            None
        }
        (memory, redis) => panic!("{verb}: memory {memory:?}, redis {redis:?}"),
    }
}
