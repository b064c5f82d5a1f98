//! Claim: takes an offered batch, or forms one by moving a range of keys.

use bytes::Bytes;

use super::{Settling, Step};
use crate::{
    batch::{BatchId, Claim, Fence, Lease},
    clock::Timestamp,
    error::Result,
    fault::point,
    queue::sled::{
        db,
        keys::{self, Note, PartOf, Tree},
        record::{BatchV1, ChildV1, NoteV1, RequestV1},
    },
    request::DeadReason,
};

impl Step<'_> {
    /// Takes the longest-formed offered batch, else forms one.
    pub(in crate::queue::sled) fn claim(
        &mut self,
        now: Timestamp,
        claim: &Claim,
    ) -> Result<Option<Lease>> {
        self.advance(now)?;
        let mut offered = self.queue.open.iter();
        let offered = offered.find(|(_, batch)| batch.until <= now.as_nanos());
        let id = match offered.map(|(id, _)| *id) {
            Some(id) => id,
            None if claim.form => match self.form(now, claim)? {
                Some(id) => id,
                None => return Ok(None),
            },
            None => return Ok(None),
        };
        let Some(batch) = self.queue.open.get_mut(&id) else {
            return Ok(None);
        };
        self.queue.record.last_fence += 1;
        batch.fence = self.queue.record.last_fence;
        batch.held = true;
        batch.until = now.after(claim.lease_duration).as_nanos();
        batch.attempt += 1;
        let batch = batch.clone();
        self.put_batch(id, &batch)?;
        self.commit()?;
        point("sled.claimed");
        self.queue.wake = true;
        self.queue.find_oldest(self.db)?;
        self.lease(id, &batch).map(Some)
    }

    /// Whether the queue is due as this claim sees it.
    fn is_due(&self, now: Timestamp, claim: &Claim) -> bool {
        let record = &self.queue.record;
        let oldest = self.queue.live.oldest_ready_at(self.queue.oldest, now);
        claim
            .due
            .is_none_or(|due| due.is_met(record.ready, record.ready_bytes, oldest))
    }

    fn lease(&self, id: u128, batch: &BatchV1) -> Result<Lease> {
        let note = |there: bool, note| -> Result<Option<Bytes>> {
            if !there {
                return Ok(None);
            }
            let note = self.load::<NoteV1>(Tree::Notes, &keys::note(self.queue.id, id, note))?;
            Ok(note.map(|(_, bytes)| Bytes::copy_from_slice(&bytes)))
        };
        Ok(Lease {
            batch: BatchId::from_u128(id),
            parent: batch.parent.map(BatchId::from_u128),
            fence: Fence(batch.fence),
            attempt: batch.attempt,
            requests: batch.requests,
            unsettled: batch.open,
            bytes: batch.bytes,
            formed_at: Timestamp::from_nanos(batch.formed_at),
            until: Timestamp::from_nanos(batch.until),
            checkpoint: note(batch.checkpoint, Note::Checkpoint)?,
            context: note(batch.context, Note::Context)?.unwrap_or_default(),
        })
    }

    pub(super) fn put_batch(&mut self, id: u128, batch: &BatchV1) -> Result<()> {
        self.write
            .put(Tree::Pending, keys::batch(self.queue.id, id), batch, &[])
    }

    /// Makes a batch of the first ready requests; dead-letters what no batch could take.
    fn form(&mut self, now: Timestamp, claim: &Claim) -> Result<Option<u128>> {
        if self.queue.record.ready == 0 || !self.is_due(now, claim) {
            return Ok(None);
        }
        let (first, last) = (
            self.queue.record.cursor.saturating_add(1),
            self.queue.record.last_position,
        );
        let (db, id) = (self.db, self.queue.id);
        let mut taken = ChildV1::default();
        let mut settling = self.settling();
        'all: for chunk in db.chunks((id, first), (id, last)) {
            let chunk = chunk?;
            if let Some(bytes) = chunk.plain_within(first, last)
                && taken.requests as usize + chunk.rows.len() <= claim.max_requests.get() as usize
                && taken.bytes + bytes <= claim.max_bytes.get()
            {
                if taken.requests == 0 {
                    taken.first = chunk.first;
                }
                taken.last = chunk.last();
                taken.requests += u32::try_from(chunk.rows.len()).unwrap_or(u32::MAX);
                taken.bytes += bytes;
                continue;
            }
            for (key, value) in chunk.rows_within((id, first), (id, last)) {
                let row = (keys::number(&key, 0), &value);
                if !self.take_row(now, claim, row, &mut taken, &mut settling)? {
                    break 'all;
                }
            }
        }
        self.put_settled(settling)?;
        let id = match taken.requests {
            0 => None,
            _ => Some(self.take(now, taken, &claim.context)?),
        };
        self.queue.wake = true;
        if id.is_none() {
            self.commit()?;
            self.queue.find_oldest(self.db)?;
        }
        Ok(id)
    }

    /// Takes a ready request into a batch, or dead-letters it as one that no batch could take; whether
    /// it did: the batch is full otherwise.
    fn take_row(
        &mut self,
        now: Timestamp,
        claim: &Claim,
        (position, value): (u64, &sled::IVec),
        taken: &mut ChildV1,
        settling: &mut Settling,
    ) -> Result<bool> {
        let key = self.key(&[position]);
        let (request, body) = db::read::<RequestV1>(Tree::Requests, &key, value)?;
        let (most, max_bytes) = (claim.max_requests.get(), claim.max_bytes.get());
        let too_large = request.bytes > max_bytes;
        if taken.requests >= most || (!too_large && taken.bytes + request.bytes > max_bytes) {
            return Ok(false);
        }
        if too_large {
            let error = format!(
                "payload of {} bytes is over max_batch_bytes {max_bytes}",
                request.bytes
            );
            self.delete_row(key)?;
            self.queue.record.ready -= 1;
            self.queue.record.ready_bytes -= request.bytes;
            self.queue.record.held_bytes -= request.bytes;
            let reason = (DeadReason::TooLarge, error);
            self.bury(settling, (now.as_nanos(), None), (request, &body), reason)?;
            if self.write.is_large() {
                let next = self.settling();
                self.put_settled(std::mem::replace(settling, next))?;
                self.commit()?;
            }
            return Ok(true);
        }
        if taken.requests == 0 {
            taken.first = position;
        }
        taken.last = position;
        taken.requests += 1;
        taken.bytes += request.bytes;
        Ok(true)
    }

    /// Moves a range of ready requests into a new batch: only the cursor moves.
    fn take(&mut self, now: Timestamp, taken: ChildV1, context: &Bytes) -> Result<u128> {
        let record = &mut self.queue.record;
        record.cursor = taken.last;
        record.ready -= u64::from(taken.requests);
        record.ready_bytes -= taken.bytes;
        record.in_flight += u64::from(taken.requests);
        self.open_batch(now, taken, None, 0, context)
    }

    /// Opens a batch that is offered at once.
    pub(super) fn open_batch(
        &mut self,
        now: Timestamp,
        members: ChildV1,
        parent: Option<u128>,
        prior: u32,
        context: &[u8],
    ) -> Result<u128> {
        let record = &mut self.queue.record;
        record.last_batch = now.as_nanos().max(record.last_batch.saturating_add(1));
        let id = BatchId::new(record.last_batch, record.salt).as_u128();
        let batch = BatchV1 {
            first: members.first,
            last: members.last,
            requests: members.requests,
            bytes: members.bytes,
            formed_at: now.as_nanos(),
            parent,
            prior,
            attempt: 0,
            fence: 0,
            held: false,
            until: 0,
            open: members.requests,
            open_bytes: members.bytes,
            verdicts: 0,
            verdict_bytes: 0,
            marks: members.marks,
            checkpoint: false,
            context: !context.is_empty(),
            staging: false,
            ending: None,
        };
        if batch.context {
            let key = keys::note(self.queue.id, id, Note::Context);
            self.write.put(Tree::Notes, key, &NoteV1 {}, context)?;
        }
        self.put_batch(id, &batch)?;
        self.queue.open.insert(id, batch);
        Ok(id)
    }

    /// Forgets a batch, its notes and its result for the rest.
    pub(super) fn delete_batch(&mut self, id: u128, batch: &BatchV1) {
        self.write
            .delete(Tree::Pending, keys::batch(self.queue.id, id));
        for (there, note) in [
            (batch.context, Note::Context),
            (batch.checkpoint, Note::Checkpoint),
        ] {
            if there {
                self.write
                    .delete(Tree::Notes, keys::note(self.queue.id, id, note));
            }
        }
        let rest = batch.ending.as_ref().and_then(|ending| ending.rest_result);
        if let Some(result) = rest {
            self.delete_parts(formed(id), PartOf::Rest, result.parts);
        }
        self.queue.open.remove(&id);
        self.queue.ending.remove(&id);
    }
}

/// The time in a batch's id, under which the parts of a result for its rest lie.
pub(in crate::queue::sled) fn formed(batch: u128) -> u64 {
    (batch >> 64) as u64
}
