//! Long lives with many segments and windows, and the power goes at any moment of them.

use batchyard::{
    testing::proof,
    torture::forgetful::{Loss, Rules},
};
use fastrand::Rng;

use crate::{
    Disk, cycles,
    fresh::{check, drain},
    life::{Life, Side},
    seed,
    store::{Backend, Opened, in_time},
};

#[tokio::test]
async fn a_long_life_on_sled_goes_on_after_each_power_cut() {
    live_long(Backend::Sled).await;
}

#[tokio::test]
async fn a_long_life_on_the_journal_goes_on_after_each_power_cut() {
    live_long(Backend::Journal).await;
}

async fn live_long(backend: Backend) {
    let Some(disk) = Disk::new() else { return };
    let seed = seed();
    let mut random = Rng::with_seed(seed);
    let mut life = Life::new().await;
    let mut opened = in_time("opening", backend.open(&disk.store()))
        .await
        .unwrap();
    let (cycles, mut steps) = (cycles(15, 120), 0);
    for cycle in 0..cycles {
        if random.u8(..6) == 0 {
            // A disk does not fill for ever. What is settled in slices meanwhile is done once the store is open again.
            let drained = drain(&*opened.queue, &life).await;
            drained.unwrap_or_else(|why| panic!("cycle {cycle}: {why}"));
            opened.end().await.unwrap();
            opened = backend.open(&disk.store()).await.unwrap();
            life.now = life.now.after(std::time::Duration::from_hours(30));
            life = Life::of(&*opened.queue, life.now).await;
        }
        let rules = [Rules::Strict, Rules::Ext4][random.usize(..2)];
        disk.forgetful.set_rules(rules);
        disk.forgetful.cut_after(random.u64(1..150));
        let answered = live(&opened, &mut life, &mut random).await;
        let _ = opened.end().await;
        steps += answered;
        let what = disk.forgetful.cut_was_at();
        let loss = match LOSSES[random.usize(..LOSSES.len())] {
            Loss::Torn { .. } => Loss::Torn {
                seed: random.u64(..),
            },
            loss => loss,
        };
        disk.forgetful.restore(loss);
        if random.bool() {
            // And once more while it is opened.
            disk.forgetful.cut_after(random.u64(1..60));
            if let Ok(opened) = in_time("opening", backend.open(&disk.store())).await {
                let _ = opened.end().await;
            }
            disk.forgetful.cut();
            // After a kill it is a power cut.
            disk.forgetful.restore(if loss == Loss::Nothing {
                Loss::All
            } else {
                loss
            });
        }
        let context =
            format!("{backend:?}, cycle {cycle}, {rules:?}, cut at {what:?}, then {loss:?}");
        let found = check(&disk, backend, &life, answered).await;
        let (again, now) = found.unwrap_or_else(|why| {
            let under_way = life.moments.get(answered).map(|moment| &moment.step);
            panic!("{context}: {answered} steps were answered, {under_way:?} was not: {why}")
        });
        opened = again;
        life = Life::of(&*opened.queue, now).await;
    }
    let drained = drain(&*opened.queue, &life).await;
    drained.unwrap_or_else(|why| panic!("at the end: {why}"));
    opened.end().await.unwrap();
    let cycles = format!("{cycles} power cuts in one life of {steps} steps");
    proof("G1 G2 G3 G4 G5 G8", backend.name(), cycles, &[]);
}

/// Goes on until the disk fails; how many steps were answered.
async fn live(opened: &Opened, life: &mut Life, random: &mut Rng) -> usize {
    let mut side = Side::new(opened.queue.clone());
    loop {
        let step = life.any(random).await;
        life.go_on(step).await;
        if !side.goes_on(life.moments.last().unwrap()).await {
            return life.moments.len() - 1;
        }
    }
}

const LOSSES: [Loss; 4] = [
    Loss::All,
    Loss::Nothing,
    Loss::Torn { seed: 0 },
    Loss::Torn { seed: 0 },
];
