//! The contract as a program: what a queue must answer, said as plainly as it can be said.
//!
//! One list of every request ever pushed, each in one state; counts are counted, and whatever is looked
//! for is searched from the first to the last. Written from the contract in `src/queue.rs`,
//! `src/queue/admin.rs`, `src/batch.rs` and `src/stats.rs`, and not from any backend.

mod batches;

use std::collections::BTreeMap;

use batchyard::{
    Attributes, BatchId, Bookmark, Cancelled, DeadReason, Entry, ErrorKind, Fence, List,
    NewRequest, Outcome, Position, Pushed, QueueOptions, RequestId, State, Stats, Timestamp,
};
use bytes::Bytes;

/// What a verb answers; of an error only its kind is promised.
pub(crate) type Answer<T> = Result<T, ErrorKind>;

/// A queue as the contract describes it.
#[derive(Debug)]
pub(crate) struct Model {
    options: QueueOptions,
    /// The lower half of every batch id.
    pub(crate) salt: u64,
    /// All that were ever pushed, in the order of their ids.
    requests: Vec<Request>,
    /// Those that have not ended, in the order in which they were formed.
    batches: Vec<Batch>,
    keys: Vec<Key>,
    bookmarks: BTreeMap<String, Bytes>,
    last_position: u64,
    last_batch: u64,
    pub(crate) last_fence: u64,
    settled: u64,
}

#[derive(Debug)]
struct Request {
    id: RequestId,
    position: Position,
    pushed_at: Timestamp,
    expires_at: Option<Timestamp>,
    attributes: Attributes,
    payload: Bytes,
    /// Attempts in batches that it has left.
    attempts: u32,
    error: Option<String>,
    is: Is,
}

#[derive(Debug)]
enum Is {
    Delayed {
        due: Timestamp,
    },
    Ready {
        since: Timestamp,
        /// When it was first seen to be the oldest, if `since` was in the future then.
        seen: Option<Timestamp>,
    },
    InFlight {
        cancelled: bool,
        outcome: Option<Outcome>,
    },
    Done {
        at: Timestamp,
        batch: BatchId,
        attempts: u32,
        result: Option<Bytes>,
        order: u64,
        /// Until when it is kept: for ever while its batch is open.
        until: Option<Timestamp>,
    },
    Dead {
        at: Timestamp,
        batch: Option<BatchId>,
        reason: DeadReason,
        order: u64,
    },
    Gone(Gone),
}

/// What is counted and no more.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gone {
    Done,
    Expired,
    Cancelled,
    Purged,
}

#[derive(Debug)]
struct Batch {
    id: BatchId,
    parent: Option<BatchId>,
    /// The fence of its holder.
    held: Option<Fence>,
    /// It is offered from this time on.
    until: Timestamp,
    attempt: u32,
    /// Attempts of the batches that it was split from.
    prior: u32,
    formed_at: Timestamp,
    context: Bytes,
    checkpoint: Option<Bytes>,
    /// In the order of their positions.
    members: Vec<RequestId>,
}

#[derive(Debug)]
struct Key {
    name: String,
    id: RequestId,
    payload: Bytes,
    expires_at: Timestamp,
}

impl Model {
    pub(crate) fn new(options: QueueOptions) -> Self {
        Self {
            options,
            salt: 0,
            requests: Vec::new(),
            batches: Vec::new(),
            keys: Vec::new(),
            bookmarks: BTreeMap::new(),
            last_position: 0,
            last_batch: 0,
            last_fence: 0,
            settled: 0,
        }
    }

    /// The ids of all requests ever pushed.
    pub(crate) fn ids(&self) -> Vec<RequestId> {
        self.requests.iter().map(|request| request.id).collect()
    }

    /// The members of an open batch, in order.
    pub(crate) fn members(&self, id: BatchId) -> Vec<RequestId> {
        let batch = self.batches.iter().find(|batch| batch.id == id);
        batch.map_or_else(Vec::new, |batch| batch.members.clone())
    }

    /// A restart of its process: it is forgotten when a time in the future was first seen, batches of
    /// holders that are gone may be offered at once, and in a fresh queue their leases are lost.
    pub(crate) fn restart(&mut self, offers_held: bool, is_moved: bool) {
        for batch in self.batches.iter_mut().filter(|one| one.held.is_some()) {
            if offers_held {
                batch.until = Timestamp::EPOCH;
            }
            if is_moved {
                batch.held = None;
            }
        }
        for request in &mut self.requests {
            if let Is::Ready { seen, .. } = &mut request.is {
                *seen = None;
            }
        }
    }

    pub(crate) fn push(
        &mut self,
        now: Timestamp,
        new: &[NewRequest],
        bookmark: Option<Bookmark>,
    ) -> Answer<Vec<Pushed>> {
        self.advance(now);
        let mut pushed: Vec<Pushed> = Vec::new();
        let mut keys: Vec<Key> = Vec::new();
        let mut next = self.next_position(now);
        for request in new {
            let known = request.idempotency_key.as_ref().and_then(|name| {
                let mut keys = self.keys.iter().chain(&keys);
                keys.find(|known| known.name == *name)
            });
            if known.is_some_and(|known| known.payload != request.payload) {
                return Err(ErrorKind::Invalid);
            }
            let duplicate = known.is_some();
            let id = known.map_or(RequestId::from_u64(next), |known| known.id);
            pushed.push(Pushed { id, duplicate });
            if duplicate {
                continue;
            }
            next += 1;
            keys.extend(request.idempotency_key.clone().map(|name| Key {
                name,
                id,
                payload: request.payload.clone(),
                expires_at: now.after(self.options.idempotency_window),
            }));
        }
        let added = || new.iter().zip(&pushed).filter(|(_, to)| !to.duplicate);
        let bytes = added().map(|(new, _)| new.payload.len() as u64).sum();
        self.check_room(added().count() as u64, bytes)?;
        for (new, to) in added() {
            let due = new.not_before.filter(|due| *due > now);
            let ready = Is::Ready {
                since: now,
                seen: None,
            };
            self.last_position = to.id.as_u64();
            self.requests.push(Request {
                id: to.id,
                position: Position::from_u64(to.id.as_u64()),
                pushed_at: now,
                expires_at: new.ttl.map(|ttl| now.after(ttl)),
                attributes: new.attributes.clone(),
                payload: new.payload.clone(),
                attempts: 0,
                error: None,
                is: due.map_or(ready, |due| Is::Delayed { due }),
            });
        }
        self.keys.extend(keys);
        self.bookmarks
            .extend(bookmark.map(|mark| (mark.source, mark.value)));
        Ok(pushed)
    }

    pub(crate) fn bookmark(&self, source: &str) -> Option<Bytes> {
        self.bookmarks.get(source).cloned()
    }

    pub(crate) fn stats(&mut self, now: Timestamp) -> Stats {
        self.advance(now);
        let oldest = self.oldest_ready_at(now);
        let count = |is: fn(&Is) -> bool| {
            let all = self.requests.iter().filter(|request| is(&request.is));
            (
                all.clone().count() as u64,
                all.map(Request::bytes).sum::<u64>(),
            )
        };
        let (delayed, delayed_bytes) = count(|is| matches!(is, Is::Delayed { .. }));
        let (ready, ready_bytes) = count(|is| matches!(is, Is::Ready { .. }));
        let (in_flight, in_flight_bytes) = count(|is| matches!(is, Is::InFlight { .. }));
        let due = self.requests.iter().filter_map(|request| match request.is {
            Is::Delayed { due } => Some(due),
            _ => None,
        });
        let offers = self.batches.iter().map(|batch| batch.until);
        let mut stats = Stats::default();
        stats.pushed = self.requests.len() as u64;
        stats.delayed = delayed;
        stats.next_due = due.min();
        stats.ready = ready;
        stats.ready_bytes = ready_bytes;
        stats.oldest_ready_at = oldest;
        stats.in_flight = in_flight;
        stats.batches = self.batches.len() as u64;
        stats.offered = offers.clone().filter(|until| *until <= now).count() as u64;
        stats.next_offer = offers.filter(|until| *until > now).min();
        stats.done = count(|is| matches!(is, Is::Done { .. } | Is::Gone(Gone::Done))).0;
        stats.dead = count(|is| matches!(is, Is::Dead { .. })).0;
        stats.expired = count(|is| matches!(is, Is::Gone(Gone::Expired))).0;
        stats.cancelled = count(|is| matches!(is, Is::Gone(Gone::Cancelled))).0;
        stats.purged = count(|is| matches!(is, Is::Gone(Gone::Purged))).0;
        stats.held_bytes = delayed_bytes + ready_bytes + in_flight_bytes;
        stats
    }

    pub(crate) fn status(&mut self, now: Timestamp, id: RequestId) -> Option<Entry> {
        self.advance(now);
        self.entry(self.requests.iter().find(|one| one.id == id)?, false)
    }

    pub(crate) fn list(&mut self, now: Timestamp, list: &List) -> Vec<Entry> {
        self.advance(now);
        let listed = self
            .requests
            .iter()
            .filter(|one| one.state() == Some(list.state) && Some(one.id) > list.after);
        let entries = listed.filter_map(|one| self.entry(one, list.payloads));
        entries.take(list.max_requests.get() as usize).collect()
    }

    /// What was settled after a place in the order of settling, and the place of the last of it.
    pub(crate) fn results(
        &mut self,
        now: Timestamp,
        after: u64,
        most: u32,
    ) -> (Vec<Entry>, Option<u64>) {
        self.advance(now);
        let mut settled: Vec<(u64, &Request)> = (self.requests.iter())
            .filter_map(|request| match request.is {
                Is::Done { order, .. } | Is::Dead { order, .. } => Some((order, request)),
                _ => None,
            })
            .filter(|(order, _)| *order > after)
            .collect();
        settled.sort_by_key(|(order, _)| *order);
        settled.truncate(most as usize);
        let last = settled.last().map(|(order, _)| *order);
        let entries = settled.iter().filter_map(|(_, one)| self.entry(one, false));
        (entries.collect(), last)
    }

    pub(crate) fn cancel(&mut self, now: Timestamp, ids: &[RequestId]) -> Vec<Cancelled> {
        self.advance(now);
        let mut cancel = |id: &RequestId| {
            let request = self.requests.iter_mut().find(|one| one.id == *id);
            match request.map(|request| &mut request.is) {
                Some(is @ (Is::Delayed { .. } | Is::Ready { .. })) => {
                    *is = Is::Gone(Gone::Cancelled);
                    Cancelled::Now
                }
                Some(Is::InFlight { cancelled, .. }) => {
                    *cancelled = true;
                    Cancelled::IfItComesBack
                }
                _ => Cancelled::No,
            }
        };
        ids.iter().map(&mut cancel).collect()
    }

    pub(crate) fn redrive(&mut self, now: Timestamp, ids: &[RequestId]) -> Answer<u64> {
        self.advance(now);
        let dead = self.dead(ids);
        let bytes = dead.iter().map(|id| self.known(*id).bytes()).sum();
        self.check_room(dead.len() as u64, bytes)?;
        for id in &dead {
            let request = self.known_mut(*id);
            (request.attempts, request.error, request.expires_at) = (0, None, None);
            self.make_ready(now, now, *id);
        }
        Ok(dead.len() as u64)
    }

    pub(crate) fn purge(&mut self, now: Timestamp, ids: &[RequestId]) -> u64 {
        self.advance(now);
        let dead = self.dead(ids);
        for id in &dead {
            self.known_mut(*id).is = Is::Gone(Gone::Purged);
        }
        dead.len() as u64
    }

    /// What time alone brings: expiry, then promotion in the order of due times; keys and results go.
    fn advance(&mut self, now: Timestamp) {
        let mut due = Vec::new();
        for request in &mut self.requests {
            let is_past = request.expires_at.is_some_and(|at| at <= now);
            match request.is {
                Is::Delayed { .. } | Is::Ready { .. } if is_past => {
                    request.is = Is::Gone(Gone::Expired);
                }
                Is::Delayed { due: at } if at <= now => {
                    due.push((at, request.position, request.id));
                }
                Is::Done {
                    until: Some(until), ..
                } if until <= now => request.is = Is::Gone(Gone::Done),
                _ => {}
            }
        }
        due.sort_unstable();
        for (at, _, id) in due {
            self.make_ready(now, at, id);
        }
        self.keys.retain(|key| key.expires_at > now);
    }

    /// Ready at the tail.
    fn make_ready(&mut self, now: Timestamp, since: Timestamp, id: RequestId) {
        self.last_position = self.next_position(now);
        let position = Position::from_u64(self.last_position);
        let request = self.known_mut(id);
        request.position = position;
        request.is = Is::Ready { since, seen: None };
    }

    fn next_position(&self, now: Timestamp) -> u64 {
        now.as_nanos().max(self.last_position + 1)
    }

    /// The ready requests in order of their positions.
    fn ready(&self) -> Vec<&Request> {
        let ready = |request: &&Request| matches!(request.is, Is::Ready { .. });
        let mut ready: Vec<&Request> = self.requests.iter().filter(ready).collect();
        ready.sort_by_key(|request| request.position);
        ready
    }

    fn oldest_ready_at(&mut self, now: Timestamp) -> Option<Timestamp> {
        let oldest = self.ready().first()?.id;
        let Is::Ready { since, seen } = &mut self.known_mut(oldest).is else {
            return None;
        };
        if *since > now && seen.is_none() {
            *seen = Some(now);
        }
        Some((*since).min(seen.unwrap_or(now)).min(now))
    }

    /// The dead letters among these, each once, in the order of their ids.
    fn dead(&self, ids: &[RequestId]) -> Vec<RequestId> {
        let dead = self
            .requests
            .iter()
            .filter(|request| ids.contains(&request.id) && matches!(request.is, Is::Dead { .. }));
        dead.map(|request| request.id).collect()
    }

    fn check_room(&mut self, requests: u64, bytes: u64) -> Answer<()> {
        let held = self.requests.iter().filter(|request| request.is_held());
        let count = held.clone().count() as u64 + requests;
        let bytes = held.map(Request::bytes).sum::<u64>() + bytes;
        let is_over = count > self.options.max_requests || bytes > self.options.max_bytes;
        if requests > 0 && is_over {
            return Err(ErrorKind::QueueFull);
        }
        Ok(())
    }

    fn entry(&self, request: &Request, payload: bool) -> Option<Entry> {
        let mut entry = Entry {
            id: request.id,
            state: request.state()?,
            attempts: request.attempts,
            pushed_at: request.pushed_at,
            at: Timestamp::EPOCH,
            attributes: request.attributes.clone(),
            bytes: request.bytes(),
            payload: payload.then(|| request.payload.clone()),
            batch: None,
            result: None,
            reason: None,
            error: request.error.clone(),
        };
        match &request.is {
            Is::Delayed { due } => entry.at = *due,
            Is::Ready { since, .. } => entry.at = *since,
            Is::InFlight { .. } => {
                let holds = |batch: &&Batch| batch.members.contains(&request.id);
                let batch = self.batches.iter().find(holds).expect("it is in flight");
                (entry.at, entry.batch) = (batch.formed_at, Some(batch.id));
                entry.attempts += batch.prior + batch.attempt;
            }
            Is::Done {
                at,
                batch,
                attempts,
                result,
                ..
            } => {
                (entry.at, entry.batch) = (*at, Some(*batch));
                (entry.attempts, entry.result) = (*attempts, result.clone());
                (entry.bytes, entry.payload, entry.error) = (0, None, None);
            }
            Is::Dead {
                at, batch, reason, ..
            } => {
                (entry.at, entry.batch) = (*at, *batch);
                entry.reason = Some(*reason);
            }
            Is::Gone(_) => return None,
        }
        Some(entry)
    }

    fn known(&self, id: RequestId) -> &Request {
        &self.requests[self.place(id)]
    }

    fn known_mut(&mut self, id: RequestId) -> &mut Request {
        let at = self.place(id);
        &mut self.requests[at]
    }

    /// Ids grow.
    fn place(&self, id: RequestId) -> usize {
        let at = self.requests.binary_search_by_key(&id, |one| one.id);
        at.expect("it was pushed")
    }
}

impl Request {
    fn bytes(&self) -> u64 {
        self.payload.len() as u64
    }

    /// Where it is, unless it is counted only.
    fn state(&self) -> Option<State> {
        match self.is {
            Is::Delayed { .. } => Some(State::Delayed),
            Is::Ready { .. } => Some(State::Ready),
            Is::InFlight { .. } => Some(State::InFlight),
            Is::Done { .. } => Some(State::Done),
            Is::Dead { .. } => Some(State::Dead),
            Is::Gone(_) => None,
        }
    }

    /// Delayed, ready or in flight.
    fn is_held(&self) -> bool {
        !matches!(self.is, Is::Done { .. } | Is::Dead { .. } | Is::Gone(_))
    }

    /// A member without an outcome.
    fn is_open(&self) -> bool {
        matches!(self.is, Is::InFlight { outcome: None, .. })
    }

    /// The recorded outcome of a member.
    fn outcome(&self) -> Option<Outcome> {
        match &self.is {
            Is::Done { result, .. } => Some(Outcome::Done {
                result: result.clone(),
            }),
            Is::InFlight { outcome, .. } => outcome.clone(),
            _ => None,
        }
    }
}
