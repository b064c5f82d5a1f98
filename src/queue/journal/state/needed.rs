//! What of the log is still needed.

use super::{Blob, Members, QueueState, Settled, Stand};

/// What is still needed of a request where it was pushed.
pub(in crate::queue::journal) enum Need {
    Nothing,
    /// That it was, not its payload: it is done.
    Bare,
    Whole,
}

impl QueueState {
    /// What is still needed of a request where it was pushed.
    pub(in crate::queue::journal) fn need(&self, id: u64) -> Need {
        match self.stored.places.get(&id) {
            Some(Stand::Done(_)) => return Need::Bare,
            Some(_) => return Need::Whole,
            None => {}
        }
        if self.is_naturally_ready(id) || self.natural_batch(id).is_some() {
            return Need::Whole;
        }
        match self.ended_of(id).next() {
            Some(_) => Need::Bare,
            None => Need::Nothing,
        }
    }

    pub(super) fn oldest_segment(&self) -> Option<u32> {
        let stored = &self.stored;
        let mut oldest = self.incoming_from;
        let mut look =
            |segment: u32| oldest = Some(oldest.map_or(segment, |old: u32| old.min(segment)));
        // Behind the first stretch that lies where it was pushed all others lie further on.
        for stretch in stored.stretches.values() {
            look(stretch.segment);
            if !stretch.carried {
                break;
            }
        }
        self.blobs().for_each(|blob| look(blob.segment));
        oldest
    }

    /// Every blob that something refers to, to be told where it lies from now on.
    pub(in crate::queue::journal) fn blobs_mut(&mut self) -> impl Iterator<Item = &mut Blob> {
        let stored = &mut self.stored;
        let open = stored.open.values_mut();
        let open = open.flat_map(|open| {
            let pages = open.pages.iter_mut().map(|page| &mut page.blob);
            pages.chain(errors(&mut open.members))
        });
        let ended = stored.ended.values_mut().flat_map(|ended| {
            let pages = ended.pages.iter_mut().map(|page| &mut page.blob);
            let rest = ended.rest.as_mut().and_then(|rest| rest.result.as_mut());
            pages.chain(rest).chain(errors(&mut ended.members))
        });
        let settled = stored
            .settled
            .values_mut()
            .filter_map(|settled| match settled {
                Settled::Page((_, page)) => Some(&mut page.blob),
                Settled::Rest(_) | Settled::Dead(_) => None,
            });
        let waiting = stored.moved.values_mut().chain(stored.delayed.values_mut());
        (stored.dead.values_mut().map(|dead| &mut dead.error))
            .chain(waiting.filter_map(|moved| moved.error.as_mut()))
            .chain(open)
            .chain(ended)
            .chain(settled)
    }

    /// About how many bytes of the log are needed: of requests that are only known to be done, not their payloads.
    pub(in crate::queue::journal) fn live_bytes(&self) -> u64 {
        let stored = &self.stored;
        let is_held = |first: u64, last: u64| {
            let mut open = stored.open.values();
            open.any(|open| open.members.after < last && first <= open.members.last)
        };
        let stretches = stored.stretches.iter().map(|(first, stretch)| {
            if stretch.last > stored.cursor || is_held(*first, stretch.last) {
                u64::from(stretch.bytes)
            } else {
                let places = stored.places.range(*first..=stretch.last).count() as u64;
                let each = u64::from(stretch.bytes) / u64::from(stretch.requests.max(1));
                BARE_BYTES * u64::from(stretch.requests) + each * places
            }
        });
        let blobs = self.blobs().map(|blob| u64::from(blob.bytes));
        stretches.chain(blobs).sum()
    }

    /// Every blob that something refers to.
    pub(in crate::queue::journal) fn blobs(&self) -> impl Iterator<Item = Blob> {
        let stored = &self.stored;
        let open = stored.open.values().flat_map(|open| {
            let moved = open.members.moved.values().filter_map(|moved| moved.error);
            open.pages.iter().map(|page| page.blob).chain(moved)
        });
        let ended = stored.ended.values().flat_map(|ended| {
            let moved = ended.members.moved.values().filter_map(|moved| moved.error);
            let rest = ended.rest.and_then(|rest| rest.result);
            (ended.pages.iter().map(|page| page.blob))
                .chain(rest)
                .chain(moved)
        });
        let waiting = stored.moved.values().chain(stored.delayed.values());
        (stored.dead.values().map(|dead| dead.error))
            .chain(waiting.filter_map(|moved| moved.error))
            .chain(open)
            .chain(ended)
    }
}

/// The errors of moved members.
fn errors(members: &mut Members) -> impl Iterator<Item = &mut Blob> {
    let moved = members.moved.values_mut();
    moved.filter_map(|moved| moved.error.as_mut())
}

/// About what a request takes without its payload.
const BARE_BYTES: u64 = 48;
