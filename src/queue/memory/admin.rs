//! Administration of a queue in memory.

use std::{collections::BTreeSet, num::NonZeroU32, ops::Bound};

use async_trait::async_trait;

use super::{
    MemoryQueue,
    state::{Ended, Place, Request, State as Held},
};
use crate::{
    batch::BatchId,
    clock::Timestamp,
    error::Result,
    queue::{Administration, BatchEntry, Cancelled, Entry, List, ResultCursor, SettledPage},
    request::{RequestId, State},
};

#[async_trait]
impl Administration for MemoryQueue {
    async fn status(&self, now: Timestamp, id: RequestId) -> Result<Option<Entry>> {
        let held = self.at(now)?;
        Ok(held
            .places
            .get(&id)
            .and_then(|place| held.entry(id, *place, false)))
    }

    async fn list(&self, now: Timestamp, list: &List) -> Result<Vec<Entry>> {
        let held = self.at(now)?;
        let after = list.after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut entries = Vec::new();
        let mut bytes = 0;
        for (id, place) in held.places.range((after, Bound::Unbounded)) {
            if place.state() != list.state {
                continue;
            }
            if entries.len() >= list.max_requests.get() as usize || bytes >= MAX_LISTED_BYTES {
                break;
            }
            if let Some(entry) = held.entry(*id, *place, list.payloads) {
                bytes += entry.payload.as_ref().map_or(0, bytes::Bytes::len);
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    async fn results(
        &self,
        now: Timestamp,
        after: Option<ResultCursor>,
        max_requests: NonZeroU32,
    ) -> Result<SettledPage> {
        let held = self.at(now)?;
        let after = after.map_or(Bound::Unbounded, |cursor| Bound::Excluded(cursor.0));
        let page = held.settled.range((after, Bound::Unbounded));
        let page: Vec<(u64, RequestId)> = page
            .take(max_requests.get() as usize)
            .map(|(sequence, id)| (*sequence, *id))
            .collect();
        Ok(SettledPage {
            next: page.last().map(|(sequence, _)| ResultCursor(*sequence, 0)),
            entries: page
                .iter()
                .filter_map(|(_, id)| held.entry(*id, *held.places.get(id)?, false))
                .collect(),
        })
    }

    async fn cancel(&self, now: Timestamp, ids: &[RequestId]) -> Result<Vec<Cancelled>> {
        let mut held = self.at(now)?;
        let cancelled = ids.iter().map(|id| {
            let now = held.cancel_waiting(*id).map(|()| Cancelled::Now);
            now.or_else(|| held.cancel_member(*id).map(|()| Cancelled::IfItComesBack))
                .unwrap_or(Cancelled::No)
        });
        let cancelled = cancelled.collect();
        drop(held);
        self.changed();
        Ok(cancelled)
    }

    async fn redrive(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        let redriven = self.at(now)?.redrive(now, &distinct(ids))?;
        self.changed();
        Ok(redriven)
    }

    async fn purge(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        let purged = self.at(now)?.purge(&distinct(ids));
        self.changed();
        Ok(purged)
    }

    async fn batch(&self, now: Timestamp, id: BatchId) -> Result<Option<BatchEntry>> {
        let held = self.at(now)?;
        let batch = held.find_batch(id);
        Ok(batch.map(|batch| batch.entry(now, id, true)))
    }

    async fn batches(
        &self,
        now: Timestamp,
        after: Option<BatchId>,
        max_batches: NonZeroU32,
    ) -> Result<Vec<BatchEntry>> {
        let held = self.at(now)?;
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let page = held.batches.range((after, Bound::Unbounded));
        let page = page.take(max_batches.get() as usize);
        Ok(page
            .map(|(id, batch)| batch.entry(now, *id, false))
            .collect())
    }

    async fn release(&self, now: Timestamp, ids: &[BatchId]) -> Result<Vec<BatchId>> {
        let released = self.at(now)?.release(now, ids);
        self.changed();
        Ok(released)
    }
}

impl Place {
    fn state(self) -> State {
        match self {
            Self::Delayed(..) => State::Delayed,
            Self::Ready(_) => State::Ready,
            Self::InFlight(..) => State::InFlight,
            Self::Done => State::Done,
            Self::Dead => State::Dead,
        }
    }
}

impl Held {
    pub(super) fn entry(&self, id: RequestId, place: Place, payload: bool) -> Option<Entry> {
        let state = place.state();
        match place {
            Place::Delayed(due, position) => {
                let request = self.find_delayed(due, position)?;
                Some(request.entry(state, due, None, payload))
            }
            Place::Ready(position) => {
                let request = self.find_ready(position)?;
                Some(request.entry(state, request.ready_at, None, payload))
            }
            Place::InFlight(id, position) => {
                let batch = self.find_batch(id)?;
                let request = &batch.members.get(&position)?.request;
                let mut entry = request.entry(state, batch.formed_at(), Some(id), payload);
                entry.attempts += batch.prior + batch.attempt;
                Some(entry)
            }
            Place::Done | Place::Dead => {
                let Ended {
                    request,
                    at,
                    batch,
                    result,
                    reason,
                    ..
                } = self.find_ended(id)?;
                Some(Entry {
                    result: result.clone(),
                    reason: *reason,
                    ..request.entry(state, *at, *batch, payload && state == State::Dead)
                })
            }
        }
    }
}

impl Request {
    fn entry(&self, state: State, at: Timestamp, batch: Option<BatchId>, payload: bool) -> Entry {
        Entry {
            id: self.id,
            state,
            attempts: self.attempts,
            pushed_at: self.pushed_at,
            at,
            attributes: self.attributes.clone(),
            bytes: self.bytes(),
            payload: payload.then(|| self.payload.clone()),
            batch,
            result: None,
            reason: None,
            error: self.error.clone().filter(|_| state != State::Done),
        }
    }
}

fn distinct(ids: &[RequestId]) -> BTreeSet<RequestId> {
    ids.iter().copied().collect()
}

/// A page of a list with payloads ends after about this many bytes of them.
const MAX_LISTED_BYTES: usize = 4 << 20;
