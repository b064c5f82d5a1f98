//! Pages of members: planned under the lock, read without it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    batch::{Lease, Member, Outcome, Page},
    clock::Timestamp,
    error::Result,
    queue::journal::{
        fold::{DONE, RETRY},
        log::{Pin, Place, Reader},
        record::{self, Found, Known, Outcome as Stored},
        state::{Blob, Moved, NEVER, Page as Recorded, Stretch},
        step::{Loaded, Step, damaged_outcome, is_damage, legible, reason},
    },
    request::{Position, RequestId},
};

/// What to read for a page of members.
#[derive(Debug)]
pub(in crate::queue::journal) struct PagePlan {
    stretches: Vec<Stretch>,
    /// Moved members with the stretches they were pushed into.
    moved: BTreeMap<u64, (Moved, Stretch)>,
    after: u64,
    last: u64,
    holes: BTreeSet<u64>,
    pages: Vec<Recorded>,
    /// The kind of each outcome in them, which is known even if they are damaged.
    recorded: BTreeMap<u64, u8>,
    attempts: u32,
    known: Known,
    /// Whether something to be read is still on its way to the disk.
    is_waiting: bool,
    /// Until when the batch is held.
    pub(in crate::queue::journal) until: Timestamp,
    /// Where the next plan goes on; `None`: this is all.
    pub(in crate::queue::journal) next: Option<u64>,
    _pin: Pin,
}

/// Members as they are gathered.
#[derive(Debug, Default)]
pub(in crate::queue::journal) struct Members {
    pub(in crate::queue::journal) all: Vec<Member>,
    bytes: u64,
    pub(in crate::queue::journal) is_full: bool,
    /// Members without an outcome that are damaged, and what of them.
    pub(in crate::queue::journal) damaged: Vec<(RequestId, &'static str)>,
    /// The stretch that the last moved member was read from.
    last: Option<(Place, Loaded)>,
}

impl Step<'_> {
    /// Plans the next members after a position, about as many as go into the page.
    pub(in crate::queue::journal) fn plan_page(
        &self,
        lease: &Lease,
        page: &Page,
        after: u64,
    ) -> Result<PagePlan> {
        let queue = self.queue()?;
        let (_, open) = queue.held(lease)?;
        let members = &open.members;
        let mut stretches = Vec::new();
        let (mut requests, mut bytes) = (0, 0);
        let mut next = None;
        for (_, stretch) in queue.stretches_between(after.max(members.after), members.last) {
            let is_enough = requests > page.max_requests.get() || bytes > page.max_bytes.get();
            if is_enough && next.is_some() {
                break;
            }
            stretches.push(*stretch);
            requests += stretch.requests;
            bytes += u64::from(stretch.bytes);
            next = Some(stretch.last);
        }
        let next = next.filter(|next| *next < members.last);
        let to = next.unwrap_or(NEVER);
        let mut moved = BTreeMap::new();
        if after < to {
            for (position, one) in members.moved.range(after.saturating_add(1)..=to) {
                if moved.len() > page.max_requests.get() as usize {
                    break;
                }
                if let Some((_, stretch)) = queue.stretch_of(one.id) {
                    moved.insert(*position, (*one, *stretch));
                }
            }
        }
        let pages = open.pages.iter();
        let pages: Vec<Recorded> = pages
            .filter(|page| page.last > after && page.first <= to)
            .copied()
            .collect();
        let mut recorded = BTreeMap::new();
        if !pages.is_empty() && after < to {
            let kinds = open.recorded.range(after.saturating_add(1)..=to);
            recorded.extend(kinds.map(|(at, kind)| (*at, *kind)));
        }
        let segments = (stretches.iter())
            .chain(moved.values().map(|(_, stretch)| stretch))
            .map(|stretch| stretch.segment)
            .chain(pages.iter().map(|page| page.blob.segment));
        let first = segments.clone().min().unwrap_or(0);
        let last = segments.max().unwrap_or(0);
        let moved_from = moved.values().map(|(_, stretch)| stretch);
        let all = || stretches.iter().chain(moved_from.clone());
        let is_waiting = !pages.is_empty() || !self.are_durable(all());
        Ok(PagePlan {
            is_waiting,
            known: self.known(all())?,
            stretches,
            moved,
            after: after.max(members.after),
            last: members.last,
            holes: members.holes.clone(),
            recorded,
            pages,
            attempts: open.prior + open.attempt,
            until: Timestamp::from_nanos(open.until),
            next,
            _pin: self.core.reader.pin(first..=last),
        })
    }
}

impl PagePlan {
    pub(in crate::queue::journal) fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// Whether all of it takes so little time that no other thread is needed, if nothing has to be fetched.
    pub(in crate::queue::journal) fn is_short(&self) -> bool {
        let bytes: u64 = self
            .stretches
            .iter()
            .map(|stretch| u64::from(stretch.bytes))
            .sum();
        bytes <= SHORT_BYTES && self.moved.is_empty()
    }

    /// Has the system fetch what the next page will be read from.
    fn fetch_next(&self, reader: &Reader) {
        let last = self.stretches.last().filter(|_| self.next.is_some());
        if let Some(last) = last {
            let end = Place {
                segment: last.segment,
                offset: last.offset + last.bytes,
            };
            reader.will_read(end, FETCHED_BYTES);
        }
    }
}

/// Reads what was planned into a page.
pub(in crate::queue::journal) fn fill(
    plan: &PagePlan,
    reader: &Reader,
    page: &Page,
    into: &mut Members,
) -> Result<()> {
    let mut outcomes: BTreeMap<u64, Stored> = BTreeMap::new();
    for page in &plan.pages {
        let read = read_blob(reader, page.blob);
        let all = read.and_then(|bytes| record::blob_value::<Vec<Stored>>(page.blob, &bytes));
        let all = legible(all)?.unwrap_or_default();
        outcomes.extend(all.into_iter().map(|one| (one.position, one)));
    }
    for (position, kind) in &plan.recorded {
        let damaged = || damaged_outcome(*position, *position, *kind);
        outcomes.entry(*position).or_insert_with(damaged);
    }
    plan.fetch_next(reader);
    let requests = plan
        .stretches
        .iter()
        .map(|stretch| stretch.requests as usize);
    let most = page.max_requests.get() as usize;
    into.all
        .reserve(most.saturating_sub(into.all.len()).min(requests.sum()));
    let mut moved = plan.moved.iter().peekable();
    let mut at = 0;
    while at < plan.stretches.len() {
        let (loaded, count) = read_together(reader, &plan.stretches[at..], &plan.known)?;
        at += count;
        for loaded in &loaded {
            for found in &loaded.requests {
                let is_member = plan.after < found.id && found.id <= plan.last;
                if !is_member || plan.holes.contains(&found.id) {
                    continue;
                }
                while let Some((position, one)) = moved.next_if(|(at, _)| **at < found.id) {
                    if !into.add_moved(plan, reader, page, (*position, one), &mut outcomes)? {
                        return Ok(());
                    }
                }
                let outcome = outcomes.remove(&found.id);
                let member = (found.id, plan.attempts, outcome);
                if !into.add(page, &loaded.bytes, found, member)? {
                    return Ok(());
                }
            }
        }
    }
    for (position, one) in moved {
        if !into.add_moved(plan, reader, page, (*position, one), &mut outcomes)? {
            return Ok(());
        }
    }
    Ok(())
}

impl Members {
    /// How far it is filled, to go [`back_to`](Self::back_to).
    pub(in crate::queue::journal) fn mark(&self) -> (usize, u64) {
        (self.all.len(), self.bytes)
    }

    /// Forgets what a filling added that did not come to its end.
    pub(in crate::queue::journal) fn back_to(&mut self, (count, bytes): (usize, u64)) {
        self.all.truncate(count);
        self.bytes = bytes;
        self.is_full = false;
        self.damaged.clear();
    }

    fn add_moved(
        &mut self,
        plan: &PagePlan,
        reader: &Reader,
        page: &Page,
        (position, (moved, stretch)): (u64, &(Moved, Stretch)),
        outcomes: &mut BTreeMap<u64, Stored>,
    ) -> Result<bool> {
        let place = Place {
            segment: stretch.segment,
            offset: stretch.offset,
        };
        let known = self.last.take().filter(|(known, _)| *known == place);
        let loaded = match known {
            Some((_, loaded)) => loaded,
            None => Loaded::read(read(reader, stretch), stretch, &plan.known)?,
        };
        let attempts = plan.attempts + moved.attempts;
        let member = (position, attempts, outcomes.remove(&position));
        let added = match loaded.find(moved.id) {
            Some(found) => self.add(page, &loaded.bytes, found, member),
            None => Ok(true),
        };
        self.last = Some((place, loaded));
        added
    }

    /// Adds a member; false if the page is full without it.
    fn add(
        &mut self,
        page: &Page,
        stretch: &Bytes,
        found: &Found,
        (position, attempt, outcome): (u64, u32, Option<Stored>),
    ) -> Result<bool> {
        let is_full = self.all.len() >= page.max_requests.get() as usize
            || self.bytes + found.bytes > page.max_bytes.get();
        if is_full && !self.all.is_empty() {
            self.is_full = true;
            return Ok(false);
        }
        self.bytes += found.bytes;
        let id = RequestId::from_u64(found.id);
        let payload = found.payload(stretch);
        if let (Err(damage), None) = (payload.as_ref(), &outcome) {
            self.damaged.push((id, damage));
        }
        self.all.push(Member {
            id,
            position: Position::from_u64(position),
            attempt,
            pushed_at: Timestamp::from_nanos(found.pushed_at),
            payload: payload.unwrap_or_default(),
            attributes: found.extras(stretch)?.attributes,
            outcome: outcome.map(outcome_of),
        });
        Ok(true)
    }
}

pub(super) fn outcome_of(stored: Stored) -> Outcome {
    match stored.kind {
        DONE => Outcome::Done {
            result: stored.result,
        },
        RETRY => Outcome::Retry {
            error: stored.error,
            not_before: stored.not_before.map(Timestamp::from_nanos),
        },
        _ => Outcome::Reject {
            reason: reason(stored.reason),
            error: stored.error,
        },
    }
}

fn read_blob(reader: &Reader, blob: Blob) -> Result<Bytes> {
    let place = Place {
        segment: blob.segment,
        offset: blob.offset,
    };
    reader.read(place, blob.bytes)
}

fn read(reader: &Reader, stretch: &Stretch) -> Result<Bytes> {
    let place = Place {
        segment: stretch.segment,
        offset: stretch.offset,
    };
    reader.read(place, stretch.bytes)
}

/// Reads stretches that lie next to each other in one go; how many those are.
pub(in crate::queue::journal) fn read_together(
    reader: &Reader,
    stretches: &[Stretch],
    known: &Known,
) -> Result<(Vec<Loaded>, usize)> {
    let Some(first) = stretches.first() else {
        return Ok((Vec::new(), 0));
    };
    let mut end = first.offset + first.bytes;
    let mut count = 1;
    for stretch in &stretches[1..] {
        let follows = stretch.segment == first.segment
            && stretch.offset >= end
            && stretch.offset - end <= MAX_GAP_BYTES
            && stretch.offset + stretch.bytes - first.offset <= READ_BYTES;
        if !follows {
            break;
        }
        end = stretch.offset + stretch.bytes;
        count += 1;
    }
    let place = Place {
        segment: first.segment,
        offset: first.offset,
    };
    let all = match reader.read(place, end - first.offset) {
        Err(error) if is_damage(&error) => {
            let alone = Loaded::read(read(reader, first), first, known)?;
            return Ok((vec![alone], 1));
        }
        all => all?,
    };
    let loaded = stretches[..count].iter().map(|stretch| {
        let from = (stretch.offset - first.offset) as usize;
        Loaded::new(
            all.slice(from..from + stretch.bytes as usize),
            stretch,
            known,
        )
    });
    Ok((loaded.collect(), count))
}

/// Stretches that are so close are read in one go, up to so many bytes.
const MAX_GAP_BYTES: u32 = 64 << 10;
const READ_BYTES: u32 = 512 << 10;
/// Copied from the page cache and checked in about 0.3 ms.
const SHORT_BYTES: u64 = 2 << 20;
const FETCHED_BYTES: u64 = 2 << 20;
