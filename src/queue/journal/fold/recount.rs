//! Counting a queue again from what it holds, where events were lost: the counters, the references, the places.
//!
//! What requests are known of, and where they stand, is taken as it is; a request that would stand in two
//! places keeps one. All else follows from that. Of a queue of which nothing was lost this changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::queue::{
    journal::{
        fold::DONE,
        state::{Members, Moved, NEVER, Open, QueueState, Settled, Stand, Stored},
    },
    transfer::MOST_COUNTED,
};

impl QueueState {
    /// Counts again, after which nothing is amiss any more.
    pub(in crate::queue::journal) fn recount(&mut self) {
        let mut stored = std::mem::take(&mut self.stored);
        stored.part_stretches();
        stored.part_requests();
        stored.limit_batches();
        *self = Self {
            options: self.options,
            restoring: std::mem::take(&mut self.restoring),
            incoming_from: self.incoming_from,
            ..Self::derive(stored)
        };
        self.count_references();
        self.stored.count_dead();
        self.stored.count_requests();
    }

    /// A stretch is needed by what is ready in it, by each batch whose range touches it, by each place of its ids.
    fn count_references(&mut self) {
        let mut needed: BTreeMap<u64, u32> = BTreeMap::new();
        let mut need = |first: u64| *needed.entry(first).or_default() += 1;
        for (first, stretch) in &self.stored.stretches {
            if stretch.last > self.stored.cursor {
                need(*first);
            }
        }
        let open = self.stored.open.values().map(|open| &open.members);
        let ended = self.stored.ended.values().map(|ended| &ended.members);
        for members in open.chain(ended) {
            let touched = self.stretches_between(members.after, members.last);
            touched.for_each(|(first, _)| need(first));
        }
        for id in self.stored.places.keys() {
            if let Some((first, _)) = self.stretch_of(*id) {
                need(first);
            }
        }
        self.stored.stretches.retain(|first, stretch| {
            stretch.refs = needed.get(first).copied().unwrap_or(0);
            stretch.refs > 0
        });
    }
}

impl Stored {
    /// Stretches lie one behind the other, and nothing is ready of those that the cursor has passed.
    fn part_stretches(&mut self) {
        let mut last = 0;
        self.stretches.retain(|first, stretch| {
            stretch.first = *first;
            let fits = *first > last && *first <= stretch.last;
            last = last.max(stretch.last);
            fits
        });
        let highest = self.moved.keys().next_back().copied();
        self.last_position = (self.last_position.max(last)).max(highest.unwrap_or(0));
        self.cursor = self.cursor.min(self.last_position);
        for (first, stretch) in &mut self.stretches {
            stretch.ready = stretch.ready.min(stretch.requests);
            if stretch.last <= self.cursor {
                stretch.ready = 0;
            }
            if stretch.ready == 0 {
                (stretch.ready_bytes, stretch.expires_at) = (0, NEVER);
            } else {
                let from = (*first).max(self.cursor.saturating_add(1));
                stretch.head = stretch.head.clamp(from, stretch.last);
            }
        }
    }

    /// Each request that does not stand where its id says stands in one place. Of one that lies in no stretch nothing
    /// is left but its number: the event that pushed it is lost.
    fn part_requests(&mut self) {
        let mut places = BTreeMap::new();
        let stretches = &self.stretches;
        let is_pushed = |id: u64| {
            let stretch = stretches.range(..=id).next_back();
            stretch.is_some_and(|(_, stretch)| id <= stretch.last)
        };
        let mut stand = |id: u64, stand: Stand| {
            let is_first = is_pushed(id) && !places.contains_key(&id);
            if is_first {
                places.insert(id, stand);
            }
            is_first
        };
        self.dead.retain(|id, _| stand(*id, Stand::Dead(())));
        for (batch, open) in &mut self.open {
            let before = open.members.moved.len();
            let place = |at: &u64, moved: &mut Moved| stand(moved.id, Stand::Member((*batch, *at)));
            open.members.moved.retain(place);
            let gone = u32::try_from(before - open.members.moved.len()).unwrap_or(u32::MAX);
            open.unsettled = open.unsettled.saturating_sub(gone);
        }
        self.moved
            .retain(|at, moved| stand(moved.id, Stand::Ready(*at)));
        self.delayed
            .retain(|at, moved| stand(moved.id, Stand::Delayed(*at)));
        for (batch, ended) in &mut self.ended {
            let place = |at: &u64, moved: &mut Moved| stand(moved.id, Stand::Done((*batch, *at)));
            ended.members.moved.retain(place);
        }
        self.places = places;
        let after = self.cursor.saturating_add(1);
        self.absent = self.absent.split_off(&after);
        let elsewhere = self.places.range(after..).map(|(id, _)| *id);
        self.absent.extend(elsewhere.filter(|id| *id > self.cursor));
    }

    /// A batch lies before the cursor, and has no more without an outcome than it has members.
    fn limit_batches(&mut self) {
        let cursor = self.cursor;
        let limit = |members: &mut Members| {
            members.last = members.last.min(cursor);
            members.after = members.after.min(members.last);
            members.root = members.root.min(members.after);
        };
        for open in self.open.values_mut() {
            limit(&mut open.members);
            open.unsettled = open.unsettled.min(open.members.requests);
            open.unsettled_bytes = open.unsettled_bytes.min(open.members.bytes);
        }
        self.ended
            .values_mut()
            .for_each(|ended| limit(&mut ended.members));
        let batches = self.open.keys().chain(self.ended.keys());
        let last = batches.copied().max().unwrap_or(0);
        self.last_batch = self.last_batch.max(last);
        let fences = self.open.values().map(|open| open.fence);
        self.last_fence = self.last_fence.max(fences.max().unwrap_or(0));
    }

    /// How many of each page of dead letters are still dead.
    fn count_dead(&mut self) {
        let dead = &self.dead;
        self.settled.retain(|sequence, settled| {
            let Settled::Dead(page) = settled else {
                return true;
            };
            let is_kept = |id: &&u64| dead.get(id).is_some_and(|dead| dead.sequence == *sequence);
            let kept: BTreeSet<&u64> = page.ids.iter().filter(is_kept).collect();
            page.kept = u32::try_from(kept.len()).unwrap_or(u32::MAX);
            page.kept > 0
        });
    }

    /// The counters, of which the one of all that was pushed is the sum of the others.
    pub(in crate::queue::journal) fn count_requests(&mut self) {
        let sum = |numbers: &mut dyn Iterator<Item = u64>| numbers.fold(0, u64::saturating_add);
        let stretches = self.stretches.values();
        let ready = stretches.clone().map(|stretch| u64::from(stretch.ready));
        let ready_bytes = stretches.map(|stretch| stretch.ready_bytes);
        let moved_bytes = self.moved.values().map(|moved| moved.bytes);
        let counts = &mut self.counts;
        counts.ready = sum(&mut ready.chain([self.moved.len() as u64]));
        counts.ready_bytes = sum(&mut ready_bytes.chain(moved_bytes));
        counts.in_flight = sum(&mut self.open.values().map(Open::left));
        let delayed_bytes = self.delayed.values().map(|moved| moved.bytes);
        let unsettled_bytes = self.open.values().map(|open| open.unsettled_bytes);
        let waiting = delayed_bytes.chain(unsettled_bytes);
        let least = sum(&mut waiting.chain([counts.ready_bytes]));
        // How large those are that have failed and whose batches have not ended is not known one by one.
        let failed = self.open.values().filter(|open| {
            let mut kinds = open.recorded.values();
            kinds.any(|kind| *kind != DONE)
        });
        let failed = failed.map(|open| open.members.bytes - open.unsettled_bytes);
        let most = sum(&mut failed.chain([least]));
        counts.held_bytes = counts.held_bytes.clamp(least, most);
        for counter in [
            &mut counts.done,
            &mut counts.expired,
            &mut counts.cancelled,
            &mut counts.purged,
        ] {
            *counter = (*counter).min(MOST_COUNTED);
        }
        counts.pushed = [
            counts.ready,
            counts.in_flight,
            counts.done,
            counts.expired,
            counts.cancelled,
            counts.purged,
            self.delayed.len() as u64,
            self.dead.len() as u64,
        ]
        .into_iter()
        .sum();
    }
}
