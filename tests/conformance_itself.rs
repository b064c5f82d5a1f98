//! The suite under test: its clauses hold where they should, and fail where they should.
//!
//! `kept_in_memory` runs the clauses that need a restart or several handles, on queues that only pretend
//! to have been closed. The table of spoiled queues shows that a clause notices what it is there for.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use batchyard::{
    Administration, Bookmark, Capabilities, Claim, Error, Lease, Member, MemoryQueue, NewRequest,
    Outcome, Page, Pushed, Queue, QueueOptions, Result, Stats, Then, Timestamp, Update,
    testing::{Harness, conformance::check},
};
use bytes::Bytes;
use tokio::sync::watch;

/// What is done to calls on their way to a queue, and to answers on their way back.
#[derive(Clone, Copy)]
struct Spoils {
    options: fn(QueueOptions) -> QueueOptions,
    push: fn(NewRequest) -> NewRequest,
    pushed: fn(Vec<Pushed>) -> Vec<Pushed>,
    stats: fn(Stats) -> Stats,
    claim: fn(Claim) -> Claim,
    lease: fn(Lease) -> Lease,
    members: fn(Vec<Member>) -> Vec<Member>,
    update: fn(Update) -> Update,
    updated: fn(Result<()>) -> Result<()>,
    capabilities: fn(Capabilities) -> Capabilities,
    /// Verbs are several steps, with a wait in between.
    is_torn: bool,
    /// No `now` before the latest one is taken.
    is_forward_only: bool,
}

impl Spoils {
    /// Nothing is done to them.
    const NONE: Self = Self {
        options: |options| options,
        push: |request| request,
        pushed: |pushed| pushed,
        stats: |stats| stats,
        claim: |claim| claim,
        lease: |lease| lease,
        members: |members| members,
        update: |update| update,
        updated: |result| result,
        capabilities: |can| can,
        is_torn: false,
        is_forward_only: false,
    };
}

/// One handle of a queue in memory that may outlive it.
struct Handle {
    queue: Arc<MemoryQueue>,
    spoils: Spoils,
    closed: AtomicBool,
    latest: AtomicU64,
}

impl Handle {
    fn open(queue: Arc<MemoryQueue>, spoils: Spoils) -> Arc<Self> {
        Arc::new(Self {
            queue,
            spoils,
            closed: AtomicBool::new(false),
            latest: AtomicU64::new(0),
        })
    }

    fn time(&self, now: Timestamp) -> Timestamp {
        let latest = self.latest.fetch_max(now.as_nanos(), Ordering::SeqCst);
        if self.spoils.is_forward_only {
            return now.max(Timestamp::from_nanos(latest));
        }
        now
    }

    fn queue(&self) -> Result<&MemoryQueue> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::closed("this handle was closed"));
        }
        Ok(&self.queue)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handle")
    }
}

#[async_trait]
impl Queue for Handle {
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>> {
        let now = self.time(now);
        let mut requests: Vec<_> = requests.into_iter().map(self.spoils.push).collect();
        let mut pushed = Vec::new();
        while self.spoils.is_torn && requests.len() > 1 {
            let first = vec![requests.remove(0)];
            pushed.extend(self.queue()?.push(now, first).await?);
            tokio::task::yield_now().await;
        }
        pushed.extend(self.queue()?.push(now, requests).await?);
        Ok((self.spoils.pushed)(pushed))
    }

    async fn stats(&self, now: Timestamp) -> Result<Stats> {
        let now = self.time(now);
        Ok((self.spoils.stats)(self.queue()?.stats(now).await?))
    }

    async fn claim(&self, now: Timestamp, claim: &Claim) -> Result<Option<Lease>> {
        let now = self.time(now);
        let claim = (self.spoils.claim)(claim.clone());
        let lease = self.queue()?.claim(now, &claim).await?;
        Ok(lease.map(self.spoils.lease))
    }

    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        let members = self.queue()?.read(lease, page).await?;
        Ok((self.spoils.members)(members))
    }

    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> Result<()> {
        let now = self.time(now);
        let mut update = (self.spoils.update)(update);
        if self.spoils.is_torn {
            let mut before = Update::then(Then::Hold { until: lease.until });
            before.checkpoint = update.checkpoint.take();
            self.queue()?.update(now, lease, before).await?;
            tokio::task::yield_now().await;
        }
        (self.spoils.updated)(self.queue()?.update(now, lease, update).await)
    }

    fn capabilities(&self) -> Capabilities {
        (self.spoils.capabilities)(Capabilities {
            survives_restart: true,
            shared: true,
            ..self.queue.capabilities()
        })
    }

    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        self.queue.pushed()
    }

    async fn push_from(
        &self,
        now: Timestamp,
        requests: Vec<NewRequest>,
        bookmark: Bookmark,
    ) -> Result<Vec<Pushed>> {
        self.queue()?.push_from(now, requests, bookmark).await
    }

    async fn bookmark(&self, source: &str) -> Result<Option<Bytes>> {
        self.queue()?.bookmark(source).await
    }

    fn admin(&self) -> Option<&dyn Administration> {
        self.queue.admin()
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::SeqCst);
        Ok(())
    }
}

/// Opens handles, and remembers the last queue that it opened one to.
struct Handles {
    spoils: Spoils,
    last: std::sync::Mutex<Option<Arc<MemoryQueue>>>,
}

impl Handles {
    fn new(spoils: Spoils) -> Self {
        let last = std::sync::Mutex::default();
        Self { spoils, last }
    }

    fn again(&self) -> Option<Arc<dyn Queue>> {
        let queue = self.last.lock().unwrap().clone()?;
        Some(Handle::open(queue, self.spoils))
    }
}

#[async_trait]
impl Harness for Handles {
    async fn open(&self, options: QueueOptions) -> Arc<dyn Queue> {
        let queue = Arc::new(MemoryQueue::new((self.spoils.options)(options)));
        *self.last.lock().unwrap() = Some(queue.clone());
        Handle::open(queue, self.spoils)
    }

    async fn reopen(
        &self,
        queue: Arc<dyn Queue>,
        _options: QueueOptions,
    ) -> Option<Arc<dyn Queue>> {
        queue.close().await.unwrap();
        self.again()
    }

    async fn another(
        &self,
        _queue: &Arc<dyn Queue>,
        _options: QueueOptions,
    ) -> Option<Arc<dyn Queue>> {
        self.again()
    }
}

batchyard::conformance!(kept_in_memory, Handles::new(Spoils::NONE));

/// Whether a clause fails on queues with these spoils.
fn fails(clause: &str, spoils: Spoils) -> bool {
    catch_unwind(AssertUnwindSafe(|| check(clause, || Handles::new(spoils)))).is_err()
}

/// Ways to break the contract, and a clause that notices.
const SPOILED: [(&str, Spoils); 24] = [
    (
        "push_answers_in_the_order_of_its_requests",
        Spoils {
            pushed: |all| all.into_iter().rev().collect(),
            ..Spoils::NONE
        },
    ),
    (
        "a_payload_comes_back_byte_for_byte",
        Spoils {
            push: |new| NewRequest {
                payload: String::from_utf8_lossy(&new.payload).into_owned().into(),
                ..new
            },
            ..Spoils::NONE
        },
    ),
    (
        "attributes_come_back_as_they_were_pushed",
        Spoils {
            push: |new| NewRequest {
                attributes: [].into(),
                ..new
            },
            ..Spoils::NONE
        },
    ),
    (
        "a_known_key_adds_nothing_and_answers_the_first_id",
        Spoils {
            push: |new| NewRequest {
                idempotency_key: None,
                ..new
            },
            ..Spoils::NONE
        },
    ),
    (
        "a_request_before_its_time_is_delayed",
        Spoils {
            push: |new| NewRequest {
                not_before: None,
                ..new
            },
            ..Spoils::NONE
        },
    ),
    (
        "a_request_expires_when_its_ttl_has_passed_and_not_before",
        Spoils {
            push: |new| NewRequest { ttl: None, ..new },
            ..Spoils::NONE
        },
    ),
    (
        "a_key_is_forgotten_when_its_window_has_passed",
        Spoils {
            options: |options| options.idempotency_window(Duration::MAX),
            ..Spoils::NONE
        },
    ),
    (
        "a_push_over_max_requests_is_queue_full_and_adds_none",
        Spoils {
            options: |_| QueueOptions::default(),
            ..Spoils::NONE
        },
    ),
    (
        "a_done_request_is_forgotten_after_its_retention",
        Spoils {
            options: |_| QueueOptions::default(),
            ..Spoils::NONE
        },
    ),
    (
        "every_reading_adds_up_along_the_way",
        Spoils {
            stats: forget_expired,
            ..Spoils::NONE
        },
    ),
    (
        "the_age_is_that_of_the_first_ready_request",
        Spoils {
            stats: without_age,
            ..Spoils::NONE
        },
    ),
    (
        "claim_takes_no_more_than_max_requests",
        Spoils {
            claim: |claim| Claim {
                max_requests: claim.max_requests.saturating_add(1),
                ..claim
            },
            ..Spoils::NONE
        },
    ),
    (
        "claim_takes_no_more_than_max_bytes",
        Spoils {
            claim: |claim| Claim {
                max_bytes: claim.max_bytes.saturating_add(1),
                ..claim
            },
            ..Spoils::NONE
        },
    ),
    (
        "an_orphan_is_offered_when_its_lease_has_run_out_and_not_before",
        Spoils {
            claim: |claim| Claim {
                lease_duration: claim.lease_duration / 2,
                ..claim
            },
            ..Spoils::NONE
        },
    ),
    (
        "claim_forms_no_batch_before_the_queue_is_due",
        Spoils {
            claim: |claim| Claim { due: None, ..claim },
            ..Spoils::NONE
        },
    ),
    (
        "a_release_burns_no_attempt",
        Spoils {
            update: release_as_defer,
            ..Spoils::NONE
        },
    ),
    (
        "a_deferred_batch_is_offered_at_its_time_and_not_before",
        Spoils {
            update: defer_as_release,
            ..Spoils::NONE
        },
    ),
    (
        "a_checkpoint_comes_back_with_the_next_claim",
        Spoils {
            update: |update| Update {
                checkpoint: None,
                ..update
            },
            ..Spoils::NONE
        },
    ),
    (
        "recorded_outcomes_survive_a_takeover",
        Spoils {
            update: |update| Update {
                outcomes: vec![],
                ..update
            },
            ..Spoils::NONE
        },
    ),
    (
        "update_with_an_old_fence_is_lease_lost",
        Spoils {
            updated: |_| Ok(()),
            ..Spoils::NONE
        },
    ),
    (
        "attempts_count_over_batches_and_redeliveries",
        Spoils {
            members: first_attempts,
            ..Spoils::NONE
        },
    ),
    (
        "read_shows_each_outcome_as_it_was_recorded",
        Spoils {
            members: without_outcomes,
            ..Spoils::NONE
        },
    ),
    (
        "a_split_makes_two_batches_of_equal_size_in_order",
        Spoils {
            lease: |lease| Lease {
                parent: None,
                ..lease
            },
            ..Spoils::NONE
        },
    ),
    (
        "administration_is_there_if_it_is_declared_and_only_then",
        Spoils {
            capabilities: |can| Capabilities {
                administration: false,
                results: false,
                ..can
            },
            ..Spoils::NONE
        },
    ),
];

fn forget_expired(mut stats: Stats) -> Stats {
    stats.expired = 0;
    stats
}

fn without_age(mut stats: Stats) -> Stats {
    stats.oldest_ready_at = None;
    stats
}

fn release_as_defer(update: Update) -> Update {
    match update.then {
        Then::Release => Update {
            then: Then::Defer {
                until: Timestamp::EPOCH,
            },
            ..update
        },
        _ => update,
    }
}

fn defer_as_release(update: Update) -> Update {
    match update.then {
        Then::Defer { .. } => Update {
            then: Then::Release,
            ..update
        },
        _ => update,
    }
}

fn first_attempts(mut members: Vec<Member>) -> Vec<Member> {
    for member in &mut members {
        member.attempt = 1;
    }
    members
}

fn without_outcomes(mut members: Vec<Member>) -> Vec<Member> {
    for member in &mut members {
        member.outcome = None;
    }
    members
}

/// What a random life does not notice: nobody goes away in it.
const WITHOUT_CARE: [(&str, Spoils); 4] = [
    ("a_dropped_push_adds_all_or_nothing_and_its_keys_tell", TORN),
    ("a_dropped_update_took_effect_or_did_not", TORN),
    (
        "what_a_jump_ahead_pushed_ages_from_when_it_is_seen",
        FORWARD_ONLY,
    ),
    (
        "a_jump_ahead_offers_what_is_held_and_fences_its_holder_off",
        FORWARD_ONLY,
    ),
];

const TORN: Spoils = Spoils {
    is_torn: true,
    ..Spoils::NONE
};

const FORWARD_ONLY: Spoils = Spoils {
    is_forward_only: true,
    ..Spoils::NONE
};

#[test]
fn each_careless_queue_fails_its_clause() {
    for (clause, spoils) in WITHOUT_CARE {
        assert!(fails(clause, spoils), "{clause} holds anyhow");
    }
    batchyard::testing::proof(
        "G2 G4 G5 G7",
        "every one that runs the suite",
        "22 clauses on cancellation and clocks",
        &["torn verbs", "a clock that only goes forward"],
    );
}

#[test]
fn each_broken_promise_fails_its_clause() {
    for (clause, spoils) in SPOILED {
        assert!(fails(clause, spoils), "{clause} does not notice");
    }
}

#[test]
fn a_random_life_notices_most_broken_promises_by_itself() {
    let life = "a_random_life_is_that_of_the_reference";
    let noticed = SPOILED.iter().filter(|(_, spoils)| fails(life, *spoils));
    assert!(noticed.count() >= SPOILED.len() - 4);
}

#[test]
fn a_restart_that_changes_what_was_stored_is_noticed() {
    struct Meddling(Handles);

    #[async_trait]
    impl Harness for Meddling {
        async fn open(&self, options: QueueOptions) -> Arc<dyn Queue> {
            self.0.open(options).await
        }

        async fn reopen(
            &self,
            queue: Arc<dyn Queue>,
            options: QueueOptions,
        ) -> Option<Arc<dyn Queue>> {
            let now = queue.now();
            let claimed = queue.claim(now, &Claim::new()).await.unwrap();
            if let Some(lease) = claimed {
                let meddling = Update::then(Then::Finish {
                    rest: Outcome::done(),
                    retries: batchyard::Retries {
                        at: now,
                        max_attempts: 1.try_into().unwrap(),
                    },
                });
                queue.update(now, &lease, meddling).await.unwrap();
            }
            self.0.reopen(queue, options).await
        }
    }

    let meddling = || Meddling(Handles::new(Spoils::NONE));
    for clause in [
        "ready_requests_survive_in_order",
        "a_batch_in_flight_is_resumed_under_its_id",
        "a_random_life_goes_on_across_restarts",
    ] {
        let outcome = catch_unwind(AssertUnwindSafe(|| check(clause, meddling)));
        assert!(outcome.is_err(), "{clause} does not notice");
    }
}

#[test]
fn a_declared_restart_that_can_not_be_shown_fails() {
    struct NeverAgain;

    #[async_trait]
    impl Harness for NeverAgain {
        async fn open(&self, options: QueueOptions) -> Arc<dyn Queue> {
            Handles::new(Spoils::NONE).open(options).await
        }
    }

    for clause in [
        "ready_requests_survive_in_order",
        "a_lease_is_good_on_every_handle",
    ] {
        let outcome = catch_unwind(|| check(clause, || NeverAgain));
        assert!(outcome.is_err(), "{clause} does not notice");
    }
}
