//! The pure engine: which queue to look at, which to claim from, and how long nothing needs doing.
//!
//! It knows no clock, no queue and no task: readings, results and `now` go in, one [`Action`] at a
//! time comes out. The driver carries it out and tells the engine what came of it.

use std::{collections::BTreeMap, num::NonZeroU32, ops::Range, sync::Arc, time::Duration};

use crate::{
    batch::Due,
    clock::Timestamp,
    policy::{Decision, Policy, Trigger, decide},
    request::QueueName,
    retry::{Breaker, Gate},
    stats::Stats,
};

/// The state of all queues that one dispatcher serves.
#[derive(Debug)]
pub(super) struct Engine {
    lanes: BTreeMap<QueueName, Lane>,
    /// The most batches in handlers over all queues.
    max_in_flight: Option<NonZeroU32>,
    in_flight: u32,
    /// Claims ever made: the order in which queues were served.
    served: u64,
    paused: bool,
    stopping: bool,
    /// Everything leaves as soon as it is ready.
    draining: bool,
}

/// One queue as its dispatcher sees it.
#[derive(Debug)]
struct Lane {
    policy: Arc<Policy>,
    /// The last reading, and when it was taken; `None`: look again.
    reading: Option<(Stats, Timestamp)>,
    in_flight: u32,
    /// What became ready up to this time is to leave.
    flush: Option<Timestamp>,
    breaker: Breaker,
    /// The queue could not be read or claimed from: when that was, and until when it is left alone.
    failed: Option<Range<Timestamp>>,
    failures: u32,
    served: u64,
}

/// What the driver is to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Read the stats of this queue and tell [`Engine::looked`].
    Look(QueueName),
    /// Claim from this queue, a new batch only for the trigger and only while it is due, and tell [`Engine::claimed`].
    Claim(QueueName, Option<Trigger>, Due),
    /// Nothing until this time, or until something happens.
    Wait { until: Option<Timestamp> },
}

/// How a batch left its handler, as far as the engine cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Finished, split, deferred or lost: the handler answered, or could have.
    Tried,
    /// What the handler needs is down; not before this long.
    Outage(Option<Duration>),
    /// Given back without a verdict.
    Untried,
}

/// Why a queue is not claimed from now; what [`explain`](super::explain) words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Paused,
    /// By a directive, since then.
    QueuePaused(Timestamp),
    ShuttingDown,
    Failed(Timestamp),
    NotLooked,
    NoSlot,
    NoTotalSlot,
    Outage(Timestamp),
    Probing,
    Free(Decision),
}

/// Where a dispatcher and the queues that it serves stand.
#[derive(Debug)]
#[cfg(feature = "metrics")]
pub(crate) struct Surveyed {
    pub(crate) queues: Vec<(Arc<dyn crate::queue::Queue>, Option<SurveyedQueue>)>,
    pub(crate) slots_used: u32,
    pub(crate) max_in_flight: Option<NonZeroU32>,
    pub(crate) is_paused: bool,
}

/// Where a queue stands, if it was not given up.
#[derive(Debug)]
#[cfg(feature = "metrics")]
pub(crate) struct SurveyedQueue {
    pub(crate) policy: Arc<Policy>,
    pub(crate) slots_used: u32,
    pub(crate) is_breaker_open: bool,
}

impl Lane {
    /// When it is looked at again although nothing is known to have happened.
    fn fallback(&self) -> Option<Timestamp> {
        let (_, looked) = self.reading?;
        Some(looked.after(self.policy.time_interval))
    }
}

impl Engine {
    pub(super) fn new(max_in_flight: Option<NonZeroU32>) -> Self {
        Self {
            lanes: BTreeMap::new(),
            max_in_flight,
            in_flight: 0,
            served: 0,
            paused: false,
            stopping: false,
            draining: false,
        }
    }

    /// Serves a queue from now on.
    pub(super) fn serve(&mut self, queue: QueueName, policy: Arc<Policy>) {
        self.lanes.entry(queue).or_insert_with(|| Lane {
            policy,
            reading: None,
            in_flight: 0,
            flush: None,
            breaker: Breaker::default(),
            failed: None,
            failures: 0,
            served: 0,
        });
    }

    /// Gives a queue up.
    pub(super) fn give_up(&mut self, queue: &QueueName) {
        if let Some(lane) = self.lanes.remove(queue) {
            self.in_flight -= lane.in_flight;
        }
    }

    /// Where these queues stand.
    #[cfg(feature = "metrics")]
    pub(super) fn survey(
        &self,
        queues: &std::collections::HashMap<QueueName, Arc<dyn crate::queue::Queue>>,
        now: Timestamp,
    ) -> Surveyed {
        let of = |lane: &Lane| SurveyedQueue {
            policy: Arc::clone(&lane.policy),
            slots_used: lane.in_flight,
            is_breaker_open: lane.breaker.gate(now) != Gate::Open,
        };
        let queues = queues.iter();
        Surveyed {
            queues: queues
                .map(|(name, queue)| (Arc::clone(queue), self.lanes.get(name).map(of)))
                .collect(),
            slots_used: self.in_flight,
            max_in_flight: self.max_in_flight,
            is_paused: self.paused,
        }
    }

    /// How old the oldest ready request of a queue was at its last reading.
    pub(super) fn oldest_age(&self, queue: &QueueName, now: Timestamp) -> Option<Duration> {
        let (stats, _) = self.lanes.get(queue)?.reading?;
        Some(now.since(stats.oldest_ready_at?))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// What to do next. Among due queues, the one served longest ago comes first.
    pub(super) fn next(&mut self, now: Timestamp) -> Action {
        let mut due: Option<(u64, &QueueName, Option<Trigger>)> = None;
        let mut stale: Option<&QueueName> = None;
        let mut wake: Option<Timestamp> = None;
        let mut wake_at = |at: Timestamp| wake = Some(wake.map_or(at, |wake| wake.min(at)));
        for (name, lane) in &self.lanes {
            match self.standing(lane, now) {
                Standing::NotLooked if lane.reading.is_none() => return Action::Look(name.clone()),
                Standing::NotLooked => stale = stale.or(Some(name)),
                Standing::Failed(until) | Standing::Outage(until) => wake_at(until),
                Standing::Free(Decision::Dispatch(trigger)) => {
                    if due.is_none_or(|(served, ..)| lane.served < served) {
                        due = Some((lane.served, name, trigger));
                    }
                }
                Standing::Free(Decision::Sleep { until }) => {
                    until
                        .into_iter()
                        .chain(lane.fallback())
                        .for_each(&mut wake_at);
                }
                Standing::QueuePaused(_) => lane.fallback().into_iter().for_each(&mut wake_at),
                Standing::Paused
                | Standing::ShuttingDown
                | Standing::NoSlot
                | Standing::NoTotalSlot
                | Standing::Probing => {}
            }
        }
        match due {
            Some((_, name, trigger)) => {
                let due = self.lanes[name]
                    .policy
                    .due(self.flush_of(&self.lanes[name]), now);
                Action::Claim(name.clone(), trigger, due)
            }
            // Looking again comes after all else: where looking at all queues takes longer than the
            // interval, nothing would ever leave.
            None => match stale {
                Some(name) => Action::Look(name.clone()),
                None => Action::Wait { until: wake },
            },
        }
    }

    fn standing(&self, lane: &Lane, now: Timestamp) -> Standing {
        if self.stopping {
            return Standing::ShuttingDown;
        }
        // What was noted at a time that has not come was noted before the clock stepped back.
        if let Some(failed) = lane.failed.as_ref().filter(|failed| failed.contains(&now)) {
            return Standing::Failed(failed.end);
        }
        let Some((stats, looked)) = lane.reading.filter(|(_, looked)| *looked <= now) else {
            return Standing::NotLooked;
        };
        if self.paused {
            return Standing::Paused;
        }
        let is_stale = now.since(looked) >= lane.policy.time_interval;
        if let Some(since) = stats.paused_at {
            return if is_stale {
                Standing::NotLooked
            } else {
                Standing::QueuePaused(since)
            };
        }
        match lane.breaker.gate(now) {
            Gate::Open => {}
            Gate::ShutUntil(until) => return Standing::Outage(until),
            Gate::ShutForProbe => return Standing::Probing,
        }
        if lane.in_flight >= lane.policy.max_in_flight.get() {
            return Standing::NoSlot;
        }
        if self
            .max_in_flight
            .is_some_and(|most| self.in_flight >= most.get())
        {
            return Standing::NoTotalSlot;
        }
        let decision = decide(&lane.policy, &stats, self.flush_of(lane), now);
        // What a reading says about later times is only a hint: at its time, and as often as
        // `time_interval`, look again.
        match decision {
            Decision::Sleep { until } if until.is_some_and(|until| until <= now) || is_stale => {
                Standing::NotLooked
            }
            decision => Standing::Free(decision),
        }
    }

    fn flush_of(&self, lane: &Lane) -> Option<Timestamp> {
        if self.draining {
            return Some(Timestamp::MAX);
        }
        // Whoever asked for it may have a clock that is ahead.
        let directed = lane
            .reading
            .and_then(|(stats, looked)| Some(stats.flushed_at?.min(looked)));
        lane.flush.max(directed)
    }

    pub(super) fn stands(
        &self,
        queue: &QueueName,
        now: Timestamp,
    ) -> Option<(Standing, Option<Stats>)> {
        let lane = self.lanes.get(queue)?;
        Some((
            self.standing(lane, now),
            lane.reading.map(|(stats, _)| stats),
        ))
    }

    pub(super) fn policy(&self, queue: &QueueName) -> Option<Arc<Policy>> {
        self.lanes.get(queue).map(|lane| lane.policy.clone())
    }

    /// Something happened to a queue: its last reading is out of date.
    pub(super) fn changed(&mut self, queue: &QueueName) {
        if let Some(lane) = self.lanes.get_mut(queue) {
            lane.reading = None;
        }
    }

    /// A queue was read.
    pub(super) fn looked(&mut self, queue: &QueueName, stats: Stats, now: Timestamp) {
        if let Some(lane) = self.lanes.get_mut(queue) {
            lane.reading = Some((stats, now));
            (lane.failed, lane.failures) = (None, 0);
            let left = |asked: &Timestamp| stats.oldest_ready_at.is_some_and(|at| at <= *asked);
            lane.flush = lane.flush.filter(left);
        }
    }

    /// A claim from a queue got a batch, or nothing.
    pub(super) fn claimed(&mut self, queue: &QueueName, got_one: bool) {
        if let Some(lane) = self.lanes.get_mut(queue) {
            lane.reading = None;
            (lane.failed, lane.failures) = (None, 0);
            self.served += 1;
            lane.served = self.served;
            if got_one {
                lane.in_flight += 1;
                self.in_flight += 1;
                lane.breaker.claimed();
            }
        }
    }

    /// A call to a queue failed in a way that may pass: leave it alone for a while.
    pub(super) fn failed(&mut self, queue: &QueueName, now: Timestamp) {
        if let Some(lane) = self.lanes.get_mut(queue) {
            let wait = Duration::from_millis(100) * (1 << lane.failures.min(7));
            lane.failures = lane.failures.saturating_add(1);
            lane.failed = Some(now..now.after(wait));
            lane.reading = None;
        }
    }

    /// A batch left its handler; answers what happened to the queue's breaker.
    pub(super) fn ended(
        &mut self,
        queue: &QueueName,
        ended: Ended,
        now: Timestamp,
        chance: f64,
    ) -> BreakerChange {
        let Some(lane) = self.lanes.get_mut(queue) else {
            return BreakerChange::None;
        };
        lane.in_flight -= 1;
        lane.reading = None;
        self.in_flight -= 1;
        match ended {
            Ended::Tried if lane.breaker.passed() => BreakerChange::Closed,
            Ended::Tried => BreakerChange::None,
            Ended::Outage(wait) => {
                BreakerChange::Opened(lane.breaker.outage(&lane.policy, now, chance, wait))
            }
            Ended::Untried => {
                lane.breaker.untried(now);
                BreakerChange::None
            }
        }
    }

    /// Everything that is ready now is to leave.
    pub(super) fn flush(&mut self, now: Timestamp) {
        for lane in self.lanes.values_mut() {
            lane.flush = Some(now);
            lane.reading = None;
        }
    }

    /// Everything is to leave as soon as it is ready, or no longer.
    pub(super) fn drain(&mut self, draining: bool) {
        self.draining = draining;
        self.lanes.values_mut().for_each(|lane| lane.reading = None);
    }

    /// Whether every queue has been looked at and holds nothing that is not settled.
    pub(super) fn is_drained(&self) -> bool {
        let drained = |lane: &Lane| {
            lane.reading
                .is_some_and(|(stats, _)| stats.held() == 0 && stats.batches == 0)
        };
        self.in_flight == 0 && self.lanes.values().all(drained)
    }

    pub(super) fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }
}

/// What the end of a batch did to its queue's breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BreakerChange {
    None,
    Opened(Timestamp),
    Closed,
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp::from_millis(43_200_000);

    fn name(name: &str) -> QueueName {
        name.parse().unwrap()
    }

    fn engine(queues: &[&str], most: u32, total: Option<u32>) -> Engine {
        let policy = Arc::new(Policy {
            queue_threshold: NonZeroU32::new(10).unwrap(),
            max_in_flight: NonZeroU32::new(most).unwrap(),
            ..Policy::default()
        });
        let mut engine = Engine::new(total.and_then(NonZeroU32::new));
        for queue in queues {
            engine.serve(name(queue), policy.clone());
        }
        engine
    }

    fn ready(ready: u64) -> Stats {
        let oldest_ready_at = (ready > 0).then_some(NOON);
        Stats {
            ready,
            oldest_ready_at,
            pushed: ready,
            ..Stats::default()
        }
    }

    /// Answers looks with these readings until there is something else to do.
    fn settle(engine: &mut Engine, readings: &[(&str, u64)], now: Timestamp) -> Action {
        loop {
            match engine.next(now) {
                Action::Look(queue) => {
                    let depth = readings
                        .iter()
                        .find(|(of, _)| *of == queue.as_str())
                        .unwrap()
                        .1;
                    engine.looked(&queue, ready(depth), now);
                }
                action => return action,
            }
        }
    }

    #[test]
    fn a_queue_that_is_paused_waits_and_is_looked_at_again_by_and_by() {
        let mut engine = engine(&["a"], 1, None);
        let paused = Stats {
            paused_at: Some(NOON),
            ..ready(100)
        };
        let a = name("a");
        assert_eq!(engine.next(NOON), Action::Look(a.clone()));
        engine.looked(&a, paused, NOON);
        let later = NOON.after(Policy::default().time_interval);
        assert_eq!(engine.next(NOON), Action::Wait { until: Some(later) });
        let (standing, _) = engine.stands(&a, NOON).unwrap();
        assert_eq!(standing, Standing::QueuePaused(NOON));
        assert_eq!(engine.next(later), Action::Look(a.clone()));
        engine.looked(&a, ready(100), later);
        assert!(matches!(engine.next(later), Action::Claim(..)));
    }

    #[test]
    fn a_flush_that_another_process_asked_for_takes_what_was_ready_and_is_clamped() {
        let mut engine = engine(&["a"], 1, None);
        let (a, second) = (name("a"), Duration::from_secs(1));
        for (flushed_at, oldest, leaves) in [
            (NOON, NOON, true),
            (NOON, NOON.after(second), false),
            // By a clock that is ahead of ours.
            (NOON.after(10 * second), NOON.after(5 * second), false),
            (NOON.after(10 * second), NOON.after(second), true),
        ] {
            engine.changed(&a);
            let now = NOON.after(2 * second);
            assert_eq!(engine.next(now), Action::Look(a.clone()));
            let stats = Stats {
                oldest_ready_at: Some(oldest),
                flushed_at: Some(flushed_at),
                ..ready(1)
            };
            engine.looked(&a, stats, now);
            let is_claim = matches!(engine.next(now), Action::Claim(_, Some(Trigger::Flush), _));
            assert_eq!(is_claim, leaves, "{flushed_at} {oldest}");
        }
    }

    #[test]
    fn slots_go_to_the_due_queue_served_longest_ago() {
        let mut engine = engine(&["a", "b", "c"], 2, Some(4));
        let readings = [("a", 100), ("b", 100), ("c", 5)];
        let mut order = Vec::new();
        while let Action::Claim(queue, trigger, _) = settle(&mut engine, &readings, NOON) {
            assert_eq!(trigger, Some(Trigger::Count));
            order.push(queue.to_string());
            engine.claimed(&queue, true);
        }
        assert_eq!(
            order,
            ["a", "b", "a", "b"],
            "c is not due; two slots a queue, four in total"
        );
        engine.ended(&name("b"), Ended::Tried, NOON, 0.0);
        assert!(
            matches!(settle(&mut engine, &readings, NOON), Action::Claim(queue, ..) if queue == name("b"))
        );
    }

    #[test]
    fn a_busy_total_limit_lets_nobody_starve() {
        let mut engine = engine(&["a", "b"], 8, Some(1));
        let readings = [("a", 1000), ("b", 1000)];
        let mut order = String::new();
        for _ in 0..6 {
            let Action::Claim(queue, ..) = settle(&mut engine, &readings, NOON) else {
                panic!()
            };
            engine.claimed(&queue, true);
            assert!(matches!(
                settle(&mut engine, &readings, NOON),
                Action::Wait { .. }
            ));
            engine.ended(&queue, Ended::Tried, NOON, 0.0);
            order.push_str(queue.as_str());
        }
        assert_eq!(order, "ababab");
    }

    #[test]
    fn an_outage_stops_claims_until_one_probe_has_passed() {
        let mut engine = engine(&["a"], 4, None);
        let (queue, readings) = (name("a"), [("a", 1000)]);
        engine.claimed(&queue, true);
        let BreakerChange::Opened(until) = engine.ended(&queue, Ended::Outage(None), NOON, 1.0)
        else {
            panic!("the breaker opens");
        };
        assert_eq!(
            settle(&mut engine, &readings, NOON),
            Action::Wait { until: Some(until) }
        );
        assert!(matches!(
            settle(&mut engine, &readings, until),
            Action::Claim(..)
        ));
        engine.claimed(&queue, true);
        assert_eq!(
            settle(&mut engine, &readings, until),
            Action::Wait { until: None },
            "one probe"
        );
        assert_eq!(
            engine.ended(&queue, Ended::Tried, until, 1.0),
            BreakerChange::Closed
        );
        assert!(matches!(
            settle(&mut engine, &readings, until),
            Action::Claim(..)
        ));
    }

    #[test]
    fn it_looks_again_at_the_interval_even_if_nothing_woke_it() {
        let mut engine = engine(&["a"], 1, None);
        let interval = Policy::default().time_interval;
        let wait = settle(&mut engine, &[("a", 0)], NOON);
        assert_eq!(
            wait,
            Action::Wait {
                until: Some(NOON.after(interval))
            }
        );
        assert_eq!(engine.next(NOON.after(interval)), Action::Look(name("a")));
    }

    #[test]
    fn a_clock_that_jumped_ahead_and_came_back_keeps_nothing_waiting() {
        let ahead = NOON.after(Duration::from_secs(365 * 24 * 3600));
        let noted: [fn(&mut Engine, Timestamp); 3] = [
            |_, _| {},
            |engine, now| engine.failed(&name("a"), now),
            |engine, now| {
                engine.claimed(&name("a"), true);
                engine.ended(&name("a"), Ended::Outage(None), now, 1.0);
            },
        ];
        for (number, note) in noted.into_iter().enumerate() {
            let mut engine = engine(&["a"], 1, None);
            settle(&mut engine, &[("a", 0)], ahead);
            note(&mut engine, ahead);
            assert_eq!(engine.next(NOON), Action::Look(name("a")), "{number}");
            engine.looked(&name("a"), ready(10), NOON);
            let next = engine.next(NOON);
            assert!(matches!(next, Action::Claim(..)), "{number}: {next:?}");
        }
    }

    #[test]
    fn a_clock_that_stands_still_keeps_nothing_waiting_that_is_due() {
        let mut engine = engine(&["a"], 2, None);
        for _ in 0..3 {
            let next = settle(&mut engine, &[("a", 10)], NOON);
            assert!(matches!(next, Action::Claim(..)), "{next:?}");
            engine.claimed(&name("a"), true);
            engine.ended(&name("a"), Ended::Tried, NOON, 0.0);
        }
    }

    #[test]
    fn looking_again_waits_while_there_is_something_to_claim() {
        let mut engine = engine(&["a", "b"], 1, None);
        settle(&mut engine, &[("a", 0), ("b", 100)], NOON);
        let late = NOON.after(Policy::default().time_interval);
        assert!(matches!(engine.next(late), Action::Claim(queue, ..) if queue == name("b")));
    }

    #[test]
    fn a_flush_is_over_when_what_was_ready_has_left() {
        let mut engine = engine(&["a"], 1, None);
        engine.flush(NOON);
        let Action::Claim(queue, trigger, _) = settle(&mut engine, &[("a", 3)], NOON) else {
            panic!()
        };
        assert_eq!(trigger, Some(Trigger::Flush));
        engine.claimed(&queue, true);
        engine.ended(&queue, Ended::Tried, NOON, 0.0);
        assert!(matches!(
            settle(&mut engine, &[("a", 0)], NOON),
            Action::Wait { .. }
        ));
        engine.changed(&queue);
        assert!(matches!(
            settle(&mut engine, &[("a", 1)], NOON),
            Action::Wait { .. }
        ));
    }

    #[test]
    fn a_failing_queue_is_left_alone_for_longer_and_longer() {
        let mut engine = engine(&["a"], 1, None);
        for wait in [100, 200, 400] {
            engine.failed(&name("a"), NOON);
            let until = NOON.after(Duration::from_millis(wait));
            assert_eq!(engine.next(NOON), Action::Wait { until: Some(until) });
            assert_eq!(engine.next(until), Action::Look(name("a")));
        }
    }

    #[test]
    fn paused_or_shutting_down_claims_nothing() {
        let mut engine = engine(&["a"], 1, None);
        engine.pause(true);
        assert_eq!(
            settle(&mut engine, &[("a", 100)], NOON),
            Action::Wait { until: None }
        );
        engine.pause(false);
        assert!(matches!(engine.next(NOON), Action::Claim(..)));
        engine.stop();
        assert_eq!(engine.next(NOON), Action::Wait { until: None });
    }

    #[test]
    fn draining_takes_everything_and_is_over_when_nothing_is_left() {
        let mut engine = engine(&["a"], 1, None);
        engine.drain(true);
        let Action::Claim(queue, trigger, _) = settle(&mut engine, &[("a", 1)], NOON) else {
            panic!()
        };
        assert_eq!(trigger, Some(Trigger::Flush));
        engine.claimed(&queue, true);
        assert!(!engine.is_drained());
        engine.ended(&queue, Ended::Tried, NOON, 0.0);
        settle(&mut engine, &[("a", 0)], NOON);
        assert!(engine.is_drained());
    }
}
