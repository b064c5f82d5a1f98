//! Batches: claimed, read, updated, ended.

use std::{collections::BTreeSet, num::NonZeroU32};

use batchyard::{
    BatchEntry, BatchId, BatchState, Claim, DeadReason, Due, ErrorKind, Fence, Lease, Member,
    Outcome, OutcomeCounts, Page, RequestId, Retries, Then, Timestamp, Update,
};
use bytes::Bytes;

use super::{Answer, Batch, Gone, Is, Model, Request};

impl Model {
    pub(crate) fn claim(&mut self, now: Timestamp, claim: &Claim) -> Option<Lease> {
        self.advance(now);
        let offered = self.batches.iter().position(|batch| batch.until <= now);
        let at = match offered {
            Some(at) => at,
            None if claim.form && self.is_due(now, claim.due) => self.form(now, claim)?,
            None => return None,
        };
        self.last_fence += 1;
        let fence = Fence(self.last_fence);
        let batch = &mut self.batches[at];
        batch.held = Some(fence);
        batch.until = now.after(claim.lease_duration);
        batch.attempt += 1;
        let batch = &self.batches[at];
        let members = || batch.members.iter().map(|id| self.known(*id));
        Some(Lease {
            batch: batch.id,
            parent: batch.parent,
            fence,
            attempt: batch.attempt,
            requests: u32::try_from(batch.members.len()).expect("few"),
            unsettled: u32::try_from(members().filter(|one| one.is_open()).count()).expect("few"),
            bytes: members().map(Request::bytes).sum(),
            formed_at: batch.formed_at,
            until: batch.until,
            checkpoint: batch.checkpoint.clone(),
            context: batch.context.clone(),
        })
    }

    pub(crate) fn read(&self, lease: &Lease, page: Page) -> Answer<Vec<Member>> {
        let batch = &self.batches[self.held(lease)?];
        let mut members: Vec<Member> = Vec::new();
        let mut bytes = 0;
        for request in batch.members.iter().map(|id| self.known(*id)) {
            if page.after.is_some_and(|after| request.position <= after) {
                continue;
            }
            bytes += request.bytes();
            let count = u32::try_from(members.len()).expect("few");
            let is_full = count >= page.max_requests.get() || bytes > page.max_bytes.get();
            if is_full && count > 0 {
                break;
            }
            members.push(Member {
                id: request.id,
                position: request.position,
                attempt: request.attempts + batch.prior + batch.attempt,
                pushed_at: request.pushed_at,
                payload: request.payload.clone(),
                attributes: request.attributes.clone(),
                outcome: request.outcome(),
            });
        }
        Ok(members)
    }

    pub(crate) fn update(&mut self, now: Timestamp, lease: &Lease, update: Update) -> Answer<()> {
        self.advance(now);
        let at = self.held(lease)?;
        let members = self.batches[at].members.clone();
        let is_named = |id: &RequestId| update.outcomes.iter().any(|(named, _)| named == id);
        let left: Vec<RequestId> = (members.iter().copied())
            .filter(|id| self.known(*id).is_open() && !is_named(id))
            .collect();
        let strangers = update.outcomes.iter().any(|(id, _)| !members.contains(id));
        if strangers || (matches!(update.then, Then::Split { .. }) && left.len() < 2) {
            return Err(ErrorKind::Invalid);
        }
        for (id, outcome) in update.outcomes {
            self.record(now, at, id, outcome);
        }
        let batch = &mut self.batches[at];
        batch.checkpoint = update.checkpoint.or(batch.checkpoint.take());
        match update.then {
            Then::Hold { until } => batch.until = until,
            Then::Release => {
                (batch.held, batch.until) = (None, Timestamp::EPOCH);
                batch.attempt -= 1;
            }
            Then::Defer { until } => (batch.held, batch.until) = (None, until),
            Then::Split { retries } => {
                let ended = self.end(now, at, retries);
                let (prior, parent) = (ended.prior + ended.attempt, Some(ended.id));
                let (first, second) = left.split_at(left.len().div_ceil(2));
                for half in [first, second] {
                    self.open(now, half.to_vec(), parent, prior, &ended.context);
                }
            }
            Then::Finish { rest, retries } => {
                for id in left {
                    self.record(now, at, id, rest.clone());
                }
                self.end(now, at, retries);
            }
        }
        Ok(())
    }

    pub(crate) fn batches(
        &self,
        now: Timestamp,
        after: Option<BatchId>,
        most: NonZeroU32,
    ) -> Vec<BatchEntry> {
        let later = self.batches.iter().filter(|batch| Some(batch.id) > after);
        let mut entries: Vec<BatchEntry> = later.map(|batch| self.listed(now, batch)).collect();
        entries.sort_by_key(|entry| entry.id);
        entries.truncate(most.get() as usize);
        entries
    }

    pub(crate) fn batch(&self, now: Timestamp, id: BatchId) -> Option<BatchEntry> {
        let batch = self.batches.iter().find(|batch| batch.id == id)?;
        Some(BatchEntry {
            checkpoint: batch.checkpoint.clone(),
            context: Some(batch.context.clone()),
            ..self.listed(now, batch)
        })
    }

    fn listed(&self, now: Timestamp, batch: &Batch) -> BatchEntry {
        let members = || batch.members.iter().map(|id| self.known(*id));
        let count = |is: fn(&Outcome) -> bool| {
            let outcomes = members().filter_map(Request::outcome);
            u32::try_from(outcomes.filter(is).count()).expect("few")
        };
        let until = batch.until;
        BatchEntry {
            id: batch.id,
            parent: batch.parent,
            formed_at: batch.formed_at,
            attempt: batch.attempt,
            attempts_before: batch.prior,
            state: match batch.held {
                _ if until <= now => BatchState::Offered,
                Some(_) => BatchState::Held { until },
                None => BatchState::Deferred { until },
            },
            fence: batch.held.map(|_| Fence(0)),
            requests: u32::try_from(batch.members.len()).expect("few"),
            bytes: members().map(Request::bytes).sum(),
            outcomes: OutcomeCounts {
                done: count(|outcome| matches!(outcome, Outcome::Done { .. })),
                retry: count(|outcome| matches!(outcome, Outcome::Retry { .. })),
                reject: count(|outcome| matches!(outcome, Outcome::Reject { .. })),
            },
            checkpoint_bytes: batch.checkpoint.as_ref().map(|note| note.len() as u64),
            checkpoint: None,
            context: None,
        }
    }

    pub(crate) fn release(&mut self, now: Timestamp, ids: &[BatchId]) -> Vec<BatchId> {
        self.advance(now);
        let mut released = BTreeSet::new();
        let named = self.batches.iter_mut();
        for batch in named.filter(|batch| ids.contains(&batch.id) && batch.until > now) {
            if batch.held.take().is_some() {
                batch.attempt -= 1;
            }
            batch.until = Timestamp::EPOCH;
            released.insert(batch.id);
        }
        released.into_iter().collect()
    }

    fn is_due(&mut self, now: Timestamp, due: Option<Due>) -> bool {
        let Some(due) = due else { return true };
        let oldest = self.oldest_ready_at(now);
        let ready = self.ready();
        let bytes = ready.iter().map(|request| request.bytes()).sum();
        due.is_met(ready.len() as u64, bytes, oldest)
    }

    /// Makes a batch of the first ready requests; dead-letters those that no batch could take.
    fn form(&mut self, now: Timestamp, claim: &Claim) -> Option<usize> {
        let (mut members, mut too_large) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        for request in self.ready() {
            if members.len() >= claim.max_requests.get() as usize {
                break;
            }
            if request.bytes() > claim.max_bytes.get() {
                too_large.push(request.id);
                continue;
            }
            bytes += request.bytes();
            if bytes > claim.max_bytes.get() {
                break;
            }
            members.push(request.id);
        }
        for id in too_large {
            self.bury(now, None, id, DeadReason::TooLarge, String::new());
        }
        (!members.is_empty()).then(|| self.open(now, members, None, 0, &claim.context))
    }

    /// Opens a batch that is offered at once; its place among the open ones.
    fn open(
        &mut self,
        now: Timestamp,
        members: Vec<RequestId>,
        parent: Option<BatchId>,
        prior: u32,
        context: &Bytes,
    ) -> usize {
        for id in &members {
            let is = &mut self.known_mut(*id).is;
            if let Is::Ready { .. } = is {
                *is = Is::InFlight {
                    cancelled: false,
                    outcome: None,
                };
            }
        }
        self.last_batch = now.as_nanos().max(self.last_batch + 1);
        self.batches.push(Batch {
            id: BatchId::new(self.last_batch, self.salt),
            parent,
            held: None,
            until: Timestamp::EPOCH,
            attempt: 0,
            prior,
            formed_at: now,
            context: context.clone(),
            checkpoint: None,
            members,
        });
        self.batches.len() - 1
    }

    /// The place of a batch, if this lease still holds it.
    fn held(&self, lease: &Lease) -> Answer<usize> {
        let is = |batch: &Batch| batch.id == lease.batch && batch.held == Some(lease.fence);
        let at = self.batches.iter().position(is);
        at.ok_or(ErrorKind::LeaseLost)
    }

    /// Records the first outcome of a member; a done one is visible from here on.
    fn record(&mut self, now: Timestamp, at: usize, id: RequestId, new: Outcome) {
        let batch = &self.batches[at];
        let (batch, counted) = (batch.id, batch.prior + batch.attempt);
        let order = self.settled + 1;
        let request = self.known_mut(id);
        let attempts = request.attempts + counted;
        match (&mut request.is, new) {
            (Is::InFlight { outcome: None, .. }, Outcome::Done { result }) => {
                request.is = Is::Done {
                    at: now,
                    batch,
                    attempts,
                    result,
                    order,
                    until: None,
                };
                self.settled = order;
            }
            (Is::InFlight { outcome, .. }, new) if outcome.is_none() => *outcome = Some(new),
            _ => {}
        }
    }

    /// Ends a batch: each member with an outcome becomes what that says.
    fn end(&mut self, now: Timestamp, at: usize, retries: Retries) -> Batch {
        let batch = self.batches.remove(at);
        for id in &batch.members {
            self.leave(now, &batch, *id, retries);
        }
        batch
    }

    fn leave(&mut self, now: Timestamp, batch: &Batch, id: RequestId, retries: Retries) {
        let retention = self.options.retention;
        let request = self.known_mut(id);
        if let Is::Done { until, .. } = &mut request.is {
            *until = Some(now.after(retention));
            return;
        }
        let Is::InFlight {
            cancelled,
            outcome: Some(outcome),
        } = &request.is
        else {
            return;
        };
        let (cancelled, outcome) = (*cancelled, outcome.clone());
        request.attempts += batch.prior + batch.attempt;
        match outcome {
            Outcome::Reject { reason, error } => {
                self.bury(now, Some(batch.id), id, reason, error);
            }
            _ if cancelled => request.is = Is::Gone(Gone::Cancelled),
            _ if request.expires_at.is_some_and(|at| at <= now) => {
                request.is = Is::Gone(Gone::Expired);
            }
            Outcome::Retry { error, .. } if request.attempts >= retries.max_attempts.get() => {
                self.bury(now, Some(batch.id), id, DeadReason::Exhausted, error);
            }
            Outcome::Retry { error, not_before } => {
                request.error = Some(error);
                let due = not_before.map_or(retries.at, |at| at.max(retries.at));
                if due > now {
                    request.is = Is::Delayed { due };
                } else {
                    self.make_ready(now, now, id);
                }
            }
            Outcome::Done { .. } => unreachable!("a done member is not in flight"),
        }
    }

    fn bury(
        &mut self,
        at: Timestamp,
        batch: Option<BatchId>,
        id: RequestId,
        reason: DeadReason,
        error: String,
    ) {
        self.settled += 1;
        let order = self.settled;
        let request = self.known_mut(id);
        request.error = Some(error);
        request.is = Is::Dead {
            at,
            batch,
            reason,
            order,
        };
    }
}
