//! Counting what is ready and what is a member of an open batch again, where events were lost.
//!
//! Which requests that is follows from the cursor and the range of a batch, what was taken out before, and what lies in
//! the stretches there: how many those are is only known to who reads them. What was lost may have taken some out.

use std::collections::BTreeSet;

use crate::{
    error::Result,
    queue::journal::{
        fold::DONE,
        log::{Place, Reader},
        state::{NEVER, Open, QueueState, Stand, Stretch},
        step::{Loaded, change},
    },
};

/// Lets go of requests that stand elsewhere than their ids say and of which nothing is left in their stretches, not even
/// that they are there; how many those are.
pub(super) fn drop_lost(queue: &mut QueueState, reader: &Reader, salt: u64) -> usize {
    let stretches: Vec<Stretch> = queue.stored.stretches.values().copied().collect();
    let mut lost = Vec::new();
    for stretch in stretches {
        let places = queue.stored.places.range(stretch.first..=stretch.last);
        let places: Vec<(u64, Stand)> = places.map(|(id, stand)| (*id, *stand)).collect();
        if places.is_empty() {
            continue;
        }
        let known = queue.known([&stretch], salt);
        let read = reader.read(place_of(&stretch), stretch.bytes);
        if let Ok(loaded) = Loaded::read(read, &stretch, &known) {
            lost.extend(
                places
                    .into_iter()
                    .filter(|(id, _)| loaded.find(*id).is_none()),
            );
        }
    }
    let stored = &mut queue.stored;
    let gone = lost.iter().filter(|(id, stand)| match stand {
        Stand::Delayed(at) => stored.delayed.remove(at).is_some(),
        Stand::Ready(at) => stored.moved.remove(at).is_some(),
        Stand::Dead(()) => stored.dead.remove(id).is_some(),
        Stand::Member((batch, at)) => {
            let open = stored.open.get_mut(batch);
            open.is_some_and(|open| open.members.moved.remove(at).is_some())
        }
        Stand::Done((batch, at)) => {
            let ended = stored.ended.get_mut(batch);
            ended.is_some_and(|ended| ended.members.moved.remove(at).is_some())
        }
    });
    gone.count()
}

/// Has each stretch past the cursor count as many ready requests as are in it.
pub(super) fn count_ready(queue: &mut QueueState, reader: &Reader, salt: u64) {
    let cursor = queue.stored.cursor;
    let stretches = queue.stretches_between(cursor, NEVER);
    let stretches: Vec<(u64, Stretch)> = stretches.map(|(first, one)| (first, *one)).collect();
    for (first, stretch) in stretches {
        let known = queue.known([&stretch], salt);
        let read = reader.read(place_of(&stretch), stretch.bytes);
        let loaded = Loaded::read(read, &stretch, &known);
        // What the disk does not give now is left as it is.
        let change = loaded.and_then(|loaded| change(queue, first, &loaded, &[], cursor));
        let (Ok(change), Some(stretch)) = (change, queue.stored.stretches.get_mut(&first)) else {
            continue;
        };
        queue.expiring.remove(&(stretch.expires_at, first));
        (stretch.ready, stretch.ready_bytes) = (change.ready, change.ready_bytes);
        (stretch.head, stretch.ready_at) = (change.head, change.ready_at);
        stretch.expires_at = change.expires_at;
        if stretch.expires_at != NEVER {
            queue.expiring.insert((stretch.expires_at, first));
        }
    }
}

/// Has each open batch count as many members as it has.
pub(super) fn count(queue: &mut QueueState, reader: &Reader, salt: u64) {
    let batches: Vec<u64> = queue.stored.open.keys().copied().collect();
    for batch in batches {
        let Some(open) = queue.stored.open.get(&batch) else {
            continue;
        };
        // What the disk does not give now is left as it is.
        let Ok((unsettled, bytes, lost)) = unsettled(queue, (batch, open), reader, salt) else {
            continue;
        };
        if let Some(open) = queue.stored.open.get_mut(&batch) {
            open.recorded.retain(|position, _| !lost.contains(position));
            let settled = open.members.bytes.saturating_sub(open.unsettled_bytes);
            open.members.bytes = settled.saturating_add(bytes);
            open.members.requests = number(unsettled + open.recorded.len());
            (open.unsettled, open.unsettled_bytes) = (number(unsettled), bytes);
        }
    }
}

/// How many members of a batch have no outcome, and their payload bytes; and which have failed and are not there.
fn unsettled(
    queue: &QueueState,
    (batch, open): (u64, &Open),
    reader: &Reader,
    salt: u64,
) -> Result<(usize, u64, BTreeSet<u64>)> {
    let members = &open.members;
    let stretches = queue.stretches_between(members.after, members.last);
    let stretches: Vec<Stretch> = stretches.map(|(_, stretch)| *stretch).collect();
    let known = queue.known(&stretches, salt);
    let mut natural = BTreeSet::new();
    let mut bytes = 0_u64;
    let failed = open.recorded.iter().filter(|(_, kind)| **kind != DONE);
    let failed = failed.map(|(position, _)| *position);
    let mut lost: BTreeSet<u64> = failed.collect();
    lost.retain(|position| !members.moved.contains_key(position));
    for stretch in &stretches {
        let read = reader.read(place_of(stretch), stretch.bytes);
        let loaded = Loaded::read(read, stretch, &known)?;
        for found in &loaded.requests {
            let is_member = members.has_natural(found.id)
                && !queue.stored.places.contains_key(&found.id)
                && (queue.natural_batch(found.id)).is_some_and(|(first, _)| first == batch);
            if !is_member {
                continue;
            }
            lost.remove(&found.id);
            if !open.recorded.contains_key(&found.id) && natural.insert(found.id) {
                bytes = bytes.saturating_add(found.bytes);
            }
        }
    }
    let moved = members.moved.iter();
    let moved = moved.filter(|(position, _)| !open.recorded.contains_key(position));
    let mut count = natural.len();
    for (_, moved) in moved {
        count += 1;
        bytes = bytes.saturating_add(moved.bytes);
    }
    Ok((count, bytes, lost))
}

fn place_of(stretch: &Stretch) -> Place {
    Place {
        segment: stretch.segment,
        offset: stretch.offset,
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
