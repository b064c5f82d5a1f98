//! When a batch leaves, and how it may fail: a [`Policy`] and the pure decisions made with it.

use std::{
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use crate::error::{Error, Result};

/// When batches leave and how failures are treated; every field has a default.
///
/// ```
/// use std::{num::NonZeroU32, time::Duration};
/// use batchyard::Policy;
/// let policy = Policy {
///     queue_threshold: NonZeroU32::new(1_000).unwrap(),
///     time_threshold: Duration::from_secs(30),
///     ..Policy::default()
/// };
/// assert_eq!(policy.max_batch_requests().get(), 1_000);
/// policy.validate()?;
/// # Ok::<(), batchyard::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A batch leaves when this many requests are ready. Default: 50,000.
    pub queue_threshold: NonZeroU32,
    /// A batch leaves when the oldest ready request is this old. Default: 2 hours.
    pub time_threshold: Duration,
    /// The queue is looked at this often even if nothing woke the dispatcher. Default: 10 minutes.
    pub time_interval: Duration,
    /// The most requests of a batch. Default: `queue_threshold`.
    pub max_batch_requests: Option<NonZeroU32>,
    /// The most payload bytes of a batch; also a trigger: a batch leaves when this many are ready.
    /// Default: no limit.
    pub max_batch_bytes: NonZeroU64,
    /// The most batches of one queue in handlers at the same time. Default: 4.
    pub max_in_flight: NonZeroU32,
    /// How often a request may fail, or kill its holder, before it is isolated and dead-lettered.
    /// Default: 5.
    pub max_attempts: NonZeroU32,
    /// The wait after the first failure, doubled at each further one, with full jitter. Default: 1 second.
    pub initial_backoff: Duration,
    /// The longest wait after a failure. Default: 5 minutes.
    pub max_backoff: Duration,
    /// How long a batch stays held without a heartbeat: how soon a dead holder's batch is taken over.
    /// Default: 60 seconds.
    pub lease_duration: Duration,
    /// How often a holder says that it lives; at most half the `lease_duration`. Default: 15 seconds.
    pub heartbeat_interval: Duration,
    /// How long a handler may take with one batch before it is stopped. Default: no limit.
    pub handler_timeout: Option<Duration>,
    /// How long handlers may go on when the dispatcher shuts down. Default: 30 seconds.
    pub shutdown_timeout: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            queue_threshold: NonZeroU32::new(50_000).expect("not zero"),
            time_threshold: Duration::from_secs(2 * 3600),
            time_interval: Duration::from_secs(10 * 60),
            max_batch_requests: None,
            max_batch_bytes: NonZeroU64::MAX,
            max_in_flight: NonZeroU32::new(4).expect("not zero"),
            max_attempts: NonZeroU32::new(5).expect("not zero"),
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(5 * 60),
            lease_duration: Duration::from_secs(60),
            heartbeat_interval: Duration::from_secs(15),
            handler_timeout: None,
            shutdown_timeout: Duration::from_secs(30),
        }
    }
}

impl Policy {
    /// The most requests of a batch.
    pub fn max_batch_requests(&self) -> NonZeroU32 {
        self.max_batch_requests.unwrap_or(self.queue_threshold)
    }

    /// Checks that the fields fit together.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), naming the fields.
    pub fn validate(&self) -> Result<()> {
        if self.heartbeat_interval.is_zero() || self.heartbeat_interval * 2 > self.lease_duration {
            return Err(Error::invalid(format!(
                "heartbeat_interval ({:?}) must be above zero and at most half of lease_duration ({:?})",
                self.heartbeat_interval, self.lease_duration
            )));
        }
        if self.time_interval.is_zero() {
            return Err(Error::invalid("time_interval must be above zero"));
        }
        if self.initial_backoff > self.max_backoff {
            return Err(Error::invalid(format!(
                "initial_backoff ({:?}) must not be above max_backoff ({:?})",
                self.initial_backoff, self.max_backoff
            )));
        }
        Ok(())
    }
}
