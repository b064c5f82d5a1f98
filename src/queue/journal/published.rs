//! What every handle of a queue sees: the last state that is durable, and a wake-up.

use std::{convert::Infallible, sync::PoisonError};

use tokio::sync::watch;

use super::state::QueueState;
use crate::{
    clock::Timestamp,
    queue::{QueueOptions, directive::Directives},
    request::{Position, QueueName},
    stats::{FirstSeen, Stats},
    sync::{Mutex, MutexGuard},
};

/// What the handles of one queue share.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) id: u32,
    pub(super) name: QueueName,
    pub(super) changes: watch::Sender<u64>,
    seen: Mutex<(Reading, FirstSeen)>,
}

/// A queue at the end of a group.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    options: QueueOptions,
    stats: Stats,
    oldest: Option<(u64, u64)>,
    /// The time from which time alone changes something.
    next_change: u64,
    /// When each open batch is offered, the earliest first.
    offers: Vec<u64>,
}

impl Reading {
    pub(super) fn of(queue: &QueueState) -> Self {
        let counts = &queue.stored.counts;
        let stored = &queue.stored;
        let mut offers: Vec<u64> = stored.open.values().map(|open| open.until).collect();
        offers.sort_unstable();
        let next_due = stored.delayed.keys().next();
        let Ok(directives) =
            Directives::find(|source| Ok::<_, Infallible>(stored.bookmarks.get(source)));
        Self {
            options: queue.options,
            stats: directives.shown_in(Stats {
                pushed: counts.pushed,
                delayed: stored.delayed.len() as u64,
                next_due: next_due.map(|(due, _)| Timestamp::from_nanos(*due)),
                ready: counts.ready,
                ready_bytes: counts.ready_bytes,
                in_flight: counts.in_flight,
                batches: stored.open.len() as u64,
                done: counts.done,
                dead: stored.dead.len() as u64,
                expired: counts.expired,
                cancelled: counts.cancelled,
                purged: counts.purged,
                held_bytes: counts.held_bytes,
                ..Stats::default()
            }),
            oldest: queue.oldest(),
            next_change: queue.next_change(),
            offers,
        }
    }
}

impl Live {
    pub(super) fn new(id: u32, name: QueueName, queue: &QueueState) -> Self {
        Self {
            id,
            name,
            changes: watch::Sender::new(0),
            seen: Mutex::new((Reading::of(queue), FirstSeen::default())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Reading, FirstSeen)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    pub(super) fn publish(&self, reading: Reading) {
        self.lock().0 = reading;
    }

    pub(super) fn set_options(&self, options: QueueOptions) {
        self.lock().0.options = options;
    }

    pub(super) fn options(&self) -> QueueOptions {
        self.lock().0.options
    }

    /// The reading as of `now`, or `None` if time alone has changed something since.
    pub(super) fn stats(&self, now: Timestamp) -> Option<Stats> {
        let due = self.lock().0.next_change <= now.as_nanos();
        (!due).then(|| self.stats_after(now))
    }

    /// The reading as of `now`, which the queue has been brought to.
    pub(super) fn stats_after(&self, now: Timestamp) -> Stats {
        let (reading, first_seen) = &mut *self.lock();
        let until = |offer: &u64| *offer <= now.as_nanos();
        let offered = reading.offers.partition_point(until);
        let next_offer = reading.offers.get(offered).copied();
        Stats {
            oldest_ready_at: age(reading.oldest, first_seen, now),
            offered: offered as u64,
            next_offer: next_offer.map(Timestamp::from_nanos),
            ..reading.stats
        }
    }

    /// Since when the age of a queue counts whose first ready request this is.
    pub(super) fn oldest_ready_at(
        &self,
        oldest: Option<(u64, u64)>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        age(oldest, &mut self.lock().1, now)
    }
}

fn age(oldest: Option<(u64, u64)>, seen: &mut FirstSeen, now: Timestamp) -> Option<Timestamp> {
    let (position, ready_at) = oldest?;
    let ready_at = Timestamp::from_nanos(ready_at);
    Some(seen.clamp(Position::from_u64(position), ready_at, now))
}
