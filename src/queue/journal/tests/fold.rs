//! The fold of what is on the disk is the state in memory.

use super::{Rig, life::Life, seeds};
use crate::queue::journal::simulated::SimDisk;

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
    }
    Ok(compared)
}

const LIVES: u64 = 4;
const STEPS: usize = 150;
