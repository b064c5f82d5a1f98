//! Claiming: batches that are offered again first, then the first ready requests as a new one.

use super::{Step, change, reason_number};
use crate::{
    batch::{Claim, Fence, Lease},
    clock::Timestamp,
    error::{Error, Result},
    queue::journal::{
        event::{Buried, Change, Claimed, Formed, Removal, What},
        published::Live,
        state::{Dead, Moved, QueueState, Stretch},
    },
    request::DeadReason,
};

/// The first ready requests that fit into a batch.
#[derive(Debug, Default)]
struct Selection {
    cursor: u64,
    moved_to: u64,
    changes: Vec<Change>,
    requests: u32,
    bytes: u64,
    /// On the way: those that no batch could take, by id, with their payload bytes and attempts.
    too_large: Vec<(u64, u64, u32)>,
}

impl Step<'_> {
    pub(in crate::queue::journal) fn claim(
        &mut self,
        now: Timestamp,
        claim: &Claim,
        live: &Live,
    ) -> Result<Option<Lease>> {
        self.advance(now)?;
        let queue = self.queue()?;
        let mut open = queue.stored.open.iter();
        let offered = open.find(|(_, open)| open.until <= now.as_nanos());
        let (batch, formed) = match offered.map(|(batch, _)| *batch) {
            Some(batch) => (batch, None),
            None if claim.form && is_due(queue, now, claim, live) => {
                let Some(selection) = self.select_fitting(now, claim)? else {
                    return Ok(None);
                };
                let next = self.queue()?.next_batch(now)?;
                let formed = Formed {
                    cursor: selection.cursor,
                    moved_to: selection.moved_to,
                    changes: selection.changes,
                    requests: selection.requests,
                    bytes: selection.bytes,
                    at: now.as_nanos(),
                    context: claim.context.clone(),
                };
                (next, Some(formed))
            }
            None => return Ok(None),
        };
        self.reserve(claim.context.len() + 512)?;
        let fence = self.queue()?.stored.last_fence.checked_add(1);
        let fence = fence.ok_or_else(|| Error::internal("there is no fence left"))?;
        self.event(What::Claimed(Claimed {
            batch,
            fence,
            until: now.after(claim.lease_duration).as_nanos(),
            formed,
        }));
        self.touch(true);
        Ok(lease(self.queue()?, batch))
    }

    /// What a new batch takes, once those too large for any are out of the way.
    fn select_fitting(&mut self, now: Timestamp, claim: &Claim) -> Result<Option<Selection>> {
        let selection = self.select(claim)?;
        if selection.too_large.is_empty() {
            return Ok((selection.requests > 0).then_some(selection));
        }
        let reserve = selection.too_large.len() * 200;
        self.reserve(reserve)?;
        let mut removal = Removal::default();
        let mut dead = Vec::new();
        let mut natural = Vec::new();
        for (id, bytes, attempts) in selection.too_large {
            let error = format!(
                "payload of {bytes} bytes is over max_batch_bytes {}",
                claim.max_bytes
            );
            let letter = Dead {
                bytes,
                at: now.as_nanos(),
                batch: None,
                reason: reason_number(DeadReason::TooLarge),
                attempts,
                error: self.blob(&error),
                sequence: 0,
            };
            dead.push((id, letter));
            if self.queue()?.stored.places.contains_key(&id) {
                removal.moved.push(id);
            } else {
                natural.push(id);
            }
        }
        natural.sort_unstable();
        let naturals = self.remove_natural(&natural)?;
        removal.natural = naturals.natural;
        removal.changes = naturals.changes;
        self.event(What::Buried(Buried { removal, dead }));
        self.touch(true);
        let selection = self.select(claim)?;
        Ok((selection.requests > 0).then_some(selection))
    }

    /// Walks the ready requests in position order; whole stretches where they fit.
    fn select(&self, claim: &Claim) -> Result<Selection> {
        let queue = self.queue()?;
        let mut taking = Taking {
            most: claim.max_requests.get(),
            most_bytes: claim.max_bytes.get(),
            selection: Selection {
                cursor: queue.stored.cursor,
                ..Selection::default()
            },
        };
        let mut moved = queue.stored.moved.iter().peekable();
        for (first, stretch) in queue.ready_stretches() {
            while let Some((position, next)) = moved.next_if(|(at, _)| **at < stretch.head) {
                if !taking.take_moved(*position, next) {
                    return Ok(taking.selection);
                }
            }
            let is_mixed = moved.peek().is_some_and(|(at, _)| **at <= stretch.last);
            if !is_mixed && taking.take_stretch(stretch) {
                continue;
            }
            let loaded = self.load(stretch)?;
            let ready = loaded.requests.iter();
            for found in ready.filter(|found| queue.is_naturally_ready(found.id)) {
                let mut is_full = false;
                while let Some((position, next)) = moved.next_if(|(at, _)| **at < found.id) {
                    is_full = is_full || !taking.take_moved(*position, next);
                }
                if is_full || !taking.take(found.id, found.bytes, 0) {
                    let cursor = taking.selection.cursor;
                    if cursor >= first {
                        let cut = change(queue, first, &loaded, &[], cursor)?;
                        taking.selection.changes.push(cut);
                    }
                    return Ok(taking.selection);
                }
                taking.selection.cursor = found.id;
            }
            taking.selection.cursor = stretch.last;
        }
        for (position, next) in moved {
            if !taking.take_moved(*position, next) {
                break;
            }
        }
        Ok(taking.selection)
    }
}

/// A batch that is being filled.
struct Taking {
    most: u32,
    most_bytes: u64,
    selection: Selection,
}

impl Taking {
    /// Takes a request, or passes over one that no batch could take; false if the batch is full.
    fn take(&mut self, id: u64, bytes: u64, attempts: u32) -> bool {
        let selection = &mut self.selection;
        let is_too_large = bytes > self.most_bytes;
        if selection.requests >= self.most
            || (!is_too_large && selection.bytes + bytes > self.most_bytes)
        {
            return false;
        }
        if is_too_large {
            selection.too_large.push((id, bytes, attempts));
        } else {
            selection.requests += 1;
            selection.bytes += bytes;
        }
        true
    }

    fn take_moved(&mut self, position: u64, moved: &Moved) -> bool {
        let is_taken = self.take(moved.id, moved.bytes, moved.attempts);
        if is_taken {
            self.selection.moved_to = position;
        }
        is_taken
    }

    fn take_stretch(&mut self, stretch: &Stretch) -> bool {
        let selection = &mut self.selection;
        let fits = u64::from(selection.requests) + u64::from(stretch.ready) <= u64::from(self.most)
            && selection.bytes + stretch.ready_bytes <= self.most_bytes
            && stretch.largest <= self.most_bytes;
        if fits {
            selection.requests += stretch.ready;
            selection.bytes += stretch.ready_bytes;
            selection.cursor = stretch.last;
        }
        fits
    }
}

fn is_due(queue: &QueueState, now: Timestamp, claim: &Claim, live: &Live) -> bool {
    let counts = &queue.stored.counts;
    claim.due.is_none_or(|due| {
        let oldest = live.oldest_ready_at(queue.oldest(), now);
        due.is_met(counts.ready, counts.ready_bytes, oldest)
    })
}

/// The lease of whoever has just claimed this batch.
fn lease(queue: &QueueState, batch: u64) -> Option<Lease> {
    let open = queue.stored.open.get(&batch)?;
    Some(Lease {
        batch: queue.batch_id(batch),
        parent: open.parent.map(|parent| queue.batch_id(parent)),
        fence: Fence(open.fence),
        attempt: open.attempt,
        requests: open.members.requests,
        unsettled: open.unsettled,
        bytes: open.members.bytes,
        formed_at: Timestamp::from_nanos(open.formed_at),
        until: Timestamp::from_nanos(open.until),
        checkpoint: open.checkpoint.clone(),
        context: open.context.clone(),
    })
}
