//! Why nothing has gone yet, and when it will.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::engine::Standing;
use crate::{
    clock::Timestamp,
    policy::{Decision, Policy, Trigger},
    request::QueueName,
    stats::Stats,
};

/// Why a queue's requests have not left yet, and when they will: the dispatcher's own decision, in words.
///
/// ```text
/// queue "default": the next batch leaves in 1m 12s at the latest
///   ready: 17 of 50000 requests, 4096 bytes
///   oldest: 48s old, leaves when 2m old
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The queue.
    pub queue: QueueName,
    /// When it was explained.
    pub at: Timestamp,
    /// What the queue held.
    pub stats: Stats,
    /// The answer in one sentence.
    pub summary: String,
    /// When something happens at the latest without anybody doing anything; `None`: nothing will, or
    /// it depends on a handler.
    pub next: Option<Timestamp>,
    /// How many ready requests let a batch leave, if a dispatcher serves the queue.
    pub queue_threshold: Option<u64>,
    /// How old the oldest ready request gets, in seconds, if a dispatcher serves the queue.
    pub time_threshold_seconds: Option<f64>,
    /// The facts behind it.
    pub details: Vec<String>,
}

impl Explanation {
    pub(super) fn new(
        queue: QueueName,
        policy: &Policy,
        stats: Stats,
        standing: Standing,
        now: Timestamp,
    ) -> Self {
        let in_ = |at: Timestamp| Span(at.since(now));
        let (summary, next) = match standing {
            Standing::Paused => ("the dispatcher is paused; resume it".to_owned(), None),
            Standing::QueuePaused(since) => {
                (format!("the queue has been paused since {since}; resume it"), None)
            }
            Standing::ShuttingDown => ("the dispatcher is shutting down".to_owned(), None),
            Standing::Failed(until) => {
                (format!("the queue failed; it is tried again in {}", in_(until)), Some(until))
            }
            Standing::NotLooked => ("the queue is looked at right now".to_owned(), Some(now)),
            Standing::NoSlot => (
                format!(
                    "all {} slots of the queue are in use; the next batch leaves when a handler is done{}",
                    policy.max_in_flight,
                    or_released(policy, &stats)
                ),
                None,
            ),
            Standing::NoTotalSlot => {
                ("all slots of the dispatcher are in use; the next batch leaves when a handler is done".to_owned(), None)
            }
            Standing::Outage(until) => {
                (format!("the handler reported an outage; one batch probes in {}", in_(until)), Some(until))
            }
            Standing::Probing => {
                ("after an outage, one batch probes; the others leave when it succeeds".to_owned(), None)
            }
            Standing::Free(Decision::Dispatch(None)) => {
                ("a batch that was handed out before is offered again now".to_owned(), Some(now))
            }
            Standing::Free(Decision::Dispatch(Some(trigger))) => {
                (format!("a batch leaves now: {}", reason(trigger)), Some(now))
            }
            Standing::Free(Decision::Sleep { until: None }) => ("nothing waits".to_owned(), None),
            Standing::Free(Decision::Sleep { until: Some(until) }) => {
                (format!("{} in {} at the latest", what_comes(&stats, until), in_(until)), Some(until))
            }
        };
        Self {
            queue_threshold: Some(policy.queue_threshold.get().into()),
            time_threshold_seconds: Some(policy.time_threshold.as_secs_f64()),
            summary,
            next,
            details: details(Some(policy), &stats, now),
            ..Self::of(queue, stats, now)
        }
    }

    /// Of a queue that no dispatcher is known to serve: nothing will leave by itself, and this is what there is.
    pub fn unserved(queue: QueueName, stats: Stats, now: Timestamp) -> Self {
        let summary = match stats.paused_at {
            Some(since) => format!(
                "no dispatcher that can be asked serves it, and it has been paused since {since}"
            ),
            None => "no dispatcher that can be asked serves it; start one, or ask where it runs"
                .to_owned(),
        };
        Self {
            summary,
            details: details(None, &stats, now),
            ..Self::of(queue, stats, now)
        }
    }

    fn of(queue: QueueName, stats: Stats, now: Timestamp) -> Self {
        Self {
            queue,
            at: now,
            stats,
            summary: String::new(),
            next: None,
            queue_threshold: None,
            time_threshold_seconds: None,
            details: Vec::new(),
        }
    }
}

/// What else may free a slot: an offered batch may be one that was released from a holder here that hangs.
fn or_released(policy: &Policy, stats: &Stats) -> String {
    if stats.offered == 0 {
        return String::new();
    }
    format!(
        ", or was released from its batch and hears of it at its next heartbeat, within {}: {} offered",
        Span(policy.heartbeat_interval),
        match stats.offered {
            1 => "1 batch is".to_owned(),
            many => format!("{many} batches are"),
        }
    )
}

fn reason(trigger: Trigger) -> &'static str {
    match trigger {
        Trigger::Count => "queue_threshold is reached",
        Trigger::Bytes => "max_batch_bytes are ready",
        Trigger::Age => "the oldest request is time_threshold old",
        Trigger::Flush => "a flush was asked for",
    }
}

fn what_comes(stats: &Stats, until: Timestamp) -> &'static str {
    if stats.next_due == Some(until) {
        "a delayed request becomes ready"
    } else if stats.next_offer == Some(until) {
        "a batch that was handed out before is offered again"
    } else {
        "the next batch leaves"
    }
}

fn details(policy: Option<&Policy>, stats: &Stats, now: Timestamp) -> Vec<String> {
    let mut details = Vec::new();
    if stats.ready > 0 {
        let most = policy.map_or(u64::MAX, |policy| policy.max_batch_bytes.get());
        let bytes = match most {
            u64::MAX => format!("{} bytes", stats.ready_bytes),
            most => format!("{} of {most} bytes", stats.ready_bytes),
        };
        let most = policy.map_or_else(String::new, |policy| {
            format!(" of {}", policy.queue_threshold)
        });
        details.push(format!("ready: {}{most} requests, {bytes}", stats.ready));
    }
    if let Some(oldest) = stats.oldest_ready_at {
        let leaves = policy.map_or_else(String::new, |policy| {
            format!(", leaves when {} old", Span(policy.time_threshold))
        });
        details.push(format!("oldest: {} old{leaves}", Span(now.since(oldest))));
    }
    if let Some(due) = stats.next_due {
        details.push(format!(
            "delayed: {} requests, the next is due in {}",
            stats.delayed,
            Span(due.since(now))
        ));
    }
    if stats.batches > 0 {
        let next = stats.next_offer.map_or(String::new(), |at| {
            format!(
                "; the next is offered again in {} unless its holder says otherwise",
                Span(at.since(now))
            )
        });
        details.push(format!(
            "in flight: {} requests in {} batches, {} offered again now{next}",
            stats.in_flight, stats.batches, stats.offered
        ));
    }
    if stats.dead > 0 {
        details.push(format!(
            "dead: {} requests wait for a redrive or a purge",
            stats.dead
        ));
    }
    details
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {:?}: {}", self.queue, self.summary)?;
        self.details
            .iter()
            .try_for_each(|detail| write!(f, "\n  {detail}"))
    }
}

/// A duration for people, to the second, and to the millisecond below one.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        if seconds == 0 {
            return write!(f, "{}ms", self.0.as_millis());
        }
        let parts = [
            (seconds / 3600, "h"),
            (seconds / 60 % 60, "m"),
            (seconds % 60, "s"),
        ];
        let mut shown = parts.iter().filter(|(count, _)| *count > 0).peekable();
        while let Some((count, unit)) = shown.next() {
            write!(
                f,
                "{count}{unit}{}",
                if shown.peek().is_some() { " " } else { "" }
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::decide;

    const NOON: Timestamp = Timestamp::from_millis(43_200_000);

    #[test]
    fn it_says_what_is_missing_and_when_a_batch_leaves() {
        let policy = Policy {
            time_threshold: Duration::from_secs(120),
            ..Policy::default()
        };
        let stats = Stats {
            ready: 17,
            ready_bytes: 4096,
            oldest_ready_at: Some(NOON.before(Duration::from_secs(48))),
            ..Stats::default()
        };
        let standing = Standing::Free(decide(&policy, &stats, None, NOON));
        let explanation = Explanation::new(QueueName::default(), &policy, stats, standing, NOON);
        assert_eq!(
            explanation.to_string(),
            "queue \"default\": the next batch leaves in 1m 12s at the latest\n  \
             ready: 17 of 50000 requests, 4096 bytes\n  \
             oldest: 48s old, leaves when 2m old"
        );
    }

    #[test]
    fn it_says_what_a_batch_waits_for_that_was_released_from_a_holder_that_hangs() {
        let policy = Policy {
            max_in_flight: std::num::NonZeroU32::MIN,
            ..Policy::default()
        };
        let said = |offered| {
            let stats = Stats {
                offered,
                ..Stats::default()
            };
            let queue = QueueName::default();
            Explanation::new(queue, &policy, stats, Standing::NoSlot, NOON).summary
        };
        assert!(said(0).ends_with("when a handler is done"), "{}", said(0));
        let released = "at its next heartbeat, within 15s: 1 batch is offered";
        assert!(said(1).ends_with(released), "{}", said(1));
    }

    #[test]
    fn spans_read_as_people_write_them() {
        for (millis, want) in [
            (0, "0ms"),
            (999, "999ms"),
            (60_000, "1m"),
            (7_205_000, "2h 5s"),
        ] {
            assert_eq!(Span(Duration::from_millis(millis)).to_string(), want);
        }
    }
}
