//! Counting the members of open batches again, where events were lost.
//!
//! Which requests are members follows from the range of a batch, what was taken out of it before, and what lies in the
//! stretches there: how many those are is only known to who reads them. What was lost may have taken some of them out.

use std::collections::BTreeSet;

use crate::{
    error::Result,
    queue::journal::{
        log::{Place, Reader},
        state::{Open, QueueState, Stretch},
        step::Loaded,
    },
};

/// Has each open batch count as many members as it has.
pub(super) fn count(queue: &mut QueueState, reader: &Reader, salt: u64) {
    let batches: Vec<u64> = queue.stored.open.keys().copied().collect();
    for batch in batches {
        let Some(open) = queue.stored.open.get(&batch) else {
            continue;
        };
        // What the disk does not give now is left as it is.
        let Ok((unsettled, bytes)) = unsettled(queue, (batch, open), reader, salt) else {
            continue;
        };
        if let Some(open) = queue.stored.open.get_mut(&batch) {
            let settled = open.members.bytes.saturating_sub(open.unsettled_bytes);
            open.members.bytes = settled.saturating_add(bytes);
            open.members.requests = number(unsettled + open.recorded.len());
            (open.unsettled, open.unsettled_bytes) = (number(unsettled), bytes);
        }
    }
}

/// How many members of a batch have no outcome, and their payload bytes.
fn unsettled(
    queue: &QueueState,
    (batch, open): (u64, &Open),
    reader: &Reader,
    salt: u64,
) -> Result<(usize, u64)> {
    let members = &open.members;
    let stretches = queue.stretches_between(members.after, members.last);
    let stretches: Vec<Stretch> = stretches.map(|(_, stretch)| *stretch).collect();
    let known = queue.known(&stretches, salt);
    let mut natural = BTreeSet::new();
    let mut bytes = 0_u64;
    for stretch in &stretches {
        let place = Place {
            segment: stretch.segment,
            offset: stretch.offset,
        };
        let loaded = Loaded::read(reader.read(place, stretch.bytes), stretch, &known)?;
        for found in &loaded.requests {
            let is_member = members.has_natural(found.id)
                && !queue.stored.places.contains_key(&found.id)
                && (queue.natural_batch(found.id)).is_some_and(|(first, _)| first == batch)
                && !open.recorded.contains_key(&found.id);
            if is_member && natural.insert(found.id) {
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
    Ok((count, bytes))
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
