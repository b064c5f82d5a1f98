//! Bytes that change while nobody looks: the store opens, and what it serves is right.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::{IDENTITY, Rig, View, life::Life, seeds, wait};
use crate::{
    batch::{Claim, Outcome, Page, Retries, Then, Update},
    clock::Timestamp,
    error::Error,
    queue::{
        Entry, Queue,
        journal::{
            simulated::SimDisk,
            step::{Plan, Step},
            tend::carry::slice,
            verify::{held_by, look},
        },
        progress::Pulse,
    },
    request::{DeadReason, NewRequest, RequestId},
};

/// A store that was closed or killed, and what is seen in it.
pub(super) struct Sound {
    pub(super) image: Image,
    pub(super) view: View,
    pub(super) now: Timestamp,
    pub(super) payloads: BTreeMap<RequestId, Bytes>,
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
pub(super) struct Told {
    images: usize,
    /// Opened again.
    again: usize,
    /// In the report of the opening.
    reported: usize,
    /// As dead letters.
    dead: usize,
    /// With the requests that it hit, while they were not claimed yet or long settled.
    listed: usize,
    /// Nowhere, since nothing is missing.
    harmless: usize,
    /// By reading all that is held.
    verified: usize,
}

/// Verifies a damaged image, opens it, opens it again, and claims all that is in it.
pub(super) fn check(sound: &Sound, image: &Image, told: &mut Told) -> Result<(), String> {
    let disk = SimDisk::from_image(image.clone());
    let looked = look(
        Arc::new(disk.clone()),
        IDENTITY,
        Path::new("simulated"),
        &Pulse::default(),
    )
    .map_err(|error| format!("it can't be verified: {error}"))?;
    if disk.operations() > 0 || disk.image() != *image {
        return Err("verifying changes something".into());
    }
    let rig = Rig::open(&disk, false);
    let mut rig = rig.map_err(|error| format!("it does not open: {error}"))?;
    told.images += 1;
    let see = |rig: &Rig, now| {
        let view = rig.see(now, &[]);
        let view = view.map_err(|error| format!("looking fails: {error}"))?;
        view.check(&sound.payloads).map(|()| view)
    };
    let held = held_by(&rig.core).map_err(|error| format!("verifying fails: {error}"))?;
    let is_found = !looked.findings.is_empty();
    if !is_found && !rig.report.is_empty() {
        return Err(format!(
            "opening reports what verifying did not find: {:?}",
            rig.report
        ));
    }
    if let Some(missed) = held.iter().find(|one| !looked.findings.contains(one)) {
        // What opening set aside may have taken more with it.
        if rig.report.is_empty() {
            return Err(format!("only found once it is open: {missed}"));
        }
    }
    mend(&mut rig)?;
    let before = see(&rig, sound.now)?;
    open_again(&disk, &before, (sound, &rig.report), told)?;
    let now = sound.now.after(HOUR);
    claim_all(sound, &rig, now)?;
    let after = see(&rig, now)?;
    let is_dead = |entry: &Entry| entry.reason == Some(DeadReason::Damaged);
    told.verified += usize::from(is_found);
    if !is_found {
        let entries = after.entries.values().chain(before.entries.values());
        if let Some(missed) = entries.chain(&before.results).find(|one| is_told(one)) {
            return Err(format!("not found by verifying: {missed:?}"));
        }
    }
    if !rig.report.is_empty() {
        told.reported += 1;
    } else if after.entries.values().any(is_dead) {
        told.dead += 1;
    } else if before.entries.values().chain(&before.results).any(is_told) {
        told.listed += 1;
    } else if before == sound.view {
        told.harmless += 1;
    } else {
        let difference = sound.view.difference(&before);
        return Err(format!("untold: {difference}"));
    }
    Ok(())
}

/// As a store that is served does when it was opened damaged.
fn mend(rig: &mut Rig) -> Result<(), String> {
    if rig.report.iter().any(|line| line.starts_with("damaged")) {
        let written = rig.tend.write_baseline(&rig.core);
        written.map_err(|error| format!("no baseline: {error}"))?;
    }
    Ok(())
}

/// Once it was opened nothing more is reported, and what is seen is the same.
fn open_again(
    disk: &SimDisk,
    before: &View,
    (sound, report): (&Sound, &[String]),
    told: &mut Told,
) -> Result<(), String> {
    let again = Rig::open(&disk.restart(), false);
    let again = again.map_err(|error| format!("it does not open again: {error}"))?;
    // What is needed of a segment that is gone stays gone.
    let is_old = |line: &String| line.contains("is missing") && report.contains(line);
    if !again.report.iter().all(is_old) {
        return Err(format!("reported again: {:?}", again.report));
    }
    let view = again.see(sound.now, &[]);
    let view = view.map_err(|error| format!("looking again fails: {error}"))?;
    if view != *before {
        return Err(format!(
            "another view when opened again: {}",
            before.difference(&view)
        ));
    }
    told.again += 1;
    Ok(())
}

/// Whether a list says that something of this is damaged.
fn is_told(entry: &Entry) -> bool {
    let error = entry.error.as_ref();
    error.is_some_and(|error| error.contains("damaged"))
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
            let members = wait(&rig.core, rig.queue.read(&lease, page)).map_err(failed)?;
            let Some(last) = members.last() else { break };
            page = page.after(last.position);
            for member in members {
                // One that has an outcome and is damaged since keeps that alone.
                let is_bare = member.outcome.is_some() && member.payload.is_empty();
                if !is_bare && sound.payloads.get(&member.id) != Some(&member.payload) {
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
        wait(&rig.core, rig.queue.update(now, &lease, finish)).map_err(failed)?;
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
    let told = damage_everywhere(is_closed, STRIDE, &mut |bytes, at, dice| {
        let at = (at + dice.usize(..STRIDE)).min(bytes.len() - 1);
        bytes[at] ^= 1 << dice.u8(..8);
    });
    assert!(told.reported > 0 && told.dead > 0 && told.listed > 0 && told.harmless > 0);
    assert!(told.verified > 0);
}

#[test]
fn a_sector_or_a_page_that_is_gone_is_told_and_nothing_wrong_is_served() {
    // Of a killed store the last group may be gone without a trace, since nothing follows it.
    for bytes in [512, 4096] {
        damage_everywhere(true, bytes, &mut |file, at, _| {
            let end = (at + bytes).min(file.len());
            file[at..end].fill(0);
        });
    }
}

/// While a batch holds the first of a stretch, the stretch goes on, and is carried to where nothing is on the disk yet.
#[test]
fn what_is_on_its_way_to_the_disk_is_not_taken_for_damaged() {
    let rig = Rig::open(&SimDisk::new(), false).unwrap();
    let now = Timestamp::from_millis(1000);
    let push = |count: u64| {
        // With ids between them that nobody has.
        for request in 0..count {
            let new = vec![NewRequest::new(format!("request {request}"))];
            let at = now.after(Duration::from_millis(request));
            wait(&rig.core, rig.queue.push(at, new)).unwrap();
        }
    };
    push(8);
    let claim = Claim {
        max_requests: 4.try_into().unwrap(),
        lease_duration: HOUR,
        ..Claim::new()
    };
    let later = now.after(Duration::from_secs(1));
    let lease = wait(&rig.core, rig.queue.claim(later, &claim)).unwrap();
    let lease = lease.unwrap();
    for round in 0..3 {
        let new = vec![NewRequest::new("x".repeat(500)); 9];
        let plan = Plan::new(later, new, None).unwrap();
        let mut inner = rig.core.lock().unwrap();
        let pushed = Step::new(&rig.core, &mut inner, rig.queue.live.id).push(later, &plan);
        assert_eq!(pushed.unwrap().len(), 9);
        if round == 2 {
            assert!(slice(&mut inner, &rig.core, 1).unwrap());
        }
        drop(inner);
        let members = wait(&rig.core, rig.queue.read(&lease, Page::first())).unwrap();
        assert_eq!(members.len(), 4, "round {round}");
        let payloads = members.iter().map(|member| member.payload.clone());
        let expected: Vec<_> = (0..4).map(|request| format!("request {request}")).collect();
        assert_eq!(payloads.collect::<Vec<_>>(), expected);
        assert!(members.iter().all(|member| member.outcome.is_none()));
    }
    let view = rig.see(later, &[]).unwrap();
    assert_eq!((view.stats.in_flight, view.stats.ready), (4, 31));
    assert!(!view.entries.values().any(is_told));
}

#[test]
fn a_file_that_is_gone_is_told_and_nothing_wrong_is_served() {
    for is_closed in [true, false] {
        let whole = 1 << 30;
        damage_everywhere(is_closed, whole, &mut |file, _, _| file.clear());
        damage_everywhere(is_closed, whole, &mut |file, _, _| {
            file.truncate(file.len() / 2);
        });
    }
}

/// Damages each file of a store at each so many bytes, one at a time.
fn damage_everywhere(
    is_closed: bool,
    stride: usize,
    damage: &mut dyn FnMut(&mut Vec<u8>, usize, &mut fastrand::Rng),
) -> Told {
    let mut all = Told::default();
    let mut failures: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for seed in seeds(SEEDS) {
        let sound = sound(seed, is_closed);
        let mut told = Told::default();
        let mut dice = fastrand::Rng::with_seed(seed);
        for (name, bytes) in &sound.image {
            for at in (0..bytes.len()).step_by(stride) {
                let mut image = sound.image.clone();
                if let Some(bytes) = image.get_mut(name) {
                    damage(bytes, at, &mut dice);
                }
                let checked = catch_unwind(AssertUnwindSafe(|| check(&sound, &image, &mut told)));
                let checked = checked
                    .unwrap_or_else(|panic| Err(format!("a panic: {}", panic_text(&*panic))));
                if let Err(why) = checked {
                    let kind: String = why.chars().take(30).collect();
                    let all = failures.entry(kind).or_default();
                    all.push(format!("seed {seed}, at {at} of {name}: {why}"));
                }
            }
        }
        println!("seed {seed}, closed: {is_closed}, every {stride} bytes: {told:?}");
        all.reported += told.reported;
        all.dead += told.dead;
        all.images += told.images;
        all.again += told.again;
        all.listed += told.listed;
        all.harmless += told.harmless;
        all.verified += told.verified;
    }
    for (kind, all) in &failures {
        println!("{} times {kind}: {}", all.len(), all[0]);
    }
    assert!(failures.is_empty(), "see above");
    all
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default()
}

pub(super) type Image = BTreeMap<String, Vec<u8>>;

const HOUR: Duration = Duration::from_secs(3600);
const SEEDS: u64 = 2;
const STEPS: usize = 60;
const STRIDE: usize = 911;
