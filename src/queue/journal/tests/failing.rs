//! A disk that fails: nothing is answered after it, nobody waits for ever, and what was answered is there.

use std::{io, sync::Arc};

use super::{
    IDENTITY, Rig,
    crash::{around, open_and_see},
    life, options, seeds,
};
use crate::{
    error::ErrorKind,
    queue::{
        Store,
        journal::{
            disk::Disk,
            log::fault::{self, Fault},
            simulated::{Crash, SimDisk},
        },
    },
    request::NewRequest,
    testing::proof,
};

#[test]
fn after_any_failure_every_answer_holds() {
    let stride = if is_long() { 1 } else { STRIDE };
    let mut all = 0;
    for seed in seeds(2) {
        let disk = SimDisk::new();
        let whole = life::run(&disk, seed, STEPS);
        let mut failures = 0;
        for at in (0..disk.operations()).step_by(stride) {
            for for_good in [false, true] {
                // Allocating fails for want of space, the rest as a bad disk does; and the other way round.
                let kinds = [io::ErrorKind::Other, io::ErrorKind::StorageFull];
                let kind = kinds[(at / stride + usize::from(for_good)) % 2];
                failures += 1;
                if let Err(why) = fail_once(&whole, seed, (at, kind, for_good)) {
                    panic!("seed {seed}, {kind} at {at}, for good: {for_good}: {why}");
                }
            }
        }
        all += failures;
        println!(
            "seed {seed}: {} operations, {failures} failures",
            disk.operations()
        );
    }
    let what = format!("{all} operations that failed, once and for good");
    proof(
        "G1 G5 G10",
        "journal",
        what,
        &["RetrySync", "AnswerBeforeSync"],
    );
}

#[test]
fn a_sync_that_is_tried_again_is_noticed() {
    for fault in [Fault::RetrySync, Fault::AnswerBeforeSync] {
        let search = move || {
            fault::plant(fault);
            seeds(1).any(|seed| {
                let disk = SimDisk::new();
                let whole = life::run(&disk, seed, STEPS);
                (0..disk.operations())
                    .any(|at| fail_once(&whole, seed, (at, io::ErrorKind::Other, false)).is_err())
            })
        };
        let noticed = std::thread::spawn(search).join().unwrap();
        assert!(noticed, "nobody noticed {fault:?}");
    }
}

/// What a store that was killed, lost its power or was closed leaves, and when it is opened its disk fails.
#[test]
fn a_failure_while_it_is_opened_costs_nothing() {
    let (mut writes, mut reads) = (0, 0);
    for seed in seeds(if is_long() { 12 } else { 2 }) {
        let disk = SimDisk::new();
        let whole = life::run(&disk, seed, STEPS);
        let mut dice = fastrand::Rng::with_seed(seed);
        for mode in [Crash::Killed, Crash::Lost, Crash::Torn] {
            let after = dice.usize(disk.operations() / 2..=disk.operations());
            let crashed = disk.crash(after, mode, seed);
            let (last, next) = around(&whole, after);
            if last.is_none() {
                continue;
            }
            let opened = crashed.restart();
            drop(Rig::open(&opened, false).unwrap());
            let fail = |fails: &dyn Fn(&SimDisk), what: String| {
                let disk = crashed.restart();
                fails(&disk);
                // Whatever it says: what it left behind has to be what there was.
                let said = Rig::open(&disk, false).err().map(|error| error.kind());
                for mode in [Crash::Killed, Crash::Lost, Crash::Shuffled] {
                    let image = disk.crash(disk.operations(), mode, seed);
                    let found = open_and_see(&image, &whole, (last, next));
                    if let Err(why) = found {
                        panic!("seed {seed}, {what}, said {said:?}, then {mode:?}: {why}");
                    }
                }
            };
            for for_good in [false, true] {
                for at in 0..opened.operations() {
                    let kind = [io::ErrorKind::Other, io::ErrorKind::StorageFull][at % 2];
                    let what = format!("{kind} at {at}, for good: {for_good}");
                    fail(&|disk| disk.fail_at(at, kind, for_good), what);
                    writes += 1;
                }
                for at in (0..opened.looks()).step_by(if is_long() { 1 } else { 5 }) {
                    let what = format!("look {at} fails, for good: {for_good}");
                    fail(&|disk| disk.fail_look_at(at, for_good), what);
                    reads += 1;
                }
            }
        }
    }
    let what = format!("{writes} writes and syncs, {reads} reads that failed during recovery");
    proof("G1 G8", "journal", what, &[]);
}

fn is_long() -> bool {
    std::env::var_os("BATCHYARD_LONG").is_some()
}

fn fail_once(
    whole: &life::History,
    seed: u64,
    (at, kind, for_good): (usize, io::ErrorKind, bool),
) -> Result<(), String> {
    let disk = SimDisk::new();
    disk.fail_at(at, kind, for_good);
    let history = life::run(&disk, seed, STEPS);
    let Some(error) = &history.error else {
        // A file that could not be made ready was made later. What was answered is there.
        let image = disk.crash(disk.operations(), Crash::Lost, seed);
        let last = history.moments.last();
        return open_and_see(&image, &history, (last, None)).map(|_| ());
    };
    // The last two: no segment could be made for it.
    let kinds = [
        ErrorKind::Poisoned,
        ErrorKind::QueueFull,
        ErrorKind::Unavailable,
    ];
    if !kinds.contains(&error.kind()) {
        return Err(format!("it ended with {error}"));
    }
    let answered = history.moments.len();
    let last = history.moments.last();
    // What was under way is known from the life in which nothing failed.
    let next = whole.moments.get(answered);
    for mode in [Crash::Killed, Crash::Lost, Crash::Shuffled] {
        let image = disk.crash(disk.operations(), mode, seed);
        let found = open_and_see(&image, whole, (last, next));
        // Callers that pushed together, each for itself: some of them may be there and others not.
        let is_some = |why| match next {
            Some(next) if next.what == "push together" => see_some(&image, whole, last, next),
            _ => Err(why),
        };
        let found = found.map(|_| ()).or_else(is_some);
        found.map_err(|why| format!("{error}, then {mode:?}: {why}"))?;
    }
    let (before, _) = around(&history, disk.operations());
    if before.map(|moment| moment.answered) != last.map(|moment| moment.answered) {
        return Err("something was answered after the failure".into());
    }
    Ok(())
}

/// Whether what is there lies between two moments.
fn see_some(
    image: &SimDisk,
    whole: &life::History,
    last: Option<&life::Moment>,
    next: &life::Moment,
) -> Result<(), String> {
    let rig = Rig::open(&image.restart(), false);
    let rig = rig.map_err(|error| format!("it does not open: {error}"))?;
    let view = rig.see(next.now, &[]).map_err(|error| error.to_string())?;
    view.check(&whole.payloads)?;
    let before = last.map(|last| last.view.entries.clone());
    let kept = before.unwrap_or_default().into_iter();
    let is_between = kept
        .into_iter()
        .all(|(id, entry)| view.entries.get(&id) == Some(&entry))
        && (view.entries.iter()).all(|(id, entry)| next.view.entries.get(id) == Some(entry));
    if is_between {
        return Ok(());
    }
    Err(format!("not between: {}", next.view.difference(&view)))
}

/// With the writer's own thread: many callers at once, of whom all are told.
#[test]
fn all_who_wait_are_told_and_the_store_is_poisoned() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let (mut poisoned, mut all) = (0, 0);
    for at in 0..60 {
        let disk = SimDisk::new();
        disk.fail_at(at, io::ErrorKind::Other, true);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut answered = Vec::new();
        let ended = runtime.block_on(async {
            let opened = options().serve(shared, IDENTITY, "simulated".into(), None);
            let store = opened?;
            let queue = store.queue(&"default".parse()?).await?;
            let mut ended = Ok(());
            for round in 0..6 {
                let push = |caller: u64| {
                    let payload = format!("{round} {caller} {}", "x".repeat(900));
                    let now = crate::clock::Timestamp::from_millis(1000 + round);
                    queue.push(now, vec![NewRequest::new(payload)])
                };
                let pushes = (0..8).map(push);
                // Of those who called at once some may know of it before others are answered.
                let has_failed = ended.is_err();
                for answer in futures_util::future::join_all(pushes).await {
                    match answer {
                        Ok(_) if has_failed => panic!("answered after a failure at {at}"),
                        Ok(ids) => answered.push(ids[0].id),
                        // No spare could be made: what fits is still taken.
                        Err(error) if error.kind() == ErrorKind::QueueFull => {}
                        Err(error) => ended = Err(error),
                    }
                }
            }
            let closed = store.close().await;
            assert!(
                ended.is_ok() || closed.is_err(),
                "closed as if all was well"
            );
            ended
        });
        all += answered.len();
        // A queue for which no segment could be made was refused, and that is all.
        let ended = ended.or_else(|error| match error.kind() {
            ErrorKind::Unavailable => Ok(()),
            _ => Err(error),
        });
        if let Err(error) = ended {
            assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
            poisoned += 1;
        }
        let image: Arc<dyn Disk> = Arc::new(disk.crash(disk.operations(), Crash::Lost, 0));
        runtime.block_on(async {
            let store = options()
                .serve(image, IDENTITY, "simulated".into(), None)
                .unwrap();
            let queue = store.queue(&"default".parse().unwrap()).await.unwrap();
            let now = crate::clock::Timestamp::from_millis(2000);
            for id in &answered {
                let status = queue.admin().unwrap().status(now, *id).await.unwrap();
                assert!(
                    status.is_some(),
                    "failure at {at}: {id} was answered and is gone"
                );
            }
            assert!(queue.stats(now).await.unwrap().adds_up());
            store.close().await.unwrap();
        });
    }
    println!("{poisoned} of 60 stores were poisoned, {all} pushes were answered before");
    assert!(poisoned > 5 && all > 0);
}

const STEPS: usize = 60;
/// Every failing operation of so many.
const STRIDE: usize = 7;
