//! Taking in what another queue dumped: requests into the log as they come, the state in one step at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use bytes::Bytes;

use super::{Step, reason_number, update::store};
use crate::{
    batch::{BatchId, Outcome},
    clock::Timestamp,
    error::{Error, Result},
    queue::{
        journal::{
            codec::Codec,
            event::{Restoring, What},
            fold::{DONE, STRETCH_BYTES, STRETCH_REQUESTS},
            record::{self, Draft, Outcome as Stored, Roster},
            state::{
                Dead, DeadPage, Ended, Key, Moved, NEVER, Open, Page, QueueState, Settled, Stand,
                Stretch,
            },
        },
        transfer::{
            OpenBatch, Order, QueueEnd, Record, StoredRequest, check_sums, check_unused, no_batch,
            unfit,
        },
    },
    request::{DeadReason, NewRequest, Position, RequestId, State},
    stats::Stats,
};

/// What was taken in so far; nobody else sees it.
#[derive(Debug, Default)]
pub(in crate::queue::journal) struct Incoming {
    queue: QueueState,
    order: Order,
    /// Members whose batches are still to come, and the lower half that all batches have.
    members: BTreeMap<u64, Vec<Member>>,
    salt: Option<u64>,
    /// Done requests whose place in the order of settling is still to come: their batches and outcomes.
    done: BTreeMap<u64, (u64, Stored)>,
    undated: BTreeSet<u64>,
    held_bytes: u64,
    in_flight: u64,
}

/// A member of a batch that is still to come.
#[derive(Debug)]
struct Member {
    position: u64,
    moved: Moved,
    is_cancelled: bool,
    /// Its outcome, if it has one that is not done.
    failed: Option<Outcome>,
    is_done: bool,
}

impl Step<'_> {
    /// Begins to take in a dump.
    pub(in crate::queue::journal) fn begin_restore(&mut self) -> Result<Incoming> {
        self.check_unused()?;
        let segment = self.inner.filling.place().segment;
        let queue = self.inner.state.queues.get_mut(&self.id);
        let queue = queue.ok_or_else(|| Error::internal("no such queue"))?;
        if queue.incoming_from.is_some() {
            return Err(Error::invalid(
                "another dump is being taken in by this queue",
            ));
        }
        queue.incoming_from = Some(segment);
        Ok(Incoming::default())
    }

    fn check_unused(&self) -> Result<()> {
        let stored = &self.queue()?.stored;
        check_unused(stored.counts.pushed, !stored.bookmarks.is_empty())
    }

    /// Takes in the next records; with the last one, the queue is what they say.
    pub(in crate::queue::journal) fn take_in(
        &mut self,
        mut incoming: Incoming,
        records: Vec<Record>,
    ) -> Result<Incoming> {
        self.check_space()?;
        incoming.order.check(&records)?;
        let mut requests = Vec::new();
        let mut bytes = 0;
        for record in records {
            if let Record::Request(request) = record {
                bytes += request.entry.payload.as_ref().map_or(0, Bytes::len);
                requests.push(*request);
                if bytes >= STRETCH_BYTES as usize || requests.len() >= STRETCH_REQUESTS as usize {
                    self.take_in_requests(&mut incoming, mem::take(&mut requests))?;
                    bytes = 0;
                }
                continue;
            }
            self.take_in_requests(&mut incoming, mem::take(&mut requests))?;
            match record {
                Record::Request(_) => {}
                Record::Batch(batch) => self.take_in_batch(&mut incoming, batch)?,
                Record::Settled(ids) => self.take_in_settled(&mut incoming, &ids)?,
                Record::Key(key) => {
                    let known = Key {
                        id: key.id.as_u64(),
                        payload: key.payload,
                        expires_at: key.expires_at.as_nanos(),
                    };
                    incoming.queue.stored.keys.insert(key.key, known);
                }
                Record::Bookmark(bookmark) => {
                    let bookmarks = &mut incoming.queue.stored.bookmarks;
                    bookmarks.insert(bookmark.source, bookmark.value);
                }
                Record::Queue(end) => self.end_restore(&mut incoming, &end)?,
            }
        }
        self.take_in_requests(&mut incoming, requests)?;
        Ok(incoming)
    }

    /// Writes requests as a stretch of their own, and takes in how they stand.
    fn take_in_requests(
        &mut self,
        incoming: &mut Incoming,
        requests: Vec<StoredRequest>,
    ) -> Result<()> {
        let (Some(first), Some(last)) = (requests.first(), requests.last()) else {
            return Ok(());
        };
        let (first, last) = (first.entry.id.as_u64(), last.entry.id.as_u64());
        let drafts: Vec<Draft> = requests.iter().map(draft).collect();
        let bytes: usize = drafts.iter().map(Draft::bytes).sum();
        let errors = (requests.iter()).map(|one| one.entry.error.as_ref().map_or(0, String::len));
        self.reserve(bytes + errors.sum::<usize>() + 16 * requests.len() + 128)?;
        let filling = &mut self.inner.filling;
        filling.end_piece();
        let place = filling.place();
        let from = filling.body.len();
        let begins = filling.anchor();
        record::begin_piece(&mut filling.body, begins, 0);
        let mut roster = Roster::default();
        for (draft, request) in drafts.iter().zip(&requests) {
            let (id, pushed_at) = (request.entry.id.as_u64(), request.entry.pushed_at);
            let anchor = filling.anchor();
            draft.put(id, pushed_at.as_nanos(), anchor, &mut filling.body);
            roster.add(id, draft.payload.len() as u64);
        }
        let count = u32::try_from(requests.len()).unwrap_or(u32::MAX);
        record::end_piece(&mut filling.body, (from, begins), 0, &roster);
        let mut stretch = Stretch {
            first,
            last,
            segment: place.segment,
            offset: place.offset,
            bytes: u32::try_from(filling.body.len() - from).unwrap_or(u32::MAX),
            requests: count,
            expires_at: NEVER,
            refs: 1,
            ..Stretch::default()
        };
        for request in requests.iter().filter(|request| is_natural(request)) {
            let entry = &request.entry;
            if stretch.ready == 0 {
                stretch.head = entry.id.as_u64();
                stretch.ready_at = entry.pushed_at.as_nanos();
            }
            stretch.ready += 1;
            stretch.ready_bytes += entry.bytes;
            let expires_at = request.expires_at.map_or(NEVER, Timestamp::as_nanos);
            stretch.expires_at = stretch.expires_at.min(expires_at);
        }
        let largest = drafts.iter().map(|draft| draft.payload.len() as u64);
        stretch.largest = largest.max().unwrap_or(0);
        let stored = &mut incoming.queue.stored;
        stored.counts.ready += u64::from(stretch.ready);
        stored.counts.ready_bytes += stretch.ready_bytes;
        stored.last_position = last;
        stored.stretches.insert(first, stretch);
        for request in requests {
            self.take_in_request(incoming, request)?;
        }
        incoming.queue.normalize();
        Ok(())
    }

    /// Takes in how a request stands, whose bytes are there.
    fn take_in_request(&mut self, incoming: &mut Incoming, request: StoredRequest) -> Result<()> {
        let is_natural = is_natural(&request);
        let StoredRequest {
            entry,
            position,
            expires_at,
            member,
            kept_until,
        } = request;
        let id = entry.id.as_u64();
        let is_held = matches!(entry.state, State::Delayed | State::Ready | State::InFlight);
        let bytes = entry
            .payload
            .as_ref()
            .map_or(0, |payload| payload.len() as u64);
        incoming.held_bytes += if is_held { bytes } else { 0 };
        if is_natural {
            return Ok(());
        }
        incoming.queue.stored.absent.insert(id);
        let batch = entry.batch.map(|batch| incoming.batch(batch)).transpose()?;
        let position = position.map_or(id, Position::as_u64);
        let is_done = entry.state == State::Done;
        let error = entry.error.map(|error| self.blob(&error));
        let moved = Moved {
            id,
            bytes,
            ready_at: entry.at.as_nanos(),
            expires_at: expires_at.map_or(NEVER, Timestamp::as_nanos),
            attempts: (member.as_ref()).map_or(entry.attempts, |member| member.attempts_before),
            error: error.filter(|_| entry.state != State::Dead),
        };
        let queue = &mut incoming.queue;
        match (entry.state, member, batch) {
            (State::Delayed, ..) => queue.delay(entry.at.as_nanos(), position, moved),
            (State::Ready, ..) => queue.stand_ready(position, moved),
            (State::Dead, ..) => {
                let dead = Dead {
                    bytes,
                    at: entry.at.as_nanos(),
                    batch,
                    reason: reason_number(entry.reason.unwrap_or(DeadReason::Rejected)),
                    attempts: entry.attempts,
                    error: error.unwrap_or_else(|| self.blob(&String::new())),
                    sequence: 0,
                };
                queue.place(id, Some(Stand::Dead(())));
                queue.stored.dead.insert(id, dead);
                incoming.undated.insert(id);
            }
            (_, Some(member), Some(batch)) => {
                queue.place(id, Some(Stand::Member((batch, position))));
                incoming.in_flight += u64::from(!is_done);
                incoming.members.entry(batch).or_default().push(Member {
                    position,
                    moved,
                    is_cancelled: member.is_cancelled,
                    failed: member.outcome,
                    is_done,
                });
            }
            (_, None, Some(batch)) => {
                queue.place(id, Some(Stand::Done((batch, id))));
                let until = kept_until.map_or(NEVER, Timestamp::as_nanos);
                let ended = queue.stored.ended.entry(batch);
                let ended = ended.or_insert_with(|| Ended {
                    until,
                    ..Ended::default()
                });
                if ended.until != until {
                    return Err(unfit(
                        entry.id,
                        "is kept until another time than others of its batch",
                    ));
                }
                ended.members.requests += 1;
                let done = Moved {
                    bytes: 0,
                    attempts: 0,
                    expires_at: NEVER,
                    ..moved
                };
                ended.members.moved.insert(id, done);
            }
            _ => return Err(unfit(entry.id, "has no place")),
        }
        if let (true, Some(batch)) = (is_done, batch) {
            let outcome = Stored {
                position,
                id,
                at: entry.at.as_nanos(),
                attempts: entry.attempts,
                kind: DONE,
                result: entry.result,
                ..Stored::default()
            };
            incoming.done.insert(id, (batch, outcome));
        }
        Ok(())
    }

    fn take_in_batch(&mut self, incoming: &mut Incoming, batch: OpenBatch) -> Result<()> {
        let id = incoming.batch(batch.id)?;
        if incoming.queue.stored.ended.contains_key(&id) {
            return Err(Error::invalid(format!(
                "batch {} of the dump has ended, and has not",
                batch.id
            )));
        }
        let parent = batch
            .parent
            .map(|parent| incoming.batch(parent))
            .transpose()?;
        let members = incoming.members.remove(&id).unwrap_or_default();
        let mut open = Open {
            parent,
            until: batch.offered_from.map_or(0, Timestamp::as_nanos),
            attempt: batch.attempt,
            prior: batch.attempts_before,
            formed_at: batch.formed_at.as_nanos(),
            context: batch.context,
            checkpoint: batch.checkpoint,
            ..Open::default()
        };
        let attempts = open.prior + open.attempt;
        let mut failed = Vec::new();
        for member in members {
            let moved = member.moved;
            open.members.requests += 1;
            open.members.bytes += moved.bytes;
            if member.is_cancelled {
                open.cancelled.insert(moved.id);
            }
            if let Some(outcome) = &member.failed {
                let one = super::update::Member {
                    id: moved.id,
                    bytes: moved.bytes,
                    expires_at: moved.expires_at,
                    attempts: moved.attempts,
                };
                let formed_at = batch.formed_at;
                let stored = store(formed_at, member.position, &one, attempts, outcome);
                open.recorded.insert(member.position, stored.kind);
                failed.push(stored);
            } else if !member.is_done {
                open.unsettled += 1;
                open.unsettled_bytes += moved.bytes;
            }
            open.members.moved.insert(member.position, moved);
        }
        for outcomes in failed.chunks(PAGE_OUTCOMES) {
            let page = self.put_outcomes_of(outcomes)?;
            open.pages.push(page);
        }
        if open.members.moved.is_empty() {
            return Err(Error::invalid(format!(
                "batch {} of the dump has no members",
                batch.id
            )));
        }
        incoming.queue.stored.open.insert(id, open);
        Ok(())
    }

    fn put_outcomes_of(&mut self, outcomes: &[Stored]) -> Result<Page> {
        let outcomes = outcomes.to_vec();
        let bytes = (outcomes.iter())
            .map(|one| one.result.as_ref().map_or(0, Bytes::len) + one.error.len() + 96);
        self.reserve(bytes.sum::<usize>() + 16)?;
        let positions = outcomes.iter().map(|one| one.position);
        Ok(Page {
            first: positions.clone().min().unwrap_or(0),
            last: positions.max().unwrap_or(0),
            blob: self.blob(&outcomes),
        })
    }

    /// Takes in the order in which requests were settled: runs of one batch, and of dead letters, are one step.
    fn take_in_settled(&mut self, incoming: &mut Incoming, ids: &[RequestId]) -> Result<()> {
        let mut run: Vec<Stored> = Vec::new();
        let mut of = None;
        let mut dead: Vec<u64> = Vec::new();
        let mut bytes = 0;
        for id in ids {
            let number = id.as_u64();
            let done = incoming.done.remove(&number);
            let is_dead = done.is_none() && incoming.undated.remove(&number);
            if done.is_none() && !is_dead {
                return Err(unfit(*id, "is not settled, or twice"));
            }
            let batch = done.as_ref().map(|(batch, _)| *batch);
            let is_full = run.len() + dead.len() >= PAGE_OUTCOMES || bytes >= PAGE_BYTES;
            if batch != of || is_full {
                self.put_settled(incoming, of, &mut run, &mut dead)?;
                bytes = 0;
            }
            of = batch;
            match done {
                Some((_, outcome)) => {
                    bytes += outcome.result.as_ref().map_or(0, Bytes::len);
                    run.push(outcome);
                }
                None => dead.push(number),
            }
        }
        self.put_settled(incoming, of, &mut run, &mut dead)
    }

    fn put_settled(
        &mut self,
        incoming: &mut Incoming,
        batch: Option<u64>,
        run: &mut Vec<Stored>,
        dead: &mut Vec<u64>,
    ) -> Result<()> {
        let stored = &mut incoming.queue.stored;
        if !run.is_empty() || !dead.is_empty() {
            stored.last_settled += 1;
        }
        let sequence = stored.last_settled;
        if !dead.is_empty() {
            let ids = mem::take(dead);
            for id in &ids {
                if let Some(dead) = stored.dead.get_mut(id) {
                    dead.sequence = sequence;
                }
            }
            let kept = u32::try_from(ids.len()).unwrap_or(u32::MAX);
            let page = Settled::Dead(DeadPage { ids, kept });
            stored.settled.insert(sequence, page);
        }
        if let (Some(batch), false) = (batch, run.is_empty()) {
            let run = mem::take(run);
            let page = self.put_outcomes_of(&run)?;
            let stored = &mut incoming.queue.stored;
            if let Some(open) = stored.open.get_mut(&batch) {
                open.recorded
                    .extend(run.iter().map(|one| (one.position, DONE)));
                open.pages.push(page);
                open.sequences.push(sequence);
            } else if let Some(ended) = stored.ended.get_mut(&batch) {
                ended.pages.push(page);
                ended.sequences.push(sequence);
            }
            stored
                .settled
                .insert(sequence, Settled::Page((batch, page)));
        }
        Ok(())
    }

    /// Checks that all is there, and makes the queue what it says.
    fn end_restore(&mut self, incoming: &mut Incoming, end: &QueueEnd) -> Result<()> {
        let (last_batch, salt) = end.last_batch.halves();
        incoming.batch(end.last_batch)?;
        if let Some((batch, members)) = incoming.members.first_key_value() {
            let id = members.first().map_or(0, |member| member.moved.id);
            let batch = BatchId::new(*batch, salt);
            return Err(no_batch(RequestId::from_u64(id), batch));
        }
        let undated = incoming.undated.first().or(incoming.done.keys().next());
        if let Some(id) = undated {
            let id = RequestId::from_u64(*id);
            return Err(unfit(id, "has no place in the order of settling"));
        }
        let name = self.queue()?.stored.name.clone();
        let stored = &mut incoming.queue.stored;
        (stored.name, stored.salt) = (name, salt);
        stored.last_position = end.last_position.as_u64();
        (stored.last_batch, stored.last_fence) = (last_batch, end.last_fence.0);
        let counts = &mut stored.counts;
        (counts.pushed, counts.done) = (end.pushed, end.done);
        (counts.expired, counts.cancelled) = (end.expired, end.cancelled);
        counts.purged = end.purged;
        (counts.in_flight, counts.held_bytes) = (incoming.in_flight, incoming.held_bytes);
        check_sums(&Stats {
            pushed: counts.pushed,
            ready: counts.ready,
            in_flight: counts.in_flight,
            done: counts.done,
            expired: counts.expired,
            cancelled: counts.cancelled,
            purged: counts.purged,
            delayed: stored.delayed.len() as u64,
            dead: stored.dead.len() as u64,
            ..Stats::default()
        })?;
        self.check_unused()?;
        let mut bytes = Vec::new();
        stored.put(&mut bytes);
        // Under one lock, so that no baseline comes between the parts.
        for (index, part) in bytes.chunks(PART_BYTES).enumerate() {
            self.reserve(part.len())?;
            self.event(What::Restoring(Restoring {
                is_first: index == 0,
                part: Bytes::copy_from_slice(part),
            }));
        }
        self.reserve(0)?;
        self.event(What::Restored(()));
        self.touch(true);
        Ok(())
    }
}

impl Incoming {
    /// The upper half of a batch's id; the lower one is the same for all of a queue.
    fn batch(&mut self, id: BatchId) -> Result<u64> {
        let (batch, salt) = id.halves();
        if *self.salt.get_or_insert(salt) != salt {
            return Err(Error::invalid(format!(
                "batch {id} of the dump is another queue's: a journal keeps batches of one queue"
            )));
        }
        Ok(batch)
    }
}

impl QueueState {
    /// Ready at this position.
    fn stand_ready(&mut self, position: u64, moved: Moved) {
        self.stored.counts.ready += 1;
        self.stored.counts.ready_bytes += moved.bytes;
        self.place(moved.id, Some(Stand::Ready(position)));
        self.stored.moved.insert(position, moved);
    }
}

/// Whether a request is ready where its id says, and nothing ever happened to it.
fn is_natural(request: &StoredRequest) -> bool {
    let entry = &request.entry;
    entry.state == State::Ready
        && request
            .position
            .is_some_and(|at| at.as_u64() == entry.id.as_u64())
        && (entry.at, entry.attempts) == (entry.pushed_at, 0)
        && entry.error.is_none()
}

/// A request as it was pushed.
fn draft(request: &StoredRequest) -> Draft {
    let entry = &request.entry;
    let new = NewRequest {
        payload: entry.payload.clone().unwrap_or_default(),
        attributes: entry.attributes.clone(),
        ..NewRequest::default()
    };
    Draft::new(new, None, request.expires_at.map(Timestamp::as_nanos))
}

/// Outcomes are stored in pages of so many, or of so many bytes of results; the state in parts of so many.
const PAGE_OUTCOMES: usize = 256;
const PAGE_BYTES: usize = 256 << 10;
const PART_BYTES: usize = 256 << 10;
