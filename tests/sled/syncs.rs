//! One sync a group, before the answers.

use batchyard::{NewRequest, QueueName, SledStore, Store};
use tokio::task::JoinSet;

use crate::support::NOW;

#[tokio::test]
async fn a_push_is_answered_after_a_sync_of_its_own_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = SledStore::open(folder.path()).await.expect("opens");
    let queue = store.queue(&QueueName::default()).await.expect("opens");
    for _ in 0..10 {
        let before = store.sync_count();
        queue
            .push(NOW, vec![NewRequest::new("a")])
            .await
            .expect("pushed");
        assert_eq!(store.sync_count(), before + 1);
    }
    let before = store.sync_count();
    queue.stats(NOW).await.expect("stats");
    queue.push(NOW, Vec::new()).await.expect("nothing pushed");
    assert_eq!(
        store.sync_count(),
        before,
        "what changes nothing syncs nothing"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_producers_share_their_syncs() {
    const PRODUCERS: usize = 64;
    const PUSHES: usize = 20;
    let folder = tempfile::tempdir().expect("a folder");
    let store = SledStore::open(folder.path()).await.expect("opens");
    let queue = store.queue(&QueueName::default()).await.expect("opens");
    let before = store.sync_count();
    let mut producers = JoinSet::new();
    for _ in 0..PRODUCERS {
        let queue = queue.clone();
        producers.spawn(async move {
            for _ in 0..PUSHES {
                queue
                    .push(NOW, vec![NewRequest::new("a")])
                    .await
                    .expect("pushed");
            }
        });
    }
    producers.join_all().await;
    let syncs = store.sync_count() - before;
    let pushes = (PRODUCERS * PUSHES) as u64;
    println!("{pushes} pushes of {PRODUCERS} producers in {syncs} syncs");
    assert!(
        syncs >= PUSHES as u64,
        "each producer waits for each of its pushes"
    );
    assert!(syncs * 4 <= pushes, "{syncs} syncs for {pushes} pushes");
}
