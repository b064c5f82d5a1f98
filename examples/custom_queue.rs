//! A queue of your own: the five verbs over a vector, and the one line that tests it.
//!
//! `cargo run --example custom_queue --features testing` hands a few requests through it;
//! `cargo test --example custom_queue --features testing` tests it against every clause of the contract
//! that it does not leave out. It is simple, not fast: each verb looks at every request.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use batchyard::{
    BatchId, Claim, Error, Fence, FirstSeen, Lease, Member, NewRequest, Outcome, Page, Position,
    Pushed, Queue, QueueExt, RequestId, Result, Retries, Stats, Then, Timestamp, Update,
};
use bytes::Bytes;

/// A queue in a vector.
#[derive(Debug)]
struct VecQueue(Mutex<Yard>);

#[derive(Debug)]
struct Yard {
    /// Remembered in stats and nowhere else: what is done, dead or expired leaves the vector.
    counts: Stats,
    /// In position order, because whatever gets a new position goes to the end.
    requests: Vec<Request>,
    batches: BTreeMap<BatchId, Batch>,
    keys: Vec<Key>,
    window: Duration,
    salt: u64,
    last_position: u64,
    last_batch: u64,
    last_fence: u64,
    first_seen: FirstSeen,
}

#[derive(Debug)]
struct Request {
    /// As a reader sees it, but for `attempt`: that counts the batches before this one only.
    member: Member,
    place: Place,
    expires_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Delayed { due: Timestamp },
    Ready { since: Timestamp },
    InFlight(BatchId),
}

#[derive(Clone, Debug)]
struct Batch {
    /// The lease that is good: fence, `until` and attempt are of the last claim.
    lease: Lease,
    held: bool,
    /// Attempts of the batches that it was split from.
    prior: u32,
}

#[derive(Debug)]
struct Key {
    text: String,
    payload: Bytes,
    id: RequestId,
    until: Timestamp,
}

#[async_trait]
impl Queue for VecQueue {
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>> {
        requests.iter().try_for_each(NewRequest::validate)?;
        self.at(now).push(now, requests)
    }

    async fn stats(&self, now: Timestamp) -> Result<Stats> {
        Ok(self.at(now).stats(now))
    }

    async fn claim(&self, now: Timestamp, claim: &Claim) -> Result<Option<Lease>> {
        claim.validate()?;
        Ok(self.at(now).claim(now, claim))
    }

    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        self.at(Timestamp::EPOCH).read(lease, page)
    }

    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> Result<()> {
        update.validate()?;
        self.at(now).update(now, lease, update)
    }
}

impl VecQueue {
    fn new(window: Duration) -> Self {
        static QUEUES: AtomicU64 = AtomicU64::new(0);
        Self(Mutex::new(Yard {
            counts: Stats::default(),
            requests: Vec::new(),
            batches: BTreeMap::new(),
            keys: Vec::new(),
            window,
            salt: QUEUES.fetch_add(1, Ordering::Relaxed),
            last_position: 0,
            last_batch: 0,
            last_fence: 0,
            first_seen: FirstSeen::default(),
        }))
    }

    /// The queue as of `now`: first what has expired goes, then what is due becomes ready.
    fn at(&self, now: Timestamp) -> MutexGuard<'_, Yard> {
        let mut yard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = yard.requests.len();
        yard.requests.retain(|request| {
            request.expires_at > now || matches!(request.place, Place::InFlight(_))
        });
        yard.counts.expired += (before - yard.requests.len()) as u64;
        while let Some((due, id)) = yard.next_due().filter(|(due, _)| *due <= now) {
            yard.place_at_tail(now, id, Place::Ready { since: due });
        }
        yard.keys.retain(|key| key.until > now);
        yard
    }
}

impl Yard {
    fn next_due(&self) -> Option<(Timestamp, RequestId)> {
        let delayed = self
            .requests
            .iter()
            .filter_map(|request| match request.place {
                Place::Delayed { due } => Some((due, request.member.id)),
                _ => None,
            });
        delayed.min_by_key(|(due, _)| *due)
    }

    /// Gives a request a new position, and a place there.
    fn place_at_tail(&mut self, now: Timestamp, id: RequestId, place: Place) {
        let index = self.requests.iter().position(|one| one.member.id == id);
        let mut request = self.requests.remove(index.expect("it is in the vector"));
        self.last_position = now.as_nanos().max(self.last_position + 1);
        request.member.position = Position::from_u64(self.last_position);
        request.place = place;
        self.requests.push(request);
    }

    fn push(&mut self, now: Timestamp, new: Vec<NewRequest>) -> Result<Vec<Pushed>> {
        let (mut pushed, mut requests, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        let mut next = now.as_nanos().max(self.last_position + 1);
        for new in new {
            let id = RequestId::from_u64(next);
            if let Some(text) = new.idempotency_key {
                let mut known = self.keys.iter().chain(&keys);
                if let Some(known) = known.find(|known| known.text == text) {
                    if known.payload != new.payload {
                        let error = format!("key {text:?} was pushed with another payload");
                        return Err(Error::invalid(error));
                    }
                    let (id, duplicate) = (known.id, true);
                    pushed.push(Pushed { id, duplicate });
                    continue;
                }
                let (payload, until) = (new.payload.clone(), now.after(self.window));
                keys.push(Key {
                    text,
                    payload,
                    id,
                    until,
                });
            }
            let member = Member {
                id,
                position: Position::from_u64(next),
                attempt: 0,
                pushed_at: now,
                payload: new.payload,
                attributes: new.attributes,
                outcome: None,
            };
            let due = new.not_before.filter(|due| *due > now);
            requests.push(Request {
                member,
                place: due.map_or(Place::Ready { since: now }, |due| Place::Delayed { due }),
                expires_at: new.ttl.map_or(Timestamp::MAX, |ttl| now.after(ttl)),
            });
            pushed.push(Pushed {
                id,
                duplicate: false,
            });
            next += 1;
        }
        // Nothing was changed so far, and from here on nothing fails: all requests, or none.
        if !requests.is_empty() {
            self.last_position = next - 1;
        }
        self.counts.pushed += requests.len() as u64;
        self.requests.extend(requests);
        self.keys.extend(keys);
        Ok(pushed)
    }

    fn stats(&mut self, now: Timestamp) -> Stats {
        let mut stats = self.counts;
        for Request { member, place, .. } in &self.requests {
            let size = member.payload.len() as u64;
            match place {
                Place::InFlight(_) if matches!(member.outcome, Some(Outcome::Done { .. })) => {
                    continue;
                }
                Place::InFlight(_) => stats.in_flight += 1,
                Place::Delayed { .. } => stats.delayed += 1,
                Place::Ready { since } => {
                    stats.ready += 1;
                    stats.ready_bytes += size;
                    let first_seen = &mut self.first_seen;
                    stats.oldest_ready_at = stats
                        .oldest_ready_at
                        .or_else(|| Some(first_seen.clamp(member.position, *since, now)));
                }
            }
            stats.held_bytes += size;
        }
        stats.next_due = self.next_due().map(|(due, _)| due);
        let untils = || self.batches.values().map(|batch| batch.lease.until);
        stats.batches = self.batches.len() as u64;
        stats.offered = untils().filter(|until| *until <= now).count() as u64;
        stats.next_offer = untils().filter(|until| *until > now).min();
        stats
    }

    fn claim(&mut self, now: Timestamp, claim: &Claim) -> Option<Lease> {
        let mut offered = self
            .batches
            .iter()
            .filter(|(_, batch)| batch.lease.until <= now);
        let id = match offered.next() {
            Some((id, _)) => *id,
            None => self.form(now, claim)?,
        };
        self.last_fence += 1;
        let unsettled = self
            .members(id)
            .filter(|member| member.outcome.is_none())
            .count();
        let batch = self.batches.get_mut(&id)?;
        batch.held = true;
        batch.lease.fence = Fence(self.last_fence);
        batch.lease.attempt += 1;
        batch.lease.until = now.after(claim.lease_duration);
        batch.lease.unsettled = u32::try_from(unsettled).ok()?;
        Some(batch.lease.clone())
    }

    fn form(&mut self, now: Timestamp, claim: &Claim) -> Option<BatchId> {
        let stats = self.stats(now);
        let is_due = |due: &batchyard::Due| {
            due.is_met(stats.ready, stats.ready_bytes, stats.oldest_ready_at)
        };
        if !claim.form || !claim.due.as_ref().is_none_or(is_due) {
            return None;
        }
        let (mut ids, mut bytes, mut too_large) = (Vec::new(), 0, Vec::new());
        for Request { member, place, .. } in &self.requests {
            let size = member.payload.len() as u64;
            if !matches!(place, Place::Ready { .. }) {
                continue;
            }
            if ids.len() as u64 == u64::from(claim.max_requests.get()) {
                break;
            }
            if size > claim.max_bytes.get() {
                too_large.push(member.id);
            } else if bytes + size > claim.max_bytes.get() {
                break;
            } else {
                bytes += size;
                ids.push(member.id);
            }
        }
        self.counts.dead += too_large.len() as u64;
        self.requests
            .retain(|request| !too_large.contains(&request.member.id));
        (!ids.is_empty()).then(|| self.open(now, &ids, None, 0, claim.context.clone()))
    }

    /// Makes a batch of these, offered at once.
    fn open(
        &mut self,
        now: Timestamp,
        ids: &[RequestId],
        parent: Option<BatchId>,
        prior: u32,
        context: Bytes,
    ) -> BatchId {
        self.last_batch = now.as_nanos().max(self.last_batch + 1);
        let batch = BatchId::new(self.last_batch, self.salt);
        let mut bytes = 0;
        for request in &mut self.requests {
            if ids.contains(&request.member.id) {
                request.place = Place::InFlight(batch);
                bytes += request.member.payload.len() as u64;
            }
        }
        let lease = Lease {
            batch,
            parent,
            fence: Fence(0),
            attempt: 0,
            requests: u32::try_from(ids.len()).expect("max_requests is a u32"),
            unsettled: 0,
            bytes,
            formed_at: now,
            until: Timestamp::EPOCH,
            checkpoint: None,
            context,
        };
        let held = false;
        self.batches.insert(batch, Batch { lease, held, prior });
        batch
    }

    /// The members of a batch, in position order.
    fn members(&self, batch: BatchId) -> impl Iterator<Item = &Member> {
        let is_in = move |request: &&Request| request.place == Place::InFlight(batch);
        self.requests
            .iter()
            .filter(is_in)
            .map(|request| &request.member)
    }

    /// The batch, if this lease is the good one.
    fn held(&mut self, lease: &Lease) -> Result<&mut Batch> {
        let batch = self.batches.get_mut(&lease.batch);
        batch
            .filter(|batch| batch.held && batch.lease.fence == lease.fence)
            .ok_or_else(|| Error::lease_lost(format!("batch {} has another holder", lease.batch)))
    }

    fn read(&mut self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        let batch = self.held(lease)?;
        let attempts = batch.prior + batch.lease.attempt;
        let mut bytes = 0;
        let mut members = Vec::new();
        for member in self
            .members(lease.batch)
            .filter(|one| Some(one.position) > page.after)
        {
            bytes += member.payload.len() as u64;
            let full = members.len() as u64 == u64::from(page.max_requests.get())
                || bytes > page.max_bytes.get();
            if full && !members.is_empty() {
                break;
            }
            members.push(Member {
                attempt: member.attempt + attempts,
                ..member.clone()
            });
        }
        Ok(members)
    }

    fn update(&mut self, now: Timestamp, lease: &Lease, update: Update) -> Result<()> {
        self.held(lease)?;
        let named = |id: RequestId| update.outcomes.iter().any(|(named, _)| *named == id);
        let stranger = |id: RequestId| self.members(lease.batch).all(|member| member.id != id);
        let open = self
            .members(lease.batch)
            .filter(|one| one.outcome.is_none() && !named(one.id))
            .count();
        if let Some((id, _)) = update.outcomes.iter().find(|(id, _)| stranger(*id)) {
            return Err(Error::invalid(format!("request {id} is not a member")));
        }
        if matches!(update.then, Then::Split { .. }) && open < 2 {
            return Err(Error::invalid(
                "a split needs two members without an outcome",
            ));
        }
        for (id, outcome) in update.outcomes {
            self.record(lease.batch, |member| member.id == id, &outcome);
        }
        let batch = self.held(lease)?;
        batch.lease.checkpoint = update.checkpoint.or(batch.lease.checkpoint.take());
        match update.then {
            Then::Hold { until } => batch.lease.until = until,
            Then::Release => {
                (batch.held, batch.lease.until) = (false, Timestamp::EPOCH);
                batch.lease.attempt -= 1;
            }
            Then::Defer { until } => (batch.held, batch.lease.until) = (false, until),
            Then::Split { retries } => self.split(now, lease.batch, retries),
            Then::Finish { rest, retries } => {
                self.record(lease.batch, |_| true, &rest);
                self.end(now, lease.batch, retries);
            }
        }
        Ok(())
    }

    /// Gives an outcome to the members chosen that have none.
    fn record(&mut self, batch: BatchId, chosen: impl Fn(&Member) -> bool, outcome: &Outcome) {
        for Request { member, place, .. } in &mut self.requests {
            if *place == Place::InFlight(batch) && member.outcome.is_none() && chosen(member) {
                member.outcome = Some(outcome.clone());
                self.counts.done += u64::from(matches!(outcome, Outcome::Done { .. }));
            }
        }
    }

    fn split(&mut self, now: Timestamp, id: BatchId, retries: Retries) {
        let Batch { lease, prior, .. } = self.batches[&id].clone();
        let open = self.members(id).filter(|member| member.outcome.is_none());
        let open: Vec<RequestId> = open.map(|member| member.id).collect();
        let (first, second) = open.split_at(open.len().div_ceil(2));
        for half in [first, second] {
            let prior = prior + lease.attempt;
            self.open(now, half, Some(id), prior, lease.context.clone());
        }
        self.end(now, id, retries);
    }

    /// Settles the members, which all have an outcome, and forgets the batch.
    fn end(&mut self, now: Timestamp, id: BatchId, retries: Retries) {
        let Some(batch) = self.batches.remove(&id) else {
            return;
        };
        let members: Vec<Member> = self.members(id).cloned().collect();
        for member in members {
            let attempts = member.attempt + batch.prior + batch.lease.attempt;
            let same = |request: &&mut Request| request.member.id == member.id;
            let request = self
                .requests
                .iter_mut()
                .find(same)
                .expect("a member is there");
            request.member.attempt = attempts;
            request.member.outcome = None;
            let expired = request.expires_at <= now;
            match member.outcome {
                Some(Outcome::Retry { .. }) if expired => self.counts.expired += 1,
                Some(Outcome::Retry { not_before, .. })
                    if attempts < retries.max_attempts.get() =>
                {
                    let due = not_before.map_or(retries.at, |at| at.max(retries.at));
                    if due > now {
                        request.place = Place::Delayed { due };
                    } else {
                        self.place_at_tail(now, member.id, Place::Ready { since: now });
                    }
                    continue;
                }
                Some(Outcome::Done { .. }) => {}
                _ => self.counts.dead += 1,
            }
            self.requests
                .retain(|request| request.member.id != member.id);
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let queue = VecQueue::new(Duration::from_secs(3600));
    for name in ["ada", "grace", "edsger"] {
        queue
            .push_one(NewRequest::new(format!("hello {name}")))
            .await?;
    }
    while let Some(lease) = queue.claim(queue.now(), &Claim::new()).await? {
        for member in queue.read(&lease, Page::first()).await? {
            println!(
                "{}: {}",
                lease.batch,
                String::from_utf8_lossy(&member.payload)
            );
        }
        let retries = Retries {
            at: queue.now(),
            max_attempts: std::num::NonZeroU32::MIN,
        };
        let rest = Outcome::done();
        let finish = Update::then(Then::Finish { rest, retries });
        queue.update(queue.now(), &lease, finish).await?;
    }
    println!("{:?}", queue.stats(queue.now()).await?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use batchyard::{MemoryQueue, QueueOptions, testing};

    use super::*;

    struct Harness;

    #[async_trait]
    impl testing::Harness for Harness {
        async fn open(&self, options: QueueOptions) -> Arc<dyn Queue> {
            Arc::new(VecQueue::new(options.idempotency_window))
        }

        fn keeps_bounds(&self) -> bool {
            false
        }
    }

    // The one line. What it skips, and why: `-- --nocapture lists_what_it_skips`.
    batchyard::conformance!(custom_queue, Harness);

    #[tokio::test]
    async fn it_lives_like_the_reference() {
        for seed in 0..10 {
            let reference = Arc::new(MemoryQueue::new(QueueOptions::default()));
            let queue = Arc::new(VecQueue::new(QueueOptions::default().idempotency_window));
            testing::differential(reference, queue, seed, 300).await;
        }
    }
}
