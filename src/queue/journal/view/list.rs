//! Lists of requests in one state, and of what was settled.

use std::{collections::BTreeSet, num::NonZeroU32, ops::Bound};

use crate::{
    clock::Timestamp,
    error::Result,
    queue::{
        Entry, List, ResultCursor, SettledPage,
        journal::{
            fold::DONE,
            state::{Members, NEVER, Open, Page, QueueState, Settled, Stand, Stretch},
            step::{Loaded, Step},
        },
    },
    request::{RequestId, State},
};

impl Step<'_> {
    pub(in crate::queue::journal) fn list(
        &mut self,
        now: Timestamp,
        list: &List,
    ) -> Result<Vec<Entry>> {
        self.advance(now)?;
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        let mut after = list.after.map_or(0, RequestId::as_u64);
        // By stretch: an id is looked up where it was pushed, whatever became of it.
        while let Some((first, stretch)) = self.next_stretch(after)? {
            let explicit = self.explicit(list.state, after, stretch.last)?;
            let naturals = self
                .queue()?
                .has_natural(list.state, first.max(after + 1), &stretch);
            if naturals || !explicit.is_empty() {
                let loaded = self.stretch(&stretch)?;
                for found in loaded.requests.iter().filter(|found| found.id > after) {
                    if !naturals && !explicit.contains(&found.id) {
                        continue;
                    }
                    if entries.len() >= list.max_requests.get() as usize
                        || bytes >= MAX_LISTED_BYTES
                    {
                        return Ok(entries);
                    }
                    let entry = self.entry(found.id, &loaded, list.payloads)?;
                    if let Some(entry) = entry.filter(|entry| entry.state == list.state) {
                        bytes += entry.payload.as_ref().map_or(0, bytes::Bytes::len);
                        entries.push(entry);
                    }
                }
            }
            after = stretch.last;
        }
        Ok(entries)
    }

    /// The first stretch with ids past this one.
    fn next_stretch(&self, after: u64) -> Result<Option<(u64, Stretch)>> {
        let queue = self.queue()?;
        let mut next = queue.stretches_between(after, NEVER);
        Ok(next.next().map(|(first, stretch)| (first, *stretch)))
    }

    /// Ids past `after` up to `last` that have a place of their own in this state.
    fn explicit(&self, state: State, after: u64, last: u64) -> Result<BTreeSet<u64>> {
        let range = (Bound::Excluded(after), Bound::Included(last));
        let places = self.queue()?.stored.places.range(range);
        let fits = |stand: &Stand| match stand {
            Stand::Delayed(_) => state == State::Delayed,
            Stand::Ready(_) => state == State::Ready,
            Stand::Member(_) => matches!(state, State::InFlight | State::Done),
            Stand::Done(_) => state == State::Done,
            Stand::Dead(()) => state == State::Dead,
        };
        Ok(places
            .filter(|(_, stand)| fits(stand))
            .map(|(id, _)| *id)
            .collect())
    }

    pub(in crate::queue::journal) fn results(
        &mut self,
        now: Timestamp,
        after: Option<ResultCursor>,
        max_requests: NonZeroU32,
    ) -> Result<SettledPage> {
        self.advance(now)?;
        let mut entries = Vec::new();
        let mut next = None;
        let most = max_requests.get() as usize;
        let (from, mut past) = after.map_or((0, None), |cursor| (cursor.0, Some(cursor.1)));
        let pages: Vec<u64> = {
            let settled = &self.queue()?.stored.settled;
            settled
                .range(from..)
                .take(most + 1)
                .map(|(sequence, _)| *sequence)
                .collect()
        };
        for sequence in pages {
            let past = past.take().filter(|_| sequence == from);
            for (index, entry) in self.settled(sequence, past, most - entries.len())? {
                next = Some(ResultCursor(sequence, index));
                entries.push(entry);
            }
            if entries.len() >= most {
                break;
            }
        }
        Ok(SettledPage { entries, next })
    }

    /// The next entries of one step's settling, each with its index there.
    fn settled(&self, sequence: u64, past: Option<u64>, most: usize) -> Result<Vec<(u64, Entry)>> {
        let queue = self.queue()?;
        let is_next = |index: u64| past.is_none_or(|past| index > past);
        let ids: Vec<(u64, u64)> = match queue.stored.settled.get(&sequence) {
            None => Vec::new(),
            Some(Settled::Dead(page)) => {
                let dead = |id: &u64| {
                    let dead = queue.stored.dead.get(id);
                    dead.is_some_and(|dead| dead.sequence == sequence)
                };
                (0..)
                    .zip(&page.ids)
                    .filter(|(index, id)| is_next(*index) && dead(id))
                    .map(|(index, id)| (index, *id))
                    .take(most)
                    .collect()
            }
            Some(Settled::Page((batch, page))) => {
                let Some(listing) = self.listing(page)? else {
                    return self.settled_damaged(*batch, page, past, most);
                };
                (0..)
                    .zip(&listing.outcomes)
                    .filter(|(index, one)| is_next(*index) && one.kind == DONE)
                    .map(|(index, one)| (index, one.id))
                    .take(most)
                    .collect()
            }
            Some(Settled::Rest(batch)) => return self.settled_rest(*batch, past, most),
        };
        let mut entries = Vec::new();
        for (index, id) in ids {
            if let Some(loaded) = self.stretch_with(id)? {
                let entry = self.entry(id, &loaded, false)?;
                entries.extend(entry.map(|entry| (index, entry)));
            }
        }
        Ok(entries)
    }

    /// What the rest of a batch was, by position.
    fn settled_rest(
        &self,
        batch: u64,
        past: Option<u64>,
        most: usize,
    ) -> Result<Vec<(u64, Entry)>> {
        let Some(ended) = self.queue()?.stored.ended.get(&batch) else {
            return Ok(Vec::new());
        };
        let is_one = |position: u64| Ok(!self.is_recorded(&ended.pages, position)?);
        self.settled_members(&ended.members, &is_one, past, most)
    }

    /// What was recorded in a page that is damaged, by position: what is done and in no page that can be read.
    fn settled_damaged(
        &self,
        batch: u64,
        page: &Page,
        past: Option<u64>,
        most: usize,
    ) -> Result<Vec<(u64, Entry)>> {
        let stored = &self.queue()?.stored;
        let (open, ended) = (stored.open.get(&batch), stored.ended.get(&batch));
        let (members, pages) = match (open, ended) {
            (Some(open), _) => (&open.members, &open.pages),
            // With the rest of its batch, of which it can't be told apart.
            (None, Some(ended)) if ended.rest.is_none() => (&ended.members, &ended.pages),
            _ => return Ok(Vec::new()),
        };
        let mut before = Vec::new();
        for other in pages.iter().take_while(|other| other.blob != page.blob) {
            if self.listing(other)?.is_none() {
                before.push(*other);
            }
        }
        let is_one = |position: u64| {
            let is_done = |open: &Open| open.recorded.get(&position) == Some(&DONE);
            let may_be = page.covers(position)
                && open.is_none_or(is_done)
                && !before.iter().any(|page| page.covers(position));
            Ok(may_be && !self.is_recorded(pages, position)?)
        };
        self.settled_members(members, &is_one, past, most)
    }

    /// Those of these members that are meant, by position.
    fn settled_members(
        &self,
        members: &Members,
        is_one: &dyn Fn(u64) -> Result<bool>,
        past: Option<u64>,
        most: usize,
    ) -> Result<Vec<(u64, Entry)>> {
        let queue = self.queue()?;
        let after = past.map_or(members.after, |past| past.max(members.after));
        let moved_after = past.map_or(0, |past| past + 1);
        let mut moved = members.moved.range(moved_after..).peekable();
        let mut entries = Vec::new();
        let mut add = |position: u64, id: u64, loaded: &Loaded| -> Result<bool> {
            if entries.len() < most && is_one(position)? {
                let entry = self.entry(id, loaded, false)?;
                entries.extend(entry.map(|entry| (position, entry)));
            }
            Ok(entries.len() < most)
        };
        for (_, stretch) in queue.stretches_between(after, members.last) {
            let loaded = self.stretch(stretch)?;
            let natural = loaded.requests.iter();
            let natural = natural.filter(|found| found.id > after && members.has_natural(found.id));
            for found in natural {
                while let Some((position, next)) = moved.next_if(|(at, _)| **at < found.id) {
                    if let Some(loaded) = self.stretch_with(next.id)? {
                        add(*position, next.id, &loaded)?;
                    }
                }
                if !add(found.id, found.id, &loaded)? {
                    return Ok(entries);
                }
            }
        }
        for (position, next) in moved {
            if let Some(loaded) = self.stretch_with(next.id)?
                && !add(*position, next.id, &loaded)?
            {
                break;
            }
        }
        Ok(entries)
    }
}

impl QueueState {
    /// Whether a stretch may have requests, from an id on, that stand where their ids say, in this state.
    fn has_natural(&self, state: State, from: u64, stretch: &Stretch) -> bool {
        let stored = &self.stored;
        let touches = |after: u64, last: u64| after < stretch.last && from <= last;
        match state {
            State::Ready => stretch.ready > 0,
            State::InFlight => stored
                .open
                .values()
                .any(|open| touches(open.members.after, open.members.last)),
            State::Done => {
                let is_recorded = |open: &Open| {
                    touches(open.members.after, open.members.last)
                        && open.recorded.values().any(|kind| *kind == DONE)
                };
                stored.open.values().any(is_recorded)
                    || stored
                        .ended
                        .values()
                        .any(|ended| touches(ended.members.after, ended.members.last))
            }
            _ => false,
        }
    }
}

/// A page of a list with payloads ends after about this many bytes of them.
const MAX_LISTED_BYTES: usize = 4 << 20;
