//! The log under the journal: groups of bytes that are on stable storage once appended, in segments that are reused.
//!
//! ```text
//! segment-000.log  ┌────────┬────────────┬──────┬───────────────────┬───┬─────────────────┐
//! number 7         │ header │ group 1    │ mark │ group 2           │...│ continues in 8  │
//!                  └────────┴────────────┴──────┴───────────────────┴───┴─────────────────┘
//! segment-002.log  ┌────────┬───────┬───────────────────────┐
//! number 8         │ header │ group │ zeros, or stale bytes │  the open one; other files are spares, or freed
//!                  └────────┴───────┴───────────────────────┘
//! root             the oldest live segment, where recovery starts, and a note of the store
//!
//! life of a file   made, synced ─► spare ─► open ─► full ─► freed ─► spare (recycled) or removed
//! ```
//!
//! Rules
//! - A group is what one sync covers: a *body* of bulk bytes and *events*, which recovery reads. `format` has the
//!   bytes. A group is written only after the one before it was synced, so every group that another follows was
//!   synced; only the last one found is in doubt. Recovery checks that one whole, then writes it again and syncs
//!   it, because being readable is not being durable; if it is not whole it was never answered, and is set aside.
//! - The name of a file is a slot, and its header says which segment it is; numbers are never reused. A segment
//!   is begun with its own synced header, and ended with a synced frame that names the next one.
//! - Files are ready (all their space allocated, synced, their name synced) before they become segments. They are
//!   freed when a stored root says so, reused strictly oldest first, and never while someone reads them.
//! - After a failed write or sync nothing is known of what is on the disk: the log is poisoned, and nothing is
//!   tried again before it has been recovered.
//! - In a recycled file every write also zeroes the sector behind it, so that the end of the log is a zeroed
//!   sector there, too, and a frame that was begun can be told from what an earlier use has left.

mod buffers;
pub(super) mod fault;
mod format;
mod found;
#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing;
mod mend;
mod read;
mod scan;
mod spare;
#[cfg(test)]
mod tests;
mod write;

use format::{PAGE, SECTOR};
pub(super) use found::{Found, has_segments, salts};
pub(super) use read::{Pin, Reader};
pub(super) use scan::{Scanned, Tail};
pub(super) use spare::Space;
pub(super) use write::Log;

/// Where bytes of the log lie. Segment numbers begin at 1 and are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) offset: u32,
}

impl Place {
    /// Where the first group of a segment lies.
    pub(super) fn start_of(segment: u32) -> Self {
        Self {
            segment,
            offset: PAGE,
        }
    }
}

/// Where recovery begins, and what the store wants to find there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Root {
    /// Everything below may be reused.
    pub(super) oldest: u32,
    /// Where recovery starts to scan.
    pub(super) from: Place,
    /// The store's own.
    pub(super) note: [u8; 64],
}

impl Default for Root {
    fn default() -> Self {
        Self {
            oldest: 0,
            from: Place::default(),
            note: [0; 64],
        }
    }
}

/// How a log is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogOptions {
    /// How long a segment is; longer for a group that needs it. Rounded up to whole pages.
    pub(super) segment_bytes: u32,
    /// How many segments are kept ready.
    pub(super) spares: usize,
    /// How much of a new file a small group zeroes behind itself, for those that follow: see [`Log`].
    pub(super) zero_ahead: u32,
    /// Something random of the store: files of another one can't pass for its own.
    pub(super) salt: u64,
}

/// Where the next group goes: pure arithmetic, so that the places of a body's bytes are known while a group fills.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    place: Place,
    /// How long this segment is.
    length: u32,
    /// How long the next ones are.
    segment_bytes: u32,
}

impl Cursor {
    /// Behind what a segment holds already.
    fn inside(place: Place, length: u32, segment_bytes: u32) -> Self {
        Self {
            place,
            length,
            segment_bytes,
        }
    }

    /// At the start of a segment that is not there yet.
    fn start_of(segment: u32, segment_bytes: u32) -> Self {
        Self::inside(Place::start_of(segment), segment_bytes, segment_bytes)
    }

    /// Where the next group begins.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Where the first byte of the next group's body will lie.
    pub(super) fn body(&self) -> Place {
        Place {
            offset: self.place.offset + format::HEADER,
            ..self.place
        }
    }

    /// Whether a group of these sizes has room in this segment. At its start it always has: a segment grows.
    pub(super) fn fits(&self, body: usize, events: usize) -> bool {
        self.is_at_start()
            || self.end_of(body, events) + u64::from(RESERVE) <= u64::from(self.length)
    }

    /// Behind a group of these sizes.
    pub(super) fn after(&self, body: usize, events: usize) -> Cursor {
        let end = self.end_of(body, events);
        let length = self.length_for(body, events);
        Self {
            place: Place {
                offset: u32::try_from(end).unwrap_or(u32::MAX),
                ..self.place
            },
            length,
            ..*self
        }
    }

    /// At the start of the next segment.
    pub(super) fn next_segment(&self) -> Cursor {
        Self::start_of(self.place.segment + 1, self.segment_bytes)
    }

    fn is_at_start(&self) -> bool {
        self.place.offset == PAGE
    }

    /// How long this segment has to be for a group of these sizes.
    fn length_for(&self, body: usize, events: usize) -> u32 {
        let needed = (self.end_of(body, events) + u64::from(RESERVE)).next_multiple_of(PAGE.into());
        let needed = u32::try_from(needed).unwrap_or(u32::MAX);
        if self.is_at_start() {
            self.length.max(needed)
        } else {
            self.length
        }
    }

    fn end_of(&self, body: usize, events: usize) -> u64 {
        format::frame_end(self.place.offset, body as u64, events as u64)
    }
}

/// Kept free at the end of each segment: for a mark, and for the frame that names the next one.
const RESERVE: u32 = 2 * SECTOR;
