//! Reading: pages of members, status, lists, results. Runs beside the writer, between its groups.

mod batches;
mod dump;

use std::num::NonZeroU32;

use bytes::Bytes;
use sled::IVec;

use super::{
    apply, db,
    keys::{self, PartOf, Tree},
    moment::Sight,
    record::{
        BatchV1, BookmarkV1, DeadV1, OutcomeV1, PartV1, PlaceV1, RequestV1, ResultV1, SettledV1,
        VerdictV1,
    },
    state::QueueState,
};
use crate::{
    batch::{BatchId, Lease, Member, Outcome, Page},
    clock::Timestamp,
    error::{Error, Result},
    queue::{Entry, List, ResultCursor, SettledPage},
    request::{Position, RequestId, State},
};

/// A page of a list with payloads ends after about this many bytes of them.
const MAX_LISTED_BYTES: usize = 4 << 20;

/// A queue between two groups.
pub(super) struct View<'a> {
    pub(super) db: Sight<'a>,
    pub(super) queue: &'a QueueState,
}

impl View<'_> {
    fn key(&self, numbers: &[u64]) -> Vec<u8> {
        keys::key(self.queue.id, numbers)
    }

    /// The members of a held batch after a position.
    pub(super) fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        let id = apply::check_lease(self.queue, lease)?;
        let batch = &self.queue.open[&id];
        let after = page
            .after
            .map_or(0, |position| position.as_u64().saturating_add(1));
        let (from, to) = (self.key(&[batch.first.max(after)]), self.key(&[batch.last]));
        let (mut members, mut bytes) = (Vec::new(), 0);
        for entry in self.db.range(Tree::Requests, from, to) {
            let (key, value) = entry?;
            let (request, body) = db::read::<RequestV1>(Tree::Requests, &key, &value)?;
            bytes += request.bytes;
            let full =
                members.len() >= page.max_requests.get() as usize || bytes > page.max_bytes.get();
            if full && !members.is_empty() {
                break;
            }
            members.push(self.member(batch, keys::number(&key, 0), request, &body)?);
        }
        Ok(members)
    }

    fn member(
        &self,
        batch: &BatchV1,
        position: u64,
        request: RequestV1,
        body: &IVec,
    ) -> Result<Member> {
        let outcome = if batch.open == batch.requests {
            None
        } else {
            let key = self.key(&[request.id]);
            self.db.load::<OutcomeV1>(Tree::Outcomes, &key)?
        };
        let outcome = outcome.map(|(outcome, body)| self.outcome(request.id, outcome, &body));
        Ok(Member {
            id: RequestId::from_u64(request.id),
            position: Position::from_u64(position),
            attempt: request.attempts + batch.prior + batch.attempt,
            pushed_at: Timestamp::from_nanos(request.pushed_at),
            payload: self.payload(&request, body)?,
            attributes: request.attributes,
            outcome: outcome.transpose()?,
        })
    }

    fn outcome(&self, id: u64, outcome: OutcomeV1, body: &IVec) -> Result<Outcome> {
        Ok(match outcome.verdict {
            VerdictV1::Done => Outcome::Done {
                result: self.result(id, outcome.result, body)?,
            },
            VerdictV1::Retry { error, not_before } => Outcome::Retry {
                error,
                not_before: not_before.map(Timestamp::from_nanos),
            },
            VerdictV1::Reject { reason, error } => Outcome::Reject {
                reason: apply::reason(reason),
                error,
            },
        })
    }

    fn payload(&self, request: &RequestV1, body: &IVec) -> Result<Bytes> {
        self.assemble(
            request.id,
            PartOf::Payload,
            (request.bytes, request.parts),
            body,
        )
    }

    fn result(&self, id: u64, result: Option<ResultV1>, body: &IVec) -> Result<Option<Bytes>> {
        result
            .map(|ResultV1 { bytes, parts }| {
                self.assemble(id, PartOf::Result, (bytes, parts), body)
            })
            .transpose()
    }

    fn assemble(
        &self,
        id: u64,
        of: PartOf,
        (bytes, parts): (u64, u32),
        body: &IVec,
    ) -> Result<Bytes> {
        let mut whole = body.to_vec();
        for number in 0..parts {
            let key = keys::part(self.queue.id, id, of, number);
            if let Some((_, part)) = self.db.load::<PartV1>(Tree::Parts, &key)? {
                whole.extend_from_slice(&part);
            }
        }
        if whole.len() as u64 != bytes {
            return Err(Error::corrupt(format!(
                "request {} has {} bytes of {bytes}; run `repair` to save what can be read",
                RequestId::from_u64(id),
                whole.len()
            )));
        }
        Ok(whole.into())
    }

    pub(super) fn bookmark(&self, source: &str) -> Result<Option<Bytes>> {
        let key = keys::text(self.queue.id, source.as_bytes());
        let bookmark = self.db.load::<BookmarkV1>(Tree::Bookmarks, &key)?;
        Ok(bookmark.map(|(_, value)| Bytes::copy_from_slice(&value)))
    }

    /// What is known of a request.
    pub(super) fn status(&self, id: RequestId) -> Result<Option<Entry>> {
        let id = id.as_u64();
        if let Some(entry) = self.done(id, None)? {
            return Ok(Some(entry));
        }
        if let Some(entry) = self.dead(id, None, false)? {
            return Ok(Some(entry));
        }
        let place = self.db.load::<PlaceV1>(Tree::Places, &self.key(&[id]))?;
        let place = place.map_or(PlaceV1::At(id), |(place, _)| place);
        self.waiting(id, place, false)
    }

    /// A done request, if it was settled by this entry of `settled`.
    fn done(&self, id: u64, sequence: Option<u64>) -> Result<Option<Entry>> {
        let outcome = self
            .db
            .load::<OutcomeV1>(Tree::Outcomes, &self.key(&[id]))?;
        let Some((outcome, body)) = outcome.filter(|(outcome, _)| {
            outcome.verdict == VerdictV1::Done && sequence.is_none_or(|own| own == outcome.sequence)
        }) else {
            return Ok(None);
        };
        self.done_entry(id, outcome, &body).map(Some)
    }

    fn done_entry(&self, id: u64, outcome: OutcomeV1, body: &IVec) -> Result<Entry> {
        Ok(Entry {
            id: RequestId::from_u64(id),
            state: State::Done,
            attempts: outcome.attempts,
            pushed_at: Timestamp::from_nanos(outcome.pushed_at),
            at: Timestamp::from_nanos(outcome.at),
            attributes: outcome.attributes,
            bytes: 0,
            payload: None,
            batch: Some(BatchId::from_u128(outcome.batch)),
            result: self.result(id, outcome.result, body)?,
            reason: None,
            error: None,
        })
    }

    /// A dead letter, if it was settled by this entry of `settled`.
    fn dead(&self, id: u64, sequence: Option<u64>, payload: bool) -> Result<Option<Entry>> {
        let dead = self.db.load::<DeadV1>(Tree::Dead, &self.key(&[id]))?;
        let dead = dead.filter(|(dead, _)| sequence.is_none_or(|own| own == dead.sequence));
        dead.map(|(dead, body)| self.dead_entry(dead, &body, payload))
            .transpose()
    }

    fn dead_entry(&self, dead: DeadV1, body: &IVec, payload: bool) -> Result<Entry> {
        let DeadV1 {
            request,
            at,
            batch,
            reason,
            ..
        } = dead;
        let entry = self.entry(request, body, (State::Dead, at), payload)?;
        Ok(Entry {
            batch: batch.map(BatchId::from_u128),
            reason: Some(apply::reason(reason)),
            ..entry
        })
    }

    fn entry(
        &self,
        request: RequestV1,
        body: &IVec,
        (state, at): (State, u64),
        payload: bool,
    ) -> Result<Entry> {
        let payload = payload.then(|| self.payload(&request, body)).transpose()?;
        Ok(Entry {
            id: RequestId::from_u64(request.id),
            state,
            attempts: request.attempts,
            pushed_at: Timestamp::from_nanos(request.pushed_at),
            at: Timestamp::from_nanos(at),
            attributes: request.attributes,
            bytes: request.bytes,
            payload,
            batch: None,
            result: None,
            reason: None,
            error: request.error,
        })
    }

    /// A delayed or ready request, or a member that is not done.
    fn waiting(&self, id: u64, place: PlaceV1, payload: bool) -> Result<Option<Entry>> {
        let (tree, key) = match place {
            PlaceV1::At(position) => (Tree::Requests, self.key(&[position])),
            PlaceV1::Delayed(due, position) => (Tree::Delayed, self.key(&[due, position])),
        };
        let Some((request, body)) = self.db.load::<RequestV1>(tree, &key)? else {
            return Ok(None);
        };
        if request.id != id {
            return Ok(None);
        }
        let position = match place {
            PlaceV1::Delayed(due, _) => {
                return self
                    .entry(request, &body, (State::Delayed, due), payload)
                    .map(Some);
            }
            PlaceV1::At(position) => position,
        };
        if position > self.queue.record.cursor {
            let ready_at = request.ready_at;
            return self
                .entry(request, &body, (State::Ready, ready_at), payload)
                .map(Some);
        }
        let (batch_id, batch) = self.batch_of(id, position)?;
        let mut entry = self.entry(request, &body, (State::InFlight, batch.formed_at), payload)?;
        entry.attempts += batch.prior + batch.attempt;
        entry.batch = Some(BatchId::from_u128(batch_id));
        Ok(Some(entry))
    }

    /// The batch of a request that is not ready any more.
    fn batch_of(&self, id: u64, position: u64) -> Result<(u128, &BatchV1)> {
        self.queue.batch_at(position).ok_or_else(|| {
            let id = RequestId::from_u64(id);
            Error::corrupt(format!("request {id} is in no batch; run `repair`"))
        })
    }

    /// The next requests in one state, in order of their ids.
    pub(super) fn list(&self, list: &List) -> Result<Vec<Entry>> {
        let mut page = Listed {
            list: *list,
            entries: Vec::new(),
            bytes: 0,
        };
        let from = list
            .after
            .map_or(Some(0), |after| after.as_u64().checked_add(1));
        let Some(from) = from else {
            return Ok(page.entries);
        };
        let to = self.key(&[u64::MAX]);
        match list.state {
            State::Expired | State::Cancelled => {}
            State::Done => {
                for entry in self.db.range(Tree::Outcomes, self.key(&[from]), to) {
                    let (key, value) = entry?;
                    let (outcome, body) = db::read::<OutcomeV1>(Tree::Outcomes, &key, &value)?;
                    let done = outcome.verdict == VerdictV1::Done;
                    if done && !page.add(self.done_entry(keys::number(&key, 0), outcome, &body)?) {
                        break;
                    }
                }
            }
            State::Dead => {
                for entry in self.db.range(Tree::Dead, self.key(&[from]), to) {
                    let (key, value) = entry?;
                    let (dead, body) = db::read::<DeadV1>(Tree::Dead, &key, &value)?;
                    if !page.add(self.dead_entry(dead, &body, list.payloads)?) {
                        break;
                    }
                }
            }
            State::Delayed | State::Ready | State::InFlight => {
                self.list_waiting(from, &mut page)?;
            }
        }
        Ok(page.entries)
    }

    /// Merges requests that are where they were pushed with those that have a place of their own.
    fn list_waiting(&self, from: u64, page: &mut Listed) -> Result<()> {
        let cursor = self.queue.record.cursor;
        let (first, last) = match page.list.state {
            State::Ready => (
                from.max(cursor.saturating_add(1)),
                self.queue.record.last_position,
            ),
            State::InFlight => (from, cursor),
            _ => (1, 0),
        };
        let unmoved = self
            .db
            .range(Tree::Requests, self.key(&[first]), self.key(&[last]));
        let mut unmoved = unmoved
            .map(|entry| -> Result<Option<(u64, PlaceV1)>> {
                let (key, value) = entry?;
                let position = keys::number(&key, 0);
                let (request, _) = db::read::<RequestV1>(Tree::Requests, &key, &value)?;
                Ok((request.id == position).then_some((position, PlaceV1::At(position))))
            })
            .filter_map(Result::transpose)
            .peekable();
        let moved = self
            .db
            .range(Tree::Places, self.key(&[from]), self.key(&[u64::MAX]));
        let mut moved = moved
            .map(|entry| -> Result<(u64, PlaceV1)> {
                let (key, value) = entry?;
                let (place, _) = db::read::<PlaceV1>(Tree::Places, &key, &value)?;
                Ok((keys::number(&key, 0), place))
            })
            .peekable();
        loop {
            let next = match (unmoved.peek(), moved.peek()) {
                (Some(Ok((left, _))), Some(Ok((right, _)))) if left < right => unmoved.next(),
                (_, Some(_)) => moved.next(),
                (_, None) => unmoved.next(),
            };
            let Some(next) = next else {
                return Ok(());
            };
            let (id, place) = next?;
            if !self.may_be(place, page.list.state) {
                continue;
            }
            if page.list.state == State::InFlight && self.done(id, None)?.is_some() {
                continue;
            }
            if let Some(entry) = self.waiting(id, place, page.list.payloads)?
                && !page.add(entry)
            {
                return Ok(());
            }
        }
    }

    fn may_be(&self, place: PlaceV1, state: State) -> bool {
        match place {
            PlaceV1::Delayed(..) => state == State::Delayed,
            PlaceV1::At(position) if position > self.queue.record.cursor => state == State::Ready,
            PlaceV1::At(_) => state == State::InFlight,
        }
    }

    /// What was settled after a cursor.
    pub(super) fn results(
        &self,
        after: Option<ResultCursor>,
        most: NonZeroU32,
    ) -> Result<SettledPage> {
        let after = after.map(|ResultCursor(sequence, index)| (sequence, index));
        let from = self.key(&[after.map_or(0, |(sequence, _)| sequence)]);
        let mut page = SettledPage {
            entries: Vec::new(),
            next: None,
        };
        for entry in self.db.range(Tree::Settled, from, self.key(&[u64::MAX])) {
            let (key, value) = entry?;
            let sequence = keys::number(&key, 0);
            let (settled, _) = db::read::<SettledV1>(Tree::Settled, &key, &value)?;
            for (index, id) in (0_u64..).zip(settled.ids) {
                if after.is_some_and(|after| (sequence, index) <= after) {
                    continue;
                }
                if page.entries.len() >= most.get() as usize {
                    return Ok(page);
                }
                let entry = match self.done(id, Some(sequence))? {
                    Some(entry) => Some(entry),
                    None => self.dead(id, Some(sequence), false)?,
                };
                // A cursor past what is gone would promise more where nothing is left.
                let Some(entry) = entry else { continue };
                page.entries.push(entry);
                page.next = Some(ResultCursor(sequence, index));
            }
        }
        Ok(page)
    }
}

/// A page of a list as it fills.
struct Listed {
    list: List,
    entries: Vec<Entry>,
    bytes: usize,
}

impl Listed {
    /// Adds an entry; whether there is room for another.
    fn add(&mut self, entry: Entry) -> bool {
        self.bytes += entry.payload.as_ref().map_or(0, Bytes::len);
        self.entries.push(entry);
        self.entries.len() < self.list.max_requests.get() as usize && self.bytes < MAX_LISTED_BYTES
    }
}
