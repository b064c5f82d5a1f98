//! The verbs as steps on the state: decide, fold, and add to the filling group.
//!
//! A step checks everything that can be wrong with its arguments before it changes anything. What it
//! decides is an event; what the event does is [`fold`](super::fold)'s, here and after a restart.

mod admin;
mod claim;
mod push;
mod restore;
mod settle;
mod shelf;
mod update;

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    codec::Codec,
    core::{Core, Inner},
    event::{Advanced, Change, Event, Of, Removal, What},
    fold::fold,
    group,
    log::Place,
    record::{self, Found, Known, Outcome},
    state::{Blob, NEVER, QueueState, Stretch},
};
use crate::{
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    request::DeadReason,
};

use self::shelf::Shelf;
pub(super) use self::{push::Plan, restore::Incoming, shelf::Recorded, update::Plan as UpdatePlan};
pub(super) use crate::queue::stored::reason;
use crate::queue::stored::{reason_number, shortened};

/// One verb on one queue, under the lock.
pub(super) struct Step<'a> {
    pub(super) core: &'a Core,
    pub(super) inner: &'a mut Inner,
    pub(super) id: u32,
    shelf: Shelf,
}

/// The bytes of a stretch, and what is legible in it.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) bytes: Bytes,
    pub(super) requests: Vec<Found>,
}

impl Loaded {
    pub(super) fn new(bytes: Bytes, stretch: &Stretch, known: &Known) -> Self {
        let requests = record::requests(&bytes, stretch, known);
        Self { bytes, requests }
    }

    /// What was read of a stretch; if it is not there, that is damage like any other.
    pub(super) fn read(read: Result<Bytes>, stretch: &Stretch, known: &Known) -> Result<Self> {
        let bytes = match read {
            Err(error) if is_damage(&error) => Bytes::new(),
            read => read?,
        };
        Ok(Self::new(bytes, stretch, known))
    }

    pub(super) fn find(&self, id: u64) -> Option<&Found> {
        let at = self.requests.binary_search_by_key(&id, |found| found.id);
        at.ok().and_then(|at| self.requests.get(at))
    }
}

impl<'a> Step<'a> {
    pub(super) fn new(core: &'a Core, inner: &'a mut Inner, id: u32) -> Self {
        Self {
            core,
            inner,
            id,
            shelf: Shelf::default(),
        }
    }

    pub(super) fn queue(&self) -> Result<&QueueState> {
        let queue = self.inner.state.queues.get(&self.id);
        queue.ok_or_else(|| Error::internal("no such queue"))
    }

    /// Makes room for so many bytes in the filling group, or begins another.
    ///
    /// # Errors
    /// Those of [`Inner::make_room`].
    pub(super) fn reserve(&mut self, bytes: usize) -> Result<()> {
        let bytes = bytes + SLACK_BYTES;
        if self.inner.filling.takes(bytes) {
            return Ok(());
        }
        let made = self.inner.make_room(&self.core.space, bytes);
        // A group was sealed.
        self.core.notify();
        made
    }

    /// Says what was decided, and does it. Room was made for it.
    fn event(&mut self, what: What) {
        let event = Event::Of(Box::new(Of {
            queue: self.id,
            what,
        }));
        let held = self.held_bytes();
        self.inner.filling.put(&event);
        fold(&mut self.inner.state, event, self.inner.filling.at.body());
        // What is no longer needed may let segments go, as what is logged may.
        self.inner.since_look.0 += held.saturating_sub(self.held_bytes());
        // Only where damage has left traces: it is counted when the store is opened.
        if let Some(queue) = self.inner.state.queues.get_mut(&self.id)
            && queue.amiss > 0
        {
            tracing::error!(
                queue = queue.stored.name,
                "counts did not fit: counted again"
            );
            queue.recount();
        }
    }

    fn held_bytes(&self) -> u64 {
        let queue = self.inner.state.queues.get(&self.id);
        queue.map_or(0, |queue| queue.stored.counts.held_bytes)
    }

    /// Has the group publish this queue, and wake others if there is something for them to do.
    fn touch(&mut self, wakes: bool) {
        self.inner.filling.touch(self.id, wakes);
    }

    fn blob(&mut self, value: &impl Codec) -> Blob {
        let mut bytes = Vec::new();
        value.put(&mut bytes);
        self.inner.filling.put_blob(&bytes)
    }

    fn read(&self, place: Place, bytes: u32) -> Result<Bytes> {
        let waiting = (&self.inner.sealed, &self.inner.filling);
        group::read(&self.core.reader, waiting, place, bytes)
    }

    /// A text that was recorded, or that it is damaged.
    pub(super) fn text(&self, blob: Blob) -> Result<String> {
        let text = legible(self.shared(blob))?;
        Ok(text.unwrap_or_else(|| "the recorded error is damaged".into()))
    }

    pub(super) fn load(&self, stretch: &Stretch) -> Result<Loaded> {
        let place = Place {
            segment: stretch.segment,
            offset: stretch.offset,
        };
        let read = self.read(place, stretch.bytes);
        Loaded::read(read, stretch, &self.known([stretch])?)
    }

    /// What is known of these stretches without reading them.
    pub(super) fn known<'s>(
        &self,
        stretches: impl IntoIterator<Item = &'s Stretch>,
    ) -> Result<Known> {
        Ok(self.queue()?.known(stretches, self.inner.state.salt))
    }

    /// Whether these can be read by those who don't have the lock.
    pub(super) fn are_durable<'s>(&self, stretches: impl IntoIterator<Item = &'s Stretch>) -> bool {
        let waiting = (&self.inner.sealed, &self.inner.filling);
        let mut stretches = stretches.into_iter();
        stretches.all(|stretch| group::is_durable(waiting, stretch))
    }

    /// The stretch of an id, read.
    pub(super) fn load_of(&self, id: u64) -> Result<Option<(u64, Loaded)>> {
        let found = self.queue()?.stretch_of(id);
        let found = found.map(|(first, stretch)| (first, *stretch));
        found
            .map(|(first, stretch)| Ok((first, self.load(&stretch)?)))
            .transpose()
    }

    /// Offers batches whose holders are known to be gone.
    pub(super) fn offer_held(&mut self) -> Result<()> {
        if self
            .queue()?
            .stored
            .open
            .values()
            .any(|open| open.held && open.until > 0)
        {
            self.reserve(16)?;
            self.event(What::Offered(()));
            self.touch(true);
        }
        Ok(())
    }

    /// Whether the disk, and not the queue's bounds, keeps pushes out.
    pub(super) fn is_full(&self) -> bool {
        self.inner.no_room.is_some()
    }

    /// Applies what time alone brings: expiry first, then promotion; forgets keys and old results.
    pub(super) fn advance(&mut self, now: Timestamp) -> Result<()> {
        let now = now.as_nanos();
        let queue = self.queue()?;
        if queue.next_change() > now {
            return Ok(());
        }
        let expired = self.expired(now)?;
        let queue = self.queue()?;
        let due = queue.stored.delayed.range(..=(now, NEVER));
        let left = due.filter(|(_, moved)| moved.expires_at > now);
        let promoted: Vec<(u64, u64)> = left.map(|(at, _)| *at).collect();
        let wakes =
            !promoted.is_empty() || !expired.natural.is_empty() || !expired.moved.is_empty();
        let items = promoted.len() + expired.natural.len() + expired.moved.len();
        self.reserve(30 * items + 80 * expired.changes.len())?;
        self.event(What::Advanced(Advanced {
            now,
            expired,
            promoted,
        }));
        self.touch(wakes);
        Ok(())
    }

    /// What has expired by now.
    fn expired(&self, now: u64) -> Result<Removal> {
        let queue = self.queue()?;
        let mut removal = Removal::default();
        for (_, first) in queue.expiring.range(..=(now, NEVER)) {
            let Some(stretch) = queue.stored.stretches.get(first) else {
                continue;
            };
            let loaded = self.load(stretch)?;
            let mut expired = Vec::new();
            for found in &loaded.requests {
                let at = found.expires_at(&loaded.bytes)?;
                if at.is_some_and(|at| at <= now) && queue.is_naturally_ready(found.id) {
                    expired.push(found.id);
                }
            }
            removal
                .changes
                .push(change(queue, *first, &loaded, &expired, 0)?);
            removal.natural.extend(expired);
        }
        let moved = queue.moved_expiring.range(..=(now, NEVER));
        removal.moved = moved.map(|(_, id)| *id).collect();
        Ok(removal)
    }

    /// The removal of ready requests that stand where their ids say; sorted ids.
    fn remove_natural(&self, ids: &[u64]) -> Result<Removal> {
        let queue = self.queue()?;
        let mut by_stretch: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for id in ids {
            if let Some((first, _)) = queue.stretch_of(*id) {
                by_stretch.entry(first).or_default().push(*id);
            }
        }
        let mut removal = Removal::default();
        for (first, gone) in by_stretch {
            if let Some(stretch) = queue.stored.stretches.get(&first) {
                let loaded = self.load(stretch)?;
                removal
                    .changes
                    .push(change(queue, first, &loaded, &gone, 0)?);
            }
            removal.natural.extend(gone);
        }
        Ok(removal)
    }
}

/// Whether something can't be read and never will be.
pub(super) fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound)
}

/// What was read, unless it is damaged.
pub(super) fn legible<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(error) if is_damage(&error) => Ok(None),
        read => read.map(Some),
    }
}

/// An outcome of which only the kind is known, which is kept in memory: what was done stays done, and what failed
/// is retried, or dead-lettered.
pub(super) fn damaged_outcome(position: u64, id: u64, kind: u8) -> Outcome {
    Outcome {
        position,
        id,
        kind,
        reason: reason_number(DeadReason::Damaged),
        error: DAMAGED_OUTCOME.into(),
        ..Outcome::default()
    }
}

/// How a stretch stands once these (sorted) and all up to `cursor` are not ready any more.
pub(super) fn change(
    queue: &QueueState,
    first: u64,
    loaded: &Loaded,
    gone: &[u64],
    cursor: u64,
) -> Result<Change> {
    let mut change = Change {
        first,
        expires_at: NEVER,
        ..Change::default()
    };
    for found in &loaded.requests {
        let stays = found.id > cursor
            && queue.is_naturally_ready(found.id)
            && gone.binary_search(&found.id).is_err();
        if !stays {
            continue;
        }
        if change.ready == 0 {
            (change.head, change.ready_at) = (found.id, found.pushed_at);
        }
        change.ready += 1;
        change.ready_bytes += found.bytes;
        let at = found.expires_at(&loaded.bytes)?.unwrap_or(NEVER);
        change.expires_at = change.expires_at.min(at);
    }
    Ok(change)
}

/// What is told of an outcome that can't be read.
pub(super) const DAMAGED_OUTCOME: &str = "what was recorded of its outcome is damaged";

/// What the fields of an event take beyond what was asked for, at most.
const SLACK_BYTES: usize = 1024;
