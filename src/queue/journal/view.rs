//! Looking into a queue: one request, lists, results; pages of members are in [`pages`](self::pages).

mod batches;
mod dump;
mod list;
mod pages;

use bytes::Bytes;

pub(super) use self::pages::{Members, PagePlan, fill, read_together};
use super::{
    fold::DONE,
    record::{Extras, Outcome},
    state::{Dead, Ended, Moved, Open, Rest, Stand},
    step::{DAMAGED_OUTCOME, Loaded, Recorded, Step, damaged_outcome, legible, reason},
};
use crate::{
    clock::Timestamp,
    error::Result,
    queue::Entry,
    request::{Attributes, DeadReason, RequestId, State},
};

/// What was pushed, as it lies in its stretch.
pub(super) struct Original {
    pub(super) pushed_at: u64,
    pub(super) bytes: u64,
    /// Whether more than the payload is damaged.
    pub(super) is_lost: bool,
    pub(super) extras: Extras,
    /// Or what is damaged.
    pub(super) payload: Result<Bytes, &'static str>,
}

impl Loaded {
    pub(super) fn original(&self, id: u64) -> Result<Option<Original>> {
        let Some(found) = self.find(id) else {
            return Ok(None);
        };
        Ok(Some(Original {
            pushed_at: found.pushed_at,
            bytes: found.bytes,
            is_lost: found.is_lost(),
            extras: found.extras(&self.bytes)?,
            payload: found.payload(&self.bytes),
        }))
    }
}

impl Step<'_> {
    /// What is known of a request.
    pub(super) fn status(&mut self, now: Timestamp, id: RequestId) -> Result<Option<Entry>> {
        self.advance(now)?;
        let id = id.as_u64();
        match self.stretch_with(id)? {
            Some(loaded) => self.entry(id, &loaded, false),
            None => Ok(None),
        }
    }

    /// What is known of a request whose stretch was read.
    fn entry(&self, id: u64, loaded: &Loaded, payload: bool) -> Result<Option<Entry>> {
        let Some(original) = loaded.original(id)? else {
            return Ok(None);
        };
        let queue = self.queue()?;
        let stored = &queue.stored;
        let waiting = |state, at, moved: &Moved| self.waiting(state, at, moved);
        let entry = match stored.places.get(&id) {
            Some(Stand::Delayed(at)) => {
                let moved = stored.delayed.get(at);
                moved.map(|moved| waiting(State::Delayed, at.0, moved))
            }
            Some(Stand::Ready(position)) => {
                let moved = stored.moved.get(position);
                moved.map(|moved| waiting(State::Ready, moved.ready_at, moved))
            }
            Some(Stand::Member((batch, position))) => {
                return self.member(id, *batch, *position, original, payload);
            }
            Some(Stand::Done((batch, position))) => {
                let ended = stored.ended.get(batch);
                let known = ended.map(|ended| self.done_in(*batch, ended, *position));
                return Ok(known
                    .transpose()?
                    .flatten()
                    .map(|entry| finish(entry, id, original, false)));
            }
            Some(Stand::Dead(())) => stored.dead.get(&id).map(|dead| self.dead_letter(dead)),
            None => return self.natural(id, original, payload),
        };
        let entry = entry.transpose()?;
        Ok(entry.map(|entry| finish(entry, id, original, payload)))
    }

    /// A request that stands where its id says.
    fn natural(&self, id: u64, original: Original, payload: bool) -> Result<Option<Entry>> {
        let queue = self.queue()?;
        if id > queue.stored.cursor {
            let ready = queue.is_naturally_ready(id).then(|| Entry {
                at: Timestamp::from_nanos(original.pushed_at),
                ..blank(State::Ready)
            });
            return Ok(ready.map(|entry| finish(entry, id, original, payload)));
        }
        if let Some((batch, _)) = queue.natural_batch(id) {
            return self.member(id, batch, id, original, payload);
        }
        for (batch, ended) in queue.ended_of(id) {
            if let Some(entry) = self.done_in(batch, ended, id)? {
                return Ok(Some(finish(entry, id, original, false)));
            }
        }
        Ok(None)
    }

    /// A member of an open batch.
    fn member(
        &self,
        id: u64,
        batch: u64,
        position: u64,
        original: Original,
        payload: bool,
    ) -> Result<Option<Entry>> {
        let queue = self.queue()?;
        let Some(open) = queue.stored.open.get(&batch) else {
            return Ok(None);
        };
        if open.recorded.get(&position) == Some(&DONE) {
            let outcome = self.outcome_in(open, position, id)?;
            let entry = outcome.map(|outcome| self.done(batch, outcome));
            return Ok(entry
                .transpose()?
                .map(|entry| finish(entry, id, original, false)));
        }
        let moved = open.members.moved.get(&position);
        let error = moved.and_then(|moved| moved.error);
        let entry = Entry {
            attempts: moved.map_or(0, |moved| moved.attempts) + open.prior + open.attempt,
            at: Timestamp::from_nanos(open.formed_at),
            batch: Some(queue.batch_id(batch)),
            error: error.map(|error| self.text(error)).transpose()?,
            ..blank(State::InFlight)
        };
        Ok(Some(finish(entry, id, original, payload)))
    }

    fn waiting(&self, state: State, at: u64, moved: &Moved) -> Result<Entry> {
        Ok(Entry {
            attempts: moved.attempts,
            at: Timestamp::from_nanos(at),
            error: moved.error.map(|error| self.text(error)).transpose()?,
            ..blank(state)
        })
    }

    fn dead_letter(&self, dead: &Dead) -> Result<Entry> {
        let queue = self.queue()?;
        Ok(Entry {
            attempts: dead.attempts,
            at: Timestamp::from_nanos(dead.at),
            batch: dead.batch.map(|batch| queue.batch_id(batch)),
            reason: Some(reason(dead.reason)),
            error: Some(self.text(dead.error)?),
            ..blank(State::Dead)
        })
    }

    /// How a member of an ended batch was done, if it was.
    fn done_in(&self, batch: u64, ended: &Ended, position: u64) -> Result<Option<Entry>> {
        let is_damaged = match self.recorded(&ended.pages, position)? {
            Recorded::Outcome(outcome) => {
                let is_done = outcome.kind == DONE;
                return is_done.then(|| self.done(batch, outcome)).transpose();
            }
            Recorded::Damaged => true,
            Recorded::Nothing => false,
        };
        let moved = ended.members.moved.get(&position);
        let attempts = moved.map_or(0, |moved| moved.attempts);
        match ended.rest {
            Some(rest) if !is_damaged => self.rest(batch, &rest, attempts).map(Some),
            rest if is_damaged => {
                let outcome = Outcome {
                    // A batch is named by when it was formed.
                    at: rest.map_or(batch, |rest| rest.at),
                    attempts: rest.map_or(0, |rest| attempts + rest.attempts),
                    ..damaged_outcome(position, position, DONE)
                };
                self.done(batch, outcome).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn done(&self, batch: u64, outcome: Outcome) -> Result<Entry> {
        Ok(Entry {
            attempts: outcome.attempts,
            at: Timestamp::from_nanos(outcome.at),
            batch: Some(self.queue()?.batch_id(batch)),
            result: outcome.result,
            error: (!outcome.error.is_empty()).then_some(outcome.error),
            ..blank(State::Done)
        })
    }

    fn rest(&self, batch: u64, rest: &Rest, attempts: u32) -> Result<Entry> {
        let result = rest.result.map(|result| legible(self.shared(result)));
        let result: Option<Option<Bytes>> = result.transpose()?;
        let is_damaged = matches!(result, Some(None));
        Ok(Entry {
            attempts: attempts + rest.attempts,
            at: Timestamp::from_nanos(rest.at),
            batch: Some(self.queue()?.batch_id(batch)),
            result: result.flatten(),
            error: is_damaged.then(|| DAMAGED_OUTCOME.into()),
            ..blank(State::Done)
        })
    }

    /// The outcome that a member of an open batch has, if it has one; of a damaged one only the kind is known.
    fn outcome_in(&self, open: &Open, position: u64, id: u64) -> Result<Option<Outcome>> {
        let Some(kind) = open.recorded.get(&position) else {
            return Ok(None);
        };
        Ok(Some(match self.recorded(&open.pages, position)? {
            Recorded::Outcome(outcome) => outcome,
            Recorded::Damaged | Recorded::Nothing => Outcome {
                at: open.formed_at,
                ..damaged_outcome(position, id, *kind)
            },
        }))
    }
}

/// An entry of which only the state is known.
fn blank(state: State) -> Entry {
    Entry {
        id: RequestId::from_u64(0),
        state,
        attempts: 0,
        pushed_at: Timestamp::EPOCH,
        at: Timestamp::EPOCH,
        attributes: Attributes::new(),
        bytes: 0,
        payload: None,
        batch: None,
        result: None,
        reason: None,
        error: None,
    }
}

/// Adds what was pushed.
fn finish(entry: Entry, id: u64, original: Original, payload: bool) -> Entry {
    let is_done = entry.state == State::Done;
    let (mut reason, mut error) = (entry.reason, entry.error);
    if let Err(damage) = original.payload
        && (!is_done || original.is_lost)
    {
        let is_waiting = !is_done && entry.state != State::Dead;
        reason = reason.or(is_waiting.then_some(DeadReason::Damaged));
        error = Some(match error {
            Some(error) if error != damage => format!("{error} ({damage})"),
            _ => damage.to_owned(),
        });
    }
    Entry {
        id: RequestId::from_u64(id),
        pushed_at: Timestamp::from_nanos(original.pushed_at),
        attributes: original.extras.attributes,
        bytes: if is_done { 0 } else { original.bytes },
        payload: original.payload.ok().filter(|_| payload && !is_done),
        reason,
        error,
        ..entry
    }
}
