//! How much of the owner's memory all clients may take together.
//!
//! ```text
//!   of each connection   64 KiB of a frame    a call of 256 KiB    64 KiB of an answer     for these it never waits
//!   of all together      frames 192 MiB ────▶ calls 192 MiB ─────▶ answers 192 MiB         for these it does
//!                        until decoded        until done           until written
//! ```
//! - What is larger than a connection's own part counts as a whole, and is taken in one piece before the memory is. Of a call that shows
//!   only as it is decoded: so that is done one at a time, which is the one call more that there may be.
//! - Who waits for a share holds at most something of one further left. What is held of calls is given back by the store, and what
//!   is held of answers by being written, so nobody waits for ever.
//! - A client may be slow for as long as nobody waits. If somebody does, a frame or an answer that is slower than [`PACE`] ends.
//! - The store makes at most [`PAGES`] pages at the same time, which it keeps small by itself.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch},
    time::sleep,
};

use crate::control::wire::MAX_FRAME_BYTES;

/// What clients have taken, and may take.
#[derive(Debug)]
pub(super) struct Budget {
    /// Frames as they come, until they are decoded.
    pub(super) frames: Share,
    /// Decoded calls, until they are done.
    pub(super) calls: Share,
    /// Encoded answers, until they are written.
    pub(super) answers: Share,
    decoding: Semaphore,
    pages: Semaphore,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self {
            frames: Share::new(OWN_FRAME_BYTES, FRAMES_BYTES),
            calls: Share::new(OWN_CALL_BYTES, CALLS_BYTES),
            answers: Share::new(OWN_ANSWER_BYTES, ANSWERS_BYTES),
            decoding: Semaphore::new(1),
            pages: Semaphore::new(PAGES),
        }
    }

    /// The turn to decode a large call, which may take as much as the largest until it is known. Cancel safe.
    pub(super) async fn call(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.decoding.acquire().await.ok()
    }

    /// A turn to have the store make a page. Cancel safe.
    pub(super) async fn page(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.pages.acquire().await.ok()
    }
}

/// A part of the budget.
#[derive(Debug)]
pub(super) struct Share {
    /// What a connection may have of it in any case.
    own_bytes: usize,
    /// What all others may have of it together.
    shared_bytes: usize,
    free: Arc<Semaphore>,
    /// How many wait.
    waiting: watch::Sender<usize>,
}

/// Bytes that were taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    /// None for a connection's own.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Share {
    fn new(own_bytes: usize, shared_bytes: usize) -> Self {
        Self {
            own_bytes,
            shared_bytes,
            free: Arc::new(Semaphore::new(shared_bytes)),
            waiting: watch::Sender::new(0),
        }
    }

    /// What a connection may have of it in any case.
    pub(super) fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    /// The most that one may have.
    pub(super) fn most_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// So many bytes, as soon as they are there; `None` if that is more than there ever are. Cancel safe.
    pub(super) async fn take(&self, bytes: usize) -> Option<Taken> {
        if bytes <= self.own_bytes {
            return Some(Taken::nothing());
        }
        let count = u32::try_from(bytes).ok()?;
        if bytes > self.shared_bytes {
            return None;
        }
        let free = Arc::clone(&self.free);
        if let Ok(permit) = Arc::clone(&free).try_acquire_many_owned(count) {
            return Some(Taken::of(permit));
        }
        let _waiting = Waiting::new(&self.waiting);
        free.acquire_many_owned(count).await.ok().map(Taken::of)
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        *self.waiting.borrow()
    }

    /// Ends once so many bytes could have gone through the socket long ago, and somebody waits for what they take.
    pub(super) async fn overdue(&self, bytes: usize) {
        if bytes <= self.own_bytes {
            return std::future::pending().await;
        }
        slower_than_pace(bytes).await;
        // The sender is here, so it does not end.
        let _ = self.waiting.subscribe().wait_for(|count| *count > 0).await;
    }
}

impl Taken {
    /// Nothing of the share.
    pub(super) fn nothing() -> Self {
        Self { _permit: None }
    }

    fn of(permit: OwnedSemaphorePermit) -> Self {
        Self {
            _permit: Some(permit),
        }
    }
}

/// Counts as one that waits until it is dropped.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Ends once a client at a fair pace would be done with so many bytes.
pub(super) async fn slower_than_pace(bytes: usize) {
    let seconds = u32::try_from(bytes / PACE).unwrap_or(u32::MAX);
    sleep(PATIENCE + Duration::from_secs(seconds.into())).await;
}

const OWN_FRAME_BYTES: usize = 64 << 10;
const OWN_CALL_BYTES: usize = 256 << 10;
const OWN_ANSWER_BYTES: usize = 64 << 10;
/// Each: the largest, and more of the usual ones.
const FRAMES_BYTES: usize = MAX_FRAME_BYTES + (32 << 20);
const CALLS_BYTES: usize = MAX_FRAME_BYTES + (32 << 20);
const ANSWERS_BYTES: usize = MAX_FRAME_BYTES + (32 << 20);
/// How many pages are made at the same time.
const PAGES: usize = 4;
/// Bytes a second; a socket takes a hundred times as many.
const PACE: usize = 10 << 20;
const PATIENCE: Duration = Duration::from_secs(1);
