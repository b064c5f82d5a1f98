//! A store loses its power while sled moves what is left in nearly empty parts of its file.

use std::{env, fs, process::Command, time::Duration};

use batchyard::{
    NewRequest, Timestamp,
    testing::proof,
    torture::forgetful::{Kept, Loss, Rules},
};

use crate::{
    Disk,
    grown::{open, settle_all, step, tear},
    life::{Life, New, Side, Step},
    planted,
    store::{Backend, in_time},
};

/// It is moved in small stores as well, in a process of its own.
const POINTS: &str = "sled.slack=return(skip)";

/// What is moved is in two places then, of which any part may reach the disk.
#[tokio::test]
async fn a_sled_store_survives_a_torn_loss_while_pages_are_moved() {
    if Disk::new().is_none() {
        return;
    }
    if env::var_os("FAILPOINTS").is_none() {
        return in_a_process_of_its_own();
    }
    planted::begin();
    let disk = Disk::new().unwrap();
    let (sparse, mut life) = scatter(&disk).await;
    for _ in 0..16 {
        life.go_on(Step::Push(vec![New::Ready(300); 3])).await;
    }
    let mut cuts = 0;
    for n in (1..).step_by(step(13, 3)) {
        disk.forgetful.go_back(&sparse);
        disk.forgetful.cut_after(n);
        let mut answered = 0;
        let path = disk.store();
        if let Ok(opened) = in_time("opening", Backend::Sled.open(&path)).await {
            let mut side = Side::new(opened.queue.clone());
            for moment in &life.moments {
                if !side.goes_on(moment).await {
                    break;
                }
                answered += 1;
            }
            let _ = opened.end().await;
        }
        let Some(torn) = tear(&disk, (Rules::Strict, n), &life, answered).await else {
            break;
        };
        cuts += torn;
    }
    let done = format!("{cuts} power cuts while pages are moved");
    proof("G1 G8", "sled", done, &[]);
}

fn in_a_process_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let passed = folder.path().join("passed");
    let test = "moved::a_sled_store_survives_a_torn_loss_while_pages_are_moved";
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("FAILPOINTS", POINTS)
        .env("BATCHYARD_PASSED", &passed)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let passed = fs::read_to_string(passed).unwrap();
    let moved = passed.lines().filter(|point| *point == "sled.moved");
    let moved = moved.count();
    print!("{said}");
    println!("pages were moved {moved} times");
    assert!(moved > 100, "hardly any were moved: {moved}");
}

/// Requests that wait for moments in no order, so that each changes another page, while others come and go.
async fn scatter(disk: &Disk) -> (Kept, Life) {
    let mut random = fastrand::Rng::with_seed(7);
    let begun = Timestamp::from_millis(1_700_000_000_000);
    let mut now = begun;
    for round in 0..6 {
        let opened = open(disk).await;
        for _ in 0..8 {
            // By then nothing is kept of those before, and none of those that wait is due.
            now = now.after(Duration::from_hours(3));
            let wait = |_| {
                let wait = Duration::from_hours(random.u64(10_000..100_000));
                NewRequest::new("waits").not_before(begun.after(wait))
            };
            let delayed: Vec<_> = (0..40).map(wait).collect();
            opened.queue.push(now, delayed).await.unwrap();
            let new = (0..250).map(|_| NewRequest::new(vec![7; 4_000]));
            opened.queue.push(now, new.collect()).await.unwrap();
            settle_all(&*opened.queue, now).await;
        }
        if round == 5 {
            let life = Life::of(&*opened.queue, now).await;
            opened.end().await.unwrap();
            disk.forgetful.restore(Loss::Nothing);
            return (disk.forgetful.keep(), life);
        }
        opened.end().await.unwrap();
    }
    unreachable!("the last round returns")
}
