//! What the log says: decisions with absolute effects, never commands.
//!
//! An event holds all that [`fold`](super::fold) needs; it is never decided again. Bulk (payloads, results,
//! error texts, the parts of a baseline) lies in the body of the event's group or of one before.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    codec::{choice, record},
    state::{Blob, Dead, Key, Page, Rest},
};

record! {
    /// A queue was made.
    struct Made {
        name: String,
        salt: u64,
    }

    /// A request that was pushed delayed.
    struct Later {
        id: u64,
        due: u64,
        bytes: u64,
        expires_at: u64,
    }

    /// Requests were pushed, next to each other in the body: a piece of a stretch.
    struct Pushed {
        /// Runs of consecutive ids: the first, as a distance from the last one of the run before, and how many.
        runs: Vec<(u64, u64)>,
        /// Where the piece lies in the body, its header included.
        offset: u32,
        bytes: u32,
        /// How many are ready at once, their payload bytes, and the payload bytes of all.
        ready: u32,
        ready_bytes: u64,
        held_bytes: u64,
        largest: u64,
        /// The first that is ready at once, and since when.
        head: u64,
        ready_at: u64,
        /// When the first that is ready at once expires, if any does.
        expires_at: Option<u64>,
        later: Vec<Later>,
        keys: BTreeMap<[u8; 16], Key>,
        bookmarks: BTreeMap<String, Bytes>,
    }

    /// How a stretch stands after some of it are not ready any more.
    struct Change {
        first: u64,
        ready: u32,
        ready_bytes: u64,
        head: u64,
        ready_at: u64,
        expires_at: u64,
    }

    /// Waiting requests leave.
    struct Removal {
        /// Those that stood where their ids say.
        natural: Vec<u64>,
        /// The stretches these were in.
        changes: Vec<Change>,
        /// The others, by id.
        moved: Vec<u64>,
    }

    /// Time passed: what expired, what became ready, and that keys and results were forgotten.
    struct Advanced {
        now: u64,
        expired: Removal,
        /// Delayed requests in the order in which they become ready.
        promoted: Vec<(u64, u64)>,
    }

    /// Requests too large for any batch were dead-lettered.
    struct Buried {
        removal: Removal,
        dead: Vec<(u64, Dead)>,
    }

    /// A batch was formed of the first ready requests.
    struct Formed {
        /// The cursor from here on, and the position of the last moved one that was taken.
        cursor: u64,
        moved_to: u64,
        /// The stretch that was cut, if one was.
        changes: Vec<Change>,
        requests: u32,
        bytes: u64,
        at: u64,
        context: Bytes,
    }

    /// A batch was claimed.
    struct Claimed {
        batch: u64,
        fence: u64,
        until: u64,
        formed: Option<Formed>,
    }

    /// A member comes back.
    struct Returned {
        position: u64,
        id: u64,
        bytes: u64,
        expires_at: u64,
        attempts: u32,
        error: Blob,
        /// When it is due; `None`: at once.
        due: Option<u64>,
    }

    /// What becomes of members that are not done when their batch ends.
    struct Ending {
        returned: Vec<Returned>,
        /// By position and id.
        dead: Vec<((u64, u64), Dead)>,
        /// Those that were cancelled or have expired, by position and id.
        gone: Vec<(u64, u64)>,
        cancelled: u64,
        expired: u64,
        gone_bytes: u64,
    }

    /// One of the two batches that a split makes.
    struct Half {
        batch: u64,
        requests: u32,
        bytes: u64,
    }

    struct Split {
        now: u64,
        /// The last position of the first half.
        boundary: u64,
        first: Half,
        second: Half,
        until: u64,
        ending: Ending,
    }

    struct Finished {
        now: u64,
        rest: Option<Rest>,
        until: u64,
        ending: Ending,
    }

    /// Outcomes were recorded.
    struct Recorded {
        page: Page,
        /// Position, kind and payload bytes of each.
        outcomes: Vec<(u64, (u8, u64))>,
    }

    /// A holder's step on its batch.
    struct Updated {
        batch: u64,
        checkpoint: Option<Bytes>,
        recorded: Vec<Recorded>,
        then: Then,
    }

    /// Requests were cancelled, and members marked, by batch and id.
    struct CancelledAll {
        removal: Removal,
        marked: Vec<(u64, u64)>,
    }

    /// Dead letters became ready at the tail.
    struct Redriven {
        now: u64,
        ids: Vec<u64>,
    }

    struct Purged {
        ids: Vec<u64>,
    }

    /// A stretch lies elsewhere from here on, with what is still needed of it.
    #[derive(Copy)]
    struct Carried {
        first: u64,
        /// Where its only piece lies in the body.
        offset: u32,
        bytes: u32,
        requests: u32,
    }

    /// Blobs lie elsewhere from here on.
    struct Rewritten {
        blobs: BTreeMap<Blob, Blob>,
    }

    /// A baseline is whole: the parts of it, in order, and where the scan goes on from.
    struct Baseline {
        parts: Vec<Blob>,
        segment: u32,
        offset: u32,
    }

    /// A part of all that is stored of a queue, which was taken in from elsewhere.
    struct Restoring {
        is_first: bool,
        part: Bytes,
    }

    /// An event of one queue.
    struct Of {
        queue: u32,
        what: What,
    }
}

choice! {
    /// What happens to a batch next.
    enum Then {
        Hold(u64) = 0,
        Release(()) = 1,
        Defer(u64) = 2,
        Split(Split) = 3,
        Finish(Finished) = 4,
    }

    /// What happened to a queue.
    enum What {
        Made(Made) = 0,
        Pushed(Pushed) = 1,
        Advanced(Advanced) = 2,
        Buried(Buried) = 3,
        Claimed(Claimed) = 4,
        Updated(Updated) = 5,
        Cancelled(CancelledAll) = 6,
        Redriven(Redriven) = 7,
        Purged(Purged) = 8,
        /// Batches that were held are offered: their holders are gone.
        Offered(()) = 9,
        Carried(Carried) = 10,
        Rewritten(Rewritten) = 11,
        Restoring(Restoring) = 12,
        /// The queue is what the parts before said.
        Restored(()) = 13,
    }

    enum Event {
        Of(Box<Of>) = 0,
        Baseline(Baseline) = 1,
    }
}

impl Default for Then {
    fn default() -> Self {
        Self::Release(())
    }
}

impl Default for What {
    fn default() -> Self {
        Self::Offered(())
    }
}
