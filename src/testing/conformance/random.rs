//! Clauses about random lives; `BATCHYARD_SEED` repeats one.

use std::sync::Arc;

use super::bench::Bench;
use crate::{
    queue::{QueueOptions, memory::MemoryQueue},
    testing::random,
};

pub(super) async fn a_random_life_conserves_every_request(bench: Bench) {
    for seed in random::seeds() {
        let queue = bench.harness.open(QueueOptions::default()).await;
        random::conservation(queue, seed, STEPS).await;
    }
}

pub(super) async fn a_random_life_is_that_of_the_reference(bench: Bench) {
    let options = random::narrow();
    for seed in random::seeds() {
        let reference = Arc::new(MemoryQueue::new(options));
        let queue = bench.harness.open(options).await;
        random::differential(reference, queue, seed, STEPS).await;
    }
}

pub(super) async fn a_random_life_goes_on_across_restarts(bench: Bench) {
    let options = random::narrow();
    for seed in random::seeds() {
        let reference = Arc::new(MemoryQueue::new(options));
        let queue = bench.harness.open(options).await;
        let reopen = async |queue| {
            let queue = bench.harness.reopen(queue, options).await;
            queue.expect("a backend that declares survives_restart can be reopened")
        };
        random::differential_across_restarts(reference, queue, seed, STEPS, reopen).await;
    }
}

/// Enough to meet most pairs of verbs, few enough for a backend that syncs each one.
const STEPS: u32 = 400;
