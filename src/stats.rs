//! One consistent reading of a queue.

use serde::{Deserialize, Serialize};

use crate::{clock::Timestamp, request::Position};

/// What a queue holds at one moment: every acknowledged request in exactly one of the counts.
///
/// `pushed == delayed + ready + in_flight + done + dead + expired + cancelled + purged`, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Requests ever pushed (duplicates add nothing).
    pub pushed: u64,
    /// Requests that wait for their time.
    pub delayed: u64,
    /// When the first of them is due.
    pub next_due: Option<Timestamp>,
    /// Requests that wait for a batch: the depth.
    pub ready: u64,
    /// Their payload bytes.
    pub ready_bytes: u64,
    /// When the oldest of them (the first in order) became ready; a time in the future counts from
    /// when it was first seen, so this is never past the `now` that was asked with.
    pub oldest_ready_at: Option<Timestamp>,
    /// Members of open batches that have no `done` outcome.
    pub in_flight: u64,
    /// Open batches, held or not.
    pub batches: u64,
    /// Open batches that a claim would get now: orphans, released ones, deferred ones that are due.
    pub offered: u64,
    /// When the next of the other open batches will be offered, as things stand.
    pub next_offer: Option<Timestamp>,
    /// Requests ever done, past retention or not.
    pub done: u64,
    /// Dead letters held.
    pub dead: u64,
    /// Requests ever expired.
    pub expired: u64,
    /// Requests ever cancelled.
    pub cancelled: u64,
    /// Dead letters ever purged.
    pub purged: u64,
    /// Payload bytes of all requests that are delayed, ready or in flight: what bounds are about.
    pub held_bytes: u64,
    /// Since when dispatchers claim nothing from it, until it is resumed: see [`QueueExt::pause`](crate::QueueExt::pause).
    pub paused_at: Option<Timestamp>,
    /// When it was last flushed: what was ready by then leaves at once. See [`QueueExt::flush`](crate::QueueExt::flush).
    pub flushed_at: Option<Timestamp>,
}

impl Stats {
    /// Requests that are delayed, ready or in flight: what bounds are about.
    pub fn held(&self) -> u64 {
        let states = [self.delayed, self.ready, self.in_flight];
        states.into_iter().fold(0, u64::saturating_add)
    }

    /// Whether every pushed request is in exactly one state.
    pub fn adds_up(&self) -> bool {
        let states = [
            self.delayed,
            self.ready,
            self.in_flight,
            self.done,
            self.dead,
            self.expired,
            self.cancelled,
            self.purged,
        ];
        // They may have been read from anywhere, and be as large as numbers get.
        u128::from(self.pushed) == states.into_iter().map(u128::from).sum()
    }
}

/// Remembers when a ready time that lies in the future was first seen, for backends that compute
/// [`Stats::oldest_ready_at`].
///
/// ```
/// use batchyard::{Position, Timestamp, FirstSeen};
/// let (first, second) = (Position::from_u64(1), Position::from_u64(2));
/// let mut seen = FirstSeen::default();
/// let (noon, one, two) = (Timestamp::from_millis(12), Timestamp::from_millis(13), Timestamp::from_millis(14));
/// // Pushed at two o'clock, then the clock stepped back to noon: its age counts from noon.
/// assert_eq!(seen.clamp(first, two, noon), noon);
/// assert_eq!(seen.clamp(first, two, one), noon);
/// assert_eq!(seen.clamp(second, one, two), one);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstSeen(Option<(Position, Timestamp)>);

impl FirstSeen {
    /// The time from which the oldest request counts.
    pub fn clamp(&mut self, oldest: Position, ready_at: Timestamp, now: Timestamp) -> Timestamp {
        match self.0 {
            Some((position, seen)) if position == oldest => ready_at.min(seen).min(now),
            _ if ready_at <= now => ready_at,
            _ => {
                self.0 = Some((oldest, now));
                now
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A dump, or a server, may say anything; numbers that wrap around would make it look whole.
    #[test]
    fn counts_that_are_too_large_to_be_added_do_not_add_up() {
        let stats = Stats {
            pushed: 1,
            ready: u64::MAX,
            in_flight: 1,
            done: 1,
            ..Stats::default()
        };
        assert!(!stats.adds_up());
        assert_eq!(stats.held(), u64::MAX);
    }
}
