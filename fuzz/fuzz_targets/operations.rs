//! Any sequence of verbs, in any order of time, keeps the promises that need no model to be checked:
//! the counts add up, ids and fences are never reused, a batch offered again has the members it had,
//! a lost lease stays lost, and a claim that answers none leaves nothing that it could have taken.
//!
//! Run it with `cargo +nightly fuzz run operations -- -max_total_time=60`.
#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use arbitrary::Arbitrary;
use batchyard::{
    BatchId, Claim, ErrorKind, Fence, Lease, List, MemoryQueue, NewRequest, Outcome, Page, Queue,
    QueueOptions, RequestId, Retries, State, Stats, Then, Timestamp, Update,
};
use futures_util::FutureExt;
use libfuzzer_sys::fuzz_target;

const MAX_OPS: usize = 100;
const MAX_PUSH: usize = 8;
const MAX_HELD: u64 = 40;
const BATCH_BYTES: u64 = 20;

#[derive(Arbitrary, Debug)]
enum Op {
    Push(Vec<Request>),
    /// Time goes on by so many milliseconds.
    Wait(u16),
    /// The next verb is called with an earlier time.
    StepBack(u8),
    Claim {
        requests: u8,
        bytes: u8,
        lease: u16,
        form: bool,
    },
    Read(u8),
    Update {
        lease: u8,
        outcomes: Vec<(u8, Settle)>,
        checkpoint: bool,
        then: Next,
    },
    Cancel(u8),
    Redrive(u8),
    Purge(u8),
    List(u8),
}

#[derive(Arbitrary, Debug)]
struct Request {
    bytes: u8,
    key: Option<u8>,
    not_before: Option<u16>,
    ttl: Option<u16>,
}

#[derive(Arbitrary, Debug)]
enum Settle {
    Done,
    Retry(Option<u16>),
    Reject,
}

#[derive(Arbitrary, Debug)]
enum Next {
    Hold(u16),
    Release,
    Defer(u16),
    Split,
    Finish(Settle),
}

fuzz_target!(|ops: Vec<Op>| {
    let mut yard = Yard::new();
    for op in ops.into_iter().take(MAX_OPS) {
        yard.apply(op);
        yard.check();
    }
});

struct Yard {
    queue: MemoryQueue,
    now: Timestamp,
    ids: Vec<RequestId>,
    leases: Vec<Lease>,
    last_fence: Option<Fence>,
    members: BTreeMap<BatchId, Vec<RequestId>>,
}

impl Yard {
    fn new() -> Self {
        let options = QueueOptions::default()
            .max_requests(MAX_HELD)
            .retention(millis(1_000_u64))
            .idempotency_window(millis(1_000_u64));
        Self {
            queue: MemoryQueue::new(options),
            now: Timestamp::from_millis(1_000_000),
            ids: Vec::new(),
            leases: Vec::new(),
            last_fence: None,
            members: BTreeMap::new(),
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Push(requests) => self.push(requests),
            Op::Wait(time) => self.now = self.now.after(millis(time)),
            Op::StepBack(time) => self.now = self.now.before(millis(time)),
            Op::Claim {
                requests,
                bytes,
                lease,
                form,
            } => {
                let claim = Claim {
                    max_requests: NonZeroU32::new(u32::from(requests % 16))
                        .unwrap_or(NonZeroU32::MIN),
                    max_bytes: NonZeroU64::new(u64::from(bytes) % BATCH_BYTES)
                        .unwrap_or(NonZeroU64::MIN),
                    lease_duration: millis(lease),
                    form,
                    ..Claim::new()
                };
                self.claim(&claim);
            }
            Op::Read(lease) => {
                if let Some(lease) = pick(&self.leases, lease).cloned() {
                    self.read(&lease);
                }
            }
            Op::Update {
                lease,
                outcomes,
                checkpoint,
                then,
            } => {
                if let Some(lease) = pick(&self.leases, lease).cloned() {
                    self.update(&lease, outcomes, checkpoint, then);
                }
            }
            Op::Cancel(id) => {
                let ids: Vec<_> = pick(&self.ids, id).copied().into_iter().collect();
                let answers = now(self.admin().cancel(self.now, &ids)).expect("cancelling works");
                assert_eq!(answers.len(), ids.len());
            }
            Op::Redrive(id) => self.of_dead(id, |yard, ids| {
                match now(yard.admin().redrive(yard.now, ids)) {
                    Ok(count) => assert!(count <= 1),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::QueueFull),
                }
            }),
            Op::Purge(id) => self.of_dead(id, |yard, ids| {
                assert!(now(yard.admin().purge(yard.now, ids)).expect("purging works") <= 1);
            }),
            Op::List(state) => self.list(state),
        }
    }

    fn push(&mut self, requests: Vec<Request>) {
        let request = |request: Request| NewRequest {
            payload: vec![b'x'; usize::from(request.bytes % 24)].into(),
            idempotency_key: request.key.map(|key| (key % 8).to_string()),
            not_before: request.not_before.map(|time| self.now.after(millis(time))),
            ttl: request.ttl.map(millis),
            ..NewRequest::default()
        };
        let requests: Vec<_> = requests.into_iter().take(MAX_PUSH).map(request).collect();
        let count = requests.len();
        match now(self.queue.push(self.now, requests)) {
            Ok(pushed) => {
                assert_eq!(pushed.len(), count);
                let known: BTreeSet<_> = self.ids.iter().copied().collect();
                for pushed in pushed {
                    let is_new = !known.contains(&pushed.id) && !self.ids.contains(&pushed.id);
                    assert_eq!(
                        is_new, !pushed.duplicate,
                        "{} is reused or unknown",
                        pushed.id
                    );
                    if is_new {
                        self.ids.push(pushed.id);
                    }
                }
            }
            Err(error) => assert!(matches!(
                error.kind(),
                ErrorKind::QueueFull | ErrorKind::Invalid
            )),
        }
    }

    fn claim(&mut self, claim: &Claim) {
        let Some(lease) = now(self.queue.claim(self.now, claim)).expect("claiming works") else {
            let stats = self.stats();
            assert_eq!(stats.offered, 0, "a claim left an offered batch");
            assert!(
                !claim.form || stats.ready == 0,
                "a claim left ready requests"
            );
            return;
        };
        assert!(self.last_fence < Some(lease.fence), "a fence is reused");
        self.last_fence = Some(lease.fence);
        if !self.members.contains_key(&lease.batch) && lease.parent.is_none() {
            assert!(lease.requests <= claim.max_requests.get());
            assert!(lease.bytes <= claim.max_bytes.get());
        }
        let members = self.read(&lease).expect("a new lease is good");
        assert_eq!(members.len(), lease.requests as usize);
        assert!(!members.is_empty(), "an empty batch");
        self.leases.push(lease);
    }

    /// All members in pages of three; they are the same whenever they can be read.
    fn read(&mut self, lease: &Lease) -> Option<Vec<RequestId>> {
        let mut members = Vec::new();
        let mut page = Page {
            max_requests: NonZeroU32::new(3).expect("not zero"),
            ..Page::first()
        };
        loop {
            match now(self.queue.read(lease, page)) {
                Ok(read) => {
                    let Some(last) = read.last() else { break };
                    page = page.after(last.position);
                    members.extend(read.iter().map(|member| member.id));
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::LeaseLost);
                    return None;
                }
            }
        }
        let first = self
            .members
            .entry(lease.batch)
            .or_insert_with(|| members.clone());
        assert_eq!(*first, members, "a batch has other members than before");
        Some(members)
    }

    fn update(&mut self, lease: &Lease, outcomes: Vec<(u8, Settle)>, checkpoint: bool, then: Next) {
        let was_good = self.read(lease).is_some();
        let members = &self.members[&lease.batch];
        let outcome = |(member, settle): (u8, Settle)| {
            pick(members, member).map(|id| (*id, self.outcome(settle)))
        };
        let ends = !matches!(then, Next::Hold(_));
        let retries = Retries {
            at: self.now,
            max_attempts: NonZeroU32::new(3).expect("not zero"),
        };
        let update = Update {
            outcomes: outcomes
                .into_iter()
                .take(MAX_PUSH)
                .filter_map(outcome)
                .collect(),
            checkpoint: checkpoint.then(|| "note".into()),
            then: match then {
                Next::Hold(time) => Then::Hold {
                    until: self.now.after(millis(time)),
                },
                Next::Release => Then::Release,
                Next::Defer(time) => Then::Defer {
                    until: self.now.after(millis(time)),
                },
                Next::Split => Then::Split { retries },
                Next::Finish(rest) => Then::Finish {
                    rest: self.outcome(rest),
                    retries,
                },
            },
        };
        let is_split = matches!(update.then, Then::Split { .. });
        match now(self.queue.update(self.now, lease, update)) {
            Ok(()) => {
                assert!(was_good, "a lost lease changed something");
                if ends {
                    assert_eq!(self.read(lease), None, "a lease is good after its end");
                }
            }
            Err(error) if error.kind() == ErrorKind::LeaseLost => assert!(!was_good),
            Err(error) => assert!(is_split && error.kind() == ErrorKind::Invalid, "{error}"),
        }
    }

    fn outcome(&self, settle: Settle) -> Outcome {
        match settle {
            Settle::Done => Outcome::result("ok"),
            Settle::Retry(wait) => Outcome::Retry {
                error: "later".into(),
                not_before: wait.map(|wait| self.now.after(millis(wait))),
            },
            Settle::Reject => Outcome::reject("never"),
        }
    }

    fn list(&mut self, state: u8) {
        let states = [
            State::Delayed,
            State::Ready,
            State::InFlight,
            State::Done,
            State::Dead,
        ];
        let state = states[usize::from(state) % states.len()];
        let list = List {
            max_requests: NonZeroU32::MAX,
            ..List::new(state)
        };
        let entries = now(self.admin().list(self.now, &list)).expect("listing works");
        assert!(entries.is_sorted_by(|one, next| one.id < next.id));
        assert!(entries.iter().all(|entry| entry.state == state));
        let stats = self.stats();
        let count = match state {
            State::Delayed => stats.delayed,
            State::Ready => stats.ready,
            State::InFlight => stats.in_flight,
            State::Dead => stats.dead,
            // Past their retention they are counted, not kept.
            _ => return,
        };
        assert_eq!(
            entries.len() as u64,
            count,
            "the list and the count of {state} differ"
        );
    }

    fn of_dead(&mut self, id: u8, verb: impl FnOnce(&Self, &[RequestId])) {
        let dead =
            now(self.admin().list(self.now, &List::new(State::Dead))).expect("listing works");
        if let Some(entry) = pick(&dead, id) {
            verb(self, &[entry.id]);
        }
    }

    fn check(&self) {
        let stats = self.stats();
        assert!(stats.adds_up(), "{stats:?}");
        assert_eq!(stats.pushed, self.ids.len() as u64);
        assert_eq!(
            stats.ready == 0,
            stats.oldest_ready_at.is_none(),
            "{stats:?}"
        );
        assert!(
            stats.oldest_ready_at.is_none_or(|at| at <= self.now),
            "{stats:?}"
        );
        assert!(stats.offered <= stats.batches, "{stats:?}");
    }

    fn stats(&self) -> Stats {
        now(self.queue.stats(self.now)).expect("stats work")
    }

    fn admin(&self) -> &dyn batchyard::Administration {
        self.queue.admin().expect("it has administration")
    }
}

/// The answer of a verb that has nothing to wait for.
fn now<T>(verb: impl Future<Output = T>) -> T {
    verb.now_or_never()
        .expect("a queue in memory that rejects when full never waits")
}

fn pick<T>(from: &[T], index: u8) -> Option<&T> {
    from.get(usize::from(index) % from.len().max(1))
}

fn millis(time: impl Into<u64>) -> Duration {
    Duration::from_millis(time.into())
}
