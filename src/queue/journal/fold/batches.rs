//! What the events of batches do to the state.

use std::collections::BTreeSet;

use super::add;
use crate::queue::journal::{
    event::{Claimed, Ending, Finished, Formed, Half, Recorded, Split, Then, Updated},
    state::{Ended, Members, Moved, NEVER, Open, QueueState, Rest, Settled, Stand},
};

/// The kinds of outcomes, as they are stored.
pub(in crate::queue::journal) const DONE: u8 = 0;
pub(in crate::queue::journal) const RETRY: u8 = 1;
pub(in crate::queue::journal) const REJECT: u8 = 2;

impl QueueState {
    pub(super) fn claim(&mut self, claimed: Claimed) {
        if let Some(formed) = claimed.formed {
            // Numbers of batches only rise.
            if claimed.batch <= self.stored.last_batch || formed.cursor < self.stored.cursor {
                self.amiss += 1;
                return;
            }
            self.form(claimed.batch, formed);
        }
        let is_new = claimed.fence > self.stored.last_fence;
        self.amiss += u64::from(!is_new);
        self.stored.last_fence = self.stored.last_fence.max(claimed.fence);
        let Some(open) = self.stored.open.get_mut(&claimed.batch) else {
            self.amiss += 1;
            return;
        };
        open.fence = claimed.fence;
        open.held = true;
        open.until = claimed.until;
        open.attempt = open.attempt.saturating_add(1);
    }

    fn form(&mut self, batch: u64, formed: Formed) {
        let after = self.stored.cursor;
        let holes = self.stored.absent.range(after.saturating_add(1)..);
        let holes: BTreeSet<u64> = holes
            .copied()
            .take_while(|id| *id <= formed.cursor)
            .collect();
        let left = self
            .stored
            .moved
            .split_off(&formed.moved_to.saturating_add(1));
        let moved = std::mem::replace(&mut self.stored.moved, left);
        let before = self.stored.counts;
        let bytes = moved.values().map(|moved| moved.bytes);
        let bytes = bytes.fold(0, u64::saturating_add);
        self.take(|counts| &mut counts.ready, moved.len() as u64);
        self.take(|counts| &mut counts.ready_bytes, bytes);
        for (position, moved) in &moved {
            self.moved_expiring.remove(&(moved.expires_at, moved.id));
            self.place(moved.id, Some(Stand::Member((batch, *position))));
        }
        for change in &formed.changes {
            self.apply(change);
        }
        self.pin(after, formed.cursor);
        self.move_cursor(formed.cursor);
        self.normalize();
        self.stored.last_batch = batch;
        // As many as were ready there are its members.
        let counts = &mut self.stored.counts;
        let taken = before.ready - counts.ready;
        let bytes = before.ready_bytes - counts.ready_bytes;
        add(&mut counts.in_flight, taken);
        self.amiss += u64::from((taken, bytes) != (formed.requests.into(), formed.bytes));
        let requests = u32::try_from(taken).unwrap_or(u32::MAX);
        let members = Members {
            after,
            last: formed.cursor,
            root: after,
            holes,
            moved,
            requests,
            bytes,
        };
        let open = Open {
            formed_at: formed.at,
            context: formed.context,
            unsettled: requests,
            unsettled_bytes: bytes,
            members,
            ..Open::default()
        };
        self.stored.open.insert(batch, open);
    }

    pub(super) fn update(&mut self, updated: Updated) {
        let batch = updated.batch;
        for recorded in updated.recorded {
            self.record(batch, recorded);
        }
        let Some(open) = self.stored.open.get_mut(&batch) else {
            self.amiss += 1;
            return;
        };
        if updated.checkpoint.is_some() {
            open.checkpoint = updated.checkpoint;
        }
        match updated.then {
            Then::Hold(until) => open.until = until,
            Then::Release(()) => {
                (open.held, open.until) = (false, 0);
                open.attempt = open.attempt.saturating_sub(1);
            }
            Then::Defer(until) => (open.held, open.until) = (false, until),
            Then::Split(split) => self.split(batch, split),
            Then::Finish(finished) => self.finish(batch, finished),
        }
    }

    fn record(&mut self, batch: u64, recorded: Recorded) {
        let Some(open) = self.stored.open.get_mut(&batch) else {
            return;
        };
        let counts = &mut self.stored.counts;
        let mut done = false;
        for (position, (kind, bytes)) in recorded.outcomes {
            let members = &open.members;
            let is_member = members.has_natural(position) || members.moved.contains_key(&position);
            let is_first = !open.recorded.contains_key(&position);
            let is_counted = kind != DONE || counts.in_flight > 0;
            if !is_member || !is_first || !is_counted || open.unsettled == 0 {
                self.amiss += 1;
                continue;
            }
            open.recorded.insert(position, kind);
            open.unsettled -= 1;
            let fits = bytes <= open.unsettled_bytes && bytes <= counts.held_bytes;
            self.amiss += u64::from(!fits);
            open.unsettled_bytes = open.unsettled_bytes.saturating_sub(bytes);
            if kind == DONE {
                done = true;
                counts.in_flight -= 1;
                counts.held_bytes = counts.held_bytes.saturating_sub(bytes);
                add(&mut counts.done, 1);
            }
        }
        open.pages.push(recorded.page);
        if done {
            add(&mut self.stored.last_settled, 1);
            let sequence = self.stored.last_settled;
            open.sequences.push(sequence);
            let page = Settled::Page((batch, recorded.page));
            self.stored.settled.insert(sequence, page);
        }
    }

    fn split(&mut self, batch: u64, mut split: Split) {
        let (first, second) = (&mut split.first, &mut split.second);
        if first.batch <= self.stored.last_batch || second.batch <= first.batch {
            self.amiss += 1;
            return;
        }
        let Some(mut open) = self.stored.open.remove(&batch) else {
            return;
        };
        // Both together have those without an outcome.
        let all = (open.unsettled, open.unsettled_bytes);
        first.requests = first.requests.min(all.0);
        first.bytes = first.bytes.min(all.1);
        let rest = (all.0 - first.requests, all.1 - first.bytes);
        self.amiss += u64::from(rest != (second.requests, second.bytes));
        (second.requests, second.bytes) = rest;
        let (first, second) = {
            let members = &open.members;
            let middle = split.boundary.clamp(members.after, members.last);
            ((members.after, middle), (middle, members.last))
        };
        let halves = [
            (split.first, first, ..=split.boundary),
            (split.second, second, ..=NEVER),
        ];
        for (half, range, positions) in halves {
            self.open_half((batch, split.now), &mut open, &half, range, positions.end);
        }
        (open.unsettled, open.unsettled_bytes) = (0, 0);
        self.end(batch, open, split.ending, None, split.until, split.now);
    }

    /// Opens one half of a batch with its members without an outcome up to a position.
    fn open_half(
        &mut self,
        (parent, now): (u64, u64),
        open: &mut Open,
        half: &Half,
        (after, last): (u64, u64),
        to: u64,
    ) {
        let members = &mut open.members;
        let within = |id: &u64| after < *id && *id <= last;
        let holes = members.holes.iter().copied().filter(within);
        let settled = open.recorded.keys().copied().filter(within);
        let holes: BTreeSet<u64> = holes.chain(settled).collect();
        let taken = members.moved.range(..=to);
        let taken = taken.filter(|(position, _)| !open.recorded.contains_key(position));
        let moved: Vec<(u64, Moved)> = taken.map(|(at, moved)| (*at, *moved)).collect();
        for (position, moved) in &moved {
            members.moved.remove(position);
            self.place(moved.id, Some(Stand::Member((half.batch, *position))));
        }
        self.pin(after, last);
        self.stored.last_batch = half.batch;
        let members = Members {
            after,
            last,
            root: members.root,
            holes,
            moved: moved.into_iter().collect(),
            requests: half.requests,
            bytes: half.bytes,
        };
        let half_open = Open {
            parent: Some(parent),
            prior: open.prior.saturating_add(open.attempt),
            formed_at: now,
            context: open.context.clone(),
            unsettled: half.requests,
            unsettled_bytes: half.bytes,
            members,
            cancelled: open.cancelled.clone(),
            ..Open::default()
        };
        self.stored.open.insert(half.batch, half_open);
    }

    fn finish(&mut self, batch: u64, finished: Finished) {
        let Some(mut open) = self.stored.open.remove(&batch) else {
            return;
        };
        if finished.rest.is_some() {
            let (done, bytes) = (open.unsettled.into(), open.unsettled_bytes);
            self.take(|counts| &mut counts.in_flight, done);
            self.take(|counts| &mut counts.held_bytes, bytes);
            add(&mut self.stored.counts.done, done);
            if open.unsettled > 0 {
                let sequence = self.next_sequence();
                open.sequences.push(sequence);
                self.stored.settled.insert(sequence, Settled::Rest(batch));
            }
            (open.unsettled, open.unsettled_bytes) = (0, 0);
        }
        self.end(
            batch,
            open,
            finished.ending,
            finished.rest,
            finished.until,
            finished.now,
        );
    }

    /// Settles the members of a batch that has ended.
    fn end(
        &mut self,
        batch: u64,
        open: Open,
        ending: Ending,
        rest: Option<Rest>,
        until: u64,
        now: u64,
    ) {
        let left = open.left();
        let mut members = open.members;
        let named = ending.returned.len() + ending.dead.len() + ending.gone.len();
        self.expect(left, named);
        self.expect(
            ending.cancelled.saturating_add(ending.expired),
            ending.gone.len(),
        );
        self.take(|counts| &mut counts.in_flight, left);
        self.take(|counts| &mut counts.held_bytes, ending.gone_bytes);
        add(&mut self.stored.counts.cancelled, ending.cancelled);
        add(&mut self.stored.counts.expired, ending.expired);
        for back in ending.returned {
            leave(&mut members, back.position);
            let moved = Moved {
                id: back.id,
                bytes: back.bytes,
                ready_at: now,
                expires_at: back.expires_at,
                attempts: back.attempts,
                error: Some(back.error),
            };
            match back.due {
                Some(due) => self.delay(due, back.position, moved),
                None => self.make_ready(now, now, moved),
            }
        }
        let mut dead = Vec::with_capacity(ending.dead.len());
        for ((position, id), letter) in ending.dead {
            leave(&mut members, position);
            self.take(|counts| &mut counts.held_bytes, letter.bytes);
            dead.push((id, letter));
        }
        self.add_dead(dead);
        for (position, id) in ending.gone {
            leave(&mut members, position);
            self.place(id, None);
        }
        let is_kept = rest.is_some() || open.recorded.values().any(|kind| *kind == DONE);
        if !is_kept {
            self.unpin(members.after, members.last);
            return;
        }
        for (position, moved) in &members.moved {
            self.place(moved.id, Some(Stand::Done((batch, *position))));
        }
        self.retained.insert((until, batch));
        if members.has_range() {
            self.ended_at.insert((members.last, batch));
        }
        let ended = Ended {
            members,
            pages: open.pages,
            rest,
            until,
            sequences: open.sequences,
        };
        self.stored.ended.insert(batch, ended);
    }
}

/// A member that is not done leaves its batch.
fn leave(members: &mut Members, position: u64) {
    if members.moved.remove(&position).is_none() {
        members.holes.insert(position);
    }
}
