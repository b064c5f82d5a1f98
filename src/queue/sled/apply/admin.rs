//! Cancel, redrive, purge and release.
//!
//! A call for very many requests commits in between, each of them as a whole: sled may lose what it has, if the power goes while it
//! is given more than it writes into one of its segments.

use std::collections::{BTreeMap, BTreeSet};

use super::{SLICE, Step};
use crate::{
    batch::BatchId,
    clock::Timestamp,
    error::Result,
    queue::{
        Cancelled,
        sled::{
            keys::{PartOf, Tree},
            record::{BatchV1, DeadV1, MarkV1, OutcomeV1, PlaceV1, RequestV1, VerdictV1},
        },
    },
    request::RequestId,
};

impl Step<'_> {
    /// Cancels what waits, marks what is in flight.
    pub(in crate::queue::sled) fn cancel(
        &mut self,
        now: Timestamp,
        ids: &[RequestId],
    ) -> Result<Vec<Cancelled>> {
        self.advance(now)?;
        self.settle_all()?;
        // In the order in which most of them lie, so that few chunks are written anew more than once.
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by_key(|index| ids[*index]);
        let mut cancelled = vec![Cancelled::No; ids.len()];
        for index in order {
            cancelled[index] = self.cancel_one(ids[index].as_u64())?;
            if self.write.is_large() {
                self.commit()?;
            }
        }
        self.queue.wake = true;
        self.commit()?;
        self.queue.find_oldest(self.db)?;
        self.queue.find_next(self.db)?;
        Ok(cancelled)
    }

    fn cancel_one(&mut self, id: u64) -> Result<Cancelled> {
        if let Some(waiting) = self.waiting(id)? {
            self.take_waiting(waiting)?;
            self.queue.record.cancelled += 1;
            return Ok(Cancelled::Now);
        }
        let PlaceV1::At(position) = self.place(id)? else {
            return Ok(Cancelled::No);
        };
        let Some((batch_id, mut batch)) = self
            .queue
            .batch_at(position)
            .map(|(id, batch)| (id, batch.clone()))
        else {
            return Ok(Cancelled::No);
        };
        let member = self.load::<RequestV1>(Tree::Requests, &self.key(&[position]))?;
        if member.is_none_or(|(member, _)| member.id != id) {
            return Ok(Cancelled::No);
        }
        let outcome = self.load::<OutcomeV1>(Tree::Outcomes, &self.key(&[id]))?;
        if outcome.is_some_and(|(outcome, _)| outcome.verdict == VerdictV1::Done) {
            return Ok(Cancelled::No);
        }
        let key = self.key(&[id]);
        if self.load::<MarkV1>(Tree::Marks, &key)?.is_none() {
            self.write.put(Tree::Marks, key, &MarkV1 {}, &[])?;
            batch.marks += 1;
            self.put_batch(batch_id, &batch)?;
            self.queue.open.insert(batch_id, batch);
        }
        Ok(Cancelled::IfItComesBack)
    }

    /// The dead letters among these.
    fn dead(&self, ids: &[RequestId]) -> Result<Vec<(DeadV1, sled::IVec)>> {
        let dead = ids.iter().filter_map(|id| {
            let key = self.key(&[id.as_u64()]);
            self.load::<DeadV1>(Tree::Dead, &key).transpose()
        });
        dead.collect()
    }

    /// Takes dead letters out of the dead.
    fn take_dead(&mut self, dead: &[(DeadV1, sled::IVec)]) -> Result<()> {
        let mut gone: BTreeMap<u64, u32> = BTreeMap::new();
        for (dead, _) in dead {
            *gone.entry(dead.sequence).or_default() += 1;
            let key = self.key(&[dead.request.id]);
            self.write.delete(Tree::Dead, key);
            self.queue.record.dead -= 1;
        }
        self.unsettle(gone)
    }

    /// Makes dead letters ready again, at the tail.
    pub(in crate::queue::sled) fn redrive(
        &mut self,
        now: Timestamp,
        ids: &[RequestId],
    ) -> Result<u64> {
        self.advance(now)?;
        self.settle_all()?;
        let ids = sorted(ids);
        let (mut count, mut bytes) = (0, 0);
        for some in ids.chunks(SLICE) {
            for (dead, _) in self.dead(some)? {
                count += 1;
                bytes += dead.request.bytes;
            }
        }
        self.check_bounds(count, bytes)?;
        for some in ids.chunks(SLICE) {
            let dead = self.dead(some)?;
            self.take_dead(&dead)?;
            for (DeadV1 { mut request, .. }, body) in dead {
                (request.attempts, request.error, request.expires_at) = (0, None, None);
                self.queue.record.held_bytes += request.bytes;
                self.make_ready(now, now.as_nanos(), request, &body)?;
            }
            self.commit()?;
        }
        self.queue.wake = true;
        self.commit()?;
        Ok(count)
    }

    /// Forgets dead letters and their payloads.
    pub(in crate::queue::sled) fn purge(
        &mut self,
        now: Timestamp,
        ids: &[RequestId],
    ) -> Result<u64> {
        self.advance(now)?;
        self.settle_all()?;
        let mut purged = 0;
        for some in sorted(ids).chunks(SLICE) {
            let dead = self.dead(some)?;
            let mut left = &dead[..];
            while !left.is_empty() {
                let (slice, rest) = left.split_at(with_few_parts(left));
                self.take_dead(slice)?;
                for (dead, _) in slice {
                    self.delete_parts(dead.request.id, PartOf::Payload, dead.request.parts);
                }
                self.queue.record.purged += slice.len() as u64;
                purged += slice.len() as u64;
                self.commit()?;
                left = rest;
            }
        }
        self.queue.wake = true;
        self.commit()?;
        Ok(purged)
    }

    /// Offers batches that are held or deferred; those that were.
    pub(in crate::queue::sled) fn release(
        &mut self,
        now: Timestamp,
        ids: &[BatchId],
    ) -> Result<Vec<BatchId>> {
        self.advance(now)?;
        let mut released = Vec::new();
        for id in ids.iter().copied().collect::<BTreeSet<_>>() {
            let open = self.queue.open.get(&id.as_u128());
            let Some(batch) = open.filter(|batch| batch.until > now.as_nanos()) else {
                continue;
            };
            let batch = BatchV1 {
                held: false,
                until: 0,
                attempt: batch.attempt - u32::from(batch.held),
                ..batch.clone()
            };
            self.put_batch(id.as_u128(), &batch)?;
            self.queue.open.insert(id.as_u128(), batch);
            released.push(id);
        }
        self.put_queue();
        self.queue.wake = true;
        Ok(released)
    }
}

/// Each once, in order.
fn sorted(ids: &[RequestId]) -> Vec<RequestId> {
    let ids: BTreeSet<RequestId> = ids.iter().copied().collect();
    ids.into_iter().collect()
}

/// How many of these, one at least, have so few parts together that one transaction deletes them.
fn with_few_parts(dead: &[(DeadV1, sled::IVec)]) -> usize {
    let mut parts = 0;
    let few = dead.iter().take_while(|(dead, _)| {
        parts += dead.request.parts as usize;
        parts <= SLICE
    });
    few.count().max(1)
}
