//! Resident memory of a sled store, whatever the size of the batch and the depth of the queue. Alone in its process,
//! because it reads how much memory the process has.

#![cfg(all(feature = "sled", feature = "testing", target_os = "linux"))]

#[path = "memory/bounded.rs"]
mod bounded;

use batchyard::{Queue, SledQueue};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sled_memory_stays_bounded_whatever_the_batch_and_the_depth() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = SledQueue::open(folder.path().join("store")).await;
    let queue = queue.expect("opens");
    bounded::stays_bounded("sled", &queue).await;
    queue.close().await.expect("closed");
}
