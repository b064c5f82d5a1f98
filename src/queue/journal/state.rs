//! What is kept in memory of each queue; payloads, results and error texts lie in the log.
//!
//! ```text
//!  natural ids     ──── done ────┬── batches: (after, last] ──┬──── ready ────▶ last position
//!                                                         cursor
//!  stretches       [......][......][......][......][......][......][...       id → place in the log
//!  places          what does not stand where its id says: delayed, moved, dead
//! ```
//! A pushed request stands where its id says (its *natural* place) until something happens to it. So
//! what most requests need is in their [`Stretch`]: up to 1,024 of them, or 64 KiB, are one entry. A batch
//! is a range of natural ids less its holes, and the few moved ones among them.
//!
//! A stretch is kept while something refers to it: the ready ones in it, a batch whose range touches
//! it, a place of one of its ids.

mod needed;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

pub(super) use self::needed::Need;
use super::{
    codec::{self, Codec, Input, choice, record},
    fold::DONE,
};
use crate::{
    batch::{BatchId, Lease},
    clock::Timestamp,
    error::{Error, Result},
    queue::QueueOptions,
    request::QueueName,
};

/// A time, a position or an id that never comes.
pub(super) const NEVER: u64 = u64::MAX;

record! {
    /// Bytes in the log, with their checksum.
    #[derive(Copy, PartialOrd, Ord)]
    struct Blob {
        segment: u32,
        offset: u32,
        bytes: u32,
        check: u32,
    }

    /// Where a run of pushed requests lies, and what is still ready of it.
    #[derive(Copy)]
    struct Stretch {
        /// The first and the last id.
        first: u64,
        last: u64,
        segment: u32,
        offset: u32,
        bytes: u32,
        /// How far behind `offset` its last piece begins.
        tail: u32,
        requests: u32,
        ready: u32,
        ready_bytes: u64,
        /// The largest payload that was pushed into it.
        largest: u64,
        /// The first of them that is ready, and since when it is so.
        head: u64,
        ready_at: u64,
        /// When the first of them that is ready expires, or earlier.
        expires_at: u64,
        refs: u32,
        /// Whether it was carried to where it is.
        carried: bool,
    }

    /// A request that does not stand where its id says.
    #[derive(Copy)]
    struct Moved {
        id: u64,
        bytes: u64,
        ready_at: u64,
        expires_at: u64,
        attempts: u32,
        error: Option<Blob>,
    }

    /// The members of a batch: natural ones past `after` up to `last` that are not holes, and moved ones.
    struct Members {
        after: u64,
        last: u64,
        /// The `after` of the claim that it descends from.
        root: u64,
        holes: BTreeSet<u64>,
        moved: BTreeMap<u64, Moved>,
        requests: u32,
        bytes: u64,
    }

    /// Recorded outcomes, and the positions between which their members are.
    #[derive(Copy)]
    struct Page {
        blob: Blob,
        first: u64,
        last: u64,
    }

    /// A batch that has not ended.
    struct Open {
        parent: Option<u64>,
        fence: u64,
        held: bool,
        until: u64,
        attempt: u32,
        prior: u32,
        formed_at: u64,
        context: Bytes,
        checkpoint: Option<Bytes>,
        members: Members,
        /// Members without an outcome, and their payload bytes.
        unsettled: u32,
        unsettled_bytes: u64,
        /// The kind of each outcome, by position.
        recorded: BTreeMap<u64, u8>,
        pages: Vec<Page>,
        /// The entries of `settled` that these pages are.
        sequences: Vec<u64>,
        cancelled: BTreeSet<u64>,
    }

    /// How members without an outcome of their own were done.
    #[derive(Copy)]
    struct Rest {
        at: u64,
        attempts: u32,
        result: Option<Blob>,
    }

    /// A batch that has ended and whose done members are kept for a while.
    struct Ended {
        members: Members,
        pages: Vec<Page>,
        rest: Option<Rest>,
        until: u64,
        sequences: Vec<u64>,
    }

    /// A dead letter.
    #[derive(Copy)]
    struct Dead {
        bytes: u64,
        at: u64,
        batch: Option<u64>,
        reason: u8,
        attempts: u32,
        error: Blob,
        sequence: u64,
    }

    /// Dead letters that were settled in one step.
    struct DeadPage {
        ids: Vec<u64>,
        kept: u32,
    }

    /// A known idempotency key; it is named by a digest.
    #[derive(Copy)]
    struct Key {
        id: u64,
        payload: [u8; 16],
        expires_at: u64,
    }

    #[derive(Copy)]
    struct Counts {
        pushed: u64,
        ready: u64,
        ready_bytes: u64,
        in_flight: u64,
        done: u64,
        expired: u64,
        cancelled: u64,
        purged: u64,
        held_bytes: u64,
    }

    /// All that is stored of a queue.
    struct Stored {
        name: String,
        salt: u64,
        counts: Counts,
        last_position: u64,
        last_batch: u64,
        last_fence: u64,
        last_settled: u64,
        /// Natural ids up to here are not ready any more.
        cursor: u64,
        /// By their first id.
        stretches: BTreeMap<u64, Stretch>,
        /// Natural ids past the cursor that are not ready.
        absent: BTreeSet<u64>,
        /// Ready ones, by position.
        moved: BTreeMap<u64, Moved>,
        /// By when they are due, then by the position they had.
        delayed: BTreeMap<(u64, u64), Moved>,
        places: BTreeMap<u64, Stand>,
        open: BTreeMap<u64, Open>,
        ended: BTreeMap<u64, Ended>,
        dead: BTreeMap<u64, Dead>,
        settled: BTreeMap<u64, Settled>,
        keys: BTreeMap<[u8; 16], Key>,
        bookmarks: BTreeMap<String, Bytes>,
    }
}

choice! {
    /// Where a request stands that does not stand where its id says.
    #[derive(Copy)]
    enum Stand {
        /// When it is due, and the position it had.
        Delayed((u64, u64)) = 0,
        /// Its position.
        Ready(u64) = 1,
        /// Its batch and position.
        Member((u64, u64)) = 2,
        /// The batch that settled it, and its position there.
        Done((u64, u64)) = 3,
        Dead(()) = 4,
    }

    /// What was settled in one step.
    enum Settled {
        /// Recorded outcomes of a batch, of which those that are done are listed.
        Page((u64, Page)) = 0,
        /// What was done by the rest of a batch.
        Rest(u64) = 1,
        Dead(DeadPage) = 2,
    }
}

/// A queue, with what follows from what is stored of it.
#[derive(Debug, Default)]
pub(super) struct QueueState {
    pub(super) stored: Stored,
    pub(super) options: QueueOptions,
    /// Stretches with ready requests that expire, by when the first does.
    pub(super) expiring: BTreeSet<(u64, u64)>,
    /// Moved and delayed requests that expire.
    pub(super) moved_expiring: BTreeSet<(u64, u64)>,
    pub(super) key_expiry: BTreeSet<(u64, [u8; 16])>,
    pub(super) retained: BTreeSet<(u64, u64)>,
    /// Ended batches with a range, by its last id.
    pub(super) ended_at: BTreeSet<(u64, u64)>,
    /// Parts of what the queue becomes, as far as they have come.
    pub(super) restoring: Vec<u8>,
    /// Where what is being taken in begins to lie in the log.
    pub(super) incoming_from: Option<u32>,
    /// How often an event did not fit what is known, since it was last counted again.
    pub(super) amiss: u64,
}

impl Codec for QueueState {
    fn put(&self, out: &mut Vec<u8>) {
        self.stored.put(out);
    }

    fn take(from: &mut Input<'_>) -> Result<Self> {
        Ok(Self::derive(Stored::take(from)?))
    }
}

impl QueueState {
    pub(super) fn new(name: &QueueName, salt: u64) -> Self {
        Self {
            stored: Stored {
                name: name.to_string(),
                salt,
                ..Stored::default()
            },
            ..Self::default()
        }
    }

    /// A queue that is known by its number only: the event that made it was lost.
    pub(super) fn lost(id: u32) -> Self {
        let name = format!("recovered-{id}").parse().unwrap_or_default();
        // Any that differs from the salts of its neighbours will do.
        Self::new(
            &name,
            (u64::from(id) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        )
    }

    /// A queue from what is stored of it.
    pub(super) fn derive(stored: Stored) -> Self {
        let expiring = stored.stretches.iter();
        let expiring = expiring.filter(|(_, stretch)| stretch.expires_at != NEVER);
        let waiting = stored.moved.values().chain(stored.delayed.values());
        let waiting = waiting.filter(|moved| moved.expires_at != NEVER);
        Self {
            expiring: expiring
                .map(|(first, stretch)| (stretch.expires_at, *first))
                .collect(),
            moved_expiring: waiting.map(|moved| (moved.expires_at, moved.id)).collect(),
            key_expiry: (stored.keys.iter())
                .map(|(key, known)| (known.expires_at, *key))
                .collect(),
            retained: (stored.ended.iter())
                .map(|(batch, ended)| (ended.until, *batch))
                .collect(),
            ended_at: (stored.ended.iter())
                .filter(|(_, ended)| ended.members.has_range())
                .map(|(batch, ended)| (ended.members.last, *batch))
                .collect(),
            options: QueueOptions::default(),
            restoring: Vec::new(),
            incoming_from: None,
            amiss: 0,
            stored,
        }
    }

    /// Becomes what the parts say, if they are whole.
    pub(super) fn restore(&mut self) {
        let parts = std::mem::take(&mut self.restoring);
        let Ok(stored) = codec::whole(&parts) else {
            self.amiss += 1;
            return;
        };
        *self = Self {
            options: self.options,
            ..Self::derive(stored)
        };
        self.recount();
    }

    /// When time alone next changes something.
    pub(super) fn next_change(&self) -> u64 {
        let firsts = [
            self.expiring.first().map(|(at, _)| *at),
            self.moved_expiring.first().map(|(at, _)| *at),
            self.stored.delayed.keys().next().map(|(due, _)| *due),
            self.key_expiry.first().map(|(at, _)| *at),
            self.retained.first().map(|(at, _)| *at),
        ];
        firsts.into_iter().flatten().min().unwrap_or(NEVER)
    }

    /// The first ready request: its position, and since when it is ready.
    pub(super) fn oldest(&self) -> Option<(u64, u64)> {
        let natural = self.ready_stretches().next();
        let natural = natural.map(|(_, stretch)| (stretch.head, stretch.ready_at));
        let moved = self.stored.moved.first_key_value();
        let moved = moved.map(|(position, moved)| (*position, moved.ready_at));
        natural.into_iter().chain(moved).min()
    }

    /// Stretches with natural ready requests, in order.
    pub(super) fn ready_stretches(&self) -> impl Iterator<Item = (u64, &Stretch)> {
        let from = self.stretch_of(self.stored.cursor.saturating_add(1));
        let from = from.map_or(self.stored.cursor, |(first, _)| first);
        let stretches = self.stored.stretches.range(from..);
        stretches
            .filter(|(_, stretch)| stretch.ready > 0)
            .map(|(first, stretch)| (*first, stretch))
    }

    /// The stretch that this id is in, if it was pushed.
    pub(super) fn stretch_of(&self, id: u64) -> Option<(u64, &Stretch)> {
        let (first, stretch) = self.stored.stretches.range(..=id).next_back()?;
        (id <= stretch.last).then_some((*first, stretch))
    }

    /// The stretches that hold ids past `after` up to `last`.
    pub(super) fn stretches_between(
        &self,
        after: u64,
        last: u64,
    ) -> impl Iterator<Item = (u64, &Stretch)> {
        let from = self.stretch_of(after.saturating_add(1));
        let from = from.map_or(after.saturating_add(1), |(first, _)| first);
        // An empty range begins behind its end.
        let range = self.stored.stretches.range(from..=last.max(from));
        range
            .take_while(move |(first, _)| **first <= last)
            .map(|(first, stretch)| (*first, stretch))
    }

    /// Whether a natural id, which was pushed, is ready.
    pub(super) fn is_naturally_ready(&self, id: u64) -> bool {
        id > self.stored.cursor
            && id <= self.stored.last_position
            && !self.stored.absent.contains(&id)
    }

    /// The open batch in whose range a natural id is, if it is in one.
    pub(super) fn natural_batch(&self, id: u64) -> Option<(u64, &Open)> {
        let mut open = self.stored.open.iter();
        open.find(|(_, open)| open.members.has_natural(id))
            .map(|(batch, open)| (*batch, open))
    }

    /// Ended batches in whose range a natural id is.
    pub(super) fn ended_of(&self, id: u64) -> impl Iterator<Item = (u64, &Ended)> {
        let from = self.ended_at.range((id, 0)..);
        from.filter_map(|(_, batch)| Some((*batch, self.stored.ended.get(batch)?)))
            // Of other claims there is nothing in front of their root.
            .take_while(move |(_, ended)| ended.members.root < id)
            .filter(move |(_, ended)| ended.members.has_natural(id))
    }

    pub(super) fn batch_id(&self, batch: u64) -> BatchId {
        BatchId::new(batch, self.stored.salt)
    }

    /// The batch of a lease that still holds it.
    pub(super) fn held(&self, lease: &Lease) -> Result<(u64, &Open)> {
        let open = self.open(lease.batch);
        open.filter(|(_, open)| open.held && open.fence == lease.fence.0)
            .ok_or_else(|| lease.lost())
    }

    /// The number of a batch that has not ended, and what is stored of it.
    pub(super) fn open(&self, id: BatchId) -> Option<(u64, &Open)> {
        let batch = id.halves().0;
        let open = self.stored.open.get(&batch);
        open.filter(|_| self.batch_id(batch) == id)
            .map(|open| (batch, open))
    }

    pub(super) fn held_requests(&self) -> u64 {
        self.stored.delayed.len() as u64 + self.stored.counts.ready + self.stored.counts.in_flight
    }

    /// Fails if the queue can't hold so much more.
    pub(super) fn check_room(&self, requests: u64, bytes: u64) -> Result<()> {
        let held = (self.held_requests(), self.stored.counts.held_bytes);
        self.options.check_room(held, (requests, bytes))
    }
}

impl Open {
    /// Its members that are not done, in number.
    pub(super) fn left(&self) -> u64 {
        let failed = self.recorded.values().filter(|kind| **kind != DONE);
        u64::from(self.unsettled) + failed.count() as u64
    }
}

impl Members {
    /// Whether there may be natural ones among them.
    pub(super) fn has_range(&self) -> bool {
        self.after < self.last
    }

    pub(super) fn has_natural(&self, id: u64) -> bool {
        self.after < id && id <= self.last && !self.holes.contains(&id)
    }
}

/// Everything that is stored: what a baseline holds.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) queues: BTreeMap<u32, QueueState>,
    /// What the checks of requests start from; the store's, not a part of what is stored.
    pub(super) salt: u64,
}

impl State {
    /// The oldest segment that something refers to.
    pub(super) fn oldest_segment(&self) -> Option<u32> {
        let queues = self.queues.values();
        queues.filter_map(QueueState::oldest_segment).min()
    }
}

impl QueueState {
    /// The number of the next batch; another one follows it.
    pub(super) fn next_batch(&self, now: Timestamp) -> Result<u64> {
        let next = self.stored.last_batch.checked_add(1);
        let next = next.map(|next| next.max(now.as_nanos()));
        // A split needs two.
        next.filter(|next| *next < u64::MAX)
            .ok_or_else(|| Error::invalid("`now` leaves no ids for a batch"))
    }
}

impl Codec for State {
    fn put(&self, out: &mut Vec<u8>) {
        self.queues.put(out);
    }

    fn take(from: &mut Input<'_>) -> Result<Self> {
        Ok(Self {
            queues: Codec::take(from)?,
            salt: 0,
        })
    }
}
