//! What a queue in memory holds, and each verb as one step on it.

mod batches;
mod transfer;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    convert::Infallible,
    mem,
};

use bytes::Bytes;

pub(super) use self::transfer::Incoming;
use crate::{
    batch::{BatchId, Fence, Outcome},
    clock::Timestamp,
    error::Result,
    queue::{
        QueueOptions,
        directive::Directives,
        transfer::{Digest, digest},
    },
    request::{
        Attributes, Bookmark, DeadReason, NewRequest, Position, Pushed, RequestId, key_conflict,
    },
    stats::{FirstSeen, Stats},
};

#[derive(Clone, Debug)]
pub(super) struct State {
    options: QueueOptions,
    salt: u64,
    pub(super) closed: bool,
    last_position: u64,
    last_batch: u64,
    last_fence: u64,
    last_settled: u64,
    /// Where every request is that is more than a counter.
    pub(super) places: BTreeMap<RequestId, Place>,
    /// By position: a request only ever becomes ready at the tail.
    ready: VecDeque<(Position, Request)>,
    /// By due time, then by the position they had.
    delayed: BTreeMap<(Timestamp, Position), Request>,
    expiry: BTreeSet<(Timestamp, RequestId)>,
    pub(super) batches: BTreeMap<BatchId, OpenBatch>,
    done: BTreeMap<RequestId, Ended>,
    dead: BTreeMap<RequestId, Ended>,
    /// Done and dead requests in the order in which they were settled.
    pub(super) settled: BTreeMap<u64, RequestId>,
    retained: BTreeSet<(Timestamp, RequestId)>,
    /// By their digests.
    keys: BTreeMap<Digest, Key>,
    key_expiry: BTreeSet<(Timestamp, Digest)>,
    pub(super) bookmarks: BTreeMap<String, Bytes>,
    counts: Stats,
    first_seen: FirstSeen,
}

/// Where a request is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Delayed(Timestamp, Position),
    Ready(Position),
    InFlight(BatchId, Position),
    Done,
    Dead,
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) id: RequestId,
    pub(super) pushed_at: Timestamp,
    pub(super) ready_at: Timestamp,
    expires_at: Option<Timestamp>,
    pub(super) attempts: u32,
    pub(super) error: Option<String>,
    pub(super) attributes: Attributes,
    pub(super) payload: Bytes,
}

#[derive(Clone, Debug)]
pub(super) struct OpenBatch {
    parent: Option<BatchId>,
    fence: Fence,
    /// Whether a holder has it; then `until` is the end of its lease, else the time it is offered from.
    held: bool,
    until: Timestamp,
    pub(super) attempt: u32,
    /// Attempts of the batches that it was split from.
    pub(super) prior: u32,
    formed_at: Timestamp,
    context: Bytes,
    checkpoint: Option<Bytes>,
    pub(super) members: BTreeMap<Position, Membership>,
}

#[derive(Clone, Debug)]
pub(super) struct Membership {
    pub(super) request: Request,
    pub(super) cancelled: bool,
    outcome: Option<Outcome>,
}

/// A done or dead request.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) request: Request,
    pub(super) at: Timestamp,
    pub(super) batch: Option<BatchId>,
    pub(super) result: Option<Bytes>,
    pub(super) reason: Option<DeadReason>,
    sequence: u64,
}

#[derive(Clone, Debug)]
struct Key {
    id: RequestId,
    payload: Digest,
    expires_at: Timestamp,
}

impl State {
    pub(super) fn new(options: QueueOptions, salt: u64) -> Self {
        Self {
            options,
            salt,
            closed: false,
            last_position: 0,
            last_batch: 0,
            last_fence: 0,
            last_settled: 0,
            places: BTreeMap::new(),
            ready: VecDeque::new(),
            delayed: BTreeMap::new(),
            expiry: BTreeSet::new(),
            batches: BTreeMap::new(),
            done: BTreeMap::new(),
            dead: BTreeMap::new(),
            settled: BTreeMap::new(),
            retained: BTreeSet::new(),
            keys: BTreeMap::new(),
            key_expiry: BTreeSet::new(),
            bookmarks: BTreeMap::new(),
            counts: Stats::default(),
            first_seen: FirstSeen::default(),
        }
    }

    /// Applies what time alone brings: expiry first, then promotion; forgets keys and old results.
    pub(super) fn advance(&mut self, now: Timestamp) {
        while let Some(&(at, id)) = self.expiry.first().filter(|(at, _)| *at <= now) {
            self.expiry.remove(&(at, id));
            if self.take_waiting(id).is_some() {
                self.counts.expired += 1;
            }
        }
        while let Some(entry) = self
            .delayed
            .first_entry()
            .filter(|entry| entry.key().0 <= now)
        {
            let ((due, _), request) = entry.remove_entry();
            self.make_ready(now, due, request);
        }
        while let Some(&(at, key)) = self.key_expiry.first().filter(|(at, _)| *at <= now) {
            self.keys.remove(&key);
            self.key_expiry.remove(&(at, key));
        }
        while let Some(&(at, id)) = self.retained.first().filter(|(at, _)| *at <= now) {
            self.retained.remove(&(at, id));
            if let Some(ended) = self.done.remove(&id) {
                self.settled.remove(&ended.sequence);
                self.places.remove(&id);
            }
        }
    }

    pub(super) fn push(
        &mut self,
        now: Timestamp,
        requests: &mut Vec<NewRequest>,
        bookmark: Option<&Bookmark>,
    ) -> Result<Vec<Pushed>> {
        let mut next = self.next_position(now);
        let mut pushed = Vec::with_capacity(requests.len());
        let mut keys: BTreeMap<Digest, Key> = BTreeMap::new();
        let mut bytes = 0;
        for request in requests.iter() {
            let id = RequestId::from_u64(next);
            if let Some(key) = request.idempotency_key.as_deref() {
                let (known_as, payload) = (digest(key.as_bytes()), digest(&request.payload));
                match self.keys.get(&known_as).or_else(|| keys.get(&known_as)) {
                    Some(known) if known.payload != payload => {
                        return Err(key_conflict(key, known.id));
                    }
                    Some(known) => {
                        pushed.push(Pushed {
                            id: known.id,
                            duplicate: true,
                        });
                        continue;
                    }
                    None => {
                        let expires_at = now.after(self.options.idempotency_window);
                        keys.insert(
                            known_as,
                            Key {
                                id,
                                payload,
                                expires_at,
                            },
                        );
                    }
                }
            }
            next += 1;
            bytes += request.payload.len() as u64;
            pushed.push(Pushed {
                id,
                duplicate: false,
            });
        }
        let added = pushed.iter().filter(|pushed| !pushed.duplicate).count() as u64;
        self.check_bounds(added, bytes)?;
        for (key, known) in keys {
            self.key_expiry.insert((known.expires_at, key));
            self.keys.insert(key, known);
        }
        if added > 0 {
            self.last_position = next - 1;
        }
        self.counts.pushed += added;
        self.counts.held_bytes += bytes;
        for (request, pushed) in mem::take(requests).into_iter().zip(&pushed) {
            if !pushed.duplicate {
                self.add(now, pushed.id, request);
            }
        }
        if let Some(bookmark) = bookmark {
            self.bookmarks
                .insert(bookmark.source.clone(), bookmark.value.clone());
        }
        Ok(pushed)
    }

    pub(super) fn stats(&mut self, now: Timestamp) -> Stats {
        let oldest = self.ready.front();
        let seen = &mut self.first_seen;
        let offered = |batch: &&OpenBatch| batch.until <= now;
        let Ok(directives) =
            Directives::find(|source| Ok::<_, Infallible>(self.bookmarks.get(source)));
        directives.shown_in(Stats {
            delayed: self.delayed.len() as u64,
            next_due: self.delayed.first_key_value().map(|((due, _), _)| *due),
            oldest_ready_at: oldest
                .map(|(position, oldest)| seen.clamp(*position, oldest.ready_at, now)),
            batches: self.batches.len() as u64,
            offered: self.batches.values().filter(offered).count() as u64,
            next_offer: self
                .batches
                .values()
                .filter(|batch| !offered(batch))
                .map(|batch| batch.until)
                .min(),
            dead: self.dead.len() as u64,
            ..self.counts
        })
    }

    pub(super) fn dead_letters(&self) -> usize {
        self.dead.len()
    }

    pub(super) fn check_bounds(&self, requests: u64, bytes: u64) -> Result<()> {
        let held = self.delayed.len() as u64 + self.counts.ready + self.counts.in_flight;
        self.options
            .check_room((held, self.counts.held_bytes), (requests, bytes))
    }

    fn next_position(&self, now: Timestamp) -> u64 {
        now.as_nanos().max(self.last_position + 1)
    }

    fn add(&mut self, now: Timestamp, id: RequestId, new: NewRequest) {
        let request = Request {
            id,
            pushed_at: now,
            ready_at: now,
            expires_at: new.ttl.map(|ttl| now.after(ttl)),
            attempts: 0,
            error: None,
            attributes: new.attributes,
            payload: new.payload,
        };
        if let Some(at) = request.expires_at {
            self.expiry.insert((at, id));
        }
        let position = Position::from_u64(id.as_u64());
        match new.not_before.filter(|due| *due > now) {
            Some(due) => self.delay(due, position, request),
            None => self.insert_ready(position, request),
        }
    }

    fn delay(&mut self, due: Timestamp, position: Position, request: Request) {
        self.places
            .insert(request.id, Place::Delayed(due, position));
        self.delayed.insert((due, position), request);
    }

    /// Ready at the tail.
    pub(super) fn make_ready(&mut self, now: Timestamp, ready_at: Timestamp, mut request: Request) {
        request.ready_at = ready_at;
        self.last_position = self.next_position(now);
        self.insert_ready(Position::from_u64(self.last_position), request);
    }

    fn insert_ready(&mut self, position: Position, request: Request) {
        self.places.insert(request.id, Place::Ready(position));
        self.counts.ready_bytes += request.bytes();
        self.counts.ready += 1;
        // At the tail, but for what is restored: that comes in the order of ids.
        let last = self.ready.back().map(|(last, _)| *last);
        let at = match last {
            Some(last) if last > position => {
                self.ready.partition_point(|(before, _)| *before < position)
            }
            _ => self.ready.len(),
        };
        self.ready.insert(at, (position, request));
    }

    fn index_of_ready(&self, position: Position) -> Option<usize> {
        self.ready
            .binary_search_by_key(&position, |(at, _)| *at)
            .ok()
    }

    fn take_ready(&mut self, position: Position) -> Option<Request> {
        let index = self.index_of_ready(position)?;
        let (_, request) = self.ready.remove(index)?;
        self.counts.ready_bytes -= request.bytes();
        self.counts.ready -= 1;
        Some(request)
    }

    /// Takes a request out of the queue if it is ready or delayed, and forgets its place.
    fn take_waiting(&mut self, id: RequestId) -> Option<Request> {
        let request = match *self.places.get(&id)? {
            Place::Ready(position) => self.take_ready(position),
            Place::Delayed(due, position) => self.delayed.remove(&(due, position)),
            Place::InFlight(..) | Place::Done | Place::Dead => None,
        }?;
        self.counts.held_bytes -= request.bytes();
        self.places.remove(&id);
        Some(request)
    }

    pub(super) fn find_ended(&self, id: RequestId) -> Option<&Ended> {
        self.done.get(&id).or_else(|| self.dead.get(&id))
    }

    pub(super) fn find_ready(&self, position: Position) -> Option<&Request> {
        Some(&self.ready[self.index_of_ready(position)?].1)
    }

    pub(super) fn find_delayed(&self, due: Timestamp, position: Position) -> Option<&Request> {
        self.delayed.get(&(due, position))
    }

    pub(super) fn find_batch(&self, id: BatchId) -> Option<&OpenBatch> {
        self.batches.get(&id)
    }

    /// Cancels a waiting request; `None` if it is not waiting.
    pub(super) fn cancel_waiting(&mut self, id: RequestId) -> Option<()> {
        self.take_waiting(id)?;
        self.counts.cancelled += 1;
        Some(())
    }

    /// Marks a member without a `done` outcome; `None` if it is not one.
    pub(super) fn cancel_member(&mut self, id: RequestId) -> Option<()> {
        let Place::InFlight(batch, position) = *self.places.get(&id)? else {
            return None;
        };
        let member = self.batches.get_mut(&batch)?.members.get_mut(&position)?;
        member.cancelled = true;
        Some(())
    }

    /// Takes a dead letter out of the dead.
    fn take_dead(&mut self, id: RequestId) -> Option<Request> {
        let ended = self.dead.remove(&id)?;
        self.settled.remove(&ended.sequence);
        self.places.remove(&id);
        Some(ended.request)
    }

    pub(super) fn redrive(&mut self, now: Timestamp, ids: &BTreeSet<RequestId>) -> Result<u64> {
        let dead = ids.iter().filter_map(|id| self.dead.get(id));
        let (count, bytes) = dead.fold((0, 0), |(count, bytes), dead| {
            (count + 1, bytes + dead.request.bytes())
        });
        self.check_bounds(count, bytes)?;
        for id in ids {
            if let Some(mut request) = self.take_dead(*id) {
                if let Some(at) = request.expires_at.take() {
                    self.expiry.remove(&(at, *id));
                }
                (request.attempts, request.error) = (0, None);
                self.counts.held_bytes += request.bytes();
                self.make_ready(now, now, request);
            }
        }
        Ok(count)
    }

    pub(super) fn purge(&mut self, ids: &BTreeSet<RequestId>) -> u64 {
        let purged = ids.iter().filter_map(|id| self.take_dead(*id)).count() as u64;
        self.counts.purged += purged;
        purged
    }
}

impl Request {
    pub(super) fn bytes(&self) -> u64 {
        self.payload.len() as u64
    }
}
