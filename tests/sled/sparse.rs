//! A store does not grow by what is left in nearly empty parts of its file: that is moved, and the parts are used again.

use std::{fs, num::NonZeroU32, path::Path, time::Duration};

use batchyard::{
    Claim, NewRequest, Outcome, Queue, QueueName, QueueOptions, Retries, SledQueue, SledStore,
    Store, Then, Update,
};

use crate::support::{self, NOW};

/// Half of it is what sled needs to write to.
const MOST_MEBIBYTES: u64 = 160;
const ROUNDS: u32 = 36;
/// Without moves the file grows by about eight mebibytes a round.
#[cfg(feature = "faults")]
const FEW_ROUNDS: u32 = 24;
/// The end of the file has to be empty before it can be cut off.
#[cfg(feature = "faults")]
const MAX_ROUNDS: u32 = 16;

async fn open(path: &Path) -> (SledStore, SledQueue) {
    let options = QueueOptions::default().retention(Duration::ZERO);
    let store = SledStore::open(path).await.expect("opens");
    let queue = store.queue_with(&QueueName::default(), options).await;
    (store, queue.expect("opens"))
}

/// Requests that wait for moments in no order, so that each changes another page.
async fn push_delayed(queue: &SledQueue, random: &mut fastrand::Rng, count: usize) {
    let delayed = |_| {
        let wait = Duration::from_secs(random.u64(1..1_000_000));
        NewRequest::new("waits").not_before(NOW.after(wait))
    };
    let requests = (0..count).map(delayed).collect();
    queue.push(NOW, requests).await.expect("pushed");
}

async fn end_all(queue: &SledQueue) {
    let then = Then::Finish {
        rest: Outcome::done(),
        retries: Retries {
            at: NOW,
            max_attempts: NonZeroU32::MIN,
        },
    };
    while let Some(lease) = queue.claim(NOW, &Claim::new()).await.expect("claims") {
        let ended = queue.update(NOW, &lease, Update::then(then.clone())).await;
        ended.expect("ends");
    }
}

/// A hundred requests stay, and six mebibytes come and go.
async fn round(queue: &SledQueue, random: &mut fastrand::Rng) {
    push_delayed(queue, random, 100).await;
    for _ in 0..6 {
        support::push(queue, vec![vec![7; 1_000]; 1_050]).await;
        end_all(queue).await;
    }
}

fn mebibytes(path: &Path) -> u64 {
    let file = fs::metadata(path.join("sled/db")).expect("a file");
    file.len() >> 20
}

/// So many rounds, in one life or in a life each; how large the file was at most.
async fn grow(path: &Path, rounds: u32, in_one_life: bool) -> u64 {
    let mut random = support::random();
    let (mut store, mut queue) = open(path).await;
    for _ in 0..6 {
        push_delayed(&queue, &mut random, 500).await;
    }
    let mut most = 0;
    for _ in 0..rounds {
        round(&queue, &mut random).await;
        if !in_one_life {
            store.close().await.expect("closes");
            (store, queue) = open(path).await;
        }
        most = most.max(mebibytes(path));
    }
    let stats = queue.stats(NOW).await.expect("reads");
    assert!(stats.adds_up(), "{stats:?}");
    assert_eq!(stats.delayed, 3_000 + 100 * u64::from(rounds));
    store.close().await.expect("closes");
    println!("{most} MiB at most, {} at the end", mebibytes(path));
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_opened_again_and_again_does_not_grow() {
    let folder = tempfile::tempdir().expect("a folder");
    let most = grow(folder.path(), ROUNDS, false).await;
    assert!(most <= MOST_MEBIBYTES, "{most} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_stays_open_does_not_grow() {
    let folder = tempfile::tempdir().expect("a folder");
    let most = grow(folder.path(), ROUNDS, true).await;
    assert!(most <= MOST_MEBIBYTES, "{most} MiB");
}

#[cfg(feature = "faults")]
mod killed {
    use super::*;
    use crate::support::with_failpoints;

    /// The store that a child works on, if this is one.
    fn store() -> Option<std::path::PathBuf> {
        batchyard::fault::begin();
        std::env::var_os("STORE").map(Into::into)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "it is started by another test"]
    async fn grows() {
        let Some(path) = store() else { return };
        let most = grow(&path, FEW_ROUNDS, false).await;
        assert!(most <= MOST_MEBIBYTES, "{most} MiB");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "it is started by another test"]
    async fn goes_on() {
        let Some(path) = store() else { return };
        let (store, queue) = open(&path).await;
        round(&queue, &mut support::random()).await;
        store.close().await.expect("closes");
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("a folder");
        for entry in fs::read_dir(from).expect("a folder") {
            let entry = entry.expect("an entry");
            let target = to.join(entry.file_name());
            if entry.file_type().expect("a type").is_dir() {
                copy(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).expect("a copy");
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_store_that_is_made_smaller_is_killed_and_loses_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let large = folder.path().join("large");
        // Nothing is moved: it grows, and that is noticed.
        let (ended, said) =
            with_failpoints("sparse::killed::grows", "sled.move=return(skip)", &large);
        assert!(!ended.success() && said.contains(" MiB"), "{said}");
        let before = mebibytes(&large);
        assert!(before > MOST_MEBIBYTES, "{before} MiB");
        let waiting = 3_000 + 100 * u64::from(FEW_ROUNDS);
        for kill in [
            "sled.move=return(kill)",
            "sled.moved=return(kill)",
            "sled.moved=40*off->return(kill)",
            "sled.moved=120*off->return(kill)",
            "sled.trim=return(kill)",
            "sled.trimmed=return(kill)",
        ] {
            let path = folder.path().join("killed");
            copy(&large, &path);
            let mut kills = 0;
            // What is moved in one life is cut off in one of the next.
            for _ in 0..4 {
                let (ended, said) = with_failpoints("sparse::killed::goes_on", kill, &path);
                assert!(!said.contains("panicked"), "{kill}: {said}");
                kills += u32::from(!ended.success());
            }
            assert!(kills > 0, "{kill}: it was not passed");
            let verified = SledStore::verify(&path, folder.path()).await;
            let damaged = verified.expect("it can be verified").damages();
            assert_eq!(damaged, 0, "{kill}");
            let mut random = support::random();
            let mut after = before;
            for _ in 0..MAX_ROUNDS {
                let (store, queue) = open(&path).await;
                let stats = queue.stats(NOW).await.expect("reads");
                assert!(
                    stats.adds_up() && stats.delayed >= waiting,
                    "{kill}: {stats:?}"
                );
                round(&queue, &mut random).await;
                store.close().await.expect("closes");
                after = mebibytes(&path);
                print!("{after} ");
                if after < MOST_MEBIBYTES {
                    break;
                }
            }
            println!("MiB after {kill}");
            assert!(after < MOST_MEBIBYTES, "{kill}: {after} MiB");
            fs::remove_dir_all(path).expect("removed");
        }
    }
}
