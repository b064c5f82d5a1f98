//! What holds of the records of any dump, in order, whichever backend takes them in.
//!
//! A queue stores nothing twice. So a record that says more than is stored of its kind, or something else than another
//! one does, could not come out again as it came in: it is refused.

use std::collections::{BTreeMap, BTreeSet};

use super::{Digest, OpenBatch, QueueEnd, Record, StoredRequest, unfit};
use crate::{
    batch::BatchId,
    clock::Timestamp,
    error::{Error, Result},
    request::{Position, RequestId, State},
};

/// Checks records, for all backends; what they say is for the backend to take in.
#[derive(Debug, Default)]
pub(crate) struct Order {
    kind: u8,
    is_over: bool,
    request: Option<RequestId>,
    batch: Option<BatchId>,
    key: Option<Digest>,
    source: Option<String>,
    /// Positions that are not the ids of those that stand there.
    positions: BTreeSet<u64>,
    last_position: u64,
    /// The upper half of the last batch.
    last_batch: u64,
    /// Batches whose records are still to come: since when their members are in flight, and how often they were
    /// claimed in them.
    formed: BTreeMap<BatchId, (Timestamp, u32)>,
}

impl Order {
    /// Checks the next records: all of them, before anything of them is taken in.
    pub(crate) fn check(&mut self, records: &[Record]) -> Result<()> {
        records.iter().try_for_each(|record| self.check_one(record))
    }

    fn check_one(&mut self, record: &Record) -> Result<()> {
        let (kind, is_next) = match record {
            Record::Request(request) => (0, is_next(&mut self.request, request.entry.id)),
            Record::Batch(batch) => (1, is_next(&mut self.batch, batch.id)),
            Record::Settled(_) => (2, true),
            Record::Key(key) => (3, is_next(&mut self.key, key.key)),
            Record::Bookmark(bookmark) => (4, is_next(&mut self.source, bookmark.source.clone())),
            Record::Queue(_) => (5, true),
        };
        if self.is_over || kind < self.kind || !is_next {
            return Err(Error::invalid(
                "the records of a dump are not in its order; bring in a whole dump, as it was written",
            ));
        }
        self.kind = kind;
        self.is_over = kind == 5;
        match record {
            Record::Request(request) => self.check_request(request),
            Record::Batch(batch) => self.check_batch(batch),
            Record::Queue(end) => self.check_end(end),
            Record::Settled(_) | Record::Key(_) | Record::Bookmark(_) => Ok(()),
        }
    }

    fn check_request(&mut self, request: &StoredRequest) -> Result<()> {
        request.check()?;
        let entry = &request.entry;
        let id = entry.id.as_u64();
        let at = request.position.map_or(id, Position::as_u64);
        let is_taken = self.positions.contains(&id) || (at > id && !self.positions.insert(at));
        if at < id || is_taken {
            return Err(unfit(entry.id, "stands where it can't"));
        }
        self.last_position = self.last_position.max(at);
        if let Some(batch) = entry.batch {
            self.note_batch(batch);
            if let (State::InFlight, Some(member)) = (entry.state, &request.member) {
                let claims = entry.attempts.checked_sub(member.attempts_before);
                let claims = claims.ok_or_else(|| unfit(entry.id, "has too few attempts"))?;
                let said = (entry.at, claims);
                if *self.formed.entry(batch).or_insert(said) != said {
                    return Err(unfit(entry.id, "does not fit others of its batch"));
                }
            }
        }
        Ok(())
    }

    fn check_batch(&mut self, batch: &OpenBatch) -> Result<()> {
        self.note_batch(batch.id);
        let counts = [batch.attempt, batch.attempts_before];
        let is_counted = counts.iter().all(|count| *count <= MOST_ATTEMPTS);
        let said = (
            batch.formed_at,
            batch.attempts_before.saturating_add(batch.attempt),
        );
        let is_one = self
            .formed
            .remove(&batch.id)
            .is_none_or(|others| others == said);
        if is_counted && is_one && batch.offered_from != Some(Timestamp::EPOCH) {
            return Ok(());
        }
        let what = format!("batch {} of the dump does not fit its members", batch.id);
        Err(Error::invalid(what))
    }

    fn check_end(&self, end: &QueueEnd) -> Result<()> {
        if self.last_position > end.last_position.as_u64() {
            return Err(Error::invalid(
                "the dump has requests behind its last position",
            ));
        }
        if self.last_batch > end.last_batch.halves().0 {
            return Err(Error::invalid("the dump has batches behind its last one"));
        }
        Ok(())
    }

    fn note_batch(&mut self, batch: BatchId) {
        self.last_batch = self.last_batch.max(batch.halves().0);
    }
}

/// Whether this is behind the one before.
fn is_next<T: PartialOrd>(last: &mut Option<T>, next: T) -> bool {
    let is_behind = last.as_ref().is_none_or(|last| *last < next);
    *last = Some(next);
    is_behind
}

impl StoredRequest {
    /// Whether it has what its state needs, and nothing else.
    fn check(&self) -> Result<()> {
        let entry = &self.entry;
        let (verb, what) = match (self.missing(), self.surplus()) {
            (Some(missing), _) => ("has no", missing),
            (None, Some(surplus)) => ("can't have this", surplus),
            (None, None) => return Ok(()),
        };
        let why = format!("is {} and {verb} {what}", entry.state);
        Err(unfit(entry.id, &why))
    }

    fn missing(&self) -> Option<&'static str> {
        let entry = &self.entry;
        Some(match entry.state {
            State::Delayed | State::Ready if self.position.is_none() => "position",
            State::Delayed | State::Ready | State::Dead if entry.payload.is_none() => "payload",
            State::InFlight if self.member.is_none() => "membership",
            State::Dead if entry.reason.is_none() => "reason",
            State::Dead if entry.error.is_none() => "error",
            State::Done if self.member.is_none() && self.kept_until.is_none() => "time to keep it",
            State::InFlight | State::Done if entry.batch.is_none() => "batch",
            State::Expired | State::Cancelled => "place: it is counted only",
            _ if self.member.is_some() && self.position.is_none() => "position",
            _ if self.member.is_some() && entry.payload.is_none() => "payload",
            _ => return None,
        })
    }

    fn surplus(&self) -> Option<&'static str> {
        let entry = &self.entry;
        let is_done = entry.state == State::Done;
        let is_waiting = matches!(entry.state, State::Delayed | State::Ready);
        let is_member = self.member.is_some();
        let outcome = self.member.as_ref().and_then(|one| one.outcome.as_ref());
        let is_settled = !is_waiting && !is_member;
        let before = self.member.as_ref().map_or(0, |one| one.attempts_before);
        // Of those in flight they are what their batch says.
        let is_counted = entry.state == State::InFlight || entry.attempts <= MOST_ATTEMPTS;
        Some(match () {
            () if is_member && (is_waiting || entry.state == State::Dead) => "membership",
            () if is_settled && self.position.is_some() => "position",
            () if is_settled && self.expires_at.is_some() => "time to live",
            () if self.expires_at == Some(Timestamp::MAX) => "time to live",
            () if (!is_done || is_member) && self.kept_until.is_some() => "time to keep it",
            () if is_waiting && entry.batch.is_some() => "batch",
            () if is_done && outcome.is_some() => "outcome",
            () if is_done && !is_member && entry.payload.is_some() => "payload",
            () if !is_done && entry.result.is_some() => "result",
            () if entry.state != State::Dead && entry.reason.is_some() => "reason",
            () if is_done && entry.error.is_some() => "error",
            () if !is_counted || before > MOST_ATTEMPTS => "number of attempts",
            () => return None,
        })
    }
}

/// Nobody attempts anything as often: its own, those of its batch and of those before it can be summed up.
const MOST_ATTEMPTS: u32 = u32::MAX >> 2;
