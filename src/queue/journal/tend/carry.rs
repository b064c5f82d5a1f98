//! Carrying what is needed of the oldest segment to the head of the log.

use std::collections::BTreeMap;

use super::{Carriage, Round, SLACK_BYTES, Tend, has_room_for, oldest_needed};
use crate::{
    error::Result,
    fault::point,
    queue::journal::{
        core::{Core, Inner},
        event::{Carried, Event, Of, Rewritten, What},
        fold::fold,
        log::Place,
        record::{self, Roster},
        state::{Blob, Need, QueueState},
        step::{Loaded, legible},
    },
};

impl Tend {
    /// Carries a slice, if the log takes too much; begins with a segment when a new one was begun.
    pub(super) fn carry(&mut self, core: &Core, is_idle: bool) -> Result<()> {
        let carrying = {
            let mut inner = core.lock()?;
            let current = inner.filling.place().segment;
            if inner.carrying.is_none() && (is_idle || current != self.weighed_in) {
                self.weighed_in = current;
                inner.carrying = self.too_heavy(core, &inner);
            }
            if !has_room_for(core, &inner, 2 * SLICE_BYTES) {
                inner.carrying = None;
            }
            inner.carrying
        };
        let Some(segment) = carrying else {
            return Ok(());
        };
        let (mut carried, mut took) = (Ok(false), 0);
        core.log_now(|inner| {
            inner.seal();
            let from = inner.filling.place();
            carried = slice(inner, core, segment);
            inner.seal();
            took = self.between(from, inner.filling.place());
        })?;
        point("journal.carried");
        let is_over = !matches!(carried, Ok(true));
        if is_over {
            core.lock()?.carrying = None;
        }
        carried?;
        if let Some(round) = &mut self.round {
            round.carried += took;
        }
        let pays = is_over && self.pays(core, &*core.lock()?);
        if pays {
            self.write_baseline(core)
        } else {
            Ok(())
        }
    }

    /// The segment to carry away, if the log takes more than twice what is needed of it, the baseline included, and a constant;
    /// what the next baseline lets go of does not count. While pushes are kept out for want of space, the constant is one segment.
    fn too_heavy(&mut self, core: &Core, inner: &Inner) -> Option<u32> {
        let oldest = oldest_needed(inner);
        let log_bytes = core.reader.log_bytes(oldest..);
        let is_scarce = inner.no_room.is_some();
        let constant = if is_scarce {
            self.segment_bytes
        } else {
            CONSTANT_SEGMENTS * self.segment_bytes
        };
        // The walk over all stretches is only made when it may matter.
        if oldest == inner.filling.place().segment || log_bytes <= constant {
            return None;
        }
        let queues = inner.state.queues.values();
        let live: u64 = queues.map(QueueState::live_bytes).sum();
        if let Some(round) = self.round.take_if(|round| oldest > round.began) {
            self.found = Carriage {
                live: round.live,
                waste: round.carried.saturating_sub(round.live),
            };
        }
        let needed = self.found.takes(live).saturating_add(self.baseline_bytes);
        if log_bytes <= needed.saturating_mul(2).saturating_add(constant) {
            return None;
        }
        let began = inner.filling.place().segment;
        let round = Round {
            began,
            live,
            carried: 0,
        };
        self.round.get_or_insert(round);
        Some(oldest)
    }
}

/// Carries some of what is needed of a segment; false if nothing is left.
pub(in crate::queue::journal) fn slice(
    inner: &mut Inner,
    core: &Core,
    segment: u32,
) -> Result<bool> {
    let mut bytes = 0;
    let queues: Vec<u32> = inner.state.queues.keys().copied().collect();
    for queue in queues {
        while let Some(first) = next_stretch(inner, queue, segment) {
            if bytes >= SLICE_BYTES {
                return Ok(true);
            }
            bytes += carry_stretch(inner, core, queue, first)?;
        }
        if carry_blobs(inner, core, queue, segment)? {
            return Ok(true);
        }
    }
    Ok(bytes > 0)
}

/// The first stretch of a queue in this segment.
fn next_stretch(inner: &Inner, queue: u32, segment: u32) -> Option<u64> {
    let stretches = &inner.state.queues.get(&queue)?.stored.stretches;
    for (first, stretch) in stretches {
        if stretch.segment == segment {
            return Some(*first);
        }
        // Behind the first one that was never carried, all lie further on.
        if !stretch.carried {
            return None;
        }
    }
    None
}

fn carry_stretch(inner: &mut Inner, core: &Core, id: u32, first: u64) -> Result<usize> {
    let Some(queue) = inner.state.queues.get(&id) else {
        return Ok(0);
    };
    let Some(stretch) = queue.stored.stretches.get(&first) else {
        return Ok(0);
    };
    let at = Place {
        segment: stretch.segment,
        offset: stretch.offset,
    };
    let known = queue.known([stretch], inner.state.salt);
    let loaded = Loaded::read(core.reader.read(at, stretch.bytes), stretch, &known)?;
    let most = loaded.bytes.len() + (loaded.requests.len() + 1) * record::MOST_BESIDES;
    inner.make_room(&core.space, most + SLACK_BYTES)?;
    inner.filling.end_piece();
    let anchor = inner.filling.anchor();
    let Some(queue) = inner.state.queues.get(&id) else {
        return Ok(0);
    };
    let mut piece = Vec::with_capacity(loaded.bytes.len());
    record::begin_piece(&mut piece, anchor, 0);
    let mut roster = Roster::default();
    let mut requests = 0;
    for found in &loaded.requests {
        let payload = match queue.need(found.id) {
            Need::Nothing => continue,
            Need::Bare => false,
            Need::Whole => true,
        };
        found.copy(
            &loaded.bytes,
            payload,
            anchor.behind(piece.len()),
            &mut piece,
        );
        roster.add(found.id, if payload { found.bytes } else { 0 });
        requests += 1;
    }
    record::end_piece(&mut piece, (0, anchor), 0, &roster);
    let blob = inner.filling.put_blob(&piece);
    let event = Event::Of(Box::new(Of {
        queue: id,
        what: What::Carried(Carried {
            first,
            offset: blob.offset - inner.filling.at.body().offset,
            bytes: blob.bytes,
            requests,
        }),
    }));
    inner.filling.put(&event);
    fold(&mut inner.state, event, inner.filling.at.body());
    Ok(piece.len())
}

/// Carries the blobs of a queue in this segment; whether there were any.
fn carry_blobs(inner: &mut Inner, core: &Core, id: u32, segment: u32) -> Result<bool> {
    let Some(queue) = inner.state.queues.get(&id) else {
        return Ok(false);
    };
    let blobs = queue.blobs().filter(|blob| blob.segment == segment);
    let mut bytes = 0;
    let some = blobs.take_while(|blob| {
        bytes += blob.bytes as usize + 40;
        bytes < SLICE_BYTES || bytes == blob.bytes as usize + 40
    });
    let some: Vec<Blob> = some.collect();
    if some.is_empty() {
        return Ok(false);
    }
    let most: usize = some.iter().map(|blob| blob.bytes as usize + 40).sum();
    inner.make_room(&core.space, most + SLACK_BYTES)?;
    let mut moved = BTreeMap::new();
    for blob in some {
        let at = Place {
            segment: blob.segment,
            offset: blob.offset,
        };
        let bytes = legible(core.reader.read(at, blob.bytes))?.unwrap_or_default();
        // A damaged one is damaged there, too: its checksum is the old one.
        let new = inner.filling.put_blob(&bytes);
        moved.insert(
            blob,
            Blob {
                check: blob.check,
                ..new
            },
        );
    }
    let event = Event::Of(Box::new(Of {
        queue: id,
        what: What::Rewritten(Rewritten { blobs: moved }),
    }));
    inner.filling.put(&event);
    fold(&mut inner.state, event, inner.filling.at.body());
    Ok(true)
}

/// So much is carried between two groups.
const SLICE_BYTES: usize = 256 << 10;
/// What the log may take besides twice what is needed: the open segment, and one to be freed.
const CONSTANT_SEGMENTS: u64 = 2;
