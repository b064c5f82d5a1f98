//! The fold of what is on the disk is the state in memory; the fold of anything else is some state, which adds up.

use std::{collections::BTreeMap, sync::Arc};

use super::{Rig, SALT, life::Life, seeds};
use crate::{
    clock::Timestamp,
    queue::journal::{
        codec::{self, Codec, Input},
        disk::Disk,
        event::Event,
        fold::fold,
        log::{Found, LogOptions, Place, Scanned},
        published::Live,
        simulated::SimDisk,
        state::{QueueState, State},
    },
};

#[test]
fn what_is_found_on_the_disk_is_the_live_state() {
    for seed in seeds(LIVES) {
        match live(seed) {
            Ok(compared) => println!("seed {seed}: {compared} comparisons"),
            Err(why) => panic!("seed {seed}: {why}"),
        }
    }
}

pub(super) fn live(seed: u64) -> Result<usize, String> {
    let disk = SimDisk::new();
    let mut life = Life::begin(&disk, seed).map_err(|error| error.to_string())?;
    let mut compared = 0;
    for step in 0..STEPS {
        let what = life
            .step()
            .map_err(|error| format!("step {step}: {error}"))?;
        let image = disk.restart();
        let again = Rig::open(&image, false).map_err(|error| error.to_string())?;
        compared += 1;
        if !again.report.is_empty() {
            return Err(format!("step {step}, {what}: {:?}", again.report));
        }
        if life.rig.encoded() != again.encoded() {
            return Err(format!(
                "step {step}, {what}: the live state is {:#?}, and found is {:#?}",
                life.rig.core.lock().unwrap().state,
                again.core.lock().unwrap().state
            ));
        }
        let counted = recounted(&life.rig.encoded());
        if life.rig.encoded() != encoded(&counted) {
            return Err(format!(
                "step {step}, {what}: the live state is {:#?}, and counted again {counted:#?}",
                life.rig.core.lock().unwrap().state,
            ));
        }
    }
    Ok(compared)
}

fn encoded(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.put(&mut bytes);
    bytes
}

fn recounted(bytes: &[u8]) -> State {
    let mut state: State = codec::whole(bytes).unwrap();
    let queues = state.queues.values_mut();
    queues.for_each(QueueState::recount);
    state
}

/// The events of a life, with the bodies of their groups.
fn events(seed: u64) -> Vec<(Place, Event)> {
    let disk = SimDisk::new();
    let mut life = Life::begin(&disk, seed).unwrap();
    let mut groups: BTreeMap<Place, Vec<u8>> = BTreeMap::new();
    for step in 0..STEPS {
        life.step().unwrap();
        if step % 10 < 9 {
            continue;
        }
        let shared: Arc<dyn Disk> = Arc::new(disk.restart());
        let options = LogOptions {
            segment_bytes: 0,
            spares: 1,
            zero_ahead: 4096,
            salt: SALT,
        };
        let found = Found::look(shared, options).unwrap();
        let mut each = |scanned: Scanned<'_>| {
            if let Scanned::Group { body, events, .. } = scanned {
                groups.insert(body, events.to_vec());
            }
            Ok(())
        };
        found.scan(found.oldest(), false, &mut each).unwrap();
    }
    let mut all = Vec::new();
    for (body, events) in groups {
        let mut input = Input::new(&events);
        while !input.is_empty() {
            all.push((body, Event::take(&mut input).unwrap()));
        }
    }
    all
}

/// An event with something of it changed, if it is one still.
fn changed(event: &Event, dice: &mut fastrand::Rng) -> Option<Event> {
    let mut bytes = Vec::new();
    event.put(&mut bytes);
    for _ in 0..dice.usize(1..4) {
        let at = dice.usize(..bytes.len());
        let mut number = Vec::new();
        match dice.u8(..4) {
            0 => u64::MAX.put(&mut number),
            1 => u64::from(u32::MAX).put(&mut number),
            2 => number.push(0),
            _ => number.push(dice.u8(..)),
        }
        bytes.splice(at..=at, number);
    }
    codec::whole(&bytes).ok()
}

/// What a stream of events becomes when some are lost, come twice or trade places, and when others are made up.
fn mangled(all: &[(Place, Event)], dice: &mut fastrand::Rng) -> Vec<(Place, Event)> {
    let rates: [u8; 4] = std::array::from_fn(|_| [0, 2, 10, 60][dice.usize(..4)]);
    let mut mangled = Vec::new();
    for (place, event) in all {
        let mut hits = |rate: u8| dice.u8(..100) < rate;
        let (lost, twice, swapped, other) = (
            hits(rates[0]),
            hits(rates[1]),
            hits(rates[2]),
            hits(rates[3]),
        );
        if lost {
            continue;
        }
        mangled.push((*place, event.clone()));
        if other && let Some(event) = changed(event, dice) {
            mangled.push((*place, event));
        }
        if twice {
            mangled.push((*place, event.clone()));
        }
        if swapped {
            let with = dice.usize(..mangled.len());
            let newest = mangled.len() - 1;
            mangled.swap(newest, with);
        }
    }
    mangled
}

#[test]
fn any_sequence_of_events_folds_into_a_state_that_adds_up() {
    let (mut folded, mut fitting, mut amiss) = (0, 0, 0);
    for seed in seeds(LIVES) {
        println!("seed {seed}");
        let all = events(seed);
        let mut dice = fastrand::Rng::with_seed(seed);
        for _ in 0..MANGLED {
            let mut state = State::default();
            for (body, event) in mangled(&all, &mut dice) {
                fold(&mut state, event, body);
                folded += 1;
                if dice.u8(..50) == 0 {
                    let queues = state.queues.values_mut();
                    queues.for_each(QueueState::recount);
                }
            }
            for (number, queue) in &mut state.queues {
                if queue.amiss > 0 {
                    amiss += 1;
                    queue.recount();
                } else {
                    fitting += 1;
                }
                let live = Live::new(*number, "queue".parse().unwrap(), queue);
                let told = live.stats_after(Timestamp::EPOCH);
                assert!(told.adds_up(), "{told:?} of {queue:#?}");
                let mut bytes = Vec::new();
                queue.put(&mut bytes);
                let again: QueueState = codec::whole(&bytes).unwrap();
                assert_eq!(again.stored, queue.stored);
            }
            let counted = encoded(&recounted(&encoded(&state)));
            assert!(
                encoded(&recounted(&counted)) == counted,
                "counting twice differs"
            );
        }
    }
    println!("{folded} events folded, {fitting} queues fit, of {amiss} something was amiss");
    assert!(fitting > 0 && amiss > 0);
}

const LIVES: u64 = 4;
const STEPS: usize = 150;
/// Mangled streams of each life.
const MANGLED: usize = 100;
