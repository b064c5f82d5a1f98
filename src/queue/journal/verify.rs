//! Reading all that is held, to tell what of it is damaged before anybody asks for it.

use std::fmt;

use super::{
    core::Core,
    log::Place,
    record,
    state::{Need, QueueState, Stretch},
    step::{Loaded, legible},
    view,
};
use crate::{error::Result, request::RequestId};

/// What of the requests, outcomes and results that are held can't be read, a line each.
///
/// # Errors
/// `Unavailable` if the disk can't be read.
pub(super) fn verify(core: &Core) -> Result<Vec<String>> {
    let inner = core.lock()?;
    let mut found = Vec::new();
    for queue in inner.state.queues.values() {
        let mut lines = Lines::of(queue);
        let stretches: Vec<Stretch> = queue.stored.stretches.values().copied().collect();
        let mut at = 0;
        while at < stretches.len() {
            // What is known of them is looked up for as many as may be read in one go.
            let rest = &stretches[at..(at + TOGETHER).min(stretches.len())];
            let known = queue.known(rest, inner.state.salt);
            let (loaded, count) = view::read_together(&core.reader, rest, &known)?;
            at += count;
            for loaded in &loaded {
                lines.look(queue, loaded);
            }
        }
        for blob in queue.blobs() {
            let place = Place {
                segment: blob.segment,
                offset: blob.offset,
            };
            let read = core.reader.read(place, blob.bytes);
            if legible(read.and_then(|bytes| record::check_blob(blob, &bytes)))?.is_none() {
                lines.add(format_args!(
                    "an outcome, a result or an error of {} bytes in segment {} at {} is damaged",
                    blob.bytes, blob.segment, blob.offset
                ));
            }
        }
        found.extend(lines.end());
    }
    Ok(found)
}

/// The lines of a queue, of which there may be too many.
struct Lines {
    queue: String,
    told: Vec<String>,
    more: u64,
}

impl Lines {
    fn of(queue: &QueueState) -> Self {
        Self {
            queue: queue.stored.name.clone(),
            told: Vec::new(),
            more: 0,
        }
    }

    fn look(&mut self, queue: &QueueState, loaded: &Loaded) {
        for found in &loaded.requests {
            let damage = match queue.need(found.id) {
                Need::Bare if found.is_lost() => Some("what was stored of it is damaged"),
                Need::Whole => found.payload(&loaded.bytes).err(),
                Need::Bare | Need::Nothing => None,
            };
            if let Some(damage) = damage {
                let id = RequestId::from_u64(found.id);
                self.add(format_args!("request {id}: {damage}"));
            }
        }
    }

    fn add(&mut self, what: fmt::Arguments<'_>) {
        if self.told.len() < MOST_LINES {
            let line = format!("damaged: queue {}: {what}", self.queue);
            self.told.push(line);
        } else {
            self.more += 1;
        }
    }

    fn end(mut self) -> Vec<String> {
        if self.more > 0 {
            let line = format!(
                "damaged: queue {}: {} more like these",
                self.queue, self.more
            );
            self.told.push(line);
        }
        self.told
    }
}

/// Of one queue.
const MOST_LINES: usize = 100;
/// Stretches that are read in one go are rarely more.
const TOGETHER: usize = 16;
