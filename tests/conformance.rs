//! Every backend and every wrapper against every clause of the contract.

use std::sync::Arc;

use async_trait::async_trait;
use batchyard::{
    MemoryQueue, MemoryStore, Queue, QueueOptions, Store, Timestamp,
    testing::{Faulty, Harness, WithNow},
};

/// Queues in memory, wrapped by a function.
struct Memory(fn(Arc<dyn Queue>) -> Arc<dyn Queue>);

#[async_trait]
impl Harness for Memory {
    async fn open(&self, options: QueueOptions) -> Arc<dyn Queue> {
        (self.0)(Arc::new(MemoryQueue::new(options)))
    }

    async fn store(&self, options: QueueOptions) -> Option<Arc<dyn Store>> {
        Some(Arc::new(MemoryStore::new(options)))
    }
}

batchyard::conformance!(memory, Memory(|queue| queue));
batchyard::conformance!(
    with_now,
    Memory(|queue| {
        let now = Timestamp::from_millis(1_800_000_000_000);
        Arc::new(WithNow::new(queue, now))
    })
);
batchyard::conformance!(faulty, Memory(|queue| Arc::new(Faulty::new(queue))));

#[cfg(feature = "sled")]
mod sled {
    use std::{collections::HashMap, sync::Mutex};

    use batchyard::{QueueName, SledStore};
    use tempfile::TempDir;

    use super::{Arc, Harness, Queue, QueueOptions, Store};

    /// Each queue in a store of its own, in a folder that lives as long as the harness.
    #[derive(Default)]
    pub(super) struct Sled {
        folders: Mutex<HashMap<usize, TempDir>>,
        stores: Mutex<Vec<TempDir>>,
    }

    fn address(queue: &Arc<dyn Queue>) -> usize {
        Arc::as_ptr(queue).cast::<()>().addr()
    }

    impl Sled {
        async fn open_in(&self, folder: TempDir, options: QueueOptions) -> Arc<dyn Queue> {
            let store = SledStore::options()
                // A clause reads the same before and after a restart, leases included.
                .offer_held(false)
                .open(folder.path().join("store"))
                .await
                .expect("the store opens");
            let queue = store.queue_with(&QueueName::default(), options).await;
            let queue: Arc<dyn Queue> = Arc::new(queue.expect("the queue opens"));
            self.folders
                .lock()
                .expect("not poisoned")
                .insert(address(&queue), folder);
            queue
        }
    }

    #[async_trait::async_trait]
    impl Harness for Sled {
        async fn open(&self, options: QueueOptions) -> Arc<dyn Queue> {
            let folder = TempDir::new().expect("a folder");
            self.open_in(folder, options).await
        }

        async fn reopen(
            &self,
            queue: Arc<dyn Queue>,
            options: QueueOptions,
        ) -> Option<Arc<dyn Queue>> {
            let folder = self
                .folders
                .lock()
                .expect("not poisoned")
                .remove(&address(&queue));
            drop(queue);
            Some(self.open_in(folder.expect("its folder"), options).await)
        }

        async fn store(&self, options: QueueOptions) -> Option<Arc<dyn Store>> {
            let folder = TempDir::new().expect("a folder");
            let store = SledStore::options().queues(options);
            let store = store.open(folder.path().join("store")).await;
            self.stores.lock().expect("not poisoned").push(folder);
            Some(Arc::new(store.expect("the store opens")))
        }
    }
}

#[cfg(feature = "sled")]
batchyard::conformance!(sled_store, sled::Sled::default());
