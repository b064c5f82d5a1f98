//! How failures are spaced out: backoff with jitter, and the breaker of a queue.

use std::time::Duration;

use crate::{clock::Timestamp, policy::Policy};

/// How long to wait after the `attempt`-th failure in a row (from 1): exponential with full jitter.
///
/// `chance` in `0.0..1.0` picks the point between nothing and `initial_backoff * 2^(attempt - 1)`,
/// which is capped at `max_backoff`. Source of the rule: "full jitter" of the AWS Architecture Blog,
/// "Exponential Backoff And Jitter" (2015). `wait` is what the remote asked for at the least.
pub(crate) fn backoff(
    policy: &Policy,
    attempt: u32,
    chance: f64,
    wait: Option<Duration>,
) -> Duration {
    let doublings = attempt.saturating_sub(1).min(31);
    let ceiling = policy
        .initial_backoff
        .saturating_mul(1 << doublings)
        .min(policy.max_backoff);
    // Rounding may lift the longest durations there are over what fits.
    let seconds = ceiling.as_secs_f64() * chance.clamp(0.0, 1.0);
    Duration::try_from_secs_f64(seconds)
        .unwrap_or(ceiling)
        .max(wait.unwrap_or_default())
}

/// Keeps a queue from claiming while what its handler needs is down.
///
/// ```text
///            outage                 `until` passed, one claim
///   closed ─────────▶ open{until} ────────────────────────────▶ probing
///     ▲                   ▲                                      │   │
///     │                   └────────── outage, longer ────────────┘   │
///     └─────────────── anything but an outage ───────────────────────┘
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Breaker {
    state: BreakerState,
    /// Outages in a row.
    outages: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum BreakerState {
    #[default]
    Closed,
    Open {
        /// When that was decided: at an earlier time the clock has stepped back.
        since: Timestamp,
        until: Timestamp,
    },
    Probing,
}

/// Whether a queue may claim now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Yes.
    Open,
    /// Not before this time.
    ShutUntil(Timestamp),
    /// Not before the batch that probes has ended.
    ShutForProbe,
}

impl Breaker {
    /// Whether to claim at `now`.
    pub(crate) fn gate(&self, now: Timestamp) -> Gate {
        match self.state {
            BreakerState::Open { since, until } if (since..until).contains(&now) => {
                Gate::ShutUntil(until)
            }
            BreakerState::Closed | BreakerState::Open { .. } => Gate::Open,
            BreakerState::Probing => Gate::ShutForProbe,
        }
    }

    /// A batch was claimed: after an outage it is the probe.
    pub(crate) fn claimed(&mut self) {
        if matches!(self.state, BreakerState::Open { .. }) {
            self.state = BreakerState::Probing;
        }
    }

    /// A batch met an outage; answers until when the breaker is open now.
    pub(crate) fn outage(
        &mut self,
        policy: &Policy,
        now: Timestamp,
        chance: f64,
        wait: Option<Duration>,
    ) -> Timestamp {
        // Batches that were already under way when it opened tell nothing new.
        if let BreakerState::Open { since, until } = self.state {
            let until = until.max(now.after(wait.unwrap_or_default()));
            self.state = BreakerState::Open { since, until };
            return until;
        }
        self.outages = self.outages.saturating_add(1);
        // Half of the wait is certain, so that an outage is never probed in a tight loop.
        let pause = backoff(policy, self.outages, 0.5 + chance / 2.0, wait);
        let until = now.after(pause);
        self.state = BreakerState::Open { since: now, until };
        until
    }

    /// A batch ended otherwise than by an outage; answers whether that closed the breaker.
    pub(crate) fn passed(&mut self) -> bool {
        let was_closed = self.state == BreakerState::Closed;
        *self = Self::default();
        !was_closed
    }

    /// The batch that probed was given back untried: another may probe at once.
    pub(crate) fn untried(&mut self, now: Timestamp) {
        if self.state == BreakerState::Probing {
            let (since, until) = (now, now);
            self.state = BreakerState::Open { since, until };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> Policy {
        Policy {
            initial_backoff: SECOND,
            max_backoff: 10 * SECOND,
            ..Policy::default()
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_ceiling_and_honours_what_the_remote_asked() {
        let policy = policy();
        for (attempt, chance, wait, want) in [
            (1, 1.0, None, SECOND),
            (3, 1.0, None, 4 * SECOND),
            (3, 0.5, None, 2 * SECOND),
            (3, 0.0, None, Duration::ZERO),
            (50, 1.0, None, 10 * SECOND),
            (u32::MAX, 1.0, None, 10 * SECOND),
            (1, 0.0, Some(30 * SECOND), 30 * SECOND),
        ] {
            assert_eq!(
                backoff(&policy, attempt, chance, wait),
                want,
                "{attempt} {chance}"
            );
        }
    }

    #[test]
    fn the_longest_backoff_is_no_danger() {
        let longest = Policy {
            initial_backoff: Duration::MAX,
            max_backoff: Duration::MAX,
            ..policy()
        };
        assert_eq!(backoff(&longest, 1, 1.0, None), Duration::MAX);
    }

    #[test]
    fn an_outage_opens_it_and_one_probe_at_a_time_may_pass() {
        let (policy, start) = (policy(), Timestamp::from_millis(1_000_000));
        let mut breaker = Breaker::default();
        assert_eq!(breaker.gate(start), Gate::Open);

        let until = breaker.outage(&policy, start, 1.0, None);
        assert_eq!(until, start.after(SECOND));
        assert_eq!(breaker.gate(start), Gate::ShutUntil(until));
        // A second batch of the same outage changes nothing.
        assert_eq!(breaker.outage(&policy, start, 1.0, None), until);

        assert_eq!(breaker.gate(until), Gate::Open);
        breaker.claimed();
        assert_eq!(breaker.gate(until), Gate::ShutForProbe);

        let later = breaker.outage(&policy, until, 1.0, None);
        assert_eq!(
            later,
            until.after(2 * SECOND),
            "the second outage in a row waits twice as long"
        );
        breaker.claimed();
        assert!(breaker.passed());
        assert_eq!(breaker.gate(later), Gate::Open);
        assert!(!breaker.passed());
    }

    #[test]
    fn a_probe_that_was_given_back_untried_lets_another_probe() {
        let (policy, start) = (policy(), Timestamp::from_millis(5));
        let mut breaker = Breaker::default();
        let until = breaker.outage(&policy, start, 0.0, None);
        breaker.claimed();
        breaker.untried(until);
        assert_eq!(breaker.gate(until), Gate::Open);
    }
}
