//! Takes random steps on one queue, tells what was seen, and checks what must hold on any queue.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    mem,
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::step::{Fate, Next, Request, Step};
use crate::{
    batch::{BatchId, Claim, Fence, Lease, Member, Outcome, Page, Retries, Then, Update},
    clock::Timestamp,
    error::Result,
    queue::{Administration, BatchEntry, Capabilities, Entry, List, Queue, ResultCursor},
    request::{Bookmark, NewRequest, Pushed, RequestId, State},
};

/// A queue and what is known of its past.
pub(super) struct Pilot {
    queue: Arc<dyn Queue>,
    memory: Memory,
}

/// What a pilot remembers, also across a restart of its queue.
#[derive(Default)]
pub(super) struct Memory {
    /// All requests in the order of their pushes.
    requests: Vec<RequestId>,
    numbers: HashMap<RequestId, usize>,
    /// All batches seen, and their numbers in the order in which they were.
    batches: HashMap<BatchId, usize>,
    /// The members of each batch claimed: they never change.
    members: BTreeMap<BatchId, Vec<(RequestId, Bytes)>>,
    /// All leases, the last one first, good or lost.
    leases: Vec<Lease>,
    last_fence: Option<Fence>,
    cursor: Option<ResultCursor>,
    latest: Timestamp,
    went_back: bool,
}

impl Memory {
    pub(super) fn take_up(self, queue: Arc<dyn Queue>) -> Pilot {
        Pilot {
            queue,
            memory: self,
        }
    }

    fn batch(&mut self, id: BatchId) -> usize {
        let next = self.batches.len();
        *self.batches.entry(id).or_insert(next)
    }

    fn numbered(&mut self, ids: Vec<BatchId>) -> Vec<usize> {
        ids.into_iter().map(|id| self.batch(id)).collect()
    }

    fn pick(&self, number: usize) -> RequestId {
        match self.requests.len() {
            0 => RequestId::from_u64(7),
            count => self.requests[number % count],
        }
    }

    fn picks(&self, numbers: &[usize]) -> Vec<RequestId> {
        numbers.iter().map(|number| self.pick(*number)).collect()
    }

    fn lease(&self, number: usize) -> Option<Lease> {
        let count = self.leases.len().min(LEASES);
        (count > 0).then(|| self.leases[number % count].clone())
    }

    /// Numbers the new requests of a push.
    fn pushed(&mut self, pushed: &[Pushed]) -> Vec<(usize, bool)> {
        for new in pushed.iter().filter(|pushed| !pushed.duplicate) {
            let last = self.requests.last();
            assert!(last < Some(&new.id), "ids grow: {last:?} then {new:?}");
            self.numbers.insert(new.id, self.requests.len());
            self.requests.push(new.id);
        }
        let number = |one: &Pushed| (self.numbers[&one.id], one.duplicate);
        pushed.iter().map(number).collect()
    }

    fn shown(&mut self, entry: &Entry) -> String {
        let number = self.numbers.get(&entry.id).copied();
        let batch = entry.batch.map(|id| self.batch(id));
        let in_flight = entry.state == State::InFlight;
        let at = Some(entry.at).filter(|_| !in_flight);
        let error = entry
            .error
            .as_ref()
            .filter(|_| entry.reason != Some(crate::DeadReason::TooLarge) && !in_flight);
        let was = (
            number,
            entry.state,
            entry.attempts,
            entry.pushed_at,
            at,
            batch,
        );
        let carries = (
            &entry.attributes,
            entry.bytes,
            &entry.payload,
            &entry.result,
        );
        format!("{was:?} {carries:?} {:?} {error:?}", entry.reason)
    }
}

impl Pilot {
    pub(super) fn new(queue: Arc<dyn Queue>) -> Self {
        Memory::default().take_up(queue)
    }

    /// What both of two queues can.
    pub(super) fn can(&self, other: &Self) -> Capabilities {
        let (one, other) = (self.queue.capabilities(), other.queue.capabilities());
        let results = one.results && other.results;
        Capabilities {
            administration: one.administration && other.administration && results,
            bookmarks: one.bookmarks && other.bookmarks,
            results,
            batches: one.batches && other.batches && results,
            ..Capabilities::default()
        }
    }

    pub(super) fn read_results_anew(&mut self) {
        self.memory.cursor = None;
    }

    /// Lets go of the queue, for a restart.
    pub(super) fn put_down(self) -> (Arc<dyn Queue>, Memory) {
        (self.queue, self.memory)
    }

    /// A reading that adds up.
    pub(super) async fn look(&mut self, now: Timestamp) -> String {
        self.memory.went_back |= now < self.memory.latest;
        self.memory.latest = self.memory.latest.max(now);
        let mut stats = must(self.queue.stats(now).await);
        assert!(stats.adds_up(), "every request is in one state: {stats:?}");
        assert_eq!(stats.pushed, self.memory.requests.len() as u64, "{stats:?}");
        assert!(stats.oldest_ready_at <= Some(now), "{stats:?}");
        assert_eq!(
            stats.oldest_ready_at.is_some(),
            stats.ready > 0,
            "{stats:?}"
        );
        if self.memory.went_back {
            // When a time in the future was first seen depends on who looked, and when.
            stats.oldest_ready_at = None;
        }
        format!("{stats:?}")
    }

    /// Takes a step; what a caller could see of it.
    pub(super) async fn take(&mut self, now: Timestamp, step: &Step) -> String {
        match step {
            Step::Push { requests, bookmark } => self.push(now, requests, *bookmark).await,
            Step::Claim { .. } => self.claim(now, step).await,
            Step::Read {
                lease,
                max_requests,
                max_bytes,
            } => {
                let Some(lease) = self.memory.lease(*lease) else {
                    return String::new();
                };
                let page = Page {
                    max_requests: count(*max_requests),
                    max_bytes: bytes(*max_bytes),
                    ..Page::first()
                };
                let read = self.queue.read(&lease, page).await;
                self.seen(read, |memory, members| {
                    memory.members(&lease, &members, false)
                })
            }
            Step::Update { .. } => self.update(now, step).await,
            Step::Look => self.look(now).await,
            Step::Bookmark(source) => {
                let bookmark = self.queue.bookmark(&source.to_string()).await;
                self.seen(bookmark, |_, value| value)
            }
            Step::LetGo => self.let_go(now).await,
            Step::Drain => self.drain(now).await,
            _ => self.administer(now, step).await,
        }
    }

    async fn push(&mut self, now: Timestamp, new: &[Request], bookmark: Option<u8>) -> String {
        let requests = new.iter().map(request).collect();
        let pushed = match bookmark {
            None => self.queue.push(now, requests).await,
            Some(source) => {
                let bookmark = Bookmark {
                    source: source.to_string(),
                    value: now.to_string().into(),
                };
                self.queue.push_from(now, requests, bookmark).await
            }
        };
        self.seen(pushed, |memory, pushed| memory.pushed(&pushed))
    }

    async fn claim(&mut self, now: Timestamp, step: &Step) -> String {
        let Step::Claim {
            max_requests,
            max_bytes,
            lease,
            form,
            due,
            context,
        } = step
        else {
            unreachable!("only called with a claim");
        };
        let claim = Claim {
            max_requests: count(*max_requests),
            max_bytes: bytes(*max_bytes),
            lease_duration: *lease,
            form: *form,
            due: *due,
            context: vec![*context].into(),
        };
        let Some(lease) = must(self.queue.claim(now, &claim).await) else {
            if *form && due.is_none() {
                self.has_no_reason_to_spin(now).await;
            }
            return "none".into();
        };
        self.claimed(now, lease).await
    }

    /// After an empty claim nothing invites another before a later time.
    async fn has_no_reason_to_spin(&self, now: Timestamp) {
        let stats = must(self.queue.stats(now).await);
        assert_eq!((stats.ready, stats.offered), (0, 0), "{stats:?}");
        for time in [stats.next_due, stats.next_offer].into_iter().flatten() {
            assert!(time > now, "{stats:?}");
        }
    }

    async fn claimed(&mut self, now: Timestamp, lease: Lease) -> String {
        let memory = &mut self.memory;
        assert!(
            memory.last_fence < Some(lease.fence),
            "fences grow: {lease:?}"
        );
        memory.last_fence = Some(lease.fence);
        let (batch, parent) = (
            memory.batch(lease.batch),
            lease.parent.map(|id| memory.batch(id)),
        );
        let mut members = Vec::new();
        let mut page = Page::first();
        loop {
            let next = must(self.queue.read(&lease, page).await);
            let Some(last) = next.last() else { break };
            page = page.after(last.position);
            members.extend(next);
        }
        let shown = self.memory.members(&lease, &members, true);
        let counts = (lease.attempt, lease.requests, lease.unsettled, lease.bytes);
        let times = (lease.formed_at, lease.until, now);
        let carries = (&lease.checkpoint, &lease.context);
        let seen = format!("{batch} of {parent:?} {counts:?} {times:?} {carries:?} {shown:?}");
        self.memory.leases.insert(0, lease);
        seen
    }

    async fn update(&mut self, now: Timestamp, step: &Step) -> String {
        let Step::Update {
            lease,
            outcomes,
            stranger,
            checkpoint,
            next,
        } = step
        else {
            unreachable!("only called with an update");
        };
        let Some(lease) = self.memory.lease(*lease) else {
            return String::new();
        };
        let members = &self.memory.members[&lease.batch];
        let member = |number: usize| members[number % members.len()].0;
        let mut outcomes: Vec<_> = outcomes
            .iter()
            .map(|(number, fate)| (member(*number), outcome(fate)))
            .collect();
        if *stranger {
            outcomes.push((RequestId::from_u64(7), Outcome::done()));
        }
        let update = Update {
            outcomes,
            checkpoint: checkpoint.map(|byte| vec![byte; 3].into()),
            then: then(next),
        };
        let updated = self.queue.update(now, &lease, update).await;
        self.seen(updated, |_, ()| ())
    }

    async fn administer(&mut self, now: Timestamp, step: &Step) -> String {
        let queue = self.queue.clone();
        let admin: &dyn Administration = queue.admin().expect("the life knows what it can");
        match step {
            Step::Status(number) => {
                let entry = admin.status(now, self.memory.pick(*number)).await;
                self.seen(entry, |memory, entry| {
                    entry.map(|entry| memory.shown(&entry))
                })
            }
            Step::List {
                state,
                after,
                max_requests,
                payloads,
            } => {
                let list = List {
                    state: State::ALL[state % State::ALL.len()],
                    after: after.map(|number| self.memory.pick(number)),
                    max_requests: count(*max_requests),
                    payloads: *payloads,
                };
                let entries = admin.list(now, &list).await;
                self.seen(entries, |memory, entries| memory.all_shown(&entries))
            }
            Step::Results(most) => {
                let page = admin.results(now, self.memory.cursor, count(*most)).await;
                self.seen(page, |memory, page| {
                    memory.cursor = page.next.or(memory.cursor);
                    (memory.all_shown(&page.entries), page.next.is_some())
                })
            }
            Step::Cancel(some) => {
                let cancelled = admin.cancel(now, &self.memory.picks(some)).await;
                self.seen(cancelled, |_, cancelled| cancelled)
            }
            Step::Redrive(some) => {
                let redriven = admin.redrive(now, &self.memory.picks(some)).await;
                self.seen(redriven, |_, count| count)
            }
            Step::Purge(some) => {
                let purged = admin.purge(now, &self.memory.picks(some)).await;
                self.seen(purged, |_, count| count)
            }
            Step::Batches(most) => self.batches(now, admin, count(*most)).await,
            Step::Release(some) => {
                // Any batch ever seen, by number.
                let mut all: Vec<_> = self.memory.batches.iter().collect();
                all.sort_unstable_by_key(|(_, number)| **number);
                let picked = some
                    .iter()
                    .filter_map(|number| Some(*all.get(number.checked_rem(all.len())?)?.0));
                let picked: Vec<BatchId> = picked.collect();
                let released = admin.release(now, &picked).await;
                self.seen(released, Memory::numbered)
            }
            _ => unreachable!("the other steps need no administration"),
        }
    }

    /// All open batches, page by page, and each by itself.
    async fn batches(
        &mut self,
        now: Timestamp,
        admin: &dyn Administration,
        most: NonZeroU32,
    ) -> String {
        let mut all: Vec<BatchEntry> = Vec::new();
        loop {
            let after = all.last().map(|entry| entry.id);
            let page = must(admin.batches(now, after, most).await);
            if page.is_empty() {
                break;
            }
            all.extend(page);
        }
        assert!(all.is_sorted_by(|a, b| a.id < b.id), "in order: {all:?}");
        let stats = must(self.queue.stats(now).await);
        assert_eq!(all.len() as u64, stats.batches, "{all:?}");
        let mut seen = Vec::new();
        for listed in all {
            let alone = must(admin.batch(now, listed.id).await);
            let alone = alone.unwrap_or_else(|| panic!("{listed:?} is open"));
            let BatchEntry {
                checkpoint,
                context,
                ..
            } = &alone;
            let (id, parent) = (listed.id, listed.parent);
            let batch = self
                .memory
                .numbered(parent.into_iter().chain([id]).collect());
            let notes = format!("{checkpoint:?} {context:?}");
            assert_eq!(
                alone,
                BatchEntry {
                    checkpoint: checkpoint.clone(),
                    context: context.clone(),
                    ..listed.clone()
                }
            );
            seen.push((
                batch,
                notes,
                (listed.formed_at, listed.state, listed.fence.is_some()),
                (listed.attempt, listed.attempts_before),
                (listed.requests, listed.bytes, listed.outcomes),
                listed.checkpoint_bytes,
            ));
        }
        format!("{seen:?}")
    }

    /// Gives back every batch that is still held: a backend may offer those sooner after a restart.
    async fn let_go(&mut self, now: Timestamp) -> String {
        let mut seen = Vec::new();
        for lease in mem::take(&mut self.memory.leases) {
            let until = now.after(Duration::from_secs(5));
            let defer = Update::then(Then::Defer { until });
            let deferred = self.queue.update(now, &lease, defer).await;
            seen.push(self.seen(deferred, |_, ()| ()));
        }
        format!("{seen:?}")
    }

    /// Claims and settles until nothing is left, long after everything is due.
    async fn drain(&mut self, now: Timestamp) -> String {
        let mut seen = Vec::new();
        while let Some(lease) = must(self.queue.claim(now, &Claim::new()).await) {
            seen.push(self.claimed(now, lease.clone()).await);
            let finish = Then::Finish {
                rest: Outcome::done(),
                retries: retries(now, 1),
            };
            must(self.queue.update(now, &lease, Update::then(finish)).await);
        }
        let stats = must(self.queue.stats(now).await);
        assert_eq!(stats.held(), 0, "everything ends: {stats:?}");
        assert_eq!(
            (stats.batches, stats.held_bytes, stats.ready_bytes),
            (0, 0, 0)
        );
        format!("{seen:?}")
    }

    fn seen<T, S: Debug>(
        &mut self,
        result: Result<T>,
        show: impl FnOnce(&mut Memory, T) -> S,
    ) -> String {
        match result {
            Ok(value) => format!("{:?}", show(&mut self.memory, value)),
            Err(error) => format!("{:?}", error.kind()),
        }
    }
}

impl Memory {
    /// Checks members against what they were before.
    fn members(&mut self, lease: &Lease, members: &[Member], all: bool) -> Vec<String> {
        assert!(
            members.is_sorted_by(|a, b| a.position < b.position),
            "members are in position order: {members:?}"
        );
        let are = members
            .iter()
            .map(|member| (member.id, member.payload.clone()));
        let are: Vec<_> = are.collect();
        if all {
            let were = self
                .members
                .entry(lease.batch)
                .or_insert_with(|| are.clone());
            assert_eq!(*were, are, "members of a batch never change: {lease:?}");
        }
        let show = |member: &Member| {
            let what = (member.attempt, member.pushed_at, &member.payload);
            let number = self.numbers[&member.id];
            format!(
                "{number} {what:?} {:?} {:?}",
                member.attributes, member.outcome
            )
        };
        members.iter().map(show).collect()
    }

    fn all_shown(&mut self, entries: &[Entry]) -> Vec<String> {
        entries.iter().map(|entry| self.shown(entry)).collect()
    }
}

fn request(new: &Request) -> NewRequest {
    let mut request = NewRequest::new(vec![b'a' + new.filling; new.size]);
    request.idempotency_key = new.key.map(|key| key.to_string());
    if new.key.is_some() {
        // The key alone decides the payload, mostly: another one is refused.
        request.payload = vec![b'k'; 3 + usize::from(new.size == 0)].into();
    }
    if new.attribute {
        request = request.attribute("filling", new.filling.to_string());
    }
    request.not_before = new.not_before;
    request.ttl = new.ttl;
    request
}

fn outcome(fate: &Fate) -> Outcome {
    match fate {
        Fate::Done(result) => Outcome::Done {
            result: result.map(|byte| vec![byte; usize::from(byte % 5)].into()),
        },
        Fate::Retry(not_before) => Outcome::Retry {
            error: "not yet".into(),
            not_before: *not_before,
        },
        Fate::Reject(reason) => Outcome::Reject {
            reason: *reason,
            error: reason.to_string(),
        },
    }
}

fn then(next: &Next) -> Then {
    match next {
        Next::Hold(until) => Then::Hold { until: *until },
        Next::Release => Then::Release,
        Next::Defer(until) => Then::Defer { until: *until },
        Next::Split { retry_at, attempts } => Then::Split {
            retries: retries(*retry_at, *attempts),
        },
        Next::Finish {
            rest,
            retry_at,
            attempts,
        } => Then::Finish {
            rest: outcome(rest),
            retries: retries(*retry_at, *attempts),
        },
    }
}

fn retries(at: Timestamp, attempts: u32) -> Retries {
    Retries {
        at,
        max_attempts: count(attempts),
    }
}

fn must<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("the call must succeed: {:?}: {error}", error.kind()))
}

fn count(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("steps count from one")
}

fn bytes(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).expect("steps count from one")
}

/// How many of the last leases are used: the older ones are mostly lost, and tried even so.
const LEASES: usize = 5;
