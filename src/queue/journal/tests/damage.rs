//! Bytes that change while nobody looks: the store opens, and what it serves is right.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use bytes::Bytes;

use super::{Rig, View, life::Life, wait};
use crate::{
    batch::{Claim, Outcome, Page, Retries, Then, Update},
    clock::Timestamp,
    error::{Error, ErrorKind},
    queue::{Entry, Queue, journal::simulated::SimDisk},
    request::{DeadReason, RequestId, State},
};

/// A store that was closed or killed, and what is seen in it.
struct Sound {
    image: Image,
    view: View,
    now: Timestamp,
    payloads: BTreeMap<RequestId, Bytes>,
}

fn sound(seed: u64, is_closed: bool) -> Sound {
    let disk = SimDisk::new();
    let mut life = Life::begin(&disk, seed).unwrap();
    for _ in 0..STEPS {
        life.step().unwrap();
    }
    if is_closed {
        life.rig.tend.finish(&life.rig.core).unwrap();
    }
    let now = life.now;
    let payloads = std::mem::take(&mut life.history.payloads);
    let image = disk.image();
    drop(life);
    let rig = Rig::open(&SimDisk::from_image(image.clone()), false).unwrap();
    let view = rig.see(now, &[]).unwrap();
    Sound {
        image,
        view,
        now,
        payloads,
    }
}

/// How damage was told.
#[derive(Clone, Debug, Default)]
struct Told {
    images: usize,
    /// In the report of the opening.
    reported: usize,
    /// As dead letters.
    dead: usize,
    /// By a verb that failed.
    refused: usize,
    /// As dead letters that are counted, and not listed since nothing of them is legible.
    counted: usize,
    /// Not told, except that the request is listed without its payload, or not listed; and how many were done,
    /// dead and expired then.
    untold: usize,
    after: BTreeSet<(u64, u64, u64)>,
    /// A dead letter is listed without its payload.
    bare: usize,
    /// One that is illegible was taken out of the counts with others of its stretch.
    uncounted: usize,
}

/// Opens a damaged image, and claims all that is in it.
fn check(sound: &Sound, image: Image, told: &mut Told) -> Result<(), String> {
    let rig = Rig::open(&SimDisk::from_image(image), false);
    let rig = rig.map_err(|error| format!("it does not open: {error}"))?;
    told.images += 1;
    told.reported += usize::from(!rig.report.is_empty());
    let mut see = |now| match rig.see(now, &[]) {
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            told.refused += 1;
            Ok(None)
        }
        Err(error) => Err(format!("looking fails: {error}")),
        Ok(view) if view.stats.adds_up() => {
            view.check_payloads(&sound.payloads).map(|()| Some(view))
        }
        Ok(_) => {
            told.uncounted += 1;
            Ok(None)
        }
    };
    let before = see(sound.now)?;
    let now = sound.now.after(HOUR);
    claim_all(sound, &rig, now)?;
    let after = see(now)?;
    let (Some(mut before), Some(after)) = (before, after) else {
        return Ok(());
    };
    let is_dead = |entry: &Entry| entry.reason == Some(DeadReason::Damaged);
    if after.entries.values().any(is_dead) {
        told.dead += 1;
    } else if after.stats.dead > sound.view.stats.dead {
        told.counted += 1;
    } else if rig.report.is_empty() {
        for (id, entry) in &sound.view.entries {
            let found = before.entries.get(id);
            let is_bare = found.is_none_or(|found| found.payload.is_none());
            if entry.state == State::Dead && is_bare {
                before.entries.insert(*id, entry.clone());
                told.bare += 1;
            }
        }
        if before != sound.view {
            told.untold += 1;
            let stats = after.stats;
            let known = (stats.done, stats.dead, stats.expired);
            told.after.insert(known);
        }
    }
    Ok(())
}

/// What is served is what was pushed.
fn claim_all(sound: &Sound, rig: &Rig, now: Timestamp) -> Result<(), String> {
    let failed = |error: Error| format!("claiming fails: {error}");
    let claim = Claim {
        lease_duration: HOUR,
        ..Claim::new()
    };
    while let Some(lease) = wait(&rig.core, rig.queue.claim(now, &claim)).map_err(failed)? {
        let mut page = Page::first();
        loop {
            let members = match wait(&rig.core, rig.queue.read(&lease, page)) {
                Err(error) if error.kind() == ErrorKind::Corrupt => break,
                read => read.map_err(failed)?,
            };
            let Some(last) = members.last() else { break };
            page = page.after(last.position);
            for member in members {
                let is_damaged = matches!(
                    member.outcome,
                    Some(Outcome::Reject {
                        reason: DeadReason::Damaged,
                        ..
                    })
                );
                if !is_damaged && sound.payloads.get(&member.id) != Some(&member.payload) {
                    return Err(format!("this was never pushed: {member:?}"));
                }
            }
        }
        // Those that are damaged become dead letters.
        let until = now.after(HOUR);
        let finish = Update::then(Then::Finish {
            rest: Outcome::done(),
            retries: Retries {
                at: until,
                max_attempts: 3.try_into().unwrap(),
            },
        });
        match wait(&rig.core, rig.queue.update(now, &lease, finish)) {
            Err(error) if error.kind() == ErrorKind::Corrupt => {}
            finished => finished.map_err(failed)?,
        }
    }
    Ok(())
}

#[test]
fn a_changed_byte_in_a_closed_store_is_told_and_nothing_wrong_is_served() {
    change_bytes(true);
}

#[test]
fn a_changed_byte_in_a_killed_store_is_told_and_nothing_wrong_is_served() {
    change_bytes(false);
}

fn change_bytes(is_closed: bool) {
    let sound = sound(SEED, is_closed);
    let mut failures: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut told = Told::default();
    let mut dice = fastrand::Rng::with_seed(SEED);
    for (name, bytes) in &sound.image {
        for at in (0..bytes.len()).step_by(STRIDE) {
            let at = (at + dice.usize(..STRIDE)).min(bytes.len() - 1);
            let mut image = sound.image.clone();
            image.get_mut(name).unwrap()[at] ^= 1 << dice.u8(..8);
            let checked = catch_unwind(AssertUnwindSafe(|| check(&sound, image, &mut told)));
            let checked = checked.unwrap_or_else(|_| Err("a panic".to_owned()));
            if let Err(why) = checked {
                let kind: String = why.chars().take(30).collect();
                let all = failures.entry(kind).or_default();
                all.push(format!("byte {at} of {name}: {why}"));
            }
        }
    }
    println!("seed {SEED}, closed: {is_closed}: {told:?}");
    for (kind, all) in &failures {
        println!("{} times {kind}: {}", all.len(), all[0]);
    }
    assert!(failures.is_empty(), "see above");
    assert!(told.reported > 0 && told.dead > 0);
}

type Image = BTreeMap<String, Vec<u8>>;

const HOUR: Duration = Duration::from_secs(3600);
const SEED: u64 = 5;
const STEPS: usize = 60;
const STRIDE: usize = 307;
