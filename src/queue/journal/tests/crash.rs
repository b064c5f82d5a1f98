//! A crash after any operation of a life, in every way; then another one inside the recovery from it.

use std::{collections::BTreeSet, thread, time::Duration};

use bytes::Bytes;

use super::{
    Rig, View,
    life::{self, History, Moment},
    seeds, wait,
};
use crate::{
    batch::{Claim, Page},
    error::Result,
    queue::{
        Queue,
        journal::{
            log::fault::{self, Fault},
            simulated::{Crash, SimDisk},
        },
    },
    request::NewRequest,
    testing::proof,
};

/// What a test went through.
#[derive(Clone, Copy, Debug, Default)]
#[expect(dead_code, reason = "they are printed")]
struct Figures {
    operations: usize,
    moments: usize,
    images: usize,
    double_crashes: usize,
    claimed_again: usize,
}

#[test]
fn after_any_crash_every_answer_holds() {
    let mut crashes = (0, 0);
    for seed in seeds(LIVES) {
        let lived = Lived::begin(seed);
        if let Some(error) = &lived.history.error {
            panic!("seed {seed}: the life ended with {error}");
        }
        match crash_everywhere(&lived, STRIDE) {
            Ok(figures) => {
                println!("seed {seed}: {figures:?}");
                crashes = (
                    crashes.0 + figures.images,
                    crashes.1 + figures.double_crashes,
                );
            }
            Err(why) => panic!("seed {seed}: {why}"),
        }
    }
    let tried = format!(
        "{} crash images of a whole life, {} crashes more inside recovery",
        crashes.0, crashes.1
    );
    proof(GUARANTEES, "journal", tried, &[]);
}

#[test]
fn planted_faults_are_found_by_what_is_seen_after_a_crash() {
    let faults = [
        (Fault::AnswerBeforeSync, "not as after"),
        (Fault::DropBaseline, "crash after"),
        (Fault::ReuseFence, "fence"),
    ];
    let find = |fault: Fault| {
        let search = move || {
            fault::plant(fault);
            // What a life notices of itself does not count here.
            let mut lives = seeds(LIVES).map(Lived::begin);
            lives.find_map(|lived| crash_everywhere(&lived, 5 * STRIDE).err())
        };
        let found = thread::spawn(search).join();
        found.unwrap_or_else(|_| panic!("a panic instead of an answer: {fault:?}"))
    };
    for (fault, by) in faults {
        let found = find(fault).unwrap_or_else(|| panic!("nobody noticed {fault:?}"));
        let shown: String = found.chars().take(200).collect();
        println!("{fault:?}: {shown}");
        assert!(found.contains(by), "{fault:?} is noticed otherwise");
    }
    let names = faults.map(|(fault, _)| format!("{fault:?}"));
    proof(
        GUARANTEES,
        "journal",
        "until found",
        &names.each_ref().map(String::as_str),
    );
}

/// A life, and the disk it was lived on.
struct Lived {
    seed: u64,
    disk: SimDisk,
    history: History,
}

impl Lived {
    fn begin(seed: u64) -> Self {
        let disk = SimDisk::new();
        let history = life::run(&disk, seed, STEPS);
        Self {
            seed,
            disk,
            history,
        }
    }
}

fn crash_everywhere(lived: &Lived, stride: usize) -> Result<Figures, String> {
    let Lived {
        seed,
        disk,
        history,
    } = lived;
    let seed = *seed;
    let mut figures = Figures {
        operations: disk.operations(),
        moments: history.moments.len(),
        ..Figures::default()
    };
    println!("seed {seed}: {:?}", history.verbs);
    let first = usize::try_from(seed).unwrap() % stride;
    for after in (first..=disk.operations()).step_by(stride) {
        let killed = disk.crash(after, Crash::Killed, 0);
        // Without anything to lose, all crashes are the same.
        let modes = if killed.has_unsynced() {
            &Crash::ALL[..]
        } else {
            &Crash::ALL[..1]
        };
        for mode in modes.iter().copied() {
            let crash_seed = seed * 1_000_003 + after as u64;
            let image = disk.crash(after, mode, crash_seed);
            figures.images += 1;
            let context = |why| format!("crash after {after} in mode {mode:?}: {why}");
            let recovered = recover(&image, history, after).map_err(context)?;
            figures.claimed_again += recovered.claimed;
            figures.double_crashes +=
                crash_again(&recovered, history, after, crash_seed).map_err(context)?;
        }
    }
    Ok(figures)
}

/// What recovery from a crash delivered, and what was done then.
struct Recovered {
    disk: SimDisk,
    view: View,
    /// Operations before it was ready, before a push after it was answered, and before this was claimed.
    ready: usize,
    pushed: usize,
    claimed: usize,
}

/// The last moment that was answered by then, and the one that was under way.
pub(super) fn around(history: &History, after: usize) -> (Option<&Moment>, Option<&Moment>) {
    let index = history
        .moments
        .partition_point(|moment| moment.answered <= after);
    let last = index
        .checked_sub(1)
        .and_then(|last| history.moments.get(last));
    (last, history.moments.get(index))
}

/// Opens this and compares what is seen with what may be there; the moment that it is, and what is seen.
pub(super) fn open_and_see<'a>(
    image: &SimDisk,
    history: &'a History,
    (last, next): (Option<&'a Moment>, Option<&'a Moment>),
) -> Result<(Rig, View, Option<&'a Moment>), String> {
    let rig = Rig::open(image, false).map_err(|error| format!("it does not open: {error}"))?;
    let is_damaged = rig.report.iter().any(|line| line.starts_with("damaged"));
    let mut why = String::new();
    for moment in last.into_iter().chain(next) {
        match rig.see(moment.now, &moment.leases) {
            Ok(view) if view == *moment.view => {
                view.check(&history.payloads)?;
                if is_damaged {
                    return Err(format!("damage is reported: {:?}", rig.report));
                }
                return Ok((rig, view, Some(moment)));
            }
            Ok(view) => {
                let difference = moment.view.difference(&view);
                why = format!("{why}\nnot as after {:?}: {difference}", moment.what);
            }
            Err(error) => why = format!("{why}\nnot as after {:?}: {error}", moment.what),
        }
    }
    if last.is_none() {
        // Before the first answer there may be nothing yet.
        let view = View::default();
        return Ok((rig, view, None));
    }
    Err(why)
}

fn recover(image: &SimDisk, history: &History, after: usize) -> Result<Recovered, String> {
    let (rig, view, moment) = open_and_see(image, history, around(history, after))?;
    let ready = image.operations();
    let now = moment.map(|moment| moment.now).unwrap_or_default();
    let failed = |error: crate::error::Error| format!("after it was opened: {error}");
    wait(&rig.core, rig.queue.push(now, vec![NewRequest::new(AFTER)])).map_err(failed)?;
    let pushed = image.operations();
    // A key still names its request.
    let keyed = history.keyed.iter().filter(|(index, ..)| {
        let answered = history.moments.get(*index);
        answered.is_some_and(|moment| {
            let known = Duration::from_secs(190);
            moment.answered <= after && now.since(moment.now) < known
        })
    });
    for (_, key, payload, id) in keyed {
        let request = NewRequest::new(payload.clone()).idempotency_key(key.clone());
        let again = wait(&rig.core, rig.queue.push(now, vec![request])).map_err(failed)?;
        if !again[0].duplicate || again[0].id != *id {
            return Err(format!("{key} named {id} and names {again:?}"));
        }
    }
    let claimed = claim_all(&rig, history, moment)?;
    Ok(Recovered {
        disk: image.clone(),
        view,
        ready,
        pushed,
        claimed,
    })
}

/// Once all leases have run out every open batch is offered, as it was, under a fence that is new.
fn claim_all(rig: &Rig, history: &History, moment: Option<&Moment>) -> Result<usize, String> {
    let Some(moment) = moment else { return Ok(0) };
    let failed = |error: crate::error::Error| format!("claiming again: {error}");
    let now = moment.now.after(Duration::from_secs(3600));
    let claim = Claim {
        form: false,
        lease_duration: Duration::from_secs(3600),
        ..Claim::new()
    };
    let mut fence = moment.fence;
    let mut batches = BTreeSet::new();
    while let Some(lease) = wait(&rig.core, rig.queue.claim(now, &claim)).map_err(failed)? {
        if lease.fence.0 <= fence {
            return Err(format!("fence {} after {fence}", lease.fence.0));
        }
        fence = lease.fence.0;
        if !batches.insert(lease.batch) {
            return Err(format!("batch {} is offered twice", lease.batch));
        }
        let found = wait(&rig.core, rig.queue.read(&lease, Page::first())).map_err(failed)?;
        let ids = |members: &[crate::batch::Member]| -> Vec<_> {
            let ids = members.iter();
            ids.map(|member| (member.id, member.position)).collect()
        };
        let known = history.members.get(&lease.batch.as_u128());
        if known.is_some_and(|known| ids(known) != ids(&found)) {
            return Err(format!("batch {} has other members", lease.batch));
        }
        let checkpoint = moment.view.open.get(&lease.batch.halves().0);
        let checkpoint = checkpoint.and_then(|open| open.checkpoint.clone());
        if checkpoint != lease.checkpoint {
            return Err(format!("batch {} has another checkpoint", lease.batch));
        }
    }
    if batches.len() != moment.view.open.len() {
        return Err(format!("{} batches are offered", batches.len()));
    }
    // New batches get new fences as well.
    let claim = Claim::new();
    if let Some(lease) = wait(&rig.core, rig.queue.claim(now, &claim)).map_err(failed)?
        && lease.fence.0 <= fence
    {
        return Err(format!("fence {} after {fence}", lease.fence.0));
    }
    Ok(batches.len())
}

/// Goes down at some operations of what was recovered.
fn crash_again(
    first: &Recovered,
    history: &History,
    after: usize,
    seed: u64,
) -> Result<usize, String> {
    let mut dice = fastrand::Rng::with_seed(seed);
    for _ in 0..AGAIN {
        let again = dice.usize(0..=first.pushed);
        let mode = Crash::ALL[dice.usize(..Crash::ALL.len())];
        let context = |why| format!("again after {again} in mode {mode:?}: {why}");
        let image = first.disk.crash(again, mode, seed + again as u64);
        if again <= first.ready {
            open_and_see(&image, history, around(history, after)).map_err(context)?;
            continue;
        }
        let found = see_pushed(&image, first, history, after).map_err(context)?;
        if again >= first.pushed && !found {
            return Err(context("what was pushed after the crash is gone".into()));
        }
    }
    Ok(AGAIN)
}

/// Whether what was pushed after the first crash is there; nothing else may have changed.
fn see_pushed(
    image: &SimDisk,
    first: &Recovered,
    history: &History,
    after: usize,
) -> Result<bool, String> {
    let rig = Rig::open(image, false).map_err(|error| format!("it does not open: {error}"))?;
    let (last, next) = around(history, after);
    let mut why = "nothing was answered".to_owned();
    for moment in last.into_iter().chain(next) {
        match rig.see(moment.now, &moment.leases) {
            Ok(mut view) => {
                let is_it = |payload: &Option<Bytes>| payload.as_deref() == Some(AFTER.as_bytes());
                let before = view.entries.len();
                view.entries.retain(|_, entry| !is_it(&entry.payload));
                let is_pushed = view.entries.len() < before;
                if is_pushed {
                    view.stats.pushed -= 1;
                    view.stats.ready -= 1;
                    view.stats.ready_bytes -= AFTER.len() as u64;
                    view.stats.held_bytes -= AFTER.len() as u64;
                }
                if view == first.view {
                    return Ok(is_pushed);
                }
                why = format!("it changed: {}", first.view.difference(&view));
            }
            Err(error) => why = error.to_string(),
        }
    }
    match last {
        None => Ok(true),
        Some(_) => Err(why),
    }
}

const AFTER: &str = "after the crash";
const LIVES: u64 = 2;
const STEPS: usize = 120;
/// Every crash point of so many.
const STRIDE: usize = 7;
/// Crashes inside each recovery.
const AGAIN: usize = 2;

const GUARANTEES: &str = "G1 G2 G3 G4 G5 G8";
