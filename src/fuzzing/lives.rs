//! Verbs on a journal that crashes, compared with those on a queue in memory that does not.

use std::sync::Arc;

use crate::{
    queue::{
        journal::fuzzing::{Image, Simulated},
        memory::MemoryQueue,
    },
    testing::random::{Duel, narrow},
};

/// Two bytes a step: one below `CRASHES` and how to crash, or any number that stands for a step.
pub fn lives(data: &[u8]) {
    let options = narrow();
    let mut store = Simulated::open(Image::new(), options).expect("an empty disk");
    let memory = Arc::new(MemoryQueue::new(options));
    let goes_back = data.len() % 2 == 1;
    let mut duel = Duel::new(memory, store.queue(), goes_back);
    for choice in data.as_chunks::<2>().0.iter().take(STEPS) {
        match *choice {
            [below, how] if below < CRASHES => {
                store.wait(duel.let_go());
                if how >= 128 {
                    store.idle();
                }
                store = store.crash(how, how.into()).expect("a crash is no damage");
                assert_no_damage(&store);
                duel = duel.take_up(store.queue());
            }
            choice => store.wait(duel.step(u16::from_le_bytes(choice).into())),
        }
    }
    store.wait(duel.end());
}

fn assert_no_damage(store: &Simulated) {
    let damaged = store
        .report()
        .iter()
        .find(|line| line.starts_with("damaged"));
    assert_eq!(damaged, None);
}

const CRASHES: u8 = 16;
/// So many at most, so that one life takes some milliseconds.
const STEPS: usize = 500;
