//! What a queue is opened with: bounds, retention and windows.

use std::time::Duration;

use crate::error::{Error, Result};

/// Options of one queue; they are not stored, so give the same ones at every open.
///
/// ```
/// use std::time::Duration;
/// use batchyard::{QueueOptions, WhenFull};
/// let options = QueueOptions::default()
///     .max_requests(1_000_000)
///     .when_full(WhenFull::Block { timeout: Duration::from_secs(5) })
///     .retention(Duration::from_secs(24 * 3600));
/// assert_eq!(options.max_requests, 1_000_000);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// The most requests delayed, ready or in flight. Default: no bound.
    pub max_requests: u64,
    /// The most payload bytes of them. Default: no bound.
    pub max_bytes: u64,
    /// What a push does at a bound. Default: it is rejected.
    pub when_full: WhenFull,
    /// How long a done request can be looked up with its result after its batch has ended; past it,
    /// only counters remain. Default: one hour. [`Duration::MAX`]: for ever.
    pub retention: Duration,
    /// For how long an idempotency key is remembered after its push. Default: 24 hours.
    pub idempotency_window: Duration,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            max_requests: u64::MAX,
            max_bytes: u64::MAX,
            when_full: WhenFull::Reject,
            retention: Duration::from_secs(3600),
            idempotency_window: Duration::from_secs(24 * 3600),
        }
    }
}

impl QueueOptions {
    /// Sets [`max_requests`](Self::max_requests).
    #[must_use]
    pub fn max_requests(mut self, most: u64) -> Self {
        self.max_requests = most;
        self
    }

    /// Sets [`max_bytes`](Self::max_bytes).
    #[must_use]
    pub fn max_bytes(mut self, most: u64) -> Self {
        self.max_bytes = most;
        self
    }

    /// Sets [`when_full`](Self::when_full).
    #[must_use]
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.when_full = when_full;
        self
    }

    /// Sets [`retention`](Self::retention).
    #[must_use]
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Sets [`idempotency_window`](Self::idempotency_window).
    #[must_use]
    pub fn idempotency_window(mut self, window: Duration) -> Self {
        self.idempotency_window = window;
        self
    }

    /// Whether a push may have to wait.
    #[cfg(feature = "journal")]
    pub(crate) fn blocks(&self) -> bool {
        matches!(self.when_full, WhenFull::Block { .. })
    }

    /// Fails if a queue that holds this can't hold so much more.
    pub(crate) fn check_room(
        &self,
        (held, held_bytes): (u64, u64),
        (requests, bytes): (u64, u64),
    ) -> Result<()> {
        let over = held.saturating_add(requests) > self.max_requests
            || held_bytes.saturating_add(bytes) > self.max_bytes;
        if requests > 0 && over {
            return Err(self.full(held, held_bytes));
        }
        Ok(())
    }

    /// What a push over the bounds is answered.
    pub(crate) fn full(&self, held: u64, held_bytes: u64) -> Error {
        let bound = |most: u64, unit: &str| match most {
            u64::MAX => format!("any {unit}"),
            most => format!("{most} {unit}"),
        };
        Error::queue_full(format!(
            "the queue holds {held} requests and {held_bytes} bytes, and its bounds are {} and {}; push again once it has drained, or \
raise them",
            bound(self.max_requests, "requests"),
            bound(self.max_bytes, "bytes")
        ))
    }
}

/// What a push does when it would exceed the queue's bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Fails with [`QueueFull`](crate::ErrorKind::QueueFull) at once.
    Reject,
    /// Waits for room, and fails with `QueueFull` after this long. A push that alone exceeds the
    /// bounds fails at once.
    Block {
        /// How long to wait.
        timeout: Duration,
    },
}
