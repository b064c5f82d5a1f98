//! What clauses are written with: verbs that must succeed, and times of their own.

use std::{
    fmt,
    num::{NonZeroU32, NonZeroU64},
    ops::Deref,
    sync::Arc,
    time::Duration,
};

use super::Harness;
use crate::{
    batch::{Claim, Lease, Member, Outcome, Page, Retries, Then, Update},
    clock::Timestamp,
    error::{ErrorKind, Result},
    queue::{Administration, Entry, List, Queue, QueueOptions, Store},
    request::{NewRequest, RequestId, State},
    stats::Stats,
};

/// Where a clause gets its queues from.
pub(super) struct Bench {
    pub(super) harness: Arc<dyn Harness>,
}

impl Bench {
    pub(super) fn new(harness: Arc<dyn Harness>) -> Self {
        Self { harness }
    }

    /// A fresh queue with default options.
    pub(super) async fn queue(&self) -> Subject {
        self.queue_with(QueueOptions::default()).await
    }

    /// A fresh queue with these options.
    pub(super) async fn queue_with(&self, options: QueueOptions) -> Subject {
        Subject {
            queue: self.harness.open(options).await,
            options,
        }
    }

    /// A fresh store.
    pub(super) async fn store(&self) -> Arc<dyn Store> {
        let store = self.harness.store(QueueOptions::default()).await;
        store.expect("the harness had a store a moment ago")
    }

    /// The same queue after a restart.
    pub(super) async fn reopen(&self, subject: Subject) -> Subject {
        let Subject { queue, options } = subject;
        let queue = self.harness.reopen(queue, options).await;
        let queue = queue.expect("a backend that declares survives_restart can be reopened");
        Subject { queue, options }
    }

    /// A second handle to the same queue.
    pub(super) async fn another(&self, subject: &Subject) -> Subject {
        let options = subject.options;
        let queue = self.harness.another(&subject.queue, options).await;
        let queue = queue.expect("a backend that declares shared has a second handle");
        Subject { queue, options }
    }
}

/// A queue under test. Its own verbs must succeed; those of the trait are one dereference away.
pub(super) struct Subject {
    pub(super) queue: Arc<dyn Queue>,
    pub(super) options: QueueOptions,
}

impl Deref for Subject {
    type Target = dyn Queue;

    fn deref(&self) -> &Self::Target {
        &*self.queue
    }
}

impl Subject {
    /// Pushes one request for each payload; their ids.
    pub(super) async fn put(&self, now: Timestamp, payloads: &[&str]) -> Vec<RequestId> {
        self.put_all(now, requests(payloads)).await
    }

    /// Pushes these requests; their ids.
    pub(super) async fn put_all(&self, now: Timestamp, new: Vec<NewRequest>) -> Vec<RequestId> {
        let count = new.len();
        let pushed = must("push", self.queue.push(now, new).await);
        assert_eq!(pushed.len(), count, "push answers once for each request");
        pushed.into_iter().map(|pushed| pushed.id).collect()
    }

    /// Pushes one request; its id.
    pub(super) async fn put_one(&self, now: Timestamp, new: NewRequest) -> RequestId {
        self.put_all(now, vec![new]).await[0]
    }

    /// A reading, which adds up.
    pub(super) async fn look(&self, now: Timestamp) -> Stats {
        let stats = must("stats", self.queue.stats(now).await);
        assert!(stats.adds_up(), "every request is in one state: {stats:?}");
        stats
    }

    /// What a claim answers.
    pub(super) async fn try_take(&self, now: Timestamp, claim: &Claim) -> Option<Lease> {
        must("claim", self.queue.claim(now, claim).await)
    }

    /// Claims a batch, held for a minute; there is one.
    pub(super) async fn take(&self, now: Timestamp) -> Lease {
        let lease = self.try_take(now, &Claim::new()).await;
        lease.expect("a claim answers with a batch")
    }

    /// Claims a batch of at most this many.
    pub(super) async fn take_up_to(&self, now: Timestamp, most: u32) -> Lease {
        let lease = self.try_take(now, &claim_up_to(most)).await;
        lease.expect("a claim answers with a batch")
    }

    /// A claim answers none, and the next reading gives no reason to try again at once.
    pub(super) async fn has_nothing_to_take(&self, now: Timestamp) {
        let lease = self.try_take(now, &Claim::new()).await;
        assert_eq!(lease, None, "nothing is there to claim");
        let stats = self.look(now).await;
        assert_eq!(
            (stats.ready, stats.offered),
            (0, 0),
            "after an empty claim nothing invites another: {stats:?}"
        );
        for time in [stats.next_due, stats.next_offer].into_iter().flatten() {
            assert!(
                time > now,
                "after an empty claim times are later: {stats:?}"
            );
        }
    }

    /// All members, page by page, in order.
    pub(super) async fn members(&self, lease: &Lease) -> Vec<Member> {
        let mut members: Vec<Member> = Vec::new();
        let mut page = Page::first();
        loop {
            let next = must("read", self.queue.read(lease, page).await);
            let Some(last) = next.last() else { break };
            page = page.after(last.position);
            members.extend(next);
        }
        assert_eq!(
            members.len(),
            lease.requests as usize,
            "all members are read"
        );
        assert!(
            members.is_sorted_by(|a, b| a.position < b.position),
            "members are in position order: {members:?}"
        );
        members
    }

    /// The payloads of all members.
    pub(super) async fn payloads(&self, lease: &Lease) -> Vec<String> {
        let members = self.members(lease).await;
        let text = |member: &Member| String::from_utf8_lossy(&member.payload).into_owned();
        members.iter().map(text).collect()
    }

    /// Updates a held batch.
    pub(super) async fn give(&self, now: Timestamp, lease: &Lease, update: Update) {
        must("update", self.queue.update(now, lease, update).await);
    }

    /// Records outcomes and holds on.
    pub(super) async fn record(&self, now: Timestamp, lease: &Lease, all: &[(RequestId, Outcome)]) {
        self.give(now, lease, recording(lease, all)).await;
    }

    /// Ends a batch; what is to be retried is so at once.
    pub(super) async fn finish(&self, now: Timestamp, lease: &Lease, rest: Outcome) {
        self.give(now, lease, finishing(rest, now)).await;
    }

    /// Ends a batch with every member done.
    pub(super) async fn finish_done(&self, now: Timestamp, lease: &Lease) {
        self.finish(now, lease, Outcome::done()).await;
    }

    /// Splits a batch.
    pub(super) async fn split(&self, now: Timestamp, lease: &Lease) {
        self.give(now, lease, Update::then(splitting(now))).await;
    }

    /// Its administration.
    pub(super) fn admin(&self) -> &dyn Administration {
        let admin = self.queue.admin();
        admin.expect("a backend that declares administration has it")
    }

    /// What is known of a request.
    pub(super) async fn status(&self, now: Timestamp, id: RequestId) -> Option<Entry> {
        must("status", self.admin().status(now, id).await)
    }

    /// What is known of a request that is known.
    pub(super) async fn entry(&self, now: Timestamp, id: RequestId) -> Entry {
        let entry = self.status(now, id).await;
        entry.unwrap_or_else(|| panic!("request {id} is known"))
    }

    /// The ids of the requests in one state.
    pub(super) async fn ids(&self, now: Timestamp, state: State) -> Vec<RequestId> {
        let entries = must("list", self.admin().list(now, &List::new(state)).await);
        entries.iter().map(|entry| entry.id).collect()
    }
}

/// The value of a call that must succeed.
pub(super) fn must<T>(what: &str, result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{what} must succeed: {:?}: {error}", error.kind()))
}

/// The call failed with this kind.
#[track_caller]
pub(super) fn assert_kind<T: fmt::Debug>(result: Result<T>, kind: ErrorKind) {
    match result {
        Ok(value) => panic!("expected {kind:?}, and it answered {value:?}"),
        Err(error) => assert_eq!(error.kind(), kind, "{error}"),
    }
}

/// Seconds after the beginning of 2026, as a time.
pub(super) const fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis((1_767_225_600 + seconds) * 1000)
}

/// A nanosecond before `time`.
pub(super) fn just_before(time: Timestamp) -> Timestamp {
    time.before(Duration::from_nanos(1))
}

/// This many seconds.
pub(super) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// One request for each payload.
pub(super) fn requests(payloads: &[&str]) -> Vec<NewRequest> {
    let new = |payload: &&str| NewRequest::new(payload.to_string());
    payloads.iter().map(new).collect()
}

/// A claim of at most this many requests.
pub(super) fn claim_up_to(most: u32) -> Claim {
    Claim {
        max_requests: count(most),
        ..Claim::new()
    }
}

/// A claim of at most this many payload bytes.
pub(super) fn claim_bytes(most: u64) -> Claim {
    Claim {
        max_bytes: bytes(most),
        ..Claim::new()
    }
}

/// An update that records outcomes and holds on until the same time.
pub(super) fn recording(lease: &Lease, outcomes: &[(RequestId, Outcome)]) -> Update {
    Update {
        outcomes: outcomes.to_vec(),
        ..Update::then(Then::Hold { until: lease.until })
    }
}

/// An update that ends a batch.
pub(super) fn finishing(rest: Outcome, retry_at: Timestamp) -> Update {
    Update::then(Then::Finish {
        rest,
        retries: retries(retry_at),
    })
}

/// Splitting with retries at this time.
pub(super) fn splitting(retry_at: Timestamp) -> Then {
    Then::Split {
        retries: retries(retry_at),
    }
}

/// Retries at this time, as often as it takes.
pub(super) fn retries(at: Timestamp) -> Retries {
    Retries {
        at,
        max_attempts: NonZeroU32::MAX,
    }
}

/// A number that is not zero.
pub(super) fn count(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("clauses count from one")
}

/// A number of bytes that is not zero.
pub(super) fn bytes(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).expect("clauses count from one")
}
