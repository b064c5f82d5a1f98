//! The contract of [`Queue`] as named clauses, each a test that every backend must pass.
//!
//! ```text
//!   conformance!(memory, MemoryHarness)
//!        │
//!        ├─ memory::push_answers_one_id_for_each_request_in_order ... ok
//!        ├─ memory::update_with_an_old_fence_is_lease_lost ... ok
//!        └─ memory::lists_what_it_skips ... ok      (with --nocapture: each clause skipped, and why)
//! ```
//! A clause opens fresh queues from the [`Harness`], moves a `now` of its own, never sleeps and never
//! looks at the clock. What a backend does not declare in its [`Capabilities`](crate::Capabilities) is not asked of it: such
//! a clause prints `skipped:`, its name and what it needs, and passes. What a backend declares is
//! tested; a harness that can't show it (no [`Harness::reopen`] where
//! [`survives_restart`](crate::Capabilities::survives_restart) is declared) fails.
//!
//! One thing is asked beyond the contract: a batch of up to 64 small requests is formed whole if
//! the limits allow it, because most clauses need batches of more than one request.

mod bench;
mod clauses;

mod admin;
mod batches;
mod bookmarks;
mod cancellation;
mod capabilities;
mod claim;
mod clocks;
mod concurrency;
mod ending;
mod hold;
mod keys;
mod limits;
mod many;
mod moments;
mod push;
mod random;
mod read;
mod restart;
mod results;
mod schedule;
mod shared;
mod stats;
mod stores;
mod stress;
mod transfer;
mod update;
mod wakeups;

use std::{fmt, future::Future, pin::Pin, sync::Arc, thread, time::Duration};

use async_trait::async_trait;

use self::bench::Bench;
use super::proof;
use crate::queue::{Durability, Queue, QueueOptions, Store};

/// Opens the queues that the suite tests.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// A fresh, empty queue with these options, apart from every other.
    async fn open(&self, options: QueueOptions) -> Arc<dyn Queue>;

    /// Lets go of a queue and opens what it stored again, as a restart would; `None` if this backend
    /// keeps nothing. Called with the last handle.
    async fn reopen(&self, queue: Arc<dyn Queue>, options: QueueOptions) -> Option<Arc<dyn Queue>> {
        let _ = (queue, options);
        None
    }

    /// A second handle to the same queue, as another process would open it; `None` if this backend
    /// can't be shared.
    async fn another(
        &self,
        queue: &Arc<dyn Queue>,
        options: QueueOptions,
    ) -> Option<Arc<dyn Queue>> {
        let _ = (queue, options);
        None
    }

    /// A fresh store without queues, which makes them with these options; `None` if this backend is a
    /// queue and no more.
    async fn store(&self, options: QueueOptions) -> Option<Arc<dyn Store>> {
        let _ = options;
        None
    }

    /// Whether its queues keep the bounds of their [`QueueOptions`]. Default: yes.
    fn keeps_bounds(&self) -> bool {
        true
    }
}

/// What a clause needs beyond the five verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// [`Capabilities::administration`](crate::Capabilities::administration).
    Administration,
    /// [`Capabilities::bookmarks`](crate::Capabilities::bookmarks).
    Bookmarks,
    /// [`Capabilities::results`](crate::Capabilities::results).
    Results,
    /// [`Capabilities::batches`](crate::Capabilities::batches).
    Batches,
    /// [`Capabilities::survives_restart`](crate::Capabilities::survives_restart).
    Restart,
    /// [`Capabilities::shared`](crate::Capabilities::shared).
    Shared,
    /// [`Harness::keeps_bounds`].
    Bounds,
    /// [`Queue::pushed`] answers.
    WakeUps,
    /// [`Harness::store`] answers.
    Store,
    /// [`Queue::transfer`] answers.
    Transfer,
    /// [`Harness::store`] answers, and its [`Store::moment`].
    Moments,
}

impl Need {
    async fn is_met(self, harness: &dyn Harness, queue: &dyn Queue) -> bool {
        let can = queue.capabilities();
        match self {
            Self::Administration => can.administration,
            Self::Bookmarks => can.bookmarks,
            Self::Results => can.results,
            Self::Batches => can.batches,
            Self::Restart => can.survives_restart,
            Self::Shared => can.shared,
            Self::Bounds => harness.keeps_bounds(),
            Self::WakeUps => queue.pushed().is_some(),
            Self::Store => harness.store(QueueOptions::default()).await.is_some(),
            Self::Transfer => queue.transfer().is_some(),
            Self::Moments => match harness.store(QueueOptions::default()).await {
                Some(store) => matches!(store.moment(queue.now()).await, Ok(Some(_))),
                None => false,
            },
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Administration => "administration",
            Self::Bookmarks => "bookmarks",
            Self::Results => "results",
            Self::Batches => "batches",
            Self::Restart => "survives_restart",
            Self::Shared => "shared",
            Self::Bounds => "bounds",
            Self::WakeUps => "wake-ups (`pushed`)",
            Self::Store => "a store",
            Self::Transfer => "transfer",
            Self::Moments => "moments",
        })
    }
}

/// One promise of the contract and the code that tests it.
#[derive(Clone, Copy)]
pub struct Clause {
    /// The promise as a sentence, such as `update_with_an_old_fence_is_lease_lost`.
    pub name: &'static str,
    /// The verb or topic it is about.
    pub topic: &'static str,
    /// What it needs beyond the five verbs.
    pub needs: &'static [Need],
    run: fn(Bench) -> Pin<Box<dyn Future<Output = ()>>>,
}

impl fmt::Debug for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.topic, self.name)
    }
}

impl Clause {
    /// The first of its needs that is not met.
    async fn lacks(&self, harness: &dyn Harness, queue: &dyn Queue) -> Option<Need> {
        for need in self.needs {
            if !need.is_met(harness, queue).await {
                return Some(*need);
            }
        }
        None
    }
}

/// Every clause, in the order of the topics.
pub const CLAUSES: &[Clause] = crate::__clauses!(__clause_table []);

/// Tests one clause, by name, on a queue of the harness that `make` answers, in a runtime of its own.
///
/// # Panics
/// If the clause does not hold, or if it takes longer than five minutes.
pub fn check<H: Harness>(clause: &str, make: impl FnOnce() -> H) {
    let clause = CLAUSES
        .iter()
        .find(|known| known.name == clause)
        .unwrap_or_else(|| panic!("no clause is called {clause:?}"));
    block_on(async {
        let harness: Arc<dyn Harness> = Arc::new(make());
        let queue = harness.open(QueueOptions::default()).await;
        if let Some(need) = clause.lacks(&*harness, &*queue).await {
            println!("skipped: {}: needs {need}", clause.name);
            return;
        }
        drop(queue);
        let outcome = (clause.run)(Bench::new(harness));
        tokio::time::timeout(HANGS_AFTER, outcome)
            .await
            .unwrap_or_else(|_| panic!("{} hangs", clause.name));
    });
}

/// Prints what the harness's backend declares, and each clause it skips with what that clause needs.
pub fn print_skipped<H: Harness>(make: impl FnOnce() -> H) {
    block_on(async {
        let harness = make();
        let queue = harness.open(QueueOptions::default()).await;
        let can = queue.capabilities();
        println!("declares: {can:?}");
        let mut skipped = 0;
        for clause in CLAUSES {
            if let Some(need) = clause.lacks(&harness, &*queue).await {
                println!("skipped: {}: needs {need}", clause.name);
                skipped += 1;
            }
        }
        println!("{skipped} of {} clauses skipped", CLAUSES.len());
        let module = thread::current().name().unwrap_or("?").to_owned();
        let backend = module.split("::").next().unwrap_or("?");
        let held = format!(
            "{} clauses, {skipped} more skipped",
            CLAUSES.len() - skipped
        );
        proof("G1 to G7, G9, G12", backend, held, &[]);
        for (what, is_declared) in [
            (
                "durability beyond the process",
                can.durability != Durability::Process,
            ),
            ("bounded_memory", can.bounded_memory),
            ("opens_after_damage", can.opens_after_damage),
        ] {
            if is_declared {
                println!("declared, and for tests of the backend's own to show: {what}");
            }
        }
    });
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be built")
        .block_on(future);
}

/// Far beyond what any clause takes: a clause that waits for ever ends as a failure with a name.
const HANGS_AFTER: Duration = Duration::from_secs(300);
