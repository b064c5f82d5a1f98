//! A store whose file has parts that are used again loses its power while it is opened, or while much is written to it.

use std::{
    fs::{self, File},
    num::NonZeroU32,
    os::unix::fs::FileExt,
    time::Duration,
};

use batchyard::{
    Claim, NewRequest, Outcome, Queue, Retries, Then, Timestamp, Update,
    testing::proof,
    torture::forgetful::{Kept, Loss, Rules},
};

use crate::{
    Disk, cycles,
    life::{Ending, Fate, Life, New, Side, Step},
    planted,
    store::{Backend, Opened, in_time},
    stride,
};

/// sled fills parts that are not used any more with zeros when it is opened, of which any may reach the disk.
#[tokio::test]
async fn a_grown_sled_store_survives_a_torn_loss_at_the_changes_of_its_opening() {
    let Some(disk) = Disk::new() else { return };
    planted::begin();
    let (grown, life) = grow(&disk).await;
    let mut cuts = 0;
    for (first, rules) in (1..).zip([Rules::Strict, Rules::Ext4]) {
        disk.forgetful.set_rules(rules);
        for n in (first..).step_by(step(9, 1)) {
            disk.forgetful.go_back(&grown);
            disk.forgetful.cut_after(n);
            if let Ok(opened) = in_time("opening", Backend::Sled.open(&disk.store())).await {
                let _ = opened.end().await;
            }
            let Some(torn) = tear(&disk, (rules, n), &life, 0).await else {
                break;
            };
            cuts += torn;
        }
    }
    let done = format!("{cuts} power cuts while a grown store is opened");
    proof("G1 G8", "sled", done, &[]);
}

/// sled writes over parts whose content it has written elsewhere, of which any may reach the disk.
#[tokio::test]
async fn a_grown_sled_store_survives_a_torn_loss_at_the_changes_of_large_writes() {
    let Some(disk) = Disk::new() else { return };
    planted::begin();
    let steps = [
        Step::Push(vec![New::Ready(4_000); 3_500]),
        Step::Claim(10_000),
        Step::Update(0, vec![(0, Fate::Done)], Ending::Finish(Fate::Reject)),
    ];
    let cuts = cut_large(&disk, steps, 25).await;
    let done = format!("{cuts} power cuts while much is written to a grown store");
    proof("G1 G8", "sled", done, &[]);
}

/// Thousands of dead letters are redriven or purged in one call, and thousands that wait are cancelled, or expire between
/// others that stay.
#[tokio::test]
async fn a_grown_sled_store_survives_a_torn_loss_at_the_changes_of_large_calls() {
    let Some(disk) = Disk::new() else { return };
    planted::begin();
    let steps = [
        Step::Push(vec![New::Ready(900); 6_000]),
        Step::Claim(10_000),
        Step::Update(0, vec![], Ending::Finish(Fate::Reject)),
        Step::RedriveAll,
        Step::Claim(10_000),
        Step::Update(0, vec![], Ending::Finish(Fate::Reject)),
        Step::PurgeAll,
    ];
    let mut cuts = cut_large(&disk, steps, 170).await;
    let both = (0..3_500).map(|n| {
        if n % 50 == 0 {
            New::Mortal(900)
        } else {
            New::Ready(900)
        }
    });
    let steps = [
        Step::Push(both.collect()),
        Step::CancelSome(20),
        Step::Wait(Duration::from_secs(6)),
        Step::CancelSome(2),
    ];
    cuts += cut_large(&disk, steps, 97).await;
    let steps = [
        Step::Push(vec![New::Ready(400_000); 100]),
        Step::Claim(10_000),
        Step::Update(0, vec![], Ending::Finish(Fate::Done)),
        Step::Push(vec![New::Ready(400_000); 100]),
        Step::Claim(10_000),
        Step::Update(0, vec![], Ending::Finish(Fate::Reject)),
        Step::PurgeAll,
    ];
    cuts += cut_large(&disk, steps, 97).await;
    let done = format!("{cuts} power cuts during large calls on a grown store");
    proof("G1 G8", "sled", done, &[]);
}

/// Takes these steps on a grown store, and cuts the power at one of so many of its changes; how often it was cut.
async fn cut_large(disk: &Disk, steps: impl IntoIterator<Item = Step>, short: u64) -> u64 {
    let empty = disk.forgetful.keep();
    let (grown, mut life) = grow(disk).await;
    for step in steps {
        let time = match step {
            Step::Wait(time) => time,
            _ => Duration::from_secs(1),
        };
        life.go_on_after(time, step).await;
    }
    let mut cuts = 0;
    for n in (40..).step_by(step(short, 7)) {
        disk.forgetful.go_back(&grown);
        let opened = open(disk).await;
        disk.forgetful.cut_after(n);
        let (mut side, mut answered) = (Side::new(opened.queue.clone()), 0);
        for moment in &life.moments {
            if !side.goes_on(moment).await {
                break;
            }
            answered += 1;
        }
        let _ = opened.end().await;
        let Some(torn) = tear(disk, (Rules::Strict, n), &life, answered).await else {
            // The cut that did not come is forgotten.
            disk.forgetful.restore(Loss::Nothing);
            disk.forgetful.go_back(&empty);
            return cuts;
        };
        cuts += torn;
    }
    cuts
}

pub(crate) fn step(short: u64, long: u64) -> usize {
    usize::try_from(stride(short, long)).unwrap()
}

/// Now that the power is gone, tears what was not synced in some ways, and opens what is left each time; how often, or
/// none if it was not gone.
pub(crate) async fn tear(
    disk: &Disk,
    cut: (Rules, u64),
    life: &Life,
    answered: usize,
) -> Option<u64> {
    let what = disk.forgetful.cut_was_at()?;
    let dark = disk.forgetful.keep();
    let ways = cycles(3, 12);
    for seed in 0..ways {
        disk.forgetful.go_back(&dark);
        disk.forgetful.restore(Loss::Torn { seed });
        let found = check(disk, life, answered).await;
        let opened = found.unwrap_or_else(|why| {
            let step = life.moments.get(answered).map(|moment| format!("{:?}", moment.step));
            let step: String = step.unwrap_or_default().chars().take(40).collect();
            panic!("{cut:?} was {what}, torn by {seed}: {answered} steps were answered, {step} was not: {why}")
        });
        opened.end().await.unwrap();
    }
    Some(ways)
}

/// Opens what is left: it is as after all that was answered, or with the step under way. A call for very many requests may have been
/// done for some of them: then it is made again.
async fn check(disk: &Disk, life: &Life, answered: usize) -> Result<Opened, String> {
    let opened = in_time("opening", Backend::Sled.open(&disk.store())).await;
    let opened = opened.map_err(|error| format!("it does not open: {error}"))?;
    let found = life.find(&*opened.queue, answered).await;
    let next = life.moments.get(answered);
    let next = next.filter(|next| found.is_err() && next.step.may_be_done_in_part());
    if let Some(next) = next {
        let mut side = Side::new(opened.queue.clone());
        let again = side.take(next.now, &next.step).await;
        again.map_err(|error| format!("made again: {error}"))?;
        life.find(&*opened.queue, answered + 1).await?;
    } else {
        found?;
    }
    Ok(opened)
}

/// A store of which the next opening finds all but the last part of its file unused. What sled leaves behind depends on its
/// threads, so several are tried.
async fn grow(disk: &Disk) -> (Kept, Life) {
    for _ in 0..MAX_STORES {
        if let Some(grown) = try_grow(disk).await {
            return grown;
        }
        fs::remove_dir_all(disk.store()).unwrap();
    }
    panic!("something is always left in several parts of its file");
}

/// Requests come and go while it is open.
async fn try_grow(disk: &Disk) -> Option<(Kept, Life)> {
    let mut now = Timestamp::from_millis(1_700_000_000_000);
    for _ in 0..MAX_ROUNDS {
        let opened = open(disk).await;
        for _ in 0..STEPS {
            // By then nothing is kept of those before.
            now = now.after(Duration::from_hours(3));
            settle_all(&*opened.queue, now).await;
            let new = (0..200).map(|_| NewRequest::new(vec![7; 4_000]));
            opened.queue.push(now, new.collect()).await.unwrap();
            settle_all(&*opened.queue, now).await;
        }
        let stays = vec![NewRequest::new("stays"); 5];
        opened.queue.push(now, stays).await.unwrap();
        let life = Life::of(&*opened.queue, now).await;
        opened.end().await.unwrap();
        disk.forgetful.restore(Loss::Nothing);
        let grown = disk.forgetful.keep();
        let opened = open(disk).await;
        let used = used_parts(disk);
        opened.end().await.unwrap();
        if used.len() > 1 && used.iter().filter(|is_used| **is_used).count() == 1 {
            disk.forgetful.go_back(&grown);
            return Some((grown, life));
        }
    }
    None
}

pub(crate) async fn open(disk: &Disk) -> Opened {
    let path = disk.store();
    in_time("opening", Backend::Sled.open(&path)).await.unwrap()
}

pub(crate) async fn settle_all(queue: &dyn Queue, now: Timestamp) {
    let then = Then::Finish {
        rest: Outcome::done(),
        retries: Retries {
            at: now,
            max_attempts: NonZeroU32::MIN,
        },
    };
    while let Some(lease) = queue.claim(now, &Claim::new()).await.unwrap() {
        let update = Update::then(then.clone());
        queue.update(now, &lease, update).await.unwrap();
    }
}

/// Of each part of the file, whether anything is in it.
fn used_parts(disk: &Disk) -> Vec<bool> {
    let file = File::open(disk.store().join("sled/db")).unwrap();
    let parts = file.metadata().unwrap().len().div_ceil(PART_BYTES);
    let is_used = |part| {
        let mut head = [0; 20];
        file.read_exact_at(&mut head, part * PART_BYTES).unwrap();
        head != [0; 20]
    };
    (0..parts).map(is_used).collect()
}

/// A segment of sled.
const PART_BYTES: u64 = 8 << 20;
const MAX_ROUNDS: u32 = 12;
const MAX_STORES: u32 = 12;
/// They write more than a part of the file takes.
const STEPS: u32 = 5;
