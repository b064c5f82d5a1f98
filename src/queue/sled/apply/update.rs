//! Update: records outcomes and the checkpoint, and decides what is next, in one commit.

use std::collections::HashSet;

use super::{SLICE, Settling, Step, reason_number, result_of, shortened};
use crate::{
    batch::{Lease, Outcome, Retries, Then, Update},
    clock::Timestamp,
    error::{Error, Result},
    fault::{is_left_out, point},
    queue::sled::{
        db,
        keys::{self, Note, PartOf, Tree},
        record::{
            BatchV1, ChildV1, EndingV1, NoteV1, OutcomeV1, PhaseV1, PlaceV1, RequestV1, ResultV1,
            VerdictV1,
        },
    },
    request::RequestId,
};

impl Step<'_> {
    /// Applies all of an update, or says what is wrong with it.
    pub(in crate::queue::sled) fn update(
        &mut self,
        now: Timestamp,
        lease: &Lease,
        update: &Update,
    ) -> Result<()> {
        let id = self.held(lease)?;
        self.advance(now)?;
        let Some(mut batch) = self.queue.open.get(&id).cloned() else {
            return Err(Error::internal("a held batch is not open"));
        };
        let planned = self.plan(&batch, lease, update)?;
        let is_held_on =
            matches!(update.then, Then::Hold { until } if until.as_nanos() >= batch.until);
        self.queue.wake |= !(planned.is_empty() && is_held_on);
        self.record_all(now, id, &mut batch, planned)?;
        if let Some(checkpoint) = &update.checkpoint
            && !is_left_out("sled.checkpoint")
        {
            let key = keys::note(self.queue.id, id, Note::Checkpoint);
            self.write.put(Tree::Notes, key, &NoteV1 {}, checkpoint)?;
            batch.checkpoint = true;
        }
        match &update.then {
            Then::Hold { until } => batch.until = until.as_nanos(),
            Then::Release => {
                (batch.held, batch.until) = (false, 0);
                batch.attempt = batch.attempt.saturating_sub(1);
            }
            Then::Defer { until } => (batch.held, batch.until) = (false, until.as_nanos()),
            Then::Split { retries } => return self.end(now, id, batch, None, *retries),
            Then::Finish { .. } if is_left_out("sled.finish") => {}
            Then::Finish { rest, retries } => {
                return self.end(now, id, batch, Some(rest), *retries);
            }
        }
        self.put_batch(id, &batch)?;
        self.queue.open.insert(id, batch);
        self.put_queue();
        Ok(())
    }

    /// Checks the update against its batch; the outcomes that are new, each with its member's entry.
    fn plan<'u>(
        &self,
        batch: &BatchV1,
        lease: &Lease,
        update: &'u Update,
    ) -> Result<Vec<(RequestV1, &'u Outcome)>> {
        let (mut named, mut planned) = (HashSet::new(), Vec::new());
        for (id, outcome) in &update.outcomes {
            let member = self
                .member(batch, *id)?
                .ok_or_else(|| lease.no_member(*id))?;
            let recorded = batch.open < batch.requests
                && self
                    .load::<OutcomeV1>(Tree::Outcomes, &self.key(&[id.as_u64()]))?
                    .is_some();
            if !recorded && named.insert(*id) {
                planned.push((member, outcome));
            }
        }
        let left = (batch.open as usize).saturating_sub(planned.len());
        if matches!(update.then, Then::Split { .. }) && left < 2 {
            return Err(lease.not_splittable());
        }
        Ok(planned)
    }

    /// The entry of a member, if it is one.
    fn member(&self, batch: &BatchV1, id: RequestId) -> Result<Option<RequestV1>> {
        let PlaceV1::At(position) = self.place(id.as_u64())? else {
            return Ok(None);
        };
        if position < batch.first || position > batch.last {
            return Ok(None);
        }
        let entry = self.load::<RequestV1>(Tree::Requests, &self.key(&[position]))?;
        Ok(entry
            .map(|(request, _)| request)
            .filter(|request| request.id == id.as_u64()))
    }

    /// Records outcomes. A large update commits in between; as long as the batch's record says so,
    /// what it has written does not count, and opening takes it back.
    fn record_all(
        &mut self,
        now: Timestamp,
        id: u128,
        batch: &mut BatchV1,
        planned: Vec<(RequestV1, &Outcome)>,
    ) -> Result<()> {
        let large = planned.len() > SLICE
            || planned
                .iter()
                .filter_map(|(_, outcome)| result_of(outcome))
                .map(<[u8]>::len)
                .sum::<usize>()
                > LARGE_RESULTS;
        if large {
            let staging = BatchV1 {
                staging: true,
                ..batch.clone()
            };
            self.put_batch(id, &staging)?;
        }
        let mut settling: Option<Settling> = None;
        for (request, outcome) in planned {
            batch.open -= 1;
            batch.open_bytes -= request.bytes;
            let done = matches!(outcome, Outcome::Done { .. });
            if done {
                let record = &mut self.queue.record;
                record.in_flight -= 1;
                record.held_bytes -= request.bytes;
                record.done += 1;
            } else {
                batch.verdicts += 1;
                batch.verdict_bytes += request.bytes;
            }
            let mut page = match settling.take() {
                Some(page) => page,
                None => self.settling(),
            };
            let request_id = request.id;
            let new = outcome_of(
                now.as_nanos(),
                (id, batch),
                request,
                verdict(outcome),
                page.sequence,
            );
            self.put_outcome(request_id, new, result_of(outcome))?;
            if done {
                page.ids.push(request_id);
            }
            if page.ids.len() >= SLICE {
                self.put_settled(page)?;
            } else {
                settling = Some(page);
            }
            if large && self.write.is_large() {
                self.db.commit(self.write)?;
                point("sled.staged");
            }
        }
        match settling {
            Some(page) => self.put_settled(page),
            None => Ok(()),
        }
    }

    /// Takes back what a large update had written when a crash cut it off.
    pub(in crate::queue::sled) fn unstage(&mut self) -> Result<()> {
        let last_settled = self.queue.record.last_settled;
        let staging = self.queue.open.iter().filter(|(_, batch)| batch.staging);
        let staging: Vec<(u128, BatchV1)> =
            staging.map(|(id, batch)| (*id, batch.clone())).collect();
        for (id, mut batch) in staging {
            let (db, from, to) = (self.db, self.key(&[batch.first]), self.key(&[batch.last]));
            for entry in db.range(Tree::Requests, from, to) {
                let (key, value) = entry?;
                let (member, _) = db::read::<RequestV1>(Tree::Requests, &key, &value)?;
                let outcome = self.load::<OutcomeV1>(Tree::Outcomes, &self.key(&[member.id]))?;
                if let Some((outcome, _)) = outcome.filter(|(new, _)| new.sequence > last_settled) {
                    self.delete_outcome(member.id, &outcome);
                }
                if self.write.is_large() {
                    self.db.commit(self.write)?;
                }
            }
            let after = self.key(&[last_settled.saturating_add(1)]);
            for entry in db.range(Tree::Settled, after, self.key(&[u64::MAX])) {
                self.write.delete(Tree::Settled, entry?.0.to_vec());
            }
            batch.staging = false;
            self.put_batch(id, &batch)?;
            self.queue.open.insert(id, batch);
        }
        self.db.commit(self.write)
    }

    /// Ends a batch. One where every member is done is settled in slices after the answer, between
    /// other groups; any other one before it, because what comes back must be there.
    fn end(
        &mut self,
        now: Timestamp,
        id: u128,
        mut batch: BatchV1,
        rest: Option<&Outcome>,
        retries: Retries,
    ) -> Result<()> {
        let done = matches!(rest, Some(Outcome::Done { .. }));
        if done {
            let record = &mut self.queue.record;
            record.in_flight -= u64::from(batch.open);
            record.held_bytes -= batch.open_bytes;
            record.done += u64::from(batch.open);
        }
        let rest_result = match rest.and_then(result_of) {
            None => None,
            Some(result) => Some(self.put_rest_result(id, result)?),
        };
        // Each phase writes at most one entry of `settled` a slice.
        let sequence = self.queue.record.last_settled + 1;
        self.queue.record.last_settled +=
            2 * (u64::from(batch.requests).div_ceil(SLICE as u64) + 1);
        batch.ending = Some(EndingV1 {
            at: now.as_nanos(),
            retry_at: retries.at.as_nanos(),
            max_attempts: retries.max_attempts.get(),
            kept_until: now.after(self.queue.options.retention).as_nanos(),
            phase: if done && batch.verdicts > 0 {
                PhaseV1::Record
            } else {
                PhaseV1::Settle
            },
            reached: batch.first,
            sequence,
            rest: rest.map(verdict),
            rest_result,
            children: [ChildV1::default(); 2],
        });
        self.queue.open.remove(&id);
        let all_done = done && batch.verdicts == 0;
        let small = batch.requests as usize <= SLICE;
        self.put_batch(id, &batch)?;
        self.queue.ending.insert(id, batch);
        if small {
            return self.settle(id);
        }
        self.commit()?;
        point("sled.ended");
        if all_done { Ok(()) } else { self.settle(id) }
    }

    /// Puts the result for the rest of a batch into parts, however small it is.
    fn put_rest_result(&mut self, id: u128, result: &[u8]) -> Result<ResultV1> {
        let mut parts = 0;
        for part in result.chunks(super::PART_BYTES) {
            let key = keys::part(self.queue.id, super::claim::formed(id), PartOf::Rest, parts);
            self.write.put(
                Tree::Parts,
                key,
                &crate::queue::sled::record::PartV1 {},
                part,
            )?;
            parts += 1;
        }
        Ok(ResultV1 {
            bytes: result.len() as u64,
            parts,
        })
    }
}

/// An update with more bytes of results than this is written in several commits.
const LARGE_RESULTS: usize = 2 << 20;

/// An outcome as it is recorded.
pub(super) fn verdict(outcome: &Outcome) -> VerdictV1 {
    match outcome {
        Outcome::Done { .. } => VerdictV1::Done,
        Outcome::Retry { error, not_before } => VerdictV1::Retry {
            error: shortened(error.clone()),
            not_before: not_before.map(Timestamp::as_nanos),
        },
        Outcome::Reject { reason, error } => VerdictV1::Reject {
            reason: reason_number(*reason),
            error: shortened(error.clone()),
        },
    }
}

/// The record of an outcome, with what is to be known of the request when its entry is gone.
pub(super) fn outcome_of(
    at: u64,
    (id, batch): (u128, &BatchV1),
    request: RequestV1,
    verdict: VerdictV1,
    sequence: u64,
) -> OutcomeV1 {
    OutcomeV1 {
        batch: id,
        at,
        verdict,
        result: None,
        attempts: request.attempts + batch.prior + batch.attempt,
        pushed_at: request.pushed_at,
        attributes: request.attributes,
        sequence,
    }
}
