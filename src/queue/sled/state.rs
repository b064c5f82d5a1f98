//! What the writer knows of each queue without asking the disk.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::watch;

use super::{
    db::{self, Db},
    keys::{self, Tree},
    record::{BatchV1, BookmarkV1, KeptV1, QueueV1, RequestV1},
};
use crate::{
    clock::Timestamp,
    error::{Error, Result},
    queue::{QueueOptions, directive::Directives},
    request::{Position, QueueName},
    stats::{FirstSeen, Stats},
};

/// A queue as the writer sees it.
#[derive(Debug)]
pub(super) struct QueueState {
    /// The number that its keys begin with. Handles have the one that it was opened under, which a restore
    /// does not change.
    pub(super) id: u32,
    pub(super) options: QueueOptions,
    pub(super) record: QueueV1,
    pub(super) directives: Directives,
    /// Batches that have not ended.
    pub(super) open: BTreeMap<u128, BatchV1>,
    /// Batches that have ended and whose members are not all settled yet.
    pub(super) ending: BTreeMap<u128, BatchV1>,
    /// The first ready request: its position, and since when it is ready.
    pub(super) oldest: Option<(u64, u64)>,
    pub(super) next: Next,
    /// Of whoever takes in a dump for this queue.
    pub(super) turn: Weak<()>,
    /// Whether this group has something to wake others for.
    pub(super) wake: bool,
    pub(super) live: Arc<Live>,
}

/// When time alone next changes something; `u64::MAX` for never.
#[derive(Clone, Copy, Debug)]
pub(super) struct Next {
    pub(super) due: u64,
    pub(super) expiry: u64,
    pub(super) kept: u64,
    pub(super) key: u64,
}

impl Next {
    pub(super) const NEVER: Self = Self {
        due: u64::MAX,
        expiry: u64::MAX,
        kept: u64::MAX,
        key: u64::MAX,
    };

    pub(super) fn first(self) -> u64 {
        self.due.min(self.expiry).min(self.kept).min(self.key)
    }
}

/// What every handle of a queue shares, published before each answer.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) id: u32,
    pub(super) name: QueueName,
    pub(super) changes: watch::Sender<u64>,
    published: Mutex<Published>,
    first_seen: Mutex<FirstSeen>,
}

#[derive(Debug, Default)]
struct Published {
    options: QueueOptions,
    stats: Stats,
    oldest: Option<(u64, u64)>,
    /// The time from which time alone changes something.
    next: u64,
    /// When each open batch is offered, the earliest first.
    offers: Vec<u64>,
}

impl Live {
    pub(super) fn new(id: u32, name: QueueName) -> Arc<Self> {
        Arc::new(Self {
            id,
            name,
            changes: watch::Sender::new(0),
            published: Mutex::default(),
            first_seen: Mutex::default(),
        })
    }

    pub(super) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// The reading as of `now`, or `None` if time alone has changed something since.
    pub(super) fn stats(&self, now: Timestamp) -> Option<Stats> {
        let due = self.lock().next <= now.as_nanos();
        (!due).then(|| self.stats_after(now))
    }

    /// The reading as of `now`, which the queue has been brought to.
    pub(super) fn stats_after(&self, now: Timestamp) -> Stats {
        let published = self.lock();
        let offered = published
            .offers
            .partition_point(|until| *until <= now.as_nanos());
        Stats {
            oldest_ready_at: self.oldest_ready_at(published.oldest, now),
            offered: offered as u64,
            next_offer: published
                .offers
                .get(offered)
                .copied()
                .map(Timestamp::from_nanos),
            ..published.stats
        }
    }

    /// Since when the queue's age counts, given its first ready request.
    pub(super) fn oldest_ready_at(
        &self,
        oldest: Option<(u64, u64)>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let (position, ready_at) = oldest?;
        let mut seen = self
            .first_seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Some(seen.clamp(
            Position::from_u64(position),
            Timestamp::from_nanos(ready_at),
            now,
        ))
    }

    pub(super) fn options(&self) -> QueueOptions {
        self.lock().options
    }

    fn lock(&self) -> MutexGuard<'_, Published> {
        self.published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueState {
    pub(super) fn new(id: u32, record: QueueV1, options: QueueOptions, live: Arc<Live>) -> Self {
        Self {
            id,
            options,
            record,
            directives: Directives::default(),
            open: BTreeMap::new(),
            ending: BTreeMap::new(),
            oldest: None,
            next: Next::NEVER,
            turn: Weak::new(),
            wake: false,
            live,
        }
    }

    /// What is dumped of it, as it is now.
    pub(super) fn still(&self) -> Self {
        let (record, live) = (self.record.clone(), Arc::clone(&self.live));
        Self {
            open: self.open.clone(),
            ..Self::new(self.id, record, self.options, live)
        }
    }

    /// Reads what is kept in memory.
    pub(super) fn load(&mut self, db: &Db) -> Result<()> {
        let (from, to) = (keys::batch(self.id, 0), keys::batch(self.id, u128::MAX));
        for entry in db.range(Tree::Pending, from, to) {
            let (key, value) = entry?;
            let (batch, _) = db::read::<BatchV1>(Tree::Pending, &key, &value)?;
            let id = u128::from(keys::number(&key, 0)) << 64 | u128::from(keys::number(&key, 1));
            if batch.ending.is_some() {
                self.ending.insert(id, batch);
            } else {
                self.open.insert(id, batch);
            }
        }
        self.find_directives(db)?;
        self.find_oldest(db)?;
        self.find_next(db)
    }

    /// Looks up what operators ask of it.
    pub(super) fn find_directives(&mut self, db: &Db) -> Result<()> {
        self.directives = Directives::find(|source| {
            let key = keys::text(self.id, source.as_bytes());
            let bookmark = db.load::<BookmarkV1>(Tree::Bookmarks, &key)?;
            Ok::<_, Error>(bookmark.map(|(_, value)| value))
        })?;
        Ok(())
    }

    /// Looks up the first ready request: one seek.
    pub(super) fn find_oldest(&mut self, db: &Db) -> Result<()> {
        self.oldest = None;
        if self.record.ready == 0 {
            return Ok(());
        }
        let from = keys::key(self.id, &[self.record.cursor.saturating_add(1)]);
        let to = keys::key(self.id, &[self.record.last_position]);
        if let Some((key, value)) = db.first(Tree::Requests, from, to)? {
            let (request, _) = db::read::<RequestV1>(Tree::Requests, &key, &value)?;
            self.oldest = Some((keys::number(&key, 0), request.ready_at));
        }
        Ok(())
    }

    /// Looks up when time alone next changes something.
    pub(super) fn find_next(&mut self, db: &Db) -> Result<()> {
        let first = |tree| -> Result<u64> {
            let (from, to) = (keys::key(self.id, &[0]), keys::key(self.id, &[u64::MAX; 4]));
            let found = db.first(tree, from, to)?;
            Ok(found.map_or(u64::MAX, |(key, _)| keys::number(&key, 0)))
        };
        let next = Next {
            due: first(Tree::Delayed)?,
            expiry: first(Tree::Expiry)?,
            kept: first(Tree::Kept)?,
            key: first(Tree::KeyExpiry)?,
        };
        self.next = next;
        Ok(())
    }

    /// The batch, open or ending, that this position is in.
    pub(super) fn batch_at(&self, position: u64) -> Option<(u128, &BatchV1)> {
        let holds = |batch: &&BatchV1| batch.first <= position && position <= batch.last;
        let mut batches = self.open.iter().chain(&self.ending);
        batches
            .find(|(_, batch)| holds(batch))
            .map(|(id, batch)| (*id, batch))
    }

    /// Offers the batches of holders that are known to be gone.
    pub(super) fn offer_held(&mut self) {
        for batch in self.open.values_mut().filter(|batch| batch.held) {
            batch.until = 0;
        }
        self.publish();
    }

    /// Shows every handle how things stand; call it once that is durable.
    pub(super) fn publish(&mut self) {
        let record = &self.record;
        let mut offers: Vec<u64> = self.open.values().map(|batch| batch.until).collect();
        offers.sort_unstable();
        let stats = self.directives.shown_in(Stats {
            pushed: record.pushed,
            delayed: record.delayed,
            next_due: (record.delayed > 0).then(|| Timestamp::from_nanos(self.next.due)),
            ready: record.ready,
            ready_bytes: record.ready_bytes,
            in_flight: record.in_flight,
            batches: self.open.len() as u64,
            done: record.done,
            dead: record.dead,
            expired: record.expired,
            cancelled: record.cancelled,
            purged: record.purged,
            held_bytes: record.held_bytes,
            ..Stats::default()
        });
        let published = &mut *self.live.lock();
        published.options = self.options;
        published.stats = stats;
        published.oldest = self.oldest;
        published.next = self.next.first();
        published.offers = offers;
    }
}

/// Forgets nothing that [`KeptV1`] does not name.
pub(super) fn kept_ids(key: &[u8], value: &sled::IVec) -> Result<Vec<u64>> {
    db::read::<KeptV1>(Tree::Kept, key, value).map(|(kept, _)| kept.ids)
}
