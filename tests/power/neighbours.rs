//! A store whose disk is gone beside one whose disk is sound, in one process: sled has one lock for both.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use batchyard::{
    Claim, NewRequest, Outcome, Queue, QueueName, Retries, SledStore, Store, Then, Timestamp,
    Update, testing::proof,
};

use crate::{
    Disk,
    fresh::live,
    life,
    store::{Backend, in_time},
    stride,
};

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

#[tokio::test]
async fn a_sled_store_whose_disk_is_gone_holds_up_no_other() {
    let Some(disk) = Disk::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let sound = SledStore::open(folder.path()).await.unwrap();
    let queue = sound.queue(&QueueName::default()).await.unwrap();
    let (ends, rounds) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let works = {
        let (queue, ends, rounds) = (queue.clone(), ends.clone(), rounds.clone());
        thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            while !ends.load(Ordering::Acquire) {
                runtime.block_on(in_time("the sound store", round(&*queue)));
                rounds.fetch_add(1, Ordering::AcqRel);
            }
        })
    };
    let life = life::short().await;
    let empty = disk.forgetful.keep();
    let mut cuts = 0;
    for n in (1..).step_by(usize::try_from(stride(2, 1)).unwrap()) {
        disk.forgetful.go_back(&empty);
        disk.forgetful.cut_after(n);
        in_time(
            "the store without a disk",
            live(&disk, Backend::Sled, &life),
        )
        .await;
        if disk.forgetful.cut_was_at().is_none() {
            break;
        }
        cuts += 1;
    }
    ends.store(true, Ordering::Release);
    works.join().unwrap();
    in_time("closing", sound.close()).await.unwrap();
    let rounds = rounds.load(Ordering::Acquire);
    assert!(rounds > 0 && cuts > 0);
    let done = format!("{cuts} disks gone beside {rounds} rounds of another store");
    proof("G8", "sled", done, &[]);
}

/// A claim and an end are transactions: they wait for all who flush.
async fn round(queue: &dyn Queue) {
    queue.push(NOW, vec![NewRequest::new("1")]).await.unwrap();
    let lease = queue.claim(NOW, &Claim::new()).await.unwrap().unwrap();
    let then = Then::Finish {
        rest: Outcome::done(),
        retries: Retries {
            at: NOW,
            max_attempts: NonZeroU32::MIN,
        },
    };
    queue.update(NOW, &lease, Update::then(then)).await.unwrap();
}
