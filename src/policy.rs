//! When a batch leaves, and how it may fail: a [`Policy`] and the pure decisions made with it.

mod policies;

use std::{
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use serde::Serialize;

pub use self::policies::Policies;
use crate::{
    batch::Due,
    clock::Timestamp,
    error::{Error, Result},
    stats::Stats,
};

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
    /// The queue is looked at this often even if nothing woke the dispatcher; at least 1 ms. Default: 10 minutes.
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
            queue_threshold: FIFTY_THOUSAND,
            time_threshold: Duration::from_secs(2 * 3600),
            time_interval: Duration::from_secs(10 * 60),
            max_batch_requests: None,
            max_batch_bytes: NonZeroU64::MAX,
            max_in_flight: FOUR,
            max_attempts: FIVE,
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
    /// For LLM batch APIs that answer within hours: 50,000 requests or 190 MiB a batch, whose
    /// oldest request waits 2 hours at the most; 8 in flight; 3 attempts, 1 minute to 1 hour apart.
    /// The limits are those of the smallest widespread provider (50,000 requests, 200 MB a file).
    pub fn llm_batch() -> Self {
        Self {
            max_batch_bytes: LLM_BATCH_BYTES,
            max_in_flight: EIGHT,
            max_attempts: THREE,
            initial_backoff: Duration::from_secs(60),
            max_backoff: Duration::from_secs(3600),
            ..Self::default()
        }
    }

    /// For bulk inserts into a database: 10,000 requests, 16 MiB or 1 second; 2 in flight.
    pub fn bulk_insert() -> Self {
        Self {
            queue_threshold: TEN_THOUSAND,
            time_threshold: Duration::from_secs(1),
            max_batch_bytes: BULK_INSERT_BYTES,
            max_in_flight: TWO,
            ..Self::default()
        }
    }

    /// For webhooks: 100 requests, 1 MiB or 1 second; 8 in flight; 10 attempts, up to 15 minutes apart.
    pub fn webhook() -> Self {
        Self {
            queue_threshold: HUNDRED,
            time_threshold: Duration::from_secs(1),
            max_batch_bytes: WEBHOOK_BYTES,
            max_in_flight: EIGHT,
            max_attempts: TEN,
            max_backoff: Duration::from_secs(15 * 60),
            ..Self::default()
        }
    }

    /// The most requests of a batch.
    pub fn max_batch_requests(&self) -> NonZeroU32 {
        self.max_batch_requests.unwrap_or(self.queue_threshold)
    }

    /// When a queue is due under this policy at `now`. `flush` asks for everything that became ready
    /// up to that time.
    pub fn due(&self, flush: Option<Timestamp>, now: Timestamp) -> Due {
        let aged = (now.since(Timestamp::EPOCH) >= self.time_threshold)
            .then(|| now.before(self.time_threshold));
        Due {
            requests: u64::from(self.queue_threshold.get()),
            bytes: self.max_batch_bytes.get(),
            oldest_at: aged.max(flush),
        }
    }

    /// Checks that the fields fit together.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), naming the fields.
    pub fn validate(&self) -> Result<()> {
        if self.heartbeat_interval.is_zero() || self.heartbeat_interval > self.lease_duration / 2 {
            return Err(Error::invalid(format!(
                "heartbeat_interval ({:?}) must be above zero and at most half of lease_duration ({:?})",
                self.heartbeat_interval, self.lease_duration
            )));
        }
        if self.time_interval < MIN_TIME_INTERVAL {
            return Err(Error::invalid(format!(
                "time_interval ({:?}) must be at least {MIN_TIME_INTERVAL:?}: looking more often would leave no time for \
the work; a push wakes a dispatcher anyway",
                self.time_interval
            )));
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

/// Why a new batch leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// `queue_threshold` requests are ready.
    Count,
    /// `max_batch_bytes` are ready: a full batch.
    Bytes,
    /// The oldest is `time_threshold` old.
    Age,
    /// Somebody asked for it.
    Flush,
}

impl Trigger {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Bytes => "bytes",
            Self::Age => "age",
            Self::Flush => "flush",
        }
    }
}

/// What to do with a queue now, and when that can change by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Claim: what is offered again first, then a new batch for the trigger, if there is one.
    Dispatch(Option<Trigger>),
    /// Nothing, until this time at the latest; `None`: until something happens.
    Sleep {
        /// When to decide again.
        until: Option<Timestamp>,
    },
}

/// Whether a queue is due at `now`. `flush` asks for everything that became ready up to that time.
///
/// It looks at nothing but its arguments, so it says the same in a test, after a restart, and in
/// an explanation.
pub fn decide(
    policy: &Policy,
    stats: &Stats,
    flush: Option<Timestamp>,
    now: Timestamp,
) -> Decision {
    let trigger = trigger(policy, stats, flush, now);
    if stats.offered > 0 || trigger.is_some() {
        return Decision::Dispatch(trigger);
    }
    let age = stats
        .oldest_ready_at
        .map(|oldest| oldest.after(policy.time_threshold));
    let until = [age, stats.next_due, stats.next_offer]
        .into_iter()
        .flatten()
        .min();
    Decision::Sleep { until }
}

/// Why a new batch would leave at `now`, if it would.
fn trigger(
    policy: &Policy,
    stats: &Stats,
    flush: Option<Timestamp>,
    now: Timestamp,
) -> Option<Trigger> {
    let met = |due: Due| due.is_met(stats.ready, stats.ready_bytes, stats.oldest_ready_at);
    let never = Due {
        requests: u64::MAX,
        bytes: u64::MAX,
        oldest_at: None,
    };
    let due = policy.due(None, now);
    if met(Due {
        requests: due.requests,
        ..never
    }) {
        Some(Trigger::Count)
    } else if met(Due {
        bytes: due.bytes,
        ..never
    }) {
        Some(Trigger::Bytes)
    } else if met(due) {
        Some(Trigger::Age)
    } else {
        met(policy.due(flush, now)).then_some(Trigger::Flush)
    }
}

/// A dispatcher that looks more often has no time for its batches.
const MIN_TIME_INTERVAL: Duration = Duration::from_millis(1);
const TWO: NonZeroU32 = NonZeroU32::new(2).expect("not zero");
const THREE: NonZeroU32 = NonZeroU32::new(3).expect("not zero");
const FOUR: NonZeroU32 = NonZeroU32::new(4).expect("not zero");
const FIVE: NonZeroU32 = NonZeroU32::new(5).expect("not zero");
const EIGHT: NonZeroU32 = NonZeroU32::new(8).expect("not zero");
const TEN: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
const HUNDRED: NonZeroU32 = NonZeroU32::new(100).expect("not zero");
const TEN_THOUSAND: NonZeroU32 = NonZeroU32::new(10_000).expect("not zero");
const FIFTY_THOUSAND: NonZeroU32 = NonZeroU32::new(50_000).expect("not zero");
const LLM_BATCH_BYTES: NonZeroU64 = NonZeroU64::new(190 << 20).expect("not zero");
const BULK_INSERT_BYTES: NonZeroU64 = NonZeroU64::new(16 << 20).expect("not zero");
const WEBHOOK_BYTES: NonZeroU64 = NonZeroU64::new(1 << 20).expect("not zero");

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp::from_millis(43_200_000);
    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> Policy {
        Policy {
            queue_threshold: TEN,
            time_threshold: 60 * SECOND,
            max_batch_bytes: WEBHOOK_BYTES,
            ..Policy::default()
        }
    }

    fn ready(ready: u64, ready_bytes: u64, age: Duration) -> Stats {
        Stats {
            ready,
            ready_bytes,
            oldest_ready_at: (ready > 0).then(|| NOON.before(age)),
            ..Stats::default()
        }
    }

    #[test]
    fn each_trigger_fires_at_its_limit_and_not_before() {
        let mib = 1 << 20;
        let at = |age: u32| Decision::Sleep {
            until: Some(NOON.before(age * SECOND).after(60 * SECOND)),
        };
        for (stats, want) in [
            (ready(0, 0, SECOND), Decision::Sleep { until: None }),
            (ready(9, 9, SECOND), at(1)),
            (
                ready(10, 10, SECOND),
                Decision::Dispatch(Some(Trigger::Count)),
            ),
            (ready(2, mib - 1, SECOND), at(1)),
            (
                ready(2, mib, SECOND),
                Decision::Dispatch(Some(Trigger::Bytes)),
            ),
            (ready(1, 1, 59 * SECOND), at(59)),
            (
                ready(1, 1, 60 * SECOND),
                Decision::Dispatch(Some(Trigger::Age)),
            ),
        ] {
            assert_eq!(decide(&policy(), &stats, None, NOON), want, "{stats:?}");
        }
    }

    #[test]
    fn a_flush_takes_what_was_ready_when_it_was_asked_for() {
        let stats = ready(1, 1, SECOND);
        let flush = |asked| decide(&policy(), &stats, Some(asked), NOON);
        assert_eq!(flush(NOON), Decision::Dispatch(Some(Trigger::Flush)));
        assert_eq!(
            flush(NOON.before(SECOND)),
            Decision::Dispatch(Some(Trigger::Flush))
        );
        assert!(matches!(
            flush(NOON.before(2 * SECOND)),
            Decision::Sleep { .. }
        ));
    }

    #[test]
    fn what_is_offered_again_goes_at_once_without_a_trigger() {
        let stats = Stats {
            offered: 1,
            ..ready(3, 3, SECOND)
        };
        assert_eq!(
            decide(&policy(), &stats, None, NOON),
            Decision::Dispatch(None)
        );
    }

    #[test]
    fn it_sleeps_until_the_first_thing_that_can_change_by_itself() {
        let (due, offer) = (NOON.after(5 * SECOND), NOON.after(7 * SECOND));
        let stats = Stats {
            next_due: Some(due),
            next_offer: Some(offer),
            ..ready(3, 3, SECOND)
        };
        assert_eq!(
            decide(&policy(), &stats, None, NOON),
            Decision::Sleep { until: Some(due) }
        );
    }

    #[test]
    fn fields_that_do_not_fit_together_are_named() {
        let bad = Policy {
            heartbeat_interval: 31 * SECOND,
            ..Policy::default()
        };
        assert!(
            bad.validate()
                .unwrap_err()
                .to_string()
                .contains("lease_duration")
        );
        for preset in [
            Policy::default(),
            Policy::llm_batch(),
            Policy::bulk_insert(),
            Policy::webhook(),
        ] {
            preset.validate().unwrap();
        }
    }
}
