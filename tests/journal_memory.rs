//! Resident memory of a journal store, whatever the size of the batch and the depth of the queue. Alone in its process,
//! because it reads how much memory the process has.

#![cfg(all(feature = "journal", feature = "testing", target_os = "linux"))]

#[path = "memory/bounded.rs"]
mod bounded;

use batchyard::{JournalQueue, Queue};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn journal_memory_stays_bounded_whatever_the_batch_and_the_depth() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = JournalQueue::open(folder.path().join("store")).await;
    let queue = queue.expect("opens");
    bounded::stays_bounded("journal", &queue).await;
    queue.close().await.expect("closed");
}
