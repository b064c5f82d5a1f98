//! Updating a held batch: recording outcomes, and what happens to it next.
//!
//! What has to be read for it (which members there are, how large, what became of them) is read before
//! the lock is had for the step itself: the members of a batch never change.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{Loaded, Step, legible, reason_number, shortened};
use crate::{
    batch::{Lease, Outcome, Then, Update},
    clock::Timestamp,
    error::Result,
    fault::is_left_out,
    queue::journal::{
        event::{self, Recorded, Updated, What},
        fold::{DONE, REJECT, RETRY},
        log::{Pin, Place, Reader},
        record::{self, Known, Outcome as Stored},
        state::{NEVER, Open, Page, Stretch},
    },
};

/// What an update has to know of a member.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) id: u64,
    pub(super) bytes: u64,
    pub(super) expires_at: u64,
    /// In the batches before.
    pub(super) attempts: u32,
}

/// What an update needs, read.
#[derive(Debug, Default)]
pub(in crate::queue::journal) struct Prepared {
    /// Members by position: all, or those that were asked for.
    pub(super) members: BTreeMap<u64, Member>,
    /// The outcomes recorded before that are not done, by position.
    pub(super) failed: BTreeMap<u64, Stored>,
    /// How many pages of outcomes there were then.
    pages: usize,
}

/// What is to be read for an update, and where it lies.
#[derive(Debug)]
pub(in crate::queue::journal) struct Plan {
    stretches: Vec<Stretch>,
    pages: Vec<Page>,
    /// Natural members past `after` up to `last` and not among the holes; or these ids only.
    after: u64,
    last: u64,
    holes: BTreeSet<u64>,
    only: Option<BTreeSet<u64>>,
    known: Known,
    /// Whether something to be read is still on its way to the disk.
    is_waiting: bool,
    prepared: Prepared,
    _pin: Pin,
}

impl Step<'_> {
    /// What an update has to read; `None` if nothing.
    pub(in crate::queue::journal) fn plan_update(
        &self,
        lease: &Lease,
        update: &Update,
    ) -> Result<Option<Plan>> {
        let queue = self.queue()?;
        let (_, open) = queue.held(lease)?;
        let rest_fails = match &update.then {
            Then::Split { .. } => true,
            Then::Finish { rest, .. } => !matches!(rest, Outcome::Done { .. }),
            _ => false,
        };
        let ends = matches!(update.then, Then::Split { .. } | Then::Finish { .. });
        let failed_before = ends && open.recorded.values().any(|kind| *kind != DONE);
        let all = rest_fails || failed_before;
        if !all && update.outcomes.is_empty() {
            return Ok(None);
        }
        let mut prepared = Prepared {
            pages: open.pages.len(),
            ..Prepared::default()
        };
        let mut only = BTreeSet::new();
        for (position, moved) in &open.members.moved {
            let member = Member {
                id: moved.id,
                bytes: moved.bytes,
                expires_at: moved.expires_at,
                attempts: moved.attempts,
            };
            prepared.members.insert(*position, member);
        }
        let mut stretches: BTreeMap<u64, Stretch> = BTreeMap::new();
        if all {
            let (after, last) = (open.members.after, open.members.last);
            let touched = queue.stretches_between(after, last);
            stretches.extend(touched.map(|(first, stretch)| (first, *stretch)));
        } else {
            for (id, _) in &update.outcomes {
                let id = id.as_u64();
                if open.members.has_natural(id)
                    && let Some((first, stretch)) = queue.stretch_of(id)
                {
                    only.insert(id);
                    stretches.insert(first, *stretch);
                }
            }
        }
        let stretches: Vec<Stretch> = stretches.into_values().collect();
        let pages = if failed_before {
            open.pages.clone()
        } else {
            Vec::new()
        };
        let segments = stretches.iter().map(|stretch| stretch.segment);
        let segments: Vec<u32> = segments
            .chain(pages.iter().map(|page| page.blob.segment))
            .collect();
        let first = segments.iter().min().copied().unwrap_or(0);
        let last = segments.iter().max().copied().unwrap_or(0);
        Ok(Some(Plan {
            is_waiting: !pages.is_empty() || !self.are_durable(&stretches),
            known: self.known(&stretches)?,
            stretches,
            pages,
            after: open.members.after,
            last: open.members.last,
            holes: open.members.holes.clone(),
            only: (!all).then_some(only),
            prepared,
            _pin: self.core.reader.pin(first..=last),
        }))
    }

    /// Whether nothing was recorded since the plan was made.
    fn is_current(open: &Open, prepared: Option<&Prepared>) -> bool {
        prepared.is_none_or(|prepared| prepared.pages == open.pages.len())
    }

    /// Applies an update; `None` if what was prepared for it is out of date.
    pub(in crate::queue::journal) fn update(
        &mut self,
        now: Timestamp,
        lease: &Lease,
        update: &Update,
        prepared: Option<&Prepared>,
    ) -> Result<Option<()>> {
        self.advance(now)?;
        let (batch, open) = self.queue()?.held(lease)?;
        if matches!(update.then, Then::Finish { .. }) && is_left_out("journal.finish") {
            return Ok(Some(()));
        }
        let needs = match prepared {
            Some(_) => false,
            None => self.plan_update(lease, update)?.is_some(),
        };
        if needs || !Self::is_current(open, prepared) {
            return Ok(None);
        }
        let none = Prepared::default();
        let prepared = prepared.unwrap_or(&none);
        let positions: BTreeMap<u64, u64> = (prepared.members.iter())
            .map(|(position, member)| (member.id, *position))
            .collect();
        let mut outcomes: Vec<(u64, &Outcome)> = Vec::new();
        let mut named = BTreeSet::new();
        for (id, outcome) in &update.outcomes {
            let position = positions.get(&id.as_u64());
            let position = *position.ok_or_else(|| lease.no_member(*id))?;
            if !open.recorded.contains_key(&position) && named.insert(position) {
                outcomes.push((position, outcome));
            }
        }
        // Where events were lost, more may be read of a batch than is counted of it.
        let left = (open.unsettled as usize).saturating_sub(outcomes.len());
        if matches!(update.then, Then::Split { .. }) && left < 2 {
            return Err(lease.not_splittable());
        }
        let attempts = open.prior + open.attempt;
        let is_held_on =
            matches!(update.then, Then::Hold { until } if until.as_nanos() >= open.until);
        let wakes = !(is_held_on && update.outcomes.is_empty());
        let bytes = |outcome: &Outcome| match outcome {
            Outcome::Done { result } => result.as_ref().map_or(0, Bytes::len),
            Outcome::Retry { error, .. } | Outcome::Reject { error, .. } => error.len(),
        };
        let sizes: usize = outcomes
            .iter()
            .map(|(_, outcome)| bytes(outcome) + 96)
            .sum();
        let checkpoint = update.checkpoint.as_ref().map_or(0, Bytes::len);
        let ending = Self::ending_bytes(prepared, update);
        self.reserve(sizes + checkpoint + ending)?;
        let recorded = self.put_outcomes(now, &outcomes, prepared, attempts);
        let then = self.then(now, batch, update, (prepared, &outcomes))?;
        let checkpoint = update.checkpoint.clone();
        self.event(What::Updated(Updated {
            batch,
            checkpoint: checkpoint.filter(|_| !is_left_out("journal.checkpoint")),
            recorded,
            then,
        }));
        self.touch(wakes);
        Ok(Some(()))
    }

    /// Writes outcomes in pages.
    fn put_outcomes(
        &mut self,
        now: Timestamp,
        outcomes: &[(u64, &Outcome)],
        prepared: &Prepared,
        attempts: u32,
    ) -> Vec<Recorded> {
        let mut pages = Vec::new();
        let mut stored: Vec<Stored> = Vec::new();
        let mut bytes = 0;
        for (index, (position, outcome)) in outcomes.iter().enumerate() {
            let Some(member) = prepared.members.get(position) else {
                continue;
            };
            let one = store(now, *position, member, attempts, outcome);
            bytes += one.result.as_ref().map_or(0, Bytes::len) + one.error.len() + 32;
            stored.push(one);
            let is_last = index + 1 == outcomes.len();
            if is_last || bytes >= PAGE_BYTES || stored.len() >= PAGE_OUTCOMES {
                bytes = 0;
                pages.push(self.put_page(&std::mem::take(&mut stored), prepared));
            }
        }
        pages
    }

    fn put_page(&mut self, stored: &Vec<Stored>, prepared: &Prepared) -> Recorded {
        let positions = stored.iter().map(|one| one.position);
        let outcomes = stored.iter().map(|one| {
            let bytes = prepared.members.get(&one.position);
            (
                one.position,
                (one.kind, bytes.map_or(0, |member| member.bytes)),
            )
        });
        Recorded {
            page: Page {
                blob: self.blob(stored),
                first: positions.clone().min().unwrap_or(0),
                last: positions.max().unwrap_or(0),
            },
            outcomes: outcomes.collect(),
        }
    }

    fn then(
        &mut self,
        now: Timestamp,
        batch: u64,
        update: &Update,
        (prepared, outcomes): (&Prepared, &[(u64, &Outcome)]),
    ) -> Result<event::Then> {
        Ok(match &update.then {
            Then::Hold { until } => event::Then::Hold(until.as_nanos()),
            Then::Release => event::Then::Release(()),
            Then::Defer { until } => event::Then::Defer(until.as_nanos()),
            Then::Split { retries } => {
                event::Then::Split(self.split(now, batch, *retries, prepared, outcomes)?)
            }
            Then::Finish { rest, retries } => {
                let ends = (rest, *retries);
                event::Then::Finish(self.finish(now, batch, ends, prepared, outcomes)?)
            }
        })
    }
}

/// An outcome as it is stored.
pub(super) fn store(
    now: Timestamp,
    position: u64,
    member: &Member,
    attempts: u32,
    outcome: &Outcome,
) -> Stored {
    let stored = Stored {
        position,
        id: member.id,
        at: now.as_nanos(),
        attempts: member.attempts + attempts,
        ..Stored::default()
    };
    match outcome {
        Outcome::Done { result } => Stored {
            kind: DONE,
            result: result.clone(),
            ..stored
        },
        Outcome::Retry { error, not_before } => Stored {
            kind: RETRY,
            error: shortened(error.clone()),
            not_before: not_before.map(Timestamp::as_nanos),
            ..stored
        },
        Outcome::Reject { reason, error } => Stored {
            kind: REJECT,
            reason: reason_number(*reason),
            error: shortened(error.clone()),
            ..stored
        },
    }
}

impl Plan {
    pub(in crate::queue::journal) fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// Reads it all; slow, and without the lock.
    pub(in crate::queue::journal) fn read(self, reader: &Reader) -> Result<Prepared> {
        let mut prepared = self.prepared;
        for stretch in &self.stretches {
            let place = Place {
                segment: stretch.segment,
                offset: stretch.offset,
            };
            let loaded = Loaded::read(reader.read(place, stretch.bytes), stretch, &self.known)?;
            for found in &loaded.requests {
                let is_wanted = self
                    .only
                    .as_ref()
                    .is_none_or(|only| only.contains(&found.id));
                let is_member = self.after < found.id && found.id <= self.last;
                if !is_wanted || !is_member || self.holes.contains(&found.id) {
                    continue;
                }
                let member = Member {
                    id: found.id,
                    bytes: found.bytes,
                    expires_at: found.expires_at(&loaded.bytes)?.unwrap_or(NEVER),
                    attempts: 0,
                };
                prepared.members.insert(found.id, member);
            }
        }
        for page in &self.pages {
            let blob = page.blob;
            let place = Place {
                segment: blob.segment,
                offset: blob.offset,
            };
            let read = reader.read(place, blob.bytes);
            let outcomes = read.and_then(|bytes| record::blob_value::<Vec<Stored>>(blob, &bytes));
            let outcomes = legible(outcomes)?.unwrap_or_default();
            let failed = outcomes.into_iter().filter(|one| one.kind != DONE);
            prepared
                .failed
                .extend(failed.map(|one| (one.position, one)));
        }
        Ok(prepared)
    }
}

/// A page of outcomes ends after so many, or so many bytes of results.
const PAGE_OUTCOMES: usize = 256;
const PAGE_BYTES: usize = 256 << 10;
