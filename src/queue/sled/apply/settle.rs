//! Settling an ended batch: each member becomes what its outcome says, slice by slice.
//!
//! The commit that ended the batch holds everything that the slices go by, and each slice commits how
//! far it has come, so a crash between two slices changes nothing: opening goes on with the next one.

use super::{SLICE, Settling, Step, reason, update::outcome_of};
use crate::{
    batch::BatchId,
    clock::Timestamp,
    error::{Error, Result},
    fault::point,
    queue::sled::{
        db,
        keys::{self, Note, PartOf, Tree},
        record::{
            BatchV1, EndingV1, KeptV1, MarkV1, NoteV1, OutcomeV1, PartV1, PhaseV1, RequestV1,
            VerdictV1,
        },
    },
    request::DeadReason,
};

/// A slice of an ending batch.
struct Slice {
    id: u128,
    batch: BatchV1,
    ending: EndingV1,
    /// The result for members without an outcome.
    rest_result: Option<Vec<u8>>,
    settling: Settling,
    /// Nothing is kept of done members, unless it was recorded already.
    forgets: bool,
    /// Done members, whose results are kept for the retention.
    kept: Vec<u64>,
}

impl Step<'_> {
    /// Settles everything that is left of every ended batch.
    pub(in crate::queue::sled) fn settle_all(&mut self) -> Result<()> {
        while let Some(id) = self.queue.ending.keys().next().copied() {
            self.settle(id)?;
        }
        Ok(())
    }

    /// Settles everything that is left of an ended batch.
    pub(super) fn settle(&mut self, id: u128) -> Result<()> {
        while self.queue.ending.contains_key(&id) {
            self.settle_slice(id)?;
        }
        Ok(())
    }

    /// Settles the next slice of an ended batch.
    pub(in crate::queue::sled) fn settle_slice(&mut self, id: u128) -> Result<()> {
        let Some(batch) = self.queue.ending.get(&id).cloned() else {
            return Ok(());
        };
        let Some(ending) = batch.ending.clone() else {
            return Err(Error::internal("a batch ends without saying how"));
        };
        let settling = Settling {
            sequence: ending.sequence,
            ids: Vec::new(),
        };
        let rest_result = self.rest_result(id, &ending)?;
        let forgets = ending.kept_until <= ending.at;
        let mut slice = Slice {
            id,
            batch,
            ending,
            rest_result,
            settling,
            forgets,
            kept: Vec::new(),
        };
        let BatchV1 {
            requests,
            open,
            marks,
            last,
            ..
        } = slice.batch;
        let all_done = slice.ending.rest == Some(VerdictV1::Done) && open == requests;
        if slice.forgets && all_done && marks == 0 {
            let through = self.forget_chunks(&mut slice)?;
            return self.finish_slice_of(slice, through);
        }
        let (from, to) = (self.key(&[slice.ending.reached]), self.key(&[last]));
        let entries: Vec<_> = self
            .db
            .range(Tree::Requests, from, to)
            .take(SLICE)
            .collect::<Result<_>>()?;
        for (key, value) in &entries {
            self.settle_row(&mut slice, key, value)?;
        }
        self.finish_slice_of(slice, entries.len() < SLICE)
    }

    /// Deletes members that are all done and of which nothing is kept, by the chunk where it can be;
    /// whether it is through with all of them.
    fn forget_chunks(&mut self, slice: &mut Slice) -> Result<bool> {
        let (first, last) = (slice.ending.reached, slice.batch.last);
        let (db, id) = (self.db, self.queue.id);
        let mut chunks = db.chunks((id, first), (id, last));
        for chunk in chunks.by_ref().take(SLICE) {
            let chunk = chunk?;
            if chunk.plain_within(first, last).is_some() {
                slice.ending.reached = chunk.last() + 1;
                self.write.delete_chunk(&chunk);
                continue;
            }
            for (key, value) in chunk.rows_within((id, first), (id, last)) {
                self.settle_row(slice, &key, &value)?;
            }
            if self.write.is_large() {
                break;
            }
        }
        Ok(chunks.next().is_none())
    }

    fn settle_row(&mut self, slice: &mut Slice, key: &[u8], value: &sled::IVec) -> Result<()> {
        let (request, body) = db::read::<RequestV1>(Tree::Requests, key, value)?;
        let position = keys::number(key, 0);
        slice.ending.reached = position + 1;
        match slice.ending.phase {
            PhaseV1::Record => self.record_rest(slice, request),
            PhaseV1::Settle => self.settle_member(slice, position, request, &body),
        }
    }

    fn rest_result(&self, id: u128, ending: &EndingV1) -> Result<Option<Vec<u8>>> {
        let Some(result) = ending.rest_result else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        for number in 0..result.parts {
            let key = keys::part(
                self.queue.id,
                super::claim::formed(id),
                PartOf::Rest,
                number,
            );
            match self.load::<PartV1>(Tree::Parts, &key)? {
                Some((_, part)) => bytes.extend_from_slice(&part),
                None => {
                    return Err(Error::corrupt(
                        "a part of a result is missing; run `repair`",
                    ));
                }
            }
        }
        Ok(Some(bytes))
    }

    /// Commits a slice, with how far it came.
    fn finish_slice_of(&mut self, slice: Slice, last: bool) -> Result<()> {
        let Slice {
            id,
            mut batch,
            mut ending,
            settling,
            kept,
            ..
        } = slice;
        if !kept.is_empty() {
            self.keep(ending.kept_until, settling.sequence, kept)?;
            self.note_kept(id, ending.kept_until)?;
        }
        self.put_settled(settling)?;
        ending.sequence += 1;
        match (last, ending.phase) {
            (true, PhaseV1::Settle) => {
                if ending.rest.is_none() {
                    self.open_children(id, &batch, &ending)?;
                }
                batch.ending = Some(ending);
                self.delete_batch(id, &batch);
                self.queue.wake = true;
            }
            (true, PhaseV1::Record) => {
                (ending.phase, ending.reached) = (PhaseV1::Settle, batch.first);
                batch.open = 0;
                batch.ending = Some(ending);
                self.put_batch(id, &batch)?;
                self.queue.ending.insert(id, batch);
            }
            (false, _) => {
                batch.ending = Some(ending);
                self.put_batch(id, &batch)?;
                self.queue.ending.insert(id, batch);
            }
        }
        self.commit()?;
        point("sled.slice");
        Ok(())
    }

    /// Keeps done members of ended batches for a while; `number` tells them from others that are kept as long.
    pub(super) fn keep(&mut self, until: u64, number: u64, ids: Vec<u64>) -> Result<()> {
        let key = self.key(&[until, number]);
        self.queue.next.kept = self.queue.next.kept.min(until);
        self.write.put(Tree::Kept, key, &KeptV1 { ids }, &[])
    }

    /// Notes until when the done members of an ended batch are kept.
    pub(super) fn note_kept(&mut self, batch: u128, until: u64) -> Result<()> {
        let note = keys::note(self.queue.id, batch, Note::KeptUntil);
        self.write
            .put(Tree::Notes, note, &NoteV1 {}, &until.to_be_bytes())
    }

    fn open_children(&mut self, id: u128, batch: &BatchV1, ending: &EndingV1) -> Result<()> {
        let note = keys::note(self.queue.id, id, Note::Context);
        let context = if batch.context {
            self.load::<NoteV1>(Tree::Notes, &note)?
        } else {
            None
        };
        let context = context
            .map(|(_, context)| context.to_vec())
            .unwrap_or_default();
        for child in ending.children {
            // They stay in flight: only `take` counts requests into it.
            let prior = batch.prior + batch.attempt;
            self.open_batch(
                Timestamp::from_nanos(ending.at),
                child,
                Some(id),
                prior,
                &context,
            )?;
        }
        Ok(())
    }

    fn outcome(&self, batch: &BatchV1, id: u64) -> Result<Option<OutcomeV1>> {
        if batch.open == batch.requests {
            return Ok(None);
        }
        let outcome = self.load::<OutcomeV1>(Tree::Outcomes, &self.key(&[id]))?;
        Ok(outcome.map(|(outcome, _)| outcome))
    }

    /// Records a member as done if it has no outcome; it was counted as done with the end.
    fn record_rest(&mut self, slice: &mut Slice, request: RequestV1) -> Result<()> {
        if self.outcome(&slice.batch, request.id)?.is_none() {
            self.put_done(slice, request)?;
        }
        Ok(())
    }

    fn put_done(&mut self, slice: &mut Slice, request: RequestV1) -> Result<()> {
        let id = request.id;
        let batch = (slice.id, &slice.batch);
        let outcome = outcome_of(
            slice.ending.at,
            batch,
            request,
            VerdictV1::Done,
            slice.settling.sequence,
        );
        slice.settling.ids.push(id);
        self.put_outcome(id, outcome, slice.rest_result.as_deref())
    }

    /// Gives a member what its outcome says.
    fn settle_member(
        &mut self,
        slice: &mut Slice,
        position: u64,
        request: RequestV1,
        body: &[u8],
    ) -> Result<()> {
        let recorded = self.outcome(&slice.batch, request.id)?;
        let verdict = recorded.as_ref().map(|outcome| outcome.verdict.clone());
        match verdict.or_else(|| slice.ending.rest.clone()) {
            None => self.stay(slice, position, &request),
            Some(VerdictV1::Done) => {
                let key = self.key(&[position]);
                self.write.delete(Tree::Requests, key);
                if position != request.id {
                    self.forget_place(request.id);
                }
                self.take_mark(&slice.batch, request.id)?;
                self.delete_parts(request.id, PartOf::Payload, request.parts);
                if recorded.is_none() && slice.forgets {
                    return Ok(());
                }
                slice.kept.push(request.id);
                match recorded {
                    Some(_) => Ok(()),
                    None => self.put_done(slice, request),
                }
            }
            Some(verdict) => {
                if let Some(outcome) = &recorded {
                    self.delete_outcome(request.id, outcome);
                }
                self.leave(slice, position, (request, body), verdict)
            }
        }
    }

    /// Leaves a member of a split batch where it is: it is in one of the halves.
    fn stay(&mut self, slice: &mut Slice, position: u64, request: &RequestV1) -> Result<()> {
        let marked = self.marked(&slice.batch, request.id)?;
        let half = slice.batch.open.div_ceil(2);
        let first_is_full = slice.ending.children[0].requests >= half;
        let child = &mut slice.ending.children[usize::from(first_is_full)];
        if child.requests == 0 {
            child.first = position;
        }
        child.last = position;
        child.requests += 1;
        child.bytes += request.bytes;
        child.marks += u32::from(marked);
        Ok(())
    }

    /// A member that was not done leaves its batch: dead, cancelled, expired, delayed or ready.
    fn leave(
        &mut self,
        slice: &mut Slice,
        position: u64,
        (mut request, body): (RequestV1, &[u8]),
        verdict: VerdictV1,
    ) -> Result<()> {
        let (now, bytes) = (slice.ending.at, request.bytes);
        request.attempts += slice.batch.prior + slice.batch.attempt;
        let cancelled = self.take_mark(&slice.batch, request.id)?;
        let key = self.key(&[position]);
        self.write.delete(Tree::Requests, key);
        self.queue.record.in_flight -= 1;
        let by = (now, Some(slice.id));
        match verdict {
            VerdictV1::Reject {
                reason: number,
                error,
            } => {
                self.queue.record.held_bytes -= bytes;
                self.bury(
                    &mut slice.settling,
                    by,
                    (request, body),
                    (reason(number), error),
                )
            }
            _ if cancelled => {
                self.queue.record.cancelled += 1;
                self.drop_request(&request);
                Ok(())
            }
            _ if request.expires_at.is_some_and(|at| at <= now) => {
                self.queue.record.expired += 1;
                self.drop_request(&request);
                Ok(())
            }
            VerdictV1::Retry { error, .. } if request.attempts >= slice.ending.max_attempts => {
                self.queue.record.held_bytes -= bytes;
                self.bury(
                    &mut slice.settling,
                    by,
                    (request, body),
                    (DeadReason::Exhausted, error),
                )
            }
            VerdictV1::Retry { error, not_before } => {
                let due = slice.ending.retry_at.max(not_before.unwrap_or(0));
                request.error = Some(error);
                self.expire_later(&request);
                if due > now {
                    self.delay(due, position, &request, body)
                } else {
                    self.make_ready(Timestamp::from_nanos(now), now, request, body)
                }
            }
            VerdictV1::Done => Err(Error::internal(format!(
                "a done member of batch {} was about to leave it",
                BatchId::from_u128(slice.id)
            ))),
        }
    }

    /// Puts a request that waits again back into the order of expiry: its entry was used up if a `now`
    /// past its ttl was seen while it was in flight, and an earlier one since.
    fn expire_later(&mut self, request: &RequestV1) {
        if let Some(at) = request.expires_at {
            let key = self.key(&[at, request.id]);
            self.write.put_key(Tree::Expiry, key);
            self.queue.next.expiry = self.queue.next.expiry.min(at);
        }
    }

    /// Forgets a request that is nowhere any more.
    fn drop_request(&mut self, request: &RequestV1) {
        self.queue.record.held_bytes -= request.bytes;
        self.forget_place(request.id);
        self.delete_parts(request.id, PartOf::Payload, request.parts);
    }

    fn marked(&self, batch: &BatchV1, id: u64) -> Result<bool> {
        Ok(batch.marks > 0
            && self
                .load::<MarkV1>(Tree::Marks, &self.key(&[id]))?
                .is_some())
    }

    /// Whether a member was marked as cancelled; the mark is used up.
    fn take_mark(&mut self, batch: &BatchV1, id: u64) -> Result<bool> {
        let marked = self.marked(batch, id)?;
        if marked {
            let key = self.key(&[id]);
            self.write.delete(Tree::Marks, key);
        }
        Ok(marked)
    }
}
