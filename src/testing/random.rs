//! Random lives of queues: one printed seed drives any backend, and compares it with another.
//!
//! ```text
//!   seed ─▶ Step, Step, Step ... ─┬─▶ Pilot on a queue ────▶ what was seen ─┐
//!                                 └─▶ Pilot on another ────▶ what was seen ─┴─▶ the same?
//! ```
//! A [`Step`] names requests, batches and leases by number, so that it means the same on every queue.
//! The [`Pilot`] turns it into calls and answers what a caller could see, with ids as numbers again; on
//! the way it checks what must hold on any queue: counts add up, a batch keeps its members.

mod moments;
mod pilot;
mod step;

use std::{env, sync::Arc, time::Duration};

pub(super) use self::moments::moments;
use self::{
    pilot::Pilot,
    step::{Life, Step},
};
use crate::{
    clock::Timestamp,
    queue::{Queue, QueueOptions},
};

/// Drives two empty queues, opened with the same options, with the same random verbs, and compares
/// all that a caller can see.
///
/// Verbs that either does not declare are left out. `MemoryQueue` is the usual `one`: the reference.
///
/// # Panics
/// At the first difference, telling the seed, the step, and what was seen on each.
pub async fn differential(one: Arc<dyn Queue>, other: Arc<dyn Queue>, seed: u64, steps: u32) {
    let (mut one, mut other) = (Pilot::new(one), Pilot::new(other));
    let mut life = Life::new(seed, one.can(&other));
    for number in 0..steps {
        let (now, step) = life.next();
        compare(&mut one, &mut other, now, &step, seed, number).await;
    }
    let end = life.long_after();
    compare(&mut one, &mut other, end, &Step::Drain, seed, steps).await;
}

/// As [`differential`], and now and then closes and opens `other` by way of `reopen`.
pub(super) async fn differential_across_restarts(
    one: Arc<dyn Queue>,
    other: Arc<dyn Queue>,
    seed: u64,
    steps: u32,
    reopen: impl AsyncFn(Arc<dyn Queue>) -> Arc<dyn Queue>,
) {
    let (mut one, mut other) = (Pilot::new(one), Pilot::new(other));
    let mut life = Life::new(seed, one.can(&other));
    for number in 0..steps {
        if number % RESTARTS_EVERY == RESTARTS_EVERY - 1 {
            let now = life.now();
            compare(&mut one, &mut other, now, &Step::LetGo, seed, number).await;
            let (queue, memory) = other.put_down();
            other = memory.take_up(reopen(queue).await);
        }
        let (now, step) = life.next();
        compare(&mut one, &mut other, now, &step, seed, number).await;
    }
    let end = life.long_after();
    compare(&mut one, &mut other, end, &Step::Drain, seed, steps).await;
}

/// As [`differential_across_restarts`], with everything taken to other queues instead.
pub(super) async fn differential_across_queues(
    one: Arc<dyn Queue>,
    other: Arc<dyn Queue>,
    seed: u64,
    steps: u32,
    carry: impl AsyncFn(Arc<dyn Queue>, Timestamp) -> Arc<dyn Queue>,
) {
    let (mut one, mut other) = (Pilot::new(one), Pilot::new(other));
    let mut life = Life::new(seed, one.can(&other));
    for number in 0..steps {
        if number % RESTARTS_EVERY == RESTARTS_EVERY - 1 {
            let now = life.now();
            compare(&mut one, &mut other, now, &Step::LetGo, seed, number).await;
            let (queue, memory) = other.put_down();
            other = memory.take_up(carry(queue, now).await);
            // Cursors of results begin anew.
            one.read_results_anew();
            other.read_results_anew();
        }
        let (now, step) = life.next();
        compare(&mut one, &mut other, now, &step, seed, number).await;
    }
    let end = life.long_after();
    compare(&mut one, &mut other, end, &Step::Drain, seed, steps).await;
}

async fn compare(
    one: &mut Pilot,
    other: &mut Pilot,
    now: Timestamp,
    step: &Step,
    seed: u64,
    number: u32,
) {
    let first = one.take(now, step).await;
    let second = other.take(now, step).await;
    assert!(
        first == second,
        "seed {seed}, step {number}, at {now}: {step:?}\n  one:   {first}\n  other: {second}"
    );
    let (first, second) = (one.look(now).await, other.look(now).await);
    assert!(
        first == second,
        "seed {seed}, after step {number}, at {now}: {step:?}\n  one:   {first}\n  other: {second}"
    );
}

/// Drives one queue at random and settles what is left: every request ends in exactly one state.
pub(super) async fn conservation(queue: Arc<dyn Queue>, seed: u64, steps: u32) {
    let mut pilot = Pilot::new(queue);
    let mut life = Life::new(seed, pilot.can(&pilot));
    for _ in 0..steps {
        let (now, step) = life.next();
        pilot.take(now, &step).await;
        pilot.look(now).await;
    }
    let end = life.long_after();
    pilot.take(end, &Step::Drain).await;
    pilot.look(end).await;
}

/// A [`differential`] in which each step is chosen by a number, and what happens between two of them by the caller.
#[cfg(feature = "fuzzing")]
pub(crate) struct Duel {
    one: Pilot,
    other: Pilot,
    life: Life,
    steps: u32,
}

#[cfg(feature = "fuzzing")]
impl Duel {
    pub(crate) fn new(one: Arc<dyn Queue>, other: Arc<dyn Queue>, goes_back: bool) -> Self {
        let (one, other) = (Pilot::new(one), Pilot::new(other));
        let can = one.can(&other);
        Self {
            one,
            other,
            life: Life::new(u64::from(!goes_back), can),
            steps: 0,
        }
    }

    /// Takes the step that this number stands for.
    pub(crate) async fn step(&mut self, choice: u64) {
        let (now, step) = self.life.chosen(choice);
        self.take(now, &step).await;
    }

    /// Gives back every batch that is held.
    pub(crate) async fn let_go(&mut self) {
        self.take(self.life.now(), &Step::LetGo).await;
    }

    /// Goes on with the other queue as it is found after a restart.
    pub(crate) fn take_up(self, queue: Arc<dyn Queue>) -> Self {
        let (_, memory) = self.other.put_down();
        Self {
            other: memory.take_up(queue),
            ..self
        }
    }

    /// Settles everything that is left.
    pub(crate) async fn end(&mut self) {
        self.take(self.life.long_after(), &Step::Drain).await;
    }

    async fn take(&mut self, now: Timestamp, step: &Step) {
        compare(&mut self.one, &mut self.other, now, step, 0, self.steps).await;
        self.steps += 1;
    }
}

/// The seed of `BATCHYARD_SEED`, or three that never change and one that always does; each is printed.
pub(super) fn seeds() -> Vec<u64> {
    let chosen = env::var("BATCHYARD_SEED").ok();
    let seeds = match chosen.map(|text| text.parse()) {
        Some(Ok(seed)) => vec![seed],
        Some(Err(error)) => panic!("BATCHYARD_SEED is not a number: {error}"),
        None => vec![1, 2, 3, fastrand::u64(..)],
    };
    println!("BATCHYARD_SEED: one of {seeds:?}");
    seeds
}

/// Options whose bounds and windows a random life meets often.
pub(crate) fn narrow() -> QueueOptions {
    QueueOptions::default()
        .max_requests(60)
        .max_bytes(500)
        .retention(Duration::from_secs(90))
        .idempotency_window(Duration::from_secs(60))
}

/// How many steps lie between two restarts.
const RESTARTS_EVERY: u32 = 25;
