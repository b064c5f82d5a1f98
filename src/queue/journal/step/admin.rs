//! Cancelling, redriving, purging, releasing.

use std::collections::{BTreeMap, BTreeSet};

use super::Step;
use crate::{
    batch::BatchId,
    clock::Timestamp,
    error::Result,
    queue::{
        Cancelled,
        journal::{
            event::{CancelledAll, Purged, Redriven, Removal, Then, Updated, What},
            fold::DONE,
            state::Stand,
        },
    },
    request::RequestId,
};

impl Step<'_> {
    pub(in crate::queue::journal) fn cancel(
        &mut self,
        now: Timestamp,
        ids: &[RequestId],
    ) -> Result<Vec<Cancelled>> {
        self.advance(now)?;
        let mut natural = BTreeSet::new();
        let mut removal = Removal::default();
        let mut marked = Vec::new();
        let mut results: BTreeMap<u64, Cancelled> = BTreeMap::new();
        for id in ids.iter().map(|id| id.as_u64()).collect::<BTreeSet<_>>() {
            let queue = self.queue()?;
            let stand = queue.stored.places.get(&id);
            let member = match stand {
                Some(Stand::Ready(_) | Stand::Delayed(_)) => {
                    removal.moved.push(id);
                    results.insert(id, Cancelled::Now);
                    continue;
                }
                Some(Stand::Member((batch, position))) => Some((*batch, *position)),
                Some(Stand::Done(_) | Stand::Dead(())) => None,
                None if queue.is_naturally_ready(id) => {
                    natural.insert(id);
                    continue;
                }
                None => queue.natural_batch(id).map(|(batch, _)| (batch, id)),
            };
            let Some((batch, position)) = member else {
                continue;
            };
            let open = queue.stored.open.get(&batch);
            let is_done = open.is_some_and(|open| open.recorded.get(&position) == Some(&DONE));
            if !is_done && self.exists(id)? {
                marked.push((batch, id));
                results.insert(id, Cancelled::IfItComesBack);
            }
        }
        let natural = self.existing(&natural)?;
        results.extend(natural.iter().map(|id| (*id, Cancelled::Now)));
        let natural = self.remove_natural(&natural)?;
        (removal.natural, removal.changes) = (natural.natural, natural.changes);
        if !results.is_empty() {
            self.reserve(results.len() * 40 + removal.changes.len() * 80)?;
            self.event(What::Cancelled(CancelledAll { removal, marked }));
        }
        self.touch(true);
        // Whoever is named twice is cancelled once.
        let answer = |id: &RequestId| match results.get(&id.as_u64()) {
            Some(Cancelled::IfItComesBack) => Cancelled::IfItComesBack,
            Some(_) => results.remove(&id.as_u64()).unwrap_or(Cancelled::No),
            None => Cancelled::No,
        };
        Ok(ids.iter().map(answer).collect())
    }

    /// Whether a request of this id was ever pushed and is still held.
    fn exists(&self, id: u64) -> Result<bool> {
        let loaded = self.load_of(id)?;
        Ok(loaded.is_some_and(|(_, loaded)| loaded.find(id).is_some()))
    }

    /// Those of these ids that were pushed.
    fn existing(&self, ids: &BTreeSet<u64>) -> Result<Vec<u64>> {
        let mut existing = Vec::new();
        let mut last = None;
        for id in ids {
            let Some((first, _)) = self.queue()?.stretch_of(*id) else {
                continue;
            };
            if last.as_ref().is_none_or(|(known, _)| *known != first) {
                last = self.load_of(*id)?;
            }
            if last
                .as_ref()
                .is_some_and(|(_, loaded)| loaded.find(*id).is_some())
            {
                existing.push(*id);
            }
        }
        Ok(existing)
    }

    /// Those of these ids that are dead, each once, in order.
    fn dead(&self, ids: &[RequestId]) -> Result<Vec<u64>> {
        let ids: BTreeSet<u64> = ids.iter().map(|id| id.as_u64()).collect();
        let dead = &self.queue()?.stored.dead;
        Ok(ids.into_iter().filter(|id| dead.contains_key(id)).collect())
    }

    pub(in crate::queue::journal) fn redrive(
        &mut self,
        now: Timestamp,
        ids: &[RequestId],
    ) -> Result<u64> {
        self.advance(now)?;
        let ids = self.dead(ids)?;
        let queue = self.queue()?;
        let dead = ids.iter().filter_map(|id| queue.stored.dead.get(id));
        queue.check_room(ids.len() as u64, dead.map(|dead| dead.bytes).sum())?;
        let count = ids.len();
        if count > 0 {
            self.reserve(12 * count)?;
            let now = now.as_nanos();
            self.event(What::Redriven(Redriven { now, ids }));
        }
        self.touch(true);
        Ok(count as u64)
    }

    pub(in crate::queue::journal) fn purge(
        &mut self,
        now: Timestamp,
        ids: &[RequestId],
    ) -> Result<u64> {
        self.advance(now)?;
        let ids = self.dead(ids)?;
        let count = ids.len();
        if count > 0 {
            self.reserve(12 * count)?;
            self.event(What::Purged(Purged { ids }));
        }
        self.touch(true);
        Ok(count as u64)
    }

    pub(in crate::queue::journal) fn release(
        &mut self,
        now: Timestamp,
        ids: &[BatchId],
    ) -> Result<Vec<BatchId>> {
        self.advance(now)?;
        let queue = self.queue()?;
        let mut released = Vec::new();
        let mut updates = Vec::new();
        for id in ids.iter().copied().collect::<BTreeSet<_>>() {
            let Some((batch, open)) = queue.open(id) else {
                continue;
            };
            if open.until <= now.as_nanos() {
                continue;
            }
            released.push(id);
            let then = if open.held {
                Then::Release(())
            } else {
                Then::Defer(0)
            };
            updates.push(Updated {
                batch,
                then,
                ..Updated::default()
            });
        }
        self.reserve(updates.len() * 40)?;
        for update in updates {
            self.event(What::Updated(update));
        }
        self.touch(true);
        Ok(released)
    }
}
