//! What this process did, counted as it happens.
//!
//! A queue has a label of its own if it is among the first that were seen, else it shares `_other`, and keeps what it has
//! until the process ends: a queue that moved from one label to another would make counters go back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    dispatcher::Event,
    error::ErrorKind,
    handler::{AttemptOutcomes, FailureKind},
    policy::Trigger,
    request::QueueName,
};

/// All that is counted.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// By label.
    pub(super) queues: BTreeMap<String, QueueTally>,
    pub(super) storage_errors: [u64; STORAGE_ERRORS.len()],
    pub(super) push_seconds: Histogram,
    /// A write or a sync has failed.
    pub(super) is_poisoned: bool,
    /// The queues that have a label of their own.
    labelled: BTreeSet<QueueName>,
    most_labels: usize,
}

/// What is counted of the queues of one label.
#[derive(Clone, Debug)]
pub(super) struct QueueTally {
    pub(super) claimed: [u64; CLAIMED.len()],
    pub(super) ended: [u64; ENDED.len()],
    pub(super) handler_errors: [u64; HANDLER_ERRORS.len()],
    pub(super) outcomes: AttemptOutcomes,
    pub(super) redriven: u64,
    pub(super) hung: u64,
    pub(super) breaker_opened: u64,
    pub(super) failures: u64,
    pub(super) batch_requests: Histogram,
    pub(super) batch_bytes: Histogram,
    pub(super) batch_wait: Histogram,
    pub(super) handler_seconds: Histogram,
}

impl Tally {
    pub(super) fn new(most_labels: usize) -> Self {
        Self {
            queues: BTreeMap::new(),
            storage_errors: Default::default(),
            push_seconds: Histogram::new(PUSH_BOUNDS),
            is_poisoned: false,
            labelled: BTreeSet::new(),
            most_labels,
        }
    }

    /// The label of a queue, which is seen from now on if it was not before.
    pub(super) fn label<'a>(&mut self, queue: &'a QueueName) -> &'a str {
        if !self.labelled.contains(queue) {
            if queue.as_str() == OTHER || self.labelled.len() >= self.most_labels {
                return OTHER;
            }
            self.labelled.insert(queue.clone());
        }
        queue.as_str()
    }

    pub(super) fn of(&mut self, queue: &QueueName) -> &mut QueueTally {
        let label = self.label(queue).to_owned();
        self.queues.entry(label).or_default()
    }

    /// A call to a queue failed.
    pub(super) fn failed(&mut self, kind: ErrorKind) {
        let counted = STORAGE_ERRORS.iter().position(|(_, of)| *of == kind);
        if let Some(at) = counted {
            self.storage_errors[at] += 1;
        }
        self.is_poisoned |= kind == ErrorKind::Poisoned;
    }

    pub(super) fn observe(&mut self, event: &Event) {
        match event {
            Event::Serving { queue } => drop(self.label(queue).len()),
            Event::Claimed {
                queue,
                requests,
                bytes,
                trigger,
                waited,
                ..
            } => {
                let of = self.of(queue);
                match trigger {
                    None => of.claimed[OFFERED] += 1,
                    Some(trigger) => {
                        of.claimed[nth_trigger(*trigger)] += 1;
                        of.batch_requests.observe(f64::from(*requests));
                        of.batch_bytes.observe(float(*bytes));
                        of.batch_wait
                            .observe(waited.unwrap_or_default().as_secs_f64());
                    }
                }
            }
            Event::AttemptEnded {
                queue,
                took,
                failure,
                outcomes,
                ..
            } => self.of(queue).attempt_ended(*took, *failure, outcomes),
            Event::Finished { queue, .. } => self.of(queue).ended[0] += 1,
            Event::Deferred { queue, .. } => self.of(queue).ended[1] += 1,
            Event::Released { queue, .. } => self.of(queue).ended[2] += 1,
            Event::Split { queue, .. } => self.of(queue).ended[3] += 1,
            Event::Rejected { queue, .. } => self.of(queue).ended[4] += 1,
            Event::LeaseLost { queue, .. } => self.of(queue).ended[5] += 1,
            Event::HandlerHung { queue, .. } => self.of(queue).hung += 1,
            Event::BreakerOpened { queue, .. } => self.of(queue).breaker_opened += 1,
            Event::QueueFailed { queue, .. } => self.of(queue).failures += 1,
            Event::BreakerClosed { .. } | Event::ShuttingDown => {}
        }
    }
}

impl Default for QueueTally {
    fn default() -> Self {
        Self {
            claimed: Default::default(),
            ended: Default::default(),
            handler_errors: Default::default(),
            outcomes: AttemptOutcomes::default(),
            redriven: 0,
            hung: 0,
            breaker_opened: 0,
            failures: 0,
            batch_requests: Histogram::new(REQUEST_BOUNDS),
            batch_bytes: Histogram::new(BYTE_BOUNDS),
            batch_wait: Histogram::new(WAIT_BOUNDS),
            handler_seconds: Histogram::new(HANDLER_BOUNDS),
        }
    }
}

impl QueueTally {
    fn attempt_ended(
        &mut self,
        took: Option<Duration>,
        failure: Option<FailureKind>,
        outcomes: &AttemptOutcomes,
    ) {
        if let Some(took) = took {
            self.handler_seconds.observe(took.as_secs_f64());
        }
        match failure {
            None => {}
            Some(FailureKind::Outage) => self.handler_errors[0] += 1,
            Some(FailureKind::Transient) => self.handler_errors[1] += 1,
            Some(FailureKind::Permanent) => self.handler_errors[2] += 1,
        }
        self.outcomes += *outcomes;
    }
}

/// How often values fell between fixed bounds.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    bounds: &'static [f64],
    /// One more than there are bounds.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    pub(super) fn observe(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket] += 1;
        self.sum += value;
    }

    /// Upper bounds, and how many values lie below each and above the one before.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().copied())
    }

    pub(super) fn sum(&self) -> f64 {
        self.sum
    }
}

fn nth_trigger(trigger: Trigger) -> usize {
    match trigger {
        Trigger::Count => 0,
        Trigger::Bytes => 1,
        Trigger::Age => 2,
        Trigger::Flush => 3,
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a sum of bytes is no exact matter"
)]
fn float(value: u64) -> f64 {
    value as f64
}

/// The label of all queues that have none of their own.
pub(super) const OTHER: &str = "_other";
pub(super) const CLAIMED: [&str; 5] = ["count", "bytes", "age", "flush", "offered"];
const OFFERED: usize = 4;
pub(super) const ENDED: [&str; 6] = [
    "finished",
    "deferred",
    "released",
    "split",
    "rejected",
    "lease_lost",
];
pub(super) const HANDLER_ERRORS: [&str; 3] = ["outage", "transient", "permanent"];
pub(super) const STORAGE_ERRORS: [(&str, ErrorKind); 5] = [
    ("corrupt", ErrorKind::Corrupt),
    ("internal", ErrorKind::Internal),
    ("poisoned", ErrorKind::Poisoned),
    ("queue_full", ErrorKind::QueueFull),
    ("unavailable", ErrorKind::Unavailable),
];
const REQUEST_BOUNDS: &[f64] = &[1.0, 10.0, 100.0, 1e3, 1e4, 5e4, 1e5];
const BYTE_BOUNDS: &[f64] = &[
    1024.0,
    16_384.0,
    262_144.0,
    1_048_576.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
];
const WAIT_BOUNDS: &[f64] = &[
    0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 7200.0, 14_400.0, 86_400.0,
];
const HANDLER_BOUNDS: &[f64] = &[
    0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 86_400.0,
];
const PUSH_BOUNDS: &[f64] = &[
    1e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 1.0, 5.0,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded_and_a_queue_keeps_its_own() {
        let mut tally = Tally::new(2);
        let names = ["a", "_other", "b", "c", "a", "c"].map(|name| name.parse().unwrap());
        let labels: Vec<String> = names
            .iter()
            .map(|name| tally.label(name).to_owned())
            .collect();
        assert_eq!(labels, ["a", "_other", "b", "_other", "a", "_other"]);
        tally.of(&names[3]).hung += 1;
        tally.of(&names[1]).hung += 1;
        assert_eq!(tally.queues["_other"].hung, 2);
    }
}
