//! All that is held as records, and a state from them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    ops::Bound,
};

use bytes::Bytes;

use super::{Ended, Key, Membership, OpenBatch, Place, Request, State};
use crate::{
    batch::{BatchId, Fence, Outcome},
    clock::Timestamp,
    error::Result,
    queue::{
        ResultCursor,
        transfer::{
            self, DumpFrom, DumpPage, KnownKey, Order, PAGE_BYTES, PAGE_RECORDS, QueueEnd, Record,
            StoredMember, StoredRequest, check_sums, check_unused, no_batch, unfit,
        },
    },
    request::{Bookmark, Position, RequestId, State as In},
    stats::FirstSeen,
};

impl State {
    pub(in super::super) fn dump(&self, from: DumpFrom) -> DumpPage {
        match from {
            DumpFrom::Start => self.dump_requests(Bound::Unbounded),
            DumpFrom::Request(after) => self.dump_requests(Bound::Excluded(after)),
            DumpFrom::Batches => {
                let batches = self.batches.iter();
                DumpPage {
                    damaged: Vec::new(),
                    records: batches
                        .map(|(id, batch)| Record::Batch(batch.dumped(*id)))
                        .collect(),
                    next: Some(DumpFrom::Settled(None)),
                }
            }
            DumpFrom::Settled(after) => {
                let after = after.map_or(Bound::Unbounded, |cursor| Bound::Excluded(cursor.0));
                let page = self.settled.range((after, Bound::Unbounded));
                let page: Vec<_> = page.take(PAGE_RECORDS).collect();
                let ids = page.iter().map(|(_, id)| **id).collect();
                match page.last() {
                    Some((last, _)) => DumpPage {
                        damaged: Vec::new(),
                        records: vec![Record::Settled(ids)],
                        next: Some(DumpFrom::Settled(Some(ResultCursor(**last, 0)))),
                    },
                    None => DumpPage {
                        damaged: Vec::new(),
                        records: Vec::new(),
                        next: Some(DumpFrom::Keys(None)),
                    },
                }
            }
            DumpFrom::Keys(after) => {
                let after = after.map_or(Bound::Unbounded, Bound::Excluded);
                let page = self.keys.range((after, Bound::Unbounded));
                let page: Vec<_> = page.take(PAGE_RECORDS).collect();
                let last = page.last().map(|(key, _)| DumpFrom::Keys(Some(**key)));
                let known = page.into_iter().map(|(key, known)| KnownKey {
                    key: *key,
                    id: known.id,
                    payload: known.payload,
                    expires_at: known.expires_at,
                });
                DumpPage {
                    damaged: Vec::new(),
                    records: known.map(Record::Key).collect(),
                    next: Some(last.unwrap_or(DumpFrom::Bookmarks)),
                }
            }
            DumpFrom::Bookmarks => {
                let bookmarks = self.bookmarks.iter().map(|(source, value)| Bookmark {
                    source: source.clone(),
                    value: value.clone(),
                });
                let mut records: Vec<_> = bookmarks.map(Record::Bookmark).collect();
                records.push(Record::Queue(self.end_of_dump()));
                DumpPage {
                    damaged: Vec::new(),
                    records,
                    next: None,
                }
            }
        }
    }

    fn end_of_dump(&self) -> QueueEnd {
        QueueEnd {
            last_position: Position::from_u64(self.last_position),
            last_batch: BatchId::new(self.last_batch, self.salt),
            last_fence: Fence(self.last_fence),
            pushed: self.counts.pushed,
            done: self.counts.done,
            expired: self.counts.expired,
            cancelled: self.counts.cancelled,
            purged: self.counts.purged,
        }
    }

    fn dump_requests(&self, after: Bound<RequestId>) -> DumpPage {
        let kept: HashMap<RequestId, Timestamp> =
            self.retained.iter().map(|(at, id)| (*id, *at)).collect();
        let mut records = Vec::new();
        let mut bytes = 0;
        for (id, place) in self.places.range((after, Bound::Unbounded)) {
            if let Some(request) = self.dumped(*id, *place, &kept) {
                bytes += request.bytes();
                records.push(Record::Request(Box::new(request)));
            }
            if records.len() >= PAGE_RECORDS || bytes >= PAGE_BYTES {
                return DumpPage {
                    damaged: Vec::new(),
                    records,
                    next: Some(DumpFrom::Request(*id)),
                };
            }
        }
        DumpPage {
            damaged: Vec::new(),
            records,
            next: Some(DumpFrom::Batches),
        }
    }

    fn dumped(
        &self,
        id: RequestId,
        place: Place,
        kept: &HashMap<RequestId, Timestamp>,
    ) -> Option<StoredRequest> {
        let mut stored = StoredRequest {
            entry: self.entry(id, place, true)?,
            position: None,
            expires_at: None,
            member: None,
            kept_until: None,
        };
        let member = match place {
            Place::Delayed(due, position) => {
                stored.position = Some(position);
                stored.expires_at = self.delayed.get(&(due, position))?.expires_at;
                None
            }
            Place::Ready(position) => {
                stored.position = Some(position);
                stored.expires_at = self.find_ready(position)?.expires_at;
                None
            }
            Place::InFlight(batch, position) => {
                let member = self.batches.get(&batch)?.members.get(&position)?;
                Some((position, member))
            }
            Place::Done => {
                stored.kept_until = kept.get(&id).copied();
                let batch = self.batches.get(&stored.entry.batch?);
                let mut members = batch.into_iter().flat_map(|batch| &batch.members);
                let member = members.find(|(_, member)| member.request.id == id);
                member.map(|(position, member)| (*position, member))
            }
            Place::Dead => None,
        };
        if let Some((position, member)) = member {
            stored.position = Some(position);
            stored.expires_at = member.request.expires_at;
            stored.entry.payload = Some(member.request.payload.clone());
            let failed = |outcome: &&Outcome| !matches!(outcome, Outcome::Done { .. });
            stored.member = Some(StoredMember {
                attempts_before: member.request.attempts,
                is_cancelled: member.cancelled,
                outcome: member.outcome.as_ref().filter(failed).cloned(),
            });
        }
        Some(stored)
    }

    /// A state to take records in.
    pub(in super::super) fn incoming(&self) -> Result<Incoming> {
        self.check_unused()?;
        Ok(Incoming {
            state: Self::new(self.options, self.salt),
            order: Order::default(),
            known: BTreeSet::new(),
        })
    }

    fn check_unused(&self) -> Result<()> {
        check_unused(self.counts.pushed, !self.bookmarks.is_empty())
    }

    /// Becomes what was taken in.
    pub(in super::super) fn replace_with(&mut self, state: Self) -> Result<()> {
        self.check_unused()?;
        *self = state;
        Ok(())
    }
}

impl OpenBatch {
    fn dumped(&self, id: BatchId) -> transfer::OpenBatch {
        let offered_from = Some(self.until).filter(|until| !self.held && *until > Timestamp::EPOCH);
        transfer::OpenBatch {
            id,
            parent: self.parent,
            attempt: self.attempt,
            attempts_before: self.prior,
            formed_at: self.formed_at,
            offered_from,
            context: self.context.clone(),
            checkpoint: self.checkpoint.clone(),
        }
    }

    fn of_members(members: BTreeMap<Position, Membership>, batch: transfer::OpenBatch) -> Self {
        Self {
            parent: batch.parent,
            fence: Fence(0),
            held: false,
            until: batch.offered_from.unwrap_or(Timestamp::EPOCH),
            attempt: batch.attempt,
            prior: batch.attempts_before,
            formed_at: batch.formed_at,
            context: batch.context,
            checkpoint: batch.checkpoint,
            members,
        }
    }
}

/// What was taken in so far.
#[derive(Debug)]
pub(in super::super) struct Incoming {
    state: State,
    order: Order,
    /// Batches that were told; their members came before.
    known: BTreeSet<BatchId>,
}

impl Incoming {
    /// Takes in records; with the last one, the whole state.
    pub(in super::super) fn take_in(&mut self, records: Vec<Record>) -> Result<Option<State>> {
        self.order.check(&records)?;
        let mut state = None;
        for record in records {
            state = self.take_in_one(record)?;
        }
        Ok(state)
    }

    fn take_in_one(&mut self, record: Record) -> Result<Option<State>> {
        let state = &mut self.state;
        match record {
            Record::Request(request) => state.take_in_request(*request),
            Record::Batch(batch) => {
                let id = batch.id;
                let members = state.batches.remove(&id).map(|known| known.members);
                let members = members.unwrap_or_default();
                state
                    .batches
                    .insert(id, OpenBatch::of_members(members, batch));
                self.known.insert(id);
            }
            Record::Settled(ids) => ids
                .into_iter()
                .try_for_each(|id| state.take_in_settled(id))?,
            Record::Key(known) => {
                let key = Key {
                    id: known.id,
                    payload: known.payload,
                    expires_at: known.expires_at,
                };
                state.key_expiry.insert((known.expires_at, known.key));
                state.keys.insert(known.key, key);
            }
            Record::Bookmark(bookmark) => {
                state.bookmarks.insert(bookmark.source, bookmark.value);
            }
            Record::Queue(end) => {
                self.end(&end)?;
                let empty = State::new(self.state.options, 0);
                return Ok(Some(mem::replace(&mut self.state, empty)));
            }
        }
        Ok(None)
    }

    fn end(&mut self, end: &QueueEnd) -> Result<()> {
        let state = &mut self.state;
        let lost = (state.batches.iter()).find(|(id, _)| !self.known.contains(id));
        if let Some((id, batch)) = lost
            && let Some(member) = batch.members.values().next()
        {
            return Err(no_batch(member.request.id, *id));
        }
        let mut ended = state.done.iter().chain(&state.dead);
        if let Some((id, _)) = ended.find(|(_, ended)| ended.sequence == 0) {
            return Err(unfit(*id, "has no place in the order of settling"));
        }
        state.last_position = end.last_position.as_u64();
        (state.last_batch, state.salt) = end.last_batch.halves();
        state.last_fence = end.last_fence.0;
        state.counts.pushed = end.pushed;
        state.counts.done = end.done;
        state.counts.expired = end.expired;
        state.counts.cancelled = end.cancelled;
        state.counts.purged = end.purged;
        let sums = state.stats(Timestamp::EPOCH);
        // That was no look at it.
        state.first_seen = FirstSeen::default();
        check_sums(&sums)
    }
}

impl State {
    fn take_in_request(&mut self, stored: StoredRequest) {
        let entry = stored.entry;
        let (id, position) = (entry.id, stored.position.unwrap_or(Position::from_u64(0)));
        let is_done = entry.state == In::Done;
        let member = stored.member;
        let payload = entry.payload.unwrap_or_default();
        let request = Request {
            id,
            pushed_at: entry.pushed_at,
            ready_at: entry.at,
            expires_at: stored.expires_at,
            attempts: (member.as_ref()).map_or(entry.attempts, |member| member.attempts_before),
            error: entry.error,
            attributes: entry.attributes,
            payload,
        };
        let mut settled = request.clone();
        settled.attempts = entry.attempts;
        let is_held = matches!(entry.state, In::Delayed | In::Ready | In::InFlight);
        if is_held {
            self.counts.held_bytes += request.bytes();
        }
        if let (Some(at), In::Delayed | In::Ready) = (request.expires_at, entry.state) {
            self.expiry.insert((at, id));
        }
        match entry.state {
            In::Delayed => self.delay(entry.at, position, request),
            In::Ready => self.insert_ready(position, request),
            In::InFlight | In::Done => {
                if let (Some(member), Some(batch)) = (member, entry.batch) {
                    let done = Outcome::Done {
                        result: entry.result.clone(),
                    };
                    let membership = Membership {
                        request,
                        cancelled: member.is_cancelled,
                        outcome: member.outcome.or(is_done.then_some(done)),
                    };
                    self.places.insert(id, Place::InFlight(batch, position));
                    self.counts.in_flight += u64::from(!is_done);
                    let known = self.batches.entry(batch);
                    let known = known.or_insert_with(|| OpenBatch::untold(batch));
                    known.members.insert(position, membership);
                }
            }
            In::Dead | In::Expired | In::Cancelled => {}
        }
        if is_done || entry.state == In::Dead {
            if is_done {
                settled.payload = Bytes::new();
                self.places.insert(id, Place::Done);
                self.retained.extend(stored.kept_until.map(|at| (at, id)));
            } else {
                self.places.insert(id, Place::Dead);
            }
            let ended = Ended {
                request: settled,
                at: entry.at,
                batch: entry.batch,
                result: entry.result,
                reason: entry.reason,
                sequence: 0,
            };
            let all = if is_done {
                &mut self.done
            } else {
                &mut self.dead
            };
            all.insert(id, ended);
        }
    }

    fn take_in_settled(&mut self, id: RequestId) -> Result<()> {
        let ended = self.done.get_mut(&id).or_else(|| self.dead.get_mut(&id));
        let ended = ended.filter(|ended| ended.sequence == 0);
        let ended = ended.ok_or_else(|| unfit(id, "is not settled, or twice"))?;
        self.last_settled += 1;
        ended.sequence = self.last_settled;
        self.settled.insert(self.last_settled, id);
        Ok(())
    }
}

impl OpenBatch {
    /// A batch of which only members are known.
    fn untold(id: BatchId) -> Self {
        let batch = transfer::OpenBatch {
            id,
            parent: None,
            attempt: 0,
            attempts_before: 0,
            formed_at: Timestamp::EPOCH,
            offered_from: None,
            context: Bytes::new(),
            checkpoint: None,
        };
        Self::of_members(BTreeMap::new(), batch)
    }
}
