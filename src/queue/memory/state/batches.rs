//! The verbs on batches: claiming, reading, updating, ending.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use super::{Ended, Membership, OpenBatch, Place, Request, State};
use crate::{
    batch::{BatchId, Claim, Due, Fence, Lease, Member, Outcome, Page, Retries, Then, Update},
    clock::Timestamp,
    error::Result,
    queue::{BatchEntry, BatchState, OutcomeCounts},
    request::{DeadReason, Position, RequestId},
};

impl State {
    pub(in super::super) fn claim(&mut self, now: Timestamp, claim: &Claim) -> Option<Lease> {
        let offered = self.batches.iter().find(|(_, batch)| batch.until <= now);
        let id = match offered.map(|(id, _)| *id) {
            Some(id) => id,
            None if claim.form && self.is_due(now, claim) => self.form(now, claim)?,
            None => return None,
        };
        self.last_fence += 1;
        let batch = self.batches.get_mut(&id)?;
        batch.fence = Fence(self.last_fence);
        batch.held = true;
        batch.until = now.after(claim.lease_duration);
        batch.attempt += 1;
        Some(Lease {
            batch: id,
            parent: batch.parent,
            fence: batch.fence,
            attempt: batch.attempt,
            requests: batch.requests(),
            unsettled: u32::try_from(batch.unsettled().count()).unwrap_or(u32::MAX),
            bytes: batch.bytes(),
            formed_at: batch.formed_at,
            until: batch.until,
            checkpoint: batch.checkpoint.clone(),
            context: batch.context.clone(),
        })
    }

    pub(in super::super) fn read(&mut self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        let batch = self.held(lease)?;
        let after = page
            .after
            .map_or(0, |position| position.as_u64().saturating_add(1));
        let mut members = Vec::new();
        let mut bytes = 0;
        for (position, member) in batch.members.range(Position::from_u64(after)..) {
            bytes += member.request.bytes();
            let full =
                members.len() >= page.max_requests.get() as usize || bytes > page.max_bytes.get();
            if full && !members.is_empty() {
                break;
            }
            members.push(Member {
                id: member.request.id,
                position: *position,
                attempt: member.request.attempts + batch.prior + batch.attempt,
                pushed_at: member.request.pushed_at,
                payload: member.request.payload.clone(),
                attributes: member.request.attributes.clone(),
                outcome: member.outcome.clone(),
            });
        }
        Ok(members)
    }

    /// Whether it gives others something to do: holding on for longer does not.
    pub(in super::super) fn update(
        &mut self,
        now: Timestamp,
        lease: &Lease,
        update: Update,
    ) -> Result<bool> {
        let batch = self.held(lease)?;
        let positions: HashMap<RequestId, Position> = batch
            .members
            .iter()
            .map(|(position, member)| (member.request.id, *position))
            .collect();
        if let Some((id, _)) = update
            .outcomes
            .iter()
            .find(|(id, _)| !positions.contains_key(id))
        {
            return Err(lease.no_member(*id));
        }
        if matches!(update.then, Then::Split { .. }) && !is_splittable(batch, &update.outcomes) {
            return Err(lease.not_splittable());
        }
        let is_held_on = matches!(update.then, Then::Hold { until } if until >= batch.until);
        let wakes = !(is_held_on && update.outcomes.is_empty());
        if update.checkpoint.is_some() {
            batch.checkpoint = update.checkpoint;
        }
        for (id, outcome) in update.outcomes {
            self.record(now, lease.batch, positions[&id], outcome);
        }
        match update.then {
            Then::Hold { until } => self.held(lease)?.until = until,
            Then::Release => self.let_go(lease.batch),
            Then::Defer { until } => {
                let batch = self.held(lease)?;
                (batch.held, batch.until) = (false, until);
            }
            Then::Split { retries } => self.split(now, lease.batch, retries),
            Then::Finish { rest, retries } => {
                let open: Vec<Position> = self.held(lease)?.unsettled().collect();
                for position in open {
                    self.record(now, lease.batch, position, rest.clone());
                }
                if let Some(batch) = self.batches.remove(&lease.batch) {
                    self.end(now, lease.batch, batch, retries);
                }
            }
        }
        Ok(wakes)
    }

    /// Gives back the attempt that does not count, and offers the batch at once.
    fn let_go(&mut self, id: BatchId) {
        if let Some(batch) = self.batches.get_mut(&id) {
            (batch.held, batch.until) = (false, Timestamp::EPOCH);
            batch.attempt = batch.attempt.saturating_sub(1);
        }
    }

    /// Offers batches that are held or deferred; those that were.
    pub(in super::super) fn release(&mut self, now: Timestamp, ids: &[BatchId]) -> Vec<BatchId> {
        let ids: BTreeSet<BatchId> = ids.iter().copied().collect();
        let waits = |id: &BatchId| self.batches.get(id).is_some_and(|batch| batch.until > now);
        let released: Vec<BatchId> = ids.into_iter().filter(waits).collect();
        for id in &released {
            match self.batches.get_mut(id) {
                Some(batch) if !batch.held => batch.until = Timestamp::EPOCH,
                _ => self.let_go(*id),
            }
        }
        released
    }

    /// The batch, if this lease still holds it.
    fn held(&mut self, lease: &Lease) -> Result<&mut OpenBatch> {
        self.batches
            .get_mut(&lease.batch)
            .filter(|batch| batch.held && batch.fence == lease.fence)
            .ok_or_else(|| lease.lost())
    }

    fn is_due(&mut self, now: Timestamp, claim: &Claim) -> bool {
        let stats = self.stats(now);
        let met = |due: Due| due.is_met(stats.ready, stats.ready_bytes, stats.oldest_ready_at);
        claim.due.is_none_or(met)
    }

    /// Makes a batch of the first ready requests; dead-letters what no batch could take.
    fn form(&mut self, now: Timestamp, claim: &Claim) -> Option<BatchId> {
        let mut members = BTreeMap::new();
        let mut bytes = 0;
        while let Some(&(position, ref first)) = self.ready.front() {
            let size = first.bytes();
            let too_large = size > claim.max_bytes.get();
            let most = claim.max_requests.get() as usize;
            if members.len() >= most || (!too_large && bytes + size > claim.max_bytes.get()) {
                break;
            }
            let request = self.take_ready(position)?;
            if too_large {
                let error = format!(
                    "payload of {size} bytes is over max_batch_bytes {}",
                    claim.max_bytes
                );
                self.counts.held_bytes -= size;
                self.bury(now, None, request, DeadReason::TooLarge, error);
                continue;
            }
            bytes += size;
            members.insert(
                position,
                Membership {
                    request,
                    cancelled: false,
                    outcome: None,
                },
            );
        }
        (!members.is_empty()).then(|| self.open(now, members, None, 0, claim.context.clone()))
    }

    /// Opens a batch that is offered at once.
    fn open(
        &mut self,
        now: Timestamp,
        members: BTreeMap<Position, Membership>,
        parent: Option<BatchId>,
        prior: u32,
        context: Bytes,
    ) -> BatchId {
        self.last_batch = now.as_nanos().max(self.last_batch + 1);
        let id = BatchId::new(self.last_batch, self.salt);
        for (position, member) in &members {
            self.places
                .insert(member.request.id, Place::InFlight(id, *position));
        }
        self.counts.in_flight += members.len() as u64;
        let batch = OpenBatch {
            parent,
            fence: Fence(0),
            held: false,
            until: Timestamp::EPOCH,
            attempt: 0,
            prior,
            formed_at: now,
            context,
            checkpoint: None,
            members,
        };
        self.batches.insert(id, batch);
        id
    }

    /// Records a member's outcome unless it has one; a done request is visible from here on.
    fn record(&mut self, now: Timestamp, id: BatchId, position: Position, outcome: Outcome) {
        let Some(batch) = self.batches.get_mut(&id) else {
            return;
        };
        let attempts = batch.prior + batch.attempt;
        let Some(member) = batch.members.get_mut(&position) else {
            return;
        };
        if member.outcome.is_some() {
            return;
        }
        member.outcome = Some(outcome.clone());
        if let Outcome::Done { result } = outcome {
            let mut request = member.request.clone();
            request.attempts += attempts;
            self.counts.in_flight -= 1;
            self.counts.held_bytes -= request.bytes();
            self.counts.done += 1;
            request.payload = Bytes::new();
            let request_id = request.id;
            let ended = self.ended(now, Some(id), request, result, None);
            self.places.insert(request_id, Place::Done);
            self.done.insert(request_id, ended);
        }
    }

    fn split(&mut self, now: Timestamp, id: BatchId, retries: Retries) {
        let Some(mut batch) = self.batches.remove(&id) else {
            return;
        };
        let unsettled: Vec<Position> = batch.unsettled().collect();
        let (context, prior) = (batch.context.clone(), batch.prior + batch.attempt);
        let half = unsettled.len().div_ceil(2);
        self.counts.in_flight -= unsettled.len() as u64;
        for positions in [&unsettled[..half], &unsettled[half..]] {
            let members: BTreeMap<_, _> = positions
                .iter()
                .filter_map(|at| batch.members.remove_entry(at))
                .collect();
            self.open(now, members, Some(id), prior, context.clone());
        }
        self.end(now, id, batch, retries);
    }

    /// Settles members that all have an outcome; their batch is gone already.
    fn end(&mut self, now: Timestamp, id: BatchId, batch: OpenBatch, retries: Retries) {
        let attempts = batch.prior + batch.attempt;
        for (
            position,
            Membership {
                mut request,
                cancelled,
                outcome,
            },
        ) in batch.members
        {
            request.attempts += attempts;
            let (size, expired) = (
                request.bytes(),
                request.expires_at.is_some_and(|at| at <= now),
            );
            let (mut left, request_id) = (true, request.id);
            match outcome {
                Some(Outcome::Done { .. }) => {
                    self.retained
                        .insert((now.after(self.options.retention), request_id));
                    continue;
                }
                Some(Outcome::Reject { reason, error }) => {
                    self.bury(now, Some(id), request, reason, error);
                }
                _ if cancelled => {
                    self.places.remove(&request_id);
                    self.counts.cancelled += 1;
                }
                _ if expired => {
                    self.places.remove(&request_id);
                    self.counts.expired += 1;
                }
                Some(Outcome::Retry { error, .. })
                    if request.attempts >= retries.max_attempts.get() =>
                {
                    self.bury(now, Some(id), request, DeadReason::Exhausted, error);
                }
                Some(Outcome::Retry { error, not_before }) => {
                    left = false;
                    let due = not_before.map_or(retries.at, |at| at.max(retries.at));
                    request.error = Some(error);
                    self.expiry
                        .extend(request.expires_at.map(|at| (at, request_id)));
                    if due > now {
                        self.delay(due, position, request);
                    } else {
                        self.make_ready(now, now, request);
                    }
                }
                None => {}
            }
            self.counts.in_flight -= 1;
            if left {
                self.counts.held_bytes -= size;
            }
        }
    }

    /// Dead-letters a request that is nowhere else any more.
    fn bury(
        &mut self,
        now: Timestamp,
        batch: Option<BatchId>,
        mut request: Request,
        reason: DeadReason,
        error: String,
    ) {
        let id = request.id;
        request.error = Some(error);
        let ended = self.ended(now, batch, request, None, Some(reason));
        self.places.insert(id, Place::Dead);
        self.dead.insert(id, ended);
    }

    fn ended(
        &mut self,
        now: Timestamp,
        batch: Option<BatchId>,
        request: Request,
        result: Option<Bytes>,
        reason: Option<DeadReason>,
    ) -> Ended {
        self.last_settled += 1;
        self.settled.insert(self.last_settled, request.id);
        Ended {
            request,
            at: now,
            batch,
            result,
            reason,
            sequence: self.last_settled,
        }
    }
}

impl OpenBatch {
    pub(in super::super) fn formed_at(&self) -> Timestamp {
        self.formed_at
    }

    pub(in super::super) fn entry(&self, now: Timestamp, id: BatchId, notes: bool) -> BatchEntry {
        let mut outcomes = OutcomeCounts::default();
        for member in self.members.values() {
            match member.outcome {
                Some(Outcome::Done { .. }) => outcomes.done += 1,
                Some(Outcome::Retry { .. }) => outcomes.retry += 1,
                Some(Outcome::Reject { .. }) => outcomes.reject += 1,
                None => {}
            }
        }
        let checkpoint = self.checkpoint.as_ref();
        BatchEntry {
            id,
            parent: self.parent,
            formed_at: self.formed_at,
            attempt: self.attempt,
            attempts_before: self.prior,
            state: BatchState::new(now, self.held, self.until),
            fence: self.held.then_some(self.fence),
            requests: self.requests(),
            bytes: self.bytes(),
            outcomes,
            checkpoint_bytes: checkpoint.map(|checkpoint| checkpoint.len() as u64),
            checkpoint: checkpoint.filter(|_| notes).cloned(),
            context: notes.then(|| self.context.clone()),
        }
    }

    fn requests(&self) -> u32 {
        u32::try_from(self.members.len()).unwrap_or(u32::MAX)
    }

    fn bytes(&self) -> u64 {
        let members = self.members.values();
        members.map(|member| member.request.bytes()).sum()
    }

    /// The positions of members without an outcome, in order.
    fn unsettled(&self) -> impl Iterator<Item = Position> {
        let open = self
            .members
            .iter()
            .filter(|(_, member)| member.outcome.is_none());
        open.map(|(position, _)| *position)
    }
}

/// Whether two members have no outcome even after these.
fn is_splittable(batch: &OpenBatch, outcomes: &[(RequestId, Outcome)]) -> bool {
    let named: BTreeSet<RequestId> = outcomes.iter().map(|(id, _)| *id).collect();
    let open =
        |member: &&Membership| member.outcome.is_none() && !named.contains(&member.request.id);
    batch.members.values().filter(open).count() >= 2
}
