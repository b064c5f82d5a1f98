//! What the events of batches do to the state.

use std::collections::BTreeSet;

use crate::queue::journal::{
    event::{Claimed, Ending, Finished, Formed, Half, Recorded, Split, Then, Updated},
    state::{Ended, Members, Moved, NEVER, Open, QueueState, Settled, Stand},
};

/// The kinds of outcomes, as they are stored.
pub(in crate::queue::journal) const DONE: u8 = 0;
pub(in crate::queue::journal) const RETRY: u8 = 1;
pub(in crate::queue::journal) const REJECT: u8 = 2;

impl QueueState {
    pub(super) fn claim(&mut self, claimed: Claimed) {
        if let Some(formed) = claimed.formed {
            self.form(claimed.batch, formed);
        }
        self.stored.last_fence = claimed.fence;
        if let Some(open) = self.stored.open.get_mut(&claimed.batch) {
            open.fence = claimed.fence;
            open.held = true;
            open.until = claimed.until;
            open.attempt += 1;
        }
    }

    fn form(&mut self, batch: u64, formed: Formed) {
        let after = self.stored.cursor;
        let holes = self.stored.absent.range(after + 1..);
        let holes: BTreeSet<u64> = holes
            .copied()
            .take_while(|id| *id <= formed.cursor)
            .collect();
        let left = self
            .stored
            .moved
            .split_off(&formed.moved_to.saturating_add(1));
        let moved = std::mem::replace(&mut self.stored.moved, left);
        for (position, moved) in &moved {
            self.moved_expiring.remove(&(moved.expires_at, moved.id));
            self.place(moved.id, Some(Stand::Member((batch, *position))));
        }
        // All members leave the counts as a whole, those of a stretch that is cut among them.
        let before = self.stored.counts;
        for change in &formed.changes {
            self.apply(change);
        }
        let counts = &mut self.stored.counts;
        counts.ready = before.ready - u64::from(formed.requests);
        counts.ready_bytes = before.ready_bytes - formed.bytes;
        counts.in_flight += u64::from(formed.requests);
        self.pin(after, formed.cursor);
        self.move_cursor(formed.cursor);
        self.normalize();
        self.stored.last_batch = batch;
        let members = Members {
            after,
            last: formed.cursor,
            root: after,
            holes,
            moved,
            requests: formed.requests,
            bytes: formed.bytes,
        };
        let open = Open {
            formed_at: formed.at,
            context: formed.context,
            unsettled: formed.requests,
            unsettled_bytes: formed.bytes,
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
            open.recorded.insert(position, kind);
            open.unsettled -= 1;
            open.unsettled_bytes -= bytes;
            if kind == DONE {
                done = true;
                counts.in_flight -= 1;
                counts.held_bytes -= bytes;
                counts.done += 1;
            }
        }
        open.pages.push(recorded.page);
        if done {
            self.stored.last_settled += 1;
            let sequence = self.stored.last_settled;
            open.sequences.push(sequence);
            let page = Settled::Page((batch, recorded.page));
            self.stored.settled.insert(sequence, page);
        }
    }

    fn split(&mut self, batch: u64, split: Split) {
        let Some(mut open) = self.stored.open.remove(&batch) else {
            return;
        };
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
            prior: open.prior + open.attempt,
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
            let counts = &mut self.stored.counts;
            counts.in_flight -= u64::from(open.unsettled);
            counts.held_bytes -= open.unsettled_bytes;
            counts.done += u64::from(open.unsettled);
            if open.unsettled > 0 {
                let sequence = self.next_sequence();
                open.sequences.push(sequence);
                self.stored.settled.insert(sequence, Settled::Rest(batch));
            }
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
        rest: Option<super::super::state::Rest>,
        until: u64,
        now: u64,
    ) {
        let mut members = open.members;
        let counts = &mut self.stored.counts;
        counts.in_flight -= (ending.returned.len() + ending.dead.len() + ending.gone.len()) as u64;
        counts.held_bytes -= ending.gone_bytes;
        counts.cancelled += ending.cancelled;
        counts.expired += ending.expired;
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
            self.stored.counts.held_bytes -= letter.bytes;
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
        self.ended_at.insert((members.last, batch));
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
