//! What each event does to the state: one pure, total function, for live operation and recovery alike.
//!
//! Where damage has taken events out of the log, those behind them may speak of what was never heard of.
//! What fits of such an event is done, what does not is left out, and the queue notes that something is
//! [amiss](QueueState::amiss): whoever folded then has it [counted again](recount). Requests only pass from
//! one place to another here, and a counter is never lowered by more than there is.

mod batches;
mod recount;

pub(super) use self::batches::{DONE, REJECT, RETRY};
use super::{
    event::{
        Advanced, Buried, CancelledAll, Carried, Change, Event, Pushed, Redriven, Removal, What,
    },
    log::Place,
    state::{Counts, Dead, DeadPage, Moved, NEVER, QueueState, Settled, Stand, State, Stretch},
};

/// A stretch takes no more pieces once it is so long, or has so many requests.
pub(super) const STRETCH_BYTES: u32 = 64 << 10;
pub(super) const STRETCH_REQUESTS: u32 = 1024;

/// Applies an event; `body` is where the body of its group begins.
pub(super) fn fold(state: &mut State, event: Event, body: Place) {
    // A baseline says what is so already.
    let Event::Of(event) = event else { return };
    let lost = || QueueState::lost(event.queue);
    if let What::Made(made) = &event.what {
        let name = made.name.parse();
        let queue = name.map_or_else(|_| lost(), |name| QueueState::new(&name, made.salt));
        state.queues.entry(event.queue).or_insert(queue);
        return;
    }
    let queue = state.queues.entry(event.queue).or_insert_with(lost);
    match event.what {
        What::Made(_) => {}
        What::Pushed(pushed) => {
            let piece = Place {
                segment: body.segment,
                offset: body.offset.saturating_add(pushed.offset),
            };
            queue.add_pushed(&pushed, piece, true);
            queue.add_notes(pushed);
        }
        What::Advanced(advanced) => queue.advance(advanced),
        What::Buried(buried) => queue.bury(buried),
        What::Claimed(claimed) => queue.claim(claimed),
        What::Updated(updated) => queue.update(updated),
        What::Cancelled(cancelled) => queue.cancel(cancelled),
        What::Redriven(redriven) => queue.redrive(redriven),
        What::Purged(purged) => {
            for id in purged.ids {
                if queue.take_dead(id).is_some() {
                    add(&mut queue.stored.counts.purged, 1);
                    queue.place(id, None);
                }
            }
        }
        What::Offered(()) => {
            let held = queue.stored.open.values_mut().filter(|open| open.held);
            held.for_each(|open| open.until = 0);
        }
        What::Carried(carried) => queue.carry(carried, body),
        What::Rewritten(rewritten) => queue.blobs_mut().for_each(|blob| {
            *blob = rewritten.blobs.get(blob).copied().unwrap_or(*blob);
        }),
        What::Restoring(restoring) => {
            if restoring.is_first {
                queue.restoring.clear();
            }
            queue.restoring.extend_from_slice(&restoring.part);
        }
        What::Restored(()) => queue.restore(),
    }
}

impl QueueState {
    /// Adds a piece, or (while the piece is still growing) what a push adds to it.
    pub(super) fn add_pushed(&mut self, pushed: &Pushed, at: Place, is_new_piece: bool) {
        if pushed.runs.is_empty() {
            return;
        }
        let Some(ids) = Ids::of(pushed).filter(|ids| ids.first > self.stored.last_position) else {
            self.amiss += 1;
            return;
        };
        let stored = &mut self.stored;
        let open = stored.stretches.last_entry().filter(|entry| {
            let stretch = entry.get();
            !is_new_piece || (takes_a_piece(stretch, at) && stretch.last > stored.cursor)
        });
        let key = open.map_or(ids.first, |entry| *entry.key());
        let stretch = stored.stretches.entry(key).or_insert_with(|| Stretch {
            first: ids.first,
            segment: at.segment,
            offset: at.offset,
            expires_at: NEVER,
            refs: 1,
            ..Stretch::default()
        });
        if is_new_piece {
            stretch.tail = at.offset.saturating_sub(stretch.offset);
        }
        let end = at.offset.saturating_add(pushed.bytes);
        stretch.bytes = end.saturating_sub(stretch.offset);
        stretch.last = ids.last;
        stretch.requests = stretch.requests.saturating_add(ids.requests);
        stretch.largest = stretch.largest.max(pushed.largest);
        if stretch.ready == 0 && pushed.ready > 0 {
            (stretch.head, stretch.ready_at) = (pushed.head, pushed.ready_at);
        }
        stretch.ready = stretch.ready.saturating_add(pushed.ready);
        add(&mut stretch.ready_bytes, pushed.ready_bytes);
        if let Some(at) = pushed.expires_at.filter(|at| *at < stretch.expires_at) {
            self.expiring.remove(&(stretch.expires_at, key));
            self.expiring.insert((at, key));
            stretch.expires_at = at;
        }
        stored.last_position = ids.last;
        let counts = &mut stored.counts;
        add(&mut counts.pushed, ids.requests.into());
        add(&mut counts.ready, pushed.ready.into());
        add(&mut counts.ready_bytes, pushed.ready_bytes);
        add(&mut counts.held_bytes, pushed.held_bytes);
        for later in &pushed.later {
            self.stored.absent.insert(later.id);
            let moved = Moved {
                id: later.id,
                bytes: later.bytes,
                ready_at: 0,
                expires_at: later.expires_at,
                attempts: 0,
                error: None,
            };
            self.delay(later.due, later.id, moved);
        }
    }

    /// What comes with a push besides its requests.
    pub(super) fn add_notes(&mut self, pushed: Pushed) {
        for (digest, key) in pushed.keys {
            self.key_expiry.insert((key.expires_at, digest));
            if let Some(old) = self.stored.keys.insert(digest, key) {
                self.key_expiry.remove(&(old.expires_at, digest));
                self.key_expiry.insert((key.expires_at, digest));
            }
        }
        self.stored.bookmarks.extend(pushed.bookmarks);
    }

    fn advance(&mut self, advanced: Advanced) {
        let expired = self.remove(advanced.expired, None);
        add(&mut self.stored.counts.expired, expired);
        for (due, position) in advanced.promoted {
            match self.stored.delayed.remove(&(due, position)) {
                Some(moved) => self.make_ready(advanced.now, due, moved),
                None => self.amiss += 1,
            }
        }
        self.forget(advanced.now);
        self.normalize();
    }

    /// Forgets keys and results whose time is over.
    fn forget(&mut self, now: u64) {
        while let Some(&(at, digest)) = self.key_expiry.first().filter(|(at, _)| *at <= now) {
            self.key_expiry.remove(&(at, digest));
            self.stored.keys.remove(&digest);
        }
        while let Some(&(at, batch)) = self.retained.first().filter(|(at, _)| *at <= now) {
            self.retained.remove(&(at, batch));
            let Some(ended) = self.stored.ended.remove(&batch) else {
                continue;
            };
            self.ended_at.remove(&(ended.members.last, batch));
            for sequence in ended.sequences {
                self.stored.settled.remove(&sequence);
            }
            for moved in ended.members.moved.values() {
                self.place(moved.id, None);
            }
            self.unpin(ended.members.after, ended.members.last);
        }
    }

    fn bury(&mut self, buried: Buried) {
        // At no time without a place: a stretch that nothing refers to is gone.
        let removed = self.remove(buried.removal, Some(Stand::Dead(())));
        self.expect(removed, buried.dead.len());
        self.add_dead(buried.dead);
        self.normalize();
    }

    /// Dead-letters requests that are nowhere else any more.
    fn add_dead(&mut self, dead: Vec<(u64, Dead)>) {
        if dead.is_empty() {
            return;
        }
        let sequence = self.next_sequence();
        let ids: Vec<u64> = dead.iter().map(|(id, _)| *id).collect();
        for (id, dead) in dead {
            self.place(id, Some(Stand::Dead(())));
            let other = self.stored.dead.insert(id, Dead { sequence, ..dead });
            self.amiss += u64::from(other.is_some());
        }
        let kept = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        let page = Settled::Dead(DeadPage { ids, kept });
        self.stored.settled.insert(sequence, page);
    }

    fn next_sequence(&mut self) -> u64 {
        add(&mut self.stored.last_settled, 1);
        self.stored.last_settled
    }

    fn cancel(&mut self, cancelled: CancelledAll) {
        let removed = self.remove(cancelled.removal, None);
        add(&mut self.stored.counts.cancelled, removed);
        for (batch, id) in cancelled.marked {
            if let Some(open) = self.stored.open.get_mut(&batch) {
                open.cancelled.insert(id);
            }
        }
        self.normalize();
    }

    fn redrive(&mut self, redriven: Redriven) {
        for id in redriven.ids {
            let Some(dead) = self.take_dead(id) else {
                continue;
            };
            let moved = Moved {
                id,
                bytes: dead.bytes,
                ready_at: redriven.now,
                expires_at: NEVER,
                attempts: 0,
                error: None,
            };
            add(&mut self.stored.counts.held_bytes, dead.bytes);
            self.make_ready(redriven.now, redriven.now, moved);
        }
    }

    /// Takes a dead letter out of the dead; its place is for the caller to say.
    fn take_dead(&mut self, id: u64) -> Option<Dead> {
        let Some(dead) = self.stored.dead.remove(&id) else {
            self.amiss += 1;
            return None;
        };
        if let Some(Settled::Dead(page)) = self.stored.settled.get_mut(&dead.sequence) {
            page.kept = page.kept.saturating_sub(1);
            if page.kept == 0 {
                self.stored.settled.remove(&dead.sequence);
            }
        }
        Some(dead)
    }

    fn carry(&mut self, carried: Carried, body: Place) {
        let Some(stretch) = self.stored.stretches.get_mut(&carried.first) else {
            return;
        };
        stretch.segment = body.segment;
        stretch.offset = body.offset.saturating_add(carried.offset);
        (stretch.bytes, stretch.tail) = (carried.bytes, 0);
        stretch.requests = carried.requests;
        stretch.carried = true;
    }

    /// Takes waiting requests out, of which the moved ones stand here from now on; how many.
    fn remove(&mut self, removal: Removal, stand: Option<Stand>) -> u64 {
        let named = removal.natural.len() + removal.moved.len();
        let mut removed = 0;
        self.stored.absent.extend(removal.natural);
        for change in removal.changes {
            let (requests, bytes) = self.apply(&change);
            self.take(|counts| &mut counts.held_bytes, bytes);
            removed += requests;
        }
        for id in removal.moved {
            let moved = match self.stored.places.get(&id) {
                Some(Stand::Ready(position)) => {
                    let moved = self.stored.moved.remove(position);
                    let (count, bytes) = moved.map_or((0, 0), |moved| (1, moved.bytes));
                    self.take(|counts| &mut counts.ready, count);
                    self.take(|counts| &mut counts.ready_bytes, bytes);
                    moved
                }
                // Those that are delayed are counted where they are.
                Some(Stand::Delayed(at)) => self.stored.delayed.remove(at),
                _ => None,
            };
            let Some(moved) = moved else { continue };
            self.take(|counts| &mut counts.held_bytes, moved.bytes);
            self.moved_expiring.remove(&(moved.expires_at, id));
            self.place(id, stand);
            removed += 1;
        }
        self.expect(removed, named);
        removed
    }

    /// Brings a stretch to how it stands now, and the counts with it; how many left it, and their payload bytes.
    fn apply(&mut self, change: &Change) -> (u64, u64) {
        let Some(stretch) = self.stored.stretches.get_mut(&change.first) else {
            self.amiss += 1;
            return (0, 0);
        };
        let ready = stretch.ready.min(change.ready);
        let ready_bytes = stretch.ready_bytes.min(change.ready_bytes);
        if (ready, ready_bytes) != (change.ready, change.ready_bytes) {
            self.amiss += 1;
        }
        let requests = u64::from(stretch.ready - ready);
        let bytes = stretch.ready_bytes - ready_bytes;
        self.expiring.remove(&(stretch.expires_at, change.first));
        (stretch.ready, stretch.ready_bytes) = (ready, ready_bytes);
        (stretch.head, stretch.ready_at) = (change.head, change.ready_at);
        stretch.expires_at = change.expires_at;
        if change.expires_at != NEVER {
            self.expiring.insert((change.expires_at, change.first));
        }
        self.take(|counts| &mut counts.ready, requests);
        self.take(|counts| &mut counts.ready_bytes, bytes);
        (requests, bytes)
    }

    /// Moves the cursor past stretches of which nothing is ready.
    pub(super) fn normalize(&mut self) {
        let mut cursor = self.stored.cursor;
        for (_, stretch) in self.stretches_between(cursor, NEVER) {
            if stretch.ready > 0 {
                break;
            }
            cursor = stretch.last;
        }
        self.move_cursor(cursor);
    }

    fn move_cursor(&mut self, cursor: u64) {
        let before = self.stored.cursor;
        if before >= cursor {
            return;
        }
        self.stored.cursor = cursor;
        self.stored.absent = self.stored.absent.split_off(&cursor.saturating_add(1));
        let passed = self.stretches_between(before, cursor);
        let passed = passed.filter(|(_, stretch)| stretch.last <= cursor);
        let passed: Vec<u64> = passed.map(|(first, _)| first).collect();
        for first in passed {
            self.apply(&Change {
                first,
                expires_at: NEVER,
                ..Change::default()
            });
            self.unref(first);
        }
    }

    /// A range needs the stretches it touches.
    fn pin(&mut self, after: u64, last: u64) {
        let touched: Vec<u64> = self
            .stretches_between(after, last)
            .map(|(first, _)| first)
            .collect();
        for first in touched {
            if let Some(stretch) = self.stored.stretches.get_mut(&first) {
                stretch.refs = stretch.refs.saturating_add(1);
            }
        }
    }

    fn unpin(&mut self, after: u64, last: u64) {
        let touched: Vec<u64> = self
            .stretches_between(after, last)
            .map(|(first, _)| first)
            .collect();
        for first in touched {
            self.unref(first);
        }
    }

    fn unref(&mut self, first: u64) {
        let Some(stretch) = self.stored.stretches.get_mut(&first) else {
            return;
        };
        stretch.refs = stretch.refs.saturating_sub(1);
        if stretch.refs == 0 {
            self.expiring.remove(&(stretch.expires_at, first));
            self.stored.stretches.remove(&first);
        }
    }

    /// Says where a request stands; `None`: where its id says, or nowhere.
    pub(super) fn place(&mut self, id: u64, stand: Option<Stand>) {
        let is_new = stand.is_some();
        let was = match stand {
            Some(stand) => self.stored.places.insert(id, stand),
            None => self.stored.places.remove(&id),
        };
        let Some((first, _)) = self.stretch_of(id) else {
            return;
        };
        match (was.is_some(), is_new) {
            (false, true) => {
                if let Some(stretch) = self.stored.stretches.get_mut(&first) {
                    stretch.refs = stretch.refs.saturating_add(1);
                }
            }
            (true, false) => self.unref(first),
            _ => {}
        }
    }

    pub(super) fn delay(&mut self, due: u64, position: u64, moved: Moved) {
        if moved.expires_at != NEVER {
            self.moved_expiring.insert((moved.expires_at, moved.id));
        }
        self.place(moved.id, Some(Stand::Delayed((due, position))));
        let other = self.stored.delayed.insert((due, position), moved);
        self.amiss += u64::from(other.is_some());
    }

    /// Ready at the tail.
    fn make_ready(&mut self, now: u64, ready_at: u64, mut moved: Moved) {
        if moved.expires_at != NEVER {
            self.moved_expiring.insert((moved.expires_at, moved.id));
        }
        moved.ready_at = ready_at;
        let position = now.max(self.stored.last_position.saturating_add(1));
        self.stored.last_position = position;
        add(&mut self.stored.counts.ready, 1);
        add(&mut self.stored.counts.ready_bytes, moved.bytes);
        self.place(moved.id, Some(Stand::Ready(position)));
        let other = self.stored.moved.insert(position, moved);
        self.amiss += u64::from(other.is_some());
    }

    /// Lowers a counter, by what there is at most.
    fn take(&mut self, counter: impl FnOnce(&mut Counts) -> &mut u64, by: u64) {
        let counter = counter(&mut self.stored.counts);
        let taken = by.min(*counter);
        *counter -= taken;
        self.amiss += u64::from(taken < by);
    }

    /// Notes that something is amiss unless as many were met as were named.
    fn expect(&mut self, met: u64, named: usize) {
        self.amiss += u64::from(met != named as u64);
    }
}

/// The ids of a push.
struct Ids {
    first: u64,
    last: u64,
    requests: u32,
}

impl Ids {
    /// `None` if its numbers contradict each other.
    fn of(pushed: &Pushed) -> Option<Self> {
        let mut ids: Option<Self> = None;
        for (distance, count) in &pushed.runs {
            let (before, requests) = ids.as_ref().map_or((0, 0), |ids| (ids.last, ids.requests));
            if *distance == 0 || *count == 0 {
                return None;
            }
            let begins = before.checked_add(*distance)?;
            ids = Some(Self {
                first: ids.map_or(begins, |ids| ids.first),
                last: begins.checked_add(*count - 1)?,
                requests: requests.checked_add(u32::try_from(*count).ok()?)?,
            });
        }
        let ids = ids?;
        let later = pushed.later.iter();
        let is_one = |id: u64| ids.first <= id && id <= ids.last;
        let fits = u64::from(ids.requests) == u64::from(pushed.ready) + pushed.later.len() as u64
            && pushed.later.iter().all(|later| is_one(later.id))
            && (pushed.ready == 0 || is_one(pushed.head))
            && later.fold(pushed.ready_bytes, |sum, later| {
                sum.saturating_add(later.bytes)
            }) == pushed.held_bytes;
        fits.then_some(ids)
    }
}

/// Raises a counter.
fn add(counter: &mut u64, by: u64) {
    *counter = counter.saturating_add(by);
}

/// Whether a piece that begins here belongs to this stretch, the last one.
pub(super) fn takes_a_piece(stretch: &Stretch, at: Place) -> bool {
    let follows = !stretch.carried && stretch.segment == at.segment && at.offset >= stretch.offset;
    follows && at.offset - stretch.offset < STRETCH_BYTES && stretch.requests < STRETCH_REQUESTS
}
