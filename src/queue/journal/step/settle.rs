//! What becomes of members when their batch ends, or is split.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{
    Step, damaged_outcome,
    update::{Member, Prepared, store},
};
use crate::{
    batch::{Outcome, Retries, Then, Update},
    clock::Timestamp,
    error::{Error, Result},
    queue::journal::{
        event::{Ending, Finished, Half, Returned, Split},
        fold::{DONE, REJECT},
        record::Outcome as Stored,
        state::{Dead, Open, Rest},
    },
    request::DeadReason,
};

impl Step<'_> {
    fn open(&self, batch: u64) -> Result<&Open> {
        let open = self.queue()?.stored.open.get(&batch);
        open.ok_or_else(|| Error::internal("an open batch is gone"))
    }

    /// At most so many bytes the end of a batch takes.
    pub(super) fn ending_bytes(prepared: &Prepared, update: &Update) -> usize {
        let rest = match &update.then {
            Then::Finish { rest, .. } => match rest {
                Outcome::Done { result } => result.as_ref().map_or(0, Bytes::len),
                Outcome::Retry { error, .. } | Outcome::Reject { error, .. } => error.len(),
            },
            Then::Split { .. } => 0,
            _ => return 0,
        };
        let failed: usize = prepared.failed.values().map(|one| one.error.len()).sum();
        let named = update.outcomes.iter().map(|(_, outcome)| match outcome {
            Outcome::Done { .. } => 0,
            Outcome::Retry { error, .. } | Outcome::Reject { error, .. } => error.len(),
        });
        // An error text is stored once for each that has it.
        failed + named.sum::<usize>() + rest + 160 * prepared.members.len()
    }

    /// Both halves of the members without an outcome, and what becomes of the others.
    pub(super) fn split(
        &mut self,
        now: Timestamp,
        batch: u64,
        retries: Retries,
        prepared: &Prepared,
        outcomes: &[(u64, &Outcome)],
    ) -> Result<Split> {
        let open = self.open(batch)?;
        let named: BTreeSet<u64> = outcomes.iter().map(|(position, _)| *position).collect();
        let unsettled: Vec<(u64, u64)> = (prepared.members.iter())
            .filter(|(at, _)| !open.recorded.contains_key(at) && !named.contains(at))
            .map(|(at, member)| (*at, member.bytes))
            .collect();
        let (first, second) = unsettled.split_at(unsettled.len().div_ceil(2));
        let boundary = first.last().map_or(0, |(position, _)| *position);
        let last = self.queue()?.next_batch(now)?;
        let half = |batch: u64, members: &[(u64, u64)]| Half {
            batch,
            requests: u32::try_from(members.len()).unwrap_or(u32::MAX),
            bytes: members.iter().map(|(_, bytes)| bytes).sum(),
        };
        let (first, second) = (half(last, first), half(last + 1, second));
        Ok(Split {
            now: now.as_nanos(),
            boundary,
            first,
            second,
            until: self.retained_until(now)?,
            ending: self.ending(now, batch, retries, prepared, (outcomes, None))?,
        })
    }

    pub(super) fn finish(
        &mut self,
        now: Timestamp,
        batch: u64,
        (rest, retries): (&Outcome, Retries),
        prepared: &Prepared,
        outcomes: &[(u64, &Outcome)],
    ) -> Result<Finished> {
        let open = self.open(batch)?;
        let attempts = open.prior + open.attempt;
        let rest_done = match rest {
            Outcome::Done { result } => Some(Rest {
                at: now.as_nanos(),
                attempts,
                result: result.as_ref().map(|result| self.blob(result)),
            }),
            _ => None,
        };
        let failing = rest_done.is_none().then_some(rest);
        Ok(Finished {
            now: now.as_nanos(),
            rest: rest_done,
            until: self.retained_until(now)?,
            ending: self.ending(now, batch, retries, prepared, (outcomes, failing))?,
        })
    }

    fn retained_until(&self, now: Timestamp) -> Result<u64> {
        Ok(now.after(self.queue()?.options.retention).as_nanos())
    }

    /// What becomes of the members that have an outcome and are not done, in position order.
    fn ending(
        &mut self,
        now: Timestamp,
        batch: u64,
        retries: Retries,
        prepared: &Prepared,
        (outcomes, rest): (&[(u64, &Outcome)], Option<&Outcome>),
    ) -> Result<Ending> {
        let open = self.open(batch)?;
        let attempts = open.prior + open.attempt;
        let cancelled = open.cancelled.clone();
        let named: std::collections::BTreeMap<u64, &Outcome> = outcomes.iter().copied().collect();
        let mut failed: Vec<(u64, Member, Stored)> = Vec::new();
        for (position, member) in &prepared.members {
            let recorded = open.recorded.get(position);
            let one = match (recorded, named.get(position).copied(), rest) {
                (Some(kind), ..) if *kind == DONE => continue,
                (Some(kind), ..) => {
                    let known = prepared.failed.get(position).cloned();
                    known.unwrap_or_else(|| damaged_outcome(*position, member.id, *kind))
                }
                (None, Some(Outcome::Done { .. }), _) | (None, None, None) => continue,
                (None, Some(outcome), _) | (None, None, Some(outcome)) => {
                    store(now, *position, member, attempts, outcome)
                }
            };
            failed.push((*position, *member, one));
        }
        let mut ending = Ending::default();
        for (position, member, outcome) in failed {
            let is_cancelled = cancelled.contains(&member.id);
            let attempts = member.attempts + attempts;
            self.end_member(
                now,
                batch,
                retries,
                (position, member, attempts, is_cancelled),
                &outcome,
                &mut ending,
            );
        }
        Ok(ending)
    }

    fn end_member(
        &mut self,
        now: Timestamp,
        batch: u64,
        retries: Retries,
        (position, member, attempts, is_cancelled): (u64, Member, u32, bool),
        outcome: &Stored,
        ending: &mut Ending,
    ) {
        let letter = |reason: u8, error| Dead {
            bytes: member.bytes,
            at: now.as_nanos(),
            batch: Some(batch),
            reason,
            attempts,
            error,
            sequence: 0,
        };
        let is_expired = member.expires_at <= now.as_nanos();
        if outcome.kind == REJECT {
            let letter = letter(outcome.reason, self.blob(&outcome.error));
            ending.dead.push(((position, member.id), letter));
        } else if is_cancelled || is_expired {
            ending.gone.push((position, member.id));
            ending.gone_bytes += member.bytes;
            ending.cancelled += u64::from(is_cancelled);
            ending.expired += u64::from(!is_cancelled);
        } else if attempts >= retries.max_attempts.get() {
            let reason = super::reason_number(DeadReason::Exhausted);
            let letter = letter(reason, self.blob(&outcome.error));
            ending.dead.push(((position, member.id), letter));
        } else {
            let at = retries.at.as_nanos();
            let due = outcome
                .not_before
                .map_or(at, |not_before| not_before.max(at));
            ending.returned.push(Returned {
                position,
                id: member.id,
                bytes: member.bytes,
                expires_at: member.expires_at,
                attempts,
                error: self.blob(&outcome.error),
                due: (due > now.as_nanos()).then_some(due),
            });
        }
    }
}
